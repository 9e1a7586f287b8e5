//! `kill -9` of a joiner, and of the leader that takes one in, at random moments.

use std::time::{Duration, Instant};

use cluster_tests::{Daemon, Seed, TestCluster, eventually};
use microcluster_client::{Error, Role};
use rand::RngExt;

/// Joins whose joiner is killed half-way.
const ROUNDS: u32 = 12;
/// Joins whose leader is killed half-way.
const LEADER_ROUNDS: u32 = 5;

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
            row.filter(|row| row.role != Role::Pending).cloned().ok_or(format!("{members:?}"))
        })
        .await;
        assert_eq!(row.address, joiner.address());
        assert_eq!(first.client().tokens().await.unwrap(), [], "round {round}: the token is spent");
        joiner.sql(&format!("CREATE TABLE {name} (a)")).await;
        first.remove(joiner.name()).await;
        eventually("the removed joiner is free", async || joiner.is_uninitialised().await).await;
    }
    cluster.settled(&["c1", "c2"]).await;
    cluster.replicas_agree().await;
}

/// The leader dies while somebody joins: the join ends well under the next leader, or is refused with a
/// reason to try again, and then the same token works.
#[tokio::test]
async fn the_leader_is_killed_at_any_moment_of_a_join() {
    let mut seed = Seed::new();
    let mut cluster = TestCluster::start(2).await;
    let usual = {
        let begun = Instant::now();
        cluster.add("c3").await;
        begun.elapsed()
    };
    cluster.settled(&["c1", "c2", "c3"]).await;
    for round in 1..=LEADER_ROUNDS {
        let leader = cluster.leader().await;
        let survivor = (leader + 1) % 3;
        let joiner = Daemon::start("c4").await;
        let token = cluster.members[survivor].token(joiner.name()).await;
        let moment = Duration::from_secs_f64(seed.random.random_range(0.0..1.0) * usual.as_secs_f64());
        let joined = {
            let mut join = std::pin::pin!(joiner.join(&token));
            let early = tokio::time::timeout(moment, join.as_mut()).await;
            cluster.members[leader].kill();
            match early {
                Ok(joined) => joined,
                Err(_) => join.await,
            }
        };
        println!("round {round}: killed after {moment:?}: {joined:?}");
        if let Err(e) = joined {
            assert!(matches!(e.code(), Some(503 | 504)), "round {round}: {e:?}");
            eventually("the join is done at another try", async || match joiner.join(&token).await {
                Ok(()) => Ok(()),
                Err(Error::Status { code: 409, message, .. }) if message.contains("initialised already") => Ok(()),
                Err(e) => Err(e),
            })
            .await;
        }
        cluster.members.push(joiner);
        cluster.members[leader].start_again().await;
        cluster.settled(&["c1", "c2", "c3", "c4"]).await;
        assert_eq!(cluster.any().client().tokens().await.unwrap(), [], "round {round}: the token is spent");
        let joiner = cluster.members.pop().unwrap();
        cluster.any().remove(joiner.name()).await;
        cluster.settled(&["c1", "c2", "c3"]).await;
    }
    cluster.replicas_agree().await;
}
