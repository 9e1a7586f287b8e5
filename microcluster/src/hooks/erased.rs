//! A product's hooks without their type: one call that takes what has happened.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use microcluster_client::{DaemonConfig, Hook, InitConfig, MemberLocal, Name};

use super::{Hooks, NoHooks, RoleStatus};
use crate::error::Result;
use crate::state::State;

/// What has happened, or is about to.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    PreInit { bootstrap: bool, config: InitConfig },
    PostBootstrap { config: InitConfig },
    PreJoin { config: InitConfig },
    PostJoin { config: InitConfig },
    OnStart,
    OnStop,
    PreRemove { force: bool },
    PostRemove { force: bool },
    OnNewMember { member: MemberLocal },
    OnHeartbeat { roles: BTreeMap<Name, RoleStatus> },
    OnDaemonConfigUpdate { config: DaemonConfig },
}

impl Event {
    /// The name of the hook.
    pub fn hook(&self) -> &'static str {
        match self {
            Event::PreInit { .. } => "pre_init",
            Event::PostBootstrap { .. } => "post_bootstrap",
            Event::PreJoin { .. } => "pre_join",
            Event::PostJoin { .. } => "post_join",
            Event::OnStart => "on_start",
            Event::OnStop => "on_stop",
            Event::PreRemove { .. } => "pre_remove",
            Event::PostRemove { .. } => "post_remove",
            Event::OnNewMember { .. } => "on_new_member",
            Event::OnHeartbeat { .. } => "on_heartbeat",
            Event::OnDaemonConfigUpdate { .. } => "on_daemon_config_update",
        }
    }
}

/// What another member asks for; none for a hook that this version does not know.
impl TryFrom<Hook> for Event {
    type Error = Hook;

    fn try_from(hook: Hook) -> Result<Event, Hook> {
        Ok(match hook {
            Hook::PreRemove(told) => Event::PreRemove { force: told.force },
            Hook::PostRemove(told) => Event::PostRemove { force: told.force },
            Hook::OnNewMember(told) => Event::OnNewMember { member: told.new_member },
            Hook::OnDaemonConfigUpdate(config) => Event::OnDaemonConfigUpdate { config },
            unknown => return Err(unknown),
        })
    }
}

/// A product's hooks, whatever their type. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ProductHooks(Arc<dyn ErasedHooks>);

impl ProductHooks {
    pub fn new(hooks: impl Hooks) -> Self {
        ProductHooks(Arc::new(hooks))
    }

    /// Runs the hook of an event.
    pub fn call<'a>(&'a self, state: &'a State, event: &'a Event) -> BoxFuture<'a, Result<()>> {
        self.0.call(state, event)
    }
}

impl Default for ProductHooks {
    fn default() -> Self {
        Self::new(NoHooks)
    }
}

impl fmt::Debug for ProductHooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooks")
    }
}

/// The object-safe twin of [`Hooks`].
trait ErasedHooks: Send + Sync {
    fn call<'a>(&'a self, state: &'a State, event: &'a Event) -> BoxFuture<'a, Result<()>>;
}

impl<H: Hooks> ErasedHooks for H {
    fn call<'a>(&'a self, state: &'a State, event: &'a Event) -> BoxFuture<'a, Result<()>> {
        match event {
            Event::PreInit { bootstrap, config } => Box::pin(self.pre_init(state, *bootstrap, config)),
            Event::PostBootstrap { config } => Box::pin(self.post_bootstrap(state, config)),
            Event::PreJoin { config } => Box::pin(self.pre_join(state, config)),
            Event::PostJoin { config } => Box::pin(self.post_join(state, config)),
            Event::OnStart => Box::pin(self.on_start(state)),
            Event::OnStop => Box::pin(self.on_stop(state)),
            Event::PreRemove { force } => Box::pin(self.pre_remove(state, *force)),
            Event::PostRemove { force } => Box::pin(self.post_remove(state, *force)),
            Event::OnNewMember { member } => Box::pin(self.on_new_member(state, member)),
            Event::OnHeartbeat { roles } => Box::pin(self.on_heartbeat(state, roles)),
            Event::OnDaemonConfigUpdate { config } => Box::pin(self.on_daemon_config_update(state, config)),
        }
    }
}
