//! W3C Trace Context: `traceparent` and `tracestate`.

use bytes::BytesMut;
use http::HeaderValue;

use super::context::{Context, Sampling, parse_span_id, parse_trace_id, split_value};
use crate::text::hex;

/// The length of a `traceparent` of version 00.
const LENGTH: usize = 55;

/// `00-<32 hex>-<16 hex>-<2 hex>`; a version above 00 is read as 00, `ff` is invalid. Source: W3C Trace Context, section 3.2.
pub(super) fn parse_traceparent(value: &[u8]) -> Option<Context> {
    let (known, rest) = value.split_at_checked(LENGTH)?;
    let is_hex = |digits: &[u8]| digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    let fits = match &known[..2] {
        b"00" => rest.is_empty(),
        b"ff" => false,
        version => is_hex(version) && (rest.is_empty() || rest[0] == b'-'),
    };
    let is_form = known[2] == b'-' && known[35] == b'-' && known[52] == b'-' && is_hex(&known[53..]);
    // The parsers of ids accept upper case, which B3 allows.
    if !fits || !is_form || known.iter().fold(false, |any, byte| any | byte.is_ascii_uppercase()) {
        return None;
    }
    let flags = hex_digit(known[54]);
    Some(Context {
        trace_id: parse_trace_id(&known[3..35])?,
        short_trace_id: false,
        random: flags & RANDOM != 0,
        span_id: parse_span_id(&known[36..52])?,
        parent_id: None,
        sampling: if flags & SAMPLED != 0 { Sampling::Sample } else { Sampling::Drop },
    })
}

/// Flags of a `traceparent`; those that are not known are not passed on.
pub(crate) const SAMPLED: u8 = 1;
pub(crate) const RANDOM: u8 = 2;

fn hex_digit(digit: u8) -> u8 {
    if digit.is_ascii_digit() { digit - b'0' } else { digit - b'a' + 10 }
}

/// The flags of a context.
pub(crate) fn flags(context: &Context) -> u8 {
    u8::from(context.sampling.is_sampled()) * SAMPLED + u8::from(context.random) * RANDOM
}

/// The `traceparent` of a context.
pub(super) fn write_traceparent(context: &Context, buffer: &mut BytesMut) -> HeaderValue {
    buffer.extend_from_slice(&traceparent(context));
    split_value(buffer)
}

fn traceparent(context: &Context) -> [u8; LENGTH] {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    hex::encode(&context.trace_id.to_bytes(), &mut text[3..35]);
    hex::encode(&context.span_id.to_bytes(), &mut text[36..52]);
    text[LENGTH - 1] += flags(context);
    text
}

/// The value of `traceresponse`: it has the form of a `traceparent`.
pub(crate) fn traceresponse(context: &Context) -> HeaderValue {
    HeaderValue::from_bytes(&traceparent(context)).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Whether all lines of a `tracestate` together are valid: at most 32 members `key=value`, no key twice, empty ones not counted.
/// Source: W3C Trace Context, section 3.3.
pub(crate) fn is_valid_tracestate<'a>(lines: impl Iterator<Item = &'a [u8]>) -> bool {
    const MAX_MEMBERS: usize = 32;
    let members = || lines.flat_map(|line| line.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    let mut keys = [&b""[..]; MAX_MEMBERS];
    let mut count = 0;
    members().filter(|member| !member.is_empty()).all(|member| {
        let Some(key) = key_of(member).filter(|key| count < MAX_MEMBERS && !keys[..count].contains(key)) else { return false };
        keys[count] = key;
        count += 1;
        true
    })
}

/// The key of a valid member.
fn key_of(member: &[u8]) -> Option<&[u8]> {
    const MAX_VALUE: usize = 256;
    let equals = member.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&member[..equals], &member[equals + 1..]);
    let is_value =
        (1..=MAX_VALUE).contains(&value.len()) && value.iter().all(|byte| matches!(byte, b' '..=b'~') && *byte != b'=');
    (is_value && is_key(key)).then_some(key)
}

/// A vendor's key, or `tenant@system`.
fn is_key(key: &[u8]) -> bool {
    const MAX_KEY: usize = 256;
    const MAX_TENANT: usize = 241;
    const MAX_SYSTEM: usize = 14;
    let is_name = |name: &[u8], max: usize| {
        (1..=max).contains(&name.len())
            && matches!(name[0], b'a'..=b'z' | b'0'..=b'9')
            && name.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/'))
    };
    match key.iter().position(|byte| *byte == b'@') {
        Some(at) => is_name(&key[..at], MAX_TENANT) && is_name(&key[at + 1..], MAX_SYSTEM),
        None => is_name(key, MAX_KEY),
    }
}
