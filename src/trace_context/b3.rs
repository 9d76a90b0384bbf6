//! B3: the single `b3` header and the `x-b3-*` headers. Source: openzipkin/b3-propagation.

use bytes::BytesMut;
use http::{HeaderName, HeaderValue};

use super::carried::HeaderPairs;
use super::context::{Context, HeaderSource, Incoming, Sampling, parse_span_id, parse_trace_id, push_hex, split_value};

static B3: HeaderName = HeaderName::from_static("b3");
static TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
static SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
static PARENT_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-parentspanid");
static SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
static FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// The headers of B3 multi.
pub(super) const MULTI: [&str; 5] = ["x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags"];

/// `<trace>-<span>[-<0|1|d>[-<parent>]]`, or a decision alone.
pub(super) fn parse_single(value: &[u8]) -> Option<Incoming> {
    let decision = |state: &[u8]| match state {
        b"0" => Some(Sampling::Drop),
        b"1" => Some(Sampling::Sample),
        b"d" => Some(Sampling::Debug),
        _ => None,
    };
    if let Some(sampling) = decision(value) {
        return Some(Incoming { context: None, sampling });
    }
    let mut parts = value.split(|byte| *byte == b'-');
    let digits = parts.next()?;
    let (trace_id, short_trace_id) = (parse_trace_id(digits)?, digits.len() == 16);
    let span_id = parse_span_id(parts.next()?)?;
    let sampling = parts.next().map_or(Some(Sampling::Deferred), decision)?;
    let parent_id = match parts.next() {
        Some(parent) => Some(parse_span_id(parent)?),
        None => None,
    };
    let context = Context { trace_id, short_trace_id, random: false, span_id, parent_id, sampling };
    parts.next().is_none().then_some(context.into())
}

/// The context of the `x-b3-*` headers, or a decision alone.
pub(super) fn parse_multi(headers: &impl HeaderSource) -> Option<Incoming> {
    let sampling = if headers.first(FLAGS.as_str()) == Some(b"1") {
        Sampling::Debug
    } else {
        match headers.first(SAMPLED.as_str()) {
            // `true` and `false` are what tracers wrote before B3 was specified.
            Some(b"0" | b"false") => Sampling::Drop,
            Some(b"1" | b"true") => Sampling::Sample,
            Some(b"d") => Sampling::Debug,
            _ => Sampling::Deferred,
        }
    };
    let context = || {
        let digits = headers.first(TRACE_ID.as_str())?;
        let (trace_id, short_trace_id) = (parse_trace_id(digits)?, digits.len() == 16);
        let span_id = parse_span_id(headers.first(SPAN_ID.as_str())?)?;
        let parent_id = headers.first(PARENT_SPAN_ID.as_str()).and_then(parse_span_id);
        Some(Context { trace_id, short_trace_id, random: false, span_id, parent_id, sampling })
    };
    match context() {
        Some(context) => Some(context.into()),
        None => (sampling != Sampling::Deferred).then_some(Incoming { context: None, sampling }),
    }
}

/// A trace id is written with as many digits as it came with.
fn push_trace_id(buffer: &mut BytesMut, context: &Context) {
    let bytes = context.trace_id.to_bytes();
    push_hex(buffer, if context.short_trace_id { &bytes[8..] } else { &bytes });
}

/// The single header of a context.
pub(super) fn write_single(context: &Context, buffer: &mut BytesMut, out: &mut HeaderPairs) {
    push_trace_id(buffer, context);
    buffer.extend_from_slice(b"-");
    push_hex(buffer, &context.span_id.to_bytes());
    buffer.extend_from_slice(match context.sampling {
        Sampling::Debug => b"-d",
        Sampling::Sample => b"-1",
        Sampling::Drop | Sampling::Deferred => b"-0",
    });
    if let Some(parent) = context.parent_id {
        buffer.extend_from_slice(b"-");
        push_hex(buffer, &parent.to_bytes());
    }
    out.push((B3.clone(), split_value(buffer)));
}

/// The `x-b3-*` headers of a context.
pub(super) fn write_multi(context: &Context, buffer: &mut BytesMut, out: &mut HeaderPairs) {
    push_trace_id(buffer, context);
    out.push((TRACE_ID.clone(), split_value(buffer)));
    push_hex(buffer, &context.span_id.to_bytes());
    out.push((SPAN_ID.clone(), split_value(buffer)));
    if let Some(parent) = context.parent_id {
        push_hex(buffer, &parent.to_bytes());
        out.push((PARENT_SPAN_ID.clone(), split_value(buffer)));
    }
    // Debug implies sampled and is written alone.
    let (name, flag) = match context.sampling {
        Sampling::Debug => (&FLAGS, "1"),
        Sampling::Sample => (&SAMPLED, "1"),
        Sampling::Drop | Sampling::Deferred => (&SAMPLED, "0"),
    };
    out.push((name.clone(), HeaderValue::from_static(flag)));
}
