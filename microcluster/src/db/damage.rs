//! Damage of a member's files: how it is told from what a crash leaves, and how it is remembered until the
//! member has been rebuilt from the others.

use std::fs;
use std::io;
use std::path::Path;

use super::apply::ApplyError;
use super::error::is_corruption;
use super::raft_types::{LogId, NodeId, Vote};
use super::state_file;

/// A file in the database folder that says why it must not be used any more. It goes away with the folder.
const MARKER: &str = "condemned";

/// Where the log and the state of one member stand.
pub(super) struct Standing {
    pub vote: Option<Vote>,
    pub purged: Option<LogId>,
    pub last: Option<LogId>,
    pub applied: Option<LogId>,
    /// The index of the snapshot that the state file began with.
    pub snapshot: u64,
}

impl Standing {
    /// What is missing of the files of a node that has been a member of a cluster: it has voted or accepted a
    /// leader, and its log and its state fit together. A crash breaks none of this, lost or changed files do.
    pub fn check(&self) -> Result<(), String> {
        let index = |log_id: Option<LogId>| log_id.map_or(0, |log_id| log_id.index);
        let applied = index(self.applied);
        if self.vote.is_none() {
            return Err("the log holds no vote, so it is not the one this member had".to_owned());
        }
        if applied < index(self.purged) {
            let purged = index(self.purged);
            return Err(format!("the state ends at log entry {applied}, and the log begins behind entry {purged}"));
        }
        // A snapshot is installed before the log is told to begin behind it.
        if index(self.last) < applied && applied != self.snapshot {
            let last = index(self.last);
            return Err(format!("the log ends at entry {last}, and entry {applied} was applied already"));
        }
        Ok(())
    }
}

/// Remembers on stable storage that the database of a node in `dir` must not be used any more.
pub(super) fn condemn(dir: &Path, node_id: NodeId, reason: &str) -> io::Result<()> {
    let path = dir.join(MARKER);
    fs::write(&path, format!("{node_id} {reason}"))?;
    fs::File::open(&path)?.sync_all()?;
    state_file::sync_dir(dir)
}

/// Why the database of a node in `dir` must not be used, if it must not. What was said of an earlier one is over.
pub(super) fn condemned(dir: &Path, node_id: NodeId) -> io::Result<Option<String>> {
    match fs::read_to_string(dir.join(MARKER)) {
        Ok(text) => Ok(text.strip_prefix(&format!("{node_id} ")).map(str::to_owned)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether an error, or one that caused it, is SQLite's word that a file is damaged, or a file whose content cannot be.
pub(super) fn is_damage(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<rusqlite::Error>().is_some_and(is_corruption)
            || error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::InvalidData)
            || matches!(error.downcast_ref(), Some(ApplyError::Bookkeeping(_)))
        {
            return true;
        }
        // The log has checksums: an entry that cannot be read is another version's, on all members alike.
        if matches!(error.downcast_ref(), Some(ApplyError::Entry { .. })) {
            return false;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use openraft::CommittedLeaderId;

    use super::*;

    fn at(index: u64) -> Option<LogId> {
        (index > 0).then(|| LogId::new(CommittedLeaderId::new(1, 1), index))
    }

    fn standing(purged: u64, last: u64, applied: u64, snapshot: u64) -> Standing {
        Standing { vote: Some(Vote::new(1, 1)), purged: at(purged), last: at(last), applied: at(applied), snapshot }
    }

    #[test]
    fn what_a_crash_leaves_is_whole() {
        for whole in [
            standing(0, 5, 0, 0),
            standing(0, 5, 5, 0),
            standing(4, 9, 4, 0),
            standing(9, 9, 9, 0),
            // Stopped between the installation of a snapshot and the purge of the log.
            standing(0, 3, 90, 90),
            standing(0, 0, 0, 0),
        ] {
            assert_eq!(whole.check(), Ok(()));
        }
    }

    #[test]
    fn what_is_lost_is_named() {
        let reason = |standing: Standing| standing.check().err().unwrap_or_default();
        assert!(reason(standing(10, 20, 0, 0)).contains("begins behind entry 10"));
        assert!(reason(standing(0, 3, 5, 0)).contains("entry 5 was applied"));
        assert!(reason(standing(0, 3, 95, 90)).contains("entry 95 was applied"));
        assert!(reason(Standing { vote: None, ..standing(0, 0, 0, 0) }).contains("no vote"));
    }
}
