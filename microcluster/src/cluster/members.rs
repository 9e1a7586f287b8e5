//! The member table: its rows, and the statements on it.

use std::collections::BTreeSet;

use microcluster_client::{Address, Member, MemberLocal, MemberStatus, Name, Role, Secret, Timestamp};
use rusqlite::types::{FromSqlError, Type};
use rusqlite::{Connection, Row};

use super::join::Versions;
use crate::db::{Error, Level, NodeId, Peer, Status, Transaction};
use crate::trust::{TrustSet, TrustedMember};

/// What a row says of its member: what is wanted, not what Raft does by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowRole {
    /// Admitted by its token, not confirmed yet.
    Pending,
    /// A member whose files were damaged: it comes in again, under a new id.
    Rebuilding,
    Voter,
    StandBy,
    Spare,
    /// Its removal was decided and has to be finished.
    Leaving,
}

/// One row of the member table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemberRow {
    pub id: NodeId,
    pub name: Name,
    pub address: Address,
    pub certificate: String,
    pub role: RowRole,
    pub schema_internal: u64,
    pub schema_external: u64,
    pub extensions: Vec<String>,
    pub last_heartbeat: Timestamp,
    /// The token it joins by, while it is pending.
    pub token_id: Option<i64>,
    /// Members of one domain are expected to fail together; 0 for none.
    pub failure_domain: u64,
}

/// A row to be.
#[derive(Clone, Debug)]
pub(crate) struct NewMember {
    /// Fixed for the first member, from the table for all others.
    pub id: Option<NodeId>,
    pub name: Name,
    pub address: Address,
    pub certificate: String,
    pub role: RowRole,
    pub schema_internal: u64,
    pub schema_external: u64,
    pub extensions: Vec<String>,
    pub last_heartbeat: Timestamp,
    pub token_id: Option<i64>,
}

const SELECT: &str = "SELECT id, name, address, certificate, role, schema_internal, schema_external, \
                      extensions, last_heartbeat, token_id, failure_domain FROM core_cluster_members";

impl RowRole {
    pub fn as_str(self) -> &'static str {
        match self {
            RowRole::Pending => "PENDING",
            RowRole::Rebuilding => "rebuilding",
            RowRole::Voter => "voter",
            RowRole::StandBy => "stand-by",
            RowRole::Spare => "spare",
            RowRole::Leaving => "leaving",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        use RowRole::{Leaving, Pending, Rebuilding, Spare, StandBy, Voter};
        [Pending, Rebuilding, Voter, StandBy, Spare, Leaving].into_iter().find(|role| role.as_str() == text)
    }

    /// Whether the member is in: not on its way in or out.
    pub fn is_full(self) -> bool {
        !self.is_joining() && self != RowRole::Leaving
    }

    /// Whether the member is on its way in.
    pub fn is_joining(self) -> bool {
        matches!(self, RowRole::Pending | RowRole::Rebuilding)
    }
}

impl MemberRow {
    /// What the member does now: Raft says who votes, the row says what those do that do not.
    pub fn role(&self, voters: &BTreeSet<NodeId>) -> Role {
        match self.role {
            _ if voters.contains(&self.id) => Role::Voter,
            RowRole::Pending => Role::Pending,
            // A voter to be, until Raft has it.
            RowRole::Voter | RowRole::StandBy => Role::StandBy,
            // One that is rebuilt is a member all the time, and it may be down for long meanwhile.
            RowRole::Spare | RowRole::Rebuilding | RowRole::Leaving => Role::Spare,
        }
    }

    pub fn local(&self) -> MemberLocal {
        MemberLocal { name: self.name.clone(), address: self.address, certificate: self.certificate.clone() }
    }

    /// The member as Raft knows it.
    pub fn peer(&self) -> Peer {
        Peer { name: self.name.to_string(), address: self.address.to_string() }
    }

    /// What the member has.
    pub fn level(&self) -> Level {
        Level {
            internal: self.schema_internal,
            external: self.schema_external,
            extensions: self.extensions.len() as u64,
        }
    }

    /// The row as the API shows it.
    pub fn public(self, raft: &Status, status: MemberStatus) -> Member {
        let role = self.role(&raft.voters);
        Member {
            name: self.name,
            address: self.address,
            certificate: self.certificate,
            role,
            schema_internal_version: self.schema_internal,
            schema_external_version: self.schema_external,
            last_heartbeat: self.last_heartbeat,
            status,
            extensions: self.extensions,
            secret: Secret::default(),
        }
    }
}

