//! The database: SQLite, replicated by Raft. The only door to SQL and to Raft.

#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
// Until the database uses them.
#[allow(dead_code)]
mod entry_codec;
#[allow(dead_code)]
mod log_store;
mod raft_types;

pub use raft_types::{NodeId, Peer};
