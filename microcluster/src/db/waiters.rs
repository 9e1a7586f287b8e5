//! Who waits for the outcome of which request: the writer thread answers them as soon as the
//! transaction that holds their request is committed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::apply::Answered;
use super::command::{Outcome, RequestId};
use super::sequencer::SubmitError;

/// Where a proposed batch ended up: the index of its log entry, 0 while that is not known.
#[derive(Debug, Default)]
pub(crate) struct Landed(AtomicU64);

impl Landed {
    /// It is in the log at `index`.
    pub fn at(&self, index: u64) {
        self.0.store(index, Ordering::Release);
    }

    /// It is not in the log and never will be: as if it had landed before everything.
    pub fn nowhere(&self) {
        self.at(1);
    }

    /// The log index, once the batch was applied here.
    pub fn index(&self) -> Option<u64> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            index => Some(index),
        }
    }
}

/// The outcome of a request and the log index that it was applied at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub index: u64,
    pub outcome: Outcome,
}

/// Where an answer goes.
pub(crate) type AnswerSender = oneshot::Sender<Result<Answer, SubmitError>>;

struct Waiter {
    answer: AnswerSender,
    landed: Arc<Landed>,
    /// The copy that is applied may be an earlier one, in another batch.
    resent: bool,
}

/// The requests in flight on this member.
#[derive(Default)]
pub(crate) struct Waiters(Mutex<HashMap<RequestId, Waiter>>);

impl Waiters {
    /// Registers before the request is proposed. A resend replaces the one before it; a copy that was sent before and comes late, it.
    pub fn register(&self, id: RequestId, answer: AnswerSender, landed: Arc<Landed>, resent: bool) {
        let mut waiters = self.lock();
        let resent = resent || waiters.contains_key(&id);
        waiters.insert(id, Waiter { answer, landed, resent });
    }

    /// Tells those of a batch that was not taken into the log why.
    pub fn fail(&self, ids: &[RequestId], landed: &Arc<Landed>, error: &SubmitError) {
        let mut waiters = self.lock();
        for id in ids {
            if waiters.get(id).is_some_and(|waiter| Arc::ptr_eq(&waiter.landed, landed))
                && let Some(waiter) = waiters.remove(id)
            {
                let _ = waiter.answer.send(Err(error.clone()));
            }
        }
    }

    /// Answers those of the applied requests that somebody waits for here.
    pub fn answer(&self, answered: Vec<Answered>) {
        let mut waiters = self.lock();
        if waiters.is_empty() {
            return;
        }
        for (id, index, outcome) in answered {
            if let Some(waiter) = waiters.remove(&id) {
                if !waiter.resent {
                    waiter.landed.at(index);
                }
                // A receiver that is gone has given up; the outcome stays with the session.
                let _ = waiter.answer.send(Ok(Answer { index, outcome }));
            }
        }
    }

    /// Forgets everybody: their channels close.
    pub fn close(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<RequestId, Waiter>> {
        // What the mutex holds is valid at every moment, also if a holder panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Where a batch is decides what a transaction conflicts with.
    #[test]
    fn only_the_copy_that_was_applied_says_where_its_batch_is() {
        let (id, waiters) = (RequestId { origin: 1, sequence: 1 }, Waiters::default());
        let answer_at = |index| waiters.answer(vec![(id, index, Outcome::Done(Vec::new()))]);
        let register = |resent| {
            let ((sender, receiver), landed) = (oneshot::channel(), Arc::<Landed>::default());
            waiters.register(id, sender, Arc::clone(&landed), resent);
            (receiver, landed)
        };
        let (mut receiver, landed) = register(false);
        answer_at(10);
        assert_eq!((landed.index(), receiver.try_recv().unwrap().unwrap().index), (Some(10), 10));
        // Two copies, whichever was sent first: either may have been applied.
        for first_is_resent in [false, true] {
            let (_, first) = register(first_is_resent);
            let (mut receiver, second) = register(!first_is_resent);
            answer_at(20);
            assert_eq!((first.index(), second.index()), (None, None));
            assert_eq!(receiver.try_recv().unwrap().unwrap().index, 20);
        }
    }
}
