//! Export of spans (Zipkin v2 JSON, OTLP over HTTP or gRPC, lines on stderr), and of metrics and log records by OTLP.

mod console;
mod delivery;
mod grpc;
mod http;
mod metrics;
pub(crate) mod otlp;
mod pipeline;
mod task;
pub(crate) mod zipkin;

use std::error::Error;
use std::fmt;
use std::time::Duration;

pub(crate) use self::http::{Collector, ExportError, ExportProtocol};
pub(crate) use otlp::OtlpCollector;
pub(crate) use pipeline::{Lost, Pipelines};

use opentelemetry_semantic_conventions::attribute::{
    SERVICE_INSTANCE_ID, TELEMETRY_SDK_LANGUAGE, TELEMETRY_SDK_NAME, TELEMETRY_SDK_VERSION,
};

use crate::net::hosts::redacted_url;
use crate::net::tls::ClientTls;
use crate::telemetry::ids;
use crate::telemetry::line_writer::LineWriter;
use crate::telemetry::span_queue::SpanBatch;

/// How long one request to the collector may take, unless OTLP's own variable sets it.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// Where spans go.
#[derive(Debug, Clone, PartialEq)]
pub enum Exporter {
    /// Zipkin v2 JSON to this URL.
    Zipkin {
        /// The whole URL, path included.
        endpoint: String,
    },
    /// OTLP.
    Otlp(OtlpOptions),
    /// A line per span on stderr.
    Console,
}

/// With where they go, without secrets.
impl fmt::Display for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zipkin { endpoint } => write!(f, "zipkin {}", redacted_url(endpoint)),
            Self::Otlp(options) => options.fmt(f),
            Self::Console => f.write_str("console"),
        }
    }
}

/// What is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Spans.
    Traces,
    /// The families of `/metrics`.
    Metrics,
    /// Access lines and diagnostics.
    Logs,
}

impl Signal {
    /// Where it is usually posted to.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Traces => "/v1/traces",
            Self::Metrics => "/v1/metrics",
            Self::Logs => "/v1/logs",
        }
    }

    /// The method of its service.
    fn grpc_path(self) -> &'static str {
        match self {
            Self::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Self::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
            Self::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        }
    }

    /// What stands for it in the names of variables.
    pub(crate) fn in_variables(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
            Self::Logs => "LOGS",
        }
    }

    /// What is behind it, in diagnostics.
    fn collector(self) -> &'static str {
        match self {
            Self::Traces => "span collector",
            Self::Metrics => "metric collector",
            Self::Logs => "log collector",
        }
    }

    /// What it consists of, in diagnostics.
    fn items(self) -> &'static str {
        match self {
            Self::Traces => "spans",
            Self::Metrics => "data points",
            Self::Logs => "log records",
        }
    }
}

/// `OTEL_EXPORTER_OTLP_PROTOCOL`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OtlpProtocol {
    /// Protobuf over HTTP.
    #[default]
    HttpProtobuf,
    /// gRPC.
    Grpc,
}

/// How to reach an OTLP collector.
#[derive(Debug, Clone, PartialEq)]
pub struct OtlpOptions {
    /// How requests are sent.
    pub protocol: OtlpProtocol,
    /// The whole URL, over HTTP path included (`…/v1/traces`).
    pub endpoint: String,
    /// Extra headers of each export.
    pub headers: Vec<(String, String)>,
    /// How long one export may take, retries included.
    pub timeout: Duration,
    /// Compress with gzip.
    pub gzip: bool,
    /// Whom to trust, and what to present to a collector that asks for a certificate.
    pub tls: ClientTls,
}

impl OtlpOptions {
    /// To a collector on this machine.
    pub fn new(signal: Signal, protocol: OtlpProtocol) -> Self {
        let endpoint = match protocol {
            OtlpProtocol::HttpProtobuf => format!("http://localhost:4318{}", signal.path()),
            OtlpProtocol::Grpc => "http://localhost:4317".to_owned(),
        };
        Self { protocol, endpoint, headers: Vec::new(), timeout: TIMEOUT, gzip: false, tls: ClientTls::default() }
    }
}

impl fmt::Display for OtlpOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            OtlpProtocol::HttpProtobuf => "http/protobuf",
            OtlpProtocol::Grpc => "grpc",
        };
        write!(f, "otlp {protocol} {}", redacted_url(&self.endpoint))
    }
}

/// How metrics are exported, beside `/metrics`.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricOptions {
    /// Where to.
    pub otlp: OtlpOptions,
    /// `OTEL_METRIC_EXPORT_INTERVAL`.
    pub interval: Duration,
    /// `OTEL_METRIC_EXPORT_TIMEOUT`: how long one export may take, retries included.
    pub timeout: Duration,
    /// `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE`.
    pub temporality: Temporality,
}

/// Which metrics are sent as differences from the export before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Temporality {
    /// None.
    #[default]
    Cumulative,
    /// Counters and histograms.
    Delta,
    /// Histograms, and counters that are not read from elsewhere.
    LowMemory,
}

