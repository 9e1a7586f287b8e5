//! The guided part of a demo: commands and what they really print.

use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::cluster::Cluster;
use crate::cli::output::print;

/// How long the demo waits for the cluster to find a new leader.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// How often it tries.
const ELECTION_INTERVAL: Duration = Duration::from_millis(50);
/// Characters of a token that are shown.
const TOKEN_SHOWN: usize = 24;

/// Shows a cluster from its first member to the loss of its leader.
pub(super) async fn run(cluster: &mut Cluster) -> anyhow::Result<()> {
    let count = cluster.members().len();
    let dir = cluster.dir().display().to_string();
    print(&format!("A cluster of {count} on this machine, in {dir}.\n"))?;
    form(cluster).await?;
    write_and_read(cluster).await?;
    if count >= 3 {
        lose_the_leader(cluster).await?;
    }
    Ok(())
}

/// Bootstrap and joins.
async fn form(cluster: &mut Cluster) -> anyhow::Result<()> {
    say("The first member begins the cluster; the others join, each with a token of its own.")?;
    for index in 0..cluster.members().len() {
        cluster.start(index).await?;
        let name = cluster.members()[index].name.to_string();
        let address = cluster.members()[index].address.to_string();
        if index == 0 {
            show(cluster, 0, &["init", &name, &address, "--bootstrap"]).await?;
            continue;
        }
        let add = ["tokens", "add", &name];
        print_command(cluster, 0, &add)?;
        let token = capture(cluster, 0, &add).await?;
        let token = token.trim();
        let shown = format!("{}…", token.chars().take(TOKEN_SHOWN).collect::<String>());
        print(&format!("{shown}\n"))?;
        print_command(cluster, index, &["init", &name, &address, "--token", &shown])?;
        capture(cluster, index, &["init", &name, &address, "--token", token]).await?;
    }
    show(cluster, 0, &["cluster", "list"]).await
}

/// SQL on several members.
async fn write_and_read(cluster: &mut Cluster) -> anyhow::Result<()> {
    let last = cluster.members().len() - 1;
    let second = last.min(1);
    say("One SQLite database, the same on every member. Any of them takes reads and writes.")?;
    let create = "CREATE TABLE note (id INTEGER PRIMARY KEY, author TEXT, text TEXT)";
    show(cluster, 0, &["sql", create]).await?;
    show(cluster, second, &["sql", &insert(cluster, second, "hello, cluster")]).await?;
    show(cluster, last, &["sql", "SELECT * FROM note"]).await
}

/// The leader is killed; the others go on; it comes back.
async fn lose_the_leader(cluster: &mut Cluster) -> anyhow::Result<()> {
    let leader = cluster.members()[0].client().daemon_status().await?.leader;
    let leader = leader.context("the cluster has no leader")?.name;
    let lost = cluster.members().iter().position(|member| member.name == leader);
    let lost = lost.context("the leader is no member of the demo")?;
    let witness = if lost == 0 { 1 } else { 0 };
    say(&format!("The leader, {leader}, is killed without a warning. The others elect a new one."))?;
    let started = Instant::now();
    let id = cluster.kill(lost).await?;
    print(&format!("$ kill -9 {id}\n"))?;
    let statement = insert(cluster, witness, "still here");
    let write = ["sql", statement.as_str()];
    print_command(cluster, witness, &write)?;
    let written = loop {
        match capture(cluster, witness, &write).await {
            Ok(written) => break written,
            Err(error) if started.elapsed() > ELECTION_TIMEOUT => return Err(error),
            Err(_) => tokio::time::sleep(ELECTION_INTERVAL).await,
        }
    };
    let gap = started.elapsed().as_secs_f32();
    print(&format!("{written}(done {gap:.1} s after the kill)\n"))?;
    show(cluster, witness, &["cluster", "list"]).await?;

    say(&format!("{leader} is started again. It catches up and has what was written meanwhile."))?;
    let dir = cluster.members()[lost].dir.display().to_string();
    print(&format!("$ microclusterd --state-dir {dir} &\n"))?;
    cluster.start(lost).await?;
    show(cluster, lost, &["sql", "SELECT * FROM note"]).await
}

fn insert(cluster: &Cluster, index: usize, text: &str) -> String {
    let name = &cluster.members()[index].name;
    format!("INSERT INTO note (author, text) VALUES ('{name}', '{text}')")
}

fn say(text: &str) -> anyhow::Result<()> {
    print(&format!("\n# {text}\n"))
}

/// Prints a command of `microctl` as one would type it, after the name of its member.
fn print_command(cluster: &Cluster, index: usize, arguments: &[&str]) -> anyhow::Result<()> {
    let quoted = |argument: &&str| match argument.contains([' ', '*', '(']) {
        true => format!("\"{argument}\""),
        false => (*argument).to_owned(),
    };
    let arguments: Vec<_> = arguments.iter().map(quoted).collect();
    let name = &cluster.members()[index].name;
    print(&format!("{name}$ microctl {}\n", arguments.join(" ")))
}

/// Runs a command in sight: its output is the demo's.
async fn show(cluster: &Cluster, index: usize, arguments: &[&str]) -> anyhow::Result<()> {
    print_command(cluster, index, arguments)?;
    let mut command = cluster.microctl(index, arguments);
    let output = command.stdout(Stdio::inherit()).stderr(Stdio::piped()).spawn()?;
    let output = output.wait_with_output().await?;
    check(arguments, &output)
}

/// Runs a command out of sight and returns its output.
async fn capture(cluster: &Cluster, index: usize, arguments: &[&str]) -> anyhow::Result<String> {
    let output = cluster.microctl(index, arguments).output().await?;
    check(arguments, &output)?;
    Ok(String::from_utf8(output.stdout)?)
}

fn check(arguments: &[&str], output: &Output) -> anyhow::Result<()> {
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim().trim_start_matches("Error: ").to_owned();
        bail!("`microctl {}` failed: {said}", arguments[0]);
    }
    Ok(())
}
