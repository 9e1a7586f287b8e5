//! Answers: the envelope around every result and every error.

use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use microcluster_client::{Empty, Envelope};
use serde::Serialize;

use crate::error::{Chain, Error};

/// A result in its envelope.
pub(crate) struct Answer<T>(pub T);

/// An answer without content.
pub(super) const EMPTY: Answer<Empty> = Answer(Empty {});

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&Envelope::success(self.0)) {
            Ok(json) => json_response(StatusCode::OK, json),
            Err(e) => Error::internal("the answer cannot be written").caused_by(e).into_response(),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let envelope = Envelope::error(self.status().as_u16(), self.message().to_owned());
        // Numbers and texts always have a JSON form.
        let json = serde_json::to_vec(&envelope).unwrap_or_default();
        let mut response = json_response(self.status(), json);
        if let Some(seconds) = self.retry_after_seconds() {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        // Logged by the dispatcher, who knows which request this is the answer to.
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

/// A response of JSON that is written already.
pub(super) fn json_response(status: StatusCode, json: impl Into<Body>) -> Response {
    let mut response = Response::new(json.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The one place where an error of a request is logged, with what its caller is not told.
pub(super) fn log_error(error: &Error) {
    let status = error.status().as_u16();
    if error.status() == StatusCode::INTERNAL_SERVER_ERROR {
        tracing::error!(status, error = %Chain(error), "a request failed");
    } else {
        tracing::debug!(status, error = %Chain(error), "a request was refused");
    }
}
