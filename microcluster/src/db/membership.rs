//! Changes of Raft's membership. Only the leader makes them, one at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::error::{ChangeMembershipError, ClientWriteError, Fatal, ForwardToLeader, RaftError};
use openraft::{ChangeMembers, LogId};

use super::Database;
use super::error::Error;
use super::network::Call;
use super::raft_types::{NodeId, Peer, Raft};

/// How long a change may take; a new member may have to get a snapshot meanwhile.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the transfer of the leadership may take.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(2);

/// Lets a leader send heartbeats again.
struct BeatAgain<'a>(&'a Raft);

impl Drop for BeatAgain<'_> {
    fn drop(&mut self) {
        self.0.runtime_config().heartbeat(true);
    }
}

type Changed<T> = Result<T, RaftError<NodeId, ClientWriteError<NodeId, Peer>>>;

impl Database {
    /// Adds a node that gets the log and does not vote, and returns when it has caught up.
    ///
    /// # Errors
    /// [`Error::NotLeader`] unless this member leads; [`Error::NoQuorum`] if it took too long.
    pub async fn add_learner(&self, id: NodeId, peer: Peer) -> Result<(), Error> {
        self.changed(async {
            let added = self.inner.raft.add_learner(id, peer, false).await?.log_id;
            self.caught_up(id, added).await
        })
        .await
    }

    /// Makes `voters` the nodes that vote, by joint consensus. Nodes that voted before go on as learners.
    ///
    /// # Errors
    /// As [`Database::add_learner`]. A change that was interrupted is finished by the next one.
    pub async fn set_voters(&self, voters: BTreeSet<NodeId>) -> Result<(), Error> {
        self.changed(self.inner.raft.change_membership(voters, true)).await
    }

    /// Takes a node out of the voters and the learners.
    ///
    /// # Errors
    /// As [`Database::add_learner`].
    pub async fn remove_node(&self, id: NodeId) -> Result<(), Error> {
        if self.status().voters.contains(&id) {
            self.changed(self.inner.raft.change_membership(ChangeMembers::RemoveVoters(BTreeSet::from([id])), true))
                .await?;
        }
        self.changed(self.inner.raft.change_membership(ChangeMembers::RemoveNodes(BTreeSet::from([id])), true)).await
    }

    /// Records another name or address for a node.
    ///
    /// # Errors
    /// As [`Database::add_learner`].
    pub async fn set_peer(&self, id: NodeId, peer: Peer) -> Result<(), Error> {
        self.changed(self.inner.raft.change_membership(ChangeMembers::SetNodes(BTreeMap::from([(id, peer)])), true))
            .await
    }

    /// Lets another voter lead, before this member leaves or stops. Returns when one does, or when it took too long.
    ///
    /// openraft 0.9 has no transfer: the leader falls silent for the length of its lease, then asks the voter that has the
    /// most of the log to stand for election.
    ///
    /// # Errors
    /// [`Error::NotLeader`] unless this member leads; [`Error::NoQuorum`] if nobody else can or did take over.
    pub async fn transfer_leadership(&self) -> Result<(), Error> {
        let status = self.status();
        if !status.is_leader() {
            return Err(Error::NotLeader { leader: status.leader_peer().cloned() });
        }
        let raft = &self.inner.raft;
        let replication = raft.metrics().borrow().replication.clone().unwrap_or_default();
        let others = status.voters.iter().filter(|id| **id != status.node_id);
        let best = others.max_by_key(|id| replication.get(id).copied().flatten().map(|log_id| log_id.index));
        let no_successor = |detail: &str| Error::NoQuorum { detail: detail.to_owned() };
        let (id, peer) = best
            .and_then(|id| Some((*id, status.nodes.get(id)?)))
            .ok_or_else(|| no_successor("there is no other voter to lead"))?;

        raft.runtime_config().heartbeat(false);
        // Also when this future is dropped half-way.
        let beating = BeatAgain(raft);
        tokio::time::sleep(self.inner.timings.election.1).await;
        let asked =
            tokio::time::timeout(TRANSFER_TIMEOUT, self.inner.peers.call(id, &peer.address, Call::Campaign)).await;
        let mut changes = self.status_watch();
        let changed = tokio::time::timeout(TRANSFER_TIMEOUT, changes.wait_for(|status| !status.is_leader())).await;
        drop(beating);
        match (asked, changed) {
            (Ok(Ok(_)), Ok(_)) => Ok(()),
            (Ok(Err(error)), _) => Err(no_successor(&error.to_string())),
            _ => Err(no_successor("no other voter took over in time")),
        }
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
