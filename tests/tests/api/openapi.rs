//! The description of the API, as daemons serve it, and whether they answer as it says.

mod schema;

use std::collections::BTreeSet;

use cluster_tests::{Caller, Daemon, Payload, Protocol, Target, TestCluster};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use self::schema::Schema;

const PATH: &str = "GET /core/1.0/openapi.json";

/// Requests that change nothing, or nothing that matters, in the order in which they are sent.
fn requests() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        ("get", "/", Value::Null),
        ("get", "/core/1.0", Value::Null),
        ("get", "/core/1.0/ready", Value::Null),
        ("get", "/core/1.0/daemon/status", Value::Null),
        ("patch", "/core/1.0/daemon/config", json!({"failure-domain": 3})),
        ("get", "/core/1.0/daemon/config", Value::Null),
        ("put", "/core/1.0/daemon/config", json!({"servers": {}})),
        ("put", "/core/1.0/daemon/config", json!({"name": "another"})),
        ("put", "/core/1.0/daemon/servers", json!({"metrics": {"address": "127.0.0.1:9443"}})),
        ("get", "/core/1.0/daemon/servers", Value::Null),
        ("get", "/core/1.0/cluster", Value::Null),
        ("get", "/core/1.0/cluster/c1", Value::Null),
        ("get", "/core/1.0/cluster/nobody", Value::Null),
        ("delete", "/core/1.0/cluster/nobody", Value::Null),
        ("put", "/core/1.0/cluster/certificates/cluster", json!({"cert": "x", "key": "y"})),
        ("post", "/core/1.0/database/verify", Value::Null),
        ("post", "/core/control/tokens", json!({"name": "new", "expire_after": 10_800_000_000_000_u64})),
        ("post", "/core/control/tokens", json!({"name": "new"})),
        ("get", "/core/control/tokens", Value::Null),
        ("delete", "/core/1.0/tokens/new", Value::Null),
        ("delete", "/core/1.0/tokens/new", Value::Null),
        ("post", "/core/control", json!({"bootstrap": true, "name": "c1", "address": "127.0.0.1:9001"})),
        (
            "post",
            "/core/internal/sql",
            json!({"query": "CREATE TABLE t (a); INSERT INTO t VALUES (1), (NULL), (x'00')"}),
        ),
        ("post", "/core/internal/sql", json!({"query": "SELECT * FROM t", "parameters": [], "consistency": "local"})),
        ("post", "/core/internal/sql", json!({"query": "SELEC"})),
        ("get", "/core/internal/sql", Value::Null),
    ]
}

/// Each answer has a code that is described, and the described form; each body that is sent is one that is described.
#[tokio::test]
async fn daemons_answer_as_the_description_says() {
    let cluster = TestCluster::start(2).await;
    let target = Target::new(&cluster.members[0], Caller::Socket);
    let document = target.send(PATH, Payload::none()).await.json();
    for request in requests() {
        as_described(&document, &target, request).await;
    }
}

/// The same before initialisation, and on a member without a quorum, where all is asked at the same time: each waits.
#[tokio::test]
async fn daemons_that_cannot_do_it_answer_as_the_description_says() {
    let fresh = Daemon::start("fresh").await;
    let target = Target::new(&fresh, Caller::Socket);
    let document = target.send(PATH, Payload::none()).await.json();
    let harmless = || requests().into_iter().filter(|(_, path, _)| *path != "/core/control");
    let mut codes = BTreeSet::new();
    for request in harmless() {
        codes.insert(as_described(&document, &target, request).await);
    }
    assert_eq!(codes, [200, 400, 503].into());

    let mut cluster = TestCluster::start(2).await;
    cluster.settled(&["c1", "c2"]).await;
    cluster.members[1].kill();
    let target = Target::new(&cluster.members[0], Caller::Socket);
    let mut asked = JoinSet::new();
    for request in harmless() {
        let (document, target) = (document.clone(), target.clone());
        asked.spawn(async move { as_described(&document, &target, request).await });
    }
    let codes: BTreeSet<u16> = asked.join_all().await.into_iter().collect();
    assert!(codes.contains(&503), "{codes:?}");
}

