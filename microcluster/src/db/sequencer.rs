//! The leader's sequencer: puts requests that wait together into one log entry, and lets an interactive
//! transaction in only if nothing sequenced since its snapshot writes to a table that it touched.
//!
//! The check is about one leadership: it looks at the batches that this sequencer has proposed in the present
//! term, and everything before the term counts as a write to everything. The term goes into the request, and
//! apply refuses it under another one. So the check stays true whoever leads later.

mod analysis;
mod history;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::authorizer::Touched;
use super::command::{Batch, Body, Request, RequestId};
use super::gathering::Gathering;
use super::log_store::LogStore;
use super::raft_types::{NodeId, Peer, Raft, TypeConfig};
use super::status::Status;
use super::transaction::now_ms;
use super::waiters::{Answer, AnswerSender, Landed};
use super::writer::Shared;
use analysis::Analyzer;
use history::History;

/// How many requests may wait to be sequenced.
const QUEUE_MAX: usize = 4_096;
/// How many bytes of requests may wait to be sequenced or be on their way.
const BYTES_MAX: usize = 64 << 20;
/// How many requests one log entry holds at most.
const BATCH_REQUESTS_MAX: usize = 512;
/// How many bytes of requests one log entry holds at most, unless one alone is larger.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// How many entries are on their way at once.
const BATCHES_IN_FLIGHT_MAX: usize = 3;
/// How long an entry is waited for before another one goes behind it. While one is on its way the next one gathers what comes: fewer
/// entries, and less work for each request. Where the way is long (far members, a slow disk) they follow each other.
const PACE: Duration = Duration::from_millis(10);

/// A request on its way to the leader's sequencer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Submission {
    pub request: Request,
    /// What an interactive transaction saw; plain statements have none.
    pub seen: Option<Seen>,
    /// It was sent before and may be in the log already.
    pub resent: bool,
}

/// The snapshot that an interactive transaction ran on, and the tables that it touched there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub index: u64,
    pub touched: Touched,
}

/// Why a request was not sequenced, or got no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error, Serialize, Deserialize)]
pub(crate) enum SubmitError {
    /// It is not in the log; somebody else leads.
    #[error("this member is not the leader")]
    NotLeader { leader: Option<(NodeId, Peer)> },
    /// It is not in the log; a majority does not answer.
    #[error("the leader cannot reach a majority of the voters")]
    NoQuorum,
    /// It is not in the log; what it saw has been written to since.
    #[error("the transaction conflicts with one sequenced before it")]
    Conflict,
    /// It is not in the log; too many wait.
    #[error("too many requests wait for the leader")]
    Busy,
    /// Whether it is in the log is not known.
    #[error("the leader stopped before it answered")]
    Lost,
}

/// A handle on the sequencer's task.
#[derive(Clone)]
pub(crate) struct Sequencer {
    queue: mpsc::Sender<Queued>,
    status: watch::Receiver<Status>,
    shared: Arc<Shared>,
    /// How many more bytes of requests may wait or be on their way.
    bytes: Arc<Semaphore>,
}

impl Sequencer {
    /// The sequencer and its task, to be spawned by the database.
    pub fn new(
        raft: Raft,
        log: LogStore,
        shared: Arc<Shared>,
        status: watch::Receiver<Status>,
        cancelled: CancellationToken,
    ) -> (Sequencer, impl Future<Output = ()> + Send) {
        let (queue, receiver) = mpsc::channel(QUEUE_MAX);
        let task = Task {
            raft,
            status: status.clone(),
            log,
            shared: Arc::clone(&shared),
            history: History::default(),
            analyzer: Analyzer,
            deferred: None,
        };
        (Sequencer { queue, status, shared, bytes: Arc::new(Semaphore::new(BYTES_MAX)) }, task.run(receiver, cancelled))
    }

