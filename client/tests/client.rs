//! The client against a small server, over a unix socket and over TLS.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/server.rs"]
mod server;

use std::time::Duration;

use http::{Method, StatusCode, Version};
use http_body_util::BodyExt;
use microcluster_client::{
    Client, ControlRequest, Empty, Error, Fingerprint, Identity, NOTIFICATION_USER_AGENT, ServerTrust, SqlRequest,
    TlsError, TokenRequest,
};
use server::{KeyPair, Server, answer};

#[tokio::test]
async fn typed_calls_send_what_the_api_says() {
    let server = Server::unix(|request| match request.line.as_str() {
        "GET /core/1.0" => {
            answer(200, r#"{"metadata":{"name":"vm","address":"","version":"1","ready":false,"extensions":null}}"#)
        }
        "POST /core/control/tokens" => answer(200, r#"{"metadata":"tok"}"#),
        "POST /core/internal/sql" => answer(200, r#"{"metadata":{"Results":null}}"#),
        "GET /core/internal/sql?schema=1" => answer(200, r#"{"metadata":{"text":"CREATE"}}"#),
        _ => answer(200, r#"{"metadata":{}}"#),
    });
    let client = server.unix_client();
    let c2 = "c2".parse().unwrap();

    let status = client.status().await.unwrap();
    assert_eq!((status.name.as_str(), status.address, status.ready), ("vm", None, false));
    let token = TokenRequest { name: "c2".parse().unwrap(), expire_after: None };
    assert_eq!(client.add_token(&token).await.unwrap().expose(), "tok");
    assert_eq!(client.sql(&SqlRequest::new("SELECT 1")).await.unwrap().into_iter().count(), 0);
    assert_eq!(client.sql_dump(true).await.unwrap().text, "CREATE");
    client.control(&ControlRequest::default()).await.unwrap();
    client.remove_cluster_member(&c2, true).await.unwrap();
    client.revoke_token(&c2).await.unwrap();
    client.shutdown().await.unwrap();

    let seen = server.requests();
    let lines: Vec<_> = seen.iter().map(|r| r.line.as_str()).collect();
    assert_eq!(
        lines,
        [
            "GET /core/1.0",
            "POST /core/control/tokens",
            "POST /core/internal/sql",
            "GET /core/internal/sql?schema=1",
            "POST /core/control",
            "DELETE /core/1.0/cluster/c2?force=1",
            "DELETE /core/1.0/tokens/c2",
            "POST /core/control/shutdown",
        ]
    );
    assert_eq!(seen[0].body, "", "no body is sent where there is none");
    assert_eq!(seen[1].body, r#"{"name":"c2","expire_after":0}"#);
    assert_eq!(seen[2].body, r#"{"query":"SELECT 1"}"#);
    assert_eq!(server.connections(), 1, "the connection is kept");
}

#[tokio::test]
async fn target_and_notification_mark_the_request() {
    let server = Server::unix(|_| answer(200, r#"{"metadata":{}}"#));
    let client = server.unix_client();
    let marked = client.target("c2".parse().unwrap()).notification();
    let _: Empty = marked.query(Method::PUT, "/1.0/x", ()).await.unwrap();
    let _: Empty = marked.query(Method::PUT, "/1.0/x?y=1", ()).await.unwrap();
    let _: Empty = client.query(Method::PUT, "/1.0/x", ()).await.unwrap();
    let seen = server.requests();
    assert_eq!(seen[0].line, "PUT /1.0/x?target=c2");
    assert_eq!(seen[1].line, "PUT /1.0/x?y=1&target=c2");
    assert_eq!(seen[2].line, "PUT /1.0/x");
    assert_eq!(seen[0].agent, NOTIFICATION_USER_AGENT);
    assert_ne!(seen[2].agent, NOTIFICATION_USER_AGENT);
}

#[tokio::test]
async fn a_request_is_sent_on_as_it_is() {
    let server = Server::unix(|_| answer(404, "as it is"));
    let request =
        http::Request::put("http://elsewhere/1.0/x?y=1").header("host", "elsewhere").header("user-agent", "own");
    let request = request.body("{}".into()).unwrap();
    let answer = server.unix_client().forward(request.clone()).await.unwrap();
    assert_eq!(answer.status(), 404);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "as it is");
    server.unix_client().notification().forward(request).await.unwrap();
    let seen = server.requests();
    assert_eq!((seen[0].line.as_str(), seen[0].body.as_str(), seen[0].agent.as_str()), ("PUT /1.0/x?y=1", "{}", "own"));
    assert_eq!(seen[1].agent, NOTIFICATION_USER_AGENT);
}

#[tokio::test]
async fn a_refusal_keeps_code_message_and_retry_after_apart() {
    let server = Server::unix(|request| match request.line.as_str() {
        "GET /core/1.0" => {
            let mut answer = answer(503, r#"{"type":"error","error_code":503,"error":"no quorum","metadata":null}"#);
            answer.headers_mut().insert("retry-after", "2".parse().unwrap());
            answer
        }
        "GET /core/1.0/ready" => answer(502, "<html>"),
        _ => answer(200, "{\"metadata\":5}"),
    });
    let client = server.unix_client();

    let error = client.status().await.unwrap_err();
    assert_eq!((error.code(), error.to_string().as_str()), (Some(503), "no quorum"));
    assert_eq!(error.retry_after(), Some(Duration::from_secs(2)));
    assert!(!error.outcome_unknown());

    let error = client.ready().await.unwrap_err();
    assert_eq!(error.code(), Some(502));
    assert!(error.to_string().contains("502 Bad Gateway"), "{error}");

    let error = client.cluster_members().await.unwrap_err();
    assert!(matches!(&error, Error::Body { path, .. } if path == "/core/1.0/cluster"), "{error:?}");
}

#[tokio::test]
async fn answers_and_waits_are_bounded() {
    let server = Server::unix(|request| match request.line.as_str() {
        "GET /core/1.0" => answer(200, &format!(r#"{{"metadata":"{}"}}"#, "x".repeat(5000))),
        _ => server::never(),
    });
    let client = server.unix_client();
    let error = client.response_limit(4096).status().await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit: 4096, .. }), "{error:?}");
    let error = client.timeout(Duration::from_millis(50)).ready().await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }) && error.outcome_unknown(), "{error:?}");
}

#[tokio::test]
async fn no_daemon_is_said_with_the_path_of_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.socket");
    let client = Client::unix(&path);
    let error = client.status().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && !error.outcome_unknown(), "{error:?}");
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    assert!(error.to_string().contains("is the daemon running"), "{error}");

    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let error = client.status().await.unwrap_err();
    assert!(error.to_string().contains("not running"), "{error}");
    let error = client.wait_ready(Duration::from_millis(60)).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_connection_that_ends_early_leaves_the_outcome_unknown() {
    let server = Server::unix(|_| server::hang_up());
    let error = server.unix_client().shutdown().await.unwrap_err();
    assert!(matches!(error, Error::Interrupted { .. }) && error.outcome_unknown(), "{error:?}");
}

#[tokio::test]
async fn waiting_for_readiness_goes_on_until_there_is_a_final_answer() {
    let mut left = 3;
    let server = Server::unix(move |_| {
        left -= 1;
        let code = if left > 0 { 503 } else { 200 };
        answer(code, r#"{"error":"starting","metadata":{}}"#)
    });
    server.unix_client().wait_ready(Duration::from_secs(10)).await.unwrap();
    assert_eq!(server.requests().len(), 3);

    let server = Server::unix(|_| answer(403, r#"{"error":"no"}"#));
    let error = server.unix_client().wait_ready(Duration::from_secs(10)).await.unwrap_err();
    assert_eq!(error.code(), Some(403));
}

#[tokio::test]
async fn raw_answers_are_handed_over_as_they_are() {
    let server = Server::unix(|_| answer(418, "short and stout"));
    let answer = server.unix_client().query_raw(Method::POST, "/1.0/tea", "hot").await.unwrap();
    assert_eq!(answer.status(), StatusCode::IM_A_TEAPOT);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "short and stout");
    assert_eq!(server.requests()[0].body, "hot");
}

#[tokio::test]
async fn a_pinned_server_is_accepted_and_sees_the_client() {
    let (cluster, member) = (KeyPair::new("cluster"), KeyPair::new("c2"));
    let server = Server::tls(cluster.certified(), |_| answer(200, r#"{"metadata":{}}"#));
    let trust = ServerTrust::pinned_pem(&cluster.cert_pem).unwrap();
    let identity = Identity::new(member.cert_pem.clone(), member.key_pem.clone());
    let client = Client::tls(server.address(), Some(&identity), &trust).unwrap();
    client.ready().await.unwrap();
    client.ready().await.unwrap();
    let seen = server.requests();
    assert_eq!(seen[0].version, Version::HTTP_2);
    assert_eq!(seen[0].client, Some(Fingerprint::of_pem(&member.cert_pem).unwrap()));
    assert_eq!(server.connections(), 1);

    let stranger = Client::tls(server.address(), None, &trust).unwrap();
    stranger.ready().await.unwrap();
    assert_eq!(server.requests()[2].client, None);
}

#[tokio::test]
async fn another_certificate_is_refused_before_anything_is_sent() {
    let (cluster, other) = (KeyPair::new("cluster"), KeyPair::new("cluster"));
    let server = Server::tls(other.certified(), |_| answer(200, r#"{"metadata":{}}"#));
    let trust = ServerTrust::pinned_pem(&cluster.cert_pem).unwrap();
    let client = Client::tls(server.address(), None, &trust).unwrap();
    let error = client.ready().await.unwrap_err();
    let Error::Tls { source: TlsError::WrongCertificate { presented, pinned }, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(presented, Fingerprint::of_pem(&other.cert_pem).unwrap());
    assert_eq!(pinned, Fingerprint::of_pem(&cluster.cert_pem).unwrap());
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn the_pinned_certificate_without_its_key_is_refused() {
    let (cluster, thief) = (KeyPair::new("cluster"), KeyPair::new("cluster"));
    let server = Server::tls(cluster.certified_with_key_of(&thief), |_| answer(200, "{}"));
    let trust = ServerTrust::pinned_pem(&cluster.cert_pem).unwrap();
    let client = Client::tls(server.address(), None, &trust).unwrap();
    let error = client.ready().await.unwrap_err();
    assert!(matches!(error, Error::Tls { source: TlsError::Rustls(_), .. }), "{error:?}");
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn an_identity_that_is_no_pem_is_refused() {
    let pair = KeyPair::new("c1");
    let trust = ServerTrust::pinned_pem(&pair.cert_pem).unwrap();
    let address = "127.0.0.1:1".parse().unwrap();
    for (cert, key) in [("x", pair.key_pem.as_str()), (pair.cert_pem.as_str(), "x")] {
        let error = Client::tls(address, Some(&Identity::new(cert, key)), &trust).unwrap_err();
        assert!(matches!(error, Error::Tls { source: TlsError::Pem { .. }, .. }), "{error:?}");
    }
}
