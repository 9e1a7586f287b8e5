//! The durable Raft log.
//!
//! # What it promises
//!
//! An append, a vote, a truncation or a purge is acknowledged after `fdatasync` returned, and then
//! survives any crash. What was not acknowledged is there up to some point in the order in which it
//! was asked for, and not from there on: never a hole, never an older vote after a newer one.
//! Damage to what had been acknowledged is an error that names the place; only a write that a
//! crash interrupted is cut away.
//!
//! # What is on the disk
//!
//! A directory of segments, `{sequence:020}.log`, each about 8 MiB, written from front to back and
//! deleted whole once every entry in it is purged. Nothing is ever changed in place: a truncation
//! is a record like an entry or a vote, so all changes stay in one order.
//!
//! ```text
//! segment  = prologue group* zeros
//! prologue = magic [8] | version u32 | sequence u64 | crc32c u32
//! group    = magic [4] | length u32 | number u64 | crc32c of the records u32
//!          | crc32c of this header u32 | record+
//! record   = length u32 | crc32c u32 | version u8 | kind u8 | payload
//! ```
//!
//! Integers are little-endian. The checksums of group headers and records take in the sequence
//! number of the segment and their own offset, so that bytes left over from somewhere else never
//! look valid. The first record of a segment is the standing of the log where it begins (vote, last
//! log id purged, last log id): with it the segments before are dispensable, and their absence or
//! exchange is noticed.
//!
//! # Torn or damaged
//!
//! A group is what one write and one sync put on the disk; all changes that wait for the disk share
//! it. Groups are numbered without gaps through all segments, and group *n + 1* is written only
//! after the sync of group *n* returned. So at the first group that is not intact:
//!
//! - if a later segment, or the header of a later group in the same segment, is intact, then this
//!   group had been synced and perhaps acknowledged: that is **damage**, and the log is not opened;
//! - if there is none, then this is the last group, and the crash came before its sync returned:
//!   **torn**. None of it was acknowledged, whatever parts of it reached the disk, and all of it
//!   is cut.
//!
//! Damage within the very last group cannot be told from a torn write. A segment whose own first
//! group is torn was never in use and is removed.
//!
//! # Who does what
//!
//! openraft's task puts a change into the [`state`] (where readers see it at once) and queues it
//! for the [`writer`], a thread of its own. That writes and syncs the group, takes it into the
//! [`index`] and tells those who wait. Recent entries are read from memory, older ones from their
//! segment, on a thread where blocking is allowed. After a failed write or sync the store refuses
//! every change: what the disk holds is known again only when it is opened anew.

mod error;
mod files;
mod format;
mod index;
mod raft;
mod read;
mod recovery;
mod state;
#[cfg(test)]
mod tests;
mod view;
mod writer;

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_blocking;

pub(crate) use error::LogError;
#[cfg(test)]
pub(crate) use files::LogFile;
pub(crate) use files::Storage;
#[cfg(test)]
pub(crate) use tests::{Disk, open as open_on_disk};
pub(crate) use view::LogView;

use super::raft_types::{Entry, LogId, NodeId, Vote};
use files::Directory;
use format::Mark;
use state::{Shared, State};
use writer::{Change, Done, Request, WriterThread};

/// How long the state machine may take to get to where the log is to be purged.
const APPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Sizes of the log. The defaults are meant for production.
#[derive(Debug, Clone)]
pub(crate) struct LogOptions {
    /// A segment that has this many bytes is followed by a new one. At most 1 GiB.
    pub(crate) segment_bytes: u64,
    /// How far ahead a segment is filled with zeros, so that most syncs write data alone and do
    /// not wait for the file system's journal to record a new length.
    ///
    /// Zeros rather than `fallocate`, which leaves extents that each write has to convert. On an
    /// idle ext4, write and sync of 4 KiB took 205 µs with zeros, 240–320 µs with `fallocate` and
    /// 270–500 µs with neither; of 256 bytes 215, 165–200 and 240–260 µs.
    pub(crate) allocate_bytes: u64,
    /// How many bytes of recent entries are kept in memory.
    pub(crate) cache_bytes: u64,
    /// How many bytes of entries a replication task gets at once, if there are more than one.
    pub(crate) read_bytes: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { segment_bytes: 8 << 20, allocate_bytes: 256 << 10, cache_bytes: 4 << 20, read_bytes: 1 << 20 }
    }
}

/// Figures of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LogStats {
    /// How many segments there are.
    pub(crate) segments: usize,
    /// How many bytes of them are in use.
    pub(crate) bytes: u64,
    /// The index of the first entry, where there are entries.
    pub(crate) first_index: Option<u64>,
    /// The last index, of an entry or else of what was purged.
    pub(crate) last_index: Option<u64>,
    /// How many groups were synced since the log was opened.
    pub(crate) fsyncs: u64,
    /// How many entries were appended since the log was opened.
    pub(crate) appended: u64,
}

