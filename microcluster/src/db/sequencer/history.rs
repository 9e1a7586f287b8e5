//! What this member's sequencer has proposed in the present term, as far back as it remembers.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::db::command::{Body, Request};
use crate::db::waiters::Landed;

/// How many requests are remembered; a transaction that began before them conflicts.
const REQUESTS_MAX: usize = 4_096;
/// How many bytes of them.
const BYTES_MAX: usize = 8 << 20;

/// The batches of one leadership, oldest first.
#[derive(Default)]
pub(crate) struct History {
    term: Option<u64>,
    /// A transaction that saw less than this conflicts: what came before is not remembered.
    floor: u64,
    batches: VecDeque<Batch>,
    requests: usize,
    bytes: usize,
}

struct Batch {
    requests: Vec<Request>,
    landed: Arc<Landed>,
}

impl History {
    /// The term that is remembered.
    pub fn term(&self) -> Option<u64> {
        self.term
    }

    /// Starts anew for `term`, whose leader's log ended at `last_index` when nothing was proposed in it.
    pub fn begin(&mut self, term: u64, last_index: u64) {
        *self = History { term: Some(term), floor: last_index, ..History::default() };
    }

    /// Remembers a batch that was proposed just now.
    pub fn note(&mut self, mut requests: Vec<Request>, landed: Arc<Landed>) {
        if self.term.is_none() {
            return;
        }
        // Which tables a statement writes does not depend on its values.
        for request in &mut requests {
            if let Body::Statements(statements) | Body::Settled(statements) = &mut request.body {
                statements.iter_mut().for_each(|statement| statement.parameters = Vec::new());
            }
        }
        self.requests += requests.len();
        self.bytes += requests.iter().map(Request::size).sum::<usize>();
        self.batches.push_back(Batch { requests, landed });
        // A batch whose place is not known yet cannot be forgotten; there are never many of them.
        while (self.requests > REQUESTS_MAX || self.bytes > BYTES_MAX)
            && let Some(index) = self.batches.front().and_then(|batch| batch.landed.index())
        {
            self.floor = self.floor.max(index);
            if let Some(batch) = self.batches.pop_front() {
                self.requests -= batch.requests.len();
                self.bytes -= batch.requests.iter().map(Request::size).sum::<usize>();
            }
        }
    }

    /// Whether any request proposed after log index `seen` makes `writes` true.
    pub fn conflicts(&self, seen: u64, writes: impl Fn(&Request) -> bool) -> bool {
        if seen < self.floor {
            return true;
        }
        self.batches
            .iter()
            .rev()
            .take_while(|batch| batch.landed.index().is_none_or(|index| index > seen))
            .any(|batch| batch.requests.iter().any(&writes))
    }
}
