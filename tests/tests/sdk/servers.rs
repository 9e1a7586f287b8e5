//! Additional servers: their certificates, their addresses, and when they are open.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use microcluster::testing::{Cluster, Member, address_free, eventually};
use microcluster::{
    Access, Action, App, Builder, DaemonConfig, Endpoint, Error, Hooks, InitConfig, Json, Resources, Response, Result,
    Server, State, action,
};
use microcluster_client::{Address, Client, Error as ClientError, Fingerprint, Name, ServerTrust};
use serde_json::{Value, json};
use tokio::sync::Notify;

use cluster_tests::self_signed;

async fn member_name(state: State) -> Json<Option<Name>> {
    Json(state.name())
}

fn resources() -> Resources {
    Resources::at("")
        .endpoint(Endpoint::new("name").get(action(member_name).access(Access::Open).allowed_before_init()))
}

/// Where the servers of one daemon are.
#[derive(Clone, Copy)]
struct Addresses {
    own: Address,
    shared: Address,
    early: Address,
}

impl Addresses {
    fn new() -> Addresses {
        Addresses { own: address_free(), shared: address_free(), early: address_free() }
    }

    fn product(self, builder: Builder) -> Builder {
        builder
            .server("own", Server::listen(self.own.to_string()).dedicated_certificate().resources(resources()))
            .server("shared", Server::listen(self.shared.to_string()).resources(resources()))
            .server("early", Server::listen(self.early.to_string()).pre_init(true).resources(resources()))
    }
}

/// What a server answers when it presents this certificate.
async fn name(address: Address, certificate: &str) -> Result<Value, ClientError> {
    let pinned = ServerTrust::Pinned(Fingerprint::of_pem(certificate).unwrap());
    Client::tls(address, None, &pinned)?.query(Method::GET, "/name", ()).await
}

fn file(member: &Member, name: &str) -> String {
    std::fs::read_to_string(member.dir().join(name)).unwrap()
}

#[tokio::test]
async fn a_server_presents_its_own_certificate_or_that_of_the_cluster() {
    let addresses = Addresses::new();
    let mut cluster = Cluster::start(1, move |builder| addresses.product(builder)).await;
    let (dedicated, shared) = (file(cluster.member(0), "certificates/own.crt"), file(cluster.member(0), "cluster.crt"));
    assert_eq!(name(addresses.own, &dedicated).await.unwrap(), json!("n1"));
    assert_eq!(name(addresses.shared, &shared).await.unwrap(), json!("n1"));
    assert!(matches!(name(addresses.own, &shared).await, Err(ClientError::Tls { .. })));

    cluster.member_mut(0).stop().await;
    cluster.member_mut(0).start().await;
    assert_eq!(name(addresses.own, &dedicated).await.unwrap(), json!("n1"), "it is the same after a restart");
}

#[tokio::test]
async fn a_certificate_that_arrives_later_is_presented() {
    let addresses = Addresses::new();
    let cluster = Cluster::start(1, move |builder| addresses.product(builder)).await;
    let member = cluster.member(0);
    // By the API.
    let given = self_signed("shared");
    member.app().update_certificate(&"shared".parse().unwrap(), &given).await.unwrap();
    eventually("it is presented", async || name(addresses.shared, &given.cert).await).await;
    // By its files.
    let given = self_signed("early");
    let folder = member.dir().join("certificates");
    std::fs::write(folder.join("early.key"), given.key.expose()).unwrap();
    std::fs::write(folder.join("early.crt"), &given.cert).unwrap();
    eventually("it is presented", async || name(addresses.early, &given.cert).await).await;
    // One that cannot be used changes nothing.
    std::fs::write(folder.join("early.crt"), "garbage").unwrap();
    let again = self_signed("shared");
    member.app().update_certificate(&"shared".parse().unwrap(), &again).await.unwrap();
    eventually("it is presented", async || name(addresses.shared, &again.cert).await).await;
    assert_eq!(name(addresses.early, &given.cert).await.unwrap(), json!("n1"));
}

#[tokio::test]
async fn an_early_server_presents_what_arrives_before_bootstrap() {
    let addresses = Addresses::new();
    let dir = tempfile::tempdir().unwrap();
    let daemon = addresses.product(microcluster::Daemon::builder(dir.path())).start().await.unwrap();
    let given = self_signed("early");
    let folder = dir.path().join("certificates");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("early.key"), given.key.expose()).unwrap();
    std::fs::write(folder.join("early.crt"), &given.cert).unwrap();
    let answer = eventually("it is presented", async || name(addresses.early, &given.cert).await).await;
    assert_eq!(answer, json!(null), "there is no member yet");
    daemon.shutdown().await;
    daemon.wait().await.unwrap();
}

