//! The state directory: its layout, its lock, and files that are replaced atomically.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::FlockOperation;

use crate::steps;

const LOCK: &str = "daemon.lock";
const RESET_MARKER: &str = "resetting";
/// Extension of the file that holds a key pair while it is put into its files.
const PENDING: &str = "pair";
/// Extension of the mark of a key pair that came from the cluster.
const SHARED: &str = "shared";

/// How the names of backups begin and end.
const BACKUP_PREFIX: &str = "db_backup.";
const BACKUP: &str = "tar.gz";

/// What the marker says when the database is to be left aside.
const KEEP_DATABASE: &str = "keep the database";

/// Where the files of a member are left that has found out that it was removed.
const REMOVED: &str = "database.removed";
/// Where the files of a member that was rebuilt are left.
const DAMAGED: &str = "database.damaged";

/// Mode of a file with a key or another secret.
pub(crate) const MODE_SECRET: u32 = 0o600;
/// Mode of a file that is no secret.
pub(crate) const MODE_PUBLIC: u32 = 0o644;
/// Mode of directories: the socket inside can be reached, nothing can be listed.
const MODE_DIRECTORY: u32 = 0o711;

/// A state directory that this process holds. Clones share the lock; it is released with the last one.
#[derive(Clone, Debug)]
pub(crate) struct StateDir {
    path: Arc<PathBuf>,
    /// Held for its lock alone.
    _lock: Arc<File>,
    /// One key pair is replaced at a time.
    installing: Arc<Mutex<()>>,
}

/// Where a key pair and what belongs to it is.
#[derive(Clone, Debug)]
pub(crate) struct KeyPairPaths {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// The authority that signed the certificate; absent where there is none.
    pub authority: PathBuf,
    /// What is being put into these files, until it is in all of them.
    pub pending: PathBuf,
    /// Marks a pair that came from the cluster: it goes with the cluster.
    pub shared: PathBuf,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("the state directory {} is in use by another daemon; stop that one or choose another --state-dir", .path.display())]
    Held { path: PathBuf },
    #[error("cannot use the state directory {}", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A file of the state directory cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", .path.display())]
