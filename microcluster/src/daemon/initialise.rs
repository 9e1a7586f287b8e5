//! Bootstrap, and the frame around bootstrap and join: what is asked for, answered, and undone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use microcluster_client::{Address, MemberLocal, Timestamp};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::CoreShared;
use super::certificates::{check_server_can_carry, ensure_server_carries};
use super::member::{Identity, versions};
use super::servers::NotOpened;
use crate::cluster::Node;
use crate::cluster::certificates::{self, CLUSTER, CertificateRow};
use crate::cluster::join::Versions;
use crate::cluster::members::{self, NewMember, RowRole};
use crate::config::MemberConfig;
use crate::db::{self, NodeId, Peer};
use crate::error::{Chain, Fatal};
use crate::hooks::Event;
use crate::listener;
use crate::state::{InitError, InitRequest, Lifecycle};
use crate::steps;
use crate::tasks::blocking;
use crate::tls::{Generate, KeyPair, SharedPair, install};
use crate::trust::{Trust, TrustedMember};

/// The id of the member that begins a cluster.
const FIRST_ID: NodeId = 1;
/// The name in every cluster certificate, beside the address of the member that made it. Members
/// pin the certificate; the name is for tools that insist on one.
const CLUSTER_NAME: &str = "cluster.microcluster";
/// How long a caller waits for a join, beside the hooks that it has run one after the other. It goes on after that.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
const HOOKS_MAX: u32 = 4;

impl CoreShared {
    /// Bootstraps or joins, and answers. Whatever happens, the daemon is a member, a joiner, or
    /// uninitialised afterwards.
    pub(super) async fn initialise(
        self: Arc<Self>,
        request: InitRequest,
        answer: oneshot::Sender<Result<(), InitError>>,
    ) {
        let hooks = self.state.settings().hook_timeout.saturating_mul(HOOKS_MAX);
        let run = self.bootstrap_or_join(request);
        let mut run = std::pin::pin!(run);
        // Dropped with the daemon's state when this task is: the caller is told then.
        let ended = tokio::time::timeout(ANSWER_TIMEOUT.saturating_add(hooks), run.as_mut()).await;
        match ended {
            Ok(ended) => {
                answer.send(ended).ok();
            }
            Err(_) => {
                answer.send(Err(InitError::StillJoining)).ok();
                if let Err(e) = run.await {
                    tracing::error!(error = %Chain(&e), "the join failed");
                }
            }
        }
    }

    async fn bootstrap_or_join(&self, request: InitRequest) -> Result<(), InitError> {
        let (tcp, server) = match self.begin_initialisation(&request).await {
            Ok(begun) => begun,
            Err(e) => {
                self.become_uninitialised().await;
                return Err(e);
            }
        };
        if request.token.is_some() {
            return self.join(request, tcp, server).await;
        }
        let begun = self.bootstrap(&request, tcp, &server).await;
        if let Err(e) = begun {
            tracing::warn!(error = %Chain(&e), "the bootstrap failed and is undone");
            self.undo().await;
            return Err(e);
        }
        Ok(())
    }

    /// The part of a bootstrap or a join that is on this machine alone: nobody else is bothered with a request that cannot succeed.
    async fn begin_initialisation(&self, request: &InitRequest) -> Result<(TcpListener, KeyPair), InitError> {
        let address = request.address;
        self.check_address(address)?;
        check_server_can_carry(&self.state, &request.name)?;
        self.make_way_for(address).await;
        let tcp =
            listener::bind(address.socket_addr()).await.map_err(|source| InitError::Listen { address, source })?;
        // Nothing was changed up to here, and where the product does not agree nothing is.
        self.ask_product(request).await?;
        // They answer that there is no member yet; what matters is that they can be opened.
        self.servers.open_all(&BTreeMap::new()).await?;
        let server = ensure_server_carries(&self.state, &request.name).await?;
        Ok((tcp, server))
    }

    /// Whether no server of the product is in the way of a cluster address. The pre-init address makes way for it.
    fn check_address(&self, address: Address) -> Result<(), InitError> {
        match self.state.settings().servers.iter().find(|(_, at)| at.overlaps(address)) {
            Some((name, at)) => {
                Err(InitError::AddressTaken { address, taken: format!("the server {name} is to listen on {at}") })
            }
            None => Ok(()),
        }
    }

    /// Has the product agree before anything is changed here or told to anybody.
    async fn ask_product(&self, request: &InitRequest) -> Result<(), InitError> {
        let (bootstrap, config) = (request.token.is_none(), request.config.clone());
        self.run_hook(None, Event::PreInit { bootstrap, config: config.clone() }).await?;
        if !bootstrap {
            self.run_hook(None, Event::PreJoin { config }).await?;
        }
        Ok(())
    }

