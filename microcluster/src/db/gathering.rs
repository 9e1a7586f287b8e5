//! Waiting a moment for company: clients that were answered together ask again together. Where the first of them has a log entry, or a
//! message to the leader, to itself the others wait until that one is done, and half of the clients go on waiting for the other half.
//!
//! It is the delay of a group commit (`commit_delay` and `commit_siblings` of PostgreSQL), as long as requests follow each other.

use std::thread;
use std::time::{Duration, Instant};

use tokio::task;

use crate::backoff::Backoff;

/// How long the next request is waited for.
const GAP: Duration = Duration::from_micros(200);
/// How long all of them are waited for.
const TIME_MAX: Duration = Duration::from_millis(10);

/// How many requests are to go together next, and how long they are waited for.
#[derive(Debug)]
pub(crate) struct Gathering {
    expected: usize,
    /// When the last ones went.
    sent: Instant,
    /// When they were answered.
    done: Instant,
    backoff: Backoff,
}

impl Gathering {
    /// Nobody has asked yet.
    pub fn new() -> Gathering {
        let now = Instant::now();
        Gathering { expected: 0, sent: now, done: now, backoff: Backoff::default() }
    }

    /// Those that wait go.
    pub fn sent(&mut self) {
        self.sent = Instant::now();
    }

    /// The last ones were answered, and so many are expected: of those who got the answers, and those that wait.
    pub fn done(&mut self, expected: usize, at: Instant) {
        (self.expected, self.done) = (expected, at);
    }

    /// Waits until as many wait as are expected, or no more come: for a moment, and never twice as long as the last ones took. On this
    /// thread of the runtime, which goes on with all else meanwhile: timers are too coarse.
    pub async fn wait(&mut self, waiting: impl Fn() -> usize) {
        let until = self.done + (self.done - self.sent).saturating_mul(2).min(TIME_MAX);
        let (first, mut there, mut since) = (waiting(), waiting(), Instant::now());
        if there >= self.expected || since >= until || !self.backoff.is_time() {
            return;
        }
        while there < self.expected && since.elapsed() < GAP && Instant::now() < until {
            thread::yield_now();
            task::yield_now().await;
            if waiting() > there {
                (there, since) = (waiting(), Instant::now());
            }
        }
        // Others come as well, whenever they like: worth it is a wait for those who were expected.
        self.backoff.note((there - first) * 2 >= self.expected - first);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Just after some that took long.
    fn after(expected: usize) -> Gathering {
        let mut gathering = Gathering::new();
        // However long the machine takes until it is looked.
        gathering.done(expected, Instant::now() + Duration::from_secs(3600));
        gathering
    }

    /// How often it is looked who waits, where nobody comes. Twice is a look without a wait.
    async fn looks(gathering: &mut Gathering) -> u32 {
        let looks = Cell::new(0);
        let count = || {
            looks.set(looks.get() + 1);
            1
        };
        gathering.wait(count).await;
        looks.get()
    }

    #[tokio::test]
    async fn those_who_were_answered_together_are_waited_for() {
        // A stall of the machine is longer than the next request is waited for.
        for _ in 0..100 {
            let (waiting, mut gathering) = (Cell::new(1), after(5));
            let come = async {
                while waiting.get() < 5 {
                    waiting.set(waiting.get() + 1);
                    task::yield_now().await;
                }
            };
            let gathered = async {
                gathering.wait(|| waiting.get()).await;
                waiting.get()
            };
            let (gathered, ()) = tokio::join!(biased; gathered, come);
            if gathered == 5 {
                return;
            }
        }
        panic!("they were not waited for");
    }

    #[tokio::test]
    async fn a_lone_client_is_not_held_up() {
        for expected in [0, 1] {
            assert_eq!(looks(&mut after(expected)).await, 2);
        }
    }

    #[tokio::test]
    async fn who_does_not_come_is_not_waited_for_again_and_again() {
        let mut gathering = after(2);
        gathering.backoff.note(false);
        assert_eq!(looks(&mut gathering).await, 2, "after a wait in vain");
        looks(&mut gathering).await;
        assert!(!gathering.backoff.is_time(), "the next one was in vain as well");
    }

    #[tokio::test]
    async fn after_a_while_nobody_is_waited_for() {
        let mut gathering = after(2);
        gathering.done = gathering.sent;
        assert_eq!(looks(&mut gathering).await, 2);
    }
}
