//! Daemons that stand still when a step of a bootstrap, a join or a removal is done, to be killed there and nowhere near.

use std::fs;
use std::io;
use std::pin::pin;
use std::time::Duration;

use rustix::process::Signal;

use crate::{Daemon, eventually};

/// Where the name of the step is put, and where it is once the daemon stands still there.
const HOLD: &str = "hold-at";
const HELD: &str = "held-at";
/// How long the step is waited for once the work is done.
const HELD_DELAY_MAX: Duration = Duration::from_secs(5);

/// For daemons that are [`Daemon::steppable`].
impl Daemon {
    /// Has it stand still once this step is done, the next time.
    pub fn hold_at(&self, step: &str) {
        // In one step: it may look at any time.
        let new = self.dir().join("hold-at.new");
        fs::write(&new, step).and_then(|()| fs::rename(&new, self.dir().join(HOLD))).expect("the step");
    }

    /// Whether it stands still at its step: the whole process, so nothing of it gets further.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.is_running() && self.dir().join(HELD).exists() && self.is_stopped()
    }

    /// Has it go on where it stands still, and stand still nowhere from now on. It may have been killed.
    pub fn release(&self) {
        for file in [HOLD, HELD] {
            match fs::remove_file(self.dir().join(file)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => panic!("{file}: {e}"),
                _ => {}
            }
        }
        if self.is_running() && self.is_stopped() {
            self.signal(Signal::CONT);
        }
    }

    /// Whether its process is stopped.
    fn is_stopped(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process_id())).unwrap_or_default();
        // The state follows the name, which is in parentheses and may be anything.
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
    }
}

/// Runs `work` until one of the daemons stands still at the step. Says which one, and what came of the work if it was done before;
/// none when the work was done and nobody has come to that step. The others still wait for it: see [`Daemon::release`].
///
/// # Panics
/// When neither happens.
pub async fn until_held<T>(
    daemons: &[&Daemon],
    step: &str,
    work: impl Future<Output = T>,
) -> Option<(usize, Option<T>)> {
    daemons.iter().for_each(|daemon| daemon.hold_at(step));
    let what = format!("somebody comes to the step {step:?}");
    let held = eventually(&what, async || daemons.iter().position(|daemon| daemon.is_held()).ok_or("nobody has"));
    let (mut held, mut work) = (pin!(held), pin!(work));
    tokio::select! {
        place = &mut held => Some((place, None)),
        done = &mut work => {
            let place = tokio::time::timeout(HELD_DELAY_MAX, held).await.ok()?;
            Some((place, Some(done)))
        }
    }
}
