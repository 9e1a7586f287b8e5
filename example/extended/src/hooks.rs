//! Hooks that log when they run, and with what.

use std::collections::BTreeMap;

use microcluster::client::{DaemonConfig, InitConfig, MemberLocal, Name};
use microcluster::{Hooks, Result, RoleStatus, State};
use tracing::info;

pub(crate) struct LoggingHooks;

impl Hooks for LoggingHooks {
    async fn pre_init(&self, _state: &State, bootstrap: bool, config: &InitConfig) -> Result<()> {
        info!(bootstrap, ?config, "pre_init: before a bootstrap or a join");
        Ok(())
    }

    async fn post_bootstrap(&self, _state: &State, config: &InitConfig) -> Result<()> {
        info!(?config, "post_bootstrap: the cluster has its first member");
        Ok(())
    }

    async fn pre_join(&self, _state: &State, config: &InitConfig) -> Result<()> {
        info!(?config, "pre_join: before the token is shown");
        Ok(())
    }

    async fn post_join(&self, _state: &State, config: &InitConfig) -> Result<()> {
        info!(?config, "post_join: this daemon has joined");
        Ok(())
    }

    async fn on_start(&self, state: &State) -> Result<()> {
        info!(name = ?state.name(), "on_start: the daemon has started");
        Ok(())
    }

    async fn on_stop(&self, state: &State) -> Result<()> {
        info!(name = ?state.name(), "on_stop: the daemon is about to stop");
        Ok(())
    }

    async fn pre_remove(&self, _state: &State, force: bool) -> Result<()> {
        info!(force, "pre_remove: this member is about to be removed");
        Ok(())
    }

    async fn post_remove(&self, state: &State, force: bool) -> Result<()> {
        info!(force, name = ?state.name(), "post_remove: a member was removed");
        Ok(())
    }

    async fn on_new_member(&self, _state: &State, member: &MemberLocal) -> Result<()> {
        info!(name = %member.name, address = %member.address, "on_new_member: another daemon is joining");
        Ok(())
    }

    async fn on_heartbeat(&self, _state: &State, roles: &BTreeMap<Name, RoleStatus>) -> Result<()> {
        info!(?roles, "on_heartbeat: the members were asked whether they are alive");
        Ok(())
    }

    async fn on_daemon_config_update(&self, _state: &State, config: &DaemonConfig) -> Result<()> {
        info!(?config, "on_daemon_config_update: the configuration was changed");
        Ok(())
    }
}
