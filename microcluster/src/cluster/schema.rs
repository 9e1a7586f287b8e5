//! The daemon's own tables: an append-only list, its length is the schema version.

/// The updates, oldest first. One that was released is never changed.
///
/// During an upgrade a new version works for a while on the tables of the one before: it leads, lists members, and
/// removes those that are gone. So an update must leave what exists readable, and a statement must not name a column
/// before the version after the one that has added it.
pub(crate) const INTERNAL: &[&str] = &[MEMBERS_AND_TOKENS, CERTIFICATES, FAILURE_DOMAINS];

/// `id` is the Raft node id. AUTOINCREMENT never gives one twice: a member whose log was lost must
/// not come back under the id that voted with it.
///
/// `role` is what is wanted; which members vote now is told by the Raft membership alone.
///
/// The secret of a token is stored as it is: `tokens list` shows the whole token again, as clients
/// of this API expect. It opens nothing by then that the database itself does not hold.
const MEMBERS_AND_TOKENS: &str = "
CREATE TABLE core_cluster_members (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    address TEXT NOT NULL UNIQUE,
    certificate TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL CHECK (role IN ('PENDING', 'rebuilding', 'voter', 'stand-by', 'spare', 'leaving')),
    schema_internal INTEGER NOT NULL,
    schema_external INTEGER NOT NULL,
    extensions TEXT NOT NULL,
    last_heartbeat TEXT NOT NULL,
    token_id INTEGER
);
CREATE TABLE core_token_records (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    secret TEXT NOT NULL UNIQUE,
    expires_at TEXT NOT NULL
);
";

/// The certificates that all members share: `cluster`, and by their names those of additional servers. Every
/// member has the keys anyway, and its database is for the daemon's user alone.
const CERTIFICATES: &str = "
CREATE TABLE core_certificates (
    name TEXT PRIMARY KEY,
    certificate TEXT NOT NULL,
    key TEXT NOT NULL,
    authority TEXT NOT NULL
);
";

/// Members of one failure domain are expected to fail together; 0 for none.
const FAILURE_DOMAINS: &str = "
ALTER TABLE core_cluster_members ADD COLUMN failure_domain INTEGER NOT NULL DEFAULT 0;
";

/// A database with the cluster's own tables, and the right to write them. It is there as long as its cluster.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) async fn database() -> (crate::db::tests::kit::Cluster, crate::db::Database) {
    let cluster = crate::db::tests::kit::Cluster::new(1).await;
    let db = cluster.db(1).core();
    for update in INTERNAL {
        db.sql(update, vec![], crate::db::Consistency::Linearizable).await.unwrap();
    }
    (cluster, db)
}
