//! When a member stands for election.
//!
//! A voter that hears of no leader for as long as a lease and a random time asks the others first whether they would vote for it: PreVote, section 9.6 of
//! Ongaro's dissertation "Consensus: Bridging Theory and Practice". Only if a majority would does it stand, in a new term. So one that was cut off alone
//! does not count terms up meanwhile, and deposes nobody when it is back; nor does one whose way to the leader alone is cut.
//!
//! A leader that falls silent is waited for. The end of its connection says more than silence: its process is gone. Then nobody waits for
//! the random time; the voters ask one after the other instead. None of this weakens an election: who stands needs the votes of a
//! majority as ever, and who has heard of the leader during the lease does not vote.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::ServerState;
use tokio::time::sleep_until;

use super::log_store::LogStore;
use super::network::{Call, Peers, Reply};
use super::options::Timings;
use super::raft_types::{LogId, NodeId, Raft, Vote};
use super::read_index::is_majority;
use super::writer::Shared;

/// For how long nothing else is done about an election that was begun.
const BEGUN_MAX: Duration = Duration::from_secs(5);

/// Decides when this member stands for election, and whether another one may.
pub(crate) struct Elections {
    node_id: NodeId,
    raft: Raft,
    log: LogStore,
    peers: Arc<Peers>,
    shared: Arc<Shared>,
    /// For how long after a leader was heard of nobody votes for another one.
    lease: Duration,
    /// The shortest and the longest time that is waited for besides.
    pause: (Duration, Duration),
    /// One voter heard of the leader later than another one: its lease is over later.
    margin: Duration,
    /// Between one voter and the next, where the leader's process is gone.
    turn: Duration,
    vote: Mutex<VoteSince>,
}

/// The vote of this member, and since when it is that one.
#[derive(Debug, Clone, Copy)]
struct VoteSince {
    vote: Vote,
    since: Instant,
    /// When Raft was told to stand for election, which changes the vote once that is on stable storage.
    stood: Option<Instant>,
}

impl Elections {
    /// Those of this member, whose Raft does not stand by itself.
    pub fn new(
        node_id: NodeId,
        raft: Raft,
        log: LogStore,
        peers: Arc<Peers>,
        shared: Arc<Shared>,
        timings: &Timings,
    ) -> Elections {
        let vote = Mutex::new(VoteSince { vote: raft.metrics().borrow().vote, since: Instant::now(), stood: None });
        let (lease, pause) = (timings.election.1, timings.election);
        let (margin, turn) = (timings.heartbeat / 2, timings.heartbeat);
        Elections { node_id, raft, log, peers, shared, lease, pause, margin, turn, vote }
    }

    /// Stands for election whenever no leader is heard of, until Raft is shut down.
    pub async fn run(&self) {
        let mut metrics = self.raft.server_metrics();
        let mut tried = None;
        loop {
            let (state, vote) = {
                let now = metrics.borrow_and_update();
                (now.state, now.vote)
            };
            self.note(vote);
            // Raft waits so long for the votes, and who is elected has to sync that before it is heard of.
            let least = if vote.is_committed() { Duration::ZERO } else { self.lease };
            let due = async {
                match state {
                    ServerState::Follower | ServerState::Candidate => self.due(tried, least).await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = metrics.changed() => if changed.is_err() {
                    return;
                },
                () = due => {
                    tried = Some(Instant::now());
                    self.stand().await;
                }
            }
        }
    }

    /// Stands for election after the leader of `vote`, whose connection has ended, unless it or another one is heard of.
    pub async fn succeed(&self, vote: Vote) {
        let leader = vote.leader_id.voted_for();
        let mut metrics = self.raft.server_metrics();
        let (follows, voters) = {
            let now = metrics.borrow();
            (now.vote == vote, now.membership_config.membership().voter_ids().collect::<Vec<_>>())
        };
        let place = place(&voters, leader, self.node_id);
        let Some((place, last)) = place.zip(self.shared.heard.last()).filter(|_| follows) else { return };
        let turn = last + self.lease + self.margin + self.turn * place;
        tokio::select! {
            // Somebody else stands.
            _ = metrics.wait_for(|now| now.vote != vote) => return,
            () = sleep_until(turn.into()) => {}
        }
        if self.shared.heard.last() == Some(last) {
            tracing::info!(?leader, "the leader's connection has ended and its lease is over");
            self.stand().await;
        }
    }

    /// Whether this member would vote for one whose log ends with `last`.
    pub fn would_vote(&self, last: Option<LogId>) -> bool {
        self.note(self.raft.server_metrics().borrow().vote);
        let now = Instant::now();
        let leads = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            let answered = metrics.millis_since_quorum_ack.map(Duration::from_millis);
            metrics.state == ServerState::Leader && answered.is_some_and(|since| since <= self.lease)
        };
        !leads && self.lease_ends() <= now && last >= self.log.ends().1
    }

    /// Stands for election if a majority would vote for this member.
    async fn stand(&self) {
        // One whose state is damaged must not decide what comes of writes, if others can.
        if self.shared.damage.borrow().is_some() && !self.is_alone() {
            return;
        }
        let now = || (self.raft.server_metrics().borrow().vote, self.shared.heard.last());
        let before = now();
        let has_begun = |at: Instant| at.elapsed() < BEGUN_MAX;
        if !self.would_be_elected().await || now() != before || self.lock().stood.is_some_and(has_begun) {
            return;
        }
        self.lock().stood = Some(Instant::now());
        tracing::info!("no leader is heard of: this member stands for election");
        if let Err(error) = self.raft.trigger().elect().await {
            tracing::debug!(%error, "this member could not stand for election");
        }
    }

