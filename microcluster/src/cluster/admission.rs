//! Taking a joiner in, on the leader: admit it by its token, confirm it, or drop it.

use std::sync::Arc;

use microcluster_client::{JoinRequest, JoinResponse, MemberLocal, Name, Secret, Timestamp};

use super::hook_calls::HookError;
use super::join::{self, Admission, Earlier, Refusal, Situation};
use super::members::{self, MemberRow, NewMember, RowRole};
use super::node::Node;
use super::roles::{self, Candidate, Candidates, FullRole};
use super::tokens;
use crate::db::{self, NodeId};
use crate::tls::{Certificate, CertificateError};

/// Why a joiner was not admitted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdmitError {
    #[error(transparent)]
    Address(#[from] microcluster_client::AddressError),
    #[error("the certificate of the joining daemon cannot be used: {0}")]
    Certificate(#[from] CertificateError),
    #[error(
        "the certificate of the joining daemon is for {names}, not for {name}; it must carry the name in the join token"
    )]
    CertificateName { name: Name, names: String },
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("{name} has joined with this token and is being made a member; wait for it")]
    AlreadyVotes { name: Name },
    #[error("{name} is joining with this token already; if it is not, the token can be used again in a minute")]
    InProgress { name: Name },
    #[error("cannot admit {name}")]
    Database { name: Name, source: db::Error },
}

/// Why a joiner was not confirmed or dropped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfirmError {
    #[error("{name} is not joining: its join was given up, or its token was revoked; join again")]
    Gone { name: Name },
    #[error("{name} is catching up with the log")]
    InProgress { name: Name },
    #[error("{name} is being removed from the cluster")]
    Leaving { name: Name },
    #[error("{name} is a member already; remove it with `microctl cluster remove {name}`")]
    IsMember { name: Name },
    /// Nothing of the join is left.
    #[error("{hook}")]
    Hook { name: Name, hook: HookError },
    #[error("cannot confirm the join of {name}")]
    Database { name: Name, source: db::Error },
}

impl Node {
    /// Admits a joiner: checks its token and gives it a row with a new id. It is no member yet.
    pub async fn admit(&self, request: JoinRequest) -> Result<JoinResponse, AdmitError> {
        request.address.cluster()?;
        let certificate = Certificate::parse(&request.certificate)?;
        certificate.check_dates(Timestamp::now()).map_err(CertificateError::from)?;
        if !certificate.carries(request.name.as_str()) {
            let names = match certificate.names() {
                [] => "no name".to_owned(),
                names => names.join(", "),
            };
            return Err(AdmitError::CertificateName { name: request.name, names });
        }
        let name = request.name.clone();
        let tokens = self.db.read(db::Consistency::Linearizable, tokens::all).await;
        let tokens = tokens.map_err(|source| AdmitError::Database { name: name.clone(), source })?;
        if tokens::find(&tokens, &request.secret).is_none() {
            // Before the lock: whoever has no token holds up nobody.
            return Err(Refusal::TokenUnknown { name }.into());
        }
        let _membership = self.membership.lock().await;
        let raft = self.db.status();
        let own = self.versions.clone();
        let now = Timestamp::now();
        let joiner = name.clone();
        let admitted = self.db.transaction(move |tx| {
            let (tokens, members, cluster) = (tokens::all_in(tx)?, members::all_in(tx)?, db::level_in(tx)?);
            let situation = Situation { tokens: &tokens, members: &members, own: &own, cluster, now };
            let Admission { token_id, earlier } = join::admit(&situation, &request, certificate.fingerprint)
                .map_err(|refusal| db::Error::other(AdmitError::from(refusal)))?;
            match earlier {
                Some(Earlier::Same(id) | Earlier::Other(id)) if raft.voters.contains(&id) => {
                    return Err(db::Error::other(AdmitError::AlreadyVotes { name: joiner.clone() }));
                }
                // It has the log already, under this id, so it goes on with the answer that it has. If it has lost
                // that, it is dropped after a while: the id of a lost log is not given again.
                Some(Earlier::Same(id)) if raft.learners.contains(&id) => {
                    return Err(db::Error::other(AdmitError::InProgress { name: joiner.clone() }));
                }
                Some(Earlier::Same(id)) => return Ok(id),
                Some(Earlier::Other(id)) => drop(members::delete(tx, id, RowRole::Pending)?),
                None => {}
            }
            members::insert(tx, &NewMember::joining(&request, token_id))
        });
        let id = match admitted.await {
            Ok(id) => id,
            Err(e) => {
                let own = e.downcast::<AdmitError>();
                return Err(own.unwrap_or_else(|source| AdmitError::Database { name, source }));
            }
        };
        self.reached("admitted");
        self.nudge();
        let database = |source| AdmitError::Database { name: name.clone(), source };
        // At once: the joiner comes back with its certificate as soon as it has the answer.
        self.refresh_trust().await.map_err(&database)?;
        let rows = self.rows().await.map_err(&database)?;
        if let Some(joiner) = rows.iter().find(|row| row.id == id) {
            self.introduce(&joiner.local()).await;
        }
        tracing::info!(member = %name, id, "admitted a joining member");
        self.welcome(id, &rows).await.map_err(&database)
    }

