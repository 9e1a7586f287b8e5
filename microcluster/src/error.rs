//! The errors a product sees: an answer with its HTTP status, and what ends the daemon.

use std::error::Error as StdError;
use std::fmt;

use http::StatusCode;

/// What went wrong with one request, in words for its caller. Handlers and hooks return it; the
/// API turns it into the error envelope with its status.
///
/// The message is public. What only the log may know goes into the source, with [`Error::caused_by`].
///
/// ```
/// use microcluster::Error;
///
/// let error = Error::not_found("no node named \"n7\"");
/// assert_eq!(error.status(), 404);
/// ```
#[derive(Debug)]
pub struct Error {
    status: StatusCode,
    message: String,
    retry_after_seconds: Option<u32>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The result of a handler or a hook.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with a status of its own.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Error { status, message: message.into(), retry_after_seconds: None, source: None }
    }

    /// 400: the request itself is wrong.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 403: the caller may not do this.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// 404: what the request names does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 409: it contradicts the present state.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// 413: the request or its result is over a limit.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// 503: not now. Add [`Error::retry_after`] where waiting helps.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// 504: gave up waiting; the outcome is not known.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, message)
    }

    /// 500: a fault of the daemon.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// The same error with the `Retry-After` header, in seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    /// The same error with what caused it. It goes to the log and not to the caller.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The public message.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Seconds after which another try may succeed.
    #[must_use]
    pub fn retry_after_seconds(&self) -> Option<u32> {
        self.retry_after_seconds
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// What the daemon cannot go on after. It stops, and [`crate::Daemon`]'s `run` returns it.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Fatal {
    what: String,
    #[source]
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Fatal {
    /// Says what cannot go on.
    pub fn new(what: impl Into<String>) -> Self {
        Fatal { what: what.into(), source: None }
    }

    /// The same with its cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

/// An error and all its causes in one line, for the log.
pub(crate) struct Chain<'a>(pub &'a (dyn StdError + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_for_the_log_alone() {
        let error = Error::internal("the state directory cannot be written").caused_by("No space left on device");
        assert_eq!(error.to_string(), "the state directory cannot be written");
        assert_eq!(Chain(&error).to_string(), "the state directory cannot be written: No space left on device");
    }
}
