//! Who should vote, stand by, be spare. Pure.
//!
//! A role is kept where it fits. It is given anew for three reasons, in this order: its holder does not answer and somebody
//! who does can take over; there are too few or too many; and the holders could be spread better over the failure domains.
//! What is once so is left so: giving roles a second time changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::RoleCounts;
use crate::db::NodeId;

/// The role of a member that is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FullRole {
    Voter,
    StandBy,
    Spare,
}

/// A member that is to have a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Its present one; none for a member that is just coming in.
    pub role: Option<FullRole>,
    /// Members of one domain are expected to fail together; 0 for none.
    pub failure_domain: u64,
    /// Whether it answers.
    pub is_reachable: bool,
}

/// All that are to have a role.
pub(crate) type Candidates = BTreeMap<NodeId, Candidate>;

/// Gives every member its role. The leader goes on voting, whatever else changes.
pub(crate) fn assign(counts: RoleCounts, leader: NodeId, members: &Candidates) -> BTreeMap<NodeId, FullRole> {
    // Who does not answer gets no vote: a majority would be harder to reach, not easier.
    let voters = Choice { role: FullRole::Voter, count: counts.voters, fixed: Some(leader), needs_answer: true };
    let voters = voters.among(members);
    let rest: Candidates =
        members.iter().filter(|(id, _)| !voters.contains(id)).map(|(id, member)| (*id, *member)).collect();
    let stand_bys =
        Choice { role: FullRole::StandBy, count: counts.stand_bys, fixed: None, needs_answer: false }.among(&rest);
    let role = |id: &NodeId| match id {
        id if voters.contains(id) => FullRole::Voter,
        id if stand_bys.contains(id) => FullRole::StandBy,
        _ => FullRole::Spare,
    };
    members.keys().map(|id| (*id, role(id))).collect()
}

/// Those who are to vote.
pub(crate) fn voters(assigned: &BTreeMap<NodeId, FullRole>) -> BTreeSet<NodeId> {
    assigned.iter().filter(|(_, role)| **role == FullRole::Voter).map(|(id, _)| *id).collect()
}

/// The next voters on the way from the present ones to those that are wanted: one comes in, one goes. With one at
/// a time a majority of the present ones is all but one of a majority of the next.
pub(crate) fn next_voters(
    present: &BTreeSet<NodeId>,
    wanted: &BTreeSet<NodeId>,
    members: &Candidates,
) -> BTreeSet<NodeId> {
    let is_reachable = |id: &NodeId| members.get(id).is_some_and(|member| member.is_reachable);
    let mut next = present.clone();
    next.extend(wanted.difference(present).next());
    // Who is of no use goes first.
    if let Some(gone) = present.difference(wanted).min_by_key(|id| is_reachable(id)) {
        next.remove(gone);
    }
    next
}

/// The choice of those who have one role.
struct Choice {
    role: FullRole,
    count: usize,
    /// Is among them, if it is there.
    fixed: Option<NodeId>,
    /// Only who answers is given the role.
    needs_answer: bool,
}

impl Choice {
    fn among(&self, pool: &Candidates) -> BTreeSet<NodeId> {
        let holders = pool.iter().filter(|(_, member)| member.role == Some(self.role)).map(|(id, _)| *id);
        let mut chosen: BTreeSet<NodeId> = holders.chain(self.fixed.filter(|id| pool.contains_key(id))).collect();
        while chosen.len() > self.count
            && let Some(last) = self.least_needed(pool, &chosen)
        {
            chosen.remove(&last);
        }
        while chosen.len() < self.count
            && let Some(best) = self.best(pool, &chosen)
        {
            chosen.insert(best);
        }
        self.replace_silent(pool, &mut chosen);
        self.spread(pool, &mut chosen);
        chosen
    }

    /// Puts those who answer in the places of those who do not.
    fn replace_silent(&self, pool: &Candidates, chosen: &mut BTreeSet<NodeId>) {
        let silent: Vec<NodeId> =
            chosen.iter().filter(|id| Some(**id) != self.fixed && !pool[*id].is_reachable).copied().collect();
        for id in silent {
            chosen.remove(&id);
            let best = self.best(pool, chosen).filter(|best| pool[best].is_reachable);
            chosen.insert(best.unwrap_or(id));
        }
    }

