//! The log of a leader, which tells of its entries before they are durable.

use std::sync::{Arc, Mutex};

use futures_util::poll;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt};

use super::{Disk, LogStore, Queued, append, entry, log_id, open, tiny};
use crate::db::raft_types::{Entry, LogId, Vote};

/// The vote, the entry before, the entries, and their ticket.
type Told = Arc<Mutex<Vec<(Vote, LogId, Vec<Entry>, u64)>>>;

/// The node that makes the entries of these tests.
const LEADER: u64 = 7;

fn lead(log: &LogStore, node_id: u64) -> Told {
    let told = Told::default();
    let hears = Arc::clone(&told);
    let hear = move |Queued { vote, previous, entries, ticket }: Queued<'_>| {
        hears.lock().unwrap().push((vote, previous, entries.to_vec(), ticket));
    };
    log.lead(node_id, Box::new(hear));
    told
}

#[tokio::test]
async fn a_leaders_entries_are_told_before_they_are_durable() {
    let disk = Disk::default();
    let log = open(&disk, tiny()).unwrap();
    let told = lead(&log, LEADER);
    let vote = Vote::new_committed(3, LEADER);
    log.clone().save_vote(&vote).await.unwrap();
    append(&log, 3, [0]).await;
    assert!(told.lock().unwrap().is_empty(), "nothing is before the first entry");

    disk.hold_syncs();
    let mut store = log.clone();
    let mut appended = Box::pin(store.blocking_append([entry(3, 1, 10)]));
    assert!(poll!(&mut appended).is_pending());
    disk.wait_for_held_sync();
    let told = told.lock().unwrap().clone();
    let [(made_under, previous, entries, ticket)] = &told[..] else { panic!("not told once") };
    assert_eq!((*made_under, *previous, &entries[..]), (vote, log_id(3, 0), &[entry(3, 1, 10)][..]));
    assert!(log.is_writing(*ticket));
    disk.release_syncs();
    appended.await.unwrap();
    assert!(!log.is_writing(*ticket));
}

#[tokio::test]
async fn entries_of_another_leader_or_term_are_not_told() {
    for vote in [Vote::new_committed(3, 1), Vote::new(3, LEADER), Vote::new_committed(4, LEADER)] {
        let log = open(&Disk::default(), tiny()).unwrap();
        let told = lead(&log, vote.leader_id.node_id);
        log.clone().save_vote(&vote).await.unwrap();
        append(&log, 3, 0..4).await;
        assert!(told.lock().unwrap().is_empty(), "{vote}");
    }
}

/// Others may have entries that this log has lost: new ones must not get their log ids.
#[tokio::test]
async fn a_leader_that_restarts_does_not_lead_in_the_same_term() {
    let disk = Disk::default();
    let log = open(&disk, tiny()).unwrap();
    log.clone().save_vote(&Vote::new_committed(3, LEADER)).await.unwrap();
    log.close().await;
    drop(log);

    let mut leader = open(&disk, tiny()).unwrap();
    lead(&leader, LEADER);
    assert_eq!(leader.read_vote().await.unwrap(), Some(Vote::new(3, LEADER)));
    let mut follower = open(&disk.copy(), tiny()).unwrap();
    lead(&follower, 1);
    assert_eq!(follower.read_vote().await.unwrap(), Some(Vote::new_committed(3, LEADER)));
}
