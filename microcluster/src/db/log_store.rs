//! The durable Raft log.
