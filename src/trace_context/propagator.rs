//! How one hop propagates trace context: what it reads, what it carries and what it writes.

use std::collections::HashMap;
use std::fmt;

use bytes::BytesMut;
use http::{HeaderName, HeaderValue};

use super::carried::{self, Carried, HeaderPairs, HeaderRole, X_REQUEST_ID, is_never_carried};
use super::context::{Context, HeaderSource, Incoming, Sampling};
use super::dropped::Dropped;
use super::format::WireFormat;
use super::secrets::{has_secret, is_secret};
use super::w3c;

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

impl Propagators {
    /// The formats that are read. B3 has two forms: one of them alone stands for both (OpenTelemetry, "B3 Requirements").
    fn read(&self) -> impl Iterator<Item = WireFormat> {
        let other = |format: &WireFormat| format.other_form().filter(|other| !self.formats.contains(other));
        self.formats.iter().flat_map(move |format| [Some(*format), other(format)]).flatten()
    }

    /// Whether a request spoke a format that is written, in whichever form it is read.
    fn is_spoken(&self, format: WireFormat, carried: &Carried) -> bool {
        let other = format.other_form().filter(|other| !self.formats.contains(other));
        format.is_present(carried) || other.is_some_and(|other| other.is_present(carried))
    }

    /// From names in lower case; also returns those that are unknown.
    pub(crate) fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> (Self, Vec<&'a str>) {
        let (mut parsed, mut unknown) = (Self { formats: Vec::new(), baggage: false }, Vec::new());
        for name in names {
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
                    unknown.push(other);
                    continue;
                }
            };
            if !parsed.formats.contains(&format) {
                parsed.formats.push(format);
            }
        }
        (parsed, unknown)
    }
}

/// As `OTEL_PROPAGATORS` has it.
impl fmt::Display for Propagators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let formats = self.formats.iter().map(|format| match format {
            WireFormat::TraceContext => "tracecontext",
            WireFormat::B3 => "b3",
            WireFormat::B3Multi => "b3multi",
        });
        let mut names: Vec<_> = formats.collect();
        if self.baggage {
            // The standard's pair stays together.
            let at = names.iter().position(|name| *name == "tracecontext").map_or(names.len(), |at| at + 1);
            names.insert(at, "baggage");
        }
        f.write_str(if names.is_empty() { "none" } else { "" })?;
        f.write_str(&names.join(","))
    }
}

/// How one hop carries headers: the table, the names added to it and those that it loses on purpose.
#[derive(Debug, Default)]
pub struct Propagator {
    propagators: Propagators,
    /// Names carried beside the table, and whether their values are secrets.
    extra: HashMap<HeaderName, bool>,
    dropped: Dropped,
}

impl Propagator {
    /// `extra` are carried beside the table, `dropped` are lost on purpose. Names that may never be carried are left out.
    pub fn new(propagators: Propagators, extra: Vec<HeaderName>, dropped: Vec<HeaderName>) -> Self {
        let extra = extra.into_iter().filter(|name| !is_never_carried(name.as_str()) && carried::find(name.as_str()).is_none());
        let extra = extra.map(|name| (name.clone(), is_secret(name.as_str()))).collect();
        let losing = Dropped::default();
        losing.set(dropped);
        Self { propagators, extra, dropped: losing }
    }

    /// The handle to the headers that are lost on purpose.
    pub(crate) fn dropped(&self) -> Dropped {
        self.dropped.clone()
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
        value.set_sensitive(is_secret || has_secret(value.as_bytes()));
        carried.push(name.clone(), value);
        true
    }

    /// Whether a header of this name is carried.
    pub(crate) fn carries(&self, name: &HeaderName) -> bool {
        carried::find(name.as_str()).is_some() || self.extra.contains_key(name)
    }

    /// Reads the request's trace context: the first valid one in the configured order.
    pub fn extract(&self, carried: &Carried) -> Incoming {
        let mut alone = Sampling::Deferred;
        for found in self.propagators.read().filter_map(|format| format.parse(carried)) {
            if let Some(context) = &found.context {
                return if self.is_debugged(carried, context) { debugged(*context) } else { found };
            }
            if alone == Sampling::Deferred {
                alone = found.sampling;
            }
        }
        Incoming { context: None, sampling: alone }
    }

    /// Whether B3 beside the context that is read has the debug flag for the same trace: W3C cannot carry it.
    fn is_debugged(&self, carried: &Carried, context: &Context) -> bool {
        let b3 = self.propagators.read().filter(|format| *format != WireFormat::TraceContext);
        // Most requests have none, and one walk tells.
        carried.headers.iter().any(|(name, value)| may_debug(name.as_str(), value.as_bytes()))
            && b3.filter_map(|format| format.parse(carried)).any(|other| {
                other.sampling == Sampling::Debug && other.context.is_none_or(|other| other.trace_id == context.trace_id)
            })
    }

