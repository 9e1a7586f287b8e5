//! `kvctl`: the store and its cluster from the command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use http::Method;
use kv::{Change, Item, Put};
use microcluster::client::{Client, Empty, Message};
use microclusterd::cli;

/// Use and control a replicated key-value store
#[derive(Parser)]
#[command(name = "kvctl", version, arg_required_else_help = true)]
struct Kvctl {
    #[command(flatten)]
    context: cli::Context,
    #[command(subcommand)]
    command: KvCommand,
}

#[derive(Subcommand)]
enum KvCommand {
    /// Print the value of a key
    Get { key: String },
    /// Set the value of a key, and print its revision
    Put {
        key: String,
        value: String,
        /// Only if the key has this revision; 0 for a key that is not there
        #[arg(long)]
        if_revision: Option<i64>,
    },
    /// Delete a key
    Delete { key: String },
    /// Print the keys that begin with a text, and their values
    List {
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Print every change from now on
    Watch {
        #[arg(default_value = "")]
        prefix: String,
    },
    #[command(flatten)]
    Cluster(cli::Command),
    #[command(flatten)]
    Shell(cli::ShellCommand),
}

fn main() -> ExitCode {
    let Kvctl { context, command } = Kvctl::parse();
    cli::block_on(async move {
        let client = || context.client();
        match command {
            KvCommand::Get { key } => {
                let item: Item = client()?.query(Method::GET, &path(&key), ()).await?;
                println!("{}", item.value);
            }
            KvCommand::Put { key, value, if_revision } => {
                let revision: i64 = client()?.query(Method::PUT, &path(&key), Put { value, if_revision }).await?;
                println!("{revision}");
            }
            KvCommand::Delete { key } => drop(client()?.query::<Empty>(Method::DELETE, &path(&key), ()).await?),
            KvCommand::List { prefix } => {
                let path = format!("/1.0/kv?prefix={}", encoded(&prefix));
                for Item { key, value, .. } in client()?.query::<Vec<Item>>(Method::GET, &path, ()).await? {
                    println!("{key}\t{value}");
                }
            }
            KvCommand::Watch { prefix } => watch(&client()?, &prefix).await?,
            KvCommand::Cluster(command) => command.run(&context).await?,
            KvCommand::Shell(command) => command.run::<Kvctl>()?,
        }
        Ok(())
    })
}

async fn watch(client: &Client, prefix: &str) -> anyhow::Result<()> {
    let mut changes = client.websocket(&format!("/1.0/watch?prefix={}", encoded(prefix))).await?;
    while let Some(message) = changes.next().await {
        match message? {
            Message::Text(text) => {
                let Change { revision, key, value } = serde_json::from_str(&text)?;
                println!("{revision}\t{key}\t{}", value.as_deref().unwrap_or("(deleted)"));
            }
            Message::Close(Some(close)) => anyhow::bail!("{}", close.reason),
            _ => {}
        }
    }
    Ok(())
}

fn path(key: &str) -> String {
    format!("/1.0/kv/{}", encoded(key))
}

/// As a part of an address.
fn encoded(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    text.bytes().map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
