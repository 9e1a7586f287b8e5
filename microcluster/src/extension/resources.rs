//! Resources of a product: endpoints under a prefix, their actions, and whole services that are mounted.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request};
use axum::handler::Handler;
use axum::response::IntoResponse;
use http::{Method, Uri};
use http_body_util::Limited;
use tower::{Service, ServiceExt};

use super::access::Access;
use crate::api::{self, BODY_MAX, ListenerKind, Phase, Route, WhileStopping, erase};
use crate::error::Error;
use crate::state::State;

/// Endpoints under a common prefix.
///
/// ```
/// use microcluster::{Access, Endpoint, Json, Path, Resources, Response, Result, State, action};
///
/// async fn read_key(state: State, Path(key): Path<String>) -> Result<Json<String>> {
///     Ok(Json(key))
/// }
///
/// async fn write_key(state: State, Path(key): Path<String>, Json(text): Json<String>) -> Result<Response> {
///     Ok(Response::empty())
/// }
///
/// let resources = Resources::at("1.0")
///     .endpoint(Endpoint::new("kv/{key}").get(read_key).put(action(write_key).access(Access::Member).proxy_target()));
/// # let _ = resources;
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Resources {
    prefix: String,
    endpoints: Vec<Endpoint>,
    mounts: Vec<Mount>,
}

/// A path and what can be done with it.
///
/// ```
/// use microcluster::{Endpoint, Path, Response, action};
///
/// async fn host_show(Path(name): Path<String>) -> Response {
///     Response::json(name)
/// }
///
/// let endpoint = Endpoint::new("hosts/{name}").alias("machines/{name}").get(action(host_show).proxy_target());
/// # let _ = endpoint;
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Endpoint {
    paths: Vec<String>,
    actions: Vec<(Method, Action)>,
}

/// A handler with who may use it, when, and where it runs. Made with [`action`], or of a whole service with [`service`].
///
/// ```
/// use std::time::Duration;
///
/// use microcluster::{Access, Json, Response, action};
///
/// async fn note_add(Json(text): Json<String>) -> Response {
///     Response::json(text.len())
/// }
///
/// let add = action(note_add).access(Access::Open).leader_only().body_limit(4096).timeout(Duration::from_secs(5));
/// # let _ = add;
/// ```
#[derive(Clone)]
#[must_use]
pub struct Action {
    handler: api::Handler,
    access: Access,
    target: bool,
    leader: bool,
    before_init: bool,
    during_shutdown: bool,
    body_max: usize,
    timeout: Option<Duration>,
}

/// A service that gets all requests below a path.
#[derive(Clone)]
struct Mount {
    path: String,
    action: Action,
}

/// What an endpoint takes as an action: a handler, or one with options.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no handler of a microcluster product, and no action",
    label = "this is to be an async function that takes extractors and returns an answer, or `action(..)` of one",
    note = "the extractors of a handler are `State`, `Path`, `Query`, `Caller`, `Shared` and those of axum; `Json` or another one that takes the body comes last",
    note = "a handler returns `Json`, `Response`, a type of axum's that is an answer, or a `microcluster::Result` of one; its future has to be `Send`"
)]
pub trait IntoAction<Marker> {
    /// The action.
    fn into_action(self) -> Action;
}

/// Tells handlers from actions, which the compiler could not.
#[derive(Debug)]
pub struct IsHandler;

impl<H, T> IntoAction<(IsHandler, T)> for H
where
    H: Handler<T, State>,
    T: 'static,
{
    fn into_action(self) -> Action {
        Action {
            handler: erase(self),
            access: Access::Member,
            target: false,
            leader: false,
            before_init: false,
            during_shutdown: false,
            body_max: BODY_MAX,
            timeout: None,
        }
    }
}

impl IntoAction<()> for Action {
    fn into_action(self) -> Action {
        self
    }
}

/// A handler as an action: for members, as a member, run on the member that is asked, with a body of at most 1 MiB.
pub fn action<M>(handler: impl IntoAction<M>) -> Action {
    // By the same trait as in an endpoint, so that the compiler says the same of what is no handler.
    handler.into_action()
}

