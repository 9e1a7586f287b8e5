//! The daemon `microclusterd`: its arguments, its log, its run.

mod log;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser};
use microcluster::{Builder, Daemon, RunError};
use microcluster_client::Address;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::parse_duration;
use log::{Log, LogFile};

/// The whole of `microclusterd`.
#[derive(Debug, Parser)]
#[command(name = "microclusterd", version, max_term_width = 100)]
#[command(about = "A member of a microcluster: control API, mutual TLS, a replicated SQLite database")]
struct Microclusterd {
    /// Directory that holds everything of this member; created if it is missing
    #[arg(long, value_name = "DIR", env = "MICROCLUSTERD_STATE_DIR")]
    state_dir: PathBuf,
    #[command(flatten)]
    options: Options,
}

/// What can be said of a daemon apart from its state directory. A product flattens it into its own command line.
#[derive(Debug, Args)]
pub struct Options {
    /// How often the leader looks after the other members
    #[arg(long, value_name = "DURATION", default_value = "10s", env = "MICROCLUSTERD_HEARTBEAT")]
    #[arg(value_parser = heartbeat)]
    heartbeat: Duration,
    /// How many members vote, an odd number; the same on all members
    #[arg(long, value_name = "COUNT", default_value_t = 3, env = "MICROCLUSTERD_VOTERS", value_parser = voters)]
    voters: usize,
    /// How many members stand by to replace a voter; the same on all members
    #[arg(long, value_name = "COUNT", default_value_t = 3, env = "MICROCLUSTERD_STAND_BYS")]
    stand_bys: usize,
    /// Group that may use the control socket
    #[arg(long, value_name = "NAME", env = "MICROCLUSTERD_SOCKET_GROUP")]
    socket_group: Option<String>,
    /// Address to listen on until the daemon is initialised, IP:PORT
    #[arg(long, value_name = "ADDRESS", env = "MICROCLUSTERD_PRE_INIT_LISTEN")]
    pre_init_listen: Option<Address>,
    #[command(flatten)]
    log: Log,
}

/// A member of a demo: ends when its standard input is closed, and leaves no state directory then.
#[derive(Debug, Args)]
pub(crate) struct DemoDaemon {
    /// Directory that holds everything of this member; removed at the end
    dir: PathBuf,
    #[command(flatten)]
    options: Options,
}

/// Runs `microclusterd` with the arguments of the process.
pub fn main() -> ExitCode {
    let Microclusterd { state_dir, options } = Microclusterd::parse();
    options.run(state_dir, |builder| builder.version(env!("CARGO_PKG_VERSION")))
}

impl Options {
    /// Sets up the log and runs a daemon until a signal or its control API ends it. `describe` makes the product's daemon out of
    /// the one it is given. What goes wrong is printed, and the exit code says so.
    pub fn run(self, state_dir: PathBuf, describe: impl FnOnce(Builder) -> Builder) -> ExitCode {
        let run = || {
            let log = self.log.init()?;
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(worker_threads())
                .enable_all()
                .build()
                .context("the asynchronous runtime does not start")?
                .block_on(with_log(log, describe(self.builder(state_dir)).run()))
        };
        let ended: anyhow::Result<()> = run();
        match ended {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("Error: {error:#}");
                ExitCode::FAILURE
            }
        }
    }

    fn builder(self, state_dir: PathBuf) -> Builder {
        let Options { heartbeat, voters, stand_bys, socket_group, pre_init_listen, .. } = self;
        let mut builder = Daemon::builder(state_dir).heartbeat_interval(heartbeat).voters(voters).stand_bys(stand_bys);
        if let Some(group) = socket_group {
            builder = builder.socket_group(group);
        }
        if let Some(address) = pre_init_listen {
            builder = builder.pre_init_listen(address.to_string());
        }
        builder
    }
}

/// Runs a daemon to its end. With each HUP the file of its log, if it has one, is opened again.
async fn with_log(log: Option<LogFile>, run: impl Future<Output = Result<(), RunError>>) -> anyhow::Result<()> {
    let Some(log) = log else {
        return Ok(run.await?);
    };
    let mut hangup = signal(SignalKind::hangup()).context("signals cannot be waited for")?;
    let mut run = std::pin::pin!(run);
    loop {
        tokio::select! {
            ended = &mut run => return Ok(ended?),
            Some(()) = hangup.recv() => {
                let log = log.clone();
                match tokio::task::spawn_blocking(move || log.reopen()).await {
                    Ok(Ok(())) => tracing::info!("the log's file was opened again"),
                    Ok(Err(e)) => tracing::error!(error = %e, "the log's file cannot be opened again"),
                    Err(e) => tracing::error!(error = %e, "the log's file was not opened again"),
                }
            }
        }
    }
}

/// Half of the processors: the log and SQLite write on threads of their own, and fewer workers wake each other less. With
/// two processors one worker takes a tenth to a quarter less time for a request than two (doc/performance.md).
fn worker_threads() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (processors / 2).clamp(1, 8)
}

impl DemoDaemon {
    pub(crate) fn main(self) -> ExitCode {
        let dir = self.dir.clone();
        // The thread has no owner that joins it: it ends the process, whatever else goes on.
        std::thread::spawn(move || {
            // A pipe from the demo, which never writes: it ends when the demo ends, however it does.
            let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
            // The daemon beside it still writes: what it makes meanwhile is in the way of one attempt, not of all.
            for _ in 0..50 {
                if fs::remove_dir_all(&dir).is_ok() || !dir.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            // The last member takes the demo's own directory along; for the others it is not empty.
            if let Some(parent) = dir.parent() {
                let _ = fs::remove_dir(parent);
            }
            process::exit(0);
        });
        self.options.run(self.dir, |builder| builder)
    }
}

fn heartbeat(text: &str) -> Result<Duration, String> {
    match parse_duration(text).map_err(|e| e.to_string())? {
        Duration::ZERO => Err("a heartbeat every 0 s is none; the usual is 10s".into()),
        duration => Ok(duration),
    }
}

fn voters(text: &str) -> Result<usize, String> {
    match text.parse::<usize>().map_err(|e| e.to_string())? {
        count if count % 2 == 1 => Ok(count),
        _ => Err("an even number of voters survives no more losses than one less; the usual is 3".into()),
    }
}
