//! What handlers take from a request: the state, a JSON body, a name in the path, a flag in the query.

use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use bytes::Bytes;
use http::request::Parts;
use http::{StatusCode, Uri};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use microcluster_client::Name;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::state::State;

/// How long a client may take to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a refused request that are still read, and for how long.
const DRAIN_BYTES_MAX: usize = 64 << 20;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The bound on the body of a request, from its route.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyMax(pub usize);

/// The body as a JSON object. The content type does not matter: clients of the Go daemon send none.
pub(super) struct Body<T>(pub T);

/// The `{name}` in the path.
pub(super) struct PathName(pub Name);

/// The query of the address.
pub(super) struct Flags(Uri);

impl FromRequestParts<State> for State {
    type Rejection = Error;

    async fn from_request_parts(_parts: &mut Parts, state: &State) -> Result<State, Error> {
        Ok(state.clone())
    }
}

impl<T: DeserializeOwned> FromRequest<State> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, _state: &State) -> Result<Self, Error> {
        let bytes = read_body(request).await?;
        parse_object(&bytes).map(Body)
    }
}

impl FromRequestParts<State> for PathName {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Error> {
        let Path(name) =
            Path::<String>::from_request_parts(parts, state).await.map_err(|e| Error::bad_request(e.body_text()))?;
        name.parse().map(PathName).map_err(|e: microcluster_client::NameError| Error::bad_request(e.to_string()))
    }
}

impl FromRequestParts<State> for Flags {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &State) -> Result<Self, Error> {
        Ok(Flags(parts.uri.clone()))
    }
}

impl Flags {
    /// Whether a flag is set: `name=1` or `name=true`.
    pub fn has(&self, name: &str) -> bool {
        let pairs = self.0.query().unwrap_or_default().split('&');
        pairs
            .filter_map(|pair| pair.split_once('='))
            .any(|(key, value)| key == name && (value == "1" || value.eq_ignore_ascii_case("true")))
    }
}

/// Reads the whole body, up to the bound of its route.
pub(crate) async fn read_body(request: Request) -> Result<Bytes, Error> {
    let max = request.extensions().get::<BodyMax>().map_or(0, |max| max.0);
    let mut body = request.into_body();
    let read = Limited::new(&mut body, max).collect();
    match tokio::time::timeout(BODY_TIMEOUT, read).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if is_over_limit(&*e) => {
            drain(&mut body).await;
            Err(too_large(max))
        }
        Ok(Err(e)) => Err(Error::bad_request("the body of the request ended early").caused_by(e)),
        Err(_) => {
            let late = format!("the body of the request did not come within {} s", BODY_TIMEOUT.as_secs());
            Err(Error::new(StatusCode::REQUEST_TIMEOUT, late))
        }
    }
}

/// Reads on and throws away what a client still sends of a request that is refused. Over HTTP/1.1 many
/// clients send all of it before they look for the answer, and lose that if the connection is closed on them.
pub(super) async fn drain(body: &mut axum::body::Body) {
    let mut left = DRAIN_BYTES_MAX;
    let read = async {
        while let Some(Ok(frame)) = body.frame().await {
            match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                Some(less) => left = less,
                None => break,
            }
        }
    };
    // In time or not, the answer is sent then.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, read).await;
}

/// The answer to a body over its bound.
pub(super) fn too_large(max: usize) -> Error {
    Error::too_large(format!("the body of the request is larger than {max} bytes"))
}

/// The body may have been wrapped on its way here.
fn is_over_limit(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Reads a JSON value.
pub(crate) fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::bad_request("the request has no body; a JSON value is needed"));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let unexpected = |what: String| Error::bad_request(format!("the body of the request is not as expected: {what}"));
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let field = e.path().to_string();
        // The path of the whole value is a dot.
        if field == "." { unexpected(e.inner().to_string()) } else { unexpected(format!("{field}: {}", e.inner())) }
    })?;
    json.end().map_err(|e| unexpected(e.to_string()))?;
    Ok(parsed)
}

/// Reads a JSON object. Lists are refused here: serde would take one for an object's fields in their order.
fn parse_object<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => parse_json(bytes),
        Some(_) => Err(Error::bad_request("the body of the request must be a JSON object")),
        None => Err(Error::bad_request("the request has no body; a JSON object is needed")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use microcluster_client::{SqlRequest, TokenRequest};

    use super::*;

    #[test]
    fn only_objects_are_bodies() {
        assert!(parse_object::<SqlRequest>(b" {\"query\":\"SELECT 1\"}\n").is_ok());
        for body in ["", "  ", "null", "[1]", "[\"SELECT 1\"]", "1", "\"x\"", "{", "{bad", "{} x", "{}"] {
            let error = parse_object::<SqlRequest>(body.as_bytes()).unwrap_err();
            assert_eq!(error.status(), 400, "{body:?}: {error}");
        }
    }

    #[test]
    fn a_wrong_field_is_named() {
        let refused = |body: &[u8]| parse_object::<TokenRequest>(body).unwrap_err().message().to_owned();
        assert!(refused(br#"{"name":"a_b"}"#).contains("a_b"));
        assert!(refused(br#"{"expire_after":1}"#).contains("name"));
        assert!(refused(br#"{"name":"x","expire_after":"3h"}"#).contains("expire_after: invalid type"));
        assert!(refused(br#"{"name":"x"} {}"#).contains("trailing"));
    }

    #[test]
    fn flags_are_one_or_true() {
        let flags = |query: &str| Flags(format!("/core/internal/sql{query}").parse().unwrap());
        for query in ["?schema=1", "?a=b&schema=true", "?schema=1&schema=0"] {
            assert!(flags(query).has("schema"), "{query}");
        }
        for query in ["", "?schema=0", "?schema", "?schema=", "?xschema=1"] {
            assert!(!flags(query).has("schema"), "{query}");
        }
    }
}
