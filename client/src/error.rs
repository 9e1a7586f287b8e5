//! What can go wrong with a call.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::{Address, TlsError};

/// Where the daemon is that a client talks to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Server {
    /// On this machine, at this socket.
    Unix(PathBuf),
    /// At this address.
    Tls(Address),
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Server::Unix(path) => path.display().fmt(f),
            Server::Tls(address) => address.fmt(f),
        }
    }
}

/// Why a call failed. The daemon's own answer keeps its code and its message apart.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The daemon answered with an error.
    #[error("{message}")]
    Status {
        /// The HTTP status, 400 to 599.
        code: u16,
        /// What the daemon says was wrong and what to do.
        message: String,
        /// How long the daemon asks to wait before the next try.
        retry_after: Option<Duration>,
    },
    /// No connection: the request was not sent.
    #[error("{}", unreachable(server, source))]
    Unreachable {
        /// Who was called.
        server: Server,
        /// What the system says.
        source: io::Error,
    },
    /// The connection ended before the answer: the outcome is unknown.
    #[error("the connection to {server} ended before its answer; whether the request was done is unknown")]
    Interrupted {
        /// Who was called.
        server: Server,
        /// What the HTTP library says.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// No answer in time: the outcome is unknown.
    #[error("no answer from {server} within {} s; whether the request was done is unknown", after.as_secs_f32())]
    Timeout {
        /// Who was called.
        server: Server,
        /// The timeout of the call.
        after: Duration,
    },
    /// No TLS connection: the request was not sent.
    #[error("no secure connection to {server}")]
    Tls {
        /// Who was called.
        server: Server,
        /// What was wrong.
        source: TlsError,
    },
    /// The answer is larger than the client takes.
    #[error("the answer of {server} is larger than {limit} bytes")]
    TooLarge {
        /// Who was called.
        server: Server,
        /// The limit of the client.
        limit: usize,
    },
    /// The answer is not what it should be.
    #[error("the answer of {server} to {path} cannot be understood; do client and daemon have the same version?")]
    Body {
        /// Who was called.
        server: Server,
        /// What was asked.
        path: String,
        /// What the JSON parser says.
        source: serde_json::Error,
    },
    /// The request cannot be built: the fault is the caller's.
    #[error("the request to {path} cannot be sent")]
    Request {
        /// What was asked.
        path: String,
        /// What is wrong with it.
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl Error {
    /// The HTTP status, if the daemon answered.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match self {
            Error::Status { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// How long the daemon asks to wait before the next try, if it does.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the request may have been done in spite of the error.
    #[must_use]
    pub fn outcome_unknown(&self) -> bool {
        match self {
            Error::Interrupted { .. } | Error::Timeout { .. } | Error::TooLarge { .. } | Error::Body { .. } => true,
            Error::Status { code, .. } => *code == 504,
            Error::Unreachable { .. } | Error::Tls { .. } | Error::Request { .. } => false,
        }
    }
}

/// Says what to do about a daemon that cannot be reached.
fn unreachable(server: &Server, source: &io::Error) -> String {
    let Server::Unix(path) = server else {
        return format!("cannot connect to {server}");
    };
    let path = path.display();
    match source.kind() {
        io::ErrorKind::NotFound => {
            format!("there is no control socket at {path}: is the daemon running with this state directory?")
        }
        io::ErrorKind::ConnectionRefused => {
            format!("nobody answers at the control socket {path}: the daemon is not running, start it")
        }
        io::ErrorKind::PermissionDenied => {
            format!("no permission for the control socket {path}: run as root or as a member of the socket's group")
        }
        _ => format!("cannot connect to the control socket {path}"),
    }
}
