//! Every Prometheus family of a hop, and `/metrics` in its two forms: text 0.0.4 and OpenMetrics with exemplars.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Method;
use opentelemetry::trace::TraceId;
use prometheus::proto::{Metric, MetricFamily, MetricType};
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

use crate::telemetry::line_writer::LineWriter;
use crate::telemetry::tracer::SpanQueue;

/// Upper bounds in seconds: from a hop that only answers to a chain with two seconds of latency each.
const BUCKETS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// How old an exemplar may get before the next request replaces it: one a second is enough to click on.
const EXEMPLAR_AGE_MS: u64 = 1000;

/// Statuses with a place of their own in the table of resolved handles; others are looked up by label.
const COMMON_STATUSES: [u16; 14] = [200, 404, 405, 408, 413, 431, 499, 500, 501, 502, 503, 504, 508, 400];

/// The families of one hop, in a registry of its own.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// How long requests took, in seconds, from the head's last byte to the answer's end.
    server_duration: Durations,
    /// How long calls to the next hops took, in seconds, whole answer included.
    client_duration: Durations,
    /// How many requests are in flight.
    pub(crate) active_requests: IntGauge,
    /// How many spans the collector took.
    pub(crate) spans_exported: IntCounter,
    /// How many spans were lost, by reason.
    spans_dropped: IntCounterVec,
    /// How many access log lines were lost because nobody read them.
    log_lines_dropped: IntCounter,
    /// Held while losses that are counted elsewhere are brought up to date.
    catching_up: Mutex<()>,
    /// Resolved handles of the server's histogram, by route, method (GET, HEAD) and common status.
    resolved: Vec<OnceLock<Arc<Timed>>>,
}

/// What identifies a hop in its metrics.
pub(crate) struct Build<'a> {
    /// The hop's name.
    pub(crate) service: &'a str,
    /// The hop's version label.
    pub(crate) service_version: &'a str,
    /// The hop's lane label.
    pub(crate) lane: &'a str,
}

impl Metrics {
    /// Registers every family. `routes` is how many route templates there are.
    pub(crate) fn new(build: &Build<'_>, routes: usize) -> Self {
        let registry = Registry::new();
        let server_duration = Durations::new(
            "http_server_request_duration_seconds",
            "How long requests took, from the head's last byte to the answer's end.",
            &["http_request_method", "http_route", "http_response_status_code"],
        );
        let client_duration = Durations::new(
            "http_client_request_duration_seconds",
            "How long calls to the next hops took, whole answer included.",
            &["http_request_method", "server_address", "http_response_status_code"],
        );
        let active_requests = gauge("http_server_active_requests", "How many requests are in flight.");
        let spans_exported = counter("httpserver_spans_exported_total", "How many spans the collector took.");
        let spans_dropped = IntCounterVec::new(
            Opts::new(
                "httpserver_spans_dropped_total",
                "How many spans were lost: queue_full, rejected, unreachable or shutdown.",
            ),
            &["reason"],
        )
        .expect("the family is well formed");
        for reason in ["queue_full", "rejected", "unreachable", "shutdown"] {
            spans_dropped.with_label_values(&[reason]);
        }
        let log_lines_dropped =
            counter("httpserver_log_lines_dropped_total", "How many access log lines were lost because nobody read them.");
        let info = Opts::new("httpserver_build_info", "What runs here; always 1.")
            .const_label("version", env!("CARGO_PKG_VERSION"))
            .const_label("revision", option_env!("REVISION").unwrap_or("unknown"))
            .const_label("service", build.service)
            .const_label("service_version", build.service_version)
            .const_label("lane", build.lane);
        let info = IntGauge::with_opts(info).expect("the family is well formed");
        info.set(1);

        let register = |collector: Box<dyn prometheus::core::Collector>| {
            registry.register(collector).expect("every family is registered once");
        };
        register(Box::new(server_duration.vec.clone()));
        register(Box::new(client_duration.vec.clone()));
        register(Box::new(active_requests.clone()));
        register(Box::new(spans_exported.clone()));
        register(Box::new(spans_dropped.clone()));
        register(Box::new(log_lines_dropped.clone()));
        register(Box::new(info));
        #[cfg(target_os = "linux")]
        register(Box::new(prometheus::process_collector::ProcessCollector::for_self()));

        let resolved = std::iter::repeat_with(OnceLock::new).take(routes * 2 * COMMON_STATUSES.len()).collect();
        Self {
            registry,
            server_duration,
            client_duration,
            active_requests,
            spans_exported,
            spans_dropped,
            log_lines_dropped,
            catching_up: Mutex::default(),
            resolved,
        }
    }

