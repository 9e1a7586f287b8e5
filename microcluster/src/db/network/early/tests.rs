//! Entries on their way to a follower, before and after the leader's disk has them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::future::Future;
use std::io;
use std::pin::Pin;

use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use openraft::{CommittedLeaderId, EntryPayload};
use tokio::sync::mpsc;

use super::*;
use crate::db::log_store::{Disk, LogOptions, open_on_disk};
use crate::db::network::message::{Frame, Reply};
use crate::db::network::{PeerConnector, PeerStream, testing};
use crate::db::raft_types::Entry;

/// A follower that tells which entries it was sent in each call.
struct Follower {
    calls: mpsc::UnboundedSender<Vec<u64>>,
    /// What it answers: nothing as long as its disk is not done.
    answer: fn() -> Option<Reply>,
}

fn takes_everything() -> Option<Reply> {
    Some(Reply::Append(AppendEntriesResponse::Success))
}

impl PeerConnector for Follower {
    fn connect(&self, _: String) -> Pin<Box<dyn Future<Output = io::Result<PeerStream>> + Send>> {
        let (calls, answer) = (self.calls.clone(), self.answer);
        let stream = testing::member(move |frame| {
            let call = Frame::parse(frame.clone()).unwrap().call().unwrap();
            let (Call::Append(request) | Call::News(request)) = call else { panic!("another call") };
            calls.send(request.entries.iter().map(|entry| entry.log_id.index).collect()).unwrap();
            answer()
        });
        Box::pin(async move { Ok(stream) })
    }
}

fn at(index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(1, 1), index)
}

fn entries(indices: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
    indices.map(|index| Entry { log_id: at(index), payload: EntryPayload::Blank }).collect()
}

fn request(indices: std::ops::RangeInclusive<u64>) -> AppendEntriesRequest<TypeConfig> {
    let prev_log_id = Some(at(indices.start() - 1));
    AppendEntriesRequest { vote: vote(), prev_log_id, entries: entries(indices), leader_commit: None }
}

fn vote() -> Vote {
    Vote::new_committed(1, 1)
}

fn queued(vote: Vote, previous: u64, entries: &[Entry]) -> Queued<'_> {
    Queued { vote, previous: at(previous), entries, ticket: 1 }
}

fn lane() -> (Early, Arc<Lane>, mpsc::UnboundedReceiver<Vec<u64>>) {
    let (sender, calls) = mpsc::unbounded_channel();
    let early = Early::default();
    let peers = Peers::new(Arc::new(Follower { calls: sender, answer: takes_everything }), Arc::default());
    let lane = early.lane(Arc::new(peers), 2, "127.0.0.1:2".to_owned());
    (early, lane, calls)
}

/// The entries of the next call.
async fn next(calls: &mut mpsc::UnboundedReceiver<Vec<u64>>) -> Vec<u64> {
    tokio::time::timeout(Duration::from_secs(10), calls.recv()).await.unwrap().unwrap()
}

async fn succeeds(joined: Joined) {
    let reply = joined.reply.await.unwrap().unwrap();
    assert!(matches!(reply, Reply::Append(AppendEntriesResponse::Success)), "{reply:?}");
}

#[tokio::test]
async fn what_is_under_way_is_not_sent_again() {
    let (early, lane, mut calls) = lane();
    lane.note(Some(at(4)), Some(&AppendEntriesResponse::Success));
    early.send(queued(vote(), 4, &entries(5..=6)));
    assert_eq!(next(&mut calls).await, [5, 6]);
    // One thing at a time: what comes meanwhile goes with the next call.
    early.send(queued(vote(), 6, &entries(7..=7)));
    let joined = lane.append(request(5..=7)).unwrap().unwrap();
    assert_eq!((joined.last, joined.is_all), (at(6), false));
    succeeds(joined).await;
    let joined = lane.append(request(7..=7)).unwrap().unwrap();
    assert!(joined.is_all);
    succeeds(joined).await;
    assert_eq!(next(&mut calls).await, [7]);
    assert!(calls.try_recv().is_err());
}

/// Also those that were sent nothing, because they are behind.
#[tokio::test]
async fn followers_hear_of_their_leader_while_its_disk_is_at_work() {
    let (early, _lane, mut calls) = lane();
    let (early, disk) = (Arc::new(early), Disk::default());
    let log = open_on_disk(&disk, LogOptions::default()).unwrap();
    let sends = Arc::clone(&early);
    log.lead(1, Box::new(move |queued| sends.send(queued)));
    let mut store = log.clone();
    store.save_vote(&vote()).await.unwrap();
    store.blocking_append(entries(0..=4)).await.unwrap();
    let mut heard = async |change: Pin<Box<dyn Future<Output = ()> + Send>>| {
        disk.hold_syncs();
        let change = tokio::spawn(change);
        let hear = async { [calls.recv().await, calls.recv().await] };
        let heard = tokio::select! {
            heard = tokio::time::timeout(Duration::from_secs(10), hear) => heard,
            () = early.keep_heard(Duration::from_millis(1), &log, |_| false) => unreachable!("it never ends"),
        };
        // The log's writer is waited for when it is dropped.
        disk.release_syncs();
        change.await.unwrap();
        assert_eq!(heard.unwrap(), [Some(vec![]), Some(vec![])]);
        assert!(!log.is_writing(lock(&early.own).unwrap().ticket), "nothing is to be told");
    };
    heard(Box::pin(async move { store.blocking_append(entries(5..=5)).await.unwrap() })).await;
    let mut store = log.clone();
    heard(Box::pin(async move { store.purge(at(3)).await.unwrap() })).await;
}

