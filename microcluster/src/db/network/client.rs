//! Calls to other members. Each has two connections at most: what is large has one of its own, on which a slow network may take its
//! time, and holds up neither heartbeats nor votes nor anybody else's call.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::WriteHalf;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::connection::{self, Connection, Frames, Pending};
use super::era::Era;
use super::hearing::{Hearing, Patience};
use super::message::{Call, Reply};
use super::{NotTrusted, PeerConnector, PeerStream};
use crate::db::raft_types::NodeId;

/// How long a peer that goes on to say something may take to answer what it was asked.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// How often a peer is asked whether it is still there.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How many calls may wait for one connection.
const CALLS_MAX: usize = 1_024;
/// Calls of more bytes than this are large.
const PROMPT_BYTES_MAX: usize = 256 << 10;

/// Why a call got no reply.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum CallError {
    /// It was not sent: the peer cannot be reached.
    #[error("cannot reach the member at {address}: {reason}")]
    Unreachable { address: String, reason: Arc<str>, met: Met },
    /// It was sent, and the connection broke: the peer may have done it.
    #[error("the connection to the member at {address} broke: {reason}")]
    Broken { address: String, reason: Arc<str> },
    /// It says nothing; it may have done it.
    #[error("the member at {address} does not answer")]
    Silent { address: String },
    /// Too many calls wait for this peer.
    #[error("too many calls wait for the member at {address}")]
    Full { address: String },
}

/// Who answers where a peer was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Met {
    /// Nobody, or nobody who can be talked to.
    Nobody,
    /// Somebody who does not trust this member, or whom it does not trust.
    Stranger,
    /// A member under another id.
    OtherNode,
}

/// Another node answers.
#[derive(Debug, thiserror::Error)]
#[error("node {found} answers there, not node {wanted}")]
pub(super) struct OtherNode {
    pub found: NodeId,
    pub wanted: NodeId,
}

impl Met {
    /// Who that was, by the error that came of it.
    pub(super) fn of(error: &io::Error) -> Met {
        match error.get_ref() {
            Some(inner) if inner.is::<NotTrusted>() => Met::Stranger,
            Some(inner) if inner.is::<OtherNode>() => Met::OtherNode,
            _ => Met::Nobody,
        }
    }
}

/// The connections to all other members.
pub(crate) struct Peers {
    connector: Arc<dyn PeerConnector>,
    era: Arc<Era>,
    peers: Mutex<HashMap<NodeId, Peer>>,
}

struct Peer {
    address: String,
    hearing: Arc<Hearing>,
    prompt: Calls,
    bulk: Calls,
}

/// The calls that take one connection.
struct Calls {
    queue: mpsc::Sender<Pending>,
    /// Ends the connection with the peer's entry.
    _task: AbortOnDropHandle<()>,
}

/// Which connection a call takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// The one of all small calls.
    Prompt,
    /// The one of the large ones; made when there is one, closed when there was none for a while.
    Bulk,
}

impl Route {
    /// The connection for a call of so many bytes.
    pub fn of(bytes: usize) -> Route {
        if bytes > PROMPT_BYTES_MAX { Route::Bulk } else { Route::Prompt }
    }
}

/// Where a reply arrives.
pub(crate) type ReplyReceiver = oneshot::Receiver<Result<Reply, CallError>>;

/// A place for one more call to a peer.
pub(crate) struct Place {
    permit: mpsc::OwnedPermit<Pending>,
    hearing: Arc<Hearing>,
    address: String,
}

impl Peers {
    /// No connections yet.
    pub fn new(connector: Arc<dyn PeerConnector>, era: Arc<Era>) -> Peers {
        Peers { connector, era, peers: Mutex::new(HashMap::new()) }
    }

    /// Sends `call` to node `id` at `address` and waits for its reply. Bound it with a timeout: dropping the
    /// future gives the reply up.
    pub async fn call(&self, id: NodeId, address: &str, call: Call) -> Result<Reply, CallError> {
        let receiver = self.start(id, address, call)?;
        receiver
            .await
            .unwrap_or_else(|_| Err(CallError::Broken { address: address.to_owned(), reason: "closed".into() }))
    }

    /// Sends `call` and waits for its reply for as long as the peer is not silent.
    pub async fn ask(&self, id: NodeId, address: &str, call: Call, patience: Patience) -> Result<Reply, CallError> {
        let begun = Instant::now();
        let mut receiver = self.start(id, address, call)?;
        let (_, hearing) = self.peer(id, address, Route::Prompt);
        // Later and later while it says other things.
        let deadline = |now| hearing.deadline(patience, begun, now).min(begun + ANSWER_MAX);
        loop {
            match tokio::time::timeout_at(deadline(Instant::now()).into(), &mut receiver).await {
                Ok(Ok(reply)) => return reply,
                Ok(Err(_)) => return Err(CallError::Broken { address: address.to_owned(), reason: "closed".into() }),
                Err(_) => {}
            }
            let now = Instant::now();
            if deadline(now) <= now {
                hearing.give_up(now);
                return Err(CallError::Silent { address: address.to_owned() });
            }
        }
    }

