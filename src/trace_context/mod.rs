//! The table of carried headers, and B3 and W3C trace context in and out.
//!
//! Every header that a hop passes on is one line of `TABLE`. With no exporter the hop forwards them untouched; with one it
//! continues the trace: [`Propagator::extract`] reads the first valid context in the configured order, and
//! `Propagator::outgoing` writes the hop's own context in every configured format that the request spoke, so that no stale
//! context travels beside a fresh one.

use std::borrow::Cow;
use std::str::FromStr;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use opentelemetry::trace::{SpanId, TraceId};

use crate::text::json::push_text;

/// What a carried header is to the hop: decides what happens to it when the hop continues a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The request's id: carried, or made when it is missing or unusable.
    RequestId,
    /// The W3C context.
    TraceParent,
    /// Belongs to the `traceparent` beside it.
    TraceState,
    /// W3C baggage.
    Baggage,
    /// The single `b3` header.
    B3,
    /// The part of B3 multi that the name says.
    B3Multi,
    /// Of another tracer, or for routing: not ours to change, always verbatim.
    Verbatim,
}

/// A line of the table: a header's name and what it is to the hop.
struct Row {
    name: HeaderName,
    kind: Kind,
}

const fn row(name: &'static str, kind: Kind) -> Row {
    Row { name: HeaderName::from_static(name), kind }
}

/// Every header that is carried to the next hop. A new one is a line here.
static TABLE: [Row; 18] = [
    row("x-request-id", Kind::RequestId),
    row("traceparent", Kind::TraceParent),
    row("tracestate", Kind::TraceState),
    row("baggage", Kind::Baggage),
    row("b3", Kind::B3),
    row("x-b3-traceid", Kind::B3Multi),
    row("x-b3-spanid", Kind::B3Multi),
    row("x-b3-parentspanid", Kind::B3Multi),
    row("x-b3-sampled", Kind::B3Multi),
    row("x-b3-flags", Kind::B3Multi),
    row("x-ot-span-context", Kind::Verbatim),
    row("x-cloud-trace-context", Kind::Verbatim),
    row("grpc-trace-bin", Kind::Verbatim),
    row("x-datadog-trace-id", Kind::Verbatim),
    row("x-datadog-parent-id", Kind::Verbatim),
    row("x-datadog-sampling-priority", Kind::Verbatim),
    row("sw8", Kind::Verbatim),
    row("x-lane", Kind::Verbatim),
];

/// A carried header's place: in [`TABLE`], beyond it among the extra ones. Headers are carried by their place: comparing and
/// looking one up is one instruction, where a name takes a hundred.
type Place = u8;

/// The places of the rows that the hop itself reads or writes; a test holds them to the table.
mod place {
    pub(super) const REQUEST_ID: super::Place = 0;
    pub(super) const TRACEPARENT: super::Place = 1;
    pub(super) const B3: super::Place = 4;
    pub(super) const B3_TRACEID: super::Place = 5;
    pub(super) const B3_SPANID: super::Place = 6;
    pub(super) const B3_PARENTSPANID: super::Place = 7;
    pub(super) const B3_SAMPLED: super::Place = 8;
    pub(super) const B3_FLAGS: super::Place = 9;
}

/// The header that carries the request's id.
pub(crate) static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// How many hops a request has passed; a hop writes one more than it read.
pub(crate) static X_HOP_COUNT: HeaderName = HeaderName::from_static("x-hop-count");

/// The names of the table, in its order.
pub fn carried_names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|row| row.name.as_str())
}

/// Whether a header is never carried, whatever is configured: it belongs to one connection, one proxy or one body, or the hop
/// writes its own.
pub fn is_never_carried(name: &str) -> bool {
    const NEVER: [&str; 16] = [
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
    ];
    NEVER.contains(&name) || name.starts_with("x-forwarded-") || name.starts_with("x-envoy-") || name == "forwarded"
}

