//! The families of the registry as OTLP metrics, under the names of the semantic conventions.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Exemplar as OtlpExemplar, Gauge, Histogram, HistogramDataPoint, Metric as OtlpMetric,
    NumberDataPoint, Sum, exemplar, number_data_point,
};
use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};
use prost::Message as _;

use super::{Envelope, attribute, nanoseconds, push_item};
use crate::telemetry::duration_histogram::{DurationHistogram, Exemplar};
use crate::telemetry::export::{ResourceOptions, Temporality};
use crate::telemetry::metrics::UNMATCHED;
use crate::telemetry::openmetrics::exemplar_of;
use crate::telemetry::queue::Latest;

/// What the names of the registry's families do not say: the name in the conventions, the unit, and how values are added up. Whatever
/// is not here has its own name, in which a counter's `_total` is left out and `httpserver_` is `httpserver.`.
const KNOWN: [(&str, &str, &str, InstrumentKind); 13] = [
    ("http_server_request_duration_seconds", "http.server.request.duration", "s", InstrumentKind::Measured),
    ("http_client_request_duration_seconds", "http.client.request.duration", "s", InstrumentKind::Measured),
    ("rpc_server_call_duration_seconds", "rpc.server.call.duration", "s", InstrumentKind::Measured),
    ("rpc_client_call_duration_seconds", "rpc.client.call.duration", "s", InstrumentKind::Measured),
    ("http_server_active_requests", "http.server.active_requests", "{request}", InstrumentKind::UpDown),
    ("httpserver_requests_shed_total", "httpserver.requests_shed", "{request}", InstrumentKind::Measured),
    ("httpserver_held_bytes", "httpserver.held_bytes", "By", InstrumentKind::UpDown),
    ("process_cpu_seconds_total", "process.cpu.time", "s", InstrumentKind::Observed),
    ("process_resident_memory_bytes", "process.memory.usage", "By", InstrumentKind::UpDown),
    ("process_virtual_memory_bytes", "process.memory.virtual", "By", InstrumentKind::UpDown),
    ("process_open_fds", "process.unix.file_descriptor.count", "{file_descriptor}", InstrumentKind::UpDown),
    ("process_threads", "process.thread.count", "{thread}", InstrumentKind::UpDown),
    ("process_start_time_seconds", "process_start_time", "s", InstrumentKind::Gauge),
];

/// How an instrument is called in OpenTelemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InstrumentKind {
    /// A counter or histogram that each event adds to.
    Measured,
    /// A counter whose value is read from elsewhere.
    Observed,
    UpDown,
    Gauge,
}

/// Encodes the families of one resource.
#[derive(Debug)]
pub(crate) struct MetricEncoder {
    envelope: Envelope,
    temporality: Temporality,
    /// When counting began.
    start: SystemTime,
    /// The values that were accepted last, from which differences are taken; by family and labels.
    accepted: HashMap<String, MetricSample>,
    accepted_at: SystemTime,
}

/// A request, to be given back when it was accepted.
#[derive(Debug)]
pub(crate) struct MetricRequest {
    pub(crate) body: Vec<u8>,
    /// How many data points it has.
    pub(crate) points: usize,
    values: HashMap<String, MetricSample>,
    at: SystemTime,
}

/// The value of a counter, or the sum, the count and the buckets of a histogram.
#[derive(Debug, Clone, Default)]
struct MetricSample {
    value: f64,
    count: u64,
    buckets: Vec<u64>,
}

impl MetricEncoder {
    pub(crate) fn new(resource: ResourceOptions, temporality: Temporality) -> Self {
        let start = SystemTime::now();
        Self { envelope: Envelope::new(resource), temporality, start, accepted: HashMap::new(), accepted_at: start }
    }

    /// The values of an accepted request are what the next differences are taken from.
    pub(crate) fn accepted(&mut self, request: MetricRequest) {
        self.accepted = request.values;
        self.accepted_at = request.at;
    }

