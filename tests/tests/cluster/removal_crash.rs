//! `kill -9` at each step of a removal, of each of those who take part, whoever is removed and whoever is asked for it: the member is
//! removed in the end, or is a member and can be removed again; and who was removed can join again.

use std::path::Path;

use cluster_tests::{Daemon, TestCluster, eventually, until_held};
use serde_json::json;

use crate::step_crash::{is_decided, steppable_cluster};

/// Who takes part in a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Party {
    Removed,
    /// Who leads then. A leader that is removed hands over, so it is another one.
    Leader,
    /// The member that is asked, where it is neither of these.
    Passer,
}

/// Who is removed, and who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// A follower, through another one.
    Follower,
    /// The leader, through a follower.
    Leader,
    /// A follower, through itself.
    FollowerItself,
    /// The leader, through itself.
    LeaderItself,
}

impl Case {
    fn is_of_the_leader(self) -> bool {
        matches!(self, Case::Leader | Case::LeaderItself)
    }

    fn is_of_oneself(self) -> bool {
        matches!(self, Case::FollowerItself | Case::LeaderItself)
    }
}

/// A step of a removal.
#[derive(Clone, Copy, Debug)]
struct Step {
    name: &'static str,
    /// Who does it.
    by: Party,
    /// Whether the removed member has the mark of a reset, its configuration and its database then, where that is certain.
    on_disk: Option<[bool; 3]>,
}

/// What only the leader does that is removed.
const HANDING_OVER: [Step; 2] = [
    Step { name: "handing over", by: Party::Removed, on_disk: MEMBER },
    Step { name: "handed over", by: Party::Removed, on_disk: MEMBER },
];
/// What is done by who leads and by who is removed. The mark decides.
const DECIDED: [Step; 7] = [
    Step { name: "marked", by: Party::Leader, on_disk: MEMBER },
    Step { name: "out of Raft", by: Party::Leader, on_disk: MEMBER },
    Step { name: "reset decided", by: Party::Removed, on_disk: Some([true, true, true]) },
    Step { name: "configuration removed", by: Party::Removed, on_disk: Some([true, false, true]) },
    Step { name: "database removed", by: Party::Removed, on_disk: Some([true, false, false]) },
    // The removed member goes on meanwhile.
    Step { name: "told", by: Party::Leader, on_disk: None },
    Step { name: "row deleted", by: Party::Leader, on_disk: None },
];
const MEMBER: Option<[bool; 3]> = Some([false, true, true]);

fn on_disk(dir: &Path) -> [bool; 3] {
    ["resetting", "daemon.yaml", "database"].map(|file| dir.join(file).exists())
}

/// The steps of a case, each with whether the removal is decided then.
fn steps(case: Case) -> Vec<(Step, bool)> {
    let asked = if case.is_of_oneself() { Party::Removed } else { Party::Passer };
    let passing_on = (Step { name: "passing on", by: asked, on_disk: MEMBER }, false);
    // Through a follower the leader that is removed has it ask another one: nothing is decided by that answer.
    let passed_on = (Step { name: "passed on", by: asked, on_disk: None }, case != Case::Leader);
    let handing_over = HANDING_OVER.map(|step| (step, false));
    let mut steps = match case {
        Case::Follower | Case::FollowerItself => vec![passing_on],
        Case::Leader => [&[passing_on], &handing_over[..]].concat(),
        Case::LeaderItself => [&handing_over[..], &[passing_on]].concat(),
    };
    steps.extend(DECIDED.map(|step| (step, true)));
    steps.push(passed_on);
    steps
}

/// Two clusters at a time: most of the time is spent waiting for elections and for members that are down.
#[tokio::test]
async fn a_removal_of_a_follower_is_killed_at_each_step() {
    tokio::join!(remove_and_kill_all(Case::Follower), remove_and_kill_all(Case::FollowerItself));
}

#[tokio::test]
async fn a_removal_of_the_leader_is_killed_at_each_step() {
    tokio::join!(remove_and_kill_all(Case::Leader), remove_and_kill_all(Case::LeaderItself));
}

async fn remove_and_kill_all(case: Case) {
    use Party::{Leader, Passer, Removed};
    let mut cluster = steppable_cluster(4).await;
    cluster.members[0].sql("CREATE TABLE t (a)").await;
    let mut rounds = 0;
    for (step, is_decided) in steps(case) {
        let others_lead = !case.is_of_the_leader() || step.by == Leader || is_decided || step.name == "handed over";
        let mut all: Vec<&[Party]> = vec![&[Removed]];
        // What the removed member does after its decision is its own matter; that of a follower is told to the leader as by another one.
        let is_alone =
            matches!(step.name, "configuration removed" | "database removed") || case == Case::FollowerItself;
        if others_lead && !is_alone {
            all.push(&[Leader]);
        }
        if !case.is_of_oneself() && !is_alone {
            all.push(&[Passer]);
        }
        if matches!(step.name, "marked" | "reset decided") && !is_alone {
            all.push(&[Removed, Leader]);
        }
        for victims in all {
            let is_reached = remove_and_kill(&mut cluster, case, step, is_decided, victims).await
                || remove_and_kill(&mut cluster, case, step, is_decided, victims).await
                || remove_and_kill(&mut cluster, case, step, is_decided, victims).await;
            assert!(is_reached, "{case:?}, {:?}: another one leads each time", step.name);
            rounds += 1;
        }
    }
    let rows = cluster.any().sql("SELECT count(*) FROM t").await;
    assert_eq!(rows, [[json!(rounds)]]);
    cluster.replicas_agree().await;
}

