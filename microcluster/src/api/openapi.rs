//! The description of the API, OpenAPI 3.1: made from the route table, what is said of each handler, and the client's types.

mod document;
#[cfg(test)]
mod markdown;
mod operations;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;

use super::envelope::json_response;

/// Made once, when it is first asked for.
static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| document::text().into());

/// GET `/core/1.0/openapi.json`: without an envelope, as tools expect it.
pub(super) async fn description_show() -> Response {
    json_response(StatusCode::OK, DOCUMENT.clone())
}
