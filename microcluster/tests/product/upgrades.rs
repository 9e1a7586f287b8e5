//! Rolling upgrades: in every order of restarts, under a writer, back again, and with members that do not come back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use microcluster::client::{Client, Error, InitConfig, MemberStatus, SqlRequest};
use microcluster::{SchemaUpdate, StartError};

use crate::member::{Member, cluster_of, eventually, refused};
use crate::recorder::Journal;

/// The first release, and the second one, which counts how often it was applied.
const V1: usize = 2;
const V2: usize = 4;
const SCHEMA: [&str; V2] = [
    "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL)",
    "CREATE TABLE applied (version INTEGER)",
    "ALTER TABLE notes ADD COLUMN author TEXT NOT NULL DEFAULT 'nobody'",
    "INSERT INTO applied VALUES (4) -- once",
];

fn release(member: &mut Member, version: usize) {
    member.schema(&SCHEMA[..version]);
}

async fn first_release(count: usize) -> Vec<Member> {
    cluster_of(count, &Journal::default(), &SCHEMA[..V1]).await
}

async fn restart(member: &mut Member, version: usize) {
    if member.handle.is_some() {
        member.stop().await;
    }
    release(member, version);
    member.begin().await;
}

async fn write(member: &Member, text: &str) {
    let insert = format!("INSERT INTO notes (text) VALUES ('{text}')");
    eventually("a write", async || member.client().sql(&SqlRequest::new(&insert)).await.is_ok()).await;
}

/// It says that it waits, everywhere where that can be asked.
async fn waits(member: &Member) {
    let (code, message) = refused(member.client().ready().await);
    assert_eq!(code, 503);
    assert!(message.starts_with("Database is waiting for an upgrade"), "{message}");
    let (code, message) = refused(member.client().sql(&SqlRequest::new("SELECT 1")).await);
    assert_eq!(code, 503);
    assert!(message.starts_with("Database is waiting for an upgrade"), "{message}");
    assert!(member.handle.as_ref().unwrap().state().database().is_err());
}

async fn shows(member: &Member, expected: &[(&str, MemberStatus)]) {
    let mut seen = Vec::new();
    eventually(&format!("{} shows {expected:?}", member.name), async || {
        let members = member.client().cluster_members().await.unwrap_or_default();
        seen = members.iter().map(|member| (member.name.to_string(), member.status)).collect();
        seen.iter().map(|(name, status)| (name.as_str(), *status)).eq(expected.iter().copied())
    })
    .await;
}

