//! What a route is: path and method, where it is served, who may use it, and its handler.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use http::Method;
use microcluster_client::Fingerprint;

use super::caller::Caller;
use crate::error::Error;
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
    /// An additional server of the product.
    Additional,
}

/// A connection that requests come in on.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub listener: ListenerKind,
    /// The certificate that the client has proven to own.
    pub certificate: Option<Fingerprint>,
    /// Who is at the other end, for the log.
    pub peer: Peer,
    /// How long the body of a request may take.
    pub body_timeout: Duration,
}

/// Who is at the other end of a connection, as far as the system knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// A process on this machine.
    Process {
        user: u32,
        process: Option<i32>,
    },
    Network(SocketAddr),
    Unknown,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Process { user, process: Some(process) } => write!(f, "user {user}, process {process}"),
            Peer::Process { user, process: None } => write!(f, "user {user}"),
            Peer::Network(address) => address.fmt(f),
            Peer::Unknown => f.write_str("unknown"),
        }
    }
}

/// Who may use a route. Who can use the control socket may do everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Anybody.
    Open,
    /// Members of the cluster.
    Member,
    /// Members, and joiners that were admitted and are not taken in yet.
    Joiner,
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
    /// As a member, also one that waits for an upgrade.
    Member,
    /// As a member whose database is as the product needs it.
    Current,
}

/// What becomes of a route when the daemon stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhileStopping {
    /// It is served until the member is closed, as the Core API is: the stop itself needs it.
    UntilClosed,
    /// It takes no requests from the moment on when the stop begins.
    Refused,
    /// It is served for as long as its listener is.
    Allowed,
}

pub(crate) type Handler = Arc<dyn Fn(Request, State) -> Pin<Box<dyn Future<Output = Response> + Send>> + Send + Sync>;
/// A product's own decision about a caller.
pub(crate) type AccessCheck =
    Arc<dyn Fn(State, Caller) -> Pin<Box<dyn Future<Output = Result<(), Error>> + Send>> + Send + Sync>;

/// One row of the route table.
#[derive(Clone)]
pub(crate) struct Route {
    /// None for all methods.
    pub method: Option<Method>,
    pub path: Cow<'static, str>,
    pub listeners: Cow<'static, [ListenerKind]>,
    pub access: Access,
    /// Asked beside `access`.
    pub check: Option<AccessCheck>,
    pub phase: Phase,
    pub stop: WhileStopping,
    /// Only the leader can do it: others pass it on.
    pub leader: bool,
    /// With `?target=NAME` it is for that member: others pass it on.
    pub target: bool,
    /// Most bytes of a body.
    pub body_max: usize,
    /// Goes on when its client hangs up.
    pub detached: bool,
    /// How long its handler may take.
    pub timeout: Option<Duration>,
    /// Has a span and a line in the log. Not where the rate is high.
    pub traced: bool,
    pub handler: Handler,
    /// The type of a handler of the Core API, for its name.
    #[cfg(test)]
    pub handler_type: &'static str,
}

pub(super) const EVERYWHERE: &[ListenerKind] = &[ListenerKind::Unix, ListenerKind::Tls, ListenerKind::PreInit];
pub(super) const UNIX_AND_TLS: &[ListenerKind] = &[ListenerKind::Unix, ListenerKind::Tls];
pub(super) const TLS: &[ListenerKind] = &[ListenerKind::Tls];
pub(super) const UNIX: &[ListenerKind] = &[ListenerKind::Unix];

/// Most bytes of a body, unless a route says otherwise.
pub(crate) const BODY_MAX: usize = 1 << 20;

impl Route {
    /// A route for members of an initialised daemon. What changes something goes on without its client.
    pub(super) fn new<H, T>(method: Method, path: &'static str, listeners: &'static [ListenerKind], handler: H) -> Route
    where
        H: axum::handler::Handler<T, State>,
        T: 'static,
    {
        Route {
            detached: method != Method::GET,
            method: Some(method),
            path: Cow::Borrowed(path),
            listeners: Cow::Borrowed(listeners),
            access: Access::Member,
            check: None,
            phase: Phase::Member,
            stop: WhileStopping::UntilClosed,
            leader: false,
            target: false,
            body_max: BODY_MAX,
            timeout: None,
            traced: true,
            handler: erase(handler),
            #[cfg(test)]
            handler_type: std::any::type_name::<H>(),
        }
    }

    /// Whether it is the daemon's own, and not a product's.
    pub(super) fn is_core(&self) -> bool {
        self.stop == WhileStopping::UntilClosed
    }

    /// The name of the handler's function.
    #[cfg(test)]
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

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route").field("method", &self.method).field("path", &self.path).finish_non_exhaustive()
    }
}

/// A handler as the table holds it.
pub(crate) fn erase<H, T>(handler: H) -> Handler
where
    H: axum::handler::Handler<T, State>,
    T: 'static,
{
    Arc::new(move |request, state| Box::pin(handler.clone().call(request, state)))
}
