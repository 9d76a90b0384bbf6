//! What became of a header between the app's caller and its next hop.

use http::HeaderMap;

use crate::trace_context::{HeaderFamily, Mangling};

/// A format of trace context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Format {
    W3c,
    B3,
    B3Single,
}

impl Format {
    pub(super) const ALL: [Self; 3] = [Self::W3c, Self::B3, Self::B3Single];

    /// The name in `--expect`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::W3c => "w3c",
            Self::B3 => "b3",
            Self::B3Single => "b3-single",
        }
    }

    /// What people call it.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::W3c => "W3C (traceparent)",
            Self::B3 => "B3 (x-b3-…)",
            Self::B3Single => "B3 single (b3)",
        }
    }

    /// The header that has the trace id.
    pub(super) fn header(self) -> &'static str {
        match self {
            Self::W3c => "traceparent",
            Self::B3 => "x-b3-traceid",
            Self::B3Single => "b3",
        }
    }
}

/// The sampling decision that a context has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    Sampled,
    NotSampled,
    /// B3 only.
    Debug,
    /// B3 only: the receiver decides.
    Deferred,
}

/// Ids as they are written into headers.
#[derive(Debug, Clone)]
pub(super) struct WrittenIds {
    pub(super) trace: String,
    pub(super) span: String,
}

impl WrittenIds {
    pub(super) fn fresh() -> Self {
        Self { trace: crate::telemetry::ids::trace_id().to_string(), span: crate::telemetry::ids::span_id().to_string() }
    }

    /// Writes the context in one format.
    pub(super) fn write(&self, format: Format, decision: Decision, headers: &mut HeaderMap) {
        let Self { trace, span } = self;
        let mut put = |name: &'static str, value: String| {
            if let Ok(value) = value.parse() {
                headers.append(name, value);
            }
        };
        match (format, decision) {
            (Format::W3c, Decision::NotSampled) => put("traceparent", format!("00-{trace}-{span}-00")),
            (Format::W3c, _) => put("traceparent", format!("00-{trace}-{span}-01")),
            (Format::B3, decision) => {
                put("x-b3-traceid", trace.clone());
                put("x-b3-spanid", span.clone());
                match decision {
                    Decision::Sampled => put("x-b3-sampled", "1".to_owned()),
                    Decision::NotSampled => put("x-b3-sampled", "0".to_owned()),
                    Decision::Debug => put("x-b3-flags", "1".to_owned()),
                    Decision::Deferred => {}
                }
            }
            (Format::B3Single, Decision::Sampled) => put("b3", format!("{trace}-{span}-1")),
            (Format::B3Single, Decision::NotSampled) => put("b3", format!("{trace}-{span}-0")),
            (Format::B3Single, Decision::Debug) => put("b3", format!("{trace}-{span}-d")),
            (Format::B3Single, Decision::Deferred) => put("b3", format!("{trace}-{span}")),
        }
    }
}

/// The headers of a request: a context in each of these formats, sampled.
pub(super) fn sampled(contexts: &[(Format, &WrittenIds)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    contexts.iter().for_each(|(format, sent)| sent.write(*format, Decision::Sampled, &mut headers));
    headers
}

/// What became of a header or of a context.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Fate {
    /// Arrived as it was sent.
    Untouched,
    /// The trace goes on, with a span id of the app's own.
    Continued,
    /// A list that got members which are empty.
    EmptyMember,
    /// Another trace.
    Anew,
    Dropped,
    Mangled(Mangling),
}

/// The values of a header, as text.
pub(super) fn values(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
}