    /// Counts a finished request. `route` is the template's number and text.
    pub(crate) fn request(&self, method: &Method, route: (usize, &str), status: u16, took: Duration, trace: Option<TraceId>) {
        let method_index = match *method {
            Method::GET => Some(0),
            Method::HEAD => Some(1),
            _ => None,
        };
        let status_index = COMMON_STATUSES.iter().position(|common| *common == status);
        let slot = method_index.zip(status_index);
        let slot = slot.and_then(|(method, status)| self.resolved.get((route.0 * 2 + method) * COMMON_STATUSES.len() + status));
        let resolve = || self.server_duration.handle([known_method(method), route.1, &status.to_string()]);
        match slot {
            Some(slot) => slot.get_or_init(resolve).observe(took, trace),
            None => resolve().observe(took, trace),
        }
    }

    /// The handle that times calls to `server_address` answered with `status` (empty when there was no answer).
    pub(crate) fn call(&self, server_address: &str, status: &str) -> Arc<Timed> {
        self.client_duration.handle(["GET", server_address, status])
    }

    /// Counts lost spans.
    pub(crate) fn spans_dropped(&self, reason: &str, spans: usize) {
        self.spans_dropped.with_label_values(&[reason]).inc_by(spans as u64);
    }

    /// Everything as text: OpenMetrics when `openmetrics`, else Prometheus text 0.0.4. `queue` and `log` are where losses are
    /// counted until they are looked at.
    pub(crate) fn render(&self, openmetrics: bool, queue: &SpanQueue, log: Option<&LineWriter>) -> String {
        // One scrape at a time, or two would add the same difference.
        let one_at_a_time = self.catching_up.lock().unwrap_or_else(PoisonError::into_inner);
        let catch_up = |counter: &IntCounter, now: u64| counter.inc_by(now.saturating_sub(counter.get()));
        catch_up(&self.spans_dropped.with_label_values(&["queue_full"]), queue.dropped() as u64);
        catch_up(&self.log_lines_dropped, log.map_or(0, LineWriter::dropped));
        drop(one_at_a_time);
        let families = self.registry.gather();
        if !openmetrics {
            let mut text = Vec::with_capacity(16 << 10);
            // Encoding into memory fails only for a family without a name or metrics, and gather leaves those out.
            let _ = TextEncoder::new().encode(&families, &mut text);
            return String::from_utf8(text).unwrap_or_default();
        }
        let mut out = String::with_capacity(24 << 10);
        for family in &families {
            let durations = [&self.server_duration, &self.client_duration].into_iter().find(|own| own.name == family.name());
            write_openmetrics(&mut out, family, durations);
        }
        out.push_str("# EOF\n");
        out
    }
}

fn gauge(name: &str, help: &str) -> IntGauge {
    IntGauge::new(name, help).expect("the family is well formed")
}

fn counter(name: &str, help: &str) -> IntCounter {
    IntCounter::new(name, help).expect("the family is well formed")
}

/// A method as a label or attribute: the registered ones, and `_OTHER` for what a caller made up.
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

/// A histogram family with exemplars beside it.
#[derive(Debug)]
struct Durations {
    name: &'static str,
    labels: [&'static str; 3],
    vec: HistogramVec,
    handles: RwLock<Vec<([String; 3], Arc<Timed>)>>,
}

/// One histogram of the family and its latest exemplars.
#[derive(Debug)]
pub(crate) struct Timed {
    histogram: Histogram,
    /// One for each bucket and one for what is above all.
    exemplars: [Exemplar; BUCKETS.len() + 1],
}

#[derive(Debug, Default)]
struct Exemplar {
    /// Milliseconds since the epoch; 0 for none. Read without the lock, so that most requests never take it.
    at_ms: AtomicU64,
    sample: Mutex<Option<(TraceId, f64)>>,
}

impl Durations {
    fn new(name: &'static str, help: &str, labels: &[&'static str; 3]) -> Self {
        let opts = HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
        let vec = HistogramVec::new(opts, labels).expect("the family is well formed");
        Self { name, labels: *labels, vec, handles: RwLock::default() }
    }

    fn handle(&self, values: [&str; 3]) -> Arc<Timed> {
        let find = |handles: &[([String; 3], Arc<Timed>)]| {
            handles.iter().find(|(labels, _)| labels.iter().eq(values)).map(|(_, timed)| timed.clone())
        };
        if let Some(timed) = find(&self.handles.read().unwrap_or_else(PoisonError::into_inner)) {
            return timed;
        }
        let mut handles = self.handles.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(timed) = find(&handles) {
            return timed;
        }
        let timed = Arc::new(Timed { histogram: self.vec.with_label_values(&values), exemplars: Default::default() });
        handles.push((values.map(str::to_owned), timed.clone()));
        timed
    }
}

impl Timed {
    /// Counts one observation, and remembers its trace if the bucket's exemplar is old.
    pub(crate) fn observe(&self, took: Duration, trace: Option<TraceId>) {
        let seconds = took.as_secs_f64();
        self.histogram.observe(seconds);
        let Some(trace) = trace else { return };
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        let exemplar = &self.exemplars[bucket];
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        if now_ms.saturating_sub(exemplar.at_ms.load(Ordering::Relaxed)) < EXEMPLAR_AGE_MS {
            return;
        }
        // Whoever holds the lock is writing one just as good.
        if let Ok(mut sample) = exemplar.sample.try_lock() {
            *sample = Some((trace, seconds));
            exemplar.at_ms.store(now_ms, Ordering::Relaxed);
        }
    }
}

