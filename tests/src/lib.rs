//! Harness of the cluster tests: real daemons, started, killed and looked at from outside.
//!
//! A test makes a [`TestCluster`] or single [`Daemon`]s, acts, and waits for conditions with [`eventually`].
//! Nothing outlives a test: processes are killed and directories removed when their owner is dropped. The
//! end of each daemon's log is shown when the test fails.

// A harness panics: that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

mod binaries;
mod cluster;
mod daemon;
#[cfg(doctest)]
mod handbook;
mod identity;
mod ledger;
mod microctl;
mod network;
mod raw;
mod seed;
mod steps;
mod wait;
mod writers;

pub use cluster::TestCluster;
pub use daemon::Daemon;
pub use identity::{Authority, self_signed, stranger};
pub use ledger::Ledger;
pub use microcluster::testing::{address_free, eventually};
pub use microctl::{Finished, microctl, microctl_command, microctl_with};
pub use network::Network;
pub use raw::{Answer, Caller, Payload, Protocol, Target};
pub use seed::Seed;
pub use steps::until_held;
pub use wait::{DEADLINE, until};
pub use writers::Writers;
