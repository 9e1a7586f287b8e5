//! A joiner presents its token: the members named in it are tried in turn.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Method;
use microcluster_client::{Address, Client, Error, Identity, JoinRequest, JoinResponse, ServerTrust, TlsError};

use super::in_turn::PATIENCE;
use crate::error::Chain;
use crate::state::InitError;
use crate::token::JoinToken;

/// How long one member may take. It may have to wait for a leader.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long one member may take to show that it is there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long it is waited for that before another member is tried beside it.
const PROBE_PATIENCE: Duration = Duration::from_millis(50);
/// For how long another round is begun when the cluster says that it cannot at the moment.
const AGAIN_FOR: Duration = Duration::from_secs(5);
/// Pause between two rounds.
const PAUSE: Duration = Duration::from_millis(200);
const PATH: &str = "/core/internal/cluster";

/// Presents a joiner. The certificate of who answers is compared with the token before anything is
/// sent: the secret goes to the cluster that made it, or nowhere.
pub(super) async fn present(
    token: &JoinToken,
    identity: &Identity,
    request: &JoinRequest,
) -> Result<JoinResponse, InitError> {
    let begun = Instant::now();
    loop {
        let failed = match present_once(token, identity, request).await {
            Ok(response) => return Ok(response),
            Err(e) => e,
        };
        // A leader that was lost meanwhile: presenting oneself twice is as good as once.
        let is_passing = matches!(failed, InitError::Refused { code: 503 | 504, .. });
        if !is_passing || begun.elapsed() >= AGAIN_FOR {
            return Err(failed);
        }
        tracing::debug!(error = %Chain(&failed), "not admitted yet");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Tries each member once, and the next one too when one does not answer soon: being admitted twice is as good as once.
async fn present_once(
    token: &JoinToken,
    identity: &Identity,
    request: &JoinRequest,
) -> Result<JoinResponse, InitError> {
    let trust = ServerTrust::Pinned(token.fingerprint);
    let mut failures = Failures::default();
    let mut to_try: VecDeque<Address> = token.join_addresses.iter().copied().collect();
    let (is_reached, mut last) = (AtomicBool::new(false), Instant::now());
    let is_reached = &is_reached;
    let mut tried = FuturesUnordered::new();
    loop {
        // One that has shown that it is there may take its time.
        let patience = if is_reached.load(Ordering::Relaxed) { PATIENCE } else { PROBE_PATIENCE };
        let is_late = tried.is_empty() || last.elapsed() >= patience;
        if is_late && let Some(address) = to_try.pop_front() {
            last = Instant::now();
            let client = match Client::tls(address, Some(identity), &trust) {
                Ok(client) => client,
                Err(Error::Tls { source, .. }) => return Err(source.into()),
                Err(e) => {
                    return Err(InitError::BadAnswer { reason: e.to_string() });
                }
            };
            tried.push(async move { (address, present_to(&client, request, is_reached).await) });
        }
        tokio::select! {
            biased;
            Some((address, answer)) = tried.next() => match answer {
                Ok(response) => return checked(response),
                Err(e) => failures.add(address, e)?,
            },
            () = tokio::time::sleep(PROBE_PATIENCE), if !to_try.is_empty() => {}
            else => {}
        }
        if to_try.is_empty() && tried.is_empty() {
            return Err(failures.worst());
        }
    }
}

async fn present_to(client: &Client, request: &JoinRequest, is_reached: &AtomicBool) -> Result<JoinResponse, Error> {
    // One that is stopped or cut off costs little time: it does not answer this either.
    client.timeout(PROBE_TIMEOUT).status().await?;
    is_reached.store(true, Ordering::Relaxed);
    client.timeout(TIMEOUT).query::<JoinResponse>(Method::POST, PATH, request).await
}

/// Why no member has admitted the joiner so far.
#[derive(Default)]
struct Failures {
    not_now: Option<InitError>,
    other_cluster: Option<Address>,
    tried: Vec<String>,
}

impl Failures {
    /// Notes a failure, or ends the search: the cluster has refused, others would do the same.
    fn add(&mut self, address: Address, error: Error) -> Result<(), InitError> {
        match error {
            Error::Status { code, message, retry_after } => {
                let refused = InitError::Refused { code, message, retry_after };
                if code < 500 {
                    return Err(refused);
                }
                self.not_now = Some(refused);
            }
            Error::Tls { source: TlsError::WrongCertificate { .. }, .. } => {
                self.other_cluster = Some(address);
            }
            Error::Body { source, .. } => {
                return Err(InitError::BadAnswer { reason: source.to_string() });
            }
            error => self.tried.push(Chain(&error).to_string()),
        }
        Ok(())
    }

    /// The failure that says most.
    fn worst(self) -> InitError {
        match (self.not_now, self.other_cluster) {
            (Some(refused), _) => refused,
            (None, Some(address)) => InitError::OtherCluster { address },
            (None, None) => InitError::Unreachable { tried: self.tried },
        }
    }
}

/// The answer of somebody who has the certificate in the token. The cluster's present one may be another by
/// now: it can be replaced while a member that is behind answers.
fn checked(response: JoinResponse) -> Result<JoinResponse, InitError> {
    if response.member_id == 0 {
        let reason = "it gives no id to the new member; does it run another implementation?".into();
        return Err(InitError::BadAnswer { reason });
    }
    Ok(response)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use microcluster_client::{Fingerprint, Server};

    use super::*;

    fn status(code: u16) -> Error {
        Error::Status { code, message: format!("refused with {code}"), retry_after: None }
    }

    #[test]
    fn a_refusal_of_the_cluster_ends_the_search() {
        let address: Address = "127.0.0.1:9001".parse().unwrap();
        let mut failures = Failures::default();
        assert!(failures.add(address, status(503)).is_ok());
        let refused = failures.add(address, status(404)).unwrap_err();
        assert!(matches!(refused, InitError::Refused { code: 404, .. }));
    }

    #[test]
    fn the_failure_that_says_most_is_reported() {
        let address: Address = "127.0.0.1:9001".parse().unwrap();
        let late = || Error::Timeout { server: Server::Tls(address), after: TIMEOUT };
        let (presented, pinned) = (Fingerprint::of_der(b"a"), Fingerprint::of_der(b"b"));
        let other =
            || Error::Tls { server: Server::Tls(address), source: TlsError::WrongCertificate { presented, pinned } };
        let mut failures = Failures::default();
        failures.add(address, late()).unwrap();
        assert!(matches!(failures.worst(), InitError::Unreachable { tried } if tried.len() == 1));
        let mut failures = Failures::default();
        failures.add(address, late()).unwrap();
        failures.add(address, other()).unwrap();
        assert!(matches!(failures.worst(), InitError::OtherCluster { .. }));
        let mut failures = Failures::default();
        failures.add(address, other()).unwrap();
        failures.add(address, status(503)).unwrap();
        assert!(matches!(failures.worst(), InitError::Refused { code: 503, .. }));
    }
}
