//! Removing a member, on the leader. The mark in its row is the decision; what follows is finished
//! by whoever leads, however often that changes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Method;
use microcluster_client::{Address, Empty, Name};

use super::hook_calls::{HookError, Told};
use super::members::{self, MemberRow, RowRole};
use super::node::{NEWS, Node};
use super::roles::{self, Candidate, Candidates, FullRole};
use super::tokens;
use crate::db::{self, NodeId};

/// How long a removed member may take to hear of it. One that does not is told when it asks.
const TELL_TIMEOUT: Duration = Duration::from_secs(1);

/// Which member is to be removed.
#[derive(Clone, Debug)]
pub(crate) struct Removal {
    pub name: Name,
    /// The one with that id, if one is given: another one may have come under the name.
    pub id: Option<NodeId>,
    /// The one with that address, if one is given.
    pub address: Option<Address>,
    /// It need not answer.
    pub force: bool,
}

/// Why a member was not removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoveError {
    #[error("there is no member named {name}; `microctl cluster list` shows those there are")]
    NotFound { name: Name },
    #[error("{name} has the address {present}, not {given}; it is not removed")]
    OtherAddress { name: Name, present: Address, given: Address },
    #[error("{name} is the only member: stop the daemon and delete its state directory instead")]
    Last { name: Name },
    #[error("{name} does not answer; if it is gone for good remove it with --force")]
    Unreachable { name: Name },
    #[error(
        "{name} is not removed: of the members that would vote then no majority answers; bring {} back, or remove them first", listed(.silent)
    )]
    NoMajority { name: Name, silent: Vec<Name> },
    #[error("{name} is the leader, and no other member took over; try again")]
    Leads { name: Name },
    #[error("{name} is not removed: {hook}; to remove it nevertheless use --force")]
    PreRemove { name: Name, hook: HookError },
    #[error("{name} was removed, but not everything that follows from that was done: {hook}")]
    PostRemove { name: Name, hook: HookError },
    #[error("cannot remove {name}")]
    Database { name: Name, source: db::Error },
}

impl Node {
    /// Removes another member, or a joiner, from the cluster and tells it.
    pub async fn remove(self: &Arc<Self>, removal: &Removal) -> Result<(), RemoveError> {
        let Removal { name, id, address, force } = removal;
        let force = *force;
        let database = |source| RemoveError::Database { name: name.clone(), source };
        let rows = self.rows().await.map_err(database)?;
        let row = removable(&rows, name, *id, self.id)?;
        if let Some(given) = address.filter(|given| *given != row.address) {
            return Err(RemoveError::OtherAddress { name: name.clone(), present: row.address, given });
        }
        // Before the lock, here and below: a hook may use the cluster as it likes.
        let asked = self.tell_pre_remove(row, force).await;
        let told = asked.map_err(|hook| RemoveError::PreRemove { name: name.clone(), hook })?;
        if told == Told::LeftOut && !force {
            return Err(RemoveError::Unreachable { name: name.clone() });
        }
        self.remove_row(name, row.id, force).await?;
        let told = self.tell_post_remove(force).await;
        told.map_err(|hook| RemoveError::PostRemove { name: name.clone(), hook })
    }

    async fn remove_row(&self, name: &Name, id: NodeId, force: bool) -> Result<(), RemoveError> {
        let database = |source| RemoveError::Database { name: name.clone(), source };
        let _membership = self.membership.lock().await;
        let rows = self.rows().await.map_err(database)?;
        let row = removable(&rows, name, Some(id), self.id)?;
        if !force && !self.is_alive(row).await {
            return Err(RemoveError::Unreachable { name: name.clone() });
        }
        let silent = self.missing_for_majority(row.id, &rows).await;
        if !silent.is_empty() {
            return Err(RemoveError::NoMajority { name: name.clone(), silent });
        }
        let (id, own, removed) = (row.id, self.id, name.clone());
        let marked = self.db.transaction(move |tx| {
            // With what is committed by now: a leader of the past may be removing others.
            let rows = members::all_in(tx)?;
            let row = removable(&rows, &removed, Some(id), own).map_err(db::Error::other)?;
            members::mark_leaving(tx, id)?;
            // Nobody was given that of a rebuilt member, so nobody can revoke it; another one was used by now.
            let token_id = row.token_id.filter(|_| row.role != RowRole::Pending);
            token_id.map_or(Ok(()), |token| tokens::spend(tx, token))
        });
        marked.await.map_err(|e| e.downcast::<RemoveError>().unwrap_or_else(database))?;
        self.reached("marked");
        self.finish_removal(row, force).await.map_err(database)
    }

