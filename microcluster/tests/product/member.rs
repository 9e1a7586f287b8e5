//! One daemon of the product, with a state directory of its own.

use std::time::{Duration, Instant};

use http::Method;
use microcluster::{Builder, Daemon, Handle, SchemaUpdate};
use microcluster_client::{
    Address, Client, ControlRequest, Empty, Error, InitConfig, Member as Listed, Name, Secret, SqlRequest, TokenRequest,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::address::address_free;
use crate::recorder::{Journal, Recorder};

/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Member {
    pub dir: TempDir,
    pub name: Name,
    pub address: Address,
    pub handle: Option<Handle>,
    journal: Journal,
    hook_timeout: Duration,
    schema: Vec<SchemaUpdate>,
    extensions: Vec<String>,
}

impl Member {
    /// A daemon that does not run yet, whose hooks write to a journal.
    pub fn new(name: &str, journal: &Journal) -> Member {
        // The log of the daemons, for a test that fails: RUST_LOG=debug.
        let level = std::env::var("RUST_LOG").ok().and_then(|level| level.parse().ok());
        let level = level.unwrap_or(tracing_subscriber::filter::LevelFilter::ERROR);
        tracing_subscriber::fmt().with_max_level(level).with_test_writer().try_init().ok();
        Member {
            dir: tempfile::tempdir().unwrap(),
            name: name.parse().unwrap(),
            address: address_free(),
            handle: None,
            journal: journal.clone(),
            hook_timeout: PATIENCE,
            schema: Vec::new(),
            extensions: Vec::new(),
        }
    }

    pub fn hook_timeout(mut self, timeout: Duration) -> Member {
        self.hook_timeout = timeout;
        self
    }

    /// The product's schema, from its next start on.
    pub fn schema<S: Clone + Into<SchemaUpdate>>(&mut self, schema: &[S]) {
        self.schema = schema.iter().cloned().map(Into::into).collect();
    }

    /// The product's API extensions, from its next start on.
    pub fn extensions(&mut self, extensions: &[&str]) {
        self.extensions = extensions.iter().map(ToString::to_string).collect();
    }

    pub fn builder(&self) -> Builder {
        Daemon::builder(self.dir.path())
            // A test asks for the rounds that it wants.
            .heartbeat_interval(Duration::from_secs(3600))
            .drain_timeout(Duration::from_secs(2))
            .hook_timeout(self.hook_timeout)
            .schema(self.schema.clone())
            .api_extensions(self.extensions.clone())
            .hooks(Recorder::new(self.name.as_str(), &self.journal))
    }

    /// Starts it, and waits until it is ready.
    pub async fn start(name: &str, journal: &Journal) -> Member {
        let mut member = Member::new(name, journal);
        member.start_again().await;
        member
    }

    pub async fn start_again(&mut self) {
        self.begin().await;
        self.client().wait_ready(PATIENCE).await.unwrap();
    }

    /// Starts it and waits for nothing.
    pub async fn begin(&mut self) {
        self.handle = Some(self.builder().start().await.unwrap());
    }

    pub async fn stop(&mut self) {
        let handle = self.handle.take().unwrap();
        handle.shutdown().await;
        handle.wait().await.unwrap();
    }

    pub async fn bootstrap(&self, config: InitConfig) -> Result<(), Error> {
        let request = ControlRequest::bootstrap(self.name.clone(), self.address).with_config(config);
        self.client().control(&request).await
    }

    pub async fn join(&self, token: &Secret, config: InitConfig) -> Result<(), Error> {
        let request = ControlRequest::join(self.name.clone(), self.address, token.clone()).with_config(config);
        self.client().control(&request).await
    }

    pub async fn token(&self, name: &Name) -> Secret {
        self.client().add_token(&TokenRequest { name: name.clone(), expire_after: None }).await.unwrap()
    }

    pub fn client(&self) -> Client {
        Client::unix(self.dir.path().join("control.socket")).timeout(PATIENCE)
    }

    pub async fn members(&self) -> Vec<Listed> {
        self.client().cluster_members().await.unwrap()
    }

    pub async fn names(&self) -> Vec<String> {
        self.members().await.iter().map(|member| member.name.to_string()).collect()
    }

    pub async fn sql(&self, query: &str) -> Vec<Vec<Value>> {
        let results = self.client().sql(&SqlRequest::new(query)).await.unwrap();
        results.into_iter().last().and_then(|result| result.rows).unwrap_or_default()
    }

    /// Asks for a heartbeat round.
    pub async fn heartbeat(&self) -> Result<(), Error> {
        let round = serde_json::json!({"begin_round": true});
        self.client().query::<Empty>(Method::POST, "/core/internal/heartbeat", round).await.map(|_| ())
    }

    /// Waits until it belongs to no cluster.
    pub async fn is_free(&self) {
        eventually("the daemon is uninitialised", async || {
            self.client().ready().await.is_ok()
                && self.client().status().await.is_ok_and(|status| status.address.is_none())
        })
        .await;
        for file in ["daemon.yaml", "joining.json", "cluster.crt", "database"] {
            assert!(!self.dir.path().join(file).exists(), "{file} is left");
        }
    }
}

/// A cluster of members `c1`, `c2`, …
pub async fn cluster(count: usize, journal: &Journal) -> Vec<Member> {
    cluster_of::<&str>(count, journal, &[]).await
}

/// The same with a schema of the product.
pub async fn cluster_of<S: Clone + Into<SchemaUpdate>>(count: usize, journal: &Journal, schema: &[S]) -> Vec<Member> {
    let mut members: Vec<Member> = Vec::new();
    for number in 1..=count {
        let mut member = Member::new(&format!("c{number}"), journal);
        member.schema(schema);
        member.start_again().await;
        match members.first() {
            None => member.bootstrap(InitConfig::default()).await.unwrap(),
            Some(first) => member.join(&first.token(&member.name).await, InitConfig::default()).await.unwrap(),
        }
        members.push(member);
    }
    journal.take();
    members
}

/// Waits for a condition, and says what was waited for when it does not come.
pub async fn eventually<F: AsyncFnMut() -> bool>(what: &str, mut condition: F) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The code and the words of a refusal.
pub fn refused<T: std::fmt::Debug>(result: Result<T, Error>) -> (u16, String) {
    match result.unwrap_err() {
        Error::Status { code, message, .. } => (code, message),
        other => panic!("no answer of the daemon: {other:?}"),
    }
}
