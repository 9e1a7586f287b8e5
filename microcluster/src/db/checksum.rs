//! Whether the members hold the same: a mark in the log at which each member pins its state, a digest of what it
//! pinned, made beside the work, and the comparison of the digests.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use rusqlite::types::ValueRef;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::damage::is_damage;
use super::error::chain;
use super::readers::Readers;
use super::state_machine::PinnedSnapshot;

/// How many digests are kept.
const KEPT_MAX: usize = 4;
/// How many are made at once.
const RUNNING_MAX: usize = 2;

/// What a member's state came to at a log index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Digest {
    /// It is still being made.
    Pending,
    /// SHA-256 over the schema and all rows, in hexadecimal.
    Done(String),
    /// The state could not be read.
    Damaged(String),
    /// This member has no digest for that index: it was not up, or it was too long ago.
    Unknown,
}

/// The digests of this member, by log index.
#[derive(Clone, Default)]
pub(crate) struct Digests {
    digests: Arc<Mutex<BTreeMap<u64, Digest>>>,
    running: Arc<AtomicUsize>,
}

impl Digests {
    /// Pins the state as it is now, which is the one of `index`, and makes its digest on a thread of its own.
    pub fn start(&self, index: u64, readers: &Readers) {
        // A member that catches up passes many marks; nobody asks for all of them.
        if self.running.fetch_add(1, Ordering::AcqRel) >= RUNNING_MAX {
            self.running.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        let running = Running(Arc::clone(&self.running));
        self.set(index, Digest::Pending);
        let pinned = match PinnedSnapshot::take(readers) {
            Ok(pinned) => pinned,
            Err(error) => return self.set(index, unreadable(&error)),
        };
        let own = self.clone();
        let work = move || {
            let _running = running;
            let digest = match pinned.read(digest) {
                Ok(digest) => Digest::Done(digest),
                Err(error) => unreadable(&error),
            };
            own.set(index, digest);
        };
        // The thread ends with its work; nothing waits for it, and it holds nothing but its own connection.
        if let Err(error) = std::thread::Builder::new().name("checksum".to_owned()).spawn(work) {
            self.set(index, unreadable(&error));
        }
    }

    /// The digest of `index`, as far as it is.
    pub fn get(&self, index: u64) -> Digest {
        self.lock().get(&index).cloned().unwrap_or(Digest::Unknown)
    }

    fn set(&self, index: u64, digest: Digest) {
        let mut digests = self.lock();
        digests.insert(index, digest);
        while digests.len() > KEPT_MAX {
            digests.pop_first();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Digest>> {
        // What the mutex holds is valid at every moment, also if a holder panicked.
        self.digests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an error in the making of a digest says about the state: that it is damaged, or nothing.
fn unreadable(error: &(dyn std::error::Error + 'static)) -> Digest {
    if is_damage(error) {
        return Digest::Damaged(chain(error));
    }
    tracing::warn!(error = chain(error), "the state could not be compared");
    Digest::Unknown
}

/// Counts a digest that is being made.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The digest of what `connection` sees: tables in the order of their names, rows in the order of their keys, so
/// that it does not depend on where SQLite has put them.
fn digest(connection: &Connection) -> rusqlite::Result<String> {
    let mut hash = Sha256::new();
    let mut tables: Vec<String> = Vec::new();
    let mut schema =
        connection.prepare("SELECT type, name, sql, rootpage > 0 FROM sqlite_schema ORDER BY name, type")?;
    let mut rows = schema.query([])?;
    while let Some(row) = rows.next()? {
        for column in 0..3 {
            feed(&mut hash, row.get_ref(column)?);
        }
        // A virtual table has no rows of its own; those behind it are in tables too.
        if row.get_ref(0)?.as_str()? == "table" && row.get(3)? {
            tables.push(row.get(1)?);
        }
    }
    for table in tables {
        feed(&mut hash, ValueRef::Text(table.as_bytes()));
        feed_rows(connection, &table, &mut hash)?;
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn feed_rows(connection: &Connection, table: &str, hash: &mut Sha256) -> rusqlite::Result<()> {
    let without_rowid: bool = connection.query_row(
        "SELECT wr FROM pragma_table_list WHERE schema = 'main' AND name = ?1",
        [table],
        |row| row.get(0),
    )?;
    let name = format!("\"{}\"", table.replace('"', "\"\""));
    // NOT INDEXED: the rows themselves, not a copy of them in an index. Without a rowid they lie in the order of their key.
    let sql = if without_rowid {
        format!("SELECT * FROM {name}")
    } else if table.starts_with("sqlite_stat") {
        // ANALYZE visits the tables in the order in which a connection came to know them: the rows are the same, their
        // rowids are not.
        let order = if table == "sqlite_stat1" { "tbl, idx, stat" } else { "tbl, idx, nlt, sample" };
        format!("SELECT * FROM {name} NOT INDEXED ORDER BY {order}")
    } else {
        format!("SELECT _rowid_, * FROM {name} NOT INDEXED ORDER BY _rowid_")
    };
    let mut statement = connection.prepare(&sql)?;
    let width = statement.column_count();
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        for column in 0..width {
            feed(hash, row.get_ref(column)?);
        }
    }
    Ok(())
}

fn feed(hash: &mut Sha256, value: ValueRef<'_>) {
    let (kind, bytes): (u8, &[u8]) = match value {
        ValueRef::Null => (0, &[]),
        ValueRef::Integer(value) => return hash.update([&[1][..], &value.to_le_bytes()].concat()),
        ValueRef::Real(value) => return hash.update([&[2][..], &value.to_bits().to_le_bytes()].concat()),
        ValueRef::Text(bytes) => (3, bytes),
        ValueRef::Blob(bytes) => (4, bytes),
    };
    hash.update([kind]);
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn database(sql: &str) -> String {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch("CREATE TABLE t(a PRIMARY KEY, b); CREATE TABLE w(k PRIMARY KEY, v) WITHOUT ROWID")
            .unwrap();
        connection.execute_batch(sql).unwrap();
        digest(&connection).unwrap()
    }

    #[test]
    fn the_same_rows_have_the_same_digest_wherever_they_lie() {
        let direct = database("INSERT INTO t VALUES (1, 'x'), (2, 'y'); INSERT INTO w VALUES ('a', 1), ('b', 2)");
        let detour = database(
            "INSERT INTO w VALUES ('b', 2), ('a', 1), ('c', 3); DELETE FROM w WHERE k = 'c';
             INSERT INTO t VALUES (1, 'x'), (2, 'z'), (3, zeroblob(100000)); DELETE FROM t WHERE a = 3; UPDATE t SET b = 'y' WHERE a = 2",
        );
        assert_eq!(direct, detour);
    }

    #[test]
    fn statistics_are_compared_without_their_order() {
        let analyzed = |first: &str, second: &str| {
            let rows = "INSERT INTO t VALUES (1, 'x'), (2, 'y'); INSERT INTO w VALUES ('a', 1), ('b', 2)";
            database(&format!("{rows}; ANALYZE {first}; ANALYZE {second}"))
        };
        assert_eq!(analyzed("t", "w"), analyzed("w", "t"));
        assert_ne!(analyzed("t", "w"), analyzed("w", "w"));
    }

    #[test]
    fn every_difference_shows() {
        let base = "INSERT INTO t VALUES (1, 'x'); ";
        let mut digests = std::collections::BTreeSet::new();
        for more in [
            "",
            "INSERT INTO t VALUES (2, NULL)",
            "INSERT INTO t VALUES (2, '')",
            "INSERT INTO t VALUES (2, x'')",
            "INSERT INTO t VALUES (2, 1)",
            "INSERT INTO t VALUES (2, 1.0)",
            "INSERT INTO t VALUES (2, '1')",
            "UPDATE t SET rowid = 7",
            "INSERT INTO w VALUES (1, 1)",
            "CREATE INDEX i ON t(b)",
        ] {
            assert!(digests.insert(database(&format!("{base}{more}"))), "{more}");
        }
    }
}
