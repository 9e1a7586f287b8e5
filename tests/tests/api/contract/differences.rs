//! What our daemon answers otherwise than the Go daemon, and why.

use super::exchange::Found;

/// Exchanges that differ in the same way for the same reason.
pub(super) struct Difference {
    /// Which: patterns of `case`, `case: request` or `case: request#recorded status`.
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
pub(super) const DIFFERENCES: &[Difference] = &[
    // Codes: the Go daemon answers 500 for most mistakes, ours says whose mistake it is.
    Difference {
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
    },
    Difference {
        exchanges: &["preinit-control-no-addr", "init-control-badjson", "init-heartbeat-badjson"],
        ours: Ours::Status(400),
        reason: "a request that lacks something or cannot be read is the client's mistake",
    },
    Difference { exchanges: &["init-sql-error"], ours: Ours::Status(400), reason: "wrong SQL is the client's mistake" },
    Difference {
        exchanges: &["init-tokens-post-dup", "init-control-again"],
        ours: Ours::Status(409),
        reason: "a name that is taken and a daemon that is initialised already are conflicts",
    },
    Difference {
        exchanges: &["init-cluster-member-delete-missing"],
        ours: Ours::Status(404),
        reason: "a member that there is not is not found",
    },
    Difference {
        exchanges: &[
            "c2-join-bad-secret",
            "cluster-join-bad-secret",
            "self-join-bad-secret",
            "None-join-bad-secret",
            "join-missing-ext",
        ],
        ours: Ours::Status(404),
        reason: "the token is looked at first: without one nothing is told about versions, and an unknown one is 404",
    },
    Difference {
        exchanges: &["member-to-member: POST /core/internal/cluster#500"],
        ours: Ours::Status(403),
        reason: "the token of another name is no permission to join",
    },
    Difference {
        exchanges: &["preinit-database"],
        ours: Ours::Status(503),
        reason: "a daemon without a database says that it is not initialised, like everywhere else",
    },
    Difference {
        exchanges: &["cluster-heartbeat", "self-heartbeat", "None-heartbeat"],
        ours: Ours::Status(403),
        reason: "a heartbeat is for members, and that is checked first",
    },
    // What the Go daemon fails at and ours does.
    Difference {
        exchanges: &["init-heartbeat-empty", "c2-heartbeat"],
        ours: Ours::Status(200),
        reason: "a heartbeat without content is a hint that something has changed",
    },
    Difference {
        exchanges: &["init-sql-dump", "init-sql-dump-schema0"],
        ours: Ours::Status(200),
        reason: "the Go daemon fails to dump this database",
    },
    Difference {
        exchanges: &["init-sql-newline"],
        ours: Ours::Status(200),
        reason: "a query may begin with a line break",
    },
    Difference { exchanges: &["init-head-1.0"], ours: Ours::Status(200), reason: "HEAD is answered wherever GET is" },
    Difference {
        exchanges: &["init-options-1.0"],
        ours: Ours::Status(204),
        reason: "OPTIONS says in `Allow` what a path has",
    },
    // Content.
    Difference {
        exchanges: &["preinit-get-root"],
        ours: Ours::Content("metadata[0] is \"/core/1.0\""),
        reason: "the roots are those of the Core API; `/1.0` belongs to products, issue 5",
    },
    Difference {
        exchanges: &["init-sql-select", "init-sql-blob"],
        ours: Ours::Content("metadata.Results[0].rows[0]"),
        reason: "a blob is the text x'<hex>': as text the Go daemon damages it",
    },
    Difference {
        exchanges: &["init-sql-trailing"],
        ours: Ours::Status(400),
        reason: "what follows the JSON object is not passed over in silence",
    },
    Difference {
        exchanges: &["init-tokens-post-existing-member"],
        ours: Ours::Status(409),
        reason: "nobody could join by a token for the name of a member; it is told when the token is asked for",
    },
    Difference {
        exchanges: &["init-token-delete-c2"],
        ours: Ours::Status(404),
        reason: "the token for the name of a member was not made",
    },
    Difference {
        exchanges: &["init-tokens-get2"],
        ours: Ours::Content("metadata has 3 elements"),
        reason: "the token for the name of a member was not made",
    },
    Difference {
        exchanges: &["member-to-member: POST /core/internal/cluster#200"],
        ours: Ours::Content("metadata.member_id is added"),
        reason: "the joiner is told its Raft node id, taken from the log",
    },
    Difference {
        exchanges: &["init-hooks-bad", "c2-hooks"],
        ours: Ours::Status(404),
        reason: "a hook that there is not is not found",
    },
    // A later issue.
    Difference {
        exchanges: &["*-extended", "member-to-member: POST /1.0/extended"],
        ours: Ours::Status(404),
        reason: "issue 5: a resource of the example product, not of the reference daemon",
    },
];
