//! A leader whose connection has ended is replaced as soon as its lease is over.
//!
//! A leader that falls silent is waited for: its lease, then a random time that keeps two from standing at once. The end of its
//! connection says more than silence: its process is gone. Then nobody waits for the random time; the voters stand one after
//! the other instead. None of this weakens an election: who stands needs the votes of a majority as ever, and who has heard of
//! the leader during the lease does not vote.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::options::Timings;
use super::raft_types::{NodeId, Raft, Vote};
use super::writer::Shared;

/// When a voter stands for election, counted from when it has last heard of the leader that is gone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Succession {
    lease: Duration,
    /// One voter heard of the leader later than another one: its lease is over later.
    margin: Duration,
    /// Between one voter and the next.
    turn: Duration,
}

impl Succession {
    pub fn new(timings: &Timings) -> Succession {
        Succession { lease: timings.election.1, margin: timings.heartbeat / 2, turn: timings.heartbeat }
    }

    /// Stands for election after the leader of `vote`, whose connection has ended, unless it or another one is heard of.
    pub async fn stand(&self, node_id: NodeId, raft: &Raft, shared: &Shared, vote: Vote) {
        let leader = vote.leader_id.voted_for();
        let mut metrics = raft.metrics();
        let follows = metrics.borrow().vote == vote;
        let voters: Vec<NodeId> = metrics.borrow().membership_config.membership().voter_ids().collect();
        let place = place(&voters, leader, node_id);
        let heard = &shared.heard;
        let Some((place, last)) = place.zip(heard.last()).filter(|_| follows) else { return };
        let turn = last + self.lease + self.margin + self.turn * place;
        tokio::select! {
            // Somebody else stands.
            _ = metrics.wait_for(|now| now.vote != vote) => return,
            () = sleep_until(Instant::from_std(turn)) => {}
        }
        // One whose state is damaged must not decide what comes of writes.
        if heard.last() != Some(last) || shared.damage.borrow().is_some() {
            return;
        }
        tracing::info!(
            ?leader,
            "the leader's connection has ended and its lease is over: this member stands for election"
        );
        if let Err(error) = raft.trigger().elect().await {
            tracing::debug!(%error, "this member could not stand for election");
        }
    }
}

/// Which of the voters that are left a node is, counted from 0.
fn place(voters: &[NodeId], leader: Option<NodeId>, node_id: NodeId) -> Option<u32> {
    let mut left: Vec<NodeId> = voters.iter().copied().filter(|id| Some(*id) != leader).collect();
    left.sort_unstable();
    left.iter().position(|id| *id == node_id).and_then(|place| u32::try_from(place).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_voters_that_are_left_have_a_place_each() {
        let of = |node_id| place(&[3, 1, 7], Some(3), node_id);
        assert_eq!([1, 7, 3, 4].map(of), [Some(0), Some(1), None, None]);
    }
}
