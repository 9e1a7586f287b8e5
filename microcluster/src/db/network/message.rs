//! The messages between members and their bytes: a length-delimited frame is a kind, the call's number, and
//! a body. Entries travel in the form that the log keeps them in.

use std::time::Duration;

use bytes::{Buf, Bytes};
use openraft::SnapshotMeta;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_util::codec::LengthDelimitedCodec;

use crate::db::checksum::Digest;
use crate::db::entry_codec::{self, CodecError};
use crate::db::raft_types::{LogId, NodeId, Peer, TypeConfig, Vote};
use crate::db::recovery::RecoveryMark;
use crate::db::sequencer::{Submission, SubmitError};
use crate::db::waiters::Answer;

/// The version of everything in this file. Said in the first frame of each connection.
pub(crate) const VERSION: u16 = 2;
/// The largest frame: one log entry at its bound and then some.
const FRAME_BYTES_MAX: usize = 40 << 20;
/// How long what nobody is in a hurry for waits for something to be written with.
pub(crate) const COMPANY_MAX: Duration = Duration::from_millis(1);
/// Kind and call number.
const HEADER_BYTES: usize = 9;

/// The first frame, from the member that connects.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub version: u16,
    /// Which node the connection is meant for; an address may have a new owner.
    pub to: NodeId,
    /// The recovery that its database stems from; none if the member has nothing yet.
    pub era: Option<RecoveryMark>,
}

/// The answer to [`Hello`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Welcome {
    Accepted { version: u16 },
    WrongVersion { version: u16 },
    WrongNode { node_id: NodeId },
    WrongEra { era: Option<RecoveryMark> },
}

/// What a member asks of another one.
#[derive(Debug)]
pub(crate) enum Call {
    Append(AppendEntriesRequest<TypeConfig>),
    /// An append without entries, which only tells what is committed. Nobody is in a hurry for it: it waits [`COMPANY_MAX`] for
    /// another call to be written with, and so does its reply.
    News(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<NodeId>),
    /// Would you vote for me, whose log ends so?
    PreVote(Option<LogId>),
    /// Is this the vote that you follow? Asked by the leader whose it is.
    Confirm(Vote),
    /// Sequence this request; only the leader does.
    Submit(Submission),
    /// Up to which log index must a linearizable read have applied; only the leader knows. Members of before say nothing of themselves.
    ReadIndex(Option<Follower>),
    Ping,
    /// The digest of the state at a mark's log index.
    Digest(u64),
    /// Your state is not that of the others: stop using it, and be rebuilt. Says why.
    Condemn(String),
    /// Stand for election now: the leader is about to leave.
    Campaign,
}

impl Call {
    /// About how many bytes it takes.
    pub fn size(&self) -> usize {
        match self {
            Call::Append(request) | Call::News(request) => request.entries.iter().map(entry_codec::payload_bytes).sum(),
            Call::Submit(submission) => submission.request.size(),
            Call::Condemn(reason) => reason.len(),
            Call::Vote(_)
            | Call::PreVote(_)
            | Call::Confirm(_)
            | Call::ReadIndex(_)
            | Call::Ping
            | Call::Digest(_)
            | Call::Campaign => 0,
        }
    }
}

/// A member that asks its leader, and the vote that it followed after what it asks for had begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Follower {
    pub node_id: NodeId,
    pub vote: Vote,
}

/// The start of a snapshot, on a connection of its own; `size` bytes follow in frames of [`kind::CHUNK`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotStart {
    pub vote: Vote,
    pub meta: SnapshotMeta<NodeId, Peer>,
    pub size: u64,
    /// CRC-32C of all bytes.
    pub checksum: u32,
}

/// How a member is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// Its Raft node id.
    pub node_id: NodeId,
    /// Up to where it has applied the log.
    pub applied_index: u64,
}

