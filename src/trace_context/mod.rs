//! Trace context on the wire: one parser and one writer for W3C and B3, and the headers that a hop carries.
//!
//! Every header that a hop passes on is one line of the table in `carried`. With no exporter the hop forwards them untouched;
//! with one it continues the trace: [`Propagator::extract`] reads the first valid context in the configured order, and
//! `Propagator::outgoing` writes the hop's own context in every configured format that the request spoke, so that no stale
//! context travels beside a fresh one.

mod b3;
mod carried;
mod w3c;

use std::collections::HashMap;
use std::str::FromStr;

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue};
use opentelemetry::trace::{SpanId, TraceId};

use crate::text::hex;

use carried::HeaderRole;
pub use carried::{Carried, carried_names, is_never_carried, is_secret};
pub(crate) use carried::{HeaderPairs, RedactedHeaders, redacted};
pub(crate) use w3c::traceresponse;

/// The header that carries the request's id.
pub(crate) static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// How many hops a request has passed; a hop writes one more than it read.
pub(crate) static X_HOP_COUNT: HeaderName = HeaderName::from_static("x-hop-count");

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Header values by lower-case name: those of a request, or those that a reply shows.
pub(crate) trait HeaderSource {
    /// Every value of one header, in order.
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]>;

    /// The first value.
    fn first(&self, name: &str) -> Option<&[u8]> {
        self.values(name).next()
    }

    /// The value when there is exactly one.
    fn only(&self, name: &str) -> Option<&[u8]> {
        let mut values = self.values(name);
        values.next().filter(|_| values.next().is_none())
    }

    /// Whether there is a value that is not empty.
    fn is_present(&self, name: &str) -> bool {
        self.values(name).any(|value| !value.is_empty())
    }
}

/// A wire format for trace context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WireFormat {
    /// `traceparent` and `tracestate`.
    TraceContext,
    /// The single `b3` header.
    B3,
    /// The `x-b3-*` headers.
    B3Multi,
}

impl WireFormat {
    /// What `headers` say in this format; `None` when that is nothing valid.
    fn parse(self, headers: &impl HeaderSource) -> Option<Incoming> {
        match self {
            // Of two `traceparent` headers neither can be trusted.
            Self::TraceContext => headers.only("traceparent").and_then(w3c::parse_traceparent).map(Incoming::from),
            Self::B3 => headers.first("b3").and_then(b3::parse_single),
            Self::B3Multi => b3::parse_multi(headers),
        }
    }

    /// Appends the headers of a context. Their values share the allocation of `buffer`.
    fn write(self, context: &Context, buffer: &mut BytesMut, out: &mut HeaderPairs) {
        match self {
            Self::TraceContext => out.push((TRACEPARENT.clone(), w3c::write_traceparent(context, buffer))),
            Self::B3 => b3::write_single(context, buffer, out),
            Self::B3Multi => b3::write_multi(context, buffer, out),
        }
    }

    /// Whether a request came with a header of this format, valid or not. An empty header does not count: it says nothing, and
    /// taken for a format it would bring a `b3` into a mesh that never had one.
    fn is_present(self, headers: &impl HeaderSource) -> bool {
        match self {
            Self::TraceContext => headers.is_present("traceparent"),
            Self::B3 => headers.is_present("b3"),
            Self::B3Multi => b3::MULTI.into_iter().any(|name| headers.is_present(name)),
        }
    }
}

/// `OTEL_PROPAGATORS`: which formats are read (in this order, the first valid one wins) and written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Propagators {
    formats: Vec<WireFormat>,
    baggage: bool,
}

impl Default for Propagators {
    fn default() -> Self {
        Self { formats: vec![WireFormat::TraceContext, WireFormat::B3Multi, WireFormat::B3], baggage: true }
    }
}

