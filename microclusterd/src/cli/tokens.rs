//! `microctl tokens`: join tokens.

use std::time::Duration;

use clap::{Args, Subcommand};
use microcluster_client::{Client, Name, TokenRecord, TokenRequest};

use super::duration::parse_duration;
use super::output::{Field, Listing, Look, Output, print};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a token that a new member of this name joins with; prints it
    Add(Add),
    /// List the tokens that have not been used
    List(Output),
    /// Revoke a token
    Revoke(Revoke),
}

#[derive(Debug, Args)]
pub struct Add {
    /// Name that the new member will have
    name: Name,
    /// How long the token is valid, for example 3h or 1h30m; 0 for ever
    #[arg(short, long, value_name = "DURATION", default_value = "3h", value_parser = parse_duration)]
    expire_after: Duration,
}

#[derive(Debug, Args)]
pub struct Revoke {
    /// Name that the token was made for
    name: Name,
}

impl Command {
    pub async fn run(self, client: &Client) -> anyhow::Result<()> {
        match self {
            Command::Add(Add { name, expire_after }) => {
                let expire_after = (!expire_after.is_zero()).then_some(expire_after);
                let token = client.add_token(&TokenRequest { name, expire_after }).await?;
                print(&format!("{}\n", token.expose()))
            }
            Command::List(output) => {
                let tokens = client.tokens().await?;
                print(&output.format.render(Look::of_stdout(), &tokens, |t| listing(t))?)
            }
            Command::Revoke(Revoke { name }) => Ok(client.revoke_token(&name).await?),
        }
    }
}

fn listing(tokens: &[TokenRecord]) -> Listing {
    let mut listing = Listing::new(["NAME", "TOKEN", "EXPIRES AT"]).wrapping(1);
    for token in tokens {
        let expires_at = match token.expires_at {
            time if time.is_zero() => "never".to_owned(),
            time => time.to_string(),
        };
        let name = Field::new(token.name.as_str());
        listing.row([name, Field::new(token.token.expose()), Field::new(expires_at)]);
    }
    listing
}
