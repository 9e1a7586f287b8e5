//! The configuration of a daemon: what can be changed, what cannot, and that it is there after a restart.

use cluster_tests::{Caller, Payload, Target, TestCluster, eventually, microctl};
use microcluster_client::DaemonConfigUpdate;
use serde_json::{Value, json};

#[tokio::test]
async fn the_configuration_is_changed_and_survives_a_restart() {
    let mut cluster = TestCluster::start(2).await;
    let (name, address) = (cluster.members[1].name().to_string(), cluster.members[1].address().to_string());
    let with = |domain: u64| json!({"name": name, "address": address, "servers": {}, "failure-domain": domain});
    let target = Target::new(&cluster.members[1], Caller::Socket);
    let send = async |request: &str, body: &Value| {
        target.send(&format!("{request} /core/1.0/daemon/config"), Payload::json(body)).await
    };
    let shown = async || target.send("GET /core/1.0/daemon/config", Payload::none()).await.metadata();
    assert_eq!(shown().await, with(0));
    assert_eq!(send("PUT", &with(4)).await.metadata(), json!({}));
    assert_eq!(shown().await, with(4));
    assert_eq!(send("PATCH", &json!({})).await.metadata(), json!({}));
    assert_eq!(shown().await, with(4));
    assert_eq!(send("PUT", &json!({})).await.metadata(), json!({}));
    assert_eq!(shown().await, with(0), "what a replacement lacks is cleared");
    for (body, named) in
        [(json!({"name": "c9"}), ["c2", "c9"]), (json!({"address": "127.0.0.1:1"}), [address.as_str(), "127.0.0.1:1"])]
    {
        for method in ["PUT", "PATCH"] {
            let message = send(method, &body).await.error(409);
            assert!(named.iter().all(|named| message.contains(named)), "{message}");
        }
    }
    for (body, named) in [
        (json!({"failure-domain": -1}), "failure-domain"),
        (json!({"failure-domain": "x"}), "failure-domain"),
        (json!({"servers": {"a_b": {"address": "127.0.0.1:1"}}}), "a_b"),
        (json!({"servers": {"x": {"address": "nowhere"}}}), "nowhere"),
    ] {
        let message = send("PATCH", &body).await.error(400);
        assert!(message.contains(named), "{message}");
    }
    let change = DaemonConfigUpdate { failure_domain: Some(3), ..DaemonConfigUpdate::default() };
    cluster.members[1].client().change_daemon_config(&change).await.unwrap();
    let told = "SELECT failure_domain FROM core_cluster_members ORDER BY name";
    eventually("the member table has it", async || {
        let rows = cluster.members[0].sql(told).await;
        (rows == [[json!(0)], [json!(3)]]).then_some(()).ok_or_else(|| format!("{rows:?}"))
    })
    .await;
    cluster.members[1].kill();
    cluster.members[1].start_again().await;
    let config = cluster.members[1].client().daemon_config().await.unwrap();
    assert_eq!((config.failure_domain, config.name.as_str()), (3, "c2"));
}

/// Changes at the same time: one after the other, none is half.
#[tokio::test]
async fn changes_at_the_same_time_are_whole() {
    let cluster = TestCluster::start(1).await;
    let client = cluster.members[0].client();
    let change = |domain: u64| {
        let client = client.clone();
        let change = DaemonConfigUpdate { failure_domain: Some(domain), ..DaemonConfigUpdate::default() };
        async move { client.change_daemon_config(&change).await }
    };
    let tasks: Vec<_> = (1..=20).map(|domain| tokio::spawn(change(domain))).collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let config = client.daemon_config().await.unwrap();
    assert!((1..=20).contains(&config.failure_domain));
    let stored = cluster.members[0].read("daemon.yaml");
    assert!(stored.contains(&format!("failure-domain: {}", config.failure_domain)), "{stored}");
}

/// The reference daemon has no additional server: none can be moved, and that is said.
#[tokio::test]
async fn a_server_that_there_is_not_is_not_found() {
    let cluster = TestCluster::start(1).await;
    let daemon = &cluster.members[0];
    let target = Target::new(daemon, Caller::Socket);
    let body = json!({"metrics": {"address": "127.0.0.1:9443"}});
    for (request, body) in [
        ("PUT /core/1.0/daemon/servers", body.clone()),
        ("PUT /core/1.0/daemon/config", json!({"servers": body})),
        ("PATCH /core/1.0/daemon/config", json!({"servers": body})),
    ] {
        let message = target.send(request, Payload::json(&body)).await.error(404);
        assert!(message.contains("metrics") && message.contains("none"), "{message}");
    }
    assert_eq!(target.send("PUT /core/1.0/daemon/servers", Payload::json(&json!({}))).await.metadata(), json!({}));
    assert_eq!(microctl(daemon, &["servers", "list", "-f", "csv"]).await.done(), "");
    let said = microctl(daemon, &["servers", "set", "metrics=127.0.0.1:9443"]).await.failed();
    assert!(said.contains("metrics"), "{said}");
    microctl(daemon, &["servers", "set", "metrics="]).await.done();
}
