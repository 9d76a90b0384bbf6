//! Finished spans on their way to the exporter.
//!
//! A finished span is copied into the [`SpanBatch`] of the queue: fixed fields into one vector, strings into one buffer. A span
//! costs no allocation of its own, and no buffer of a connection is kept alive until the export.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use opentelemetry_semantic_conventions::attribute as key;
use tonic::Code;

use crate::rpc;
use crate::telemetry::queue::{BATCH_ITEMS, Batch, Counted, Queue, TextRange, Texts};
use crate::trace_context::{Carried, Context, HeaderSource as _};

/// Which side of a call a span measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpanKind {
    /// The hop answers.
    Server,
    /// The hop calls the next one.
    Client,
}

/// A finished span on the request path; [`SpanQueue::push`] copies its strings.
pub(crate) struct FinishedSpan<'a> {
    pub(crate) kind: SpanKind,
    pub(crate) context: &'a Context,
    pub(crate) start: SystemTime,
    pub(crate) duration: Duration,
    /// Of HTTP; of a gRPC call the fully qualified method.
    pub(crate) method: &'static str,
    /// Of a gRPC call.
    pub(crate) rpc_code: Option<Code>,
    /// The method as it was sent, where that is another one; else empty.
    pub(crate) original_method: &'a str,
    /// `http` or `https`, of a server span.
    pub(crate) scheme: &'static str,
    /// Scheme, host and port of what a client span calls, `http://service2:8080`; empty on server spans.
    pub(crate) base_url: &'a str,
    /// The route template; empty when no route matched and on client spans.
    pub(crate) route: &'a str,
    /// 0 when there was no answer; else what was sent, also when it was cut.
    pub(crate) status: u16,
    /// `error.type` where the status is not the reason.
    pub(crate) error: Option<&'static str>,
    pub(crate) path: &'a str,
    /// As it was sent; exported with its keys alone.
    pub(crate) query: Option<&'a str>,
    pub(crate) client: Option<IpAddr>,
    /// Host and port of the server, where known.
    pub(crate) server: Option<(&'a str, u16)>,
    /// The other end of the socket, where known.
    pub(crate) peer: Option<SocketAddr>,
    /// `network.protocol.version`; empty without an answer.
    pub(crate) protocol: &'static str,
    pub(crate) user_agent: &'a str,
    pub(crate) resend_count: u32,
    pub(crate) request_id: &'a str,
    /// The carried headers, when they hold a `tracestate` of this trace.
    pub(crate) trace_state: Option<&'a Carried>,
}

#[cfg(test)]
impl<'a> FinishedSpan<'a> {
    /// A server span of `GET /hello`.
    pub(crate) fn for_tests(context: &'a Context) -> Self {
        FinishedSpan {
            kind: SpanKind::Server,
            context,
            start: SystemTime::UNIX_EPOCH,
            duration: Duration::from_micros(5),
            method: "GET",
            rpc_code: None,
            original_method: "",
            scheme: "http",
            base_url: "",
            route: "/hello",
            status: 200,
            error: None,
            path: "/hello",
            query: None,
            client: None,
            server: None,
            peer: None,
            protocol: "1.1",
            user_agent: "",
            resend_count: 0,
            request_id: "r",
            trace_state: None,
        }
    }
}

/// A span in a [`SpanBatch`].
#[derive(Debug)]
pub(crate) struct QueuedSpan {
    pub(crate) kind: SpanKind,
    pub(crate) context: Context,
    pub(crate) start: SystemTime,
    pub(crate) duration: Duration,
    method: &'static str,
    rpc_code: Option<Code>,
    original_method: TextRange,
    scheme: &'static str,
    route: TextRange,
    status: u16,
    error: Option<&'static str>,
    url: TextRange,
    path: TextRange,
    query: TextRange,
    client: Option<IpAddr>,
    server: TextRange,
    server_port: u16,
    peer: Option<SocketAddr>,
    protocol: &'static str,
    user_agent: TextRange,
    resend_count: u16,
    request_id: TextRange,
    trace_state: TextRange,
}

/// The value of an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttributeValue<'a> {
    /// A string.
    Text(&'a str),
    /// An integer.
    Int(u64),
    /// An address, exported as a string.
    Address(IpAddr),
}

/// `error.type` of a failed span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorType {
    /// A short name of what happened instead of an answer.
    Named(&'static str),
    /// The status of the answer.
    Status(u16),
}

