//! Steps of a bootstrap, a join and a removal at which the test kit has a daemon stand still: it is killed there, and nowhere near.
//!
//! A test writes the name of a step into the file [`HOLD`] of a state directory. The process that comes there renames it to
//! [`HELD`] and stops itself; it goes on when it is continued and that file is gone. A daemon that is built without the feature
//! `test-util` has nothing of this.

use std::path::Path;

/// Which step is waited for.
#[cfg(feature = "test-util")]
pub(crate) const HOLD: &str = "hold-at";
/// That it was reached.
#[cfg(feature = "test-util")]
pub(crate) const HELD: &str = "held-at";

/// A step is done, and the next one is not begun.
#[cfg(feature = "test-util")]
pub(crate) fn reached(step: &str, state_dir: &Path) {
    use std::fs;
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    let (hold, held) = (state_dir.join(HOLD), state_dir.join(HELD));
    if !fs::read_to_string(&hold).is_ok_and(|wanted| wanted == step) || fs::rename(&hold, &held).is_err() {
        return;
    }
    tracing::info!(step, "standing still for a test");
    if let Err(e) = kill_process(getpid(), Signal::STOP) {
        tracing::error!(error = %e, "the process cannot be stopped");
    }
    // The signal stops the threads one after the other: this one must not get ahead meanwhile.
    while held.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A step is done, and the next one is not begun.
#[cfg(not(feature = "test-util"))]
pub(crate) fn reached(_step: &str, _state_dir: &Path) {}