/// Whether the values of a header are secrets, to be masked wherever headers are shown.
pub fn is_secret(name: &str) -> bool {
    const PARTS: [&str; 7] = ["authorization", "cookie", "token", "key", "password", "secret", "credential"];
    PARTS.iter().any(|part| name.contains(part))
}

/// A header's value as it is shown to people and in JSON: masked when it is a secret, lossy when it is not UTF-8.
pub(crate) fn shown<'a>(name: &HeaderName, value: &'a HeaderValue) -> Cow<'a, str> {
    if is_secret(name.as_str()) { MASK.into() } else { String::from_utf8_lossy(value.as_bytes()) }
}

/// What is shown instead of a secret.
const MASK: &str = "***";

/// A wire format for trace context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `traceparent` and `tracestate`.
    TraceContext,
    /// The single `b3` header.
    B3,
    /// The `x-b3-*` headers.
    B3Multi,
}

/// `OTEL_PROPAGATORS`: which formats are read (in this order, the first valid one wins) and written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Propagators {
    formats: Vec<Format>,
    baggage: bool,
}

impl Default for Propagators {
    fn default() -> Self {
        Self { formats: vec![Format::TraceContext, Format::B3Multi, Format::B3], baggage: true }
    }
}

impl FromStr for Propagators {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parsed = Self { formats: Vec::new(), baggage: false };
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let format = match name {
                "tracecontext" => Format::TraceContext,
                "b3" => Format::B3,
                "b3multi" => Format::B3Multi,
                "baggage" => {
                    parsed.baggage = true;
                    continue;
                }
                "none" => continue,
                other => {
                    return Err(format!("unknown propagator '{other}'; accepted: tracecontext, baggage, b3, b3multi, none"));
                }
            };
            if !parsed.formats.contains(&format) {
                parsed.formats.push(format);
            }
        }
        Ok(parsed)
    }
}

/// What has been decided about recording a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampling {
    /// Nobody has decided yet: in B3 the receiver decides.
    Deferred,
    /// Not recorded.
    Drop,
    /// Recorded.
    Sample,
    /// Recorded, whatever a sampler says (B3's debug flag).
    Debug,
}

impl Sampling {
    /// Whether spans are recorded; a deferred decision is none.
    pub fn is_sampled(self) -> bool {
        matches!(self, Self::Sample | Self::Debug)
    }
}

/// A span's place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// Never all zero.
    pub trace_id: TraceId,
    /// The trace id came as 64 bits and is written so in B3.
    pub short_trace_id: bool,
    /// Never all zero.
    pub span_id: SpanId,
    /// The span above, where it is known.
    pub parent_id: Option<SpanId>,
    /// Whether the trace is recorded.
    pub sampling: Sampling,
}

impl Context {
    /// The context of a span below this one.
    pub fn child(&self, span_id: SpanId) -> Self {
        Self { span_id, parent_id: Some(self.span_id), ..*self }
    }
}

/// What a request said about its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incoming {
    /// The first valid context in the configured order.
    pub context: Option<Context>,
    /// A decision that came without ids (`b3: 0`), or the context's.
    pub sampling: Sampling,
}

/// Whether a request id is usable: visible ASCII, 1 to 128 bytes.
pub fn is_valid_request_id(value: &[u8]) -> bool {
    (1..=128).contains(&value.len()) && value.iter().all(|byte| (0x21..=0x7e).contains(byte))
}

/// How one hop carries headers: the table, what was added to it and what it loses on purpose.
#[derive(Debug, Default)]
pub struct Propagator {
    propagators: Propagators,
    extra: Vec<HeaderName>,
    dropped: Vec<Place>,
}

/// The carried headers of one request, as they arrived: every value, also empty ones.
#[derive(Debug, Default)]
pub struct Carried {
    entries: Vec<(Place, HeaderValue)>,
}

/// Headers that are written to a call, in the order in which they are shown.
#[derive(Debug, Default)]
pub(crate) struct Outgoing(Vec<(Place, HeaderValue)>);

