//! Frames from other members: whatever the bytes are, a message or an error; what was written is read as the same.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bytes::BytesMut;
use openraft::{CommittedLeaderId, EntryPayload, Membership};
use proptest::collection::vec;
use proptest::option::of as option;
use proptest::prelude::*;
use tokio_util::codec::Decoder;

use super::*;
use crate::db::authorizer::Touched;
use crate::db::command::{Body, Outcome, QueryResult, Request, RequestId, Scope, Statement, Value};
use crate::db::raft_types::{Command, Entry};
use crate::db::sequencer::Seen;
use crate::fuzz::{almost, cases};

fn vote() -> impl Strategy<Value = Vote> {
    any::<(u64, u64, bool)>().prop_map(
        |(term, node, committed)| {
            if committed { Vote::new_committed(term, node) } else { Vote::new(term, node) }
        },
    )
}

fn log_id() -> impl Strategy<Value = LogId> {
    any::<(u64, u64, u64)>().prop_map(|(term, node, index)| LogId::new(CommittedLeaderId::new(term, node), index))
}

fn entry() -> impl Strategy<Value = Entry> {
    let peer = ("[a-z]{0,8}", "[0-9.:]{0,16}").prop_map(|(name, address)| Peer { name, address });
    let nodes = proptest::collection::btree_map(any::<u64>(), peer, 0..4);
    let membership = nodes.prop_map(|nodes| {
        let voters = nodes.keys().copied().collect();
        EntryPayload::Membership(Membership::new(vec![voters], nodes))
    });
    let command = vec(any::<u8>(), 0..60).prop_map(|bytes| EntryPayload::Normal(Command(bytes.into())));
    (log_id(), prop_oneof![Just(EntryPayload::Blank), command, membership])
        .prop_map(|(log_id, payload)| Entry { log_id, payload })
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::Integer),
        any::<String>().prop_map(Value::Text),
        vec(any::<u8>(), 0..20).prop_map(Value::Blob),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let statement = || (".{0,30}", vec(value(), 0..3)).prop_map(|(sql, parameters)| Statement { sql, parameters });
    let body = prop_oneof![
        vec(statement(), 0..3).prop_map(Body::Statements),
        vec(statement(), 0..3).prop_map(Body::Settled),
        any::<String>().prop_map(Body::Script),
        Just(Body::Mark),
    ];
    (any::<(u64, u64, u64, i64, u64)>(), any::<Option<u64>>(), any::<bool>(), body).prop_map(
        |((origin, sequence, answered_below, time_ms, seed), only_in_term, is_core, body)| Request {
            id: RequestId { origin, sequence },
            answered_below,
            time_ms,
            seed,
            only_in_term,
            scope: if is_core { Scope::Core } else { Scope::User },
            body,
        },
    )
}

