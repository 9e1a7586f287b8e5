//! `microctl init`: begin a cluster or join one.

use std::time::Duration;

use clap::Args;
use microcluster_client::{Address, Client, ControlRequest, InitConfig, Name, Secret};

use super::output::tell;

/// How often a person who waits is told so.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  microctl init c1 10.0.0.1:9000 --bootstrap
  microctl init c2 10.0.0.2:9000 --token \"$(microctl --state-dir /var/lib/c1 tokens add c2)\"")]
pub struct Arguments {
    /// Name of this member in the cluster
    name: Name,
    /// Address that the other members reach this one at, IP:PORT
    #[arg(value_parser = cluster_address)]
    address: Address,
    #[command(flatten)]
    how: How,
    /// Settings for the product, k=v,…
    #[arg(long, value_name = "K=V", value_delimiter = ',', value_parser = key_value)]
    config: Vec<(String, String)>,
}

/// One of the two ways to become a member.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct How {
    /// Begin a new cluster
    #[arg(long)]
    bootstrap: bool,
    /// Join the cluster that gave this token
    #[arg(long, value_parser = |t: &str| secret(t))]
    token: Option<Secret>,
}

impl Arguments {
    pub async fn run(self, client: &Client) -> anyhow::Result<()> {
        let Arguments { name, address, how, config } = self;
        let config = config.into_iter().collect::<InitConfig>();
        let (doing, request) = match how.token {
            None => (format!("{name} begins a new cluster at {address}"), ControlRequest::bootstrap(name, address)),
            Some(token) => {
                (format!("{name} joins the cluster at {address}"), ControlRequest::join(name, address, token))
            }
        };
        tell(&format!("{doing} …"));
        let request = request.with_config(config);
        let call = client.control(&request);
        tokio::pin!(call);
        let mut waited = Duration::ZERO;
        loop {
            match tokio::time::timeout(PROGRESS_INTERVAL, &mut call).await {
                Ok(result) => break result?,
                Err(_) => {
                    waited += PROGRESS_INTERVAL;
                    tell(&format!("{doing}: {} s …", waited.as_secs()));
                }
            }
        }
        tell("done");
        Ok(())
    }
}

fn cluster_address(text: &str) -> Result<Address, microcluster_client::AddressError> {
    text.parse::<Address>()?.cluster()
}

fn secret(text: &str) -> Result<Secret, String> {
    match text.trim() {
        "" => Err("the token is empty; `microctl tokens add NAME` on a member makes one".into()),
        token => Ok(Secret::new(token)),
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err(format!("{text:?} is not of the form key=value")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_pairs() {
        assert_eq!(key_value("a=b=c").unwrap(), ("a".into(), "b=c".into()));
        assert_eq!(key_value("a=").unwrap(), ("a".into(), String::new()));
        assert!(key_value("a").is_err());
        assert!(key_value("=b").is_err());
    }
}