impl fmt::Display for ErrorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::Status(status) => write!(f, "{status}"),
        }
    }
}

/// Finished spans on their way to the exporter.
#[derive(Debug, Default)]
pub(crate) struct SpanBatch {
    pub(crate) spans: Vec<QueuedSpan>,
    text: Texts,
}

impl Batch for SpanBatch {
    fn len(&self) -> usize {
        self.spans.len()
    }

    fn text_len(&self) -> usize {
        self.text.0.len()
    }

    fn counted(&self, item: usize) -> Counted {
        let span = &self.spans[item];
        Some((span.context.trace_id, span.start))
    }

    fn clear(&mut self) {
        self.spans.clear();
        self.spans.shrink_to(BATCH_ITEMS);
        self.text.clear();
    }
}

impl SpanBatch {
    /// The longest string of one attribute, in bytes: a path may be 32 KiB long, which no trace view shows.
    const MAX_TEXT: usize = 1024;

    fn copy(&mut self, text: &str) -> TextRange {
        self.text.copy(text, Self::MAX_TEXT)
    }

    /// Copies a query with its keys, and `REDACTED` in place of every value: values may be secrets.
    fn copy_query(&mut self, query: &str) -> TextRange {
        let start = self.text.0.len() as u32;
        let query = &query[..query.floor_char_boundary(Self::MAX_TEXT)];
        for (i, pair) in query.split('&').enumerate() {
            if i > 0 {
                self.text.0.push('&');
            }
            match pair.split_once('=') {
                Some((key, _)) => self.text.0.extend([key, "=REDACTED"]),
                None => self.text.0.push_str(pair),
            }
        }
        TextRange { start, end: self.text.0.len() as u32 }
    }

    /// Copies the lines of a `tracestate` as one.
    fn copy_trace_state(&mut self, carried: &Carried) -> TextRange {
        let start = self.text.0.len();
        for line in carried.values("tracestate").filter_map(|line| std::str::from_utf8(line).ok()).filter(|line| !line.is_empty())
        {
            if self.text.0.len() > start {
                self.text.0.push(',');
            }
            self.text.0.push_str(line);
        }
        TextRange { start: start as u32, end: self.text.0.len() as u32 }
    }

    fn push(&mut self, span: &FinishedSpan<'_>) {
        // One text: the URL is base, path and query.
        let base = self.copy(span.base_url);
        let path = self.copy(span.path);
        let query = match span.query.filter(|query| !query.is_empty()) {
            Some(query) => {
                self.text.0.push('?');
                self.copy_query(query)
            }
            None => TextRange { start: path.end, end: path.end },
        };
        let queued = QueuedSpan {
            kind: span.kind,
            context: *span.context,
            start: span.start,
            duration: span.duration,
            method: span.method,
            rpc_code: span.rpc_code,
            original_method: self.copy(span.original_method),
            scheme: span.scheme,
            route: self.copy(span.route),
            status: span.status,
            error: span.error,
            url: if span.base_url.is_empty() { base } else { TextRange { start: base.start, end: query.end } },
            path,
            query,
            client: span.client,
            server: self.copy(span.server.map_or("", |(host, _)| host)),
            server_port: span.server.map_or(0, |(_, port)| port),
            peer: span.peer,
            protocol: span.protocol,
            user_agent: self.copy(span.user_agent),
            resend_count: span.resend_count as u16,
            request_id: self.copy(span.request_id),
            trace_state: span.trace_state.map_or(TextRange { start: 0, end: 0 }, |carried| self.copy_trace_state(carried)),
        };
        self.spans.push(queued);
    }

    /// Every text of a span that is not a constant, one after the other; without its `tracestate`.
    pub(crate) fn texts(&self, span: &QueuedSpan) -> &str {
        self.text(TextRange { start: span.url.start, end: span.request_id.end })
    }

    fn text(&self, text: TextRange) -> &str {
        self.text.get(text)
    }

    /// The span's name: method and route of a server span, the method alone of a client span; `HTTP` in place of a method
    /// that is not registered (semantic conventions for HTTP).
    pub(crate) fn name(&self, span: &QueuedSpan) -> (&'static str, &str) {
        if span.rpc_code.is_some() {
            // Its method, if it is known (semantic conventions for RPC).
            return (if span.method == "_OTHER" { "grpc" } else { span.method }, "");
        }
        (if span.method == "_OTHER" { "HTTP" } else { span.method }, self.text(span.route))
    }

