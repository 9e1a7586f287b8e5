//! The way of a request: path, method, access, phase, leader, body bound; then its handler.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use futures_util::FutureExt;
use http::header::{ALLOW, CONTENT_LENGTH, EXPECT};
use http::{Extensions, HeaderName, HeaderValue, Method, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use microcluster_client::Fingerprint;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::Service;
use tracing::{Instrument, Span};

use super::caller::{Caller, PASSED_ON};
use super::envelope::log_error;
use super::extract::{BodyBounds, drain, read_body, too_large};
use super::forward::{self, Outcome, Patience};
use super::proxy;
use super::routes::{Access, Connection, ListenerKind, Phase, Route, WhileStopping};
use super::table::table;
use crate::error::Error;
use crate::state::{NotNow, State};
use crate::tasks::{Tasks, panic_message};
use crate::trust::TrustedAs;

/// Requests with a token that are looked into at the same time: anybody may send them.
const TOKEN_REQUESTS_MAX: usize = 64;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The API of one listener. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Api {
    /// Finds what a path with parameters belongs to, and makes the answer to HEAD out of that to GET.
    router: Router,
    /// The paths without parameters, which need no more than to be looked up.
    fixed: Arc<HashMap<String, Arc<PathRoutes>>>,
    /// Numbers the requests; the start of the daemon tells those of two runs apart.
    requests: Arc<AtomicU64>,
    run: u32,
    state: State,
}

/// All methods of one path on one listener.
struct PathRoutes {
    routes: Vec<Route>,
    allow: HeaderValue,
    state: State,
    tasks: Tasks,
    token_places: Arc<Semaphore>,
}

impl Api {
    /// The Core API, with the routes that a product adds to it, as far as they are served on a listener. `tasks` own the
    /// requests that go on without their client.
    pub fn core(listener: ListenerKind, product: &[Route], state: &State, tasks: &Tasks) -> Api {
        let routes = table().into_iter().chain(product.iter().cloned());
        Api::of(routes.filter(|route| route.listeners.contains(&listener)), state, tasks)
    }

    /// These routes alone. No path may be there in two forms: that is checked where routes come from.
    pub fn of(routes: impl IntoIterator<Item = Route>, state: &State, tasks: &Tasks) -> Api {
        let mut paths: BTreeMap<String, Vec<Route>> = BTreeMap::new();
        for route in routes {
            paths.entry(route.path.clone().into_owned()).or_default().push(route);
        }
        let mut router = Router::new();
        let mut fixed = HashMap::new();
        let token_places = Arc::new(Semaphore::new(TOKEN_REQUESTS_MAX));
        for (path, routes) in paths {
            let (state, tasks, token_places) = (state.clone(), tasks.clone(), token_places.clone());
            let path_routes = Arc::new(PathRoutes { allow: allow(&routes), routes, state, tasks, token_places });
            if !path.contains('{') {
                fixed.insert(path.clone(), path_routes.clone());
            }
            router = router.route(&path, any(move |request| path_routes.clone().call(request)));
        }
        let router = router.fallback(unknown_path);
        Api { router, fixed: Arc::new(fixed), requests: Arc::default(), run: rand::random(), state: state.clone() }
    }

    /// Whether a certificate is that of a member or of a joiner, as far as it is known here.
    pub fn is_member(&self, certificate: &Fingerprint) -> bool {
        self.state.joined_node().is_ok_and(|node| node.trust.is_trusted(certificate))
    }

    /// Answers one request. Never fails: what goes wrong is an answer.
    pub async fn call(
        &self,
        request: http::Request<Incoming>,
        connection: Arc<Connection>,
    ) -> Result<Response, Infallible> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let id = RequestId { run: self.run, number };
        let mut request = request.map(axum::body::Body::new);
        let (method, uri, peer) = (request.method().clone(), request.uri().clone(), connection.peer);
        request.extensions_mut().insert(connection);
        request.extensions_mut().insert(id);
        // What a route takes at most is bounded where it is read, and by the route.
        DefaultBodyLimit::disable().apply(&mut request);
        let mut response = match self.fixed.get(request.uri().path()) {
            Some(routes) if request.method() != Method::HEAD => Arc::clone(routes).call(request).await,
            _ => self.router.clone().call(request).await?,
        };
        // Here, so that the line names its request whatever the route.
        if let Some(error) = response.extensions_mut().remove::<Arc<Error>>() {
            tracing::error_span!("request", %id, %peer, %method, path = uri.path()).in_scope(|| log_error(&error));
        }
        response.headers_mut().insert(REQUEST_ID, id.header());
        Ok(response)
    }
}

