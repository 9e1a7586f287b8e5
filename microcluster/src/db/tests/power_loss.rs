//! A property: whatever a member's log and state go through, and wherever the power fails under both of them, they come
//! back whole and fit each other: the state is a prefix of the log, the log reaches back to it, and every acknowledged write
//! is there when the log has been applied.

pub(crate) mod files;
mod history;
mod machine;
mod vfs;

use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::{RaftLogReader, RaftSnapshotBuilder};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::seeds::seeds;
use crate::db::damage::Standing;
use crate::db::log_store::{LogOptions, LogStore, open_on_disk};
use crate::db::raft_types::{Snapshot, Vote};
use crate::db::state_file;
use crate::db::state_machine::StateMachine;
use history::History;
use machine::Machine;

const ROUNDS: usize = 300;
const LIVES: u32 = 8;

#[tokio::test]
async fn log_and_state_fit_each_other_whenever_the_power_fails() {
    let mut tally = Tally::default();
    let seeds = seeds(ROUNDS);
    for &seed in &seeds {
        Round::new(seed).run(&mut tally).await;
    }
    println!("{} rounds: {tally:?}", seeds.len());
    if seeds.len() == ROUNDS {
        let Tally { cut, state_lost, purges, installs, installs_cut } = tally;
        // Else the rounds showed nothing.
        assert!([cut, state_lost, purges, installs].into_iter().min() >= Some(100) && installs_cut >= 20, "{tally:?}");
    }
}

/// How often what the test is about has happened.
#[derive(Debug, Default)]
struct Tally {
    /// Lives that ended within a change.
    cut: u32,
    /// Lives whose state had lost something at its end.
    state_lost: u32,
    purges: u32,
    installs: u32,
    /// Installations that the power did not last for.
    installs_cut: u32,
}

/// Lives of one member on one machine.
struct Round {
    seed: u64,
    life: u32,
    rng: StdRng,
    machine: Machine,
    history: History,
    /// How many entries of the log were acknowledged.
    acknowledged: u64,
    /// How many entries the state had applied when it was last seen.
    applied: u64,
    /// Where a snapshot stands that was being installed at the end of a life.
    arriving: Option<u64>,
    /// A member that is ahead, for snapshots: its state, how many entries that has applied, and its machine, which keeps its power.
    leader: Option<(StateMachine, u64, Machine)>,
}

/// What a life has open.
struct Open {
    log: LogStore,
    state: StateMachine,
    /// What openraft believes to be on stable storage, and how far it has purged.
    purgeable: u64,
    purged: u64,
    /// A view that somebody is reading.
    pinned: Option<Snapshot>,
}

/// The power is gone.
struct Dark;

