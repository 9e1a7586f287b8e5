//! What a database call can answer instead of a result.

use std::any::Any;
use std::time::Duration;

use super::raft_types::Peer;

/// Why a database call failed. Each variant says whether the write can have happened: only
/// [`Error::OutcomeUnknown`] leaves it open, every other one means that nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No majority of the voters can be reached, or no leader was elected in time. Nothing was changed.
    #[error("the cluster has no quorum: {detail}")]
    NoQuorum {
        /// What was missing.
        detail: String,
    },
    /// The call has to run on the leader, and this member is not it.
    #[error("this member is not the leader{}", .leader.as_ref().map(|peer| format!("; the leader is {peer}")).unwrap_or_default())]
    NotLeader {
        /// The leader, if one is known.
        leader: Option<Peer>,
    },
    /// The transaction read or wrote tables that others kept changing, up to the bound of retries.
    #[error("the transaction conflicted with other writers {attempts} times and was given up")]
    Conflict {
        /// How many times the closure ran.
        attempts: u32,
    },
    /// A constraint of the schema refused the change.
    #[error("{message}")]
    Constraint {
        /// Whether it was a `UNIQUE` or `PRIMARY KEY` constraint.
        unique: bool,
        /// SQLite's words.
        message: String,
    },
    /// The SQL is wrong: syntax, names, types, number of parameters.
    #[error("{message}")]
    Sql {
        /// SQLite's words.
        message: String,
    },
    /// The SQL is valid, but not allowed in a replicated database.
    #[error("{message}")]
    Refused {
        /// What was refused and why.
        message: String,
    },
    /// Too many calls wait already.
    #[error("the database is busy: {detail}; try again")]
    Busy {
        /// Which bound was reached.
        detail: &'static str,
    },
    /// The request or its result is over a bound.
    #[error("{what} has {size} bytes, over the limit of {limit}")]
    TooLarge {
        /// What was too large.
        what: &'static str,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A statement or a closure ran over its bound and was interrupted. Nothing was changed.
    #[error("{what} ran longer than {limit:?} and was interrupted")]
    TooLong {
        /// What ran.
        what: &'static str,
        /// Its bound.
        limit: Duration,
    },
    /// A statement took more steps than a replicated statement may. Nothing was changed.
    #[error("the statement took more than {limit} steps and was interrupted; split it into smaller ones")]
    TooManySteps {
        /// The bound, in steps of SQLite's virtual machine.
        limit: u64,
    },
    /// The write was sent, and no answer came in time: it may or may not have been applied.
    #[error("no answer within {waited:?}: the outcome of the write is not known")]
    OutcomeUnknown {
        /// How long was waited.
        waited: Duration,
    },
    /// The answer to a resent write was not kept: the write was applied, once, but its rows are gone.
    #[error("the write was applied, but its result was too large to be kept for a resend")]
    ResultLost,
    /// The database is being shut down.
    #[error("the database is shutting down")]
    ShuttingDown,
    /// The database cannot go on: disk or replicated state failed. The daemon must stop.
    #[error("the database failed: {0}")]
    Fatal(String),
    /// This member's state file is damaged; the member is rebuilt from the others.
    #[error("the state file of this member is damaged: {message}")]
    Damaged {
        /// What SQLite says.
        message: String,
    },
    /// A closure ended with an error of its own; [`Error::downcast`] gives it back.
    #[error("{message}")]
    Other {
        /// The error's words.
        message: String,
        /// The error itself.
        payload: Box<dyn Any + Send + Sync>,
    },
}

impl Error {
    /// Wraps a closure's own error, to abort its transaction with it.
    pub fn other<E: std::error::Error + Send + Sync + 'static>(error: E) -> Self {
        Error::Other { message: error.to_string(), payload: Box::new(error) }
    }

    /// Gives back the error that a closure wrapped with [`Error::other`], or this error unchanged.
    pub fn downcast<E: 'static>(self) -> Result<E, Error> {
        match self {
            Error::Other { message, payload } => match payload.downcast::<E>() {
                Ok(error) => Ok(*error),
                Err(payload) => Err(Error::Other { message, payload }),
            },
            error => Err(error),
        }
    }
}

/// A closure's own error, in the words of a handler: the transaction is aborted with it, and the handler's caller is told it as it is.
impl From<crate::error::Error> for Error {
    fn from(error: crate::error::Error) -> Self {
        Error::other(error)
    }
}

/// Sorts SQLite's errors: constraint, wrong SQL, refused, broken.
impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ffi::ErrorCode;
        match &error {
            rusqlite::Error::SqliteFailure(failure, message) => {
                let message = message.clone().unwrap_or_else(|| failure.to_string());
                match failure.code {
                    _ if is_corruption(&error) => Error::Damaged { message },
                    ErrorCode::ConstraintViolation => {
                        Error::Constraint { unique: is_unique(failure.extended_code), message }
                    }
                    ErrorCode::SystemIoFailure | ErrorCode::DiskFull => Error::Fatal(message),
                    ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
                        Error::Busy { detail: "the local database file is locked" }
                    }
                    ErrorCode::AuthorizationForStatementDenied => Error::Refused { message },
                    _ => Error::Sql { message },
                }
            }
            rusqlite::Error::SqlInputError { msg, .. } => Error::Sql { message: msg.clone() },
            _ => Error::Sql { message: error.to_string() },
        }
    }
}

/// Whether SQLite says that the file itself is damaged. An index of a full-text table that does not fit its table is no damage: it
/// is the same on every member.
pub(super) fn is_corruption(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi::{self, ErrorCode};
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
        && error.sqlite_error().is_none_or(|error| error.extended_code != ffi::SQLITE_CORRUPT_VTAB)
}

fn is_unique(extended_code: i32) -> bool {
    use rusqlite::ffi;
    [ffi::SQLITE_CONSTRAINT_UNIQUE, ffi::SQLITE_CONSTRAINT_PRIMARYKEY, ffi::SQLITE_CONSTRAINT_ROWID]
        .contains(&extended_code)
}

/// An error with its causes, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
