//! Random SQL over a schema that has one of everything: few names and few values, so that statements meet.

use rand::RngExt;
use rand::rngs::StdRng;

/// What every cluster begins with.
pub const SCHEMA: &str = "
    CREATE TABLE a(id INTEGER PRIMARY KEY AUTOINCREMENT, k TEXT UNIQUE, n INTEGER DEFAULT (random()),
        at TEXT DEFAULT CURRENT_TIMESTAMP, day DEFAULT (date('now', '-1 day')), b BLOB DEFAULT (randomblob(9)),
        g INTEGER AS (n % 7) STORED, v INTEGER AS (length(k) + n) VIRTUAL, CHECK (length(k) < 40));
    CREATE INDEX a_g ON a(g, v) WHERE g > 2;
    CREATE INDEX a_e ON a(lower(k), abs(n % 100));
    CREATE TABLE p(id INTEGER PRIMARY KEY, x REAL UNIQUE);
    CREATE TABLE c(id INTEGER PRIMARY KEY, p REFERENCES p(id) ON DELETE CASCADE ON UPDATE CASCADE, x DEFAULT (random() % 1000));
    CREATE TABLE s(c REFERENCES c(id) ON DELETE SET NULL, at DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')));
    CREATE TABLE w(k TEXT, n INTEGER, v, PRIMARY KEY (k, n)) WITHOUT ROWID;
    CREATE TABLE strict(i INTEGER, r REAL, t TEXT, b BLOB, any ANY) STRICT;
    CREATE TABLE log(what TEXT, rowid_seen INTEGER, changes_seen INTEGER, r DEFAULT (random()), at DEFAULT (julianday('now')));
    CREATE VIEW many AS SELECT g, count(*) AS rows, max(id) AS last FROM a GROUP BY g;
    CREATE VIRTUAL TABLE f USING fts5(body, tag);
    CREATE VIRTUAL TABLE af USING fts5(k, content='a', content_rowid='id');
    CREATE TRIGGER a_insert AFTER INSERT ON a BEGIN
        INSERT INTO log(what, rowid_seen, changes_seen) VALUES ('insert', last_insert_rowid(), changes());
        INSERT INTO af(rowid, k) VALUES (new.id, new.k);
    END;
    CREATE TRIGGER a_delete AFTER DELETE ON a BEGIN
        INSERT INTO af(af, rowid, k) VALUES ('delete', old.id, old.k);
        INSERT INTO log(what, rowid_seen, changes_seen) VALUES ('delete', last_insert_rowid(), changes());
    END;
    CREATE TRIGGER a_update AFTER UPDATE OF n ON a BEGIN
        INSERT OR REPLACE INTO w VALUES ('update', new.n % 5, random());
    END;
    CREATE TRIGGER p_insert BEFORE INSERT ON p WHEN new.id = 13 BEGIN SELECT RAISE(ABORT, 'unlucky'); END;
    CREATE TRIGGER s_insert BEFORE INSERT ON s WHEN new.c = 5 BEGIN SELECT RAISE(IGNORE); END;
    CREATE TRIGGER many_insert INSTEAD OF INSERT ON many BEGIN INSERT INTO a(k) VALUES ('many' || new.g); END;
    CREATE TABLE receipt(id INTEGER PRIMARY KEY, seen INTEGER, counted INTEGER, r INTEGER, at TEXT)";

/// In some clusters each request has a SQLite transaction of its own.
pub const DEFERRED_KEYS: &str = "
    CREATE TABLE d(id INTEGER PRIMARY KEY, d REFERENCES d(id) DEFERRABLE INITIALLY DEFERRED);
    CREATE TRIGGER d_insert BEFORE INSERT ON d WHEN new.id = 7 BEGIN SELECT RAISE(ROLLBACK, 'all of it'); END";

/// A statement. Some fail, some are refused: also that must be the same everywhere.
pub fn statement(rng: &mut StdRng) -> String {
    let (i, j, n) = (rng.random_range(1..20), rng.random_range(1..20), rng.random_range(-50..50));
    let word = ["ant", "bee", "Cat", "dög", "eel", "fly"][rng.random_range(0..6)];
    let or = ["", "", "OR REPLACE ", "OR IGNORE ", "OR FAIL ", "OR ABORT "][rng.random_range(0..6)];
    match rng.random_range(0..46) {
        0 => format!("INSERT {or}INTO a(k) VALUES ('{word}{i}')"),
        1 => format!("INSERT {or}INTO a(k, n) VALUES ('{word}{i}', {n}), ('{word}{j}', random() % 100)"),
        2 => format!(
            "INSERT INTO a(k, n) VALUES ('{word}{i}', {n}) ON CONFLICT(k) DO UPDATE SET n = excluded.n + a.n, at = datetime('now')"
        ),
        3 => format!(
            "INSERT {or}INTO a(k, b) VALUES (hex(randomblob(4)), randomblob({i})) RETURNING id, k, g, at, last_insert_rowid()"
        ),
        4 => format!("INSERT {or}INTO a(id, k) VALUES ({i}, '{word}') RETURNING *"),
        5 => format!("UPDATE a SET n = n + {n}, day = date('now', '+{i} days') WHERE id % 7 = {j} % 7"),
        6 => format!("UPDATE {or}a SET k = '{word}' || {i} WHERE id = (SELECT max(id) FROM a WHERE g <> {j})"),
        7 => format!("UPDATE a SET n = random() WHERE k LIKE '{word}%' RETURNING id, n, changes()"),
        8 => format!("DELETE FROM a WHERE id % 11 = {i} % 11 RETURNING id"),
        9 => format!("DELETE FROM a WHERE id IN (SELECT id FROM a ORDER BY n, id LIMIT {j})"),
        10 => format!("INSERT {or}INTO p VALUES ({i}, {n} / 3.0)"),
        11 => format!(
            "INSERT INTO p(x) SELECT n / 7.0 FROM a WHERE n IS NOT NULL ORDER BY id LIMIT {j} ON CONFLICT DO NOTHING"
        ),
        12 => format!("UPDATE p SET id = id + {i} WHERE id = {j}"),
        13 => format!("DELETE FROM p WHERE id = {i} RETURNING id, x"),
        14 => format!("INSERT {or}INTO c(id, p) VALUES ({i}, {j})"),
        15 => format!("INSERT INTO c(p) SELECT id FROM p WHERE id < {i}"),
        16 => format!("INSERT INTO s(c) VALUES ({i}), ({j})"),
        17 => format!("DELETE FROM s WHERE rowid % 5 = {i} % 5"),
        18 => format!("INSERT {or}INTO w VALUES ('{word}', {i}, strftime('%s', 'now')), ('{word}', {j}, random())"),
        19 => format!("DELETE FROM w WHERE n = {i}"),
        20 => format!("INSERT {or}INTO strict VALUES ({n}, {n} * 1.5, '{word}', randomblob(5), unixepoch())"),
        21 => format!("INSERT {or}INTO strict(i) VALUES ('{word}')"),
        22 => format!("DELETE FROM strict WHERE rowid < (SELECT max(rowid) FROM strict) - {i}"),
        23 => format!("INSERT INTO f VALUES ('{word} ' || hex(randomblob(3)) || ' {i}', current_timestamp)"),
        24 => format!("DELETE FROM f WHERE f MATCH '{word}' AND rowid % 3 = {i} % 3"),
        25 => "INSERT INTO f(f) VALUES ('optimize')".to_owned(),
        26 => format!("UPDATE f SET body = body || ' {word}' WHERE rowid % 4 = {i} % 4"),
        27 => format!("INSERT INTO many(g) VALUES ({i})"),
        28 => "DELETE FROM log WHERE rowid < (SELECT max(rowid) FROM log) - 200".to_owned(),
        29 => format!("INSERT INTO log(what, rowid_seen, changes_seen) SELECT '{word}', count(*), total(n) FROM a"),
        30 => "INSERT INTO log(what, rowid_seen, changes_seen) VALUES ('plain', last_insert_rowid(), changes())"
            .to_owned(),
        31 => format!(
            "WITH RECURSIVE t(x) AS (VALUES ({i}) UNION ALL SELECT x + 1 FROM t LIMIT {j}) INSERT OR IGNORE INTO w SELECT 'cte', x, random() FROM t"
        ),
        32 => format!("INSERT INTO a(id, k) VALUES (9223372036854775807, '{word}')"),
        33 => format!("INSERT INTO nowhere VALUES ({i})"),
        34 => format!("INSERT INTO d VALUES ({i}, {j})"),
        35 => format!("INSERT INTO d VALUES ({}, NULL)", i + 100),
        _ => definition(rng),
    }
}

/// A change of the schema, or of what it has made.
fn definition(rng: &mut StdRng) -> String {
    let (x, i) = (rng.random_range(0..3), rng.random_range(1..20));
    match rng.random_range(0..16) {
        0 => format!(
            "CREATE TABLE IF NOT EXISTS x{x}(a INTEGER PRIMARY KEY, b DEFAULT (random()), c DEFAULT CURRENT_TIME)"
        ),
        1 => format!("CREATE TABLE x{x} AS SELECT id, k, n, random() AS r FROM a"),
        2 => format!("DROP TABLE IF EXISTS x{x}"),
        3 => format!("ALTER TABLE x{x} ADD COLUMN e{i} DEFAULT {i}"),
        4 => format!("ALTER TABLE x{x} DROP COLUMN e{i}"),
        5 => format!("ALTER TABLE x{x} RENAME COLUMN b TO b{i}"),
        6 => format!("ALTER TABLE x{x} RENAME TO x{}", (x + 1) % 3),
        7 => format!("CREATE INDEX IF NOT EXISTS x{x}_i ON x{x}(b)"),
        8 => format!("DROP INDEX IF EXISTS x{x}_i"),
        9 => format!(
            "CREATE TRIGGER IF NOT EXISTS x{x}_t AFTER INSERT ON x{x} BEGIN INSERT INTO log(what) VALUES (datetime('now')); END"
        ),
        10 => format!("CREATE TABLE IF NOT EXISTS x{x}(a INTEGER PRIMARY KEY AUTOINCREMENT, b UNIQUE) STRICT"),
        11 => format!("CREATE VIRTUAL TABLE IF NOT EXISTS x{x} USING fts5(b)"),
        12 => "ANALYZE".to_owned(),
        13 => "REINDEX a".to_owned(),
        _ => format!("INSERT INTO x{x}(b) VALUES ({i}), (random())"),
    }
}
