//! The thread that owns the end of the log: one write and one sync for all changes that wait.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use openraft::storage::LogFlushed;
use tokio::sync::{mpsc, oneshot};
use tracing::error;

use super::LogOptions;
use super::error::LogError;
use super::format::{GroupEncoder, Mark, Record};
use super::index::Discontinuity;
use super::recovery::{FIRST, Tail, remove_segments, segment_name};
use super::state::Shared;
use crate::db::raft_types::{Entry, TypeConfig};

/// How many changes may wait for the writer. openraft has one under way at a time.
pub(super) const QUEUE_MAX: usize = 256;

/// A group is closed once it has this many bytes: the bound of the buffer, a large entry aside.
const GROUP_BYTES_MAX: usize = 4 << 20;

/// What the writer is asked for.
pub(super) enum Request {
    /// Make a change durable, and say so.
    Change(Change, u64, Done),
    /// End the thread once all that was asked for before is done.
    Close,
}

/// A change of the log. The number that goes with it in [`Request::Change`] is its ticket.
pub(super) enum Change {
    /// Append entries.
    Append(Vec<Entry>),
    /// Save the vote, truncate or purge.
    Mark(Mark),
}

/// Who hears that a change is durable.
pub(super) enum Done {
    /// openraft.
    Flushed(LogFlushed<TypeConfig>),
    /// One of the store's own methods.
    Reply(oneshot::Sender<Result<(), LogError>>),
}

impl Done {
    fn tell(self, result: Result<(), LogError>) {
        match self {
            Self::Flushed(callback) => callback.log_io_completed(result.map_err(|error| error.to_io())),
            // Nobody listens any more when the caller was cancelled; the change stays.
            Self::Reply(sender) => drop(sender.send(result)),
        }
    }
}

/// The writer's thread. Joins it when dropped, so the queue's sender must be dropped before.
pub(super) struct WriterThread(Option<JoinHandle<()>>);

impl WriterThread {
    /// Waits until the thread has ended.
    pub(super) fn join(&mut self) {
        if let Some(handle) = self.0.take()
            && handle.join().is_err()
        {
            error!("the thread that writes the Raft log panicked");
        }
    }
}

impl Drop for WriterThread {
    fn drop(&mut self) {
        self.join();
    }
}

/// Starts the writer at the end of the log that was recovered.
pub(super) fn spawn(
    shared: Arc<Shared>,
    options: LogOptions,
    tail: Option<Tail>,
    last_group: u64,
) -> std::io::Result<(mpsc::Sender<Request>, WriterThread)> {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    let writer = Writer {
        shared,
        options,
        tail,
        last_group,
        group: GroupEncoder::default(),
        open: None,
        records: Vec::new(),
        waiting: Vec::new(),
        ticket: 0,
        stopped: None,
    };
    let handle = thread::Builder::new().name("raft-log".to_owned()).spawn(move || writer.run(receiver))?;
    Ok((sender, WriterThread(Some(handle))))
}

/// The state of the thread.
struct Writer {
    shared: Arc<Shared>,
    options: LogOptions,
    /// The segment that is written to; `None` before the first.
    tail: Option<Tail>,
    /// The number of the last group written.
    last_group: u64,
    /// The group being built, if `open`.
    group: GroupEncoder,
    /// Whether a group is being built, and where it will go.
    open: Option<Place>,
    /// Its records, for the index.
    records: Vec<Record>,
    /// Who waits for it.
    waiting: Vec<Done>,
    /// The last change that is complete with it.
    ticket: u64,
    /// Why nothing is written any more. The [`State`](super::state::State) says the same; a change is often queued by somebody who holds
    /// its lock, so it is not asked before the disk.
    stopped: Option<Arc<str>>,
}

/// Where a group goes.
#[derive(Clone, Copy)]
enum Place {
    /// Behind the last one.
    Tail,
    /// Into a new segment.
    NewSegment,
}

impl Writer {
    fn run(mut self, mut receiver: mpsc::Receiver<Request>) {
        let mut requests = Vec::with_capacity(QUEUE_MAX);
        let mut closing = false;
        while !closing && receiver.blocking_recv_many(&mut requests, QUEUE_MAX) > 0 {
            for request in requests.drain(..) {
                match request {
                    Request::Change(_, _, done) if closing => done.tell(Err(LogError::Closed)),
                    Request::Change(change, ticket, done) => self.change(change, ticket, done),
                    Request::Close => closing = true,
                }
            }
            self.flush();
        }
        receiver.close();
        while let Some(request) = receiver.blocking_recv() {
            if let Request::Change(_, _, done) = request {
                done.tell(Err(LogError::Closed));
            }
        }
    }

