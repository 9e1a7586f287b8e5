//! What a product sees: servers, resources, handlers, in clusters inside this process.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod connect;
mod hooks_killed;
mod refused;
mod resources;
mod servers;
mod testing;
mod websockets;
