//! Holds a follower's log back while its state cannot follow: what is committed and not applied waits in memory, between Raft and the
//! writer thread, and that needs a bound.
//!
//! Where there is too much of it, new entries wait here, for less than a heartbeat. The leader is then told that they were not
//! taken, and sends them again: it sees a slow member, not a dead one. While nothing at all is applied it is told of an error now and then,
//! or it would keep its log for what it believes to be on its way.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use openraft::error::RaftError;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};

use crate::db::entry_codec::payload_bytes;
use crate::db::raft_types::{Entry, NodeId, Raft, TypeConfig};
use crate::db::writer::Shared;

/// How many committed entries may wait to be applied.
pub(crate) const ENTRIES_MAX: u64 = 1_024;
/// How many bytes of them.
const BYTES_MAX: usize = 64 << 20;

/// After how long without a step forward the leader is told of an error, once.
const STUCK: Duration = Duration::from_secs(5);

/// What was given to Raft here and is not applied yet.
pub(crate) struct Backlog {
    /// How long entries wait.
    hold: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Index and bytes of the entries, in order. Those from before a restart are not among them.
    entries: VecDeque<(u64, usize)>,
    bytes: usize,
    /// Up to where the log was applied when entries had to wait last, and since when it is, or since when that was told.
    stuck: Option<(u64, Instant)>,
}

/// Why entries were not given to Raft, or what it made of them.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BacklogError {
    #[error(transparent)]
    Raft(Box<RaftError<NodeId>>),
    #[error("this member has applied nothing of its log for {STUCK:?}")]
    Stuck,
}

impl From<RaftError<NodeId>> for BacklogError {
    fn from(error: RaftError<NodeId>) -> Self {
        BacklogError::Raft(Box::new(error))
    }
}

impl Backlog {
    /// Nothing waits. A follower has to hear more often than every `heartbeat` of its leader.
    pub fn new(heartbeat: Duration) -> Backlog {
        Backlog { hold: heartbeat / 2, state: Mutex::default() }
    }

    /// Gives the entries to Raft, once there is room.
    pub async fn append(
        &self,
        raft: &Raft,
        shared: &Shared,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> Result<AppendEntriesResponse<NodeId>, BacklogError> {
        let (vote, leader_commit) = (request.vote, request.leader_commit);
        // What this leader says to be committed, and what is surely here if the request fits: it will be applied without anything else.
        // What an earlier one has said is no help, for Raft does not remember it either.
        let known = match (leader_commit, request.prev_log_id) {
            (Some(committed), Some(previous)) => committed.index.min(previous.index),
            _ => 0,
        };
        if !request.entries.is_empty() && self.is_full(*shared.applied.borrow(), known) {
            // That the leader is there, and what is committed, is heard at once; also whether the entries fit.
            let prev_log_id = request.prev_log_id;
            let empty = AppendEntriesRequest { vote, prev_log_id, leader_commit, entries: Vec::new() };
            let response = raft.append_entries(empty).await?;
            if !matches!(response, AppendEntriesResponse::Success) {
                return Ok(response);
            }
            let mut applied = shared.applied.subscribe();
            let room = applied.wait_for(|applied| !self.is_full(*applied, known));
            if !matches!(tokio::time::timeout(self.hold, room).await, Ok(Ok(_))) {
                let now_applied = *shared.applied.borrow();
                return match self.is_stuck(now_applied, Instant::now()) {
                    true => Err(BacklogError::Stuck),
                    false => Ok(AppendEntriesResponse::PartialSuccess(prev_log_id)),
                };
            }
        }
        self.note(&request.entries);
        Ok(raft.append_entries(request).await?)
    }

    /// Whether nothing was applied for long, and that was not told meanwhile.
    fn is_stuck(&self, applied: u64, now: Instant) -> bool {
        let mut state = self.lock();
        let since = state.stuck.filter(|(at, _)| *at == applied).map_or(now, |(_, since)| since);
        let is_stuck = now.saturating_duration_since(since) >= STUCK;
        state.stuck = Some((applied, if is_stuck { now } else { since }));
        is_stuck
    }

    fn note(&self, entries: &[Entry]) {
        let mut state = self.lock();
        for entry in entries {
            let index = entry.log_id.index;
            // It takes the place of what another leader has left there.
            while let Some(&(last, bytes)) = state.entries.back()
                && last >= index
            {
                state.entries.pop_back();
                state.bytes -= bytes;
            }
            let bytes = payload_bytes(entry);
            state.entries.push_back((index, bytes));
            state.bytes += bytes;
        }
    }

    /// Whether too much waits, when the state stands at `applied` and the entries up to `known` are committed.
    fn is_full(&self, applied: u64, known: u64) -> bool {
        let mut state = self.lock();
        while let Some(&(first, bytes)) = state.entries.front()
            && first <= applied
        {
            state.entries.pop_front();
            state.bytes -= bytes;
        }
        if known.saturating_sub(applied) > ENTRIES_MAX {
            return true;
        }
        if state.bytes <= BYTES_MAX {
            return false;
        }
        // What is not committed may never be applied: nothing must wait for that.
        let open = state.entries.iter().rev().take_while(|(index, _)| *index > known);
        state.bytes - open.map(|(_, bytes)| bytes).sum::<usize>() > BYTES_MAX
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What the mutex holds is valid at every moment, also if a holder panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use openraft::{CommittedLeaderId, EntryPayload};

    use super::*;
    use crate::db::raft_types::{Command, LogId};

    fn entries(indices: std::ops::RangeInclusive<u64>, bytes: usize) -> Vec<Entry> {
        let payload = || EntryPayload::Normal(Command(vec![0; bytes].into()));
        indices
            .map(|index| Entry { log_id: LogId::new(CommittedLeaderId::new(1, 1), index), payload: payload() })
            .collect()
    }

    #[test]
    fn committed_entries_and_their_bytes_are_counted_until_they_are_applied() {
        let backlog = Backlog::new(Duration::ZERO);
        backlog.note(&entries(1..=80, 1 << 20));
        assert!(!backlog.is_full(0, 64), "what is not committed does not count");
        assert!(backlog.is_full(0, 65));
        assert!(backlog.is_full(10, 80));
        assert!(!backlog.is_full(16, 80));
        // Another leader's entries take the place of those that were not committed.
        backlog.note(&entries(70..=140, 0));
        assert_eq!(backlog.lock().bytes, (69 - 16) << 20);
        assert!(!backlog.is_full(16, 140));
        assert_eq!(backlog.lock().entries.len(), 140 - 16);
        assert!(!backlog.is_full(140, 140));
        assert!(backlog.lock().entries.is_empty());
        assert_eq!(backlog.lock().bytes, 0);
        // After a restart nobody knows their bytes; how many they are is known.
        assert!(backlog.is_full(140, 141 + ENTRIES_MAX));
        assert!(!backlog.is_full(141, 141 + ENTRIES_MAX));
    }

    #[test]
    fn that_nothing_is_applied_is_told_now_and_then() {
        let (backlog, now) = (Backlog::new(Duration::ZERO), Instant::now());
        assert!(!backlog.is_stuck(7, now));
        assert!(!backlog.is_stuck(7, now + STUCK / 2));
        assert!(backlog.is_stuck(7, now + STUCK));
        assert!(!backlog.is_stuck(7, now + STUCK * 3 / 2), "it was told");
        assert!(backlog.is_stuck(7, now + STUCK * 2));
        assert!(!backlog.is_stuck(8, now + STUCK * 4), "it goes on");
        assert!(!backlog.is_stuck(9, now + STUCK * 9));
    }
}
