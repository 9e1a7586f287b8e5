//! `microctl servers`: where the additional servers of this daemon listen.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use microcluster_client::{Address, Client, Name, ServerConfig};

use super::output::{Field, Listing, Look, Output, print, tell};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the servers whose addresses were set
    List(Output),
    /// Set where servers listen; the others stay as they are
    Set(Set),
}

#[derive(Debug, Args)]
pub struct Set {
    /// Name of a server and where it is to listen; without an address it goes back to its own
    #[arg(required = true, value_name = "NAME=[ADDRESS]", value_parser = setting)]
    settings: Vec<(Name, Option<Address>)>,
}

impl Command {
    pub async fn run(self, client: &Client) -> anyhow::Result<()> {
        match self {
            Command::List(output) => {
                let servers = client.daemon_servers().await?;
                print(&output.format.render(Look::of_stdout(), &servers, listing)?)
            }
            Command::Set(Set { settings }) => {
                let mut servers = client.daemon_servers().await?;
                for (name, address) in settings {
                    match address {
                        Some(address) => drop(servers.insert(name, ServerConfig { address })),
                        None => drop(servers.remove(&name)),
                    }
                }
                client.set_daemon_servers(&servers).await?;
                tell("the servers listen there from now on");
                Ok(())
            }
        }
    }
}

fn listing(servers: &BTreeMap<Name, ServerConfig>) -> Listing {
    let mut listing = Listing::new(["NAME", "ADDRESS"]);
    for (name, server) in servers {
        listing.row([Field::new(name.as_str()), Field::new(server.address.to_string())]);
    }
    listing
}

fn setting(text: &str) -> Result<(Name, Option<Address>), String> {
    let (name, address) = text.split_once('=').ok_or("give NAME=ADDRESS, for example metrics=127.0.0.1:9443")?;
    let name = name.parse().map_err(|e: microcluster_client::NameError| e.to_string())?;
    let address = match address {
        "" => None,
        address => Some(address.parse().map_err(|e: microcluster_client::AddressError| e.to_string())?),
    };
    Ok((name, address))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_a_name_and_an_address() {
        let metrics: Name = "metrics".parse().unwrap();
        assert_eq!(setting("metrics=[::1]:9"), Ok((metrics.clone(), Some("[::1]:9".parse().unwrap()))));
        assert_eq!(setting("metrics="), Ok((metrics, None)));
        for text in ["metrics", "=1.1.1.1:1", "a_b=1.1.1.1:1", "metrics=here"] {
            assert!(setting(text).is_err(), "{text}");
        }
    }
}