/// What became of a context that was sent in `format`.
pub(super) fn of_context(format: Format, sent: &WrittenIds, call: &HeaderMap) -> Fate {
    let found = values(call, format.header());
    let value = match found.as_slice() {
        [] => return Fate::Dropped,
        [value] => value.trim(),
        _ => return Fate::Mangled(Mangling::Doubled),
    };
    if let Some(how) = of_lines(format, call) {
        return Fate::Mangled(how);
    }
    let Some((trace, span)) = fields_of(format, value, call) else { return Fate::Mangled(Mangling::Changed) };
    let is_sent = trace.eq_ignore_ascii_case(&sent.trace);
    if !is_sent {
        return Mangling::of_trace_id(&sent.trace, &trace).map_or(Fate::Anew, Fate::Mangled);
    }
    if [&trace, &span].into_iter().any(|id| id.bytes().any(|digit| digit.is_ascii_uppercase())) {
        return Fate::Mangled(Mangling::UpperCase);
    }
    if span.len() != SPAN_DIGITS {
        return Fate::Mangled(Mangling::SpanLength);
    }
    // Receivers leave out a context that is not valid as a whole.
    if format == Format::W3c && HeaderFamily::W3c.read(call).is_none() {
        return Fate::Mangled(Mangling::Changed);
    }
    if span == sent.span { Fate::Untouched } else { Fate::Continued }
}

/// Digits of a span id.
const SPAN_DIGITS: usize = 16;

/// Lines and commas where one value was sent, in any of the format's headers.
fn of_lines(format: Format, call: &HeaderMap) -> Option<Mangling> {
    let more: &[&str] = if format == Format::B3 { &["x-b3-spanid", "x-b3-sampled", "x-b3-flags"] } else { &[] };
    [format.header()].iter().chain(more).find_map(|name| match values(call, name).as_slice() {
        [value] => of_commas(value),
        [] => None,
        _ => Some(Mangling::Doubled),
    })
}

/// Commas in a value that has none.
fn of_commas(value: &str) -> Option<Mangling> {
    let parts = || value.split(',').filter(|part| !part.trim().is_empty());
    value.contains(',').then(|| if parts().count() > 1 { Mangling::Joined } else { Mangling::StrayComma })
}

/// What became of a context with a trace id of 64 bits. A tracer whose ids have 128 bits puts zeros in front, and goes on with spans of
/// its own: in W3C it has no other way. Whoever forwards the caller's span leaves its trace id alone.
pub(super) fn of_short_id(format: Format, sent: &WrittenIds, call: &HeaderMap) -> Fate {
    let padded = WrittenIds { trace: format!("{:0>32}", sent.trace), span: sent.span.clone() };
    let shapes = Format::ALL.into_iter().filter(|other| *other == format || values(call, format.header()).is_empty());
    let fates = shapes.map(|shape| match of_context(shape, &padded, call) {
        Fate::Untouched => Fate::Mangled(Mangling::Padded),
        Fate::Mangled(Mangling::Shortened | Mangling::Halved) | Fate::Anew => of_context(shape, sent, call),
        fate => fate,
    });
    fates.min().unwrap_or(Fate::Dropped)
}

/// Trace and span id of a value, as they are written, where both have a length that ids have.
pub(super) fn ids_of(format: Format, value: &str, call: &HeaderMap) -> Option<(String, String)> {
    fields_of(format, value, call).filter(|(trace, span)| matches!(trace.len(), 16 | 32) && span.len() == SPAN_DIGITS)
}

/// The contexts in these headers: format, trace and span id.
pub(super) fn traces_of(headers: &HeaderMap) -> Vec<(Format, String, String)> {
    let of = |format: Format| {
        let value = values(headers, format.header()).pop()?;
        ids_of(format, value.trim(), headers).map(|(trace, span)| (format, trace.to_ascii_lowercase(), span))
    };
    Format::ALL.into_iter().filter_map(of).collect()
}

/// The hex digits in the places of trace and span id.
fn fields_of(format: Format, value: &str, call: &HeaderMap) -> Option<(String, String)> {
    let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    let (trace, span) = match format {
        Format::W3c => {
            let mut fields = value.split('-').skip(1);
            (fields.next()?.to_owned(), fields.next()?.to_owned())
        }
        Format::B3 => (value.to_owned(), values(call, "x-b3-spanid").pop().unwrap_or_default()),
        Format::B3Single => {
            let mut fields = value.split('-');
            (fields.next()?.to_owned(), fields.next()?.to_owned())
        }
    };
    (is_hex(&trace) && is_hex(&span)).then_some((trace, span))
}

