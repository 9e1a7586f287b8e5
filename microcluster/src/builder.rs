//! What a product calls to describe its daemon.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config::Settings;
use crate::daemon::{self, Handle, Product, RunError, StartError};
use crate::db::SchemaUpdate;
use crate::extension::Server;
use crate::hooks::{Hooks, ProductHooks};

/// Shortest time between two heartbeats.
const HEARTBEAT_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Longest time that a hook may take. Times are added up, and must be ones that can be.
const HOOK_TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// A clustered daemon.
///
/// ```no_run
/// use std::time::Duration;
///
/// use microcluster::Daemon;
///
/// # async fn example() -> Result<(), microcluster::RunError> {
/// Daemon::builder("/var/lib/product")
///     .version(env!("CARGO_PKG_VERSION"))
///     .heartbeat_interval(Duration::from_secs(10))
///     .run()
///     .await
/// # }
/// ```
#[derive(Debug)]
pub struct Daemon;

/// Describes a daemon and starts it; made with [`Daemon::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    product: Product,
}

impl Daemon {
    /// Begins the description of a daemon that keeps its state in a directory. It is made where it
    /// is missing; one daemon can use it at a time.
    pub fn builder(state_dir: impl Into<PathBuf>) -> Builder {
        Builder { product: Product::new(Settings::new(state_dir.into())) }
    }
}

impl Builder {
    /// The version of the product, shown in the API. The version of this crate unless it is set.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.product.settings.version = version.into();
        self
    }

    /// How often the leader asks the members whether they are alive: 10 s unless it is set, at least 100 ms.
    /// It is no part of how fast a new leader is elected.
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.product.settings.heartbeat_interval = interval.max(HEARTBEAT_INTERVAL_MIN);
        self
    }

    /// How many members vote: an odd number, 3 unless it is set. A majority of them is needed for every write, so 3 survive
    /// the loss of one and 5 of two. It is to be the same on all members: whoever leads goes by its own.
    pub fn voters(mut self, count: usize) -> Self {
        self.product.settings.role_counts.voters = count;
        self
    }

    /// How many members stand by to replace a voter that does not answer: 3 unless it is set. Those beyond are spare and
    /// replace a voter when there is no stand-by. It is to be the same on all members.
    pub fn stand_bys(mut self, count: usize) -> Self {
        self.product.settings.role_counts.stand_bys = count;
        self
    }

    /// The group, by name or number, that may use the control socket beside the daemon's own user.
    pub fn socket_group(mut self, group: impl Into<String>) -> Self {
        self.product.settings.socket_group = Some(group.into());
        self
    }

    /// An address, `ip:port`, that is open until bootstrap or join, with the daemon's own certificate. It has what the Core API and
    /// the product serve there ([`CoreApiServer::pre_init`](crate::CoreApiServer::pre_init)). One that is none, or that is in the way of a
    /// server, is refused when the daemon starts.
    pub fn pre_init_listen(mut self, address: impl Into<String>) -> Self {
        self.product.pre_init_listen = Some(address.into());
        self
    }

    /// The product's schema updates, oldest first, each one or more SQL statements, or a [function](SchemaUpdate::function). Append only: a
    /// list that was released is never changed. New updates are applied once, when every member has them; until then a
    /// member that has them waits (`Database is waiting for an upgrade`), and the others serve. An update runs on every
    /// member, so it must not depend on anything but the database.
    pub fn schema<S: Into<SchemaUpdate>>(mut self, updates: impl IntoIterator<Item = S>) -> Self {
        self.product.schema = updates.into_iter().map(Into::into).collect();
        self.product.settings.schema_external_version = self.product.schema.len() as u64;
        self
    }

    /// Names of what the product's API has beyond its first version, oldest first. Append only, like the schema: members
    /// that have more wait for the others.
    pub fn api_extensions<S: Into<String>>(mut self, extensions: impl IntoIterator<Item = S>) -> Self {
        self.product.settings.api_extensions = extensions.into_iter().map(Into::into).collect();
        self
    }

    /// How long requests may go on when the daemon stops: 5 s unless it is set.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.product.settings.drain_timeout = timeout;
        self
    }

    /// What the product does when its daemon or its cluster changes.
    pub fn hooks(mut self, hooks: impl Hooks) -> Self {
        self.product.hooks = ProductHooks::new(hooks);
        self
    }

    /// How long a hook may take, the wait for its turn included: 60 s unless it is set. What the daemon waits for around a hook goes by
    /// this; a client waits ten minutes for a bootstrap, a join, a removal or a change of the configuration, unless it has a timeout of its own.
    pub fn hook_timeout(mut self, timeout: Duration) -> Self {
        self.product.settings.hook_timeout = timeout.min(HOOK_TIMEOUT_MAX);
        self
    }

    /// For tests: how long an admitted joiner may take to ask to be taken in, as long as this member leads; 60 s unless it is set.
    #[cfg(feature = "test-util")]
    pub fn pending_timeout(mut self, timeout: Duration) -> Self {
        self.product.settings.pending_timeout = timeout;
        self
    }

    /// Adds a server: [`Server::core_api`](crate::Server::core_api) or [`Server::listen`](crate::Server::listen). Names are
    /// those of members: labels of letters, digits and hyphens with dots between them. What does not fit together is
    /// refused when the daemon starts, before anything listens.
    pub fn server(mut self, name: impl Into<String>, server: impl Into<Server>) -> Self {
        self.product.servers.push((name.into(), server.into()));
        self
    }

    /// Shares a value with all handlers, who take it with [`Shared`](crate::Shared), and with hooks, by
    /// [`State::shared`](crate::State::shared). One value of each type.
    pub fn shared<T: Send + Sync + 'static>(mut self, value: Arc<T>) -> Self {
        self.product.values.insert(value);
        self
    }

    /// Starts the daemon in this process. It is up when this returns.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(self) -> Result<Handle, StartError> {
        daemon::start(self.product).await
    }

    /// Runs the daemon until a signal (TERM, INT, QUIT, PWR) or `/core/control/shutdown`. HUP makes it read
    /// its certificates again. Tells systemd when it is ready.
    ///
    /// # Errors
    /// When it cannot start, and when it cannot go on.
    pub async fn run(self) -> Result<(), RunError> {
        daemon::run(self.product).await
    }
}
