//! The headers that a hop carries: the table of their names, the headers of one request, and their redacted form for the reply.

use std::borrow::Cow;

use http::{HeaderName, HeaderValue};

use super::context::HeaderSource;
use super::secrets::{MASK, without_queries};
use crate::text::escape::{is_printable_without, push_text};

/// The header that carries the request's id.
pub(crate) static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// How many hops a request has passed; a hop writes one more than it read.
pub(crate) static X_HOP_COUNT: HeaderName = HeaderName::from_static("x-hop-count");
/// How many calls may still be made on behalf of a request; a hop writes each call's share.
pub(crate) static X_CALL_BUDGET: HeaderName = HeaderName::from_static("x-call-budget");

/// The role of a carried header: it decides what happens to the header when the hop continues a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderRole {
    /// The request id: carried, or made when it is missing or unusable.
    RequestId,
    /// The W3C context.
    TraceParent,
    /// Belongs to the `traceparent` beside it.
    TraceState,
    /// W3C baggage.
    Baggage,
    /// The single `b3` header.
    B3,
    /// A part of B3 multi.
    B3Multi,
    /// The context of a tracer that `OTEL_PROPAGATORS` does not name: carried verbatim.
    ForeignTracer,
    /// For the mesh's routing: carried verbatim.
    Routing,
    /// From `--forward-header`: carried verbatim.
    Extra,
}

/// A line of the table.
pub(super) struct CarriedHeader {
    /// The name as text, which is cheaper to compare than a `HeaderName`.
    text: &'static str,
    pub(super) name: HeaderName,
    pub(super) role: HeaderRole,
}

const fn line(name: &'static str, role: HeaderRole) -> CarriedHeader {
    CarriedHeader { text: name, name: HeaderName::from_static(name), role }
}

/// Every header that is carried to the next hop. A new one is a line here.
static TABLE: [CarriedHeader; 22] = [
    line("x-request-id", HeaderRole::RequestId),
    line("traceparent", HeaderRole::TraceParent),
    line("tracestate", HeaderRole::TraceState),
    line("baggage", HeaderRole::Baggage),
    line("b3", HeaderRole::B3),
    line("x-b3-traceid", HeaderRole::B3Multi),
    line("x-b3-spanid", HeaderRole::B3Multi),
    line("x-b3-parentspanid", HeaderRole::B3Multi),
    line("x-b3-sampled", HeaderRole::B3Multi),
    line("x-b3-flags", HeaderRole::B3Multi),
    line("x-ot-span-context", HeaderRole::ForeignTracer),
    line("x-cloud-trace-context", HeaderRole::ForeignTracer),
    line("grpc-trace-bin", HeaderRole::ForeignTracer),
    line("x-datadog-trace-id", HeaderRole::ForeignTracer),
    line("x-datadog-parent-id", HeaderRole::ForeignTracer),
    line("x-datadog-sampling-priority", HeaderRole::ForeignTracer),
    line("x-datadog-tags", HeaderRole::ForeignTracer),
    line("x-datadog-origin", HeaderRole::ForeignTracer),
    line("x-amzn-trace-id", HeaderRole::ForeignTracer),
    line("uber-trace-id", HeaderRole::ForeignTracer),
    line("sw8", HeaderRole::ForeignTracer),
    line("x-lane", HeaderRole::Routing),
];

/// The names of the table, in its order.
pub fn carried_names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|line| line.text)
}

/// Whether a header is in the table; its name in lower case.
pub(crate) fn is_carried(name: &str) -> bool {
    find(name).is_some()
}

/// The line of a header in the table.
pub(super) fn find(name: &str) -> Option<&'static CarriedHeader> {
    TABLE.iter().find(|line| is_same(line.text, name))
}

/// Names of one length often differ in their last byte; a call to compare the others costs more than the rest.
fn is_same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.as_bytes().last() == b.as_bytes().last() && a == b
}

/// The role of a header that is carried.
pub(super) fn role(name: &str) -> HeaderRole {
    find(name).map_or(HeaderRole::Extra, |line| line.role)
}

/// Whether a header belongs to a W3C or B3 context: a hop with an exporter writes it anew.
pub(crate) fn is_trace_context(name: &str) -> bool {
    matches!(role(name), HeaderRole::TraceParent | HeaderRole::TraceState | HeaderRole::B3 | HeaderRole::B3Multi)
}

/// Whether a header belongs to a tracer that `OTEL_PROPAGATORS` does not name: a mesh's own tracer may rewrite it at every proxy.
pub(crate) fn is_foreign_tracer(name: &str) -> bool {
    role(name) == HeaderRole::ForeignTracer
}

