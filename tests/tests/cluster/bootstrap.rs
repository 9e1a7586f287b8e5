//! Bootstrap, whole or not at all.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use cluster_tests::{Daemon, Seed, eventually};
use rand::RngExt;

/// Bootstraps that are killed half-way.
const ROUNDS: u32 = 8;

#[tokio::test]
async fn a_bootstrap_that_fails_leaves_nothing_and_can_be_tried_again() {
    let daemon = Daemon::start("c1").await;
    let taken = TcpListener::bind(daemon.address().socket_addr()).unwrap();
    let request = microcluster_client::ControlRequest::bootstrap(daemon.name().clone(), daemon.address());
    let error = daemon.client().control(&request).await.unwrap_err();
    assert_eq!(error.code(), Some(409), "{error}");
    assert!(error.to_string().contains(&daemon.address().to_string()), "{error}");
    daemon.is_uninitialised().await.unwrap();
    drop(taken);
    daemon.bootstrap().await;
    assert_eq!(daemon.member_names().await.unwrap(), ["c1"]);
}

/// `kill -9` at any moment of a bootstrap: afterwards there is a member, or nothing and it can be tried again.
#[tokio::test]
async fn a_bootstrap_is_killed_at_any_moment() {
    let mut seed = Seed::new();
    let usual = {
        let daemon = Daemon::start("c1").await;
        let begun = Instant::now();
        daemon.bootstrap().await;
        begun.elapsed()
    };
    for round in 1..=ROUNDS {
        let moment = Duration::from_secs_f64(seed.random.random_range(0.0..1.2) * usual.as_secs_f64());
        let mut daemon = Daemon::start("c1").await;
        let request = microcluster_client::ControlRequest::bootstrap(daemon.name().clone(), daemon.address());
        let client = daemon.client();
        let answered = tokio::time::timeout(moment, client.control(&request)).await;
        daemon.kill();
        daemon.start_again().await;
        let is_member = eventually("it is a member or not", async || match daemon.is_uninitialised().await {
            Ok(()) => Ok(false),
            Err(reason) => daemon.member_names().await.map(|_| true).map_err(|e| format!("{reason}; {e}")),
        })
        .await;
        println!("round {round}: killed after {moment:?}, is a member: {is_member}");
        if let Ok(answered) = answered {
            answered.unwrap();
            assert!(is_member, "round {round}: the bootstrap was acknowledged");
        }
        if !is_member {
            daemon.bootstrap().await;
        }
        assert_eq!(daemon.member_names().await.unwrap(), ["c1"]);
        daemon.sql("CREATE TABLE t (a)").await;
    }
}
