//! One daemon: a `microclusterd` process with a state directory and a cluster address of its own.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use microcluster_client::{
    Address, Client, Consistency, ControlRequest, DaemonStatus, Error, Fingerprint, Identity, Member, Name, Secret,
    ServerTrust, SqlRequest, TlsError, TokenRequest,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::binaries::binary;
use crate::{DEADLINE, Network, address_free, eventually};

/// How often the leader of a test cluster looks after the others.
const HEARTBEAT: &str = "500ms";
/// Lines of a daemon's log that a failed test shows.
const LOG_LINES_SHOWN: usize = 120;

/// A daemon and what it needs. The process is killed when this is dropped.
#[derive(Debug)]
pub struct Daemon {
    name: Name,
    address: Address,
    /// The program that it runs.
    program: &'static str,
    /// Holds the state directory and, beside it, the log.
    root: TempDir,
    /// Beside those that every daemon has.
    arguments: Vec<String>,
    /// What runs it where it is to run; empty for here.
    launcher: Vec<String>,
    environment: Vec<(String, String)>,
    process: Option<Child>,
}

impl Daemon {
    /// A daemon with an empty state directory that does not run yet.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let root = tempfile::Builder::new().prefix("microcluster-test-").tempdir().expect("a directory");
        let name = name.parse().expect("a name");
        Daemon {
            name,
            address: address_free(),
            program: "microclusterd",
            root,
            arguments: Vec::new(),
            launcher: Vec::new(),
            environment: Vec::new(),
            process: None,
        }
    }

    /// The same with what `microclusterd` leaves to tests; it can be held at a step.
    #[must_use]
    pub fn steppable(name: &str) -> Self {
        let mut daemon = Daemon::new(name);
        daemon.program = "steppable-daemon";
        daemon
    }

    /// The same with this cluster address.
    #[must_use]
    pub fn at(name: &str, address: Address) -> Self {
        let mut daemon = Daemon::new(name);
        daemon.address = address;
        daemon
    }

    /// The same on a host of a network.
    #[must_use]
    pub fn on(name: &str, network: &Network, host: usize) -> Self {
        let mut daemon = Daemon::new(name);
        (daemon.address, daemon.launcher) = (network.address(host), network.launcher(host));
        daemon
    }

    /// Gives it these arguments beside those that every daemon has, from its next start on.
    pub fn arguments<'a>(&mut self, arguments: impl IntoIterator<Item = &'a str>) {
        self.arguments = arguments.into_iter().map(str::to_owned).collect();
    }

    /// Sets a variable of its environment, for its next start.
    pub fn environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// A daemon that runs and is not initialised.
    pub async fn start(name: &str) -> Self {
        let mut daemon = Daemon::new(name);
        daemon.start_again().await;
        daemon
    }

    /// Starts it, again or for the first time, and waits until it is ready.
    pub async fn start_again(&mut self) {
        self.spawn();
        self.wait_ready().await;
    }

    /// Starts its process and does not wait for anything.
    pub fn spawn(&mut self) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        self.process = Some(self.command().spawn().expect("the daemon"));
    }

    /// The command that starts it, with its log.
    #[must_use]
    pub fn command(&self) -> Command {
        let log = File::options().create(true).append(true).open(self.log_path()).expect("the log");
        let launcher = self.launcher.iter().map(OsString::from);
        let mut words = launcher.chain([binary(self.program).into_os_string()]);
        let mut command = Command::new(words.next().expect("a program"));
        command
            .args(words)
            .arg("--state-dir")
            .arg(self.dir())
            .args(["--heartbeat", HEARTBEAT, "--verbose"])
            .args(&self.arguments)
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        command
    }

    /// Waits until it answers that it has started.
    pub async fn wait_ready(&mut self) {
        let what = format!("{} starts", self.name);
        eventually(&what, async || {
            if let Some(status) = self.process.as_mut().and_then(|process| process.try_wait().expect("its status")) {
                panic!("{} has ended with {status} at its start", self.name);
            }
            self.client().ready().await
        })
        .await;
    }

    /// Ends it as `kill -9` does, at once.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().expect("it can be killed");
        process.wait().expect("it has ended");
    }

    /// Asks it to stop as systemd does, and waits until it has ended.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended().await
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let id = self.process_id();
        kill_process(Pid::from_raw(i32::try_from(id).unwrap()).unwrap(), signal).expect("it runs");
    }

    /// The id of its process.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("it runs");
        let what = format!("{} ends", self.name);
        let ended = eventually(&what, async || process.try_wait().expect("its status").ok_or("it runs")).await;
        let socket = self.dir().join("control.socket");
        assert!(!socket.exists(), "{} is left behind", socket.display());
        ended
    }

    /// Whether its process runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Deletes its state directory. It must not run.
    pub fn wipe(&mut self) {
        assert!(self.process.is_none(), "{} runs", self.name);
        fs::remove_dir_all(self.dir()).expect("the state directory");
    }

    /// The name that it has, or is to have, in its cluster.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Gives it another name, for its next bootstrap or join.
    pub fn rename(&mut self, name: &str) {
        self.name = name.parse().expect("a name");
    }

    /// Says that it has another cluster address by now.
    pub fn moved(&mut self, address: Address) {
        self.address = address;
    }

    /// Its cluster address.
    #[must_use]
    pub fn address(&self) -> Address {
        self.address
    }

    /// Its state directory.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.root.path().join("state")
    }

    /// What it has logged so far, over all its runs.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// A client over its control socket.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::unix(self.dir().join("control.socket"))
    }

    /// Its own certificate and key.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity::new(self.read("server.crt"), self.read("server.key"))
    }

    /// The certificate of its cluster and the key.
    #[must_use]
    pub fn cluster_identity(&self) -> Identity {
        Identity::new(self.read("cluster.crt"), self.read("cluster.key"))
    }

    /// The certificate that its cluster address must have.
    #[must_use]
    pub fn trust(&self) -> ServerTrust {
        ServerTrust::pinned_pem(&self.read("cluster.crt")).expect("a certificate")
    }

    /// The certificate that its cluster address shows now, to a client that asks for nothing else.
    pub async fn shown_certificate(&self) -> Result<Fingerprint, Error> {
        let nothing = ServerTrust::Pinned(Fingerprint::of_der(b"no certificate"));
        match Client::tls(self.address, None, &nothing)?.status().await {
            Err(Error::Tls { source: TlsError::WrongCertificate { presented, .. }, .. }) => Ok(presented),
            Err(e) => Err(e),
            Ok(_) => panic!("{} shows a certificate that there is not", self.name),
        }
    }

    /// A client over TLS with its own certificate, as other members are.
    #[must_use]
    pub fn tls_client(&self, trust: &ServerTrust) -> Client {
        Client::tls(self.address, Some(&self.identity()), trust).expect("a TLS configuration")
    }

    /// A file of its state directory.
    #[must_use]
    pub fn read(&self, file: &str) -> String {
        let path = self.dir().join(file);
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Begins a cluster.
    pub async fn bootstrap(&self) {
        let request = ControlRequest::bootstrap(self.name.clone(), self.address);
        self.client().timeout(DEADLINE).control(&request).await.expect("the bootstrap");
    }

    /// Joins the cluster that gave a token.
    pub async fn join(&self, token: &Secret) -> Result<(), Error> {
        self.client()
            .timeout(DEADLINE)
            .control(&ControlRequest::join(self.name.clone(), self.address, token.clone()))
            .await
    }

    /// Has it remove a member, and asks again while the answer is to do so: another one leads, or a member is slow to say that
    /// it is there.
    pub async fn remove(&self, name: &Name) {
        eventually(&format!("{name} is removed"), async || {
            match self.client().remove_cluster_member(name, false).await {
                Ok(()) | Err(Error::Status { code: 404, .. }) => Ok(()),
                // It has removed itself.
                Err(Error::Status { code: 503, message, .. })
                    if *name == self.name && message.contains("not initialised") =>
                {
                    Ok(())
                }
                Err(e) => Err(e),
            }
        })
        .await;
    }

    /// Makes a token for a name.
    pub async fn token(&self, name: &Name) -> Secret {
        let request = TokenRequest { name: name.clone(), expire_after: None };
        self.client().add_token(&request).await.expect("a token")
    }

    /// Runs SQL through it and returns the rows of the last statement. Reads are linearizable.
    pub async fn sql(&self, query: &str) -> Vec<Vec<Value>> {
        self.try_sql(query).await.unwrap_or_else(|e| panic!("{}: {e} in {query:.200}", self.name))
    }

    /// The same for what may fail.
    pub async fn try_sql(&self, query: &str) -> Result<Vec<Vec<Value>>, Error> {
        self.run(SqlRequest::new(query)).await
    }

    /// Rows of its own replica.
    pub async fn sql_local(&self, query: &str) -> Result<Vec<Vec<Value>>, Error> {
        self.run(SqlRequest::new(query).with_consistency(Consistency::Local)).await
    }

    /// The whole database as SQL text.
    pub async fn dump(&self) -> Result<String, Error> {
        Ok(self.client().sql_dump(false).await?.text)
    }

    /// What it knows of itself.
    pub async fn status(&self) -> Result<DaemonStatus, Error> {
        self.client().daemon_status().await
    }

    /// The members of its cluster as it sees them.
    pub async fn members(&self) -> Result<Vec<Member>, Error> {
        self.client().cluster_members().await
    }

    /// The names of the members, as it sees them.
    pub async fn member_names(&self) -> Result<Vec<String>, Error> {
        Ok(self.members().await?.into_iter().map(|member| member.name.to_string()).collect())
    }

    /// Whether it belongs to no cluster: it says so, and nothing of one is on disk.
    pub async fn is_uninitialised(&self) -> Result<(), String> {
        match self.members().await {
            Err(Error::Status { code: 503, message, .. }) if message.contains("not initialised") => {}
            other => return Err(format!("{other:?}")),
        }
        for file in ["daemon.yaml", "cluster.crt", "cluster.key", "database", "joining.json"] {
            if self.dir().join(file).exists() {
                return Err(format!("{file} is left behind"));
            }
        }
        match fs::read_dir(self.dir().join("truststore")).map_or(0, Iterator::count) {
            0 => Ok(()),
            _ => Err("the trust store is not empty".into()),
        }
    }

    async fn run(&self, request: SqlRequest) -> Result<Vec<Vec<Value>>, Error> {
        let results = self.client().timeout(DEADLINE).sql(&request).await?;
        Ok(results.into_iter().last().and_then(|result| result.rows).unwrap_or_default())
    }

    fn log_path(&self) -> PathBuf {
        self.root.path().join("log")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It has ended by itself if this fails.
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            show_log(&self.name, &self.log_path());
        }
    }
}

fn show_log(name: &Name, path: &Path) {
    let log = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    eprintln!("---- the end of the log of {name}");
    for line in &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..] {
        eprintln!("{line}");
    }
}
