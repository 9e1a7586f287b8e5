//! Daemons that are killed in the middle of a hook of a join: the joiner ends as a member or as none, and all can be repeated.

use std::sync::{Arc, Mutex, PoisonError};

use microcluster::testing::{Cluster, eventually};
use microcluster::{App, Hooks, InitConfig, MemberLocal, Name, Result, State};
use microcluster_client::{Error, MemberStatus, Role};

/// Where a hook stops and does not go on: its name, and the member that runs it; none for a joiner, which has no name yet.
type Place = (&'static str, Option<Name>);

/// Hooks that stop at one place.
#[derive(Clone, Default)]
struct Gate(Arc<Mutex<Gated>>);

#[derive(Default)]
struct Gated {
    closed: Option<Place>,
    is_reached: bool,
}

impl Gate {
    fn close(&self, place: Place) {
        *self.0.lock().unwrap() = Gated { closed: Some(place), is_reached: false };
    }

    fn open(&self) {
        *self.0.lock().unwrap() = Gated::default();
    }

    async fn is_reached(&self) {
        eventually("the hook runs", async || self.0.lock().unwrap().is_reached.then_some(()).ok_or("it does not"))
            .await;
    }

    async fn pass(&self, hook: &'static str, member: Option<Name>) -> Result<()> {
        let is_closed = {
            let mut gated = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let is_closed = gated.closed == Some((hook, member));
            gated.is_reached |= is_closed;
            is_closed
        };
        if is_closed { std::future::pending().await } else { Ok(()) }
    }
}

impl Hooks for Gate {
    async fn pre_join(&self, _state: &State, _config: &InitConfig) -> Result<()> {
        self.pass("pre_join", None).await
    }

    async fn post_join(&self, _state: &State, _config: &InitConfig) -> Result<()> {
        self.pass("post_join", None).await
    }

    async fn on_new_member(&self, state: &State, _member: &MemberLocal) -> Result<()> {
        self.pass("on_new_member", state.name()).await
    }
}

/// Waits until a member lists exactly that many, all online and with their roles.
async fn complete(app: &App, count: usize) {
    eventually("the cluster is complete", async || {
        let members = app.members().await.map_err(|e| e.to_string())?;
        let is_well = members.iter().all(|one| one.status == MemberStatus::Online && one.role != Role::Pending);
        (members.len() == count && is_well).then_some(()).ok_or_else(|| format!("{members:?}"))
    })
    .await;
}

#[tokio::test]
async fn a_joiner_that_is_killed_in_a_hook_is_a_member_or_none() {
    for (hook, goes_on) in [("pre_join", false), ("post_join", true)] {
        let gate = Gate::default();
        let product = gate.clone();
        let mut cluster = Cluster::start(2, move |builder| builder.hooks(product.clone())).await;
        gate.close((hook, None));
        let joiner = cluster.add_uninitialised().await;
        let (app, name, address) = (joiner.app(), joiner.name().clone(), joiner.address());
        let token = cluster.member(0).app().new_join_token(name.clone(), None).await.unwrap();
        let join = {
            let (app, name, token) = (app.clone(), name.clone(), token.clone());
            tokio::spawn(async move { app.join(name, address, token, InitConfig::default()).await })
        };
        gate.is_reached().await;
        cluster.member_mut(2).kill();
        join.await.unwrap().unwrap_err();
        gate.open();
        cluster.member_mut(2).start().await;
        if !goes_on {
            let none = app.local_client().cluster_members().await.unwrap_err();
            assert!(matches!(none, Error::Status { code: 503, .. }), "{hook}: {none}");
            complete(&cluster.member(0).app(), 2).await;
            app.join(name, address, token, InitConfig::default()).await.unwrap();
        }
        for place in 0..3 {
            complete(&cluster.member(place).app(), 3).await;
        }
        assert!(cluster.member(1).app().list_join_tokens().await.unwrap().is_empty(), "{hook}: the token is spent");
    }
}

#[tokio::test]
async fn a_member_that_is_killed_while_it_is_told_of_a_joiner_keeps_nobody_out() {
    let gate = Gate::default();
    let product = gate.clone();
    let mut cluster = Cluster::start(3, move |builder| builder.hooks(product.clone())).await;
    complete(&cluster.member(0).app(), 3).await;
    let told = (cluster.leader().await + 1) % 3;
    gate.close(("on_new_member", Some(cluster.member(told).name().clone())));
    let joiner = cluster.add_uninitialised().await;
    let (app, name, address) = (joiner.app(), joiner.name().clone(), joiner.address());
    let token = cluster.member(0).app().new_join_token(name.clone(), None).await.unwrap();
    let join = tokio::spawn(async move { app.join(name, address, token, InitConfig::default()).await });
    gate.is_reached().await;
    cluster.member_mut(told).kill();
    join.await.unwrap().unwrap();
    gate.open();
    cluster.member_mut(told).start().await;
    for place in 0..4 {
        complete(&cluster.member(place).app(), 4).await;
    }
}