    /// Makes an admitted joiner a member. May be repeated: it finishes what is missing.
    pub async fn confirm(self: &Arc<Self>, name: Name, id: NodeId, secret: Secret) -> Result<(), ConfirmError> {
        let database = |source| ConfirmError::Database { name: name.clone(), source };
        let is_confirming = || self.confirming().contains(&id);
        let was_confirming = is_confirming();
        let row = match self.joining_row(&name, id, &secret).await {
            // Nobody is told so while another call may be taking it in.
            Err(ConfirmError::Gone { name }) if was_confirming || is_confirming() => {
                return Err(ConfirmError::InProgress { name });
            }
            found => found?,
        };
        let Some(row) = row else {
            return Ok(());
        };
        let _guard = Confirming::begin(self, id).ok_or_else(|| ConfirmError::InProgress { name: name.clone() })?;
        if !self.db.status().voters.contains(&id) {
            self.db.add_learner(id, row.peer()).await.map_err(database)?;
            self.reached("learner");
            if row.role == RowRole::Pending {
                self.ask_products(&row).await?;
            }
        }
        let _membership = self.membership.lock().await;
        // It took a while: the row can be gone by now, and its token revoked.
        let Some(row) = self.joining_row(&name, id, &secret).await? else {
            return Ok(());
        };
        if !self.db.status().voters.contains(&id) && !self.answers(&row).await {
            // Products and other changes took their time. With a vote that nobody casts the cluster could stand still.
            return Err(ConfirmError::InProgress { name });
        }
        self.take_in(&row).await.map_err(database)?;
        tracing::info!(member = %name, id, "a member joined");
        Ok(())
    }

    /// Has the products of all members agree to a joiner that does not vote yet, and drops it where one does not. No lock
    /// is held meanwhile: a hook may use the cluster as it likes.
    async fn ask_products(self: &Arc<Self>, joiner: &MemberRow) -> Result<(), ConfirmError> {
        let name = joiner.name.clone();
        let database = |source| ConfirmError::Database { name: name.clone(), source };
        let rows = self.rows().await.map_err(database)?;
        if self.hooks.is_stopping() {
            return Err(database(db::Error::ShuttingDown));
        }
        let Err(hook) = self.tell_new_member(&rows, &joiner.local()).await else {
            return Ok(());
        };
        if matches!(hook, HookError::Stopped { .. }) {
            // This leader stops, and nobody has refused: the joiner asks the next one.
            return Err(database(db::Error::ShuttingDown));
        }
        tracing::warn!(member = %name, error = %hook, "a joining member is dropped: a hook failed");
        let _membership = self.membership.lock().await;
        // From here on asking again finds nothing: the joiner undoes its join, and its token is as it was.
        if self.drop_pending(joiner.id).await.map_err(database)? {
            return Err(ConfirmError::Hook { name, hook });
        }
        Ok(())
    }

    /// Forgets a joiner that gave up before it was a member, or before it has spent its token.
    pub async fn drop_joiner(self: &Arc<Self>, name: Name, id: NodeId, secret: Secret) -> Result<(), ConfirmError> {
        let database = |source| ConfirmError::Database { name: name.clone(), source };
        let row = match self.joining_row(&name, id, &secret).await {
            Ok(Some(row)) => row,
            Ok(None) => return self.withdraw(name, id, secret).await,
            Err(ConfirmError::Gone { .. }) => return Ok(()),
            Err(e) => return Err(e),
        };
        let _membership = self.membership.lock().await;
        if !self.drop_pending(row.id).await.map_err(database)? {
            return Err(ConfirmError::IsMember { name });
        }
        Ok(())
    }

