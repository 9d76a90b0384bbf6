//! What a request may ask for: the size of its head and body, the time of its body, a place among the requests in flight.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, HttpBody as _};
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::{BodyExt as _, LengthLimitError};
use tower_http::timeout::TimeoutError;

use crate::hop::error::Error;
use crate::hop::exchange::Exchange;
use crate::hop::state::Node;

/// The fixed limits of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimits {
    /// Bytes of a request head, line ends included. hyper's own limit is above it.
    pub head_bytes: usize,
    /// Fields of a request head. hyper's own limit is above it.
    pub head_fields: usize,
    /// Bytes of a request body.
    pub body_bytes: usize,
    /// How long after its head a request body must be complete.
    pub body_timeout: Duration,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self { head_bytes: 32 << 10, head_fields: 100, body_bytes: 64 << 10, body_timeout: Duration::from_secs(10) }
    }
}

/// The layer around every endpoint that is limited: sheds what is too much at once, then reads the body.
pub(crate) async fn admit(
    State(node): State<Arc<Node>>,
    Extension(exchange): Extension<Arc<Exchange>>,
    route: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Result<Response, Error> {
    exchange.set_route(route);
    exchange.require_certificate()?;
    let _permit = node.permits.try_acquire().map_err(|_| Error::Overloaded)?;
    Ok(next.run(read_body(request).await?).await)
}

/// The layer around probes: they are answered to everybody, never limited and never traced.
pub(crate) async fn exempt(
    Extension(exchange): Extension<Arc<Exchange>>,
    route: MatchedPath,
    request: Request,
    next: Next,
) -> Result<Response, Error> {
    exchange.set_route(Some(route));
    exchange.disable_tracing();
    Ok(next.run(read_body(request).await?).await)
}

/// The layer around what a probe may see and an anonymous caller may not.
pub(crate) async fn require_certificate(
    Extension(exchange): Extension<Arc<Exchange>>,
    request: Request,
    next: Next,
) -> Result<Response, Error> {
    exchange.require_certificate()?;
    Ok(next.run(request).await)
}

/// Reads the whole body, so that an answer never overtakes it. Nearly every request has none.
async fn read_body(request: Request) -> Result<Request, Error> {
    if request.body().is_end_stream() {
        return Ok(request);
    }
    let (head, body) = request.into_parts();
    // Boxed, because its size would be every request's.
    let body = Box::pin(body.collect()).await.map_err(|error| body_error(&error))?;
    Ok(Request::from_parts(head, Body::from(body.to_bytes())))
}

/// Which limit ended the body. Without one it was broken off or malformed.
fn body_error(error: &(dyn StdError + 'static)) -> Error {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            return Error::ContentTooLarge;
        }
        if error.is::<TimeoutError>() {
            return Error::RequestTimeout;
        }
        cause = error.source();
    }
    Error::BadRequest
}
