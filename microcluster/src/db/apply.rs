//! Applies committed log entries to the SQLite file: one SQLite transaction for all entries that wait,
//! a savepoint for each request, and the last applied log id in the same transaction.

use std::path::Path;

use openraft::EntryPayload;
use rusqlite::{Connection, OptionalExtension};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::command::{Batch, DecodeError, Failure, Outcome, Request, RequestId};
use super::executor::Executor;
use super::raft_types::{Entry, LogId, StoredMembership};
use super::sessions::{self, Sessions};
use super::watch::Written;

/// The replication's own bookkeeping, in the same file and so in the same transactions.
const RAFT_TABLE: &str = "CREATE TABLE IF NOT EXISTS microcluster_raft(
    id INTEGER PRIMARY KEY CHECK (id = 0),
    format INTEGER NOT NULL,
    applied_index INTEGER NOT NULL,
    last_applied BLOB NOT NULL,
    membership BLOB NOT NULL
) STRICT";
/// A row whose replacement brings `last_insert_rowid()` and `changes()` to a known state.
const RESET_TABLE: &str = "CREATE TABLE IF NOT EXISTS microcluster_reset(id INTEGER PRIMARY KEY) STRICT";
pub(crate) const RESET: &str = "REPLACE INTO microcluster_reset(id) VALUES (0)";
/// The version of the bookkeeping; another one is refused.
const FORMAT: i64 = 2;

const PUT_POSITION: &str = "INSERT OR REPLACE INTO microcluster_raft(id, format, applied_index, last_applied, membership) VALUES (0, ?1, ?2, ?3, ?4)";

/// Why entries could not be applied. There is no going on from here: the daemon stops and says so.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error("the state file failed")]
    Sqlite(#[from] rusqlite::Error),
    #[error("cannot apply log entry {index}")]
    Entry { index: u64, source: DecodeError },
    #[error("the state file's bookkeeping cannot be read")]
    Bookkeeping(#[from] postcard::Error),
    #[error("the state file has format {found}, this version knows {FORMAT}: upgrade this member")]
    Format { found: i64 },
}

/// Where the state file stands in the log.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Position {
    pub last_applied: Option<LogId>,
    pub membership: StoredMembership,
}

/// A request and what came of it.
pub(crate) type Answered = (RequestId, u64, Outcome);

/// A request that took the whole transaction with it, and why: `RAISE(ROLLBACK)`, or it was interrupted while it wrote.
struct RolledBack(Failure);

/// The state file and its place in the log.
pub(crate) struct Applier {
    executor: Executor,
    sessions: Sessions,
    position: Position,
    has_deferred_keys: bool,
}

impl Applier {
    /// Opens the state file, creating it if it is absent.
    pub fn open(path: &Path) -> Result<Applier, ApplyError> {
        let executor = Executor::open(path)?;
        let connection = executor.engine();
        connection.execute_batch(&format!(
            "BEGIN IMMEDIATE; {RAFT_TABLE}; {RESET_TABLE}; {RESET}; {}; COMMIT",
            sessions::TABLE
        ))?;
        let position = read_position(connection)?;
        let sessions = Sessions::load(connection)?;
        let has_deferred_keys = has_deferred_keys(connection)?;
        Ok(Applier { executor, sessions, position, has_deferred_keys })
    }

    /// Where the state stands.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The connection, for the engine's own use.
    pub fn connection(&self) -> &Connection {
        self.executor.engine()
    }

    /// The same, to change what it tells of itself.
    pub fn connection_mut(&mut self) -> &mut Connection {
        self.executor.engine_mut()
    }

    /// The tables that were written since the last call.
    pub fn take_written(&self) -> Written {
        self.executor.take_written()
    }

    /// Applies the entries, in order, and says what came of each request.
    pub fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Answered>, ApplyError> {
        // A deferred foreign key is checked when a transaction ends: each request must then have one of its own, or its
        // outcome would depend on its neighbours.
        let together = if self.has_deferred_keys { None } else { self.apply_together(entries)? };
        match together {
            Some(answers) => Ok(answers),
            // One request took the whole transaction down (RAISE(ROLLBACK), too many steps, a deferred foreign key): find it by applying each alone.
            None => {
                let mut answers = Vec::new();
                for entry in entries {
                    self.apply_alone(entry, &mut answers)?;
                }
                Ok(answers)
            }
        }
    }

