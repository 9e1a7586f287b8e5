//! Members that come back with nothing, or with too little.

use cluster_tests::{TestCluster, eventually};
use serde_json::json;

/// More than the log that a leader keeps: a member that was away for so long needs a snapshot.
const BYTES_WRITTEN: usize = 48 << 20;
/// One row.
const ROW_BYTES: usize = 500 << 10;

#[tokio::test]
async fn a_wiped_member_is_removed_and_joins_again_under_a_new_token() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    cluster.members[0].sql("CREATE TABLE t (a); INSERT INTO t VALUES (1)").await;
    let follower = cluster.follower().await;
    cluster.members[follower].kill();
    cluster.members[follower].wipe();
    let name = cluster.members[follower].name().clone();
    let other = (follower + 1) % 3;
    cluster.members[other].sql("INSERT INTO t VALUES (2)").await;
    cluster.members[other].client().remove_cluster_member(&name, true).await.unwrap();
    let token = cluster.members[other].token(&name).await;
    cluster.members[follower].start_again().await;
    cluster.members[follower].join(&token).await.unwrap();
    cluster.settled(&["c1", "c2", "c3"]).await;
    assert_eq!(cluster.members[follower].sql("SELECT a FROM t ORDER BY a").await, [[json!(1)], [json!(2)]]);
    cluster.replicas_agree().await;
}

/// The leader drops the beginning of its log while a member is away.
#[tokio::test]
async fn a_member_that_was_away_for_long_gets_a_snapshot() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    cluster.members[0].sql("CREATE TABLE big (id INTEGER PRIMARY KEY, text TEXT)").await;
    let follower = cluster.follower().await;
    assert_eq!(cluster.members[follower].stop().await.code(), Some(0));
    let text = "x".repeat(ROW_BYTES);
    for id in 0..BYTES_WRITTEN / ROW_BYTES {
        cluster.any().sql(&format!("INSERT INTO big VALUES ({id}, '{text}{id}')")).await;
    }
    let expected = cluster.any().sql("SELECT count(*), sum(length(text)), max(text) FROM big").await;
    cluster.members[follower].start_again().await;
    let member = &cluster.members[follower];
    eventually("the member has everything", async || {
        match member.sql_local("SELECT count(*), sum(length(text)), max(text) FROM big").await {
            Ok(rows) if rows == expected => Ok(()),
            Ok(rows) => Err(format!("{:.100}", format!("{rows:?}"))),
            Err(e) => Err(e.to_string()),
        }
    })
    .await;
    assert!(member.log().contains("receiving a snapshot"), "it came by the log: write more in this test");
    member.sql("INSERT INTO big VALUES (-1, 'after the snapshot')").await;
    cluster.replicas_agree().await;
}

/// While a member was down all others were made anew, one after the other, at the same addresses. It knows none of
/// their certificates: the cluster's is the proof then.
#[tokio::test]
async fn a_member_comes_back_to_members_that_were_all_made_anew() {
    let mut cluster = TestCluster::start(4).await;
    cluster.settled(&["c1", "c2", "c3", "c4"]).await;
    cluster.members[3].kill();
    for place in 0..3 {
        let other = (place + 1) % 3;
        let name = cluster.members[place].name().clone();
        cluster.members[other].remove(&name).await;
        eventually("the removed member is free", async || cluster.members[place].is_uninitialised().await).await;
        cluster.members[place].kill();
        cluster.members[place].wipe();
        let token = cluster.members[other].token(&name).await;
        cluster.members[place].start_again().await;
        cluster.members[place].join(&token).await.unwrap();
    }
    cluster.members[0].sql("CREATE TABLE t (a)").await;
    cluster.members[3].start_again().await;
    eventually("it writes", async || cluster.members[3].try_sql("INSERT INTO t VALUES (1)").await).await;
    cluster.settled(&["c1", "c2", "c3", "c4"]).await;
}
