//! `/1.0/watch`: every change of the store over a websocket, in its order, from a revision on.

use microcluster::axum::extract::ws::{CloseFrame, Message};
use microcluster::db::{Consistency, Database};
use microcluster::{Query, Response, Result, State, WebSocket, WebSocketUpgrade};
use serde::{Deserialize, Serialize};

/// How many changes are read at a time.
const BATCH: usize = 500;
/// The code of a close that says why (RFC 6455, section 7.4.2: 4000 to 4999 are for applications).
const COMPACTED: u16 = 4000;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its revision.
    pub revision: i64,
    /// The key.
    pub key: String,
    /// Its value from then on; none for one that was deleted.
    pub value: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct From {
    #[serde(default)]
    prefix: String,
    /// Changes after this revision; those from now on unless it is set.
    after: Option<i64>,
}

/// GET `/1.0/watch?prefix=&after=`, to be upgraded
pub(crate) async fn changes_watch(
    state: State,
    Query(from): Query<From>,
    upgrade: WebSocketUpgrade,
) -> Result<Response> {
    let database = state.database()?;
    let newest = "SELECT coalesce(max(revision), 0) FROM kv_changes";
    let after = match from.after {
        Some(after) => after,
        None => database.query_row(Consistency::Linearizable, newest, (), |row| row.get(0)).await?.unwrap_or(0),
    };
    Ok(upgrade.on_upgrade(move |socket| async move {
        if let Err(error) = send_changes(socket, &database, &from.prefix, after).await {
            tracing::debug!(error = %error, "a watch ended");
        }
    }))
}

async fn send_changes(mut socket: WebSocket, database: &Database, prefix: &str, mut after: i64) -> anyhow::Result<()> {
    // Before the first look, so that nothing falls between them.
    let mut watch = database.watch(["kv_changes"]);
    loop {
        let sql = "SELECT revision, key, value FROM kv_changes WHERE revision > ?1 ORDER BY revision LIMIT ?2";
        let changes = database.query(Consistency::Local, sql, (after, BATCH as i64), |row| {
            Ok(Change { revision: row.get(0)?, key: row.get(1)?, value: row.get(2)? })
        });
        let changes = changes.await?;
        // Looked at after the changes were read: what was dropped before that is missing among them.
        let oldest = "SELECT coalesce(min(revision), 0) FROM kv_changes";
        let oldest: i64 = database.query_row(Consistency::Local, oldest, (), |row| row.get(0)).await?.unwrap_or(0);
        if oldest > after.saturating_add(1) {
            let reason =
                format!("changes before the revision {oldest} are not kept; read the store and watch from there");
            let close = CloseFrame { code: COMPACTED, reason: reason.into() };
            return Ok(socket.send(Message::Close(Some(close))).await?);
        }
        let is_all = changes.len() < BATCH;
        for change in changes {
            after = change.revision;
            if change.key.starts_with(prefix) {
                socket.send(Message::text(serde_json::to_string(&change)?)).await?;
            }
        }
        if is_all {
            tokio::select! {
                changed = watch.changed() => drop(changed?),
                // Whoever watches says nothing, but may go.
                message = socket.recv() => if !matches!(message, Some(Ok(_))) { return Ok(()) },
            }
        }
    }
}