/// All rows, by name. An empty list when this replica has not got the table yet.
pub(crate) fn all(db: &Connection) -> rusqlite::Result<Vec<MemberRow>> {
    let has_table = "SELECT count(*) FROM sqlite_schema WHERE name = 'core_cluster_members'";
    if db.query_row(has_table, (), |row| row.get::<_, i64>(0))? == 0 {
        return Ok(Vec::new());
    }
    let mut statement = db.prepare_cached(&format!("{SELECT} ORDER BY name"))?;
    statement.query_map((), from_row)?.collect()
}

/// All rows, by name.
pub(crate) fn all_in(tx: &Transaction<'_>) -> Result<Vec<MemberRow>, Error> {
    tx.query(&format!("{SELECT} ORDER BY name"), (), from_row)
}

/// Adds a row and returns its id.
pub(crate) fn insert(tx: &Transaction<'_>, member: &NewMember) -> Result<NodeId, Error> {
    // A list of texts always has a JSON form.
    let extensions = serde_json::to_string(&member.extensions).unwrap_or_default();
    tx.execute(
        "INSERT INTO core_cluster_members (id, name, address, certificate, role, schema_internal, \
         schema_external, extensions, last_heartbeat, token_id) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        rusqlite::params![
            member.id.map(NodeId::cast_signed),
            member.name.as_str(),
            member.address.to_string(),
            member.certificate,
            member.role.as_str(),
            member.schema_internal.cast_signed(),
            member.schema_external.cast_signed(),
            extensions,
            member.last_heartbeat.to_string(),
            member.token_id,
        ],
    )?;
    Ok(tx.last_insert_rowid().cast_unsigned())
}

/// Changes what is wanted of a member, if it is still `from`; says whether it was.
pub(crate) fn change_role(tx: &Transaction<'_>, id: NodeId, from: RowRole, to: RowRole) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE core_cluster_members SET role = ?3 WHERE id = ?1 AND role = ?2",
        (id.cast_signed(), from.as_str(), to.as_str()),
    )?;
    Ok(changed == 1)
}

/// Decides the removal of a member, whatever is wanted of it by now: a leader of the past may just have changed that. Says whether there
/// is such a row.
pub(crate) fn mark_leaving(tx: &Transaction<'_>, id: NodeId) -> Result<bool, Error> {
    let values = (id.cast_signed(), RowRole::Leaving.as_str());
    Ok(tx.execute("UPDATE core_cluster_members SET role = ?2 WHERE id = ?1", values)? == 1)
}

/// Records what a member has; says whether it has a row.
pub(crate) fn set_versions(tx: &Transaction<'_>, id: NodeId, versions: &Versions) -> Result<bool, Error> {
    // A list of texts always has a JSON form.
    let extensions = serde_json::to_string(&versions.extensions).unwrap_or_default();
    let changed = tx.execute(
        "UPDATE core_cluster_members SET schema_internal = ?2, schema_external = ?3, extensions = ?4 WHERE id = ?1",
        (id.cast_signed(), versions.schema_internal.cast_signed(), versions.schema_external.cast_signed(), extensions),
    )?;
    Ok(changed == 1)
}

/// An SQL expression: whether a member that is not being removed lacks something of this level.
pub(crate) fn any_behind(level: Level) -> String {
    let Level { internal, external, extensions } = level;
    format!(
        "EXISTS (SELECT 1 FROM core_cluster_members WHERE role <> 'leaving' AND (schema_internal < {internal} \
         OR schema_external < {external} OR json_array_length(extensions) < {extensions}))"
    )
}

/// Removes a row, if it is still `role`; says whether it was.
pub(crate) fn delete(tx: &Transaction<'_>, id: NodeId, role: RowRole) -> Result<bool, Error> {
    let deleted =
        tx.execute("DELETE FROM core_cluster_members WHERE id = ?1 AND role = ?2", (id.cast_signed(), role.as_str()))?;
    Ok(deleted == 1)
}

/// Removes the row of a member that is on its way in, if it still is; says whether it was.
pub(crate) fn delete_joining(tx: &Transaction<'_>, id: NodeId) -> Result<bool, Error> {
    Ok(delete(tx, id, RowRole::Pending)? || delete(tx, id, RowRole::Rebuilding)?)
}

