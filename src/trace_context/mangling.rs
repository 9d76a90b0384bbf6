//! Ways to damage a header that have a name.

use opentelemetry::trace::TraceId;

use super::carried::{X_REQUEST_ID, is_trace_context};
use super::context::parse_trace_id;

/// How a value was damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Mangling {
    /// Several values in one line, joined by a comma.
    Joined,
    /// Several lines where one was sent.
    Doubled,
    /// A trace id of 128 bits became one of 64.
    Shortened,
    /// The same, with zeros in place of the other half.
    Halved,
    /// A trace id got more digits than it had.
    Padded,
    /// A span id got more digits than it had, or fewer.
    SpanLength,
    UpperCase,
    /// A comma with no value before or behind it.
    StrayComma,
    /// The beginning of a value.
    Cut,
    /// A value with more around it, or another one.
    Changed,
}

impl Mangling {
    /// What somebody does who damages a header so.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Joined => "joins it with another value by a comma",
            Self::Doubled => "sends it twice",
            Self::Shortened => "shortens its trace id to 64 bits",
            Self::Halved => "shortens its trace id to 64 bits and pads them with zeros to 128",
            Self::Padded => "pads its trace id of 64 bits to 128",
            Self::SpanLength => "pads or shortens its span id, which has 16 digits",
            Self::UpperCase => "writes it in upper case",
            Self::StrayComma => "adds a comma without a value",
            Self::Cut => "cuts its value short",
            Self::Changed => "changes its value",
        }
    }

    /// Why somebody does, in words that stand for itself.
    pub(crate) fn cause(self) -> &'static str {
        match self {
            Self::Joined | Self::Doubled => {
                "two parts of it write the header: a library that injects it, and code that copies it"
            }
            Self::Shortened => "its tracer has trace ids of 64 bits",
            Self::Halved => "its tracer has trace ids of 64 bits, which it writes as ones of 128",
            Self::Padded => "it takes every trace id for one of 128 bits",
            Self::UpperCase | Self::SpanLength => "it formats the ids by itself",
            Self::StrayComma => "it joins values by a comma, also where one of them is empty",
            Self::Cut => "it keeps so many characters and no more",
            Self::Changed => "it writes the header by itself",
        }
    }

    /// What happened to a header that had one value before. Lists, whose values may be joined, and headers of no trace are left alone.
    pub(crate) fn between(name: &str, before: &str, after: &[&str]) -> Option<Self> {
        let is_known = name == X_REQUEST_ID.as_str() || (is_trace_context(name) && name != "tracestate");
        let (&first, more) = after.split_first().filter(|_| is_known)?;
        if !more.is_empty() {
            // The same value twice misleads nobody, but of two `traceparent`s none counts.
            let misleads = name == "traceparent" || more.iter().any(|value| *value != first);
            return misleads.then_some(Self::Doubled);
        }
        if first == before {
            return None;
        }
        if first.contains(',') && !before.contains(',') {
            return Some(Self::Joined);
        }
        let (was, is) = (trace_id(name, before)?, trace_id(name, first)?);
        // B3 permits it.
        if name == "traceparent" && was == is && first.bytes().any(|b| b.is_ascii_uppercase()) {
            return Some(Self::UpperCase);
        }
        let (before, after) = (trace_digits(name, before)?, trace_digits(name, first)?);
        // Zeros in front are how a trace id of 64 bits is written as one of 128.
        if was == is { None } else { Self::of_trace_id(before, after) }
    }

    /// What happened to the digits of a trace id, where something of them is left.
    pub(crate) fn of_trace_id(before: &str, after: &str) -> Option<Self> {
        const HALF: usize = 16;
        let (before, after) = (before.to_ascii_lowercase(), after.to_ascii_lowercase());
        let begins_or_ends = |long: &str, short: &str| long.starts_with(short) || long.ends_with(short);
        if before == after || before.len().min(after.len()) < HALF / 2 {
            return None;
        }
        let is_longer = after.len() > before.len();
        if before.len() != after.len() {
            // What gives back the digits that another header has kept pads nothing.
            let rest = after.strip_prefix(&before).or(after.strip_suffix(&before)).unwrap_or_default();
            let is_filled = is_longer && (rest == before || (!rest.is_empty() && rest.bytes().all(|digit| digit == b'0')));
            let is_part = !is_longer && begins_or_ends(&before, &after);
            return if is_filled { Some(Self::Padded) } else { is_part.then_some(Self::Shortened) };
        }
        let halves = [after.get(..HALF)?, after.get(HALF..)?];
        let is_half = |half: &str| half.len() == HALF && begins_or_ends(&before, half);
        let is_empty = |half: &str| half.bytes().all(|digit| digit == b'0');
        let is_halved = |kept: &str, lost: &str| is_half(kept) && is_empty(lost);
        (is_halved(halves[0], halves[1]) || is_halved(halves[1], halves[0])).then_some(Self::Halved)
    }
}

