//! Linearizable reads: up to which log index must have been applied here before a read may be answered.
//! Reads that arrive together share one confirmation by the quorum.
//!
//! This is the read index of section 6.4 of Ongaro's dissertation "Consensus: Bridging Theory and Practice". The leader takes the highest
//! index that may have been seen applied anywhere, and only then asks the voters whose vote they follow. Those who still follow it have not
//! voted for a later leader, and a later leader has the votes of a majority: so when a majority confirms there was none when the
//! question was asked, and nothing that this leader does not know of had been acknowledged by then.
//!
//! A follower that asks for reads of its own says along with that whose vote it follows. For its reads that is a confirmation: they had
//! begun before it looked. Of three voters it and the leader are the majority, and nobody else is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::{RaftMetrics, ServerState};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::log_store::LogStore;
use super::network::{Call, Follower, Peers, Reply};
use super::raft_types::{NodeId, Peer, Raft, Vote};
use super::sequencer::SubmitError;
use super::writer::Shared;

/// How many reads may wait for one confirmation.
const WAITING_MAX: usize = 4_096;
/// How long the quorum may take to confirm the leader.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);

type Metrics = RaftMetrics<NodeId, Peer>;
type Sender = oneshot::Sender<Result<u64, SubmitError>>;

/// A handle on the task that asks the quorum.
#[derive(Clone)]
pub(crate) struct ReadIndex {
    waiting: mpsc::Sender<Sender>,
    quorum: Arc<Quorum>,
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
        let quorum = Arc::new(quorum);
        let read_index = ReadIndex { waiting, quorum: Arc::clone(&quorum), shared: Arc::clone(&shared) };
        (read_index, run(quorum, receiver, shared, cancelled))
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

    /// What this member says of itself when it asks its leader.
    pub fn follower(&self) -> Option<Follower> {
        let Quorum { node_id, log, .. } = &*self.quorum;
        log.vote().map(|vote| Follower { node_id: *node_id, vote })
    }

    /// On the leader, for reads of `follower` that had begun when it asked: the index, confirmed by a quorum after that.
    pub async fn for_follower(&self, follower: Option<Follower>) -> Result<u64, SubmitError> {
        if let Some(follower) = follower
            && !self.shared.handing_over.load(Ordering::Acquire)
        {
            let standing = tokio::time::timeout(CONFIRM_TIMEOUT, self.quorum.standing()).await;
            let standing = standing.unwrap_or(Err(SubmitError::NoQuorum))?;
            if standing.is_confirmed_by(self.quorum.node_id, follower) {
                return Ok(standing.index);
            }
        }
        self.on_leader().await
    }
}

async fn run(
    quorum: Arc<Quorum>,
    mut waiting: mpsc::Receiver<Sender>,
    shared: Arc<Shared>,
    cancelled: CancellationToken,
) {
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
    pub shared: Arc<Shared>,
}

/// What is known when a round begins.
struct Standing {
    vote: Vote,
    /// What a read must have seen.
    index: u64,
    /// The voters; two sets while the membership changes, each of which has to confirm.
    voters: Vec<BTreeSet<NodeId>>,
    addresses: BTreeMap<NodeId, String>,
}

impl Standing {
    /// Whether `leader`, whose standing it is, and one that follows it are a majority.
    fn is_confirmed_by(&self, leader: NodeId, follower: Follower) -> bool {
        follower.vote.leader_id() == self.vote.leader_id()
            && is_majority(&self.voters, &BTreeSet::from([leader, follower.node_id]))
    }
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

    /// As this member leads, from what Raft has last said of itself: its task is not asked, which waits for the disk at times. A leader that has applied
    /// nothing of its own term yet is waited for, since it cannot know what was acknowledged before it.
    async fn standing(&self) -> Result<Standing, SubmitError> {
        let no_leader = SubmitError::NotLeader { leader: None };
        let mut metrics = self.raft.metrics();
        let (leads, vote, membership) = {
            let known = metrics.wait_for(|now| !leads(now) || applies_its_own(now)).await;
            // Raft's task waits for as long as this is held.
            let known = known.map_err(|_| no_leader.clone())?;
            (leads(&known), known.vote, Arc::clone(&known.membership_config))
        };
        let applied = *self.shared.applied.borrow();
        // What was acknowledged, or read anywhere, is not behind it.
        let index = self.shared.visible.load(Ordering::Acquire);
        debug_assert!(index >= applied, "what is applied is visible");
        if !leads || self.log.vote() != Some(vote) {
            return Err(no_leader);
        }
        let membership = membership.membership();
        let voters = membership.get_joint_config().clone();
        let is_voter = |id: &NodeId| voters.iter().any(|set| set.contains(id));
        let nodes = membership.nodes().filter(|(id, _)| is_voter(id));
        let addresses = nodes.map(|(id, peer)| (*id, peer.address.clone())).collect();
        Ok(Standing { vote, index, voters, addresses })
    }
}

fn leads(metrics: &Metrics) -> bool {
    let is_own = metrics.vote.is_committed() && metrics.vote.leader_id().voted_for() == Some(metrics.id);
    metrics.running_state.is_ok() && metrics.state == ServerState::Leader && is_own
}

fn applies_its_own(metrics: &Metrics) -> bool {
    metrics.last_applied.is_some_and(|applied| applied.leader_id == *metrics.vote.leader_id())
}

/// Whether these are a majority; while the voters change, of both the old and the new ones.
pub(super) fn is_majority(voters: &[BTreeSet<NodeId>], confirmed: &BTreeSet<NodeId>) -> bool {
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

    #[test]
    fn a_voter_that_follows_the_leader_confirms_what_it_asks_for_itself() {
        let standing = |voters: &[&[NodeId]]| Standing {
            vote: Vote::new_committed(3, 1),
            index: 7,
            voters: voters.iter().map(|set| set.iter().copied().collect()).collect(),
            addresses: BTreeMap::new(),
        };
        let confirms = |voters, node_id, vote| standing(voters).is_confirmed_by(1, Follower { node_id, vote });
        let (same, later) = (Vote::new_committed(3, 1), Vote::new(4, 2));
        assert!(confirms(&[&[1, 2, 3]], 2, same));
        assert!(confirms(&[&[1, 2, 3]], 2, Vote::new(3, 1)), "it has voted for it");
        assert!(!confirms(&[&[1, 2, 3]], 2, later));
        assert!(!confirms(&[&[1, 2, 3]], 2, Vote::new_committed(2, 1)), "it follows what this leader was before");
        assert!(!confirms(&[&[1, 2, 3]], 4, same), "it has no vote");
        assert!(!confirms(&[&[1, 2, 3, 5, 6]], 2, same), "of five");
        assert!(!confirms(&[&[1, 2, 3], &[1, 4, 5]], 2, same), "of the new voters none");
    }
}
