//! Connections to the other members: pooled HTTP clients, and the streams that Raft runs on.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use http::header::{CONNECTION, HOST, UPGRADE};
use http::{Method, Request, StatusCode};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use microcluster_client::{
    Address, Client, Error, Fingerprint, Identity, ServerTrust, TlsError, client_config_with_verifier,
};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::member_verifier::MemberVerifier;
use crate::db::{NotTrusted, PROTOCOL, PeerConnector, PeerStream};
use crate::tls::MEMBER_SERVER_NAME;
use crate::trust::Trust;

/// Where they are opened.
const RAFT_PATH: &str = "/core/internal/database";
/// How long opening one may take, TLS and the upgrade included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Opens connections to other members as this member. Clones share their connections.
#[derive(Clone, Debug)]
pub(crate) struct Peers(Arc<Mutex<Shared>>);

#[derive(Debug)]
struct Shared {
    identity: Identity,
    /// By this name a member shows its own certificate.
    name: ServerName<'static>,
    config: rustls::ClientConfig,
    clients: HashMap<Address, Client>,
}

impl Peers {
    /// Shows `identity` and accepts servers with the certificate of a trusted member.
    pub fn new(identity: &Identity, trust: Trust) -> Result<Peers, TlsError> {
        let config = client_config_with_verifier(Some(identity), Arc::new(MemberVerifier::new(trust)))?;
        let name =
            ServerName::try_from(MEMBER_SERVER_NAME).map_err(|_| TlsError::Name { name: MEMBER_SERVER_NAME.into() })?;
        let identity = identity.clone();
        Ok(Peers(Arc::new(Mutex::new(Shared { identity, name, config, clients: HashMap::new() }))))
    }

    /// A client of the member at that address.
    pub fn client(&self, address: Address) -> Client {
        let mut shared = self.lock();
        if let Some(client) = shared.clients.get(&address) {
            return client.clone();
        }
        let client = Client::tls_with_name(address, shared.name.clone(), shared.config.clone());
        shared.clients.insert(address, client.clone());
        client
    }

    /// A client of whoever has the cluster's certificate at that address.
    pub fn pinned_client(&self, address: Address, cluster: Fingerprint) -> Result<Client, Error> {
        let identity = self.lock().identity.clone();
        Client::tls(address, Some(&identity), &ServerTrust::Pinned(cluster))
    }

    /// A connection of its own to the member at that address, for HTTP/1.1.
    pub async fn stream(&self, address: Address) -> io::Result<TlsStream<TcpStream>> {
        let (mut config, name) = {
            let shared = self.lock();
            (shared.config.clone(), shared.name.clone())
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let opened = async {
            let tcp = TcpStream::connect(address.socket_addr()).await?;
            tcp.set_nodelay(true)?;
            TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(readable)
        };
        in_time(&address.to_string(), opened).await
    }

    /// Closes what is kept open to members that are not any more.
    pub fn retain(&self, keep: impl Fn(Address) -> bool) {
        self.lock().clients.retain(|address, _| keep(*address));
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Nothing that holds the lock can panic, so a poisoned value is a whole one.
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl PeerConnector for Peers {
    fn connect(&self, address: String) -> Pin<Box<dyn Future<Output = io::Result<PeerStream>> + Send>> {
        let peers = self.clone();
        Box::pin(async move {
            let opened = async {
                let parsed: Address = address.parse().map_err(|e| invalid(&e))?;
                upgrade(peers.stream(parsed).await?, &address).await
            };
            in_time(&address, opened).await
        })
    }
}

async fn in_time<T>(address: &str, opened: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("{address} does not answer"));
    tokio::time::timeout(CONNECT_TIMEOUT, opened).await.map_err(late)?
}

fn invalid(e: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, e.to_string())
}

/// The reason in words where the certificate was the wrong one: the TLS library shows it as a structure.
fn readable(error: io::Error) -> io::Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(reason))) => {
            io::Error::new(error.kind(), NotTrusted { reason: reason.to_string() })
        }
        _ => error,
    }
}

/// The upgrade, then the raw stream.
async fn upgrade(tls: TlsStream<TcpStream>, address: &str) -> io::Result<PeerStream> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(RAFT_PATH)
        .header(HOST, address)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, PROTOCOL)
        .body(Empty::<Bytes>::new())
        .map_err(|e| invalid(&e))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.map_err(io::Error::other)?;
    let mut connection = Box::pin(connection.with_upgrades());
    let mut answer = Box::pin(sender.send_request(request));
    // The connection is done with the upgrade that it has read: the answer is there then.
    let (response, is_done) = tokio::select! {
        biased;
        response = &mut answer => (response, false),
        ended = &mut connection => {
            ended.map_err(io::Error::other)?;
            (answer.await, true)
        }
    };
    let response = response.map_err(io::Error::other)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let reason = format!("{address} answered {} to the upgrade", response.status());
        return Err(match response.status() {
            StatusCode::FORBIDDEN => io::Error::new(io::ErrorKind::PermissionDenied, NotTrusted { reason }),
            _ => io::Error::new(io::ErrorKind::ConnectionRefused, reason),
        });
    }
    let upgrade = hyper::upgrade::on(response);
    let upgraded = if is_done {
        upgrade.await
    } else {
        let (upgraded, ended) = tokio::join!(upgrade, connection);
        ended.and(upgraded)
    };
    Ok(Box::new(TokioIo::new(upgraded.map_err(io::Error::other)?)))
}
