//! Who votes: members that come in, failure domains, voters that die and are replaced.

use cluster_tests::{Daemon, TestCluster, Writers, eventually};
use microcluster_client::{DaemonConfigUpdate, Role};
use rustix::process::Signal;

/// The names of the members with a role, as one that runs sees it.
async fn with(cluster: &TestCluster, role: Role) -> Result<Vec<String>, String> {
    let members = cluster.any().members().await.map_err(|e| e.to_string())?;
    Ok(members.into_iter().filter(|member| member.role == role).map(|member| member.name.to_string()).collect())
}

/// Waits until exactly these vote.
async fn voters_are(cluster: &TestCluster, expected: &[&str]) {
    eventually(&format!("{expected:?} vote"), async || {
        let voters = with(cluster, Role::Voter).await?;
        (voters == expected).then_some(()).ok_or_else(|| format!("{voters:?} do"))
    })
    .await;
}

fn place(cluster: &TestCluster, name: &str) -> usize {
    cluster.members.iter().position(|member| member.name() == name).expect("a member of that name")
}

/// Kills the leader, or somebody else who votes, and says who that was.
async fn kill_voter(cluster: &mut TestCluster, is_leader: bool) -> String {
    let leader = cluster.leader().await;
    let voters = with(cluster, Role::Voter).await.unwrap();
    let is_victim = |place: &usize| {
        let member = &cluster.members[*place];
        member.is_running()
            && voters.iter().any(|name| member.name() == name.as_str())
            && (*place == leader) == is_leader
    };
    let victim = (0..cluster.members.len()).find(is_victim).expect("a voter that runs");
    cluster.members[victim].kill();
    cluster.members[victim].name().to_string()
}

#[tokio::test]
async fn seven_members_are_three_voters_three_stand_bys_and_a_spare() {
    let cluster = TestCluster::start(7).await;
    cluster.settled(&["c1", "c2", "c3", "c4", "c5", "c6", "c7"]).await;
    for (role, expected) in
        [(Role::Voter, vec!["c1", "c2", "c3"]), (Role::StandBy, vec!["c4", "c5", "c6"]), (Role::Spare, vec!["c7"])]
    {
        assert_eq!(with(&cluster, role).await.unwrap(), expected);
    }
}

/// One after the other two of three voters die, the second time the leader. Without the stand-by that is the end.
#[tokio::test]
async fn a_stand_by_takes_over_for_a_dead_voter() {
    let mut cluster = TestCluster::start(4).await;
    cluster.settled(&["c1", "c2", "c3", "c4"]).await;
    let mut writers = Writers::start(&cluster, 2).await;
    writers.advance(10).await;
    let first = kill_voter(&mut cluster, false).await;
    let expected: Vec<&str> = ["c1", "c2", "c3", "c4"].into_iter().filter(|name| *name != first).collect();
    voters_are(&cluster, &expected).await;
    writers.advance(10).await;
    let second = kill_voter(&mut cluster, true).await;
    writers.advance(10).await;
    // Nobody is left to replace it: it keeps its vote, and comes back to it.
    voters_are(&cluster, &expected).await;
    // The one with the vote first: while it is down the other one may get it.
    for name in [&second, &first] {
        let place = place(&cluster, name);
        cluster.members[place].start_again().await;
    }
    writers.advance(10).await;
    cluster.settled(&["c1", "c2", "c3", "c4"]).await;
    voters_are(&cluster, &expected).await;
    assert_eq!(with(&cluster, Role::StandBy).await.unwrap(), [first], "it finds its place taken");
    let ledger = writers.stop().await;
    for member in &cluster.members {
        ledger.check(member).await;
    }
    cluster.replicas_agree().await;
}

/// Three of five die one after another, and two are enough to go on with.
#[tokio::test]
async fn voters_die_one_after_another_and_writes_go_on() {
    let mut cluster = TestCluster::start(5).await;
    cluster.settled(&["c1", "c2", "c3", "c4", "c5"]).await;
    let mut writers = Writers::start(&cluster, 2).await;
    writers.advance(5).await;
    for round in 0..2 {
        let dead = kill_voter(&mut cluster, round == 0).await;
        eventually("the dead member votes no more", async || {
            let voters = with(&cluster, Role::Voter).await?;
            (voters.len() == 3 && !voters.contains(&dead)).then_some(()).ok_or_else(|| format!("{voters:?} vote"))
        })
        .await;
        writers.advance(5).await;
    }
    kill_voter(&mut cluster, true).await;
    writers.advance(5).await;
    for member in cluster.members.iter_mut().filter(|member| !member.is_running()) {
        member.start_again().await;
    }
    cluster.settled(&["c1", "c2", "c3", "c4", "c5"]).await;
    let ledger = writers.stop().await;
    for member in &cluster.members {
        ledger.check(member).await;
    }
    cluster.replicas_agree().await;
}

