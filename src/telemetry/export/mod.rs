//! The pipeline from the span queue to a collector: Zipkin v2 JSON, OTLP over HTTP, or the console.
//!
//! One task takes what is queued, sends it in chunks and retries with backoff while the collector is away. The queue is
//! bounded, so a collector that stays away costs spans, which are counted, and never a request.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{SpanContext, SpanId, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Compression, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::server::tls;
use crate::telemetry::ids;
use crate::telemetry::line_writer::{LineWriter, push_address, push_number};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::tracer::{Batch, Span, SpanKind, SpanQueue, Value, chunks};
use crate::text::hex::push_hex;
use crate::text::json::{push_escaped, push_text};
use crate::trace_context::Sampling;

/// How many spans go out in one request.
const CHUNK: usize = 512;
/// How long one request to the collector may take, unless OTLP's own variable says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How much of a collector's answer is read.
const MAX_ANSWER: usize = 64 << 10;
/// The first pause before a retry; each further one is twice as long, up to [`MAX_BACKOFF`], with a fifth of jitter.
const MIN_BACKOFF: Duration = Duration::from_millis(250);
const MAX_BACKOFF: Duration = Duration::from_secs(8);
/// After so many attempts (about a minute) a chunk is given up, so that younger spans get their turn.
const MAX_ATTEMPTS: u32 = 10;

/// Where spans go. A new exporter is a variant here, one in `Sink` and its encoder.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Exporter {
    /// Nowhere: the hop makes no spans and passes trace headers on untouched.
    #[default]
    None,
    /// Zipkin v2 JSON to this URL.
    Zipkin {
        /// The whole URL, path included.
        endpoint: String,
    },
    /// OTLP over HTTP, protobuf.
    Otlp(OtlpOptions),
    /// A line per span on stderr.
    Console,
}

/// How to reach an OTLP collector.
#[derive(Debug, Clone, PartialEq)]
pub struct OtlpOptions {
    /// The whole URL, path included (`…/v1/traces`).
    pub endpoint: String,
    /// Extra headers of each export.
    pub headers: Vec<(String, String)>,
    /// How long one export may take, retries included.
    pub timeout: Duration,
    /// Compress with gzip.
    pub gzip: bool,
}

/// Who the spans are from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ResourceOptions {
    /// `service.name`.
    pub service_name: String,
    /// Further attributes (`service.version`, `lane`, and those of `OTEL_RESOURCE_ATTRIBUTES`).
    pub attributes: Vec<(String, String)>,
}

/// Where a batch is sent.
#[derive(Debug)]
enum Sink {
    Zipkin { client: reqwest::Client, endpoint: String, resource: ZipkinResource },
    Otlp(Box<opentelemetry_otlp::SpanExporter>),
    Console { out: LineWriter, service: String },
}

/// Why a chunk was not taken.
struct Failure {
    /// Trying again may help.
    retry: bool,
    reason: String,
}

