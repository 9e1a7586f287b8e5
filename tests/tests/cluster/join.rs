//! Joins that work, and joins that fail and leave nothing behind.

use std::net::TcpListener;

use cluster_tests::{Answer, Caller, Daemon, Payload, Target, TestCluster, address_free, eventually, stranger};
use microcluster_client::{Error, Secret, TokenRequest};
use serde_json::{Value, json};

#[tokio::test]
async fn two_members_join_at_the_same_time() {
    let mut cluster = TestCluster::start(1).await;
    let (second, third) = tokio::join!(Daemon::start("c2"), Daemon::start("c3"));
    let tokens = (cluster.members[0].token(second.name()).await, cluster.members[0].token(third.name()).await);
    let joined = tokio::join!(second.join(&tokens.0), third.join(&tokens.1));
    joined.0.unwrap();
    joined.1.unwrap();
    cluster.members.extend([second, third]);
    cluster.settled(&["c1", "c2", "c3"]).await;
    assert_eq!(cluster.members[0].client().tokens().await.unwrap(), [], "both tokens are spent");
    cluster.members[2].sql("CREATE TABLE t (a)").await;
    cluster.replicas_agree().await;
}

/// Every way that a join is refused: nothing of it is left on either side, and what could have been
/// right all along, the token, is still good.
#[tokio::test]
async fn a_join_that_fails_can_be_tried_again_with_the_same_token() {
    let mut cluster = TestCluster::start(1).await;
    let mut joiner = Daemon::start("c2").await;
    let token = cluster.members[0].token(joiner.name()).await;
    let nothing_is_left = async |joiner: &Daemon| {
        joiner.is_uninitialised().await.unwrap();
        assert_eq!(cluster.members[0].member_names().await.unwrap(), ["c1"]);
        assert_eq!(cluster.members[0].client().tokens().await.unwrap().len(), 1);
        assert_eq!(cluster.members[0].status().await.unwrap().members, 1);
    };

    let taken = TcpListener::bind(joiner.address().socket_addr()).unwrap();
    refused(&joiner, &token, 409, &joiner.address().to_string()).await;
    nothing_is_left(&joiner).await;
    drop(taken);

    refused(&joiner, &Secret::new("bm90IGEgdG9rZW4="), 400, "token").await;
    nothing_is_left(&joiner).await;

    joiner.rename("c9");
    refused(&joiner, &token, 403, "c9").await;
    nothing_is_left(&joiner).await;
    joiner.rename("c2");

    // The member that made the token is down: the joiner says whom it has tried.
    cluster.members[0].kill();
    refused(&joiner, &token, 503, &cluster.members[0].address().to_string()).await;
    joiner.is_uninitialised().await.unwrap();
    cluster.members[0].start_again().await;
    eventually("the first member leads again", async || cluster.members[0].member_names().await).await;

    joiner.join(&token).await.unwrap();
    cluster.members.push(joiner);
    cluster.settled(&["c1", "c2"]).await;
}

/// A joiner of another version, as the leader sees it on the wire.
#[tokio::test]
async fn a_joiner_of_another_version_is_refused_and_both_versions_are_named() {
    let mut cluster = TestCluster::start(1).await;
    let joiner = Daemon::start("c2").await;
    let token = cluster.members[0].token(joiner.name()).await;
    let own = cluster.members[0].members().await.unwrap().remove(0);
    let presented = json!({
        "name": "c2",
        "address": joiner.address().to_string(),
        "certificate": stranger("c2").cert_pem,
        "schema_internal_version": own.schema_internal_version,
        "schema_external_version": own.schema_external_version,
        "extensions": own.extensions,
        "secret": secret_of(&token),
    });
    let present = async |change: &dyn Fn(&mut Value)| -> Answer {
        let mut body = presented.clone();
        change(&mut body);
        let target = Target::new(&cluster.members[0], Caller::Stranger);
        target.send("POST /core/internal/cluster", Payload::json(&body)).await
    };
    let message = present(&|body| body["schema_internal_version"] = json!(77)).await.error(409);
    assert!(message.contains("77") && message.contains(&own.schema_internal_version.to_string()), "{message}");
    let message = present(&|body| body["schema_external_version"] = json!(78)).await.error(409);
    assert!(message.contains("78"), "{message}");
    let message = present(&|body| body["extensions"] = json!(["only_here"])).await.error(409);
    assert!(message.contains("only_here"), "{message}");
    let message = present(&|body| body["address"] = json!(own.address.to_string())).await.error(409);
    assert!(message.contains("c1") && message.contains(&own.address.to_string()), "{message}");
    let message = present(&|body| body["certificate"] = json!(stranger("c8").cert_pem)).await.error(400);
    assert!(message.contains("c8") && message.contains("c2"), "{message}");
    assert_eq!(cluster.members[0].member_names().await.unwrap(), ["c1"]);
    joiner.join(&token).await.expect("the token is still good");
    cluster.members.push(joiner);
    cluster.settled(&["c1", "c2"]).await;
}

