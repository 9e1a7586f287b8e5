//! Run it here if this member leads, else one hop to the leader; again, under the same id, when the leader
//! changes or its answer is lost.

mod questions;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::command::{Body, Outcome, QueryResult, Request, RequestId, Scope};
use super::error::Error;
use super::network::{Call, CallError, Met, Peers, Place, Reply, Route};
use super::raft_types::{NodeId, Peer};
use super::read_index::ReadIndex;
use super::sequencer::{Seen, Sequencer, Submission, SubmitError};
use super::status::Status;
use questions::Questions;

/// How many requests of this member may be in flight: the sessions of the replicated state remember as many.
pub(crate) const IN_FLIGHT_MAX: usize = 4_096;
/// The largest request.
pub(crate) const REQUEST_BYTES_MAX: usize = 16 << 20;
/// How long to wait for news of a leader before asking again.
const PAUSE: Duration = Duration::from_millis(20);
/// The leader's queues, or those to it, are full.
const BUSY: Error = Error::Busy { detail: "too many calls wait for the leader" };

/// Brings requests to the leader.
pub(crate) struct Forwarder {
    origin: u64,
    sequence: AtomicU64,
    in_flight: Mutex<BTreeSet<u64>>,
    /// The highest log index of a request that was answered here.
    answered: AtomicU64,
    sequencer: Sequencer,
    read_index: ReadIndex,
    peers: Arc<Peers>,
    questions: Questions,
    status: watch::Receiver<Status>,
    timeout: Duration,
}

/// The number of a request in flight; given back when dropped.
struct Ticket<'a> {
    forwarder: &'a Forwarder,
    sequence: u64,
}

/// Who leads.
enum Leader {
    Here,
    There(NodeId, Peer),
}

impl Leader {
    fn of(status: &Status) -> Option<Leader> {
        if status.is_leader() {
            return Some(Leader::Here);
        }
        let id = status.leader.filter(|id| *id != status.node_id)?;
        Some(Leader::There(id, status.nodes.get(&id)?.clone()))
    }
}

impl Forwarder {
    /// A forwarder of a new origin, and its task, to be spawned by the database.
    pub fn new(
        sequencer: Sequencer,
        read_index: ReadIndex,
        peers: Arc<Peers>,
        status: watch::Receiver<Status>,
        timeout: Duration,
        cancelled: CancellationToken,
    ) -> (Forwarder, impl Future<Output = ()> + Send) {
        let asking = read_index.clone();
        let (questions, task) = Questions::new(Arc::clone(&peers), move || asking.follower(), cancelled);
        let forwarder = Forwarder {
            origin: rand::random(),
            sequence: AtomicU64::new(0),
            in_flight: Mutex::new(BTreeSet::new()),
            answered: AtomicU64::new(0),
            sequencer,
            read_index,
            peers,
            questions,
            status,
            timeout,
        };
        (forwarder, task)
    }

    /// Has the request applied, once, and answers what came of it and at which log index.
    pub async fn submit(
        &self,
        scope: Scope,
        body: Body,
        closure: Option<Closure>,
    ) -> Result<(u64, Vec<QueryResult>), Error> {
        let (ticket, answered_below) = self.ticket()?;
        let (time_ms, seed, seen) = match closure {
            Some(closure) => (closure.time_ms, closure.seed, Some(closure.seen)),
            // The leader sets them.
            None => (0, 0, None),
        };
        let id = RequestId { origin: self.origin, sequence: ticket.sequence };
        let request = Request { id, answered_below, time_ms, seed, only_in_term: None, scope, body };
        let size = request.size();
        if size > REQUEST_BYTES_MAX {
            return Err(Error::TooLarge { what: "the request", size, limit: REQUEST_BYTES_MAX });
        }
        let answer = self.with_leader(Submitting(Submission { request, seen, resent: false })).await?;
        self.answered.fetch_max(answer.index, Ordering::AcqRel);
        match answer.outcome {
            Outcome::Done(results) => Ok((answer.index, results)),
            Outcome::Failed(failure) => Err(failure.into()),
        }
    }

    /// The highest log index of a request that was answered here.
    pub fn answered_index(&self) -> u64 {
        self.answered.load(Ordering::Acquire)
    }

    /// The log index that a linearizable read must have seen, confirmed by a quorum after this call began.
    pub async fn read_index(&self) -> Result<u64, Error> {
        self.with_leader(AskingIndex).await
    }

