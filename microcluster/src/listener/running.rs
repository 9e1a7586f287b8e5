//! What still goes on for a client: requests that run, answers that are on their way, bytes that move. When a listener is closed a
//! client is waited for as long as there is any of it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use hyper::body::{Bytes, Frame, SizeHint};

use super::busy_poll::BusyPoll;

/// How long a client that has nothing more to get may take to say so.
const FAREWELL: Duration = Duration::from_millis(250);

/// What goes on over one connection. Clones count together.
#[derive(Clone, Debug, Default)]
pub(super) struct Running(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicUsize,
    /// Those of all connections, where the next one is looked for.
    busy_poll: Option<BusyPoll>,
    /// How often bytes have come or gone.
    moves: AtomicU64,
    /// What was written waits for a client that does not read.
    is_blocked: AtomicBool,
}

/// One request, until its answer is gone.
#[derive(Debug)]
pub(super) struct Request(Running);

/// An answer is handed on in pieces of so many bytes: what is handed on counts as sent.
const PIECE: usize = 16 << 10;

/// The body of an answer that counts as long as it is there.
struct Counted {
    body: Body,
    /// What is left of a frame.
    rest: Bytes,
    _request: Request,
}

impl Running {
    /// Nothing yet, on a connection whose next request is looked for.
    pub fn polled(busy_poll: BusyPoll) -> Running {
        Running(Arc::new(Counts { busy_poll: Some(busy_poll), ..Counts::default() }))
    }

    /// Counts a request until it is dropped.
    pub fn begin(&self) -> Request {
        self.0.requests.fetch_add(1, Ordering::AcqRel);
        if let Some(busy_poll) = &self.0.busy_poll {
            busy_poll.begin();
        }
        Request(self.clone())
    }

    /// Bytes have come or gone.
    pub fn moved(&self) {
        self.0.moves.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether what was written waits for the client, which is given up by whoever writes.
    pub fn blocked(&self, is_blocked: bool) {
        self.0.is_blocked.store(is_blocked, Ordering::Relaxed);
    }

    fn is_busy(&self) -> bool {
        self.0.requests.load(Ordering::Acquire) > 0 || self.0.is_blocked.load(Ordering::Relaxed)
    }

    /// Done when nothing goes on for a while. One whose packets are dropped never says goodbye.
    pub async fn stands_still(&self) {
        loop {
            let moves = self.0.moves.load(Ordering::Relaxed);
            tokio::time::sleep(FAREWELL).await;
            if !self.is_busy() && self.0.moves.load(Ordering::Relaxed) == moves {
                return;
            }
        }
    }
}

impl Request {
    /// Counts until the answer is sent.
    pub fn answered(self, response: Response) -> Response {
        response.map(|body| Body::new(Counted { body, rest: Bytes::new(), _request: self }))
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.0.0.requests.fetch_sub(1, Ordering::AcqRel);
        if let Some(busy_poll) = &self.0.0.busy_poll {
            busy_poll.end();
        }
    }
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.rest.is_empty() {
            let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => self.rest = data,
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let piece = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
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
    async fn who_has_not_read_all_is_waited_for() {
        let running = Running::default();
        let is_over = async |limit: Duration| tokio::time::timeout(limit, running.stands_still()).await.is_ok();
        let mut body = running.begin().answered(Response::new(Body::from(vec![7; PIECE * 2 + 1]))).into_body();
        for left in [PIECE * 2 + 1, PIECE + 1, 1] {
            assert_eq!(body.size_hint().exact(), Some(left as u64));
            assert!(!body.is_end_stream());
            let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(piece.len(), left.min(PIECE));
        }
        drop(body);
        running.blocked(true);
        assert!(!is_over(FAREWELL * 2).await, "its last bytes are on their way");
        running.blocked(false);
        assert!(is_over(FAREWELL * 40).await);
    }

    #[tokio::test]
    async fn who_still_takes_bytes_is_waited_for() {
        const MOVES: u64 = 6;
        let running = Running::default();
        let moving = async {
            for _ in 0..MOVES {
                tokio::time::sleep(FAREWELL / 4).await;
                running.moved();
            }
            std::future::pending::<()>().await;
        };
        let begun = tokio::time::Instant::now();
        tokio::select! {
            // After a pause of the machine both timers are over: the bytes come first.
            biased;
            () = moving => {}
            () = running.stands_still() => {}
        }
        assert_eq!(running.0.moves.load(Ordering::Relaxed), MOVES, "it ended while bytes moved");
        assert!(begun.elapsed() > FAREWELL * 2, "it ended after {:?}", begun.elapsed());
    }
}
