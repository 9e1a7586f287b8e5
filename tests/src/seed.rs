//! Randomness that can be had again.

use rand::SeedableRng;
use rand::rngs::StdRng;

/// A source of randomness whose seed is printed; `TEST_SEED` in the environment gives it.
#[derive(Debug)]
pub struct Seed {
    /// The generator.
    pub random: StdRng,
}

impl Seed {
    /// A new one, or that of `TEST_SEED`.
    #[must_use]
    pub fn new() -> Self {
        let seed = match std::env::var("TEST_SEED") {
            Ok(text) => text.parse().expect("TEST_SEED is a number"),
            Err(_) => rand::random(),
        };
        eprintln!("random moments: run again with TEST_SEED={seed}");
        Seed { random: StdRng::seed_from_u64(seed) }
    }
}

impl Default for Seed {
    fn default() -> Self {
        Seed::new()
    }
}
