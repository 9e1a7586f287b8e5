//! Entries that go to the followers while this member, the leader, still brings them onto its own stable storage
//! (section 10.2.1 of Ongaro's dissertation "Consensus: Bridging Theory and Practice").
//!
//! openraft 0.9 waits for its own log before it replicates. Here the log tells of new entries as soon as they are queued, and
//! they are sent to every follower that has all before them. When openraft comes to send the same entries it is given
//! the reply to the call that is under way, never before its own log is durable. So it counts nobody early; it is only answered sooner.
//!
//! What is committed is told along with the next entries where these follow at once, and a moment later where they do not: a message for
//! each write less. Only where another member waits for this one's answer, to look at what it wrote, it is told at once.
//!
//! While its own disk is at work openraft sends nothing, heartbeats neither. Followers whose disks are as slow hear of their leader from here then
//! ([`Early::keep_heard`]), or they would stand for election one after the other: on a disk that is shared, and has a bad moment, in vain.
//!
//! A leader that stops meanwhile may have lost what a follower has got, under the same log ids. That is why it
//! must not lead again in the same term: see [`LogStore::lead`](crate::db::log_store::LogStore::lead).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use tokio::sync::Notify;

use super::client::{CallError, Peers, ReplyReceiver, Route};
use super::message::Call;
use crate::db::entry_codec::payload_bytes;
use crate::db::raft_types::{Entry, LogId, NodeId, TypeConfig, Vote};

/// For how long a leader is kept whose own disk does not end a sync.
const BEAT_MAX: Duration = Duration::from_secs(5);

/// Sends entries early.
#[derive(Default)]
pub(crate) struct Early {
    lanes: Mutex<Vec<Weak<Lane>>>,
    /// Told when entries were sent.
    sent: Notify,
    /// How many calls of other members are being answered.
    asked: Arc<AtomicUsize>,
}

/// Another member waits for an answer, for as long as this is held.
pub(crate) struct Asked(Arc<AtomicUsize>);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is known of one follower, and what is on its way to it.
pub(crate) struct Lane {
    peers: Arc<Peers>,
    target: NodeId,
    address: String,
    state: Mutex<LaneState>,
    asked: Arc<AtomicUsize>,
}

#[derive(Default)]
struct LaneState {
    /// The last entry that the follower is known to have, under this leader.
    matched: Option<LogId>,
    /// What openraft said last to be committed.
    committed: Option<LogId>,
    /// Entries that are on their way.
    appending: Option<Appending>,
    /// Where the follower's answer to the last news of what is committed arrives. Nobody waits for it; the next
    /// heartbeat says the same.
    told: Option<ReplyReceiver>,
}

/// One call with entries.
struct Appending {
    vote: Vote,
    /// What the entries follow.
    previous: Option<LogId>,
    /// The last of them.
    last: LogId,
    /// What the call says to be committed.
    committed: Option<LogId>,
    /// openraft has waited for it in vain.
    is_late: bool,
    since: Instant,
    reply: ReplyReceiver,
}

/// A call that openraft waits for.
pub(crate) struct Joined {
    pub reply: ReplyReceiver,
    /// The last of the entries that are on their way.
    pub last: LogId,
    /// What the follower has been told to be committed.
    committed: Option<LogId>,
    /// Whether these are all that openraft wants to send.
    pub is_all: bool,
    /// Where the follower's answer to what it was told meanwhile arrives.
    pub told: Option<ReplyReceiver>,
}

impl Early {
    /// A lane to a follower, for as long as it is held.
    pub fn lane(&self, peers: Arc<Peers>, target: NodeId, address: String) -> Arc<Lane> {
        let asked = Arc::clone(&self.asked);
        let lane = Arc::new(Lane { peers, target, address, state: Mutex::default(), asked });
        let mut lanes = self.lock();
        lanes.retain(|lane| lane.strong_count() > 0);
        lanes.push(Arc::downgrade(&lane));
        lane
    }

