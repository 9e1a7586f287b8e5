//! Compares the state of all members at one log index.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Database;
use super::checksum::Digest;
use super::command::Body;
use super::error::Error;
use super::network::{Call, Patience, Reply};
use super::raft_types::{NodeId, Peer};

/// How long the members may take to make their digests.
const TIMEOUT: Duration = Duration::from_secs(120);
/// How long a member is waited for that says nothing.
const PATIENCE: Patience = Patience { silence: Duration::from_millis(800), least: Duration::from_millis(400) };
/// How long to wait before asking again.
const PAUSE: Duration = Duration::from_millis(20);

/// What was found out about one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It holds what most members hold.
    Same,
    /// It holds something else.
    Different,
    /// Its state cannot be read.
    Damaged(String),
    /// It did not answer, or not in time.
    Unknown(String),
}

/// What a comparison found.
#[derive(Debug, Clone)]
pub struct Verification {
    /// The log index that was compared.
    pub index: u64,
    /// The digest that most members have.
    pub digest: Option<String>,
    /// Each member with what was found.
    pub members: Vec<(NodeId, Peer, Verdict)>,
}

impl Verification {
    /// The members that are known to be wrong: those that differ from more than half of all, and those that SQLite
    /// itself finds damaged, if that is no more than half of them and another one could be read.
    pub(crate) fn wrong(&self) -> impl Iterator<Item = &(NodeId, Peer, Verdict)> {
        let count = |is: fn(&Verdict) -> bool| self.members.iter().filter(|(_, _, verdict)| is(verdict)).count();
        let damaged = count(|verdict| matches!(verdict, Verdict::Damaged(_)));
        let is_readable = count(|verdict| matches!(verdict, Verdict::Same)) > 0;
        let is_rest_enough = is_readable && damaged * 2 <= self.members.len();
        self.members.iter().filter(move |(_, _, verdict)| match verdict {
            Verdict::Different => self.digest.is_some(),
            Verdict::Damaged(_) => is_rest_enough,
            Verdict::Same | Verdict::Unknown(_) => false,
        })
    }
}

impl Database {
    /// Has every member make a digest of its state at one and the same log index, and compares them. Work goes on meanwhile.
    ///
    /// # Errors
    /// [`Error::NoQuorum`] and [`Error::OutcomeUnknown`] when the mark cannot be brought into the log.
    pub async fn verify(&self) -> Result<Verification, Error> {
        let index = self.mark().await?;
        let deadline = Instant::now() + TIMEOUT;
        let nodes = self.status().nodes;
        let asked = nodes.into_iter().map(|(id, peer)| async move {
            let digest = self.digest_of(id, &peer, index, deadline).await;
            (id, peer, digest)
        });
        let digests = futures_util::future::join_all(asked).await;
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, _, digest) in &digests {
            if let Ok(Digest::Done(digest)) = digest {
                *counts.entry(digest).or_default() += 1;
            }
        }
        // What more than half of all members hold is right: one of them at least is in every majority that acknowledged a write.
        let is_majority = |count: usize| count * 2 > digests.len();
        let digest = counts.iter().find(|(_, count)| is_majority(**count)).map(|(digest, _)| (*digest).to_owned());
        let members = digests
            .iter()
            .map(|(id, peer, found)| {
                let verdict = match found {
                    Ok(Digest::Done(found)) if Some(found) == digest.as_ref() => Verdict::Same,
                    // The only ones that could be read, and they are the same.
                    Ok(Digest::Done(_)) if counts.len() == 1 => Verdict::Same,
                    Ok(Digest::Done(_)) => Verdict::Different,
                    Ok(Digest::Damaged(reason)) => Verdict::Damaged(reason.clone()),
                    Ok(Digest::Pending) => Verdict::Unknown(format!("it has no digest after {TIMEOUT:?}")),
                    Ok(Digest::Unknown) => {
                        Verdict::Unknown("it was not up at the mark, or has got a snapshot since".to_owned())
                    }
                    Err(reason) => Verdict::Unknown(reason.clone()),
                };
                (*id, peer.clone(), verdict)
            })
            .collect();
        Ok(Verification { index, digest, members })
    }

    /// Tells the members whose state a comparison found to be wrong, so that they are rebuilt from the others.
    pub(crate) async fn condemn(&self, found: &Verification) {
        let index = found.index;
        let wrong = found.wrong().map(|(id, peer, verdict)| {
            let reason = match verdict {
                Verdict::Damaged(reason) => format!("the state cannot be read: {reason}"),
                _ => format!("at log entry {index} its content was not that of the other members"),
            };
            (*id, peer, reason)
        });
        let told = wrong.map(|(id, peer, reason)| async move {
            tracing::error!(member = %peer, reason, "a member's database is wrong; it is rebuilt from the others");
            if id == self.inner.node_id() {
                return self.inner.condemn(&reason);
            }
            if let Err(error) = self.inner.peers.ask(id, &peer.address, Call::Condemn(reason), PATIENCE).await {
                tracing::warn!(member = %peer, %error, "it could not be told");
            }
        });
        futures_util::future::join_all(told).await;
    }

    async fn mark(&self) -> Result<u64, Error> {
        Ok(self.submit(Body::Mark).await?.0)
    }

    /// Asks until the digest is there, the member does not answer, or the time is over.
    async fn digest_of(&self, id: NodeId, peer: &Peer, index: u64, deadline: Instant) -> Result<Digest, String> {
        loop {
            let digest = if id == self.inner.node_id() {
                self.inner.digest(index)
            } else {
                match self.inner.peers.ask(id, &peer.address, Call::Digest(index), PATIENCE).await {
                    Ok(Reply::Digest(digest)) => digest,
                    Ok(_) => return Err("it gave an answer of the wrong kind".to_owned()),
                    Err(error) => return Err(error.to_string()),
                }
            };
            if digest != Digest::Pending || Instant::now() >= deadline {
                return Ok(digest);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
