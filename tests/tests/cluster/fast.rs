//! How long it takes to begin a cluster, to join it, to list it, and to start again. The bounds are those that hold on a machine of
//! one's own, times what a build without optimisation on a busy one may take; the values are printed.

use std::time::{Duration, Instant};

use cluster_tests::{Daemon, TestCluster};
use microcluster_client::Role;

/// How often each is measured. The best counts: a busy machine makes one long now and then.
const ROUNDS: usize = 3;
/// How much longer it may take than on a machine of one's own.
const FACTOR: u32 = 10;

const BOOTSTRAP: Duration = Duration::from_millis(100);
/// From the command until the list shows a voter.
const JOIN: Duration = Duration::from_millis(300);
/// From the start of the process, with data, until it is ready.
const START: Duration = Duration::from_millis(150);
const LIST: Duration = Duration::from_millis(15);

#[tokio::test]
async fn a_cluster_is_there_soon() {
    let mut best = [Duration::MAX; 4];
    for _ in 0..ROUNDS {
        let mut members = Vec::new();
        for name in ["c1", "c2", "c3"] {
            members.push(Daemon::start(name).await);
        }
        let begun = Instant::now();
        members[0].bootstrap().await;
        let mut times = [begun.elapsed(), Duration::MAX, Duration::MAX, Duration::MAX];
        for joiner in &members[1..] {
            let token = members[0].token(joiner.name()).await;
            let begun = Instant::now();
            joiner.join(&token).await.unwrap();
            while members[0].client().cluster_member(joiner.name()).await.unwrap().role != Role::Voter {
                tokio::task::yield_now().await;
            }
            times[1] = times[1].min(begun.elapsed());
        }
        let mut cluster = TestCluster { members };
        cluster.settled(&["c1", "c2", "c3"]).await;
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            cluster.members[0].members().await.unwrap();
            times[3] = times[3].min(begun.elapsed());
        }
        let follower = cluster.follower().await;
        let member = &mut cluster.members[follower];
        member.stop().await;
        let begun = Instant::now();
        member.start_again().await;
        times[2] = begun.elapsed();
        best = std::array::from_fn(|place| best[place].min(times[place]));
    }
    for (what, time, bound) in [
        ("a bootstrap", best[0], BOOTSTRAP),
        ("a join", best[1], JOIN),
        ("a start with data", best[2], START),
        ("a list of three members", best[3], LIST),
    ] {
        println!("{what}: {time:?}, {bound:?} on a machine of one's own");
        assert!(time <= bound * FACTOR, "{what} takes {time:?}");
    }
}