impl Round {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let history = History::new(rng.random_bool(0.3));
        let machine = Machine::new();
        Self { seed, life: 0, rng, machine, history, acknowledged: 0, applied: 0, arriving: None, leader: None }
    }

    async fn run(mut self, tally: &mut Tally) {
        for life in 0..LIVES {
            self.life = life;
            if self.rng.random_bool(0.9) && life + 1 < LIVES {
                self.machine.power_for(self.rng.random_range(0..300));
            }
            let options = self.options();
            let mut open = match self.open(options.clone()) {
                Ok(open) => open,
                Err(Dark) => {
                    // The power failed while they were being opened.
                    self.machine.lose_power(&mut self.rng);
                    self.open(options).unwrap_or_else(|Dark| unreachable!("there is power"))
                }
            };
            let power = self.machine.log.pause_power();
            self.check(&mut open, tally).await;
            self.machine.log.resume_power(power);
            let lived = self.live(&mut open, tally).await;
            if lived.is_ok() && self.rng.random_bool(0.5) {
                self.catch_up(&mut open).await;
            }
            self.end(open, tally).await;
        }
    }

    fn options(&mut self) -> LogOptions {
        let rng = &mut self.rng;
        LogOptions {
            segment_bytes: rng.random_range(500..6000),
            allocate_bytes: rng.random_range(1..2000),
            cache_bytes: rng.random_range(0..6000),
            read_bytes: rng.random_range(1..6000),
        }
    }

    /// Opens both as the daemon does.
    fn open(&self, options: LogOptions) -> Result<Open, Dark> {
        let log = self.unless_dark(open_on_disk(&self.machine.log, options))?;
        let state = self.unless_dark(StateMachine::open(self.machine.folder()))?;
        log.follow(state.shared().applied.subscribe());
        Ok(Open { log, state, purgeable: 0, purged: 0, pinned: None })
    }

    /// What was done, or darkness as the only excuse.
    fn unless_dark<T, E: std::fmt::Debug>(&self, done: Result<T, E>) -> Result<T, Dark> {
        done.map_err(|error| {
            assert!(self.machine.is_dark(), "{}: with the power on: {error:?}", self.place());
            Dark
        })
    }

    fn place(&self) -> String {
        format!("TEST_SEED={}, life {}", self.seed, self.life)
    }

    /// Whether what is there fits what was promised, and both fit each other. Ends as openraft does when it starts.
    async fn check(&mut self, open: &mut Open, tally: &mut Tally) {
        let place = self.place();
        let ends = open.log.get_log_state().await.unwrap();
        let purged = ends.last_purged_log_id.map_or(0, |id| id.index + 1);
        let last = ends.last_log_id.map_or(0, |id| id.index + 1);
        let (applied, _) = open.state.applied_state().await.unwrap();
        let standing = Standing {
            vote: Some(Vote::new(1, 1)),
            purged: ends.last_purged_log_id,
            last: ends.last_log_id,
            applied,
            snapshot: state_file::snapshot_index(self.machine.folder()).unwrap(),
        };
        assert_eq!(standing.check(), Ok(()), "{place}: taken for damage");
        let applied = applied.map_or(0, |id| id.index + 1);
        let what = format!(
            "{place}: of {} acknowledged the log has {purged}..{last}, the state {applied} (before: {})",
            self.acknowledged, self.applied
        );
        let arrived = self.arriving.take().is_some_and(|arriving| arriving == applied);
        assert!(purged <= applied, "{what}: what the state has lost was purged");
        assert!(applied <= last || arrived, "{what}: the state is ahead of the log");
        assert!(last.max(applied) >= self.acknowledged, "{what}: an acknowledged write is lost");
        let entries = open.log.try_get_log_entries(..).await.unwrap();
        assert!(entries == self.history.entries(purged..last), "{what}: other entries");
        self.check_state(open, &what, applied.checked_sub(1)).await;

        tally.state_lost += u32::from(applied < self.applied);
        if last < applied {
            open.log.purge(self.history.log_id(applied - 1)).await.unwrap();
        }
        self.acknowledged = last.max(applied);
        self.applied = applied;
        open.purged = if last < applied { applied } else { purged };
        let snapshot = open.state.get_current_snapshot().await.unwrap();
        open.purgeable = snapshot.and_then(|snapshot| snapshot.meta.last_log_id).map_or(0, |id| id.index + 1);
    }

    async fn check_state(&self, open: &mut Open, what: &str, applied: Option<u64>) {
        let shared = open.state.shared();
        let connection = crate::db::readers::open_read_only(&shared.readers.path()).unwrap();
        let (rows, integrity) = history::read(&connection).unwrap();
        assert_eq!(integrity, "ok", "{what}");
        assert!(self.history.explains(applied, &rows), "{what}: the state holds {rows:?}");
    }

    async fn live(&mut self, open: &mut Open, tally: &mut Tally) -> Result<(), Dark> {
        for _ in 0..self.rng.random_range(1..60) {
            match self.rng.random_range(0..20) {
                0..8 => self.append(open).await?,
                8..14 => {
                    let count = self.rng.random_range(1..8);
                    self.apply(open, count).await?;
                }
                14 => open.pinned = self.unless_dark(open.state.get_current_snapshot().await)?,
                15 => open.pinned = None,
                16 | 17 => {
                    let built = open.state.build_snapshot().await;
                    let built = self.unless_dark(built)?;
                    open.purgeable = built.meta.last_log_id.map_or(0, |id| id.index + 1).max(open.purgeable);
                }
                18 => {
                    self.purge(open, tally).await?;
                    // Segments are removed after the answer; the next change comes after that, so that a seed always does the same.
                    self.append(open).await?;
                }
                _ if self.rng.random_bool(0.5) => {
                    if self.rng.random_bool(0.4) {
                        self.machine.power_for(self.rng.random_range(0..80));
                    }
                    self.install(open, tally).await?;
                    self.append(open).await?;
                    // Whoever starts now finds a write-ahead log that SQLite has created and never synced.
                    if self.rng.random_bool(0.3) {
                        return Ok(());
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn append(&mut self, open: &mut Open) -> Result<(), Dark> {
        let from = self.acknowledged;
        let to = from + self.rng.random_range(1..4);
        self.history.grow(to, &mut self.rng);
        self.unless_dark(open.log.blocking_append(self.history.entries(from..to)).await)?;
        self.acknowledged = to;
        Ok(())
    }

    async fn apply(&mut self, open: &mut Open, count: u64) -> Result<(), Dark> {
        let to = self.acknowledged.min(self.applied.saturating_add(count));
        let entries = self.history.entries(self.applied..to);
        self.unless_dark(open.state.apply(entries).await)?;
        self.applied = to;
        Ok(())
    }

    async fn purge(&mut self, open: &mut Open, tally: &mut Tally) -> Result<(), Dark> {
        if open.purged >= open.purgeable {
            return Ok(());
        }
        let purged = self.rng.random_range(open.purged + 1..=open.purgeable);
        self.unless_dark(open.log.purge(self.history.log_id(purged - 1)).await)?;
        open.purged = purged;
        tally.purges += 1;
        Ok(())
    }

    /// Gets a snapshot of a member that is ahead. openraft purges the log meanwhile.
    async fn install(&mut self, open: &mut Open, tally: &mut Tally) -> Result<(), Dark> {
        // Never entry 0 alone: a leader has appended another one before there is anybody to send a snapshot to.
        let to = self.acknowledged + self.rng.random_range(2..6);
        self.history.grow(to, &mut self.rng);
        let (leader, applied, _) = self.leader.get_or_insert_with(|| {
            let machine = Machine::new();
            (StateMachine::open(machine.folder()).unwrap(), 0, machine)
        });
        // Others have applied it and more.
        let to = to.max(*applied);
        leader.apply(self.history.entries(*applied..to)).await.unwrap();
        *applied = to;
        let snapshot = leader.get_current_snapshot().await.unwrap().unwrap();
        self.arriving = Some(to);
        let (state, log) = (&mut open.state, &mut open.log);
        let installed = async { state.install_snapshot(&snapshot.meta, snapshot.snapshot.clone()).await };
        let purged = async { log.purge(self.history.log_id(to - 1)).await };
        let done = futures_util::future::try_join(installed, purged).await;
        if done.is_err() {
            tally.installs_cut += 1;
        }
        self.unless_dark(done)?;
        tally.installs += 1;
        self.arriving = None;
        (self.acknowledged, self.applied, open.purgeable, open.purged) = (to, to, to, to);
        Ok(())
    }

    /// Applies all that was acknowledged: every write must be there.
    async fn catch_up(&mut self, open: &mut Open) {
        let power = self.machine.log.pause_power();
        let done = self.apply(open, u64::MAX).await;
        assert!(done.is_ok(), "there is power");
        let what = format!("{}: after everything was applied", self.place());
        self.check_state(open, &what, self.applied.checked_sub(1)).await;
        self.machine.log.resume_power(power);
    }

    /// The process stops or is killed, or the power fails.
    async fn end(&mut self, open: Open, tally: &mut Tally) {
        let dark = self.machine.is_dark();
        tally.cut += u32::from(dark);
        if !dark && self.rng.random_bool(0.8) {
            self.machine.go_dark();
        }
        let Open { log, state, pinned, .. } = open;
        drop((pinned, state));
        log.close().await;
        drop(log);
        if dark || self.rng.random_bool(0.6) {
            self.machine.lose_power(&mut self.rng);
        } else {
            self.machine.restart_process();
        }
    }
}
