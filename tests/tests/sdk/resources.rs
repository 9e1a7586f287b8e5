//! Endpoints beside the Core API: who may use them, what they take, where they run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cluster_tests::stranger;
use http::Method;
use microcluster::axum::routing::get;
use microcluster::axum::{self, Router};
use microcluster::db::Consistency;
use microcluster::testing::{Cluster, eventually};
use microcluster::{
    Access, App, Builder, Caller, Endpoint, Error, Json, Path, Query, Resources, Response, Result, Server, Shared,
    State, action, service,
};
use microcluster_client::{Client, Empty, Fingerprint, ServerTrust};
use serde::Deserialize;
use serde_json::{Value, json};

async fn read_key(state: State, Path(key): Path<String>) -> Result<Json<Value>> {
    let sql = "SELECT value FROM kv WHERE key = ?1";
    let database = state.database()?;
    let value = database.query_row(Consistency::Linearizable, sql, (key.clone(),), |row| row.get::<_, String>(0));
    let value = value.await?.ok_or_else(|| Error::not_found(format!("there is no key {key:?}")))?;
    Ok(Json(json!({"key": key, "value": value})))
}

async fn write_key(state: State, Path(key): Path<String>, Json(value): Json<String>) -> Result<Response> {
    state.database()?.execute("INSERT INTO kv VALUES (?1, ?2)", (key, value)).await?;
    Ok(Response::empty())
}

async fn own_name(state: State) -> Response {
    Response::json(state.name())
}

async fn sum(Path((one, other)): Path<(u32, u32)>, Query(query): Query<Scale>) -> Json<u32> {
    Json((one + other) * query.by)
}

#[derive(Deserialize)]
struct Scale {
    by: u32,
}

async fn count(Shared(count): Shared<AtomicU32>) -> Json<u32> {
    Json(count.fetch_add(1, Ordering::Relaxed) + 1)
}

async fn who(caller: Caller) -> Json<String> {
    Json(format!("{caller:?}"))
}

async fn never() -> Response {
    std::future::pending().await
}

async fn panics() -> Response {
    panic!("as it was asked to")
}

/// Takes the body by an extractor of axum's.
async fn length(text: String) -> Json<usize> {
    Json(text.len())
}

/// What is written and read below it is in the database.
fn notes() -> Router {
    async fn put(state: State, Path(key): Path<String>, caller: Caller, text: String) -> Result<Response> {
        let value = format!("{caller:?}: {} bytes", text.len());
        state.database()?.execute("INSERT INTO kv VALUES (?1, ?2)", (key, value)).await?;
        Ok(Response::empty())
    }
    async fn counted(Shared(count): Shared<AtomicU32>, Query(scale): Query<Scale>) -> Json<u32> {
        Json(count.load(Ordering::Relaxed) + scale.by)
    }
    Router::new()
        .route("/{key}", get(read_key).put(put))
        .route("/counted/now", get(counted))
        .route("/hang/here", get(never))
}

fn ui() -> Router {
    let item = |axum::extract::Path(id): axum::extract::Path<String>| async move { format!("item {id}") };
    Router::new()
        .route("/", get(|| async { "start" }))
        .route("/hello", get(|| async { "hello" }))
        .route("/item/{id}", get(item))
}

fn product(builder: Builder) -> Builder {
    let local = || {
        Access::check(|_state, caller| async move {
            match caller {
                Caller::Socket => Ok(()),
                other => Err(Error::forbidden(format!("not for {other:?}"))),
            }
        })
    };
    let resources = Resources::at("1.0")
        .endpoint(Endpoint::new("kv/{key}").alias("keys/{key}").get(read_key).put(action(write_key).body_limit(1000)))
        .endpoint(Endpoint::new("name").get(action(own_name).proxy_target()))
        .endpoint(Endpoint::new("leader").get(action(own_name).leader_only()))
        .endpoint(Endpoint::new("sum/{one}/{other}").get(action(sum).access(Access::Open)))
        .endpoint(Endpoint::new("count").post(action(count).allowed_before_init()))
        .endpoint(Endpoint::new("who").get(action(who).access(Access::Open)))
        .endpoint(Endpoint::new("local").get(action(who).access(local())))
        .endpoint(Endpoint::new("local-leader").get(action(who).access(local()).leader_only()))
        .endpoint(Endpoint::new("who-there").get(action(who).access(Access::Open).proxy_target()))
        .endpoint(Endpoint::new("text").put(action(length).body_limit(5 << 20)))
        .endpoint(Endpoint::new("never").get(action(never).timeout(Duration::from_millis(50))))
        .endpoint(Endpoint::new("panics").get(panics).post(panics))
        .mount("ui", service(ui()));
    builder
        .schema(["CREATE TABLE kv (key TEXT PRIMARY KEY, value TEXT NOT NULL)"])
        .shared(Arc::new(AtomicU32::new(0)))
        .server("kv", Server::core_api().serve_unix().resources(resources))
        .server("hidden", Server::core_api().resources(Resources::at("hidden").endpoint(Endpoint::new("x").get(who))))
}

