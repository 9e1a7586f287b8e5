//! Closures that dawdle: nobody waits for them. And what they see of their connection.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use super::kit::Cluster;
use crate::db::{Consistency, Database, Error, Transaction};

/// Far below the time for which a closure may run.
const SOON: Duration = Duration::from_secs(2);

/// A way to hold a closure's first run at a place, and to let it go on.
#[derive(Clone)]
struct Stop {
    reached: mpsc::Sender<()>,
    go_on: Arc<Mutex<mpsc::Receiver<()>>>,
    runs: Arc<AtomicU32>,
}

impl Stop {
    fn new() -> (Stop, mpsc::Receiver<()>, mpsc::Sender<()>) {
        let ((reached, is_reached), (release, go_on)) = (mpsc::channel(), mpsc::channel());
        (Stop { reached, go_on: Arc::new(Mutex::new(go_on)), runs: Arc::default() }, is_reached, release)
    }

    fn here(&self) {
        if self.runs.fetch_add(1, Ordering::SeqCst) == 0 {
            self.reached.send(()).unwrap();
            // Ends with the test, when the other half is dropped.
            let _ = self.go_on.lock().unwrap().recv();
        }
    }
}

async fn reached(place: mpsc::Receiver<()>) {
    tokio::task::spawn_blocking(move || place.recv_timeout(Duration::from_secs(20)).unwrap()).await.unwrap();
}

async fn soon<T>(what: &str, done: impl Future<Output = Result<T, Error>>) -> T {
    tokio::time::timeout(SOON, done).await.unwrap_or_else(|_| panic!("{what} waits for the closure")).unwrap()
}

async fn number(db: &Database, sql: &str) -> i64 {
    db.query_row(Consistency::Linearizable, sql, (), |row| row.get(0)).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_that_maps_rows_slowly_is_waited_for_by_nobody() {
    let cluster = Cluster::new(1).await;
    let db = cluster.db(1);
    db.execute("CREATE TABLE t(a INTEGER, \"b \"\"c\" BLOB)", ()).await.unwrap();
    let (stop, place, release) = Stop::new();
    let (slow, at) = (db.clone(), stop.clone());
    let mapped = tokio::spawn(async move {
        slow.transaction(move |tx| {
            tx.execute("INSERT INTO t VALUES (1, x'00ff'), (2, NULL)", ())?;
            let rows = tx.query("SELECT a, \"b \"\"c\" FROM t ORDER BY a", (), |row| {
                at.here();
                Ok((row.get::<_, i64>("a")?, row.get::<_, Option<Vec<u8>>>("b \"c")?))
            })?;
            let one: i64 = tx.query_row("SELECT a FROM t WHERE a > ?1 ORDER BY a", [1], |row| row.get(0))?;
            let none = tx.query_row("SELECT a FROM t WHERE a > 9", (), |row| row.get::<_, i64>(0));
            assert!(matches!(none, Err(Error::Sql { .. })), "{none:?}");
            Ok((rows, one))
        })
        .await
    });
    reached(place).await;
    soon("a write", db.execute("INSERT INTO t VALUES (-1, NULL)", ())).await;
    soon("another closure", db.transaction(|tx| tx.execute("DELETE FROM t WHERE a = -1", ()))).await;
    drop(release);
    let (rows, one) = mapped.await.unwrap().unwrap();
    assert_eq!(rows, [(1, Some(vec![0, 0xff])), (2, None)]);
    assert_eq!(one, 2);
    assert!(stop.runs.load(Ordering::SeqCst) > 2, "the closure that was put out has run again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closure_that_does_not_end_is_given_up() {
    let cluster = Cluster::new(1).await;
    let db = cluster.db(1);
    db.execute("CREATE TABLE t(a)", ()).await.unwrap();
    let (stop, place, release) = Stop::new();
    let (stuck, at) = (db.clone(), stop.clone());
    let given_up = tokio::spawn(async move {
        stuck
            .transaction(move |tx| {
                tx.execute("INSERT INTO t VALUES (1)", ())?;
                at.here();
                tx.execute("INSERT INTO t VALUES (2)", ())
            })
            .await
    });
    reached(place).await;
    let began = Instant::now();
    soon("another closure", db.transaction(|tx| tx.execute("INSERT INTO t VALUES (3)", ()))).await;
    soon("a write", db.execute("INSERT INTO t VALUES (4)", ())).await;
    let error = given_up.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::TooLong { .. }), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(20), "it is told in time");
    drop(release);
    assert_eq!(number(&db, "SELECT sum(a) FROM t").await, 7, "nothing of it was done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closure_sees_of_the_connection_what_apply_sees() {
    let cluster = Cluster::new(1).await;
    let db = cluster.db(1);
    db.script("CREATE TABLE t(id INTEGER PRIMARY KEY); CREATE TABLE u(a, b)".to_owned()).await.unwrap();
    db.transaction(|tx| tx.execute("INSERT INTO t VALUES (70), (71)", ())).await.unwrap();
    let told = db.transaction(|tx| {
        tx.execute("INSERT INTO u VALUES (last_insert_rowid(), changes())", ())?;
        tx.query_row("SELECT a, b FROM u", (), |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))
    });
    let told = told.await.unwrap();
    assert_eq!(told, (number(&db, "SELECT a FROM u").await, number(&db, "SELECT b FROM u").await));
    let rowid = db.transaction(|tx| {
        tx.execute("UPDATE t SET id = 72 WHERE id = 71", ())?;
        Ok(tx.last_insert_rowid())
    });
    assert_eq!(rowid.await.unwrap(), 0, "this transaction has inserted nothing");
}

