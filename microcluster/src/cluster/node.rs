//! This daemon as a member of a cluster: everything that members do is done through a `Node`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use microcluster_client::{Address, Client, Empty, Error, Fingerprint, Member, MemberStatus, Name, Role};
use tokio::sync::{Notify, watch};

use super::certificates::CertificateRow;
use super::hook_calls::NodeHooks;
use super::join::Versions;
use super::liveness::Liveness;
use super::members::{self, MemberRow};
use super::own_config::OwnConfig;
use super::peers::Peers;
use super::upgrade::{self, Standing};
use crate::config::{MemberConfig, RoleCounts};
use crate::db::{self, Consistency, Database, NodeId, Patience, PingError, SchemaUpdate, Status};
use crate::error::Chain;
use crate::state_dir::StateDir;
use crate::steps;
use crate::tasks::Tasks;
use crate::tls::CertificateCell;
use crate::trust::{Trust, TrustSet, TrustedAs};

/// How long a live probe of another member may take: a member that says nothing delays a list by this, the first time.
const PROBE: Patience = Patience { silence: Duration::from_millis(900), least: Duration::from_millis(500) };
/// How long a member may take to say that it is alive when something depends on that.
const ALIVE: Patience = Patience { silence: Duration::from_millis(500), least: Duration::from_millis(250) };
/// The same for news that it finds in the log soon, if it is there.
pub(super) const NEWS: Patience = Patience { silence: Duration::from_millis(250), least: Duration::from_millis(100) };
/// How long a list waits for the leader before it shows what this member has.
const LINEARIZE_TIMEOUT: Duration = Duration::from_millis(900);

/// This daemon as a member, or as a joiner that has been admitted.
pub(crate) struct Node {
    pub id: NodeId,
    pub name: Name,
    pub address: Address,
    pub versions: Versions,
    /// How many members are to have which role, when this one leads.
    pub(super) role_counts: RoleCounts,
    /// How long an admitted joiner may take to ask to be taken in, when this one leads.
    pub(super) pending_timeout: Duration,
    /// The database with the right to write the cluster's own tables.
    pub db: Database,
    /// The database as everybody else may use it.
    pub database: Database,
    pub trust: Trust,
    pub peers: Peers,
    /// What the listener on the cluster address presents to clients.
    pub cluster_certificate: CertificateCell,
    /// What it is set to.
    pub config: OwnConfig,
    pub(super) dir: StateDir,
    /// Another certificate is in place.
    pub(super) certificate_changed: Notify,
    /// The rows of the certificate table that are in place here.
    pub(super) installed: tokio::sync::Mutex<Vec<CertificateRow>>,
    /// One membership change at a time. Only the leader makes any, so a lock in the process is enough.
    pub(super) membership: tokio::sync::Mutex<()>,
    /// Joiners that catch up: the reconciler leaves them alone.
    confirming: Mutex<HashSet<NodeId>>,
    /// Who answers the heartbeats of this member, when it leads.
    liveness: Mutex<Liveness>,
    /// Something may have to be put in order.
    pub(super) disorder: Notify,
    /// A certificate was shown that this member does not know; its table may be behind.
    pub(super) stranger: Notify,
    /// Members that are trusted beside those in the table, for as long as this replica may be behind: those of
    /// the last run or of the admission, and those that other members told of.
    learned: Mutex<Arc<TrustSet>>,
    /// The connections that other members run Raft on.
    transports: Tasks,
    /// What this member is next to its cluster.
    pub(super) standing: watch::Sender<Standing>,
    /// Held by who looks that up.
    pub(super) looking: tokio::sync::Mutex<()>,
    /// A member was upgraded.
    pub(super) upgraded: Notify,
    /// The product's schema updates.
    pub(super) external_schema: Vec<SchemaUpdate>,
    /// What the product does when something changes.
    pub(super) hooks: Arc<dyn NodeHooks>,
    /// The roles as they were in the last heartbeat round, while this member leads.
    pub(super) last_roles: Mutex<BTreeMap<Name, Role>>,
}

