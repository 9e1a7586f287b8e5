//! One run of a closure on the local replica: its connection, what it reads and writes, and how it is put
//! out when it holds the write lock too long.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{InterruptHandle, Row};

use super::Parameters;
use crate::db::apply::read_applied_index;
use crate::db::authorizer::Touched;
use crate::db::command::{Body, QueryResult, Scope, Statement, Value};
use crate::db::error::Error;
use crate::db::executor::{Analysis, Executor, Queried, RESULT_BYTES_MAX, query};
use crate::db::gate::{Entered, Preemptible};
use crate::db::writer::Shared;

/// How long a closure waits for the write lock: less than it may run, so that who waits is not blamed for those it waits for.
const GATE_LIMIT: Duration = Duration::from_secs(4);
/// How many idle connections are kept.
const IDLE_MAX: usize = 4;
/// How many statements' tables are remembered for each connection.
const REMEMBERED_MAX: usize = 512;

/// What a run of a closure came to.
pub(crate) struct Ran<T> {
    pub value: Result<T, Error>,
    /// The log index of the state that it saw.
    pub index: u64,
    /// What it wrote, to be applied; none if it only read.
    pub writes: Option<Body>,
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
    /// What each statement would do: SQLite tells only when it compiles one, and compiled ones are kept.
    remembered: HashMap<String, Arc<Analysis>>,
    /// SQLite's count of the changes of the schema for which that holds; none when it holds for a schema that was rolled back.
    schema: Option<i64>,
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
    /// One of the writes asks for `last_insert_rowid()` or `changes()`.
    asks_for_connection_state: Cell<bool>,
    /// Shows rows that were copied as rows of a query.
    mirror: OnceCell<rusqlite::Connection>,
}

