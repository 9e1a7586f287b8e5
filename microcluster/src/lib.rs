//! microcluster turns a program into a clustered daemon.
//!
//! A product links this crate and gets a control API on a unix socket, a REST API over mutual TLS,
//! bootstrap and join by token, and a SQLite database replicated through Raft.
//!
//! ```no_run
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use microcluster::client::MemberLocal;
//! use microcluster::db::Consistency;
//! use microcluster::{
//!     Access, Daemon, Endpoint, Error, Hooks, InitConfig, Json, Path, Resources, Response, Result, RunError, Server, Shared, State,
//!     action,
//! };
//! use serde::{Deserialize, Serialize};
//!
//! /// What the handlers and the hooks of the product share.
//! struct Product {
//!     started: std::time::Instant,
//! }
//!
//! impl Hooks for Product {
//!     // Every method has a default that does nothing.
//!     async fn post_bootstrap(&self, state: &State, config: &InitConfig) -> Result<()> {
//!         let zone = config.get("zone").map_or("default", String::as_str);
//!         state.database()?.execute("INSERT INTO kv VALUES ('zone', ?1)", (zone,)).await?;
//!         Ok(())
//!     }
//!
//!     async fn on_new_member(&self, _state: &State, member: &MemberLocal) -> Result<()> {
//!         println!("{} joins", member.name);
//!         Ok(())
//!     }
//! }
//!
//! #[derive(Serialize, Deserialize)]
//! struct Value {
//!     text: String,
//! }
//!
//! /// GET /1.0/kv/{key}
//! async fn read_key(state: State, Path(key): Path<String>) -> Result<Json<Value>> {
//!     let sql = "SELECT value FROM kv WHERE key = ?1";
//!     let text = state.database()?.query_row(Consistency::Linearizable, sql, (&key,), |row| row.get(0)).await?;
//!     Ok(Json(Value { text: text.ok_or_else(|| Error::not_found(format!("there is no key {key:?}")))? }))
//! }
//!
//! /// PUT /1.0/kv/{key}
//! async fn write_key(state: State, Path(key): Path<String>, Json(value): Json<Value>) -> Result<Response> {
//!     let sql = "INSERT INTO kv VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = excluded.value";
//!     state.database()?.execute(sql, (key, value.text)).await?;
//!     Ok(Response::empty())
//! }
//!
//! /// GET /metrics
//! async fn metrics(Shared(product): Shared<Product>) -> Response {
//!     Response::raw(format!("up_seconds {}\n", product.started.elapsed().as_secs()))
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), RunError> {
//!     let product = Arc::new(Product { started: std::time::Instant::now() });
//!     let kv = Resources::at("1.0").endpoint(
//!         Endpoint::new("kv/{key}")
//!             .get(read_key)
//!             .put(action(write_key).access(Access::Member).proxy_target().body_limit(64 << 10)),
//!     );
//!     let metrics = Resources::at("").endpoint(Endpoint::new("metrics").get(action(metrics).access(Access::Open)));
//!     Daemon::builder("/var/lib/product")
//!         .version(env!("CARGO_PKG_VERSION"))
//!         .heartbeat_interval(Duration::from_secs(10))
//!         .socket_group("adm")
//!         // Append only: a second release adds to the end.
//!         .schema(["CREATE TABLE kv (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT"])
//!         .api_extensions(["kv_history"])
//!         .hooks(product.clone())
//!         .shared(product)
//!         .server("kv", Server::core_api().serve_unix().pre_init(false).resources(kv))
//!         .server(
//!             "metrics.internal",
//!             Server::listen("127.0.0.1:9443")
//!                 .dedicated_certificate()
//!                 .drain_timeout(Duration::from_secs(5))
//!                 .resources(metrics),
//!         )
//!         .pre_init_listen("10.0.0.100:8000")
//!         // Until a signal, or /core/control/shutdown.
//!         .run()
//!         .await
//! }
//! ```
//!
//! [`Daemon`] describes and runs a daemon, [`State`] is what its handlers and [`Hooks`] see of it, [`db`] is the database, [`App`] a
//! daemon from outside, and [`client`] the client of its API. Whole clusters for tests: `testing`, with the feature `test-util`.

// The layers, lowest first (doc/architecture.md). A module uses lower layers, its own children and
// siblings without a loop; `tests/layers.rs` holds that.

// L0
mod backoff;
mod config;
mod error;
#[cfg(test)]
mod fuzz;
mod looks;
mod memory;
mod steps;
mod tasks;

// L1
mod state_dir;
mod tls;
mod token;
mod trust;

// L2
pub mod db;

// L3
mod cluster;
mod hooks;
mod state;

// L4
mod api;
mod extension;
mod recovery;

// L5
mod app;
mod builder;
mod daemon;
mod listener;
#[cfg(feature = "test-util")]
pub mod testing;

pub use api::{Caller, Notification};
pub use app::{App, AppError};
pub use axum;
pub use builder::{Builder, Daemon};
pub use cluster::{MembersError, RaftMember};
pub use daemon::{Handle, RunError, StartError};
pub use db::SchemaUpdate;
pub use error::{Error, Fatal, Result};
pub use extension::{
    Access, Action, AdditionalServer, CoreApiServer, Endpoint, IntoAction, Json, Path, Query, Resources, Response,
    Server, Shared, WebSocket, WebSocketUpgrade, action, service,
};
pub use hooks::{Hooks, RoleStatus};
pub use microcluster_client as client;
pub use microcluster_client::{DaemonConfig, InitConfig, InitConfigError, MemberLocal, Name, Role};
pub use recovery::{LocalMembers, LogPosition, PreparedRecovery, RecoverError, Recovery};
pub use state::{Connect, MemberClient, State};
pub use tokio_util::sync::CancellationToken;

// The program in the README, as a test. Those of the handbook, which is not in the package, are tests of another crate.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
