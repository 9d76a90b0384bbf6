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
    /// A trace id of 64 bits became one of 128.
    Padded,
    UpperCase,
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
            Self::Padded => "pads its trace id of 64 bits to 128",
            Self::UpperCase => "writes it in upper case",
            Self::Changed => "changes its value",
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
        let low = |id: TraceId| u128::from_be_bytes(id.to_bytes()) & u128::from(u64::MAX);
        (was != is && low(was) == u128::from_be_bytes(is.to_bytes())).then_some(Self::Shortened)
    }
}

fn trace_id(header: &str, value: &str) -> Option<TraceId> {
    let mut parts = value.split('-');
    let digits = match header {
        "traceparent" => parts.nth(1)?,
        "b3" => parts.next()?,
        "x-b3-traceid" => value,
        _ => return None,
    };
    parse_trace_id(digits.as_bytes())
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
            ("traceparent", &parent, vec![&padded], Some(Mangling::Shortened)),
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