/// The answer to a [`Call`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Append(AppendEntriesResponse<NodeId>),
    Vote(VoteResponse<NodeId>),
    Confirmed(bool),
    Submit(Result<Answer, SubmitError>),
    ReadIndex(Result<u64, SubmitError>),
    Pong(Pong),
    Campaigning,
    Condemned,
    Digest(Digest),
    Snapshot(Vote),
    /// The member could not do it, and says why.
    Failed(String),
    WouldVote(bool),
}

/// What a frame is.
pub(crate) mod kind {
    pub const HELLO: u8 = 0;
    pub const APPEND: u8 = 1;
    pub const VOTE: u8 = 2;
    pub const SUBMIT: u8 = 3;
    pub const READ_INDEX: u8 = 4;
    pub const PING: u8 = 5;
    pub const CAMPAIGN: u8 = 6;
    pub const SNAPSHOT: u8 = 7;
    pub const CHUNK: u8 = 8;
    pub const DIGEST: u8 = 9;
    pub const CONDEMN: u8 = 10;
    pub const NEWS: u8 = 11;
    pub const CONFIRM: u8 = 12;
    pub const PRE_VOTE: u8 = 13;
    pub const REPLY: u8 = 128;
}

/// A frame that makes no sense.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("a frame of {0} bytes is too short")]
    Short(usize),
    #[error("a frame has the unknown kind {0}")]
    Kind(u8),
    #[error("a frame cannot be decoded")]
    Malformed(#[from] postcard::Error),
    #[error("a log entry in a frame cannot be decoded")]
    Entry(#[from] CodecError),
}

/// A frame, taken apart.
#[derive(Debug)]
pub(crate) struct Frame {
    pub kind: u8,
    pub number: u64,
    pub body: Bytes,
}

/// The codec that cuts the stream into frames.
pub(crate) fn frames() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().little_endian().length_field_length(4).max_frame_length(FRAME_BYTES_MAX).new_codec()
}

impl Frame {
    /// Takes a frame's bytes apart.
    pub fn parse(mut bytes: Bytes) -> Result<Frame, MessageError> {
        if bytes.len() < HEADER_BYTES {
            return Err(MessageError::Short(bytes.len()));
        }
        let kind = bytes.get_u8();
        let number = bytes.get_u64_le();
        Ok(Frame { kind, number, body: bytes })
    }

    /// The body as `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, MessageError> {
        Ok(postcard::from_bytes(&self.body)?)
    }

    /// The call in the frame.
    pub fn call(self) -> Result<Call, MessageError> {
        Ok(match self.kind {
            kind::APPEND => Call::Append(decode_append(self.body)?),
            kind::NEWS => Call::News(decode_append(self.body)?),
            kind::VOTE => Call::Vote(self.decode()?),
            kind::PRE_VOTE => Call::PreVote(self.decode()?),
            kind::CONFIRM => Call::Confirm(self.decode()?),
            kind::SUBMIT => Call::Submit(self.decode()?),
            kind::READ_INDEX if self.body.is_empty() => Call::ReadIndex(None),
            kind::READ_INDEX => Call::ReadIndex(Some(self.decode()?)),
            kind::PING => Call::Ping,
            kind::CAMPAIGN => Call::Campaign,
            kind::DIGEST => Call::Digest(self.decode()?),
            kind::CONDEMN => Call::Condemn(self.decode()?),
            unknown => return Err(MessageError::Kind(unknown)),
        })
    }
}

/// Appends a whole frame, length included, to `buffer`.
pub(crate) fn put_frame<T: Serialize>(
    buffer: &mut Vec<u8>,
    kind: u8,
    number: u64,
    body: &T,
) -> Result<(), MessageError> {
    let start = begin_frame(buffer, kind, number);
    *buffer = postcard::to_extend(body, std::mem::take(buffer))?;
    end_frame(buffer, start);
    Ok(())
}

/// Appends a whole frame with raw bytes to `buffer`.
pub(crate) fn put_raw_frame(buffer: &mut Vec<u8>, kind: u8, number: u64, body: &[u8]) {
    let start = begin_frame(buffer, kind, number);
    buffer.extend_from_slice(body);
    end_frame(buffer, start);
}