    /// Removes a member whose join was not finished: its token is not spent.
    async fn withdraw(self: &Arc<Self>, name: Name, id: NodeId, secret: Secret) -> Result<(), ConfirmError> {
        let database = |source| ConfirmError::Database { name: name.clone(), source };
        let membership = self.membership.lock().await;
        let (own, joiner) = (self.id, name.clone());
        let marked = self.db.transaction(move |tx| {
            let Some(row) = members::all_in(tx)?.into_iter().find(|row| row.id == id && row.name == joiner) else {
                return Ok(None);
            };
            let token = tokens::find(&tokens::all_in(tx)?, &secret).map(|token| token.id);
            let is_joining = token.is_some() && row.token_id == token;
            if row.id == own || !(is_joining || row.role == RowRole::Leaving) {
                return Err(db::Error::other(ConfirmError::IsMember { name: joiner.clone() }));
            }
            members::mark_leaving(tx, id)?;
            Ok(Some(row))
        });
        let marked = marked.await.map_err(|e| e.downcast::<ConfirmError>().unwrap_or_else(&database))?;
        let Some(row) = marked else {
            return Ok(());
        };
        tracing::warn!(member = %name, id, "a member gives up its join and is removed");
        self.leave_raft(id).await.map_err(&database)?;
        self.forget(&row).await.map_err(&database)?;
        drop(membership);
        // They were told that it joins. What fails there is in their logs: the join has failed already.
        drop(self.tell_post_remove(true).await);
        Ok(())
    }

    /// Gives a joiner that has caught up its role. The role in the row is
    /// written last: until then asking again leads here again.
    pub(super) async fn take_in(&self, row: &MemberRow) -> Result<(), db::Error> {
        let rows = self.rows().await?;
        let raft = self.db.status();
        let unreachable = self.unreachable();
        let full = rows.iter().filter(|row| row.role.is_full());
        let mut members: Candidates = full.map(|row| (row.id, row.candidate(&raft.voters, &unreachable))).collect();
        let is_voter = raft.voters.contains(&row.id);
        // It has just caught up, so it answers.
        let joiner = Candidate { is_reachable: true, ..row.candidate(&raft.voters, &unreachable) };
        members.insert(row.id, Candidate { role: is_voter.then_some(FullRole::Voter), ..joiner });
        let assigned = roles::assign(self.role_counts, self.id, &members);
        let role = assigned.get(&row.id).copied().unwrap_or(FullRole::Spare);
        if role == FullRole::Voter {
            let mut wanted = roles::voters(&assigned);
            // Nobody else: whether others answer that are to vote is looked at when the roles are put in order.
            wanted.retain(|id| *id == row.id || raft.voters.contains(id));
            let next = if is_voter { raft.voters } else { roles::next_voters(&raft.voters, &wanted, &members) };
            self.ensure_voters(next).await?;
            self.reached("voter");
        }
        let role = RowRole::from(role);
        let (id, from) = (row.id, row.role);
        // An invitation is spent by the joiner once its product has agreed; what a member is rebuilt with, at once.
        let (token_id, spends_token) = (row.token_id, from == RowRole::Rebuilding);
        self.db
            .transaction(move |tx| {
                if !members::change_role(tx, id, from, role)? {
                    return Err(db::Error::Busy { detail: "the row of the joining member has changed" });
                }
                // Who has a vote is in, whatever became of its token.
                let is_invited = tokens::all_in(tx)?.iter().any(|token| Some(token.id) == token_id);
                if !is_invited && role != RowRole::Voter && !spends_token {
                    return Err(db::Error::Busy { detail: "the token of the joining member was revoked" });
                }
                token_id.filter(|_| spends_token).map_or(Ok(()), |token| tokens::spend(tx, token))
            })
            .await?;
        self.reached("taken in");
        self.refresh_trust().await?;
        self.nudge();
        Ok(())
    }

    /// Spends the token by which this member has joined: its join is done.
    pub async fn spend_own_token(&self) -> Result<(), db::Error> {
        let id = self.id;
        self.db
            .transaction(move |tx| {
                let rows = members::all_in(tx)?;
                let token_id = rows.iter().find(|row| row.id == id).and_then(|row| row.token_id);
                token_id.map_or(Ok(()), |token| tokens::spend(tx, token))
            })
            .await
    }

