//! The command line, as an operator runs it.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::binaries::binary;
use crate::{DEADLINE, Daemon};

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// Its standard output, if it has ended well.
    ///
    /// # Panics
    /// When it has not.
    #[allow(clippy::must_use_candidate)]
    pub fn done(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// The one line on standard error of a command that failed.
    ///
    /// # Panics
    /// When the command has not failed that way: code 1, one line, nothing on standard output.
    #[must_use]
    pub fn failed(self) -> String {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        let line = self.stderr.strip_prefix("Error: ").unwrap_or_else(|| panic!("{self:?}"));
        assert_eq!(line.lines().count(), 1, "{line}");
        line.trim_end().to_owned()
    }
}

/// A `microctl` that is not started yet and whose daemon is not chosen.
#[must_use]
pub fn microctl_command() -> Command {
    let mut command = Command::new(binary("microctl"));
    command.env_remove("MICROCLUSTER_STATE_DIR").stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs `microctl` for a daemon to its end.
pub async fn microctl(daemon: &Daemon, arguments: &[&str]) -> Finished {
    microctl_with(daemon, arguments, "").await
}

/// The same with this on its standard input.
pub async fn microctl_with(daemon: &Daemon, arguments: &[&str], input: &str) -> Finished {
    let mut command = microctl_command();
    command.arg("--state-dir").arg(daemon.dir()).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().expect("microctl");
    let mut stdin = process.stdin.take().expect("it is a pipe");
    // It may end without having read it.
    stdin.write_all(input.as_bytes()).await.ok();
    drop(stdin);
    let output = tokio::time::timeout(DEADLINE, process.wait_with_output()).await;
    let output = output.unwrap_or_else(|_| panic!("microctl {arguments:?} does not end")).expect("microctl");
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("text"),
        stderr: String::from_utf8(output.stderr).expect("text"),
    }
}
