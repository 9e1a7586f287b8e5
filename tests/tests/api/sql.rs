//! SQL over REST: results, mistakes, what a replicated database refuses.

use cluster_tests::{Caller, Payload, Target, TestCluster, microctl};
use serde_json::{Value, json};

#[tokio::test]
async fn statements_are_one_transaction_and_split_as_sqlite_does() {
    let cluster = TestCluster::start(2).await;
    for daemon in &cluster.members {
        let target = Target::new(daemon, Caller::Socket);
        let table = format!("t_{}", daemon.name());
        let query = format!(
            "CREATE TABLE {table} (k INTEGER PRIMARY KEY, v); -- a comment; with a semicolon
             INSERT INTO {table} VALUES (1, 'a;b'), (2, x'00ff'), (9223372036854775806, 1.5);
             WITH x AS (SELECT * FROM {table}) SELECT k, v FROM x ORDER BY k;
             UPDATE {table} SET v = NULL WHERE k = 2 RETURNING k; VALUES (1), (2);"
        );
        let results = run(&target, json!({"query": query})).await;
        let exec = |rows: u64| json!({"type": "exec", "columns": null, "rows": null, "rows_affected": rows});
        assert_eq!(results[1], exec(3));
        assert_eq!(results[2]["rows"], json!([[1, "a;b"], [2, "x'00ff'"], [9_223_372_036_854_775_806_i64, 1.5]]));
        assert_eq!(results[3]["rows"], json!([[2]]));
        assert_eq!(results[4]["rows"], json!([[1], [2]]));
        let bound = json!({"query": format!("SELECT v, ?2 FROM {table} WHERE k = ?1"), "parameters": [1, "x"]});
        assert_eq!(run(&target, bound).await[0]["rows"], json!([["a;b", "x"]]));
        // A real is the one that was written, to the last bit.
        let real = json!({"query": "SELECT ?1", "parameters": [1.0522083877221927e-139]});
        assert_eq!(run(&target, real).await[0]["rows"], json!([[1.0522083877221927e-139]]));
        // One that fails takes the others along.
        let query = format!("INSERT INTO {table} VALUES (3, 3); INSERT INTO {table} VALUES (1, 1)");
        let message = send(&target, json!({"query": query})).await.error(409);
        assert!(message.contains(&table), "{message}");
        let count = run(&target, json!({"query": format!("SELECT count(*) FROM {table}")})).await;
        assert_eq!(count[0]["rows"], json!([[3]]));
    }
}

#[tokio::test]
async fn mistakes_have_their_codes_and_name_what_is_wrong() {
    let cluster = TestCluster::start(2).await;
    cluster.members[0].sql("CREATE TABLE t (a INTEGER NOT NULL CHECK (a > 0), b REFERENCES t (b), UNIQUE (b)); CREATE TABLE s (id INTEGER PRIMARY KEY AUTOINCREMENT)").await;
    let cases = [
        (json!({}), 400, "query"),
        (json!({"query": ""}), 400, "empty"),
        (json!({"query": 1}), 400, "string"),
        (json!({"query": "SELECT * FROM nope"}), 400, "nope"),
        (json!({"query": "SELEC 1"}), 400, "SELEC"),
        (json!({"query": "SELECT nope FROM t"}), 400, "nope"),
        (json!({"query": "INSERT INTO t (a, zz) VALUES (1, 1)"}), 400, "zz"),
        (json!({"query": "INSERT INTO t VALUES (NULL, 1)"}), 400, "t.a"),
        (json!({"query": "INSERT INTO t VALUES (-1, 1)"}), 400, "CHECK"),
        (json!({"query": "INSERT INTO t VALUES (1, 7)", "parameters": [1]}), 400, "parameter"),
        (json!({"query": "SELECT ?1, ?2", "parameters": [1]}), 400, "parameter"),
        (json!({"query": "SELECT ?1", "parameters": [[1]]}), 400, "list"),
        (json!({"query": "SELECT ?1", "parameters": {"a": 1}}), 400, "sequence"),
        (json!({"query": "SELECT 1", "consistency": "eventual"}), 400, "eventual"),
        (json!({"query": "BEGIN"}), 400, "BEGIN"),
        (json!({"query": "COMMIT"}), 400, "COMMIT"),
        (json!({"query": "SAVEPOINT x"}), 400, "SAVEPOINT"),
        (json!({"query": "VACUUM"}), 400, "VACUUM"),
        (json!({"query": "ATTACH 'x' AS y"}), 400, "ATTACH"),
        (json!({"query": "PRAGMA journal_mode = DELETE"}), 400, "journal_mode"),
        (json!({"query": "SELECT load_extension('x')"}), 400, "load_extension"),
        (json!({"query": "CREATE TEMP TABLE x (a)"}), 400, "temp"),
        (json!({"query": "DELETE FROM core_cluster_members"}), 400, "core_cluster_members"),
        (json!({"query": "SELECT 1", "parameters": "x"}), 400, "sequence"),
        (
            json!({"query": "INSERT INTO t (rowid, a) VALUES (9223372036854775807, 1)"}),
            400,
            "rowid 9223372036854775807",
        ),
        (json!({"query": "INSERT INTO sqlite_sequence VALUES ('s', 9223372036854775807)"}), 400, "sqlite_sequence"),
        (json!({"query": "INSERT INTO t (a) VALUES (1); COMMIT"}), 400, "COMMIT"),
    ];
    for daemon in &cluster.members {
        let target = Target::new(daemon, Caller::Socket);
        for (body, code, named) in &cases {
            let message = send(&target, body.clone()).await.error(*code);
            let lower = message.to_lowercase();
            assert!(lower.contains(&named.to_lowercase()), "{named} is to be in the answer to {body}: {message}");
        }
        let said = microctl(daemon, &["sql", "SELECT * FROM nope"]).await.failed();
        assert!(said.contains("nope"), "{said}");
    }
    assert_eq!(cluster.members[0].sql("SELECT * FROM t").await.len(), 0);
}

/// Too large and too long: refused within a time, and the daemon goes on.
#[tokio::test]
async fn results_and_run_times_are_bounded() {
    let cluster = TestCluster::start(2).await;
    for daemon in &cluster.members {
        let target = Target::new(daemon, Caller::Socket);
        let large =
            "SELECT hex(zeroblob(1000000)) FROM (WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n
             WHERE i < 100) SELECT * FROM n)";
        let message = send(&target, json!({"query": large})).await.error(413);
        assert!(message.contains("limit"), "{message}");
        assert_eq!(run(&target, json!({"query": "SELECT 1"})).await[0]["rows"], json!([[1]]));
    }
}

async fn send(target: &Target, body: Value) -> cluster_tests::Answer {
    target.send("POST /core/internal/sql", Payload::json(&body)).await
}

async fn run(target: &Target, body: Value) -> Vec<Value> {
    let mut metadata = send(target, body).await.metadata();
    serde_json::from_value(metadata["Results"].take()).unwrap()
}
