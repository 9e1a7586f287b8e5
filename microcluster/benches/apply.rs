//! What it takes to apply entries: one SQLite transaction with a savepoint for each request, without a sync.
//!
//! `cargo bench -p microcluster --features bench --bench apply`; `TMPDIR` picks the disk.

use std::error::Error;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use microcluster::db::bench::State;
use tempfile::TempDir;

/// Entries in a transaction, and requests in each of them: a lone one, what many clients make, and a member that catches up.
const SHAPES: &[(u64, u64)] = &[(1, 1), (1, 16), (1, 64), (64, 1), (16, 64)];

fn main() -> Result<(), Box<dyn Error>> {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .sample_size(20)
        .configure_from_args();
    for &(entries, requests) in SHAPES {
        apply(&mut criterion, entries, requests)?;
    }
    criterion.final_summary();
    Ok(())
}

fn apply(criterion: &mut Criterion, entries: u64, requests: u64) -> Result<(), Box<dyn Error>> {
    let dir = TempDir::new()?;
    let mut state = State::create(dir.path())?;
    let mut group = criterion.benchmark_group("apply");
    group.throughput(Throughput::Elements(entries * requests));
    group.bench_function(format!("{entries} x {requests}"), |bencher| {
        bencher.iter_custom(|rounds| {
            let mut taken = Duration::ZERO;
            for _ in 0..rounds {
                let made = state.insertions(entries, requests);
                let start = Instant::now();
                if let Err(error) = made.and_then(|made| state.apply(&made)) {
                    panic!("it cannot be applied: {error}");
                }
                taken += start.elapsed();
            }
            taken
        });
    });
    Ok(())
}
