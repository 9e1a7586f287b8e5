//! What handlers take from a request: the state, a JSON body, a name in the path, a flag in the query.

use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use bytes::Bytes;
use http::request::Parts;
use http::{StatusCode, Uri};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use microcluster_client::{Address, Name};
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::state::State;

/// Bytes of a refused request that are still read, and for how long.
const DRAIN_BYTES_MAX: usize = 64 << 20;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest text of a body that an error quotes. Secrets are longer.
const QUOTED_LENGTH_MAX: usize = 48;

/// The bounds on the body of a request, from its route and its connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BodyBounds {
    pub bytes: usize,
    pub time: Duration,
}

/// The body as a JSON object. The content type does not matter: clients of the Go daemon send none.
pub(super) struct Body<T>(pub T);

/// The `{name}` in the path.
pub(super) struct PathName(pub Name);

/// The query of the address.
pub(super) struct Flags(Uri);

/// Whatever the state of the router is: one that a product mounts has its own.
impl<S: Sync> FromRequestParts<S> for State {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<State, Error> {
        state_of(parts).cloned()
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
        self.values(name).any(|value| value == "1" || value.eq_ignore_ascii_case("true"))
    }

    /// The number that is given by a name, if one is.
    pub fn number(&self, name: &str) -> Result<Option<u64>, Error> {
        let number = self.values(name).next().map(str::parse).transpose();
        number.map_err(|_| Error::bad_request(format!("{name} in the query is no number")))
    }

    /// The address that is given by a name, if one is. Its colons and brackets may be encoded.
    pub fn address(&self, name: &str) -> Result<Option<Address>, Error> {
        let unreadable = |reason: String| Error::bad_request(format!("{name} in the query: {reason}"));
        let pairs = Query::<Vec<(String, String)>>::try_from_uri(&self.0).map_err(|e| unreadable(e.body_text()))?;
        let given = pairs.0.into_iter().find(|(key, value)| key == name && !value.is_empty());
        let address = given.map(|(_, value)| value.parse()).transpose();
        address.map_err(|e: microcluster_client::AddressError| unreadable(e.to_string()))
    }

    fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        let pairs = self.0.query().unwrap_or_default().split('&');
        pairs.filter_map(|pair| pair.split_once('=')).filter(move |(key, _)| *key == name).map(|(_, value)| value)
    }
}

/// The daemon that a request came to.
pub(crate) fn state_of(parts: &Parts) -> Result<&State, Error> {
    parts.extensions.get::<State>().ok_or_else(|| Error::internal("a request that came to no daemon"))
}

/// Reads the whole body, up to the bound of its route.
pub(crate) async fn read_body(request: Request) -> Result<Bytes, Error> {
    let BodyBounds { bytes: max, time } = request.extensions().get().copied().unwrap_or_default();
    let mut body = request.into_body();
    let read = Limited::new(&mut body, max).collect();
    match tokio::time::timeout(time, read).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if is_over_limit(&*e) => {
            drain(&mut body).await;
            Err(too_large(max))
        }
        Ok(Err(e)) => Err(Error::bad_request("the body of the request ended early").caused_by(e)),
        Err(_) => {
            let late = format!("the body of the request did not come within {time:?}");
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
    if let Ok(parsed) = serde_json::from_slice(bytes) {
        return Ok(parsed);
    }
    // Once more, to say where it is wrong: keeping the path takes time that only a wrong body is worth.
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let unexpected = |what: String| {
        Error::bad_request(format!("the body of the request is not as expected: {}", without_long_texts(&what)))
    };
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let field = e.path().to_string();
        // The path of the whole value is a dot.
        if field == "." { unexpected(e.inner().to_string()) } else { unexpected(format!("{field}: {}", e.inner())) }
    })?;
    json.end().map_err(|e| unexpected(e.to_string()))?;
    Ok(parsed)
}

