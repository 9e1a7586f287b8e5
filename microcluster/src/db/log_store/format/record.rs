//! One record: a step of the log's history, framed by its length and its checksum.

use bytes::Bytes;

use super::{crc_at, read_u32, read_u64};
use crate::db::entry_codec::{self, CodecError, LOG_ID_BYTES};
use crate::db::raft_types::{Entry, LogId, Vote};

/// What precedes the payload: length, checksum, version, kind.
pub(super) const RECORD_HEADER_BYTES: usize = 10;
const RECORD_VERSION: u8 = 1;

const KIND_BEGIN: u8 = 1;
const KIND_VOTE: u8 = 2;
const KIND_ENTRY: u8 = 3;
const KIND_TRUNCATE: u8 = 4;
const KIND_PURGE: u8 = 5;

/// What the log amounts to, apart from its entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The last vote saved.
    pub(crate) vote: Option<Vote>,
    /// The last log id purged.
    pub(crate) purged: Option<LogId>,
    /// The last log id, or the last one purged where there are no entries.
    pub(crate) last: Option<LogId>,
}

/// One step of the log's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Record {
    /// An entry was appended; where the record is.
    Entry(LogId, Position),
    /// Anything else.
    Mark(Mark),
}

/// A step that is no entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// The first record of a segment: all that came before, so that it can be deleted.
    Begin(Standing),
    /// The vote was saved.
    Vote(Vote),
    /// The entries from `since` on were deleted; `last` is what the log then ends with.
    Truncate {
        /// The first index deleted.
        since: u64,
        /// The last log id left.
        last: Option<LogId>,
    },
    /// The entries up to this one were deleted.
    Purge(LogId),
}

/// Where a record is in its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// The first byte of the record.
    pub(crate) offset: u32,
    /// Its bytes, header included.
    pub(crate) len: u32,
}

impl Position {
    /// The first byte after the record.
    pub(crate) fn end(self) -> u64 {
        u64::from(self.offset) + u64::from(self.len)
    }
}

/// Why bytes are not what was written.
#[derive(Debug)]
pub(crate) enum FormatError {
    /// Intact, but of a version that this build does not know.
    UnknownVersion(u32),
    /// Anything else.
    Malformed(String),
}

impl From<&str> for FormatError {
    fn from(what: &str) -> Self {
        Self::Malformed(what.to_owned())
    }
}

impl From<CodecError> for FormatError {
    fn from(error: CodecError) -> Self {
        match error {
            CodecError::UnknownVersion { found } => Self::UnknownVersion(found.into()),
            other => Self::Malformed(other.to_string()),
        }
    }
}

/// Appends the record of an entry to `out`, whose first byte is at `base` of the segment.
pub(super) fn encode_entry_record(entry: &Entry, segment: u64, base: u64, out: &mut Vec<u8>) -> Position {
    frame(KIND_ENTRY, segment, base, out, |out| {
        entry_codec::encode_entry(entry, out);
    })
}

/// Appends any other record to `out`, whose first byte is at `base` of the segment.
pub(super) fn encode_mark_record(mark: &Mark, segment: u64, base: u64, out: &mut Vec<u8>) {
    let kind = match mark {
        Mark::Begin(_) => KIND_BEGIN,
        Mark::Vote(_) => KIND_VOTE,
        Mark::Truncate { .. } => KIND_TRUNCATE,
        Mark::Purge(_) => KIND_PURGE,
    };
    frame(kind, segment, base, out, |out| match mark {
        Mark::Begin(standing) => {
            encode_option(standing.vote.as_ref(), out, encode_vote);
            encode_option(standing.purged.as_ref(), out, entry_codec::encode_log_id);
            encode_option(standing.last.as_ref(), out, entry_codec::encode_log_id);
        }
        Mark::Vote(vote) => encode_vote(vote, out),
        Mark::Truncate { since, last } => {
            out.extend_from_slice(&since.to_le_bytes());
            encode_option(last.as_ref(), out, entry_codec::encode_log_id);
        }
        Mark::Purge(upto) => entry_codec::encode_log_id(upto, out),
    });
}

