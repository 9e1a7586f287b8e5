//! Since when a member is asked in vain, and how long one that says nothing is waited for.
//!
//! A leader asks all others all the time, by its heartbeats. So it knows of a silent one at once, and nobody has to wait to find out
//! what is known; only one that was heard a moment ago has to be waited for.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// For how long nobody waits again for a member that was waited for in vain: one change asks several times.
const MEMORY: Duration = Duration::from_secs(1);

/// How long a member that says nothing is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patience {
    /// Since it was asked for the first time after it was last heard, whoever has asked, whatever it has answered.
    pub silence: Duration,
    /// In any case, from now on: it may be back, and may need that for a handshake.
    pub least: Duration,
}

/// What is known of one member.
#[derive(Debug, Default)]
pub(super) struct Hearing(Mutex<Silence>);

#[derive(Debug, Default)]
struct Silence {
    /// When it was asked for the first time since it was last heard.
    asked: Option<Instant>,
    /// When somebody has last waited for it in vain since then.
    given_up: Option<Instant>,
}

impl Hearing {
    /// It is asked something.
    pub fn ask(&self, now: Instant) {
        self.lock().asked.get_or_insert(now);
    }

    /// It says something.
    pub fn hear(&self) {
        *self.lock() = Silence::default();
    }

    /// Somebody has waited for it in vain.
    pub fn give_up(&self, now: Instant) {
        let mut silence = self.lock();
        silence.given_up = silence.asked.map(|_| now);
    }

    /// Whether it has been asked in vain for so long.
    pub fn is_silent(&self, limit: Duration, now: Instant) -> bool {
        self.lock().asked.is_some_and(|asked| now.saturating_duration_since(asked) >= limit)
    }

    /// Until when who began to wait at `begun` is to wait on, if nothing is heard.
    pub fn deadline(&self, patience: Patience, begun: Instant, now: Instant) -> Instant {
        let silence = self.lock();
        let is_recent = |given_up: Instant| begun.saturating_duration_since(given_up) < MEMORY;
        let least = if silence.given_up.is_some_and(is_recent) { Duration::ZERO } else { patience.least };
        (silence.asked.unwrap_or(now) + patience.silence).max(begun + least)
    }

    fn lock(&self) -> MutexGuard<'_, Silence> {
        // What the mutex holds is valid at every moment, also if a holder panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { silence: Duration::from_millis(500), least: Duration::from_millis(200) };

    #[test]
    fn who_was_heard_a_moment_ago_is_waited_for() {
        let (hearing, now) = (Hearing::default(), Instant::now());
        assert_eq!(hearing.deadline(PATIENCE, now, now), now + PATIENCE.silence, "never asked");
        hearing.ask(now);
        let later = now + Duration::from_millis(400);
        hearing.ask(later);
        assert_eq!(
            hearing.deadline(PATIENCE, later, later),
            later + PATIENCE.least,
            "asked for a while, so not much longer"
        );
        hearing.hear();
        assert_eq!(hearing.deadline(PATIENCE, later, later), later + PATIENCE.silence);
    }

    #[test]
    fn who_is_known_to_be_silent_is_waited_for_once() {
        let (hearing, begun) = (Hearing::default(), Instant::now());
        hearing.ask(begun);
        let now = begun + Duration::from_secs(10);
        assert!(hearing.is_silent(PATIENCE.silence, now) && !hearing.is_silent(PATIENCE.silence, begun));
        assert_eq!(hearing.deadline(PATIENCE, now, now), now + PATIENCE.least, "it may be back");
        hearing.give_up(now);
        assert!(hearing.deadline(PATIENCE, now, now) <= now);
        let later = now + MEMORY;
        assert_eq!(hearing.deadline(PATIENCE, later, later), later + PATIENCE.least);
        hearing.hear();
        assert!(!hearing.is_silent(PATIENCE.silence, now));
        hearing.give_up(now);
        assert_eq!(
            hearing.deadline(PATIENCE, now, now),
            now + PATIENCE.silence,
            "it has spoken: there is nothing to give up"
        );
    }
}