impl FromStr for Propagators {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parsed = Self { formats: Vec::new(), baggage: false };
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let format = match name {
                "tracecontext" => WireFormat::TraceContext,
                "b3" => WireFormat::B3,
                "b3multi" => WireFormat::B3Multi,
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

impl From<Context> for Incoming {
    fn from(context: Context) -> Self {
        Self { sampling: context.sampling, context: Some(context) }
    }
}

/// Whether a request id is usable: visible ASCII, 1 to 128 bytes.
pub fn is_valid_request_id(value: &[u8]) -> bool {
    (1..=128).contains(&value.len()) && value.iter().all(|byte| (0x21..=0x7e).contains(byte))
}

/// How one hop carries headers: the table, the names added to it and those that it loses on purpose.
#[derive(Debug, Default)]
pub struct Propagator {
    propagators: Propagators,
    /// Names carried beside the table, and whether their values are secrets.
    extra: HashMap<HeaderName, bool>,
    dropped: Vec<HeaderName>,
}

impl Propagator {
    /// `extra` are carried beside the table, `dropped` are lost on purpose. Names that may never be carried are left out.
    pub fn new(propagators: Propagators, extra: Vec<HeaderName>, dropped: Vec<HeaderName>) -> Self {
        let extra = extra.into_iter().filter(|name| !is_never_carried(name.as_str()) && carried::find(name.as_str()).is_none());
        let extra = extra.map(|name| (name.clone(), is_secret(name.as_str()))).collect();
        Self { propagators, extra, dropped }
    }

    /// Adds a header to `carried` if it is one that is carried, and returns whether it is.
    pub(crate) fn carry(&self, carried: &mut Carried, name: &HeaderName, value: &HeaderValue) -> bool {
        // The table's own names: a clone of one that arrived costs an allocation.
        let (name, is_secret) = match carried::find(name.as_str()) {
            Some(line) => (&line.name, false),
            None => match self.extra.get_key_value(name) {
                Some((name, is_secret)) => (name, *is_secret),
                None => return false,
            },
        };
        let mut value = value.clone();
        value.set_sensitive(is_secret);
        carried.push(name.clone(), value);
        true
    }

    /// Reads what the request says about its trace: the first valid context in the configured order.
    pub fn extract(&self, carried: &Carried) -> Incoming {
        let mut alone = Sampling::Deferred;
        for found in self.propagators.formats.iter().filter_map(|format| format.parse(carried)) {
            if found.context.is_some() {
                return found;
            }
            if alone == Sampling::Deferred {
                alone = found.sampling;
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
    ) -> HeaderPairs {
        let mut out = Vec::with_capacity(carried.headers.len() + 6);
        let has_request_id = carried.request_id().is_some();
        if !has_request_id {
            out.push((X_REQUEST_ID.clone(), request_id.clone()));
        }
        let has_state = self.carries_tracestate(carried, context);
        for (name, value) in carried.headers.iter().filter(|(_, value)| !value.is_empty()) {
            let is_carried = match carried::role(name.as_str()) {
                HeaderRole::ForeignTracer | HeaderRole::Routing | HeaderRole::Extra => true,
                HeaderRole::RequestId => has_request_id,
                HeaderRole::TraceState => has_state,
                HeaderRole::Baggage => context.is_none() || self.propagators.baggage,
                HeaderRole::TraceParent | HeaderRole::B3 | HeaderRole::B3Multi => context.is_none(),
            };
            if is_carried {
                out.push((name.clone(), value.clone()));
            }
        }
        if let Some(context) = context {
            // All formats together take at most 187 bytes.
            let mut buffer = BytesMut::with_capacity(192);
            for format in &self.propagators.formats {
                // A single `b3` would switch Envoy's Zipkin tracer, and with it the whole mesh, to that format.
                let introduced = new_trace && (*format != WireFormat::B3 || self.propagators.formats.len() == 1);
                if introduced || format.is_present(carried) {
                    format.write(context, &mut buffer, &mut out);
                }
            }
        }
        if !self.dropped.is_empty() {
            out.retain(|(name, _)| !self.dropped.contains(name));
        }
        out
    }

    /// A `tracestate` is carried when it belongs to the trace that goes on, and is valid.
    fn carries_tracestate(&self, carried: &Carried, context: Option<&Context>) -> bool {
        let Some(context) = context else { return true };
        carried.is_present("tracestate")
            && self.propagators.formats.contains(&WireFormat::TraceContext)
            && w3c::is_valid_tracestate(carried.values("tracestate"))
            && WireFormat::TraceContext
                .parse(carried)
                .and_then(|w3c| w3c.context)
                .is_some_and(|w3c| w3c.trace_id == context.trace_id)
    }
}

/// An id from at most 32 hex digits (upper case only if `any_case`); `None` for anything else and for all zeros.
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

fn push_hex(buffer: &mut BytesMut, bytes: &[u8]) {
    let start = buffer.len();
    buffer.resize(start + 2 * bytes.len(), 0);
    hex::encode(bytes, &mut buffer[start..]);
}

/// Splits off everything that is in the buffer as the value of one header.
fn split_value(buffer: &mut BytesMut) -> HeaderValue {
    let ascii: Bytes = buffer.split().freeze();
    HeaderValue::from_maybe_shared(ascii).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: &str = "463ac35c9f6413ad48485a3953bb6124";
    const S: &str = "a2fb4a1d1a96d312";

    fn request(propagator: &Propagator, headers: &[(&'static str, &str)]) -> Carried {
        let mut carried = Carried::default();
        for (name, value) in headers {
            assert!(
                propagator.carry(&mut carried, &HeaderName::from_static(name), &HeaderValue::from_str(value).unwrap()),
                "{name}"
            );
        }
        carried
    }

    fn extract(headers: &[(&'static str, &str)]) -> Incoming {
        let propagator = Propagator::default();
        propagator.extract(&request(&propagator, headers))
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
        assert!(b3_first.extract(&request(&b3_first, &headers)).context.unwrap().trace_id.to_string().ends_with(other));
        let headers = [("traceparent", "garbage"), ("x-b3-traceid", other), ("x-b3-spanid", other)];
        assert!(extract(&headers).context.unwrap().trace_id.to_string().ends_with(other));
    }

    #[test]
    fn names_that_belong_to_one_connection_are_never_carried() {
        let names = ["x-forwarded-for", "x-envoy-attempt-count", "connection", "content-length", "x-tenant"];
        let propagator = Propagator::new(Propagators::default(), names.map(HeaderName::from_static).to_vec(), vec![]);
        assert_eq!(propagator.extra.into_keys().collect::<Vec<_>>(), [HeaderName::from_static("x-tenant")]);
    }

    #[test]
    fn no_line_of_the_table_is_a_secret() {
        assert!(!carried_names().any(is_secret));
    }

    #[test]
    fn any_number_of_further_headers_is_carried() {
        let names: Vec<HeaderName> = (0..300).map(|n| HeaderName::try_from(format!("x-h{n}")).unwrap()).collect();
        let propagator = Propagator::new(Propagators::default(), names.clone(), vec![names[299].clone()]);
        let mut carried = Carried::default();
        for name in &names {
            assert!(propagator.carry(&mut carried, name, &HeaderValue::from_static("v")), "{name}");
        }
        let sent = propagator.outgoing(&carried, &HeaderValue::from_static("r"), None, false);
        let sent: Vec<_> = sent.iter().map(|(name, _)| name).collect();
        let request_id = HeaderName::from_static("x-request-id");
        let expected: Vec<_> = std::iter::once(&request_id).chain(&names[..299]).collect();
        assert_eq!(sent, expected);
    }

    #[test]
    fn a_caller_cannot_mask_or_unmask_a_header_by_marking_it_sensitive() {
        let propagator = Propagator::new(Propagators::default(), vec![HeaderName::from_static("x-api-key")], vec![]);
        let mut carried = Carried::default();
        for name in ["x-lane", "x-api-key"] {
            for sensitive in [true, false] {
                // HTTP/2 says of a value that is never to be indexed that it is sensitive.
                let mut value = HeaderValue::from_static("v");
                value.set_sensitive(sensitive);
                propagator.carry(&mut carried, &HeaderName::from_static(name), &value);
            }
        }
        let mut json = Vec::new();
        RedactedHeaders::received(&carried).push_json(&mut json);
        assert_eq!(String::from_utf8(json).unwrap(), r#"{"x-lane":["v","v"],"x-api-key":["***","***"]}"#);
    }

    #[test]
    fn equal_names_are_shown_together_and_secrets_masked() {
        let propagator = Propagator::new(Propagators::default(), vec![HeaderName::from_static("authorization")], vec![]);
        let carried = request(&propagator, &[("baggage", "a=1"), ("authorization", "Bearer x"), ("baggage", "b=2")]);
        let mut json = Vec::new();
        RedactedHeaders::received(&carried).push_json(&mut json);
        assert_eq!(String::from_utf8(json).unwrap(), r#"{"baggage":["a=1","b=2"],"authorization":["***"]}"#);
    }

    #[test]
    fn an_unknown_propagator_is_named() {
        assert!("tracecontext,jaeger".parse::<Propagators>().unwrap_err().contains("'jaeger'"));
        assert_eq!("none".parse::<Propagators>().unwrap(), Propagators { formats: vec![], baggage: false });
    }
}
