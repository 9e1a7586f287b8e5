//! Recovery from the loss of a quorum for good: the members on a disk, the edit on the member with the newest log, and the archive by
//! which others follow it.
//!
//! A crash at any moment leaves the old state or the new one. The new database is made beside the old one, in `recovering`; the rename of
//! that folder to `recovered` decides; from there on `folder::finish` puts everything in its place, now or at the next start.

mod archive;
mod folder;
mod take;

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use microcluster_client::{Fingerprint, Name, Role, Timestamp};

use crate::cluster::members::{self, MemberRow};
use crate::cluster::recovery::{check, listed, membership, rewrite};
use crate::cluster::{MembersError, RaftMember};
use crate::config::MemberConfig;
use crate::db::recovery::{Draft, OfflineError, Outline, look};
use crate::state_dir::{FileError, OpenError, StateDir, failed, read_file};
use crate::tasks::{TaskLost, blocking};

use archive::Meta;
use folder::Staging;

pub(crate) use folder::finish;
pub(crate) use take::{TakeError, take};

/// A place in the Raft log. Of two members the one with the later term has the newer log; in one term, the one with the higher index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct LogPosition {
    /// The term of the entry.
    pub term: u64,
    /// The index of the entry.
    pub index: u64,
}

/// What a state directory knows of its cluster.
#[derive(Clone, Debug)]
pub struct LocalMembers {
    /// The members, by name.
    pub members: Vec<RaftMember>,
    /// The last entry of the log: the member where it is newest is the one to recover on.
    pub log: LogPosition,
    /// What is known of newer logs elsewhere.
    pub warnings: Vec<String>,
}

/// What a recovery has done.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Recovery {
    /// The member that the cluster was recovered on.
    pub name: Name,
    /// The members as they are now.
    pub members: Vec<RaftMember>,
    /// The database as it was before.
    pub backup: PathBuf,
    /// What the other members need in their state directories before they start.
    pub archive: PathBuf,
}

impl Recovery {
    /// The other members that are to go on: those that are no spares.
    #[must_use]
    pub fn others(&self) -> Vec<&RaftMember> {
        self.members.iter().filter(|member| member.name != self.name && member.role != Role::Spare).collect()
    }
}

