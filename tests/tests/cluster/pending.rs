//! Joiners that were admitted and never come back: the leader forgets them after a while, and their names are free.

use cluster_tests::{Daemon, TestCluster, eventually, until_held};
use microcluster_client::{Role, TokenRequest};

use crate::step_crash::{is_decided, join_again};

/// How long they are waited for. Long enough to be seen as pending on a slow machine; usual is a minute.
const PENDING_TIMEOUT_MS: &str = "10000";

/// Killed for good before it has its answer, with the answer, and as a learner that has the log.
#[tokio::test]
async fn a_joiner_that_never_comes_back_is_forgotten() {
    let mut daemons: Vec<_> = ["c1", "c2"].map(Daemon::steppable).into();
    for daemon in &mut daemons {
        daemon.arguments(["--pending-timeout-ms", PENDING_TIMEOUT_MS]);
    }
    let mut cluster = TestCluster::of(daemons).await;
    for (step, by_leader) in [("admitted", true), ("opened", false), ("learner", true)] {
        let is_reached = lose_a_joiner(&mut cluster, step, by_leader).await
            || lose_a_joiner(&mut cluster, step, by_leader).await
            || lose_a_joiner(&mut cluster, step, by_leader).await;
        assert!(is_reached, "{step}: another one leads each time");
    }
    cluster.replicas_agree().await;
}

/// Says whether the step was reached: it is not when another one leads meanwhile.
async fn lose_a_joiner(cluster: &mut TestCluster, step: &str, by_leader: bool) -> bool {
    cluster.settled(&["c1", "c2"]).await;
    let leader = cluster.leader().await;
    let follower = &cluster.members[1 - leader];
    let mut lost = Daemon::steppable("c3");
    lost.start_again().await;
    let token = follower.token(lost.name()).await;
    // Whoever leads by then.
    let by: Vec<&Daemon> = if by_leader { cluster.members.iter().collect() } else { vec![&lost] };
    let held = until_held(&by, step, lost.join(&token)).await;
    if !matches!(held, Some((_, None))) {
        by.iter().for_each(|daemon| daemon.release());
        assert_ne!(cluster.leader().await, leader, "{step}: {held:?}");
        if !is_decided(follower, &lost).await {
            join_again(&lost, &token, step).await;
        }
        follower.remove(lost.name()).await;
        return false;
    }
    lost.kill();
    cluster.members.iter().for_each(Daemon::release);

    eventually("it is pending", async || {
        let members = follower.members().await.map_err(|e| e.to_string())?;
        let is_pending = members.iter().any(|member| member.name == "c3" && member.role == Role::Pending);
        is_pending.then_some(()).ok_or_else(|| format!("{step}: {members:?}"))
    })
    .await;
    // The name is its own as long as it may come back.
    let request = TokenRequest { name: lost.name().clone(), expire_after: None };
    assert_eq!(follower.client().add_token(&request).await.unwrap_err().code(), Some(409), "{step}");
    for member in &cluster.members {
        eventually("it is forgotten", async || {
            let names = member.member_names().await.map_err(|e| e.to_string())?;
            let nodes = member.status().await.map_err(|e| e.to_string())?.members;
            (names == ["c1", "c2"] && nodes == 2).then_some(()).ok_or_else(|| format!("{step}: {names:?}"))
        })
        .await;
    }
    let is_said = cluster.members.iter().any(|member| member.log().contains("DropPending"));
    assert!(is_said, "{step}: the leader has dropped it");

    follower.client().revoke_token(lost.name()).await.unwrap();
    let mut other = Daemon::steppable("c3");
    other.start_again().await;
    let token = follower.token(other.name()).await;
    join_again(&other, &token, &format!("{step}: another one joins under the name")).await;
    cluster.members.push(other);
    cluster.settled(&["c1", "c2", "c3"]).await;
    let other = cluster.members.pop().unwrap();
    cluster.any().remove(other.name()).await;
    cluster.settled(&["c1", "c2"]).await;
    true
}
