//! A disk in memory. It fails when told to, and on a power failure forgets what was not synced. A [`Disk`] is one
//! folder on it; folders beside each other lose their power at one moment.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, RngExt};

use crate::db::log_store::files::{LogFile, Storage};

const SECTOR_BYTES: usize = 512;

/// A directory on the disk. Clones are the same disk.
#[derive(Clone, Default)]
pub(crate) struct Disk(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// File contents by inode.
    files: BTreeMap<u64, Contents>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    /// Changes of names since the directory was synced.
    pending_names: Vec<NameChange>,
    inodes: u64,
    /// Handles of an earlier power-on are dead.
    boot: u64,
    /// How many operations there is power for, in this folder and those beside it.
    power: Arc<Mutex<Option<u64>>>,
    faults: Vec<(Operation, io::ErrorKind)>,
    syncs_held: bool,
    syncs_waiting: usize,
    syncs: u64,
}

#[derive(Default)]
struct Contents {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

/// Names and what they stand for now, changed at once.
type NameChange = Vec<(String, Option<u64>)>;

enum Change {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

/// What can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Create,
    Write,
    Sync,
    SyncDir,
    Remove,
    Other,
}

impl Disk {
    /// An empty folder beside this one: the same machine.
    pub(crate) fn beside(&self) -> Self {
        let state = State { power: Arc::clone(&self.lock().power), ..State::default() };
        Self(Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }))
    }

    /// Gives a file another name, atomically.
    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.operate(Operation::Other)?;
        let inode = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), inode);
        state.pending_names.push(vec![(from.to_owned(), None), (to.to_owned(), Some(inode))]);
        Ok(())
    }

    /// Whether the power is gone.
    pub(crate) fn is_dark(&self) -> bool {
        *self.lock().power() == Some(0)
    }

    /// Lets the next operation of that kind fail, and only that one.
    pub(super) fn fail(&self, operation: Operation, kind: io::ErrorKind) {
        self.lock().faults.push((operation, kind));
    }

    /// After so many more operations the power is gone.
    pub(crate) fn power_for(&self, operations: u64) {
        *self.lock().power() = Some(operations);
    }

    /// Takes the power failure that is set back; `resume_power` sets it again.
    pub(crate) fn pause_power(&self) -> Option<u64> {
        self.lock().power().take()
    }

    /// See `pause_power`.
    pub(crate) fn resume_power(&self, power: Option<u64>) {
        *self.lock().power() = power;
    }

    /// The process ends, the machine goes on: nothing is lost.
    pub(crate) fn restart_process(&self) {
        let mut state = self.lock();
        state.boot += 1;
        *state.power() = None;
    }

    /// The machine loses power. Of all that was not synced, any part may be lost.
    pub(crate) fn lose_power(&self, rng: &mut StdRng) {
        let mut state = self.lock();
        let state = &mut *state;
        state.boot += 1;
        *state.power() = None;
        let kept = [0.0, 0.1, 0.5, 0.9, 1.0][rng.random_range(0..5)];
        for change in std::mem::take(&mut state.pending_names) {
            if rng.random_bool(kept) {
                for (name, inode) in change {
                    match inode {
                        Some(inode) => state.durable_names.insert(name, inode),
                        None => state.durable_names.remove(&name),
                    };
                }
            }
        }
        state.names = state.durable_names.clone();
        for contents in state.files.values_mut() {
            contents.lose_power(kept, rng);
        }
    }

    /// Holds every sync until `release_syncs`.
    pub(crate) fn hold_syncs(&self) {
        self.lock().syncs_held = true;
    }

    /// Lets the syncs that are held go on.
    pub(crate) fn release_syncs(&self) {
        self.lock().syncs_held = false;
        self.0.changed.notify_all();
    }

    /// Returns once a sync is held.
    pub(crate) fn wait_for_held_sync(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut state = self.lock();
        while state.syncs_waiting == 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no sync came within 20 s");
            state = self.0.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// How many syncs of files there were.
    pub(super) fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// The names of the files, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        self.lock().names.keys().cloned().collect()
    }

    /// The content of a file.
    pub(crate) fn contents(&self, name: &str) -> Vec<u8> {
        let state = self.lock();
        state.files[&state.names[name]].live.clone()
    }

    /// A new disk with the same files, all of them durable.
    pub(super) fn copy(&self) -> Self {
        let copy = Self::default();
        for name in self.names() {
            copy.put(&name, self.contents(&name));
        }
        copy
    }

    /// Replaces a file, durably.
    pub(super) fn put(&self, name: &str, bytes: Vec<u8>) {
        let mut state = self.lock();
        state.inodes += 1;
        let inode = state.inodes;
        state.files.insert(inode, Contents { live: bytes.clone(), durable: bytes, pending: Vec::new() });
        state.names.insert(name.to_owned(), inode);
        state.durable_names.insert(name.to_owned(), inode);
    }

    /// Flips a bit of a file that is open.
    pub(super) fn flip(&self, name: &str, at: usize) {
        let mut state = self.lock();
        let inode = state.names[name];
        state.files.get_mut(&inode).unwrap().live[at] ^= 1;
    }

    /// Removes a file, durably.
    pub(super) fn take(&self, name: &str) {
        let mut state = self.lock();
        state.names.remove(name).unwrap();
        state.durable_names.remove(name);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    fn operate(&self, operation: Operation) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.lock();
        state.spend(operation)?;
        Ok(state)
    }
}

