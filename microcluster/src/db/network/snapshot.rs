//! A snapshot on its way to a lagging member: a copy of the state in chunks, on a connection of its own,
//! checked by checksum, so that a slow transfer holds up no heartbeat.

use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt, WriteHalf};

use super::PeerStream;
use super::client::Peers;
use super::connection::{Frames, next_frame};
use super::message::{self, Frame, Reply, SnapshotStart, kind};
use super::server::Service;
use crate::db::raft_types::{NodeId, Snapshot, SnapshotData, Vote};
use crate::db::state_machine::IncomingSnapshot;

const CHUNK_BYTES: usize = 256 << 10;
/// After how much of it what arrives is brought onto stable storage: the disk must not find so much to write at once that logs wait.
const SYNC_BYTES: u64 = 8 << 20;
/// How long a member that has got a snapshot may take to get the entries behind it.
const CATCH_UP: Duration = Duration::from_secs(30);
/// How long one chunk may take to be taken.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the other side may take to install what it has got.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(120);

/// Whether snapshots are on their way. The log is not shortened meanwhile, nor for a while after: who has got one goes on
/// with the entries behind it.
#[derive(Clone, Default)]
pub(crate) struct Sending(Arc<Mutex<(usize, Option<Instant>)>>);

/// One snapshot on its way.
pub(crate) struct OnItsWay(Sending);

impl Sending {
    /// Counts one until the guard is dropped.
    pub fn begin(&self) -> OnItsWay {
        self.lock().0 += 1;
        OnItsWay(self.clone())
    }

    /// Whether the log should be left alone.
    pub fn is_recent(&self) -> bool {
        let (count, ended) = *self.lock();
        count > 0 || ended.is_some_and(|ended| ended.elapsed() < CATCH_UP)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (usize, Option<Instant>)> {
        // What the mutex holds is valid at every moment, also if a holder panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        *state = (state.0.saturating_sub(1), Some(Instant::now()));
    }
}

/// Sends a snapshot. `Ok(Err(…))`: the member has got it and cannot install it.
pub(crate) async fn send(
    peers: &Peers,
    target: NodeId,
    address: &str,
    dir: &Path,
    vote: Vote,
    snapshot: Snapshot,
) -> io::Result<Result<Vote, String>> {
    let meta = snapshot.meta;
    // Before the state is copied: a member that is down is tried again and again.
    let (mut frames, mut writer) = peers.dedicated(target, address).await?;
    let file = copy(*snapshot.snapshot, dir.to_owned()).await?;
    let (size, checksum) = {
        let path = file.path().to_owned();
        tokio::task::spawn_blocking(move || measure(&path)).await.map_err(io::Error::other)??
    };
    tracing::info!(peer = target, %address, size, snapshot = %meta.snapshot_id, "sending a snapshot");
    let start = SnapshotStart { vote, meta, size, checksum };
    let sent = transmit(&start, file.path(), &mut frames, &mut writer).await;
    if let Some(copy) = Arc::into_inner(file) {
        let removing = tokio::task::spawn_blocking(move || copy.remove()).await;
        // What is left of it is removed at once, or when the daemon is started next.
        let _ = removing
            .unwrap_or_else(|lost| Err(io::Error::other(lost)))
            .inspect_err(|error| tracing::debug!(%error, "the copy of a snapshot is not removed piece by piece"));
    }
    sent
}

async fn transmit(
    start: &SnapshotStart,
    file: &Path,
    frames: &mut Frames,
    writer: &mut WriteHalf<PeerStream>,
) -> io::Result<Result<Vote, String>> {
    let mut buffer = Vec::with_capacity(CHUNK_BYTES + 64);
    message::put_frame(&mut buffer, kind::SNAPSHOT, 1, start).map_err(io::Error::other)?;
    writer.write_all(&buffer).await?;
    let mut source = tokio::fs::File::open(file).await?;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let length = source.read(&mut chunk).await?;
        if length == 0 {
            break;
        }
        buffer.clear();
        message::put_raw_frame(&mut buffer, kind::CHUNK, 1, &chunk[..length]);
        bounded(CHUNK_TIMEOUT, writer.write_all(&buffer)).await?;
    }
    writer.flush().await?;
    match bounded(INSTALL_TIMEOUT, next_frame(frames)).await?.decode().map_err(io::Error::other)? {
        Reply::Snapshot(vote) => Ok(Ok(vote)),
        Reply::Failed(reason) => Ok(Err(reason)),
        reply => Err(io::Error::other(format!("unexpected reply: {reply:?}"))),
    }
}

