//! What the disk itself can do: appends of 4 KiB, each followed by fdatasync, as a database's log does them.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

const BLOCK: usize = 4096;
const BLOCKS: usize = 4_096;
const LIMIT: Duration = Duration::from_secs(2);

/// The disk's own figures.
#[derive(Debug, Serialize)]
pub(super) struct Disk {
    pub syncs_per_second: f64,
    pub p50_us: u64,
    pub p99_us: u64,
}

/// Measures the disk that holds `dir`, for two seconds at the most.
pub(super) fn measure(dir: &Path) -> anyhow::Result<Disk> {
    let path = dir.join(".bench.tmp");
    let measured = File::create(&path).map_err(anyhow::Error::from).and_then(run);
    fs::remove_file(&path).ok();
    measured
}

fn run(mut file: File) -> anyhow::Result<Disk> {
    let block = [7_u8; BLOCK];
    // Written once before, so that the syncs are about data and not about the file's length.
    for _ in 0..BLOCKS {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    file.seek(SeekFrom::Start(0))?;
    let mut latencies = Histogram::<u64>::new(3)?;
    let started = Instant::now();
    for _ in 0..BLOCKS {
        let one = Instant::now();
        append(&mut file, &block)?;
        latencies.record(u64::try_from(one.elapsed().as_micros())?.max(1))?;
        if started.elapsed() > LIMIT {
            break;
        }
    }
    Ok(Disk {
        syncs_per_second: latencies.len() as f64 / started.elapsed().as_secs_f64(),
        p50_us: latencies.value_at_quantile(0.5),
        p99_us: latencies.value_at_quantile(0.99),
    })
}

fn append(file: &mut File, block: &[u8]) -> io::Result<()> {
    file.write_all(block)?;
    file.sync_data()
}
