//! A writing connection: runs requests, bounded in steps and in the size of their results, and sorts
//! what SQLite answers into outcomes (the same on every member) and failures of this machine.

mod closure;

use std::borrow::Cow;
use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rusqlite::config::DbConfig;
use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::{Connection, OpenFlags, StatementStatus};

use super::authorizer::{Guard, Mode, Touched};
use super::command::{Body, Failure, QueryResult, Request, Scope, Value};
use super::determinism::{self, Surroundings};
use super::error::Error;
use super::watch::{WriteNotes, Written};
use closure::ConnectionState;

pub(crate) use closure::Analysis;

/// The most that the results of one request may take.
pub(crate) const RESULT_BYTES_MAX: usize = 16 << 20;
/// The most steps of SQLite's virtual machine that one replicated statement may take: a few seconds. Counted, not
/// timed, so that every member stops at the same place.
const STEPS_MAX: u64 = if cfg!(test) { 3_000_000 } else { 1_000_000_000 };
/// How often the steps are looked at.
const STEPS_PER_LOOK: i32 = 1_000_000;
/// The longest message of a failure.
const MESSAGE_BYTES_MAX: usize = 2_048;
/// Prepared statements kept for each connection.
pub(crate) const STATEMENTS_CACHED: usize = 128;

/// Why a request could not be brought to an outcome: this machine failed, not the SQL.
pub(crate) type MachineError = rusqlite::Error;

/// A connection that may write, with deterministic functions and an authorizer.
pub(crate) struct Executor {
    connection: Connection,
    guard: Guard,
    surroundings: Arc<Surroundings>,
    looks: Arc<AtomicU64>,
    /// Set when a closure's statements are to end.
    stop: Arc<AtomicBool>,
    /// Whose rights a closure's statements have.
    scope: Cell<Scope>,
    /// A row with the largest rowid was written: from there on SQLite draws rowids at random.
    last_rowid: Arc<AtomicBool>,
    /// Begins the text of privileged statements, so that no user's text finds them among the compiled ones.
    nonce: String,
    /// A statement changed the schema since the last look.
    schema_changed: Cell<bool>,
    notes: WriteNotes,
    /// What a closure's next statement is to see of the connection, once that is known.
    seen: Cell<Option<ConnectionState>>,
}

