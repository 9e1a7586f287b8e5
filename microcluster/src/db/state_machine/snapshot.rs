//! Snapshots of the state: a view that a read transaction pins, copied page by page while writes go on, and
//! the file that one arrives in.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};

use crate::db::apply::{ApplyError, Position, read_position};
use crate::db::raft_types::{LogId, SnapshotMeta};
use crate::db::readers::{Readers, open_read_only};

/// How many pages are copied before the connection is released for a moment: 1 MiB.
const PAGES_PER_STEP: i32 = 256;
/// After how many steps the copy is brought onto stable storage: the disk must not find so much to write at once that the log waits.
const STEPS_PER_SYNC: usize = 8;
/// How much of a file is freed at once.
const BYTES_PER_REMOVAL: u64 = 32 << 20;

/// Why a snapshot could not be taken or copied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error("cannot read the state")]
    Sqlite(#[from] rusqlite::Error),
    #[error("cannot tell where the state stands")]
    Position(#[from] ApplyError),
    #[error("cannot write the snapshot's file")]
    Io(#[from] io::Error),
    #[error("the snapshot could not be taken: another copy of it panicked")]
    Poisoned,
}

/// A view of the state at one log index, held by an open read transaction.
#[derive(Debug)]
pub(crate) struct PinnedSnapshot {
    /// Behind a mutex because a connection may be used by one thread at a time.
    connection: Mutex<Connection>,
    position: Position,
}

impl PinnedSnapshot {
    /// Pins the state as it is now.
    pub fn take(readers: &Readers) -> Result<PinnedSnapshot, SnapshotError> {
        let connection = open_read_only(&readers.path())?;
        connection.execute_batch("BEGIN")?;
        let position = read_position(&connection)?;
        Ok(PinnedSnapshot { connection: Mutex::new(connection), position })
    }

    /// What openraft wants to know about it.
    pub fn meta(&self) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: self.position.last_applied,
            last_membership: self.position.membership.clone(),
            snapshot_id: snapshot_id(self.position.last_applied),
        }
    }

    /// Reads from the view.
    pub fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, SnapshotError> {
        Ok(read(&*self.connection.lock().map_err(|_| SnapshotError::Poisoned)?)?)
    }

    /// Copies the view into a file of its own in `dir`. Writes go on meanwhile.
    pub fn copy_to(&self, dir: &Path) -> Result<IncomingSnapshot, SnapshotError> {
        let copy = IncomingSnapshot::create(dir)?;
        let source = self.connection.lock().map_err(|_| SnapshotError::Poisoned)?;
        let mut target = Connection::open(copy.path())?;
        target.execute_batch("PRAGMA synchronous = OFF; PRAGMA journal_mode = OFF")?;
        let backup = Backup::new(&source, &mut target)?;
        let file = std::fs::File::open(copy.path())?;
        for step in 1.. {
            if backup.step(PAGES_PER_STEP)? != StepResult::More {
                break;
            }
            if step % STEPS_PER_SYNC == 0 {
                file.sync_data()?;
            }
        }
        drop(backup);
        target.close().map_err(|(_, error)| error)?;
        Ok(copy)
    }
}

/// A snapshot's file; removed when dropped, unless it was renamed into place before.
#[derive(Debug)]
pub(crate) struct IncomingSnapshot(PathBuf);

impl IncomingSnapshot {
    /// An empty file in `dir`.
    pub fn create(dir: &Path) -> io::Result<IncomingSnapshot> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let path = dir.join(format!("snapshot-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
        std::fs::File::create(&path)?;
        Ok(IncomingSnapshot(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Removes the file, piece by piece: a file system that frees a large one at once lets the log wait meanwhile (ext4 with
    /// `discard` 0.45 s for 1.2 GiB).
    pub fn remove(self) -> io::Result<()> {
        let file = std::fs::OpenOptions::new().write(true).open(&self.0)?;
        let mut left = file.metadata()?.len();
        while left > 0 {
            left = left.saturating_sub(BYTES_PER_REMOVAL);
            file.set_len(left)?;
            file.sync_data()?;
        }
        Ok(())
    }
}

impl Drop for IncomingSnapshot {
    fn drop(&mut self) {
        // Absent when it was renamed into place: that is its success.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Names a snapshot by where it stands: the same state is the same snapshot.
pub(crate) fn snapshot_id(last_applied: Option<LogId>) -> String {
    last_applied.map_or_else(|| "0".to_owned(), |log_id| format!("{}-{}", log_id.leader_id, log_id.index))
}
