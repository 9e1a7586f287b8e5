//! The one thread that writes to the state file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot, watch};

use super::apply::{Applier, ApplyError, Position};
use super::checkpoint::Checkpointer;
use super::checksum::{Digest, Digests};
use super::command::is_mark;
use super::damage::is_damage;
use super::error::chain;
use super::gate::WriteGate;
use super::raft_types::Entry;
use super::readers::Readers;
use super::state_file;
use super::status::Heard;
use super::waiters::Waiters;
use super::watch::{TableClock, Written};

/// How many jobs may wait. openraft hands over one at a time; the rest is for snapshots.
const JOBS_MAX: usize = 16;

/// What the writer thread shares with the rest of the database.
pub(crate) struct Shared {
    pub waiters: Waiters,
    pub readers: Readers,
    pub gate: WriteGate,
    pub digests: Digests,
    /// When each table was written last.
    pub tables: Arc<TableClock>,
    /// The index of the last applied entry, told after its transaction was committed.
    pub applied: watch::Sender<u64>,
    /// Up to which index the log may have been seen applied somewhere: this member applies it, or has told others that it is committed. Never
    /// behind `applied`. What an earlier leader has told is in it once a leader has applied an entry of its own.
    pub visible: Arc<AtomicU64>,
    /// This member hands the leadership over, and takes nothing in that would show its followers that it leads.
    pub handing_over: AtomicBool,
    /// How often the quorum was asked for what linearizable reads need.
    pub read_rounds: AtomicU64,
    /// When the leader was heard of.
    pub heard: Heard,
    /// Why this member's files must not be used any more, once they must not.
    pub damage: watch::Sender<Option<String>>,
}

impl Shared {
    /// The digest of this member's state at `index`. It is unknown only if the member is past it without one.
    pub fn digest(&self, index: u64) -> Digest {
        match self.digests.get(index) {
            Digest::Unknown if *self.applied.borrow() < index => Digest::Pending,
            digest => digest,
        }
    }
}

