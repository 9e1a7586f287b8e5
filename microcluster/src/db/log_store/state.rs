//! The log as its readers see it: the cached tail, and behind it what the index finds on the disk.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::EntryPayload;

use super::LogStats;
use super::error::LogError;
use super::files::Storage;
use super::format::{self, Record};
use super::index::{Discontinuity, Index, Purge, Segment};
use super::read::Found;
use crate::db::raft_types::{Entry, LogId, Vote};

/// What a cached entry counts beside its command.
const ENTRY_OVERHEAD_BYTES: u64 = 64;

/// What the handles, the readers and the writer share.
pub(super) struct Shared {
    storage: Box<dyn Storage>,
    state: Mutex<State>,
    /// How much longer than the disk's own time a sync takes.
    #[cfg(test)]
    pub(super) delay: Mutex<std::time::Duration>,
}

impl Shared {
    /// Starts from what was recovered.
    pub(super) fn new(storage: Box<dyn Storage>, index: Index, cache_bytes_max: u64) -> Self {
        let state = State {
            purged: index.standing().purged,
            last: index.standing().last,
            cache: VecDeque::new(),
            cache_bytes: 0,
            cache_bytes_max,
            issued: 0,
            settled: 0,
            index,
            stopped: None,
            fsyncs: 0,
            appended: 0,
        };
        Self {
            storage,
            state: Mutex::new(state),
            #[cfg(test)]
            delay: Mutex::default(),
        }
    }

    /// The files.
    pub(super) fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    /// The state. Held for a few memory operations only, never across I/O.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it is held is a bug that ends the writer; readers may still look.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The log in memory.
///
/// A change is visible here as soon as it is queued. The index follows once it is on stable storage.
pub(super) struct State {
    purged: Option<LogId>,
    last: Option<LogId>,
    /// The newest entries, without a gap up to `last`.
    cache: VecDeque<Cached>,
    cache_bytes: u64,
    cache_bytes_max: u64,
    /// The ticket of the last change queued.
    issued: u64,
    /// The ticket of the last change that is in the index.
    settled: u64,
    index: Index,
    stopped: Option<Arc<str>>,
    fsyncs: u64,
    appended: u64,
}

struct Cached {
    entry: Entry,
    bytes: u64,
    /// The change that brought it: only when that is in the index can the entry be read from there.
    ticket: u64,
}

impl State {
    /// The last log id purged and the last one there is.
    pub(super) fn ends(&self) -> (Option<LogId>, Option<LogId>) {
        (self.purged, self.last)
    }

    /// The last vote that is on stable storage.
    pub(super) fn vote(&self) -> Option<Vote> {
        self.index.standing().vote
    }

    /// The durable view.
    pub(super) fn index(&self) -> &Index {
        &self.index
    }

    /// The durable view, for the writer.
    pub(super) fn index_mut(&mut self) -> &mut Index {
        &mut self.index
    }

    /// Refuses once a write has failed.
    pub(super) fn check(&self) -> Result<(), LogError> {
        self.stopped.as_ref().map_or(Ok(()), |reason| Err(LogError::Stopped(Arc::clone(reason))))
    }

    /// From now on `check` refuses.
    pub(super) fn stop(&mut self, reason: Arc<str>) {
        self.stopped.get_or_insert(reason);
    }

    /// A ticket for a change that is about to be queued.
    pub(super) fn ticket(&mut self) -> u64 {
        self.issued += 1;
        self.issued
    }

    /// Appends entries and returns their ticket.
    ///
    /// Those up to the last one purged are left out: what is purged is applied.
    pub(super) fn append(&mut self, entries: &mut Vec<Entry>) -> Result<u64, LogError> {
        if let Some(purged) = self.purged {
            entries.retain(|entry| entry.log_id.index > purged.index);
        }
        let mut expected = self.last.map(|last| last.index + 1);
        for entry in entries.iter() {
            let found = entry.log_id.index;
            if let Some(expected) = expected.filter(|&expected| expected != found) {
                return Err(LogError::NotConsecutive { expected, found });
            }
            if command_bytes(entry) > format::ENTRY_BYTES_MAX {
                return Err(LogError::TooLarge { bytes: command_bytes(entry), bytes_max: format::ENTRY_BYTES_MAX });
            }
            expected = Some(found + 1);
        }
        let ticket = self.ticket();
        for entry in entries {
            self.last = Some(entry.log_id);
            self.cache_push(entry.clone(), ticket);
        }
        Ok(ticket)
    }

    /// Fills the empty cache with entries read from the disk: the newest there are.
    pub(super) fn warm(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            self.cache_push(entry, 0);
        }
    }

    /// Drops the entries from `since` on; `last` is what the log then ends with.
    pub(super) fn truncate(&mut self, since: u64, last: Option<LogId>) -> u64 {
        self.last = last;
        while self.cache.back().is_some_and(|cached| cached.entry.log_id.index >= since) {
            self.cache_bytes -= self.cache.pop_back().map_or(0, |cached| cached.bytes);
        }
        self.ticket()
    }

