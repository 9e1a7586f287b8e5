//! Clusters in one process, for a product's own tests: on free ports of loopback, in temporary directories, with mutual TLS.
//!
//! Enabled by the feature `test-util`. What goes wrong is a panic: that is how a test fails.
//!
//! ```no_run
//! use microcluster::testing::Cluster;
//!
//! # async fn example() {
//! let mut cluster = Cluster::start(3, |builder| builder.schema(["CREATE TABLE t (a)"])).await;
//! cluster.member(0).state().database().unwrap().execute("INSERT INTO t VALUES (1)", ()).await.unwrap();
//! cluster.member_mut(0).kill();
//! cluster.member(1).state().database().unwrap().execute("INSERT INTO t VALUES (2)", ()).await.unwrap();
//! # }
//! ```
#![allow(clippy::expect_used, clippy::missing_panics_doc)]

mod address;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use microcluster_client::{Address, Client, Fingerprint, Name};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::api::{Route, table};
use crate::app::App;
use crate::builder::{Builder, Daemon};
use crate::daemon::{Handle, StartError};
use crate::listener::partition::{self, Way};
use crate::state::{Lifecycle, State};

pub use address::address_free;

/// How long a condition may take to hold. Far above what is usual: a machine under load takes its time.
const DEADLINE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(10);
/// How often the leader of a test cluster looks after the others.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// How long the tasks of a member that is killed may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

type Describe = Arc<dyn Fn(Builder) -> Builder + Send + Sync>;

/// Several daemons of a product, `n1`, `n2` and so on.
pub struct Cluster {
    members: Vec<Member>,
    describe: Describe,
    /// The ways on which nothing comes through.
    divided: Vec<Way>,
}

/// One daemon, with a runtime of its own, so that it can be killed.
pub struct Member {
    name: Name,
    address: Address,
    dir: TempDir,
    describe: Describe,
    running: Option<(Runtime, Handle)>,
    /// Held while it stands still.
    standing_still: Option<mpsc::Sender<()>>,
}

impl Cluster {
    /// Bootstraps a cluster and joins the other members to it. `describe` makes the product's daemon out of the one it is given.
    pub async fn start(size: usize, describe: impl Fn(Builder) -> Builder + Send + Sync + 'static) -> Cluster {
        let mut cluster = Cluster { members: Vec::new(), describe: Arc::new(describe), divided: Vec::new() };
        for _ in 0..size {
            cluster.add().await;
        }
        cluster
    }

    /// A member, counted from 0.
    #[must_use]
    pub fn member(&self, index: usize) -> &Member {
        &self.members[index]
    }

    /// A member to stop, kill and start, counted from 0.
    pub fn member_mut(&mut self, index: usize) -> &mut Member {
        &mut self.members[index]
    }

    /// All members, running or not.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.iter()
    }

    /// Adds a member: it bootstraps if it is the first, else it joins through one that runs.
    pub async fn add(&mut self) -> &mut Member {
        let member = self.begin_member().await;
        match self.members.iter().find(|other| other.running.is_some()) {
            None => {
                let app = member.app();
                let begun = app.bootstrap(member.name.clone(), member.address, Default::default());
                begun.await.expect("a bootstrap");
            }
            Some(other) => {
                let token = other.app().new_join_token(member.name.clone(), None).await.expect("a token");
                let app = member.app();
                let joined = app.join(member.name.clone(), member.address, token, Default::default());
                joined.await.expect("a join");
            }
        }
        self.members.push(member);
        self.members.last_mut().expect("it was added")
    }

    /// Adds a daemon that runs and is no member yet, as the last one.
    pub async fn add_uninitialised(&mut self) -> &mut Member {
        let member = self.begin_member().await;
        self.members.push(member);
        self.members.last_mut().expect("it was added")
    }

    async fn begin_member(&self) -> Member {
        let mut member = Member::new(&format!("n{}", self.members.len() + 1), self.describe.clone());
        member.start().await;
        member
    }

    /// Divides the network: these members, counted from 0, and all others do not hear each other, without an error, as behind a
    /// switch that drops packets. Each goes on to serve its own control socket. It heals what was divided before.
    pub fn partition(&mut self, side: &[usize]) {
        self.heal();
        let (one, other): (Vec<_>, Vec<_>) = self.members.iter().enumerate().partition(|(at, _)| side.contains(at));
        for (_, one) in &one {
            for (_, other) in &other {
                self.divided.extend([one.way_to(other), other.way_to(one)]);
            }
        }
        partition::divide(self.divided.iter().copied());
    }

    /// Everybody hears everybody again; what was sent meanwhile arrives, unless who sent it has given up.
    pub fn heal(&mut self) {
        partition::heal(self.divided.drain(..));
    }

    /// The place of the member that leads, once there is one that runs.
    pub async fn leader(&self) -> usize {
        eventually("a member leads", async || {
            let leads = |member: &Member| {
                // The status of one that stands still is an old one.
                let running = member.running.as_ref().filter(|_| member.standing_still.is_none())?;
                let status = running.1.state().database().ok()?.status();
                (status.is_leader() && status.has_quorum).then_some(())
            };
            self.members.iter().position(|member| leads(member).is_some()).ok_or("none")
        })
        .await
    }
}

