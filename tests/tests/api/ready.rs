//! Whether a daemon says honestly that it is ready, and can be initialised after a failure.

use std::time::{Duration, Instant};

use cluster_tests::{Caller, Daemon, Payload, Target, TestCluster, address_free, eventually, microctl};
use rustix::process::Signal;
use serde_json::{Value, json};

/// The time in which the loss of a majority is to be told: one heartbeat interval, as it is unless it is set.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// How members are lost.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Killed,
    /// Their connections stay open and nothing comes.
    Stopped,
}

#[tokio::test]
async fn a_leader_that_lost_its_majority_is_not_ready() {
    for loss in [Loss::Killed, Loss::Stopped] {
        let mut cluster = TestCluster::start(3).await;
        cluster.settled(&["c1", "c2", "c3"]).await;
        let leader = cluster.leader().await;
        not_ready_without_the_others(&mut cluster, leader, loss).await;
    }
}

#[tokio::test]
async fn a_follower_that_lost_its_majority_is_not_ready() {
    for loss in [Loss::Killed, Loss::Stopped] {
        let mut cluster = TestCluster::start(3).await;
        cluster.settled(&["c1", "c2", "c3"]).await;
        let follower = cluster.follower().await;
        not_ready_without_the_others(&mut cluster, follower, loss).await;
    }
}

/// Loses all members but one: that one says so, and says when it is over.
async fn not_ready_without_the_others(cluster: &mut TestCluster, survivor: usize, loss: Loss) {
    let others: Vec<_> = (0..3).filter(|place| *place != survivor).collect();
    for place in &others {
        match loss {
            Loss::Killed => cluster.members[*place].kill(),
            Loss::Stopped => cluster.members[*place].signal(Signal::STOP),
        }
    }
    let lost = Instant::now();
    let member = &cluster.members[survivor];
    let target = Target::new(member, Caller::Socket);
    let answer = eventually("it says that there is no quorum", async || {
        let answer = target.send("GET /core/1.0/ready", Payload::none()).await;
        if answer.status == 200 { Err("it is ready") } else { Ok(answer) }
    })
    .await;
    assert!(lost.elapsed() < HEARTBEAT, "{:?} with {loss:?}", lost.elapsed());
    let message = answer.error(503);
    assert!(message.contains("quorum"), "{message}");
    assert!(answer.headers.contains_key("retry-after"));
    assert!(!member.status().await.unwrap().ready);
    let said = microctl(member, &["waitready", "-t", "1"]).await.failed();
    assert!(said.contains("not ready after 1 s") && said.contains("quorum"), "{said}");
    let status = microctl(member, &["status"]).await.done();
    assert!(status.to_lowercase().contains("quorum"), "{status}");
    // What it says of itself to anybody, and reads of its own replica, go on.
    let _ = target.send("GET /core/1.0", Payload::none()).await.metadata();
    member.sql_local("SELECT 1").await.unwrap();

    let back = &mut cluster.members[others[0]];
    match loss {
        Loss::Killed => back.spawn(),
        Loss::Stopped => back.signal(Signal::CONT),
    }
    let member = &cluster.members[survivor];
    microctl(member, &["waitready", "-t", "60"]).await.done();
    member.sql("CREATE TABLE again (a)").await;
    if let Loss::Stopped = loss {
        // So that it can be ended.
        cluster.members[others[1]].signal(Signal::CONT);
    }
}

/// What fails leaves a daemon that is as it was.
#[tokio::test]
async fn a_failed_bootstrap_can_be_repeated() {
    let daemon = Daemon::start("c1").await;
    let target = Target::new(&daemon, Caller::Socket);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let bootstrap = |address: String| json!({"bootstrap": true, "name": "c1", "address": address});
    let busy = bootstrap(taken.local_addr().unwrap().to_string());
    for _ in 0..3 {
        let message = target.send("POST /core/control", Payload::json(&busy)).await.error(409);
        assert!(message.contains(busy["address"].as_str().unwrap()), "{message}");
        daemon.is_uninitialised().await.unwrap();
        microctl(&daemon, &["waitready", "-t", "10"]).await.done();
    }
    drop(taken);
    let body = Payload::json(&bootstrap(daemon.address().to_string()));
    let _ = target.send("POST /core/control", body).await.metadata();
    assert_eq!(daemon.member_names().await.unwrap(), ["c1"]);
}

#[tokio::test]
async fn a_failed_join_can_be_followed_by_another_one_or_a_bootstrap() {
    let mut lost = TestCluster::start(1).await;
    let joiner = Daemon::start("new").await;
    let token = lost.members[0].token(joiner.name()).await;
    lost.members[0].kill();
    let error = joiner.join(&token).await.unwrap_err();
    assert_eq!(error.code(), Some(503), "{error}");
    joiner.is_uninitialised().await.unwrap();

    let cluster = TestCluster::start(1).await;
    let token = cluster.members[0].token(joiner.name()).await;
    joiner.join(&token).await.unwrap();
    assert_eq!(cluster.members[0].member_names().await.unwrap(), ["c1", "new"]);

    let alone = Daemon::start("alone").await;
    let token = cluster.members[0].token(&"another".parse().unwrap()).await;
    let error = alone.join(&token).await.unwrap_err();
    assert_eq!(error.code(), Some(403), "{error}");
    alone.is_uninitialised().await.unwrap();
    alone.bootstrap().await;
    assert_eq!(alone.member_names().await.unwrap(), ["alone"]);
}

/// No body, and bodies that are no object, for every operation that takes one.
#[tokio::test]
async fn a_body_that_is_no_object_is_a_bad_request_everywhere() {
    let cluster = TestCluster::start(1).await;
    let fresh = Daemon::start("fresh").await;
    let document = Target::new(&fresh, Caller::Socket).send("GET /core/1.0/openapi.json", Payload::none()).await.json();
    let mut asked = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            if operation.get("requestBody").is_none() {
                continue;
            }
            // Bootstrap and join are for a daemon that is none yet.
            let daemon = if path == "/core/control" { &fresh } else { &cluster.members[0] };
            let request = format!("{} {}", method.to_uppercase(), path.replace("{name}", "cluster"));
            for body in ["null", "", "[]", "[null]", "5", "\"x\"", "{", "nul"] {
                let answer = Target::new(daemon, Caller::Socket).send(&request, Payload::bytes(body)).await;
                assert!(answer.error(400).contains("body"), "{request} with {body:?}");
            }
            asked += 1;
        }
    }
    assert!(asked >= 7, "{asked} operations take a body");
    fresh.is_uninitialised().await.unwrap();
    let ready: Value =
        Target::new(&fresh, Caller::Socket).send("GET /core/1.0/ready", Payload::none()).await.metadata();
    assert_eq!(ready, json!({}));
    fresh.bootstrap().await;
    assert_ne!(fresh.address(), address_free());
}
