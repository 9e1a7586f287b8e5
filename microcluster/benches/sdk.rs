//! What a product gets from the SDK inside its own process: reads and interactive transactions on a cluster of three daemons
//! in this process, with the leader's disk and network in between.
//!
//! `cargo bench -p microcluster --bench sdk [-- SECONDS]`
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::future::Future;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use microcluster::db::{Consistency, Database};
use microcluster::{Daemon, Handle};
use microcluster_client::{Client, ControlRequest, TokenRequest};
use tempfile::TempDir;

const ROWS: i64 = 1_000;

struct Member {
    _dir: TempDir,
    handle: Handle,
    client: Client,
}

fn main() {
    let seconds = std::env::args().filter_map(|argument| argument.parse().ok()).next().unwrap_or(3);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run(Duration::from_secs(seconds)));
}

async fn run(time: Duration) {
    let first = start().await;
    let name = |number: usize| format!("c{number}").parse().unwrap();
    first.client.control(&ControlRequest::bootstrap(name(1), free_address())).await.unwrap();
    let mut members = vec![first];
    for number in 2..=3 {
        let token = TokenRequest { name: name(number), expire_after: None };
        let token = members[0].client.add_token(&token).await.unwrap();
        let member = start().await;
        member.client.control(&ControlRequest::join(name(number), free_address(), token)).await.unwrap();
        members.push(member);
    }
    let databases: Vec<_> = members.iter().map(|member| member.handle.state().database().unwrap()).collect();
    prepare(&databases[0]).await;
    databases[1].linearize().await.unwrap();

    println!(
        "{:<48} {:>5} {:>12} {:>8} {:>8} {:>8}",
        "workload", "tasks", "operations/s", "p50 us", "p99 us", "max us"
    );
    for place in ["leader", "follower"] {
        let db = || one_that(&databases, place == "leader");
        for (freshness, consistency) in [("local", Consistency::Local), ("linearizable", Consistency::Linearizable)] {
            for tasks in [1, 16] {
                let what = format!("{place}: select by key, {freshness}");
                measure(&what, tasks, time, db().await, move |db, _, turn| select(db, consistency, turn)).await;
            }
        }
        measure(&format!("{place}: transaction, read and write one row"), 1, time, db().await, transact).await;
        measure(&format!("{place}: transactions, a table for each task"), 8, time, db().await, transact).await;
        measure(&format!("{place}: insert"), 16, time, db().await, insert).await;
    }
    for member in members {
        member.handle.shutdown().await;
        member.handle.wait().await.unwrap();
    }
}

async fn start() -> Member {
    let dir = tempfile::tempdir().unwrap();
    let handle = Daemon::builder(dir.path()).start().await.unwrap();
    let client = Client::unix(dir.path().join("control.socket"));
    Member { _dir: dir, handle, client }
}

fn free_address() -> microcluster_client::Address {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string().parse().unwrap()
}

async fn prepare(db: &Database) {
    let rows = format!(
        "WITH RECURSIVE n (i) AS (VALUES (0) UNION ALL SELECT i + 1 FROM n WHERE i < {}) SELECT i, 'value ' || i FROM n",
        ROWS - 1
    );
    db.execute("CREATE TABLE kv (k INTEGER PRIMARY KEY, v TEXT) STRICT", ()).await.unwrap();
    db.execute(&format!("INSERT INTO kv {rows}"), ()).await.unwrap();
    for task in 0..8 {
        db.execute(&format!("CREATE TABLE counter_{task} (n INTEGER NOT NULL) STRICT"), ()).await.unwrap();
        db.execute(&format!("INSERT INTO counter_{task} VALUES (0)"), ()).await.unwrap();
    }
    db.execute("CREATE TABLE log (id INTEGER PRIMARY KEY, text TEXT) STRICT", ()).await.unwrap();
}

async fn select(db: Database, consistency: Consistency, turn: u64) {
    let key = (turn * 7919).cast_signed() % ROWS;
    let sql = "SELECT v FROM kv WHERE k = ?1";
    let found: Option<String> = db.query_row(consistency, sql, [key], |row| row.get(0)).await.unwrap();
    assert!(found.is_some());
}

async fn transact(db: Database, task: usize, _: u64) {
    db.transaction(move |tx| {
        let n: i64 = tx.query_row(&format!("SELECT n FROM counter_{task}"), (), |row| row.get(0))?;
        tx.execute(&format!("UPDATE counter_{task} SET n = ?1"), [n + 1])
    })
    .await
    .unwrap();
}

async fn insert(db: Database, task: usize, _: u64) {
    db.execute("INSERT INTO log (text) VALUES (?1)", [format!("a small row of task {task}")]).await.unwrap();
}

/// The leader, or a follower, as it is now: what was measured before may have cost somebody the lead.
async fn one_that(databases: &[Database], leads: bool) -> &Database {
    loop {
        if let Some(db) = databases.iter().find(|db| db.status().is_leader() == leads) {
            return db;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Runs `work` in so many tasks for so long, and prints a line.
async fn measure<F>(
    what: &str,
    tasks: usize,
    time: Duration,
    db: &Database,
    work: impl Fn(Database, usize, u64) -> F + Clone + Send + 'static,
) where
    F: Future<Output = ()> + Send,
{
    let (end, turns) = (Instant::now() + time, Arc::new(AtomicU64::new(0)));
    let running: Vec<_> = (0..tasks)
        .map(|task| {
            let (db, work, turns) = (db.clone(), work.clone(), Arc::clone(&turns));
            tokio::spawn(async move {
                let mut took = Vec::new();
                while Instant::now() < end {
                    let begun = Instant::now();
                    work(db.clone(), task, turns.fetch_add(1, Ordering::Relaxed)).await;
                    took.push(begun.elapsed());
                }
                took
            })
        })
        .collect();
    let mut took = Vec::new();
    for task in running {
        took.extend(task.await.unwrap());
    }
    took.sort_unstable();
    let rate = took.len() as f64 / time.as_secs_f64();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_micros();
    println!("{what:<48} {tasks:>5} {rate:>12.0} {:>8} {:>8} {:>8}", at(0.5), at(0.99), at(1.0));
}
