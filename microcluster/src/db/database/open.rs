//! Opens a member's database, makes it a cluster of one, and closes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Database, Inner};
use crate::db::command::Scope;
use crate::db::damage::{self, Standing, is_damage};
use crate::db::elections::Elections;
use crate::db::error::{Error, chain};
use crate::db::forward::Forwarder;
use crate::db::log_store::{LogError, LogOptions, LogStore};
use crate::db::network::{Backlog, Early, Era, NetworkFactory, Peers, Sending, Service};
use crate::db::options::{Options, Timings};
use crate::db::raft_types::{NodeId, Peer, Raft};
use crate::db::read_index::{Quorum, ReadIndex, is_majority};
use crate::db::schema::{Level, Upgrade};
use crate::db::sequencer::Sequencer;
use crate::db::state_machine::StateMachine;
use crate::db::status::{self, Status};
use crate::db::transaction::Closures;
use crate::db::{janitor, state_file};

/// Why a database could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The folder cannot be used.
    #[error("cannot use the database folder {dir}")]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The log cannot be read.
    #[error("cannot open the log in {dir}: {message}")]
    Log {
        /// The folder.
        dir: PathBuf,
        /// What is wrong where.
        message: String,
    },
    /// The state file cannot be read.
    #[error("cannot open the state in {dir}: {message}")]
    State {
        /// The folder.
        dir: PathBuf,
        /// What is wrong where.
        message: String,
    },
    /// Files of a member are damaged or missing: it has to be rebuilt from the others.
    #[error("the database in {dir} is damaged: {message}")]
    Damaged {
        /// The folder.
        dir: PathBuf,
        /// What is wrong where.
        message: String,
    },
    /// Raft refused to start.
    #[error("cannot start Raft: {0}")]
    Raft(String),
}

impl Database {
    /// Opens the database of this member and starts Raft. A fresh folder gives a node that waits for
    /// [`Database::initialise`], or to be added by the leader of a cluster.
    ///
    /// # Errors
    /// [`OpenError`] says which file is in the way and why. Nothing is changed then.
    pub(crate) async fn open(options: Options) -> Result<Database, OpenError> {
        let Options { dir, node_id, is_member, connector, internal_schema, timings } = options;
        let folder = dir.clone();
        let (log, state_machine) = tokio::task::spawn_blocking(move || open_files(dir, node_id, is_member))
            .await
            .map_err(|error| OpenError::Raft(error.to_string()))??;
        let (shared, writer) = (Arc::clone(state_machine.shared()), Arc::clone(state_machine.writer()));
        log.follow(shared.applied.subscribe());
        let has_begun = state_machine.found().is_some() || log.ends().1.is_some();
        let era = Arc::new(Era::new(Arc::clone(&shared), has_begun));
        let peers = Arc::new(Peers::new(connector, Arc::clone(&era)));
        let sending = Sending::default();
        let early = Arc::new(Early::default());
        let factory = NetworkFactory {
            peers: Arc::clone(&peers),
            early: Arc::clone(&early),
            dir: state_machine.dir().to_owned(),
            sending: sending.clone(),
            heartbeat: timings.heartbeat,
            visible: Arc::clone(&shared.visible),
        };
        let lanes = Arc::clone(&early);
        log.lead(node_id, Box::new(move |queued| lanes.send(queued)));
        let config = Arc::new(raft_config(&timings).map_err(OpenError::Raft)?);
        let raft = Raft::new(node_id, config, factory, log.clone(), state_machine)
            .await
            .map_err(|error| OpenError::Raft(error.to_string()))?;

        let (tasks, cancelled) = (TaskTracker::new(), CancellationToken::new());
        let (keeping, heartbeat, ended) = (Arc::clone(&early), timings.heartbeat, cancelled.clone());
        let (own_log, metrics, state) = (log.clone(), raft.server_metrics(), Arc::clone(&shared));
        tasks.spawn(async move {
            let may_replace = |members: &BTreeSet<NodeId>| {
                state.handing_over.load(Ordering::Acquire)
                    || is_majority(metrics.borrow().membership_config.membership().get_joint_config(), members)
            };
            tokio::select! {
                () = ended.cancelled() => {}
                () = keeping.keep_heard(heartbeat, &own_log, may_replace) => {}
            }
        });
        let now = Status::from_metrics(&raft.metrics().borrow(), timings.quorum(), &shared.heard);
        let (status_sender, status) = watch::channel(now);
        tasks.spawn(status::watch_metrics(
            raft.clone(),
            status_sender,
            timings.quorum(),
            Arc::clone(&shared),
            cancelled.clone(),
        ));
        let (sequencer, task) =
            Sequencer::new(raft.clone(), log.clone(), Arc::clone(&shared), status.clone(), cancelled.clone());
        tasks.spawn(task);
        let (read_index, task) = ReadIndex::new(
            Quorum {
                node_id,
                raft: raft.clone(),
                log: log.clone(),
                peers: Arc::clone(&peers),
                shared: Arc::clone(&shared),
            },
            Arc::clone(&shared),
            cancelled.clone(),
        );
        tasks.spawn(task);
        let applied = shared.applied.subscribe();
        tasks.spawn(janitor::run(raft.clone(), log.clone(), sending, applied, cancelled.clone()));

        let (forwarder, task) = Forwarder::new(
            sequencer.clone(),
            read_index.clone(),
            Arc::clone(&peers),
            status.clone(),
            timings.request,
            cancelled.clone(),
        );
        tasks.spawn(task);
        let elections = Arc::new(Elections::new(
            node_id,
            raft.clone(),
            log.clone(),
            Arc::clone(&peers),
            Arc::clone(&shared),
            &timings,
        ));
        let (standing, ended) = (Arc::clone(&elections), cancelled.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = ended.cancelled() => {}
                () = standing.run() => {}
            }
        });
        let service = Arc::new(Service {
            node_id,
            dir: folder,
            raft: raft.clone(),
            log: log.clone(),
            early,
            sequencer,
            read_index,
            shared: Arc::clone(&shared),
            era,
            backlog: Backlog::new(timings.heartbeat),
            elections,
        });
        let closures = Closures::new(Arc::clone(&shared));
        let inner = Inner {
            raft,
            peers,
            timings,
            log,
            shared,
            writer,
            forwarder,
            closures,
            service,
            status,
            internal_schema,
            tasks,
            cancelled,
        };
        Ok(Database { inner: Arc::new(inner), scope: Scope::User })
    }

    /// Makes this node a cluster of one and returns when it leads and has the internal schema.
    ///
    /// # Errors
    /// [`Error::Refused`] if the node is a member of a cluster already.
    pub(crate) async fn initialise(&self, me: Peer) -> Result<(), Error> {
        use openraft::error::{InitializeError, RaftError};
        let members = BTreeMap::from([(self.inner.service.node_id, me)]);
        match self.inner.raft.initialize(members).await {
            Ok(()) => {}
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {
                return Err(Error::Refused { message: "the database is initialised already".to_owned() });
            }
            Err(error) => return Err(Error::Fatal(error.to_string())),
        }
        let internal = &self.inner.internal_schema;
        let to = Level { internal: internal.len() as u64, ..Level::default() };
        self.upgrade(Upgrade { from: Level::default(), to, internal, external: &[], unless: "false" }).await.map(drop)
    }

    /// Stops Raft, ends all tasks and closes the files. What was acknowledged is safe; calls that run fail.
    pub(crate) async fn shutdown(&self) {
        self.inner.cancelled.cancel();
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::error!(%error, "Raft's task panicked");
        }
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        self.inner.peers.close();
        self.inner.writer.close().await;
        self.inner.log.close().await;
    }
}

