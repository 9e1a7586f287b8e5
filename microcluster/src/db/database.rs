//! The handle on a member's database: what its callers can do.

mod open;

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::checksum::Digest;
use super::command::{Body, QueryResult, Scope, Statement, Value};
use super::dump;
use super::error::Error;
use super::forward::Forwarder;
use super::log_store::LogStore;
use super::network::{self, Call, CallError, Met, Patience, PeerStream, Peers, Pong, Reply, Service};
use super::options::Timings;
use super::query::{self, Read};
use super::raft_types::{NodeId, Raft};
use super::schema::level;
use super::status::Status;
use super::transaction::{Closures, Parameters, Transaction};
use super::watch::Watch;
use super::writer::{Shared, Writer};
use crate::tasks;

pub use open::OpenError;

/// How fresh a read has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// The local replica as it is: no network, perhaps a little behind.
    Local,
    /// Everything that was acknowledged anywhere before the read began.
    Linearizable,
    /// The local replica, once it has applied the log up to this index. With [`Database::seen_index`] of any member
    /// a read shows what was written or read there, without asking the leader.
    AtLeast(u64),
}

/// A member's database, the same on every member; from [`State::database`](crate::State::database). Cheap to clone. The daemon opens and
/// closes it.
///
/// ```
/// use microcluster::db::{Consistency, Database, Error};
///
/// async fn visits(database: &Database, name: &str) -> Result<Option<i64>, Error> {
///     let add = "INSERT INTO visits VALUES (?1, 1) ON CONFLICT DO UPDATE SET count = count + 1";
///     database.execute(add, (name,)).await?;
///     let sql = "SELECT count FROM visits WHERE name = ?1";
///     database.query_row(Consistency::Linearizable, sql, (name,), |row| row.get(0)).await
/// }
/// ```
#[derive(Clone)]
pub struct Database {
    pub(super) inner: Arc<Inner>,
    scope: Scope,
}

pub(super) struct Inner {
    pub(super) raft: Raft,
    pub(super) peers: Arc<Peers>,
    pub(super) timings: Timings,
    pub(super) log: LogStore,
    pub(super) shared: Arc<Shared>,
    writer: Arc<Writer>,
    forwarder: Forwarder,
    closures: Closures,
    pub(super) service: Arc<Service>,
    status: watch::Receiver<Status>,
    internal_schema: Vec<&'static str>,
    tasks: TaskTracker,
    cancelled: CancellationToken,
}

/// Why a member did not answer a ping.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PingError {
    /// Nobody answers.
    #[error("{detail}")]
    Silent {
        /// What was tried.
        detail: String,
    },
    /// Somebody answers who does not trust this member, or whom it does not trust.
    #[error("{detail}")]
    NotTrusted {
        /// Which does not trust which.
        detail: String,
    },
    /// A member under another id answers.
    #[error("{detail}")]
    OtherNode {
        /// Which one.
        detail: String,
    },
}

impl Database {
    /// The same database with the right to write the cluster's own tables.
    pub(crate) fn core(&self) -> Database {
        Database { inner: Arc::clone(&self.inner), scope: Scope::Core }
    }

    /// Runs one statement and returns how many rows it inserted, updated or deleted.
    ///
    /// # Errors
    /// All of [`Error`]; only [`Error::OutcomeUnknown`] leaves it open whether it was done.
    pub async fn execute(&self, sql: &str, parameters: impl Parameters) -> Result<u64, Error> {
        let statement = Statement { sql: sql.to_owned(), parameters: parameters.into_values(sql)? };
        match self.batch(vec![statement]).await?.pop() {
            Some(QueryResult::Changed { rows_affected }) => Ok(rows_affected),
            Some(QueryResult::Rows { rows, .. }) => Ok(rows.len() as u64),
            None => Ok(0),
        }
    }

    /// Runs statements as one transaction and returns what each answered.
    ///
    /// # Errors
    /// As [`Database::execute`].
    pub async fn batch(&self, statements: Vec<Statement>) -> Result<Vec<QueryResult>, Error> {
        Ok(self.submit(Body::Statements(statements)).await?.1)
    }

    /// Runs a text of any number of statements as one transaction.
    pub(crate) async fn script(&self, script: String) -> Result<Vec<QueryResult>, Error> {
        Ok(self.submit(Body::Script(script)).await?.1)
    }