/// Why a cluster was not recovered. Nothing was changed then, except where it says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoverError {
    /// The daemon runs.
    #[error("the daemon that uses {} runs; stop it first, and those of all other members", .path.display())]
    Held {
        /// The state directory.
        path: PathBuf,
    },
    /// The state directory is no member's.
    #[error("{} is not the state directory of a member: {reason}", .path.display())]
    NotMember {
        /// The state directory.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The cluster cannot go on with these members.
    #[error(transparent)]
    Members(#[from] MembersError),
    /// A file cannot be read or written.
    #[error("cannot {action} {}", .path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The recovery is decided, and not everything is in its place: the next start of the daemon finishes it, or the next recovery here.
    #[error("the recovery is decided, but cannot be finished: cannot {action} {}; the start of the daemon goes on with it, and so does this when it is run again", .path.display())]
    Unfinished {
        /// What was to be done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The database cannot be used.
    #[error("the database of this member cannot be used")]
    Database {
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another user than the daemon's asks.
    #[error("the database in {} belongs to the user with the id {owner}: run this as that user, or its daemon cannot use what is written", .path.display())]
    OtherUser {
        /// The state directory.
        path: PathBuf,
        /// The owner's user id.
        owner: u32,
    },
    /// The work was given up by a fault of this program.
    #[error("the recovery was given up: {reason}")]
    Panicked {
        /// What happened.
        reason: String,
    },
}

/// Reads the members from a disk. Also beside a daemon that runs.
pub(crate) fn local(path: &Path) -> Result<LocalMembers, RecoverError> {
    let config = member_config(path)?;
    // A recovery that was decided and not finished is what the next start goes on with.
    let recovered = path.join("recovered").join("database");
    let dir = if recovered.exists() { recovered } else { path.join("database") };
    let (outline, rows) = look(&dir, members::all)?;
    Ok(LocalMembers {
        members: listed(&rows, &outline),
        log: LogPosition::of(&outline),
        warnings: warnings(&outline, &config),
    })
}

/// A recovery that was begun: the daemon's lock is held, and nothing has changed. Dropped, it is as if it had never been.
#[derive(Debug)]
pub struct PreparedRecovery {
    config: MemberConfig,
    draft: Draft,
    outline: Outline,
    rows: Vec<MemberRow>,
    present: Vec<RaftMember>,
    // After the draft: it removes the folder that that is in.
    staging: Staging,
    // The last: it holds the lock.
    dir: StateDir,
}

impl PreparedRecovery {
    /// Takes the lock of a member, and makes a copy of its database with all of its log applied. Blocks.
    pub(crate) fn new(path: &Path) -> Result<PreparedRecovery, RecoverError> {
        member_config(path)?;
        let owner = std::fs::metadata(path.join("daemon.yaml")).map_err(failed("look at", path))?.uid();
        if owner != rustix::process::geteuid().as_raw() {
            return Err(RecoverError::OtherUser { path: path.to_owned(), owner });
        }
        let dir = StateDir::open(path)?;
        if dir.is_resetting() {
            let reason = "it was removed from its cluster".to_owned();
            return Err(RecoverError::NotMember { path: path.to_owned(), reason });
        }
        let is_decided = dir.recovered().exists();
        finish(&dir).map_err(|e| if is_decided { unfinished(e) } else { e.into() })?;
        let config = member_config(path)?;
        let staging = Staging::begin(&dir)?;
        let (draft, outline) = Draft::copy(&dir.database(), config.id, &staging.database())?;
        let rows = draft.read(members::all)?;
        let present = listed(&rows, &outline);
        if !present.iter().any(|member| member.id == config.id) {
            let reason = format!("the list of members on its disk does not have {}", config.name);
            return Err(RecoverError::NotMember { path: path.to_owned(), reason });
        }
        Ok(PreparedRecovery { dir, config, draft, outline, rows, present, staging })
    }

    /// The members, with everything that is in the log.
    #[must_use]
    pub fn members(&self) -> &[RaftMember] {
        &self.present
    }

    /// Where the log ends.
    #[must_use]
    pub fn log(&self) -> LogPosition {
        LogPosition::of(&self.outline)
    }

    /// What is known of newer logs elsewhere.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        warnings(&self.outline, &self.config)
    }

    /// Whether the cluster could go on with these members.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn check(&self, members: &[RaftMember]) -> Result<(), MembersError> {
        check(&self.present, &self.rows, members)
    }

    /// Makes these the members. The daemon can be started afterwards.
    ///
    /// # Errors
    /// What [`RecoverError`] says.
    pub async fn commit(self, members: Vec<RaftMember>) -> Result<Recovery, RecoverError> {
        blocking("recovery", move || self.commit_blocking(members)).await?
    }

    /// The same, where blocking is allowed and a runtime is there.
    pub(crate) fn commit_blocking(self, members: Vec<RaftMember>) -> Result<Recovery, RecoverError> {
        self.check(&members)?;
        let PreparedRecovery { dir, mut config, draft, outline, staging, .. } = self;
        let backup = archive::back_up(&dir)?;
        let (voters, nodes) = membership(&members);
        let recovery = draft.recover(&outline, config.id, voters, nodes, |db| rewrite(db, &members))?;
        let meta = Meta {
            format: archive::FORMAT,
            made_by: config.name.clone(),
            made_by_fingerprint: own_fingerprint(&dir)?,
            made_at: Timestamp::now(),
            recovery,
            log_before: LogPosition::of(&outline),
            members: members.clone(),
            state_bytes: 0,
        };
        archive::write(draft.path(), meta, &staging.archive())?;
        draft.finish(recovery, outline.vote)?;
        if let Some(own) = members.iter().find(|member| member.id == config.id) {
            config.address = own.address;
        }
        staging.put_config(&config)?;
        staging.put_mark(recovery)?;
        staging.decide(&dir)?;
        finish(&dir).map_err(unfinished)?;
        Ok(Recovery { name: config.name, members, backup, archive: dir.recovery_archive() })
    }
}

impl LogPosition {
    fn of(outline: &Outline) -> LogPosition {
        outline
            .last
            .map_or_else(LogPosition::default, |last| LogPosition { term: last.leader_id.term, index: last.index })
    }
}

/// What the vote on this disk says of others' logs.
fn warnings(outline: &Outline, config: &MemberConfig) -> Vec<String> {
    let Some((id, term, has_led)) = outline.newer().filter(|(id, ..)| *id != config.id) else {
        return Vec::new();
    };
    let name = outline.nodes.get(&id).map_or_else(|| format!("the member with the id {id}"), |peer| peer.name.clone());
    let own = LogPosition::of(outline);
    let did = if has_led { "led" } else { "stood for election" };
    vec![format!(
        "{name} {did} in term {term}, and the log here ends in term {}, at entry {}: the log of {name} is at least as new, and may \
         have writes that are lost if the cluster is recovered here",
        own.term, own.index
    )]
}

/// What went wrong after the decision.
fn unfinished(FileError { action, path, source }: FileError) -> RecoverError {
    RecoverError::Unfinished { action, path, source }
}

/// The configuration of the member whose state directory this is.
fn member_config(path: &Path) -> Result<MemberConfig, RecoverError> {
    let file = path.join("daemon.yaml");
    let not_member = |reason: String| RecoverError::NotMember { path: path.to_owned(), reason };
    let text = read_file(&file)?.ok_or_else(|| not_member("there is no daemon.yaml in it".to_owned()))?;
    serde_norway::from_str(&text).map_err(|e| not_member(format!("its daemon.yaml cannot be read: {e}")))
}

/// The fingerprint of this member's certificate, by which the others know it.
fn own_fingerprint(dir: &StateDir) -> Result<Fingerprint, RecoverError> {
    let path = dir.key_pair("server").certificate;
    let not_member = |reason: String| RecoverError::NotMember { path: dir.path().to_owned(), reason };
    let text = read_file(&path)?.ok_or_else(|| not_member("there is no server.crt in it".to_owned()))?;
    Fingerprint::of_pem(&text).map_err(|e| not_member(format!("its server.crt cannot be read: {e}")))
}

/// The names of members, for a message.
fn names(members: &[RaftMember]) -> String {
    let names: BTreeSet<&str> = members.iter().map(|member| member.name.as_str()).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

impl From<OpenError> for RecoverError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Held { path } => RecoverError::Held { path },
            OpenError::Io { path, source } => RecoverError::File { action: "use the state directory", path, source },
        }
    }
}

