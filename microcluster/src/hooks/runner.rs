//! Runs the hooks of this member: one at a time, for a bounded time, and a panic is a failure like any other.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use microcluster_client::Hook;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::erased::{Event, ProductHooks};
use crate::cluster::{HookError, Node, NodeHooks, RoleChanges};
use crate::state::State;
use crate::tasks::panic_message;

/// How long a hook has to end by itself once it was asked to.
const GRACE: Duration = Duration::from_millis(500);

/// The hooks of this member. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Runner(Arc<Shared>);

struct Shared {
    hooks: ProductHooks,
    timeout: Duration,
    /// Held by the one that runs.
    turn: tokio::sync::Mutex<()>,
    /// Its name, for those who wait in vain.
    running: Mutex<Option<&'static str>>,
}

impl Runner {
    pub fn new(hooks: ProductHooks, timeout: Duration) -> Self {
        Runner(Arc::new(Shared { hooks, timeout, turn: tokio::sync::Mutex::default(), running: Mutex::default() }))
    }

    /// Runs the hook of an event. `node` is this daemon as a member, where it is not seen as one yet, or no more.
    pub async fn run(&self, state: &State, node: Option<Arc<Node>>, event: Event) -> Result<(), HookError> {
        self.run_within(state, node, event, self.0.timeout).await
    }

    /// The same with a bound of its own.
    pub async fn run_within(
        &self,
        state: &State,
        node: Option<Arc<Node>>,
        event: Event,
        timeout: Duration,
    ) -> Result<(), HookError> {
        let hook = event.hook();
        let span = tracing::info_span!("hook", hook, member = state.name().as_ref().map(|name| name.as_str()));
        self.0.run(state, node, event, timeout).instrument(span).await
    }

    /// This member's hooks, as its node has them run.
    pub fn of_node(&self, state: &State) -> Arc<dyn NodeHooks> {
        Arc::new(OfNode { runner: self.clone(), state: state.clone() })
    }
}

impl Shared {
    async fn run(
        &self,
        state: &State,
        node: Option<Arc<Node>>,
        event: Event,
        timeout: Duration,
    ) -> Result<(), HookError> {
        let hook = event.hook();
        let deadline = tokio::time::Instant::now() + timeout;
        let Ok(_turn) = tokio::time::timeout_at(deadline, self.turn.lock()).await else {
            let running = self.running().unwrap_or("another one");
            return Err(HookError::NoTurn { hook, running, waited: timeout });
        };
        if state.stopping().is_cancelled() && !matches!(event, Event::OnStop) {
            return Err(HookError::Stopped { hook });
        }
        let _running = Running::begin(self, hook);
        tracing::debug!("running a hook");
        // That the daemon stops ends a hook too, but for the one that is there for it.
        let cancelled = match event {
            Event::OnStop => CancellationToken::new(),
            _ => state.stopping().child_token(),
        };
        let state = state.for_hook(node, cancelled.clone());
        // What the future held is dropped with it; what the product shares is its own to keep whole.
        let call = AssertUnwindSafe(self.hooks.call(&state, &event)).catch_unwind();
        let mut call = std::pin::pin!(call);
        let ended = tokio::select! {
            ended = &mut call => Ok(ended),
            () = tokio::time::sleep_until(deadline) => Err(HookError::TooLong { hook, limit: timeout }),
            () = cancelled.cancelled() => Err(HookError::Stopped { hook }),
        };
        let ended = match ended {
            Ok(ended) => ended,
            Err(cut_off) => {
                cancelled.cancel();
                match tokio::time::timeout(GRACE, call).await {
                    Ok(ended) => ended,
                    Err(_) => return Err(cut_off),
                }
            }
        };
        match ended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(HookError::Failed { hook, error }),
            Err(panic) => {
                tracing::error!(panic = panic_message(&*panic), "a hook panicked");
                Err(HookError::Panicked { hook })
            }
        }
    }

    fn running(&self) -> Option<&'static str> {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says which hook runs, for as long as it is held.
struct Running<'a>(&'a Shared);

impl<'a> Running<'a> {
    fn begin(shared: &'a Shared, hook: &'static str) -> Self {
        *shared.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(hook);
        Running(shared)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        *self.0.running.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The hooks that a node has run here.
struct OfNode {
    runner: Runner,
    state: State,
}

impl NodeHooks for OfNode {
    fn run(&self, node: Arc<Node>, hook: Hook) -> BoxFuture<'_, Result<(), HookError>> {
        Box::pin(async move {
            if let Err(waits) = node.is_current() {
                // Its product has not begun yet: as if the member were down.
                tracing::warn!(hook = hook.name(), reason = %waits, "a hook is left out");
                return Ok(());
            }
            let event = Event::try_from(hook).map_err(|hook| HookError::Unknown { hook: hook.name().into() })?;
            self.runner.run(&self.state, Some(node), event).await
        })
    }

    fn heartbeat(&self, node: Arc<Node>, roles: RoleChanges) -> BoxFuture<'_, Result<(), HookError>> {
        Box::pin(async move {
            if node.is_current().is_err() {
                return Ok(());
            }
            self.runner.run(&self.state, Some(node), Event::OnHeartbeat { roles }).await
        })
    }