impl Propagator {
    /// `extra` are carried beside the table, `dropped` are lost on purpose. Names that may never be carried are left out.
    pub fn new(propagators: Propagators, extra: Vec<HeaderName>, dropped: Vec<HeaderName>) -> Self {
        let extra = extra
            .into_iter()
            .filter(|name| !is_never_carried(name.as_str()) && !TABLE.iter().any(|row| row.name == *name))
            .take(usize::from(Place::MAX) - TABLE.len())
            .collect();
        let mut propagator = Self { propagators, extra, dropped: Vec::new() };
        propagator.dropped = dropped.iter().filter_map(|name| propagator.place(name)).collect();
        propagator
    }

    /// The place of a header among the carried ones; `None` when it is not carried.
    fn place(&self, name: &HeaderName) -> Option<Place> {
        let text = name.as_str();
        let place = match TABLE.iter().position(|row| row.name.as_str() == text) {
            Some(place) => place,
            None => TABLE.len() + self.extra.iter().position(|extra| extra.as_str() == text)?,
        };
        Place::try_from(place).ok()
    }

    fn name(&self, place: Place) -> &HeaderName {
        let place = usize::from(place);
        TABLE.get(place).map_or_else(|| &self.extra[place - TABLE.len()], |row| &row.name)
    }

    /// Takes a header into `carried` when it is one that is carried; says whether it was.
    pub(crate) fn take(&self, carried: &mut Carried, name: &HeaderName, value: &HeaderValue) -> bool {
        let place = self.place(name);
        if let Some(place) = place {
            if carried.entries.is_empty() {
                // A mesh sends about this many; growing there from nothing would be three allocations.
                carried.entries.reserve(8);
            }
            carried.entries.push((place, value.clone()));
        }
        place.is_some()
    }

    /// The names and values of a call's headers.
    pub(crate) fn written<'a>(
        &'a self,
        outgoing: &'a Outgoing,
    ) -> impl ExactSizeIterator<Item = (&'a HeaderName, &'a HeaderValue)> {
        outgoing.0.iter().map(|(place, value)| (self.name(*place), value))
    }

    /// Reads what the request says about its trace: the first valid context in the configured order.
    pub fn extract(&self, carried: &Carried) -> Incoming {
        let mut alone = Sampling::Deferred;
        for format in &self.propagators.formats {
            let found = match format {
                Format::TraceContext => carried.only(Kind::TraceParent).and_then(parse_traceparent).map(Parsed::Context),
                Format::B3 => carried.first(Kind::B3).and_then(parse_b3),
                Format::B3Multi => parse_b3_multi(carried),
            };
            match found {
                Some(Parsed::Context(context)) => return Incoming { sampling: context.sampling, context: Some(context) },
                Some(Parsed::Decision(decision)) if alone == Sampling::Deferred => alone = decision,
                _ => {}
            }
        }
        Incoming { context: None, sampling: alone }
    }

    /// The headers of a call to the next hop. `context` is the hop's own client span; without one (no exporter) every trace
    /// header passes through untouched. `new_trace` says that the hop started the trace itself.
    pub(crate) fn outgoing(
        &self,
        carried: &Carried,
        request_id: &HeaderValue,
        context: Option<&Context>,
        new_trace: bool,
    ) -> Outgoing {
        let mut out = Vec::with_capacity(carried.entries.len() + 6);
        let keep_request_ids = carried.first(Kind::RequestId).is_some_and(is_valid_request_id);
        if !keep_request_ids {
            out.push((place::REQUEST_ID, request_id.clone()));
        }
        let state = context.is_none_or(|context| self.keeps_tracestate(carried, context));
        for (place, value) in &carried.entries {
            let kept = !value.is_empty()
                && match kind(*place) {
                    Kind::Verbatim => true,
                    Kind::RequestId => keep_request_ids,
                    Kind::TraceState => state,
                    Kind::Baggage => context.is_none() || self.propagators.baggage,
                    Kind::TraceParent | Kind::B3 | Kind::B3Multi => context.is_none(),
                };
            if kept {
                out.push((*place, value.clone()));
            }
        }
        if let Some(context) = context {
            let hex = Hex::of(context);
            for format in &self.propagators.formats {
                // A single `b3` would switch Envoy's Zipkin tracer, and with it the whole mesh, to that format.
                let introduced = new_trace && (*format != Format::B3 || self.propagators.formats.len() == 1);
                if introduced || carried.speaks(*format) {
                    hex.write(*format, context, &mut out);
                }
            }
        }
        if !self.dropped.is_empty() {
            out.retain(|(place, _)| !self.dropped.contains(place));
        }
        Outgoing(out)
    }

    /// A `tracestate` goes on when it belongs to the trace that goes on, and is one that W3C accepts.
    fn keeps_tracestate(&self, carried: &Carried, context: &Context) -> bool {
        const MAX_MEMBERS: usize = 32;
        let members = |value: &[u8]| value.split(|byte| *byte == b',').filter(|member| !member.trim_ascii().is_empty()).count();
        carried.all(Kind::TraceState).next().is_some()
            && self.propagators.formats.contains(&Format::TraceContext)
            && carried.all(Kind::TraceState).map(|value| members(value.as_bytes())).sum::<usize>() <= MAX_MEMBERS
            && carried.only(Kind::TraceParent).and_then(parse_traceparent).is_some_and(|w3c| w3c.trace_id == context.trace_id)
    }
}