    /// Runs a closure as one transaction: reads and writes, with whatever lies between them.
    ///
    /// The closure runs on this member, and **may run more than once**, so it should do nothing but use its
    /// [`Transaction`]. What it returned in the run that got through is returned; if it returns an error, nothing is changed.
    /// It sees what was answered on this member before; where that has not arrived within a second, it goes on without.
    ///
    /// # Errors
    /// The closure's own (see [`Error::other`]); [`Error::Conflict`] when others kept changing what it touched;
    /// [`Error::TooLong`] when it ran for more than five seconds; and as [`Database::execute`].
    ///
    /// # Panics
    /// If the closure does; nothing is changed then.
    pub async fn transaction<T, F>(&self, body: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Fn(&Transaction<'_>) -> Result<T, Error> + Send + Sync + 'static,
    {
        self.inner.closures.run(&self.inner.forwarder, self.scope, body).await
    }

    /// Runs `read` on a read-only connection, all of it on one state, on a thread that may block.
    ///
    /// # Errors
    /// [`Error::Sql`], [`Error::TooLong`]; for a linearizable read also [`Error::NoQuorum`].
    pub async fn read<T, F>(&self, consistency: Consistency, read: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&rusqlite::Connection) -> Result<T, rusqlite::Error> + Send + 'static,
    {
        self.reach(consistency).await?;
        let (shared, limit) = (Arc::clone(&self.inner.shared), self.inner.timings.read);
        blocking(move || shared.readers.with(limit, |reader| reader.in_transaction(|connection| Ok(read(connection)?))))
            .await
    }

    /// All rows of one query, each mapped by `map`. Quick queries are answered without leaving this thread.
    ///
    /// # Errors
    /// As [`Database::read`].
    pub async fn query<T, F>(
        &self,
        consistency: Consistency,
        sql: &str,
        parameters: impl Parameters,
        map: F,
    ) -> Result<Vec<T>, Error>
    where
        T: Send + 'static,
        F: Fn(&rusqlite::Row<'_>) -> rusqlite::Result<T> + Send + Sync + 'static,
    {
        let parameters = parameters.into_values(sql)?;
        self.reach(consistency).await?;
        let (shared, sql) = (Arc::clone(&self.inner.shared), sql.to_owned());
        query::quick_or_blocking(self.inner.timings.read, move |limit| {
            shared.readers.with(limit, |reader| {
                let mut statement = reader.connection().prepare_cached(&sql)?;
                let rows = statement.query_map(rusqlite::params_from_iter(&parameters), &map)?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
        })
        .await
    }

    /// The first row of one query, mapped by `map`; `None` if there is none.
    ///
    /// # Errors
    /// As [`Database::read`].
    pub async fn query_row<T, F>(
        &self,
        consistency: Consistency,
        sql: &str,
        parameters: impl Parameters,
        map: F,
    ) -> Result<Option<T>, Error>
    where
        T: Send + 'static,
        F: Fn(&rusqlite::Row<'_>) -> rusqlite::Result<T> + Send + Sync + 'static,
    {
        use rusqlite::OptionalExtension;
        let parameters = parameters.into_values(sql)?;
        self.reach(consistency).await?;
        let (shared, sql) = (Arc::clone(&self.inner.shared), sql.to_owned());
        query::quick_or_blocking(self.inner.timings.read, move |limit| {
            shared.readers.with(limit, |reader| {
                let mut statement = reader.connection().prepare_cached(&sql)?;
                Ok(statement.query_row(rusqlite::params_from_iter(&parameters), &map).optional()?)
            })
        })
        .await
    }

    /// Runs SQL text as the REST API takes it: any number of statements, one transaction. What only reads is
    /// answered as fresh as `consistency` says; `parameters` go with a single statement.
    ///
    /// # Errors
    /// All of [`Error`].
    pub async fn sql(
        &self,
        sql: &str,
        parameters: Vec<Value>,
        consistency: Consistency,
    ) -> Result<Vec<QueryResult>, Error> {
        if !query::surely_writes(sql) {
            self.reach(consistency).await?;
            let (shared, text, values) = (Arc::clone(&self.inner.shared), sql.to_owned(), parameters.clone());
            let read = query::quick_or_blocking(self.inner.timings.read, move |limit| {
                query::read(&shared.readers, &text, &values, limit)
            });
            if let Read::Results(results) = read.await? {
                return Ok(results);
            }
        }
        if parameters.is_empty() {
            self.script(sql.to_owned()).await
        } else {
            self.batch(vec![Statement { sql: sql.to_owned(), parameters }]).await
        }
    }

    /// The whole database as SQL text that restores it, or its schema alone; linearizable.
    ///
    /// # Errors
    /// [`Error::TooLarge`] over 256 MiB; and as [`Database::read`].
    pub async fn dump(&self, schema_only: bool) -> Result<String, Error> {
        self.linearize().await?;
        let (shared, limit) = (Arc::clone(&self.inner.shared), self.inner.timings.read);
        blocking(move || {
            shared.readers.with(limit, |reader| reader.in_transaction(|connection| dump::dump(connection, schema_only)))
        })
        .await
    }

    /// Returns when a quorum has confirmed the leader and everything acknowledged before this call is applied here.
    ///
    /// # Errors
    /// [`Error::NoQuorum`] when that takes longer than the request timeout.
    pub async fn linearize(&self) -> Result<(), Error> {
        let deadline = Instant::now() + self.inner.timings.request;
        let index = self.inner.forwarder.read_index().await?;
        self.applied(index, deadline).await
    }

    /// Whether the database takes calls: from the start of the member on until the daemon stops, or cannot use its files any more. An open
    /// one may still be without a quorum: see [`Database::status`].
    pub fn is_open(&self) -> bool {
        !self.inner.cancelled.is_cancelled() && !self.status().is_shut_down()
    }

    /// How many of the product's schema updates the cluster has applied, as far as this replica is. What
    /// [`State::database`](crate::State::database) gives has all that this daemon has.
    ///
    /// # Errors
    /// As [`Database::read`] of the local replica.
    pub async fn schema_version(&self) -> Result<u64, Error> {
        Ok(self.read(Consistency::Local, level).await?.external)
    }

    /// How this member's database is, now.
    pub fn status(&self) -> Status {
        let inner = &self.inner;
        Status::from_metrics(&inner.raft.metrics().borrow(), inner.timings.quorum(), &inner.shared.heard)
    }

    /// The status, for those who wait for a change of the leader, the members or the quorum. Changes of the indices
    /// alone wake nobody.
    pub fn status_watch(&self) -> watch::Receiver<Status> {
        self.inner.status.clone()
    }

    /// A log index that covers every write that was answered here, and every read: a later read anywhere that asks for
    /// [`Consistency::AtLeast`] this index shows at least as much.
    pub fn seen_index(&self) -> u64 {
        self.inner.forwarder.answered_index().max(*self.inner.shared.applied.borrow())
    }

    /// The index of the last applied entry: changes after each write that shows here.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.shared.applied.subscribe()
    }

    /// Wakes up when a committed entry has written to one of these tables, on any member, also through triggers and foreign
    /// keys. Nothing goes over the network for it.
    ///
    /// ```no_run
    /// # async fn example(database: microcluster::db::Database) -> Result<(), microcluster::db::Error> {
    /// use microcluster::db::Consistency;
    ///
    /// let mut watch = database.watch(["kv"]);
    /// loop {
    ///     let count: Option<i64> =
    ///         database.query_row(Consistency::Local, "SELECT count(*) FROM kv", (), |row| row.get(0)).await?;
    ///     println!("{count:?}");
    ///     watch.changed().await?;
    /// }
    /// # }
    /// ```
    pub fn watch<T: AsRef<str>>(&self, tables: impl IntoIterator<Item = T>) -> Watch {
        let tables = tables.into_iter().map(|table| table.as_ref().to_lowercase()).collect();
        let clock = Arc::clone(&self.inner.shared.tables);
        Watch::new(tables, clock, self.changes(), self.inner.cancelled.clone())
    }

    /// Why this member's files must not be used any more, once they must not: it has to be rebuilt from the others.
    pub(crate) fn damage(&self) -> watch::Receiver<Option<String>> {
        self.inner.shared.damage.subscribe()
    }

    /// Prepares this member to be rebuilt: remembers why on stable storage, and does not stand for election any more.
    pub(crate) async fn condemn_own(&self, reason: String) {
        let inner = Arc::clone(&self.inner);
        let _ = tokio::task::spawn_blocking(move || inner.condemn(&reason)).await;
    }

    /// Serves the calls of one other member until its connection closes or the database shuts down. The stream must
    /// be an authenticated member's.
    pub(crate) async fn serve_peer(&self, stream: PeerStream) {
        let served = tokio::select! {
            () = self.inner.cancelled.cancelled() => return,
            served = network::serve(&self.inner.service, stream) => served,
        };
        if let Err(error) = served {
            tracing::debug!(%error, "a member's connection ended");
        }
    }

    /// Asks the member with node `id` at `address` how it is.
    ///
    /// # Errors
    /// When it does not answer within `timeout`, or somebody else does.
    pub(crate) async fn ping(&self, id: NodeId, address: &str, timeout: Duration) -> Result<Pong, PingError> {
        let asked = tokio::time::timeout(timeout, self.inner.peers.call(id, address, Call::Ping));
        self.pong(id, address, async {
            asked.await.unwrap_or_else(|_| Err(CallError::Silent { address: address.to_owned() }))
        })
        .await
    }

    /// Asks the member with node `id` at `address` how it is, and waits for as long as it is not known to be silent.
    ///
    /// # Errors
    /// As [`Database::ping`].
    pub(crate) async fn is_there(&self, id: NodeId, address: &str, patience: Patience) -> Result<Pong, PingError> {
        self.pong(id, address, self.inner.peers.ask(id, address, Call::Ping, patience)).await
    }

    /// Done when a member, which is asked again and again from now on, does not answer any more.
    pub(crate) async fn gone(&self, id: NodeId, address: &str, patience: Patience) {
        if id == self.inner.service.node_id {
            return std::future::pending().await;
        }
        self.inner.peers.gone(id, address, patience).await;
    }

    /// Whether a member has been asked in vain for so long.
    pub(crate) fn is_silent(&self, id: NodeId, address: &str, limit: Duration) -> bool {
        id != self.inner.service.node_id && self.inner.peers.is_silent(id, address, limit)
    }

    async fn pong(
        &self,
        id: NodeId,
        address: &str,
        asked: impl Future<Output = Result<Reply, CallError>>,
    ) -> Result<Pong, PingError> {
        if id == self.inner.service.node_id {
            return Ok(Pong { node_id: id, applied_index: *self.inner.shared.applied.borrow() });
        }
        let error = match asked.await {
            Ok(Reply::Pong(pong)) => return Ok(pong),
            Ok(_) => {
                let detail = format!("the member at {address} gave an answer of the wrong kind");
                return Err(PingError::Silent { detail });
            }
            Err(error) => error,
        };
        let detail = error.to_string();
        Err(match error {
            CallError::Unreachable { met: Met::Stranger, .. } => PingError::NotTrusted { detail },
            CallError::Unreachable { met: Met::OtherNode, .. } => PingError::OtherNode { detail },
            _ => PingError::Silent { detail },
        })
    }

    /// Up to where the log was dropped.
    #[cfg(test)]
    pub(crate) fn purged_index(&self) -> u64 {
        self.inner.raft.metrics().borrow().purged.map_or(0, |log_id| log_id.index)
    }

    pub(super) async fn submit(&self, body: Body) -> Result<(u64, Vec<QueryResult>), Error> {
        self.inner.forwarder.submit(self.scope, body, None).await
    }

    async fn reach(&self, consistency: Consistency) -> Result<(), Error> {
        match consistency {
            Consistency::Local => Ok(()),
            Consistency::Linearizable => self.linearize().await,
            Consistency::AtLeast(index) => self.applied(index, Instant::now() + self.inner.timings.request).await,
        }
    }

    async fn applied(&self, index: u64, deadline: Instant) -> Result<(), Error> {
        let mut applied = self.inner.shared.applied.subscribe();
        let reached = applied.wait_for(|applied| *applied >= index);
        match tokio::time::timeout_at(deadline, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Error::ShuttingDown),
            Err(_) => {
                Err(Error::NoQuorum { detail: format!("this member has not applied the log up to {index} in time") })
            }
        }
    }
}

impl Inner {
    pub(super) fn node_id(&self) -> NodeId {
        self.service.node_id
    }

    pub(super) fn digest(&self, index: u64) -> Digest {
        self.shared.digest(index)
    }

    pub(super) fn condemn(&self, reason: &str) {
        self.service.condemn(reason);
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tasks::caught(work).await.unwrap_or_else(|panic| resume_unwind(panic))
}
