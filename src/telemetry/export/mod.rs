//! Export of spans: Zipkin v2 JSON, OTLP over HTTP, or lines on stderr. One exporter is one file.

mod console;
mod otlp;
mod pipeline;
mod zipkin;

use std::error::Error;
use std::fmt;
use std::time::Duration;

pub(crate) use pipeline::Pipeline;

use crate::server::tls;
use crate::telemetry::line_writer::LineWriter;
use crate::telemetry::span_queue::{QueuedSpan, SpanBatch};
use crate::text::causes;

/// How long one request to the collector may take, unless OTLP's own variable sets it.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How many bytes of a collector's answer are read.
const MAX_ANSWER: usize = 64 << 10;

/// Where spans go.
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

/// The resource that the spans belong to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ResourceOptions {
    /// `service.name`.
    pub service_name: String,
    /// Further attributes (`service.version`, `lane`, and those of `OTEL_RESOURCE_ATTRIBUTES`).
    pub attributes: Vec<(String, String)>,
}

/// Why an exporter cannot be built.
#[derive(Debug)]
pub enum ExporterError {
    /// The HTTP client could not be built.
    HttpClient(reqwest::Error),
    /// The options do not fit OTLP's exporter.
    Otlp(opentelemetry_otlp::ExporterBuildError),
}

impl fmt::Display for ExporterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HttpClient(error) => write!(f, "cannot build the HTTP client of the span exporter: {error}"),
            Self::Otlp(error) => write!(f, "cannot build the OTLP exporter: {error}"),
        }
    }
}

impl Error for ExporterError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::HttpClient(error) => Some(error),
            Self::Otlp(error) => Some(error),
        }
    }
}

/// The running exporter of one kind.
#[derive(Debug)]
enum SpanSink {
    Zipkin(zipkin::ZipkinSink),
    Otlp(Box<otlp::OtlpSink>),
    Console(console::ConsoleSink),
}

/// Why a chunk of spans was not accepted.
struct ExportError {
    /// The same request may succeed later.
    is_retryable: bool,
    reason: String,
}

impl SpanSink {
    /// `None` for [`Exporter::None`].
    fn new(exporter: Exporter, resource: ResourceOptions, console: &LineWriter) -> Result<Option<Self>, ExporterError> {
        Ok(Some(match exporter {
            Exporter::None => return Ok(None),
            Exporter::Console => Self::Console(console::ConsoleSink::new(console.clone(), resource)),
            Exporter::Zipkin { endpoint } => Self::Zipkin(zipkin::ZipkinSink::new(endpoint, &resource)?),
            Exporter::Otlp(options) => Self::Otlp(Box::new(otlp::OtlpSink::new(options, resource)?)),
        }))
    }

    async fn send(&self, batch: &SpanBatch, spans: &[QueuedSpan]) -> Result<(), ExportError> {
        match self {
            Self::Zipkin(sink) => sink.send(batch, spans).await,
            Self::Otlp(sink) => sink.send(batch, spans).await,
            Self::Console(sink) => {
                sink.send(batch, spans);
                Ok(())
            }
        }
    }
}

/// The client for exports. It ignores the environment's proxy: collectors are inside the cluster.
fn http_client(timeout: Duration) -> Result<reqwest::Client, ExporterError> {
    reqwest::Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(tls::client_config())
        .pool_max_idle_per_host(1)
        .timeout(timeout)
        .build()
        .map_err(ExporterError::HttpClient)
}

/// Sends a request and reads its answer.
async fn post(request: reqwest::RequestBuilder) -> Result<(), ExportError> {
    let failed = |error: reqwest::Error| ExportError { is_retryable: true, reason: causes(&error) };
    let response = request.send().await.map_err(failed)?;
    let (status, url) = (response.status(), response.url().clone());
    drain_body(response).await;
    if status.is_success() {
        return Ok(());
    }
    Err(ExportError { is_retryable: is_retryable(status.as_u16()), reason: format!("{url} answered {status}") })
}

/// Drains the response body so that the connection can be reused; gives up after [`MAX_ANSWER`] bytes.
async fn drain_body(mut response: reqwest::Response) {
    let mut length = 0;
    while let Ok(Some(chunk)) = response.chunk().await {
        length += chunk.len();
        if length > MAX_ANSWER {
            return;
        }
    }
}

/// Whether a collector that answered with `status` may accept the same spans later.
fn is_retryable(status: u16) -> bool {
    status >= 500 || matches!(status, 408 | 429)
}
