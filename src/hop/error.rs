//! The ways a request fails, and the only place where a failure becomes a response.

use axum::response::{IntoResponse, Response as AxumResponse};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use tonic::{Code, Status};

use crate::hop::observed_body::HopBody;
use crate::rpc::status::{code_of, loop_detected};
use crate::rpc::{CONTENT_TYPE, is_grpc};
use crate::system::held::HeldKind;

/// A failure of ours, answered as `application/problem+json` (RFC 9457).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Error {
    /// 403: the caller presented no certificate where one is required.
    CertificateRequired,
    /// 404: no such path.
    NotFound,
    /// 405: the path is there, the method is not. The router adds `Allow`.
    MethodNotAllowed,
    /// 408: the request body was not received in time.
    RequestTimeout,
    /// 413: the request's body is too large.
    ContentTooLarge,
    /// 431: the request's head is too large.
    HeadTooLarge,
    /// 400: what came is not HTTP.
    BadRequest,
    /// 400: a parameter of the query has no value that is accepted.
    BadQuery,
    /// 400: a stream of another length than it may have.
    BadStream,
    /// 403: a web page of another origin asks for a WebSocket.
    ForeignOrigin,
    /// 426: the path is a WebSocket, and the request does not ask for one.
    UpgradeRequired,
    /// 415: the path is a method of gRPC, and the request is none.
    NotGrpc,
    /// 501: a method of gRPC that has one message was called with more (gRPC, "Status codes").
    MessageCount,
    /// 504: the caller's `grpc-timeout` has passed.
    DeadlineExceeded,
    /// 500: a panic.
    Internal,
    /// 503: more than the hop takes at once.
    Shed(ShedReason),
    /// 508: the request has passed more hops than it may.
    LoopDetected,
}

/// Why a request is shed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShedReason {
    /// More requests in flight than `--max-concurrency`.
    Concurrency,
    /// More streams than their share of it.
    Streams,
    /// A budget of bytes that are held for others is used up.
    Held(HeldKind),
}

/// What a stream may be.
const BAD_STREAM: &str = "count is a number from 1 to 10000 and interval a duration, as in count=3 and interval=200ms (interval_ms over gRPC); the whole stream takes an hour at most.";

impl ShedReason {
    /// The `reason` label of the metric.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Concurrency => "concurrency",
            Self::Streams => "streams",
            Self::Held(kind) => kind.as_str(),
        }
    }
}

