//! A collector over HTTP: what is posted, what its answer means, and which mistake may be behind a failure.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use prost::Message as _;
use reqwest::Url;

use super::{ExporterError, Signal};
use crate::net::client::{builder, read_bounded};
use crate::net::hosts::redacted_url;
use crate::net::tls::ClientTls;
use crate::rpc::status::RpcStatus;
use crate::text::causes;

/// How many bytes of a collector's answer are read.
pub(super) const MAX_ANSWER: usize = 64 << 10;
/// How much of a text that a collector sent is logged.
const MAX_SHOWN: usize = 200;

/// Whose rules an export follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExportProtocol {
    Zipkin,
    OtlpHttp(Signal),
    OtlpGrpc(Signal),
}

/// Why spans were not accepted.
#[derive(Debug)]
pub(crate) struct ExportError {
    /// The same request may succeed later.
    pub(super) is_retryable: bool,
    /// The earliest time for it, as `Retry-After` says.
    pub(super) retry_after: Option<Duration>,
    pub(crate) reason: String,
}

impl ExportError {
    pub(super) fn rejected(reason: String) -> Self {
        Self { is_retryable: false, retry_after: None, reason }
    }
}

/// Where spans are posted.
#[derive(Debug)]
pub(crate) struct Collector {
    client: reqwest::Client,
    url: Url,
    headers: HeaderMap,
    protocol: ExportProtocol,
    timeout: Duration,
}

impl Collector {
    /// # Errors
    ///
    /// The client cannot be built, or the endpoint is no URL.
    pub(crate) fn new(
        protocol: ExportProtocol,
        endpoint: &str,
        headers: HeaderMap,
        timeout: Duration,
        tls: ClientTls,
    ) -> Result<Self, ExporterError> {
        let url = Url::parse(endpoint).map_err(|_| ExporterError::Endpoint(redacted_url(endpoint)))?;
        let client = builder(tls.config()).pool_max_idle_per_host(1).build().map_err(ExporterError::HttpClient)?;
        Ok(Self { client, url, headers, protocol, timeout })
    }

    /// Posts `body` and returns the body of the answer, in at most `limit` or the own timeout.
    pub(crate) async fn post(&self, body: Vec<u8>, limit: Duration) -> Result<Bytes, ExportError> {
        let request =
            self.client.post(self.url.clone()).headers(self.headers.clone()).body(body).timeout(limit.min(self.timeout));
        let mut response = request.send().await.map_err(|error| self.unreachable(error))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = read_bounded(&mut response, MAX_ANSWER).await;
        if !status.is_success() {
            return Err(self.refused(status, &headers, body.ok().flatten().unwrap_or_default()));
        }
        if headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/html")) {
            return Err(self.rejected(&format!("answered {status} with a page; no collector does"), status, ""));
        }
        match (self.protocol, body) {
            (_, Ok(Some(body))) => Ok(body),
            // The status says all.
            (ExportProtocol::Zipkin, _) => Ok(Bytes::new()),
            (_, Ok(None)) => Err(self.rejected(&format!("answered {status} with more than {MAX_ANSWER} bytes"), status, "")),
            (_, Err(error)) => Err(self.unreachable(error)),
        }
    }

    fn unreachable(&self, error: reqwest::Error) -> ExportError {
        let cause = causes(&error.without_url());
        let advice = self.advice(None, &cause);
        ExportError { is_retryable: true, retry_after: None, reason: format!("{}: {cause}{advice}", self.shown_url()) }
    }

    fn refused(&self, status: StatusCode, headers: &HeaderMap, body: Bytes) -> ExportError {
        let mut what = format!("answered {status}");
        let said = shown_message(body);
        if let Some(to) = headers.get(LOCATION).filter(|_| status.is_redirection()) {
            let to = redacted_url(&String::from_utf8_lossy(to.as_bytes()));
            what += &format!(" to {}; redirects are not followed", to.escape_debug());
        } else if !said.is_empty() {
            what += &format!(" ({said})");
        }
        ExportError {
            is_retryable: self.protocol.is_retryable(status),
            retry_after: headers.get(RETRY_AFTER).and_then(retry_after),
            ..self.rejected(&what, status, &said)
        }
    }

    fn rejected(&self, what: &str, status: StatusCode, said: &str) -> ExportError {
        ExportError::rejected(format!("{} {what}{}", self.shown_url(), self.advice(Some(status), said)))
    }

    fn shown_url(&self) -> String {
        redacted_url(self.url.as_str())
    }

    fn advice(&self, status: Option<StatusCode>, cause: &str) -> String {
        let port = self.url.port_or_known_default().unwrap_or_default();
        advice(self.protocol, port, self.url.path(), status.map(|status| status.as_u16()), cause)
    }
}

