//! Ways to break a trace on purpose (`--break`): what each does to the headers of one call.

use std::fmt;
use std::str::FromStr;

use bytes::BytesMut;
use http::{HeaderName, HeaderValue};
use opentelemetry::trace::{SpanId, TraceId};

use super::carried::{Carried, HeaderPairs, X_REQUEST_ID};
use super::context::{Context, Sampling};
use super::format::WireFormat;
use crate::values::{Form, Rated, examples, header_name};

/// A way to break a trace, and how often.
pub type Break = Rated<BreakKind>;

/// A way to break a trace. A new one is a variant here, a line in `BREAKS`, its form in `FromStr`, and what it does in `act`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BreakKind {
    /// Passes on the parent that came in, beside the hop's own spans.
    StaleParent,
    /// Starts a trace of its own.
    NewTrace,
    /// Reverses the sampling decision.
    FlipSampled,
    /// Makes another request id.
    NewRequestId,
    /// Sends this header twice, the second time with another value.
    Duplicate(HeaderName),
    /// Sends this header with two values in one line.
    Join(HeaderName),
    /// Writes trace ids of 64 bits in B3.
    ShortenB3,
    /// Passes on W3C, and no B3.
    W3cOnly,
    /// Passes on B3, and no W3C.
    B3Only,
    /// Uses the context of another request.
    CrossTalk,
}

/// Every way to break a trace.
pub(crate) const BREAKS: [Form; 10] = [
    Form { name: "stale-parent", example: "stale-parent", about: "passes on the parent that came in, beside its own spans" },
    Form { name: "new-trace", example: "new-trace", about: "starts a trace of its own" },
    Form { name: "flip-sampled", example: "flip-sampled", about: "reverses the sampling decision" },
    Form { name: "new-request-id", example: "new-request-id", about: "makes another request id" },
    Form { name: "duplicate", example: "duplicate=traceparent", about: "sends the header twice, with two values" },
    Form { name: "join", example: "join=traceparent", about: "sends two values in one line, with a comma" },
    Form { name: "shorten-b3", example: "shorten-b3", about: "writes trace ids of 64 bits in B3" },
    Form { name: "w3c-only", example: "w3c-only", about: "passes on W3C, and no B3" },
    Form { name: "b3-only", example: "b3-only", about: "passes on B3, and no W3C" },
    Form { name: "cross-talk", example: "cross-talk", about: "uses the context of another request" },
];

impl FromStr for BreakKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let header = |name: &str| header_name(name).map_err(|error| format!("'{name}' in '{text}' is {error}"));
        Ok(match text.split_once('=') {
            None => match text {
                "stale-parent" => Self::StaleParent,
                "new-trace" => Self::NewTrace,
                "flip-sampled" => Self::FlipSampled,
                "new-request-id" => Self::NewRequestId,
                "shorten-b3" => Self::ShortenB3,
                "w3c-only" => Self::W3cOnly,
                "b3-only" => Self::B3Only,
                "cross-talk" => Self::CrossTalk,
                "duplicate" | "join" => return Err(format!("'{text}' names no header; it is written {text}=traceparent")),
                _ => return Err(format!("'{text}' is no way to break a trace; accepted are {}", examples(&BREAKS))),
            },
            Some(("duplicate", name)) => Self::Duplicate(header(name)?),
            Some(("join", name)) => Self::Join(header(name)?),
            _ => return Err(format!("'{text}' is no way to break a trace; accepted are {}", examples(&BREAKS))),
        })
    }
}

impl fmt::Display for BreakKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StaleParent => f.write_str("stale-parent"),
            Self::NewTrace => f.write_str("new-trace"),
            Self::FlipSampled => f.write_str("flip-sampled"),
            Self::NewRequestId => f.write_str("new-request-id"),
            Self::Duplicate(name) => write!(f, "duplicate={name}"),
            Self::Join(name) => write!(f, "join={name}"),
            Self::ShortenB3 => f.write_str("shorten-b3"),
            Self::W3cOnly => f.write_str("w3c-only"),
            Self::B3Only => f.write_str("b3-only"),
            Self::CrossTalk => f.write_str("cross-talk"),
        }
    }
}