    /// A step of a bootstrap or a join is done.
    pub(super) fn reached(&self, step: &str) {
        steps::reached(step, self.state.dir().path());
    }

    /// Runs a hook of a bootstrap or a join.
    pub(super) async fn run_hook(&self, node: Option<&Arc<Node>>, event: Event) -> Result<(), InitError> {
        self.hooks.run(&self.state, node.cloned(), event).await.map_err(InitError::Hook)
    }

    async fn bootstrap(&self, request: &InitRequest, tcp: TcpListener, server: &KeyPair) -> Result<(), InitError> {
        let InitRequest { name, address, .. } = request.clone();
        let dir = self.state.dir().clone();
        let ip = address.ip();
        let cluster = blocking("cluster certificate", move || -> Result<KeyPair, InitError> {
            let pair = KeyPair::generate(&Generate { name: CLUSTER_NAME, addresses: &[ip] })?;
            install(&dir, CLUSTER, &SharedPair::own(pair.clone()), true)?;
            Ok(pair)
        })
        .await??;
        self.reached("certificate made");
        let me = MemberLocal { name: name.clone(), address, certificate: server.certificate.pem.clone() };
        let trusted = TrustedMember::new(me.clone()).map_err(|e| InitError::BadAnswer { reason: e.to_string() })?;
        let trust = Trust::new([trusted].into_iter().collect());
        let config = MemberConfig::new(FIRST_ID, name.clone(), address);
        let identity = Identity { config, is_member: false, trust, cluster };
        let node = self.open_node(identity).await?;
        self.reached("database opened");
        self.serve(&node, tcp).await?;
        node.db.initialise(Peer { name: name.to_string(), address: address.to_string() }).await?;
        self.reached("Raft begun");
        self.first_entries(&node, me).await?;
        self.reached("first entries");
        // Everything is there, nothing is promised yet.
        self.run_hook(Some(&node), Event::PostBootstrap { config: request.config.clone() }).await?;
        node.config.store().await?;
        self.reached("stored");
        self.become_member(&node).await;
        tracing::info!(member = %node.name, address = %node.address, "bootstrapped a cluster");
        Ok(())
    }

    /// The product's schema, the first member's row and the cluster's certificate.
    async fn first_entries(&self, node: &Node, me: MemberLocal) -> Result<(), InitError> {
        node.apply_first_updates().await?;
        let Versions { schema_internal, schema_external, extensions } = versions(&self.state);
        let first = NewMember {
            id: Some(node.id),
            name: me.name,
            address: me.address,
            certificate: me.certificate,
            role: RowRole::Voter,
            schema_internal,
            schema_external,
            extensions,
            last_heartbeat: Timestamp::now(),
            token_id: None,
        };
        let cluster = CertificateRow::new(CLUSTER, &SharedPair::own(node.cluster_certificate.current()));
        let entry = node.db.transaction(move |tx| {
            certificates::put(tx, &cluster)?;
            members::insert(tx, &first)
        });
        entry.await?;
        Ok(())
    }

    /// The last step of a bootstrap, a join and a start.
    pub(super) async fn become_member(&self, node: &Arc<Node>) {
        self.state.set_lifecycle(Lifecycle::Member(node.clone()));
        self.close_pre_init().await;
        self.watch_membership(node).await;
        node.nudge();
        // It may have been found out while it was coming in.
        let damage = node.db.damage().borrow().clone();
        if let Some(reason) = damage {
            self.control.send(super::Internal::Rebuild(reason)).await.ok();
        }
    }

    /// Leaves nothing of a bootstrap or a join that failed.
    pub(super) async fn undo(&self) {
        // Nobody has requests here that are worth waiting for.
        self.stop_member(Duration::ZERO).await;
        match self.forget().await {
            Ok(()) => self.become_uninitialised().await,
            Err(fatal) => self.give_up(fatal).await,
        }
    }

    /// Stops the daemon.
    pub(super) async fn give_up(&self, fatal: Fatal) {
        self.control.send(super::Internal::Fatal(fatal)).await.ok();
    }
}

impl From<NotOpened> for InitError {
    fn from(error: NotOpened) -> Self {
        InitError::Server { is_taken: error.is_taken(), reason: error.to_string() }
    }
}

/// Whether a database error may be gone at the next try.
pub(super) fn is_passing(error: &db::Error) -> bool {
    !matches!(error, db::Error::ShuttingDown | db::Error::Fatal(_))
}
