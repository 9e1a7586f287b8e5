//! Members that are removed, whoever they are and whatever state they are in, and come back.

use cluster_tests::{Daemon, Payload, Target, TestCluster, Writers, eventually, microctl};
use microcluster_client::Name;
use rustix::process::Signal;
use serde_json::json;

/// How a member that is to go is found, and who is asked to remove it.
#[derive(Clone, Copy, Debug)]
enum Case {
    /// A follower, through another follower.
    Follower,
    /// The leader, through a follower.
    Leader,
    /// A follower, through itself.
    FollowerItself,
    /// The leader, through itself.
    LeaderItself,
}

/// Every kind of member, one after another: it is answered, becomes free in its process, is refused everywhere, and joins
/// again under the same name. Writers never stop.
#[tokio::test]
async fn members_of_every_kind_are_removed_and_join_again() {
    let mut cluster = TestCluster::start(4).await;
    cluster.settled(&["c1", "c2", "c3", "c4"]).await;
    let mut writers = Writers::start(&cluster, 2).await;
    for case in [Case::Follower, Case::Leader, Case::FollowerItself, Case::LeaderItself] {
        println!("{case:?}");
        let leader = cluster.leader().await;
        let victim = match case {
            Case::Follower | Case::FollowerItself => (leader + 1) % 4,
            Case::Leader | Case::LeaderItself => leader,
        };
        let through = match case {
            Case::Follower | Case::Leader => (leader + 2) % 4,
            Case::FollowerItself | Case::LeaderItself => victim,
        };
        let name = cluster.members[victim].name().clone();
        cluster.members[through].remove(&name).await;
        let gone = cluster.members.remove(victim);
        eventually("the removed member is free", async || gone.is_uninitialised().await).await;
        for member in &cluster.members {
            is_a_stranger(member, &gone).await;
            assert!(!member.member_names().await.unwrap().contains(&name.to_string()));
        }
        writers.advance(5).await;
        let token = cluster.members[0].token(&name).await;
        gone.join(&token).await.unwrap_or_else(|e| panic!("{case:?}: {e}"));
        cluster.members.insert(victim, gone);
        cluster.settled(&["c1", "c2", "c3", "c4"]).await;
        writers.advance(5).await;
    }
    let ledger = writers.stop().await;
    for member in &cluster.members {
        ledger.check(member).await;
    }
    cluster.replicas_agree().await;
}

#[tokio::test]
async fn a_dead_member_is_removed_with_force_alone() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    for is_leader in [false, true] {
        let victim = if is_leader { cluster.leader().await } else { cluster.follower().await };
        let mut dead = cluster.members.remove(victim);
        dead.kill();
        // Whoever is asked: the leader, or one that passes it on while another one is being elected.
        for member in &cluster.members {
            let error = member.client().remove_cluster_member(dead.name(), false).await.unwrap_err();
            assert_eq!(error.code(), Some(503), "{error}");
            assert!(error.to_string().contains("--force"), "{error}");
        }
        microctl(&cluster.members[0], &["cluster", "remove", dead.name().as_str(), "--force"]).await.done();
        let left: Vec<_> = cluster.members.iter().map(|member| member.name().to_string()).collect();
        cluster.settled(&left.iter().map(String::as_str).collect::<Vec<_>>()).await;
        dead.wipe();
        dead.start_again().await;
        dead.join(&cluster.members[0].token(dead.name()).await).await.unwrap();
        cluster.members.insert(victim, dead);
        cluster.settled(&["c1", "c2", "c3"]).await;
    }
}

/// Of those who would be left no majority could agree to anything any more: the dead one goes first.
#[tokio::test]
async fn a_member_that_is_needed_is_not_removed() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    let dead = cluster.follower().await;
    let mut dead = cluster.members.remove(dead);
    dead.kill();
    let leader = cluster.leader().await;
    let (leader, needed) = (&cluster.members[leader], &cluster.members[1 - leader]);
    let remove = async |name: &Name, force: bool| leader.client().remove_cluster_member(name, force).await;
    for force in [false, true] {
        let refused = remove(needed.name(), force).await.unwrap_err();
        assert_eq!(refused.code(), Some(409), "{refused}");
        assert!(
            [needed.name(), dead.name()].iter().all(|name| refused.to_string().contains(name.as_str())),
            "{refused}"
        );
    }
    leader.sql("CREATE TABLE t (a)").await;
    remove(dead.name(), true).await.unwrap();
    leader.remove(needed.name()).await;
    leader.sql("INSERT INTO t VALUES (1)").await;
}

