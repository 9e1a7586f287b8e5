//! Whether an answer has the shape of a recorded one, and its values where they do not depend on the run.

use microcluster_client::Timestamp;
use serde_json::Value;

/// Fields whose values are the product's or the moment's; their types still count.
const VARYING: &[&str] = &["version", "extensions", "schema_internal_version", "schema_external_version"];

/// The first difference between an answer and the recorded one.
pub(super) fn difference(path: &str, ours: &Value, recorded: &Value, with_values: bool) -> Option<String> {
    match (ours, recorded) {
        (Value::Object(ours), Value::Object(recorded)) => {
            let missing =
                recorded.keys().find(|key| !ours.contains_key(*key)).map(|key| format!("{path}.{key} is missing"));
            let added =
                ours.keys().find(|key| !recorded.contains_key(*key)).map(|key| format!("{path}.{key} is added"));
            missing.or(added).or_else(|| {
                ours.iter().find_map(|(key, value)| {
                    let with_values = with_values && !VARYING.contains(&key.as_str());
                    difference(&format!("{path}.{key}"), value, &recorded[key], with_values)
                })
            })
        }
        (Value::Array(ours), Value::Array(recorded)) => {
            if with_values && ours.len() != recorded.len() {
                return Some(format!("{path} has {} elements, recorded are {}", ours.len(), recorded.len()));
            }
            ours.iter().enumerate().find_map(|(index, value)| {
                let recorded = recorded.get(index).or(recorded.last())?;
                difference(&format!("{path}[{index}]"), value, recorded, with_values)
            })
        }
        (Value::String(ours), Value::String(recorded)) => {
            let is_time = |text: &str| text.parse::<Timestamp>().is_ok();
            let is_placeholder = recorded.starts_with('<') && recorded.trim_end().ends_with('>') && recorded != "<&>";
            let equal = ours == recorded || is_placeholder || (is_time(ours) && is_time(recorded));
            (with_values && !equal).then(|| format!("{path} is {ours:?}, recorded is {recorded:?}"))
        }
        (Value::Number(_), Value::Number(_)) | (Value::Bool(_), Value::Bool(_)) | (Value::Null, Value::Null) => {
            (with_values && ours != recorded).then(|| format!("{path} is {ours}, recorded is {recorded}"))
        }
        _ => Some(format!("{path} is {ours}, recorded is {recorded}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_are_found_and_named() {
        let found = |ours: Value, recorded: Value| difference("x", &ours, &recorded, true);
        assert_eq!(found(json!({"a": [1, "t"]}), json!({"a": [1, "t"]})), None);
        assert_eq!(found(json!({"t": "2026-01-01T00:00:00Z"}), json!({"t": "2020-01-01T00:00:00Z"})), None);
        assert_eq!(found(json!("secret"), json!("<TOKEN>")), None);
        assert_eq!(found(json!({"version": "2"}), json!({"version": "1"})), None);
        for (ours, recorded, named) in [
            (json!({}), json!({"a": 1}), "x.a is missing"),
            (json!({"a": 1}), json!({}), "x.a is added"),
            (json!({"a": "1"}), json!({"a": 1}), "x.a is"),
            (json!({"a": null}), json!({"a": []}), "x.a is"),
            (json!([1]), json!([1, 2]), "1 elements"),
            (json!(["b"]), json!(["a"]), "x[0] is"),
            (json!({"version": 2}), json!({"version": "1"}), "x.version is"),
        ] {
            let found = found(ours, recorded).unwrap();
            assert!(found.contains(named), "{found}");
        }
    }
}
