//! microcluster turns a program into a clustered daemon.
//!
//! A product links this crate and gets a control API on a unix socket, a REST API over mutual TLS,
//! bootstrap and join by token, and a SQLite database replicated through Raft.

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
pub use daemon::{Handle, RunError, StartError};
pub use error::{Error, Fatal, Result};
pub use extension::{
    Access, Action, AdditionalServer, CoreApiServer, Endpoint, IntoAction, Json, Path, Query, Resources, Response,
    Server, Shared, WebSocket, WebSocketUpgrade, action,
};
pub use hooks::{Hooks, RoleStatus};
pub use microcluster_client as client;
pub use microcluster_client::{DaemonConfig, InitConfig, InitConfigError, MemberLocal, Name, Role};
pub use state::{Connect, MemberClient, State};

// The programs in the handbook, as tests.
#[cfg(doctest)]
mod handbook {
    #[cfg_attr(feature = "test-util", doc = include_str!("../../doc/product.md"))]
    struct Product;
    #[doc = include_str!("../../doc/hooks.md")]
    struct Hooks;
    #[doc = include_str!("../../doc/servers.md")]
    struct Servers;
    #[doc = include_str!("../../doc/database.md")]
    struct Database;
}
