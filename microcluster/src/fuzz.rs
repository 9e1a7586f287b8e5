//! Inputs for the tests of parsers of outside bytes: what is almost right. doc/architecture.md lists the tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;
use proptest::sample::Index;

/// One change of a few bytes.
#[derive(Clone, Debug)]
enum Edit {
    /// Another value in one place.
    Set(Index, u8),
    /// One bit.
    Flip(Index, u8),
    Cut(Index),
    Remove(Index, u8),
    Insert(Index, Vec<u8>),
    /// A part of it once more.
    Repeat(Index, u8),
    /// What a length looks like that somebody has made up.
    Length(Index, u64, usize),
}

/// Valid bytes with a few changes.
pub(crate) fn almost(valid: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (valid, proptest::collection::vec(edit(), 1..5)).prop_map(|(bytes, edits)| edits.iter().fold(bytes, apply))
}

/// As many cases as a test takes a second or two for; `FUZZ` asks for that many times as many, `PROPTEST_CASES` for a number.
pub(crate) fn cases(default: u32) -> ProptestConfig {
    let config = ProptestConfig::default();
    let times = std::env::var("FUZZ").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => config,
        None => ProptestConfig { cases: default.saturating_mul(times), ..config },
    }
}

/// A certificate for `a.example`, its key and its authority, valid for a hundred years. Always the same: what a seed has once led to
/// it leads to again.
pub(crate) const PAIR: [&str; 3] =
    [include_str!("fuzz/pair.crt"), include_str!("fuzz/pair.key"), include_str!("fuzz/authority.crt")];

fn edit() -> impl Strategy<Value = Edit> {
    let place = any::<Index>;
    let lengths = prop_oneof![Just(u64::MAX), Just(u64::from(u32::MAX)), Just(1 << 31), Just(1 << 20), any::<u64>()];
    prop_oneof![
        (place(), any::<u8>()).prop_map(|(at, value)| Edit::Set(at, value)),
        (place(), 0_u8..8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        place().prop_map(Edit::Cut),
        (place(), 1_u8..20).prop_map(|(at, count)| Edit::Remove(at, count)),
        (place(), proptest::collection::vec(any::<u8>(), 1..12)).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (place(), 1_u8..40).prop_map(|(at, count)| Edit::Repeat(at, count)),
        (place(), lengths, 1_usize..9).prop_map(|(at, length, width)| Edit::Length(at, length, width)),
    ]
}

fn apply(mut bytes: Vec<u8>, edit: &Edit) -> Vec<u8> {
    if bytes.is_empty() {
        return bytes;
    }
    let len = bytes.len();
    match edit {
        Edit::Set(at, value) => bytes[at.index(len)] = *value,
        Edit::Flip(at, bit) => bytes[at.index(len)] ^= 1 << bit,
        Edit::Cut(at) => bytes.truncate(at.index(len)),
        Edit::Remove(at, count) => {
            let at = at.index(len);
            bytes.drain(at..len.min(at + usize::from(*count)));
        }
        Edit::Insert(at, new) => {
            let at = at.index(len);
            bytes.splice(at..at, new.iter().copied());
        }
        Edit::Repeat(at, count) => {
            let at = at.index(len);
            let part = bytes[at..len.min(at + usize::from(*count))].to_vec();
            bytes.splice(at..at, part);
        }
        Edit::Length(at, length, width) => {
            let at = at.index(len);
            let end = len.min(at + width);
            bytes[at..end].copy_from_slice(&length.to_le_bytes()[..end - at]);
        }
    }
    bytes
}
