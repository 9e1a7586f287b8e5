//! What each operation takes beside a member whose packets are dropped, next to what it took before.

use std::time::{Duration, Instant};

use cluster_tests::{DEADLINE, Daemon, Network, TestCluster, eventually, self_signed};
use http::Method;
use microcluster_client::{
    Client, DaemonConfigUpdate, Empty, Hook, MemberStatus, RemovalHook, Role, Secret, SqlRequest, TokenRequest, Verdict,
};
use serde_json::json;

/// How much longer an operation may take beside a member that does not answer, and what a busy machine may add to any. A second
/// would show that it is waited for.
const DELAY_MAX: Duration = Duration::from_millis(900);

/// The same where a leader is elected, which takes a second round now and then, and where the daemon that stops drains its clients:
/// who waits for a client that says nothing takes five seconds.
const ELECTION_DELAY_MAX: Duration = Duration::from_millis(1_200);
const STOP_DELAY_MAX: Duration = Duration::from_millis(2_500);

/// How often it is tried: a busy machine makes one round long now and then, who waits for a member makes all of them long.
const ROUNDS_MAX: u32 = 3;

/// What each operation took.
#[derive(Debug, Default)]
struct Times(Vec<(String, Duration)>);

impl Times {
    async fn note<T>(&mut self, what: &str, work: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let done = work.await;
        self.0.push((what.to_owned(), begun.elapsed()));
        done
    }

    fn of(&self, what: &str) -> Duration {
        self.0.iter().filter(|(name, _)| name == what).map(|(_, time)| *time).max().unwrap_or_default()
    }

    /// Prints both, and says whether nothing takes so much longer than it did; in the last round that must be so.
    fn compare(&self, after: &Times, delay_max: Duration, round: u32) -> bool {
        let mut slow = Vec::new();
        for (what, time) in &after.0 {
            println!("| {what:<32} | {:>9.1?} | {time:>9.1?} |", self.of(what));
            if *time > self.of(what) + delay_max {
                slow.push(what);
            }
        }
        assert!(slow.is_empty() || round < ROUNDS_MAX, "{slow:?} wait for the member that does not answer");
        slow.is_empty()
    }
}

/// A cluster, and who does what in it.
struct Scene {
    network: Network,
    cluster: TestCluster,
    joiner: Daemon,
    leader: usize,
    /// The one that is cut off, and one that answers; both follow, and both vote.
    absent: usize,
    other: usize,
}

impl Scene {
    async fn new() -> Option<Scene> {
        let network = Network::new(5).await?;
        let mut hosts: Vec<_> = (0..5).map(|host| Daemon::on(&format!("c{}", host + 1), &network, host)).collect();
        let mut joiner = hosts.pop().unwrap();
        joiner.start_again().await;
        let cluster = TestCluster::of(hosts).await;
        cluster.settled(&["c1", "c2", "c3", "c4"]).await;
        cluster.members[0].sql("CREATE TABLE t (a)").await;
        let mut scene = Scene { network, cluster, joiner, leader: 0, absent: 1, other: 2 };
        scene.cast().await;
        Some(scene)
    }

    /// Looks who does what by now.
    async fn cast(&mut self) {
        self.leader = self.cluster.leader().await;
        let members = self.cluster.any().members().await.unwrap();
        let follows = |place: &usize| {
            let name = self.cluster.members[*place].name();
            *place != self.leader && members.iter().any(|member| member.name == *name && member.role == Role::Voter)
        };
        let followers: Vec<usize> = (0..4).filter(follows).collect();
        (self.absent, self.other) = (followers[0], followers[1]);
    }

    /// The one that has no vote.
    fn stand_by(&self) -> usize {
        (0..4).find(|place| ![self.leader, self.absent, self.other].contains(place)).unwrap()
    }

    /// Waits until all are there, and each sees the others.
    async fn settled(&self) {
        self.cluster.settled(&["c1", "c2", "c3", "c4"]).await;
    }

    /// Has one that was removed join again.
    async fn take_back(&self, place: usize) {
        let member = &self.cluster.members[place];
        eventually("the removed member is free", async || member.is_uninitialised().await).await;
        let token = self.cluster.members[self.other].token(member.name()).await;
        member.join(&token).await.unwrap();
        self.settled().await;
    }

    fn client(&self, place: usize) -> Client {
        self.cluster.members[place].client()
    }

