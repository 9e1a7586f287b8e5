//! What the benchmarks need of the inside.

use std::io;
use std::path::Path;

use bytes::Bytes;
use openraft::raft::AppendEntriesRequest;
use openraft::storage::RaftLogStorageExt;
use openraft::{CommittedLeaderId, EntryPayload};

use super::apply::Applier;
use super::command::{Batch, Body, Request, RequestId, Scope, Statement};
use super::entry_codec;
use super::log_store::{LogOptions, LogStore};
use super::network::{Call, Frame, put_call};
use super::raft_types::{Command, Entry, LogId, Vote};

/// A Raft log to append to.
pub struct Log {
    store: LogStore,
    next: u64,
    command: Bytes,
}

impl Log {
    /// Opens the log in `dir`, filled with zeros `allocate_bytes` ahead. Each entry carries
    /// `command_bytes`.
    ///
    /// # Errors
    ///
    /// If it cannot be opened.
    pub fn open(dir: &Path, allocate_bytes: u64, command_bytes: usize) -> io::Result<Self> {
        let options = LogOptions { allocate_bytes, ..LogOptions::default() };
        let store = LogStore::open(dir, options).map_err(io::Error::other)?;
        let next = store.stats().last_index.map_or(0, |last| last + 1);
        let command = Bytes::from(vec![b'x'; command_bytes]);
        Ok(Self { store, next, command })
    }

    /// Appends `count` entries and returns when they are durable.
    ///
    /// # Errors
    ///
    /// If the disk refuses.
    pub async fn append(&mut self, count: u64) -> io::Result<()> {
        let entries: Vec<Entry> =
            (self.next..self.next + count).map(|index| entry(index, self.command.clone())).collect();
        self.next += count;
        self.store.blocking_append(entries).await.map_err(io::Error::other)
    }
}

/// Log entries, for [`State::apply`].
pub struct Entries(Vec<Entry>);

/// A state to apply entries to.
pub struct State {
    applier: Applier,
    next: u64,
    sequence: u64,
}

impl State {
    /// Creates a state in `dir` with a table.
    ///
    /// # Errors
    ///
    /// If it cannot be created.
    pub fn create(dir: &Path) -> io::Result<Self> {
        let applier = Applier::open(&dir.join("state.db")).map_err(io::Error::other)?;
        let mut state = Self { applier, next: 0, sequence: 0 };
        let schema = Body::Script("CREATE TABLE t(id INTEGER PRIMARY KEY, k INTEGER, text TEXT)".to_owned());
        let schema = state.entry(vec![schema])?;
        state.apply(&Entries(vec![schema]))?;
        Ok(state)
    }

    /// So many entries of so many requests, each of which inserts a small row.
    ///
    /// # Errors
    ///
    /// If it cannot be encoded.
    pub fn insertions(&mut self, entries: u64, requests: u64) -> io::Result<Entries> {
        let insert = |number: u64| {
            let statement = Statement::new("INSERT INTO t(k, text) VALUES (?1, ?2)");
            Body::Statements(vec![statement.bind(number as i64).bind("a row as small as rows of clusters are")])
        };
        let entries = (0..entries).map(|_| self.entry((0..requests).map(insert).collect()));
        Ok(Entries(entries.collect::<io::Result<_>>()?))
    }

    /// Applies entries in one transaction, as the writer thread does.
    ///
    /// # Errors
    ///
    /// If SQLite refuses.
    pub fn apply(&mut self, entries: &Entries) -> io::Result<()> {
        self.applier.apply(&entries.0).map_err(io::Error::other).map(|_| ())
    }

    fn entry(&mut self, bodies: Vec<Body>) -> io::Result<Entry> {
        let requests = bodies.into_iter().map(|body| {
            self.sequence += 1;
            let id = RequestId { origin: 1, sequence: self.sequence };
            let (answered_below, seed, scope) = (self.sequence, self.sequence, Scope::User);
            Request { id, answered_below, time_ms: 0, seed, only_in_term: None, scope, body }
        });
        let command = Batch { requests: requests.collect() }.encode().map_err(io::Error::other)?;
        self.next += 1;
        Ok(entry(self.next, command.0))
    }
}

/// The message that brings entries to a follower.
pub struct Append(Call);

impl Append {
    /// One with `count` entries with a command each.
    pub fn new(count: u64, command: &Bytes) -> Self {
        let entries = (0..count).map(|index| entry(index, command.clone())).collect();
        let vote = Vote::new_committed(1, 1);
        Self(Call::Append(AppendEntriesRequest { vote, prev_log_id: None, entries, leader_commit: None }))
    }

    /// Encodes it as a frame, into `out`.
    ///
    /// # Errors
    ///
    /// If it has no encoding.
    pub fn encode(&self, out: &mut Vec<u8>) -> io::Result<()> {
        put_call(out, 1, &self.0).map_err(io::Error::other)
    }

    /// Takes a frame that [`Append::encode`] made apart.
    ///
    /// # Errors
    ///
    /// If it is none.
    pub fn decode(frame: &Bytes) -> io::Result<Self> {
        // Its length has cut it from the stream already.
        let frame = Frame::parse(frame.slice(4..)).map_err(io::Error::other)?;
        frame.call().map(Self).map_err(io::Error::other)
    }
}

/// Decodes one entry, and says how many bytes its command has.
///
/// # Errors
///
/// If it is none.
pub fn decode(bytes: Bytes) -> io::Result<usize> {
    match entry_codec::decode_entry(bytes).map_err(io::Error::other)?.payload {
        EntryPayload::Normal(command) => Ok(command.0.len()),
        EntryPayload::Blank | EntryPayload::Membership(_) => Ok(0),
    }
}

/// Encodes `count` entries with a command each, into `out`.
pub fn encode(count: u64, command: &Bytes, out: &mut Vec<u8>) {
    for index in 0..count {
        entry_codec::encode_entry(&entry(index, command.clone()), out);
    }
}

fn entry(index: u64, command: Bytes) -> Entry {
    Entry { log_id: LogId::new(CommittedLeaderId::new(1, 1), index), payload: EntryPayload::Normal(Command(command)) }
}
