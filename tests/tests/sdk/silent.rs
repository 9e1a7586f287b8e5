//! Members that say nothing, without any error: nobody waits for them, whatever goes on when they fall silent.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cluster_tests::{self_signed, until};
use microcluster::testing::{Cluster, Member, eventually};
use microcluster::{App, AppError, Hooks, MemberLocal, Name, Result, State};
use microcluster_client::{Address, DaemonConfigUpdate, MemberStatus, Secret};

/// How much longer something may take beside a member that does not answer; a second would show that it is waited for.
const DELAY_MAX: Duration = Duration::from_millis(900);
/// How soon it is noticed that a member has fallen silent while a hook ran there; the hook itself has a minute.
const NOTICED_MAX: Duration = Duration::from_secs(10);
/// How often it is tried: a busy machine makes one round long now and then, who waits for a member makes all of them long.
const ROUNDS_MAX: u64 = 3;

/// A hook that does not end on one member.
#[derive(Clone, Default)]
struct Endless(Arc<Mutex<Place>>);

#[derive(Default)]
struct Place {
    member: Option<Name>,
    is_reached: bool,
}

impl Hooks for Endless {
    async fn on_new_member(&self, state: &State, _: &MemberLocal) -> Result<()> {
        let is_here = {
            let mut place = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let is_here = place.member.is_some() && place.member == state.name();
            place.is_reached |= is_here;
            is_here
        };
        if is_here { std::future::pending().await } else { Ok(()) }
    }
}

/// A daemon that is to be a member.
struct Joiner {
    app: App,
    name: Name,
    address: Address,
}

impl Joiner {
    async fn new(cluster: &mut Cluster) -> Joiner {
        let member = cluster.add_uninitialised().await;
        Joiner { app: member.app(), name: member.name().clone(), address: member.address() }
    }

    async fn token(&self, maker: &Member) -> Secret {
        maker.app().new_join_token(self.name.clone(), None).await.unwrap()
    }

    async fn join(&self, token: Secret) {
        self.app.join(self.name.clone(), self.address, token, Default::default()).await.unwrap();
    }

    async fn is_removed(&self) {
        eventually("the removed member is free", async || match self.app.members().await {
            // Else it still leaves.
            Err(e) if e.to_string().contains("not initialised") => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }
}

/// The place of a member that does not lead, and that of another one.
async fn followers(cluster: &Cluster) -> (usize, usize) {
    let leader = cluster.leader().await;
    ((leader + 1) % 3, (leader + 2) % 3)
}

async fn timed<T>(work: impl Future<Output = T>) -> Duration {
    let begun = Instant::now();
    work.await;
    begun.elapsed()
}

#[tokio::test]
async fn a_hook_is_not_waited_for_on_a_member_that_falls_silent_meanwhile() {
    let endless = Endless::default();
    let hooks = endless.clone();
    let mut cluster = Cluster::start(3, move |builder| builder.hooks(hooks.clone())).await;
    let joiner = Joiner::new(&mut cluster).await;
    let (silent, other) = followers(&cluster).await;
    endless.0.lock().unwrap().member = Some(cluster.member(silent).name().clone());
    let token = joiner.token(cluster.member(other)).await;
    let mut join = std::pin::pin!(joiner.join(token));
    let early = until(join.as_mut(), async || endless.0.lock().unwrap().is_reached).await;
    assert!(early.is_none(), "the join waits for the hook");
    cluster.partition(&[silent]);
    let took = timed(join).await;
    assert!(took <= NOTICED_MAX, "the join takes {took:?}");
}

/// The same operations before and after a member has fallen silent.
#[tokio::test]
async fn nothing_waits_for_a_member_that_says_nothing() {
    let mut cluster = Cluster::start(3, |builder| builder.schema(["CREATE TABLE t (a)"])).await;
    let joiner = Joiner::new(&mut cluster).await;
    let before = times(&mut cluster, &joiner, 0).await;
    for round in 1..=ROUNDS_MAX {
        let after = times(&mut cluster, &joiner, round).await;
        let mut slow = Vec::new();
        for ((what, before), (_, after)) in before.iter().zip(&after) {
            println!("{what}: {before:?}, then {after:?}");
            if *after > *before + DELAY_MAX {
                slow.push(what);
            }
        }
        if slow.is_empty() {
            break;
        }
        assert!(round < ROUNDS_MAX, "{slow:?} wait for the member that says nothing");
        cluster.heal();
        settled(&cluster).await;
    }
}

/// What each operation takes. A member falls silent in the first one, but for round 0.
async fn times(cluster: &mut Cluster, joiner: &Joiner, round: u64) -> Vec<(&'static str, Duration)> {
    let (silent, other) = followers(cluster).await;
    let first = joiner.token(cluster.member(silent)).await;
    if round > 0 {
        cluster.partition(&[silent]);
    }
    let through = cluster.member(other);
    let (app, client, state) = (through.app(), through.client(), through.state());
    let remove = async || {
        eventually("it is removed", async || match app.remove_member(&joiner.name, false).await {
            Err(AppError::Client(e)) if e.code() == Some(404) => Ok(()),
            other => other,
        })
        .await;
    };
    let mut times = vec![("a join by the token of the silent one", timed(joiner.join(first)).await)];
    times.push(("a removal", timed(remove()).await));
    joiner.is_removed().await;
    let (mut second, name) = (Secret::default(), "cluster".parse().unwrap());
    times.push(("a token", timed(async { second = joiner.token(through).await }).await));
    times.push(("a join by the token of another", timed(joiner.join(second)).await));
    times.push(("a removal", timed(remove()).await));
    joiner.is_removed().await;
    let pair = self_signed("cluster.example");
    times.push(("a certificate", timed(async { app.update_certificate(&name, &pair).await.unwrap() }).await));
    // Another one each time.
    let change = DaemonConfigUpdate { failure_domain: Some(round + 7), ..Default::default() };
    times.push(("the configuration", timed(async { client.change_daemon_config(&change).await.unwrap() }).await));
    let write = async { state.database().unwrap().execute("INSERT INTO t VALUES (1)", ()).await.unwrap() };
    times.push(("a write", timed(write).await));
    times.push(("readiness", timed(async { client.ready().await.unwrap() }).await));
    times
}

/// Waits until each member sees the others.
async fn settled(cluster: &Cluster) {
    for member in cluster.members().take(3) {
        eventually("all are online", async || {
            let members = member.app().members().await.map_err(|e| e.to_string())?;
            let is_so = members.iter().all(|member| member.status == MemberStatus::Online);
            is_so.then_some(()).ok_or_else(|| format!("{members:?}"))
        })
        .await;
    }
}
