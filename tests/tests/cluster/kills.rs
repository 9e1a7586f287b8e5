//! `kill -9` at random moments, hundreds of times, under clients that write without a pause: whatever was acknowledged is
//! there once, on every member, and all members hold the same.

use std::time::Duration;

use cluster_tests::{Seed, TestCluster, Writers};
use rand::RngExt;

/// Kills of a cluster of one: it has only its own disk to come back from.
const KILLS_ALONE: u32 = 140;
/// Kills of members of a cluster of three.
const KILLS_TOGETHER: u32 = 70;
/// Every so many kills it is the leader, or all members at once: both cost the time of an election.
const LEADER_EVERY: u32 = 9;
const ALL_EVERY: u32 = 24;
/// Writers in a test.
const WRITERS: usize = 3;
/// How late after the daemon is ready, or writes again, the next kill comes.
const MOMENT_MAX_MS: f64 = 60.0;
/// How late after the start of its process, for kills while it starts.
const START_MAX_MS: f64 = 200.0;

#[tokio::test]
async fn a_cluster_of_one_is_killed_at_any_moment() {
    let mut seed = Seed::new();
    let mut cluster = TestCluster::start(1).await;
    let mut writers = Writers::start(&cluster, WRITERS).await;
    writers.advance(1).await;
    let mut kills = 0;
    while kills < KILLS_ALONE {
        let daemon = &mut cluster.members[0];
        match seed.random.random_range(0..3) {
            0 => random_moment(&mut seed, MOMENT_MAX_MS).await,
            1 => {
                writers.advance(1).await;
                random_moment(&mut seed, MOMENT_MAX_MS).await;
            }
            _ => {
                daemon.kill();
                daemon.spawn();
                random_moment(&mut seed, START_MAX_MS).await;
                kills += 1;
            }
        }
        daemon.kill();
        daemon.start_again().await;
        kills += 1;
    }
    println!("{kills} kills");
    finish(&cluster, writers).await;
}

#[tokio::test]
async fn members_of_three_are_killed_at_any_moment() {
    let mut seed = Seed::new();
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    let mut writers = Writers::start(&cluster, WRITERS).await;
    let mut kills = 0;
    while kills < KILLS_TOGETHER {
        if seed.random.random_bool(0.5) {
            writers.advance(1).await;
        }
        random_moment(&mut seed, MOMENT_MAX_MS).await;
        let victims = match kills + 1 {
            number if number % ALL_EVERY == 0 => vec![0, 1, 2],
            number if number % LEADER_EVERY == 0 => vec![cluster.leader().await],
            _ => vec![follower(&cluster, &mut seed).await],
        };
        for &victim in &victims {
            cluster.members[victim].kill();
        }
        for &victim in &victims {
            cluster.members[victim].spawn();
        }
        for &victim in &victims {
            cluster.members[victim].wait_ready().await;
        }
        kills += victims.len() as u32;
    }
    println!("{kills} kills");
    finish(&cluster, writers).await;
}

/// What a cluster must be after it all.
async fn finish(cluster: &TestCluster, mut writers: Writers) {
    writers.advance(5).await;
    let ledger = writers.stop().await;
    println!("{} rows acknowledged, {} not known", ledger.acknowledged.len(), ledger.unknown.len());
    for member in &cluster.members {
        ledger.check(member).await;
    }
    cluster.replicas_agree().await;
    cluster.all_same(cluster.members.len()).await;
}

/// One of the followers.
async fn follower(cluster: &TestCluster, seed: &mut Seed) -> usize {
    let leader = cluster.leader().await;
    (leader + seed.random.random_range(1..3)) % cluster.members.len()
}

/// Lets a random time pass: what happens meanwhile is up to the daemon.
async fn random_moment(seed: &mut Seed, max_ms: f64) {
    let moment = Duration::from_secs_f64(seed.random.random_range(0.0..max_ms) / 1000.0);
    tokio::time::sleep(moment).await;
}