/// Appends a call's frame to `buffer`.
pub(crate) fn put_call(buffer: &mut Vec<u8>, number: u64, call: &Call) -> Result<(), MessageError> {
    match call {
        Call::Append(request) => put_append(buffer, kind::APPEND, number, request),
        Call::News(request) => put_append(buffer, kind::NEWS, number, request),
        Call::Confirm(vote) => put_frame(buffer, kind::CONFIRM, number, vote),
        Call::Vote(request) => put_frame(buffer, kind::VOTE, number, request),
        Call::PreVote(last) => put_frame(buffer, kind::PRE_VOTE, number, last),
        Call::Submit(submission) => put_frame(buffer, kind::SUBMIT, number, submission),
        Call::ReadIndex(None) => put_frame(buffer, kind::READ_INDEX, number, &()),
        Call::ReadIndex(Some(follower)) => put_frame(buffer, kind::READ_INDEX, number, follower),
        Call::Ping => put_frame(buffer, kind::PING, number, &()),
        Call::Campaign => put_frame(buffer, kind::CAMPAIGN, number, &()),
        Call::Digest(index) => put_frame(buffer, kind::DIGEST, number, index),
        Call::Condemn(reason) => put_frame(buffer, kind::CONDEMN, number, reason),
    }
}

fn put_append(
    buffer: &mut Vec<u8>,
    kind: u8,
    number: u64,
    request: &AppendEntriesRequest<TypeConfig>,
) -> Result<(), MessageError> {
    let start = begin_frame(buffer, kind, number);
    encode_append(buffer, request)?;
    end_frame(buffer, start);
    Ok(())
}

fn begin_frame(buffer: &mut Vec<u8>, kind: u8, number: u64) -> usize {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; 4]);
    buffer.push(kind);
    buffer.extend_from_slice(&number.to_le_bytes());
    start
}

fn end_frame(buffer: &mut [u8], start: usize) {
    // Bounded by the size of requests and of log reads, far below 4 GiB.
    let length = (buffer.len() - start - 4) as u32;
    buffer[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// The append request without its entries.
#[derive(Serialize, Deserialize)]
struct AppendHead {
    vote: Vote,
    prev_log_id: Option<LogId>,
    leader_commit: Option<LogId>,
    entries: u32,
}

fn encode_append(buffer: &mut Vec<u8>, request: &AppendEntriesRequest<TypeConfig>) -> Result<(), MessageError> {
    let head = AppendHead {
        vote: request.vote,
        prev_log_id: request.prev_log_id,
        leader_commit: request.leader_commit,
        entries: request.entries.len() as u32,
    };
    *buffer = postcard::to_extend(&head, std::mem::take(buffer))?;
    for entry in &request.entries {
        let start = buffer.len();
        buffer.extend_from_slice(&[0; 4]);
        entry_codec::encode_entry(entry, buffer);
        end_frame(buffer, start);
    }
    Ok(())
}

fn decode_append(body: Bytes) -> Result<AppendEntriesRequest<TypeConfig>, MessageError> {
    let (head, rest): (AppendHead, _) = postcard::take_from_bytes(&body)?;
    let mut rest = body.slice_ref(rest);
    let mut entries = Vec::with_capacity((head.entries as usize).min(rest.len() / 8));
    for _ in 0..head.entries {
        if rest.len() < 4 {
            return Err(MessageError::Short(rest.len()));
        }
        let length = rest.get_u32_le() as usize;
        if rest.len() < length {
            return Err(MessageError::Short(rest.len()));
        }
        entries.push(entry_codec::decode_entry(rest.split_to(length))?);
    }
    Ok(AppendEntriesRequest {
        vote: head.vote,
        prev_log_id: head.prev_log_id,
        leader_commit: head.leader_commit,
        entries,
    })
}

#[cfg(test)]
mod tests;
