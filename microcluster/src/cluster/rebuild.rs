//! Members whose files are damaged: found by comparing all members, and taken in again under a new Raft id.
//!
//! A log that has lost entries or votes must not vote again under its id: it could help to elect a leader that lacks
//! what it had acknowledged. So the member leaves its files aside and comes in like a joiner, except that it
//! needs no invitation: its certificate is a member's.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use microcluster_client::{JoinResponse, Name, Secret, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::members::{self, MemberRow, NewMember, RowRole};
use super::node::Node;
use super::tokens::{self, TokenRow};
use crate::db::{self, NodeId, Verdict, Verification};
use crate::tasks::Tasks;
use crate::token;

/// How often the leader has all members compare what they hold.
const VERIFY_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// How long after a start the first time is: one that is restarted every day compares too.
const VERIFY_FIRST: Duration = Duration::from_secs(600);

/// What a member with damaged files shows.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct RebuildRequest {
    /// The id that its files are of.
    pub member_id: NodeId,
}

/// What it is told: as a joiner, and the secret that it goes on with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Readmission {
    pub welcome: JoinResponse,
    pub secret: Secret,
}

/// Why a member was not taken in again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadmitError {
    #[error("there is no member named {name}: it was removed from the cluster")]
    Gone { name: Name },
    #[error("{name} is being removed from the cluster")]
    Leaving { name: Name },
    #[error("{name} has the id {id} by now; files of the id {claimed} are not a member's any more")]
    OtherId { name: Name, id: NodeId, claimed: NodeId },
    #[error("{name} is being rebuilt already, under the id {id}")]
    InProgress { name: Name, id: NodeId },
    #[error("{name} leads the cluster, and is to hand over first")]
    Leads { name: Name },
    #[error("cannot take {name} in again")]
    Database { name: Name, source: db::Error },
}

/// Compares the members now and then while this member leads, until the tasks are stopped.
pub(crate) async fn keep_verified(node: Arc<Node>, tasks: Tasks) {
    let mut times = tokio::time::interval_at(Instant::now() + VERIFY_FIRST, VERIFY_INTERVAL);
    loop {
        tokio::select! {
            () = tasks.stopping() => return,
            _ = times.tick() => {}
        }
        if !node.db.status().is_leader() {
            continue;
        }
        match node.verify().await {
            Ok(found) if found.members.iter().all(|(_, _, verdict)| *verdict == Verdict::Same) => {
                tracing::info!(index = found.index, "all members hold the same");
            }
            Ok(found) => {
                tracing::warn!(index = found.index, members = ?found.members, "not all members could be compared, or they differ")
            }
            Err(e) => tracing::warn!(error = %e, "the members could not be compared"),
        }
    }
}

impl Node {
    /// Compares what the members hold, and has those rebuilt that differ from most.
    pub async fn verify(&self) -> Result<Verification, db::Error> {
        let found = self.db.verify().await?;
        self.db.condemn(&found).await;
        Ok(found)
    }

    /// Gives a member a new id, in place of the one that its damaged files are of. May be repeated: until it is used the answer is the same.
    pub async fn readmit(&self, name: Name, request: RebuildRequest) -> Result<Readmission, ReadmitError> {
        let database = |source| ReadmitError::Database { name: name.clone(), source };
        let _membership = self.membership.lock().await;
        // So that no leader of the past says that there is no such member.
        self.db.linearize().await.map_err(&database)?;
        let (own, joiner) = (self.id, name.clone());
        let in_raft: BTreeSet<NodeId> = self.db.status().nodes.into_keys().collect();
        let new_secret = token::new_secret();
        let replaced = self.db.transaction(move |tx| {
            let rows = members::all_in(tx)?;
            let claimed = request.member_id;
            let row = replaceable(&rows, &joiner, claimed, own, &in_raft).map_err(db::Error::other)?;
            let is_free = rows.iter().all(|other| other.id != claimed || other.id == row.id);
            let mut gone: BTreeSet<NodeId> = is_free.then_some(claimed).into_iter().collect();
            if let Some(secret) = answered_before(row, claimed, &tokens::all_in(tx)?) {
                return Ok((gone, row.id, secret));
            }
            gone.insert(row.id);
            let token_id = tokens::replace(tx, &joiner, &new_secret)?;
            members::delete(tx, row.id, row.role)?;
            let new = members::insert(tx, &NewMember::rebuilding(row, token_id))?;
            Ok((gone, new, new_secret.clone()))
        });
        let (gone, new, secret) = match replaced.await {
            Ok(ids) => ids,
            Err(e) => {
                return Err(e
                    .downcast::<ReadmitError>()
                    .unwrap_or_else(|source| ReadmitError::Database { name, source }));
            }
        };
        // What it had voted with is gone: the majority must be one without it.
        for id in &gone {
            self.leave_raft(*id).await.map_err(&database)?;
        }
        self.nudge();
        self.refresh_trust().await.map_err(&database)?;
        let rows = self.rows().await.map_err(&database)?;
        tracing::warn!(member = %name, ?gone, new, "a member with damaged files is taken in again");
        let welcome = self.welcome(new, &rows).await.map_err(&database)?;
        Ok(Readmission { welcome, secret })
    }
}

