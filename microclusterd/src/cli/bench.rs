//! `microctl bench`: load on a running cluster through the control socket, beside what the disk itself can do.

mod connection;
mod disk;
mod report;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use microcluster_client::{Client, Consistency, Server, SqlRequest};
use serde_json::{Value, json};

use super::output::{Format, Look, print, tell};
use connection::Connection;
use report::{Figures, Report};

/// Where the rows go; dropped at the end.
const TABLE: &str = "microctl_bench";
/// How long the last answers are waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Rows that the reads choose from.
const ROWS: i64 = 1_000;

#[derive(Debug, Args)]
pub struct Arguments {
    /// What to measure; all of them by default
    #[arg(short, long, value_enum, value_name = "WORKLOAD")]
    workload: Vec<Workload>,
    /// How many clients work at once, each on a connection of its own
    #[arg(short, long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    clients: u16,
    /// How long each workload runs, in seconds
    #[arg(short, long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=3600))]
    seconds: u16,
    /// The size of a row's text, in bytes
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    size: u32,
    /// Poll for each answer for a moment before sleeping, so that the time to wake this program is not measured; it
    /// takes a processor of its own
    #[arg(long)]
    busy_poll: bool,
    /// Format: table or json
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT", hide_possible_values = true)]
    format: Format,
}

/// What each client does over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// Insert one row
    Insert,
    /// Read one row by its key from the local replica
    SelectLocal,
    /// Read one row by its key, linearizable
    SelectLinearizable,
    /// Update one row and insert another one, as one transaction
    Transaction,
}

impl Workload {
    fn name(self) -> &'static str {
        match self {
            Workload::Insert => "insert",
            Workload::SelectLocal => "select-local",
            Workload::SelectLinearizable => "select-linearizable",
            Workload::Transaction => "transaction",
        }
    }

    /// The body of the `n`th request.
    fn request(self, n: i64, text: &str) -> SqlRequest {
        let by_key = || {
            SqlRequest::new(format!("SELECT text FROM {TABLE} WHERE id = ?1"))
                .with_parameters(vec![json!(n % ROWS + 1)])
        };
        match self {
            Workload::Insert => SqlRequest::new(format!("INSERT INTO {TABLE}(n, text) VALUES (?1, ?2)"))
                .with_parameters(vec![json!(n), Value::from(text)]),
            Workload::SelectLocal => by_key().with_consistency(Consistency::Local),
            Workload::SelectLinearizable => by_key(),
            Workload::Transaction => SqlRequest::new(format!(
                "UPDATE {TABLE} SET n = {n} WHERE id = {}; INSERT INTO {TABLE}(n, text) VALUES ({n}, '{text}')",
                n % ROWS + 1
            )),
        }
    }
}

impl Arguments {
    pub async fn run(self, client: &Client, state_dir: Option<PathBuf>) -> anyhow::Result<()> {
        if !matches!(self.format, Format::Table | Format::Json) {
            bail!("the bench is written as table or json");
        }
        let text = "x".repeat(self.size as usize);
        prepare(client, &text).await?;
        let measured = self.measure(client, state_dir, &text).await;
        let dropped = sql(client, &SqlRequest::new(format!("DROP TABLE IF EXISTS {TABLE}"))).await;
        let report = measured?;
        dropped.context("the bench's table could not be dropped")?;
        print(&self.format.render(Look::of_stdout(), &report, Report::listing)?)
    }

    async fn measure(&self, client: &Client, state_dir: Option<PathBuf>, text: &str) -> anyhow::Result<Report> {
        let disk = match state_dir {
            Some(dir) => Some(tokio::task::spawn_blocking(move || disk::measure(&dir)).await??),
            None => None,
        };
        let mut workloads = Vec::new();
        let chosen = if self.workload.is_empty() { Workload::value_variants() } else { &self.workload };
        for workload in chosen {
            tell(&format!("{} with {} clients for {} s …", workload.name(), self.clients, self.seconds));
            workloads.push(self.load(client, *workload, text).await?);
        }
        Ok(Report {
            clients: self.clients,
            seconds: self.seconds,
            size: self.size,
            busy_poll: self.busy_poll,
            workloads,
            disk,
        })
    }

    async fn load(&self, client: &Client, workload: Workload, text: &str) -> anyhow::Result<Figures> {
        let counter = Arc::new(AtomicI64::new(0));
        let Server::Unix(socket) = client.server().clone() else { bail!("the bench goes through the control socket") };
        let started = Instant::now();
        let deadline = started + Duration::from_secs(self.seconds.into());
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..self.clients {
            let (socket, counter, text) = (socket.clone(), Arc::clone(&counter), text.to_owned());
            let busy_poll = self.busy_poll;
            clients.spawn(async move {
                let work = one_client(&socket, busy_poll, workload, &counter, &text, deadline);
                tokio::time::timeout_at((deadline + ANSWER_TIMEOUT).into(), work)
                    .await
                    .context("the daemon does not answer")?
            });
        }
        let mut latencies = Histogram::<u64>::new(3)?;
        let (mut errors, mut first_error) = (0, None);
        while let Some(done) = clients.join_next().await {
            let done = done??;
            latencies.add(&done.latencies)?;
            errors += done.errors;
            first_error = first_error.or(done.first_error);
        }
        Ok(Figures::new(workload.name(), &latencies, started.elapsed(), errors, first_error))
    }
}

/// What one client saw.
struct Done {
    /// In microseconds.
    latencies: Histogram<u64>,
    errors: u64,
    first_error: Option<String>,
}

async fn one_client(
    socket: &Path,
    busy_poll: bool,
    workload: Workload,
    counter: &AtomicI64,
    text: &str,
    deadline: Instant,
) -> anyhow::Result<Done> {
    let mut done = Done { latencies: Histogram::new(3)?, errors: 0, first_error: None };
    let mut connection = Connection::open(socket, busy_poll).await?;
    while Instant::now() < deadline {
        let request = serde_json::to_vec(&workload.request(counter.fetch_add(1, Ordering::Relaxed), text))?;
        let started = Instant::now();
        let answer = connection.sql(&request).await;
        let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
        let error = match answer {
            Ok(Ok(())) => {
                done.latencies.record(micros)?;
                continue;
            }
            Ok(Err(refused)) => refused,
            Err(error) => {
                connection = Connection::open(socket, busy_poll).await?;
                error.to_string()
            }
        };
        done.errors += 1;
        done.first_error.get_or_insert(error);
        // A daemon that refuses everything at once must not be asked in a tight loop.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(done)
}

async fn prepare(client: &Client, text: &str) -> anyhow::Result<()> {
    let create =
        format!("DROP TABLE IF EXISTS {TABLE}; CREATE TABLE {TABLE}(id INTEGER PRIMARY KEY, n INTEGER, text TEXT)");
    sql(client, &SqlRequest::new(create)).await.context("the bench's table could not be made")?;
    let rows = format!(
        "WITH RECURSIVE row(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM row WHERE n < {ROWS})
         INSERT INTO {TABLE}(n, text) SELECT n, ?1 FROM row"
    );
    sql(client, &SqlRequest::new(rows).with_parameters(vec![Value::from(text)])).await
}

async fn sql(client: &Client, request: &SqlRequest) -> anyhow::Result<()> {
    client.sql(request).await?;
    Ok(())
}