impl From<FileError> for RecoverError {
    fn from(FileError { action, path, source }: FileError) -> Self {
        RecoverError::File { action, path, source }
    }
}

impl From<OfflineError> for RecoverError {
    fn from(error: OfflineError) -> Self {
        RecoverError::Database { source: error.into() }
    }
}

impl From<TaskLost> for RecoverError {
    fn from(error: TaskLost) -> Self {
        RecoverError::Panicked { reason: error.to_string() }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::db::Peer;
    use crate::db::recovery::RecoveryMark;

    /// The warnings of member 1 whose log ends in term 3, at entry 20, with this vote.
    fn warned(voted: Option<(u64, u64, bool)>) -> Vec<String> {
        let config = MemberConfig::new(1, "c1".parse().unwrap(), "10.0.0.1:9000".parse().unwrap());
        let outline = Outline {
            last: Some(RecoveryMark { term: 3, node: 2, index: 20, nonce: 0 }.into()),
            vote: voted.map(|(id, term, has_led)| Outline::vote_of(id, term, has_led)),
            voters: [1, 2].into(),
            nodes: [(2, Peer { name: "c2".to_owned(), address: "10.0.0.2:9000".to_owned() })].into(),
        };
        warnings(&outline, &config)
    }

    #[test]
    fn a_vote_in_a_later_term_tells_of_a_newer_log() {
        assert_eq!(warned(None), [""; 0]);
        assert_eq!(warned(Some((2, 3, true))), [""; 0], "its entries are here");
        assert_eq!(warned(Some((1, 9, false))), [""; 0], "it has stood for election itself");
        assert_eq!(warned(Some((u64::MAX, 9, false))), [""; 0], "in vain");
        for (id, has_led, expected) in [
            (2, true, "c2 led in term 5, and the log here ends in term 3, at entry 20"),
            (2, false, "c2 stood for election in term 5"),
            (7, true, "the member with the id 7 led in term 5"),
        ] {
            let said = warned(Some((id, 5, has_led)));
            assert!(said.len() == 1 && said[0].starts_with(expected), "{said:?}");
        }
    }
}
