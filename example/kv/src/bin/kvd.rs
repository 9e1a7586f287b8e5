//! `kvd`: the daemon of the store.

use std::path::PathBuf;

use clap::Parser;

/// A member of a replicated key-value store
#[derive(Parser)]
#[command(name = "kvd", version)]
struct Kvd {
    /// Directory that holds everything of this member; created if it is missing
    #[arg(long, value_name = "DIR", env = "KVD_STATE_DIR")]
    state_dir: PathBuf,
    /// Address to serve metrics on, IP:PORT, with a certificate of its own
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<String>,
    #[command(flatten)]
    options: microclusterd::daemon::Options,
}

fn main() -> std::process::ExitCode {
    let Kvd { state_dir, metrics, options } = Kvd::parse();
    options.run(state_dir, |builder| kv::product(builder, metrics))
}