fn code(error: &microcluster_client::Error) -> u16 {
    error.code().unwrap_or_default()
}

async fn ask(client: &Client, path: &str) -> Result<Value, microcluster_client::Error> {
    client.query(Method::GET, path, ()).await
}

async fn refusal(client: &Client, method: Method, path: &str, body: Value) -> (u16, String) {
    let error = client.query::<Value>(method, path, body).await.unwrap_err();
    (code(&error), error.to_string())
}

#[tokio::test]
async fn endpoints_work_on_every_member_and_answer_in_the_envelope() {
    let cluster = Cluster::start(2, product).await;
    let (one, two) = (cluster.member(0), cluster.member(1));
    let _: Empty = one.client().query(Method::PUT, "/1.0/kv/a", "one").await.unwrap();
    let read = ask(&two.client(), "/1.0/keys/a").await.unwrap();
    assert_eq!(read, json!({"key": "a", "value": "one"}));
    let remote = one.app().remote_client(two.address()).unwrap();
    assert_eq!(ask(&remote, "/1.0/kv/a").await.unwrap(), read);
    assert_eq!(ask(&remote, "/hidden/x").await.unwrap(), json!("Member(\"n1\")"));
    assert_eq!(ask(&one.client(), "/").await.unwrap(), json!(["/core/1.0", "/1.0", "/hidden"]));

    let client = one.client();
    let (code, message) = refusal(&client, Method::GET, "/1.0/kv/b", Value::Null).await;
    assert_eq!(code, 404, "{message}");
    let (code, message) = refusal(&client, Method::PUT, "/1.0/kv/a", json!("again")).await;
    assert_eq!(code, 409, "{message}");
    for (body, expected) in [(json!(7), "string"), (Value::Null, "no body")] {
        let (code, message) = refusal(&client, Method::PUT, "/1.0/kv/c", body).await;
        assert!(code == 400 && message.contains(expected), "{code} {message}");
    }
    let (code, message) = refusal(&client, Method::PUT, "/1.0/kv/c", json!("x".repeat(2000))).await;
    assert!(code == 413 && message.contains("1000"), "{code} {message}");
    let (code, message) = refusal(&client, Method::DELETE, "/1.0/kv/c", Value::Null).await;
    assert!(code == 405 && message.contains("PUT"), "{code} {message}");
    let (code, _) = refusal(&client, Method::GET, "/hidden/x", Value::Null).await;
    assert_eq!(code, 404, "it is not served on the socket");
}

#[tokio::test]
async fn values_come_from_path_query_and_the_product() {
    let cluster = Cluster::start(1, product).await;
    let client = cluster.member(0).client();
    assert_eq!(ask(&client, "/1.0/sum/1/2?by=10").await.unwrap(), json!(30));
    for path in ["/1.0/sum/1/x?by=1", "/1.0/sum/1/2", "/1.0/sum/1/2?by=x"] {
        let (code, message) = refusal(&client, Method::GET, path, Value::Null).await;
        assert_eq!(code, 400, "{message}");
    }
    for expected in [1, 2] {
        let counted: Value = client.query(Method::POST, "/1.0/count", ()).await.unwrap();
        assert_eq!(counted, json!(expected));
    }
}

