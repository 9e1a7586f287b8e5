//! `extendedd`: the daemon of the product. It takes the flags of `microclusterd`; `microctl` drives it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// A member of a microcluster with a resource of its own
#[derive(Parser)]
#[command(name = "extendedd", version)]
struct Extendedd {
    /// Directory that holds everything of this member; created if it is missing
    #[arg(long, value_name = "DIR", env = "MICROCLUSTERD_STATE_DIR")]
    state_dir: PathBuf,
    #[command(flatten)]
    options: microclusterd::daemon::Options,
}

fn main() -> ExitCode {
    let Extendedd { state_dir, options } = Extendedd::parse();
    options.run(state_dir, extended::product)
}
