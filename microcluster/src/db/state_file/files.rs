//! The few changes of files that the state needs beside those that SQLite makes.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Creates a file with this content, or replaces what it held.
pub(crate) fn write(path: &Path, content: &str) -> io::Result<()> {
    fs::write(path, content)
}

/// Returns once what the file holds is on stable storage.
pub(crate) fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Returns once names created, changed or removed in the folder are on stable storage.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Gives a file another name in its folder, in place of what had that name.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)
}

/// Removes a file.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)
}
