//! Daemons in this process, driven over their sockets: bootstrap, join, remove, restart, and what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../src/testing/address.rs"]
mod address;

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use address::address_free;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use microcluster::{Daemon, Handle, StartError};
use microcluster_client::{
    Address, Client, ControlRequest, Empty, Error, Identity, Member, Name, Role, Secret, ServerTrust, SqlRequest,
    TokenRequest,
};
use tempfile::TempDir;

/// How long anything may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(30);

/// One daemon with a state directory of its own.
struct Member1 {
    dir: TempDir,
    name: Name,
    address: Address,
    handle: Option<Handle>,
}

impl Member1 {
    async fn start(name: &str) -> Member1 {
        // The log of the daemons, for a test that fails: RUST_LOG=debug.
        let level = std::env::var("RUST_LOG").ok().and_then(|level| level.parse().ok());
        let level = level.unwrap_or(tracing_subscriber::filter::LevelFilter::ERROR);
        tracing_subscriber::fmt().with_max_level(level).with_test_writer().try_init().ok();
        let mut member = Member1 {
            dir: tempfile::tempdir().unwrap(),
            name: name.parse().unwrap(),
            address: address_free(),
            handle: None,
        };
        member.start_again().await;
        member
    }

    async fn start_again(&mut self) {
        let builder = Daemon::builder(self.dir.path())
            .version("1.2.3")
            .heartbeat_interval(Duration::from_millis(300))
            .drain_timeout(Duration::from_secs(2));
        self.handle = Some(builder.start().await.unwrap());
    }

    async fn stop(&mut self) {
        let handle = self.handle.take().unwrap();
        handle.shutdown().await;
        handle.wait().await.unwrap();
        assert!(!self.socket().exists(), "the socket is gone with its daemon");
    }

    async fn bootstrap(name: &str) -> Member1 {
        let member = Member1::start(name).await;
        let request = ControlRequest::bootstrap(member.name.clone(), member.address);
        member.client().control(&request).await.unwrap();
        member
    }

    async fn join(name: &str, through: &Member1) -> Member1 {
        let member = Member1::start(name).await;
        member.join_by(through.token(name).await).await.unwrap();
        member
    }

    async fn join_by(&self, token: Secret) -> Result<(), Error> {
        self.client().control(&ControlRequest::join(self.name.clone(), self.address, token)).await
    }

    async fn token(&self, name: &str) -> Secret {
        let request = TokenRequest { name: name.parse().unwrap(), expire_after: None };
        self.client().query(Method::POST, "/core/control/tokens", request).await.unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("control.socket")
    }

    fn client(&self) -> Client {
        Client::unix(self.socket()).timeout(PATIENCE)
    }

    async fn sql(&self, query: &str) -> Vec<Vec<serde_json::Value>> {
        let results = self.client().sql(&SqlRequest::new(query)).await.unwrap();
        results.into_iter().last().and_then(|result| result.rows).unwrap_or_default()
    }

    async fn members(&self) -> Vec<Member> {
        self.client().cluster_members().await.unwrap()
    }

    /// A client over TLS with the certificate of another daemon, or none.
    fn tls_client(&self, identity: Option<&Member1>) -> Client {
        let read = |member: &Member1, file: &str| std::fs::read_to_string(member.dir.path().join(file)).unwrap();
        let identity = identity.map(|member| Identity::new(read(member, "server.crt"), read(member, "server.key")));
        let trust = ServerTrust::pinned_pem(&read(self, "cluster.crt")).unwrap();
        Client::tls(self.address, identity.as_ref(), &trust).unwrap().timeout(PATIENCE)
    }
}