    /// Sequences the request and waits until it was applied here. Bound it with a timeout.
    pub async fn submit(&self, submission: Submission) -> Result<Answer, SubmitError> {
        {
            let status = self.status.borrow();
            if !status.is_leader() || self.shared.handing_over.load(Ordering::Acquire) {
                return Err(SubmitError::NotLeader { leader: None });
            }
            if !status.has_quorum {
                return Err(SubmitError::NoQuorum);
            }
        }
        let bytes = u32::try_from(submission.request.size()).unwrap_or(u32::MAX);
        // Held until it is applied, also when nobody waits for it any more.
        let waiting = Arc::clone(&self.bytes).try_acquire_many_owned(bytes).map_err(|_| SubmitError::Busy)?;
        let (answer, receiver) = oneshot::channel();
        self.queue.try_send((submission, answer, waiting)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => SubmitError::Busy,
            mpsc::error::TrySendError::Closed(_) => SubmitError::NotLeader { leader: None },
        })?;
        receiver.await.unwrap_or(Err(SubmitError::Lost))
    }
}

/// A request that waits, where its answer goes, and its share of the bytes that may wait.
type Queued = (Submission, AnswerSender, OwnedSemaphorePermit);

async fn next(deferred: &mut Option<Queued>, queue: &mut mpsc::Receiver<Queued>) -> Option<Queued> {
    match deferred.take() {
        Some(queued) => Some(queued),
        None => queue.recv().await,
    }
}

async fn leads_no_longer(status: &mut watch::Receiver<Status>) {
    // An error means that the database is gone, and this task with it.
    let _ = status.wait_for(|status| !status.is_leader()).await;
}

struct Task {
    raft: Raft,
    status: watch::Receiver<Status>,
    log: LogStore,
    shared: Arc<Shared>,
    history: History,
    analyzer: Analyzer,
    /// Taken from the queue, and left for the next entry.
    deferred: Option<Queued>,
}

/// A batch that was handed to Raft.
struct Proposed {
    ids: Vec<RequestId>,
    landed: Arc<Landed>,
    /// No more would have gone into it.
    is_full: bool,
    /// Of the bytes that may wait.
    _waiting: Vec<OwnedSemaphorePermit>,
}

impl Task {
    async fn run(mut self, mut queue: mpsc::Receiver<Queued>, cancelled: CancellationToken) {
        let mut in_flight = FuturesUnordered::new();
        let mut gathering = Gathering::new();
        let mut status = self.status.clone();
        // Runs from the moment on when an entry went.
        let mut pace = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        loop {
            // Once: the time goes on.
            let is_paced = pace.is_elapsed();
            let may_follow = in_flight.is_empty() || (is_paced && in_flight.len() < BATCHES_IN_FLIGHT_MAX);
            tokio::select! {
                biased;
                () = cancelled.cancelled() => break,
                Some(requests) = in_flight.next(), if !in_flight.is_empty() => {
                    gathering.done(BATCH_REQUESTS_MAX.min(requests + queue.len()), Instant::now());
                }
                // openraft does not answer what a snapshot from another leader has overtaken: who waits asks again, under the same id.
                () = leads_no_longer(&mut status), if !in_flight.is_empty() => {
                    in_flight.clear();
                    self.shared.waiters.close();
                    self.history = History::default();
                }
                () = pace.as_mut(), if !in_flight.is_empty() && !is_paced => {}
                Some(first) = next(&mut self.deferred, &mut queue), if may_follow => {
                    if in_flight.is_empty() && first.0.request.body != Body::Mark {
                        gathering.wait(|| queue.len() + 1).await;
                    }
                    if let Some((proposed, result)) = self.propose(first, &mut queue).await {
                        pace.as_mut().reset(tokio::time::Instant::now() + PACE);
                        gathering.sent();
                        let shared = Arc::clone(&self.shared);
                        in_flight.push(async move {
                            // All of it: the bytes are given back when this is done.
                            let proposed = proposed;
                            // Behind a full one there is no need to wait for more.
                            let requests: usize = if proposed.is_full { 0 } else { proposed.ids.len() };
                            // Those who wait were answered by the writer thread when the batch was applied.
                            let error = match result.await {
                                Ok(Ok(response)) => {
                                    proposed.landed.at(response.log_id.index);
                                    return requests;
                                }
                                // Also "somebody else leads" leaves it open: openraft says so of an entry too that another leader
                                // has cut off here, and that may stand in other logs and be committed all the same.
                                Ok(Err(_)) | Err(_) => SubmitError::Lost,
                            };
                            proposed.landed.nowhere();
                            shared.waiters.fail(&proposed.ids, &proposed.landed, &error);
                            requests
                        });
                    }
                }
            }
        }
        // Nobody answers any more; what the callers see says that the outcome is open.
        self.shared.waiters.close();
    }

