//! How this member's database is, from Raft's own metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use openraft::{RaftMetrics, ServerState};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::raft_types::{NodeId, Peer, Raft, Vote};
use super::writer::Shared;

/// What this member is in Raft's eyes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RaftState {
    /// It sequences the writes.
    Leader,
    /// It votes, and follows the leader.
    Follower,
    /// It asks to be elected.
    Candidate,
    /// It has the log, or will; it does not vote.
    Learner,
    /// It has stopped.
    Shutdown,
}

/// A look at the database of this member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// This member's Raft node id.
    pub node_id: NodeId,
    /// What it is now.
    pub state: RaftState,
    /// The term it is in.
    pub term: u64,
    /// Who leads, as far as it knows: none once it has not heard of the leader for a while.
    pub leader: Option<NodeId>,
    /// The index of the last entry in its log.
    pub last_log_index: u64,
    /// Up to where it has applied the log.
    pub applied_index: u64,
    /// As leader: a majority has answered lately. Otherwise: it has heard of the leader lately.
    pub has_quorum: bool,
    /// The nodes that vote.
    pub voters: BTreeSet<NodeId>,
    /// Whether a change of the voters was begun and not finished: a majority of the old and of the new ones is needed.
    pub is_joint: bool,
    /// The nodes that have the log and do not vote.
    pub learners: BTreeSet<NodeId>,
    /// Where all nodes are.
    pub nodes: BTreeMap<NodeId, Peer>,
}

impl Status {
    /// Whether this member leads.
    pub fn is_leader(&self) -> bool {
        self.state == RaftState::Leader && self.leader == Some(self.node_id)
    }

    /// Where the leader is, if one is known.
    pub fn leader_peer(&self) -> Option<&Peer> {
        self.nodes.get(&self.leader?)
    }

    pub(crate) fn is_shut_down(&self) -> bool {
        self.state == RaftState::Shutdown
    }

    /// The status in openraft's metrics. A leader that no majority has answered for `quorum_timeout` has no quorum, and
    /// neither has who has not heard of the leader for so long: one that does not vote goes on naming a leader for ever. And Raft's task,
    /// which waits for the disk, may not have looked yet at what a later leader has said: that one leads.
    pub(crate) fn from_metrics(metrics: &RaftMetrics<NodeId, Peer>, quorum_timeout: Duration, heard: &Heard) -> Status {
        let membership = metrics.membership_config.membership();
        let state = match metrics.state {
            _ if metrics.running_state.is_err() => RaftState::Shutdown,
            ServerState::Leader => RaftState::Leader,
            ServerState::Follower => RaftState::Follower,
            ServerState::Candidate => RaftState::Candidate,
            ServerState::Learner => RaftState::Learner,
            ServerState::Shutdown => RaftState::Shutdown,
        };
        let later = heard.leader().filter(|vote| *vote > metrics.vote && state != RaftState::Shutdown);
        let (state, current_leader, term) = match later {
            Some(vote) => {
                let state = if state == RaftState::Learner { state } else { RaftState::Follower };
                (state, vote.leader_id().voted_for(), vote.leader_id().term)
            }
            None => (state, metrics.current_leader, metrics.current_term),
        };
        let alone = membership.voter_ids().eq([metrics.id]);
        let has_quorum = match (state, metrics.millis_since_quorum_ack) {
            (RaftState::Leader, _) if alone => true,
            (RaftState::Leader, Some(millis)) => Duration::from_millis(millis) <= quorum_timeout,
            (RaftState::Leader, None) => false,
            _ => current_leader.is_some() && heard.is_within(quorum_timeout),
        };
        // One that is not heard of may lead no longer.
        let leader = current_leader.filter(|_| has_quorum || state == RaftState::Leader);
        Status {
            node_id: metrics.id,
            state,
            term,
            leader,
            last_log_index: metrics.last_log_index.unwrap_or(0),
            applied_index: metrics.last_applied.map_or(0, |log_id| log_id.index),
            has_quorum,
            voters: membership.voter_ids().collect(),
            is_joint: membership.get_joint_config().len() > 1,
            learners: membership.learner_ids().collect(),
            nodes: membership.nodes().map(|(id, peer)| (*id, peer.clone())).collect(),
        }
    }
}

