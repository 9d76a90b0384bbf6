//! A collector over gRPC: what is sent, what its status means, and whether it may be sent again.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use http::header::{CONTENT_TYPE, HeaderMap};
use http::uri::PathAndQuery;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use prost::Message as _;
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tower::BoxError;
use tower_service::Service;

use super::http::{MAX_ANSWER, advice, shown};
use super::{ExportError, ExportProtocol, ExporterError, OtlpOptions, Signal};
use crate::net::grpc::BytesCodec;
use crate::net::hosts::{port_of, redacted_url};
use crate::rpc::status::{RpcStatus, code_of_answer, drop_unreadable_details, name};
use crate::text::causes;

/// Where one signal is sent to.
#[derive(Debug)]
pub(super) struct GrpcCollector {
    origin: Uri,
    connector: HttpsConnector<HttpConnector>,
    client: Mutex<Http2Client>,
    signal: Signal,
    path: PathAndQuery,
    metadata: MetadataMap,
    gzip: bool,
    timeout: Duration,
}

impl GrpcCollector {
    /// # Errors
    ///
    /// The endpoint is no URL.
    pub(super) fn new(signal: Signal, options: OtlpOptions, headers: HeaderMap) -> Result<Self, ExporterError> {
        let OtlpOptions { endpoint, timeout, gzip, tls, .. } = options;
        let invalid = || ExporterError::Endpoint(redacted_url(&endpoint));
        let origin = endpoint.parse::<Uri>().map_err(|_| invalid())?;
        let (Some(scheme), Some(authority)) = (origin.scheme(), origin.authority()) else { return Err(invalid()) };
        // A path means nothing here.
        let origin = Uri::builder().scheme(scheme.clone()).authority(authority.clone()).path_and_query("/").build();
        let origin = origin.map_err(|_| invalid())?;
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(timeout));
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls.config()).https_or_http().enable_http2().wrap_connector(http);
        Ok(Self {
            origin,
            client: Mutex::new(http2_client(connector.clone())),
            connector,
            signal,
            path: PathAndQuery::from_static(signal.grpc_path()),
            metadata: MetadataMap::from_headers(headers),
            gzip,
            timeout,
        })
    }

    /// Sends `body` and returns the message of the answer, in at most `limit` or the own timeout: the shorter of the two, so that
    /// a dead connection is replaced.
    pub(super) async fn export(&self, body: Vec<u8>, limit: Duration) -> Result<Bytes, ExportError> {
        let timeout = limit.min(self.timeout);
        let answered = Arc::new(AtomicBool::new(false));
        let client = self.client.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let channel = Channel { client, answered: answered.clone() };
        let mut client = tonic::client::Grpc::with_origin(channel, self.origin.clone())
            .max_decoding_message_size(MAX_ANSWER)
            .accept_compressed(CompressionEncoding::Gzip);
        if self.gzip {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        let mut request = tonic::Request::new(Bytes::from(body));
        *request.metadata_mut() = self.metadata.clone();
        request.set_timeout(timeout);
        match tokio::time::timeout(timeout, client.unary(request, self.path.clone(), BytesCodec)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.error(&status, answered.load(Ordering::Relaxed))),
            Err(_) => {
                // The connection may be dead without a sign of it: the next attempt is not made on it.
                *self.client.lock().unwrap_or_else(PoisonError::into_inner) = http2_client(self.connector.clone());
                Err(self.unreachable(&format!("no answer in {timeout:?}")))
            }
        }
    }

    /// What a status means: the collector's, or tonic's own.
    fn error(&self, status: &Status, is_answer: bool) -> ExportError {
        // tonic's for a message that is longer than the limit. The collector has what it was sent.
        let mut is_too_long = status.code() == Code::OutOfRange && !is_answer;
        let mut cause = std::error::Error::source(status);
        while let Some(error) = cause {
            if let Some(Unreachable(cause)) = error.downcast_ref() {
                return self.unreachable(cause);
            }
            is_too_long |= error.is::<LengthLimitError>();
            cause = error.source();
        }
        if is_too_long {
            let url = self.shown_url();
            return ExportError::rejected(format!("{url} answered with more than {MAX_ANSWER} bytes{}", self.advice(None, "")));
        }
        let retry_after = retry_info(status.details());
        let is_retryable = match status.code() {
            Code::Cancelled | Code::DeadlineExceeded | Code::Aborted | Code::OutOfRange | Code::Unavailable | Code::DataLoss => {
                true
            }
            // Without a word about when, the limit is none that time heals.
            Code::ResourceExhausted => retry_after.is_some(),
            _ => false,
        };
        let http = match status.code() {
            Code::Unauthenticated => Some(401),
            Code::PermissionDenied => Some(403),
            Code::Unimplemented => Some(404),
            _ if is_retryable => Some(503),
            _ => None,
        };
        let message = shown(status.message());
        let what = if message.is_empty() { String::new() } else { format!(" ({message})") };
        let reason = format!("{} answered {}{what}{}", self.shown_url(), name(status.code()), self.advice(http, &message));
        ExportError { is_retryable, retry_after, reason }
    }

    fn unreachable(&self, cause: &str) -> ExportError {
        let reason = format!("{}: {cause}{}", self.shown_url(), self.advice(None, cause));
        ExportError { is_retryable: true, retry_after: None, reason }
    }

    fn advice(&self, status: Option<u16>, cause: &str) -> String {
        advice(ExportProtocol::OtlpGrpc(self.signal), port_of(&self.origin), "", status, cause)
    }

    /// The service is the signal's, and not of interest.
    fn shown_url(&self) -> String {
        format!("{} (gRPC)", redacted_url(&self.origin.to_string()).trim_end_matches('/'))
    }
}

