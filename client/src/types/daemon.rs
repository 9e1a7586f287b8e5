//! One daemon: what it says of itself, its configuration, its certificates.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::cluster::Role;
use super::lenient;
use super::timestamp::Timestamp;
use crate::{Address, Name, Secret};

/// What a daemon says of itself to anybody.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ServerStatus {
    /// The member's name; before initialisation the name of the machine.
    pub name: String,
    /// The cluster address; none before initialisation.
    #[serde(with = "lenient::empty_none")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::empty_or::<Address>"))]
    pub address: Option<Address>,
    /// The version of the product.
    pub version: String,
    /// Whether it is a member of a cluster and has started.
    pub ready: bool,
    /// API extensions it has.
    #[serde(deserialize_with = "lenient::null_default")]
    pub extensions: Vec<String>,
}

/// What a daemon says of itself to members and on its own machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DaemonStatus {
    /// The member's name.
    pub name: Name,
    /// Its cluster address.
    pub address: Address,
    /// The version of the product.
    pub version: String,
    /// Whether it has started.
    pub ready: bool,
    /// What it does in Raft.
    pub role: Role,
    /// Who leads, if that is known.
    pub leader: Option<Leader>,
    /// Whether a majority can be reached.
    pub quorum: bool,
    /// The replicated database here.
    pub database: DatabaseStatus,
    /// How many members the cluster has.
    pub members: u64,
    /// When the certificates used here expire.
    #[serde(default, deserialize_with = "lenient::null_default")]
    pub certificates: Vec<CertificateExpiry>,
}

/// The member that leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Leader {
    /// Its name.
    pub name: Name,
    /// Its cluster address.
    pub address: Address,
}

/// The replicated database of one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DatabaseStatus {
    /// What Raft does here: leader, follower, candidate, learner, shutdown.
    pub state: String,
    /// The Raft term.
    pub term: u64,
    /// Index of the last log entry here.
    pub last_log_index: u64,
    /// Index of the last log entry applied here.
    pub applied_index: u64,
}

/// When a certificate expires.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CertificateExpiry {
    /// `cluster`, `server`, or the name of an additional server.
    pub name: String,
    /// When it expires.
    pub expires_at: Timestamp,
}

/// The configuration of a daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DaemonConfig {
    /// The member's name, fixed.
    pub name: Name,
    /// Its cluster address, fixed.
    pub address: Address,
    /// Additional servers by name.
    #[serde(default, deserialize_with = "lenient::null_default")]
    pub servers: BTreeMap<Name, ServerConfig>,
    /// Members of one failure domain are expected to fail together; 0 for none.
    #[serde(default, rename = "failure-domain")]
    pub failure_domain: u64,
}

/// A change of a daemon's configuration. What is none stays when it is patched, and is cleared when all of it is replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct DaemonConfigUpdate {
    /// The member's name. It is fixed: another one is refused.
    #[serde(with = "lenient::empty_none", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::empty_or::<Name>"))]
    pub name: Option<Name>,
    /// Its cluster address. It is fixed: another one is refused.
    #[serde(with = "lenient::empty_none", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::empty_or::<Address>"))]
    pub address: Option<Address>,
    /// All additional servers by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub servers: Option<BTreeMap<Name, ServerConfig>>,
    /// The failure domain; 0 for none.
    #[serde(rename = "failure-domain", skip_serializing_if = "Option::is_none")]
    pub failure_domain: Option<u64>,
}

/// The configuration of an additional server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ServerConfig {
    /// Where it listens.
    pub address: Address,
}

/// A certificate with its private key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct KeyPair {
    /// The certificate, PEM.
    pub cert: String,
    /// The private key, PEM.
    pub key: Secret,
    /// The authority that signed the certificate, PEM; empty for none.
    #[serde(deserialize_with = "lenient::null_default")]
    pub ca: String,
}

/// Whether the members hold the same, at one index of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Verification {
    /// The log index at which the members were compared.
    pub index: u64,
    /// SHA-256 over the schema and all rows, as most members have it; empty when there is no such majority.
    pub digest: String,
    /// What was found out about each member.
    pub members: Vec<MemberVerdict>,
}

/// What a comparison found out about one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MemberVerdict {
    /// The member's name.
    pub name: String,
    /// Its cluster address.
    pub address: String,
    /// What it holds.
    pub verdict: Verdict,
    /// The reason, where there is more to say.
    #[serde(default)]
    pub detail: String,
}

/// What a member holds, next to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The same as most members.
    Same,
    /// Something else.
    Different,
    /// It cannot read what it holds.
    Damaged,
    /// It did not answer in time.
    Unknown,
}
