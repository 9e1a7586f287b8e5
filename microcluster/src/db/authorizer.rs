//! What SQL may do in a replicated database, and which tables it touches: SQLite's authorizer, asked
//! while a statement is prepared.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use serde::{Deserialize, Serialize};

use super::command::Scope;

/// Tables of the replication itself: nobody writes them by SQL.
pub(crate) const BOOKKEEPING_PREFIX: &str = "microcluster_";
/// Tables of the cluster: written by its own transactions alone.
pub(crate) const CORE_PREFIX: &str = "core_";

/// The pragmas that only tell something.
const READING_PRAGMAS: &[&str] = &[
    "application_id",
    "collation_list",
    "compile_options",
    "data_version",
    "database_list",
    "encoding",
    "foreign_key_check",
    "foreign_key_list",
    "foreign_keys",
    "freelist_count",
    "function_list",
    "index_info",
    "index_list",
    "index_xinfo",
    "integrity_check",
    "journal_mode",
    "module_list",
    "page_count",
    "page_size",
    "pragma_list",
    "quick_check",
    "schema_version",
    "table_info",
    "table_list",
    "table_xinfo",
    "user_version",
];
/// Those of them whose value is a question, not a setting.
const PRAGMAS_WITH_ARGUMENT: &[&str] = &[
    "foreign_key_check",
    "foreign_key_list",
    "index_info",
    "index_list",
    "index_xinfo",
    "integrity_check",
    "quick_check",
    "table_info",
    "table_list",
    "table_xinfo",
];
/// Those that tell the same on every member: allowed beside writes.
const SAME_PRAGMAS: &[&str] = &[
    // FTS5 asks for it by itself; `Executor` sees to it that nobody else does.
    "data_version",
    "application_id",
    "encoding",
    "foreign_key_check",
    "foreign_key_list",
    "foreign_keys",
    "index_info",
    "index_list",
    "index_xinfo",
    "table_info",
    "table_xinfo",
    "user_version",
];
/// Functions whose result depends on the connection, the machine or the version.
const REFUSED_FUNCTIONS: &[&str] =
    &["load_extension", "sqlite_version", "sqlite_source_id", "total_changes", "fts3_tokenizer"];

/// The tables that SQL reads and writes, those behind views, triggers and foreign keys included.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Touched {
    pub reads: BTreeSet<String>,
    pub writes: BTreeSet<String>,
    /// It changes the schema: that counts as a write to everything.
    pub schema: bool,
}

impl Touched {
    /// Adds what `more` touches.
    pub fn add(&mut self, more: &Touched) {
        for (ours, theirs) in [(&mut self.reads, &more.reads), (&mut self.writes, &more.writes)] {
            for table in theirs {
                if !ours.contains(table) {
                    ours.insert(table.clone());
                }
            }
        }
        self.schema |= more.schema;
    }
}

/// Who is using the connection just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The engine itself: transactions, bookkeeping.
    Engine,
    /// SQL from outside, that may write.
    Write(Scope),
    /// SQL from outside, compiled to see what it would do; it cannot write.
    Look(Scope),
    /// SQL from outside, that may only read.
    Read,
}

/// The authorizer of one connection: set the mode, prepare, look at what was touched or refused.
#[derive(Debug, Clone)]
pub(crate) struct Guard(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    mode: Mode,
    touched: Touched,
    refusal: Option<String>,
    asks_for_connection_state: bool,
}

