//! The daemon as it is run: with the flags of `microclusterd`, and hooks that say when they run.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use microcluster::App;
use microcluster::client::DaemonConfigUpdate;
use microcluster::testing::{address_free, eventually};

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

async fn logged(log: &Path, text: &str) {
    eventually(text, async || match std::fs::read_to_string(log) {
        Ok(log) if log.contains(text) => Ok(()),
        Ok(log) => Err(log),
        Err(e) => Err(e.to_string()),
    })
    .await;
}

/// Two daemons, from their start to the removal of one: what they log.
#[tokio::test]
async fn every_hook_says_when_it_runs() {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR")).join("extended");
    std::fs::remove_dir_all(&parent).ok();
    std::fs::create_dir_all(&parent).unwrap();
    let start = |name: &str| {
        let (dir, log) = (parent.join(name), parent.join(format!("{name}.log")));
        let mut command = Command::new(env!("CARGO_BIN_EXE_extendedd"));
        command.arg("--state-dir").arg(&dir).args(["--verbose", "--heartbeat", "200ms", "--log-file"]).arg(&log);
        (Process(command.spawn().unwrap()), App::new(dir), log)
    };
    let ((mut one, first, first_log), (mut two, second, second_log)) = (start("one"), start("two"));
    for app in [&first, &second] {
        app.ready(Duration::from_secs(60)).await.unwrap();
    }
    first.bootstrap("x1".parse().unwrap(), address_free(), Default::default()).await.unwrap();
    let token = first.new_join_token("x2".parse().unwrap(), None).await.unwrap();
    second.join("x2".parse().unwrap(), address_free(), token, Default::default()).await.unwrap();
    let change = DaemonConfigUpdate { failure_domain: Some(3), ..Default::default() };
    first.local_client().change_daemon_config(&change).await.unwrap();
    logged(&first_log, "on_heartbeat: ").await;
    first.remove_member(&"x2".parse().unwrap(), false).await.unwrap();
    // After its answer the removed daemon forgets its cluster.
    logged(&second_log, "post_remove: ").await;
    for (app, process) in [(&first, &mut one), (&second, &mut two)] {
        app.local_client().shutdown().await.unwrap();
        assert!(process.0.wait().unwrap().success());
    }
    let expected: [(_, &[&str]); 2] = [
        (first_log, &["pre_init", "post_bootstrap", "on_new_member", "on_daemon_config_update", "post_remove"]),
        (second_log, &["pre_init", "pre_join", "post_join", "pre_remove", "post_remove"]),
    ];
    for (log, hooks) in expected {
        let text = std::fs::read_to_string(log).unwrap();
        for hook in hooks.iter().chain(&["on_start", "on_stop"]) {
            assert!(text.contains(&format!("{hook}: ")), "{hook} is missing in\n{text}");
        }
    }
}

#[test]
fn the_daemon_takes_the_flags_of_the_reference_daemon() {
    let output = Command::new(env!("CARGO_BIN_EXE_extendedd")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for option in [
        "--state-dir",
        "--heartbeat",
        "--voters",
        "--stand-bys",
        "--socket-group",
        "--pre-init-listen",
        "--log-format",
        "--log-file",
        "--verbose",
        "--debug",
        "MICROCLUSTERD_STATE_DIR",
    ] {
        assert!(help.contains(option), "{option} is missing in\n{help}");
    }
}
