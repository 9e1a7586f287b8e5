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

/// How long the next request is looked for. A client on this machine has been woken by then, and has asked again.
const WINDOW: Duration = Duration::from_micros(100);
/// One of so many answers is followed by a look, at least.
const PAUSE_MAX: u32 = 64;

/// What the requests of a listener do and what looks for the next one. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct BusyPoll(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// How many have begun.
    begun: AtomicU64,
    /// How many are being answered.
    running: AtomicUsize,
    pace: Mutex<Pace>,
    /// Told when the last one is answered and it is time for a look.
    answered: Notify,
}

/// How often it is worth to look.
#[derive(Debug)]
struct Pace {
    /// So many answers are not followed by a look.
    pause: u32,
    /// And so many after the next look in vain.
    next: u32,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { pause: 0, next: 1 }
    }
}

impl Pace {
    fn is_time(&mut self) -> bool {
        let is_time = self.pause == 0;
        self.pause = self.pause.saturating_sub(1);
        is_time
    }

    fn note(&mut self, has_come: bool) {
        if has_come {
            *self = Pace::default();
        } else {
            self.pause = self.next;
            self.next = (self.next * 2).min(PAUSE_MAX);
        }
    }
}

impl BusyPoll {
    /// A request begins.
    pub fn begin(&self) {
        self.0.begun.fetch_add(1, Ordering::Relaxed);
        self.0.running.fetch_add(1, Ordering::AcqRel);
    }

    /// A request is answered.
    pub fn end(&self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) == 1 && self.pace(Pace::is_time) {
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
            self.pace(|pace| pace.note(has_come));
        }
    }

    /// Keeps this thread of the runtime awake until a request has begun, at most for a moment. Others have the processor first.
    async fn look(&self) -> bool {
        let (begun, until) = (self.0.begun.load(Ordering::Relaxed), Instant::now() + WINDOW);
        while self.0.begun.load(Ordering::Relaxed) == begun {
            if Instant::now() > until {
                return false;
            }
            thread::yield_now();
            task::yield_now().await;
        }
        true
    }

    fn pace<T>(&self, change: impl FnOnce(&mut Pace) -> T) -> T {
        // What the mutex holds is valid at every moment, also if a holder panicked.
        change(&mut self.0.pace.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many answers are followed by a look, each with the same end.
    fn looks(pace: &mut Pace, answers: u32, has_come: bool) -> u32 {
        let mut looks = 0;
        for _ in 0..answers {
            if pace.is_time() {
                pace.note(has_come);
                looks += 1;
            }
        }
        looks
    }

    #[test]
    fn it_is_looked_less_and_less_for_what_does_not_come() {
        let mut pace = Pace::default();
        assert_eq!(looks(&mut pace, 100, true), 100);
        // After pauses of 1, 2, 4 … 32.
        assert_eq!(looks(&mut pace, 70, false), 7);
        assert_eq!(looks(&mut pace, 65 * 3, false), 3);
        assert_eq!(looks(&mut pace, 64, true), 0);
        assert_eq!(looks(&mut pace, 10, true), 10, "one that has come is enough");
    }

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
