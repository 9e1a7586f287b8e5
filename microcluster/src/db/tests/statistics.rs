//! The statistics of the query planner: they decide in which order rows come, so they are a part of the replicated state.

use super::kit::Cluster;
use crate::db::{Consistency, Error, Verdict};

/// Two tables of which the planner walks through the smaller one first, by what it knows of them; the order of the rows that come
/// out is the order of their new rowids.
const SCHEMA: &str = "CREATE TABLE a(x INTEGER, y INTEGER); CREATE INDEX a_x ON a(x);
    CREATE TABLE b(x INTEGER, y INTEGER); CREATE INDEX b_x ON b(x);
    CREATE TABLE joined(n INTEGER PRIMARY KEY, a INTEGER, b INTEGER);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 40) INSERT INTO a SELECT i % 5, i FROM n;
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 40) INSERT INTO b SELECT i % 5, -i FROM n";
const JOIN: &str = "INSERT INTO joined(a, b) SELECT a.y, b.y FROM a JOIN b USING (x) LIMIT 100";

/// Members that have been up for long, and one that has just been started.
async fn join_on_members_that_differ_in_age(cluster: &mut Cluster, what: &str) {
    let leader = cluster.leader().await;
    let restarted = leader % 3 + 1;
    cluster.restart(restarted).await;
    cluster.leader().await;
    let db = cluster.db(leader);
    let seen = db.transaction(|tx| {
        tx.execute("DELETE FROM joined", ())?;
        tx.execute(JOIN, ())?;
        tx.query("SELECT a FROM joined ORDER BY n", (), |row| row.get::<_, i64>(0))
    });
    let seen = seen.await.unwrap();
    for id in 1..=3 {
        let sql = "SELECT a FROM joined ORDER BY n";
        let applied = cluster.db(id).query(Consistency::Linearizable, sql, (), |row| row.get::<_, i64>(0)).await;
        assert_eq!(applied.unwrap(), seen, "{what}, on member {id}; {leader} leads, {restarted} was restarted");
    }
    let verification = cluster.db(leader).verify().await.unwrap();
    assert!(verification.members.iter().all(|(_, _, verdict)| *verdict == Verdict::Same), "{what}: {verification:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_members_plan_alike_whatever_happens_to_the_statistics() {
    let mut cluster = Cluster::new(3).await;
    cluster.db(1).script(SCHEMA.to_owned()).await.unwrap();
    for (what, script, works) in [
        ("nothing known", "SELECT 1", true),
        ("analyzed", "ANALYZE", true),
        ("written", "UPDATE sqlite_stat1 SET stat = iif(tbl = 'a', '1000000 1000', '10 1')", true),
        ("written otherwise", "UPDATE sqlite_stat1 SET stat = iif(tbl = 'a', '10 1', '1000000 1000')", true),
        ("analyzed, and rolled back", "ANALYZE; INSERT INTO nowhere VALUES (1)", false),
        (
            "analyzed on other rows, and rolled back",
            "DELETE FROM a WHERE y > 3; ANALYZE; INSERT INTO nowhere VALUES (1)",
            false,
        ),
        ("fewer rows", "DELETE FROM a WHERE y > 20; ANALYZE a", true),
        ("an index less", "DROP INDEX a_x", true),
        ("an index that was known before", "INSERT INTO sqlite_stat1 VALUES ('b', 'b_later', '9000000 1')", true),
        ("that index", "CREATE INDEX b_later ON b(x, y)", true),
        ("a table renamed", "ALTER TABLE a RENAME TO a2; ALTER TABLE a2 RENAME TO a", true),
        ("nothing known again", "DELETE FROM sqlite_stat1", true),
        ("no table of statistics", "DROP TABLE sqlite_stat1", true),
    ] {
        let done = cluster.db(2).script(script.to_owned()).await;
        assert_eq!(done.is_ok(), works, "{what}: {done:?}");
        join_on_members_that_differ_in_age(&mut cluster, what).await;
    }
}

/// A closure's own change of the statistics ends with it, on the connection too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closure_that_was_given_up_leaves_no_statistics() {
    let mut cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let db = cluster.db(leader);
    db.script(format!("{SCHEMA}; ANALYZE")).await.unwrap();
    let given_up = db.transaction(|tx| {
        tx.execute("DELETE FROM a WHERE y > 3", ())?;
        tx.execute("ANALYZE", ())?;
        tx.execute("INSERT INTO nowhere VALUES (1)", ())
    });
    given_up.await.unwrap_err();
    join_on_members_that_differ_in_age(&mut cluster, "given up").await;
    cluster.db(leader).transaction(|tx| tx.execute("ANALYZE", ())).await.unwrap();
    join_on_members_that_differ_in_age(&mut cluster, "analyzed in a closure").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_decides_on_statistics_for_one_member_is_refused() {
    let cluster = Cluster::new(1).await;
    let db = cluster.db(1);
    db.script("CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, x); CREATE INDEX i ON t(x); INSERT INTO t(x) VALUES (1); ANALYZE".to_owned())
        .await
        .unwrap();
    for refused in [
        "PRAGMA optimize",
        "PRAGMA analysis_limit = 10",
        "UPDATE sqlite_sequence SET seq = 9",
        "INSERT INTO sqlite_sequence VALUES ('t', 9223372036854775807)",
        "DELETE FROM sqlite_sequence",
    ] {
        for error in [
            db.script(refused.to_owned()).await.unwrap_err(),
            db.transaction(move |tx| tx.execute(refused, ())).await.unwrap_err(),
        ] {
            assert!(matches!(error, Error::Refused { .. }), "{refused}: {error:?}");
        }
    }
    // Its own tables are none of the statistics.
    let own = "SELECT count(*) FROM sqlite_stat1 WHERE tbl LIKE 'microcluster_%'";
    assert_eq!(db.query_row(Consistency::Local, own, (), |row| row.get::<_, i64>(0)).await.unwrap(), Some(0));
}
