//! Additional servers: their certificates, their addresses, and when they are open.

use http::Method;
use microcluster::testing::{Cluster, Member, address_free, eventually};
use microcluster::{Access, App, Builder, Endpoint, Json, Resources, Server, State, action};
use microcluster_client::{Address, Client, Error, Fingerprint, Name, ServerTrust};
use serde_json::{Value, json};

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
async fn name(address: Address, certificate: &str) -> Result<Value, Error> {
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
    assert!(matches!(name(addresses.own, &shared).await, Err(Error::Tls { .. })));

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
async fn an_address_can_be_changed_and_stays_after_a_restart() {
    let addresses = Addresses::new();
    let mut cluster = Cluster::start(1, move |builder| addresses.product(builder)).await;
    let (app, shared) = (cluster.member(0).app(), file(cluster.member(0), "cluster.crt"));
    let server: Name = "shared".parse().unwrap();
    let moved = address_free();
    app.update_servers([(server.clone(), moved)]).await.unwrap();
    assert_eq!(name(moved, &shared).await.unwrap(), json!("n1"), "at once");
    eventually("it listens at the old one no more", async || match name(addresses.shared, &shared).await {
        Err(Error::Unreachable { .. }) => Ok(()),
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

#[tokio::test]
async fn an_address_that_cannot_be_is_refused_and_nothing_changes() {
    let addresses = Addresses::new();
    let cluster = Cluster::start(1, move |builder| addresses.product(builder)).await;
    let (app, shared) = (cluster.member(0).app(), file(cluster.member(0), "cluster.crt"));
    let taken = address_free();
    let _held = std::net::TcpListener::bind(taken.socket_addr()).unwrap();
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

#[tokio::test]
async fn before_bootstrap_only_early_servers_are_open() {
    let addresses = Addresses::new();
    let dir = tempfile::tempdir().unwrap();
    let daemon = addresses.product(microcluster::Daemon::builder(dir.path())).start().await.unwrap();
    let own = std::fs::read_to_string(dir.path().join("server.crt")).unwrap();
    assert_eq!(name(addresses.early, &own).await.unwrap(), json!(null));
    for closed in [addresses.own, addresses.shared] {
        assert!(matches!(name(closed, &own).await, Err(Error::Unreachable { .. })));
    }
    // A bootstrap that fails for a taken address leaves it as it was.
    let taken = std::net::TcpListener::bind(addresses.shared.socket_addr()).unwrap();
    let app = App::new(dir.path());
    let bootstrap = async || app.bootstrap("n1".parse().unwrap(), address_free(), Default::default()).await;
    let refused = bootstrap().await.unwrap_err();
    assert!(refused.to_string().contains("shared"), "{refused}");
    assert!(matches!(name(addresses.own, &own).await, Err(Error::Unreachable { .. })));
    drop(taken);
    bootstrap().await.unwrap();
    let shared = std::fs::read_to_string(dir.path().join("cluster.crt")).unwrap();
    for open in [addresses.early, addresses.shared] {
        assert_eq!(name(open, &shared).await.unwrap(), json!("n1"));
    }
    daemon.shutdown().await;
    daemon.wait().await.unwrap();
}
