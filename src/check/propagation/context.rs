//! Trace contexts as `check` reads them from the headers of a reply: which format, which trace, which span, which decision.
//!
//! Ids are compared as text of a fixed width, so that a 64-bit trace id in B3 equals its zero-padded form in W3C.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::hop::reply::Headers;

/// The two families of trace headers that a mesh may speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Format {
    /// `traceparent` (and `tracestate`).
    W3c,
    /// `x-b3-*`, or the single `b3`.
    B3,
}

impl Format {
    pub(crate) const ALL: [Self; 2] = [Self::W3c, Self::B3];

    /// The name for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::W3c => "W3C",
            Self::B3 => "B3",
        }
    }

    /// The header whose name people know the format by.
    pub(crate) fn header(self) -> &'static str {
        match self {
            Self::W3c => "traceparent",
            Self::B3 => "x-b3-traceid",
        }
    }

    /// The valid context of this format among `headers`.
    pub(crate) fn read(self, headers: &Headers) -> Option<Context> {
        match self {
            Self::W3c => w3c(headers),
            Self::B3 => b3_single(headers).or_else(|| b3_multi(headers)),
        }
    }

    /// Whether a header of this format is there at all, valid or not.
    pub(crate) fn is_present(self, headers: &Headers) -> bool {
        match self {
            Self::W3c => present(headers, "traceparent"),
            Self::B3 => present(headers, "b3") || present(headers, "x-b3-traceid") || present(headers, "x-b3-spanid"),
        }
    }
}

fn present(headers: &Headers, name: &str) -> bool {
    headers.get(name).iter().any(|value| !value.is_empty())
}

/// One trace context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Context {
    /// 32 lower-case hex digits.
    pub(crate) trace: String,
    /// 16 lower-case hex digits.
    pub(crate) span: String,
    /// The decision that came with it; `None` when it is left to the receiver.
    pub(crate) sampled: Option<bool>,
}

/// A trace id as 32 lower-case hex digits; `None` when it is none.
pub(crate) fn trace_id(text: &str) -> Option<String> {
    let ok = (text.len() == 16 || text.len() == 32) && is_hex(text) && text.bytes().any(|b| b != b'0');
    ok.then(|| format!("{:0>32}", text.to_ascii_lowercase()))
}

/// A span id as 16 lower-case hex digits; `None` when it is none.
pub(crate) fn span_id(text: &str) -> Option<String> {
    let ok = text.len() == 16 && is_hex(text) && text.bytes().any(|b| b != b'0');
    ok.then(|| text.to_ascii_lowercase())
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn only<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    match headers.get(name) {
        [one] => Some(one),
        _ => None,
    }
}

fn w3c(headers: &Headers) -> Option<Context> {
    let value = only(headers, "traceparent")?;
    if value.bytes().any(|b| b.is_ascii_uppercase()) {
        return None;
    }
    let mut parts = value.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if version.len() != 2 || !is_hex(version) || version == "ff" || trace.len() != 32 || flags.len() != 2 {
        return None;
    }
    let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
    Some(Context { trace: trace_id(trace)?, span: span_id(span)?, sampled: Some(sampled) })
}

fn b3_multi(headers: &Headers) -> Option<Context> {
    let trace = trace_id(headers.first("x-b3-traceid")?)?;
    let span = span_id(headers.first("x-b3-spanid")?)?;
    let sampled = match (headers.first("x-b3-flags"), headers.first("x-b3-sampled")) {
        (Some("1"), _) | (_, Some("1" | "true")) => Some(true),
        (_, Some("0" | "false")) => Some(false),
        _ => None,
    };
    Some(Context { trace, span, sampled })
}

fn b3_single(headers: &Headers) -> Option<Context> {
    let mut parts = headers.first("b3")?.split('-');
    let trace = trace_id(parts.next()?)?;
    let span = span_id(parts.next()?)?;
    let sampled = match parts.next() {
        Some("1" | "d" | "true") => Some(true),
        Some("0" | "false") => Some(false),
        _ => None,
    };
    Some(Context { trace, span, sampled })
}

/// A fresh context that asks to be sampled.
pub(crate) fn fresh() -> Context {
    Context { trace: format!("{:016x}{:016x}", random(), random()), span: format!("{:016x}", random()), sampled: Some(true) }
}

/// A random UUID (version 4): the form of `x-request-id` that Envoy understands.
pub(crate) fn fresh_request_id() -> String {
    let (high, low) = (random() & !0xf000 | 0x4000, random() & !(0b11 << 62) | 0b10 << 62);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}

/// A number that nobody has used: the standard library's hash keys are random, and no two calls in a thread share them. Never 0.
pub(crate) fn random() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(0);
    hasher.finish().max(1)
}

/// The start of an id, enough to tell two apart on a line.
pub(crate) fn short(id: &str) -> String {
    const SHOWN: usize = 8;
    match id.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &id[..at]),
        None => id.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(entries: &[(&str, &str)]) -> Headers {
        Headers(entries.iter().map(|(name, value)| ((*name).to_owned(), vec![(*value).to_owned()])).collect())
    }

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn w3c_and_both_b3_forms_read_as_the_same_context() {
        let want = Context { trace: TRACE.into(), span: SPAN.into(), sampled: Some(true) };
        assert_eq!(Format::W3c.read(&headers(&[("traceparent", &format!("00-{TRACE}-{SPAN}-01"))])), Some(want.clone()));
        assert_eq!(Format::B3.read(&headers(&[("b3", &format!("{TRACE}-{SPAN}-1"))])), Some(want.clone()));
        let multi = headers(&[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "1")]);
        assert_eq!(Format::B3.read(&multi), Some(want));
    }

    #[test]
    fn a_64_bit_id_is_padded_and_a_missing_decision_stays_open() {
        let got = Format::B3.read(&headers(&[("x-b3-traceid", "A3CE929D0E0E4736"), ("x-b3-spanid", SPAN)])).unwrap();
        assert_eq!((got.trace.as_str(), got.sampled), ("0000000000000000a3ce929d0e0e4736", None));
    }

    #[test]
    fn garbage_is_present_but_no_context() {
        for value in ["", "00-x-y-01", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"] {
            let headers = headers(&[("traceparent", value)]);
            assert_eq!(Format::W3c.read(&headers), None, "{value}");
            assert_eq!(Format::W3c.is_present(&headers), !value.is_empty());
        }
        let zero = headers(&[("traceparent", "00-00000000000000000000000000000000-00f067aa0ba902b7-01")]);
        assert_eq!(Format::W3c.read(&zero), None);
    }

    #[test]
    fn fresh_ids_are_valid_and_differ() {
        let (one, two) = (fresh(), fresh());
        assert_ne!(one.trace, two.trace);
        assert_eq!(trace_id(&one.trace).as_ref(), Some(&one.trace));
        assert_eq!(span_id(&one.span).as_ref(), Some(&one.span));
        let id = fresh_request_id();
        assert_eq!((id.len(), &id[14..15]), (36, "4"));
        assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"), "{id}");
    }
}
