//! The pool of read-only connections. A read sees one consistent state and never waits for the writer.

mod kept_view;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, InterruptHandle, OpenFlags};
use tokio::sync::watch;

use self::kept_view::KeptView;
use super::apply::read_applied_index;
use super::authorizer::{Guard, Mode, Touched};
use super::command::Scope;
use super::error::{Error, is_corruption};
use super::executor::STATEMENTS_CACHED;

/// How many idle connections are kept.
const IDLE_MAX: usize = 8;
/// How often a running read looks at its deadline, in steps of SQLite's virtual machine.
const STEPS_PER_LOOK: i32 = 4_000;

/// Hands out read-only connections to the state file in force.
pub(crate) struct Readers {
    pool: Mutex<Pool>,
    kept_view: KeptView,
    epoch: Instant,
    /// Told when a read finds that the file is damaged.
    damage: watch::Sender<Option<String>>,
    /// What looks at the file.
    checking: Mutex<Option<(JoinHandle<()>, InterruptHandle)>>,
}

struct Pool {
    path: PathBuf,
    generation: u64,
    idle: Vec<Reader>,
}

/// One read-only connection.
pub(crate) struct Reader {
    connection: Connection,
    guard: Guard,
    /// When the read has to be over, in nanoseconds since the pool's epoch.
    deadline: Arc<AtomicU64>,
    generation: u64,
}

impl Readers {
    /// A pool over `path`; nothing is opened yet. `damage` is told when a read finds that the file is damaged.
    pub fn new(path: PathBuf, damage: watch::Sender<Option<String>>) -> Readers {
        let pool = Mutex::new(Pool { path, generation: 0, idle: Vec::new() });
        Readers { pool, kept_view: KeptView::default(), epoch: Instant::now(), damage, checking: Mutex::default() }
    }

    /// From here on connections are opened on `path`; reads that run go on with the file they began on.
    pub fn switch(&self, path: PathBuf) {
        let mut pool = self.lock();
        pool.path = path;
        pool.generation += 1;
        pool.idle.clear();
        drop(pool);
        self.pause_view();
        self.resume_view();
    }

    /// Called by the writer thread before a transaction: no view that is kept for reads is in its way.
    pub fn pause_view(&self) {
        if let Some(reader) = self.kept_view.pause() {
            self.put_back(reader);
        }
    }

    /// Called by the writer thread when it has committed, and moved what it has to move into the file.
    pub fn resume_view(&self) {
        self.kept_view.resume();
    }

    /// Closes the connections that nobody uses, and keeps no view any more.
    pub fn close_idle(&self) {
        self.lock().idle.clear();
        self.kept_view.close();
    }

    /// The state file that connections are opened on.
    pub fn path(&self) -> PathBuf {
        self.lock().path.clone()
    }

    /// Runs `read` on a connection, and interrupts its SQL when it takes longer than `limit`.
    pub fn with<T>(&self, limit: Duration, read: impl FnOnce(&Reader) -> Result<T, Error>) -> Result<T, Error> {
        self.run(self.take()?, limit, read)
    }

    /// As [`Readers::with`], on a connection that remembers nothing.
    pub fn with_new<T>(&self, limit: Duration, read: impl FnOnce(&Reader) -> Result<T, Error>) -> Result<T, Error> {
        self.run(self.open()?, limit, read)
    }

