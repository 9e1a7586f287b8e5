//! Clients of the other members, for handlers and hooks.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use microcluster_client::{Address, Client, Name};

use crate::cluster::Node;
use crate::error::Error;

/// Reaches the members of the cluster, over mutual TLS; made with [`crate::State::connect`]. Connections are kept and shared.
///
/// ```
/// use microcluster::axum::http::Method;
/// use microcluster::{Result, State};
///
/// async fn ask(state: &State) -> Result<u64> {
///     let leader = state.connect()?.leader()?;
///     let uptime: u64 = leader.client.query(Method::GET, "/1.0/uptime", ()).await?;
///     println!("{} has run for {uptime} s", leader.name);
///     Ok(uptime)
/// }
/// ```
#[derive(Clone)]
pub struct Connect {
    pub(super) node: Arc<Node>,
}

/// A client of one member.
#[derive(Clone, Debug)]
pub struct MemberClient {
    /// The member.
    pub name: Name,
    /// Where it is.
    pub address: Address,
    /// The client.
    pub client: Client,
}

impl Connect {
    /// The leader of the cluster: this member itself, if it leads.
    ///
    /// # Errors
    /// 503 while no leader is known.
    pub fn leader(&self) -> Result<MemberClient, Error> {
        let status = self.node.db.status();
        let peer = status.leader_peer().and_then(|peer| Some((peer.name.parse().ok()?, peer.address.parse().ok()?)));
        let no_leader = || Error::unavailable("the cluster has no leader at the moment").retry_after(1);
        let (name, address) = peer.ok_or_else(no_leader)?;
        Ok(self.client(name, address))
    }

    /// A member, by its name or its address; this one too.
    ///
    /// # Errors
    /// 404 when there is none.
    pub fn member(&self, name_or_address: &str) -> Result<MemberClient, Error> {
        let trusted = self.node.trust.current();
        let address = name_or_address.parse::<Address>().ok();
        let mut members = trusted.iter();
        let found = members.find(|member| member.name.as_str() == name_or_address || Some(member.address) == address);
        let unknown = || Error::not_found(format!("there is no member {name_or_address:?} in the cluster"));
        found.map(|member| self.client(member.name.clone(), member.address)).ok_or_else(unknown)
    }

    /// All other members, in the order of their names; none when this one is alone.
    #[must_use]
    pub fn cluster(&self) -> Vec<MemberClient> {
        let trusted = self.node.trust.current();
        let others = trusted.iter().filter(|member| member.name != self.node.name);
        let mut others: Vec<_> = others.map(|member| self.client(member.name.clone(), member.address)).collect();
        others.sort_by(|one, other| one.name.cmp(&other.name));
        others
    }

    /// Asks all other members and returns what each of them answered, in the order of their names. The requests are marked
    /// as notifications ([`crate::Notification`]), so that who gets one does not fan out again.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use microcluster::axum::http::Method;
    /// use microcluster::{Result, State};
    ///
    /// async fn uptimes(state: &State) -> Result<()> {
    ///     let ask = |member: microcluster::MemberClient| async move {
    ///         member.client.query::<u64>(Method::GET, "/1.0/uptime", ()).await
    ///     };
    ///     for (name, answer) in state.connect()?.query_all(true, Duration::from_secs(2), ask).await {
    ///         println!("{name}: {answer:?}");
    ///     }
    ///     Ok(())
    /// }
    /// ```
    ///
    /// `concurrent`: all at the same time, else one after the other. `timeout` is for each member: one that takes longer is a
    /// [`microcluster_client::Error::Timeout`] and holds up nobody else.
    pub async fn query_all<T, F, R>(
        &self,
        concurrent: bool,
        timeout: Duration,
        query: F,
    ) -> Vec<(Name, Result<T, microcluster_client::Error>)>
    where
        F: Fn(MemberClient) -> R,
        R: Future<Output = Result<T, microcluster_client::Error>>,
    {
        let asked = self.cluster().into_iter().map(|member| {
            let client = member.client.notification().timeout(timeout);
            let (name, server) = (member.name.clone(), client.server().clone());
            let answer = query(MemberClient { client, ..member });
            async move {
                let late = |_| microcluster_client::Error::Timeout { server, after: timeout };
                (name, tokio::time::timeout(timeout, answer).await.map_err(late).and_then(|answer| answer))
            }
        });
        if concurrent {
            return join_all(asked).await;
        }
        let mut answers = Vec::new();
        for asked in asked {
            answers.push(asked.await);
        }
        answers
    }

    fn client(&self, name: Name, address: Address) -> MemberClient {
        MemberClient { name, address, client: self.node.peers.client(address) }
    }
}

impl std::fmt::Debug for Connect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connect").field("member", &self.node.name).finish_non_exhaustive()
    }
}
