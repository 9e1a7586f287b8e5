//! Bytes from outside never bring a parser down, and what was written is read again: names, addresses, fingerprints, times,
//! and every JSON object of the API.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::str::FromStr;
use std::time::Duration;

use microcluster_client::{
    Address, Consistency, ControlRequest, DaemonConfig, DaemonConfigUpdate, DaemonStatus, Empty, Envelope, Fingerprint,
    HeartbeatInfo, JoinRequest, JoinResponse, KeyPair, Member, MemberLocal, MemberStatus, Name, Role, Secret,
    ServerConfig, ServerStatus, SqlDump, SqlRequest, SqlResults, Timestamp, TokenRecord, TokenRequest, Verification,
};
use proptest::collection::{btree_map, vec};
use proptest::option::of as option;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn name() -> impl Strategy<Value = Name> {
    let name = "[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?(\\.[A-Za-z0-9]([A-Za-z0-9-]{0,20}[A-Za-z0-9])?){0,3}";
    name.prop_map(|text| text.parse().unwrap())
}

fn address() -> impl Strategy<Value = Address> {
    (any::<std::net::IpAddr>(), any::<u16>()).prop_map(|(ip, port)| std::net::SocketAddr::from((ip, port)).into())
}

fn timestamp() -> impl Strategy<Value = Timestamp> {
    (-62_135_596_800_i64..253_402_300_800).prop_map(|seconds| Timestamp::from_unix_seconds(seconds).unwrap())
}

fn secret() -> impl Strategy<Value = Secret> {
    any::<String>().prop_map(Secret::new)
}

fn control_request() -> impl Strategy<Value = ControlRequest> {
    let config = btree_map(any::<String>(), any::<String>(), 0..3);
    (any::<bool>(), config, secret(), option(address()), option(name())).prop_map(
        |(bootstrap, config, join_token, address, name)| ControlRequest {
            bootstrap,
            config: config.into_iter().collect(),
            join_token,
            address,
            name,
        },
    )
}

fn config_update() -> impl Strategy<Value = DaemonConfigUpdate> {
    let servers = btree_map(name(), address().prop_map(|address| ServerConfig { address }), 0..3);
    (option(name()), option(address()), option(servers), option(any::<u64>())).prop_map(
        |(name, address, servers, failure_domain)| DaemonConfigUpdate { name, address, servers, failure_domain },
    )
}

fn member() -> impl Strategy<Value = Member> {
    let role = prop_oneof![Just(Role::Voter), Just(Role::StandBy), Just(Role::Spare), Just(Role::Pending)];
    let status = prop_oneof![Just(MemberStatus::Online), Just(MemberStatus::NotTrusted), Just(MemberStatus::Unset)];
    (name(), address(), any::<String>(), role, any::<(u64, u64)>(), timestamp(), status, vec(any::<String>(), 0..3))
        .prop_map(|(name, address, certificate, role, (internal, external), last_heartbeat, status, extensions)| {
            Member {
                name,
                address,
                certificate,
                role,
                schema_internal_version: internal,
                schema_external_version: external,
                last_heartbeat,
                status,
                extensions,
                secret: Secret::default(),
            }
        })
}

fn join_request() -> impl Strategy<Value = JoinRequest> {
    (name(), address(), any::<String>(), any::<(u64, u64)>(), vec(any::<String>(), 0..3), secret()).prop_map(
        |(name, address, certificate, (internal, external), extensions, secret)| JoinRequest {
            name,
            address,
            certificate,
            schema_internal_version: internal,
            schema_external_version: external,
            extensions,
            secret,
        },
    )
}

fn sql_request() -> impl Strategy<Value = SqlRequest> {
    let value = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        proptest::num::f64::NORMAL.prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    let consistency = prop_oneof![Just(Consistency::Linearizable), Just(Consistency::Local)];
    (any::<String>(), vec(value, 0..4), consistency).prop_map(|(query, parameters, consistency)| {
        SqlRequest::new(query).with_parameters(parameters).with_consistency(consistency)
    })
}

/// What once failed stays beside the crate. `FUZZ` asks for that many times as many cases.
fn config() -> ProptestConfig {
    let failures = FileFailurePersistence::Direct("proptest-regressions/parsers.txt");
    let usual = ProptestConfig::default();
    let times = std::env::var("FUZZ").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    ProptestConfig { cases: usual.cases.saturating_mul(times), failure_persistence: Some(Box::new(failures)), ..usual }
}

/// JSON that is almost an object of the API: its field names, values of every kind.
fn almost_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        Just(json!("c1")),
        Just(json!("127.0.0.1:9000")),
        Just(json!("2026-01-01T00:00:00Z")),
    ];
    let field = proptest::sample::select(vec![
        "name",
        "address",
        "certificate",
        "secret",
        "bootstrap",
        "config",
        "join_token",
        "expire_after",
        "expires_at",
        "cert",
        "key",
        "ca",
        "servers",
        "failure-domain",
        "query",
        "parameters",
        "consistency",
        "extensions",
        "role",
        "status",
        "begin_round",
        "cluster_members",
        "leader_address",
        "last_heartbeat",
        "token",
        "type",
        "metadata",
        "Results",
        "rows",
        "columns",
        "member_id",
        "cluster_cert",
        "cluster_key",
        "trusted_member",
        "ClusterAdditionalCerts",
        "status_code",
        "error_code",
        "members",
        "digest",
        "index",
    ]);
    leaf.prop_recursive(4, 40, 8, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            btree_map(field.clone().prop_map(str::to_owned), inner, 0..8)
                .prop_map(|fields| fields.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    })
}