    /// A join by the token of one that answers, then one by that of the member that may be cut off by then.
    async fn joins(&mut self, times: &mut Times, cut_off: bool) {
        let mut tokens: Vec<(&str, &str, Secret)> = Vec::new();
        for (name, how, maker) in [("c5", "one that answers", self.other), ("c6", "the other", self.absent)] {
            tokens.push((name, how, self.cluster.members[maker].token(&name.parse().unwrap()).await));
        }
        if cut_off {
            self.network.cut_off(self.absent);
        }
        for (name, how, token) in tokens {
            self.joiner.rename(name);
            times.note(&format!("join by the token of {how}"), self.joiner.join(&token)).await.unwrap();
            times.note("removal", self.cluster.members[self.other].remove(self.joiner.name())).await;
            eventually("the removed member is free", async || self.joiner.is_uninitialised().await).await;
        }
    }

    /// What is done through a member.
    async fn work(&self, times: &mut Times, role: &str, place: usize) {
        let client = self.client(place);
        let named = |what: &str| format!("{what}, {role}");
        for name in ["cluster", "metrics"] {
            let pair = self_signed("cluster.example");
            let name = name.parse().unwrap();
            times.note(&named(&format!("certificate {name}")), client.set_certificate(&name, &pair)).await.unwrap();
        }
        let request = TokenRequest { name: "c9".parse().unwrap(), expire_after: None };
        times.note(&named("token add"), client.add_token(&request)).await.unwrap();
        times.note(&named("token list"), client.tokens()).await.unwrap();
        times.note(&named("token revoke"), client.revoke_token(&request.name)).await.unwrap();
        for failure_domain in [Some(7), Some(0)] {
            let change = DaemonConfigUpdate { failure_domain, ..Default::default() };
            times.note(&named("config"), client.change_daemon_config(&change)).await.unwrap();
        }
        times.note(&named("write"), client.sql(&SqlRequest::new("INSERT INTO t VALUES (1)"))).await.unwrap();
        times.note(&named("read"), client.sql(&SqlRequest::new("SELECT count(*) FROM t"))).await.unwrap();
        times.note(&named("status"), client.daemon_status()).await.unwrap();
        times.note(&named("ready"), client.ready()).await.unwrap();
        times.note(&named("list"), client.cluster_members()).await.unwrap();
        times.note(&named("verify"), client.verify_database()).await.unwrap();
    }

    /// All of that and a heartbeat.
    async fn pass(&mut self, times: &mut Times, cut_off: bool) {
        self.joins(times, cut_off).await;
        self.leader = self.cluster.leader().await;
        self.work(times, "leader", self.leader).await;
        self.work(times, "follower", self.other).await;
        self.leader = self.cluster.leader().await;
        times.note("heartbeat", self.beat()).await;
    }

    async fn beat(&self) {
        let client = self.client(self.leader);
        client.query::<Empty>(Method::POST, "/core/internal/heartbeat", json!({"begin_round": true})).await.unwrap();
    }
}

#[tokio::test]
async fn nothing_waits_for_a_host_whose_packets_are_dropped() {
    let Some(mut scene) = Scene::new().await else { return };
    let mut before = Times::default();
    scene.pass(&mut before, false).await;
    for round in 1..=ROUNDS_MAX {
        scene.cast().await;
        let mut after = Times::default();
        scene.pass(&mut after, true).await;
        let silent = scene.cluster.members[scene.absent].name().clone();
        let client = scene.client(scene.other);
        let refused = client.remove_cluster_member(&silent, false);
        let refused = after.note("removal of the absent", refused).await.unwrap_err();
        assert!(refused.to_string().contains("does not answer"), "{refused}");
        let found = client.verify_database().await.unwrap();
        let is_unknown = found.members.iter().any(|m| m.name == silent.as_str() && m.verdict == Verdict::Unknown);
        assert!(is_unknown, "{found:?}");
        let listed = client.cluster_members().await.unwrap();
        assert!(listed.iter().any(|member| member.name == silent && member.status == MemberStatus::Unreachable));
        // A whole action of the product would have its time; that nobody is there is known soon.
        let hook = Hook::PostRemove(RemovalHook { force: false });
        let target = scene.cluster.members[scene.other].name();
        before.note("for another member", client.run_hook(&hook, Some(target))).await.unwrap();
        let refused = after.note("for another member", client.run_hook(&hook, Some(&silent))).await.unwrap_err();
        assert_eq!(refused.code(), Some(504), "{refused}");
        after.note("removal of the absent by force", client.remove_cluster_member(&silent, true)).await.unwrap();
        if before.compare(&after, DELAY_MAX, round) {
            break;
        }
        scene.network.heal(scene.absent);
        scene.take_back(scene.absent).await;
    }
}