impl BreakKind {
    /// The header that it names.
    pub(crate) fn header(&self) -> Option<&HeaderName> {
        match self {
            Self::Duplicate(name) | Self::Join(name) => Some(name),
            _ => None,
        }
    }
}

/// What the breaks of one call are made from.
#[derive(Debug)]
pub(crate) struct BreakInput<'a> {
    /// What the hop received.
    pub(crate) received: &'a Carried,
    /// The hop has a span of its own around the call.
    pub(crate) has_span: bool,
    /// The context of another request.
    pub(crate) other: Option<Context>,
    pub(crate) trace_id: TraceId,
    pub(crate) span_id: SpanId,
    pub(crate) request_id: HeaderValue,
}

/// What was broken.
#[derive(Debug, Default)]
pub(crate) struct Broken {
    /// Those that changed something.
    pub(crate) kinds: Vec<BreakKind>,
    /// The context of the hop's own span, if it is in another trace now.
    pub(crate) span: Option<Context>,
}

/// Breaks the headers of one call.
pub(crate) fn break_headers(kinds: &[BreakKind], sent: &mut HeaderPairs, input: &BreakInput<'_>) -> Broken {
    let mut broken = Broken::default();
    for kind in kinds {
        let before = sent.clone();
        kind.act(sent, input, &mut broken.span);
        if *sent != before {
            broken.kinds.push(kind.clone());
        }
    }
    broken
}

impl BreakKind {
    fn act(&self, sent: &mut HeaderPairs, input: &BreakInput<'_>, span: &mut Option<Context>) {
        match self {
            Self::StaleParent => {
                let received =
                    WireFormat::ALL.iter().filter_map(|format| format.parse(input.received)?.context).collect::<Vec<_>>();
                rewrite(sent, &WireFormat::ALL, |context| {
                    if let Some(stale) = received.iter().find(|received| received.trace_id == context.trace_id) {
                        (context.span_id, context.parent_id) = (stale.span_id, stale.parent_id);
                    }
                });
            }
            Self::NewTrace => replace_trace(sent, span, |context| Context {
                trace_id: input.trace_id,
                span_id: input.span_id,
                parent_id: None,
                short_trace_id: false,
                ..*context
            }),
            Self::CrossTalk => {
                let Some(other) = input.other else { return };
                replace_trace(sent, span, |context| match input.has_span {
                    true => other.child(context.span_id),
                    false => other,
                });
            }
            Self::FlipSampled => flip_sampled(sent),
            Self::NewRequestId => {
                for (_, value) in sent.iter_mut().filter(|(name, _)| *name == X_REQUEST_ID) {
                    *value = input.request_id.clone();
                }
            }
            Self::Duplicate(name) => {
                if let Some(first) = sent.iter().position(|(known, _)| known == name) {
                    let second = second_value(name, &sent[first].1, input);
                    sent.insert(first + 1, (name.clone(), second));
                }
            }
            Self::Join(name) => {
                for (_, value) in sent.iter_mut().filter(|(known, _)| known == name) {
                    let second = second_value(name, value, input);
                    let joined = [value.as_bytes(), b",", second.as_bytes()].concat();
                    let is_sensitive = value.is_sensitive();
                    *value = HeaderValue::from_bytes(&joined).unwrap_or(second);
                    value.set_sensitive(is_sensitive);
                }
            }
            Self::ShortenB3 => rewrite(sent, &[WireFormat::B3, WireFormat::B3Multi], |context| {
                let low = u128::from_be_bytes(context.trace_id.to_bytes()) & u128::from(u64::MAX);
                if low != 0 {
                    (context.trace_id, context.short_trace_id) = (TraceId::from(low), true);
                }
            }),
            Self::W3cOnly => sent.retain(|(name, _)| !WireFormat::B3.has(name) && !WireFormat::B3Multi.has(name)),
            Self::B3Only => sent.retain(|(name, _)| !WireFormat::TraceContext.has(name)),
        }
    }
}

