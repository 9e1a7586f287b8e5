//! Listeners: accept loops with bounds, and connections that are drained when the listener is closed.

mod accept;
mod busy_poll;
mod limits;
#[cfg(feature = "test-util")]
pub(crate) mod partition;
mod patience;
mod places;
mod running;
#[cfg(test)]
mod tests;
mod unix;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use self::limits::Limits;
pub(crate) use self::unix::group_id;
use crate::api::{Api, ListenerKind};
use crate::tasks::Tasks;

/// An open listener. It is closed with [`Listener::close`].
pub(crate) struct Listener {
    tasks: Tasks,
    /// The socket's file, removed when it is closed.
    socket: Option<PathBuf>,
}

impl Listener {
    /// Opens the control socket, for a group beside the owner if one is given.
    pub fn unix(path: PathBuf, group: Option<u32>, api: Api) -> io::Result<Listener> {
        Listener::unix_within(Limits::default(), path, group, api)
    }

    /// Serves TLS on a bound address.
    pub fn tls(tcp: TcpListener, config: rustls::ServerConfig, kind: ListenerKind, api: Api) -> Listener {
        let limits = match kind {
            ListenerKind::Additional => Limits::additional(files_max()),
            ListenerKind::Unix | ListenerKind::Tls | ListenerKind::PreInit => Limits::default(),
        };
        Listener::tls_within(limits, tcp, config, kind, api)
    }

    /// Takes no more connections, lets requests go on up to `drain`, then ends them.
    pub async fn close(self, drain: Duration) {
        if let Some(socket) = &self.socket {
            // Gone first: who looks for the daemon from now on finds that it is not there.
            if let Err(e) = std::fs::remove_file(socket) {
                tracing::debug!(error = %e, "the control socket was gone already");
            }
        }
        self.tasks.shutdown(drain).await;
    }

    fn unix_within(limits: Limits, path: PathBuf, group: Option<u32>, api: Api) -> io::Result<Listener> {
        let listener = unix::bind(&path, group)?;
        let tasks = Tasks::new("control connections");
        tasks.spawn("control socket", accept::unix_loop(listener, limits, api, tasks.clone()));
        Ok(Listener { tasks, socket: Some(path) })
    }

    fn tls_within(
        limits: Limits,
        tcp: TcpListener,
        config: rustls::ServerConfig,
        kind: ListenerKind,
        api: Api,
    ) -> Listener {
        let tasks = Tasks::new("TLS connections");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tasks.spawn("TLS listener", accept::tls_loop(tcp, acceptor, kind, limits, api, tasks.clone()));
        Listener { tasks, socket: None }
    }
}

/// Binds an address. Done before anything is decided that needs it.
pub(crate) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    // The standard library sets SO_REUSEADDR, so that connections that are being closed do not hold the address.
    TcpListener::bind(address).await
}

/// Has the process open as many files as the system lets it: every connection is one. The limit that a process begins with is for
/// programs of another age.
pub(crate) fn raise_files_max() {
    let limits = getrlimit(Resource::Nofile);
    if limits.current == limits.maximum {
        return;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits }) {
        Ok(()) => tracing::debug!(files = limits.maximum, "the process may open more files"),
        Err(e) => tracing::warn!(error = %e, files = limits.current, "the process may open few files"),
    }
}

/// How many files the process may open, if that is limited.
fn files_max() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}
