//! Whether this is a member still. One that was removed while it was down, or cut off, is told by nobody: it has to ask.
//!
//! That others do not answer, or have no quorum, says nothing. What counts is that another member, with everything that is
//! committed, does not find this one's certificate in the table. Such a word is taken from
//!
//! - one that shows both the certificate of a member and that of the cluster: it is of this cluster, and speaks for it;
//! - or, as the cluster's certificate may have been replaced meanwhile, all others without an exception: a single one could have
//!   been removed itself, and speak for another cluster that it has joined.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::Method;
use microcluster_client::{Address, Client, Fingerprint};
use serde::{Deserialize, Serialize};

use super::members;
use super::node::Node;
use crate::db::{self, Consistency};
use crate::tasks::Tasks;

/// Where members are asked.
const PATH: &str = "/core/internal/membership";
/// How long this member is cut off before it asks: an election is over by then.
const QUIET: Duration = Duration::from_secs(2);
/// How long another member may take: it asks a majority.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause between two rounds: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// Whether the caller is a member, by everything that is committed.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Membership {
    pub is_member: bool,
}

/// What one of the others says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// This is a member.
    Member,
    /// This is none.
    Gone {
        /// It has shown that it is of this cluster.
        of_this_cluster: bool,
    },
    /// It does not answer, or cannot tell.
    Nothing,
}

/// Returns when it is certain that this member was removed; never before the tasks are stopped if it was not.
pub(crate) async fn removal_found(node: Arc<Node>, tasks: Tasks) -> bool {
    tokio::select! {
        () = tasks.stopping() => false,
        found = find_removal(&node) => found,
    }
}

async fn find_removal(node: &Node) -> bool {
    let (mut status, mut pause) = (node.db.status_watch(), PAUSE.0);
    loop {
        if status.wait_for(|status| !status.has_quorum).await.is_err() {
            return false;
        }
        if let Ok(back) = tokio::time::timeout(QUIET, status.wait_for(|status| status.has_quorum)).await {
            if back.is_err() {
                return false;
            }
            pause = PAUSE.0;
            continue;
        }
        let words = node.ask_whether_member().await;
        if is_removed(&words) {
            return true;
        }
        tracing::debug!(?words, "cut off from the cluster; it is not known that this member was removed");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Whether these words of all others mean that this member was removed.
fn is_removed(words: &[Word]) -> bool {
    let gone = |word: &Word| matches!(word, Word::Gone { .. });
    let has_proof = words.contains(&Word::Gone { of_this_cluster: true }) || words.iter().all(gone);
    !words.is_empty() && !words.contains(&Word::Member) && has_proof
}

impl Node {
    /// Whether the owner of a certificate is a member, or on its way in or out.
    pub async fn is_member(&self, certificate: Fingerprint) -> Result<bool, db::Error> {
        let rows = self.db.read(Consistency::Linearizable, members::all).await?;
        Ok(rows.iter().any(|row| Fingerprint::of_pem(&row.certificate) == Ok(certificate)))
    }

    /// Whether somebody who has the certificate of this cluster is at an address.
    pub async fn is_of_this_cluster(&self, address: Address) -> bool {
        let cluster = self.cluster_certificate.current().fingerprint();
        match self.peers.pinned_client(address, cluster) {
            Ok(client) => client.timeout(ASK_TIMEOUT).status().await.is_ok(),
            Err(_) => false,
        }
    }

    async fn ask_whether_member(&self) -> Vec<Word> {
        let trusted = self.trust.current();
        let others = trusted.iter().filter(|member| member.name != self.name);
        join_all(others.map(|member| self.ask_one(member.address))).await
    }

    async fn ask_one(&self, address: Address) -> Word {
        let ask = |client: Option<Client>| async move {
            let client = client?.timeout(ASK_TIMEOUT);
            match client.query::<Membership>(Method::GET, PATH, ()).await {
                Ok(membership) => Some(membership.is_member),
                Err(e) => {
                    tracing::debug!(%address, error = %crate::error::Chain(&e), "asked whether this is a member");
                    None
                }
            }
        };
        let cluster = self.cluster_certificate.current().fingerprint();
        let as_member = ask(Some(self.peers.client(address)));
        let as_cluster = ask(self.peers.pinned_client(address, cluster).ok());
        match tokio::join!(as_member, as_cluster) {
            (Some(true), _) | (_, Some(true)) => Word::Member,
            (Some(false), Some(false)) => Word::Gone { of_this_cluster: true },
            (Some(false), None) | (None, Some(false)) => Word::Gone { of_this_cluster: false },
            (None, None) => Word::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROVEN: Word = Word::Gone { of_this_cluster: true };
    const CLAIMED: Word = Word::Gone { of_this_cluster: false };

    #[test]
    fn an_outage_is_no_removal() {
        assert!(!is_removed(&[]), "there is nobody to ask");
        assert!(!is_removed(&[Word::Nothing, Word::Nothing]));
        assert!(!is_removed(&[Word::Nothing, CLAIMED]), "it may speak for another cluster");
        assert!(!is_removed(&[Word::Member, Word::Nothing]));
    }

    #[test]
    fn a_removal_is_said_by_one_of_this_cluster_or_by_all() {
        assert!(is_removed(&[Word::Nothing, PROVEN]));
        assert!(is_removed(&[CLAIMED, CLAIMED]));
    }

    #[test]
    fn who_is_a_member_for_anybody_is_one() {
        assert!(!is_removed(&[Word::Member, PROVEN]));
        assert!(!is_removed(&[CLAIMED, CLAIMED, Word::Member]));
    }
}
