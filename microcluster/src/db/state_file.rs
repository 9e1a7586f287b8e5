//! Which file holds the state: `state-N.db`, named by the file `current`, so that a snapshot is installed
//! by one atomic rename and a crash leaves the old state or the new one.

pub(crate) mod files;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

#[cfg(test)]
use super::tests::power_loss::files as disk;
#[cfg(not(test))]
use files as disk;

const POINTER: &str = "current";

/// The state file in force; the first one if there is none yet.
pub(crate) fn current(dir: &Path) -> io::Result<PathBuf> {
    match fs::read_to_string(dir.join(POINTER)) {
        Ok(name) => Ok(dir.join(generation_name(parse_generation(name.trim())?))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            point_to(dir, 1)?;
            Ok(dir.join(generation_name(1)))
        }
        Err(error) => Err(error),
    }
}

/// Puts `file`, a complete SQLite file in the same folder, in force in place of the current one, and says
/// where it is now. The old one is left for [`remove`]: connections may still be open on it.
pub(crate) fn install(dir: &Path, file: &Path) -> io::Result<PathBuf> {
    let name = fs::read_to_string(dir.join(POINTER))?;
    let generation = parse_generation(name.trim())? + 1;
    let path = dir.join(generation_name(generation));
    remove(&path)?;
    disk::sync(file)?;
    disk::rename(file, &path)?;
    sync_dir(dir)?;
    point_to(dir, generation)?;
    Ok(path)
}

/// Removes every state file but the one in force, and what interrupted snapshots left.
pub(crate) fn remove_others(dir: &Path) -> io::Result<()> {
    let current = current(dir)?;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_other_state = name.starts_with("state-") && name.ends_with(".db") && path != current;
        if is_other_state || name.starts_with("snapshot-") {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Brings everything that was committed to `path` onto stable storage, after SQLite has checkpointed what it could: that
/// part is synced in the file itself, the rest is in the write-ahead log. The file itself must not be opened here: closing
/// it would drop the locks that SQLite holds on it for this process.
pub(crate) fn sync(path: &Path) -> io::Result<()> {
    match disk::sync(&with_suffix(path, "-wal")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // SQLite syncs the name of a log that it has created itself, not of one that a process before it has left.
    path.parent().map_or(Ok(()), sync_dir)
}

/// Syncs the folder, so that names created or renamed in it survive a power loss.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    disk::sync_dir(dir)
}

fn point_to(dir: &Path, generation: u64) -> io::Result<()> {
    let temporary = dir.join("current.tmp");
    disk::write(&temporary, &format!("{}\n", generation_name(generation)))?;
    disk::sync(&temporary)?;
    disk::rename(&temporary, &dir.join(POINTER))?;
    sync_dir(dir)
}

fn generation_name(generation: u64) -> String {
    format!("state-{generation}.db")
}

fn parse_generation(name: &str) -> io::Result<u64> {
    name.strip_prefix("state-")
        .and_then(|rest| rest.strip_suffix(".db"))
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("the file {POINTER} names no state file: {name:?}"))
        })
}

/// Removes a state file and what SQLite keeps beside it.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    for path in [path.to_owned(), with_suffix(path, "-wal"), with_suffix(path, "-shm")] {
        match disk::remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_installed_file_is_current_and_the_old_one_can_go() {
        let dir = tempfile::tempdir().unwrap();
        let first = current(dir.path()).unwrap();
        fs::write(&first, "old").unwrap();
        let incoming = dir.path().join("snapshot-in");
        fs::write(&incoming, "new").unwrap();
        let second = install(dir.path(), &incoming).unwrap();
        assert_eq!(current(dir.path()).unwrap(), second);
        assert_eq!(fs::read_to_string(&second).unwrap(), "new");
        fs::write(dir.path().join("snapshot-left"), "x").unwrap();
        remove_others(dir.path()).unwrap();
        assert!(!first.exists() && second.exists() && !dir.path().join("snapshot-left").exists());
    }

    #[test]
    fn a_damaged_pointer_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(POINTER), "../etc/passwd").unwrap();
        assert!(current(dir.path()).unwrap_err().to_string().contains("names no state file"));
    }
}
