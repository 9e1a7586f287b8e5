//! Who has not answered the leader's heartbeats for a while.
//!
//! One lost answer is nothing; a member counts as unreachable when it was asked several times in vain. Only what this leader
//! has seen in this term counts: another one begins anew, so a change of the leader moves nobody.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::db::NodeId;

/// So many heartbeats without an answer, one after the other, are needed,
const ROUNDS: u32 = 3;
/// and so much time between the first and the last: rounds can be asked for at any time.
const TIME: Duration = Duration::from_secs(1);

/// What the heartbeats of a term have shown.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    term: u64,
    silent: HashMap<NodeId, Silence>,
}

/// Heartbeats without an answer.
#[derive(Debug)]
struct Silence {
    since: Instant,
    last: Instant,
    rounds: u32,
}

impl Silence {
    fn is_long(&self) -> bool {
        self.rounds >= ROUNDS && self.last.saturating_duration_since(self.since) >= TIME
    }
}

impl Liveness {
    /// Notes one round: who was asked, and who has answered. Says whether others are unreachable now than before.
    pub fn note(&mut self, term: u64, asked: &[NodeId], alive: &[NodeId], now: Instant) -> bool {
        let before = self.unreachable(self.term);
        if self.term != term {
            *self = Liveness { term, silent: HashMap::new() };
        }
        self.silent.retain(|id, _| asked.contains(id) && !alive.contains(id));
        for id in asked.iter().filter(|id| !alive.contains(id)) {
            let silence = self.silent.entry(*id).or_insert(Silence { since: now, last: now, rounds: 0 });
            silence.rounds += 1;
            silence.last = now;
        }
        self.unreachable(term) != before
    }

    /// Notes that a member counts as unreachable until it answers a heartbeat.
    pub fn note_silent(&mut self, term: u64, id: NodeId, now: Instant) {
        if self.term != term {
            *self = Liveness { term, silent: HashMap::new() };
        }
        let since = now.checked_sub(TIME).unwrap_or(now);
        self.silent.insert(id, Silence { since, last: now, rounds: ROUNDS });
    }

    /// Who has been silent for long in this term.
    pub fn unreachable(&self, term: u64) -> BTreeSet<NodeId> {
        let is_of_term = self.term == term;
        let long = self.silent.iter().filter(|(_, silence)| is_of_term && silence.is_long());
        long.map(|(id, _)| *id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_rounds_without_an_answer_make_a_member_unreachable() {
        let (mut liveness, start) = (Liveness::default(), Instant::now() + TIME);
        liveness.note_silent(1, 3, start);
        assert_eq!(liveness.unreachable(1), BTreeSet::from([3]), "without any heartbeat");
        assert!(liveness.note(1, &[1, 2, 3], &[3], start), "and it answers");
        assert_eq!(liveness.unreachable(1), BTreeSet::new());
        let mut round = |term, alive: &[NodeId], seconds| {
            let changed = liveness.note(term, &[1, 2, 3], alive, start + Duration::from_secs(seconds));
            (changed, liveness.unreachable(term))
        };
        assert_eq!(round(1, &[1, 2], 0), (false, [].into()));
        assert_eq!(round(1, &[1, 2], 10), (false, [].into()));
        assert_eq!(round(1, &[1, 2], 20), (true, [3].into()));
        assert_eq!(round(1, &[1, 2], 30), (false, [3].into()));
        assert_eq!(round(1, &[1, 2, 3], 40), (true, [].into()), "it is back");
        assert_eq!(round(1, &[1, 3], 50), (false, [].into()));
        assert_eq!(round(1, &[1, 2, 3], 60), (false, [].into()));
        assert_eq!(round(1, &[1, 3], 70), (false, [].into()), "it is counted from the beginning");
    }

    #[test]
    fn rounds_at_the_same_moment_are_one_look() {
        let (mut liveness, start) = (Liveness::default(), Instant::now());
        for _ in 0..ROUNDS {
            assert!(!liveness.note(1, &[1, 2], &[1], start));
        }
        assert!(liveness.note(1, &[1, 2], &[1], start + TIME));
    }

    #[test]
    fn another_term_begins_anew() {
        let (mut liveness, start) = (Liveness::default(), Instant::now());
        for round in 0..ROUNDS {
            liveness.note(1, &[1, 2], &[1], start + TIME * round);
        }
        assert_eq!(liveness.unreachable(1), [2].into());
        assert_eq!(liveness.unreachable(2), [].into());
        assert!(liveness.note(2, &[1, 2], &[1], start + TIME * ROUNDS));
        assert_eq!(liveness.unreachable(2), [].into());
    }
}
