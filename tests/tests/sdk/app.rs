//! A daemon from outside: everything that a product's command line asks of one.

use std::time::Duration;

use cluster_tests::stranger;
use microcluster::testing::{Cluster, eventually};
use microcluster::{App, AppError, Daemon, RecoverError};
use microcluster_client::{Error, Identity, Role};

const PATIENCE: Duration = Duration::from_secs(60);

fn code(error: &AppError) -> Option<u16> {
    match error {
        AppError::Client(error) => error.code(),
        _ => None,
    }
}

#[tokio::test]
async fn a_cluster_is_driven_from_outside() {
    let cluster = Cluster::start(2, |builder| builder.version("7.8.9")).await;
    let (one, two) = (cluster.member(0), cluster.member(1));
    let (app, other) = (one.app(), two.app());
    app.ready(PATIENCE).await.unwrap();
    let status = app.status().await.unwrap();
    assert_eq!((status.name.as_str(), status.version.as_str(), status.ready), ("n1", "7.8.9", true));
    assert_eq!(status.address, Some(one.address()));

    let members = other.members().await.unwrap();
    let listed: Vec<_> = members.iter().map(|member| (member.name.as_str(), member.address)).collect();
    assert_eq!(listed, [("n1", one.address()), ("n2", two.address())]);
    assert!(members.iter().all(|member| member.role == Role::Voter), "{members:?}");

    // Tokens: made on one member, seen and revoked on the other.
    let token = app.new_join_token("n3".parse().unwrap(), Some(Duration::from_secs(3600))).await.unwrap();
    let tokens = other.list_join_tokens().await.unwrap();
    assert_eq!(tokens.iter().map(|token| token.name.as_str()).collect::<Vec<_>>(), ["n3"]);
    assert!(!token.expose().is_empty() && !tokens[0].token.expose().is_empty());
    assert_eq!(code(&other.new_join_token("n3".parse().unwrap(), None).await.unwrap_err()), Some(409));
    other.revoke_join_token(&"n3".parse().unwrap()).await.unwrap();
    assert!(app.list_join_tokens().await.unwrap().is_empty());
    assert_eq!(code(&app.revoke_join_token(&"n3".parse().unwrap()).await.unwrap_err()), Some(404));

    // Clients of another member: as this member, as nobody, and as somebody whom nobody knows.
    let certificate = std::fs::read_to_string(one.dir().join("cluster.crt")).unwrap();
    assert_eq!(app.remote_client(two.address()).unwrap().cluster_members().await.unwrap().len(), 2);
    let anonymous = app.remote_client_with_certificate(two.address(), None, &certificate).unwrap();
    assert_eq!(anonymous.status().await.unwrap().name, "n2");
    assert_eq!(anonymous.cluster_members().await.unwrap_err().code(), Some(403));
    let unknown = app.remote_client_with_certificate(two.address(), Some(&stranger("n1")), &certificate).unwrap();
    assert_eq!(unknown.cluster_members().await.unwrap_err().code(), Some(403));
    let own = std::fs::read_to_string(one.dir().join("server.crt")).unwrap();
    let wrong = app.remote_client_with_certificate(two.address(), None, &own).unwrap();
    assert!(matches!(wrong.status().await, Err(Error::Tls { .. })), "it presents another certificate");
    let garbage = app.remote_client_with_certificate(two.address(), None, "garbage").unwrap_err();
    assert!(matches!(garbage, AppError::File { .. }), "{garbage:?}");
    let keyless = Identity::new(own, "garbage".to_owned());
    let garbage = app.remote_client_with_certificate(two.address(), Some(&keyless), &certificate).unwrap_err();
    assert!(matches!(garbage, AppError::Client(Error::Tls { .. })), "{garbage:?}");

    // A removal, asked of the one that goes.
    assert_eq!(code(&app.remove_member(&"n9".parse().unwrap(), false).await.unwrap_err()), Some(404));
    other.remove_member(two.name(), false).await.unwrap();
    let left: Vec<_> = app.members().await.unwrap().into_iter().map(|member| member.name.to_string()).collect();
    assert_eq!(left, ["n1"]);
    eventually("it is no member any more", async || match other.status().await {
        Ok(status) if status.address.is_none() => Ok(()),
        answer => Err(format!("{answer:?}")),
    })
    .await;
    let gone = other.remote_client(one.address()).unwrap_err();
    assert!(matches!(&gone, AppError::File { path, .. } if path.ends_with("cluster.crt")), "{gone:?}");
    assert_eq!(code(&other.members().await.unwrap_err()), Some(503));
}

#[tokio::test]
async fn a_daemon_that_is_no_member_or_does_not_run_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let app = App::new(dir.path());
    let down = app.ready(Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(down, AppError::Client(Error::Unreachable { .. })), "{down:?}");
    let daemon = Daemon::builder(dir.path()).start().await.unwrap();
    app.ready(PATIENCE).await.unwrap();
    assert_eq!(app.status().await.unwrap().address, None);
    assert!(matches!(app.local_members().await, Err(RecoverError::NotMember { .. })));
    let nobody = app.remote_client("127.0.0.1:9000".parse().unwrap()).unwrap_err();
    let text = nobody.to_string();
    assert!(matches!(nobody, AppError::File { .. }) && text.contains("is this daemon a member?"), "{text}");
    assert_eq!(code(&app.sql("SELECT 1").await.unwrap_err()), Some(503));
    daemon.shutdown().await;
    daemon.wait().await.unwrap();
}