    fn is_stopping(&self) -> bool {
        self.state.stopping().is_cancelled()
    }

    fn timeout(&self) -> Duration {
        self.runner.0.timeout
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::Hooks;
    use super::*;
    use crate::error::{Error, Result as Done};

    const TIMEOUT: Duration = Duration::from_millis(200);

    /// What `on_start` does; `on_stop` does nothing.
    #[derive(Clone, Copy)]
    enum Kind {
        Fails,
        Panics,
        Hangs,
        /// Ends when it is told to.
        Obeys,
        Counts,
    }

    struct Product {
        kind: Kind,
        running: AtomicUsize,
        most: Arc<AtomicUsize>,
    }

    impl Hooks for Product {
        async fn on_start(&self, state: &State) -> Done<()> {
            match self.kind {
                Kind::Fails => Err(Error::conflict("no more zones")),
                Kind::Panics => panic!("on purpose"),
                Kind::Hangs => std::future::pending().await,
                Kind::Obeys => {
                    state.cancelled().await;
                    Ok(())
                }
                Kind::Counts => {
                    let now = self.running.fetch_add(1, Ordering::SeqCst) + 1;
                    self.most.fetch_max(now, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    self.running.fetch_sub(1, Ordering::SeqCst);
                    Ok(())
                }
            }
        }
    }

    fn runner(kind: Kind) -> (Runner, Arc<AtomicUsize>) {
        let most = Arc::new(AtomicUsize::new(0));
        let product = Product { kind, running: AtomicUsize::new(0), most: most.clone() };
        (Runner::new(ProductHooks::new(product), TIMEOUT), most)
    }

    async fn started(kind: Kind) -> (Result<(), HookError>, Runner, State, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let state = State::for_test(dir.path());
        let (runner, _) = runner(kind);
        let ended = runner.run(&state, None, Event::OnStart).await;
        (ended, runner, state, dir)
    }

    #[tokio::test]
    async fn a_failure_a_panic_and_a_hang_are_told_apart_and_leave_the_turn_free() {
        for kind in [Kind::Fails, Kind::Panics, Kind::Hangs] {
            let (ended, runner, state, _dir) = started(kind).await;
            match (kind, ended.unwrap_err()) {
                (Kind::Fails, HookError::Failed { hook: "on_start", error }) => assert_eq!(error.status(), 409),
                (Kind::Panics, HookError::Panicked { hook: "on_start" }) => {}
                (Kind::Hangs, HookError::TooLong { hook: "on_start", .. }) => {}
                (_, other) => panic!("{other:?}"),
            }
            runner.run(&state, None, Event::OnStop).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_hook_that_ends_when_it_is_told_to_is_done() {
        started(Kind::Obeys).await.0.unwrap();
    }

    #[tokio::test]
    async fn the_stop_of_the_daemon_ends_a_hook_and_lets_the_last_one_run() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::for_test(dir.path());
        let hooks = ProductHooks::new(Product {
            kind: Kind::Hangs,
            running: AtomicUsize::new(0),
            most: Arc::new(AtomicUsize::new(0)),
        });
        let runner = Runner::new(hooks, Duration::from_secs(60));
        let (ended, ()) = tokio::join!(runner.run(&state, None, Event::OnStart), async { state.stopping().cancel() });
        assert!(matches!(ended, Err(HookError::Stopped { hook: "on_start" })), "{ended:?}");
        let ended = runner.run(&state, None, Event::OnStart).await;
        assert!(matches!(ended, Err(HookError::Stopped { .. })), "none begins any more: {ended:?}");
        runner.run(&state, None, Event::OnStop).await.unwrap();
    }

    #[tokio::test]
    async fn hooks_run_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::for_test(dir.path());
        let (runner, most) = runner(Kind::Counts);
        let runs = (0..20).map(|_| runner.run(&state, None, Event::OnStart));
        assert!(futures_util::future::join_all(runs).await.iter().all(Result::is_ok));
        assert_eq!(most.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn who_waits_in_vain_is_told_for_whom() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::for_test(dir.path());
        let (runner, _) = runner(Kind::Hangs);
        let short = runner.run_within(&state, None, Event::OnStop, Duration::from_millis(50));
        let (_, waited) = tokio::join!(runner.run(&state, None, Event::OnStart), short);
        assert!(matches!(waited, Err(HookError::NoTurn { running: "on_start", .. })), "{waited:?}");
    }
}
