//! Periodic looks that happen at the same moments. Waking costs an idle process more than what it then does: it is woken once for all of them.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// When the first one was waited for.
static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Done at the next multiple of `interval` since this process has begun to look: after less than that, or just as long. By the system's clock, also where a
/// test has tokio's stand still.
pub(crate) async fn due(interval: Duration) {
    let begun = *BEGUN;
    let due = begun + next(begun.elapsed(), interval);
    tokio::time::sleep_until(due.into()).await;
}

/// The first multiple of `interval` after `elapsed`.
fn next(elapsed: Duration, interval: Duration) -> Duration {
    let whole = u32::try_from(elapsed.as_nanos() / interval.as_nanos());
    interval.saturating_mul(whole.map_or(u32::MAX, |whole| whole.saturating_add(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_of_all_intervals_meet_at_their_common_multiples() {
        let (second, two) = (Duration::from_secs(1), Duration::from_secs(2));
        let at = |elapsed| {
            let elapsed = Duration::from_millis(elapsed);
            (next(elapsed, second).as_millis(), next(elapsed, two).as_millis())
        };
        assert_eq!(at(0), (1_000, 2_000));
        assert_eq!(at(1), (1_000, 2_000));
        assert_eq!(at(1_000), (2_000, 2_000));
        assert_eq!(at(1_999), (2_000, 2_000));
        assert_eq!(at(2_500), (3_000, 4_000));
    }
}
