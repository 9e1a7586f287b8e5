//! `microctl certificates`: those that the members share, and the daemon's own before initialisation.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use microcluster_client::{Client, KeyPair, Name, Secret};

use super::output::tell;

/// A file with more bytes is no certificate.
const FILE_BYTES_MAX: u64 = 128 << 10;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Replace a certificate on all members, without a restart
    Set(Set),
}

#[derive(Debug, Args)]
pub struct Set {
    /// `cluster`, the name of an additional server, or, before `microctl init`, `server`
    name: Name,
    /// File with the certificate, PEM; those that lead to the authority may follow it
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// File with the private key, PEM
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// File with the authority that signed the certificate, PEM: clients verify by it
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

impl Command {
    pub async fn run(self, client: &Client) -> anyhow::Result<()> {
        let Command::Set(Set { name, cert, key, ca }) = self;
        let pair = KeyPair {
            cert: read(&cert)?,
            key: Secret::new(read(&key)?),
            ca: ca.as_deref().map(read).transpose()?.unwrap_or_default(),
        };
        client.set_certificate(&name, &pair).await?;
        tell(&format!("the certificate {name} was replaced"));
        Ok(())
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    let unreadable = || format!("cannot read {}", path.display());
    let length = fs::metadata(path).with_context(unreadable)?.len();
    anyhow::ensure!(length <= FILE_BYTES_MAX, "{} has {length} bytes: that is no certificate", path.display());
    fs::read_to_string(path).with_context(unreadable)
}