fn kind(place: Place) -> Kind {
    TABLE.get(usize::from(place)).map_or(Kind::Verbatim, |row| row.kind)
}

impl Carried {
    fn all(&self, of: Kind) -> impl Iterator<Item = &HeaderValue> {
        self.entries.iter().filter(move |(place, _)| kind(*place) == of).map(|(_, value)| value)
    }

    fn first(&self, kind: Kind) -> Option<&[u8]> {
        self.all(kind).next().map(HeaderValue::as_bytes)
    }

    /// The value when there is exactly one: of two `traceparent` headers neither can be trusted.
    fn only(&self, kind: Kind) -> Option<&[u8]> {
        let mut values = self.all(kind);
        values.next().filter(|_| values.next().is_none()).map(HeaderValue::as_bytes)
    }

    fn at(&self, place: Place) -> Option<&[u8]> {
        self.entries.iter().find(|(at, _)| *at == place).map(|(_, value)| value.as_bytes())
    }

    /// The request's id, when the first that came is usable.
    pub(crate) fn request_id(&self) -> Option<&HeaderValue> {
        self.all(Kind::RequestId).next().filter(|value| is_valid_request_id(value.as_bytes()))
    }

    /// Whether the request came with a header of this format, valid or not. An empty header is none: it says nothing, and taken
    /// for a format it would bring a `b3` into a mesh that never had one.
    fn speaks(&self, format: Format) -> bool {
        let kind = match format {
            Format::TraceContext => Kind::TraceParent,
            Format::B3 => Kind::B3,
            Format::B3Multi => Kind::B3Multi,
        };
        self.all(kind).any(|value| !value.is_empty())
    }
}

/// Carried headers as the reply shows them: a JSON object of arrays, equal names together, secrets masked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown<'a> {
    propagator: &'a Propagator,
    entries: &'a [(Place, HeaderValue)],
}

impl<'a> Shown<'a> {
    /// As they arrived.
    pub(crate) fn received(propagator: &'a Propagator, carried: &'a Carried) -> Self {
        Self { propagator, entries: &carried.entries }
    }

    /// As they were written.
    pub(crate) fn sent(propagator: &'a Propagator, outgoing: &'a Outgoing) -> Self {
        Self { propagator, entries: &outgoing.0 }
    }

