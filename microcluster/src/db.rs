//! The database: SQLite, replicated by Raft. The only door to SQL and to Raft.
//!
//! Any member takes any call. A write goes to the leader in at most one hop, is on stable storage on a majority
//! before it is answered, and is applied once on every member, with the same result. A read is answered by the
//! local replica, after the leader has confirmed how fresh it must be if it is to be linearizable.

mod apply;
mod authorizer;
#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
mod checkpoint;
mod checksum;
mod command;
mod damage;
mod database;
mod determinism;
mod dump;
mod elections;
mod entry_codec;
mod error;
mod executor;
mod forward;
mod gate;
mod gathering;
mod janitor;
mod log_store;
mod membership;
mod network;
mod options;
mod query;
mod raft_types;
mod read_index;
mod readers;
pub(crate) mod recovery;
mod schema;
mod sequencer;
mod sessions;
mod state_file;
mod state_machine;
mod status;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
pub(crate) mod tests;
mod transaction;
mod verify;
mod waiters;
mod watch;
mod writer;

pub use command::{QueryResult, Statement, Value};
pub(crate) use database::PingError;
pub use database::{Consistency, Database, OpenError};
pub use error::Error;
pub(crate) use network::{NotTrusted, PROTOCOL, Patience, PeerConnector, PeerStream};
pub(crate) use options::{Options, Timings};
pub use raft_types::{NodeId, Peer};
pub use rusqlite;
pub use schema::SchemaUpdate;
pub(crate) use schema::{Level, Upgrade, level, level_in};
pub use status::{RaftState, Status};
pub use transaction::{Named, Parameters, Transaction};
pub use verify::{Verdict, Verification};
pub use watch::Watch;
