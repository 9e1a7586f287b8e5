//! A daemon seen from outside: what a product's command line and its tests ask of one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use microcluster_client::{
    Address, Client, ControlRequest, Error, Fingerprint, Identity, InitConfig, KeyPair, Member, Name, Secret,
    ServerConfig, ServerStatus, ServerTrust, SqlRequest, SqlResults, TokenRecord, TokenRequest,
};

use crate::cluster::RaftMember;
use crate::recovery::{self, LocalMembers, PreparedRecovery, RecoverError, Recovery};
use crate::state_dir::{FileError, read_file};
use crate::tasks::blocking;
use crate::tls::Certificate;

/// A daemon on this machine, by its state directory. Nothing is opened before it is asked something.
///
/// ```no_run
/// use std::time::Duration;
///
/// use microcluster::App;
///
/// # async fn example() -> Result<(), microcluster::AppError> {
/// let app = App::new("/var/lib/product");
/// app.ready(Duration::from_secs(30)).await?;
/// app.bootstrap("n1".parse().unwrap(), "10.0.0.1:8443".parse().unwrap(), Default::default()).await?;
/// let token = app.new_join_token("n2".parse().unwrap(), Some(Duration::from_secs(3600))).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct App {
    state_dir: PathBuf,
}

/// Why a daemon did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppError {
    /// The daemon refused, or did not answer.
    #[error(transparent)]
    Client(#[from] Error),
    /// A file of the state directory is missing, or cannot be read or used.
    #[error("cannot use {}: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl App {
    /// The daemon that keeps its state in a directory.
    pub fn new(state_dir: impl Into<PathBuf>) -> App {
        App { state_dir: state_dir.into() }
    }

    /// What the daemon says of itself.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn status(&self) -> Result<ServerStatus, AppError> {
        Ok(self.local_client().status().await?)
    }

    /// Waits until the daemon runs and has started, and has a quorum if it is a member.
    ///
    /// # Errors
    /// The last reason why it is not ready, when the time is up.
    pub async fn ready(&self, timeout: Duration) -> Result<(), AppError> {
        Ok(self.local_client().wait_ready(timeout).await?)
    }

    /// Begins a new cluster with this daemon as its first member. `config` is for the product's hooks.
    ///
    /// # Errors
    /// When the daemon refuses; nothing of it is left then.
    pub async fn bootstrap(&self, name: Name, address: Address, config: InitConfig) -> Result<(), AppError> {
        let request = ControlRequest::bootstrap(name, address).with_config(config);
        Ok(self.local_client().control(&request).await?)
    }

    /// Joins the cluster that has made the token. `config` is for the product's hooks.
    ///
    /// # Errors
    /// When the daemon or the cluster refuses; nothing of it is left then.
    pub async fn join(&self, name: Name, address: Address, token: Secret, config: InitConfig) -> Result<(), AppError> {
        let request = ControlRequest::join(name, address, token).with_config(config);
        Ok(self.local_client().control(&request).await?)
    }

    /// Makes a token by which a daemon of that name can join; none for one that does not expire.
    ///
    /// # Errors
    /// When the daemon refuses; 409 where there is a token or a member of that name.
    pub async fn new_join_token(&self, name: Name, expire_after: Option<Duration>) -> Result<Secret, AppError> {
        Ok(self.local_client().add_token(&TokenRequest { name, expire_after }).await?)
    }

    /// The tokens that were not used yet.
    ///
    /// # Errors
    /// When the daemon refuses.
    pub async fn list_join_tokens(&self) -> Result<Vec<TokenRecord>, AppError> {
        Ok(self.local_client().tokens().await?)
    }

    /// Revokes the token for a name.
    ///
    /// # Errors
    /// 404 when there is none.
    pub async fn revoke_join_token(&self, name: &Name) -> Result<(), AppError> {
        Ok(self.local_client().revoke_token(name).await?)
    }

    /// The members of the cluster, with their live status.
    ///
    /// # Errors
    /// When the daemon refuses.
    pub async fn members(&self) -> Result<Vec<Member>, AppError> {
        Ok(self.local_client().cluster_members().await?)
    }

    /// Removes a member, this one and the leader included. With `force` it need not answer.
    ///
    /// # Errors
    /// When the daemon refuses.
    pub async fn remove_member(&self, name: &Name, force: bool) -> Result<(), AppError> {
        Ok(self.local_client().remove_cluster_member(name, force).await?)
    }

    /// Runs SQL on the cluster's database: all statements are one transaction.
    ///
    /// # Errors
    /// When the daemon refuses; 400 for wrong SQL.
    pub async fn sql(&self, sql: &str) -> Result<SqlResults, AppError> {
        Ok(self.local_client().sql(&SqlRequest::new(sql)).await?)
    }

    /// Replaces a certificate: `cluster`, an additional server's by its name, or before initialisation `server`.
    ///
    /// # Errors
    /// When the pair cannot be used, or the daemon refuses.
    pub async fn update_certificate(&self, name: &Name, pair: &KeyPair) -> Result<(), AppError> {
        Ok(self.local_client().set_certificate(name, pair).await?)
    }

    /// Sets where the additional servers listen; one that is not named goes back to what the product says.
    ///
    /// # Errors
    /// When an address cannot be used.
    pub async fn update_servers(&self, servers: impl IntoIterator<Item = (Name, Address)>) -> Result<(), AppError> {
        let servers = servers.into_iter().map(|(name, address)| (name, ServerConfig { address })).collect();
        Ok(self.local_client().set_daemon_servers(&servers).await?)
    }

    /// A client of the daemon, by its control socket.
    #[must_use]
    pub fn local_client(&self) -> Client {
        Client::unix(self.state_dir.join("control.socket"))
    }

    /// A client of the member at an address, as the member that this daemon is. It pins the certificate of the cluster, or
    /// verifies by its authority if there is one (`cluster.ca`): such a client goes on when the certificate is replaced.
    ///
    /// # Errors
    /// When this daemon is no member, or its files cannot be read by this user.
    pub fn remote_client(&self, address: Address) -> Result<Client, AppError> {
        let identity = Identity { cert_pem: self.file("server.crt")?, key_pem: Secret::new(self.file("server.key")?) };
        let cluster = self.file("cluster.crt")?;
        let path = self.state_dir.join("cluster.crt");
        let certificate = Certificate::parse(&cluster).map_err(|e| AppError::File { path, reason: e.to_string() })?;
        let authority = read_file(&self.state_dir.join("cluster.ca"))?;
        // Without a name to ask for the authority is no use: any certificate of it would do.
        match (authority, certificate.names().first()) {
            (Some(authority), Some(name)) => {
                let trust = ServerTrust::Authority { certificate: authority, name: name.clone() };
                Ok(Client::tls(address, Some(&identity), &trust)?)
            }
            _ => Ok(Client::tls(address, Some(&identity), &ServerTrust::Pinned(certificate.fingerprint))?),
        }
    }

    /// A client of the server at an address that presents exactly this certificate, in PEM; with an identity or without one.
    ///
    /// # Errors
    /// When the certificate or the identity cannot be used.
    pub fn remote_client_with_certificate(
        &self,
        address: Address,
        identity: Option<&Identity>,
        certificate_pem: &str,
    ) -> Result<Client, AppError> {
        let fingerprint = Fingerprint::of_pem(certificate_pem)
            .map_err(|e| AppError::File { path: self.state_dir.clone(), reason: e.to_string() })?;
        Ok(Client::tls(address, identity, &ServerTrust::Pinned(fingerprint))?)
    }

    /// The members as the log on this disk has them, and how new that is; also while the daemon does not run. It is the list
    /// that [`App::recover_from_quorum_loss`] takes.
    ///
    /// # Errors
    /// [`RecoverError::NotMember`], and when the files cannot be read.
    pub async fn local_members(&self) -> Result<LocalMembers, RecoverError> {
        self.offline(recovery::local).await
    }

    /// Has the cluster go on with these members after most of its voters were lost for good, from what is on this disk. The daemons of
    /// all members must be stopped, and this should be the one with the newest log ([`App::local_members`]): what it does not have is lost.
    ///
    /// Roles and addresses may change; names and ids may not, nobody can be added or left out, and at least one member must be a voter.
    /// The database as it was is kept in a backup. Afterwards [`Recovery::archive`] is copied into the state directories of the
    /// other members that are left, and they are started. After a crash half-way it can be called again.
    ///
    /// # Errors
    /// [`RecoverError::Held`] while the daemon runs, and what else [`RecoverError`] says.
    pub async fn recover_from_quorum_loss(&self, members: Vec<RaftMember>) -> Result<Recovery, RecoverError> {
        self.offline(move |path| PreparedRecovery::new(path)?.commit_blocking(members)).await
    }

    /// Begins a recovery for an operator to look at: [`PreparedRecovery::commit`] does it.
    ///
    /// # Errors
    /// As [`App::recover_from_quorum_loss`].
    pub async fn prepare_recovery(&self) -> Result<PreparedRecovery, RecoverError> {
        self.offline(PreparedRecovery::new).await
    }

    async fn offline<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> Result<T, RecoverError> + Send + 'static,
    ) -> Result<T, RecoverError> {
        let path = self.state_dir.clone();
        blocking("recovery", move || work(&path)).await?
    }

    fn file(&self, name: &str) -> Result<String, AppError> {
        let path = self.state_dir.join(name);
        let missing =
            || AppError::File { path: path.clone(), reason: "it is not there; is this daemon a member?".into() };
        read_file(&path)?.ok_or_else(missing)
    }
}

impl From<FileError> for AppError {
    fn from(FileError { path, source, .. }: FileError) -> Self {
        AppError::File { path, reason: source.to_string() }
    }
}
