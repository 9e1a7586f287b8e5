//! Changes of Raft's membership. Only the leader makes them, one at a time.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openraft::error::{ChangeMembershipError, ClientWriteError, Fatal, ForwardToLeader, RaftError};
use openraft::{ChangeMembers, LogId};

use super::Database;
use super::error::Error;
use super::network::Call;
use super::raft_types::{NodeId, Peer, Raft};
use super::status::Status;

/// How long a change may take; a new member may have to get a snapshot meanwhile.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause before a change is tried again that another one was in the way of.
const CHANGE_PAUSE: Duration = Duration::from_millis(20);
/// How long one try to hand the leadership over may take, and how many there are: the successor may lose the election.
const TRANSFER_TIMEOUT: Duration = Duration::from_millis(1_500);
const TRANSFER_ROUNDS: u32 = 2;

/// A leader that shows nobody that it is there: it sends no heartbeats, and takes no writes and no reads. Other members
/// keep theirs until somebody else leads.
struct Silent<'a> {
    raft: &'a Raft,
    handing_over: &'a AtomicBool,
}

impl<'a> Silent<'a> {
    fn begin(raft: &'a Raft, handing_over: &'a AtomicBool) -> Silent<'a> {
        handing_over.store(true, Ordering::Release);
        raft.runtime_config().heartbeat(false);
        Silent { raft, handing_over }
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        self.raft.runtime_config().heartbeat(true);
        self.handing_over.store(false, Ordering::Release);
    }
}

type Changed<T> = Result<T, RaftError<NodeId, ClientWriteError<NodeId, Peer>>>;

impl Database {
    /// Adds a node that gets the log and does not vote, and returns when it has caught up.
    ///
    /// # Errors
    /// [`Error::NotLeader`] unless this member leads; [`Error::NoQuorum`] if it took too long.
    pub(crate) async fn add_learner(&self, id: NodeId, peer: Peer) -> Result<(), Error> {
        self.changed(async {
            let added = self.when_free(|| self.inner.raft.add_learner(id, peer.clone(), false)).await?.log_id;
            self.caught_up(id, added).await
        })
        .await
    }

    /// Adds a node that gets the log and does not vote, and does not wait for it.
    ///
    /// # Errors
    /// As [`Database::add_learner`].
    pub(crate) async fn add_node(&self, id: NodeId, peer: Peer) -> Result<(), Error> {
        self.changed(self.when_free(|| self.inner.raft.add_learner(id, peer.clone(), false))).await
    }

    /// Makes `voters` the nodes that vote, by joint consensus. Nodes that voted before go on as learners.
    ///
    /// # Errors
    /// As [`Database::add_learner`]. A change that was interrupted is finished by the next one.
    pub(crate) async fn set_voters(&self, voters: BTreeSet<NodeId>) -> Result<(), Error> {
        self.changed(self.when_free(|| self.inner.raft.change_membership(voters.clone(), true))).await
    }

    /// Takes a node out of the voters and the learners.
    ///
    /// # Errors
    /// As [`Database::add_learner`].
    pub(crate) async fn remove_node(&self, id: NodeId) -> Result<(), Error> {
        let remove = |change: fn(BTreeSet<NodeId>) -> ChangeMembers<NodeId, Peer>| {
            self.changed(self.when_free(move || self.inner.raft.change_membership(change(BTreeSet::from([id])), true)))
        };
        if self.status().voters.contains(&id) {
            remove(ChangeMembers::RemoveVoters).await?;
        }
        remove(ChangeMembers::RemoveNodes).await
    }

