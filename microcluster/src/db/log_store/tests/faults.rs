//! Groups, and what happens when the disk refuses.

use std::io::ErrorKind;

use futures_util::future::join_all;
use futures_util::poll;
use openraft::RaftLogReader;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt};

use super::disk::Operation;
use super::{Content, Disk, LogError, append, content, entry, log_id, open, tiny};
use crate::db::raft_types::Vote;

#[tokio::test]
async fn changes_that_wait_share_one_sync() {
    let disk = Disk::default();
    let log = open(&disk, tiny()).unwrap();
    append(&log, 1, 0..1).await;
    let before = log.stats();

    disk.hold_syncs();
    let mut stores: Vec<_> = (0..101).map(|_| log.clone()).collect();
    let mut appends: Vec<_> = stores
        .iter_mut()
        .zip(1..)
        .map(|(store, index)| Box::pin(store.blocking_append([entry(1, index, 10)])))
        .collect();
    assert!(poll!(&mut appends[0]).is_pending());
    disk.wait_for_held_sync();
    for append in &mut appends[1..] {
        assert!(poll!(append).is_pending(), "acknowledged before the sync returned");
    }
    let readable = log.clone().try_get_log_entries(..).await.unwrap();
    assert_eq!(readable.len(), 102, "readable as soon as it is queued");
    disk.release_syncs();
    for result in join_all(appends).await {
        result.unwrap();
    }

    let after = log.stats();
    assert_eq!(after.appended - before.appended, 101);
    assert_eq!(after.fsyncs - before.fsyncs, 2, "one for the first, one for all that waited meanwhile");
}

#[tokio::test]
async fn a_vote_is_answered_after_its_sync_and_not_readable_before() {
    let disk = Disk::default();
    let log = open(&disk, tiny()).unwrap();
    disk.hold_syncs();
    let (mut writer, vote) = (log.clone(), Vote::new(3, 1));
    let mut save = Box::pin(writer.save_vote(&vote));
    assert!(poll!(&mut save).is_pending());
    disk.wait_for_held_sync();
    assert!(poll!(&mut save).is_pending());
    assert_eq!(log.clone().read_vote().await.unwrap(), None);
    disk.release_syncs();
    save.await.unwrap();
    assert_eq!(log.clone().read_vote().await.unwrap(), Some(vote));
}

/// Fails one operation and expects: the change is refused, so is everything after it, nothing is tried
/// again, and the log opens with what had been acknowledged.
async fn refuses(operation: Operation, kind: ErrorKind, name: &str) {
    let disk = Disk::default();
    let log = open(&disk, tiny()).unwrap();
    log.clone().save_vote(&Vote::new(1, 1)).await.unwrap();
    append(&log, 1, 0..12).await;
    let acknowledged = content(&log).await;

    disk.fail(operation, kind);
    // Enough for a new segment, whatever the size of the last.
    let mut next = 12;
    let failed = loop {
        assert!(next < 100, "{operation:?} never failed");
        match log.clone().blocking_append((next..next + 4).map(|index| entry(1, index, 200))).await {
            Ok(()) => next += 4,
            Err(error) => break error,
        }
    };
    assert!(failed.to_string().contains(name), "{failed}");

    let syncs = disk.syncs();
    assert!(log.clone().save_vote(&Vote::new(2, 1)).await.is_err());
    assert!(log.clone().truncate(log_id(1, 3)).await.is_err());
    assert!(log.clone().purge(log_id(1, 2)).await.is_err());
    assert!(log.clone().blocking_append([entry(1, 99, 1)]).await.is_err());
    assert_eq!(disk.syncs(), syncs, "a failed sync is not tried again");
    log.close().await;
    drop(log);

    let found = content(&open(&disk, tiny()).unwrap()).await;
    assert_eq!(found.vote, acknowledged.vote);
    assert_eq!(found.entries[..12], acknowledged.entries);
    assert!(found.entries.len() as u64 >= next);
}

#[tokio::test]
async fn a_full_disk_stops_the_log() {
    refuses(Operation::Write, ErrorKind::StorageFull, "cannot write 0000000000000000000").await;
}

#[tokio::test]
async fn a_failed_sync_stops_the_log() {
    refuses(Operation::Sync, ErrorKind::Other, "cannot sync 0000000000000000000").await;
}

