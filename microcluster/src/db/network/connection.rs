//! One connection to another member: made when a call needs it, many calls on it at once, and what was in flight fails when it breaks.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::codec::FramedRead;
use tokio_util::task::AbortOnDropHandle;

use super::client::{CallError, Met, OtherNode};
use super::era::Era;
use super::hearing::Hearing;
use super::message::{self, COMPANY_MAX, Call, Frame, Hello, MessageError, Reply, VERSION, Welcome, kind};
use super::{PeerConnector, PeerStream};
use crate::db::gathering::Gathering;
use crate::db::raft_types::NodeId;
use crate::looks;

/// How long connecting, TLS and the greeting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_000);
/// How long a peer that was asked something may be silent before its connection is given up.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// How often it is looked whether it is.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// After how much silence it is asked at a look whether it is there.
const ASK_AFTER: Duration = Duration::from_millis(500);
/// How long what is large may stand still on its way, while the peer is heard elsewhere.
const STALL_MAX: Duration = Duration::from_secs(30);
/// How long the connection for what is large is kept without any.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// So few requests of this member's clients are waited for, to be sent on together.
const FEW_MAX: usize = 16;
/// How much is put together for one write to the socket.
const WRITE_BYTES: usize = 256 << 10;

/// A call, and where its reply goes.
pub(super) struct Pending {
    pub call: Call,
    pub reply: oneshot::Sender<Result<Reply, CallError>>,
}

/// The frames that a peer sends.
pub(crate) type Frames = FramedRead<ReadHalf<PeerStream>, tokio_util::codec::LengthDelimitedCodec>;

/// The calls that wait for a reply; `None` once the connection is broken.
type InFlight = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Result<Reply, CallError>>>>>>;

/// How many requests of this member's clients were answered since some were sent last, and when the last of them was.
type Answers = Arc<Mutex<Option<(usize, Instant)>>>;

/// One of the connections to a peer.
pub(super) struct Connection {
    pub connector: Arc<dyn PeerConnector>,
    pub era: Arc<Era>,
    pub id: NodeId,
    pub address: String,
    pub hearing: Arc<Hearing>,
    /// The queue of the connection for small calls, which may be this one.
    pub prompt: mpsc::WeakSender<Pending>,
    /// Whether this is the connection for large calls.
    pub is_bulk: bool,
}

impl Connection {
    /// Connects when there is a call, and again when there is one after it broke. Ends with the queue of calls.
    pub async fn run(self, mut calls: mpsc::Receiver<Pending>) {
        let Connection { connector, era, id, address, hearing, is_bulk, .. } = &self;
        let mut is_lost = false;
        while let Some(first) = calls.recv().await {
            let moved = Arc::new(Mutex::new(Instant::now()));
            let watch = |stream| -> PeerStream {
                Box::new(Watched { stream, moved: Arc::clone(&moved), counts_writes: *is_bulk })
            };
            match connect(&**connector, era, *id, address, watch).await {
                Ok((frames, writer)) => {
                    hearing.hear();
                    if std::mem::take(&mut is_lost) {
                        tracing::warn!(peer = id, %address, "this member is reached again");
                    }
                    tracing::debug!(peer = id, %address, is_bulk, "connected");
                    let reason = self.converse(frames, writer, first, &mut calls, &moved).await;
                    tracing::debug!(peer = id, %address, is_bulk, %reason, "disconnected");
                }
                Err(error) => {
                    // It is tried again and again: that is said once.
                    if !*is_bulk && !std::mem::replace(&mut is_lost, true) {
                        tracing::warn!(peer = id, %address, %error, "this member cannot be reached");
                    }
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
        &self,
        frames: Frames,
        mut writer: WriteHalf<PeerStream>,
        first: Pending,
        calls: &mut mpsc::Receiver<Pending>,
        moved: &Mutex<Instant>,
    ) -> Arc<str> {
        let in_flight: InFlight = Arc::new(Mutex::new(Some(HashMap::new())));
        // Replies are read by a task of their own: reading must go on while writing waits, or both sides could wait for each other.
        let mut stalled = std::pin::pin!(self.stall(&in_flight, moved));
        let answers = Answers::default();
        let reading = read_replies(frames, Arc::clone(&in_flight), Arc::clone(&answers), Arc::clone(&self.hearing));
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
                    reason = &mut stalled => break reason,
                    () = tokio::time::sleep(IDLE_MAX), if self.is_bulk => match is_waiting(&in_flight) {
                        true => continue,
                        false => break "idle".into(),
                    }
                },
            };
            if !is_waiting(&in_flight) {
                // Nothing was to be heard before.
                note_now(moved);
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
                reason = &mut stalled => break reason,
            }
            buffer.clear();
            buffer.shrink_to(WRITE_BYTES);
        };
        let waiting = in_flight.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        for reply in waiting.into_values() {
            let reason = Arc::clone(&reason);
            let _ = reply.send(Err(CallError::Broken { address: self.address.clone(), reason }));
        }
        reason
    }

