//! Clients without manners, over real sockets: each bound of a listener, with short times.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use microcluster_client::{ServerTrust, client_config};
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Limits, Listener, bind};
use crate::api::{Api, ListenerKind};
use crate::state::State;
use crate::tasks::Tasks;
use crate::tls::{CertificateCell, Generate, KeyPair, server_config};

/// Far above what anything here takes.
const DEADLINE: Duration = Duration::from_secs(30);
/// What a bound is set to that is to be reached.
const SHORT: Duration = Duration::from_millis(200);
const REQUEST: &[u8] = b"GET /core/1.0 HTTP/1.1\r\nhost: x\r\n\r\n";

/// The API of a daemon that is not initialised, and what it needs.
struct Server {
    state: State,
    pair: KeyPair,
    requests: Tasks,
    dir: TempDir,
}

impl Server {
    fn new() -> Server {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let pair = KeyPair::generate(&Generate { name: "c1", addresses: &[] }).unwrap();
        let state = State::uninitialised(&path, pair.clone());
        Server { state, pair, requests: Tasks::new("test"), dir }
    }

    fn unix(&self, limits: Limits) -> (Listener, PathBuf) {
        let path = self.dir.path().join("socket");
        let api = Api::core(ListenerKind::Unix, &[], &self.state, &self.requests);
        (Listener::unix_within(limits, path.clone(), None, api).unwrap(), path)
    }

    async fn tls(&self, kind: ListenerKind, limits: Limits) -> (Listener, SocketAddr) {
        let tcp = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = tcp.local_addr().unwrap();
        let config = server_config(CertificateCell::new(self.pair.clone())).unwrap();
        let api = Api::core(kind, &[], &self.state, &self.requests);
        (Listener::tls_within(limits, tcp, config, kind, api), address)
    }

    async fn connect(&self, address: SocketAddr) -> TlsStream<TcpStream> {
        let mut config = client_config(None, &ServerTrust::Pinned(self.pair.fingerprint())).unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tcp = TcpStream::connect(address).await.unwrap();
        let name = ServerName::from(address.ip());
        within(TlsConnector::from(Arc::new(config)).connect(name, tcp)).await.unwrap()
    }
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.expect("not within the deadline")
}

/// Everything that comes until the other side hangs up.
async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    // It may end with a reset, or without a good-bye.
    let _ = within(stream.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Sends a request and reads its answer, on a connection that stays open.
async fn answered(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> String {
    stream.write_all(REQUEST).await.unwrap();
    let mut bytes = vec![0; 4096];
    let mut text = String::new();
    while !text.ends_with("}}") {
        let count = within(stream.read(&mut bytes)).await.unwrap();
        assert_ne!(count, 0, "the connection ended after {text}");
        text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
    text
}

#[tokio::test]
async fn a_head_that_does_not_come_ends_the_connection() {
    let server = Server::new();
    let (listener, path) = server.unix(Limits { head: SHORT, ..Limits::default() });
    for begun in [&b""[..], b"GET /core/1.0 HT", b"GET /core/1.0 HTTP/1.1\r\nhost: x\r\n"] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(begun).await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(!answer.contains(" 200 "), "{answer}");
    }
    listener.close(DEADLINE).await;
}

#[tokio::test]
async fn an_idle_connection_is_ended_and_a_busy_one_is_not() {
    let server = Server::new();
    let (listener, path) = server.unix(Limits { head: SHORT, ..Limits::default() });
    let mut stream = UnixStream::connect(&path).await.unwrap();
    for _ in 0..20 {
        assert!(answered(&mut stream).await.starts_with("HTTP/1.1 200"));
    }
    assert_eq!(rest(&mut stream).await, "");
    listener.close(DEADLINE).await;
}

#[tokio::test]
async fn a_body_that_does_not_come_is_refused() {
    let server = Server::new();
    let (listener, path) = server.unix(Limits { body: SHORT, ..Limits::default() });
    let mut stream = UnixStream::connect(&path).await.unwrap();
    let head = b"POST /core/control HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 100\r\n\r\n{\"name\":";
    stream.write_all(head).await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("200ms"), "{answer}");
    listener.close(DEADLINE).await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let server = Server::new();
    let (listener, path) = server.unix(Limits::default());
    let many: String = (0..200).map(|number| format!("x-{number}: y\r\n")).collect();
    let long = format!("x: {}\r\n", "y".repeat(100 << 10));
    for headers in [many, long] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        // It may be refused before all of it is sent.
        let _ = stream.write_all(format!("GET / HTTP/1.1\r\nhost: x\r\n{headers}\r\n").as_bytes()).await;
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 431") || answer.is_empty(), "{answer}");
    }
    let mut stream = UnixStream::connect(&path).await.unwrap();
    assert!(answered(&mut stream).await.starts_with("HTTP/1.1 200"), "others are served");
    drop(stream);
    listener.close(DEADLINE).await;
}

#[tokio::test]
async fn a_handshake_that_does_not_go_on_is_ended() {
    let server = Server::new();
    let limits = Limits { handshake: SHORT, ..Limits::default() };
    let (listener, address) = server.tls(ListenerKind::Tls, limits).await;
    // The first bytes of a handshake, and none at all.
    for begun in [&b""[..], &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(begun).await.unwrap();
        assert_eq!(rest(&mut stream).await, "");
    }
    listener.close(DEADLINE).await;
}

