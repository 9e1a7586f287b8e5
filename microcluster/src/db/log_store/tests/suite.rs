//! openraft's own test suite over the log, with a state machine that keeps all in memory.

use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use openraft::testing::{StoreBuilder, Suite};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use tempfile::TempDir;

use super::{LogOptions, LogStore, tiny};
use crate::db::raft_types::{
    Applied, Entry, LogId, Snapshot, SnapshotFile, SnapshotMeta, StorageError, StoredMembership, TemporaryFile,
    TypeConfig,
};

#[test]
fn openraft_suite_passes_with_production_sizes() {
    Suite::test_all(Builder(LogOptions::default())).unwrap();
}

#[test]
fn openraft_suite_passes_when_everything_is_read_from_small_segments() {
    let options = LogOptions { segment_bytes: 100, cache_bytes: 0, ..tiny() };
    Suite::test_all(Builder(options)).unwrap();
}

struct Builder(LogOptions);

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError> {
        let dir = TempDir::new().unwrap();
        let log = LogStore::open(&dir.path().join("log"), self.0.clone()).unwrap();
        Ok((dir, log, Machine::default()))
    }
}

/// Remembers what was applied last; there is nothing else in it.
#[derive(Clone, Default)]
struct Machine {
    applied: Option<LogId>,
    membership: StoredMembership,
    snapshot: Option<Snapshot>,
}

impl Machine {
    fn file() -> Box<SnapshotFile> {
        // Never created: there is nothing to put into it.
        Box::new(SnapshotFile(Arc::new(TemporaryFile("/nonexistent/snapshot".into()))))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let meta = SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
            snapshot_id: format!("{:?}", self.applied),
        };
        Ok(Snapshot { meta, snapshot: Self::file() })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut answers = Vec::new();
        for entry in entries {
            self.applied = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = entry.payload {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
            answers.push(Applied);
        }
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        let mut builder = self.clone();
        self.snapshot = builder.build_snapshot().await.ok();
        builder
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotFile>, StorageError> {
        Ok(Self::file())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Box<SnapshotFile>) -> Result<(), StorageError> {
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.snapshot = Some(Snapshot { meta: meta.clone(), snapshot });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        Ok(self.snapshot.clone())
    }
}
