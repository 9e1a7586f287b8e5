//! The client: requests, timeouts, answers.

mod core_api;
mod transport;
#[cfg(feature = "websocket")]
mod websocket;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::ServerName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use self::transport::{ConnectError, Connector};
#[cfg(feature = "websocket")]
pub use self::websocket::{Message, WebSocket};
use crate::tls::client_config;
use crate::{Address, Error, Identity, Name, Server, ServerTrust};

/// How long a call may take unless it is told otherwise.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// How long a bootstrap, a join, a removal or a change of the configuration may take unless it is told otherwise: the product's
/// hooks run.
pub const TIMEOUT_INIT: Duration = Duration::from_secs(600);
/// Marks a request as a notification: who gets it does not pass it on.
pub const NOTIFICATION_USER_AGENT: &str = "microcluster-notifier";

/// Most bytes of an answer unless [`Client::response_limit`] says otherwise.
const RESPONSE_BYTES_MAX: usize = 64 << 20;
/// How often a connection that is kept is asked whether it still is one, and how long the answer may take. What was sent over one
/// whose packets are dropped is sent again ever more rarely: it is of no use for long after the network is back.
const SILENCE_CHECK: Duration = Duration::from_secs(3);
const SILENCE_MAX: Duration = Duration::from_secs(5);
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const ORDINARY_USER_AGENT: &str = concat!("microcluster-client/", env!("CARGO_PKG_VERSION"));

/// An answer as it came: status and headers are there, the body is read by the caller.
pub type RawResponse = Response<Incoming>;

/// A client of one daemon. Cheap to clone; clones share their connections, which are kept open.
///
/// ```no_run
/// use std::time::Duration;
///
/// use microcluster_client::{Client, Error};
///
/// # async fn example() -> Result<(), Error> {
/// let client = Client::unix("/var/lib/product/control.socket").timeout(Duration::from_secs(5));
/// println!("{}", client.status().await?.version);
/// // A product's own resource, on another member.
/// let name = "n2".parse().unwrap();
/// let uptime: u64 = client.target(name).query(http::Method::GET, "/1.0/uptime", ()).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
    target: Option<Name>,
    notification: bool,
    /// [`TIMEOUT_DEFAULT`] unless it was set, for what runs hooks [`TIMEOUT_INIT`].
    timeout: Option<Duration>,
    response_limit: usize,
}

#[derive(Debug)]
struct Shared {
    http: legacy::Client<Connector, Full<Bytes>>,
    #[cfg(feature = "websocket")]
    connector: Connector,
    server: Server,
    /// Scheme and authority of every request.
    origin: String,
}

