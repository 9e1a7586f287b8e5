//! Holds a follower's log back while its state cannot follow: what is committed and not applied waits in memory, between Raft and the
//! writer thread, and that needs a bound.
//!
//! Where there is too much of it, new entries wait here, for less than a heartbeat. The leader is then told that they were not
//! taken, and sends them again: it sees a slow member, not a dead one.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::EntryPayload;
use openraft::error::RaftError;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};

use crate::db::raft_types::{Entry, NodeId, Raft, TypeConfig};
use crate::db::writer::Shared;

/// How many committed entries may wait to be applied.
pub(crate) const ENTRIES_MAX: u64 = 1_024;
/// How many bytes of them.
const BYTES_MAX: usize = 64 << 20;

/// What was given to Raft here and is not applied yet.
pub(crate) struct Backlog {
    /// How long entries wait.
    hold: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What a leader has said to be committed: it is applied without anything else.
    committed: u64,
    /// Index and bytes of the entries, in order. Those from before a restart are not among them.
    entries: VecDeque<(u64, usize)>,
    bytes: usize,
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
    ) -> Result<AppendEntriesResponse<NodeId>, RaftError<NodeId>> {
        let (vote, leader_commit) = (request.vote, request.leader_commit);
        // What is committed, and surely here if the request fits.
        let known = match (leader_commit, request.prev_log_id) {
            (Some(committed), Some(previous)) => self.note_committed(committed.index).min(previous.index),
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
                return Ok(AppendEntriesResponse::PartialSuccess(prev_log_id));
            }
        }
        self.note(&request.entries);
        raft.append_entries(request).await
    }

    fn note_committed(&self, committed: u64) -> u64 {
        let mut state = self.lock();
        state.committed = state.committed.max(committed);
        state.committed
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
            let bytes = command_bytes(entry);
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

fn command_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(command) => command.0.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use openraft::CommittedLeaderId;

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
        assert_eq!(backlog.note_committed(9), 9);
        assert_eq!(backlog.note_committed(7), 9, "what is committed stays committed");
    }
}