/// Waits for a condition, and says what was waited for when it does not come.
async fn eventually<F: AsyncFnMut() -> bool>(what: &str, mut condition: F) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> (u16, String) {
    match result.unwrap_err() {
        Error::Status { code, message, .. } => (code, message),
        other => panic!("no answer of the daemon: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_daemons_are_one_cluster_with_one_database() {
    let c1 = Member1::bootstrap("c1").await;
    let c2 = Member1::join("c2", &c1).await;
    let c3 = Member1::join("c3", &c2).await;
    let tokens: Vec<Empty> = c1.client().query(Method::GET, "/core/control/tokens", ()).await.unwrap();
    assert!(tokens.is_empty(), "they are spent");
    c1.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, by TEXT)").await;
    for member in [&c1, &c2, &c3] {
        member.sql(&format!("INSERT INTO t(by) VALUES ('{}')", member.name)).await;
    }
    for member in [&c1, &c2, &c3] {
        assert_eq!(member.sql("SELECT by FROM t ORDER BY by").await, [["c1"], ["c2"], ["c3"]]);
        let members = member.members().await;
        let shown: Vec<_> = members.iter().map(|m| (m.name.as_str(), m.role, m.status.as_str())).collect();
        let expected: Vec<_> = ["c1", "c2", "c3"].map(|name| (name, Role::Voter, "ONLINE")).into();
        assert_eq!(shown, expected);
        assert!(members.iter().all(|member| member.secret.is_empty() && member.extensions.len() == 2));
        let status = member.client().status().await.unwrap();
        assert!(status.ready);
        assert_eq!((status.name.as_str(), status.address), (member.name.as_str(), Some(member.address)));
        let status = member.client().daemon_status().await.unwrap();
        assert_eq!((status.role, status.members), (Role::Voter, 3));
        // Any of the three: a disk that stalls can cost the first one its place.
        eventually("a leader with a quorum", async || {
            member.client().daemon_status().await.is_ok_and(|status| status.leader.is_some() && status.quorum)
        })
        .await;
    }
    eventually("heartbeats in the list", async || c2.members().await.iter().all(|m| !m.last_heartbeat.is_zero())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_back_after_a_restart_of_all() {
    let mut c1 = Member1::bootstrap("c1").await;
    let mut c2 = Member1::join("c2", &c1).await;
    c1.sql("CREATE TABLE t(id INTEGER PRIMARY KEY)").await;
    c2.sql("INSERT INTO t VALUES (7)").await;
    c1.stop().await;
    c2.stop().await;
    c1.start_again().await;
    c2.start_again().await;
    for member in [&c1, &c2] {
        member.client().wait_ready(PATIENCE).await.unwrap();
        assert_eq!(member.sql("SELECT id FROM t").await, [[7]]);
    }
}

/// What a joiner has on disk when it is killed after it was admitted.
async fn admitted(c1: &Member1) -> Member1 {
    let mut c2 = Member1::start("c2").await;
    // A try that is refused gives the daemon its certificate for that name.
    assert_eq!(code(c2.join_by(c1.token("other").await).await).0, 403);
    c2.stop().await;
    let token = c1.token("c2").await;
    let secret = token_json(&token)["secret"].clone();
    let certificate = std::fs::read_to_string(c2.dir.path().join("server.crt")).unwrap();
    let own = c1.members().await.remove(0);
    let request = serde_json::json!({
        "name": "c2", "address": c2.address, "certificate": certificate, "secret": secret,
        "schema_internal_version": own.schema_internal_version, "extensions": own.extensions,
    });
    let answer: serde_json::Value =
        c1.tls_client(None).query(Method::POST, "/core/internal/cluster", request).await.unwrap();
    let record = serde_json::json!({
        "id": answer["member_id"], "name": "c2", "address": c2.address, "config": {}, "secret": secret,
        "cluster_cert": answer["cluster_cert"], "cluster_key": answer["cluster_key"],
        "members": answer["cluster_members"],
    });
    std::fs::write(c2.dir.path().join("joining.json"), record.to_string()).unwrap();
    c2
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_a_kill_interrupted_is_finished() {
    let c1 = Member1::bootstrap("c1").await;
    let mut c2 = admitted(&c1).await;
    assert_eq!(c1.members().await[1].role, Role::Pending);
    c2.start_again().await;
    c2.client().wait_ready(PATIENCE).await.unwrap();
    assert_eq!(c2.members().await[1].role, Role::Voter);
    let tokens: Vec<serde_json::Value> = c1.client().query(Method::GET, "/core/control/tokens", ()).await.unwrap();
    assert!(tokens.iter().all(|token| token["name"] != "c2"), "the token is spent");
    assert!(!c2.dir.path().join("joining.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_whose_token_was_revoked_meanwhile_leaves_nothing() {
    let c1 = Member1::bootstrap("c1").await;
    let mut c2 = admitted(&c1).await;
    let _: Empty = c1.client().query(Method::DELETE, "/core/1.0/tokens/c2", ()).await.unwrap();
    c2.start_again().await;
    eventually("c2 to be uninitialised", async || c2.client().ready().await.is_ok()).await;
    let mut left: Vec<_> =
        std::fs::read_dir(c2.dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    let expected = ["certificates", "control.socket", "daemon.lock", "server.crt", "server.key", "truststore"];
    assert_eq!(left, expected);
    eventually("the row to be dropped", async || c1.members().await.len() == 1).await;
    c2.join_by(c1.token("c2").await).await.unwrap();
    // The id of the first try is not given again.
    assert_eq!(c1.sql("SELECT id FROM core_cluster_members ORDER BY id").await, [[1], [3]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_member_forgets_the_cluster_and_can_join_again() {
    let c1 = Member1::bootstrap("c1").await;
    let c2 = Member1::join("c2", &c1).await;
    let c3 = Member1::join("c3", &c1).await;
    // A follower is asked to remove another one: it passes that on.
    let _: Empty = c2.client().query(Method::DELETE, "/core/1.0/cluster/c3", ()).await.unwrap();
    eventually("c3 to be uninitialised", async || c3.client().status().await.is_ok_and(|s| !s.ready)).await;
    assert_eq!(c1.members().await.len(), 2);
    assert_eq!(code(c2.client().query::<Empty>(Method::DELETE, "/core/1.0/cluster/c3", ()).await).0, 404);
    // Its certificate is nobody's any more.
    eventually("c1 to have forgotten c3", async || {
        matches!(c1.tls_client(Some(&c3)).ready().await, Err(Error::Status { code: 403, .. }))
    })
    .await;
    let token = c1.token("c3").await;
    eventually("c3 to join again", async || c3.join_by(token.clone()).await.is_ok()).await;
    assert_eq!(c3.members().await.len(), 3);
    // The leader can be removed too, on its own socket.
    let _: Empty = c1.client().query(Method::DELETE, "/core/1.0/cluster/c1", ()).await.unwrap();
    eventually("c1 to be uninitialised", async || c1.client().status().await.is_ok_and(|s| !s.ready)).await;
    let names: Vec<_> = c2.members().await.into_iter().map(|member| member.name.to_string()).collect();
    assert_eq!(names, ["c2", "c3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_member_is_removed_by_force_and_comes_back_under_a_new_token() {
    let c1 = Member1::bootstrap("c1").await;
    let _c2 = Member1::join("c2", &c1).await;
    let mut c3 = Member1::join("c3", &c1).await;
    c3.stop().await;
    let (status, message) = code(c1.client().query::<Empty>(Method::DELETE, "/core/1.0/cluster/c3", ()).await);
    assert_eq!(status, 503);
    assert!(message.contains("--force"), "{message}");
    let _: Empty = c1.client().query(Method::DELETE, "/core/1.0/cluster/c3?force=1", ()).await.unwrap();
    let mut c3 = Member1 { dir: tempfile::tempdir().unwrap(), ..c3 };
    c3.start_again().await;
    c3.join_by(c1.token("c3").await).await.unwrap();
    assert_eq!(c3.sql("SELECT count(*) FROM core_cluster_members").await, [[3]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_finds_back_that_was_down_while_others_came_and_went() {
    let c1 = Member1::bootstrap("c1").await;
    let c2 = Member1::join("c2", &c1).await;
    let mut c3 = Member1::join("c3", &c1).await;
    c3.stop().await;
    let c4 = Member1::join("c4", &c2).await;
    let _: Empty = c1.client().query(Method::DELETE, "/core/1.0/cluster/c1", ()).await.unwrap();
    eventually("c4 to vote in the place of c1", async || {
        c4.client().daemon_status().await.is_ok_and(|status| status.role == Role::Voter)
    })
    .await;
    c4.sql("CREATE TABLE t(id INTEGER PRIMARY KEY)").await;
    c3.start_again().await;
    c3.client().wait_ready(PATIENCE).await.unwrap();
    c3.sql("INSERT INTO t VALUES (1)").await;
    assert_eq!(c4.sql("SELECT id FROM t").await, [[1]]);
    let trusted = || {
        let files = std::fs::read_dir(c3.dir.path().join("truststore")).unwrap();
        let mut names: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    eventually("c3 to trust the members there are", async || trusted() == ["c2.yaml", "c3.yaml", "c4.yaml"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_do_not_fit_are_refused_and_leave_nothing() {
    let c1 = Member1::bootstrap("c1").await;
    let other = Member1::bootstrap("c1").await;
    let c2 = Member1::start("c2").await;
    let refused = async |token: Secret| code(c2.join_by(token).await);
    assert_eq!(refused("garbage!".into()).await.0, 400);
    let (status, message) = refused(c1.token("c3").await).await;
    assert_eq!(status, 403);
    assert!(message.contains("c3"), "{message}");
    let revoked = c1.token("c2").await;
    let _: Empty = c1.client().query(Method::DELETE, "/core/1.0/tokens/c2", ()).await.unwrap();
    assert_eq!(refused(revoked).await.0, 404);
    let soon = serde_json::json!({"name": "c2", "expire_after": 1});
    let expired: Secret = c1.client().query(Method::POST, "/core/control/tokens", soon).await.unwrap();
    assert_eq!(refused(expired).await.0, 403);
    let _: Empty = c1.client().query(Method::DELETE, "/core/1.0/tokens/c2", ()).await.unwrap();
    // The address of one cluster in the token of another: the fingerprint does not fit, nothing is sent.
    let crossed = crossed_token(&other.token("c2").await, c1.address);
    let (status, message) = refused(crossed).await;
    assert_eq!(status, 403);
    assert!(message.contains("Nothing was sent"), "{message}");
    assert!(!c2.dir.path().join("joining.json").exists());
    // The same daemon joins with a good one; the token is used up then.
    let good = c1.token("c2").await;
    c2.join_by(good.clone()).await.unwrap();
    let c3 = Member1 { name: "c2".parse().unwrap(), ..Member1::start("c3").await };
    let (status, message) = code(c3.join_by(good).await);
    assert_eq!(status, 404, "{message}");
    let again = TokenRequest { name: "c2".parse().unwrap(), expire_after: None };
    let (status, message) = code(c1.client().add_token(&again).await);
    assert_eq!(status, 409, "{message}");
    assert_eq!(c1.members().await.len(), 2);
}

fn token_json(token: &Secret) -> serde_json::Value {
    serde_json::from_slice(&STANDARD.decode(token.expose()).unwrap()).unwrap()
}

fn crossed_token(token: &Secret, address: Address) -> Secret {
    let mut json = token_json(token);
    json["join_addresses"] = serde_json::json!([address]);
    Secret::new(STANDARD.encode(json.to_string()))
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_have_their_codes() {
    let mut c1 = Member1::start("c1").await;
    let client = c1.client();
    assert_eq!(client.status().await.unwrap().version, "1.2.3");
    client.ready().await.unwrap();
    let (status, message) = code(client.cluster_members().await);
    assert_eq!(status, 503);
    assert!(message.contains("microctl init"), "{message}");
    let refused = async |method: Method, path: &str, body: &str| {
        let response = c1.client().query_raw(method, path, body.to_owned()).await.unwrap();
        (response.status().as_u16(), response.headers().clone())
    };
    for body in ["", "null", "{bad", "[]", "{}", r#"{"bootstrap":true,"name":"a_b","address":"127.0.0.1:9001"}"#] {
        assert_eq!(refused(Method::POST, "/core/control", body).await.0, 400, "{body}");
    }
    assert_eq!(refused(Method::POST, "/core/control", &"x".repeat(65 << 10)).await.0, 413);
    assert_eq!(refused(Method::GET, "/core/1.0/", "").await.0, 404);
    assert_eq!(refused(Method::POST, "/nope", "{}").await.0, 404);
    let (status, headers) = refused(Method::PATCH, "/core/1.0", "").await;
    assert_eq!((status, headers["allow"].to_str().unwrap()), (405, "GET, HEAD, OPTIONS"));
    assert_eq!(refused(Method::HEAD, "/core/1.0", "").await.0, 200);
    assert_eq!(refused(Method::OPTIONS, "/core/1.0", "").await.0, 204);
    assert!(refused(Method::GET, "/core/1.0", "").await.1.contains_key("x-request-id"));

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: Address = taken.local_addr().unwrap().into();
    assert_eq!(code(client.control(&ControlRequest::bootstrap(c1.name.clone(), address)).await).0, 409);
    let request = ControlRequest::bootstrap(c1.name.clone(), c1.address);
    client.control(&request).await.unwrap();
    assert_eq!(code(client.control(&request).await).0, 409, "a second init");
    for (query, expected) in [("", 400), ("SELECT * FROM nope", 400), ("ATTACH 'x' AS y", 400), ("SELEC", 400)] {
        assert_eq!(code(client.sql(&SqlRequest::new(query)).await).0, expected, "{query}");
    }
    c1.sql("CREATE TABLE u(id INTEGER UNIQUE)").await;
    c1.sql("INSERT INTO u VALUES (1)").await;
    assert_eq!(code(client.sql(&SqlRequest::new("INSERT INTO u VALUES (1)")).await).0, 409);
    assert_eq!(code(client.cluster_member(&"c9".parse().unwrap()).await).0, 404);
    let (status, _) = code(client.query::<Empty>(Method::DELETE, "/core/1.0/cluster/c1", ()).await);
    assert_eq!(status, 409, "the only member");

    let second = Daemon::builder(c1.dir.path()).start().await.unwrap_err();
    assert!(matches!(second, StartError::Held { .. }), "{second}");
    c1.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_only_members_are_served() {
    let c1 = Member1::bootstrap("c1").await;
    let stranger = Member1::start("c9").await;
    let (member, foreign, nobody) = (c1.tls_client(Some(&c1)), c1.tls_client(Some(&stranger)), c1.tls_client(None));
    assert_eq!(member.cluster_members().await.unwrap().len(), 1);
    member.ready().await.unwrap();
    for client in [&foreign, &nobody] {
        assert!(client.status().await.unwrap().ready, "anybody may ask for that");
        assert_eq!(code(client.ready().await).0, 403);
        assert_eq!(code(client.cluster_members().await).0, 403);
        assert_eq!(code(client.sql(&SqlRequest::new("SELECT 1")).await).0, 403);
    }
    for client in [&member, &foreign, &nobody] {
        assert_eq!(code(client.query::<Empty>(Method::GET, "/core/control/tokens", ()).await).0, 404);
        assert_eq!(code(client.query::<Empty>(Method::POST, "/core/control/shutdown", ()).await).0, 404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_api_ends_the_daemon() {
    let mut c1 = Member1::bootstrap("c1").await;
    c1.client().shutdown().await.unwrap();
    c1.handle.take().unwrap().wait().await.unwrap();
    assert!(!c1.socket().exists());
}
