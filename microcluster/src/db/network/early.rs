//! Entries that go to the followers while this member, the leader, still brings them onto its own stable storage
//! (section 10.2.1 of Ongaro's dissertation "Consensus: Bridging Theory and Practice").
//!
//! openraft 0.9 waits for its own log before it replicates. Here the log tells of new entries as soon as they are queued, and
//! they are sent to every follower that has all before them, and to another one as soon as it has. When openraft comes to send the same entries it is given
//! the reply to the call that is under way, never before its own log is durable. So it counts nobody early; it is only answered sooner.
//!
//! What is committed is told along with the next entries where these follow at once, and a moment later where they do not: a message for
//! each write less. Only where another member waits for this one's answer, or has just got it, to look at what it wrote, it is told at once.
//!
//! While its own disk is at work openraft sends nothing, heartbeats neither. Followers hear of their leader from here then
//! ([`Early::keep_heard`]), or they would stand for election one after the other: on a disk that is shared, and has a bad moment, in vain.
//! A leader whose disk alone is slow, or hangs, is left to be replaced.
//!
//! A leader that stops meanwhile may have lost what a follower has got, under the same log ids. That is why it
//! must not lead again in the same term: see [`LogStore::lead`](crate::db::log_store::LogStore::lead).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use tokio::sync::{Notify, oneshot};

use super::client::{CallError, Peers, ReplyReceiver, Route};
use super::message::{Call, Reply};
use crate::db::entry_codec::payload_bytes;
use crate::db::log_store::{LogStore, Queued};
use crate::db::raft_types::{Entry, LogId, NodeId, TypeConfig, Vote};

/// For how long a leader is kept whose own disk does not end a sync.
const SYNC_MAX: Duration = Duration::from_secs(5);
/// For how long a member that was answered may want to look at what it wrote: its own log may be the last to have that.
const LOOKS_ON: Duration = Duration::from_millis(20);

/// Sends entries early.
#[derive(Default)]
pub(crate) struct Early {
    lanes: Mutex<Vec<Weak<Lane>>>,
    /// What the log here was given last.
    own: Mutex<Option<Own>>,
    /// Told when the log here was given something.
    given: Notify,
    /// Whether the disk here has been at work on it for too long.
    hangs: Arc<AtomicBool>,
    asking: Arc<Asking>,
}

/// What the log of this member, the leader, was given last, and perhaps still syncs: openraft does nothing else meanwhile.
#[derive(Clone, Copy)]
struct Own {
    vote: Vote,
    /// The last of the entries, if it was given any.
    last: Option<LogId>,
    ticket: u64,
    since: Instant,
}

/// What other members ask of this one.
#[derive(Default)]
struct Asking {
    /// How many of their calls are being answered.
    now: AtomicUsize,
    /// When the last one was.
    answered: Mutex<Option<Instant>>,
}

/// Another member waits for an answer, for as long as this is held.
pub(crate) struct Asked(Arc<Asking>);