#[tokio::test]
async fn a_dedicated_certificate_whose_files_are_gone_stays() {
    let addresses = Addresses::new();
    let cluster = Cluster::start(1, move |builder| addresses.product(builder)).await;
    let member = cluster.member(0);
    let (dedicated, shared) = (file(member, "certificates/own.crt"), file(member, "cluster.crt"));
    let folder = member.dir().join("certificates");
    // That of another server goes at the same time: once that was seen, so was this.
    let given = self_signed("shared");
    std::fs::write(folder.join("shared.key"), given.key.expose()).unwrap();
    std::fs::write(folder.join("shared.crt"), &given.cert).unwrap();
    eventually("it is presented", async || name(addresses.shared, &given.cert).await).await;
    for file in ["own.crt", "own.key", "shared.crt", "shared.key"] {
        std::fs::remove_file(folder.join(file)).unwrap();
    }
    eventually("it presents the cluster's again", async || name(addresses.shared, &shared).await).await;
    assert_eq!(name(addresses.own, &dedicated).await.unwrap(), json!("n1"));
}

#[tokio::test]
async fn an_address_can_be_changed_and_stays_after_a_restart() {
    let addresses = Addresses::new();
    let mut cluster = Cluster::start(1, move |builder| addresses.product(builder)).await;
    let (app, shared) = (cluster.member(0).app(), file(cluster.member(0), "cluster.crt"));
    let server: Name = "shared".parse().unwrap();
    let moved = address_free();
    app.update_servers([(server.clone(), moved)]).await.unwrap();
    assert_eq!(name(moved, &shared).await.unwrap(), json!("n1"), "at once");
    eventually("it listens at the old one no more", async || match name(addresses.shared, &shared).await {
        Err(ClientError::Unreachable { .. }) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!(cluster.member(0).state().servers()[&server], moved);

    cluster.member_mut(0).stop().await;
    cluster.member_mut(0).start().await;
    assert_eq!(name(moved, &shared).await.unwrap(), json!("n1"));
    let listed = cluster.member(0).client().daemon_servers().await.unwrap();
    assert_eq!((listed[&server].address, listed.len()), (moved, 3));

    app.update_servers([]).await.unwrap();
    eventually("it is back where it was", async || name(addresses.shared, &shared).await).await;
}

/// Agrees to no change of the configuration, once it is told so.
#[derive(Clone, Default)]
struct Stubborn(Arc<AtomicBool>);

impl Hooks for Stubborn {
    async fn on_daemon_config_update(&self, _state: &State, _config: &DaemonConfig) -> Result<()> {
        if self.0.load(Ordering::SeqCst) { Err(Error::conflict("it stays where it is")) } else { Ok(()) }
    }
}

#[tokio::test]
async fn a_server_whose_move_is_undone_is_where_it_was() {
    let (addresses, hooks) = (Addresses::new(), Stubborn::default());
    let own = hooks.clone();
    let cluster = Cluster::start(1, move |builder| addresses.product(builder).hooks(own.clone())).await;
    let (app, shared) = (cluster.member(0).app(), file(cluster.member(0), "cluster.crt"));
    let server: Name = "shared".parse().unwrap();
    let (second, third) = (address_free(), address_free());
    app.update_servers([(server.clone(), second)]).await.unwrap();
    eventually("it is moved", async || name(second, &shared).await).await;
    hooks.0.store(true, Ordering::SeqCst);
    let refused = app.update_servers([(server.clone(), third)]).await.unwrap_err();
    assert!(refused.to_string().contains("it stays where it is"), "{refused}");
    eventually("it answers where it was, and nowhere else", async || {
        match (name(second, &shared).await, name(third, &shared).await) {
            (Ok(_), Err(ClientError::Unreachable { .. })) => Ok(()),
            (before, after) => Err(format!("{before:?} {after:?}")),
        }
    })
    .await;
    assert_eq!(cluster.member(0).state().servers()[&server], second);
}

/// Says no to one change, when it is told to.
#[derive(Clone, Default)]
struct SaysNo(Arc<Notify>, Arc<AtomicBool>);

impl Hooks for SaysNo {
    async fn on_daemon_config_update(&self, _state: &State, _config: &DaemonConfig) -> Result<()> {
        if self.1.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        self.0.notified().await;
        Err(Error::conflict("it goes back"))
    }
}

#[tokio::test]
async fn a_server_that_is_not_open_holds_up_no_change_of_another_one() {
    let (addresses, hooks) = (Addresses::new(), SaysNo::default());
    let own = hooks.clone();
    let cluster = Cluster::start(1, move |builder| addresses.product(builder).hooks(own.clone())).await;
    let (member, shared) = (cluster.member(0), file(cluster.member(0), "cluster.crt"));
    let app = member.app();
    let [stuck, other]: [Name; 2] = ["own", "shared"].map(|name| name.parse().unwrap());
    // While it is elsewhere somebody takes the address it comes from, so that it cannot go back.
    let occupied = async {
        let held = eventually("the address is left", async || TcpListener::bind(addresses.own.socket_addr())).await;
        hooks.0.notify_one();
        held
    };
    let (refused, held) = tokio::join!(app.update_servers([(stuck.clone(), address_free())]), occupied);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("it goes back"), "{refused}");
    let moved = address_free();
    app.update_servers([(other.clone(), moved)]).await.unwrap();
    assert_eq!(name(moved, &shared).await.unwrap(), json!("n1"), "at once");
    assert_eq!(member.state().servers()[&stuck], addresses.own);
    // What is wrong with all that are moved is said.
    let taken: [TcpListener; 2] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let taken: Vec<Address> =
        taken.iter().map(|held| held.local_addr().unwrap().to_string().parse().unwrap()).collect();
    let refused = app.update_servers([(stuck.clone(), taken[0]), (other.clone(), taken[1])]).await.unwrap_err();
    let refused = refused.to_string();
    for named in [stuck.to_string(), other.to_string(), taken[0].to_string(), taken[1].to_string()] {
        assert!(refused.contains(&named), "{refused}");
    }
    assert_eq!(name(moved, &shared).await.unwrap(), json!("n1"), "it is where it was");
    // It was tried all the time.
    drop(held);
    let dedicated = file(member, "certificates/own.crt");
    eventually("it is open again", async || name(addresses.own, &dedicated).await).await;
}

async fn never() -> Response {
    std::future::pending().await
}

/// What runs on a server that is closed has the time of that server, and not that of the daemon.
#[tokio::test]
async fn a_server_is_drained_for_its_own_time() {
    let (before, after) = (address_free(), address_free());
    let slow = || {
        let open = |handler: Action| handler.access(Access::Open);
        let never = Endpoint::new("never").get(open(action(never))).post(open(action(never)));
        Resources::at("").endpoint(never).endpoint(Endpoint::new("name").get(open(action(member_name))))
    };
    let cluster = Cluster::start(1, move |builder| {
        let server = Server::listen(before.to_string()).drain_timeout(Duration::from_millis(100)).resources(slow());
        builder.drain_timeout(Duration::from_secs(60)).server("slow", server)
    })
    .await;
    let member = cluster.member(0);
    let shared = file(member, "cluster.crt");
    let client = Client::tls(before, None, &ServerTrust::pinned_pem(&shared).unwrap()).unwrap();
    let begun = Instant::now();
    let ask = |method| client.query::<Value>(method, "/never", ());
    let moved = async {
        // The requests are there once the server has answered one that came after them.
        name(before, &shared).await.unwrap();
        member.app().update_servers([("slow".parse().unwrap(), after)]).await.unwrap();
    };
    let (get, post, ()) = tokio::join!(ask(Method::GET), ask(Method::POST), moved);
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    for cut_off in [get, post] {
        let cut_off = cut_off.unwrap_err();
        assert!(cut_off.outcome_unknown() || cut_off.code() == Some(504), "{cut_off:?}");
    }
    eventually("it is at the new address", async || name(after, &shared).await).await;
}

/// What extends the Core API is on the pre-init address where that is asked for, until the daemon is a member.
#[tokio::test]
async fn what_extends_the_core_api_can_be_on_the_pre_init_address() {
    let early = address_free();
    let dir = tempfile::tempdir().unwrap();
    let at = |prefix: &str| {
        let name = action(member_name).access(Access::Open);
        Resources::at(prefix).endpoint(Endpoint::new("name").get(name.allowed_before_init()))
    };
    let daemon = microcluster::Daemon::builder(dir.path())
        .pre_init_listen(early.to_string())
        .server("early", Server::core_api().pre_init(true).resources(at("early")))
        .server("late", Server::core_api().resources(at("late")))
        .start()
        .await
        .unwrap();
    let pinned = ServerTrust::pinned_pem(&daemon.state().server_certificate_pem()).unwrap();
    let client = Client::tls(early, None, &pinned).unwrap();
    assert_eq!(client.query::<Value>(Method::GET, "/early/name", ()).await.unwrap(), json!(null));
    let missing = client.query::<Value>(Method::GET, "/late/name", ()).await.unwrap_err();
    assert_eq!(missing.code(), Some(404));
    App::new(dir.path()).bootstrap("n1".parse().unwrap(), address_free(), Default::default()).await.unwrap();
    let closed = client.query::<Value>(Method::GET, "/early/name", ()).await.unwrap_err();
    assert!(matches!(closed, ClientError::Unreachable { .. } | ClientError::Interrupted { .. }), "{closed:?}");
    daemon.shutdown().await;
    daemon.wait().await.unwrap();
}

#[tokio::test]
async fn an_address_that_cannot_be_is_refused_and_nothing_changes() {
    let addresses = Addresses::new();
    let cluster = Cluster::start(1, move |builder| addresses.product(builder)).await;
    let (app, shared) = (cluster.member(0).app(), file(cluster.member(0), "cluster.crt"));
    let taken = address_free();
    let _held = TcpListener::bind(taken.socket_addr()).unwrap();
    for (server, address, code) in [
        ("shared", taken, 409),
        ("shared", addresses.own, 409),
        ("shared", cluster.member(0).address(), 409),
        ("nobody", address_free(), 404),
    ] {
        let refused = app.update_servers([(server.parse().unwrap(), address)]).await.unwrap_err();
        let microcluster::AppError::Client(refused) = refused else { panic!("{refused}") };
        assert_eq!(refused.code(), Some(code), "{refused}");
        assert!(refused.to_string().contains(server), "{refused}");
    }
    assert_eq!(name(addresses.shared, &shared).await.unwrap(), json!("n1"));
}

/// Finds out whether a server is open while the product is asked, and does not agree.
struct Refuses(Address);

impl Hooks for Refuses {
    async fn pre_init(&self, _state: &State, _bootstrap: bool, _config: &InitConfig) -> Result<()> {
        match std::net::TcpStream::connect(self.0.socket_addr()) {
            Ok(_) => Err(Error::internal("a server is open")),
            Err(_) => Err(Error::conflict("not here")),
        }
    }
}

#[tokio::test]
async fn no_server_is_opened_for_a_bootstrap_that_the_product_refuses() {
    let addresses = Addresses::new();
    let dir = tempfile::tempdir().unwrap();
    let builder = addresses.product(microcluster::Daemon::builder(dir.path())).hooks(Refuses(addresses.own));
    let daemon = builder.start().await.unwrap();
    let refused = App::new(dir.path()).bootstrap("n1".parse().unwrap(), address_free(), Default::default()).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("not here"), "{refused}");
    assert!(!dir.path().join("certificates/own.crt").exists(), "a certificate was made");
    daemon.shutdown().await;
    daemon.wait().await.unwrap();
}

