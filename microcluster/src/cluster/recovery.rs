//! The members that a cluster goes on with after its quorum was lost: what an operator may say of them, and their rows.

use std::collections::{BTreeMap, BTreeSet};

use microcluster_client::{Address, AddressError, Name, Role};
use rusqlite::Connection;
use serde::{Deserialize, Deserializer, Serialize};

use super::members::{MemberRow, RowRole};
use crate::db::recovery::Outline;
use crate::db::{NodeId, Peer};

/// A member as the log on a disk has it, and as [`App::recover_from_quorum_loss`](crate::App::recover_from_quorum_loss) is to make it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RaftMember {
    /// Its Raft id.
    pub id: u64,
    /// Its name.
    pub name: Name,
    /// Its cluster address.
    pub address: Address,
    /// Its role: a voter, a stand-by or a spare.
    #[serde(deserialize_with = "role")]
    pub role: Role,
}

/// Why a cluster cannot go on with these members.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MembersError {
    /// A member is named that there is not.
    #[error("there is no member named {name}; nobody can be added here, join it when the cluster runs again")]
    Added {
        /// Its name.
        name: Name,
    },
    /// A member is missing.
    #[error(
        "{name} is missing; nobody can be left out here: give it the role spare, and remove it with --force when the cluster runs again"
    )]
    LeftOut {
        /// Its name.
        name: Name,
    },
    /// A member is named twice.
    #[error("{name} is there twice")]
    Twice {
        /// Its name.
        name: Name,
    },
    /// A member has another id.
    #[error("{name} has the id {id}, not {given}; an id cannot be changed")]
    Id {
        /// Its name.
        name: Name,
        /// Its id.
        id: u64,
        /// What was said.
        given: u64,
    },
    /// A role that is none of those to choose from.
    #[error("{name} cannot have the role {role:?}; it can be a voter, a stand-by or a spare")]
    Role {
        /// Its name.
        name: Name,
        /// What was said.
        role: String,
    },
    /// A member that was being removed is to vote.
    #[error("{name} is being removed from the cluster and cannot be a voter; make it a spare")]
    Leaving {
        /// Its name.
        name: Name,
    },
    /// Nobody is to vote.
    #[error("there is no voter; give at least one member that is left the role voter")]
    NoVoter,
    /// An address that no member can have.
    #[error("{name} cannot have its address: {source}")]
    Address {
        /// Its name.
        name: Name,
        /// What is wrong with the address.
        source: AddressError,
    },
    /// Two members have one address.
    #[error("{one} and {other} cannot both have the address {address}")]
    AddressTwice {
        /// One of them.
        one: Name,
        /// The other one.
        other: Name,
        /// The address.
        address: Address,
    },
}

/// One of the roles that a member that is in can have.
fn role<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Role, D::Error> {
    let text = String::deserialize(deserializer)?;
    let role = [Role::Voter, Role::StandBy, Role::Spare].into_iter().find(|role| role.as_str() == text);
    role.ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no role; a member is voter, stand-by or spare")))
}

/// The members as Raft has them on this disk, those with a row as the row has them, by name. Who was only coming in is none.
pub(crate) fn listed(rows: &[MemberRow], outline: &Outline) -> Vec<RaftMember> {
    let mut members: Vec<RaftMember> = outline
        .nodes
        .iter()
        .filter_map(|(id, peer)| match rows.iter().find(|row| row.id == *id) {
            Some(row) => {
                let role = row.role(&outline.voters);
                let member = RaftMember { id: *id, name: row.name.clone(), address: row.address, role };
                (role != Role::Pending).then_some(member)
            }
            // Its row is in entries that are not applied yet.
            None => {
                let role = if outline.voters.contains(id) { Role::Voter } else { Role::Spare };
                Some(RaftMember { id: *id, name: peer.name.parse().ok()?, address: peer.address.parse().ok()?, role })
            }
        })
        .collect();
    members.sort_by(|one, other| one.name.cmp(&other.name));
    members
}

/// Whether a cluster can go on with `given` members when it had those in `present`. Pure.
pub(crate) fn check(present: &[RaftMember], rows: &[MemberRow], given: &[RaftMember]) -> Result<(), MembersError> {
    let mut names = BTreeSet::new();
    // A joiner that is in no list of members holds its address all the same.
    let unlisted = rows.iter().filter(|row| !present.iter().any(|member| member.id == row.id));
    let mut addresses: BTreeMap<Address, &Name> = unlisted.map(|row| (row.address, &row.name)).collect();
    for member in given {
        let RaftMember { id, name, address, role } = member;
        let Some(known) = present.iter().find(|known| known.name == *name) else {
            return Err(MembersError::Added { name: name.clone() });
        };
        if !names.insert(name) {
            return Err(MembersError::Twice { name: name.clone() });
        }
        if known.id != *id {
            return Err(MembersError::Id { name: name.clone(), id: known.id, given: *id });
        }
        if !matches!(role, Role::Voter | Role::StandBy | Role::Spare) {
            return Err(MembersError::Role { name: name.clone(), role: role.to_string() });
        }
        let is_leaving = rows.iter().any(|row| row.id == *id && row.role == RowRole::Leaving);
        if is_leaving && *role == Role::Voter {
            return Err(MembersError::Leaving { name: name.clone() });
        }
        address.cluster().map_err(|source| MembersError::Address { name: name.clone(), source })?;
        if let Some(one) = addresses.insert(*address, name) {
            return Err(MembersError::AddressTwice { one: one.clone(), other: name.clone(), address: *address });
        }
    }
    if let Some(missing) = present.iter().find(|member| !names.contains(&member.name)) {
        return Err(MembersError::LeftOut { name: missing.name.clone() });
    }
    if !given.iter().any(|member| member.role == Role::Voter) {
        return Err(MembersError::NoVoter);
    }
    Ok(())
}

