//! The command line `microctl`: what it takes, and how it ends.

mod bench;
mod certificates;
mod cluster;
mod demo;
mod duration;
mod failure;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod handbook;
mod init;
mod lifecycle;
mod output;
mod servers;
mod shell;
mod sql;
mod status;
mod tokens;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use microcluster::App;
use microcluster_client::Client;

use crate::daemon::DemoDaemon;

pub use duration::{DurationError, parse_duration};
pub use failure::{Usage, block_on};
pub use output::{ClosedPipe, Format, Output, print};
pub use shell::{Completions, ShellCommand};

/// The whole of `microctl`.
#[derive(Debug, Parser)]
#[command(name = "microctl", version, propagate_version = true)]
#[command(about = "Control a microcluster daemon and the cluster it is part of")]
#[command(after_help = "Try `microctl demo` for a whole cluster on this machine in one command.")]
#[command(arg_required_else_help = true, max_term_width = 100)]
struct Microctl {
    #[command(flatten)]
    context: Context,
    #[command(subcommand)]
    command: MicroctlCommand,
}

#[derive(Debug, Subcommand)]
enum MicroctlCommand {
    #[command(flatten)]
    Daemon(Command),
    /// Run a whole cluster in temporary directories on this machine, with a short guided tour
    Demo(demo::Arguments),
    #[command(flatten)]
    Shell(ShellCommand),
    /// Run a member of a demo
    #[command(hide = true)]
    DemoDaemon(DemoDaemon),
}

/// Which daemon a command is for.
#[derive(Debug, Clone, Args)]
pub struct Context {
    /// State directory of the daemon
    #[arg(long, global = true, value_name = "DIR", env = "MICROCLUSTER_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
}

/// The commands that every microcluster daemon answers to.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Begin a new cluster, or join one with a token
    Init(init::Arguments),
    /// Show this member: its role, the leader, quorum, database, certificates
    Status(status::Arguments),
    /// Wait until the daemon has started
    Waitready(lifecycle::Waitready),
    /// Stop the daemon; returns when it has stopped
    Shutdown(lifecycle::Shutdown),
    /// List, show, compare and remove the members of the cluster; recover it
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Add, list and revoke join tokens
    #[command(subcommand)]
    Tokens(tokens::Command),
    /// Replace certificates
    #[command(subcommand)]
    Certificates(certificates::Command),
    /// List and set where additional servers listen
    #[command(subcommand)]
    Servers(servers::Command),
    /// Run SQL on the cluster's database
    Sql(sql::Arguments),
    /// Measure the cluster: operations a second and latencies, beside the disk's own rate
    Bench(bench::Arguments),
}

impl Command {
    /// Runs the command; its result goes to standard output.
    ///
    /// # Errors
    /// When the command failed: the text is one for people. [`block_on`] reports it.
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = context.client()?;
        match self {
            Command::Init(arguments) => arguments.run(&client).await,
            Command::Status(arguments) => arguments.run(&client).await,
            Command::Waitready(arguments) => arguments.run(&client).await,
            Command::Shutdown(arguments) => arguments.run(&client).await,
            Command::Cluster(command) => command.run(context).await,
            Command::Tokens(command) => command.run(&client).await,
            Command::Certificates(command) => command.run(&client).await,
            Command::Servers(command) => command.run(&client).await,
            Command::Sql(arguments) => arguments.run(&client).await,
            Command::Bench(arguments) => arguments.run(&client, context.state_dir.clone()).await,
        }
    }
}

impl Context {
    /// A client of the daemon, by its control socket.
    ///
    /// # Errors
    /// When the state directory was not given.
    pub fn client(&self) -> Result<Client, Usage> {
        Ok(self.app()?.local_client())
    }

    /// The daemon itself, also while it does not run.
    ///
    /// # Errors
    /// When the state directory was not given.
    pub fn app(&self) -> Result<App, Usage> {
        let state_dir = self.state_dir.as_ref();
        let missing = || Usage::new("which daemon? Give --state-dir DIR or set MICROCLUSTER_STATE_DIR");
        state_dir.map(App::new).ok_or_else(missing)
    }
}

/// Runs `microctl` with the arguments of the process.
pub fn main() -> ExitCode {
    let Microctl { context, command } = Microctl::parse();
    match command {
        MicroctlCommand::DemoDaemon(daemon) => daemon.main(),
        MicroctlCommand::Daemon(command) => block_on(async { command.run(&context).await }),
        MicroctlCommand::Demo(arguments) => block_on(arguments.run()),
        MicroctlCommand::Shell(command) => block_on(async { command.run::<Microctl>() }),
    }
}
