//! The wire formats, and the two families of trace headers as people name them.

use bytes::BytesMut;
use http::HeaderName;
use opentelemetry::trace::{SpanId, TraceId};

use super::carried::HeaderPairs;
use super::context::{Context, HeaderSource, Incoming, parse_span_id, parse_trace_id};
use super::mangling::{self, trace_digits};
use super::{b3, w3c};

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A wire format for trace context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum WireFormat {
    /// `traceparent` and `tracestate`.
    TraceContext,
    /// The `x-b3-*` headers.
    B3Multi,
    /// The single `b3` header.
    B3,
}

impl WireFormat {
    pub(crate) const ALL: [Self; 3] = [Self::TraceContext, Self::B3Multi, Self::B3];

    /// The name for people.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::TraceContext => "W3C (traceparent)",
            Self::B3Multi => "B3 (x-b3-…)",
            Self::B3 => "B3 single (b3)",
        }
    }

    /// The header that has the trace id.
    pub(crate) fn header(self) -> &'static str {
        match self {
            Self::TraceContext => "traceparent",
            Self::B3Multi => "x-b3-traceid",
            Self::B3 => "b3",
        }
    }

    /// The context in `headers` in this format; `None` when it is not valid.
    pub(crate) fn parse(self, headers: &impl HeaderSource) -> Option<Incoming> {
        match self {
            // Of two `traceparent` headers neither can be trusted.
            Self::TraceContext => headers.only("traceparent").and_then(w3c::parse_traceparent).map(Incoming::from),
            Self::B3 => headers.first("b3").and_then(b3::parse_single),
            Self::B3Multi => b3::parse_multi(headers),
        }
    }

    /// Appends the headers of a context. Their values share the allocation of `buffer`.
    pub(super) fn write(self, context: &Context, buffer: &mut BytesMut, out: &mut HeaderPairs) {
        match self {
            Self::TraceContext => out.push((TRACEPARENT.clone(), w3c::write_traceparent(context, buffer))),
            Self::B3 => b3::write_single(context, buffer, out),
            Self::B3Multi => b3::write_multi(context, buffer, out),
        }
    }

    /// The headers of a context.
    pub(crate) fn headers(self, context: &Context) -> HeaderPairs {
        let mut out = HeaderPairs::new();
        self.write(context, &mut BytesMut::with_capacity(64), &mut out);
        out
    }

    /// The texts in the places of trace and span id, also of a context that is not valid.
    pub(crate) fn digits(self, headers: &impl HeaderSource) -> Option<(&str, &str)> {
        let text = |name: &str| std::str::from_utf8(headers.first(name)?).ok();
        let value = text(self.header())?;
        let span = match self {
            Self::TraceContext => value.split('-').nth(2)?,
            Self::B3Multi => text("x-b3-spanid")?,
            Self::B3 => value.split('-').nth(1)?,
        };
        Some((trace_digits(self.header(), value)?, span))
    }

    /// Trace and span id, where both are some, also of a context that is not valid for another reason.
    pub(crate) fn ids(self, headers: &impl HeaderSource) -> Option<(TraceId, SpanId)> {
        let (trace, span) = self.digits(headers)?;
        Some((parse_trace_id(trace.as_bytes())?, parse_span_id(span.as_bytes())?))
    }

    /// The trace id, also of a context that is not valid for another reason.
    pub(crate) fn trace_id(self, headers: &impl HeaderSource) -> Option<TraceId> {
        mangling::trace_id(self.header(), std::str::from_utf8(headers.first(self.header())?).ok()?)
    }

    /// B3 in its other form.
    pub(super) fn other_form(self) -> Option<Self> {
        match self {
            Self::TraceContext => None,
            Self::B3 => Some(Self::B3Multi),
            Self::B3Multi => Some(Self::B3),
        }
    }

    /// Whether a header is one of this format.
    pub(super) fn has(self, name: &HeaderName) -> bool {
        match self {
            Self::TraceContext => matches!(name.as_str(), "traceparent" | "tracestate"),
            Self::B3 => name.as_str() == "b3",
            Self::B3Multi => b3::MULTI.contains(&name.as_str()),
        }
    }

    /// Whether a request came with a header of this format, valid or not. An empty header does not count: it has no context, and
    /// taken for a format it would bring a `b3` into a mesh that never had one.
    pub(super) fn is_present(self, headers: &impl HeaderSource) -> bool {
        match self {
            Self::TraceContext => headers.is_present("traceparent"),
            Self::B3 => headers.is_present("b3"),
            Self::B3Multi => b3::MULTI.into_iter().any(|name| headers.is_present(name)),
        }
    }
}

/// W3C or B3, whichever form of B3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum HeaderFamily {
    /// `traceparent` (and `tracestate`).
    W3c,
    /// `x-b3-*`, or the single `b3`.
    B3,
}

/// Whether one of the contexts is of this trace.
pub(crate) fn names_trace(contexts: &[(HeaderFamily, Context)], trace: TraceId) -> bool {
    contexts.iter().any(|(_, context)| context.trace_id == trace)
}

impl HeaderFamily {
    pub(crate) const ALL: [Self; 2] = [Self::W3c, Self::B3];

    /// The name for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::W3c => "W3C",
            Self::B3 => "B3",
        }
    }

    /// The header whose name people know the family by.
    pub(crate) fn header(self) -> &'static str {
        self.formats()[0].header()
    }

    /// The formats of the family, in the order of the default of `OTEL_PROPAGATORS`.
    fn formats(self) -> &'static [WireFormat] {
        match self {
            Self::W3c => &[WireFormat::TraceContext],
            Self::B3 => &[WireFormat::B3Multi, WireFormat::B3],
        }
    }

    /// The headers of a context; of B3 in the form of several headers.
    pub(crate) fn write(self, context: &Context) -> HeaderPairs {
        self.formats()[0].headers(context)
    }

    /// The valid context of this family among `headers`.
    pub(crate) fn read(self, headers: &impl HeaderSource) -> Option<Context> {
        self.formats().iter().find_map(|format| format.parse(headers)?.context)
    }

    /// The valid contexts of all families among `headers`.
    pub(crate) fn read_all(headers: &impl HeaderSource) -> Vec<(Self, Context)> {
        Self::ALL.into_iter().filter_map(|family| Some((family, family.read(headers)?))).collect()
    }

    /// Whether a header with the ids of this family is there at all, valid or not.
    pub(crate) fn is_present(self, headers: &impl HeaderSource) -> bool {
        ["traceparent", "b3", "x-b3-traceid", "x-b3-spanid"].into_iter().any(|name| self.has(name) && headers.is_present(name))
    }

    /// Whether a header carries the trace id or the span id of this family.
    pub(crate) fn has(self, header: &str) -> bool {
        match self {
            Self::W3c => header == "traceparent",
            Self::B3 => matches!(header, "b3" | "x-b3-traceid" | "x-b3-spanid"),
        }
    }
}
