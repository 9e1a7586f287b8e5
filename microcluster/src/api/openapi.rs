//! The description of the API, OpenAPI 3.1: made from the route table, what is said of each handler, and the client's types. A test makes
//! it; the daemon has the file.

#[cfg(test)]
mod document;
#[cfg(test)]
mod markdown;
#[cfg(test)]
mod operations;
#[cfg(test)]
mod tests;

use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;

use super::envelope::json_response;

const DOCUMENT: Bytes = Bytes::from_static(include_bytes!("openapi/openapi.json"));

/// GET `/core/1.0/openapi.json`: without an envelope, as tools expect it.
pub(super) async fn description_show() -> Response {
    json_response(StatusCode::OK, DOCUMENT)
}
