//! Waiting for a moment that passes quickly. Waiting for a condition is in the test kit of products.

use std::time::Duration;

/// How long anything may take in a test. Far above what is usual: a machine under load takes its time.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// Pause between two looks for a moment that passes quickly.
const MOMENT_INTERVAL: Duration = Duration::from_micros(500);

/// Runs `work` until it is done or a moment has come, whichever is first, and says what came of it if it is done.
///
/// # Panics
/// When neither is so after [`DEADLINE`].
pub async fn until<T, F: AsyncFnMut() -> bool>(work: impl Future<Output = T>, mut has_come: F) -> Option<T> {
    let moment = async {
        while !has_come().await {
            tokio::time::sleep(MOMENT_INTERVAL).await;
        }
    };
    let ended = async {
        tokio::select! {
            biased;
            () = moment => None,
            done = work => Some(done),
        }
    };
    tokio::time::timeout(DEADLINE, ended).await.expect("the work ends, or the moment comes")
}