/// What a statement sees that asks the connection for the last rowid and the changes.
const NOTE: &str = "INSERT INTO seen VALUES (?1, last_insert_rowid(), changes())";

type Seen = Vec<(String, i64, i64)>;

fn seen(row: &rusqlite::Row<'_>) -> rusqlite::Result<(String, i64, i64)> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
}

/// A statement that fails is not recorded, so apply knows nothing of it: it must leave no trace for those behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_fails_leaves_no_trace_on_the_connection() {
    let cluster = Cluster::new(2).await;
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, k TEXT UNIQUE);
        CREATE TABLE seen(what TEXT, rowid_seen INTEGER, changes_seen INTEGER);
        CREATE TRIGGER t_insert AFTER INSERT ON t BEGIN
            INSERT INTO seen VALUES ('trigger on ' || new.k, last_insert_rowid(), changes());
        END;
        CREATE TRIGGER t_delete BEFORE DELETE ON t WHEN old.k = 'stays' BEGIN
            INSERT INTO seen VALUES ('not to be kept', 0, 0);
            SELECT RAISE(FAIL, 'it stays');
        END;
        INSERT INTO t VALUES (10, 'taken'), (11, 'stays')";
    cluster.db(1).script(schema.to_owned()).await.unwrap();
    let leader = cluster.leader().await;
    for id in [leader, 3 - leader] {
        let db = cluster.db(id);
        for failing in [
            "INSERT INTO t(k) VALUES ('new'), ('newer'), ('taken')",
            "INSERT OR FAIL INTO t(k) VALUES ('new'), ('newer'), ('taken')",
            "INSERT INTO t VALUES (9223372036854775807, 'the last rowid')",
            // Its rows are too large together: it is left before its last one.
            "INSERT INTO t(k) VALUES ('r1'), ('r2'), ('r3') RETURNING zeroblob(9000000)",
            "UPDATE t SET k = 'all the same'",
            "DELETE FROM t",
            "INSERT INTO nowhere VALUES (1)",
            "INSERT INTO core_example VALUES (1)",
        ] {
            let closure = move |tx: &Transaction<'_>| {
                // As the first statement too.
                tx.execute(failing, ()).unwrap_err();
                tx.execute(NOTE, ["nothing yet"])?;
                tx.execute("DELETE FROM seen", ())?;
                tx.execute("INSERT INTO t VALUES (200, 'a'), (201, 'b'), (202, 'c')", ())?;
                tx.execute(failing, ()).unwrap_err();
                assert_eq!(tx.last_insert_rowid(), 202);
                tx.execute(NOTE, ["three inserted"])?;
                tx.execute("UPDATE t SET k = k || k WHERE id >= 200", ())?;
                tx.execute(failing, ()).unwrap_err();
                tx.execute(failing, ()).unwrap_err();
                assert_eq!(tx.query_row("SELECT changes()", (), |row| row.get::<_, i64>(0))?, 3);
                tx.execute(failing, ()).unwrap_err();
                // They count no changes.
                tx.execute("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY)", ())?;
                tx.execute("SELECT 1", ())?;
                tx.execute("REINDEX t", ())?;
                tx.execute(NOTE, ["three updated"])?;
                tx.execute(failing, ()).unwrap_err();
                tx.execute("INSERT OR IGNORE INTO t(k) VALUES ('taken')", ())?;
                tx.execute(failing, ()).unwrap_err();
                tx.execute(NOTE, ["none inserted"])?;
                tx.execute(failing, ()).unwrap_err();
                tx.execute("DELETE FROM t WHERE id >= 200", ())?;
                assert_ne!(tx.last_insert_rowid(), 202, "a note was inserted since");
                tx.query("SELECT * FROM seen ORDER BY rowid", (), seen)
            };
            let in_closure: Seen = db.transaction(closure).await.unwrap();
            for (what, changes) in [("three inserted", 3), ("three updated", 3), ("none inserted", 0)] {
                let noted = in_closure.iter().find(|(noted, ..)| noted == what);
                assert_eq!(noted.map(|(.., changes)| *changes), Some(changes), "{failing}: {in_closure:?}");
            }
            for member in 1..=2 {
                let all = "SELECT * FROM seen ORDER BY rowid";
                let applied = cluster.db(member).query(Consistency::Linearizable, all, (), seen).await.unwrap();
                assert_eq!(applied, in_closure, "{failing}, run on member {id}, applied on member {member}");
            }
        }
    }
    cluster.wait_same().await;
}

