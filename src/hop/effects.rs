//! What faults do to a request beside waiting and aborting: before the work, and to the answer.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderValue, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;
use tower::BoxError;

use crate::hop::error::{Error, ShedReason};
use crate::hop::exchange::Exchange;
use crate::hop::fault::{FaultKind, Limited, MAX_HANG, Struck};
use crate::system::held::{Exhausted, HeldKind};

/// What comes before the work, as in a service that is busy, bloated or stuck.
///
/// # Errors
///
/// The hop may not hold so much memory.
pub(crate) async fn before_work(exchange: &Exchange, struck: &Struck) -> Result<(), Error> {
    for fault in &struck.faults {
        match fault {
            FaultKind::Cpu(time) => {
                // As many at once as there are processors; the others wait, as they would for a processor.
                let _place = exchange.node.faults.processors().acquire().await;
                burn(*time).await;
            }
            FaultKind::Memory(bytes) => {
                let mut held = exchange.node.held.empty(HeldKind::Answer);
                held.add(*bytes).map_err(|Exhausted(kind)| exchange.shed(ShedReason::Held(kind)))?;
                let bytes = *bytes;
                // Written to, because the kernel gives no memory for pages that nobody touched.
                let filled = tokio::task::spawn_blocking(move || vec![1; bytes]).await.map_err(|_| Error::Internal)?;
                struck.memory.lock().unwrap_or_else(PoisonError::into_inner).push((held, filled));
            }
            FaultKind::Hang => tokio::time::sleep(MAX_HANG).await,
            _ => {}
        }
    }
    Ok(())
}

/// Uses a processor for so long, until the caller hangs up.
async fn burn(time: Duration) {
    struct StopFlag(Arc<AtomicBool>);
    impl Drop for StopFlag {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = StopFlag(Arc::default());
    let is_stopped = stop.0.clone();
    let burning = tokio::task::spawn_blocking(move || {
        let begun = (Instant::now(), processor_time());
        // The time that this thread had a processor, where the system says: on a busy machine it takes longer than it burns.
        let burnt = || match (begun.1, processor_time()) {
            (Some(before), Some(now)) => now.saturating_sub(before),
            _ => begun.0.elapsed(),
        };
        while burnt() < time && !is_stopped.load(Ordering::Relaxed) {
            for n in 0..20_000_u64 {
                std::hint::black_box(n.wrapping_mul(n));
            }
        }
    });
    let _ = burning.await;
}

/// How long this thread has run.
fn processor_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// What the faults do to the answer. Of a WebSocket they strike the first message (`websocket`).
pub(crate) fn to_answer(exchange: &Arc<Exchange>, struck: &Struck, mut response: Response) -> Response {
    if let Some(limited) = struck.limited {
        write_limit(response.headers_mut(), limited);
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return response;
    }
    if struck.faults.contains(&FaultKind::Close) {
        exchange.close_at_next_request();
    }
    response.map(|body| to_body(exchange, struck, body))
}

/// What the faults do to what is sent.
pub(crate) fn to_body(exchange: &Arc<Exchange>, struck: &Struck, mut body: Body) -> Body {
    for fault in &struck.faults {
        let (ending, pace) = match fault {
            FaultKind::Reset => (Some(AnswerEnd::Reset), None),
            FaultKind::Truncate => (Some(AnswerEnd::Early), None),
            FaultKind::Hang => (Some(AnswerEnd::Nothing), None),
            FaultKind::SlowBody(rate) => (None, Some(*rate)),
            _ => continue,
        };
        if ending == Some(AnswerEnd::Reset) {
            exchange.reset_on_close();
        }
        body = Body::new(FaultyBody::new(body, ending, pace, exchange.clone()));
    }
    body
}

/// `Retry-After`, and the fields of the IETF's draft "RateLimit header fields for HTTP".
fn write_limit(headers: &mut http::HeaderMap, Limited { limit, retry_after }: Limited) {
    let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
    headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    let policy = format!("\"fault\";q={};w={}", limit.requests, limit.period.as_secs());
    for (name, value) in [("ratelimit-policy", policy), ("ratelimit", format!("\"fault\";r=0;t={seconds}"))] {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
}

/// How an answer ends that does not end as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AnswerEnd {
    /// In the middle, with an error: the connection (or the stream) is reset.
    Reset,
    /// In the middle, as if that were all.
    Early,
    /// Before it began.
    Nothing,
}

/// How long the first half of an answer has until it has arrived.
const HALFWAY: Duration = Duration::from_millis(50);
/// How often a slow body sends a part.
const TICK: Duration = Duration::from_millis(100);

/// The body of an answer that is slow, or does not end as it should. It claims the length of the whole.
struct FaultyBody {
    body: Body,
    ending: Option<AnswerEnd>,
    /// Bytes per second.
    pace: Option<usize>,
    /// Bytes that the whole still has, where that is known.
    left: Option<u64>,
    /// Bytes until the end in the middle; unknown until the first frame where the length is.
    until_end: Option<usize>,
    /// The rest of a frame.
    rest: Bytes,
    wait: Option<Pin<Box<Sleep>>>,
    exchange: Arc<Exchange>,
}

impl FaultyBody {
    fn new(body: Body, ending: Option<AnswerEnd>, pace: Option<usize>, exchange: Arc<Exchange>) -> Self {
        let left = body.size_hint().exact();
        let until_end = match ending {
            Some(AnswerEnd::Nothing) => Some(0),
            Some(_) => left.map(|left| (left / 2) as usize),
            None => Some(usize::MAX),
        };
        Self { body, ending, pace, left, until_end, rest: Bytes::new(), wait: None, exchange }
    }

    fn end(&mut self) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.exchange.cut_by_fault();
        match self.ending {
            // Without a length the end would look like that of the whole; over gRPC the status is missing.
            Some(AnswerEnd::Early) if self.left.is_some() || self.exchange.is_grpc => Poll::Ready(None),
            _ => Poll::Ready(Some(Err("cut by an injected fault".into()))),
        }
    }

    /// Splits off as much as is sent at once.
    fn part(&mut self) -> Bytes {
        let until_end = *self.until_end.get_or_insert(self.rest.len() / 2);
        let most = self.pace.map_or(usize::MAX, |pace| (pace / 10).max(1));
        let part = self.rest.split_to(self.rest.len().min(until_end).min(most));
        self.until_end = Some(until_end - part.len());
        self.left = self.left.map(|left| left.saturating_sub(part.len() as u64));
        let wait = match self.pace {
            Some(pace) => Some(TICK.max(Duration::from_secs_f64(part.len() as f64 / pace as f64))),
            None => (self.until_end == Some(0)).then_some(HALFWAY),
        };
        self.wait = wait.map(|wait| Box::pin(tokio::time::sleep(wait)));
        part
    }
}

impl HttpBody for FaultyBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Some(wait) = &mut this.wait {
            ready!(wait.as_mut().poll(cx));
            this.wait = None;
        }
        if this.until_end == Some(0) {
            return this.end();
        }
        if this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => return Poll::Ready(None),
            }
        }
        Poll::Ready(Some(Ok(Frame::data(this.part()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0) && self.ending.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
