//! Requests as they go over the wire, whoever sends them and however they look.

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use microcluster_client::{Address, Identity, ServerTrust, client_config};
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::{DEADLINE, Daemon, stranger};

/// Who sends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Caller {
    /// Who may use the control socket.
    Socket,
    /// TLS with the certificate of a member.
    Member,
    /// TLS with the certificate of the cluster.
    Cluster,
    /// TLS with a certificate that nobody knows.
    Stranger,
    /// TLS without a certificate.
    Nobody,
}

/// The version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1
    Http1,
    /// HTTP/2
    Http2,
}

/// Where requests go, and as whom.
#[derive(Clone, Debug)]
pub struct Target {
    place: Place,
    protocol: Protocol,
}

#[derive(Clone, Debug)]
enum Place {
    Unix(PathBuf),
    Tls(Address, Arc<rustls::ClientConfig>),
}

/// The body of a request.
#[derive(Clone, Debug)]
pub struct Payload {
    bytes: Option<Bytes>,
    /// Whether its length is told before.
    sized: bool,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Target {
    /// A daemon as one caller reaches it, over HTTP/1.1.
    #[must_use]
    pub fn new(daemon: &Daemon, caller: Caller) -> Self {
        let identity = match caller {
            Caller::Socket => {
                return Target { place: Place::Unix(daemon.dir().join("control.socket")), protocol: Protocol::Http1 };
            }
            Caller::Member => Some(daemon.identity()),
            Caller::Cluster => Some(daemon.cluster_identity()),
            Caller::Stranger => Some(stranger(daemon.name().as_str())),
            Caller::Nobody => None,
        };
        Target::tls(daemon.address(), identity.as_ref(), &daemon.trust())
    }

    /// An address with TLS, over HTTP/1.1.
    #[must_use]
    pub fn tls(address: Address, identity: Option<&Identity>, trust: &ServerTrust) -> Self {
        let config = client_config(identity, trust).expect("a TLS configuration");
        Target { place: Place::Tls(address, Arc::new(config)), protocol: Protocol::Http1 }
    }

    /// The same over another version of HTTP.
    #[must_use]
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Sends a request, written as `GET /core/1.0`, over a connection of its own.
    pub async fn send(&self, request: &str, payload: Payload) -> Answer {
        self.send_with(request, payload, &[]).await
    }

    /// The same with headers.
    pub async fn send_with(&self, request: &str, payload: Payload, headers: &[(&str, &str)]) -> Answer {
        let exchange = async {
            match &self.place {
                Place::Unix(path) => {
                    let stream = UnixStream::connect(path).await.expect("the control socket");
                    self.exchange(stream, "http://localhost", request, payload, headers).await
                }
                Place::Tls(address, config) => {
                    let mut config = rustls::ClientConfig::clone(config);
                    let protocol: &[u8] = match self.protocol {
                        Protocol::Http1 => b"http/1.1",
                        Protocol::Http2 => b"h2",
                    };
                    config.alpn_protocols = vec![protocol.to_vec()];
                    let tcp = TcpStream::connect(address.socket_addr()).await.expect("the cluster address");
                    let name = ServerName::from(address.ip());
                    let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("TLS");
                    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol));
                    self.exchange(stream, &format!("https://{address}"), request, payload, headers).await
                }
            }
        };
        let answered = tokio::time::timeout(DEADLINE, exchange).await;
        answered.unwrap_or_else(|_| panic!("no answer to {request}"))
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        origin: &str,
        request: &str,
        payload: Payload,
        headers: &[(&str, &str)],
    ) -> Answer {
        let (method, path) = request.split_once(' ').expect("METHOD PATH");
        let uri = match self.protocol {
            Protocol::Http1 => path.to_owned(),
            Protocol::Http2 => format!("{origin}{path}"),
        };
        let mut builder = Request::builder().method(method).uri(uri);
        if self.protocol == Protocol::Http1 {
            builder = builder.header("host", "localhost");
        }
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        let message = builder.body(payload).expect("a request");
        let io = TokioIo::new(stream);
        let (response, connection) = match self.protocol {
            Protocol::Http1 => {
                let (mut sender, connection) = http1::handshake(io).await.expect("a connection");
                let connection = tokio::spawn(async move { drop(connection.await) });
                (sender.send_request(message).await, connection)
            }
            Protocol::Http2 => {
                let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.expect("a connection");
                let connection = tokio::spawn(async move { drop(connection.await) });
                (sender.send_request(message).await, connection)
            }
        };
        let (head, body) = response.unwrap_or_else(|e| panic!("no answer to {request}: {e:?}")).into_parts();
        let body = body.collect().await.unwrap_or_else(|e| panic!("{request}: {e:?}")).to_bytes();
        connection.abort();
        Answer { status: head.status.as_u16(), headers: head.headers, body }
    }
}

impl Payload {
    /// No body.
    #[must_use]
    pub fn none() -> Self {
        Payload { bytes: None, sized: true }
    }

    /// These bytes, their length told before.
    #[must_use]
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        Payload { bytes: Some(bytes.into()), sized: true }
    }

    /// These bytes, their length not told.
    #[must_use]
    pub fn chunked(bytes: impl Into<Bytes>) -> Self {
        Payload { bytes: Some(bytes.into()), sized: false }
    }

    /// A JSON text.
    #[must_use]
    pub fn json(value: &Value) -> Self {
        Payload::bytes(value.to_string())
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        /// A few at a time, as a client does that reads them from somewhere.
        const FRAME_BYTES_MAX: usize = 64 << 10;
        let Some(bytes) = self.bytes.as_mut().filter(|bytes| !bytes.is_empty()) else {
            return Poll::Ready(None);
        };
        let frame = bytes.split_to(bytes.len().min(FRAME_BYTES_MAX));
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.as_ref().is_none_or(Bytes::is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.bytes, self.sized) {
            (Some(_), false) => SizeHint::default(),
            (bytes, _) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
        }
    }
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {self:?}"))
    }

    /// The result of a success.
    ///
    /// # Panics
    /// When it is none, or its envelope is not as specified.
    #[must_use]
    pub fn metadata(&self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        let mut json = self.json();
        let metadata = json["metadata"].take();
        let envelope = serde_json::json!({
            "type": "sync", "status": "Success", "status_code": 200, "operation": "", "error_code": 0, "error": "",
            "metadata": null,
        });
        assert_eq!(json, envelope);
        metadata
    }

    /// The message of an error.
    ///
    /// # Panics
    /// When it has another status, or its envelope is not as specified.
    #[must_use]
    pub fn error(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        let mut json = self.json();
        let error = json["error"].take();
        let envelope = serde_json::json!({
            "type": "error", "status": "", "status_code": 0, "operation": "", "error_code": status, "error": null,
            "metadata": null,
        });
        assert_eq!(json, envelope);
        let message = error.as_str().expect("a text").to_owned();
        assert!(!message.is_empty(), "{self:?}");
        message
    }
}
