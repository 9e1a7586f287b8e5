//! Accept loops and connections: HTTP/1.1 and HTTP/2 over a socket or TLS, with limits on number and time.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use microcluster_client::Fingerprint;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::api::{Api, Connection, ListenerKind};
use crate::tasks::Tasks;

/// Connections of one listener at the same time. More wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the head of a request may take, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a request's head, and of what is read at a time.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Requests at the same time on one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;
/// How often an idle HTTP/2 connection is asked whether it is alive.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(20);
/// Pause after an accept failed: the process is out of files, and asking again at once would not help.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a connection speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
    /// Whatever the client begins with.
    Either,
}

pub(super) async fn unix_loop(listener: UnixListener, api: Api, tasks: Tasks) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Some(place) = next_place(&places, &tasks).await {
        let Some((stream, _)) = accept(listener.accept(), &tasks).await else {
            continue;
        };
        let peer = stream.peer_cred();
        let (api, own) = (api.clone(), tasks.clone());
        tasks.spawn("control connection", async move {
            match peer {
                Ok(peer) => tracing::debug!(uid = peer.uid(), pid = peer.pid(), "control connection opened"),
                Err(e) => {
                    tracing::debug!(error = %e, "control connection opened by somebody unknown")
                }
            }
            let connection = Connection { listener: ListenerKind::Unix, certificate: None };
            serve(stream, Protocol::Either, connection, api, &own).await;
            drop::<OwnedSemaphorePermit>(place);
        });
    }
}

pub(super) async fn tls_loop(listener: TcpListener, acceptor: TlsAcceptor, kind: ListenerKind, api: Api, tasks: Tasks) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Some(place) = next_place(&places, &tasks).await {
        let Some((tcp, peer)) = accept(listener.accept(), &tasks).await else {
            continue;
        };
        let (acceptor, api, own) = (acceptor.clone(), api.clone(), tasks.clone());
        tasks.spawn("TLS connection", async move {
            match handshake(acceptor, tcp, &own).await {
                Ok(stream) => {
                    let connection = Connection { listener: kind, certificate: certificate(&stream) };
                    let protocol = match stream.get_ref().1.alpn_protocol() {
                        Some(b"h2") => Protocol::Http2,
                        _ => Protocol::Http1,
                    };
                    serve(stream, protocol, connection, api, &own).await;
                }
                Err(e) => tracing::debug!(%peer, error = %e, "a TLS handshake failed"),
            }
            drop::<OwnedSemaphorePermit>(place);
        });
    }
}

/// A place for one more connection; none when the listener is closed.
async fn next_place(places: &Arc<Semaphore>, tasks: &Tasks) -> Option<OwnedSemaphorePermit> {
    tokio::select! {
        biased;
        () = tasks.stopping() => None,
        place = places.clone().acquire_owned() => place.ok(),
    }
}

/// The next connection; none when that failed or the listener is closed.
async fn accept<T>(accept: impl Future<Output = io::Result<T>>, tasks: &Tasks) -> Option<T> {
    tokio::select! {
        biased;
        () = tasks.stopping() => None,
        accepted = accept => match accepted {
            Ok(connection) => Some(connection),
            Err(e) => {
                tracing::warn!(error = %e, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                None
            }
        },
    }
}

async fn handshake(acceptor: TlsAcceptor, tcp: TcpStream, tasks: &Tasks) -> io::Result<TlsStream<TcpStream>> {
    tcp.set_nodelay(true)?;
    tokio::select! {
        () = tasks.stopping() => Err(io::ErrorKind::ConnectionAborted.into()),
        done = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)) => {
            done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        }
    }
}

/// The certificate that the client has proven to own in the handshake.
fn certificate(stream: &TlsStream<TcpStream>) -> Option<Fingerprint> {
    let chain = stream.get_ref().1.peer_certificates()?;
    chain.first().map(|certificate| Fingerprint::of_der(certificate))
}

/// Serves one connection until it ends; when the listener is closed the request that runs is finished.
async fn serve<S>(stream: S, protocol: Protocol, connection: Connection, api: Api, tasks: &Tasks)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = Arc::new(connection);
    let service = service_fn(move |request| {
        let (api, connection) = (api.clone(), connection.clone());
        async move { api.call(request, connection).await }
    });
    let mut builder = Builder::new(Spawn(tasks.clone()));
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
        .keep_alive_interval(HTTP2_PING_INTERVAL);
    let builder = match protocol {
        Protocol::Http1 => builder.http1_only(),
        Protocol::Http2 => builder.http2_only(),
        Protocol::Either => builder,
    };
    let mut serving = std::pin::pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = tasks.stopping() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(e) = ended {
        tracing::debug!(error = e, "a connection ended early");
    }
}

/// Spawns what HTTP/2 runs beside the connection as tasks of the listener.
#[derive(Clone)]
struct Spawn(Tasks);

impl<F> Executor<F> for Spawn
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn("HTTP/2 stream", future);
    }
}