pub(crate) struct FileError {
    pub action: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

impl StateDir {
    /// Creates the directory where it is missing, and takes its lock.
    pub fn open(path: &Path) -> Result<StateDir, OpenError> {
        let io = |source| OpenError::Io { path: path.into(), source };
        create_directory(path).map_err(io)?;
        // Absolute, so that it stays the same directory whatever becomes of the working directory.
        let path = fs::canonicalize(path).map_err(io)?;
        let io = |source| OpenError::Io { path: path.clone(), source };
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(MODE_SECRET)
            .open(path.join(LOCK))
            .map_err(io)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(OpenError::Held { path }),
            Err(errno) => return Err(io(errno.into())),
        }
        let directories = ["truststore", "certificates"].map(|name| path.join(name));
        for directory in &directories {
            create_directory(directory).map_err(io)?;
        }
        for directory in directories.iter().chain([&path]) {
            sweep(directory).map_err(io)?;
        }
        Ok(StateDir { path: Arc::new(path), _lock: Arc::new(lock), installing: Arc::default() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn control_socket(&self) -> PathBuf {
        self.path.join("control.socket")
    }

    pub fn daemon_config(&self) -> PathBuf {
        self.path.join("daemon.yaml")
    }

    /// The record of a join that is under way.
    pub fn join_record(&self) -> PathBuf {
        self.path.join("joining.json")
    }

    pub fn database(&self) -> PathBuf {
        self.path.join("database")
    }

    /// What a member's database is rebuilt from that another one has recovered.
    pub fn recovery_archive(&self) -> PathBuf {
        self.path.join("recovery_db.tar.gz")
    }

    /// Where such a file is left that must not be taken.
    pub fn refused_archive(&self) -> PathBuf {
        self.path.join("recovery_db.refused.tar.gz")
    }

    /// A backup of the database before a recovery, by what tells it from others.
    pub fn backup(&self, which: &str) -> PathBuf {
        self.path.join(format!("{BACKUP_PREFIX}{which}.{BACKUP}"))
    }

    /// Which recovery this member has gone through last; outside of the database, which may be lost.
    pub fn last_recovery(&self) -> PathBuf {
        self.path.join("last_recovery.json")
    }

    /// Where a recovered database is made.
    pub fn recovering(&self) -> PathBuf {
        self.path.join("recovering")
    }

    /// Where a recovered database is complete, until all of it is in its place.
    pub fn recovered(&self) -> PathBuf {
        self.path.join("recovered")
    }

    pub fn truststore(&self) -> PathBuf {
        self.path.join("truststore")
    }

    pub fn certificates(&self) -> PathBuf {
        self.path.join("certificates")
    }

    /// The names of the certificates in it.
    pub fn certificate_names(&self) -> Result<Vec<String>, FileError> {
        stems(&self.certificates(), "crt")
    }

    /// The key pair of that name: `server`, `cluster`, or that of an additional server.
    pub fn key_pair(&self, name: &str) -> KeyPairPaths {
        let directory = match name {
            "server" | "cluster" => self.path.to_path_buf(),
            _ => self.certificates(),
        };
        let file = |extension: &str| directory.join(format!("{name}.{extension}"));
        KeyPairPaths {
            certificate: file("crt"),
            key: file("key"),
            authority: file("ca"),
            pending: file(PENDING),
            shared: file(SHARED),
        }
    }

    /// The names of the key pairs whose replacement a crash interrupted.
    pub fn pending_key_pairs(&self) -> Result<Vec<String>, FileError> {
        let mut names = stems(&self.certificates(), PENDING)?;
        names.extend(stems(&self.path, PENDING)?);
        Ok(names)
    }

    /// Whoever replaces a key pair holds this.
    pub fn installing(&self) -> MutexGuard<'_, ()> {
        // It guards files, and those are whole at every moment.
        self.installing.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Leaves a damaged database aside, where it can be looked at, in place of an earlier one. There may be none.
    pub fn set_database_aside(&self) -> Result<(), FileError> {
        let (database, aside) = (self.database(), self.path.join(DAMAGED));
        if database.exists() {
            let has_log = fs::read_dir(database.join("log")).is_ok_and(|mut files| files.next().is_some());
            if aside.exists() && !has_log {
                // It was made after what is aside already, by a start in between.
                remove_directory(&database)?;
            } else {
                remove_directory(&aside)?;
                fs::rename(&database, &aside).map_err(failed("rename", &database))?;
            }
        }
        sync_directory(&self.path)
    }

    /// Whether the reset of an earlier run has not been finished.
    pub fn is_resetting(&self) -> bool {
        self.path.join(RESET_MARKER).exists()
    }

    /// Decides that all that belongs to a cluster goes: from here on it goes, now or at the next start.
    pub fn mark_reset(&self) -> Result<(), FileError> {
        write_file(&self.path.join(RESET_MARKER), b"", MODE_PUBLIC)
    }

    /// The same, but for the database: it is left in `database.removed`, in place of an earlier one, and no reset touches it
    /// there.
    pub fn mark_reset_keeping_database(&self) -> Result<(), FileError> {
        write_file(&self.path.join(RESET_MARKER), KEEP_DATABASE.as_bytes(), MODE_PUBLIC)
    }

    /// Removes all that belongs to a cluster; the member's own identity stays. A marker makes a
    /// reset that was interrupted continue at the next start: half of a member must not come back.
    pub fn reset(&self) -> Result<(), FileError> {
        let marker = self.path.join(RESET_MARKER);
        let decided = read_file(&marker)?;
        if decided.is_none() {
            self.mark_reset()?;
        }
        if decided.as_deref() == Some(KEEP_DATABASE) && self.database().exists() {
            let kept = self.path.join(REMOVED);
            remove_directory(&kept)?;
            fs::rename(self.database(), &kept).map_err(failed("rename", &self.database()))?;
            sync_directory(&self.path)?;
        }
        let _installing = self.installing();
        remove_file(&self.daemon_config())?;
        steps::reached("configuration removed", &self.path);
        remove_file(&self.join_record())?;
        for file in [self.recovery_archive(), self.refused_archive(), self.last_recovery()] {
            remove_file(&file)?;
        }
        // They hold the cluster's key as the database does; where that is kept, so are they.
        if decided.as_deref() != Some(KEEP_DATABASE) {
            for backup in stems(&self.path, BACKUP)?.iter().filter(|name| name.starts_with(BACKUP_PREFIX)) {
                remove_file(&self.path.join(format!("{backup}.{BACKUP}")))?;
            }
        }
        let shared = stems(&self.certificates(), SHARED)?;
        for name in shared.iter().map(String::as_str).chain(["cluster"]) {
            let KeyPairPaths { certificate, key, authority, pending, shared } = self.key_pair(name);
            // The mark is the last to go: what is left is found again.
            for file in [&pending, &certificate, &key, &authority, &shared] {
                remove_file(file)?;
            }
        }
        for directory in [&self.certificates(), &*self.path] {
            sweep(directory).map_err(failed("clear", directory))?;
        }
        let recovery = [self.recovering(), self.recovered()];
        for directory in [self.truststore(), self.database(), self.path.join(DAMAGED)].into_iter().chain(recovery) {
            remove_directory(&directory)?;
        }
        steps::reached("database removed", &self.path);
        let truststore = self.truststore();
        create_directory(&truststore).map_err(failed("create", &truststore))?;
        sync_directory(&self.path)?;
        remove_file(&marker)?;
        sync_directory(&self.path)
    }
}

/// Replaces a file so that after a crash either the old or the new content is there, never a mix.
pub(crate) fn write_file(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    let name = path.file_name().unwrap_or_else(|| OsStr::new("file"));
    let mut temporary_name = OsStr::new(".").to_owned();
    temporary_name.push(name);
    temporary_name.push(".new");
    let temporary = path.with_file_name(temporary_name);
    let write = || {
        // One left by a crash could have another mode.
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(failed("write", path))?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

/// The file's text, `None` when there is no such file.
pub(crate) fn read_file(path: &Path) -> Result<Option<String>, FileError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("read", path)(e)),
    }
}

/// Removes a file that may be absent.
pub(crate) fn remove_file(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Makes creations, renames and removals in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(failed("sync", path))
}

/// Removes a directory that may be absent.
pub(crate) fn remove_directory(path: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Removes what a crash in [`write_file`] has left: it may be half a key.
fn sweep(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_temporary = name.to_str().is_some_and(|name| name.starts_with('.') && name.ends_with(".new"));
        if is_temporary && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The names of the files with that extension, without it.
fn stems(directory: &Path, extension: &str) -> Result<Vec<String>, FileError> {
    let error = failed("read", directory);
    let mut stems = Vec::new();
    for entry in fs::read_dir(directory).map_err(&error)? {
        let name = entry.map_err(&error)?.file_name();
        let stem = name.to_str().and_then(|name| name.strip_suffix(extension)?.strip_suffix('.'));
        stems.extend(stem.map(str::to_owned));
    }
    Ok(stems)
}

/// Creates a directory and tightens one that is more open than it should be.
fn create_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(MODE_DIRECTORY).create(path)?;
    let mode = fs::metadata(path)?.permissions().mode() & 0o777;
    if mode & !MODE_DIRECTORY != 0 {
        fs::set_permissions(path, PermissionsExt::from_mode(mode & MODE_DIRECTORY))?;
    }
    Ok(())
}

/// What makes an error of the system's.
pub(crate) fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> FileError {
    move |source| FileError { action, path: path.into(), source }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_with_the_directory_named() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("state");
        let held = StateDir::open(&path).unwrap();
        let refused = StateDir::open(&path).unwrap_err();
        assert!(matches!(refused, OpenError::Held { .. }));
        assert!(refused.to_string().contains("state"), "{refused}");
        drop(held);
        StateDir::open(&path).expect("the lock is gone with its holder");
    }

    #[test]
    fn modes_are_tight() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("state");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
        let dir = StateDir::open(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o711);
        assert_eq!(mode(&dir.truststore()), 0o711 & mode(&dir.truststore()));
        let key = dir.key_pair("server").key;
        write_file(&key, b"secret", MODE_SECRET).unwrap();
        assert_eq!(mode(&key), 0o600);
    }

