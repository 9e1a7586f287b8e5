//! The question that a linearizable read asks the leader: reads that arrive while one is on its way share the next.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::db::network::{Call, CallError, Follower, Peers, Reply};
use crate::db::raft_types::{NodeId, Peer};
use crate::db::sequencer::SubmitError;

/// How many reads may wait.
const WAITING_MAX: usize = 4_096;

/// What the leader answered, or why it did not.
type Answer = Result<Result<u64, SubmitError>, CallError>;

/// A handle on the task that asks.
pub(super) struct Questions(mpsc::Sender<Question>);

/// A read that waits.
struct Question {
    leader: NodeId,
    address: String,
    answer: oneshot::Sender<Answer>,
}

impl Questions {
    /// The handle and its task, to be spawned by the database. `follower` tells what this member says of itself.
    pub fn new(
        peers: Arc<Peers>,
        follower: impl Fn() -> Option<Follower> + Send,
        cancelled: CancellationToken,
    ) -> (Questions, impl Future<Output = ()> + Send) {
        let (questions, waiting) = mpsc::channel(WAITING_MAX);
        let run = async move {
            tokio::select! {
                () = cancelled.cancelled() => {}
                () = run(&peers, follower, waiting) => {}
            }
        };
        (Questions(questions), run)
    }

    /// Asks the leader, after this call began, up to where a linearizable read must have applied the log.
    pub async fn ask(&self, leader: NodeId, peer: &Peer) -> Answer {
        let (answer, receiver) = oneshot::channel();
        let question = Question { leader, address: peer.address.clone(), answer };
        self.0.try_send(question).map_err(|_| CallError::Full { address: peer.address.clone() })?;
        receiver.await.unwrap_or_else(|_| Err(broken(&peer.address, "another leader is asked")))
    }
}

async fn run(peers: &Peers, follower: impl Fn() -> Option<Follower>, mut waiting: mpsc::Receiver<Question>) {
    let mut next = Vec::new();
    loop {
        if next.is_empty() && waiting.recv_many(&mut next, WAITING_MAX).await == 0 {
            return;
        }
        let Some((leader, address)) = next.last().map(|newest| (newest.leader, newest.address.clone())) else {
            continue;
        };
        // Those who ask somebody else are told so by the end of their channel.
        let asked: Vec<_> = next.drain(..).filter(|question| question.leader == leader).collect();
        // Looked at when all of these reads have begun.
        let mut call = std::pin::pin!(peers.call(leader, &address, Call::ReadIndex(follower())));
        let answer = loop {
            tokio::select! {
                reply = &mut call => break match reply {
                    Ok(Reply::ReadIndex(index)) => Ok(index),
                    Ok(_) => Err(broken(&address, "it gave an answer of the wrong kind")),
                    Err(error) => Err(error),
                },
                Some(question) = waiting.recv() => {
                    let of_another = question.leader != leader;
                    next.push(question);
                    if of_another {
                        // The one that was asked leads no longer, and may never answer.
                        break Err(broken(&address, "another leader is asked"));
                    }
                }
                else => return,
            }
        };
        for question in asked {
            let _ = question.answer.send(answer.clone());
        }
    }
}

fn broken(address: &str, reason: &str) -> CallError {
    CallError::Broken { address: address.to_owned(), reason: reason.into() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::io;
    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;

    use super::*;
    use crate::db::network::{PeerConnector, PeerStream, testing};

    /// Leaders that answer the question with how often it was asked. The one at port 1 never answers.
    #[derive(Default)]
    struct Leaders(Arc<AtomicUsize>);

    impl PeerConnector for Leaders {
        fn connect(&self, address: String) -> Pin<Box<dyn Future<Output = io::Result<PeerStream>> + Send>> {
            let asked = Arc::clone(&self.0);
            let stream = testing::member(move |_| {
                let index = asked.fetch_add(1, Ordering::SeqCst) as u64;
                (!address.ends_with(":1")).then_some(Reply::ReadIndex(Ok(index)))
            });
            Box::pin(async move { Ok(stream) })
        }
    }

    fn questions() -> (Questions, Arc<AtomicUsize>, impl Future<Output = ()> + Send) {
        let leaders = Leaders::default();
        let asked = Arc::clone(&leaders.0);
        let peers = Arc::new(Peers::new(Arc::new(leaders), Arc::default()));
        let (questions, task) = Questions::new(peers, || None, CancellationToken::new());
        (questions, asked, task)
    }

    fn at(port: u64) -> Peer {
        Peer { name: format!("c{port}"), address: format!("127.0.0.1:{port}") }
    }

    #[tokio::test]
    async fn reads_that_arrive_together_share_a_question() {
        let (questions, asked, task) = questions();
        tokio::spawn(task);
        let peer = at(2);
        let answers = join_all((0..200).map(|_| questions.ask(2, &peer))).await;
        assert!(answers.iter().all(|answer| matches!(answer, Ok(Ok(_)))), "{answers:?}");
        assert!(asked.load(Ordering::SeqCst) <= 2, "200 reads asked {asked:?} times");
        // What was answered before a read began is no answer to it.
        let next = questions.ask(2, &peer).await.unwrap().unwrap();
        assert_eq!(next as usize + 1, asked.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn a_leader_that_does_not_answer_holds_nobody_up_who_asks_another_one() {
        let (questions, asked, task) = questions();
        tokio::spawn(task);
        let questions = Arc::new(questions);
        let first = tokio::spawn({
            let questions = Arc::clone(&questions);
            async move { questions.ask(1, &at(1)).await }
        });
        while asked.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(questions.ask(2, &at(2)).await, Ok(Ok(1))));
        assert!(matches!(first.await.unwrap(), Err(CallError::Broken { .. })));
    }
}