/// What a `Node` is made of.
pub(crate) struct NodeParts {
    pub config: MemberConfig,
    pub versions: Versions,
    pub role_counts: RoleCounts,
    pub pending_timeout: Duration,
    pub external_schema: Vec<SchemaUpdate>,
    pub db: Database,
    pub trust: Trust,
    pub peers: Peers,
    pub cluster_certificate: CertificateCell,
    pub dir: StateDir,
    pub hooks: Arc<dyn NodeHooks>,
}

impl Node {
    pub fn new(parts: NodeParts) -> Arc<Node> {
        let NodeParts {
            config,
            versions,
            role_counts,
            pending_timeout,
            external_schema,
            db,
            trust,
            peers,
            cluster_certificate,
            dir,
            hooks,
        } = parts;
        let learned = Mutex::new(trust.current());
        let MemberConfig { id, name, address, .. } = config.clone();
        Arc::new(Node {
            id,
            name,
            address,
            versions,
            role_counts,
            pending_timeout,
            db: db.core(),
            database: db,
            trust,
            peers,
            cluster_certificate,
            config: OwnConfig::new(dir.clone(), config),
            dir,
            certificate_changed: Notify::new(),
            installed: tokio::sync::Mutex::new(Vec::new()),
            membership: tokio::sync::Mutex::new(()),
            confirming: Mutex::new(HashSet::new()),
            liveness: Mutex::default(),
            disorder: Notify::new(),
            stranger: Notify::new(),
            learned,
            transports: Tasks::new("Raft transports"),
            // Until it is looked at.
            standing: watch::Sender::new(Standing::Waits { members: Vec::new() }),
            looking: tokio::sync::Mutex::new(()),
            upgraded: Notify::new(),
            external_schema,
            hooks,
            last_roles: Mutex::default(),
        })
    }

    /// A step of a change of the membership is done.
    pub(crate) fn reached(&self, step: &str) {
        steps::reached(step, self.dir.path());
    }

    /// Has the members' table looked at again: something that concerns it happened.
    pub fn nudge(&self) {
        self.disorder.notify_one();
    }

    /// A certificate was shown that is not trusted: it may be a new member's that this one has not heard of.
    pub fn stranger_seen(&self) {
        self.stranger.notify_one();
    }

    /// The owner of the connections that other members run Raft on.
    pub fn transports(&self) -> &Tasks {
        &self.transports
    }

    /// The members with their live status, by name. The rows are as of now if a majority can be asked in time, else as this
    /// replica has them: a list is needed most when something is down.
    pub async fn members(&self) -> Result<Vec<Member>, db::Error> {
        self.members_among(|_| true).await
    }

    async fn members_among(&self, wanted: impl Fn(&MemberRow) -> bool) -> Result<Vec<Member>, db::Error> {
        let mut known = self.db.read(Consistency::Local, members::all).await?;
        known.retain(&wanted);
        // At the same time: who is down and who leads no more delay the list together as long as one of them.
        let ((), mut statuses) = tokio::join!(self.catch_up(), self.probe_all(&known));
        let mut rows = self.db.read(Consistency::Local, members::all).await?;
        let highest = upgrade::highest(&rows);
        rows.retain(wanted);
        let new: Vec<MemberRow> = rows.iter().filter(|row| !statuses.contains_key(&row.id)).cloned().collect();
        statuses.extend(self.probe_all(&new).await);
        let (raft, cluster) = (self.db.status(), self.db.read(Consistency::Local, db::level).await?);
        let members = rows.into_iter().map(|row| {
            let status = match statuses.get(&row.id).copied().unwrap_or(MemberStatus::Unreachable) {
                MemberStatus::Online => upgrade::shown(row.level(), highest, cluster),
                status => status,
            };
            row.public(&raft, status)
        });
        Ok(members.collect())
    }

    /// One member with its live status.
    pub async fn member(&self, name: &Name) -> Result<Option<Member>, db::Error> {
        Ok(self.members_among(|row| row.name == *name).await?.pop())
    }

    /// The id of the member of that name, as this replica has it.
    pub async fn id_of(&self, name: &Name) -> Result<Option<NodeId>, db::Error> {
        let rows = self.db.read(Consistency::Local, members::all).await?;
        Ok(rows.into_iter().find(|row| row.name == *name).map(|row| row.id))
    }