impl Guard {
    /// Installs the authorizer; it starts in [`Mode::Engine`].
    pub fn install(connection: &mut Connection) -> rusqlite::Result<Guard> {
        let guard = Guard(Arc::new(Mutex::new(Inner {
            mode: Mode::Engine,
            touched: Touched::default(),
            refusal: None,
            asks_for_connection_state: false,
        })));
        let own = guard.clone();
        connection.authorizer(Some(move |context: AuthContext<'_>| own.lock().decide(&context)))?;
        Ok(guard)
    }

    /// From here on `mode` is in force.
    pub fn set_mode(&self, mode: Mode) {
        let mut inner = self.lock();
        inner.mode = mode;
        inner.refusal = None;
    }

    /// As [`Guard::set_mode`], but keeps a refusal, and answers the mode before.
    pub fn swap_mode(&self, mode: Mode) -> Mode {
        std::mem::replace(&mut self.lock().mode, mode)
    }

    /// Why the last statement was refused, if it was.
    pub fn take_refusal(&self) -> Option<String> {
        self.lock().refusal.take()
    }

    /// Whether a statement was refused since the mode was set.
    pub fn was_refused(&self) -> bool {
        self.lock().refusal.is_some()
    }

    /// The tables touched by the statements prepared since the last call.
    pub fn take_touched(&self) -> Touched {
        std::mem::take(&mut self.lock().touched)
    }

    /// Whether any statement prepared so far, or a trigger behind it, asks for `last_insert_rowid()` or
    /// `changes()`: what they answer must then be brought to a known state before each request.
    pub fn asks_for_connection_state(&self) -> bool {
        self.lock().asks_for_connection_state
    }

    /// As [`Guard::asks_for_connection_state`], for what was prepared since the last call.
    pub fn take_asks_for_connection_state(&self) -> bool {
        std::mem::take(&mut self.lock().asks_for_connection_state)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // What the mutex holds is valid at every moment, also if a holder panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn decide(&mut self, context: &AuthContext<'_>) -> Authorization {
        if self.mode == Mode::Engine {
            return Authorization::Allow;
        }
        self.note(&context.action);
        // Its statistics would tell of the replication's own tables, which differ between members at times.
        if matches!(context.action, AuthAction::Analyze { table_name } if starts_with_ignoring_case(table_name, BOOKKEEPING_PREFIX))
        {
            return Authorization::Ignore;
        }
        match self.refusal_of(context) {
            None => Authorization::Allow,
            Some(refusal) => {
                self.refusal = Some(refusal);
                Authorization::Deny
            }
        }
    }

    fn note(&mut self, action: &AuthAction<'_>) {
        match action {
            AuthAction::Read { table_name, .. } => {
                if !self.touched.reads.contains(*table_name) {
                    self.touched.reads.insert((*table_name).to_owned());
                }
            }
            AuthAction::Insert { table_name }
            | AuthAction::Update { table_name, .. }
            | AuthAction::Delete { table_name } => {
                // Changing the schema shows as writes to sqlite_master and its kin.
                if table_name.starts_with("sqlite_") && *table_name != "sqlite_sequence" {
                    self.touched.schema = true;
                } else if !self.touched.writes.contains(*table_name) {
                    self.touched.writes.insert((*table_name).to_owned());
                }
            }
            AuthAction::Function { function_name } => {
                if ["last_insert_rowid", "changes"].iter().any(|name| function_name.eq_ignore_ascii_case(name)) {
                    self.asks_for_connection_state = true;
                }
            }
            AuthAction::Select | AuthAction::Pragma { .. } | AuthAction::Recursive => {}
            _ => self.touched.schema = true,
        }
    }

    fn refusal_of(&self, context: &AuthContext<'_>) -> Option<String> {
        match context.action {
            AuthAction::Transaction { .. } | AuthAction::Savepoint { .. } => Some(
                "BEGIN, COMMIT, ROLLBACK and SAVEPOINT are not allowed: the statements of one request are one transaction already"
                    .to_owned(),
            ),
            AuthAction::Attach { .. } | AuthAction::Detach { .. } => {
                Some("ATTACH, DETACH and VACUUM are not allowed: the database is one replicated file".to_owned())
            }
            AuthAction::CreateTempTable { .. }
            | AuthAction::CreateTempIndex { .. }
            | AuthAction::CreateTempTrigger { .. }
            | AuthAction::CreateTempView { .. } => {
                Some("temporary tables, triggers and views are not allowed: they would exist on one member alone".to_owned())
            }
            AuthAction::Pragma { pragma_name, pragma_value } => {
                // A new column of a table that is strict or has checks: SQLite looks by itself whether its rows fit.
                let is_altering = self.touched.schema && pragma_value.is_some();
                if is_altering && pragma_name.eq_ignore_ascii_case("quick_check") {
                    return None;
                }
                let allowed = if matches!(self.mode, Mode::Write(_)) { SAME_PRAGMAS } else { READING_PRAGMAS };
                refused_pragma(pragma_name, pragma_value, allowed)
            }
            AuthAction::Read { table_name, column_name } if matches!(self.mode, Mode::Write(_)) => {
                let is_local = starts_with_ignoring_case(table_name, BOOKKEEPING_PREFIX)
                    || table_name.eq_ignore_ascii_case("dbstat")
                    || table_name.eq_ignore_ascii_case("pragma_data_version")
                    || (table_name.starts_with("sqlite_")
                        && column_name.eq_ignore_ascii_case("rootpage")
                        // A change of the schema reads it by itself.
                        && !self.touched.schema);
                is_local.then(|| format!("{table_name}.{column_name} cannot be read in a write: it differs between members"))
            }
            AuthAction::Function { function_name } if REFUSED_FUNCTIONS.iter().any(|name| function_name.eq_ignore_ascii_case(name)) => {
                Some(format!("{function_name}() is not allowed: its result differs between members"))
            }
            AuthAction::Insert { table_name } | AuthAction::Delete { table_name } | AuthAction::Update { table_name, .. } => {
                self.refused_write(table_name)
            }
            AuthAction::CreateTable { table_name }
            | AuthAction::CreateVtable { table_name, .. }
            | AuthAction::DropTable { table_name }
            | AuthAction::DropVtable { table_name, .. }
            | AuthAction::AlterTable { table_name, .. }
            | AuthAction::CreateIndex { table_name, .. }
            | AuthAction::CreateTrigger { table_name, .. } => self.refused_write(table_name),
            _ => None,
        }
    }

    fn refused_write(&self, table: &str) -> Option<String> {
        let (Mode::Write(scope) | Mode::Look(scope)) = self.mode else {
            return Some("this is a read: it may not write".to_owned());
        };
        if starts_with_ignoring_case(table, BOOKKEEPING_PREFIX) {
            return Some(format!("table {table} belongs to the replication and cannot be changed by SQL"));
        }
        // At its largest value AUTOINCREMENT says that the disk is full. Dropping and renaming a table writes there too.
        if table.eq_ignore_ascii_case("sqlite_sequence") && !self.touched.schema {
            return Some("table sqlite_sequence is kept by SQLite and cannot be changed directly".to_owned());
        }
        if scope == Scope::User && starts_with_ignoring_case(table, CORE_PREFIX) {
            return Some(format!(
                "table {table} belongs to the cluster: it changes through joins, removals and tokens alone"
            ));
        }
        None
    }
}

fn refused_pragma(name: &str, value: Option<&str>, allowed: &[&str]) -> Option<String> {
    let is_in = |list: &[&str]| list.iter().any(|known| known.eq_ignore_ascii_case(name));
    if is_in(allowed) && (value.is_none() || is_in(PRAGMAS_WITH_ARGUMENT)) {
        None
    } else {
        Some(format!("PRAGMA {name} is not allowed here: it would change, or tell of, this member alone"))
    }
}

fn starts_with_ignoring_case(text: &str, prefix: &str) -> bool {
    text.len() >= prefix.len() && text.as_bytes()[..prefix.len()].eq_ignore_ascii_case(prefix.as_bytes())
}
