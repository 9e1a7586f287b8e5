//! Tests of the log, on real files and on a disk in memory that can fail and forget.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod damage;
mod disk;
mod faults;
mod leading;
mod power_loss;
mod restart;

use bytes::Bytes;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use openraft::{CommittedLeaderId, EntryPayload, RaftLogReader};

use super::{LogError, LogOptions, LogStore, Queued};
use crate::db::raft_types::{Command, Entry, LogId, Vote};
pub(crate) use disk::Disk;

/// Sizes so small that a few entries bring about all that happens in a long life.
fn tiny() -> LogOptions {
    LogOptions { segment_bytes: 2000, allocate_bytes: 512, cache_bytes: 600, read_bytes: 500 }
}

/// Opens the log on a disk in memory.
pub(crate) fn open(disk: &Disk, options: LogOptions) -> Result<LogStore, LogError> {
    LogStore::open_in(Box::new(disk.clone()), options)
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, 7), index)
}

/// An entry with `bytes` of payload that tell its term and its index.
fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let payload: Vec<u8> = format!("{term}/{index} ").into_bytes().into_iter().cycle().take(bytes).collect();
    let payload = EntryPayload::Normal(Command(Bytes::from(payload)));
    Entry { log_id: log_id(term, index), payload }
}

async fn append(log: &LogStore, term: u64, indices: impl IntoIterator<Item = u64>) {
    let entries: Vec<Entry> = indices.into_iter().map(|index| entry(term, index, 100)).collect();
    log.clone().blocking_append(entries).await.unwrap();
}

/// All that a log holds.
#[derive(Debug, Clone, Default, PartialEq)]
struct Content {
    vote: Option<Vote>,
    purged: Option<LogId>,
    last: Option<LogId>,
    entries: Vec<Entry>,
}

async fn content(log: &LogStore) -> Content {
    let mut log = log.clone();
    let vote = log.read_vote().await.unwrap();
    let state = log.get_log_state().await.unwrap();
    let entries = log.try_get_log_entries(..).await.unwrap();
    Content { vote, purged: state.last_purged_log_id, last: state.last_log_id, entries }
}
