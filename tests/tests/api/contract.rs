//! The contract with clients of the Go daemon: what it was recorded to answer, asked of ours.
//!
//! A success must have the recorded shape and values; an error the recorded code. What differs on purpose is
//! listed, with its reason, in `differences`: a difference that is not listed fails the test, and so does
//! one that is listed and no longer there.

mod differences;
mod exchange;
mod shape;

use std::collections::BTreeSet;

use cluster_tests::{Caller, Daemon, TestCluster};
use microcluster_client::Secret;

use self::differences::{DIFFERENCES, Ours};
use self::exchange::{Exchange, World, recorded};

/// What the recorded cluster held when it was asked.
const TABLE: &str = "CREATE TABLE kv (k TEXT PRIMARY KEY, v TEXT, n INTEGER, r REAL, b BLOB);
    INSERT INTO kv VALUES ('a', 'x', 1, 2.5, x'00ff41'), ('f', 'x', NULL, NULL, NULL), ('m1', NULL, NULL, NULL, NULL)";

#[tokio::test]
async fn recorded_exchanges_are_answered_as_recorded_or_as_listed() {
    let exchanges = recorded();
    assert_eq!(exchanges.len(), 186);
    let world = World { fresh: Daemon::start("fresh").await, cluster: TestCluster::start(3).await };
    world.cluster.settled(&["c1", "c2", "c3"]).await;
    world.cluster.members[0].sql(TABLE).await;
    let _: Secret = world.cluster.members[0].token(&"UPPER".parse().unwrap()).await;

    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for exchange in &exchanges {
        let found = exchange.difference(&world).await;
        let listed = listed(exchange);
        match (&found, listed) {
            (None, None) => {}
            (Some(found), Some((entry, ours))) if ours.is(found) => drop(seen.insert(entry)),
            (Some(found), Some((_, ours))) => wrong.push(format!("{exchange} is listed with {ours:?}: {found}")),
            (Some(found), None) => wrong.push(format!("{exchange} is not listed: {found}")),
            (None, Some((_, ours))) => {
                wrong.push(format!("{exchange} is listed with {ours:?} and answered as recorded"));
            }
        }
    }
    for (entry, difference) in DIFFERENCES.iter().enumerate() {
        if !seen.contains(&entry) {
            wrong.push(format!("no exchange differs as listed: {:?}", difference.exchanges));
        }
    }
    assert!(wrong.is_empty(), "{} of {} exchanges:\n{}", wrong.len(), exchanges.len(), wrong.join("\n"));
}

/// The entry for an exchange: its place, and what it says.
fn listed(exchange: &Exchange) -> Option<(usize, Ours)> {
    let entries = DIFFERENCES.iter().enumerate();
    let mut all = entries.filter(|(_, entry)| entry.exchanges.iter().any(|pattern| exchange.is(pattern)));
    let (place, entry) = all.next()?;
    assert!(all.next().is_none(), "{exchange} is listed twice");
    assert!(!entry.reason.is_empty(), "{exchange}");
    Some((place, entry.ours))
}

/// Every caller of the recording is one that the harness knows.
#[test]
fn every_recorded_caller_is_known() {
    let callers: BTreeSet<Caller> = recorded().iter().map(Exchange::caller).collect();
    assert_eq!(callers.len(), 5, "{callers:?}");
}
