//! Which tables a sequenced request writes: SQLite's own answer, asked only when a transaction has to be
//! compared with it.

use std::collections::BTreeSet;
use std::time::Duration;

use rusqlite::fallible_iterator::FallibleIterator;

use crate::db::authorizer::Touched;
use crate::db::command::{Body, Request};
use crate::db::readers::{Reader, Readers};

/// How long the question may take; it is about preparing, not running.
const LIMIT: Duration = Duration::from_secs(1);

/// Compares requests with what a transaction touched.
#[derive(Debug)]
pub(crate) struct Analyzer;

impl Analyzer {
    /// Whether `request` writes to a table in `touched`, or may.
    pub fn writes(&self, readers: &Readers, request: &Request, touched: &Touched) -> bool {
        if touched.schema {
            return true;
        }
        match written_tables(readers, request) {
            // What cannot be told counts as a write to everything.
            None => true,
            Some(written) => {
                written.iter().any(|table| touched.reads.contains(table) || touched.writes.contains(table))
            }
        }
    }
}

/// The tables that `request` writes; `None` if it changes the schema or cannot be prepared on the present one.
fn written_tables(readers: &Readers, request: &Request) -> Option<BTreeSet<String>> {
    let touched = readers.with(LIMIT, |reader| Ok(prepare_all(reader, request))).ok()??;
    (!touched.schema).then_some(touched.writes)
}

fn prepare_all(reader: &Reader, request: &Request) -> Option<Touched> {
    reader.analyze(request.scope, |connection| match &request.body {
        Body::Mark => Ok(()),
        Body::Statements(statements) | Body::Settled(statements) => {
            for statement in statements {
                connection.prepare(&statement.sql)?;
            }
            Ok(())
        }
        Body::Script(script) => {
            let mut statements = rusqlite::Batch::new(connection, script);
            while statements.next()?.is_some() {}
            Ok(())
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::db::command::{RequestId, Scope, Statement};
    use crate::db::tests::kit::Cluster;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_trigger_is_seen_as_soon_as_it_is_applied() {
        let cluster = Cluster::new(1).await;
        let db = cluster.db(1);
        db.script("CREATE TABLE t(a); CREATE TABLE log(a)".to_owned()).await.unwrap();
        let sql = "INSERT INTO t VALUES (1)".to_owned();
        let request = Request {
            id: RequestId { origin: 1, sequence: 1 },
            answered_below: 1,
            time_ms: 0,
            seed: 0,
            only_in_term: None,
            scope: Scope::User,
            body: Body::Statements(vec![Statement { sql, parameters: Vec::new() }]),
        };
        let touched = Touched { reads: ["log".to_owned()].into(), ..Touched::default() };
        let readers = &db.inner.shared.readers;
        assert!(!Analyzer.writes(readers, &request, &touched));
        let trigger = "CREATE TRIGGER logs AFTER INSERT ON t BEGIN INSERT INTO log VALUES (new.a); END";
        db.execute(trigger, ()).await.unwrap();
        assert!(Analyzer.writes(readers, &request, &touched));
    }
}