    /// Puts `first` and what waits behind it into one entry and hands it to Raft.
    async fn propose(
        &mut self,
        first: Queued,
        queue: &mut mpsc::Receiver<Queued>,
    ) -> Option<(Proposed, ResultReceiver)> {
        let landed = Arc::new(Landed::default());
        let mut requests = Vec::new();
        let mut ids = Vec::new();
        let mut permits = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some((submission, answer, permit)) = next {
            let Submission { mut request, seen, resent } = submission;
            if let Some(seen) = seen {
                match self.validate(&seen, &requests).await {
                    Ok(term) => request.only_in_term = Some(term),
                    // It may conflict with itself. Apply knows: it answers the first outcome, or writes down that it conflicts,
                    // which also stops a copy that is still on its way. No leader has term 0.
                    Err(SubmitError::Conflict) if resent => request.only_in_term = Some(0),
                    Err(error) => {
                        let _ = answer.send(Err(error));
                        next = queue.try_recv().ok();
                        continue;
                    }
                }
            }
            if request.only_in_term.is_none() {
                (request.time_ms, request.seed) = (now_ms(), rand::random());
            }
            bytes += request.size();
            ids.push(request.id);
            permits.push(permit);
            self.shared.waiters.register(request.id, answer, Arc::clone(&landed), resent);
            requests.push(request);
            let is_mark = requests.last().is_some_and(|request| request.body == Body::Mark);
            next = if requests.len() < BATCH_REQUESTS_MAX && bytes < BATCH_BYTES_MAX && !is_mark {
                queue.try_recv().ok()
            } else {
                None
            };
            // A mark has an entry of its own: the next one.
            if next.as_ref().is_some_and(|(submission, ..)| submission.request.body == Body::Mark) {
                self.deferred = next.take();
            }
        }
        if requests.is_empty() {
            return None;
        }
        let is_full = requests.len() >= BATCH_REQUESTS_MAX || bytes >= BATCH_BYTES_MAX;
        let proposed = Proposed { ids, landed, is_full, _waiting: permits };
        let batch = Batch { requests };
        let sent = match batch.encode() {
            Ok(command) => self.raft.client_write_ff(command).await.ok(),
            Err(error) => {
                tracing::error!(%error, "a batch of requests could not be encoded");
                None
            }
        };
        match sent {
            Some(result) => {
                self.history.note(batch.requests, Arc::clone(&proposed.landed));
                Some((proposed, result))
            }
            None => {
                self.shared.waiters.fail(&proposed.ids, &proposed.landed, &SubmitError::NotLeader { leader: None });
                None
            }
        }
    }

    /// Whether an interactive transaction may come after all that is sequenced; the term for which that holds.
    async fn validate(&mut self, seen: &Seen, before_it: &[Request]) -> Result<u64, SubmitError> {
        let term = self.raft.metrics().borrow().current_term;
        if self.history.term() != Some(term) {
            // Asked inside Raft's own loop, after everything proposed so far and before anything proposed later.
            let log = self.log.clone();
            let (leads, term, last_index) = self
                .raft
                .with_raft_state(move |state| {
                    let vote = *state.vote_ref();
                    (vote.is_committed(), vote.leader_id().get_term(), log.stats().last_index.unwrap_or(0))
                })
                .await
                .map_err(|_| SubmitError::NotLeader { leader: None })?;
            if !leads {
                return Err(SubmitError::NotLeader { leader: None });
            }
            self.history.begin(term, last_index);
        }
        if *self.shared.applied.borrow() < seen.index {
            // What a statement writes is asked of the schema here, which may be older than the one that the transaction saw.
            return Err(SubmitError::Conflict);
        }
        let term = self.history.term().unwrap_or(term);
        let writes = |request: &Request| self.analyzer.writes(&self.shared.readers, request, &seen.touched);
        if self.history.conflicts(seen.index, writes) || before_it.iter().any(writes) {
            return Err(SubmitError::Conflict);
        }
        Ok(term)
    }
}

type ResultReceiver =
    <openraft::impls::OneshotResponder<TypeConfig> as openraft::raft::responder::Responder<TypeConfig>>::Receiver;
