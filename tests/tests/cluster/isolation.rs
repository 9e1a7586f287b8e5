//! Members that are cut off, or stand still: nobody waits for them, they know that they are alone, and all is well when they
//! are back. A process that is stopped answers nothing and refuses nothing, like a host whose packets are dropped.

use std::time::{Duration, Instant};

use cluster_tests::{DEADLINE, Daemon, Network, TestCluster, eventually, microctl, self_signed, until};
use microcluster_client::{Client, MemberStatus, Role};
use rustix::process::Signal;

/// How much longer a list may take when a member does not answer, and what a busy machine may add.
const LIST_DELAY_MAX: Duration = Duration::from_millis(1_000);
const SLACK: Duration = Duration::from_millis(500);
/// How long a write or a read may take beside a member that does not answer. A second would show that it is waited for.
const WORK_MAX: Duration = Duration::from_millis(900);
/// How soon others write again after the leader was cut off, and how soon it knows that it is alone.
const RECOVERY_MAX: Duration = Duration::from_secs(4);
/// How often what is to be soon is tried: a busy machine makes one round long now and then.
const ROUNDS_MAX: u32 = 3;
/// How long a write without a quorum may take to be refused: as long as the database looks for one.
const REFUSAL_MAX: Duration = Duration::from_secs(12);
/// How soon all is well when a host is back.
const HEAL_MAX: Duration = Duration::from_secs(10);
/// How much longer it may take to replace a certificate: all members that answer have it then.
const CERTIFICATE_DELAY_MAX: Duration = Duration::from_millis(1_000);
/// How long a join or a removal may take beside a member that does not answer; it is waited for once.
const CHANGE_MAX: Duration = Duration::from_millis(2_500);
/// How much longer a join may take: the joiner asks that one first, and the next one after a second.
const ASK_DELAY_MAX: Duration = Duration::from_millis(1_500);
/// The same when that is the leader: another one has to be elected.
const LEADERLESS_CHANGE_MAX: Duration = Duration::from_secs(10);

async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let begun = Instant::now();
    (work.await, begun.elapsed())
}

/// The shortest of three times: a busy machine makes one long now and then, who waits for a member makes all of them long.
async fn shortest<T, F: AsyncFnMut() -> T>(mut work: F) -> (T, Duration) {
    let first = timed(work()).await;
    let (second, third) = (timed(work()).await.1, timed(work()).await.1);
    (first.0, first.1.min(second).min(third))
}

/// Nobody but the list waits for a member that does not answer, and the list not for long.
async fn nobody_waits(cluster: &TestCluster, absent: usize) {
    let name = cluster.members[absent].name().clone();
    for (place, member) in cluster.members.iter().enumerate().filter(|(place, _)| *place != absent) {
        let (listed, time) = shortest(async || member.members().await.unwrap()).await;
        assert!(time <= LIST_DELAY_MAX + SLACK, "{}: the list takes {time:?}", member.name());
        for other in &listed {
            let expected = if other.name == name { MemberStatus::Unreachable } else { MemberStatus::Online };
            assert_eq!(other.status, expected, "{} as {} sees it", other.name, member.name());
        }
        let (_, time) = shortest(async || member.client().cluster_member(&name).await.unwrap()).await;
        assert!(time <= LIST_DELAY_MAX + SLACK, "{}: to show it takes {time:?}", member.name());
        let client = member.client();
        let works: [(&str, Duration); 5] = [
            ("a write", shortest(async || member.sql(&format!("INSERT INTO t VALUES ({place})")).await).await.1),
            ("a read", shortest(async || member.sql("SELECT count(*) FROM t").await).await.1),
            ("the status", shortest(async || member.status().await.unwrap()).await.1),
            ("the tokens", shortest(async || client.tokens().await.unwrap()).await.1),
            ("readiness", shortest(async || eventually("it is ready", async || client.ready().await).await).await.1),
        ];
        for (what, time) in works {
            assert!(time <= WORK_MAX, "{}: {what} takes {time:?}", member.name());
        }
    }
}

