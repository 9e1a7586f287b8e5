//! Hooks that the leader has run on the members: around a removal, for a new member, after a heartbeat.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, join_all};
use microcluster_client::{Client, Hook, MemberLocal, Name, NewMemberHook, RemovalHook, Role};
use serde::{Deserialize, Serialize};

use super::members::MemberRow;
use super::node::Node;
use crate::db::Patience;
use crate::error::Error;

/// How long a member that falls silent is waited for while it runs a hook.
const SILENT: Patience = Patience { silence: Duration::from_secs(1), least: Duration::from_millis(250) };
/// How long a member may take to say whether it is up.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);
/// What an answer may take beyond the hook itself.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a member may take to be up, and the pause between two looks.
const UP_TIMEOUT: Duration = Duration::from_secs(5);
const UP_PAUSE: Duration = Duration::from_millis(50);

/// What a member does in Raft, before and after a heartbeat round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleStatus {
    /// In the round before; none for a member that is new, and in the first round of a leader.
    pub before: Option<Role>,
    /// Now; none for a member that was removed.
    pub after: Option<Role>,
}

/// The roles of all members by name.
pub(crate) type RoleChanges = BTreeMap<Name, RoleStatus>;

/// How a node has hooks run on its own member.
pub(crate) trait NodeHooks: Send + Sync {
    /// Runs what a member can be asked for.
    fn run(&self, node: Arc<Node>, hook: Hook) -> BoxFuture<'_, Result<(), HookError>>;
    /// Runs `on_heartbeat`.
    fn heartbeat(&self, node: Arc<Node>, roles: RoleChanges) -> BoxFuture<'_, Result<(), HookError>>;
    /// Whether none begins any more: the daemon stops.
    fn is_stopping(&self) -> bool;
    /// How long a hook may take, here and, as they run the same product, on the other members.
    fn timeout(&self) -> Duration;
}

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    #[error("the hook {hook} failed: {error}")]
    Failed { hook: &'static str, error: Error },
    #[error("the hook {hook} panicked; the log of the daemon says why")]
    Panicked { hook: &'static str },
    #[error("the hook {hook} was not done within {limit:?} and was cut off")]
    TooLong { hook: &'static str, limit: Duration },
    #[error("the hook {hook} was not run: {running} still ran after {waited:?}")]
    NoTurn { hook: &'static str, running: &'static str, waited: Duration },
    #[error("the hook {hook} was cut off: the daemon stops")]
    Stopped { hook: &'static str },
    #[error("there is no hook {hook}; there are {}", Hook::NAMES.join(", "))]
    Unknown { hook: String },
    /// What another member answered, with its HTTP status.
    #[error("on {member}: {message}")]
    Elsewhere { member: Name, code: Option<u16>, message: String },
}

/// What an admitted joiner is told when it asks to be taken in.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Confirmation {
    /// Why it was not, for good: its join is undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<HookRefusal>,
}

/// A hook that failed, as an answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HookRefusal {
    pub code: u16,
    pub message: String,
}

/// Whether a member has run a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Ran,
    /// It is down, or was cut off.
    LeftOut,
}

impl Node {
    /// Runs a hook on this member.
    pub async fn run_hook(self: &Arc<Self>, hook: Hook) -> Result<(), HookError> {
        self.hooks.run(self.clone(), hook).await
    }

    /// Has every member run `on_new_member`, all at the same time.
    ///
    /// A member that is down is left out: a dead one must not keep others from joining, and it finds the new member in
    /// the list when it is back. One that is alive and fails, or does not answer in time, fails the join.
    pub(super) async fn tell_new_member(
        self: &Arc<Self>,
        rows: &[MemberRow],
        new_member: &MemberLocal,
    ) -> Result<(), HookError> {
        let hook = Hook::OnNewMember(NewMemberHook { new_member: new_member.clone() });
        let others = rows.iter().filter(|row| row.role.is_full() && row.name != new_member.name);
        first_failure(join_all(others.map(|row| self.run_hook_on(row, &hook))).await)
    }

