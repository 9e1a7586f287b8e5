//! SQL over REST.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::lenient;

/// Statements to run as one atomic transaction.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SqlRequest {
    /// One or more statements.
    pub query: String,
    /// Values for `?1`, `?2`, …
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "lenient::null_default")]
    pub parameters: Vec<Value>,
    /// How fresh rows have to be.
    #[serde(default, deserialize_with = "lenient::null_default")]
    #[serde(skip_serializing_if = "Consistency::is_default")]
    pub consistency: Consistency,
}

impl SqlRequest {
    /// Statements without parameters, read linearizably.
    pub fn new(query: impl Into<String>) -> Self {
        SqlRequest { query: query.into(), ..SqlRequest::default() }
    }

    /// The same with values for its parameters.
    #[must_use]
    pub fn with_parameters(mut self, parameters: Vec<Value>) -> Self {
        self.parameters = parameters;
        self
    }

    /// The same with another consistency.
    #[must_use]
    pub fn with_consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = consistency;
        self
    }
}

/// How fresh the rows of a read have to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// Everything acknowledged before the request, on any member.
    #[default]
    Linearizable,
    /// What this member has, without asking another.
    Local,
}

impl Consistency {
    /// Whether it may be left out on the wire.
    fn is_default(&self) -> bool {
        *self == Consistency::default()
    }
}

/// The results of a request, one for each statement.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SqlResults {
    /// The results; `null` when there was no statement.
    #[serde(rename = "Results")]
    pub results: Option<Vec<SqlResult>>,
}

impl IntoIterator for SqlResults {
    type Item = SqlResult;
    type IntoIter = std::vec::IntoIter<SqlResult>;

    fn into_iter(self) -> Self::IntoIter {
        self.results.unwrap_or_default().into_iter()
    }
}

/// The result of one statement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SqlResult {
    /// Whether there are rows.
    #[serde(rename = "type")]
    pub kind: SqlResultType,
    /// The names of the columns; `null` without rows.
    pub columns: Option<Vec<String>>,
    /// The rows; integers are exact to 64 bits, a blob is the text `x'…'`; `null` without rows.
    pub rows: Option<Vec<Vec<Value>>>,
    /// How many rows were written.
    pub rows_affected: u64,
}

/// Whether a statement returned rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum SqlResultType {
    /// It returned rows.
    Select,
    /// It did not.
    Exec,
}

impl SqlResult {
    /// A result with rows.
    #[must_use]
    pub fn select(columns: Vec<String>, rows: Vec<Vec<Value>>) -> Self {
        let (columns, rows) = (Some(columns), Some(rows));
        SqlResult { kind: SqlResultType::Select, columns, rows, rows_affected: 0 }
    }

    /// A result without rows.
    #[must_use]
    pub fn exec(rows_affected: u64) -> Self {
        SqlResult { kind: SqlResultType::Exec, columns: None, rows: None, rows_affected }
    }
}

/// The database as SQL.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SqlDump {
    /// Statements that restore it.
    pub text: String,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn results_have_the_recorded_shape() {
        let text = r#"{"Results":[{"type":"exec","columns":null,"rows":null,"rows_affected":1}]}"#;
        let results: SqlResults = serde_json::from_str(text).unwrap();
        assert_eq!(results, SqlResults { results: Some(vec![SqlResult::exec(1)]) });
        assert_eq!(serde_json::to_string(&results).unwrap(), text);
        assert_eq!(serde_json::to_string(&SqlResults::default()).unwrap(), r#"{"Results":null}"#);
    }

    #[test]
    fn integers_stay_exact() {
        let text = r#"{"type":"select","columns":["n"],"rows":[[9223372036854775807],[-9223372036854775808]],"rows_affected":0}"#;
        let result: SqlResult = serde_json::from_str(text).unwrap();
        let rows = result.rows.as_ref().unwrap();
        assert_eq!((rows[0][0].as_i64(), rows[1][0].as_i64()), (Some(i64::MAX), Some(i64::MIN)));
        assert_eq!(serde_json::to_string(&result).unwrap(), text);
    }

    #[test]
    fn a_plain_request_is_the_query_alone() {
        let request = SqlRequest::new("SELECT 1");
        assert_eq!(serde_json::to_string(&request).unwrap(), r#"{"query":"SELECT 1"}"#);
        let text = r#"{"query":"SELECT ?1","parameters":[1],"consistency":"local"}"#;
        let request: SqlRequest = serde_json::from_str(text).unwrap();
        assert_eq!(request.consistency, Consistency::Local);
        assert_eq!(serde_json::to_string(&request).unwrap(), text);
        assert!(serde_json::from_str::<SqlRequest>("{}").is_err());
    }
}
