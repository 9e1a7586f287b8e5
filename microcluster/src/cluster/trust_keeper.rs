//! Keeps the trusted members those of the member table, and the cache on disk those that are trusted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Method;
use microcluster_client::{Address, Client, Error, Member, MemberLocal, Role};

use super::node::Node;
use crate::db;
use crate::error::Chain;
use crate::tasks::{Tasks, blocking};
use crate::trust::{TrustSet, TrustedMember};

/// Pause after a change: the table of a busy database is not read for every write.
const PAUSE: Duration = Duration::from_millis(100);
/// How long one try to catch up with the leader may take, and the pause between two.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(1);
const CATCH_UP_PAUSE: Duration = Duration::from_millis(500);
/// How often other members are asked at most. Anybody can show an unknown certificate.
const ASK_INTERVAL: Duration = Duration::from_secs(2);
/// How long another member may take to look for a new one.
const INTRODUCE_TIMEOUT: Duration = Duration::from_millis(300);
/// How long another member may take to list the members: it may wait for one that is down.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// Follows the member table until the tasks are stopped.
///
/// A member that was down for long can meet a leader that joined meanwhile. That leader alone could bring it the
/// log in which it would learn of it. So when an unknown certificate is shown, the
/// members that it knows are asked for the list; they read it from the log.
pub(crate) async fn keep_trust(node: Arc<Node>, truststore: PathBuf, tasks: Tasks) {
    tokio::select! {
        () = tasks.stopping() => {}
        () = follow(&node, &truststore) => {}
    }
}

async fn follow(node: &Node, truststore: &Path) {
    let (mut changes, mut trusted) = (node.db.changes(), node.trust.watch());
    // What is trusted at the start may not have been stored.
    trusted.mark_changed();
    loop {
        let is_behind = !node.catch_up_with_table().await;
        if let Err(e) = node.refresh_trust().await {
            tracing::warn!(error = %e, "cannot read the member table");
        }
        // Whoever has changed it: requests refresh it too.
        if trusted.has_changed().unwrap_or(false) {
            trusted.mark_unchanged();
            store(node, truststore).await;
        }
        // At once after a quiet while, and not more often than this while the database is busy.
        tokio::time::sleep(PAUSE).await;
        tokio::select! {
            () = tokio::time::sleep(CATCH_UP_PAUSE), if is_behind => {}
            changed = changes.changed() => if changed.is_err() { return },
            changed = trusted.changed() => {
                if changed.is_err() {
                    return;
                }
                store(node, truststore).await;
            }
            () = node.stranger.notified() => {
                node.ask_for_members().await;
                tokio::time::sleep(ASK_INTERVAL).await;
            }
        }
    }
}

impl Node {
    /// Has the other members look for a new one, so that they know it when it calls. One that does not answer
    /// learns of it from the log, or when it is shown a certificate that it does not know.
    pub(super) async fn introduce(&self, member: &MemberLocal) {
        // Not the new one itself, which is not in yet: it holds its address and does not serve it.
        let tell =
            |client: Client| async move { client.query(Method::POST, "/core/internal/truststore", member).await };
        self.tell_others("a new member", INTRODUCE_TIMEOUT, tell).await;
    }

    /// Looks for a new member that another one tells of.
    pub async fn be_introduced(&self, member: MemberLocal) -> Result<(), db::Error> {
        let known = |node: &Node| {
            TrustedMember::new(member.clone()).is_ok_and(|member| node.trust.is_trusted(&member.fingerprint))
        };
        if !known(self) {
            self.db.linearize().await?;
            self.refresh_trust().await?;
        }
        if !known(self) {
            self.stranger_seen();
        }
        Ok(())
    }

    /// Forgets what was learned beside the table once the table has all that is committed; says whether it has.
    async fn catch_up_with_table(&self) -> bool {
        let learned = self.learned().clone();
        if learned.is_empty() {
            return true;
        }
        if !matches!(tokio::time::timeout(CATCH_UP_TIMEOUT, self.db.linearize()).await, Ok(Ok(()))) {
            return false;
        }
        let mut current = self.learned();
        // What came meanwhile stays: it may be newer than what was waited for.
        if Arc::ptr_eq(&current, &learned) {
            *current = Arc::default();
        }
        current.is_empty()
    }

    /// Trusts also whom other members know.
    async fn ask_for_members(&self) {
        let known = self.trust.current();
        let others = known.iter().filter(|member| member.name != self.name);
        let addresses: Vec<Address> = others.map(|member| member.address).collect();
        let cluster = self.cluster_certificate.current().fingerprint();
        let by_certificate = |address| Some(self.peers.client(address));
        let by_cluster = |address| self.peers.pinned_client(address, cluster).ok();
        let Some(members) = first_answer(&addresses, by_certificate, by_cluster, ask).await else { return };
        let known = self.trust.current();
        let learned = members.into_iter().filter_map(|member| {
            let Member { name, address, certificate, role, .. } = member;
            let member = TrustedMember::new(MemberLocal { name, address, certificate }).ok()?;
            Some(if role == Role::Pending { member.joiner() } else { member })
        });
        let all: TrustSet = known.iter().cloned().chain(learned).collect();
        *self.learned() = Arc::new(all.clone());
        self.trust.replace(all);
    }
}

