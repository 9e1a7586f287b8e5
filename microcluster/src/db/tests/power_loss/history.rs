//! What a cluster has decided, entry by entry, and what a state that has applied some of it must hold.

use std::collections::BTreeMap;

use openraft::{CommittedLeaderId, EntryPayload, Membership};
use rand::RngExt;
use rand::rngs::StdRng;
use rusqlite::{Connection, OptionalExtension};

use crate::db::command::{Batch, Body, Request, RequestId, Scope, Statement};
use crate::db::raft_types::{Entry, LogId, Peer};

/// The rows of the one table, by their key: a number, and a blob of how many times which byte. `None` before there is a table.
pub(super) type Rows = Option<BTreeMap<i64, (i64, Blob)>>;
type Blob = (usize, u8);

/// All entries, those that this machine has never got included.
pub(super) struct History {
    entries: Vec<Entry>,
    /// What the requests of each entry mean.
    meanings: Vec<Vec<Meaning>>,
    requests: Vec<Request>,
    deferred_keys: bool,
}

/// A request, said as simply as possible.
enum Meaning {
    CreateTable,
    /// Fails where the key is taken.
    Insert(i64, i64, Blob),
    Replace(i64, i64, Blob),
    /// Adds to every row whose key leaves that rest by three.
    Add(i64, i64),
    Delete(i64),
    /// One that fails, or was applied before.
    Nothing,
}

/// A request that is about to be made.
enum Asked {
    Now(Body),
    /// One that was made before and is sent once more.
    Again(Request),
}

impl History {
    /// The first two entries. With deferred keys each request has a SQLite transaction of its own.
    pub fn new(deferred_keys: bool) -> Self {
        let mut history = Self { entries: Vec::new(), meanings: Vec::new(), requests: Vec::new(), deferred_keys };
        let members = BTreeMap::from([(7, Peer { name: "c7".to_owned(), address: "127.0.0.1:7".to_owned() })]);
        history.push(EntryPayload::Membership(Membership::from(members)), Vec::new());
        let mut schema =
            "CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, b BLOB); CREATE INDEX t_n ON t(n, b)".to_owned();
        if deferred_keys {
            schema.push_str("; CREATE TABLE c(t REFERENCES t(id) DEFERRABLE INITIALLY DEFERRED)");
        }
        history.push_requests(vec![(Asked::Now(Body::Script(schema)), Meaning::CreateTable)]);
        history
    }

    /// How many entries there are: the index of the next one.
    pub fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Entries that are there already.
    pub fn entries(&self, range: std::ops::Range<u64>) -> Vec<Entry> {
        self.entries[range.start as usize..range.end as usize].to_vec()
    }

    pub fn log_id(&self, index: u64) -> LogId {
        self.entries[index as usize].log_id
    }

    /// Adds entries until there are as many.
    pub fn grow(&mut self, len: u64, rng: &mut StdRng) {
        while self.len() < len {
            let count = rng.random_range(1..4);
            let requests = (0..count).map(|_| self.random(rng)).collect();
            self.push_requests(requests);
        }
    }

    /// Whether `found` is the state after the entry `applied`, or within the next one where that is possible.
    pub fn explains(&self, applied: Option<u64>, found: &Rows) -> bool {
        let len = applied.map_or(0, |index| index as usize + 1);
        let mut rows = None;
        self.meanings[..len].iter().flatten().for_each(|meaning| meaning.apply(&mut rows));
        if rows == *found {
            return true;
        }
        let next = self.meanings.get(len).filter(|_| self.deferred_keys);
        next.into_iter().flatten().any(|meaning| {
            meaning.apply(&mut rows);
            rows == *found
        })
    }

