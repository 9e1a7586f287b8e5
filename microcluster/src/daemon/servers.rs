//! The additional servers of a product: opened, moved to other addresses and closed, each with the certificate that it
//! is to present.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use futures_util::future::join_all;
use microcluster_client::{Address, Name};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::Mutex;

use crate::api::{Api, ListenerKind};
use crate::cluster::Node;
use crate::error::Chain;
use crate::extension::Additional;
use crate::listener::{self, Listener};
use crate::looks;
use crate::state::State;
use crate::state_dir::FileError;
use crate::tasks::{TaskLost, Tasks, blocking};
use crate::tls::{self, Generate, KeyPair, KeyPairError, LoadError, SharedPair};

/// How often it is looked whether a key pair was put into `certificates/` or replaced there, and how soon an address that
/// could not be bound is tried again.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How much longer than it drains the closing of a server may take.
const CLOSE_MARGIN: Duration = Duration::from_secs(10);

/// The additional servers, open or not.
pub(super) struct Servers {
    described: Vec<Additional>,
    state: State,
    open: Mutex<Opened>,
    /// Close what was moved, while those that have used it end.
    moved: Tasks,
}

#[derive(Default)]
struct Opened {
    servers: BTreeMap<Name, Open>,
    /// The daemon stops: nothing is opened any more.
    is_over: bool,
}

/// A server that listens.
struct Open {
    address: Address,
    listener: Listener,
    /// The requests that go on without their clients, and its websockets.
    requests: Tasks,
    certificate: Arc<ServerCertificate>,
}

/// Why a server was not opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenServerError {
    #[error("the server {name} cannot listen on {address}")]
    Listen { name: Name, address: Address, source: io::Error },
    #[error("the certificate of the server {name} cannot be used")]
    Load { name: Name, source: LoadError },
    #[error("the certificate of the server {name} cannot be made")]
    Make { name: Name, source: KeyPairError },
    #[error("the certificate of the server {name} cannot be stored")]
    Store { name: Name, source: FileError },
    #[error("TLS cannot be set up for the server {name}")]
    Tls { name: Name, source: rustls::Error },
    #[error(transparent)]
    Lost(#[from] TaskLost),
}

/// The servers that were not opened, each with why.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.reasons().into_values().collect::<Vec<_>>().join("; "))]
pub(super) struct NotOpened(BTreeMap<Name, OpenServerError>);

impl NotOpened {
    /// Whether nothing is wrong but that somebody else has the addresses.
    pub fn is_taken(&self) -> bool {
        let in_use = |source: &io::Error| source.kind() == io::ErrorKind::AddrInUse;
        self.0.values().all(|e| matches!(e, OpenServerError::Listen { source, .. } if in_use(source)))
    }

    /// What to say of each of them.
    fn reasons(&self) -> BTreeMap<Name, String> {
        self.0.iter().map(|(name, e)| (name.clone(), Chain(e).to_string())).collect()
    }
}

impl Servers {
    pub fn new(described: Vec<Additional>, state: State) -> Servers {
        Servers { described, state, open: Mutex::default(), moved: Tasks::new("servers that have moved") }
    }

    /// Opens those that are open before bootstrap and join, where the product wants them: none has been moved before.
    pub async fn open_pre_init(&self) -> Result<(), NotOpened> {
        let pre_init = self.described.iter().filter(|server| server.pre_init);
        self.open_at(pre_init.map(|server| (server, server.address)).collect()).await
    }

    /// Opens all of them, where the product wants them or an operator has put them.
    pub async fn open_all(&self, moved: &BTreeMap<Name, Address>) -> Result<(), NotOpened> {
        let address = |server: &Additional| moved.get(&server.name).copied().unwrap_or(server.address);
        self.open_at(self.described.iter().map(|server| (server, address(server))).collect()).await
    }

