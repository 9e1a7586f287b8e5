//! Daemons that cannot be as they are described: refused before anything listens.

use microcluster::testing::address_free;
use microcluster::{Builder, Daemon, Endpoint, Resources, Response, Server, StartError};

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
