//! A network that is divided, for the test kit: what a member on the other side sends is held back until it heals.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{LazyLock, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use microcluster_client::Fingerprint;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// From whom to whom nothing comes through: the certificate that a client has, and the address that it has connected to.
pub(crate) type Way = (Fingerprint, SocketAddr);

/// Of all clusters of this process: an address is that of one member.
static DIVIDED: LazyLock<Mutex<Divided>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Divided {
    ways: HashSet<Way>,
    held: Vec<Waker>,
}

/// From now on nothing comes through on these ways.
pub(crate) fn divide(ways: impl IntoIterator<Item = Way>) {
    divided().ways.extend(ways);
}

/// What was held back on these ways goes on.
pub(crate) fn heal(ways: impl IntoIterator<Item = Way>) {
    let held = {
        let mut divided = divided();
        for way in ways {
            divided.ways.remove(&way);
        }
        std::mem::take(&mut divided.held)
    };
    held.into_iter().for_each(Waker::wake);
}

fn divided() -> MutexGuard<'static, Divided> {
    DIVIDED.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A connection that stands still, without an error, while its way is divided.
pub(super) struct Divisible<S> {
    stream: S,
    way: Option<Way>,
}

impl<S> Divisible<S> {
    /// A connection of whoever has that certificate, to that address.
    pub fn new(stream: S, from: Option<Fingerprint>, to: Option<SocketAddr>) -> Divisible<S> {
        Divisible { stream, way: from.zip(to) }
    }

    /// Ready when something can come through.
    fn poll_open(&self, cx: &Context<'_>) -> Poll<()> {
        let Some(way) = self.way else { return Poll::Ready(()) };
        let mut divided = divided();
        if !divided.ways.contains(&way) {
            return Poll::Ready(());
        }
        divided.held.push(cx.waker().clone());
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Divisible<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_open(cx));
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Divisible<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_open(cx));
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_open(cx));
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
