//! `microctl waitready` and `microctl shutdown`: the daemon's start and end.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use microcluster_client::{Client, Error, Server};
use tokio::net::UnixStream;

use super::duration::{DurationError, parse_duration};

/// How often the socket of a daemon that stops is tried.
const STOPPED_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Debug, Args)]
pub struct Waitready {
    /// How long to wait, in seconds
    #[arg(short, long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    timeout: Duration,
}

impl Waitready {
    pub async fn run(self, client: &Client) -> anyhow::Result<()> {
        let waited = || format!("the daemon is not ready after {} s", self.timeout.as_secs_f32());
        client.wait_ready(self.timeout).await.with_context(waited)
    }
}

#[derive(Debug, Args)]
pub struct Shutdown {
    /// How long to wait until the daemon has stopped, in seconds
    #[arg(short, long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
    timeout: Duration,
}

impl Shutdown {
    pub async fn run(self, client: &Client) -> anyhow::Result<()> {
        let deadline = Instant::now() + self.timeout;
        let process = Process::behind(client.server()).await;
        match client.timeout(self.timeout).shutdown().await {
            // It may end faster than its answer travels.
            Ok(()) | Err(Error::Interrupted { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        loop {
            let answer = client.timeout(STOPPED_INTERVAL * 10).status().await;
            let unreachable = matches!(answer, Err(Error::Unreachable { .. }));
            if unreachable && process.as_ref().is_none_or(Process::has_ended) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!(
                    "the daemon was told to stop and has not after {} s; its log says what it waits for",
                    self.timeout.as_secs_f32()
                );
            }
            tokio::time::sleep(STOPPED_INTERVAL).await;
        }
    }
}

/// The process behind a control socket. A daemon that closes its socket still holds its state directory
/// for a moment, and one that is started in this moment is refused.
struct Process {
    stat: PathBuf,
}

impl Process {
    async fn behind(server: &Server) -> Option<Self> {
        let Server::Unix(path) = server else {
            return None;
        };
        let process = UnixStream::connect(path).await.ok()?.peer_cred().ok()?.pid()?;
        let stat = PathBuf::from(format!("/proc/{process}/stat"));
        // Without /proc, or from another container, the process cannot be watched.
        stat.exists().then_some(Process { stat })
    }

    fn has_ended(&self) -> bool {
        match fs::read_to_string(&self.stat) {
            // The name of the program, in parentheses, may contain anything; the state follows.
            Ok(stat) => stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X'])),
            Err(_) => true,
        }
    }
}

/// A number of seconds, or a duration with units.
fn seconds(text: &str) -> Result<Duration, DurationError> {
    match text.parse::<u32>() {
        Ok(seconds) => Ok(Duration::from_secs(seconds.into())),
        Err(_) => parse_duration(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_number_is_seconds() {
        assert_eq!(seconds("10"), Ok(Duration::from_secs(10)));
        assert_eq!(seconds("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(seconds("-1"), Err(DurationError::Form));
    }
}
