//! Joins under difficulties: many at once, beside members that are down, by old tokens, under names and addresses that are taken.

use cluster_tests::{Daemon, TestCluster, eventually};
use microcluster_client::{Error, Role, TokenRequest};
use tokio::task::JoinSet;

#[tokio::test]
async fn five_members_join_at_once_under_names_of_their_own() {
    let mut cluster = TestCluster::start(1).await;
    let mut joins = JoinSet::new();
    for number in 2..=6 {
        let joiner = Daemon::start(&format!("c{number}")).await;
        let token = cluster.members[0].token(joiner.name()).await;
        joins.spawn(async move {
            joiner.join(&token).await.unwrap_or_else(|e| panic!("{} cannot join: {e}", joiner.name()));
            joiner
        });
    }
    cluster.members.extend(joins.join_all().await);
    let names = ["c1", "c2", "c3", "c4", "c5", "c6"];
    cluster.settled(&names).await;
    assert_eq!(cluster.members[0].client().tokens().await.unwrap(), [], "all tokens are spent");
    let ids = cluster.members[0].sql("SELECT DISTINCT id FROM core_cluster_members").await;
    assert_eq!(ids.len(), names.len(), "every one has its own Raft id");
    cluster.members[5].sql("CREATE TABLE t (a)").await;
    cluster.replicas_agree().await;
}

/// A token for one name, used twice at the same time: one is in, the other is told why not, and is free.
#[tokio::test]
async fn of_two_with_one_token_one_joins() {
    let mut cluster = TestCluster::start(1).await;
    let (one, other) = (Daemon::start("c2").await, Daemon::start("c2").await);
    let token = cluster.members[0].token(one.name()).await;
    let joined = tokio::join!(one.join(&token), other.join(&token));
    let (winner, loser, error) = match joined {
        (Ok(()), Err(e)) => (one, other, e),
        (Err(e), Ok(())) => (other, one, e),
        other => panic!("{other:?}"),
    };
    assert!(matches!(error, Error::Status { code: 404 | 409, .. }), "{error:?}");
    loser.is_uninitialised().await.unwrap();
    cluster.members.push(winner);
    cluster.settled(&["c1", "c2"]).await;
    // Again, with everything decided.
    let error = loser.join(&token).await.unwrap_err();
    assert_eq!(error.code(), Some(404), "{error}");
    assert!(error.to_string().contains("microctl tokens add"), "{error}");
}

/// The token names members that are gone by now, and one that is left.
#[tokio::test]
async fn a_token_of_other_days_is_good_while_one_of_its_members_is_left() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    let joiner = Daemon::start("c9").await;
    let token = cluster.members[0].token(joiner.name()).await;
    cluster.add("c4").await;
    cluster.add("c5").await;
    for name in ["c1", "c2"] {
        let leaver = cluster.members.remove(0);
        assert_eq!(leaver.name(), name);
        cluster.members[0].remove(leaver.name()).await;
        eventually("the removed member is free", async || leaver.is_uninitialised().await).await;
    }
    joiner.join(&token).await.unwrap();
    cluster.members.push(joiner);
    cluster.settled(&["c3", "c4", "c5", "c9"]).await;
}

#[tokio::test]
async fn members_join_while_others_are_down() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    let down = cluster.follower().await;
    cluster.members[down].kill();
    let first = cluster.leader().await;
    for name in ["c4", "c5"] {
        let joiner = Daemon::start(name).await;
        joiner.join(&cluster.members[first].token(joiner.name()).await).await.unwrap();
        cluster.members.push(joiner);
    }
    // It learns of both from the log, whoever leads by then.
    let leader = cluster.leader().await;
    if leader < 3 {
        assert_eq!(cluster.members[leader].stop().await.code(), Some(0));
        cluster.members[leader].spawn();
    }
    cluster.members[down].start_again().await;
    cluster.settled(&["c1", "c2", "c3", "c4", "c5"]).await;
    cluster.replicas_agree().await;
}

/// A member that is down keeps its name and its address: both are refused to others, with the reason.
#[tokio::test]
async fn the_name_and_the_address_of_a_member_that_is_down_are_taken() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    let down = cluster.follower().await;
    cluster.members[down].kill();
    let (name, address) = (cluster.members[down].name().clone(), cluster.members[down].address());
    let other = cluster.leader().await;
    let request = TokenRequest { name: name.clone(), expire_after: None };
    let error = cluster.members[other].client().add_token(&request).await.unwrap_err();
    assert_eq!(error.code(), Some(409), "{error}");
    assert!(error.to_string().contains(&format!("microctl cluster remove {name}")), "{error}");
    let mut joiner = Daemon::at("c4", address);
    joiner.start_again().await;
    let error = joiner.join(&cluster.members[other].token(joiner.name()).await).await.unwrap_err();
    assert_eq!(error.code(), Some(409), "{error}");
    assert!(error.to_string().contains(&address.to_string()) && error.to_string().contains(name.as_str()), "{error}");
    joiner.is_uninitialised().await.unwrap();
    drop(joiner);
    cluster.members[down].start_again().await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    assert!(cluster.any().members().await.unwrap().iter().all(|member| member.role == Role::Voter));
}
