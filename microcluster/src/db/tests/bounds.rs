//! Bounds: what goes over one is told so, by its own error and HTTP code, and changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};

use super::count;
use super::kit::{Cluster, address, until};
use crate::db::command::{Body, Request, RequestId, Scope};
use crate::db::network::{BACKLOG_ENTRIES_MAX, Call, CallError, Reply};
use crate::db::sequencer::{Submission, SubmitError};
use crate::db::{Consistency, Error, QueryResult, Statement, Value, Verdict};

/// Never ends by itself.
const ENDLESS: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

fn code(error: Error) -> u16 {
    crate::error::Error::from(error).status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_is_overtaken_each_time_is_given_up() {
    let cluster = Cluster::new(2).await;
    cluster
        .db(1)
        .script("CREATE TABLE c(n INTEGER); INSERT INTO c VALUES (0); CREATE TABLE t(a)".to_owned())
        .await
        .unwrap();
    let leader = cluster.leader().await;
    for id in [leader, 3 - leader] {
        let before = count(&cluster, id, "t").await;
        let (db, other) = (cluster.db(id), cluster.db(leader));
        let runs = Arc::new(AtomicU32::new(0));
        let (counted, runtime) = (Arc::clone(&runs), tokio::runtime::Handle::current());
        let error = db.transaction(move |tx| {
            counted.fetch_add(1, Ordering::SeqCst);
            let n: i64 = tx.query_row("SELECT n FROM c", (), |row| row.get(0))?;
            // Somebody else is always quicker.
            runtime.block_on(other.execute("UPDATE c SET n = n + 1", ()))?;
            tx.execute("INSERT INTO t VALUES (?1)", [n])
        });
        let error = error.await.unwrap_err();
        let Error::Conflict { attempts } = error else { panic!("{error:?}") };
        assert_eq!(attempts, runs.load(Ordering::SeqCst));
        assert!(attempts > 10, "{attempts}");
        assert_eq!(code(error), 409);
        assert_eq!(count(&cluster, id, "t").await, before, "nothing of it was done");
    }
}

/// Nothing is applied meanwhile, so that everything waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_over_what_may_wait_are_busy_and_not_done() {
    let cluster = Cluster::new(1).await;
    let db = cluster.db(1);
    db.execute("CREATE TABLE t(a)", ()).await.unwrap();
    let entered = db.inner.shared.gate.enter_as_writer();
    // Those of one member.
    let mut ours = FuturesUnordered::new();
    let refused = loop {
        let mut write = Box::pin(db.execute("INSERT INTO t VALUES (1)", ()));
        match write.as_mut().now_or_never() {
            None => ours.push(write),
            Some(result) => break result.unwrap_err(),
        }
        assert!(ours.len() < 10_000, "no bound");
    };
    assert!(matches!(refused, Error::Busy { .. }), "{refused:?}");
    assert_eq!(code(refused), 503);
    // Those of all members, at the leader.
    let sequencer = &db.inner.service.sequencer;
    let mut theirs = FuturesUnordered::new();
    let refused = loop {
        let request = insertion(theirs.len() as u64 + 1, Value::Integer(2));
        let mut submitted = Box::pin(sequencer.submit(request));
        match submitted.as_mut().now_or_never() {
            None => theirs.push(submitted),
            Some(result) => break result.unwrap_err(),
        }
        assert!(theirs.len() < 20_000, "no bound");
    };
    assert_eq!(refused, SubmitError::Busy);
    drop(entered);
    // What waited is done, and what was refused is not.
    let (one, two) = (ours.len(), theirs.len());
    while let Some(result) = ours.next().await {
        result.unwrap();
    }
    while let Some(result) = theirs.next().await {
        result.unwrap();
    }
    assert_eq!(count(&cluster, 1, "t WHERE a = 1").await, i64::try_from(one).unwrap());
    assert_eq!(count(&cluster, 1, "t WHERE a = 2").await, i64::try_from(two).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bytes_that_wait_for_the_leader_have_a_bound() {
    let cluster = Cluster::new(1).await;
    let db = cluster.db(1);
    let entered = db.inner.shared.gate.enter_as_writer();
    let megabytes = |count: usize| Value::Blob(vec![0; count << 20]);
    let mut waiting = Vec::new();
    let refused = loop {
        let request = insertion(waiting.len() as u64 + 1, megabytes(15));
        let mut submitted = Box::pin(db.inner.service.sequencer.submit(request));
        match submitted.as_mut().now_or_never() {
            None => waiting.push(submitted),
            Some(result) => break result.unwrap_err(),
        }
        assert!(waiting.len() < 20, "no bound");
    };
    assert_eq!(refused, SubmitError::Busy);
    assert!(waiting.len() <= 4, "{} of 15 MiB wait", waiting.len());
    let error = db.execute("INSERT INTO t VALUES (?1)", vec![megabytes(15)]).await.unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error:?}");
    drop(entered);
}

/// Nothing is applied meanwhile, so that each entry stays on its way. On one thread: what is submitted in a row is there together.
#[tokio::test]
async fn what_comes_behind_an_entry_shares_the_next_one_which_does_not_wait_for_long() {
    let cluster = Cluster::new(1).await;
    let db = cluster.db(1);
    db.execute("CREATE TABLE t(a)", ()).await.unwrap();
    let entered = db.inner.shared.gate.enter_as_writer();
    let last_index = || db.inner.service.log.stats().last_index.unwrap();
    let before = last_index();
    let mut waiting = FuturesUnordered::new();
    for (sequence, entry) in [(1, 1), (2, 2), (3, 2), (4, 2), (5, 3), (6, 3)] {
        until("the entry before it is in the log", || async { last_index() + 1 >= before + entry }).await;
        let mut submitted = Box::pin(db.inner.service.sequencer.submit(insertion(sequence, Value::Integer(1))));
        assert!(submitted.as_mut().now_or_never().is_none());
        waiting.push(submitted);
    }
    until("the last one is in the log", || async { last_index() >= before + 3 }).await;
    drop(entered);
    while let Some(result) = waiting.next().await {
        result.unwrap();
    }
    assert_eq!(last_index(), before + 3);
}

/// Nothing is applied meanwhile. Who waits for long asks whether the leader is there, behind all its writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_thousands_of_writes_on_their_way_is_still_answered() {
    const WRITES: usize = 2_000;
    let cluster = Cluster::new(2).await;
    let id = cluster.leader().await;
    let (leader, follower, address) = (cluster.db(id), cluster.db(3 - id), address(id));
    leader.execute("CREATE TABLE t(a)", ()).await.unwrap();
    let peers = &follower.inner.peers;
    let entered = leader.inner.shared.gate.enter_as_writer();
    let mut writes = Vec::new();
    while writes.len() < WRITES {
        let write = Call::Submit(insertion(writes.len() as u64 + 1, Value::Integer(1)));
        match peers.start(id, &address, write) {
            Ok(reply) => writes.push(reply),
            // Until some of those before it are sent.
            Err(CallError::Full { .. }) => tokio::time::sleep(Duration::from_millis(1)).await,
            Err(error) => panic!("{error}"),
        }
    }
    let asked = peers.call(id, &address, Call::Ping);
    let answer = tokio::time::timeout(Duration::from_secs(10), asked).await;
    assert!(matches!(answer, Ok(Ok(Reply::Pong(_)))), "{answer:?}");
    // Those that were not given to the leader's sequencer at once are waited for, and not sent away.
    drop(entered);
    for write in writes {
        let answer = write.await.unwrap();
        assert!(!matches!(answer, Ok(Reply::Submit(Err(SubmitError::Busy)))), "{answer:?}");
    }
}