    /// Sends entries, which follow `previous`, to every follower that has that one and nothing else on its way.
    pub fn send(&self, vote: Vote, previous: LogId, entries: &[Entry]) {
        // What openraft would send of large ones in the end might be something else, and they again.
        if Route::of(entries.iter().map(payload_bytes).sum()) == Route::Bulk {
            return;
        }
        let lanes: Vec<_> = self.lock().iter().filter_map(Weak::upgrade).collect();
        for lane in lanes {
            lane.send(vote, previous, entries);
        }
        self.sent.notify_one();
    }

    /// Tells followers every `heartbeat` that this member leads while its own disk is at work, for as long as it is polled.
    pub async fn keep_heard(&self, heartbeat: Duration) {
        loop {
            self.sent.notified().await;
            tokio::time::sleep(heartbeat).await;
            while self.beat(heartbeat) {
                tokio::time::sleep(heartbeat).await;
            }
        }
    }

    /// Says whether the log here is still syncing what was sent longer ago than `heartbeat`. Where most members have synced that already
    /// their leader is the slow one, and they are told nothing: they get another one.
    fn beat(&self, heartbeat: Duration) -> bool {
        let lanes: Vec<_> = self.lock().iter().filter_map(Weak::upgrade).collect();
        let (mut waiting, mut answered) = (Vec::new(), 0);
        for lane in &lanes {
            let state = lane.lock();
            let is_kept = |call: &&Appending| !call.is_late && (heartbeat..BEAT_MAX).contains(&call.since.elapsed());
            let early = state.appending.as_ref().filter(is_kept);
            if let Some(call) = early {
                answered += usize::from(!call.reply.is_empty());
                waiting.push((lane, call.vote));
            }
        }
        // openraft has more than one way to each.
        let members = lanes.iter().map(|lane| lane.target).collect::<BTreeSet<_>>().len() + 1;
        if answered * 2 <= members {
            waiting.iter().for_each(|(lane, vote)| lane.beat(*vote));
        }
        !waiting.is_empty()
    }

