//! Calls from other members: reads them from one connection, runs many at once, writes the replies.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::raft::AppendEntriesResponse;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio_util::codec::FramedRead;

use super::PeerStream;
use super::backlog::Backlog;
use super::client::Route;
use super::connection::{alone, next_frame};
use super::early::Early;
use super::era::Era;
use super::message::{self, Call, Frame, Hello, Pong, Reply, VERSION, Welcome, kind};
use super::snapshot;
use crate::db::damage;
use crate::db::elections::Elections;
use crate::db::forward::IN_FLIGHT_MAX;
use crate::db::log_store::LogStore;
use crate::db::raft_types::{NodeId, Raft, Vote};
use crate::db::read_index::ReadIndex;
use crate::db::sequencer::{Sequencer, SubmitError};
use crate::db::writer::Shared;

/// How many calls of one connection are run at once; reading waits when there are more. A member has seldom more on their way, those
/// included that it has given up: it is read on, and answered when it asks whether this one is there.
const CALLS_MAX: usize = 3 * IN_FLIGHT_MAX;
/// How many bytes of calls; reading waits when there are more.
const CALL_BYTES_MAX: usize = 64 << 20;
/// How many writes of one connection the sequencer is given at once. The others wait: it sends away what is too much for it.
const SUBMITS_MAX: usize = 1_024;
/// How much is put together for one write to the socket.
const WRITE_BYTES: usize = 256 << 10;
/// How long a write of another member may wait here; that member has given it up by then.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(15);

/// What the calls of other members are answered from.
pub(crate) struct Service {
    pub node_id: NodeId,
    /// The folder of the database.
    pub dir: PathBuf,
    pub raft: Raft,
    pub log: LogStore,
    pub early: Arc<Early>,
    pub sequencer: Sequencer,
    pub read_index: ReadIndex,
    pub shared: Arc<Shared>,
    pub era: Arc<Era>,
    /// Holds entries back that this member cannot apply in time.
    pub backlog: Backlog,
    /// When this member stands for election.
    pub elections: Arc<Elections>,
}

impl Service {
    /// Remembers that this member's state must not be used any more, and tells who rebuilds it.
    pub fn condemn(&self, reason: &str) {
        if let Err(error) = damage::condemn(&self.dir, self.node_id, reason) {
            // It is rebuilt all the same; only a stop in between would make it forget.
            tracing::error!(%error, "cannot record that the database is damaged");
        }
        self.shared.damage.send_replace(Some(reason.to_owned()));
    }
}

/// Serves one connection until it closes. Where it was the leader's this member may have to take the lead.
pub(crate) async fn serve(service: &Service, stream: PeerStream) -> io::Result<()> {
    let followed = Mutex::new(None);
    let ended = converse(service, stream, &followed).await;
    if let Some(vote) = followed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        service.elections.succeed(vote).await;
    }
    ended
}

/// `followed` is the vote by which the other member has led on this connection.
async fn converse(service: &Service, stream: PeerStream, followed: &Mutex<Option<Vote>>) -> io::Result<()> {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut frames = FramedRead::new(reader, message::frames());
    let mut buffer = Vec::new();

    let hello: Hello = next_frame(&mut frames).await?.decode().map_err(io::Error::other)?;
    let own = service.era.own().await?;
    let welcome = if hello.version != VERSION {
        Welcome::WrongVersion { version: VERSION }
    } else if hello.to != service.node_id {
        Welcome::WrongNode { node_id: service.node_id }
    } else if let Err(reason) = service.era.check(own, hello.era) {
        tracing::debug!(reason, "a member of another era is sent away");
        Welcome::WrongEra { era: own }
    } else {
        Welcome::Accepted { version: VERSION }
    };
    message::put_frame(&mut buffer, kind::HELLO, 0, &welcome).map_err(io::Error::other)?;
    writer.write_all(&buffer).await?;
    writer.flush().await?;
    buffer.clear();
    if !matches!(welcome, Welcome::Accepted { .. }) {
        return Ok(());
    }

    let submits = Semaphore::new(SUBMITS_MAX);
    let mut running = FuturesUnordered::new();
    let mut bytes = 0;
    // Whether somebody waits for what is in the buffer; if nobody does, since when it is there.
    let (mut hurries, mut since) = (false, None);
    loop {
        tokio::select! {
            biased;
            Some(answered) = running.next(), if !running.is_empty() => {
                hurries |= put_reply(&mut buffer, &answered)?;
                bytes -= answered.bytes;
            }
            () = alone(since), if since.is_some() => hurries = true,
            frame = next_frame(&mut frames), if running.len() < CALLS_MAX && bytes < CALL_BYTES_MAX => {
                let frame = frame?;
                if frame.kind == kind::SNAPSHOT {
                    let number = frame.number;
                    let reply = snapshot::receive(service, frame, &mut frames).await?;
                    hurries |= put_reply(&mut buffer, &Answered { number, reply, hurries: true, bytes: 0 })?;
                } else {
                    bytes += frame.body.len();
                    running.push(answer(service, &submits, followed, frame));
                }
            }
        }
        // Replies that are ready together go out together.
        while buffer.len() < WRITE_BYTES
            && let Some(Some(answered)) = futures_util::FutureExt::now_or_never(running.next())
        {
            hurries |= put_reply(&mut buffer, &answered)?;
            bytes -= answered.bytes;
        }
        if !buffer.is_empty() && !hurries && !running.is_empty() {
            since.get_or_insert_with(Instant::now);
        } else if !buffer.is_empty() {
            (hurries, since) = (false, None);
            writer.write_all(&buffer).await?;
            writer.flush().await?;
            buffer.clear();
            buffer.shrink_to(WRITE_BYTES);
        }
    }
}