/// A whole service as an action, an [`axum::Router`] for one, with the options of an action: for [`Resources::mount`].
///
/// The extractors of this crate work in its handlers too, whatever the state of the router is: [`State`], [`Caller`](crate::Caller),
/// [`Shared`](crate::Shared), [`WebSocketUpgrade`](crate::WebSocketUpgrade) and the others.
pub fn service<S>(service: S) -> Action
where
    S: Service<Request, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Response: IntoResponse,
    S::Future: Send,
{
    action(move |request: Request| {
        let service = service.clone();
        async move {
            let mut request = api::without_path(request);
            // The bound is that of the action.
            DefaultBodyLimit::disable().apply(&mut request);
            match service.oneshot(request).await {
                Ok(response) => response.into_response(),
                Err(never) => match never {},
            }
        }
    })
}

impl Resources {
    /// Resources below a prefix such as `1.0`. Nothing can be below `core`.
    pub fn at(prefix: impl Into<String>) -> Resources {
        Resources { prefix: prefix.into(), ..Resources::default() }
    }

    /// Adds an endpoint.
    pub fn endpoint(mut self, endpoint: Endpoint) -> Resources {
        self.endpoints.push(endpoint);
        self
    }

    /// Has one action answer everything below a path, usually a whole [`service`]: all methods, the path without the prefix and its
    /// own path. The answers are its own, so they are not in the envelope, and a request ends with its client.
    ///
    /// ```
    /// use microcluster::axum::{Router, routing::get};
    /// use microcluster::{Access, Resources, Result, State, service};
    ///
    /// async fn name(state: State) -> String {
    ///     state.name().map(|name| name.to_string()).unwrap_or_default()
    /// }
    ///
    /// let pages = Router::new().route("/name", get(name));
    /// // GET /1.0/ui/name
    /// let resources = Resources::at("1.0").mount("ui", service(pages).access(Access::Open).body_limit(64 << 10));
    /// # let _ = resources;
    /// ```
    pub fn mount(mut self, path: impl Into<String>, action: Action) -> Resources {
        self.mounts.push(Mount { path: path.into(), action });
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.endpoints.is_empty() && self.mounts.is_empty()
    }

    /// The prefix, as clients see it.
    pub(super) fn root(&self) -> String {
        full_path(&self.prefix, "")
    }

    /// The paths of each endpoint.
    pub(super) fn paths(&self) -> impl Iterator<Item = String> {
        let endpoints = self.endpoints.iter().flat_map(|endpoint| &endpoint.paths);
        let endpoints = endpoints.map(|path| full_path(&self.prefix, path));
        endpoints.chain(self.mounts.iter().flat_map(|mount| mount_paths(&self.prefix, &mount.path)))
    }

    /// The endpoints that have no action.
    pub(super) fn without_action(&self) -> Option<String> {
        let endpoint = self.endpoints.iter().find(|endpoint| endpoint.actions.is_empty())?;
        Some(full_path(&self.prefix, endpoint.paths.first().map_or("", String::as_str)))
    }

    /// The path of a mounted service that has a variable segment.
    pub(super) fn mounted_at_variable(&self) -> Option<String> {
        let paths = self.mounts.iter().map(|mount| full_path(&self.prefix, &mount.path));
        paths.into_iter().find(|path| path.contains('{'))
    }

    /// The path of an action that is to run on another member than the one that is asked.
    pub(super) fn passed_on(&self) -> Option<String> {
        let is_passed_on =
            |endpoint: &&Endpoint| endpoint.actions.iter().any(|(_, action)| action.target || action.leader);
        let endpoint = self.endpoints.iter().find(is_passed_on).map(|endpoint| endpoint.paths.first());
        let mount = self.mounts.iter().find(|mount| mount.action.target || mount.action.leader);
        let path = endpoint.or(mount.map(|mount| Some(&mount.path)))?;
        Some(full_path(&self.prefix, path.map_or("", String::as_str)))
    }

