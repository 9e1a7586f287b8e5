//! The types against the exchanges recorded from the Go daemon.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use microcluster_client::{
    ControlRequest, Empty, HeartbeatInfo, JoinRequest, JoinResponse, KeyPair, Member, MemberLocal, Name, Secret,
    ServerConfig, ServerStatus, SqlDump, SqlRequest, SqlResults, TokenRecord, TokenRequest,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// What an answer or a body must be, read and written again without a change.
fn same<T: DeserializeOwned + Serialize>(value: &Value) -> Result<(), String> {
    let read: T = serde_json::from_value(value.clone()).map_err(|e| e.to_string())?;
    let written = serde_json::to_value(read).map_err(|e| e.to_string())?;
    (written == *value).then_some(()).ok_or(format!("became {written}"))
}

/// What can be read, though not every field of it is kept.
fn readable<T: DeserializeOwned>(value: &Value) -> Result<(), String> {
    serde_json::from_value::<T>(value.clone()).map(|_| ()).map_err(|e| e.to_string())
}

fn check_answer(request: &str, metadata: &Value) -> Option<Result<(), String>> {
    let path = request.split('?').next().unwrap_or_default();
    Some(match path {
        "GET /" => same::<Vec<String>>(metadata),
        "GET /core/1.0" => same::<ServerStatus>(metadata),
        "GET /core/1.0/cluster" => same::<Vec<Member>>(metadata),
        "GET /core/1.0/daemon/servers" => same::<BTreeMap<Name, ServerConfig>>(metadata),
        "GET /core/control/tokens" => same::<Vec<TokenRecord>>(metadata),
        "POST /core/control/tokens" => same::<Secret>(metadata),
        "GET /core/internal/sql" => same::<SqlDump>(metadata),
        "POST /core/internal/sql" => same::<SqlResults>(metadata),
        // Ours has the member's id too.
        "POST /core/internal/cluster" => readable::<JoinResponse>(metadata),
        _ if *metadata == serde_json::json!({}) => same::<Empty>(metadata),
        _ => return None,
    })
}

fn check_body(request: &str, body: &Value) -> Option<Result<(), String>> {
    Some(match request {
        "POST /core/control" => readable::<ControlRequest>(body),
        "POST /core/control/tokens" => readable::<TokenRequest>(body),
        "POST /core/internal/sql" => same::<SqlRequest>(body),
        "POST /core/internal/cluster" => readable::<JoinRequest>(body),
        "POST /core/internal/heartbeat" => readable::<HeartbeatInfo>(body),
        "POST /core/internal/truststore" => same::<MemberLocal>(body),
        _ if request.starts_with("PUT /core/1.0/cluster/certificates/") => same::<KeyPair>(body),
        _ => return None,
    })
}

#[test]
fn recorded_exchanges_fit_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/recorded-exchanges.jsonl");
    let recorded = fs::read_to_string(path).unwrap();
    let (mut answers, mut bodies) = (0, 0);
    for line in recorded.lines() {
        let exchange: Value = serde_json::from_str(line).unwrap();
        let request = exchange["request"].as_str().unwrap();
        let metadata = &exchange["response"]["metadata"];
        if exchange["status"] != 200 {
            continue;
        }
        if let Some(checked) = check_answer(request, metadata) {
            answers += 1;
            checked.unwrap_or_else(|e| panic!("{request}: {metadata}: {e}"));
        }
        // A body that is not JSON is recorded as its text in an object of its own.
        if exchange["body"].get("not-json").is_none()
            && let Some(checked) = check_body(request, &exchange["body"])
        {
            bodies += 1;
            checked.unwrap_or_else(|e| panic!("{request}: {}: {e}", exchange["body"]));
        }
    }
    assert!(answers >= 40, "only {answers} answers were checked");
    assert!(bodies >= 10, "only {bodies} bodies were checked");
}
