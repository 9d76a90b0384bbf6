//! OpenMetrics 1.0 text. `prometheus` writes text 0.0.4 only, which has no exemplars.

use std::fmt::Write as _;
use std::time::UNIX_EPOCH;

use prometheus::proto::{Metric, MetricFamily, MetricType};

use crate::telemetry::duration_histogram::{DurationHistogram, Exemplar};
use crate::telemetry::queue::Latest;

/// Writes `families`, with the exemplars of those that are in `histograms`, and of the counters of spans.
pub(crate) fn encode(families: &[MetricFamily], histograms: &[&DurationHistogram], spans: &Latest) -> String {
    let mut out = String::with_capacity(24 << 10);
    for family in families {
        let histogram = histograms.iter().copied().find(|own| own.name == family.name());
        write_family(&mut out, family, histogram, spans);
    }
    out.push_str("# EOF\n");
    out
}

fn write_family(out: &mut String, family: &MetricFamily, histogram: Option<&DurationHistogram>, spans: &Latest) {
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
            MetricType::HISTOGRAM => write_histogram(out, name, metric, histogram),
            MetricType::COUNTER => {
                let exemplar = exemplar_of(family.name(), metric, spans);
                write_sample(out, name, "_total", metric, None, metric.get_counter().get_value(), exemplar);
            }
            _ => write_sample(out, name, "", metric, None, metric.get_gauge().get_value(), None),
        }
    }
}

/// The span that a counter of spans counted last.
pub(crate) fn exemplar_of(family: &str, metric: &Metric, spans: &Latest) -> Option<Exemplar> {
    let counted = match (family, metric.get_label().first().map(|label| label.value())) {
        ("httpserver_spans_recorded_total", _) => spans.recorded,
        ("httpserver_spans_exported_total", _) => spans.exported,
        ("httpserver_spans_dropped_total", Some("queue_full")) => spans.queue_full,
        ("httpserver_spans_dropped_total", Some("rejected")) => spans.rejected,
        ("httpserver_spans_dropped_total", Some("unreachable")) => spans.unreachable,
        ("httpserver_spans_dropped_total", Some("shutdown")) => spans.shutdown,
        _ => None,
    };
    let (trace_id, at) = counted?;
    let at_ms = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    Some(Exemplar { trace_id, span_id: None, value: 1.0, at_ms })
}

fn write_histogram(out: &mut String, name: &str, metric: &Metric, histogram: Option<&DurationHistogram>) {
    let handle = histogram.and_then(|histogram| histogram.handle_of(metric));
    let exemplar = |bucket: usize| handle.as_ref().and_then(|handle| handle.exemplar(bucket));
    let histogram = metric.get_histogram();
    let buckets = histogram.get_bucket();
    for (i, bucket) in buckets.iter().enumerate() {
        let (bound, count) = (bucket.upper_bound(), bucket.cumulative_count() as f64);
        write_sample(out, name, "_bucket", metric, Some(bound), count, exemplar(i));
    }
    let count = histogram.get_sample_count() as f64;
    write_sample(out, name, "_bucket", metric, Some(f64::INFINITY), count, exemplar(buckets.len()));
    write_sample(out, name, "_count", metric, None, count, None);
    write_sample(out, name, "_sum", metric, None, histogram.get_sample_sum(), None);
}

fn write_sample(
    out: &mut String,
    name: &str,
    suffix: &str,
    metric: &Metric,
    bound: Option<f64>,
    value: f64,
    exemplar: Option<Exemplar>,
) {
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
            // OpenMetrics requires a canonical float: 1.0, not 1.
            let _ = write!(out, "{separator}le=\"{bound:?}\"");
        }
        separator = ',';
    }
    if separator == ',' {
        out.push('}');
    }
    let _ = write!(out, " {value}");
    if let Some(Exemplar { trace_id, span_id, value, at_ms }) = exemplar {
        let _ = write!(out, " # {{trace_id=\"{trace_id}\"");
        if let Some(span_id) = span_id {
            let _ = write!(out, ",span_id=\"{span_id}\"");
        }
        let _ = write!(out, "}} {value} {}.{:03}", at_ms / 1000, at_ms % 1000);
    }
    out.push('\n');
}

fn escape_label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
