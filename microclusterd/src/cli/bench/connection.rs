//! One client's connection: HTTP/1.1 with nothing around it, so that the load takes as little as it can of what it measures.

use std::io::{self, Write as _};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// How many headers an answer has at most; the daemon's own has four.
const HEADERS_MAX: usize = 32;
/// How long an answer is polled for.
const POLL_MAX: Duration = Duration::from_micros(200);

/// An open connection to a control socket.
pub(super) struct Connection {
    stream: UnixStream,
    /// Whether answers are polled for before they are waited for.
    busy_poll: bool,
    /// The request, then what there is of its answer.
    buffer: Vec<u8>,
}

/// Where an answer stands in what was read.
struct Head {
    status: u16,
    /// Where the body begins.
    body: usize,
    /// Where the answer ends.
    end: usize,
}

impl Connection {
    pub async fn open(socket: &Path, busy_poll: bool) -> anyhow::Result<Connection> {
        let stream =
            UnixStream::connect(socket).await.with_context(|| format!("cannot connect to {}", socket.display()))?;
        Ok(Connection { stream, busy_poll, buffer: Vec::new() })
    }

    /// Runs SQL, given as the body of the request, and says whether the daemon has done it; an error when there is no answer.
    pub async fn sql(&mut self, body: &[u8]) -> anyhow::Result<Result<(), String>> {
        self.buffer.clear();
        write!(
            self.buffer,
            "POST /core/internal/sql HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )?;
        self.buffer.extend_from_slice(body);
        self.stream.write_all(&self.buffer).await?;
        self.buffer.clear();
        loop {
            if self.read().await? == 0 {
                bail!("the daemon closed the connection");
            }
            if let Some(head) = Head::parse(&self.buffer)?
                && head.end <= self.buffer.len()
            {
                let body = &self.buffer[head.body..head.end];
                return Ok(if head.status == 200 { Ok(()) } else { Err(refusal(head.status, body)) });
            }
        }
    }

    async fn read(&mut self) -> io::Result<usize> {
        let started = Instant::now();
        while self.busy_poll && started.elapsed() < POLL_MAX {
            match self.stream.try_read_buf(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // The daemons have the processor first.
                    thread::yield_now();
                    tokio::task::yield_now().await;
                }
                read => return read,
            }
        }
        self.stream.read_buf(&mut self.buffer).await
    }
}

impl Head {
    /// `None` as long as it is not there in full.
    fn parse(bytes: &[u8]) -> anyhow::Result<Option<Head>> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(body) = response.parse(bytes).context("the answer is not HTTP")? else {
            return Ok(None);
        };
        let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
        let length: usize = length
            .and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok())
            .context("the answer does not say how long it is")?;
        Ok(Some(Head { status: response.code.unwrap_or_default(), body, end: body.saturating_add(length) }))
    }
}

fn refusal(status: u16, body: &[u8]) -> String {
    let envelope: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let message = envelope.as_ref().and_then(|envelope| envelope.get("error")?.as_str());
    format!("{status}: {}", message.unwrap_or("the daemon gave no reason"))
}
