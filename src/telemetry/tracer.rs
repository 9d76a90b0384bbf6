//! Spans: which are recorded, what they hold, and the bounded queue between the request path and the exporter.
//!
//! A finished span is copied into the queue's `Batch`: fixed fields in one vector, texts in one string beside it. Nothing is
//! allocated per span, and no buffer of a connection is kept alive until the export.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use opentelemetry::trace::TraceId;
use opentelemetry_semantic_conventions::attribute as key;
use tokio::sync::Notify;

use crate::telemetry::ids;
use crate::trace_context::{Context, Incoming, Sampling};

/// `OTEL_TRACES_SAMPLER`: who decides whether a trace is recorded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// A decision that came with the request is respected.
    parent_based: bool,
    root: Root,
}

/// The decision where nobody has made one.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Root {
    AlwaysOn,
    AlwaysOff,
    /// The share of trace ids, from 0 to 1.
    Ratio(f64),
}

impl Default for Sampler {
    fn default() -> Self {
        Self { parent_based: true, root: Root::AlwaysOn }
    }
}

impl Sampler {
    /// From the values of `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`. Errors name the value and what is accepted.
    pub fn parse(name: &str, arg: Option<&str>) -> Result<Self, String> {
        let (parent_based, root) = match name.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, name),
        };
        let root = match root {
            "always_on" => Root::AlwaysOn,
            "always_off" => Root::AlwaysOff,
            "traceidratio" => {
                let arg = arg.unwrap_or("1.0");
                let ratio = arg.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
                Root::Ratio(ratio.ok_or_else(|| format!("OTEL_TRACES_SAMPLER_ARG '{arg}' is not a ratio from 0 to 1"))?)
            }
            _ => {
                return Err(format!(
                    "unknown sampler '{name}'; accepted: always_on, always_off, traceidratio, \
                     parentbased_always_on, parentbased_always_off, parentbased_traceidratio"
                ));
            }
        };
        Ok(Self { parent_based, root })
    }

    fn decide(self, incoming: Sampling, trace_id: TraceId) -> Sampling {
        match incoming {
            Sampling::Debug => Sampling::Debug,
            Sampling::Sample | Sampling::Drop if self.parent_based => incoming,
            _ if self.root.samples(trace_id) => Sampling::Sample,
            _ => Sampling::Drop,
        }
    }
}

impl Root {
    fn samples(self, trace_id: TraceId) -> bool {
        match self {
            Self::AlwaysOn => true,
            Self::AlwaysOff => false,
            // The lower 63 bits, as the SDKs do it, so that all hops of a trace come to the same decision.
            Self::Ratio(ratio) if ratio >= 1.0 => true,
            Self::Ratio(ratio) => {
                let low = u128::from_be_bytes(trace_id.to_bytes()) as u64 >> 1;
                (low as f64) < ratio * (1_u64 << 63) as f64
            }
        }
    }
}

/// Which side of a call a span measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpanKind {
    /// The hop answering.
    Server,
    /// The hop calling the next one.
    Client,
}

/// A finished span as the request path hands it over; everything that is text is copied.
pub(crate) struct FinishedSpan<'a> {
    pub(crate) kind: SpanKind,
    pub(crate) context: &'a Context,
    pub(crate) start: SystemTime,
    pub(crate) duration: Duration,
    pub(crate) method: &'static str,
    /// The route template; empty when no route matched and on client spans.
    pub(crate) route: &'static str,
    /// 0 when there was no answer.
    pub(crate) status: u16,
    /// Why it failed, where the status does not say it.
    pub(crate) error: Option<&'static str>,
    pub(crate) path: &'a str,
    pub(crate) client: Option<IpAddr>,
    /// Host and port of the server side, as far as they are known.
    pub(crate) server: Option<(&'a str, u16)>,
    pub(crate) request_id: &'a str,
}

/// A span in a batch.
#[derive(Debug)]
pub(crate) struct Span {
    pub(crate) kind: SpanKind,
    pub(crate) context: Context,
    pub(crate) start: SystemTime,
    pub(crate) duration: Duration,
    method: &'static str,
    route: &'static str,
    status: u16,
    error: Option<&'static str>,
    path: Text,
    client: Option<IpAddr>,
    server: Text,
    server_port: u16,
    request_id: Text,
}

/// A piece of a batch's text.
#[derive(Debug, Clone, Copy)]
struct Text {
    start: u32,
    end: u32,
}

/// The value of an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// A text.
    Text(&'a str),
    /// A number.
    Int(u16),
    /// An address, shown as a text.
    Address(IpAddr),
}

/// Finished spans on their way to the exporter.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) spans: Vec<Span>,
    text: String,
}

impl Batch {
    /// The longest text that is kept of one attribute: a path may be 32 KiB long, and nobody reads that in a trace.
    const MAX_TEXT: usize = 1024;

