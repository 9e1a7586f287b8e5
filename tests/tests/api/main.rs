//! The API of real daemons: who may do what, what bad input gets, and what the Go daemon's clients expect.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod access;
mod certificates;
mod config;
mod contract;
mod control;
mod hardening;
mod http;
mod log;
mod openapi;
mod ready;
mod sql;
mod target;
mod tokens;
