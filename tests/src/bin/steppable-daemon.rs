//! `microclusterd` with what the test kit may set beyond its arguments. It is built with the feature `test-util`, so it stands still
//! where a test wants it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use microclusterd::daemon::Options;

/// `microclusterd` for tests
#[derive(Debug, Parser)]
struct SteppableDaemon {
    /// Directory that holds everything of this member
    #[arg(long)]
    state_dir: PathBuf,
    /// How long an admitted joiner may take to ask to be taken in, in milliseconds
    #[arg(long)]
    pending_timeout_ms: Option<u64>,
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let SteppableDaemon { state_dir, pending_timeout_ms, options } = SteppableDaemon::parse();
    options.run(state_dir, |builder| match pending_timeout_ms {
        Some(timeout) => builder.pending_timeout(Duration::from_millis(timeout)),
        None => builder,
    })
}