/// The running exporter.
#[derive(Debug)]
pub(crate) struct Pipeline {
    queue: Arc<SpanQueue>,
    /// Taken from the queue and neither delivered nor given up.
    in_hand: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Pipeline {
    /// Starts the task that exports what comes into `queue`. `None` when the exporter is [`Exporter::None`].
    /// Errors: an endpoint or header that cannot be used, in words.
    pub(crate) fn start(
        exporter: Exporter,
        resource: ResourceOptions,
        queue: Arc<SpanQueue>,
        schedule_delay: Duration,
        metrics: Arc<Metrics>,
        console: &LineWriter,
    ) -> Result<Option<Self>, String> {
        let sink = match exporter {
            Exporter::None => return Ok(None),
            Exporter::Console => Sink::Console { out: console.clone(), service: resource.service_name },
            Exporter::Zipkin { endpoint } => {
                Sink::Zipkin { client: http_client(TIMEOUT)?, endpoint, resource: ZipkinResource::new(&resource) }
            }
            Exporter::Otlp(options) => Sink::Otlp(Box::new(otlp_exporter(options, resource)?)),
        };
        let (stop, stopped) = watch::channel(false);
        let in_hand = Arc::new(AtomicUsize::new(0));
        let task = Task { sink, queue: queue.clone(), in_hand: in_hand.clone(), metrics: metrics.clone(), stopped };
        let task = tokio::spawn(task.run(schedule_delay));
        Ok(Some(Self { queue, in_hand, metrics, stop, task }))
    }

    /// Sends what is queued, at most until `timeout`; returns how many spans were left behind.
    pub(crate) async fn finish(mut self, timeout: Duration) -> usize {
        let _ = self.stop.send(true);
        if tokio::time::timeout(timeout, &mut self.task).await.is_err() {
            self.task.abort();
        }
        let left = self.in_hand.load(Ordering::Relaxed) + self.queue.len();
        self.metrics.spans_dropped("shutdown", left);
        left
    }
}

struct Task {
    sink: Sink,
    queue: Arc<SpanQueue>,
    in_hand: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
    stopped: watch::Receiver<bool>,
}

impl Task {
    async fn run(mut self, schedule_delay: Duration) {
        let mut spare = Batch::default();
        loop {
            tokio::select! {
                () = tokio::time::sleep(schedule_delay) => {}
                () = self.queue.half_full() => {}
                _ = self.stopped.wait_for(|stopped| *stopped) => {}
            }
            // Read before the queue is emptied: what comes after the stop is not waited for.
            let stopping = *self.stopped.borrow();
            let mut batch = self.queue.take(spare);
            self.in_hand.store(batch.spans.len(), Ordering::Relaxed);
            for range in chunks(&batch, CHUNK) {
                let spans = range.len();
                match self.deliver(&batch, range).await {
                    Ok(()) => self.metrics.spans_exported.inc_by(spans as u64),
                    Err(reason) => self.metrics.spans_dropped(reason, spans),
                }
                self.in_hand.fetch_sub(spans, Ordering::Relaxed);
            }
            batch.clear();
            spare = batch;
            if stopping {
                return;
            }
        }
    }

