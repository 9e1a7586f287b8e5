//! A database folder without Raft: what it holds, a copy with the whole log applied, and that copy under another membership.
//!
//! The terms behind a recovery begin a new era ([`ERA_TERMS`]): none of the entries and votes of before is mistaken for one of after it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use openraft::{CommittedLeaderId, EntryPayload, Membership};
use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::apply::{Applier, ApplyError, Position, put_position, read_position};
use super::damage;
use super::log_store::{LogError, LogOptions, LogStore, LogView};
use super::raft_types::{ERA_TERMS, LogId, NOBODY, NodeId, Peer, StoredMembership, Vote};
use super::readers::{Readers, open_read_only};
use super::state_file;
use super::state_machine::{IncomingSnapshot, PinnedSnapshot, SnapshotError};

/// How many bytes of entries are applied at once.
const APPLY_BYTES: u64 = 1 << 20;
/// The recoveries that a state has been through.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS microcluster_recovery(
    log_index INTEGER PRIMARY KEY,
    term INTEGER NOT NULL,
    node INTEGER NOT NULL,
    nonce INTEGER NOT NULL
) STRICT";

/// Why a database folder could not be read or made without Raft.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OfflineError {
    #[error("cannot {action} {}", .path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot use the log in {}", .dir.display())]
    Log { dir: PathBuf, source: LogError },
    #[error("cannot use the state in {}", .dir.display())]
    State { dir: PathBuf, source: ApplyError },
    #[error("cannot copy the state in {}", .dir.display())]
    Copy { dir: PathBuf, source: SnapshotError },
    #[error("the database in {} is damaged: {reason}", .dir.display())]
    Damaged { dir: PathBuf, reason: String },
}

impl OfflineError {
    /// Whether files are missing or damaged. A disk that fails, or another version's format, is something else.
    pub fn is_damage(&self) -> bool {
        let is_missing = |kind| matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::InvalidData);
        match self {
            OfflineError::Damaged { .. } | OfflineError::Log { source: LogError::Damaged { .. }, .. } => true,
            OfflineError::File { source, .. } | OfflineError::Log { source: LogError::Io { source, .. }, .. } => {
                is_missing(source.kind())
            }
            // A table that is not there: the file is another one, or was never finished.
            OfflineError::State { source: ApplyError::Sqlite(error), .. }
                if error.sqlite_error_code() == Some(rusqlite::ErrorCode::Unknown) =>
            {
                true
            }
            OfflineError::State { source, .. } => damage::is_damage(source),
            OfflineError::Copy { source, .. } => damage::is_damage(source),
            OfflineError::Log { .. } => false,
        }
    }
}

/// A recovery: the place in the log that it stands for, and what tells it from any other. All zeros: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct RecoveryMark {
    pub term: u64,
    /// The member that it was done on.
    pub node: NodeId,
    pub index: u64,
    /// A random number: a recovery that was undone and done again is another one, at the same place.
    pub nonce: u64,
}

impl From<RecoveryMark> for LogId {
    fn from(RecoveryMark { term, node, index, .. }: RecoveryMark) -> Self {
        LogId::new(CommittedLeaderId::new(term, node), index)
    }
}

/// What a database folder holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outline {
    /// The newest that the log, or the state, has.
    pub last: Option<LogId>,
    /// The last vote of this member.
    pub vote: Option<Vote>,
    /// Who votes by the newest membership, and everybody that Raft knows.
    pub voters: BTreeSet<NodeId>,
    pub nodes: BTreeMap<NodeId, Peer>,
}

impl Outline {
    /// The member that led, or stood for election, in a later term than that of the last entry here: it may have more. It may be this one.
    /// None where the vote is for nobody: that tells of no other log.
    pub fn newer(&self) -> Option<(NodeId, u64, bool)> {
        let vote = self.vote?;
        let (candidate, term) = (vote.leader_id.voted_for()?, vote.leader_id.term);
        let last_term = self.last.map_or(0, |last| last.leader_id.term);
        (term > last_term && candidate != NOBODY).then_some((candidate, term, vote.committed))
    }

    /// A vote as a member has it on its disk.
    #[cfg(test)]
    pub fn vote_of(id: NodeId, term: u64, has_led: bool) -> Vote {
        if has_led { Vote::new_committed(term, id) } else { Vote::new(term, id) }
    }
}

