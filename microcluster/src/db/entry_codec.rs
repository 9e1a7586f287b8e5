//! The binary form of a log entry, shared by the log on disk and the Raft transport.
//!
//! ```text
//! version u8 | kind u8 | term u64 | node id u64 | index u64 | payload, to the end
//! ```
//!
//! Integers are little-endian. The payload of a normal entry is its command as it is: decoding
//! shares the buffer it was given. The payload of a membership entry is postcard.

use bytes::Bytes;
use openraft::{CommittedLeaderId, EntryPayload, Membership};
use thiserror::Error;

use super::raft_types::{Command, Entry, LogId, NodeId, Peer};

/// The version of the form that this build writes, and the only one it reads.
pub(crate) const ENTRY_VERSION: u8 = 1;

/// What precedes the payload: version, kind, log id.
pub(crate) const ENTRY_HEADER_BYTES: usize = 2 + LOG_ID_BYTES;

/// A log id in its fixed form.
pub(crate) const LOG_ID_BYTES: usize = 24;

const KIND_BLANK: u8 = 0;
const KIND_NORMAL: u8 = 1;
const KIND_MEMBERSHIP: u8 = 2;

/// Why bytes are not a log entry.
#[derive(Debug, Error)]
pub(crate) enum CodecError {
    /// The bytes end before the fixed part does.
    #[error("log entry of {found} bytes is shorter than its {ENTRY_HEADER_BYTES} byte header")]
    Short {
        /// How many bytes there were.
        found: usize,
    },
    /// Written by a build that knows another form.
    #[error("log entry has format version {found}, this build reads version {ENTRY_VERSION}")]
    UnknownVersion {
        /// The version found.
        found: u8,
    },
    /// The kind is none of those that the version defines.
    #[error("log entry has the unknown kind {found}")]
    UnknownKind {
        /// The kind found.
        found: u8,
    },
    /// A blank entry with a payload, or bytes after a membership.
    #[error("log entry has {count} bytes too many")]
    Trailing {
        /// How many bytes follow the entry.
        count: usize,
    },
    /// A membership payload that is not one.
    #[error("log entry holds no valid membership")]
    Membership(#[source] postcard::Error),
}

/// How many bytes of a product's requests are in the entry.
pub(crate) fn payload_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(command) => command.0.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

/// Appends the binary form of `entry` to `out`.
pub(crate) fn encode_entry(entry: &Entry, out: &mut Vec<u8>) {
    let kind = match &entry.payload {
        EntryPayload::Blank => KIND_BLANK,
        EntryPayload::Normal(_) => KIND_NORMAL,
        EntryPayload::Membership(_) => KIND_MEMBERSHIP,
    };
    out.extend_from_slice(&[ENTRY_VERSION, kind]);
    encode_log_id(&entry.log_id, out);
    match &entry.payload {
        EntryPayload::Blank => {}
        EntryPayload::Normal(command) => out.extend_from_slice(&command.0),
        EntryPayload::Membership(membership) => {
            // postcard fails on sequences of unknown length, on `collect_str` that errs and on a
            // full buffer. A membership is vectors, sets and maps of integers and strings.
            #[allow(clippy::expect_used)]
            let payload = postcard::to_stdvec(membership).expect("a membership always encodes");
            out.extend_from_slice(&payload);
        }
    }
}

/// Decodes the binary form of one entry. The command of the result shares `bytes`.
///
/// # Errors
///
/// Whatever the bytes are, a [`CodecError`] and never a panic.
pub(crate) fn decode_entry(bytes: Bytes) -> Result<Entry, CodecError> {
    let (kind, log_id) = decode_entry_header(&bytes)?;
    let payload = bytes.slice(ENTRY_HEADER_BYTES..);
    let payload = match kind {
        KIND_BLANK if payload.is_empty() => EntryPayload::Blank,
        KIND_BLANK => {
            return Err(CodecError::Trailing { count: payload.len() });
        }
        KIND_NORMAL => EntryPayload::Normal(Command(payload)),
        KIND_MEMBERSHIP => EntryPayload::Membership(decode_membership(&payload)?),
        found => return Err(CodecError::UnknownKind { found }),
    };
    Ok(Entry { log_id, payload })
}

/// The log id of an encoded entry, without decoding its payload.
pub(crate) fn decode_entry_log_id(bytes: &[u8]) -> Result<LogId, CodecError> {
    decode_entry_header(bytes).map(|(_, log_id)| log_id)
}

/// Appends a log id in its fixed form.
pub(crate) fn encode_log_id(log_id: &LogId, out: &mut Vec<u8>) {
    out.extend_from_slice(&log_id.leader_id.term.to_le_bytes());
    out.extend_from_slice(&log_id.leader_id.node_id.to_le_bytes());
    out.extend_from_slice(&log_id.index.to_le_bytes());
}

/// Reads a log id in its fixed form from the start of `bytes`; `None` if they are too few.
pub(crate) fn decode_log_id(bytes: &[u8]) -> Option<LogId> {
    let (term, rest) = bytes.split_first_chunk()?;
    let (node_id, rest) = rest.split_first_chunk()?;
    let (index, _) = rest.split_first_chunk()?;
    Some(LogId {
        leader_id: CommittedLeaderId::new(u64::from_le_bytes(*term), u64::from_le_bytes(*node_id)),
        index: u64::from_le_bytes(*index),
    })
}

fn decode_entry_header(bytes: &[u8]) -> Result<(u8, LogId), CodecError> {
    let short = CodecError::Short { found: bytes.len() };
    let Some((&[version, kind], rest)) = bytes.split_first_chunk() else {
        return Err(short);
    };
    if version != ENTRY_VERSION {
        return Err(CodecError::UnknownVersion { found: version });
    }
    Ok((kind, decode_log_id(rest).ok_or(short)?))
}

fn decode_membership(payload: &[u8]) -> Result<Membership<NodeId, Peer>, CodecError> {
    let (membership, rest) = postcard::take_from_bytes(payload).map_err(CodecError::Membership)?;
    if rest.is_empty() { Ok(membership) } else { Err(CodecError::Trailing { count: rest.len() }) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::db::command::Batch;
    use crate::fuzz::almost;

    fn entries() -> impl Strategy<Value = Entry> {
        let peer = ("[a-z]{0,8}", "[0-9.:]{0,16}").prop_map(|(name, address)| Peer { name, address });
        let membership = (
            proptest::collection::vec(proptest::collection::btree_set(any::<u64>(), 0..4), 0..3),
            proptest::collection::btree_map(any::<u64>(), peer, 0..5),
        )
            .prop_map(|(configs, nodes): (Vec<BTreeSet<u64>>, BTreeMap<u64, Peer>)| {
                EntryPayload::Membership(Membership::new(configs, nodes))
            });
        let command = proptest::collection::vec(any::<u8>(), 0..200)
            .prop_map(|bytes| EntryPayload::Normal(Command(Bytes::from(bytes))));
        let payload = prop_oneof![Just(EntryPayload::Blank), command, membership];
        (any::<(u64, u64, u64)>(), payload).prop_map(|((term, node, index), payload)| Entry {
            log_id: LogId::new(CommittedLeaderId::new(term, node), index),
            payload,
        })
    }

    fn encoded(entry: &Entry) -> Bytes {
        let mut out = Vec::new();
        encode_entry(entry, &mut out);
        Bytes::from(out)
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_itself(entry in entries()) {
            let bytes = encoded(&entry);
            prop_assert_eq!(decode_entry_log_id(&bytes).unwrap(), entry.log_id);
            prop_assert_eq!(decode_entry(bytes).unwrap(), entry);
        }

        #[test]
        fn any_bytes_decode_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = bytes;
            let _ = decode_entry(Bytes::from(bytes.clone()));
            // Again with a header that leads to each payload.
            for kind in [KIND_BLANK, KIND_NORMAL, KIND_MEMBERSHIP] {
                if let Some(header) = bytes.first_chunk_mut() {
                    *header = [ENTRY_VERSION, kind];
                }
                let _ = decode_entry(Bytes::from(bytes.clone()));
            }
        }

        #[test]
        fn an_entry_that_is_almost_right_is_read_or_refused(bytes in almost(entries().prop_map(|e| encoded(&e).to_vec()))) {
            let _ = decode_entry(Bytes::from(bytes));
        }

        /// The requests inside an entry: their version, then postcard.
        #[test]
        fn any_command_is_a_batch_or_refused(version in 0_u8..4, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Batch::decode(&Command(Bytes::from(bytes.clone())));
            let bytes = [vec![version], bytes].concat();
            if let Ok(batch) = Batch::decode(&Command(Bytes::from(bytes))) {
                let again = Batch::decode(&batch.encode().unwrap()).unwrap();
                prop_assert_eq!(format!("{again:?}"), format!("{batch:?}"));
            }
        }

        #[test]
        fn a_cut_membership_is_refused(entry in entries(), cut in 1_usize..40) {
            prop_assume!(matches!(entry.payload, EntryPayload::Membership(_)));
            let bytes = encoded(&entry);
            let end = bytes.len().saturating_sub(cut);
            prop_assert!(decode_entry(bytes.slice(..end)).is_err());
        }
    }

    #[test]
    fn a_decoded_command_shares_the_buffer() {
        let entry = Entry {
            log_id: LogId::new(CommittedLeaderId::new(1, 2), 3),
            payload: EntryPayload::Normal(Command(Bytes::from_static(b"command"))),
        };
        let bytes = encoded(&entry);
        let decoded = decode_entry(bytes.clone()).unwrap();
        let EntryPayload::Normal(command) = decoded.payload else { panic!("a normal entry") };
        assert_eq!(command.0.as_ptr(), bytes[ENTRY_HEADER_BYTES..].as_ptr());
    }

    #[test]
    fn what_it_does_not_know_is_named() {
        let mut bytes = encoded(&Entry::default()).to_vec();
        bytes[1] = 9;
        let error = decode_entry(Bytes::from(bytes.clone())).unwrap_err();
        assert_eq!(error.to_string(), "log entry has the unknown kind 9");
        bytes[0] = 7;
        let error = decode_entry(Bytes::from(bytes.clone())).unwrap_err();
        assert_eq!(error.to_string(), "log entry has format version 7, this build reads version 1");
        let error = decode_entry(Bytes::from(bytes).slice(..10));
        assert!(matches!(error, Err(CodecError::UnknownVersion { found: 7 })));
    }
}
