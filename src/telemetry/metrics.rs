//! Every Prometheus family of a hop, and `/metrics` in its two forms: text 0.0.4 and OpenMetrics with exemplars.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use http::{Method, Version};
use prometheus::proto::MetricFamily;
use prometheus::{Encoder as _, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::system::held::{HeldBudgets, HeldKind};
use crate::telemetry::duration_histogram::DurationHistogram;
use crate::telemetry::line_writer::LineWriter;
use crate::telemetry::log_queue::LogQueue;
use crate::telemetry::openmetrics;
use crate::telemetry::queue::{Counts, Latest, Queue};
use crate::telemetry::span_queue::SpanQueue;
use crate::trace_context::Context;

/// The families of one hop, in a registry of its own.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    server_duration: DurationHistogram,
    client_duration: DurationHistogram,
    rpc_server_duration: DurationHistogram,
    rpc_client_duration: DurationHistogram,
    active_requests: IntGaugeVec,
    /// Those of `active_requests` that were used, by method and scheme: a look-up by labels would be each request's.
    active: [OnceLock<IntGauge>; METHODS.len() * 2],
    spans: ExportFamilies,
    log_records: ExportFamilies,
    data_points: ExportFamilies,
    requests_shed: IntCounterVec,
    held_bytes: IntGaugeVec,
    /// Lost access log lines.
    log_lines_dropped: IntCounter,
    /// What is counted elsewhere; unset while the hop is put together.
    sources: OnceLock<Sources>,
    /// Serialises copying of counters that are kept elsewhere into the registry.
    sync_lock: Mutex<()>,
    /// Observations and counts have the trace that they are of.
    exemplars: bool,
}

/// What is counted elsewhere, and copied into the registry for each scrape and export.
#[derive(Debug)]
pub(crate) struct Sources {
    /// One for each exporter of spans.
    pub(crate) spans: Arc<[Arc<SpanQueue>]>,
    pub(crate) log_records: Option<Arc<LogQueue>>,
    pub(crate) data_points: Option<Arc<Queue<()>>>,
    /// The access lines.
    pub(crate) lines: Option<LineWriter>,
    pub(crate) held: Arc<HeldBudgets>,
}

/// What became of the items of a signal.
#[derive(Debug)]
struct ExportFamilies {
    recorded: IntCounter,
    exported: IntCounter,
    dropped: IntCounterVec,
    queued: IntGauge,
}

impl ExportFamilies {
    /// Of `httpserver_{name}_…`, whose items are `items`.
    fn new(registry: &Registry, name: &str, items: &str) -> Self {
        let opts = |what: &str, help: String| Opts::new(format!("httpserver_{name}_{what}"), help);
        Self {
            recorded: registered(
                registry,
                IntCounter::with_opts(opts("recorded_total", format!("{items}: the sum of those exported, dropped and queued."))),
            ),
            exported: registered(
                registry,
                IntCounter::with_opts(opts("exported_total", format!("{items} that the collector accepted."))),
            ),
            dropped: registered(
                registry,
                IntCounterVec::new(
                    opts("dropped_total", format!("{items} that were lost: queue_full, rejected, unreachable or shutdown.")),
                    &["reason"],
                ),
            ),
            queued: registered(
                registry,
                IntGauge::with_opts(opts("queued", format!("{items} that wait for the collector or are on their way to it."))),
            ),
        }
    }

    fn set(&self, counts: &Counts) {
        set_counter(&self.recorded, counts.recorded);
        set_counter(&self.exported, counts.exported);
        for (reason, lost) in [
            ("queue_full", counts.queue_full),
            ("rejected", counts.rejected),
            ("unreachable", counts.unreachable),
            ("shutdown", counts.shutdown),
        ] {
            set_counter(&self.dropped.with_label_values(&[reason]), lost);
        }
        self.queued.set(i64::try_from(counts.queued).unwrap_or(i64::MAX));
    }
}

fn set_counter(counter: &IntCounter, now: u64) {
    counter.inc_by(now.saturating_sub(counter.get()));
}

/// A family that was made, in the registry.
fn registered<C: prometheus::core::Collector + Clone + 'static>(registry: &Registry, family: prometheus::Result<C>) -> C {
    let family = family.expect("the family is well formed");
    registry.register(Box::new(family.clone())).expect("every family is registered once");
    family
}

/// The labels of a request's duration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestLabels<'a> {
    /// A template.
    pub(crate) route: &'a str,
    /// Three digits; empty without an answer.
    pub(crate) status: &'a str,
    pub(crate) method: &'static str,
    pub(crate) scheme: &'static str,
    pub(crate) protocol: &'static str,
    /// `error.type`; empty when the request did not fail.
    pub(crate) error: &'a str,
}