    /// Has a member run `pre_remove`. With `force` a failure is logged.
    pub(super) async fn tell_pre_remove(self: &Arc<Self>, row: &MemberRow, force: bool) -> Result<Told, HookError> {
        if !row.role.is_full() {
            // It was never a member.
            return Ok(Told::Ran);
        }
        let told = self.run_hook_on(row, &Hook::PreRemove(RemovalHook { force })).await;
        match told {
            Err(e) if force => {
                tracing::warn!(member = %row.name, error = %e, "a member is removed although its hook failed");
                Ok(Told::Ran)
            }
            told => told,
        }
    }

    /// Has every member that remains run `post_remove`, all at the same time.
    pub(super) async fn tell_post_remove(self: &Arc<Self>, force: bool) -> Result<(), HookError> {
        let hook = Hook::PostRemove(RemovalHook { force });
        let rows = self.db.read(crate::db::Consistency::Local, super::members::all).await.unwrap_or_default();
        let members = rows.iter().filter(|row| row.role.is_full());
        first_failure(join_all(members.map(|row| self.run_hook_on(row, &hook))).await)
    }

    /// Runs a hook on one member; one that is down is left out.
    async fn run_hook_on(self: &Arc<Self>, row: &MemberRow, hook: &Hook) -> Result<Told, HookError> {
        if row.id == self.id {
            return self.run_hook(hook.clone()).await.map(|()| Told::Ran);
        }
        if !self.is_alive(row).await {
            return Ok(left_out(row, hook));
        }
        // It may be cut off while its hook runs: then nobody hears how that ends.
        self.while_there(row, SILENT, self.call_hook(row, hook)).await.unwrap_or_else(|| {
            tracing::warn!(member = %row.name, hook = hook.name(), "a member fell silent while it ran a hook: how that ended is not known");
            Ok(Told::LeftOut)
        })
    }

    async fn call_hook(&self, row: &MemberRow, hook: &Hook) -> Result<Told, HookError> {
        let client = self.peers.client(row.address).timeout(self.hooks.timeout() + ANSWER_TIMEOUT).notification();
        let (begun, mut was_up) = (Instant::now(), false);
        loop {
            match client.run_hook(hook, Some(&row.name)).await {
                Ok(()) => return Ok(Told::Ran),
                // It died on the way: that is no failure of the hook.
                Err(e) if e.code().is_none() && !self.is_alive(row).await => {
                    return Ok(left_out(row, hook));
                }
                // It is in the table and not done with its own join, or with its start: many may join at once. Of one that
                // was up before it was asked this is the answer of its hook.
                Err(e) if e.code() == Some(503) && !was_up => {
                    if begun.elapsed() >= UP_TIMEOUT {
                        return Ok(left_out(row, hook));
                    }
                    was_up = is_up(&client).await;
                    if !was_up {
                        tokio::time::sleep(UP_PAUSE).await;
                    }
                }
                Err(e) => {
                    let (member, code) = (row.name.clone(), e.code());
                    return Err(HookError::Elsewhere { member, code, message: e.to_string() });
                }
            }
        }
    }
}

fn left_out(row: &MemberRow, hook: &Hook) -> Told {
    tracing::warn!(member = %row.name, hook = hook.name(), "a member that is down runs no hook");
    Told::LeftOut
}

/// Whether a member is one that does its work.
async fn is_up(client: &Client) -> bool {
    client.timeout(STATUS_TIMEOUT).status().await.is_ok_and(|status| status.ready)
}

/// The failure that is reported when several members may have failed; all are in the log.
fn first_failure(ended: Vec<Result<Told, HookError>>) -> Result<(), HookError> {
    let mut first = Ok(());
    for failed in ended.into_iter().filter_map(Result::err) {
        tracing::warn!(error = %failed, "a hook failed");
        if first.is_ok() {
            first = Err(failed);
        }
    }
    first
}