    /// Appends the object.
    pub(crate) fn push_json(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        for (i, (place, _)) in self.entries.iter().enumerate() {
            // A name is written where it is met first; the lists are short, so looking back costs less than a set.
            if self.entries[..i].iter().any(|(earlier, _)| earlier == place) {
                continue;
            }
            let name = self.propagator.name(*place).as_str();
            // No row of the table is a secret, a test says; a search through the name is for the extra ones alone.
            let secret = usize::from(*place) >= TABLE.len() && is_secret(name);
            // A header's name needs no escaping.
            out.reserve(name.len() + 8);
            out.extend_from_slice(if i == 0 { b"\"" } else { b",\"" });
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":");
            let mut separator = b'[';
            for (_, value) in self.entries[i..].iter().filter(|(at, _)| at == place) {
                out.push(separator);
                push_text(out, if secret { MASK.as_bytes() } else { value.as_bytes() });
                separator = b',';
            }
            out.push(b']');
        }
        out.push(b'}');
    }
}

enum Parsed {
    Context(Context),
    /// A sampling decision without ids.
    Decision(Sampling),
}

/// An id from 16 or 32 hex digits (upper case only if `any_case`); `None` for anything else and for all zeros.
fn parse_hex(digits: &[u8], any_case: bool) -> Option<u128> {
    if digits.is_empty() || digits.len() > 32 {
        return None;
    }
    let mut value: u128 = 0;
    for digit in digits {
        let nibble = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            b'A'..=b'F' if any_case => digit - b'A' + 10,
            _ => return None,
        };
        value = value << 4 | u128::from(nibble);
    }
    (value != 0).then_some(value)
}

fn parse_span_id(digits: &[u8], any_case: bool) -> Option<SpanId> {
    let id = parse_hex((digits.len() == 16).then_some(digits)?, any_case)?;
    Some(SpanId::from(u64::try_from(id).ok()?))
}

/// The B3 trace id and whether it came as 64 bits.
fn parse_b3_trace_id(digits: &[u8]) -> Option<(TraceId, bool)> {
    matches!(digits.len(), 16 | 32).then_some(())?;
    Some((TraceId::from(parse_hex(digits, true)?), digits.len() == 16))
}

/// `00-<32 hex>-<16 hex>-<2 hex>`; a version above 00 is read as 00, `ff` is none. Source: W3C Trace Context, section 3.2.
fn parse_traceparent(value: &[u8]) -> Option<Context> {
    const LENGTH: usize = 55;
    let (known, rest) = value.split_at_checked(LENGTH)?;
    let (version, ids) = known.split_at(2);
    let is_hex = |digits: &[u8]| digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    let fits = match version {
        b"00" => rest.is_empty(),
        b"ff" => false,
        _ => is_hex(version) && (rest.is_empty() || rest[0] == b'-'),
    };
    if !fits || ids[0] != b'-' || ids[33] != b'-' || ids[50] != b'-' || !is_hex(&ids[51..]) {
        return None;
    }
    let sampled = matches!(ids[52], b'1' | b'3' | b'5' | b'7' | b'9' | b'b' | b'd' | b'f');
    Some(Context {
        trace_id: TraceId::from(parse_hex(&ids[1..33], false)?),
        short_trace_id: false,
        span_id: parse_span_id(&ids[34..50], false)?,
        parent_id: None,
        sampling: if sampled { Sampling::Sample } else { Sampling::Drop },
    })
}

/// `<trace>-<span>[-<0|1|d>[-<parent>]]`, or a decision alone. Source: openzipkin/b3-propagation, "Single Header".
fn parse_b3(value: &[u8]) -> Option<Parsed> {
    let decision = |state: &[u8]| match state {
        b"0" => Some(Sampling::Drop),
        b"1" => Some(Sampling::Sample),
        b"d" => Some(Sampling::Debug),
        _ => None,
    };
    if let Some(alone) = decision(value) {
        return Some(Parsed::Decision(alone));
    }
    let mut parts = value.split(|byte| *byte == b'-');
    let (trace_id, short_trace_id) = parse_b3_trace_id(parts.next()?)?;
    let span_id = parse_span_id(parts.next()?, true)?;
    let sampling = parts.next().map_or(Some(Sampling::Deferred), decision)?;
    let parent_id = match parts.next() {
        Some(parent) => Some(parse_span_id(parent, true)?),
        None => None,
    };
    parts.next().is_none().then_some(Parsed::Context(Context { trace_id, short_trace_id, span_id, parent_id, sampling }))
}

