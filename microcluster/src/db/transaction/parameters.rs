//! The values bound to a statement's parameters, in whatever form the caller has them.

use rusqlite::ToSql;
use rusqlite::types::{ToSqlOutput, ValueRef};

use crate::db::command::Value;
use crate::db::error::Error;

/// Values for `?1`, `?2`, …: `()`, an array of one type, a tuple of up to eight types, or a
/// vector of [`Value`]s. Each type is one of rusqlite's [`ToSql`]. For parameters with names [`Named`](super::Named), or in
/// closures `rusqlite::named_params!`.
pub trait Parameters {
    /// The values in the order of the parameters of this statement.
    ///
    /// # Errors
    /// When a value has no form in SQLite, or names do not fit the statement.
    fn into_values(self, sql: &str) -> Result<Vec<Value>, Error>;
}

pub(super) fn value(value: &dyn ToSql) -> Result<Value, Error> {
    match value.to_sql()? {
        ToSqlOutput::Borrowed(value) => Ok(Value::from(value)),
        ToSqlOutput::Owned(value) => Ok(Value::from(ValueRef::from(&value))),
        _ => Err(Error::Sql { message: "a parameter of this kind cannot be replicated".to_owned() }),
    }
}

impl Parameters for () {
    fn into_values(self, _sql: &str) -> Result<Vec<Value>, Error> {
        Ok(Vec::new())
    }
}

impl Parameters for Vec<Value> {
    fn into_values(self, _sql: &str) -> Result<Vec<Value>, Error> {
        Ok(self)
    }
}

impl<T: ToSql, const N: usize> Parameters for [T; N] {
    fn into_values(self, _sql: &str) -> Result<Vec<Value>, Error> {
        self.iter().map(|each| value(each)).collect()
    }
}

/// As `rusqlite::params!` makes them. Not for what is awaited by a handler or a hook: that has to go from thread to thread.
impl Parameters for &[&dyn ToSql] {
    fn into_values(self, _sql: &str) -> Result<Vec<Value>, Error> {
        self.iter().map(|each| value(each)).collect()
    }
}

macro_rules! tuple {
    ($($name:ident),+) => {
        impl<$($name: ToSql),+> Parameters for ($($name,)+) {
            #[allow(non_snake_case)]
            fn into_values(self, _sql: &str) -> Result<Vec<Value>, Error> {
                let ($($name,)+) = self;
                Ok(vec![$(value(&$name)?),+])
            }
        }
    };
}
tuple!(A);
tuple!(A, B);
tuple!(A, B, C);
tuple!(A, B, C, D);
tuple!(A, B, C, D, E);
tuple!(A, B, C, D, E, F);
tuple!(A, B, C, D, E, F, G);
tuple!(A, B, C, D, E, F, G, H);
