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
