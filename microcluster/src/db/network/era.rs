//! Keeps members apart whose cluster was recovered from the loss of its quorum from those that still have the database of before.
//!
//! What those know was given up. Among each other they could make a majority by the old membership, and with a member of the recovered cluster
//! they would bring it their votes and entries. So nobody of one era talks to one of another, until it has the archive of the recovery.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::db::recovery::RecoveryMark;

/// The last recovery that a member's database stems from.
#[derive(Debug, Default)]
pub(crate) struct Era {
    /// None for a node that has nothing yet: it gets what there is from whoever takes it in.
    own: Option<RecoveryMark>,
    /// The log was told already what to do.
    is_told: AtomicBool,
}

impl Era {
    /// The era of a database: what its last recovery was, if it had any; none if there is nothing in it.
    pub fn new(own: Option<RecoveryMark>) -> Era {
        Era { own, is_told: AtomicBool::default() }
    }

    /// What the other side is told.
    pub fn own(&self) -> Option<RecoveryMark> {
        self.own
    }

    /// Whether this is the era of another member; says why not. It is logged once if this member is the one to be seen to.
    pub fn check(&self, other: Option<RecoveryMark>) -> Result<(), String> {
        let (Some(own), Some(other)) = (self.own, other) else { return Ok(()) };
        if own == other {
            return Ok(());
        }
        if own.term > other.term {
            return Err(
                "it has the database of before the cluster was recovered, and needs the archive recovery_db.tar.gz"
                    .to_owned(),
            );
        }
        let reason = if own.term < other.term {
            "the cluster was recovered from the loss of its quorum, and this member has the database of before: stop it, copy \
             recovery_db.tar.gz from the member that the cluster was recovered on into its state directory, and start it again"
        } else {
            "the cluster was recovered on two members, each without the other: stop both, choose one, copy its recovery_db.tar.gz into \
             the state directory of the other, and start them again"
        };
        if !self.is_told.swap(true, Ordering::Relaxed) {
            tracing::error!("{reason}");
        }
        Err(reason.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_members_of_one_era_talk_to_each_other() {
        let era = |term, node| Era::new(Some(RecoveryMark { term, node, index: 7 }));
        let new = Era::default();
        let (before, after) = (Era::new(Some(RecoveryMark::default())), era(5, 1));
        for era in [&before, &after] {
            assert_eq!(era.check(era.own()), Ok(()));
            assert_eq!(era.check(new.own()), Ok(()), "a joiner");
            assert_eq!(new.check(era.own()), Ok(()));
        }
        assert!(before.check(after.own()).is_err_and(|reason| reason.contains("stop it, copy")));
        assert!(after.check(before.own()).is_err_and(|reason| reason.starts_with("it has the database of before")));
        assert!(after.check(era(5, 2).own()).is_err_and(|reason| reason.contains("on two members")));
    }
}
