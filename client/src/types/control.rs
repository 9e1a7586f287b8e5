//! Bootstrap, join and tokens, as asked for over the unix socket.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::init_config::InitConfig;
use super::lenient;
use super::timestamp::Timestamp;
use crate::{Address, Name, Secret};

/// Bootstrap or join. Everything may be missing on the wire; what is needed depends on which.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ControlRequest {
    /// Begin a new cluster.
    pub bootstrap: bool,
    /// The product's own settings.
    #[serde(deserialize_with = "lenient::null_default")]
    pub config: InitConfig,
    /// Join the cluster that gave this token; empty for none.
    #[serde(deserialize_with = "lenient::null_default")]
    pub join_token: Secret,
    /// The cluster address of the new member.
    #[serde(with = "lenient::empty_none")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::empty_or::<Address>"))]
    pub address: Option<Address>,
    /// The name of the new member.
    #[serde(with = "lenient::empty_none")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::empty_or::<Name>"))]
    pub name: Option<Name>,
}

impl ControlRequest {
    /// Begin a new cluster as its first member.
    #[must_use]
    pub fn bootstrap(name: Name, address: Address) -> Self {
        let (name, address) = (Some(name), Some(address));
        ControlRequest { bootstrap: true, name, address, ..ControlRequest::default() }
    }

    /// Join the cluster that gave this token.
    #[must_use]
    pub fn join(name: Name, address: Address, token: Secret) -> Self {
        let (name, address) = (Some(name), Some(address));
        ControlRequest { join_token: token, name, address, ..ControlRequest::default() }
    }

    /// The same with the product's own settings.
    #[must_use]
    pub fn with_config(mut self, config: InitConfig) -> Self {
        self.config = config;
        self
    }
}

/// A join token that has not been used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TokenRecord {
    /// The name that the joining member must have.
    pub name: Name,
    /// The token.
    pub token: Secret,
    /// When it expires; zero for never.
    #[serde(default)]
    pub expires_at: Timestamp,
}

/// Asks for a join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TokenRequest {
    /// The name that the joining member must have.
    pub name: Name,
    /// How long it is valid, in nanoseconds on the wire; none (0) for ever.
    #[serde(default, with = "lenient::nanoseconds")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::nanoseconds"))]
    pub expire_after: Option<Duration>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_control_request_may_lack_everything() {
        let empty: ControlRequest = serde_json::from_str("{}").unwrap();
        assert_eq!(empty, ControlRequest::default());
        let text = r#"{"bootstrap":true,"config":null,"join_token":"","address":"127.0.0.1:9001","name":""}"#;
        let request: ControlRequest = serde_json::from_str(text).unwrap();
        assert_eq!(request.address, Some("127.0.0.1:9001".parse().unwrap()));
        assert_eq!((request.name, request.config.len()), (None, 0));
    }

    #[test]
    fn a_control_request_round_trips_and_hides_its_token() {
        let name: Name = "c2".parse().unwrap();
        let address: Address = "[::1]:9000".parse().unwrap();
        let request = ControlRequest::join(name, address, "tok".into());
        let json = serde_json::to_string(&request).unwrap();
        assert!(json.contains(r#""join_token":"tok","address":"[::1]:9000","name":"c2""#), "{json}");
        assert_eq!(serde_json::from_str::<ControlRequest>(&json).unwrap(), request);
        assert!(!format!("{request:?}").contains("tok\""));
    }

    #[test]
    fn a_token_request_counts_nanoseconds() {
        let parsed = |text: &str| serde_json::from_str::<TokenRequest>(text);
        let three_hours = parsed(r#"{"name":"x","expire_after":10800000000000}"#).unwrap();
        assert_eq!(three_hours.expire_after, Some(Duration::from_secs(3 * 3600)));
        assert_eq!(parsed(r#"{"name":"x"}"#).unwrap().expire_after, None);
        assert_eq!(parsed(r#"{"name":"x","expire_after":0}"#).unwrap().expire_after, None);
        assert!(parsed(r#"{"name":"x","expire_after":-1}"#).is_err());
        assert!(parsed(r#"{"name":5}"#).is_err());
        assert!(parsed(r#"{"expire_after":1}"#).is_err());
        assert!(serde_json::to_string(&three_hours).unwrap().contains("10800000000000"));
    }
}