/// Sends a request, and checks it and its answer; says the code.
async fn as_described(
    document: &Value,
    target: &Target,
    (method, path, body): (&'static str, &'static str, Value),
) -> u16 {
    let operation = operation(document, method, path);
    let payload = if body.is_null() { Payload::none() } else { Payload::json(&body) };
    let request = format!("{} {path}", method.to_uppercase());
    if !body.is_null() {
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        Schema::new(document, schema).check(&body).unwrap_or_else(|e| panic!("the body of {request}: {e}"));
    }
    let answer = target.send(&request, payload).await;
    let response = &operation["responses"][answer.status.to_string()];
    assert!(response.is_object(), "{request}: {} is not among its answers: {answer:?}", answer.status);
    let schema = Schema::new(document, &response["content"]["application/json"]["schema"]);
    schema.check(&answer.json()).unwrap_or_else(|e| panic!("the answer to {request}: {e}; {answer:?}"));
    answer.status
}

/// Anybody may read it, before initialisation too, and it is the same everywhere.
#[tokio::test]
async fn the_description_is_the_same_for_everybody() {
    let cluster = TestCluster::start(1).await;
    let fresh = Daemon::start("fresh").await;
    let expected = Target::new(&fresh, Caller::Socket).send(PATH, Payload::none()).await.json();
    assert_eq!(expected["openapi"], "3.1.0");
    for caller in [Caller::Socket, Caller::Member, Caller::Stranger, Caller::Nobody] {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let target = Target::new(&cluster.members[0], caller).protocol(protocol);
            let answer = target.send(PATH, Payload::none()).await;
            assert_eq!((answer.status, answer.json() == expected), (200, true), "{caller:?} over {protocol:?}");
            assert_eq!(answer.headers["content-type"], "application/json");
        }
    }
}

/// The check of a schema can fail: what is no member is refused.
#[tokio::test]
async fn an_answer_of_another_form_would_be_noticed() {
    let daemon = Daemon::start("c1").await;
    let document = Target::new(&daemon, Caller::Socket).send(PATH, Payload::none()).await.json();
    let status = &operation(&document, "get", "/core/1.0")["responses"]["200"]["content"]["application/json"]["schema"];
    let good = Target::new(&daemon, Caller::Socket).send("GET /core/1.0", Payload::none()).await.json();
    let schema = Schema::new(&document, status);
    schema.check(&good).unwrap();
    for (pointer, bad) in [
        ("/type", json!("error")),
        ("/metadata", Value::Null),
        ("/metadata/ready", json!("yes")),
        ("/metadata/address", json!(5)),
        ("/metadata/extensions", json!([1])),
        ("/metadata/version", Value::Null),
        ("/status_code", json!(-1)),
    ] {
        let mut answer = good.clone();
        *answer.pointer_mut(pointer).unwrap() = bad;
        assert!(schema.check(&answer).is_err(), "{pointer} is noticed");
    }
    let mut answer = good.clone();
    answer["metadata"].as_object_mut().unwrap().remove("version");
    assert!(schema.check(&answer).is_err(), "a field that is missing is noticed");
}

/// The operation for a path with its names filled in.
fn operation<'a>(document: &'a Value, method: &str, path: &str) -> &'a Value {
    let fits = |template: &str| {
        let (template, path) = (template.split('/'), path.split('/'));
        template.clone().count() == path.clone().count()
            && template.zip(path).all(|(part, given)| part == given || part.starts_with('{'))
    };
    let paths = document["paths"].as_object().unwrap();
    // A path as it is comes before one with a name in it.
    let found = paths.get(path).or_else(|| paths.iter().find(|(template, _)| fits(template)).map(|(_, found)| found));
    let operation = found.and_then(|methods| methods.get(method));
    operation.unwrap_or_else(|| panic!("{method} {path} is not described"))
}
