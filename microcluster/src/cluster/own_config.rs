//! What this member is set to: `daemon.yaml`, changed by one request at a time and seen by everybody at once.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use microcluster_client::{Address, DaemonConfig, DaemonConfigUpdate, Hook, Name, ServerConfig};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::hook_calls::HookError;
use super::members;
use super::node::Node;
use crate::config::MemberConfig;
use crate::db::{self, Consistency};
use crate::state_dir::{FileError, MODE_PUBLIC, StateDir, write_file};
use crate::tasks::{TaskLost, Tasks, blocking};

/// Pause before the member table is told again of what it could not be told.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// How long it may take until the servers listen where a change has them: one that is in the way of another one is drained first.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);

/// Where servers were to listen, and which of them do not, each with why.
type Opened = (BTreeMap<Name, ServerConfig>, BTreeMap<Name, String>);

/// The configuration of this member.
pub(crate) struct OwnConfig {
    dir: StateDir,
    current: watch::Sender<MemberConfig>,
    /// The servers as they were last opened.
    opened: watch::Sender<Option<Opened>>,
    changing: Mutex<()>,
    /// Held by what writes the file.
    is_over: Mutex<bool>,
    ended: CancellationToken,
}

/// What happens to a part of the configuration that a request does not name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// It is cleared.
    Clear,
    /// It stays.
    Keep,
}