    /// Drops the entries up to `upto`. `None` if that was done before.
    pub(super) fn purge(&mut self, upto: LogId) -> Option<u64> {
        match Purge::new(self.purged, self.last, upto) {
            Purge::Nothing => return None,
            Purge::Prefix => {
                while self.cache.front().is_some_and(|cached| cached.entry.log_id.index <= upto.index) {
                    self.cache_pop_front();
                }
            }
            Purge::All => {
                self.cache.clear();
                self.cache_bytes = 0;
                self.last = Some(upto);
            }
        }
        self.purged = Some(upto);
        Some(self.ticket())
    }

    /// Takes the records of a group that is on stable storage into the index.
    pub(super) fn flushed(&mut self, records: &[Record]) -> Result<(), Discontinuity> {
        self.fsyncs += 1;
        for record in records {
            self.index.apply(record)?;
            self.appended += u64::from(matches!(record, Record::Entry(..)));
        }
        Ok(())
    }

    /// All changes up to that of `ticket` are in the index: shrinks the cache to its bound.
    pub(super) fn settle(&mut self, ticket: u64) -> Result<(), LogError> {
        self.check()?;
        self.settled = ticket;
        while self.cache_bytes > self.cache_bytes_max
            && self.cache.front().is_some_and(|cached| cached.ticket <= ticket)
        {
            self.cache_pop_front();
        }
        Ok(())
    }

    /// Whether the disk is still at work on the change of `ticket`.
    pub(super) fn is_writing(&self, ticket: u64) -> bool {
        self.settled < ticket && self.stopped.is_none()
    }

    /// Finds the entries of `range` that there are, from the first on as far as `bytes_max` goes;
    /// at least one, if there is one.
    pub(super) fn find(&self, storage: &dyn Storage, range: Range<u64>, bytes_max: u64) -> Found {
        let mut found = Found::default();
        let Some(last) = self.last else { return found };
        let start = self.purged.map_or(range.start, |purged| range.start.max(purged.index + 1));
        let end = range.end.min(last.index + 1);
        let cached_from = self.cache.front().map_or(last.index + 1, |cached| cached.entry.log_id.index);
        let mut bytes = 0;
        for index in start..end.min(cached_from) {
            let Some((segment, position)) = self.index.find(index) else {
                // So it is before the first entry of a log that did not start with 0.
                debug_assert!(found.is_empty(), "no hole at {index}");
                continue;
            };
            bytes += u64::from(position.len);
            if bytes > bytes_max && !found.is_empty() {
                return found;
            }
            found.push_stored(index, segment, position, storage);
        }
        let from = usize::try_from(start.saturating_sub(cached_from)).unwrap_or(usize::MAX);
        for cached in self.cache.iter().skip(from).take_while(|cached| cached.entry.log_id.index < end) {
            bytes += cached.bytes;
            if bytes > bytes_max && !found.is_empty() {
                return found;
            }
            found.push_cached(cached.entry.clone());
        }
        found
    }

    /// The newest entries, as many as fit the cache.
    pub(super) fn newest(&self) -> Range<u64> {
        let end = self.last.map_or(0, |last| last.index + 1);
        let purged = self.purged.map_or(0, |purged| purged.index + 1);
        let mut bytes = 0;
        let mut start = end;
        while start > purged {
            let Some((_, position)) = self.index.find(start - 1) else {
                break;
            };
            bytes += u64::from(position.len) + ENTRY_OVERHEAD_BYTES;
            if bytes > self.cache_bytes_max {
                break;
            }
            start -= 1;
        }
        start..end
    }

    /// The figures.
    pub(super) fn stats(&self) -> LogStats {
        let segments = self.index.segments();
        let first = self.purged.map_or_else(
            || segments.iter().find_map(Segment::first_live).or_else(|| self.first_cached()),
            |purged| Some(purged.index + 1),
        );
        let last_index = self.last.map(|last| last.index);
        LogStats {
            segments: segments.len(),
            bytes: segments.iter().map(|segment| segment.bytes).sum(),
            first_index: first.filter(|&first| last_index.is_some_and(|last| first <= last)),
            last_index,
            fsyncs: self.fsyncs,
            appended: self.appended,
        }
    }

    fn first_cached(&self) -> Option<u64> {
        self.cache.front().map(|cached| cached.entry.log_id.index)
    }

    fn cache_push(&mut self, entry: Entry, ticket: u64) {
        let bytes = command_bytes(&entry) as u64 + ENTRY_OVERHEAD_BYTES;
        self.cache_bytes += bytes;
        self.cache.push_back(Cached { entry, bytes, ticket });
    }

    fn cache_pop_front(&mut self) {
        self.cache_bytes -= self.cache.pop_front().map_or(0, |cached| cached.bytes);
    }
}

fn command_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(command) => command.0.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}
