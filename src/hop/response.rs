//! Bodies with their media type.

use bytes::Bytes;
use http::Response;
use http::header::{self, HeaderValue};

/// A plain text.
pub(crate) fn text(body: impl Into<Bytes>) -> Response<Bytes> {
    typed("text/plain; charset=utf-8", body)
}

/// A body of this media type.
pub(crate) fn typed(content_type: &'static str, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    // This one, four that the exchange writes, and `connection` while it drains. Asked for six, the map grows on the way.
    response.headers_mut().reserve(7);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
