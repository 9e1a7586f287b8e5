//! The token table: who was invited and has not come yet.

use std::time::Duration;

use microcluster_client::{Name, Secret, Timestamp, TokenRecord};
use rusqlite::{Connection, Row};
use subtle::ConstantTimeEq;

use super::members::{self, RowRole, parsed};
use super::node::Node;
use crate::db::{self, Consistency, Transaction};
use crate::token::{self, JoinToken};

/// One row of the token table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenRow {
    pub id: i64,
    pub name: Name,
    pub secret: Secret,
    /// Zero for never.
    pub expires_at: Timestamp,
}

/// Why there is no new token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddError {
    #[error(
        "there is a join token for {name} already; revoke it with `microctl tokens revoke {name}` or use another name"
    )]
    NameTaken { name: Name },
    #[error(
        "there is a member named {name} already; remove it first with `microctl cluster remove {name}`, or use another name"
    )]
    MemberExists { name: Name },
    #[error("the token would expire after the year 9999; give a shorter time, or 0 for one that never expires")]
    ExpiresTooLate,
    #[error("cannot add the join token")]
    Database(#[source] db::Error),
}

/// Why a token was not revoked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RevokeError {
    #[error("there is no join token for {name}; `microctl tokens list` shows those there are")]
    NotFound { name: Name },
    #[error("cannot revoke the join token")]
    Database(#[source] db::Error),
}

impl TokenRow {
    pub fn is_expired(&self, now: Timestamp) -> bool {
        !self.expires_at.is_zero() && self.expires_at <= now
    }
}

/// All rows, by name.
pub(crate) fn all(db: &Connection) -> rusqlite::Result<Vec<TokenRow>> {
    let mut statement = db.prepare_cached(SELECT)?;
    statement.query_map((), from_row)?.collect()
}

/// All rows, by name.
pub(crate) fn all_in(tx: &Transaction<'_>) -> Result<Vec<TokenRow>, db::Error> {
    tx.query(SELECT, (), from_row)
}

/// Makes a token for the name of no member, in place of an expired one that nobody comes by.
fn add(
    tx: &Transaction<'_>,
    name: &Name,
    secret: &Secret,
    expires_at: Timestamp,
    now: Timestamp,
) -> Result<(), db::Error> {
    let members = members::all_in(tx)?;
    // The name of a joiner is its token's, and that of one that is being removed is free soon.
    if members.iter().any(|row| row.name == *name && !matches!(row.role, RowRole::Pending | RowRole::Leaving)) {
        return Err(db::Error::other(AddError::MemberExists { name: name.clone() }));
    }
    if let Some(present) = all_in(tx)?.into_iter().find(|row| row.name == *name) {
        let is_in_use = members.iter().any(|row| row.token_id == Some(present.id));
        if !present.is_expired(now) || is_in_use {
            return Err(db::Error::other(AddError::NameTaken { name: name.clone() }));
        }
        spend(tx, present.id)?;
    }
    let values = (name.as_str(), secret.expose(), expires_at.to_string());
    tx.execute("INSERT INTO core_token_records (name, secret, expires_at) VALUES (?1, ?2, ?3)", values).map(|_| ())
}

/// Makes a token that never expires in place of one there may be for that name, and returns its id.
pub(crate) fn replace(tx: &Transaction<'_>, name: &Name, secret: &Secret) -> Result<i64, db::Error> {
    tx.execute("DELETE FROM core_token_records WHERE name = ?1", [name.as_str()])?;
    tx.execute(
        "INSERT INTO core_token_records (name, secret, expires_at) VALUES (?1, ?2, ?3)",
        (name.as_str(), secret.expose(), Timestamp::ZERO.to_string()),
    )?;
    Ok(tx.last_insert_rowid())
}

/// Removes a token: it is used up.
pub(crate) fn spend(tx: &Transaction<'_>, id: i64) -> Result<(), db::Error> {
    tx.execute("DELETE FROM core_token_records WHERE id = ?1", [id]).map(|_| ())
}

/// The token with this secret. Every row is compared, each in constant time: neither the secret
/// nor its place can be guessed from how long it takes.
pub(crate) fn find<'a>(tokens: &'a [TokenRow], secret: &Secret) -> Option<&'a TokenRow> {
    let given = secret.expose().as_bytes();
    let mut found = None;
    for row in tokens {
        if bool::from(row.secret.expose().as_bytes().ct_eq(given)) {
            found = Some(row);
        }
    }
    found
}