/// Looks at the database in `dir`, of a daemon that runs or of none, and reads from its state.
pub(crate) fn look<T>(
    dir: &Path,
    read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> Result<(Outline, T), OfflineError> {
    let log = open_log(dir)?;
    let state_dir = dir.join("state");
    let state = |source| OfflineError::State { dir: state_dir.clone(), source };
    let connection = open_read_only(&current(dir)?).map_err(|e| state(e.into()))?;
    let position = read_position(&connection).map_err(state)?;
    let found = read(&connection).map_err(|e| state(e.into()))?;
    Ok((outline(dir, &log, &position)?, found))
}

/// The recoveries that the state behind a connection stems from, the last one first.
pub(crate) fn recoveries(connection: &Connection) -> rusqlite::Result<Vec<RecoveryMark>> {
    let has_table = "SELECT 1 FROM sqlite_schema WHERE name = 'microcluster_recovery'";
    if connection.query_row(has_table, [], |_| Ok(())).optional()?.is_none() {
        return Ok(Vec::new());
    }
    let mut rows =
        connection.prepare("SELECT term, node, log_index, nonce FROM microcluster_recovery ORDER BY log_index DESC")?;
    let mark = |row: &rusqlite::Row<'_>| {
        let number = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
        Ok(RecoveryMark { term: number(0)?, node: number(1)?, index: number(2)?, nonce: number(3)? })
    };
    rows.query_map([], mark)?.collect()
}

/// A state file beside a database folder to be: of a copy, or from an archive.
#[derive(Debug)]
pub(crate) struct Draft {
    /// The folder of the database to be.
    dir: PathBuf,
    file: IncomingSnapshot,
}

impl Draft {
    /// An empty file in a new folder.
    pub fn create(dir: &Path) -> Result<Draft, OfflineError> {
        let state_dir = create_state_dir(dir)?;
        let file = IncomingSnapshot::create(&state_dir).map_err(file_error("create a file in", &state_dir))?;
        Ok(Draft { dir: dir.to_owned(), file })
    }

    /// A copy of the database in `from` with all of its log applied, committed or not.
    pub fn copy(from: &Path, node_id: NodeId, dir: &Path) -> Result<(Draft, Outline), OfflineError> {
        let log = open_log(from)?;
        let damaged = |reason| OfflineError::Damaged { dir: from.to_owned(), reason };
        let condemned = damage::condemned(from, node_id).map_err(file_error("look for damage in", from))?;
        if let Some(reason) = condemned {
            return Err(damaged(reason));
        }
        let state_dir = create_state_dir(dir)?;
        let copy = |source| OfflineError::Copy { dir: from.join("state"), source };
        // Damage that is found here is an error of this copy; there is no daemon to be told.
        let readers = Readers::new(current(from)?, watch::Sender::new(None));
        let pinned = PinnedSnapshot::take(&readers).map_err(copy)?;
        let draft = Draft { dir: dir.to_owned(), file: pinned.copy_to(&state_dir).map_err(copy)? };

        let mut applier = Applier::open(draft.path()).map_err(draft.state_error())?;
        let position = applier.position().clone();
        let snapshot = state_file::snapshot_index(&from.join("state")).map_err(file_error("read", from))?;
        let (purged, last) = log.ends();
        let applied = position.last_applied;
        damage::Standing { vote: log.vote(), purged, last, applied, snapshot }.check().map_err(damaged)?;
        let outline = outline(from, &log, &position)?;
        let mut next = applied.map_or(0, |applied| applied.index + 1);
        while last.is_some_and(|last| next <= last.index) {
            let entries = log.entries(next..u64::MAX, APPLY_BYTES).map_err(log_error(from))?;
            let Some(newest) = entries.last() else {
                return Err(damaged(format!("the log has no entry {next}")));
            };
            next = newest.log_id.index + 1;
            applier.apply(&entries).map_err(draft.state_error())?;
        }
        Ok((draft, outline))
    }

    /// The state file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Reads from the state.
    pub fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, OfflineError> {
        let state = self.state_error();
        let connection = open_read_only(self.path()).map_err(|e| state(e.into()))?;
        read(&connection).map_err(|e| state(e.into()))
    }

    /// Whether the state is as a recovery has left it.
    pub fn is_at(&self, recovery: RecoveryMark) -> Result<bool, OfflineError> {
        let state = self.state_error();
        let connection = open_read_only(self.path()).map_err(|e| state(e.into()))?;
        Ok(read_position(&connection).map_err(state)?.last_applied == Some(recovery.into()))
    }