    #[test]
    fn a_file_is_replaced_and_no_temporary_is_left() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("daemon.yaml");
        // What a crash in an earlier write can leave.
        fs::write(parent.path().join(".daemon.yaml.new"), "half").unwrap();
        write_file(&path, b"one", MODE_PUBLIC).unwrap();
        write_file(&path, b"two", MODE_PUBLIC).unwrap();
        assert_eq!(read_file(&path).unwrap().unwrap(), "two");
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
        assert_eq!(read_file(&parent.path().join("absent")).unwrap(), None);
    }

    #[test]
    fn reset_leaves_the_identity_and_nothing_of_the_cluster() {
        let parent = tempfile::tempdir().unwrap();
        let dir = StateDir::open(parent.path()).unwrap();
        for name in ["server", "cluster", "own", "shared"] {
            let paths = dir.key_pair(name);
            write_file(&paths.certificate, b"c", MODE_PUBLIC).unwrap();
            write_file(&paths.key, b"k", MODE_SECRET).unwrap();
            write_file(&paths.authority, b"a", MODE_PUBLIC).unwrap();
        }
        write_file(&dir.key_pair("shared").shared, b"", MODE_PUBLIC).unwrap();
        fs::write(dir.path().join(".cluster.key.new"), "half").unwrap();
        write_file(&dir.daemon_config(), b"name: c1", MODE_PUBLIC).unwrap();
        let recovered = [dir.recovery_archive(), dir.refused_archive(), dir.last_recovery(), dir.backup("2026")];
        for file in recovered.into_iter().chain([dir.join_record()]) {
            write_file(&file, b"{}", MODE_SECRET).unwrap();
        }
        write_file(&dir.truststore().join("c1.yaml"), b"x", MODE_PUBLIC).unwrap();
        fs::create_dir_all(dir.database().join("log")).unwrap();
        dir.reset().unwrap();
        let left = ["certificates", "daemon.lock", "server.ca", "server.crt", "server.key", "truststore"];
        assert_eq!(files(dir.path()), left);
        assert_eq!(files(&dir.certificates()), ["own.ca", "own.crt", "own.key"], "what the operator brought stays");
        assert_eq!(files(&dir.truststore()), [""; 0]);
        assert!(!dir.is_resetting());
    }

