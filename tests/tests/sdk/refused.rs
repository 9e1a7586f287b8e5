//! Daemons that cannot be as they are described: refused before anything listens.

use std::time::Duration;

use microcluster::testing::address_free;
use microcluster::{
    AdditionalServer, App, AppError, Builder, CoreApiServer, Daemon, Endpoint, Resources, Response, Server, StartError,
};

async fn nothing() -> Response {
    Response::empty()
}

fn at(prefix: &str, path: &str) -> Resources {
    Resources::at(prefix).endpoint(Endpoint::new(path).get(nothing))
}

async fn refused(describe: impl FnOnce(Builder) -> Builder) -> StartError {
    let dir = tempfile::tempdir().unwrap();
    let refused = describe(Daemon::builder(dir.path())).start().await.map(|_| ()).unwrap_err();
    assert!(!dir.path().join("control.socket").exists(), "nothing was begun");
    refused
}

#[tokio::test]
async fn what_does_not_fit_together_names_both_sides() {
    let core = refused(|builder| builder.server("a", Server::core_api().resources(at("core/1.0", "x")))).await;
    assert!(matches!(&core, StartError::Description { reason } if reason.contains("/core/1.0/x")), "{core}");
    let twice = refused(|builder| {
        let (one, other) = (at("1.0", "x/{y}"), at("1.0", "x/{z}"));
        builder.server("a", Server::core_api().resources(one)).server("b", Server::core_api().resources(other))
    })
    .await;
    let text = twice.to_string();
    assert!(["server a", "server b", "/1.0/x/{y}", "/1.0/x/{z}"].iter().all(|part| text.contains(part)), "{text}");
}

/// What a kind of server does not have does not compile: these methods are found only because the server has none of that name.
#[test]
fn what_a_server_cannot_have_does_not_compile() {
    #[derive(Debug, PartialEq)]
    struct Missing;
    trait Absent: Sized {
        fn dedicated_certificate(self) -> Missing {
            Missing
        }
        fn drain_timeout(self, _timeout: Duration) -> Missing {
            Missing
        }
    }
    impl Absent for CoreApiServer {}
    trait AbsentToo: Sized {
        fn serve_unix(self) -> Missing {
            Missing
        }
    }
    impl AbsentToo for AdditionalServer {}
    assert_eq!(Server::core_api().dedicated_certificate(), Missing);
    assert_eq!(Server::core_api().drain_timeout(Duration::ZERO), Missing);
    assert_eq!(Server::listen("127.0.0.1:1").serve_unix(), Missing);
}

/// Whoever is in the way is named before anything is changed: by the start where that can be known, else by `init`.
#[tokio::test]
async fn an_address_that_is_in_the_way_names_both_sides() {
    let (early, metrics) = (address_free(), address_free());
    let product = |builder: Builder| {
        let server = Server::listen(format!("0.0.0.0:{}", metrics.port())).resources(at("", "x"));
        builder.server("metrics", server).pre_init_listen(early.to_string())
    };
    let own = metrics.to_string();
    let second = Server::listen(own.as_str()).resources(at("", "x"));
    let text = refused(|builder| product(builder).server("second", second)).await.to_string();
    assert!(["metrics", "second", own.as_str(), "0.0.0.0"].iter().all(|part| text.contains(part)), "{text}");
    let text = refused(|builder| product(builder).pre_init_listen("nowhere")).await.to_string();
    assert!(text.contains("pre-init") && text.contains("nowhere"), "{text}");

    let dir = tempfile::tempdir().unwrap();
    let daemon = product(Daemon::builder(dir.path())).start().await.unwrap();
    let certificate = std::fs::read(dir.path().join("server.crt")).unwrap();
    let app = App::new(dir.path());
    let refused = app.bootstrap("n1".parse().unwrap(), metrics, Default::default()).await.unwrap_err();
    let AppError::Client(refused) = refused else { panic!("{refused}") };
    let text = refused.to_string();
    assert_eq!(refused.code(), Some(409), "{text}");
    assert!(text.contains("metrics") && text.contains(&metrics.to_string()), "{text}");
    assert_eq!(std::fs::read(dir.path().join("server.crt")).unwrap(), certificate);
    daemon.shutdown().await;
    daemon.wait().await.unwrap();
}

#[tokio::test]
async fn an_early_server_whose_address_is_taken_ends_the_start() {
    let address = address_free();
    let _taken = std::net::TcpListener::bind(address.socket_addr()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let server = Server::listen(address.to_string()).pre_init(true).resources(at("", "x"));
    let refused = Daemon::builder(dir.path()).server("early", server).start().await.map(|_| ()).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("early") && text.contains(&address.to_string()), "{text}");
}