/// A call that is done.
struct Answered {
    number: u64,
    reply: Reply,
    /// Whether somebody waits for the reply.
    hurries: bool,
    /// What the call took.
    bytes: usize,
}

/// Says whether somebody waits for it.
fn put_reply(buffer: &mut Vec<u8>, answered: &Answered) -> io::Result<bool> {
    message::put_frame(buffer, kind::REPLY, answered.number, &answered.reply).map_err(io::Error::other)?;
    Ok(answered.hurries)
}

async fn answer(service: &Service, submits: &Semaphore, followed: &Mutex<Option<Vote>>, frame: Frame) -> Answered {
    let (number, hurries, bytes) = (frame.number, frame.kind != kind::NEWS, frame.body.len());
    // What is large has a connection of its own, which ends while the leader goes on.
    let followed = Some(followed).filter(|_| Route::of(frame.body.len()) == Route::Prompt);
    let reply = match frame.call() {
        Ok(call) => run(service, submits, followed, call).await,
        Err(error) => Reply::Failed(error.to_string()),
    };
    Answered { number, reply, hurries, bytes }
}

async fn run(service: &Service, submits: &Semaphore, followed: Option<&Mutex<Option<Vote>>>, call: Call) -> Reply {
    match call {
        Call::Append(request) | Call::News(request) => {
            let vote = request.vote;
            // Before Raft looks at it: that may be waiting for this member's disk.
            if service.log.vote().is_none_or(|own| vote >= own) {
                service.shared.heard.note(vote);
            }
            match service.backlog.append(&service.raft, &service.shared, request).await {
                Ok(response) => {
                    if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
                        service.shared.heard.note(vote);
                        if let Some(followed) = followed {
                            *followed.lock().unwrap_or_else(PoisonError::into_inner) = Some(vote);
                        }
                    }
                    Reply::Append(response)
                }
                Err(error) => Reply::Failed(error.to_string()),
            }
        }
        Call::Vote(request) => match service.elections.vote(request).await {
            Ok(response) => Reply::Vote(response),
            Err(error) => Reply::Failed(error.to_string()),
        },
        Call::PreVote(last) => Reply::WouldVote(service.elections.would_vote(last)),
        Call::Confirm(vote) => {
            Reply::Confirmed(service.log.vote().is_some_and(|own| own.leader_id() == vote.leader_id()))
        }
        Call::Submit(submission) => {
            let _asked = service.early.asked();
            let submitted = async {
                // It is never closed.
                let _place = submits.acquire().await;
                service.sequencer.submit(submission).await
            };
            let answer = tokio::time::timeout(SUBMIT_TIMEOUT, submitted).await;
            Reply::Submit(answer.unwrap_or(Err(SubmitError::Lost)))
        }
        Call::ReadIndex(follower) => {
            let _asked = service.early.asked();
            Reply::ReadIndex(service.read_index.for_follower(follower).await)
        }
        Call::Ping => Reply::Pong(Pong { node_id: service.node_id, applied_index: *service.shared.applied.borrow() }),
        Call::Digest(index) => Reply::Digest(service.shared.digest(index)),
        Call::Condemn(reason) => {
            service.condemn(&reason);
            Reply::Condemned
        }
        Call::Campaign if service.shared.damage.borrow().is_some() => {
            Reply::Failed("the state of this member is damaged".to_owned())
        }
        Call::Campaign => {
            service.elections.campaign().await;
            Reply::Campaigning
        }
    }
}
