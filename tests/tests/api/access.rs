//! Who may do what: every route for every caller, over the socket and over TLS.

use std::process::Stdio;

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use cluster_tests::{Caller, Daemon, Payload, Protocol, Target, TestCluster, address_free, eventually, stranger};
use http::StatusCode;
use microcluster::testing::core_routes;
use microcluster_client::{Fingerprint, Identity, ServerTrust};
use serde_json::{Value, json};

/// What a request gets: from the socket, a member, a joiner that was admitted and is not confirmed, a stranger with a certificate,
/// somebody without one; and from the socket of a daemon that is not initialised. A removed member gets what a stranger gets, and so
/// does a joiner, except for the Raft transport, by which it is brought the log, and the list of those who may bring it.
type Row = (&'static str, &'static str, [u16; 6]);

/// One harmless request for each route: it fails for who may use it rather than change anything. 404 is
/// what a route gets that is not served there.
const ROUTES: &[Row] = &[
    ("GET /", "", [200, 200, 200, 200, 200, 200]),
    ("GET /core/1.0", "", [200, 200, 200, 200, 200, 200]),
    ("GET /core/1.0/openapi.json", "", [200, 200, 200, 200, 200, 200]),
    ("GET /core/1.0/ready", "", [200, 200, 403, 403, 403, 200]),
    ("GET /core/1.0/daemon/config", "", [200, 200, 403, 403, 403, 503]),
    ("PUT /core/1.0/daemon/config", "{}", [200, 200, 403, 403, 403, 503]),
    ("PATCH /core/1.0/daemon/config", "{}", [200, 200, 403, 403, 403, 503]),
    ("GET /core/1.0/daemon/servers", "", [200, 200, 403, 403, 403, 503]),
    ("PUT /core/1.0/daemon/servers", "{}", [200, 200, 403, 403, 403, 503]),
    ("GET /core/1.0/daemon/status", "", [200, 200, 403, 403, 403, 503]),
    ("GET /core/1.0/cluster", "", [200, 200, 200, 403, 403, 503]),
    ("GET /core/1.0/cluster/c1", "", [200, 200, 403, 403, 403, 503]),
    ("DELETE /core/1.0/cluster/nobody", "", [404, 404, 403, 403, 403, 503]),
    ("PUT /core/1.0/cluster/certificates/cluster", "{}", [400, 400, 403, 403, 403, 400]),
    ("POST /core/1.0/database/verify", "", [200, 200, 403, 403, 403, 503]),
    ("DELETE /core/1.0/tokens/nobody", "", [404, 404, 403, 403, 403, 503]),
    ("POST /core/control", "{}", [409, 404, 404, 404, 404, 400]),
    ("PUT /core/control/shutdown", "", [405, 404, 404, 404, 404, 405]),
    ("GET /core/control/tokens", "", [200, 404, 404, 404, 404, 503]),
    ("POST /core/control/tokens", "{}", [400, 404, 404, 404, 404, 503]),
    // What opens these is a token in the body, so they look into it first.
    ("POST /core/internal/cluster", "{}", [400, 400, 400, 400, 400, 503]),
    ("POST /core/internal/cluster/nobody/confirm", "{}", [404, 400, 400, 400, 400, 404]),
    ("POST /core/internal/cluster/nobody/drop", "{}", [404, 400, 400, 400, 400, 404]),
    ("POST /core/internal/cluster/nobody/rebuild", "{}", [404, 400, 403, 403, 403, 404]),
    ("PUT /core/internal/cluster/nobody", "", [404, 404, 403, 403, 403, 404]),
    ("GET /core/internal/membership", "", [404, 200, 200, 200, 403, 404]),
    ("GET /core/internal/sql?schema=1", "", [200, 200, 403, 403, 403, 503]),
    ("POST /core/internal/sql", r#"{"query":"SELECT 1"}"#, [200, 200, 403, 403, 403, 503]),
    ("POST /core/internal/database", "", [400, 400, 400, 403, 403, 503]),
    ("PATCH /core/internal/database", "", [200, 200, 403, 403, 403, 503]),
    ("POST /core/internal/certificates", "", [200, 200, 403, 403, 403, 503]),
    ("POST /core/internal/heartbeat", "{}", [200, 200, 403, 403, 403, 503]),
    ("POST /core/internal/hooks/nobody", "{}", [404, 404, 403, 403, 403, 503]),
    ("POST /core/internal/truststore", "{}", [400, 400, 403, 403, 403, 503]),
    ("DELETE /core/internal/truststore/nobody", "", [200, 200, 403, 403, 403, 503]),
    ("GET /core/internal", "", [404, 404, 404, 404, 404, 404]),
    ("GET /nowhere", "", [404, 404, 404, 404, 404, 404]),
];

/// What is served on the address that is open before initialisation, to a stranger; 404 for everything else.
const PRE_INIT: &[(&str, u16)] =
    &[("GET /", 200), ("GET /core/1.0", 200), ("GET /core/1.0/openapi.json", 200), ("GET /core/1.0/ready", 503)];

#[tokio::test]
async fn every_route_for_every_caller() {
    let mut cluster = TestCluster::start(3).await;
    let removed = cluster.members.pop().unwrap();
    let (leader, follower) = (&cluster.members[0], &cluster.members[1]);
    let was_member = Target::tls(leader.address(), Some(&removed.identity()), &leader.trust());
    leader.remove(removed.name()).await;
    let (mut uninitialised, early) = (Daemon::new("c4"), address_free());
    uninitialised.arguments(["--pre-init-listen", &early.to_string()]);
    uninitialised.start_again().await;
    let trust = ServerTrust::pinned_pem(&uninitialised.read("server.crt")).unwrap();
    let early = Target::tls(early, Some(&stranger("c1")), &trust);
    let member = Target::tls(leader.address(), Some(&follower.identity()), &leader.trust());
    let joiner = Target::tls(leader.address(), Some(&admitted(leader, "c5").await), &leader.trust());
    let callers = [
        ("socket", Target::new(leader, Caller::Socket)),
        ("member", member),
        ("joiner", joiner),
        ("stranger", Target::new(leader, Caller::Stranger)),
        ("nobody", Target::new(leader, Caller::Nobody)),
        ("the socket of a daemon without a cluster", Target::new(&uninitialised, Caller::Socket)),
        ("a removed member", was_member),
        ("a stranger before initialisation", early),
    ];
    let mut wrong = Vec::new();
    for (request, body, expected) in ROUTES {
        let early = PRE_INIT.iter().find(|(open, _)| open == request).map_or(404, |(_, code)| *code);
        let expected = expected.iter().chain([&expected[3], &early]);
        for ((caller, target), expected) in callers.iter().zip(expected) {
            let answer = target.send(request, Payload::bytes(*body)).await;
            if answer.status != *expected {
                wrong.push(format!("{request} for {caller}: {} instead of {expected}", answer.status));
            } else if *expected >= 400 {
                let message = answer.error(*expected);
                let path = request.split_once(' ').unwrap().1;
                let is_unknown = *expected == 404 && !message.contains("nobody");
                assert!(!is_unknown || message.contains(path.split('?').next().unwrap()), "{request}: {message}");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    uninitialised.is_uninitialised().await.unwrap();
    assert_eq!(leader.member_names().await.unwrap(), ["c1", "c2", "c5"]);
}

/// Has a joiner admitted that nobody hears of again; returns its certificate.
async fn admitted(leader: &Daemon, name: &str) -> Identity {
    let (identity, own) = (stranger(name), leader.members().await.unwrap().remove(0));
    let token = leader.token(&name.parse().unwrap()).await;
    let token: Value = serde_json::from_slice(&BASE64.decode(token.expose()).unwrap()).unwrap();
    let presented = json!({
        "name": name,
        "address": address_free(),
        "certificate": identity.cert_pem,
        "schema_internal_version": own.schema_internal_version,
        "schema_external_version": own.schema_external_version,
        "extensions": own.extensions,
        "secret": token["secret"],
    });
    let target = Target::tls(leader.address(), Some(&identity), &leader.trust());
    let _ = target.send("POST /core/internal/cluster", Payload::json(&presented)).await.metadata();
    identity
}

/// Also on a member that only follows, and after a restart: the joiner is known there from the table alone.
#[tokio::test]
async fn a_joiner_that_is_not_confirmed_is_no_member() {
    let mut cluster = TestCluster::start(2).await;
    cluster.settled(&["c1", "c2"]).await;
    let joiner = admitted(&cluster.members[0], "c5").await;
    for is_restarted in [false, true] {
        for member in &cluster.members {
            let target = Target::tls(member.address(), Some(&joiner), &member.trust());
            eventually("it is known", async || {
                match target.send("GET /core/1.0/cluster", Payload::none()).await.status {
                    200 => Ok(()),
                    status => Err(status),
                }
            })
            .await;
            let sql = Payload::json(&json!({"query": "SELECT 1"}));
            for (request, payload) in [
                ("POST /core/internal/sql", sql),
                ("GET /core/1.0/daemon/status", Payload::none()),
                ("DELETE /core/1.0/cluster/c2?force=1", Payload::none()),
            ] {
                let message = target.send(request, payload).await.error(403);
                assert!(message.contains("confirmed"), "{request} on {}, {is_restarted}: {message}", member.name());
            }
            assert!(!member.dir().join("truststore/c5.yaml").exists());
        }
        if !is_restarted {
            for member in &mut cluster.members {
                member.kill();
                member.spawn();
            }
            for member in &mut cluster.members {
                member.wait_ready().await;
            }
        }
    }
}

/// Every route of the table has a row above, those that only members use among themselves too.
#[test]
fn no_route_is_left_out() {
    let is_of = |template: &str, path: &str| {
        let (template, path): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
        template.len() == path.len()
            && template.iter().zip(path).all(|(one, other)| one.starts_with('{') || *one == other)
    };
    let has_row = |(method, template): &(String, String)| {
        let mut rows = ROUTES.iter().map(|(request, ..)| request.split('?').next().unwrap().split_once(' ').unwrap());
        // What stops the daemon is not asked for: another method of its path is.
        rows.any(|(own, path)| is_of(template, path) && (own == method || path == "/core/control/shutdown"))
    };
    let routes = core_routes();
    assert!(routes.len() > 30, "{routes:?}");
    let missing: Vec<_> = routes.iter().filter(|route| !has_row(route)).collect();
    assert!(missing.is_empty(), "give these a row: {missing:?}");
}

/// A removal can name the member by its id too: one that has joined under the same name since then is another one.
#[tokio::test]
async fn a_removal_is_of_the_member_with_the_id_and_the_address() {
    let cluster = TestCluster::start(2).await;
    cluster.settled(&["c1", "c2"]).await;
    for member in &cluster.members {
        let target = Target::new(member, Caller::Socket);
        let message = target.send("DELETE /core/1.0/cluster/c2?id=99", Payload::none()).await.error(404);
        assert!(message.contains("c2"), "{message}");
        let message = target.send("DELETE /core/1.0/cluster/c2?id=x", Payload::none()).await.error(400);
        assert!(message.contains("id"), "{message}");
        for address in ["127.0.0.1:1", "127.0.0.1%3A1", "[::1]:9001"] {
            let request = format!("DELETE /core/1.0/cluster/c2?force=1&address={address}");
            let message = target.send(&request, Payload::none()).await.error(404);
            assert!(message.contains(&cluster.members[1].address().to_string()), "{message}");
        }
        let message = target.send("DELETE /core/1.0/cluster/c2?address=x", Payload::none()).await.error(400);
        assert!(message.contains("address"), "{message}");
    }
    assert_eq!(cluster.members[0].member_names().await.unwrap(), ["c1", "c2"]);
    let request = format!("DELETE /core/1.0/cluster/c2?address={}", cluster.members[1].address());
    let target = Target::new(&cluster.members[0], Caller::Socket);
    let _ = target.send(&request, Payload::none()).await.metadata();
    assert_eq!(cluster.members[0].member_names().await.unwrap(), ["c1"]);
}

/// The cluster's own certificate is on every member and opens nothing.
#[tokio::test]
async fn the_cluster_certificate_is_no_members() {
    let cluster = TestCluster::start(1).await;
    let target = Target::new(&cluster.members[0], Caller::Cluster);
    let message = target.send("GET /core/1.0/cluster", Payload::none()).await.error(403);
    assert!(message.contains("no member"), "{message}");
}

/// The certificate of a member that was removed opens nothing from then on, on all members.
#[tokio::test]
async fn a_removed_member_is_a_stranger() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    let removed = cluster.members.remove(2);
    let targets: Vec<_> = cluster
        .members
        .iter()
        .map(|member| Target::tls(member.address(), Some(&removed.identity()), &member.trust()))
        .collect();
    for target in &targets {
        let _ = target.send("GET /core/1.0/cluster", Payload::none()).await.metadata();
    }
    cluster.members[0].remove(removed.name()).await;
    for target in &targets {
        eventually("the removed member is refused", async || {
            match target.send("GET /core/1.0/cluster", Payload::none()).await.status {
                403 => Ok(()),
                other => Err(format!("it gets {other}")),
            }
        })
        .await;
    }
    eventually("the removed member is free", async || removed.is_uninitialised().await).await;
}

/// A second version of HTTP, the same answers.
#[tokio::test]
async fn both_versions_of_http_are_served() {
    let cluster = TestCluster::start(1).await;
    let daemon = &cluster.members[0];
    for caller in [Caller::Socket, Caller::Member, Caller::Stranger, Caller::Nobody] {
        let target = Target::new(daemon, caller);
        let mut answers = Vec::new();
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let target = target.clone().protocol(protocol);
            let status = target.send("GET /core/1.0", Payload::none()).await.metadata();
            let sql = target.send("POST /core/internal/sql", Payload::json(&json!({"query": "SELECT 1"}))).await;
            let expected = if matches!(caller, Caller::Socket | Caller::Member) { 200 } else { 403 };
            assert_eq!(sql.status, expected, "{caller:?} over {protocol:?}");
            answers.push((status, sql.json()));
        }
        assert_eq!(answers[0], answers[1], "{caller:?}");
    }
}

/// Before it is initialised a daemon may listen on an address, with its own certificate, for little.
#[tokio::test]
async fn the_pre_init_address_is_open_until_initialisation() {
    let address = address_free();
    let mut daemon = Daemon::new("c1");
    daemon.arguments(["--pre-init-listen", &address.to_string()]);
    daemon.start_again().await;
    let trust = ServerTrust::pinned_pem(&daemon.read("server.crt")).unwrap();
    let target = Target::tls(address, None, &trust);
    let status = target.send("GET /core/1.0", Payload::none()).await.metadata();
    assert_eq!(status["ready"], json!(false));
    for request in
        ["GET /core/1.0/cluster", "POST /core/control", "POST /core/control/shutdown", "GET /core/internal/sql"]
    {
        let message = target.send(request, Payload::none()).await.error(StatusCode::NOT_FOUND.as_u16());
        assert!(message.contains(request.split_once(' ').unwrap().1), "{message}");
    }
    daemon.bootstrap().await;
    eventually("the pre-init address is closed", async || {
        match tokio::net::TcpStream::connect(address.socket_addr()).await {
            Err(_) => Ok(()),
            Ok(_) => Err("it takes connections"),
        }
    })
    .await;
}

/// Where the pre-init address and the cluster address cannot both be open, one follows the other; what fails before that changes
/// nothing.
#[tokio::test]
async fn the_pre_init_address_makes_way_for_the_cluster_address() {
    let taken = Daemon::start("c0").await;
    let daemon_on = async |everywhere: bool| {
        let mut daemon = Daemon::new("c1");
        let port = daemon.address().port();
        let address = if everywhere { format!("0.0.0.0:{port}") } else { daemon.address().to_string() };
        daemon.arguments(["--pre-init-listen", &address]);
        daemon.start_again().await;
        daemon
    };
    taken.bootstrap().await;
    for everywhere in [false, true] {
        let daemon = daemon_on(everywhere).await;
        let is_open = async || {
            let trust = ServerTrust::pinned_pem(&daemon.read("server.crt")).unwrap();
            let target = Target::tls(daemon.address(), None, &trust);
            let status = target.send("GET /core/1.0", Payload::none()).await.metadata();
            assert_eq!(status["ready"], json!(false));
        };
        is_open().await;
        // It is found to be for another name only after the way was made.
        let token = taken.token(&format!("other{}", u8::from(everywhere)).parse().unwrap()).await;
        let refused = daemon.join(&token).await.unwrap_err();
        assert_eq!(refused.code(), Some(403), "{refused}");
        is_open().await;
        daemon.bootstrap().await;
        let shown = daemon.shown_certificate().await.unwrap();
        assert_eq!(shown, Fingerprint::of_pem(&daemon.read("cluster.crt")).unwrap());
        assert!(!daemon.log().contains("the pre-init address is not served"), "{}", daemon.log());
    }
}

/// The address of a daemon that is running is refused to another one before that one serves anything.
#[tokio::test]
async fn a_pre_init_address_in_use_ends_the_start() {
    let first = TestCluster::start(1).await;
    let taken = first.members[0].address().to_string();
    let mut daemon = Daemon::new("c2");
    daemon.arguments(["--pre-init-listen", &taken]);
    let output = daemon.command().stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&taken), "{said}");
}
