//! The product as its users have it: the daemon, driven over its socket.
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;

use microcluster_client::{Client, ControlRequest, SqlRequest};

#[tokio::test]
async fn a_bootstrapped_daemon_has_the_products_table() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = notes::daemon(dir.path().to_owned()).start().await.unwrap();
    let client = Client::unix(dir.path().join("control.socket"));
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    client.control(&ControlRequest::bootstrap("n1".parse().unwrap(), address.parse().unwrap())).await.unwrap();

    client.sql(&SqlRequest::new("INSERT INTO notes (text) VALUES ('buy milk')")).await.unwrap();
    let read = SqlRequest::new("SELECT id || ' ' || text FROM notes WHERE at > '2026'");
    let found = client.sql(&read).await.unwrap().results.unwrap();
    assert_eq!(found[0].rows, Some(vec![vec!["1 buy milk".into()]]));
    assert!(client.status().await.unwrap().extensions.contains(&"notes".to_owned()));

    daemon.shutdown().await;
    daemon.wait().await.unwrap();
}