impl PathRoutes {
    async fn call(self: Arc<Self>, request: Request) -> Response {
        let method = match *request.method() {
            Method::HEAD => &Method::GET,
            ref method => method,
        };
        let is_meant = |route: &&Route| route.method.as_ref().is_none_or(|own| own == method);
        let Some(route) = self.routes.iter().find(is_meant) else {
            return self.other_method(&request);
        };
        let span = if route.traced { self.span(&request) } else { Span::none() };
        self.check_and_run(route, request).instrument(span).await
    }

    /// An error's, so that it is there whatever is logged: every line about the request names it.
    fn span(&self, request: &Request) -> Span {
        let id = request.extensions().get::<RequestId>().copied().unwrap_or_default();
        let peer = request.extensions().get::<Arc<Connection>>().map(|connection| connection.peer);
        tracing::error_span!(
            "request",
            %id,
            peer = peer.map(tracing::field::display),
            member = self.state.name().as_ref().map(|name| name.as_str()),
            method = %request.method(),
            path = request.uri().path(),
        )
    }

    async fn check_and_run(&self, route: &Route, mut request: Request) -> Response {
        // Only what is needed of the request: its body cannot be shared between threads, and checks wait.
        let connection = request.extensions().get::<Arc<Connection>>().cloned();
        let length = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let caller = self.caller(route, &mut request, connection.as_deref()).await;
        // Nobody else leads yet: who serves has nobody else to pass it on to.
        let is_needed = route.leader && forward::is_forwarded(&request);
        let refused = if is_needed { None } else { self.refused_by_stop(route) };
        let checked = match refused {
            Some(refused) => Err(refused),
            None => self.check(route, connection.as_deref(), caller, length).await,
        };
        if let Err(e) = checked {
            // Who waits to be asked for the body is answered instead, and a stranger's is not worth reading.
            if e.status() != StatusCode::FORBIDDEN && !request.headers().contains_key(EXPECT) {
                Box::pin(drain(request.body_mut())).await;
            }
            return e.into_response();
        }
        let time = connection.map_or(Duration::ZERO, |connection| connection.body_timeout);
        request.extensions_mut().insert(Patience::of(route, self.state.settings().hook_timeout));
        request.extensions_mut().insert(BodyBounds { bytes: route.body_max, time });
        let mut place = None;
        if route.access == Access::Token {
            (request, place) = match Box::pin(self.token_place(request)).await {
                Ok((request, place)) => (request, Some(place)),
                Err(e) => return e.into_response(),
            };
        }
        if route.access == Access::Socket && *request.method() != Method::GET && *request.method() != Method::HEAD {
            // Who did it is in the span.
            tracing::info!("asked to change the daemon or its cluster over the control socket");
        }
        request.extensions_mut().insert(self.tasks.clone());
        request.extensions_mut().insert(self.state.clone());
        let handler = route.handler.clone();
        let (state, leader, target, timeout) = (self.state.clone(), route.leader, route.target, route.timeout);
        let run = async move {
            let _place = place;
            let done = match (leader, target) {
                // Boxed, here and below: what few requests need does not make the future of each larger.
                (true, _) => Box::pin(forward::to_leader(&state, request)).await,
                (_, true) => Box::pin(proxy::to_target(&state, request)).await,
                (false, false) => Ok(Outcome::Here(request)),
            };
            match done {
                Ok(Outcome::Here(request)) => within(timeout, handler(request, state)).await,
                Ok(Outcome::Answered(response)) => response,
                Err(e) => e.into_response(),
            }
        };
        if route.detached {
            let span = Span::current();
            let done = self.tasks.detached("request", run.instrument(span)).await;
            return done.unwrap_or_else(|lost| Error::from(lost).into_response());
        }
        // What the handler held is dropped with it, so nobody sees a half-changed value.
        AssertUnwindSafe(run).catch_unwind().await.unwrap_or_else(|panic| {
            tracing::error!(path = &*route.path, panic = panic_message(&*panic), "a handler panicked");
            Error::internal("the request failed inside the daemon; its log says why").into_response()
        })
    }