impl State {
    fn power(&self) -> MutexGuard<'_, Option<u64>> {
        self.power.lock().unwrap()
    }

    fn spend(&mut self, operation: Operation) -> io::Result<()> {
        match &mut *self.power() {
            Some(0) => return Err(io::Error::other("the power is gone")),
            Some(left) => *left -= 1,
            None => {}
        }
        if let Some(at) = self.faults.iter().position(|(fault, _)| *fault == operation) {
            return Err(self.faults.remove(at).1.into());
        }
        Ok(())
    }
}

impl Contents {
    fn lose_power(&mut self, kept: f64, rng: &mut impl Rng) {
        for change in std::mem::take(&mut self.pending) {
            match change {
                Change::SetLen(len) if rng.random_bool(kept) => self.durable.resize(len, 0),
                Change::SetLen(_) => {}
                Change::Write(offset, bytes) => {
                    let mut at = offset;
                    while at < offset + bytes.len() {
                        let end = (at / SECTOR_BYTES + 1) * SECTOR_BYTES;
                        let end = end.min(offset + bytes.len());
                        if rng.random_bool(kept) {
                            write(&mut self.durable, at, &bytes[at - offset..end - offset]);
                        }
                        at = end;
                    }
                }
            }
        }
        self.live = self.durable.clone();
    }
}

fn write(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[offset..end].copy_from_slice(bytes);
}

impl Storage for Disk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.operate(Operation::Other)?.names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let mut state = self.operate(Operation::Create)?;
        state.inodes += 1;
        let inode = state.inodes;
        state.files.insert(inode, Contents::default());
        state.names.insert(name.to_owned(), inode);
        state.pending_names.push(vec![(name.to_owned(), Some(inode))]);
        Ok(Arc::new(Handle { disk: self.clone(), inode, boot: state.boot }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let state = self.operate(Operation::Other)?;
        let inode = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(Handle { disk: self.clone(), inode, boot: state.boot }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.operate(Operation::Remove)?;
        state.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        state.pending_names.push(vec![(name.to_owned(), None)]);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.operate(Operation::SyncDir)?;
        state.pending_names.clear();
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(name)
    }
}

struct Handle {
    disk: Disk,
    inode: u64,
    boot: u64,
}

impl Handle {
    fn with<T>(&self, operation: Operation, run: impl FnOnce(&mut Contents) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.operate(operation)?;
        if state.boot != self.boot {
            return Err(io::Error::other("the process that opened the file is gone"));
        }
        run(state.files.get_mut(&self.inode).unwrap())
    }
}

impl LogFile for Handle {
    fn len(&self) -> io::Result<u64> {
        self.with(Operation::Other, |file| Ok(file.live.len() as u64))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(Operation::Other, |file| {
            let found = file.live.get(offset as usize..).and_then(|rest| rest.get(..buf.len()));
            buf.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with(Operation::Write, |file| {
            write(&mut file.live, offset as usize, bytes);
            file.pending.push(Change::Write(offset as usize, bytes.to_vec()));
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(Operation::Other, |file| {
            file.live.resize(len as usize, 0);
            file.pending.push(Change::SetLen(len as usize));
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.syncs += 1;
        state.syncs_waiting += 1;
        self.disk.0.changed.notify_all();
        while state.syncs_held {
            state = self.disk.0.changed.wait(state).unwrap();
        }
        state.syncs_waiting -= 1;
        drop(state);
        self.with(Operation::Sync, |file| {
            file.pending.clear();
            file.durable = file.live.clone();
            Ok(())
        })
    }
}
