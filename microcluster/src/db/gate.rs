//! Who holds SQLite's write lock: the writer thread, which comes first, or one closure of an interactive
//! transaction, which is put out when it makes the writer wait.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the writer thread lets a closure finish before it puts it out.
const GRACE: Duration = Duration::from_millis(20);
/// How long a closure may keep other closures waiting before one of them puts it out.
const TURN: Duration = Duration::from_millis(200);

/// Somebody who holds the write lock and can be made to give it up.
pub(crate) trait Preemptible: Send + Sync {
    /// Rolls the holder's transaction back. The write lock is free when this returns.
    fn preempt(&self);
}

/// The lock itself.
#[derive(Default)]
pub(crate) struct WriteGate {
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Default)]
struct State {
    holder: Option<Holder>,
    /// Counts entries, so that a guard knows whether what it releases is still its own.
    entered: u64,
    writer_waits: bool,
}

enum Holder {
    Writer,
    Closure(Arc<dyn Preemptible>),
}

/// Holds the gate until dropped, or until preempted.
pub(crate) struct Entered<'a> {
    gate: &'a WriteGate,
    ticket: u64,
}

impl WriteGate {
    /// Enters as the writer thread. Never waits longer than the grace and one rollback.
    pub fn enter_as_writer(&self) -> Entered<'_> {
        let mut state = self.lock();
        state.writer_waits = true;
        while let Some(holder) = &state.holder {
            let Holder::Closure(closure) = holder else {
                state = self.released.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let (closure, ticket) = (Arc::clone(closure), state.entered);
            let held = |state: &mut State| state.holder.is_some() && state.entered == ticket;
            (state, _) = self.released.wait_timeout_while(state, GRACE, held).unwrap_or_else(PoisonError::into_inner);
            if held(&mut state) {
                drop(state);
                closure.preempt();
                state = self.lock();
                if held(&mut state) {
                    state.holder = None;
                }
            }
        }
        state.writer_waits = false;
        self.take(state, Holder::Writer)
    }

    /// Enters as a closure; `None` if that took longer than `limit`. A closure that stays is put out when its turn is over.
    pub fn enter_as_closure(&self, closure: Arc<dyn Preemptible>, limit: Duration) -> Option<Entered<'_>> {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        let mut seen = (state.entered, Instant::now());
        while state.holder.is_some() || state.writer_waits {
            if state.entered != seen.0 {
                seen = (state.entered, Instant::now());
            }
            if let (Some(Holder::Closure(other)), true) = (&state.holder, seen.1.elapsed() >= TURN) {
                let other = Arc::clone(other);
                drop(state);
                other.preempt();
                state = self.lock();
                if state.entered == seen.0 {
                    state.holder = None;
                }
                continue;
            }
            let left = deadline.checked_duration_since(Instant::now())?.min(TURN);
            (state, _) = self.released.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
        Some(self.take(state, Holder::Closure(closure)))
    }

    fn take(&self, mut state: MutexGuard<'_, State>, holder: Holder) -> Entered<'_> {
        state.holder = Some(holder);
        state.entered += 1;
        Entered { gate: self, ticket: state.entered }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What the mutex holds is valid at every moment, also if a holder panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        if state.entered == self.ticket {
            state.holder = None;
        }
        drop(state);
        self.gate.released.notify_all();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[derive(Default)]
    struct Closure(AtomicBool);

    impl Preemptible for Closure {
        fn preempt(&self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn the_writer_puts_out_a_closure_that_stays() {
        let gate = WriteGate::default();
        let closure = Arc::new(Closure::default());
        let entered = gate.enter_as_closure(closure.clone(), Duration::ZERO).unwrap();
        let writer = gate.enter_as_writer();
        assert!(closure.0.load(Ordering::SeqCst));
        drop(entered);
        // The closure's late release must not open the gate that the writer holds now.
        assert!(gate.enter_as_closure(Arc::new(Closure::default()), Duration::from_millis(1)).is_none());
        drop(writer);
        assert!(gate.enter_as_closure(closure, Duration::ZERO).is_some());
    }

    #[test]
    fn a_closure_whose_turn_is_over_is_put_out_by_one_that_waits() {
        let gate = WriteGate::default();
        let closures = [(); 2].map(|()| Arc::new(Closure::default()));
        let stays = gate.enter_as_closure(closures[0].clone(), Duration::ZERO).unwrap();
        let entered = gate.enter_as_closure(closures[1].clone(), 20 * TURN).unwrap();
        assert!(closures[0].0.load(Ordering::SeqCst));
        drop(stays);
        assert!(gate.enter_as_closure(closures[0].clone(), Duration::ZERO).is_none(), "the second one holds it");
        drop(entered);
    }

    #[test]
    fn a_closure_that_leaves_in_time_is_left_alone() {
        let gate = Arc::new(WriteGate::default());
        let closure = Arc::new(Closure::default());
        let entered = gate.enter_as_closure(closure.clone(), Duration::ZERO).unwrap();
        let other = Arc::clone(&gate);
        let writer = std::thread::spawn(move || drop(other.enter_as_writer()));
        drop(entered);
        writer.join().unwrap();
        assert!(!closure.0.load(Ordering::SeqCst));
    }
}
