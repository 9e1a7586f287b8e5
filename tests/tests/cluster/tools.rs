//! The commands for operators that need a cluster: the bench and the comparison of the members.

use cluster_tests::{TestCluster, eventually, microctl};
use serde_json::Value;

#[tokio::test]
async fn the_bench_measures_each_workload_on_any_member_and_leaves_nothing() {
    let cluster = TestCluster::start(2).await;
    let follower = &cluster.members[cluster.follower().await];
    let said = microctl(follower, &["bench", "--seconds", "1", "--clients", "3", "-f", "json"]).await.done();
    let report: Value = serde_json::from_str(&said).unwrap();
    let workloads = report["workloads"].as_array().unwrap();
    let names: Vec<_> = workloads.iter().map(|figures| figures["workload"].as_str().unwrap()).collect();
    assert_eq!(names, ["insert", "select-local", "select-linearizable", "transaction"]);
    for figures in workloads {
        assert_eq!(figures["errors"], 0, "{figures}");
        assert!(figures["operations"].as_u64().unwrap() > 0, "{figures}");
        assert!(figures["p50_us"].as_u64() <= figures["max_us"].as_u64(), "{figures}");
    }
    assert!(report["disk"].is_object(), "{report}");
    let left = follower.sql("SELECT count(*) FROM sqlite_schema WHERE name LIKE 'microctl_bench%'").await;
    assert_eq!(left, [[0]]);
    let table = microctl(follower, &["bench", "-s", "1", "-c", "1", "-w", "select-local", "--busy-poll"]).await.done();
    assert!(table.contains("select-local") && table.contains("fdatasync"), "{table}");
}

#[tokio::test]
async fn the_members_are_compared_by_a_command() {
    let cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    let table = eventually("all members are compared", async || {
        let table = microctl(&cluster.members[1], &["cluster", "verify"]).await.done();
        if table.contains("unknown") { Err(table) } else { Ok(table) }
    })
    .await;
    for name in ["c1", "c2", "c3"] {
        let line = table.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{table}"));
        assert!(line.contains("same"), "{table}");
    }
}
