//! The types Raft is instantiated with: what a log entry carries, what applying it answers, who a node is.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::state_machine::{IncomingSnapshot, PinnedSnapshot};

/// Identifies a member in the Raft log. Taken from the log, never reused.
pub type NodeId = u64;
/// Whom a vote is for that is for nobody.
pub(crate) const NOBODY: NodeId = NodeId::MAX;

openraft::declare_raft_types!(
    /// How openraft is instantiated here.
    pub TypeConfig:
        D = Command,
        R = Applied,
        NodeId = NodeId,
        Node = Peer,
        SnapshotData = SnapshotData,
);

/// The terms of one era: two elections a second for fifteen years. A recovery from the loss of a quorum begins the next era, so
/// that its terms are higher than all that members of before can have voted in.
pub(crate) const ERA_TERMS: u64 = 1_000_000_000;

pub(crate) type Raft = openraft::Raft<TypeConfig>;
pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type LogId = openraft::LogId<NodeId>;
pub(crate) type Vote = openraft::Vote<NodeId>;
pub(crate) type StorageError = openraft::StorageError<NodeId>;
pub(crate) type StorageIOError = openraft::StorageIOError<NodeId>;
pub(crate) type StoredMembership = openraft::StoredMembership<NodeId, Peer>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<NodeId, Peer>;
pub(crate) type Snapshot = openraft::Snapshot<TypeConfig>;

/// Where a member is reached, as the Raft membership records it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The member's name.
    pub name: String,
    /// The member's cluster address, `ip:port`.
    pub address: String,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.address)
    }
}

/// What a log entry carries: an encoded `Batch` of requests. Kept encoded, so that
/// the log, the network and the cache share one cheap-to-clone buffer and only `apply` decodes it.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command(pub Bytes);

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({} bytes)", self.0.len())
    }
}

/// What applying one entry answers to openraft: nothing. The callers that wait for a request get its
/// outcome from the writer thread, which spares each write two channel hops.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied;

/// A snapshot of the state, on its way out or in.
#[derive(Debug, Clone)]
pub enum SnapshotData {
    /// A view that a read transaction pins, on the member that sends it.
    Pinned(#[doc(hidden)] Arc<PinnedSnapshot>),
    /// The file that it arrives in.
    Incoming(#[doc(hidden)] Arc<IncomingSnapshot>),
}
