//! gRPC statuses: their HTTP counterparts, their names, and the details that carry the reply of a failed call.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode};
use prost::Message as _;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use crate::rpc::chain::Reply;

/// The most bytes of details: in base64 they have 7.5 KiB, and with the other metadata 8 KiB, which gRPC's C core takes at least.
pub(crate) const MAX_DETAILS: usize = 5632;

const REPLY_TYPE: &str = "type.googleapis.com/httpserver.v1.Reply";
const ERROR_TYPE: &str = "type.googleapis.com/google.rpc.ErrorInfo";
/// The reason of an [`ErrorInfo`]: the chain calls itself, 508.
const LOOP: &str = "LOOP_DETECTED";

const DETAILS: &str = "grpc-status-details-bin";

/// Removes details that are no base64: at them `Status::from_header_map` panics.
pub(crate) fn drop_unreadable_details(headers: &mut HeaderMap) {
    let Some(details) = headers.get(DETAILS) else { return };
    let only = HeaderMap::from_iter([(HeaderName::from_static(DETAILS), details.clone())]);
    if MetadataMap::from_headers(only).get_bin(DETAILS).is_none_or(|details| details.to_bytes().is_err()) {
        headers.remove(DETAILS);
    }
}

/// The status of trailers, or of a head. Details that are no base64 count as absent.
pub(crate) fn of_headers(headers: &HeaderMap) -> Option<Status> {
    if !headers.contains_key(DETAILS) {
        return Status::from_header_map(headers);
    }
    let mut readable = headers.clone();
    drop_unreadable_details(&mut readable);
    Status::from_header_map(&readable)
}

/// The code for an answer that is none of gRPC (gRPC, "HTTP to gRPC Status Code Mapping").
pub(crate) fn code_of_answer(status: StatusCode) -> Code {
    match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502..=504 => Code::Unavailable,
        _ => Code::Unknown,
    }
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
    #[prost(message, repeated, tag = "3")]
    pub(crate) details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Any {
    #[prost(string, tag = "1")]
    pub(crate) type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) value: Bytes,
}

/// `google.rpc.ErrorInfo`.
#[derive(Clone, PartialEq, prost::Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
}

/// The code for an HTTP status: the table of `google.rpc.Code`, and for statuses that it does not have the nearest one.
pub(crate) fn code_of(status: StatusCode) -> Code {
    match status.as_u16() {
        200..=299 => Code::Ok,
        400 => Code::InvalidArgument,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::NotFound,
        405 | 415 | 501 => Code::Unimplemented,
        408 | 504 => Code::DeadlineExceeded,
        409 => Code::Aborted,
        413 | 429 | 431 => Code::ResourceExhausted,
        499 => Code::Cancelled,
        502 | 503 => Code::Unavailable,
        508 | 412 => Code::FailedPrecondition,
        500..=599 => Code::Internal,
        _ => Code::Unknown,
    }
}

