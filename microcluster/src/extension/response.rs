//! Answers of a product's handlers.

use std::path::Path;

use axum::body::Body;
use axum::response::IntoResponse;
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use microcluster_client::Empty;
use serde::Serialize;
use tokio_util::io::ReaderStream;

use crate::api::Answer;
use crate::error::{Error, Result};

/// The answer of a handler: an envelope, a stream, a file, or whatever axum can send. A handler can also return
/// [`crate::Json`], which is in the envelope, or a type of axum's, which is not.
///
/// ```
/// use microcluster::axum::http::StatusCode;
/// use microcluster::{Path, Response, Result, State};
///
/// async fn report_show(state: State, Path(name): Path<String>) -> Result<Response> {
///     match name.as_str() {
///         "none" => Ok(Response::empty().status(StatusCode::ACCEPTED)),
///         "text" => Ok(Response::raw("as it is\n")),
///         _ => Response::file("text/plain", state.state_dir().join("report.txt")).await,
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Response(axum::response::Response);

impl Response {
    /// Success without content, in the envelope.
    #[must_use]
    pub fn empty() -> Response {
        Response(Answer(Empty {}).into_response())
    }

    /// Success with content, in the envelope.
    #[must_use]
    pub fn json(metadata: impl Serialize) -> Response {
        Response(Answer(metadata).into_response())
    }

    /// An answer as it is, without the envelope.
    #[must_use]
    pub fn raw(response: impl IntoResponse) -> Response {
        Response(response.into_response())
    }

    /// A stream of bytes, sent as they come, without the envelope. An error ends the answer before its end, so that it does not look whole.
    #[must_use]
    pub fn stream<S, E>(content_type: &'static str, stream: S) -> Response
    where
        S: Stream<Item = std::result::Result<Bytes, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        let mut response = Body::from_stream(stream.map_err(Into::into)).into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        Response(response)
    }

    /// The content of a file, without the envelope, sent as it is read.
    ///
    /// # Errors
    /// 404 when there is no such file, 500 when it cannot be opened. A file that cannot be read to its end ends the answer
    /// before its end.
    pub async fn file(content_type: &'static str, path: impl AsRef<Path>) -> Result<Response> {
        let path = path.as_ref();
        let file = tokio::fs::File::open(path).await.map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::not_found("there is no such file").caused_by(e),
            _ => Error::internal("the file cannot be opened; the daemon's log says why").caused_by(e),
        })?;
        Ok(Response::stream(content_type, ReaderStream::new(file)))
    }

    /// The same answer with another status.
    #[must_use]
    pub fn status(mut self, status: StatusCode) -> Response {
        *self.0.status_mut() = status;
        self
    }
}

impl IntoResponse for Response {
    fn into_response(self) -> axum::response::Response {
        self.0
    }
}

impl From<axum::response::Response> for Response {
    fn from(response: axum::response::Response) -> Self {
        Response(response)
    }
}
