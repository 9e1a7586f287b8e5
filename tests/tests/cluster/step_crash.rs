//! `kill -9` at each step of a bootstrap and of a join, of each of those who take part: all ends in "member" or "not a member", and can
//! be repeated. The one that has done the step stands still there when the blow falls, so nobody has got further.

use std::path::Path;

use cluster_tests::{Daemon, TestCluster, eventually, until_held};
use microcluster_client::{Member, Role, Secret};

/// Waits until the daemon is a member in the eyes of a member, or free and forgotten; says whether it is a member.
pub(crate) async fn is_decided(member: &Daemon, subject: &Daemon) -> bool {
    eventually("it is a member, or it is not", async || {
        let members = member.members().await.map_err(|e| e.to_string())?;
        let is_listed = |list: &[Member], role: fn(Role) -> bool| {
            list.iter().any(|listed| listed.name == *subject.name() && role(listed.role))
        };
        match subject.is_uninitialised().await {
            Ok(()) if !is_listed(&members, |_| true) => Ok(false),
            // Its row is dropped in the end; another try replaces it at once.
            Ok(()) if !is_listed(&members, |role| role != Role::Pending) => Ok(false),
            Ok(()) => Err(format!("it is free, and a member for {}: {members:?}", member.name())),
            Err(reason) => {
                let own = subject.members().await.map_err(|e| format!("{reason}; {e}"))?;
                let both =
                    is_listed(&own, |role| role != Role::Pending) && is_listed(&members, |role| role != Role::Pending);
                both.then_some(true).ok_or_else(|| format!("{reason}; {members:?}"))
            }
        }
    })
    .await
}

/// A cluster whose daemons can be held at a step.
pub(crate) async fn steppable_cluster(size: usize) -> TestCluster {
    TestCluster::of((1..=size).map(|number| Daemon::steppable(&format!("c{number}"))).collect()).await
}

#[tokio::test]
async fn a_bootstrap_is_killed_at_each_step() {
    for step in ["certificate made", "database opened", "Raft begun", "first entries", "stored"] {
        let mut daemon = Daemon::steppable("c1");
        daemon.start_again().await;
        assert_eq!(until_held(&[&daemon], step, daemon.bootstrap()).await, Some((0, None)), "{step}");
        daemon.kill();
        daemon.release();
        daemon.start_again().await;
        let is_member = eventually("it is a member or free", async || match daemon.is_uninitialised().await {
            Ok(()) => Ok(false),
            Err(reason) => daemon.members().await.map(|_| true).map_err(|e| format!("{reason}; {e}")),
        })
        .await;
        assert_eq!(is_member, step == "stored", "{step}");
        if !is_member {
            daemon.bootstrap().await;
        }
        daemon.sql("CREATE TABLE t (a)").await;
        daemon.kill();
        daemon.start_again().await;
        assert_eq!(daemon.member_names().await.unwrap(), ["c1"]);
    }
}

/// Who takes part in a join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Party {
    Joiner,
    Leader,
    /// The follower that gave the token and is asked first.
    Passer,
}

/// A step of a join.
#[derive(Clone, Copy, Debug)]
struct Step {
    name: &'static str,
    /// Who does it.
    by: Party,
    /// Whether the joiner has its join record, its database and its configuration then.
    on_disk: [bool; 3],
}

/// In the order in which they are done.
const STEPS: [Step; 13] = {
    use Party::{Joiner, Leader, Passer};
    const fn step(name: &'static str, by: Party, on_disk: [bool; 3]) -> Step {
        Step { name, by, on_disk }
    }
    [
        step("passing on", Passer, [false, false, false]),
        step("admitted", Leader, [false, false, false]),
        step("passed on", Passer, [false, false, false]),
        step("presented", Joiner, [false, false, false]),
        step("recorded", Joiner, [true, false, false]),
        step("opened", Joiner, [true, true, false]),
        step("learner", Leader, [true, true, false]),
        step("voter", Leader, [true, true, false]),
        step("taken in", Leader, [true, true, false]),
        step("confirmed", Joiner, [true, true, false]),
        step("awaited", Joiner, [true, true, false]),
        step("token spent", Joiner, [true, true, false]),
        step("stored", Joiner, [true, true, true]),
    ]
};

