//! Asks members one after the other, and the next one too when one does not answer soon: it may be stopped or cut off.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

/// After how long without an answer the next one is asked beside the one that is asked.
pub(super) const PATIENCE: Duration = Duration::from_millis(250);

/// Members that are asked, or are to be.
pub(super) struct InTurn<T, F> {
    waiting: VecDeque<T>,
    asked: FuturesUnordered<F>,
    next_at: Instant,
}

impl<T, F: Future> InTurn<T, F> {
    pub fn new(waiting: impl IntoIterator<Item = T>) -> Self {
        InTurn { waiting: waiting.into_iter().collect(), asked: FuturesUnordered::new(), next_at: Instant::now() }
    }

    /// The next answer; none when all have answered. Who asks on sees to it that one answer too many does no harm.
    pub async fn next(&mut self, ask: impl Fn(T) -> F) -> Option<F::Output> {
        loop {
            if self.asked.is_empty() || Instant::now() >= self.next_at {
                self.asked.extend(self.waiting.pop_front().map(&ask));
                self.next_at = Instant::now() + PATIENCE;
            }
            tokio::select! {
                biased;
                Some(answer) = self.asked.next() => return Some(answer),
                () = tokio::time::sleep_until(self.next_at), if !self.waiting.is_empty() => {}
                else => return None,
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures_util::future::BoxFuture;

    use super::*;

    /// The first one says nothing, the second one refuses.
    fn answer(who: u32) -> BoxFuture<'static, u32> {
        Box::pin(async move { if who == 1 { std::future::pending().await } else { who } })
    }

    #[tokio::test]
    async fn who_says_nothing_is_not_waited_for() {
        let begun = Instant::now();
        let mut asked = InTurn::new([1, 2, 3]);
        assert_eq!(asked.next(answer).await, Some(2));
        assert!(begun.elapsed() >= PATIENCE);
        assert_eq!(asked.next(answer).await, Some(3));
        assert!(tokio::time::timeout(PATIENCE, asked.next(answer)).await.is_err(), "the first one may still answer");
        let mut asked = InTurn::new([2, 3]);
        assert_eq!(asked.next(answer).await, Some(2));
        assert_eq!((asked.asked.len(), asked.waiting.len()), (0, 1), "who answers is asked alone");
        assert_eq!((asked.next(answer).await, asked.next(answer).await), (Some(3), None));
    }
}
