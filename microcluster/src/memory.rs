//! Gives memory back to the system once work is done.
//!
//! The C library keeps what a burst of clients has freed where something above it is still in use: after 256 clients that was a quarter of
//! what a daemon had resident. And of the program itself all that has ever run stays in the page tables, 64 KiB around each piece of it:
//! some of that only the start of a daemon has run.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod code;

use std::future::Future;
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::looks;
use crate::tasks::blocking;

/// How often it is looked what the process does.
const INTERVAL: Duration = Duration::from_secs(2);
/// The processor time in an interval up to which the process counts as idle.
const IDLE_MAX: Duration = Duration::from_millis(60);
/// After how much processor time it is worth it again.
const WORK_MIN: Duration = Duration::from_millis(100);

/// Gives back what is free whenever the process has worked and is idle again, for as long as it is polled.
pub(crate) async fn give_back_after_work() {
    if !cfg!(all(target_os = "linux", target_env = "gnu")) {
        return;
    }
    let pause = || looks::due(INTERVAL);
    // Until then it may be less than an interval.
    pause().await;
    after_work(pause, processor_time, || async { drop(blocking("giving memory back", give_back).await) }).await;
}

async fn after_work<P: Future, G: Future>(
    pause: impl Fn() -> P,
    processor_time: impl Fn() -> Duration,
    give_back: impl Fn() -> G,
) {
    let (mut looked, mut given_back) = (processor_time(), Duration::ZERO);
    loop {
        pause().await;
        let now = processor_time();
        if now.saturating_sub(looked) <= IDLE_MAX && now.saturating_sub(given_back) >= WORK_MIN {
            give_back().await;
            given_back = processor_time();
        }
        looked = now;
    }
}

/// What the process has taken of the processors so far.
fn processor_time() -> Duration {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(tv_sec.cast_unsigned(), u32::try_from(tv_nsec).unwrap_or(0))
}

/// Has the C library give back all pages that nothing lies in, and unmaps the program's code and that of its libraries. What still runs comes
/// back from the page cache as it is run. It takes a few milliseconds.
fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        code::give_back();
        #[allow(unsafe_code)]
        // SAFETY: it takes the allocator's own locks and moves nothing that is in use.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    /// Looks at a process that has taken so much processor time each time, in milliseconds; after which looks memory is given back.
    async fn given_back_at(times: &[u64]) -> Vec<usize> {
        let (look, given) = (Cell::new(0), RefCell::new(Vec::new()));
        let pause = || {
            look.set(look.get() + 1);
            let is_over = look.get() == times.len();
            async move {
                if is_over {
                    std::future::pending::<()>().await;
                }
            }
        };
        let time = || Duration::from_millis(times[look.get()]);
        let give = || {
            given.borrow_mut().push(look.get());
            async {}
        };
        let done = tokio::time::timeout(Duration::from_millis(1), after_work(pause, time, give)).await;
        assert!(done.is_err(), "it goes on");
        given.into_inner()
    }

    #[tokio::test]
    async fn memory_is_given_back_once_work_is_over() {
        assert_eq!(given_back_at(&[150, 152, 154, 156]).await, [1], "after the start");
        assert_eq!(given_back_at(&[150, 152, 900, 1900, 1950, 1955]).await, [1, 4], "not while it works");
        assert_eq!(given_back_at(&[10, 12, 14]).await, [0_usize; 0], "it has done next to nothing");
        assert_eq!(given_back_at(&[150, 160, 210, 260, 262]).await, [1, 3], "little by little");
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn what_is_free_between_what_is_in_use_is_given_back() {
        const BLOCKS: usize = 100_000;
        let resident = || {
            let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
            pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
        };
        let mut blocks: Vec<_> = (0..BLOCKS).map(|n| Some(vec![n as u8; 1_000])).collect();
        let full = resident();
        for (n, block) in blocks.iter_mut().enumerate() {
            if n % 100 != 0 {
                *block = None;
            }
        }
        give_back();
        let now = resident();
        // Half of it, for other tests need memory too.
        assert!(now + BLOCKS * 500 < full, "{full} bytes before, {now} now");
        assert!(blocks.iter().flatten().all(|block| block.len() == 1_000));
    }
}
