//! Who asks, as far as the connection proves it.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use futures_util::future::BoxFuture;
use http::header::USER_AGENT;
use http::request::Parts;
use http::{HeaderName, HeaderValue};
use microcluster_client::{Fingerprint, NOTIFICATION_USER_AGENT, Name};

use super::extract::state_of;
use super::routes::{Connection, ListenerKind};
use crate::error::Error;
use crate::state::State;
use crate::trust::{TrustedAs, TrustedMember};

/// Who sent a request. An extractor for handlers, and what a product's own access check is given.
///
/// ```
/// use microcluster::{Caller, Json};
///
/// async fn who(caller: Caller) -> Json<String> {
///     Json(match caller {
///         Caller::Socket => "somebody on this machine".into(),
///         Caller::Member(name) => format!("the member {name}"),
///         _ => "a stranger".into(),
///     })
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Caller {
    /// Somebody who may use the control socket on this machine: they may do everything.
    Socket,
    /// A member of the cluster.
    Member(Name),
    /// Somebody with a certificate that is no member's. They have proven to own its key, and nothing else.
    Certificate(Fingerprint),
    /// Somebody without a certificate.
    Anonymous,
}

/// Whether the request is a notification: part of a fan-out, which whoever gets it does not pass on. An extractor for handlers.
///
/// ```
/// use microcluster::{Notification, Response};
///
/// async fn cache_clear(Notification(is_fan_out): Notification) -> Response {
///     if !is_fan_out {
///         println!("the others are told too");
///     }
///     Response::empty()
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notification(pub bool);

/// Says of a request that a member has passed it on, and for whom. Believed of members alone.
pub(super) const PASSED_ON: HeaderName = HeaderName::from_static("microcluster-passed-on");

impl Caller {
    /// What a member says of who has asked it.
    pub(super) fn to_header(&self) -> HeaderValue {
        let text = match self {
            Caller::Socket => "socket".to_owned(),
            Caller::Anonymous => "anonymous".to_owned(),
            Caller::Member(name) => format!("member {name}"),
            Caller::Certificate(fingerprint) => format!("certificate {fingerprint}"),
        };
        // Names and fingerprints have letters and digits that a header can have.
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("anonymous"))
    }

    /// What a member has said. Anything that is not understood is nobody in particular.
    pub(super) fn from_header(value: &HeaderValue) -> Caller {
        let text = value.to_str().unwrap_or_default();
        match text.split_once(' ') {
            None if text == "socket" => Caller::Socket,
            Some(("member", name)) => name.parse().map_or(Caller::Anonymous, Caller::Member),
            Some(("certificate", text)) => text.parse().map_or(Caller::Anonymous, Caller::Certificate),
            _ => Caller::Anonymous,
        }
    }

    /// Who is behind a connection.
    pub(super) fn of(state: &State, connection: &Connection) -> Caller {
        if connection.listener == ListenerKind::Unix {
            return Caller::Socket;
        }
        let Some(fingerprint) = connection.certificate else {
            return Caller::Anonymous;
        };
        let trusted = state.joined_node().map(|node| node.trust.current());
        // A joiner is nobody in particular until it is taken in.
        let is_member = |member: &&TrustedMember| member.trusted_as == TrustedAs::Member;
        let member = trusted
            .ok()
            .and_then(|trusted| trusted.get(&fingerprint).filter(is_member).map(|member| member.name.clone()));
        member.map_or(Caller::Certificate(fingerprint), Caller::Member)
    }
}

/// Done when the member that is `caller` is none any more: what it may do ends then, also on what it has opened before. Never
/// done for anybody else. The caller is who it was when its request was let in: it may have been removed since.
pub(crate) fn removal_of(
    state: &State,
    connection: Option<&Arc<Connection>>,
    caller: Option<&Caller>,
) -> BoxFuture<'static, ()> {
    let certificate = connection.and_then(|connection| connection.certificate);
    let (Some(certificate), Ok(node)) = (certificate, state.joined_node()) else {
        return Box::pin(std::future::pending());
    };
    let is_member = matches!(caller, Some(Caller::Member(_))) || node.trust.is_trusted(&certificate);
    if !is_member {
        return Box::pin(std::future::pending());
    }
    let mut trust = node.trust.watch();
    Box::pin(async move {
        // An end of the watch is one of this daemon's own membership.
        trust.wait_for(|members| members.get(&certificate).is_none()).await.ok();
    })
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Caller, Error> {
        if let Some(caller) = parts.extensions.get::<Caller>() {
            return Ok(caller.clone());
        }
        let connection = parts.extensions.get::<Arc<Connection>>();
        let connection = connection.ok_or_else(|| Error::internal("a request without a connection"))?;
        Ok(Caller::of(state_of(parts)?, connection))
    }
}

impl<S: Sync> FromRequestParts<S> for Notification {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Notification, Error> {
        let agent = parts.headers.get(USER_AGENT);
        Ok(Notification(agent.is_some_and(|agent| agent.as_bytes().starts_with(NOTIFICATION_USER_AGENT.as_bytes()))))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn who_is_passed_on_arrives_as_they_were() {
        let fingerprint = Fingerprint::of_der(b"x");
        for caller in [
            Caller::Socket,
            Caller::Anonymous,
            Caller::Member("c1.example".parse().unwrap()),
            Caller::Certificate(fingerprint),
        ] {
            assert_eq!(Caller::from_header(&caller.to_header()), caller);
        }
        for text in ["", "root", "member", "member a b", "certificate x", "socket x"] {
            assert_eq!(Caller::from_header(&HeaderValue::from_static(text)), Caller::Anonymous, "{text}");
        }
    }
}
