//! What one listener lets its clients take: how many they may be, and how long they may take for each step.

use std::time::Duration;

/// Connections, and handshakes, of one additional server: this part of the files that the process may open, at most.
const ADDITIONAL_SHARE: u64 = 8;

/// The bounds of a listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at the same time.
    pub connections: usize,
    /// Connections beside those, where members come in, of clients that show no member's certificate.
    pub strangers: usize,
    /// TLS handshakes at the same time. A new one ends the oldest: that one should have been done long ago.
    pub handshakes: usize,
    /// How long a TLS handshake may take.
    pub handshake: Duration,
    /// How long the head of a request may take, and how long a connection may be idle.
    pub head: Duration,
    /// The same for strangers.
    pub stranger_head: Duration,
    /// How long a body may take.
    pub body: Duration,
    /// How long a client may leave what it is sent unread.
    pub stall: Duration,
    /// After that time a stranger's connection takes no more requests.
    pub stranger_age: Duration,
    /// Requests at the same time on one HTTP/2 connection.
    pub streams: u32,
    /// The same for strangers.
    pub stranger_streams: u32,
}

impl Limits {
    /// Those of an additional server, in a process that may open so many files: its clients cannot take all of them, so that
    /// members still come in on the cluster address.
    pub fn additional(files: Option<u64>) -> Limits {
        let all = Limits::default();
        let share = files.and_then(|files| usize::try_from(files / ADDITIONAL_SHARE).ok()).unwrap_or(usize::MAX).max(1);
        Limits { connections: all.connections.min(share), handshakes: all.handshakes.min(share), ..all }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 4096,
            // With the handshakes half of the files that a process may open by default.
            strangers: 256,
            handshakes: 256,
            handshake: Duration::from_secs(5),
            head: Duration::from_secs(60),
            stranger_head: Duration::from_secs(10),
            body: Duration::from_secs(30),
            stall: Duration::from_secs(60),
            stranger_age: Duration::from_secs(60),
            streams: 256,
            stranger_streams: 8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_additional_server_takes_a_share_of_the_files() {
        let taken = |files| {
            let Limits { connections, handshakes, .. } = Limits::additional(files);
            (connections, handshakes)
        };
        assert_eq!(taken(Some(1024)), (128, 128));
        assert_eq!(taken(Some(1 << 20)), (4096, 256));
        assert_eq!(taken(None), (4096, 256), "there is no limit");
        assert_eq!(taken(Some(0)), (1, 1));
    }
}
