//! openraft's view of the state: apply, snapshots.

mod snapshot;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use openraft::{AnyError, ErrorSubject, ErrorVerb, OptionalSend, RaftSnapshotBuilder};

use super::raft_types::{
    Applied, Entry, LogId, Snapshot, SnapshotData, SnapshotMeta, StorageError, StorageIOError, StoredMembership,
    TypeConfig,
};
use super::writer::{Shared, Writer, WriterError};

pub(crate) use snapshot::{IncomingSnapshot, PinnedSnapshot, SnapshotError};

/// The SQLite state behind openraft's trait.
#[derive(Clone)]
pub(crate) struct StateMachine {
    writer: Arc<Writer>,
    shared: Arc<Shared>,
    dir: PathBuf,
    found: Option<LogId>,
}

impl StateMachine {
    /// Opens the state in `dir` and starts its writer thread. Blocks.
    pub fn open(dir: &Path) -> Result<StateMachine, WriterError> {
        let (writer, shared, position) = Writer::start(dir)?;
        let found = position.last_applied;
        Ok(StateMachine { writer: Arc::new(writer), shared, dir: dir.to_owned(), found })
    }

    /// What the writer thread shares.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The last log id that was applied when the state was opened.
    pub fn found(&self) -> Option<LogId> {
        self.found
    }

    /// The writer thread.
    pub fn writer(&self) -> &Arc<Writer> {
        &self.writer
    }

    /// The folder of the state.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    async fn pinned(&self) -> Result<Snapshot, StorageError> {
        let shared = Arc::clone(&self.shared);
        let pinned = tokio::task::spawn_blocking(move || PinnedSnapshot::take(&shared.readers))
            .await
            .map_err(io::Error::other)
            .map_err(|error| StorageIOError::read_snapshot(None, AnyError::new(&error)))?
            .map_err(|error| StorageIOError::read_snapshot(None, AnyError::new(&error)))?;
        let meta = pinned.meta();
        Ok(Snapshot { meta, snapshot: Box::new(SnapshotData::Pinned(Arc::new(pinned))) })
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let position =
            self.writer.position().await.map_err(|error| StorageIOError::read_state_machine(AnyError::new(&error)))?;
        Ok((position.last_applied, position.membership))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let count = entries.len();
        self.writer.apply(entries).await.map_err(|error| StorageIOError::write_state_machine(AnyError::new(&error)))?;
        Ok(vec![Applied; count])
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotData>, StorageError> {
        let incoming = IncomingSnapshot::create(&self.dir)
            .map_err(|error| StorageError::from_io_error(ErrorSubject::Snapshot(None), ErrorVerb::Write, error))?;
        Ok(Box::new(SnapshotData::Incoming(Arc::new(incoming))))
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Box<SnapshotData>) -> Result<(), StorageError> {
        let failed = |error: AnyError| StorageIOError::write_snapshot(Some(meta.signature()), error);
        let incoming = match *snapshot {
            SnapshotData::Incoming(incoming) => incoming,
            SnapshotData::Pinned(pinned) => {
                let dir = self.dir.clone();
                let copied = tokio::task::spawn_blocking(move || pinned.copy_to(&dir))
                    .await
                    .map_err(|error| failed(AnyError::new(&error)))?;
                Arc::new(copied.map_err(|error| failed(AnyError::new(&error)))?)
            }
        };
        let index = meta.last_log_id.map_or(0, |log_id| log_id.index);
        let position = self
            .writer
            .install(incoming.path().to_owned(), index)
            .await
            .map_err(|error| failed(AnyError::new(&error)))?;
        if position.last_applied != meta.last_log_id {
            let found = position.last_applied;
            return Err(failed(AnyError::error(format!(
                "the snapshot's file stands at {found:?}, not where it was announced"
            )))
            .into());
        }
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let snapshot = self.pinned().await?;
        // Before the first entry there is nothing to send.
        Ok(snapshot.meta.last_log_id.is_some().then_some(snapshot))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    /// The state file is the snapshot: it is enough to bring it onto stable storage. The log is purged only behind this.
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let synced =
            self.writer.sync().await.map_err(|error| StorageIOError::write_snapshot(None, AnyError::new(&error)))?;
        let mut snapshot = self.pinned().await?;
        // The view may be newer than what was synced; the log may go only up to the synced index.
        snapshot.meta.last_log_id = synced.last_applied;
        snapshot.meta.last_membership = synced.membership;
        snapshot.meta.snapshot_id = snapshot::snapshot_id(snapshot.meta.last_log_id);
        Ok(snapshot)
    }
}