    /// Says that another member waits for an answer.
    pub fn asked(&self) -> Asked {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Asked(Arc::clone(&self.asked))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Lane>>> {
        // What the mutex holds is valid at every moment, also if a holder panicked.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    fn send(&self, vote: Vote, previous: LogId, entries: &[Entry]) {
        let Some(last) = entries.last().map(|entry| entry.log_id) else { return };
        let mut state = self.lock();
        if state.matched != Some(previous) || state.appending.is_some() {
            return;
        }
        let request = AppendEntriesRequest {
            vote,
            prev_log_id: Some(previous),
            entries: entries.to_vec(),
            leader_commit: state.committed,
        };
        // A full queue is openraft's to report, when it sends the same.
        if let Ok(reply) = self.peers.start(self.target, &self.address, Call::Append(request)) {
            let committed = state.committed;
            state.appending = Some(Appending {
                vote,
                previous: Some(previous),
                last,
                committed,
                is_late: false,
                since: Instant::now(),
                reply,
            });
        }
    }

    /// The call that carries what openraft wants to send, or the first of it: one under way, else a new one. openraft gives a
    /// call up after a heartbeat and sends the same again; large entries on a slow network take longer, and so does a slow disk. The follower
    /// hears of its leader meanwhile: openraft sends no heartbeats besides, and it would stand for election once its disk is done.
    pub fn append(&self, request: AppendEntriesRequest<TypeConfig>) -> Result<Option<Joined>, CallError> {
        let Some(last) = request.entries.last().map(|entry| entry.log_id) else { return Ok(None) };
        let mut state = self.lock();
        state.committed = request.leader_commit;
        if let Some(under_way) = state.appending.take()
            && under_way.vote == request.vote
            && under_way.previous == request.prev_log_id
            && under_way.last <= last
        {
            let Appending { last: sent, committed, is_late, reply, .. } = under_way;
            let told = (is_late || request.leader_commit > committed)
                // openraft counts on this request to say so. The follower applies nothing that it does not know to be committed.
                .then(|| self.tell_committed(&request))
                .flatten();
            return Ok(Some(Joined {
                reply,
                last: sent,
                committed: request.leader_commit,
                is_all: sent == last,
                told,
            }));
        }
        let committed = request.leader_commit;
        let reply = self.peers.start(self.target, &self.address, Call::Append(request))?;
        Ok(Some(Joined { reply, last, committed, is_all: true, told: None }))
    }

    /// Whether a call without entries can wait for one with entries: the follower has all that is in the log, or nearly, and nobody
    /// there waits for what the call says.
    pub fn can_wait(&self, request: &AppendEntriesRequest<TypeConfig>) -> bool {
        let mut state = self.lock();
        state.committed = state.committed.max(request.leader_commit);
        request.prev_log_id.is_some() && state.matched == request.prev_log_id && self.nobody_asks()
    }

    /// Says what is committed, without the entries. It may arrive before these: large ones go another way.
    fn tell_committed(&self, request: &AppendEntriesRequest<TypeConfig>) -> Option<ReplyReceiver> {
        let AppendEntriesRequest { vote, prev_log_id, leader_commit, .. } = *request;
        let request = AppendEntriesRequest { vote, prev_log_id, leader_commit, entries: Vec::new() };
        let call = if self.nobody_asks() { Call::News(request) } else { Call::Append(request) };
        self.peers.start(self.target, &self.address, call).ok()
    }

    /// Says that `vote` leads, and nothing else.
    fn beat(&self, vote: Vote) {
        let empty = AppendEntriesRequest { vote, prev_log_id: None, leader_commit: None, entries: Vec::new() };
        if let Ok(told) = self.peers.start(self.target, &self.address, Call::Append(empty)) {
            self.lock().told = Some(told);
        }
    }

    fn nobody_asks(&self) -> bool {
        self.asked.load(Ordering::Relaxed) == 0
    }

    /// Keeps a call that openraft has given up, for when it sends the same again.
    pub fn keep(&self, vote: Vote, previous: Option<LogId>, joined: Joined) {
        let Joined { reply, last, committed, told, .. } = joined;
        let since = Instant::now();
        let mut state = self.lock();
        state.told = told.or(state.told.take());
        state.appending = Some(Appending { vote, previous, last, committed, is_late: true, since, reply });
    }

    /// Keeps what waits for the follower's answer to what it was told: a call that nobody waits for is not sent.
    pub fn keep_told(&self, told: ReplyReceiver) {
        self.lock().told = Some(told);
    }

    /// Notes how a call with entries, or without any, ended.
    pub fn note(&self, last: Option<LogId>, response: Option<&AppendEntriesResponse<NodeId>>) {
        let has_all = matches!(response, Some(AppendEntriesResponse::Success));
        self.lock().matched = last.filter(|_| has_all);
    }

    fn lock(&self) -> MutexGuard<'_, LaneState> {
        // What the mutex holds is valid at every moment, also if a holder panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::future::Future;
    use std::io;
    use std::pin::Pin;

    use openraft::{CommittedLeaderId, EntryPayload};
    use tokio::sync::mpsc;

    use super::*;
    use crate::db::network::message::{Frame, Reply};
    use crate::db::network::{PeerConnector, PeerStream, testing};

    /// A follower that tells which entries it was sent in each call.
    struct Follower {
        calls: mpsc::UnboundedSender<Vec<u64>>,
        /// What it answers: nothing as long as its disk is not done.
        answer: fn() -> Option<Reply>,
    }

    fn takes_everything() -> Option<Reply> {
        Some(Reply::Append(AppendEntriesResponse::Success))
    }

    impl PeerConnector for Follower {
        fn connect(&self, _: String) -> Pin<Box<dyn Future<Output = io::Result<PeerStream>> + Send>> {
            let (calls, answer) = (self.calls.clone(), self.answer);
            let stream = testing::member(move |frame| {
                let call = Frame::parse(frame.clone()).unwrap().call().unwrap();
                let (Call::Append(request) | Call::News(request)) = call else { panic!("another call") };
                calls.send(request.entries.iter().map(|entry| entry.log_id.index).collect()).unwrap();
                answer()
            });
            Box::pin(async move { Ok(stream) })
        }
    }

    fn at(index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(1, 1), index)
    }