    async fn with_leader<A: Ask>(&self, mut ask: A) -> Result<A::Answer, Error> {
        let started = Instant::now();
        let deadline = started + self.timeout;
        let mut status = self.status.clone();
        let mut maybe_done = false;
        let mut is_full = false;
        let mut last = "no leader is known".to_owned();
        loop {
            if status.borrow().is_shut_down() {
                let waited = started.elapsed();
                return Err(if maybe_done && A::CHANGES {
                    Error::OutcomeUnknown { waited }
                } else {
                    Error::ShuttingDown
                });
            }
            if maybe_done {
                ask.again();
            }
            let (leader, current) = {
                let now = status.borrow_and_update();
                (Leader::of(&now), now.leader)
            };
            let is_sent = AtomicBool::new(false);
            let attempt = async {
                match &leader {
                    None => Err(Attempt::not_done("no leader is known")),
                    Some(Leader::Here) => {
                        is_sent.store(true, Ordering::Relaxed);
                        ask.here(self).await.map_err(Attempt::from)
                    }
                    Some(Leader::There(id, peer)) => self.ask_peer(&ask, *id, peer, &is_sent).await,
                }
            };
            let left = deadline.saturating_duration_since(Instant::now());
            tokio::select! {
                result = tokio::time::timeout(left, attempt) => match result {
                    Ok(Ok(answer)) => return Ok(answer),
                    // An error that says "nothing was changed" says so of this attempt alone.
                    Ok(Err(Attempt { maybe: false, error: Some(error), .. })) if !maybe_done => return Err(error),
                    Ok(Err(attempt)) => {
                        maybe_done |= attempt.maybe;
                        last = attempt.reason;
                    }
                    Err(_) => {
                        let is_sent = is_sent.load(Ordering::Relaxed);
                        maybe_done |= is_sent;
                        is_full = leader.is_some() && !is_sent;
                    }
                },
                // The leader that was asked leads no longer: its answer may never come. The id keeps a resend harmless.
                () = leader_changed(&mut status, current), if leader.is_some() => {
                    maybe_done |= is_sent.load(Ordering::Relaxed);
                }
            }
            if Instant::now() >= deadline {
                let waited = started.elapsed();
                return Err(if maybe_done && A::CHANGES {
                    Error::OutcomeUnknown { waited }
                } else if is_full {
                    BUSY
                } else {
                    Error::NoQuorum { detail: last }
                });
            }
            // News of a leader, or a little while: then once more.
            let _ =
                tokio::time::timeout(PAUSE.min(deadline.saturating_duration_since(Instant::now())), status.changed())
                    .await;
        }
    }

    /// Sets `is_sent` as soon as it may be done.
    async fn ask_peer<A: Ask>(
        &self,
        ask: &A,
        id: NodeId,
        peer: &Peer,
        is_sent: &AtomicBool,
    ) -> Result<A::Answer, Attempt> {
        match ask.there(self, id, peer, is_sent).await {
            Ok(reply) => match A::answer(reply) {
                Some(result) => result.map_err(Attempt::from),
                None => Err(Attempt {
                    maybe: true,
                    reason: format!("the leader {peer} gave an answer of the wrong kind"),
                    error: None,
                }),
            },
            Err(error @ CallError::Broken { .. }) => {
                Err(Attempt { maybe: true, reason: error.to_string(), error: None })
            }
            Err(error) => Err(Attempt::not_done(error.to_string())),
        }
    }

    /// Where many wait for the leader already, more of them wait here.
    async fn place(&self, leader: NodeId, peer: &Peer, route: Route) -> Result<Place, CallError> {
        // A connection that ends meanwhile has sent nothing.
        self.peers.place(leader, &peer.address, route).await.map_err(|error| CallError::Unreachable {
            address: peer.address.clone(),
            reason: error.to_string().into(),
            met: Met::Nobody,
        })
    }

    fn ticket(&self) -> Result<(Ticket<'_>, u64), Error> {
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        let sequence = self.sequence.load(Ordering::Relaxed) + 1;
        let oldest = in_flight.first().copied().unwrap_or(sequence);
        if sequence - oldest >= IN_FLIGHT_MAX as u64 {
            return Err(Error::Busy { detail: "too many writes of this member wait for their answers" });
        }
        self.sequence.store(sequence, Ordering::Relaxed);
        in_flight.insert(sequence);
        Ok((Ticket { forwarder: self, sequence }, oldest))
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.forwarder.in_flight.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.sequence);
    }
}

/// What an interactive transaction adds to its request.
pub(crate) struct Closure {
    pub time_ms: i64,
    pub seed: u64,
    pub seen: Seen,
}

/// How one attempt ended without an answer.
struct Attempt {
    /// It may have been done all the same.
    maybe: bool,
    reason: String,
    /// Trying again does not help.
    error: Option<Error>,
}

impl Attempt {
    fn not_done(reason: impl Into<String>) -> Attempt {
        Attempt { maybe: false, reason: reason.into(), error: None }
    }
}

impl From<SubmitError> for Attempt {
    fn from(error: SubmitError) -> Self {
        let reason = error.to_string();
        match error {
            SubmitError::NotLeader { .. } | SubmitError::NoQuorum => Attempt::not_done(reason),
            SubmitError::Conflict => Attempt { maybe: false, reason, error: Some(Error::Conflict { attempts: 1 }) },
            SubmitError::Busy => Attempt { maybe: false, reason, error: Some(BUSY) },
            SubmitError::Lost => Attempt { maybe: true, reason, error: None },
        }
    }
}

