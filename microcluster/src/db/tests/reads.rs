//! Reads: they share what they ask of the quorum, and wait for no writer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;

use super::kit::{Cluster, address, until};
use crate::db::network::{Call, Follower, Reply};
use crate::db::raft_types::Vote;
use crate::db::{Consistency, NodeId};

/// Far below the time that a read waits for what it needs.
const SOON: Duration = Duration::from_secs(3);
const READS: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn linearizable_reads_that_arrive_together_share_a_round_of_the_quorum() {
    let cluster = Cluster::new(3).await;
    let db = cluster.db(cluster.leader().await);
    db.execute("CREATE TABLE t(a)", ()).await.unwrap();
    let rounds = || db.inner.shared.read_rounds.load(Ordering::Relaxed);
    let before = rounds();
    let read = || db.query_row(Consistency::Linearizable, "SELECT count(*) FROM t", (), |row| row.get::<_, i64>(0));
    for answer in join_all((0..READS).map(|_| read())).await {
        assert_eq!(answer.unwrap(), Some(0));
    }
    let taken = rounds() - before;
    assert!((1..READS as u64 / 4).contains(&taken), "{READS} reads took {taken} rounds");
}

/// Of three voters it is a majority with the leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_reads_confirms_its_leader_itself() {
    let cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let id = (1..=3).find(|id| *id != leader).unwrap();
    let (leader, follower) = (cluster.db(leader), cluster.db(id));
    follower.execute("CREATE TABLE t(a)", ()).await.unwrap();
    let vote = || (leader.inner.log.vote(), follower.inner.log.vote());
    until("it follows", async || vote().0 == vote().1).await;
    let rounds = || leader.inner.shared.read_rounds.load(Ordering::Relaxed);
    let before = rounds();
    for rows in 0..20 {
        let count =
            follower.query_row(Consistency::Linearizable, "SELECT count(*) FROM t", (), |row| row.get::<_, i64>(0));
        assert_eq!(count.await.unwrap(), Some(rows));
        leader.execute("INSERT INTO t VALUES (1)", ()).await.unwrap();
    }
    // A change of the leader in a slow moment costs a few.
    assert!(rounds() - before < 5, "{} rounds for 20 reads: nobody else is to be asked", rounds() - before);
    // One of before says nothing of itself, and one that follows another leader nothing that helps: then the others are asked.
    let said = follower.inner.service.read_index.follower().unwrap();
    let stale = Follower { vote: Vote::new(99, id), ..said };
    until("only what helps is taken", async || {
        let node_id = leader.inner.service.node_id;
        let (before, applied) = (rounds(), *leader.inner.shared.applied.borrow());
        for (asking, more) in [(Some(said), 0), (None, 1), (Some(stale), 2)] {
            let asked = follower.inner.peers.call(node_id, &address(node_id), Call::ReadIndex(asking)).await;
            // In a slow moment it may lead no longer, and lead again.
            if !matches!(asked, Ok(Reply::ReadIndex(Ok(index))) if index >= applied) || rounds() != before + more {
                return false;
            }
        }
        true
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_and_transactions_that_only_read_wait_for_no_writer() {
    let cluster = Cluster::new(1).await;
    let db = cluster.db(1);
    db.execute("CREATE TABLE t(a)", ()).await.unwrap();
    let shared = Arc::clone(&db.inner.shared);
    let busy = shared.gate.enter_as_writer();
    let writing = db.clone();
    let write = tokio::spawn(async move { writing.execute("INSERT INTO t VALUES (1)", ()).await });
    let local = db.query_row(Consistency::Local, "SELECT count(*) FROM t", (), |row| row.get::<_, i64>(0));
    assert_eq!(tokio::time::timeout(SOON, local).await.expect("a read waits").unwrap(), Some(0));
    let closure = db.transaction(|tx| tx.query_row("SELECT count(*) FROM t", (), |row| row.get::<_, i64>(0)));
    assert_eq!(tokio::time::timeout(SOON, closure).await.expect("a closure that reads waits").unwrap(), 0);
    assert!(!write.is_finished(), "the writer was busy all the time");
    drop(busy);
    write.await.unwrap().unwrap();
}

/// While the leader syncs an entry, Raft's task there does nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn linearizable_reads_wait_for_no_disk() {
    let cluster = Cluster::new(3).await;
    cluster.db(1).execute("CREATE TABLE t(a)", ()).await.unwrap();
    let slow_down = |delay| (1..=3).for_each(|id| cluster.db(id).inner.log.slow_down(delay));
    // One attempt is spoiled where the machine stands still for as long.
    for attempt in 1.. {
        let leader = cluster.leader().await;
        slow_down(Duration::from_secs(2));
        let writing = cluster.db(leader).clone();
        let log = || (writing.inner.log.ends().1, writing.inner.log.stats().fsyncs);
        let (last, syncs) = log();
        let write = {
            let db = writing.clone();
            tokio::spawn(async move { db.execute("INSERT INTO t VALUES (1)", ()).await })
        };
        until("the log is given the entry", async || log().0 != last).await;
        let reads = (1..=3).map(|id| {
            let db = cluster.db(id).clone();
            async move { db.query(Consistency::Linearizable, "SELECT a FROM t", (), |_| Ok(())).await }
        });
        let reads = join_all(reads).await;
        let is_synced = log().1 != syncs;
        slow_down(Duration::ZERO);
        write.await.unwrap().unwrap();
        assert!(reads.iter().all(Result::is_ok), "{reads:?}");
        if !is_synced {
            return;
        }
        assert!(attempt < 4, "the reads waited for the leader's disk");
    }
}

/// Its own Raft hears of the next leader only when its disk is done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_replaced_for_its_slow_disk_sends_its_clients_on_at_once() {
    let cluster = Cluster::new(3).await;
    cluster.db(1).execute("CREATE TABLE t(a)", ()).await.unwrap();
    // One attempt is spoiled where the machine stands still for as long.
    for attempt in 1.. {
        let leader = cluster.leader().await;
        let old = cluster.db(leader).clone();
        let syncs = || old.inner.log.stats().fsyncs;
        old.inner.log.slow_down(Duration::from_secs(4));
        let (before, led) = (syncs(), old.status().is_leader());
        let written = old.execute("INSERT INTO t VALUES (1)", ()).await;
        let (is_synced, leads) = (syncs() != before, old.status().is_leader());
        old.inner.log.slow_down(Duration::ZERO);
        if written.is_ok() && led && !leads && !is_synced {
            return;
        }
        assert!(attempt < 4, "{written:?}: it is answered when the disk is done");
    }
}

