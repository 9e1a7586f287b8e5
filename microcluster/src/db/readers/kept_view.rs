//! A view of the newest state that is kept open between reads.
//!
//! A read locks a mark in SQLite's write-ahead log: two system calls for a lock of the file, unless another connection of this process
//! has locked the same mark already. While nothing is written, that is this view.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Reader;
use crate::db::error::Error;

/// After how many reads of the same state a view of it is worth its own locks.
const READS_MIN: u32 = 8;
/// No view begins any more.
const CLOSED: u64 = u64::MAX;

/// At most one view, and none while something is written: so it holds up no checkpoint and no new beginning of the write-ahead log.
#[derive(Default)]
pub(super) struct KeptView {
    /// Reads since the last write.
    reads: AtomicU32,
    /// Rises when a write begins and when it ends: an odd number while something is written.
    writes: AtomicU64,
    /// Whether there is one, or will be at once.
    is_kept: AtomicBool,
    /// In a transaction.
    reader: Mutex<Option<Reader>>,
}

impl KeptView {
    /// A read is over. `take` gives the connection for a view.
    pub fn note_read(&self, take: impl FnOnce() -> Result<Reader, Error>) {
        if self.reads.fetch_add(1, Ordering::Relaxed) == READS_MIN
            && let Err(error) = self.begin(take)
        {
            tracing::debug!(%error, "no view of the state is kept for reads");
        }
    }

    fn begin(&self, take: impl FnOnce() -> Result<Reader, Error>) -> Result<(), Error> {
        let writes = self.writes.load(Ordering::SeqCst);
        if writes % 2 == 1 {
            return Ok(());
        }
        let reader = take()?;
        reader.begin_view()?;
        let mut kept = self.lock();
        // Either this sees that a write has begun since, or the write sees that there is a view to end.
        self.is_kept.store(true, Ordering::SeqCst);
        if kept.is_none() && self.writes.load(Ordering::SeqCst) == writes {
            *kept = Some(reader);
        }
        Ok(())
    }

    /// A write begins: the view ends. Gives back its connection.
    pub fn pause(&self) -> Option<Reader> {
        self.writes.fetch_or(1, Ordering::SeqCst);
        if !self.is_kept.swap(false, Ordering::SeqCst) {
            return None;
        }
        let reader = self.lock().take()?;
        // One that cannot be ended is closed.
        reader.engine("COMMIT").is_ok().then_some(reader)
    }

    /// A write is over.
    pub fn resume(&self) {
        self.reads.store(0, Ordering::Relaxed);
        let next = |writes| (writes != CLOSED).then(|| (writes | 1) + 1);
        // Nothing is changed when it is closed.
        let _ = self.writes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
    }

    /// Closes the view's connection; there will be no other one.
    pub fn close(&self) {
        self.writes.store(CLOSED, Ordering::SeqCst);
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Reader>> {
        // What the mutex holds is valid at every moment, also if a holder panicked.
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::db::Consistency;
    use crate::db::tests::kit::{Cluster, until};

    #[tokio::test]
    async fn a_view_is_kept_while_nothing_is_written() {
        let cluster = Cluster::new(1).await;
        let db = cluster.db(1);
        let kept = &db.inner.shared.readers.kept_view;
        db.execute("CREATE TABLE t(a)", ()).await.unwrap();
        for rows in 0..3 {
            assert!(kept.lock().is_none(), "a write has ended it");
            // A write is answered before it is over for the readers.
            until("it has been read often enough", async || {
                let count = db.query_row(Consistency::Local, "SELECT count(*) FROM t", (), |row| row.get::<_, i64>(0));
                assert_eq!(count.await.unwrap(), Some(rows));
                kept.lock().is_some()
            })
            .await;
            db.execute("INSERT INTO t VALUES (1)", ()).await.unwrap();
        }
        db.shutdown().await;
        assert_eq!(cluster.state_bytes(1, ".db-wal"), 0, "all of the state is in its file");
    }
}
