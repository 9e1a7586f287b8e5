//! Who asks, as far as the connection proves it.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::header::USER_AGENT;
use http::request::Parts;
use microcluster_client::{Fingerprint, NOTIFICATION_USER_AGENT, Name};

use super::routes::{Connection, ListenerKind};
use crate::error::Error;
use crate::state::State;

/// Who sent a request. An extractor for handlers, and what a product's own access check is given.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notification(pub bool);

impl Caller {
    /// Who is behind a connection.
    pub(super) fn of(state: &State, connection: &Connection) -> Caller {
        if connection.listener == ListenerKind::Unix {
            return Caller::Socket;
        }
        let Some(fingerprint) = connection.certificate else {
            return Caller::Anonymous;
        };
        let trusted = state.joined_node().map(|node| node.trust.current());
        let member = trusted.ok().and_then(|trusted| trusted.get(&fingerprint).map(|member| member.name.clone()));
        member.map_or(Caller::Certificate(fingerprint), Caller::Member)
    }
}

impl FromRequestParts<State> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Caller, Error> {
        let connection = parts.extensions.get::<Arc<Connection>>();
        let connection = connection.ok_or_else(|| Error::internal("a request without a connection"))?;
        Ok(Caller::of(state, connection))
    }
}

impl FromRequestParts<State> for Notification {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &State) -> Result<Notification, Error> {
        let agent = parts.headers.get(USER_AGENT);
        Ok(Notification(agent.is_some_and(|agent| agent.as_bytes().starts_with(NOTIFICATION_USER_AGENT.as_bytes()))))
    }
}