#[tokio::test]
async fn strangers_use_what_is_open_and_nothing_else() {
    let cluster = Cluster::start(1, product).await;
    let member = cluster.member(0);
    let pinned = pinned(member.dir());
    let anonymous = Client::tls(member.address(), None, &pinned).unwrap();
    let stranger = Client::tls(member.address(), Some(&stranger("n1")), &pinned).unwrap();
    assert_eq!(ask(&anonymous, "/1.0/who").await.unwrap(), json!("Anonymous"));
    assert!(ask(&stranger, "/1.0/who").await.unwrap().as_str().unwrap().starts_with("Certificate("));
    assert_eq!(ask(&member.client(), "/1.0/who").await.unwrap(), json!("Socket"));
    for client in [&anonymous, &stranger] {
        assert_eq!(ask(client, "/1.0/sum/1/2?by=1").await.unwrap(), json!(3));
        for path in ["/1.0/kv/a", "/1.0/ui/hello", "/1.0/local", "/1.0/leader", "/1.0/name", "/hidden/x"] {
            assert_eq!(refusal(client, Method::GET, path, Value::Null).await.0, 403, "{path}");
        }
    }
    assert_eq!(ask(&member.client(), "/1.0/local").await.unwrap(), json!("Socket"));
    let remote = member.app().remote_client(member.address()).unwrap();
    let (code, message) = refusal(&remote, Method::GET, "/1.0/local", Value::Null).await;
    assert!(code == 403 && message.contains("n1"), "the check is asked: {message}");
}

#[tokio::test]
async fn actions_run_where_they_are_for() {
    let cluster = Cluster::start(3, product).await;
    for member in cluster.members() {
        for target in cluster.members() {
            let answer = ask(&member.client().target(target.name().clone()), "/1.0/name").await.unwrap();
            assert_eq!(answer, json!(target.name()));
        }
        assert_eq!(ask(&member.client(), "/1.0/name").await.unwrap(), json!(member.name()));
        let (leader, answer) = eventually("one leads all the while", async || {
            let leader = cluster.leader().await;
            let answer = ask(&member.client(), "/1.0/leader").await;
            if cluster.leader().await == leader { Ok((leader, answer)) } else { Err("another one leads") }
        })
        .await;
        assert_eq!(answer.unwrap(), json!(cluster.member(leader).name()));
    }
    let nobody = cluster.member(0).client().target("n9".parse().unwrap());
    assert_eq!(refusal(&nobody, Method::GET, "/1.0/name", Value::Null).await.0, 404);
}

/// A request that is passed on is still that of whoever has asked, whatever they say themselves.
#[tokio::test]
async fn who_asks_is_known_on_the_member_that_does_it() {
    let cluster = Cluster::start(3, product).await;
    for member in cluster.members() {
        assert_eq!(ask(&member.client(), "/1.0/local-leader").await.unwrap(), json!("Socket"));
    }
    let (one, two) = (cluster.member(0), cluster.member(1));
    let anonymous = Client::tls(one.address(), None, &pinned(one.dir())).unwrap();
    let there = anonymous.target(two.name().clone());
    assert_eq!(ask(&there, "/1.0/who-there").await.unwrap(), json!("Anonymous"));
    let remote = two.app().remote_client(one.address()).unwrap().target("n3".parse().unwrap());
    assert_eq!(ask(&remote, "/1.0/who-there").await.unwrap(), json!("Member(\"n2\")"));
    for path in ["/1.0/who-there", "/1.0/who-there?target=n2", "/1.0/local-leader"] {
        let request = http::Request::get(path).header("microcluster-passed-on", "socket");
        let answer = anonymous.forward(request.body(bytes::Bytes::new()).unwrap()).await.unwrap();
        let status = answer.status().as_u16();
        let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
        let body = String::from_utf8_lossy(&body);
        assert!(status == 403 || body.contains("Anonymous"), "{path}: {status} {body}");
    }
}

#[tokio::test]
async fn the_bound_of_a_body_holds_whoever_reads_it() {
    let cluster = Cluster::start(1, product).await;
    let client = cluster.member(0).client();
    let put = async |bytes: usize| {
        let answer = client.query_raw(Method::PUT, "/1.0/text", vec![b'x'; bytes]).await.unwrap();
        answer.status().as_u16()
    };
    assert_eq!(put(3 << 20).await, 200, "more than axum takes by itself");
    assert_eq!(put(6 << 20).await, 413);
}

