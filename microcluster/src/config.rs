//! Typed configuration of a daemon: what the product sets, and what is stored in `daemon.yaml`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use microcluster_client::{Address, DaemonConfig, Name, ServerConfig};
use serde::{Deserialize, Serialize};

/// API extensions of the daemon itself: what a client may rely on beyond the endpoints.
const EXTENSIONS_INTERNAL: [&str; 2] = ["internal:runtime_extension_v1", "internal:rename_core_endpoints"];

/// How many members of a cluster have which role; all others are spare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RoleCounts {
    pub voters: usize,
    pub stand_bys: usize,
}

impl Default for RoleCounts {
    /// Three voters survive the loss of one; stand-bys have the log and replace a voter at once.
    fn default() -> Self {
        RoleCounts { voters: 3, stand_bys: 3 }
    }
}

/// What the product and the operator set, fixed while the daemon runs.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub state_dir: PathBuf,
    /// Version of the product.
    pub version: String,
    pub heartbeat_interval: Duration,
    pub role_counts: RoleCounts,
    /// Group that may use the control socket, by name or number.
    pub socket_group: Option<String>,
    pub pre_init_listen: Option<Address>,
    /// How many schema updates the product has.
    pub schema_external_version: u64,
    pub api_extensions: Vec<String>,
    /// The additional servers, with the addresses that hold unless others are set while the daemon runs.
    pub servers: BTreeMap<Name, Address>,
    /// How long requests may go on after a stop was asked for.
    pub drain_timeout: Duration,
    /// How long a hook of the product may take.
    pub hook_timeout: Duration,
    /// How long an admitted joiner may take to ask to be taken in.
    pub pending_timeout: Duration,
}

impl Settings {
    pub fn new(state_dir: PathBuf) -> Self {
        Settings {
            state_dir,
            version: env!("CARGO_PKG_VERSION").into(),
            heartbeat_interval: Duration::from_secs(10),
            role_counts: RoleCounts::default(),
            socket_group: None,
            pre_init_listen: None,
            schema_external_version: 0,
            api_extensions: Vec::new(),
            servers: BTreeMap::new(),
            drain_timeout: Duration::from_secs(5),
            hook_timeout: Duration::from_secs(60),
            pending_timeout: Duration::from_secs(60),
        }
    }

    /// All API extensions: the daemon's own and the product's.
    pub fn extensions(&self) -> Vec<String> {
        let own = EXTENSIONS_INTERNAL.iter().map(ToString::to_string);
        own.chain(self.api_extensions.iter().cloned()).collect()
    }
}

/// What a member knows of itself, stored as `daemon.yaml`. The file is written last in a bootstrap or
/// a join: a state directory with it is a member's, one without is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemberConfig {
    /// The Raft node id.
    pub id: u64,
    pub name: Name,
    pub address: Address,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub servers: BTreeMap<Name, ServerConfig>,
    #[serde(default, rename = "failure-domain")]
    pub failure_domain: u64,
}

impl MemberConfig {
    pub fn new(id: u64, name: Name, address: Address) -> Self {
        MemberConfig { id, name, address, servers: BTreeMap::new(), failure_domain: 0 }
    }

    /// What of it is public.
    pub fn public(&self) -> DaemonConfig {
        DaemonConfig {
            name: self.name.clone(),
            address: self.address,
            servers: self.servers.clone(),
            failure_domain: self.failure_domain,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_member_config_round_trips_as_yaml() {
        let mut config = MemberConfig::new(3, "c3".parse().unwrap(), "[::1]:9003".parse().unwrap());
        let text = serde_norway::to_string(&config).unwrap();
        assert_eq!(text, "id: 3\nname: c3\naddress: '[::1]:9003'\nfailure-domain: 0\n");
        assert_eq!(serde_norway::from_str::<MemberConfig>(&text).unwrap(), config);
        config.servers.insert("metrics".parse().unwrap(), ServerConfig { address: "127.0.0.1:9443".parse().unwrap() });
        let text = serde_norway::to_string(&config).unwrap();
        assert_eq!(serde_norway::from_str::<MemberConfig>(&text).unwrap(), config);
    }

    #[test]
    fn a_name_that_yaml_reads_as_a_number_stays_a_name() {
        let config = MemberConfig::new(1, "123".parse().unwrap(), "127.0.0.1:1".parse().unwrap());
        let text = serde_norway::to_string(&config).unwrap();
        assert_eq!(serde_norway::from_str::<MemberConfig>(&text).unwrap(), config, "{text}");
    }
}
