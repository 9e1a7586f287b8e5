//! When a member stands for election.
//!
//! A voter that hears of no leader for as long as a lease and a random time asks the others first whether they would vote for it: PreVote, section 9.6 of
//! Ongaro's dissertation "Consensus: Bridging Theory and Practice". Only if a majority would does it stand, in a new term. So one that was cut off alone
//! does not count terms up meanwhile, and deposes nobody when it is back; nor does one whose way to the leader alone is cut.
//!
//! A leader that falls silent is waited for. The end of its connection says more than silence: its process is gone. Then nobody waits for
//! the random time; the voters ask one after the other instead. None of this weakens an election: who stands needs the votes of a
//! majority as ever, and who has heard of the leader during the lease does not vote.
//!
//! A vote is synced before it counts, and openraft waits for one no longer than for a lease. So that disks which are slower than that elect a leader
//! too, the others are asked for their votes first, for up to [`BEGUN_MAX`], and then by openraft, whom they answer at once. Meanwhile
//! nobody else stands: who gives a vote waits for what comes of it, the longer the slower its disk is. Of two that stand at once one gives way.
//! Where openraft asked in vain all the same, this member steps back once a majority would vote for it, and begins anew.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use openraft::ServerState;
use openraft::error::RaftError;
use openraft::raft::{VoteRequest, VoteResponse};
use tokio::sync::Notify;
use tokio::time::{sleep, sleep_until, timeout};

use super::log_store::LogStore;
use super::network::{Call, Peers, Reply};
use super::options::Timings;
use super::raft_types::{LogId, NOBODY, NodeId, Peer, Raft, Vote};
use super::read_index::is_majority;
use super::writer::Shared;

/// For how long nothing else is done about an election that was begun, and how long votes may take.
const BEGUN_MAX: Duration = Duration::from_secs(5);
/// The syncs until whoever is elected is heard of: its own vote, that it leads, and one to spare.
const SYNCS: u32 = 3;

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
    /// What this member stands for election with, and since when: its vote will be that once it is on stable storage.
    stands: Option<(Vote, Instant)>,
    /// How many votes are being given to others.
    giving: usize,
    /// How long votes took at most since there was a leader.
    took: Duration,
}

impl VoteSince {
    /// Whether nobody is being elected, as far as this member knows.
    fn is_free(&self) -> bool {
        let is_decided = self.is_of_no_candidate() || self.since.elapsed() >= self.patience();
        self.giving == 0 && self.stands().is_none() && is_decided
    }

    /// What this member stands for election with.
    fn stands(&self) -> Option<Vote> {
        self.stands.filter(|(_, since)| since.elapsed() < BEGUN_MAX).map(|(vote, _)| vote)
    }

    /// Whether there is nobody who may be elected by this vote.
    fn is_of_no_candidate(&self) -> bool {
        self.vote.is_committed() || self.vote.leader_id.voted_for() == Some(NOBODY)
    }

    /// How long it may take until whoever got a vote is heard of, by how long that one took.
    fn patience(&self) -> Duration {
        (self.took * SYNCS).min(BEGUN_MAX)
    }
}

/// This member stands for election with that vote, for as long as this is held.
struct Standing<'a>(&'a Elections, (Vote, Instant));

impl Standing<'_> {
    /// Makes sure that no vote is being given to another member, and that no lesser one will be while Raft is about to stand.
    fn renew(&mut self) -> bool {
        let mut state = self.0.lock();
        if state.giving > 0 || state.stands != Some(self.1) {
            return false;
        }
        self.1.1 = Instant::now();
        state.stands = Some(self.1);
        true
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        self.0.lock().stands.take_if(|stands| *stands == self.1);
    }
}

/// A vote is being given, for as long as this is held.
struct Giving<'a>(&'a Elections);