    pub(crate) fn clear(&mut self) {
        self.spans.clear();
        self.text.clear();
    }

    fn copy(&mut self, text: &str) -> Text {
        let start = self.text.len() as u32;
        self.text.push_str(&text[..text.floor_char_boundary(Self::MAX_TEXT)]);
        Text { start, end: self.text.len() as u32 }
    }

    fn push(&mut self, span: &FinishedSpan<'_>) {
        let path = self.copy(span.path);
        let request_id = self.copy(span.request_id);
        let server = self.copy(span.server.map_or("", |(host, _)| host));
        self.spans.push(Span {
            kind: span.kind,
            context: *span.context,
            start: span.start,
            duration: span.duration,
            method: span.method,
            route: span.route,
            status: span.status,
            error: span.error,
            path,
            client: span.client,
            server,
            server_port: span.server.map_or(0, |(_, port)| port),
            request_id,
        });
    }

    fn text(&self, text: Text) -> &str {
        &self.text[text.start as usize..text.end as usize]
    }

    /// The span's name: method and route of a server span, the method alone of a client span; a method that a caller made up
    /// is called `HTTP` (semantic conventions for HTTP).
    pub(crate) fn name(&self, span: &Span) -> (&'static str, &'static str) {
        (if span.method == "_OTHER" { "HTTP" } else { span.method }, span.route)
    }

    /// Why the span failed: a server's own fault from 500 on, a caller's from 400 on, or what happened instead of an answer.
    pub(crate) fn failure(&self, span: &Span) -> Option<Failure> {
        let from = if span.kind == SpanKind::Server { 500 } else { 400 };
        match span.error {
            Some(error) => Some(Failure::Named(error)),
            None => (span.status >= from).then_some(Failure::Status(span.status)),
        }
    }

    /// Every attribute of a span, by its name in the OpenTelemetry semantic conventions.
    pub(crate) fn attributes<'a>(&'a self, span: &'a Span, mut visit: impl FnMut(&'static str, Value<'a>)) {
        let mut text = |name, text: &'a str| {
            if !text.is_empty() {
                visit(name, Value::Text(text));
            }
        };
        text(key::HTTP_REQUEST_METHOD, span.method);
        text(key::HTTP_ROUTE, span.route);
        text(key::URL_PATH, self.text(span.path));
        text(key::SERVER_ADDRESS, self.text(span.server));
        text("request.id", self.text(span.request_id));
        if let Some(client) = span.client {
            visit(key::CLIENT_ADDRESS, Value::Address(client));
        }
        if span.server_port != 0 {
            visit(key::SERVER_PORT, Value::Int(span.server_port));
        }
        if span.status != 0 {
            visit(key::HTTP_RESPONSE_STATUS_CODE, Value::Int(span.status));
        }
    }
}

/// What `error.type` says of a failed span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A short name of what happened.
    Named(&'static str),
    /// The status of the answer.
    Status(u16),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::Status(status) => write!(f, "{status}"),
        }
    }
}

/// Starts spans of one hop and takes finished ones. Clones share the queue.
#[derive(Debug, Clone)]
pub(crate) struct Tracer {
    sampler: Sampler,
    queue: Arc<SpanQueue>,
}

impl Tracer {
    pub(crate) fn new(sampler: Sampler, queue: Arc<SpanQueue>) -> Self {
        Self { sampler, queue }
    }

    /// The context of the server span that continues what came, or starts a trace; and whether it started one.
    pub(crate) fn server_context(&self, incoming: &Incoming) -> (Context, bool) {
        match incoming.context {
            Some(caller) => {
                let mut context = caller.child(ids::span_id());
                context.sampling = self.sampler.decide(caller.sampling, caller.trace_id);
                (context, false)
            }
            None => {
                let trace_id = ids::trace_id();
                let sampling = self.sampler.decide(incoming.sampling, trace_id);
                (Context { trace_id, short_trace_id: false, span_id: ids::span_id(), parent_id: None, sampling }, true)
            }
        }
    }

    /// Hands a finished span over if its trace is recorded. Never waits; a span that does not fit is dropped and counted.
    pub(crate) fn record(&self, span: &FinishedSpan<'_>) {
        if span.context.sampling.is_sampled() {
            self.queue.push(span);
        }
    }
}

/// The bounded queue between the request path and the exporter.
#[derive(Debug)]
pub(crate) struct SpanQueue {
    batch: Mutex<Batch>,
    max: usize,
    dropped: AtomicUsize,
    half_full: Notify,
}

