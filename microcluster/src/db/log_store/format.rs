//! The bytes of a segment: prologue, groups, records. What they mean together is in the parent's
//! documentation; here is how they are written and checked.

use bytes::Bytes;

use crate::db::entry_codec::{self, CodecError, LOG_ID_BYTES};
use crate::db::raft_types::{Entry, LogId, Vote};

/// The version of the format that this build writes, and the only one it reads.
pub(super) const FORMAT_VERSION: u32 = 1;

/// What a segment starts with.
pub(super) const PROLOGUE_BYTES: usize = 24;

/// The largest entry, encoded. Far above what the sequencer lets through; what it guards are the
/// 32-bit lengths and offsets.
pub(super) const ENTRY_BYTES_MAX: usize = 256 << 20;

const PROLOGUE_MAGIC: &[u8; 8] = b"mc-raft\n";
const GROUP_MAGIC: [u8; 4] = [0xa7, b'G', b'r', b'p'];
const GROUP_HEADER_BYTES: usize = 24;
const RECORD_HEADER_BYTES: usize = 10;
const RECORD_VERSION: u8 = 1;

const KIND_BEGIN: u8 = 1;
const KIND_VOTE: u8 = 2;
const KIND_ENTRY: u8 = 3;
const KIND_TRUNCATE: u8 = 4;
const KIND_PURGE: u8 = 5;

/// What the log amounts to, apart from its entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// The last vote saved.
    pub(super) vote: Option<Vote>,
    /// The last log id purged.
    pub(super) purged: Option<LogId>,
    /// The last log id, or the last one purged where there are no entries.
    pub(super) last: Option<LogId>,
}

/// One step of the log's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Record {
    /// The first record of a segment: all that came before, so that it can be deleted.
    Begin(Standing),
    /// The vote was saved.
    Vote(Vote),
    /// An entry was appended.
    Entry(LogId, Position),
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
pub(super) struct Position {
    /// The first byte of the record.
    pub(super) offset: u32,
    /// Its bytes, header included.
    pub(super) len: u32,
}

impl Position {
    /// The first byte after the record.
    pub(super) fn end(self) -> u64 {
        u64::from(self.offset) + u64::from(self.len)
    }
}

/// Why bytes are not what was written.
#[derive(Debug)]
pub(super) enum FormatError {
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

/// Builds the bytes of one group in a buffer that is kept for the next.
#[derive(Default)]
pub(super) struct GroupEncoder {
    bytes: Vec<u8>,
    segment: u64,
    /// Where `bytes` go in the segment.
    offset: u64,
    /// Where the group's header is in `bytes`.
    header: usize,
}

impl GroupEncoder {
    /// Starts a group at `offset` of a segment; at 0 the segment's prologue goes before it.
    pub(super) fn start(&mut self, segment: u64, offset: u64) {
        self.bytes.clear();
        // A rare large group must not hold its memory for good.
        self.bytes.shrink_to(4 << 20);
        self.segment = segment;
        self.offset = offset;
        if offset == 0 {
            encode_prologue(segment, &mut self.bytes);
        }
        self.header = self.bytes.len();
        self.bytes.resize(self.header + GROUP_HEADER_BYTES, 0);
    }

    /// How many bytes the group has so far.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds an entry and tells where it will be.
    pub(super) fn entry(&mut self, entry: &Entry) -> Position {
        self.record(KIND_ENTRY, |out| entry_codec::encode_entry(entry, out))
    }

    /// Adds a vote.
    pub(super) fn vote(&mut self, vote: &Vote) {
        self.record(KIND_VOTE, |out| encode_vote(vote, out));
    }

    /// Adds the deletion of the entries from `since` on.
    pub(super) fn truncate(&mut self, since: u64, last: Option<&LogId>) {
        self.record(KIND_TRUNCATE, |out| {
            out.extend_from_slice(&since.to_le_bytes());
            encode_option(last, out, entry_codec::encode_log_id);
        });
    }

    /// Adds the deletion of the entries up to `upto`.
    pub(super) fn purge(&mut self, upto: &LogId) {
        self.record(KIND_PURGE, |out| entry_codec::encode_log_id(upto, out));
    }

