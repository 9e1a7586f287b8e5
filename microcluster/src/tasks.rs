//! The one place that spawns: every task has an owner that stops and joins it.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long dropped tasks may take to be gone. They end at their next await, so this is long.
const ABORT_WAIT: Duration = Duration::from_secs(5);

/// A group of tasks with one owner. Clones are handles on the same group.
#[derive(Clone, Debug)]
pub(crate) struct Tasks {
    /// What they are for, in the log.
    purpose: &'static str,
    tracker: TaskTracker,
    /// Asks the tasks to finish what they do and end.
    stop: CancellationToken,
    /// Ends them at their next await.
    abort: CancellationToken,
}

/// A task ended without its result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskLost {
    /// It panicked.
    #[error("the task {task} panicked")]
    Panicked {
        /// The task's name.
        task: &'static str,
    },
    /// Its group was shut down before it was done.
    #[error("the task {task} was cut off")]
    CutOff {
        /// The task's name.
        task: &'static str,
    },
}

impl Tasks {
    pub fn new(purpose: &'static str) -> Self {
        let (stop, abort) = (CancellationToken::new(), CancellationToken::new());
        Tasks { purpose, tracker: TaskTracker::new(), stop, abort }
    }

    /// Starts a task. A panic in it is logged and ends it alone.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        drop(self.run(name, Box::pin(future)));
    }

    /// Starts a task and waits for its result. The task goes on when the caller is dropped.
    pub async fn detached<T: Send + 'static>(
        &self,
        name: &'static str,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, TaskLost> {
        self.run(name, Box::pin(future)).await.unwrap_or(Err(TaskLost::CutOff { task: name }))
    }

    /// Done when the tasks are asked to end: each long one waits for this too.
    pub async fn stopping(&self) {
        self.stop.cancelled().await;
    }

    /// Whether the tasks are asked to end.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Asks the tasks to end, waits for that up to `drain`, then drops what is left and waits for it to be gone.
    pub async fn shutdown(&self, drain: Duration) {
        self.stop.cancel();
        self.tracker.close();
        if tokio::time::timeout(drain, self.tracker.wait()).await.is_ok() {
            return;
        }
        tracing::debug!(
            purpose = self.purpose,
            tasks = self.tracker.len(),
            "ending tasks that are not done after {drain:?}"
        );
        self.abort.cancel();
        if tokio::time::timeout(ABORT_WAIT, self.tracker.wait()).await.is_err() {
            tracing::error!(
                purpose = self.purpose,
                tasks = self.tracker.len(),
                "tasks do not end; a thread is blocked"
            );
        }
    }

    /// The future is boxed, so that what is around each is there once, and holds no second place for it.
    fn run<T: Send + 'static>(
        &self,
        name: &'static str,
        future: Pin<Box<dyn Future<Output = T> + Send>>,
    ) -> JoinHandle<Result<T, TaskLost>> {
        let abort = self.abort.clone();
        self.tracker.spawn(async move {
            // What the future held is dropped with it, so nobody sees a half-changed value.
            let caught = AssertUnwindSafe(future).catch_unwind();
            tokio::select! {
                biased;
                outcome = caught => match outcome {
                    Ok(value) => Ok(value),
                    Err(panic) => {
                        tracing::error!(task = name, panic = panic_message(&*panic), "a task panicked");
                        Err(TaskLost::Panicked { task: name })
                    }
                },
                () = abort.cancelled() => Err(TaskLost::CutOff { task: name }),
            }
        })
    }
}

/// Runs blocking work, such as file access, off the runtime's threads. It goes on when the caller is dropped.
pub(crate) async fn blocking<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, TaskLost> {
    caught(work).await.map_err(|_| TaskLost::Panicked { task: name })
}

/// As [`blocking`], with the panic of the work, if that is what it came to. The work is boxed, so that what the runtime has around each is
/// in the program once.
pub(crate) async fn caught<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> std::thread::Result<T> {
    let (done, result) = oneshot::channel();
    // What the work held is dropped with it, so nobody sees a half-changed value.
    let work: Box<dyn FnOnce() + Send> = Box::new(move || drop(done.send(catch_unwind(AssertUnwindSafe(work)))));
    drop(tokio::task::spawn_blocking(work));
    result.await.unwrap_or_else(|_| Err(Box::new("the runtime has ended")))
}

/// The words of a panic.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn shutdown_waits_for_a_task_that_finishes_its_work() {
        let tasks = Tasks::new("test");
        let (done, wait) = oneshot::channel();
        let own = tasks.clone();
        tasks.spawn("worker", async move {
            own.stopping().await;
            tokio::task::yield_now().await;
            done.send(7).ok();
        });
        tasks.shutdown(Duration::from_secs(10)).await;
        assert_eq!(wait.await.unwrap(), 7);
    }

    #[tokio::test]
    async fn shutdown_drops_a_task_that_does_not_end() {
        let tasks = Tasks::new("test");
        let (done, wait) = oneshot::channel::<()>();
        tasks.spawn("stuck", async move {
            std::future::pending::<()>().await;
            done.send(()).ok();
        });
        tasks.shutdown(Duration::from_millis(20)).await;
        assert!(wait.await.is_err());
    }

    #[tokio::test]
    async fn whoever_waits_for_a_task_that_is_cut_off_is_told() {
        let tasks = Tasks::new("test");
        let own = tasks.clone();
        let (started, begun) = oneshot::channel();
        let waiting = tokio::spawn(async move {
            let task = async move {
                started.send(()).ok();
                std::future::pending::<()>().await;
            };
            own.detached("stuck", task).await
        });
        begun.await.unwrap();
        tasks.shutdown(Duration::from_millis(1)).await;
        assert!(matches!(waiting.await.unwrap(), Err(TaskLost::CutOff { task: "stuck" })));
    }

    #[tokio::test]
    async fn a_panic_is_a_lost_task_and_the_group_goes_on() {
        let tasks = Tasks::new("test");
        let lost = tasks.detached("bad", async { panic!("on purpose") }).await;
        assert!(matches!(lost.map(|(): ()| ()), Err(TaskLost::Panicked { task: "bad" })));
        assert_eq!(tasks.detached("good", async { 1 }).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_detached_task_goes_on_without_its_caller() {
        let tasks = Tasks::new("test");
        let (started, begun) = oneshot::channel();
        let (go, wait) = oneshot::channel();
        let (done, result) = oneshot::channel();
        let call = tasks.detached("write", async move {
            started.send(()).ok();
            wait.await.ok();
            done.send("written").ok();
        });
        let mut call = Box::pin(call);
        tokio::select! {
            _ = &mut call => unreachable!("it waits"),
            begun = begun => begun.unwrap(),
        }
        drop(call);
        go.send(()).unwrap();
        assert_eq!(result.await.unwrap(), "written");
    }
}
