//! The product as its users have it: three members in this process.
#![allow(clippy::unwrap_used)]

use extended::Extended;
use http::Method;
use microcluster::client::Client;
use microcluster::testing::Cluster;

async fn send(client: &Client, message: &str) -> String {
    let body = Extended { sender: "127.0.0.1:1".parse().unwrap(), message: message.into() };
    client.query(Method::POST, "/1.0/extended", body).await.unwrap()
}

#[tokio::test]
async fn a_message_reaches_every_other_member_once() {
    let mut cluster = Cluster::start(3, extended::product).await;
    let (one, two, three) = (cluster.member(0), cluster.member(1), cluster.member(2));
    let line = |receiver: &microcluster::testing::Member| {
        format!(
            "cluster member at address \"{}\" received message \"hello\" from cluster member at address \"{}\"\n",
            receiver.address(),
            one.address()
        )
    };
    assert_eq!(send(&one.client(), "hello").await, line(two) + &line(three));
    let insert = "INSERT INTO extended_table (key, value) VALUES ('k', 'v') RETURNING id";
    one.app().sql(insert).await.unwrap();
    let extensions = two.client().status().await.unwrap().extensions;
    for extension in ["custom_extension_a_0", "custom_extension_a_1"] {
        assert!(extensions.iter().any(|own| own == extension), "{extensions:?}");
        assert!(two.state().has_extension(extension));
    }

    let expected = line(two);
    cluster.member_mut(2).kill();
    let one = cluster.member(0);
    let answer = send(&one.client(), "hello").await;
    assert!(answer.starts_with(&expected) && answer.contains("n3 did not answer"), "{answer}");
}

#[tokio::test]
async fn a_single_member_has_nobody_to_tell() {
    let cluster = Cluster::start(1, extended::product).await;
    let one = cluster.member(0);
    assert_eq!(send(&one.client(), "hello").await, "");
    let wrong =
        one.client().query::<String>(Method::POST, "/1.0/extended", body_with_wrong_sender()).await.unwrap_err();
    assert!(wrong.code() == Some(400) && wrong.to_string().contains("sender"), "{wrong}");
}

fn body_with_wrong_sender() -> std::collections::BTreeMap<&'static str, &'static str> {
    [("sender", "nowhere"), ("message", "hello")].into()
}
