//! A hook that fails, panics or hangs: what it was called for is undone on every member, and another try works.

use std::time::{Duration, Instant};

use microcluster_client::{Client, DaemonConfigUpdate, Error, InitConfig, ServerTrust};

use crate::address::address_free;
use crate::member::{Member, cluster, refused};
use crate::recorder::{Fault, Journal};

const FAULTS: [Fault; 2] = [Fault::Error, Fault::Panic];

/// A refusal with the status and the words of the hook.
fn refused_by<T: std::fmt::Debug>(result: Result<T, Error>, hook: &str, fault: Fault) {
    let (code, message) = refused(result);
    let (expected, words) = match fault {
        Fault::Error => (409, "has no room"),
        Fault::Panic => (500, "panicked"),
        Fault::Hang => (500, "was not done within"),
    };
    assert_eq!(code, expected, "{hook}: {message}");
    assert!(message.contains(hook) && message.contains(words), "{hook}: {message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_is_undone() {
    let journal = Journal::default();
    let c1 = Member::start("c1", &journal).await;
    let certificate = || std::fs::read(c1.dir.path().join("server.crt")).unwrap();
    let before = certificate();
    for hook in ["pre_init", "post_bootstrap"] {
        for fault in FAULTS {
            journal.fault("c1", hook, fault);
            refused_by(c1.bootstrap(InitConfig::default()).await, hook, fault);
            c1.is_free().await;
            journal.heal();
            assert!(hook != "pre_init" || certificate() == before, "the product did not agree to another certificate");
        }
    }
    c1.bootstrap(InitConfig::default()).await.unwrap();
    assert_eq!(c1.names().await, ["c1"]);
}

/// The pre-init address is open again after a bootstrap that was undone: where it had made way for the cluster address, and where
/// it was open all the time.
#[tokio::test(flavor = "multi_thread")]
async fn an_undone_bootstrap_leaves_the_pre_init_address_open() {
    let journal = Journal::default();
    for is_apart in [false, true] {
        let mut c1 = Member::new("c1", &journal);
        let address = if is_apart { address_free() } else { c1.address };
        c1.handle = Some(c1.builder().pre_init_listen(address.to_string()).start().await.unwrap());
        journal.fault("c1", "post_bootstrap", Fault::Error);
        refused_by(c1.bootstrap(InitConfig::default()).await, "post_bootstrap", Fault::Error);
        c1.is_free().await;
        journal.heal();
        let own = ServerTrust::pinned_pem(&std::fs::read_to_string(c1.dir.path().join("server.crt")).unwrap()).unwrap();
        assert!(!Client::tls(address, None, &own).unwrap().status().await.unwrap().ready);
        c1.bootstrap(InitConfig::default()).await.unwrap();
        assert_eq!(c1.names().await, ["c1"]);
        c1.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_is_undone_on_every_member_and_its_token_stays_good() {
    let journal = Journal::default();
    let members = cluster(2, &journal).await;
    let c3 = Member::start("c3", &journal).await;
    let token = members[1].token(&c3.name).await;
    let places =
        [("c3", "pre_init"), ("c3", "pre_join"), ("c1", "on_new_member"), ("c2", "on_new_member"), ("c3", "post_join")];
    for (member, hook) in places {
        for fault in FAULTS {
            journal.fault(member, hook, fault);
            let certificate = || std::fs::read(c3.dir.path().join("server.crt")).unwrap();
            let before = certificate();
            refused_by(c3.join(&token, InitConfig::default()).await, hook, fault);
            c3.is_free().await;
            journal.heal();
            assert!(!hook.starts_with("pre_") || certificate() == before, "after {hook}");
            for member in &members {
                assert_eq!(member.names().await, ["c1", "c2"], "after {hook} on {}", member.name);
                let status = member.client().daemon_status().await.unwrap();
                assert!(status.quorum, "after {hook}");
            }
            let tokens = members[0].client().tokens().await.unwrap();
            assert_eq!(tokens.iter().map(|token| token.name.as_str()).collect::<Vec<_>>(), ["c3"], "after {hook}");
        }
    }
    journal.take();
    c3.join(&token, InitConfig::default()).await.unwrap();
    assert_eq!(c3.names().await, ["c1", "c2", "c3"]);
    assert!(c3.client().tokens().await.unwrap().is_empty(), "it is spent");
}

/// The first joiner of all: one that votes cannot leave without the other's help, nor the other go on without it.
#[tokio::test(flavor = "multi_thread")]
async fn the_second_member_gives_up_its_join() {
    let journal = Journal::default();
    let members = cluster(1, &journal).await;
    let c2 = Member::start("c2", &journal).await;
    let token = members[0].token(&c2.name).await;
    for fault in FAULTS {
        journal.fault("c2", "post_join", fault);
        refused_by(c2.join(&token, InitConfig::default()).await, "post_join", fault);
        c2.is_free().await;
        assert_eq!(members[0].names().await, ["c1"]);
        members[0].sql("INSERT INTO zones (zone) VALUES ('alone')").await;
    }
    let lines = journal.take();
    assert_eq!(lines.last().map(String::as_str), Some("c1 post_remove force"), "{lines:?}");
    journal.heal();
    c2.join(&token, InitConfig::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_configuration_is_undone() {
    let journal = Journal::default();
    let members = cluster(1, &journal).await;
    let (client, file) = (members[0].client(), members[0].dir.path().join("daemon.yaml"));
    let change = |domain| DaemonConfigUpdate { failure_domain: Some(domain), ..DaemonConfigUpdate::default() };
    client.change_daemon_config(&change(3)).await.unwrap();
    let stored = std::fs::read_to_string(&file).unwrap();
    for fault in FAULTS {
        journal.fault("c1", "on_daemon_config_update", fault);
        refused_by(client.change_daemon_config(&change(9)).await, "on_daemon_config_update", fault);
        refused_by(
            client.replace_daemon_config(&DaemonConfigUpdate::default()).await,
            "on_daemon_config_update",
            fault,
        );
        assert_eq!(client.daemon_config().await.unwrap().failure_domain, 3);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), stored);
    }
    journal.heal();
    client.change_daemon_config(&change(9)).await.unwrap();
    assert_eq!(client.daemon_config().await.unwrap().failure_domain, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_is_stopped_by_the_member_unless_it_is_forced() {
    let journal = Journal::default();
    let members = cluster(3, &journal).await;
    let client = members[0].client();
    for fault in FAULTS {
        journal.fault("c3", "pre_remove", fault);
        refused_by(client.remove_cluster_member(&members[2].name, false).await, "pre_remove", fault);
        assert_eq!(members[2].names().await, ["c1", "c2", "c3"]);
    }
    client.remove_cluster_member(&members[2].name, true).await.unwrap();
    members[2].is_free().await;
    journal.heal();
    // What fails after a removal is told, and does not bring the member back.
    journal.fault("c1", "post_remove", Fault::Error);
    let (code, message) = refused(client.remove_cluster_member(&members[1].name, false).await);
    assert_eq!(code, 409);
    assert!(message.contains("c2 was removed") && message.contains("c1 has no room"), "{message}");
    members[1].is_free().await;
    assert_eq!(members[0].names().await, ["c1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_tells_that_its_hook_failed() {
    let journal = Journal::default();
    let members = cluster(1, &journal).await;
    for fault in FAULTS {
        journal.fault("c1", "on_heartbeat", fault);
        refused_by(members[0].heartbeat().await, "on_heartbeat", fault);
    }
    journal.heal();
    members[0].heartbeat().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_ends_the_daemon_and_a_stop_that_fails_goes_on() {
    let journal = Journal::default();
    let mut members = cluster(1, &journal).await;
    let member = &mut members[0];
    for fault in FAULTS {
        journal.fault("c1", "on_stop", fault);
        member.stop().await;
        journal.fault("c1", "on_start", fault);
        member.begin().await;
        let ended = member.handle.take().unwrap().wait().await.unwrap_err();
        assert!(std::error::Error::source(&ended).unwrap().to_string().contains("on_start"), "{ended:?}");
        assert_eq!(journal.take(), ["c1 on_stop", "c1 on_start"], "what did not start has nothing to stop");
        journal.heal();
        member.start_again().await;
        journal.take();
    }
}

/// A hook that hangs costs its time and no more, wherever it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_hangs_is_cut_off() {
    let journal = Journal::default();
    let timeout = Duration::from_millis(400);
    let mut c1 = Member::new("c1", &journal).hook_timeout(timeout);
    c1.start_again().await;
    journal.fault("c1", "post_bootstrap", Fault::Hang);
    let begun = Instant::now();
    refused_by(c1.bootstrap(InitConfig::default()).await, "post_bootstrap", Fault::Hang);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    c1.is_free().await;
    c1.bootstrap(InitConfig::default()).await.unwrap_err();
    journal.heal();
    c1.bootstrap(InitConfig::default()).await.unwrap();
    let mut c2 = Member::new("c2", &journal).hook_timeout(timeout);
    c2.start_again().await;
    let token = c1.token(&c2.name).await;
    for (member, hook) in [("c1", "on_new_member"), ("c2", "post_join")] {
        journal.fault(member, hook, Fault::Hang);
        refused_by(c2.join(&token, InitConfig::default()).await, hook, Fault::Hang);
        c2.is_free().await;
        journal.heal();
    }
    c2.join(&token, InitConfig::default()).await.unwrap();
    // The stop ends a hook that runs.
    journal.fault("c1", "on_stop", Fault::Hang);
    let begun = Instant::now();
    c1.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}
