//! Join tokens: made, listed, revoked, and used wrongly.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cluster_tests::{Caller, Daemon, Payload, Target, TestCluster, address_free, eventually, microctl};
use microcluster_client::{Secret, TokenRequest};
use serde_json::{Value, json};

#[tokio::test]
async fn a_token_is_made_listed_and_revoked_once() {
    let cluster = TestCluster::start(2).await;
    let daemon = &cluster.members[1];
    let target = Target::new(daemon, Caller::Socket);
    let add = async |body: Value| target.send("POST /core/control/tokens", Payload::json(&body)).await;
    let token = add(json!({"name": "new"})).await.metadata();
    let content = content(&Secret::new(token.as_str().unwrap()));
    let addresses: Vec<_> = cluster.members.iter().map(|member| member.address().to_string()).collect();
    let mut named: Vec<_> =
        content["join_addresses"].as_array().unwrap().iter().map(|a| a.as_str().unwrap().to_owned()).collect();
    named.sort();
    assert_eq!(named, addresses, "all members can be asked");
    let message = add(json!({"name": "new"})).await.error(409);
    assert!(message.contains("new") && message.contains("revoke"), "{message}");
    for (body, named) in [
        (json!({}), "name"),
        (json!({"name": ""}), "empty"),
        (json!({"name": "a_b"}), "a_b"),
        (json!({"name": 5}), "5"),
        (json!({"name": "x", "expire_after": -1}), "negative"),
        (json!({"name": "x", "expire_after": "3h"}), "3h"),
    ] {
        let message = add(body.clone()).await.error(400);
        assert!(message.contains(named), "{body}: {message}");
    }
    let listed = target.send("GET /core/control/tokens", Payload::none()).await.metadata();
    assert_eq!(listed, json!([{"name": "new", "token": token, "expires_at": "0001-01-01T00:00:00Z"}]));
    let revoke = || target.send("DELETE /core/1.0/tokens/new", Payload::none());
    assert_eq!(revoke().await.metadata(), json!({}));
    let message = revoke().await.error(404);
    assert!(message.contains("new") && message.contains("tokens list"), "{message}");
    let said = microctl(daemon, &["tokens", "revoke", "new"]).await.failed();
    assert!(said.contains("new"), "{said}");
}

/// Each way in which a token does not fit has its code and names what is wrong.
#[tokio::test]
async fn a_token_that_does_not_fit_is_refused() {
    let cluster = TestCluster::start(1).await;
    let first = &cluster.members[0];
    let name = |text: &str| text.parse().unwrap();
    let mut joiner = Daemon::start("new").await;
    let good = first.token(&name("new")).await;

    let with = |change: &dyn Fn(&mut Value)| {
        let mut content = content(&good);
        change(&mut content);
        Secret::new(STANDARD.encode(content.to_string()))
    };
    let text = good.expose();
    for (token, named) in [
        (Secret::new("###"), "base64"),
        (Secret::new(&text[..text.len() / 2 - 1]), "token is damaged"),
        (Secret::new(STANDARD.encode("no json")), "JSON"),
        (Secret::new(STANDARD.encode("{}")), "secret"),
        (with(&|content| content["secret"] = json!("00")), "64"),
        (with(&|content| content["fingerprint"] = json!("zz")), "fingerprint"),
        (with(&|content| content["join_addresses"] = json!([])), "no member"),
        (with(&|content| content["join_addresses"] = json!(["nope"])), "join_addresses[0]"),
    ] {
        refused(&joiner, &token, 400, named).await;
    }

    // The secret of nobody: the cluster does not know it.
    refused(&joiner, &with(&|content| content["secret"] = json!("ab".repeat(32))), 404, "not known").await;
    // The fingerprint of another cluster: nothing is sent to this one.
    let foreign = with(&|content| content["fingerprint"] = json!("cd".repeat(32)));
    refused(&joiner, &foreign, 403, &first.address().to_string()).await;
    // Nobody listens there.
    let dead = address_free().to_string();
    refused(&joiner, &with(&|content| content["join_addresses"] = json!([dead])), 503, &dead).await;

    let other_cluster = TestCluster::start(1).await;
    let foreign = other_cluster.members[0].token(&name("new")).await;
    let mixed = with(&|own| own["secret"] = content(&foreign)["secret"].take());
    refused(&joiner, &mixed, 404, "not known").await;

    joiner.rename("another");
    refused(&joiner, &good, 403, "new").await;
    joiner.rename("new");

    let request = TokenRequest { name: name("short"), expire_after: Some(Duration::from_nanos(1)) };
    let short = first.client().add_token(&request).await.unwrap();
    joiner.rename("short");
    refused(&joiner, &short, 403, "expired").await;
    joiner.rename("new");

    first.client().revoke_token(&name("new")).await.unwrap();
    refused(&joiner, &good, 404, "revoked").await;

    // None of that has left anything, and a good token works.
    assert_eq!(first.member_names().await.unwrap(), ["c1"]);
    let again = first.token(&name("new")).await;
    joiner.join(&again).await.unwrap();
    let mut late = Daemon::start("late").await;
    late.rename("new");
    refused(&late, &again, 404, "used").await;
    eventually("the member is there", async || match first.member_names().await {
        Ok(names) if names == ["c1", "new"] => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

/// A token that has expired is in nobody's way, and a name that a member has is not given again.
#[tokio::test]
async fn a_name_is_free_for_a_token_when_nobody_can_come_by_it() {
    let cluster = TestCluster::start(2).await;
    let client = cluster.members[1].client();
    let add = async |name: &str, expire_after| {
        client.add_token(&TokenRequest { name: name.parse().unwrap(), expire_after }).await
    };
    let expired = add("c3", Some(Duration::from_nanos(1))).await.unwrap();
    let good = add("c3", Some(Duration::from_secs(600))).await.unwrap();
    let taken = add("c3", None).await.unwrap_err();
    assert_eq!(taken.code(), Some(409), "{taken}");
    let listed = client.tokens().await.unwrap();
    assert_eq!(listed.iter().map(|token| token.name.as_str()).collect::<Vec<_>>(), ["c3"]);
    let joiner = Daemon::start("c3").await;
    refused(&joiner, &expired, 404, "not known").await;
    joiner.join(&good).await.unwrap();
    for member in ["c1", "c2", "c3"] {
        let taken = add(member, None).await.unwrap_err();
        assert_eq!(taken.code(), Some(409), "{taken}");
        assert!(taken.to_string().contains(&format!("cluster remove {member}")), "{taken}");
    }
}

/// A join token of one's own cluster is no use to a member.
#[tokio::test]
async fn a_member_does_not_join_again() {
    let cluster = TestCluster::start(2).await;
    let token = cluster.members[0].token(&"new".parse().unwrap()).await;
    let error = cluster.members[1].join(&token).await.unwrap_err();
    assert_eq!(error.code(), Some(409), "{error}");
    assert!(error.to_string().contains("c2"), "{error}");
}

async fn refused(joiner: &Daemon, token: &Secret, code: u16, named: &str) {
    let error = joiner.join(token).await.unwrap_err();
    assert_eq!(error.code(), Some(code), "{named:?} was expected: {error}");
    let message = error.to_string();
    assert!(message.contains(named), "{named:?} is to be in: {message}");
    assert!(!message.contains(token.expose()), "a token is a secret: {message}");
    joiner.is_uninitialised().await.unwrap();
}

/// What is in a token.
fn content(token: &Secret) -> Value {
    serde_json::from_slice(&STANDARD.decode(token.expose()).unwrap()).unwrap()
}