/// Replaces the context in each of `formats` that has a valid one.
fn rewrite(sent: &mut HeaderPairs, formats: &[WireFormat], change: impl Fn(&mut Context)) {
    for format in formats {
        let headers = Carried { headers: std::mem::take(sent) };
        let context = format.parse(&headers).and_then(|incoming| incoming.context);
        *sent = headers.headers;
        let Some(before) = context else { continue };
        let mut context = before;
        change(&mut context);
        if context == before {
            continue;
        }
        if context.sampling == Sampling::Deferred {
            // No format writes that; the receiver would decide for it.
            context.sampling = Sampling::Sample;
        }
        // The state belongs to the trace that was left.
        let keeps_state = *format != WireFormat::TraceContext || context.trace_id == before.trace_id;
        sent.retain(|(name, _)| match name.as_str() {
            "tracestate" => keeps_state,
            _ => !format.has(name),
        });
        format.write(&context, &mut BytesMut::with_capacity(192), sent);
    }
}

fn replace_trace(sent: &mut HeaderPairs, span: &mut Option<Context>, other: impl Fn(&Context) -> Context) {
    let replaced = std::cell::Cell::new(None);
    rewrite(sent, &WireFormat::ALL, |context| {
        *context = other(context);
        replaced.set(Some(*context));
    });
    *span = replaced.get().or(*span);
}

fn flip_sampled(sent: &mut HeaderPairs) {
    rewrite(sent, &WireFormat::ALL, |context| {
        context.sampling = if context.sampling.decision() == Some(false) { Sampling::Sample } else { Sampling::Drop };
    });
    // A decision without ids.
    let has_ids = sent.iter().any(|(name, _)| name.as_str() == "x-b3-traceid");
    for (name, value) in sent.iter_mut() {
        let is_alone = match name.as_str() {
            "b3" => value.len() == 1,
            "x-b3-sampled" => !has_ids,
            _ => false,
        };
        if is_alone {
            *value = HeaderValue::from_static(if *value == "0" { "1" } else { "0" });
        }
    }
}