/// Checks and decodes one entry record read from `offset` of a segment.
pub(crate) fn decode_entry_record(segment: u64, offset: u64, record: Bytes) -> Result<Entry, FormatError> {
    let Some(header) = record.first_chunk::<RECORD_HEADER_BYTES>() else {
        return Err("the entry's record is cut".into());
    };
    if read_u32(header, 4) != crc_at(segment, offset, &record[8..]) {
        return Err("the entry's checksum does not hold".into());
    }
    if header[8] != RECORD_VERSION {
        return Err(FormatError::UnknownVersion(header[8].into()));
    }
    if header[9] != KIND_ENTRY {
        return Err("the record is not an entry".into());
    }
    Ok(entry_codec::decode_entry(record.slice(RECORD_HEADER_BYTES..))?)
}

/// Decodes a record of a group whose checksum holds.
pub(super) fn decode_record(offset: usize, record: &[u8]) -> Result<Record, FormatError> {
    let Some((header, payload)) = record.split_first_chunk::<RECORD_HEADER_BYTES>() else {
        return Err("a record is shorter than its header".into());
    };
    if header[8] != RECORD_VERSION {
        return Err(FormatError::UnknownVersion(header[8].into()));
    }
    if header[9] == KIND_ENTRY {
        let position = Position { offset: offset as u32, len: record.len() as u32 };
        return Ok(Record::Entry(entry_codec::decode_entry_log_id(payload)?, position));
    }
    let mut fields = Fields(payload);
    let mark = match header[9] {
        KIND_BEGIN => fields.standing().map(Mark::Begin),
        KIND_VOTE => fields.vote().map(Mark::Vote),
        KIND_TRUNCATE => fields.truncate(),
        KIND_PURGE => fields.log_id().map(Mark::Purge),
        kind => {
            return Err(FormatError::Malformed(format!("a record has the unknown kind {kind}")));
        }
    };
    mark.filter(|_| fields.0.is_empty()).map(Record::Mark).ok_or_else(|| "a record is not what its kind says".into())
}

fn frame(kind: u8, segment: u64, base: u64, out: &mut Vec<u8>, payload: impl FnOnce(&mut Vec<u8>)) -> Position {
    let start = out.len();
    out.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
    out[start + 8] = RECORD_VERSION;
    out[start + 9] = kind;
    payload(out);
    let len = out.len() - start;
    let offset = base + start as u64;
    let crc = crc_at(segment, offset, &out[start + 8..]);
    // `ENTRY_BYTES_MAX` and the bound of a segment keep both far below 4 GiB.
    let payload_len = (len - RECORD_HEADER_BYTES) as u32;
    out[start..][..4].copy_from_slice(&payload_len.to_le_bytes());
    out[start + 4..][..4].copy_from_slice(&crc.to_le_bytes());
    Position { offset: offset as u32, len: len as u32 }
}

/// Reads the fields of a record one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        self.take(8).map(|bytes| read_u64(bytes, 0))
    }

    fn flag(&mut self) -> Option<bool> {
        match self.take(1)? {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }

    fn log_id(&mut self) -> Option<LogId> {
        entry_codec::decode_log_id(self.take(LOG_ID_BYTES)?)
    }

    fn vote(&mut self) -> Option<Vote> {
        let (term, node_id, committed) = (self.number()?, self.number()?, self.flag()?);
        let vote = if committed { Vote::new_committed(term, node_id) } else { Vote::new(term, node_id) };
        Some(vote)
    }

    /// The outer `None` is an error, the inner one the value.
    fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        if self.flag()? { read(self).map(Some) } else { Some(None) }
    }

    fn standing(&mut self) -> Option<Standing> {
        Some(Standing {
            vote: self.option(Self::vote)?,
            purged: self.option(Self::log_id)?,
            last: self.option(Self::log_id)?,
        })
    }

    fn truncate(&mut self) -> Option<Mark> {
        Some(Mark::Truncate { since: self.number()?, last: self.option(Self::log_id)? })
    }
}

fn encode_vote(vote: &Vote, out: &mut Vec<u8>) {
    out.extend_from_slice(&vote.leader_id.term.to_le_bytes());
    out.extend_from_slice(&vote.leader_id.node_id.to_le_bytes());
    out.push(vote.committed.into());
}

fn encode_option<T>(value: Option<&T>, out: &mut Vec<u8>, encode: impl FnOnce(&T, &mut Vec<u8>)) {
    out.push(value.is_some().into());
    if let Some(value) = value {
        encode(value, out);
    }
}