    /// Puts the state under another membership, behind everything that is in `outline`, as the work of one member. `rows` changes
    /// the rows that go with it. Afterwards the state is one file, on stable storage.
    pub fn recover(
        &self,
        outline: &Outline,
        node_id: NodeId,
        voters: BTreeSet<NodeId>,
        nodes: BTreeMap<NodeId, Peer>,
        rows: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<RecoveryMark, OfflineError> {
        let term = outline.last.map(|last| last.leader_id.term).max(outline.vote.map(|vote| vote.leader_id.term));
        let era = term.unwrap_or(0) / ERA_TERMS + 1;
        let index = outline.last.map_or(0, |last| last.index) + 1;
        let mark = RecoveryMark { term: era * ERA_TERMS, node: node_id, index, nonce: rand::random() };
        let log_id = LogId::from(mark);
        let membership = StoredMembership::new(Some(log_id), Membership::new(vec![voters], nodes));
        let write = || -> Result<(), ApplyError> {
            let connection = Connection::open(self.path())?;
            // All of it is in the one file then, and nothing in a write-ahead log.
            connection.execute_batch("PRAGMA journal_mode = DELETE; PRAGMA foreign_keys = ON; BEGIN IMMEDIATE")?;
            connection.execute_batch(TABLE)?;
            rows(&connection)?;
            connection.execute(
                "INSERT INTO microcluster_recovery(log_index, term, node, nonce) VALUES (?1, ?2, ?3, ?4)",
                [index, mark.term, node_id, mark.nonce].map(u64::cast_signed),
            )?;
            put_position(&connection, &Position { last_applied: Some(log_id), membership })?;
            connection.execute_batch("COMMIT")?;
            connection.close().map_err(|(_, error)| error)?;
            Ok(())
        };
        write().map_err(self.state_error())?;
        state_file::files::sync(self.path()).map_err(file_error("sync", self.path()))?;
        Ok(mark)
    }

    /// Makes a database of it that begins behind a recovery, for a member that has voted `vote` before. Must be called where blocking
    /// is allowed and a runtime is there.
    pub fn finish(self, recovery: RecoveryMark, vote: Option<Vote>) -> Result<(), OfflineError> {
        let Draft { dir, file } = self;
        let log_id = LogId::from(recovery);
        let state_dir = dir.join("state");
        state_file::install(&state_dir, file.path(), log_id.index)
            .map_err(file_error("put the state in place in", &state_dir))?;
        // In the term of the recovery everybody has voted for who did it.
        let own = Vote::new(log_id.leader_id.term, log_id.leader_id.node_id);
        let vote = vote.filter(|vote| vote.leader_id.term > own.leader_id.term).unwrap_or(own);
        let log_dir = dir.join("log");
        let log = LogStore::open(&log_dir, LogOptions::default()).map_err(log_error(&dir))?;
        tokio::runtime::Handle::current()
            .block_on(async {
                let begun = log.begin_behind(vote, log_id).await;
                log.close().await;
                begun
            })
            .map_err(log_error(&dir))?;
        for folder in [&state_dir, &log_dir, &dir] {
            state_file::sync_dir(folder).map_err(file_error("sync", folder))?;
        }
        Ok(())
    }

    fn state_error(&self) -> impl Fn(ApplyError) -> OfflineError {
        let dir = self.dir.join("state");
        move |source| OfflineError::State { dir: dir.clone(), source }
    }
}

fn create_state_dir(dir: &Path) -> Result<PathBuf, OfflineError> {
    let state_dir = dir.join("state");
    DirBuilder::new().recursive(true).mode(0o700).create(&state_dir).map_err(file_error("create", &state_dir))?;
    Ok(state_dir)
}

fn outline(dir: &Path, log: &LogView, position: &Position) -> Result<Outline, OfflineError> {
    let mut membership = position.membership.membership().clone();
    let (_, last) = log.ends();
    let mut next = position.last_applied.map_or(0, |applied| applied.index + 1);
    while last.is_some_and(|last| next <= last.index) {
        let entries = log.entries(next..u64::MAX, APPLY_BYTES).map_err(log_error(dir))?;
        let Some(newest) = entries.last() else { break };
        next = newest.log_id.index + 1;
        for entry in entries {
            if let EntryPayload::Membership(newer) = entry.payload {
                membership = newer;
            }
        }
    }
    let nodes = membership.nodes().map(|(id, peer)| (*id, peer.clone())).collect();
    Ok(Outline {
        last: last.max(position.last_applied),
        vote: log.vote(),
        voters: membership.voter_ids().collect(),
        nodes,
    })
}

fn open_log(dir: &Path) -> Result<LogView, OfflineError> {
    LogView::open(&dir.join("log")).map_err(log_error(dir))
}

/// The state file in force. Never makes one.
fn current(dir: &Path) -> Result<PathBuf, OfflineError> {
    let state_dir = dir.join("state");
    let found = state_file::existing(&state_dir).map_err(file_error("find the state file in", &state_dir))?;
    found.filter(|path| path.exists()).ok_or_else(|| OfflineError::File {
        action: "find the state file in",
        path: state_dir,
        source: io::ErrorKind::NotFound.into(),
    })
}

fn log_error(dir: &Path) -> impl Fn(LogError) -> OfflineError {
    let dir = dir.join("log");
    move |source| OfflineError::Log { dir: dir.clone(), source }
}

fn file_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> OfflineError {
    let path = path.to_owned();
    move |source| OfflineError::File { action, path: path.clone(), source }
}
