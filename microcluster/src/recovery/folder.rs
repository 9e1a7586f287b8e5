//! The folder in which a recovered database is made, and how it takes the place of the old one.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::config::MemberConfig;
use crate::db::recovery::RecoveryMark;
use crate::state_dir::{
    FileError, MODE_PUBLIC, StateDir, failed, remove_directory, remove_file, sync_directory, write_file,
};

const DATABASE: &str = "database";
const CONFIG: &str = "daemon.yaml";
const ARCHIVE: &str = "recovery_db.tar.gz";
const MARK: &str = "last_recovery.json";
/// Where the old database goes, to be removed.
const REPLACED: &str = "replaced";

/// The folder of a recovery that is not decided. It goes when this is dropped.
#[derive(Debug)]
pub(super) struct Staging(PathBuf);

impl Staging {
    /// An empty folder, in place of one that a crash has left.
    pub fn begin(dir: &StateDir) -> Result<Staging, FileError> {
        let path = dir.recovering();
        remove_directory(&path)?;
        DirBuilder::new().mode(0o700).create(&path).map_err(failed("create", &path))?;
        Ok(Staging(path))
    }

    /// The database to be.
    pub fn database(&self) -> PathBuf {
        self.0.join(DATABASE)
    }

    /// The archive to be.
    pub fn archive(&self) -> PathBuf {
        self.0.join(ARCHIVE)
    }

    /// The configuration of the member to be.
    pub fn put_config(&self, config: &MemberConfig) -> Result<(), FileError> {
        let path = self.0.join(CONFIG);
        let text = serde_norway::to_string(config).map_err(|e| failed("write", &path)(std::io::Error::other(e)))?;
        write_file(&path, text.as_bytes(), MODE_PUBLIC)
    }

    /// Which recovery the member to be has gone through.
    pub fn put_mark(&self, recovery: RecoveryMark) -> Result<(), FileError> {
        let path = self.0.join(MARK);
        let text = serde_json::to_vec(&recovery).map_err(|e| failed("write", &path)(e.into()))?;
        write_file(&path, &text, MODE_PUBLIC)
    }

    /// Everything in it is complete and on stable storage: from here on it is what the member is. [`finish`] is to follow. After an
    /// error nothing is decided.
    pub fn decide(self, dir: &StateDir) -> Result<(), FileError> {
        sync_directory(&self.0)?;
        fs::rename(&self.0, dir.recovered()).map_err(failed("rename", &self.0))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Gone if it was decided; what stays behind else is removed by the next start.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Finishes a recovery that was decided, and removes one that was not. May be interrupted and repeated.
pub(crate) fn finish(dir: &StateDir) -> Result<(), FileError> {
    remove_directory(&dir.recovering())?;
    let recovered = dir.recovered();
    if !recovered.exists() {
        return Ok(());
    }
    // The rename that has decided it is on stable storage before anything else changes.
    sync_directory(dir.path())?;
    if recovered.join(DATABASE).exists() {
        if dir.database().exists() {
            // There is none from an earlier try: once the old one is in there, none is left in its place.
            let replaced = recovered.join(REPLACED);
            fs::rename(dir.database(), &replaced).map_err(failed("rename", &dir.database()))?;
            sync_directory(&recovered)?;
        }
        move_into(&recovered.join(DATABASE), &dir.database(), dir)?;
    }
    // Of a rebuild that was under way: this takes its place.
    remove_file(&dir.join_record())?;
    let places = [(CONFIG, dir.daemon_config()), (ARCHIVE, dir.recovery_archive()), (MARK, dir.last_recovery())];
    for (name, place) in places {
        if recovered.join(name).exists() {
            move_into(&recovered.join(name), &place, dir)?;
        }
    }
    remove_directory(&recovered)?;
    sync_directory(dir.path())
}

fn move_into(from: &Path, to: &Path, dir: &StateDir) -> Result<(), FileError> {
    fs::rename(from, to).map_err(failed("rename", from))?;
    sync_directory(dir.path())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn put(path: &Path, content: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn get(path: PathBuf) -> String {
        fs::read_to_string(path).unwrap_or_default()
    }

    /// A state directory with a recovery in `recovering` or `recovered`.
    fn with_recovery(name: &str) -> (tempfile::TempDir, StateDir) {
        let parent = tempfile::tempdir().unwrap();
        let dir = StateDir::open(parent.path()).unwrap();
        put(&dir.database().join("file"), "old");
        put(&dir.daemon_config(), "old");
        let made = dir.path().join(name);
        put(&made.join("database/file"), "new");
        put(&made.join("daemon.yaml"), "new");
        put(&made.join("recovery_db.tar.gz"), "new");
        put(&made.join("last_recovery.json"), "new");
        put(&dir.join_record(), "old");
        (parent, dir)
    }

    fn state(dir: &StateDir) -> [String; 5] {
        let database = dir.database().join("file");
        [database, dir.daemon_config(), dir.recovery_archive(), dir.last_recovery(), dir.join_record()].map(get)
    }

    #[test]
    fn what_was_not_decided_is_as_if_it_had_never_been() {
        let (_parent, dir) = with_recovery("recovering");
        finish(&dir).unwrap();
        assert_eq!(state(&dir), ["old", "old", "", "", "old"]);
        assert!(!dir.recovering().exists());
    }

    /// Each state that a crash can leave between two steps.
    #[test]
    fn what_was_decided_is_finished_from_every_step() {
        let rename = |dir: &StateDir, from: &str, to: &str| {
            fs::rename(dir.path().join(from), dir.path().join(to)).unwrap();
        };
        let steps = [
            ("database", "recovered/replaced"),
            ("recovered/database", "database"),
            ("recovered/daemon.yaml", "daemon.yaml"),
            ("recovered/recovery_db.tar.gz", "recovery_db.tar.gz"),
            ("recovered/last_recovery.json", "last_recovery.json"),
        ];
        for done in 0..=steps.len() {
            let (_parent, dir) = with_recovery("recovered");
            for (from, to) in &steps[..done] {
                rename(&dir, from, to);
            }
            for _ in 0..2 {
                finish(&dir).unwrap();
                assert_eq!(state(&dir), ["new", "new", "new", "new", ""], "after {done} steps");
                assert!(!dir.recovered().exists());
            }
        }
        let (_parent, dir) = with_recovery("recovered");
        finish(&dir).unwrap();
        fs::create_dir(dir.recovered()).unwrap();
        finish(&dir).unwrap();
        assert_eq!(state(&dir), ["new", "new", "new", "new", ""], "while the rest was removed");
    }
}
