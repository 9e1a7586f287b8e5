//! Upgrades: every member says in its row what it has, the leader applies the updates when all have them, and until
//! then a member that has more than the cluster waits.
//!
//! What is to be done follows from the rows and the replicated versions alone. So it does not matter in which order
//! members are restarted, or who leads meanwhile: a leader that waits itself goes on leading.

use std::sync::Arc;
use std::time::Duration;

use microcluster_client::{MemberStatus, Name};

use super::members::{self, MemberRow, RowRole};
use super::node::Node;
use super::schema::INTERNAL;
use crate::db::{self, Consistency, Level, Upgrade, level, level_in};
use crate::tasks::Tasks;

/// How often everything is looked at without a reason.
const INTERVAL: Duration = Duration::from_secs(10);
/// Pause before what failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Pause after a change, so that many changes are looked at together.
const PAUSE: Duration = Duration::from_millis(50);

/// What a member is next to its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Both have the same.
    Current,
    /// It has more than the cluster, which waits for these members. For nobody: the updates are about to be applied.
    Waits { members: Vec<Name> },
    /// It has less.
    TooOld(TooOld),
}

/// A member that lacks what the cluster has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this daemon is too old for its cluster: it has {own}, the cluster has {cluster}; install the version that the other members have"
)]
pub(crate) struct TooOld {
    pub own: Level,
    pub cluster: Level,
}

/// The database is not for the product yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Database is waiting for an upgrade{}", waits_for(.members))]
pub(crate) struct WaitsForUpgrade {
    members: Vec<Name>,
}

