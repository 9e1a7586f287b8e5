//! The daemon: start, signals, the one loop that changes what it is, and a stop that joins everything.

mod certificates;
mod confirm;
mod in_turn;
mod initialise;
mod joining;
mod member;
mod notify;
mod present;
mod rebuild;
mod servers;
mod signals;
mod start;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use microcluster_client::Address;
use tokio::sync::{Mutex, mpsc, oneshot};
use tracing::{Instrument, Span};

use self::member::Running;
use self::servers::Servers;
use self::signals::{Signal, Signals};
use crate::api::{Api, ListenerKind, Route};
use crate::cluster::HookError;
use crate::config::Settings;
use crate::db::{OpenError, SchemaUpdate};
use crate::error::Fatal;
use crate::extension::Server;
use crate::hooks::{Event, ProductHooks, Runner};
use crate::listener::{self, Listener};
use crate::state::{Command, InitRequest, Lifecycle, NotNow, SharedValues, State};
use crate::tasks::{Tasks, blocking};
use crate::tls;

/// How long a leader tries to hand over before it stops.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a bootstrap or join that was begun may take to reach a step at which it can stop.
const INIT_STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// Commands that wait for the daemon.
const COMMANDS_MAX: usize = 16;

/// Why a daemon does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Another daemon uses the state directory.
    #[error("the state directory {} is in use by another daemon; stop that one or choose another --state-dir", .path.display())]
    Held {
        /// The state directory.
        path: PathBuf,
    },
    /// The number of voters is even: one more survives no more losses, and one less no fewer.
    #[error("there cannot be {voters} voters; choose an odd number, such as 3")]
    Voters {
        /// The number.
        voters: usize,
    },
    /// The state directory, or a file in it, cannot be read or written.
    #[error("cannot {action} {}", .path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file of the state directory has a content that cannot be used.
    #[error("{} cannot be used: {reason}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The control socket cannot be opened.
    #[error("cannot open the control socket {}", .path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The group of the control socket cannot be used.
    #[error("cannot give the control socket to the group {group:?}: {reason}")]
    Group {
        /// The group.
        group: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The product describes its servers in a way that cannot be.
    #[error("the daemon cannot be as its product describes it: {reason}")]
    Description {
        /// What is wrong, and with which server.
        reason: String,
    },
    /// An additional server of the product cannot be opened.
    #[error("{reason}")]
    Server {
        /// Which server, and why.
        reason: String,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {reason}")]
    Tls {
        /// What the TLS library says.
        reason: String,
    },
    /// The database cannot be opened.
    #[error("cannot open the database in {}", .path.display())]
    Database {
        /// Its directory.
        path: PathBuf,
        /// What is wrong with it.
        source: OpenError,
    },
    /// The cluster was upgraded, and this daemon was not.
    #[error("{reason}")]
    TooOld {
        /// What the daemon has, and what the cluster has.
        reason: String,
    },
    /// The daemon was stopped before it was up.
    #[error("the daemon was stopped while it started")]
    Stopped,
}

/// Why a daemon did not run to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// It did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// It could not go on.
    #[error(transparent)]
    Fatal(#[from] Fatal),
}

/// A daemon that runs in this process. It goes on when the handle is dropped.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let handle = microcluster::Daemon::builder("/var/lib/product").start().await?;
/// println!("{:?}", handle.state().name());
/// handle.shutdown().await;
/// handle.wait().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Handle {
    control: mpsc::Sender<Internal>,
    state: State,
    done: oneshot::Receiver<Result<(), Fatal>>,
}

impl Handle {
    /// The daemon as its handlers see it.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Asks the daemon to stop; [`Handle::wait`] tells when it has.
    pub async fn shutdown(&self) {
        // It has stopped already when nobody takes this.
        self.control.send(Internal::Stop).await.ok();
    }

    /// Has the daemon read its certificates again. Connections stay open.
    pub async fn reload(&self) {
        self.control.send(Internal::Reload).await.ok();
    }

    /// Waits until the daemon has stopped.
    ///
    /// # Errors
    /// When it stopped because it could not go on.
    pub async fn wait(self) -> Result<(), Fatal> {
        self.done.await.unwrap_or_else(|_| Err(Fatal::new("the daemon's main task panicked")))
    }

    async fn finished(&mut self) -> Result<(), Fatal> {
        (&mut self.done).await.unwrap_or_else(|_| Err(Fatal::new("the daemon's main task panicked")))
    }
}