    /// Asks all voters at once, and waits for as many as are needed.
    async fn would_be_elected(&self) -> bool {
        let membership = Arc::clone(&self.raft.server_metrics().borrow().membership_config);
        let membership = membership.membership();
        let last = self.log.ends().1;
        let mut willing = BTreeSet::from([self.node_id]);
        let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
        if !voters.contains(&self.node_id) {
            return false;
        }
        let others = membership.nodes().filter(|(id, _)| **id != self.node_id && voters.contains(id));
        let mut asked: FuturesUnordered<_> = others
            .map(|(&id, peer)| async move {
                let call = self.peers.call(id, &peer.address, Call::PreVote(last));
                let answer = tokio::time::timeout(self.pause.0, call).await;
                // One of an earlier build does not know the question.
                matches!(answer, Ok(Ok(Reply::WouldVote(true) | Reply::Failed(_)))).then_some(id)
            })
            .collect();
        while !is_majority(membership.get_joint_config(), &willing) {
            match asked.next().await {
                Some(answer) => willing.extend(answer),
                None => return false,
            }
        }
        true
    }

    /// Done when the lease is over and, since then and since it was `tried` last, `least` and a random time. The only voter does without
    /// that at first.
    async fn due(&self, tried: Option<Instant>, least: Duration) {
        let pause = match tried {
            None if self.is_alone() => Duration::ZERO,
            _ => least + rand::random_range(self.pause.0..self.pause.1),
        };
        loop {
            let ended = self.lease_ends();
            let due = tried.map_or(ended, |tried| tried.max(ended)) + pause;
            if due <= Instant::now() {
                return;
            }
            sleep_until(due.into()).await;
        }
    }

    /// Whether nobody else votes.
    fn is_alone(&self) -> bool {
        self.raft.server_metrics().borrow().membership_config.membership().voter_ids().eq([self.node_id])
    }

    /// When this member is free to vote for another one.
    fn lease_ends(&self) -> Instant {
        let VoteSince { vote, since, .. } = *self.lock();
        match self.shared.heard.last() {
            Some(heard) if heard > since => heard + self.lease,
            _ if vote.is_committed() => since + self.lease,
            _ => since,
        }
    }

    fn note(&self, vote: Vote) {
        let mut known = self.lock();
        if known.vote != vote {
            *known = VoteSince { vote, since: Instant::now(), stood: None };
        }
    }

    fn lock(&self) -> MutexGuard<'_, VoteSince> {
        // What the mutex holds is valid at every moment, also if a holder panicked.
        self.vote.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which of the voters that are left a node is, counted from 0.
fn place(voters: &[NodeId], leader: Option<NodeId>, node_id: NodeId) -> Option<u32> {
    let mut left: Vec<NodeId> = voters.iter().copied().filter(|id| Some(*id) != leader).collect();
    left.sort_unstable();
    left.iter().position(|id| *id == node_id).and_then(|place| u32::try_from(place).ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use openraft::CommittedLeaderId;

    use super::*;
    use crate::db::tests::kit::{Cluster, until};

    #[test]
    fn the_voters_that_are_left_have_a_place_each() {
        let of = |node_id| place(&[3, 1, 7], Some(3), node_id);
        assert_eq!([1, 7, 3, 4].map(of), [Some(0), Some(1), None, None]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nobody_would_vote_while_a_leader_is_heard_of_nor_for_a_shorter_log() {
        let mut cluster = Cluster::new(3).await;
        let leader = cluster.leader().await;
        let follower = cluster.db(leader % 3 + 1).inner.clone();
        let (elections, last) = (&follower.service.elections, follower.log.ends().1);
        // For as long as it is heard of. A machine that stands still for longer has one look in vain.
        until("the leader is heard of", async || !elections.would_vote(last)).await;
        until("the leader leads", async || !cluster.db(leader).inner.service.elections.would_vote(last)).await;
        let other = (leader + 1) % 3 + 1;
        cluster.kill(leader).await;
        cluster.isolate(other);
        until("the lease is over", async || elections.would_vote(follower.log.ends().1)).await;
        assert!(!elections.would_vote(None));
        assert!(!elections.would_vote(Some(LogId::new(CommittedLeaderId::new(0, 9), u64::MAX))), "of an earlier term");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_voter_that_is_cut_off_counts_no_terms_up() {
        let cluster = Cluster::new(3).await;
        let leader = cluster.leader().await;
        let away = leader % 3 + 1;
        cluster.isolate(away);
        until("it knows of no leader", async || cluster.db(away).status().leader.is_none()).await;
        let term = cluster.db(away).status().term;
        // It would stand three times a second.
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(cluster.db(away).status().term, term);
        cluster.heal();
        until("it follows", async || cluster.db(away).status().leader.is_some()).await;
        cluster.db(away).execute("CREATE TABLE t(a)", ()).await.unwrap();
        cluster.wait_same().await;
    }
}