/// A handle to the log; clones share it.
///
/// The last handle that is dropped waits for the writer to finish what is queued. Call
/// [`close`](Self::close) before where that must not block.
#[derive(Clone)]
pub(crate) struct LogStore {
    /// Up to where the state machine has applied the log, where there is one.
    applied: Arc<OnceLock<watch::Receiver<u64>>>,
    leading: Arc<OnceLock<Leading>>,
    owner: Arc<Owner>,
    reader: LogReader,
}

/// What a leader's log does beside keeping the entries.
struct Leading {
    node_id: NodeId,
    on_queued: OnQueued,
}

/// Hears of what was queued for the disk.
pub(crate) type OnQueued = Box<dyn Fn(Queued<'_>) + Send + Sync>;

/// What a leader has queued for its disk.
#[derive(Clone, Copy)]
pub(crate) struct Queued<'a> {
    /// The vote of the leader.
    pub(crate) vote: Vote,
    /// The entry before these.
    pub(crate) previous: LogId,
    /// The entries; none where the log is purged.
    pub(crate) entries: &'a [Entry],
    /// For [`LogStore::is_writing`].
    pub(crate) ticket: u64,
}

/// Reads entries. Cheap to clone, and does not keep the writer running.
#[derive(Clone)]
pub(crate) struct LogReader {
    shared: Arc<Shared>,
    read_bytes_max: u64,
}

/// Hears when a change is durable.
struct Durable(oneshot::Receiver<Result<(), LogError>>);

impl Durable {
    async fn wait(self) -> Result<(), LogError> {
        // A writer that is gone without an answer has not done it.
        self.0.await.unwrap_or(Err(LogError::Closed))
    }
}

/// The queue and the thread behind it.
struct Owner {
    // Dropped before the thread, which ends when the queue does.
    requests: mpsc::Sender<Request>,
    thread: Mutex<WriterThread>,
}

impl LogStore {
    /// From now on each sync takes so much longer.
    #[cfg(test)]
    pub(crate) fn slow_down(&self, delay: Duration) {
        *self.shared().delay.lock().unwrap_or_else(PoisonError::into_inner) = delay;
    }

    /// Opens the log in the directory `dir`, which is created where it is missing. Blocks.
    ///
    /// # Errors
    ///
    /// [`LogError::Damaged`] if something acknowledged is not there any more, [`LogError::UnknownVersion`] if
    /// another build wrote it, [`LogError::Io`] if the directory cannot be read or written.
    pub(crate) fn open(dir: &Path, options: LogOptions) -> Result<Self, LogError> {
        let storage = Directory::open(dir).map_err(LogError::io("create", dir))?;
        Self::open_in(Box::new(storage), options)
    }

    fn open_in(storage: Box<dyn Storage>, options: LogOptions) -> Result<Self, LogError> {
        // Offsets in a segment have 32 bits, and a group may exceed its end.
        let segment_bytes = options.segment_bytes.min(1 << 30);
        let options = LogOptions { segment_bytes, ..options };
        let recovered = recovery::recover(&*storage)?;
        let shared = Arc::new(Shared::new(storage, recovered.index, options.cache_bytes));
        let reader = LogReader { shared: Arc::clone(&shared), read_bytes_max: options.read_bytes };
        let newest = {
            let state = shared.lock();
            state.find(shared.storage(), state.newest(), u64::MAX)
        };
        let newest = newest.read()?;
        shared.lock().warm(newest);
        let dir = shared.storage().path("");
        let (requests, thread) = writer::spawn(shared, options, recovered.tail, recovered.last_group)
            .map_err(LogError::io("start the thread that writes", dir))?;
        let owner = Owner { requests, thread: Mutex::new(thread) };
        Ok(Self { applied: Arc::default(), leading: Arc::default(), owner: Arc::new(owner), reader })
    }

    /// Writes what is queued and ends the writer. Reading goes on; every change is refused.
    pub(crate) async fn close(&self) {
        // An error means that the writer has ended already.
        let _ = self.owner.requests.send(Request::Close).await;
        let owner = Arc::clone(&self.owner);
        let join = spawn_blocking(move || owner.thread.lock().unwrap_or_else(PoisonError::into_inner).join());
        // It fails only if the runtime shuts down meanwhile; then dropping the owner joins.
        let _ = join.await;
    }

    /// From here on entries are only purged when the state machine, which tells here how far it is, has applied them.
    pub(crate) fn follow(&self, applied: watch::Receiver<u64>) {
        // Once for all: the state machine of a log does not change.
        let _ = self.applied.set(applied);
    }

    /// From here on this is the log of a node that tells of the entries it makes as the leader before they are durable.
    ///
    /// Others may then have entries that this log loses in a crash, and new ones of the same term would get the same log ids. So a
    /// node that led when it stopped does not find in its vote that it leads: it has to be elected, in another term.
    pub(crate) fn lead(&self, node_id: NodeId, on_queued: OnQueued) {
        // Once for all: a log is one node's.
        let _ = self.leading.set(Leading { node_id, on_queued });
    }

