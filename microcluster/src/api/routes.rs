//! What a route is: path and method, where it is served, who may use it, and its handler.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::extract::Request;
use axum::response::Response;
use http::Method;
use microcluster_client::Fingerprint;

use crate::state::State;

/// Where a request can come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ListenerKind {
    /// The control socket on this machine.
    Unix,
    /// The cluster address.
    Tls,
    /// The address that is open until initialisation.
    PreInit,
}

/// A connection that requests come in on.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub listener: ListenerKind,
    /// The certificate that the client has proven to own.
    pub certificate: Option<Fingerprint>,
}

/// Who may use a route. Who can use the control socket may do everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Anybody.
    Open,
    /// Members of the cluster.
    Member,
    /// Who shows a token in the body: the handler checks it.
    Token,
    /// The control socket alone.
    Socket,
}

/// When a route is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Always.
    Always,
    /// As a member, and as a joiner that the members reach already.
    Joining,
    /// As a member.
    Member,
}

pub(super) type Handler = Arc<dyn Fn(Request, State) -> Pin<Box<dyn Future<Output = Response> + Send>> + Send + Sync>;

/// One row of the route table.
#[derive(Clone)]
pub(crate) struct Route {
    pub method: Method,
    pub path: &'static str,
    pub listeners: &'static [ListenerKind],
    pub access: Access,
    pub phase: Phase,
    /// Only the leader can do it: others pass it on.
    pub leader: bool,
    /// With `?target=NAME` it is for that member: others pass it on.
    pub target: bool,
    /// Most bytes of a body.
    pub body_max: usize,
    /// Goes on when its client hangs up.
    pub detached: bool,
    /// Has a span and a line in the log. Not where the rate is high.
    pub traced: bool,
    pub(super) handler: Handler,
    /// The type of the handler, for its name.
    handler_type: &'static str,
}

pub(super) const EVERYWHERE: &[ListenerKind] = &[ListenerKind::Unix, ListenerKind::Tls, ListenerKind::PreInit];
pub(super) const UNIX_AND_TLS: &[ListenerKind] = &[ListenerKind::Unix, ListenerKind::Tls];
pub(super) const TLS: &[ListenerKind] = &[ListenerKind::Tls];
pub(super) const UNIX: &[ListenerKind] = &[ListenerKind::Unix];

/// Most bytes of a body, unless a route says otherwise.
const BODY_MAX: usize = 1 << 20;

impl Route {
    /// A route for members of an initialised daemon. What changes something goes on without its client.
    pub(super) fn new<H, T>(method: Method, path: &'static str, listeners: &'static [ListenerKind], handler: H) -> Route
    where
        H: axum::handler::Handler<T, State>,
        T: 'static,
    {
        Route {
            detached: method != Method::GET,
            method,
            path,
            listeners,
            access: Access::Member,
            phase: Phase::Member,
            leader: false,
            target: false,
            body_max: BODY_MAX,
            traced: true,
            handler: Arc::new(move |request, state| Box::pin(handler.clone().call(request, state))),
            handler_type: std::any::type_name::<H>(),
        }
    }

    /// The name of the handler's function.
    pub(super) fn handler_name(&self) -> &'static str {
        self.handler_type.rsplit("::").next().unwrap_or_default()
    }

    pub(super) fn access(mut self, access: Access) -> Route {
        self.access = access;
        self
    }

    pub(super) fn phase(mut self, phase: Phase) -> Route {
        self.phase = phase;
        self
    }

    pub(super) fn leader(mut self) -> Route {
        self.leader = true;
        self
    }

    pub(super) fn target(mut self) -> Route {
        self.target = true;
        self
    }

    pub(super) fn body_max(mut self, bytes: usize) -> Route {
        self.body_max = bytes;
        self
    }

    /// Bound to its connection: it ends with its client.
    pub(super) fn attached(mut self) -> Route {
        self.detached = false;
        self
    }

    pub(super) fn untraced(mut self) -> Route {
        self.traced = false;
        self
    }
}
