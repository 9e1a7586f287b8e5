//! Encoding and decoding of a log entry, on disk and on the network alike, and of the frame that brings entries to a follower.
//!
//! `cargo bench -p microcluster --features bench --bench codec`

use std::error::Error;
use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput};
use microcluster::db::bench::{Append, decode, encode};

const COMMAND_BYTES: usize = 256;

fn main() -> Result<(), Box<dyn Error>> {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20)
        .configure_from_args();
    let command = Bytes::from(vec![b'x'; COMMAND_BYTES]);
    entry(&mut criterion, &command);
    frame(&mut criterion, &command)?;
    criterion.final_summary();
    Ok(())
}

fn entry(criterion: &mut Criterion, command: &Bytes) {
    let mut group = criterion.benchmark_group("entry");
    let mut out = Vec::new();
    group.bench_function("encode", |bencher| {
        bencher.iter(|| {
            out.clear();
            encode(1, black_box(command), &mut out);
            out.len()
        });
    });
    let bytes = Bytes::from(out);
    group.bench_function("decode", |bencher| bencher.iter(|| decode(black_box(&bytes).clone()).is_ok()));
}

fn frame(criterion: &mut Criterion, command: &Bytes) -> Result<(), Box<dyn Error>> {
    for count in [1, 64] {
        let mut group = criterion.benchmark_group(format!("frame of {count}"));
        group.throughput(Throughput::Elements(count));
        let append = Append::new(count, command);
        let mut out = Vec::new();
        group.bench_function("encode", |bencher| {
            bencher.iter(|| {
                out.clear();
                black_box(&append).encode(&mut out).is_ok()
            });
        });
        out.clear();
        append.encode(&mut out)?;
        let bytes = Bytes::from(out);
        Append::decode(&bytes)?;
        group.bench_function("decode", |bencher| bencher.iter(|| Append::decode(black_box(&bytes)).is_ok()));
    }
    Ok(())
}