    /// Has these servers listen there, and says which cannot.
    async fn open_at(&self, wanted: Vec<(&Additional, Address)>) -> Result<(), NotOpened> {
        let mut open = self.open.lock().await;
        let mut failed = BTreeMap::new();
        // Who is in the way of another one goes first.
        let mut closing = Vec::new();
        for (server, address) in &wanted {
            let is_moving = open.servers.get(&server.name).is_some_and(|present| present.address != *address);
            let present = open.servers.get(&server.name).map(|present| present.address);
            // Of another one, or of itself: an address that includes the one it has cannot be had beside it.
            let is_in_the_way = wanted.iter().any(|(_, to)| present.is_some_and(|present| present.overlaps(*to)));
            if is_moving && is_in_the_way {
                let before = open.servers.remove_entry(&server.name);
                closing.extend(before);
            }
        }
        join_all(closing.drain(..).map(|(name, server)| self.close(name, server))).await;
        for (server, address) in wanted {
            match self.ensure(&mut open, server, address).await {
                Ok(before) => closing.extend(before.map(|before| (server.name.clone(), before))),
                Err(e) => drop(failed.insert(server.name.clone(), e)),
            }
        }
        drop(open);
        // Beside this: who has moved a server does not wait for those who still use it where it was.
        for (name, server) in closing {
            self.moved.spawn("server that has moved", self.close(name, server));
        }
        if failed.is_empty() { Ok(()) } else { Err(NotOpened(failed)) }
    }

    /// Closes those that are for members alone: this daemon is none any more.
    pub async fn close_members(&self) {
        let is_kept = |name: &Name| self.described.iter().any(|server| server.pre_init && server.name == *name);
        let mut open = self.open.lock().await;
        let closing: Vec<Name> = open.servers.keys().filter(|name| !is_kept(name)).cloned().collect();
        let closing: Vec<_> = closing.into_iter().filter_map(|name| open.servers.remove_entry(&name)).collect();
        drop(open);
        join_all(closing.into_iter().map(|(name, server)| self.close(name, server))).await;
    }

    /// Closes all of them for good.
    pub async fn stop(&self) {
        let servers = {
            let mut open = self.open.lock().await;
            open.is_over = true;
            std::mem::take(&mut open.servers)
        };
        let closing = join_all(servers.into_iter().map(|(name, server)| self.close(name, server)));
        // As long as the one that may take longest.
        let own = self.state.settings().drain_timeout;
        let longest = self.described.iter().filter_map(|server| server.drain_timeout).fold(own, Duration::max);
        tokio::join!(closing, self.moved.shutdown(longest.saturating_add(CLOSE_MARGIN)));
    }

    /// Reads the certificates of the servers again. One that cannot be used is left aside: the one in use goes on.
    pub async fn reload_certificates(&self) {
        for (name, server) in &self.open.lock().await.servers {
            let (dir, own) = (self.state.dir().clone(), name.clone());
            match blocking("server certificate", move || tls::load(&dir, own.as_str())).await {
                Ok(Ok(pair)) => server.certificate.set(name, pair),
                Ok(Err(e)) => server.certificate.complain(name, Chain(&e).to_string()),
                Err(lost) => tracing::error!(error = %lost, "a certificate was not read again"),
            }
        }
    }

    /// Has a server listen on an address; where it has listened before is to be closed.
    async fn ensure(
        &self,
        open: &mut Opened,
        server: &Additional,
        address: Address,
    ) -> Result<Option<Open>, OpenServerError> {
        let name = &server.name;
        if open.is_over || open.servers.get(name).is_some_and(|present| present.address == address) {
            return Ok(None);
        }
        let listen = |source| OpenServerError::Listen { name: name.clone(), address, source };
        let tcp = listener::bind(address.socket_addr()).await.map_err(listen)?;
        let certificate = match open.servers.get(name) {
            Some(present) => Arc::clone(&present.certificate),
            None => Arc::new(self.certificate(server, address).await?),
        };
        let config = tls::server_config(Resolver(Arc::clone(&certificate)))
            .map_err(|source| OpenServerError::Tls { name: name.clone(), source })?;
        let requests = Tasks::new("requests of a server");
        let api = Api::of(server.routes.iter().cloned(), &self.state, &requests);
        let listener = Listener::tls(tcp, config, ListenerKind::Additional, api);
        tracing::info!(server = %name, %address, "a server is open");
        Ok(open.servers.insert(name.clone(), Open { address, listener, requests, certificate }))
    }