/// One run, as those see it who may put it out.
pub(crate) struct Run {
    /// Taken by the run for each call, and by the writer thread to roll it back.
    connection: Mutex<Option<Connection>>,
    /// Ends the statement that runs, and keeps the next one from running.
    interrupt: Mutex<Option<(InterruptHandle, Arc<AtomicBool>)>>,
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
        let stop = connection.executor.stop();
        stop.store(false, Ordering::SeqCst);
        *lock(&self.interrupt) = Some((connection.executor.engine().get_interrupt_handle(), stop));
        *lock(&self.connection) = Some(connection);
        let transaction = Transaction {
            run: self,
            shared,
            entered: RefCell::new(None),
            touched: RefCell::new(Touched::default()),
            writes: RefCell::new(Vec::new()),
            last_insert_rowid: Cell::new(0),
            asks_for_connection_state: Cell::new(false),
            mirror: OnceCell::new(),
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
            connection.begin(start)?;
            Ok(index)
        })?;
        let value = body(&transaction);
        if self.preempted.load(Ordering::SeqCst) {
            return Err(conflict());
        }
        // What was rolled back under the closure is not to be acknowledged, also if the closure does not care.
        let value = value.and_then(|value| self.with(|_| Ok(value)));
        let (writes, touched) = (transaction.writes.take(), transaction.touched.take());
        let writes = match transaction.asks_for_connection_state.get() {
            _ if writes.is_empty() => None,
            true => Some(Body::Settled(writes)),
            false => Some(Body::Statements(writes)),
        };
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
        if let Some((interrupt, stop)) = &*lock(&self.interrupt) {
            stop.store(true, Ordering::SeqCst);
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
        // Before the write lock is taken: where this cannot run, nobody is to wait for it.
        self.run.with(|_| Ok(()))?;
        self.enter()?;
        let index = self.writes.borrow().len() as u64;
        let result = self.run.with(|connection| {
            let analysis = self.note(connection, &statement.sql)?;
            let result = connection.executor.run_in_closure(index, &statement, &analysis)?;
            self.touch(&connection.executor.take_touched());
            self.last_insert_rowid.set(connection.executor.last_insert_rowid());
            if analysis.asks_for_connection_state {
                self.asks_for_connection_state.set(true);
            }
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
        let values = parameters.into_values(sql)?;
        self.prepare_to_read(sql)?;
        if !self.is_entered() {
            return self.read(sql, |statement| statement.query_row(rusqlite::params_from_iter(values), map));
        }
        let (columns, rows) = self.copy(sql, &values, 1)?;
        let row = rows.first().ok_or(rusqlite::Error::QueryReturnedNoRows)?;
        Ok(self.show(&columns, row, map)?)
    }

    /// All rows of a query, each mapped by `map`.
    ///
    /// # Errors
    /// As [`Transaction::execute`].
    pub fn query<T>(
        &self,
        sql: &str,
        parameters: impl Parameters,
        mut map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, Error> {
        let values = parameters.into_values(sql)?;
        self.prepare_to_read(sql)?;
        if !self.is_entered() {
            return self.read(sql, |statement| statement.query_map(rusqlite::params_from_iter(values), map)?.collect());
        }
        let (columns, rows) = self.copy(sql, &values, usize::MAX)?;
        Ok(rows.iter().map(|row| self.show(&columns, row, &mut map)).collect::<rusqlite::Result<_>>()?)
    }

    /// The rowid of the row that this transaction inserted last.
    pub fn last_insert_rowid(&self) -> i64 {
        self.last_insert_rowid.get()
    }

    /// The rows of a query, copied. Who holds the write lock must not have the connection in use while the product's code
    /// runs: the writer thread could not put it out, and all writes of the member would wait for that code.
    fn copy(&self, sql: &str, values: &[Value], rows_max: usize) -> Result<Copied, Error> {
        match self.read(sql, |statement| query(statement, values, RESULT_BYTES_MAX, rows_max))? {
            Queried::Rows { columns, rows } => Ok((columns, rows)),
            Queried::None => Ok(Copied::default()),
            Queried::TooLarge { size } => Err(Error::TooLarge { what: "the result", size, limit: RESULT_BYTES_MAX }),
        }
    }

    /// Has `map` look at a copied row.
    fn show<T>(
        &self,
        columns: &[String],
        row: &[Value],
        map: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let mirror = match self.mirror.get() {
            Some(mirror) => mirror,
            None => {
                let opened = rusqlite::Connection::open_in_memory()?;
                self.mirror.get_or_init(|| opened)
            }
        };
        let named: Vec<String> = columns
            .iter()
            .enumerate()
            .map(|(at, name)| format!("?{} AS \"{}\"", at + 1, name.replace('"', "\"\"")))
            .collect();
        let sql = format!("SELECT {}", named.join(", "));
        mirror.prepare_cached(&sql)?.query_row(rusqlite::params_from_iter(row), map)
    }

    /// Adds what `sql` touches, and where it asks for `last_insert_rowid()` or `changes()` brings that to what it will be for a
    /// statement that is applied.
    fn prepare_to_read(&self, sql: &str) -> Result<(), Error> {
        let analysis = self.run.with(|connection| self.note(connection, sql))?;
        if analysis.asks_for_connection_state {
            self.enter()?;
            self.run.with(|connection| connection.executor.settle_connection_state())?;
        }
        Ok(())
    }

    fn read<T>(
        &self,
        sql: &str,
        query: impl FnOnce(&mut rusqlite::Statement<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        self.run.with(|connection| {
            let result = connection.executor.read_in_closure(sql, |statement| {
                if statement.readonly() {
                    query(statement)
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

    fn is_entered(&self) -> bool {
        self.entered.borrow().is_some()
    }

    /// Takes the write lock, once.
    fn enter(&self) -> Result<(), Error> {
        if self.is_entered() {
            return Ok(());
        }
        let run: Arc<dyn Preemptible> = Arc::clone(self.run) as Arc<dyn Preemptible>;
        let busy = Error::Busy { detail: "other transactions of this member hold the write lock" };
        let entered = self.shared.gate.enter_as_closure(run, GATE_LIMIT).ok_or(busy)?;
        self.entered.replace(Some(entered));
        Ok(())
    }

    /// Adds what `sql` touches, compiling it once for that if it is new.
    fn note(&self, connection: &mut Connection, sql: &str) -> Result<Arc<Analysis>, Error> {
        if let Some(analysis) = connection.remembered.get(sql) {
            self.touch(&analysis.touched);
            return Ok(Arc::clone(analysis));
        }
        let analysis = Arc::new(connection.executor.analyze(sql)?);
        self.touch(&analysis.touched);
        if analysis.touched.schema {
            // Other triggers and views may be behind the statements from now on, and again when this is rolled back.
            connection.remembered.clear();
            connection.schema = None;
            return Ok(analysis);
        }
        if connection.remembered.len() >= REMEMBERED_MAX {
            connection.remembered.clear();
        }
        connection.remembered.insert(sql.to_owned(), Arc::clone(&analysis));
        Ok(analysis)
    }

    fn touch(&self, more: &Touched) {
        self.touched.borrow_mut().add(more);
    }
}

/// The names of the columns, and the rows.
type Copied = (Vec<String>, Vec<Vec<Value>>);

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
    fn begin(&mut self, start: &Start) -> rusqlite::Result<()> {
        let schema = self.executor.engine().query_row("PRAGMA schema_version", (), |row| row.get(0))?;
        if self.scope != start.scope || self.schema != Some(schema) {
            // What was refused to one may be allowed to the other, and what a statement touches is a matter of the schema.
            self.remembered.clear();
            (self.scope, self.schema) = (start.scope, Some(schema));
        }
        self.executor.begin_closure(start.time_ms, start.seed, start.scope);
        Ok(())
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
        Ok(Connection {
            executor: Executor::open(&path)?,
            path,
            scope: Scope::User,
            remembered: HashMap::new(),
            schema: None,
        })
    }

    fn put_back(&self, connection: Connection) {
        if connection.schema.is_none() {
            // It may remember statistics that were rolled back, and plan by them.
            return;
        }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::db::tests::kit::Cluster;

    /// The tables that a query reads, on one connection whatever happens between two queries.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_lies_behind_a_view_or_a_trigger_follows_the_schema() {
        let cluster = Cluster::new(1).await;
        let db = cluster.db(1);
        let connections = Connections::default();
        let touched = |sql: &str, ddl: &str| {
            let start = Start { time_ms: 0, seed: 0, scope: Scope::User, eager: false };
            let body = |tx: &Transaction<'_>| {
                tx.execute(sql, ())?;
                (!ddl.is_empty()).then(|| tx.execute(ddl, ())).transpose()?;
                tx.execute(sql, ())
            };
            let ran = Run::new().run(&start, &db.inner.shared, &connections, body).unwrap();
            ran.value.unwrap();
            (ran.touched.reads, ran.touched.writes)
        };
        let script = |sql: &str| {
            let (db, sql) = (db.clone(), sql.to_owned());
            async move { db.script(sql).await.unwrap() }
        };
        script("CREATE TABLE t1(a); CREATE TABLE t2(a); CREATE TABLE log(a); CREATE VIEW v AS SELECT a FROM t1").await;
        let reads = |table: &str, ddl: &str| touched("INSERT INTO log SELECT a FROM v", ddl).0.contains(table);
        assert!(reads("t1", ""));
        script("DROP VIEW v; CREATE VIEW v AS SELECT a FROM t2").await;
        for _ in 0..3 {
            assert!(reads("t2", ""), "the view is another one");
        }
        let writes = |table: &str, ddl: &str| touched("INSERT INTO t1 VALUES (1)", ddl).1.contains(table);
        let trigger = "CREATE TRIGGER logs AFTER INSERT ON t1 BEGIN INSERT INTO log VALUES (new.a); END";
        assert!(!writes("log", ""));
        assert!(writes("log", trigger), "it was made in the transaction");
        assert!(!writes("log", ""), "that was rolled back");
        script(trigger).await;
        assert!(writes("log", ""));
        script("DROP TRIGGER logs").await;
        assert!(!writes("log", ""));
    }
}
