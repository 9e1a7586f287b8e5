//! Waiting for a condition: the only place where a test lets time pass.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// How long a condition may take to hold. Far above what is usual: a machine under load takes its time.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// Pause between two looks.
const INTERVAL: Duration = Duration::from_millis(10);

/// Waits until `condition` is `Ok` and returns what it holds.
///
/// # Panics
/// After [`DEADLINE`], with what was waited for and the last reason why it was not there.
pub async fn eventually<T, E: Display, F: AsyncFnMut() -> Result<T, E>>(what: &str, mut condition: F) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match condition().await {
            Ok(held) => return held,
            Err(reason) if Instant::now() >= deadline => {
                panic!("{what}: not within {} s; the last time: {reason}", DEADLINE.as_secs())
            }
            Err(_) => tokio::time::sleep(INTERVAL).await,
        }
    }
}

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
