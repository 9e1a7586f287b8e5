//! What a product's handlers take from a request. What cannot be taken is a 400 that says why.

use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{Answer, parse_json, read_body, state_of};
use crate::error::Error;

/// A JSON value: the body of a request, whatever its content type; or the content of an answer, in the envelope.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Json<T>(pub T);

/// The `{names}` in the path: one value, a tuple of them in their order, or a struct with fields of these names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Path<T>(pub T);

/// The query of the address, as a struct.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Query<T>(pub T);

/// The value that the product gave to [`crate::Builder::shared`].
#[derive(Debug)]
pub struct Shared<T>(pub Arc<T>);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Error> {
        parse_json(&read_body(request).await?).map(Json)
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        Answer(self.0).into_response()
    }
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let path = axum::extract::Path::from_request_parts(parts, state).await;
        path.map(|axum::extract::Path(value)| Path(value)).map_err(|e| Error::bad_request(e.body_text()))
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let query = axum::extract::Query::from_request_parts(parts, state).await;
        query.map(|axum::extract::Query(value)| Query(value)).map_err(|e| Error::bad_request(e.body_text()))
    }
}

impl<T: Send + Sync + 'static, S: Sync> FromRequestParts<S> for Shared<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        let missing = || Error::internal(format!("the product shares no {}", std::any::type_name::<T>()));
        state_of(parts)?.shared::<T>().map(Shared).ok_or_else(missing)
    }
}
