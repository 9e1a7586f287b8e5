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
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::busy_poll::BusyPoll;
use super::limits::Limits;
use super::patience::Patience;
use super::places::{Handshake, Handshakes, Places};
use super::running::Running;
use crate::api::{Api, Connection, ListenerKind, Peer};
use crate::tasks::Tasks;

/// Bytes of a request's head, and of what is read at a time.
const HEAD_BYTES_MAX: usize = 64 << 10;
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

pub(super) async fn unix_loop(listener: UnixListener, limits: Limits, api: Api, tasks: Tasks) {
    let places = Places::new(&limits);
    let busy_poll = BusyPoll::default();
    let (looking, own) = (busy_poll.clone().run(), tasks.clone());
    tasks.spawn("busy polling", async move {
        tokio::select! {
            () = own.stopping() => {}
            () = looking => {}
        }
    });
    while let Some(place) = next_place(&places, &tasks).await {
        let Some((stream, _)) = accept(listener.accept(), &tasks).await else {
            continue;
        };
        let peer = match stream.peer_cred() {
            Ok(peer) => Peer::Process { user: peer.uid(), process: peer.pid() },
            Err(e) => {
                tracing::debug!(error = %e, "the system does not say who is at the other end of the control socket");
                Peer::Unknown
            }
        };
        let (api, own, running) = (api.clone(), tasks.clone(), Running::polled(busy_poll.clone()));
        tasks.spawn("control connection", async move {
            tracing::debug!(%peer, "control connection opened");
            let connection =
                Connection { listener: ListenerKind::Unix, certificate: None, peer, body_timeout: limits.body };
            serve(Box::new(stream), Protocol::Either, connection, Manners::of_known(&limits), running, api, &own).await;
            drop::<OwnedSemaphorePermit>(place);
        });
    }
}

pub(super) async fn tls_loop(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    kind: ListenerKind,
    limits: Limits,
    api: Api,
    tasks: Tasks,
) {
    let (places, handshakes) = (Arc::new(Places::new(&limits)), Handshakes::new(&limits));
    while !tasks.is_stopping() {
        let Some((tcp, address)) = accept(listener.accept(), &tasks).await else {
            continue;
        };
        let (acceptor, api, own, places) = (acceptor.clone(), api.clone(), tasks.clone(), places.clone());
        let running = handshakes.begin();
        tasks.spawn("TLS connection", async move {
            let stream = match handshake(acceptor, tcp, &running, &limits, &own).await {
                Ok(stream) => stream,
                Err(e) => return tracing::debug!(peer = %address, error = %e, "a TLS handshake failed"),
            };
            drop(running);
            let certificate = certificate(&stream);
            // The servers of a product are for everybody; here members come in, and they must get through.
            let is_stranger = matches!(kind, ListenerKind::Tls | ListenerKind::PreInit)
                && !certificate.is_some_and(|certificate| api.is_member(&certificate));
            let Some(place) = places.take(is_stranger) else {
                return tracing::debug!(peer = %address, is_stranger, "a connection was refused: there are too many");
            };
            let peer = Peer::Network(address);
            let connection = Connection { listener: kind, certificate, peer, body_timeout: limits.body };
            let protocol = match stream.get_ref().1.alpn_protocol() {
                Some(b"h2") => Protocol::Http2,
                _ => Protocol::Http1,
            };
            let manners = if is_stranger { Manners::of_strangers(&limits) } else { Manners::of_known(&limits) };
            #[cfg(feature = "test-util")]
            let stream = {
                let listening = stream.get_ref().0.local_addr().ok();
                super::partition::Divisible::new(stream, certificate, listening)
            };
            serve(Box::new(stream), protocol, connection, manners, Running::default(), api, &own).await;
            drop::<OwnedSemaphorePermit>(place);
        });
    }
}

/// A place for one more connection; none when the listener is closed.
async fn next_place(places: &Places, tasks: &Tasks) -> Option<OwnedSemaphorePermit> {
    tokio::select! {
        biased;
        () = tasks.stopping() => None,
        place = places.wait() => place,
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

async fn handshake(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    running: &Handshake,
    limits: &Limits,
    tasks: &Tasks,
) -> io::Result<TlsStream<TcpStream>> {
    tcp.set_nodelay(true)?;
    tokio::select! {
        () = tasks.stopping() => Err(io::ErrorKind::ConnectionAborted.into()),
        () = running.crowded_out() => Err(io::Error::other("newer connections need the place")),
        done = tokio::time::timeout(limits.handshake, acceptor.accept(tcp)) => {
            done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        }
    }
}

/// The certificate that the client has proven to own in the handshake.
fn certificate(stream: &TlsStream<TcpStream>) -> Option<Fingerprint> {
    let chain = stream.get_ref().1.peer_certificates()?;
    chain.first().map(|certificate| Fingerprint::of_der(certificate))
}

/// What is expected of one client.
struct Manners {
    head: Duration,
    stall: Duration,
    streams: u32,
    /// After that time there are no more requests.
    age: Option<Duration>,
}

impl Manners {
    fn of_known(limits: &Limits) -> Manners {
        Manners { head: limits.head, stall: limits.stall, streams: limits.streams, age: None }
    }

    fn of_strangers(limits: &Limits) -> Manners {
        Manners {
            head: limits.stranger_head,
            stall: limits.stall,
            streams: limits.stranger_streams,
            age: Some(limits.stranger_age),
        }
    }
}

/// The two directions of a connection. Behind a pointer, so that a program has HTTP once and not for each kind of connection.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Serves one connection until it ends; when the listener is closed the request that runs is finished.
async fn serve(
    stream: Box<dyn Stream>,
    protocol: Protocol,
    connection: Connection,
    manners: Manners,
    running: Running,
    api: Api,
    tasks: &Tasks,
) {
    let connection = Arc::new(connection);
    let peer = connection.peer;
    let counting = running.clone();
    let service = service_fn(move |request| {
        let (api, connection, counted) = (api.clone(), connection.clone(), counting.begin());
        async move { api.call(request, connection).await.map(|response| counted.answered(response)) }
    });
    let mut builder = Builder::new(Spawn(tasks.clone()));
    builder.http1().timer(TokioTimer::new()).header_read_timeout(manners.head).max_buf_size(HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(manners.streams)
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
        .keep_alive_interval(HTTP2_PING_INTERVAL);
    let builder = match protocol {
        Protocol::Http1 => builder.http1_only(),
        Protocol::Http2 => builder.http2_only(),
        Protocol::Either => builder,
    };
    let stream = TokioIo::new(Patience::new(stream, manners.head, manners.stall, running.clone()));
    let mut serving = std::pin::pin!(builder.serve_connection_with_upgrades(stream, service));
    let too_old = async {
        match manners.age {
            Some(age) => tokio::time::sleep(age).await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = async { tokio::select! { () = tasks.stopping() => {} () = too_old => {} } } => {
            serving.as_mut().graceful_shutdown();
            match manners.age {
                None => tokio::select! {
                    ended = serving => ended,
                    () = running.stands_still() => Ok(()),
                },
                // One that does not take its answers does not keep its place with that.
                Some(_) => tokio::time::timeout(manners.stall, serving).await.unwrap_or(Ok(())),
            }
        }
    };
    if let Err(e) = ended {
        tracing::debug!(%peer, error = e, "a connection ended early");
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
