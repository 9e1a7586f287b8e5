//! Keeps the trusted members those of the member table, and the cache on disk those that are trusted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::Method;
use microcluster_client::{Address, Client, Empty, Error, Member, MemberLocal};

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
        // Not the new one itself: it holds its address and does not serve it yet.
        let others = self.other_clients(Some(&member.name));
        let told = others.into_iter().map(|client| async move {
            let client = client.timeout(INTRODUCE_TIMEOUT).notification();
            client.query::<Empty>(Method::POST, "/core/internal/truststore", member).await
        });
        for failed in join_all(told).await.into_iter().filter_map(Result::err) {
            tracing::debug!(error = %Chain(&failed), "a member was not told of a new one");
        }
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
        let addresses: Vec<Address> = self
            .trust
            .current()
            .iter()
            .filter(|member| member.name != self.name)
            .map(|member| member.address)
            .collect();
        for address in addresses {
            let Some(members) = self.ask_at(address).await else { continue };
            let known = self.trust.current();
            let learned = members.into_iter().filter_map(|member| {
                let Member { name, address, certificate, .. } = member;
                TrustedMember::new(MemberLocal { name, address, certificate }).ok()
            });
            let all: TrustSet = known.iter().cloned().chain(learned).collect();
            *self.learned() = Arc::new(all.clone());
            self.trust.replace(all);
            return;
        }
    }

    /// Asks whoever is at the address of a member that this one knows. A member that was removed and came back has
    /// another certificate by now: then the cluster's is the proof.
    async fn ask_at(&self, address: Address) -> Option<Vec<Member>> {
        let ask = |client: Client| async move {
            let client = client.timeout(ASK_TIMEOUT).notification();
            client.query::<Vec<Member>>(Method::GET, "/core/1.0/cluster", ()).await
        };
        match ask(self.peers.client(address)).await {
            Err(Error::Tls { .. }) => {
                let cluster = self.cluster_certificate.current().fingerprint();
                ask(self.peers.pinned_client(address, cluster).ok()?).await.ok()
            }
            asked => asked.ok(),
        }
    }
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