/// What a product makes of the daemon.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    pub settings: Settings,
    /// The address that is open until bootstrap or join; it is parsed when the daemon starts.
    pub pre_init_listen: Option<String>,
    /// What its handlers share.
    pub values: SharedValues,
    /// Its servers, by name.
    pub servers: Vec<(String, Server)>,
    /// What it does when something changes.
    pub hooks: ProductHooks,
    /// Its schema updates, oldest first.
    pub schema: Vec<SchemaUpdate>,
}

impl Product {
    pub fn new(settings: Settings) -> Self {
        let (values, hooks) = (SharedValues::default(), ProductHooks::default());
        Product { settings, pre_init_listen: None, values, servers: Vec::new(), hooks, schema: Vec::new() }
    }
}

/// Runs a daemon until a signal or its control API ends it.
pub(crate) fn run(product: Product) -> BoxFuture<'static, Result<(), RunError>> {
    Box::pin(run_until_ended(product))
}

/// Starts a daemon. It is up when this returns.
pub(crate) fn start(product: Product) -> BoxFuture<'static, Result<Handle, StartError>> {
    // In a box, like the one above: a product's crate would compile the whole daemon again to hold its future.
    Box::pin(start::start(product))
}

async fn run_until_ended(product: Product) -> Result<(), RunError> {
    let mut signals =
        Signals::new().map_err(|source| StartError::File { action: "wait for", path: "signals".into(), source })?;
    let mut handle = tokio::select! {
        started = start(product) => started?,
        signal = signals.next_end() => {
            tracing::info!(signal, "stopped while starting");
            return Ok(());
        }
    };
    notify::ready();
    loop {
        tokio::select! {
            ended = handle.finished() => return Ok(ended?),
            signal = signals.next() => match signal {
                Signal::Reload => handle.reload().await,
                Signal::End(signal) => {
                    tracing::info!(signal, "stopping");
                    handle.shutdown().await;
                }
            },
        }
    }
}

/// What the loop is told by the process, beside the commands of the API.
#[derive(Debug)]
enum Internal {
    Stop,
    Reload,
    /// The member's files are damaged, and why.
    Rebuild(String),
    /// This member was removed while it could not be told.
    Removed,
    /// The database cannot go on.
    DatabaseStopped,
    Fatal(Fatal),
}

/// All that the daemon holds. The loop in [`Core::run`] is its only owner.
struct Core {
    shared: Arc<CoreShared>,
    commands: mpsc::Receiver<Command>,
    internal: mpsc::Receiver<Internal>,
    control_socket: Listener,
}

/// What the loop shares with the bootstrap, the join or the reset that it runs beside itself.
struct CoreShared {
    state: State,
    /// Requests that go on without their clients.
    requests: Tasks,
    /// A bootstrap, join, reset or rebuild, and what goes on beside them until the daemon stops.
    changes: Tasks,
    /// The parts of a member that run; none while the daemon is none.
    running: Mutex<Option<Running>>,
    pre_init: Mutex<Option<(Listener, Tasks)>>,
    /// What the product adds to the Core API.
    routes: Vec<Route>,
    servers: Arc<Servers>,
    /// This member is being rebuilt: its database may stop.
    is_rebuilding: AtomicBool,
    /// What the product does when something changes.
    hooks: Runner,
    /// The product's schema updates.
    schema: Vec<SchemaUpdate>,
    control: mpsc::Sender<Internal>,
}