    /// This member's role and how many members there are, from the local replica.
    pub async fn own_role(&self) -> Result<(Role, u64), db::Error> {
        let rows = self.db.read(Consistency::Local, members::all).await?;
        let voters = self.db.status().voters;
        let own = rows.iter().find(|row| row.id == self.id);
        let role = own.map_or(Role::Pending, |row| row.role(&voters));
        Ok((role, rows.len() as u64))
    }

    /// Whether a majority can be reached, through the leader unless that is this member: one that follows hears of a leader
    /// also when that one is without a majority itself.
    pub async fn has_quorum(&self) -> bool {
        let status = self.db.status();
        if !status.has_quorum || status.is_leader() {
            return status.has_quorum;
        }
        matches!(tokio::time::timeout(LINEARIZE_TIMEOUT, self.db.linearize()).await, Ok(Ok(())))
    }

    /// A client of the leader, if there is one and it is another member.
    pub fn leader_client(&self, status: &Status) -> Option<Client> {
        let leader = status.leader.filter(|leader| *leader != self.id)?;
        let address = status.nodes.get(&leader)?.address.parse().ok()?;
        Some(self.peers.client(address))
    }

    /// Has all other members that are in told of something, at the same time, and waits for those that answer. One that says nothing
    /// has to find what it is told in the log.
    pub(super) async fn tell_others<F>(&self, what: &str, timeout: Duration, tell: impl Fn(Client) -> F)
    where
        F: Future<Output = Result<Empty, Error>>,
    {
        let rows = self.db.read(Consistency::Local, members::all).await.unwrap_or_default();
        let others = rows.iter().filter(|row| row.id != self.id && row.role.is_full());
        let told = others.map(|row| {
            let told = tell(self.peers.client(row.address).timeout(timeout).notification());
            async move {
                match self.while_there(row, NEWS, told).await {
                    Some(Ok(Empty {})) => {}
                    Some(Err(e)) => {
                        tracing::debug!(member = %row.name, error = %Chain(&e), "it was not told of {what}")
                    }
                    None => tracing::debug!(member = %row.name, "it does not answer, and was not told of {what}"),
                }
            }
        });
        join_all(told).await;
    }

