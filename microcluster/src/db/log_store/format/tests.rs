//! The bytes of a segment: whatever they are, they are read or refused; what was written is read as the same.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bytes::Bytes;
use openraft::{CommittedLeaderId, EntryPayload};
use proptest::collection::vec;
use proptest::option::of as option;
use proptest::prelude::*;

use super::*;
use crate::db::raft_types::{Command, LogId, Vote};
use crate::fuzz::{almost, cases};

/// What a group is made of.
#[derive(Clone, Debug)]
enum Part {
    Entry(Entry),
    Mark(Mark),
}

fn log_id() -> impl Strategy<Value = LogId> {
    any::<(u64, u64, u64)>().prop_map(|(term, node, index)| LogId::new(CommittedLeaderId::new(term, node), index))
}

fn vote() -> impl Strategy<Value = Vote> {
    any::<(u64, u64, bool)>().prop_map(
        |(term, node, committed)| {
            if committed { Vote::new_committed(term, node) } else { Vote::new(term, node) }
        },
    )
}

fn part() -> impl Strategy<Value = Part> {
    let entry = (log_id(), vec(any::<u8>(), 0..80)).prop_map(|(log_id, bytes)| {
        Part::Entry(Entry { log_id, payload: EntryPayload::Normal(Command(bytes.into())) })
    });
    let standing = (option(vote()), option(log_id()), option(log_id()))
        .prop_map(|(vote, purged, last)| Mark::Begin(Standing { vote, purged, last }));
    let truncate = (any::<u64>(), option(log_id())).prop_map(|(since, last)| Mark::Truncate { since, last });
    let mark = prop_oneof![standing, vote().prop_map(Mark::Vote), truncate, log_id().prop_map(Mark::Purge)];
    prop_oneof![entry, mark.prop_map(Part::Mark)]
}

/// A segment with these groups, the first one of number `first`.
fn segment(number: u64, first: u64, groups: &[Vec<Part>]) -> Vec<u8> {
    let (mut file, mut encoder) = (Vec::new(), GroupEncoder::default());
    for (count, group) in groups.iter().enumerate() {
        encoder.start(number, file.len() as u64);
        for part in group {
            match part {
                Part::Entry(entry) => drop(encoder.entry(entry)),
                Part::Mark(mark) => encoder.mark(mark),
            }
        }
        file.extend_from_slice(encoder.finish(first + count as u64));
    }
    file
}

/// Reads a segment as far as it can be read, every record of it and every entry once more by itself.
fn read(number: u64, file: &[u8]) -> Vec<Vec<Part>> {
    let _ = check_prologue(number, file);
    let (mut groups, mut offset) = (Vec::new(), PROLOGUE_BYTES);
    while let Some(group) = group_at(number, file, offset) {
        assert!(group.end() > offset && group.end() <= file.len(), "a group lies within its file");
        let mut parts = Vec::new();
        let read = group.records(|_, record| -> Result<(), FormatError> {
            parts.push(match record? {
                Record::Mark(mark) => Part::Mark(mark),
                Record::Entry(_, position) => {
                    let (from, to) = (position.offset as usize, position.end() as usize);
                    let bytes = Bytes::copy_from_slice(&file[from..to]);
                    Part::Entry(decode_entry_record(number, from as u64, bytes)?)
                }
            });
            Ok(())
        });
        if read.is_err() {
            break;
        }
        groups.push(parts);
        offset = group.end();
    }
    groups
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn a_segment_is_read_as_it_was_written(
        number in any::<u64>(), first in 1_u64..u64::MAX - 9, groups in vec(vec(part(), 1..5), 1..4),
    ) {
        let file = segment(number, first, &groups);
        check_prologue(number, &file).unwrap();
        prop_assert_eq!(format!("{:?}", read(number, &file)), format!("{groups:?}"));
        // Nothing of it holds in another place.
        prop_assert!(group_at(number.wrapping_add(1), &file, PROLOGUE_BYTES).is_none());
        prop_assert!(later_group(number, &file, 0, first - 1).is_some());
        prop_assert!(later_group(number, &file, 0, first + groups.len() as u64).is_none());
    }

    #[test]
    fn any_bytes_are_a_segment_or_refused(number in any::<u64>(), bytes in vec(any::<u8>(), 0..300)) {
        read(number, &bytes);
        let _ = later_group(number, &bytes, 0, 0);
        for offset in 0..bytes.len() {
            let _ = decode_entry_record(number, offset as u64, Bytes::copy_from_slice(&bytes[offset..]));
            let _ = decode_record(offset, &bytes[offset..]);
        }
    }

    /// With the checksums of a writer that went mad: what they cover is looked at all the same.
    #[test]
    fn records_with_good_checksums_are_read_or_refused(body in vec(any::<u8>(), 0..300), number in any::<u64>()) {
        let mut file = segment(number, 1, &[vec![]]);
        file.extend_from_slice(&body);
        let header = GroupHeader { number: 1, body_len: body.len() as u32, body_crc: crc32c::crc32c(&body) };
        file[PROLOGUE_BYTES..][..GROUP_HEADER_BYTES].copy_from_slice(&header.encode(number, PROLOGUE_BYTES as u64));
        prop_assert!(group_at(number, &file, PROLOGUE_BYTES).is_some());
        read(number, &file);
    }

    /// A changed segment shows no other entries than those that were written: the rest is cut off or refused.
    #[test]
    fn a_changed_segment_shows_nothing_that_was_not_written(
        (groups, file) in vec(vec(part(), 1..4), 1..4).prop_flat_map(|groups| {
            let file = segment(7, 1, &groups);
            (Just(groups), almost(Just(file)))
        }),
    ) {
        let written = groups.iter().map(|group| format!("{group:?}"));
        let found = read(7, &file);
        prop_assert!(found.len() <= groups.len());
        for (found, written) in found.iter().zip(written) {
            prop_assert_eq!(format!("{found:?}"), written);
        }
        let _ = later_group(7, &file, 0, 0);
    }
}
