//! The database as a whole: the Raft transport, a connection that is upgraded and handed to it, and the comparison of the
//! members.

use std::sync::Arc;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::routes::Connection;
use crate::cluster::Node;
use microcluster_client::{MemberVerdict, Verdict, Verification};

use super::envelope::Answer;
use crate::db::{self, PROTOCOL};
use crate::error::Error;
use crate::state::State;

/// POST `/core/internal/database` with `Upgrade`
pub(super) async fn transport_open(state: State, mut request: Request) -> Result<Response, Error> {
    let node = state.joined_node()?;
    let asked = request.headers().get(UPGRADE).cloned();
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let (Some(asked), Some(upgrade), Version::HTTP_11) = (asked, upgrade, request.version()) else {
        return Err(Error::bad_request(format!(
            "this is where members open the Raft transport: HTTP/1.1 with `Upgrade: {PROTOCOL}`"
        )));
    };
    if asked != PROTOCOL {
        return Err(Error::bad_request(format!(
            "the Raft transport {asked:?} is not known here, {PROTOCOL} is; do the members run the same version?"
        )));
    }
    let connection = request.extensions().get::<Arc<Connection>>();
    let certificate = connection.and_then(|connection| connection.certificate);
    let certificate = certificate
        .ok_or_else(|| Error::bad_request("the Raft transport is opened on the cluster address, with a certificate"))?;
    node.transports().spawn("raft transport", {
        let node = node.clone();
        async move {
            let mut trust = node.trust.watch();
            let removed = trust.wait_for(|members| members.get(&certificate).is_none());
            tokio::select! {
                () = serve(&node, upgrade) => {}
                // A connection outlives the request that opened it: what it may do ends with its member.
                _ = removed => tracing::debug!(%certificate, "a Raft transport of a former member was closed"),
            }
        }
    });
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
    Ok(response)
}

/// PATCH `/core/internal/database`: a member was upgraded. The body of the answer is empty, without an envelope.
pub(super) async fn upgrade_notice(state: State) -> Result<Response, Error> {
    state.node()?.upgrade_seen();
    Ok(StatusCode::OK.into_response())
}

async fn serve(node: &Node, upgrade: OnUpgrade) {
    match upgrade.await {
        Ok(upgraded) => node.db.serve_peer(Box::new(TokioIo::new(upgraded))).await,
        Err(e) => tracing::debug!(error = %e, "a Raft transport was not opened"),
    }
}

/// POST `/core/1.0/database/verify`: whether the members hold the same; one that does not is rebuilt.
pub(super) async fn database_verify(state: State) -> Result<Answer<Verification>, Error> {
    let found = state.node()?.verify().await?;
    let wrong: Vec<_> = found.wrong().map(|(id, _, _)| *id).collect();
    let members = found.members.into_iter().map(|(id, peer, verdict)| {
        let (verdict, mut detail) = match verdict {
            db::Verdict::Same => (Verdict::Same, String::new()),
            db::Verdict::Different => (Verdict::Different, "its content is not that of the others".to_owned()),
            db::Verdict::Damaged(detail) => (Verdict::Damaged, detail),
            db::Verdict::Unknown(detail) => (Verdict::Unknown, detail),
        };
        match verdict {
            Verdict::Different | Verdict::Damaged if wrong.contains(&id) => {
                detail.push_str("; it is rebuilt from them")
            }
            Verdict::Different | Verdict::Damaged => detail.push_str("; no majority says who is right"),
            Verdict::Same | Verdict::Unknown => {}
        }
        MemberVerdict { name: peer.name, address: peer.address, verdict, detail }
    });
    Ok(Answer(Verification {
        index: found.index,
        digest: found.digest.unwrap_or_default(),
        members: members.collect(),
    }))
}