    #[test]
    fn a_reset_that_keeps_the_database_keeps_it_however_often_it_is_begun() {
        let parent = tempfile::tempdir().unwrap();
        let dir = StateDir::open(parent.path()).unwrap();
        let kept = dir.path().join(REMOVED).join("log");
        write_file(&dir.backup("2026"), b"x", MODE_SECRET).unwrap();
        for content in ["first", "second"] {
            fs::create_dir_all(dir.database()).unwrap();
            fs::write(dir.database().join("log"), content).unwrap();
            dir.mark_reset_keeping_database().unwrap();
            // Interrupted after the first step, and begun again.
            dir.reset().unwrap();
            dir.mark_reset_keeping_database().unwrap();
            dir.reset().unwrap();
            assert_eq!(fs::read_to_string(&kept).unwrap(), content);
            assert!(!dir.database().exists() && !dir.is_resetting());
            assert!(dir.backup("2026").exists());
        }
        fs::create_dir_all(dir.database()).unwrap();
        dir.reset().unwrap();
        assert!(!dir.database().exists() && !dir.backup("2026").exists());
        assert_eq!(fs::read_to_string(&kept).unwrap(), "second", "another cluster's end is no concern of it");
    }

    #[test]
    fn what_a_crash_left_half_written_is_removed_at_the_start() {
        let parent = tempfile::tempdir().unwrap();
        let dir = StateDir::open(parent.path()).unwrap();
        for path in [dir.path().join(".server.key.new"), dir.certificates().join(".metrics.key.new")] {
            fs::write(path, "half a key").unwrap();
        }
        drop(dir);
        let dir = StateDir::open(parent.path()).unwrap();
        assert_eq!(files(dir.path()), ["certificates", "daemon.lock", "truststore"]);
        assert_eq!(files(&dir.certificates()), [""; 0]);
    }

    fn files(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}