/// The decision that a call's context has, in one format; `None` where it has none.
pub(super) fn decision_of(format: Format, call: &HeaderMap) -> Option<Decision> {
    let field = |name: &str| values(call, name).pop();
    match format {
        Format::W3c => {
            let flags = field("traceparent")?.rsplit('-').next().and_then(|flags| u8::from_str_radix(flags, 16).ok())?;
            Some(if flags & 1 == 1 { Decision::Sampled } else { Decision::NotSampled })
        }
        Format::B3 if field("x-b3-flags").as_deref() == Some("1") => Some(Decision::Debug),
        Format::B3 => match field("x-b3-sampled").as_deref() {
            Some("1" | "true") => Some(Decision::Sampled),
            Some("0" | "false") => Some(Decision::NotSampled),
            _ => field("x-b3-traceid").map(|_| Decision::Deferred),
        },
        Format::B3Single => {
            let value = field("b3")?;
            match value.split('-').nth(2).or((value.len() == 1).then_some(value.as_str())) {
                Some("1") => Some(Decision::Sampled),
                Some("0") => Some(Decision::NotSampled),
                Some("d") => Some(Decision::Debug),
                _ => Some(Decision::Deferred),
            }
        }
    }
}

/// What became of a header that has no ids of a span.
pub(super) fn of_value(name: &str, sent: &str, call: &HeaderMap) -> Fate {
    let found = values(call, name);
    match found.as_slice() {
        [] => Fate::Dropped,
        [value] if value == sent => Fate::Untouched,
        lines if matches!(name, "baggage" | "tracestate") => of_list(name, sent, lines),
        [value] if value.split(',').any(|part| part.trim() == sent) => {
            of_commas(value).map_or(Fate::Mangled(Mangling::Changed), Fate::Mangled)
        }
        [value] if value.eq_ignore_ascii_case(sent) => Fate::Mangled(Mangling::UpperCase),
        [value] if name == "x-request-id" && !value.contains(sent) => Fate::Anew,
        [_] => Fate::Mangled(Mangling::Changed),
        several if several.iter().any(|value| value == sent) => Fate::Mangled(Mangling::Doubled),
        _ => Fate::Mangled(Mangling::Changed),
    }
}

