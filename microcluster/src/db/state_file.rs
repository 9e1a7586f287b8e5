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
    if let Some((generation, _)) = read_pointer(dir)? {
        return Ok(dir.join(generation_name(generation)));
    }
    // It is written before the first state file is.
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if name.to_str().is_some_and(is_state) {
            let what =
                format!("the file {POINTER}, which says which state file is in force, is missing beside {name:?}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
    }
    point_to(dir, 1, 0)?;
    Ok(dir.join(generation_name(1)))
}

/// The state file in force, if there is one.
pub(crate) fn existing(dir: &Path) -> io::Result<Option<PathBuf>> {
    Ok(read_pointer(dir)?.map(|(generation, _)| dir.join(generation_name(generation))))
}

/// The log index of the snapshot that the state file in force began with; 0 if it began empty.
pub(crate) fn snapshot_index(dir: &Path) -> io::Result<u64> {
    Ok(read_pointer(dir)?.map_or(0, |(_, snapshot)| snapshot))
}

/// Puts `file`, a complete SQLite file in the same folder that holds the snapshot of the log index `snapshot`, in force in
/// place of the current one, and says where it is now. The old one is left for [`remove`]: connections may still be open on it.
pub(crate) fn install(dir: &Path, file: &Path, snapshot: u64) -> io::Result<PathBuf> {
    let generation = read_pointer(dir)?.map_or(0, |(generation, _)| generation) + 1;
    let path = dir.join(generation_name(generation));
    remove(&path)?;
    disk::sync(file)?;
    disk::rename(file, &path)?;
    sync_dir(dir)?;
    point_to(dir, generation, snapshot)?;
    Ok(path)
}

/// Removes every state file but the one in force, and what interrupted snapshots left.
pub(crate) fn remove_others(dir: &Path) -> io::Result<()> {
    let current = current(dir)?;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if (is_state(name) && path != current) || name.starts_with("snapshot-") {
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

/// The generation in force, and the log index of the snapshot that it began with.
fn read_pointer(dir: &Path) -> io::Result<Option<(u64, u64)>> {
    let text = match fs::read_to_string(dir.join(POINTER)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut words = text.split_whitespace();
    let generation = words.next().and_then(|name| name.strip_prefix("state-")?.strip_suffix(".db")?.parse().ok());
    match (generation, words.next().unwrap_or("0").parse(), words.next()) {
        (Some(generation), Ok(snapshot), None) => Ok(Some((generation, snapshot))),
        _ => {
            let what = format!("the file {POINTER} names no state file: {text:?}");
            Err(io::Error::new(io::ErrorKind::InvalidData, what))
        }
    }
}

fn point_to(dir: &Path, generation: u64, snapshot: u64) -> io::Result<()> {
    let temporary = dir.join("current.tmp");
    disk::write(&temporary, &format!("{} {snapshot}\n", generation_name(generation)))?;
    disk::sync(&temporary)?;
    disk::rename(&temporary, &dir.join(POINTER))?;
    sync_dir(dir)
}

fn generation_name(generation: u64) -> String {
    format!("state-{generation}.db")
}

fn is_state(name: &str) -> bool {
    name.starts_with("state-") && name.ends_with(".db")
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
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::{almost, cases};

    #[test]
    fn an_installed_file_is_current_and_the_old_one_can_go() {
        let dir = tempfile::tempdir().unwrap();
        let first = current(dir.path()).unwrap();
        fs::write(&first, "old").unwrap();
        let incoming = dir.path().join("snapshot-in");
        fs::write(&incoming, "new").unwrap();
        let second = install(dir.path(), &incoming, 7).unwrap();
        assert_eq!(snapshot_index(dir.path()).unwrap(), 7);
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

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn any_pointer_names_a_state_file_here_or_is_refused(
            bytes in prop_oneof![
                almost(any::<(u64, u64)>().prop_map(|(n, snapshot)| format!("state-{n}.db {snapshot}\n").into_bytes())),
                proptest::collection::vec(any::<u8>(), 0..60),
            ],
        ) {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(POINTER), &bytes).unwrap();
            if let Ok(path) = current(dir.path()) {
                prop_assert_eq!(path.parent(), Some(dir.path()), "{:?}", path);
            }
            let _ = snapshot_index(dir.path());
        }

        #[test]
        fn a_pointer_is_read_as_it_was_written(generation in any::<u64>(), snapshot in any::<u64>()) {
            let dir = tempfile::tempdir().unwrap();
            point_to(dir.path(), generation, snapshot).unwrap();
            prop_assert_eq!(read_pointer(dir.path()).unwrap(), Some((generation, snapshot)));
        }
    }
}
