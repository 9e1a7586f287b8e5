//! Reading entries: found under the lock, read from the segments without it.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::error::LogError;
use super::files::{LogFile, Storage};
use super::format::{self, FormatError, Position};
use super::index::Segment;
use super::recovery::segment_name;
use crate::db::raft_types::Entry;

/// How many bytes one read from a segment covers at most, unless a single entry has more.
const READ_BYTES: u64 = 1 << 20;

/// Entries found: those to be read from segments, and after them those in memory.
#[derive(Default)]
pub(super) struct Found {
    stored: Vec<Stretch>,
    cached: Vec<Entry>,
}

impl Found {
    /// Whether reading them needs I/O.
    pub(super) fn needs_io(&self) -> bool {
        !self.stored.is_empty()
    }

    /// All entries. Blocks for I/O where `needs_io` says so.
    pub(super) fn read(self) -> Result<Vec<Entry>, LogError> {
        let mut entries = Vec::new();
        for stretch in self.stored {
            stretch.read(&mut entries)?;
        }
        entries.extend(self.cached);
        Ok(entries)
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.stored.is_empty() && self.cached.is_empty()
    }

    /// Adds an entry that is in memory.
    pub(super) fn push_cached(&mut self, entry: Entry) {
        self.cached.push(entry);
    }

    /// Adds an entry that is in a segment. All of these come before those in memory.
    pub(super) fn push_stored(&mut self, index: u64, segment: &Segment, position: Position, storage: &dyn Storage) {
        if let Some(stretch) = self.stored.last_mut()
            && stretch.takes(segment.sequence, position)
        {
            stretch.entries.push((index, position));
            return;
        }
        self.stored.push(Stretch {
            path: storage.path(&segment_name(segment.sequence)),
            segment: segment.sequence,
            file: Arc::clone(&segment.file),
            start: position.offset.into(),
            entries: vec![(index, position)],
        });
    }
}

/// Entries of one segment that are read at once. Holds the file: a purge may remove it meanwhile.
struct Stretch {
    path: PathBuf,
    segment: u64,
    file: Arc<dyn LogFile>,
    start: u64,
    entries: Vec<(u64, Position)>,
}

impl Stretch {
    fn takes(&self, segment: u64, position: Position) -> bool {
        self.segment == segment && position.end() - self.start <= READ_BYTES
    }

    fn read(self, entries: &mut Vec<Entry>) -> Result<(), LogError> {
        let end = self.entries.last().map_or(self.start, |(_, position)| position.end());
        // The difference of two 32-bit offsets.
        let mut bytes = BytesMut::zeroed((end - self.start) as usize);
        self.file.read_at(&mut bytes, self.start).map_err(LogError::io("read", &self.path))?;
        let bytes = bytes.freeze();
        for &(index, position) in &self.entries {
            entries.push(self.decode(&bytes, index, position)?);
        }
        Ok(())
    }

    fn decode(&self, bytes: &Bytes, index: u64, position: Position) -> Result<Entry, LogError> {
        let offset = u64::from(position.offset);
        let at = (offset - self.start) as usize;
        let record = bytes.slice(at..at + position.len as usize);
        let damaged = |what| LogError::Damaged { file: self.path.clone(), offset, what };
        match format::decode_entry_record(self.segment, offset, record) {
            Ok(entry) if entry.log_id.index == index => Ok(entry),
            Ok(entry) => Err(damaged(format!("entry {} is where entry {index} was", entry.log_id.index))),
            Err(FormatError::Malformed(what)) => Err(damaged(what)),
            Err(FormatError::UnknownVersion(found)) => {
                Err(LogError::UnknownVersion { file: self.path.clone(), offset, found })
            }
        }
    }
}
