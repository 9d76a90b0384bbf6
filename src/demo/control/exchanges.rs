//! The newest requests with their headers and answers: those that arrived at a hop from outside the demo, and those that the demo sent.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use memchr::memmem;
use serde::Serialize;

use crate::demo::control::live::Gauge;
use crate::demo::control::seams::{BrokenSeam, seams};
use crate::hop::reply::{Headers, Tree, milliseconds};
use crate::hop::watch::{Watch, WatchedRequest};
use crate::trace_context::HeaderFamily;
use crate::traces::ids::{parse_span_id, parse_trace_id, zipkin_id};
use crate::traces::{SpanId, TraceId};

/// Requests that are kept, and their bytes in all.
const EXCHANGES: usize = 500;
const EXCHANGE_BYTES: usize = 16 << 20;

/// Who had a request sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RequestSender {
    /// The demo, its first one.
    Demo,
    /// Somebody at the page.
    Page,
    /// Somebody else.
    Other,
}

/// One request as it was sent or as it arrived, and its answer.
#[derive(Debug, Clone)]
pub(crate) struct RecordedExchange {
    pub(crate) sender: RequestSender,
    /// The hop that answered.
    pub(crate) service: String,
    pub(crate) method: String,
    /// The URL of the demo's own requests, the path of others.
    pub(crate) url: String,
    /// The headers of the demo's own requests, beside those that every client sends.
    pub(crate) sent: Vec<(String, String)>,
    /// The carried headers that arrived, as JSON; empty where only the reply says.
    pub(crate) received: Vec<u8>,
    /// `None` when there was no answer.
    pub(crate) status: Option<u16>,
    pub(crate) duration: Duration,
    /// Why there is no reply where there should be one.
    pub(crate) error: Option<String>,
    /// The trace and the span of the hop that answered.
    pub(crate) trace_id: Option<TraceId>,
    pub(crate) span_id: Option<SpanId>,
    pub(crate) body: Bytes,
    pub(crate) is_cut: bool,
    /// The reply as JSON; empty without one.
    pub(crate) reply: Bytes,
}

impl RecordedExchange {
    fn weight(&self) -> usize {
        let sent: usize = self.sent.iter().map(|(name, value)| name.len() + value.len()).sum();
        let shared = if self.reply.as_ptr() == self.body.as_ptr() { 0 } else { self.reply.len() };
        size_of::<Self>() + self.url.len() + sent + self.received.len() + self.body.len() + shared
    }

    /// Whether the request was, with one of its hops, in this trace.
    fn is_in(&self, id: TraceId) -> bool {
        self.trace_id == Some(id) || memmem::find(&self.reply, id.to_string().as_bytes()).is_some()
    }

    pub(crate) fn tree(&self) -> Option<Tree> {
        Tree::parse(&self.reply).ok()
    }

    /// What the page is given.
    pub(crate) fn to_json(&self) -> Bytes {
        let reply = self.tree();
        let received = reply.as_ref().map(|reply| reply.received.clone());
        let received = received.or_else(|| serde_json::from_slice(&self.received).ok()).unwrap_or_default();
        let view = View {
            sender: self.sender,
            service: &self.service,
            trace_id: self.trace_id.map(|id| id.to_string()),
            span_id: self.span_id.map(|id| id.to_string()),
            method: &self.method,
            url: &self.url,
            sent: &self.sent,
            status: self.status,
            duration_ms: milliseconds(self.duration),
            error: self.error.as_deref(),
            contexts: contexts(&self.sent, &received, reply.as_ref()),
            seams: reply.as_ref().map(seams).unwrap_or_default(),
            body: std::str::from_utf8(&self.body).ok(),
            body_bytes: self.body.len(),
            is_cut: self.is_cut,
            received: &received,
            reply: reply.as_ref(),
        };
        serde_json::to_vec(&view).unwrap_or_default().into()
    }
}

#[derive(Serialize)]
struct View<'a> {
    sender: RequestSender,
    service: &'a str,
    trace_id: Option<String>,
    span_id: Option<String>,
    method: &'a str,
    url: &'a str,
    sent: &'a [(String, String)],
    received: &'a Headers,
    status: Option<u16>,
    duration_ms: f64,
    error: Option<&'a str>,
    /// The ids in each `traceparent` and `b3` that was sent, as a hop reads them; what no hop would read is not here.
    contexts: BTreeMap<String, Ids>,
    seams: Vec<BrokenSeam>,
    /// Null for one that is no text.
    body: Option<&'a str>,
    body_bytes: usize,
    is_cut: bool,
    reply: Option<&'a Tree>,
}

/// The ids of a context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Ids {
    trace_id: String,
    span_id: String,
}

/// The contexts in all headers of a request that a page could not read for itself.
fn contexts(sent: &[(String, String)], received: &Headers, reply: Option<&Tree>) -> BTreeMap<String, Ids> {
    let sent = sent.iter().map(|(name, value)| (name.as_str(), value));
    let all = |headers: &'_ Headers| {
        headers
            .0
            .iter()
            .flat_map(|(name, values)| values.iter().map(move |value| (name.clone(), value.clone())))
            .collect::<Vec<_>>()
    };
    let below = reply
        .into_iter()
        .flat_map(|reply| reply.hops(""))
        .flat_map(|(hop, _)| hop.upstreams.iter().map(|call| &call.sent).chain([&hop.received]));
    let arrived: Vec<_> = std::iter::once(received).chain(below).flat_map(all).collect();
    let read = |(name, value): (&str, &String)| {
        let family = match name {
            "traceparent" => HeaderFamily::W3c,
            "b3" => HeaderFamily::B3,
            _ => return None,
        };
        let context = family.read(&Headers(vec![(name.to_owned(), vec![value.clone()])]))?;
        let trace_id = if context.short_trace_id { zipkin_id(context.trace_id) } else { context.trace_id.to_string() };
        Some((value.clone(), Ids { trace_id, span_id: context.span_id.to_string() }))
    };
    sent.chain(arrived.iter().map(|(name, value)| (name.as_str(), value))).filter_map(read).collect()
}