    fn entries(indices: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
        indices.map(|index| Entry { log_id: at(index), payload: EntryPayload::Blank }).collect()
    }

    fn request(indices: std::ops::RangeInclusive<u64>) -> AppendEntriesRequest<TypeConfig> {
        let prev_log_id = Some(at(indices.start() - 1));
        AppendEntriesRequest { vote: vote(), prev_log_id, entries: entries(indices), leader_commit: None }
    }

    fn vote() -> Vote {
        Vote::new_committed(1, 1)
    }

    fn lane() -> (Early, Arc<Lane>, mpsc::UnboundedReceiver<Vec<u64>>) {
        let (sender, calls) = mpsc::unbounded_channel();
        let early = Early::default();
        let peers = Peers::new(Arc::new(Follower { calls: sender, answer: takes_everything }), Arc::default());
        let lane = early.lane(Arc::new(peers), 2, "127.0.0.1:2".to_owned());
        (early, lane, calls)
    }

    async fn succeeds(joined: Joined) {
        let reply = joined.reply.await.unwrap().unwrap();
        assert!(matches!(reply, Reply::Append(AppendEntriesResponse::Success)), "{reply:?}");
    }

    #[tokio::test]
    async fn what_is_under_way_is_not_sent_again() {
        let (early, lane, mut calls) = lane();
        lane.note(Some(at(4)), Some(&AppendEntriesResponse::Success));
        early.send(vote(), at(4), &entries(5..=6));
        assert_eq!(calls.recv().await.unwrap(), [5, 6]);
        // One thing at a time: what comes meanwhile goes with the next call.
        early.send(vote(), at(6), &entries(7..=7));
        let joined = lane.append(request(5..=7)).unwrap().unwrap();
        assert_eq!((joined.last, joined.is_all), (at(6), false));
        succeeds(joined).await;
        let joined = lane.append(request(7..=7)).unwrap().unwrap();
        assert!(joined.is_all);
        succeeds(joined).await;
        assert_eq!(calls.recv().await.unwrap(), [7]);
        assert!(calls.try_recv().is_err());
    }