    /// Adds the first record of a segment.
    pub(super) fn begin(&mut self, standing: &Standing) {
        self.record(KIND_BEGIN, |out| {
            encode_option(standing.vote.as_ref(), out, encode_vote);
            encode_option(standing.purged.as_ref(), out, entry_codec::encode_log_id);
            encode_option(standing.last.as_ref(), out, entry_codec::encode_log_id);
        });
    }

    /// Seals the group with its number. The bytes may be extended with zeros before they are written.
    pub(super) fn finish(&mut self, number: u64) -> &mut Vec<u8> {
        let body = &self.bytes[self.header + GROUP_HEADER_BYTES..];
        let header = GroupHeader {
            number,
            // `ENTRY_BYTES_MAX` and the bound of a group keep it far below 4 GiB.
            body_len: body.len() as u32,
            body_crc: crc32c::crc32c(body),
        };
        let header = header.encode(self.segment, self.offset + self.header as u64);
        self.bytes[self.header..][..GROUP_HEADER_BYTES].copy_from_slice(&header);
        &mut self.bytes
    }

    fn record(&mut self, kind: u8, payload: impl FnOnce(&mut Vec<u8>)) -> Position {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
        self.bytes[start + 8] = RECORD_VERSION;
        self.bytes[start + 9] = kind;
        payload(&mut self.bytes);
        let len = self.bytes.len() - start;
        let offset = self.offset + start as u64;
        let crc = record_crc(self.segment, offset, &self.bytes[start + 8..]);
        let payload_len = (len - RECORD_HEADER_BYTES) as u32;
        self.bytes[start..][..4].copy_from_slice(&payload_len.to_le_bytes());
        self.bytes[start + 4..][..4].copy_from_slice(&crc.to_le_bytes());
        Position { offset: offset as u32, len: len as u32 }
    }
}

/// Checks the start of a segment.
pub(super) fn check_prologue(segment: u64, file: &[u8]) -> Result<(), FormatError> {
    let Some(found) = file.first_chunk::<PROLOGUE_BYTES>() else {
        return Err("the segment ends within its prologue".into());
    };
    let (content, crc) = found.split_at(PROLOGUE_BYTES - 4);
    if &content[..8] != PROLOGUE_MAGIC || crc != crc32c::crc32c(content).to_le_bytes() {
        return Err("the segment does not start with a valid prologue".into());
    }
    let version = read_u32(content, 8);
    if version != FORMAT_VERSION {
        return Err(FormatError::UnknownVersion(version));
    }
    let found = read_u64(content, 12);
    if found != segment {
        return Err(FormatError::Malformed(format!("the file is segment {found} by its content")));
    }
    Ok(())
}

/// A group whose checksums hold.
pub(super) struct Group<'a> {
    /// Its place in the sequence of all groups.
    pub(super) number: u64,
    /// Where its records start in the segment.
    pub(super) body_offset: usize,
    body: &'a [u8],
}

/// Reads the group at `offset` of a segment; `None` if there is none that is intact.
pub(super) fn group_at(segment: u64, file: &[u8], offset: usize) -> Option<Group<'_>> {
    let header = GroupHeader::decode(segment, file, offset)?;
    let body_offset = offset + GROUP_HEADER_BYTES;
    let body = file.get(body_offset..)?.get(..header.body_len as usize)?;
    (crc32c::crc32c(body) == header.body_crc).then_some(Group { number: header.number, body_offset, body })
}

/// Looks behind `offset` for the header of a group with a number above `number`: the proof that
/// the group of that number had been written and synced in full.
pub(super) fn later_group(segment: u64, file: &[u8], offset: usize, number: u64) -> Option<usize> {
    let mut from = offset + 1;
    loop {
        from += file.get(from..)?.iter().position(|&byte| byte == GROUP_MAGIC[0])?;
        // The header has a checksum of its own, so that what looks like one costs no more than this.
        if GroupHeader::decode(segment, file, from).is_some_and(|header| header.number > number) {
            return Some(from);
        }
        from += 1;
    }
}

