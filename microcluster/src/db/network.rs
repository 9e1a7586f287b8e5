//! How members talk Raft: one long-lived connection for each pair and direction, many calls on it at once, in a compact binary format with
//! a version; and another one while something large is on its way.

mod backlog;
mod client;
mod connection;
mod early;
mod era;
mod hearing;
mod message;
mod raft_network;
mod server;
mod snapshot;
#[cfg(test)]
pub(crate) mod testing;

use std::future::Future;
use std::io;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};

pub(crate) use backlog::Backlog;
#[cfg(test)]
pub(crate) use backlog::ENTRIES_MAX as BACKLOG_ENTRIES_MAX;
pub(crate) use client::{CallError, Met, Peers, Place, Route};
pub(crate) use early::Early;
pub(crate) use era::Era;
pub(crate) use hearing::Patience;
pub use message::Pong;
pub(crate) use message::{Call, Follower, Reply};
#[cfg(feature = "bench")]
pub(crate) use message::{Frame, put_call};
pub(crate) use raft_network::NetworkFactory;
pub(crate) use server::{Service, serve};
pub(crate) use snapshot::Sending;

/// A byte stream to another member.
pub trait PeerIo: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> PeerIo for T {}

/// An established, authenticated connection to another member.
pub type PeerStream = Box<dyn PeerIo>;

/// The name of the protocol in the `Upgrade` header of the request that opens a [`PeerStream`].
pub const PROTOCOL: &str = "microcluster-raft/1";

/// What is within the error of a [`PeerConnector`] when one of the two sides does not trust the other.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct NotTrusted {
    /// Which does not trust which, and why.
    pub reason: String,
}

/// Opens connections to other members. Implemented above the database, where TLS and HTTP are.
pub trait PeerConnector: Send + Sync + 'static {
    /// Connects to the cluster address `address` (`ip:port`) and upgrades the connection to [`PROTOCOL`].
    ///
    /// # Errors
    /// When the member cannot be reached, is not who it should be, or refuses the upgrade; [`NotTrusted`] is in it for the
    /// last two.
    fn connect(&self, address: String) -> Pin<Box<dyn Future<Output = io::Result<PeerStream>> + Send>>;
}
