//! The database as its users see it: SQL and closures. What members do among themselves is in `members`.

mod bounds;
mod closures;
pub(crate) mod kit;
mod members;
pub(crate) mod power_loss;
mod random_sql;
mod reads;
mod recovery;
mod seeds;
mod statistics;
mod suite;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kit::Cluster;

use rusqlite::named_params;

use super::{
    Consistency, Database, Error, Level, Named, QueryResult, SchemaUpdate, Statement, Upgrade, Value, Verdict, level,
};

async fn count(cluster: &Cluster, id: u64, table: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {table}");
    cluster.db(id).query_row(Consistency::Linearizable, &sql, (), |row| row.get(0)).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_writes_reads_and_comes_back() {
    let mut cluster = Cluster::new(1).await;
    let db = cluster.db(1);
    db.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)", ()).await.unwrap();
    assert_eq!(db.execute("INSERT INTO t(b) VALUES (?1), (?2)", ("x", "y")).await.unwrap(), 2);
    let error = db.execute("INSERT INTO t(a) VALUES (1)", ()).await.unwrap_err();
    assert!(matches!(error, Error::Constraint { unique: true, .. }), "{error:?}");
    let error = db.execute("INSERT INTO nope VALUES (1)", ()).await.unwrap_err();
    assert!(matches!(&error, Error::Sql { message } if message.contains("nope")), "{error:?}");
    cluster.restart(1).await;
    assert_eq!(count(&cluster, 1, "t").await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_have_names_everywhere() {
    let cluster = Cluster::new(1).await;
    let db = cluster.db(1);
    db.execute("CREATE TABLE t(a INTEGER, b TEXT)", ()).await.unwrap();
    let values = |a: i64, b: &str| Named::new().bind(":a", a).unwrap().bind(":b", b).unwrap();
    assert_eq!(db.execute("INSERT INTO t(b, a) VALUES (:b, :a)", values(1, "x")).await.unwrap(), 1);
    let second = Statement::with("INSERT INTO t VALUES (:a, :b)", values(2, "y")).unwrap();
    db.batch(vec![second]).await.unwrap();
    let added = db.transaction(|tx| {
        let b: String = tx.query_row("SELECT b FROM t WHERE a = :a", named_params! {":a": 2}, |row| row.get(0))?;
        tx.execute("INSERT INTO t VALUES (@a, $b)", named_params! {"$b": b, "@a": 3})
    });
    assert_eq!(added.await.unwrap(), 1);
    let sql = "SELECT a FROM t WHERE b = :b ORDER BY a";
    let named = Named::new().bind(":b", "y").unwrap();
    assert_eq!(db.query(Consistency::Local, sql, named, |row| row.get::<_, i64>(0)).await.unwrap(), [2, 3]);
    let error = db.execute("DELETE FROM t WHERE a = :c", values(1, "x")).await.unwrap_err();
    assert!(matches!(&error, Error::Sql { message } if message.contains(":c")), "{error:?}");
}

/// SQLite checks the rows of such a table by a pragma that nobody else may use in a write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strict_table_can_have_more_columns() {
    let cluster = Cluster::new(3).await;
    let db = cluster.db(2);
    db.execute("CREATE TABLE t(a INTEGER NOT NULL) STRICT", ()).await.unwrap();
    db.execute("INSERT INTO t VALUES (1)", ()).await.unwrap();
    db.execute("ALTER TABLE t ADD COLUMN b TEXT NOT NULL DEFAULT ''", ()).await.unwrap();
    let script =
        "ALTER TABLE t ADD COLUMN c INTEGER NOT NULL DEFAULT 3 CHECK (c > 2); INSERT INTO t VALUES (2, 'x', 4)";
    db.sql(script, vec![], Consistency::Linearizable).await.unwrap();
    db.transaction(|tx| tx.execute("ALTER TABLE t ADD COLUMN d REAL", ())).await.unwrap();
    let wrong = db.execute("ALTER TABLE t ADD COLUMN e INTEGER NOT NULL DEFAULT 'text'", ()).await.unwrap_err();
    assert!(matches!(wrong, Error::Sql { .. } | Error::Constraint { .. }), "{wrong:?}");
    for refused in ["PRAGMA quick_check(t)", "PRAGMA quick_check"] {
        let error = db.execute(refused, ()).await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{refused}: {error:?}");
    }
    for id in 1..=3 {
        let sql = "SELECT sum(c), count(*) FROM t WHERE d IS NULL";
        let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
        let sums = cluster.db(id).query_row(Consistency::Linearizable, sql, (), row).await.unwrap();
        assert_eq!(sums, Some((7, 2)));
    }
    let verification = db.verify().await.unwrap();
    assert!(verification.members.iter().all(|(_, _, verdict)| *verdict == Verdict::Same), "{verification:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_is_open_until_it_is_shut_down() {
    let cluster = Cluster::new(1).await;
    let db = cluster.db(1).clone();
    assert!(db.is_open());
    assert_eq!(db.schema_version().await.unwrap(), 0);
    let to = Level { internal: level_of(&db).await.internal, external: 2, extensions: 0 };
    let external = ["CREATE TABLE a (x)", "CREATE TABLE b (x)"].map(SchemaUpdate::from);
    let internal = ["CREATE TABLE core_example(a)"];
    let upgrade = Upgrade { from: level_of(&db).await, to, internal: &internal, external: &external, unless: "false" };
    assert!(db.upgrade(upgrade).await.unwrap());
    assert_eq!(db.schema_version().await.unwrap(), 2);
    db.shutdown().await;
    assert!(!db.is_open());
}

async fn level_of(db: &Database) -> Level {
    db.read(Consistency::Local, level).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_are_atomic_and_split_by_sqlite() {
    let cluster = Cluster::new(1).await;
    let db = cluster.db(1);
    let run = |sql: &'static str| {
        let db = db.clone();
        async move { db.sql(sql, vec![], Consistency::Linearizable).await }
    };
    let results =
        run("CREATE TABLE t(a TEXT); INSERT INTO t VALUES ('a;b'), ('--c'); SELECT a FROM t ORDER BY a").await.unwrap();
    assert_eq!(results[1], QueryResult::Changed { rows_affected: 2 });
    assert!(matches!(&results[2], QueryResult::Rows { rows, .. } if rows[1] == [Value::Text("a;b".to_owned())]));
    run("INSERT INTO t VALUES ('x'); INSERT INTO nope VALUES (1)").await.unwrap_err();
    assert_eq!(count(&cluster, 1, "t").await, 2);
    assert_eq!(run(" ; ; -- nothing\n").await.unwrap(), []);
    for refused in [
        "BEGIN; INSERT INTO t VALUES (1); COMMIT",
        "ATTACH 'x' AS y",
        "VACUUM",
        "PRAGMA journal_mode = DELETE",
        "CREATE TEMP TABLE x(a)",
        "INSERT INTO microcluster_raft VALUES (1, 1, 1, 1, 1)",
        "DELETE FROM core_schema",
        "DROP TABLE microcluster_sessions",
        "SELECT load_extension('x')",
    ] {
        let error = run(refused).await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{refused}: {error:?}");
    }
    let results =
        run("INSERT INTO t VALUES ('r') RETURNING a; WITH x(n) AS (VALUES (1)) SELECT n FROM x; PRAGMA table_info(t)");
    assert!(
        results.await.unwrap().iter().all(|result| matches!(result, QueryResult::Rows { rows, .. } if rows.len() == 1))
    );
}

/// A statement that was kept, and is compiled again as the schema has changed, answers with the columns of now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_statements_follow_the_schema() {
    let cluster = Cluster::new(1).await;
    let db = cluster.db(1);
    let columns = async |sql: &str| {
        let mut results = db.sql(sql, vec![], Consistency::Local).await.unwrap();
        let Some(QueryResult::Rows { columns, rows }) = results.pop() else { panic!("{results:?}") };
        assert!(rows.iter().all(|row| row.len() == columns.len()), "{columns:?} {rows:?}");
        columns.join(" ")
    };
    db.execute("CREATE TABLE t(a, b)", ()).await.unwrap();
    for (change, expected) in [
        ("CREATE TABLE other(a)", "a b"),
        ("ALTER TABLE t ADD COLUMN c", "a b c"),
        ("ALTER TABLE t DROP COLUMN a", "b c"),
        ("ALTER TABLE t RENAME COLUMN b TO d", "d c"),
        ("ALTER TABLE t DROP COLUMN c", "d"),
    ] {
        db.execute(change, ()).await.unwrap();
        assert_eq!(columns("INSERT INTO t DEFAULT VALUES RETURNING *").await, expected);
        assert_eq!(columns("SELECT * FROM t").await, expected);
        assert_eq!(columns("SELECT * FROM t WHERE false").await, expected);
    }
}

/// On every member, through triggers and statements that are kept, and after a snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_wakes_up_when_its_tables_are_written() {
    let cluster = Cluster::new(2).await;
    let (one, two) = (cluster.db(1), cluster.db(2));
    let schema = "CREATE TABLE t(a); CREATE TABLE log(a); CREATE TABLE other(a);
         CREATE TRIGGER tr AFTER INSERT ON t BEGIN INSERT INTO log VALUES (new.a); END";
    one.sql(schema, vec![], Consistency::Linearizable).await.unwrap();
    two.linearize().await.unwrap();
    let mut watch = two.watch(["LOG"]);
    for turn in 0..5 {
        one.execute("INSERT INTO other VALUES (?1)", [turn]).await.unwrap();
        two.linearize().await.unwrap();
        assert!(futures_util::FutureExt::now_or_never(watch.changed()).is_none(), "that is another table");
        one.execute("INSERT INTO t VALUES (?1)", [turn]).await.unwrap();
        let index = tokio::time::timeout(Duration::from_secs(60), watch.changed()).await.unwrap().unwrap();
        let count = two.query_row(Consistency::Local, "SELECT count(*) FROM log", (), |row| row.get::<_, i64>(0));
        assert_eq!(count.await.unwrap(), Some(turn + 1), "what woke it up shows");
        assert!(index > 0);
    }
    let mut closed = two.watch(["t"]);
    two.shutdown().await;
    assert!(matches!(closed.changed().await, Err(Error::ShuttingDown)));
}