    /// Why the span failed, if it did: a status of 5xx on a server span, of 4xx or 5xx on a client span, or no answer.
    pub(crate) fn error_type(&self, span: &QueuedSpan) -> Option<ErrorType> {
        let from = if span.kind == SpanKind::Server { 500 } else { 400 };
        match span.error {
            Some(error) => Some(ErrorType::Named(error)),
            None if span.rpc_code.is_some() => None,
            None => (span.status >= from).then_some(ErrorType::Status(span.status)),
        }
    }

    /// The `tracestate` of the span's trace; empty when there is none.
    pub(crate) fn trace_state(&self, span: &QueuedSpan) -> &str {
        self.text(span.trace_state)
    }

    /// What a client span called, by name and address.
    pub(crate) fn callee(&self, span: &QueuedSpan) -> Option<(&str, Option<SocketAddr>)> {
        (span.kind == SpanKind::Client).then(|| (self.text(span.server), span.peer))
    }

    /// Calls `visit` for each attribute, by its name in the OpenTelemetry semantic conventions.
    pub(crate) fn attributes<'a>(&'a self, span: &'a QueuedSpan, mut visit: impl FnMut(&'static str, AttributeValue<'a>)) {
        let mut text = |name, text: &'a str| {
            if !text.is_empty() {
                visit(name, AttributeValue::Text(text));
            }
        };
        if let Some(code) = span.rpc_code {
            text("rpc.system.name", "grpc");
            text("rpc.method", span.method);
            text("rpc.method_original", self.text(span.original_method));
            text("rpc.response.status_code", rpc::status::name(code));
        } else {
            text(key::HTTP_REQUEST_METHOD, span.method);
            text(key::HTTP_REQUEST_METHOD_ORIGINAL, self.text(span.original_method));
            text(key::HTTP_ROUTE, self.text(span.route));
            text(key::URL_FULL, self.text(span.url));
            text(key::URL_SCHEME, span.scheme);
            text(key::URL_PATH, self.text(span.path));
        }
        if span.kind == SpanKind::Server && span.rpc_code.is_none() {
            text(key::URL_QUERY, self.text(span.query));
        }
        text(key::SERVER_ADDRESS, self.text(span.server));
        text(key::NETWORK_PROTOCOL_VERSION, span.protocol);
        text(key::USER_AGENT_ORIGINAL, self.text(span.user_agent));
        text("request.id", self.text(span.request_id));
        if let Some(client) = span.client {
            visit(key::CLIENT_ADDRESS, AttributeValue::Address(client));
        }
        if let Some(peer) = span.peer {
            visit(key::NETWORK_PEER_ADDRESS, AttributeValue::Address(peer.ip().to_canonical()));
            visit(key::NETWORK_PEER_PORT, AttributeValue::Int(peer.port().into()));
        }
        if span.resend_count != 0 && span.rpc_code.is_none() {
            visit(key::HTTP_REQUEST_RESEND_COUNT, AttributeValue::Int(span.resend_count.into()));
        }
        if span.server_port != 0 {
            visit(key::SERVER_PORT, AttributeValue::Int(span.server_port.into()));
        }
        if span.status != 0 && span.rpc_code.is_none() {
            visit(key::HTTP_RESPONSE_STATUS_CODE, AttributeValue::Int(span.status.into()));
        }
    }
}

/// The bounded queue between the request path and the exporter of spans.
pub(crate) type SpanQueue = Queue<SpanBatch>;

