//! Randomness that can be had again.

/// Seeds for so many rounds, other ones each time; or the one that `TEST_SEED` gives.
pub fn seeds(rounds: usize) -> Vec<u64> {
    match std::env::var("TEST_SEED") {
        Ok(text) => vec![text.parse().unwrap()],
        Err(_) => (0..rounds).map(|_| rand::random()).collect(),
    }
}
