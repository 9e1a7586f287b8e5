//! Opening a log: replays the segments, cuts a torn tail, refuses damage.

use std::io;
use std::sync::Arc;

use tracing::{info, warn};

use super::error::LogError;
use super::files::{LogFile, Storage};
use super::format::{self, FormatError, Group, Mark, Record};
use super::index::Index;

/// The sequence number of the first segment of a log, and of its first group.
pub(super) const FIRST: u64 = 1;

const EXTENSION: &str = ".log";

/// A log as it was found.
#[derive(Default)]
pub(super) struct Recovered {
    /// What it holds.
    pub(super) index: Index,
    /// Where it goes on; `None` for an empty log.
    pub(super) tail: Option<Tail>,
    /// The number of the last group; 0 for an empty log.
    pub(super) last_group: u64,
}

/// The segment that is written to.
pub(super) struct Tail {
    /// The number of the segment.
    pub(super) segment: u64,
    /// The open file.
    pub(super) file: Arc<dyn LogFile>,
    /// Where the next group goes.
    pub(super) position: u64,
    /// The length of the file; zeros from `position` on.
    pub(super) allocated: u64,
}

/// The name of a segment's file.
pub(super) fn segment_name(sequence: u64) -> String {
    format!("{sequence:020}{EXTENSION}")
}

/// Reads the log in `storage`. On return all of it is on stable storage.
pub(super) fn recover(storage: &dyn Storage) -> Result<Recovered, LogError> {
    let (leftovers, segments) = list_segments(storage)?;
    let mut scan = Scan { storage, recovered: Recovered::default(), bytes: Vec::new() };
    for (at, &segment) in segments.iter().enumerate() {
        scan.segment(segment, at == 0, at + 1 == segments.len())?;
    }
    let mut recovered = scan.recovered;
    if let (Some(missing), Some(&oldest)) = (recovered.index.missing(), segments.first()) {
        let what = format!("the segment is missing, and with it entries up to {missing}");
        return Err(LogError::Damaged { file: storage.path(&segment_name(oldest - 1)), offset: 0, what });
    }
    if let Some(tail) = &recovered.tail {
        // The last group may have come no further than the page cache before the process ended.
        // From here on the member acts on it, so it must not go away any more.
        let name = segment_name(tail.segment);
        tail.file.sync().map_err(LogError::io("sync", storage.path(&name)))?;
        storage.sync_dir().map_err(LogError::io("sync the directory of", storage.path(&name)))?;
    }
    let removable = recovered.index.take_removable();
    remove_segments(storage, leftovers.into_iter().chain(removable));
    Ok(recovered)
}

/// Deletes segments that nothing needs. One that stays is tried again when the log is opened.
pub(super) fn remove_segments(storage: &dyn Storage, segments: impl IntoIterator<Item = u64>) {
    for segment in segments {
        let name = segment_name(segment);
        if let Err(error) = storage.remove(&name) {
            warn!(file = %storage.path(&name).display(), %error, "cannot remove an obsolete segment of the Raft log");
        }
    }
}

/// The segments of the log, in order. What precedes a gap comes separately: segments are deleted
/// oldest first, but a power failure may bring any of them back.
fn list_segments(storage: &dyn Storage) -> Result<(Vec<u64>, Vec<u64>), LogError> {
    let names = storage.list().map_err(LogError::io("list", storage.path("")))?;
    let mut segments: Vec<u64> = names.iter().filter_map(|name| parse_name(name)).collect();
    segments.sort_unstable();
    let gap = segments.windows(2).rposition(|pair| pair[0] + 1 != pair[1]);
    let connected = segments.split_off(gap.map_or(0, |at| at + 1));
    Ok((segments, connected))
}

fn parse_name(name: &str) -> Option<u64> {
    let sequence = name.strip_suffix(EXTENSION)?.parse().ok()?;
    (sequence >= FIRST && segment_name(sequence) == name).then_some(sequence)
}

/// The state of a scan over the segments.
struct Scan<'a> {
    storage: &'a dyn Storage,
    recovered: Recovered,
    /// The segment being scanned; the buffer is kept for the next.
    bytes: Vec<u8>,
}

