//! Clean stops, and the lock of the state directory.

use std::io::ErrorKind;

use cluster_tests::{DEADLINE, Daemon, TestCluster, Writers, eventually};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

#[tokio::test]
async fn a_daemon_stops_cleanly_on_a_signal_and_on_request() {
    let mut daemon = Daemon::start("c1").await;
    assert_eq!(daemon.stop().await.code(), Some(0), "before it is initialised");
    daemon.start_again().await;
    daemon.bootstrap().await;
    daemon.sql("CREATE TABLE t (a); INSERT INTO t VALUES (1)").await;
    assert_eq!(daemon.stop().await.code(), Some(0));
    daemon.start_again().await;
    daemon.client().shutdown().await.unwrap();
    assert_eq!(daemon.ended().await.code(), Some(0));
    daemon.start_again().await;
    cluster_tests::microctl(&daemon, &["shutdown"]).await.done();
    assert_eq!(daemon.ended().await.code(), Some(0));
    daemon.start_again().await;
    assert_eq!(daemon.sql("SELECT a FROM t").await.len(), 1);
}

/// Stopping a member, the leader too, is nothing that clients lose a row by.
#[tokio::test]
async fn members_stop_one_after_another_under_writing_clients() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    let mut writers = Writers::start(&cluster, 3).await;
    for _ in 0..3 {
        writers.advance(10).await;
        let leader = cluster.leader().await;
        assert_eq!(cluster.members[leader].stop().await.code(), Some(0));
        writers.advance(10).await;
        cluster.members[leader].start_again().await;
    }
    let ledger = writers.stop().await;
    for member in &cluster.members {
        ledger.check(member).await;
    }
    cluster.replicas_agree().await;
}

/// The others need not find out by themselves that the leader is gone: while it still waits for a client another one leads.
#[tokio::test]
async fn a_leader_that_stops_hands_over_before_it_waits_for_its_clients() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    let leader = cluster.leader().await;
    let name = cluster.members[leader].name().clone();
    // A request whose body does not come. It is being answered when its body is asked for.
    let mut held = UnixStream::connect(cluster.members[leader].dir().join("control.socket")).await.unwrap();
    let head = "POST /core/control/tokens HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n";
    held.write_all(head.as_bytes()).await.unwrap();
    let asked = "HTTP/1.1 100 Continue\r\n\r\n";
    let mut said = vec![0; asked.len()];
    held.read_exact(&mut said).await.unwrap();
    assert_eq!(String::from_utf8(said).unwrap(), asked);
    cluster.members[leader].signal(Signal::TERM);
    for place in (0..3).filter(|place| *place != leader) {
        let other = &cluster.members[place];
        eventually("another member leads", async || {
            let status = other.status().await.map_err(|e| e.to_string())?;
            let seen = status.leader.map(|leader| leader.name);
            let is_so = status.quorum && seen.as_ref().is_some_and(|leader| *leader != name);
            is_so.then_some(()).ok_or_else(|| format!("{seen:?}"))
        })
        .await;
    }
    let waiting = held.try_read(&mut [0_u8]).map_err(|e| e.kind());
    assert_eq!(waiting, Err(ErrorKind::WouldBlock), "the one that stops still waits for its client");
    drop(held);
    assert_eq!(cluster.members[leader].ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_second_daemon_on_the_same_directory_is_refused() {
    let first = Daemon::start("c1").await;
    first.bootstrap().await;
    let mut command = first.command();
    let output = command.stderr(std::process::Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let state_dir = first.dir();
    assert!(said.contains("another daemon") && said.contains(state_dir.to_str().unwrap()), "{said}");
    first.client().ready().await.expect("the first one goes on");
}

/// What a killed daemon leaves on disk is in nobody's way.
#[tokio::test]
async fn a_daemon_starts_after_one_that_was_killed() {
    let mut daemon = Daemon::start("c1").await;
    daemon.kill();
    assert!(daemon.dir().join("control.socket").exists());
    daemon.start_again().await;
    daemon.is_uninitialised().await.unwrap();
}

/// A request that waits for a majority that does not come, on a daemon that is told to stop: whether it is done is open.
#[tokio::test]
async fn a_request_that_a_stop_cuts_off_is_told_that_its_outcome_is_unknown() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    let leader = cluster.leader().await;
    for place in (0..3).filter(|place| *place != leader) {
        cluster.members[place].kill();
    }
    let member = &cluster.members[leader];
    let client = member.tls_client(&member.trust()).timeout(DEADLINE);
    client.ready().await.ok();
    let nobody = "nobody".parse().unwrap();
    let mut request = Box::pin(client.revoke_token(&nobody));
    // Over the same connection, after it: when this is answered that one is there.
    tokio::select! {
        biased;
        early = &mut request => panic!("nothing can be answered: {early:?}"),
        status = client.status() => drop(status.unwrap()),
    }
    member.signal(Signal::TERM);
    let error = request.await.unwrap_err();
    assert_eq!(error.code(), Some(504), "{error}");
    assert!(error.to_string().contains("unknown"), "{error}");
    assert_eq!(cluster.members[leader].ended().await.code(), Some(0));
}
