//! Attackers at the gates of real daemons, and what may be seen from outside: places, logs, files.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use cluster_tests::{
    Authority, Caller, DEADLINE, Daemon, Payload, Target, TestCluster, eventually, self_signed, stranger,
};
use microcluster_client::{Identity, KeyPair, Secret, client_config};
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How many connections a cluster address has for those who are no members.
const STRANGERS_MAX: usize = 256;
const REQUEST: &[u8] = b"GET /core/1.0 HTTP/1.1\r\nhost: x\r\n\r\n";

/// Opens an HTTP/2 connection, which stays open without a word of ours; none if it is refused.
async fn held_open(daemon: &Daemon, identity: &Identity) -> Option<TlsStream<TcpStream>> {
    let mut config = client_config(Some(identity), &daemon.trust()).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(daemon.address().socket_addr()).await.unwrap();
    let name = ServerName::from(daemon.address().ip());
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.ok()?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.ok()?;
    let mut begin = [0; 9];
    let read = tokio::time::timeout(DEADLINE, stream.read_exact(&mut begin)).await.expect("an answer or an end");
    // Its settings.
    read.is_ok_and(|_| begin[3] == 4).then_some(stream)
}

/// Opens a connection, and says whether a request on it is answered.
async fn served(daemon: &Daemon, identity: Option<&Identity>) -> Option<TlsStream<TcpStream>> {
    let config = client_config(identity, &daemon.trust()).unwrap();
    let tcp = TcpStream::connect(daemon.address().socket_addr()).await.unwrap();
    let name = ServerName::from(daemon.address().ip());
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.ok()?;
    stream.write_all(REQUEST).await.ok()?;
    let mut begin = [0; 12];
    let read = tokio::time::timeout(DEADLINE, stream.read_exact(&mut begin)).await.expect("an answer or an end");
    read.is_ok_and(|_| begin == *b"HTTP/1.1 200").then_some(stream)
}

#[tokio::test]
async fn strangers_cannot_starve_members() {
    let cluster = TestCluster::start(2).await;
    let (daemon, other) = (&cluster.members[0], &cluster.members[1]);
    let identity = stranger("c1");
    let mut held = Vec::new();
    // More than there are places for them, and handshakes that do not go on.
    for _ in 0..STRANGERS_MAX + 8 {
        held.extend(held_open(daemon, &identity).await);
    }
    // The member that has joined was a stranger.
    assert!((STRANGERS_MAX - 2..=STRANGERS_MAX).contains(&held.len()), "{} are held", held.len());
    assert!(served(daemon, None).await.is_none() && served(daemon, Some(&identity)).await.is_none());
    let mut stalled = Vec::new();
    for _ in 0..STRANGERS_MAX + 50 {
        stalled.push(TcpStream::connect(daemon.address().socket_addr()).await.unwrap());
    }
    for _ in 0..20 {
        assert!(served(daemon, Some(&other.identity())).await.is_some(), "a member is served");
        let member = Target::tls(daemon.address(), Some(&other.identity()), &daemon.trust());
        let _ = member.send("GET /core/1.0/cluster", Payload::none()).await.metadata();
    }
    cluster.settled(&["c1", "c2"]).await;
    other.sql("CREATE TABLE t (a)").await;
    drop((held, stalled));
    eventually("strangers are served again", async || {
        served(daemon, Some(&identity)).await.map(drop).ok_or("they are not")
    })
    .await;
}

/// The answer and every line of the log about a request name it, and say who asked.
#[tokio::test]
async fn a_request_is_named_in_its_answer_and_in_the_log() {
    let mut daemon = Daemon::new("c1");
    daemon.arguments(["--debug"]);
    daemon.start_again().await;
    daemon.bootstrap().await;
    let mut ids = BTreeSet::new();
    for (caller, who) in [
        (Caller::Socket, format!("process {}", std::process::id())),
        (Caller::Member, "127.".to_owned()),
        (Caller::Nobody, "127.".to_owned()),
    ] {
        let target = Target::new(&daemon, caller);
        for (request, body) in [
            ("GET /core/1.0/cluster/nobody", ""),
            // Not traced: there are too many of them.
            ("POST /core/internal/sql", "{}"),
            ("POST /core/internal/cluster", "{}"),
            ("GET /core/nowhere", ""),
            ("PATCH /core/1.0", ""),
        ] {
            let answer = target.send(request, Payload::bytes(body)).await;
            assert!(answer.status >= 400, "{request} by {caller:?}");
            let id = answer.headers["x-request-id"].to_str().unwrap().to_owned();
            let path = request.split_once(' ').unwrap().1;
            eventually("the line is in the log", async || {
                let log = daemon.log();
                let lines: Vec<_> = log.lines().filter(|line| line.contains(&id)).map(str::to_owned).collect();
                let says = lines.iter().find(|line| line.contains("a request was refused"));
                match says {
                    Some(line) if line.contains(path) && line.contains(&who) => Ok(()),
                    _ => Err(format!("{request} by {caller:?}, {id}: {lines:?}")),
                }
            })
            .await;
            assert!(ids.insert(id), "an id is used once");
        }
    }
}