fn parse_b3_multi(carried: &Carried) -> Option<Parsed> {
    let sampling = if carried.at(place::B3_FLAGS) == Some(b"1") {
        Sampling::Debug
    } else {
        match carried.at(place::B3_SAMPLED) {
            Some(b"0" | b"false") => Sampling::Drop,
            Some(b"1" | b"true") => Sampling::Sample,
            Some(b"d") => Sampling::Debug,
            _ => Sampling::Deferred,
        }
    };
    let ids = || {
        let (trace_id, short_trace_id) = parse_b3_trace_id(carried.at(place::B3_TRACEID)?)?;
        let span_id = parse_span_id(carried.at(place::B3_SPANID)?, true)?;
        let parent_id = carried.at(place::B3_PARENTSPANID).and_then(|parent| parse_span_id(parent, true));
        Some(Context { trace_id, short_trace_id, span_id, parent_id, sampling })
    };
    ids().map(Parsed::Context).or((sampling != Sampling::Deferred).then_some(Parsed::Decision(sampling)))
}

/// A context's ids in hex: one buffer that every header value is a slice of.
struct Hex(Bytes);

impl Hex {
    /// The buffer is a whole `traceparent`, then the single `b3` header's tail: `-<state>-<parent>`.
    fn of(context: &Context) -> Self {
        let mut text = Vec::with_capacity(3 + 32 + 1 + 16 + 3 + 16);
        text.extend_from_slice(b"00-");
        push_hex(&mut text, &context.trace_id.to_bytes());
        text.push(b'-');
        push_hex(&mut text, &context.span_id.to_bytes());
        text.extend_from_slice(if context.sampling.is_sampled() { b"-01" } else { b"-00" });
        if let Some(parent) = context.parent_id {
            push_hex(&mut text, &parent.to_bytes());
        }
        Self(Bytes::from(text))
    }

    fn slice(&self, range: std::ops::Range<usize>) -> HeaderValue {
        value(self.0.slice(range))
    }

    fn write(&self, format: Format, context: &Context, out: &mut Vec<(Place, HeaderValue)>) {
        let trace_id = if context.short_trace_id { 19..35 } else { 3..35 };
        let parent_id = context.parent_id.map(|_| 55..71);
        match format {
            Format::TraceContext => out.push((place::TRACEPARENT, self.slice(0..55))),
            Format::B3 => {
                let mut single = Vec::with_capacity(32 + 1 + 16 + 2 + 1 + 16);
                single.extend_from_slice(&self.0[trace_id]);
                single.extend_from_slice(&self.0[35..52]);
                single.extend_from_slice(match context.sampling {
                    Sampling::Debug => b"-d",
                    Sampling::Sample => b"-1",
                    Sampling::Drop | Sampling::Deferred => b"-0",
                });
                if let Some(parent_id) = parent_id {
                    single.push(b'-');
                    single.extend_from_slice(&self.0[parent_id]);
                }
                out.push((place::B3, value(Bytes::from(single))));
            }
            Format::B3Multi => {
                out.push((place::B3_TRACEID, self.slice(trace_id)));
                out.push((place::B3_SPANID, self.slice(36..52)));
                if let Some(parent_id) = parent_id {
                    out.push((place::B3_PARENTSPANID, self.slice(parent_id)));
                }
                // B3 says that debug implies sampled and is written alone.
                out.push(match context.sampling {
                    Sampling::Debug => (place::B3_FLAGS, HeaderValue::from_static("1")),
                    Sampling::Sample => (place::B3_SAMPLED, HeaderValue::from_static("1")),
                    Sampling::Drop | Sampling::Deferred => (place::B3_SAMPLED, HeaderValue::from_static("0")),
                });
            }
        }
    }
}

