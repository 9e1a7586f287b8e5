//! Moves what SQLite's write-ahead log holds into the state file, on a thread of its own: no write waits for that.
//!
//! A checkpoint copies pages and syncs files, the more the longer it was held up: by a snapshot that is being sent, a check or a
//! long read. Here the bulk is copied beside the writer thread; what was written meanwhile is little, and the writer thread
//! copies it itself, so that the log begins anew.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rusqlite::{Connection, OpenFlags};
use tokio::sync::{mpsc, oneshot, watch};

use super::damage::is_damage;
use super::error::chain;
use super::state_file;
use super::writer::WriterError;

/// After how many pages, of 4 KiB, they are moved.
const PAGES: i32 = 4_000;
/// How many pages the writer thread moves itself.
const REST_MAX: i32 = 500;
/// How many jobs may wait.
const JOBS_MAX: usize = 4;

enum Job {
    Move { path: PathBuf },
    Sync { path: PathBuf, done: oneshot::Sender<Result<(), WriterError>> },
    Close,
}

/// A handle on the thread; it ends and is joined when it is stopped or with the handle.
pub(super) struct Checkpointer {
    running: Mutex<Option<(mpsc::Sender<Job>, JoinHandle<()>)>>,
    told: Arc<Told>,
}

/// What the writer thread and this one tell each other.
#[derive(Default)]
struct Told {
    /// How many pages the log had after the last commit.
    pages: AtomicI32,
    /// How many it had when the move of some was begun last.
    begun_at: AtomicI32,
    is_moving: AtomicBool,
    /// Few pages are left: the writer thread is to move them.
    is_nearly_done: AtomicBool,
}

impl Checkpointer {
    /// Starts the thread; nothing is opened yet. `damage` is told when it finds that the file is damaged.
    pub fn start(damage: watch::Sender<Option<String>>) -> std::io::Result<Checkpointer> {
        let (jobs, receiver) = mpsc::channel(JOBS_MAX);
        let told = Arc::new(Told::default());
        let thread = Thread { open: None, told: Arc::clone(&told), damage };
        let thread =
            std::thread::Builder::new().name("sqlite-checkpoint".to_owned()).spawn(move || thread.run(receiver))?;
        Ok(Checkpointer { running: Mutex::new(Some((jobs, thread))), told })
    }

    /// Takes the place of SQLite's own checkpoints on the writer thread's connection.
    pub fn follow(&self, connection: &mut Connection) -> rusqlite::Result<()> {
        let told = Arc::clone(&self.told);
        told.pages.store(0, Ordering::Relaxed);
        told.begun_at.store(0, Ordering::Relaxed);
        connection.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, pages| {
            told.pages.store(pages, Ordering::Relaxed);
            Ok(())
        }))
    }

    /// Called by the writer thread after each transaction, on the connection that it has committed on.
    pub fn after_commit(&self, connection: &Connection, path: &Path) -> rusqlite::Result<()> {
        let told = &*self.told;
        if told.is_nearly_done.swap(false, Ordering::AcqRel) {
            checkpoint(connection)?;
            return Ok(());
        }
        let (pages, begun_at) = (told.pages.load(Ordering::Relaxed), told.begun_at.load(Ordering::Relaxed));
        if pages < begun_at {
            // The log has begun anew.
            told.begun_at.store(0, Ordering::Relaxed);
        } else if pages >= begun_at.saturating_add(PAGES) && !told.is_moving.swap(true, Ordering::AcqRel) {
            told.begun_at.store(pages, Ordering::Relaxed);
            // One that cannot be taken now is tried again after as many pages.
            if !self.try_send(Job::Move { path: path.to_owned() }) {
                told.is_moving.store(false, Ordering::Release);
            }
        }
        Ok(())
    }

    /// Brings everything that was committed to the file at `path` onto stable storage.
    pub async fn sync(&self, path: PathBuf) -> Result<(), WriterError> {
        let (done, result) = oneshot::channel();
        let jobs = self.running().as_ref().map(|(jobs, _)| jobs.clone()).ok_or(WriterError::Ended)?;
        jobs.send(Job::Sync { path, done }).await.map_err(|_| WriterError::Ended)?;
        drop(jobs);
        result.await.map_err(|_| WriterError::Ended)?
    }

    /// Closes the file, which is not in force any more; soon, not at once.
    pub fn close(&self) {
        // With a full queue it is closed when the next job names another one.
        self.try_send(Job::Close);
    }

    /// Ends the thread, which has closed the file when this returns.
    pub fn stop(&self) {
        let Some((jobs, thread)) = self.running().take() else { return };
        // Closing the channel ends the thread once the jobs that wait are done.
        drop(jobs);
        if thread.join().is_err() {
            tracing::error!("the checkpoint thread panicked");
        }
    }

    fn try_send(&self, job: Job) -> bool {
        self.running().as_ref().is_some_and(|(jobs, _)| jobs.try_send(job).is_ok())
    }

    fn running(&self) -> MutexGuard<'_, Option<(mpsc::Sender<Job>, JoinHandle<()>)>> {
        // What the mutex holds is valid at every moment, also if a holder panicked.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Thread {
    open: Option<Open>,
    told: Arc<Told>,
    damage: watch::Sender<Option<String>>,
}

