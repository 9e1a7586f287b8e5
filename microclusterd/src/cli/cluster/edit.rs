//! `microctl cluster edit`: recovery from the loss of a quorum for good.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use microcluster::{App, PreparedRecovery, RaftMember, Recovery};
use microcluster_client::Role;
use tokio::task::spawn_blocking;

use super::super::output::{note, print, tell};

/// The help of the command.
pub const ABOUT: &str = "\
Recover from the loss of a quorum for good: say which members go on, in an editor or on standard input

Stop the daemons of all members first. Run this on the member with the newest log: the one where `cluster list --local` shows the \
latest term, and in that term the highest entry. Give the members that are left the role voter, those that are gone the role spare. \
Roles and addresses may change; names and ids may not, and nobody can be added or left out. Then copy recovery_db.tar.gz into \
the state directories of the other members that are left, and start them all.

On a terminal the list is opened in $VISUAL, $EDITOR or vi. Else it is read from standard input, as YAML or JSON.";

/// The most that standard input, or the editor, may give.
const TEXT_BYTES_MAX: u64 = 4 << 20;

/// Recovers the cluster on the member of a state directory.
pub async fn run(app: &App) -> anyhow::Result<()> {
    tell("Copying the database, with all of its log …");
    let prepared = app.prepare_recovery().await?;
    for warning in prepared.warnings() {
        note(&format!("Warning: {warning}."));
    }
    let present = prepared.members().to_vec();
    let (prepared, members) = spawn_blocking(move || {
        let members = if io::stdin().is_terminal() { edit(&prepared) } else { read(&prepared) };
        members.map(|members| (prepared, members))
    })
    .await
    .context("the editor could not be run")??;
    tell("Writing the backup and the archive …");
    let recovery = prepared.commit(members).await?;
    print(&report(&recovery, &present))
}

fn read(prepared: &PreparedRecovery) -> anyhow::Result<Vec<RaftMember>> {
    let mut text = String::new();
    io::stdin().lock().take(TEXT_BYTES_MAX).read_to_string(&mut text).context("cannot read standard input")?;
    parse(prepared, &text)
}

fn parse(prepared: &PreparedRecovery, text: &str) -> anyhow::Result<Vec<RaftMember>> {
    if text.trim().is_empty() {
        bail!("there is no list of members; give the one of `microctl cluster list --local -f yaml`, with other roles");
    }
    let members: Vec<RaftMember> = serde_norway::from_str(text).context("this is no list of members")?;
    prepared.check(&members)?;
    Ok(members)
}

/// Has the list edited until it can be used.
fn edit(prepared: &PreparedRecovery) -> anyhow::Result<Vec<RaftMember>> {
    let before = prepared.members();
    let file = Draft::write(&draft(prepared)?)?;
    loop {
        run_editor(&file.0)?;
        let text = fs::read_to_string(&file.0).context("cannot read what was edited")?;
        match parse(prepared, &text) {
            Ok(members) if members == before => bail!("the members are as they were; nothing was changed"),
            Ok(members) => return Ok(members),
            Err(e) => note(&format!(
                "Error: {}\nPress Enter to edit the list again, or Ctrl-C to leave everything as it is.",
                super::super::failure::one_line(&e)
            )),
        }
        let mut line = String::new();
        if io::stdin().lock().read_line(&mut line).context("cannot read from the terminal")? == 0 {
            bail!("nothing was changed");
        }
    }
}

fn draft(prepared: &PreparedRecovery) -> anyhow::Result<String> {
    let log = prepared.log();
    let mut text = format!(
        "# The log on this disk ends in term {}, at entry {}. What newer logs have is lost.\n",
        log.term, log.index
    );
    for warning in prepared.warnings() {
        writeln!(text, "# WARNING: {warning}.")?;
    }
    text += "#\n# Give the members that are left the role voter (or stand-by), and those that are gone the role spare.\n\
             # Addresses may change too. Names and ids may not, and nobody can be added or left out.\n";
    Ok(text + &serde_norway::to_string(prepared.members())?)
}

fn run_editor(path: &Path) -> anyhow::Result<()> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let editor = set("VISUAL").or_else(|| set("EDITOR")).unwrap_or_else(|| "vi".to_owned());
    // It may have arguments, as with git.
    let status = Command::new("sh").arg("-c").arg(format!("{editor} \"$1\"")).arg(&editor).arg(path).status();
    let status = status.with_context(|| format!("cannot run the editor {editor}"))?;
    if !status.success() {
        bail!("the editor {editor} ended with {status}; nothing was changed");
    }
    Ok(())
}

/// The file that is edited. It goes when this is dropped.
struct Draft(PathBuf);

impl Draft {
    fn write(text: &str) -> anyhow::Result<Draft> {
        let path = std::env::temp_dir().join(format!("microctl-members-{}.yaml", std::process::id()));
        let failed = format!("cannot write {}", path.display());
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let mut file = file.with_context(|| failed.clone())?;
        // It is this run's from here on: what was there before is somebody else's, and stays.
        let draft = Draft(path);
        file.write_all(text.as_bytes()).context(failed)?;
        Ok(draft)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // It holds nothing that `cluster list --local` does not show.
        let _ = fs::remove_file(&self.0);
    }
}

fn report(recovery: &Recovery, before: &[RaftMember]) -> String {
    let Recovery { name, members, backup, archive, .. } = recovery;
    let mut text = format!("The cluster is recovered on {name}.\n");
    for member in members {
        let Some(old) = before.iter().find(|old| old.id == member.id) else { continue };
        let mut changes = Vec::new();
        if old.role != member.role {
            changes.push(format!("{}, was {}", member.role, old.role));
        }
        if old.address != member.address {
            changes.push(format!("at {}, was at {}", member.address, old.address));
        }
        if !changes.is_empty() {
            text += &format!("  {}: {}\n", member.name, changes.join("; "));
        }
    }
    text += &format!("The database as it was: {}\n", backup.display());
    text += &format!("The archive for the other members: {}\n", archive.display());
    let listed = |members: &[&RaftMember]| {
        members.iter().map(|m| format!("{} ({})", m.name, m.address)).collect::<Vec<_>>().join(", ")
    };
    match recovery.others().as_slice() {
        [] => text += &format!("Next: start {name}.\n"),
        others => {
            text += &format!(
                "Next: copy the archive into the state directory of {}; then start {name} and all of these.\n",
                listed(others)
            );
        }
    }
    let gone: Vec<&RaftMember> = members.iter().filter(|m| m.role == Role::Spare && m.name != *name).collect();
    if !gone.is_empty() {
        text += &format!(
            "Never start {} again without the archive. Remove who is gone for good, when the cluster runs: microctl cluster remove NAME --force\n",
            listed(&gone)
        );
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_there_is_left_alone() {
        let own = Draft::write("own").unwrap();
        let path = own.0.clone();
        assert!(Draft::write("another").is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "own");
        drop(own);
        assert!(!path.exists());
    }
}
