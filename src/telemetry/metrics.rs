//! Every Prometheus family of a hop, and `/metrics` in its two forms: text 0.0.4 and OpenMetrics with exemplars.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Method, Version};
use opentelemetry::trace::TraceId;
use prometheus::{Encoder as _, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::telemetry::duration_histogram::{DurationHistogram, HistogramHandle};
use crate::telemetry::line_writer::LineWriter;
use crate::telemetry::openmetrics;
use crate::telemetry::span_queue::{SpanCounts, SpanQueue};

/// The families of one hop, in a registry of its own.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    server_duration: DurationHistogram,
    client_duration: DurationHistogram,
    /// Requests in flight.
    pub(crate) active_requests: IntGauge,
    spans_recorded: IntCounter,
    spans_exported: IntCounter,
    spans_dropped: IntCounterVec,
    spans_queued: IntGauge,
    requests_shed: IntCounterVec,
    held_bytes: IntGaugeVec,
    /// Lost access log lines.
    log_lines_dropped: IntCounter,
    /// Serialises copying of counters that are kept elsewhere into the registry.
    sync_lock: Mutex<()>,
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
    pub(crate) fn new(build: &BuildInfo<'_>) -> Self {
        let registry = Registry::new();
        let register = |collector: Box<dyn prometheus::core::Collector>| {
            registry.register(collector).expect("every family is registered once");
        };
        let server_duration = DurationHistogram::new(
            "http_server_request_duration_seconds",
            "Duration of HTTP server requests, from the end of the request head until the response was handed to the connection.",
            &["http_request_method", "http_route", "http_response_status_code"],
        );
        register(Box::new(server_duration.vec.clone()));
        let client_duration = DurationHistogram::new(
            "http_client_request_duration_seconds",
            "Duration of HTTP client requests to the next hops, response body included.",
            &["http_request_method", "server_address", "http_response_status_code"],
        );
        register(Box::new(client_duration.vec.clone()));
        let gauge = |name, help| {
            let gauge = IntGauge::new(name, help).expect("the family is well formed");
            register(Box::new(gauge.clone()));
            gauge
        };
        let counter = |name, help| {
            let counter = IntCounter::new(name, help).expect("the family is well formed");
            register(Box::new(counter.clone()));
            counter
        };
        let active_requests = gauge("http_server_active_requests", "HTTP server requests in flight.");
        let spans_recorded = counter(
            "httpserver_spans_recorded_total",
            "Sampled spans that ended: the sum of those exported, dropped and queued.",
        );
        let spans_queued = gauge("httpserver_spans_queued", "Spans that wait for the collector or are on their way to it.");
        let spans_exported = counter("httpserver_spans_exported_total", "Spans accepted by the collector.");
        let by_reason = |name, help| {
            let family = IntCounterVec::new(Opts::new(name, help), &["reason"]).expect("the family is well formed");
            register(Box::new(family.clone()));
            family
        };
        let spans_dropped =
            by_reason("httpserver_spans_dropped_total", "Spans lost: queue_full, rejected, unreachable or shutdown.");
        let requests_shed = by_reason(
            "httpserver_requests_shed_total",
            "Requests that were too much: concurrency, or the bytes of upstream_answer, answer or scrape.",
        );
        for reason in ["concurrency", "upstream_answer", "answer", "scrape"] {
            requests_shed.with_label_values(&[reason]);
        }
        let held =
            Opts::new("httpserver_held_bytes", "Bytes of larger answers that are held: upstream_answer, answer or scrape.");
        let held_bytes = IntGaugeVec::new(held, &["kind"]).expect("the family is well formed");
        register(Box::new(held_bytes.clone()));
        let log_lines_dropped =
            counter("httpserver_log_lines_dropped_total", "Access log lines lost because stdout was not read.");
        let info = Opts::new("httpserver_build_info", "Version and identity of this process; always 1.")
            .const_label("version", env!("CARGO_PKG_VERSION"))
            .const_label("revision", option_env!("REVISION").unwrap_or("unknown"))
            .const_label("service", build.service)
            .const_label("service_version", build.service_version)
            .const_label("lane", build.lane);
        let info = IntGauge::with_opts(info).expect("the family is well formed");
        info.set(1);
        register(Box::new(info));
        #[cfg(target_os = "linux")]
        register(Box::new(prometheus::process_collector::ProcessCollector::for_self()));
        Self {
            registry,
            server_duration,
            client_duration,
            active_requests,
            spans_recorded,
            spans_exported,
            spans_dropped,
            spans_queued,
            requests_shed,
            held_bytes,
            log_lines_dropped,
            sync_lock: Mutex::default(),
        }
    }

    /// Counts a finished request; `route` is a template, `status` the three digits.
    pub(crate) fn request(&self, method: &Method, route: &str, status: &str, duration: Duration, trace: Option<TraceId>) {
        self.server_duration.handle([known_method(method), route, status]).observe(duration, trace);
    }

    /// Counts a request that was too much.
    pub(crate) fn request_shed(&self, reason: &str) {
        self.requests_shed.with_label_values(&[reason]).inc();
    }

    /// Sets how many bytes of a kind are held.
    pub(crate) fn set_held_bytes(&self, kind: &str, bytes: usize) {
        self.held_bytes.with_label_values(&[kind]).set(bytes as i64);
    }

    /// The histogram of calls to `server_address` with this status; an empty status when there was no answer.
    pub(crate) fn call(&self, server_address: &str, status: &str) -> Arc<HistogramHandle> {
        self.client_duration.handle(["GET", server_address, status])
    }

    /// Every family as text: OpenMetrics when `openmetrics`, else Prometheus text 0.0.4. The counters of `queues` and `log`
    /// are copied first.
    pub(crate) fn render(&self, openmetrics: bool, queues: &[Arc<SpanQueue>], log: Option<&LineWriter>) -> String {
        let families = {
            // Two concurrent scrapes would both add the same difference.
            let _guard = self.sync_lock.lock().unwrap_or_else(PoisonError::into_inner);
            let sync = |counter: &IntCounter, now: u64| counter.inc_by(now.saturating_sub(counter.get()));
            let mut spans = SpanCounts::default();
            queues.iter().for_each(|queue| spans += queue.counts());
            sync(&self.spans_recorded, spans.recorded);
            sync(&self.spans_exported, spans.exported);
            for (reason, lost) in [
                ("queue_full", spans.queue_full),
                ("rejected", spans.rejected),
                ("unreachable", spans.unreachable),
                ("shutdown", spans.shutdown),
            ] {
                sync(&self.spans_dropped.with_label_values(&[reason]), lost);
            }
            self.spans_queued.set(i64::try_from(spans.queued).unwrap_or(i64::MAX));
            sync(&self.log_lines_dropped, log.map_or(0, LineWriter::dropped));
            self.registry.gather()
        };
        if openmetrics {
            return openmetrics::encode(&families, &[&self.server_duration, &self.client_duration]);
        }
        let mut text = Vec::with_capacity(16 << 10);
        // Encoding into memory fails only for a family without a name or metrics, and `gather` leaves those out.
        let _ = TextEncoder::new().encode(&families, &mut text);
        String::from_utf8(text).unwrap_or_default()
    }
}

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
        _ => "_OTHER",
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        Metrics::new(&BuildInfo { service: "a\"b\nc", service_version: "v1", lane: "base" })
    }

    #[test]
    fn openmetrics_has_exemplars_and_ends_with_eof() {
        let metrics = metrics();
        let trace = TraceId::from(0xabc_u128);
        metrics.request(&Method::GET, "/hello", "200", Duration::from_micros(800), Some(trace));
        metrics.request(&Method::GET, "/hello", "200", Duration::from_secs(20), Some(trace));
        metrics.request(&Method::from_bytes(b"BREW").unwrap(), "unmatched", "404", Duration::ZERO, None);
        let text = metrics.render(true, &[], None);
        let bucket = "http_server_request_duration_seconds_bucket{http_request_method=\"GET\",http_response_status_code=\"200\",http_route=\"/hello\",le=\"0.001\"} 1 # {trace_id=\"00000000000000000000000000000abc\"} 0.0008 ";
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
        let text = metrics.render(false, &[], None);
        for reason in ["queue_full", "rejected", "unreachable", "shutdown"] {
            assert!(text.contains(&format!("httpserver_spans_dropped_total{{reason=\"{reason}\"}} 0\n")), "{text}");
        }
        assert!(text.contains("httpserver_log_lines_dropped_total 0"), "{text}");
        assert!(text.contains("process_resident_memory_bytes"), "{text}");
        assert!(!text.contains("# EOF"), "{text}");
    }

    #[test]
    fn concurrent_scrapes_add_external_losses_once() {
        let (metrics, queue) = (metrics(), [Arc::new(SpanQueue::new(0))]);
        let context = crate::trace_context::Context {
            trace_id: TraceId::from(1),
            short_trace_id: false,
            random: false,
            span_id: opentelemetry::trace::SpanId::from(1),
            parent_id: None,
            sampling: crate::trace_context::Sampling::Sample,
        };
        let span = crate::telemetry::span_queue::FinishedSpan::for_tests(&context);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        queue[0].push(&span);
                        metrics.render(false, &queue, None);
                    }
                });
            }
        });
        let text = metrics.render(true, &queue, None);
        assert!(text.contains("httpserver_spans_dropped_total{reason=\"queue_full\"} 200\n"), "{text}");
    }
}
