//! Joiners that were admitted and never come back: the leader forgets them after a while, and their names are free.

use cluster_tests::{Daemon, TestCluster, eventually, until_held};
use microcluster_client::{Role, TokenRequest};

/// How long they are waited for. Long enough to be seen as pending on a slow machine; usual is a minute.
const PENDING_TIMEOUT_MS: &str = "3000";

/// Killed for good before it has its answer, with the answer, and as a learner that has the log.
#[tokio::test]
async fn a_joiner_that_never_comes_back_is_forgotten() {
    let mut daemons: Vec<_> = ["c1", "c2"].map(Daemon::steppable).into();
    for daemon in &mut daemons {
        daemon.arguments(["--pending-timeout-ms", PENDING_TIMEOUT_MS]);
    }
    let mut cluster = TestCluster::of(daemons).await;
    cluster.settled(&["c1", "c2"]).await;
    for (step, by_leader) in [("admitted", true), ("opened", false), ("learner", true)] {
        let leader = cluster.leader().await;
        let (leader, follower) = (&cluster.members[leader], &cluster.members[1 - leader]);
        let mut lost = Daemon::steppable("c3");
        lost.start_again().await;
        let token = follower.token(lost.name()).await;
        let by = if by_leader { leader } else { &lost };
        let (_, answered) = until_held(&[by], step, lost.join(&token)).await;
        assert!(answered.is_none(), "{step}: {answered:?}");
        lost.kill();
        leader.release();

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
        assert!(leader.log().contains("DropPending"), "{step}: the leader has dropped it");

        follower.client().revoke_token(lost.name()).await.unwrap();
        let mut other = Daemon::steppable("c3");
        other.start_again().await;
        let token = follower.token(other.name()).await;
        other.join(&token).await.unwrap_or_else(|e| panic!("{step}: another one cannot join under the name: {e}"));
        cluster.members.push(other);
        cluster.settled(&["c1", "c2", "c3"]).await;
        let other = cluster.members.pop().unwrap();
        cluster.any().client().remove_cluster_member(other.name(), false).await.unwrap();
        cluster.settled(&["c1", "c2"]).await;
    }
    cluster.replicas_agree().await;
}
