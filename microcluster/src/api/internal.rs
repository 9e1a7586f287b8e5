//! What members tell each other beside Raft.

use microcluster_client::{Empty, HeartbeatInfo, MemberLocal};

use super::envelope::{Answer, EMPTY};
use super::extract::{Body, PathName};
use crate::error::Error;
use crate::state::State;

/// POST `/core/internal/heartbeat`: the leader runs a round at once when it is asked for; others take it as
/// a hint that something has changed.
pub(super) async fn heartbeat_run(state: State, Body(info): Body<HeartbeatInfo>) -> Result<Answer<Empty>, Error> {
    let node = state.node()?;
    if info.begin_round && node.db.status().is_leader() {
        node.heartbeat().await?;
    }
    node.nudge();
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
