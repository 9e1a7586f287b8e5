//! Calls to other members: one task for each peer owns the connection, reconnects when a call needs it,
//! and fails what was in flight when it breaks.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::codec::FramedRead;
use tokio_util::task::AbortOnDropHandle;

use super::era::Era;
use super::hearing::{Hearing, Patience};
use super::message::{self, COMPANY_MAX, Call, Frame, Hello, MessageError, Reply, VERSION, Welcome, kind};
use super::{NotTrusted, PeerConnector, PeerStream};
use crate::db::gathering::Gathering;
use crate::db::raft_types::NodeId;

/// How long connecting, TLS and the greeting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_000);
/// How long a peer that was asked something may be silent before its connection is given up.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// How long a peer that goes on to say something may take to answer what it was asked.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// How often a peer is asked whether it is still there.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How many calls may wait for one peer.
const CALLS_MAX: usize = 1_024;
/// So few requests of this member's clients are waited for, to be sent on together.
const FEW_MAX: usize = 16;
/// How much is put together for one write to the socket.
const WRITE_BYTES: usize = 256 << 10;

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
struct OtherNode {
    found: NodeId,
    wanted: NodeId,
}

impl Met {
    /// Who that was, by the error that came of it.
    fn of(error: &io::Error) -> Met {
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
    calls: mpsc::Sender<Pending>,
    hearing: Arc<Hearing>,
    /// Ends the connection with the peer's entry.
    _task: AbortOnDropHandle<()>,
}

/// Where a reply arrives.
pub(crate) type ReplyReceiver = oneshot::Receiver<Result<Reply, CallError>>;

/// A place for one more call to a peer.
pub(crate) struct Place {
    permit: mpsc::OwnedPermit<Pending>,
    hearing: Arc<Hearing>,
    address: String,
}

struct Pending {
    call: Call,
    reply: oneshot::Sender<Result<Reply, CallError>>,
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
        let (_, hearing) = self.peer(id, address);
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
        self.peer(id, address).1.is_silent(limit, Instant::now())
    }

    /// Waits until another call may wait for node `id` at `address`. Bound it with a timeout.
    pub async fn place(&self, id: NodeId, address: &str) -> Result<Place, CallError> {
        let (calls, hearing) = self.peer(id, address);
        let address = address.to_owned();
        match calls.reserve_owned().await {
            Ok(permit) => Ok(Place { permit, hearing, address }),
            // The member has another address now, or its connections are closed.
            Err(_) => Err(CallError::Broken { address, reason: "closed".into() }),
        }
    }

    /// Sends `call` and gives the place where its reply arrives.
    pub fn start(&self, id: NodeId, address: &str, call: Call) -> Result<ReplyReceiver, CallError> {
        let (calls, hearing) = self.peer(id, address);
        let (reply, receiver) = oneshot::channel();
        hearing.ask(Instant::now());
        calls.try_send(Pending { call, reply }).map_err(|_| CallError::Full { address: address.to_owned() })?;
        Ok(receiver)
    }

    /// A connection of its own to node `id`, greeted: for snapshots.
    pub async fn dedicated(&self, id: NodeId, address: &str) -> io::Result<(Frames, WriteHalf<PeerStream>)> {
        connect(&*self.connector, &self.era, id, address).await
    }

    /// Closes all connections.
    pub fn close(&self) {
        self.lock().clear();
    }