/// The log and the state.
fn open_files(dir: PathBuf, node_id: NodeId, is_member: bool) -> Result<(LogStore, StateMachine), OpenError> {
    let folder = |source| OpenError::Folder { dir: dir.clone(), source };
    let damaged = |message| OpenError::Damaged { dir: dir.clone(), message };
    let state_dir = dir.join("state");
    // Everything the cluster knows is in there, the secrets of join tokens included: it is for the daemon's user alone.
    DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(folder)?;
    std::fs::set_permissions(&dir, Permissions::from_mode(0o700)).map_err(folder)?;
    DirBuilder::new().recursive(true).mode(0o700).create(&state_dir).map_err(folder)?;
    let log = LogStore::open(&dir.join("log"), LogOptions::default()).map_err(|error| match &error {
        LogError::Damaged { .. } => damaged(chain(&error)),
        _ => OpenError::Log { dir: dir.clone(), message: chain(&error) },
    })?;
    let state_machine = StateMachine::open(&state_dir).map_err(|error| match is_damage(&error) {
        true => damaged(chain(&error)),
        false => OpenError::State { dir: dir.clone(), message: chain(&error) },
    })?;
    if is_member {
        let snapshot = state_file::snapshot_index(&state_dir).map_err(folder)?;
        let (vote, (purged, last), applied) = (log.vote(), log.ends(), state_machine.found());
        Standing { vote, purged, last, applied, snapshot }.check().map_err(damaged)?;
    }
    // The log is whole: until the others agree to do without it, its vote may be needed.
    if let Some(reason) = damage::condemned(&dir, node_id).map_err(folder)? {
        state_machine.shared().damage.send_replace(Some(reason));
    }
    Ok((log, state_machine))
}

fn raft_config(timings: &Timings) -> Result<Config, String> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Config {
        cluster_name: "microcluster".to_owned(),
        heartbeat_interval: millis(timings.heartbeat),
        // The lease, and how long Raft waits for votes, which are synced before they are given: as long as it can.
        election_timeout_min: millis(timings.election.1).saturating_sub(1),
        election_timeout_max: millis(timings.election.1),
        // `Elections` says when, after it has asked the others.
        enable_elect: false,
        max_payload_entries: 64,
        // The janitor decides when the log is shortened: by its bytes, not by its entries.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        ..Config::default()
    }
    .validate()
    .map_err(|error| error.to_string())
}