/// When this member has last heard of its leader, and of which one.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    last: Mutex<Option<(Instant, Vote)>>,
    /// Told when one is heard of for the first time, or again.
    again: Notify,
}

impl Heard {
    /// It hears now of the one that `vote` has elected, unless it has heard of a later one.
    pub fn note(&self, vote: Vote) {
        let now = Instant::now();
        let mut last = self.lock();
        if last.is_some_and(|(_, of)| of > vote) {
            return;
        }
        let before = last.replace((now, vote));
        if before.is_none_or(|(at, of)| of != vote || now.duration_since(at) > LOOK) {
            self.again.notify_one();
        }
    }

    /// When that was.
    pub fn last(&self) -> Option<Instant> {
        self.lock().map(|(at, _)| at)
    }

    /// Which one that was.
    pub fn leader(&self) -> Option<Vote> {
        self.lock().map(|(_, vote)| vote).filter(Vote::is_committed)
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Instant, Vote)>> {
        // What the mutex holds is valid at every moment, also if a holder panicked.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_within(&self, time: Duration) -> bool {
        self.last().is_some_and(|heard| heard.elapsed() <= time)
    }
}

/// How often a quorum is looked for where there is none; only that the leader is heard of again is told.
const LOOK: Duration = Duration::from_millis(200);

/// How soon it is looked again, at the earliest.
const LOOK_MIN: Duration = Duration::from_millis(20);

/// After which time a look may show another quorum than `status` does, of which nothing tells. Nothing tells when it is lost either, but it is
/// not before the last answer or the last word of the leader is older than `quorum_timeout`. A leader's Raft may say nothing new since the last
/// look, when it was `acked` so long ago: it waits for the disk.
fn changes_after(status: &Status, acked: [Option<u64>; 2], quorum_timeout: Duration, heard: &Heard) -> Duration {
    let since = match (status.state, acked) {
        _ if !status.has_quorum => return LOOK,
        (RaftState::Leader, [before, now]) if before == now => return LOOK,
        (RaftState::Leader, [_, now]) => now.map(Duration::from_millis),
        _ => heard.last().map(|last| last.elapsed()),
    };
    quorum_timeout.checked_sub(since.unwrap_or_default()).map_or(LOOK, |left| left.max(LOOK_MIN))
}

/// Keeps `status` up to date until cancelled. Who leads, who is a member and whether there is a quorum is told at once;
/// indices alone would wake everybody at each write, so they are read from [`super::Database::status`] instead.
pub(crate) async fn watch_metrics(
    raft: Raft,
    status: watch::Sender<Status>,
    quorum_timeout: Duration,
    shared: Arc<Shared>,
    cancelled: CancellationToken,
) {
    let mut metrics = raft.metrics();
    let mut server_metrics = raft.server_metrics();
    let mut acked = None;
    loop {
        // openraft tells the change here first, and the whole a moment later.
        let server = server_metrics.borrow_and_update().clone();
        let caught_up = metrics.wait_for(|metrics| {
            (metrics.vote, metrics.state, metrics.current_leader) == (server.vote, server.state, server.current_leader)
                && metrics.membership_config == server.membership_config
        });
        let _ = tokio::time::timeout(LOOK, caught_up).await.map(|_| ());
        let (now, changes_after) = {
            let metrics = metrics.borrow();
            let now = Status::from_metrics(&metrics, quorum_timeout, &shared.heard);
            let acked_before = std::mem::replace(&mut acked, metrics.millis_since_quorum_ack);
            let after = changes_after(&now, [acked_before, acked], quorum_timeout, &shared.heard);
            (now, after)
        };
        let stopped = now.is_shut_down();
        status.send_if_modified(|before| {
            let tell = (before.state, before.term, before.leader, before.has_quorum)
                != (now.state, now.term, now.leader, now.has_quorum)
                || (&before.voters, &before.learners, &before.nodes) != (&now.voters, &now.learners, &now.nodes);
            *before = now;
            tell
        });
        if stopped {
            return;
        }
        tokio::select! {
            () = cancelled.cancelled() => {
                status.send_modify(|status| status.state = RaftState::Shutdown);
                return;
            }
            changed = server_metrics.changed() => if changed.is_err() {
                status.send_modify(|status| status.state = RaftState::Shutdown);
                return;
            },
            () = shared.heard.again.notified() => {}
            () = tokio::time::sleep(changes_after) => {}
        }
    }
}
