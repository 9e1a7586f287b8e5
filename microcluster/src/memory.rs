//! Gives memory back to the system once work is done.
//!
//! The C library keeps what a burst of clients has freed where something above it is still in use: after 256 clients that was a quarter of
//! what a daemon had resident. And of the program itself all that has ever run stays in the page tables, 64 KiB around each piece of it: of an idle
//! daemon's a fifth is code that only its start has run.

use std::future::Future;
use std::ops::Range;
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

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
    let pause = || tokio::time::sleep(INTERVAL);
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

/// Has the C library give back all pages that nothing lies in, and unmaps the code of the program and its libraries. What still runs comes back
/// from the page cache as it is run. It takes a few milliseconds.
#[allow(unsafe_code)]
fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // Without this file, as in a sandbox, the code stays where it is.
        for code in code(&std::fs::read_to_string("/proc/self/smaps").unwrap_or_default()) {
            // SAFETY: the pages are those of a file that is mapped read-only, and none has been changed: they are read from there again.
            unsafe {
                libc::madvise(code.start as *mut libc::c_void, code.len(), libc::MADV_DONTNEED);
            }
        }
        // SAFETY: it takes the allocator's own locks and moves nothing that is in use.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

/// Where the code of files is mapped, by the text of `/proc/PID/smaps`. One that has pages of its own is left out: a debugger has set a
/// breakpoint there.
#[cfg(any(test, all(target_os = "linux", target_env = "gnu")))]
fn code(smaps: &str) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    let mut is_code = false;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next()) {
            (Some("Anonymous:" | "Swap:"), Some(size)) if is_code && size != "0" => {
                is_code = false;
                found.pop();
            }
            (Some(field), _) if field.ends_with(':') => {}
            (Some(range), Some(permissions)) => {
                let (start, end) = range.split_once('-').unwrap_or_default();
                let ends = [start, end].map(|end| usize::from_str_radix(end, 16).ok());
                let is_file = words.nth(3).is_some_and(|path| path.starts_with('/'));
                is_code = permissions == "r-xp" && is_file;
                if let ([Some(start), Some(end)], true) = (ends, is_code) {
                    found.push(start..end);
                }
            }
            _ => {}
        }
    }
    found
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

    #[test]
    fn code_is_what_is_mapped_from_files_and_unchanged() {
        let smaps = "\
            1000-3000 r--p 00000000 fe:00 27 /usr/bin/d\nRss: 8 kB\nAnonymous: 0 kB\nSwap: 0 kB\n\
            3000-6000 r-xp 00002000 fe:00 27 /usr/bin/d\nRss: 12 kB\nAnonymous: 0 kB\nSwap: 0 kB\nVmFlags: rd ex mr\n\
            6000-7000 rw-p 00005000 fe:00 27 /usr/bin/d\nAnonymous: 4 kB\nSwap: 0 kB\n\
            7000-8000 r-xp 00000000 00:00 0 \nAnonymous: 0 kB\nSwap: 0 kB\n\
            9000-b000 r-xp 00000000 fe:00 28 /usr/lib/with a breakpoint.so\nAnonymous: 4 kB\nSwap: 4 kB\n\
            c000-d000 r-xp 00000000 fe:00 29 /usr/lib/with one swapped out.so\nAnonymous: 0 kB\nSwap: 4 kB\n\
            d000-f000 r-xp 00001000 fe:00 30 /usr/lib/libc.so.6 (deleted)\nAnonymous: 0 kB\nSwap: 0 kB\n\
            ff00-ff80 r-xp 00000000 00:00 0 [vdso]\nAnonymous: 0 kB\nSwap: 0 kB\n";
        assert_eq!(code(smaps), [0x3000..0x6000, 0xd000..0xf000]);
        assert_eq!(code("not\na-b r-xp\n1000-xyz r-xp 0 0 0 /a\nAnonymous: 4 kB\n"), []);
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    #[allow(unsafe_code)]
    fn code_that_does_not_run_is_not_resident() {
        const BYTES: usize = 1 << 20;
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, &[7; BYTES]).unwrap();
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(file.as_file());
        let protection = libc::PROT_READ | libc::PROT_EXEC;
        // SAFETY: a new mapping, of which nothing but the slice below is made.
        let mapped = unsafe { libc::mmap(std::ptr::null_mut(), BYTES, protection, libc::MAP_PRIVATE, descriptor, 0) };
        assert_ne!(mapped, libc::MAP_FAILED);
        // SAFETY: it is as long as that, readable, and stays mapped.
        let bytes = unsafe { std::slice::from_raw_parts(mapped.cast::<u8>(), BYTES) };
        let is_resident = || {
            let path = file.path().to_str().unwrap();
            let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let own = smaps.split_once(path).unwrap().1;
            !own.split_once("Rss:").unwrap().1.trim_start().starts_with("0 kB")
        };
        let is_whole = || bytes.iter().all(|byte| *byte == 7);
        assert!(is_whole() && is_resident());
        give_back();
        assert!(!is_resident());
        assert!(is_whole());
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
