//! `kill -9` of members under writing clients, and of all at once.

use std::time::Duration;

use cluster_tests::{Daemon, TestCluster, Writers, eventually};
use microcluster_client::Role;
use rustix::process::Signal;
use serde_json::json;

/// How soon after the death of the leader every client must have written again, with default settings. The shortest of some rounds
/// counts: a busy machine makes one long now and then.
const RECOVERY_MAX: Duration = Duration::from_secs(3);
/// Writers in a test, spread over the members.
const WRITERS: usize = 6;
const ROUNDS: u32 = 3;

#[tokio::test]
async fn nothing_acknowledged_is_lost_when_the_leader_is_killed() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    let mut writers = Writers::start(&cluster, WRITERS).await;
    writers.advance(20).await;
    let mut shortest = Duration::MAX;
    for round in 1..=ROUNDS {
        let leader = cluster.leader().await;
        cluster.members[leader].kill();
        let recovery = writers.recovery().await;
        println!("round {round}: every client writes again after {recovery:?}");
        shortest = shortest.min(recovery);
        writers.advance(20).await;
        cluster.members[leader].start_again().await;
        writers.advance(20).await;
    }
    assert!(shortest <= RECOVERY_MAX, "writes again only after {shortest:?}");
    let ledger = writers.stop().await;
    for member in &cluster.members {
        ledger.check(member).await;
    }
    cluster.settled(&["c1", "c2", "c3"]).await;
    cluster.replicas_agree().await;
}

#[tokio::test]
async fn a_killed_follower_comes_back_with_everything() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    let mut writers = Writers::start(&cluster, WRITERS).await;
    writers.advance(20).await;
    let mut shortest = Duration::MAX;
    for _ in 0..ROUNDS {
        let follower = cluster.follower().await;
        cluster.members[follower].kill();
        shortest = shortest.min(writers.recovery().await);
        writers.advance(50).await;
        cluster.members[follower].start_again().await;
        writers.advance(50).await;
    }
    assert!(shortest <= RECOVERY_MAX, "writes again only after {shortest:?}");
    let ledger = writers.stop().await;
    for member in &cluster.members {
        ledger.check(member).await;
    }
    cluster.replicas_agree().await;
}

#[tokio::test]
async fn all_members_killed_at_once_come_back_with_everything() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    let mut writers = Writers::start(&cluster, WRITERS).await;
    writers.advance(30).await;
    cluster.members.iter_mut().for_each(Daemon::kill);
    cluster.members.iter_mut().for_each(Daemon::spawn);
    for member in &mut cluster.members {
        member.wait_ready().await;
    }
    writers.advance(20).await;
    let ledger = writers.stop().await;
    for member in &cluster.members {
        ledger.check(member).await;
    }
    cluster.settled(&["c1", "c2", "c3"]).await;
    cluster.replicas_agree().await;
}

/// A leader that stands still, as in a long pause of its machine, is replaced; when it goes on it serves
/// nothing that is out of date.
#[tokio::test]
async fn a_leader_that_stood_still_reads_what_was_written_without_it() {
    let cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    cluster.members[0].sql("CREATE TABLE t (round INTEGER PRIMARY KEY)").await;
    for round in 1..=4 {
        let old = cluster.leader().await;
        cluster.members[old].signal(Signal::STOP);
        let other = &cluster.members[(old + 1) % 3];
        // Told to try again, or not known: the row's key makes a second try harmless.
        eventually("the others write without it", async || {
            other.try_sql(&format!("INSERT INTO t VALUES ({round}) ON CONFLICT DO NOTHING")).await
        })
        .await;
        cluster.members[old].signal(Signal::CONT);
        let read =
            eventually("the old leader reads", async || cluster.members[old].try_sql("SELECT max(round) FROM t").await)
                .await;
        assert_eq!(read, [[json!(round)]], "the read is linearizable");
    }
    cluster.replicas_agree().await;
}