    /// All entries in one transaction. `None`: it was rolled back, nothing has changed.
    fn apply_together(&mut self, entries: &[Entry]) -> Result<Option<Vec<Answered>>, ApplyError> {
        let mut answers = Vec::with_capacity(entries.len());
        self.executor.engine_execute("BEGIN IMMEDIATE", [])?;
        for entry in entries {
            if let EntryPayload::Normal(command) = &entry.payload {
                let (index, log_id) = (entry.log_id.index, entry.log_id);
                let batch = Batch::decode(command).map_err(|source| ApplyError::Entry { index, source })?;
                for request in &batch.requests {
                    let Ok(outcome) = self.apply_request(request, log_id)? else {
                        self.abandon()?;
                        return Ok(None);
                    };
                    if self.follow_schema()? && self.has_deferred_keys {
                        self.abandon()?;
                        // Also if what made one is undone by that: it comes again at once.
                        self.has_deferred_keys = true;
                        return Ok(None);
                    }
                    answers.push((request.id, index, outcome));
                }
            }
        }
        self.sessions.save(&self.executor)?;
        let position = self.position_after(entries);
        write_position(&self.executor, &self.position, &position)?;
        match self.executor.engine_execute("COMMIT", []) {
            Ok(_) => {
                self.position = position;
                Ok(Some(answers))
            }
            Err(error) if is_constraint(&error) => {
                self.abandon()?;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// One entry, each of its requests in a transaction of its own. A crash in between is no harm: the sessions know
    /// which requests were applied when the entry comes again.
    fn apply_alone(&mut self, entry: &Entry, answers: &mut Vec<Answered>) -> Result<(), ApplyError> {
        let (index, log_id) = (entry.log_id.index, entry.log_id);
        if let EntryPayload::Normal(command) = &entry.payload {
            let batch = Batch::decode(command).map_err(|source| ApplyError::Entry { index, source })?;
            for request in &batch.requests {
                let outcome = self.apply_request_alone(request, log_id)?;
                answers.push((request.id, index, outcome));
            }
        }
        let position = self.position_after(std::slice::from_ref(entry));
        self.executor.engine_execute("BEGIN IMMEDIATE", [])?;
        write_position(&self.executor, &self.position, &position)?;
        self.executor.engine_execute("COMMIT", [])?;
        self.position = position;
        Ok(())
    }

    fn apply_request_alone(&mut self, request: &Request, log_id: LogId) -> Result<Outcome, ApplyError> {
        self.executor.engine_execute("BEGIN IMMEDIATE", [])?;
        let failure = match self.apply_request(request, log_id)? {
            Ok(outcome) => {
                self.follow_schema()?;
                self.sessions.save(&self.executor)?;
                match self.executor.engine_execute("COMMIT", []) {
                    Ok(_) => return Ok(outcome),
                    Err(error) if is_constraint(&error) => {
                        Failure::Constraint { unique: false, message: error.to_string() }
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Err(RolledBack(failure)) => failure,
        };
        self.abandon()?;
        let outcome = Outcome::Failed(failure);
        self.sessions.remember(request, log_id.index, &outcome);
        self.executor.engine_execute("BEGIN IMMEDIATE", [])?;
        self.sessions.save(&self.executor)?;
        self.executor.engine_execute("COMMIT", [])?;
        Ok(outcome)
    }

    /// One request in a savepoint.
    fn apply_request(&mut self, request: &Request, log_id: LogId) -> Result<Result<Outcome, RolledBack>, ApplyError> {
        if let Some(outcome) = self.sessions.earlier_outcome(request.id) {
            return Ok(Ok(outcome));
        }
        if request.only_in_term.is_some_and(|only| only != log_id.leader_id.term) {
            let outcome = Outcome::Failed(Failure::Conflict);
            self.sessions.remember(request, log_id.index, &outcome);
            return Ok(Ok(outcome));
        }
        let asked_before = self.executor.asks_for_connection_state();
        let mut ran = self.run_in_savepoint(request, asked_before)?;
        if ran.is_ok() && !asked_before && self.executor.asks_for_connection_state() {
            // The first statement ever that asks: what it saw was not brought to a known state. Once more, from it.
            self.executor.engine_execute("ROLLBACK TO request", [])?;
            self.executor.engine_execute("RELEASE request", [])?;
            self.follow_schema()?;
            ran = self.run_in_savepoint(request, true)?;
        }
        let result = match ran {
            Ok(result) => result,
            Err(rolled_back) => return Ok(Err(rolled_back)),
        };
        let outcome = match result {
            Ok(results) => Outcome::Done(results),
            Err(failure) => {
                self.executor.engine_execute("ROLLBACK TO request", [])?;
                Outcome::Failed(failure)
            }
        };
        self.executor.engine_execute("RELEASE request", [])?;
        self.sessions.remember(request, log_id.index, &outcome);
        Ok(Ok(outcome))
    }

    #[allow(clippy::type_complexity)] // Three ways out: it ran, it failed, it took the transaction with it.
    fn run_in_savepoint(
        &self,
        request: &Request,
        reset: bool,
    ) -> Result<Result<Result<Vec<super::command::QueryResult>, Failure>, RolledBack>, ApplyError> {
        if reset {
            self.executor.engine_execute(RESET, [])?;
        }
        self.executor.engine_execute("SAVEPOINT request", [])?;
        let result = self.executor.run(request)?;
        if !self.executor.engine().is_autocommit() {
            return Ok(Ok(result));
        }
        let unnamed = || Failure::Sql { message: "the request rolled the whole transaction back".to_owned() };
        Ok(Err(RolledBack(result.err().unwrap_or_else(unnamed))))
    }

    /// After each request, in its transaction: if it has changed the schema or the statistics of the query planner, or has tried to, they are
    /// read anew, as a member reads them that starts here. SQLite keeps what it has learnt of them on the way, also from what was rolled
    /// back; then members of different age would plan differently, and rows come in another order.
    fn follow_schema(&mut self) -> Result<bool, ApplyError> {
        if !self.executor.take_schema_changed() {
            return Ok(false);
        }
        self.executor.have_schema_read_anew()?;
        self.has_deferred_keys = has_deferred_keys(self.executor.engine())?;
        Ok(true)
    }

    /// Rolls back what is left of the transaction and forgets what was remembered in it.
    fn abandon(&mut self) -> Result<(), ApplyError> {
        if !self.executor.engine().is_autocommit() {
            self.executor.engine_execute("ROLLBACK", [])?;
        }
        if self.executor.take_schema_changed() {
            self.executor.forget_schema()?;
        }
        self.has_deferred_keys = has_deferred_keys(self.executor.engine())?;
        self.sessions = Sessions::load(self.executor.engine())?;
        Ok(())
    }

    fn position_after(&self, entries: &[Entry]) -> Position {
        let mut position = self.position.clone();
        for entry in entries {
            position.last_applied = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = &entry.payload {
                position.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
            }
        }
        position
    }
}

/// Reads where the state behind `connection` stands.
pub(crate) fn read_position(connection: &Connection) -> Result<Position, ApplyError> {
    let row = connection
        .query_row("SELECT format, last_applied, membership FROM microcluster_raft", [], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, Vec<u8>>(2)?))
        })
        .optional()?;
    match row {
        None => Ok(Position::default()),
        Some((FORMAT, last_applied, membership)) => {
            Ok(Position { last_applied: decode(&last_applied)?, membership: decode(&membership)? })
        }
        Some((found, ..)) => Err(ApplyError::Format { found }),
    }
}

/// Makes the state behind `connection`, in the transaction that is open there, one that stands at `position`.
pub(crate) fn put_position(connection: &Connection, position: &Position) -> Result<(), ApplyError> {
    let index = position.last_applied.map_or(0, |log_id| log_id.index);
    connection.execute(
        PUT_POSITION,
        (FORMAT, index.cast_signed(), encode(&position.last_applied)?, encode(&position.membership)?),
    )?;
    Ok(())
}

/// Whether the schema has, or could have, foreign keys that are checked when a transaction ends.
fn has_deferred_keys(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE sql LIKE '%DEFERR%')", [], |row| row.get(0))
}

/// The log index up to which the state behind `connection` is applied.
pub(crate) fn read_applied_index(connection: &Connection) -> rusqlite::Result<u64> {
    let index = connection
        .prepare_cached("SELECT applied_index FROM microcluster_raft")?
        .query_row([], |row| row.get::<_, i64>(0))
        .optional()?;
    Ok(index.unwrap_or(0).cast_unsigned())
}

/// Writes where the state stands after the open transaction; the membership only if it has changed.
fn write_position(executor: &Executor, before: &Position, position: &Position) -> Result<(), ApplyError> {
    let index = position.last_applied.map_or(0, |log_id| log_id.index);
    if position.membership == before.membership {
        let updated = executor.engine_execute(
            "UPDATE microcluster_raft SET applied_index = ?1, last_applied = ?2",
            (index.cast_signed(), encode(&position.last_applied)?),
        )?;
        if updated == 1 {
            return Ok(());
        }
    }
    executor.engine_execute(
        PUT_POSITION,
        (FORMAT, index.cast_signed(), encode(&position.last_applied)?, encode(&position.membership)?),
    )?;
    Ok(())
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, postcard::Error> {
    postcard::to_stdvec(value)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, postcard::Error> {
    postcard::from_bytes(bytes)
}

fn is_constraint(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ffi::ErrorCode::ConstraintViolation)
}