    /// An `ExportMetricsServiceRequest` with the values of `families`, and the exemplars since the last one.
    pub(crate) fn encode(
        &self,
        families: &[MetricFamily],
        histograms: &[&DurationHistogram],
        latest: &Latest,
        now: SystemTime,
    ) -> MetricRequest {
        let mut request = MetricRequest { body: self.envelope.open(16 << 10), points: 0, values: HashMap::new(), at: now };
        for family in families {
            let metric = match family.get_field_type() {
                MetricType::COUNTER | MetricType::GAUGE => self.numbers(family, latest, &mut request),
                MetricType::HISTOGRAM => {
                    let own = histograms.iter().copied().find(|own| own.name == family.name());
                    self.histograms(family, own, &mut request)
                }
                MetricType::SUMMARY | MetricType::UNTYPED => None,
            };
            if let Some(metric) = metric {
                push_item(&mut request.body, &metric.encode_to_vec());
            }
        }
        self.envelope.close(&mut request.body);
        request
    }

    /// Whether differences are sent of this kind.
    fn is_delta(&self, kind: InstrumentKind) -> bool {
        match self.temporality {
            Temporality::Cumulative => false,
            Temporality::Delta => matches!(kind, InstrumentKind::Measured | InstrumentKind::Observed),
            Temporality::LowMemory => kind == InstrumentKind::Measured,
        }
    }

    /// Begin and end of a data point.
    fn times(&self, is_delta: bool, now: SystemTime) -> (u64, u64) {
        (unix_nanoseconds(if is_delta { self.accepted_at } else { self.start }), unix_nanoseconds(now))
    }

    fn numbers(&self, family: &MetricFamily, latest: &Latest, request: &mut MetricRequest) -> Option<OtlpMetric> {
        let is_counter = family.get_field_type() == MetricType::COUNTER;
        let (name, unit, kind) = described(family.name(), is_counter);
        let is_delta = self.is_delta(kind);
        let (start, now) = self.times(is_delta, request.at);
        let mut data_points = Vec::new();
        for metric in family.get_metric() {
            let mut value = if is_counter { metric.get_counter().get_value() } else { metric.get_gauge().get_value() };
            if is_delta {
                let sample = MetricSample { value, ..MetricSample::default() };
                value -= self.before(family, metric, sample, request).value;
                if value == 0.0 {
                    continue;
                }
            }
            let exemplar = exemplar_of(family.name(), metric, latest).filter(|exemplar| self.is_new(exemplar));
            data_points.push(NumberDataPoint {
                attributes: attributes(metric.get_label()),
                start_time_unix_nano: if kind == InstrumentKind::Gauge { 0 } else { start },
                time_unix_nano: now,
                value: Some(number(value, unit)),
                exemplars: exemplar.into_iter().map(otlp_exemplar).collect(),
                ..Default::default()
            });
        }
        request.points += data_points.len();
        let is_empty = data_points.is_empty();
        let data = match kind {
            InstrumentKind::Gauge => Data::Gauge(Gauge { data_points }),
            _ => Data::Sum(Sum { data_points, aggregation_temporality: temporality(is_delta), is_monotonic: is_counter }),
        };
        (!is_empty).then(|| described_metric(family, name, unit, data))
    }

    fn histograms(
        &self,
        family: &MetricFamily,
        own: Option<&DurationHistogram>,
        request: &mut MetricRequest,
    ) -> Option<OtlpMetric> {
        let (name, unit, kind) = described(family.name(), true);
        let is_delta = self.is_delta(kind);
        let (start, now) = self.times(is_delta, request.at);
        let mut data_points = Vec::new();
        for metric in family.get_metric() {
            let histogram = metric.get_histogram();
            // Prometheus counts each bucket with those below it, OTLP alone.
            let mut below = 0;
            let cumulative = histogram.get_bucket().iter().map(|bucket| bucket.cumulative_count());
            let buckets = cumulative.chain([histogram.get_sample_count()]).map(|upto| upto - std::mem::replace(&mut below, upto));
            let mut sample = MetricSample {
                value: histogram.get_sample_sum(),
                count: histogram.get_sample_count(),
                buckets: buckets.collect(),
            };
            if is_delta {
                let before = self.before(family, metric, sample.clone(), request);
                sample.value -= before.value;
                sample.count -= before.count;
                sample.buckets.iter_mut().zip(before.buckets).for_each(|(now, before)| *now -= before);
                if sample.count == 0 {
                    continue;
                }
            }
            let handle = own.and_then(|own| own.handle_of(metric));
            let exemplars = (0..sample.buckets.len()).filter_map(|bucket| handle.as_ref()?.exemplar(bucket));
            data_points.push(HistogramDataPoint {
                attributes: attributes(metric.get_label()),
                start_time_unix_nano: start,
                time_unix_nano: now,
                count: sample.count,
                sum: Some(sample.value),
                bucket_counts: sample.buckets.clone(),
                explicit_bounds: histogram.get_bucket().iter().map(|bucket| bucket.upper_bound()).collect(),
                exemplars: exemplars.filter(|exemplar| self.is_new(exemplar)).map(otlp_exemplar).collect(),
                ..Default::default()
            });
        }
        request.points += data_points.len();
        let is_empty = data_points.is_empty();
        let data = Data::Histogram(Histogram { data_points, aggregation_temporality: temporality(is_delta) });
        (!is_empty).then(|| described_metric(family, name, unit, data))
    }