/// Also as the log is unless more is asked for, and for what goes on beside the request.
#[tokio::test]
async fn lines_about_what_a_request_does_name_it_without_details() {
    let mut cluster = TestCluster::start(3).await;
    let logged = async |daemon: &Daemon, words: [&str; 2]| {
        eventually(&format!("{words:?} is in the log of {}", daemon.name()), async || {
            let log = daemon.log();
            let line = log.lines().find(|line| words.iter().all(|word| line.contains(word)));
            line.map(str::to_owned).ok_or("it is not")
        })
        .await
    };
    let who = format!("process {}", std::process::id());
    let begun = logged(&cluster.members[0], ["bootstrapped a cluster", "/core/control"]).await;
    assert!(begun.contains(&who), "{begun}");
    let asked = logged(&cluster.members[0], ["asked to change", "/core/control/tokens"]).await;
    assert!(asked.contains(&who), "{asked}");
    // What goes on after the request is not its: Raft runs as long as the member.
    for member in &cluster.members {
        let log = member.log();
        let raft = log.lines().find(|line| line.contains("/core/control") && line.contains("openraft::"));
        assert_eq!(raft, None);
    }
    for member in &mut cluster.members {
        member.environment("MICROCLUSTERD_LOG", "warn");
        member.stop().await;
    }
    for member in &mut cluster.members {
        member.spawn();
    }
    for member in &mut cluster.members {
        member.wait_ready().await;
    }
    cluster.settled(&["c1", "c2", "c3"]).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    cluster.members[follower].kill();
    let name = cluster.members[follower].name().clone();
    let target = Target::new(&cluster.members[leader], Caller::Socket);
    let answer = target.send(&format!("DELETE /core/1.0/cluster/{name}?force=1"), Payload::none()).await;
    let id = answer.headers["x-request-id"].to_str().unwrap().to_owned();
    let _ = answer.metadata();
    let line = logged(&cluster.members[leader], ["could not be told", &id]).await;
    assert!(line.contains(&who), "{line}");
}

/// Every connection is a file: the daemon takes what the system gives.
#[tokio::test]
async fn a_daemon_may_open_as_many_files_as_the_system_lets_it() {
    let daemon = Daemon::start("c1").await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.process_id())).unwrap();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let [soft, hard] = [0, 1].map(|place| files.split_whitespace().nth(place).unwrap());
    assert_eq!(soft, hard);
}

/// With all that can be logged: no key, no token, no secret.
#[tokio::test]
async fn no_secret_is_in_the_log_or_in_an_error() {
    let mut daemons = [Daemon::new("c1"), Daemon::new("c2")];
    for daemon in &mut daemons {
        daemon.environment("MICROCLUSTERD_LOG", "trace");
        daemon.start_again().await;
    }
    let [mut first, second] = daemons;
    let mut secrets = Secrets::default();
    first.bootstrap().await;
    let token = first.token(second.name()).await;
    secrets.token(&token);
    // Wrong in many ways, and what is said about that.
    let mut said = String::new();
    let control = Target::new(&second, Caller::Socket);
    let address = second.address().to_string();
    for body in [
        json!({"join_token": token.expose(), "name": "wrong", "address": address}),
        json!({"join_token": [token.expose()], "name": "c2", "address": address}),
        json!({"join_token": format!("{}x", token.expose()), "name": "c2", "address": address}),
        json!({"bootstrap": token.expose(), "name": "c2", "address": address}),
        json!({"config": token.expose(), "join_token": token.expose(), "name": "c2", "address": address}),
    ] {
        let answer = control.send("POST /core/control", Payload::json(&body)).await;
        assert!(answer.status >= 400, "{answer:?}");
        said.push_str(&String::from_utf8_lossy(&answer.body));
    }
    second.join(&token).await.unwrap();
    secrets.key(&first.read("cluster.key"));
    for daemon in [&first, &second] {
        secrets.key(&daemon.read("server.key"));
    }
    let authority = Authority::new();
    let good = authority.sign("cluster.example", -1, 30);
    let other = self_signed("other");
    let target = Target::new(&second, Caller::Socket);
    for pair in [
        KeyPair { key: other.key.clone(), ..good.clone() },
        KeyPair { key: Secret::new(good.key.expose().replace('\n', "")), ..good.clone() },
        KeyPair { key: Secret::new(good.key.expose().replace("-----END", "END")), ..good.clone() },
        KeyPair { cert: "x".into(), ..good.clone() },
        good.clone(),
    ] {
        secrets.key(pair.key.expose());
        let body = Payload::json(&serde_json::to_value(&pair).unwrap());
        let answer = target.send("PUT /core/1.0/cluster/certificates/cluster", body).await;
        said.push_str(&String::from_utf8_lossy(&answer.body));
    }
    let _ = first.client().tokens().await.unwrap();
    let unused = first.token(&"third".parse().unwrap()).await;
    secrets.token(&unused);
    let claim = json!({"name": "third", "address": "127.0.0.1:1", "certificate": "x", "secret": secrets.last()});
    let answer = Target::new(&first, Caller::Nobody).send("POST /core/internal/cluster", Payload::json(&claim)).await;
    said.push_str(&String::from_utf8_lossy(&answer.body));
    let status = first.stop().await;
    assert!(status.success());
    first.start_again().await;
    let dump = first.sql("SELECT count(*) FROM core_certificates").await;
    assert_eq!(dump, [[json!(1)]]);
    assert!(secrets.0.len() > 12, "there is something to look for");
    for (what, text) in [("an error", said), ("the log of c1", first.log()), ("the log of c2", second.log())] {
        let found = secrets.0.iter().find(|secret| text.contains(&***secret));
        let line = found.and_then(|secret| text.lines().find(|line| line.contains(&**secret)));
        assert!(found.is_none(), "{what} shows a secret: {line:?}");
    }
    assert!(first.log().contains("TRACE"), "everything is logged");
}