/// Without a majority a write fails in time and says so; local reads go on.
#[tokio::test]
async fn without_a_quorum_writes_are_refused_and_local_reads_go_on() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    cluster.members[0].sql("CREATE TABLE t (a); INSERT INTO t VALUES (1)").await;
    let last = cluster.follower().await;
    // A read brings the follower up to the row.
    assert_eq!(cluster.members[last].sql("SELECT a FROM t").await.len(), 1);
    for place in (0..3).filter(|place| *place != last) {
        cluster.members[place].kill();
    }
    let error = cluster.members[last].try_sql("INSERT INTO t VALUES (2)").await.unwrap_err();
    assert_eq!(error.code(), Some(503), "{error}");
    assert!(error.retry_after().is_some() && error.to_string().contains("quorum"), "{error:?}");
    assert_eq!(cluster.members[last].sql_local("SELECT a FROM t").await.unwrap().len(), 1);
    for place in (0..3).filter(|place| *place != last) {
        cluster.members[place].start_again().await;
    }
    cluster.settled(&["c1", "c2", "c3"]).await;
    assert_eq!(cluster.any().sql("SELECT a FROM t").await.len(), 1, "what was refused was not done");
}

/// The trust store on disk is a cache: a member whose files are damaged or gone learns from the log whom it trusts, and has them
/// right again.
#[tokio::test]
async fn the_trust_store_is_rebuilt_from_the_log() {
    let mut cluster = TestCluster::start(3).await;
    let names = ["c1", "c2", "c3"];
    cluster.settled(&names).await;
    let files = |member: &Daemon| {
        let files = std::fs::read_dir(member.dir().join("truststore")).unwrap().map(|file| file.unwrap().path());
        let mut files: Vec<_> = files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
        files.sort();
        files
    };
    let stopped = cluster.follower().await;
    eventually("the trust store is whole", async || {
        let found = files(&cluster.members[stopped]);
        let found: Vec<_> = found.iter().filter_map(|(path, _)| path.file_name()?.to_str()).collect();
        (found == ["c1.yaml", "c2.yaml", "c3.yaml"]).then_some(()).ok_or_else(|| format!("{found:?}"))
    })
    .await;
    let whole = files(&cluster.members[stopped]);
    // What is kept, and what is damaged: all others, one of them, itself.
    for (garbage, deleted) in [(vec![0], vec![1, 2]), (vec![0, 1, 2], vec![]), (vec![], vec![0, 1, 2])] {
        cluster.members[stopped].stop().await;
        for place in garbage {
            std::fs::write(&whole[place].0, [0xff, 0, b'{']).unwrap();
        }
        for place in deleted {
            std::fs::remove_file(&whole[place].0).unwrap();
        }
        let member = &mut cluster.members[stopped];
        std::fs::write(member.dir().join("truststore/stray.yaml"), "name: x").unwrap();
        member.start_again().await;
        cluster.settled(&names).await;
        let member = &cluster.members[stopped];
        eventually("the files are as they were", async || (files(member) == whole).then_some(()).ok_or("they are not"))
            .await;
        member.sql("SELECT 1").await;
    }
}

/// A cluster of four has a member that does not vote: it takes the place of one that is removed.
#[tokio::test]
async fn a_stand_by_takes_over_for_a_removed_voter() {
    let mut cluster = TestCluster::start(4).await;
    cluster.settled(&["c1", "c2", "c3", "c4"]).await;
    let roles = |members: &[microcluster_client::Member]| members.iter().map(|m| m.role).collect::<Vec<_>>();
    let members = cluster.members[0].members().await.unwrap();
    assert_eq!(roles(&members), [Role::Voter, Role::Voter, Role::Voter, Role::StandBy]);
    let leader = cluster.leader().await;
    let victim = (0..3).find(|place| *place != leader).unwrap();
    cluster.members[victim].kill();
    let name = cluster.members[victim].name().clone();
    let error = cluster.members[3].client().remove_cluster_member(&name, false).await.unwrap_err();
    assert!(error.to_string().contains("--force"), "{error}");
    cluster.members[3].client().remove_cluster_member(&name, true).await.unwrap();
    cluster.members.remove(victim);
    let left: Vec<_> = cluster.members.iter().map(|member| member.name().to_string()).collect();
    cluster.settled(&left.iter().map(String::as_str).collect::<Vec<_>>()).await;
}