#[tokio::test]
async fn handshakes_that_do_not_go_on_keep_nobody_out() {
    let server = Server::new();
    let limits = Limits { handshakes: 4, handshake: DEADLINE * 10, ..Limits::default() };
    let (listener, address) = server.tls(ListenerKind::Tls, limits).await;
    let mut stalled = Vec::new();
    for _ in 0..12 {
        stalled.push(TcpStream::connect(address).await.unwrap());
    }
    let mut stream = server.connect(address).await;
    assert!(answered(&mut stream).await.starts_with("HTTP/1.1 200"));
    for stream in &mut stalled[..8] {
        assert_eq!(rest(stream).await, "", "the oldest made room");
    }
    drop((stream, stalled));
    listener.close(DEADLINE).await;
}

#[tokio::test]
async fn strangers_are_few_where_members_come_in() {
    let server = Server::new();
    let limits = Limits { strangers: 2, ..Limits::default() };
    for kind in [ListenerKind::Tls, ListenerKind::PreInit] {
        let (listener, address) = server.tls(kind, limits).await;
        let (mut first, mut second) = (server.connect(address).await, server.connect(address).await);
        for stream in [&mut first, &mut second] {
            assert!(answered(stream).await.starts_with("HTTP/1.1 200"));
        }
        let mut third = server.connect(address).await;
        let _ = third.write_all(REQUEST).await;
        assert_eq!(rest(&mut third).await, "", "there is no place for a third one");
        drop(first);
        // The place is free as soon as the server has seen that it was left.
        within(async {
            loop {
                let mut next = server.connect(address).await;
                let _ = next.write_all(REQUEST).await;
                let mut byte = [0];
                if next.read(&mut byte).await.is_ok_and(|count| count == 1) {
                    break;
                }
            }
        })
        .await;
        listener.close(Duration::ZERO).await;
    }
}

/// The server of a product is for everybody.
#[tokio::test]
async fn an_additional_server_knows_no_strangers() {
    let server = Server::new();
    let (listener, address) = server.tls(ListenerKind::Additional, Limits { strangers: 0, ..Limits::default() }).await;
    let mut stream = server.connect(address).await;
    stream.write_all(REQUEST).await.unwrap();
    let mut bytes = [0; 12];
    within(stream.read_exact(&mut bytes)).await.unwrap();
    assert!(bytes.starts_with(b"HTTP/1.1 "));
    drop(stream);
    listener.close(DEADLINE).await;
}

#[tokio::test]
async fn the_connection_of_a_stranger_grows_old() {
    let server = Server::new();
    let limits = Limits { stranger_age: SHORT, stranger_head: DEADLINE * 10, ..Limits::default() };
    let (listener, address) = server.tls(ListenerKind::Tls, limits).await;
    let mut stream = server.connect(address).await;
    assert!(answered(&mut stream).await.starts_with("HTTP/1.1 200"));
    assert_eq!(rest(&mut stream).await, "");
    listener.close(DEADLINE).await;
}

/// A client that speaks TLS 1.2 at most is told that this is too old.
#[tokio::test]
async fn tls_1_2_is_refused() {
    let server = Server::new();
    let (listener, address) = server.tls(ListenerKind::Tls, Limits::default()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&hello_of_tls_1_2()).await.unwrap();
    let mut answer = [0; 7];
    within(stream.read_exact(&mut answer)).await.unwrap();
    // An alert, fatal, protocol_version.
    assert_eq!((answer[0], answer[5], answer[6]), (21, 2, 70), "{answer:?}");
    drop(stream);
    listener.close(DEADLINE).await;
}

/// The first message of a client that knows no later version: RFC 5246, 7.4.1.2.
fn hello_of_tls_1_2() -> Vec<u8> {
    let mut extensions = Vec::new();
    // Groups x25519 and P-256, uncompressed points, ECDSA and RSA with SHA-256.
    extensions.extend([0, 10, 0, 6, 0, 4, 0, 29, 0, 23]);
    extensions.extend([0, 11, 0, 2, 1, 0]);
    extensions.extend([0, 13, 0, 8, 0, 6, 4, 3, 8, 4, 4, 1]);
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    // No session; ECDHE with AES-GCM; no compression.
    body.extend([0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2f, 1, 0]);
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let mut message = vec![1, 0];
    message.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    message.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
    record.extend(message);
    record
}

/// Over HTTP/2 a connection has so many requests at a time; more are refused, and those that run go on.
#[tokio::test]
async fn streams_beyond_the_bound_are_refused() {
    const STREAMS: u32 = 4;
    let server = Server::new();
    let (listener, path) = server.unix(Limits { streams: STREAMS, ..Limits::default() });
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&frame(4, 0, 0, &[])).await.unwrap();
    // POST /core/control, whose bodies never come.
    let headers = [&[0x83, 0x86, 0x41, 1, b'x', 0x44, 13][..], b"/core/control"].concat();
    for number in 0..=STREAMS {
        stream.write_all(&frame(1, 4, 2 * number + 1, &headers)).await.unwrap();
    }
    let (mut told, mut refused) = (None, None);
    while refused.is_none() {
        let mut head = [0; 9];
        within(stream.read_exact(&mut head)).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        within(stream.read_exact(&mut payload)).await.unwrap();
        let number = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        match head[3] {
            // SETTINGS: the bound is told.
            4 if head[4] == 0 => {
                let settings = payload.chunks_exact(6).find(|setting| setting[..2] == [0, 3]);
                told = settings.map(|setting| u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]));
            }
            // RST_STREAM.
            3 => refused = Some((number, payload)),
            7 => panic!("the connection is ended: {payload:?}"),
            _ => {}
        }
    }
    assert_eq!(told, Some(STREAMS));
    // REFUSED_STREAM: nothing of it was done.
    assert_eq!(refused, Some((2 * STREAMS + 1, vec![0, 0, 0, 7])));
    drop(stream);
    listener.close(DEADLINE).await;
}

/// A frame of HTTP/2: RFC 9113, 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}
