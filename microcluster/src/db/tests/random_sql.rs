//! A property: whatever SQL and whichever transactions the members are given, at once, through deaths, restarts and
//! snapshots, all members hold the same, and what a writer was answered is what all members hold.

mod generator;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;

use super::kit::{Cluster, until};
use super::seeds::seeds;
use crate::db::{Consistency, Database, Error, QueryResult, Statement, Transaction, Value, Verdict};
use generator::{DEFERRED_KEYS, SCHEMA, statement};

const ROUNDS: usize = 3;
const PHASES: usize = 5;
/// Of each member.
const WRITERS: u64 = 2;
/// What a writer does in a phase.
const STEPS: u32 = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_hold_the_same_whatever_sql_they_are_given() {
    for seed in seeds(ROUNDS) {
        // The statements are the same again; how the members' threads meet is not.
        println!("random SQL: run again with TEST_SEED={seed}");
        round(seed).await;
    }
}

/// Rows that a writer was told of: the key, a random number, a time (and in a transaction, the last rowid).
type Receipts = Vec<(i64, i64, String)>;

async fn round(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::new(3).await;
    let mut schema = SCHEMA.to_owned();
    if rng.random_bool(0.3) {
        schema = format!("{schema}; {DEFERRED_KEYS}");
    }
    cluster.db(1).sql(&schema, vec![], Consistency::Linearizable).await.unwrap();
    let next_receipt = Arc::new(AtomicI64::new(1));
    let mut receipts = Receipts::new();
    let mut done = 0;
    for phase in 0..PHASES {
        let leader = cluster.leader().await;
        let follower = (1..=3).find(|id| *id != leader).unwrap();
        let event = rng.random_range(0..5);
        let mut writers = JoinSet::new();
        for member in 1..=3 {
            for _ in 0..WRITERS {
                let writer = Writer { db: cluster.db(member), next_receipt: Arc::clone(&next_receipt) };
                writers.spawn(writer.run(StdRng::seed_from_u64(rng.random())));
            }
        }
        let begun = *cluster.db(follower).changes().borrow();
        cluster.wait_applied(follower, begun + 10).await;
        match event {
            0 => {}
            1 => cluster.cut_pipes(),
            2 => cluster.restart(follower).await,
            3 => cluster.restart(leader).await,
            _ => cluster.kill(follower).await,
        }
        while let Some(written) = writers.join_next().await {
            let (told, steps) = written.unwrap();
            receipts.extend(told);
            done += steps;
        }
        if event == 4 {
            let mut dropped = u64::MAX;
            for other in (1..=3).filter(|id| *id != follower) {
                dropped = dropped.min(cluster.shorten_log_now(other).await);
            }
            cluster.start(follower).await;
            // What a snapshot has brought is purged from the log; what comes by log is not.
            let db = cluster.db(follower);
            until("the member has got a snapshot", || async { db.purged_index() >= dropped }).await;
        }
        check(&cluster, &receipts, &format!("TEST_SEED={seed}, phase {phase} with event {event}")).await;
    }
    assert!(done > PHASES as u32 * STEPS, "TEST_SEED={seed}: only {done} steps were done");
    assert!(receipts.len() > 50, "TEST_SEED={seed}: only {} receipts", receipts.len());
}

/// Whether all members hold the same, and what the writers were told.
async fn check(cluster: &Cluster, receipts: &Receipts, what: &str) {
    cluster.leader().await;
    for member in 1..=3 {
        let db = cluster.db(member);
        db.linearize().await.unwrap();
        let wrong = db.query(Consistency::Local, "SELECT id FROM receipt WHERE seen <> counted", (), |row| row.get(0));
        let wrong: Vec<i64> = wrong.await.unwrap();
        assert!(wrong.is_empty(), "{what}: transactions {wrong:?} saw something else than there was");
        let rows = "SELECT id, r, at FROM receipt";
        let map = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, (row.get(1)?, row.get(2)?)));
        let rows = db.query(Consistency::Local, rows, (), map).await.unwrap();
        let rows: std::collections::BTreeMap<i64, (i64, String)> = rows.into_iter().collect();
        for (id, r, at) in receipts {
            assert_eq!(rows.get(id), Some(&(*r, at.clone())), "{what}: receipt {id} on member {member}");
        }
        let integrity = db.sql("PRAGMA integrity_check", vec![], Consistency::Local).await.unwrap();
        let expected = vec![vec![Value::Text("ok".to_owned())]];
        assert!(matches!(&integrity[0], QueryResult::Rows { rows, .. } if *rows == expected), "{what}: {integrity:?}");
    }
    let verification = cluster.db(1).verify().await.unwrap();
    let same = verification.members.iter().all(|(_, _, verdict)| *verdict == Verdict::Same);
    if !same {
        let (one, two, three) = (cluster.dump(1).await, cluster.dump(2).await, cluster.dump(3).await);
        let differs = one.lines().zip(two.lines()).zip(three.lines()).find(|((a, b), c)| a != b || b != c);
        panic!("{what}: {verification:?}; the first line that differs: {differs:?}");
    }
}

