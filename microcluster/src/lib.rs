//! microcluster turns a program into a clustered daemon.
//!
//! A product links this crate and gets a control API on a unix socket, a REST API over mutual TLS,
//! bootstrap and join by token, and a SQLite database replicated through Raft.

// The layers, lowest first (doc/architecture.md). A module uses lower layers, its own children and
// siblings without a loop; `tests/layers.rs` holds that.

// L0
mod config;
mod error;
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

// L5
mod builder;
mod daemon;
mod listener;

pub use builder::{Builder, Daemon};
pub use daemon::{Handle, RunError, StartError};
pub use error::{Error, Fatal, Result};
pub use hooks::{Hooks, RoleStatus};
pub use microcluster_client::{DaemonConfig, InitConfig, InitConfigError, MemberLocal, Name, Role};
pub use state::State;
