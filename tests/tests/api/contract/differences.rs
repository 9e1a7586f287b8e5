//! What our daemon answers otherwise than the Go daemon, and why.

use super::exchange::Found;

/// Exchanges that differ in the same way for the same reason.
pub(super) struct Difference {
    /// Which: patterns of `case` or `case: request`.
    pub exchanges: &'static [&'static str],
    /// How.
    pub ours: Ours,
    /// Why.
    pub reason: &'static str,
}

/// How an answer differs from the recorded one.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ours {
    /// It has this status.
    Status(u16),
    /// It has the recorded status, and its content differs at the place that begins so.
    Content(&'static str),
}

impl Ours {
    pub fn is(self, found: &Found) -> bool {
        match (self, found) {
            (Ours::Status(listed), Found::Status { ours, .. }) => listed == *ours,
            (Ours::Content(listed), Found::Content(what)) => what.starts_with(listed),
            _ => false,
        }
    }
}

/// All of them. What is left to a later issue says so and goes away with it.
pub(super) const DIFFERENCES: &[Difference] = &[Difference {
    exchanges: &[
        "preinit-wrong-method",
        "preinit-wrong-method-control",
        "preinit-delete-control",
        "init-token-get",
        "init-sql-put",
        "init-shutdown-get",
    ],
    ours: Ours::Status(405),
    reason: "a method that a path does not have is 405 with `Allow`, not 501",
}];
