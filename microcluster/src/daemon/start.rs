//! The start: what the state directory says decides whether this is a member, a joiner, or neither.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::sync::{Mutex, mpsc, oneshot};

use super::certificates::load_or_make_server;
use super::member::Identity;
use super::rebuild::Damaged;
use super::servers::{NotOpened, Servers, keep_certificates};
use super::{COMMANDS_MAX, Core, CoreShared, Handle, Product, StartError};
use crate::api::{Api, ListenerKind};
use crate::cluster::join::JoinRecord;
use crate::cluster::{Peers, Standing};
use crate::config::MemberConfig;
use crate::db;
use crate::error::Chain;
use crate::extension::{self, Described};
use crate::hooks::Runner;
use crate::listener::{self, Listener, group_id, raise_files_max};
use crate::memory::give_back_after_work;
use crate::recovery::{self, TakeError};
use crate::state::{InitError, Lifecycle, State};
use crate::state_dir::{FileError, OpenError, StateDir, read_file};
use crate::tasks::{TaskLost, Tasks, blocking};
use crate::tls::{self, CertificateCell, KeyPair, LoadError};
use crate::trust::{Trust, TrustSet};

/// What the state directory says that this daemon is.
enum Found {
    Nothing,
    Joiner(Box<JoinRecord>),
    Member(Box<FoundMember>),
}

/// What the state directory of a member holds.
struct FoundMember {
    config: MemberConfig,
    cluster: KeyPair,
    trusted: TrustSet,
}

/// Starts a daemon. It is up when this returns.
pub(super) async fn start(product: Product) -> Result<Handle, StartError> {
    raise_files_max();
    let Product { mut settings, pre_init_listen, values, servers, hooks, schema } = product;
    let described = extension::check(&servers, pre_init_listen.as_deref());
    let described = described.map_err(|e| StartError::Description { reason: e.to_string() })?;
    let Described { core: routes, roots, additional, pre_init } = described;
    settings.pre_init_listen = pre_init;
    settings.servers = additional.iter().map(|server| (server.name.clone(), server.address)).collect();
    let voters = settings.role_counts.voters;
    if voters.is_multiple_of(2) {
        return Err(StartError::Voters { voters });
    }
    let path = settings.state_dir.clone();
    let (dir, server, found) = blocking("state directory", move || load(&path)).await??;
    let group = settings.socket_group.as_deref().map(|group| {
        group_id(group).map_err(|e| StartError::Group { group: group.into(), reason: Chain(&e).to_string() })
    });
    let group = group.transpose()?;
    let (commands_in, commands) = mpsc::channel(COMMANDS_MAX);
    let (control, internal) = mpsc::channel(COMMANDS_MAX);
    let state = State::new(settings, values, roots, dir, CertificateCell::new(server), commands_in);
    let requests = Tasks::new("requests");
    let socket = state.dir().control_socket();
    let api = Api::core(ListenerKind::Unix, &routes, &state, &requests);
    let control_socket =
        Listener::unix(socket.clone(), group, api).map_err(|source| StartError::Socket { path: socket, source })?;
    let shared = Arc::new(CoreShared {
        state: state.clone(),
        servers: Arc::new(Servers::new(additional, state.clone())),
        routes,
        requests,
        changes: Tasks::new("bootstrap, join, reset or rebuild"),
        running: Mutex::new(None),
        pre_init: Mutex::new(None),
        is_rebuilding: AtomicBool::new(false),
        hooks: Runner::new(hooks, state.settings().hook_timeout),
        schema,
        control: control.clone(),
    });
    let (done, wait) = oneshot::channel();
    let core = Core { shared: shared.clone(), commands, internal, control_socket };
    if let Err(e) = shared.begin(found).await {
        core.stop().await;
        return Err(e);
    }
    shared.begin_on_start();
    shared.changes.spawn("server certificates", keep_certificates(shared.servers.clone()));
    let changes = shared.changes.clone();
    shared.changes.spawn("memory", async move {
        tokio::select! {
            () = changes.stopping() => {}
            () = give_back_after_work() => {}
        }
    });
    // The one task without an owner above it: it owns everything else, and the handle waits for it.
    tokio::spawn(core.run(done));
    Ok(Handle { control, state, done: wait })
}