impl Exemplar {
    fn write(&self, out: &mut String) {
        let sample = *self.sample.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((trace, seconds)) = sample {
            let at_ms = self.at_ms.load(Ordering::Relaxed);
            let _ = write!(out, " # {{trace_id=\"{trace}\"}} {seconds} {}.{:03}", at_ms / 1000, at_ms % 1000);
        }
    }
}

/// One family in OpenMetrics 1.0.
fn write_openmetrics(out: &mut String, family: &MetricFamily, durations: Option<&Durations>) {
    let counter = family.get_field_type() == MetricType::COUNTER;
    let name = if counter { family.name().trim_end_matches("_total") } else { family.name() };
    let kind = match family.get_field_type() {
        MetricType::COUNTER => "counter",
        MetricType::GAUGE => "gauge",
        MetricType::HISTOGRAM => "histogram",
        MetricType::SUMMARY | MetricType::UNTYPED => "unknown",
    };
    let _ = writeln!(out, "# TYPE {name} {kind}");
    let _ = writeln!(out, "# HELP {name} {}", escape_label(family.help()));
    for metric in family.get_metric() {
        match family.get_field_type() {
            MetricType::HISTOGRAM => write_histogram(out, name, metric, durations),
            MetricType::COUNTER => sample(out, name, "_total", metric, None, metric.get_counter().get_value()),
            _ => sample(out, name, "", metric, None, metric.get_gauge().get_value()),
        }
    }
}

fn write_histogram(out: &mut String, name: &str, metric: &Metric, durations: Option<&Durations>) {
    let timed = durations.and_then(|durations| {
        let label = |name: &str| metric.get_label().iter().find(|label| label.name() == name).map(|label| label.value());
        let values = durations.labels.map(|name| label(name).unwrap_or_default());
        let handles = durations.handles.read().unwrap_or_else(PoisonError::into_inner);
        handles.iter().find(|(labels, _)| labels.iter().eq(values)).map(|(_, timed)| timed.clone())
    });
    let histogram = metric.get_histogram();
    let exemplar = |out: &mut String, bucket: usize| {
        // The line's end is taken back for the exemplar.
        out.pop();
        if let Some(timed) = &timed {
            timed.exemplars[bucket].write(out);
        }
        out.push('\n');
    };
    for (i, bucket) in histogram.get_bucket().iter().enumerate() {
        sample(out, name, "_bucket", metric, Some(bucket.upper_bound()), bucket.cumulative_count() as f64);
        exemplar(out, i);
    }
    sample(out, name, "_bucket", metric, Some(f64::INFINITY), histogram.get_sample_count() as f64);
    exemplar(out, BUCKETS.len());
    sample(out, name, "_count", metric, None, histogram.get_sample_count() as f64);
    sample(out, name, "_sum", metric, None, histogram.get_sample_sum());
}

fn sample(out: &mut String, name: &str, suffix: &str, metric: &Metric, bound: Option<f64>, value: f64) {
    let _ = write!(out, "{name}{suffix}");
    let mut separator = '{';
    for label in metric.get_label() {
        let _ = write!(out, "{separator}{}=\"{}\"", label.name(), escape_label(label.value()));
        separator = ',';
    }
    if let Some(bound) = bound {
        if bound.is_infinite() {
            let _ = write!(out, "{separator}le=\"+Inf\"");
        } else {
            // OpenMetrics wants a canonical float: 1.0, not 1.
            let _ = write!(out, "{separator}le=\"{bound:?}\"");
        }
        separator = ',';
    }
    if separator == ',' {
        out.push('}');
    }
    let _ = writeln!(out, " {value}");
}

fn escape_label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        Metrics::new(&Build { service: "a\"b\nc", service_version: "v1", lane: "base" }, 3)
    }

    #[test]
    fn openmetrics_has_exemplars_and_ends_with_eof() {
        let metrics = metrics();
        let trace = TraceId::from(0xabc_u128);
        metrics.request(&Method::GET, (1, "/hello"), 200, Duration::from_micros(800), Some(trace));
        metrics.request(&Method::GET, (1, "/hello"), 200, Duration::from_secs(20), Some(trace));
        metrics.request(&Method::from_bytes(b"BREW").unwrap(), (0, "unmatched"), 404, Duration::ZERO, None);
        let text = metrics.render(true, &SpanQueue::new(1), None);
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
        metrics.spans_dropped("rejected", 3);
        let text = metrics.render(false, &SpanQueue::new(1), None);
        assert!(text.contains("httpserver_spans_dropped_total{reason=\"rejected\"} 3"), "{text}");
        assert!(text.contains("httpserver_log_lines_dropped_total 0"), "{text}");
        assert!(text.contains("process_resident_memory_bytes"), "{text}");
        assert!(!text.contains("# EOF"), "{text}");
    }
}
