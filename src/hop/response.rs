//! Answers with their media type.

use axum::body::Body;
use axum::response::Response;
use http::header::{self, HeaderValue};

/// A plain text.
pub(crate) fn text(body: impl Into<Body>) -> Response {
    typed("text/plain; charset=utf-8", body)
}

/// A body of this media type.
pub(crate) fn typed(content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    // This one, the length, four that the exchange writes, and `connection` while it drains: with a smaller map it grows.
    response.headers_mut().reserve(8);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
