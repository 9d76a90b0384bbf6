//! Answers that last: replies of this hop, one an interval, as server-sent events and over gRPC.
//!
//! A stream has a place of its own (`state::StreamPlace`), an hour at most, and an end that its reader is shown, also when the hop drains.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{FromRequestParts, Request};
use axum::response::Response;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{Stream, StreamExt as _, unfold};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use crate::hop::chain::own_reply;
use crate::hop::error::Error;
use crate::hop::exchange::Exchange;
use crate::hop::state::StreamPlace;
use crate::rpc::chain::Reply;
use crate::values::parse_duration;

/// The most messages of a stream.
pub(crate) const MAX_MESSAGES: u32 = 10_000;
/// How long a stream may last.
pub(crate) const LONGEST: Duration = Duration::from_secs(3600);

/// How many messages a stream has, and how far apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    count: u32,
    interval: Duration,
}

impl Pace {
    /// # Errors
    ///
    /// More messages or more time than a stream may have.
    pub(crate) fn new(count: Option<u32>, interval: Option<Duration>) -> Result<Self, Error> {
        let pace = Self { count: count.unwrap_or(10), interval: interval.unwrap_or(Duration::from_secs(1)) };
        let is_short = pace.interval.checked_mul(pace.count).is_some_and(|whole| whole <= LONGEST);
        if (1..=MAX_MESSAGES).contains(&pace.count) && is_short { Ok(pace) } else { Err(Error::BadStream) }
    }

    /// # Errors
    ///
    /// No number, no duration, or [`Pace::new`]'s.
    pub(crate) fn read(query: &str) -> Result<Self, Error> {
        let (mut count, mut interval) = (None, None);
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            match name {
                "count" => count = Some(value.parse().map_err(|_| Error::BadStream)?),
                "interval" => interval = Some(parse_duration(value).map_err(|_| Error::BadStream)?),
                _ => {}
            }
        }
        Self::new(count, interval)
    }
}

impl<S: Sync> FromRequestParts<S> for Pace {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        Self::read(parts.uri.query().unwrap_or_default())
    }
}

/// Why a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StreamEnd {
    Complete,
    Draining,
    /// The caller's `grpc-timeout`.
    Deadline,
    /// Its reader was too slow.
    TooLong,
}

impl StreamEnd {
    fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Draining => "draining",
            Self::Deadline => "deadline exceeded",
            Self::TooLong => "an hour is over",
        }
    }
}

/// When the messages of one stream are due.
struct Ticks {
    exchange: Arc<Exchange>,
    _place: StreamPlace,
    pace: Pace,
    begun: Instant,
    sent: u32,
}

impl Ticks {
    fn new(exchange: Arc<Exchange>, place: StreamPlace, pace: Pace) -> Self {
        Self { exchange, _place: place, pace, begun: Instant::now(), sent: 0 }
    }

    fn due(&self, message: u32) -> Instant {
        self.begun + self.pace.interval * message
    }

    /// Waits for the next message. When the hop no longer accepts, a stream whose messages all fit the time that is left goes on,
    /// and any other ends at once, so that its caller can ask another instance.
    async fn next(&mut self) -> Result<(), StreamEnd> {
        /// What is left for the last message to arrive.
        const MARGIN: Duration = Duration::from_secs(1);
        if self.sent == self.pace.count {
            return Err(StreamEnd::Complete);
        }
        let (due, last) = (self.due(self.sent), self.due(self.pace.count - 1));
        let end = self.begun + LONGEST;
        let deadline = self.exchange.deadline.unwrap_or(end).min(end);
        let node = self.exchange.node.clone();
        let draining = async {
            let until = node.phase.closing().await;
            if last + MARGIN <= until {
                std::future::pending::<()>().await;
            }
        };
        if Instant::now() < deadline {
            tokio::select! {
                biased;
                () = sleep_until(due), if due < deadline => {
                    self.sent += 1;
                    return Ok(());
                }
                () = draining => return Err(StreamEnd::Draining),
                () = sleep_until(deadline) => {}
            }
        }
        Err(if deadline < end { StreamEnd::Deadline } else { StreamEnd::TooLong })
    }

    /// How it ended, for a reader.
    fn end_message(&self, end: StreamEnd) -> String {
        let Self { sent, pace, .. } = self;
        format!("{}: {sent} of {} replies were sent", end.as_str(), pace.count)
    }
}

