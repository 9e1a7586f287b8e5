//! openraft's view of the network.

// The size of the errors is openraft's, and so are the signatures that return them.
#![allow(clippy::result_large_err)]

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
use super::early::{Early, Joined, Lane};
use super::message::{Call, Reply};
use super::snapshot::{self, Sending};
use crate::db::raft_types::{LogId, NodeId, Peer, Snapshot, TypeConfig, Vote};

/// How long replication leaves an unreachable member alone before it tries again.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(50);

/// Makes the connections of the replication.
#[derive(Clone)]
pub(crate) struct NetworkFactory {
    pub peers: Arc<Peers>,
    /// Sends entries that the log here has not synced yet.
    pub early: Arc<Early>,
    /// Where copies of the state are put while they are sent.
    pub dir: std::path::PathBuf,
    /// Tells that a snapshot is on its way.
    pub sending: Sending,
}

/// The replication's way to one member.
pub(crate) struct Network {
    sending: Sending,
    peers: Arc<Peers>,
    dir: std::path::PathBuf,
    target: NodeId,
    peer: Peer,
    /// Entries on their way.
    lane: Arc<Lane>,
}

/// A call with entries that openraft waits for; kept if it stops waiting.
struct Waiting<'a> {
    lane: &'a Lane,
    vote: Vote,
    previous: Option<LogId>,
    joined: Option<Joined>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(joined) = self.joined.take() {
            self.lane.keep(self.vote, self.previous, joined);
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = Network;

    async fn new_client(&mut self, target: NodeId, node: &Peer) -> Network {
        Network {
            sending: self.sending.clone(),
            peers: Arc::clone(&self.peers),
            dir: self.dir.clone(),
            target,
            lane: self.early.lane(Arc::clone(&self.peers), target, node.address.clone()),
            peer: node.clone(),
        }
    }
}

type RpcError<E = openraft::error::Infallible> = RPCError<NodeId, Peer, RaftError<NodeId, E>>;

impl Network {
    async fn call(&self, call: Call) -> Result<Reply, RpcError> {
        replied(self.peers.call(self.target, &self.peer.address, call).await)
    }
}

fn replied(result: Result<Reply, CallError>) -> Result<Reply, RpcError> {
    match result {
        Ok(Reply::Failed(reason)) => Err(RPCError::Network(NetworkError::new(&AnyError::error(reason)))),
        Ok(reply) => Ok(reply),
        Err(error) => Err(sort(&error)),
    }
}

fn sort(error: &CallError) -> RpcError {
    match error {
        // openraft waits before it tries these again.
        CallError::Unreachable { .. } | CallError::Full { .. } => RPCError::Unreachable(Unreachable::new(error)),
        _ => RPCError::Network(NetworkError::new(error)),
    }
}

fn appended(reply: Reply) -> Result<AppendEntriesResponse<NodeId>, RpcError> {
    match reply {
        Reply::Append(response) => Ok(response),
        reply => Err(unexpected(&reply)),
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
        let (vote, previous) = (rpc.vote, rpc.prev_log_id);
        if rpc.entries.is_empty() {
            let call = if self.lane.can_wait(&rpc) { Call::News(rpc) } else { Call::Append(rpc) };
            return appended(self.call(call).await?);
        }
        let joined = self.lane.append(rpc).map_err(|error| sort(&error))?;
        let mut waiting = Waiting { lane: &self.lane, vote, previous, joined };
        let Some(joined) = &mut waiting.joined else {
            return Err(RPCError::Network(NetworkError::new(&AnyError::error("no entries to send"))));
        };
        let (last, is_all) = (joined.last, joined.is_all);
        let result = (&mut joined.reply).await;
        waiting.joined = None;
        let response = appended(replied(result.unwrap_or_else(|_| {
            Err(CallError::Broken { address: self.peer.address.clone(), reason: "closed".into() })
        }))?);
        self.lane.note(Some(last), response.as_ref().ok());
        match response? {
            AppendEntriesResponse::Success if !is_all => Ok(AppendEntriesResponse::PartialSuccess(Some(last))),
            response => Ok(response),
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
        let _sending = self.sending.begin();
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
