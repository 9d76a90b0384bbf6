//! What became of a header between the app's caller and its next hop.

use http::HeaderMap;
use opentelemetry::trace::{SpanId, TraceId};

use crate::telemetry::ids;
use crate::trace_context::{Context, Incoming, Mangling, Sampling, WireFormat};

/// A new context, sampled.
pub(super) fn fresh() -> Context {
    let (trace_id, span_id) = (ids::trace_id(), ids::span_id());
    Context { trace_id, short_trace_id: false, random: false, span_id, parent_id: None, sampling: Sampling::Sample }
}

/// A new context with a trace id of 64 bits.
pub(super) fn fresh_short() -> Context {
    let (context, id) = (fresh(), ids::span_id());
    Context { trace_id: TraceId::from(u128::from(u64::from_be_bytes(id.to_bytes()))), short_trace_id: true, ..context }
}

/// The headers of a request: a context in each of these formats.
pub(super) fn written(contexts: &[(WireFormat, Context)]) -> HeaderMap {
    contexts.iter().flat_map(|(format, sent)| format.headers(sent)).collect()
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

impl Fate {
    /// The trace goes on.
    pub(super) fn is_on(&self) -> bool {
        matches!(self, Self::Untouched | Self::Continued)
    }
}

/// The values of a header, as text.
pub(super) fn values(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
}

/// What became of a context that was sent in `format`.
pub(super) fn of_context(format: WireFormat, sent: &Context, call: &HeaderMap) -> Fate {
    match call.get_all(format.header()).iter().count() {
        0 => return Fate::Dropped,
        1 => {}
        _ => return Fate::Mangled(Mangling::Doubled),
    }
    if let Some(how) = of_lines(format, call) {
        return Fate::Mangled(how);
    }
    let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    let digits = format.digits(call).filter(|(trace, span)| is_hex(trace) && is_hex(span));
    let Some((trace, span)) = digits else { return Fate::Mangled(Mangling::Changed) };
    let sent_trace = sent.trace_id.to_string();
    let sent_trace = &sent_trace[if sent.short_trace_id { 16 } else { 0 }..];
    if !trace.eq_ignore_ascii_case(sent_trace) {
        return Mangling::of_trace_id(sent_trace, trace).map_or(Fate::Anew, Fate::Mangled);
    }
    if [trace, span].into_iter().any(|id| id.bytes().any(|digit| digit.is_ascii_uppercase())) {
        return Fate::Mangled(Mangling::UpperCase);
    }
    if span.len() != SPAN_DIGITS {
        return Fate::Mangled(Mangling::SpanLength);
    }
    // Receivers leave out a context that is not valid as a whole.
    match format.parse(call).and_then(|incoming| incoming.context) {
        None => Fate::Mangled(Mangling::Changed),
        Some(context) if context.span_id == sent.span_id => Fate::Untouched,
        Some(_) => Fate::Continued,
    }
}

/// Whether a trace goes on in a call, in whatever format.
pub(super) fn goes_on(sent: &Context, call: &HeaderMap) -> bool {
    WireFormat::ALL.into_iter().any(|format| of_context(format, sent, call).is_on())
}

/// Digits of a span id.
const SPAN_DIGITS: usize = 16;

/// Lines and commas where one value was sent, in any of the format's headers.
fn of_lines(format: WireFormat, call: &HeaderMap) -> Option<Mangling> {
    let more: &[&str] = if format == WireFormat::B3Multi { &["x-b3-spanid", "x-b3-sampled", "x-b3-flags"] } else { &[] };
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
pub(super) fn of_short_id(format: WireFormat, sent: &Context, call: &HeaderMap) -> Fate {
    let padded = Context { short_trace_id: false, ..*sent };
    let shapes = WireFormat::ALL.into_iter().filter(|other| *other == format || values(call, format.header()).is_empty());
    let fates = shapes.map(|shape| match of_context(shape, &padded, call) {
        Fate::Untouched => Fate::Mangled(Mangling::Padded),
        Fate::Mangled(Mangling::Shortened | Mangling::Halved) | Fate::Anew => of_context(shape, sent, call),
        fate => fate,
    });
    fates.min().unwrap_or(Fate::Dropped)
}

/// The trace ids in these headers, also of contexts that are not valid.
pub(super) fn trace_ids(headers: &HeaderMap) -> Vec<TraceId> {
    WireFormat::ALL.into_iter().filter_map(|format| format.trace_id(headers)).collect()
}

/// The contexts in these headers: format, trace and span id.
pub(super) fn traces_of(headers: &HeaderMap) -> Vec<(WireFormat, TraceId, SpanId)> {
    let of = |format: WireFormat| format.ids(headers).map(|(trace, span)| (format, trace, span));
    WireFormat::ALL.into_iter().filter_map(of).collect()
}

/// The decision that a call has, in this format before others; of a context before one that came alone. `None` where it has none.
pub(super) fn decision_of(format: WireFormat, call: &HeaderMap) -> Option<Sampling> {
    let formats = [format].into_iter().chain(WireFormat::ALL);
    let read: Vec<Incoming> = formats.filter_map(|format| format.parse(call)).collect();
    read.iter().find(|incoming| incoming.context.is_some()).or(read.first()).map(|incoming| incoming.sampling)
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
    use crate::trace_context::HeaderFamily;
    use crate::trace_context::cases_for_tests::context_cases;

    fn call(headers: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        headers.iter().for_each(|(name, value)| {
            map.append(*name, value.parse().unwrap());
        });
        map
    }

    fn sent() -> Context {
        HeaderFamily::W3c.read(&call(&[("traceparent", "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01")])).unwrap()
    }

    #[test]
    fn a_context_goes_on_and_has_a_decision_where_a_hop_reads_one() {
        const IDS: [&str; 2] = ["463ac35c9f6413ad48485a3953bb6124", "a2fb4a1d1a96d312"];
        let mut untouched = 0;
        for case in context_cases() {
            let headers: Vec<_> = case.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let call = call(&headers);
            assert!(case.context.is_some() || !goes_on(&sent(), &call), "{headers:?}");
            let format = if case.family == HeaderFamily::W3c { WireFormat::TraceContext } else { WireFormat::B3Multi };
            let has_one = case.context.is_some() || case.sampling != Sampling::Deferred;
            assert_eq!(decision_of(format, &call), has_one.then_some(case.sampling), "{headers:?}");
            // One context, with the ids as they were sent.
            let text: String = case.headers.iter().map(|(_, value)| value.as_str()).collect();
            if case.context.is_some() && IDS.iter().all(|id| text.matches(id).count() == 1) && call.len() == call.keys_len() {
                assert!(goes_on(&sent(), &call), "{headers:?}");
                untouched += 1;
            }
        }
        assert!(untouched > 200, "{untouched}");
    }

    #[test]
    fn each_fate_of_a_context_has_its_name() {
        let sent = sent();
        let same = "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01";
        let upper = same.to_uppercase();
        for (format, headers, fate) in [
            (WireFormat::TraceContext, vec![], Fate::Dropped),
            (WireFormat::TraceContext, vec![("traceparent", same)], Fate::Untouched),
            (
                WireFormat::TraceContext,
                vec![("traceparent", "00-463ac35c9f6413ad48485a3953bb6124-00000000000000aa-01")],
                Fate::Continued,
            ),
            (
                WireFormat::TraceContext,
                vec![("traceparent", "00-11111111111111111111111111111111-00000000000000aa-01")],
                Fate::Anew,
            ),
            (WireFormat::TraceContext, vec![("traceparent", same), ("traceparent", same)], Fate::Mangled(Mangling::Doubled)),
            (WireFormat::TraceContext, vec![("traceparent", &format!("{same}, {same}"))], Fate::Mangled(Mangling::Joined)),
            (WireFormat::TraceContext, vec![("traceparent", &upper)], Fate::Mangled(Mangling::UpperCase)),
            (WireFormat::TraceContext, vec![("traceparent", "00-463ac35c9f6413ad")], Fate::Mangled(Mangling::Changed)),
            (
                WireFormat::B3Multi,
                vec![("x-b3-traceid", "48485a3953bb6124"), ("x-b3-spanid", "00000000000000aa")],
                Fate::Mangled(Mangling::Shortened),
            ),
            (WireFormat::B3, vec![("b3", "463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1")], Fate::Untouched),
            (WireFormat::B3, vec![("b3", "48485a3953bb6124-00000000000000aa-1")], Fate::Mangled(Mangling::Shortened)),
            (WireFormat::B3, vec![("b3", "463ac35c9f6413ad-a2fb4a1d1a96d312-1")], Fate::Mangled(Mangling::Shortened)),
            (
                WireFormat::B3,
                vec![("b3", "000000000000000048485a3953bb6124-a2fb4a1d1a96d312-1")],
                Fate::Mangled(Mangling::Halved),
            ),
            (
                WireFormat::B3,
                vec![("b3", "463ac35c9f6413ad48485a3953bb6124-0000a2fb4a1d1a96d312-1")],
                Fate::Mangled(Mangling::SpanLength),
            ),
            (
                WireFormat::B3Multi,
                vec![("x-b3-traceid", "000000000000000048485a3953bb6124"), ("x-b3-spanid", "a2fb4a1d1a96d312")],
                Fate::Mangled(Mangling::Halved),
            ),
            (
                WireFormat::B3Multi,
                vec![("x-b3-traceid", "463ac35c9f6413ad48485a3953bb6124"), ("x-b3-spanid", "1a96d312")],
                Fate::Mangled(Mangling::SpanLength),
            ),
            (
                WireFormat::B3Multi,
                vec![
                    ("x-b3-traceid", "463ac35c9f6413ad48485a3953bb6124"),
                    ("x-b3-spanid", "a2fb4a1d1a96d312"),
                    ("x-b3-spanid", "00000000000000aa"),
                ],
                Fate::Mangled(Mangling::Doubled),
            ),
            (
                WireFormat::B3Multi,
                vec![("x-b3-traceid", "463AC35C9F6413AD48485A3953BB6124"), ("x-b3-spanid", "a2fb4a1d1a96d312")],
                Fate::Mangled(Mangling::UpperCase),
            ),
            (
                WireFormat::TraceContext,
                vec![("traceparent", "00-000000000000000048485a3953bb6124-00000000000000aa-01")],
                Fate::Mangled(Mangling::Halved),
            ),
            (
                WireFormat::TraceContext,
                vec![("traceparent", "00-463ac35c9f6413ad0000000000000000-a2fb4a1d1a96d312-01")],
                Fate::Mangled(Mangling::Halved),
            ),
            (
                WireFormat::TraceContext,
                vec![("traceparent", "00-48485a3953bb6124-00000000000000aa-01")],
                Fate::Mangled(Mangling::Shortened),
            ),
            (
                WireFormat::TraceContext,
                vec![("traceparent", "00-0000463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01")],
                Fate::Mangled(Mangling::Padded),
            ),
            (
                WireFormat::TraceContext,
                vec![("traceparent", "00-463ac35c9f6413ad48485a3953bb6124-0000000000000000a2fb4a1d1a96d312-01")],
                Fate::Mangled(Mangling::SpanLength),
            ),
            (
                WireFormat::TraceContext,
                vec![("traceparent", "00-463ac35c9f6413ad48485a3953bb6124-A2FB4A1D1A96D312-01")],
                Fate::Mangled(Mangling::UpperCase),
            ),
            (WireFormat::TraceContext, vec![("traceparent", &format!("{same},"))], Fate::Mangled(Mangling::StrayComma)),
            (WireFormat::TraceContext, vec![("traceparent", &same[..54])], Fate::Mangled(Mangling::Changed)),
            (WireFormat::B3, vec![("b3", "0")], Fate::Mangled(Mangling::Changed)),
        ] {
            assert_eq!(of_context(format, &sent, &call(&headers)), fate, "{headers:?}");
        }
    }

    #[test]
    fn a_trace_id_of_64_bits_may_be_padded_by_a_tracer_alone() {
        let low = TraceId::from(u128::from_be_bytes(sent().trace_id.to_bytes()) & u128::from(u64::MAX));
        let sent = Context { trace_id: low, short_trace_id: true, ..sent() };
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
            assert_eq!(of_short_id(WireFormat::B3, &sent, &call), fate, "{headers:?}");
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