impl CoreShared {
    /// Becomes what the state directory says.
    async fn begin(self: &Arc<Self>, found: Found) -> Result<(), StartError> {
        match found {
            Found::Nothing => {
                self.open_pre_init().await?;
                self.servers.open_pre_init().await.map_err(server_failed)?;
                self.state.set_lifecycle(Lifecycle::Uninitialised);
                tracing::info!("waiting to be initialised");
            }
            Found::Joiner(record) => {
                self.state.set_lifecycle(Lifecycle::Initialising(None));
                let shared = self.clone();
                self.changes.spawn("join", async move { shared.resume_join(*record).await });
            }
            Found::Member(found) => self.be_member(*found).await?,
        }
        Ok(())
    }

    async fn be_member(self: &Arc<Self>, found: FoundMember) -> Result<(), StartError> {
        let FoundMember { config, cluster, trusted } = found;
        let MemberConfig { id, name, address, servers: config_servers, .. } = config.clone();
        let socket = address.socket_addr();
        let tcp = listener::bind(socket).await.map_err(|source| StartError::Listen { address: socket, source })?;
        let others = trusted.iter().filter(|member| member.name != name).map(|member| member.address).collect();
        let own = self.state.server_certificate().current().identity();
        let trust = Trust::new(trusted);
        let peers = Peers::new(&own, trust.clone()).map_err(|e| StartError::Tls { reason: e.to_string() })?;
        let damaged = Damaged { id, name: name.clone(), address, peers, others, node: None };
        let identity = Identity { config, is_member: true, trust, cluster };
        let path = self.state.dir().database();
        let failed = |e| match e {
            InitError::Open(source) => StartError::Database { path: path.clone(), source },
            other => StartError::Tls { reason: other.to_string() },
        };
        let node = match self.open_node(identity).await {
            Err(InitError::Open(e @ db::OpenError::Damaged { .. })) if !damaged.others.is_empty() => {
                tracing::error!(error = %e, "rebuilding this member from the others");
                drop(tcp);
                self.state.set_lifecycle(Lifecycle::Initialising(None));
                let shared = self.clone();
                self.changes.spawn("rebuild", async move { shared.rebuild(damaged).await });
                return Ok(());
            }
            opened => opened.map_err(failed)?,
        };
        if let Ok(Standing::TooOld(too_old)) = node.look_at_versions().await {
            node.db.shutdown().await;
            return Err(StartError::TooOld { reason: too_old.to_string() });
        }
        self.serve(&node, tcp).await.map_err(failed)?;
        let moved = config_servers.into_iter().map(|(name, server)| (name, server.address)).collect();
        self.servers.open_all(&moved).await.map_err(server_failed)?;
        self.become_member(&node).await;
        tracing::info!(member = %node.name, address = %node.address, "started as a member");
        Ok(())
    }
}

fn server_failed(error: NotOpened) -> StartError {
    StartError::Server { reason: Chain(&error).to_string() }
}

/// Reads the state directory, and clears away what a crash has left in it.
fn load(path: &Path) -> Result<(StateDir, KeyPair, Found), StartError> {
    let dir = StateDir::open(path)?;
    if dir.is_resetting() {
        tracing::info!("finishing a reset that was interrupted");
        dir.reset()?;
    }
    recovery::finish(&dir)?;
    let archive = dir.recovery_archive();
    recovery::take(&dir).map_err(|e| match e {
        TakeError::File(e) | TakeError::Unfinished(e) => e.into(),
        other => StartError::Content { path: archive, reason: other.to_string() },
    })?;
    tls::finish_installs(&dir)?;
    let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let found = find(&dir)?;
    let server = match found {
        // The others know a member by its certificate: another one would be a stranger's.
        Found::Member(_) | Found::Joiner(_) => {
            let path = dir.key_pair("server").certificate;
            let missing = || StartError::Content { path, reason: "it and its key are missing".into() };
            tls::load(&dir, "server")?.ok_or_else(missing)?
        }
        Found::Nothing => load_or_make_server(&dir, &machine)?,
    };
    let cluster = dir.key_pair("cluster");
    let is_begun = dir.database().exists() || cluster.certificate.exists() || cluster.key.exists();
    if matches!(found, Found::Nothing) && is_begun {
        // Neither a member nor a joiner: a bootstrap that did not get to its end. Nobody was told of it.
        tracing::warn!("removing what a bootstrap that was interrupted has left");
        dir.reset()?;
    }
    Ok((dir, server, found))
}

