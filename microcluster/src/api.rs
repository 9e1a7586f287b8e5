//! The Core API: who may ask what, and what is answered. One file a resource.

mod certificates;
mod cluster;
mod control;
mod daemon;
mod database;
mod dispatch;
mod envelope;
mod errors;
mod extract;
mod forward;
mod internal;
mod openapi;
mod proxy;
mod routes;
mod sql;
mod table;
mod tokens;

pub(crate) use dispatch::Api;
pub(crate) use routes::{Connection, ListenerKind};