    /// Adds a change to the group. It is told `done` when that is flushed.
    fn change(&mut self, change: Change, ticket: u64, done: Done) {
        if let Err(error) = self.check() {
            return done.tell(Err(error));
        }
        match change {
            Change::Append(entries) => {
                for entry in &entries {
                    self.open_group();
                    let position = self.group.entry(entry);
                    self.records.push(Record::Entry(entry.log_id, position));
                    self.close_large_group();
                }
            }
            Change::Mark(mark) => {
                self.open_group();
                self.group.mark(&mark);
                self.records.push(Record::Mark(mark));
            }
        }
        self.ticket = ticket;
        self.waiting.push(done);
        self.close_large_group();
    }

    fn open_group(&mut self) {
        if self.open.is_some() {
            return;
        }
        match &self.tail {
            Some(tail) if tail.position < self.options.segment_bytes => {
                self.group.start(tail.segment, tail.position);
                self.open = Some(Place::Tail);
            }
            full => {
                let standing = *self.shared.lock().index().standing();
                self.group.start(full.as_ref().map_or(FIRST, |tail| tail.segment + 1), 0);
                self.group.mark(&Mark::Begin(standing));
                self.open = Some(Place::NewSegment);
            }
        }
    }

    fn close_large_group(&mut self) {
        if self.open.is_some() && self.group.len() >= GROUP_BYTES_MAX {
            self.flush();
        }
    }

    /// Makes the open group durable and tells those who wait for it.
    fn flush(&mut self) {
        let result = match self.open.take() {
            Some(place) => self.write(place).and_then(|()| self.publish(place)),
            // The last entries of a change went out with a large group, or it had none.
            None => self.shared.lock().settle(self.ticket).map(|()| Vec::new()),
        };
        self.records.clear();
        let result = result.map_err(|error| self.stop(&error));
        for done in self.waiting.drain(..) {
            done.tell(match &result {
                Ok(_) => Ok(()),
                Err(reason) => Err(LogError::Stopped(Arc::clone(reason))),
            });
        }
        // Last, so that nobody waits for it.
        remove_segments(self.shared.storage(), result.into_iter().flatten());
    }

    /// One write, one sync.
    fn write(&mut self, place: Place) -> Result<(), LogError> {
        // After a failed write or sync nobody knows what the file holds: nothing may follow it.
        self.check()?;
        let storage = self.shared.storage();
        let mut tail = match (place, self.tail.take()) {
            (Place::Tail, Some(tail)) => tail,
            (_, tail) => {
                let segment = tail.map_or(FIRST, |tail| tail.segment + 1);
                let name = segment_name(segment);
                let file = storage.create(&name).map_err(LogError::io("create", storage.path(&name)))?;
                Tail { segment, file, position: 0, allocated: 0 }
            }
        };
        let name = segment_name(tail.segment);
        let io = |action| LogError::io(action, storage.path(&name));
        let bytes = self.group.finish(self.last_group + 1);
        let end = tail.position + bytes.len() as u64;
        if end > tail.allocated {
            // See `LogOptions::allocate_bytes`.
            tail.allocated = end.next_multiple_of(self.options.allocate_bytes.max(1));
            bytes.resize((tail.allocated - tail.position) as usize, 0);
        }
        tail.file.write_at(bytes, tail.position).map_err(io("write"))?;
        #[cfg(test)]
        thread::sleep(*self.shared.delay.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        tail.file.sync().map_err(io("sync"))?;
        if matches!(place, Place::NewSegment) {
            storage.sync_dir().map_err(io("sync the directory of"))?;
        }
        tail.position = end;
        self.last_group += 1;
        self.tail = Some(tail);
        Ok(())
    }

    /// Takes the group that was written into the index. Returns the segments it made obsolete.
    fn publish(&mut self, place: Place) -> Result<Vec<u64>, LogError> {
        let mut state = self.shared.lock();
        if let Some(tail) = &self.tail {
            if matches!(place, Place::NewSegment) {
                state.index_mut().add_segment(tail.segment, Arc::clone(&tail.file));
            }
            if let Some(newest) = state.index_mut().newest_mut() {
                newest.bytes = tail.position;
            }
        }
        // `State::append` refuses what does not continue the log, so this does not happen.
        let gap = |gap: Discontinuity| LogError::NotConsecutive { expected: gap.expected, found: gap.found };
        state.flushed(&self.records).map_err(gap)?;
        state.settle(self.ticket)?;
        Ok(state.index_mut().take_removable())
    }

    /// Refuses once a write has failed.
    fn check(&self) -> Result<(), LogError> {
        self.stopped.as_ref().map_or(Ok(()), |reason| Err(LogError::Stopped(Arc::clone(reason))))
    }

    /// Refuses everything from here on.
    fn stop(&mut self, error: &LogError) -> Arc<str> {
        if let Some(reason) = &self.stopped {
            return Arc::clone(reason);
        }
        let reason: Arc<str> = Arc::from(error.with_causes());
        error!(error = %reason, "the Raft log cannot be written any more");
        self.shared.lock().stop(Arc::clone(&reason));
        self.stopped = Some(Arc::clone(&reason));
        reason
    }
}