impl Member {
    /// A daemon that does not run yet and is no member of anything.
    fn new(name: &str, describe: Describe) -> Member {
        let dir = tempfile::Builder::new().prefix("microcluster-test-").tempdir().expect("a directory");
        Member {
            name: name.parse().expect("a name"),
            address: address_free(),
            dir,
            describe,
            running: None,
            standing_still: None,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Its cluster address.
    #[must_use]
    pub fn address(&self) -> Address {
        self.address
    }

    /// Its state directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The daemon as its handlers and hooks see it.
    #[must_use]
    pub fn state(&self) -> &State {
        self.running.as_ref().expect("it runs").1.state()
    }

    /// The daemon from outside.
    #[must_use]
    pub fn app(&self) -> App {
        App::new(self.dir())
    }

    /// A client of it, by its control socket.
    #[must_use]
    pub fn client(&self) -> Client {
        self.app().local_client()
    }

    /// Starts it, again or for the first time.
    pub async fn start(&mut self) {
        assert!(self.running.is_none(), "{} runs already", self.name);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let handle = eventually("the daemon starts", async || {
            let builder = (self.describe)(Daemon::builder(self.dir()).heartbeat_interval(HEARTBEAT));
            match runtime.spawn(builder.start()).await.expect("the start does not panic") {
                // One that was killed a moment ago still goes.
                Err(held @ StartError::Held { .. }) => Err(held),
                Err(e) => panic!("{} does not start: {}", self.name, crate::error::Chain(&e)),
                Ok(handle) => Ok(handle),
            }
        })
        .await;
        self.running = Some((runtime, handle));
    }

    /// Stops it as a signal does, and waits until it has stopped.
    pub async fn stop(&mut self) {
        self.standing_still = None;
        let (runtime, handle) = self.running.take().expect("it runs");
        handle.shutdown().await;
        handle.wait().await.expect("it stops without an error");
        runtime.shutdown_background();
    }

    /// Has it stand still, as a member behind a network that drops its packets does: it answers nobody, and hears nothing.
    pub fn pause(&mut self) {
        let (runtime, _) = self.running.as_ref().expect("it runs");
        let ((hold, held), (stands, is_standing)) = (mpsc::channel::<()>(), mpsc::channel::<()>());
        // It has one worker, which this takes.
        runtime.spawn(async move {
            drop(stands);
            let _ = held.recv();
        });
        // Closed as soon as it stands.
        let _ = is_standing.recv();
        self.standing_still = Some(hold);
    }

    /// Has it go on.
    pub fn resume(&mut self) {
        self.standing_still.take().expect("it stands still");
    }

    fn way_to(&self, other: &Member) -> Way {
        let certificate = std::fs::read_to_string(self.dir().join("server.crt")).expect("it was started");
        (Fingerprint::of_pem(&certificate).expect("a certificate"), other.address.socket_addr())
    }

    /// Ends it in the middle of what it does.
    pub fn kill(&mut self) {
        self.standing_still = None;
        let (runtime, handle) = self.running.take().expect("it runs");
        end(runtime, handle);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.heal();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.standing_still = None;
        if let Some((runtime, handle)) = self.running.take() {
            end(runtime, handle);
        }
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.members).finish()
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("name", &self.name)
            .field("runs", &self.running.is_some())
            .finish_non_exhaustive()
    }
}

/// Waits until `condition` is `Ok` and returns what it holds.
///
/// # Panics
/// After a minute, with what was waited for and the last reason why it was not there.
pub async fn eventually<T, E: fmt::Display, F: AsyncFnMut() -> Result<T, E>>(what: &str, mut condition: F) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match condition().await {
            Ok(held) => return held,
            Err(reason) if Instant::now() >= deadline => {
                panic!("{what}: not within {} s; the last time: {reason}", DEADLINE.as_secs())
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Method and path of every route of the Core API, those that members use among themselves too.
#[must_use]
pub fn core_routes() -> Vec<(String, String)> {
    let method = |route: &Route| route.method.as_ref().map_or_else(String::new, ToString::to_string);
    table().iter().map(|route| (method(route), route.path.to_string())).collect()
}

/// Drops the tasks of a runtime where they wait. On a thread of its own: a runtime must not be waited for inside another one.
fn end(runtime: Runtime, handle: Handle) {
    let ended = std::thread::spawn(move || runtime.shutdown_timeout(KILL_TIMEOUT)).join();
    ended.expect("the runtime ends");
    // The member and its state hold each other, and with that the lock of the directory; the end of a process would end that.
    handle.state().set_lifecycle(Lifecycle::ShuttingDown);
}