    /// Lets another voter lead, before this member leaves or stops. Returns when one does, or when it took too long.
    ///
    /// openraft 0.9 has no transfer: the leader falls silent for the length of its lease, then asks the voter that has the
    /// most of the log to stand for election.
    ///
    /// # Errors
    /// [`Error::NotLeader`] unless this member leads; [`Error::NoQuorum`] if nobody else can or did take over.
    pub(crate) async fn transfer_leadership(&self) -> Result<(), Error> {
        let status = self.status();
        if !status.is_leader() {
            return Err(Error::NotLeader { leader: status.leader_peer().cloned() });
        }
        let no_successor = |detail: &str| Error::NoQuorum { detail: detail.to_owned() };
        if status.voters.iter().eq([&status.node_id]) {
            return Err(no_successor("there is no other voter to lead"));
        }
        let raft = &self.inner.raft;
        // Until the end, also when this future is dropped half-way.
        let _silent = Silent::begin(raft, &self.inner.shared.handing_over);
        let mut changes = self.status_watch();
        for _ in 0..TRANSFER_ROUNDS {
            // What is on its way renews the lease: the last of it is waited for.
            self.drained().await;
            let lease = tokio::time::sleep(self.inner.timings.election.1);
            let ((), answering) = tokio::join!(lease, self.answering(self.inner.timings.election.1));
            let status = self.status();
            let replication = raft.metrics().borrow().replication.clone().unwrap_or_default();
            let others = status.voters.iter().filter(|id| **id != status.node_id);
            let best = others.max_by_key(|id| {
                let matched = replication.get(id).copied().flatten().map(|log_id| log_id.index);
                // One that is cut off may have as much of the log, and cannot be asked.
                (answering.contains(id), matched)
            });
            let Some((id, peer)) = best.and_then(|id| Some((*id, status.nodes.get(id)?))) else { break };
            let ask = async {
                // Who was asked before may be about to lead.
                if status.is_leader()
                    && let Err(error) = self.inner.peers.call(id, &peer.address, Call::Campaign).await
                {
                    tracing::debug!(%error, "the successor could not be asked");
                }
                let other_leads = |status: &Status| status.leader.is_some_and(|leader| leader != status.node_id);
                changes.wait_for(other_leads).await.map(|_| ())
            };
            if matches!(tokio::time::timeout(TRANSFER_TIMEOUT, ask).await, Ok(Ok(()))) {
                return Ok(());
            }
        }
        Err(no_successor("no other voter took over in time"))
    }

    /// The other voters that answer in that time.
    async fn answering(&self, time: Duration) -> BTreeSet<NodeId> {
        let status = self.status();
        let others = status.nodes.iter().filter(|(id, _)| status.voters.contains(id) && **id != status.node_id);
        let asked =
            others.map(|(id, peer)| async move { self.ping(*id, &peer.address, time).await.is_ok().then_some(*id) });
        futures_util::future::join_all(asked).await.into_iter().flatten().collect()
    }

    /// Waits until a majority has all that is in the log, or for as long as the lease.
    async fn drained(&self) {
        let mut metrics = self.inner.raft.metrics();
        let all_applied = metrics.wait_for(|now| now.last_applied.map(|log_id| log_id.index) >= now.last_log_index);
        tokio::time::timeout(self.inner.timings.election.1, all_applied).await.map(|_| ()).ok();
    }

    /// Waits until a node has the log up to an entry. openraft's own wait ends when the node is no more than
    /// some thousands of entries behind: in a young cluster that is at once, whether it was ever reached or
    /// not, and letting such a node vote can cost the quorum.
    async fn caught_up(&self, id: NodeId, log_id: LogId<NodeId>) -> Changed<()> {
        let mut metrics = self.inner.raft.metrics();
        loop {
            {
                let now = metrics.borrow_and_update();
                let Some(replication) = &now.replication else {
                    return Err(RaftError::APIError(ClientWriteError::ForwardToLeader(ForwardToLeader::empty())));
                };
                let membership = &now.membership_config;
                let is_removed =
                    *membership.log_id() >= Some(log_id) && membership.membership().get_node(&id).is_none();
                if is_removed || replication.get(&id).copied().flatten() >= Some(log_id) {
                    return Ok(());
                }
            }
            metrics.changed().await.map_err(|_| RaftError::Fatal(Fatal::Stopped))?;
        }
    }

    /// Tries a change again while another one is under way: openraft makes one at a time, and a joiner is added at any.
    async fn when_free<T, F: Future<Output = Changed<T>>>(&self, change: impl Fn() -> F) -> Changed<T> {
        loop {
            match change().await {
                Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(
                    ChangeMembershipError::InProgress(_),
                ))) => {
                    tokio::time::sleep(CHANGE_PAUSE).await;
                }
                changed => return changed,
            }
        }
    }

    async fn changed<T>(&self, change: impl Future<Output = Changed<T>>) -> Result<(), Error> {
        match tokio::time::timeout(CHANGE_TIMEOUT, change).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                Err(Error::NotLeader { leader: forward.leader_node })
            }
            Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(
                ChangeMembershipError::InProgress(_),
            )))) => Err(Error::Busy { detail: "another change of the members is under way" }),
            Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error)))) => {
                Err(Error::Refused { message: error.to_string() })
            }
            Ok(Err(RaftError::Fatal(error))) => Err(Error::Fatal(error.to_string())),
            Err(_) => Err(Error::OutcomeUnknown { waited: CHANGE_TIMEOUT }),
        }
    }
}