/// Why the writer thread could not do a job.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriterError {
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error("the state file failed")]
    Sqlite(#[from] rusqlite::Error),
    #[error("cannot replace or sync the state file")]
    Io(#[from] io::Error),
    #[error("the writer thread has ended")]
    Ended,
}

enum Job {
    Apply { entries: Vec<Entry>, done: oneshot::Sender<Result<(), WriterError>> },
    Install { file: PathBuf, snapshot: u64, done: oneshot::Sender<Result<Position, WriterError>> },
    Position { done: oneshot::Sender<Result<(Position, PathBuf), WriterError>> },
    Close { done: oneshot::Sender<Result<(), WriterError>> },
}

/// A handle on the writer thread; the thread ends and is joined with the last of them.
pub(crate) struct Writer {
    jobs: mpsc::Sender<Job>,
    thread: Option<JoinHandle<()>>,
    /// Ends before the thread, which is the last to close the file.
    checkpointer: Arc<Checkpointer>,
}

impl Writer {
    /// Opens the state in `dir` and starts the thread.
    pub fn start(dir: &Path) -> Result<(Writer, Arc<Shared>, Position), WriterError> {
        let path = state_file::current(dir)?;
        state_file::remove_others(dir)?;
        let mut applier = Applier::open(&path)?;
        // A process that was killed has left transactions that only the page cache holds. openraft takes where the state
        // stands now for a snapshot, and would drop the log behind it.
        state_file::sync(&path)?;
        let position = applier.position().clone();
        let applied = position.last_applied.map_or(0, |log_id| log_id.index);
        let damage = watch::Sender::new(None);
        let shared = Arc::new(Shared {
            waiters: Waiters::default(),
            readers: Readers::new(path.clone(), damage.clone()),
            gate: WriteGate::default(),
            digests: Digests::default(),
            tables: Arc::default(),
            applied: watch::Sender::new(applied),
            visible: Arc::new(AtomicU64::new(applied)),
            handing_over: AtomicBool::new(false),
            read_rounds: AtomicU64::new(0),
            heard: Heard::default(),
            damage,
        });
        let (jobs, receiver) = mpsc::channel(JOBS_MAX);
        let checkpointer = Arc::new(Checkpointer::start(shared.damage.clone())?);
        checkpointer.follow(applier.connection_mut())?;
        let state = State {
            dir: dir.to_owned(),
            path,
            applier,
            shared: Arc::clone(&shared),
            checkpointer: Arc::clone(&checkpointer),
        };
        let thread = std::thread::Builder::new().name("sqlite-writer".to_owned()).spawn(move || state.run(receiver))?;
        Ok((Writer { jobs, thread: Some(thread), checkpointer }, shared, position))
    }

    /// Applies committed entries and answers those who wait for them.
    pub async fn apply(&self, entries: Vec<Entry>) -> Result<(), WriterError> {
        self.ask(|done| Job::Apply { entries, done }).await
    }

    /// Brings the state onto stable storage and says where it stood before.
    pub async fn sync(&self) -> Result<Position, WriterError> {
        loop {
            let (position, path) = self.ask(|done| Job::Position { done }).await?;
            match self.checkpointer.sync(path.clone()).await {
                Ok(()) => return Ok(position),
                // A snapshot has put another file in force meanwhile.
                Err(_) if self.ask(|done| Job::Position { done }).await?.1 != path => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Puts the file of the snapshot of a log index in force.
    pub async fn install(&self, file: PathBuf, snapshot: u64) -> Result<Position, WriterError> {
        self.ask(|done| Job::Install { file, snapshot, done }).await
    }

    /// Where the state stands.
    pub async fn position(&self) -> Result<Position, WriterError> {
        Ok(self.ask(|done| Job::Position { done }).await?.0)
    }

    /// Closes the state file, so that all of the state is in it and nothing in the write-ahead log, and ends the thread.
    pub async fn close(&self) {
        if let Err(error) = self.ask(|done| Job::Close { done }).await {
            tracing::debug!(%error, "the state file was closed already");
        }
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T, WriterError>>) -> Job) -> Result<T, WriterError> {
        let (done, result) = oneshot::channel();
        self.jobs.send(job(done)).await.map_err(|_| WriterError::Ended)?;
        result.await.map_err(|_| WriterError::Ended)?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Closing the channel ends the thread once the jobs that wait are done.
        let (closed, _) = mpsc::channel(1);
        self.jobs = closed;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the writer thread panicked");
        }
    }
}

struct State {
    dir: PathBuf,
    path: PathBuf,
    applier: Applier,
    shared: Arc<Shared>,
    checkpointer: Arc<Checkpointer>,
}

impl State {
    fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(job) = jobs.blocking_recv() {
            // Who asked may have gone; the work is done all the same.
            match job {
                Job::Apply { entries, done } => {
                    drop(done.send(self.apply(&entries).inspect_err(|e| self.note_damage(e))))
                }
                Job::Install { file, snapshot, done } => drop(done.send(self.install(&file, snapshot))),
                Job::Position { done } => drop(done.send(Ok((self.applier.position().clone(), self.path.clone())))),
                Job::Close { done } => {
                    // SQLite moves the write-ahead log into the file when its last connection is closed.
                    self.shared.readers.close_idle();
                    self.checkpointer.stop();
                    drop(self.applier);
                    drop(done.send(Ok(())));
                    return;
                }
            }
        }
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<(), WriterError> {
        // A mark ends a transaction, so that the state can be pinned as it is there.
        for group in entries.split_inclusive(is_mark) {
            if let Some(entry) = group.last() {
                self.shared.visible.fetch_max(entry.log_id.index, Ordering::AcqRel);
            }
            let answered = {
                let _entered = self.shared.gate.enter_as_writer();
                self.shared.readers.pause_view();
                self.applier.apply(group)?
            };
            if let Some(entry) = group.last() {
                self.shared.tables.advance(entry.log_id.index, self.applier.take_written());
                if is_mark(entry) {
                    self.shared.digests.start(entry.log_id.index, &self.shared.readers);
                }
                self.shared.applied.send_replace(entry.log_id.index);
            }
            self.shared.waiters.answer(answered);
            let committed = self.applier.connection();
            self.checkpointer.after_commit(committed, &self.path)?;
            self.shared.readers.resume_view();
        }
        Ok(())
    }

    /// Before the error is answered: whoever hears it can see that the member is to be rebuilt.
    fn note_damage(&self, error: &WriterError) {
        if is_damage(error) {
            self.shared.damage.send_replace(Some(chain(error)));
        }
    }

    fn install(&mut self, file: &Path, snapshot: u64) -> Result<Position, WriterError> {
        self.shared.visible.fetch_max(snapshot, Ordering::AcqRel);
        let _entered = self.shared.gate.enter_as_writer();
        let path = state_file::install(&self.dir, file, snapshot)?;
        self.applier = Applier::open(&path)?;
        self.checkpointer.follow(self.applier.connection_mut())?;
        self.checkpointer.close();
        let old = std::mem::replace(&mut self.path, path.clone());
        self.shared.readers.switch(path);
        state_file::remove(&old)?;
        let position = self.applier.position().clone();
        let index = position.last_applied.map_or(0, |log_id| log_id.index);
        self.shared.tables.advance(index, Written { everything: true, ..Written::default() });
        self.shared.applied.send_replace(index);
        Ok(position)
    }
}