/// A name that belongs to a member is refused before anything happens to that member: nobody is invited under it.
#[tokio::test]
async fn the_name_of_a_member_is_taken() {
    let cluster = TestCluster::start(2).await;
    let joiner = Daemon::start("c3").await;
    let request = TokenRequest { name: "c2".parse().unwrap(), expire_after: None };
    let taken = cluster.members[0].client().add_token(&request).await.unwrap_err();
    assert_eq!(taken.code(), Some(409), "{taken}");
    assert!(taken.to_string().contains("c2"), "{taken}");
    let token = cluster.members[1].token(joiner.name()).await;
    joiner.join(&token).await.unwrap();
    assert_eq!(cluster.members[0].member_names().await.unwrap(), ["c1", "c2", "c3"]);
}

/// A joiner that asks again while its first request is under way, as one that was restarted does, is told
/// to wait; the leader goes on, and a joiner that gives up is forgotten.
#[tokio::test]
async fn a_joiner_that_asks_twice_is_answered_twice() {
    let mut cluster = TestCluster::start(1).await;
    let leader = &cluster.members[0];
    let joiner = Daemon::start("c2").await;
    let token = leader.token(joiner.name()).await;
    let own = leader.members().await.unwrap().remove(0);
    let secret = secret_of(&token);
    // Nobody listens at its address: the leader tries to bring it the log for as long as it is asked to.
    let presented = json!({
        "name": "c2",
        "address": address_free().to_string(),
        "certificate": stranger("c2").cert_pem,
        "schema_internal_version": own.schema_internal_version,
        "schema_external_version": own.schema_external_version,
        "extensions": own.extensions,
        "secret": secret,
    });
    let target = Target::new(leader, Caller::Stranger);
    let admitted = target.send("POST /core/internal/cluster", Payload::json(&presented)).await.metadata();
    let claim = json!({"member_id": admitted["member_id"], "secret": secret});
    let confirm = || target.send("POST /core/internal/cluster/c2/confirm", Payload::json(&claim));
    // One of the two waits for the joiner; nobody can tell which.
    let answer = tokio::select! {
        answer = confirm() => answer,
        answer = confirm() => answer,
    };
    assert!(answer.error(503).contains("c2") && answer.headers.contains_key("retry-after"), "{answer:?}");
    leader.sql("CREATE TABLE t (a)").await;
    let _ = target.send("POST /core/internal/cluster/c2/drop", Payload::json(&claim)).await.metadata();
    assert_eq!(leader.member_names().await.unwrap(), ["c1"]);
    joiner.join(&token).await.expect("the token is still good");
    cluster.members.push(joiner);
    cluster.settled(&["c1", "c2"]).await;
}

async fn refused(joiner: &Daemon, token: &Secret, code: u16, named: &str) {
    let error: Error = joiner.join(token).await.unwrap_err();
    assert_eq!(error.code(), Some(code), "{error}");
    assert!(error.to_string().contains(named), "{named} is to be in: {error}");
}

/// The secret in a token.
fn secret_of(token: &Secret) -> Value {
    use base64::Engine;
    let json = base64::engine::general_purpose::STANDARD.decode(token.expose()).unwrap();
    serde_json::from_slice::<Value>(&json).unwrap()["secret"].take()
}