    /// The sample that was accepted last of this series; `now` is what the next difference is taken from.
    fn before(&self, family: &MetricFamily, metric: &Metric, now: MetricSample, request: &mut MetricRequest) -> MetricSample {
        let mut series = family.name().to_owned();
        for label in metric.get_label() {
            series.extend(["\0", label.name(), "\0", label.value()]);
        }
        let before = self.accepted.get(&series).cloned().unwrap_or_default();
        request.values.insert(series, now);
        before
    }

    /// Whether an exemplar was not in the last request.
    fn is_new(&self, exemplar: &Exemplar) -> bool {
        UNIX_EPOCH + Duration::from_millis(exemplar.at_ms) > self.accepted_at
    }
}

/// Name, unit and kind of a family.
fn described(family: &str, is_counter: bool) -> (String, &'static str, InstrumentKind) {
    if let Some((_, name, unit, kind)) = KNOWN.iter().find(|(known, ..)| *known == family) {
        return ((*name).to_owned(), unit, *kind);
    }
    let name = family.strip_suffix("_total").unwrap_or(family);
    let name = name.strip_prefix("httpserver_").map_or_else(|| name.to_owned(), |own| format!("httpserver.{own}"));
    let kind = match (is_counter, family.ends_with("_queued")) {
        (true, _) => InstrumentKind::Observed,
        (false, true) => InstrumentKind::UpDown,
        (false, false) => InstrumentKind::Gauge,
    };
    (name, if is_counter || kind == InstrumentKind::UpDown { "{item}" } else { "1" }, kind)
}

fn described_metric(family: &MetricFamily, name: String, unit: &str, data: Data) -> OtlpMetric {
    OtlpMetric { name, description: family.help().to_owned(), unit: unit.to_owned(), data: Some(data), ..Default::default() }
}

/// Labels as attributes, by the names that they were made from; an empty label is none, and so is the route of a request that matched none.
fn attributes(labels: &[LabelPair]) -> Vec<KeyValue> {
    let is_none = |label: &LabelPair| label.value().is_empty() || (label.name(), label.value()) == ("http_route", UNMATCHED);
    let labels = labels.iter().filter(|label| !is_none(label));
    let attribute = |label: &LabelPair| {
        let name = label.name().replace('_', ".").replace("status.code", "status_code");
        let number = label.value().parse().ok().filter(|_| matches!(&*name, "http.response.status_code" | "server.port"));
        attribute(name, number.map_or_else(|| Value::StringValue(label.value().to_owned()), Value::IntValue))
    };
    labels.map(attribute).collect()
}

/// Seconds have fractions; everything else is counted.
fn number(value: f64, unit: &str) -> number_data_point::Value {
    if unit == "s" { number_data_point::Value::AsDouble(value) } else { number_data_point::Value::AsInt(value as i64) }
}

fn otlp_exemplar(exemplar: Exemplar) -> OtlpExemplar {
    OtlpExemplar {
        time_unix_nano: exemplar.at_ms * 1_000_000,
        span_id: exemplar.span_id.map(|id| id.to_bytes().to_vec()).unwrap_or_default(),
        trace_id: exemplar.trace_id.to_bytes().to_vec(),
        value: Some(exemplar::Value::AsDouble(exemplar.value)),
        ..Default::default()
    }
}

fn temporality(is_delta: bool) -> i32 {
    (if is_delta { AggregationTemporality::Delta } else { AggregationTemporality::Cumulative }) as i32
}

fn unix_nanoseconds(time: SystemTime) -> u64 {
    nanoseconds(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}