    /// The headers of a call to the next hop. `context` is the hop's own client span; without one (no exporter) every trace
    /// header passes through untouched. `new_trace`: the hop started the trace itself.
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
            // All formats together have at most 187 bytes.
            let mut buffer = BytesMut::with_capacity(192);
            for format in &self.propagators.formats {
                // A single `b3` would switch Envoy's Zipkin tracer, and with it the whole mesh, to that format.
                let introduced = new_trace && (*format != WireFormat::B3 || self.propagators.formats.len() == 1);
                if introduced || self.propagators.is_spoken(*format, carried) {
                    format.write(context, &mut buffer, &mut out);
                }
            }
        }
        self.dropped.drop_from(&mut out);
        out
    }

    /// The carried headers, if they hold a `tracestate` that belongs to `context`.
    pub(crate) fn trace_state<'a>(&self, carried: &'a Carried, context: &Context) -> Option<&'a Carried> {
        self.carries_tracestate(carried, Some(context)).then_some(carried)
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

/// Whether a header of B3 may have the debug flag: in the single form a `d` may also be one of an id's digits.
fn may_debug(name: &str, value: &[u8]) -> bool {
    match name.len() {
        2 => name == "b3" && value.contains(&b'd'),
        10 => name == "x-b3-flags" && value == b"1",
        12 => name == "x-b3-sampled" && value == b"d",
        _ => false,
    }
}

fn debugged(context: Context) -> Incoming {
    Context { sampling: Sampling::Debug, ..context }.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace_context::cases_for_tests::context_cases;
    use crate::trace_context::{HeaderFamily, RedactedHeaders};

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
    fn the_hop_reads_every_context_as_the_rules_say() {
        let cases = context_cases();
        assert!(cases.len() > 500, "{}", cases.len());
        for case in cases {
            let formats = match case.family {
                HeaderFamily::W3c => "tracecontext",
                HeaderFamily::B3 => "b3multi,b3",
            };
            let propagator = Propagator::new(Propagators::from_names(formats.split(',')).0, vec![], vec![]);
            let headers: Vec<_> = case.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let incoming = propagator.extract(&request(&propagator, &headers));
            let context = incoming.context.map(|context| {
                let ids = (context.trace_id.to_string(), context.span_id.to_string());
                (ids, context.parent_id.map(|id| id.to_string()), context.short_trace_id, context.sampling)
            });
            let expected = case.context.map(|valid| {
                let ids = (valid.trace_id.to_owned(), valid.span_id.to_owned());
                (ids, valid.parent_id.map(str::to_owned), valid.is_short, valid.sampling)
            });
            assert_eq!((context, incoming.sampling), (expected, case.sampling), "{:?}", case.headers);
        }
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
        let b3_first = Propagator::new(Propagators::from_names(["b3multi", "b3", "tracecontext"]).0, vec![], vec![]);
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
    fn an_unknown_propagator_is_named_and_left_out() {
        let (propagators, unknown) = Propagators::from_names(["tracecontext", "jaeger"]);
        assert_eq!((propagators.formats, unknown), (vec![WireFormat::TraceContext], vec!["jaeger"]));
        assert_eq!(Propagators::from_names(["none"]), (Propagators { formats: vec![], baggage: false }, vec![]));
    }

    #[test]
    fn the_debug_flag_of_b3_is_read_beside_a_traceparent_of_the_same_trace() {
        let traceparent = format!("00-{T}-{S}-00");
        let other = T.replace('4', "5");
        let single = format!("{T}-{S}-d");
        for (b3, sampling) in [
            (&[("x-b3-traceid", T), ("x-b3-spanid", S), ("x-b3-flags", "1")][..], Sampling::Debug),
            (&[("x-b3-flags", "1")], Sampling::Debug),
            (&[("b3", &single)], Sampling::Debug),
            (&[("x-b3-traceid", &other), ("x-b3-spanid", S), ("x-b3-flags", "1")], Sampling::Drop),
            (&[("x-b3-traceid", T), ("x-b3-spanid", S), ("x-b3-sampled", "1")], Sampling::Drop),
        ] {
            let incoming = extract(&[&[("traceparent", traceparent.as_str())], b3].concat());
            assert_eq!(incoming.context.unwrap().sampling, sampling, "{b3:?}");
        }
    }
}
