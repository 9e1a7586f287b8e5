//! The archive of another member's recovery, taken at a start: its database takes the place of this member's.

use std::path::Path;

use microcluster_client::{Fingerprint, Name};

use super::archive::{self, ReadError};
use super::folder::{Staging, finish};
use super::{LogPosition, RecoverError, member_config, names, own_fingerprint};
use crate::cluster::join::JoinRecord;
use crate::cluster::members::{self, MemberRow};
use crate::config::MemberConfig;
use crate::db::recovery::{Draft, OfflineError, Outline, RecoveryMark, look, recoveries};
use crate::error::Chain;
use crate::state_dir::{FileError, StateDir, failed, read_file, remove_file, sync_directory};

/// Why an archive cannot be taken. Nothing was changed then, except where it says so.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeError {
    #[error(transparent)]
    File(#[from] FileError),
    /// It is taken, and not everything is in its place: the next start finishes it.
    #[error("it is taken, but that cannot be finished")]
    Unfinished(#[source] FileError),
    #[error("this member's own database cannot be looked at, and is not damaged: {reason}")]
    OwnDatabase { reason: String },
    #[error("{0}; copy it again from the member that has made it, or remove it")]
    Unreadable(ReadError),
    #[error("this daemon is no member of a cluster; remove the file, and join the cluster with a token")]
    NoMember,
    #[error("it has no member named {name}, it has {}; it is of another cluster, or was made before this member joined", .known)]
    Stranger { name: Name, known: String },
    #[error(
        "the member {name} in it has another certificate than this one: it is of another cluster, or of an earlier member of that name"
    )]
    OtherCertificate { name: Name },
    #[error(
        "this member was only joining when it was made; remove the file, and the state directory, and join with a new token"
    )]
    Joining,
    #[error("this member's database is of a later recovery than it; remove the file")]
    Earlier,
    #[error("its database cannot be used: {reason}")]
    Database { reason: String },
    #[error("{reason}")]
    State { reason: String },
}

/// Takes the archive in the state directory, if there is one. Must be called where blocking is allowed and a runtime is there.
pub(crate) fn take(dir: &StateDir) -> Result<(), TakeError> {
    let path = dir.recovery_archive();
    if !path.exists() {
        return Ok(());
    }
    let meta = archive::read_meta(&path)?;
    if !dir.daemon_config().exists() {
        return Err(TakeError::NoMember);
    }
    let fingerprint = own_fingerprint(dir)?;
    if meta.made_by_fingerprint == fingerprint {
        tracing::debug!(path = %path.display(), "the archive was made here, for the other members");
        return Ok(());
    }
    let config = member_config(dir.path())?;
    if !meta.members.iter().any(|member| member.name == config.name) {
        return Err(TakeError::Stranger { name: config.name, known: names(&meta.members) });
    }
    let recovery = meta.recovery;
    let known = last_recovery(dir)?;
    let own = own_database(dir, &config)?;
    if let Some((_, earlier)) = &own {
        if earlier.contains(&recovery) {
            tracing::warn!(path = %path.display(), "this archive was taken before; it is removed");
            return Ok(remove(dir)?);
        }
        if earlier.first().is_some_and(|last| last.term > recovery.term) {
            return Err(TakeError::Earlier);
        }
    }
    // What this member has agreed to since then would be forgotten, and it could agree to something else.
    let is_lost = own.is_none() && known.is_some_and(|known| recovery.term <= known.term);
    if is_lost || known == Some(recovery) {
        return Ok(refuse(dir)?);
    }
    let outline = own.map(|(outline, _)| outline);
    tracing::warn!(
        path = %path.display(),
        bytes = size(&path)?,
        "taking the database that the cluster was recovered with; the daemon is up when that is done"
    );
    let staging = Staging::begin(dir)?;
    let draft = Draft::create(&staging.database())?;
    archive::read(&path, draft.path())?;
    if !draft.is_at(recovery)? {
        let reason = "it does not stand where the archive says".to_owned();
        return Err(TakeError::Database { reason });
    }
    let rows = draft.read(members::all)?;
    let own = own_row(&rows, &config.name, &fingerprint)?;
    let mut config = config;
    (config.id, config.address) = (own.id, own.address);
    let own_log = outline.as_ref().map_or_else(LogPosition::default, LogPosition::of);
    if own_log > meta.log_before {
        tracing::warn!(
            own_term = own_log.term,
            own_index = own_log.index,
            archive_term = meta.log_before.term,
            archive_index = meta.log_before.index,
            "the log of this member is newer than the one that the cluster was recovered from; what only this member has is in the backup"
        );
    }
    let vote = outline.and_then(|outline| outline.vote);
    draft.finish(recovery, vote)?;
    staging.put_config(&config)?;
    staging.put_mark(recovery)?;
    let backup = archive::back_up(dir)?;
    staging.decide(dir)?;
    finish(dir).and_then(|()| remove(dir)).map_err(TakeError::Unfinished)?;
    tracing::warn!(
        member = %config.name,
        made_by = %meta.made_by,
        backup = %backup.display(),
        "took the database that the cluster was recovered with"
    );
    Ok(())
}

