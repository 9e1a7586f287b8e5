//! Requests that only the leader can do: run here, or passed on once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::Response;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{Extensions, HeaderMap, Method, StatusCode};
use microcluster_client::{Client, Name};

use super::caller::{Caller, PASSED_ON};
use super::extract::{BodyBounds, read_body};
use super::routes::Route;
use crate::cluster::Node;
use crate::db::{self, NodeId, Status};
use crate::error::Error;
use crate::state::State;

/// How long a request waits for a leader to be elected.
const LEADER_WAIT: Duration = Duration::from_secs(5);
/// How long a request that was passed on waits for this member to lead: it may not know it yet.
const LEAD_WAIT: Duration = Duration::from_millis(500);
/// How long another member may take for what the Core API does there, beside hooks; and for the way of any request.
const CORE_TIMEOUT: Duration = Duration::from_secs(60);
const WAY_TIMEOUT: Duration = Duration::from_secs(10);
/// How many hooks a request can have run one after the other: a removal does before and after.
const HOOKS_MAX: u32 = 2;
/// How long another member may take for an action of a product that has no bound of its own.
const ACTION_TIMEOUT: Duration = Duration::from_secs(600);
/// The longest that it may say. Times are added up, and must be ones that can be.
const ACTION_TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// How many leaders may be lost while they have a request.
const UNKNOWN_MAX: u32 = 2;
/// How long a leader may take to answer that leads no more.
const GRACE: Duration = Duration::from_secs(1);
/// How long one is waited for that says nothing.
const LOST: db::Patience = db::Patience { silence: Duration::from_millis(300), least: Duration::from_millis(100) };
/// Pause before the same leader is tried again; news of another one ends it.
const PAUSE: Duration = Duration::from_millis(50);

/// Below it are the members, by their names.
const MEMBER_PATH: &str = "/core/1.0/cluster/";

/// How long another member may take for a request that is passed on to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patience(Duration);

impl Patience {
    /// No shorter than what runs there may take.
    pub fn of(route: &Route, hook_timeout: Duration) -> Patience {
        Patience(match (route.timeout, route.is_core()) {
            (Some(timeout), _) => timeout.min(ACTION_TIMEOUT_MAX).saturating_add(WAY_TIMEOUT),
            (None, true) => hook_timeout.saturating_mul(HOOKS_MAX).saturating_add(CORE_TIMEOUT),
            (None, false) => ACTION_TIMEOUT,
        })
    }

    fn of_request(extensions: &Extensions) -> Duration {
        extensions.get::<Patience>().map_or(CORE_TIMEOUT, |patience| patience.0)
    }
}

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
    if !is_forwarded(&request) {
        let request = bound(&node, request).await?;
        return Passing::new(&node, request).run(|_| true).await;
    }
    // Who passed it on saw this member lead: that is over, or not known here yet. One hop, never two.
    match wait_for(&node, LEAD_WAIT, Status::is_leader).await {
        Some(_) => Ok(Outcome::Here(request)),
        None => Err(misdirected()),
    }
}

/// Passes the request on to whoever leads after this member, or has the member do so that passed it on to this one.
pub(super) async fn to_new_leader(node: &Arc<Node>, request: Request) -> Result<Response, Error> {
    if is_forwarded(&request) {
        return Err(misdirected());
    }
    let (own, request) = (node.id, bound(node, request).await?);
    match Passing::new(node, request).run(|leader| leader != own).await? {
        Outcome::Answered(response) => Ok(response),
        Outcome::Here(_) => Err(no_leader()),
    }
}

/// The request as it can be done twice: a removal is of the member that has the name now. One that joins under that name before
/// the removal is asked for again is another one.
async fn bound(node: &Node, mut request: Request) -> Result<Request, Error> {
    let name = request.uri().path().strip_prefix(MEMBER_PATH).and_then(|name| name.parse::<Name>().ok());
    let query = request.uri().query().unwrap_or_default();
    let (Some(name), &Method::DELETE) = (name, request.method()) else { return Ok(request) };
    if query.split('&').any(|pair| pair.starts_with("id=")) {
        return Ok(request);
    }
    let Some(id) = node.id_of(&name).await? else { return Ok(request) };
    let and = if query.is_empty() { "" } else { "&" };
    let bound = format!("{MEMBER_PATH}{name}?{query}{and}id={id}");
    *request.uri_mut() = bound.parse().map_err(|e: http::uri::InvalidUri| Error::bad_request(e.to_string()))?;
    Ok(request)
}

