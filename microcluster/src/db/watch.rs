//! Waking up when tables were written: what each statement writes, when each table was written last, and who waits for that.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::authorizer::Touched;
use super::error::Error;

/// Statements whose tables are remembered. Past it all are forgotten, and count as writes to everything until they are compiled again.
const STATEMENTS_MAX: usize = 4096;
/// Tables whose last write is remembered. Past it all count as written.
const TABLES_MAX: usize = 4096;

/// The tables that applied statements may have written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    /// In lower case.
    pub tables: BTreeSet<Arc<str>>,
    /// It cannot be told, or the schema was changed.
    pub everything: bool,
}

/// Gathers what statements write. SQLite tells it when a statement is compiled; of one that is kept it has to be remembered.
#[derive(Debug, Default)]
pub(crate) struct WriteNotes {
    statements: RefCell<HashMap<String, Arc<[Arc<str>]>>>,
    written: RefCell<Written>,
}

impl WriteNotes {
    /// Notes a statement that ran and writes. `touched` is empty when it was not compiled for that.
    pub fn note(&self, sql: &str, touched: Touched) {
        let mut written = self.written.borrow_mut();
        let mut statements = self.statements.borrow_mut();
        if touched.schema {
            // Other triggers and keys may be behind the statements from now on.
            statements.clear();
            written.everything = true;
            return;
        }
        if !touched.writes.is_empty() {
            if statements.len() >= STATEMENTS_MAX {
                statements.clear();
            }
            // Beside what is known: a full-text table compiles its own statements when it first needs each of them.
            let known = statements.get(sql).into_iter().flat_map(|tables| tables.iter().cloned());
            let tables: BTreeSet<Arc<str>> =
                known.chain(touched.writes.iter().map(|table| table.to_lowercase().into())).collect();
            statements.insert(sql.to_owned(), tables.into_iter().collect());
        }
        match statements.get(sql) {
            Some(tables) => written.tables.extend(tables.iter().cloned()),
            None => written.everything = true,
        }
    }

    /// Notes a statement that is not kept.
    pub fn note_once(&self, touched: Touched) {
        let mut written = self.written.borrow_mut();
        written.everything |= touched.schema;
        written.tables.extend(touched.writes.iter().map(|table| Arc::from(table.to_lowercase())));
    }

    /// What was written since the last call.
    pub fn take(&self) -> Written {
        self.written.take()
    }
}

/// The log index at which each table was written last.
#[derive(Debug, Default)]
pub(crate) struct TableClock(Mutex<Times>);

#[derive(Debug, Default)]
struct Times {
    tables: HashMap<Arc<str>, u64>,
    everything: u64,
}

impl TableClock {
    /// The entries up to `index` have written this.
    pub fn advance(&self, index: u64, written: Written) {
        let mut times = self.lock();
        if written.everything || times.tables.len() > TABLES_MAX {
            times.everything = index;
            times.tables.clear();
            return;
        }
        for table in written.tables {
            times.tables.insert(table, index);
        }
    }

    fn last(&self, tables: &[String]) -> u64 {
        let times = self.lock();
        let last = tables.iter().filter_map(|table| times.tables.get(table.as_str()).copied()).max();
        last.unwrap_or(0).max(times.everything)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Times> {
        // What the mutex holds is valid at every moment, also if a holder panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for writes to some tables; made with [`Database::watch`](super::Database::watch).
#[derive(Debug)]
pub struct Watch {
    tables: Vec<String>,
    clock: Arc<TableClock>,
    applied: watch::Receiver<u64>,
    closed: CancellationToken,
    seen: u64,
}

impl Watch {
    pub(super) fn new(
        tables: Vec<String>,
        clock: Arc<TableClock>,
        applied: watch::Receiver<u64>,
        closed: CancellationToken,
    ) -> Watch {
        let seen = *applied.borrow();
        Watch { tables, clock, applied, closed, seen }
    }

    /// Waits until a committed entry has written to one of the tables since the last call, or since the watch was made, and
    /// returns the log index up to which such writes show here: a read that follows sees them. Many writes may wake it up
    /// once, and none is missed. It may also wake up for a write that changed nothing, and does for changes of the schema.
    ///
    /// # Errors
    /// [`Error::ShuttingDown`] when the database was closed.
    pub async fn changed(&mut self) -> Result<u64, Error> {
        loop {
            // The applied index first: what is written after it counts for the next call.
            let applied = *self.applied.borrow_and_update();
            if self.clock.last(&self.tables) > self.seen {
                self.seen = applied;
                return Ok(applied);
            }
            tokio::select! {
                changed = self.applied.changed() => changed.map_err(|_| Error::ShuttingDown)?,
                () = self.closed.cancelled() => return Err(Error::ShuttingDown),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn touched(writes: &[&str], schema: bool) -> Touched {
        Touched { writes: writes.iter().map(|table| (*table).to_owned()).collect(), schema, ..Touched::default() }
    }

    fn tables(written: &Written) -> Vec<&str> {
        written.tables.iter().map(|table| &**table).collect()
    }

    #[test]
    fn a_kept_statement_writes_what_it_did_when_it_was_compiled() {
        let notes = WriteNotes::default();
        notes.note("a", touched(&["T", "log"], false));
        assert_eq!(tables(&notes.take()), ["log", "t"]);
        notes.note("a", Touched::default());
        assert_eq!(tables(&notes.take()), ["log", "t"]);
        notes.note("a", touched(&["t_docsize"], false));
        assert_eq!(tables(&notes.take()), ["log", "t", "t_docsize"], "what is behind it adds to it");
        assert_eq!(notes.take(), Written::default());
        notes.note("never seen", Touched::default());
        assert!(notes.take().everything);
        notes.note("b", touched(&["sqlite_master"], true));
        assert!(notes.take().everything);
        notes.note("a", Touched::default());
        assert!(
            notes.take().everything,
            "the schema was changed: it is compiled again when it runs, or it writes anything"
        );
        notes.note_once(touched(&["T"], false));
        assert_eq!(tables(&notes.take()), ["t"]);
    }

    #[tokio::test]
    async fn a_watch_wakes_up_for_its_tables_alone() {
        let clock = Arc::new(TableClock::default());
        let applied = watch::Sender::new(5);
        let write = |index, tables: &[&str]| {
            let written = Written {
                tables: tables.iter().map(|table| Arc::from(*table)).collect(),
                everything: tables.is_empty(),
            };
            clock.advance(index, written);
            applied.send_replace(index);
        };
        write(6, &["t"]);
        let closed = CancellationToken::new();
        let mut watch = Watch::new(vec!["t".into()], clock.clone(), applied.subscribe(), closed.clone());
        let is_quiet = |watch: &mut Watch| futures_util::FutureExt::now_or_never(watch.changed()).is_none();
        assert!(is_quiet(&mut watch), "that was before");
        write(7, &["u"]);
        assert!(is_quiet(&mut watch));
        write(8, &["t", "u"]);
        write(9, &["u"]);
        assert_eq!(watch.changed().await.unwrap(), 9);
        assert!(is_quiet(&mut watch));
        write(10, &[]);
        assert_eq!(watch.changed().await.unwrap(), 10);
        closed.cancel();
        assert!(matches!(watch.changed().await, Err(Error::ShuttingDown)));
    }
}
