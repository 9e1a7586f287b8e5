//! The two programs without a daemon: help, wrong usage, nobody there.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const MICROCTL: &str = env!("CARGO_BIN_EXE_microctl");
const MICROCLUSTERD: &str = env!("CARGO_BIN_EXE_microclusterd");

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).env_remove("MICROCLUSTER_STATE_DIR").stdin(Stdio::null()).output().unwrap()
}

fn microctl_at(dir: &Path, arguments: &[&str]) -> Output {
    let dir = dir.to_str().unwrap();
    run(MICROCTL, &[&["--state-dir", dir], arguments].concat())
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn help_names_every_command() {
    let output = run(MICROCTL, &["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = stdout(&output);
    for command in [
        "init",
        "status",
        "waitready",
        "shutdown",
        "cluster",
        "tokens",
        "certificates",
        "servers",
        "sql",
        "demo",
        "completions",
        "man",
        "--state-dir",
        "MICROCLUSTER_STATE_DIR",
    ] {
        assert!(help.contains(command), "{command} is missing in\n{help}");
    }
    assert!(!help.contains("demo-daemon"), "what is hidden stays hidden:\n{help}");
    let output = run(MICROCLUSTERD, &["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = stdout(&output);
    for option in [
        "--state-dir",
        "--heartbeat",
        "--socket-group",
        "--pre-init-listen",
        "--log-format",
        "--verbose",
        "--debug",
        "--version",
        "MICROCLUSTERD_STATE_DIR",
    ] {
        assert!(help.contains(option), "{option} is missing in\n{help}");
    }
}

#[test]
fn versions_are_printed() {
    for (program, name) in [(MICROCTL, "microctl "), (MICROCLUSTERD, "microclusterd ")] {
        let output = run(program, &["--version"]);
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).starts_with(name), "{output:?}");
    }
}

#[test]
fn wrong_usage_is_exit_code_2_and_prints_nothing_on_standard_output() {
    let state_dir = ["--state-dir", "/nowhere"];
    let address = "127.0.0.1:9000";
    for (arguments, hint) in [
        (&["nope"][..], "unrecognized subcommand"),
        (&["init", "c1", address], "--bootstrap"),
        (&["init", "c1", address, "--bootstrap", "--token", "x"], "cannot be used with"),
        (&["init", "c_1", address, "--bootstrap"], "letters, digits"),
        (&["init", "c1", "localhost:9000", "--bootstrap"], "host names are not accepted"),
        (&["init", "c1", "127.0.0.1", "--bootstrap"], "has no port"),
        (&["init", "c1", "127.0.0.1:0", "--bootstrap"], "port 0"),
        (&["init", "c1", address, "--bootstrap", "--config", "k"], "key=value"),
        (&["init", "c1", address, "--token", ""], "token is empty"),
        (&["cluster", "list", "-f", "xml"], "possible values"),
        (&["tokens", "add", "c2", "-e", "3"], "1h30m"),
        (&["tokens", "add", "a b"], "letters, digits"),
        (&["demo", "--members", "0"], "1..=9"),
        (&["waitready", "-t", "soon"], "unit"),
        (&["sql"], "standard input"),
        (&["sql", ""], "empty"),
        (&["sql", ".tables"], ".schema"),
        (&["completions", "tcsh"], "bash"),
    ] {
        let output = run(MICROCTL, &[&state_dir[..], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert_eq!(stdout(&output), "", "{arguments:?}");
        assert!(stderr(&output).contains(hint), "{arguments:?}: {}", stderr(&output));
    }
    let output = run(MICROCTL, &["status"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--state-dir"), "{output:?}");
    let output = run(MICROCLUSTERD, &["--state-dir", "/nowhere", "--heartbeat", "0"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn without_a_daemon_every_command_fails_and_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [
        &["status"][..],
        &["shutdown"],
        &["waitready", "-t", "0"],
        &["cluster", "list"],
        &["cluster", "show", "c1"],
        &["cluster", "remove", "c1", "--force"],
        &["tokens", "add", "c1"],
        &["tokens", "list", "-f", "json"],
        &["tokens", "revoke", "c1"],
        &["sql", "SELECT 1"],
        &["sql", ".dump"],
        &["init", "c1", "127.0.0.1:9000", "--bootstrap"],
    ] {
        let output = microctl_at(dir.path(), arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        assert_eq!(stdout(&output), "", "{arguments:?}");
        let said = stderr(&output);
        assert!(said.starts_with("Error: ") && said.lines().count() == 1, "{arguments:?}: {said}");
        assert!(said.contains("is the daemon running"), "{arguments:?}: {said}");
        assert!(said.contains(dir.path().to_str().unwrap()), "{arguments:?}: {said}");
    }
    drop(UnixListener::bind(dir.path().join("control.socket")).unwrap());
    let said = stderr(&microctl_at(dir.path(), &["status"]));
    assert!(said.contains("the daemon is not running"), "{said}");
}

#[test]
fn what_reads_the_disk_says_that_it_is_no_members() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [&["cluster", "list", "--local"][..], &["cluster", "edit"]] {
        let output = microctl_at(dir.path(), arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        let said = stderr(&output);
        assert!(said.contains("is not the state directory of a member: there is no daemon.yaml in it"), "{said}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is made");
    }
}

#[test]
fn the_state_directory_may_come_from_the_environment() {
    let output =
        Command::new(MICROCTL).arg("status").env("MICROCLUSTER_STATE_DIR", "/nowhere/at/all").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/nowhere/at/all/control.socket"), "{output:?}");
}

#[test]
fn statements_are_read_from_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("control.socket")).unwrap();
    let daemon = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"}") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        let results = r#"{"metadata":{"Results":[{"type":"exec","columns":null,"rows":null,"rows_affected":2}]}}"#;
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{results}", results.len()).unwrap();
        String::from_utf8(request).unwrap()
    });
    let mut microctl = Command::new(MICROCTL)
        .args(["sql", "-"])
        .env("MICROCLUSTER_STATE_DIR", dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    microctl.stdin.take().unwrap().write_all(b"DELETE FROM t;\n").unwrap();
    let output = microctl.wait_with_output().unwrap();
    assert_eq!(stdout(&output), "Rows affected: 2\n");
    let request = daemon.join().unwrap();
    assert!(request.ends_with(r#"{"query":"DELETE FROM t;"}"#), "{request}");
}

#[test]
fn completions_and_manual_are_complete() {
    let completions = stdout(&run(MICROCTL, &["completions", "bash"]));
    assert!(completions.contains("waitready") && completions.contains("--expire-after"));
    let manual = stdout(&run(MICROCTL, &["man"]));
    assert!(manual.contains(".TH microctl"), "{manual}");
    assert!(manual.contains("MICROCTL TOKENS ADD") && manual.contains("expire\\-after"));
    assert!(!manual.contains("DEMO-DAEMON"));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut microctl = Command::new(MICROCTL)
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The completions do not fit into a pipe's buffer in one piece with nobody there.
    drop(microctl.stdout.take());
    let output = microctl.wait_with_output().unwrap();
    assert_eq!(stderr(&output), "");
    assert_eq!(output.status.code(), Some(0));
}
