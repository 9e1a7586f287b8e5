//! The document: each route of the table with what is said of its handler, and the schemas that they need.

use std::collections::BTreeMap;

use http::Method;
use microcluster_client::Envelope;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::operations::{Answer, OPERATIONS, Operation, TAGS};
use crate::api::routes::{Access, ListenerKind, Phase, Route};
use crate::api::table::table;

/// The version of the Core API, which is in its paths.
const API_VERSION: &str = "1.0";
const ABOUT: &str = "The API of a microcluster daemon: HTTP/1.1 and HTTP/2, over the control socket of its machine and, \
    as a member of a cluster, over TLS 1.3 on its cluster address. Whoever may use the socket may do everything; over TLS \
    a client is known by its certificate. A result is in the envelope `Envelope`, an error in `ErrorEnvelope`. Every \
    answer names its request in the header `x-request-id`, as the log of the daemon does.";

/// The document as JSON text.
pub(super) fn text() -> String {
    // A tree of texts and numbers always has a JSON form.
    let mut text = serde_json::to_string_pretty(&document()).unwrap_or_default();
    text.push('\n');
    text
}

/// The document.
pub(super) fn document() -> Value {
    let mut schemas = Schemas::new();
    let mut paths = Map::new();
    for route in table().iter().filter(|route| is_described(&route.path)) {
        // A test holds that every such route has an entry.
        if let Some(operation) = OPERATIONS.iter().find(|operation| operation.id == route.handler_name()) {
            let path = paths.entry(&*route.path).or_insert_with(|| json!({}));
            path[method_name(route)] = describe(route, operation, &mut schemas);
        }
    }
    let tags: Vec<_> = TAGS.iter().map(|(name, about)| json!({ "name": name, "description": about })).collect();
    json!({
        "openapi": "3.1.0",
        "info": { "title": "microcluster Core API", "version": API_VERSION, "description": ABOUT },
        "servers": [{ "url": "/", "description": "The daemon that this was asked of." }],
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": schemas.finish(),
            "securitySchemes": {
                "member": { "type": "mutualTLS", "description": "The certificate of a member of the cluster." },
            },
        },
    })
}

/// What clients use; the rest is between members.
pub(super) fn is_described(path: &str) -> bool {
    let under = |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    path == "/" || ["/core/1.0", "/core/control", "/core/internal/sql"].into_iter().any(under)
}

/// The method as the document writes it. Each route of the Core API has one.
pub(super) fn method_name(route: &Route) -> String {
    route.method.as_ref().map(|method| method.as_str().to_ascii_lowercase()).unwrap_or_default()
}

fn describe(route: &Route, operation: &Operation, schemas: &mut Schemas) -> Value {
    let mut description = operation.details.to_owned();
    for sentence in [over(route), who(route.access)] {
        if !description.is_empty() {
            description.push(' ');
        }
        description.push_str(&sentence);
    }
    let mut responses = Map::new();
    responses.insert("200".into(), success(operation, schemas));
    for (code, reasons) in errors(route, operation) {
        let schema = json!({ "$ref": "#/components/schemas/ErrorEnvelope" });
        let content = json!({ "application/json": { "schema": schema } });
        responses.insert(code.to_string(), json!({ "description": reasons.join(" "), "content": content }));
    }
    let security = if needs_certificate(route.access) { json!([{ "member": [] }]) } else { json!([]) };
    let mut described = json!({
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": description,
        "security": security,
        "responses": responses,
    });
    let parameters = parameters(route, operation);
    if !parameters.is_empty() {
        described["parameters"] = Value::Array(parameters);
    }
    if let Some(body) = operation.body {
        let schema = body(&mut schemas.requests);
        described["requestBody"] = json!({ "required": true, "content": { "application/json": { "schema": schema } } });
    }
    described
}

fn parameters(route: &Route, operation: &Operation) -> Vec<Value> {
    let mut parameters = Vec::new();
    if route.path.contains("{name}") {
        let schema = json!({ "$ref": "#/components/schemas/Name" });
        parameters.push(json!({ "name": "name", "in": "path", "required": true, "schema": schema }));
    }
    for query in operation.query {
        let schema = match query.is_flag {
            true => json!({ "type": "string", "enum": ["1", "true"] }),
            false => json!({ "type": "string" }),
        };
        let (name, description) = (query.name, query.description);
        parameters.push(json!({ "name": name, "in": "query", "description": description, "schema": schema }));
    }
    if route.target {
        let schema = json!({ "$ref": "#/components/schemas/Name" });
        let description =
            "The member that the request is for; whoever gets it passes it on. This one if it is missing.";
        parameters.push(json!({ "name": "target", "in": "query", "description": description, "schema": schema }));
    }
    parameters
}

