//! SQL over REST: statements, and the dump of the whole database.

mod json;

use axum::response::Response;
use http::StatusCode;
use microcluster_client::{Consistency, SqlDump, SqlRequest};

use self::json::{results, value};
use super::envelope::{Answer, json_response};
use super::extract::{Body, Flags};
use crate::db;
use crate::error::Error;
use crate::state::State;

/// POST `/core/internal/sql`: all statements of a request are one transaction.
pub(super) async fn statements_run(state: State, Body(request): Body<SqlRequest>) -> Result<Response, Error> {
    if request.query.is_empty() {
        return Err(Error::bad_request("the query is empty; give one or more SQL statements"));
    }
    let parameters = request.parameters.into_iter().enumerate().map(value);
    let parameters = parameters.collect::<Result<Vec<_>, _>>()?;
    let consistency = match request.consistency {
        Consistency::Linearizable => db::Consistency::Linearizable,
        Consistency::Local => db::Consistency::Local,
    };
    let answered = state.node()?.database.sql(&request.query, parameters, consistency).await?;
    Ok(json_response(StatusCode::OK, results(&answered)))
}

/// GET `/core/internal/sql`: the database as SQL, with `schema=1` its schema alone.
pub(super) async fn database_dump(state: State, flags: Flags) -> Result<Answer<SqlDump>, Error> {
    let text = state.node()?.database.dump(flags.has("schema")).await?;
    Ok(Answer(SqlDump { text }))
}
