//! `kill -9` at each step of a bootstrap, a join and a removal, of each of those who take part: all ends in "member" or "not a member",
//! and can be repeated. The steps are seen from outside, by what is on disk and in the member table.

use std::path::Path;

use cluster_tests::{Daemon, TestCluster, eventually, until};
use microcluster_client::{Error, Member, Role};
use serde_json::json;

/// What is on disk when a step is done.
#[derive(Clone, Copy, Debug)]
enum File {
    IsThere(&'static str),
    IsGone(&'static str),
}

impl File {
    fn holds(self, dir: &Path) -> bool {
        match self {
            File::IsThere(name) => dir.join(name).exists(),
            File::IsGone(name) => !dir.join(name).exists(),
        }
    }
}

/// Who is killed.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Leader,
    /// Who joins or is removed.
    Subject,
    Both,
}

const VICTIMS: [Victim; 3] = [Victim::Leader, Victim::Subject, Victim::Both];

impl Victim {
    fn strike(self, leader: &mut Daemon, subject: &mut Daemon) {
        if !matches!(self, Victim::Subject) {
            leader.kill();
        }
        if !matches!(self, Victim::Leader) {
            subject.kill();
        }
    }

    async fn revive(self, leader: &mut Daemon, subject: &mut Daemon) {
        for daemon in [leader, subject] {
            if !daemon.is_running() {
                // One that was removed is not ready before it has found that out.
                daemon.spawn();
            }
        }
    }
}

/// What the table says of somebody: the role that is wanted, or nothing.
async fn row(member: &Daemon, name: &str) -> Option<String> {
    let rows = member.sql_local(&format!("SELECT role FROM core_cluster_members WHERE name = '{name}'")).await.ok()?;
    rows.first().map(|row| row[0].as_str().expect("a text").to_owned())
}

/// Whether somebody is shown in the list with a role of those that are in, or votes already.
async fn is_more_than_pending(member: &Daemon, name: &str) -> bool {
    member
        .members()
        .await
        .is_ok_and(|list| list.iter().any(|listed| listed.name == name && listed.role != Role::Pending))
}

/// Waits until the daemon is a member in the eyes of a member, or free and forgotten; says whether it is a member.
async fn is_decided(member: &Daemon, subject: &Daemon) -> bool {
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

#[tokio::test]
async fn a_bootstrap_is_killed_at_each_step() {
    use File::IsThere;
    let mut outcomes = Vec::new();
    for step in [
        IsThere("cluster.key"),
        IsThere("cluster.crt"),
        IsThere("database"),
        IsThere("database/log"),
        IsThere("daemon.yaml"),
    ] {
        let mut daemon = Daemon::start("c1").await;
        let dir = daemon.dir();
        let done = until(daemon.bootstrap(), async || step.holds(&dir)).await;
        daemon.kill();
        daemon.start_again().await;
        let is_member = eventually("it is a member or free", async || match daemon.is_uninitialised().await {
            Ok(()) => Ok(false),
            Err(reason) => daemon.members().await.map(|_| true).map_err(|e| format!("{reason}; {e}")),
        })
        .await;
        assert!(is_member || done.is_none(), "{step:?}: it was acknowledged");
        if !is_member {
            daemon.bootstrap().await;
        }
        daemon.sql("CREATE TABLE t (a)").await;
        daemon.kill();
        daemon.start_again().await;
        assert_eq!(daemon.member_names().await.unwrap(), ["c1"]);
        outcomes.push((step, is_member));
    }
    println!("{outcomes:?}");
    assert!(outcomes.iter().any(|(_, is_member)| !is_member), "none was early enough");
}

/// The same token takes it in at another try, unless it is in already.
#[tokio::test]
async fn a_join_is_killed_at_each_step() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    for victim in VICTIMS {
        for step in ["admitted", "recorded", "opened", "shown", "taken in", "committed"] {
            let leader = cluster.leader().await;
            let survivor = (leader + 1) % 3;
            let mut joiner = Daemon::start("c4").await;
            let token = cluster.members[survivor].token(joiner.name()).await;
            let (dir, watcher) = (joiner.dir(), &cluster.members[survivor]);
            let moment = async || match step {
                "admitted" => row(watcher, "c4").await.is_some(),
                "recorded" => dir.join("joining.json").exists(),
                "opened" => dir.join("database/log").exists(),
                "shown" => is_more_than_pending(watcher, "c4").await,
                "taken in" => row(watcher, "c4").await.is_some_and(|role| role != "PENDING"),
                _ => dir.join("daemon.yaml").exists(),
            };
            let joined = until(joiner.join(&token), moment).await;
            victim.strike(&mut cluster.members[leader], &mut joiner);
            victim.revive(&mut cluster.members[leader], &mut joiner).await;
            let is_member = is_decided(&cluster.members[survivor], &joiner).await;
            println!("{victim:?} killed when {step}: member: {is_member}");
            if let Some(joined) = joined {
                joined.unwrap();
                assert!(is_member, "{victim:?} at {step}: the join was acknowledged");
            }
            if !is_member {
                eventually("the token is good for another try", async || match joiner.join(&token).await {
                    Err(e) if e.code().is_some_and(|code| code >= 500) => Err(e.to_string()),
                    joined => {
                        joined.unwrap();
                        Ok(())
                    }
                })
                .await;
            }
            cluster.members.push(joiner);
            cluster.settled(&["c1", "c2", "c3", "c4"]).await;
            let joiner = cluster.members.pop().unwrap();
            cluster.any().client().remove_cluster_member(joiner.name(), false).await.unwrap();
            cluster.settled(&["c1", "c2", "c3"]).await;
            assert_eq!(cluster.any().client().tokens().await.unwrap(), [], "the token is spent");
        }
    }
    cluster.replicas_agree().await;
}

/// Whoever is killed: the removal is done in the end, or can be done again; and who was removed can join again.
#[tokio::test]
async fn a_removal_is_killed_at_each_step() {
    let mut cluster = TestCluster::start(4).await;
    cluster.settled(&["c1", "c2", "c3", "c4"]).await;
    cluster.members[0].sql("CREATE TABLE t (a)").await;
    for victim in VICTIMS {
        for step in ["decided", "told", "forgetting", "forgotten", "deleted"] {
            let mut leader = cluster.leader().await;
            let leaver = (leader + 1) % 4;
            let name = cluster.members[leaver].name().clone();
            let mut subject = cluster.members.remove(leaver);
            leader -= usize::from(leaver < leader);
            let watcher = (leader + 1) % 3;
            let (dir, watched) = (subject.dir(), &cluster.members[watcher]);
            let moment = async || match step {
                "decided" => row(watched, name.as_str()).await.is_none_or(|role| role == "leaving"),
                "told" => File::IsThere("resetting").holds(&dir),
                "forgetting" => File::IsGone("daemon.yaml").holds(&dir),
                "forgotten" => File::IsGone("database").holds(&dir),
                _ => row(watched, name.as_str()).await.is_none(),
            };
            let client = watched.client();
            let removed = until(client.remove_cluster_member(&name, false), moment).await;
            victim.strike(&mut cluster.members[leader], &mut subject);
            victim.revive(&mut cluster.members[leader], &mut subject).await;
            let is_member = is_decided(&cluster.members[watcher], &subject).await;
            println!("{victim:?} killed when {step}: member: {is_member}");
            if let Some(removed) = removed {
                removed.unwrap();
                assert!(!is_member, "{victim:?} at {step}: the removal was acknowledged");
            }
            if is_member {
                eventually("it is removed at another try", async || {
                    match cluster.members[watcher].client().remove_cluster_member(&name, false).await {
                        Ok(()) | Err(Error::Status { code: 404, .. }) => Ok(()),
                        Err(e) => Err(e),
                    }
                })
                .await;
                eventually("the removed member is free", async || subject.is_uninitialised().await).await;
            }
            cluster.any().sql("INSERT INTO t VALUES (1)").await;
            let token = cluster.members[watcher].token(&name).await;
            subject.join(&token).await.unwrap_or_else(|e| panic!("{victim:?} at {step}: it cannot join again: {e}"));
            cluster.members.insert(leaver, subject);
            cluster.settled(&["c1", "c2", "c3", "c4"]).await;
        }
    }
    let rows = cluster.any().sql("SELECT count(*) FROM t").await;
    assert_eq!(rows, [[json!(VICTIMS.len() * 5)]]);
    cluster.replicas_agree().await;
}