    #[tokio::test]
    async fn followers_hear_of_their_leader_while_all_disks_are_slow() {
        let (sender, mut calls) = mpsc::unbounded_channel();
        let early = Early::default();
        let peers = Arc::new(Peers::new(Arc::new(Follower { calls: sender, answer: || None }), Arc::default()));
        let lane = early.lane(peers, 2, "127.0.0.1:2".to_owned());
        assert!(!early.beat(Duration::ZERO), "nothing was sent");
        lane.note(Some(at(4)), Some(&AppendEntriesResponse::Success));
        early.send(vote(), at(4), &entries(5..=5));
        assert_eq!(calls.recv().await.unwrap(), [5]);
        assert!(!early.beat(Duration::from_secs(3600)), "that was just now");
        for _ in 0..3 {
            assert!(early.beat(Duration::ZERO));
            assert_eq!(calls.recv().await.unwrap(), [0_u64; 0]);
        }
        // The log here is durable: from now on openraft waits, and sends heartbeats.
        let _joined = lane.append(request(5..=5)).unwrap().unwrap();
        assert!(!early.beat(Duration::ZERO));
        assert!(calls.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_leader_whose_own_disk_is_the_slow_one_is_not_kept() {
        let (sender, mut calls) = mpsc::unbounded_channel();
        let early = Early::default();
        let peers =
            Arc::new(Peers::new(Arc::new(Follower { calls: sender, answer: takes_everything }), Arc::default()));
        let to = |id| early.lane(Arc::clone(&peers), id, format!("127.0.0.1:{id}"));
        let (lanes, _for_snapshots) = ([2, 3].map(to), [2, 3].map(to));
        for lane in &lanes {
            lane.note(Some(at(4)), Some(&AppendEntriesResponse::Success));
        }
        early.send(vote(), at(4), &entries(5..=5));
        let is_answered = |lane: &Arc<Lane>| !lane.lock().appending.as_ref().unwrap().reply.is_empty();
        while !lanes.iter().all(is_answered) {
            tokio::task::yield_now().await;
        }
        assert!(early.beat(Duration::ZERO), "the log here is not done");
        assert_eq!([calls.recv().await.unwrap(), calls.recv().await.unwrap()], [[5], [5]]);
        tokio::task::yield_now().await;
        assert!(calls.try_recv().is_err(), "they were told nothing");
    }

    /// openraft says what is committed along with the entries: when these are under way already, it is said apart.
    #[tokio::test]
    async fn what_is_committed_is_told_also_when_the_entries_are_under_way() {
        let (early, lane, mut calls) = lane();
        lane.note(Some(at(4)), Some(&AppendEntriesResponse::Success));
        early.send(vote(), at(4), &entries(5..=5));
        let request = AppendEntriesRequest { leader_commit: Some(at(5)), ..request(5..=5) };
        succeeds(lane.append(request).unwrap().unwrap()).await;
        assert_eq!(calls.recv().await.unwrap(), [5]);
        assert_eq!(calls.recv().await.unwrap(), [0_u64; 0], "an empty one that says it");
    }

    /// The follower, whose disk may be slow, hears of its leader all the same.
    #[tokio::test]
    async fn a_call_that_was_given_up_is_joined_by_its_repetition() {
        let (_early, lane, mut calls) = lane();
        let joined = lane.append(request(5..=6)).unwrap().unwrap();
        lane.keep(vote(), Some(at(4)), joined);
        let joined = lane.append(request(5..=6)).unwrap().unwrap();
        lane.keep(vote(), Some(at(4)), joined);
        succeeds(lane.append(request(5..=6)).unwrap().unwrap()).await;
        assert_eq!(calls.recv().await.unwrap(), [5, 6]);
        assert_eq!(calls.recv().await.unwrap(), [0_u64; 0], "with each repetition");
        assert_eq!(lane.lock().committed, None);
    }

    #[tokio::test]
    async fn a_follower_that_is_not_known_to_have_what_comes_before_is_sent_nothing_early() {
        let (early, lane, mut calls) = lane();
        early.send(vote(), at(4), &entries(5..=5));
        lane.note(Some(at(3)), Some(&AppendEntriesResponse::Success));
        early.send(vote(), at(4), &entries(5..=5));
        lane.note(Some(at(4)), Some(&AppendEntriesResponse::Conflict));
        early.send(vote(), at(4), &entries(5..=5));
        // Under another vote what is under way is no answer.
        lane.note(Some(at(4)), Some(&AppendEntriesResponse::Success));
        early.send(Vote::new_committed(2, 1), at(4), &entries(5..=5));
        assert_eq!(calls.recv().await.unwrap(), [5]);
        succeeds(lane.append(request(5..=5)).unwrap().unwrap()).await;
        assert_eq!(calls.recv().await.unwrap(), [5]);
        assert!(calls.try_recv().is_err());
    }

    /// What is committed is in no hurry when nobody asks; it is said all the same.
    #[tokio::test]
    async fn what_is_committed_can_wait_unless_another_member_asks() {
        let (early, lane, _calls) = lane();
        let news = |committed| AppendEntriesRequest {
            leader_commit: Some(at(committed)),
            entries: Vec::new(),
            ..request(5..=5)
        };
        assert!(!lane.can_wait(&news(4)), "what the follower has is not known");
        lane.note(Some(at(4)), Some(&AppendEntriesResponse::Success));
        assert!(lane.can_wait(&news(4)));
        let asked = early.asked();
        assert!(!lane.can_wait(&news(4)));
        drop(asked);
        assert!(lane.can_wait(&news(4)));
        // The next entries say it too.
        assert_eq!(lane.lock().committed, Some(at(4)));
    }
}