    fn random(&self, rng: &mut StdRng) -> (Asked, Meaning) {
        let (id, n) = (rng.random_range(0..40), rng.random_range(0..1000));
        let bytes_max = [10, 300, 6000][rng.random_range(0..3)];
        let blob: Blob = (rng.random_range(1..bytes_max), rng.random());
        let row = |sql: &str| Statement::new(sql).bind(id).bind(n).bind(vec![blob.1; blob.0]);
        let (statements, meaning) = match rng.random_range(0..12) {
            0..4 => (vec![row("INSERT INTO t VALUES (?1, ?2, ?3)")], Meaning::Insert(id, n, blob)),
            4..7 => (vec![row("REPLACE INTO t VALUES (?1, ?2, ?3)")], Meaning::Replace(id, n, blob)),
            7 => {
                let add = Statement::new("UPDATE t SET n = n + ?1 WHERE id % 3 = ?2").bind(n).bind(id % 3);
                (vec![add], Meaning::Add(n, id % 3))
            }
            8 | 9 => (vec![Statement::new("DELETE FROM t WHERE id = ?1").bind(id)], Meaning::Delete(id)),
            10 => {
                let statements =
                    vec![Statement::new("DELETE FROM t"), Statement::new("INSERT INTO nowhere VALUES (1)")];
                (statements, Meaning::Nothing)
            }
            _ => {
                let again = self.requests[rng.random_range(0..self.requests.len())].clone();
                return (Asked::Again(again), Meaning::Nothing);
            }
        };
        (Asked::Now(Body::Statements(statements)), meaning)
    }

    fn push_requests(&mut self, asked: Vec<(Asked, Meaning)>) {
        let (mut requests, mut meanings) = (Vec::new(), Vec::new());
        for (asked, meaning) in asked {
            requests.push(match asked {
                Asked::Again(request) => request,
                Asked::Now(body) => self.number(body),
            });
            meanings.push(meaning);
        }
        let command = Batch { requests }.encode().unwrap();
        self.push(EntryPayload::Normal(command), meanings);
    }

    fn number(&mut self, body: Body) -> Request {
        let sequence = self.requests.len() as u64 + 1;
        let id = RequestId { origin: 1 + sequence % 2, sequence };
        // Older ones are refused as stale, which has no effect either.
        let answered_below = sequence.saturating_sub(30);
        let (time_ms, seed) = (1_000, sequence);
        let request = Request { id, answered_below, time_ms, seed, only_in_term: None, scope: Scope::User, body };
        self.requests.push(request.clone());
        request
    }

    fn push(&mut self, payload: EntryPayload<crate::db::raft_types::TypeConfig>, meanings: Vec<Meaning>) {
        let log_id = LogId::new(CommittedLeaderId::new(1, 7), self.len());
        self.entries.push(Entry { log_id, payload });
        self.meanings.push(meanings);
    }
}

impl Meaning {
    fn apply(&self, rows: &mut Rows) {
        if matches!(self, Self::CreateTable) {
            *rows = Some(BTreeMap::new());
        }
        let Some(rows) = rows else { return };
        match *self {
            Self::CreateTable | Self::Nothing => {}
            Self::Insert(id, n, blob) => {
                rows.entry(id).or_insert((n, blob));
            }
            Self::Replace(id, n, blob) => {
                rows.insert(id, (n, blob));
            }
            Self::Add(n, rest) => {
                rows.iter_mut().filter(|(id, _)| *id % 3 == rest).for_each(|(_, row)| row.0 += n);
            }
            Self::Delete(id) => {
                rows.remove(&id);
            }
        }
    }
}

/// What a state holds, and what SQLite says of the file.
pub(super) fn read(connection: &Connection) -> rusqlite::Result<(Rows, String)> {
    let integrity = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    let exists = connection.query_row("SELECT 1 FROM sqlite_schema WHERE name = 't_n'", [], |_| Ok(())).optional()?;
    if exists.is_none() {
        return Ok((None, integrity));
    }
    let mut statement = connection.prepare("SELECT id, n, b FROM t")?;
    let rows = statement.query_map([], |row| {
        let bytes: Vec<u8> = row.get(2)?;
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a blob is made of several");
        Ok((row.get(0)?, (row.get(1)?, (bytes.len(), bytes[0]))))
    })?;
    Ok((Some(rows.collect::<rusqlite::Result<_>>()?), integrity))
}