    /// Does what is left of a removal that was decided. The caller holds the membership lock.
    pub(super) async fn finish_removal(&self, row: &MemberRow, force: bool) -> Result<(), db::Error> {
        self.leave_raft(row.id).await?;
        self.reached("out of Raft");
        self.tell_removed(row, force).await;
        self.reached("told");
        self.forget(row).await
    }

    /// The last step: nobody trusts it any more.
    pub(super) async fn forget(&self, row: &MemberRow) -> Result<(), db::Error> {
        let id = row.id;
        self.db.transaction(move |tx| members::delete(tx, id, RowRole::Leaving)).await?;
        self.reached("row deleted");
        self.refresh_trust().await?;
        self.nudge();
        tracing::info!(member = %row.name, id, "a member was removed");
        Ok(())
    }

    /// Takes a node out of Raft; who replaces it as a voter begins to vote in the same step.
    pub(super) async fn leave_raft(&self, id: NodeId) -> Result<(), db::Error> {
        let raft = self.db.status();
        if raft.voters.contains(&id) {
            let rows = self.rows().await?;
            let mut voters = self.voters_without(id, &rows);
            let silent = self.silent_among(&voters, &rows).await;
            if !is_majority(voters.len() - silent.len(), voters.len()) {
                // They could not agree to anything; those come back as voters once they answer.
                voters.retain(|voter| !silent.contains(voter));
                silent.iter().for_each(|voter| self.note_silent(*voter));
            }
            self.ensure_voters(voters).await?;
        }
        if self.db.status().nodes.contains_key(&id) {
            self.db.remove_node(id).await?;
        }
        Ok(())
    }

    /// Who votes when a member is out.
    fn voters_without(&self, id: NodeId, rows: &[MemberRow]) -> BTreeSet<NodeId> {
        let (raft, unreachable) = (self.db.status(), self.unreachable());
        let remaining: Candidates = rows
            .iter()
            .filter(|row| row.role.is_full() && row.id != id && raft.nodes.contains_key(&row.id))
            .map(|row| (row.id, row.candidate(&raft.voters, &unreachable)))
            .collect();
        roles::voters(&roles::assign(self.role_counts, self.id, &remaining))
    }

    /// Who of these does not answer now; no more of them than are found until a majority has answered.
    async fn silent_among(&self, ids: &BTreeSet<NodeId>, rows: &[MemberRow]) -> BTreeSet<NodeId> {
        let others = rows.iter().filter(|row| ids.contains(&row.id) && row.id != self.id);
        let mut asked: FuturesUnordered<_> = others.map(|row| async { (row.id, self.is_alive(row).await) }).collect();
        let (mut answering, mut silent) = (ids.contains(&self.id).into(), BTreeSet::new());
        // A majority is enough: nobody waits for who does not answer then.
        while !is_majority(answering, ids.len())
            && let Some((id, is_alive)) = asked.next().await
        {
            match is_alive {
                true => answering += 1,
                false => drop(silent.insert(id)),
            }
        }
        silent
    }