/// Waits until a member knows that it is alone, and says how long that took.
async fn knows_that_it_is_alone(member: &Daemon) -> Duration {
    let begun = Instant::now();
    eventually("it knows that it is alone", async || match member.client().ready().await {
        Err(e) if e.code() == Some(503) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let took = begun.elapsed();
    println!("it knows that it is alone after {took:?}");
    took
}

/// A member that knows that it is alone: it says so, refuses writes in time, and reads what it has.
async fn is_alone(member: &Daemon) {
    assert!(!member.status().await.unwrap().quorum);
    let message = microctl(member, &["waitready", "--timeout", "1"]).await.failed();
    assert!(message.contains("quorum"), "{message}");
    let (refused, time) = timed(member.try_sql("INSERT INTO t VALUES (-1)")).await;
    let error = refused.unwrap_err();
    assert_eq!(error.code(), Some(503), "{error}");
    assert!(time <= REFUSAL_MAX, "it is refused only after {time:?}");
    member.sql_local("SELECT count(*) FROM t").await.unwrap();
    let (listed, time) = shortest(async || member.members().await.unwrap()).await;
    assert!(time <= LIST_DELAY_MAX + SLACK, "the list takes {time:?}");
    assert_eq!(listed.iter().filter(|other| other.status == MemberStatus::Online).count(), 1);
}

/// Waits until these write again, and says how long that took.
async fn write_again(clients: impl Iterator<Item = Client>) -> Duration {
    let begun = Instant::now();
    for client in clients {
        let client = client.timeout(DEADLINE);
        let request = microcluster_client::SqlRequest::new("INSERT INTO t VALUES (0)");
        eventually("it writes again", async || client.sql(&request).await).await;
    }
    let took = begun.elapsed();
    println!("the others write again after {took:?}");
    took
}

#[tokio::test]
async fn nobody_waits_for_a_member_that_stands_still() {
    let cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    cluster.members[0].sql("CREATE TABLE t (a)").await;
    let still = cluster.follower().await;
    cluster.members[still].signal(Signal::STOP);
    nobody_waits(&cluster, still).await;
    let through = cluster.members[(still + 1) % 3].client();
    for name in ["cluster", "metrics"] {
        let pair = self_signed("cluster.example");
        let set = async || through.set_certificate(&name.parse().unwrap(), &pair).await.unwrap();
        let ((), time) = shortest(set).await;
        assert!(time <= CERTIFICATE_DELAY_MAX + SLACK, "to replace the certificate {name} takes {time:?}");
    }
    cluster.members[still].signal(Signal::CONT);
    cluster.settled(&["c1", "c2", "c3"]).await;
}

#[tokio::test]
async fn a_leader_that_stands_still_is_replaced() {
    let cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    cluster.members[0].sql("CREATE TABLE t (a)").await;
    for round in 1..=ROUNDS_MAX {
        let still = cluster.leader().await;
        let others =
            || cluster.members.iter().enumerate().filter(|(place, _)| *place != still).map(|(_, member)| member);
        cluster.members[still].signal(Signal::STOP);
        // At once, before anybody knows.
        for member in others() {
            let (listed, time) = timed(member.members()).await;
            assert!(time <= LIST_DELAY_MAX * 2 + SLACK, "{}: the list takes {time:?}", member.name());
            assert_eq!(listed.unwrap().len(), 3);
        }
        let took = write_again(others().map(Daemon::client)).await;
        nobody_waits(&cluster, still).await;
        cluster.members[still].signal(Signal::CONT);
        cluster.settled(&["c1", "c2", "c3"]).await;
        if took <= RECOVERY_MAX {
            break;
        }
        assert!(round < ROUNDS_MAX, "the others write only after {took:?}");
    }
    cluster.replicas_agree().await;
}

/// The member that stands still is the one that made the token, so it is tried first; once it leads, once not.
#[tokio::test]
async fn members_come_and_go_beside_one_that_stands_still() {
    let cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    for (is_leader, most) in [(false, CHANGE_MAX), (true, LEADERLESS_CHANGE_MAX)] {
        for round in 1..=ROUNDS_MAX {
            let (joining, removal) = come_and_go(&cluster, is_leader).await;
            println!("leader: {is_leader}; joined after {joining:?}, removed after {removal:?}");
            if joining <= most + ASK_DELAY_MAX && removal <= most {
                break;
            }
            assert!(round < ROUNDS_MAX, "the join takes {joining:?}, the removal {removal:?}");
        }
    }
    cluster.replicas_agree().await;
}

/// How long a join and a removal take beside a member that stands still.
async fn come_and_go(cluster: &TestCluster, is_leader: bool) -> (Duration, Duration) {
    let joiner = Daemon::start("c4").await;
    let still = if is_leader { cluster.leader().await } else { cluster.follower().await };
    let token = cluster.members[still].token(joiner.name()).await;
    cluster.members[still].signal(Signal::STOP);
    let (joined, joining) = timed(joiner.join(&token)).await;
    joined.unwrap();
    let ((), removal) = timed(cluster.members[(still + 1) % 3].remove(joiner.name())).await;
    eventually("the removed member is free", async || joiner.is_uninitialised().await).await;
    cluster.members[still].signal(Signal::CONT);
    cluster.settled(&["c1", "c2", "c3"]).await;
    (joining, removal)
}

/// It has admitted the joiner and knows what to do; another one has to do it.
#[tokio::test]
async fn a_leader_that_stands_still_in_the_middle_of_a_join_is_not_waited_for() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    let leader = cluster.leader().await;
    let other = &cluster.members[(leader + 1) % 3];
    let joiner = Daemon::start("c4").await;
    let token = cluster.members[leader].token(joiner.name()).await;
    let joined = {
        let mut join = std::pin::pin!(joiner.join(&token));
        let is_admitted = async || {
            let rows = other.sql_local("SELECT 1 FROM core_cluster_members WHERE name = 'c4'").await;
            rows.is_ok_and(|rows| !rows.is_empty())
        };
        let early = until(join.as_mut(), is_admitted).await;
        cluster.members[leader].signal(Signal::STOP);
        match early {
            Some(joined) => (joined, Duration::ZERO),
            None => timed(join).await,
        }
    };
    println!("joined {:?} after the leader stood still", joined.1);
    joined.0.unwrap();
    assert!(joined.1 <= LEADERLESS_CHANGE_MAX, "the join takes {:?} more", joined.1);
    cluster.members[leader].signal(Signal::CONT);
    cluster.members.push(joiner);
    cluster.settled(&["c1", "c2", "c3", "c4"]).await;
}

#[tokio::test]
async fn a_host_whose_packets_are_dropped_is_missed_by_nobody_and_comes_back() {
    let Some(network) = Network::new(3).await else { return };
    let cluster =
        TestCluster::of((0..3).map(|host| Daemon::on(&format!("c{}", host + 1), &network, host)).collect()).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    cluster.members[0].sql("CREATE TABLE t (a)").await;
    for round in 1..=ROUNDS_MAX {
        let absent = cluster.follower().await;
        network.cut_off(absent);
        let ((), took) = tokio::join!(nobody_waits(&cluster, absent), knows_that_it_is_alone(&cluster.members[absent]));
        is_alone(&cluster.members[absent]).await;
        nobody_waits(&cluster, absent).await;
        network.heal(absent);
        let (_, time) = timed(cluster.settled(&["c1", "c2", "c3"])).await;
        println!("all is well {time:?} after it is back");
        assert!(time <= HEAL_MAX, "it takes {time:?}");
        if took <= RECOVERY_MAX {
            break;
        }
        assert!(round < ROUNDS_MAX, "it knows only after {took:?}");
    }
    cluster.replicas_agree().await;
}

#[tokio::test]
async fn a_leader_whose_packets_are_dropped_is_replaced_and_comes_back() {
    let Some(network) = Network::new(3).await else { return };
    let cluster =
        TestCluster::of((0..3).map(|host| Daemon::on(&format!("c{}", host + 1), &network, host)).collect()).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    cluster.members[0].sql("CREATE TABLE t (a)").await;
    for round in 1..=ROUNDS_MAX {
        let absent = cluster.leader().await;
        network.cut_off(absent);
        let others = cluster.members.iter().enumerate().filter(|(place, _)| *place != absent);
        let others = write_again(others.map(|(_, member)| member.client()));
        let (writes, knows) = tokio::join!(others, knows_that_it_is_alone(&cluster.members[absent]));
        is_alone(&cluster.members[absent]).await;
        nobody_waits(&cluster, absent).await;
        network.heal(absent);
        cluster.settled(&["c1", "c2", "c3"]).await;
        if writes.max(knows) <= RECOVERY_MAX {
            break;
        }
        assert!(round < ROUNDS_MAX, "the others write only after {writes:?}, it knows only after {knows:?}");
    }
    cluster.replicas_agree().await;
    let refused = cluster.any().sql("SELECT count(*) FROM t WHERE a = -1").await;
    assert_eq!(refused, [[serde_json::json!(0)]], "what was refused without a quorum is not there");
}

/// Two of five on one side, three on the other: who has most of the voters goes on, and the other side catches up.
#[tokio::test]
async fn the_side_with_most_voters_goes_on() {
    let Some(network) = Network::new(5).await else { return };
    let cluster =
        TestCluster::of((0..5).map(|host| Daemon::on(&format!("c{}", host + 1), &network, host)).collect()).await;
    let all = ["c1", "c2", "c3", "c4", "c5"];
    cluster.settled(&all).await;
    cluster.members[0].sql("CREATE TABLE t (a)").await;
    for round in 1..=ROUNDS_MAX {
        // One voter, the leader, and one that stands by.
        let leader = cluster.leader().await;
        let members = cluster.any().members().await.unwrap();
        let minority = [leader, members.iter().position(|member| member.role == Role::StandBy).unwrap()];
        network.set_apart(&minority);
        let majority = || cluster.members.iter().enumerate().filter(|(place, _)| !minority.contains(place));
        let took = write_again(majority().map(|(_, member)| member.client())).await;
        for place in minority {
            eventually("it knows that it is without a quorum", async || {
                match cluster.members[place].client().ready().await {
                    Err(e) if e.code() == Some(503) => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
        }
        for (_, member) in majority() {
            member.client().ready().await.unwrap();
        }
        for place in minority {
            network.heal(place);
        }
        cluster.settled(&all).await;
        if took <= RECOVERY_MAX {
            break;
        }
        assert!(round < ROUNDS_MAX, "the others write only after {took:?}");
    }
    cluster.replicas_agree().await;
}

/// It was removed while it was cut off.
#[tokio::test]
async fn a_host_that_comes_back_finds_out_that_it_was_removed() {
    let Some(network) = Network::new(3).await else { return };
    let mut cluster =
        TestCluster::of((0..3).map(|host| Daemon::on(&format!("c{}", host + 1), &network, host)).collect()).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    let absent = cluster.leader().await;
    network.cut_off(absent);
    let removed = cluster.members.remove(absent);
    cluster.any().client().remove_cluster_member(removed.name(), true).await.unwrap();
    network.heal(absent);
    eventually("it finds out", async || removed.is_uninitialised().await).await;
    removed.join(&cluster.any().token(removed.name()).await).await.unwrap();
    cluster.members.push(removed);
    cluster.settled(&["c1", "c2", "c3"]).await;
}