/// Another value for a header: as somebody else would write it beside the one that is there.
fn second_value(name: &HeaderName, first: &HeaderValue, input: &BreakInput<'_>) -> HeaderValue {
    if *name == X_REQUEST_ID {
        return input.request_id.clone();
    }
    let context = Context {
        trace_id: input.trace_id,
        short_trace_id: false,
        random: false,
        span_id: input.span_id,
        parent_id: Some(input.span_id),
        sampling: if *first == "1" { Sampling::Drop } else { Sampling::Sample },
    };
    let (mut written, mut buffer) = (HeaderPairs::new(), BytesMut::with_capacity(192));
    for format in WireFormat::ALL {
        format.write(&context, &mut buffer, &mut written);
    }
    written.into_iter().find(|(known, _)| known == name).map_or_else(|| first.clone(), |(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: &str = "463ac35c9f6413ad48485a3953bb6124";
    const S: &str = "a2fb4a1d1a96d312";
    const OWN: &str = "00000000000000aa";

    fn pairs(headers: &[(&'static str, &str)]) -> HeaderPairs {
        headers.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())).collect()
    }

    fn text(headers: &HeaderPairs) -> Vec<String> {
        let mut lines: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        lines
    }

    /// What a hop with a span of its own that received `T` and `S` sends in all formats, with this break.
    fn broken(kind: &str, other: Option<Context>) -> (Vec<String>, Broken) {
        let received = Carried { headers: pairs(&[("traceparent", &format!("00-{T}-{S}-01"))]) };
        let mut sent = pairs(&[
            ("x-request-id", "r"),
            ("traceparent", &format!("00-{T}-{OWN}-01")),
            ("tracestate", "a=1"),
            ("b3", &format!("{T}-{OWN}-1-{S}")),
            ("x-b3-traceid", T),
            ("x-b3-spanid", OWN),
            ("x-b3-sampled", "1"),
        ]);
        let input = BreakInput {
            received: &received,
            has_span: true,
            other,
            trace_id: TraceId::from(0xabc),
            span_id: SpanId::from(0xdef),
            request_id: HeaderValue::from_static("fresh"),
        };
        let broken = break_headers(&[kind.parse().unwrap()], &mut sent, &input);
        (text(&sent), broken)
    }

    #[test]
    fn each_break_does_what_its_name_says_and_nothing_else() {
        let whole = broken("duplicate=x-lane", None);
        assert!(whole.1.kinds.is_empty(), "a header that is not there");
        let other = Context {
            trace_id: TraceId::from(7),
            short_trace_id: false,
            random: false,
            span_id: SpanId::from(8),
            parent_id: None,
            sampling: Sampling::Sample,
        };
        let (fresh_trace, fresh_span) = (format!("{:032x}", 0xabc), format!("{:016x}", 0xdef));
        for (kind, gone, come) in [
            ("stale-parent", vec![OWN], vec![format!("traceparent: 00-{T}-{S}-01"), format!("x-b3-spanid: {S}")]),
            (
                "new-trace",
                vec![T, "tracestate"],
                vec![format!("traceparent: 00-{fresh_trace}-{fresh_span}-01"), format!("b3: {fresh_trace}-{fresh_span}-1")],
            ),
            ("flip-sampled", vec![], vec![format!("traceparent: 00-{T}-{OWN}-00"), "x-b3-sampled: 0".into()]),
            ("new-request-id", vec![], vec!["x-request-id: fresh".into()]),
            (
                "duplicate=traceparent",
                vec![],
                vec![format!("traceparent: 00-{T}-{OWN}-01"), format!("traceparent: 00-{fresh_trace}-{fresh_span}-01")],
            ),
            ("duplicate=x-b3-sampled", vec![], vec!["x-b3-sampled: 0".into(), "x-b3-sampled: 1".into()]),
            ("join=x-request-id", vec![], vec!["x-request-id: r,fresh".into()]),
            ("shorten-b3", vec![], vec![format!("x-b3-traceid: {}", &T[16..]), format!("traceparent: 00-{T}-{OWN}-01")]),
            ("w3c-only", vec!["b3: ", "x-b3"], vec![format!("traceparent: 00-{T}-{OWN}-01")]),
            ("b3-only", vec!["traceparent"], vec![format!("x-b3-traceid: {T}")]),
            (
                "cross-talk",
                vec![T],
                vec![format!("traceparent: 00-{:032x}-{OWN}-01", 7), format!("x-b3-parentspanid: {:016x}", 8)],
            ),
        ] {
            let (sent, broken) = broken(kind, Some(other));
            assert_eq!(broken.kinds, [kind.parse().unwrap()], "{kind}: {sent:?}");
            for gone in gone {
                assert!(sent.iter().all(|line| !line.contains(gone)), "{kind} keeps {gone}: {sent:?}");
            }
            for line in come {
                assert!(sent.contains(&line), "{kind} without {line}: {sent:?}");
            }
            assert_eq!(broken.span.is_some(), matches!(kind, "new-trace" | "cross-talk"), "{kind}");
        }
        assert!(broken("cross-talk", None).1.kinds.is_empty(), "there was no other request");
    }

    #[test]
    fn breaks_are_written_as_they_were_read_and_bad_ones_explained() {
        for form in BREAKS {
            let read: Break = format!("{}@5%", form.example).parse().unwrap();
            assert_eq!((read.share, read.to_string()), (0.05, format!("{}@5%", form.example)));
            assert_eq!(form.example.parse::<Break>().unwrap().share, 1.0);
        }
        for bad in
            ["", "new-trace@", "new-trace@101%", "duplicate", "join=", "duplicate=a b", "trace", "new-trace=1", "abort=503"]
        {
            let error = bad.parse::<Break>().unwrap_err();
            assert!(["accepted", "written", "header name"].iter().any(|word| error.contains(word)), "{bad}: {error}");
        }
    }
}