#[tokio::test]
async fn three_members_become_two_and_one_and_three_again() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    cluster.members[0].sql("CREATE TABLE t (a); INSERT INTO t VALUES (1)").await;
    let mut gone = Vec::new();
    for _ in 0..2 {
        // The leader, twice: the one that is left has never led.
        let leader = cluster.leader().await;
        let leaver = cluster.members.remove(leader);
        cluster.members[0].remove(leaver.name()).await;
        eventually("the removed member is free", async || leaver.is_uninitialised().await).await;
        cluster.any().sql("INSERT INTO t SELECT max(a) + 1 FROM t").await;
        gone.push(leaver);
    }
    let last = &cluster.members[0];
    let error = last.client().remove_cluster_member(last.name(), true).await.unwrap_err();
    assert_eq!(error.code(), Some(409), "{error}");
    assert!(error.to_string().contains("only member"), "{error}");
    for leaver in gone {
        leaver.join(&cluster.members[0].token(leaver.name()).await).await.unwrap();
        cluster.members.push(leaver);
    }
    cluster.settled(&["c1", "c2", "c3"]).await;
    for member in &cluster.members {
        assert_eq!(member.sql("SELECT max(a) FROM t").await, [[json!(3)]]);
    }
}

/// Nobody can tell it. When it is back it finds out by itself, leaves its data aside, and can join again.
#[tokio::test]
async fn a_member_that_was_removed_while_it_was_down_finds_out() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    cluster.members[0].sql("CREATE TABLE t (a)").await;
    for is_replaced in [false, true] {
        let victim = cluster.follower().await;
        let mut dead = cluster.members.remove(victim);
        dead.kill();
        cluster.members[0].client().remove_cluster_member(dead.name(), true).await.unwrap();
        if is_replaced {
            // It cannot check any more that the others are of its cluster: all of them have to say it.
            let pair = cluster_tests::self_signed("cluster.example");
            cluster.members[0].client().set_certificate(&"cluster".parse().unwrap(), &pair).await.unwrap();
        }
        dead.spawn();
        eventually("it finds out", async || dead.is_uninitialised().await).await;
        assert!(dead.dir().join("database.removed").is_dir(), "its data is left aside");
        // It stays so after a restart.
        dead.kill();
        dead.start_again().await;
        dead.is_uninitialised().await.unwrap();
        dead.join(&cluster.members[0].token(dead.name()).await).await.unwrap();
        cluster.members.insert(victim, dead);
        cluster.settled(&["c1", "c2", "c3"]).await;
    }
    cluster.replicas_agree().await;
}

/// As one that was cut off from the network while it was removed.
#[tokio::test]
async fn a_member_that_was_removed_while_it_stood_still_finds_out() {
    let mut cluster = TestCluster::start(4).await;
    cluster.settled(&["c1", "c2", "c3", "c4"]).await;
    // One that votes, and one that does not.
    let leader = cluster.leader().await;
    let voter = (0..3).find(|place| *place != leader).unwrap();
    let through = cluster.members[leader].client();
    let still = [cluster.members.remove(3), cluster.members.remove(voter)];
    for member in &still {
        member.signal(Signal::STOP);
        let error = through.remove_cluster_member(member.name(), false).await.unwrap_err();
        assert!(error.to_string().contains("--force"), "{error}");
        through.remove_cluster_member(member.name(), true).await.unwrap();
    }
    for member in &still {
        member.signal(Signal::CONT);
    }
    for member in &still {
        eventually("it finds out", async || member.is_uninitialised().await).await;
    }
    for member in still {
        member.join(&cluster.members[0].token(member.name()).await).await.unwrap();
        cluster.members.push(member);
    }
    cluster.settled(&["c1", "c2", "c3", "c4"]).await;
}

/// However long nobody answers, a member stays one.
#[tokio::test]
async fn an_outage_is_no_removal() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    let last = cluster.follower().await;
    cluster.members[last].kill();
    cluster.members[last].arguments(["--debug"]);
    let others: Vec<usize> = (0..3).filter(|place| *place != last).collect();
    cluster.members[others[0]].kill();
    cluster.members[others[1]].kill();
    cluster.members[last].spawn();
    let member = &cluster.members[last];
    eventually("it has asked in vain", async || {
        let asked = member.log().matches("it is not known that this member was removed").count();
        (asked >= 2).then_some(()).ok_or_else(|| format!("{asked} times"))
    })
    .await;
    assert_eq!(member.status().await.unwrap().members, 3);
    // One that answers and has no quorum either, then the last one.
    for place in others {
        cluster.members[place].spawn();
    }
    cluster.settled(&["c1", "c2", "c3"]).await;
}

/// A member refuses the certificate of a removed one.
async fn is_a_stranger(member: &Daemon, removed: &Daemon) {
    let target = Target::tls(member.address(), Some(&removed.identity()), &member.trust());
    eventually("the removed member is refused", async || {
        match target.send("GET /core/1.0/cluster", Payload::none()).await.status {
            403 => Ok(()),
            other => Err(format!("{} answers {other}", member.name())),
        }
    })
    .await;
}
