//! `microctl status`: this member.

use clap::Args;
use microcluster_client::{Client, DaemonStatus, Error, ServerStatus, Timestamp};

use super::output::{Field, Listing, Look, Output, print};

/// A certificate that expires sooner than this is shown as something to look after.
const EXPIRY_WARNING_DAYS: u64 = 30;

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    output: Output,
}

impl Arguments {
    pub async fn run(self, client: &Client) -> anyhow::Result<()> {
        let format = self.output.format;
        let look = Look::of_stdout();
        let text = match client.daemon_status().await {
            Ok(status) => format.render(look, &status, |s| member(s, Timestamp::now()))?,
            Err(error) => {
                // A daemon that is no member of a cluster says what it can.
                let status = client.status().await?;
                if status.address.is_some() {
                    return Err(error.into());
                }
                format.render(look, &status, |status| no_member(status, &error))?
            }
        };
        print(&text)
    }
}

fn member(status: &DaemonStatus, now: Timestamp) -> Listing {
    let mut listing = Listing::new(["FIELD", "VALUE"]);
    let mut row = |name: &str, value: Field| listing.row([Field::new(name), value]);
    row("name", Field::new(status.name.as_str()));
    row("address", Field::new(status.address.to_string()));
    row("version", Field::new(&status.version));
    row("ready", yes_no(status.ready));
    row("role", Field::new(status.role.as_str()));
    row(
        "leader",
        match &status.leader {
            Some(leader) => Field::new(format!("{} {}", leader.name, leader.address)),
            None => Field::bad("none known"),
        },
    );
    row("quorum", yes_no(status.quorum));
    row("members", Field::new(status.members.to_string()));
    let database = &status.database;
    row(
        "database",
        Field::new(format!(
            "{}, term {}, applied {} of {}",
            database.state, database.term, database.applied_index, database.last_log_index
        )),
    );
    for certificate in &status.certificates {
        let left = certificate.expires_at.since(now).unwrap_or_default();
        let days = left.as_secs() / 86_400;
        let text = format!("expires {} ({days} days)", certificate.expires_at);
        let soon = days < EXPIRY_WARNING_DAYS;
        let value = if soon { Field::bad(text) } else { Field::new(text) };
        row(&format!("{} certificate", certificate.name), value);
    }
    listing
}

/// What can be said of a daemon that is no member: why, in its own words.
fn no_member(status: &ServerStatus, error: &Error) -> Listing {
    let mut listing = Listing::new(["FIELD", "VALUE"]);
    let mut row = |name: &str, value: Field| listing.row([Field::new(name), value]);
    row("name", Field::new(&status.name));
    row("version", Field::new(&status.version));
    row("state", Field::bad(error.to_string()));
    listing
}

fn yes_no(value: bool) -> Field {
    if value { Field::good("yes") } else { Field::bad("no") }
}