/// How log records are exported, beside the lines.
#[derive(Debug, Clone, PartialEq)]
pub struct LogOptions {
    /// Where to.
    pub otlp: OtlpOptions,
    /// `OTEL_BLRP_MAX_QUEUE_SIZE`.
    pub queue: usize,
    /// `OTEL_BLRP_SCHEDULE_DELAY`.
    pub schedule_delay: Duration,
}

/// What a hop exports.
#[derive(Debug, Clone, PartialEq)]
pub struct ExportOptions {
    /// `--trace-exporter` with their endpoints. None: the hop makes no spans and passes trace headers on untouched.
    pub spans: Vec<Exporter>,
    /// Who everything is from.
    pub resource: ResourceOptions,
    /// `OTEL_BSP_MAX_QUEUE_SIZE`.
    pub span_queue: usize,
    /// `OTEL_BSP_SCHEDULE_DELAY`.
    pub schedule_delay: Duration,
    /// `OTEL_METRICS_EXPORTER`; `None`: `/metrics` alone.
    pub metrics: Option<MetricOptions>,
    /// `OTEL_METRICS_EXEMPLAR_FILTER` is not `always_off`.
    pub exemplars: bool,
    /// `OTEL_LOGS_EXPORTER`; `None`: lines alone.
    pub logs: Option<LogOptions>,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self {
            spans: Vec::new(),
            resource: ResourceOptions::default(),
            span_queue: 16_384,
            schedule_delay: Duration::from_secs(1),
            metrics: None,
            exemplars: true,
            logs: None,
        }
    }
}

/// The resource that the spans belong to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ResourceOptions {
    /// `service.name`.
    pub service_name: String,
    /// Further attributes (`service.version`, `lane`, and those of `OTEL_RESOURCE_ATTRIBUTES`).
    pub attributes: Vec<(String, String)>,
}

impl ResourceOptions {
    /// With what every resource has: this instance's id, and who made the spans.
    fn complete(mut self) -> Self {
        let instance = ids::request_id();
        for (key, value) in [
            (SERVICE_INSTANCE_ID, instance.to_str().unwrap_or_default()),
            (TELEMETRY_SDK_NAME, env!("CARGO_PKG_NAME")),
            (TELEMETRY_SDK_LANGUAGE, "rust"),
            (TELEMETRY_SDK_VERSION, env!("CARGO_PKG_VERSION")),
        ] {
            if !self.attributes.iter().any(|(known, _)| known == key) {
                self.attributes.push((key.to_owned(), value.to_owned()));
            }
        }
        self
    }
}

/// Why an exporter cannot be built.
#[derive(Debug)]
pub enum ExporterError {
    /// The HTTP client could not be built.
    HttpClient(reqwest::Error),
    /// The endpoint is not a URL; holds it without its secrets.
    Endpoint(String),
    /// An extra header of the exports is not an HTTP header; holds its name. Its value may be a secret.
    Header(String),
}

impl fmt::Display for ExporterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HttpClient(error) => write!(f, "cannot build the HTTP client of the span exporter: {error}"),
            Self::Endpoint(url) => write!(f, "the export endpoint '{}' is not a URL", url.escape_debug()),
            Self::Header(name) => write!(f, "the export header '{}' is not an HTTP header", name.escape_debug()),
        }
    }
}

impl Error for ExporterError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::HttpClient(error) => Some(error),
            Self::Endpoint(_) | Self::Header(_) => None,
        }
    }
}

/// The running exporter of one kind.
#[derive(Debug)]
enum SpanSink {
    Zipkin(zipkin::ZipkinSink),
    Otlp { collector: OtlpCollector, encoder: otlp::OtlpEncoder },
    Console(console::ConsoleSink),
}

/// What a collector made of the spans of a request that succeeded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Accepted {
    /// How many of the spans it did not accept.
    pub(crate) rejected: usize,
    /// What it said about that, or as a warning.
    pub(crate) message: Option<String>,
}

impl SpanSink {
    fn new(exporter: Exporter, resource: ResourceOptions, console: &LineWriter) -> Result<Self, ExporterError> {
        Ok(match exporter {
            Exporter::Console => Self::Console(console::ConsoleSink::new(console.clone(), resource)),
            Exporter::Zipkin { endpoint } => Self::Zipkin(zipkin::ZipkinSink::new(&endpoint, &resource)?),
            Exporter::Otlp(options) => {
                Self::Otlp { collector: OtlpCollector::new(Signal::Traces, options)?, encoder: otlp::OtlpEncoder::new(resource) }
            }
        })
    }

    async fn export(&self, batch: &SpanBatch) -> Result<Accepted, ExportError> {
        match self {
            Self::Zipkin(sink) => sink.send(batch).await,
            Self::Otlp { collector, encoder } => collector.export(encoder.encode(batch), Duration::MAX).await,
            Self::Console(sink) => {
                sink.send(batch);
                Ok(Accepted::default())
            }
        }
    }
}