impl Error {
    /// Status and `detail`.
    pub(crate) fn parts(self) -> (StatusCode, &'static str) {
        match self {
            Self::CertificateRequired => (
                StatusCode::FORBIDDEN,
                "A client certificate is needed here (--tls-client-ca); only /healthz, /readyz and grpc.health.v1 answer without one.",
            ),
            Self::NotFound => (
                StatusCode::NOT_FOUND,
                "There is no such path here. The hop answers /, /hello, /hello/<who>, /service<N> (N from 0 to 9999), /stream, /ws, /headers, /healthz, /readyz and /metrics.",
            ),
            Self::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, "This path does not answer this method; Allow lists those that it answers.")
            }
            Self::RequestTimeout => (StatusCode::REQUEST_TIMEOUT, "The request body was not received within 10 s."),
            Self::ContentTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "The request's body is larger than 64 KiB."),
            Self::HeadTooLarge => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "The request's head is larger than 32 KiB or has more than 100 fields.",
            ),
            Self::BadRequest => {
                (StatusCode::BAD_REQUEST, "The request is not valid HTTP, or another server could read it differently.")
            }
            Self::BadQuery => (
                StatusCode::BAD_REQUEST,
                "The query is not understood: format is json or text; bytes is a size up to 1MiB, as in bytes=100000 or bytes=64KiB.",
            ),
            Self::BadStream => (StatusCode::BAD_REQUEST, BAD_STREAM),
            Self::ForeignOrigin => (
                StatusCode::FORBIDDEN,
                "A web page may open a WebSocket only of the host that it comes from: Origin and Host differ.",
            ),
            Self::UpgradeRequired => (
                StatusCode::UPGRADE_REQUIRED,
                "This path is a WebSocket: GET over HTTP/1.1 with Connection: Upgrade, Upgrade: websocket and Sec-WebSocket-Version: 13.",
            ),
            Self::NotGrpc => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "This path is a method of gRPC: HTTP/2 with content-type application/grpc. Over HTTP the chain is /service<N>.",
            ),
            Self::MessageCount => (StatusCode::NOT_IMPLEMENTED, "This method has one message, and more were sent."),
            Self::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, "The time that the caller's grpc-timeout allows has passed."),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "The hop failed while it answered; the reason is in its log."),
            Self::Shed(ShedReason::Concurrency) => {
                (StatusCode::SERVICE_UNAVAILABLE, "The hop has as many requests in flight as --max-concurrency allows.")
            }
            Self::Shed(ShedReason::Streams) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "The hop has as many streams as it may have: an eighth of --max-concurrency, beside its requests.",
            ),
            Self::Shed(ShedReason::Held(_)) => {
                (StatusCode::SERVICE_UNAVAILABLE, "The hop holds as many bytes of answers and bodies as its memory limit allows.")
            }
            Self::LoopDetected => (
                StatusCode::LOOP_DETECTED,
                "The request has passed as many hops as --max-hops allows: the chain probably calls itself.",
            ),
        }
    }

    /// The error whose `detail` this is.
    pub(crate) fn of_detail(detail: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|error| detail.ends_with(error.parts().1))
    }

    /// One of each `detail`.
    const ALL: [Self; 19] = [
        Self::CertificateRequired,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::ContentTooLarge,
        Self::HeadTooLarge,
        Self::BadRequest,
        Self::BadQuery,
        Self::BadStream,
        Self::ForeignOrigin,
        Self::UpgradeRequired,
        Self::NotGrpc,
        Self::MessageCount,
        Self::DeadlineExceeded,
        Self::Internal,
        Self::Shed(ShedReason::Concurrency),
        Self::Shed(ShedReason::Streams),
        Self::Shed(ShedReason::Held(HeldKind::Answer)),
        Self::LoopDetected,
    ];

    /// The problem document.
    pub(crate) fn problem(self) -> String {
        let (status, detail) = self.parts();
        let title = status.canonical_reason().unwrap_or_default();
        format!("{{\"type\":\"about:blank\",\"title\":\"{title}\",\"status\":{},\"detail\":\"{detail}\"}}", status.as_u16())
    }

    /// The answer.
    pub(crate) fn response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(self.problem()));
        *response.status_mut() = self.parts().0;
        response.extensions_mut().insert(self);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        match self {
            Self::Shed(_) => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Self::UpgradeRequired => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            }
            // The request was answered before all of it was read: what follows on the connection is no request.
            Self::NotGrpc | Self::BadRequest | Self::RequestTimeout | Self::ContentTooLarge | Self::HeadTooLarge => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

impl Error {
    /// The gRPC status.
    pub(crate) fn status(self) -> Status {
        let (status, detail) = self.parts();
        match self {
            Self::LoopDetected => loop_detected(&format!("loop detected: {detail}")),
            Self::NotFound => Status::unimplemented("There is no such method here; server reflection lists those that are."),
            _ => Status::new(code_of(status), detail),
        }
    }
}

/// The answer to a call of gRPC, and its status: what is no answer of gRPC becomes a status alone.
pub(crate) fn grpc_answer<B>(response: Response<HopBody<B>>) -> (Response<HopBody<B>>, Code) {
    let content_type = response.headers().get(header::CONTENT_TYPE);
    if content_type.is_some_and(|content_type| is_grpc(content_type.as_bytes())) {
        // Without it in the head, it comes in the trailers: those of a call that went well.
        let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
        return (response, code);
    }
    let error = response.extensions().get::<Error>();
    let status = match error {
        Some(error) => error.status(),
        None => Status::new(code_of(response.status()), response.status().canonical_reason().unwrap_or_default()),
    };
    let mut response = Response::new(HopBody::Left(Full::default()));
    let _ = status.add_header(response.headers_mut());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    (response, status.code())
}

impl IntoResponse for Error {
    fn into_response(self) -> AxumResponse {
        self.response().into_response()
    }
}

pub(crate) use crate::text::PROBLEM_JSON;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_valid_json_with_its_status() {
        for error in Error::ALL {
            let problem: serde_json::Value = serde_json::from_str(&error.problem()).unwrap();
            assert_eq!(problem["status"], error.parts().0.as_u16());
            assert_ne!(problem["title"], "");
            assert_eq!(Error::of_detail(problem["detail"].as_str().unwrap()).map(Error::parts), Some(error.parts()));
            // Over gRPC it stands behind the name of the code.
            assert!(error == Error::NotFound || Error::of_detail(error.status().message()).is_some(), "{error:?}");
        }
    }
}