/// A write of another member.
fn insertion(sequence: u64, value: Value) -> Submission {
    let statement = Statement { sql: "INSERT INTO t VALUES (?1)".to_owned(), parameters: vec![value] };
    let request = Request {
        id: RequestId { origin: 7, sequence },
        answered_below: 1,
        time_ms: 0,
        seed: 0,
        only_in_term: None,
        scope: Scope::User,
        body: Body::Statements(vec![statement]),
    };
    Submission { request, seen: None, resent: false }
}

/// A follower whose writer thread stands still: its log does not go on without bound, it is not taken for dead, and it does not
/// stand for election.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_applies_too_slowly_is_held_back() {
    // A disk that stalls can cost a leader its place: one run in which it does not is enough.
    for _ in 0..3 {
        if slow_member_is_held_back().await {
            return;
        }
    }
    panic!("somebody stood for election each time");
}

/// Returns whether nobody has stood for election.
async fn slow_member_is_held_back() -> bool {
    let cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let db = cluster.db(leader);
    db.execute("CREATE TABLE t(a)", ()).await.unwrap();
    let slow = cluster.db(leader % 3 + 1);
    let (term, writes) = (db.status().term, BACKLOG_ENTRIES_MAX + 300);
    let is_undisturbed = || db.status().term == term;
    let entered = slow.inner.shared.gate.enter_as_writer();
    for a in 0..writes.cast_signed() {
        let written = db.execute("INSERT INTO t VALUES (?1)", [a]).await;
        // The slow one may lead now, and apply nothing.
        if !is_undisturbed() {
            return false;
        }
        written.unwrap();
    }
    let behind = || {
        let last = slow.inner.raft.metrics().borrow().last_log_index.unwrap_or(0);
        last - *slow.changes().borrow()
    };
    until("the member has what may wait", || async { behind() >= BACKLOG_ENTRIES_MAX }).await;
    // What is in one message comes in whole.
    assert!(behind() <= BACKLOG_ENTRIES_MAX + 64 + 3, "{} entries wait", behind());
    db.execute("INSERT INTO t VALUES (-1)", ()).await.unwrap();
    drop(entered);
    cluster.wait_same().await;
    assert_eq!(count(&cluster, leader, "t").await, writes.cast_signed() + 1);
    is_undisturbed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_of_too_many_steps_ends_at_the_same_place_everywhere() {
    let cluster = Cluster::new(2).await;
    let leader = cluster.leader().await;
    cluster.db(leader).execute("CREATE TABLE t(a)", ()).await.unwrap();
    for id in [leader, 3 - leader] {
        let db = cluster.db(id);
        let insert = format!("INSERT INTO t {ENDLESS}");
        let script = format!("INSERT INTO t VALUES (1); {insert}");
        let in_closure = insert.clone();
        let closure = db.transaction(move |tx| {
            tx.execute("INSERT INTO t VALUES (2)", ())?;
            tx.execute(&in_closure, ())
        });
        let read = db.transaction(|tx| {
            tx.execute("INSERT INTO t VALUES (3)", ())?;
            tx.query_row(ENDLESS, (), |row| row.get::<_, i64>(0))
        });
        for (what, result) in [
            ("a statement", db.execute(&insert, ()).await.map(drop)),
            ("a script", db.script(script).await.map(drop)),
            ("a closure", closure.await.map(drop)),
            ("a closure's read", read.await.map(drop)),
        ] {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::TooManySteps { .. }), "{what}: {error:?}");
            assert_eq!(code(error), 400);
        }
        db.execute("INSERT INTO t VALUES (4)", ()).await.unwrap();
    }
    assert_eq!(count(&cluster, 1, "t").await, 2);
    let verification = cluster.db(1).verify().await.unwrap();
    assert!(verification.members.iter().all(|(_, _, verdict)| *verdict == Verdict::Same), "{verification:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_over_its_time_is_interrupted() {
    let cluster = Cluster::new(1).await;
    let db = cluster.db(1);
    let limit = Duration::from_millis(50);
    let read = db
        .inner
        .shared
        .readers
        .with(limit, |reader| Ok(reader.connection().query_row(ENDLESS, [], |row| row.get::<_, i64>(0))?));
    let error = read.unwrap_err();
    assert!(matches!(error, Error::TooLong { .. }), "{error:?}");
    assert_eq!(code(error), 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_is_refused() {
    let cluster = Cluster::new(2).await;
    cluster.db(1).execute("CREATE TABLE t(a)", ()).await.unwrap();
    let leader = cluster.leader().await;
    for id in [leader, 3 - leader] {
        let db = cluster.db(id);
        let rows = "INSERT INTO t VALUES (1), (2), (3) RETURNING zeroblob(9000000)";
        let select = "SELECT zeroblob(9000000) FROM (VALUES (1), (2), (3))";
        for (what, result) in [
            ("values", db.execute("INSERT INTO t VALUES (?1)", vec![Value::Blob(vec![0; 17 << 20])]).await.map(drop)),
            ("text", db.script(format!("SELECT 1 -- {}", "-".repeat(17 << 20))).await.map(drop)),
            ("what a write answers", db.batch(vec![Statement::new(rows)]).await.map(drop)),
            ("what a read answers", db.sql(select, vec![], Consistency::Local).await.map(drop)),
        ] {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::TooLarge { .. }), "{what}: {error:?}");
            assert_eq!(code(error), 413);
        }
        let none = db.sql("SELECT * FROM t", vec![], Consistency::Linearizable).await.unwrap();
        assert!(matches!(&none[0], QueryResult::Rows { rows, .. } if rows.is_empty()), "{none:?}");
    }
}

