//! Clients that write without a pause while something happens to the cluster.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use microcluster_client::{Client, Error, SqlRequest};
use tokio::task::JoinSet;

use crate::{Ledger, TestCluster, eventually};

/// Rows that one writer can number.
const ROWS_MAX: u64 = 1_000_000;

/// Before the next try when nobody listens.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(1);

/// Writers of numbered rows, each over a member of its own until that one is gone. They do again
/// only what they are told was not done. Dropping this ends them.
#[derive(Debug)]
pub struct Writers {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<Ledger>,
    progress: Vec<Arc<Progress>>,
}

/// What can be seen of a writer while it writes.
#[derive(Debug, Default)]
struct Progress {
    acknowledged: AtomicU64,
    recovery: Mutex<Recovery>,
}

/// The first success after a moment.
#[derive(Debug, Default)]
struct Recovery {
    /// The moment; none when nobody looks.
    since: Option<Instant>,
    /// When a write was acknowledged that was sent after it.
    first: Option<Instant>,
}

impl Writers {
    /// Makes the tables and starts writers, spread over the members.
    pub async fn start(cluster: &TestCluster, count: usize) -> Self {
        cluster.any().sql(Ledger::SCHEMA).await;
        let clients: Vec<_> = cluster.running().map(crate::Daemon::client).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let (mut tasks, mut progress) = (JoinSet::new(), Vec::new());
        for number in 0..count {
            let mut clients = clients.clone();
            let own_first = number % clients.len();
            clients.rotate_left(own_first);
            let own = Arc::new(Progress::default());
            progress.push(own.clone());
            let first = number as u64 * ROWS_MAX;
            tasks.spawn(write(clients, first, stop.clone(), own));
        }
        Writers { stop, tasks, progress }
    }

    /// Waits until each writer has had this many more rows acknowledged.
    pub async fn advance(&mut self, rows: u64) {
        let goals: Vec<_> = self.progress.iter().map(|own| own.acknowledged.load(Ordering::SeqCst) + rows).collect();
        eventually("all writers go on", async || {
            if let Some(ended) = self.tasks.try_join_next() {
                panic!("a writer has ended: {ended:?}");
            }
            let done: Vec<_> = self.progress.iter().map(|own| own.acknowledged.load(Ordering::SeqCst)).collect();
            let all = done.iter().zip(&goals).all(|(done, goal)| done >= goal);
            all.then_some(()).ok_or_else(|| format!("{done:?} of {goals:?}"))
        })
        .await;
    }

    /// How long after this moment every writer has had a row acknowledged that it sent after it.
    pub async fn recovery(&mut self) -> Duration {
        let since = Instant::now();
        for own in &self.progress {
            *own.recovery.lock().unwrap() = Recovery { since: Some(since), first: None };
        }
        let last = eventually("every writer writes again", async || {
            let firsts = self.progress.iter().map(|own| own.recovery.lock().unwrap().first);
            firsts.collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().max()).ok_or("one does not")
        })
        .await;
        last.duration_since(since)
    }

    /// Ends the writers and returns what they were told.
    pub async fn stop(mut self) -> Ledger {
        self.stop.store(true, Ordering::SeqCst);
        let mut all = Ledger::default();
        while let Some(ended) = self.tasks.join_next().await {
            all.merge(ended.expect("a writer"));
        }
        all
    }
}

impl Progress {
    fn acknowledge(&self, sent: Instant) {
        self.acknowledged.fetch_add(1, Ordering::SeqCst);
        let mut recovery = self.recovery.lock().unwrap();
        if recovery.since.is_some_and(|since| sent >= since) {
            recovery.first.get_or_insert_with(Instant::now);
        }
    }
}

async fn write(mut clients: Vec<Client>, first: u64, stop: Arc<AtomicBool>, progress: Arc<Progress>) -> Ledger {
    let mut ledger = Ledger::default();
    for id in first..first + ROWS_MAX {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let request = SqlRequest::new(Ledger::insertion(id));
        loop {
            let sent = Instant::now();
            match clients[0].sql(&request).await {
                Ok(_) => {
                    ledger.acknowledged.insert(id);
                    progress.acknowledge(sent);
                    break;
                }
                Err(e) if e.outcome_unknown() => {
                    ledger.unknown.insert(id);
                    clients.rotate_left(1);
                    break;
                }
                // The request was not sent: the daemon is gone. Its next start needs the processor more than this.
                Err(Error::Unreachable { .. }) => {
                    clients.rotate_left(1);
                    tokio::time::sleep(UNREACHABLE_PAUSE).await;
                }
                // Nothing was done, and it can be tried again after the time that the answer says.
                Err(Error::Status { code: 503, retry_after, .. }) => {
                    clients.rotate_left(1);
                    tokio::time::sleep(retry_after.unwrap_or_default()).await;
                }
                Err(e) => panic!("row {id} was refused: {e:?}"),
            }
        }
    }
    ledger
}
