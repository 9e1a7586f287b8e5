//! openraft's view of the network.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{
    Fatal, NetworkError, RPCError, RaftError, RemoteError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::{AnyError, OptionalSend};

use super::client::{CallError, Peers};
use super::message::{Call, Reply};
use super::snapshot;
use crate::db::raft_types::{NodeId, Peer, Snapshot, TypeConfig, Vote};

/// How long replication leaves an unreachable member alone before it tries again.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(150);

/// Makes the connections of the replication.
#[derive(Clone)]
pub(crate) struct NetworkFactory {
    pub peers: Arc<Peers>,
    /// Where copies of the state are put while they are sent.
    pub dir: std::path::PathBuf,
}

/// The replication's way to one member.
pub(crate) struct Network {
    peers: Arc<Peers>,
    dir: std::path::PathBuf,
    target: NodeId,
    peer: Peer,
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = Network;

    async fn new_client(&mut self, target: NodeId, node: &Peer) -> Network {
        Network { peers: Arc::clone(&self.peers), dir: self.dir.clone(), target, peer: node.clone() }
    }
}

type RpcError<E = openraft::error::Infallible> = RPCError<NodeId, Peer, RaftError<NodeId, E>>;

impl Network {
    async fn call(&self, call: Call) -> Result<Reply, RpcError> {
        match self.peers.call(self.target, &self.peer.address, call).await {
            Ok(Reply::Failed(reason)) => Err(RPCError::Network(NetworkError::new(&AnyError::error(reason)))),
            Ok(reply) => Ok(reply),
            Err(error @ CallError::Unreachable { .. }) => Err(RPCError::Unreachable(Unreachable::new(&error))),
            Err(error) => Err(RPCError::Network(NetworkError::new(&error))),
        }
    }
}

fn unexpected(reply: &Reply) -> RpcError {
    RPCError::Network(NetworkError::new(&AnyError::error(format!("unexpected reply: {reply:?}"))))
}

impl RaftNetwork<TypeConfig> for Network {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, RpcError> {
        match self.call(Call::Append(rpc)).await? {
            Reply::Append(response) => Ok(response),
            reply => Err(unexpected(&reply)),
        }
    }

    async fn vote(&mut self, rpc: VoteRequest<NodeId>, _option: RPCOption) -> Result<VoteResponse<NodeId>, RpcError> {
        match self.call(Call::Vote(rpc)).await? {
            Reply::Vote(response) => Ok(response),
            reply => Err(unexpected(&reply)),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<NodeId>, StreamingError<TypeConfig, Fatal<NodeId>>> {
        let sending = snapshot::send(&self.peers, self.target, &self.peer.address, &self.dir, vote, snapshot);
        tokio::select! {
            sent = sending => match sent {
                Ok(Ok(vote)) => Ok(SnapshotResponse::new(vote)),
                Ok(Err(reason)) => Err(StreamingError::RemoteError(RemoteError::new_with_node(
                    self.target,
                    self.peer.clone(),
                    Fatal::from(crate::db::raft_types::StorageError::from(crate::db::raft_types::StorageIOError::write_snapshot(None, AnyError::error(reason)))),
                ))),
                Err(error) => Err(StreamingError::Unreachable(Unreachable::new(&error))),
            },
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(UNREACHABLE_PAUSE))
    }
}
