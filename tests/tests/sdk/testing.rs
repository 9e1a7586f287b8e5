//! The test kit itself: members that are killed, stand still and come back.

use std::time::Duration;

use microcluster::db::{Consistency, Error, rusqlite};
use microcluster::testing::{Cluster, Member, eventually};

async fn write(member: &Member, value: i64) -> Result<u64, Error> {
    member.state().database().unwrap().execute("INSERT INTO t VALUES (?1)", (value,)).await
}

async fn count(member: &Member) -> Result<i64, microcluster::AppError> {
    let results = member.app().sql("SELECT count(*) FROM t").await?;
    let rows = results.results.unwrap_or_default().pop().and_then(|result| result.rows).unwrap_or_default();
    Ok(rows[0][0].as_i64().unwrap())
}

async fn local_count(member: &Member) -> i64 {
    let count =
        |connection: &rusqlite::Connection| connection.query_row("SELECT count(*) FROM t", (), |row| row.get(0));
    member.state().database().unwrap().read(Consistency::Local, count).await.unwrap()
}

#[tokio::test]
async fn a_leader_that_stands_still_is_replaced_and_comes_back() {
    let mut cluster = Cluster::start(3, |builder| builder.schema(["CREATE TABLE t (a)"])).await;
    let leader = cluster.leader().await;
    write(cluster.member(leader), 1).await.unwrap();
    cluster.member_mut(leader).pause();
    let other = cluster.member((leader + 1) % 3);
    eventually("another one leads, and writes go on", async || write(other, 2).await).await;
    let silent = cluster.member(leader).client().timeout(Duration::from_millis(200));
    assert!(silent.ready().await.is_err(), "it answers nobody");
    cluster.member_mut(leader).resume();
    let back = cluster.member(leader);
    eventually("it has what was written", async || match count(back).await {
        Ok(2) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

#[tokio::test]
async fn a_leader_behind_a_partition_is_replaced_and_catches_up() {
    let mut cluster = Cluster::start(3, |builder| builder.schema(["CREATE TABLE t (a)"])).await;
    let leader = cluster.leader().await;
    write(cluster.member(leader), 1).await.unwrap();
    cluster.partition(&[leader]);
    let other = cluster.member((leader + 1) % 3);
    eventually("another one leads, and writes go on", async || write(other, 2).await).await;
    let alone = cluster.member(leader);
    let refused = write(alone, 3).await.expect_err("it has no majority");
    // Unknown where it was taken in before the leader knew that it was alone.
    assert!(matches!(refused, Error::NoQuorum { .. } | Error::OutcomeUnknown { .. }), "{refused:?}");
    assert_eq!(local_count(alone).await, 1, "it serves what it has");
    cluster.heal();
    let back = cluster.member(leader);
    eventually("it has what was written, and no more", async || match local_count(back).await {
        2 => Ok(()),
        other => Err(other),
    })
    .await;
    write(back, 4).await.unwrap();
}

#[tokio::test]
async fn a_member_that_is_killed_or_stopped_comes_back_with_everything() {
    let mut cluster = Cluster::start(1, |builder| builder.schema(["CREATE TABLE t (a)"])).await;
    for turn in 1..=3 {
        write(cluster.member(0), turn).await.unwrap();
        if turn == 2 {
            cluster.member_mut(0).stop().await;
        } else {
            cluster.member_mut(0).kill();
        }
        cluster.member_mut(0).start().await;
        let member = cluster.member(0);
        let found = eventually("it leads itself again", async || count(member).await).await;
        assert_eq!(found, turn);
    }
}
