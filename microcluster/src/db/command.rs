//! What a log entry says, and what applying it answers: requests, statements, values, outcomes.
//!
//! Everything here is written to the log and sent between members, so the encoding carries a version
//! and a member refuses one that it does not know.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::raft_types::Command;
use super::transaction::Parameters;

/// The version of the encoding of [`Batch`].
const BATCH_VERSION: u8 = 1;
/// What a value takes beside its text or bytes.
const VALUE_BYTES: usize = size_of::<Value>();
/// As [`BATCH_VERSION`], for an entry that is a [`Body::Mark`], so that it shows without decoding.
const MARK_VERSION: u8 = 2;

/// A value of SQLite's five storage classes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Value {
    /// `NULL`.
    Null,
    /// A signed 64-bit integer.
    Integer(i64),
    /// A double.
    Real(f64),
    /// Text.
    Text(String),
    /// Bytes.
    Blob(Vec<u8>),
}

/// One SQL statement with its bound parameters, for [`Database::batch`](super::Database::batch).
///
/// ```
/// use microcluster::db::Statement;
///
/// let statement = Statement::new("UPDATE account SET balance = balance - ?1 WHERE id = ?2").bind(5).bind(1);
/// # let _ = statement;
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Statement {
    /// The SQL text: exactly one statement.
    pub sql: String,
    /// The values of `?1`, `?2`, …
    pub parameters: Vec<Value>,
}

impl Statement {
    /// A statement without parameters.
    pub fn new(sql: impl Into<String>) -> Self {
        Statement { sql: sql.into(), parameters: Vec::new() }
    }

    /// A statement with all its parameters, with names or without.
    ///
    /// ```
    /// use microcluster::db::{Named, Statement};
    ///
    /// let sql = "UPDATE account SET balance = balance - :sum WHERE id = :id";
    /// let statement = Statement::with(sql, Named::new().bind(":id", 1)?.bind(":sum", 5)?)?;
    /// # assert_eq!(statement.parameters.len(), 2);
    /// # Ok::<(), microcluster::db::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the parameters do not fit: see [`Parameters::into_values`].
    pub fn with(sql: impl Into<String>, parameters: impl Parameters) -> Result<Self, Error> {
        let sql = sql.into();
        Ok(Statement { parameters: parameters.into_values(&sql)?, sql })
    }

    /// The statement with one more parameter bound.
    #[must_use]
    pub fn bind(mut self, value: impl Into<Value>) -> Self {
        self.parameters.push(value.into());
        self
    }
}

/// What one statement answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum QueryResult {
    /// It returned rows, possibly none.
    Rows {
        /// The names of the columns.
        columns: Vec<String>,
        /// The rows, each with one value for each column.
        rows: Vec<Vec<Value>>,
    },
    /// It returned no rows.
    Changed {
        /// How many rows it inserted, updated or deleted.
        rows_affected: u64,
    },
}

/// Names a request once and for all: `origin` is drawn at random each time a database is opened,
/// `sequence` counts up from 1 there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct RequestId {
    pub origin: u64,
    pub sequence: u64,
}

/// One atomic change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Request {
    pub id: RequestId,
    /// Every request of this origin below this sequence has been answered: their outcomes may be forgotten.
    pub answered_below: u64,
    /// The time that `CURRENT_TIMESTAMP`, `date('now')` and kin show, in milliseconds since 1970.
    pub time_ms: i64,
    /// Seeds `random()` and `randomblob()`.
    pub seed: u64,
    /// An interactive transaction was checked against the log of this term alone: under another it conflicts.
    pub only_in_term: Option<u64>,
    /// Whose rights the statements have.
    pub scope: Scope,
    pub body: Body,
}

/// Who wrote the SQL, and so which tables it may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Scope {
    /// A product or an operator: every table but the cluster's own.
    User,
    /// The cluster itself: its `core_` tables too.
    Core,
}

/// Whether the entry is a [`Body::Mark`].
pub(crate) fn is_mark(entry: &super::raft_types::Entry) -> bool {
    matches!(&entry.payload, openraft::EntryPayload::Normal(command) if command.0.first() == Some(&MARK_VERSION))
}

/// What a request runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Body {
    /// Statements, one after the other.
    Statements(Vec<Statement>),
    /// A text of any number of statements, split by SQLite's own parser.
    Script(String),
    /// Nothing: a mark at which every member pins its state and makes a digest of it. Alone in its entry.
    Mark,
    /// What a closure wrote that asks for `last_insert_rowid()` or `changes()`: each statement sees of the connection what it saw in
    /// the closure.
    Settled(Vec<Statement>),
}

/// What a request came to. The first outcome is the last word: a resent request gets it again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Done(Vec<QueryResult>),
    Failed(Failure),
}