impl Step {
    /// Whether it is a member in the end: a join that is recorded goes on, also after a restart, and one that is not ends with its
    /// process. One whose process goes on can be done in time, or not.
    fn outcome(&self, victims: &[Party]) -> Option<bool> {
        let [is_recorded, ..] = self.on_disk;
        (is_recorded || victims.contains(&Party::Joiner)).then_some(is_recorded)
    }
}

fn on_disk(dir: &Path) -> [bool; 3] {
    ["joining.json", "database/log", "daemon.yaml"].map(|file| dir.join(file).exists())
}

/// The third voter: until it is taken in, nothing is committed without both of the others.
#[tokio::test]
async fn a_join_of_a_voter_is_killed_at_each_step() {
    use Party::{Joiner, Leader, Passer};
    let all = STEPS.map(|step| step.name);
    // It has nothing to do with what is later, except that its vote is needed.
    let passed_on = ["passing on", "admitted", "passed on", "presented", "learner", "voter"];
    let with_both = ["admitted", "recorded", "learner", "voter", "token spent"];
    tokio::join!(joins_are_killed(2, &all, &[Joiner]), joins_are_killed(2, &all, &[Leader]), async {
        joins_are_killed(2, &passed_on, &[Passer]).await;
        joins_are_killed(2, &with_both, &[Joiner, Leader]).await;
    });
}

/// The fourth member does not vote. What is not done here is as with one that does.
#[tokio::test]
async fn a_join_of_a_stand_by_is_killed_at_each_step() {
    let steps = ["admitted", "learner", "taken in"];
    tokio::join!(joins_are_killed(3, &steps, &[Party::Joiner]), joins_are_killed(3, &steps, &[Party::Leader]));
}

/// One join after the other to a cluster of that size.
async fn joins_are_killed(size: usize, steps: &[&str], victims: &[Party]) {
    let mut cluster = steppable_cluster(size).await;
    for name in steps {
        let step = step(name);
        let is_reached = join_and_kill(&mut cluster, step, victims).await
            || join_and_kill(&mut cluster, step, victims).await
            || join_and_kill(&mut cluster, step, victims).await;
        assert!(is_reached, "{name}: another one leads each time");
    }
    cluster.replicas_agree().await;
}

fn step(name: &str) -> Step {
    STEPS.into_iter().find(|step| step.name == name).unwrap()
}

/// The same token takes it in at another try, unless it is in already. Says whether the step was reached: it is not when another
/// one leads meanwhile.
async fn join_and_kill(cluster: &mut TestCluster, step: Step, victims: &[Party]) -> bool {
    let names: Vec<String> = cluster.members.iter().map(|member| member.name().to_string()).collect();
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    cluster.settled(&names).await;
    let (leader, joiner) = (cluster.leader().await, cluster.members.len());
    let passer = (leader + 1) % joiner;
    let name = format!("c{}", joiner + 1);
    let mut daemon = Daemon::steppable(&name);
    daemon.start_again().await;
    let token = cluster.members[passer].token(daemon.name()).await;
    cluster.members.push(daemon);
    let what = format!("{victims:?} killed at {:?}", step.name);

    let does_it: Vec<usize> = match step.by {
        Party::Joiner => vec![joiner],
        // Whoever leads by then.
        Party::Leader => (0..joiner).collect(),
        Party::Passer => vec![passer],
    };
    let candidates: Vec<&Daemon> = does_it.iter().map(|place| &cluster.members[*place]).collect();
    let held = match until_held(&candidates, step.name, cluster.members[joiner].join(&token)).await {
        Some((held, None)) => Some(does_it[held]),
        other => {
            candidates.iter().for_each(|daemon| daemon.release());
            assert_ne!(cluster.leader().await, leader, "{what}: {other:?}");
            None
        }
    };
    if let Some(held) = held {
        let place = |party: &Party| match party {
            Party::Joiner => joiner,
            Party::Leader if step.by == Party::Leader => held,
            Party::Leader => leader,
            Party::Passer => passer,
        };
        assert_eq!(on_disk(&cluster.members[joiner].dir()), step.on_disk, "{what}");
        victims.iter().for_each(|victim| cluster.members[place(victim)].kill());
        does_it.iter().for_each(|place| cluster.members[*place].release());
        for victim in victims {
            cluster.members[place(victim)].spawn();
        }
    }

    let daemon = &cluster.members[joiner];
    let is_member = is_decided(&cluster.members[passer], daemon).await;
    println!("{what}: reached: {}, member: {is_member}", held.is_some());
    let expected = held.and_then(|_| step.outcome(victims));
    assert!(expected.is_none_or(|expected| expected == is_member), "{what}: member: {is_member}");
    if !is_member {
        join_again(daemon, &token, &what).await;
    }
    names.push(&name);
    cluster.settled(&names).await;
    assert_eq!(cluster.any().client().tokens().await.unwrap(), [], "{what}: the token is spent");
    let daemon = cluster.members.pop().unwrap();
    cluster.any().remove(daemon.name()).await;
    held.is_some()
}

