//! A stream that gives a client up that says nothing, or does not read what it is sent.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::running::Running;

/// What a client begins with that speaks HTTP/2 without having said so: as many bytes have to come before it is known what
/// it speaks. Until then nobody else looks at the time.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A stream on which a beginning that does not come, and a write that makes no progress for a while, are errors.
pub(super) struct Patience<S> {
    stream: S,
    limit: Duration,
    /// Runs until it is known what the client speaks.
    beginning: Option<Pin<Box<Sleep>>>,
    /// Bytes that have come while it ran.
    begun: usize,
    /// Runs while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
    running: Running,
}

impl<S> Patience<S> {
    pub fn new(stream: S, beginning: Duration, limit: Duration, running: Running) -> Self {
        let beginning = Some(Box::pin(tokio::time::sleep(beginning)));
        Patience { stream, limit, beginning, begun: 0, waiting: None, running }
    }

    /// A flush counts for nothing: it is ready also when there is nothing to flush.
    fn note<T>(&self, moved: &Poll<T>) {
        if moved.is_ready() {
            self.running.moved();
        }
    }

    /// Watches what a write or a flush has come to: until it is done there is something for the client to read.
    fn watch_bytes<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.running.blocked(written.is_pending());
        self.watch(context, written)
    }

    fn watch<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let limit = self.limit;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(waiting.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read what it is sent")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patience<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let own = self.get_mut();
        let filled = buffer.filled().len();
        let read = Pin::new(&mut own.stream).poll_read(cx, buffer);
        own.note(&read);
        let Some(beginning) = &mut own.beginning else {
            return read;
        };
        if read.is_pending() {
            ready!(beginning.as_mut().poll(cx));
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client says nothing")));
        }
        let new = &buffer.filled()[filled..];
        let rest = &PREFACE[own.begun..];
        own.begun += new.len();
        if new.len() >= rest.len() || !rest.starts_with(new) {
            own.beginning = None;
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patience<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let own = self.get_mut();
        let written = Pin::new(&mut own.stream).poll_write(cx, bytes);
        own.note(&written);
        own.watch_bytes(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let own = self.get_mut();
        let written = Pin::new(&mut own.stream).poll_write_vectored(cx, slices);
        own.note(&written);
        own.watch_bytes(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let own = self.get_mut();
        let flushed = Pin::new(&mut own.stream).poll_flush(cx);
        own.watch_bytes(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let own = self.get_mut();
        let shut = Pin::new(&mut own.stream).poll_shutdown(cx);
        own.watch(cx, shut)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn a_client_that_reads_nothing_is_given_up_and_a_slow_one_is_not() {
        let (mut client, server) = duplex(64);
        let mut server = Patience::new(server, Duration::ZERO, Duration::from_millis(200), Running::default());
        let writing = tokio::spawn(async move {
            server.write_all(&[1; 1024]).await.unwrap();
            // Nobody reads from here on.
            server.write_all(&[2; 1024]).await.unwrap_err().kind()
        });
        let mut bytes = [0; 16];
        for _ in 0..64 {
            client.read_exact(&mut bytes).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(writing.await.unwrap(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn the_beginning_has_its_time() {
        for (begun, is_enough) in [(&b""[..], false), (b"PRI * H", false), (b"PO", true), (b"G", true), (PREFACE, true)]
        {
            let (mut client, server) = duplex(64);
            let mut server = Patience::new(server, Duration::from_millis(50), Duration::ZERO, Running::default());
            client.write_all(begun).await.unwrap();
            let mut bytes = vec![0; begun.len()];
            server.read_exact(&mut bytes).await.unwrap();
            assert_eq!(server.beginning.is_none(), is_enough, "{begun:?}");
            if !is_enough {
                let error = server.read_exact(&mut [0; 1]).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{begun:?}");
            }
        }
    }
}
