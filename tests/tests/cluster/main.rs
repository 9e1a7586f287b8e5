//! Clusters of real daemons: writes and reads, deaths and restarts, joins and removals.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod black_hole;
mod bootstrap;
mod crash;
mod damage;
mod fast;
mod isolation;
mod join;
mod join_crash;
mod join_many;
mod kills;
mod pending;
mod recovery;
mod removal_crash;
mod remove;
mod replace;
mod roles;
mod rotation;
mod statuses;
mod step_crash;
mod stop;
mod tools;
mod writes;
