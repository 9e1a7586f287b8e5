//! Join tokens: make, list, revoke.

use microcluster_client::{Empty, Secret, TokenRecord, TokenRequest};

use super::envelope::{Answer, EMPTY};
use super::extract::{Body, PathName};
use crate::error::Error;
use crate::state::State;

/// GET `/core/control/tokens`
pub(super) async fn tokens_list(state: State) -> Result<Answer<Vec<TokenRecord>>, Error> {
    Ok(Answer(state.node()?.tokens().await?))
}

/// POST `/core/control/tokens`
pub(super) async fn token_add(state: State, Body(request): Body<TokenRequest>) -> Result<Answer<Secret>, Error> {
    Ok(Answer(state.node()?.add_token(request.name, request.expire_after).await?))
}

/// DELETE `/core/1.0/tokens/{name}`
pub(super) async fn token_revoke(state: State, PathName(name): PathName) -> Result<Answer<Empty>, Error> {
    state.node()?.revoke_token(name).await?;
    Ok(EMPTY)
}
