//! Schema updates: an append-only list of SQL texts; the count is the version.

use super::error::Error;
use super::{Consistency, Database};

const TABLE: &str =
    "CREATE TABLE IF NOT EXISTS core_schema(kind TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT, WITHOUT ROWID";

/// Applies the updates of `kind` that the cluster does not have yet, in one transaction.
pub(crate) async fn apply(database: &Database, kind: &'static str, updates: &[&'static str]) -> Result<(), Error> {
    let done = version(database, kind).await?;
    if done >= updates.len() {
        return Ok(());
    }
    let mut script = format!("{TABLE};\n");
    for update in &updates[done..] {
        script.push_str(update);
        script.push_str(";\n");
    }
    script
        .push_str(&format!("INSERT OR REPLACE INTO core_schema(kind, version) VALUES ('{kind}', {});", updates.len()));
    database.script(script).await?;
    Ok(())
}

/// How many updates of `kind` the cluster has.
pub(crate) async fn version(database: &Database, kind: &'static str) -> Result<usize, Error> {
    let exists = "SELECT count(*) FROM sqlite_schema WHERE name = 'core_schema'";
    let version: i64 = database
        .read(Consistency::Linearizable, move |connection| {
            if connection.query_row(exists, [], |row| row.get::<_, i64>(0))? == 0 {
                return Ok(0);
            }
            connection.query_row("SELECT coalesce(max(version), 0) FROM core_schema WHERE kind = ?1", [kind], |row| {
                row.get(0)
            })
        })
        .await?;
    Ok(usize::try_from(version).unwrap_or(0))
}