/// The state file, to move pages into it and to bring them onto stable storage.
struct Open {
    path: PathBuf,
    connection: Connection,
    /// Open for as long as the connection is: closing it drops the locks that SQLite holds on the file for this process.
    file: Option<File>,
}

impl Thread {
    fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(job) = jobs.blocking_recv() {
            match job {
                Job::Move { path } => {
                    if let Err(error) = self.move_most(&path).inspect_err(|e| self.note_damage(e)) {
                        tracing::warn!(error = %chain(&error), "the state file's write-ahead log could not be moved into it");
                    }
                    self.told.is_moving.store(false, Ordering::Release);
                }
                Job::Sync { path, done } => {
                    let synced = self.sync(&path).inspect_err(|e| self.note_damage(e));
                    // Who asked may have gone; the work is done all the same.
                    drop(done.send(synced));
                }
                Job::Close => self.open = None,
            }
        }
    }

    fn move_most(&mut self, path: &Path) -> Result<(), WriterError> {
        let open = self.open(path)?;
        let mut rest = i32::MAX;
        loop {
            let left = checkpoint(&open.connection)?;
            if left >= rest {
                // Something pins the log: a later move goes on.
                return Ok(());
            }
            rest = left;
            if rest <= REST_MAX {
                break;
            }
        }
        // SQLite syncs the file with the last page alone: that would be the writer thread's, and all of them at once.
        if let Some(file) = &open.file {
            file.sync_data()?;
        }
        // Also when none is left: some were written since SQLite looked.
        self.told.is_nearly_done.store(true, Ordering::Release);
        Ok(())
    }

    fn sync(&mut self, path: &Path) -> Result<(), WriterError> {
        checkpoint(&self.open(path)?.connection)?;
        Ok(state_file::sync(path)?)
    }

    fn open(&mut self, path: &Path) -> Result<&Open, WriterError> {
        if self.open.as_ref().is_none_or(|open| open.path != path) {
            self.open = None;
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(path, flags)?;
            connection.execute_batch("PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 0")?;
            // Without it SQLite's own sync does, later.
            let file = File::open(path).ok();
            self.open = Some(Open { path: path.to_owned(), connection, file });
        }
        self.open.as_ref().ok_or(WriterError::Ended)
    }

    fn note_damage(&self, error: &WriterError) {
        if is_damage(error) {
            self.damage.send_replace(Some(chain(error)));
        }
    }
}

/// Moves what nobody's view needs where it is, and says how many pages are left.
fn checkpoint(connection: &Connection) -> rusqlite::Result<i32> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
        let (in_log, moved): (i32, i32) = (row.get(1)?, row.get(2)?);
        Ok(in_log.saturating_sub(moved))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use crate::db::Consistency;
    use crate::db::tests::kit::Cluster;

    /// More than twice what is moved at once.
    const ROWS: usize = 600;
    const ROW_BYTES: u64 = 80_000;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_write_ahead_log_stays_small_and_is_moved_once_nobody_needs_it() {
        let cluster = Cluster::new(1).await;
        let db = cluster.db(1);
        let wal_bytes = || cluster.state_bytes(1, ".db-wal");
        db.execute("CREATE TABLE t(a)", ()).await.unwrap();
        let fill = async || {
            for _ in 0..ROWS {
                db.execute("INSERT INTO t VALUES (zeroblob(?1))", [ROW_BYTES.cast_signed()]).await.unwrap();
            }
        };
        fill().await;
        assert!(wal_bytes() < ROWS as u64 * ROW_BYTES * 3 / 4, "{} bytes", wal_bytes());
        // A view of the state holds all that comes after it in the log.
        let pinned = super::super::state_machine::PinnedSnapshot::take(&db.inner.shared.readers).unwrap();
        fill().await;
        assert!(wal_bytes() > ROWS as u64 * ROW_BYTES, "{} bytes", wal_bytes());
        drop(pinned);
        for _ in 0..4 {
            fill().await;
        }
        let most = ROWS as u64 * ROW_BYTES * 5 / 2;
        assert!(wal_bytes() < most, "{} bytes", wal_bytes());
        let count = db.query_row(Consistency::Local, "SELECT count(*) FROM t", (), |row| row.get::<_, i64>(0)).await;
        assert_eq!(count.unwrap(), Some(6 * ROWS as i64));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn reads_that_never_end_let_the_write_ahead_log_begin_anew() {
        let cluster = Cluster::new(1).await;
        let db = cluster.db(1);
        db.execute("CREATE TABLE t(a)", ()).await.unwrap();
        let done = AtomicBool::new(false);
        let read = async || {
            while !done.load(Ordering::Relaxed) {
                let read = db
                    .query_row(Consistency::Local, "SELECT max(rowid) FROM t", (), |row| row.get::<_, Option<i64>>(0));
                read.await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let write = async {
            for _ in 0..6 * ROWS {
                db.execute("INSERT INTO t VALUES (zeroblob(?1))", [ROW_BYTES.cast_signed()]).await.unwrap();
            }
            done.store(true, Ordering::Relaxed);
        };
        tokio::join!(write, read(), read());
        // A read that runs just then puts a new beginning off until the next move; a view that is kept would put all of them off.
        let (bytes, written) = (cluster.state_bytes(1, ".db-wal"), 6 * ROWS as u64 * ROW_BYTES);
        assert!(bytes < written / 2, "{bytes} bytes");
    }
}
