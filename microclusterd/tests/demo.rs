//! The demo with real processes: it works, and whatever ends it, it leaves nothing behind.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A machine under load takes its time.
const DEADLINE: Duration = Duration::from_secs(120);

/// A demo whose temporary files are all below one directory.
struct Demo {
    process: Child,
    output: BufReader<ChildStdout>,
    directory: tempfile::TempDir,
}

impl Demo {
    fn start(members: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_microctl"))
            .args(["demo", "--members", members])
            .env("TMPDIR", directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        Demo { process, output, directory }
    }

    /// Reads its output up to a line that contains `text`.
    fn read_until(&mut self, text: &str) -> String {
        let mut all = String::new();
        while !all.contains(text) {
            assert_ne!(self.output.read_line(&mut all).unwrap(), 0, "{text:?} is missing in\n{all}");
        }
        all
    }

    fn signal(&self, signal: Signal) {
        let process = i32::try_from(self.process.id()).unwrap();
        kill_process(Pid::from_raw(process).unwrap(), signal).unwrap();
    }

    /// Waits until no process uses the directory and nothing is in it.
    fn assert_nothing_is_left(&self) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = left_behind(self.directory.path());
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {left:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Files below the directory, and processes that were started with it in their arguments.
fn left_behind(directory: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let name = directory.to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        let arguments = fs::read(path.join("cmdline")).ok()?;
        String::from_utf8_lossy(&arguments).contains(name).then_some(path)
    });
    files.chain(processes).collect()
}

#[test]
fn the_tour_goes_on_after_the_leader_was_killed() {
    let mut demo = Demo::start("3");
    let output = demo.read_until("is started again");
    for text in ["microctl init c1", "microctl cluster list", "ONLINE", "hello, cluster", "kill -9", "UNREACHABLE"] {
        assert!(output.contains(text), "{text:?} is missing in\n{output}");
    }
    let end = demo.read_until("still here");
    assert!(end.contains("hello, cluster"), "what was written before is there too:\n{end}");
    assert_eq!(demo.process.wait().unwrap().code(), Some(0));
    demo.assert_nothing_is_left();
}

#[test]
fn an_interrupted_demo_cleans_up() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut demo = Demo::start("2");
        demo.read_until("--bootstrap");
        demo.signal(signal);
        assert_eq!(demo.process.wait().unwrap().code(), Some(0), "{signal:?}");
        demo.assert_nothing_is_left();
    }
}

#[test]
fn members_do_not_outlive_a_demo_that_is_killed() {
    let mut demo = Demo::start("2");
    demo.read_until("tokens add");
    demo.signal(Signal::KILL);
    demo.process.wait().unwrap();
    demo.assert_nothing_is_left();
}
