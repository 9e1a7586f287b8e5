//! Recovery from the loss of a quorum for good: the cluster goes on from the disk of one member, and others follow by its archive.

use std::fs;
use std::path::Path;

use cluster_tests::{
    Daemon, TestCluster, Writers, address_free, eventually, microctl, microctl_command, microctl_with,
};
use microcluster::{App, LogPosition, RaftMember};
use microcluster_client::Role;
use rustix::process::Signal;
use serde_json::json;

const ARCHIVE: &str = "recovery_db.tar.gz";

/// The members on a daemon's disk, changed, as the command takes them.
async fn edited(daemon: &Daemon, change: impl Fn(&mut RaftMember)) -> String {
    let mut members = App::new(daemon.dir()).local_members().await.unwrap().members;
    members.iter_mut().for_each(change);
    serde_json::to_string(&members).unwrap()
}

/// The same: these vote, and all others are spares.
async fn voters(daemon: &Daemon, names: &[&str]) -> String {
    let role = |member: &RaftMember| if names.contains(&member.name.as_str()) { Role::Voter } else { Role::Spare };
    edited(daemon, |member| member.role = role(member)).await
}

/// The place of the daemon with the newest log on its disk.
async fn newest(daemons: &[Daemon]) -> usize {
    let mut best = (0, LogPosition::default());
    for (place, daemon) in daemons.iter().enumerate() {
        let log = App::new(daemon.dir()).local_members().await.unwrap().log;
        if log > best.1 {
            best = (place, log);
        }
    }
    best.0
}

/// The names of files in the state directory that begin so.
fn files(daemon: &Daemon, prefix: &str) -> Vec<String> {
    let names = fs::read_dir(daemon.dir()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(prefix)).collect()
}

fn bring_archive(from: &Daemon, to: &Daemon) {
    fs::copy(from.dir().join(ARCHIVE), to.dir().join(ARCHIVE)).unwrap();
}

/// What it has logged since `before`, once it has ended with an error.
async fn refused(daemon: &mut Daemon) -> String {
    let before = daemon.log().len();
    daemon.spawn();
    assert_eq!(daemon.ended().await.code(), Some(1));
    daemon.log().split_off(before)
}

/// Two of three are lost for good. The one that is left has all that was acknowledged, takes writes, and gets new company.
#[tokio::test]
async fn one_of_three_goes_on_alone() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    let mut writers = Writers::start(&cluster, 3).await;
    writers.advance(30).await;
    let beside = microctl(&cluster.members[0], &["cluster", "edit"]).await.failed();
    assert!(beside.contains("runs; stop it first"), "{beside}");
    let listed = microctl(&cluster.members[0], &["cluster", "list", "--local", "-f", "csv"]).await;
    assert!(listed.stderr.contains("The log on this disk ends in term"), "{listed:?}");
    assert_eq!(listed.done().lines().count(), 3, "also while the daemon runs");
    cluster.members.iter_mut().for_each(Daemon::kill);

    let place = newest(&cluster.members).await;
    let mut survivor = cluster.members.swap_remove(place);
    let name = survivor.name().to_string();
    let lost: Vec<String> = cluster.members.iter().map(|member| member.name().to_string()).collect();
    cluster.members.iter_mut().for_each(Daemon::wipe);
    for (input, hint) in [
        (String::new(), "there is no list of members"),
        ("[{]".to_owned(), "no list of members"),
        (voters(&survivor, &[]).await, "there is no voter"),
        ("- {id: 1, name: c1, address: '127.0.0.1:1', role: leader}".to_owned(), "\"leader\" is no role"),
        ("- {id: 9, name: c9, address: '127.0.0.1:1', role: voter}".to_owned(), "no member named c9"),
    ] {
        let said = microctl_with(&survivor, &["cluster", "edit"], &input).await.failed();
        assert!(said.contains(hint), "{said}");
        assert_eq!(files(&survivor, "recover").len() + files(&survivor, "db_backup").len(), 0, "nothing is changed");
    }
    let members = voters(&survivor, &[&name]).await;
    let report = microctl_with(&survivor, &["cluster", "edit"], &members).await.done();
    for what in [&format!("recovered on {name}"), "db_backup.", ARCHIVE, "spare, was voter", &lost[0], &lost[1]] {
        assert!(report.contains(what), "{what} is not in {report}");
    }
    survivor.start_again().await;
    writers.advance(10).await;
    let ledger = writers.stop().await;
    ledger.check(&survivor).await;
    cluster.members = vec![survivor];
    // Those who are gone get no vote, though all three are to vote.
    let later = cluster.any().sql("SELECT count(*) FROM written").await;
    cluster.add("c4").await;
    for name in &lost {
        cluster.any().client().remove_cluster_member(&name.parse().unwrap(), true).await.unwrap();
    }
    cluster.settled(&[&name, "c4"]).await;
    assert_eq!(cluster.members[1].sql("SELECT count(*) FROM written").await, later);
    cluster.replicas_agree().await;
    cluster.all_same(2).await;
    assert_eq!(files(&cluster.members[0], ARCHIVE), [ARCHIVE], "where it was made it stays, for others");
}

