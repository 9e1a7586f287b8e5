//! Bootstrap and join asked for wrongly: wrong names and addresses, nothing, too much, twice.

use cluster_tests::{Caller, Daemon, Payload, Target, TestCluster, address_free, microctl};
use serde_json::{Value, json};

/// Every mistake in a request has a 400 that names it; the daemon stays as it was.
#[tokio::test]
async fn a_bad_request_is_refused_and_says_what_is_wrong() {
    let daemon = Daemon::start("c1").await;
    let target = Target::new(&daemon, Caller::Socket);
    let address = address_free().to_string();
    let bootstrap = |name: Value, address: Value| json!({"bootstrap": true, "name": name, "address": address});
    let long_label = "x".repeat(64);
    let long_name = vec!["x".repeat(60); 5].join(".");
    let cases = [
        (bootstrap(json!(""), json!(address)), "name"),
        (bootstrap(json!("a_b"), json!(address)), "a_b"),
        (bootstrap(json!("a b"), json!(address)), "a b"),
        (bootstrap(json!("-a"), json!(address)), "-a"),
        (bootstrap(json!("a..b"), json!(address)), "a..b"),
        (bootstrap(json!("ä"), json!(address)), "ä"),
        (bootstrap(json!("../x"), json!(address)), "../x"),
        (bootstrap(json!(long_label), json!(address)), "64"),
        (bootstrap(json!(long_name), json!(address)), "255"),
        (bootstrap(json!(5), json!(address)), "5"),
        (bootstrap(json!("c1"), json!("")), "address"),
        (bootstrap(json!("c1"), json!("nope")), "nope"),
        (bootstrap(json!("c1"), json!("127.0.0.1")), "127.0.0.1"),
        (bootstrap(json!("c1"), json!("127.0.0.1:0")), "port 0"),
        (bootstrap(json!("c1"), json!("127.0.0.1:99999")), "99999"),
        (bootstrap(json!("c1"), json!("::1:9000")), "::1:9000"),
        (bootstrap(json!("c1"), json!("0.0.0.0:9000")), "0.0.0.0"),
        (bootstrap(json!("c1"), json!("localhost:9000")), "localhost"),
        // An address of the documentation's network: none of this machine's.
        (bootstrap(json!("c1"), json!("192.0.2.1:9000")), "192.0.2.1:9000"),
        (json!({"bootstrap": true, "address": address}), "name"),
        (json!({"bootstrap": true, "name": "c1"}), "address"),
        (json!({"name": "c1", "address": address}), "bootstrap"),
        (json!({"bootstrap": true, "join_token": "x", "name": "c1", "address": address}), "both"),
        (json!({"bootstrap": "yes", "name": "c1", "address": address}), "yes"),
        (json!({"bootstrap": true, "config": ["a"], "name": "c1", "address": address}), "map"),
        (json!({}), "bootstrap"),
    ];
    for (body, named) in cases {
        let message = target.send("POST /core/control", Payload::json(&body)).await.error(400);
        assert!(message.contains(named), "{named:?} is to be in the answer to {body}: {message}");
    }
    for body in ["", " ", "null", "{", "{bad", "[]", "[true]", "1", "\"x\"", "{} {}", "\u{0}", "{\"name\":\"\\ud800\"}"]
    {
        let message = target.send("POST /core/control", Payload::bytes(body)).await.error(400);
        assert!(message.contains("body"), "{body:?}: {message}");
    }
    let message = target.send("POST /core/control", Payload::bytes(vec![b'{', 0xff, b'}'])).await.error(400);
    assert!(message.contains("body"), "{message}");
    daemon.is_uninitialised().await.unwrap();
    daemon.bootstrap().await;
}

#[tokio::test]
async fn an_initialised_daemon_is_not_initialised_again() {
    let cluster = TestCluster::start(2).await;
    for daemon in &cluster.members {
        let (name, address) = (daemon.name().as_str(), daemon.address().to_string());
        let target = Target::new(daemon, Caller::Socket);
        let other = address_free().to_string();
        for body in [
            json!({"bootstrap": true, "name": name, "address": address}),
            json!({"bootstrap": true, "name": "other", "address": other}),
            json!({"join_token": "x", "name": "other", "address": other}),
        ] {
            let message = target.send("POST /core/control", Payload::json(&body)).await.error(409);
            assert!(message.contains(name) && message.contains(&address), "{message}");
        }
        let said = microctl(daemon, &["init", "other", &other, "--bootstrap"]).await.failed();
        assert!(said.contains(name) && said.contains(&address), "{said}");
    }
    assert_eq!(cluster.members[0].member_names().await.unwrap(), ["c1", "c2"]);
}

