//! What a product sees: servers, resources, handlers, in clusters inside this process.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod answers;
mod app;
mod connect;
mod hooks_killed;
mod refused;
mod resources;
mod servers;
mod silent;
mod stop;
mod testing;
mod websockets;
