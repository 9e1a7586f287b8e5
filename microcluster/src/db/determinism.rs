//! The same SQL gives the same bytes on every member: `random()`, the date and time functions and
//! keywords take the request's seed and time instead of the machine's.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{Connection, Error, Result};

/// The largest `randomblob()`, the same as SQLite's own limit on a value.
const RANDOM_BLOB_BYTES_MAX: i64 = 1_000_000_000;

/// The time and the random numbers that the functions of one connection show.
#[derive(Debug, Default)]
pub(crate) struct Surroundings {
    time_ms: AtomicI64,
    seed: AtomicU64,
    random: AtomicU64,
}

impl Surroundings {
    /// From here on the connection shows this request's time and draws from its seed.
    pub fn begin_request(&self, time_ms: i64, seed: u64) {
        self.time_ms.store(time_ms, Ordering::Relaxed);
        self.seed.store(seed, Ordering::Relaxed);
        self.begin_statement(0);
    }

    /// Starts the random numbers of the `index`th writing statement. Each has a stream of its own, so that
    /// the reads between them, which apply does not repeat, cannot shift it.
    pub fn begin_statement(&self, index: u64) {
        let mut state = self.seed.load(Ordering::Relaxed).wrapping_add(index.wrapping_mul(0xD1B5_4A32_D192_ED03));
        self.random.store(split_mix(&mut state), Ordering::Relaxed);
    }

    fn next_random(&self) -> u64 {
        // One connection is used by one thread at a time, so load and store need not be one step.
        let mut state = self.random.load(Ordering::Relaxed);
        let value = split_mix(&mut state);
        self.random.store(state, Ordering::Relaxed);
        value
    }

    fn now(&self) -> String {
        let time_ms = self.time_ms.load(Ordering::Relaxed);
        let time = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(time_ms) * 1_000_000)
            .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
        format!(
            "{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:03}",
            time.year(),
            u8::from(time.month()),
            time.day(),
            time.hour(),
            time.minute(),
            time.second(),
            time.millisecond()
        )
    }
}

/// `SplitMix64` of Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014). Written
/// out here because its numbers must never change with the version of a crate: members replay them.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Replaces the functions of `connection` that would differ between members.
pub(crate) fn install(connection: &Connection, surroundings: &Arc<Surroundings>) -> Result<()> {
    let changing = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS;
    let own = Arc::clone(surroundings);
    connection.create_scalar_function(c"random", 0, changing, move |_| Ok(own.next_random().cast_signed()))?;
    let own = Arc::clone(surroundings);
    connection.create_scalar_function(c"randomblob", 1, changing, move |context| random_blob(&own, context))?;

    // SQLite's own date functions do the work, on a connection of their own, with 'now' replaced.
    let calendar = Arc::new(Mutex::new(Connection::open_in_memory()?));
    // Not marked deterministic, so that no index, generated column or check can depend on the time.
    for (name, arguments, call, first_time) in [
        (c"date", -1, "date", 0),
        (c"time", -1, "time", 0),
        (c"datetime", -1, "datetime", 0),
        (c"julianday", -1, "julianday", 0),
        (c"unixepoch", -1, "unixepoch", 0),
        (c"strftime", -1, "strftime", 1),
        (c"timediff", 2, "timediff", 0),
        (c"current_date", 0, "date", 0),
        (c"current_time", 0, "time", 0),
        (c"current_timestamp", 0, "datetime", 0),
    ] {
        let own = Arc::clone(surroundings);
        let calendar = Arc::clone(&calendar);
        connection.create_scalar_function(name, arguments, changing, move |context| {
            date_function(&own, &calendar, call, first_time, context)
        })?;
    }
    Ok(())
}

fn random_blob(surroundings: &Surroundings, context: &Context<'_>) -> Result<Vec<u8>> {
    let length = context.get::<i64>(0).unwrap_or(1).max(1);
    if length > RANDOM_BLOB_BYTES_MAX {
        return Err(refused("randomblob() of more than 1000000000 bytes"));
    }
    let length = length as usize;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&surroundings.next_random().to_le_bytes());
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// Calls SQLite's `call` with the request's time in place of the current one.
fn date_function(
    surroundings: &Surroundings,
    calendar: &Mutex<Connection>,
    call: &str,
    first_time: usize,
    context: &Context<'_>,
) -> Result<Value> {
    let mut arguments: Vec<ToSqlOutput<'_>> = Vec::with_capacity(context.len() + 1);
    for index in 0..context.len() {
        let value = context.get_raw(index);
        match text_of(value) {
            Some(text) if is_local(text) => {
                return Err(refused("the modifiers 'localtime' and 'utc': time zones differ between members"));
            }
            Some(text) if text.eq_ignore_ascii_case("now") => arguments.push(surroundings.now().into()),
            Some(text) if index == first_time && is_subsecond(text) => {
                arguments.push(surroundings.now().into());
                arguments.push(ToSqlOutput::Borrowed(value));
            }
            _ => arguments.push(ToSqlOutput::Borrowed(value)),
        }
    }
    if arguments.len() == first_time {
        arguments.push(surroundings.now().into());
    }
    let marks = vec!["?"; arguments.len()].join(",");
    let calendar = calendar.lock().map_err(|_| refused("a date function: an earlier call panicked"))?;
    let mut statement = calendar.prepare_cached(&format!("SELECT {call}({marks})"))?;
    statement.query_row(rusqlite::params_from_iter(arguments), |row| row.get(0))
}

