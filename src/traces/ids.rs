//! Trace and span ids as Zipkin's JSON has them: read in any length and case, written in a fixed one.
//!
//! The types are OpenTelemetry's. An id of zeros is invalid in W3C and B3, so none is ever read.

use std::fmt;

pub use opentelemetry::trace::{SpanId, TraceId};
use serde::{Deserializer, Serializer};

use crate::text::shorten;
use crate::traces::lenient::Scalar;

/// Why a text is not an id. Fit for a log line: bounded, without control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidId(String);

impl fmt::Display for InvalidId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidId {}

/// Reads a trace id: 1 to 32 hex digits of either case, padded with zeros on the left.
///
/// # Errors
///
/// Another length, another character, or zeros only.
pub fn parse_trace_id(text: &str) -> Result<TraceId, InvalidId> {
    hex(text, 32).map(TraceId::from)
}

/// Reads a span id: 1 to 16 hex digits of either case, padded with zeros on the left.
///
/// # Errors
///
/// Another length, another character, or zeros only.
pub fn parse_span_id(text: &str) -> Result<SpanId, InvalidId> {
    hex(text, 16).map(|value| SpanId::from(value as u64))
}

fn hex(text: &str, max: usize) -> Result<u128, InvalidId> {
    if text.is_empty() || text.len() > max || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(InvalidId(format!("\"{}\" is not an id: expected 1 to {max} hex digits", shorten(text, 200))));
    }
    match u128::from_str_radix(text, 16) {
        Ok(value) if value != 0 => Ok(value),
        _ => Err(InvalidId("an id of zeros only is not valid".into())),
    }
}

/// The id as Zipkin writes it: 16 lower-case hex digits when the upper half is zero, else 32.
pub fn zipkin_id(id: TraceId) -> String {
    let text = id.to_string();
    match text.strip_prefix("0000000000000000") {
        Some(low) => low.to_owned(),
        None => text,
    }
}

/// `#[serde(with)]` for a trace id.
pub(crate) mod trace_id {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(id: &TraceId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&zipkin_id(*id))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TraceId, D::Error> {
        Scalar::read(deserializer)?.id(parse_trace_id)
    }
}

/// `#[serde(with)]` for a span id.
pub(crate) mod span_id {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(id: &SpanId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SpanId, D::Error> {
        Scalar::read(deserializer)?.id(parse_span_id)
    }
}

/// `#[serde(with)]` for the id of a parent. Null and zeros mean that there is none: some tracers write a root's parent so.
pub(crate) mod parent_id {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(id: &Option<SpanId>, serializer: S) -> Result<S::Ok, S::Error> {
        match id {
            Some(id) => serializer.collect_str(id),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SpanId>, D::Error> {
        match Scalar::read(deserializer)? {
            Scalar::Null => Ok(None),
            Scalar::Text(text) if (1..=16).contains(&text.len()) && text.bytes().all(|b| b == b'0') => Ok(None),
            value => value.id(parse_span_id).map(Some),
        }
    }
}