/// A large entry is on its way for longer than a leader is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_write_on_a_thin_network_takes_its_time_and_stops_nothing_else() {
    let cluster = Cluster::new(3).await;
    cluster.db(1).execute("CREATE TABLE t(a)", ()).await.unwrap();
    cluster.throttle(1 << 20);
    let leader = cluster.leader().await;
    for id in [leader, leader % 3 + 1] {
        let (db, other) = (cluster.db(id), cluster.db((leader + 1) % 3 + 1));
        let text = "x".repeat(3 << 19);
        let large = db.execute("INSERT INTO t VALUES (?1)", [text]);
        // Whoever asks for the leader meanwhile has an answer.
        let (written, read) =
            tokio::join!(large, other.query_row(Consistency::Linearizable, "SELECT 1", (), |row| row.get::<_, i64>(0)));
        assert_eq!(read.unwrap(), Some(1));
        written.unwrap();
    }
    assert_eq!(count(&cluster, leader, "t").await, 2);
    cluster.wait_same().await;
}

/// Raft waits for a vote no longer than for a lease, and each is synced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_that_are_slow_together_elect_a_leader_too() {
    let mut cluster = Cluster::new(3).await;
    cluster.db(1).execute("CREATE TABLE t(a)", ()).await.unwrap();
    let leader = cluster.leader().await;
    let left: Vec<_> = (1..=3).filter(|id| *id != leader).collect();
    for id in &left {
        cluster.db(*id).inner.log.slow_down(Duration::from_millis(900));
    }
    cluster.kill(leader).await;
    for id in left {
        let written = async || cluster.db(id).execute("INSERT INTO t VALUES (1)", ()).await.is_ok();
        until("a leader is elected", written).await;
    }
}

