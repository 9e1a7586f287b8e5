//! What the benchmarks need of the inside.

use std::io;
use std::path::Path;

use bytes::Bytes;
use openraft::storage::RaftLogStorageExt;
use openraft::{CommittedLeaderId, EntryPayload};

use super::entry_codec;
use super::log_store::{LogOptions, LogStore};
use super::raft_types::{Command, Entry, LogId};

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

/// Encodes `count` entries with a command each, into `out`.
pub fn encode(count: u64, command: &Bytes, out: &mut Vec<u8>) {
    for index in 0..count {
        entry_codec::encode_entry(&entry(index, command.clone()), out);
    }
}

fn entry(index: u64, command: Bytes) -> Entry {
    Entry { log_id: LogId::new(CommittedLeaderId::new(1, 1), index), payload: EntryPayload::Normal(Command(command)) }
}
