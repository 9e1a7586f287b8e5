//! The bytes of a segment: prologue and groups. What they mean together is in the parent's
//! documentation; here is how they are written and checked.

mod record;
#[cfg(test)]
mod tests;

pub(super) use record::{FormatError, Mark, Position, Record, Standing, decode_entry_record};

use crate::db::raft_types::Entry;
use record::{RECORD_HEADER_BYTES, decode_record};

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
/// The room for a group that is always kept.
const ROOM_MIN: usize = 64 << 10;

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
        // A rare large group must not hold its memory for good.
        let room = (2 * self.bytes.len()).max(ROOM_MIN);
        self.bytes.clear();
        self.bytes.shrink_to(room);
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
        record::encode_entry_record(entry, self.segment, self.offset, &mut self.bytes)
    }

    /// Adds any other record.
    pub(super) fn mark(&mut self, mark: &Mark) {
        record::encode_mark_record(mark, self.segment, self.offset, &mut self.bytes);
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

fn encode_prologue(segment: u64, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(PROLOGUE_MAGIC);
    out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    out.extend_from_slice(&segment.to_le_bytes());
    let crc = crc32c::crc32c(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
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
