//! Hooks: what a product does when its daemon or its cluster changes.

mod erased;
mod runner;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use microcluster_client::{DaemonConfig, InitConfig, MemberLocal, Name};

pub use crate::cluster::RoleStatus;
use crate::error::Result;
use crate::state::State;

pub(crate) use erased::{Event, ProductHooks};
pub(crate) use runner::Runner;

/// What a product does when its daemon or its cluster changes. Every method does nothing unless the product says
/// otherwise; it is written as an `async fn`:
///
/// ```
/// use microcluster::{Hooks, InitConfig, MemberLocal, Result, State};
///
/// struct Product;
///
/// impl Hooks for Product {
///     async fn post_bootstrap(&self, state: &State, config: &InitConfig) -> Result<()> {
///         let zone = config.get("zone").map_or("default", String::as_str);
///         state.database()?.execute("INSERT INTO settings (zone) VALUES (?1)", [zone]).await?;
///         Ok(())
///     }
///
///     async fn on_new_member(&self, _state: &State, member: &MemberLocal) -> Result<()> {
///         println!("{} joins", member.name);
///         Ok(())
///     }
/// }
///
/// let daemon = microcluster::Daemon::builder("/var/lib/product").hooks(Product);
/// ```
///
/// - **One at a time.** A member runs one hook at a time; another one waits for its turn. So a hook must not ask for
///   something that runs a hook on its own member, and wait for it.
/// - **Bounded.** A hook has [`Builder::hook_timeout`](crate::Builder::hook_timeout) for its turn and its work. After
///   that [`State::cancelled`] completes, and a moment later the hook is dropped and has failed.
/// - **Failing.** A hook that returns an error, panics or takes too long fails what it was called for, and that is
///   undone on every member, unless its description says otherwise. What the hooks themselves have done stays.
/// - **Repeated.** Something that failed can be tried again, and something that a crash interrupted goes on after it.
///   Both run the hooks again: they must not mind what an earlier run has left.
/// - **Upgrades.** A member that waits for an upgrade runs no hook until the wait is over; then it runs `on_start`.
/// - **The database** is there in every hook but `pre_init`, `pre_join` and, on the member that was removed, `post_remove`; in `on_start` and
///   `on_stop` it is when the daemon is a member.
#[allow(unused_variables)]
pub trait Hooks: Send + Sync + 'static {
    /// Before a bootstrap or a join begins: the request was checked, nothing was changed.
    fn pre_init(&self, state: &State, bootstrap: bool, config: &InitConfig) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }

    /// The cluster has its first member, which nobody was told of yet.
    fn post_bootstrap(&self, state: &State, config: &InitConfig) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }

    /// Before this daemon shows its token to the cluster, after `pre_init`.
    fn pre_join(&self, state: &State, config: &InitConfig) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }

    /// This daemon has joined: it votes or stands by, and all others have run `on_new_member`. If it fails this
    /// daemon is removed again, and its token can be used for another try.
    fn post_join(&self, state: &State, config: &InitConfig) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }

    /// The daemon has started, as a member or not; it is ready once this is done. A member runs it when it has a
    /// quorum, and does not wait for an upgrade any more; a daemon that goes on with a join, or is rebuilt, when that is
    /// done. If it fails the daemon stops.
    fn on_start(&self, state: &State) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }

    /// The daemon is about to stop; it has the [`drain timeout`](crate::Builder::drain_timeout) for this. An
    /// error is logged.
    fn on_stop(&self, state: &State) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }

    /// This member is about to be removed from the cluster. With `force` a failure is logged and the removal goes on; a
    /// member that does not answer is removed without this.
    fn pre_remove(&self, state: &State, force: bool) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }

    /// A member was removed: runs on every member that remains and answers, and on the removed one when it has
    /// forgotten the cluster, where [`State::name`] is none. A failure is reported and undoes nothing.
    fn post_remove(&self, state: &State, force: bool) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }

    /// Another daemon is joining: runs on all members at the same time, after its `pre_join` and before it can vote.
    /// A member that does not answer is left out: it finds the new one in the list when it is back.
    fn on_new_member(&self, state: &State, member: &MemberLocal) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }

    /// The leader has asked all members whether they are alive. Runs on the leader; an error is logged. While it runs
    /// rounds go on without it.
    fn on_heartbeat(
        &self,
        state: &State,
        roles: &BTreeMap<Name, RoleStatus>,
    ) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }

    /// The configuration of this member, servers and failure domain, was changed. If it fails it is changed back.
    fn on_daemon_config_update(&self, state: &State, config: &DaemonConfig) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }
}

/// Hooks that are shared with the rest of the product.
impl<H: Hooks> Hooks for Arc<H> {
    fn pre_init(&self, state: &State, bootstrap: bool, config: &InitConfig) -> impl Future<Output = Result<()>> + Send {
        H::pre_init(self, state, bootstrap, config)
    }

    fn post_bootstrap(&self, state: &State, config: &InitConfig) -> impl Future<Output = Result<()>> + Send {
        H::post_bootstrap(self, state, config)
    }

    fn pre_join(&self, state: &State, config: &InitConfig) -> impl Future<Output = Result<()>> + Send {
        H::pre_join(self, state, config)
    }

    fn post_join(&self, state: &State, config: &InitConfig) -> impl Future<Output = Result<()>> + Send {
        H::post_join(self, state, config)
    }

    fn on_start(&self, state: &State) -> impl Future<Output = Result<()>> + Send {
        H::on_start(self, state)
    }

    fn on_stop(&self, state: &State) -> impl Future<Output = Result<()>> + Send {
        H::on_stop(self, state)
    }

    fn pre_remove(&self, state: &State, force: bool) -> impl Future<Output = Result<()>> + Send {
        H::pre_remove(self, state, force)
    }

    fn post_remove(&self, state: &State, force: bool) -> impl Future<Output = Result<()>> + Send {
        H::post_remove(self, state, force)
    }

    fn on_new_member(&self, state: &State, member: &MemberLocal) -> impl Future<Output = Result<()>> + Send {
        H::on_new_member(self, state, member)
    }

    fn on_heartbeat(
        &self,
        state: &State,
        roles: &BTreeMap<Name, RoleStatus>,
    ) -> impl Future<Output = Result<()>> + Send {
        H::on_heartbeat(self, state, roles)
    }

    fn on_daemon_config_update(&self, state: &State, config: &DaemonConfig) -> impl Future<Output = Result<()>> + Send {
        H::on_daemon_config_update(self, state, config)
    }
}

/// A product without hooks.
struct NoHooks;

impl Hooks for NoHooks {}
