//! A property: whatever a log goes through, and wherever the power fails, it comes back with all that
//! was acknowledged, and beyond that with a prefix of what was asked for.

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use openraft::RaftLogReader;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Content, Disk, LogOptions, LogStore, content, entry, log_id, open};
use crate::db::raft_types::{Entry, LogId, StorageError, Vote};

const ROUNDS: u64 = 400;
const LIVES: u64 = 8;

#[tokio::test]
async fn nothing_acknowledged_is_lost_whenever_the_power_fails() {
    let mut torn = 0;
    for seed in 0..ROUNDS {
        torn += round(seed).await;
    }
    // Else the rounds showed nothing.
    assert!(torn > ROUNDS, "only {torn} lives ended within a change");
}

/// A log's lives on one disk. Returns how many ended while a change was under way.
async fn round(seed: u64) -> u64 {
    let mut rng = StdRng::seed_from_u64(seed);
    let disk = Disk::default();
    let mut possible = vec![Content::default()];
    let mut torn = 0;
    for life in 0..LIVES {
        let options = LogOptions {
            segment_bytes: rng.random_range(200..3000),
            allocate_bytes: rng.random_range(1..2000),
            cache_bytes: rng.random_range(0..2000),
            read_bytes: rng.random_range(1..2000),
        };
        if rng.random_bool(0.9) {
            disk.power_for(rng.random_range(0..120));
        }
        let log = match open(&disk, options.clone()) {
            Ok(log) => log,
            Err(super::LogError::Io { .. }) => {
                // The power failed while the log was being opened.
                disk.lose_power(&mut rng);
                open(&disk, options).unwrap_or_else(|error| panic!("seed {seed}, life {life}: {error}"))
            }
            Err(error) => panic!("seed {seed}, life {life}: {error}"),
        };
        // Reading costs power too; what is found is read with the power on.
        let found = log_content(&log, &disk).await;
        assert!(possible.contains(&found), "seed {seed}, life {life}: found {found:#?}\nexpected one of {possible:#?}");
        possible = live(&log, found, &disk, &mut rng, seed).await;
        torn += u64::from(possible.len() > 1);
        drop(log);
        if rng.random_bool(0.3) {
            disk.restart_process();
        } else {
            disk.lose_power(&mut rng);
        }
    }
    torn
}

async fn log_content(log: &LogStore, disk: &Disk) -> Content {
    let power = disk.pause_power();
    let content = content(log).await;
    disk.resume_power(power);
    content
}

/// Changes the log until the power fails or enough was done. Returns what may be found afterwards.
async fn live(log: &LogStore, start: Content, disk: &Disk, rng: &mut StdRng, seed: u64) -> Vec<Content> {
    let mut model = start;
    for _ in 0..rng.random_range(1..60) {
        let count = rng.random_range(1..5);
        let mut states = vec![model.clone()];
        let mut changes = Vec::new();
        for _ in 0..count {
            let step = Step::random(&model, rng);
            let alone = matches!(step, Step::Truncate(_));
            if alone && !changes.is_empty() {
                break;
            }
            step.apply(&mut model);
            states.push(model.clone());
            changes.push(step.start(log.clone()));
            if alone {
                break;
            }
        }
        // Polled in order, they are queued in order.
        let results = join_all(changes).await;
        let acknowledged = results.iter().take_while(|result| result.is_ok()).count();
        assert!(
            results[acknowledged..].iter().all(Result::is_err),
            "seed {seed}: a change was acknowledged after one that failed"
        );
        if acknowledged < results.len() {
            let refused = log.clone().save_vote(&Vote::new(u64::MAX, 1)).await;
            assert!(refused.is_err(), "seed {seed}: a change was taken after an error");
            return states.split_off(acknowledged);
        }
        check_range(log, &model, disk, rng, seed).await;
    }
    vec![model]
}

async fn check_range(log: &LogStore, model: &Content, disk: &Disk, rng: &mut StdRng, seed: u64) {
    let start = rng.random_range(0..=model.next());
    let end = rng.random_range(start..=model.next() + 2);
    let power = disk.pause_power();
    let found = log.clone().try_get_log_entries(start..end).await.unwrap();
    let limited = log.clone().limited_get_log_entries(start, end).await.unwrap();
    disk.resume_power(power);
    let expected: Vec<Entry> =
        model.entries.iter().filter(|entry| (start..end).contains(&entry.log_id.index)).cloned().collect();
    assert_eq!(found, expected, "seed {seed}: entries {start}..{end}");
    assert!(expected.starts_with(&limited), "seed {seed}: entries {start}..{end}, limited");
    assert_eq!(limited.is_empty(), expected.is_empty(), "seed {seed}: entries {start}..{end}, limited");
}

#[derive(Debug)]
enum Step {
    Append(Vec<Entry>),
    Vote(Vote),
    Truncate(LogId),
    Purge(LogId),
}

impl Step {
    fn random(model: &Content, rng: &mut StdRng) -> Self {
        let live = model.entries.len();
        match rng.random_range(0..10) {
            0 => Self::Vote(Vote::new(rng.random_range(0..1000), rng.random_range(0..3))),
            1 if live > 0 => Self::Truncate(model.entries[rng.random_range(live / 2..live)].log_id),
            2 | 3 if live > 0 => Self::Purge(model.entries[rng.random_range(0..live)].log_id),
            // A snapshot that is ahead of the log.
            4 if rng.random_bool(0.2) => Self::Purge(log_id(model.term() + 1, model.next() + rng.random_range(0..3))),
            _ => {
                let term = model.term() + u64::from(rng.random_bool(0.1));
                let next = model.next();
                let count = rng.random_range(1..5);
                Self::Append((next..next + count).map(|index| entry(term, index, rng.random_range(0..300))).collect())
            }
        }
    }

    /// What the step means, said as simply as possible.
    fn apply(&self, model: &mut Content) {
        match self {
            Self::Append(entries) => {
                model.entries.extend(entries.iter().cloned());
                model.last = model.entries.last().map(|entry| entry.log_id);
            }
            Self::Vote(vote) => model.vote = Some(*vote),
            Self::Truncate(since) => {
                model.entries.retain(|entry| entry.log_id.index < since.index);
                model.last = model.entries.last().map(|entry| entry.log_id).or(model.purged);
            }
            Self::Purge(upto) => {
                // Entries of an earlier term than a committed one do not continue it.
                model.entries.retain(|entry| entry.log_id.index > upto.index && entry.log_id > *upto);
                model.purged = Some(*upto);
                model.last = model.entries.last().map_or(Some(*upto), |entry| Some(entry.log_id));
            }
        }
    }

    fn start(self, mut log: LogStore) -> BoxFuture<'static, Result<(), StorageError>> {
        async move {
            match self {
                Self::Append(entries) => log.blocking_append(entries).await,
                Self::Vote(vote) => log.save_vote(&vote).await,
                Self::Truncate(since) => log.truncate(since).await,
                Self::Purge(upto) => log.purge(upto).await,
            }
        }
        .boxed()
    }
}

impl Content {
    fn next(&self) -> u64 {
        self.last.map_or(0, |last| last.index + 1)
    }

    fn term(&self) -> u64 {
        self.last.map_or(1, |last| last.leader_id.term)
    }
}
