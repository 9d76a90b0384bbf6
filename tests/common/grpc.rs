//! A gRPC server's side of one call, byte by byte: it can answer what no library would.

use std::io::Read as _;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;

/// The message of a request; `None` when it is not one whole message.
pub fn message(headers: &HeaderMap, body: &[u8]) -> Option<Vec<u8>> {
    let (prefix, message) = body.split_at_checked(5)?;
    if usize::try_from(u32::from_be_bytes(prefix[1..].try_into().ok()?)).ok()? != message.len() {
        return None;
    }
    if prefix[0] == 0 {
        return Some(message.to_vec());
    }
    assert_eq!(headers["grpc-encoding"], "gzip");
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(message).read_to_end(&mut plain).ok()?;
    Some(plain)
}

fn framed(length: u32, message: &[u8]) -> Bytes {
    [&[0], &length.to_be_bytes()[..], message].concat().into()
}

fn response(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

/// An answer with a message.
pub fn ok(message: &[u8]) -> Response {
    announced(u32::try_from(message.len()).unwrap(), message)
}

/// An answer with a message that is said to have so many bytes.
pub fn announced(length: u32, message: &[u8]) -> Response {
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
    let frames = [hyper::body::Frame::data(framed(length, message)), hyper::body::Frame::trailers(trailers)];
    let frames = frames.map(Ok::<_, std::io::Error>);
    response(Body::new(http_body_util::StreamBody::new(futures_util::stream::iter(frames))))
}

/// A status without a message, in the head or in trailers; `details` as they are written in the header.
pub fn failed(code: u16, message: &str, details: Option<&str>, is_late: bool) -> Response {
    let fields = [("grpc-status", code.to_string()), ("grpc-message", message.to_owned())];
    let details = details.map(|details| ("grpc-status-details-bin", details.to_owned()));
    let fields = fields.into_iter().chain(details);
    let status: HeaderMap = fields.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
    if is_late {
        let frame = Ok::<_, std::io::Error>(hyper::body::Frame::trailers(status));
        return response(Body::new(http_body_util::StreamBody::new(futures_util::stream::iter([frame]))));
    }
    let mut response = response(Body::empty());
    response.headers_mut().extend(status);
    response
}

/// Half a message, then the stream is reset.
pub fn dies() -> Response {
    let frames = [Ok(hyper::body::Frame::data(Bytes::from_static(b"\0\0\0\0\x09x"))), Err(std::io::Error::other("dies"))];
    response(Body::new(http_body_util::StreamBody::new(futures_util::stream::iter(frames))))
}
