//! The rate of durable appends, beside what the disk does without us, and how fast a log opens.
//!
//! `cargo bench -p microcluster --features bench --bench log_append`; `TMPDIR` picks the disk.

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use microcluster::db::bench::Log;
use tempfile::TempDir;
use tokio::runtime::Runtime;

const COMMAND_BYTES: usize = 256;
/// What the log adds to a command.
const OVERHEAD_BYTES: usize = 60;

fn main() -> Result<(), Box<dyn Error>> {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20)
        .configure_from_args();
    let runtime = Runtime::new()?;
    for count in [1, 16, 64] {
        raw(&mut criterion, count as usize)?;
        append(&mut criterion, &runtime, count)?;
    }
    open(&mut criterion, &runtime)?;
    criterion.final_summary();
    Ok(())
}

/// The same bytes with one `pwrite` and one `fdatasync`, over a file that has its length.
fn raw(criterion: &mut Criterion, count: usize) -> Result<(), Box<dyn Error>> {
    let dir = TempDir::new()?;
    let file = File::create(dir.path().join("raw"))?;
    let bytes = vec![b'x'; count * (COMMAND_BYTES + OVERHEAD_BYTES)];
    file.write_all_at(&vec![0; 64 << 20], 0)?;
    file.sync_all()?;
    let mut offset = 0;
    criterion.bench_function(&format!("raw/{count}"), |bencher| {
        bencher.iter(|| {
            offset = (offset + bytes.len() as u64) % (63 << 20);
            file.write_all_at(&bytes, offset).and_then(|()| file.sync_data())
        });
    });
    Ok(())
}

fn append(criterion: &mut Criterion, runtime: &Runtime, count: u64) -> Result<(), Box<dyn Error>> {
    for allocate_kib in [0, 256] {
        let dir = TempDir::new()?;
        let mut log = Log::open(dir.path(), allocate_kib << 10, COMMAND_BYTES)?;
        let mut group = criterion.benchmark_group(format!("append/{count}"));
        group.throughput(Throughput::Elements(count));
        group.bench_function(format!("{allocate_kib} KiB ahead"), |bencher| {
            bencher.iter_custom(|rounds| {
                let start = Instant::now();
                for _ in 0..rounds {
                    // As openraft does: in a task of a runtime, one append after the other.
                    if let Err(error) = runtime.block_on(log.append(count)) {
                        panic!("the log refuses: {error}");
                    }
                }
                start.elapsed()
            });
        });
    }
    Ok(())
}

fn open(criterion: &mut Criterion, runtime: &Runtime) -> Result<(), Box<dyn Error>> {
    let dir = TempDir::new()?;
    let mut log = Log::open(dir.path(), 256 << 10, COMMAND_BYTES)?;
    for _ in 0..(64 << 20) / (COMMAND_BYTES + OVERHEAD_BYTES) / 1000 {
        runtime.block_on(log.append(1000))?;
    }
    drop(log);
    criterion.bench_function("open/64 MiB", |bencher| {
        bencher.iter(|| Log::open(dir.path(), 256 << 10, COMMAND_BYTES).map(|_| ()));
    });
    Ok(())
}