impl Scan<'_> {
    fn segment(&mut self, segment: u64, oldest: bool, newest: bool) -> Result<(), LogError> {
        let name = segment_name(segment);
        let io = |action| LogError::io(action, self.storage.path(&name));
        let file = self.storage.open(&name).map_err(io("open"))?;
        let len = file.len().map_err(io("measure"))?;
        let size = usize::try_from(len).map_err(|_| {
            io("read")(io::Error::new(io::ErrorKind::FileTooLarge, "the segment does not fit in memory"))
        })?;
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.resize(size, 0);
        file.read_at(&mut bytes, 0).map_err(io("read"))?;
        let contents = Contents { segment, bytes: &bytes, oldest, newest };

        let Some(end) = self.replay(&contents, &file)? else {
            // Its first group was never acknowledged: the log goes on where the segment before ends.
            info!(file = %self.storage.path(&name).display(), "removing a segment whose creation was interrupted");
            self.storage.remove(&name).map_err(io("remove"))?;
            self.storage.sync_dir().map_err(io("sync the directory of"))?;
            return Ok(());
        };
        let mut allocated = len;
        if bytes[end..].iter().any(|&byte| byte != 0) {
            info!(
                file = %self.storage.path(&name).display(),
                offset = end,
                "cutting a write that was interrupted before it was acknowledged"
            );
            // Nothing of it may be left where later groups go.
            allocated = end as u64;
            file.set_len(allocated).map_err(io("cut"))?;
            file.sync().map_err(io("sync"))?;
        }
        self.bytes = bytes;
        self.recovered.tail = Some(Tail { segment, file, position: end as u64, allocated });
        Ok(())
    }

    /// Replays the groups of a segment and returns where they end; `None` if not even the first was
    /// written in full.
    fn replay(&mut self, contents: &Contents<'_>, file: &Arc<dyn LogFile>) -> Result<Option<usize>, LogError> {
        match format::check_prologue(contents.segment, contents.bytes) {
            Ok(()) => {}
            Err(FormatError::Malformed(what)) => return self.torn_start(contents, what),
            Err(error) => return Err(self.error(contents, 0, error)),
        }
        let Some(first) = contents.group_at(format::PROLOGUE_BYTES) else {
            return self.torn_start(contents, "the first group is not intact".to_owned());
        };
        if contents.oldest {
            self.recovered.last_group = first.number.wrapping_sub(1);
        } else if first.number != self.recovered.last_group + 1 {
            return Err(self.lost_end(&first));
        }
        self.recovered.index.add_segment(contents.segment, Arc::clone(file));
        let mut end = format::PROLOGUE_BYTES;
        while let Some(group) = contents.group_at(end) {
            self.group(contents, &group, end)?;
            end = group.end();
        }
        self.check_end(contents, end)?;
        if let Some(segment) = self.recovered.index.newest_mut() {
            segment.bytes = end as u64;
        }
        Ok(Some(end))
    }

    fn group(&mut self, contents: &Contents<'_>, group: &Group<'_>, at: usize) -> Result<(), LogError> {
        let expected = self.recovered.last_group + 1;
        if group.number != expected {
            let what = format!("group {} follows where group {expected} should", group.number);
            return Err(self.damaged(contents, at, what));
        }
        let starts_segment = at == format::PROLOGUE_BYTES;
        let mut first = true;
        group.records(|offset, record| {
            let record = record.map_err(|error| self.error(contents, offset, error))?;
            let begins = matches!(record, Record::Mark(Mark::Begin(_)));
            if begins != (starts_segment && first) {
                return Err(self.damaged(
                    contents,
                    offset,
                    "a segment begins with its standing, and only there".into(),
                ));
            }
            first = false;
            self.record(contents, offset, &record)
        })?;
        self.recovered.last_group = group.number;
        Ok(())
    }

    fn record(&mut self, contents: &Contents<'_>, offset: usize, record: &Record) -> Result<(), LogError> {
        if let Record::Mark(Mark::Begin(standing)) = record
            && !contents.oldest
            && standing != self.recovered.index.standing()
        {
            let what = "the segment does not continue the one before".to_owned();
            return Err(self.damaged(contents, offset, what));
        }
        self.recovered.index.apply(record).map_err(|gap| {
            let what = format!("entry {} follows where entry {} should", gap.found, gap.expected);
            self.damaged(contents, offset, what)
        })
    }

    /// What comes after the last intact group: nothing, a torn write, or damage.
    fn check_end(&self, contents: &Contents<'_>, end: usize) -> Result<(), LogError> {
        if contents.bytes[end..].iter().all(|&byte| byte == 0) {
            return Ok(());
        }
        if !contents.newest {
            let what = "a group is not intact, and a later segment shows that it had been synced".to_owned();
            return Err(self.damaged(contents, end, what));
        }
        match contents.later_group(end, self.recovered.last_group + 1) {
            None => Ok(()),
            Some(later) => {
                let what = format!("a group is not intact, and one at byte {later} shows that it had been synced");
                Err(self.damaged(contents, end, what))
            }
        }
    }

    /// A segment whose first group is not intact: its creation was interrupted, or it is damaged.
    fn torn_start(&self, contents: &Contents<'_>, what: String) -> Result<Option<usize>, LogError> {
        // A segment goes only when a later one has been synced. So the one before is still
        // there when this one never came to be.
        let expected = !contents.oldest || contents.segment == FIRST;
        let later = contents.later_group(0, self.recovered.last_group + 1);
        if contents.newest && expected && later.is_none() {
            return Ok(None);
        }
        Err(self.damaged(contents, 0, what))
    }

    /// The segment before this one ends too early.
    fn lost_end(&self, first: &Group<'_>) -> LogError {
        let (segment, offset) = self.recovered.tail.as_ref().map_or((FIRST, 0), |tail| (tail.segment, tail.position));
        let last = self.recovered.last_group;
        let what = format!("group {last} is the last here, and the next segment starts with group {}", first.number);
        LogError::Damaged { file: self.storage.path(&segment_name(segment)), offset, what }
    }

    fn error(&self, contents: &Contents<'_>, offset: usize, error: FormatError) -> LogError {
        match error {
            FormatError::Malformed(what) => self.damaged(contents, offset, what),
            FormatError::UnknownVersion(found) => LogError::UnknownVersion {
                file: self.storage.path(&segment_name(contents.segment)),
                offset: offset as u64,
                found,
            },
        }
    }

    fn damaged(&self, contents: &Contents<'_>, offset: usize, what: String) -> LogError {
        let file = self.storage.path(&segment_name(contents.segment));
        LogError::Damaged { file, offset: offset as u64, what }
    }
}

/// A segment read into memory.
struct Contents<'a> {
    segment: u64,
    bytes: &'a [u8],
    oldest: bool,
    newest: bool,
}

impl<'a> Contents<'a> {
    fn group_at(&self, offset: usize) -> Option<Group<'a>> {
        format::group_at(self.segment, self.bytes, offset)
    }

    fn later_group(&self, offset: usize, number: u64) -> Option<usize> {
        format::later_group(self.segment, self.bytes, offset, number)
    }
}
