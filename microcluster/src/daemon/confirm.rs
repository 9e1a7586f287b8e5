//! A joiner asks to be taken in: the members in turn, and the next one too when one does not answer soon.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Method;
use microcluster_client::MemberLocal;

use super::in_turn::PATIENCE;
use crate::cluster::join::{Claim, JoinRecord};
use crate::cluster::{Confirmation, HookRefusal, Node};
use crate::error::Chain;
use crate::state::{InitError, NotNow};
use crate::tasks::Tasks;

/// Pause between two rounds: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Asks until a member says yes or no: from now on this joiner may be needed for a quorum, so it does not give up
/// by itself. `timeout` is for one member and one try.
pub(super) async fn confirm(
    record: &JoinRecord,
    claim: &Claim,
    node: &Node,
    timeout: Duration,
    changes: &Tasks,
) -> Result<(), InitError> {
    tokio::select! {
        () = changes.stopping() => Err(InitError::NotNow(NotNow::ShuttingDown)),
        answer = ask_all(record, claim, node, timeout) => answer,
    }
}

async fn ask_all(record: &JoinRecord, claim: &Claim, node: &Node, timeout: Duration) -> Result<(), InitError> {
    let path = format!("/core/internal/cluster/{}/confirm", record.name);
    let path = path.as_str();
    let ask = |member: MemberLocal| async move {
        let client = node.peers.client(member.address).timeout(timeout);
        let answer = client.query::<Confirmation>(Method::POST, path, claim).await;
        (member, answer)
    };
    let mut to_ask: VecDeque<MemberLocal> = record.members.iter().cloned().collect();
    let (mut to_ask_again, mut denied) = (VecDeque::new(), BTreeSet::new());
    let (mut asked, mut pause) = (FuturesUnordered::new(), PAUSE.0);
    loop {
        asked.extend(to_ask.pop_front().map(ask));
        tokio::select! {
            Some((member, answer)) = asked.next() => match answer {
                Ok(Confirmation { refused: None }) => return Ok(()),
                Ok(Confirmation { refused: Some(HookRefusal { code, message }) }) => {
                    return Err(InitError::NotTakenIn { code, message });
                }
                // Believed of those alone who are of this cluster, or of all: a joiner that votes throws its log away then.
                Err(e) if e.code() == Some(404) && node.is_of_this_cluster(member.address).await => {
                    return Err(InitError::Gone);
                }
                Err(e) if e.code() == Some(404) => {
                    denied.insert(member.address);
                    if record.members.iter().all(|member| denied.contains(&member.address)) {
                        return Err(InitError::Gone);
                    }
                    to_ask_again.push_back(member);
                }
                Err(e) => {
                    tracing::debug!(member = %member.name, error = %Chain(&e), "not confirmed yet");
                    to_ask_again.push_back(member);
                }
            },
            () = tokio::time::sleep(PATIENCE), if !to_ask.is_empty() => {}
            () = tokio::time::sleep(pause), if to_ask.is_empty() && !to_ask_again.is_empty() => {
                to_ask.append(&mut to_ask_again);
                pause = (pause * 2).min(PAUSE.1);
            }
            // The leader has named nobody.
            else => return Err(InitError::Unreachable { tried: Vec::new() }),
        }
    }
}