    fn peer(&self, id: NodeId, address: &str) -> (mpsc::Sender<Pending>, Arc<Hearing>) {
        let mut peers = self.lock();
        if let Some(peer) = peers.get(&id)
            && peer.address == address
            && !peer.calls.is_closed()
        {
            return (peer.calls.clone(), Arc::clone(&peer.hearing));
        }
        let (calls, receiver) = mpsc::channel(CALLS_MAX);
        let hearing = Arc::new(Hearing::default());
        let (connector, era) = (Arc::clone(&self.connector), Arc::clone(&self.era));
        let task = run(connector, era, id, address.to_owned(), receiver, Arc::clone(&hearing));
        let task = AbortOnDropHandle::new(tokio::spawn(task));
        let peer =
            Peer { address: address.to_owned(), calls: calls.clone(), hearing: Arc::clone(&hearing), _task: task };
        peers.insert(id, peer);
        (calls, hearing)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<NodeId, Peer>> {
        // What the mutex holds is valid at every moment, also if a holder panicked.
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
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

/// The frames that a peer sends.
pub(crate) type Frames = FramedRead<ReadHalf<PeerStream>, tokio_util::codec::LengthDelimitedCodec>;

/// The calls that wait for a reply; `None` once the connection is broken.
type InFlight = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Result<Reply, CallError>>>>>>;

/// How many requests of this member's clients were answered since some were sent last, and when the last of them was.
type Answers = Arc<Mutex<Option<(usize, Instant)>>>;

async fn run(
    connector: Arc<dyn PeerConnector>,
    era: Arc<Era>,
    id: NodeId,
    address: String,
    mut calls: mpsc::Receiver<Pending>,
    hearing: Arc<Hearing>,
) {
    while let Some(first) = calls.recv().await {
        match connect(&*connector, &era, id, &address).await {
            Ok((frames, writer)) => {
                tracing::debug!(peer = id, %address, "connected");
                hearing.hear();
                let reason = converse(frames, writer, &address, first, &mut calls, &hearing).await;
                tracing::debug!(peer = id, %address, %reason, "disconnected");
            }
            Err(error) => {
                // Those who queued up behind this attempt share its end; nobody waits for a second one.
                let (reason, met) = (error.to_string().into(), Met::of(&error));
                let failure = CallError::Unreachable { address: address.clone(), reason, met };
                let _ = first.reply.send(Err(failure.clone()));
                while let Ok(pending) = calls.try_recv() {
                    let _ = pending.reply.send(Err(failure.clone()));
                }
            }
        }
    }
}

/// Runs one connection until it breaks, and says why.
async fn converse(
    frames: Frames,
    mut writer: WriteHalf<PeerStream>,
    address: &str,
    first: Pending,
    calls: &mut mpsc::Receiver<Pending>,
    hearing: &Arc<Hearing>,
) -> Arc<str> {
    let in_flight: InFlight = Arc::new(Mutex::new(Some(HashMap::new())));
    // Replies are read by a task of their own: reading must go on while writing waits, or both sides could wait for each other.
    let heard = Arc::new(Mutex::new(Instant::now()));
    let mut silent = std::pin::pin!(silence(&in_flight, &heard));
    let is_silent = || format!("silent for {SILENCE_MAX:?}").into();
    let answers = Answers::default();
    let reading =
        read_replies(frames, Arc::clone(&in_flight), Arc::clone(&answers), Arc::clone(&heard), Arc::clone(hearing));
    let mut reading = AbortOnDropHandle::new(tokio::spawn(reading));
    let mut number = 0;
    let mut buffer = Vec::new();
    // Since when something that is in no hurry waits in the buffer.
    let mut since = None;
    let mut next = Some(first);
    let mut gathering = Gathering::new();
    let reason: Arc<str> = 'connection: loop {
        let mut pending = match next.take() {
            Some(pending) => Some(pending),
            None => tokio::select! {
                received = calls.recv() => match received {
                    Some(pending) => Some(pending),
                    None => break "no longer needed".into(),
                },
                () = alone(since), if since.is_some() => None,
                reason = &mut reading => break reason.unwrap_or_else(|error| error.to_string().into()),
                () = &mut silent => break is_silent(),
            },
        };
        if !is_waiting(&in_flight) {
            // Nothing was to be heard before.
            *heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
        let mut hurries = pending.is_none();
        if pending.as_ref().is_some_and(|pending| matches!(pending.call, Call::Submit(_))) {
            if let Some((count, at)) = answers.lock().unwrap_or_else(PoisonError::into_inner).take() {
                gathering.done(if count <= FEW_MAX { count } else { 0 }, at);
            }
            gathering.wait(|| calls.len() + 1).await;
            gathering.sent();
            // Of many some are ready to be sent on: they go with the first.
            tokio::task::yield_now().await;
        }
        while let Some(call) = pending {
            hurries |= !matches!(call.call, Call::News(_));
            enqueue(&mut buffer, &mut number, call, &in_flight);
            pending = if buffer.len() < WRITE_BYTES { calls.try_recv().ok() } else { None };
        }
        if !hurries {
            since.get_or_insert_with(Instant::now);
            continue;
        }
        since = None;
        tokio::select! {
            written = async { writer.write_all(&buffer).await?; writer.flush().await } => {
                if let Err(error) = written {
                    break error.to_string().into();
                }
            }
            reason = &mut reading => break 'connection reason.unwrap_or_else(|error| error.to_string().into()),
            () = &mut silent => break is_silent(),
        }
        buffer.clear();
        buffer.shrink_to(WRITE_BYTES);
    };
    let waiting = in_flight.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
    for reply in waiting.into_values() {
        let _ = reply.send(Err(CallError::Broken { address: address.to_owned(), reason: Arc::clone(&reason) }));
    }
    reason
}

/// Done when what has waited since then has waited for long enough.
pub(super) async fn alone(since: Option<Instant>) {
    let since = since.map_or_else(tokio::time::Instant::now, Into::into);
    tokio::time::sleep_until(since + COMPANY_MAX).await;
}

/// Done when the peer was asked something and has said nothing for long: a network that drops everything tells nobody. On its
/// own clock, however often the peer is asked meanwhile.
async fn silence(in_flight: &InFlight, heard: &Mutex<Instant>) {
    let mut looks = tokio::time::interval(SILENCE_MAX / 4);
    loop {
        looks.tick().await;
        let since = heard.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        if is_waiting(in_flight) && since > SILENCE_MAX {
            return;
        }
    }
}

fn enqueue(buffer: &mut Vec<u8>, number: &mut u64, pending: Pending, in_flight: &InFlight) {
    if pending.reply.is_closed() {
        return;
    }
    *number += 1;
    let before = buffer.len();
    if let Err(error) = message::put_call(buffer, *number, &pending.call) {
        buffer.truncate(before);
        let _ = pending.reply.send(Ok(Reply::Failed(error.to_string())));
        return;
    }
    if let Some(waiting) = in_flight.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
        waiting.insert(*number, pending.reply);
    }
}

fn is_waiting(in_flight: &InFlight) -> bool {
    in_flight.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|waiting| !waiting.is_empty())
}

async fn read_replies(
    mut frames: Frames,
    in_flight: InFlight,
    answers: Answers,
    heard: Arc<Mutex<Instant>>,
    hearing: Arc<Hearing>,
) -> Arc<str> {
    loop {
        let frame = match next_frame(&mut frames).await {
            Ok(frame) => frame,
            Err(error) => return error.to_string().into(),
        };
        let now = Instant::now();
        *heard.lock().unwrap_or_else(PoisonError::into_inner) = now;
        hearing.hear();
        let reply = match (frame.kind, frame.decode()) {
            (kind::REPLY, Ok(reply)) => reply,
            (kind::REPLY, Err(error)) => return error.to_string().into(),
            (kind, _) => return MessageError::Kind(kind).to_string().into(),
        };
        let waiting = in_flight
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
            .and_then(|waiting| waiting.remove(&frame.number));
        if matches!(reply, Reply::Submit(_)) {
            let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
            *answers = Some((answers.map_or(0, |(count, _)| count) + 1, now));
        }
        if let Some(waiting) = waiting {
            let _ = waiting.send(Ok(reply));
        }
    }
}

async fn connect(
    connector: &dyn PeerConnector,
    era: &Era,
    id: NodeId,
    address: &str,
) -> io::Result<(Frames, WriteHalf<PeerStream>)> {
    let greeted = async {
        let stream = connector.connect(address.to_owned()).await?;
        let (reader, mut writer) = tokio::io::split(stream);
        let mut frames = FramedRead::new(reader, message::frames());
        let mut hello = Vec::new();
        let own = era.own().await?;
        message::put_frame(&mut hello, kind::HELLO, 0, &Hello { version: VERSION, to: id, era: own })
            .map_err(io::Error::other)?;
        writer.write_all(&hello).await?;
        writer.flush().await?;
        match next_frame(&mut frames).await?.decode().map_err(io::Error::other)? {
            Welcome::Accepted { .. } => Ok((frames, writer)),
            Welcome::WrongVersion { version } => Err(io::Error::other(format!(
                "it speaks version {version} of the member protocol, this member version {VERSION}: upgrade the older one"
            ))),
            Welcome::WrongEra { era: other } => {
                let reason =
                    era.check(own, other).err().unwrap_or_else(|| "it has the database of another recovery".to_owned());
                Err(io::Error::other(reason))
            }
            Welcome::WrongNode { node_id } => Err(io::Error::other(OtherNode { found: node_id, wanted: id })),
        }
    };
    tokio::time::timeout(CONNECT_TIMEOUT, greeted).await.unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {CONNECT_TIMEOUT:?}")))
    })
}