    async fn wait_applied(&self, index: u64) -> Result<(), LogError> {
        let Some(applied) = self.applied.get() else { return Ok(()) };
        let mut applied = applied.clone();
        let reached = applied.wait_for(|applied| *applied >= index);
        match tokio::time::timeout(APPLY_TIMEOUT, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(LogError::Closed),
            Err(_) => Err(LogError::NotApplied { index }),
        }
    }

    /// The last vote.
    pub(crate) fn vote(&self) -> Option<Vote> {
        self.shared().lock().vote()
    }

    /// Up to where the log was purged, and its last log id.
    pub(crate) fn ends(&self) -> (Option<LogId>, Option<LogId>) {
        self.shared().lock().ends()
    }

    /// Whether the disk is still at work on what has this ticket. It is not when writing has failed, or the log is closed.
    pub(crate) fn is_writing(&self, ticket: u64) -> bool {
        !self.owner.requests.is_closed() && self.shared().lock().is_writing(ticket)
    }

    /// The figures of now.
    pub(crate) fn stats(&self) -> LogStats {
        self.shared().lock().stats()
    }

    fn shared(&self) -> &Shared {
        &self.reader.shared
    }

    fn reader(&self) -> LogReader {
        self.reader.clone()
    }

    /// Makes a change to the state and queues it, in the same order as all others. Returns its ticket; none if `make` finds
    /// nothing to do, then nothing is queued.
    async fn queue(
        &self,
        make: impl FnOnce(&mut State) -> Result<Option<(Change, u64, Done)>, LogError>,
    ) -> Result<Option<u64>, LogError> {
        let place = self.owner.requests.reserve().await;
        let mut state = self.shared().lock();
        state.check()?;
        let place = place.map_err(|_| LogError::Closed)?;
        let Some((change, ticket, done)) = make(&mut state)? else {
            return Ok(None);
        };
        place.send(Request::Change(change, ticket, done));
        Ok(Some(ticket))
    }

    /// As [`queue`](Self::queue). What is returned with the ticket hears when the change is durable.
    async fn queue_mark(
        &self,
        make: impl FnOnce(&mut State) -> Result<Option<(Mark, u64)>, LogError>,
    ) -> Result<Option<(u64, Durable)>, LogError> {
        let (sender, receiver) = oneshot::channel();
        let queued = self.queue(|state| {
            let made = make(state)?;
            Ok(made.map(|(mark, ticket)| (Change::Mark(mark), ticket, Done::Reply(sender))))
        });
        Ok(queued.await?.map(|ticket| (ticket, Durable(receiver))))
    }

    /// Makes a change and returns when it is durable.
    async fn change(
        &self,
        make: impl FnOnce(&mut State) -> Result<Option<(Mark, u64)>, LogError>,
    ) -> Result<(), LogError> {
        match self.queue_mark(make).await? {
            Some((_, durable)) => durable.wait().await,
            None => Ok(()),
        }
    }

    /// Makes an empty log one that begins, and ends, behind a log id that a state has: with this vote.
    pub(crate) async fn begin_behind(&self, vote: Vote, log_id: LogId) -> Result<(), LogError> {
        self.change(|state| Ok(Some((Mark::Vote(vote), state.ticket())))).await?;
        self.change(|state| Ok(state.purge(log_id).map(|ticket| (Mark::Purge(log_id), ticket)))).await
    }

    async fn truncate_since(&self, since: u64) -> Result<(), LogError> {
        let (purged, last) = self.shared().lock().ends();
        let since = purged.map_or(since, |purged| since.max(purged.index + 1));
        if last.is_none_or(|last| last.index < since) {
            return Ok(());
        }
        let last = match since.checked_sub(1) {
            Some(before) if purged.is_none_or(|purged| purged.index != before) => self.log_id(before).await?,
            _ => purged,
        };
        self.change(|state| Ok(Some((Mark::Truncate { since, last }, state.truncate(since, last))))).await
    }

    /// The log id of an entry; `None` before the first one of a log that was never purged.
    async fn log_id(&self, index: u64) -> Result<Option<LogId>, LogError> {
        let entries = self.reader.entries(index..index + 1, u64::MAX).await?;
        Ok(entries.first().map(|entry| entry.log_id))
    }
}

impl LogReader {
    /// The entries of `range` that there are, from the first on as far as `bytes_max` goes; at least
    /// one, if there is one.
    async fn entries(&self, range: Range<u64>, bytes_max: u64) -> Result<Vec<Entry>, LogError> {
        let found = self.shared.lock().find(self.shared.storage(), range, bytes_max);
        if !found.needs_io() {
            return found.read();
        }
        // An error means that the runtime shuts down.
        spawn_blocking(move || found.read()).await.map_err(|_| LogError::Closed)?
    }
}