    /// Exchanges members of domains that have several for members of domains that have fewer. Each exchange brings the sum of
    /// the squares of the domains' counts down, so it ends, and when none is left that sum is the least there can be.
    fn spread(&self, pool: &Candidates, chosen: &mut BTreeSet<NodeId>) {
        while let Some(crowded) = self.least_needed(pool, chosen) {
            let before = neighbours(pool, chosen, crowded);
            chosen.remove(&crowded);
            let best = self.best(pool, chosen).filter(|best| pool[best].is_reachable);
            match best.filter(|best| neighbours(pool, chosen, *best) < before) {
                Some(best) => chosen.insert(best),
                None => {
                    chosen.insert(crowded);
                    return;
                }
            };
        }
    }

    /// Who of those that are not chosen is to be chosen next: one that answers, of the domain with the fewest, who is
    /// nearest to the role, the oldest.
    fn best(&self, pool: &Candidates, chosen: &BTreeSet<NodeId>) -> Option<NodeId> {
        let free =
            pool.iter().filter(|(id, member)| !chosen.contains(id) && (member.is_reachable || !self.needs_answer));
        let key = |id: NodeId, member: &Candidate| {
            (!member.is_reachable, neighbours(pool, chosen, id), rank(member.role), id)
        };
        free.map(|(id, member)| key(*id, member)).min().map(|(.., id)| id)
    }

    /// Who of those that are chosen can be done without: one that does not answer, of the domain with the most, the youngest.
    fn least_needed(&self, pool: &Candidates, chosen: &BTreeSet<NodeId>) -> Option<NodeId> {
        let free = chosen.iter().filter(|id| Some(**id) != self.fixed);
        free.max_by_key(|id| (!pool[*id].is_reachable, neighbours(pool, chosen, **id), **id)).copied()
    }
}

/// How many others of the chosen ones are in the domain of this one.
fn neighbours(pool: &Candidates, chosen: &BTreeSet<NodeId>, id: NodeId) -> usize {
    let domain = pool[&id].failure_domain;
    let in_domain = |other: &&NodeId| **other != id && domain != 0 && pool[*other].failure_domain == domain;
    chosen.iter().filter(in_domain).count()
}