    /// Done when the peer, which is asked again and again from now on, does not answer any more.
    pub async fn gone(&self, id: NodeId, address: &str, patience: Patience) {
        loop {
            match self.ask(id, address, Call::Ping, patience).await {
                Err(CallError::Silent { .. }) => return,
                // Nobody is there; it may be about to start.
                Err(_) if self.is_silent(id, address, patience.silence) => return,
                _ => tokio::time::sleep(LOOK_INTERVAL).await,
            }
        }
    }

    /// Whether the peer has been asked in vain for so long.
    pub fn is_silent(&self, id: NodeId, address: &str, limit: Duration) -> bool {
        self.peer(id, address, Route::Prompt).1.is_silent(limit, Instant::now())
    }

    /// Waits until another call by `route` may wait for node `id` at `address`. Bound it with a timeout.
    pub async fn place(&self, id: NodeId, address: &str, route: Route) -> Result<Place, CallError> {
        let (calls, hearing) = self.peer(id, address, route);
        let address = address.to_owned();
        match calls.reserve_owned().await {
            Ok(permit) => Ok(Place { permit, hearing, address }),
            // The member has another address now, or its connections are closed.
            Err(_) => Err(CallError::Broken { address, reason: "closed".into() }),
        }
    }

    /// Sends `call` and gives the place where its reply arrives.
    pub fn start(&self, id: NodeId, address: &str, call: Call) -> Result<ReplyReceiver, CallError> {
        let (calls, hearing) = self.peer(id, address, Route::of(call.size()));
        let (reply, receiver) = oneshot::channel();
        hearing.ask(Instant::now());
        calls.try_send(Pending { call, reply }).map_err(|_| CallError::Full { address: address.to_owned() })?;
        Ok(receiver)
    }

    /// A connection of its own to node `id`, greeted: for snapshots.
    pub async fn dedicated(&self, id: NodeId, address: &str) -> io::Result<(Frames, WriteHalf<PeerStream>)> {
        connection::dedicated(&*self.connector, &self.era, id, address).await
    }

    /// Closes all connections.
    pub fn close(&self) {
        self.lock().clear();
    }

    fn peer(&self, id: NodeId, address: &str, route: Route) -> (mpsc::Sender<Pending>, Arc<Hearing>) {
        let mut peers = self.lock();
        let is_current = |peer: &Peer| peer.address == address && !peer.calls(route).is_closed();
        if !peers.get(&id).is_some_and(is_current) {
            peers.insert(id, self.new_peer(id, address));
        }
        let peer = &peers[&id];
        (peer.calls(route).clone(), Arc::clone(&peer.hearing))
    }

    fn new_peer(&self, id: NodeId, address: &str) -> Peer {
        let hearing = Arc::new(Hearing::default());
        let calls = |prompt: Option<&Calls>| {
            let (queue, receiver) = mpsc::channel(CALLS_MAX);
            let (connector, era, hearing) = (Arc::clone(&self.connector), Arc::clone(&self.era), Arc::clone(&hearing));
            let (is_bulk, prompt) = (prompt.is_some(), prompt.map_or(&queue, |prompt| &prompt.queue).downgrade());
            let connection = Connection { connector, era, id, address: address.to_owned(), hearing, prompt, is_bulk };
            Calls { queue, _task: AbortOnDropHandle::new(tokio::spawn(connection.run(receiver))) }
        };
        let prompt = calls(None);
        let bulk = calls(Some(&prompt));
        Peer { address: address.to_owned(), hearing, prompt, bulk }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<NodeId, Peer>> {
        // What the mutex holds is valid at every moment, also if a holder panicked.
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    fn calls(&self, route: Route) -> &mpsc::Sender<Pending> {
        match route {
            Route::Prompt => &self.prompt.queue,
            Route::Bulk => &self.bulk.queue,
        }
    }
}

impl Place {
    /// Sends `call` and waits for its reply. Bound it with a timeout.
    pub async fn call(self, call: Call) -> Result<Reply, CallError> {
        let (reply, receiver) = oneshot::channel();
        self.hearing.ask(Instant::now());
        self.permit.send(Pending { call, reply });
        receiver.await.unwrap_or_else(|_| Err(CallError::Broken { address: self.address, reason: "closed".into() }))
    }
}
