//! Answers without the envelope, and what handlers see of their daemon.

use futures_util::stream;
use http::Method;
use http_body_util::BodyExt;
use microcluster::testing::Cluster;
use microcluster::{Builder, Endpoint, Json, Path, Resources, Response, Result, Server, State};
use microcluster_client::{Client, Error, RawResponse};
use serde_json::{Value, json};

/// As many numbers as are asked for, and then an error where that is asked for too.
async fn numbers(Path((count, ends)): Path<(u32, String)>) -> Response {
    let number = |number: u32| Ok::<_, std::io::Error>(bytes::Bytes::from(format!("{number}\n")));
    let error = (ends == "badly").then(|| Err(std::io::Error::other("as it was asked to")));
    Response::stream("text/plain", stream::iter((1..=count).map(number).chain(error)))
}

async fn own_file(state: State, Path(name): Path<String>) -> Result<Response> {
    Response::file("application/octet-stream", state.state_dir().join(name)).await
}

async fn about(state: State) -> Json<Value> {
    Json(json!({
        "version": state.version(),
        "dir": state.state_dir(),
        "cluster": state.cluster_certificate(),
        "server": state.server_certificate_pem(),
    }))
}

fn product(builder: Builder) -> Builder {
    let resources = Resources::at("1.0")
        .endpoint(Endpoint::new("numbers/{count}/{ends}").get(numbers))
        .endpoint(Endpoint::new("file/{name}").get(own_file))
        .endpoint(Endpoint::new("about").get(about));
    builder.version("4.5.6").server("answers", Server::core_api().serve_unix().resources(resources))
}

async fn get(client: &Client, path: &str) -> RawResponse {
    client.query_raw(Method::GET, path, "").await.unwrap()
}

#[tokio::test]
async fn a_stream_is_sent_as_it_comes_and_ends_with_its_error() {
    let cluster = Cluster::start(1, product).await;
    let client = cluster.member(0).client();
    let answer = get(&client, "/1.0/numbers/3/well").await;
    assert_eq!(answer.headers()["content-type"], "text/plain");
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "1\n2\n3\n");
    // Where it had not even begun, the connection ends instead.
    match client.query_raw(Method::GET, "/1.0/numbers/3/badly", "").await {
        Ok(begun) => assert!(begun.into_body().collect().await.is_err(), "it does not look whole"),
        Err(error) => assert!(matches!(error, Error::Interrupted { .. }), "{error:?}"),
    }
}

#[tokio::test]
async fn a_file_is_sent_or_not_found() {
    let cluster = Cluster::start(1, product).await;
    let (client, dir) = (cluster.member(0).client(), cluster.member(0).dir());
    let large: Vec<u8> = (0..1_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
    std::fs::write(dir.join("large"), &large).unwrap();
    let answer = get(&client, "/1.0/file/large").await;
    assert_eq!(answer.headers()["content-type"], "application/octet-stream");
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), large);
    let missing = client.query::<Value>(Method::GET, "/1.0/file/nothing", ()).await.unwrap_err();
    assert_eq!(missing.code(), Some(404), "{missing}");
}

#[tokio::test]
async fn a_handler_knows_its_daemon() {
    let cluster = Cluster::start(1, product).await;
    let member = cluster.member(0);
    let about: Value = member.client().query(Method::GET, "/1.0/about", ()).await.unwrap();
    let file = |name: &str| std::fs::read_to_string(member.dir().join(name)).unwrap();
    assert_eq!(about["version"], "4.5.6");
    assert_eq!(about["dir"], json!(member.dir()));
    assert_eq!(about["cluster"], json!(file("cluster.crt")));
    assert_eq!(about["server"], json!(file("server.crt")));
}
