//! `/1.0/kv`: the store over REST.

use microcluster::db::Consistency;
use microcluster::{Json, Path, Query, Response, Result, State};
use serde::{Deserialize, Serialize};

use crate::store;

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// Grows with every change in the store.
    pub revision: i64,
}

/// What a key is to become.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Put {
    /// The value.
    pub value: String,
    /// Only if the key has this revision; 0 for a key that is not there.
    #[serde(default)]
    pub if_revision: Option<i64>,
}

#[derive(Deserialize)]
pub(crate) struct Condition {
    if_revision: Option<i64>,
}

#[derive(Deserialize)]
pub(crate) struct Prefix {
    #[serde(default)]
    prefix: String,
}

/// GET `/1.0/kv?prefix=`
pub(crate) async fn items_list(state: State, Query(Prefix { prefix }): Query<Prefix>) -> Result<Json<Vec<Item>>> {
    let sql = "SELECT key, value, revision FROM kv WHERE substr(key, 1, length(?1)) = ?1 ORDER BY key";
    Ok(Json(state.database()?.query(Consistency::Linearizable, sql, (prefix,), item).await?))
}

/// GET `/1.0/kv/{key}`
pub(crate) async fn item_show(state: State, Path(key): Path<String>) -> Result<Json<Item>> {
    let sql = "SELECT key, value, revision FROM kv WHERE key = ?1";
    let found = state.database()?.query_row(Consistency::Linearizable, sql, (key.clone(),), item).await?;
    found.map(Json).ok_or_else(|| store::unknown(&key))
}

/// PUT `/1.0/kv/{key}`: answers with the new revision.
pub(crate) async fn item_put(state: State, Path(key): Path<String>, Json(put): Json<Put>) -> Result<Json<i64>> {
    store::change(&state.database()?, key, Some(put.value), put.if_revision).await.map(Json)
}

/// DELETE `/1.0/kv/{key}?if_revision=`
pub(crate) async fn item_delete(
    state: State,
    Path(key): Path<String>,
    Query(condition): Query<Condition>,
) -> Result<Response> {
    store::change(&state.database()?, key, None, condition.if_revision).await?;
    Ok(Response::empty())
}

fn item(row: &microcluster::db::rusqlite::Row<'_>) -> microcluster::db::rusqlite::Result<Item> {
    Ok(Item { key: row.get(0)?, value: row.get(1)?, revision: row.get(2)? })
}