/// Says whether the step was reached: it is not when another one leads meanwhile.
async fn remove_and_kill(
    cluster: &mut TestCluster,
    case: Case,
    step: Step,
    is_marked: bool,
    victims: &[Party],
) -> bool {
    cluster.settled(&["c1", "c2", "c3", "c4"]).await;
    let what = format!("{case:?}, {victims:?} killed at {:?}", step.name);
    let leads = cluster.leader().await;
    let removed = if case.is_of_the_leader() { leads } else { (leads + 1) % 4 };
    let passer = if case.is_of_oneself() { removed } else { (leads + 2) % 4 };
    let name = cluster.members[removed].name().clone();

    // Whoever takes over from a leader that is removed.
    let does_it: Vec<usize> = match step.by {
        Party::Removed => vec![removed],
        Party::Passer => vec![passer],
        Party::Leader => (0..4).filter(|place| *place != removed).collect(),
    };
    let candidates: Vec<&Daemon> = does_it.iter().map(|place| &cluster.members[*place]).collect();
    let client = cluster.members[passer].client();
    let held = match until_held(&candidates, step.name, client.remove_cluster_member(&name, false)).await {
        Some((held, None)) => does_it[held],
        Some((held, Some(Ok(())))) => {
            // The removed member goes on after that.
            assert!(is_marked && step.by == Party::Removed, "{what}: it was answered before");
            does_it[held]
        }
        other => {
            candidates.iter().for_each(|daemon| daemon.release());
            assert_ne!(cluster.leader().await, leads, "{what}: {other:?}");
            let (subject, watcher) = (&cluster.members[removed], &cluster.members[(removed + 1) % 4]);
            watcher.remove(&name).await;
            eventually("the removed member is free", async || subject.is_uninitialised().await).await;
            subject.join(&watcher.token(&name).await).await.unwrap();
            return false;
        }
    };
    if let Some(expected) = step.on_disk {
        assert_eq!(on_disk(&cluster.members[removed].dir()), expected, "{what}");
    }
    let place = match victims {
        [Party::Removed] | [Party::Passer] => leads,
        _ if step.by == Party::Leader => held,
        _ => leader_among(cluster, &[held, removed]).await,
    };
    let mut killed: Vec<usize> = victims
        .iter()
        .map(|victim| match victim {
            Party::Removed => removed,
            Party::Leader => place,
            Party::Passer => passer,
        })
        .collect();
    killed.dedup();
    killed.iter().for_each(|place| cluster.members[*place].kill());
    does_it.iter().for_each(|place| cluster.members[*place].release());
    let watcher = (0..4).find(|place| *place != removed && !killed.contains(place)).unwrap();
    killed.iter().for_each(|place| cluster.members[*place].spawn());

    let (subject, watcher) = (&cluster.members[removed], &cluster.members[watcher]);
    if is_marked {
        // By itself, whoever is left.
        eventually("the removal is finished", async || {
            subject.is_uninitialised().await.map_err(|reason| format!("{what}: {reason}"))?;
            let names = watcher.member_names().await.map_err(|e| e.to_string())?;
            if names.contains(&name.to_string()) { Err(format!("{what}: {names:?}")) } else { Ok(()) }
        })
        .await;
    } else {
        let is_member = is_decided(watcher, subject).await;
        println!("{what}: member: {is_member}");
        // Nobody but the one that was killed had heard of it.
        let by_itself = case == Case::LeaderItself && killed.contains(&removed);
        let is_forgotten = by_itself || step.name == "passing on" && killed.contains(&held);
        assert!(is_member || !is_forgotten, "{what}: it is removed");
        watcher.remove(&name).await;
        eventually("the removed member is free", async || subject.is_uninitialised().await).await;
    }
    watcher.sql("INSERT INTO t VALUES (1)").await;
    let token = watcher.token(&name).await;
    subject.join(&token).await.unwrap_or_else(|e| panic!("{what}: it cannot join again: {e}"));
    true
}

/// The place of the leader, as the members see it but for those that stand still or are removed.
async fn leader_among(cluster: &TestCluster, left_out: &[usize]) -> usize {
    eventually("a leader", async || {
        let mut others = cluster.members.iter().enumerate().filter(|(place, _)| !left_out.contains(place));
        let (_, any) = others.next().ok_or("nobody else")?;
        let leader = any.status().await.map_err(|_| "no answer")?.leader.ok_or("no leader")?;
        cluster.members.iter().position(|member| *member.name() == leader.name).ok_or("nobody of these")
    })
    .await
}
