//! Schema updates: append-only lists of SQL texts; the count is the version. How far the cluster is, is part of the
//! replicated state, so it changes with the updates themselves.

use std::fmt;
use std::sync::Arc;

use rusqlite::Connection;

use super::Database;
use super::error::Error;
use super::transaction::Transaction;

const TABLE: &str =
    "CREATE TABLE IF NOT EXISTS core_schema(kind TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT, WITHOUT ROWID";
const SELECT: &str = "SELECT kind, version FROM core_schema";
/// What SQLite calls the constraint that holds up a script.
const GUARDED: &str = "NOT NULL constraint failed: core_schema.version";

/// How far a member is, or the cluster: what it has of each append-only list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Level {
    /// Updates of the daemon's own tables.
    pub internal: u64,
    /// The product's schema updates.
    pub external: u64,
    /// API extensions.
    pub extensions: u64,
}

/// One update of a product's schema.
///
/// ```
/// use microcluster::SchemaUpdate;
///
/// let updates = [
///     SchemaUpdate::sql("CREATE TABLE nodes (address TEXT NOT NULL); CREATE TABLE ports (port INTEGER)"),
///     SchemaUpdate::function(|tx| {
///         for address in tx.query("SELECT address FROM nodes", (), |row| row.get::<_, String>(0))? {
///             let port = address.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
///             tx.execute("INSERT INTO ports (port) VALUES (?1)", [port])?;
///         }
///         Ok(())
///     }),
/// ];
/// let daemon = microcluster::Daemon::builder("/var/lib/product").schema(updates);
/// ```
#[derive(Clone)]
pub struct SchemaUpdate(Update);

type Function = dyn Fn(&Transaction<'_>) -> Result<(), Error> + Send + Sync;

#[derive(Clone)]
enum Update {
    Sql(String),
    Function(Arc<Function>),
}

impl SchemaUpdate {
    /// One or more SQL statements.
    pub fn sql(text: impl Into<String>) -> Self {
        SchemaUpdate(Update::Sql(text.into()))
    }

    /// What a function does in a transaction, for what SQL alone cannot say. It runs on the leader, perhaps more than
    /// once, and what it has written is applied everywhere: see [`Database::transaction`] for what it may do, and for
    /// how long.
    pub fn function(update: impl Fn(&Transaction<'_>) -> Result<(), Error> + Send + Sync + 'static) -> Self {
        SchemaUpdate(Update::Function(Arc::new(update)))
    }
}

impl From<&str> for SchemaUpdate {
    fn from(text: &str) -> Self {
        Self::sql(text)
    }
}

impl From<String> for SchemaUpdate {
    fn from(text: String) -> Self {
        Self::sql(text)
    }
}

impl fmt::Debug for SchemaUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Update::Sql(text) => f.debug_tuple("SchemaUpdate").field(text).finish(),
            Update::Function(_) => f.write_str("SchemaUpdate(..)"),
        }
    }
}

/// Updates that the cluster is to have, once.
pub(crate) struct Upgrade<'a> {
    pub from: Level,
    pub to: Level,
    /// All updates of the daemon's own tables, and of the product's.
    pub internal: &'a [&'a str],
    pub external: &'a [SchemaUpdate],
    /// An SQL expression. While it is true nothing is changed.
    pub unless: &'a str,
}

impl Level {
    /// Whether the other one has something that this one has not.
    pub fn is_behind(self, other: Level) -> bool {
        self.internal < other.internal || self.external < other.external || self.extensions < other.extensions
    }

    /// What both have.
    pub fn lowest(self, other: Level) -> Level {
        self.each(other, u64::min)
    }

    /// What one of them has.
    pub fn highest(self, other: Level) -> Level {
        self.each(other, u64::max)
    }

    fn each(self, other: Level, choose: fn(u64, u64) -> u64) -> Level {
        Level {
            internal: choose(self.internal, other.internal),
            external: choose(self.external, other.external),
            extensions: choose(self.extensions, other.extensions),
        }
    }

