//! `microctl cluster`: the members.

mod edit;

use anyhow::bail;
use clap::{Args, Subcommand};
use microcluster::RaftMember;
use microcluster_client::{
    Fingerprint, Member, MemberStatus, MemberVerdict, Name, TIMEOUT_INIT, Verdict, Verification,
};

use super::Context;
use super::output::{Field, Listing, Look, Output, note, print, tell};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the members of the cluster
    List(List),
    /// Show one member
    Show(Show),
    /// Compare what the members hold in their databases, at one index of the log; fails if one differs
    Verify(Output),
    /// Remove a member from the cluster; it is an uninitialised daemon afterwards
    Remove(Remove),
    /// Recover from the loss of a quorum for good: say which members go on, in an editor or on standard input
    #[command(long_about = edit::ABOUT)]
    Edit,
}

#[derive(Debug, Args)]
pub struct List {
    /// Read the list from this member's disk; the daemon need not run
    #[arg(long)]
    local: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub struct Show {
    /// Name of the member
    name: Name,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub struct Remove {
    /// Name of the member
    name: Name,
    /// Remove it even if it does not answer
    #[arg(short, long)]
    force: bool,
}

impl Command {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = &context.client()?;
        match self {
            Command::Edit => edit::run(&context.app()?).await,
            Command::List(List { local: true, output }) => list_local(context, output).await,
            Command::List(List { local: false, output }) => {
                let members = client.cluster_members().await?;
                print(&output.format.render(Look::of_stdout(), &members, |m| listing(m))?)
            }
            Command::Show(Show { name, output }) => {
                let member = client.cluster_member(&name).await?;
                print(&output.format.render(Look::of_stdout(), &member, details)?)
            }
            Command::Verify(output) => {
                let found = client.timeout(TIMEOUT_INIT).verify_database().await?;
                print(&output.format.render(Look::of_stdout(), &found, verdicts)?)?;
                let bad = |member: &&MemberVerdict| matches!(member.verdict, Verdict::Different | Verdict::Damaged);
                let bad: Vec<_> = found.members.iter().filter(bad).map(|member| &*member.name).collect();
                if !bad.is_empty() {
                    bail!(
                        "{} not hold what the others hold. One that is rebuilt, as its detail says, is the same again in a moment. Otherwise \
                         decide who is right, remove the others with `microctl cluster remove NAME --force`, empty their state \
                         directories and let them join again",
                        match &bad[..] {
                            [one] => format!("{one} does"),
                            several => format!("{} do", several.join(", ")),
                        }
                    );
                }
                Ok(())
            }
            Command::Remove(Remove { name, force }) => {
                client.remove_cluster_member(&name, force).await?;
                tell(&format!("{name} is no member of the cluster any more"));
                Ok(())
            }
        }
    }
}

async fn list_local(context: &Context, output: Output) -> anyhow::Result<()> {
    let local = context.app()?.local_members().await?;
    print(&output.format.render(Look::of_stdout(), &local.members, |m| local_listing(m))?)?;
    note(&format!("The log on this disk ends in term {}, at entry {}.", local.log.term, local.log.index));
    for warning in &local.warnings {
        note(&format!("Warning: {warning}."));
    }
    Ok(())
}

fn local_listing(members: &[RaftMember]) -> Listing {
    let mut listing = Listing::new(["ID", "NAME", "ADDRESS", "ROLE"]);
    for member in members {
        listing.row([
            Field::new(member.id.to_string()),
            Field::new(member.name.as_str()),
            Field::new(member.address.to_string()),
            Field::new(member.role.as_str()),
        ]);
    }
    listing
}

fn listing(members: &[Member]) -> Listing {
    // On a narrow terminal the fingerprint is what gives way.
    let mut listing = Listing::new(["NAME", "ADDRESS", "ROLE", "FINGERPRINT", "STATUS"]).wrapping(3);
    for member in members {
        listing.row([
            Field::new(member.name.as_str()),
            Field::new(member.address.to_string()),
            Field::new(member.role.as_str()),
            Field::new(fingerprint(member)),
            status(member.status),
        ]);
    }
    listing
}

fn verdicts(found: &Verification) -> Listing {
    let mut listing = Listing::new(["NAME", "ADDRESS", "DATABASE", "DETAIL"]).wrapping(3);
    for member in &found.members {
        let verdict = match member.verdict {
            Verdict::Same => Field::good("same"),
            Verdict::Different => Field::bad("different"),
            Verdict::Damaged => Field::bad("damaged"),
            Verdict::Unknown => Field::bad("unknown"),
        };
        listing.row([Field::new(&member.name), Field::new(&member.address), verdict, Field::new(&member.detail)]);
    }
    listing
}

fn details(member: &Member) -> Listing {
    let mut listing = Listing::new(["FIELD", "VALUE"]);
    let mut row = |name: &str, value: Field| listing.row([Field::new(name), value]);
    row("name", Field::new(member.name.as_str()));
    row("address", Field::new(member.address.to_string()));
    row("role", Field::new(member.role.as_str()));
    row("status", status(member.status));
    row("fingerprint", Field::new(fingerprint(member)));
    let heartbeat = match member.last_heartbeat {
        time if time.is_zero() => "never".to_owned(),
        time => time.to_string(),
    };
    row("last heartbeat", Field::new(heartbeat));
    row("internal schema", Field::new(member.schema_internal_version.to_string()));
    row("product schema", Field::new(member.schema_external_version.to_string()));
    row("extensions", Field::new(member.extensions.join(" ")));
    listing
}

fn status(status: MemberStatus) -> Field {
    match status {
        MemberStatus::Online => Field::good(status.as_str()),
        _ => Field::bad(status.as_str()),
    }
}

fn fingerprint(member: &Member) -> String {
    Fingerprint::of_pem(&member.certificate)
        .map_or_else(|_| "unreadable".to_owned(), |fingerprint| fingerprint.to_string())
}
