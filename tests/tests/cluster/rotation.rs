//! The cluster's certificate is replaced: under load, while a member is down, signed by an authority.

use std::fs;

use cluster_tests::{Authority, Daemon, TestCluster, Writers, eventually, microctl, self_signed};
use microcluster::App;
use microcluster_client::{Client, Error, Fingerprint, KeyPair, ServerTrust};

const CLUSTER: &str = "cluster";

/// Every running member shows this certificate to clients and has it on disk.
async fn in_place(cluster: &TestCluster, pair: &KeyPair) {
    let expected = Fingerprint::of_pem(&pair.cert).unwrap();
    for member in cluster.running() {
        let what = format!("{} has the new certificate", member.name());
        eventually(&what, async || {
            let shown = member.shown_certificate().await.map_err(|e| e.to_string())?;
            let is_so = shown == expected && member.read("cluster.crt") == pair.cert;
            is_so.then_some(()).ok_or_else(|| format!("it shows {shown}"))
        })
        .await;
        assert_eq!(member.read("cluster.key"), pair.key.expose());
    }
}

#[tokio::test]
async fn the_certificate_is_replaced_under_load_and_no_write_is_lost() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    let before = cluster.members[0].trust();
    let old_token = cluster.members[0].token(&"c4".parse().unwrap()).await;
    let open = cluster.members[0].tls_client(&before);
    assert_eq!(open.cluster_members().await.unwrap().len(), 3);
    let mut writers = Writers::start(&cluster, 3).await;
    writers.advance(20).await;
    let files = tempfile::tempdir().unwrap();
    let path = |name: &str| files.path().join(name).to_str().unwrap().to_owned();
    let mut in_place_at_once = 0;
    for round in 0..3 {
        let pair = self_signed("cluster.example");
        fs::write(path("crt"), &pair.cert).unwrap();
        fs::write(path("key"), pair.key.expose()).unwrap();
        let set = ["certificates", "set", CLUSTER, "--cert", &path("crt"), "--key", &path("key")];
        microctl(&cluster.members[round], &set).await.done();
        // In place already: the command returns when the members have it that answer in time.
        let mut shown = Vec::new();
        for member in &cluster.members {
            shown.push(member.shown_certificate().await.unwrap());
        }
        in_place_at_once += usize::from(shown == [Fingerprint::of_pem(&pair.cert).unwrap(); 3]);
        in_place(&cluster, &pair).await;
        writers.advance(20).await;
    }
    assert!(in_place_at_once > 0, "the command never waits for the members");
    // A connection that was there before goes on; a new one knows the old certificate no more.
    assert_eq!(open.cluster_members().await.unwrap().len(), 3);
    let late = cluster.members[0].tls_client(&before).cluster_members().await.unwrap_err();
    assert!(matches!(late, Error::Tls { .. }), "{late}");
    assert_eq!(cluster.members[0].tls_client(&cluster.members[1].trust()).cluster_members().await.unwrap().len(), 3);

    let joiner = Daemon::start("c4").await;
    let refused = joiner.join(&old_token).await.unwrap_err();
    assert_eq!(refused.code(), Some(403), "{refused}");
    assert!(refused.to_string().contains("microctl tokens"), "{refused}");
    let listed = cluster.members[1].client().tokens().await.unwrap().remove(0);
    joiner.join(&listed.token).await.unwrap();
    cluster.members.push(joiner);
    writers.advance(20).await;
    let ledger = writers.stop().await;
    assert_eq!(ledger.unknown.len(), 0, "nothing was cut off");
    for member in &cluster.members {
        ledger.check(member).await;
    }
    cluster.replicas_agree().await;
}

/// It comes back with the certificate before the last two, and the cluster needs it to go on.
#[tokio::test]
async fn a_member_that_was_down_comes_back_and_has_the_new_certificate() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    cluster.members[0].sql("CREATE TABLE t (a)").await;
    cluster.members[2].kill();
    let mut pair = self_signed("one.example");
    for name in ["one.example", "two.example"] {
        pair = self_signed(name);
        cluster.members[0].client().set_certificate(&CLUSTER.parse().unwrap(), &pair).await.unwrap();
    }
    in_place(&cluster, &pair).await;
    cluster.members[1].kill();
    cluster.members[2].start_again().await;
    eventually("the two write", async || cluster.members[2].try_sql("INSERT INTO t VALUES (1)").await).await;
    in_place(&cluster, &pair).await;
    cluster.members[1].start_again().await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    in_place(&cluster, &pair).await;
}

