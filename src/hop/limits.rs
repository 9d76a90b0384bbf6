//! What a request may ask for: a place among those in flight, and a body of limited size and time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::hop::error::Error;
use crate::hop::route::Route;
use crate::hop::state::Node;

/// The largest request head; hyper's own limit is above it.
pub(crate) const MAX_HEAD: usize = 32 << 10;
/// How many header fields a head may have; hyper's own limit is above it.
pub(crate) const MAX_FIELDS: usize = 100;
/// The largest request body. No endpoint reads one; it is only taken off the connection.
const MAX_BODY: usize = 64 << 10;
/// How long after its head a body must be whole.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// A place among the requests in flight; given back on drop.
pub(crate) struct Permit(Option<Arc<Node>>);

impl Permit {
    /// Errors: [`Error::Overloaded`], at once, when every place is taken. Probes and scrapes need none.
    pub(crate) fn acquire(node: &Arc<Node>, route: Route) -> Result<Self, Error> {
        if route.is_ops() {
            return Ok(Self(None));
        }
        let permit = Self(Some(node.clone()));
        if node.in_flight.fetch_add(1, Ordering::Relaxed) >= node.max_concurrency {
            return Err(Error::Overloaded);
        }
        Ok(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(node) = &self.0 {
            node.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Takes the request's body off the connection, so that an answer never overtakes it. Nearly every request has none.
pub(crate) async fn take_body(body: &mut Incoming) -> Result<(), Error> {
    if body.is_end_stream() {
        return Ok(());
    }
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(Error::ContentTooLarge);
    }
    // Boxed, because its size would be every request's.
    let taken = tokio::time::timeout(BODY_TIMEOUT, thrown_away(body));
    Box::pin(taken).await.unwrap_or(Err(Error::RequestTimeout))
}

/// Reads a body to its end and keeps nothing of it.
async fn thrown_away(body: &mut Incoming) -> Result<(), Error> {
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        // Broken off or malformed: there is nobody to tell, or hyper tells.
        let frame = frame.map_err(|_| Error::BadRequest)?;
        // Trailers are bounded by hyper.
        length += frame.data_ref().map_or(0, bytes::Bytes::len);
        if length > MAX_BODY {
            return Err(Error::ContentTooLarge);
        }
    }
    Ok(())
}
