//! SQL as text: what only reads is answered from the local replica, the rest goes to the leader.

use std::time::Duration;

use rusqlite::fallible_iterator::FallibleIterator;

use super::command::{QueryResult, Scope, Value};
use super::error::Error;
use super::executor::{Queried, RESULT_BYTES_MAX, query};
use super::readers::{Reader, Readers};

/// How long a read may keep a thread of the runtime; a longer one is run again on a thread of its own.
const INLINE_LIMIT: Duration = Duration::from_millis(2);

/// What reading came to.
pub(crate) enum Read {
    Results(Vec<QueryResult>),
    /// It is not a read, or that cannot be told here: it has to go through the log.
    Writes,
}

/// Whether `sql` begins with a keyword that always writes; saves compiling it here.
pub(crate) fn surely_writes(sql: &str) -> bool {
    let word = sql.trim_start().split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
    ["INSERT", "UPDATE", "DELETE", "REPLACE", "CREATE", "DROP", "ALTER"]
        .iter()
        .any(|verb| word.eq_ignore_ascii_case(verb))
}

/// Runs `sql` on the local replica, if all of it only reads.
pub(crate) fn read(readers: &Readers, sql: &str, parameters: &[Value], limit: Duration) -> Result<Read, Error> {
    let read = |reader: &Reader| {
        reader.as_writer(Scope::User);
        if parameters.is_empty() { read_script(reader, sql) } else { read_statement(reader, sql, parameters) }
    };
    if checks_integrity(sql) { readers.with_new(limit, read) } else { readers.with(limit, read) }
}

/// Whether `sql` may ask for `integrity_check` or `quick_check`. FTS5 then compares with what the connection remembers of an
/// index, and takes what another connection has written since for damage.
fn checks_integrity(sql: &str) -> bool {
    const CHECK: &[u8] = b"_check";
    sql.as_bytes().windows(CHECK.len()).any(|window| window.eq_ignore_ascii_case(CHECK))
}

/// As `work` says, on this thread if that is quick, else on one that may block.
pub(crate) async fn quick_or_blocking<T, W>(limit: Duration, work: W) -> Result<T, Error>
where
    T: Send + 'static,
    W: Fn(Duration) -> Result<T, Error> + Send + Sync + 'static,
{
    match work(INLINE_LIMIT) {
        Err(Error::TooLong { .. }) => tokio::task::spawn_blocking(move || work(limit))
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())),
        result => result,
    }
}

fn read_statement(reader: &Reader, sql: &str, parameters: &[Value]) -> Result<Read, Error> {
    let mut statement = reader.connection().prepare_cached(sql)?;
    if !statement.readonly() {
        return Ok(Read::Writes);
    }
    Ok(Read::Results(vec![rows(query(&mut statement, parameters, RESULT_BYTES_MAX)?)?]))
}

fn read_script(reader: &Reader, sql: &str) -> Result<Read, Error> {
    match reader.connection().prepare_cached(sql) {
        Ok(mut statement) if statement.readonly() && statement.column_count() > 0 => {
            return Ok(Read::Results(vec![rows(query(&mut statement, &[], RESULT_BYTES_MAX)?)?]));
        }
        // Nothing but white space and comments compiles to nothing, and counts as reading.
        Ok(statement) if !statement.readonly() => return Ok(Read::Writes),
        // Compiling the whole text also fails where a statement needs one before it: one after the other tells.
        Ok(_) | Err(_) => {}
    }
    reader.in_transaction(|connection| {
        let mut statements = rusqlite::Batch::new(connection, sql);
        let mut results: Vec<QueryResult> = Vec::new();
        loop {
            let mut statement = match statements.next() {
                Ok(Some(statement)) => statement,
                Ok(None) => return Ok(Read::Results(results)),
                // It may depend on a statement before it that writes.
                Err(_) if !results.is_empty() => return Ok(Read::Writes),
                Err(error) => return Err(error.into()),
            };
            if !statement.readonly() {
                return Ok(Read::Writes);
            }
            let left = RESULT_BYTES_MAX.saturating_sub(results.iter().map(QueryResult::size).sum());
            results.push(rows(query(&mut statement, &[], left)?)?);
        }
    })
}

fn rows(queried: Queried) -> Result<QueryResult, Error> {
    match queried {
        Queried::Rows { columns, rows } => Ok(QueryResult::Rows { columns, rows }),
        Queried::None => Ok(QueryResult::Changed { rows_affected: 0 }),
        Queried::TooLarge { size } => Err(Error::TooLarge { what: "the result", size, limit: RESULT_BYTES_MAX }),
    }
}
