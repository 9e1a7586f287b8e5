//! What a daemon that stops still takes, and what tells the product's own work that it is to end.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use microcluster::testing::Cluster;
use microcluster::{Builder, Endpoint, Hooks, Json, Resources, Result, Server, State, action};
use microcluster_client::Client;
use serde_json::Value;
use tokio::sync::{Notify, Semaphore};

/// A stop that waits until it is let go.
#[derive(Clone, Default)]
struct SlowStop {
    begun: Arc<Notify>,
    ended: Arc<Notify>,
}

impl Hooks for SlowStop {
    async fn on_stop(&self, _state: &State) -> Result<()> {
        self.begun.notify_one();
        self.ended.notified().await;
        Ok(())
    }
}

async fn answer() -> Json<&'static str> {
    Json("done")
}

fn product(builder: Builder, hooks: SlowStop) -> Builder {
    let resources = Resources::at("1.0")
        .endpoint(Endpoint::new("plain").get(answer).post(action(answer).allowed_before_init()))
        .endpoint(Endpoint::new("late").get(action(answer).allowed_during_shutdown()));
    builder
        .hooks(hooks)
        .drain_timeout(Duration::from_secs(30))
        .server("late", Server::core_api().serve_unix().resources(resources))
}

async fn code(client: &Client, method: Method, path: &str) -> u16 {
    match client.query::<Value>(method, path, ()).await {
        Ok(_) => 200,
        Err(e) => e.code().unwrap_or_else(|| panic!("{path}: {e:?}")),
    }
}

#[tokio::test]
async fn a_daemon_that_stops_takes_only_what_is_allowed_then() {
    let hooks = SlowStop::default();
    let own = hooks.clone();
    let mut cluster = Cluster::start(1, move |builder| product(builder, own.clone())).await;
    let client = cluster.member(0).client();
    assert_eq!(code(&client, Method::GET, "/1.0/plain").await, 200);
    let look = async {
        hooks.begun.notified().await;
        for (method, path, expected) in [
            (Method::GET, "/1.0/plain", 503),
            (Method::POST, "/1.0/plain", 503),
            (Method::GET, "/1.0/late", 200),
            (Method::GET, "/core/1.0/cluster", 200),
        ] {
            assert_eq!(code(&client, method, path).await, expected, "{path}");
        }
        let refused = client.query::<Value>(Method::GET, "/1.0/plain", ()).await.unwrap_err();
        assert!(refused.to_string().contains("shutting down"), "{refused}");
        hooks.ended.notify_one();
    };
    tokio::join!(cluster.member_mut(0).stop(), look);
}

/// As long as nobody else leads: who asks another member does not notice that the leader is about to stop.
#[tokio::test]
async fn a_leader_that_stops_does_for_others_what_only_the_leader_can() {
    let hooks = SlowStop::default();
    let own = hooks.clone();
    let mut cluster = Cluster::start(2, move |builder| {
        let leads = Endpoint::new("leads").get(action(answer).leader_only());
        let server = Server::core_api().serve_unix().resources(Resources::at("2.0").endpoint(leads));
        product(builder, own.clone()).server("leads", server)
    })
    .await;
    let leader = cluster.leader().await;
    let (client, other) = (cluster.member(leader).client(), cluster.member(1 - leader).client());
    let look = async {
        hooks.begun.notified().await;
        assert_eq!(code(&client, Method::GET, "/2.0/leads").await, 503);
        assert_eq!(code(&other, Method::GET, "/2.0/leads").await, 200);
        hooks.ended.notify_one();
    };
    tokio::join!(cluster.member_mut(leader).stop(), look);
    // The other one stops as slowly.
    hooks.ended.notify_one();
    cluster.member_mut(1 - leader).stop().await;
}

/// A heartbeat that goes on until it is told to end.
#[derive(Clone)]
struct LongHeartbeat {
    begun: Arc<Semaphore>,
    told: Arc<Semaphore>,
}

impl Hooks for LongHeartbeat {
    async fn on_heartbeat(
        &self,
        state: &State,
        _roles: &std::collections::BTreeMap<microcluster::Name, microcluster::RoleStatus>,
    ) -> Result<()> {
        self.begun.add_permits(1);
        state.cancellation().cancelled().await;
        self.told.add_permits(1);
        Ok(())
    }
}

#[tokio::test]
async fn a_hook_on_a_member_that_stops_is_told() {
    let hooks = LongHeartbeat { begun: Arc::new(Semaphore::new(0)), told: Arc::new(Semaphore::new(0)) };
    let own = hooks.clone();
    let mut cluster = Cluster::start(1, move |builder| builder.hooks(own.clone())).await;
    let whole = cluster.member(0).state().cancellation();
    let _ = hooks.begun.acquire().await.unwrap();
    assert_eq!(hooks.told.available_permits(), 0);
    // A token of its own: it ends nothing but what it was given to.
    cluster.member(0).state().cancellation().cancel();
    assert!(!whole.is_cancelled());
    cluster.member_mut(0).stop().await;
    assert!(whole.is_cancelled());
    assert!(hooks.told.available_permits() > 0);
}
