//! Hosts of their own on one machine: network namespaces on a bridge, whose cables can be pulled.

use std::fs;
use std::process::{Child, Command, Stdio};

use microcluster_client::Address;

use crate::eventually;

/// Where daemons listen.
const PORT: u16 = 9000;
/// The bridge of those that are not cut off, and the one of those that are apart together.
const BRIDGES: [&str; 2] = ["together", "apart"];

/// Hosts that reach each other. Everything is gone when it is dropped.
#[derive(Debug)]
pub struct Network {
    /// Holds the namespace with the bridges; the user that it belongs to may do everything in it.
    middle: Holder,
    hosts: Vec<Holder>,
}

/// A process that does nothing but be in a network namespace.
#[derive(Debug)]
struct Holder(Child);

impl Network {
    /// A network of this many hosts; none, and a line that says why, where the machine does not allow it.
    pub async fn new(hosts: usize) -> Option<Network> {
        match Network::make(hosts).await {
            Ok(network) => Some(network),
            Err(reason) => {
                println!("SKIPPED: no network namespaces on this machine: {reason}");
                None
            }
        }
    }

    async fn make(count: usize) -> Result<Network, String> {
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--net", "sleep", "infinity"]);
        let middle = Holder::start(unshare).await?;
        let mut network = Network { middle, hosts: Vec::new() };
        for bridge in BRIDGES {
            network.middle.ip(&["link", "add", bridge, "type", "bridge"])?;
            network.middle.ip(&["link", "set", bridge, "up"])?;
        }
        for place in 0..count {
            let mut unshare = network.middle.command("unshare");
            unshare.args(["--net", "sleep", "infinity"]);
            let holder = Holder::start(unshare).await?;
            let (cable, process) = (cable(place), holder.0.id().to_string());
            network.middle.ip(&["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &process])?;
            network.middle.ip(&["link", "set", &cable, "master", BRIDGES[0], "up"])?;
            holder.ip(&["link", "set", "lo", "up"])?;
            holder.ip(&["link", "set", "eth0", "address", &hardware(place)])?;
            holder.ip(&["addr", "add", &format!("{}/24", ip(place)), "dev", "eth0"])?;
            holder.ip(&["link", "set", "eth0", "up"])?;
            // So that nobody is told that a host is not there: what is sent to it is lost without a word.
            for other in (0..count).filter(|other| *other != place) {
                holder.ip(&[
                    "neigh",
                    "add",
                    &ip(other),
                    "lladdr",
                    &hardware(other),
                    "dev",
                    "eth0",
                    "nud",
                    "permanent",
                ])?;
            }
            network.hosts.push(holder);
        }
        Ok(network)
    }

    /// The address of a daemon on a host.
    #[must_use]
    pub fn address(&self, host: usize) -> Address {
        format!("{}:{PORT}", ip(host)).parse().expect("an address")
    }

    /// The program and arguments that run what follows them on a host.
    pub(crate) fn launcher(&self, host: usize) -> Vec<String> {
        self.hosts[host].enter()
    }

    /// Pulls the cable of a host: what it sends, and what is sent to it, is lost.
    pub fn cut_off(&self, host: usize) {
        self.middle.ip(&["link", "set", &cable(host), "nomaster"]).expect("the cable is pulled");
    }

    /// Puts hosts apart from the others, where they reach each other.
    pub fn set_apart(&self, hosts: &[usize]) {
        for host in hosts {
            self.middle.ip(&["link", "set", &cable(*host), "master", BRIDGES[1]]).expect("another bridge");
        }
    }

    /// Brings a host back to the others.
    pub fn heal(&self, host: usize) {
        self.middle.ip(&["link", "set", &cable(host), "master", BRIDGES[0]]).expect("the cable is in its place");
    }
}

impl Holder {
    /// Starts the process and waits until it is in its namespace.
    async fn start(mut command: Command) -> Result<Holder, String> {
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = spawned.map_err(|e| format!("{}: {e}", command.get_program().to_string_lossy()))?;
        let mut holder = Holder(child);
        let id = holder.0.id();
        eventually("a network namespace", async || {
            if let Some(status) = holder.0.try_wait().expect("its status") {
                return Ok(Err(format!("unshare ends with {status}")));
            }
            // The last thing that it becomes, when all namespaces are there.
            let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
            if name.trim() == "sleep" { Ok(Ok(())) } else { Err(format!("it is {name:?}")) }
        })
        .await?;
        Ok(holder)
    }

    fn enter(&self) -> Vec<String> {
        let process = self.0.id().to_string();
        ["nsenter", "--target", &process, "--user", "--net", "--preserve-credentials"].map(str::to_owned).into()
    }

    fn command(&self, program: &str) -> Command {
        let enter = self.enter();
        let mut command = Command::new(&enter[0]);
        command.args(&enter[1..]).arg(program);
        command
    }

    fn ip(&self, arguments: &[&str]) -> Result<(), String> {
        let output = self.command("ip").args(arguments).output().map_err(|e| format!("nsenter: {e}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It has ended by itself if this fails.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn cable(host: usize) -> String {
    format!("host{host}")
}

fn ip(host: usize) -> String {
    format!("10.66.0.{}", host + 1)
}

fn hardware(host: usize) -> String {
    format!("02:00:00:00:00:{:02x}", host + 1)
}