impl Core {
    async fn run(mut self, done: oneshot::Sender<Result<(), Fatal>>) {
        let ended = loop {
            tokio::select! {
                // Never closed: the state, which is held here, has a sender.
                Some(command) = self.commands.recv() => match command {
                    Command::Initialise { request, span, answer } => self.begin_initialise(request, span, answer),
                    Command::Reset { force, span, answer } => self.begin_reset(force, &span, answer),
                    Command::SetServerCertificate { new, answer } => {
                        // Here, so that no bootstrap or join begins with the one before.
                        answer.send(self.shared.set_server_certificate(new).await).ok();
                    }
                    Command::Shutdown => break Ok(()),
                },
                Some(internal) = self.internal.recv() => match internal {
                    Internal::Stop => break Ok(()),
                    Internal::Reload => {
                        self.shared.reload_server_certificate().await;
                        // Beside this loop: a server that is being closed may take its time.
                        let shared = self.shared.clone();
                        self.shared.changes.spawn("reload", async move { shared.reload_shared_certificates().await });
                    }
                    Internal::Rebuild(reason) => self.begin_rebuild(reason),
                    Internal::Removed => self.begin_leave(),
                    Internal::DatabaseStopped if self.shared.is_rebuilding.load(Ordering::Relaxed) => {}
                    Internal::DatabaseStopped => {
                        break Err(Fatal::new("the database stopped; the log says why"));
                    }
                    Internal::Fatal(fatal) => break Err(fatal),
                },
                else => break Ok(()),
            }
        };
        if let Err(fatal) = &ended {
            tracing::error!(error = %crate::error::Chain(fatal), "the daemon cannot go on");
        }
        notify::stopping();
        self.stop().await;
        tracing::info!("stopped");
        done.send(ended).ok();
    }

    fn begin_initialise(
        &self,
        request: InitRequest,
        span: Span,
        answer: oneshot::Sender<Result<(), crate::state::InitError>>,
    ) {
        let shared = self.shared.clone();
        match shared.state.lifecycle() {
            Lifecycle::Uninitialised => {}
            Lifecycle::Member(node) => {
                let (name, address) = (node.name.clone(), node.address);
                answer.send(Err(crate::state::InitError::AlreadyInitialised { name, address })).ok();
                return;
            }
            other => {
                answer.send(Err(other.not_now().into())).ok();
                return;
            }
        }
        shared.state.set_lifecycle(Lifecycle::Initialising(None));
        let initialise = async move { shared.initialise(request, answer).await };
        self.shared.changes.spawn("initialise", initialise.instrument(span));
    }

    fn begin_reset(&self, force: bool, span: &Span, answer: oneshot::Sender<Result<(), NotNow>>) {
        let shared = self.shared.clone();
        match shared.state.lifecycle() {
            Lifecycle::Member(_) => {}
            other => {
                answer.send(Err(other.not_now())).ok();
                return;
            }
        }
        shared.state.set_lifecycle(Lifecycle::Resetting);
        answer.send(Ok(())).ok();
        span.in_scope(|| tracing::warn!("this member was removed from its cluster and forgets it"));
        let reset = async move {
            if let Err(fatal) = shared.reset(force).await {
                shared.control.send(Internal::Fatal(fatal)).await.ok();
            }
        };
        self.shared.changes.spawn("reset", reset.instrument(span.clone()));
    }

    /// Forgets the cluster, except for the database: nobody has seen to it that this one was up to date, or not needed.
    fn begin_leave(&self) {
        let state = &self.shared.state;
        if !matches!(state.lifecycle(), Lifecycle::Member(_)) {
            return;
        }
        state.set_lifecycle(Lifecycle::Resetting);
        tracing::warn!(
            "this member was removed from its cluster while it was away, and forgets it; its data is in database.removed"
        );
        let shared = self.shared.clone();
        self.shared.changes.spawn("leave", async move {
            let dir = shared.state.dir().clone();
            let left = match blocking("reset marker", move || dir.mark_reset_keeping_database()).await {
                Ok(Ok(())) => shared.reset(true).await,
                Ok(Err(e)) => Err(Fatal::new("cannot record that the cluster is to be forgotten").caused_by(e)),
                Err(e) => Err(Fatal::new("cannot record that the cluster is to be forgotten").caused_by(e)),
            };
            if let Err(fatal) = left {
                shared.control.send(Internal::Fatal(fatal)).await.ok();
            }
        });
    }

    /// Hands over, drains, and ends everything, in the order in which one thing needs the other.
    async fn stop(self) {
        let shared = self.shared;
        // Who asks for something now is told that the daemon stops.
        drop(self.commands);
        let drain = shared.state.settings().drain_timeout;
        // Hooks that run end now, and with them what waits for them.
        shared.state.stopping().cancel();
        shared.changes.shutdown(INIT_STOP_TIMEOUT).await;
        shared.on_stop(drain).await;
        if let Ok(node) = shared.state.node()
            && node.db.status().is_leader()
            && node.db.status().voters.len() > 1
        {
            match tokio::time::timeout(TRANSFER_TIMEOUT, node.db.transfer_leadership()).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => tracing::warn!(error = %e, "leadership was not handed over"),
                Err(_) => tracing::warn!("leadership was not handed over in time"),
            }
        }
        self.control_socket.close(drain).await;
        tokio::join!(shared.close_pre_init(), shared.servers.stop());
        shared.requests.shutdown(drain).await;
        shared.state.set_lifecycle(Lifecycle::ShuttingDown);
        if let Some(running) = shared.running.lock().await.take() {
            running.stop(drain).await;
        }
    }
}