    /// Sends one chunk, again while that may help. Errors: the `reason` label under which it was given up.
    async fn deliver(&mut self, batch: &Batch, range: std::ops::Range<usize>) -> Result<(), &'static str> {
        let mut backoff = MIN_BACKOFF;
        for attempt in 1..=MAX_ATTEMPTS {
            let Err(failure) = self.sink.send(batch, &batch.spans[range.clone()]).await else {
                if attempt > 1 {
                    tracing::info!(attempt, "the span collector takes spans again");
                }
                return Ok(());
            };
            if !failure.retry {
                tracing::warn!(
                    spans = range.len(),
                    reason = failure.reason,
                    "the span collector refused spans; they are dropped"
                );
                return Err("rejected");
            }
            if attempt == 1 {
                tracing::warn!(reason = failure.reason, "the span collector does not take spans; trying again");
            }
            let pause = backoff.mul_f64(0.8 + 0.4 * ids::unit());
            // A stop ends the pause, not the attempts: the flush has a deadline of its own.
            let stopping = *self.stopped.borrow();
            tokio::select! {
                () = tokio::time::sleep(if stopping { MIN_BACKOFF.min(pause) } else { pause }) => {}
                _ = self.stopped.wait_for(|stopped| *stopped), if !stopping => {}
            }
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
        tracing::warn!(spans = range.len(), attempts = MAX_ATTEMPTS, "the span collector stays away; spans are dropped");
        Err("unreachable")
    }
}

/// The client for everything off the request path. A proxy from the environment is not used: collectors are inside.
fn http_client(timeout: Duration) -> Result<reqwest::Client, String> {
    reqwest::Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(tls::client_config())
        .pool_max_idle_per_host(1)
        .timeout(timeout)
        .build()
        .map_err(|error| format!("no HTTP client for spans: {error}"))
}

fn otlp_exporter(options: OtlpOptions, resource: ResourceOptions) -> Result<opentelemetry_otlp::SpanExporter, String> {
    let mut builder = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(http_client(options.timeout)?)
        .with_endpoint(options.endpoint)
        .with_timeout(options.timeout)
        .with_headers(options.headers.into_iter().collect::<HashMap<_, _>>());
    if options.gzip {
        builder = builder.with_compression(Compression::Gzip);
    }
    let mut exporter = builder.build().map_err(|error| format!("no OTLP exporter: {error}"))?;
    let attributes = resource.attributes.into_iter().map(|(key, value)| KeyValue::new(key, value));
    exporter
        .set_resource(&Resource::builder_empty().with_service_name(resource.service_name).with_attributes(attributes).build());
    Ok(exporter)
}

impl Sink {
    async fn send(&self, batch: &Batch, spans: &[Span]) -> Result<(), Failure> {
        match self {
            Self::Console { out, service } => {
                for span in spans {
                    out.line(|line| console_line(line, service, batch, span));
                }
                Ok(())
            }
            Self::Otlp(exporter) => {
                let spans = spans.iter().map(|span| otlp_span(batch, span)).collect();
                exporter.export(spans).await.map_err(|error| {
                    let reason = error.to_string();
                    // The library has retried what its protocol calls retryable, and tells only in words what was wrong.
                    // Without a status nobody answered, and trying again may help.
                    let status = reason.rsplit_once("status code: ").and_then(|(_, code)| code.trim().parse().ok());
                    Failure { retry: status.is_none_or(may_change), reason }
                })
            }
            Self::Zipkin { client, endpoint, resource } => {
                let body = zipkin_json(resource, batch, spans);
                let request = client.post(endpoint).header(http::header::CONTENT_TYPE, "application/json").body(body);
                let answer =
                    request.send().await.map_err(|error| Failure { retry: true, reason: crate::text::causes(&error) })?;
                let status = answer.status();
                thrown_away(answer).await;
                if status.is_success() {
                    return Ok(());
                }
                Err(Failure { retry: may_change(status.as_u16()), reason: format!("{endpoint} answered {status}") })
            }
        }
    }
}

/// Reads what follows an answer's head and keeps nothing of it. Reading it to its end gives the connection back to the pool;
/// one that goes on and on is closed (the OTLP library has the same limit of its own).
async fn thrown_away(mut answer: reqwest::Response) {
    let mut length = 0;
    while let Ok(Some(piece)) = answer.chunk().await {
        length += piece.len();
        if length > MAX_ANSWER {
            return;
        }
    }
}

/// Whether the same spans may be taken later by a collector that answered with `status` now.
fn may_change(status: u16) -> bool {
    status >= 500 || matches!(status, 408 | 429)
}

fn otlp_span(batch: &Batch, span: &Span) -> SpanData {
    let context = &span.context;
    let mut attributes = Vec::with_capacity(9);
    batch.attributes(span, |name, value| {
        attributes.push(match value {
            Value::Text(text) => KeyValue::new(name, text.to_owned()),
            Value::Int(number) => KeyValue::new(name, i64::from(number)),
            Value::Address(address) => KeyValue::new(name, address.to_string()),
        });
    });
    let failure = batch.failure(span);
    if let Some(failure) = failure {
        attributes.push(KeyValue::new(opentelemetry_semantic_conventions::attribute::ERROR_TYPE, failure.to_string()));
    }
    let (method, route) = batch.name(span);
    SpanData {
        span_context: SpanContext::new(context.trace_id, context.span_id, TraceFlags::SAMPLED, false, TraceState::NONE),
        parent_span_id: context.parent_id.unwrap_or(SpanId::INVALID),
        parent_span_is_remote: span.kind == SpanKind::Server,
        span_kind: match span.kind {
            SpanKind::Server => opentelemetry::trace::SpanKind::Server,
            SpanKind::Client => opentelemetry::trace::SpanKind::Client,
        },
        name: if route.is_empty() { method.into() } else { format!("{method} {route}").into() },
        start_time: span.start,
        end_time: span.start + span.duration,
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: if failure.is_some() { Status::error("") } else { Status::Unset },
        instrumentation_scope: InstrumentationScope::builder("httpserver").with_version(env!("CARGO_PKG_VERSION")).build(),
    }
}

/// What all spans of a hop say in Zipkin's JSON, written once.
#[derive(Debug)]
struct ZipkinResource {
    /// The member `localEndpoint`, with the comma before it.
    local_endpoint: Vec<u8>,
    /// The first members of `tags`, without a comma behind them.
    tags: Vec<u8>,
}

impl ZipkinResource {
    fn new(resource: &ResourceOptions) -> Self {
        let mut local_endpoint = b",\"localEndpoint\":{\"serviceName\":".to_vec();
        push_text(&mut local_endpoint, resource.service_name.as_bytes());
        local_endpoint.push(b'}');
        let mut tags = Vec::new();
        for (name, value) in &resource.attributes {
            if !tags.is_empty() {
                tags.push(b',');
            }
            push_text(&mut tags, name.as_bytes());
            tags.push(b':');
            push_text(&mut tags, value.as_bytes());
        }
        Self { local_endpoint, tags }
    }
}

/// Zipkin v2 JSON. Ours because `opentelemetry-zipkin` sends `"localEndpoint":{}`: no service name
/// (`tests/zipkin_crate.rs` tells when that is mended).
fn zipkin_json(resource: &ZipkinResource, batch: &Batch, spans: &[Span]) -> Vec<u8> {
    let mut out = Vec::with_capacity(spans.len() * 640);
    for (i, span) in spans.iter().enumerate() {
        let context = &span.context;
        out.extend_from_slice(if i == 0 { b"[{\"traceId\":\"" } else { b",{\"traceId\":\"" });
        let trace_id = context.trace_id.to_bytes();
        push_hex(&mut out, if context.short_trace_id { &trace_id[8..] } else { &trace_id });
        out.extend_from_slice(b"\",\"id\":\"");
        push_hex(&mut out, &context.span_id.to_bytes());
        if let Some(parent) = context.parent_id {
            out.extend_from_slice(b"\",\"parentId\":\"");
            push_hex(&mut out, &parent.to_bytes());
        }
        let kind = match span.kind {
            SpanKind::Server => "SERVER",
            SpanKind::Client => "CLIENT",
        };
        let (method, route) = batch.name(span);
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let since = span.start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        for piece in ["\",\"kind\":\"", kind, "\",\"name\":\"", method, if route.is_empty() { "" } else { " " }, route] {
            out.extend_from_slice(piece.as_bytes());
        }
        out.extend_from_slice(b"\",\"timestamp\":");
        push_number(&mut out, micros(since));
        out.extend_from_slice(b",\"duration\":");
        push_number(&mut out, micros(span.duration).max(1));
        out.extend_from_slice(&resource.local_endpoint);
        if context.sampling == Sampling::Debug {
            out.extend_from_slice(b",\"debug\":true");
        }
        out.extend_from_slice(b",\"tags\":{");
        out.extend_from_slice(&resource.tags);
        let mut first = resource.tags.is_empty();
        // The names are ours: they need no escaping.
        let mut tag = |name: &str, value: Value<'_>| {
            out.extend_from_slice(if first { b"\"" } else { b",\"" });
            first = false;
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":\"");
            match value {
                Value::Text(text) => push_escaped(&mut out, text.as_bytes()),
                Value::Int(number) => push_number(&mut out, number.into()),
                Value::Address(address) => push_address(&mut out, address),
            }
            out.push(b'"');
        };
        batch.attributes(span, &mut tag);
        if let Some(failure) = batch.failure(span) {
            let failure = failure.to_string();
            tag(opentelemetry_semantic_conventions::attribute::ERROR_TYPE, Value::Text(&failure));
            // Zipkin colours a span by this tag.
            tag("error", Value::Text(&failure));
        }
        out.extend_from_slice(b"}}");
    }
    out.extend_from_slice(if spans.is_empty() { b"[]" } else { b"]" });
    out
}