    /// What comes of some work with another member; none as soon as that one does not answer any more.
    pub(super) async fn while_there<T>(
        &self,
        row: &MemberRow,
        patience: Patience,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let address = row.address.to_string();
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.db.gone(row.id, &address, patience) => None,
        }
    }

    /// Reads the rows with everything that was acknowledged before.
    pub(super) async fn rows(&self) -> Result<Vec<MemberRow>, db::Error> {
        self.db.read(Consistency::Linearizable, members::all).await
    }

    /// Makes the trusted members those of the table, as this replica has it, and those it has learned of.
    pub async fn refresh_trust(&self) -> Result<bool, db::Error> {
        let rows = self.db.read(Consistency::Local, members::all).await?;
        // A replica that has not got this member's own row yet is older than the list that came
        // with the admission: replacing the list by it would lock out those who bring the rest.
        if !rows.iter().any(|row| row.id == self.id) {
            return Ok(false);
        }
        let learned = self.learned().clone();
        let table = members::trust_set(&rows, &self.db.status().voters);
        Ok(self.trust.replace(learned.iter().chain(table.iter()).cloned().collect()))
    }

    /// How far the owner of a certificate is trusted, by the table if that may say more than what was trusted so far. Who is joining may
    /// have been taken in by a log entry that this replica has not got yet.
    pub async fn trusted_as(&self, certificate: &Fingerprint) -> Result<Option<TrustedAs>, db::Error> {
        if self.trust.trusted_as(certificate) == Some(TrustedAs::Member) {
            return Ok(Some(TrustedAs::Member));
        }
        self.refresh_trust().await?;
        if self.trust.trusted_as(certificate) == Some(TrustedAs::Joiner) {
            let late = |_| Err(db::Error::NoQuorum { detail: "who has joined cannot be told now".to_owned() });
            let reached = tokio::time::timeout(LINEARIZE_TIMEOUT, self.db.linearize()).await.unwrap_or_else(late);
            self.refresh_trust().await?;
            if self.trust.trusted_as(certificate) == Some(TrustedAs::Joiner) {
                // It may be a member by now all the same.
                reached?;
            }
        }
        Ok(self.trust.trusted_as(certificate))
    }

    /// What is trusted beside the table.
    pub(super) fn learned(&self) -> MutexGuard<'_, Arc<TrustSet>> {
        // Nothing that holds the lock can panic, so a poisoned value is a whole one.
        self.learned.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn confirming(&self) -> MutexGuard<'_, HashSet<NodeId>> {
        // Nothing that holds the lock can panic, so a poisoned value is a whole one.
        self.confirming.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Notes who has answered a heartbeat; who is silent for long may have to be replaced.
    pub(super) fn note_heartbeat(&self, asked: &[NodeId], alive: &[NodeId]) {
        let term = self.db.status().term;
        if self.liveness().note(term, asked, alive, Instant::now()) {
            tracing::info!(unreachable = ?self.unreachable(), "other members can be reached than before");
            self.nudge();
        }
    }

    /// Notes that a member does not answer, without waiting for more heartbeats.
    pub(super) fn note_silent(&self, id: NodeId) {
        let term = self.db.status().term;
        self.liveness().note_silent(term, id, Instant::now());
    }

    /// Members that have been silent for long, as this one has found while it leads.
    pub(super) fn unreachable(&self) -> BTreeSet<NodeId> {
        self.liveness().unreachable(self.db.status().term)
    }

    /// Whether a member answers now. One that is known to be silent is not waited for again by each step of a change.
    pub(super) async fn is_alive(&self, row: &MemberRow) -> bool {
        let address = row.address.to_string();
        // Several heartbeats, and all that Raft has asked it since.
        if self.unreachable().contains(&row.id) && self.db.is_silent(row.id, &address, ALIVE.silence) {
            return false;
        }
        self.answers(row).await
    }

    /// The same, by asking it whatever is known.
    pub(super) async fn answers(&self, row: &MemberRow) -> bool {
        self.db.is_there(row.id, &row.address.to_string(), ALIVE).await.is_ok()
    }

    fn liveness(&self) -> MutexGuard<'_, Liveness> {
        // Nothing that holds the lock can panic, so a poisoned value is a whole one.
        self.liveness.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Changes the voters unless they are these already; finishes a change that was interrupted.
    pub(super) async fn ensure_voters(&self, voters: BTreeSet<NodeId>) -> Result<(), db::Error> {
        let status = self.db.status();
        if status.voters == voters && !status.is_joint {
            return Ok(());
        }
        self.db.set_voters(voters).await
    }

    /// Has this replica get what is committed, if a majority can be asked in time.
    async fn catch_up(&self) {
        if self.db.status().has_quorum
            && let Ok(Err(e)) = tokio::time::timeout(LINEARIZE_TIMEOUT, self.db.linearize()).await
        {
            tracing::debug!(error = %e, "listing the members from the local replica");
        }
    }

    pub(super) async fn probe_all(&self, rows: &[MemberRow]) -> HashMap<NodeId, MemberStatus> {
        join_all(rows.iter().map(async |row| (row.id, self.probe(row).await))).await.into_iter().collect()
    }

    async fn probe(&self, row: &MemberRow) -> MemberStatus {
        if row.id == self.id {
            return MemberStatus::Online;
        }
        match self.db.is_there(row.id, &row.address.to_string(), PROBE).await {
            // Another daemon may listen there by now.
            Ok(peer) if peer.node_id != row.id => MemberStatus::NotFound,
            Ok(_) => MemberStatus::Online,
            Err(e) => not_online(&e),
        }
    }
}

/// What is shown of a member that does not answer, or for which another one does.
fn not_online(error: &PingError) -> MemberStatus {
    match error {
        PingError::OtherNode { .. } => MemberStatus::NotFound,
        PingError::NotTrusted { .. } => MemberStatus::NotTrusted,
        _ => MemberStatus::Unreachable,
    }
}
