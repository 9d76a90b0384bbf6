//! What a request may ask for: the size of its head and body, and the time of its body.

use std::error::Error as StdError;
use std::time::Duration;

use axum::extract::Request;
use http_body_util::{BodyExt as _, LengthLimitError};
use tower_http::timeout::TimeoutError;

use crate::hop::error::Error;

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

/// Reads the whole body, so that an answer never overtakes it, and discards it: no endpoint uses it.
pub(crate) async fn read_body(request: &mut Request) -> Result<(), Error> {
    let mut body = std::mem::take(request.body_mut());
    while let Some(frame) = body.frame().await {
        frame.map_err(|error| body_error(&error))?;
    }
    Ok(())
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