impl SpanQueue {
    pub(crate) fn new(max: usize) -> Self {
        Self { batch: Mutex::default(), max, dropped: AtomicUsize::new(0), half_full: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Batch> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, span: &FinishedSpan<'_>) {
        let mut batch = self.lock();
        let queued = batch.spans.len();
        if queued >= self.max {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        batch.push(span);
        drop(batch);
        if queued + 1 == self.max.div_ceil(2) {
            self.half_full.notify_one();
        }
    }

    /// Takes everything that is queued and leaves `empty` in its place.
    pub(crate) fn take(&self, empty: Batch) -> Batch {
        std::mem::replace(&mut *self.lock(), empty)
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().spans.len()
    }

    /// How many spans did not fit, since the start.
    pub(crate) fn dropped(&self) -> usize {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Resolves when the queue is half full: the exporter need not wait for its next turn then.
    pub(crate) async fn half_full(&self) {
        self.half_full.notified().await;
    }
}

/// Which spans of a batch go out together.
pub(crate) fn chunks(batch: &Batch, size: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let len = batch.spans.len();
    (0..len).step_by(size).map(move |start| start..(start + size).min(len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::SpanId;

    fn context(sampling: Sampling) -> Context {
        let trace_id = ids::trace_id();
        Context { trace_id, short_trace_id: false, span_id: SpanId::from(1), parent_id: None, sampling }
    }

    fn finished<'a>(context: &'a Context, path: &'a str) -> FinishedSpan<'a> {
        FinishedSpan {
            kind: SpanKind::Server,
            context,
            start: SystemTime::UNIX_EPOCH,
            duration: Duration::from_micros(5),
            method: "GET",
            route: "/hello",
            status: 503,
            error: None,
            path,
            client: Some([127, 0, 0, 1].into()),
            server: Some(("localhost", 8080)),
            request_id: "r",
        }
    }

    #[test]
    fn a_missing_decision_is_the_receivers_to_make() {
        let tracer = Tracer::new(Sampler::default(), Arc::new(SpanQueue::new(1)));
        let caller = context(Sampling::Deferred);
        let (server, new) = tracer.server_context(&Incoming { context: Some(caller), sampling: Sampling::Deferred });
        assert!(!new);
        assert_eq!((server.trace_id, server.parent_id), (caller.trace_id, Some(caller.span_id)));
        assert_eq!(server.sampling, Sampling::Sample);
    }

    #[test]
    fn samplers_respect_what_their_names_say() {
        let decide =
            |name: &str, arg, incoming| Sampler::parse(name, arg).unwrap().decide(incoming, TraceId::from(u128::MAX >> 1));
        assert_eq!(decide("parentbased_always_on", None, Sampling::Drop), Sampling::Drop);
        assert_eq!(decide("always_on", None, Sampling::Drop), Sampling::Sample);
        assert_eq!(decide("parentbased_always_off", None, Sampling::Deferred), Sampling::Drop);
        assert_eq!(decide("always_off", None, Sampling::Sample), Sampling::Drop);
        assert_eq!(decide("always_off", None, Sampling::Debug), Sampling::Debug);
        assert_eq!(decide("traceidratio", Some("0"), Sampling::Sample), Sampling::Drop);
        assert_eq!(decide("traceidratio", Some("1"), Sampling::Drop), Sampling::Sample);
        assert!(Sampler::parse("sometimes", None).unwrap_err().contains("'sometimes'"));
        assert!(Sampler::parse("traceidratio", Some("2")).unwrap_err().contains("'2'"));
    }

    #[test]
    fn a_ratio_is_the_share_of_traces_that_are_recorded() {
        let sampler = Sampler::parse("parentbased_traceidratio", Some("0.25")).unwrap();
        let sampled = (0..40_000).filter(|_| sampler.decide(Sampling::Deferred, ids::trace_id()) == Sampling::Sample).count();
        // Standard deviation 87: six of them.
        assert!((9_480..=10_520).contains(&sampled), "{sampled}");
    }

    #[test]
    fn a_full_queue_drops_and_counts_and_keeps_what_it_has() {
        let queue = SpanQueue::new(2);
        let context = context(Sampling::Sample);
        for path in ["/a", "/b", "/c"] {
            queue.push(&finished(&context, path));
        }
        assert_eq!(queue.dropped(), 1);
        let batch = queue.take(Batch::default());
        let paths: Vec<_> = batch.spans.iter().map(|span| batch.text(span.path)).collect();
        assert_eq!(paths, ["/a", "/b"]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn attributes_have_their_standard_names_and_long_texts_are_cut() {
        let queue = SpanQueue::new(2);
        let long = format!("/{}", "ü".repeat(2000));
        queue.push(&finished(&context(Sampling::Debug), &long));
        let batch = queue.take(Batch::default());
        let mut seen = Vec::new();
        batch.attributes(&batch.spans[0], |name, value| seen.push((name, value)));
        assert!(seen.contains(&("http.response.status_code", Value::Int(503))), "{seen:?}");
        assert!(seen.contains(&("client.address", Value::Address([127, 0, 0, 1].into()))), "{seen:?}");
        assert_eq!(batch.text(batch.spans[0].path).len(), 1023);
        assert_eq!(batch.failure(&batch.spans[0]), Some(Failure::Status(503)));
    }
}