/// Who comes first when a role is given.
fn rank(role: Option<FullRole>) -> u8 {
    match role {
        Some(FullRole::StandBy) => 0,
        Some(FullRole::Voter) => 1,
        None => 2,
        Some(FullRole::Spare) => 3,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use FullRole::{Spare, StandBy, Voter};
    use proptest::prelude::*;

    use super::*;

    const DEFAULT: RoleCounts = RoleCounts { voters: 3, stand_bys: 3 };

    /// Members as (id, role, domain); the first one leads.
    fn members(list: &[(NodeId, FullRole, u64)]) -> Candidates {
        list.iter().map(|(id, role, domain)| (*id, candidate(Some(*role), *domain))).collect()
    }

    fn candidate(role: Option<FullRole>, failure_domain: u64) -> Candidate {
        Candidate { role, failure_domain, is_reachable: true }
    }

    fn silent(mut members: Candidates, ids: &[NodeId]) -> Candidates {
        ids.iter().for_each(|id| members.get_mut(id).unwrap().is_reachable = false);
        members
    }

    fn with(members: &Candidates, role: FullRole) -> Vec<NodeId> {
        let assigned = assign(DEFAULT, *members.keys().next().unwrap(), members);
        assigned.into_iter().filter(|(_, given)| *given == role).map(|(id, _)| id).collect()
    }

    #[test]
    fn the_first_three_vote_the_next_three_stand_by() {
        let (mut members, mut given) = (Candidates::new(), Vec::new());
        for id in 1..=8 {
            members.insert(id, candidate(None, 0));
            let roles = assign(DEFAULT, 1, &members);
            given.push(roles[&id]);
            members.iter_mut().for_each(|(id, member)| member.role = Some(roles[id]));
        }
        assert_eq!(given, [Voter, Voter, Voter, StandBy, StandBy, StandBy, Spare, Spare]);
    }

    #[test]
    fn a_gap_is_filled_by_the_oldest_stand_by_and_then_a_spare() {
        let left = [
            (1, Voter, 0),
            (3, Voter, 0),
            (4, Spare, 0),
            (5, StandBy, 0),
            (6, StandBy, 0),
            (7, StandBy, 0),
            (8, Spare, 0),
        ];
        let left = members(&left);
        assert_eq!(with(&left, Voter), [1, 3, 5]);
        assert_eq!(with(&left, StandBy), [4, 6, 7]);
    }

    #[test]
    fn a_newcomer_displaces_nobody() {
        let mut full = members(&[(1, Voter, 0), (2, Voter, 0), (3, Voter, 0)]);
        full.insert(9, candidate(None, 0));
        assert_eq!(with(&full, Voter), [1, 2, 3]);
        assert_eq!(with(&full, StandBy), [9]);
    }

    #[test]
    fn a_silent_voter_is_replaced_by_a_stand_by_that_answers_and_then_by_a_spare() {
        let five = members(&[(1, Voter, 0), (2, Voter, 0), (3, Voter, 0), (4, StandBy, 0), (5, Spare, 0)]);
        assert_eq!(with(&silent(five.clone(), &[2]), Voter), [1, 3, 4]);
        assert_eq!(with(&silent(five.clone(), &[2, 4]), Voter), [1, 3, 5]);
        assert_eq!(with(&silent(five.clone(), &[2, 3]), Voter), [1, 4, 5]);
        assert_eq!(with(&silent(five.clone(), &[2, 4, 5]), Voter), [1, 2, 3], "nobody is there to take over");
        assert_eq!(with(&silent(five, &[1]), Voter), [1, 2, 3], "the leader hears itself");
    }

    #[test]
    fn a_voter_that_comes_back_finds_its_place_taken() {
        let replaced = members(&[(1, Voter, 0), (2, StandBy, 0), (3, Voter, 0), (4, Voter, 0)]);
        assert_eq!(with(&replaced, Voter), [1, 3, 4]);
    }

    #[test]
    fn who_does_not_answer_is_not_made_a_voter() {
        let left = silent(members(&[(1, Voter, 0), (2, Voter, 0), (3, StandBy, 0)]), &[3]);
        assert_eq!(with(&left, Voter), [1, 2]);
    }

    #[test]
    fn voters_are_spread_over_failure_domains() {
        let crowded = [(1, Voter, 1), (2, Voter, 1), (3, Voter, 1), (4, StandBy, 2), (5, Spare, 3)];
        let crowded = members(&crowded);
        assert_eq!(with(&crowded, Voter), [1, 4, 5], "the youngest go, the leader stays");
        let two = members(&[(1, Voter, 1), (2, Voter, 1), (3, Voter, 2), (4, StandBy, 2)]);
        assert_eq!(with(&two, Voter), [1, 2, 3], "two domains cannot hold three voters better");
        let none = members(&[(1, Voter, 0), (2, Voter, 0), (3, Voter, 0), (4, StandBy, 7)]);
        assert_eq!(with(&none, Voter), [1, 2, 3], "a member without a domain shares none");
    }

    #[test]
    fn the_replacement_is_of_the_domain_that_is_missing() {
        let of_three =
            members(&[(1, Voter, 1), (2, Voter, 2), (3, Voter, 3), (4, StandBy, 1), (5, StandBy, 2), (6, StandBy, 3)]);
        assert_eq!(with(&silent(of_three, &[3]), Voter), [1, 2, 6]);
    }

    #[test]
    fn one_voter_is_exchanged_at_a_time_and_first_one_that_is_silent() {
        let five = members(&[(1, Voter, 0), (2, Voter, 0), (3, Voter, 0), (4, StandBy, 0), (5, StandBy, 0)]);
        let five = silent(five, &[3]);
        let next = |present: [NodeId; 3], wanted: &[NodeId]| {
            next_voters(&present.into(), &wanted.iter().copied().collect(), &five)
        };
        assert_eq!(next([1, 2, 3], &[1, 4, 5]), [1, 2, 4].into());
        assert_eq!(next([1, 2, 4], &[1, 4, 5]), [1, 4, 5].into());
        assert_eq!(next([1, 2, 3], &[1]), [1, 2].into());
        assert_eq!(next([1, 2, 3], &[1, 2, 3, 4, 5]), [1, 2, 3, 4].into());
    }

    fn candidates() -> impl Strategy<Value = Candidates> {
        let role = prop_oneof![Just(None), Just(Some(Voter)), Just(Some(StandBy)), Just(Some(Spare))];
        let member = (role, 0..4_u64, prop::bool::weighted(0.8));
        prop::collection::vec(member, 1..10).prop_map(|list| {
            let member = |(role, failure_domain, is_reachable)| Candidate { role, failure_domain, is_reachable };
            let mut members: Candidates = (1..).zip(list.into_iter().map(member)).collect();
            // The leader votes and hears itself.
            members
                .entry(1)
                .and_modify(|leader| *leader = Candidate { role: Some(Voter), is_reachable: true, ..*leader });
            members
        })
    }

    fn counts() -> impl Strategy<Value = RoleCounts> {
        (prop_oneof![Just(1_usize), Just(3), Just(5)], 0..4_usize)
            .prop_map(|(voters, stand_bys)| RoleCounts { voters, stand_bys })
    }

    fn give(members: &Candidates, roles: &BTreeMap<NodeId, FullRole>) -> Candidates {
        members.iter().map(|(id, member)| (*id, Candidate { role: Some(roles[id]), ..*member })).collect()
    }

    /// The sum of the squares of how many are in each domain.
    fn crowding(members: &Candidates, chosen: impl Fn(&NodeId) -> bool) -> usize {
        let mut of_domain: BTreeMap<(u64, NodeId), usize> = BTreeMap::new();
        for (id, member) in members.iter().filter(|(id, _)| chosen(id)) {
            let alone = if member.failure_domain == 0 { *id } else { 0 };
            *of_domain.entry((member.failure_domain, alone)).or_default() += 1;
        }
        of_domain.values().map(|count| count * count).sum()
    }

    proptest! {
        #[test]
        fn giving_roles_twice_changes_nothing(members in candidates(), counts in counts()) {
            let first = assign(counts, 1, &members);
            prop_assert_eq!(&assign(counts, 1, &give(&members, &first)), &first);
        }

        #[test]
        fn there_are_as_many_voters_as_wanted_and_can_be(members in candidates(), counts in counts()) {
            let assigned = assign(counts, 1, &members);
            let voters: Vec<_> = members.keys().filter(|id| assigned[id] == Voter).collect();
            let useful = members.values().filter(|member| member.is_reachable || member.role == Some(Voter)).count();
            prop_assert_eq!(voters.len(), counts.voters.min(useful));
            prop_assert_eq!(assigned[&1], Voter);
            let silent_votes = voters.iter().any(|id| !members[id].is_reachable);
            let idle = members.iter().any(|(id, member)| member.is_reachable && assigned[id] != Voter);
            prop_assert!(!(silent_votes && idle), "{:?}", assigned);
        }

        #[test]
        fn no_exchange_would_spread_the_voters_better(members in candidates(), counts in counts()) {
            let assigned = assign(counts, 1, &members);
            let votes = |id: &NodeId| assigned[id] == Voter;
            let now = crowding(&members, votes);
            for out in members.keys().filter(|id| votes(id) && **id != 1) {
                for free in members.keys().filter(|id| !votes(id) && members[*id].is_reachable) {
                    prop_assert!(crowding(&members, |id| id == free || (votes(id) && id != out)) >= now);
                }
            }
        }

        /// Step by step, with a look at everything between two steps, as the reconciler goes.
        #[test]
        fn the_steps_come_to_an_end(members in candidates(), counts in counts()) {
            let mut members = members;
            let mut steps = 0;
            loop {
                let assigned = assign(counts, 1, &members);
                let present: BTreeSet<NodeId> =
                    members.iter().filter(|(_, member)| member.role == Some(Voter)).map(|(id, _)| *id).collect();
                let wanted = voters(&assigned);
                if wanted == present {
                    break;
                }
                let next = next_voters(&present, &wanted, &members);
                prop_assert!(next != present && next.contains(&1));
                prop_assert!(next.difference(&present).count() <= 1 && present.difference(&next).count() <= 1);
                members = give(&members, &assigned);
                for (id, member) in &mut members {
                    match member.role {
                        _ if next.contains(id) => member.role = Some(Voter),
                        Some(Voter) => member.role = Some(StandBy),
                        _ => {}
                    }
                }
                steps += 1;
                prop_assert!(steps <= 20, "it goes on and on");
            }
        }
    }
}