fn success(operation: &Operation, schemas: &mut Schemas) -> Value {
    let (description, schema) = match operation.answer {
        Answer::Raw(description) => (description, json!({ "type": "object" })),
        Answer::Enveloped(metadata) => {
            let metadata = metadata(&mut schemas.answers);
            let result = json!({ "properties": { "type": { "const": "sync" }, "metadata": metadata } });
            ("Done.", json!({ "allOf": [{ "$ref": "#/components/schemas/Envelope" }, result] }))
        }
    };
    json!({ "description": description, "content": { "application/json": { "schema": schema } } })
}

/// The errors of an operation: those of its route's kind, and its own.
fn errors(route: &Route, operation: &Operation) -> BTreeMap<u16, Vec<String>> {
    let mut errors: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    let mut add = |code, reason: &str| errors.entry(code).or_default().push(reason.to_owned());
    if operation.body.is_some() {
        add(400, "The body is not as expected; the message names the field.");
        add(408, "The body did not come in time.");
        add(413, &format!("The body is larger than {} bytes.", route.body_max));
    }
    if route.path.contains("{name}") {
        add(400, "The name in the path is none.");
    }
    if route.target {
        add(400, "The name in `target` is none.");
        add(404, "There is no member named as in `target`.");
        add(503, "The member named in `target` cannot be reached.");
    }
    if route.leader {
        add(503, "The cluster has no leader at the moment, or it cannot be reached.");
    }
    if route.target || route.leader {
        add(504, "The connection to the member that does it was lost; whether it was done is unknown.");
    }
    if needs_certificate(route.access) {
        add(403, "Over TLS: the client has not the certificate of a member.");
    }
    let uses_the_node = route.phase != Phase::Always || needs_certificate(route.access);
    if uses_the_node {
        add(503, "The daemon is no member of a cluster, or not yet, or stops, or the cluster has no quorum.");
    }
    if route.method.as_ref().is_some_and(|method| *method != Method::GET) {
        add(504, "The daemon gave up waiting, or stopped meanwhile; whether it was done is unknown.");
    }
    for (code, reason) in operation.errors {
        add(*code, reason);
    }
    add(500, "A fault of the daemon; its log says more.");
    errors
}

/// Where a route is served.
fn over(route: &Route) -> String {
    let names = route.listeners.iter().map(|listener| match listener {
        ListenerKind::Unix => "the control socket",
        ListenerKind::Tls => "the cluster address",
        ListenerKind::PreInit => "the pre-init address",
        ListenerKind::Additional => "an additional server",
    });
    format!("Over {}.", names.collect::<Vec<_>>().join(", "))
}

/// Whether who uses it over TLS needs a certificate that is known.
fn needs_certificate(access: Access) -> bool {
    matches!(access, Access::Member | Access::Joiner)
}

fn who(access: Access) -> String {
    match access {
        Access::Open => "For anybody.",
        Access::Member => "For members.",
        Access::Joiner => "For members, and for a joiner that was admitted.",
        Access::Token => "For whoever has a token.",
        Access::Socket => "For whoever may use the control socket.",
    }
    .into()
}

/// What a client sends and what it gets differ in which fields may be missing.
struct Schemas {
    requests: SchemaGenerator,
    answers: SchemaGenerator,
}

impl Schemas {
    fn new() -> Schemas {
        let settings = || {
            SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = "/components/schemas".into();
                settings.meta_schema = None;
            })
        };
        Schemas {
            requests: settings().for_deserialize().into_generator(),
            answers: settings().for_serialize().into_generator(),
        }
    }

    /// All schemas by name. A test holds that none has two forms.
    fn finish(mut self) -> Map<String, Value> {
        let envelope = self.answers.subschema_for::<Envelope<Value>>();
        self.answers.subschema_for::<microcluster_client::Name>();
        let error = json!({
            "description": "An error: the code is the HTTP status, the text says what was wrong and what to do.",
            "allOf": [envelope, {
                "properties": { "type": { "const": "error" }, "error": { "minLength": 1 }, "metadata": { "type": "null" } },
            }],
        });
        let mut all = self.requests.take_definitions(true);
        all.extend(self.answers.take_definitions(true));
        all.insert("ErrorEnvelope".into(), error);
        all
    }
}

/// The names of the schemas that have two forms.
#[cfg(test)]
pub(super) fn ambiguous_schemas() -> Vec<String> {
    let mut schemas = Schemas::new();
    for operation in OPERATIONS {
        operation.body.map(|body| body(&mut schemas.requests));
        if let Answer::Enveloped(answer) = operation.answer {
            answer(&mut schemas.answers);
        }
    }
    let (requests, answers) = (schemas.requests.take_definitions(true), schemas.answers.take_definitions(true));
    let differ = |(name, schema): &(&String, &Value)| answers.get(*name).is_some_and(|other| other != *schema);
    requests.iter().filter(differ).map(|(name, _)| name.clone()).collect()
}