impl Client {
    /// A client of the daemon on this machine, by its control socket. Nothing is opened yet.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let connector = Connector::unix(path.clone());
        Client::new(connector, Server::Unix(path), "http://localhost".into())
    }

    /// A client of the daemon at an address, that shows `identity` and accepts only the server that
    /// `trust` names. Nothing is opened yet.
    ///
    /// # Errors
    /// [`Error::Tls`] when the identity cannot be used.
    pub fn tls(address: Address, identity: Option<&Identity>, trust: &ServerTrust) -> Result<Self, Error> {
        let server = Server::Tls(address);
        let config = client_config(identity, trust).map_err(|source| Error::Tls { server: server.clone(), source })?;
        Ok(Client::tls_with_config(address, config))
    }

    /// A client of the daemon at an address with a TLS configuration made before, as
    /// [`client_config`] makes it. ALPN is set here.
    #[must_use]
    pub fn tls_with_config(address: Address, config: rustls::ClientConfig) -> Self {
        Client::tls_with_name(address, address.ip().into(), config)
    }

    /// The same with the server name that the TLS handshake asks for and the configuration's verifier is told.
    #[must_use]
    pub fn tls_with_name(address: Address, name: ServerName<'static>, mut config: rustls::ClientConfig) -> Self {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let connector = Connector::tls(address, name, config);
        Client::new(connector, Server::Tls(address), format!("https://{address}"))
    }

    /// The same client with requests that the daemon passes on to another member.
    #[must_use]
    pub fn target(&self, name: Name) -> Self {
        Client { target: Some(name), ..self.clone() }
    }

    /// The same client with requests marked as notifications: who gets one does not pass it on.
    #[must_use]
    pub fn notification(&self) -> Self {
        Client { notification: true, ..self.clone() }
    }

    /// The same client with another timeout for each call, [`TIMEOUT_DEFAULT`] at first.
    #[must_use]
    pub fn timeout(&self, timeout: Duration) -> Self {
        Client { timeout: Some(timeout), ..self.clone() }
    }

    /// The same client with another bound on the bytes of an answer, 64 MiB at first.
    #[must_use]
    pub fn response_limit(&self, bytes: usize) -> Self {
        Client { response_limit: bytes, ..self.clone() }
    }

    /// Where the daemon is.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.shared.server
    }

    /// Sends `body` as JSON to `path` (with its query, if any) and returns the metadata of the answer. A
    /// body of `()` is none.
    ///
    /// # Errors
    /// [`Error::Status`] when the daemon refuses; the others when there is no good answer.
    pub async fn query<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: impl Serialize,
    ) -> Result<T, Error> {
        let body = match serde_json::to_vec(&body) {
            Ok(json) if json == b"null" => Bytes::new(),
            Ok(json) => json.into(),
            Err(source) => {
                return Err(Error::Request { path: path.into(), source: source.into() });
            }
        };
        self.within_timeout(async {
            let response = self.send(method, path, body).await?;
            let (head, body) = response.into_parts();
            let body = self.read(body).await?;
            if !head.status.is_success() {
                return Err(refusal(head.status, &head.headers, &body));
            }
            self.metadata(path, &body)
        })
        .await
    }

    /// Sends `body` as it is to `path` (with its query, if any) and returns the answer as it comes,
    /// whatever its status. The timeout covers the time until the headers are there.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn query_raw(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Result<RawResponse, Error> {
        self.within_timeout(self.send(method, path, body.into())).await
    }

    /// Sends a request as it is, headers and all, to this daemon wherever it was for before, and returns the answer as it
    /// comes. The timeout covers the time until the headers are there.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn forward(&self, request: Request<Bytes>) -> Result<RawResponse, Error> {
        let (mut head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let uri = format!("{}{path}", self.shared.origin).parse();
        head.uri = uri.map_err(|e: http::uri::InvalidUri| Error::Request { path: path.into(), source: e.into() })?;
        head.version = http::Version::default();
        head.extensions.clear();
        head.headers.remove(HOST);
        if self.notification {
            head.headers.insert(USER_AGENT, HeaderValue::from_static(NOTIFICATION_USER_AGENT));
        }
        let request = Request::from_parts(head, Full::new(body));
        let sent = async { self.shared.http.request(request).await.map_err(|e| self.no_answer(e)) };
        self.within_timeout(sent).await
    }

    fn new(connector: Connector, server: Server, origin: String) -> Self {
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .http2_keep_alive_interval(SILENCE_CHECK)
            .http2_keep_alive_timeout(SILENCE_MAX)
            .http2_keep_alive_while_idle(true)
            .build(connector.clone());
        Client {
            shared: Arc::new(Shared {
                http,
                #[cfg(feature = "websocket")]
                connector,
                server,
                origin,
            }),
            target: None,
            notification: false,
            timeout: None,
            response_limit: RESPONSE_BYTES_MAX,
        }
    }

    async fn within_timeout<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let timeout = self.timeout.unwrap_or(TIMEOUT_DEFAULT);
        let late = |_| Error::Timeout { server: self.server().clone(), after: timeout };
        tokio::time::timeout(timeout, call).await.map_err(late)?
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<RawResponse, Error> {
        let uri = self.uri(path);
        let agent = if self.notification { NOTIFICATION_USER_AGENT } else { ORDINARY_USER_AGENT };
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .header(USER_AGENT, HeaderValue::from_static(agent))
            .header(ACCEPT, HeaderValue::from_static("application/json"));
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let request =
            request.body(Full::new(body)).map_err(|e| Error::Request { path: path.into(), source: e.into() })?;
        self.shared.http.request(request).await.map_err(|e| self.no_answer(e))
    }

    /// Where a path is, with the member that it is for.
    fn uri(&self, path: &str) -> String {
        let mut uri = format!("{}{path}", self.shared.origin);
        if let Some(target) = &self.target {
            uri.push(if path.contains('?') { '&' } else { '?' });
            uri.push_str("target=");
            uri.push_str(target.as_str());
        }
        uri
    }

    async fn read(&self, body: Incoming) -> Result<Bytes, Error> {
        let server = || self.server().clone();
        match Limited::new(body, self.response_limit).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(e) if e.is::<LengthLimitError>() => {
                Err(Error::TooLarge { server: server(), limit: self.response_limit })
            }
            Err(source) => Err(Error::Interrupted { server: server(), source }),
        }
    }

    fn metadata<T: DeserializeOwned>(&self, path: &str, body: &[u8]) -> Result<T, Error> {
        #[derive(Deserialize)]
        struct Success<T> {
            metadata: T,
        }
        // The Go daemon answers some requests with nothing at all.
        let body = if body.is_empty() { br#"{"metadata":{}}"# } else { body };
        let success = serde_json::from_slice::<Success<T>>(body).map_err(|source| Error::Body {
            server: self.server().clone(),
            path: path.into(),
            source,
        })?;
        Ok(success.metadata)
    }

    /// What it means that the HTTP library has no answer.
    fn no_answer(&self, error: legacy::Error) -> Error {
        let server = self.server().clone();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            if let Some(cause) = cause.downcast_ref::<ConnectError>() {
                return cause.to_error(server);
            }
            source = cause.source();
        }
        Error::Interrupted { server, source: error.into() }
    }
}

/// The daemon's refusal; a text of its own if the body is no envelope.
fn refusal(status: http::StatusCode, headers: &HeaderMap, body: &[u8]) -> Error {
    #[derive(Deserialize)]
    struct Failure {
        error: String,
    }
    let message = match serde_json::from_slice::<Failure>(body) {
        Ok(failure) if !failure.error.is_empty() => failure.error,
        _ => format!("the daemon answered {status}"),
    };
    let retry_after =
        headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok()).map(Duration::from_secs);
    Error::Status { code: status.as_u16(), message, retry_after }
}