/// The digits of the trace id in the value of a header.
pub(super) fn trace_digits<'a>(header: &str, value: &'a str) -> Option<&'a str> {
    let mut parts = value.split('-');
    match header {
        "traceparent" => parts.nth(1),
        "b3" => parts.next(),
        "x-b3-traceid" => Some(value),
        _ => None,
    }
}

pub(super) fn trace_id(header: &str, value: &str) -> Option<TraceId> {
    parse_trace_id(trace_digits(header, value)?.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_has_its_name_and_what_tracers_do_has_none() {
        let (id, low) = ("463ac35c9f6413ad48485a3953bb6124", "48485a3953bb6124");
        let parent = format!("00-{id}-a2fb4a1d1a96d312-01");
        let (other, continued) = (format!("00-{}-a2fb4a1d1a96d312-01", "1".repeat(32)), format!("00-{id}-00000000000000aa-01"));
        let (joined, upper) = (format!("{parent}, {parent}"), parent.to_uppercase());
        let padded = format!("00-{low:0>32}-00000000000000aa-01");
        for (name, before, after, how) in [
            ("traceparent", &*parent, vec![&*parent], None),
            ("traceparent", &parent, vec![], None),
            ("traceparent", &parent, vec![&continued], None),
            ("traceparent", &parent, vec![&other], None),
            ("traceparent", &parent, vec![&parent, &other], Some(Mangling::Doubled)),
            ("traceparent", &parent, vec![&parent, &parent], Some(Mangling::Doubled)),
            ("traceparent", &parent, vec![&joined], Some(Mangling::Joined)),
            ("traceparent", &parent, vec![&upper], Some(Mangling::UpperCase)),
            ("traceparent", &parent, vec![&padded], Some(Mangling::Halved)),
            ("traceparent", &parent, vec![&format!("00-463ac35c9f6413ad{:0>16}-a2fb4a1d1a96d312-01", 0)], Some(Mangling::Halved)),
            ("x-b3-traceid", id, vec![&format!("{low:0>32}")], Some(Mangling::Halved)),
            ("x-b3-traceid", id, vec![&format!("{low:0<32}")], Some(Mangling::Halved)),
            ("x-b3-traceid", id, vec!["463ac35c9f6413ad"], Some(Mangling::Shortened)),
            ("x-b3-traceid", low, vec![&format!("{low:0<32}")], Some(Mangling::Padded)),
            ("x-b3-traceid", low, vec![&low.repeat(2)], Some(Mangling::Padded)),
            ("x-b3-traceid", low, vec![id], None),
            ("x-b3-traceid", id, vec![low], Some(Mangling::Shortened)),
            ("x-b3-traceid", low, vec![low], None),
            ("x-b3-traceid", low, vec![&id.replace("463ac35c9f6413ad", "0000000000000000")], None),
            ("x-b3-spanid", low, vec![low, "1111111111111111"], Some(Mangling::Doubled)),
            ("x-b3-sampled", "1", vec!["1", "0"], Some(Mangling::Doubled)),
            ("x-b3-sampled", "1", vec!["1", "1"], None),
            ("b3", &format!("{id}-{low}-1"), vec![&format!("{low}-{low}-1")], Some(Mangling::Shortened)),
            ("x-request-id", "r", vec!["r,r"], Some(Mangling::Joined)),
            ("x-request-id", "r", vec!["r", "s"], Some(Mangling::Doubled)),
            ("x-request-id", "r", vec!["s"], None),
            ("tracestate", "a=1", vec!["a=1", "b=2"], None),
            ("baggage", "a=1", vec!["a=1,b=2"], None),
            ("x-lane", "gray", vec!["gray,base"], None),
        ] {
            assert_eq!(Mangling::between(name, before, &after), how, "{name} {after:?}");
        }
    }
}