/// The likely mistake behind a failure, after `; `; empty when none is known.
pub(super) fn advice(protocol: ExportProtocol, port: u16, path: &str, status: Option<u16>, cause: &str) -> String {
    use ExportProtocol::{OtlpGrpc, OtlpHttp, Zipkin};

    let is_otlp = protocol != Zipkin;
    let advice = match (protocol, port, status) {
        // Whatever else it says, these ports explain it.
        (_, _, Some(429 | 500..)) => "",
        (OtlpHttp(_), 4317, _) => "4317 is usually OTLP over gRPC; this is OTLP over HTTP, usually at 4318",
        (OtlpGrpc(_), 4318, _) => "4318 is usually OTLP over HTTP; this is OTLP over gRPC, usually at 4317",
        (OtlpHttp(_), 9411, _) => "9411 is usually Zipkin's port; this is OTLP over HTTP, usually at 4318",
        (OtlpGrpc(_), 9411, _) => "9411 is usually Zipkin's port; this is OTLP over gRPC, usually at 4317",
        (Zipkin, 4317 | 4318, _) => "4317 and 4318 are usually OTLP's ports; this is Zipkin, usually at 9411",
        (_, 16686, _) => "16686 is usually Jaeger's page; it takes OTLP over HTTP at 4318, over gRPC at 4317, and Zipkin at 9411",
        (OtlpHttp(signal), _, Some(404 | 405)) if !path.ends_with(signal.path()) => {
            let (path, name) = (signal.path(), signal.in_variables());
            return format!("; the usual path is {path}, and OTEL_EXPORTER_OTLP_{name}_ENDPOINT is used as it is");
        }
        (Zipkin, _, Some(404 | 405)) if !path.ends_with("/api/v2/spans") => {
            "the usual path is /api/v2/spans, and OTEL_EXPORTER_ZIPKIN_ENDPOINT is used as it is"
        }
        (OtlpHttp(_) | OtlpGrpc(_), _, Some(401 | 403)) => "OTEL_EXPORTER_OTLP_HEADERS holds the credentials",
        _ if cause.contains("InvalidContentType") => "the port does not speak TLS; the URL may have to begin with http://",
        _ if cause.contains("HTTPS server") => "the port speaks TLS; the URL has to begin with https://",
        _ if cause.contains("invalid HTTP version") => {
            "the port does not speak HTTP/1.1; TLS needs https://, and gRPC is another protocol"
        }
        (OtlpGrpc(_), ..)
            if ["invalid size", "broken pipe", "connection closed", "reset"].iter().any(|it| cause.contains(it)) =>
        {
            "a port that always does this does not speak HTTP/2, as gRPC does; TLS needs https://, and http/protobuf is another protocol"
        }
        _ if is_otlp && cause.contains("UnknownIssuer") => "OTEL_EXPORTER_OTLP_CERTIFICATE names the PEM file of the CA to trust",
        _ => "",
    };
    if advice.is_empty() { String::new() } else { format!("; {advice}") }
}

impl ExportProtocol {
    /// Whether a collector that answered with `status` may accept the same spans later. OTLP's specification names the four;
    /// Zipkin's has no rule, and whatever the server's side says of itself may pass.
    fn is_retryable(self, status: StatusCode) -> bool {
        match (self, status.as_u16()) {
            (_, 429 | 502 | 503 | 504) => true,
            (Self::Zipkin, status) => status >= 500 || status == 408,
            (Self::OtlpHttp(_) | Self::OtlpGrpc(_), _) => false,
        }
    }
}

/// Seconds, or a date.
fn retry_after(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    let seconds = text.parse().ok().map(Duration::from_secs);
    seconds.or_else(|| Some(httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).unwrap_or_default()))
}

/// What an error's body says, for a log line: OTLP answers with a `google.rpc.Status`, others with text.
fn shown_message(body: Bytes) -> String {
    let text = match RpcStatus::decode(body.clone()) {
        Ok(status) if !status.message.is_empty() => status.message,
        _ => String::from_utf8(body.into()).unwrap_or_default(),
    };
    shown(&text)
}

/// A text that a collector sent, on one line and not too long.
pub(super) fn shown(text: &str) -> String {
    text.trim().chars().take(MAX_SHOWN).collect::<String>().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::export::zipkin;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn an_answer_says_whether_and_when_to_retry() {
        let cases = [
            ("503 Unavailable\r\nretry-after: 7", Some((true, Some(7)))),
            ("429 Slow\r\nretry-after: Wed, 21 Oct 2015 07:28:00 GMT", Some((true, Some(0)))),
            ("503 Unavailable\r\nretry-after: soon", Some((true, None))),
            ("400 Bad", Some((false, None))),
            ("302 Found\r\nlocation: http://127.0.0.1:9/login", Some((false, None))),
            ("200 OK", None),
        ];
        for (answer, expected) in cases {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://u:s3cret@{}/api/v2/spans?token=s3cret", listener.local_addr().unwrap());
            let server = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 4096];
                let read = stream.read(&mut head).await.unwrap();
                assert!(head[..read].ends_with(b"\r\n\r\n"));
                stream.write_all(format!("HTTP/1.1 {answer}\r\ncontent-length: 2\r\n\r\nok").as_bytes()).await.unwrap();
            };
            let collector = zipkin::collector(&url).unwrap();
            let (result, ()) = tokio::join!(collector.post(Vec::new(), Duration::MAX), server);
            match (result, expected) {
                (Ok(body), None) => assert_eq!(body, "ok"),
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
        let url = format!("http://u:s3cret@{addr}/api/v2/spans?token=s3cret");
        let error = zipkin::collector(&url).unwrap().post(Vec::new(), Duration::MAX).await.unwrap_err();
        assert!(error.reason.contains(&format!("http://{addr}/api/v2/spans")), "{}", error.reason);
        assert!(error.is_retryable && error.reason.contains("refused") && !error.reason.contains("s3cret"), "{}", error.reason);
    }
}