/// FTS5 remembers an index for each connection: what another one has written since is no damage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sound_full_text_index_is_called_sound() {
    let cluster = Cluster::new(1).await;
    let db = cluster.db(1);
    db.execute("CREATE VIRTUAL TABLE f USING fts5(body)", ()).await.unwrap();
    for turn in 0..20 {
        db.execute("INSERT INTO f VALUES ('ant bee ' || ?1)", [turn]).await.unwrap();
        if turn % 5 == 4 {
            db.execute("INSERT INTO f(f) VALUES ('optimize')", ()).await.unwrap();
        }
        for check in ["PRAGMA integrity_check", "SELECT * FROM pragma_Quick_Check"] {
            let results = db.sql(check, vec![], Consistency::Local).await.unwrap();
            let expected = vec![vec![Value::Text("ok".to_owned())]];
            assert!(matches!(&results[0], QueryResult::Rows { rows, .. } if *rows == expected), "{results:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_of_one_member_wait_for_each_other() {
    let cluster = Cluster::new(1).await;
    cluster.db(1).execute("CREATE TABLE c(id INTEGER PRIMARY KEY, n INTEGER)", ()).await.unwrap();
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let db = cluster.db(1);
        tasks.push(tokio::spawn(async move {
            for _ in 0..40 {
                // It reads before it writes: SQLite would not wait for the write lock then, so it must be free.
                db.transaction(|tx| {
                    let n: i64 = tx.query_row("SELECT count(*) FROM c", (), |row| row.get(0))?;
                    tx.execute("INSERT INTO c(n) VALUES (?1)", [n])
                })
                .await
                .unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(count(&cluster, 1, "c").await, 320);
}

/// `RAISE(ROLLBACK)` takes the closure's whole transaction: what the closure does after it must go nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closure_whose_transaction_was_rolled_back_is_over() {
    let cluster = Cluster::new(3).await;
    let schema = "CREATE TABLE t(a); CREATE TABLE other(a);
        CREATE TRIGGER tr BEFORE INSERT ON t WHEN new.a = 7 BEGIN SELECT RAISE(ROLLBACK, 'all of it'); END";
    cluster.db(1).sql(schema, vec![], Consistency::Linearizable).await.unwrap();
    for id in 1..=3 {
        let db = cluster.db(id);
        let error = db.transaction(|tx| {
            tx.execute("INSERT INTO other VALUES (1)", ())?;
            tx.execute("INSERT INTO t VALUES (7)", ()).unwrap_err();
            // It does not care, and goes on.
            let _ = tx.execute("INSERT INTO other VALUES (2)", ());
            let _ = tx.query_row("SELECT count(*) FROM other", (), |row| row.get::<_, i64>(0));
            Ok(())
        });
        let error = error.await.unwrap_err();
        assert!(matches!(&error, Error::Sql { message } if message.contains("rolled")), "{error:?}");
    }
    assert_eq!(count(&cluster, 1, "other").await, 0);
    let verification = cluster.db(1).verify().await.unwrap();
    assert!(verification.members.iter().all(|(_, _, verdict)| *verdict == Verdict::Same), "{verification:?}");
}

#[derive(Debug, thiserror::Error, PartialEq)]
#[error("there are enough")]
struct Enough;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closure_that_fails_panics_or_stays_changes_nothing() {
    let cluster = Cluster::new(1).await;
    let db = cluster.db(1);
    db.execute("CREATE TABLE t(a UNIQUE)", ()).await.unwrap();
    let error = db.transaction(|tx| {
        tx.execute("INSERT INTO t VALUES (1)", ())?;
        Err::<(), _>(Error::other(Enough))
    });
    assert_eq!(error.await.unwrap_err().downcast::<Enough>().unwrap(), Enough);
    let panicking = db.clone();
    let panicked = tokio::spawn(async move {
        panicking
            .transaction(|tx| {
                tx.execute("INSERT INTO t VALUES (2)", ())?;
                if true {
                    panic!("on purpose");
                }
                Ok(())
            })
            .await
    });
    assert!(panicked.await.unwrap_err().is_panic());
    // A statement that fails changes nothing, and the closure may go on.
    db.transaction(|tx| {
        tx.execute("INSERT INTO t VALUES (3)", ())?;
        assert!(matches!(tx.execute("INSERT INTO t VALUES (3)", ()), Err(Error::Constraint { unique: true, .. })));
        assert!(matches!(tx.execute("DELETE FROM core_schema", ()), Err(Error::Refused { .. })));
        tx.execute("INSERT INTO t VALUES (4)", ())?;
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(count(&cluster, 1, "t").await, 2);
    // One that holds the write lock is put out by the next write, and nobody waits for it.
    let (entered, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let holding = db.clone();
    let runs = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&runs);
    let held = tokio::spawn(async move {
        holding
            .transaction(move |tx| {
                tx.execute("INSERT INTO t VALUES (5)", ())?;
                if counted.fetch_add(1, Ordering::SeqCst) == 0 {
                    wait.lock().unwrap().recv_timeout(Duration::from_secs(4)).ok();
                }
                Ok(())
            })
            .await
    });
    kit::until("the closure runs", || async { runs.load(Ordering::SeqCst) > 0 }).await;
    tokio::time::timeout(Duration::from_secs(2), db.execute("INSERT INTO t VALUES (6)", ())).await.unwrap().unwrap();
    entered.send(()).unwrap();
    held.await.unwrap().unwrap();
    assert!(runs.load(Ordering::SeqCst) > 1, "the closure that was put out has run again");
    assert_eq!(count(&cluster, 1, "t").await, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_rolls_back_takes_nobody_with_it() {
    let cluster = Cluster::new(1).await;
    let db = cluster.db(1);
    let setup = "CREATE TABLE p(id INTEGER PRIMARY KEY);
        CREATE TABLE t(a, p REFERENCES p(id) DEFERRABLE INITIALLY DEFERRED);
        CREATE TRIGGER tr BEFORE INSERT ON t WHEN new.a = 'rollback' BEGIN SELECT RAISE(ROLLBACK, 'all of it'); END";
    db.sql(setup, vec![], Consistency::Linearizable).await.unwrap();
    let mut tasks = Vec::new();
    for n in 0..60_i64 {
        let db = db.clone();
        tasks.push(tokio::spawn(async move {
            let (a, p) = match n % 3 {
                0 => (Value::from("fine"), Value::Null),
                1 => (Value::from("rollback"), Value::Null),
                _ => (Value::from("orphan"), Value::Integer(77)),
            };
            (n % 3, db.execute("INSERT INTO t VALUES (?1, ?2)", vec![a, p]).await)
        }));
    }
    for task in tasks {
        match task.await.unwrap() {
            (0, result) => assert_eq!(result.unwrap(), 1),
            (2, result) => assert!(matches!(result, Err(Error::Constraint { unique: false, .. })), "{result:?}"),
            (_, result) => assert!(result.is_err()),
        }
    }
    assert_eq!(count(&cluster, 1, "t").await, 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sql_that_would_differ_or_break_is_an_answer_and_stops_nobody() {
    let mut cluster = Cluster::new(3).await;
    let db = cluster.db(1);
    let run = |sql: &'static str| {
        let db = db.clone();
        async move { db.sql(sql, vec![], Consistency::Linearizable).await }
    };
    run("CREATE TABLE a(id INTEGER PRIMARY KEY AUTOINCREMENT, x); CREATE TABLE p(id INTEGER PRIMARY KEY);
         CREATE TABLE c(p REFERENCES p(id) DEFERRABLE INITIALLY DEFERRED); CREATE VIRTUAL TABLE f USING fts5(b, content='');
         DROP TABLE IF EXISTS absent")
        .await
        .unwrap();
    for sql in [
        "INSERT INTO a VALUES (9223372036854775807, 1)",
        "INSERT INTO sqlite_sequence VALUES ('a', 9223372036854775807); INSERT INTO a(x) VALUES (2)",
        "INSERT INTO f(f) VALUES ('integrity-check-nonsense')",
        "INSERT INTO a(x) SELECT applied_index FROM microcluster_raft",
        "INSERT INTO a(x) SELECT file FROM pragma_database_list",
        "INSERT INTO a(x) SELECT count(*) FROM dbstat",
        "INSERT INTO a(x) SELECT rootpage FROM sqlite_schema",
        "CREATE INDEX i ON a(x) WHERE x > datetime('now')",
        "INSERT INTO c VALUES (99)",
        "INSERT INTO a(x) SELECT data_version FROM pragma_data_version",
        "INSERT INTO a(x) VALUES (5); PRAGMA data_version",
    ] {
        run(sql).await.map(|_| ()).expect_err(sql);
    }
    // The engine's own statements are compiled already: their texts must not help.
    for sql in ["COMMIT", "RELEASE request", "UPDATE microcluster_raft SET applied_index = ?1, last_applied = ?2"] {
        let error = db.execute(sql, vec![Value::Integer(1); if sql.len() > 20 { 2 } else { 0 }]).await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{sql}: {error:?}");
    }
    run("ANALYZE; CREATE TABLE auto2(id INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO auto2 VALUES (3); DROP TABLE auto2").await.unwrap();
    run("INSERT INTO c VALUES (1); INSERT INTO p VALUES (1)").await.unwrap();
    cluster.wait_same().await;
    for id in 1..=3 {
        cluster.restart(id).await;
    }
    cluster.leader().await;
    cluster.db(2).execute("INSERT INTO a(x) VALUES (7)", ()).await.unwrap();
    let verification = cluster.db(3).verify().await.unwrap();
    assert!(verification.members.iter().all(|(_, _, verdict)| *verdict == Verdict::Same), "{verification:?}");
}
