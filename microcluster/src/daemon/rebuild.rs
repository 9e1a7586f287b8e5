//! Rebuilding this member from the others when its files are damaged: it is taken in again under a new id, leaves
//! its files aside, and goes on like a joiner.
//!
//! A crash at any moment is harmless: damaged files are found again at the next start, or are condemned by a mark beside
//! them; once they are aside, a member without files is a damaged one; and from the join record on it is a join.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Method;
use microcluster_client::{Address, Error, Name};

use super::in_turn::InTurn;
use super::{Core, CoreShared};
use crate::cluster::join::{JoinRecord, Step};
use crate::cluster::rebuild::{Readmission, RebuildRequest};
use crate::cluster::{Node, Peers};
use crate::db::NodeId;
use crate::error::Chain;
use crate::state::{InitError, Lifecycle, NotNow};
use crate::tasks::blocking;

/// How long one member may take: it waits for a majority without this one.
const ASK_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one may take to say that it is there.
const REACH_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause between two rounds of asking: at first, and at most.
const ASK_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// A member with damaged files, and how the others are reached.
pub(super) struct Damaged {
    pub id: NodeId,
    pub name: Name,
    pub address: Address,
    pub peers: Peers,
    pub others: Vec<Address>,
    /// This member as it runs, if it does.
    pub node: Option<Arc<Node>>,
}

impl Core {
    /// Rebuilds the running member, unless it is alone.
    pub(super) fn begin_rebuild(&self, reason: String) {
        let shared = self.shared.clone();
        let Lifecycle::Member(node) = shared.state.lifecycle() else {
            return;
        };
        let damaged = Damaged::running(&node);
        if damaged.others.is_empty() {
            tracing::error!(reason, "the database is damaged, and there is no other member to rebuild it from");
            return;
        }
        tracing::error!(reason, "the database is damaged; rebuilding it from the other members");
        // Raft goes on until the others have agreed to do without it; nobody reads from the damaged state any more.
        shared.state.set_lifecycle(Lifecycle::Initialising(Some(node.clone())));
        shared.is_rebuilding.store(true, Ordering::Relaxed);
        self.shared.changes.spawn("rebuild", async move {
            // On disk before the others are asked: once they have agreed, this id is nobody's any more.
            node.db.condemn_own(reason).await;
            shared.rebuild(damaged).await;
        });
    }
}

impl CoreShared {
    /// Rebuilds this member. It ends as a member, as no member, or with the daemon.
    pub(super) async fn rebuild(&self, damaged: Damaged) {
        self.is_rebuilding.store(true, Ordering::Relaxed);
        let rebuilt = match damaged.ask(self).await {
            Ok(readmission) => self.start_again(damaged, readmission).await,
            Err(InitError::Gone) => {
                self.is_rebuilding.store(false, Ordering::Relaxed);
                tracing::error!(member = %damaged.name, "this member was removed from its cluster and forgets it");
                self.undo().await;
                return;
            }
            Err(e) => Err(e),
        };
        match rebuilt {
            Ok(()) => tracing::info!("this member was rebuilt"),
            Err(InitError::NotNow(NotNow::ShuttingDown)) => {}
            Err(e) => tracing::error!(error = %Chain(&e), "the rebuild failed; it goes on at the next start"),
        }
    }

    async fn start_again(&self, damaged: Damaged, readmission: Readmission) -> Result<(), InitError> {
        self.state.set_lifecycle(Lifecycle::Initialising(None));
        self.stop_member(Duration::ZERO).await;
        let dir = self.state.dir().clone();
        // Before the record of the join: files of the old id must not be opened under the new one.
        blocking("damaged database", move || dir.set_database_aside()).await??;
        let Readmission { welcome, secret } = readmission;
        let record = JoinRecord {
            id: welcome.member_id,
            name: damaged.name,
            address: damaged.address,
            config: Default::default(),
            secret,
            cluster_cert: welcome.cluster_cert,
            cluster_key: welcome.cluster_key,
            members: welcome.cluster_members,
            is_rebuild: true,
            is_agreed: false,
        };
        self.write_record(&record).await?;
        self.is_rebuilding.store(false, Ordering::Relaxed);
        self.carry_on(record, Step::Reopen, None).await
    }
}

impl Damaged {
    fn running(node: &Arc<Node>) -> Damaged {
        let trusted = node.trust.current();
        let others = trusted.iter().filter(|member| member.name != node.name).map(|member| member.address).collect();
        Damaged {
            id: node.id,
            name: node.name.clone(),
            address: node.address,
            peers: node.peers.clone(),
            others,
            node: Some(node.clone()),
        }
    }

    /// Another one is to lead: only a leader can take this member in again.
    async fn hand_over(&self) {
        if let Some(node) = &self.node
            && node.db.status().is_leader()
            && let Err(e) = node.db.transfer_leadership().await
        {
            tracing::warn!(error = %e, "leadership was not handed over");
        }
    }

    async fn ask_one(&self, address: Address, path: &str) -> (Address, Result<Readmission, Error>) {
        let client = self.peers.client(address);
        // It waits for a majority: who is not there at all is not waited for so long.
        if let Err(e) = client.timeout(REACH_TIMEOUT).status().await
            && e.code().is_none()
        {
            return (address, Err(e));
        }
        let request = RebuildRequest { member_id: self.id };
        (address, client.timeout(ASK_TIMEOUT).query(Method::POST, path, request).await)
    }

    /// Asks the other members in turn to be taken in again, until one says yes or that this is no member any more.
    async fn ask(&self, core: &CoreShared) -> Result<Readmission, InitError> {
        let path = format!("/core/internal/cluster/{}/rebuild", self.name);
        let mut pause = ASK_PAUSE.0;
        while !core.changes.is_stopping() {
            self.hand_over().await;
            let mut strangers = 0;
            // Who is asked beside another one gives the same answer.
            let mut asked = InTurn::new(self.others.iter().copied());
            while let Some((address, answer)) = asked.next(|address| self.ask_one(address, &path)).await {
                match answer {
                    Ok(readmission) => return Ok(readmission),
                    Err(e) if e.code() == Some(404) => return Err(InitError::Gone),
                    Err(e) if e.code() == Some(403) => strangers += 1,
                    Err(e) => tracing::warn!(%address, error = %Chain(&e), "cannot be rebuilt from this member yet"),
                }
            }
            // None of them trusts this member's certificate any more: it was removed.
            if strangers == self.others.len() {
                return Err(InitError::Gone);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(ASK_PAUSE.1);
        }
        Err(InitError::NotNow(NotNow::ShuttingDown))
    }
}
