//! Keeps the trusted members those of the member table, and the cache on disk those that are trusted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use microcluster_client::Member;

use super::node::Node;
use crate::error::Chain;
use crate::tasks::{Tasks, blocking};
use crate::trust::{TrustSet, TrustedMember};

/// Pause after a change: the table of a busy database is not read for every write.
const PAUSE: Duration = Duration::from_millis(100);
/// How often other members are asked at most. Anybody can show an unknown certificate.
const ASK_INTERVAL: Duration = Duration::from_secs(2);
/// How long another member may take to list the members: it may wait for one that is down.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// Follows the member table until the tasks are stopped.
///
/// A member that was down for long can meet a leader that joined meanwhile. That leader alone could bring it the
/// log in which it would learn of it. So when an unknown certificate is shown, the
/// members that it knows are asked for the list; they read it from the log.
pub(crate) async fn keep_trust(node: Arc<Node>, truststore: PathBuf, tasks: Tasks) {
    let mut changes = node.db.changes();
    loop {
        match node.refresh_trust().await {
            Ok(true) => store(&node, &truststore).await,
            Ok(false) => {}
            Err(e) => tracing::warn!(error = %e, "cannot read the member table"),
        }
        tokio::select! {
            () = tasks.stopping() => return,
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                tokio::select! {
                    () = tasks.stopping() => return,
                    () = tokio::time::sleep(PAUSE) => {}
                }
            }
            () = node.stranger.notified() => {
                if node.ask_for_members().await {
                    store(&node, &truststore).await;
                }
                tokio::select! {
                    () = tasks.stopping() => return,
                    () = tokio::time::sleep(ASK_INTERVAL) => {}
                }
            }
        }
    }
}

impl Node {
    /// Trusts also whom other members know; says whether that is anybody new.
    async fn ask_for_members(&self) -> bool {
        for client in self.other_clients() {
            let client = client.timeout(ASK_TIMEOUT).notification();
            let listed = client.query::<Vec<Member>>(Method::GET, "/core/1.0/cluster", ()).await;
            let Ok(members) = listed else { continue };
            let known = self.trust.current();
            let learned = members.into_iter().filter_map(|member| {
                let Member { name, address, certificate, .. } = member;
                TrustedMember::new(microcluster_client::MemberLocal { name, address, certificate }).ok()
            });
            let all: TrustSet = known.iter().cloned().chain(learned).collect();
            return self.trust.replace(all);
        }
        false
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
