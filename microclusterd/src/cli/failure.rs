//! How a command ends: exit codes and the one line on standard error.

use std::process::ExitCode;

use anyhow::Context as _;
use microcluster_client::{Error, Server};

use super::output::ClosedPipe;

/// The command line was wrong in a way that the parser of the arguments cannot see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(String);

impl Usage {
    /// Says what was wrong and what to do.
    pub fn new(message: impl Into<String>) -> Self {
        Usage(message.into())
    }
}

/// Runs a command to its end and reports how it went: 0 for done, 1 for failed, 2 for wrong usage, with
/// one line on standard error for the last two.
pub fn block_on(command: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the asynchronous runtime does not start")
        .and_then(|runtime| runtime.block_on(command));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Who reads has seen enough, as with `| head`.
        Err(error) if error.is::<ClosedPipe>() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {}", one_line(&error));
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

/// The error and its causes on one line.
pub(super) fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause.to_string());
        // It says itself what the system's "No such file or directory" means.
        if let Some(Error::Unreachable { server: Server::Unix(_), source }) = cause.downcast_ref()
            && source.raw_os_error().is_some()
        {
            break;
        }
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_with_its_causes() {
        let cause = std::io::Error::other("disk\non fire");
        let error = anyhow::Error::new(cause).context("cannot write x");
        assert_eq!(one_line(&error), "cannot write x: disk on fire");
    }

    #[test]
    fn a_missing_socket_is_explained_once() {
        let error = Error::Unreachable {
            server: Server::Unix("/x/control.socket".into()),
            source: std::io::Error::from_raw_os_error(2),
        };
        let line = one_line(&error.into());
        assert!(line.ends_with("is the daemon running with this state directory?"), "{line}");
    }
}