/// Two bootstraps at once: one is done, the other is told.
#[tokio::test]
async fn one_of_two_bootstraps_at_the_same_time_is_refused() {
    let daemon = Daemon::start("c1").await;
    let target = Target::new(&daemon, Caller::Socket);
    let body = json!({"bootstrap": true, "name": "c1", "address": daemon.address().to_string()});
    let (one, other) = tokio::join!(
        target.send("POST /core/control", Payload::json(&body)),
        target.send("POST /core/control", Payload::json(&body)),
    );
    let mut codes = [one.status, other.status];
    codes.sort_unstable();
    assert!(codes == [200, 409] || codes == [200, 503], "{codes:?}");
    assert_eq!(daemon.member_names().await.unwrap(), ["c1"]);
}

/// A daemon that is no member says so, and what to do, to whatever needs a member.
#[tokio::test]
async fn what_needs_a_member_is_refused_before_initialisation() {
    let daemon = Daemon::start("c1").await;
    let target = Target::new(&daemon, Caller::Socket);
    for request in [
        "GET /core/1.0/cluster",
        "GET /core/1.0/cluster/c1",
        "DELETE /core/1.0/cluster/c1",
        "GET /core/1.0/daemon/config",
        "PUT /core/1.0/daemon/config",
        "PATCH /core/1.0/daemon/config",
        "GET /core/1.0/daemon/servers",
        "PUT /core/1.0/daemon/servers",
        "GET /core/1.0/daemon/status",
        "DELETE /core/1.0/tokens/c2",
        "GET /core/control/tokens",
        "POST /core/control/tokens",
        "POST /core/internal/cluster",
        "GET /core/internal/sql",
        "POST /core/internal/sql",
        "POST /core/internal/database",
        "PATCH /core/internal/database",
        "POST /core/internal/heartbeat",
        "POST /core/internal/truststore",
        "DELETE /core/internal/truststore/c2",
    ] {
        let answer = target.send(request, Payload::none()).await;
        let message = answer.error(503);
        assert!(message.contains("not initialised") && message.contains("microctl init"), "{request}: {message}");
        assert!(!answer.headers.contains_key("retry-after"), "waiting does not help: {request}");
    }
    for arguments in [
        &["cluster", "list"][..],
        &["cluster", "show", "c1"],
        &["cluster", "remove", "c1"],
        &["tokens", "add", "c2"],
        &["tokens", "list"],
        &["tokens", "revoke", "c2"],
        &["sql", "SELECT 1"],
        &["sql", ".dump"],
    ] {
        let said = microctl(&daemon, arguments).await.failed();
        assert!(said.contains("not initialised") && said.contains("microctl init"), "{arguments:?}: {said}");
    }
    microctl(&daemon, &["waitready", "-t", "10"]).await.done();
    let status = microctl(&daemon, &["status"]).await.done();
    assert!(status.contains("not initialised"), "{status}");
}

/// The members that there are not.
#[tokio::test]
async fn a_member_that_is_none_is_not_found() {
    let cluster = TestCluster::start(1).await;
    let daemon = &cluster.members[0];
    let target = Target::new(daemon, Caller::Socket);
    for request in ["GET /core/1.0/cluster/nobody", "DELETE /core/1.0/cluster/nobody?force=1"] {
        let message = target.send(request, Payload::none()).await.error(404);
        assert!(message.contains("nobody") && message.contains("cluster list"), "{message}");
    }
    for request in ["GET /core/1.0/cluster/a_b", "DELETE /core/1.0/cluster/a%20b", "DELETE /core/1.0/tokens/%ff"] {
        let message = target.send(request, Payload::none()).await.error(400);
        assert!(!message.is_empty(), "{request}");
    }
    let message = target.send("DELETE /core/1.0/cluster/c1", Payload::none()).await.error(409);
    assert!(message.contains("c1") && message.contains("only member"), "{message}");
    let said = microctl(daemon, &["cluster", "show", "nobody"]).await.failed();
    assert!(said.contains("nobody"), "{said}");
}
