//! Certificates that are given to daemons: the bad ones are refused and change nothing, the good ones are in place everywhere.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cluster_tests::{Authority, Caller, Daemon, Payload, Target, TestCluster, eventually, microctl, self_signed};
use microcluster_client::{ControlRequest, Fingerprint, KeyPair, Name};
use serde_json::{Value, json};

#[tokio::test]
async fn a_pair_that_cannot_be_used_is_refused_and_changes_nothing() {
    let cluster = TestCluster::start(2).await;
    let target = Target::new(&cluster.members[1], Caller::Socket);
    let put = async |name: &str, body: &Value| {
        target.send(&format!("PUT /core/1.0/cluster/certificates/{name}"), Payload::json(body)).await
    };
    let before: Vec<_> = cluster.members.iter().map(|member| member.read("cluster.crt")).collect();
    let (good, other, authority) = (self_signed("x.example"), self_signed("y.example"), Authority::new());
    let body = |pair: &KeyPair| json!({"cert": pair.cert, "key": pair.key.expose(), "ca": pair.ca});
    let with = |change: &dyn Fn(&mut KeyPair)| {
        let mut pair = good.clone();
        change(&mut pair);
        body(&pair)
    };
    for (case, named) in [
        (json!({}), "certificate is missing"),
        (with(&|pair| pair.cert.clear()), "certificate is missing"),
        (with(&|pair| pair.key = "".into()), "private key is missing"),
        (with(&|pair| pair.key = other.key.clone()), "private key"),
        (with(&|pair| pair.cert = "garbage".into()), "no certificate"),
        (with(&|pair| pair.key = "garbage".into()), "no private key"),
        (with(&|pair| pair.cert += good.key.expose()), "a private key"),
        (with(&|pair| pair.ca = format!("{}{}", authority.pem(), good.key.expose())), "authority"),
        (with(&|pair| pair.ca = "garbage".into()), "authority"),
        (with(&|pair| pair.ca = authority.pem().into()), "authority"),
        (body(&authority.sign("x.example", -9, -2)), "expired"),
        (body(&authority.sign("x.example", 2, 9)), "not valid before"),
        (json!({"cert": 5}), "cert"),
        (json!({"cert": "x", "key": ["x"]}), "key"),
    ] {
        for name in ["cluster", "metrics", "server"] {
            let message = put(name, &case).await.error(400);
            assert!(message.contains(named), "{named:?} is to be in the answer for {name}: {message}");
            assert!(!message.contains("PRIVATE"), "{message}");
        }
    }
    let long = vec!["x".repeat(60); 4].join(".");
    for name in ["core", "unix", "..", "a%2Fb", "..%2F..%2Fx", "%2Fetc%2Fpasswd", "a_b", "%00", &long] {
        let message = put(name, &body(&good)).await.error(400);
        assert!(!message.is_empty());
    }
    let message = put("server", &body(&good)).await.error(409);
    assert!(message.contains("c2"), "{message}");
    let after: Vec<_> = cluster.members.iter().map(|member| member.read("cluster.crt")).collect();
    assert_eq!(before, after);
    for member in &cluster.members {
        assert_eq!(std::fs::read_dir(member.dir().join("certificates")).unwrap().count(), 0);
    }
    let missing = ["certificates", "set", "cluster", "--cert", "/nowhere", "--key", "/nowhere"];
    let said = microctl(&cluster.members[0], &missing).await.failed();
    assert!(said.contains("/nowhere"), "{said}");
}

