//! What is posted to the store, in either format: decompressed, bounded in size, time and number.

use axum::body::Body;
use axum::extract::Request;
use axum::routing::MethodRouter;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::BodyExt as _;
use std::time::Duration;
use tokio::sync::SemaphorePermit;
use tower_http::decompression::RequestDecompressionLayer;

use crate::demo::store::Store;
use crate::traces::DecodeError;

/// Bytes of one posted batch after decompression. A batch of our own exporter is some 0.5 MiB at most.
pub const MAX_BODY: usize = 4 << 20;

/// How much of a body that is too large is read and discarded before its connection is given up.
const MAX_DISCARDED: usize = 64 << 20;

/// How many batches are read and decoded at once; more wait with nothing but their head in memory.
pub const MAX_POSTS: usize = 16;

/// How long a batch may take to arrive after its head, so that silent senders do not occupy all the places.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a batch is refused.
pub(super) type BatchRefusal = (StatusCode, String);

/// Decompresses what is posted. A body in another encoding reaches the handler as it is, which refuses it in words.
pub(super) fn posted(route: MethodRouter<Store>) -> MethodRouter<Store> {
    route
        .layer(RequestDecompressionLayer::new().pass_through_unaccepted(true))
        .layer(axum::middleware::map_request(plain_encoding))
}

/// Writes the names of encodings as `RequestDecompressionLayer` expects them: it knows no other case, and not `x-gzip`.
async fn plain_encoding(mut request: Request) -> Request {
    if let Some(encoding) = request.headers().get(header::CONTENT_ENCODING).and_then(|value| value.to_str().ok()) {
        let name = encoding.trim().to_ascii_lowercase();
        let name = if name == "x-gzip" { "gzip" } else { &name };
        if let Ok(value) = HeaderValue::from_str(name) {
            request.headers_mut().insert(header::CONTENT_ENCODING, value);
        }
    }
    request
}

/// A posted body, and the place that it has among those that are read at once.
pub(super) async fn receive<'a>(
    store: &'a Store,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Vec<u8>, SemaphorePermit<'a>), BatchRefusal> {
    let place = store.post_permit().await.ok_or((StatusCode::SERVICE_UNAVAILABLE, "closed".into()))?;
    let late = |_| (StatusCode::REQUEST_TIMEOUT, format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs()));
    let body = tokio::time::timeout(BODY_TIMEOUT, read(body)).await.map_err(late)??;
    require_plain(headers)?;
    Ok((body, place))
}

/// Why a body was not decoded. `what` was expected.
pub(super) fn refusal(error: &DecodeError, what: &str) -> BatchRefusal {
    match error {
        DecodeError::TooMany(_) | DecodeError::TooLarge => {
            (StatusCode::PAYLOAD_TOO_LARGE, format!("a batch has {error}; send several smaller ones"))
        }
        DecodeError::Invalid(why) => (StatusCode::BAD_REQUEST, format!("not {what}: {why}")),
    }
}

/// The whole decompressed body. `RequestBodyLimitLayer` would answer at once and close the connection on a sender that is still
/// writing, which loses it the answer; so the rest of a body that is too large is read for a while and discarded.
async fn read(mut body: Body) -> Result<Vec<u8>, BatchRefusal> {
    let (mut kept, mut length) = (Vec::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| (StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length <= MAX_BODY {
            kept.extend_from_slice(&data);
        } else if length <= MAX_DISCARDED {
            kept = Vec::new();
        } else {
            break;
        }
    }
    if length > MAX_BODY {
        let message = format!("a batch may have {MAX_BODY} bytes; send several smaller ones");
        return Err((StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    Ok(kept)
}

/// Refuses an encoding that was not decompressed on the way here.
fn require_plain(headers: &HeaderMap) -> Result<(), BatchRefusal> {
    match headers.get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"" | b"identity") => Ok(()),
        Some(_) => {
            Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "this store takes bodies as they are or with content-encoding: gzip".into()))
        }
    }
}