/// Two of three voters are lost. A stand-by gets the archive; both go on as voters. One of the lost comes back with what it had.
#[tokio::test]
async fn another_member_follows_by_the_archive() {
    let mut cluster = TestCluster::start(4).await;
    cluster.settled(&["c1", "c2", "c3", "c4"]).await;
    cluster.members[0].sql("CREATE TABLE t (a); INSERT INTO t VALUES (1)").await;
    cluster.replicas_agree().await;
    cluster.members.iter_mut().for_each(Daemon::kill);
    let members = voters(&cluster.members[0], &["c1", "c4"]).await;
    let report = microctl_with(&cluster.members[0], &["cluster", "edit"], &members).await.done();
    assert!(report.contains("state directory of c4"), "{report}");
    let back = cluster.members.remove(1);
    let gone = cluster.members.remove(1);
    bring_archive(&cluster.members[0], &cluster.members[1]);
    // Neither has a majority without the other.
    cluster.members.iter_mut().for_each(Daemon::spawn);
    for member in &mut cluster.members {
        member.wait_ready().await;
    }
    cluster.any().sql("INSERT INTO t VALUES (2)").await;
    assert_eq!(cluster.members[1].sql("SELECT a FROM t ORDER BY a").await, [[json!(1)], [json!(2)]]);
    assert_eq!(files(&cluster.members[1], ARCHIVE), [""; 0], "it was taken");
    assert_eq!(files(&cluster.members[1], "db_backup.").len(), 1);
    assert!(cluster.members[1].log().contains("took the database that the cluster was recovered with"));

    // A copy of it that comes late takes nothing back.
    bring_archive(&cluster.members[0], &cluster.members[1]);
    cluster.members[1].kill();
    cluster.members[1].start_again().await;
    assert!(cluster.members[1].log().contains("this archive was taken before"));
    cluster.any().sql("INSERT INTO t VALUES (3)").await;
    cluster.all_same(2).await;

    // One of the old voters is started with what it had, and talks to nobody until it has the archive.
    cluster.members.push(back);
    cluster.members[2].spawn();
    let stale = &cluster.members[2];
    eventually("it says what to do", async || {
        let said = stale.log().contains("copy recovery_db.tar.gz from the member");
        said.then_some(()).ok_or("nothing is said")
    })
    .await;
    assert_eq!(stale.sql_local("SELECT a FROM t").await.unwrap(), [[json!(1)]]);
    cluster.any().sql("INSERT INTO t VALUES (4)").await;
    cluster.members[2].kill();
    bring_archive(&cluster.members[0], &cluster.members[2]);
    cluster.members[2].start_again().await;
    cluster.any().client().remove_cluster_member(gone.name(), true).await.unwrap();
    cluster.settled(&["c1", "c2", "c4"]).await;
    cluster.replicas_agree().await;
    cluster.all_same(3).await;

    // Its database is lost. The archive would give it one in which its votes, and what it has acknowledged since, are forgotten.
    cluster.members[1].kill();
    fs::remove_dir_all(cluster.members[1].dir().join("database")).unwrap();
    bring_archive(&cluster.members[0], &cluster.members[1]);
    cluster.members[1].start_again().await;
    eventually("the log says so", async || {
        let log = cluster.members[1].log();
        let is_said =
            log.contains("the archive is not taken, and left aside") && log.contains("this member was rebuilt");
        is_said.then_some(()).ok_or(log)
    })
    .await;
    assert_eq!(files(&cluster.members[1], "reco"), ["recovery_db.refused.tar.gz"]);
    cluster.settled(&["c1", "c2", "c4"]).await;
    cluster.all_same(3).await;
}