fn value(ascii: Bytes) -> HeaderValue {
    HeaderValue::from_maybe_shared(ascii).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Appends lower-case hex digits. `format!` would take its way through `u128`, at ten times the price.
pub(crate) fn push_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let start = out.len();
    out.resize(start + 2 * bytes.len(), 0);
    let (pairs, _) = out[start..].as_chunks_mut();
    for (pair, byte) in pairs.iter_mut().zip(bytes) {
        *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: &str = "463ac35c9f6413ad48485a3953bb6124";
    const S: &str = "a2fb4a1d1a96d312";

    fn carried(propagator: &Propagator, headers: &[(&'static str, &str)]) -> Carried {
        let mut carried = Carried::default();
        for (name, value) in headers {
            assert!(
                propagator.take(&mut carried, &HeaderName::from_static(name), &HeaderValue::from_str(value).unwrap()),
                "{name}"
            );
        }
        carried
    }

    fn extract(headers: &[(&'static str, &str)]) -> Incoming {
        let propagator = Propagator::default();
        propagator.extract(&carried(&propagator, headers))
    }

    #[test]
    fn traceparent_is_read_as_w3c_says() {
        let valid = |value: &str| extract(&[("traceparent", value)]).context;
        let context = valid(&format!("00-{T}-{S}-01")).unwrap();
        assert_eq!((context.trace_id.to_string(), context.span_id.to_string()), (T.into(), S.into()));
        assert_eq!(context.sampling, Sampling::Sample);
        assert_eq!(valid(&format!("00-{T}-{S}-00")).unwrap().sampling, Sampling::Drop);
        assert_eq!(valid(&format!("cc-{T}-{S}-01-what-the-future-brings")).unwrap(), context);
        assert_eq!(valid(&format!("cc-{T}-{S}-09")).unwrap().sampling, Sampling::Sample);
        let zero = "0".repeat(32);
        for bad in [
            format!("ff-{T}-{S}-01"),
            format!("00-{zero}-{S}-01"),
            format!("00-{T}-0000000000000000-01"),
            format!("00-{}-{S}-01", T.to_uppercase()),
            format!("00-{T}-{S}-01-extra"),
            format!("cc-{T}-{S}-01extra"),
            format!("00-{T}-{S}-0"),
            format!("00-{T}-{S}-0g"),
            format!("0x-{T}-{S}-01"),
            format!("00_{T}-{S}-01"),
            "garbage".into(),
            String::new(),
        ] {
            assert_eq!(valid(&bad), None, "{bad}");
        }
        let twice = format!("00-{T}-{S}-01");
        assert_eq!(extract(&[("traceparent", &twice), ("traceparent", &twice)]).context, None);
    }

    #[test]
    fn b3_without_a_decision_leaves_it_to_the_receiver() {
        let context = extract(&[("x-b3-traceid", T), ("x-b3-spanid", S)]).context.unwrap();
        assert_eq!(context.sampling, Sampling::Deferred);
        let context = extract(&[("b3", &format!("{T}-{S}"))]).context.unwrap();
        assert_eq!(context.sampling, Sampling::Deferred);
    }

    #[test]
    fn b3_decisions_are_read_with_and_without_ids() {
        for (value, decision) in [("0", Sampling::Drop), ("1", Sampling::Sample), ("d", Sampling::Debug)] {
            assert_eq!(extract(&[("b3", value)]), Incoming { context: None, sampling: decision });
            assert_eq!(extract(&[("b3", &format!("{T}-{S}-{value}"))]).sampling, decision);
        }
        assert_eq!(extract(&[("x-b3-sampled", "0")]), Incoming { context: None, sampling: Sampling::Drop });
        assert_eq!(extract(&[("x-b3-flags", "1")]), Incoming { context: None, sampling: Sampling::Debug });
        assert_eq!(extract(&[("x-b3-sampled", "0"), ("b3", &format!("{T}-{S}-1"))]).sampling, Sampling::Sample);
    }

    #[test]
    fn b3_ids_may_be_upper_case_or_64_bits() {
        let upper = extract(&[("x-b3-traceid", &T.to_uppercase()), ("x-b3-spanid", &S.to_uppercase())]).context.unwrap();
        assert_eq!(upper.trace_id.to_string(), T);
        let short = extract(&[("b3", &format!("{S}-{S}-1-{S}"))]).context.unwrap();
        assert!(short.short_trace_id);
        assert_eq!(short.trace_id.to_string(), format!("0000000000000000{S}"));
        assert_eq!(short.parent_id.unwrap().to_string(), S);
        for bad in
            [format!("{T}-{S}-2"), format!("{T}-{S}-1-{S}-"), format!("{T}-"), format!("{T}x-{S}"), "-".into(), String::new()]
        {
            assert_eq!(extract(&[("b3", &bad)]).context, None, "{bad}");
        }
    }

    #[test]
    fn the_first_valid_format_in_the_configured_order_wins() {
        let w3c = format!("00-{T}-{S}-01");
        let other = "00000000000000aa";
        let headers = [("traceparent", w3c.as_str()), ("x-b3-traceid", other), ("x-b3-spanid", other)];
        assert_eq!(extract(&headers).context.unwrap().trace_id.to_string(), T);
        let b3_first = Propagator::new("b3multi,b3,tracecontext".parse().unwrap(), vec![], vec![]);
        assert!(b3_first.extract(&carried(&b3_first, &headers)).context.unwrap().trace_id.to_string().ends_with(other));
        let headers = [("traceparent", "garbage"), ("x-b3-traceid", other), ("x-b3-spanid", other)];
        assert!(extract(&headers).context.unwrap().trace_id.to_string().ends_with(other));
    }

    #[test]
    fn names_that_belong_to_one_connection_are_never_carried() {
        let names = ["x-forwarded-for", "x-envoy-attempt-count", "connection", "content-length", "x-tenant"];
        let propagator = Propagator::new(Propagators::default(), names.map(HeaderName::from_static).to_vec(), vec![]);
        assert_eq!(propagator.extra, [HeaderName::from_static("x-tenant")]);
    }

    #[test]
    fn the_places_of_the_table_are_where_their_names_are() {
        let named = [
            (place::REQUEST_ID, "x-request-id"),
            (place::TRACEPARENT, "traceparent"),
            (place::B3, "b3"),
            (place::B3_TRACEID, "x-b3-traceid"),
            (place::B3_SPANID, "x-b3-spanid"),
            (place::B3_PARENTSPANID, "x-b3-parentspanid"),
            (place::B3_SAMPLED, "x-b3-sampled"),
            (place::B3_FLAGS, "x-b3-flags"),
        ];
        for (place, name) in named {
            assert_eq!(TABLE[usize::from(place)].name, name);
        }
        assert!(!TABLE.iter().any(|row| is_secret(row.name.as_str())));
    }

    #[test]
    fn equal_names_are_shown_together_and_secrets_masked() {
        let propagator = Propagator::new(Propagators::default(), vec![HeaderName::from_static("authorization")], vec![]);
        let carried = carried(&propagator, &[("baggage", "a=1"), ("authorization", "Bearer x"), ("baggage", "b=2")]);
        let mut json = Vec::new();
        Shown::received(&propagator, &carried).push_json(&mut json);
        assert_eq!(String::from_utf8(json).unwrap(), r#"{"baggage":["a=1","b=2"],"authorization":["***"]}"#);
    }

    #[test]
    fn an_unknown_propagator_is_named() {
        assert!("tracecontext,jaeger".parse::<Propagators>().unwrap_err().contains("'jaeger'"));
        assert_eq!("none".parse::<Propagators>().unwrap(), Propagators { formats: vec![], baggage: false });
    }
}