/// The voter that does not answer has all of the log, as far as the leader knows: it is not the one to take over.
#[tokio::test]
async fn a_leader_stops_beside_a_host_whose_packets_are_dropped() {
    let Some(mut scene) = Scene::new().await else { return };
    let mut before = Times::default();
    stop_the_leader(&mut scene, &mut before).await;
    scene.settled().await;
    for round in 1..=ROUNDS_MAX {
        scene.cast().await;
        // It has been asked things by the one that is gone: connections of that one are open.
        let absent = scene.client(scene.absent);
        absent.cluster_members().await.unwrap();
        absent.set_certificate(&"cluster".parse().unwrap(), &self_signed("cluster.example")).await.unwrap();
        scene.network.cut_off(scene.absent);
        let mut after = Times::default();
        stop_the_leader(&mut scene, &mut after).await;
        if before.compare(&after, STOP_DELAY_MAX, round) {
            break;
        }
        scene.network.heal(scene.absent);
        scene.settled().await;
    }
}

async fn stop_the_leader(scene: &mut Scene, times: &mut Times) {
    let client = scene.client(scene.other).timeout(DEADLINE);
    let leader = &mut scene.cluster.members[scene.leader];
    times.note("stop", leader.stop()).await;
    // Where one is cut off, two of the three voters are away until it is back.
    times.note("start", leader.start_again()).await;
    times.note("write after it", client.sql(&SqlRequest::new("INSERT INTO t VALUES (2)"))).await.unwrap();
}

/// The leader that is removed hands over first.
#[tokio::test]
async fn a_leader_is_removed_beside_a_host_whose_packets_are_dropped() {
    let Some(mut scene) = Scene::new().await else { return };
    let mut before = Times::default();
    remove_the_leader(&scene, &mut before).await;
    scene.take_back(scene.leader).await;
    for round in 1..=ROUNDS_MAX {
        scene.cast().await;
        scene.network.cut_off(scene.absent);
        let mut after = Times::default();
        remove_the_leader(&scene, &mut after).await;
        if before.compare(&after, ELECTION_DELAY_MAX, round) {
            break;
        }
        scene.network.heal(scene.absent);
        scene.take_back(scene.leader).await;
    }
}

async fn remove_the_leader(scene: &Scene, times: &mut Times) {
    let leader = &scene.cluster.members[scene.leader];
    times.note("removal of the leader", scene.cluster.members[scene.other].remove(leader.name())).await;
    eventually("the removed member is free", async || leader.is_uninitialised().await).await;
}

/// It stands by, so that the others have a majority meanwhile.
#[tokio::test]
async fn a_member_is_rebuilt_beside_a_host_whose_packets_are_dropped() {
    let Some(mut scene) = Scene::new().await else { return };
    let mut before = Times::default();
    rebuild_the_stand_by(&mut scene, &mut before).await;
    scene.settled().await;
    for round in 1..=ROUNDS_MAX {
        scene.cast().await;
        scene.network.cut_off(scene.absent);
        let mut after = Times::default();
        rebuild_the_stand_by(&mut scene, &mut after).await;
        if before.compare(&after, DELAY_MAX, round) {
            break;
        }
        scene.network.heal(scene.absent);
        scene.settled().await;
    }
}

async fn rebuild_the_stand_by(scene: &mut Scene, times: &mut Times) {
    let place = scene.stand_by();
    let damaged = &mut scene.cluster.members[place];
    damaged.kill();
    std::fs::remove_dir_all(damaged.dir().join("database/log")).unwrap();
    times.note("start and rebuild", damaged.start_again()).await;
}

/// A write goes to the next leader as soon as there is one, and so does a request that was passed on to the one before.
#[tokio::test]
async fn what_a_leader_has_whose_packets_are_dropped_goes_to_the_next_one() {
    let Some(mut scene) = Scene::new().await else { return };
    for round in 1..=ROUNDS_MAX {
        scene.cast().await;
        let (mut write, mut request) = (Times::default(), Times::default());
        let client = scene.client(scene.other).timeout(DEADLINE);
        let removed = scene.stand_by();
        let (name, sql) = (scene.cluster.members[removed].name(), SqlRequest::new("INSERT INTO t VALUES (3)"));
        scene.network.cut_off(scene.leader);
        let (written, done) = tokio::join!(
            write.note("a request", client.sql(&sql)),
            request.note("a request", client.remove_cluster_member(name, false)),
        );
        written.unwrap();
        if done.is_ok() && write.compare(&request, ELECTION_DELAY_MAX, round) {
            break;
        }
        assert!(round < ROUNDS_MAX, "{done:?}");
        scene.network.heal(scene.leader);
        scene.cluster.members[scene.other].remove(name).await;
        scene.take_back(removed).await;
    }
}
