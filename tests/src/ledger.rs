//! What writers were promised, and whether it was kept.

use std::collections::{BTreeMap, BTreeSet};

use crate::Daemon;

/// The fate of every row, as its writer was told.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The answer was a success.
    pub acknowledged: BTreeSet<u64>,
    /// The answer, or the lack of one, left it open.
    pub unknown: BTreeSet<u64>,
}

impl Ledger {
    /// Tables for the rows: in one a second try of what was done fails, in the other it shows.
    pub const SCHEMA: &str = "CREATE TABLE written (id INTEGER PRIMARY KEY);
         CREATE TABLE tally (id INTEGER NOT NULL);
         CREATE INDEX tally_id ON tally (id)";

    /// The statements that write a row: one transaction.
    #[must_use]
    pub fn insertion(id: u64) -> String {
        format!("INSERT INTO written VALUES ({id}); INSERT INTO tally VALUES ({id})")
    }

    /// Adds what another writer was told.
    pub fn merge(&mut self, other: Ledger) {
        self.acknowledged.extend(other.acknowledged);
        self.unknown.extend(other.unknown);
    }

    /// Checks that a member has every acknowledged row once, every open one at most once, and no other.
    ///
    /// # Panics
    /// When it has not.
    pub async fn check(&self, member: &Daemon) {
        let name = member.name();
        let rows = member.sql("SELECT id, (SELECT count(*) FROM tally WHERE tally.id = written.id) FROM written").await;
        let found: BTreeMap<u64, u64> =
            rows.iter().map(|row| (row[0].as_u64().unwrap(), row[1].as_u64().unwrap())).collect();
        let lost: Vec<_> = self.acknowledged.iter().filter(|id| !found.contains_key(id)).collect();
        assert!(lost.is_empty(), "{name} has lost {} acknowledged rows: {lost:?}", lost.len());
        let strange: Vec<_> =
            found.keys().filter(|id| !self.acknowledged.contains(id) && !self.unknown.contains(id)).collect();
        assert!(strange.is_empty(), "{name} has rows whose writers were told that nothing was written: {strange:?}");
        let several: Vec<_> = found.iter().filter(|(_, count)| **count != 1).collect();
        assert!(several.is_empty(), "{name} has rows not exactly once: {several:?}");
        let tally = member.sql("SELECT count(*) FROM tally").await[0][0].as_u64().unwrap();
        assert_eq!(tally, found.len() as u64, "{name}: a transaction was done in part");
    }
}
