//! Who may come in: strangers cannot take the places of members, and stalled handshakes hold up nobody.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::limits::Limits;

/// The connections of one listener.
pub(super) struct Places {
    known: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
}

/// The TLS handshakes of one listener.
pub(super) struct Handshakes {
    max: usize,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    /// The number of the next one.
    next: u64,
    /// By number, oldest first.
    tokens: VecDeque<(u64, CancellationToken)>,
}

/// A handshake that runs.
pub(super) struct Handshake {
    number: u64,
    ended: CancellationToken,
    all: Arc<Handshakes>,
}

impl Places {
    pub fn new(limits: &Limits) -> Places {
        Places {
            known: Arc::new(Semaphore::new(limits.connections)),
            strangers: Arc::new(Semaphore::new(limits.strangers)),
        }
    }

    /// A place for one more connection, if there is one.
    pub fn take(&self, is_stranger: bool) -> Option<OwnedSemaphorePermit> {
        let places = if is_stranger { &self.strangers } else { &self.known };
        places.clone().try_acquire_owned().ok()
    }

    /// Waits for a place for somebody who is no stranger.
    pub async fn wait(&self) -> Option<OwnedSemaphorePermit> {
        self.known.clone().acquire_owned().await.ok()
    }
}

impl Handshakes {
    pub fn new(limits: &Limits) -> Arc<Handshakes> {
        Arc::new(Handshakes { max: limits.handshakes, running: Mutex::default() })
    }

    /// Counts one more. Where there are too many the oldest has to end.
    pub fn begin(self: &Arc<Self>) -> Handshake {
        let mut running = self.lock();
        while running.tokens.len() >= self.max {
            if let Some((_, oldest)) = running.tokens.pop_front() {
                oldest.cancel();
            }
        }
        let (number, ended) = (running.next, CancellationToken::new());
        running.next += 1;
        running.tokens.push_back((number, ended.clone()));
        Handshake { number, ended, all: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        // What the mutex holds is valid at every moment, also if a holder panicked.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handshake {
    /// Done when newer ones need the place.
    pub async fn crowded_out(&self) {
        self.ended.cancelled().await;
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut running = self.all.lock();
        if let Ok(place) = running.tokens.binary_search_by_key(&self.number, |(number, _)| *number) {
            running.tokens.remove(place);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn strangers_do_not_take_the_places_of_members() {
        let places = Places::new(&Limits { connections: 2, strangers: 1, ..Limits::default() });
        let stranger = places.take(true).unwrap();
        assert!(places.take(true).is_none());
        let members = [places.take(false).unwrap(), places.take(false).unwrap()];
        assert!(places.take(false).is_none() && places.take(true).is_none());
        drop(stranger);
        assert!(places.take(false).is_none() && places.take(true).is_some());
        drop(members);
        assert!(places.wait().now_or_never().unwrap().is_some());
    }

    #[test]
    fn the_oldest_handshake_makes_room() {
        let handshakes = Handshakes::new(&Limits { handshakes: 2, ..Limits::default() });
        let is_out = |handshake: &Handshake| handshake.crowded_out().now_or_never().is_some();
        let (first, second) = (handshakes.begin(), handshakes.begin());
        assert!(!is_out(&first) && !is_out(&second));
        let third = handshakes.begin();
        assert!(is_out(&first) && !is_out(&second) && !is_out(&third));
        // One that is done leaves its place.
        drop((first, second));
        let fourth = handshakes.begin();
        assert!(!is_out(&third) && !is_out(&fourth));
        drop((third, fourth));
        assert!(handshakes.lock().tokens.is_empty());
    }
}