impl Group<'_> {
    /// Where the group ends in the segment.
    pub(super) fn end(&self) -> usize {
        self.body_offset + self.body.len()
    }

    /// Calls `each` with every record and its offset.
    pub(super) fn records<E>(
        &self,
        mut each: impl FnMut(usize, Result<Record, FormatError>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = self.body;
        while !rest.is_empty() {
            let offset = self.end() - rest.len();
            let len = match rest.first_chunk::<RECORD_HEADER_BYTES>() {
                Some(header) => RECORD_HEADER_BYTES + read_u32(header, 0) as usize,
                None => rest.len(),
            };
            let Some((record, after)) = rest.split_at_checked(len) else {
                return each(offset, Err("a record is longer than its group".into()));
            };
            // The group's checksum covers the record's content.
            each(offset, decode_record(offset, record))?;
            rest = after;
        }
        Ok(())
    }
}

/// Checks and decodes one entry record read from `offset` of a segment.
pub(super) fn decode_entry_record(segment: u64, offset: u64, record: Bytes) -> Result<Entry, FormatError> {
    let Some(header) = record.first_chunk::<RECORD_HEADER_BYTES>() else {
        return Err("the entry's record is cut".into());
    };
    if read_u32(header, 4) != record_crc(segment, offset, &record[8..]) {
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

fn decode_record(offset: usize, record: &[u8]) -> Result<Record, FormatError> {
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
    let record = match header[9] {
        KIND_BEGIN => fields.standing().map(Record::Begin),
        KIND_VOTE => fields.vote().map(Record::Vote),
        KIND_TRUNCATE => fields.truncate(),
        KIND_PURGE => fields.log_id().map(Record::Purge),
        kind => {
            return Err(FormatError::Malformed(format!("a record has the unknown kind {kind}")));
        }
    };
    record.filter(|_| fields.0.is_empty()).ok_or_else(|| "a record is not what its kind says".into())
}

/// What precedes the records of a group.
struct GroupHeader {
    number: u64,
    body_len: u32,
    body_crc: u32,
}

impl GroupHeader {
    fn encode(&self, segment: u64, offset: u64) -> [u8; GROUP_HEADER_BYTES] {
        let mut bytes = [0; GROUP_HEADER_BYTES];
        bytes[..4].copy_from_slice(&GROUP_MAGIC);
        bytes[4..8].copy_from_slice(&self.body_len.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.body_crc.to_le_bytes());
        let crc = crc_at(segment, offset, &bytes[..20]);
        bytes[20..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(segment: u64, file: &[u8], offset: usize) -> Option<Self> {
        let bytes = file.get(offset..)?.first_chunk::<GROUP_HEADER_BYTES>()?;
        let valid = bytes[..4] == GROUP_MAGIC && read_u32(bytes, 20) == crc_at(segment, offset as u64, &bytes[..20]);
        valid.then(|| Self { number: read_u64(bytes, 8), body_len: read_u32(bytes, 4), body_crc: read_u32(bytes, 16) })
    }
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

    fn truncate(&mut self) -> Option<Record> {
        Some(Record::Truncate { since: self.number()?, last: self.option(Self::log_id)? })
    }
}

fn encode_prologue(segment: u64, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(PROLOGUE_MAGIC);
    out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    out.extend_from_slice(&segment.to_le_bytes());
    let crc = crc32c::crc32c(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
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

/// The checksum of a record: its content from the version on, and where it belongs.
fn record_crc(segment: u64, offset: u64, content: &[u8]) -> u32 {
    crc_at(segment, offset, content)
}

/// A checksum that holds at one place of one segment only: bytes left over from elsewhere fail it.
fn crc_at(segment: u64, offset: u64, content: &[u8]) -> u32 {
    let place = crc32c::crc32c_append(crc32c::crc32c(&segment.to_le_bytes()), &offset.to_le_bytes());
    crc32c::crc32c_append(place, content)
}

/// Panics if `bytes` end before: for lengths that were checked.
fn read_u32(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

/// As [`read_u32`].
fn read_u64(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}
