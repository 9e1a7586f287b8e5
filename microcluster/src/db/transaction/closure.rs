//! One run of a closure on the local replica: its connection, what it reads and writes, and how it is put
//! out when it holds the write lock too long.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{InterruptHandle, Row};

use super::Parameters;
use crate::db::apply::read_applied_index;
use crate::db::authorizer::Touched;
use crate::db::command::{QueryResult, Scope, Statement};
use crate::db::error::Error;
use crate::db::executor::Executor;
use crate::db::gate::{Entered, Preemptible};
use crate::db::writer::Shared;

/// How long a closure waits for another one's write lock.
const GATE_LIMIT: Duration = Duration::from_secs(5);
/// How many idle connections are kept.
const IDLE_MAX: usize = 4;
/// How many statements' tables are remembered for each connection.
const REMEMBERED_MAX: usize = 512;

/// What a run of a closure came to.
pub(crate) struct Ran<T> {
    pub value: Result<T, Error>,
    /// The log index of the state that it saw.
    pub index: u64,
    pub writes: Vec<Statement>,
    pub touched: Touched,
}

/// How a run starts.
pub(crate) struct Start {
    pub time_ms: i64,
    pub seed: u64,
    pub scope: Scope,
    /// Take the write lock from the start.
    pub eager: bool,
}

/// The idle connections of closures.
#[derive(Default)]
pub(crate) struct Connections(Mutex<Vec<Connection>>);

/// A writing connection whose writes are always rolled back.
struct Connection {
    executor: Executor,
    path: PathBuf,
    /// Whose rights the statements below were looked at with.
    scope: Scope,
    /// What each statement touches: SQLite tells only when it compiles one, and compiled ones are kept.
    remembered: HashMap<String, Touched>,
}

/// A closure's handle on its transaction, in [`Database::transaction`](super::super::Database::transaction).
///
/// ```
/// use microcluster::db::{Database, Error};
///
/// async fn take_number(database: &Database) -> Result<i64, Error> {
///     let taken = database.transaction(|tx| {
///         let next: i64 = tx.query_row("SELECT next FROM counter", (), |row| row.get(0))?;
///         tx.execute("UPDATE counter SET next = ?1", (next + 1,))?;
///         Ok(next)
///     });
///     taken.await
/// }
/// ```
///
/// What it writes shows in its own reads at once, and takes effect everywhere when the closure has returned
/// `Ok` and the leader has accepted it. Until then nothing leaves this member.
pub struct Transaction<'a> {
    run: &'a Arc<Run>,
    shared: &'a Shared,
    entered: RefCell<Option<Entered<'a>>>,
    touched: RefCell<Touched>,
    writes: RefCell<Vec<Statement>>,
    last_insert_rowid: Cell<i64>,
}

/// One run, as those see it who may put it out.
pub(crate) struct Run {
    /// Taken by the run for each call, and by the writer thread to roll it back.
    connection: Mutex<Option<Connection>>,
    interrupt: Mutex<Option<InterruptHandle>>,
    preempted: AtomicBool,
}

impl Run {
    /// A run that has not started.
    pub fn new() -> Arc<Run> {
        let (connection, interrupt) = (Mutex::new(None), Mutex::new(None));
        Arc::new(Run { connection, interrupt, preempted: AtomicBool::new(false) })
    }