#[tokio::test]
async fn before_bootstrap_only_early_servers_are_open() {
    let addresses = Addresses::new();
    let dir = tempfile::tempdir().unwrap();
    let daemon = addresses.product(microcluster::Daemon::builder(dir.path())).start().await.unwrap();
    let own = std::fs::read_to_string(dir.path().join("server.crt")).unwrap();
    assert_eq!(name(addresses.early, &own).await.unwrap(), json!(null));
    for closed in [addresses.own, addresses.shared] {
        assert!(matches!(name(closed, &own).await, Err(ClientError::Unreachable { .. })));
    }
    // A bootstrap that fails for a taken address leaves it as it was.
    let taken = TcpListener::bind(addresses.shared.socket_addr()).unwrap();
    let app = App::new(dir.path());
    let bootstrap = async || app.bootstrap("n1".parse().unwrap(), address_free(), Default::default()).await;
    let refused = bootstrap().await.unwrap_err();
    assert!(refused.to_string().contains("shared"), "{refused}");
    assert!(matches!(name(addresses.own, &own).await, Err(ClientError::Unreachable { .. })));
    drop(taken);
    bootstrap().await.unwrap();
    let shared = std::fs::read_to_string(dir.path().join("cluster.crt")).unwrap();
    for open in [addresses.early, addresses.shared] {
        assert_eq!(name(open, &shared).await.unwrap(), json!("n1"));
    }
    daemon.shutdown().await;
    daemon.wait().await.unwrap();
}