    fn kinds(self) -> [(&'static str, u64); 3] {
        [("internal", self.internal), ("external", self.external), ("extensions", self.extensions)]
    }

    fn from_rows(rows: impl IntoIterator<Item = (String, u64)>) -> Level {
        let mut level = Level::default();
        for (kind, version) in rows {
            match kind.as_str() {
                "internal" => level.internal = version,
                "external" => level.external = version,
                "extensions" => level.extensions = version,
                _ => {}
            }
        }
        level
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Level { internal, external, extensions } = self;
        write!(f, "internal schema {internal}, schema {external}, {extensions} API extensions")
    }
}

/// How far the cluster is. Nothing when this replica has not got that yet.
pub(crate) fn level(db: &Connection) -> rusqlite::Result<Level> {
    let exists = "SELECT count(*) FROM sqlite_schema WHERE name = 'core_schema'";
    if db.query_row(exists, [], |row| row.get::<_, i64>(0))? == 0 {
        return Ok(Level::default());
    }
    let mut statement = db.prepare_cached(SELECT)?;
    let rows = statement.query_map([], from_row)?.collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(Level::from_rows(rows))
}

/// The same in a transaction.
pub(crate) fn level_in(tx: &Transaction<'_>) -> Result<Level, Error> {
    Ok(Level::from_rows(tx.query(SELECT, (), from_row)?))
}

fn from_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<(String, u64)> {
    Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned()))
}

impl Database {
    /// Applies updates in one log entry, if the cluster is still where they begin; says whether it was.
    pub(crate) async fn upgrade(&self, upgrade: Upgrade<'_>) -> Result<bool, Error> {
        let updates = upgrade.updates();
        let texts = updates.iter().map(|update| match update {
            Update::Sql(text) => Some(text.as_str()),
            Update::Function(_) => None,
        });
        // Text is applied as it is, however long that takes; what a function writes has to be found out first.
        match texts.collect::<Option<Vec<&str>>>() {
            Some(texts) => match self.core().script(script(&upgrade, &texts)).await {
                Ok(_) => Ok(true),
                Err(Error::Constraint { message, .. }) if message.ends_with(GUARDED) => Ok(false),
                Err(e) => Err(e),
            },
            None => self.upgrade_by_functions(&upgrade, updates).await,
        }
    }

    async fn upgrade_by_functions(&self, upgrade: &Upgrade<'_>, updates: Vec<Update>) -> Result<bool, Error> {
        let (from, to, unless) = (upgrade.from, upgrade.to, format!("SELECT {}", upgrade.unless));
        let core = self.core();
        let applied = core.transaction(move |tx| {
            if level_in(tx)? != from || tx.query_row(&unless, (), |row| row.get::<_, bool>(0))? {
                return Ok(false);
            }
            for update in &updates {
                match update {
                    Update::Sql(text) => tx.script(text)?,
                    Update::Function(update) => update(tx)?,
                }
            }
            tx.script(&arrived(to))?;
            Ok(true)
        });
        applied.await
    }
}

impl Upgrade<'_> {
    /// The updates between the two levels, in their order.
    fn updates(&self) -> Vec<Update> {
        let between = |from: u64, to: u64| {
            let index = |version| usize::try_from(version).unwrap_or(usize::MAX);
            index(from)..index(to)
        };
        let internal = self.internal.get(between(self.from.internal, self.to.internal)).unwrap_or_default();
        let external = self.external.get(between(self.from.external, self.to.external)).unwrap_or_default();
        let internal = internal.iter().map(|text| Update::Sql((*text).to_owned()));
        internal.chain(external.iter().map(|update| update.0.clone())).collect()
    }
}

