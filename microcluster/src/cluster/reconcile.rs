//! The reconciler: the leader puts in order what a crash or a failure has left half done.
//!
//! What is to be done follows from the member table and the Raft membership alone, so it can run at any
//! time, by any leader, any number of times.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::members::{self, MemberRow, RowRole};
use super::node::Node;
use super::roles::{self, Candidates};
use super::tokens::{self, TokenRow};
use crate::config::RoleCounts;
use crate::db::{self, Consistency, NodeId};
use crate::tasks::Tasks;

/// How often everything is looked at without a reason.
const INTERVAL: Duration = Duration::from_secs(10);
/// Pause after a change, so that many changes are looked at together.
const PAUSE: Duration = Duration::from_millis(250);

/// One thing to put in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    /// Finish the removal of a member.
    FinishRemoval(NodeId),
    /// A joiner votes already: finish taking it in.
    TakeIn(NodeId),
    /// A joiner did not come back.
    DropPending(NodeId),
    /// Raft knows a node that has no row.
    DropOrphan(NodeId),
    /// A member is in that Raft does not know.
    RestoreNode(NodeId),
    /// Other members should vote.
    SetVoters(BTreeSet<NodeId>),
    /// The rows should say something else.
    SetRoles(BTreeMap<NodeId, (RowRole, RowRole)>),
}

/// What the leader sees.
struct View<'a> {
    rows: &'a [MemberRow],
    tokens: &'a [TokenRow],
    voters: &'a BTreeSet<NodeId>,
    /// A change of the voters was begun and not finished.
    is_joint: bool,
    learners: &'a BTreeSet<NodeId>,
    /// Joiners that catch up now.
    confirming: &'a HashSet<NodeId>,
    /// Joiners that have had their time.
    overdue: &'a HashSet<NodeId>,
    /// Members that do not answer.
    unreachable: &'a BTreeSet<NodeId>,
    /// This member.
    leader: NodeId,
    role_counts: RoleCounts,
}