    /// As rows of the route table.
    pub(super) fn routes(&self, listeners: &[ListenerKind]) -> Vec<Route> {
        let mut routes = Vec::new();
        for endpoint in &self.endpoints {
            for path in &endpoint.paths {
                for (method, action) in &endpoint.actions {
                    let path = full_path(&self.prefix, path);
                    routes.push(action.route(Some(method.clone()), path, listeners));
                }
            }
        }
        for mount in &self.mounts {
            for path in mount_paths(&self.prefix, &mount.path) {
                let below = full_path(&self.prefix, &mount.path);
                let route = mount.action.route(None, path, listeners);
                routes.push(Route { handler: without_its_prefix(route.handler, below), ..route });
            }
        }
        routes
    }
}

impl Endpoint {
    /// An endpoint at a path below the prefix of its resources. `{name}` stands for one segment, `{*name}` for all that follow.
    pub fn new(path: impl Into<String>) -> Endpoint {
        Endpoint { paths: vec![path.into()], actions: Vec::new() }
    }

    /// Another path for the same endpoint, with the same names in it.
    pub fn alias(mut self, path: impl Into<String>) -> Endpoint {
        self.paths.push(path.into());
        self
    }

    /// What GET and HEAD do. It ends with its client.
    pub fn get<M>(self, action: impl IntoAction<M>) -> Endpoint {
        self.on(Method::GET, action)
    }

    /// What POST does. Like the others that change something, it goes on when its client hangs up.
    pub fn post<M>(self, action: impl IntoAction<M>) -> Endpoint {
        self.on(Method::POST, action)
    }

    /// What PUT does.
    pub fn put<M>(self, action: impl IntoAction<M>) -> Endpoint {
        self.on(Method::PUT, action)
    }

    /// What PATCH does.
    pub fn patch<M>(self, action: impl IntoAction<M>) -> Endpoint {
        self.on(Method::PATCH, action)
    }

    /// What DELETE does.
    pub fn delete<M>(self, action: impl IntoAction<M>) -> Endpoint {
        self.on(Method::DELETE, action)
    }

    fn on<M>(mut self, method: Method, action: impl IntoAction<M>) -> Endpoint {
        self.actions.retain(|(other, _)| *other != method);
        self.actions.push((method, action.into_action()));
        self
    }
}

impl Action {
    /// Who may use it: [`Access::Member`] unless it is set.
    pub fn access(mut self, access: Access) -> Action {
        self.access = access;
        self
    }

    /// With `?target=NAME` it runs on that member: whoever is asked passes the request on, websockets too.
    pub fn proxy_target(mut self) -> Action {
        (self.target, self.leader) = (true, false);
        self
    }

    /// It runs on the leader: whoever is asked passes the request on.
    pub fn leader_only(mut self) -> Action {
        (self.target, self.leader) = (false, true);
        self
    }

    /// It can be used before the daemon is a member. Without this the answer is a 503 that says so.
    pub fn allowed_before_init(mut self) -> Action {
        self.before_init = true;
        self
    }

    /// It can be used while the daemon stops: during [`Hooks::on_stop`](crate::Hooks::on_stop), and while the requests that run are
    /// finished, until the listener is closed. Without this it takes no requests from the moment on when the stop begins: the answer is a
    /// 503 that says so. One that is [`leader_only`](Action::leader_only) goes on to be done for other members until somebody else leads.
    pub fn allowed_during_shutdown(mut self) -> Action {
        self.during_shutdown = true;
        self
    }

    /// The most bytes of a body, 1 MiB unless it is set. More is answered with 413.
    pub fn body_limit(mut self, bytes: usize) -> Action {
        self.body_max = bytes;
        self
    }

    /// How long it may take: past it the handler is ended where it waits, and the answer is a 504. No bound unless it is set, except that a
    /// member that has passed the request on waits for ten minutes at most.
    pub fn timeout(mut self, timeout: Duration) -> Action {
        self.timeout = Some(timeout);
        self
    }

