//! openraft's view of the network.

// The size of the errors is openraft's, and so are the signatures that return them.
#![allow(clippy::result_large_err)]

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::error::{
    Fatal, NetworkError, RPCError, RaftError, RemoteError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::{AnyError, OptionalSend};

use super::client::{CallError, Peers, ReplyReceiver};
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
    /// How often a member has to hear of its leader.
    pub heartbeat: Duration,
    /// Up to which index others were told that the log is committed, and may apply it before this member does.
    pub visible: Arc<AtomicU64>,
}

/// The replication's way to one member.
pub(crate) struct Network {
    sending: Sending,
    heartbeat: Duration,
    visible: Arc<AtomicU64>,
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
            heartbeat: self.heartbeat,
            visible: Arc::clone(&self.visible),
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

    /// Tells the member again and again that `vote` leads it, and returns the vote of another leader when it has heard of one. To a member that
    /// gets a snapshot openraft sends no heartbeats, unless something is committed meanwhile: it would stand for election, in vain and
    /// without an end.
    async fn lead(&self, vote: Vote) -> Vote {
        let mut beats = tokio::time::interval(self.heartbeat);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            beats.tick().await;
            if self.lane.hangs() {
                continue;
            }
            let empty = AppendEntriesRequest { vote, prev_log_id: None, leader_commit: None, entries: Vec::new() };
            // One that cannot be reached is told again; whether it still takes the snapshot shows elsewhere.
            let told = tokio::time::timeout(self.heartbeat, self.call(Call::Append(empty))).await;
            if let Ok(Ok(Reply::Append(AppendEntriesResponse::HigherVote(higher)))) = told {
                return higher;
            }
        }
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

/// What a member answers while entries are on their way, after `pause`: that it follows, and has `previous`. So openraft knows that the leader has a quorum.
async fn meanwhile(
    told: Option<&mut ReplyReceiver>,
    previous: Option<LogId>,
    pause: Duration,
) -> AppendEntriesResponse<NodeId> {
    let paused = tokio::time::sleep(pause);
    let Some(told) = told else { return std::future::pending().await };
    match told.await {
        Ok(Ok(Reply::Append(AppendEntriesResponse::Success))) => {
            paused.await;
            AppendEntriesResponse::PartialSuccess(previous)
        }
        Ok(Ok(Reply::Append(AppendEntriesResponse::HigherVote(vote)))) => AppendEntriesResponse::HigherVote(vote),
        _ => std::future::pending().await,
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
        // Before anything that says so can leave.
        self.visible.fetch_max(rpc.leader_commit.map_or(0, |committed| committed.index), Ordering::AcqRel);
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
        // That it has nothing is no step forward for openraft.
        let heard = joined.told.as_mut().filter(|_| previous.is_some());
        let told = meanwhile(heard, previous, self.heartbeat * 3 / 4);
        let result = tokio::select! {
            biased;
            result = &mut joined.reply => result,
            told = told => return Ok(told),
        };
        if let Some(Joined { told: Some(told), .. }) = waiting.joined.take() {
            self.lane.keep_told(told);
        }
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
            higher = self.lead(vote) => Ok(SnapshotResponse::new(higher)),
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(UNREACHABLE_PAUSE))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io;
    use std::pin::Pin;

    use super::super::message::Frame;
    use super::super::{PeerConnector, PeerStream, testing};
    use super::*;
    use crate::db::raft_types::{Entry, SnapshotData, SnapshotMeta};
    use crate::db::state_machine::IncomingSnapshot;

    const LEADER: Vote = Vote { leader_id: openraft::LeaderId { term: 7, node_id: 1 }, committed: true };
    const HEARD_BEFORE_ANOTHER: u64 = 20;

    /// A member that takes a snapshot and never says that it has installed it. It hears of its leader meanwhile, and in the end of
    /// another one.
    #[derive(Default)]
    struct Slow(Arc<AtomicU64>);

    impl PeerConnector for Slow {
        fn connect(&self, _: String) -> Pin<Box<dyn Future<Output = io::Result<PeerStream>> + Send>> {
            let heard = Arc::clone(&self.0);
            let stream = testing::member(move |frame| {
                let Ok(Call::Append(heartbeat)) = Frame::parse(frame.clone()).unwrap().call() else { return None };
                assert_eq!(heartbeat.vote, LEADER);
                Some(Reply::Append(match heard.fetch_add(1, Ordering::SeqCst) {
                    HEARD_BEFORE_ANOTHER.. => AppendEntriesResponse::HigherVote(Vote::new(8, 3)),
                    _ => AppendEntriesResponse::Success,
                }))
            });
            Box::pin(async move { Ok(stream) })
        }
    }

    /// A member that follows and has all entries at once. It says what it hears to be committed without any.
    struct Quick(tokio::sync::mpsc::UnboundedSender<Option<LogId>>);

    impl PeerConnector for Quick {
        fn connect(&self, _: String) -> Pin<Box<dyn Future<Output = io::Result<PeerStream>> + Send>> {
            let heard = self.0.clone();
            let stream = testing::member(move |frame| {
                let call = Frame::parse(frame.clone()).unwrap().call();
                let Ok(Call::Append(told) | Call::News(told)) = call else { return None };
                if told.entries.is_empty() {
                    heard.send(told.leader_commit).unwrap();
                }
                Some(Reply::Append(AppendEntriesResponse::Success))
            });
            Box::pin(async move { Ok(stream) })
        }
    }

    /// Whose answer to the entries is there already: nobody waits for the one to what it is told.
    #[tokio::test]
    async fn what_is_committed_is_told_to_who_has_answered_already() {
        let (dir, (sender, mut heard)) = (tempfile::tempdir().unwrap(), tokio::sync::mpsc::unbounded_channel());
        let mut network = network(Quick(sender), dir.path()).await;
        let id = |index| LogId::new(openraft::CommittedLeaderId::new(7, 1), index);
        let entries = vec![Entry { log_id: id(5), payload: openraft::EntryPayload::Blank }];
        let request =
            AppendEntriesRequest { vote: LEADER, prev_log_id: Some(id(4)), entries, leader_commit: Some(id(4)) };
        let early = AppendEntriesRequest { leader_commit: None, ..request.clone() };
        let joined = network.lane.append(early).unwrap().unwrap();
        while joined.reply.is_empty() {
            tokio::task::yield_now().await;
        }
        network.lane.keep(LEADER, Some(id(4)), joined);
        let answer = network.append_entries(request, RPCOption::new(Duration::MAX)).await.unwrap();
        assert!(matches!(answer, AppendEntriesResponse::Success), "{answer:?}");
        let committed = tokio::time::timeout(Duration::from_secs(10), heard.recv()).await;
        assert_eq!(committed.unwrap().unwrap(), Some(id(4)));
    }

    /// A member that follows, and that entries are still on their way to.
    struct Busy;

    impl PeerConnector for Busy {
        fn connect(&self, _: String) -> Pin<Box<dyn Future<Output = io::Result<PeerStream>> + Send>> {
            let stream = testing::member(|frame| match Frame::parse(frame.clone()).unwrap().call() {
                Ok(Call::Append(told) | Call::News(told)) if told.entries.is_empty() => {
                    Some(Reply::Append(AppendEntriesResponse::Success))
                }
                _ => None,
            });
            Box::pin(async move { Ok(stream) })
        }
    }

    #[tokio::test]
    async fn a_member_that_entries_are_on_their_way_to_counts_for_the_quorum() {
        let dir = tempfile::tempdir().unwrap();
        let mut network = network(Busy, dir.path()).await;
        let id = |index| LogId::new(openraft::CommittedLeaderId::new(7, 1), index);
        let entry = Entry { log_id: id(5), payload: openraft::EntryPayload::Blank };
        let mut append = async |limit| {
            let (prev_log_id, entries) = (Some(id(4)), vec![entry.clone()]);
            let request = AppendEntriesRequest { vote: LEADER, prev_log_id, entries, leader_commit: None };
            let sent = network.append_entries(request, RPCOption::new(Duration::MAX));
            // As openraft does.
            tokio::time::timeout(limit, sent).await
        };
        append(Duration::from_millis(100)).await.unwrap_err();
        let answer = append(Duration::from_secs(10)).await.unwrap().unwrap();
        assert!(matches!(answer, AppendEntriesResponse::PartialSuccess(has) if has == Some(id(4))), "{answer:?}");
    }

    async fn network(connector: impl PeerConnector, dir: &std::path::Path) -> Network {
        let mut factory = NetworkFactory {
            peers: Arc::new(Peers::new(Arc::new(connector), Arc::default())),
            early: Arc::default(),
            dir: dir.to_owned(),
            sending: Sending::default(),
            heartbeat: Duration::from_millis(1),
            visible: Arc::default(),
        };
        factory.new_client(2, &Peer { name: "c2".to_owned(), address: "127.0.0.1:2".to_owned() }).await
    }

    #[tokio::test]
    async fn a_member_that_gets_a_snapshot_hears_of_its_leader_all_the_time() {
        let (dir, member) = (tempfile::tempdir().unwrap(), Slow::default());
        let heard = Arc::clone(&member.0);
        let mut network = network(member, dir.path()).await;
        let file = Arc::new(IncomingSnapshot::create(dir.path()).unwrap());
        let snapshot = Snapshot { meta: SnapshotMeta::default(), snapshot: Box::new(SnapshotData::Incoming(file)) };
        let sent = network.full_snapshot(LEADER, snapshot, std::future::pending(), RPCOption::new(Duration::MAX)).await;
        assert_eq!(sent.unwrap().vote, Vote::new(8, 3), "of the leader that came then");
        assert!(heard.load(Ordering::SeqCst) > HEARD_BEFORE_ANOTHER);
    }
}