#[tokio::test]
async fn a_segment_that_cannot_be_created_stops_the_log() {
    refuses(Operation::Create, ErrorKind::StorageFull, "cannot create 0000000000000000000").await;
}

#[tokio::test]
async fn a_directory_that_cannot_be_synced_stops_the_log() {
    refuses(Operation::SyncDir, ErrorKind::Other, "cannot sync the directory of 0000000000000000000").await;
}

#[tokio::test]
async fn all_that_wait_hear_of_the_error() {
    let disk = Disk::default();
    let log = open(&disk, tiny()).unwrap();
    disk.hold_syncs();
    disk.fail(Operation::Sync, ErrorKind::Other);
    let mut stores: Vec<_> = (0..20).map(|_| log.clone()).collect();
    let mut appends: Vec<_> = stores
        .iter_mut()
        .zip(0..)
        .map(|(store, index)| Box::pin(store.blocking_append([entry(1, index, 10)])))
        .collect();
    for append in &mut appends {
        assert!(poll!(append).is_pending());
    }
    disk.wait_for_held_sync();
    disk.release_syncs();
    for result in join_all(appends).await {
        assert!(result.is_err());
    }
}

#[tokio::test]
async fn a_change_of_many_groups_ends_with_the_first_that_fails() {
    let disk = Disk::default();
    let log = open(&disk, tiny()).unwrap();
    append(&log, 1, 0..3).await;
    let before = content(&log).await;
    disk.fail(Operation::Sync, ErrorKind::Other);
    let syncs = disk.syncs();
    let large: Vec<_> = (3..20).map(|index| entry(1, index, 1 << 20)).collect();
    assert!(log.clone().blocking_append(large).await.is_err());
    assert_eq!(disk.syncs(), syncs + 1);
    log.close().await;
    let found = content(&open(&disk, tiny()).unwrap()).await;
    assert!(found.entries.starts_with(&before.entries));
    assert!(found.entries.len() < 10, "{} entries", found.entries.len());
}

#[tokio::test]
async fn a_segment_that_cannot_be_removed_is_removed_when_the_log_is_opened() {
    let disk = Disk::default();
    let log = open(&disk, tiny()).unwrap();
    append(&log, 1, 0..60).await;
    append(&log, 1, 60..61).await;
    let segments = disk.names().len();
    disk.fail(Operation::Remove, ErrorKind::PermissionDenied);
    log.clone().purge(log_id(1, 60)).await.unwrap();
    log.close().await;
    assert!(segments > disk.names().len() || segments == 2);
    drop(log);
    let log = open(&disk, tiny()).unwrap();
    assert_eq!(disk.names().len(), log.stats().segments);
    assert_eq!(
        content(&log).await,
        Content { purged: Some(log_id(1, 60)), last: Some(log_id(1, 60)), ..Content::default() }
    );
}

#[tokio::test]
async fn a_closed_log_refuses_changes_and_can_be_read() {
    let disk = Disk::default();
    let log = open(&disk, tiny()).unwrap();
    append(&log, 1, 0..30).await;
    log.close().await;
    let refused = log.clone().save_vote(&Vote::new(2, 1)).await.unwrap_err();
    assert!(refused.to_string().contains(&LogError::Closed.to_string()), "{refused}");
    assert!(log.clone().blocking_append([entry(1, 30, 1)]).await.is_err());
    assert_eq!(content(&log).await.entries.len(), 30);
    log.close().await;
}

#[tokio::test]
async fn an_append_that_leaves_a_hole_or_overlaps_is_refused() {
    let disk = Disk::default();
    let log = open(&disk, tiny()).unwrap();
    append(&log, 1, 0..3).await;
    for index in [2, 4] {
        let refused = log.clone().blocking_append([entry(1, index, 1)]).await.unwrap_err();
        let message = format!("cannot append entry {index} to a log whose next entry is 3");
        assert!(refused.to_string().contains(&message), "{refused}");
    }
    let refused = log.clone().blocking_append([entry(1, 3, 1), entry(1, 5, 1)]).await;
    assert!(refused.is_err());
    append(&log, 1, 3..5).await;
    assert_eq!(content(&log).await.entries.len(), 5);
}
