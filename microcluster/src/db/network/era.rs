//! Keeps members apart whose cluster was recovered from the loss of its quorum from those that still have the database of before.
//!
//! What those know was given up. Among each other they could make a majority by the old membership, and with a member of the recovered cluster
//! they would bring it their votes and entries. So nobody of one era talks to one of another, until it has the archive of the recovery.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::db::readers::open_read_only;
use crate::db::recovery::{RecoveryMark, recoveries};
use crate::db::writer::Shared;

/// The last recovery that a member's database stems from.
#[derive(Default)]
pub(crate) struct Era {
    /// None for a node without a database, as tests have.
    state: Option<Arc<Shared>>,
    /// There was something in the log or in the state when they were opened.
    has_begun: bool,
    /// What the state file of that name stems from. A snapshot is another file.
    known: Mutex<Option<(PathBuf, RecoveryMark)>>,
    /// The log was told already what to do.
    is_told: AtomicBool,
}

impl Era {
    /// The era of a state, as it is at every moment. `has_begun` says whether there is something in it or in its log.
    pub fn new(state: Arc<Shared>, has_begun: bool) -> Era {
        Era { state: Some(state), has_begun, known: Mutex::default(), is_told: AtomicBool::default() }
    }

    /// What the other side is told: the last recovery, all zeros if there was none. None for a node that has nothing yet: it gets what
    /// there is from whoever takes it in.
    pub async fn own(&self) -> io::Result<Option<RecoveryMark>> {
        let Some(state) = &self.state else { return Ok(None) };
        if !self.has_begun && *state.applied.borrow() == 0 {
            return Ok(None);
        }
        let path = state.readers.path();
        if let Some((_, mark)) = self.known().as_ref().filter(|(known, _)| *known == path) {
            return Ok(Some(*mark));
        }
        let file = path.clone();
        let read = move || open_read_only(&file).and_then(|connection| recoveries(&connection));
        let found = tokio::task::spawn_blocking(read).await?.map_err(io::Error::other)?;
        let mark = found.first().copied().unwrap_or_default();
        *self.known() = Some((path, mark));
        Ok(Some(mark))
    }

    /// Whether a member of the era `own`, this one, may talk to one of another; says why not. It is logged once if this member is the one to
    /// be seen to.
    pub fn check(&self, own: Option<RecoveryMark>, other: Option<RecoveryMark>) -> Result<(), String> {
        compare(own, other).map_err(|difference| {
            if difference.is_own && !self.is_told.swap(true, Ordering::Relaxed) {
                tracing::error!("{}", difference.reason);
            }
            difference.reason.to_owned()
        })
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Option<(PathBuf, RecoveryMark)>> {
        // What it holds is whole at every moment.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why two members do not talk to each other.
#[derive(Debug, PartialEq)]
struct Difference {
    reason: &'static str,
    /// This member is the one to be seen to, or one of them.
    is_own: bool,
}

fn compare(own: Option<RecoveryMark>, other: Option<RecoveryMark>) -> Result<(), Difference> {
    let (Some(own), Some(other)) = (own, other) else { return Ok(()) };
    if own == other {
        return Ok(());
    }
    if own.term > other.term {
        let reason =
            "it has the database of before the cluster was recovered, and needs the archive recovery_db.tar.gz";
        return Err(Difference { reason, is_own: false });
    }
    let reason = if own.term < other.term {
        "the cluster was recovered from the loss of its quorum, and this member has the database of before: stop it, copy \
         recovery_db.tar.gz from the member that the cluster was recovered on into its state directory, and start it again"
    } else {
        "the cluster was recovered more than once, each time without the other: stop both members, choose one, copy its \
         recovery_db.tar.gz into the state directory of the other, and start them again"
    };
    Err(Difference { reason, is_own: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_members_of_one_era_talk_to_each_other() {
        let mark = |term, nonce| Some(RecoveryMark { term, node: 1, index: 7, nonce });
        let (new, before, after) = (None, Some(RecoveryMark::default()), mark(5, 1));
        for era in [before, after] {
            assert_eq!(compare(era, era), Ok(()));
            assert_eq!(compare(era, new), Ok(()), "a joiner");
            assert_eq!(compare(new, era), Ok(()));
        }
        let refused = |own, other, is_own: bool, hint: &str| {
            let found = compare(own, other);
            assert!(found.as_ref().is_err_and(|d| d.is_own == is_own && d.reason.contains(hint)), "{hint}: {found:?}");
        };
        refused(before, after, true, "stop it, copy");
        refused(after, before, false, "it has the database of before");
        refused(after, mark(5, 2), true, "more than once");
    }
}
