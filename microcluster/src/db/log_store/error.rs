//! What can go wrong with the log.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use super::format::FORMAT_VERSION;

/// Why the log could not be opened, read or written.
#[derive(Debug, Error)]
pub(crate) enum LogError {
    /// The operating system refused an operation on the log's files.
    #[error("cannot {action} {}", file.display())]
    Io {
        /// What was tried, as in "cannot … FILE".
        action: &'static str,
        /// The file or the directory.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something that had been on stable storage is no longer what was written.
    #[error("the Raft log is damaged: {} at byte {offset}: {what}", file.display())]
    Damaged {
        /// The segment.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// Written by a build that knows another format.
    #[error(
        "{} at byte {offset} has log format version {found}, this build reads version {FORMAT_VERSION}",
        file.display()
    )]
    UnknownVersion {
        /// The segment.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// The version found.
        found: u32,
    },
    /// An append that does not continue the log.
    #[error("cannot append entry {found} to a log whose next entry is {expected}")]
    NotConsecutive {
        /// The index that the log continues with.
        expected: u64,
        /// The index that was to be appended.
        found: u64,
    },
    /// An entry that does not fit into a record.
    #[error("a log entry of {bytes} bytes is over the limit of {bytes_max}")]
    TooLarge {
        /// The size of the entry.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// An earlier write failed. What is on the disk is unknown until the log is opened again.
    #[error("the Raft log stopped after an error: {0}")]
    Stopped(Arc<str>),
    /// The store was closed.
    #[error("the Raft log is closed")]
    Closed,
    /// The state machine does not get to where the log is to be purged.
    #[error("the state was not applied up to {index} in time, so the log is not purged")]
    NotApplied {
        /// Up to where it was to be purged.
        index: u64,
    },
}

impl LogError {
    /// For `map_err` on an operation on a file.
    pub(super) fn io(action: &'static str, file: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let file = file.into();
        move |source| Self::Io { action, file, source }
    }

    /// The error with its causes on one line, for those who cannot be given the error itself.
    pub(super) fn with_causes(&self) -> String {
        match self {
            Self::Io { source, .. } => format!("{self}: {source}"),
            _ => self.to_string(),
        }
    }

    /// The error as openraft's append callback takes it.
    pub(super) fn to_io(&self) -> io::Error {
        io::Error::other(self.with_causes())
    }
}