    /// Done when the peer was asked something and nothing has moved for long, and says so: a network that drops everything tells nobody.
    /// On a timer of its own, however often the peer is asked meanwhile. A peer that takes long over a call answers besides whether it is there.
    async fn stall(&self, in_flight: &InFlight, moved: &Mutex<Instant>) -> Arc<str> {
        // A call whose answer nobody waits for is not sent.
        let mut _asked = None;
        loop {
            looks::due(LOOK_INTERVAL).await;
            if !is_waiting(in_flight) {
                continue;
            }
            let quiet = moved.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
            if quiet >= ASK_AFTER
                && let Some(prompt) = self.prompt.upgrade()
            {
                let (reply, receiver) = oneshot::channel();
                self.hearing.ask(Instant::now());
                if prompt.try_send(Pending { call: Call::Ping, reply }).is_ok() {
                    _asked = Some(receiver);
                }
            }
            let is_over = if self.is_bulk {
                // The last of it may be on its way for long, and the peer cannot answer before. Whether it is there is asked elsewhere.
                quiet > STALL_MAX || quiet > SILENCE_MAX && self.hearing.is_silent(SILENCE_MAX, Instant::now())
            } else {
                quiet > SILENCE_MAX
            };
            if is_over {
                return format!("nothing has moved for {quiet:?}").into();
            }
        }
    }
}

/// A connection of its own to node `id`, greeted: for snapshots.
pub(super) async fn dedicated(
    connector: &dyn PeerConnector,
    era: &Era,
    id: NodeId,
    address: &str,
) -> io::Result<(Frames, WriteHalf<PeerStream>)> {
    connect(connector, era, id, address, std::convert::identity).await
}

fn note_now(moved: &Mutex<Instant>) {
    *moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
}

/// Done when what has waited since then has waited for long enough.
pub(super) async fn alone(since: Option<Instant>) {
    let since = since.map_or_else(tokio::time::Instant::now, Into::into);
    tokio::time::sleep_until(since + COMPANY_MAX).await;
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

async fn read_replies(mut frames: Frames, in_flight: InFlight, answers: Answers, hearing: Arc<Hearing>) -> Arc<str> {
    loop {
        let frame = match next_frame(&mut frames).await {
            Ok(frame) => frame,
            Err(error) => return error.to_string().into(),
        };
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
            *answers = Some((answers.map_or(0, |(count, _)| count) + 1, Instant::now()));
        }
        if let Some(waiting) = waiting {
            let _ = waiting.send(Ok(reply));
        }
    }
}

