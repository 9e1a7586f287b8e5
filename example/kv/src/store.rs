//! The store: keys, values and their revisions, as transactions on the database.

use microcluster::db::{self, Database, Transaction};
use microcluster::{Error, Result};

/// The most bytes of a value.
pub const VALUE_BYTES_MAX: usize = 64 << 10;
/// The most bytes of a key.
const KEY_BYTES_MAX: usize = 1024;
/// How many changes are kept for those who watch.
const CHANGES_KEPT: i64 = 10_000;

/// Writes a value, or deletes the key, and returns the revision of the change. With `expected`, only if the key has that
/// revision; 0 stands for a key that is not there.
pub async fn change(database: &Database, key: String, value: Option<String>, expected: Option<i64>) -> Result<i64> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(Error::bad_request(format!("a key has 1 to {KEY_BYTES_MAX} bytes")));
    }
    if value.as_ref().is_some_and(|value| value.len() > VALUE_BYTES_MAX) {
        return Err(Error::too_large(format!("a value has at most {VALUE_BYTES_MAX} bytes")));
    }
    // On the replica of this member; the leader then checks that what was read here has not changed meanwhile. The closure
    // may run more than once, so it takes nothing with it.
    let change = database.transaction(move |tx| {
        let sql = "SELECT coalesce(max(revision), 0) FROM kv WHERE key = ?1";
        let revision: i64 = tx.query_row(sql, [&key], |row| row.get(0))?;
        if expected.is_some_and(|expected| expected != revision) {
            return Err(Error::conflict(format!("the key {key:?} has the revision {revision}")).into());
        }
        if value.is_none() && revision == 0 {
            return Err(unknown(&key).into());
        }
        write(tx, &key, value.as_deref())
    });
    Ok(change.await?)
}

/// Writes or deletes, whatever was there before.
pub fn write(tx: &Transaction<'_>, key: &str, value: Option<&str>) -> Result<i64, db::Error> {
    tx.execute("INSERT INTO kv_changes (key, value) VALUES (?1, ?2)", (key, value))?;
    let revision = tx.last_insert_rowid();
    tx.execute("DELETE FROM kv_changes WHERE revision <= ?1", [revision - CHANGES_KEPT])?;
    match value {
        Some(value) => {
            let sql = "INSERT INTO kv VALUES (?1, ?2, ?3) ON CONFLICT (key) DO UPDATE \
                       SET value = excluded.value, revision = excluded.revision";
            tx.execute(sql, (key, value, revision))?;
        }
        None => {
            tx.execute("DELETE FROM kv WHERE key = ?1", [key])?;
        }
    }
    Ok(revision)
}

/// The answer for a key that is not there.
pub fn unknown(key: &str) -> Error {
    Error::not_found(format!("there is no key {key:?}"))
}