/// Why the configuration was not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("the {what} of a member is fixed: it is {present}, and cannot be made {given}")]
    Fixed { what: &'static str, present: String, given: String },
    #[error("this daemon has no server {name} whose address can be set; it has {}", listed(.known))]
    UnknownServer { name: Name, known: BTreeSet<Name> },
    #[error(
        "the servers {one} on {one_address} and {other} on {address} cannot both listen: one is in the way of the other"
    )]
    AddressTwice { one: Name, one_address: Address, other: Name, address: Address },
    #[error("the server {name} cannot listen on {address}: the cluster address of this member is {own}")]
    AddressTaken { name: Name, address: Address, own: Address },
    #[error("the server {name} needs a fixed port, not port 0")]
    PortZero { name: Name },
    #[error("the configuration is not changed: this member is being removed, rebuilt or stopped")]
    Over,
    #[error("the configuration is as it was: {reason}")]
    NotOpened { reason: String },
    #[error("the configuration is as it was: {0}")]
    Hook(HookError),
    #[error("{}", unheard(.0))]
    Listen(Vec<(Name, Address, io::Error)>),
    #[error("cannot store the configuration")]
    File(#[from] FileError),
    #[error(transparent)]
    Lost(#[from] TaskLost),
}

impl OwnConfig {
    pub fn new(dir: StateDir, config: MemberConfig) -> Self {
        let (current, opened) = (watch::Sender::new(config), watch::Sender::new(None));
        OwnConfig {
            dir,
            current,
            opened,
            changing: Mutex::new(()),
            is_over: Mutex::new(false),
            ended: CancellationToken::new(),
        }
    }

    /// The configuration as it is now.
    pub fn current(&self) -> MemberConfig {
        self.current.borrow().clone()
    }

    /// Wakes up when it changes.
    pub fn watch(&self) -> watch::Receiver<MemberConfig> {
        self.current.subscribe()
    }

    /// Nothing is written from now on: this daemon is no member any more, or begins anew as one.
    pub async fn end(&self) {
        self.ended.cancel();
        // A change that is under way is undone first.
        let _changing = self.changing.lock().await;
        *self.is_over.lock().await = true;
    }

    /// Says which of the servers do not listen where a configuration has them, and why; all others do.
    pub fn servers_opened(&self, servers: BTreeMap<Name, ServerConfig>, failed: BTreeMap<Name, String>) {
        self.opened.send_replace(Some((servers, failed)));
    }

    /// Waits until those that are moved listen where this says. What another one lacks is not of this change: it was so before, and
    /// is tried again beside it.
    async fn are_opened(
        &self,
        servers: &BTreeMap<Name, ServerConfig>,
        moved: &BTreeSet<Name>,
    ) -> Result<(), ConfigError> {
        let mut opened = self.opened.subscribe();
        let told = opened.wait_for(|opened| opened.as_ref().is_some_and(|(of, _)| of == servers));
        let told = tokio::select! {
            () = self.ended.cancelled() => return Err(ConfigError::Over),
            told = tokio::time::timeout(OPEN_TIMEOUT, told) => told,
        };
        let told = told.ok().and_then(|told| told.ok().and_then(|told| told.clone()));
        match told {
            Some((_, failed)) => {
                let reasons: Vec<_> = moved.iter().filter_map(|name| failed.get(name)).map(String::as_str).collect();
                match reasons.is_empty() {
                    true => Ok(()),
                    false => Err(ConfigError::NotOpened { reason: reasons.join("; ") }),
                }
            }
            None => {
                Err(ConfigError::NotOpened { reason: format!("the servers were not open within {OPEN_TIMEOUT:?}") })
            }
        }
    }

    /// Writes `daemon.yaml` as it is: from then on this is a member's state directory.
    pub async fn store(&self) -> Result<(), ConfigError> {
        let _changing = self.changing.lock().await;
        self.write(self.current()).await
    }

    /// Changes what an update names; servers are those in `known`. It is in force when this is done: what is changed is changed
    /// back when a server that it moves cannot be opened, or the product, `agreed`, does not agree to it.
    pub async fn change<F>(
        &self,
        update: DaemonConfigUpdate,
        missing: Missing,
        known: &BTreeMap<Name, Address>,
        agreed: impl FnOnce(DaemonConfig) -> F,
    ) -> Result<(), ConfigError>
    where
        F: Future<Output = Result<(), HookError>>,
    {
        let _changing = self.changing.lock().await;
        let present = self.current();
        let changed = changed(&present, update, missing, known)?;
        if changed == present {
            return Ok(());
        }
        try_to_listen(&present, &changed, known).await?;
        // On disk first: what was seen once is there after a restart.
        self.write(changed.clone()).await?;
        tracing::info!(failure_domain = changed.failure_domain, servers = ?changed.servers, "the configuration was changed");
        // What is told from now on is of this change.
        self.opened.send_replace(None);
        self.current.send_replace(changed.clone());
        // Still with the lock: what comes after this must not be undone with it.
        let opened = match changed.servers == present.servers {
            true => Ok(()),
            false => self.are_opened(&changed.servers, &moved(&present, &changed, known)).await,
        };
        let in_force = match opened {
            Ok(()) => tokio::select! {
                () = self.ended.cancelled() => Err(ConfigError::Over),
                agreed = agreed(changed.public()) => agreed.map_err(ConfigError::Hook),
            },
            Err(e) => Err(e),
        };
        let Err(refused) = in_force else {
            return Ok(());
        };
        tracing::warn!(error = %refused, "the change of the configuration is undone");
        self.current.send_replace(present.clone());
        self.write(present).await?;
        Err(refused)
    }

    async fn write(&self, config: MemberConfig) -> Result<(), ConfigError> {
        let path = self.dir.daemon_config();
        // Held until it is written: what removes the file waits for that.
        let is_over = self.is_over.lock().await;
        if *is_over {
            return Err(ConfigError::Over);
        }
        blocking("daemon.yaml", move || -> Result<(), ConfigError> {
            let unwritable = |e| FileError { action: "write", path: path.clone(), source: io::Error::other(e) };
            let text = serde_norway::to_string(&config).map_err(unwritable)?;
            Ok(write_file(&path, text.as_bytes(), MODE_PUBLIC)?)
        })
        .await?
    }
}

/// Keeps in the member table what the configuration says that other members need to know, until the tasks are stopped.
pub(crate) async fn keep_own_row(node: Arc<Node>, tasks: Tasks) {
    let (mut config, mut changes) = (node.config.watch(), node.db.changes());
    loop {
        let wanted = config.borrow_and_update().failure_domain;
        let told = node.tell_failure_domain(wanted).await;
        if let Err(e) = &told {
            tracing::debug!(error = %e, "the member table is not told of the failure domain yet");
        }
        tokio::select! {
            () = tasks.stopping() => return,
            () = tokio::time::sleep(RETRY_PAUSE), if told.is_err() => {}
            changed = config.changed() => if changed.is_err() { return },
            // Until this replica has the member's own row.
            changed = changes.changed(), if matches!(told, Ok(false)) => if changed.is_err() { return },
        }
    }
}

impl Node {
    /// Changes what this member is set to, if its product agrees.
    pub async fn change_config(
        self: &Arc<Self>,
        update: DaemonConfigUpdate,
        missing: Missing,
        known: &BTreeMap<Name, Address>,
    ) -> Result<(), ConfigError> {
        let agreed = |config| self.run_hook(Hook::OnDaemonConfigUpdate(config));
        self.config.change(update, missing, known, agreed).await
    }

    /// Writes this member's failure domain into its row; says whether there is one by now.
    async fn tell_failure_domain(&self, wanted: u64) -> Result<bool, db::Error> {
        let rows = self.db.read(Consistency::AtLeast(self.db.seen_index()), members::all).await?;
        let Some(own) = rows.iter().find(|row| row.id == self.id) else {
            return Ok(false);
        };
        if own.failure_domain != wanted {
            let sql = "UPDATE core_cluster_members SET failure_domain = ?2 WHERE id = ?1";
            self.db.execute(sql, (self.id.cast_signed(), wanted.cast_signed())).await?;
            self.nudge();
        }
        Ok(true)
    }
}

/// The configuration after an update. Pure.
fn changed(
    present: &MemberConfig,
    update: DaemonConfigUpdate,
    missing: Missing,
    known: &BTreeMap<Name, Address>,
) -> Result<MemberConfig, ConfigError> {
    let fixed = |what, present: String, given: String| ConfigError::Fixed { what, present, given };
    if let Some(name) = update.name.filter(|name| *name != present.name) {
        return Err(fixed("name", present.name.to_string(), name.to_string()));
    }
    if let Some(address) = update.address.filter(|address| *address != present.address) {
        return Err(fixed("address", present.address.to_string(), address.to_string()));
    }
    let mut changed = present.clone();
    match (update.servers, missing) {
        (Some(servers), _) => {
            check_servers(&servers, present.address, known)?;
            changed.servers = servers;
        }
        (None, Missing::Clear) => changed.servers = BTreeMap::new(),
        (None, Missing::Keep) => {}
    }
    match (update.failure_domain, missing) {
        (Some(domain), _) => changed.failure_domain = domain,
        (None, Missing::Clear) => changed.failure_domain = 0,
        (None, Missing::Keep) => {}
    }
    Ok(changed)
}

fn check_servers(
    servers: &BTreeMap<Name, ServerConfig>,
    own: Address,
    known: &BTreeMap<Name, Address>,
) -> Result<(), ConfigError> {
    let unmoved = known.iter().filter(|(name, _)| !servers.contains_key(*name));
    let mut taken: Vec<(&Name, Address)> = unmoved.map(|(name, address)| (name, *address)).collect();
    for (name, ServerConfig { address }) in servers {
        let address = *address;
        if !known.contains_key(name) {
            return Err(ConfigError::UnknownServer { name: name.clone(), known: known.keys().cloned().collect() });
        }
        if address.port() == 0 {
            return Err(ConfigError::PortZero { name: name.clone() });
        }
        if address.overlaps(own) {
            return Err(ConfigError::AddressTaken { name: name.clone(), address, own });
        }
        if let Some((one, one_address)) = taken.iter().find(|(_, one)| one.overlaps(address)) {
            let (one, one_address, other) = ((*one).clone(), *one_address, name.clone());
            return Err(ConfigError::AddressTwice { one, one_address, other, address });
        }
        taken.push((name, address));
    }
    Ok(())
}

/// The servers that a change has listen elsewhere.
fn moved(present: &MemberConfig, changed: &MemberConfig, known: &BTreeMap<Name, Address>) -> BTreeSet<Name> {
    let address = |config: &MemberConfig, name: &Name, usual: Address| {
        config.servers.get(name).map_or(usual, |server| server.address)
    };
    let is_moved =
        |(name, usual): &(&Name, &Address)| address(present, name, **usual) != address(changed, name, **usual);
    known.iter().filter(is_moved).map(|(name, _)| name.clone()).collect()
}

/// Whether servers can listen where they are to be. They are opened after that, by who keeps them open.
async fn try_to_listen(
    present: &MemberConfig,
    changed: &MemberConfig,
    known: &BTreeMap<Name, Address>,
) -> Result<(), ConfigError> {
    let present = present.servers.values().map(|server| server.address);
    // What one of them has is free once they are moved.
    let own: Vec<Address> = known.values().copied().chain(present).collect();
    let mut failed = Vec::new();
    for (name, ServerConfig { address }) in &changed.servers {
        if !own.iter().any(|own| own.overlaps(*address))
            && let Err(source) = TcpListener::bind(address.socket_addr()).await
        {
            failed.push((name.clone(), *address, source));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(ConfigError::Listen(failed)) }
}

fn unheard(failed: &[(Name, Address, io::Error)]) -> String {
    let each = failed.iter().map(|(name, address, e)| format!("the server {name} cannot listen on {address}: {e}"));
    each.collect::<Vec<_>>().join("; ")
}

fn listed(known: &BTreeSet<Name>) -> String {
    if known.is_empty() {
        return "none".into();
    }
    known.iter().map(Name::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn present() -> MemberConfig {
        let mut config = MemberConfig::new(1, "c1".parse().unwrap(), "127.0.0.1:9001".parse().unwrap());
        config.failure_domain = 7;
        config.servers = servers(json!({"metrics": {"address": "127.0.0.1:9443"}}));
        config
    }

    fn servers(json: serde_json::Value) -> BTreeMap<Name, ServerConfig> {
        serde_json::from_value(json).unwrap()
    }

    fn known() -> BTreeMap<Name, Address> {
        let known = [("metrics", "127.0.0.1:9443"), ("gateway", "127.0.0.1:9445")];
        known.into_iter().map(|(name, address)| (name.parse().unwrap(), address.parse().unwrap())).collect()
    }

    fn apply(update: serde_json::Value, missing: Missing) -> Result<MemberConfig, ConfigError> {
        changed(&present(), serde_json::from_value(update).unwrap(), missing, &known())
    }

    #[test]
    fn what_is_missing_is_kept_or_cleared() {
        assert_eq!(apply(json!({}), Missing::Keep).unwrap(), present());
        let cleared = apply(json!({}), Missing::Clear).unwrap();
        assert_eq!((cleared.failure_domain, cleared.servers.len()), (0, 0));
        let patched = apply(json!({"failure-domain": 3}), Missing::Keep).unwrap();
        assert_eq!((patched.failure_domain, patched.servers.len()), (3, 1));
        let patched = apply(json!({"servers": {}, "failure-domain": 0}), Missing::Keep).unwrap();
        assert_eq!((patched.failure_domain, patched.servers.len()), (0, 0));
        let replaced = json!({"name": "c1", "address": "127.0.0.1:9001", "servers": null, "failure-domain": 9});
        let replaced = apply(replaced, Missing::Clear).unwrap();
        assert_eq!((replaced.failure_domain, replaced.servers.len()), (9, 0));
    }

    #[test]
    fn name_and_address_are_fixed() {
        for (update, named) in [
            (json!({"name": "c2"}), ["c1", "c2"]),
            (json!({"address": "127.0.0.1:9002"}), ["127.0.0.1:9001", "127.0.0.1:9002"]),
        ] {
            let message = apply(update, Missing::Keep).unwrap_err().to_string();
            assert!(named.iter().all(|named| message.contains(named)), "{message}");
        }
        assert!(apply(json!({"name": "", "address": ""}), Missing::Clear).is_ok(), "not given");
    }

    #[test]
    fn servers_that_cannot_be_are_refused() {
        let refused = |servers| apply(json!({"servers": servers}), Missing::Keep).unwrap_err();
        let error = refused(json!({"nope": {"address": "127.0.0.1:1"}}));
        assert!(error.to_string().contains("gateway, metrics"), "{error}");
        let two = json!({"metrics": {"address": "127.0.0.1:1"}, "gateway": {"address": "127.0.0.1:1"}});
        assert!(matches!(refused(two), ConfigError::AddressTwice { .. }));
        let two = json!({"metrics": {"address": "0.0.0.0:9445"}});
        assert!(matches!(refused(two), ConfigError::AddressTwice { .. }), "gateway is there");
        for own in ["127.0.0.1:9001", "0.0.0.0:9001"] {
            let own = json!({"metrics": {"address": own}});
            assert!(matches!(refused(own), ConfigError::AddressTaken { .. }));
        }
        let zero = json!({"metrics": {"address": "127.0.0.1:0"}});
        assert!(matches!(refused(zero), ConfigError::PortZero { .. }));
        let none = ConfigError::UnknownServer { name: "x".parse().unwrap(), known: BTreeSet::new() };
        assert!(none.to_string().contains("none"), "{none}");
    }

    #[tokio::test]
    async fn changes_at_the_same_time_are_all_there() {
        let parent = tempfile::tempdir().unwrap();
        let dir = StateDir::open(parent.path()).unwrap();
        let config = OwnConfig::new(dir.clone(), present());
        let update = |json| serde_json::from_value::<DaemonConfigUpdate>(json).unwrap();
        let gateway = json!({"servers": {"gateway": {"address": "127.0.0.1:9444"}}});
        let known = known();
        // As the daemon does that has servers.
        let mut watch = config.watch();
        let open = async {
            watch.wait_for(|config| config.servers != present().servers).await.unwrap();
            config.servers_opened(config.current().servers, BTreeMap::new());
        };
        let ((), one, other) = tokio::join!(
            open,
            config.change(update(gateway), Missing::Keep, &known, |_| async { Ok(()) }),
            config.change(update(json!({"failure-domain": 5})), Missing::Keep, &known, |_| async { Ok(()) }),
        );
        one.unwrap();
        other.unwrap();
        let text = std::fs::read_to_string(dir.daemon_config()).unwrap();
        let stored: MemberConfig = serde_norway::from_str(&text).unwrap();
        assert_eq!(stored, config.current());
        assert_eq!(stored.failure_domain, 5);
        assert!(stored.servers.contains_key(&"gateway".parse::<Name>().unwrap()));
    }

    #[tokio::test]
    async fn a_change_whose_servers_cannot_be_opened_is_undone() {
        let parent = tempfile::tempdir().unwrap();
        let dir = StateDir::open(parent.path()).unwrap();
        let config = OwnConfig::new(dir.clone(), present());
        let update = serde_json::from_value(json!({"servers": {"gateway": {"address": "127.0.0.1:9446"}}})).unwrap();
        let known = known();
        let mut watch = config.watch();
        let open = async {
            watch.wait_for(|config| config.servers != present().servers).await.unwrap();
            config.servers_opened(BTreeMap::new(), BTreeMap::new());
            let failed = [("gateway", "the address is gone"), ("metrics", "another matter")];
            config.servers_opened(config.current().servers, reasons(&failed));
        };
        // It is not asked about what is not in force.
        let agreed = |_| async { Err(HookError::Stopped { hook: "on_daemon_config_update" }) };
        let ((), refused) = tokio::join!(open, config.change(update, Missing::Keep, &known, agreed));
        let refused = refused.unwrap_err();
        assert!(matches!(&refused, ConfigError::NotOpened { reason } if reason == "the address is gone"), "{refused}");
        assert_eq!(config.current(), present());
        let text = std::fs::read_to_string(dir.daemon_config()).unwrap();
        assert_eq!(serde_norway::from_str::<MemberConfig>(&text).unwrap(), present());
    }

    fn reasons(failed: &[(&str, &str)]) -> BTreeMap<Name, String> {
        failed.iter().map(|(name, reason)| (name.parse().unwrap(), (*reason).to_owned())).collect()
    }

    /// Makes an update of the configuration while these servers cannot be opened.
    async fn change_while(failed: &[(&str, &str)], update: serde_json::Value) -> Result<MemberConfig, ConfigError> {
        let parent = tempfile::tempdir().unwrap();
        let dir = StateDir::open(parent.path()).unwrap();
        let config = OwnConfig::new(dir.clone(), present());
        let (known, mut watch) = (known(), config.watch());
        let open = async {
            watch.wait_for(|config| *config != present()).await.unwrap();
            config.servers_opened(config.current().servers, reasons(failed));
        };
        let update = serde_json::from_value(update).unwrap();
        let ((), done) = tokio::join!(open, config.change(update, Missing::Keep, &known, |_| async { Ok(()) }));
        done.map(|()| config.current())
    }

    #[tokio::test]
    async fn a_change_is_judged_by_the_servers_that_it_moves() {
        let both = [("gateway", "one reason"), ("metrics", "another one")];
        let metrics = json!({"address": "127.0.0.1:9443"});
        // The other one cannot be opened where it is, as before.
        let moves_gateway = json!({"servers": {"gateway": {"address": "127.0.0.1:9446"}, "metrics": metrics}});
        let changed = change_while(&both[1..], moves_gateway.clone()).await.unwrap();
        assert_eq!(changed.servers, servers(moves_gateway["servers"].clone()));
        let refused = change_while(&both, moves_gateway).await.unwrap_err();
        assert!(matches!(&refused, ConfigError::NotOpened { reason } if reason == "one reason"), "{refused}");
        // What is said explicitly and is so already is no move.
        let usual = json!({"servers": {"gateway": {"address": "127.0.0.1:9445"}, "metrics": metrics}});
        change_while(&both, usual).await.unwrap();
        // All that are wrong are named.
        let moves_both =
            json!({"servers": {"gateway": {"address": "127.0.0.1:9446"}, "metrics": {"address": "127.0.0.1:9447"}}});
        let refused = change_while(&both, moves_both).await.unwrap_err().to_string();
        assert!(refused.contains("one reason; another one"), "{refused}");
        // One that goes back to where the product wants it is moved.
        let mut config = present();
        config.servers = servers(json!({"metrics": {"address": "127.0.0.1:9999"}}));
        let metrics: Name = "metrics".parse().unwrap();
        assert_eq!(moved(&config, &present(), &known()), [metrics.clone()].into());
        config.servers.clear();
        assert_eq!(moved(&config, &present(), &known()), [].into());
    }

    #[tokio::test]
    async fn all_addresses_that_are_taken_are_named() {
        let (one, other) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let addresses = [one, other].map(|held| (held.local_addr().unwrap().to_string(), held));
        let [(one, _held), (other, _held_too)] = &addresses;
        let mut config = present();
        config.servers = servers(json!({"gateway": {"address": one}, "metrics": {"address": other}}));
        let refused = try_to_listen(&present(), &config, &known()).await.unwrap_err().to_string();
        for named in ["gateway", "metrics", one, other] {
            assert!(refused.contains(named), "{refused}");
        }
    }
}
