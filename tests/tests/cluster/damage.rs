//! Files of a member that were damaged or lost: found, named, and the member rebuilt from the others.

use std::fs;
use std::path::{Path, PathBuf};

use cluster_tests::{TestCluster, Writers, eventually};
use microcluster_client::Verdict;
use serde_json::json;

/// A text that is found again in the state file.
const NEEDLE: &str = "a text that stands in one row alone";

/// A damage: its name, what is done to the database folder of a member that was killed, and a word of the reason that its log gives.
type Damage = (&'static str, fn(&Path), &'static str);

const DAMAGES: &[Damage] = &[
    ("the newest segment of the log is cut in the middle", cut_log, "entry"),
    ("the log is gone", |database| fs::remove_dir_all(database.join("log")).unwrap(), "no vote"),
    ("everything is gone", |database| fs::remove_dir_all(database).unwrap(), "no vote"),
    ("a byte of the log is another one", flip_log, "group is not intact"),
    ("the state file begins with garbage", spoil_state, "not a database"),
    (
        "the name of the state file is garbage",
        |database| fs::write(database.join("state/current"), "?").unwrap(),
        "names no",
    ),
    (
        "the name of the state file is gone",
        |database| fs::remove_file(database.join("state/current")).unwrap(),
        "is missing beside",
    ),
];

#[tokio::test]
async fn a_member_with_damaged_files_is_rebuilt_at_its_start() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    let mut writers = Writers::start(&cluster, 3).await;
    for (what, damage, reason) in DAMAGES {
        println!("{what}");
        writers.advance(30).await;
        let victim = cluster.follower().await;
        let member = &mut cluster.members[victim];
        member.kill();
        damage(&member.dir().join("database"));
        let logged = member.log().len();
        member.start_again().await;
        let log = member.log().split_off(logged);
        assert!(log.contains("rebuilding this member") && log.contains(reason), "{what}: {log}");
        writers.advance(10).await;
        cluster.settled(&["c1", "c2", "c3"]).await;
        cluster.all_same(3).await;
    }
    let ledger = writers.stop().await;
    for member in &cluster.members {
        ledger.check(member).await;
    }
    cluster.replicas_agree().await;
}

/// A byte in a page of a table that changed on the disk is seen by nobody until the members are compared.
#[tokio::test]
async fn a_member_whose_rows_differ_is_named_and_rebuilt() {
    for members in [3, 2] {
        let mut cluster = TestCluster::start(members).await;
        let names = &["c1", "c2", "c3"][..members];
        cluster.settled(names).await;
        cluster.any().sql(&format!("CREATE TABLE t (a); INSERT INTO t VALUES ('{NEEDLE}')")).await;
        let victim = cluster.follower().await;
        // So much more that SQLite brings the row from its write-ahead log into the state file.
        let more = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 600) SELECT zeroblob(16000) FROM n";
        cluster.any().sql(&format!("CREATE TABLE more AS {more}")).await;
        cluster.any().sql(&format!("INSERT INTO more {more}")).await;
        assert_eq!(cluster.members[victim].sql("SELECT count(*) FROM more").await, [[json!(1200)]]);
        assert_eq!(cluster.members[victim].stop().await.code(), Some(0));
        let state = file(&cluster.members[victim].dir().join("database/state"), ".db");
        if members == 2 {
            // Two that differ: nobody can say who is right, unless SQLite itself sees that a page is none.
            spoil_page(&state);
        } else {
            change(&state, NEEDLE.as_bytes());
        }
        cluster.members[victim].start_again().await;
        let member = &cluster.members[victim];
        let found = eventually("all members are compared", async || {
            let found = member.client().verify_database().await.map_err(|e| e.to_string())?;
            let is_known = found.members.iter().all(|member| member.verdict != Verdict::Unknown);
            // Who cannot read its state is rebuilt, whoever else is silent.
            let is_named = found.members.iter().any(|member| member.verdict == Verdict::Damaged);
            if is_known || is_named { Ok(found) } else { Err(format!("{found:?}")) }
        })
        .await;
        for verdict in &found.members {
            let is_victim = verdict.name == member.name().as_str();
            let is_wrong = matches!(verdict.verdict, Verdict::Different | Verdict::Damaged);
            assert_eq!(is_wrong, is_victim, "{found:?}");
        }
        eventually("the member is rebuilt", async || {
            let seen = member.sql_local("SELECT a FROM t").await.map_err(|e| e.to_string())?;
            (seen == [[json!(NEEDLE)]]).then_some(()).ok_or_else(|| format!("{seen:?}"))
        })
        .await;
        cluster.settled(names).await;
        cluster.all_same(members).await;
        assert!(member.dir().join("database.damaged").exists(), "the damaged files are left for who wants to look");
    }
}

/// Alone there is nobody to be rebuilt from: the daemon says so and changes nothing.
#[tokio::test]
async fn a_single_member_with_damaged_files_does_not_start() {
    let mut cluster = TestCluster::start(1).await;
    let member = &mut cluster.members[0];
    member.sql("CREATE TABLE t (a)").await;
    member.kill();
    let log = member.dir().join("database/log");
    flip_log(&member.dir().join("database"));
    let before = fs::read(file(&log, ".log")).unwrap();
    member.spawn();
    assert_eq!(member.ended().await.code(), Some(1));
    assert!(member.log().contains("the Raft log is damaged"), "{}", member.log());
    assert_eq!(fs::read(file(&log, ".log")).unwrap(), before);
}

/// The last file of a folder with that ending.
fn file(dir: &Path, ending: &str) -> PathBuf {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.to_str().unwrap().ends_with(ending)).max().expect("a file")
}

fn cut_log(database: &Path) {
    let segment = file(&database.join("log"), ".log");
    let used = used(&segment);
    fs::File::options().write(true).open(&segment).unwrap().set_len(used / 2).unwrap();
}

fn flip_log(database: &Path) {
    let segment = file(&database.join("log"), ".log");
    let middle = used(&segment) / 2;
    let mut bytes = fs::read(&segment).unwrap();
    bytes[usize::try_from(middle).unwrap()] ^= 0x10;
    fs::write(&segment, bytes).unwrap();
}

/// How many bytes of a segment are not the zeros that it is filled with.
fn used(segment: &Path) -> u64 {
    let bytes = fs::read(segment).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64
}

fn spoil_state(database: &Path) {
    let state = file(&database.join("state"), ".db");
    let mut bytes = fs::read(&state).unwrap();
    bytes[..100].fill(0xA5);
    fs::write(&state, bytes).unwrap();
    // Its beginning must not come back from there.
    let wal = state.with_extension("db-wal");
    fs::write(wal, "").unwrap();
}

/// Makes the page that holds the needle none.
fn spoil_page(state: &Path) {
    let mut bytes = fs::read(state).unwrap();
    let at = position(&bytes, NEEDLE.as_bytes());
    let page = at / 4096 * 4096;
    bytes[page..page + 8].fill(0xA5);
    fs::write(state, bytes).unwrap();
}

fn change(path: &Path, needle: &[u8]) {
    let mut bytes = fs::read(path).unwrap();
    let at = position(&bytes, needle);
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn position(bytes: &[u8], needle: &[u8]) -> usize {
    bytes.windows(needle.len()).position(|window| window == needle).expect("the row is in the state file")
}