    /// What a server presents.
    async fn certificate(&self, server: &Additional, address: Address) -> Result<ServerCertificate, OpenServerError> {
        let (dir, name, dedicated) = (self.state.dir().clone(), server.name.clone(), server.dedicated);
        let own = blocking("server certificate", move || -> Result<Option<KeyPair>, OpenServerError> {
            let found = tls::load(&dir, name.as_str());
            let found = found.map_err(|source| OpenServerError::Load { name: name.clone(), source })?;
            if found.is_some() || !dedicated {
                return Ok(found);
            }
            let pair = KeyPair::generate(&Generate { name: name.as_str(), addresses: &[address.ip()] });
            let pair = pair.map_err(|source| OpenServerError::Make { name: name.clone(), source })?;
            tls::install(&dir, name.as_str(), &SharedPair::own(pair.clone()), false)
                .map_err(|source| OpenServerError::Store { name, source })?;
            Ok(Some(pair))
        })
        .await??;
        let (state, complaint) = (self.state.clone(), RwLock::default());
        Ok(ServerCertificate { state, dedicated, own: RwLock::new(own), complaint })
    }

    fn close(&self, name: Name, server: Open) -> impl Future<Output = ()> + Send + use<> {
        let described = self.described.iter().find(|described| described.name == name);
        let drain = described.and_then(|described| described.drain_timeout);
        let drain = drain.unwrap_or(self.state.settings().drain_timeout);
        async move {
            tokio::join!(server.listener.close(drain), server.requests.shutdown(drain));
            tracing::info!(server = %name, address = %server.address, "a server is closed");
        }
    }
}

/// Has the servers that are open, those before bootstrap and join too, present the certificates that are in place, until the daemon
/// stops.
pub(super) async fn keep_certificates(servers: Arc<Servers>) {
    if servers.described.is_empty() {
        return;
    }
    loop {
        tokio::select! {
            () = servers.state.stopping().cancelled() => return,
            () = looks::due(LOOK_INTERVAL) => servers.reload_certificates().await,
        }
    }
}

/// Keeps the servers of a member where its configuration says, until the tasks are stopped.
pub(super) async fn keep_servers(servers: Arc<Servers>, node: Arc<Node>, tasks: Tasks) {
    let mut config = node.config.watch();
    loop {
        let wanted = config.borrow_and_update().servers.clone();
        let moved = wanted.iter().map(|(name, server)| (name.clone(), server.address)).collect();
        let failed = servers.open_all(&moved).await.map_or_else(|e| e.reasons(), |()| BTreeMap::new());
        for (server, error) in &failed {
            tracing::error!(%server, error, "a server is not open; trying again");
        }
        node.config.servers_opened(wanted, failed);
        tokio::select! {
            () = tasks.stopping() => return,
            changed = config.changed() => if changed.is_err() { return },
            () = looks::due(LOOK_INTERVAL) => {}
        }
    }
}

/// The certificate of a server: its own, or that of the cluster, or that of the daemon.
struct ServerCertificate {
    state: State,
    /// It has one of its own in any case.
    dedicated: bool,
    own: RwLock<Option<KeyPair>>,
    /// What is wrong with the files, once it was said.
    complaint: RwLock<String>,
}

impl ServerCertificate {
    fn set(&self, name: &Name, pair: Option<KeyPair>) {
        if self.dedicated && pair.is_none() {
            let path = self.state.dir().key_pair(name.as_str()).certificate;
            return self.complain(name, format!("{} and its key are gone", path.display()));
        }
        // Nothing that holds the locks can panic, so a poisoned value is a whole one.
        let mut own = self.own.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        let fingerprint = |pair: &Option<KeyPair>| pair.as_ref().map(KeyPair::fingerprint);
        if fingerprint(&own) != fingerprint(&pair) {
            tracing::info!(server = %name, own = pair.is_some(), "a server presents another certificate");
            *own = pair;
        }
        self.complaint.write().unwrap_or_else(|poisoned| poisoned.into_inner()).clear();
    }

    /// Says what is wrong, once.
    fn complain(&self, name: &Name, text: String) {
        let mut said = self.complaint.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if *said != text {
            tracing::error!(server = %name, error = text, "a certificate cannot be used; the one in use is kept");
            *said = text;
        }
    }

    fn current(&self) -> KeyPair {
        let own = self.own.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        own.unwrap_or_else(|| match self.state.joined_node() {
            Ok(node) => node.cluster_certificate.current(),
            Err(_) => self.state.server_certificate().current(),
        })
    }
}

#[derive(Clone)]
struct Resolver(Arc<ServerCertificate>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().certified())
    }
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resolver")
    }
}