fn console_line(line: &mut Vec<u8>, service: &str, batch: &Batch, span: &Span) {
    line.extend_from_slice(b"span trace=");
    push_hex(line, &span.context.trace_id.to_bytes());
    line.extend_from_slice(b" id=");
    push_hex(line, &span.context.span_id.to_bytes());
    if let Some(parent) = span.context.parent_id {
        line.extend_from_slice(b" parent=");
        push_hex(line, &parent.to_bytes());
    }
    let kind = match span.kind {
        SpanKind::Server => "server",
        SpanKind::Client => "client",
    };
    let (method, route) = batch.name(span);
    let space = if route.is_empty() { "" } else { " " };
    let micros = span.duration.as_micros();
    let _ = write!(line, " {kind} {service} \"{method}{space}{route}\" {}.{:03}ms", micros / 1000, micros % 1000);
    batch.attributes(span, |name, value| match value {
        Value::Text(text) => {
            let _ = write!(line, " {name}=");
            push_escaped(line, text.as_bytes());
        }
        Value::Int(number) => {
            let _ = write!(line, " {name}={number}");
        }
        Value::Address(address) => {
            let _ = write!(line, " {name}={address}");
        }
    });
    if let Some(failure) = batch.failure(span) {
        let _ = write!(line, " error.type={failure}");
    }
    line.push(b'\n');
}