/// What this member's database holds. None if it is lost: damaged, missing, empty, or that of a rebuild under another id.
fn own_database(dir: &StateDir, config: &MemberConfig) -> Result<Option<(Outline, Vec<RecoveryMark>)>, TakeError> {
    if let Some(text) = read_file(&dir.join_record())?
        && serde_json::from_str::<JoinRecord>(&text).map_or(true, |record| record.id != config.id)
    {
        return Ok(None);
    }
    match look(&dir.database(), recoveries) {
        Ok(found) => Ok(found.0.last.is_some().then_some(found)),
        Err(e) if e.is_damage() => {
            tracing::warn!(error = %Chain(&e), "this member's own database cannot be read");
            Ok(None)
        }
        Err(e) => Err(TakeError::OwnDatabase { reason: Chain(&e).to_string() }),
    }
}

/// The recovery that this member has gone through last, whatever became of its database.
fn last_recovery(dir: &StateDir) -> Result<Option<RecoveryMark>, TakeError> {
    let path = dir.last_recovery();
    let mark = read_file(&path)?.map(|text| serde_json::from_str(&text)).transpose();
    mark.map_err(|e| TakeError::State { reason: format!("{} cannot be read: {e}", path.display()) })
}

/// Leaves the archive aside: the start goes on with what there is, and a lost database is rebuilt from the other members.
fn refuse(dir: &StateDir) -> Result<(), FileError> {
    let (path, aside) = (dir.recovery_archive(), dir.refused_archive());
    std::fs::rename(&path, &aside).map_err(failed("rename", &path))?;
    tracing::error!(
        path = %aside.display(),
        "this member has gone through the recovery of this archive, or through a later one, and its database was lost or replaced since: the \
         archive is not taken, and left aside"
    );
    sync_directory(dir.path())
}

/// How large the archive is.
fn size(path: &Path) -> Result<u64, FileError> {
    Ok(std::fs::metadata(path).map_err(failed("look at", path))?.len())
}

/// This member's row in the archive, if it is this member's.
fn own_row<'a>(rows: &'a [MemberRow], name: &Name, own: &Fingerprint) -> Result<&'a MemberRow, TakeError> {
    let row = rows.iter().find(|row| row.name == *name);
    let row = row.ok_or_else(|| TakeError::Stranger { name: name.clone(), known: "others".to_owned() })?;
    if Fingerprint::of_pem(&row.certificate).ok().as_ref() != Some(own) {
        return Err(TakeError::OtherCertificate { name: name.clone() });
    }
    if row.role.is_joining() {
        return Err(TakeError::Joining);
    }
    Ok(row)
}

/// Removes the archive, durably: it must not be taken again when the member has gone on.
fn remove(dir: &StateDir) -> Result<(), FileError> {
    remove_file(&dir.recovery_archive())?;
    sync_directory(dir.path())
}

impl From<ReadError> for TakeError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::File(e) => TakeError::File(e),
            other => TakeError::Unreadable(other),
        }
    }
}

impl From<OfflineError> for TakeError {
    fn from(error: OfflineError) -> Self {
        TakeError::Database { reason: Chain(&error).to_string() }
    }
}

impl From<RecoverError> for TakeError {
    fn from(error: RecoverError) -> Self {
        TakeError::State { reason: Chain(&error).to_string() }
    }
}