    /// A place for a request that anybody may send. Its body is read before: who is slow with it holds up nobody.
    async fn token_place(&self, request: Request) -> Result<(Request, OwnedSemaphorePermit), Error> {
        let (head, body) = request.into_parts();
        let mut reading = Request::new(body);
        reading.extensions_mut().extend(head.extensions.clone());
        let body = read_body(reading).await?;
        let place = self.token_places.clone().try_acquire_owned().map_err(|_| {
            Error::unavailable("too many machines ask to join at the same time; try again").retry_after(1)
        })?;
        Ok((Request::from_parts(head, body.into()), place))
    }

    /// Who asks, where that is asked for or passed on: who a member has passed the request on for, else who is connected.
    async fn caller(&self, route: &Route, request: &mut Request, connection: Option<&Connection>) -> Option<Caller> {
        let passed_on = request.headers().get(PASSED_ON).map(Caller::from_header);
        if passed_on.is_none() && route.check.is_none() && !route.leader && !route.target {
            return None;
        }
        let connection = connection?;
        if let Caller::Certificate(certificate) = Caller::of(&self.state, connection)
            && let Ok(node) = self.state.joined_node()
            && (route.check.is_some()
                || passed_on.is_some()
                || node.trust.trusted_as(&certificate) == Some(TrustedAs::Joiner))
        {
            // It may be a new member's; if the table cannot be read the certificate is nobody's that is known.
            Box::pin(node.trusted_as(&certificate)).await.ok();
        }
        let connected = Caller::of(&self.state, connection);
        let caller = match (connected, passed_on) {
            (Caller::Member(_), Some(caller)) => caller,
            (connected, _) => {
                request.headers_mut().remove(PASSED_ON);
                connected
            }
        };
        request.extensions_mut().insert(caller.clone());
        Some(caller)
    }

    /// What a stop that has begun makes of a request.
    fn refused_by_stop(&self, route: &Route) -> Option<Error> {
        let is_refused = route.stop == WhileStopping::Refused && self.state.stopping().is_cancelled();
        is_refused.then(|| NotNow::ShuttingDown.into())
    }

    async fn check(
        &self,
        route: &Route,
        connection: Option<&Connection>,
        caller: Option<Caller>,
        length: Option<usize>,
    ) -> Result<(), Error> {
        let connection = connection.ok_or_else(|| Error::internal("a request without a connection"))?;
        self.check_access(route, connection).await?;
        let node = match route.phase {
            Phase::Always => None,
            Phase::Joining => Some(self.state.joined_node()),
            Phase::Member | Phase::Current => Some(self.state.node()),
        };
        match node {
            Some(Err(NotNow::ShuttingDown)) if route.stop == WhileStopping::Allowed => {}
            // The product has not begun yet.
            Some(Ok(node)) if route.phase == Phase::Current => node.is_current()?,
            Some(node) => drop(node?),
            None => {}
        }
        if let Some(check) = &route.check {
            let asked = AssertUnwindSafe(check(self.state.clone(), caller.unwrap_or(Caller::Anonymous))).catch_unwind();
            asked.await.unwrap_or_else(|panic| {
                tracing::error!(path = &*route.path, panic = panic_message(&*panic), "an access check panicked");
                Err(Error::internal("the request failed inside the daemon; its log says why"))
            })?;
        }
        // Said before the client has sent all of it.
        if length.is_some_and(|length| length > route.body_max) {
            return Err(too_large(route.body_max));
        }
        Ok(())
    }

