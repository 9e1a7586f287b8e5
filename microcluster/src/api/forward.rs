//! Requests that only the leader can do: run here, or passed on once.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::HeaderMap;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING, UPGRADE, USER_AGENT};
use microcluster_client::{Client, NOTIFICATION_USER_AGENT};

use super::extract::{BodyBounds, read_body};
use crate::cluster::Node;
use crate::db::Status;
use crate::error::Error;
use crate::state::State;

/// How long a request waits for a leader to be elected.
const LEADER_WAIT: Duration = Duration::from_secs(5);
/// How long the leader may take.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(60);

/// What became of a request.
pub(super) enum Outcome {
    /// This member leads: the request is to be run here.
    Here(Request),
    /// The leader has answered.
    Answered(Response),
}

/// Passes a request on to the leader, unless that is this member.
pub(super) async fn to_leader(state: &State, request: Request) -> Result<Outcome, Error> {
    let node = state.node()?;
    let is_forwarded = is_forwarded(&request);
    // Who passed it on saw this member lead: that is over, or not known here yet. One hop, never two.
    let known = |status: &Status| status.is_leader() || (!is_forwarded && status.leader.is_some());
    let status = wait_for(&node, known).await?;
    if status.is_leader() {
        return Ok(Outcome::Here(request));
    }
    let client = node.leader_client(&status).ok_or_else(no_leader)?;
    pass_on(&client, request).await.map(Outcome::Answered)
}

/// Waits until another member leads, and passes the request on to that.
pub(super) async fn to_new_leader(node: &Node, request: Request) -> Result<Response, Error> {
    let other = |status: &Status| status.leader.is_some_and(|leader| leader != node.id);
    let status = wait_for(node, other).await?;
    let client = node.leader_client(&status).ok_or_else(no_leader)?;
    pass_on(&client, request).await
}

/// Whether another member has passed the request on already.
pub(super) fn is_forwarded(request: &Request) -> bool {
    let agent = request.headers().get(USER_AGENT);
    agent.is_some_and(|agent| agent.as_bytes().starts_with(NOTIFICATION_USER_AGENT.as_bytes()))
}

async fn wait_for(node: &Node, condition: impl Fn(&Status) -> bool) -> Result<Status, Error> {
    let mut watch = node.db.status_watch();
    let wait = async { watch.wait_for(|status| condition(status)).await.map(|status| status.clone()) };
    match tokio::time::timeout(LEADER_WAIT, wait).await {
        Ok(Ok(status)) => Ok(status),
        Ok(Err(_)) | Err(_) => Err(no_leader()),
    }
}

/// Sends the request to another member, with the headers that are the client's own, and returns its answer.
pub(super) async fn pass_on(client: &Client, request: Request) -> Result<Response, Error> {
    let (mut head, body) = request.into_parts();
    let mut rest = Request::new(body);
    if let Some(bounds) = head.extensions.remove::<BodyBounds>() {
        rest.extensions_mut().insert(bounds);
    }
    let body = read_body(rest).await?;
    keep_end_to_end(&mut head.headers);
    // It is told anew: the body may have come in pieces.
    head.headers.remove(CONTENT_LENGTH);
    let request = http::Request::from_parts(head, body);
    let answer = client.notification().timeout(FORWARD_TIMEOUT).forward(request).await?;
    let mut response = answer.map(Body::new);
    keep_end_to_end(response.headers_mut());
    Ok(response)
}

/// Removes the headers that are of one connection alone.
fn keep_end_to_end(headers: &mut HeaderMap) {
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE, EXPECT] {
        headers.remove(name);
    }
}

fn no_leader() -> Error {
    Error::unavailable("the cluster has no leader at the moment").retry_after(1)
}
