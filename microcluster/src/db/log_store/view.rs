//! A log that is looked at and not changed, also while a daemon writes to it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::LogError;
use super::files::{Directory, LogFile, Storage};
use super::recovery;
use super::state::Shared;
use crate::db::raft_types::{Entry, LogId, Vote};

/// How often a log that looks damaged is read anew: what is read while it is written can look so.
const TRIES: u32 = 4;

/// What was in the log when it was opened.
pub(crate) struct LogView(Shared);

impl LogView {
    /// Reads the log in `dir`. Blocks.
    pub(crate) fn open(dir: &Path) -> Result<LogView, LogError> {
        let mut tries = 1;
        loop {
            let storage = Box::new(ReadOnly(Directory::at(dir)));
            match recovery::recover(&*storage) {
                Ok(recovered) => return Ok(LogView(Shared::new(storage, recovered.index, 0))),
                Err(error) if tries == TRIES => return Err(error),
                Err(_) => tries += 1,
            }
        }
    }

    /// The last vote.
    pub(crate) fn vote(&self) -> Option<Vote> {
        self.0.lock().vote()
    }

    /// Up to where the log was purged, and its last log id.
    pub(crate) fn ends(&self) -> (Option<LogId>, Option<LogId>) {
        self.0.lock().ends()
    }

    /// The entries of `range` that there are, from the first on as far as `bytes_max` goes; at least one, if there is one. Blocks.
    pub(crate) fn entries(&self, range: Range<u64>, bytes_max: u64) -> Result<Vec<Entry>, LogError> {
        let found = self.0.lock().find(self.0.storage(), range, bytes_max);
        found.read()
    }
}

/// A directory of segments in which nothing changes: what opening a log would clear away stays.
struct ReadOnly(Directory);

/// A segment that is read alone.
struct ReadOnlyFile(File);

impl Storage for ReadOnly {
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{name} is not created: the log is only read")))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        Ok(Arc::new(ReadOnlyFile(File::open(self.0.path(name))?)))
    }

    fn remove(&self, _name: &str) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }
}

impl LogFile for ReadOnlyFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }

    fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "the log is only read"))
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        // A torn end is left out by the reader, and left alone.
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
