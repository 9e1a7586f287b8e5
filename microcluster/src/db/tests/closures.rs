//! Closures that dawdle: nobody waits for them. And what they see of their connection.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use super::kit::Cluster;
use crate::db::{Consistency, Database, Error};

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
