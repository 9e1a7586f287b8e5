//! The processes of a demo: members in temporary directories, on free ports of loopback.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use microcluster_client::{Address, Client, Name};
use tokio::process::{Child, Command};

/// How long a member may take to start; a machine under load takes its time.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a member may take to end before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Lines of a member's log that are shown after a failure.
const LOG_LINES_SHOWN: usize = 5;

/// A cluster of processes; dropping it kills them.
pub(super) struct Cluster {
    program: PathBuf,
    dir: PathBuf,
    members: Vec<Member>,
}

/// One member, its process included while it runs.
pub(super) struct Member {
    pub name: Name,
    pub address: Address,
    pub dir: PathBuf,
    process: Option<Child>,
}

impl Cluster {
    /// Members `c1`, `c2`, … that do not run yet.
    pub fn new(program: PathBuf, dir: &Path, count: usize) -> anyhow::Result<Self> {
        let addresses = free_addresses(count).context("cannot find free ports on loopback")?;
        let member = |(index, address)| {
            let name: Name = format!("c{}", index + 1).parse()?;
            let dir = dir.join(name.as_str());
            Ok(Member { name, address, dir, process: None })
        };
        let members = addresses.into_iter().enumerate().map(member);
        let members = members.collect::<anyhow::Result<_>>()?;
        Ok(Cluster { program, dir: dir.to_owned(), members })
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Starts a member and waits until its control socket answers.
    pub async fn start(&mut self, index: usize) -> anyhow::Result<()> {
        let member = &mut self.members[index];
        fs::create_dir_all(&member.dir)?;
        let log = File::options().create(true).append(true).open(member.log())?;
        let process = Command::new(&self.program)
            .arg("demo-daemon")
            .arg(&member.dir)
            .args(["--heartbeat", "1s", "--verbose"])
            // The member ends when this pipe does, so it cannot outlive the demo.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C is for the demo, which ends its members itself.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start a member")?;
        member.process = Some(process);
        let starting = || format!("member {} does not start", member.name);
        member.client().wait_ready(START_TIMEOUT).await.with_context(starting)
    }

    /// Kills a member as `kill -9` does and returns the id that its process had.
    pub async fn kill(&mut self, index: usize) -> anyhow::Result<u32> {
        let member = &mut self.members[index];
        let mut process = member.process.take().context("the member does not run")?;
        let id = process.id().context("the member has ended by itself")?;
        process.kill().await?;
        Ok(id)
    }

    /// A `microctl` for one of the members.
    pub fn microctl(&self, index: usize, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env("MICROCLUSTER_STATE_DIR", &self.members[index].dir)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Ends all members and waits until they have ended.
    pub async fn stop(&mut self) {
        let mut processes: Vec<_> = self.members.iter_mut().filter_map(|m| m.process.take()).collect();
        for process in &mut processes {
            drop(process.stdin.take());
        }
        for process in &mut processes {
            if tokio::time::timeout(STOP_TIMEOUT, process.wait()).await.is_err() {
                // It fails only if the process has ended after all.
                let _ = process.kill().await;
            }
        }
    }

    /// Shows the end of each member's log on standard error.
    pub fn tell_logs(&self) {
        for member in &self.members {
            let log = fs::read_to_string(member.log()).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..] {
                eprintln!("{}: {line}", member.name);
            }
        }
    }
}

impl Member {
    pub fn client(&self) -> Client {
        Client::unix(self.dir.join("control.socket"))
    }

    fn log(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }
}

/// Addresses on loopback that nobody uses. All are taken at once so that they differ.
fn free_addresses(count: usize) -> anyhow::Result<Vec<Address>> {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let addresses: Vec<_> = listeners.iter().map(|l| l.local_addr().map(Address::from)).collect::<Result<_, _>>()?;
    Ok(addresses)
}