/// The labels of a gRPC call that was answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RpcLabels {
    /// Fully qualified.
    pub(crate) method: &'static str,
    pub(crate) code: &'static str,
    /// `error.type`; empty when the call did not fail.
    pub(crate) error: &'static str,
    pub(crate) scheme: &'static str,
}

/// The labels of a call's duration; status and protocol are empty without an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallLabels<'a> {
    pub(crate) host: &'a str,
    pub(crate) port: &'a str,
    pub(crate) status: &'a str,
    pub(crate) method: &'static str,
    pub(crate) protocol: &'static str,
    /// `error.type`; empty when the call did not fail.
    pub(crate) error: &'a str,
}

/// The labels of `httpserver_build_info`.
pub(crate) struct BuildInfo<'a> {
    /// The hop's name.
    pub(crate) service: &'a str,
    /// The hop's version label.
    pub(crate) service_version: &'a str,
    /// The hop's lane label.
    pub(crate) lane: &'a str,
}

impl Metrics {
    /// Registers every family.
    pub(crate) fn new(build: &BuildInfo<'_>, exemplars: bool) -> Self {
        let registry = Registry::new();
        let (server_duration, client_duration) = durations();
        let (rpc_server_duration, rpc_client_duration) = rpc_durations();
        for histogram in [&server_duration, &client_duration, &rpc_server_duration, &rpc_client_duration] {
            registered(&registry, Ok(histogram.vec.clone()));
        }
        let active_requests = Opts::new("http_server_active_requests", "HTTP server requests in flight.");
        let active_requests = IntGaugeVec::new(active_requests, &["http_request_method", "url_scheme"]);
        let active_requests = registered(&registry, active_requests);
        let shed = Opts::new(
            "httpserver_requests_shed_total",
            "Requests that were too much: concurrency, or the bytes of upstream_answer, answer, scrape or request_body.",
        );
        let requests_shed = registered(&registry, IntCounterVec::new(shed, &["reason"]));
        for reason in ["concurrency", "upstream_answer", "answer", "scrape", "request_body"] {
            requests_shed.with_label_values(&[reason]);
        }
        let held = Opts::new(
            "httpserver_held_bytes",
            "Bytes of larger answers and bodies that are held: upstream_answer, answer, scrape or request_body.",
        );
        let held_bytes = registered(&registry, IntGaugeVec::new(held, &["kind"]));
        let lines = ("httpserver_log_lines_dropped_total", "Access log lines lost because stdout was not read.");
        let log_lines_dropped = registered(&registry, IntCounter::new(lines.0, lines.1));
        let info = Opts::new("httpserver_build_info", "Version and identity of this process; always 1.")
            .const_label("version", env!("CARGO_PKG_VERSION"))
            .const_label("revision", option_env!("REVISION").unwrap_or("unknown"))
            .const_label("service", build.service)
            .const_label("service_version", build.service_version)
            .const_label("lane", build.lane);
        registered(&registry, IntGauge::with_opts(info)).set(1);
        #[cfg(target_os = "linux")]
        registry
            .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
            .expect("every family is registered once");
        Self {
            spans: ExportFamilies::new(&registry, "spans", "Sampled spans that ended"),
            log_records: ExportFamilies::new(&registry, "log_records", "Log records for OTLP"),
            data_points: ExportFamilies::new(&registry, "data_points", "Data points of metrics for OTLP"),
            registry,
            server_duration,
            client_duration,
            rpc_server_duration,
            rpc_client_duration,
            active_requests,
            active: Default::default(),
            requests_shed,
            held_bytes,
            log_lines_dropped,
            sources: OnceLock::new(),
            sync_lock: Mutex::default(),
            exemplars,
        }
    }

    /// The requests in flight with this method and scheme.
    pub(crate) fn active_requests(&self, method: &'static str, scheme: &str) -> &IntGauge {
        let at = METHODS.iter().position(|known| *known == method).unwrap_or(0) * 2 + usize::from(scheme == "https");
        self.active[at].get_or_init(|| self.active_requests.with_label_values(&[method, scheme]))
    }

    /// Counts a request that was too much.
    pub(crate) fn request_shed(&self, reason: &str) {
        self.requests_shed.with_label_values(&[reason]).inc();
    }

    /// Sets what is counted elsewhere, once.
    pub(crate) fn set_sources(&self, sources: Sources) {
        let _ = self.sources.set(sources);
    }

