//! HTTP itself: paths, methods, bodies that are too large, and clients without manners.

use cluster_tests::{Caller, Daemon, Payload, Protocol, Target, TestCluster};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

#[tokio::test]
async fn unknown_paths_and_methods_say_so() {
    let cluster = TestCluster::start(1).await;
    for caller in [Caller::Socket, Caller::Member] {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let target = Target::new(&cluster.members[0], caller).protocol(protocol);
            for path in
                ["/nope", "/core", "/core/", "/core/1.0/", "/core/2.0", "/core/1.0/cluster/a/b", "/core/1.0//cluster"]
            {
                let message = target.send(&format!("GET {path}"), Payload::none()).await.error(404);
                assert!(message.contains(path), "{message}");
            }
            for (request, allowed) in [
                ("PATCH /core/1.0", "GET, HEAD, OPTIONS"),
                ("POST /core/1.0/cluster", "GET, HEAD, OPTIONS"),
                ("PUT /core/internal/sql", "GET, POST, HEAD, OPTIONS"),
                ("BREW /core/1.0/cluster/c1", "GET, DELETE, HEAD, OPTIONS"),
            ] {
                let answer = target.send(request, Payload::none()).await;
                let message = answer.error(405);
                let (method, path) = request.split_once(' ').unwrap();
                assert!(message.contains(method) && message.contains(path), "{message}");
                assert_eq!(answer.headers["allow"], allowed, "{request}");
            }
            let answer = target.send("OPTIONS /core/1.0/cluster/c1", Payload::none()).await;
            assert_eq!((answer.status, answer.headers["allow"].to_str().unwrap()), (204, "GET, DELETE, HEAD, OPTIONS"));
            let answer = target.send("HEAD /core/1.0", Payload::none()).await;
            assert_eq!((answer.status, answer.body.len()), (200, 0));
        }
    }
}

/// A body over its bound is refused, whether its length is told before or not, and nothing of it is done.
#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let cluster = TestCluster::start(1).await;
    let daemon = &cluster.members[0];
    let huge = vec![b' '; 20 << 20];
    for caller in [Caller::Socket, Caller::Member] {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let target = Target::new(daemon, caller).protocol(protocol);
            for payload in [Payload::bytes(huge.clone()), Payload::chunked(huge.clone())] {
                let message = target.send("POST /core/internal/sql", payload).await.error(413);
                assert!(message.contains(&(16 << 20).to_string()), "the limit is told: {message}");
            }
        }
    }
    let target = Target::new(daemon, Caller::Socket);
    for request in ["POST /core/control/tokens", "POST /core/internal/heartbeat"] {
        let message = target.send(request, Payload::chunked(vec![b'{'; 2 << 20])).await.error(413);
        assert!(message.contains("bytes"), "{message}");
    }
    // Just below: a statement of 15 MiB is a statement.
    let query = format!("CREATE TABLE big (a); INSERT INTO big VALUES ('{}')", "x".repeat(15 << 20));
    let _ = target.send("POST /core/internal/sql", Payload::json(&json!({"query": query}))).await.metadata();
    assert_eq!(daemon.sql("SELECT length(a) FROM big").await, [[json!(15 << 20)]]);
}

/// The body of a client that knows no content types, or tells a wrong one, is read all the same.
#[tokio::test]
async fn the_content_type_does_not_matter() {
    let cluster = TestCluster::start(1).await;
    let target = Target::new(&cluster.members[0], Caller::Socket);
    for kind in ["text/plain", "application/json; charset=utf-8", "application/x-www-form-urlencoded"] {
        let payload = Payload::json(&json!({"query": "SELECT 1"}));
        let answer = target.send_with("POST /core/internal/sql", payload, &[("content-type", kind)]).await;
        assert_eq!(answer.metadata()["Results"][0]["rows"], json!([[1]]), "{kind}");
        assert_eq!(answer.headers["content-type"], "application/json");
        assert!(answer.headers.contains_key("x-request-id"));
    }
}

/// What is no HTTP, or no TLS, ends its own connection and nothing else.
#[tokio::test]
async fn garbage_on_a_connection_hurts_nobody() {
    let cluster = TestCluster::start(1).await;
    let daemon = &cluster.members[0];
    let garbage: [&[u8]; 5] = [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /core/internal/sql HTTP/1.1\r\nhost: x\r\ncontent-length: nine\r\n\r\n",
        b"POST /core/internal/sql HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ];
    for bytes in garbage {
        let mut socket = UnixStream::connect(daemon.dir().join("control.socket")).await.unwrap();
        ended(&mut socket, bytes).await;
        let mut tcp = TcpStream::connect(daemon.address().socket_addr()).await.unwrap();
        ended(&mut tcp, bytes).await;
    }
    let endless = [b"GET / HTTP/1.1\r\nx: ".to_vec(), vec![b'x'; 1 << 20]].concat();
    let mut socket = UnixStream::connect(daemon.dir().join("control.socket")).await.unwrap();
    ended(&mut socket, &endless).await;
    daemon.client().ready().await.unwrap();
}

/// A client that goes away in the middle leaves a daemon that serves the next one.
#[tokio::test]
async fn a_client_that_hangs_up_hurts_nobody() {
    let daemon = Daemon::start("c1").await;
    daemon.bootstrap().await;
    for _ in 0..50 {
        let mut socket = UnixStream::connect(daemon.dir().join("control.socket")).await.unwrap();
        let head = b"POST /core/internal/sql HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{\"query\":";
        socket.write_all(head).await.unwrap();
        drop(socket);
    }
    daemon.sql("CREATE TABLE t (a)").await;
}

/// Sends bytes and waits until the other side has had enough.
async fn ended(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), bytes: &[u8]) {
    // It may have hung up while this is written.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(cluster_tests::DEADLINE, stream.read_to_end(&mut answer)).await;
    assert!(
        read.is_ok(),
        "the connection stays open after {:?}",
        String::from_utf8_lossy(&bytes[..bytes.len().min(60)])
    );
    let text = String::from_utf8_lossy(&answer);
    assert!(!text.starts_with("HTTP/1.1 2"), "{text}");
}
