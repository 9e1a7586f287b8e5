//! A closure's statements, one at a time: each sees of the connection what it will see when it is applied.
//!
//! Only statements that succeed are recorded and applied. One that fails changes what `last_insert_rowid()` and `changes()` answer
//! all the same, and no savepoint brings that back. So it is put back here, by statements of the engine whose own work is
//! rolled back: SQLite offers nothing else for `changes()`. Where a statement asks for it, those of the closure are applied as
//! they ran there, each in a savepoint: that is where a full-text table writes what it has kept back, and SQLite counts that too.

use std::sync::atomic::Ordering;

use rusqlite::fallible_iterator::FallibleIterator;

use super::{Collected, Executor, Stop};
use crate::db::apply::RESET;
use crate::db::authorizer::{Mode, Touched};
use crate::db::command::{QueryResult, Scope, Statement};
use crate::db::error::Error;

/// Makes `last_insert_rowid()` answer its parameter.
const PUT_ROWID: &str = "REPLACE INTO microcluster_reset(id) VALUES (?1)";
/// So many rows, from 1 on.
const FILL: &str = "INSERT INTO microcluster_reset(id) WITH RECURSIVE
    n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n LIMIT ?1) SELECT id FROM n";
const EMPTY: &str = "DELETE FROM microcluster_reset";
/// When there are so many, it makes `changes()` answer its parameter.
const EMPTY_UP_TO: &str = "DELETE FROM microcluster_reset WHERE id BETWEEN 1 AND ?1";

/// What `last_insert_rowid()` and `changes()` answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ConnectionState {
    rowid: i64,
    changes: u64,
}

/// What a statement would do.
#[derive(Debug, Clone, Default)]
pub(crate) struct Analysis {
    pub touched: Touched,
    /// It asks for `last_insert_rowid()` or `changes()`, perhaps in a trigger.
    pub asks_for_connection_state: bool,
    /// It sets what `changes()` answers.
    pub counts_changes: bool,
}

impl Executor {
    /// Starts a closure's SQL: its time, its random numbers and its rights.
    pub fn begin_closure(&self, time_ms: i64, seed: u64, scope: Scope) {
        self.surroundings.begin_request(time_ms, seed);
        self.scope.set(scope);
        self.seen.set(None);
        self.guard.take_touched();
    }

    /// Runs the `index`th writing statement of a closure; when it fails it has changed nothing.
    pub fn run_in_closure(&self, index: u64, statement: &Statement, analysis: &Analysis) -> Result<QueryResult, Error> {
        if index == 0 {
            self.reset_connection_state()?;
        }
        self.engine_execute("SAVEPOINT statement", ())?;
        if analysis.asks_for_connection_state || !analysis.counts_changes {
            self.settle_connection_state()?;
        }
        self.surroundings.begin_statement(index);
        self.guard.set_mode(Mode::Write(self.scope.get()));
        let mut collected = Collected::default();
        let ran = match self.connection.prepare_cached(&self.keyed(&statement.sql, self.scope.get())) {
            Ok(mut prepared) => self.run_one(&mut prepared, &statement.parameters, &mut collected),
            Err(error) => Err(error.into()),
        };
        let failure = match ran {
            Ok(()) => None,
            Err(Stop::Failure(failure)) => Some(failure.into()),
            Err(Stop::Sqlite(error)) if is_overtaken(&error) => Some(Error::Conflict { attempts: 1 }),
            Err(Stop::Sqlite(error)) => Some(self.sort(error)?.into()),
        };
        if self.connection.is_autocommit() {
            // The statement rolled the whole transaction back; what the closure did before it is gone.
            let rolled_back = || Error::Sql { message: "the statement rolled the whole transaction back".to_owned() };
            return Err(failure.unwrap_or_else(rolled_back));
        }
        match (&failure, self.seen.get()) {
            (None, _) => self.note_seen(),
            (Some(_), seen) => {
                // The count of changes is put back when it is asked for: that takes as long as so many changes.
                self.engine_execute(PUT_ROWID, [seen.map_or(0, |seen| seen.rowid)])?;
                self.engine_execute("ROLLBACK TO statement", ())?;
            }
        }
        self.engine_execute("RELEASE statement", ())?;
        match (failure, collected.results.pop()) {
            (Some(failure), _) => Err(failure),
            (None, Some(result)) => Ok(result),
            (None, None) => Ok(QueryResult::Changed { rows_affected: 0 }),
        }
    }