fn round_trips<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) -> Result<(), TestCaseError> {
    let text = serde_json::to_string(value).unwrap();
    prop_assert_eq!(&serde_json::from_str::<T>(&text).unwrap(), value, "{}", text);
    Ok(())
}

/// Reads `T`; what can be read is written and read again as the same.
fn read<T: Serialize + DeserializeOwned + PartialEq + Debug>(json: &[u8]) -> Result<(), TestCaseError> {
    serde_json::from_slice::<T>(json).map_or(Ok(()), |value| round_trips(&value))
}

fn read_as_everything(json: &[u8]) -> Result<(), TestCaseError> {
    read::<ControlRequest>(json)?;
    read::<TokenRequest>(json)?;
    read::<TokenRecord>(json)?;
    read::<JoinRequest>(json)?;
    read::<JoinResponse>(json)?;
    read::<HeartbeatInfo>(json)?;
    read::<Member>(json)?;
    read::<MemberLocal>(json)?;
    read::<KeyPair>(json)?;
    read::<DaemonConfig>(json)?;
    read::<DaemonConfigUpdate>(json)?;
    read::<BTreeMap<Name, ServerConfig>>(json)?;
    read::<ServerStatus>(json)?;
    read::<DaemonStatus>(json)?;
    read::<Verification>(json)?;
    read::<SqlRequest>(json)?;
    read::<SqlResults>(json)?;
    read::<SqlDump>(json)?;
    read::<Envelope<Empty>>(json)?;
    read::<Envelope<Vec<Member>>>(json)
}

/// A text is refused with a reason, or is read and written as something that is read as the same.
fn text<T: FromStr<Err: Display> + Display + PartialEq + Debug>(text: &str) -> Result<(), TestCaseError> {
    match text.parse::<T>() {
        Ok(value) => prop_assert_eq!(value.to_string().parse::<T>().ok(), Some(value)),
        Err(reason) => prop_assert!(!reason.to_string().is_empty()),
    }
    Ok(())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_text_is_a_value_or_an_error(any_text in ".{0,300}", close in "[A-Za-z0-9.:\\[\\]TZ+-]{0,80}") {
        for candidate in [&*any_text, &*close] {
            text::<Name>(candidate)?;
            text::<Address>(candidate)?;
            text::<Fingerprint>(candidate)?;
            text::<Timestamp>(candidate)?;
        }
    }

    #[test]
    fn names_addresses_and_times_round_trip(name in name(), address in address(), time in timestamp()) {
        round_trips(&name)?;
        round_trips(&address)?;
        round_trips(&time)?;
        prop_assert_eq!(name.as_str().parse::<Name>().unwrap(), name);
    }

    #[test]
    fn a_name_is_safe_in_a_path_a_certificate_and_a_log(text in ".{0,300}") {
        if let Ok(name) = text.parse::<Name>() {
            let text = name.as_str();
            prop_assert!(text.len() <= 255 && !text.contains("..") && !text.starts_with(['.', '-']));
            prop_assert!(text.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c)));
        }
    }

    #[test]
    fn any_pem_has_a_fingerprint_or_is_refused(before in ".{0,60}", base64 in "[A-Za-z0-9+/=\n]{0,400}", after in ".{0,60}") {
        let pem = format!("{before}\n-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n{after}");
        let _ = Fingerprint::of_pem(&pem);
        let _ = Fingerprint::of_pem(&before);
    }

    #[test]
    fn any_bytes_are_an_object_or_an_error(bytes in vec(any::<u8>(), 0..300)) {
        read_as_everything(&bytes)?;
    }

    #[test]
    fn json_that_is_almost_right_is_an_object_or_an_error(json in almost_json()) {
        read_as_everything(json.to_string().as_bytes())?;
    }

    #[test]
    fn a_request_that_is_cut_or_changed_is_read_or_refused(
        request in control_request(), cut in any::<proptest::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut json = serde_json::to_vec(&request).unwrap();
        let place = cut.index(json.len());
        read_as_everything(&json[..place])?;
        json[place] = byte;
        read_as_everything(&json)?;
    }

    #[test]
    fn requests_round_trip(
        control in control_request(), update in config_update(), join in join_request(), sql in sql_request(),
        member in member(), (name, nanoseconds) in (name(), 1..i64::MAX as u64),
    ) {
        round_trips(&control)?;
        round_trips(&update)?;
        round_trips(&join)?;
        round_trips(&sql)?;
        round_trips(&member)?;
        let cluster_members = BTreeMap::from([(member.address, member.clone())]);
        let leader_address = Some(member.address);
        round_trips(&HeartbeatInfo { cluster_members, leader_address, ..HeartbeatInfo::default() })?;
        round_trips(&TokenRequest { name, expire_after: Some(Duration::from_nanos(nanoseconds)) })?;
        round_trips(&Envelope::success(vec![member]))?;
    }
}

/// Nested far deeper than anything real: refused, not followed until the stack ends.
#[test]
fn json_without_a_bottom_is_refused() {
    for (open, close) in [("[", "]"), ("{\"config\":", "}")] {
        let deep = open.repeat(100_000) + "1" + &close.repeat(100_000);
        let body = format!(r#"{{"query":"","parameters":{deep}}}"#);
        assert!(serde_json::from_str::<SqlRequest>(&body).is_err());
        assert!(serde_json::from_str::<Envelope<Empty>>(&format!(r#"{{"metadata":{deep}}}"#)).is_err());
    }
}
