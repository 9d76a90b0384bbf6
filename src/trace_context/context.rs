//! A span's place in a trace, and what the parsers and writers of all formats share.

use bytes::{Bytes, BytesMut};
use http::HeaderValue;
use opentelemetry::trace::{SpanId, TraceId};

use crate::text::hex;

/// What has been decided about recording a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampling {
    /// Nobody has decided yet: in B3 the receiver decides.
    Deferred,
    /// Not recorded.
    Drop,
    /// Recorded.
    Sample,
    /// Recorded, whatever a sampler decides (B3's debug flag).
    Debug,
}

impl Sampling {
    /// Whether spans are recorded; a deferred decision is none.
    pub fn is_sampled(self) -> bool {
        matches!(self, Self::Sample | Self::Debug)
    }

    /// Whether spans are recorded; `None` while nobody has decided.
    pub(crate) fn decision(self) -> Option<bool> {
        (self != Self::Deferred).then_some(self.is_sampled())
    }
}

/// A span's place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// Never all zero.
    pub trace_id: TraceId,
    /// The trace id came as 64 bits and is written so in B3.
    pub short_trace_id: bool,
    /// The right 56 bits of the trace id are random (the random flag of W3C Trace Context, Level 2).
    pub random: bool,
    /// Never all zero.
    pub span_id: SpanId,
    /// The span above, where it is known.
    pub parent_id: Option<SpanId>,
    /// Whether the trace is recorded.
    pub sampling: Sampling,
}

impl Context {
    /// The context of a span below this one.
    pub fn child(&self, span_id: SpanId) -> Self {
        Self { span_id, parent_id: Some(self.span_id), ..*self }
    }
}

/// The trace context of a request, as it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incoming {
    /// The first valid context in the configured order.
    pub context: Option<Context>,
    /// A decision that came without ids (`b3: 0`), or the context's.
    pub sampling: Sampling,
}

impl From<Context> for Incoming {
    fn from(context: Context) -> Self {
        Self { sampling: context.sampling, context: Some(context) }
    }
}

/// Header values by lower-case name: those of a request, or those that a reply shows.
pub(crate) trait HeaderSource {
    /// Every value of one header, in order.
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]>;

    /// The first value.
    fn first(&self, name: &str) -> Option<&[u8]> {
        self.values(name).next()
    }

    /// The value when there is exactly one.
    fn only(&self, name: &str) -> Option<&[u8]> {
        let mut values = self.values(name);
        values.next().filter(|_| values.next().is_none())
    }

    /// Whether there is a value that is not empty.
    fn is_present(&self, name: &str) -> bool {
        self.values(name).any(|value| !value.is_empty())
    }
}

impl HeaderSource for http::HeaderMap {
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.get_all(name).iter().map(http::HeaderValue::as_bytes)
    }
}

/// A number from 16 hex digits of either case.
fn parse_hex(digits: &[u8]) -> Option<u64> {
    hex::parse(digits.try_into().ok()?)
}

/// A trace id from 16 or 32 hex digits of either case, not all zeros.
pub(super) fn parse_trace_id(digits: &[u8]) -> Option<TraceId> {
    let (high, low) = digits.split_at(digits.len().saturating_sub(16));
    let high = if high.is_empty() { 0 } else { parse_hex(high)? };
    let id = u128::from(high) << 64 | u128::from(parse_hex(low)?);
    (id != 0).then(|| TraceId::from(id))
}

/// A span id from 16 hex digits of either case, not all zeros.
pub(super) fn parse_span_id(digits: &[u8]) -> Option<SpanId> {
    parse_hex(digits).filter(|id| *id != 0).map(SpanId::from)
}

pub(super) fn push_hex(buffer: &mut BytesMut, bytes: &[u8]) {
    let start = buffer.len();
    buffer.resize(start + 2 * bytes.len(), 0);
    hex::encode(bytes, &mut buffer[start..]);
}

/// Splits off everything that is in the buffer as the value of one header.
pub(super) fn split_value(buffer: &mut BytesMut) -> HeaderValue {
    let ascii: Bytes = buffer.split().freeze();
    HeaderValue::from_maybe_shared(ascii).unwrap_or_else(|_| HeaderValue::from_static(""))
}
