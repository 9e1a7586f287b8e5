//! What a product adds to the daemon: servers, and on them resources with endpoints and actions.

mod access;
mod check;
mod extract;
mod resources;
mod response;
mod server;
mod websocket;

pub use access::Access;
pub use extract::{Json, Path, Query, Shared};
pub use resources::{Action, Endpoint, IntoAction, Resources, action, service};
pub use response::Response;
pub use server::{AdditionalServer, CoreApiServer, Server};
pub use websocket::{WebSocket, WebSocketUpgrade};

pub(crate) use check::{Additional, Described, check};
