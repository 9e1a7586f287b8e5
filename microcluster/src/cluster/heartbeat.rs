//! Heartbeats: the leader asks all members whether they are alive, records it, and tells the product.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use microcluster_client::{Name, Role, Timestamp};

use super::hook_calls::{HookError, RoleChanges, RoleStatus};
use super::members;
use super::node::Node;
use crate::db::{self, Consistency, NodeId};
use crate::tasks::Tasks;

/// Why a round was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeartbeatError {
    #[error("this member does not lead: a heartbeat round is the leader's")]
    NotLeader,
    #[error("cannot record the heartbeats")]
    Database(#[from] db::Error),
    #[error(transparent)]
    Hook(#[from] HookError),
}

/// Runs a round at every interval while this member leads, until the tasks are stopped.
pub(crate) async fn keep_heartbeat(node: Arc<Node>, interval: Duration, tasks: Tasks) {
    let is_telling = Arc::new(AtomicBool::new(false));
    loop {
        tokio::select! {
            () = tasks.stopping() => return,
            () = tokio::time::sleep(interval) => {}
        }
        if !node.db.status().is_leader() {
            // Who leads again later knows nothing of what was meanwhile.
            node.last_roles().clear();
            continue;
        }
        let roles = match node.heartbeat().await {
            Ok(roles) => roles,
            Err(e) => {
                tracing::warn!(error = %e, "cannot record the heartbeats");
                continue;
            }
        };
        // A slow hook holds up no round; a round that finds one running does without.
        if !is_telling.swap(true, Ordering::AcqRel) {
            let (node, is_telling) = (node.clone(), is_telling.clone());
            tasks.spawn("on_heartbeat", async move {
                if let Err(e) = node.hooks.heartbeat(node.clone(), roles).await {
                    tracing::warn!(error = %e, "a hook failed");
                }
                is_telling.store(false, Ordering::Release);
            });
        }
    }
}

impl Node {
    /// A round that is asked for, its hook included.
    pub async fn begin_heartbeat(self: &Arc<Self>) -> Result<(), HeartbeatError> {
        if !self.db.status().is_leader() {
            return Err(HeartbeatError::NotLeader);
        }
        let roles = self.heartbeat().await?;
        Ok(self.hooks.heartbeat(self.clone(), roles).await?)
    }

    /// One round: all members at the same time, then one statement. Returns the roles before and now.
    async fn heartbeat(&self) -> Result<RoleChanges, db::Error> {
        let rows = self.db.read(Consistency::Local, members::all).await?;
        let pings = rows.iter().map(|row| async { self.answers(row).await.then_some(row.id) });
        let alive: Vec<NodeId> = join_all(pings).await.into_iter().flatten().collect();
        self.note_heartbeat(&rows.iter().map(|row| row.id).collect::<Vec<_>>(), &alive);
        if !alive.is_empty() {
            let ids: Vec<String> = alive.iter().map(ToString::to_string).collect();
            let sql = format!("UPDATE core_cluster_members SET last_heartbeat = ?1 WHERE id IN ({})", ids.join(", "));
            self.db.execute(&sql, [Timestamp::now().to_string()]).await?;
        }
        let voters = self.db.status().voters;
        let now: BTreeMap<Name, Role> = rows.into_iter().map(|row| (row.name.clone(), row.role(&voters))).collect();
        let before = std::mem::replace(&mut *self.last_roles(), now.clone());
        Ok(changes(&before, &now))
    }

    fn last_roles(&self) -> MutexGuard<'_, BTreeMap<Name, Role>> {
        // Nothing that holds the lock can panic, so a poisoned value is a whole one.
        self.last_roles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn changes(before: &BTreeMap<Name, Role>, now: &BTreeMap<Name, Role>) -> RoleChanges {
    let names: BTreeSet<&Name> = before.keys().chain(now.keys()).collect();
    let status = |name| RoleStatus { before: before.get(name).copied(), after: now.get(name).copied() };
    names.into_iter().map(|name| (name.clone(), status(name))).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_round_tells_who_came_went_and_changed() {
        let roles = |pairs: &[(&str, Role)]| -> BTreeMap<Name, Role> {
            pairs.iter().map(|(name, role)| (name.parse().unwrap(), *role)).collect()
        };
        let before = roles(&[("c1", Role::Voter), ("c2", Role::StandBy), ("c3", Role::Voter)]);
        let now = roles(&[("c1", Role::Voter), ("c2", Role::Voter), ("c4", Role::StandBy)]);
        let told: Vec<_> = changes(&before, &now)
            .into_iter()
            .map(|(name, status)| (name.to_string(), status.before, status.after))
            .collect();
        let expected = [
            ("c1".to_owned(), Some(Role::Voter), Some(Role::Voter)),
            ("c2".to_owned(), Some(Role::StandBy), Some(Role::Voter)),
            ("c3".to_owned(), Some(Role::Voter), None),
            ("c4".to_owned(), None, Some(Role::StandBy)),
        ];
        assert_eq!(told, expected);
    }
}
