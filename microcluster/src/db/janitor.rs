//! Keeps the log bounded: when it has grown, the state is brought onto stable storage and the entries behind
//! it are dropped, but for the newest ones, which let a member that was away for a moment catch up.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::log_store::LogStore;
use super::network::Sending;
use super::raft_types::Raft;

/// How large the log may grow.
const LOG_BYTES_MAX: u64 = 32 << 20;
/// How large while a member is getting a snapshot, and will want what comes after it.
const LOG_BYTES_WHILE_SENDING: u64 = 1 << 30;
/// How much of it is kept.
const LOG_BYTES_KEPT: u64 = 8 << 20;
/// How often its size is looked at while entries are applied, or while it is too large.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long syncing the state may take.
const SYNC_TIMEOUT: Duration = Duration::from_secs(60);

/// Looks after the log until cancelled. `applied` tells of new entries.
pub(crate) async fn run(
    raft: Raft,
    log: LogStore,
    sending: Sending,
    mut applied: watch::Receiver<u64>,
    cancelled: CancellationToken,
) {
    let look = async {
        loop {
            tokio::time::sleep(INTERVAL).await;
            shorten(&raft, &log, &sending).await;
            if log.stats().bytes < LOG_BYTES_MAX && applied.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = cancelled.cancelled() => {}
        () = look => {}
    }
}

/// Drops what the log need not keep, if it is too large.
async fn shorten(raft: &Raft, log: &LogStore, sending: &Sending) {
    let stats = log.stats();
    let (Some(first), Some(last)) = (stats.first_index, stats.last_index) else { return };
    let limit = if sending.is_recent() { LOG_BYTES_WHILE_SENDING } else { LOG_BYTES_MAX };
    if stats.bytes < limit {
        return;
    }
    let applied = raft.metrics().borrow().last_applied.map_or(0, |log_id| log_id.index);
    let kept = (last - first + 1).saturating_mul(LOG_BYTES_KEPT) / stats.bytes;
    let purge_upto = applied.min(last.saturating_sub(kept));
    if purge_upto < first {
        return;
    }
    if let Err(error) = purge(raft, purge_upto).await {
        tracing::warn!(%error, bytes = stats.bytes, "the log could not be shortened");
    }
}

async fn purge(raft: &Raft, upto: u64) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    raft.trigger().snapshot().await?;
    raft.wait(Some(SYNC_TIMEOUT))
        .metrics(
            |metrics| metrics.snapshot.is_some_and(|log_id| log_id.index >= upto),
            "the state is on stable storage",
        )
        .await?;
    raft.trigger().purge_log(upto).await?;
    tracing::debug!(upto, "shortened the log");
    Ok(())
}
