//! Websockets of a product: through the socket, over TLS, to another member, and when a daemon stops.

use std::time::{Duration, Instant};

use microcluster::axum::extract::ws;
use microcluster::testing::{Cluster, address_free, eventually};
use microcluster::{
    Access, Builder, Endpoint, Notification, Resources, Response, Server, State, WebSocketUpgrade, action,
};
use microcluster_client::{Client, Error, Message, ServerTrust};

/// Says who it is, then sends everything back.
async fn echo(state: State, Notification(passed_on): Notification, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(move |mut socket| async move {
        let name = state.name().map(|name| name.to_string()).unwrap_or_default();
        let greeting = format!("{name} {passed_on}");
        if socket.send(ws::Message::text(greeting)).await.is_err() {
            return;
        }
        while let Some(Ok(message)) = socket.recv().await {
            if socket.send(message).await.is_err() {
                return;
            }
        }
    })
}

/// Says how long a message was; takes none of more than 100 bytes.
async fn bounded(upgrade: WebSocketUpgrade) -> Response {
    upgrade.message_limit(100).on_upgrade(|mut socket| async move {
        while let Some(Ok(message)) = socket.recv().await {
            let length = message.into_data().len().to_string();
            if socket.send(ws::Message::text(length)).await.is_err() {
                return;
            }
        }
    })
}

fn resources() -> Resources {
    Resources::at("1.0")
        .endpoint(Endpoint::new("echo").get(action(echo).proxy_target()))
        .endpoint(Endpoint::new("bounded").get(bounded))
}

fn product(builder: Builder) -> Builder {
    builder.server("echo", Server::core_api().serve_unix().resources(resources()))
}

async fn exchange(client: &Client) -> String {
    let mut socket = client.websocket("/1.0/echo").await.unwrap();
    let Message::Text(greeting) = socket.next().await.unwrap().unwrap() else { panic!("no text") };
    for text in ["one", "two"] {
        socket.send(Message::text(text)).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(text));
    }
    socket.close().await.unwrap();
    greeting.to_string()
}

#[tokio::test]
async fn a_websocket_goes_over_the_socket_tls_and_to_another_member() {
    let cluster = Cluster::start(2, product).await;
    let (one, two) = (cluster.member(0), cluster.member(1));
    assert_eq!(exchange(&one.client()).await, "n1 false");
    assert_eq!(exchange(&one.app().remote_client(two.address()).unwrap()).await, "n2 false");
    assert_eq!(exchange(&one.client().target(two.name().clone())).await, "n2 false", "passed on is no fan-out");
}

/// What a removed member has opened ends with its membership, on the member that it has asked and on the way to another one.
#[tokio::test]
async fn the_websockets_of_a_removed_member_are_closed() {
    let cluster = Cluster::start(3, product).await;
    let [one, two, three] = [0, 1, 2].map(|place| cluster.member(place));
    let removed = three.app().remote_client(one.address()).unwrap();
    let stays = two.app().remote_client(one.address()).unwrap();
    let mut ended = Vec::new();
    for client in [removed.clone(), removed.target(two.name().clone())] {
        let mut socket = client.websocket("/1.0/echo").await.unwrap();
        socket.next().await.unwrap().unwrap();
        ended.push(socket);
    }
    let mut open = Vec::new();
    for client in [stays.clone(), stays.target(two.name().clone()), one.client()] {
        let mut socket = client.websocket("/1.0/echo").await.unwrap();
        socket.next().await.unwrap().unwrap();
        open.push(socket);
    }
    one.app().remove_member(three.name(), false).await.unwrap();
    for mut socket in ended {
        let last = tokio::time::timeout(Duration::from_secs(20), socket.next()).await.expect("it is closed");
        assert!(matches!(last, None | Some(Err(_) | Ok(Message::Close(_)))), "{last:?}");
    }
    for mut socket in open {
        socket.send(Message::text("still here")).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("still here"));
    }
}

#[tokio::test]
async fn a_refused_websocket_says_why() {
    let cluster = Cluster::start(1, product).await;
    let client = cluster.member(0).client();
    let missing = client.websocket("/1.0/nothing").await.unwrap_err();
    assert!(
        matches!(&missing, Error::Status { code: 404, message, .. } if message.contains("/1.0/nothing")),
        "{missing:?}"
    );
    let plain = client.query::<()>(http::Method::GET, "/1.0/echo", ()).await.unwrap_err();
    assert!(matches!(plain.code(), Some(400..=426)), "{plain:?}");
}

#[tokio::test]
async fn a_message_over_the_limit_ends_the_websocket() {
    let cluster = Cluster::start(1, product).await;
    let mut socket = cluster.member(0).client().websocket("/1.0/bounded").await.unwrap();
    socket.send(Message::text("x".repeat(100))).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("100"));
    socket.send(Message::text("x".repeat(101))).await.unwrap();
    let next = tokio::time::timeout(Duration::from_secs(30), socket.next()).await.expect("it ends");
    assert!(matches!(next, None | Some(Err(_) | Ok(Message::Close(_)))), "{next:?}");
}

#[tokio::test]
async fn a_server_that_is_moved_ends_its_websockets() {
    let (before, after) = (address_free(), address_free());
    let echo = || Resources::at("1.0").endpoint(Endpoint::new("echo").get(action(echo).access(Access::Open)));
    let cluster =
        Cluster::start(1, move |builder| builder.server("chat", Server::listen(before.to_string()).resources(echo())))
            .await;
    let member = cluster.member(0);
    let pinned = ServerTrust::pinned_pem(&member.state().cluster_certificate().unwrap()).unwrap();
    let client = |address| Client::tls(address, None, &pinned).unwrap();
    let mut socket = client(before).websocket("/1.0/echo").await.unwrap();
    socket.next().await.unwrap().unwrap();
    member.app().update_servers([("chat".parse().unwrap(), after)]).await.unwrap();
    let next = tokio::time::timeout(Duration::from_secs(30), socket.next()).await.expect("it ends");
    assert!(matches!(next, None | Some(Err(_) | Ok(Message::Close(_)))), "{next:?}");
    let moved = eventually("it is at the new address", async || client(after).websocket("/1.0/echo").await).await;
    moved.close().await.unwrap();
}

#[tokio::test]
async fn a_stop_ends_open_websockets_at_once() {
    let mut cluster = Cluster::start(1, product).await;
    let mut socket = cluster.member(0).client().websocket("/1.0/echo").await.unwrap();
    socket.next().await.unwrap().unwrap();
    let begun = Instant::now();
    cluster.member_mut(0).stop().await;
    assert!(begun.elapsed() < Duration::from_secs(4), "it does not wait for the drain: {:?}", begun.elapsed());
    assert!(matches!(socket.next().await, None | Some(Err(_) | Ok(Message::Close(_)))));
}
