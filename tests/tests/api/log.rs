//! The daemon's log in a file: where it is, and what becomes of it when logs are rotated.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use cluster_tests::{Daemon, eventually};
use rustix::process::Signal;

#[tokio::test]
async fn a_log_file_that_was_moved_away_is_opened_again_with_hup() {
    let dir = tempfile::tempdir().unwrap();
    let (path, old) = (dir.path().join("log"), dir.path().join("log.1"));
    let mut daemon = Daemon::new("c1");
    daemon.arguments(["--log-file", path.to_str().unwrap()]);
    daemon.start_again().await;
    let log = || fs::read_to_string(&path).unwrap_or_default();
    assert!(log().contains("waiting to be initialised"), "{}", log());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777 & !0o640, 0);
    assert_eq!(daemon.log(), "", "nothing goes to standard error");
    fs::rename(&path, &old).unwrap();
    daemon.signal(Signal::HUP);
    eventually("the file is there again", async || if path.exists() { Ok(()) } else { Err("it is not") }).await;
    daemon.bootstrap().await;
    eventually("the log goes on there", async || {
        let log = log();
        if log.contains("c1") { Ok(()) } else { Err(log) }
    })
    .await;
    let before = fs::read_to_string(&old).unwrap();
    assert!(before.contains("waiting to be initialised") && !before.contains("bootstrapped"), "{before}");
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn a_log_file_that_cannot_be_opened_ends_the_start() {
    let mut daemon = Daemon::new("c1");
    daemon.arguments(["--log-file", "/nowhere/at/all/log"]);
    let output = daemon.command().stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("/nowhere/at/all/log"), "{said}");
}
