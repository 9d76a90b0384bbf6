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
pub(super) enum HeaderOutcome {
    /// Arrived as it was sent.
    Untouched,
    /// The trace goes on, with a span id of the app's own.
    Continued,
    /// A list that got members which are empty.
    EmptyMember,
    /// Another trace.
    NewTrace,
    Dropped,
    Mangled(Mangling),
}

impl HeaderOutcome {
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
pub(super) fn of_context(format: WireFormat, sent: &Context, call: &HeaderMap) -> HeaderOutcome {
    match call.get_all(format.header()).iter().count() {
        0 => return HeaderOutcome::Dropped,
        1 => {}
        _ => return HeaderOutcome::Mangled(Mangling::Doubled),
    }
    if let Some(how) = of_lines(format, call) {
        return HeaderOutcome::Mangled(how);
    }
    let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    let digits = format.digits(call).filter(|(trace, span)| is_hex(trace) && is_hex(span));
    let Some((trace, span)) = digits else { return HeaderOutcome::Mangled(Mangling::Changed) };
    let sent_trace = sent.trace_id.to_string();
    let sent_trace = &sent_trace[if sent.short_trace_id { 16 } else { 0 }..];
    if !trace.eq_ignore_ascii_case(sent_trace) {
        return Mangling::of_trace_id(sent_trace, trace).map_or(HeaderOutcome::NewTrace, HeaderOutcome::Mangled);
    }
    if [trace, span].into_iter().any(|id| id.bytes().any(|digit| digit.is_ascii_uppercase())) {
        return HeaderOutcome::Mangled(Mangling::UpperCase);
    }
    if span.len() != SPAN_DIGITS {
        return HeaderOutcome::Mangled(Mangling::SpanLength);
    }
    // Receivers leave out a context that is not valid as a whole.
    match format.parse(call).and_then(|incoming| incoming.context) {
        None => HeaderOutcome::Mangled(Mangling::Changed),
        Some(context) if context.span_id == sent.span_id => HeaderOutcome::Untouched,
        Some(_) => HeaderOutcome::Continued,
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
pub(super) fn of_short_id(format: WireFormat, sent: &Context, call: &HeaderMap) -> HeaderOutcome {
    let padded = Context { short_trace_id: false, ..*sent };
    let shapes = WireFormat::ALL.into_iter().filter(|other| *other == format || values(call, format.header()).is_empty());
    let outcomes = shapes.map(|shape| match of_context(shape, &padded, call) {
        HeaderOutcome::Untouched => HeaderOutcome::Mangled(Mangling::Padded),
        HeaderOutcome::Mangled(Mangling::Shortened | Mangling::Halved) | HeaderOutcome::NewTrace => of_context(shape, sent, call),
        outcome => outcome,
    });
    outcomes.min().unwrap_or(HeaderOutcome::Dropped)
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
pub(super) fn of_value(name: &str, sent: &str, call: &HeaderMap) -> HeaderOutcome {
    let found = values(call, name);
    match found.as_slice() {
        [] => HeaderOutcome::Dropped,
        [value] if value == sent => HeaderOutcome::Untouched,
        lines if matches!(name, "baggage" | "tracestate") => of_list(name, sent, lines),
        [value] if value.split(',').any(|part| part.trim() == sent) => {
            of_commas(value).map_or(HeaderOutcome::Mangled(Mangling::Changed), HeaderOutcome::Mangled)
        }
        [value] if value.eq_ignore_ascii_case(sent) => HeaderOutcome::Mangled(Mangling::UpperCase),
        [value] if is_cut(sent, value) => HeaderOutcome::Mangled(Mangling::Cut),
        [value] if name == "x-request-id" && !value.contains(sent) => HeaderOutcome::NewTrace,
        [_] => HeaderOutcome::Mangled(Mangling::Changed),
        several if several.iter().any(|value| value == sent) => HeaderOutcome::Mangled(Mangling::Doubled),
        _ => HeaderOutcome::Mangled(Mangling::Changed),
    }
}

/// Whether a value is the beginning of what was sent.
fn is_cut(sent: &str, value: &str) -> bool {
    !value.is_empty() && value.len() < sent.len() && sent.starts_with(value)
}

/// What became of the one member of a list, to which others may be added, in the same line or in lines of their own.
fn of_list(name: &str, sent: &str, lines: &[String]) -> HeaderOutcome {
    let members: Vec<&str> = lines.iter().flat_map(|line| line.split(',')).map(str::trim).collect();
    match members.iter().filter(|member| **member == sent).count() {
        0 if members.iter().any(|member| is_cut(sent, member)) => HeaderOutcome::Mangled(Mangling::Cut),
        0 => HeaderOutcome::Mangled(Mangling::Changed),
        1 if !members.contains(&"") => HeaderOutcome::Continued,
        // W3C lets `tracestate` have members that are empty, and `baggage` not.
        1 if name == "tracestate" => HeaderOutcome::EmptyMember,
        1 => HeaderOutcome::Mangled(Mangling::StrayComma),
        _ => HeaderOutcome::Mangled(Mangling::Doubled),
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
        for (format, headers, outcome) in [
            (WireFormat::TraceContext, vec![], HeaderOutcome::Dropped),
            (WireFormat::TraceContext, vec![("traceparent", same)], HeaderOutcome::Untouched),
            (
                WireFormat::TraceContext,
                vec![("traceparent", "00-463ac35c9f6413ad48485a3953bb6124-00000000000000aa-01")],
                HeaderOutcome::Continued,
            ),
            (
                WireFormat::TraceContext,
                vec![("traceparent", "00-11111111111111111111111111111111-00000000000000aa-01")],
                HeaderOutcome::NewTrace,
            ),
            (
                WireFormat::TraceContext,
                vec![("traceparent", same), ("traceparent", same)],
                HeaderOutcome::Mangled(Mangling::Doubled),
            ),
            (
                WireFormat::TraceContext,
                vec![("traceparent", &format!("{same}, {same}"))],
                HeaderOutcome::Mangled(Mangling::Joined),
            ),
            (WireFormat::TraceContext, vec![("traceparent", &upper)], HeaderOutcome::Mangled(Mangling::UpperCase)),
            (WireFormat::TraceContext, vec![("traceparent", "00-463ac35c9f6413ad")], HeaderOutcome::Mangled(Mangling::Changed)),
            (
                WireFormat::B3Multi,
                vec![("x-b3-traceid", "48485a3953bb6124"), ("x-b3-spanid", "00000000000000aa")],
                HeaderOutcome::Mangled(Mangling::Shortened),
            ),
            (WireFormat::B3, vec![("b3", "463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1")], HeaderOutcome::Untouched),
            (WireFormat::B3, vec![("b3", "48485a3953bb6124-00000000000000aa-1")], HeaderOutcome::Mangled(Mangling::Shortened)),
            (WireFormat::B3, vec![("b3", "463ac35c9f6413ad-a2fb4a1d1a96d312-1")], HeaderOutcome::Mangled(Mangling::Shortened)),
            (
                WireFormat::B3,
                vec![("b3", "000000000000000048485a3953bb6124-a2fb4a1d1a96d312-1")],
                HeaderOutcome::Mangled(Mangling::Halved),
            ),
            (
                WireFormat::B3,
                vec![("b3", "463ac35c9f6413ad48485a3953bb6124-0000a2fb4a1d1a96d312-1")],
                HeaderOutcome::Mangled(Mangling::SpanLength),
            ),
            (
                WireFormat::B3Multi,
                vec![("x-b3-traceid", "000000000000000048485a3953bb6124"), ("x-b3-spanid", "a2fb4a1d1a96d312")],
                HeaderOutcome::Mangled(Mangling::Halved),
            ),
            (
                WireFormat::B3Multi,
                vec![("x-b3-traceid", "463ac35c9f6413ad48485a3953bb6124"), ("x-b3-spanid", "1a96d312")],
                HeaderOutcome::Mangled(Mangling::SpanLength),
            ),
            (
                WireFormat::B3Multi,
                vec![
                    ("x-b3-traceid", "463ac35c9f6413ad48485a3953bb6124"),
                    ("x-b3-spanid", "a2fb4a1d1a96d312"),
                    ("x-b3-spanid", "00000000000000aa"),
                ],
                HeaderOutcome::Mangled(Mangling::Doubled),
            ),
            (
                WireFormat::B3Multi,
                vec![("x-b3-traceid", "463AC35C9F6413AD48485A3953BB6124"), ("x-b3-spanid", "a2fb4a1d1a96d312")],
                HeaderOutcome::Mangled(Mangling::UpperCase),
            ),
            (
                WireFormat::TraceContext,
                vec![("traceparent", "00-000000000000000048485a3953bb6124-00000000000000aa-01")],
                HeaderOutcome::Mangled(Mangling::Halved),
            ),
            (
                WireFormat::TraceContext,
                vec![("traceparent", "00-463ac35c9f6413ad0000000000000000-a2fb4a1d1a96d312-01")],
                HeaderOutcome::Mangled(Mangling::Halved),
            ),
            (
                WireFormat::TraceContext,
                vec![("traceparent", "00-48485a3953bb6124-00000000000000aa-01")],
                HeaderOutcome::Mangled(Mangling::Shortened),
            ),
            (
                WireFormat::TraceContext,
                vec![("traceparent", "00-0000463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01")],
                HeaderOutcome::Mangled(Mangling::Padded),
            ),
            (
                WireFormat::TraceContext,
                vec![("traceparent", "00-463ac35c9f6413ad48485a3953bb6124-0000000000000000a2fb4a1d1a96d312-01")],
                HeaderOutcome::Mangled(Mangling::SpanLength),
            ),
            (
                WireFormat::TraceContext,
                vec![("traceparent", "00-463ac35c9f6413ad48485a3953bb6124-A2FB4A1D1A96D312-01")],
                HeaderOutcome::Mangled(Mangling::UpperCase),
            ),
            (WireFormat::TraceContext, vec![("traceparent", &format!("{same},"))], HeaderOutcome::Mangled(Mangling::StrayComma)),
            (WireFormat::TraceContext, vec![("traceparent", &same[..54])], HeaderOutcome::Mangled(Mangling::Changed)),
            (WireFormat::B3, vec![("b3", "0")], HeaderOutcome::Mangled(Mangling::Changed)),
        ] {
            assert_eq!(of_context(format, &sent, &call(&headers)), outcome, "{headers:?}");
        }
    }

    #[test]
    fn a_trace_id_of_64_bits_may_be_padded_by_a_tracer_alone() {
        let low = TraceId::from(u128::from_be_bytes(sent().trace_id.to_bytes()) & u128::from(u64::MAX));
        let sent = Context { trace_id: low, short_trace_id: true, ..sent() };
        let padded = "000000000000000048485a3953bb6124";
        for (headers, outcome) in [
            (vec![("b3", "48485a3953bb6124-a2fb4a1d1a96d312-1".to_owned())], HeaderOutcome::Untouched),
            (vec![("b3", "48485a3953bb6124-00000000000000aa-1".to_owned())], HeaderOutcome::Continued),
            (vec![("b3", format!("{padded}-00000000000000aa-1"))], HeaderOutcome::Continued),
            (vec![("traceparent", format!("00-{padded}-00000000000000aa-01"))], HeaderOutcome::Continued),
            (vec![("b3", format!("{padded}-a2fb4a1d1a96d312-1"))], HeaderOutcome::Mangled(Mangling::Padded)),
            (
                vec![("b3", "48485a3953bb61240000000000000000-00000000000000aa-1".to_owned())],
                HeaderOutcome::Mangled(Mangling::Padded),
            ),
            (vec![("b3", format!("{padded}00000000-00000000000000aa-1"))], HeaderOutcome::Mangled(Mangling::Padded)),
            (vec![("b3", "11111111111111110000000000000000-00000000000000aa-1".to_owned())], HeaderOutcome::NewTrace),
            (vec![], HeaderOutcome::Dropped),
        ] {
            let call = call(&headers.iter().map(|(name, value)| (*name, value.as_str())).collect::<Vec<_>>());
            assert_eq!(of_short_id(WireFormat::B3, &sent, &call), outcome, "{headers:?}");
        }
    }

    #[test]
    fn each_fate_of_another_header_has_its_name() {
        for (name, sent, got, outcome) in [
            ("x-request-id", "abc", vec!["abc"], HeaderOutcome::Untouched),
            ("x-request-id", "abc", vec!["xyz"], HeaderOutcome::NewTrace),
            ("x-request-id", "abc", vec!["abc", "abc"], HeaderOutcome::Mangled(Mangling::Doubled)),
            ("x-request-id", "abc", vec!["abc, abc"], HeaderOutcome::Mangled(Mangling::Joined)),
            ("x-request-id", "abc", vec![], HeaderOutcome::Dropped),
            ("x-request-id", "abc", vec!["abc,"], HeaderOutcome::Mangled(Mangling::StrayComma)),
            ("baggage", "a=1", vec!["b=2,a=1"], HeaderOutcome::Continued),
            ("baggage", "a=1", vec!["b=2", "a=1"], HeaderOutcome::Continued),
            ("baggage", "a=1", vec!["a=1,"], HeaderOutcome::Mangled(Mangling::StrayComma)),
            ("baggage", "a=1", vec!["a=1,,b=2"], HeaderOutcome::Mangled(Mangling::StrayComma)),
            ("baggage", "a=1", vec!["a=1,a=1"], HeaderOutcome::Mangled(Mangling::Doubled)),
            ("tracestate", "a=1", vec!["b=2,a=1"], HeaderOutcome::Continued),
            ("tracestate", "a=1", vec!["a=1", "b=2"], HeaderOutcome::Continued),
            ("tracestate", "a=1", vec!["a=1,"], HeaderOutcome::EmptyMember),
            ("tracestate", "a=1", vec![", ,a=1,b=2"], HeaderOutcome::EmptyMember),
            ("tracestate", "a=1", vec!["a=1", "a=1"], HeaderOutcome::Mangled(Mangling::Doubled)),
            ("tracestate", "a=1", vec!["a=2,"], HeaderOutcome::Mangled(Mangling::Changed)),
            ("baggage", "a=1", vec!["b=2"], HeaderOutcome::Mangled(Mangling::Changed)),
        ] {
            let headers: Vec<_> = got.iter().map(|value| (name, *value)).collect();
            assert_eq!(of_value(name, sent, &call(&headers)), outcome, "{name} {got:?}");
        }
    }
}
