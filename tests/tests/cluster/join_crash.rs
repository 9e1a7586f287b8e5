//! `kill -9` of a joiner at random moments.

use std::time::{Duration, Instant};

use cluster_tests::{Daemon, Seed, TestCluster, eventually};
use rand::RngExt;

/// Joins that are killed half-way.
const ROUNDS: u32 = 12;

/// Whenever a joiner is killed: after its next start it is a whole member by itself, or the same token
/// takes it in, or the token was revoked and another one does.
#[tokio::test]
async fn a_joiner_is_killed_at_any_moment() {
    let mut seed = Seed::new();
    let mut cluster = TestCluster::start(1).await;
    let usual = {
        let begun = Instant::now();
        cluster.add("c2").await;
        begun.elapsed()
    };
    for round in 1..=ROUNDS {
        let name = format!("j{round}");
        let mut joiner = Daemon::start(&name).await;
        let first = &cluster.members[0];
        let token = first.token(joiner.name()).await;
        let moment = Duration::from_secs_f64(seed.random.random_range(0.0..1.1) * usual.as_secs_f64());
        let answered = tokio::time::timeout(moment, joiner.join(&token)).await;
        joiner.kill();
        joiner.start_again().await;
        // A join that had begun goes on by itself; one that had not leaves a daemon that is free.
        let is_member = eventually("the joiner is a member or free", async || match joiner.is_uninitialised().await {
            Ok(()) => Ok(false),
            Err(reason) => match joiner.member_names().await {
                Ok(names) if names.contains(&name) => Ok(true),
                Ok(names) => Err(format!("{reason}; {names:?}")),
                Err(e) => Err(format!("{reason}; {e}")),
            },
        })
        .await;
        println!("round {round}: killed after {moment:?}, is a member: {is_member}");
        if let Ok(answered) = answered {
            answered.unwrap();
            assert!(is_member, "round {round}: the join was acknowledged");
        }
        if !is_member {
            joiner.join(&token).await.unwrap_or_else(|e| panic!("round {round}: the token is not good again: {e}"));
        }
        let row = eventually("the joiner has its row", async || {
            let members = first.members().await.map_err(|e| e.to_string())?;
            let row = members.iter().find(|member| member.name == name.as_str());
            row.filter(|row| row.role != microcluster_client::Role::Pending).cloned().ok_or(format!("{members:?}"))
        })
        .await;
        assert_eq!(row.address, joiner.address());
        assert_eq!(first.client().tokens().await.unwrap(), [], "round {round}: the token is spent");
        joiner.sql(&format!("CREATE TABLE {name} (a)")).await;
        first.client().remove_cluster_member(joiner.name(), false).await.unwrap();
        eventually("the removed joiner is free", async || joiner.is_uninitialised().await).await;
    }
    cluster.settled(&["c1", "c2"]).await;
    cluster.replicas_agree().await;
}