/// The message without the quoted texts that are long: a key or a token in the wrong field is not to be told or logged.
fn without_long_texts(message: &str) -> String {
    let mut short = String::with_capacity(message.len().min(1024));
    // A quote within a quoted text has a backslash before it.
    let mut rest = message;
    while let Some((before, quoted)) = rest.split_once('"') {
        let mut is_escaped = false;
        let end = quoted.find(|c: char| {
            let is_end = c == '"' && !is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            is_end
        });
        let text = &quoted[..end.unwrap_or(quoted.len())];
        let is_long = text.chars().nth(QUOTED_LENGTH_MAX).is_some();
        short.extend([before, "\"", if is_long { "…" } else { text }, "\""]);
        rest = end.map_or("", |end| &quoted[end + 1..]);
    }
    short.push_str(rest);
    short
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
    use std::collections::BTreeMap;

    use microcluster_client::{
        ControlRequest, DaemonConfigUpdate, HeartbeatInfo, JoinRequest, KeyPair, MemberLocal, ServerConfig, SqlRequest,
        TokenRequest,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::join::Claim;
    use crate::cluster::rebuild::RebuildRequest;
    use crate::fuzz::{almost, cases};

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
    fn a_long_text_in_the_wrong_field_is_not_quoted() {
        let (token, name) = ("x\\\"".repeat(40), "a_b");
        let refused = |body: String| parse_object::<ControlRequest>(body.as_bytes()).unwrap_err().message().to_owned();
        let message = refused(format!(r#"{{"bootstrap":"{token}"}}"#));
        assert!(message.contains("bootstrap: invalid type: string \"…\", expected a boolean"), "{message}");
        let message = refused(format!(r#"{{"config":"{token}"}}"#));
        assert!(!message.contains("xx") && !message.contains("x\\"), "{message}");
        assert!(refused(format!(r#"{{"name":"{name}"}}"#)).contains("\"a_b\" contains '_'"));
        assert_eq!(without_long_texts("a \"b\\\"c\" d \"e"), "a \"b\\\"c\" d \"e\"");
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

    #[test]
    fn an_address_in_the_query_may_be_encoded() {
        let address = |query: &str| Flags(format!("/core/1.0/cluster/c2{query}").parse().unwrap()).address("address");
        let given = |query: &str| address(query).unwrap().unwrap().to_string();
        assert_eq!(given("?force=1&address=127.0.0.1:9001"), "127.0.0.1:9001");
        assert_eq!(given("?address=127.0.0.1%3A9001"), "127.0.0.1:9001");
        assert_eq!(given("?address=%5B%3A%3A1%5D%3A9001"), "[::1]:9001");
        for none in ["", "?force=1", "?address", "?address="] {
            assert_eq!(address(none).unwrap(), None, "{none}");
        }
        assert_eq!(address("?address=nowhere").unwrap_err().status(), 400);
    }

    /// A body of every route that takes one.
    const BODIES: [&str; 9] = [
        r#"{"bootstrap":true,"config":{"a":"b"},"join_token":"eyJ9","address":"127.0.0.1:9001","name":"c1"}"#,
        r#"{"name":"c2","expire_after":10800000000000}"#,
        r#"{"name":"c2","address":"[::1]:9002","certificate":"-----BEGIN","schema_internal_version":1,"extensions":["x"],"secret":"ab"}"#,
        r#"{"cert":"-----BEGIN","key":"-----BEGIN","ca":""}"#,
        r#"{"name":"c1","address":"127.0.0.1:9001","servers":{"metrics":{"address":"127.0.0.1:9443"}},"failure-domain":7}"#,
        r#"{"query":"SELECT ?1; SELECT 2","parameters":[1,-9223372036854775808,1.5,"x",null,true],"consistency":"local"}"#,
        r#"{"begin_round":true,"cluster_members":{"127.0.0.1:9001":{"name":"c1","address":"127.0.0.1:9001","certificate":"x","role":"voter","last_heartbeat":"2026-01-01T00:00:00Z","status":"ONLINE"}},"leader_address":""}"#,
        r#"{"member_id":3,"secret":"ab"}"#,
        r#"{"metrics":{"address":"127.0.0.1:9443"}}"#,
    ];

    fn refused_or_read<T: DeserializeOwned>(body: &[u8]) -> Result<(), TestCaseError> {
        if let Err(e) = parse_object::<T>(body) {
            prop_assert_eq!(e.status(), StatusCode::BAD_REQUEST);
            prop_assert!(!e.message().is_empty());
        }
        Ok(())
    }

    fn as_every_body(body: &[u8]) -> Result<(), TestCaseError> {
        refused_or_read::<ControlRequest>(body)?;
        refused_or_read::<TokenRequest>(body)?;
        refused_or_read::<JoinRequest>(body)?;
        refused_or_read::<KeyPair>(body)?;
        refused_or_read::<DaemonConfigUpdate>(body)?;
        refused_or_read::<SqlRequest>(body)?;
        refused_or_read::<HeartbeatInfo>(body)?;
        refused_or_read::<Claim>(body)?;
        refused_or_read::<RebuildRequest>(body)?;
        refused_or_read::<MemberLocal>(body)?;
        refused_or_read::<BTreeMap<Name, ServerConfig>>(body)
    }

    proptest! {
        #![proptest_config(cases(1000))]

        #[test]
        fn any_body_is_an_object_or_a_bad_request(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            as_every_body(&body)?;
            let braced = [b"{".as_slice(), &body, b"}"].concat();
            as_every_body(&braced)?;
        }

        #[test]
        fn a_body_that_is_almost_right_is_an_object_or_a_bad_request(
            body in almost(proptest::sample::select(&BODIES[..]).prop_map(|body| body.as_bytes().to_vec())),
        ) {
            as_every_body(&body)?;
        }

        #[test]
        fn any_query_has_a_flag_or_not(query in "[a-z=&%;?1]{0,60}") {
            if let Ok(uri) = format!("/core?{query}").parse() {
                let flags = Flags(uri);
                prop_assert!(!flags.has("schema") || query.contains("schema="));
            }
        }
    }

    #[test]
    fn every_sample_is_a_body() {
        assert!(parse_object::<ControlRequest>(BODIES[0].as_bytes()).is_ok());
        assert!(parse_object::<TokenRequest>(BODIES[1].as_bytes()).is_ok());
        assert!(parse_object::<JoinRequest>(BODIES[2].as_bytes()).is_ok());
        assert!(parse_object::<KeyPair>(BODIES[3].as_bytes()).is_ok());
        assert!(parse_object::<DaemonConfigUpdate>(BODIES[4].as_bytes()).is_ok());
        assert!(parse_object::<SqlRequest>(BODIES[5].as_bytes()).is_ok());
        assert!(parse_object::<HeartbeatInfo>(BODIES[6].as_bytes()).is_ok());
        assert!(parse_object::<Claim>(BODIES[7].as_bytes()).is_ok());
        assert!(parse_object::<BTreeMap<Name, ServerConfig>>(BODIES[8].as_bytes()).is_ok());
    }
}
