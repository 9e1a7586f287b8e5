//! Servers of a product: an extension of the Core API, or a listener of its own.

use std::time::Duration;

use super::resources::Resources;
use crate::api::{ListenerKind, Route};

/// A server of a product: [`Server::core_api`] or [`Server::listen`].
///
/// ```
/// use microcluster::{Access, Endpoint, Resources, Response, Server, action};
///
/// async fn pages_list() -> Response {
///     Response::json(["start"])
/// }
///
/// let pages = |access| Resources::at("1.0").endpoint(Endpoint::new("pages").get(action(pages_list).access(access)));
/// let daemon = microcluster::Daemon::builder("/var/lib/product")
///     .server("pages", Server::core_api().serve_unix().resources(pages(Access::Member)))
///     .server("public", Server::listen("0.0.0.0:8443").resources(pages(Access::Open)));
/// # let _ = daemon;
/// ```
#[derive(Clone, Debug)]
pub struct Server {
    pub(super) place: Place,
    pub(super) pre_init: bool,
    pub(super) resources: Vec<Resources>,
}

/// Where a server's resources are served.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// On the listeners of the Core API.
    CoreApi { unix: bool },
    /// On a listener of its own.
    Own(OwnPlace),
}

/// A listener of its own.
#[derive(Clone, Debug)]
pub(crate) struct OwnPlace {
    /// As the product gave it; it is parsed when the daemon starts.
    pub address: String,
    pub dedicated: bool,
    pub drain_timeout: Option<Duration>,
}

/// Resources that are served beside the Core API: on the cluster address, and on the control socket where that is asked for.
#[derive(Clone, Debug)]
#[must_use]
pub struct CoreApiServer {
    unix: bool,
    pre_init: bool,
    resources: Vec<Resources>,
}

/// Resources on an address of their own, over TLS 1.3.
///
/// ```
/// use std::time::Duration;
///
/// use microcluster::{Access, Endpoint, Resources, Response, Server, action};
///
/// async fn metrics() -> Response {
///     Response::raw("up 1\n")
/// }
///
/// let open = Endpoint::new("metrics").get(action(metrics).access(Access::Open).allowed_before_init());
/// let server = Server::listen("127.0.0.1:9443")
///     .dedicated_certificate()
///     .pre_init(true)
///     .drain_timeout(Duration::from_secs(1))
///     .resources(Resources::at("").endpoint(open));
/// # let _ = microcluster::Daemon::builder("/var/lib/product").server("metrics.internal", server);
/// ```
///
/// It presents, in this order: its dedicated certificate, if it has one; the key pair with the server's name in
/// `certificates/`, also one that comes while the daemon runs; the cluster's certificate, or before bootstrap and join the daemon's own.
#[derive(Clone, Debug)]
#[must_use]
pub struct AdditionalServer {
    own: OwnPlace,
    pre_init: bool,
    resources: Vec<Resources>,
}

impl Server {
    /// A server that extends the Core API. It has no address and no certificate of its own.
    ///
    /// ```compile_fail
    /// # use microcluster::Server;
    /// Server::core_api().dedicated_certificate();
    /// ```
    pub fn core_api() -> CoreApiServer {
        CoreApiServer { unix: false, pre_init: false, resources: Vec::new() }
    }

    /// A server on an address of its own, `ip:port`. An operator can set another one through `/core/1.0/daemon/servers`,
    /// which holds from then on.
    ///
    /// ```compile_fail
    /// # use microcluster::Server;
    /// Server::listen("127.0.0.1:9443").serve_unix();
    /// ```
    pub fn listen(address: impl Into<String>) -> AdditionalServer {
        let own = OwnPlace { address: address.into(), dedicated: false, drain_timeout: None };
        AdditionalServer { own, pre_init: false, resources: Vec::new() }
    }

    /// Its resources as routes. The order in which they are looked up is that of the router.
    pub(super) fn routes(&self) -> Vec<Route> {
        let listeners = match self.place {
            Place::CoreApi { unix } => {
                let unix = unix.then_some(ListenerKind::Unix);
                let pre_init = self.pre_init.then_some(ListenerKind::PreInit);
                [Some(ListenerKind::Tls), unix, pre_init].into_iter().flatten().collect()
            }
            Place::Own(_) => vec![ListenerKind::Additional],
        };
        self.resources.iter().flat_map(|resources| resources.routes(&listeners)).collect()
    }
}

impl CoreApiServer {
    /// Its resources are served on the control socket too.
    pub fn serve_unix(mut self) -> CoreApiServer {
        self.unix = true;
        self
    }

    /// Whether its resources are served on the pre-init address too, until bootstrap or join. There is no member then, so only actions that
    /// are [`allowed_before_init`](crate::Action::allowed_before_init) answer, and only those that are [`Access::Open`](crate::Access) or
    /// have a check let anybody through.
    pub fn pre_init(mut self, pre_init: bool) -> CoreApiServer {
        self.pre_init = pre_init;
        self
    }

    /// Adds resources.
    pub fn resources(mut self, resources: Resources) -> CoreApiServer {
        self.resources.push(resources);
        self
    }
}

impl AdditionalServer {
    /// It has a certificate of its own in `certificates/`, self-signed and written at the first start. Without this it
    /// presents what is there by its name, and else the cluster's.
    pub fn dedicated_certificate(mut self) -> AdditionalServer {
        self.own.dedicated = true;
        self
    }

    /// How long requests may go on when the server is closed, or moved to another address: that of the daemon unless it is set. Websockets
    /// are ended at once.
    pub fn drain_timeout(mut self, timeout: Duration) -> AdditionalServer {
        self.own.drain_timeout = Some(timeout);
        self
    }

    /// Whether it is open before bootstrap or join too. There is no member then, so only actions that are
    /// [`allowed_before_init`](crate::Action::allowed_before_init) answer, and only those that are [`Access::Open`](crate::Access) or have
    /// a check let anybody through.
    pub fn pre_init(mut self, pre_init: bool) -> AdditionalServer {
        self.pre_init = pre_init;
        self
    }

    /// Adds resources.
    pub fn resources(mut self, resources: Resources) -> AdditionalServer {
        self.resources.push(resources);
        self
    }
}

impl From<CoreApiServer> for Server {
    fn from(server: CoreApiServer) -> Server {
        let CoreApiServer { unix, pre_init, resources } = server;
        Server { place: Place::CoreApi { unix }, pre_init, resources }
    }
}

impl From<AdditionalServer> for Server {
    fn from(server: AdditionalServer) -> Server {
        let AdditionalServer { own, pre_init, resources } = server;
        Server { place: Place::Own(own), pre_init, resources }
    }
}
