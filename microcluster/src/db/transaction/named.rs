//! Parameters with names: which value is for which place of a statement, found without the tables that it uses.

use std::collections::BTreeMap;

use rusqlite::ToSql;

use super::parameters::{Parameters, value};
use crate::db::command::Value;
use crate::db::error::Error;

/// Values for the named parameters of a statement: `:name`, `@name` or `$name`, each with its sign as in the SQL.
///
/// In a closure, where nothing is awaited, `rusqlite::named_params!` does as well. A future with that in it cannot go from thread to
/// thread, as those of handlers and hooks do.
///
/// ```
/// use microcluster::db::{Database, Error, Named};
///
/// async fn add(database: &Database, name: &str, zone: i64) -> Result<u64, Error> {
///     let values = Named::new().bind(":name", name)?.bind(":zone", zone)?;
///     database.execute("INSERT INTO hosts (name, zone) VALUES (:name, :zone)", values).await
/// }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Named(BTreeMap<String, Value>);

impl Named {
    /// No values yet.
    pub fn new() -> Named {
        Named::default()
    }

    /// The same with the value of one more parameter.
    ///
    /// # Errors
    /// When the value has no form in SQLite: it says so itself.
    pub fn bind(mut self, name: impl Into<String>, parameter: impl ToSql) -> Result<Named, Error> {
        self.0.insert(name.into(), value(&parameter)?);
        Ok(self)
    }
}

impl Parameters for Named {
    fn into_values(mut self, sql: &str) -> Result<Vec<Value>, Error> {
        let wrong = |message| Error::Sql { message };
        let values = places(sql).into_iter().enumerate().map(|(index, name)| {
            let name =
                name.ok_or_else(|| wrong(format!("the parameter {} of the statement has no name", index + 1)))?;
            self.0.remove(name).ok_or_else(|| wrong(format!("there is no value for the parameter {name}")))
        });
        let values = values.collect::<Result<_, _>>()?;
        match self.0.into_keys().next() {
            None => Ok(values),
            Some(name) => Err(wrong(format!("the statement has no parameter {name}"))),
        }
    }
}

/// As `rusqlite::named_params!` makes them.
impl Parameters for &[(&str, &dyn ToSql)] {
    fn into_values(self, sql: &str) -> Result<Vec<Value>, Error> {
        let named = self.iter().map(|(name, parameter)| Ok(((*name).to_owned(), value(parameter)?)));
        Named(named.collect::<Result<_, Error>>()?).into_values(sql)
    }
}

/// The parameters of a statement in the order of their numbers, those with a name by that. The numbers are given as SQLite gives them.
fn places(sql: &str) -> Vec<Option<&str>> {
    let mut places: Vec<Option<&str>> = Vec::new();
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let length = token_length(rest, first).clamp(first.len_utf8(), rest.len());
        let (token, after) = rest.split_at(length);
        match first {
            '?' => match token[1..].parse::<usize>() {
                Ok(number) if number > places.len() && number <= PARAMETERS_MAX => places.resize(number, None),
                // A number that is there already, or that SQLite refuses.
                Ok(_) => {}
                Err(_) => places.push(None),
            },
            ':' | '@' | '$' if token.len() > 1 && !places.contains(&Some(token)) => places.push(Some(token)),
            _ => {}
        }
        rest = after;
    }
    places
}

/// The largest number of a parameter that SQLite takes, unless it is built otherwise.
const PARAMETERS_MAX: usize = 32_766;

/// How long the token is at the begin of a text, as SQLite splits it.
fn token_length(text: &str, first: char) -> usize {
    let after = &text[first.len_utf8()..];
    let until = |end: &str| after.find(end).map_or(text.len(), |at| first.len_utf8() + at + end.len());
    match first {
        // A doubled quote inside makes two tokens of one, which comes to the same.
        '\'' | '"' | '`' => until(&text[..1]),
        '[' => until("]"),
        '-' if after.starts_with('-') => until("\n"),
        '/' if after.starts_with('*') => text[2..].find("*/").map_or(text.len(), |at| at + 4),
        '?' => 1 + after.bytes().take_while(u8::is_ascii_digit).count(),
        ':' | '@' | '$' => 1 + name_length(after),
        c if is_part_of_name(c) => text.find(|c| !is_part_of_name(c)).unwrap_or(text.len()),
        _ => first.len_utf8(),
    }
}

