//! Members: list, show, remove; and what a joiner and a removed member are told.

use std::sync::Arc;

use axum::Extension;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use microcluster_client::{Empty, JoinRequest, JoinResponse, Member};

use super::envelope::{Answer, EMPTY};
use super::extract::{Body, Flags, PathName};
use super::forward;
use super::routes::Connection;
use crate::cluster::join::Claim;
use crate::cluster::rebuild::{Readmission, RebuildRequest};
use crate::cluster::{ConfirmError, Confirmation, HookRefusal, Membership, Removal, RemoveError};
use crate::error::Error;
use crate::state::State;
use crate::tasks::blocking;

/// GET `/core/1.0/cluster`
pub(super) async fn members_list(state: State) -> Result<Answer<Vec<Member>>, Error> {
    Ok(Answer(state.node()?.members().await?))
}

/// GET `/core/1.0/cluster/{name}`
pub(super) async fn member_show(state: State, PathName(name): PathName) -> Result<Answer<Member>, Error> {
    let member = state.node()?.member(&name).await?;
    member.map(Answer).ok_or_else(|| RemoveError::NotFound { name }.into())
}

/// DELETE `/core/1.0/cluster/{name}`. A leader that is to be removed hands over first; who leads
/// then removes it.
pub(super) async fn member_remove(
    state: State,
    PathName(name): PathName,
    flags: Flags,
    request: Request,
) -> Result<Response, Error> {
    let node = state.node()?;
    let (id, address, force) = (flags.number("id")?, flags.address("address")?, flags.has("force"));
    match node.remove(&Removal { name, id, address, force }).await {
        Ok(()) => Ok(EMPTY.into_response()),
        Err(RemoveError::Leads { .. }) => {
            node.reached("handing over");
            node.db.transfer_leadership().await?;
            node.reached("handed over");
            forward::to_new_leader(&node, request).await
        }
        Err(e) => Err(e.into()),
    }
}

/// POST `/core/internal/cluster`: a joiner shows its token.
pub(super) async fn joiner_admit(
    state: State,
    Body(request): Body<JoinRequest>,
) -> Result<Answer<JoinResponse>, Error> {
    Ok(Answer(state.node()?.admit(request).await?))
}

/// POST `/core/internal/cluster/{name}/confirm`: an admitted joiner has its database open.
pub(super) async fn joiner_confirm(
    state: State,
    PathName(name): PathName,
    Body(claim): Body<Claim>,
) -> Result<Answer<Confirmation>, Error> {
    match state.node()?.confirm(name, claim.member_id, claim.secret).await {
        Ok(()) => Ok(Answer(Confirmation::default())),
        // An answer and no error: the joiner is to undo its join, not to ask again.
        Err(ConfirmError::Hook { hook, .. }) => {
            let refused = Error::from(hook);
            let (code, message) = (refused.status().as_u16(), refused.message().to_owned());
            Ok(Answer(Confirmation { refused: Some(HookRefusal { code, message }) }))
        }
        Err(e) => Err(e.into()),
    }
}

/// POST `/core/internal/cluster/{name}/drop`: an admitted joiner gives up.
pub(super) async fn joiner_drop(
    state: State,
    PathName(name): PathName,
    Body(claim): Body<Claim>,
) -> Result<Answer<Empty>, Error> {
    state.node()?.drop_joiner(name, claim.member_id, claim.secret).await?;
    Ok(EMPTY)
}

/// POST `/core/internal/cluster/{name}/rebuild`: a member whose files are damaged comes in again.
pub(super) async fn member_readmit(
    state: State,
    PathName(name): PathName,
    Body(request): Body<RebuildRequest>,
) -> Result<Answer<Readmission>, Error> {
    Ok(Answer(state.node()?.readmit(name, request).await?))
}

/// GET `/core/internal/membership`: whether the owner of the certificate that the caller shows is a member. A member that was
/// removed while it was down cannot learn it otherwise; a stranger learns what it knows.
pub(super) async fn membership_show(
    state: State,
    Extension(connection): Extension<Arc<Connection>>,
) -> Result<Answer<Membership>, Error> {
    let certificate = connection.certificate.ok_or_else(|| Error::forbidden("no certificate was shown"))?;
    Ok(Answer(Membership { is_member: state.node()?.is_member(certificate).await? }))
}

/// PUT `/core/internal/cluster/{name}`: this member was removed and forgets the cluster.
pub(super) async fn member_reset(state: State, PathName(name): PathName, flags: Flags) -> Result<Answer<Empty>, Error> {
    let node = state.node()?;
    let own = &node.name;
    if *own != name {
        return Err(Error::not_found(format!("this is the member {own}, not {name}")));
    }
    if flags.number("id")?.is_some_and(|id| id != node.id) {
        return Err(Error::not_found(format!("the member {own} has joined again since then: it is another one")));
    }
    // Decided on disk before it is answered: whoever is told once needs not be told again after a crash.
    let dir = state.dir().clone();
    blocking("reset marker", move || dir.mark_reset())
        .await?
        .map_err(|e| Error::internal("the reset cannot be recorded").caused_by(e))?;
    node.reached("reset decided");
    state.reset(flags.has("force")).await?;
    Ok(EMPTY)
}
