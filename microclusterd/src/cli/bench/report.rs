//! The figures of a bench, for people and for programs.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::disk::Disk;
use crate::cli::output::{Field, Listing};

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub clients: u16,
    pub seconds: u16,
    pub size: u32,
    /// Whether the load polled for answers before it slept.
    pub busy_poll: bool,
    pub workloads: Vec<Figures>,
    /// 4 KiB appends with fdatasync, one after the other, without a database.
    pub disk: Option<Disk>,
}

/// The figures of one workload.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    workload: &'static str,
    operations: u64,
    operations_per_second: f64,
    p50_us: u64,
    p90_us: u64,
    p99_us: u64,
    max_us: u64,
    errors: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_error: Option<String>,
}

impl Figures {
    pub fn new(
        workload: &'static str,
        latencies: &Histogram<u64>,
        took: Duration,
        errors: u64,
        first_error: Option<String>,
    ) -> Figures {
        Figures {
            workload,
            operations: latencies.len(),
            operations_per_second: latencies.len() as f64 / took.as_secs_f64(),
            p50_us: latencies.value_at_quantile(0.5),
            p90_us: latencies.value_at_quantile(0.9),
            p99_us: latencies.value_at_quantile(0.99),
            max_us: latencies.max(),
            errors,
            first_error,
        }
    }
}

impl Report {
    pub fn listing(&self) -> Listing {
        let mut listing = Listing::new(["WORKLOAD", "OPERATIONS/S", "P50 MS", "P90 MS", "P99 MS", "MAX MS", "ERRORS"]);
        for figures in &self.workloads {
            let errors = match &figures.first_error {
                None => figures.errors.to_string(),
                Some(first) => format!("{} ({first})", figures.errors),
            };
            listing.row([
                Field::new(figures.workload),
                Field::new(format!("{:.0}", figures.operations_per_second)),
                Field::new(millis(figures.p50_us)),
                Field::new(millis(figures.p90_us)),
                Field::new(millis(figures.p99_us)),
                Field::new(millis(figures.max_us)),
                Field::new(errors),
            ]);
        }
        if let Some(disk) = &self.disk {
            let empty = || Field::new("");
            listing.row([
                Field::new("disk: 4 KiB + fdatasync"),
                Field::new(format!("{:.0}", disk.syncs_per_second)),
                Field::new(millis(disk.p50_us)),
                empty(),
                Field::new(millis(disk.p99_us)),
                empty(),
                empty(),
            ]);
        }
        listing
    }
}

fn millis(micros: u64) -> String {
    format!("{:.2}", micros as f64 / 1_000.0)
}
