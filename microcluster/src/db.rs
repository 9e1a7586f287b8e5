//! The database: SQLite, replicated by Raft. The only door to SQL and to Raft.

mod apply;
mod authorizer;
mod command;
mod determinism;
mod error;
mod executor;
mod gate;
mod log_store;
mod raft_types;
mod readers;
mod sessions;
mod state_file;
mod state_machine;
mod waiters;
mod writer;

pub use command::{QueryResult, Statement, Value};
pub use error::Error;
pub use raft_types::{NodeId, Peer};
