//! What is said of each handler: summary, parameters, body, answer, errors of its own.

use std::collections::BTreeMap;

use microcluster_client::{
    ControlRequest, DaemonConfig, DaemonConfigUpdate, DaemonStatus, Empty, KeyPair, Member, Name, Secret, ServerConfig,
    ServerStatus, SqlDump, SqlRequest, SqlResults, TokenRecord, TokenRequest, Verification,
};
use schemars::{JsonSchema, Schema, SchemaGenerator};

/// What the route table does not say of an operation.
pub(super) struct Operation {
    /// The name of its handler.
    pub id: &'static str,
    /// The part of the API that it belongs to.
    pub tag: &'static str,
    pub summary: &'static str,
    /// More than fits into the summary.
    pub details: &'static str,
    /// What may stand in the query, beside `target`.
    pub query: &'static [Query],
    pub body: Option<Type>,
    pub answer: Answer,
    /// Codes and reasons, beside those that every route of its kind has.
    pub errors: &'static [(u16, &'static str)],
}

/// What may stand in the query.
pub(super) struct Query {
    pub name: &'static str,
    pub description: &'static str,
    /// It is set or not; any text otherwise.
    pub is_flag: bool,
}

/// The schema of a type.
pub(super) type Type = fn(&mut SchemaGenerator) -> Schema;

