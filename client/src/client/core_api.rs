//! The calls of the Core API, one method each.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use http::Method;

use super::{Client, TIMEOUT_DEFAULT, TIMEOUT_INIT};
use crate::{
    ControlRequest, DaemonConfig, DaemonConfigUpdate, DaemonStatus, Empty, Error, Hook, KeyPair, Member, Name, Secret,
    ServerConfig, ServerStatus, SqlDump, SqlRequest, SqlResults, TokenRecord, TokenRequest, Verification,
};

/// A dump is the whole database as text.
const DUMP_BYTES_MAX: usize = 1 << 30;
/// How long [`Client::wait_ready`] waits between two tries: little at first, then longer.
const READY_INTERVAL_MIN: Duration = Duration::from_millis(2);
const READY_INTERVAL_MAX: Duration = Duration::from_millis(50);

/// The Core API. Every call fails with [`Error::Status`] when the daemon refuses and with the other
/// errors when there is no good answer.
impl Client {
    /// What the daemon says of itself to anybody.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn status(&self) -> Result<ServerStatus, Error> {
        self.query(Method::GET, "/core/1.0", ()).await
    }

    /// Whether the daemon has started: an error with code 503 when it has not.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn ready(&self) -> Result<(), Error> {
        self.empty(Method::GET, "/core/1.0/ready", ()).await
    }

    /// Waits until the daemon runs and has started; an answer that asking again cannot better
    /// ends the wait.
    ///
    /// # Errors
    /// The last reason why it is not ready, when the time is up.
    pub async fn wait_ready(&self, timeout: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + timeout;
        let mut interval = READY_INTERVAL_MIN;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let attempt = self.timeout(left.clamp(READY_INTERVAL_MAX, TIMEOUT_DEFAULT)).ready().await;
            let Err(error) = attempt else { return Ok(()) };
            let starting = match &error {
                Error::Unreachable { source, .. } => source.kind() != std::io::ErrorKind::PermissionDenied,
                Error::Interrupted { .. } | Error::Timeout { .. } => true,
                error => error.code() == Some(503),
            };
            if !starting || Instant::now() + interval >= deadline {
                return Err(error);
            }
            tokio::time::sleep(interval).await;
            interval = (interval * 2).min(READY_INTERVAL_MAX);
        }
    }

    /// What the daemon knows of itself: role, leader, quorum, database, certificates.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn daemon_status(&self) -> Result<DaemonStatus, Error> {
        self.query(Method::GET, "/core/1.0/daemon/status", ()).await
    }

    /// The additional servers and where they listen.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn daemon_servers(&self) -> Result<BTreeMap<Name, ServerConfig>, Error> {
        self.query(Method::GET, "/core/1.0/daemon/servers", ()).await
    }

    /// Sets where the additional servers listen; one that is not named goes back to what it was made with.
    /// The product's hooks run: [`TIMEOUT_INIT`] is its time, unless the client has a timeout of its own.
    ///
    /// # Errors
    /// See [`Error`]; 404 for a server that the daemon does not have.
    pub async fn set_daemon_servers(&self, servers: &BTreeMap<Name, ServerConfig>) -> Result<(), Error> {
        self.patient().empty(Method::PUT, "/core/1.0/daemon/servers", servers).await
    }

    /// The configuration of the daemon.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn daemon_config(&self) -> Result<DaemonConfig, Error> {
        self.query(Method::GET, "/core/1.0/daemon/config", ()).await
    }

    /// Replaces the configuration of the daemon: what is none is cleared.
    /// The product's hooks run: [`TIMEOUT_INIT`] is its time, unless the client has a timeout of its own.
    ///
    /// # Errors
    /// See [`Error`]; 409 for another name or address.
    pub async fn replace_daemon_config(&self, config: &DaemonConfigUpdate) -> Result<(), Error> {
        self.patient().empty(Method::PUT, "/core/1.0/daemon/config", config).await
    }

    /// Changes the configuration of the daemon: what is none stays.
    /// The product's hooks run: [`TIMEOUT_INIT`] is its time, unless the client has a timeout of its own.
    ///
    /// # Errors
    /// See [`Error`]; 409 for another name or address.
    pub async fn change_daemon_config(&self, change: &DaemonConfigUpdate) -> Result<(), Error> {
        self.patient().empty(Method::PATCH, "/core/1.0/daemon/config", change).await
    }

    /// Bootstraps or joins; returns when the product's hooks are done. Unless the client has a timeout
    /// of its own, [`TIMEOUT_INIT`] is its time. Unix socket only.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn control(&self, request: &ControlRequest) -> Result<(), Error> {
        self.patient().empty(Method::POST, "/core/control", request).await
    }

    /// Stops the daemon; it answers and then ends. Unix socket only.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.empty(Method::POST, "/core/control/shutdown", ()).await
    }

    /// The members of the cluster, each with its live status.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cluster_members(&self) -> Result<Vec<Member>, Error> {
        self.query(Method::GET, "/core/1.0/cluster", ()).await
    }

    /// One member of the cluster.
    ///
    /// # Errors
    /// See [`Error`]; 404 when there is none with this name.
    pub async fn cluster_member(&self, name: &Name) -> Result<Member, Error> {
        self.query(Method::GET, &format!("/core/1.0/cluster/{name}"), ()).await
    }

    /// Removes a member; with `force` also one that does not answer.
    /// The product's hooks run: [`TIMEOUT_INIT`] is its time, unless the client has a timeout of its own.
    ///
    /// # Errors
    /// See [`Error`]; 404 when there is none with this name.
    pub async fn remove_cluster_member(&self, name: &Name, force: bool) -> Result<(), Error> {
        let force = if force { "?force=1" } else { "" };
        self.patient().empty(Method::DELETE, &format!("/core/1.0/cluster/{name}{force}"), ()).await
    }

    /// Has a hook of the product run, on the member with that name or, for none, on the one that is asked.
    ///
    /// # Errors
    /// See [`Error`]; what the hook answers when it fails.
    pub async fn run_hook(&self, hook: &Hook, target: Option<&Name>) -> Result<(), Error> {
        let target = target.map(|name| format!("?target={name}")).unwrap_or_default();
        self.empty(Method::POST, &format!("/core/internal/hooks/{}{target}", hook.name()), hook).await
    }

    /// Replaces a certificate: `server` before initialisation, `cluster` or that of an additional server on all members.
    ///
    /// # Errors
    /// See [`Error`]; 400 for a pair that cannot be used, 409 for `server` when the daemon is a member.
    pub async fn set_certificate(&self, name: &Name, pair: &KeyPair) -> Result<(), Error> {
        self.empty(Method::PUT, &format!("/core/1.0/cluster/certificates/{name}"), pair).await
    }

    /// Compares what the members hold, at one index of the log.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn verify_database(&self) -> Result<Verification, Error> {
        self.query(Method::POST, "/core/1.0/database/verify", ()).await
    }

    /// The join tokens that have not been used. Unix socket only.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn tokens(&self) -> Result<Vec<TokenRecord>, Error> {
        self.query(Method::GET, "/core/control/tokens", ()).await
    }

    /// Makes a join token. Unix socket only.
    ///
    /// # Errors
    /// See [`Error`]; 409 when there is one for this name.
    pub async fn add_token(&self, request: &TokenRequest) -> Result<Secret, Error> {
        self.query(Method::POST, "/core/control/tokens", request).await
    }

    /// Revokes a join token.
    ///
    /// # Errors
    /// See [`Error`]; 404 when there is none for this name.
    pub async fn revoke_token(&self, name: &Name) -> Result<(), Error> {
        self.empty(Method::DELETE, &format!("/core/1.0/tokens/{name}"), ()).await
    }

    /// Runs statements as one atomic transaction.
    ///
    /// # Errors
    /// See [`Error`]; 400 for bad SQL, 409 for a broken unique constraint.
    pub async fn sql(&self, request: &SqlRequest) -> Result<SqlResults, Error> {
        self.query(Method::POST, "/core/internal/sql", request).await
    }

    /// The database as SQL that restores it, or its schema alone. At most 1 GiB of it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn sql_dump(&self, schema_only: bool) -> Result<SqlDump, Error> {
        let schema = if schema_only { "?schema=1" } else { "" };
        self.response_limit(DUMP_BYTES_MAX).query(Method::GET, &format!("/core/internal/sql{schema}"), ()).await
    }

    /// The same client for what has the product's hooks run: with their time, unless it has one of its own.
    fn patient(&self) -> Client {
        self.timeout(self.timeout.unwrap_or(TIMEOUT_INIT))
    }

    async fn empty(&self, method: Method, path: &str, body: impl serde::Serialize) -> Result<(), Error> {
        self.query::<Empty>(method, path, body).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_hooks_has_their_time_unless_the_client_has_its_own() {
        let client = Client::unix("control.socket");
        assert_eq!(client.patient().timeout, Some(TIMEOUT_INIT));
        let own = Duration::from_secs(5);
        assert_eq!(client.timeout(own).patient().timeout, Some(own));
        let usual = client.timeout(TIMEOUT_DEFAULT);
        assert_eq!(usual.patient().timeout, Some(TIMEOUT_DEFAULT), "also one that is as long as the usual one");
    }
}
