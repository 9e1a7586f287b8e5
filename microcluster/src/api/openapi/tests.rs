//! The description is whole, follows the rules of OpenAPI 3.1, and is the one that is checked in.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::document::{ambiguous_schemas, document, is_described, method_name, text};
use super::markdown;
use super::operations::OPERATIONS;
use crate::api::table::table;

/// Set to write the files anew instead of comparing them.
const UPDATE: &str = "MICROCLUSTER_WRITE_DOC";

#[test]
fn the_checked_in_description_is_that_of_the_code() {
    is_checked_in("src/api/openapi/openapi.json", &text());
}

#[test]
fn the_checked_in_reference_is_that_of_the_code() {
    is_checked_in("../doc/rest.md", &markdown::reference(&document()));
}

#[test]
fn every_route_for_clients_is_described_and_nothing_else() {
    let table = table();
    let routes: Vec<_> = table.iter().filter(|route| is_described(&route.path)).map(|r| r.handler_name()).collect();
    let described: Vec<_> = OPERATIONS.iter().map(|operation| operation.id).collect();
    let (route_set, operation_set): (BTreeSet<_>, BTreeSet<_>) =
        (routes.iter().copied().collect(), described.iter().copied().collect());
    assert_eq!(route_set, operation_set, "each route has an entry in operations.rs, named as its handler");
    assert_eq!(
        (routes.len(), described.len()),
        (route_set.len(), operation_set.len()),
        "a handler's name is used once"
    );
    let document = document();
    for route in table.iter().filter(|route| is_described(&route.path)) {
        assert_eq!(
            document["paths"][&*route.path][method_name(route)]["operationId"],
            route.handler_name(),
            "{}",
            route.path
        );
    }
    assert_eq!(operations(&document).count(), routes.len());
}

#[test]
fn every_operation_says_what_it_does_and_how_it_fails() {
    let document = document();
    let tags: Vec<_> = document["tags"].as_array().unwrap().iter().map(|tag| &tag["name"]).collect();
    for (place, operation) in operations(&document) {
        for key in ["operationId", "summary", "description"] {
            assert!(operation[key].as_str().is_some_and(|text| !text.is_empty()), "{place} has no {key}");
        }
        assert!(!operation["summary"].as_str().unwrap().ends_with('.'), "{place}");
        assert!(operation["description"].as_str().unwrap().ends_with('.'), "{place}");
        assert!(tags.contains(&&operation["tags"][0]), "{place} has an unknown tag");
        let responses = operation["responses"].as_object().unwrap();
        assert!(responses.contains_key("200") && responses.len() >= 2, "{place}");
        for (code, response) in responses {
            let code: u16 = code.parse().unwrap();
            assert!(code == 200 || (400..600).contains(&code), "{place}");
            assert!(response["description"].as_str().is_some_and(|text| text.ends_with('.')), "{place}: {code}");
            assert!(response["content"]["application/json"]["schema"].is_object(), "{place}: {code}");
        }
    }
}

/// What the specification demands of a document, as far as this one can break it.
#[test]
fn the_document_follows_the_rules_of_openapi() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    for key in ["title", "version"] {
        assert!(document["info"][key].is_string());
    }
    let mut ids = BTreeSet::new();
    for (place, operation) in operations(&document) {
        assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{place}: its id is used twice");
        let path = place.split_once(' ').unwrap().1;
        assert!(path.starts_with('/'), "{place}");
        let parts = path.split(['{', '}']).skip(1).step_by(2);
        let in_path: BTreeSet<_> = parts.collect();
        let mut named = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let (name, kind) = (parameter["name"].as_str().unwrap(), parameter["in"].as_str().unwrap());
            assert!(seen.insert((name, kind)), "{place}: {name} stands there twice");
            assert!(parameter["schema"].is_object(), "{place}: {name}");
            match kind {
                "path" => {
                    assert_eq!(parameter["required"], true, "{place}: {name}");
                    named.insert(name);
                }
                "query" => assert!(parameter["description"].is_string(), "{place}: {name}"),
                other => panic!("{place}: {name} is in {other}"),
            }
        }
        assert_eq!(in_path, named, "{place}");
        for scheme in operation["security"].as_array().unwrap().iter().flat_map(|one| one.as_object().unwrap().keys()) {
            assert!(document["components"]["securitySchemes"][scheme].is_object(), "{place}: {scheme}");
        }
        if let Some(body) = operation.get("requestBody") {
            assert!(!place.starts_with("get ") && !place.starts_with("delete "), "{place} has a body");
            assert!(body["content"]["application/json"]["schema"].is_object(), "{place}");
        }
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        assert!(name.chars().all(allowed), "{name}");
        let about = schema["description"].as_str();
        assert!(about.is_some_and(|text| !text.is_empty()), "{name} has no description");
        for (field, of_field) in schema["properties"].as_object().into_iter().flatten() {
            assert!(of_field["description"].is_string(), "{name}.{field} has no description");
        }
    }
}

#[test]
fn every_reference_leads_somewhere_and_every_schema_is_used() {
    let document = document();
    let mut used = BTreeSet::new();
    references(&document, &mut |reference| {
        let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference} leads out of the document"));
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        used.insert(pointer.rsplit('/').next().unwrap().to_owned());
    });
    let all: BTreeSet<_> = document["components"]["schemas"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(used, all);
}

/// One name, one form: what is sent and what is answered share their types only where those look the same.
#[test]
fn a_schema_looks_the_same_in_requests_and_in_answers() {
    assert_eq!(ambiguous_schemas(), [""; 0]);
}

/// Everything that is refused before its handler has its code in the description.
#[test]
fn what_the_table_demands_is_among_the_errors() {
    let document = document();
    for (place, operation) in operations(&document) {
        let has = |code: &str| operation["responses"].get(code).is_some();
        let members_only = !operation["security"].as_array().unwrap().is_empty();
        assert_eq!(has("403"), members_only || place == "post /core/control", "{place}");
        assert!(!operation.as_object().unwrap().contains_key("requestBody") || has("400") && has("413"), "{place}");
    }
}

fn operations(document: &Value) -> impl Iterator<Item = (String, &Value)> {
    let paths: BTreeMap<_, _> = document["paths"].as_object().unwrap().iter().collect();
    paths.into_iter().flat_map(|(path, methods)| {
        methods.as_object().unwrap().iter().map(move |(method, operation)| (format!("{method} {path}"), operation))
    })
}

fn references(value: &Value, each: &mut impl FnMut(&str)) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                match field.as_str() {
                    Some(reference) if key == "$ref" => each(reference),
                    _ => references(field, each),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, each)),
        _ => {}
    }
}

fn is_checked_in(name: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    if std::env::var_os(UPDATE).is_some() {
        return std::fs::write(&path, made).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    let lines = checked_in.lines().zip(made.lines()).enumerate();
    let differs = lines.filter(|(_, (old, new))| old != new).map(|(number, (old, new))| (number + 1, old, new)).next();
    assert!(
        checked_in == made,
        "{name} is not what the code says: {differs:?}; write it anew with \
         {UPDATE}=1 cargo test -p microcluster --lib openapi, and look at what has changed"
    );
}
