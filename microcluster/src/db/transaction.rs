//! Interactive transactions: a closure runs on the local replica, inside a transaction that is rolled back;
//! its writes are recorded, and the leader lets the record in if nothing that it touched has changed since.

mod closure;
mod named;
mod parameters;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::Semaphore;

use super::command::Scope;
use super::error::Error;
use super::forward::{Closure, Forwarder};
use super::gate::Preemptible;
use super::sequencer::Seen;
use super::writer::Shared;
use crate::tasks;
use closure::{Connections, Ran, Run, Start};

pub use closure::Transaction;
pub use named::Named;
pub use parameters::Parameters;

/// How many closures of one member run at once; the others wait. The product's, and as many of the cluster's own: one of the
/// product's that never returns keeps its place for ever.
const CLOSURES_MAX: usize = 16;
/// How often a closure runs again after conflicts.
const ATTEMPTS_MAX: u32 = 64;
/// How long one run of a closure may take.
const CLOSURE_LIMIT: Duration = Duration::from_secs(5);
/// How long a transaction may take with all its runs.
const TRANSACTION_LIMIT: Duration = Duration::from_secs(30);
/// How long a transaction waits at most, with all its runs, for what was answered on its member before.
const OWN_LIMIT: Duration = Duration::from_secs(1);
/// The longest pause between two runs.
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// Runs the closures of one member.
pub(crate) struct Closures {
    shared: Arc<Shared>,
    connections: Arc<Connections>,
    running: Arc<Semaphore>,
    running_core: Arc<Semaphore>,
    /// Where the state stood when what was answered here had not arrived in time.
    stood: AtomicU64,
}

impl Closures {
    /// Nothing is opened yet.
    pub fn new(shared: Arc<Shared>) -> Closures {
        let connections = Arc::new(Connections::default());
        let [running, running_core] = [(); 2].map(|()| Arc::new(Semaphore::new(CLOSURES_MAX)));
        Closures { shared, connections, running, running_core, stood: AtomicU64::new(u64::MAX) }
    }