/// `GET /stream`: an event with the reply of this hop at each tick, and an event `end`, after which `EventSource` is to be closed.
pub(crate) async fn events(
    Extension(exchange): Extension<Arc<Exchange>>,
    Extension(place): Extension<StreamPlace>,
    pace: Result<Pace, Error>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Error> {
    let ticks = Ticks::new(exchange, place, pace?);
    let events = unfold(Some(ticks), |ticks| async {
        let mut ticks = ticks?;
        match ticks.next().await {
            Ok(()) => {
                let reply = String::from_utf8(own_reply(&ticks.exchange, StatusCode::OK).to_json()).unwrap_or_default();
                Some((Ok(Event::default().id(ticks.sent.to_string()).data(reply)), Some(ticks)))
            }
            Err(end) => {
                let data = json!({"reason": end.as_str(), "sent": ticks.sent, "count": ticks.pace.count});
                Some((Ok(Event::default().event("end").data(data.to_string())), None))
            }
        }
    });
    // Proxies end a stream that is silent for minutes.
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

/// `Chain/Stream`.
pub(crate) fn replies(
    exchange: Arc<Exchange>,
    place: StreamPlace,
    pace: Pace,
) -> impl Stream<Item = Result<Reply, Status>> + Send {
    unfold(Some(Ticks::new(exchange, place, pace)), |ticks| async {
        let mut ticks = ticks?;
        let status = match ticks.next().await {
            Ok(()) => {
                let reply = own_reply(&ticks.exchange, StatusCode::OK).into_message();
                return Some((Ok(reply), Some(ticks)));
            }
            Err(StreamEnd::Complete) => return None,
            Err(end @ StreamEnd::Draining) => Status::unavailable(ticks.end_message(end)),
            Err(end) => Status::deadline_exceeded(ticks.end_message(end)),
        };
        ticks.exchange.set_grpc_code(status.code());
        Some((Err(status), None))
    })
}

/// Serves a stream in both directions. When the hop no longer accepts, one on which nothing is due ends with a status, so that its
/// caller can ask another instance. Its place is free when the answer has ended, and nothing more is read of the request.
pub(crate) async fn until_closing<E, F>(
    exchange: &Arc<Exchange>,
    request: Request,
    serve: impl FnOnce(Request) -> F,
) -> Result<Response, E>
where
    F: Future<Output = Result<Response, E>>,
{
    let place = request.extensions().get::<StreamPlace>().cloned();
    let (answering, answered) = oneshot::channel::<Infallible>();
    let request = request.map(|body| Body::new(StreamBody::new(BodyStream::new(body).take_until(answered))));
    let response = serve(request).await?;
    let (phase, exchange) = (exchange.node.phase.clone(), exchange.clone());
    Ok(response.map(|body| {
        let closing = Box::pin(async move { phase.closing().await });
        let frames = unfold(Some((body, closing, (answering, place))), move |open| {
            let exchange = exchange.clone();
            async move {
                let (mut body, mut closing, kept) = open?;
                let (frame, open) = tokio::select! {
                    biased;
                    frame = body.frame() => {
                        let frame = frame?;
                        let is_last = frame.as_ref().is_ok_and(Frame::is_trailers);
                        (frame, (!is_last).then_some((body, closing, kept)))
                    }
                    _ = &mut closing => {
                        let mut trailers = HeaderMap::new();
                        let _ = Status::unavailable(StreamEnd::Draining.as_str()).add_header(&mut trailers);
                        (Ok(Frame::trailers(trailers)), None)
                    }
                };
                if let Some(status) = frame.as_ref().ok().and_then(Frame::trailers_ref).and_then(Status::from_header_map) {
                    exchange.set_grpc_code(status.code());
                }
                Some((frame, open))
            }
        });
        Body::new(StreamBody::new(frames))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_has_a_length_that_it_can_keep() {
        let pace = |count, interval| Ok(Pace { count, interval: Duration::from_millis(interval) });
        assert_eq!(Pace::read(""), pace(10, 1000));
        assert_eq!(Pace::read("a=b&interval=200ms&count=3&count"), pace(3, 200));
        assert_eq!(Pace::read("count=10000&interval=0"), pace(10_000, 0));
        assert_eq!(Pace::read("count=1&interval=1h"), pace(1, 3_600_000));
        for bad in ["count=0", "count=10001", "count=", "count=-1", "count=1.5", "interval=", "interval=x", "interval=-1s"] {
            assert_eq!(Pace::read(bad), Err(Error::BadStream), "{bad}");
        }
        for long in ["count=2&interval=1h", "count=10000&interval=1s", "count=10000&interval=1000000000years", "interval=361s"] {
            assert_eq!(Pace::read(long), Err(Error::BadStream), "{long}");
        }
    }
}