/// The updates as one script. It runs with the rights of the cluster: a product's update is as trusted as the daemon
/// that it is part of.
fn script(upgrade: &Upgrade<'_>, updates: &[&str]) -> String {
    let Upgrade { from, to, unless, .. } = upgrade;
    let mut script = format!("{TABLE};\n");
    // Checked where it is applied, not where it was asked for: another leader may have been quicker, or a row may have
    // changed. A version that is none breaks a constraint, and with that the whole script changes nothing.
    let elsewhere = from.kinds().map(|(kind, version)| {
        format!("coalesce((SELECT version FROM core_schema WHERE kind = '{kind}'), 0) <> {version}")
    });
    script.push_str(&format!(
        "INSERT INTO core_schema (kind, version) SELECT 'guard', NULL WHERE {} OR ({unless});\n",
        elsewhere.join(" OR ")
    ));
    for update in updates {
        script.push_str(update);
        // On a line of its own: the update may end in a comment.
        script.push_str("\n;\n");
    }
    script.push_str(&arrived(*to));
    script
}

/// Records where the cluster has come.
fn arrived(to: Level) -> String {
    let values = to.kinds().map(|(kind, version)| format!("('{kind}', {version})"));
    format!("INSERT OR REPLACE INTO core_schema (kind, version) VALUES {}", values.join(", "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const INTERNAL: [&str; 2] = ["CREATE TABLE a (x) -- a comment", "ALTER TABLE a ADD COLUMN y"];

    fn level_of(internal: u64, external: u64, extensions: u64) -> Level {
        Level { internal, external, extensions }
    }

    fn run(db: &Connection, from: Level, to: Level, unless: &str) -> rusqlite::Result<()> {
        let external = ["CREATE TABLE b (x);", "INSERT INTO b VALUES (1)"].map(SchemaUpdate::from);
        let upgrade = Upgrade { from, to, internal: &INTERNAL, external: &external, unless };
        let updates = upgrade.updates();
        let texts: Vec<&str> = updates.iter().map(text_of).collect();
        // As on the writer: all of it or nothing.
        db.execute_batch("SAVEPOINT s")?;
        let run = db.execute_batch(&script(&upgrade, &texts));
        db.execute_batch(if run.is_ok() { "RELEASE s" } else { "ROLLBACK TO s; RELEASE s" })?;
        run
    }

    fn text_of(update: &Update) -> &str {
        match update {
            Update::Sql(text) => text,
            Update::Function(_) => unreachable!("they are texts"),
        }
    }

    #[test]
    fn both_lists_go_on_from_where_the_cluster_is_and_only_from_there() {
        let db = Connection::open_in_memory().unwrap();
        assert_eq!(level(&db).unwrap(), Level::default());
        run(&db, Level::default(), level_of(1, 1, 2), "false").unwrap();
        assert_eq!(level(&db).unwrap(), level_of(1, 1, 2));
        run(&db, level_of(1, 1, 2), level_of(2, 2, 2), "false").unwrap();
        let elsewhere = run(&db, level_of(1, 1, 2), level_of(2, 2, 2), "false").unwrap_err();
        assert!(elsewhere.to_string().starts_with(GUARDED), "{elsewhere}");
        db.execute("INSERT INTO a (x, y) VALUES (1, 2)", []).unwrap();
        assert_eq!(db.query_row("SELECT count(*) FROM b", [], |row| row.get::<_, i64>(0)).unwrap(), 1, "once");
        run(&db, level_of(2, 2, 2), level_of(2, 2, 3), "EXISTS (SELECT 1 FROM a)").unwrap_err();
        assert_eq!(level(&db).unwrap(), level_of(2, 2, 2), "the condition holds it up");
    }

    #[test]
    fn levels_are_compared_part_by_part() {
        let (one, other) = (level_of(3, 1, 4), level_of(2, 2, 4));
        assert!(one.is_behind(other) && other.is_behind(one) && !one.is_behind(one));
        assert_eq!(one.lowest(other), level_of(2, 1, 4));
        assert_eq!(one.highest(other), level_of(3, 2, 4));
    }
}
