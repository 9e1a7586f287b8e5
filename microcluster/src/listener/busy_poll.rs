//! Busy polling: a client that asks one thing right after the other finds the daemon awake.
//!
//! Waking an idle processor can take longer than an answer, on virtual machines above all. So after the last answer the runtime
//! looks for the next request for a moment before it sleeps, as Linux does with an idle processor (its `haltpoll` governor). Where no
//! request comes that soon it is tried less and less.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task;

use crate::backoff::Backoff;

/// How long the next request is looked for. A client on this machine has been woken by then, and has asked again.
const WINDOW: Duration = Duration::from_micros(100);

/// What the requests of a listener do and what looks for the next one. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct BusyPoll(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// How many have begun.
    begun: AtomicU64,
    /// How many are being answered.
    running: AtomicUsize,
    /// How many had begun when the last one was answered.
    known: AtomicU64,
    /// Whether it is worth to look.
    backoff: Mutex<Backoff>,
    /// Told when the last one is answered and it is time for a look.
    answered: Notify,
}

impl BusyPoll {
    /// A request begins.
    pub fn begin(&self) {
        self.0.begun.fetch_add(1, Ordering::Relaxed);
        self.0.running.fetch_add(1, Ordering::AcqRel);
    }

    /// A request is answered.
    pub fn end(&self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) == 1 && self.backoff(Backoff::is_time) {
            self.0.known.store(self.0.begun.load(Ordering::Relaxed), Ordering::Relaxed);
            self.0.answered.notify_one();
        }
    }

    /// Looks for requests, for as long as it is polled.
    pub async fn run(self) {
        if thread::available_parallelism().is_ok_and(|processors| processors.get() == 1) {
            // The client could not ask while this one looks.
            return;
        }
        loop {
            self.0.answered.notified().await;
            let has_come = self.look().await;
            self.backoff(|backoff| backoff.note(has_come));
        }
    }

    /// Keeps this thread of the runtime awake until a request has begun, at most for a moment. Others have the processor first.
    async fn look(&self) -> bool {
        let (known, until) = (self.0.known.load(Ordering::Relaxed), Instant::now() + WINDOW);
        while self.0.begun.load(Ordering::Relaxed) == known {
            if Instant::now() > until {
                return false;
            }
            thread::yield_now();
            task::yield_now().await;
        }
        true
    }

    fn backoff<T>(&self, change: impl FnOnce(&mut Backoff) -> T) -> T {
        // What the mutex holds is valid at every moment, also if a holder panicked.
        change(&mut self.0.backoff.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_next_request_ends_a_look_and_so_does_time() {
        let poll = BusyPoll::default();
        assert!(!poll.look().await);
        // Begun and answered while it is looked, as what is answered at once.
        let asking = async {
            poll.begin();
            poll.end();
        };
        let (has_come, ()) = tokio::join!(biased; poll.look(), asking);
        assert!(has_come);
        poll.begin();
        assert!(poll.look().await, "it has come before it is looked");
    }

    #[tokio::test]
    async fn it_is_looked_after_the_last_answer() {
        let poll = BusyPoll::default();
        poll.begin();
        poll.begin();
        poll.end();
        let told = poll.0.answered.notified();
        tokio::pin!(told);
        assert!(!told.as_mut().enable(), "one is still answered");
        poll.end();
        told.await;
    }
}