impl Node {
    /// Makes a join token for a name.
    pub async fn add_token(&self, name: Name, expire_after: Option<Duration>) -> Result<Secret, AddError> {
        let expires_at = match expire_after {
            None => Timestamp::ZERO,
            Some(after) => Timestamp::now().checked_add(after).ok_or(AddError::ExpiresTooLate)?,
        };
        let secret = token::new_secret();
        let (own, key) = (name.clone(), secret.clone());
        let added = self.db.transaction(move |tx| add(tx, &own, &key, expires_at, Timestamp::now())).await;
        match added {
            Ok(()) => {}
            Err(db::Error::Constraint { unique: true, .. }) => return Err(AddError::NameTaken { name }),
            Err(e) => return Err(e.downcast::<AddError>().unwrap_or_else(AddError::Database)),
        }
        Ok(self.join_token(secret).await.map_err(AddError::Database)?.encode())
    }

    /// The tokens that have not been used, by name.
    pub async fn tokens(&self) -> Result<Vec<TokenRecord>, db::Error> {
        let rows = self.db.read(Consistency::Linearizable, invitations).await?;
        let Some(first) = rows.first() else {
            return Ok(Vec::new());
        };
        let mut token = self.join_token(first.secret.clone()).await?;
        let mut records = Vec::with_capacity(rows.len());
        for row in rows {
            token.secret = row.secret;
            records.push(TokenRecord { name: row.name, token: token.encode(), expires_at: row.expires_at });
        }
        Ok(records)
    }

    /// Takes back a token.
    pub async fn revoke_token(&self, name: Name) -> Result<(), RevokeError> {
        let sql = format!("DELETE FROM core_token_records WHERE name = ?1 AND {INVITES}");
        match self.db.execute(&sql, [name.to_string()]).await {
            Ok(0) => Err(RevokeError::NotFound { name }),
            Ok(_) => Ok(()),
            Err(e) => Err(RevokeError::Database(e)),
        }
    }

    /// The token for a secret, with the members as they are now; this one first.
    async fn join_token(&self, secret: Secret) -> Result<JoinToken, db::Error> {
        let mut rows = self.db.read(Consistency::Local, members::all).await?;
        rows.retain(|row| row.role.is_full());
        rows.sort_by_key(|row| row.id != self.id);
        let join_addresses = rows.into_iter().map(|row| row.address).collect();
        let fingerprint = self.cluster_certificate.current().fingerprint();
        Ok(JoinToken { secret, fingerprint, join_addresses })
    }
}

/// That a token is an invitation, and not what a member that was taken in or is being rebuilt goes on with: only that one spends it.
const INVITES: &str = "NOT EXISTS (SELECT 1 FROM core_cluster_members m \
                       WHERE m.role <> 'PENDING' AND m.token_id = core_token_records.id)";

/// The rows of those who were invited, by name.
fn invitations(db: &Connection) -> rusqlite::Result<Vec<TokenRow>> {
    let sql = format!("SELECT id, name, secret, expires_at FROM core_token_records WHERE {INVITES} ORDER BY name");
    let mut statement = db.prepare_cached(&sql)?;
    statement.query_map((), from_row)?.collect()
}

const SELECT: &str = "SELECT id, name, secret, expires_at FROM core_token_records ORDER BY name";

fn from_row(row: &Row<'_>) -> rusqlite::Result<TokenRow> {
    Ok(TokenRow {
        id: row.get(0)?,
        name: parsed(row, 1)?,
        secret: Secret::new(row.get::<_, String>(2)?),
        expires_at: parsed(row, 3)?,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cluster::members::NewMember;
    use crate::cluster::members::tests::new_member;
    use crate::cluster::{members::RowRole, schema};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_token_is_an_invitation_until_its_joiner_is_taken_in() {
        let (_cluster, db) = schema::database().await;
        let roles =
            [RowRole::Pending, RowRole::Rebuilding, RowRole::Voter, RowRole::StandBy, RowRole::Spare, RowRole::Leaving];
        let added = db.transaction(move |tx| {
            replace(tx, &"nobody".parse().unwrap(), &token::new_secret())?;
            for (number, role) in (2..).zip(roles) {
                let new = new_member(number, role);
                let token_id = Some(replace(tx, &new.name, &token::new_secret())?);
                members::insert(tx, &NewMember { token_id, ..new })?;
            }
            Ok(())
        });
        added.await.unwrap();
        let invited = db.read(Consistency::Local, invitations).await.unwrap();
        let names: Vec<_> = invited.iter().map(|token| token.name.as_str()).collect();
        assert_eq!(names, ["c2", "nobody"]);
    }
}
