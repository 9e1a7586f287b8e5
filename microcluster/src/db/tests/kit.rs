//! Databases of several members in one process, connected by pipes that can be cut.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};

use crate::db::{Consistency, Database, NodeId, Options, Peer, PeerConnector, PeerStream, Timings};

pub const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Net {
    up: Mutex<BTreeMap<String, Database>>,
    isolated: Mutex<BTreeSet<String>>,
    pipes: Mutex<Vec<(String, String, tokio_util::sync::CancellationToken)>>,
    /// How many bytes a second a new pipe carries each way; no bound where there is none.
    rate: Mutex<Option<u32>>,
}

struct Connector {
    from: String,
    net: Arc<Net>,
}

impl PeerConnector for Connector {
    fn connect(&self, address: String) -> Pin<Box<dyn Future<Output = io::Result<PeerStream>> + Send>> {
        let (net, from) = (Arc::clone(&self.net), self.from.clone());
        Box::pin(async move {
            let target = net.up.lock().unwrap().get(&address).cloned();
            let target = target.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionRefused))?;
            let (ours, mut theirs) = tokio::io::duplex(1 << 20);
            let rate = *net.rate.lock().unwrap();
            if let Some(bytes_per_second) = rate {
                theirs = thin(theirs, bytes_per_second);
            }
            let cut = tokio_util::sync::CancellationToken::new();
            {
                let isolated = net.isolated.lock().unwrap();
                if [&from, &address].iter().any(|end| isolated.contains(*end)) {
                    return Err(io::Error::from(io::ErrorKind::HostUnreachable));
                }
                // Under the lock, or a pipe could be made behind the back of who isolates.
                net.pipes.lock().unwrap().push((from, address, cut.clone()));
            }
            tokio::spawn(async move {
                tokio::select! {
                    // What is sent after the cut does not arrive.
                    biased;
                    () = cut.cancelled() => {}
                    () = target.serve_peer(Box::new(theirs)) => {}
                }
            });
            Ok(Box::new(ours) as PeerStream)
        })
    }
}

/// The end of a pipe that carries so much to and from the stream.
fn thin(stream: DuplexStream, bytes_per_second: u32) -> DuplexStream {
    let (near, far) = tokio::io::duplex(1 << 16);
    let ((from, to), (back_from, back_to)) = (tokio::io::split(stream), tokio::io::split(near));
    tokio::spawn(carry(from, back_to, bytes_per_second));
    tokio::spawn(carry(back_from, to, bytes_per_second));
    far
}