    fn run<T>(
        &self,
        reader: Reader,
        limit: Duration,
        read: impl FnOnce(&Reader) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let deadline = self.epoch.elapsed() + limit;
        reader.deadline.store(u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        reader.guard.set_mode(Mode::Read);
        let result = read(&reader);
        if let Err(Error::Damaged { .. }) = &result {
            self.suspect();
        }
        let result = match result {
            Err(Error::Sql { .. } | Error::Refused { .. }) if self.epoch.elapsed() >= deadline => {
                Err(Error::TooLong { what: "the read", limit })
            }
            Err(Error::Sql { .. } | Error::Refused { .. }) if reader.guard.was_refused() => {
                Err(Error::Refused { message: reader.guard.take_refusal().unwrap_or_default() })
            }
            result => result,
        };
        // A transaction left open would pin the write-ahead log: such a connection is closed.
        if reader.connection.is_autocommit() {
            self.put_back(reader);
        }
        self.kept_view.note_read(|| self.take());
        result
    }

    /// Has the file looked at by a thread of its own, after SQLite has called one damaged in some call: that may have been a file of
    /// the product's, or one that a snapshot has replaced meanwhile.
    pub fn suspect(&self) {
        let mut checking = self.checking.lock().unwrap_or_else(PoisonError::into_inner);
        if checking.as_ref().is_some_and(|(thread, _)| !thread.is_finished()) {
            return;
        }
        let connection = match open_read_only(&self.path()) {
            Ok(connection) => connection,
            Err(error) if is_corruption(&error) => {
                self.damage.send_replace(Some(error.to_string()));
                return;
            }
            Err(error) => return tracing::error!(%error, "the state file may be damaged, and cannot be looked at"),
        };
        let (interrupt, damage) = (connection.get_interrupt_handle(), self.damage.clone());
        let check = move || {
            if let Some(reason) = damage_in(&connection) {
                damage.send_replace(Some(reason));
            }
        };
        match std::thread::Builder::new().name("sqlite-check".to_owned()).spawn(check) {
            Ok(thread) => *checking = Some((thread, interrupt)),
            Err(error) => tracing::error!(%error, "the state file may be damaged, and cannot be looked at"),
        }
    }

    fn take(&self) -> Result<Reader, Error> {
        let idle = self.lock().idle.pop();
        idle.map_or_else(|| self.open(), Ok)
    }

    fn open(&self) -> Result<Reader, Error> {
        let (path, generation) = {
            let pool = self.lock();
            (pool.path.clone(), pool.generation)
        };
        Ok(Reader::open(&path, generation, self.epoch)?)
    }

    fn put_back(&self, reader: Reader) {
        let mut pool = self.lock();
        if reader.generation == pool.generation && pool.idle.len() < IDLE_MAX {
            pool.idle.push(reader);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pool> {
        // What the mutex holds is valid at every moment, also if a holder panicked.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    fn open(path: &Path, generation: u64, epoch: Instant) -> rusqlite::Result<Reader> {
        let mut connection = open_read_only(path)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
        let deadline = Arc::new(AtomicU64::new(u64::MAX));
        let own = Arc::clone(&deadline);
        connection.progress_handler(
            STEPS_PER_LOOK,
            Some(move || epoch.elapsed().as_nanos() > u128::from(own.load(Ordering::Relaxed))),
        )?;
        let guard = Guard::install(&mut connection)?;
        Ok(Reader { connection, guard, deadline, generation })
    }

    /// The connection itself: reading SQL alone.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Runs `read` in one transaction, so that all its statements see the same state.
    pub fn in_transaction<T>(&self, read: impl FnOnce(&Connection) -> Result<T, Error>) -> Result<T, Error> {
        self.engine("BEGIN")?;
        let result = read(&self.connection);
        self.engine("COMMIT")?;
        result
    }

    /// Begins a transaction on the state as it is now.
    fn begin_view(&self) -> rusqlite::Result<()> {
        self.deadline.store(u64::MAX, Ordering::Relaxed);
        self.engine("BEGIN")?;
        // SQLite looks at the file with the first statement.
        self.engine_query(read_applied_index).map(drop)
    }

    /// What the statements that `prepare` prepares would touch; `None` if one cannot be prepared.
    pub fn analyze(&self, scope: Scope, prepare: impl FnOnce(&Connection) -> rusqlite::Result<()>) -> Option<Touched> {
        // Only a statement that runs makes SQLite see that another connection has changed the schema.
        self.engine_query(read_applied_index).ok()?;
        self.guard.set_mode(Mode::Look(scope));
        self.guard.take_touched();
        let prepared = prepare(&self.connection);
        let touched = self.guard.take_touched();
        self.guard.set_mode(Mode::Read);
        prepared.ok().map(|()| touched)
    }

    /// From here on statements that write may be compiled, to be told apart; they cannot be run.
    pub fn as_writer(&self, scope: Scope) {
        self.guard.set_mode(Mode::Look(scope));
    }

    fn engine(&self, sql: &str) -> rusqlite::Result<()> {
        self.engine_query(|connection| connection.prepare_cached(sql)?.execute([]).map(|_| ()))
    }

    fn engine_query<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        let mode = self.guard.swap_mode(Mode::Engine);
        let done = query(&self.connection);
        self.guard.swap_mode(mode);
        done
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        let checking = self.checking.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some((thread, interrupt)) = checking else { return };
        // Nobody waits for a check of a large file.
        interrupt.interrupt();
        if thread.join().is_err() {
            tracing::error!("the check of the state file panicked");
        }
    }
}

/// What is wrong with a state file, in SQLite's words, its indexes included. On a connection that remembers nothing. A full-text index
/// that does not fit its table is no damage: it is the same on every member.
fn damage_in(connection: &Connection) -> Option<String> {
    let found = connection.prepare("PRAGMA integrity_check").and_then(|mut check| {
        let rows = check.query_map([], |row| row.get::<_, String>(0))?;
        rows.collect::<rusqlite::Result<Vec<String>>>()
    });
    match found {
        Ok(found) => found.into_iter().find(|line| line != "ok" && !line.contains("inverted index for FTS")),
        Err(error) => is_corruption(&error).then(|| error.to_string()),
    }
}

/// A connection that cannot write.
pub(crate) fn open_read_only(path: &Path) -> rusqlite::Result<Connection> {
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.execute_batch(
        "PRAGMA query_only = ON; PRAGMA trusted_schema = OFF; PRAGMA busy_timeout = 5000; PRAGMA foreign_keys = ON",
    )?;
    Ok(connection)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// An index entry of a row that is not there: a read finds it, and a look at the pages alone does not.
    #[tokio::test]
    async fn a_damaged_index_is_found_by_a_read_and_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let script = "CREATE TABLE t(k TEXT, v TEXT); CREATE INDEX i ON t(k);
                      INSERT INTO t VALUES ('key1', 'one'), ('key2', 'two'), ('key3', 'three')";
        Connection::open(&path).unwrap().execute_batch(script).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        // An entry of the index is its key and the row's id behind it.
        let entry = b"key2\x02";
        let at = bytes.windows(entry.len()).position(|window| window == entry).unwrap() + entry.len() - 1;
        bytes[at] = 77;
        std::fs::write(&path, bytes).unwrap();
        let damage = watch::Sender::new(None);
        let mut told = damage.subscribe();
        let readers = Readers::new(path, damage);
        let read = |sql: &'static str| {
            readers.with(Duration::from_secs(5), move |reader| {
                Ok(reader.connection().query_row(sql, [], |row| row.get::<_, String>(0))?)
            })
        };
        assert_eq!(read("SELECT v FROM t NOT INDEXED WHERE k = 'key2'").unwrap(), "two");
        assert!(told.borrow().is_none());
        let found = read("SELECT v FROM t WHERE k = 'key2'");
        assert!(matches!(found, Err(Error::Damaged { .. })), "{found:?}");
        let told = tokio::time::timeout(Duration::from_secs(20), told.wait_for(Option::is_some)).await;
        let reason = told.unwrap().unwrap().clone().unwrap();
        assert!(reason.contains("index i"), "{reason}");
    }
}