/// Receives the snapshot that `start` announces and installs it.
pub(crate) async fn receive(service: &Service, start: Frame, frames: &mut Frames) -> io::Result<Reply> {
    let raft = &service.raft;
    let start: SnapshotStart = start.decode().map_err(io::Error::other)?;
    tracing::info!(size = start.size, snapshot = %start.meta.snapshot_id, "receiving a snapshot");
    let data = raft.begin_receiving_snapshot().await.map_err(io::Error::other)?;
    let SnapshotData::Incoming(incoming) = *data else {
        return Err(io::Error::other("no place to receive a snapshot"));
    };
    let mut file = tokio::fs::File::create(incoming.path()).await?;
    let (mut received, mut synced, mut checksum) = (0_u64, 0_u64, 0);
    while received < start.size {
        let frame = bounded(CHUNK_TIMEOUT, next_frame(frames)).await?;
        if frame.kind != kind::CHUNK {
            return Err(io::Error::other(message::MessageError::Kind(frame.kind)));
        }
        if service.log.vote().is_none_or(|own| start.vote >= own) {
            service.shared.heard.note(start.vote);
        }
        received += frame.body.len() as u64;
        checksum = crc32c::crc32c_append(checksum, &frame.body);
        file.write_all(&frame.body).await?;
        if received - synced >= SYNC_BYTES {
            file.sync_data().await?;
            synced = received;
        }
    }
    file.sync_all().await?;
    drop(file);
    if received != start.size || checksum != start.checksum {
        return Ok(Reply::Failed(format!("the snapshot arrived damaged: {received} of {} bytes", start.size)));
    }
    let snapshot = Snapshot { meta: start.meta, snapshot: Box::new(SnapshotData::Incoming(incoming)) };
    match raft.install_full_snapshot(start.vote, snapshot).await {
        Ok(response) => Ok(Reply::Snapshot(response.vote)),
        Err(error) => Ok(Reply::Failed(error.to_string())),
    }
}

async fn copy(data: SnapshotData, dir: std::path::PathBuf) -> io::Result<Arc<IncomingSnapshot>> {
    match data {
        SnapshotData::Incoming(file) => Ok(file),
        SnapshotData::Pinned(pinned) => tokio::task::spawn_blocking(move || pinned.copy_to(&dir))
            .await
            .map_err(io::Error::other)?
            .map(Arc::new)
            .map_err(io::Error::other),
    }
}

fn measure(path: &Path) -> io::Result<(u64, u32)> {
    let mut file = std::fs::File::open(path)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let (mut size, mut checksum) = (0, 0);
    loop {
        let length = file.read(&mut chunk)?;
        if length == 0 {
            return Ok((size, checksum));
        }
        size += length as u64;
        checksum = crc32c::crc32c_append(checksum, &chunk[..length]);
    }
}

async fn bounded<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, format!("no progress within {limit:?}"))))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::pin::Pin;

    use super::*;
    use crate::db::network::{PeerConnector, PeerStream};
    use crate::db::raft_types::SnapshotMeta;
    use crate::db::state_machine::PinnedSnapshot;
    use crate::db::tests::kit::Cluster;

    struct Nobody;

    impl PeerConnector for Nobody {
        fn connect(&self, _: String) -> Pin<Box<dyn Future<Output = io::Result<PeerStream>> + Send>> {
            Box::pin(async { Err(io::Error::other("nobody is there")) })
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_state_is_not_copied_for_a_member_that_is_down() {
        let cluster = Cluster::new(1).await;
        let pinned = PinnedSnapshot::take(&cluster.db(1).inner.shared.readers).unwrap();
        let snapshot =
            Snapshot { meta: SnapshotMeta::default(), snapshot: Box::new(SnapshotData::Pinned(Arc::new(pinned))) };
        let peers = Peers::new(Arc::new(Nobody), Arc::default());
        // A copy could not be made there.
        let dir = Path::new("/nowhere");
        let error = send(&peers, 2, "127.0.0.1:2", dir, Vote::new(1, 1), snapshot).await.unwrap_err();
        assert_eq!(error.to_string(), "nobody is there");
    }
}
