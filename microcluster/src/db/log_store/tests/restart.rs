//! Opening, rotation, purging, reading, on real files.

use std::fs;

use openraft::RaftLogReader;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use tempfile::TempDir;

use super::{Content, LogOptions, LogStore, append, content, entry, log_id, tiny};
use crate::db::raft_types::Vote;

fn segments(dir: &TempDir) -> usize {
    fs::read_dir(dir.path()).unwrap().count()
}

fn open(dir: &TempDir, options: LogOptions) -> LogStore {
    LogStore::open(dir.path(), options).unwrap()
}

async fn reopen(dir: &TempDir, log: LogStore, options: LogOptions) -> LogStore {
    let before = content(&log).await;
    log.close().await;
    let log = open(dir, options);
    assert_eq!(content(&log).await, before);
    log
}

#[tokio::test]
async fn an_empty_log_stays_empty() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir, tiny());
    assert_eq!(content(&log).await, Content::default());
    log.close().await;
    assert_eq!(segments(&dir), 0);
    assert_eq!(content(&open(&dir, tiny())).await, Content::default());
}

#[tokio::test]
async fn every_kind_of_change_survives_a_restart() {
    for options in [tiny(), LogOptions::default()] {
        let dir = TempDir::new().unwrap();
        let mut log = open(&dir, options.clone());
        log.save_vote(&Vote::new(1, 2)).await.unwrap();
        append(&log, 1, 0..40).await;
        log = reopen(&dir, log, options.clone()).await;
        log.truncate(log_id(1, 25)).await.unwrap();
        log = reopen(&dir, log, options.clone()).await;
        append(&log, 2, 25..50).await;
        log.save_vote(&Vote::new_committed(2, 1)).await.unwrap();
        log = reopen(&dir, log, options.clone()).await;
        log.purge(log_id(2, 30)).await.unwrap();
        log = reopen(&dir, log, options.clone()).await;
        append(&log, 2, 50..60).await;
        log = reopen(&dir, log, options.clone()).await;

        let found = content(&log).await;
        let expected: Vec<_> = (31..60).map(|index| entry(2, index, 100)).collect();
        assert_eq!(found.entries, expected);
        assert_eq!(found.vote, Some(Vote::new_committed(2, 1)));
        assert_eq!((found.purged, found.last), (Some(log_id(2, 30)), Some(log_id(2, 59))));
        log.close().await;
    }
}

#[tokio::test]
async fn segments_are_rotated_and_purged_whole() {
    let dir = TempDir::new().unwrap();
    let mut log = open(&dir, tiny());
    for index in 0..100 {
        append(&log, 1, [index]).await;
    }
    let full = log.stats();
    assert!(full.segments > 5, "{full:?}");
    assert_eq!((full.first_index, full.last_index, full.appended), (Some(0), Some(99), 100));
    assert_eq!(segments(&dir), full.segments);

    log.purge(log_id(1, 49)).await.unwrap();
    log = reopen(&dir, log, tiny()).await;
    let half = log.stats();
    assert!((full.segments / 2 - 1..=full.segments / 2 + 1).contains(&half.segments), "{half:?}");
    assert_eq!((half.first_index, half.last_index), (Some(50), Some(99)));
    assert_eq!(segments(&dir), half.segments);

    log.purge(log_id(1, 99)).await.unwrap();
    log = reopen(&dir, log, tiny()).await;
    let empty = log.stats();
    assert_eq!((empty.first_index, empty.last_index, empty.segments), (None, Some(99), 1));
    append(&log, 1, [100]).await;
    assert_eq!(content(&reopen(&dir, log, tiny()).await).await.entries, [entry(1, 100, 100)]);
}

#[tokio::test]
async fn purging_is_never_taken_back() {
    let dir = TempDir::new().unwrap();
    let mut log = open(&dir, tiny());
    append(&log, 1, 0..30).await;
    log.purge(log_id(1, 20)).await.unwrap();
    log.purge(log_id(1, 10)).await.unwrap();
    log.truncate(log_id(1, 5)).await.unwrap();
    let log = reopen(&dir, log, tiny()).await;
    let found = content(&log).await;
    assert_eq!((found.purged, found.last), (Some(log_id(1, 20)), Some(log_id(1, 20))));
    // What is purged need not be kept again; what follows must.
    append(&log, 2, 18..23).await;
    let found = content(&reopen(&dir, log, tiny()).await).await;
    assert_eq!(found.entries, [entry(2, 21, 100), entry(2, 22, 100)]);
}

#[tokio::test]
async fn a_snapshot_ahead_of_the_log_replaces_it() {
    let dir = TempDir::new().unwrap();
    let mut log = open(&dir, tiny());
    append(&log, 1, 0..30).await;
    // Of a later term: what the log has behind index 20 does not continue it.
    log.purge(log_id(3, 20)).await.unwrap();
    let mut log = reopen(&dir, log, tiny()).await;
    let found = content(&log).await;
    assert_eq!((found.last, found.entries.len()), (Some(log_id(3, 20)), 0));
    append(&log, 3, 21..25).await;
    log.purge(log_id(4, 500)).await.unwrap();
    append(&log, 4, 501..503).await;
    let log = reopen(&dir, log, tiny()).await;
    assert_eq!(content(&log).await.entries.len(), 2);
}

#[tokio::test]
async fn a_group_that_is_larger_than_a_segment_is_read_back() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir, tiny());
    // The second append also exceeds what the writer puts into one group.
    let entries: Vec<_> = (0..5).map(|index| entry(1, index, 3_000)).collect();
    log.clone().blocking_append(entries.clone()).await.unwrap();
    let large: Vec<_> = (5..12).map(|index| entry(1, index, 1 << 20)).collect();
    log.clone().blocking_append(large.clone()).await.unwrap();
    assert!(log.stats().fsyncs > 2);
    let log = reopen(&dir, log, tiny()).await;
    assert_eq!(content(&log).await.entries, [entries, large].concat());
}

#[tokio::test]
async fn a_read_is_bounded_but_never_empty() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir, tiny());
    append(&log, 1, 0..30).await;
    log.clone().blocking_append([entry(1, 30, 5_000), entry(1, 31, 5_000)]).await.unwrap();
    let mut reader = log.clone().get_log_reader().await;
    let mut next = 0;
    while next < 30 {
        let found = reader.limited_get_log_entries(next, 30).await.unwrap();
        assert!((1..=4).contains(&found.len()), "{} entries of 136 bytes for 500", found.len());
        assert_eq!(found[0], entry(1, next, 100));
        next += found.len() as u64;
    }
    for index in [30, 31] {
        let found = reader.limited_get_log_entries(index, 32).await.unwrap();
        assert_eq!(found, [entry(1, index, 5_000)]);
    }
    assert_eq!(reader.limited_get_log_entries(5, 5).await.unwrap(), []);
    assert_eq!(reader.limited_get_log_entries(32, 40).await.unwrap(), []);
}

#[tokio::test]
async fn a_reader_survives_the_purge_of_what_it_reads() {
    let dir = TempDir::new().unwrap();
    let mut log = open(&dir, tiny());
    append(&log, 1, 0..50).await;
    let found = log.shared().lock().find(log.shared().storage(), 0..50, u64::MAX);
    assert!(found.needs_io());
    log.purge(log_id(1, 49)).await.unwrap();
    log.close().await;
    assert_eq!(segments(&dir), 1);
    assert_eq!(found.read().unwrap().len(), 50);
}