/// Records what this member has, waits with it for the cluster, and applies updates when they are due and it leads.
/// Done when member and cluster have the same: then nothing changes until another version of the member starts.
pub(crate) async fn keep_upgraded(node: Arc<Node>, tasks: Tasks) -> Result<(), TooOld> {
    let mut changes = node.db.changes();
    let mut is_recorded = false;
    loop {
        changes.mark_unchanged();
        let pause = match node.step(&mut is_recorded).await {
            Ok(Standing::TooOld(too_old)) => return Err(too_old),
            Ok(Standing::Current) if is_recorded => return Ok(()),
            Ok(_) => INTERVAL,
            Err(e) => {
                tracing::debug!(error = %e, "cannot look after an upgrade now");
                RETRY_PAUSE
            }
        };
        tokio::select! {
            () = tasks.stopping() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
            () = node.upgraded.notified() => {}
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
        }
        tokio::select! {
            () = tasks.stopping() => return Ok(()),
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

impl Node {
    /// What this member is next to its cluster, as its replica has it.
    pub async fn look_at_versions(&self) -> Result<Standing, db::Error> {
        // One after the other: what was read first must not be told last.
        let _looking = self.looking.lock().await;
        let (rows, cluster) = self.db.read(Consistency::Local, |db| Ok((members::all(db)?, level(db)?))).await?;
        let found = standing(self.versions.level(), cluster, &rows);
        self.standing.send_if_modified(|before| {
            let is_new = *before != found;
            if is_new {
                match &found {
                    Standing::Current => tracing::debug!(%cluster, "this member has what the cluster has"),
                    // The updates are about to be applied: by the leader, or by a bootstrap.
                    Standing::Waits { members } if members.is_empty() => {}
                    Standing::Waits { members } => {
                        tracing::warn!(own = %self.versions.level(), %cluster, ?members, "this member waits for an upgrade");
                    }
                    Standing::TooOld(_) => {}
                }
                *before = found.clone();
            }
            is_new
        });
        Ok(found)
    }

    /// Whether the product can use the database.
    pub fn is_current(&self) -> Result<(), WaitsForUpgrade> {
        match &*self.standing.borrow() {
            Standing::Current => Ok(()),
            Standing::Waits { members } => Err(WaitsForUpgrade { members: members.clone() }),
            Standing::TooOld(_) => Err(WaitsForUpgrade { members: Vec::new() }),
        }
    }

    /// Waits until the product can use the database, and there is a quorum.
    pub async fn is_usable(&self) {
        // The sender lives as long as this does.
        let _ = self.standing.subscribe().wait_for(|standing| *standing == Standing::Current).await;
        // Where the database is closed there is never a quorum: who waits is ended with it.
        if self.db.status_watch().wait_for(|status| status.has_quorum).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// A member says that it was upgraded.
    pub fn upgrade_seen(&self) {
        self.upgraded.notify_one();
    }

    /// Applies the first updates of a cluster.
    pub async fn apply_first_updates(&self) -> Result<(), db::Error> {
        let to = self.versions.level();
        let from = Level { internal: to.internal, ..Level::default() };
        self.db
            .upgrade(Upgrade { from, to, internal: INTERNAL, external: &self.external_schema, unless: "false" })
            .await?;
        self.look_at_versions().await.map(|_| ())
    }

    async fn step(&self, is_recorded: &mut bool) -> Result<Standing, db::Error> {
        let found = self.look_at_versions().await?;
        if !matches!(found, Standing::TooOld(_)) && !*is_recorded {
            *is_recorded = self.record_versions().await?;
        }
        if self.db.status().is_leader() {
            self.apply_what_is_due().await?;
        }
        self.look_at_versions().await
    }

    /// Writes into this member's row what it has; says whether that is recorded now. From then on the cluster cannot
    /// get ahead of it.
    async fn record_versions(&self) -> Result<bool, db::Error> {
        self.db.linearize().await?;
        let (own, id) = (self.versions.clone(), self.id);
        let rows = self.db.read(Consistency::Local, members::all).await?;
        let Some(row) = rows.iter().find(|row| row.id == id) else {
            return Ok(false);
        };
        let is_same = (row.schema_internal, row.schema_external) == (own.schema_internal, own.schema_external)
            && row.extensions == own.extensions;
        if is_same {
            // As of now, with everything that is committed.
            return Ok(true);
        }
        let recorded = self.db.transaction(move |tx| {
            // An entry that was quicker may have brought the cluster where this member is not.
            if own.level().is_behind(level_in(tx)?) {
                return Ok(false);
            }
            members::set_versions(tx, id, &own)
        });
        recorded.await
    }

    /// Applies what all members have, in one entry. What the rows said is checked again where it is applied.
    async fn apply_what_is_due(&self) -> Result<(), db::Error> {
        let (rows, cluster) = self.db.read(Consistency::Local, |db| Ok((members::all(db)?, level(db)?))).await?;
        let Some(to) = due(self.versions.level(), cluster, &rows) else {
            return Ok(());
        };
        let unless = members::any_behind(to);
        let upgrade =
            Upgrade { from: cluster, to, internal: INTERNAL, external: &self.external_schema, unless: &unless };
        match self.db.upgrade(upgrade).await {
            Ok(true) => tracing::info!(from = %cluster, %to, "the cluster was upgraded"),
            // Somebody was quicker, or a row has changed.
            Ok(false) => {}
            // Nobody serves until this is put right: by a version with other updates, or by going back.
            Err(e @ (db::Error::Sql { .. } | db::Error::Constraint { .. } | db::Error::Refused { .. })) => {
                tracing::error!(from = %cluster, %to, error = %e, "an upgrade cannot be applied");
                return Err(e);
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

/// What an answering member is shown as: `highest` is what any member has.
pub(super) fn shown(row: Level, highest: Level, cluster: Level) -> MemberStatus {
    if row.is_behind(highest) {
        MemberStatus::NeedsUpgrade
    } else if cluster.is_behind(row) {
        MemberStatus::Upgrading
    } else {
        MemberStatus::Online
    }
}

/// What any member has.
pub(super) fn highest(rows: &[MemberRow]) -> Level {
    rows.iter().map(MemberRow::level).fold(Level::default(), Level::highest)
}

fn standing(own: Level, cluster: Level, rows: &[MemberRow]) -> Standing {
    if own.is_behind(cluster) {
        Standing::TooOld(TooOld { own, cluster })
    } else if own == cluster {
        Standing::Current
    } else {
        let behind = counted(rows).filter(|row| row.level().is_behind(own));
        Standing::Waits { members: behind.map(|row| row.name.clone()).collect() }
    }
}

/// Where the cluster can be brought: what all members have, if that is more than it has.
fn due(own: Level, cluster: Level, rows: &[MemberRow]) -> Option<Level> {
    // Without a row the cluster is being bootstrapped.
    let common = counted(rows).map(MemberRow::level).reduce(Level::lowest)?.lowest(own);
    (cluster.is_behind(common) && !common.is_behind(cluster)).then_some(common)
}

/// The members that are waited for: joiners too, which are in when they come back; not those that are being removed.
fn counted(rows: &[MemberRow]) -> impl Iterator<Item = &MemberRow> {
    rows.iter().filter(|row| row.role != RowRole::Leaving)
}

fn waits_for(members: &[Name]) -> String {
    if members.is_empty() {
        return String::new();
    }
    let names: Vec<&str> = members.iter().map(Name::as_str).collect();
    format!(": not upgraded yet: {}; upgrade them, or remove those that are gone for good", names.join(", "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use microcluster_client::Timestamp;

    use super::*;
    use crate::db::NodeId;

    fn level_of(external: u64) -> Level {
        Level { internal: 3, external, extensions: 2 }
    }

    fn rows(rows: &[(NodeId, RowRole, u64)]) -> Vec<MemberRow> {
        let row = |(id, role, external): &(NodeId, RowRole, u64)| MemberRow {
            id: *id,
            name: format!("c{id}").parse().unwrap(),
            address: format!("127.0.0.1:{}", 9000 + id).parse().unwrap(),
            certificate: String::new(),
            role: *role,
            schema_internal: 3,
            schema_external: *external,
            extensions: vec!["a".into(), "b".into()],
            last_heartbeat: Timestamp::ZERO,
            token_id: None,
            failure_domain: 0,
        };
        rows.iter().map(row).collect()
    }

    #[test]
    fn updates_are_due_when_all_members_have_them() {
        use RowRole::{Leaving, Pending, Spare, Voter};
        let due = |own, cluster, members: &[_]| due(level_of(own), level_of(cluster), &rows(members));
        assert_eq!(due(2, 1, &[(1, Voter, 2), (2, Voter, 1)]), None);
        assert_eq!(due(2, 1, &[(1, Voter, 2), (2, Spare, 1)]), None, "one that does not vote has the tables too");
        assert_eq!(due(2, 1, &[(1, Voter, 2), (2, Pending, 1)]), None);
        assert_eq!(due(2, 1, &[(1, Voter, 2), (2, Leaving, 1)]), Some(level_of(2)));
        assert_eq!(due(4, 1, &[(1, Voter, 4), (2, Voter, 2), (3, Voter, 3)]), Some(level_of(2)), "as far as all are");
        assert_eq!(due(1, 1, &[(1, Voter, 2), (2, Voter, 2)]), None, "this leader does not have them");
        assert_eq!(due(2, 2, &[(1, Voter, 2), (2, Voter, 2)]), None);
        assert_eq!(due(2, 0, &[]), None, "a bootstrap applies them itself");
        assert_eq!(due(2, 2, &[(1, Voter, 2), (2, Voter, 1)]), None, "nothing is taken back");
    }

    #[test]
    fn a_member_knows_where_it_stands() {
        let members = rows(&[(1, RowRole::Voter, 2), (2, RowRole::Voter, 1), (3, RowRole::Leaving, 1)]);
        let found = |own, cluster| standing(level_of(own), level_of(cluster), &members);
        assert_eq!(found(1, 1), Standing::Current);
        assert_eq!(found(2, 1), Standing::Waits { members: vec!["c2".parse().unwrap()] });
        let too_old = TooOld { own: level_of(1), cluster: level_of(2) };
        assert_eq!(found(1, 2), Standing::TooOld(too_old));
        let said = too_old.to_string();
        assert!(said.contains("schema 1,") && said.contains("schema 2,"), "{said}");
    }

    #[test]
    fn the_list_shows_who_waits_and_for_whom() {
        let shown = |row, highest, cluster| shown(level_of(row), level_of(highest), level_of(cluster));
        assert_eq!(shown(1, 1, 1), MemberStatus::Online);
        assert_eq!(shown(2, 2, 1), MemberStatus::Upgrading);
        assert_eq!(shown(1, 2, 1), MemberStatus::NeedsUpgrade);
        assert_eq!(shown(2, 2, 2), MemberStatus::Online);
    }
}
