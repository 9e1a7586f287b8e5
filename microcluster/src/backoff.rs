//! Trying less and less what is in vain.

/// So many occasions are let go by at most.
const PAUSE_MAX: u32 = 64;

/// Whether it is time for another try: at each occasion as long as tries are worth it, after pauses that double where they are not.
#[derive(Debug)]
pub(crate) struct Backoff {
    /// So many occasions are let go by.
    pause: u32,
    /// And so many after the next try in vain.
    next: u32,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { pause: 0, next: 1 }
    }
}

impl Backoff {
    /// At an occasion: whether to try.
    pub fn is_time(&mut self) -> bool {
        let is_time = self.pause == 0;
        self.pause = self.pause.saturating_sub(1);
        is_time
    }

    /// What the try has come to.
    pub fn note(&mut self, was_worth_it: bool) {
        if was_worth_it {
            *self = Backoff::default();
        } else {
            self.pause = self.next;
            self.next = (self.next * 2).min(PAUSE_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often it is tried at so many occasions, each time with the same end.
    fn tries(backoff: &mut Backoff, occasions: u32, was_worth_it: bool) -> u32 {
        let mut tries = 0;
        for _ in 0..occasions {
            if backoff.is_time() {
                backoff.note(was_worth_it);
                tries += 1;
            }
        }
        tries
    }

    #[test]
    fn what_is_in_vain_is_tried_less_and_less() {
        let mut backoff = Backoff::default();
        assert_eq!(tries(&mut backoff, 100, true), 100);
        // After pauses of 1, 2, 4 … 32.
        assert_eq!(tries(&mut backoff, 70, false), 7);
        assert_eq!(tries(&mut backoff, 65 * 3, false), 3);
        assert_eq!(tries(&mut backoff, 64, true), 0);
        assert_eq!(tries(&mut backoff, 10, true), 10, "one success is enough");
    }
}
