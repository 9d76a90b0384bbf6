//! Random ids and numbers, from the OpenTelemetry SDK's generator: one per thread, no lock.

use http::HeaderValue;
use opentelemetry::trace::{SpanId, TraceId};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};

use crate::text::hex::push_hex;

/// A new trace id.
pub(crate) fn trace_id() -> TraceId {
    RandomIdGenerator::default().new_trace_id()
}

/// A new span id.
pub(crate) fn span_id() -> SpanId {
    RandomIdGenerator::default().new_span_id()
}

/// A new request id: a random UUID (version 4), the form that Envoy makes and stores its sampling decision in.
pub(crate) fn request_id() -> HeaderValue {
    request_id_of(trace_id())
}

/// The request id of these bits.
pub(crate) fn request_id_of(bits: TraceId) -> HeaderValue {
    let mut bytes = bits.to_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = Vec::with_capacity(36);
    for (i, part) in [&bytes[..4], &bytes[4..6], &bytes[6..8], &bytes[8..10], &bytes[10..]].into_iter().enumerate() {
        if i > 0 {
            text.push(b'-');
        }
        push_hex(&mut text, part);
    }
    HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

/// A number from 0 (included) to 1 (excluded), uniform.
pub(crate) fn unit() -> f64 {
    const BITS: u32 = f64::MANTISSA_DIGITS;
    let bits = u64::from_be_bytes(span_id().to_bytes()) >> (u64::BITS - BITS);
    bits as f64 / (1_u64 << BITS) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_a_random_uuid() {
        let (one, two) = (request_id(), request_id());
        assert_ne!(one, two);
        let text = one.to_str().unwrap();
        assert_eq!(text.len(), 36);
        assert_eq!(&text[14..15], "4");
        assert!(crate::trace_context::is_valid_request_id(text.as_bytes()));
    }

    #[test]
    fn unit_covers_the_unit_interval_evenly() {
        let mut tenths = [0_u32; 10];
        for _ in 0..100_000 {
            tenths[(unit() * 10.0) as usize] += 1;
        }
        // 10,000 expected each with a standard deviation of 95: six of them.
        assert!(tenths.iter().all(|count| (9_430..=10_570).contains(count)), "{tenths:?}");
    }
}
