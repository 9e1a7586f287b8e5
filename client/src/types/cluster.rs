//! Members of the cluster, as the API lists them and as heartbeats carry them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::lenient;
use super::timestamp::Timestamp;
use crate::{Address, Name, Secret};

/// One member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Member {
    /// Its name.
    pub name: Name,
    /// Its cluster address.
    pub address: Address,
    /// Its certificate, PEM.
    pub certificate: String,
    /// What it does in Raft.
    #[serde(default)]
    pub role: Role,
    /// Count of internal schema updates it has.
    #[serde(default)]
    pub schema_internal_version: u64,
    /// Count of the product's schema updates it has.
    #[serde(default)]
    pub schema_external_version: u64,
    /// When the leader last heard of it.
    #[serde(default)]
    pub last_heartbeat: Timestamp,
    /// Whether it answers now.
    #[serde(default)]
    pub status: MemberStatus,
    /// API extensions it has.
    #[serde(default, deserialize_with = "lenient::null_default")]
    pub extensions: Vec<String>,
    /// Always empty in answers.
    #[serde(default)]
    pub secret: Secret,
}

/// What is needed to find and trust a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MemberLocal {
    /// Its name.
    pub name: Name,
    /// Its cluster address.
    pub address: Address,
    /// Its certificate, PEM.
    pub certificate: String,
}

/// Makes an enum of texts: serde names, `as_str`, `Display`.
macro_rules! text_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)*
        }

        impl $name {
            /// The text on the wire.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok($name::$variant),)*
                    _ => Err(format!("{text:?} is none of {:?}", [$($text),*])),
                }
            }
        }
    };
}

text_enum! {
    /// What a member does in Raft.
    Role {
        /// Not said: in requests.
        #[default]
        Unset = "",
        /// Has the log and votes.
        Voter = "voter",
        /// Has the log, does not vote, is promoted first.
        StandBy = "stand-by",
        /// Has the log, does not vote, is promoted last.
        Spare = "spare",
        /// Has begun to join.
        Pending = "PENDING",
    }
}

text_enum! {
    /// Whether a member answers.
    MemberStatus {
        /// Not said: in requests.
        #[default]
        Unset = "",
        /// It answers.
        Online = "ONLINE",
        /// It does not answer.
        Unreachable = "UNREACHABLE",
        /// It answers and does not trust who asked.
        NotTrusted = "NOT TRUSTED",
        /// It answers and is no member.
        NotFound = "NOT FOUND",
        /// It waits for the others to be upgraded.
        Upgrading = "UPGRADING",
        /// It holds up the others' upgrade.
        NeedsUpgrade = "NEEDS UPGRADE",
    }
}

/// A heartbeat: what the leader tells about the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct HeartbeatInfo {
    /// Asks the leader for a round at once.
    pub begin_round: bool,
    /// Highest count of internal schema updates among the members.
    pub max_schema_internal: u64,
    /// Highest count of the product's schema updates among the members.
    pub max_schema_external: u64,
    /// The members by address.
    #[serde(deserialize_with = "lenient::null_default")]
    pub cluster_members: BTreeMap<Address, Member>,
    /// Who leads.
    #[serde(with = "lenient::empty_none")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::empty_or::<Address>"))]
    pub leader_address: Option<Address>,
}
