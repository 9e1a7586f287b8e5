//! What opening does with files that are not as they were written.

use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::format::FORMAT_VERSION;
use super::super::recovery::segment_name;
use super::{Content, Disk, LogError, LogOptions, append, content, open, tiny};

/// A log of several segments, what it holds, and where its last group is.
struct Sample {
    disk: Disk,
    before_last: Content,
    all: Content,
    newest: String,
    last_group: std::ops::Range<usize>,
}

async fn sample() -> Sample {
    let disk = Disk::default();
    let log = open(&disk, tiny()).unwrap();
    for index in 0..50 {
        append(&log, 1, [index]).await;
    }
    // The last group must not be the first of a segment, for the damage to have something to hit.
    let mut next = 50;
    while bytes_in_newest(&log) > 1000 || bytes_in_newest(&log) < 400 {
        append(&log, 1, [next]).await;
        next += 1;
    }
    let before_last = content(&log).await;
    let start = bytes_in_newest(&log);
    append(&log, 1, next..next + 3).await;
    let last_group = start..bytes_in_newest(&log);
    let all = content(&log).await;
    log.close().await;
    let newest = disk.names().pop().unwrap();
    Sample { disk, before_last, all, newest, last_group }
}

fn bytes_in_newest(log: &super::LogStore) -> usize {
    log.shared().lock().index().segments().back().unwrap().bytes as usize
}