/// The next frame; the end of the stream is an error.
pub(crate) async fn next_frame(frames: &mut Frames) -> io::Result<Frame> {
    match frames.next().await {
        Some(Ok(bytes)) => Frame::parse(bytes.freeze()).map_err(io::Error::other),
        Some(Err(error)) => Err(error),
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other side closed the connection")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;

    use openraft::raft::AppendEntriesRequest;
    use tokio::io::{AsyncReadExt, DuplexStream};

    use super::*;
    use crate::db::command::{Body, Request, RequestId, Scope};
    use crate::db::network::testing;
    use crate::db::raft_types::Vote;
    use crate::db::sequencer::{Submission, SubmitError};

    /// Gives the far end of each connection away once it was greeted.
    struct Far(mpsc::UnboundedSender<DuplexStream>);

    impl PeerConnector for Far {
        fn connect(&self, _: String) -> Pin<Box<dyn Future<Output = io::Result<PeerStream>> + Send>> {
            let (ours, mut theirs) = tokio::io::duplex(1 << 20);
            let far = self.0.clone();
            tokio::spawn(async move {
                read_write(&mut theirs).await;
                theirs.write_all(&testing::welcome()).await.unwrap();
                far.send(theirs).unwrap();
            });
            Box::pin(async move { Ok(Box::new(ours) as PeerStream) })
        }
    }

    /// The frames of one write, taken apart.
    async fn read_write(stream: &mut DuplexStream) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 16];
        let length = stream.read(&mut bytes).await.unwrap();
        let (mut rest, mut kinds) = (&bytes[..length], Vec::new());
        while let [a, b, c, d, kind, ..] = *rest {
            kinds.push(kind);
            rest = &rest[4 + u32::from_le_bytes([a, b, c, d]) as usize..];
        }
        kinds
    }

    fn news() -> Call {
        let vote = Vote::new_committed(1, 1);
        Call::News(AppendEntriesRequest { vote, prev_log_id: None, entries: Vec::new(), leader_commit: None })
    }

    #[tokio::test]
    async fn what_is_in_no_hurry_is_written_with_the_next_call_or_a_moment_later() {
        let (sender, mut far) = mpsc::unbounded_channel();
        let peers = Peers::new(Arc::new(Far(sender)), Arc::default());
        let start = |call| peers.start(2, "127.0.0.1:2", call).unwrap();
        let _first = start(news());
        let mut far = far.recv().await.unwrap();
        assert_eq!(read_write(&mut far).await, [kind::NEWS], "alone, after a moment");
        let _calls = [start(news()), start(news()), start(Call::Ping)];
        assert_eq!(read_write(&mut far).await, [kind::NEWS, kind::NEWS, kind::PING]);
        let _more = [start(Call::Ping), start(news())];
        assert_eq!(read_write(&mut far).await, [kind::PING, kind::NEWS]);
    }

    fn submit() -> Call {
        let id = RequestId { origin: 1, sequence: 1 };
        let (scope, body) = (Scope::User, Body::Script(String::new()));
        let request = Request { id, answered_below: 0, time_ms: 0, seed: 0, only_in_term: None, scope, body };
        Call::Submit(Submission { request, seen: None, resent: false })
    }

    /// What is written at once when so many callers ask, one after the other, after a leader that took its time has answered them together.
    async fn asked_again(callers: u64) -> Vec<u8> {
        let (sender, mut far) = mpsc::unbounded_channel();
        let peers = Peers::new(Arc::new(Far(sender)), Arc::default());
        let start = || peers.start(2, "127.0.0.1:2", submit()).unwrap();
        let first: Vec<_> = (0..callers).map(|_| start()).collect();
        let mut far = far.recv().await.unwrap();
        read_write(&mut far).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut replies = Vec::new();
        for number in 1..=callers {
            message::put_frame(&mut replies, kind::REPLY, number, &Reply::Submit(Err(SubmitError::Busy))).unwrap();
        }
        far.write_all(&replies).await.unwrap();
        for reply in first {
            reply.await.unwrap().unwrap();
        }
        let asking = async {
            let mut again = Vec::new();
            for _ in 0..callers {
                again.push(start());
                for _ in 0..5 {
                    tokio::task::yield_now().await;
                }
            }
            again
        };
        tokio::join!(read_write(&mut far), asking).0
    }

    #[tokio::test]
    async fn what_few_ask_after_they_were_answered_together_is_sent_together() {
        // A stall of the machine is longer than the next one is waited for.
        for _ in 0..100 {
            if asked_again(3).await == [kind::SUBMIT; 3] {
                return;
            }
        }
        panic!("they were not waited for");
    }
}