/// The text as SQLite's date functions see it: of any kind, up to its first NUL.
fn text_of(value: ValueRef<'_>) -> Option<&str> {
    let (ValueRef::Text(bytes) | ValueRef::Blob(bytes)) = value else { return None };
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    std::str::from_utf8(bytes).ok().map(str::trim)
}

fn is_local(text: &str) -> bool {
    text.eq_ignore_ascii_case("localtime") || text.eq_ignore_ascii_case("utc")
}

fn is_subsecond(text: &str) -> bool {
    text.eq_ignore_ascii_case("subsec") || text.eq_ignore_ascii_case("subsecond")
}

fn refused(what: &str) -> Error {
    Error::UserFunctionError(format!("not allowed in a replicated write: {what}").into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn connection(time_ms: i64, seed: u64) -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        let surroundings = Arc::new(Surroundings::default());
        install(&connection, &surroundings).unwrap();
        surroundings.begin_request(time_ms, seed);
        connection
    }

    fn text(connection: &Connection, sql: &str) -> String {
        connection.query_row(&format!("SELECT CAST(({sql}) AS TEXT)"), [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn every_spelling_of_now_is_the_request_time() {
        let connection = connection(1_700_000_000_123, 1);
        for (sql, expected) in [
            ("CURRENT_TIMESTAMP", "2023-11-14 22:13:20"),
            ("CURRENT_DATE", "2023-11-14"),
            ("CURRENT_TIME", "22:13:20"),
            ("datetime('now')", "2023-11-14 22:13:20"),
            ("datetime()", "2023-11-14 22:13:20"),
            ("datetime('NOW', '+1 day')", "2023-11-15 22:13:20"),
            ("date('now', 'start of month')", "2023-11-01"),
            ("unixepoch('now')", "1700000000"),
            ("unixepoch('now', 'subsec')", "1700000000.123"),
            ("unixepoch('subsec')", "1700000000.123"),
            ("strftime('%Y')", "2023"),
            ("strftime('%f', 'now')", "20.123"),
            ("date('2001-02-03')", "2001-02-03"),
            ("timediff('now', '2023-11-14 22:13:19.123')", "+0000-00-00 00:00:01.000"),
        ] {
            assert_eq!(text(&connection, sql), expected, "{sql}");
        }
    }

    #[test]
    fn defaults_use_the_request_too() {
        let connection = connection(1_700_000_000_000, 7);
        connection
            .execute_batch(
                "CREATE TABLE t(a, at TEXT DEFAULT CURRENT_TIMESTAMP, d TEXT DEFAULT (date('now')), r DEFAULT (random()));
                 INSERT INTO t(a) VALUES (1)",
            )
            .unwrap();
        assert_eq!(text(&connection, "SELECT at || ' ' || d FROM t"), "2023-11-14 22:13:20 2023-11-14");
        assert_ne!(text(&connection, "SELECT r FROM t"), "0");
    }

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let sql = "random() || hex(randomblob(20))";
        assert_eq!(text(&connection(0, 42), sql), text(&connection(5, 42), sql));
        assert_ne!(text(&connection(0, 42), sql), text(&connection(0, 43), sql));
    }

    #[test]
    fn no_spelling_reaches_the_clock_of_the_machine() {
        let connection = connection(1_700_000_000_000, 1);
        for sql in [
            "date(CAST('now' AS BLOB))",
            "date(CAST(x'6e6f7700ff' AS TEXT))",
            "date('now' || char(0))",
            "date(' now ')",
        ] {
            assert_eq!(text(&connection, sql), "2023-11-14", "{sql}");
        }
        let local = "SELECT datetime('2024-01-01', CAST('localtime' AS BLOB))";
        connection.query_row(local, [], |_| Ok(())).unwrap_err();
        connection.execute_batch("CREATE TABLE s(e)").unwrap();
        connection.execute_batch("CREATE INDEX i ON s(e) WHERE e > datetime('now')").unwrap_err();
    }

    #[test]
    fn time_zones_are_refused() {
        let connection = connection(0, 0);
        let error = connection.query_row("SELECT datetime('now', 'localtime')", [], |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("time zones"), "{error}");
    }
}