/// The row that a rebuilt member's new one takes the place of.
fn replaceable<'a>(
    rows: &'a [MemberRow],
    name: &Name,
    claimed: NodeId,
    own: NodeId,
    in_raft: &BTreeSet<NodeId>,
) -> Result<&'a MemberRow, ReadmitError> {
    let name = name.clone();
    let Some(row) = rows.iter().find(|row| row.name == name) else {
        return Err(ReadmitError::Gone { name });
    };
    match row.role {
        RowRole::Leaving => Err(ReadmitError::Leaving { name }),
        _ if row.id == own => Err(ReadmitError::Leads { name }),
        _ if row.id == claimed => Ok(row),
        // A late repetition: the answer to the first was used, and the member is coming in.
        RowRole::Rebuilding if in_raft.contains(&row.id) => Err(ReadmitError::InProgress { name, id: row.id }),
        // The answer to an earlier try was lost, or is on its way.
        RowRole::Rebuilding => Ok(row),
        _ => Err(ReadmitError::OtherId { name, id: row.id, claimed }),
    }
}

/// The secret of an earlier try of the same member: its answer may be lost, or be in use already, so it is given once more.
fn answered_before(row: &MemberRow, claimed: NodeId, tokens: &[TokenRow]) -> Option<Secret> {
    let token = tokens.iter().find(|token| row.token_id == Some(token.id));
    token.filter(|_| row.role == RowRole::Rebuilding && row.id != claimed).map(|token| token.secret.clone())
}

impl NewMember {
    fn rebuilding(row: &MemberRow, token_id: i64) -> Self {
        NewMember {
            id: None,
            name: row.name.clone(),
            address: row.address,
            certificate: row.certificate.clone(),
            role: RowRole::Rebuilding,
            schema_internal: row.schema_internal,
            schema_external: row.schema_external,
            extensions: row.extensions.clone(),
            last_heartbeat: Timestamp::ZERO,
            token_id: Some(token_id),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn row(id: NodeId, name: &str, role: RowRole) -> MemberRow {
        MemberRow {
            id,
            name: name.parse().unwrap(),
            address: format!("127.0.0.1:{}", 9000 + id).parse().unwrap(),
            certificate: String::new(),
            role,
            schema_internal: 1,
            schema_external: 0,
            extensions: vec![],
            last_heartbeat: Timestamp::ZERO,
            token_id: None,
            failure_domain: 0,
        }
    }

    fn replaced(role: RowRole, claimed: NodeId, in_raft: &[NodeId]) -> Result<NodeId, ReadmitError> {
        let rows = [row(1, "c1", RowRole::Voter), row(3, "c3", role)];
        let in_raft = in_raft.iter().copied().collect();
        replaceable(&rows, &"c3".parse().unwrap(), claimed, 1, &in_raft).map(|row| row.id)
    }

    #[test]
    fn only_the_member_itself_is_replaced() {
        for role in [RowRole::Voter, RowRole::StandBy, RowRole::Spare] {
            assert_eq!(replaced(role, 3, &[1, 3]).unwrap(), 3);
            assert!(matches!(replaced(role, 2, &[1, 3]), Err(ReadmitError::OtherId { id: 3, claimed: 2, .. })));
        }
        assert!(matches!(replaced(RowRole::Leaving, 3, &[1, 3]), Err(ReadmitError::Leaving { .. })));
        let rows = [row(1, "c1", RowRole::Voter)];
        let found = |name: &str| replaceable(&rows, &name.parse().unwrap(), 1, 1, &BTreeSet::new()).map(|row| row.id);
        assert!(matches!(found("c1"), Err(ReadmitError::Leads { .. })));
        assert!(matches!(found("c3"), Err(ReadmitError::Gone { .. })));
    }

    #[test]
    fn a_repetition_gets_the_same_answer_until_it_is_used() {
        assert_eq!(replaced(RowRole::Rebuilding, 2, &[1]).unwrap(), 3, "the answer of the first try was lost");
        let tokens = [8, 9].map(|id| TokenRow {
            id,
            name: "c3".parse().unwrap(),
            secret: token::new_secret(),
            expires_at: Timestamp::ZERO,
        });
        let again = |role, token_id, claimed| {
            let row = MemberRow { token_id, ..row(3, "c3", role) };
            answered_before(&row, claimed, &tokens).map(|secret| secret.expose().to_owned())
        };
        let secret = tokens[1].secret.expose().to_owned();
        assert_eq!(again(RowRole::Rebuilding, Some(9), 2), Some(secret));
        assert_eq!(again(RowRole::Rebuilding, Some(9), 3), None, "damaged again on its way in");
        assert_eq!(again(RowRole::Voter, Some(9), 2), None);
        assert_eq!(again(RowRole::Rebuilding, Some(7), 2), None);
        assert_eq!(again(RowRole::Rebuilding, None, 2), None);
        let late = replaced(RowRole::Rebuilding, 2, &[1, 3]);
        assert!(matches!(late, Err(ReadmitError::InProgress { id: 3, .. })), "the member is coming in under it");
        assert_eq!(replaced(RowRole::Rebuilding, 3, &[1, 3]).unwrap(), 3, "damaged again on its way in");
    }
}
