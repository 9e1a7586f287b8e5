//! Heartbeats: the leader asks all members whether they are alive and records it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use microcluster_client::Timestamp;

use super::members;
use super::node::Node;
use crate::db::{self, Consistency, NodeId};
use crate::tasks::Tasks;

/// How long a member may take to answer.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs a round at every interval while this member leads, until the tasks are stopped.
pub(crate) async fn keep_heartbeat(node: Arc<Node>, interval: Duration, tasks: Tasks) {
    loop {
        tokio::select! {
            () = tasks.stopping() => return,
            () = tokio::time::sleep(interval) => {}
        }
        if node.db.status().is_leader()
            && let Err(e) = node.heartbeat().await
        {
            tracing::warn!(error = %e, "cannot record the heartbeats");
        }
    }
}

impl Node {
    /// One round: all members at the same time, then one statement.
    pub async fn heartbeat(&self) -> Result<(), db::Error> {
        let rows = self.db.read(Consistency::Local, members::all).await?;
        let pings = rows.iter().map(|row| async {
            let is_alive =
                row.id == self.id || self.db.ping(row.id, &row.address.to_string(), PING_TIMEOUT).await.is_ok();
            is_alive.then_some(row.id)
        });
        let alive: Vec<NodeId> = join_all(pings).await.into_iter().flatten().collect();
        self.note_heartbeat(&rows.iter().map(|row| row.id).collect::<Vec<_>>(), &alive);
        if alive.is_empty() {
            return Ok(());
        }
        let ids: Vec<String> = alive.iter().map(ToString::to_string).collect();
        let sql = format!("UPDATE core_cluster_members SET last_heartbeat = ?1 WHERE id IN ({})", ids.join(", "));
        self.db.execute(&sql, [Timestamp::now().to_string()]).await.map(|_| ())
    }
}