/// What is committed a follower may have applied, and shown, before its leader has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_linearizable_read_sees_what_was_seen_before_on_another_member() {
    let cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let (leader, follower) = (cluster.db(leader), cluster.db(leader % 3 + 1));
    leader.execute("CREATE TABLE t(a)", ()).await.unwrap();
    let shared = &leader.inner.shared;
    let busy = shared.gate.enter_as_writer();
    let write = || {
        let db = leader.clone();
        tokio::spawn(async move { db.execute("INSERT INTO t VALUES (1)", ()).await })
    };
    // The first is on its way into the leader's state. The second waits behind it there, and nowhere else.
    let mut writes = Vec::new();
    for rows in 1..=2 {
        writes.push(write());
        until("the follower applies it", async || {
            let sql = "SELECT count(*) FROM t";
            let count = follower.query_row(Consistency::Local, sql, (), |row| row.get::<_, i64>(0)).await;
            count.is_ok_and(|count| count == Some(rows))
        })
        .await;
    }
    let seen = *follower.inner.shared.applied.borrow();
    assert!(*shared.applied.borrow() < seen, "the leader has applied it");
    assert!(leader.inner.service.read_index.on_leader().await.unwrap() >= seen);
    drop(busy);
    for write in writes {
        write.await.unwrap().unwrap();
    }
}

/// What was answered counts, whether or not anybody else was told of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_linearizable_read_of_the_only_member_sees_what_was_answered() {
    let cluster = Cluster::new(1).await;
    let db = cluster.db(1);
    for sql in ["CREATE TABLE t(a)", "INSERT INTO t VALUES (1)"] {
        db.execute(sql, ()).await.unwrap();
        let seen = db.seen_index();
        assert!(db.inner.service.read_index.on_leader().await.unwrap() >= seen);
    }
}

/// A leader that was replaced may not know of it. A voter that follows another vote does not confirm that it leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_confirms_the_vote_that_it_follows_and_no_other() {
    let cluster = Cluster::new(3).await;
    let old = cluster.leader().await;
    let vote_of = |id: NodeId| cluster.db(id).inner.log.vote().unwrap();
    let vote = vote_of(old);
    let voters: Vec<NodeId> = (1..=3).filter(|id| *id != old).collect();
    let confirms = async |from: NodeId, to: NodeId| {
        let peers = Arc::clone(&cluster.db(from).inner.peers);
        match peers.call(to, &address(to), Call::Confirm(vote)).await.unwrap() {
            Reply::Confirmed(confirmed) => confirmed,
            reply => panic!("{reply:?}"),
        }
    };
    until("all follow", async || vote_of(voters[0]) == vote && vote_of(voters[1]) == vote).await;
    assert!(confirms(old, voters[0]).await && confirms(old, voters[1]).await);
    cluster.db(voters[0]).inner.raft.trigger().elect().await.unwrap();
    until("another vote", async || vote_of(voters[0]) != vote && vote_of(voters[1]) != vote).await;
    assert!(!confirms(old, voters[0]).await && !confirms(old, voters[1]).await);
}
