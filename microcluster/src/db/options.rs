//! How a database is opened.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::network::PeerConnector;
use super::raft_types::NodeId;

/// What a database needs to start.
#[derive(Clone)]
pub struct Options {
    /// The folder of the log and the state; created if it is absent.
    pub dir: PathBuf,
    /// This member's Raft node id. It must never change for this folder, and never have been another member's.
    pub node_id: NodeId,
    /// Whether the node was a member of a cluster before: then the folder must hold its whole log and state.
    pub is_member: bool,
    /// How other members are reached.
    pub connector: Arc<dyn PeerConnector>,
    /// The schema of the cluster's own tables: an append-only list of SQL texts, applied when a cluster is bootstrapped.
    pub internal_schema: Vec<&'static str>,
    /// The times and bounds.
    pub timings: Timings,
}

/// The times of the replication. The defaults are for members a few milliseconds apart.
#[derive(Debug, Clone)]
pub struct Timings {
    /// How often a leader shows that it is there; also how long a follower may take to store what it is sent.
    pub heartbeat: Duration,
    /// The shortest and the longest time a follower waits for its leader before it stands for election. It first lets the
    /// longest one pass, as the leader's lease, and then a random one between the two.
    pub election: (Duration, Duration),
    /// How long a write or a linearizable read may take, a change of the leader included.
    pub request: Duration,
    /// How long a read may run.
    pub read: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Timings {
            heartbeat: Duration::from_millis(100),
            election: (Duration::from_millis(200), Duration::from_millis(400)),
            request: Duration::from_secs(10),
            read: Duration::from_secs(30),
        }
    }
}

impl Timings {
    /// After how long without an answer from a majority a leader says that it has no quorum.
    pub(crate) fn quorum(&self) -> Duration {
        self.election.1 * 3
    }
}
