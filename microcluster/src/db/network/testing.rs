//! The other side of a connection, for tests of those who call.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use tokio_util::codec::LengthDelimitedCodec;

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