/// What must not be seen, in pieces as they would be seen.
#[derive(Default)]
struct Secrets(BTreeSet<String>);

impl Secrets {
    /// The lines of a key.
    fn key(&mut self, pem: &str) {
        self.0.extend(pem.lines().filter(|line| line.len() > 30 && !line.contains("-----")).map(str::to_owned));
    }

    /// A token, and the secret in it.
    fn token(&mut self, token: &Secret) {
        use base64::Engine;
        let content = base64::engine::general_purpose::STANDARD.decode(token.expose()).unwrap();
        let content: serde_json::Value = serde_json::from_slice(&content).unwrap();
        self.0.insert(content["secret"].as_str().unwrap().to_owned());
        self.0.insert(token.expose().to_owned());
    }

    /// One that is the secret of a token.
    fn last(&self) -> &str {
        self.0.iter().find(|secret| secret.len() == 64 && secret.bytes().all(|b| b.is_ascii_hexdigit())).unwrap()
    }
}

/// Nobody but its user reads what is secret, and nobody lists what there is.
#[tokio::test]
async fn the_files_of_a_member_are_its_own() {
    let mut cluster = TestCluster::start(2).await;
    cluster.members[0].token(&"third".parse().unwrap()).await;
    let pair = self_signed("c");
    let target = Target::new(&cluster.members[1], Caller::Socket);
    let body = || Payload::json(&serde_json::to_value(&pair).unwrap());
    let _ = target.send("PUT /core/1.0/cluster/certificates/cluster", body()).await.metadata();
    for daemon in &mut cluster.members {
        let stopped = daemon.stop().await;
        assert!(stopped.success());
        daemon.start_again().await;
        let mut seen = Vec::new();
        look(&daemon.dir(), &daemon.dir(), false, &mut seen);
        for file in ["server.key", "cluster.key", "control.socket", "daemon.yaml"] {
            assert!(seen.iter().any(|name| name == file), "{file} is not among {seen:?}");
        }
        assert!(seen.iter().any(|name| name.starts_with("database/")), "{seen:?}");
    }
}

/// Checks a directory and all in it; `is_closed` when nobody else gets into it.
fn look(root: &Path, dir: &Path, is_closed: bool, seen: &mut Vec<String>) {
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(dir) & !0o711, 0, "{} has the mode {:o}", dir.display(), mode(dir));
    let is_closed = is_closed || mode(dir) & 0o077 == 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            look(root, &path, is_closed, seen);
            continue;
        }
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        let content = fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&content);
        // The database holds the cluster's key and the tokens.
        let is_secret = text.contains("PRIVATE KEY") || name.starts_with("database/");
        let mode = mode(&path);
        assert!(!is_secret || mode & 0o077 == 0 || is_closed, "{name} is secret and has the mode {mode:o}");
        assert_eq!(mode & 0o022 & !0o020, 0, "{name} can be written by everybody");
        if name.ends_with(".key") {
            assert_eq!(mode, 0o600, "{name}");
        }
        if name == "control.socket" {
            assert_eq!(mode, 0o660);
        }
        seen.push(name);
    }
}
