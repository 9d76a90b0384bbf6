//! Export of spans: Zipkin v2 JSON, OTLP over HTTP, or lines on stderr. One exporter is one file.

mod console;
pub(crate) mod otlp;
mod pipeline;
pub(crate) mod zipkin;

use std::error::Error;
use std::fmt;
use std::time::Duration;

use http::header::RETRY_AFTER;

pub(crate) use pipeline::Pipeline;

use crate::net::hosts::redacted_url;
use crate::net::tls;
use crate::telemetry::line_writer::LineWriter;
use crate::telemetry::span_queue::{QueuedSpan, SpanBatch};
use crate::text::causes;

/// How long one request to the collector may take, unless OTLP's own variable sets it.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
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
    /// The options do not fit the exporter of `opentelemetry-otlp`.
    Otlp(opentelemetry_otlp::ExporterBuildError),
    /// An extra header of the exports is not an HTTP header; holds its name. Its value may be a secret.
    Header(String),
}

impl fmt::Display for ExporterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HttpClient(error) => write!(f, "cannot build the HTTP client of the span exporter: {error}"),
            Self::Otlp(error) => write!(f, "cannot build the OTLP exporter: {error}"),
            Self::Header(name) => write!(f, "the export header '{}' is not an HTTP header", name.escape_debug()),
        }
    }
}

impl Error for ExporterError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::HttpClient(error) => Some(error),
            Self::Otlp(error) => Some(error),
            Self::Header(_) => None,
        }
    }
}

/// The running exporter of one kind.
#[derive(Debug)]
enum SpanSink {
    Zipkin(zipkin::ZipkinSink),
    Otlp(otlp::OtlpSink),
    Console(console::ConsoleSink),
}

/// Why a chunk of spans was not accepted.
pub(super) struct ExportError {
    /// The same request may succeed later.
    is_retryable: bool,
    /// The earliest time for it, as `Retry-After` says.
    retry_after: Option<Duration>,
    pub(super) reason: String,
}

impl ExportError {
    fn rejected(reason: String) -> Self {
        Self { is_retryable: false, retry_after: None, reason }
    }
}

impl SpanSink {
    /// `None` for [`Exporter::None`].
    fn new(exporter: Exporter, resource: ResourceOptions, console: &LineWriter) -> Result<Option<Self>, ExporterError> {
        Ok(Some(match exporter {
            Exporter::None => return Ok(None),
            Exporter::Console => Self::Console(console::ConsoleSink::new(console.clone(), resource)),
            Exporter::Zipkin { endpoint } => Self::Zipkin(zipkin::ZipkinSink::new(endpoint, &resource)?),
            Exporter::Otlp(options) => Self::Otlp(otlp::OtlpSink::new(options, resource)?),
        }))
    }

    /// Returns how many of the spans were rejected although the request succeeded.
    async fn send(&self, batch: &SpanBatch, spans: &[QueuedSpan]) -> Result<usize, ExportError> {
        match self {
            Self::Zipkin(sink) => sink.send(batch, spans).await,
            Self::Otlp(sink) => sink.send(batch, spans).await,
            Self::Console(sink) => {
                sink.send(batch, spans);
                Ok(0)
            }
        }
    }
}

/// The client for exports. It ignores the environment's proxy, because collectors are inside the cluster, and follows no redirect:
/// the POST would become a GET whose 200 says nothing about spans, and headers with keys would go to another host.
pub(super) fn http_client(timeout: Duration) -> Result<reqwest::Client, ExporterError> {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .tls_backend_preconfigured(tls::client_config())
        .pool_max_idle_per_host(1)
        .timeout(timeout)
        .build()
        .map_err(ExporterError::HttpClient)
}

/// Sends a request and returns the body of its answer.
pub(super) async fn post(request: reqwest::RequestBuilder) -> Result<Vec<u8>, ExportError> {
    let failed = |error: reqwest::Error| {
        let url = error.url().map(|url| redacted_url(url.as_str())).unwrap_or_default();
        ExportError { is_retryable: true, retry_after: None, reason: format!("{url}: {}", causes(&error.without_url())) }
    };
    let response = request.send().await.map_err(failed)?;
    let status = response.status();
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let reason = format!("{} answered {status}", redacted_url(response.url().as_str()));
    let body = drain_body(response).await;
    if status.is_success() {
        return Ok(body);
    }
    let retry_after = retry_after.map(Duration::from_secs);
    Err(ExportError { is_retryable: is_retryable(status.as_u16()), retry_after, reason })
}

/// Reads the response body to its end, so that the connection can be reused; gives up after [`MAX_ANSWER`] bytes.
async fn drain_body(mut response: reqwest::Response) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER {
            break;
        }
    }
    body
}

/// Whether a collector that answered with `status` may accept the same spans later.
fn is_retryable(status: u16) -> bool {
    status >= 500 || matches!(status, 408 | 429)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn an_answer_says_whether_and_when_to_retry() {
        let cases = [
            ("503 Unavailable\r\nretry-after: 7", Some((true, Some(7)))),
            ("429 Slow\r\nretry-after: Wed, 21 Oct 2026 07:28:00 GMT", Some((true, None))),
            ("400 Bad", Some((false, None))),
            ("302 Found\r\nlocation: http://127.0.0.1:9/login", Some((false, None))),
            ("200 OK", None),
        ];
        for (answer, expected) in cases {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://u:s3cret@{}/v1/traces?token=s3cret", listener.local_addr().unwrap());
            let server = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 4096];
                let read = stream.read(&mut head).await.unwrap();
                assert!(head[..read].ends_with(b"\r\n\r\n"));
                stream.write_all(format!("HTTP/1.1 {answer}\r\ncontent-length: 2\r\n\r\nok").as_bytes()).await.unwrap();
            };
            let client = http_client(TIMEOUT).unwrap();
            let (result, ()) = tokio::join!(post(client.post(&url)), server);
            match (result, expected) {
                (Ok(body), None) => assert_eq!(body, b"ok"),
                (Err(error), Some((is_retryable, seconds))) => {
                    assert_eq!(
                        (error.is_retryable, error.retry_after),
                        (is_retryable, seconds.map(Duration::from_secs)),
                        "{answer}"
                    );
                    assert!(!error.reason.contains("s3cret"), "{}", error.reason);
                }
                (Ok(_), Some(_)) => panic!("{answer} is an error"),
                (Err(error), None) => panic!("{answer} is none: {}", error.reason),
            }
        }
    }

    #[tokio::test]
    async fn a_collector_that_cannot_be_reached_is_named_without_its_secrets() {
        // Bound and not listening, so that nobody else gets the port.
        let nobody = tokio::net::TcpSocket::new_v4().unwrap();
        nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = nobody.local_addr().unwrap();
        let url = format!("http://u:s3cret@{addr}/v1/traces?token=s3cret");
        let error = post(http_client(TIMEOUT).unwrap().post(&url)).await.unwrap_err();
        assert!(error.reason.contains(&format!("http://{addr}/v1/traces")), "{}", error.reason);
        assert!(error.is_retryable && error.reason.contains("refused") && !error.reason.contains("s3cret"), "{}", error.reason);
    }
}