    /// Counts a finished request.
    pub(crate) fn request(&self, request: &RequestLabels<'_>, duration: Duration, span: Option<&Context>) {
        let RequestLabels { route, status, method, scheme, protocol, error } = *request;
        self.server_duration
            .handle([route, status, method, scheme, protocol, error])
            .observe(duration, span.filter(|_| self.exemplars));
    }

    /// Counts a finished call.
    pub(crate) fn call(&self, call: &CallLabels<'_>, duration: Duration, span: Option<&Context>) {
        let CallLabels { host, status, port, method, protocol, error } = *call;
        self.client_duration
            .handle([host, status, port, method, protocol, error])
            .observe(duration, span.filter(|_| self.exemplars));
    }

    /// Counts a gRPC call that was answered.
    pub(crate) fn rpc_request(&self, call: &RpcLabels, duration: Duration, span: Option<&Context>) {
        let RpcLabels { method, code, error, scheme } = *call;
        self.rpc_server_duration
            .handle([method, code, error, scheme, "2", "grpc"])
            .observe(duration, span.filter(|_| self.exemplars));
    }

    /// Counts a finished gRPC call of a next hop: `method` and `status` are those of gRPC.
    pub(crate) fn rpc_call(&self, call: &CallLabels<'_>, duration: Duration, span: Option<&Context>) {
        let CallLabels { host, status, port, method, error, .. } = *call;
        self.rpc_client_duration
            .handle([host, status, port, method, error, "grpc"])
            .observe(duration, span.filter(|_| self.exemplars));
    }

    /// Every family with its values now, and the items that were counted last.
    pub(crate) fn gather(&self) -> (Vec<MetricFamily>, Latest) {
        // Two concurrent scrapes would both add the same difference.
        let _guard = self.sync_lock.lock().unwrap_or_else(PoisonError::into_inner);
        let mut spans = Counts::default();
        if let Some(sources) = self.sources.get() {
            sources.spans.iter().for_each(|queue| spans += queue.counts());
            self.log_records.set(&sources.log_records.as_ref().map(|queue| queue.counts()).unwrap_or_default());
            self.data_points.set(&sources.data_points.as_ref().map(|queue| queue.counts()).unwrap_or_default());
            set_counter(&self.log_lines_dropped, sources.lines.as_ref().map_or(0, LineWriter::dropped));
            for kind in HeldKind::ALL {
                self.held_bytes.with_label_values(&[kind.as_str()]).set(sources.held.of(kind) as i64);
            }
        }
        self.spans.set(&spans);
        (self.registry.gather(), if self.exemplars { spans.latest } else { Latest::default() })
    }

    /// The families that have exemplars.
    pub(crate) fn histograms(&self) -> [&DurationHistogram; 4] {
        [&self.server_duration, &self.client_duration, &self.rpc_server_duration, &self.rpc_client_duration]
    }

    /// Every family as text: OpenMetrics when `openmetrics`, else Prometheus text 0.0.4.
    pub(crate) fn render(&self, openmetrics: bool) -> String {
        let (families, latest) = self.gather();
        if openmetrics {
            return openmetrics::encode(&families, &self.histograms(), &latest);
        }
        let mut text = Vec::with_capacity(16 << 10);
        // Encoding into memory fails only for a family without a name or metrics, and `gather` leaves those out.
        let _ = TextEncoder::new().encode(&families, &mut text);
        String::from_utf8(text).unwrap_or_default()
    }
}

/// The durations of requests and of calls.
fn durations() -> (DurationHistogram, DurationHistogram) {
    let server = DurationHistogram::new(
        "http_server_request_duration_seconds",
        "Duration of HTTP server requests, from the end of the request head until the response was handed to the connection.",
        // Those that differ most come first, because a comparison ends at the first difference.
        &[
            "http_route",
            "http_response_status_code",
            "http_request_method",
            "url_scheme",
            "network_protocol_version",
            "error_type",
        ],
    );
    let client = DurationHistogram::new(
        "http_client_request_duration_seconds",
        "Duration of HTTP client requests to the next hops, response body included.",
        &[
            "server_address",
            "http_response_status_code",
            "server_port",
            "http_request_method",
            "network_protocol_version",
            "error_type",
        ],
    );
    (server, client)
}

/// The same of gRPC.
fn rpc_durations() -> (DurationHistogram, DurationHistogram) {
    let server = DurationHistogram::new(
        "rpc_server_call_duration_seconds",
        "Duration of gRPC calls that were answered, from the end of the request head until the answer was handed to the connection.",
        &["rpc_method", "rpc_response_status_code", "error_type", "url_scheme", "network_protocol_version", "rpc_system_name"],
    );
    let client = DurationHistogram::new(
        "rpc_client_call_duration_seconds",
        "Duration of gRPC calls to the next hops, the whole answer included.",
        &["server_address", "rpc_response_status_code", "server_port", "rpc_method", "error_type", "rpc_system_name"],
    );
    (server, client)
}

