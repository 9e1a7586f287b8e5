//! The database: SQLite, replicated by Raft. The only door to SQL and to Raft.

mod entry_codec;
mod log_store;
mod raft_types;

pub use raft_types::{NodeId, Peer};
