//! microcluster turns a program into a clustered daemon.
//!
//! A product links this crate and gets a control API on a unix socket, a REST API over mutual TLS,
//! bootstrap and join by token, and a SQLite database replicated through Raft.
//!
//! ```no_run
//! use microcluster::db::Consistency;
//! use microcluster::{Daemon, Endpoint, Json, Path, Resources, Response, Result, RunError, Server, State};
//!
//! /// GET /1.0/kv/{key}
//! async fn key_show(state: State, Path(key): Path<String>) -> Result<Json<Option<String>>> {
//!     let sql = "SELECT value FROM kv WHERE key = ?1";
//!     Ok(Json(state.database()?.query_row(Consistency::Linearizable, sql, (key,), |row| row.get(0)).await?))
//! }
//!
//! /// PUT /1.0/kv/{key}
//! async fn key_put(state: State, Path(key): Path<String>, Json(value): Json<String>) -> Result<Response> {
//!     state.database()?.execute("INSERT OR REPLACE INTO kv VALUES (?1, ?2)", (key, value)).await?;
//!     Ok(Response::empty())
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), RunError> {
//!     let resources = Resources::at("1.0").endpoint(Endpoint::new("kv/{key}").get(key_show).put(key_put));
//!     Daemon::builder("/var/lib/product")
//!         .version(env!("CARGO_PKG_VERSION"))
//!         .schema(["CREATE TABLE kv (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT"])
//!         .server("product", Server::core_api().serve_unix().resources(resources))
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
mod config;
mod error;
#[cfg(test)]
mod fuzz;
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

// The programs in the handbook, as tests.
#[cfg(doctest)]
mod handbook {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[cfg_attr(feature = "test-util", doc = include_str!("../../doc/product.md"))]
    struct Product;
    #[doc = include_str!("../../doc/hooks.md")]
    struct Hooks;
    #[doc = include_str!("../../doc/servers.md")]
    struct Servers;
    #[doc = include_str!("../../doc/database.md")]
    struct Database;
}