/// A request on its way to the leader, however often that changes before it is answered.
struct Passing {
    node: Arc<Node>,
    request: Request,
}

/// Why there is no answer from one leader.
enum Lost {
    /// It has done nothing: it is down, or leads no more.
    NotDone(Error),
    /// Whether it has is unknown: it was stopped, or cut off, while it had the request.
    MaybeDone(Error),
}

impl Passing {
    fn new(node: &Arc<Node>, request: Request) -> Passing {
        Passing { node: node.clone(), request }
    }

    /// Waits for a leader that is `accepted`, and gives it the request; and the next one, if that one is lost. What the core API
    /// has only the leader do may be done twice, except that a second removal does not find the member any more. Of a product's own
    /// requests that is not known: they are not done again where they may have been done.
    async fn run(self, accepted: impl Fn(NodeId) -> bool) -> Result<Outcome, Error> {
        let Passing { node, request } = self;
        let begun = Instant::now();
        let mut deadline = begun + LEADER_WAIT;
        let is_accepted = |status: &Status| status.leader.is_some_and(&accepted);
        let mut status = wait_until(&node, deadline, is_accepted).await.ok_or_else(no_leader)?;
        if status.is_leader() {
            return Ok(Outcome::Here(request));
        }
        let (head, body) = buffered(request).await?;
        let patience = Patience::of_request(&head.extensions);
        let is_repeatable = head.method.is_safe() || head.uri.path().starts_with("/core/");
        let (mut maybe_done, mut unknown_max) = (false, if is_repeatable { UNKNOWN_MAX } else { 0 });
        loop {
            let again = http::Request::from_parts(head.clone(), body.clone());
            let failed = match ask(&node, &status, again).await {
                Ok(response) if maybe_done && head.method == Method::DELETE && response.status() == 404 => {
                    return Err(unknown());
                }
                Ok(response) => return Ok(Outcome::Answered(response)),
                Err(Lost::NotDone(error)) => error,
                Err(Lost::MaybeDone(error)) if unknown_max == 0 || begun.elapsed() >= patience => {
                    return Err(error);
                }
                Err(Lost::MaybeDone(error)) => {
                    // It was on its way for as long as that leader took: the next one has its own time.
                    (maybe_done, unknown_max, deadline) = (true, unknown_max - 1, Instant::now() + LEADER_WAIT);
                    error
                }
            };
            let other_leads = |now: &Status| now.leader.is_some_and(|leader| Some(leader) != status.leader);
            wait_until(&node, deadline.min(Instant::now() + PAUSE), other_leads).await;
            let next = wait_until(&node, deadline, is_accepted).await;
            status = match next.filter(|_| Instant::now() < deadline) {
                Some(status) => status,
                None if maybe_done => return Err(unknown()),
                None => return Err(failed),
            };
            if status.is_leader() {
                let request = http::Request::from_parts(head, Body::from(body));
                return Ok(Outcome::Here(request));
            }
        }
    }
}

/// Gives the request to the leader of this status, and stops waiting for it when another one leads.
async fn ask(node: &Node, status: &Status, request: http::Request<Bytes>) -> Result<Response, Lost> {
    let client = node.leader_client(status).ok_or_else(|| Lost::NotDone(no_leader()))?;
    let other_leads = |now: &Status| now.leader.is_some_and(|leader| Some(leader) != status.leader);
    let patience = Patience::of_request(request.extensions());
    let lost = async {
        if wait_until(node, Instant::now() + patience, other_leads).await.is_none() {
            // Its time is over, or this member's is: the answer may still come.
            std::future::pending::<()>().await;
        }
        // One that has handed over says so soon, unless it is cut off.
        tokio::select! {
            () = tokio::time::sleep(GRACE) => {}
            () = gone(node, status) => {}
        }
    };
    node.reached("passing on");
    let sent = async {
        let answer = send(&client, request).await;
        node.reached("passed on");
        answer
    };
    tokio::select! {
        answer = sent => match answer {
            Ok(response) if response.status() == StatusCode::MISDIRECTED_REQUEST => Err(Lost::NotDone(no_leader())),
            Ok(response) => Ok(response),
            Err(e) if e.outcome_unknown() => Err(Lost::MaybeDone(e.into())),
            Err(e) => Err(Lost::NotDone(e.into())),
        },
        () = lost => Err(Lost::MaybeDone(unknown())),
    }
}