/// Puts the membership in order whenever this member leads, until the tasks are stopped.
pub(crate) async fn keep_reconciled(node: Arc<Node>, tasks: Tasks) {
    let mut changes = node.db.changes();
    let mut pending_since = HashMap::new();
    loop {
        if node.db.status().is_leader() {
            match node.reconcile(&mut pending_since).await {
                // Its own removal is finished by the next leader.
                Ok(done) if done.iter().any(|done| matches!(done, Action::FinishRemoval(id) if *id != node.id)) => {
                    // Beside this: a slow hook holds up nothing here.
                    let node = node.clone();
                    tasks.spawn("post_remove", async move { drop(node.tell_post_remove(false).await) });
                }
                Ok(_) => {}
                Err(e) => tracing::warn!(error = %e, "cannot put the cluster's membership in order; trying again"),
            }
        }
        tokio::select! {
            () = tasks.stopping() => return,
            () = tokio::time::sleep(INTERVAL) => {}
            () = node.disorder.notified() => {}
            changed = changes.changed() => if changed.is_err() { return },
        }
        // A busy database changes all the time; the member table hardly ever does.
        tokio::select! {
            () = tasks.stopping() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

impl Node {
    async fn reconcile(&self, pending_since: &mut HashMap<NodeId, Instant>) -> Result<Vec<Action>, db::Error> {
        let (rows, token_rows) = self
            .db
            .read(Consistency::Local, |db| {
                let rows = members::all(db)?;
                let tokens = if rows.is_empty() { Vec::new() } else { tokens::all(db)? };
                Ok((rows, tokens))
            })
            .await?;
        if !rows.iter().any(|row| row.id == self.id) {
            // The cluster is being bootstrapped.
            return Ok(Vec::new());
        }
        let now = Instant::now();
        // One that catches up is not late, however long that takes.
        for id in self.confirming().iter() {
            pending_since.insert(*id, now);
        }
        let overdue = overdue(&rows, pending_since, now, self.pending_timeout);
        if self.actions(&rows, &token_rows, &overdue).is_empty() {
            return Ok(Vec::new());
        }
        // Something is to be done: look again with everything that is committed, while nobody else changes it.
        let _membership = self.membership.lock().await;
        let (rows, token_rows) =
            self.db.read(Consistency::Linearizable, |db| Ok((members::all(db)?, tokens::all(db)?))).await?;
        let actions = self.actions(&rows, &token_rows, &overdue);
        for action in &actions {
            if let Action::SetVoters(voters) = action
                && self.has_silent_newcomer(voters, &rows).await
            {
                break;
            }
            tracing::info!(?action, "putting the membership in order");
            self.carry_out(action.clone(), &rows).await?;
        }
        // One step at a time: there may be another one.
        self.nudge();
        Ok(actions)
    }

    fn actions(&self, rows: &[MemberRow], tokens: &[TokenRow], overdue: &HashSet<NodeId>) -> Vec<Action> {
        let raft = self.db.status();
        plan(&View {
            rows,
            tokens,
            voters: &raft.voters,
            is_joint: raft.is_joint,
            learners: &raft.learners,
            confirming: &self.confirming(),
            overdue,
            unreachable: &self.unreachable(),
            leader: self.id,
            role_counts: self.role_counts,
        })
    }

    /// Whether one that is to vote does not answer; it is chosen no more then until it does. A new leader has not heard anybody yet, and
    /// with a voter that is down a majority may be none: so those who are left after a recovery would lose it again.
    async fn has_silent_newcomer(&self, voters: &BTreeSet<NodeId>, rows: &[MemberRow]) -> bool {
        let present = self.db.status().voters;
        let newcomers = rows.iter().filter(|row| voters.contains(&row.id) && !present.contains(&row.id));
        let asked = newcomers.map(|row| async { (!self.answers(row).await).then_some(row.id) });
        let silent: Vec<NodeId> = join_all(asked).await.into_iter().flatten().collect();
        silent.iter().for_each(|id| self.note_silent(*id));
        !silent.is_empty()
    }

    async fn carry_out(&self, action: Action, rows: &[MemberRow]) -> Result<(), db::Error> {
        let row = |id: NodeId| rows.iter().find(|row| row.id == id);
        match action {
            Action::FinishRemoval(id) if id == self.id => self.db.transfer_leadership().await,
            Action::FinishRemoval(id) => match row(id) {
                Some(row) => self.finish_removal(row, false).await,
                None => Ok(()),
            },
            Action::TakeIn(id) => match row(id) {
                Some(row) => self.take_in(row).await,
                None => Ok(()),
            },
            Action::DropPending(id) => self.drop_pending(id).await.map(|_| ()),
            Action::DropOrphan(id) => self.leave_raft(id).await,
            Action::RestoreNode(id) => match row(id) {
                Some(row) => self.db.add_node(id, row.peer()).await,
                None => Ok(()),
            },
            Action::SetVoters(voters) => self.ensure_voters(voters).await,
            Action::SetRoles(changes) => {
                let change = move |tx: &db::Transaction<'_>| {
                    for (id, (from, to)) in &changes {
                        members::change_role(tx, *id, *from, *to)?;
                    }
                    Ok(())
                };
                self.db.transaction(change).await
            }
        }
    }
}

/// The joiners that have been pending for too long; a member that is rebuilt has all the time it needs. Measured by this leader's own clock, from when
/// it first saw them: a new leader gives them their time again.
fn overdue(
    rows: &[MemberRow],
    pending_since: &mut HashMap<NodeId, Instant>,
    now: Instant,
    timeout: Duration,
) -> HashSet<NodeId> {
    let pending: HashSet<NodeId> = rows.iter().filter(|row| row.role == RowRole::Pending).map(|row| row.id).collect();
    pending_since.retain(|id, _| pending.contains(id));
    for id in &pending {
        pending_since.entry(*id).or_insert(now);
    }
    let is_over = |since: &Instant| now.saturating_duration_since(*since) >= timeout;
    pending_since.iter().filter(|(_, since)| is_over(since)).map(|(id, _)| *id).collect()
}

fn plan(view: &View<'_>) -> Vec<Action> {
    let mut actions = Vec::new();
    for row in view.rows {
        match row.role {
            RowRole::Leaving => actions.push(Action::FinishRemoval(row.id)),
            role if role.is_joining() && view.confirming.contains(&row.id) => {}
            role if role.is_joining() && view.voters.contains(&row.id) => actions.push(Action::TakeIn(row.id)),
            RowRole::Pending | RowRole::Rebuilding => {
                let invited = view.tokens.iter().any(|token| Some(token.id) == row.token_id);
                if !invited || view.overdue.contains(&row.id) {
                    actions.push(Action::DropPending(row.id));
                }
            }
            RowRole::Voter | RowRole::StandBy | RowRole::Spare => {}
        }
    }
    let known: BTreeSet<NodeId> = view.rows.iter().map(|row| row.id).collect();
    let nodes = view.voters.union(view.learners);
    actions.extend(nodes.filter(|id| !known.contains(id)).map(|id| Action::DropOrphan(*id)));
    let is_in_raft = |row: &MemberRow| view.voters.contains(&row.id) || view.learners.contains(&row.id);
    let lost = view.rows.iter().filter(|row| row.role.is_full() && !is_in_raft(row));
    actions.extend(lost.map(|row| Action::RestoreNode(row.id)));
    let comes_in = |row: &MemberRow| row.role.is_joining() && view.voters.contains(&row.id);
    if actions.is_empty() && !view.rows.iter().any(comes_in) {
        // A joiner that votes already has no role yet, and must not lose its vote for that.
        actions.extend(plan_roles(view));
    }
    actions
}

fn plan_roles(view: &View<'_>) -> Vec<Action> {
    let is_in =
        |row: &&MemberRow| row.role.is_full() && (view.voters.contains(&row.id) || view.learners.contains(&row.id));
    let members: Candidates =
        view.rows.iter().filter(is_in).map(|row| (row.id, row.candidate(view.voters, view.unreachable))).collect();
    let assigned = roles::assign(view.role_counts, view.leader, &members);
    let voters = roles::voters(&assigned);
    let mut actions = Vec::new();
    if !voters.is_empty() && (voters != *view.voters || view.is_joint) {
        actions.push(Action::SetVoters(roles::next_voters(view.voters, &voters, &members)));
    }
    let changes: BTreeMap<NodeId, (RowRole, RowRole)> = view
        .rows
        .iter()
        .filter_map(|row| {
            let to = RowRole::from(*assigned.get(&row.id)?);
            (row.role != to).then_some((row.id, (row.role, to)))
        })
        .collect();
    if !changes.is_empty() {
        actions.push(Action::SetRoles(changes));
    }
    actions
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use microcluster_client::Timestamp;

    use super::RowRole::{Leaving, Pending, StandBy, Voter};
    use super::*;
    use crate::token::new_secret;

    fn row(id: NodeId, role: RowRole) -> MemberRow {
        MemberRow {
            id,
            name: format!("c{id}").parse().unwrap(),
            address: format!("127.0.0.1:{}", 9000 + id).parse().unwrap(),
            certificate: String::new(),
            role,
            schema_internal: 1,
            schema_external: 0,
            extensions: vec![],
            last_heartbeat: Timestamp::ZERO,
            failure_domain: 0,
            token_id: (role == Pending).then_some(1),
        }
    }

    fn token(id: i64) -> TokenRow {
        TokenRow { id, name: "c9".parse().unwrap(), secret: new_secret(), expires_at: Timestamp::ZERO }
    }

    struct World {
        rows: Vec<MemberRow>,
        tokens: Vec<TokenRow>,
        voters: Vec<NodeId>,
        is_joint: bool,
        learners: Vec<NodeId>,
        confirming: Vec<NodeId>,
        overdue: Vec<NodeId>,
        unreachable: Vec<NodeId>,
    }

    impl World {
        fn new(rows: &[(NodeId, RowRole)], voters: &[NodeId], learners: &[NodeId]) -> Self {
            World {
                rows: rows.iter().map(|(id, role)| row(*id, *role)).collect(),
                tokens: vec![token(1)],
                voters: voters.to_vec(),
                is_joint: false,
                learners: learners.to_vec(),
                confirming: vec![],
                overdue: vec![],
                unreachable: vec![],
            }
        }

        fn plan(&self) -> Vec<Action> {
            plan(&View {
                rows: &self.rows,
                tokens: &self.tokens,
                voters: &self.voters.iter().copied().collect(),
                is_joint: self.is_joint,
                learners: &self.learners.iter().copied().collect(),
                confirming: &self.confirming.iter().copied().collect(),
                overdue: &self.overdue.iter().copied().collect(),
                unreachable: &self.unreachable.iter().copied().collect(),
                leader: 1,
                role_counts: RoleCounts::default(),
            })
        }
    }

    #[test]
    fn nothing_to_do_in_a_cluster_that_is_in_order() {
        let world = World::new(&[(1, Voter), (2, Voter), (3, Voter), (4, StandBy)], &[1, 2, 3], &[4]);
        assert_eq!(world.plan(), []);
    }

    #[test]
    fn a_joiner_has_its_time_and_not_more() {
        let mut world = World::new(&[(1, Voter), (2, Pending)], &[1], &[2]);
        assert_eq!(world.plan(), []);
        world.overdue = vec![2];
        assert_eq!(world.plan(), [Action::DropPending(2)]);
        world.confirming = vec![2];
        assert_eq!(world.plan(), [], "it catches up");
        world.confirming.clear();
        world.voters.push(2);
        assert_eq!(world.plan(), [Action::TakeIn(2)], "it votes: it is in");
    }

    #[test]
    fn a_joiner_whose_token_is_gone_is_dropped() {
        let mut world = World::new(&[(1, Voter), (2, Pending)], &[1], &[]);
        world.tokens.clear();
        assert_eq!(world.plan(), [Action::DropPending(2)]);
    }

    #[test]
    fn a_node_without_a_row_is_an_orphan() {
        let world = World::new(&[(1, Voter), (3, Pending)], &[1], &[2, 3]);
        assert_eq!(world.plan(), [Action::DropOrphan(2)]);
    }

    #[test]
    fn a_member_that_raft_does_not_know_is_given_to_it() {
        let mut world = World::new(&[(1, Voter), (2, StandBy), (3, Pending)], &[1], &[]);
        world.confirming = vec![3];
        assert_eq!(world.plan(), [Action::RestoreNode(2)]);
        world.learners.push(2);
        world.rows.pop();
        let roles = Action::SetRoles([(2, (StandBy, Voter))].into());
        assert_eq!(world.plan(), [Action::SetVoters([1, 2].into()), roles]);
    }

    #[test]
    fn a_removal_is_finished() {
        let world = World::new(&[(1, Voter), (2, Leaving), (3, Voter)], &[1, 2, 3], &[]);
        assert_eq!(world.plan(), [Action::FinishRemoval(2)]);
    }

    #[test]
    fn a_stand_by_fills_the_place_of_a_voter() {
        let world = World::new(&[(1, Voter), (2, Voter), (4, StandBy)], &[1, 2], &[4]);
        let expected = [Action::SetVoters([1, 2, 4].into()), Action::SetRoles([(4, (StandBy, Voter))].into())];
        assert_eq!(world.plan(), expected);
    }

    #[test]
    fn a_silent_voter_is_replaced_also_while_somebody_joins_and_stays_where_it_is_when_it_is_back() {
        let rows = [(1, Voter), (2, Voter), (3, Voter), (4, StandBy), (9, Pending)];
        let mut world = World::new(&rows, &[1, 2, 3], &[4, 9]);
        world.unreachable = vec![3];
        world.confirming = vec![9];
        let roles = [(3, (Voter, StandBy)), (4, (StandBy, Voter))].into();
        assert_eq!(world.plan(), [Action::SetVoters([1, 2, 4].into()), Action::SetRoles(roles)]);
        let mut world = World::new(&[(1, Voter), (2, Voter), (3, StandBy), (4, Voter)], &[1, 2, 4], &[3]);
        assert_eq!(world.plan(), []);
        world.unreachable = vec![3];
        assert_eq!(world.plan(), []);
    }

    #[test]
    fn a_voter_that_nobody_can_replace_stays() {
        let mut world = World::new(&[(1, Voter), (2, Voter), (3, Voter)], &[1, 2, 3], &[]);
        world.unreachable = vec![3];
        assert_eq!(world.plan(), []);
    }

    #[test]
    fn overdue_joiners_are_those_seen_for_too_long() {
        let rows = [row(1, Voter), row(2, Pending)];
        let (mut since, start, timeout) = (HashMap::new(), Instant::now(), Duration::from_secs(60));
        let mut overdue = |rows, now| overdue(rows, &mut since, now, timeout);
        assert!(overdue(&rows[..], start).is_empty());
        assert!(overdue(&rows, start + timeout / 2).is_empty());
        assert_eq!(overdue(&rows, start + timeout), [2].into());
        assert!(overdue(&rows[..1], start + timeout).is_empty());
        assert!(since.is_empty());
    }

    #[test]
    fn a_change_of_the_voters_that_was_interrupted_is_finished() {
        let mut world = World::new(&[(1, Voter), (2, Voter), (3, Voter)], &[1, 2, 3], &[]);
        assert_eq!(world.plan(), []);
        world.is_joint = true;
        assert_eq!(world.plan(), [Action::SetVoters(BTreeSet::from([1, 2, 3]))]);
    }
}