/// How long to wait, as a `google.rpc.RetryInfo` among the details of a `google.rpc.Status` says.
fn retry_info(details: &[u8]) -> Option<Duration> {
    #[derive(prost::Message)]
    struct RetryInfo {
        #[prost(message, tag = "1")]
        retry_delay: Option<ProtobufDuration>,
    }
    #[derive(prost::Message)]
    struct ProtobufDuration {
        #[prost(int64, tag = "1")]
        seconds: i64,
        #[prost(int32, tag = "2")]
        nanos: i32,
    }
    let details = RpcStatus::decode(details).ok()?.details;
    let info = details.into_iter().find(|detail| detail.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(info.value).ok()?.retry_delay.unwrap_or_default();
    let (seconds, nanos) = (u64::try_from(delay.seconds).unwrap_or(0), u32::try_from(delay.nanos).unwrap_or(0));
    Some(Duration::from_secs(seconds) + Duration::from_nanos(nanos.into()))
}

type Http2Client = Client<HttpsConnector<HttpConnector>, Body>;

fn http2_client(connector: HttpsConnector<HttpConnector>) -> Http2Client {
    Client::builder(TokioExecutor::new()).http2_only(true).build(connector)
}

/// There was no whole answer; holds why.
#[derive(Debug)]
struct Unreachable(String);

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreachable {}

/// The client as tonic needs it: answers that tonic would misread, or panic at, do not reach it.
struct Channel {
    client: Http2Client,
    /// The collector has sent a status.
    answered: Arc<AtomicBool>,
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.client.request(request);
        let answered = self.answered.clone();
        async move {
            let mut answer = answer.await.map_err(|error| Unreachable(causes(&error)))?;
            if !answer.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
                return Err(Box::new(no_grpc(answer.status())) as BoxError);
            }
            drop_unreadable_details(answer.headers_mut());
            answered.store(answer.headers().contains_key(Status::GRPC_STATUS), Ordering::Relaxed);
            Ok(answer.map(|body| {
                let body = Limited::new(body, MAX_ANSWER).map_err(|error| match error.is::<LengthLimitError>() {
                    true => error,
                    false => Unreachable(causes(&*error)).into(),
                });
                Body::new(body.map_frame(move |mut frame| {
                    if let Some(trailers) = frame.trailers_mut() {
                        drop_unreadable_details(trailers);
                        answered.store(true, Ordering::Relaxed);
                    }
                    frame
                }))
            }))
        }
        .boxed()
    }
}

/// What an answer that is none of gRPC means.
fn no_grpc(status: StatusCode) -> Status {
    Status::new(code_of_answer(status), format!("HTTP {status}, which is no answer of gRPC"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_info_is_found_among_the_details_of_a_status() {
        // google.rpc.Status { details: [DebugInfo, RetryInfo { retry_delay: 1.5 s }] }
        let any = |kind: &str, value: &[u8]| {
            let url = format!("type.googleapis.com/google.rpc.{kind}");
            let mut any = vec![0x0a, url.len() as u8];
            any.extend_from_slice(url.as_bytes());
            any.extend_from_slice(&[0x12, value.len() as u8]);
            any.extend_from_slice(value);
            [&[0x1a, any.len() as u8], &*any].concat()
        };
        let delay = [0x0a, 8, 0x08, 1, 0x10, 0x80, 0xca, 0xb5, 0xee, 0x01];
        let info = any("RetryInfo", &delay);
        assert_eq!(retry_info(&[any("DebugInfo", b""), info.clone()].concat()), Some(Duration::from_millis(1500)));
        assert_eq!(retry_info(&any("RetryInfo", b"")), Some(Duration::ZERO));
        assert_eq!([retry_info(&any("DebugInfo", b"")), retry_info(b""), retry_info(&info[..9])], [None; 3]);
    }
}