/// Before it is a member a daemon can be given the certificate that the others will know it by.
#[tokio::test]
async fn the_server_certificate_is_set_before_initialisation() {
    let first = TestCluster::start(1).await;
    let joiner = Daemon::start("c2").await;
    let server: Name = "server".parse().unwrap();
    joiner.client().set_certificate(&server, &self_signed("other.example")).await.unwrap();
    let token = first.members[0].token(joiner.name()).await;
    let refused = joiner.join(&token).await.unwrap_err();
    assert_eq!(refused.code(), Some(400), "{refused}");
    assert!(refused.to_string().contains("other.example"), "{refused}");
    let pair = self_signed("c2");
    joiner.client().set_certificate(&server, &pair).await.unwrap();
    let refused = joiner.client().set_certificate(&"cluster".parse().unwrap(), &pair).await.unwrap_err();
    assert_eq!(refused.code(), Some(503), "{refused}");
    joiner.join(&token).await.unwrap();
    assert_eq!(joiner.read("server.crt"), pair.cert);
    let listed = first.members[0].client().cluster_member(joiner.name()).await.unwrap();
    assert_eq!(listed.certificate, pair.cert, "the others know it by that");
}

/// Its certificate is what a member is known by: with one that is out of its time nobody begins a cluster or joins one.
#[tokio::test]
async fn a_server_certificate_that_is_not_valid_now_makes_no_member() {
    let first = TestCluster::start(1).await;
    let authority = Authority::new();
    let mut joiner = Daemon::new("c2");
    let token = first.members[0].token(joiner.name()).await;
    for (days, named) in [((-9, -2), "expired"), ((2, 9), "not valid before")] {
        let pair = authority.sign("c2", days.0, days.1);
        std::fs::create_dir_all(joiner.dir()).unwrap();
        std::fs::write(joiner.dir().join("server.crt"), &pair.cert).unwrap();
        std::fs::write(joiner.dir().join("server.key"), pair.key.expose()).unwrap();
        joiner.start_again().await;
        let bootstrap = ControlRequest::bootstrap(joiner.name().clone(), joiner.address());
        for refused in [joiner.client().control(&bootstrap).await, joiner.join(&token).await] {
            let refused = refused.unwrap_err();
            assert_eq!(refused.code(), Some(400), "{refused}");
            assert!(refused.to_string().contains(named) && refused.to_string().contains("server.crt"), "{refused}");
        }
        // One that does not look at its own certificate is refused by the cluster.
        let content: Value = serde_json::from_slice(&STANDARD.decode(token.expose()).unwrap()).unwrap();
        let request = json!({
            "name": "c2", "address": joiner.address(), "certificate": pair.cert, "schema_internal_version": 1,
            "schema_external_version": 0, "extensions": [], "secret": content["secret"],
        });
        let target = Target::new(&first.members[0], Caller::Stranger);
        let message = target.send("POST /core/internal/cluster", Payload::json(&request)).await.error(400);
        assert!(message.contains(named), "{message}");
        joiner.stop().await;
    }
    assert_eq!(first.members[0].member_names().await.unwrap(), ["c1"]);
    std::fs::remove_file(joiner.dir().join("server.crt")).unwrap();
    std::fs::remove_file(joiner.dir().join("server.key")).unwrap();
    joiner.start_again().await;
    joiner.join(&token).await.unwrap();
}

