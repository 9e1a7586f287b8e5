//! The parts of a member that run: its node, its listener on the cluster address, its keepers.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::servers::keep_servers;
use super::{CoreShared, Internal};
use crate::api::{Api, ListenerKind};
use crate::cluster::join::Versions;
use crate::cluster::rebuild::keep_verified;
use crate::cluster::{
    Node, NodeParts, Peers, keep_certificates, keep_heartbeat, keep_own_row, keep_reconciled, keep_trust,
    keep_upgraded, removal_found, schema,
};
use crate::config::MemberConfig;
use crate::db::{Database, Options, RaftState, Timings};
use crate::error::Fatal;
use crate::listener::Listener;
use crate::state::{InitError, State};
use crate::tasks::Tasks;
use crate::tls::{self, CertificateCell, ClusterResolver, KeyPair};
use crate::trust::Trust;

/// How long connections that Raft runs on may take to end: the database is closed already.
const TRANSPORTS_STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// A member, or a joiner that the others reach, with all that runs for it.
pub(super) struct Running {
    pub node: Arc<Node>,
    listener: Listener,
    tasks: Tasks,
}

/// Who a node is.
pub(super) struct Identity {
    pub config: MemberConfig,
    /// It was a member before, so its database is there.
    pub is_member: bool,
    pub trust: Trust,
    pub cluster: KeyPair,
}

impl Running {
    /// Ends everything: no more requests, then no more Raft, then the database.
    pub async fn stop(self, drain: Duration) {
        self.listener.close(drain).await;
        self.node.config.end().await;
        // What they leave half done, the next leader or the next start finishes.
        self.tasks.shutdown(Duration::ZERO).await;
        self.node.db.shutdown().await;
        self.node.transports().shutdown(TRANSPORTS_STOP_TIMEOUT).await;
    }
}

/// What the joiners and the members of a cluster must have in common.
pub(super) fn versions(state: &State) -> Versions {
    Versions {
        schema_internal: schema::INTERNAL.len() as u64,
        schema_external: state.settings().schema_external_version,
        extensions: state.settings().extensions(),
    }
}

impl CoreShared {
    /// Opens the database of a node.
    pub(super) async fn open_node(&self, identity: Identity) -> Result<Arc<Node>, InitError> {
        let Identity { config, is_member, trust, cluster } = identity;
        let state = &self.state;
        let own = state.server_certificate().current().identity();
        let peers = Peers::new(&own, trust.clone())?;
        let options = Options {
            dir: state.dir().database(),
            node_id: config.id,
            is_member,
            connector: Arc::new(peers.clone()),
            internal_schema: schema::INTERNAL.to_vec(),
            timings: Timings::default(),
        };
        // In a task of its own: Raft runs in the span in which it is opened, and outlives the request that this may be in.
        let db = self.changes.detached("database", Database::open(options)).await??;
        Ok(Node::new(NodeParts {
            config,
            versions: versions(state),
            role_counts: state.settings().role_counts,
            pending_timeout: state.settings().pending_timeout,
            external_schema: self.schema.clone(),
            db,
            trust,
            peers,
            cluster_certificate: CertificateCell::new(cluster),
            dir: state.dir().clone(),
            hooks: self.hooks.of_node(state),
        }))
    }

    /// Serves the cluster address and follows the member table.
    pub(super) async fn serve(&self, node: &Arc<Node>, tcp: TcpListener) -> Result<(), InitError> {
        let own = self.state.server_certificate().clone();
        let resolver = ClusterResolver { cluster: node.cluster_certificate.clone(), own: own.clone() };
        let config = tls::server_config(resolver).map_err(|e| InitError::Tls(e.into()))?;
        let api = Api::core(ListenerKind::Tls, &self.routes, &self.state, &self.requests);
        let listener = Listener::tls(tcp, config, ListenerKind::Tls, api);
        let tasks = Tasks::new("keepers");
        let interval = self.state.settings().heartbeat_interval;
        tasks.spawn("trust", keep_trust(node.clone(), self.state.dir().truststore(), tasks.clone()));
        tasks.spawn("certificates", keep_certificates(node.clone(), own, tasks.clone()));
        tasks.spawn("servers", keep_servers(self.servers.clone(), node.clone(), tasks.clone()));
        tasks.spawn("own row", keep_own_row(node.clone(), tasks.clone()));
        tasks.spawn("reconciler", keep_reconciled(node.clone(), tasks.clone()));
        tasks.spawn("heartbeat", keep_heartbeat(node.clone(), interval, tasks.clone()));
        tasks.spawn("verification", keep_verified(node.clone(), tasks.clone()));
        tasks.spawn("upgrade", stop_if_too_old(node.clone(), self.control.clone(), tasks.clone()));
        let watch = watch_database(node.db.clone(), self.control.clone(), tasks.clone());
        tasks.spawn("database watch", watch);
        *self.running.lock().await = Some(Running { node: node.clone(), listener, tasks });
        Ok(())
    }

    /// Has this member leave when it was removed and nobody could tell it.
    pub(super) async fn watch_membership(&self, node: &Arc<Node>) {
        if let Some(running) = &*self.running.lock().await {
            let (node, control, tasks) = (node.clone(), self.control.clone(), running.tasks.clone());
            running.tasks.spawn("membership", async move {
                if removal_found(node, tasks).await {
                    control.send(Internal::Removed).await.ok();
                }
            });
        }
    }

    /// Ends what runs for a member, if anything does.
    pub(super) async fn stop_member(&self, drain: Duration) {
        let running = self.running.lock().await.take();
        if let Some(running) = running {
            running.stop(drain).await;
        }
    }
}

/// Looks after upgrades, and stops the daemon when it finds that the cluster has gone on without this version.
async fn stop_if_too_old(node: Arc<Node>, control: mpsc::Sender<Internal>, tasks: Tasks) {
    if let Err(too_old) = keep_upgraded(node, tasks).await {
        control.send(Internal::Fatal(Fatal::new("the daemon cannot be a member").caused_by(too_old))).await.ok();
    }
}

/// Has the member rebuilt when its database is damaged, and stops the daemon when it fails.
async fn watch_database(db: Database, control: mpsc::Sender<Internal>, tasks: Tasks) {
    let (mut status, mut damage) = (db.status_watch(), db.damage());
    let damaged = async {
        let reason = damage.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.unwrap_or_default()
    };
    let failed = async {
        status.wait_for(|status| status.state == RaftState::Shutdown).await.map(|_| ()).ok();
    };
    let mut failed = std::pin::pin!(failed);
    tokio::select! {
        // Damage first: it is why the database failed, if both are true.
        biased;
        () = tasks.stopping() => return,
        reason = damaged => {
            control.send(Internal::Rebuild(reason)).await.ok();
            // Where it cannot be rebuilt, the end of the database is still the end of the daemon.
            tokio::select! {
                () = tasks.stopping() => return,
                () = &mut failed => {}
            }
        }
        () = &mut failed => {}
    }
    if !tasks.is_stopping() {
        control.send(Internal::DatabaseStopped).await.ok();
    }
}