/// An error as the replicated state keeps it: the same on every member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Failure {
    Constraint {
        unique: bool,
        message: String,
    },
    Sql {
        message: String,
    },
    Refused {
        message: String,
    },
    ResultTooLarge {
        size: u64,
        limit: u64,
    },
    TooManySteps {
        limit: u64,
    },
    /// The interactive transaction has to run again, on fresher state.
    Conflict,
    /// The request came back after its origin had declared it answered, or after its session expired.
    Stale,
    /// Applied once; its rows were too large to be kept for a resend.
    ResultLost,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Constraint { unique, message } => Error::Constraint { unique, message },
            Failure::Sql { message } => Error::Sql { message },
            Failure::Refused { message } => Error::Refused { message },
            Failure::ResultTooLarge { size, limit } => {
                Error::TooLarge { what: "the result", size: size as usize, limit: limit as usize }
            }
            Failure::TooManySteps { limit } => Error::TooManySteps { limit },
            // The origin gave the request up before, and has told its caller so; nobody waits for this one.
            Failure::Stale => Error::Conflict { attempts: 1 },
            Failure::Conflict => Error::Conflict { attempts: 1 },
            Failure::ResultLost => Error::ResultLost,
        }
    }
}

/// The requests of one log entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Batch {
    pub requests: Vec<Request>,
}

/// A log entry's content that this version cannot read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("a log entry has version {found}, this member knows {BATCH_VERSION}: upgrade this member")]
    Version { found: u8 },
    #[error("a log entry is empty")]
    Empty,
    #[error("a log entry cannot be decoded")]
    Malformed(#[from] postcard::Error),
}

impl Request {
    /// About how many bytes the request takes in the log.
    pub fn size(&self) -> usize {
        let body = match &self.body {
            Body::Mark => 0,
            Body::Script(script) => script.len(),
            Body::Statements(statements) | Body::Settled(statements) => statements
                .iter()
                .map(|statement| statement.sql.len() + statement.parameters.iter().map(Value::size).sum::<usize>() + 48)
                .sum(),
        };
        body + 48
    }
}

impl Batch {
    /// The batch as a log entry carries it.
    pub fn encode(&self) -> Result<Command, postcard::Error> {
        let is_mark = self.requests.iter().any(|request| request.body == Body::Mark);
        let buffer = vec![if is_mark { MARK_VERSION } else { BATCH_VERSION }];
        // The log's cache holds it: without the room that it has grown by.
        Ok(Command(Bytes::from(postcard::to_extend(self, buffer)?.into_boxed_slice())))
    }

    /// Reads what [`Batch::encode`] wrote.
    pub fn decode(command: &Command) -> Result<Batch, DecodeError> {
        match command.0.split_first() {
            None => Err(DecodeError::Empty),
            Some((&(BATCH_VERSION | MARK_VERSION), rest)) => Ok(postcard::from_bytes(rest)?),
            Some((&found, _)) => Err(DecodeError::Version { found }),
        }
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Value::Integer(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Value::Real(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Integer(value.into())
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::Text(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Value::Text(value)
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Value::Blob(value)
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Null, Into::into)
    }
}

impl From<rusqlite::types::ValueRef<'_>> for Value {
    fn from(value: rusqlite::types::ValueRef<'_>) -> Self {
        use rusqlite::types::ValueRef;
        match value {
            ValueRef::Null => Value::Null,
            ValueRef::Integer(value) => Value::Integer(value),
            ValueRef::Real(value) => Value::Real(value),
            // SQLite lets any bytes be stored as text; what is not UTF-8 is shown with replacement characters.
            ValueRef::Text(value) => Value::Text(String::from_utf8_lossy(value).into_owned()),
            ValueRef::Blob(value) => Value::Blob(value.to_vec()),
        }
    }
}

impl rusqlite::ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        use rusqlite::types::{ToSqlOutput, ValueRef};
        Ok(ToSqlOutput::Borrowed(match self {
            Value::Null => ValueRef::Null,
            Value::Integer(value) => ValueRef::Integer(*value),
            Value::Real(value) => ValueRef::Real(*value),
            Value::Text(value) => ValueRef::Text(value.as_bytes()),
            Value::Blob(value) => ValueRef::Blob(value),
        }))
    }
}

impl QueryResult {
    /// About how many bytes the result takes, for the bound on results.
    pub(crate) fn size(&self) -> usize {
        match self {
            QueryResult::Changed { .. } => 16,
            QueryResult::Rows { columns, rows } => {
                let names = columns.iter().map(|name| name.len() + 24).sum::<usize>();
                names + rows.iter().map(|row| row.iter().map(Value::size).sum::<usize>() + 24).sum::<usize>() + 16
            }
        }
    }
}

impl Value {
    pub(crate) fn size(&self) -> usize {
        match self {
            Value::Null | Value::Integer(_) | Value::Real(_) => VALUE_BYTES,
            Value::Text(text) => VALUE_BYTES + text.len(),
            Value::Blob(bytes) => VALUE_BYTES + bytes.len(),
        }
    }
}
