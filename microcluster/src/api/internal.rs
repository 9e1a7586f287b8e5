//! What members tell each other beside Raft.

use axum::extract::{FromRequest, Path, Request};
use http::Method;
use http::header::USER_AGENT;
use microcluster_client::{Empty, HeartbeatInfo, Hook, MemberLocal, NOTIFICATION_USER_AGENT};

use super::envelope::{Answer, EMPTY};
use super::extract::{Body, PathName};
use crate::cluster::HookError;
use crate::error::Error;
use crate::state::State;

/// POST `/core/internal/heartbeat`: who asks for a round gets it, from the leader, before the answer. Anything else is a
/// hint that something has changed: the log says what.
pub(super) async fn heartbeat_run(state: State, request: Request) -> Result<Answer<Empty>, Error> {
    let agent = request.headers().get(USER_AGENT);
    let is_forwarded = agent.is_some_and(|agent| agent.as_bytes().starts_with(NOTIFICATION_USER_AGENT.as_bytes()));
    let Body(info) = Body::<HeartbeatInfo>::from_request(request, &state).await?;
    let node = state.node()?;
    if info.begin_round {
        match node.leader_client(&node.db.status()) {
            // One hop, never two.
            Some(leader) if !is_forwarded => {
                leader.notification().query::<Empty>(Method::POST, "/core/internal/heartbeat", info).await?;
            }
            _ => node.begin_heartbeat().await?,
        }
    }
    node.nudge();
    Ok(EMPTY)
}

/// POST `/core/internal/hooks/{hook}`: a hook of the product, with what it is told in the body.
pub(super) async fn hook_run(state: State, Path(hook): Path<String>, request: Request) -> Result<Answer<Empty>, Error> {
    let hook = match hook.as_str() {
        "pre-remove" => Hook::PreRemove(Body::from_request(request, &state).await?.0),
        "post-remove" => Hook::PostRemove(Body::from_request(request, &state).await?.0),
        "on-new-member" => Hook::OnNewMember(Body::from_request(request, &state).await?.0),
        "on-daemon-config-update" => Hook::OnDaemonConfigUpdate(Body::from_request(request, &state).await?.0),
        _ => return Err(HookError::Unknown { hook }.into()),
    };
    state.node()?.run_hook(hook).await?;
    Ok(EMPTY)
}

/// POST `/core/internal/truststore`: there is a new member. The log is the truth: this has it looked at.
pub(super) async fn trust_nudge(state: State, Body(member): Body<MemberLocal>) -> Result<Answer<Empty>, Error> {
    state.node()?.be_introduced(member).await?;
    Ok(EMPTY)
}

/// DELETE `/core/internal/truststore/{name}`: a member is gone. The log is the truth: this has it looked at.
pub(super) async fn trust_nudge_removed(state: State, PathName(_name): PathName) -> Result<Answer<Empty>, Error> {
    state.node()?.nudge();
    Ok(EMPTY)
}
