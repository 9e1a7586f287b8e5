//! `microctl demo`: a whole cluster on this machine, in one command, that leaves nothing behind.

mod cluster;
mod tour;

use std::env;
use std::io::{self, IsTerminal};

use anyhow::Context as _;
use clap::Args;
use clap::builder::RangedU64ValueParser;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::output::{ClosedPipe, print};
use cluster::Cluster;

#[derive(Debug, Args)]
pub struct Arguments {
    /// How many members the cluster has
    #[arg(long, value_name = "COUNT", default_value = "3")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=9))]
    members: usize,
}

impl Arguments {
    pub async fn run(self) -> anyhow::Result<()> {
        // From here on a signal ends the demo, and the end always cleans up.
        let mut interruption = Interruption::listen().context("cannot listen for signals")?;
        let program = env::current_exe().context("cannot find the program of this process")?;
        let dir = tempfile::Builder::new()
            .prefix("microcluster-demo-")
            .tempdir()
            .context("cannot create a temporary directory")?;
        let mut cluster = Cluster::new(program, dir.path(), self.members)?;
        let outcome = tokio::select! {
            outcome = show(&mut cluster) => outcome,
            () = interruption.wait() => Ok(()),
        };
        let outcome = outcome.inspect_err(|error| {
            if !error.is::<ClosedPipe>() {
                cluster.tell_logs();
            }
        });
        cluster.stop().await;
        match dir.close() {
            // The last member to end may have taken it along.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                outcome.and(Err(error).context("cannot remove the demo's directory"))
            }
            _ => outcome,
        }
    }
}

/// The tour, and then the cluster for whoever sits at the terminal.
async fn show(cluster: &mut Cluster) -> anyhow::Result<()> {
    tour::run(cluster).await?;
    if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        return Ok(());
    }
    print(&farewell(cluster))?;
    std::future::pending().await
}

fn farewell(cluster: &Cluster) -> String {
    let program = cluster.program().display();
    let mut text = String::from("\nThe cluster is yours until Ctrl-C. In another terminal:\n\n");
    let names: Vec<_> = cluster.members().iter().map(|member| member.name.as_str()).collect();
    let others = if names.len() > 1 { format!("   # or {}", names[1..].join(", ")) } else { String::new() };
    let first = cluster.dir().join(names[0]);
    text.push_str(&format!("  export MICROCLUSTER_STATE_DIR={}{others}\n", first.display()));
    text.push_str(&format!("  {program} status\n  {program} cluster list\n  {program} sql\n  {program} --help\n\n"));
    text
}

/// Ctrl-C, and the other ways to ask a program to end.
struct Interruption {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    quit: Signal,
}

impl Interruption {
    fn listen() -> io::Result<Self> {
        Ok(Interruption {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
            _ = self.quit.recv() => {}
        }
    }
}