/// A voter that stands still is as good as dead, and takes nobody's place when it goes on.
#[tokio::test]
async fn a_voter_that_stands_still_is_replaced() {
    let cluster = TestCluster::start(4).await;
    cluster.settled(&["c1", "c2", "c3", "c4"]).await;
    let leader = cluster.leader().await;
    let still = (0..3).find(|place| *place != leader).unwrap();
    cluster.members[still].signal(Signal::STOP);
    let name = cluster.members[still].name().to_string();
    let expected: Vec<&str> = ["c1", "c2", "c3", "c4"].into_iter().filter(|other| *other != name).collect();
    eventually("it is replaced", async || {
        let members = cluster.members[leader].members().await.map_err(|e| e.to_string())?;
        let voters: Vec<_> =
            members.iter().filter(|member| member.role == Role::Voter).map(|m| m.name.as_str()).collect();
        (voters == expected).then_some(()).ok_or_else(|| format!("{voters:?} vote"))
    })
    .await;
    cluster.members[still].signal(Signal::CONT);
    cluster.settled(&["c1", "c2", "c3", "c4"]).await;
    voters_are(&cluster, &expected).await;
}

#[tokio::test]
async fn voters_are_of_different_failure_domains() {
    let is_seen = a_voter_is_exchanged().await || a_voter_is_exchanged().await || a_voter_is_exchanged().await;
    assert!(is_seen, "another one leads each time");
}

/// All voters in one domain, the stand-by in another: one voter is exchanged, and not the leader. Says whether the same one leads
/// before and after it; else it is not known who had to go.
async fn a_voter_is_exchanged() -> bool {
    let cluster = TestCluster::start(4).await;
    cluster.settled(&["c1", "c2", "c3", "c4"]).await;
    let leader = cluster.leader().await;
    for (place, domain) in [(3, 1), (0, 1), (1, 1), (2, 1), (3, 2)] {
        let update = DaemonConfigUpdate { failure_domain: Some(domain), ..Default::default() };
        cluster.members[place].client().change_daemon_config(&update).await.unwrap();
        // Else the leader may see them in another order.
        let row = format!("SELECT failure_domain FROM core_cluster_members WHERE name = 'c{}'", place + 1);
        eventually("its row has it", async || {
            let rows = cluster.any().try_sql(&row).await.map_err(|e| e.to_string())?;
            (rows == [[domain]]).then_some(()).ok_or_else(|| format!("{rows:?}"))
        })
        .await;
    }
    eventually("c4 votes in place of another one", async || {
        let voters = with(&cluster, Role::Voter).await?;
        let is_so = voters.len() == 3 && voters.iter().any(|name| name == "c4");
        is_so.then_some(()).ok_or_else(|| format!("{voters:?} vote"))
    })
    .await;
    if cluster.leader().await != leader {
        return false;
    }
    let gone = if leader == 2 { "c2" } else { "c3" };
    let expected: Vec<&str> = ["c1", "c2", "c3", "c4"].into_iter().filter(|name| *name != gone).collect();
    voters_are(&cluster, &expected).await;
    assert_eq!(with(&cluster, Role::StandBy).await.unwrap(), [gone]);
    true
}

#[tokio::test]
async fn how_many_vote_can_be_chosen() {
    let mut first = Daemon::new("c1");
    let mut second = Daemon::new("c2");
    let mut third = Daemon::new("c3");
    for daemon in [&mut first, &mut second, &mut third] {
        daemon.arguments(["--voters", "1", "--stand-bys", "1"]);
        daemon.start_again().await;
    }
    first.bootstrap().await;
    for joiner in [&second, &third] {
        joiner.join(&first.token(joiner.name()).await).await.unwrap();
    }
    let mut cluster = TestCluster { members: vec![first, second, third] };
    for (role, expected) in [(Role::Voter, "c1"), (Role::StandBy, "c2"), (Role::Spare, "c3")] {
        assert_eq!(with(&cluster, role).await.unwrap(), [expected]);
    }
    // With others settings after a restart the roles follow.
    for member in &mut cluster.members {
        assert_eq!(member.stop().await.code(), Some(0));
        member.arguments(["--voters", "3"]);
        member.spawn();
    }
    for member in &mut cluster.members {
        member.wait_ready().await;
    }
    cluster.settled(&["c1", "c2", "c3"]).await;
}