/// The newest requests. It forgets rather than grows.
#[derive(Debug, Default)]
pub(crate) struct Exchanges(Mutex<Ring>);

#[derive(Debug, Default)]
struct Ring {
    kept: VecDeque<Arc<RecordedExchange>>,
    bytes: usize,
}

impl Exchanges {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a request. The demo's own is also seen by the hop that answers it: what the demo knows of it stays.
    pub(crate) fn record(&self, exchange: RecordedExchange) {
        let mut ring = self.ring();
        let key = exchange.span_id.map(|span| (exchange.trace_id, span));
        let known = ring.kept.iter().rposition(|known| key.is_some() && known.span_id.map(|span| (known.trace_id, span)) == key);
        match known {
            Some(_) if exchange.sender == RequestSender::Other => return,
            Some(at) => {
                let old = ring.kept.remove(at);
                ring.bytes -= old.map_or(0, |old| old.weight());
            }
            None => {}
        }
        ring.bytes += exchange.weight();
        ring.kept.push_back(Arc::new(exchange));
        while ring.kept.len() > EXCHANGES || ring.bytes > EXCHANGE_BYTES {
            let Some(old) = ring.kept.pop_front() else { break };
            ring.bytes -= old.weight();
        }
    }

    /// The newest request that was in this trace; with `first`, the one whose first hop made that span.
    pub(crate) fn of(&self, trace: TraceId, first: Option<SpanId>) -> Option<Arc<RecordedExchange>> {
        let kept = self.ring().kept.clone();
        let mut newest = kept.into_iter().rev().filter(|exchange| exchange.is_in(trace));
        newest.find(|exchange| first.is_none() || exchange.span_id == first)
    }
}

/// What a hop of the demo notifies of its requests.
#[derive(Debug)]
pub(crate) struct HopWatch {
    pub(crate) gauge: Arc<Gauge>,
    pub(crate) exchanges: Arc<Exchanges>,
    pub(crate) service: String,
    /// No hop of the demo calls it.
    pub(crate) is_front: bool,
}

impl Watch for HopWatch {
    fn began(&self) {
        self.gauge.began();
    }

    fn ended(&self, status: u16, took: Duration) {
        self.gauge.ended(status, took);
    }

    /// What another hop of the demo sent is in that hop's reply.
    fn keeps(&self, hops: u32) -> bool {
        self.is_front || hops == 0
    }

    fn record(&self, seen: WatchedRequest) {
        let body = Bytes::from(seen.answer.body);
        let reply = if seen.answer.reply == body { body.clone() } else { seen.answer.reply.into() };
        self.exchanges.record(RecordedExchange {
            sender: RequestSender::Other,
            service: self.service.clone(),
            method: seen.method,
            url: seen.path,
            sent: Vec::new(),
            received: seen.received,
            status: Some(seen.status),
            duration: seen.duration,
            error: None,
            trace_id: seen.trace_id.and_then(|id| parse_trace_id(&id).ok()),
            span_id: seen.span_id.and_then(|id| parse_span_id(&id).ok()),
            is_cut: seen.answer.is_cut,
            body,
            reply,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(sender: RequestSender, trace: &str, span: &str, body: usize) -> RecordedExchange {
        RecordedExchange {
            sender,
            service: "service1".into(),
            method: "GET".into(),
            url: "/".into(),
            sent: Vec::new(),
            received: Vec::new(),
            status: Some(200),
            duration: Duration::ZERO,
            error: None,
            trace_id: parse_trace_id(trace).ok(),
            span_id: parse_span_id(span).ok(),
            body: vec![b'x'; body].into(),
            is_cut: false,
            reply: Bytes::new(),
        }
    }

    #[test]
    fn the_newest_are_kept_within_their_bytes_and_each_request_once() {
        let exchanges = Exchanges::default();
        let of = |trace: &str, first: Option<&str>| {
            exchanges.of(parse_trace_id(trace).unwrap(), first.map(|span| parse_span_id(span).unwrap())).map(|found| found.sender)
        };
        // The hop and the demo's own client both know of it, in either order.
        exchanges.record(exchange(RequestSender::Other, "a", "1", 10));
        exchanges.record(exchange(RequestSender::Page, "a", "1", 10));
        exchanges.record(exchange(RequestSender::Other, "a", "1", 10));
        assert_eq!((of("a", None), exchanges.ring().kept.len()), (Some(RequestSender::Page), 1));
        // The same trace id again is another request.
        exchanges.record(exchange(RequestSender::Other, "a", "2", 10));
        assert_eq!(
            (of("a", None), of("a", Some("1")), of("a", Some("3"))),
            (Some(RequestSender::Other), Some(RequestSender::Page), None)
        );
        for n in 0..40 {
            exchanges.record(exchange(RequestSender::Other, "b", &format!("{:x}", n + 10), 1 << 20));
        }
        assert_eq!(of("a", None), None);
        let ring = exchanges.ring();
        assert!(ring.bytes <= EXCHANGE_BYTES && ring.kept.len() == 15, "{} of {}", ring.bytes, ring.kept.len());
        assert_eq!(ring.bytes, ring.kept.iter().map(|kept| kept.weight()).sum::<usize>());
    }
}