/// What became of the one member of a list, to which others may be added, in the same line or in lines of their own.
fn of_list(name: &str, sent: &str, lines: &[String]) -> Fate {
    let members: Vec<&str> = lines.iter().flat_map(|line| line.split(',')).map(str::trim).collect();
    match members.iter().filter(|member| **member == sent).count() {
        0 => Fate::Mangled(Mangling::Changed),
        1 if !members.contains(&"") => Fate::Continued,
        // W3C lets `tracestate` have members that are empty, and `baggage` not.
        1 if name == "tracestate" => Fate::EmptyMember,
        1 => Fate::Mangled(Mangling::StrayComma),
        _ => Fate::Mangled(Mangling::Doubled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(headers: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        headers.iter().for_each(|(name, value)| {
            map.append(*name, value.parse().unwrap());
        });
        map
    }

    #[test]
    fn each_fate_of_a_context_has_its_name() {
        let sent = WrittenIds { trace: "463ac35c9f6413ad48485a3953bb6124".into(), span: "a2fb4a1d1a96d312".into() };
        let same = "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01";
        let upper = same.to_uppercase();
        for (format, headers, fate) in [
            (Format::W3c, vec![], Fate::Dropped),
            (Format::W3c, vec![("traceparent", same)], Fate::Untouched),
            (Format::W3c, vec![("traceparent", "00-463ac35c9f6413ad48485a3953bb6124-00000000000000aa-01")], Fate::Continued),
            (Format::W3c, vec![("traceparent", "00-11111111111111111111111111111111-00000000000000aa-01")], Fate::Anew),
            (Format::W3c, vec![("traceparent", same), ("traceparent", same)], Fate::Mangled(Mangling::Doubled)),
            (Format::W3c, vec![("traceparent", &format!("{same}, {same}"))], Fate::Mangled(Mangling::Joined)),
            (Format::W3c, vec![("traceparent", &upper)], Fate::Mangled(Mangling::UpperCase)),
            (Format::W3c, vec![("traceparent", "00-463ac35c9f6413ad")], Fate::Mangled(Mangling::Changed)),
            (
                Format::B3,
                vec![("x-b3-traceid", "48485a3953bb6124"), ("x-b3-spanid", "00000000000000aa")],
                Fate::Mangled(Mangling::Shortened),
            ),
            (Format::B3Single, vec![("b3", "463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1")], Fate::Untouched),
            (Format::B3Single, vec![("b3", "48485a3953bb6124-00000000000000aa-1")], Fate::Mangled(Mangling::Shortened)),
            (Format::B3Single, vec![("b3", "463ac35c9f6413ad-a2fb4a1d1a96d312-1")], Fate::Mangled(Mangling::Shortened)),
            (
                Format::B3Single,
                vec![("b3", "000000000000000048485a3953bb6124-a2fb4a1d1a96d312-1")],
                Fate::Mangled(Mangling::Halved),
            ),
            (
                Format::B3Single,
                vec![("b3", "463ac35c9f6413ad48485a3953bb6124-0000a2fb4a1d1a96d312-1")],
                Fate::Mangled(Mangling::SpanLength),
            ),
            (
                Format::B3,
                vec![("x-b3-traceid", "000000000000000048485a3953bb6124"), ("x-b3-spanid", "a2fb4a1d1a96d312")],
                Fate::Mangled(Mangling::Halved),
            ),
            (
                Format::B3,
                vec![("x-b3-traceid", "463ac35c9f6413ad48485a3953bb6124"), ("x-b3-spanid", "1a96d312")],
                Fate::Mangled(Mangling::SpanLength),
            ),
            (
                Format::B3,
                vec![
                    ("x-b3-traceid", "463ac35c9f6413ad48485a3953bb6124"),
                    ("x-b3-spanid", "a2fb4a1d1a96d312"),
                    ("x-b3-spanid", "00000000000000aa"),
                ],
                Fate::Mangled(Mangling::Doubled),
            ),
            (
                Format::B3,
                vec![("x-b3-traceid", "463AC35C9F6413AD48485A3953BB6124"), ("x-b3-spanid", "a2fb4a1d1a96d312")],
                Fate::Mangled(Mangling::UpperCase),
            ),
            (
                Format::W3c,
                vec![("traceparent", "00-000000000000000048485a3953bb6124-00000000000000aa-01")],
                Fate::Mangled(Mangling::Halved),
            ),
            (
                Format::W3c,
                vec![("traceparent", "00-463ac35c9f6413ad0000000000000000-a2fb4a1d1a96d312-01")],
                Fate::Mangled(Mangling::Halved),
            ),
            (Format::W3c, vec![("traceparent", "00-48485a3953bb6124-00000000000000aa-01")], Fate::Mangled(Mangling::Shortened)),
            (
                Format::W3c,
                vec![("traceparent", "00-0000463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01")],
                Fate::Mangled(Mangling::Padded),
            ),
            (
                Format::W3c,
                vec![("traceparent", "00-463ac35c9f6413ad48485a3953bb6124-0000000000000000a2fb4a1d1a96d312-01")],
                Fate::Mangled(Mangling::SpanLength),
            ),
            (
                Format::W3c,
                vec![("traceparent", "00-463ac35c9f6413ad48485a3953bb6124-A2FB4A1D1A96D312-01")],
                Fate::Mangled(Mangling::UpperCase),
            ),
            (Format::W3c, vec![("traceparent", &format!("{same},"))], Fate::Mangled(Mangling::StrayComma)),
            (Format::W3c, vec![("traceparent", &same[..54])], Fate::Mangled(Mangling::Changed)),
            (Format::B3Single, vec![("b3", "0")], Fate::Mangled(Mangling::Changed)),
        ] {
            assert_eq!(of_context(format, &sent, &call(&headers)), fate, "{headers:?}");
        }
    }

    #[test]
    fn a_trace_id_of_64_bits_may_be_padded_by_a_tracer_alone() {
        let sent = WrittenIds { trace: "48485a3953bb6124".into(), span: "a2fb4a1d1a96d312".into() };
        let padded = "000000000000000048485a3953bb6124";
        for (headers, fate) in [
            (vec![("b3", "48485a3953bb6124-a2fb4a1d1a96d312-1".to_owned())], Fate::Untouched),
            (vec![("b3", "48485a3953bb6124-00000000000000aa-1".to_owned())], Fate::Continued),
            (vec![("b3", format!("{padded}-00000000000000aa-1"))], Fate::Continued),
            (vec![("traceparent", format!("00-{padded}-00000000000000aa-01"))], Fate::Continued),
            (vec![("b3", format!("{padded}-a2fb4a1d1a96d312-1"))], Fate::Mangled(Mangling::Padded)),
            (vec![("b3", "48485a3953bb61240000000000000000-00000000000000aa-1".to_owned())], Fate::Mangled(Mangling::Padded)),
            (vec![("b3", format!("{padded}00000000-00000000000000aa-1"))], Fate::Mangled(Mangling::Padded)),
            (vec![("b3", "11111111111111110000000000000000-00000000000000aa-1".to_owned())], Fate::Anew),
            (vec![], Fate::Dropped),
        ] {
            let call = call(&headers.iter().map(|(name, value)| (*name, value.as_str())).collect::<Vec<_>>());
            assert_eq!(of_short_id(Format::B3Single, &sent, &call), fate, "{headers:?}");
        }
    }

    #[test]
    fn each_fate_of_another_header_has_its_name() {
        for (name, sent, got, fate) in [
            ("x-request-id", "abc", vec!["abc"], Fate::Untouched),
            ("x-request-id", "abc", vec!["xyz"], Fate::Anew),
            ("x-request-id", "abc", vec!["abc", "abc"], Fate::Mangled(Mangling::Doubled)),
            ("x-request-id", "abc", vec!["abc, abc"], Fate::Mangled(Mangling::Joined)),
            ("x-request-id", "abc", vec![], Fate::Dropped),
            ("x-request-id", "abc", vec!["abc,"], Fate::Mangled(Mangling::StrayComma)),
            ("baggage", "a=1", vec!["b=2,a=1"], Fate::Continued),
            ("baggage", "a=1", vec!["b=2", "a=1"], Fate::Continued),
            ("baggage", "a=1", vec!["a=1,"], Fate::Mangled(Mangling::StrayComma)),
            ("baggage", "a=1", vec!["a=1,,b=2"], Fate::Mangled(Mangling::StrayComma)),
            ("baggage", "a=1", vec!["a=1,a=1"], Fate::Mangled(Mangling::Doubled)),
            ("tracestate", "a=1", vec!["b=2,a=1"], Fate::Continued),
            ("tracestate", "a=1", vec!["a=1", "b=2"], Fate::Continued),
            ("tracestate", "a=1", vec!["a=1,"], Fate::EmptyMember),
            ("tracestate", "a=1", vec![", ,a=1,b=2"], Fate::EmptyMember),
            ("tracestate", "a=1", vec!["a=1", "a=1"], Fate::Mangled(Mangling::Doubled)),
            ("tracestate", "a=1", vec!["a=2,"], Fate::Mangled(Mangling::Changed)),
            ("baggage", "a=1", vec!["b=2"], Fate::Mangled(Mangling::Changed)),
        ] {
            let headers: Vec<_> = got.iter().map(|value| (name, *value)).collect();
            assert_eq!(of_value(name, sent, &call(&headers)), fate, "{name} {got:?}");
        }
    }
}