    /// Before a statement that asks for it: the connection answers what it will answer when the statement is applied. That may differ
    /// after a statement that failed, and where a full-text table has written what it had kept back. Writes, so the closure must
    /// hold the write lock.
    pub fn settle_connection_state(&self) -> Result<(), Error> {
        match self.seen.get() {
            Some(seen) => Ok(self.settle(seen)?),
            None => self.reset_connection_state(),
        }
    }

    fn settle(&self, seen: ConnectionState) -> rusqlite::Result<()> {
        if self.connection_state() != seen {
            let changes = seen.changes.cast_signed();
            self.engine_execute("SAVEPOINT settle", ())?;
            self.engine_execute(EMPTY, ())?;
            self.engine_execute(FILL, [changes])?;
            self.engine_execute(PUT_ROWID, [seen.rowid])?;
            self.engine_execute(EMPTY_UP_TO, [changes])?;
            self.engine_execute("ROLLBACK TO settle", ())?;
            self.engine_execute("RELEASE settle", ())?;
        }
        Ok(())
    }

    /// Applies what a closure wrote, as it ran there.
    pub(super) fn run_settled(
        &self,
        statements: &[Statement],
        scope: Scope,
        collected: &mut Collected,
    ) -> Result<(), Stop> {
        self.engine_execute(RESET, ())?;
        let mut seen = self.connection_state();
        for (index, statement) in (0..).zip(statements) {
            self.engine_execute("SAVEPOINT statement", ())?;
            self.settle(seen)?;
            self.guard.set_mode(Mode::Write(scope));
            self.run_statement(index, statement, scope, collected)?;
            if self.connection.is_autocommit() {
                // It has rolled everything back, which is the outcome.
                return Ok(());
            }
            seen = self.connection_state();
            self.engine_execute("RELEASE statement", ())?;
        }
        Ok(())
    }

    /// As before a request that is applied: what the connection did for others does not show.
    fn reset_connection_state(&self) -> Result<(), Error> {
        self.engine_execute(RESET, ()).map_err(|error| match is_overtaken(&error) {
            true => Error::Conflict { attempts: 1 },
            false => error.into(),
        })?;
        self.note_seen();
        Ok(())
    }

    fn note_seen(&self) {
        self.seen.set(Some(self.connection_state()));
    }

    fn connection_state(&self) -> ConnectionState {
        ConnectionState { rowid: self.connection.last_insert_rowid(), changes: self.connection.changes() }
    }

    /// Runs a reading statement of a closure.
    pub fn read_in_closure<T>(
        &self,
        sql: &str,
        query: impl FnOnce(&mut rusqlite::Statement<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        self.looks.store(0, Ordering::Relaxed);
        self.guard.set_mode(Mode::Write(self.scope.get()));
        let result = self
            .connection
            .prepare_cached(&self.keyed(sql, self.scope.get()))
            .and_then(|mut prepared| query(&mut prepared));
        result.map_err(|error| match self.sort(error) {
            Ok(failure) => failure.into(),
            Err(error) => error.into(),
        })
    }

    /// What `sql` would do.
    pub fn analyze(&self, sql: &str) -> Result<Analysis, Error> {
        self.guard.set_mode(Mode::Write(self.scope.get()));
        let before = self.guard.take_touched();
        self.guard.take_asks_for_connection_state();
        let prepared = self.connection.prepare(sql).map(|prepared| prepared.readonly());
        let (mut touched, asks_for_connection_state) =
            (self.guard.take_touched(), self.guard.take_asks_for_connection_state());
        let is_reading =
            prepared.or_else(|error| self.sort(error).map_err(Error::from).and_then(|failure| Err(failure.into())))?;
        // Also what does nothing, as `CREATE TABLE IF NOT EXISTS` of one that exists, is not called reading.
        let counts_changes = !is_reading && !touched.schema && !touched.writes.is_empty();
        touched.add(&before);
        Ok(Analysis { touched, asks_for_connection_state, counts_changes })
    }

    /// The text of the first statement of a script; none when there is none. What it touches counts as touched.
    pub fn first_statement(&self, script: &str) -> Result<Option<String>, Error> {
        self.guard.set_mode(Mode::Write(self.scope.get()));
        let found = rusqlite::Batch::new(&self.connection, script).next();
        // Without parameters, which a script has not, the expanded text is the one that was given.
        let found = found.map(|statement| statement.and_then(|statement| statement.expanded_sql()));
        found.or_else(|error| self.sort(error).map_err(Error::from).and_then(|failure| Err(failure.into())))
    }
}

/// Whether a transaction that has read wants to write to a state that has changed since.
fn is_overtaken(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_BUSY_SNAPSHOT)
}
