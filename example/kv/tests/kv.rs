//! The store as its users have it: three members in this process.
#![allow(clippy::unwrap_used)]

use http::Method;
use kv::{CREATED, Change, Item, Put};
use microcluster::client::{Client, Empty, Error, Fingerprint, Message, ServerTrust, WebSocket};
use microcluster::testing::{Cluster, address_free, eventually};
use serde_json::{Value, json};

async fn three() -> Cluster {
    Cluster::start(3, |builder| kv::product(builder, None)).await
}

async fn get(client: &Client, key: &str) -> Result<Item, Error> {
    client.query(Method::GET, &format!("/1.0/kv/{key}"), ()).await
}

async fn put(client: &Client, key: &str, value: &str, if_revision: Option<i64>) -> Result<i64, Error> {
    client.query(Method::PUT, &format!("/1.0/kv/{key}"), Put { value: value.into(), if_revision }).await
}

async fn next(socket: &mut WebSocket) -> Change {
    let Message::Text(text) = socket.next().await.unwrap().unwrap() else { panic!("no change") };
    serde_json::from_str(&text).unwrap()
}

#[tokio::test]
async fn what_one_member_writes_every_member_reads() {
    let cluster = three().await;
    for (index, member) in cluster.members().enumerate() {
        put(&member.client(), &format!("a/{index}"), "x y", None).await.unwrap();
    }
    for member in cluster.members() {
        assert_eq!(get(&member.client(), CREATED).await.unwrap().value, "n1", "the hook has made it");
        let listed: Vec<Item> = member.client().query(Method::GET, "/1.0/kv?prefix=a/", ()).await.unwrap();
        let keys: Vec<_> = listed.iter().map(|item| item.key.as_str()).collect();
        assert_eq!(keys, ["a/0", "a/1", "a/2"]);
    }
    let client = cluster.member(1).client();
    let _: Empty = client.query(Method::DELETE, "/1.0/kv/a/0", ()).await.unwrap();
    assert_eq!(get(&cluster.member(2).client(), "a/0").await.unwrap_err().code(), Some(404));
}

#[tokio::test]
async fn of_writers_who_expect_the_same_revision_one_wins() {
    let cluster = three().await;
    let first = put(&cluster.member(0).client(), "counter", "0", Some(0)).await.unwrap();
    assert_eq!(put(&cluster.member(0).client(), "counter", "1", Some(0)).await.unwrap_err().code(), Some(409));
    let clients: Vec<_> = cluster.members().map(|member| member.client()).collect();
    let (one, two, three) = tokio::join!(
        put(&clients[0], "counter", "one", Some(first)),
        put(&clients[1], "counter", "two", Some(first)),
        put(&clients[2], "counter", "three", Some(first)),
    );
    assert_eq!([&one, &two, &three].iter().filter(|result| result.is_ok()).count(), 1, "{one:?} {two:?} {three:?}");
}

#[tokio::test]
async fn a_watch_sees_every_change_in_its_order_on_any_member() {
    let cluster = three().await;
    let mut all = cluster.member(2).client().websocket("/1.0/watch").await.unwrap();
    let mut some = cluster.member(1).client().websocket("/1.0/watch?prefix=b").await.unwrap();
    let client = cluster.member(0).client();
    put(&client, "a", "1", None).await.unwrap();
    put(&client, "b", "2", None).await.unwrap();
    let _: Empty = client.query(Method::DELETE, "/1.0/kv/a", ()).await.unwrap();
    let seen = [next(&mut all).await, next(&mut all).await, next(&mut all).await];
    let told: Vec<_> = seen.iter().map(|change| (change.key.as_str(), change.value.as_deref())).collect();
    assert_eq!(told, [("a", Some("1")), ("b", Some("2")), ("a", None)]);
    assert_eq!(next(&mut some).await, seen[1]);
    // Who was away goes on where they were.
    let mut again = client.websocket(&format!("/1.0/watch?after={}", seen[0].revision)).await.unwrap();
    assert_eq!([next(&mut again).await, next(&mut again).await], seen[1..]);
}

#[tokio::test]
async fn the_store_goes_on_when_its_leader_is_killed() {
    let mut cluster = three().await;
    let leader = cluster.leader().await;
    put(&cluster.member(leader).client(), "k", "before", None).await.unwrap();
    cluster.member_mut(leader).kill();
    let other = cluster.member((leader + 1) % 3).client();
    eventually("a write", async || put(&other, "k", "after", None).await).await;
    cluster.member_mut(leader).start().await;
    let back = cluster.member(leader).client();
    eventually("it is back with what was written", async || match get(&back, "k").await {
        Ok(item) if item.value == "after" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

#[tokio::test]
async fn bad_requests_say_what_was_wrong() {
    let cluster = Cluster::start(1, |builder| kv::product(builder, None)).await;
    let client = cluster.member(0).client();
    let refused = async |body: Value| {
        let error = client.query::<Value>(Method::PUT, "/1.0/kv/k", body).await.unwrap_err();
        (error.code().unwrap(), error.to_string())
    };
    assert!(matches!(refused(json!({})).await, (400, message) if message.contains("value")));
    assert!(matches!(refused(json!({"value": 7})).await, (400, message) if message.contains("value")));
    assert_eq!(refused(json!({"value": "x".repeat(70_000)})).await.0, 413);
    let long = "k".repeat(2000);
    assert_eq!(put(&client, &long, "v", None).await.unwrap_err().code(), Some(400));
}

#[tokio::test]
async fn metrics_have_an_address_and_a_certificate_of_their_own() {
    let address = address_free();
    let cluster = Cluster::start(1, move |builder| kv::product(builder, Some(address.to_string()))).await;
    let member = cluster.member(0);
    let certificate = std::fs::read_to_string(member.dir().join("certificates/metrics.internal.crt")).unwrap();
    let trust = ServerTrust::Pinned(Fingerprint::of_pem(&certificate).unwrap());
    let client = Client::tls(address, None, &trust).unwrap();
    let answer = client.query_raw(Method::GET, "/metrics", "").await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(client.query_raw(Method::GET, "/1.0/kv", "").await.unwrap().status(), 404, "nothing else is there");
}