    fn route(&self, method: Option<Method>, path: String, listeners: &[ListenerKind]) -> Route {
        let (access, check) = self.access.clone().into_parts();
        Route {
            detached: method.as_ref().is_some_and(|method| *method != Method::GET),
            method,
            path: Cow::Owned(path),
            listeners: Cow::Owned(listeners.to_vec()),
            access,
            check,
            phase: if self.before_init { Phase::Always } else { Phase::Current },
            stop: if self.during_shutdown { WhileStopping::Allowed } else { WhileStopping::Refused },
            leader: self.leader,
            target: self.target,
            body_max: self.body_max,
            timeout: self.timeout,
            traced: true,
            handler: limited(Arc::clone(&self.handler), self.body_max),
            #[cfg(test)]
            handler_type: "",
        }
    }
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Action").field("access", &self.access).finish_non_exhaustive()
    }
}

impl fmt::Debug for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mount").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Prefix and path with one slash before each part.
fn full_path(prefix: &str, path: &str) -> String {
    let parts = [prefix, path].map(|part| part.trim_matches('/'));
    let mut full = String::new();
    for part in parts.iter().filter(|part| !part.is_empty()) {
        full.push('/');
        full.push_str(part);
    }
    if full.is_empty() { "/".into() } else { full }
}

/// A mounted service has its path, also with a slash, and everything below it.
fn mount_paths(prefix: &str, path: &str) -> Vec<String> {
    let own = full_path(prefix, path);
    let base = own.trim_end_matches('/').to_owned();
    let mut paths = vec![own, format!("{base}/"), format!("{base}/{{*below}}")];
    paths.dedup();
    paths
}

/// A handler whose requests end with an error where their bodies go over the bound, whoever reads them.
fn limited(handler: api::Handler, bytes: usize) -> api::Handler {
    Arc::new(move |request, state| handler(request.map(|body| Body::new(Limited::new(body, bytes))), state))
}

/// A handler that sees the path of a request without the part where it is mounted.
fn without_its_prefix(handler: api::Handler, below: String) -> api::Handler {
    Arc::new(move |request, state| match without_prefix(request, &below) {
        Ok(request) => handler(request, state),
        Err(e) => Box::pin(std::future::ready(e.into_response())),
    })
}

/// The request as a service that is mounted at `below` sees it.
fn without_prefix(mut request: Request, below: &str) -> Result<Request, Error> {
    let uri = request.uri();
    let rest = uri.path().strip_prefix(below.trim_end_matches('/')).unwrap_or(uri.path());
    let slash = if rest.starts_with('/') { "" } else { "/" };
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let path = format!("{slash}{rest}{query}");
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path.parse().map_err(|e: http::uri::InvalidUri| Error::bad_request(e.to_string()))?);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|e| Error::bad_request(e.to_string()))?;
    Ok(request)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_put_together_with_one_slash() {
        assert_eq!(full_path("1.0", "kv/{key}"), "/1.0/kv/{key}");
        assert_eq!(full_path("/1.0/", "/kv/"), "/1.0/kv");
        assert_eq!(full_path("", "metrics"), "/metrics");
        assert_eq!(full_path("1.0", ""), "/1.0");
        assert_eq!(full_path("", ""), "/");
        assert_eq!(mount_paths("", ""), ["/", "/{*below}"]);
        assert_eq!(mount_paths("1.0", "ui"), ["/1.0/ui", "/1.0/ui/", "/1.0/ui/{*below}"]);
    }

    #[test]
    fn a_mounted_service_sees_its_own_paths() {
        for (uri, below, expected) in [
            ("/1.0/ui/a/b?c=d", "/1.0/ui", "/a/b?c=d"),
            ("/1.0/ui", "/1.0/ui", "/"),
            ("/1.0/ui?x", "/1.0/ui", "/?x"),
            ("/a", "/", "/a"),
        ] {
            let request = Request::builder().uri(uri).body(Body::empty()).unwrap();
            assert_eq!(without_prefix(request, below).unwrap().uri(), expected);
        }
    }
}