fn find(dir: &StateDir) -> Result<Found, StartError> {
    let record_path = dir.join_record();
    let record = read_file(&record_path)?.map(|text| serde_json::from_str::<JoinRecord>(&text)).transpose();
    let record = record.map_err(|e| StartError::Content { path: record_path, reason: e.to_string() })?;
    let path = dir.daemon_config();
    if let Some(text) = read_file(&path)? {
        let config = serde_norway::from_str::<MemberConfig>(&text)
            .map_err(|e| StartError::Content { path, reason: e.to_string() })?;
        match record {
            // A member that is being rebuilt.
            Some(record) if record.id != config.id => return Ok(Found::Joiner(Box::new(record))),
            // That join was complete, and the record not removed any more.
            _ => {}
        }
        let cert_path = dir.key_pair("cluster").certificate;
        let missing = || StartError::Content { path: cert_path, reason: "it and its key are missing".into() };
        let cluster = tls::load(dir, "cluster")?.ok_or_else(missing)?;
        let trusted = TrustSet::load(&dir.truststore())?;
        return Ok(Found::Member(Box::new(FoundMember { config, cluster, trusted })));
    }
    Ok(record.map_or(Found::Nothing, |record| Found::Joiner(Box::new(record))))
}

impl From<OpenError> for StartError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Held { path } => StartError::Held { path },
            OpenError::Io { path, source } => StartError::File { action: "use the state directory", path, source },
        }
    }
}

impl From<FileError> for StartError {
    fn from(FileError { action, path, source }: FileError) -> Self {
        StartError::File { action, path, source }
    }
}

impl From<LoadError> for StartError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::File(e) => e.into(),
            LoadError::KeyPair { path, source } => StartError::Content { path, reason: source.to_string() },
            LoadError::Half { ref present, .. } => {
                StartError::Content { path: present.clone(), reason: error.to_string() }
            }
        }
    }
}

