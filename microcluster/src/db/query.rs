//! SQL as text: what only reads is answered from the local replica, the rest goes to the leader.

use std::panic::resume_unwind;
use std::time::Duration;

use rusqlite::fallible_iterator::FallibleIterator;

use super::command::{QueryResult, Scope, Value};
use super::error::Error;
use super::executor::{Queried, RESULT_BYTES_MAX, query};
use super::readers::{Reader, Readers};
use crate::tasks;

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
        Err(Error::TooLong { .. }) => {
            tasks::caught(move || work(limit)).await.unwrap_or_else(|panic| resume_unwind(panic))
        }
        result => result,
    }
}

fn read_statement(reader: &Reader, sql: &str, parameters: &[Value]) -> Result<Read, Error> {
    let mut statement = reader.connection().prepare_cached(sql)?;
    if !statement.readonly() {
        return Ok(Read::Writes);
    }
    Ok(Read::Results(vec![rows(query(&mut statement, parameters, RESULT_BYTES_MAX, usize::MAX)?)?]))
}

fn read_script(reader: &Reader, sql: &str) -> Result<Read, Error> {
    match reader.connection().prepare_cached(sql) {
        Ok(mut statement) if statement.readonly() && statement.column_count() > 0 => {
            return Ok(Read::Results(vec![rows(query(&mut statement, &[], RESULT_BYTES_MAX, usize::MAX)?)?]));
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
            results.push(rows(query(&mut statement, &[], left, usize::MAX)?)?);
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::cases;

    const LIMIT: Duration = Duration::from_secs(5);

    fn readers() -> (tempfile::TempDir, Readers) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.execute_batch("CREATE TABLE t (a, b); INSERT INTO t VALUES (1, 'x;y'), (NULL, x'00')").unwrap();
        (dir, Readers::new(path, tokio::sync::watch::Sender::new(None)))
    }

    /// Words and signs that scripts are made of, in any order.
    fn almost_sql() -> impl Strategy<Value = String> {
        let token = prop_oneof![
            proptest::sample::select(vec![
                "SELECT",
                "1",
                "a",
                "FROM",
                "t",
                ";",
                ";;",
                "--",
                "/*",
                "*/",
                "'",
                "\"",
                "`",
                "[",
                "]",
                "(",
                ")",
                ",",
                "?1",
                ":x",
                "WITH",
                "AS",
                "VALUES",
                "EXPLAIN",
                "PRAGMA",
                "table_info",
                "INSERT",
                "INTO",
                "BEGIN",
                "COMMIT",
                "CREATE",
                "TRIGGER",
                "END",
                "ATTACH",
                "DELETE",
                "\n",
                "\u{0}",
                "\u{feff}",
                "x'00'",
                "NULL",
                "UNION",
                "ALL",
            ]),
            Just("é"),
        ];
        proptest::collection::vec(token, 0..24).prop_map(|tokens| tokens.join(" "))
    }

    /// One statement that reads, and the rows that it answers.
    fn statement() -> impl Strategy<Value = (&'static str, usize)> {
        proptest::sample::select(vec![
            ("SELECT 1", 1),
            ("SELECT 'a;b', \"a\" FROM t -- ; no end\n", 2),
            ("VALUES (1), (2), (';')", 3),
            ("WITH n AS (SELECT ';' AS s) SELECT s FROM n /* ; */", 1),
            ("/* ; */ SELECT [a] FROM t WHERE b = 'x;y'", 1),
            ("SELECT `a` FROM t WHERE 0", 0),
            ("EXPLAIN QUERY PLAN SELECT ';'", 1),
        ])
    }

    proptest! {
        #![proptest_config(cases(400))]

        /// Statements that are put together are told apart where they were put together, and nowhere else.
        #[test]
        fn a_script_is_split_into_its_statements(
            statements in proptest::collection::vec(statement(), 1..5), separator in "[ \n]{0,2};[; \n]{0,3}",
        ) {
            let (_dir, readers) = readers();
            let texts: Vec<_> = statements.iter().map(|(text, _)| *text).collect();
            let Read::Results(results) = read(&readers, &texts.join(&separator), &[], LIMIT).unwrap() else {
                return Err(TestCaseError::fail("it only reads"));
            };
            let counts: Vec<_> = results.iter().map(|result| match result {
                QueryResult::Rows { rows, .. } => rows.len(),
                QueryResult::Changed { .. } => usize::MAX,
            }).collect();
            prop_assert_eq!(counts, statements.iter().map(|(_, rows)| *rows).collect::<Vec<_>>());
            // With one that writes behind it, nothing of it is answered from here.
            let script = [texts.as_slice(), &["INSERT INTO t VALUES (1, 2)"]].concat().join(&separator);
            let writes = matches!(read(&readers, &script, &[], LIMIT).unwrap(), Read::Writes);
            prop_assert!(writes, "{}", script);
        }

        #[test]
        fn any_text_is_read_sent_on_or_refused(sql in prop_oneof![almost_sql(), any::<String>()]) {
            let (_dir, readers) = readers();
            surely_writes(&sql);
            let _ = read(&readers, &sql, &[], LIMIT);
            let _ = read(&readers, &sql, &[Value::Null, Value::Text("x".into())], LIMIT);
            // The connection is as it was, and the table too.
            let Ok(Read::Results(results)) = read(&readers, "SELECT * FROM t", &[], LIMIT) else {
                return Err(TestCaseError::fail("the pool is damaged"));
            };
            let whole = matches!(&results[..], [QueryResult::Rows { rows, .. }] if rows.len() == 2);
            prop_assert!(whole, "the table has changed");
        }
    }
}
