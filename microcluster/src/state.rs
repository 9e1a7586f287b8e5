//! What handlers and hooks see of the daemon: its settings, what it is at the moment, and how to ask for a change of that.

mod connect;
mod shared_values;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use microcluster_client::{Address, InitConfig, Name, ServerStatus, TlsError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use crate::cluster::{ConfigError, HookError, Node, WaitsForUpgrade};
use crate::config::Settings;
use crate::db::{self, Database};
use crate::error::Error;
use crate::state_dir::{FileError, StateDir};
use crate::tasks::TaskLost;
use crate::tls::{CertificateCell, DateError, KeyPairError, SharedPair};
use crate::token::{JoinToken, TokenError};

pub use connect::{Connect, MemberClient};
pub(crate) use shared_values::SharedValues;

/// The daemon as handlers and hooks see it: an extractor for handlers, the first argument of every hook, and for tests
/// [`Handle::state`](crate::Handle::state). Cheap to clone.
///
/// ```
/// use microcluster::{Json, Result, State};
///
/// async fn hosts_count(state: State) -> Result<Json<i64>> {
///     let sql = "SELECT count(*) FROM hosts";
///     let count = state.database()?.query_row(microcluster::db::Consistency::Local, sql, (), |row| row.get(0)).await?;
///     println!("{:?} runs {} in {}", state.name(), state.version(), state.state_dir().display());
///     Ok(Json(count.unwrap_or_default()))
/// }
/// ```
#[derive(Clone)]
pub struct State(Arc<Shared>, Option<Arc<HookCall>>);

/// What is different for a hook that runs.
struct HookCall {
    /// This daemon as a member, where it is not seen as one yet.
    node: Option<Arc<Node>>,
    /// The hook is to end.
    cancelled: CancellationToken,
}

struct Shared {
    settings: Settings,
    values: SharedValues,
    /// Where the APIs begin.
    roots: BTreeSet<String>,
    dir: StateDir,
    lifecycle: watch::Sender<Lifecycle>,
    commands: mpsc::Sender<Command>,
    server_certificate: CertificateCell,
    /// The product has done what it does at a start.
    started: AtomicBool,
    /// The daemon stops.
    stopping: CancellationToken,
}

/// What the daemon is at the moment.
#[derive(Clone)]
pub(crate) enum Lifecycle {
    /// It was a member or a joiner when it stopped and is becoming that again.
    Starting,
    /// It belongs to no cluster.
    Uninitialised,
    /// It bootstraps or joins. The node is there when the other members need to reach it.
    Initialising(Option<Arc<Node>>),
    /// It is a member.
    Member(Arc<Node>),
    /// It leaves its cluster.
    Resetting,
    /// It stops.
    ShuttingDown,
}

/// What only the daemon itself can do, one at a time.
pub(crate) enum Command {
    Initialise {
        request: InitRequest,
        /// Of the request that it came by.
        span: Span,
        answer: oneshot::Sender<Result<(), InitError>>,
    },
    /// Forget the cluster. Answered before it is done: the answer travels over what is closed then.
    Reset {
        /// As the hooks are told.
        force: bool,
        /// Of the request that it came by.
        span: Span,
        answer: oneshot::Sender<Result<(), NotNow>>,
    },
    /// Take the key pair that an operator brings, before initialisation.
    SetServerCertificate { new: SharedPair, answer: oneshot::Sender<Result<(), SetServerError>> },
    /// Stop. Answered before it is done.
    Shutdown,
}

/// A bootstrap or a join whose parts are all there.
#[derive(Clone, Debug)]
pub(crate) struct InitRequest {
    pub name: Name,
    pub address: Address,
    pub config: InitConfig,
    /// None for a bootstrap.
    pub token: Option<JoinToken>,
}

/// The daemon is not in a state for this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotNow {
    #[error("the daemon is starting")]
    Starting,
    #[error("the daemon is not initialised: run `microctl init` to bootstrap a cluster or to join one")]
    Uninitialised,
    #[error("the daemon is being initialised")]
    Initialising,
    #[error("the daemon leaves its cluster")]
    Resetting,
    #[error("the daemon is shutting down")]
    ShuttingDown,
}

