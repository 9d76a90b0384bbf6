//! Words for what happened to a header, and for who does such a thing.

use crate::check::chain::probe::short;
use crate::check::envoy::suggestions::HopRef;
use crate::text::{quoted, shorten};
use crate::trace_context::Mangling;

/// Two values as they are quoted beside each other: in short where that shows that they differ.
pub(super) fn apart(before: &str, after: &str) -> (String, String) {
    const SHOWN: usize = 140;
    match (short(before), short(after)) {
        (before, after) if before != after => (before, after),
        _ => (shorten(before, SHOWN), shorten(after, SHOWN)),
    }
}

/// What arrived in place of one whole value.
pub(super) fn damaged(how: Mangling) -> &'static str {
    match how {
        Mangling::Doubled => "several, and receivers disagree about which of them counts",
        Mangling::Joined => "one in which several values are joined by a comma",
        Mangling::Shortened => "a trace id that is shortened to 64 bits",
        Mangling::Halved => "a trace id that is shortened to 64 bits and padded with zeros",
        Mangling::Padded => "a trace id that is padded to 128 bits",
        Mangling::UpperCase => "it in upper case",
        Mangling::SpanLength | Mangling::StrayComma | Mangling::Cut | Mangling::Changed => "another value",
    }
}

pub(crate) fn decision(sampled: bool) -> &'static str {
    if sampled { "\"sampled\"" } else { "\"not sampled\"" }
}

/// A request that shows the loss at this hop alone.
pub(super) fn ask(hop: &HopRef, names: &[&str]) -> String {
    let name = names.first().copied().unwrap_or("x-request-id");
    let value = match name {
        "traceparent" => "00-11111111111111111111111111111111-2222222222222222-01",
        "x-b3-traceid" => "11111111111111111111111111111111",
        "x-b3-spanid" => "2222222222222222",
        "b3" => "11111111111111111111111111111111-2222222222222222-1",
        "x-b3-sampled" => "1",
        "tracestate" | "baggage" => "probe=1",
        _ => "probe",
    };
    let more = if name == "x-b3-traceid" { " -H 'x-b3-spanid: 2222222222222222'" } else { "" };
    format!("curl -s -H '{name}: {value}'{more} -H 'accept: application/json' {}", quoted(&hop.url))
}

/// Why the trace of another request is sent.
pub(super) fn mixed_up(name: &str) -> String {
    format!(
        "{name} sends the trace of another request of this run: it holds the context where requests share it (a global, a thread or client that is used again), or answers from what it stored"
    )
}