impl CoreShared {
    /// Forgets the cluster: this member was removed.
    async fn reset(&self, force: bool) -> Result<(), Fatal> {
        if let Some(running) = self.running.lock().await.take() {
            running.stop(self.state.settings().drain_timeout).await;
        }
        self.forget().await?;
        // Before it can join again.
        if let Err(e) = self.hooks.run(&self.state, None, Event::PostRemove { force }).await {
            tracing::error!(error = %crate::error::Chain(&e), "the removed member's product has not done its part");
        }
        self.become_uninitialised().await;
        Ok(())
    }

    /// Has the product do what it does at a start. The daemon is ready after that.
    fn begin_on_start(self: &Arc<Self>) {
        let shared = self.clone();
        self.changes.spawn("on_start", async move {
            tokio::select! {
                () = shared.state.stopping().cancelled() => return,
                () = shared.state.has_settled() => {}
            }
            match shared.hooks.run(&shared.state, None, Event::OnStart).await {
                Ok(()) => shared.state.set_started(),
                Err(HookError::Stopped { .. }) => {}
                Err(e) => shared.give_up(Fatal::new("the daemon was started in vain").caused_by(e)).await,
            }
        });
    }

    async fn on_stop(&self, limit: Duration) {
        if !self.state.is_started() {
            return;
        }
        if let Err(e) = self.hooks.run_within(&self.state, None, Event::OnStop, limit).await {
            tracing::error!(error = %crate::error::Chain(&e), "the product has not done its part of the stop");
        }
    }

    /// Removes what a cluster leaves in the state directory.
    async fn forget(&self) -> Result<(), Fatal> {
        let dir = self.state.dir().clone();
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
            Fatal::new("cannot remove what is left of the cluster in the state directory").caused_by(e)
        };
        blocking("reset", move || dir.reset()).await.map_err(|e| failed(e.into()))?.map_err(|e| failed(e.into()))
    }

    async fn become_uninitialised(&self) {
        self.servers.close_members().await;
        if let Err(e) = self.servers.open_pre_init().await {
            tracing::error!(error = %crate::error::Chain(&e), "a server that is open before bootstrap is not");
        }
        if let Err(e) = self.open_pre_init().await {
            tracing::error!(error = %crate::error::Chain(&e), "the pre-init address is not served");
        }
        // Last: a bootstrap or a join that begins now finds everything as it is to be.
        self.state.set_lifecycle(Lifecycle::Uninitialised);
    }

    /// Closes the pre-init address where it is in the way of the cluster address. It is opened again when the bootstrap or the
    /// join fails.
    async fn make_way_for(&self, cluster: Address) {
        if self.state.settings().pre_init_listen.is_some_and(|own| own.overlaps(cluster)) {
            self.close_pre_init().await;
        }
    }

    /// Serves the pre-init address, if there is one, unless it is served.
    async fn open_pre_init(&self) -> Result<(), StartError> {
        let Some(address) = self.state.settings().pre_init_listen else {
            return Ok(());
        };
        let address = address.socket_addr();
        let mut pre_init = self.pre_init.lock().await;
        if pre_init.is_some() {
            return Ok(());
        }
        let tcp = listener::bind(address).await.map_err(|source| StartError::Listen { address, source })?;
        let config = tls::server_config(self.state.server_certificate().clone())
            .map_err(|e| StartError::Tls { reason: e.to_string() })?;
        let requests = Tasks::new("requests of the pre-init address");
        let api = Api::core(ListenerKind::PreInit, &self.routes, &self.state, &requests);
        *pre_init = Some((Listener::tls(tcp, config, ListenerKind::PreInit, api), requests));
        Ok(())
    }

    async fn close_pre_init(&self) {
        let listener = self.pre_init.lock().await.take();
        if let Some((listener, requests)) = listener {
            let drain = self.state.settings().drain_timeout;
            tokio::join!(listener.close(drain), requests.shutdown(drain));
        }
    }
}