/// What other transactions did on the same connection does not show, also before the first write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_of_a_closure_sees_nothing_of_the_transaction_before() {
    let cluster = Cluster::new(1).await;
    let db = cluster.db(1);
    db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY)", ()).await.unwrap();
    db.transaction(|tx| tx.execute("INSERT INTO t VALUES (70), (71)", ())).await.unwrap();
    let rowid = db.transaction(|tx| tx.query_row("SELECT last_insert_rowid()", (), |row| row.get::<_, i64>(0)));
    assert_eq!(rowid.await.unwrap(), 0);
}

/// A full-text table keeps rows back, and writes them when a savepoint begins: between two statements of a closure, not of apply.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_full_text_table_keeps_back_does_not_show() {
    let cluster = Cluster::new(1).await;
    let db = cluster.db(1);
    db.script("CREATE VIRTUAL TABLE f USING fts5(body); CREATE TABLE seen(what, rowid_seen, changes_seen)".to_owned())
        .await
        .unwrap();
    let in_closure = db.transaction(|tx| {
        tx.execute("INSERT INTO f VALUES ('ant'), ('bee'), ('cat')", ())?;
        tx.execute(NOTE, ["after three rows"])?;
        tx.execute("INSERT INTO f VALUES ('dog'), ('eel')", ())?;
        tx.query("SELECT rowid FROM f WHERE f MATCH 'dog'", (), |row| row.get::<_, i64>(0))?;
        tx.execute(NOTE, ["after a search"])?;
        tx.execute("INSERT INTO f VALUES ('fox')", ())?;
        let within =
            "INSERT INTO seen SELECT 'within a search', last_insert_rowid(), changes() FROM f WHERE f MATCH 'fox'";
        tx.execute(within, ())?;
        tx.execute(NOTE, ["after all"])?;
        tx.query("SELECT * FROM seen ORDER BY rowid", (), seen)
    });
    let in_closure: Seen = in_closure.await.unwrap();
    let applied = db.query(Consistency::Linearizable, "SELECT * FROM seen ORDER BY rowid", (), seen).await.unwrap();
    assert_eq!(applied, in_closure);
}

