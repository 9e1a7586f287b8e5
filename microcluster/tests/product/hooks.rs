//! Every hook, on every member, in its order.

use std::time::Duration;

use microcluster_client::{DaemonConfigUpdate, InitConfig};

use crate::member::{Member, cluster, eventually};
use crate::recorder::{Fault, Journal};

fn zone(zone: &str) -> InitConfig {
    [("zone", zone)].into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_hook_runs_where_and_when_it_is_said_to() {
    // A disk that stalls can cost c1 its place as leader: one run in which it does not is enough.
    for _ in 0..3 {
        if every_hook_runs().await.is_some() {
            return;
        }
    }
    panic!("another member stood for election each time");
}

/// Goes on to the end unless another member has stood for election before a round of heartbeats was over.
async fn every_hook_runs() -> Option<()> {
    let journal = Journal::default();
    let c1 = Member::start("c1", &journal).await;
    assert_eq!(journal.take(), ["c1 on_start (no member)"]);
    c1.bootstrap(zone("north")).await.unwrap();
    assert_eq!(journal.take(), ["c1 pre_init bootstrap north (no member)", "c1 post_bootstrap north"]);
    // c1 leads as long as this is the term.
    let term = c1.client().daemon_status().await.unwrap().database.term;

    let mut c2 = Member::start("c2", &journal).await;
    c2.join(&c1.token(&c2.name).await, zone("east")).await.unwrap();
    let expected = [
        "c2 on_start (no member)",
        "c2 pre_init join east (no member)",
        "c2 pre_join east (no member)",
        "c1 on_new_member c2",
        "c2 post_join east",
    ];
    assert_eq!(journal.take(), expected);
    let c3 = Member::start("c3", &journal).await;
    c3.join(&c2.token(&c3.name).await, InitConfig::default()).await.unwrap();
    let mut lines = journal.take();
    lines[3..5].sort();
    let expected = [
        "c3 on_start (no member)",
        "c3 pre_init join (no member)",
        "c3 pre_join (no member)",
        "c1 on_new_member c3",
        "c2 on_new_member c3",
        "c3 post_join",
    ];
    assert_eq!(lines, expected);

    let change = DaemonConfigUpdate { failure_domain: Some(7), ..DaemonConfigUpdate::default() };
    c2.client().change_daemon_config(&change).await.unwrap();
    assert_eq!(journal.take(), ["c2 on_daemon_config_update 7"]);
    c2.client().change_daemon_config(&change).await.unwrap();
    assert!(journal.take().is_empty(), "nothing was changed");

    // What the hooks write in a round, if c1 still leads after it.
    let round = async |asked: &Member| {
        let done = asked.heartbeat().await;
        for member in [asked, &c1] {
            if member.client().daemon_status().await.unwrap().database.term != term {
                return None;
            }
        }
        done.unwrap();
        Some(journal.take())
    };
    // Asked for on a follower, done by the leader.
    assert_eq!(round(&c3).await?, ["c1 on_heartbeat c1:none>voter c2:none>voter c3:none>voter"]);
    assert_eq!(round(&c1).await?, ["c1 on_heartbeat c1:voter>voter c2:voter>voter c3:voter>voter"]);

    c2.client().remove_cluster_member(&c3.name, false).await.unwrap();
    c3.is_free().await;
    let mut lines = journal.take();
    lines[1..].sort();
    assert_eq!(lines, ["c3 pre_remove", "c1 post_remove", "c2 post_remove", "c3 post_remove (no member)"]);
    assert_eq!(round(&c1).await?, ["c1 on_heartbeat c1:voter>voter c2:voter>voter c3:voter>none"]);
    // It comes back like any other.
    c3.join(&c1.token(&c3.name).await, InitConfig::default()).await.unwrap();
    assert_eq!(journal.take().len(), 5);

    c2.stop().await;
    assert_eq!(journal.take(), ["c2 on_stop"]);
    c1.client().remove_cluster_member(&c2.name, true).await.unwrap();
    assert_eq!(journal.take_sorted(), ["c1 post_remove force", "c3 post_remove force"]);
    Some(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_stops_and_starts_says_so_with_its_database() {
    let journal = Journal::default();
    let mut members = cluster(1, &journal).await;
    members[0].stop().await;
    members[0].start_again().await;
    assert_eq!(journal.take(), ["c1 on_stop", "c1 on_start"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_is_removed_with_its_hooks() {
    let journal = Journal::default();
    let members = cluster(2, &journal).await;
    members[1].client().remove_cluster_member(&members[0].name, false).await.unwrap();
    members[0].is_free().await;
    let mut lines = journal.take();
    lines[1..].sort();
    assert_eq!(lines, ["c1 pre_remove", "c1 post_remove (no member)", "c2 post_remove"]);
}

/// A member that is down keeps nobody from joining, and is not asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_join_while_a_member_is_down_does_without_it() {
    let journal = Journal::default();
    let mut members = cluster(3, &journal).await;
    members[2].stop().await;
    let c4 = Member::start("c4", &journal).await;
    journal.take();
    c4.join(&members[0].token(&c4.name).await, InitConfig::default()).await.unwrap();
    let lines = journal.take_sorted();
    assert_eq!(lines[..2], ["c1 on_new_member c4", "c2 on_new_member c4"]);
    assert_eq!(lines.len(), 5, "{lines:?}");
}

/// A daemon that is stopped in its `post_join` is a member that has not said so: it goes on, and says it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_a_stop_interrupts_in_a_hook_goes_on_at_the_next_start() {
    let journal = Journal::default();
    let members = cluster(1, &journal).await;
    let mut c2 = Member::start("c2", &journal).await;
    let token = members[0].token(&c2.name).await;
    journal.fault("c2", "post_join", Fault::Hang);
    {
        let mut join = std::pin::pin!(c2.join(&token, InitConfig::default()));
        let runs = eventually("the hook runs", async || journal.lines().iter().any(|line| line == "c2 post_join"));
        tokio::select! {
            ended = &mut join => panic!("{ended:?}"),
            () = runs => {}
        }
    }
    // It was taken in: nobody can revoke its token under it any more.
    assert!(members[0].client().tokens().await.unwrap().is_empty());
    assert_eq!(members[0].client().revoke_token(&c2.name).await.unwrap_err().code(), Some(404));
    c2.stop().await;
    assert!(!c2.dir.path().join("daemon.yaml").exists());
    journal.heal();
    journal.take();
    c2.begin().await;
    eventually("c2 is a member", async || c2.client().status().await.is_ok_and(|status| status.ready)).await;
    eventually("it has started", async || journal.lines().iter().any(|line| line.starts_with("c2 on_start"))).await;
    assert_eq!(journal.take_sorted(), ["c2 on_start", "c2 post_join"]);
    assert!(members[0].client().tokens().await.unwrap().is_empty());
    assert_eq!(c2.names().await, ["c1", "c2"]);
}

/// The leader stops while the members are asked about a joiner: the next one asks again.
#[tokio::test(flavor = "multi_thread")]
async fn a_join_goes_on_when_the_leader_stops_in_its_hooks() {
    // A disk that stalls can cost c1 its place as leader: one run in which it does not is enough.
    for _ in 0..3 {
        if join_goes_on_when_c1_stops().await {
            return;
        }
    }
    panic!("another member led each time");
}

/// Returns whether c1 led until it was stopped.
async fn join_goes_on_when_c1_stops() -> bool {
    let journal = Journal::default();
    let mut members = cluster(3, &journal).await;
    let c4 = Member::start("c4", &journal).await;
    let token = members[1].token(&c4.name).await;
    journal.fault("c1", "on_new_member", Fault::Hang);
    let mut join = std::pin::pin!(c4.join(&token, InitConfig::default()));
    let runs = eventually("the hook runs", async || journal.lines().iter().any(|line| line == "c1 on_new_member c4"));
    tokio::select! {
        ended = &mut join => panic!("{ended:?}"),
        () = runs => {}
    }
    for other in &members[1..] {
        let leader = other.client().daemon_status().await.unwrap().leader;
        if leader.is_none_or(|leader| leader.name != "c1") {
            return false;
        }
    }
    let (joined, ()) = tokio::join!(join, members[0].stop());
    joined.unwrap();
    let lines = journal.take();
    let count = |line: &str| lines.iter().filter(|other| *other == line).count();
    for again in ["c2 on_new_member c4", "c3 on_new_member c4"] {
        assert!((2..5).contains(&count(again)), "asked by both leaders, and not over and over: {lines:?}");
    }
    assert_eq!((count("c4 pre_join (no member)"), count("c4 post_join")), (1, 1), "{lines:?}");
    true
}

/// A hook can be asked for over the API, on this member and on another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_hook_is_run_for_another_member() {
    let journal = Journal::default();
    let members = cluster(2, &journal).await;
    let client = members[0].client();
    let told = microcluster_client::Hook::PreRemove(microcluster_client::RemovalHook { force: true });
    client.run_hook(&told, None).await.unwrap();
    client.run_hook(&told, Some(&members[1].name)).await.unwrap();
    assert_eq!(journal.take(), ["c1 pre_remove force", "c2 pre_remove force"]);
    assert_eq!(members[0].names().await, ["c1", "c2"], "nobody was removed");
    journal.fault("c2", "pre_remove", Fault::Error);
    let (code, message) = crate::member::refused(client.run_hook(&told, Some(&members[1].name)).await);
    assert_eq!((code, message.as_str()), (409, "the hook pre_remove failed: c2 has no room"));
}

/// A slow hook holds up neither the heartbeats nor what else the cluster does.
#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_goes_on_while_its_hook_hangs() {
    let journal = Journal::default();
    journal.fault("c1", "on_heartbeat", Fault::Hang);
    let mut c1 = Member::new("c1", &journal);
    c1.handle = Some(c1.builder().heartbeat_interval(Duration::from_millis(100)).start().await.unwrap());
    c1.client().wait_ready(crate::member::PATIENCE).await.unwrap();
    c1.bootstrap(InitConfig::default()).await.unwrap();
    let is_running = |journal: &Journal| journal.lines().iter().any(|line| line.starts_with("c1 on_heartbeat"));
    eventually("the hook runs", async || is_running(&journal)).await;
    let noted = c1.members().await[0].last_heartbeat;
    eventually("another round", async || c1.members().await[0].last_heartbeat > noted).await;
    c1.stop().await;
    let heartbeats = journal.take().into_iter().filter(|line| line.contains("on_heartbeat")).count();
    assert_eq!(heartbeats, 1, "it is not run twice at a time");
}