/// The certificate of an additional server is on every member: those there are, and those that join later. It goes
/// with the cluster.
#[tokio::test]
async fn the_certificate_of_an_additional_server_is_on_all_members() {
    let mut cluster = TestCluster::start(2).await;
    let authority = Authority::new();
    let metrics: Name = "metrics.internal".parse().unwrap();
    let pair = authority.sign("metrics.example", -1, 90);
    cluster.members[1].client().set_certificate(&metrics, &pair).await.unwrap();
    cluster.add("c3").await;
    for member in &cluster.members {
        let what = format!("{} has the certificate", member.name());
        eventually(&what, async || {
            let file = |extension: &str| member.dir().join(format!("certificates/metrics.internal.{extension}"));
            let holds = |extension: &str, text: &str| {
                std::fs::read_to_string(file(extension)).is_ok_and(|found| found.trim() == text.trim())
            };
            let is_there = holds("crt", &pair.cert) && holds("key", pair.key.expose()) && holds("ca", &pair.ca);
            is_there.then_some(()).ok_or("it has not")
        })
        .await;
        eventually("its end is in the status", async || {
            let status = member.status().await.map_err(|e| e.to_string())?;
            let names: Vec<_> = status.certificates.into_iter().map(|certificate| certificate.name).collect();
            let is_so = names == ["cluster", "server", "metrics.internal"];
            is_so.then_some(()).ok_or_else(|| format!("{names:?}"))
        })
        .await;
    }
    let status = microctl(&cluster.members[0], &["status"]).await.done();
    assert!(status.contains("metrics.internal certificate"), "{status}");
    let shown = cluster.members[0].shown_certificate().await.unwrap();
    assert_eq!(shown, Fingerprint::of_pem(&cluster.members[0].read("cluster.crt")).unwrap());
    let removed = cluster.members.remove(2);
    cluster.members[0].remove(removed.name()).await;
    eventually("the removed member is free", async || removed.is_uninitialised().await).await;
    assert_eq!(std::fs::read_dir(removed.dir().join("certificates")).unwrap().count(), 0);
}

/// The end of one that an operator has put beside the others on one machine is shown and warned of there.
#[tokio::test]
async fn the_end_of_a_certificate_of_one_machine_is_told() {
    let mut cluster = TestCluster::start(1).await;
    let pair = Authority::new().sign("local.example", -1, 10);
    let member = &mut cluster.members[0];
    std::fs::write(member.dir().join("certificates/local.key"), pair.key.expose()).unwrap();
    std::fs::write(member.dir().join("certificates/local.crt"), &pair.cert).unwrap();
    std::fs::write(member.dir().join("certificates/damaged.crt"), "garbage").unwrap();
    let names: Vec<_> = member.status().await.unwrap().certificates.into_iter().map(|one| one.name).collect();
    assert_eq!(names, ["cluster", "server", "local"]);
    member.stop().await;
    member.start_again().await;
    eventually("it is in the log", async || {
        let log = member.log();
        let line = log.lines().find(|line| line.contains("expires soon") && line.contains("local"));
        line.is_some_and(|line| line.contains("days=9")).then_some(()).ok_or(log)
    })
    .await;
}

/// What an operator put into the state directory is used or refused, never replaced by something else.
#[tokio::test]
async fn a_server_certificate_that_cannot_be_used_ends_the_start() {
    let (pair, other) = (self_signed("c1"), self_signed("c1"));
    let combined = format!("{}{}", pair.cert, pair.key.expose());
    for (certificate, key, named) in [
        (Some(&pair.cert), Some(&other.key), "server.crt"),
        // In a file that everybody may read, and that members show each other.
        (Some(&combined), Some(&pair.key), "private key"),
        (None, Some(&pair.key), "server.key"),
        (Some(&pair.cert), None, "server.crt"),
    ] {
        let mut daemon = Daemon::new("c1");
        std::fs::create_dir_all(daemon.dir()).unwrap();
        let (crt, key_path) = (daemon.dir().join("server.crt"), daemon.dir().join("server.key"));
        if let Some(certificate) = certificate {
            std::fs::write(&crt, certificate).unwrap();
        }
        if let Some(key) = key {
            std::fs::write(&key_path, key.expose()).unwrap();
        }
        daemon.spawn();
        assert_eq!(daemon.ended().await.code(), Some(1));
        assert!(daemon.log().contains(named), "{}", daemon.log());
        assert_eq!(std::fs::read_to_string(&crt).ok().as_ref(), certificate);
        assert_eq!(std::fs::read_to_string(&key_path).ok().as_deref(), key.map(|key| key.expose()));
        std::fs::write(&crt, &pair.cert).unwrap();
        std::fs::write(&key_path, pair.key.expose()).unwrap();
        daemon.start_again().await;
        daemon.bootstrap().await;
        assert_eq!(daemon.read("server.crt"), pair.cert);
    }
}
