//! `/metrics` on an address of its own, in the text format of Prometheus.

use microcluster::db::Consistency;
use microcluster::{Response, Result, State};

/// GET `/metrics`
pub(crate) async fn metrics_show(state: State) -> Result<Response> {
    let database = state.database()?;
    // From the replica of this member: metrics are wanted most when there is no quorum.
    let count = database.query_row(Consistency::Local, "SELECT count(*) FROM kv", (), |row| row.get::<_, i64>(0));
    let keys = count.await?.unwrap_or(0);
    let status = database.status();
    Ok(Response::raw(format!(
        "# TYPE kv_keys gauge\nkv_keys {keys}\n\
         # TYPE kv_is_leader gauge\nkv_is_leader {}\n\
         # TYPE kv_has_quorum gauge\nkv_has_quorum {}\n\
         # TYPE kv_applied_index counter\nkv_applied_index {}\n",
        u8::from(status.is_leader()),
        u8::from(status.has_quorum),
        status.applied_index,
    )))
}
