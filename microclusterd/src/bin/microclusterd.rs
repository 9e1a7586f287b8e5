//! `microclusterd`: the reference daemon.

use std::process::ExitCode;

fn main() -> ExitCode {
    microclusterd::daemon::main()
}
