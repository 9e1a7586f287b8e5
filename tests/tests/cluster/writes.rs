//! One database: written anywhere, read everywhere.

use cluster_tests::{TestCluster, microctl};
use serde_json::json;

/// What is acknowledged on one member is there for the next read on any other.
#[tokio::test]
async fn what_one_member_writes_all_members_read() {
    let cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    cluster.members[0].sql("CREATE TABLE t (k TEXT PRIMARY KEY, n INTEGER)").await;
    for round in 0..5 {
        for writer in &cluster.members {
            let key = format!("{}-{round}", writer.name());
            writer.sql(&format!("INSERT INTO t VALUES ('{key}', {round})")).await;
            for reader in &cluster.members {
                let rows = reader.sql(&format!("SELECT n FROM t WHERE k = '{key}'")).await;
                assert_eq!(rows, [[json!(round)]], "{key} written on {}, read on {}", writer.name(), reader.name());
            }
        }
    }
    cluster.replicas_agree().await;
}

/// All the way through the command line, as an operator does it.
#[tokio::test]
async fn an_operator_makes_a_cluster_with_microctl() {
    use cluster_tests::Daemon;
    let first = Daemon::start("c1").await;
    let second = Daemon::start("c2").await;
    let address = |daemon: &Daemon| daemon.address().to_string();
    microctl(&first, &["init", "c1", &address(&first), "--bootstrap"]).await.done();
    let token = microctl(&first, &["tokens", "add", "c2"]).await.done();
    assert_eq!(token.lines().count(), 1, "the token alone: {token:?}");
    let listed = microctl(&first, &["tokens", "list", "-f", "json"]).await.done();
    assert!(listed.contains(token.trim()), "{listed}");
    microctl(&second, &["init", "c2", &address(&second), "--token", token.trim()]).await.done();
    for format in ["table", "compact", "csv", "json", "yaml"] {
        let list = microctl(&second, &["cluster", "list", "-f", format]).await.done();
        assert!(list.contains("c1") && list.contains(&address(&second)), "{format}: {list}");
    }
    let sql = ["sql", "CREATE TABLE t (a, b); INSERT INTO t VALUES (1, 'one; two') RETURNING a, b"];
    let written = microctl(&first, &sql).await.done();
    assert!(written.contains("one; two"), "{written}");
    let read = microctl(&second, &["sql", "SELECT * FROM t"]).await.done();
    assert!(read.contains("one; two"), "{read}");
    let dump = microctl(&second, &["sql", ".dump"]).await.done();
    assert!(dump.contains("CREATE TABLE t") && dump.contains("'one; two'"), "{dump}");
    let status = microctl(&second, &["status"]).await.done();
    assert!(status.contains("c1"), "the leader is named: {status}");
    microctl(&second, &["cluster", "remove", "c2"]).await.done();
    assert_eq!(first.member_names().await.unwrap(), ["c1"]);
}
