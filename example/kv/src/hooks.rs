//! What the product does when its cluster begins and grows.

use microcluster::client::{InitConfig, MemberLocal};
use microcluster::{Hooks, Result, State};

use crate::store;

/// The key that every new store has: who made it.
pub const CREATED: &str = "kv/created-by";

pub(crate) struct KvHooks;

impl Hooks for KvHooks {
    async fn post_bootstrap(&self, state: &State, config: &InitConfig) -> Result<()> {
        let name = state.name().map(|name| name.to_string()).unwrap_or_default();
        let owner = config.get("owner").cloned().unwrap_or(name);
        state.database()?.transaction(move |tx| store::write(tx, CREATED, Some(&owner))).await?;
        Ok(())
    }

    async fn on_new_member(&self, _state: &State, member: &MemberLocal) -> Result<()> {
        tracing::info!(name = %member.name, address = %member.address, "the store has one more member");
        Ok(())
    }
}
