//! Tells systemd when the daemon is ready and when it stops. Without systemd nothing happens.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

pub(super) fn ready() {
    tell("READY=1");
}

pub(super) fn stopping() {
    tell("STOPPING=1");
}

fn tell(what: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").and_then(|path| path.into_string().ok()) else {
        return;
    };
    if let Err(e) = send(&socket, what) {
        tracing::warn!(error = %e, what, "systemd was not told");
    }
}

/// One datagram to a path, or to a name that begins with `@`.
fn send(socket: &str, what: &str) -> io::Result<()> {
    let address = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(what.as_bytes(), &address).map(|_| ())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_sent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        send(path.to_str().unwrap(), "READY=1").unwrap();
        let mut buffer = [0; 32];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");
    }
}
