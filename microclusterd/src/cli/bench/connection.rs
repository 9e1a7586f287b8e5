//! One client's connection: HTTP/1.1 with nothing around it, so that the load takes as little as it can of what it measures.

use std::path::Path;
use std::pin::Pin;

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// An open connection to a control socket.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// What reads and writes the socket; it runs while a request does.
    driver: Pin<Box<http1::Connection<TokioIo<UnixStream>, Full<Bytes>>>>,
}

impl Connection {
    pub async fn open(socket: &Path) -> anyhow::Result<Connection> {
        let stream =
            UnixStream::connect(socket).await.with_context(|| format!("cannot connect to {}", socket.display()))?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
        Ok(Connection { sender, driver: Box::pin(driver) })
    }

    /// Runs SQL, given as the body of the request, and says whether the daemon has done it; an error when there is no answer.
    pub async fn sql(&mut self, body: Vec<u8>) -> anyhow::Result<Result<(), String>> {
        let request = Request::post("/core/internal/sql")
            .header(HOST, HeaderValue::from_static("localhost"))
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(Full::new(Bytes::from(body)))?;
        let exchange = async {
            let (head, body) = self.sender.send_request(request).await?.into_parts();
            Ok::<_, hyper::Error>((head.status, body.collect().await?.to_bytes()))
        };
        tokio::select! {
            biased;
            answered = exchange => {
                let (status, body) = answered?;
                Ok(if status == StatusCode::OK { Ok(()) } else { Err(refusal(status, &body)) })
            }
            ended = &mut self.driver => Err(match ended {
                Ok(()) => anyhow!("the daemon closed the connection"),
                Err(error) => error.into(),
            }),
        }
    }
}

fn refusal(status: StatusCode, body: &[u8]) -> String {
    let envelope: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let message = envelope.as_ref().and_then(|envelope| envelope.get("error")?.as_str());
    format!("{}: {}", status.as_u16(), message.unwrap_or("the daemon gave no reason"))
}