async fn carry(mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>, bytes_per_second: u32) {
    let mut bytes = vec![0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        tokio::time::sleep(Duration::from_secs(length as u64) / bytes_per_second).await;
        if to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

pub struct Cluster {
    net: Arc<Net>,
    dirs: BTreeMap<NodeId, TempDir>,
}

pub fn address(id: NodeId) -> String {
    format!("127.0.0.1:{id}")
}

pub fn peer(id: NodeId) -> Peer {
    Peer { name: format!("c{id}"), address: address(id) }
}

pub async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Cluster {
    pub async fn new(size: u64) -> Cluster {
        let mut cluster = Cluster { net: Arc::default(), dirs: BTreeMap::new() };
        for id in 1..=size {
            cluster.dirs.insert(id, tempfile::tempdir().unwrap());
            cluster.start(id).await;
        }
        cluster.db(1).initialise(peer(1)).await.unwrap();
        for id in 2..=size {
            cluster.db(1).add_learner(id, peer(id)).await.unwrap();
        }
        cluster.db(1).set_voters((1..=size).collect()).await.unwrap();
        cluster
    }

    pub fn db(&self, id: NodeId) -> Database {
        self.net.up.lock().unwrap()[&address(id)].clone()
    }

    pub async fn start(&mut self, id: NodeId) {
        let options = Options {
            is_member: false,
            dir: self.dirs[&id].path().to_owned(),
            node_id: id,
            connector: Arc::new(Connector { from: address(id), net: Arc::clone(&self.net) }),
            internal_schema: vec!["CREATE TABLE core_example(a)"],
            timings: Timings { request: Duration::from_secs(6), ..Timings::default() },
        };
        let db = Database::open(options).await.unwrap();
        self.net.up.lock().unwrap().insert(address(id), db);
    }

    pub async fn kill(&mut self, id: NodeId) {
        let db = self.net.up.lock().unwrap().remove(&address(id)).unwrap();
        self.cut(id);
        db.shutdown().await;
    }

    /// The folder of a member.
    pub fn dir(&self, id: NodeId) -> &std::path::Path {
        self.dirs[&id].path()
    }

    pub async fn restart(&mut self, id: NodeId) {
        self.kill(id).await;
        self.start(id).await;
    }

    /// How large the file of a member's state is whose name ends so.
    pub fn state_bytes(&self, id: NodeId, suffix: &str) -> u64 {
        let files = std::fs::read_dir(self.dirs[&id].path().join("state")).unwrap().map(Result::unwrap);
        let found = files.filter(|file| file.file_name().to_str().unwrap().ends_with(suffix));
        found.map(|file| file.metadata().unwrap().len()).sum()
    }

    /// Changes bytes in the state file of a member that is down.
    pub fn damage_state(&self, id: NodeId, find: &[u8], replacement: &[u8]) {
        let path = crate::db::state_file::current(&self.dirs[&id].path().join("state")).unwrap();
        // What is in the write-ahead log alone has checksums of its own.
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        drop(connection);
        let mut bytes = std::fs::read(&path).unwrap();
        // All of them: a page may hold stale copies of its cells.
        let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(find)).collect();
        assert!(!places.is_empty());
        for at in places {
            bytes[at..at + find.len()].copy_from_slice(replacement);
        }
        std::fs::write(&path, bytes).unwrap();
    }

    pub fn isolate(&self, id: NodeId) {
        self.net.isolated.lock().unwrap().insert(address(id));
        self.cut(id);
    }

    pub fn heal(&self) {
        self.net.isolated.lock().unwrap().clear();
    }

    /// From now on each connection carries so many bytes a second each way.
    pub fn throttle(&self, bytes_per_second: u32) {
        *self.net.rate.lock().unwrap() = Some(bytes_per_second);
        self.cut_pipes();
    }

    /// Breaks all connections; new ones can be made at once.
    pub fn cut_pipes(&self) {
        for (_, _, cut) in self.net.pipes.lock().unwrap().drain(..) {
            cut.cancel();
        }
    }

    fn cut(&self, id: NodeId) {
        self.net.pipes.lock().unwrap().retain(|(from, to, cut)| {
            let ours = *from == address(id) || *to == address(id);
            if ours {
                cut.cancel();
            }
            !ours
        });
    }

    fn all(&self) -> Vec<Database> {
        self.net.up.lock().unwrap().values().cloned().collect()
    }

    /// The leader on whom all members agree.
    pub async fn leader(&self) -> NodeId {
        let agreed = || {
            let leaders: BTreeSet<_> = self.all().iter().map(|db| db.status().leader).collect();
            let leader = leaders.first().copied().flatten();
            leader.filter(|id| leaders.len() == 1 && self.db(*id).status().is_leader())
        };
        until("the members agree on a leader", || async { agreed().is_some() }).await;
        agreed().unwrap()
    }

    pub async fn wait_applied(&self, id: NodeId, index: u64) {
        let db = self.db(id);
        until("the entries are applied", || async { *db.changes().borrow() >= index }).await;
    }

    pub async fn dump(&self, id: NodeId) -> String {
        self.db(id).dump(false).await.unwrap()
    }

    /// Waits until all members that are up hold the same.
    pub async fn wait_same(&self) {
        until("all members hold the same", || async {
            let mut dumps = BTreeSet::new();
            for db in self.all() {
                match db.dump(false).await {
                    Ok(dump) => dumps.insert(dump),
                    Err(_) => return false,
                };
            }
            dumps.len() == 1
        })
        .await;
    }

    /// Has a member drop its log at once, as its janitor does when it has grown, and says up to where.
    pub async fn shorten_log_now(&self, id: NodeId) -> u64 {
        let db = self.db(id);
        let applied = *db.changes().borrow();
        let raft = &db.inner.raft;
        raft.trigger().snapshot().await.unwrap();
        let synced = || raft.metrics().borrow().snapshot.map_or(0, |log_id| log_id.index);
        until("the state is on stable storage", || async { synced() >= applied }).await;
        raft.trigger().purge_log(applied).await.unwrap();
        until("the log is dropped", || async { db.purged_index() >= applied }).await;
        applied
    }

    /// Waits until the leader has dropped the start of its log.
    pub async fn shorten_log(&self, id: NodeId) {
        let db = self.db(id);
        until("the log is shortened", || async { db.purged_index() > 0 }).await;
        let rows = db.query_row(Consistency::Local, "SELECT 1", (), |row| row.get::<_, i64>(0)).await;
        assert_eq!(rows.unwrap(), Some(1));
    }
}
