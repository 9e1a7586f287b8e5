//! A database goes on alone from what is on one member's disk.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::count;
use super::kit::{Cluster, peer, until};
use crate::db::Consistency;
use crate::db::recovery::{Draft, OfflineError, RecoveryMark, look, recoveries};

/// Makes member 1 the only voter, from its own disk.
async fn recover(dir: PathBuf) -> Result<RecoveryMark, OfflineError> {
    let work = move || {
        let target = dir.join("new");
        let (draft, outline) = Draft::copy(&dir, 1, &target)?;
        let nodes = BTreeMap::from([(1, peer(1)), (2, peer(2)), (3, peer(3))]);
        let mark =
            draft.recover(&outline, 1, [1].into(), nodes, |db| db.execute_batch("CREATE TABLE by_recovery(a)"))?;
        assert!(draft.is_at(mark)?);
        draft.finish(mark, outline.vote)?;
        for part in ["log", "state"] {
            std::fs::remove_dir_all(dir.join(part)).unwrap();
            std::fs::rename(target.join(part), dir.join(part)).unwrap();
        }
        Ok(mark)
    };
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_committed_counts_and_members_of_before_are_kept_out() {
    let mut cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    assert_eq!(leader, 1, "nobody else has stood for election");
    let db = cluster.db(1);
    db.execute("CREATE TABLE t(a)", ()).await.unwrap();
    cluster.wait_same().await;
    cluster.isolate(1);
    let end =
        |cluster: &Cluster| look(cluster.dir(1), |_| Ok(())).map_or(0, |(outline, ())| outline.last.unwrap().index);
    let before = end(&cluster);
    let pending = tokio::spawn(async move { db.execute("INSERT INTO t VALUES (7)", ()).await });
    until("the write is in its log", || async { end(&cluster) > before }).await;
    let applied = *cluster.db(1).changes().borrow();
    assert!(applied < end(&cluster), "it is not committed");
    // Member 2 goes on, as it has since the cluster was made; member 3 is started again.
    cluster.kill(1).await;
    cluster.kill(3).await;
    pending.await.unwrap().unwrap_err();

    let (found, ()) = look(cluster.dir(1), |_| Ok(())).unwrap();
    let mark = recover(cluster.dir(1).to_owned()).await.unwrap();
    let (now, marks) = look(cluster.dir(1), recoveries).unwrap();
    assert_eq!(marks, [mark]);
    assert_eq!(now.last.unwrap().index, found.last.unwrap().index + 1);
    assert!(now.last > found.last && now.vote.unwrap().leader_id.term >= 1_000_000_000);
    assert_eq!((now.voters.len(), now.nodes.len()), (1, 3));
    cluster.heal();
    cluster.start(1).await;
    assert_eq!(count(&cluster, 1, "t").await, 1);
    cluster.db(1).execute("INSERT INTO t VALUES (8)", ()).await.unwrap();
    // The others have a majority by what they know. Nothing of it reaches the one that was recovered.
    cluster.start(3).await;
    until("the others have elected a leader", || async {
        let leaders = [2, 3].map(|id| cluster.db(id).status().leader);
        leaders[0].is_some() && leaders[0] == leaders[1]
    })
    .await;
    cluster.db(2).execute("INSERT INTO t VALUES (9)", ()).await.unwrap();
    cluster.db(1).execute("INSERT INTO t VALUES (10)", ()).await.unwrap();
    let rows = |id| {
        let db = cluster.db(id);
        async move { db.query(Consistency::Linearizable, "SELECT a FROM t", (), |row| row.get::<_, i64>(0)).await.unwrap() }
    };
    assert_eq!((rows(1).await, rows(3).await), (vec![7, 8, 10], vec![9]));
    assert_eq!(cluster.db(1).status().voters, [1].into());
    for id in 1..=3 {
        cluster.kill(id).await;
    }

    // Once more, and each era has its own mark.
    let next = recover(cluster.dir(1).to_owned()).await;
    assert!(next.is_err(), "the table is there already: a change of the rows that fails fails the recovery");
    std::fs::remove_dir_all(cluster.dir(1).join("new")).unwrap();
    let (_, marks) = look(cluster.dir(1), recoveries).unwrap();
    assert_eq!(marks, [mark], "and leaves everything as it was");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_database_is_not_recovered_from() {
    let mut cluster = Cluster::new(1).await;
    cluster.db(1).execute("CREATE TABLE t(a)", ()).await.unwrap();
    cluster.kill(1).await;
    std::fs::remove_dir_all(cluster.dir(1).join("log")).unwrap();
    std::fs::create_dir(cluster.dir(1).join("log")).unwrap();
    let error = recover(cluster.dir(1).to_owned()).await.unwrap_err();
    assert!(matches!(error, OfflineError::Damaged { .. }), "{error:?}");
}