/// Two members are held, and never started again, while the cluster is recovered without them.
#[tokio::test]
async fn members_that_run_on_from_before_are_kept_out() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    cluster.members[0].sql("CREATE TABLE t (a); INSERT INTO t VALUES (1)").await;
    cluster.replicas_agree().await;
    for held in &cluster.members[1..] {
        held.signal(Signal::STOP);
    }
    cluster.members[0].kill();
    let members = voters(&cluster.members[0], &["c1"]).await;
    microctl_with(&cluster.members[0], &["cluster", "edit"], &members).await.done();
    cluster.members[0].start_again().await;
    cluster.members[0].sql("INSERT INTO t VALUES (2)").await;
    for held in &cluster.members[1..] {
        held.signal(Signal::CONT);
    }
    for held in &cluster.members[1..] {
        eventually("it says what to do", async || {
            let said = held.log().contains("copy recovery_db.tar.gz from the member");
            said.then_some(()).ok_or("nothing is said")
        })
        .await;
    }
    // They are two of three, and go on by what they know; nothing of it comes to the other side, nor of that to them.
    eventually("those of before have a leader", async || {
        cluster.members[1].try_sql("INSERT INTO t VALUES (9)").await.map(drop).map_err(|e| e.to_string())
    })
    .await;
    cluster.members[0].sql("INSERT INTO t VALUES (3)").await;
    let rows = [json!([[1], [2], [3]]), json!([[1], [9]])];
    assert_eq!(json!(cluster.members[0].sql("SELECT a FROM t ORDER BY a").await), rows[0]);
    assert_eq!(json!(cluster.members[2].sql("SELECT a FROM t ORDER BY a").await), rows[1]);
}

/// The member comes back at another address, and those who follow it know.
#[tokio::test]
async fn addresses_may_change() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    cluster.members[0].sql("CREATE TABLE t (a); INSERT INTO t VALUES (1)").await;
    cluster.replicas_agree().await;
    cluster.members.iter_mut().for_each(Daemon::kill);
    drop(cluster.members.pop());
    let addresses = [address_free(), address_free()];
    let members = edited(&cluster.members[0], |member| {
        match member.name.as_str() {
            "c1" => member.address = addresses[0],
            "c2" => member.address = addresses[1],
            _ => member.role = Role::Spare,
        };
    })
    .await;
    microctl_with(&cluster.members[0], &["cluster", "edit"], &members).await.done();
    bring_archive(&cluster.members[0], &cluster.members[1]);
    for (member, address) in cluster.members.iter_mut().zip(addresses) {
        member.moved(address);
        member.spawn();
    }
    for member in &mut cluster.members {
        member.wait_ready().await;
    }
    cluster.any().sql("INSERT INTO t VALUES (2)").await;
    cluster.any().client().remove_cluster_member(&"c3".parse().unwrap(), true).await.unwrap();
    cluster.settled(&["c1", "c2"]).await;
    for (member, address) in cluster.members.iter().zip(addresses) {
        let listed = member.members().await.unwrap();
        assert!(listed.iter().any(|listed| listed.name == *member.name() && listed.address == address), "{listed:?}");
        assert!(member.tls_client(&member.trust()).status().await.is_ok(), "it listens there");
    }
    cluster.all_same(2).await;
}

/// A file that is not the archive of this member's cluster keeps the daemon from starting, says why, and changes nothing.
#[tokio::test]
async fn a_wrong_archive_is_refused() {
    let mut cluster = TestCluster::start(2).await;
    cluster.settled(&["c1", "c2"]).await;
    cluster.members[0].sql("CREATE TABLE t (a); INSERT INTO t VALUES (1)").await;
    let mut other = TestCluster::of(vec![Daemon::new("c9"), Daemon::new("c2")]).await;
    other.settled(&["c2", "c9"]).await;
    let mut free = Daemon::start("c5").await;
    for daemon in cluster.members.iter_mut().chain(&mut other.members).chain([&mut free]) {
        assert_eq!(daemon.stop().await.code(), Some(0));
    }
    for (maker, name) in [(&cluster.members[0], "c1"), (&other.members[0], "c9")] {
        let members = voters(maker, &[name]).await;
        microctl_with(maker, &["cluster", "edit"], &members).await.done();
    }
    let archive = fs::read(cluster.members[0].dir().join(ARCHIVE)).unwrap();
    let foreign = fs::read(other.members[0].dir().join(ARCHIVE)).unwrap();
    let mut flipped = archive.clone();
    flipped[archive.len() / 2] ^= 0x40;
    let member = &mut cluster.members[1];
    let before = App::new(member.dir()).local_members().await.unwrap();
    for (content, hint) in [
        (&b"no archive"[..], "it is damaged or not complete"),
        (&[], "it is damaged or not complete"),
        (&archive[..archive.len() / 2], "it is damaged or not complete"),
        (&archive[..archive.len() - 3], "it is damaged or not complete"),
        (&flipped, "it is damaged or not complete"),
        (&foreign, "has another certificate"),
    ] {
        fs::write(member.dir().join(ARCHIVE), content).unwrap();
        let log = refused(member).await;
        assert!(log.contains(ARCHIVE) && log.contains(hint), "{hint}: {log}");
        let now = App::new(member.dir()).local_members().await.unwrap();
        assert_eq!((now.log, now.members), (before.log, before.members.clone()));
        assert_eq!(files(member, "db_backup").len(), 0);
    }
    fs::write(free.dir().join(ARCHIVE), &archive).unwrap();
    assert!(refused(&mut free).await.contains("this daemon is no member"));
    // Of a cluster that has nobody of that name.
    let stranger = &mut other.members[0];
    fs::write(stranger.dir().join(ARCHIVE), &archive).unwrap();
    assert!(refused(stranger).await.contains("it has no member named c9"));

    fs::write(member.dir().join(ARCHIVE), &archive).unwrap();
    cluster.members.iter_mut().for_each(Daemon::spawn);
    for member in &mut cluster.members {
        member.wait_ready().await;
    }
    cluster.all_same(2).await;
}

