//! A machine whose log and state lie on disks that lose their power at one moment.

use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use tempfile::TempDir;

use super::vfs;
use crate::db::log_store::Disk;

/// Two folders of one machine. The log's is in memory; the state's is a real one, of which the disk in memory knows what
/// would be left.
pub(super) struct Machine {
    pub log: Disk,
    state: Disk,
    folder: PathBuf,
    _root: TempDir,
}

impl Machine {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().canonicalize().unwrap();
        let log = Disk::default();
        let state = log.beside();
        vfs::mount(&folder, &state);
        Self { log, state, folder, _root: root }
    }

    /// The folder of the state.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// After so many more changes and syncs, of the log or of the state, the power is gone.
    pub fn power_for(&self, operations: u64) {
        self.log.power_for(operations);
    }

    /// From here on nothing reaches the disks: the process is being killed, or the power fails.
    pub fn go_dark(&self) {
        self.log.power_for(0);
    }

    pub fn is_dark(&self) -> bool {
        self.log.is_dark()
    }

    /// The process has ended and another one starts. Nobody may have a file open.
    pub fn restart_process(&self) {
        self.log.restart_process();
        self.state.restart_process();
        self.lay_out();
    }

    /// The power has failed and is back. Nobody may have a file open.
    pub fn lose_power(&self, rng: &mut StdRng) {
        self.log.lose_power(rng);
        self.state.lose_power(rng);
        self.lay_out();
    }

    /// Makes the real folder what the disk holds.
    fn lay_out(&self) {
        for entry in std::fs::read_dir(&self.folder).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        for name in self.state.names() {
            std::fs::write(self.folder.join(&name), self.state.contents(&name)).unwrap();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        vfs::unmount(&self.folder);
    }
}