    /// Runs `body` on a fresh view of the state and rolls everything back.
    pub fn run<T>(
        self: &Arc<Run>,
        start: &Start,
        shared: &Shared,
        connections: &Connections,
        body: impl Fn(&Transaction<'_>) -> Result<T, Error>,
    ) -> Result<Ran<T>, Error> {
        let connection = connections.take(shared.readers.path())?;
        *lock(&self.interrupt) = Some(connection.executor.engine().get_interrupt_handle());
        *lock(&self.connection) = Some(connection);
        let transaction = Transaction {
            run: self,
            shared,
            entered: RefCell::new(None),
            touched: RefCell::new(Touched::default()),
            writes: RefCell::new(Vec::new()),
            last_insert_rowid: Cell::new(0),
        };
        // Whatever happens from here on, also a panic in the closure: rolled back, and only then given back. Made after the
        // transaction, so that it ends before that gives the write lock to the next one.
        let _finish = Finish { run: self, connections };
        if start.eager {
            transaction.enter()?;
        }
        let index = self.with_connection(|connection| {
            connection.executor.engine_execute("BEGIN", ())?;
            let index = read_applied_index(connection.executor.engine())?;
            connection.begin(start);
            Ok(index)
        })?;
        let value = body(&transaction);
        if self.preempted.load(Ordering::SeqCst) {
            return Err(conflict());
        }
        // What was rolled back under the closure is not to be acknowledged, also if the closure does not care.
        let value = value.and_then(|value| self.with(|_| Ok(value)));
        let (writes, touched) = (transaction.writes.take(), transaction.touched.take());
        Ok(Ran { value, index, writes, touched })
    }

    /// Works inside the transaction. When a statement has rolled that back (`RAISE(ROLLBACK)`), nothing works any more: it
    /// would be outside of every transaction, and stay.
    fn with<T>(&self, work: impl FnOnce(&mut Connection) -> Result<T, Error>) -> Result<T, Error> {
        self.with_connection(|connection| {
            if connection.executor.is_in_transaction() {
                work(connection)
            } else {
                Err(Error::Sql { message: "the transaction was rolled back by a statement in it".to_owned() })
            }
        })
    }

    fn with_connection<T>(&self, work: impl FnOnce(&mut Connection) -> Result<T, Error>) -> Result<T, Error> {
        let Ok(mut guard) = self.connection.try_lock() else {
            return Err(match self.preempted.load(Ordering::SeqCst) {
                true => conflict(),
                false => Error::Refused {
                    message: "a transaction cannot be used inside the closure that maps its rows".to_owned(),
                },
            });
        };
        match guard.as_mut() {
            Some(connection) if !self.preempted.load(Ordering::SeqCst) => {
                let result = work(connection);
                if self.preempted.load(Ordering::SeqCst) { Err(conflict()) } else { result }
            }
            _ => Err(conflict()),
        }
    }
}

impl Preemptible for Run {
    fn preempt(&self) {
        self.preempted.store(true, Ordering::SeqCst);
        if let Some(interrupt) = &*lock(&self.interrupt) {
            interrupt.interrupt();
        }
        if let Some(connection) = &*lock(&self.connection) {
            connection.roll_back();
        }
    }
}

impl Transaction<'_> {
    /// Runs a statement that writes, and returns how many rows it inserted, updated or deleted.
    ///
    /// # Errors
    /// [`Error::Sql`], [`Error::Constraint`], [`Error::Refused`]: the statement changed nothing, and the closure may go on.
    /// [`Error::Conflict`]: the run is over, return it; the closure runs again.
    pub fn execute(&self, sql: &str, parameters: impl Parameters) -> Result<u64, Error> {
        let statement = Statement { sql: sql.to_owned(), parameters: parameters.into_values(sql)? };
        self.enter()?;
        let index = self.writes.borrow().len() as u64;
        let result = self.run.with(|connection| {
            self.note(connection, &statement.sql)?;
            let result = connection.executor.run_in_closure(index, &statement)?;
            self.touch(&connection.executor.take_touched());
            self.last_insert_rowid.set(connection.executor.last_insert_rowid());
            Ok(result)
        })?;
        self.writes.borrow_mut().push(statement);
        Ok(match result {
            QueryResult::Changed { rows_affected } => rows_affected,
            QueryResult::Rows { rows, .. } => rows.len() as u64,
        })
    }

    /// Runs a text of any number of statements, none of them with parameters.
    pub(crate) fn script(&self, script: &str) -> Result<(), Error> {
        let mut rest = script;
        while let Some(statement) = self.run.with(|connection| connection.executor.first_statement(rest))? {
            let place = rest.find(&statement).map(|begin| begin + statement.len());
            let (_, tail) = place
                .and_then(|end| rest.split_at_checked(end))
                .ok_or_else(|| Error::Sql { message: "a script cannot have parameters".to_owned() })?;
            self.execute(&statement, ())?;
            rest = tail;
        }
        Ok(())
    }

    /// The first row of a query, mapped by `map`.
    ///
    /// # Errors
    /// As [`Transaction::execute`]; [`Error::Sql`] with "Query returned no rows" if there is none.
    pub fn query_row<T>(
        &self,
        sql: &str,
        parameters: impl Parameters,
        map: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        self.read(sql, parameters, |statement, values| statement.query_row(values, map))
    }