impl Executor {
    /// Opens the file, creating it if it is absent.
    pub fn open(path: &Path) -> rusqlite::Result<Executor> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
        // WAL with synchronous=NORMAL: a crash may take the newest transactions, never half of one; the log has them.
        connection.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON;
             PRAGMA wal_autocheckpoint = 0; PRAGMA journal_size_limit = 67108864; PRAGMA trusted_schema = OFF;
             PRAGMA temp_store = MEMORY; PRAGMA busy_timeout = 5000; PRAGMA recursive_triggers = ON",
        )?;
        let surroundings = Arc::new(Surroundings::default());
        determinism::install(&connection, &surroundings)?;
        let looks = Arc::new(AtomicU64::new(0));
        let own = Arc::clone(&looks);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        connection.progress_handler(
            STEPS_PER_LOOK,
            Some(move || {
                let looks = own.fetch_add(1, Ordering::Relaxed) + 1;
                looks > STEPS_MAX / STEPS_PER_LOOK as u64 || stopped.load(Ordering::SeqCst)
            }),
        )?;
        let last_rowid = Arc::new(AtomicBool::new(false));
        let own = Arc::clone(&last_rowid);
        connection.update_hook(Some(move |_, _: &str, _: &str, rowid: i64| {
            if rowid == i64::MAX {
                own.store(true, Ordering::Relaxed);
            }
        }))?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        let guard = Guard::install(&mut connection)?;
        let nonce = format!("/*{:032x}*/", rand::random::<u128>());
        Ok(Executor {
            connection,
            guard,
            surroundings,
            looks,
            stop,
            scope: Cell::new(Scope::User),
            last_rowid,
            nonce,
            schema_changed: Cell::new(false),
            notes: WriteNotes::default(),
            seen: Cell::default(),
        })
    }

    /// The connection for the engine's own statements, unguarded.
    pub fn engine(&self) -> &Connection {
        self.guard.set_mode(Mode::Engine);
        &self.connection
    }

    /// The same, to change what it tells of itself.
    pub fn engine_mut(&mut self) -> &mut Connection {
        self.guard.set_mode(Mode::Engine);
        &mut self.connection
    }

    /// Runs a cached statement of the engine.
    pub fn engine_execute(&self, sql: &str, parameters: impl rusqlite::Params) -> rusqlite::Result<usize> {
        self.looks.store(0, Ordering::Relaxed);
        self.engine().prepare_cached(&self.privileged(sql))?.execute(parameters)
    }

    /// The text under which a statement of the engine is compiled and kept.
    pub fn privileged(&self, sql: &str) -> String {
        format!("{}{sql}", self.nonce)
    }

    /// The text under which a statement with these rights is compiled and kept: SQLite asks the authorizer only when it compiles.
    fn keyed<'a>(&self, sql: &'a str, scope: Scope) -> Cow<'a, str> {
        match scope {
            Scope::User => Cow::Borrowed(sql),
            Scope::Core => Cow::Owned(self.privileged(sql)),
        }
    }

    /// Runs all statements of a request, inside whatever transaction is open.
    pub fn run(&self, request: &Request) -> Result<Result<Vec<QueryResult>, Failure>, MachineError> {
        self.surroundings.begin_request(request.time_ms, request.seed);
        self.guard.set_mode(Mode::Write(request.scope));
        let mut collected = Collected::default();
        let ran = match &request.body {
            Body::Statements(statements) => self.run_statements(statements, request.scope, &mut collected),
            Body::Settled(statements) => self.run_settled(statements, request.scope, &mut collected),
            Body::Script(script) => self.run_script(script, &mut collected),
            Body::Mark => Ok(()),
        };
        match ran {
            Ok(()) => Ok(Ok(collected.results)),
            Err(Stop::Failure(failure)) => Ok(Err(failure)),
            Err(Stop::Sqlite(error)) => self.sort(error).map(Err),
        }
    }

    /// What ends the statement that runs, and every one after it, while it is set. An interrupt reaches only one that runs already.
    pub fn stop(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    /// What the statements compiled since the last call touch.
    pub fn take_touched(&self) -> Touched {
        self.guard.take_touched()
    }

    /// Whether a transaction is open.
    pub fn is_in_transaction(&self) -> bool {
        !self.connection.is_autocommit()
    }

    /// SQLite's rowid of the last insert.
    pub fn last_insert_rowid(&self) -> i64 {
        self.connection.last_insert_rowid()
    }

    /// Whether the schema was changed since the last call.
    pub fn take_schema_changed(&self) -> bool {
        self.begin_compiling();
        self.schema_changed.take()
    }

    /// Has this connection and all others read the schema and the statistics anew, once they see this transaction.
    pub fn have_schema_read_anew(&self) -> rusqlite::Result<()> {
        let connection = self.engine();
        let version: i32 = connection.query_row("PRAGMA schema_version", [], |row| row.get(0))?;
        // SQLite takes another version only from a connection that may harm itself.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, false)?;
        let changed = connection.execute_batch(&format!("PRAGMA schema_version = {}", version.wrapping_add(1)));
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        changed
    }

    /// Has this connection read the schema anew; only outside of a transaction.
    pub fn forget_schema(&self) -> rusqlite::Result<()> {
        self.engine().execute_batch("PRAGMA writable_schema = RESET")
    }

    /// What was written since the last call, by requests that were applied or tried.
    pub fn take_written(&self) -> Written {
        self.notes.take()
    }

    /// What the next statement touches is told apart from what those before it did.
    fn begin_compiling(&self) {
        self.end_compiling();
    }

    /// What the statement touches that ran; nothing if it was kept and is as it was.
    fn end_compiling(&self) -> Touched {
        let touched = self.guard.take_touched();
        self.schema_changed.set(self.schema_changed.get() | touched.schema);
        touched
    }

    /// Whether a statement prepared so far asks for `last_insert_rowid()` or `changes()`.
    pub fn asks_for_connection_state(&self) -> bool {
        self.guard.asks_for_connection_state()
    }

    fn run_statements(
        &self,
        statements: &[super::command::Statement],
        scope: Scope,
        collected: &mut Collected,
    ) -> Result<(), Stop> {
        (0..).zip(statements).try_for_each(|(index, statement)| self.run_statement(index, statement, scope, collected))
    }

    fn run_statement(
        &self,
        index: u64,
        statement: &super::command::Statement,
        scope: Scope,
        collected: &mut Collected,
    ) -> Result<(), Stop> {
        self.surroundings.begin_statement(index);
        self.begin_compiling();
        let mut prepared = self.connection.prepare_cached(&self.keyed(&statement.sql, scope))?;
        self.run_one(&mut prepared, &statement.parameters, collected)?;
        if !prepared.readonly() {
            self.notes.note(&statement.sql, self.end_compiling());
        }
        Ok(())
    }

    fn run_script(&self, script: &str, collected: &mut Collected) -> Result<(), Stop> {
        let mut statements = rusqlite::Batch::new(&self.connection, script);
        let mut index = 0;
        while let Some(mut prepared) = self.next_of(&mut statements)? {
            self.surroundings.begin_statement(index);
            index += 1;
            self.run_one(&mut prepared, &[], collected)?;
            self.notes.note_once(self.end_compiling());
        }
        Ok(())
    }

    fn next_of<'c>(
        &'c self,
        statements: &mut rusqlite::Batch<'c, '_>,
    ) -> rusqlite::Result<Option<rusqlite::Statement<'c>>> {
        self.begin_compiling();
        statements.next()
    }

    fn run_one(
        &self,
        prepared: &mut rusqlite::Statement<'_>,
        parameters: &[Value],
        collected: &mut Collected,
    ) -> Result<(), Stop> {
        self.looks.store(0, Ordering::Relaxed);
        self.last_rowid.store(false, Ordering::Relaxed);
        prepared.reset_status(StatementStatus::VmStep);
        if prepared.readonly() && prepared.column_count() == 1 && prepared.column_name(0)? == "data_version" {
            let message = "PRAGMA data_version is not allowed here: it tells of this member alone".to_owned();
            return Err(Stop::Failure(Failure::Refused { message }));
        }
        let changes_before = self.connection.total_changes();
        let result = query(prepared, parameters, RESULT_BYTES_MAX.saturating_sub(collected.size), usize::MAX)?;
        let result = match result {
            Queried::Rows { columns, rows } => QueryResult::Rows { columns, rows },
            Queried::TooLarge { size } => {
                let limit = RESULT_BYTES_MAX as u64;
                return Err(Stop::Failure(Failure::ResultTooLarge { size: (collected.size + size) as u64, limit }));
            }
            // A statement that changes no rows leaves the count of the one before it.
            Queried::None => QueryResult::Changed {
                rows_affected: if self.connection.total_changes() == changes_before {
                    0
                } else {
                    self.connection.changes()
                },
            },
        };
        if self.last_rowid.load(Ordering::Relaxed) {
            return Err(Stop::Failure(last_rowid()));
        }
        collected.size += result.size();
        collected.results.push(result);
        Ok(())
    }

    /// An error of the SQL is an outcome; an error of this machine is not, and stops the state machine.
    fn sort(&self, error: rusqlite::Error) -> Result<Failure, MachineError> {
        use rusqlite::ffi::ErrorCode;
        if let Some(message) = self.guard.take_refusal() {
            return Ok(Failure::Refused { message });
        }
        // An FTS index that does not fit its table, say: the same on every member, and no damage to the file.
        let extended = error.sqlite_error().map(|error| error.extended_code);
        if extended == Some(rusqlite::ffi::SQLITE_CORRUPT_VTAB) {
            return Ok(Failure::Sql { message: error.to_string() });
        }
        match error.sqlite_error_code() {
            Some(
                ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::SystemIoFailure
                | ErrorCode::DiskFull
                | ErrorCode::OutOfMemory
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::DatabaseBusy
                | ErrorCode::PermissionDenied
                | ErrorCode::NoLargeFileSupport
                | ErrorCode::FileLockingProtocolFailed,
            ) => Err(error),
            Some(ErrorCode::OperationInterrupted) => Ok(Failure::TooManySteps { limit: STEPS_MAX }),
            _ => Ok(match bounded(error.into()) {
                Error::Constraint { unique, message } => Failure::Constraint { unique, message },
                // SQLite looks at the transaction before it asks the authorizer.
                Error::Sql { message } if message.contains("cannot VACUUM") => Failure::Refused {
                    message: "VACUUM is not allowed: it would change this member's file alone".to_owned(),
                },
                other => Failure::Sql { message: other.to_string() },
            }),
        }
    }
}

