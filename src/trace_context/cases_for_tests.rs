//! Contexts good, bad and odd, and what each of them is by the rules, for the tests of everybody who reads contexts.
//!
//! A context is put together from parts; each part states by itself whether it is valid and what it means. Nothing here calls a
//! parser. Rules: W3C Trace Context, section 3.2; openzipkin/b3-propagation; the table "Carried headers" of the contract.

use super::{HeaderFamily, Sampling};

const TRACE: &str = "463ac35c9f6413ad48485a3953bb6124";
const SHORT: &str = "48485a3953bb6124";
const PADDED: &str = "000000000000000048485a3953bb6124";
/// The span id of every valid context.
pub(crate) const SPAN: &str = "a2fb4a1d1a96d312";
const PARENT: &str = "e457b5a2e4d86bd1";
const OTHER: &str = "b7ad6b7169203331";

/// A valid context: 32 and 16 lower-case hex digits, whatever was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ValidContext {
    pub(crate) trace_id: &'static str,
    pub(crate) is_short: bool,
    pub(crate) span_id: &'static str,
    pub(crate) parent_id: Option<&'static str>,
    pub(crate) sampling: Sampling,
}

/// The trace headers of one request.
#[derive(Debug)]
pub(crate) struct ContextCase {
    pub(crate) family: HeaderFamily,
    pub(crate) headers: Vec<(&'static str, String)>,
    /// The context that everybody has to read; `None` when there is none.
    pub(crate) context: Option<ValidContext>,
    /// The decision: the context's, or one that came alone.
    pub(crate) sampling: Sampling,
}

impl ContextCase {
    /// The headers as a reply has them: every name once, with its values in order.
    pub(crate) fn values_by_name(&self) -> Vec<(String, Vec<String>)> {
        let mut out: Vec<(String, Vec<String>)> = Vec::new();
        for (name, value) in &self.headers {
            match out.iter_mut().find(|(known, _)| known == name) {
                Some((_, values)) => values.push(value.clone()),
                None => out.push(((*name).to_owned(), vec![value.clone()])),
            }
        }
        out
    }
}

/// All of them.
pub(crate) fn context_cases() -> Vec<ContextCase> {
    let mut cases = Vec::new();
    w3c(&mut cases);
    w3c_repeated(&mut cases);
    b3_single(&mut cases);
    b3_multi(&mut cases);
    b3_both(&mut cases);
    cases
}

fn case(
    family: HeaderFamily,
    headers: Vec<(&'static str, String)>,
    context: Option<ValidContext>,
    alone: Sampling,
) -> ContextCase {
    let sampling = context.map_or(alone, |context| context.sampling);
    ContextCase { family, headers, context, sampling }
}

/// Ids that are valid in no format.
const BAD_TRACES: [&str; 7] = [
    "",
    "00000000000000000000000000000000",
    "463ac35c9f6413ad48485a3953bb612",
    "463ac35c9f6413ad48485a3953bb61245",
    "463ac35c9f6413ad48485a3953bb612g",
    "463ac35c-9f64-13ad-4848-5a3953bb",
    "48485a3953bb612",
];
const BAD_SPANS: [&str; 5] = ["", "0000000000000000", "a2fb4a1d1a96d31", "a2fb4a1d1a96d3122", "a2fb4a1d1a96d31x"];

fn w3c(cases: &mut Vec<ContextCase>) {
    #[derive(Clone, Copy, PartialEq)]
    enum Version {
        Zero,
        /// Read as 00; more may follow after a dash.
        Future,
        Invalid,
    }
    use Version::*;
    let versions = [
        ("00", Zero),
        ("01", Future),
        ("cc", Future),
        ("fe", Future),
        ("ff", Invalid),
        ("CC", Invalid),
        ("0g", Invalid),
        ("0", Invalid),
        ("000", Invalid),
        ("", Invalid),
    ];
    let flags = [
        ("00", Some(Sampling::Drop)),
        ("01", Some(Sampling::Sample)),
        ("02", Some(Sampling::Drop)),
        ("03", Some(Sampling::Sample)),
        ("fe", Some(Sampling::Drop)),
        ("ff", Some(Sampling::Sample)),
        ("FF", None),
        ("0g", None),
        ("0", None),
        ("001", None),
        ("", None),
    ];
    // What follows the flags: nothing, what a later version may add, what none may.
    let tails = [("", true, true), ("-extra", false, true), ("-", false, true), ("xtra", false, false)];
    let mut add = |value: String, context| {
        cases.push(case(HeaderFamily::W3c, vec![("traceparent", value)], context, Sampling::Deferred));
    };
    let valid = |sampling| ValidContext { trace_id: TRACE, is_short: false, span_id: SPAN, parent_id: None, sampling };
    for (version, is) in versions {
        for (flags, sampling) in flags {
            for (tail, fits_zero, fits_future) in tails {
                let fits = (is == Zero && fits_zero) || (is == Future && fits_future);
                add(format!("{version}-{TRACE}-{SPAN}-{flags}{tail}"), sampling.filter(|_| fits).map(valid));
            }
        }
    }
    let (upper_trace, upper_span) = (TRACE.to_uppercase(), SPAN.to_uppercase());
    let traces = BAD_TRACES.into_iter().chain([SHORT, &upper_trace]).map(|trace| (trace, None));
    for (trace, trace_id) in traces.chain([(TRACE, Some(TRACE)), (PADDED, Some(PADDED))]) {
        let spans = BAD_SPANS.into_iter().chain([upper_span.as_str()]).map(|span| (span, false));
        for (span, is_span) in spans.chain([(SPAN, true)]) {
            let context = trace_id.filter(|_| is_span).map(|trace_id| ValidContext { trace_id, ..valid(Sampling::Sample) });
            add(format!("00-{trace}-{span}-01"), context);
        }
    }
    for garbage in ["garbage", "-", "---", "00", " "] {
        add(garbage.to_owned(), None);
    }
    for separators in [["_", "-", "-"], ["-", "_", "-"], ["-", "-", "_"], ["", "-", "-"]] {
        let [one, two, three] = separators;
        add(format!("00{one}{TRACE}{two}{SPAN}{three}01"), None);
    }
}

/// Of two `traceparent` headers neither counts, not even when they agree.
fn w3c_repeated(cases: &mut Vec<ContextCase>) {
    let good = format!("00-{TRACE}-{SPAN}-01");
    for other in [good.clone(), format!("00-{TRACE}-{OTHER}-01"), "garbage".to_owned()] {
        for pair in [[&good, &other], [&other, &good]] {
            let headers = pair.into_iter().map(|value| ("traceparent", value.clone())).collect();
            cases.push(case(HeaderFamily::W3c, headers, None, Sampling::Deferred));
        }
    }
}

/// Trace ids as B3 reads them: 64 or 128 bits, either case.
fn b3_traces() -> Vec<(String, Option<(&'static str, bool)>)> {
    let bad = BAD_TRACES.into_iter().chain(["0000000000000000"]).map(|trace| (trace.to_owned(), None));
    let good = [(TRACE, (TRACE, false)), (PADDED, (PADDED, false)), (SHORT, (PADDED, true))];
    let good = good.into_iter().flat_map(|(text, is)| [(text.to_owned(), Some(is)), (text.to_uppercase(), Some(is))]);
    bad.chain(good).collect()
}

fn b3_spans() -> Vec<(String, bool)> {
    let bad = BAD_SPANS.into_iter().map(|span| (span.to_owned(), false));
    bad.chain([(SPAN.to_owned(), true), (SPAN.to_uppercase(), true)]).collect()
}

fn b3_single(cases: &mut Vec<ContextCase>) {
    let mut add = |value: String, context, alone| {
        cases.push(case(HeaderFamily::B3, vec![("b3", value)], context, alone));
    };
    let valid = |sampling| ValidContext { trace_id: TRACE, is_short: false, span_id: SPAN, parent_id: None, sampling };
    for (trace, trace_id) in b3_traces() {
        for (span, is_span) in b3_spans() {
            let ids = trace_id.filter(|_| is_span);
            let of = |(trace_id, is_short)| ValidContext { trace_id, is_short, ..valid(Sampling::Sample) };
            add(format!("{trace}-{span}-1"), ids.map(of), Sampling::Deferred);
        }
    }
    let states = [("0", Some(Sampling::Drop)), ("1", Some(Sampling::Sample)), ("d", Some(Sampling::Debug))];
    let odd = ["", "2", "01", "D", "true", "false", "1 "].map(|state| (state, None));
    let upper = PARENT.to_uppercase();
    let parents = [(PARENT, Some(PARENT)), (&upper, Some(PARENT))];
    let bad_parents = BAD_SPANS.into_iter().map(|parent| (parent, None));
    let parents: Vec<_> = parents.into_iter().chain(bad_parents).collect();
    add(format!("{TRACE}-{SPAN}"), Some(valid(Sampling::Deferred)), Sampling::Deferred);
    // A parent without a state stands where the state belongs.
    add(format!("{TRACE}-{SPAN}-{PARENT}"), None, Sampling::Deferred);
    for (state, sampling) in states.into_iter().chain(odd) {
        add(format!("{TRACE}-{SPAN}-{state}"), sampling.map(valid), Sampling::Deferred);
        for (parent, parent_id) in &parents {
            let context = sampling.filter(|_| parent_id.is_some()).map(|is| ValidContext { parent_id: *parent_id, ..valid(is) });
            add(format!("{TRACE}-{SPAN}-{state}-{parent}"), context, Sampling::Deferred);
            add(format!("{TRACE}-{SPAN}-{state}-{parent}-more"), None, Sampling::Deferred);
        }
        // A decision alone.
        add(state.to_owned(), None, sampling.unwrap_or(Sampling::Deferred));
    }
    add(TRACE.to_owned(), None, Sampling::Deferred);
}

fn b3_multi(cases: &mut Vec<ContextCase>) {
    // A part that is `None` is not sent.
    let sampled = [
        (None, Sampling::Deferred),
        (Some("0"), Sampling::Drop),
        (Some("1"), Sampling::Sample),
        (Some("false"), Sampling::Drop),
        (Some("true"), Sampling::Sample),
        (Some("d"), Sampling::Debug),
        (Some(""), Sampling::Deferred),
        (Some("TRUE"), Sampling::Deferred),
        (Some("2"), Sampling::Deferred),
    ];
    let flags = [(None, false), (Some("1"), true), (Some("0"), false), (Some(""), false), (Some("11"), false)];
    let parents = [(None, None), (Some(PARENT), Some(PARENT)), (Some("garbage"), None), (Some(""), None)];
    let mut add = |parts: [Option<&str>; 5], context, alone| {
        let names = super::b3::MULTI.into_iter().zip(parts);
        let headers = names.filter_map(|(name, value)| Some((name, value?.to_owned()))).collect();
        cases.push(case(HeaderFamily::B3, headers, context, alone));
    };
    let valid = |sampling| ValidContext { trace_id: TRACE, is_short: false, span_id: SPAN, parent_id: None, sampling };
    for (sampled, decision) in sampled {
        for (flags, is_debug) in flags {
            let sampling = if is_debug { Sampling::Debug } else { decision };
            for (parent, parent_id) in parents {
                // A parent that is none is left out, and the context is valid.
                let context = ValidContext { parent_id, ..valid(sampling) };
                add([Some(TRACE), Some(SPAN), parent, sampled, flags], Some(context), sampling);
            }
            // A decision alone, or with half a context.
            for [trace, span] in [[None, None], [Some(TRACE), None], [None, Some(SPAN)]] {
                add([trace, span, None, sampled, flags], None, sampling);
            }
        }
    }
    for (trace, trace_id) in b3_traces() {
        for (span, is_span) in b3_spans() {
            let of = |(trace_id, is_short)| ValidContext { trace_id, is_short, ..valid(Sampling::Sample) };
            let context = trace_id.filter(|_| is_span).map(of);
            add([Some(&trace), Some(&span), None, Some("1"), None], context, Sampling::Sample);
        }
    }
}

/// Several headers win over the single one where both are valid, and of a repeated header the first value counts.
fn b3_both(cases: &mut Vec<ContextCase>) {
    let valid = |sampling| ValidContext { trace_id: TRACE, is_short: false, span_id: SPAN, parent_id: None, sampling };
    let multi = |trace: &str, span: &str| vec![("x-b3-traceid", trace.to_owned()), ("x-b3-spanid", span.to_owned())];
    let single = |span: &str| vec![("b3", format!("{TRACE}-{span}-0"))];
    let mut add = |parts: [Vec<(&'static str, String)>; 2], context| {
        cases.push(case(HeaderFamily::B3, parts.concat(), context, Sampling::Deferred));
    };
    add([single(OTHER), multi(TRACE, SPAN)], Some(valid(Sampling::Deferred)));
    add([single(SPAN), multi("garbage", OTHER)], Some(valid(Sampling::Drop)));
    add([multi(TRACE, ""), single(SPAN)], Some(valid(Sampling::Drop)));
    add([multi(TRACE, SPAN), multi(TRACE, OTHER)], Some(valid(Sampling::Deferred)));
    add([multi("garbage", SPAN), multi(TRACE, SPAN)], None);
    add([single(SPAN), single(OTHER)], Some(valid(Sampling::Drop)));
    add([single("garbage"), single(SPAN)], None);
}
