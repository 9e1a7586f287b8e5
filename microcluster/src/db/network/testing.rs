//! The other side of a connection, for tests of those who call.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};

use super::PeerStream;
use super::message::{self, Frame, Reply, VERSION, Welcome, kind};

/// The codec that cuts what is sent into frames.
pub(crate) fn frames() -> LengthDelimitedCodec {
    message::frames()
}

/// What a member that was called by its right name answers first.
pub(crate) fn welcome() -> Vec<u8> {
    let mut buffer = Vec::new();
    message::put_frame(&mut buffer, kind::HELLO, 0, &Welcome::Accepted { version: VERSION }).unwrap();
    buffer
}

/// The reply to the call in a frame.
pub(crate) fn reply(frame: &Bytes, reply: &Reply) -> Vec<u8> {
    let mut buffer = Vec::new();
    let number = Frame::parse(frame.clone()).unwrap().number;
    message::put_frame(&mut buffer, kind::REPLY, number, reply).unwrap();
    buffer
}

/// A connection to a member that greets, and replies to each frame what `answer` says, or nothing. It ends with its test.
pub(crate) fn member(mut answer: impl FnMut(&Bytes) -> Option<Reply> + Send + 'static) -> PeerStream {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    tokio::spawn(async move {
        let (reader, mut writer) = tokio::io::split(theirs);
        let mut frames = FramedRead::new(reader, frames());
        frames.next().await.unwrap().unwrap();
        writer.write_all(&welcome()).await.unwrap();
        while let Some(Ok(frame)) = frames.next().await {
            let frame = frame.freeze();
            let Some(said) = answer(&frame) else { continue };
            if writer.write_all(&reply(&frame, &said)).await.is_err() {
                return;
            }
        }
    });
    Box::new(ours)
}
