//! Websockets in handlers: axum's, run as tasks of the daemon so that a stop ends them and waits for them.

use std::fmt;
use std::future::Future;

use axum::extract::FromRequestParts;
pub use axum::extract::ws::WebSocket;
use futures_util::future::BoxFuture;
use http::request::Parts;
use tokio::sync::oneshot;

use super::response::Response;
use crate::api::{removal_of, state_of};
use crate::error::Error;
use crate::tasks::Tasks;

/// A request to become a websocket. An extractor for handlers of GET.
///
/// ```
/// use microcluster::{Response, WebSocketUpgrade};
/// use microcluster::axum::extract::ws::Message;
///
/// async fn greet(upgrade: WebSocketUpgrade) -> Response {
///     upgrade.on_upgrade(|mut socket| async move {
///         // It may be gone by now.
///         socket.send(Message::text("hello")).await.ok();
///     })
/// }
/// ```
#[derive(Debug)]
pub struct WebSocketUpgrade {
    upgrade: axum::extract::ws::WebSocketUpgrade,
    tasks: Tasks,
    removal: Removal,
}

/// That the member which has asked is removed.
struct Removal(BoxFuture<'static, ()>);

impl fmt::Debug for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Removal")
    }
}

impl WebSocketUpgrade {
    /// Answers the request, and runs `run` with the socket once it is one. `run` is ended where it waits when the daemon stops, on an
    /// additional server when that is closed or moved, and when the member that has asked is removed from the cluster.
    pub fn on_upgrade<F, R>(self, run: F) -> Response
    where
        F: FnOnce(WebSocket) -> R + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let WebSocketUpgrade { upgrade, tasks, removal } = self;
        let (ended, wait) = oneshot::channel::<()>();
        // Done when the socket is, or never was: then its side of the channel is dropped.
        tasks.spawn("websocket", async move { drop(wait.await) });
        Response::raw(upgrade.on_upgrade(move |socket| async move {
            tokio::select! {
                () = run(socket) => {}
                () = tasks.stopping() => {}
                () = removal.0 => tracing::debug!("a websocket of a former member was closed"),
            }
            drop(ended);
        }))
    }

    /// The most bytes of a message that is taken, 64 MiB unless it is set.
    #[must_use]
    pub fn message_limit(mut self, bytes: usize) -> WebSocketUpgrade {
        self.upgrade = self.upgrade.max_message_size(bytes);
        self
    }
}

impl<S: Send + Sync> FromRequestParts<S> for WebSocketUpgrade {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<WebSocketUpgrade, Error> {
        let upgrade = axum::extract::ws::WebSocketUpgrade::from_request_parts(parts, state).await;
        let upgrade = upgrade.map_err(|e| Error::new(e.status(), e.body_text()))?;
        let tasks = parts.extensions.get::<Tasks>().cloned();
        let tasks = tasks.ok_or_else(|| Error::internal("a request without an owner"))?;
        let removal = Removal(removal_of(state_of(parts)?, parts.extensions.get(), parts.extensions.get()));
        Ok(WebSocketUpgrade { upgrade, tasks, removal })
    }
}