    async fn check_access(&self, route: &Route, connection: &Connection) -> Result<(), Error> {
        if connection.listener == ListenerKind::Unix {
            return Ok(());
        }
        match route.access {
            Access::Open | Access::Token => Ok(()),
            // Such a route is served on the socket alone; this holds even if the table is wrong.
            Access::Socket => Err(Error::forbidden("this is for the control socket alone")),
            Access::Member | Access::Joiner => {
                let Some(certificate) = connection.certificate else {
                    return Err(Error::forbidden(
                        "this is for members of the cluster: connect with the certificate of one",
                    ));
                };
                let node = self.state.joined_node()?;
                let may = |trusted| trusted == TrustedAs::Member || route.access == Access::Joiner;
                if node.trust.trusted_as(&certificate).is_some_and(may) {
                    return Ok(());
                }
                // It may be new: the table is looked at before anybody is refused.
                match Box::pin(node.trusted_as(&certificate)).await? {
                    Some(trusted) if may(trusted) => Ok(()),
                    Some(_) => Err(Error::forbidden(
                        "this is for members of the cluster: you have joined it when your join is confirmed",
                    )),
                    None => {
                        node.stranger_seen();
                        let message = format!("the certificate {certificate} is no member's of this cluster");
                        Err(Error::forbidden(message))
                    }
                }
            }
        }
    }

    /// A method without a route: asked what there is, or refused.
    fn other_method(&self, request: &Request) -> Response {
        let mut response = if request.method() == Method::OPTIONS {
            StatusCode::NO_CONTENT.into_response()
        } else {
            let (method, path) = (request.method(), request.uri().path());
            let allow = self.allow.to_str().unwrap_or_default();
            let message = format!("{method} is not possible on {path}; possible are {allow}");
            Error::new(StatusCode::METHOD_NOT_ALLOWED, message).into_response()
        };
        response.headers_mut().insert(ALLOW, self.allow.clone());
        response
    }
}

/// The request without what was found out about its path: a router behind this one finds out by itself.
pub(crate) fn without_path(mut request: Request) -> Request {
    fn keep<T: Clone + Send + Sync + 'static>(from: &mut Extensions, to: &mut Extensions) {
        if let Some(value) = from.remove::<T>() {
            to.insert(value);
        }
    }
    let mut from = std::mem::take(request.extensions_mut());
    let to = request.extensions_mut();
    keep::<Arc<Connection>>(&mut from, to);
    keep::<RequestId>(&mut from, to);
    keep::<BodyBounds>(&mut from, to);
    keep::<Caller>(&mut from, to);
    keep::<Tasks>(&mut from, to);
    keep::<State>(&mut from, to);
    keep::<OnUpgrade>(&mut from, to);
    request
}

/// Runs a handler for as long as it may take.
async fn within(timeout: Option<Duration>, run: impl Future<Output = Response>) -> Response {
    let Some(timeout) = timeout else { return run.await };
    tokio::time::timeout(timeout, run).await.unwrap_or_else(|_| {
        let message =
            format!("the request took longer than {timeout:?} and was given up; what it changed is not known");
        Error::timeout(message).into_response()
    })
}

async fn unknown_path(request: Request) -> Response {
    Error::not_found(format!("there is nothing at {}", request.uri().path())).into_response()
}

