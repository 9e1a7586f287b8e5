//! Keeps members apart whose cluster was recovered from the loss of its quorum from those that still have the database of before.
//!
//! What those know was given up. Among each other they could make a majority by the old membership, and with a member of the recovered cluster
//! they would bring it their votes and entries. So nobody of one era talks to one of another, until it has the archive of the recovery.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::db::raft_types::{ERA_TERMS, LogId};

/// How often the cluster was recovered, as far as this member knows.
#[derive(Debug, Default)]
pub(crate) struct Era {
    /// None for a node that has nothing yet: it gets what there is from whoever takes it in.
    own: Option<u64>,
    /// Somebody was told already to bring the archive.
    is_told: AtomicBool,
}

impl Era {
    /// The era of a state that stands at this log id.
    pub fn of(applied: Option<LogId>) -> Era {
        let own = applied.map(|log_id| log_id.leader_id.term / ERA_TERMS);
        Era { own, is_told: AtomicBool::default() }
    }

    /// What the other side is told.
    pub fn own(&self) -> Option<u64> {
        self.own
    }

    /// Whether this is the era of another member, which may be reached at `address`; says why not.
    pub fn check(&self, other: Option<u64>) -> Result<(), String> {
        let (Some(own), Some(other)) = (self.own, other) else { return Ok(()) };
        if own > other {
            return Err(
                "it has the database of before the cluster was recovered, and needs the archive recovery_db.tar.gz"
                    .to_owned(),
            );
        }
        if own == other {
            return Ok(());
        }
        let reason = "the cluster was recovered from the loss of its quorum, and this member has the database of before: stop it, copy \
                      recovery_db.tar.gz from the member that the cluster was recovered on into its state directory, and start it again";
        if !self.is_told.swap(true, Ordering::Relaxed) {
            tracing::error!("{reason}");
        }
        Err(reason.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use openraft::CommittedLeaderId;

    use super::*;

    #[test]
    fn only_members_of_one_era_talk_to_each_other() {
        let era = |term: u64| Era::of(Some(LogId::new(CommittedLeaderId::new(term, 1), 7)));
        let new = Era::of(None);
        let (before, after) = (era(ERA_TERMS - 1), era(ERA_TERMS));
        for era in [&before, &after] {
            assert_eq!(era.check(era.own()), Ok(()));
            assert_eq!(era.check(new.own()), Ok(()), "a joiner");
            assert_eq!(new.check(era.own()), Ok(()));
        }
        assert!(before.check(after.own()).is_err_and(|reason| reason.contains("stop it, copy")));
        assert!(after.check(before.own()).is_err_and(|reason| reason.starts_with("it has the database of before")));
        assert_eq!(after.check(era(ERA_TERMS + 5).own()), Ok(()), "an election is no recovery");
    }
}
