//! Linearizable reads: up to which log index must have been applied here before a read may be answered.
//! Reads that arrive together share one confirmation by the quorum.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::raft_types::Raft;
use super::sequencer::SubmitError;
use super::writer::Shared;

/// How many reads may wait for one confirmation.
const WAITING_MAX: usize = 4_096;
/// How long the quorum may take to confirm the leader.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);

type Sender = oneshot::Sender<Result<u64, SubmitError>>;

/// A handle on the task that asks the quorum.
#[derive(Clone)]
pub(crate) struct ReadIndex {
    waiting: mpsc::Sender<Sender>,
    shared: Arc<Shared>,
}

impl ReadIndex {
    /// The handle and its task, to be spawned by the database.
    pub fn new(
        raft: Raft,
        shared: Arc<Shared>,
        cancelled: CancellationToken,
    ) -> (ReadIndex, impl Future<Output = ()> + Send) {
        let (waiting, receiver) = mpsc::channel(WAITING_MAX);
        (ReadIndex { waiting, shared: Arc::clone(&shared) }, run(raft, receiver, shared, cancelled))
    }

    /// On the leader: the index, confirmed by a quorum after this call began.
    pub async fn on_leader(&self) -> Result<u64, SubmitError> {
        if self.shared.handing_over.load(Ordering::Acquire) {
            return Err(SubmitError::NotLeader { leader: None });
        }
        let (answer, receiver) = oneshot::channel();
        self.waiting.try_send(answer).map_err(|_| SubmitError::Busy)?;
        receiver.await.unwrap_or(Err(SubmitError::Lost))
    }
}

async fn run(raft: Raft, mut waiting: mpsc::Receiver<Sender>, shared: Arc<Shared>, cancelled: CancellationToken) {
    let mut round: Vec<Sender> = Vec::new();
    loop {
        tokio::select! {
            () = cancelled.cancelled() => return,
            received = waiting.recv_many(&mut round, WAITING_MAX) => if received == 0 { return },
        }
        shared.read_rounds.fetch_add(1, Ordering::Relaxed);
        let result = match tokio::time::timeout(CONFIRM_TIMEOUT, raft.get_read_log_id()).await {
            Ok(Ok((log_id, _))) => Ok(log_id.map_or(0, |log_id| log_id.index)),
            Ok(Err(error)) => Err(sort(&error)),
            Err(_) => Err(SubmitError::NoQuorum),
        };
        for answer in round.drain(..) {
            let _ = answer.send(result.clone());
        }
    }
}

fn sort(
    error: &openraft::error::RaftError<super::NodeId, openraft::error::CheckIsLeaderError<super::NodeId, super::Peer>>,
) -> SubmitError {
    use openraft::error::{CheckIsLeaderError, RaftError};
    match error {
        RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward)) => {
            SubmitError::NotLeader { leader: forward.leader_id.zip(forward.leader_node.clone()) }
        }
        RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_)) => SubmitError::NoQuorum,
        RaftError::Fatal(_) => SubmitError::NotLeader { leader: None },
    }
}
