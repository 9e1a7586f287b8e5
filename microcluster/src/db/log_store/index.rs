//! What is on stable storage: the standing of the log, its segments, and where each entry is.
//!
//! Recovery builds it by replaying the records; the writer keeps it by applying the same records once
//! they are synced.

use std::collections::VecDeque;
use std::sync::Arc;

use super::files::LogFile;
use super::format::{Mark, Position, Record, Standing};
use crate::db::raft_types::LogId;

/// The durable view of the log.
#[derive(Default)]
pub(super) struct Index {
    standing: Standing,
    segments: VecDeque<Segment>,
    /// Entries up to this one are counted in `standing`, but were in segments that are gone.
    missing: Option<u64>,
}

/// One file of the log and the live entries in it.
pub(super) struct Segment {
    /// The number of the segment.
    pub(super) sequence: u64,
    /// The open file.
    pub(super) file: Arc<dyn LogFile>,
    /// How many bytes of it are in use.
    pub(super) bytes: u64,
    /// The index of the first live entry; where there is none, no more than that of the next segment.
    first: u64,
    /// Where the live entries are, from `first` on: 8 bytes an entry.
    positions: Vec<Position>,
}

impl Segment {
    /// The index of the first live entry.
    pub(super) fn first_live(&self) -> Option<u64> {
        (!self.positions.is_empty()).then_some(self.first)
    }
}

/// A record that does not continue the log.
#[derive(Debug)]
pub(super) struct Discontinuity {
    /// The index that the log continues with.
    pub(super) expected: u64,
    /// The index of the entry.
    pub(super) found: u64,
}

impl Index {
    /// What the log amounts to.
    pub(super) fn standing(&self) -> &Standing {
        &self.standing
    }

    /// The segments, oldest first.
    pub(super) fn segments(&self) -> &VecDeque<Segment> {
        &self.segments
    }

    /// The newest segment, the one that is written to.
    pub(super) fn newest_mut(&mut self) -> Option<&mut Segment> {
        self.segments.back_mut()
    }

    /// Adds a new, newest segment.
    pub(super) fn add_segment(&mut self, sequence: u64, file: Arc<dyn LogFile>) {
        let first = self.standing.last.map_or(0, |last| last.index + 1);
        self.segments.push_back(Segment { sequence, file, bytes: 0, first, positions: Vec::new() });
    }

    /// Entries that the standing counts and no segment holds: what was deleted behind the log's back.
    pub(super) fn missing(&self) -> Option<u64> {
        self.missing.filter(|&missing| self.standing.purged.is_none_or(|purged| purged.index < missing))
    }

    /// Applies one record to the view. An entry goes to the newest segment.
    pub(super) fn apply(&mut self, record: &Record) -> Result<(), Discontinuity> {
        match *record {
            Record::Entry(log_id, position) => return self.append(log_id, position),
            Record::Mark(Mark::Begin(standing)) => self.begin(standing),
            Record::Mark(Mark::Vote(vote)) => self.standing.vote = Some(vote),
            Record::Mark(Mark::Truncate { since, last }) => {
                self.drop_from(since);
                self.standing.last = last;
            }
            Record::Mark(Mark::Purge(upto)) => self.purge(upto),
        }
        Ok(())
    }

    /// The segment and the position of an entry.
    pub(super) fn find(&self, index: u64) -> Option<(&Segment, Position)> {
        let after = self.segments.partition_point(|segment| segment.first <= index);
        // The last of them has the entry, unless it holds no entries at all.
        self.segments.iter().take(after).rev().find_map(|segment| {
            let at = usize::try_from(index - segment.first).ok()?;
            segment.positions.get(at).map(|&position| (segment, position))
        })
    }

    /// Takes out the oldest segments as far as no live entry is in them.
    pub(super) fn take_removable(&mut self) -> Vec<u64> {
        let mut removable = Vec::new();
        while self.segments.len() > 1 {
            let live = self.segments.front().is_some_and(|oldest| {
                let last = oldest.first + oldest.positions.len() as u64;
                !oldest.positions.is_empty() && self.standing.purged.is_none_or(|purged| purged.index + 1 < last)
            });
            if live {
                break;
            }
            removable.extend(self.segments.pop_front().map(|segment| segment.sequence));
        }
        removable
    }

    /// The standing of a segment repeats what is known, unless it is that of the oldest one.
    fn begin(&mut self, standing: Standing) {
        if self.standing != standing {
            self.standing = standing;
            self.missing = standing.last.map(|last| last.index);
        }
    }

    fn append(&mut self, log_id: LogId, position: Position) -> Result<(), Discontinuity> {
        if let Some(last) = self.standing.last
            && log_id.index != last.index + 1
        {
            return Err(Discontinuity { expected: last.index + 1, found: log_id.index });
        }
        if let Some(newest) = self.segments.back_mut() {
            if newest.positions.is_empty() {
                newest.first = log_id.index;
            }
            newest.positions.push(position);
        }
        self.standing.last = Some(log_id);
        Ok(())
    }

    fn drop_from(&mut self, since: u64) {
        for segment in self.segments.iter_mut().rev() {
            let keep = since.saturating_sub(segment.first);
            segment.positions.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
            if segment.positions.is_empty() {
                // Never upwards: `find` relies on their order.
                segment.first = segment.first.min(since);
            }
        }
        if self.missing.is_some_and(|missing| missing >= since) {
            self.missing = since.checked_sub(1);
        }
    }

    fn purge(&mut self, upto: LogId) {
        match Purge::new(self.standing.purged, self.standing.last, upto) {
            Purge::Nothing => {}
            Purge::Prefix => self.standing.purged = Some(upto),
            Purge::All => {
                self.drop_from(0);
                self.standing.purged = Some(upto);
                self.standing.last = Some(upto);
            }
        }
    }
}

/// What a purge does to a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purge {
    /// It was done before.
    Nothing,
    /// Entries are left, and the log ends as before.
    Prefix,
    /// No entry is left, and the log ends with the log id purged.
    All,
}

impl Purge {
    /// What purging up to `upto` does to a log that was purged up to `purged` and ends with `last`.
    ///
    /// Raft purges what is applied, so `upto` is committed. A log that ends before it in the order of
    /// log ids holds nothing that continues it, even where its indices go further: such entries
    /// were left behind by a leader of an earlier term, and a snapshot overtook them.
    pub(super) fn new(purged: Option<LogId>, last: Option<LogId>, upto: LogId) -> Self {
        if purged.is_some_and(|purged| purged.index >= upto.index) {
            Self::Nothing
        } else if last < Some(upto) || last.is_some_and(|last| last.index <= upto.index) {
            Self::All
        } else {
            Self::Prefix
        }
    }
}
