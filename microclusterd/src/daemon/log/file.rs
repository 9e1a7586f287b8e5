//! A file for the log, which is opened again when it was moved away.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use tracing_subscriber::fmt::MakeWriter;

/// Who reads the log: the daemon's user and its group.
const MODE: u32 = 0o640;

/// The file that the log goes to. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct LogFile {
    path: Arc<PathBuf>,
    file: Arc<RwLock<Arc<File>>>,
}

impl LogFile {
    /// Opens the file, to append to it; it is made where it is missing.
    pub(crate) fn open(path: &Path) -> io::Result<LogFile> {
        // Absolute: the working directory may be another one when it is opened again.
        let path = std::path::absolute(path)?;
        let file = Arc::new(append(&path)?);
        Ok(LogFile { path: Arc::new(path), file: Arc::new(RwLock::new(file)) })
    }

    /// Goes on with the file that has the name now. After an error the log goes on where it went before.
    pub(crate) fn reopen(&self) -> io::Result<()> {
        let file = Arc::new(append(&self.path)?);
        // Nothing that holds the lock can panic.
        *self.file.write().unwrap_or_else(PoisonError::into_inner) = file;
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = Arc<File>;

    fn make_writer(&'a self) -> Arc<File> {
        self.file.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(MODE).open(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_go_to_the_file_that_has_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("log"), dir.path().join("log.1"));
        let log = LogFile::open(&path).unwrap();
        log.make_writer().write_all(b"one\n").unwrap();
        fs::rename(&path, &old).unwrap();
        log.make_writer().write_all(b"two\n").unwrap();
        log.reopen().unwrap();
        log.make_writer().write_all(b"three\n").unwrap();
        assert_eq!(fs::read_to_string(&old).unwrap(), "one\ntwo\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
    }
}
