//! Signals: TERM, INT, QUIT and PWR end the daemon, HUP makes it read its certificates again.

use std::io;

use tokio::signal::unix::{self, SignalKind, signal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// With its name.
    End(&'static str),
    Reload,
}

pub(super) struct Signals {
    term: unix::Signal,
    int: unix::Signal,
    quit: unix::Signal,
    pwr: unix::Signal,
    hup: unix::Signal,
}

impl Signals {
    /// From now on these signals do not end the process by themselves.
    pub fn new() -> io::Result<Signals> {
        Ok(Signals {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            pwr: signal(SignalKind::from_raw(rustix::process::Signal::POWER.as_raw()))?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    /// The next signal.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.term.recv() => Signal::End("TERM"),
            _ = self.int.recv() => Signal::End("INT"),
            _ = self.quit.recv() => Signal::End("QUIT"),
            _ = self.pwr.recv() => Signal::End("PWR"),
            _ = self.hup.recv() => Signal::Reload,
        }
    }

    /// The next signal that ends the daemon: nothing can be read again before it is up.
    pub async fn next_end(&mut self) -> &'static str {
        loop {
            if let Signal::End(name) = self.next().await {
                return name;
            }
        }
    }
}