/// Also on a member that has only read how the table was made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn defaults_and_checks_see_the_same_on_every_member() {
    let mut cluster = Cluster::new(3).await;
    let schema = "CREATE TABLE t(a, c DEFAULT (changes()), r DEFAULT (last_insert_rowid()), CHECK (changes() <> 5));
        CREATE TABLE u(id INTEGER PRIMARY KEY)";
    cluster.db(1).script(schema.to_owned()).await.unwrap();
    cluster.wait_same().await;
    let leader = cluster.leader().await;
    let restarted = leader % 3 + 1;
    cluster.restart(restarted).await;
    let db = cluster.db(leader);
    db.execute("INSERT INTO u VALUES (7), (8), (9)", ()).await.unwrap();
    db.execute("INSERT INTO t(a) VALUES ('alone')", ()).await.unwrap();
    for id in [leader, restarted] {
        let number = id.cast_signed();
        let db = cluster.db(id);
        let seen = db.transaction(move |tx| {
            tx.execute("INSERT INTO u VALUES (?1), (?1 + 1)", [10 * number])?;
            tx.execute("INSERT INTO u VALUES (7)", ()).unwrap_err();
            tx.execute("INSERT INTO t(a) VALUES (?1)", [number])?;
            tx.query_row("SELECT c, r FROM t WHERE a = ?1", [number], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
            })
        });
        assert_eq!(seen.await.unwrap(), (2, 10 * number + 1), "run on member {id}");
    }
    cluster.wait_same().await;
    for id in 1..=3 {
        let rows = "SELECT a || ' ' || c || ' ' || r FROM t ORDER BY rowid";
        let rows =
            cluster.db(id).query(Consistency::Linearizable, rows, (), |row| row.get::<_, String>(0)).await.unwrap();
        let run_on = |id: u64| format!("{id} 2 {}", 10 * id + 1);
        assert_eq!(rows, ["alone 1 0".to_owned(), run_on(leader), run_on(restarted)], "applied on member {id}");
    }
}

/// A follower applies a moment after the answer what was written through it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_sees_what_was_answered_on_its_member() {
    let cluster = Cluster::new(3).await;
    cluster.db(1).execute("CREATE TABLE t(a)", ()).await.unwrap();
    // How many rows a follower's transaction sees beside those that are there, after a write of one there, and how often it runs. Nothing is
    // applied there until it runs, or until the time is over.
    let seen = async |held: Duration| -> Result<(i64, u32), Error> {
        let follower = cluster.db(cluster.leader().await % 3 + 1);
        let before = number(&follower, "SELECT count(*) FROM t").await;
        let busy = follower.inner.shared.gate.enter_as_writer();
        follower.execute("INSERT INTO t VALUES (1)", ()).await?;
        let (db, runs) = (follower.clone(), Arc::new(AtomicU32::new(0)));
        let counted = Arc::clone(&runs);
        let count = tokio::spawn(async move {
            let count = db.transaction(move |tx| {
                counted.fetch_add(1, Ordering::SeqCst);
                tx.query_row("SELECT count(*) FROM t", (), |row| row.get::<_, i64>(0))
            });
            count.await
        });
        let held = Instant::now() + held;
        while runs.load(Ordering::SeqCst) == 0 && Instant::now() < held {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(busy);
        Ok((count.await.unwrap()? - before, runs.load(Ordering::SeqCst)))
    };
    // It waits, but not for ever. One attempt is spoiled where the machine stands still for as long as a transaction waits.
    for (held, expected) in [(Duration::from_millis(100), (1, 1)), (Duration::from_secs(20), (0, 1))] {
        for attempt in 1.. {
            match seen(held).await {
                Ok(found) if found == expected => break,
                found => assert!(attempt < 4, "{found:?} after {held:?}"),
            }
        }
    }
}