#[tokio::test]
async fn a_leader_whose_own_disk_is_the_slow_one_is_not_kept() {
    let (sender, _calls) = mpsc::unbounded_channel();
    let early = Early::default();
    let peers = Arc::new(Peers::new(Arc::new(Follower { calls: sender, answer: takes_everything }), Arc::default()));
    let to = |id| early.lane(Arc::clone(&peers), id, format!("127.0.0.1:{id}"));
    let (lanes, _for_snapshots) = ([2, 3].map(to), [2, 3].map(to));
    for lane in &lanes {
        lane.note(Some(at(4)), Some(&AppendEntriesResponse::Success));
    }
    early.send(queued(vote(), 4, &entries(5..=5)));
    let is_answered = |lane: &Arc<Lane>| !lock(&lane.state).appending.as_ref().unwrap().reply.is_empty();
    while !lanes.iter().all(is_answered) {
        tokio::task::yield_now().await;
    }
    let own = lock(&early.own).unwrap();
    let told = |is_majority: bool| {
        let mut asked = None;
        early.beat(own, |synced| {
            asked = Some(synced.clone());
            is_majority
        });
        let told: Vec<_> = early.lanes().iter().filter_map(|lane| lock(&lane.state).told.take()).collect();
        (asked, told.len())
    };
    let both = Some(BTreeSet::from([2, 3]));
    assert_eq!(told(true), (both.clone(), 0));
    // Each once, though openraft has two ways to them.
    assert_eq!(told(false), (both, 2));
    early.hangs.store(true, Ordering::Relaxed);
    assert_eq!(told(false).1, 0);
    // What the followers have answered is there for openraft.
    for lane in lanes {
        succeeds(lane.append(request(5..=5)).unwrap().unwrap()).await;
    }
}

/// As a connection does whose member has another address now.
#[tokio::test]
async fn a_call_that_was_dropped_is_openrafts_to_report() {
    let (early, lane, _calls) = lane();
    let (sender, reply) = oneshot::channel();
    let previous = Some(at(4));
    let call = Appending { vote: vote(), previous, last: at(5), committed: None, is_late: false, reply };
    lock(&lane.state).appending = Some(call);
    drop(sender);
    let own = Own { vote: vote(), last: Some(at(5)), ticket: 1, since: Instant::now() };
    early.beat(own, |synced| !synced.is_empty());
    assert!(lane.append(request(5..=5)).unwrap().unwrap().reply.await.is_err());
}

/// It has not said that it has them.
#[tokio::test]
async fn a_follower_that_cannot_be_asked_is_not_one_that_has_synced() {
    let (early, lane, calls) = lane();
    // The follower panics at the next call: its connection ends.
    drop(calls);
    lane.note(Some(at(4)), Some(&AppendEntriesResponse::Success));
    early.send(queued(vote(), 4, &entries(5..=5)));
    while lock(&lane.state).appending.as_ref().unwrap().reply.is_empty() {
        tokio::task::yield_now().await;
    }
    early.beat(lock(&early.own).unwrap(), |synced| !synced.is_empty());
    assert!(lock(&lane.state).told.is_some());
}

/// openraft may hand out the next entries before it knows of the answer to the last ones.
#[tokio::test]
async fn what_cannot_be_sent_yet_is_sent_once_the_follower_has_what_is_before_it() {
    let (early, lane, mut calls) = lane();
    lane.note(Some(at(4)), Some(&AppendEntriesResponse::Success));
    early.send(queued(vote(), 4, &entries(5..=5)));
    let joined = lane.append(request(5..=5)).unwrap().unwrap();
    early.send(queued(vote(), 5, &entries(6..=7)));
    succeeds(joined).await;
    assert_eq!(next(&mut calls).await, [5]);
    assert!(calls.try_recv().is_err());
    lane.note(Some(at(5)), Some(&AppendEntriesResponse::Success));
    assert_eq!(next(&mut calls).await, [6, 7]);
    succeeds(lane.append(request(6..=7)).unwrap().unwrap()).await;
    // What openraft sends itself meanwhile is not sent again.
    early.send(queued(vote(), 7, &entries(8..=8)));
    let joined = lane.append(request(8..=8)).unwrap().unwrap();
    lane.note(Some(at(7)), Some(&AppendEntriesResponse::Success));
    succeeds(joined).await;
    assert_eq!(next(&mut calls).await, [8]);
    assert!(calls.try_recv().is_err());
}