/// What can be asked of the leader.
trait Ask {
    type Answer;
    /// Whether an answer that is lost leaves it open if something was changed.
    const CHANGES: bool;
    /// It may have been done already: from here on it is a resend.
    fn again(&mut self) {}
    async fn here(&self, forwarder: &Forwarder) -> Result<Self::Answer, SubmitError>;
    /// Sets `is_sent` as soon as it may be done.
    async fn there(
        &self,
        forwarder: &Forwarder,
        leader: NodeId,
        peer: &Peer,
        is_sent: &AtomicBool,
    ) -> Result<Reply, CallError>;
    fn answer(reply: Reply) -> Option<Result<Self::Answer, SubmitError>>;
}

struct Submitting(Submission);

impl Ask for Submitting {
    type Answer = super::waiters::Answer;
    const CHANGES: bool = true;

    fn again(&mut self) {
        self.0.resent = true;
    }

    async fn here(&self, forwarder: &Forwarder) -> Result<Self::Answer, SubmitError> {
        forwarder.sequencer.submit(self.0.clone()).await
    }

    async fn there(
        &self,
        forwarder: &Forwarder,
        leader: NodeId,
        peer: &Peer,
        is_sent: &AtomicBool,
    ) -> Result<Reply, CallError> {
        let place = forwarder.place(leader, peer, Route::of(self.0.request.size())).await?;
        is_sent.store(true, Ordering::Relaxed);
        place.call(Call::Submit(self.0.clone())).await
    }

    fn answer(reply: Reply) -> Option<Result<Self::Answer, SubmitError>> {
        match reply {
            Reply::Submit(result) => Some(result),
            _ => None,
        }
    }
}

struct AskingIndex;

impl Ask for AskingIndex {
    type Answer = u64;
    const CHANGES: bool = false;

    async fn here(&self, forwarder: &Forwarder) -> Result<u64, SubmitError> {
        forwarder.read_index.on_leader().await
    }

    async fn there(
        &self,
        forwarder: &Forwarder,
        leader: NodeId,
        peer: &Peer,
        is_sent: &AtomicBool,
    ) -> Result<Reply, CallError> {
        drop(forwarder.place(leader, peer, Route::Prompt).await?);
        is_sent.store(true, Ordering::Relaxed);
        forwarder.questions.ask(leader, peer).await.map(Reply::ReadIndex)
    }

    fn answer(reply: Reply) -> Option<Result<u64, SubmitError>> {
        match reply {
            Reply::ReadIndex(result) => Some(result),
            _ => None,
        }
    }
}

async fn leader_changed(status: &mut watch::Receiver<Status>, asked: Option<NodeId>) {
    // An error means that the database is gone; the next look at the status tells.
    let _ = status.wait_for(|status| status.leader.is_some() && status.leader != asked || status.is_shut_down()).await;
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io;
    use std::pin::Pin;

    use futures_util::StreamExt;
    use tokio::io::AsyncWriteExt;
    use tokio_util::codec::FramedRead;

    use super::*;
    use crate::db::network::{PeerConnector, PeerStream, testing};
    use crate::db::tests::kit::{Cluster, peer};

    /// A leader that greets and then reads nothing any more.
    struct Stuck;

    impl PeerConnector for Stuck {
        fn connect(&self, _: String) -> Pin<Box<dyn Future<Output = io::Result<PeerStream>> + Send>> {
            let (ours, mut theirs) = tokio::io::duplex(64);
            tokio::spawn(async move {
                FramedRead::new(&mut theirs, testing::frames()).next().await.unwrap().unwrap();
                theirs.write_all(&testing::welcome()).await.unwrap();
                std::future::pending::<()>().await;
            });
            Box::pin(async move { Ok(Box::new(ours) as PeerStream) })
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_queue_to_the_leader_that_is_full_is_busy_and_nothing_was_done() {
        let cluster = Cluster::new(1).await;
        let inner = &cluster.db(1).inner;
        let peers = Arc::new(Peers::new(Arc::new(Stuck), Arc::default()));
        let mut status = cluster.db(1).status();
        status.leader = Some(2);
        status.nodes.insert(2, peer(2));
        let (_sender, status) = watch::channel(status);
        let (sequencer, read_index) = (inner.service.sequencer.clone(), inner.service.read_index.clone());
        let (timeout, cancelled) = (Duration::from_millis(300), CancellationToken::new());
        let (forwarder, task) = Forwarder::new(sequencer, read_index, Arc::clone(&peers), status, timeout, cancelled);
        tokio::spawn(task);
        // More than the connection takes.
        let write = || forwarder.submit(Scope::User, Body::Script("SELECT 1 ".repeat(100)), None);
        let error = write().await.unwrap_err();
        assert!(matches!(error, Error::OutcomeUnknown { .. }), "it was sent: {error:?}");
        let full = || peers.start(2, &peer(2).address, Call::Ping);
        let waiting: Vec<_> = std::iter::from_fn(|| full().ok()).collect();
        assert!(waiting.len() > 100, "{} calls wait", waiting.len());
        for error in [write().await.map(drop), forwarder.read_index().await.map(drop)].map(Result::unwrap_err) {
            assert!(matches!(error, Error::Busy { .. }), "{error:?}");
            assert_eq!(crate::error::Error::from(error).status().as_u16(), 503);
        }
    }
}
