//! Certificates: replaced on this daemon before initialisation, on all members afterwards.

use microcluster_client::{Empty, KeyPair, Name, Timestamp};

use super::envelope::{Answer, EMPTY};
use super::extract::{Body, PathName};
use crate::cluster::certificates::CLUSTER;
use crate::error::Error;
use crate::state::State;
use crate::tls::check;

/// The name of a daemon's own certificate.
const SERVER: &str = "server";
/// What cannot be the name of an additional server.
const RESERVED: [&str; 2] = ["core", "unix"];
/// Longest name of an additional server that has a certificate: it is the name of files.
const NAME_LENGTH_MAX: usize = 200;

/// PUT `/core/1.0/cluster/certificates/{name}`
pub(super) async fn certificate_set(
    state: State,
    PathName(name): PathName,
    Body(given): Body<KeyPair>,
) -> Result<Answer<Empty>, Error> {
    check_name(&name)?;
    let shared = check(&given.cert, &given.key, &given.ca, Timestamp::now())?;
    if name.as_str() == SERVER {
        state.set_server_certificate(shared).await?;
    } else {
        state.node()?.set_certificate(name.as_str(), &shared).await?;
    }
    Ok(EMPTY)
}

/// POST `/core/internal/certificates`: one was replaced. The log is the truth: this has it put in place.
pub(super) async fn certificates_nudge(state: State) -> Result<Answer<Empty>, Error> {
    let node = state.node()?;
    node.db.linearize().await?;
    node.install_certificates().await?;
    Ok(EMPTY)
}

fn check_name(name: &Name) -> Result<(), Error> {
    let text = name.as_str();
    if RESERVED.contains(&text) {
        let own = format!("{CLUSTER}, {SERVER}, or the name of an additional server");
        return Err(Error::bad_request(format!(
            "{name} is no name of a certificate; it is reserved. Possible are {own}"
        )));
    }
    if text.len() > NAME_LENGTH_MAX {
        let message = format!("a server with its own certificate has a name of at most {NAME_LENGTH_MAX} characters");
        return Err(Error::bad_request(message));
    }
    Ok(())
}
