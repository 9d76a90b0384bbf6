//! `Chain/Call` as an HTTP/2 request, and its answer.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use prost::Message as _;
use tonic::Code;

use crate::rpc;
use crate::rpc::chain::CallRequest;
use crate::rpc::status::of_headers;
use crate::upstream::foreign_response::quoted;
use crate::upstream::outcome::{Answer, CallError, RpcAnswer};

static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// A flag for compression and the length.
pub(super) const PREFIX: usize = 5;

/// The body of a call.
pub(crate) fn request(service: u16, body: Bytes) -> Bytes {
    let message = CallRequest { service: Some(service.into()), body, response_bytes: 0 };
    let mut framed = BytesMut::with_capacity(PREFIX + message.encoded_len());
    framed.put_u8(0);
    framed.put_u32(message.encoded_len() as u32);
    // Fails only when the buffer cannot grow.
    let _ = message.encode(&mut framed);
    framed.freeze()
}

/// What a call of gRPC has in place of `accept`. The next hop learns how long this one waits.
pub(super) fn add_headers(headers: &mut HeaderMap, timeout: Duration) {
    headers.remove(header::ACCEPT);
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    if let Ok(timeout) = HeaderValue::try_from(rpc::timeout::format(timeout)) {
        headers.insert(GRPC_TIMEOUT.clone(), timeout);
    }
}

/// The message of a body that is one, without compression.
pub(crate) fn message(body: Bytes) -> Option<Bytes> {
    let length = body.get(1..PREFIX).and_then(|length| length.try_into().ok()).map(u32::from_be_bytes)?;
    (body.first() == Some(&0) && length as usize == body.len() - PREFIX).then(|| body.slice(PREFIX..))
}

/// Reads an answer with the status 200: the status of the call, and the message or the reply in the details of the status.
///
/// # Errors
///
/// [`CallError::NotGrpc`].
pub(super) fn read(answer: &mut Answer, trailers: Option<HeaderMap>) -> Result<(), CallError> {
    let content_type = answer.headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    if !rpc::is_grpc(content_type) {
        return Err(CallError::NotGrpc("its content-type is not application/grpc"));
    }
    let status = trailers.as_ref().and_then(of_headers).or_else(|| of_headers(&answer.headers));
    let status = status.ok_or(CallError::NotGrpc("it has no grpc-status"))?;
    if status.code() == Code::Ok {
        let only = message(std::mem::take(&mut answer.body));
        answer.body = only.ok_or(CallError::NotGrpc("it is not one message without compression"))?;
    } else {
        let (http, reply) = rpc::status::read(&status);
        // A reply that says 200 does not make a failed call a good one.
        answer.status = if http.is_success() { StatusCode::BAD_GATEWAY } else { http };
        answer.body = reply.unwrap_or_default();
    }
    answer.rpc = Some(RpcAnswer { code: status.code(), message: quoted(status.message()) });
    Ok(())
}

/// The code for a call without a status (gRPC's own rules for what ended it).
pub(super) fn code_of(failure: &CallError) -> Code {
    match failure {
        CallError::Timeout(_) => Code::DeadlineExceeded,
        CallError::Rpc(code, _) => *code,
        CallError::Connect(_) | CallError::Broken(_) => Code::Unavailable,
        CallError::TooLarge | CallError::Exhausted(_) => Code::ResourceExhausted,
        CallError::Status(status) => rpc::status::code_of_answer(*status),
        CallError::NotGrpc(_) | CallError::Redirect(..) => Code::Unknown,
        CallError::NoBudget(_) => Code::FailedPrecondition,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::held::{HeldBudgets, HeldKind};

    fn read_answer(
        content_type: &'static str,
        body: &'static [u8],
        trailers: &[(&'static str, &'static str)],
    ) -> Result<Answer, String> {
        let held = HeldBudgets::new([0; 4]).empty(HeldKind::UpstreamAnswer);
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        let mut answer = Answer { status: StatusCode::OK, headers, body: Bytes::from_static(body), rpc: None, held };
        let trailers = trailers.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
        read(&mut answer, Some(trailers.collect())).map_err(|error| error.to_string())?;
        Ok(answer)
    }

    #[test]
    fn an_answer_is_one_message_and_a_status() {
        let ok = &[("grpc-status", "0")][..];
        let answer = read_answer("application/grpc+proto", b"\0\0\0\0\x02ab", ok).unwrap();
        assert_eq!((&answer.body[..], answer.rpc.unwrap().code), (&b"ab"[..], Code::Ok));
        let failed = read_answer("application/grpc", b"", &[("grpc-status", "14"), ("grpc-message", "no%20way%0A")]).unwrap();
        let rpc = failed.rpc.unwrap();
        assert_eq!((failed.status.as_u16(), rpc.code, &*rpc.message), (503, Code::Unavailable, "no way"));
        let odd =
            read_answer("application/grpc", b"", &[("grpc-status", "14"), ("grpc-status-details-bin", "no.base64!")]).unwrap();
        assert_eq!((odd.rpc.unwrap().code, odd.body.len()), (Code::Unavailable, 0));
        for (content_type, body, trailers) in [
            ("text/html", &b"\0\0\0\0\0"[..], ok),
            ("application/grpcx", b"\0\0\0\0\0", ok),
            ("application/grpc", b"\0\0\0\0\0", &[]),
            ("application/grpc", b"", ok),
            ("application/grpc", b"\0\0\0", ok),
            ("application/grpc", b"\x01\0\0\0\0", ok),
            ("application/grpc", b"\0\0\0\0\x01", ok),
            ("application/grpc", b"\0\0\0\0\0\0\0\0\0\0", ok),
        ] {
            assert!(read_answer(content_type, body, trailers).is_err(), "{content_type} {body:?}");
        }
    }
}
