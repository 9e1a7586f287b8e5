//! A replicated key-value store: what makes a daemon of microcluster into `kvd`.

mod hooks;
mod metrics;
mod resources;
mod store;
mod watch;

use std::path::PathBuf;

use microcluster::{Access, Builder, Daemon, Endpoint, Resources, Server, action};

pub use hooks::CREATED;
pub use resources::{Item, Put};
pub use watch::Change;

/// The schema updates, oldest first. A new version of the product adds to the end.
const SCHEMA: [&str; 2] = [
    "CREATE TABLE kv (key TEXT PRIMARY KEY, value TEXT NOT NULL, revision INTEGER NOT NULL) STRICT",
    // What changed, newest last: what a watch sends. A value of NULL is a key that was deleted.
    "CREATE TABLE kv_changes (revision INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, value TEXT) STRICT",
];

/// The daemon of the product, with its state in a directory; with its metrics at an address, if one is given.
pub fn daemon(state_dir: impl Into<PathBuf>, metrics: Option<String>) -> Builder {
    product(Daemon::builder(state_dir), metrics)
}

/// Makes the product out of a daemon.
pub fn product(builder: Builder, metrics: Option<String>) -> Builder {
    let resources = Resources::at("1.0")
        .endpoint(Endpoint::new("kv").get(resources::items_list))
        .endpoint(
            Endpoint::new("kv/{*key}")
                .get(resources::item_show)
                .put(action(resources::item_put).body_limit(6 * store::VALUE_BYTES_MAX + 1024))
                .delete(resources::item_delete),
        )
        .endpoint(Endpoint::new("watch").get(action(watch::changes_watch).proxy_target()));
    let builder = builder
        .version(env!("CARGO_PKG_VERSION"))
        .schema(SCHEMA)
        .api_extensions(["kv"])
        .hooks(hooks::KvHooks)
        .server("kv", Server::core_api().serve_unix().resources(resources));
    let Some(address) = metrics else { return builder };
    let metrics = Endpoint::new("metrics").get(action(metrics::metrics_show).access(Access::Open));
    builder.server(
        "metrics.internal",
        Server::listen(address).dedicated_certificate().resources(Resources::at("").endpoint(metrics)),
    )
}
