//! The daemon itself: what it is, whether it is ready, its configuration.

use std::collections::BTreeMap;

use microcluster_client::{
    CertificateExpiry, DaemonConfig, DaemonConfigUpdate, DaemonStatus, DatabaseStatus, Empty, Leader, Name,
    ServerConfig, ServerStatus,
};

use super::envelope::{Answer, EMPTY};
use super::extract::Body;
use crate::cluster::own_config::Missing;
use crate::db::RaftState;
use crate::error::Error;
use crate::state::{Lifecycle, NotNow, State};

/// GET `/`: where the APIs begin.
pub(super) async fn roots_list(state: State) -> Answer<Vec<String>> {
    let core = ["/core/1.0".to_owned()];
    Answer(core.into_iter().chain(state.roots().iter().cloned()).collect())
}

/// GET `/core/1.0`
pub(super) async fn server_show(state: State) -> Answer<ServerStatus> {
    Answer(state.server_status())
}

/// GET `/core/1.0/ready`: start-up is done, and a member can do its work.
pub(super) async fn ready_show(state: State) -> Result<Answer<Empty>, Error> {
    match state.lifecycle() {
        Lifecycle::Member(node) if let Err(waits) = node.is_current() => Err(waits.into()),
        _ if !state.is_started() => Err(NotNow::Starting.into()),
        Lifecycle::Uninitialised => Ok(EMPTY),
        Lifecycle::Member(node) if node.has_quorum().await => Ok(EMPTY),
        Lifecycle::Member(_) => {
            Err(Error::unavailable("the cluster has no quorum: too few members can be reached").retry_after(1))
        }
        other => Err(other.not_now().into()),
    }
}

/// GET `/core/1.0/daemon/config`
pub(super) async fn config_show(state: State) -> Result<Answer<DaemonConfig>, Error> {
    Ok(Answer(state.node()?.config.current().public()))
}

/// PUT `/core/1.0/daemon/config`: what is missing is cleared.
pub(super) async fn config_replace(
    state: State,
    Body(update): Body<DaemonConfigUpdate>,
) -> Result<Answer<Empty>, Error> {
    state.node()?.change_config(update, Missing::Clear, &state.settings().servers).await?;
    Ok(EMPTY)
}

/// PATCH `/core/1.0/daemon/config`: what is missing stays.
pub(super) async fn config_change(
    state: State,
    Body(update): Body<DaemonConfigUpdate>,
) -> Result<Answer<Empty>, Error> {
    state.node()?.change_config(update, Missing::Keep, &state.settings().servers).await?;
    Ok(EMPTY)
}

/// GET `/core/1.0/daemon/servers`
pub(super) async fn servers_list(state: State) -> Result<Answer<BTreeMap<Name, ServerConfig>>, Error> {
    state.node()?;
    Ok(Answer(state.servers().into_iter().map(|(name, address)| (name, ServerConfig { address })).collect()))
}

/// PUT `/core/1.0/daemon/servers`
pub(super) async fn servers_replace(
    state: State,
    Body(servers): Body<BTreeMap<Name, ServerConfig>>,
) -> Result<Answer<Empty>, Error> {
    let update = DaemonConfigUpdate { servers: Some(servers), ..DaemonConfigUpdate::default() };
    state.node()?.change_config(update, Missing::Keep, &state.settings().servers).await?;
    Ok(EMPTY)
}

/// GET `/core/1.0/daemon/status`
pub(super) async fn status_show(state: State) -> Result<Answer<DaemonStatus>, Error> {
    let node = state.node()?;
    let quorum = node.has_quorum().await;
    let raft = node.db.status();
    let (role, members) = node.own_role().await?;
    let leader = raft
        .leader_peer()
        .and_then(|peer| Some(Leader { name: peer.name.parse().ok()?, address: peer.address.parse().ok()? }));
    let mut certificates = node.expiry().await;
    let expires_at = state.server_certificate().current().certificate.expires_at;
    certificates.insert(1, CertificateExpiry { name: "server".into(), expires_at });
    Ok(Answer(DaemonStatus {
        name: node.name.clone(),
        address: node.address,
        version: state.version().into(),
        ready: quorum && state.is_started(),
        role,
        leader,
        quorum,
        database: DatabaseStatus {
            state: state_name(&raft.state).into(),
            term: raft.term,
            last_log_index: raft.last_log_index,
            applied_index: raft.applied_index,
        },
        members,
        certificates,
    }))
}

fn state_name(state: &RaftState) -> &'static str {
    match state {
        RaftState::Leader => "leader",
        RaftState::Follower => "follower",
        RaftState::Candidate => "candidate",
        RaftState::Learner => "learner",
        RaftState::Shutdown => "shutdown",
    }
}