/// The HTTP status for a code, where the details name none.
pub(crate) fn http_status(code: Code) -> StatusCode {
    let status = match code {
        Code::Ok => 200,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
        Code::Unauthenticated => 401,
        Code::PermissionDenied => 403,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted => 409,
        Code::ResourceExhausted => 429,
        Code::Cancelled => 499,
        Code::Unknown | Code::Internal | Code::DataLoss => 500,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::DeadlineExceeded => 504,
    };
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// `rpc.response.status_code`.
pub(crate) fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Whether a server span with this code is an error (semantic conventions for gRPC).
pub(crate) fn is_server_error(code: Code) -> bool {
    use Code::{DataLoss, DeadlineExceeded, Internal, Unavailable, Unimplemented, Unknown};
    matches!(code, Unknown | DeadlineExceeded | Unimplemented | Internal | Unavailable | DataLoss)
}

/// A status whose details are the reply; `None` when it is too large.
pub(crate) fn with_reply(code: Code, message: &str, reply: &Reply) -> Option<Status> {
    let any = Any { type_url: REPLY_TYPE.to_owned(), value: reply.encode_to_vec().into() };
    let details = RpcStatus { code: code as i32, message: message.to_owned(), details: vec![any] }.encode_to_vec();
    (details.len() <= MAX_DETAILS).then(|| Status::with_details(code, message, details.into()))
}

/// The status of a loop.
pub(crate) fn loop_detected(message: &str) -> Status {
    let code = code_of(StatusCode::LOOP_DETECTED);
    let info = ErrorInfo { reason: LOOP.to_owned(), domain: "httpserver".to_owned() };
    let any = Any { type_url: ERROR_TYPE.to_owned(), value: info.encode_to_vec().into() };
    let details = RpcStatus { code: code as i32, message: message.to_owned(), details: vec![any] };
    Status::with_details(code, message, details.encode_to_vec().into())
}

/// The HTTP status of a status, and the reply in its details, encoded.
pub(crate) fn read(status: &Status) -> (StatusCode, Option<Bytes>) {
    let details = RpcStatus::decode(status.details()).map(|status| status.details).unwrap_or_default();
    for any in details {
        if any.type_url == REPLY_TYPE
            && let Ok(reply) = Reply::decode(any.value.clone())
            && let Some(known) = u16::try_from(reply.status).ok().and_then(|status| StatusCode::from_u16(status).ok())
        {
            return (known, Some(any.value));
        }
        if any.type_url == ERROR_TYPE && ErrorInfo::decode(any.value).is_ok_and(|info| info.reason == LOOP) {
            return (StatusCode::LOOP_DETECTED, None);
        }
    }
    (http_status(status.code()), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_status_that_leads_back_to_an_error() {
        for code in (0..17).map(Code::from_i32) {
            let status = http_status(code);
            assert_eq!(code == Code::Ok, status.is_success(), "{code:?}");
            assert_eq!(code == Code::Ok, code_of(status) == Code::Ok, "{code:?}");
        }
        for status in (400..600).filter_map(|status| StatusCode::from_u16(status).ok()) {
            assert_ne!(code_of(status), Code::Ok, "{status}");
        }
        for (status, code) in [(503, Code::Unavailable), (504, Code::DeadlineExceeded), (429, Code::ResourceExhausted)] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!((code_of(status), http_status(code)), (code, status));
        }
    }

    #[test]
    fn details_carry_a_reply_or_a_loop_and_have_a_bound() {
        let mut reply = Reply { service: "a".to_owned(), status: 502, ..Reply::default() };
        let status = with_reply(Code::Unavailable, "m", &reply).unwrap();
        let (http, read_reply) = read(&status);
        assert_eq!((http.as_u16(), Reply::decode(read_reply.unwrap()).unwrap().service), (502, "a".to_owned()));
        reply.message = "x".repeat(MAX_DETAILS);
        assert!(with_reply(Code::Unavailable, "m", &reply).is_none());
        assert_eq!(read(&loop_detected("m")).0, StatusCode::LOOP_DETECTED);
        assert_eq!(read(&Status::with_details(Code::Aborted, "", Bytes::from_static(b"\xff\xff"))).0.as_u16(), 409);
    }

    #[test]
    fn details_that_are_no_base64_are_dropped() {
        for (text, stays) in [("AAEC", true), ("AAE", true), ("AAE=", true), ("A", false), ("%%%%", false), ("A\u{fc}", false)] {
            let mut headers = HeaderMap::from_iter([(
                HeaderName::from_static(DETAILS),
                http::HeaderValue::from_bytes(text.as_bytes()).unwrap(),
            )]);
            headers.insert("grpc-status", http::HeaderValue::from_static("14"));
            assert_eq!(of_headers(&headers).unwrap().code(), Code::Unavailable);
            drop_unreadable_details(&mut headers);
            assert_eq!(Status::from_header_map(&headers).unwrap().code(), Code::Unavailable);
            assert_eq!(headers.len() == 2, stays, "{text}");
        }
    }
}
