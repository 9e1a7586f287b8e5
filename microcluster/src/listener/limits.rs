//! What one listener lets its clients take: how many they may be, and how long they may take for each step.

use std::time::Duration;

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