    /// Deletes the row of a joiner and takes it out of Raft, unless it votes already; says whether
    /// that was done. The caller holds the membership lock.
    pub(super) async fn drop_pending(&self, id: NodeId) -> Result<bool, db::Error> {
        if self.db.status().voters.contains(&id) {
            return Ok(false);
        }
        let dropped = self.db.transaction(move |tx| members::delete_joining(tx, id)).await?;
        // Where nothing was deleted another leader may have taken it in. A node without a row is an orphan, and removed as such.
        if dropped && self.db.status().learners.contains(&id) {
            self.db.remove_node(id).await?;
        }
        self.refresh_trust().await?;
        Ok(dropped)
    }

    /// The row of a joiner that is still pending; none when it is a member already.
    async fn joining_row(&self, name: &Name, id: NodeId, secret: &Secret) -> Result<Option<MemberRow>, ConfirmError> {
        let votes = self.db.status().voters.contains(&id);
        // A joiner that is told so throws its log away: never one that votes. The reconciler takes it in.
        let gone = || match votes {
            true => ConfirmError::InProgress { name: name.clone() },
            false => ConfirmError::Gone { name: name.clone() },
        };
        let read = self.db.read(db::Consistency::Linearizable, |db| Ok((members::all(db)?, tokens::all(db)?)));
        let (rows, tokens) = read.await.map_err(|source| ConfirmError::Database { name: name.clone(), source })?;
        let row = rows.into_iter().find(|row| row.id == id && row.name == *name).ok_or_else(gone)?;
        match row.role {
            RowRole::Leaving => return Err(ConfirmError::Leaving { name: name.clone() }),
            RowRole::Pending | RowRole::Rebuilding => {}
            RowRole::Voter | RowRole::StandBy | RowRole::Spare => return Ok(None),
        }
        let token = tokens::find(&tokens, secret).ok_or_else(gone)?;
        if row.token_id != Some(token.id) {
            return Err(gone());
        }
        Ok(Some(row))
    }

    /// What an admitted joiner is told.
    pub(super) async fn welcome(&self, id: NodeId, rows: &[MemberRow]) -> Result<JoinResponse, db::Error> {
        let cluster = self.cluster_certificate.current();
        let mut cluster_members: Vec<MemberLocal> =
            rows.iter().filter(|row| row.role.is_full()).map(MemberRow::local).collect();
        // This one first: it is the leader, and the joiner asks it first.
        cluster_members.sort_by_key(|member| member.name != self.name);
        let trusted_member = rows.iter().find(|row| row.id == self.id).map(MemberRow::local);
        Ok(JoinResponse {
            cluster_cert: cluster.certificate.pem.clone(),
            cluster_key: cluster.key_pem().clone(),
            trusted_member: trusted_member.unwrap_or_else(|| MemberLocal {
                name: self.name.clone(),
                address: self.address,
                certificate: String::new(),
            }),
            cluster_members,
            cluster_additional_certs: self.additional_certificates().await?,
            member_id: id,
        })
    }
}

impl NewMember {
    fn joining(request: &JoinRequest, token_id: i64) -> Self {
        NewMember {
            id: None,
            name: request.name.clone(),
            address: request.address,
            certificate: request.certificate.clone(),
            role: RowRole::Pending,
            schema_internal: request.schema_internal_version,
            schema_external: request.schema_external_version,
            extensions: request.extensions.clone(),
            last_heartbeat: Timestamp::ZERO,
            token_id: Some(token_id),
        }
    }
}

/// Marks a joiner that catches up, for as long as it is held.
struct Confirming<'a> {
    node: &'a Node,
    id: NodeId,
}

impl<'a> Confirming<'a> {
    /// None when that joiner catches up already.
    fn begin(node: &'a Node, id: NodeId) -> Option<Self> {
        // In two steps: a mark that is not given would be dropped with the set locked, and take the other's away.
        let is_first = node.confirming().insert(id);
        is_first.then(|| Confirming { node, id })
    }
}

impl Drop for Confirming<'_> {
    fn drop(&mut self) {
        self.node.confirming().remove(&self.id);
    }
}
