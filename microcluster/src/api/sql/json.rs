//! Values and results as JSON. Written by hand: rows go straight into the answer, without a tree between.

use std::io::Write;

use serde_json::Value as Json;

use crate::db::{QueryResult, Value};
use crate::error::Error;

const HEAD: &[u8] =
    br#"{"type":"sync","status":"Success","status_code":200,"operation":"","error_code":0,"error":"","metadata":{"Results":"#;
const TAIL: &[u8] = b"}}";
const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";

/// One parameter of a request.
pub(super) fn value((index, json): (usize, Json)) -> Result<Value, Error> {
    let refuse = |what| {
        let number = index + 1;
        Error::bad_request(format!(
            "parameter ?{number} is {what}; a parameter is null, true, false, a number or a text"
        ))
    };
    match json {
        Json::Null => Ok(Value::Null),
        Json::Bool(flag) => Ok(Value::Integer(flag.into())),
        Json::String(text) => Ok(Value::Text(text)),
        Json::Number(number) => match (number.as_i64(), number.is_u64(), number.as_f64()) {
            (Some(integer), _, _) => Ok(Value::Integer(integer)),
            (None, true, _) => Err(refuse("an integer that does not fit 64 bits with a sign")),
            (None, false, Some(real)) => Ok(Value::Real(real)),
            (None, false, None) => Err(refuse("a number that cannot be represented")),
        },
        Json::Array(_) => Err(refuse("a list")),
        Json::Object(_) => Err(refuse("an object")),
    }
}

/// The whole answer with the results of the statements, the envelope included.
pub(super) fn results(results: &[QueryResult]) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(HEAD);
    if results.is_empty() {
        out.extend_from_slice(b"null");
    } else {
        list(&mut out, results, write_result);
    }
    out.extend_from_slice(TAIL);
    out
}

fn write_result(out: &mut Vec<u8>, result: &QueryResult) {
    match result {
        QueryResult::Rows { columns, rows } => {
            out.extend_from_slice(br#"{"type":"select","columns":"#);
            list(out, columns, |out, column| write_text(out, column));
            out.extend_from_slice(br#","rows":"#);
            list(out, rows, |out, row| list(out, row, write_value));
            out.extend_from_slice(br#","rows_affected":0}"#);
        }
        QueryResult::Changed { rows_affected } => {
            out.extend_from_slice(br#"{"type":"exec","columns":null,"rows":null,"rows_affected":"#);
            put(out, format_args!("{rows_affected}}}"));
        }
    }
}

fn write_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Integer(integer) => put(out, format_args!("{integer}")),
        Value::Real(real) if real.is_finite() => {
            // As JSON writes it: always with a point or an exponent, so that it stays a real number.
            serde_json::to_writer(&mut *out, real).unwrap_or(());
        }
        // JSON has no number for it. SQLite can read these words back.
        Value::Real(real) if *real > 0.0 => out.extend_from_slice(br#""Inf""#),
        Value::Real(_) => out.extend_from_slice(br#""-Inf""#),
        Value::Text(text) => write_text(out, text),
        Value::Blob(bytes) => {
            out.reserve(bytes.len() * 2 + 5);
            out.extend_from_slice(b"\"x'");
            for byte in bytes {
                out.push(HEX_DIGITS[usize::from(byte >> 4)]);
                out.push(HEX_DIGITS[usize::from(byte & 15)]);
            }
            out.extend_from_slice(b"'\"");
        }
    }
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    // Neither a text nor a vector can fail to be written.
    serde_json::to_writer(out, text).unwrap_or(());
}

fn list<T>(out: &mut Vec<u8>, items: &[T], write: impl Fn(&mut Vec<u8>, &T)) {
    out.push(b'[');
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(out, item);
    }
    out.push(b']');
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // A vector takes everything.
    out.write_fmt(text).unwrap_or(());
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use microcluster_client::{Envelope, SqlResult, SqlResults};
    use serde_json::json;

    use super::*;

    fn written(answers: &[QueryResult]) -> Envelope<SqlResults> {
        serde_json::from_slice(&results(answers)).unwrap()
    }

    #[test]
    fn results_are_what_the_wire_types_say() {
        let rows = vec![
            vec![Value::Null, Value::Integer(i64::MIN), Value::Real(2.0), Value::Real(1e300)],
            vec![
                Value::Text("<&>\"\n\u{0}é".into()),
                Value::Integer(i64::MAX),
                Value::Blob(vec![0, 255, 16]),
                Value::Real(f64::NEG_INFINITY),
            ],
        ];
        let columns = vec!["a\"".to_owned(), "b".into(), "c".into(), "d".into()];
        let answers = [
            QueryResult::Rows { columns: columns.clone(), rows },
            QueryResult::Changed { rows_affected: 3 },
            QueryResult::Rows { columns: vec!["x".into()], rows: vec![] },
        ];
        let expected = vec![
            SqlResult::select(
                columns,
                vec![
                    vec![json!(null), json!(i64::MIN), json!(2.0), json!(1e300)],
                    vec![json!("<&>\"\n\u{0}é"), json!(i64::MAX), json!("x'00ff10'"), json!("-Inf")],
                ],
            ),
            SqlResult::exec(3),
            SqlResult::select(vec!["x".into()], vec![]),
        ];
        assert_eq!(written(&answers), Envelope::success(SqlResults { results: Some(expected) }));
    }

    #[test]
    fn no_statement_is_null() {
        assert_eq!(written(&[]), Envelope::success(SqlResults { results: None }));
    }

    #[test]
    fn parameters_are_exact_or_refused() {
        let good = [
            (json!(null), Value::Null),
            (json!(true), Value::Integer(1)),
            (json!(i64::MAX), Value::Integer(i64::MAX)),
            (json!(1.5), Value::Real(1.5)),
            (json!("x"), Value::Text("x".into())),
        ];
        for (json, expected) in good {
            assert_eq!(value((0, json)).unwrap(), expected);
        }
        for json in [json!(u64::MAX), json!([1]), json!({"a": 1})] {
            let error = value((1, json)).unwrap_err();
            assert_eq!(error.status(), 400);
            assert!(error.message().contains("?2"), "{error}");
        }
    }
}