/// The content of the log in `disk` with one file changed.
async fn reopened(disk: &Disk, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> Result<Content, LogError> {
    let disk = disk.copy();
    let mut bytes = disk.contents(name);
    change(&mut bytes);
    disk.put(name, bytes);
    let log = open(&disk, tiny())?;
    let found = content(&log).await;
    // It must also go on from there, and come back.
    let next = found.last.unwrap().index + 1;
    append(&log, 9, next..next + 5).await;
    let more = content(&log).await;
    assert_eq!(more.entries[..found.entries.len()], found.entries);
    log.close().await;
    drop(log);
    assert_eq!(content(&open(&disk, tiny())?).await, more);
    Ok(found)
}

fn assert_damaged(result: Result<Content, LogError>, name: &str, how: &str) {
    match result {
        Err(LogError::Damaged { file, .. }) => assert_eq!(file, Path::new(name), "{how}"),
        Err(error) => panic!("{how}: {error}"),
        Ok(found) => panic!("{how}: opened with {:?} as its last entry", found.last),
    }
}

#[tokio::test]
async fn the_sample_opens_unchanged() {
    let sample = sample().await;
    assert!(sample.disk.names().len() > 3);
    assert_eq!(reopened(&sample.disk, &sample.newest, |_| {}).await.unwrap(), sample.all);
}

#[tokio::test]
async fn a_tail_torn_anywhere_is_cut() {
    let sample = sample().await;
    for at in sample.last_group.clone() {
        let ends = reopened(&sample.disk, &sample.newest, |bytes| bytes.truncate(at)).await.unwrap();
        assert_eq!(ends, sample.before_last, "the file ends at byte {at}");
        if at > sample.last_group.start {
            let zeros = reopened(&sample.disk, &sample.newest, |bytes| bytes[at - 1..].fill(0)).await;
            // The byte may have been zero.
            if at < sample.last_group.end {
                assert_eq!(zeros.unwrap(), sample.before_last, "zeros from byte {}", at - 1);
            }
        }
        let flipped = reopened(&sample.disk, &sample.newest, |bytes| bytes[at] ^= 0x10).await.unwrap();
        assert_eq!(flipped, sample.before_last, "another byte {at}");
    }
}

#[tokio::test]
async fn a_group_of_which_only_the_end_was_written_is_cut() {
    let sample = sample().await;
    let range = sample.last_group.clone();
    for missing in [1, 24, 100, 300] {
        let holed = |bytes: &mut Vec<u8>| bytes[range.start..range.start + missing].fill(0);
        let found = reopened(&sample.disk, &sample.newest, holed).await.unwrap();
        assert_eq!(found, sample.before_last, "{missing} bytes missing");
    }
}

#[tokio::test]
async fn damage_before_the_tail_is_refused_and_named() {
    let sample = sample().await;
    let mut rng = StdRng::seed_from_u64(1);
    for name in sample.disk.names() {
        let used = if name == sample.newest {
            sample.last_group.start
        } else {
            sample.disk.contents(&name).iter().rposition(|&byte| byte != 0).unwrap()
        };
        for _ in 0..300 {
            let at = rng.random_range(0..used);
            let bit = 1 << rng.random_range(0..8);
            let result = reopened(&sample.disk, &name, |bytes| bytes[at] ^= bit).await;
            assert_damaged(result, &name, &format!("bit {bit:#x} of byte {at} of {name}"));
        }
        for _ in 0..100 {
            let at = rng.random_range(0..used - 30);
            let end = rng.random_range(at + 20..used);
            let result = reopened(&sample.disk, &name, |bytes| bytes[at..end].fill(0)).await;
            assert_damaged(result, &name, &format!("bytes {at}..{end} of {name} are lost"));
        }
    }
}

#[tokio::test]
async fn an_earlier_segment_that_ends_early_is_refused() {
    let sample = sample().await;
    let names = sample.disk.names();
    let name = &names[1];
    let used = sample.disk.contents(name).iter().rposition(|&byte| byte != 0).unwrap();
    // Also on the boundary of a group, where only the next segment shows it.
    for end in (0..used).step_by(7).chain(boundaries(&sample.disk.contents(name))) {
        let result = reopened(&sample.disk, name, |bytes| bytes.truncate(end)).await;
        assert_damaged(result, name, &format!("{name} ends at byte {end}"));
    }
}

fn boundaries(bytes: &[u8]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut end = super::super::format::PROLOGUE_BYTES;
    while let Some(group) = super::super::format::group_at(2, bytes, end) {
        ends.push(end);
        end = group.end();
    }
    assert!(ends.len() > 5);
    ends
}

#[tokio::test]
async fn a_missing_segment_is_refused_and_named() {
    let sample = sample().await;
    let names = sample.disk.names();
    for name in &names[..names.len() - 1] {
        let disk = sample.disk.copy();
        disk.take(name);
        match open(&disk, tiny()) {
            Err(LogError::Damaged { file, .. }) => assert_eq!(file, Path::new(name)),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("opened without {name}"),
        }
    }
}

#[tokio::test]
async fn a_segment_in_the_place_of_another_is_refused() {
    let sample = sample().await;
    let names = sample.disk.names();
    let (first, second) = (sample.disk.contents(&names[0]), sample.disk.contents(&names[1]));
    assert_damaged(
        reopened(&sample.disk, &names[1], |bytes| *bytes = first).await,
        &names[1],
        "the first as the second",
    );
    assert_damaged(
        reopened(&sample.disk, &names[0], |bytes| *bytes = second).await,
        &names[0],
        "the second as the first",
    );
}

#[tokio::test]
async fn a_segment_of_another_log_is_refused() {
    let sample = sample().await;
    let other = Disk::default();
    let log = open(&other, tiny()).unwrap();
    for index in 0..60 {
        append(&log, 2, [index]).await;
    }
    log.close().await;
    let names = sample.disk.names();
    // Same sizes, same numbers, another history.
    let foreign = other.contents(&names[1]);
    let result = reopened(&sample.disk, &names[1], |bytes| *bytes = foreign).await;
    assert_damaged(result, &names[1], "the second of another log");
}

#[tokio::test]
async fn a_segment_whose_creation_was_interrupted_is_removed() {
    let sample = sample().await;
    let names = sample.disk.names();
    let next = segment_name(names.len() as u64 + 1);
    let start = sample.disk.contents(&names[1]);
    for bytes in [vec![], vec![0; 512], start[..10].to_vec(), start[..60].to_vec()] {
        let disk = sample.disk.copy();
        disk.put(&next, bytes);
        let log = open(&disk, tiny()).unwrap();
        assert_eq!(content(&log).await, sample.all);
        assert_eq!(disk.names(), names);
    }
    // Of the very first one, too.
    let disk = Disk::default();
    disk.put(&segment_name(1), vec![1; 100]);
    assert_eq!(content(&open(&disk, tiny()).unwrap()).await, Content::default());
}

#[tokio::test]
async fn a_lone_segment_that_is_damaged_is_not_taken_for_an_interrupted_creation() {
    let disk = Disk::default();
    let log = open(&disk, LogOptions { segment_bytes: 1, ..tiny() }).unwrap();
    append(&log, 1, 0..3).await;
    openraft::storage::RaftLogStorage::purge(&mut log.clone(), super::log_id(1, 2)).await.unwrap();
    log.close().await;
    let names = disk.names();
    assert_eq!(names, [segment_name(2)]);
    for at in 0..bytes_in_newest(&log) {
        let result = reopened(&disk, &names[0], |bytes| bytes[at] ^= 1).await;
        assert_damaged(result, &names[0], &format!("byte {at}"));
    }
}

#[tokio::test]
async fn an_unknown_version_is_named() {
    let sample = sample().await;
    let names = sample.disk.names();
    let newer = |bytes: &mut Vec<u8>| {
        bytes[8..12].copy_from_slice(&(FORMAT_VERSION + 1).to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..20]);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    };
    let error = reopened(&sample.disk, &names[1], newer).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "00000000000000000002.log at byte 0 has log format version 2, this build reads version 1"
    );
}

#[tokio::test]
async fn damage_behind_an_open_log_is_found_by_the_read() {
    let sample = sample().await;
    let disk = sample.disk.copy();
    let log = open(&disk, tiny()).unwrap();
    let name = &disk.names()[0];
    disk.flip(name, 300);
    let error = openraft::RaftLogReader::try_get_log_entries(&mut log.clone(), 0..10).await.unwrap_err();
    assert!(error.to_string().contains("the Raft log is damaged: 00000000000000000001.log at byte"), "{error}");
}
