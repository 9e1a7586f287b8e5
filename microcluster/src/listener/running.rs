//! What still goes on for a client: requests that run, answers that are on their way, bytes that move. When a listener is closed a
//! client is waited for as long as there is any of it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use hyper::body::{Bytes, Frame, SizeHint};

/// How long a client that has nothing more to get may take to say so.
const FAREWELL: Duration = Duration::from_millis(250);

/// What goes on over one connection. Clones count together.
#[derive(Clone, Debug, Default)]
pub(super) struct Running(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicUsize,
    /// How often bytes have come or gone.
    moves: AtomicU64,
}

/// One request, until its answer is gone.
#[derive(Debug)]
pub(super) struct Request(Running);

/// The body of an answer that counts as long as it is there.
struct Counted {
    body: Body,
    _request: Request,
}

impl Running {
    /// Counts a request until it is dropped.
    pub fn begin(&self) -> Request {
        self.0.requests.fetch_add(1, Ordering::AcqRel);
        Request(self.clone())
    }

    /// Bytes have come or gone.
    pub fn moved(&self) {
        self.0.moves.fetch_add(1, Ordering::Relaxed);
    }

    /// Done when nothing goes on for a while. One whose packets are dropped never says goodbye.
    pub async fn stands_still(&self) {
        loop {
            let moves = self.0.moves.load(Ordering::Relaxed);
            tokio::time::sleep(FAREWELL).await;
            if self.0.requests.load(Ordering::Acquire) == 0 && self.0.moves.load(Ordering::Relaxed) == moves {
                return;
            }
        }
    }
}

impl Request {
    /// Counts until the answer is sent.
    pub fn answered(self, response: Response) -> Response {
        response.map(|body| Body::new(Counted { body, _request: self }))
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.0.0.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http_body_util::BodyExt;
    use hyper::body::Body as _;

    use super::*;

    #[tokio::test]
    async fn who_gets_an_answer_is_waited_for() {
        let running = Running::default();
        let is_over = async |limit: Duration| tokio::time::timeout(limit, running.stands_still()).await.is_ok();
        let request = running.begin();
        assert!(!is_over(FAREWELL * 2).await, "it runs");
        let response = request.answered(Response::new(Body::from("answer")));
        assert!(!is_over(FAREWELL * 2).await, "its answer was not sent");
        assert_eq!(response.body().size_hint().exact(), Some(6));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "answer");
        assert!(is_over(FAREWELL * 40).await);
    }

    #[tokio::test]
    async fn who_still_takes_bytes_is_waited_for() {
        let running = Running::default();
        let moving = async {
            for _ in 0..6 {
                tokio::time::sleep(FAREWELL / 4).await;
                running.moved();
            }
            std::future::pending::<()>().await;
        };
        let begun = tokio::time::Instant::now();
        tokio::select! {
            () = moving => {}
            () = running.stands_still() => {}
        }
        assert!(begun.elapsed() > FAREWELL * 2, "it ended after {:?}", begun.elapsed());
    }
}
