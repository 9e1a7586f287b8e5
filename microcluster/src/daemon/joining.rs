//! The joiner: carries out the steps that `cluster::join` decides on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use microcluster_client::{Empty, JoinRequest, MemberLocal};
use tokio::net::TcpListener;

use super::CoreShared;
use super::confirm::confirm;
use super::in_turn::InTurn;
use super::initialise::is_passing;
use super::member::{Identity, versions};
use super::present::present;
use crate::cluster::certificates::CLUSTER;
use crate::cluster::join::{Claim, JoinRecord, Outcome, Step, Versions};
use crate::cluster::members;
use crate::cluster::{HookError, Node};
use crate::config::MemberConfig;
use crate::db::Consistency;
use crate::error::Chain;
use crate::hooks::Event;
use crate::listener;
use crate::state::{InitError, InitRequest, Lifecycle, NotNow};
use crate::state_dir::{FileError, MODE_SECRET, read_file, remove_file, sync_directory, write_file};
use crate::tasks::blocking;
use crate::tls::{KeyPair, SharedPair, install};
use crate::trust::{Trust, TrustSet, TrustedMember};

/// Pause before something is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How long the leader may take to let the joiner catch up, for one try, beside the hooks of the members.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a confirmed joiner waits to see itself as a member.
const AWAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a member may take to have one removed that has just joined, beside its hooks.
const WITHDRAW_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a member may take to forget a joiner that gives up.
const DROP_TIMEOUT: Duration = Duration::from_secs(2);

/// A join under way: what is remembered on disk, and what is open.
struct Joining<'a> {
    core: &'a CoreShared,
    record: JoinRecord,
    /// The bound address, until it is served.
    tcp: Option<TcpListener>,
    node: Option<Arc<Node>>,
    /// Why it is being undone or suspended.
    cause: Option<InitError>,
}

impl CoreShared {
    /// Joins a cluster by a token.
    pub(super) async fn join(&self, request: InitRequest, tcp: TcpListener, server: KeyPair) -> Result<(), InitError> {
        match self.be_admitted(&request, &server).await {
            Ok(record) => {
                self.reached("presented");
                self.carry_on(record, Step::Record, Some(tcp)).await
            }
            Err(e) => {
                drop(tcp);
                self.become_uninitialised().await;
                Err(e)
            }
        }
    }

    /// Goes on with a join that a stop of the daemon interrupted.
    pub(super) async fn resume_join(&self, record: JoinRecord) {
        tracing::info!(member = %record.name, id = record.id, "going on with a join");
        if let Err(e) = self.carry_on(record, Step::Reopen, None).await {
            tracing::error!(error = %Chain(&e), "the join failed");
        }
    }

    async fn be_admitted(&self, request: &InitRequest, server: &KeyPair) -> Result<JoinRecord, InitError> {
        let Some(token) = &request.token else {
            return Err(InitError::Token(crate::token::TokenError::Empty));
        };
        let Versions { schema_internal, schema_external, extensions } = versions(&self.state);
        let joiner = JoinRequest {
            name: request.name.clone(),
            address: request.address,
            certificate: server.certificate.pem.clone(),
            schema_internal_version: schema_internal,
            schema_external_version: schema_external,
            extensions,
            secret: token.secret.clone(),
        };
        let answer = present(token, &server.identity(), &joiner).await?;
        Ok(JoinRecord {
            id: answer.member_id,
            name: request.name.clone(),
            address: request.address,
            config: request.config.clone(),
            secret: token.secret.clone(),
            cluster_cert: answer.cluster_cert,
            cluster_key: answer.cluster_key,
            members: answer.cluster_members,
            is_rebuild: false,
            is_agreed: false,
        })
    }

    pub(super) async fn carry_on(
        &self,
        record: JoinRecord,
        first: Step,
        tcp: Option<TcpListener>,
    ) -> Result<(), InitError> {
        let mut joining = Joining { core: self, record, tcp, node: None, cause: None };
        let mut step = first;
        while !step.is_final() {
            tracing::debug!(?step, member = %joining.record.name, "joining");
            let outcome = joining.take(step).await;
            if let (Some(done), Outcome::Done) = (step.done(), outcome) {
                self.reached(done);
            }
            let next = step.next(outcome);
            if next == Step::Suspended && !self.changes.is_stopping() {
                // Only the leader can say that this is no member; until one can be asked, it goes on waiting.
                tokio::time::sleep(RETRY_PAUSE).await;
                step = step.again();
            } else {
                step = next;
            }
        }
        match (step, joining.cause) {
            (Step::Joined, _) => Ok(()),
            (_, Some(cause)) => Err(cause),
            (_, None) => Err(InitError::NotNow(NotNow::ShuttingDown)),
        }
    }
}

impl CoreShared {
    /// Remembers a join: from here on it goes on after a restart.
    pub(super) async fn write_record(&self, record: &JoinRecord) -> Result<(), InitError> {
        let (path, record) = (self.state.dir().join_record(), record.clone());
        blocking("join record", move || -> Result<(), InitError> {
            let unwritable = |e: serde_json::Error| FileError { action: "write", path: path.clone(), source: e.into() };
            let json = serde_json::to_vec(&record).map_err(unwritable)?;
            Ok(write_file(&path, &json, MODE_SECRET)?)
        })
        .await?
    }
}

