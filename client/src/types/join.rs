//! A joiner presents itself, and what it is told.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::cluster::MemberLocal;
use super::daemon::KeyPair;
use super::lenient;
use crate::{Address, Name, Secret};

/// A joiner presents itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The name in the token.
    pub name: Name,
    /// The joiner's cluster address.
    pub address: Address,
    /// The joiner's certificate, PEM.
    pub certificate: String,
    /// Count of internal schema updates it has.
    #[serde(default)]
    pub schema_internal_version: u64,
    /// Count of the product's schema updates it has.
    #[serde(default)]
    pub schema_external_version: u64,
    /// API extensions it has.
    #[serde(default, deserialize_with = "lenient::null_default")]
    pub extensions: Vec<String>,
    /// The secret in the token.
    #[serde(default)]
    pub secret: Secret,
}

/// What a joiner needs to be a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinResponse {
    /// The cluster's certificate, PEM.
    pub cluster_cert: String,
    /// The cluster's private key, PEM.
    pub cluster_key: Secret,
    /// The members to trust.
    #[serde(deserialize_with = "lenient::null_default")]
    pub cluster_members: Vec<MemberLocal>,
    /// Certificates of additional servers by name.
    #[serde(default, rename = "ClusterAdditionalCerts", deserialize_with = "lenient::null_default")]
    pub cluster_additional_certs: BTreeMap<String, KeyPair>,
    /// The member that answered.
    pub trusted_member: MemberLocal,
    /// The joiner's Raft node id, taken from the log and never reused.
    #[serde(default)]
    pub member_id: u64,
}
