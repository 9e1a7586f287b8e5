//! Exactly once: what the replicated state remembers of each origin's requests, so that one that is
//! sent again gets its first outcome and is not applied a second time.
//!
//! The scheme is that of client sessions in Ongaro's Raft dissertation (2014), section 6.3. An origin numbers its
//! requests and says with each below which number all have been answered; outcomes from there on are kept. So
//! the memory of an origin is what it has in flight. An origin that was silent for [`SESSION_MS_MAX`] and for
//! [`SESSION_ENTRIES_MIN`] entries is forgotten: the times are those of several members' clocks, and one that is wrong must not
//! make all members forget what is in flight.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::command::{Failure, Outcome, QueryResult, Request, RequestId};
use super::executor::Executor;

/// How long a silent origin is remembered.
const SESSION_MS_MAX: i64 = 600_000;
/// For how many entries of the log it is remembered at least: more than are written while a request can still be sent again.
const SESSION_ENTRIES_MIN: u64 = 100_000;
/// The largest results that are kept for a resend.
const KEPT_BYTES_MAX: usize = 4096;

/// The sessions' table; `state` is a [`Session`].
pub(crate) const TABLE: &str =
    "CREATE TABLE IF NOT EXISTS microcluster_sessions(origin INTEGER PRIMARY KEY, state BLOB NOT NULL) STRICT";

const SAVE: &str = "INSERT OR REPLACE INTO microcluster_sessions(origin, state) VALUES (?1, ?2)";
const FORGET: &str = "DELETE FROM microcluster_sessions WHERE origin = ?1";

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Session {
    answered_below: u64,
    heard_ms: i64,
    /// The log index of its last request.
    heard_index: u64,
    outcomes: BTreeMap<u64, Outcome>,
}

/// All sessions, in memory; [`Sessions::save`] brings what changed into the open transaction.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    sessions: HashMap<u64, Session>,
    changed: BTreeSet<u64>,
}

impl Sessions {
    /// Reads the sessions from their table.
    pub fn load(connection: &Connection) -> rusqlite::Result<Sessions> {
        let mut sessions = HashMap::new();
        let mut statement = connection.prepare("SELECT origin, state FROM microcluster_sessions")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let state: Vec<u8> = row.get(1)?;
            let session = postcard::from_bytes(&state).map_err(|error| {
                rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Blob, error.into())
            })?;
            sessions.insert(row.get::<_, i64>(0)?.cast_unsigned(), session);
        }
        Ok(Sessions { sessions, changed: BTreeSet::new() })
    }

    /// The outcome the request had when it came before, if it did.
    pub fn earlier_outcome(&self, id: RequestId) -> Option<Outcome> {
        let session = self.sessions.get(&id.origin)?;
        if id.sequence < session.answered_below {
            return Some(Outcome::Failed(Failure::Stale));
        }
        session.outcomes.get(&id.sequence).cloned()
    }

    /// Remembers the outcome of a request that was applied now, as part of the entry at a log index.
    pub fn remember(&mut self, request: &Request, index: u64, outcome: &Outcome) {
        if !self.sessions.contains_key(&request.id.origin) {
            self.forget_silent(request.time_ms, index);
        }
        let session = self.sessions.entry(request.id.origin).or_default();
        session.heard_ms = session.heard_ms.max(request.time_ms);
        session.heard_index = index;
        session.outcomes.insert(request.id.sequence, kept(outcome));
        if request.answered_below > session.answered_below {
            session.answered_below = request.answered_below;
            session.outcomes = session.outcomes.split_off(&request.answered_below);
        }
        self.changed.insert(request.id.origin);
    }

    /// Writes what changed since the last call into the open transaction.
    pub fn save(&mut self, executor: &Executor) -> rusqlite::Result<()> {
        for origin in std::mem::take(&mut self.changed) {
            match self.sessions.get(&origin) {
                Some(session) => {
                    let state = postcard::to_stdvec(session)
                        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
                    executor.engine_execute(SAVE, (origin.cast_signed(), state))?;
                }
                None => {
                    executor.engine_execute(FORGET, [origin.cast_signed()])?;
                }
            }
        }
        Ok(())
    }

    fn forget_silent(&mut self, now_ms: i64, now_index: u64) {
        let changed = &mut self.changed;
        self.sessions.retain(|origin, session| {
            let keep = now_ms.saturating_sub(session.heard_ms) <= SESSION_MS_MAX
                || now_index.saturating_sub(session.heard_index) <= SESSION_ENTRIES_MIN;
            if !keep {
                changed.insert(*origin);
            }
            keep
        });
    }
}