/// Whether a header is never carried, whatever is configured: it belongs to one connection, one proxy or one body, or the hop
/// writes its own.
pub fn is_never_carried(name: &str) -> bool {
    const NEVER: [&str; 17] = [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
        "content-type",
        "host",
        "accept",
        "accept-encoding",
        "user-agent",
        "x-hop-count",
        "x-call-budget",
    ];
    // What the calls of gRPC write themselves.
    let is_of_grpc = name.starts_with("grpc-") && (!name.ends_with("-bin") || name == "grpc-status-details-bin");
    is_of_grpc || NEVER.contains(&name) || name.starts_with("x-forwarded-") || name.starts_with("x-envoy-") || name == "forwarded"
}

/// Whether a request id is usable: visible ASCII, 1 to 128 bytes.
pub fn is_valid_request_id(value: &[u8]) -> bool {
    (1..=128).contains(&value.len()) && value.iter().all(|byte| (0x21..=0x7e).contains(byte))
}

/// Names and values in their order on the wire, ready for a `HeaderMap`. Values of secrets are marked sensitive.
pub(crate) type HeaderPairs = Vec<(HeaderName, HeaderValue)>;

/// The carried headers of one request, as they arrived: every value, also empty ones.
#[derive(Debug, Default)]
pub struct Carried {
    pub(super) headers: HeaderPairs,
}

impl HeaderSource for Carried {
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.headers.iter().filter(move |(known, _)| known.as_str() == name).map(|(_, value)| value.as_bytes())
    }
}

impl Carried {
    pub(super) fn push(&mut self, name: HeaderName, value: HeaderValue) {
        if self.headers.is_empty() {
            // A mesh sends about this many; growing there from nothing would be three allocations.
            self.headers.reserve(8);
        }
        self.headers.push((name, value));
    }

    /// The request id, when the first that came is usable.
    pub(crate) fn request_id(&self) -> Option<&HeaderValue> {
        let first = self.headers.iter().find(|(name, _)| *name == X_REQUEST_ID).map(|(_, value)| value);
        first.filter(|value| is_valid_request_id(value.as_bytes()))
    }

    /// What is shown in place of the request id, if it is or has a secret.
    pub(crate) fn redacted_request_id(&self) -> Option<Box<str>> {
        let id = self.request_id()?;
        let shown = shown(id);
        (*shown != *id.as_bytes()).then(|| String::from_utf8_lossy(&shown).into())
    }
}

/// Carried headers as the reply shows them: a JSON object of arrays, equal names together, sensitive values masked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RedactedHeaders<'a>(&'a [(HeaderName, HeaderValue)]);

impl<'a> RedactedHeaders<'a> {
    /// As they arrived.
    pub(crate) fn received(carried: &'a Carried) -> Self {
        Self(&carried.headers)
    }

    /// As they were written to a call.
    pub(crate) fn sent(outgoing: &'a HeaderPairs) -> Self {
        Self(outgoing)
    }

    /// Appends the object.
    pub(crate) fn push_json(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        for (i, (name, _)) in self.0.iter().enumerate() {
            let text = name.as_str();
            // All values are written at the first occurrence of a name; the lists are short, so this costs less than a set.
            if self.0[..i].iter().any(|(earlier, _)| is_same(earlier.as_str(), text)) {
                continue;
            }
            // A header's name needs no escaping.
            out.reserve(text.len() + 8);
            out.extend_from_slice(if i == 0 { b"\"" } else { b",\"" });
            out.extend_from_slice(text.as_bytes());
            out.extend_from_slice(b"\":");
            let mut separator = b'[';
            for (_, value) in self.0[i..].iter().filter(|(at, _)| is_same(at.as_str(), text)) {
                out.push(separator);
                push_value(out, value);
                separator = b',';
            }
            out.push(b']');
        }
        out.push(b'}');
    }

    /// The names with their values.
    pub(crate) fn to_pairs(self) -> Vec<(String, Vec<String>)> {
        let mut pairs: Vec<(String, Vec<String>)> = Vec::with_capacity(self.0.len());
        for (name, value) in self.0 {
            let shown = String::from_utf8(shown(value).into_owned());
            let shown = shown.unwrap_or_else(|bytes| String::from_utf8_lossy(bytes.as_bytes()).into_owned());
            match pairs.iter_mut().find(|(known, _)| known == name.as_str()) {
                Some((_, values)) => values.push(shown),
                None => pairs.push((name.as_str().to_owned(), vec![shown])),
            }
        }
        pairs
    }
}

/// Appends what is shown of a value as a JSON string.
fn push_value(out: &mut Vec<u8>, value: &HeaderValue) {
    let bytes = value.as_bytes();
    if value.is_sensitive() || !is_printable_without(bytes, *b"\"\\?#") {
        return push_text(out, &shown(value));
    }
    // Nearly every value has neither a query nor what is escaped.
    out.reserve(bytes.len() + 2);
    out.push(b'"');
    out.extend_from_slice(bytes);
    out.push(b'"');
}

fn shown(value: &HeaderValue) -> Cow<'_, [u8]> {
    if value.is_sensitive() { MASK.as_bytes().into() } else { without_queries(value.as_bytes()) }
}