impl SpanQueue {
    /// Appends a span; a span that does not fit is dropped and counted.
    pub(crate) fn push(&self, span: &FinishedSpan<'_>) {
        self.push_with(Some((span.context.trace_id, span.start)), |batch| batch.push(span));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::ids;
    use crate::telemetry::queue::{Counts, ExportFate, Latest, TEXT_OF_AN_ITEM};
    use crate::trace_context::Sampling;
    use opentelemetry::trace::SpanId;

    fn context(sampling: Sampling) -> Context {
        let trace_id = ids::trace_id();
        Context { trace_id, short_trace_id: false, random: false, span_id: SpanId::from(1), parent_id: None, sampling }
    }

    fn finished<'a>(context: &'a Context, path: &'a str) -> FinishedSpan<'a> {
        let client = Some([127, 0, 0, 1].into());
        FinishedSpan { status: 503, path, client, server: Some(("localhost", 8080)), ..FinishedSpan::for_tests(context) }
    }

    #[test]
    fn a_full_queue_drops_and_counts_new_spans() {
        let queue = SpanQueue::new(2);
        let context = context(Sampling::Sample);
        for path in ["/a", "/b", "/c"] {
            queue.push(&finished(&context, path));
        }
        let last = Some((context.trace_id, SystemTime::UNIX_EPOCH));
        let latest = Latest { recorded: last, queue_full: last, ..Latest::default() };
        let counts = Counts { recorded: 3, queued: 2, queue_full: 1, latest, ..Counts::default() };
        assert_eq!(queue.counts(), counts);
        let batches = queue.take(true);
        let paths: Vec<_> = batches.iter().flat_map(|batch| batch.spans.iter().map(|span| batch.text(span.path))).collect();
        assert_eq!(paths, ["/a", "/b"]);
        assert_eq!(queue.counts(), counts, "what was taken is queued until it is settled");
        queue.settle(1, ExportFate::Exported, batches[1].counted(0));
        queue.settle(1, ExportFate::Rejected, None);
        let latest = Latest { exported: last, ..latest };
        assert_eq!(queue.counts(), Counts { queued: 0, exported: 1, rejected: 1, latest, ..counts });
    }

    #[test]
    fn what_is_full_is_taken_in_batches_of_one_request_and_the_rest_with_all() {
        let queue = SpanQueue::new(4 * BATCH_ITEMS);
        let context = context(Sampling::Sample);
        let push = |spans| (0..spans).for_each(|_| queue.push(&finished(&context, "/a")));
        let taken = |all| queue.take(all).iter().map(Batch::len).collect::<Vec<_>>();
        push(BATCH_ITEMS - 1);
        assert_eq!((taken(false), taken(true), taken(true)), (vec![], vec![BATCH_ITEMS - 1], vec![]));
        push(2 * BATCH_ITEMS + 3);
        assert_eq!((taken(false), taken(true)), (vec![BATCH_ITEMS; 2], vec![3]));
        // What was taken leaves its place to others.
        push(4 * BATCH_ITEMS + 1);
        assert_eq!((taken(true), queue.counts().queue_full), (vec![BATCH_ITEMS; 4], 1));
    }

    #[test]
    fn long_paths_fill_the_queue_before_it_has_its_number_of_spans() {
        let queue = SpanQueue::new(1000);
        let context = context(Sampling::Sample);
        let long = "x".repeat(SpanBatch::MAX_TEXT);
        for _ in 0..1000 {
            queue.push(&finished(&context, &long));
        }
        let mut batches = queue.take(true);
        let (spans, text) = batches.iter().fold((0, 0), |(spans, text), batch| (spans + batch.len(), text + batch.text_len()));
        assert_eq!(spans as u64 + queue.counts().queue_full, 1000);
        assert!((100..300).contains(&spans), "{spans}");
        assert!(text < 1000 * TEXT_OF_AN_ITEM + 4 * SpanBatch::MAX_TEXT, "{text}");
        assert!(batches.len() == 2 || batches.len() == 3, "{}", batches.len());
        let batch = &mut batches[0];
        batch.text.0.reserve(4 << 20);
        batch.clear();
        assert!(batch.text.0.capacity() < 1 << 20, "{}", batch.text.0.capacity());
    }

    #[test]
    fn attributes_have_their_standard_names_and_long_strings_are_truncated() {
        let queue = SpanQueue::new(2);
        let long = format!("/{}", "ü".repeat(2000));
        queue.push(&finished(&context(Sampling::Debug), &long));
        let batch = queue.take(true).pop().unwrap();
        let mut visited = Vec::new();
        batch.attributes(&batch.spans[0], |name, value| visited.push((name, value)));
        assert!(visited.contains(&("http.response.status_code", AttributeValue::Int(503))), "{visited:?}");
        assert!(visited.contains(&("client.address", AttributeValue::Address([127, 0, 0, 1].into()))), "{visited:?}");
        assert_eq!(batch.text(batch.spans[0].path).len(), 1023);
        assert_eq!(batch.error_type(&batch.spans[0]), Some(ErrorType::Status(503)));
    }
}