    /// Those without whom the voters that are left when a voter is removed could not agree to anything; none if they can.
    async fn missing_for_majority(&self, id: NodeId, rows: &[MemberRow]) -> Vec<Name> {
        if !self.db.status().voters.contains(&id) {
            return Vec::new();
        }
        let voters = self.voters_without(id, rows);
        let silent = self.silent_among(&voters, rows).await;
        if is_majority(voters.len() - silent.len(), voters.len()) {
            return Vec::new();
        }
        rows.iter().filter(|row| silent.contains(&row.id)).map(|row| row.name.clone()).collect()
    }

    /// Tells a removed member to forget the cluster. It may be dead, so this may fail.
    async fn tell_removed(&self, row: &MemberRow, force: bool) {
        let client = self.peers.client(row.address).timeout(TELL_TIMEOUT).notification();
        // With its id: one of that name can have joined again before this arrives.
        let path = format!("/core/internal/cluster/{}?force={}&id={}", row.name, u8::from(force), row.id);
        match self.while_there(row, NEWS, client.query::<Empty>(Method::PUT, &path, ())).await {
            Some(Ok(Empty {})) => {}
            Some(Err(e)) => tracing::warn!(member = %row.name, error = %e, "a removed member could not be told"),
            None => tracing::warn!(member = %row.name, "a removed member does not answer, and was not told"),
        }
    }
}

fn is_majority(part: usize, all: usize) -> bool {
    2 * part > all
}

fn listed(names: &[Name]) -> String {
    names.iter().map(Name::as_str).collect::<Vec<_>>().join(", ")
}

/// The row of a member that can be removed.
fn removable<'a>(
    rows: &'a [MemberRow],
    name: &Name,
    id: Option<NodeId>,
    leader: NodeId,
) -> Result<&'a MemberRow, RemoveError> {
    let row = rows.iter().find(|row| row.name == *name && id.is_none_or(|id| id == row.id));
    let row = row.ok_or_else(|| RemoveError::NotFound { name: name.clone() })?;
    let others = rows.iter().filter(|other| other.id != row.id && other.role.is_full()).count();
    if row.role.is_full() && others == 0 {
        return Err(RemoveError::Last { name: name.clone() });
    }
    if row.id == leader {
        return Err(RemoveError::Leads { name: name.clone() });
    }
    Ok(row)
}

impl MemberRow {
    /// A member that is in, as one that is to have a role.
    pub(super) fn candidate(&self, voters: &BTreeSet<NodeId>, unreachable: &BTreeSet<NodeId>) -> Candidate {
        let role = match self.role {
            // Raft is the truth about who votes.
            _ if voters.contains(&self.id) => FullRole::Voter,
            RowRole::Voter | RowRole::StandBy => FullRole::StandBy,
            RowRole::Spare | RowRole::Pending | RowRole::Rebuilding | RowRole::Leaving => FullRole::Spare,
        };
        let is_reachable = !unreachable.contains(&self.id);
        Candidate { role: Some(role), failure_domain: self.failure_domain, is_reachable }
    }
}

impl From<FullRole> for RowRole {
    fn from(role: FullRole) -> Self {
        match role {
            FullRole::Voter => RowRole::Voter,
            FullRole::StandBy => RowRole::StandBy,
            FullRole::Spare => RowRole::Spare,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::members::tests::row;

    #[test]
    fn the_last_member_stays_whoever_else_is_on_its_way() {
        let rows = |others: &[RowRole]| {
            let others = (3..).zip(others).map(|(id, role)| MemberRow { id, ..row(*role) });
            [row(RowRole::Voter)].into_iter().chain(others).collect::<Vec<_>>()
        };
        let asked = |others: &[RowRole]| {
            let rows = rows(others);
            removable(&rows, &rows[0].name, Some(2), 1).map(|row| row.id).map_err(|e| e.to_string())
        };
        assert_eq!(asked(&[RowRole::StandBy]), Ok(2));
        // Two that remove each other through two leaders.
        for others in [&[][..], &[RowRole::Leaving], &[RowRole::Pending, RowRole::Rebuilding]] {
            assert!(asked(others).is_err_and(|e| e.contains("the only member")), "{others:?}");
        }
    }
}