/// It is in by the same token as before.
pub(crate) async fn join_again(daemon: &Daemon, token: &Secret, what: &str) {
    eventually("the token is good for another try", async || match daemon.join(token).await {
        Err(e) if e.code().is_some_and(|code| code >= 500) => Err(e.to_string()),
        joined => {
            joined.unwrap_or_else(|e| panic!("{what}: {e}"));
            Ok(())
        }
    })
    .await;
}

/// The joiner asks the member to be confirmed that has admitted it. That one leads no more, and dies with the request in hand, or with
/// the leader's answer to it.
#[tokio::test]
async fn the_member_that_passes_a_confirmation_on_is_killed() {
    let mut cluster = steppable_cluster(3).await;
    for step in ["passing on", "passed on"] {
        let is_reached = confirm_and_kill(&mut cluster, step).await
            || confirm_and_kill(&mut cluster, step).await
            || confirm_and_kill(&mut cluster, step).await;
        assert!(is_reached, "{step}: another one leads each time");
    }
    cluster.replicas_agree().await;
}

/// Says whether the step was reached: it is not when another one leads than is meant to.
async fn confirm_and_kill(cluster: &mut TestCluster, step: &str) -> bool {
    cluster.settled(&["c1", "c2", "c3"]).await;
    let before = cluster.leader().await;
    let mut joiner = Daemon::steppable("c4");
    joiner.start_again().await;
    let token = cluster.members[before].token(joiner.name()).await;
    let opened = until_held(&[&joiner], "opened", joiner.join(&token)).await;
    let is_opened = matches!(opened, Some((_, None)));
    let still_leads = cluster.leader().await == before;
    assert!(is_opened || !still_leads, "{step}: {opened:?}");
    let is_reached = is_opened && still_leads && kill_as_it_passes_on(cluster, before, step, &joiner).await;
    joiner.release();
    if !is_decided(cluster.any(), &joiner).await {
        join_again(&joiner, &token, step).await;
    }
    cluster.members.push(joiner);
    cluster.settled(&["c1", "c2", "c3", "c4"]).await;
    let joiner = cluster.members.pop().unwrap();
    cluster.any().remove(joiner.name()).await;
    is_reached
}

/// Has another one lead, and kills the leader of before at this step; says whether it was reached.
async fn kill_as_it_passes_on(cluster: &mut TestCluster, before: usize, step: &str, joiner: &Daemon) -> bool {
    cluster.members[before].kill();
    let leader = cluster.leader().await;
    assert_ne!(leader, before);
    cluster.members[before].start_again().await;

    let going_on = async {
        joiner.release();
        is_decided(&cluster.members[leader], joiner).await
    };
    let held = until_held(&[&cluster.members[before]], step, going_on).await;
    if held.is_none() {
        cluster.members[before].release();
        assert_eq!(cluster.leader().await, before, "{step}: nobody passes it on");
        return false;
    }
    cluster.members[before].kill();
    cluster.members[before].release();
    let is_member = is_decided(&cluster.members[leader], joiner).await;
    assert!(is_member, "{step}: the join goes on by itself");
    cluster.members[before].spawn();
    true
}