    /// All rows of a query, each mapped by `map`.
    ///
    /// # Errors
    /// As [`Transaction::execute`].
    pub fn query<T>(
        &self,
        sql: &str,
        parameters: impl Parameters,
        map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, Error> {
        self.read(sql, parameters, |statement, values| statement.query_map(values, map)?.collect())
    }

    /// The rowid of the row that this transaction inserted last.
    pub fn last_insert_rowid(&self) -> i64 {
        self.last_insert_rowid.get()
    }

    fn read<T>(
        &self,
        sql: &str,
        parameters: impl Parameters,
        query: impl FnOnce(&mut rusqlite::Statement<'_>, Values) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        let values = rusqlite::params_from_iter(parameters.into_values(sql)?);
        self.run.with(|connection| {
            self.note(connection, sql)?;
            let result = connection.executor.read_in_closure(sql, |statement| {
                if statement.readonly() {
                    query(statement, values)
                } else {
                    Err(rusqlite::Error::SqlInputError {
                        error: rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ERROR),
                        msg: "this statement writes: run it with execute".to_owned(),
                        sql: sql.to_owned(),
                        offset: -1,
                    })
                }
            });
            self.touch(&connection.executor.take_touched());
            result
        })
    }

    /// Takes the write lock, once.
    fn enter(&self) -> Result<(), Error> {
        if self.entered.borrow().is_some() {
            return Ok(());
        }
        let run: Arc<dyn Preemptible> = Arc::clone(self.run) as Arc<dyn Preemptible>;
        let busy = Error::Busy { detail: "other transactions of this member hold the write lock" };
        let entered = self.shared.gate.enter_as_closure(run, GATE_LIMIT).ok_or(busy)?;
        self.entered.replace(Some(entered));
        Ok(())
    }

    /// Adds what `sql` touches, compiling it once for that if it is new.
    fn note(&self, connection: &mut Connection, sql: &str) -> Result<(), Error> {
        if let Some(touched) = connection.remembered.get(sql) {
            self.touch(touched);
            return Ok(());
        }
        let touched = connection.executor.analyze(sql)?;
        self.touch(&touched);
        if connection.remembered.len() >= REMEMBERED_MAX {
            connection.remembered.clear();
        }
        connection.remembered.insert(sql.to_owned(), touched);
        Ok(())
    }

    fn touch(&self, more: &Touched) {
        self.touched.borrow_mut().add(more);
    }
}

type Values = rusqlite::ParamsFromIter<Vec<crate::db::command::Value>>;

/// Ends a run: rolls it back and keeps its connection for the next one.
struct Finish<'a> {
    run: &'a Run,
    connections: &'a Connections,
}

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        *lock(&self.run.interrupt) = None;
        if let Some(connection) = lock(&self.run.connection).take()
            && connection.roll_back()
        {
            self.connections.put_back(connection);
        }
    }
}

impl Connection {
    fn begin(&mut self, start: &Start) {
        if self.scope != start.scope {
            // What was refused to one may be allowed to the other.
            self.remembered.clear();
            self.scope = start.scope;
        }
        self.executor.begin_closure(start.time_ms, start.seed, start.scope);
    }

    /// Whether the connection is clean now.
    fn roll_back(&self) -> bool {
        if !self.executor.engine().is_autocommit()
            && let Err(error) = self.executor.engine_execute("ROLLBACK", ())
        {
            tracing::warn!(%error, "a transaction's connection could not be rolled back and is closed");
        }
        self.executor.engine().is_autocommit()
    }
}

impl Connections {
    fn take(&self, path: PathBuf) -> Result<Connection, Error> {
        let mut idle = lock(&self.0);
        // A snapshot may have put another file in force.
        idle.retain(|connection| connection.path == path);
        if let Some(connection) = idle.pop() {
            return Ok(connection);
        }
        drop(idle);
        Ok(Connection { executor: Executor::open(&path)?, path, scope: Scope::User, remembered: HashMap::new() })
    }

    fn put_back(&self, connection: Connection) {
        let mut idle = lock(&self.0);
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
    }
}

fn conflict() -> Error {
    Error::Conflict { attempts: 1 }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these mutexes hold is valid at every moment, also if a holder panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