/// A message can quote the statement; outcomes are kept and replicated, so it is cut.
fn bounded(error: Error) -> Error {
    let cut = |mut message: String| {
        while message.len() > MESSAGE_BYTES_MAX {
            message.pop();
        }
        message
    };
    match error {
        Error::Constraint { unique, message } => Error::Constraint { unique, message: cut(message) },
        Error::Sql { message } => Error::Sql { message: cut(message) },
        other => other,
    }
}

fn last_rowid() -> Failure {
    let message =
        "rowid 9223372036854775807 is not allowed: after it SQLite draws rowids at random, on each member others";
    Failure::Refused { message: message.to_owned() }
}

#[derive(Default)]
struct Collected {
    results: Vec<QueryResult>,
    size: usize,
}

enum Stop {
    Failure(Failure),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        Stop::Sqlite(error)
    }
}

/// What a statement gave, before it is known whether it counts as a change.
pub(crate) enum Queried {
    Rows { columns: Vec<String>, rows: Vec<Vec<Value>> },
    None,
    TooLarge { size: usize },
}

/// Runs one prepared statement and collects its rows, up to `bytes_max`; when it has given `rows_max` it ends there.
pub(crate) fn query(
    prepared: &mut rusqlite::Statement<'_>,
    parameters: &[Value],
    bytes_max: usize,
    rows_max: usize,
) -> rusqlite::Result<Queried> {
    if prepared.column_count() == 0 {
        prepared.execute(rusqlite::params_from_iter(parameters))?;
        return Ok(Queried::None);
    }
    let mut columns: Vec<String> = Vec::new();
    let mut rows = Vec::new();
    let mut size = 0;
    let mut cursor = prepared.query(rusqlite::params_from_iter(parameters))?;
    while let Some(row) = cursor.next()? {
        // A kept statement is compiled again in its first step if the schema has changed: `*` may be other columns then.
        if rows.is_empty() {
            columns = names(row.as_ref());
        }
        let mut values = Vec::with_capacity(columns.len());
        for index in 0..columns.len() {
            let value = Value::from(row.get_ref(index)?);
            size += value.size();
            values.push(value);
        }
        if size > bytes_max {
            return Ok(Queried::TooLarge { size });
        }
        rows.push(values);
        if rows.len() >= rows_max {
            break;
        }
    }
    drop(cursor);
    if rows.is_empty() {
        columns = names(prepared);
    }
    Ok(Queried::Rows { columns, rows })
}

fn names(statement: &rusqlite::Statement<'_>) -> Vec<String> {
    statement.column_names().map(str::to_owned).collect()
}