fn call() -> impl Strategy<Value = Call> {
    let append = (vote(), option(log_id()), option(log_id()), vec(entry(), 0..4)).prop_map(
        |(vote, prev_log_id, leader_commit, entries)| {
            Call::Append(AppendEntriesRequest { vote, prev_log_id, leader_commit, entries })
        },
    );
    let tables = || proptest::collection::btree_set("[a-z]{0,6}", 0..3);
    let touched = (tables(), tables(), any::<bool>());
    let touched = touched.prop_map(|(reads, writes, schema)| Touched { reads, writes, schema });
    let seen = (any::<u64>(), touched).prop_map(|(index, touched)| Seen { index, touched });
    let submit = (request(), option(seen), any::<bool>())
        .prop_map(|(request, seen, resent)| Call::Submit(Submission { request, seen, resent }));
    prop_oneof![
        append,
        (vote(), option(log_id())).prop_map(|(vote, last)| Call::Vote(VoteRequest::new(vote, last))),
        submit,
        option((any::<u64>(), vote()).prop_map(|(node_id, vote)| Follower { node_id, vote })).prop_map(Call::ReadIndex),
        Just(()).prop_map(|()| Call::Ping),
        Just(()).prop_map(|()| Call::Campaign),
        option(log_id()).prop_map(Call::PreVote),
        any::<u64>().prop_map(Call::Digest),
        any::<String>().prop_map(Call::Condemn),
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    let rows = vec(vec(value(), 2), 0..3);
    let outcome =
        rows.prop_map(|rows| Outcome::Done(vec![QueryResult::Rows { columns: vec!["a".into(), "b".into()], rows }]));
    prop_oneof![
        vote().prop_map(Reply::Snapshot),
        any::<u64>().prop_map(|index| Reply::ReadIndex(Ok(index))),
        any::<(u64, u64)>().prop_map(|(node_id, applied_index)| Reply::Pong(Pong { node_id, applied_index })),
        (any::<u64>(), outcome).prop_map(|(index, outcome)| Reply::Submit(Ok(Answer { index, outcome }))),
        Just(()).prop_map(|()| Reply::Submit(Err(SubmitError::NoQuorum))),
        any::<String>().prop_map(Reply::Failed),
        any::<bool>().prop_map(Reply::WouldVote),
    ]
}

/// The frame that is in these bytes, as the stream's codec cuts them.
fn only_frame(bytes: &[u8]) -> Frame {
    let mut buffer = BytesMut::from(bytes);
    let frame = frames().decode(&mut buffer).unwrap().expect("a whole frame");
    assert!(buffer.is_empty(), "one frame");
    Frame::parse(frame.freeze()).unwrap()
}

/// Reads a stream of bytes as a connection does, and every frame in it as everything that it might be.
fn read_all(bytes: &[u8]) {
    let (mut codec, mut buffer) = (frames(), BytesMut::from(bytes));
    // A frame that is too long ends the connection.
    while let Ok(Some(frame)) = codec.decode(&mut buffer) {
        let Ok(frame) = Frame::parse(frame.freeze()) else { continue };
        let Frame { kind, number, body } = &frame;
        let _ = frame.decode::<Hello>();
        let _ = frame.decode::<Welcome>();
        let _ = frame.decode::<SnapshotStart>();
        let _ = frame.decode::<Reply>();
        for kind in [*kind].into_iter().chain(kind::HELLO..=kind::CONDEMN) {
            let _ = Frame { kind, number: *number, body: body.clone() }.call();
        }
    }
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn a_call_is_read_as_it_was_written(call in call(), number in any::<u64>()) {
        let mut buffer = Vec::new();
        put_call(&mut buffer, number, &call).unwrap();
        let frame = only_frame(&buffer);
        prop_assert_eq!(frame.number, number);
        prop_assert_eq!(format!("{:?}", frame.call().unwrap()), format!("{call:?}"));
    }

    #[test]
    fn a_reply_is_read_as_it_was_written(reply in reply(), number in any::<u64>()) {
        let mut buffer = Vec::new();
        put_frame(&mut buffer, kind::REPLY, number, &reply).unwrap();
        prop_assert_eq!(format!("{:?}", only_frame(&buffer).decode::<Reply>().unwrap()), format!("{reply:?}"));
    }

    #[test]
    fn any_bytes_are_messages_or_errors(bytes in vec(any::<u8>(), 0..300)) {
        read_all(&bytes);
        let mut framed = Vec::new();
        put_raw_frame(&mut framed, kind::APPEND, 1, &bytes);
        read_all(&framed);
    }

    #[test]
    fn a_message_that_is_almost_right_is_read_or_refused(
        bytes in almost((call(), any::<u64>()).prop_map(|(call, number)| {
            let mut buffer = Vec::new();
            put_call(&mut buffer, number, &call).unwrap();
            buffer
        })),
    ) {
        read_all(&bytes);
        // Inside a frame whose length is right.
        let mut framed = Vec::new();
        put_raw_frame(&mut framed, kind::APPEND, 1, bytes.get(13..).unwrap_or_default());
        read_all(&framed);
    }

    #[test]
    fn a_reply_that_is_almost_right_is_read_or_refused(
        bytes in almost(reply().prop_map(|reply| {
            let mut buffer = Vec::new();
            put_frame(&mut buffer, kind::REPLY, 1, &reply).unwrap();
            buffer
        })),
    ) {
        read_all(&bytes);
    }
}

/// A length is a claim: nothing is set aside for what has not come.
#[test]
fn a_made_up_count_of_entries_costs_nothing() {
    let head = AppendHead { vote: Vote::new(1, 1), prev_log_id: None, leader_commit: None, entries: u32::MAX };
    let bytes = postcard::to_stdvec(&head).unwrap();
    assert!(matches!(decode_append(bytes.into()), Err(MessageError::Short(0))));
    // A request whose text would have almost 2^63 bytes.
    let mut submission = vec![1, 1, 0, 0, 0, 0, 0, 1];
    submission.extend([0xff; 8]);
    submission.push(0x7f);
    let frame = Frame { kind: kind::SUBMIT, number: 1, body: submission.into() };
    assert!(matches!(frame.call(), Err(MessageError::Malformed(_))));
}

#[test]
fn a_frame_over_the_bound_ends_the_connection() {
    let length = u32::try_from(FRAME_BYTES_MAX + 1).unwrap().to_le_bytes();
    assert!(frames().decode(&mut BytesMut::from(&length[..])).is_err());
}