/// What a success is answered with.
pub(super) enum Answer {
    /// This, in the envelope.
    Enveloped(Type),
    /// A JSON object as it is.
    Raw(&'static str),
}

/// The parts of the API, in the order in which they are described.
pub(super) const TAGS: &[(&str, &str)] = &[
    ("daemon", "One daemon: what it is, whether it is ready, its configuration."),
    ("cluster", "The members of the cluster."),
    ("certificates", "The certificates of the cluster and of additional servers."),
    ("tokens", "Join tokens: a machine joins with one."),
    ("control", "What is done to a daemon over its control socket alone: bootstrap, join, shutdown."),
    ("database", "The replicated database."),
];

/// All that is described.
pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        answer: of::<Vec<String>>(),
        ..Operation::new("roots_list", "daemon", "List the roots of the APIs", "Where the paths of each API begin.")
    },
    Operation {
        answer: of::<ServerStatus>(),
        ..Operation::new(
            "server_show",
            "daemon",
            "Show what the daemon is",
            "Anybody may ask. `ready` says whether it is a member of a cluster and has started.",
        )
    },
    Operation {
        answer: Answer::Raw("This description, OpenAPI 3.1, without the envelope."),
        ..Operation::new("description_show", "daemon", "Show the description of the API", "The same on every daemon.")
    },
    Operation {
        errors: &[(503, "The daemon starts, joins, leaves or stops, or the cluster has no quorum.")],
        ..Operation::new(
            "ready_show",
            "daemon",
            "Show whether the daemon is ready",
            "A success once the start is done: on a member when it can do its work, on any other daemon when it can be initialised.",
        )
    },
    Operation {
        answer: of::<DaemonStatus>(),
        ..Operation::new(
            "status_show",
            "daemon",
            "Show how the member is",
            "Its role, who leads, whether there is a quorum, its replica of the database, and when its certificates expire.",
        )
    },
    Operation {
        answer: of::<DaemonConfig>(),
        ..Operation::new("config_show", "daemon", "Show the configuration of the daemon", "")
    },
    Operation {
        body: body::<DaemonConfigUpdate>(),
        errors: CONFIG_ERRORS,
        ..Operation::new(
            "config_replace",
            "daemon",
            "Replace the configuration of the daemon",
            "What is missing is cleared. It is in force, and on disk, when this is answered.",
        )
    },
    Operation {
        body: body::<DaemonConfigUpdate>(),
        errors: CONFIG_ERRORS,
        ..Operation::new(
            "config_change",
            "daemon",
            "Change the configuration of the daemon",
            "What is missing stays; `{}` or 0 clears. It is in force, and on disk, when this is answered.",
        )
    },
    Operation {
        answer: of::<BTreeMap<Name, ServerConfig>>(),
        ..Operation::new(
            "servers_list",
            "daemon",
            "List the additional servers",
            "Where each of them listens, by name.",
        )
    },
    Operation {
        body: body::<BTreeMap<Name, ServerConfig>>(),
        errors: CONFIG_ERRORS,
        ..Operation::new(
            "servers_replace",
            "daemon",
            "Replace the additional servers",
            "The servers of the product by name; those that are missing listen where the product says.",
        )
    },
    Operation {
        answer: of::<Vec<Member>>(),
        ..Operation::new(
            "members_list",
            "cluster",
            "List the members",
            "Each with its live `status`: all are asked at the same time, and one that does not answer holds up nobody for long.",
        )
    },
    Operation {
        answer: of::<Member>(),
        errors: &[(404, "There is no member of that name.")],
        ..Operation::new("member_show", "cluster", "Show one member", "")
    },
    Operation {
        query: &[
            Query {
                name: "force",
                description: "`1` or `true`: remove it even when it cannot be reached. A member that is only cut off forgets the cluster when it is back.",
                is_flag: true,
            },
            Query {
                name: "address",
                description: "The cluster address that the member is to have; it is not removed when it has another one.",
                is_flag: false,
            },
        ],
        errors: &[
            (400, "The address in the query is none."),
            (404, "There is no member of that name, or it has another address than the one that is given."),
            (409, "It is the only member, or of the members that would be left to vote no majority answers."),
            (503, "It cannot be reached, and `force` is not given."),
        ],
        ..Operation::new(
            "member_remove",
            "cluster",
            "Remove a member",
            "Itself and the leader included. The removed daemon forgets the cluster, and can join again.",
        )
    },
    Operation {
        body: body::<KeyPair>(),
        errors: &[
            (400, "The pair cannot be used: no PEM, a key that does not fit, expired, not signed by the authority."),
            (409, "`server`, and the daemon is a member already."),
        ],
        ..Operation::new(
            "certificate_set",
            "certificates",
            "Replace a certificate",
            "`cluster`, the name of an additional server, or before initialisation `server`, the daemon's own. On all members, without a restart; a member that is down has it when it is back.",
        )
    },
    Operation {
        answer: of::<Vec<TokenRecord>>(),
        ..Operation::new("tokens_list", "tokens", "List the join tokens", "Those that were not used, by name.")
    },
    Operation {
        body: body::<TokenRequest>(),
        answer: of::<Secret>(),
        errors: &[(409, "There is a token or a member of that name.")],
        ..Operation::new(
            "token_add",
            "tokens",
            "Make a join token",
            "For one machine, under one name, used once. `expire_after` in nanoseconds; 0 for never.",
        )
    },
    Operation {
        errors: &[(404, "There is no token of that name.")],
        ..Operation::new("token_revoke", "tokens", "Revoke a join token", "")
    },
    Operation {
        body: body::<ControlRequest>(),
        errors: &[
            (400, "Something is missing, too much, or cannot be used: name, address, token."),
            (403, "The token expired, is for another name, or the server at its address is not of its cluster."),
            (404, "The cluster does not know the token: it was used or revoked."),
            (409, "The daemon is initialised already, the name or the address is taken, or the versions differ."),
            (503, "No member can be reached, or the daemon is busy. Nothing was changed."),
            (504, "The join takes long and goes on, or nobody can tell whether it was done."),
        ],
        ..Operation::new(
            "daemon_initialise",
            "control",
            "Bootstrap a cluster or join one",
            "Either `bootstrap` or `join_token`, with the name and the cluster address of the new member. Answered when it is a member. After an error it is none, and can be initialised again.",
        )
    },
    Operation::new("daemon_shutdown", "control", "Stop the daemon", "It answers, then stops and ends its process."),
    Operation {
        answer: of::<Verification>(),
        errors: &[(503, "Too few members can be reached."), (504, "The comparison took too long.")],
        ..Operation::new(
            "database_verify",
            "database",
            "Compare what the members hold",
            "At one index of the log. A member that differs from most is rebuilt from the others.",
        )
    },
    Operation {
        query: &[Query { name: "schema", description: "`1` or `true`: the schema alone.", is_flag: true }],
        answer: of::<SqlDump>(),
        errors: &[(413, "The database is too large for one answer.")],
        ..Operation::new("database_dump", "database", "Show the database as SQL", "Statements that restore it.")
    },
    Operation {
        body: body::<SqlRequest>(),
        answer: of::<SqlResults>(),
        errors: &[
            (400, "Wrong SQL, SQL that is not allowed here, or parameters that do not fit."),
            (409, "A unique constraint, or a conflict with another transaction."),
            (413, "The result is too large."),
            (503, "No quorum, or too much waits already. Nothing was done."),
            (504, "Gave up waiting; whether it was done is unknown."),
        ],
        ..Operation::new(
            "statements_run",
            "database",
            "Run SQL",
            "All statements of a request are one atomic transaction. Integers are exact to 64 bits, a blob is the text `x'…'`.",
        )
    },
];

const CONFIG_ERRORS: &[(u16, &str)] = &[
    (404, "The daemon has no server of that name."),
    (409, "The name or the address of a member is fixed, or two servers cannot have one address."),
];

impl Operation {
    const fn new(id: &'static str, tag: &'static str, summary: &'static str, details: &'static str) -> Operation {
        Operation { id, tag, summary, details, query: &[], body: None, answer: of::<Empty>(), errors: &[] }
    }
}

const fn of<T: JsonSchema>() -> Answer {
    Answer::Enveloped(schema::<T>)
}

const fn body<T: JsonSchema>() -> Option<Type> {
    Some(schema::<T>)
}

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}
