//! The Core API: who may ask what, and what is answered. One file a resource.

mod caller;
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

pub(crate) use caller::removal_of;
pub use caller::{Caller, Notification};
pub(crate) use dispatch::{Api, without_path};
pub(crate) use envelope::Answer;
pub(crate) use extract::{parse_json, read_body, state_of};
pub(crate) use routes::Access as CoreAccess;
pub(crate) use routes::{
    AccessCheck, BODY_MAX, Connection, Handler, ListenerKind, Peer, Phase, Route, WhileStopping, erase,
};
#[cfg(any(test, feature = "test-util"))]
pub(crate) use table::table;