    /// Runs `body` until it gets through, and answers what it returned in that run.
    pub async fn run<T, F>(&self, forwarder: &Forwarder, scope: Scope, body: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Fn(&Transaction<'_>) -> Result<T, Error> + Send + Sync + 'static,
    {
        let body = Arc::new(body);
        let started = Instant::now();
        let mut attempts = 0;
        let mut confirmed = false;
        let mut own_limit = OWN_LIMIT;
        loop {
            attempts += 1;
            let waited = Instant::now();
            self.see_own(forwarder, own_limit).await;
            own_limit = own_limit.saturating_sub(waited.elapsed());
            // After a few lost races the closure takes the write lock from its start, so that it cannot be overtaken on this member.
            let eager = attempts > 2;
            let error = match self.attempt(forwarder, scope, &body, eager).await {
                Ok(Attempt::Done(value)) => return Ok(value),
                Ok(Attempt::Failed { error, index }) => {
                    // This member may be behind, and the closure may have failed for that alone: its error counts once it
                    // comes from a state as fresh as this call.
                    if confirmed || !self.catch_up(forwarder, index).await {
                        return Err(error);
                    }
                    confirmed = true;
                    continue;
                }
                Err(error @ Error::Conflict { .. }) => error,
                Err(error) => return Err(error),
            };
            if attempts >= ATTEMPTS_MAX || started.elapsed() > TRANSACTION_LIMIT {
                tracing::debug!(attempts, %error, "giving a transaction up");
                return Err(Error::Conflict { attempts });
            }
            let pause = PAUSE_MAX.min(Duration::from_micros(200 << attempts.min(7)));
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.1..1.0))).await;
        }
    }

    async fn attempt<T, F>(
        &self,
        forwarder: &Forwarder,
        scope: Scope,
        body: &Arc<F>,
        eager: bool,
    ) -> Result<Attempt<T>, Error>
    where
        T: Send + 'static,
        F: Fn(&Transaction<'_>) -> Result<T, Error> + Send + Sync + 'static,
    {
        let busy = Error::Busy { detail: "too many transactions run on this member" };
        let running = match scope {
            Scope::User => &self.running,
            Scope::Core => &self.running_core,
        };
        let permit = match tokio::time::timeout(CLOSURE_LIMIT, Arc::clone(running).acquire_owned()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(Error::ShuttingDown),
            Err(_) => return Err(busy),
        };
        let (time_ms, seed) = (now_ms(), rand::random());
        let start = Start { time_ms, seed, scope, eager };
        let run = Run::new();
        let running = {
            let (run, body) = (Arc::clone(&run), Arc::clone(body));
            let (shared, connections) = (Arc::clone(&self.shared), Arc::clone(&self.connections));
            tasks::caught(move || {
                let ran = run.run(&start, &shared, &connections, &*body);
                drop(permit);
                ran
            })
        };
        let ran = match tokio::time::timeout(CLOSURE_LIMIT, running).await {
            Ok(Ok(ran)) => ran.inspect_err(|error| self.note_damage(error))?,
            // The thread's transaction was rolled back when the panic unwound it.
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => {
                // It may hold the write lock; the next call that the closure makes fails. Not waited for: the closure may be in
                // code of its own that never ends.
                tokio::task::spawn_blocking(move || run.preempt());
                return Err(Error::TooLong { what: "the transaction's closure", limit: CLOSURE_LIMIT });
            }
        };
        let Ran { value, index, writes, touched } = ran;
        let value = match value {
            Ok(value) => value,
            Err(error @ Error::Conflict { .. }) => return Err(error),
            Err(error) => {
                self.note_damage(&error);
                return Ok(Attempt::Failed { error, index });
            }
        };
        if let Some(writes) = writes {
            let closure = Closure { time_ms, seed, seen: Seen { index, touched } };
            forwarder.submit(scope, writes, Some(closure)).await?;
        }
        Ok(Attempt::Done(value))
    }

    /// A closure that finds the state file damaged has the member rebuilt, as a read has.
    fn note_damage(&self, error: &Error) {
        if let Error::Damaged { .. } = error {
            self.shared.readers.suspect();
        }
    }

    /// Waits until everything is applied here that was acknowledged anywhere; `false` if that is the state of `index`
    /// already, or if nobody can tell.
    async fn catch_up(&self, forwarder: &Forwarder, index: u64) -> bool {
        match forwarder.read_index().await {
            Ok(newest) if newest > index => self.applied(newest, CLOSURE_LIMIT).await,
            _ => false,
        }
    }

    /// Waits until what was answered on this member shows here too. A follower hears a moment after the answer that it is committed;
    /// a closure that runs before that would conflict with the one before it. One that is cut off goes on with what it has, and waits
    /// again only when something has arrived.
    async fn see_own(&self, forwarder: &Forwarder, limit: Duration) {
        let answered = forwarder.answered_index();
        let stands = *self.shared.applied.borrow();
        let is_stuck = stands == self.stood.load(Ordering::Relaxed);
        if stands >= answered || is_stuck || limit.is_zero() || self.applied(answered, limit).await {
            return;
        }
        if limit == OWN_LIMIT && *self.shared.applied.borrow() == stands {
            self.stood.store(stands, Ordering::Relaxed);
        }
    }

    /// Whether this member has applied the log up to `index` in time.
    async fn applied(&self, index: u64, limit: Duration) -> bool {
        let mut applied = self.shared.applied.subscribe();
        let reached = applied.wait_for(|applied| *applied >= index);
        matches!(tokio::time::timeout(limit, reached).await, Ok(Ok(_)))
    }
}

/// How one run of a closure ended, conflicts aside.
enum Attempt<T> {
    Done(T),
    /// The closure itself failed, on the state of log index `index`.
    Failed {
        error: Error,
        index: u64,
    },
}

pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