fn is_part_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()
}

/// The length of a parameter's name, which may have `::` in it, and end with something in brackets.
fn name_length(text: &str) -> usize {
    let mut length = 0;
    while let Some(c) = text[length..].chars().next() {
        let rest = &text[length..];
        if is_part_of_name(c) {
            length += c.len_utf8();
        } else if rest.starts_with("::") {
            length += 2;
        } else if c == '(' && length > 0 {
            return rest
                .find(|c: char| c == ')' || c.is_ascii_whitespace())
                .map_or(length, |end| if rest[end..].starts_with(')') { length + end + 1 } else { length });
        } else {
            break;
        }
    }
    length
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use rusqlite::Connection;

    use super::*;

    /// What SQLite itself says.
    fn compiled(sql: &str) -> Option<Vec<Option<String>>> {
        let db = Connection::open_in_memory().unwrap();
        let statement = db.prepare(sql).ok()?;
        let name = |index| statement.parameter_name(index).filter(|name| !name.starts_with('?')).map(str::to_owned);
        Some((1..=statement.parameter_count()).map(name).collect())
    }

    fn found(sql: &str) -> Vec<Option<String>> {
        places(sql).into_iter().map(|name| name.map(str::to_owned)).collect()
    }

    #[test]
    fn places_are_those_of_sqlite() {
        for sql in [
            "SELECT 1",
            "SELECT :a, @b, $c, :a, $c",
            "SELECT ?, :a, ?5, :b, ?",
            "SELECT ?3, ?1, :a",
            "SELECT ':a', \":b\", ':a'':b', :c AS \":d\"",
            "SELECT `:a`, [:b], :c FROM (SELECT 1 AS ':a', 2 AS ':b')",
            "SELECT 1 -- :a\n, :b /* :c ' */, :d /* :e",
            "SELECT :größe, $a::b, $c(d), :e(",
            "SELECT x'00', 1e5, :a2, a$b FROM (SELECT 1 AS a$b)",
            "SELECT :a FROM (SELECT 1) WHERE 1 <> :b AND 2-:c - -1",
        ] {
            if let Some(expected) = compiled(sql) {
                assert_eq!(found(sql), expected, "{sql}");
            }
        }
        assert_eq!(found("INSERT INTO nowhere VALUES (:a, :b)"), [Some(":a".into()), Some(":b".into())]);
    }

    proptest! {
        /// Whatever SQLite compiles, and no panic on the rest.
        #[test]
        fn any_statement_has_the_parameters_that_sqlite_finds(
            parts in proptest::collection::vec(
                prop_oneof![
                    Just(":a"), Just("$b"), Just("@c"), Just("?"), Just("?2"), Just("'"), Just("\""), Just("':x'"), Just("[:y]"),
                    Just("/*"), Just("*/"), Just("--"), Just("\n"), Just(","), Just("1"), Just("("), Just(")"), Just("::"), Just("ß"),
                    Just(" "), Just("-"), Just("x"),
                ],
                0..12,
            ),
        ) {
            let sql = format!("SELECT {}", parts.concat());
            let found = found(&sql);
            if let Some(expected) = compiled(&sql) {
                prop_assert_eq!(found, expected, "{}", sql);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let named = || Named::new().bind(":a", 1).unwrap().bind(":b", "x").unwrap();
        assert_eq!(named().into_values("SELECT :b, :a, :b").unwrap(), [Value::Text("x".into()), Value::Integer(1)]);
        for (sql, part) in [("SELECT :a", ":b"), ("SELECT :a, :b, :c", ":c"), ("SELECT :a, :b, ?", "3")] {
            let error = named().into_values(sql).unwrap_err().to_string();
            assert!(error.contains(part), "{sql}: {error}");
        }
        let zone = 7_i64;
        assert_eq!(rusqlite::named_params! {":zone": zone}.into_values("SELECT :zone").unwrap(), [Value::Integer(7)]);
    }
}
