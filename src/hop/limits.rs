//! What a request may ask for: the size of its head and body, and the time of its body.

use std::time::Duration;

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
        Self { head_bytes: 32 << 10, head_fields: 100, body_bytes: MAX_BODY, body_timeout: Duration::from_secs(10) }
    }
}

/// The largest body of a request.
pub(crate) const MAX_BODY: usize = 64 << 10;

/// What a call of gRPC has around its body: a prefix, keys and lengths, and the other fields of its message.
pub(crate) const CALL_OVERHEAD: usize = 64;

/// The largest answer that is asked for by `--response-size` or `?bytes=`: a caller reads no larger one.
pub const MAX_RESPONSE: usize = 1 << 20;
