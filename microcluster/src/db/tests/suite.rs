//! openraft's own test suite, over the log and the SQLite state machine together.

use openraft::testing::{StoreBuilder, Suite};
use tempfile::TempDir;

use crate::db::log_store::{LogOptions, LogStore};
use crate::db::raft_types::{StorageError, TypeConfig};
use crate::db::state_machine::StateMachine;

struct Builder(LogOptions);

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let log = LogStore::open(&dir.path().join("log"), self.0.clone()).unwrap();
        let state = dir.path().join("state");
        std::fs::create_dir(&state).unwrap();
        Ok((dir, log, StateMachine::open(&state).unwrap()))
    }
}

#[test]
fn openraft_suite() {
    Suite::test_all(Builder(LogOptions::default())).unwrap();
}

#[test]
fn openraft_suite_without_a_cache_and_with_tiny_segments() {
    let options = LogOptions { segment_bytes: 512, cache_bytes: 0, ..LogOptions::default() };
    Suite::test_all(Builder(options)).unwrap();
}