/// Why the daemon's own certificate was not replaced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetServerError {
    #[error(
        "the server certificate is fixed: the other members know {name} by it; to have another one remove the member, set the certificate, and join again"
    )]
    Member { name: Name },
    #[error(transparent)]
    NotNow(#[from] NotNow),
    #[error("cannot store the certificate")]
    File(#[from] FileError),
    #[error(transparent)]
    Lost(#[from] TaskLost),
}

/// Why a bootstrap or a join failed. Nothing of it is left, unless it says otherwise.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    #[error("the daemon is initialised already: it is the member {name} at {address}")]
    AlreadyInitialised { name: Name, address: Address },
    #[error(transparent)]
    NotNow(#[from] NotNow),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Address(#[from] microcluster_client::AddressError),
    #[error("cannot listen on {address}: {source}")]
    Listen { address: Address, source: io::Error },
    #[error("the cluster address cannot be {address}: {taken}")]
    AddressTaken { address: Address, taken: String },
    #[error(
        "the certificate in {path} is for {names}, not for {name}; give one that carries the name, or remove it and its key to have one made"
    )]
    CertificateName { path: String, name: Name, names: String },
    #[error(
        "the certificate in {path} cannot be used: {reason}; give another one, or remove it and its key to have one made"
    )]
    CertificateDates { path: String, reason: DateError },
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("cannot make or read a certificate: {0}")]
    KeyPair(#[from] KeyPairError),
    #[error("{0}")]
    File(#[from] FileError),
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] TlsError),
    #[error("{reason}")]
    Server { is_taken: bool, reason: String },
    #[error(
        "the server at {address} is not of the cluster that made the join token: its certificate is not the one in the token. Nothing was sent to it; is this the right token? If the certificate of the cluster was replaced since the token was made, make a new one with `microctl tokens add`, or take it anew from `microctl tokens list`"
    )]
    OtherCluster { address: Address },
    #[error("no member of the cluster can be reached; tried {}", .tried.join("; "))]
    Unreachable { tried: Vec<String> },
    /// The cluster's own answer, with its HTTP status.
    #[error("{message}")]
    Refused { code: u16, message: String, retry_after: Option<Duration> },
    #[error("the answer of the cluster cannot be used: {reason}")]
    BadAnswer { reason: String },
    #[error("{0}")]
    Hook(HookError),
    /// A hook of another member failed; nothing of the join is left.
    #[error("the cluster did not take this daemon in: {message}")]
    NotTakenIn { code: u16, message: String },
    #[error("the join was given up: the cluster says that this daemon is not joining; try again")]
    Gone,
    #[error("the join takes long and goes on; see `microctl status`")]
    StillJoining,
    #[error("cannot open the database: {0}")]
    Open(#[from] db::OpenError),
    #[error(transparent)]
    Database(#[from] db::Error),
    #[error(transparent)]
    Lost(#[from] TaskLost),
}

impl State {
    pub(crate) fn new(
        settings: Settings,
        values: SharedValues,
        roots: BTreeSet<String>,
        dir: StateDir,
        server_certificate: CertificateCell,
        commands: mpsc::Sender<Command>,
    ) -> State {
        let lifecycle = watch::Sender::new(Lifecycle::Starting);
        let (started, stopping) = (AtomicBool::new(false), CancellationToken::new());
        let shared =
            Shared { settings, values, roots, dir, lifecycle, commands, server_certificate, started, stopping };
        State(Arc::new(shared), None)
    }

    /// The state of a daemon that is not initialised and whose loop does not run.
    #[cfg(test)]
    #[allow(clippy::expect_used)]
    pub(crate) fn uninitialised(path: &Path, pair: crate::tls::KeyPair) -> State {
        // Nobody takes commands: who gives one is told that the daemon shuts down.
        let (commands, _) = mpsc::channel(1);
        let dir = StateDir::open(path).expect("a state directory");
        let (settings, certificate) = (Settings::new(path.to_owned()), CertificateCell::new(pair));
        let state = State::new(settings, SharedValues::default(), BTreeSet::new(), dir, certificate, commands);
        state.set_lifecycle(Lifecycle::Uninitialised);
        state
    }

    /// The member's name; none before initialisation.
    #[must_use]
    pub fn name(&self) -> Option<Name> {
        self.node().ok().map(|node| node.name.clone())
    }

    /// The member's cluster address; none before initialisation.
    #[must_use]
    pub fn address(&self) -> Option<Address> {
        self.node().ok().map(|node| node.address)
    }

    /// The version of the product.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.settings().version
    }

    /// Completes when what works with this state is to end: in a hook when its time is over, and everywhere when
    /// the daemon stops.
    ///
    /// ```
    /// # async fn poll(state: &microcluster::State, mut ticks: tokio::time::Interval) -> microcluster::Result<()> {
    /// loop {
    ///     tokio::select! {
    ///         () = state.cancelled() => return Ok(()),
    ///         _ = ticks.tick() => println!("still here"),
    ///     }
    /// }
    /// # }
    /// ```
    pub async fn cancelled(&self) {
        self.cancellation().cancelled().await;
    }

    /// The same as a token, for what takes one: cancelled when [`State::cancelled`] completes. Cancelling it ends nothing else.
    #[must_use]
    pub fn cancellation(&self) -> CancellationToken {
        self.1.as_ref().map_or(&self.0.stopping, |call| &call.cancelled).child_token()
    }

    /// The replicated database.
    ///
    /// # Errors
    /// 503 while the daemon is not a member of a cluster, or waits for an upgrade.
    pub fn database(&self) -> Result<Database, Error> {
        let node = self.node()?;
        node.is_current()?;
        Ok(node.database.clone())
    }

    /// The other members of the cluster; also while this one waits for an upgrade.
    ///
    /// # Errors
    /// 503 while the daemon is not a member of a cluster.
    pub fn connect(&self) -> Result<Connect, Error> {
        Ok(Connect { node: self.node()? })
    }

    /// Whether the daemon has an API extension, its own ones or the product's.
    #[must_use]
    pub fn has_extension(&self, name: &str) -> bool {
        self.settings().extensions().iter().any(|extension| extension == name)
    }

    /// The value of this type that the product gave to [`crate::Builder::shared`].
    #[must_use]
    pub fn shared<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.0.values.find()
    }

    /// The state directory. What a product keeps in it under names of its own stays; a file that it shares with the cluster
    /// belongs into the database.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        self.0.dir.path()
    }

    /// The addresses of the additional servers as they are set now, by name.
    #[must_use]
    pub fn servers(&self) -> BTreeMap<Name, Address> {
        let mut servers = self.settings().servers.clone();
        if let Ok(node) = self.node() {
            servers.extend(node.config.current().servers.into_iter().map(|(name, server)| (name, server.address)));
        }
        servers
    }

    /// The certificate of the cluster, in PEM; none before initialisation.
    #[must_use]
    pub fn cluster_certificate(&self) -> Option<String> {
        self.node().ok().map(|node| node.cluster_certificate.current().certificate.pem)
    }

    /// The daemon's own certificate, in PEM.
    #[must_use]
    pub fn server_certificate_pem(&self) -> String {
        self.server_certificate().current().certificate.pem
    }

    /// Where the APIs begin.
    pub(crate) fn roots(&self) -> &BTreeSet<String> {
        &self.0.roots
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    pub(crate) fn dir(&self) -> &StateDir {
        &self.0.dir
    }

    pub(crate) fn server_certificate(&self) -> &CertificateCell {
        &self.0.server_certificate
    }

    pub(crate) fn lifecycle(&self) -> Lifecycle {
        self.0.lifecycle.borrow().clone()
    }

    pub(crate) fn set_lifecycle(&self, lifecycle: Lifecycle) {
        self.0.lifecycle.send_replace(lifecycle);
    }

    /// This daemon as a member; in its hooks also while it becomes one.
    pub(crate) fn node(&self) -> Result<Arc<Node>, NotNow> {
        match (&*self.0.lifecycle.borrow(), &self.1) {
            (Lifecycle::Member(node), _) => Ok(node.clone()),
            (other, call) => call.as_ref().and_then(|call| call.node.clone()).ok_or_else(|| other.not_now()),
        }
    }

    /// The same daemon, as a hook sees it.
    pub(crate) fn for_hook(&self, node: Option<Arc<Node>>, cancelled: CancellationToken) -> State {
        State(self.0.clone(), Some(Arc::new(HookCall { node, cancelled })))
    }

    /// Cancelled when the daemon begins to stop.
    pub(crate) fn stopping(&self) -> &CancellationToken {
        &self.0.stopping
    }

    /// Waits until a member can use its database: no upgrade is waited for, and there is a quorum. A daemon that is no member, or is
    /// none any more, waits for nothing.
    pub(crate) async fn has_settled(&self) {
        let mut lifecycle = self.0.lifecycle.subscribe();
        loop {
            // In a statement of its own: the lock on it is gone before the wait.
            let now = lifecycle.borrow_and_update().clone();
            let usable = async {
                match now {
                    Lifecycle::Member(node) => node.is_usable().await,
                    Lifecycle::Uninitialised | Lifecycle::ShuttingDown => {}
                    // It becomes something else.
                    Lifecycle::Starting | Lifecycle::Initialising(_) | Lifecycle::Resetting => {
                        std::future::pending().await
                    }
                }
            };
            tokio::select! {
                () = usable => return,
                // The sender lives as long as this does.
                _ = lifecycle.changed() => {}
            }
        }
    }

    /// Whether the product has done what it does at a start.
    pub(crate) fn is_started(&self) -> bool {
        self.0.started.load(Ordering::Relaxed)
    }

    pub(crate) fn set_started(&self) {
        self.0.started.store(true, Ordering::Relaxed);
    }

    /// This daemon as a member or as a joiner: what other members of the cluster reach.
    pub(crate) fn joined_node(&self) -> Result<Arc<Node>, NotNow> {
        match &*self.0.lifecycle.borrow() {
            Lifecycle::Member(node) | Lifecycle::Initialising(Some(node)) => Ok(node.clone()),
            other => Err(other.not_now()),
        }
    }

    /// Bootstraps or joins.
    pub(crate) async fn initialise(&self, request: InitRequest) -> Result<(), InitError> {
        let (answer, wait) = oneshot::channel();
        self.send(Command::Initialise { request, span: Span::current(), answer }).await?;
        // The daemon drops the answer only when it stops.
        wait.await.unwrap_or(Err(InitError::NotNow(NotNow::ShuttingDown)))
    }

    /// Begins to forget the cluster.
    pub(crate) async fn reset(&self, force: bool) -> Result<(), NotNow> {
        let (answer, wait) = oneshot::channel();
        self.send(Command::Reset { force, span: Span::current(), answer }).await?;
        wait.await.unwrap_or(Err(NotNow::ShuttingDown))
    }

    /// Replaces the daemon's own certificate.
    pub(crate) async fn set_server_certificate(&self, new: SharedPair) -> Result<(), SetServerError> {
        let (answer, wait) = oneshot::channel();
        self.send(Command::SetServerCertificate { new, answer }).await?;
        wait.await.unwrap_or(Err(NotNow::ShuttingDown.into()))
    }

    /// Begins to stop.
    pub(crate) async fn shut_down(&self) -> Result<(), NotNow> {
        self.send(Command::Shutdown).await
    }

    /// What the daemon says of itself to anybody.
    pub(crate) fn server_status(&self) -> ServerStatus {
        let node = self.node().ok();
        ServerStatus {
            name: node.as_ref().map_or_else(machine_name, |node| node.name.to_string()),
            address: node.as_ref().map(|node| node.address),
            version: self.settings().version.clone(),
            ready: node.is_some() && self.is_started() && !self.stopping().is_cancelled(),
            extensions: self.settings().extensions(),
        }
    }

    async fn send(&self, command: Command) -> Result<(), NotNow> {
        self.0.commands.send(command).await.map_err(|_| NotNow::ShuttingDown)
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("name", &self.name()).finish_non_exhaustive()
    }
}