/// What is acknowledged is there after the power of all members went: no file is half of one and half of the other.
#[tokio::test]
async fn all_members_are_killed_while_the_certificate_is_replaced() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    for round in 0..4 {
        let pair = self_signed("cluster.example");
        let client = cluster.members[round % 3].client();
        let sent = tokio::spawn({
            let pair = pair.clone();
            async move { client.set_certificate(&CLUSTER.parse().unwrap(), &pair).await }
        });
        let killed = cluster.members[(round + 1) % 3].dir().join("cluster.crt");
        if round % 2 == 0 {
            eventually("the first file changes", async || {
                (fs::read_to_string(&killed).is_ok_and(|now| now == pair.cert)).then_some(()).ok_or("not yet")
            })
            .await;
        } else {
            sent.await.unwrap().unwrap();
        }
        cluster.members.iter_mut().for_each(Daemon::kill);
        for member in &mut cluster.members {
            member.spawn();
        }
        for member in &mut cluster.members {
            member.wait_ready().await;
        }
        in_place(&cluster, &pair).await;
    }
}

/// With an authority clients need not be told of each new certificate.
#[tokio::test]
async fn clients_verify_by_the_authority() {
    let cluster = TestCluster::start(2).await;
    let member = &cluster.members[1];
    let authority = Authority::new();
    let set = async |pair: &KeyPair| member.client().set_certificate(&CLUSTER.parse().unwrap(), pair).await;
    let trust = ServerTrust::Authority { certificate: authority.pem().to_owned(), name: "cluster.example".into() };
    let mut before: Option<Client> = None;
    for days in [10, 40] {
        let pair = authority.sign("cluster.example", -1, days);
        set(&pair).await.unwrap();
        in_place(&cluster, &pair).await;
        // What a product is given reads the authority from the disk; the one of before opens a new connection meanwhile.
        let remote = App::new(member.dir()).remote_client(cluster.members[0].address()).unwrap();
        for client in [Some(remote.clone()), before.replace(remote)].into_iter().flatten() {
            assert_eq!(client.cluster_members().await.unwrap().len(), 2);
        }
        for member in &cluster.members {
            assert_eq!(member.read("cluster.ca").trim(), authority.pem().trim());
            assert_eq!(member.tls_client(&trust).cluster_members().await.unwrap().len(), 2);
        }
        let what = format!("{days} days are said to be few");
        eventually(&what, async || {
            let is_said = member.log().contains(&format!("days={}", days - 1));
            (is_said == (days < 30)).then_some(()).ok_or("not so")
        })
        .await;
    }
    // One of the same authority for somebody else is not the cluster's.
    let other = ServerTrust::Authority { certificate: authority.pem().to_owned(), name: "other.example".into() };
    assert!(matches!(member.tls_client(&other).ready().await, Err(Error::Tls { .. })));
    let without = self_signed("cluster.example");
    set(&without).await.unwrap();
    in_place(&cluster, &without).await;
    for member in &cluster.members {
        assert!(!member.dir().join("cluster.ca").exists());
        assert!(matches!(member.tls_client(&trust).ready().await, Err(Error::Tls { .. })));
        let remote = App::new(member.dir()).remote_client(cluster.members[0].address()).unwrap();
        assert_eq!(remote.cluster_members().await.unwrap().len(), 2, "it pins again");
    }
}

/// A file that somebody changed by hand on one member is no change of the cluster's certificate.
#[tokio::test]
async fn a_file_changed_by_hand_is_put_right() {
    let mut cluster = TestCluster::start(1).await;
    let pair = self_signed("cluster.example");
    let member = &mut cluster.members[0];
    let own = member.read("cluster.crt");
    fs::write(member.dir().join("cluster.crt"), &pair.cert).unwrap();
    fs::write(member.dir().join("cluster.key"), pair.key.expose()).unwrap();
    member.signal(rustix::process::Signal::HUP);
    eventually("the file is put right", async || (member.read("cluster.crt") == own).then_some(()).ok_or("it is not"))
        .await;
    assert_eq!(member.shown_certificate().await.unwrap(), Fingerprint::of_pem(&own).unwrap());
    eventually("the log says so", async || {
        member.log().contains("microctl certificates set").then_some(()).ok_or("it does not")
    })
    .await;
}
