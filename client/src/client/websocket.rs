//! Websockets: the client's side of what a product's handler upgrades.

use futures_util::{SinkExt, StreamExt};
use http::header::USER_AGENT;
use http::{HeaderValue, Request};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite;
pub use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::transport::Stream;
use super::{Client, NOTIFICATION_USER_AGENT, ORDINARY_USER_AGENT, refusal};
use crate::{Error, Server};

/// An open websocket.
///
/// ```no_run
/// use microcluster_client::{Client, Error, Message};
///
/// # async fn example(client: Client) -> Result<(), Error> {
/// let mut socket = client.websocket("/1.0/watch").await?;
/// socket.send(Message::text("hosts")).await?;
/// while let Some(message) = socket.next().await {
///     println!("{:?}", message?);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct WebSocket {
    stream: WebSocketStream<Stream>,
    server: Server,
}

impl Client {
    /// Opens a websocket at `path` (with its query, if any), on a connection of its own. The timeout of the client is for the
    /// opening alone.
    ///
    /// # Errors
    /// [`Error::Status`] when the daemon refuses; the others when there is no connection.
    pub async fn websocket(&self, path: &str) -> Result<WebSocket, Error> {
        let server = self.server().clone();
        let opened = async {
            let request = self.websocket_request(path)?;
            let stream = self.shared.connector.connect_http1().await.map_err(|e| e.to_error(server.clone()))?;
            match tokio_tungstenite::client_async(request, stream).await {
                Ok((stream, _)) => Ok(WebSocket { stream, server: server.clone() }),
                Err(tungstenite::Error::Http(response)) => {
                    let (head, body) = response.into_parts();
                    Err(refusal(head.status, &head.headers, &body.unwrap_or_default()))
                }
                Err(e) => Err(interrupted(&server, e)),
            }
        };
        self.within_timeout(opened).await
    }

    fn websocket_request(&self, path: &str) -> Result<Request<()>, Error> {
        let wrong = |source| Error::Request { path: path.into(), source };
        // The scheme says nothing: the connection is there already.
        let uri = self.uri(path).replacen("http", "ws", 1);
        let mut request = uri.into_client_request().map_err(|e| wrong(e.into()))?;
        let agent = if self.notification { NOTIFICATION_USER_AGENT } else { ORDINARY_USER_AGENT };
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(agent));
        Ok(request)
    }
}

impl WebSocket {
    /// Sends a message.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn send(&mut self, message: Message) -> Result<(), Error> {
        self.stream.send(message).await.map_err(|e| interrupted(&self.server, e))
    }

    /// The next message; none when the other side has closed.
    ///
    /// # Errors
    /// When the connection ended without being closed.
    pub async fn next(&mut self) -> Option<Result<Message, Error>> {
        let next = self.stream.next().await?;
        Some(next.map_err(|e| interrupted(&self.server, e)))
    }

    /// Closes it.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn close(mut self) -> Result<(), Error> {
        self.stream.close(None).await.map_err(|e| interrupted(&self.server, e))
    }
}

fn interrupted(server: &Server, error: tungstenite::Error) -> Error {
    Error::Interrupted { server: server.clone(), source: error.into() }
}
