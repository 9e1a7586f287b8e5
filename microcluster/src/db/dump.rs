//! The database as SQL text that restores it, without the replication's own bookkeeping.

use std::fmt::Write;

use rusqlite::Connection;
use rusqlite::types::ValueRef;

use super::authorizer::BOOKKEEPING_PREFIX;
use super::error::Error;

/// The largest dump; a larger database is copied with a backup.
const DUMP_BYTES_MAX: usize = 256 << 20;

struct Table {
    name: String,
    kind: String,
    sql: String,
}

/// The dump of what `connection` sees, or its schema alone.
pub(crate) fn dump(connection: &Connection, schema_only: bool) -> Result<String, Error> {
    let mut text = String::new();
    let tables = tables(connection)?;
    if !schema_only {
        text.push_str("PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;\n");
    }
    for table in &tables {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{};", table.sql);
        if !schema_only {
            dump_rows(connection, table, &mut text)?;
        }
    }
    if !schema_only && tables.iter().any(|table| table.sql.to_ascii_uppercase().contains("AUTOINCREMENT")) {
        text.push_str("DELETE FROM sqlite_sequence;\n");
        let sequence = Table { name: "sqlite_sequence".to_owned(), kind: "table".to_owned(), sql: String::new() };
        dump_rows(connection, &sequence, &mut text)?;
    }
    let mut others = connection.prepare(
        "SELECT sql FROM sqlite_schema WHERE type IN ('index', 'trigger', 'view') AND sql NOT NULL
         ORDER BY CASE type WHEN 'index' THEN 1 WHEN 'view' THEN 2 ELSE 3 END, rowid",
    )?;
    let mut rows = others.query([])?;
    while let Some(row) = rows.next()? {
        let _ = writeln!(text, "{};", row.get_ref(0)?.as_str().unwrap_or_default());
    }
    if !schema_only {
        text.push_str("COMMIT;\n");
    }
    Ok(text)
}

fn tables(connection: &Connection) -> rusqlite::Result<Vec<Table>> {
    // Shadow tables are made by the virtual table that they belong to.
    connection
        .prepare(
            "SELECT s.name, l.type, s.sql FROM sqlite_schema s JOIN pragma_table_list l ON l.schema = 'main' AND l.name = s.name
             WHERE s.type = 'table' AND l.type IN ('table', 'virtual') AND s.name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
             AND substr(s.name, 1, ?2) <> ?1 ORDER BY s.rowid",
        )?
        .query_map((BOOKKEEPING_PREFIX, BOOKKEEPING_PREFIX.len() as i64), |row| {
            Ok(Table { name: row.get(0)?, kind: row.get(1)?, sql: row.get(2)? })
        })?
        .collect()
}

fn dump_rows(connection: &Connection, table: &Table, text: &mut String) -> Result<(), Error> {
    let mut columns: Vec<String> = connection
        .prepare("SELECT name FROM pragma_table_xinfo(?1) WHERE hidden = 0 ORDER BY cid")?
        .query_map([&table.name], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    if table.kind == "virtual" {
        columns.insert(0, "rowid".to_owned());
    }
    let columns = columns.iter().map(|name| identifier(name)).collect::<Vec<_>>().join(",");
    let name = identifier(&table.name);
    let only = if table.name == "sqlite_sequence" {
        format!(" WHERE substr(name, 1, {}) <> '{BOOKKEEPING_PREFIX}'", BOOKKEEPING_PREFIX.len())
    } else {
        String::new()
    };
    let mut statement = connection.prepare(&format!("SELECT {columns} FROM {name}{only}"))?;
    let width = statement.column_count();
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let _ = write!(text, "INSERT INTO {name}({columns}) VALUES(");
        for index in 0..width {
            if index > 0 {
                text.push(',');
            }
            literal(row.get_ref(index)?, text);
        }
        text.push_str(");\n");
        if text.len() > DUMP_BYTES_MAX {
            return Err(Error::TooLarge { what: "the dump", size: text.len(), limit: DUMP_BYTES_MAX });
        }
    }
    Ok(())
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(value: ValueRef<'_>, text: &mut String) {
    let _ = match value {
        ValueRef::Null => write!(text, "NULL"),
        ValueRef::Integer(value) => write!(text, "{value}"),
        ValueRef::Real(value) if value.is_infinite() => write!(text, "{}9e999", if value < 0.0 { "-" } else { "" }),
        // The shortest form that reads back as the same double.
        ValueRef::Real(value) => write!(text, "{value:?}"),
        ValueRef::Text(value) => match std::str::from_utf8(value) {
            Ok(value) if !value.contains('\0') => write!(text, "'{}'", value.replace('\'', "''")),
            _ => write!(text, "CAST(X'{}' AS TEXT)", hex(value)),
        },
        ValueRef::Blob(value) => write!(text, "X'{}'", hex(value)),
    };
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_restores_the_same_database() {
        let original = Connection::open_in_memory().unwrap();
        original
            .execute_batch(
                "CREATE TABLE microcluster_x(a); INSERT INTO microcluster_x VALUES (1);
                 CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, a, \"odd \"\"name\" TEXT, g AS (a || 'x') STORED);
                 INSERT INTO t(a, \"odd \"\"name\") VALUES (NULL, 'it''s'), (-9223372036854775808, 'é'), (0.1, CAST(x'610062' AS TEXT)),
                     (1e300, ''), (9e999, '-'), (-9e999, '-'), (x'00ff', '\u{1F600}'), (3.0, '3');
                 DELETE FROM t WHERE id = 8;
                 CREATE INDEX i ON t(a); CREATE VIEW v AS SELECT a FROM t;
                 CREATE TRIGGER tr AFTER INSERT ON t BEGIN UPDATE t SET a = 'triggered' WHERE id = new.id; END;
                 CREATE VIRTUAL TABLE f USING fts5(body); INSERT INTO f VALUES ('hello world');
                 CREATE TABLE w(k TEXT PRIMARY KEY, v) WITHOUT ROWID; INSERT INTO w VALUES ('k', 1)",
            )
            .unwrap();
        let text = dump(&original, false).unwrap();
        assert!(!text.contains("microcluster_"), "{text}");
        let restored = Connection::open_in_memory().unwrap();
        restored.execute_batch(&text).unwrap();
        assert_eq!(dump(&restored, false).unwrap(), text);
        let found: i64 =
            restored.query_row("SELECT count(*) FROM f WHERE f MATCH 'hello'", [], |row| row.get(0)).unwrap();
        assert_eq!(found, 1);
        let next: i64 = restored.query_row("INSERT INTO t(a) VALUES (1) RETURNING id", [], |row| row.get(0)).unwrap();
        assert_eq!(next, 9);
    }

    #[test]
    fn the_schema_alone_has_no_rows() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (1)").unwrap();
        assert_eq!(dump(&connection, true).unwrap(), "CREATE TABLE t(a);\n");
    }
}