/// The route of a request that matched none, as a label; as an attribute there is none.
pub(crate) const UNMATCHED: &str = "unmatched";

/// What [`known_method`] returns.
const METHODS: [&str; 11] = ["_OTHER", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "QUERY"];

/// A method as a label or attribute: `_OTHER` unless it is a registered one.
pub(crate) fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        Method::TRACE => "TRACE",
        Method::CONNECT => "CONNECT",
        Method::QUERY => "QUERY",
        _ => "_OTHER",
    }
}

/// `url.scheme`.
pub(crate) fn scheme(is_https: bool) -> &'static str {
    if is_https { "https" } else { "http" }
}

/// `network.protocol.version`.
pub(crate) fn protocol_version(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "0.9",
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        Version::HTTP_3 => "3",
        _ => "1.1",
    }
}

/// The protocol as replies show it.
pub(crate) fn protocol_name(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "http/2",
        Version::HTTP_10 => "http/1.0",
        _ => "http/1.1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::TraceId;

    fn context(trace_id: TraceId) -> Context {
        Context {
            trace_id,
            short_trace_id: false,
            random: false,
            span_id: opentelemetry::trace::SpanId::from(1),
            parent_id: None,
            sampling: crate::trace_context::Sampling::Sample,
        }
    }

    fn metrics() -> Metrics {
        Metrics::new(&BuildInfo { service: "a\"b\nc", service_version: "v1", lane: "base" }, true)
    }

    #[test]
    fn openmetrics_has_exemplars_and_ends_with_eof() {
        let metrics = metrics();
        let span = context(TraceId::from(0xabc_u128));
        let hello = RequestLabels { route: "/hello", status: "200", method: "GET", scheme: "http", protocol: "1.1", error: "" };
        metrics.request(&hello, Duration::from_micros(800), Some(&span));
        metrics.request(&hello, Duration::from_secs(20), Some(&span));
        let brew = known_method(&Method::from_bytes(b"BREW").unwrap());
        metrics.request(&RequestLabels { route: "unmatched", status: "404", method: brew, ..hello }, Duration::ZERO, None);
        let text = metrics.render(true);
        let bucket = "http_server_request_duration_seconds_bucket{error_type=\"\",http_request_method=\"GET\",http_response_status_code=\"200\",http_route=\"/hello\",network_protocol_version=\"1.1\",url_scheme=\"http\",le=\"0.001\"} 1 # {trace_id=\"00000000000000000000000000000abc\",span_id=\"0000000000000001\"} 0.0008 ";
        assert!(text.contains(bucket), "{text}");
        assert!(text.contains("le=\"+Inf\"} 2 # {trace_id="), "{text}");
        assert!(text.contains("http_request_method=\"_OTHER\""), "{text}");
        assert!(text.contains("# TYPE httpserver_spans_exported counter"), "{text}");
        assert!(text.contains("httpserver_spans_exported_total 0"), "{text}");
        assert!(text.contains("service=\"a\\\"b\\nc\""), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn the_plain_text_has_no_exemplar_and_counts_losses() {
        let metrics = metrics();
        let text = metrics.render(false);
        for reason in ["queue_full", "rejected", "unreachable", "shutdown"] {
            assert!(text.contains(&format!("httpserver_spans_dropped_total{{reason=\"{reason}\"}} 0\n")), "{text}");
        }
        assert!(text.contains("httpserver_log_lines_dropped_total 0"), "{text}");
        assert!(text.contains("process_resident_memory_bytes"), "{text}");
        assert!(!text.contains("# EOF"), "{text}");
    }

    #[test]
    fn concurrent_scrapes_add_external_losses_once() {
        let (metrics, queue) = (metrics(), Arc::new(SpanQueue::new(0)));
        metrics.set_sources(Sources {
            spans: Arc::new([queue.clone()]),
            log_records: None,
            data_points: None,
            lines: None,
            held: HeldBudgets::new([0; HeldKind::ALL.len()]),
        });
        let context = context(TraceId::from(1));
        let span = crate::telemetry::span_queue::FinishedSpan::for_tests(&context);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        queue.push(&span);
                        metrics.render(false);
                    }
                });
            }
        });
        let text = metrics.render(false);
        assert!(text.contains("httpserver_spans_dropped_total{reason=\"queue_full\"} 200\n"), "{text}");
    }
}