impl Drop for Asked {
    fn drop(&mut self) {
        *lock(&self.0.answered) = Some(Instant::now());
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is known of one follower, and what is on its way to it.
pub(crate) struct Lane {
    peers: Arc<Peers>,
    target: NodeId,
    address: String,
    state: Mutex<LaneState>,
    asking: Arc<Asking>,
    hangs: Arc<AtomicBool>,
}

#[derive(Default)]
struct LaneState {
    /// The last entry that the follower is known to have, under this leader.
    matched: Option<LogId>,
    /// What openraft said last to be committed.
    committed: Option<LogId>,
    /// Entries that are on their way.
    appending: Option<Appending>,
    /// Entries that will be, once the follower is known to have what is before them.
    next: Option<Next>,
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
    reply: ReplyReceiver,
}

/// Entries that the log here was given.
#[derive(Clone)]
struct Next {
    vote: Vote,
    previous: LogId,
    last: LogId,
    entries: Vec<Entry>,
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

impl Appending {
    /// Whether the follower has said that it has the entries.
    fn has_succeeded(&mut self) -> bool {
        // Asked first: a receiver that has found its channel closed must not be waited on any more.
        if self.reply.is_empty() {
            return false;
        }
        let Ok(reply) = self.reply.try_recv() else { return false };
        let is_success = matches!(reply, Ok(Reply::Append(AppendEntriesResponse::Success)));
        // Whoever waits for it finds it as before.
        let (sender, receiver) = oneshot::channel();
        _ = sender.send(reply);
        self.reply = receiver;
        is_success
    }
}

impl Early {
    /// A lane to a follower, for as long as it is held.
    pub fn lane(&self, peers: Arc<Peers>, target: NodeId, address: String) -> Arc<Lane> {
        let (asking, hangs) = (Arc::clone(&self.asking), Arc::clone(&self.hangs));
        let lane = Arc::new(Lane { peers, target, address, state: Mutex::default(), asking, hangs });
        let mut lanes = lock(&self.lanes);
        lanes.retain(|lane| lane.strong_count() > 0);
        lanes.push(Arc::downgrade(&lane));
        lane
    }

    /// Notes what the log here was given, and sends it to every follower that has what is before it; to the others once they have.
    pub fn send(&self, queued: Queued<'_>) {
        let Queued { vote, previous, entries, ticket } = queued;
        let last = entries.last().map(|entry| entry.log_id);
        *lock(&self.own) = Some(Own { vote, last, ticket, since: Instant::now() });
        self.given.notify_one();
        let Some(last) = last else { return };
        // What openraft would send of large ones in the end might be something else, and they again.
        if Route::of(entries.iter().map(payload_bytes).sum()) == Route::Bulk {
            return;
        }
        for lane in self.lanes() {
            let mut state = lock(&lane.state);
            if state.matched.is_some() {
                state.next = Some(Next { vote, previous, last, entries: entries.to_vec() });
                lane.send_next(&mut state);
            }
        }
    }

    /// Tells followers every `heartbeat` that this member leads while the disk of its `log` is at work, for as long as it is polled.
    /// `may_replace` says whether these members, which have synced what this one has not, get another leader by themselves, or are to.
    pub async fn keep_heard(
        &self,
        heartbeat: Duration,
        log: &LogStore,
        may_replace: impl Fn(&BTreeSet<NodeId>) -> bool,
    ) {
        loop {
            self.given.notified().await;
            loop {
                tokio::time::sleep(heartbeat).await;
                let own = lock(&self.own).filter(|own| log.is_writing(own.ticket));
                self.hangs.store(own.is_some_and(|own| own.since.elapsed() >= SYNC_MAX), Ordering::Relaxed);
                match own {
                    Some(own) if own.since.elapsed() >= heartbeat => self.beat(own, &may_replace),
                    Some(_) => {}
                    None => break,
                }
            }
        }
    }

    /// Tells followers that this member leads, unless its disk hangs. Where the others have synced without it what it has not, their
    /// leader is the slow one, and they are told nothing: they get another one.
    fn beat(&self, own: Own, may_replace: impl FnOnce(&BTreeSet<NodeId>) -> bool) {
        let lanes = self.lanes();
        let has_synced = |lane: &&Arc<Lane>| {
            let mut state = lock(&lane.state);
            state.appending.as_mut().is_some_and(|call| Some(call.last) == own.last && call.has_succeeded())
        };
        let synced = lanes.iter().filter(has_synced).map(|lane| lane.target).collect();
        if self.hangs.load(Ordering::Relaxed) || may_replace(&synced) {
            return;
        }
        let mut told = BTreeSet::new();
        // openraft has more than one way to each, the newest at its address of now.
        for lane in lanes.iter().rev().filter(|lane| told.insert(lane.target)) {
            lane.beat(own.vote);
        }
    }

    /// Says that another member waits for an answer.
    pub fn asked(&self) -> Asked {
        self.asking.now.fetch_add(1, Ordering::Relaxed);
        Asked(Arc::clone(&self.asking))
    }

    fn lanes(&self) -> Vec<Arc<Lane>> {
        lock(&self.lanes).iter().filter_map(Weak::upgrade).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the mutexes hold is valid at every moment, also if a holder panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lane {
    /// Sends what is to be sent next, where the follower has what is before it and nothing else is on its way.
    fn send_next(&self, state: &mut LaneState) {
        if state.appending.is_some() {
            return;
        }
        let (matched, committed) = (state.matched, state.committed);
        let Some(Next { vote, previous, last, entries }) = state.next.take_if(|next| matched == Some(next.previous))
        else {
            return;
        };
        let previous = Some(previous);
        let request = AppendEntriesRequest { vote, prev_log_id: previous, entries, leader_commit: committed };
        // A full queue is openraft's to report, when it sends the same.
        if let Ok(reply) = self.peers.start(self.target, &self.address, Call::Append(request)) {
            state.appending = Some(Appending { vote, previous, last, committed, is_late: false, reply });
        }
    }

    /// The call that carries what openraft wants to send, or the first of it: one under way, else a new one. openraft gives a
    /// call up after a heartbeat and sends the same again; large entries on a slow network take longer, and so does a slow disk. The follower
    /// hears of its leader meanwhile: openraft sends no heartbeats besides, and it would stand for election once its disk is done.
    pub fn append(&self, request: AppendEntriesRequest<TypeConfig>) -> Result<Option<Joined>, CallError> {
        let Some(last) = request.entries.last().map(|entry| entry.log_id) else { return Ok(None) };
        let mut state = lock(&self.state);
        state.committed = request.leader_commit;
        state.next.take_if(|next| next.last <= last);
        if let Some(under_way) = state.appending.take()
            && under_way.vote == request.vote
            && under_way.previous == request.prev_log_id
            && under_way.last <= last
        {
            let Appending { last: sent, committed, is_late, reply, .. } = under_way;
            let is_due = is_late && !self.hangs();
            let told = (is_due || request.leader_commit > committed)
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
    /// there waits for what the call says. One that says nothing new is a heartbeat: where there is nothing to do, no entries come that
    /// it could go with, and waiting for them would only wake this process once more.
    pub fn can_wait(&self, request: &AppendEntriesRequest<TypeConfig>) -> bool {
        let mut state = lock(&self.state);
        let is_news = request.leader_commit > state.committed;
        state.committed = state.committed.max(request.leader_commit);
        is_news && request.prev_log_id.is_some() && state.matched == request.prev_log_id && self.nobody_asks()
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
            lock(&self.state).told = Some(told);
        }
    }

    fn nobody_asks(&self) -> bool {
        let looks_on = || lock(&self.asking.answered).is_some_and(|answered| answered.elapsed() < LOOKS_ON);
        self.asking.now.load(Ordering::Relaxed) == 0 && !looks_on()
    }

    /// Keeps a call that openraft has given up, for when it sends the same again.
    pub fn keep(&self, vote: Vote, previous: Option<LogId>, joined: Joined) {
        let Joined { reply, last, committed, told, .. } = joined;
        let mut state = lock(&self.state);
        state.told = told.or(state.told.take());
        state.appending = Some(Appending { vote, previous, last, committed, is_late: true, reply });
    }

    /// Keeps what waits for the follower's answer to what it was told: a call that nobody waits for is not sent.
    pub fn keep_told(&self, told: ReplyReceiver) {
        lock(&self.state).told = Some(told);
    }

    /// Notes how a call with entries, or without any, ended.
    pub fn note(&self, last: Option<LogId>, response: Option<&AppendEntriesResponse<NodeId>>) {
        let has_all = matches!(response, Some(AppendEntriesResponse::Success));
        let mut state = lock(&self.state);
        state.matched = last.filter(|_| has_all);
        self.send_next(&mut state);
    }

    /// Whether the disk here has been at work for too long.
    pub fn hangs(&self) -> bool {
        self.hangs.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