/// Everybody serves, with the second release, which was applied once.
async fn is_upgraded(members: &[Member], applied: usize) {
    for member in members {
        member.client().wait_ready(crate::member::PATIENCE).await.unwrap_or_else(|e| panic!("{}: {e}", member.name));
        assert_eq!(member.sql("SELECT count(*) FROM applied").await, [[applied]]);
        assert_eq!(member.sql("SELECT count(*) FROM notes WHERE author <> 'nobody'").await, [[0]]);
        write(member, "after").await;
        assert!(member.members().await.iter().all(|member| member.status == MemberStatus::Online));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_order_of_restarts_comes_to_an_end() {
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    join_all(orders.map(|order| async move {
        let mut members = first_release(3).await;
        for (done, place) in order.into_iter().enumerate() {
            restart(&mut members[place], V2).await;
            if done == 2 {
                break;
            }
            eventually("a member that waits is known as such", async || {
                let shown = members[order[2]].client().cluster_members().await.unwrap_or_default();
                shown.iter().any(|shown| shown.name == members[place].name && shown.status == MemberStatus::Upgrading)
            })
            .await;
            waits(&members[place]).await;
            for other in order.into_iter().skip(done + 1) {
                write(&members[other], "meanwhile").await;
            }
        }
        is_upgraded(&members, 1).await;
    }))
    .await;
}

/// All down at once, then one after the other: the first ones have no quorum, and wait for that too.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_was_down_is_upgraded_when_it_is_back() {
    let mut members = first_release(3).await;
    for member in &mut members {
        member.stop().await;
    }
    for place in [2, 0, 1] {
        release(&mut members[place], V2);
        members[place].begin().await;
    }
    is_upgraded(&members, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_shows_who_waits_for_whom_and_hooks_wait_too() {
    use MemberStatus::{NeedsUpgrade, Upgrading};
    let journal = Journal::default();
    let mut members = cluster_of(3, &journal, &SCHEMA[..V1]).await;
    restart(&mut members[1], V2).await;
    restart(&mut members[2], V2).await;
    for member in &members {
        shows(member, &[("c1", NeedsUpgrade), ("c2", Upgrading), ("c3", Upgrading)]).await;
    }
    eventually("c2 says for whom it waits", async || {
        let (_, message) = refused(members[1].client().ready().await);
        message.contains("c1") && !message.contains("c3")
    })
    .await;
    assert_eq!(journal.take(), ["c2 on_stop", "c3 on_stop"], "they have not started");
    // Nobody can join meanwhile, whoever is asked.
    let mut c4 = Member::new("c4", &journal);
    release(&mut c4, V2);
    c4.start_again().await;
    let token = members[0].token(&c4.name).await;
    let (code, message) = refused(c4.join(&token, InitConfig::default()).await);
    assert_eq!(code, 503, "{message}");
    assert!(message.contains("is being upgraded"), "{message}");
    // What they can do for others they do: Raft goes on, and requests are passed on.
    let _: microcluster::client::DaemonStatus =
        members[0].client().query(http::Method::GET, "/core/1.0/daemon/status?target=c2", ()).await.unwrap();
    let nudge = members[0].client().query_raw(http::Method::PATCH, "/core/internal/database", "").await.unwrap();
    assert_eq!(nudge.status(), 200);
    journal.take();
    restart(&mut members[0], V2).await;
    is_upgraded(&members, 1).await;
    let mut lines = journal.take();
    lines.sort();
    assert_eq!(lines, ["c1 on_start", "c1 on_stop", "c2 on_start", "c3 on_start"]);
    c4.join(&token, InitConfig::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_goes_back_before_the_update_is_applied() {
    let mut members = first_release(3).await;
    restart(&mut members[0], V2).await;
    restart(&mut members[1], V2).await;
    shows(
        &members[2],
        &[("c1", MemberStatus::Upgrading), ("c2", MemberStatus::Upgrading), ("c3", MemberStatus::NeedsUpgrade)],
    )
    .await;
    for place in [0, 1] {
        restart(&mut members[place], V1).await;
        members[place].client().wait_ready(crate::member::PATIENCE).await.unwrap();
        write(&members[place], "back").await;
    }
    shows(&members[2], &["c1", "c2", "c3"].map(|name| (name, MemberStatus::Online))).await;
    // The other way round they would have been enough.
    restart(&mut members[2], V2).await;
    waits(&members[2]).await;
    assert_eq!(members[0].sql("SELECT count(*) FROM applied").await, [[0]]);
    restart(&mut members[0], V2).await;
    restart(&mut members[1], V2).await;
    is_upgraded(&members, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_removal_of_a_dead_member_ends_the_wait() {
    let mut members = first_release(3).await;
    let mut dead = members.pop().unwrap();
    dead.stop().await;
    for member in &mut members {
        restart(member, V2).await;
    }
    shows(
        &members[0],
        &[("c1", MemberStatus::Upgrading), ("c2", MemberStatus::Upgrading), ("c3", MemberStatus::Unreachable)],
    )
    .await;
    waits(&members[0]).await;
    // Also without force where a leader is elected meanwhile; a dead one needs it.
    eventually("the removal", async || members[1].client().remove_cluster_member(&dead.name, true).await.is_ok()).await;
    is_upgraded(&members, 1).await;
}

/// A member that waits is removed: it is free, has started, and can come back.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_waits_can_be_removed() {
    let journal = Journal::default();
    let mut members = cluster_of(2, &journal, &SCHEMA[..V1]).await;
    restart(&mut members[1], V2).await;
    shows(&members[0], &[("c1", MemberStatus::NeedsUpgrade), ("c2", MemberStatus::Upgrading)]).await;
    waits(&members[1]).await;
    members[0].client().remove_cluster_member(&members[1].name, false).await.unwrap();
    members[1].is_free().await;
    let lines = journal.take_sorted();
    let expected = ["c1 post_remove", "c2 on_start (no member)", "c2 on_stop", "c2 post_remove (no member)"];
    assert_eq!(lines, expected);
    // It has the wrong version for this cluster, until that is upgraded.
    let token = members[0].token(&members[1].name).await;
    assert_eq!(refused(members[1].join(&token, InitConfig::default()).await).0, 409);
    restart(&mut members[0], V2).await;
    is_upgraded(&members[..1], 1).await;
    members[1].join(&token, InitConfig::default()).await.unwrap();
    is_upgraded(&members, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_member_is_refused_after_the_upgrade() {
    let mut members = first_release(3).await;
    for member in &mut members {
        restart(member, V2).await;
    }
    is_upgraded(&members, 1).await;
    members[1].stop().await;
    release(&mut members[1], V1);
    let refused = members[1].builder().start().await.map(|_| ()).unwrap_err();
    assert!(matches!(refused, StartError::TooOld { .. }), "{refused:?}");
    let said = refused.to_string();
    assert!(said.contains(&format!("schema {V1},")) && said.contains(&format!("schema {V2},")), "{said}");
    assert!(!members[1].dir.path().join("control.socket").exists());
    release(&mut members[1], V2);
    members[1].start_again().await;
    is_upgraded(&members, 1).await;
}

/// It had said that it has the update, so the others went on without waiting. Its own replica does not tell it yet.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_member_that_is_behind_finds_out_and_stops() {
    let mut members = first_release(3).await;
    restart(&mut members[2], V2).await;
    eventually("c3 is known to have it", async || {
        members[0].members().await.iter().any(|member| member.schema_external_version == V2 as u64)
    })
    .await;
    members[2].stop().await;
    for place in [0, 1] {
        restart(&mut members[place], V2).await;
    }
    for member in &members[..2] {
        member.client().wait_ready(crate::member::PATIENCE).await.unwrap();
    }
    release(&mut members[2], V1);
    members[2].begin().await;
    let ended = members[2].handle.take().unwrap().wait().await.unwrap_err();
    let cause = std::error::Error::source(&ended).unwrap().to_string();
    assert!(cause.contains("too old"), "{cause}");
    release(&mut members[2], V2);
    members[2].start_again().await;
    is_upgraded(&members, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_api_extensions_are_waited_for_like_a_schema() {
    let mut members = first_release(2).await;
    members[0].stop().await;
    members[0].extensions(&["history"]);
    members[0].begin().await;
    eventually("it waits", async || members[1].members().await[0].status == MemberStatus::Upgrading).await;
    waits(&members[0]).await;
    write(&members[1], "meanwhile").await;
    members[1].stop().await;
    members[1].extensions(&["history"]);
    members[1].begin().await;
    for member in &members {
        member.client().wait_ready(crate::member::PATIENCE).await.unwrap();
        write(member, "after").await;
    }
    assert!(members[1].members().await.iter().all(|member| member.extensions.contains(&"history".to_owned())));
}

/// Like the schema: back again before all have them, and refused after.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_goes_back_behind_an_api_extension_only_before_all_have_it() {
    let mut members = first_release(2).await;
    let restart = async |member: &mut Member, extensions: &[&str]| {
        member.stop().await;
        member.extensions(extensions);
        member.begin().await;
    };
    let extensions = async |member: &Member| member.members().await[0].extensions.clone();
    let fewer = extensions(&members[1]).await;
    restart(&mut members[0], &["history", "labels"]).await;
    eventually("it waits", async || members[1].members().await[0].status == MemberStatus::Upgrading).await;
    waits(&members[0]).await;
    restart(&mut members[0], &[]).await;
    members[0].client().wait_ready(crate::member::PATIENCE).await.unwrap();
    eventually("it is as it was", async || extensions(&members[1]).await == fewer).await;
    write(&members[0], "back").await;
    for member in &mut members {
        restart(member, &["history", "labels"]).await;
    }
    for member in &members {
        member.client().wait_ready(crate::member::PATIENCE).await.unwrap();
    }
    let more = extensions(&members[1]).await;
    assert_eq!(more.len(), fewer.len() + 2);
    members[0].stop().await;
    members[0].extensions(&["history"]);
    let refused = members[0].builder().start().await.map(|_| ()).unwrap_err();
    assert!(matches!(refused, StartError::TooOld { .. }), "{refused:?}");
    let said = refused.to_string();
    let counts = [fewer.len() + 1, more.len()].map(|count| format!("{count} API extensions"));
    assert!(counts.iter().all(|count| said.contains(count)), "{said}");
    members[0].extensions(&["history", "labels"]);
    members[0].start_again().await;
    write(&members[0], "again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_fails_changes_nothing_and_can_be_taken_back() {
    let mut members = first_release(2).await;
    let broken = [SCHEMA[0], SCHEMA[1], "INSERT INTO applied VALUES (3); CREATE TABLE notes (again)"];
    for member in &mut members {
        member.stop().await;
        member.schema(&broken);
        member.begin().await;
    }
    for member in &members {
        waits(member).await;
    }
    restart(&mut members[0], V1).await;
    restart(&mut members[1], V1).await;
    is_not_upgraded(&members).await;
    restart(&mut members[0], V2).await;
    restart(&mut members[1], V2).await;
    is_upgraded(&members, 1).await;
}

/// An update may be a function, before, between and after texts: at a bootstrap, and in an upgrade, as one step with them.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_may_be_a_function() {
    let number = || {
        SchemaUpdate::function(|tx| {
            for id in tx.query("SELECT id FROM notes ORDER BY id", (), |row| row.get::<_, i64>(0))? {
                tx.execute("UPDATE notes SET text = ?2 WHERE id = ?1", (id, format!("note {id}")))?;
            }
            tx.execute("INSERT INTO notes (text) VALUES ('by a function')", ()).map(|_| ())
        })
    };
    let two = "-- two statements\nCREATE TABLE a (x); CREATE TRIGGER t AFTER INSERT ON notes BEGIN \
               INSERT INTO a VALUES (new.id); INSERT INTO a VALUES (';'); END;";
    let first = [SchemaUpdate::sql(SCHEMA[0]), number()];
    let second = [first[0].clone(), first[1].clone(), SchemaUpdate::sql(two), number(), "DROP TRIGGER t ;;".into()];
    let mut members = cluster_of(2, &Journal::default(), &first).await;
    assert_eq!(members[1].sql("SELECT text FROM notes").await, [["by a function"]]);
    for member in &mut members {
        member.stop().await;
        member.schema(&second);
        member.begin().await;
    }
    for member in &members {
        member.client().wait_ready(crate::member::PATIENCE).await.unwrap();
        assert_eq!(member.sql("SELECT text FROM notes ORDER BY id").await, [["note 1"], ["by a function"]]);
        assert_eq!(member.sql("SELECT count(*) FROM a").await, [[2]]);
        let triggers = "SELECT count(*) FROM sqlite_schema WHERE type = 'trigger' AND name = 't'";
        assert_eq!(member.sql(triggers).await, [[0]]);
    }
}

async fn is_not_upgraded(members: &[Member]) {
    for member in members {
        member.client().wait_ready(crate::member::PATIENCE).await.unwrap();
        assert_eq!(member.sql("SELECT count(*) FROM applied").await, [[0]]);
    }
}

/// A member that is written through, and whether the test has stopped it since it last served.
struct Written {
    client: Client,
    is_away: Arc<AtomicBool>,
}

/// Writes through all members, one after the other, until it is told to stop. One that was left alone takes every write; one that the
/// test has stopped may refuse until it is back. Returns what was acknowledged.
async fn keep_writing(members: Vec<Written>, stop: Arc<AtomicBool>) -> BTreeSet<u64> {
    let mut acknowledged = BTreeSet::new();
    let mut id = 0;
    while !stop.load(Ordering::Relaxed) {
        for Written { client, is_away } in &members {
            id += 1;
            let insert = SqlRequest::new(format!("INSERT INTO notes (id, text) VALUES ({id}, 'x')"));
            // A write that is sent while the member is away may fail after it is back.
            let was_away = is_away.load(Ordering::SeqCst);
            match client.sql(&insert).await {
                Ok(_) => drop(acknowledged.insert(id)),
                Err(e) if !was_away && !is_away.load(Ordering::SeqCst) => {
                    panic!("a write failed on a member that serves: {e}")
                }
                Err(e) if e.code() == Some(503) => {}
                Err(Error::Unreachable { .. } | Error::Interrupted { .. }) => {}
                Err(e) => panic!("a write was refused for another reason than the restart: {e}"),
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_does_not_notice_a_rolling_upgrade_beyond_its_pauses() {
    let mut members = first_release(3).await;
    let stop = Arc::new(AtomicBool::new(false));
    let away: Vec<Arc<AtomicBool>> = members.iter().map(|_| Arc::default()).collect();
    let written = members.iter().zip(&away);
    let written = written.map(|(member, away)| Written { client: member.client(), is_away: away.clone() });
    let writer = tokio::spawn(keep_writing(written.collect(), stop.clone()));
    let count = async |member: &Member| {
        let read = member.client().sql(&SqlRequest::new("SELECT count(*) FROM notes")).await;
        read.ok().and_then(|results| results.into_iter().next()?.rows?.first()?.first()?.as_u64())
    };
    for place in [1, 0, 2] {
        away[place].store(true, Ordering::SeqCst);
        restart(&mut members[place], V2).await;
        if place != 2 {
            let before = count(&members[2]).await.unwrap();
            eventually("the others go on writing", async || {
                count(&members[2]).await.is_some_and(|now| now >= before + 20)
            })
            .await;
        }
    }
    for member in &members {
        member.client().wait_ready(crate::member::PATIENCE).await.unwrap();
    }
    for away in &away {
        away.store(false, Ordering::SeqCst);
    }
    let before = count(&members[0]).await.unwrap();
    eventually("writes after the upgrade", async || count(&members[0]).await.is_some_and(|now| now >= before + 20))
        .await;
    stop.store(true, Ordering::Relaxed);
    let acknowledged = writer.await.unwrap();
    let stored: BTreeSet<u64> =
        members[1].sql("SELECT id FROM notes").await.iter().map(|row| row[0].as_u64().unwrap()).collect();
    assert!(acknowledged.is_subset(&stored), "lost: {:?}", acknowledged.difference(&stored).collect::<Vec<_>>());
    assert_eq!(members[1].sql("SELECT count(*) FROM applied").await, [[1]]);
}

/// A schema update and an API extension at once, with no pause between the restarts.
#[tokio::test(flavor = "multi_thread")]
async fn restarts_without_a_pause_come_to_an_end() {
    const SCHEMA: [&str; 2] = [
        "CREATE TABLE hosts (name TEXT PRIMARY KEY, zone TEXT NOT NULL) STRICT",
        "ALTER TABLE hosts ADD COLUMN notes TEXT NOT NULL DEFAULT ''",
    ];
    let mut members = cluster_of(3, &Journal::default(), &SCHEMA[..1]).await;
    for member in &mut members {
        member.stop().await;
        member.schema(&SCHEMA);
        member.extensions(&["host_notes"]);
        member.begin().await;
    }
    for member in &members {
        member.client().wait_ready(crate::member::PATIENCE).await.unwrap_or_else(|e| panic!("{}: {e}", member.name));
    }
    assert_eq!(members[0].sql("SELECT count(notes) FROM hosts").await, [[0]]);
}
