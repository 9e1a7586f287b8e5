//! Daemons of a product in this process: its hooks, and its upgrades.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../src/testing/address.rs"]
mod address;
mod hooks;
mod hooks_undone;
mod member;
mod recorder;
mod upgrades;