/// `kill -9` of the command at each of its steps: it can be run again, or the start goes on with what was decided.
#[tokio::test]
async fn the_command_is_killed_at_each_step() {
    let mut outcomes = Vec::new();
    for step in [
        "recovering",
        "recovering/database/state",
        "db_backup",
        "recovering/recovery_db.tar.gz",
        "recovered",
        "recovery_db.tar.gz",
    ] {
        let mut cluster = with_data().await;
        let members = voters(&cluster.members[0], &["c1"]).await;
        let dir = cluster.members[0].dir();
        let ended = until_step(&cluster.members[0], &members, &dir, step).await;
        // What the kill left is found by the next run, which does it again where it was not decided.
        let decided = dir.join("recovered").exists() || dir.join(ARCHIVE).exists();
        assert!(decided || !ended, "{step}: it was done");
        if !decided {
            microctl_with(&cluster.members[0], &["cluster", "edit"], &members).await.done();
        }
        outcomes.push((step, decided));
        cluster.members[0].start_again().await;
        assert!(!dir.join("recovered").exists() && !dir.join("recovering").exists());
        cluster.members[0].sql("INSERT INTO t VALUES (-1)").await;
        // The other one is killed while it takes the archive.
        bring_archive(&cluster.members[0], &cluster.members[1]);
        let other = &mut cluster.members[1];
        let dir = other.dir();
        other.spawn();
        cluster_tests::until(std::future::pending::<()>(), async || {
            has_come(&dir, step) || !dir.join(ARCHIVE).exists()
        })
        .await;
        other.kill();
        other.start_again().await;
        assert_eq!(files(other, "reco"), [""; 0], "{step}");
        cluster.settled(&["c1", "c2"]).await;
        cluster.all_same(2).await;
    }
    println!("{outcomes:?}");
    assert!(outcomes.iter().any(|(_, decided)| !decided), "none was early enough");
}

/// Two members with a few megabytes, killed.
async fn with_data() -> TestCluster {
    let mut cluster = TestCluster::start(2).await;
    cluster.settled(&["c1", "c2"]).await;
    let rows =
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 600) SELECT randomblob(8000) FROM n";
    cluster.any().sql(&format!("CREATE TABLE t (a); INSERT INTO t {rows}")).await;
    cluster.members.iter_mut().for_each(Daemon::kill);
    cluster
}

/// Runs the command, and kills it when a step was seen; says whether it was done before.
async fn until_step(daemon: &Daemon, members: &str, dir: &Path, step: &str) -> bool {
    let input = dir.join("members");
    fs::write(&input, members).unwrap();
    let mut command = microctl_command();
    command.arg("--state-dir").arg(dir).args(["cluster", "edit"]).stdin(fs::File::open(input).unwrap());
    let mut process = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    let ended = cluster_tests::until(process.wait(), async || has_come(dir, step)).await;
    process.kill().await.ok();
    if let Some(status) = &ended {
        assert!(status.as_ref().is_ok_and(std::process::ExitStatus::success), "{}: {status:?}", daemon.name());
    }
    ended.is_some()
}

fn has_come(dir: &Path, step: &str) -> bool {
    match step {
        "db_backup" => {
            fs::read_dir(dir).unwrap().any(|entry| entry.unwrap().file_name().to_str().unwrap().contains(step))
        }
        file => dir.join(file).exists(),
    }
}