/// The leader may give up waiting before that; it leaves a cluster that elects.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_that_are_slow_together_let_the_leadership_be_handed_over_too() {
    let cluster = Cluster::new(3).await;
    cluster.db(1).execute("CREATE TABLE t(a)", ()).await.unwrap();
    let leader = cluster.leader().await;
    for id in 1..=3 {
        cluster.db(id).inner.log.slow_down(Duration::from_millis(900));
    }
    cluster.db(leader).transfer_leadership().await.ok();
    until("another one leads", async || cluster.leader().await != leader).await;
    let written = async || cluster.db(leader).execute("INSERT INTO t VALUES (1)", ()).await.is_ok();
    until("it takes writes", written).await;
}

/// A disk that needs longer for a sync than a leader is waited for: of the followers, and of all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_that_are_slow_together_make_writes_slow_and_cost_nobody_the_lead() {
    let cluster = Cluster::new(3).await;
    cluster.db(1).execute("CREATE TABLE t(a)", ()).await.unwrap();
    let slow_down = |but: Option<u64>, delay| {
        for id in (1..=3).filter(|id| Some(*id) != but) {
            cluster.db(id).inner.log.slow_down(delay);
        }
    };
    // One attempt is spoiled where the machine stands still for as long.
    for attempt in 1.. {
        let leader = cluster.leader().await;
        let term = cluster.db(leader).status().term;
        let mut rounds = Vec::new();
        for but in [Some(leader), None] {
            slow_down(but, Duration::from_millis(900));
            // What one member writes is on its way while another one's is synced.
            let writers = (1..=3).map(|id| {
                let db = cluster.db(id);
                async move {
                    for _ in 0..2 {
                        db.execute("INSERT INTO t VALUES (1)", ()).await?;
                    }
                    Ok::<_, Error>(())
                }
            });
            rounds.push(futures_util::future::try_join_all(writers).await.is_ok());
            slow_down(None, Duration::ZERO);
            cluster.db(1).execute("INSERT INTO t VALUES (1)", ()).await.unwrap();
            rounds.push(cluster.db(cluster.leader().await).status().term == term);
        }
        if rounds == [true; 4] {
            return;
        }
        assert!(attempt < 4, "term {term}, {rounds:?}");
    }
}
