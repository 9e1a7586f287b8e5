//! Linearizable reads: up to which log index must have been applied here before a read may be answered.
//! Reads that arrive together share one confirmation by the quorum.
//!
//! This is the read index of section 6.4 of Ongaro's dissertation "Consensus: Bridging Theory and Practice". The leader takes the last
//! index known to be committed, and only then asks the voters whose vote they follow. Those who still follow it have not
//! voted for a later leader, and a later leader has the votes of a majority: so when a majority confirms there was none when the
//! question was asked, and nothing that this leader does not know of had been acknowledged by then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::log_store::LogStore;
use super::network::{Call, Peers, Reply};
use super::raft_types::{NodeId, Peer, Raft, Vote};
use super::sequencer::SubmitError;
use super::writer::Shared;

/// How many reads may wait for one confirmation.
const WAITING_MAX: usize = 4_096;
/// How long the quorum may take to confirm the leader.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);

type Sender = oneshot::Sender<Result<u64, SubmitError>>;

/// A handle on the task that asks the quorum.
#[derive(Clone)]
pub(crate) struct ReadIndex {
    waiting: mpsc::Sender<Sender>,
    shared: Arc<Shared>,
}

impl ReadIndex {
    /// The handle and its task, to be spawned by the database.
    pub fn new(
        quorum: Quorum,
        shared: Arc<Shared>,
        cancelled: CancellationToken,
    ) -> (ReadIndex, impl Future<Output = ()> + Send) {
        let (waiting, receiver) = mpsc::channel(WAITING_MAX);
        (ReadIndex { waiting, shared: Arc::clone(&shared) }, run(quorum, receiver, shared, cancelled))
    }

    /// On the leader: the index, confirmed by a quorum after this call began.
    pub async fn on_leader(&self) -> Result<u64, SubmitError> {
        if self.shared.handing_over.load(Ordering::Acquire) {
            return Err(SubmitError::NotLeader { leader: None });
        }
        let (answer, receiver) = oneshot::channel();
        self.waiting.try_send(answer).map_err(|_| SubmitError::Busy)?;
        receiver.await.unwrap_or(Err(SubmitError::Lost))
    }
}

async fn run(quorum: Quorum, mut waiting: mpsc::Receiver<Sender>, shared: Arc<Shared>, cancelled: CancellationToken) {
    let mut round: Vec<Sender> = Vec::new();
    loop {
        tokio::select! {
            () = cancelled.cancelled() => return,
            received = waiting.recv_many(&mut round, WAITING_MAX) => if received == 0 { return },
        }
        shared.read_rounds.fetch_add(1, Ordering::Relaxed);
        let result = tokio::time::timeout(CONFIRM_TIMEOUT, quorum.confirm()).await;
        let result = result.unwrap_or(Err(SubmitError::NoQuorum));
        for answer in round.drain(..) {
            let _ = answer.send(result.clone());
        }
    }
}

/// Those who can confirm that this member leads.
pub(crate) struct Quorum {
    pub node_id: NodeId,
    pub raft: Raft,
    pub log: LogStore,
    pub peers: Arc<Peers>,
}

/// What Raft knows when a round begins.
struct Standing {
    vote: Vote,
    /// What a read must have seen.
    index: u64,
    /// The voters; two sets while the membership changes, each of which has to confirm.
    voters: Vec<BTreeSet<NodeId>>,
    addresses: BTreeMap<NodeId, String>,
}

impl Quorum {
    /// The index, once a majority has confirmed that this member still leads.
    async fn confirm(&self) -> Result<u64, SubmitError> {
        let standing = self.standing().await?;
        let asked = standing.addresses.iter().filter(|(id, _)| **id != self.node_id).map(|(&id, address)| async move {
            (id, self.peers.call(id, address, Call::Confirm(standing.vote)).await)
        });
        let mut asked: FuturesUnordered<_> = asked.collect();
        let mut confirmed = BTreeSet::from([self.node_id]);
        while !is_majority(&standing.voters, &confirmed) {
            match asked.next().await {
                Some((id, Ok(Reply::Confirmed(true)))) => _ = confirmed.insert(id),
                Some((peer, refused)) => {
                    tracing::debug!(peer, ?refused, "a voter does not confirm that this member leads")
                }
                None => return Err(SubmitError::NoQuorum),
            }
        }
        Ok(standing.index)
    }

    /// Looks inside Raft's own loop, where all of it belongs together.
    async fn standing(&self) -> Result<Standing, SubmitError> {
        let log = self.log.clone();
        let look = move |state: &openraft::RaftState<NodeId, Peer, openraft::TokioInstant>| {
            let vote = *state.vote_ref();
            let committed = state.committed.filter(|log_id| log_id.leader_id == *vote.leader_id());
            let membership = state.membership_state.effective();
            let voters = membership.membership().get_joint_config().clone();
            let is_voter = |id: &NodeId| voters.iter().any(|set| set.contains(id));
            let nodes = membership.nodes().filter(|(id, _)| is_voter(id));
            let addresses = nodes.map(|(id, peer)| (*id, peer.address.clone())).collect();
            // Before a leader has committed an entry of its own term it does not know what others have committed: its last entry
            // is behind all of that.
            let index = committed.or_else(|| log.ends().1).map_or(0, |log_id| log_id.index);
            Standing { vote, index, voters, addresses }
        };
        let standing = self.raft.with_raft_state(look).await;
        let standing = standing.map_err(|_| SubmitError::NotLeader { leader: None })?;
        let leader = standing.vote.leader_id();
        if standing.vote.is_committed() && leader.voted_for() == Some(self.node_id) {
            Ok(standing)
        } else {
            Err(SubmitError::NotLeader { leader: None })
        }
    }
}

fn is_majority(voters: &[BTreeSet<NodeId>], confirmed: &BTreeSet<NodeId>) -> bool {
    voters.iter().all(|set| set.intersection(confirmed).count() * 2 > set.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_set_of_voters_has_to_confirm() {
        let set = |ids: &[NodeId]| ids.iter().copied().collect::<BTreeSet<_>>();
        assert!(is_majority(&[set(&[1])], &set(&[1])));
        assert!(!is_majority(&[set(&[1, 2])], &set(&[1])));
        assert!(is_majority(&[set(&[1, 2, 3])], &set(&[1, 3])));
        assert!(!is_majority(&[set(&[1, 2, 3]), set(&[1, 4, 5])], &set(&[1, 2, 3])));
        assert!(is_majority(&[set(&[1, 2, 3]), set(&[1, 4, 5])], &set(&[1, 2, 4])));
        // A leader that is no voter any more counts for nobody.
        assert!(!is_majority(&[set(&[2, 3])], &set(&[1, 2])));
    }
}