/// Done when the leader of this status does not answer any more.
async fn gone(node: &Node, status: &Status) {
    match status.leader.zip(status.leader_peer()) {
        Some((id, peer)) => node.db.gone(id, &peer.address, LOST).await,
        None => std::future::pending().await,
    }
}

/// Whether another member has passed the request on already.
pub(super) fn is_forwarded(request: &Request) -> bool {
    request.headers().contains_key(PASSED_ON)
}

async fn wait_for(node: &Node, time: Duration, condition: impl Fn(&Status) -> bool) -> Option<Status> {
    wait_until(node, Instant::now() + time, condition).await
}

/// The first status for which the condition holds; none if there is none until then.
async fn wait_until(node: &Node, deadline: Instant, condition: impl Fn(&Status) -> bool) -> Option<Status> {
    let mut watch = node.db.status_watch();
    let wait = async { watch.wait_for(|status| condition(status)).await.map(|status| status.clone()) };
    tokio::time::timeout_at(deadline.into(), wait).await.ok()?.ok()
}

/// Sends the request to another member, with the headers that are the client's own, and returns its answer.
pub(super) async fn pass_on(client: &Client, request: Request) -> Result<Response, Error> {
    let (head, body) = buffered(request).await?;
    Ok(send(client, http::Request::from_parts(head, body)).await?)
}

/// The whole of a request, within its bound.
async fn buffered(request: Request) -> Result<(Parts, Bytes), Error> {
    let (mut head, body) = request.into_parts();
    let mut rest = Request::new(body);
    if let Some(bounds) = head.extensions.get::<BodyBounds>() {
        rest.extensions_mut().insert(*bounds);
    }
    let body = read_body(rest).await?;
    // It is told anew: the body may have come in pieces.
    head.headers.remove(CONTENT_LENGTH);
    Ok((head, body))
}

async fn send(client: &Client, mut request: http::Request<Bytes>) -> Result<Response, microcluster_client::Error> {
    keep_end_to_end(request.headers_mut());
    mark(&mut request);
    let patience = Patience::of_request(request.extensions());
    let answer = client.timeout(patience).forward(request).await?;
    let mut response = answer.map(Body::new);
    keep_end_to_end(response.headers_mut());
    Ok(response)
}

/// Marks a request as one that is passed on, and for whom.
pub(super) fn mark<B>(request: &mut http::Request<B>) {
    let caller = request.extensions().get::<Caller>().map_or(Caller::Anonymous, Caller::clone);
    request.headers_mut().insert(PASSED_ON, caller.to_header());
}

/// Removes the headers that are of one connection alone.
fn keep_end_to_end(headers: &mut HeaderMap) {
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE, EXPECT] {
        headers.remove(name);
    }
}

fn unknown() -> Error {
    Error::timeout("the leader was lost while it had the request; whether it was done is unknown")
}

fn misdirected() -> Error {
    Error::new(StatusCode::MISDIRECTED_REQUEST, "this member does not lead")
}

fn no_leader() -> Error {
    Error::unavailable("the cluster has no leader at the moment").retry_after(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::routes::WhileStopping;
    use crate::api::table::table;

    #[test]
    fn nobody_waits_less_than_what_is_waited_for_may_take() {
        let hook_timeout = Duration::from_secs(900);
        for route in table().iter().filter(|route| route.leader || route.target) {
            let Patience(patience) = Patience::of(route, hook_timeout);
            assert!(patience > HOOKS_MAX * hook_timeout, "{}: {patience:?}", route.path);
            let action = |timeout| Route { stop: WhileStopping::Refused, timeout, ..route.clone() };
            let timeout = Duration::from_secs(3600);
            assert!(Patience::of(&action(Some(timeout)), hook_timeout).0 > timeout);
            assert_eq!(Patience::of(&action(None), hook_timeout).0, ACTION_TIMEOUT);
        }
    }
}