impl Lifecycle {
    /// Why there is no member.
    pub fn not_now(&self) -> NotNow {
        match self {
            Lifecycle::Starting => NotNow::Starting,
            Lifecycle::Uninitialised => NotNow::Uninitialised,
            // Whoever asks for a member finds one.
            Lifecycle::Initialising(_) | Lifecycle::Member(_) => NotNow::Initialising,
            Lifecycle::Resetting => NotNow::Resetting,
            Lifecycle::ShuttingDown => NotNow::ShuttingDown,
        }
    }
}

impl From<NotNow> for Error {
    fn from(reason: NotNow) -> Error {
        let error = Error::unavailable(reason.to_string());
        match reason {
            NotNow::Starting | NotNow::Initialising | NotNow::Resetting => error.retry_after(1),
            NotNow::Uninitialised | NotNow::ShuttingDown => error,
        }
    }
}

impl From<WaitsForUpgrade> for Error {
    fn from(waits: WaitsForUpgrade) -> Error {
        Error::unavailable(waits.to_string()).retry_after(10)
    }
}

fn machine_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
impl State {
    /// A daemon that is not initialised and that nobody runs.
    pub(crate) fn for_test(path: &Path) -> State {
        let dir = StateDir::open(path).unwrap();
        let pair = crate::tls::KeyPair::generate(&crate::tls::Generate { name: "c1", addresses: &[] }).unwrap();
        let (commands, _) = mpsc::channel(1);
        State::new(
            Settings::new(path.to_owned()),
            SharedValues::default(),
            BTreeSet::new(),
            dir,
            CertificateCell::new(pair),
            commands,
        )
    }
}
