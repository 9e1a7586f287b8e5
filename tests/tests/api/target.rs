//! `?target=NAME`: a request that is passed on to the member that it is for.

use cluster_tests::{Caller, Payload, Protocol, Target, TestCluster};
use serde_json::json;

#[tokio::test]
async fn a_request_is_passed_on_to_the_member_that_it_names() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    let (first, second) = (&cluster.members[0], &cluster.members[1]);
    let socket = Target::new(first, Caller::Socket);
    let tls = Target::tls(first.address(), Some(&second.identity()), &first.trust());
    for target in [&socket, &tls, &socket.clone().protocol(Protocol::Http2), &tls.clone().protocol(Protocol::Http2)] {
        for name in ["c1", "c2", "c3"] {
            let status = target.send(&format!("GET /core/1.0/daemon/status?target={name}"), Payload::none()).await;
            assert!(status.headers.contains_key("x-request-id"));
            assert_eq!(status.metadata()["name"], json!(name));
            let config = target.send(&format!("GET /core/1.0/daemon/config?x=y&target={name}"), Payload::none()).await;
            assert_eq!(config.metadata()["name"], json!(name));
        }
    }
    let body = Payload::chunked(json!({"failure-domain": 8}).to_string());
    let changed = socket.send("PATCH /core/1.0/daemon/config?target=c2", body).await;
    assert_eq!(changed.metadata(), json!({}));
    assert_eq!(second.client().daemon_config().await.unwrap().failure_domain, 8);
    assert_eq!(first.client().daemon_config().await.unwrap().failure_domain, 0);

    // What the other member answers is what is answered, a refusal too.
    let body = Payload::json(&json!({"name": "c9"}));
    let message = socket.send("PATCH /core/1.0/daemon/config?target=c2", body).await.error(409);
    assert!(message.contains("c2") && message.contains("c9"), "{message}");
    let message = socket.send("GET /core/1.0/daemon/status?target=nobody", Payload::none()).await.error(404);
    assert!(message.contains("nobody") && message.contains("cluster list"), "{message}");
    let message = socket.send("GET /core/1.0/daemon/status?target=a_b", Payload::none()).await.error(400);
    assert!(message.contains("target") && message.contains("a_b"), "{message}");
    // One hop, never two.
    let passed_on = [("microcluster-passed-on", "socket")];
    let message = tls.send_with("GET /core/1.0/daemon/status?target=c2", Payload::none(), &passed_on).await.error(404);
    assert!(message.contains("c1") && message.contains("c2"), "{message}");
    // Where it is not for one member the target means nothing.
    let own = socket.send("GET /core/1.0?target=c2", Payload::none()).await.metadata();
    assert_eq!(own["name"], json!("c1"));
    // Who may not ask this member may not ask another one through it.
    for caller in [Caller::Stranger, Caller::Nobody] {
        let target = Target::new(first, caller);
        assert_eq!(target.send("GET /core/1.0/daemon/status?target=c2", Payload::none()).await.status, 403);
    }
    cluster.members[2].kill();
    let message = socket.send("GET /core/1.0/daemon/status?target=c3", Payload::none()).await.error(503);
    assert!(message.contains(&cluster.members[2].address().to_string()), "{message}");
}