#[tokio::test]
async fn a_leader_whose_disk_hangs_tells_nobody_that_it_leads() {
    let (early, lane, mut calls) = lane();
    let again = || {
        let joined = lane.append(request(5..=6)).unwrap().unwrap();
        let told = joined.told.is_some();
        lane.keep(vote(), Some(at(4)), joined);
        told
    };
    assert_eq!([again(), again()], [false, true]);
    early.hangs.store(true, Ordering::Relaxed);
    assert!(!again());
    assert_eq!(next(&mut calls).await, [5, 6]);
    assert_eq!(next(&mut calls).await, [0_u64; 0]);
}

/// openraft says what is committed along with the entries: when these are under way already, it is said apart.
#[tokio::test]
async fn what_is_committed_is_told_also_when_the_entries_are_under_way() {
    let (early, lane, mut calls) = lane();
    lane.note(Some(at(4)), Some(&AppendEntriesResponse::Success));
    early.send(queued(vote(), 4, &entries(5..=5)));
    let request = AppendEntriesRequest { leader_commit: Some(at(5)), ..request(5..=5) };
    succeeds(lane.append(request).unwrap().unwrap()).await;
    assert_eq!(next(&mut calls).await, [5]);
    assert_eq!(next(&mut calls).await, [0_u64; 0], "an empty one that says it");
}

/// The follower, whose disk may be slow, hears of its leader all the same.
#[tokio::test]
async fn a_call_that_was_given_up_is_joined_by_its_repetition() {
    let (_early, lane, mut calls) = lane();
    let joined = lane.append(request(5..=6)).unwrap().unwrap();
    lane.keep(vote(), Some(at(4)), joined);
    let joined = lane.append(request(5..=6)).unwrap().unwrap();
    lane.keep(vote(), Some(at(4)), joined);
    succeeds(lane.append(request(5..=6)).unwrap().unwrap()).await;
    assert_eq!(next(&mut calls).await, [5, 6]);
    assert_eq!(next(&mut calls).await, [0_u64; 0], "with each repetition");
    assert_eq!(lock(&lane.state).committed, None);
}

#[tokio::test]
async fn a_follower_that_is_not_known_to_have_what_comes_before_is_sent_nothing_early() {
    let (early, lane, mut calls) = lane();
    early.send(queued(vote(), 4, &entries(5..=5)));
    lane.note(Some(at(3)), Some(&AppendEntriesResponse::Success));
    early.send(queued(vote(), 4, &entries(5..=5)));
    lane.note(Some(at(4)), Some(&AppendEntriesResponse::Conflict));
    early.send(queued(vote(), 4, &entries(5..=5)));
    assert!(lock(&lane.state).appending.is_none());
    succeeds(lane.append(request(5..=5)).unwrap().unwrap()).await;
    assert_eq!(next(&mut calls).await, [5]);
    // Under another vote what is under way is no answer.
    lane.note(Some(at(5)), Some(&AppendEntriesResponse::Success));
    early.send(queued(Vote::new_committed(2, 1), 5, &entries(6..=6)));
    assert_eq!(next(&mut calls).await, [6]);
    succeeds(lane.append(request(6..=6)).unwrap().unwrap()).await;
    assert_eq!(next(&mut calls).await, [6]);
    assert!(calls.try_recv().is_err());
}

/// What is committed is in no hurry when nobody asks; it is said all the same.
#[tokio::test]
async fn what_is_committed_can_wait_unless_another_member_asks() {
    let (early, lane, _calls) = lane();
    let news =
        |committed| AppendEntriesRequest { leader_commit: Some(at(committed)), entries: Vec::new(), ..request(5..=5) };
    assert!(!lane.can_wait(&news(1)), "what the follower has is not known");
    lane.note(Some(at(4)), Some(&AppendEntriesResponse::Success));
    assert!(lane.can_wait(&news(2)));
    assert!(!lane.can_wait(&news(2)), "a heartbeat");
    let asked = early.asked();
    assert!(!lane.can_wait(&news(3)));
    let begun = Instant::now();
    drop(asked);
    assert!(!lane.can_wait(&news(4)) || begun.elapsed() >= LOOKS_ON, "who was answered looks at what it wrote");
    // The next entries say it too.
    assert_eq!(lock(&lane.state).committed, Some(at(4)));
    let mut committed = 4;
    let mut is_news = || {
        committed += 1;
        news(committed)
    };
    while !lane.can_wait(&is_news()) {
        assert!(begun.elapsed() < Duration::from_secs(10), "it does so for ever");
        tokio::task::yield_now().await;
    }
}
