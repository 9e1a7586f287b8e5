//! Several members: clusters in one process, over a network that can be cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::count;
use super::kit::{self, Cluster};
use crate::db::{Consistency, Error, PingError, Verdict};

/// What was written on one member is read on another one, without the leader, and a read that cannot be that fresh says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_can_ask_for_what_another_member_has_seen() {
    let cluster = Cluster::new(3).await;
    cluster.db(1).execute("CREATE TABLE t(a)", ()).await.unwrap();
    for turn in 0..30_i64 {
        let (writer, reader) =
            (cluster.db(turn.cast_unsigned() % 3 + 1), cluster.db((turn.cast_unsigned() + 1) % 3 + 1));
        writer.execute("INSERT INTO t VALUES (?1)", [turn]).await.unwrap();
        let fresh = Consistency::AtLeast(writer.seen_index());
        let newest = reader.query_row(fresh, "SELECT max(a) FROM t", (), |row| row.get::<_, i64>(0)).await.unwrap();
        assert_eq!(newest, Some(turn));
    }
    let db = cluster.db(2);
    let future = Consistency::AtLeast(db.seen_index() + 1_000_000);
    let error = db.query_row(future, "SELECT 1", (), |row| row.get::<_, i64>(0)).await.unwrap_err();
    assert!(matches!(error, Error::NoQuorum { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_node_at_an_address_is_told_from_none() {
    let mut cluster = Cluster::new(3).await;
    let db = cluster.db(1);
    let ping = async |id, at| db.ping(id, &kit::address(at), Duration::from_secs(5)).await;
    assert_eq!(ping(2, 2).await.unwrap().node_id, 2);
    let error = ping(9, 2).await.unwrap_err();
    assert!(matches!(&error, PingError::OtherNode { detail } if detail.contains("node 2 answers there, not node 9")));
    cluster.kill(3).await;
    let error = ping(9, 3).await.unwrap_err();
    assert!(matches!(error, PingError::Silent { .. }), "{error:?}");
}

/// A member that led when it stopped may have lost entries that others have: it is elected anew, in another term.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_restarts_leads_in_another_term() {
    for size in [1, 3] {
        let mut cluster = Cluster::new(size).await;
        cluster.db(1).execute("CREATE TABLE t(a)", ()).await.unwrap();
        let leader = cluster.leader().await;
        let before = cluster.db(leader).status().term;
        cluster.restart(leader).await;
        cluster.db(leader).execute("INSERT INTO t VALUES (1)", ()).await.unwrap();
        cluster.leader().await;
        assert!(cluster.db(leader).status().term > before);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_member_takes_writes_and_the_members_stay_the_same() {
    let cluster = Cluster::new(3).await;
    cluster
        .db(1)
        .sql(
            "CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, by INTEGER, r DEFAULT (random()), at DEFAULT CURRENT_TIMESTAMP);
             CREATE TABLE log(t_id INTEGER, n INTEGER);
             CREATE TRIGGER tr AFTER INSERT ON t BEGIN INSERT INTO log VALUES (last_insert_rowid(), changes()); END;
             CREATE VIRTUAL TABLE f USING fts5(body)",
            vec![],
            Consistency::Linearizable,
        )
        .await
        .unwrap();
    let mut writers = Vec::new();
    for id in 1..=3_u64 {
        let db = cluster.db(id);
        writers.push(tokio::spawn(async move {
            for n in 0..40_i64 {
                db.execute("INSERT INTO t(by) VALUES (?1)", [n]).await.unwrap();
                db.execute("INSERT INTO f VALUES (hex(randomblob(8)) || datetime('now'))", ()).await.unwrap();
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let dumps = [cluster.dump(1).await, cluster.dump(2).await, cluster.dump(3).await];
    assert!(dumps[0].contains("INSERT INTO \"t\""));
    assert_eq!(dumps[0], dumps[1]);
    assert_eq!(dumps[0], dumps[2]);
    assert_eq!(count(&cluster, 2, "t").await, 120);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_when_the_leader_is_killed() {
    let mut cluster = Cluster::new(3).await;
    cluster.db(1).execute("CREATE TABLE t(a INTEGER PRIMARY KEY)", ()).await.unwrap();
    let leader = cluster.leader().await;
    let other = (1..=3).find(|id| *id != leader).unwrap();
    let db = cluster.db(other);
    let writer = tokio::spawn(async move {
        for a in 0..300_i64 {
            // An INSERT of a primary key shows a write that was applied twice.
            db.execute("INSERT INTO t VALUES (?1)", [a]).await.unwrap();
        }
    });
    cluster.wait_applied(other, 50).await;
    cluster.kill(leader).await;
    writer.await.unwrap();
    assert_eq!(count(&cluster, other, "t").await, 300);
    cluster.start(leader).await;
    assert_eq!(count(&cluster, leader, "t").await, 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_writes_fail_and_local_reads_go_on() {
    let cluster = Cluster::new(3).await;
    cluster.db(1).execute("CREATE TABLE t(a)", ()).await.unwrap();
    cluster.db(1).execute("INSERT INTO t VALUES (1)", ()).await.unwrap();
    cluster.wait_same().await;
    let leader = cluster.leader().await;
    cluster.isolate(leader);
    // At first the leader does not know; then it says so at once.
    let error = cluster.db(leader).execute("INSERT INTO t VALUES (2)", ()).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { .. } | Error::NoQuorum { .. }), "{error:?}");
    let error = cluster.db(leader).execute("INSERT INTO t VALUES (3)", ()).await.unwrap_err();
    assert!(matches!(error, Error::NoQuorum { .. }), "{error:?}");
    let error = cluster.db(leader).linearize().await.unwrap_err();
    assert!(matches!(error, Error::NoQuorum { .. }), "{error:?}");
    let rows = cluster
        .db(leader)
        .query_row(Consistency::Local, "SELECT count(*) FROM t", (), |row| row.get::<_, i64>(0))
        .await;
    assert_eq!(rows.unwrap(), Some(1));
    // The other two have elected one of them.
    let other = (1..=3).find(|id| *id != leader).unwrap();
    cluster.db(other).execute("INSERT INTO t VALUES (4)", ()).await.unwrap();
    cluster.heal();
    cluster.wait_same().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_watches_is_told_that_the_quorum_is_lost_and_found_again() {
    let cluster = Cluster::new(3).await;
    let told = async |has_quorum| {
        for id in 1..=3 {
            let mut watch = cluster.db(id).status_watch();
            let told = watch.wait_for(|status| status.has_quorum == has_quorum);
            let told = tokio::time::timeout(kit::DEADLINE, told).await;
            assert!(told.is_ok(), "member {id} is not told that it has a quorum: {has_quorum}");
        }
    };
    told(true).await;
    (1..=3).for_each(|id| cluster.isolate(id));
    told(false).await;
    cluster.heal();
    told(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_for_long_comes_back_by_snapshot() {
    let mut cluster = Cluster::new(3).await;
    cluster.db(1).execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)", ()).await.unwrap();
    let leader = cluster.leader().await;
    let away = (1..=3).find(|id| *id != leader).unwrap();
    cluster.kill(away).await;
    let db = cluster.db(leader);
    for _ in 0..80 {
        db.execute("INSERT INTO t(b) VALUES (randomblob(600000))", ()).await.unwrap();
        db.execute("INSERT INTO t(b) VALUES (?1)", [vec![7_u8; 600_000]]).await.unwrap();
    }
    cluster.shorten_log(leader).await;
    // Writes go on while it comes back.
    let (writing, is_back) = (db.clone(), tokio_util::sync::CancellationToken::new());
    let done = is_back.clone();
    let writer = tokio::spawn(async move {
        let mut written = 0;
        while !done.is_cancelled() {
            writing.execute("INSERT INTO t(b) VALUES (x'00')", ()).await.unwrap();
            written += 1;
        }
        written
    });
    cluster.start(away).await;
    assert!(count(&cluster, away, "t").await >= 160);
    is_back.cancel();
    let rows = 160 + writer.await.unwrap();
    assert!(rows > 160, "nothing was written meanwhile");
    assert_eq!(count(&cluster, away, "t").await, rows);
    cluster.restart(away).await;
    assert_eq!(count(&cluster, away, "t").await, rows);
    cluster.db(away).execute("INSERT INTO t(b) VALUES (x'01')", ()).await.unwrap();
    cluster.wait_same().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_on_all_members_count_without_a_lost_update() {
    let cluster = Cluster::new(3).await;
    cluster.db(1).execute("CREATE TABLE c(n INTEGER)", ()).await.unwrap();
    cluster.db(1).execute("INSERT INTO c VALUES (0)", ()).await.unwrap();
    let runs = Arc::new(AtomicU32::new(0));
    let mut tasks = Vec::new();
    for id in 1..=3 {
        let (db, runs) = (cluster.db(id), Arc::clone(&runs));
        tasks.push(tokio::spawn(async move {
            for _ in 0..20 {
                let runs = Arc::clone(&runs);
                db.transaction(move |tx| {
                    runs.fetch_add(1, Ordering::Relaxed);
                    let n: i64 = tx.query_row("SELECT n FROM c", (), |row| row.get(0))?;
                    tx.execute("UPDATE c SET n = ?1", [n + 1])?;
                    let seen: i64 = tx.query_row("SELECT n FROM c", (), |row| row.get(0))?;
                    assert_eq!(seen, n + 1);
                    Ok(n)
                })
                .await
                .unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let n = cluster.db(2).query_row(Consistency::Linearizable, "SELECT n FROM c", (), |row| row.get::<_, i64>(0)).await;
    assert_eq!(n.unwrap(), Some(60));
    assert!(runs.load(Ordering::Relaxed) >= 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leadership_can_be_handed_over() {
    let cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    cluster.db(leader).transfer_leadership().await.unwrap();
    let now = cluster.leader().await;
    assert_ne!(now, leader);
    cluster.db(leader).execute("CREATE TABLE t(a)", ()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_file_was_damaged_is_found() {
    let mut cluster = Cluster::new(3).await;
    cluster.db(1).execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)", ()).await.unwrap();
    for a in 0..50_i64 {
        cluster.db(1).execute("INSERT INTO t VALUES (?1, ?2)", (a, "the quick brown fox".repeat(20))).await.unwrap();
    }
    cluster.wait_same().await;
    let verification = cluster.db(2).verify().await.unwrap();
    assert!(verification.members.iter().all(|(_, _, verdict)| *verdict == Verdict::Same), "{verification:?}");
    cluster.kill(3).await;
    cluster.damage_state(3, b"brown fox", b"brown fix");
    cluster.start(3).await;
    cluster.db(3).linearize().await.unwrap();
    let verification = cluster.db(1).verify().await.unwrap();
    let verdicts: Vec<_> = verification.members.iter().map(|(id, _, verdict)| (*id, verdict.clone())).collect();
    assert_eq!(verdicts, [(1, Verdict::Same), (2, Verdict::Same), (3, Verdict::Different)]);
    cluster.kill(2).await;
    let verification = cluster.db(1).verify().await.unwrap();
    assert!(verification.digest.is_none(), "one against one: nobody can tell who is right");
    assert!(matches!(&verification.members[1].2, Verdict::Unknown(_)), "{verification:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_is_applied_once_when_leaders_change() {
    let mut cluster = Cluster::new(3).await;
    cluster.db(1).execute("CREATE TABLE n(n INTEGER)", ()).await.unwrap();
    cluster.db(1).execute("INSERT INTO n VALUES (0)", ()).await.unwrap();
    let done = Arc::new(AtomicU32::new(0));
    let first = cluster.leader().await;
    let other = (1..=3).find(|id| *id != first).unwrap();
    let writer = {
        let (db, done) = (cluster.db(other), Arc::clone(&done));
        tokio::spawn(async move {
            let mut unknown = 0;
            for _ in 0..150 {
                let added = db.transaction(|tx| {
                    let n: i64 = tx.query_row("SELECT n FROM n", (), |row| row.get(0))?;
                    tx.execute("UPDATE n SET n = ?1", [n + 1])
                });
                match added.await {
                    Ok(_) => done.fetch_add(1, Ordering::SeqCst),
                    Err(Error::OutcomeUnknown { .. }) => {
                        unknown += 1;
                        0
                    }
                    Err(error) => panic!("{error:?}"),
                };
            }
            unknown
        })
    };
    kit::until("some are done", || async { done.load(Ordering::SeqCst) > 20 }).await;
    cluster.cut_pipes();
    kit::until("some more are done", || async { done.load(Ordering::SeqCst) > 40 }).await;
    cluster.kill(first).await;
    let unknown: i64 = writer.await.unwrap();
    let db = cluster.db(other);
    let n = db.query_row(Consistency::Linearizable, "SELECT n FROM n", (), |row| row.get::<_, i64>(0));
    let (n, done) = (n.await.unwrap().unwrap(), i64::from(done.load(Ordering::SeqCst)));
    assert!(n >= done && n <= done + unknown, "{done} done, {unknown} unknown, {n} applied");
}