#[tokio::test]
async fn a_handler_that_hangs_or_panics_is_an_answer() {
    let cluster = Cluster::start(1, product).await;
    let client = cluster.member(0).client();
    let (code, message) = refusal(&client, Method::GET, "/1.0/never", Value::Null).await;
    assert!(code == 504 && message.contains("50ms"), "{code} {message}");
    for method in [Method::GET, Method::POST] {
        assert_eq!(refusal(&client, method, "/1.0/panics", Value::Null).await.0, 500);
    }
    assert_eq!(ask(&client, "/1.0/sum/1/2?by=1").await.unwrap(), json!(3), "the daemon goes on");
}

#[tokio::test]
async fn a_mounted_router_answers_below_its_path() {
    let cluster = Cluster::start(1, product).await;
    let client = cluster.member(0).client();
    let body = async |path: &str| {
        let answer = client.query_raw(Method::GET, path, "").await.unwrap();
        let status = answer.status().as_u16();
        let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    };
    assert_eq!(body("/1.0/ui/hello").await, (200, "hello".to_owned()));
    assert_eq!(body("/1.0/ui/item/7").await, (200, "item 7".to_owned()));
    assert_eq!(body("/1.0/ui").await, (200, "start".to_owned()));
    assert_eq!(body("/1.0/ui/").await, (200, "start".to_owned()));
    assert_eq!(body("/1.0/ui/nothing").await.0, 404);
}

/// It is a part of the product like any other: with the daemon in hand, and with the options of an action.
#[tokio::test]
async fn a_mounted_router_uses_the_database_and_has_bounds() {
    let notes = || {
        let bounded = service(notes()).body_limit(3 << 20).timeout(Duration::from_millis(300));
        Resources::at("1.0").mount("notes", bounded.access(Access::Open).allowed_before_init())
    };
    let cluster = Cluster::start(1, move |builder| {
        product(builder).server("notes", Server::core_api().serve_unix().resources(notes()))
    })
    .await;
    let client = cluster.member(0).client();
    let put = async |key: &str, bytes: usize| {
        let path = format!("/1.0/notes/{key}");
        client.query_raw(Method::PUT, &path, vec![b'x'; bytes]).await.unwrap().status().as_u16()
    };
    assert_eq!(put("a", 5 << 19).await, 200, "more than axum takes by itself");
    assert_eq!(put("b", 7 << 19).await, 413);
    let read = ask(&client, "/1.0/notes/a").await.unwrap();
    assert_eq!(read, json!({"key": "a", "value": format!("Socket: {} bytes", 5 << 19)}));
    assert_eq!(refusal(&client, Method::GET, "/1.0/notes/b", Value::Null).await.0, 404);
    assert_eq!(refusal(&client, Method::GET, "/1.0/notes/hang/here", Value::Null).await.0, 504);

    let dir = tempfile::tempdir().unwrap();
    let builder = product(microcluster::Daemon::builder(dir.path()));
    let server = Server::core_api().serve_unix().resources(notes());
    let daemon = builder.server("notes", server).start().await.unwrap();
    let client = App::new(dir.path()).local_client();
    assert_eq!(ask(&client, "/1.0/notes/counted/now?by=7").await.unwrap(), json!(7));
    assert_eq!(refusal(&client, Method::GET, "/1.0/notes/a", Value::Null).await.0, 503);
    daemon.shutdown().await;
    daemon.wait().await.unwrap();
}

#[tokio::test]
async fn before_bootstrap_only_what_is_allowed_answers() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = product(microcluster::Daemon::builder(dir.path())).start().await.unwrap();
    let client = App::new(dir.path()).local_client();
    let (code, message) = refusal(&client, Method::GET, "/1.0/name", Value::Null).await;
    assert!(code == 503 && message.contains("not initialised"), "{code} {message}");
    let counted: Value = client.query(Method::POST, "/1.0/count", ()).await.unwrap();
    assert_eq!(counted, json!(1));
    daemon.shutdown().await;
    daemon.wait().await.unwrap();
}

fn pinned(dir: &std::path::Path) -> ServerTrust {
    let pem = std::fs::read_to_string(dir.join("cluster.crt")).unwrap();
    ServerTrust::Pinned(Fingerprint::of_pem(&pem).unwrap())
}
