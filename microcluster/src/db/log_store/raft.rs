//! The store behind openraft's traits.

use std::fmt::Debug;
use std::ops::{Bound, Range, RangeBounds};

use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{AnyError, OptionalSend, RaftLogReader};

use super::error::LogError;
use super::format::Mark;
use super::state::State;
use super::writer::{Change, Done};
use super::{Leading, LogReader, LogStore, Queued};
use crate::db::raft_types::{Entry, LogId, StorageError, StorageIOError, TypeConfig, Vote};

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        Ok(self.entries(indices(&range), u64::MAX).await.map_err(read_error)?)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        Ok(self.entries(start..end, self.read_bytes_max).await.map_err(read_error)?)
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        self.reader().try_get_log_entries(range).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.reader().limited_get_log_entries(start, end).await
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let (last_purged_log_id, last_log_id) = self.shared().lock().ends();
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        self.reader()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let change = |state: &mut State| Ok(Some((Mark::Vote(*vote), state.ticket())));
        Ok(self.change(change).await.map_err(|error| StorageIOError::write_vote(AnyError::new(&error)))?)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        let vote = self.shared().lock().vote();
        let own = self.leading.get().map(|leading| leading.node_id);
        Ok(vote.map(|vote| match vote.leader_id.voted_for() {
            led if led == own && vote.is_committed() => Vote::new(vote.leader_id.term, vote.leader_id.node_id),
            _ => vote,
        }))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut entries: Vec<Entry> = entries.into_iter().collect();
        let mut made = None;
        let queue = self.queue(|state| {
            if let (Some(leading), (_, Some(previous)), Some(vote)) = (self.leading.get(), state.ends(), state.vote())
                && leading.made(&vote, &entries)
            {
                made = Some((leading, vote, previous, entries.clone()));
            }
            let ticket = state.append(&mut entries)?;
            Ok(Some((Change::Append(entries), ticket, Done::Flushed(callback))))
        });
        let queued = queue.await.map_err(write_error)?;
        if let Some(((leading, vote, previous, entries), ticket)) = made.zip(queued) {
            (leading.on_queued)(Queued { vote, previous, entries: &entries, ticket });
        }
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        Ok(self.truncate_since(log_id.index).await.map_err(write_error)?)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        // openraft asks for this while a snapshot is still being installed. A crash in between would leave neither the
        // entries nor the state that holds them.
        self.wait_applied(log_id.index).await.map_err(write_error)?;
        let purge = |state: &mut State| Ok(state.purge(log_id).map(|ticket| (Mark::Purge(log_id), ticket)));
        let Some((ticket, durable)) = self.queue_mark(purge).await.map_err(write_error)? else { return Ok(()) };
        if let (Some(leading), Some(vote), Some(previous)) = (self.leading.get(), self.vote(), self.ends().1)
            && leading.made(&vote, &[])
        {
            (leading.on_queued)(Queued { vote, previous, entries: &[], ticket });
        }
        Ok(durable.wait().await.map_err(write_error)?)
    }
}

impl Leading {
    /// Whether the node leads in the term it is in, and has made these entries itself.
    fn made(&self, vote: &Vote, entries: &[Entry]) -> bool {
        vote.is_committed()
            && vote.leader_id.node_id == self.node_id
            && entries.iter().all(|entry| entry.log_id.leader_id == vote.leader_id)
    }
}

fn indices(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => last.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

fn read_error(error: LogError) -> StorageIOError {
    StorageIOError::read_logs(AnyError::new(&error))
}

fn write_error(error: LogError) -> StorageIOError {
    StorageIOError::write_logs(AnyError::new(&error))
}