/// Asks a member to see to it that the leader forgets this joiner. May be repeated.
async fn ask_to_drop<'a>(
    node: &Node,
    member: &'a MemberLocal,
    path: &str,
    timeout: Duration,
    claim: Claim,
) -> (&'a MemberLocal, Result<Empty, microcluster_client::Error>) {
    let client = node.peers.client(member.address).timeout(timeout);
    (member, client.query::<Empty>(Method::POST, path, claim).await)
}

/// Done when this replica has, with all that is committed, that this is a member.
async fn is_taken_in(node: &Node) {
    loop {
        tokio::time::sleep(RETRY_PAUSE).await;
        if node.db.linearize().await.is_ok()
            && let Ok(rows) = node.db.read(Consistency::Local, members::all).await
            && rows.iter().any(|row| row.id == node.id && row.role.is_full())
        {
            return;
        }
    }
}

impl Joining<'_> {
    async fn take(&mut self, step: Step) -> Outcome {
        let done = match step {
            Step::Record => self.core.write_record(&self.record).await,
            Step::Open | Step::Reopen => self.open().await,
            Step::Confirm => self.confirm().await,
            Step::Await => self.await_membership().await,
            Step::Commit => self.commit().await,
            Step::Withdraw => self.withdraw().await,
            Step::Undo => {
                self.undo().await;
                Ok(())
            }
            Step::Joined | Step::NotJoined | Step::Suspended => Ok(()),
        };
        match done {
            Ok(()) => Outcome::Done,
            Err(e) => {
                tracing::warn!(?step, error = %Chain(&e), "a join does not go on");
                let outcome = match e {
                    InitError::Gone | InitError::NotTakenIn { .. } => Outcome::Gone,
                    InitError::Hook(HookError::Stopped { .. }) => Outcome::Failed,
                    InitError::Hook(_) => Outcome::Refused,
                    _ => Outcome::Failed,
                };
                // What a withdrawal runs into is not why it is one.
                if step != Step::Withdraw {
                    self.cause = Some(e);
                }
                outcome
            }
        }
    }

    /// Opens the database and serves the address: the leader brings the log over it.
    async fn open(&mut self) -> Result<(), InitError> {
        let record = &self.record;
        let address = record.address;
        let tcp = match self.tcp.take() {
            Some(tcp) => tcp,
            None => {
                listener::bind(address.socket_addr()).await.map_err(|source| InitError::Listen { address, source })?
            }
        };
        let cluster = KeyPair::parse(&record.cluster_cert, &record.cluster_key)?;
        let trusted = self.trusted()?;
        let (dir, pair, cache) = (self.core.state.dir().clone(), cluster.clone(), trusted.clone());
        let fresh = MemberConfig::new(record.id, record.name.clone(), address);
        let config = blocking("cluster certificate", move || -> Result<MemberConfig, FileError> {
            install(&dir, CLUSTER, &SharedPair::own(pair), true)?;
            cache.store(&dir.truststore())?;
            // A member that is rebuilt keeps what an operator has set.
            let before = read_file(&dir.daemon_config())?;
            let before = before.and_then(|text| serde_norway::from_str::<MemberConfig>(&text).ok());
            Ok(match before {
                Some(before) => {
                    MemberConfig { servers: before.servers, failure_domain: before.failure_domain, ..fresh }
                }
                None => fresh,
            })
        })
        .await??;
        let identity = Identity { config, is_member: false, trust: Trust::new(trusted), cluster };
        let node = self.core.open_node(identity).await?;
        if let Err(e) = self.core.serve(&node, tcp).await {
            // The next try opens it again.
            node.db.shutdown().await;
            return Err(e);
        }
        self.core.state.set_lifecycle(Lifecycle::Initialising(Some(node.clone())));
        self.node = Some(node);
        Ok(())
    }

    /// Asks to be taken in.
    async fn confirm(&self) -> Result<(), InitError> {
        let (node, claim) = (self.node()?, self.claim());
        let timeout = CONFIRM_TIMEOUT + self.core.state.settings().hook_timeout;
        tokio::select! {
            confirmed = confirm(&self.record, &claim, &node, timeout, &self.core.changes) => confirmed,
            // It may lead itself by now, and then nobody else can say so.
            () = is_taken_in(&node) => Ok(()),
        }
    }

    /// Waits until this replica has this member's own row.
    async fn await_membership(&self) -> Result<(), InitError> {
        let node = self.node()?;
        let (id, begun) = (self.record.id, Instant::now());
        let mut changes = node.db.changes();
        loop {
            let is_member = match node.db.linearize().await {
                Ok(()) => {
                    let rows = node.db.read(Consistency::Local, members::all).await?;
                    // Without a row: the leader knows whether it is gone, and is asked again.
                    let own = rows.iter().find(|row| row.id == id).ok_or(InitError::StillJoining)?;
                    own.role.is_full()
                }
                Err(e) if is_passing(&e) => false,
                Err(e) => return Err(e.into()),
            };
            if is_member {
                return Ok(());
            }
            if self.core.changes.is_stopping() {
                return Err(InitError::NotNow(NotNow::ShuttingDown));
            }
            if begun.elapsed() > AWAIT_TIMEOUT {
                return Err(InitError::StillJoining);
            }
            // Whether something changed or not: look again after a while.
            let _ = tokio::time::timeout(RETRY_PAUSE, changes.changed()).await;
        }
    }

    /// From here on this is a member's state directory.
    async fn commit(&mut self) -> Result<(), InitError> {
        let node = self.node()?;
        node.look_at_versions().await?;
        if !self.record.is_agreed && !self.record.is_rebuild {
            // The product finds its database as it needs it.
            tokio::select! {
                () = self.core.changes.stopping() => return Err(InitError::NotNow(NotNow::ShuttingDown)),
                // One that was removed meanwhile never is.
                () = tokio::time::sleep(AWAIT_TIMEOUT) => return Err(InitError::StillJoining),
                () = node.is_usable() => {}
            }
            let event = Event::PostJoin { config: self.record.config.clone() };
            self.core.run_hook(Some(&node), event).await?;
            self.record.is_agreed = true;
            self.core.write_record(&self.record).await?;
        }
        // From here on the join is not undone any more.
        node.spend_own_token().await?;
        self.core.reached("token spent");
        node.config.store().await?;
        self.core.reached("stored");
        let dir = self.core.state.dir().clone();
        blocking("join record", move || {
            remove_file(&dir.join_record())?;
            sync_directory(dir.path())
        })
        .await??;
        self.core.become_member(&node).await;
        tracing::info!(member = %node.name, id = node.id, "joined the cluster");
        Ok(())
    }

    /// Asks the members in turn to remove this one, until one says that it is done: until then this log is needed.
    async fn withdraw(&mut self) -> Result<(), InitError> {
        let node = self.node()?;
        let path = format!("/core/internal/cluster/{}/drop", self.record.name);
        let timeout = WITHDRAW_TIMEOUT + self.core.state.settings().hook_timeout;
        while !self.core.changes.is_stopping() {
            if node.db.status().is_leader()
                && let Err(e) = node.db.transfer_leadership().await
            {
                // Only another one can remove this one.
                tracing::warn!(error = %e, "leadership was not handed over");
            }
            let mut asked = InTurn::new(&self.record.members);
            let ask = |member| ask_to_drop(&node, member, &path, timeout, self.claim());
            while let Some((member, answer)) = asked.next(ask).await {
                match answer {
                    // That it is out is believed of those alone who are of this cluster: its log goes with that.
                    Ok(Empty {}) if node.is_of_this_cluster(member.address).await => return Ok(()),
                    // Its certificate is nobody's any more: it was removed.
                    Err(e) if e.code() == Some(403) && node.is_of_this_cluster(member.address).await => return Ok(()),
                    // Its token is spent or revoked: the join is not undone any more, and goes on without asking the product again.
                    Err(e) if e.code() == Some(409) => {
                        tracing::warn!(error = %Chain(&e), "the product refuses, and this is a member nevertheless");
                        self.record.is_agreed = true;
                        return Err(InitError::StillJoining);
                    }
                    Ok(Empty {}) => {}
                    Err(e) => tracing::debug!(member = %member.name, error = %Chain(&e), "not removed yet"),
                }
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        Err(InitError::NotNow(NotNow::ShuttingDown))
    }

    /// Tells the cluster, best effort, and leaves nothing here.
    async fn undo(&self) {
        let is_known = matches!(self.cause, Some(InitError::Gone | InitError::NotTakenIn { .. } | InitError::Hook(_)));
        if !is_known && let Some(node) = &self.node {
            let path = format!("/core/internal/cluster/{}/drop", self.record.name);
            let mut asked = InTurn::new(&self.record.members);
            let ask = |member| ask_to_drop(node, member, &path, DROP_TIMEOUT, self.claim());
            while let Some((_, answer)) = asked.next(ask).await {
                if answer.is_ok() {
                    break;
                }
            }
        }
        self.core.undo().await;
    }

    fn claim(&self) -> Claim {
        Claim { member_id: self.record.id, secret: self.record.secret.clone() }
    }

    fn node(&self) -> Result<Arc<Node>, InitError> {
        self.node.clone().ok_or(InitError::NotNow(NotNow::Starting))
    }

    /// The members that admitted this one, and itself.
    fn trusted(&self) -> Result<TrustSet, InitError> {
        let own = MemberLocal {
            name: self.record.name.clone(),
            address: self.record.address,
            certificate: self.core.state.server_certificate().current().certificate.pem,
        };
        let all = self.record.members.iter().cloned().chain([own]);
        all.map(|member| TrustedMember::new(member).map_err(|e| InitError::BadAnswer { reason: e.to_string() }))
            .collect()
    }
}