/// A stream that notes when something moves on it.
struct Watched {
    stream: PeerStream,
    moved: Arc<Mutex<Instant>>,
    /// Whether what is taken counts too. Of small calls much fits into the buffers of a network that drops everything.
    counts_writes: bool,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, into);
        if into.filled().len() > before {
            note_now(&self.moved);
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        if self.counts_writes && matches!(polled, Poll::Ready(Ok(1..))) {
            note_now(&self.moved);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

async fn connect(
    connector: &dyn PeerConnector,
    era: &Era,
    id: NodeId,
    address: &str,
    watch: impl FnOnce(PeerStream) -> PeerStream,
) -> io::Result<(Frames, WriteHalf<PeerStream>)> {
    let greeted = async {
        let stream = watch(connector.connect(address.to_owned()).await?);
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
    use crate::db::network::{Peers, Pong, testing};
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

    /// More than fits into the pipe, while the far end takes nothing of it.
    #[tokio::test]
    async fn a_large_call_has_a_connection_of_its_own_and_holds_up_no_other() {
        let (sender, mut ends) = mpsc::unbounded_channel();
        let peers = Peers::new(Arc::new(Far(sender)), Arc::default());
        let start = |call| peers.start(2, "127.0.0.1:2", call).unwrap();
        let mut large = start(submit("x".repeat(4 << 20)));
        let mut bulk = ends.recv().await.unwrap();
        let small = start(Call::Ping);
        let mut prompt = ends.recv().await.unwrap();
        assert_eq!(read_write(&mut prompt).await, [kind::PING]);
        prompt.write_all(&answer(1, Reply::Campaigning)).await.unwrap();
        assert!(matches!(small.await.unwrap(), Ok(Reply::Campaigning)));
        assert!(large.try_recv().is_err(), "it is on its way");
        let frame = FramedRead::new(&mut bulk, message::frames()).next().await.unwrap().unwrap();
        assert_eq!(Frame::parse(frame.freeze()).unwrap().kind, kind::SUBMIT);
        bulk.write_all(&answer(1, Reply::Submit(Err(SubmitError::Busy)))).await.unwrap();
        assert!(matches!(large.await.unwrap(), Ok(Reply::Submit(Err(SubmitError::Busy)))));
    }

    fn answer(number: u64, reply: Reply) -> Vec<u8> {
        let mut frame = Vec::new();
        message::put_frame(&mut frame, kind::REPLY, number, &reply).unwrap();
        frame
    }

    /// A leader whose disk is slow, or a large write: the connection stays.
    #[tokio::test]
    async fn an_answer_that_takes_long_is_waited_for_while_the_peer_is_there() {
        let (sender, mut far) = mpsc::unbounded_channel();
        let peers = Peers::new(Arc::new(Far(sender)), Arc::default());
        let reply = peers.start(2, "127.0.0.1:2", submit(String::new())).unwrap();
        let mut far = far.recv().await.unwrap();
        assert_eq!(read_write(&mut far).await, [kind::SUBMIT]);
        let (mut pings, begun) = (1, Instant::now());
        while begun.elapsed() < SILENCE_MAX + LOOK_INTERVAL {
            let asked = tokio::time::timeout(SILENCE_MAX, read_write(&mut far)).await;
            assert_eq!(asked.unwrap(), [kind::PING]);
            pings += 1;
            far.write_all(&answer(pings, Reply::Pong(Pong { node_id: 2, applied_index: 0 }))).await.unwrap();
        }
        far.write_all(&answer(1, Reply::Submit(Err(SubmitError::Busy)))).await.unwrap();
        assert!(matches!(reply.await.unwrap(), Ok(Reply::Submit(Err(SubmitError::Busy)))));
    }

    fn submit(script: String) -> Call {
        let id = RequestId { origin: 1, sequence: 1 };
        let (scope, body) = (Scope::User, Body::Script(script));
        let request = Request { id, answered_below: 0, time_ms: 0, seed: 0, only_in_term: None, scope, body };
        Call::Submit(Submission { request, seen: None, resent: false })
    }

    /// What is written at once when so many callers ask, one after the other, after a leader that took its time has answered them together.
    async fn asked_again(callers: u64) -> Vec<u8> {
        let (sender, mut far) = mpsc::unbounded_channel();
        let peers = Peers::new(Arc::new(Far(sender)), Arc::default());
        let start = || peers.start(2, "127.0.0.1:2", submit(String::new())).unwrap();
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
