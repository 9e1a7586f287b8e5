//! The document as text for people: doc/rest.md.

use std::fmt::Write;

use serde_json::{Map, Value};

/// The whole reference.
pub(super) fn reference(document: &Value) -> String {
    let mut out = String::from(
        "# REST API\n\n<!-- Made from the code by a test, like openapi.json, which says the same. -->\n\n",
    );
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    line(&mut out, &text(&document["info"]["description"]));
    line(&mut out, "This description, as OpenAPI 3.1, is at `/core/1.0/openapi.json` of every daemon.");
    for tag in document["tags"].as_array().into_iter().flatten() {
        line(&mut out, &format!("## {}", capital(&text(&tag["name"]))));
        line(&mut out, &text(&tag["description"]));
        for (path, methods) in object(&document["paths"]) {
            for (method, operation) in object(methods) {
                if operation["tags"][0] == tag["name"] {
                    describe(&mut out, path, method, operation);
                }
            }
        }
    }
    line(&mut out, "## Types");
    for (name, schema) in object(&document["components"]["schemas"]) {
        line(&mut out, &format!("### {name}"));
        describe_type(&mut out, schema);
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

fn describe(out: &mut String, path: &str, method: &str, operation: &Value) {
    let text = |key: &str| operation[key].as_str().unwrap_or_default();
    line(out, &format!("### {} `{path}`", method.to_uppercase()));
    line(out, &format!("**{}.** {} (`{}`)", text("summary"), text("description"), text("operationId")));
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let (name, place) = (parameter["name"].as_str().unwrap_or_default(), &parameter["in"]);
        let about = parameter["description"].as_str().map_or_else(|| type_text(&parameter["schema"]), str::to_owned);
        let _ = writeln!(out, "- `{name}` in the {}: {about}", place.as_str().unwrap_or_default());
    }
    let content = |value: &Value| value["content"]["application/json"]["schema"].clone();
    if let Some(body) = operation.get("requestBody") {
        let _ = writeln!(out, "- Body: {}", type_text(&content(body)));
    }
    let success = &operation["responses"]["200"];
    let answer = match content(success)["allOf"][1]["properties"].get("metadata") {
        Some(metadata) => type_text(metadata),
        None => success["description"].as_str().unwrap_or_default().to_owned(),
    };
    let _ = writeln!(out, "- Answer: {answer}\n");
    let _ = writeln!(out, "| error | when |\n|---|---|");
    for (code, response) in object(&operation["responses"]).filter(|(code, _)| *code != "200") {
        let _ = writeln!(out, "| {code} | {} |", response["description"].as_str().unwrap_or_default());
    }
    out.push('\n');
}

fn describe_type(out: &mut String, schema: &Value) {
    if let Some(description) = schema["description"].as_str() {
        line(out, &description.replace('\n', " "));
    }
    if let Some(variants) = schema["oneOf"].as_array().filter(|all| all.iter().all(|one| one.get("const").is_some())) {
        for variant in variants {
            let _ = writeln!(out, "- `{}`: {}", variant["const"], variant["description"].as_str().unwrap_or_default());
        }
        out.push('\n');
    }
    let required = schema["required"].as_array();
    let mut fields = object(&schema["properties"]).peekable();
    if fields.peek().is_some() {
        let _ = writeln!(out, "| field | type | what |\n|---|---|---|");
        for (name, field) in fields {
            let always = required.is_some_and(|names| names.iter().any(|required| required == name));
            let about = field["description"].as_str().unwrap_or_default().replace('\n', " ");
            let optional = if always { "" } else { ", may be missing" };
            let _ = writeln!(out, "| `{name}` | {}{optional} | {about} |", type_text(field));
        }
        out.push('\n');
    }
}

/// A schema in a few words.
fn type_text(schema: &Value) -> String {
    let any_of = |all: &Value| {
        let words: Vec<_> = all.as_array().into_iter().flatten().map(type_text).collect();
        words.join(" or ")
    };
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or_default();
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(only) = schema.get("const") {
        return if only == "" { "empty".into() } else { format!("`{only}`") };
    }
    if schema["anyOf"].is_array() {
        return any_of(&schema["anyOf"]);
    }
    match &schema["type"] {
        Value::String(kind) => kind_text(kind, schema),
        Value::Array(kinds) => {
            let words: Vec<_> = kinds.iter().filter_map(Value::as_str).map(|kind| kind_text(kind, schema)).collect();
            words.join(" or ")
        }
        _ => "anything".into(),
    }
}

/// One of the kinds that a schema allows, with what is in it.
fn kind_text(kind: &str, schema: &Value) -> String {
    match kind {
        "array" => format!("list of {}", type_text(&schema["items"])),
        "object" => {
            let patterns = object(&schema["patternProperties"]).map(|(_, value)| value).next();
            match patterns.or_else(|| schema.get("additionalProperties")) {
                Some(values) if !values.is_boolean() => format!("map of name to {}", type_text(values)),
                _ => "object".into(),
            }
        }
        kind => kind.to_owned(),
    }
}

fn object(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push_str("\n\n");
}

fn capital(word: &str) -> String {
    let (first, rest) = word.split_at(word.len().min(1));
    first.to_uppercase() + rest
}