/// Those whom these rows make trusted. A certificate that cannot be read trusts nobody. A joiner that votes already is a member: the
/// mark in its row is about to follow, and it may lead before that.
pub(crate) fn trust_set(rows: &[MemberRow], voters: &BTreeSet<NodeId>) -> TrustSet {
    let trusted = |row: &MemberRow| {
        let member = TrustedMember::new(row.local()).ok()?;
        let is_member = row.role != RowRole::Pending || voters.contains(&row.id);
        Some(if is_member { member } else { member.joiner() })
    };
    rows.iter().filter_map(trusted).collect()
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<MemberRow> {
    Ok(MemberRow {
        id: row.get::<_, i64>(0)?.cast_unsigned(),
        name: parsed(row, 1)?,
        address: parsed(row, 2)?,
        certificate: row.get(3)?,
        role: RowRole::parse(&row.get::<_, String>(4)?).ok_or(FromSqlError::InvalidType)?,
        schema_internal: row.get::<_, i64>(5)?.cast_unsigned(),
        schema_external: row.get::<_, i64>(6)?.cast_unsigned(),
        extensions: serde_json::from_str(&row.get::<_, String>(7)?).map_err(|e| bad_text(7, e))?,
        last_heartbeat: parsed(row, 8)?,
        token_id: row.get(9)?,
        failure_domain: row.get::<_, i64>(10)?.cast_unsigned(),
    })
}

/// A text column that has a parser of its own.
pub(super) fn parsed<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    row.get::<_, String>(column)?.parse().map_err(|e| bad_text(column, e))
}

fn bad_text(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn a_joiner_is_no_member_until_it_votes_or_is_marked() {
        use crate::tls::{Generate, KeyPair};
        use crate::trust::TrustedAs;

        let standing = |role, voters: &[NodeId]| {
            let certificate = KeyPair::generate(&Generate { name: "c2", addresses: &[] }).unwrap().certificate.pem;
            let row = MemberRow { certificate, ..row(role) };
            let trusted = trust_set(&[row], &voters.iter().copied().collect());
            trusted.iter().map(|member| member.trusted_as).collect::<Vec<_>>()
        };
        assert_eq!(standing(RowRole::Pending, &[1]), [TrustedAs::Joiner]);
        assert_eq!(standing(RowRole::Pending, &[1, 2]), [TrustedAs::Member]);
        for role in [RowRole::Rebuilding, RowRole::Voter, RowRole::StandBy, RowRole::Spare, RowRole::Leaving] {
            assert_eq!(standing(role, &[1]), [TrustedAs::Member], "{role:?}");
        }
    }

    pub(crate) fn row(role: RowRole) -> MemberRow {
        MemberRow {
            id: 2,
            name: "c2".parse().unwrap(),
            address: "127.0.0.1:9002".parse().unwrap(),
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

    pub(crate) fn new_member(number: NodeId, role: RowRole) -> NewMember {
        NewMember {
            id: Some(number),
            name: format!("c{number}").parse().unwrap(),
            address: format!("127.0.0.1:{}", 9000 + number).parse().unwrap(),
            certificate: format!("certificate {number}"),
            role,
            schema_internal: 1,
            schema_external: 0,
            extensions: vec![],
            last_heartbeat: Timestamp::ZERO,
            token_id: None,
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_removal_is_marked_whatever_the_role_is() {
        let (_cluster, db) = crate::cluster::schema::database().await;
        let roles =
            [RowRole::Pending, RowRole::Rebuilding, RowRole::Voter, RowRole::StandBy, RowRole::Spare, RowRole::Leaving];
        for (number, role) in (2..).zip(roles) {
            let new = new_member(number, role);
            assert!(db.transaction(move |tx| mark_leaving(tx, insert(tx, &new)?)).await.unwrap(), "{role:?}");
        }
        assert!(!db.transaction(|tx| mark_leaving(tx, 1)).await.unwrap());
        let rows = db.read(crate::db::Consistency::Local, all).await.unwrap();
        assert!(rows.len() == roles.len() && rows.iter().all(|row| row.role == RowRole::Leaving), "{rows:?}");
    }

    /// `PENDING` is a joiner alone: whoever waits for a join to end must not wait for a member that is rebuilt, or was to be.
    #[test]
    fn only_a_joiner_is_shown_as_pending() {
        let shown = |role, voters: &[NodeId]| row(role).role(&voters.iter().copied().collect());
        for (role, expected) in [
            (RowRole::Pending, Role::Pending),
            (RowRole::Rebuilding, Role::Spare),
            (RowRole::Voter, Role::StandBy),
            (RowRole::StandBy, Role::StandBy),
            (RowRole::Spare, Role::Spare),
            (RowRole::Leaving, Role::Spare),
        ] {
            assert_eq!(shown(role, &[1]), expected, "{role:?}");
            assert_eq!(shown(role, &[1, 2]), Role::Voter, "{role:?}");
        }
    }
}