fn kept(outcome: &Outcome) -> Outcome {
    match outcome {
        Outcome::Done(results) if results.iter().map(QueryResult::size).sum::<usize>() > KEPT_BYTES_MAX => {
            Outcome::Failed(Failure::ResultLost)
        }
        outcome => outcome.clone(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::db::command::{Body, Scope};

    fn request(origin: u64, sequence: u64, answered_below: u64, time_ms: i64) -> Request {
        let id = RequestId { origin, sequence };
        Request {
            id,
            answered_below,
            time_ms,
            seed: 0,
            only_in_term: None,
            scope: Scope::User,
            body: Body::Script(String::new()),
        }
    }

    fn done(rows_affected: u64) -> Outcome {
        Outcome::Done(vec![QueryResult::Changed { rows_affected }])
    }

    #[test]
    fn a_resent_request_gets_its_first_outcome_until_it_was_answered() {
        let mut sessions = Sessions::default();
        sessions.remember(&request(1, 5, 5, 0), 1, &done(7));
        assert_eq!(sessions.earlier_outcome(RequestId { origin: 1, sequence: 5 }), Some(done(7)));
        assert_eq!(sessions.earlier_outcome(RequestId { origin: 1, sequence: 6 }), None);
        sessions.remember(&request(1, 6, 6, 0), 2, &done(8));
        assert_eq!(
            sessions.earlier_outcome(RequestId { origin: 1, sequence: 5 }),
            Some(Outcome::Failed(Failure::Stale))
        );
    }

    #[test]
    fn saved_sessions_are_loaded_again_and_silent_ones_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let executor = Executor::open(&dir.path().join("state.db")).unwrap();
        executor.engine().execute_batch(TABLE).unwrap();
        let mut sessions = Sessions::default();
        sessions.remember(&request(1, 1, 1, 1_000), 10, &done(1));
        sessions.remember(&request(u64::MAX, 1, 1, 2_000), 11, &done(2));
        sessions.save(&executor).unwrap();
        let mut loaded = Sessions::load(executor.engine()).unwrap();
        assert_eq!(loaded.sessions, sessions.sessions);
        let mut origins_after = |request: Request, index| {
            loaded.remember(&request, index, &done(3));
            loaded.save(&executor).unwrap();
            Sessions::load(executor.engine()).unwrap().sessions.into_keys().collect::<BTreeSet<_>>()
        };
        let clock_ahead = request(3, 1, 1, 1_500 + SESSION_MS_MAX);
        assert_eq!(origins_after(clock_ahead, 12), BTreeSet::from([1, 3, u64::MAX]), "one clock forgets nobody");
        let late = request(4, 1, 1, 1_600 + SESSION_MS_MAX);
        assert_eq!(origins_after(late, 12 + SESSION_ENTRIES_MIN), BTreeSet::from([3, 4, u64::MAX]));
    }

    #[test]
    fn large_results_are_not_kept_and_the_resend_says_so() {
        let mut sessions = Sessions::default();
        let rows = vec![vec![crate::db::command::Value::Blob(vec![0; KEPT_BYTES_MAX])]];
        sessions.remember(&request(1, 1, 1, 0), 1, &Outcome::Done(vec![QueryResult::Rows { columns: vec![], rows }]));
        assert_eq!(
            sessions.earlier_outcome(RequestId { origin: 1, sequence: 1 }),
            Some(Outcome::Failed(Failure::ResultLost))
        );
    }
}
