//! What the state file does to files beside SQLite, told to the disk in memory where there is one under them.

use std::io;
use std::path::Path;

use super::vfs::{disk_in, disk_under};
use crate::db::log_store::Storage;
use crate::db::state_file::files as plain;

pub(crate) fn write(path: &Path, content: &str) -> io::Result<()> {
    if let Some((disk, name)) = disk_under(path) {
        disk.create(&name)?.write_at(content.as_bytes(), 0)?;
    }
    plain::write(path, content)
}

pub(crate) fn sync(path: &Path) -> io::Result<()> {
    match disk_under(path) {
        Some((disk, name)) => disk.open(&name)?.sync(),
        None => plain::sync(path),
    }
}

pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    match disk_in(dir) {
        Some(disk) => disk.sync_dir(),
        None => plain::sync_dir(dir),
    }
}

pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    if let (Some((disk, old)), Some((_, new))) = (disk_under(from), disk_under(to)) {
        disk.rename(&old, &new)?;
    }
    plain::rename(from, to)
}

pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match disk_under(path).map(|(disk, name)| disk.remove(&name)) {
        Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => plain::remove(path),
    }
}
