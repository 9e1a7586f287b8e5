//! Who should vote, stand by, be spare. Pure.

use std::collections::BTreeMap;

use crate::db::NodeId;

/// How many of each are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    pub voters: usize,
    pub stand_bys: usize,
}

/// Three voters survive the loss of one; stand-bys have the log and replace a voter at once.
pub(crate) const POLICY_DEFAULT: Policy = Policy { voters: 3, stand_bys: 3 };

/// The role of a member that is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FullRole {
    Voter,
    StandBy,
    Spare,
}

/// Gives every member its role. `members` are those that are in, each with its present role, or
/// none for one that is just coming in. Nobody is moved without need: a role is kept where it
/// fits; gaps are filled by stand-bys first, then newcomers, then spares, the oldest first.
pub(crate) fn assign(policy: Policy, members: &BTreeMap<NodeId, Option<FullRole>>) -> BTreeMap<NodeId, FullRole> {
    let mut order: Vec<(u8, NodeId)> = members.iter().map(|(id, role)| (rank(*role), *id)).collect();
    order.sort_unstable();
    let mut assigned = BTreeMap::new();
    for (place, (_, id)) in order.into_iter().enumerate() {
        let role = if place < policy.voters {
            FullRole::Voter
        } else if place < policy.voters + policy.stand_bys {
            FullRole::StandBy
        } else {
            FullRole::Spare
        };
        assigned.insert(id, role);
    }
    assigned
}

/// Who comes first when a role is given.
fn rank(role: Option<FullRole>) -> u8 {
    match role {
        Some(FullRole::Voter) => 0,
        Some(FullRole::StandBy) => 1,
        None => 2,
        Some(FullRole::Spare) => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use FullRole::{Spare, StandBy, Voter};

    fn assigned(members: &[(NodeId, Option<FullRole>)]) -> Vec<(NodeId, FullRole)> {
        assign(POLICY_DEFAULT, &members.iter().copied().collect()).into_iter().collect()
    }

    #[test]
    fn the_first_three_vote_the_next_three_stand_by() {
        let mut members = BTreeMap::new();
        let mut given = Vec::new();
        for id in 1..=8 {
            members.insert(id, None);
            let roles = assign(POLICY_DEFAULT, &members);
            given.push(roles[&id]);
            for (id, role) in roles {
                members.insert(id, Some(role));
            }
        }
        assert_eq!(given, [Voter, Voter, Voter, StandBy, StandBy, StandBy, Spare, Spare]);
    }

    #[test]
    fn two_members_both_vote() {
        assert_eq!(assigned(&[(1, Some(Voter)), (2, None)]), [(1, Voter), (2, Voter)]);
    }

    #[test]
    fn a_gap_is_filled_by_the_oldest_stand_by_and_then_a_spare() {
        let left = [
            (1, Some(Voter)),
            (3, Some(Voter)),
            (4, Some(Spare)),
            (5, Some(StandBy)),
            (6, Some(StandBy)),
            (7, Some(StandBy)),
            (8, Some(Spare)),
        ];
        let expected = [(1, Voter), (3, Voter), (4, StandBy), (5, Voter), (6, StandBy), (7, StandBy), (8, Spare)];
        assert_eq!(assigned(&left), expected);
    }

    #[test]
    fn a_newcomer_displaces_nobody() {
        let members = [(1, Some(Voter)), (2, Some(Voter)), (3, Some(Voter)), (9, None)];
        assert_eq!(assigned(&members), [(1, Voter), (2, Voter), (3, Voter), (9, StandBy)]);
        let again: Vec<_> = assigned(&members).into_iter().map(|(id, role)| (id, Some(role))).collect();
        assert_eq!(assigned(&again), assigned(&members), "a second run changes nothing");
    }
}
