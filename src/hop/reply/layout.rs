//! Recognises a reply that is laid out as `write.rs` lays it out: these fields in this order, without whitespace.
//!
//! `serde_json` validates replies in every layout; this is for those that hops write, of which each answer of a next hop is one.
//! `ARCHITECTURE.md` has the price.

use super::Injected;
use super::compact::{number, skip_object, string};

/// What the value of a field is.
#[derive(Debug, Clone, Copy)]
enum FieldKind {
    Text,
    OptionalText,
    /// An unsigned number of so many digits at most.
    Number(usize),
    OptionalStatus,
    Milliseconds,
    OptionalBool,
    Propagation,
    Headers,
    Injected,
    Calls,
    /// The reply of a next hop, which need only be an object: the hop that nested it has validated it.
    Nested,
}

const REPLY: [(&str, FieldKind); 28] = [
    ("{\"service\":", FieldKind::Text),
    (",\"version\":", FieldKind::Text),
    (",\"lane\":", FieldKind::Text),
    (",\"hostname\":", FieldKind::Text),
    (",\"message\":", FieldKind::Text),
    (",\"path\":", FieldKind::Text),
    (",\"status\":", FieldKind::Number(4)),
    (",\"started_at\":", FieldKind::Text),
    (",\"duration_ms\":", FieldKind::Milliseconds),
    (",\"request_id\":", FieldKind::Text),
    (",\"trace_id\":", FieldKind::OptionalText),
    (",\"span_id\":", FieldKind::OptionalText),
    (",\"parent_span_id\":", FieldKind::OptionalText),
    (",\"sampled\":", FieldKind::OptionalBool),
    (",\"propagation\":", FieldKind::Propagation),
    (",\"received\":", FieldKind::Headers),
    (",\"client\":{\"ip\":", FieldKind::Text),
    (",\"identity\":", FieldKind::OptionalText),
    (",\"identity_source\":", FieldKind::OptionalText),
    ("},\"protocol\":", FieldKind::OptionalText),
    (",\"request_bytes\":", FieldKind::Number(19)),
    (",\"node\":", FieldKind::OptionalText),
    (",\"zone\":", FieldKind::OptionalText),
    (",\"region\":", FieldKind::OptionalText),
    (",\"cluster\":", FieldKind::OptionalText),
    (",\"attempt\":", FieldKind::Number(9)),
    (",\"injected\":", FieldKind::Injected),
    (",\"upstreams\":[", FieldKind::Calls),
];

const CALL: [(&str, FieldKind); 7] = [
    ("{\"url\":", FieldKind::Text),
    (",\"protocol\":", FieldKind::OptionalText),
    (",\"status\":", FieldKind::OptionalStatus),
    (",\"duration_ms\":", FieldKind::Milliseconds),
    (",\"error\":", FieldKind::OptionalText),
    (",\"sent\":", FieldKind::Headers),
    (",\"reply\":", FieldKind::Nested),
];

/// Whether this is a reply as hops write it, up to its last brace, in which no reply nests deeper than `limit`. `false` says nothing.
pub(super) fn is_usual(text: &str, limit: usize) -> bool {
    fields(text.as_bytes(), &REPLY, limit).is_some_and(<[u8]>::is_empty)
}

/// Skips the fields, each with its value.
fn fields<'a>(mut rest: &'a [u8], layout: &[(&str, FieldKind)], limit: usize) -> Option<&'a [u8]> {
    for (key, kind) in layout {
        rest = value(rest.strip_prefix(key.as_bytes())?, *kind, limit)?;
    }
    Some(rest)
}

fn value(rest: &[u8], kind: FieldKind, limit: usize) -> Option<&[u8]> {
    let or_null = |otherwise: fn(&[u8]) -> Option<&[u8]>| rest.strip_prefix(b"null").or_else(|| otherwise(rest));
    match kind {
        FieldKind::Text => text(rest),
        FieldKind::OptionalText => or_null(text),
        FieldKind::Number(most) => unsigned(rest, most),
        FieldKind::OptionalStatus => or_null(|rest| unsigned(rest, 4)),
        FieldKind::Milliseconds => milliseconds(rest),
        FieldKind::OptionalBool => or_null(|rest| rest.strip_prefix(b"true").or_else(|| rest.strip_prefix(b"false"))),
        FieldKind::Propagation => rest.strip_prefix(b"\"forward\"").or_else(|| rest.strip_prefix(b"\"continue\"")),
        FieldKind::Headers => headers(rest.strip_prefix(b"{")?),
        FieldKind::Injected => or_null(injected),
        FieldKind::Calls => calls(rest, limit),
        FieldKind::Nested => rest.strip_prefix(b"null").or_else(|| skip_object(rest, limit)),
    }
}

/// A string; one with an escape by number may be none for `serde_json`, which refuses half of a pair.
fn text(rest: &[u8]) -> Option<&[u8]> {
    string::<false>(rest.strip_prefix(b"\"")?)
}

fn unsigned(rest: &[u8], most: usize) -> Option<&[u8]> {
    let after = number(rest)?;
    let digits = &rest[..rest.len() - after.len()];
    (digits.len() <= most && digits.iter().all(u8::is_ascii_digit)).then_some(after)
}

/// Without an exponent, a number that is so short is finite.
fn milliseconds(rest: &[u8]) -> Option<&[u8]> {
    let after = number(rest)?;
    let written = &rest[..rest.len() - after.len()];
    (written.len() <= 20 && written.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.')).then_some(after)
}

/// The names of headers, each with its values, of which there is at least one.
fn headers(mut rest: &[u8]) -> Option<&[u8]> {
    if let [b'}', after @ ..] = rest {
        return Some(after);
    }
    loop {
        rest = text(rest)?.strip_prefix(b":[")?;
        loop {
            match text(rest)? {
                [b',', after @ ..] => rest = after,
                [b']', b',', after @ ..] => {
                    rest = after;
                    break;
                }
                [b']', b'}', after @ ..] => return Some(after),
                _ => return None,
            }
        }
    }
}

fn injected(rest: &[u8]) -> Option<&[u8]> {
    let after = skip_object(rest, 2)?;
    serde_json::from_slice::<Injected>(&rest[..rest.len() - after.len()]).ok().map(|_| after)
}

fn calls(mut rest: &[u8], limit: usize) -> Option<&[u8]> {
    if let [b']', after @ ..] = rest {
        return Some(after);
    }
    loop {
        match fields(rest, &CALL, limit)? {
            [b'}', b',', after @ ..] => rest = after,
            [b'}', b']', after @ ..] => return Some(after),
            _ => return None,
        }
    }
}