/// The methods of a path, as the `Allow` header lists them.
fn allow(routes: &[Route]) -> HeaderValue {
    let mut methods: Vec<&str> = routes.iter().filter_map(|route| Some(route.method.as_ref()?.as_str())).collect();
    if methods.contains(&"GET") {
        methods.push("HEAD");
    }
    methods.push("OPTIONS");
    // Names of methods are always valid in a header.
    HeaderValue::from_str(&methods.join(", ")).unwrap_or(HeaderValue::from_static("OPTIONS"))
}

/// Names a request in its answer and in the log.
#[derive(Clone, Copy, Debug, Default)]
struct RequestId {
    run: u32,
    number: u64,
}

impl RequestId {
    fn header(self) -> HeaderValue {
        // Hexadecimal digits are always valid in a header.
        HeaderValue::try_from(self.to_string()).unwrap_or(HeaderValue::from_static(""))
    }
}

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}-{:x}", self.run, self.number)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::time::Instant;

    use axum::body::{Body, Bytes};
    use futures_util::future::join_all;
    use futures_util::stream;

    use super::*;
    use crate::api::Peer;
    use crate::tls::{Generate, KeyPair};

    const DEADLINE: Duration = Duration::from_secs(30);

    /// A request as a stranger sends it.
    fn request(path: &str, body: Body) -> Request {
        let connection = Connection {
            listener: ListenerKind::Tls,
            certificate: None,
            peer: Peer::Unknown,
            body_timeout: Duration::from_millis(500),
        };
        let mut request = Request::post(path).body(body).unwrap();
        request.extensions_mut().insert(Arc::new(connection));
        request
    }

    /// An API of one route that anybody may use with a token, whose handler waits at a gate.
    fn token_api(gate: &Arc<Semaphore>, waiting: &Arc<AtomicU64>) -> (tempfile::TempDir, Api) {
        let dir = tempfile::tempdir().unwrap();
        let pair = KeyPair::generate(&Generate { name: "c1", addresses: &[] }).unwrap();
        let state = State::uninitialised(&dir.path().join("state"), pair);
        let (gate, waiting) = (gate.clone(), waiting.clone());
        let handler = move || async move {
            waiting.fetch_add(1, Ordering::SeqCst);
            drop(gate.acquire().await);
            StatusCode::OK
        };
        let route = Route::new(Method::POST, "/token", &[ListenerKind::Tls], handler);
        let route = route.access(Access::Token).phase(Phase::Always).body_max(100);
        (dir, Api::of([route], &state, &Tasks::new("test")))
    }

    #[tokio::test]
    async fn requests_with_a_token_are_bounded_and_slow_ones_hold_up_nobody() {
        let (gate, waiting) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicU64::new(0)));
        let (_dir, api) = token_api(&gate, &waiting);
        let send = |body| {
            let mut router = api.router.clone();
            tokio::spawn(async move { router.call(request("/token", body)).await.unwrap() })
        };
        let silent = || Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        let slow: Vec<_> = (0..2 * TOKEN_REQUESTS_MAX).map(|_| send(silent())).collect();
        let good: Vec<_> = (0..TOKEN_REQUESTS_MAX).map(|_| send(Body::from("{}"))).collect();
        let begun = Instant::now();
        while waiting.load(Ordering::SeqCst) < TOKEN_REQUESTS_MAX as u64 {
            assert!(begun.elapsed() < DEADLINE, "{waiting:?} got in");
            tokio::task::yield_now().await;
        }
        let refused = send(Body::from("{}")).await.unwrap();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(refused.headers().contains_key(http::header::RETRY_AFTER));
        gate.close();
        for answer in join_all(good).await {
            assert_eq!(answer.unwrap().status(), StatusCode::OK);
        }
        assert_eq!(send(Body::from("{}")).await.unwrap().status(), StatusCode::OK, "there is room again");
        for answer in join_all(slow).await {
            assert_eq!(answer.unwrap().status(), StatusCode::REQUEST_TIMEOUT);
        }
        let large = send(Body::from("x".repeat(101))).await.unwrap();
        assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
}