impl Drop for Giving<'_> {
    fn drop(&mut self) {
        self.0.lock().giving -= 1;
    }
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
        let (vote, since) = (raft.metrics().borrow().vote, Instant::now());
        let vote = Mutex::new(VoteSince { vote, since, stands: None, giving: 0, took: Duration::ZERO });
        let (lease, pause) = (timings.election.1, timings.election);
        // One of them may have heard a heartbeat more than the next one.
        let (margin, turn) = (timings.heartbeat / 2, timings.heartbeat * 3 / 2);
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
            let due = async {
                match state {
                    ServerState::Follower | ServerState::Candidate => self.due(tried).await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = metrics.changed() => if changed.is_err() {
                    return;
                },
                () = due => {
                    self.stand().await;
                    tried = Some(Instant::now());
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
            biased;
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
        self.standing();
        let now = Instant::now();
        let leads = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            let answered = metrics.millis_since_quorum_ack.map(Duration::from_millis);
            metrics.state == ServerState::Leader && answered.is_some_and(|since| since <= self.lease)
        };
        !leads && self.lock().is_free() && self.lease_ends() <= now && last >= self.log.ends().1
    }

    /// What Raft answers to one that stands for election. While this member stands itself, with a greater vote, it gives none.
    ///
    /// # Errors
    /// Raft's, when it has stopped.
    pub async fn vote(&self, request: VoteRequest<NodeId>) -> Result<VoteResponse<NodeId>, RaftError<NodeId>> {
        let (own, last) = (self.log.vote(), self.log.ends().1);
        let is_synced = own.is_some_and(|own| own >= request.vote);
        let _giving = {
            let mut state = self.lock();
            if state.stands().is_some_and(|stands| stands > request.vote) {
                return Ok(VoteResponse::new(own.unwrap_or_default(), last, false));
            }
            state.giving += 1;
            Giving(self)
        };
        let begun = Instant::now();
        let response = self.raft.vote(request).await?;
        if response.vote_granted && !is_synced {
            self.took(begun.elapsed());
        }
        Ok(response)
    }

    /// Stands for election, unless somebody else does: the leader wishes to be succeeded by this member.
    pub async fn campaign(&self) {
        let before = self.standing();
        if before.1 == ServerState::Follower {
            self.elect(before).await;
        }
    }

    /// Stands for election if a majority would vote for this member.
    async fn stand(&self) {
        // One whose state is damaged must not decide what comes of writes, if others can.
        if self.shared.damage.borrow().is_some() && !self.is_alone() {
            return;
        }
        let (before, heard) = (self.standing(), self.shared.heard.last());
        if !self.lock().is_free() {
            return;
        }
        if !matches!(before.1, ServerState::Follower | ServerState::Candidate) || !self.would_be_elected().await {
            return;
        }
        if (self.standing(), self.shared.heard.last()) != (before, heard) {
            return;
        }
        match before.1 {
            ServerState::Candidate => self.step_back(before.0).await,
            _ => self.elect(before).await,
        }
    }

    /// Has this member elected, a follower with that vote, unless something else comes of that meanwhile.
    async fn elect(&self, before: (Vote, ServerState)) {
        let (own, heard) = (before.0, self.shared.heard.last());
        let vote = Vote::new(own.leader_id.term + 1, self.node_id);
        let Some(mut standing) = self.begin(vote) else { return };
        let is_asked = self.is_voted_for(own, vote).await;
        // Raft may be about to follow another one.
        let is_led = || self.shared.heard.last() != heard && self.shared.heard.leader() > Some(own);
        if !is_asked || self.standing() != before || is_led() || !standing.renew() {
            return;
        }
        tracing::info!(?vote, "this member stands for election");
        match self.raft.trigger().elect().await {
            // Until its vote has changed.
            Ok(()) => std::mem::forget(standing),
            Err(error) => tracing::debug!(%error, "this member could not stand for election"),
        }
    }

    /// Ends a candidacy with `own` of which nothing came, by a vote for nobody. Asked to stand once more, Raft would do so in the next term at once. The others cannot
    /// be asked for votes of that term before: this member may still be elected in its own, and openraft does not cope with a leader whose followers
    /// have voted for it in a later term.
    async fn step_back(&self, own: Vote) {
        let last = self.log.ends().1;
        let is_elected = last.is_some_and(|last| last.leader_id == own.leader_id);
        // It may be, and Raft has not told yet: it waits for the disk. Where its first entry as the leader is not in the log yet Raft refuses what it is
        // asked below, for `last` is older than what Raft knows of: so it has to be this one.
        if is_elected || !self.lock().is_free() {
            return;
        }
        let nobody = VoteRequest::new(Vote::new(own.leader_id.term, NOBODY), last);
        if let Err(error) = self.raft.vote(nobody).await {
            tracing::debug!(%error, "this member could not step back from an election");
        }
    }

    /// The vote of this member, and what it is.
    fn standing(&self) -> (Vote, ServerState) {
        let (vote, state) = {
            let metrics = self.raft.server_metrics();
            let metrics = metrics.borrow();
            (metrics.vote, metrics.state)
        };
        self.note(vote);
        (vote, state)
    }

    /// Notes that this member stands for election with `vote`, unless somebody else does.
    fn begin(&self, vote: Vote) -> Option<Standing<'_>> {
        let mut state = self.lock();
        state.is_free().then(|| Standing(self, *state.stands.insert((vote, Instant::now()))))
    }

    /// Whether a majority would vote for this member.
    async fn would_be_elected(&self) -> bool {
        let last = self.log.ends().1;
        self.has_majority(|id, peer| async move {
            let answer = timeout(self.pause.0, self.peers.call(id, &peer.address, Call::PreVote(last))).await;
            // One of an earlier build does not know the question.
            matches!(answer, Ok(Ok(Reply::WouldVote(true) | Reply::Failed(_))))
        })
        .await
    }

    /// Whether a majority gives `vote`, which is of the term after this member's `own`; that is to stay as it is meanwhile. This counts for nothing
    /// yet, for its own vote is not synced; but Raft, which asks them again, gets the same answer without a sync. Also true where somebody has
    /// a greater vote: then it is Raft that has to learn of that.
    async fn is_voted_for(&self, own: Vote, vote: Vote) -> bool {
        let (last, heard, later) = (self.log.ends().1, self.shared.heard.last(), Notify::new());
        let given = self.has_majority(|id, peer| {
            let later = &later;
            async move {
                loop {
                    let begun = Instant::now();
                    let call = Call::Vote(VoteRequest::new(vote, last));
                    let Ok(Reply::Vote(answer)) = self.peers.call(id, &peer.address, call).await else { return false };
                    if answer.vote_granted {
                        self.took(begun.elapsed());
                        return true;
                    }
                    if answer.vote > vote {
                        later.notify_one();
                    }
                    if answer.vote > vote || answer.last_log_id > last || self.shared.heard.last() != heard {
                        return false;
                    }
                    // Its lease is over later than this member's, or it stands too and is to win.
                    sleep(self.margin).await;
                }
            }
        });
        let mut metrics = self.raft.server_metrics();
        tokio::select! {
            biased;
            _ = metrics.wait_for(|now| now.vote != own) => false,
            () = later.notified() => true,
            given = timeout(BEGUN_MAX, given) => given == Ok(true) || later.notified().now_or_never().is_some(),
        }
    }

    /// Asks all other voters at once, and waits for as many as are needed for a majority together with this one, or until there can be none.
    async fn has_majority<A: Future<Output = bool>>(&self, ask: impl Fn(NodeId, Peer) -> A) -> bool {
        let membership = Arc::clone(&self.raft.server_metrics().borrow().membership_config);
        let membership = membership.membership();
        let mut possible: BTreeSet<NodeId> = membership.voter_ids().collect();
        if !possible.contains(&self.node_id) {
            return false;
        }
        let mut willing = BTreeSet::from([self.node_id]);
        let others = membership.nodes().filter(|(id, _)| **id != self.node_id && possible.contains(id));
        let mut asked: FuturesUnordered<_> = others
            .map(|(&id, peer)| {
                let answer = ask(id, peer.clone());
                async move { (id, answer.await) }
            })
            .collect();
        let is_majority = |of: &BTreeSet<NodeId>| is_majority(membership.get_joint_config(), of);
        while !is_majority(&willing) && is_majority(&possible) {
            match asked.next().await {
                Some((id, true)) => _ = willing.insert(id),
                Some((id, false)) => _ = possible.remove(&id),
                None => return false,
            }
        }
        is_majority(&willing)
    }

    /// Done when the lease is over, after a vote as long as it may take until who got it is heard of, and since then and since it was `tried` last a random
    /// time. The only voter does without that at first.
    async fn due(&self, tried: Option<Instant>) {
        let pause = match tried {
            None if self.is_alone() => None,
            _ => Some(rand::random_range(self.pause.0..self.pause.1)),
        };
        loop {
            let due = pause.map_or_else(
                || self.lease_ends(),
                |pause| {
                    let ended = self.lease_ends() + self.least();
                    tried.map_or(ended, |tried| tried.max(ended)) + pause
                },
            );
            if due <= Instant::now() {
                return;
            }
            sleep_until(due.into()).await;
        }
    }

    /// How long is waited at least for what comes of this member's vote. Who stood in vain lets others go first.
    fn least(&self) -> Duration {
        let state = *self.lock();
        match state.vote.leader_id.voted_for() {
            _ if state.is_of_no_candidate() => Duration::ZERO,
            Some(id) if id == self.node_id => self.lease.max(state.patience() * 2),
            _ => self.lease.max(state.patience()),
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
        // It only grows; who notes it may have looked at it a while ago.
        if known.vote >= vote {
            return;
        }
        let own =
            known.stands.filter(|(stands, _)| *stands == vote).map_or(Duration::ZERO, |(_, since)| since.elapsed());
        let took = if vote.is_committed() { Duration::ZERO } else { known.took.max(own) };
        *known = VoteSince { vote, since: Instant::now(), stands: None, took, ..*known };
    }

    /// Notes how long a vote took.
    fn took(&self, time: Duration) {
        let mut state = self.lock();
        state.took = state.took.max(time);
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

    /// Or they would vote for one another, and then both wait for that to be of use.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_two_that_stand_at_once_one_gives_way() {
        let mut cluster = Cluster::new(3).await;
        let leader = cluster.leader().await;
        let one = leader % 3 + 1;
        cluster.isolate(one);
        cluster.kill(leader).await;
        let inner = cluster.db(one).inner.clone();
        let (elections, last) = (&inner.service.elections, inner.log.ends().1);
        let vote = |term, id| VoteRequest::new(Vote::new(term, id), last);
        let term = elections.standing().0.leader_id.term + 1;
        until("its lease is over", async || elections.lease_ends() <= Instant::now()).await;
        until("it may stand", async || elections.begin(Vote::new(term, 9)).map(std::mem::forget).is_some()).await;
        assert!(elections.begin(Vote::new(term, 9)).is_none(), "it does already");
        assert!(!elections.vote(vote(term, 8)).await.unwrap().vote_granted);
        until("it votes", async || elections.vote(vote(term, 10)).await.unwrap().vote_granted).await;
        until("its vote is known", async || elections.standing().0 == Vote::new(term, 10)).await;
        assert!(elections.lock().stands.is_none());
    }

    /// It cannot be elected itself, for its log is shorter than that of the other one, which has to learn of that vote.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_later_vote_of_one_that_cannot_be_elected_stops_nobody() {
        let mut cluster = Cluster::new(3).await;
        cluster.db(1).execute("CREATE TABLE t(a)", ()).await.unwrap();
        let leader = cluster.leader().await;
        let (longer, shorter) = (leader % 3 + 1, (leader + 1) % 3 + 1);
        cluster.isolate(shorter);
        cluster.db(longer).execute("INSERT INTO t VALUES (1)", ()).await.unwrap();
        cluster.kill(leader).await;
        let (inner, last) = (cluster.db(shorter).inner.clone(), cluster.db(longer).inner.log.ends().1);
        let elections = &inner.service.elections;
        let later = VoteRequest::new(Vote::new(elections.standing().0.leader_id.term + 5, leader), last);
        until("it votes", async || elections.vote(later.clone()).await.unwrap().vote_granted).await;
        cluster.heal();
        until("the other one leads", async || cluster.db(longer).status().is_leader()).await;
    }

    /// It would stand in one term after the other without an answer in time, where disks are slow.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_stood_in_vain_steps_back() {
        let mut cluster = Cluster::new(3).await;
        let leader = cluster.leader().await;
        let one = leader % 3 + 1;
        cluster.isolate(one);
        cluster.kill(leader).await;
        let inner = cluster.db(one).inner.clone();
        let elections = &inner.service.elections;
        let own = Vote::new(elections.standing().0.leader_id.term + 1, one);
        inner.raft.trigger().elect().await.unwrap();
        until("it stands", async || elections.standing() == (own, ServerState::Candidate)).await;
        let nobody = Vote::new(own.leader_id.term, NOBODY);
        let is_back = async || {
            // By itself it does so only once a majority would vote for it, and nobody answers here.
            elections.step_back(own).await;
            elections.standing() == (nobody, ServerState::Follower)
        };
        until("it stepped back", is_back).await;
        cluster.heal();
        cluster.leader().await;
        cluster.db(one).execute("CREATE TABLE t(a)", ()).await.unwrap();
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
        sleep(Duration::from_secs(2)).await;
        assert_eq!(cluster.db(away).status().term, term);
        cluster.heal();
        until("it follows", async || cluster.db(away).status().leader.is_some()).await;
        cluster.db(away).execute("CREATE TABLE t(a)", ()).await.unwrap();
        cluster.wait_same().await;
    }
}
