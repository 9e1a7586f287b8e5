//! `microctl`: the command line of a microcluster daemon.

use std::process::ExitCode;

fn main() -> ExitCode {
    microclusterd::cli::main()
}