/// Does random things on one member.
struct Writer {
    db: Database,
    next_receipt: Arc<AtomicI64>,
}

impl Writer {
    async fn run(self, mut rng: StdRng) -> (Receipts, u32) {
        let (mut receipts, mut done) = (Receipts::new(), 0);
        for _ in 0..STEPS {
            let result = match rng.random_range(0..10) {
                0..3 => self.db.execute(&statement(&mut rng), ()).await.map(|_| ()),
                3 => {
                    let statements = (0..rng.random_range(2..5)).map(|_| Statement::new(statement(&mut rng)));
                    self.db.batch(statements.collect()).await.map(|_| ())
                }
                4 => {
                    let statements: Vec<_> = (0..rng.random_range(2..5)).map(|_| statement(&mut rng)).collect();
                    self.db.sql(&statements.join(";"), vec![], Consistency::Linearizable).await.map(|_| ())
                }
                5 => self.plain_receipt().await.map(|receipt| receipts.push(receipt)),
                _ => self.transaction(&mut rng).await.map(|receipt| receipts.push(receipt)),
            };
            match result {
                Ok(()) => done += 1,
                Err(
                    Error::Sql { .. } | Error::Constraint { .. } | Error::Refused { .. } | Error::Conflict { .. }
                    // A member is being stopped, or the leader changes.
                    | Error::OutcomeUnknown { .. } | Error::NoQuorum { .. } | Error::ShuttingDown,
                ) => {}
                // This member was started again: closures of the old handle and the new writer do not know of each other.
                Err(Error::Busy { .. }) if self.db.status().is_shut_down() => break,
                Err(error) => panic!("{error:?}"),
            }
        }
        (receipts, done)
    }

    async fn plain_receipt(&self) -> Result<(i64, i64, String), Error> {
        let id = self.next_receipt.fetch_add(1, Ordering::Relaxed);
        let sql = "INSERT INTO receipt(id, r, at) VALUES (?1, random(), strftime('%f', 'now')) RETURNING r, at";
        let results = self.db.batch(vec![Statement::new(sql).bind(id)]).await?;
        let [QueryResult::Rows { rows, .. }] = &results[..] else { panic!("{results:?}") };
        let [Value::Integer(r), Value::Text(at)] = &rows[0][..] else { panic!("{rows:?}") };
        Ok((id, *r, at.clone()))
    }

    /// Reads and writes, some of which depend on what was read, and a receipt of what the closure has seen.
    async fn transaction(&self, rng: &mut StdRng) -> Result<(i64, i64, String), Error> {
        let id = self.next_receipt.fetch_add(1, Ordering::Relaxed);
        let table = ["a", "p", "c", "s", "w", "strict", "log", "f"][rng.random_range(0..8)];
        let statements: Vec<_> = (0..rng.random_range(0..4)).map(|_| statement(rng)).collect();
        let body = move |tx: &Transaction<'_>| {
            let count = format!("SELECT count(*) FROM {table}");
            for (place, statement) in (0..).zip(&statements) {
                let seen: u32 = tx.query_row(&count, (), |row| row.get(0))?;
                // Another statement runs where the state is another one: then apply must have seen the same.
                if !(seen + place).is_multiple_of(3) {
                    // Another error has changed nothing, or has rolled everything back: then the next one fails too.
                    if let Err(error @ Error::Conflict { .. }) = tx.execute(statement, ()) {
                        return Err(error);
                    }
                }
            }
            let seen: i64 = tx.query_row(&count, (), |row| row.get(0))?;
            let told = "strftime('%f', 'now') || ' ' || last_insert_rowid() || ' ' || changes()";
            let insert = format!("INSERT INTO receipt VALUES (?1, ?2, ({count}), random(), {told})");
            tx.execute(&insert, (id, seen))?;
            tx.query_row("SELECT r, at FROM receipt WHERE id = ?1", [id], |row| Ok((id, row.get(0)?, row.get(1)?)))
        };
        self.db.transaction(body).await
    }
}