/// What Raft is to have: who votes, and everybody.
pub(crate) fn membership(members: &[RaftMember]) -> (BTreeSet<NodeId>, BTreeMap<NodeId, Peer>) {
    let voters = members.iter().filter(|member| member.role == Role::Voter).map(|member| member.id).collect();
    let peer = |member: &RaftMember| Peer { name: member.name.to_string(), address: member.address.to_string() };
    (voters, members.iter().map(|member| (member.id, peer(member))).collect())
}

/// Makes the rows say what was said of the members. A removal that was decided stays decided.
pub(crate) fn rewrite(db: &Connection, members: &[RaftMember]) -> rusqlite::Result<()> {
    // Two members may exchange their addresses, and none may be there twice in between.
    let mut clear = db.prepare("UPDATE core_cluster_members SET address = 'moving ' || id WHERE id = ?1")?;
    for member in members {
        clear.execute([member.id.cast_signed()])?;
    }
    let sql = "UPDATE core_cluster_members SET address = ?2, role = CASE role WHEN 'leaving' THEN role ELSE ?3 END \
               WHERE id = ?1";
    let mut update = db.prepare(sql)?;
    for member in members {
        update.execute((member.id.cast_signed(), member.address.to_string(), member.role.as_str()))?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use microcluster_client::Timestamp;

    use super::*;

    fn row(id: NodeId, role: RowRole) -> MemberRow {
        MemberRow {
            id,
            name: format!("c{id}").parse().unwrap(),
            address: format!("10.0.0.{id}:9000").parse().unwrap(),
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

    fn rows() -> Vec<MemberRow> {
        use RowRole::{Leaving, Pending, Voter};
        vec![row(1, Voter), row(2, Voter), row(3, Voter), row(4, Leaving), row(5, Pending)]
    }

    fn outline() -> Outline {
        let peer = |id: &u64| Peer { name: format!("c{id}"), address: format!("10.0.0.{id}:9000") };
        Outline {
            last: None,
            vote: None,
            voters: [1, 2, 3].into(),
            nodes: [1, 2, 3, 4, 5, 6].iter().map(|id| (*id, peer(id))).collect(),
        }
    }

    #[test]
    fn members_are_those_of_raft_that_are_in() {
        let text: Vec<_> = listed(&rows(), &outline()).iter().map(|m| format!("{} {}", m.name, m.role)).collect();
        assert_eq!(text, ["c1 voter", "c2 voter", "c3 voter", "c4 spare", "c6 spare"]);
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_member_named() {
        let present = listed(&rows(), &outline());
        let refused = |change: fn(&mut Vec<RaftMember>)| {
            let mut given = present.clone();
            given.iter_mut().skip(1).for_each(|member| member.role = Role::Spare);
            assert_eq!(check(&present, &rows(), &given), Ok(()));
            change(&mut given);
            check(&present, &rows(), &given).unwrap_err().to_string()
        };
        type Change = fn(&mut Vec<RaftMember>);
        let table: [(Change, &str); 10] = [
            (|given| given[0].role = Role::Spare, "there is no voter"),
            (|given| drop(given.remove(1)), "c2 is missing; nobody can be left out"),
            (|given| given[1].name = "c9".parse().unwrap(), "no member named c9; nobody can be added"),
            (|given| given.push(given[0].clone()), "c1 is there twice"),
            (|given| given[1].id = 7, "c2 has the id 2, not 7"),
            (|given| given[1].role = Role::Pending, "c2 cannot have the role \"PENDING\""),
            (|given| given[3].role = Role::Voter, "c4 is being removed"),
            (|given| given[1].address = "0.0.0.0:1".parse().unwrap(), "c2 cannot have its address"),
            (|given| given[1].address = given[2].address, "c2 and c3 cannot both have the address 10.0.0.3:9000"),
            (|given| given[1].address = "10.0.0.5:9000".parse().unwrap(), "c5 and c2 cannot both"),
        ];
        for (change, expected) in table {
            let message = refused(change);
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn rows_follow_and_a_removal_stays_decided() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch("CREATE TABLE core_cluster_members (id INTEGER PRIMARY KEY, address TEXT UNIQUE, role TEXT)")
            .unwrap();
        for row in rows() {
            let row = (row.id.cast_signed(), row.address.to_string(), row.role.as_str());
            db.execute("INSERT INTO core_cluster_members VALUES (?1, ?2, ?3)", row).unwrap();
        }
        let mut members = listed(&rows(), &outline());
        members.pop();
        let (one, other) = (members[0].address, members[1].address);
        (members[0].address, members[1].address) = (other, one);
        members[2].role = Role::Spare;
        rewrite(&db, &members).unwrap();
        let mut found = db.prepare("SELECT id || ' ' || address || ' ' || role FROM core_cluster_members").unwrap();
        let found: Vec<String> = found.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        let expected = [
            "1 10.0.0.2:9000 voter",
            "2 10.0.0.1:9000 voter",
            "3 10.0.0.3:9000 spare",
            "4 10.0.0.4:9000 leaving",
            "5 10.0.0.5:9000 PENDING",
        ];
        assert_eq!(found, expected);
    }
}
