//! The programs as they are run, and how little code they take.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use microcluster::testing::address_free;

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn kvctl_command(state_dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvctl"));
    command.env_remove("MICROCLUSTER_STATE_DIR").arg("--state-dir").arg(state_dir).args(arguments);
    command
}

/// What a command prints.
fn kvctl(state_dir: &Path, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = kvctl_command(state_dir, arguments).output().unwrap();
    assert!(status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

#[test]
fn the_store_is_used_from_the_command_line() {
    let dir = tempfile_dir();
    let state_dir = dir.as_path();
    let daemon = Command::new(env!("CARGO_BIN_EXE_kvd")).arg("--state-dir").arg(state_dir).spawn().unwrap();
    let mut daemon = Process(daemon);
    kvctl(state_dir, &["waitready", "-t", "60"]);
    kvctl(state_dir, &["init", "k1", &address_free().to_string(), "--bootstrap", "--config", "owner=anna"]);
    kvctl(state_dir, &["waitready", "-t", "60"]);

    let mut watch = kvctl_command(state_dir, &["watch", "a"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut watched = BufReader::new(watch.stdout.take().unwrap()).lines();
    let _watch = Process(watch);
    // A watch begins when it is there: writes go on until it has seen one.
    let seen = std::thread::scope(|scope| {
        let seen = scope.spawn(|| watched.next().unwrap().unwrap());
        let mut number = 0;
        while !seen.is_finished() {
            number += 1;
            assert!(number < 10_000, "the watch sees nothing");
            kvctl(state_dir, &["put", "a/b c", &format!("value {number}")]);
        }
        seen.join().unwrap()
    });
    assert!(seen.contains("\ta/b c\tvalue "), "{seen}");

    let revision = kvctl(state_dir, &["put", "a/b c", "x y"]);
    assert_eq!(kvctl(state_dir, &["get", "a/b c"]), "x y\n");
    assert_eq!(kvctl(state_dir, &["get", "kv/created-by"]), "anna\n", "what the hook has made of --config");
    assert_eq!(kvctl(state_dir, &["list", "a/"]), "a/b c\tx y\n");
    let again = kvctl(state_dir, &["put", "a/b c", "z", "--if-revision", revision.trim()]);
    assert!(again.trim().parse::<i64>().unwrap() > revision.trim().parse::<i64>().unwrap());
    let refused = kvctl_command(state_dir, &["put", "a/b c", "z", "--if-revision", revision.trim()]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    kvctl(state_dir, &["delete", "a/b c"]);
    assert_eq!(kvctl_command(state_dir, &["get", "a/b c"]).output().unwrap().status.code(), Some(1));

    let status = kvctl(state_dir, &["status"]);
    assert!(status.contains("k1"), "{status}");
    kvctl(state_dir, &["shutdown"]);
    assert!(daemon.0.wait().unwrap().success());
}

#[test]
fn the_programs_say_how_they_are_used() {
    let help = kvctl(Path::new("/nowhere"), &["--help"]);
    for command in ["get", "put", "watch", "init", "cluster", "sql", "completions", "man"] {
        assert!(help.contains(command), "{command} is missing in\n{help}");
    }
    let completions = kvctl(Path::new("/nowhere"), &["completions", "bash"]);
    for part in ["_kvctl", "--if-revision", "waitready"] {
        assert!(completions.contains(part), "{part} is missing in\n{completions}");
    }
    let manual = kvctl(Path::new("/nowhere"), &["man"]);
    assert!(manual.contains(".TH kvctl") && manual.contains("KVCTL TOKENS ADD"), "{manual}");
    let daemon = Command::new(env!("CARGO_BIN_EXE_kvd")).arg("--help").output().unwrap();
    let help = String::from_utf8(daemon.stdout).unwrap();
    for option in ["--state-dir", "--metrics", "--heartbeat", "--pre-init-listen", "--log-file"] {
        assert!(help.contains(option), "{option} is missing in\n{help}");
    }
}

/// Under 400 lines of Rust without comments: that is how much a product has to be.
#[test]
fn the_store_is_small() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let folders = [source.clone(), source.join("bin")];
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path());
    let rust = files.filter(|file| file.extension().is_some_and(|extension| extension == "rs"));
    let text: String = rust.map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).count();
    assert!((100..400).contains(&lines), "{lines} lines");
}

/// A directory below that of the test's own files: removed by the next run.
fn tempfile_dir() -> std::path::PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kv");
    std::fs::remove_dir_all(&dir).ok();
    dir
}