impl From<TaskLost> for StartError {
    fn from(_: TaskLost) -> Self {
        StartError::Stopped
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::{PAIR, almost, cases};
    use crate::state_dir::{MODE_PUBLIC, write_file};
    use crate::tls::{Generate, SharedPair};

    fn record() -> JoinRecord {
        JoinRecord {
            id: 2,
            name: "c2".parse().unwrap(),
            address: "127.0.0.1:9002".parse().unwrap(),
            config: Default::default(),
            secret: "s".into(),
            cluster_cert: "c".into(),
            cluster_key: "k".into(),
            members: vec![],
            is_rebuild: false,
            is_agreed: false,
        }
    }

    #[test]
    fn the_directory_says_what_the_daemon_is() {
        let parent = tempfile::tempdir().unwrap();
        let found = |expected: &str| {
            let (dir, _, found) = load(parent.path()).unwrap();
            let name = match found {
                Found::Nothing => "nothing",
                Found::Joiner(_) => "joiner",
                Found::Member(_) => "member",
            };
            assert_eq!(name, expected);
            dir
        };
        let dir = found("nothing");
        let pair = KeyPair::generate(&Generate { name: "x", addresses: &[] }).unwrap();
        tls::install(&dir, "cluster", &SharedPair::own(pair.clone()), true).unwrap();
        std::fs::create_dir(dir.database()).unwrap();
        drop(dir);
        let dir = found("nothing");
        assert!(!dir.database().exists(), "the rest of a bootstrap is removed");
        write_file(&dir.join_record(), &serde_json::to_vec(&record()).unwrap(), MODE_PUBLIC).unwrap();
        std::fs::create_dir(dir.database()).unwrap();
        drop(dir);
        let dir = found("joiner");
        assert!(dir.database().exists(), "a joiner goes on with its log");
        tls::install(&dir, "cluster", &SharedPair::own(pair.clone()), true).unwrap();
        let config = MemberConfig::new(2, "c2".parse().unwrap(), "127.0.0.1:9002".parse().unwrap());
        let text = serde_norway::to_string(&config).unwrap();
        write_file(&dir.daemon_config(), text.as_bytes(), MODE_PUBLIC).unwrap();
        drop(dir);
        let dir = found("member");
        write_file(&dir.daemon_config(), b"id: x", MODE_PUBLIC).unwrap();
        drop(dir);
        let refused = load(parent.path()).map(|_| ()).unwrap_err();
        assert!(matches!(refused, StartError::Content { .. }), "{refused}");
    }

    #[test]
    fn an_interrupted_reset_is_finished() {
        let parent = tempfile::tempdir().unwrap();
        let (dir, first, _) = load(parent.path()).unwrap();
        write_file(&dir.path().join("resetting"), b"", MODE_PUBLIC).unwrap();
        write_file(&dir.daemon_config(), b"id: 1", MODE_PUBLIC).unwrap();
        drop(dir);
        let (dir, second, found) = load(parent.path()).unwrap();
        assert!(matches!(found, Found::Nothing));
        assert!(!dir.daemon_config().exists());
        assert_eq!(first.fingerprint(), second.fingerprint(), "the identity stays");
    }

    /// What a member's directory holds, by the names of its files.
    fn whole_member() -> [(&'static str, Vec<u8>); 6] {
        static MADE: std::sync::LazyLock<[(&str, Vec<u8>); 6]> = std::sync::LazyLock::new(|| {
            let [certificate, key] = [PAIR[0], PAIR[1]].map(str::to_owned);
            let config = MemberConfig::new(2, "c2".parse().unwrap(), "127.0.0.1:9002".parse().unwrap());
            let pending =
                serde_json::json!({"certificate": certificate, "key": key, "authority": "", "is_shared": false});
            [
                ("daemon.yaml", serde_norway::to_string(&config).unwrap().into_bytes()),
                ("joining.json", serde_json::to_vec(&record()).unwrap()),
                ("server.crt", certificate.clone().into()),
                ("server.key", key.clone().into()),
                ("cluster.crt", certificate.into()),
                ("cluster.pair", pending.to_string().into()),
            ]
        });
        MADE.clone()
    }

    proptest! {
        #![proptest_config(cases(150))]

        /// Whatever is in a file of the directory: the daemon starts or says which file it cannot use, and quotes no key.
        #[test]
        fn any_file_is_used_or_named(
            (name, content) in (0_usize..6).prop_flat_map(|which| {
                let (name, content) = whole_member()[which].clone();
                let anything = proptest::collection::vec(any::<u8>(), 0..200);
                (Just(name), prop_oneof![3 => almost(Just(content)), 1 => anything])
            }),
        ) {
            let parent = tempfile::tempdir().unwrap();
            for (file, content) in whole_member() {
                std::fs::write(parent.path().join(file), content).unwrap();
            }
            std::fs::write(parent.path().join(name), content).unwrap();
            if let Err(e) = load(parent.path()) {
                let (message, stem) = (Chain(&e).to_string(), name.split('.').next().unwrap());
                prop_assert!(message.contains(stem), "{} for {}", message, name);
                let key = String::from_utf8(whole_member()[3].1.clone()).unwrap();
                prop_assert!(!message.contains(&key.lines().nth(1).unwrap()[..20]), "{}", message);
            }
        }

        #[test]
        fn what_a_member_and_a_joiner_store_is_read_as_the_same(
            id in any::<u64>(), failure_domain in any::<u64>(), secret in any::<String>(), certificate in any::<String>(),
            settings in proptest::collection::btree_map(any::<String>(), any::<String>(), 0..4),
            address in any::<(std::net::IpAddr, u16)>(),
        ) {
            let address = std::net::SocketAddr::from(address).into();
            let mut config = MemberConfig::new(id, "c2".parse().unwrap(), address);
            config.failure_domain = failure_domain;
            config.servers.insert("metrics".parse().unwrap(), microcluster_client::ServerConfig { address });
            let yaml = serde_norway::to_string(&config).unwrap();
            prop_assert_eq!(serde_norway::from_str::<MemberConfig>(&yaml).unwrap(), config);
            let record = JoinRecord {
                id,
                config: settings.into_iter().collect(),
                secret: secret.into(),
                cluster_cert: certificate.clone(),
                members: vec![microcluster_client::MemberLocal { name: "c1".parse().unwrap(), address, certificate }],
                ..record()
            };
            let json = serde_json::to_string(&record).unwrap();
            prop_assert_eq!(serde_json::from_str::<JoinRecord>(&json).unwrap(), record);
        }
    }
}