/// Why nothing was learned from an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unheard {
    /// Somebody with another certificate answers there.
    Other,
    Silent,
}

/// The first answer of one who shows the certificate of a member that is trusted here, at whichever address. Only when nobody
/// does, the first of one who has the cluster's: a member that was removed and came back has another certificate of its own by
/// now. One that was removed and stayed away has the cluster's too, so it is not heard while a member can be.
async fn first_answer<C, A, F>(
    addresses: &[Address],
    by_certificate: impl Fn(Address) -> Option<C>,
    by_cluster: impl Fn(Address) -> Option<C>,
    ask: impl Fn(C) -> F,
) -> Option<A>
where
    F: Future<Output = Result<A, Unheard>>,
{
    let asked = addresses.iter().filter_map(|address| Some((*address, ask(by_certificate(*address)?))));
    // All at the same time: nobody waits for one that says nothing.
    let mut asked: FuturesUnordered<_> = asked.map(async |(address, answer)| (address, answer.await)).collect();
    let mut others = Vec::new();
    while let Some((address, answer)) = asked.next().await {
        match answer {
            Ok(answer) => return Some(answer),
            Err(Unheard::Other) => others.push(address),
            Err(Unheard::Silent) => {}
        }
    }
    let mut asked: FuturesUnordered<_> = others.into_iter().filter_map(by_cluster).map(ask).collect();
    while let Some(answer) = asked.next().await {
        if let Ok(answer) = answer {
            return Some(answer);
        }
    }
    None
}

async fn ask(client: Client) -> Result<Vec<Member>, Unheard> {
    let client = client.timeout(ASK_TIMEOUT).notification();
    let asked = client.query::<Vec<Member>>(Method::GET, "/core/1.0/cluster", ()).await;
    asked.map_err(|e| if matches!(e, Error::Tls { .. }) { Unheard::Other } else { Unheard::Silent })
}

/// Writes the cache. It is no truth: a failure is worth a warning, and the next change tries again.
async fn store(node: &Node, truststore: &Path) {
    let members = node.trust.current();
    node.peers.retain(|address| members.iter().any(|member| member.address == address));
    let path = truststore.to_owned();
    let stored = blocking("trust store", move || members.store(&path)).await;
    match stored {
        Ok(Ok(())) => {}
        Ok(Err(e)) => tracing::warn!(error = %Chain(&e), "cannot write the trust store"),
        Err(e) => tracing::warn!(error = %e, "cannot write the trust store"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Asks at two addresses, where only `answers` are answered, and says who was asked and who was heard.
    async fn asked(answers: &[&str], unheard: Unheard) -> (Vec<String>, Option<String>) {
        let addresses: Vec<Address> = ["10.0.0.1:1", "10.0.0.2:1"].map(|text| text.parse().unwrap()).into();
        let asked = RefCell::new(Vec::new());
        let as_member = |address: Address| Some(format!("member {address}"));
        let as_cluster = |address: Address| Some(format!("cluster {address}"));
        let heard = first_answer(&addresses, as_member, as_cluster, |who: String| {
            asked.borrow_mut().push(who.clone());
            async move { if answers.contains(&who.as_str()) { Ok(who) } else { Err(unheard) } }
        });
        let heard = heard.await;
        (asked.into_inner(), heard)
    }

    /// A removed member that has kept the cluster's certificate answers at its old address.
    #[tokio::test]
    async fn who_has_the_cluster_certificate_alone_is_not_heard_while_a_member_answers() {
        let (asked, heard) = asked(&["cluster 10.0.0.1:1", "member 10.0.0.2:1"], Unheard::Other).await;
        assert_eq!(heard.as_deref(), Some("member 10.0.0.2:1"));
        assert_eq!(asked, ["member 10.0.0.1:1", "member 10.0.0.2:1"]);
    }

    #[tokio::test]
    async fn the_cluster_certificate_counts_when_no_member_answers() {
        let (whom, heard) = asked(&["cluster 10.0.0.2:1"], Unheard::Other).await;
        assert_eq!(heard.as_deref(), Some("cluster 10.0.0.2:1"));
        assert_eq!(whom.len(), 4);
        let (whom, heard) = asked(&["cluster 10.0.0.2:1"], Unheard::Silent).await;
        assert_eq!((whom.len(), heard), (2, None), "who does not answer is not asked twice");
    }
}
