//! The span in Zipkin's v2 JSON, read and written by serde.
//!
//! Reading is as lenient as a Zipkin server: short ids are padded, numbers may be quoted, unknown fields are skipped,
//! senseless times count as absent. What a Zipkin server would refuse is refused, with the path of the value in the text.
//! One difference: names keep the case in which they were reported (Zipkin lower-cases them), because people compare them
//! with their configuration; queries ignore case, so that they work either way.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::text::shorten;
use crate::traces::ids::{self, SpanId, TraceId};
use crate::traces::lenient;

/// The tags with the id of a request, the app's before its proxy's.
pub(crate) const REQUEST_ID_TAGS: [&str; 2] = ["request.id", "guid:x-request-id"];
/// Those with the host that was called.
pub(crate) const HOST_TAGS: [&str; 6] =
    ["server.address", "net.peer.name", "net.sock.peer.name", "http.host", "peer.hostname", "peer.address"];
/// Those with the URL that was called.
pub(crate) const URL_TAGS: [&str; 2] = ["url.full", "http.url"];

/// Which side of a call a span describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Kind {
    /// The caller: from before the request was sent until its answer was there.
    Client,
    /// The one called: from the arrival of the request until its answer was written.
    Server,
    /// Put a message on a queue.
    Producer,
    /// Took a message from a queue.
    Consumer,
}

impl Kind {
    /// The name in lower case, as people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Producer => "producer",
            Self::Consumer => "consumer",
        }
    }
}

/// One end of a call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// The service's name as it was reported.
    #[serde(deserialize_with = "lenient::name", skip_serializing_if = "Option::is_none")]
    pub service_name: Option<Box<str>>,
    /// Its IPv4 address.
    #[serde(deserialize_with = "lenient::address", skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    #[serde(deserialize_with = "lenient::address", skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Addr>,
    /// Its port, 1 to 65535.
    #[serde(deserialize_with = "lenient::port", skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// Something that happened during a span.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Annotation {
    /// When: microseconds since 1970-01-01 UTC.
    #[serde(deserialize_with = "lenient::some_micros")]
    pub timestamp: u64,
    /// What.
    #[serde(deserialize_with = "lenient::text")]
    pub value: Box<str>,
}

/// Another span that a span has to do with, mostly of another trace: the message that it handles, say. OpenTelemetry's; a field
/// that Zipkin does not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// The trace of the other span.
    #[serde(with = "ids::trace_id")]
    pub trace_id: TraceId,
    /// The other span.
    #[serde(with = "ids::span_id")]
    pub span_id: SpanId,
    /// Attributes by their keys.
    #[serde(default, deserialize_with = "lenient::tags", skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<Box<str>, Box<str>>,
}

/// One span. All text in it is from outside: never write it to a terminal or a page without escaping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a span (a JSON object)")]
pub struct Span {
    /// The trace that it belongs to.
    #[serde(with = "ids::trace_id")]
    pub trace_id: TraceId,
    /// The span that caused this one; `None` at the root.
    #[serde(default, with = "ids::parent_id", skip_serializing_if = "Option::is_none")]
    pub parent_id: Option<SpanId>,
    /// Its own id. The two halves of a call (client and server) share one id when the server's is [`shared`](Self::shared).
    #[serde(with = "ids::span_id")]
    pub id: SpanId,
    /// Which side of a call it describes; `None` for work inside a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// What was done, such as `GET /service{n}`.
    #[serde(default, deserialize_with = "lenient::name", skip_serializing_if = "Option::is_none")]
    pub name: Option<Box<str>>,
    /// When it began: microseconds since 1970-01-01 UTC.
    #[serde(default, deserialize_with = "lenient::micros", skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<u64>,
    /// How long it took, microseconds, at least 1.
    #[serde(default, deserialize_with = "lenient::micros", skip_serializing_if = "Option::is_none")]
    pub duration: Option<u64>,
    /// Who reported it.
    #[serde(default, deserialize_with = "lenient::non_default", skip_serializing_if = "Option::is_none")]
    pub local_endpoint: Option<Endpoint>,
    /// The other end of the call.
    #[serde(default, deserialize_with = "lenient::non_default", skip_serializing_if = "Option::is_none")]
    pub remote_endpoint: Option<Endpoint>,
    /// Events, oldest first.
    #[serde(default, deserialize_with = "lenient::list", skip_serializing_if = "Vec::is_empty")]
    pub annotations: Vec<Annotation>,
    /// Attributes by their keys.
    #[serde(default, deserialize_with = "lenient::tags", skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<Box<str>, Box<str>>,
    /// Links to other spans.
    #[serde(default, deserialize_with = "lenient::list", skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<Link>,
    /// The caller forced this trace to be kept (`x-b3-flags: 1`).
    #[serde(default, deserialize_with = "lenient::flag", skip_serializing_if = "std::ops::Not::not")]
    pub debug: bool,
    /// A server span that took over the id of its caller's client span, as B3 allows.
    #[serde(default, deserialize_with = "lenient::flag", skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
    /// Refuses Zipkin's v1 format, which is the only one that has this field.
    #[serde(default, skip_serializing)]
    binary_annotations: NoVersion1,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct NoVersion1;

impl<'de> Deserialize<'de> for NoVersion1 {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(de::Error::custom("this is Zipkin's v1 format; send v2"))
    }
}

impl Span {
    /// A span that has nothing but its ids.
    pub fn new(trace_id: TraceId, id: SpanId) -> Self {
        Self {
            trace_id,
            parent_id: None,
            id,
            kind: None,
            name: None,
            timestamp: None,
            duration: None,
            local_endpoint: None,
            remote_endpoint: None,
            annotations: Vec::new(),
            tags: BTreeMap::new(),
            links: Vec::new(),
            debug: false,
            shared: false,
            binary_annotations: NoVersion1,
        }
    }

    /// The name of the service that reported it.
    pub fn service(&self) -> Option<&str> {
        self.local_endpoint.as_ref()?.service_name.as_deref()
    }

    /// The name of the service at the other end, where the reporter knew it.
    pub fn remote_service(&self) -> Option<&str> {
        self.remote_endpoint.as_ref()?.service_name.as_deref()
    }

    /// The value of one tag.
    pub fn tag(&self, key: &str) -> Option<&str> {
        self.tags.get(key).map(AsRef::as_ref)
    }

    /// The value of the first of these tags that is there and not empty.
    pub(crate) fn first_tag(&self, keys: &[&str]) -> Option<&str> {
        keys.iter().find_map(|key| self.tag(key).filter(|text| !text.is_empty()))
    }

    /// The HTTP status of the answer, from OpenTelemetry's or Zipkin's tag of it.
    pub fn http_status(&self) -> Option<u16> {
        self.tag("http.response.status_code").or_else(|| self.tag("http.status_code"))?.parse().ok()
    }

    /// Whether the work failed: by its reporter's word, or by a status of 500 or above.
    pub fn has_failed(&self) -> bool {
        self.is_error() || self.http_status().is_some_and(|status| status >= 500)
    }

    /// The id of the request that it belongs to, as a hop or a proxy of Envoy's reports it.
    pub fn request_id(&self) -> Option<&str> {
        self.first_tag(&REQUEST_ID_TAGS)
    }

    /// The path of the request, without its query.
    pub fn path(&self) -> Option<&str> {
        let of_url = || {
            let (_, rest) = self.first_tag(&URL_TAGS)?.split_once("://")?;
            rest.find('/').map(|at| &rest[at..])
        };
        let path = self.first_tag(&["url.path", "http.target", "http.path"]).or_else(of_url)?;
        path.split(['?', '#']).next().filter(|path| !path.is_empty())
    }

    /// The service or the host that a client called, where its span names one.
    pub fn callee(&self) -> Option<&str> {
        self.remote_service().or_else(|| self.first_tag(&["peer.service"])).or_else(|| self.first_tag(&HOST_TAGS))
    }

    /// Whether a proxy reported it: by its own word, or by the marks of Envoy and Istio.
    pub fn is_proxy(&self) -> bool {
        const MARKS: [&str; 5] =
            ["upstream_cluster", "response_flags", "node_id", "guid:x-request-id", "istio.canonical_service"];
        self.tag("component") == Some("proxy")
            || MARKS.iter().any(|mark| self.tag(mark).is_some())
            || self.tag("telemetry.sdk.name") == Some("envoy")
    }

    /// Whether the reporter called it failed. Any value of the tag `error` means yes, as in Zipkin.
    pub fn is_error(&self) -> bool {
        self.tag("error").is_some() || self.tag("otel.status_code").is_some_and(|code| code.eq_ignore_ascii_case("error"))
    }

    /// About how many bytes of memory it takes, for the store's limits.
    pub(crate) fn weight(&self) -> usize {
        /// A node of a `BTreeMap` has room for 11 entries and may be half empty.
        const TAG: usize = 2 * size_of::<(Box<str>, Box<str>)>();
        let name = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len());
        let endpoint = |end: &Option<Endpoint>| end.as_ref().map_or(0, |end| name(&end.service_name));
        let tags = |tags: &BTreeMap<Box<str>, Box<str>>| tags.iter().map(|(k, v)| TAG + k.len() + v.len()).sum::<usize>();
        size_of::<Self>()
            + name(&self.name)
            + endpoint(&self.local_endpoint)
            + endpoint(&self.remote_endpoint)
            + tags(&self.tags)
            + self.links.iter().map(|link| size_of::<Link>() + tags(&link.tags)).sum::<usize>()
            + self.annotations.iter().map(|a| size_of::<Annotation>() + a.value.len()).sum::<usize>()
    }

    /// The kinds that an earlier report of the same span may have: its own, or none on one side, because tracers that report a
    /// span in parts may leave the kind out of one of them.
    pub(crate) fn kinds_of_reports(&self) -> impl Iterator<Item = Option<Kind>> + use<> {
        const ANY: [Kind; 4] = [Kind::Client, Kind::Server, Kind::Producer, Kind::Consumer];
        let any = if self.kind.is_none() { &ANY[..] } else { &[] };
        [self.kind, None].into_iter().chain(any.iter().copied().map(Some))
    }

    /// Whether two whole reports of one id are of different times, and so of two spans.
    pub(crate) fn is_apart_from(&self, other: &Self) -> bool {
        let times = |span: &Self| Some((span.timestamp?, span.timestamp?.saturating_add(span.duration?)));
        times(self).zip(times(other)).is_some_and(|(own, other)| own.1 < other.0 || other.1 < own.0)
    }

    /// This span with what a later report of the same span says. Tracers report a span in parts (its start, then its end)
    /// or twice (a retried batch): a field that is reported again is replaced, and the rest stays.
    pub(crate) fn updated(&self, later: Span) -> Span {
        /// Beyond this many tags and events a later report replaces the earlier one whole: adding tags one by one to a span
        /// of thousands would make a batch cost the square of its size.
        const MERGED_ENTRIES: usize = 256;
        let mut span = later;
        span.parent_id = span.parent_id.or(self.parent_id);
        span.kind = span.kind.or(self.kind);
        span.timestamp = span.timestamp.or(self.timestamp);
        span.duration = span.duration.or(self.duration);
        span.debug |= self.debug;
        span.shared |= self.shared;
        if span.name.is_none() {
            span.name.clone_from(&self.name);
        }
        if span.local_endpoint.is_none() {
            span.local_endpoint.clone_from(&self.local_endpoint);
        }
        if span.remote_endpoint.is_none() {
            span.remote_endpoint.clone_from(&self.remote_endpoint);
        }
        if span.links.is_empty() {
            span.links.clone_from(&self.links);
        }
        if self.tags.len() + self.annotations.len() <= MERGED_ENTRIES {
            if self.tags != span.tags {
                let later = std::mem::replace(&mut span.tags, self.tags.clone());
                span.tags.extend(later);
            }
            if self.annotations != span.annotations {
                span.annotations.extend(self.annotations.iter().cloned());
                tidy(&mut span.annotations);
            }
        }
        span
    }

    /// Corrects what only makes sense of several fields together.
    pub(crate) fn normalised(mut self) -> Self {
        // A span cannot cause itself; Zipkin removes such a parent, too.
        self.parent_id = self.parent_id.filter(|parent| *parent != self.id);
        // Only the server's half can have taken its id over.
        self.shared &= self.kind != Some(Kind::Client);
        tidy(&mut self.annotations);
        self
    }
}

fn tidy(annotations: &mut Vec<Annotation>) {
    annotations.sort();
    annotations.dedup();
    annotations.shrink_to_fit();
}

/// Why a body was refused. The text is fit for a log line: no control character, bounded length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecodeError {
    /// More spans than this.
    TooMany(usize),
    /// More than is decoded at once, in bytes.
    TooLarge,
    /// Not what was expected; the text has the path of the value.
    Invalid(String),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany(max) => write!(f, "more than {max} spans"),
            Self::TooLarge => f.write_str("too much for one batch"),
            Self::Invalid(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for DecodeError {}

/// Reads a JSON array of spans. Stops at the first span that is not valid, and at the first one beyond `max`.
///
/// # Errors
///
/// See [`DecodeError`].
pub fn decode(body: &[u8], max: usize) -> Result<Vec<Span>, DecodeError> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let mut track = serde_path_to_error::Track::new();
    let mut batch = BoundedSpans { max, overflow: false };
    let read = serde_path_to_error::Deserializer::new(&mut reader, &mut track).deserialize_seq(&mut batch);
    read.and_then(|spans| reader.end().map(|()| spans)).map_err(|error| {
        if batch.overflow {
            return DecodeError::TooMany(max);
        }
        let path = track.path().to_string();
        let path = if path == "." { "" } else { &path };
        DecodeError::Invalid(shorten(&format!("spans{path}: {error}"), 240))
    })
}

/// Reads what Zipkin answers, all its spans: a JSON array of traces, each an array of spans, or one of spans.
///
/// # Errors
///
/// See [`DecodeError`].
pub fn decode_traces(body: &[u8], max: usize) -> Result<Vec<Span>, DecodeError> {
    if !body.trim_ascii_start().get(1..).is_some_and(|inner| inner.trim_ascii_start().starts_with(b"[")) {
        return decode(body, max);
    }
    let traces: Vec<&RawValue> = serde_json::from_slice(body).map_err(|error| DecodeError::Invalid(error.to_string()))?;
    let mut spans = Vec::new();
    for trace in traces {
        spans.extend(decode(trace.get().as_bytes(), max - spans.len()).map_err(|error| match error {
            DecodeError::TooMany(_) => DecodeError::TooMany(max),
            error => error,
        })?);
    }
    Ok(spans)
}

/// A bounded array of spans.
struct BoundedSpans {
    max: usize,
    overflow: bool,
}

impl<'de> Visitor<'de> for &mut BoundedSpans {
    type Value = Vec<Span>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON array of spans")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<Span>, A::Error> {
        let mut spans = Vec::new();
        while let Some(span) = seq.next_element::<Span>()? {
            if spans.len() == self.max {
                self.overflow = true;
                return Err(de::Error::custom("too many spans"));
            }
            spans.push(span.normalised());
        }
        Ok(spans)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::ids::{parse_trace_id, zipkin_id};

    fn read(json: &str) -> Result<Vec<Span>, String> {
        decode(json.as_bytes(), 100).map_err(|error| error.to_string())
    }

    fn one(json: &str) -> Span {
        read(&format!("[{json}]")).unwrap().remove(0)
    }

    #[test]
    fn a_span_is_written_as_it_was_read() {
        let json = r#"{"traceId":"5982fe77008310cc80f1da5e10147517","parentId":"90394f6bcffb5d13","id":"67fae42571535f60","kind":"SERVER","name":"GET /service{n}","timestamp":1516781775726000,"duration":26000,"localEndpoint":{"serviceName":"service2","ipv4":"10.0.0.1","port":8080},"remoteEndpoint":{"ipv6":"2001:db8::c001"},"annotations":[{"timestamp":1516781775726001,"value":"a"}],"tags":{"error":"","http.method":"GET"},"debug":true,"shared":true}"#;
        assert_eq!(serde_json::to_string(&one(json)).unwrap(), json);
    }

    #[test]
    fn ids_of_any_length_and_case_are_normalised() {
        let span = one(r#"{"traceId":"00000000000000000000000000ABCDEF","id":"1","parentId":"0000000000000000"}"#);
        assert_eq!(zipkin_id(span.trace_id), "0000000000abcdef");
        assert_eq!(span.trace_id.to_string(), "00000000000000000000000000abcdef");
        assert_eq!((span.id.to_string().as_str(), span.parent_id), ("0000000000000001", None));
        assert_eq!(Ok(one(r#"{"traceId":"1","id":"1"}"#).trace_id), parse_trace_id("0001"));
        let wide = one(r#"{"traceId":"1ABCDEF1234567890","id":"1"}"#);
        assert_eq!(zipkin_id(wide.trace_id), "0000000000000001abcdef1234567890");
    }

    #[test]
    fn what_zipkin_tolerates_is_tolerated() {
        let span =
            one(r#"{"traceId":"a","id":"b","parentId":"b","kind":null,"name":"","timestamp":"1516781775726000","duration":-1,
            "localEndpoint":{"serviceName":"","ipv4":"not an address","port":0},"tags":{"n":1,"t":true,"n":2},
            "unknown":{"deep":[1,{}]},"annotations":null}"#);
        assert_eq!((span.parent_id, span.kind, span.name.clone(), span.local_endpoint.clone()), (None, None, None, None));
        assert_eq!((span.timestamp, span.duration), (Some(1_516_781_775_726_000), None));
        assert_eq!((span.tag("n"), span.tag("t"), span.tag("x")), (Some("2"), Some("true"), None));
        assert_eq!(one(r#"{"traceId":"a","id":"b","timestamp":1.5167817757e15}"#).timestamp, Some(1_516_781_775_700_000));
        assert!(!one(r#"{"traceId":"a","id":"b","kind":"CLIENT","shared":true}"#).shared);
        assert_eq!(read("[]").unwrap().len(), 0);
    }

    #[test]
    fn garbage_is_refused_with_the_span_and_the_field() {
        let good = r#"{"traceId":"a","id":"b"}"#;
        for (bad, text) in [
            (r#"{"id":"b"}"#, "spans[1]: missing field `traceId`"),
            (r#"{"traceId":"a"}"#, "spans[1]: missing field `id`"),
            (r#"{"traceId":"xyz","id":"b"}"#, "spans[1].traceId: \"xyz\" is not an id: expected 1 to 32 hex digits"),
            (r#"{"traceId":"a","id":"00000000000000000"}"#, "spans[1].id: \"00000000000000000\" is not an id: expected 1 to 16"),
            (r#"{"traceId":"0","id":"b"}"#, "spans[1].traceId: an id of zeros only"),
            (r#"{"traceId":7,"id":"b"}"#, "spans[1].traceId: expected a string"),
            (r#"{"traceId":"a","id":"b","kind":"BOTH"}"#, "spans[1].kind: unknown variant `BOTH`, expected one of `CLIENT`"),
            (r#"{"traceId":"a","id":"b","timestamp":"now"}"#, "spans[1].timestamp: expected a whole number"),
            (r#"{"traceId":"a","id":"b","duration":[]}"#, "spans[1].duration: invalid type: sequence"),
            (r#"{"traceId":"a","id":"b","localEndpoint":{"port":70000}}"#, "spans[1].localEndpoint.port: 70000 is not"),
            (r#"{"traceId":"a","id":"b","localEndpoint":"x"}"#, "spans[1].localEndpoint: invalid type: string"),
            (r#"{"traceId":"a","id":"b","tags":{"k":{}}}"#, "spans[1].tags.k: invalid type: map"),
            (r#"{"traceId":"a","id":"b","tags":{"k":null}}"#, "spans[1].tags.k: has no value"),
            (r#"{"traceId":"a","id":"b","annotations":[{"value":"x"}]}"#, "spans[1].annotations[0]: missing field `timestamp`"),
            (r#"{"traceId":"a","id":"b","shared":"yes"}"#, "spans[1].shared: expected true or false"),
            (r#"{"traceId":"a","id":"b","binaryAnnotations":[]}"#, "spans[1].binaryAnnotations: this is Zipkin's v1"),
            ("17", "spans[1]: invalid type: integer `17`, expected a span"),
            (r#"{"traceId":"a","#, "spans[1].?: key must be a string"),
        ] {
            let error = read(&format!("[{good},{bad}]")).unwrap_err();
            assert!(error.starts_with(text), "{bad}\n  reads {error}\n  not   {text}");
            assert!(error.matches(" at line ").count() <= 1, "{error}");
        }
        assert!(read("{}").unwrap_err().contains("expected a JSON array of spans"));
        assert!(read("[] []").unwrap_err().contains("trailing characters"));
        assert_eq!(decode(format!("[{good},{good}]").as_bytes(), 2).unwrap().len(), 2);
        assert!(matches!(decode(format!("[{good},{good},{good}]").as_bytes(), 2), Err(DecodeError::TooMany(2))));
    }

    #[test]
    fn an_error_never_echoes_a_control_character_or_an_endless_text() {
        let error = read(&format!(r#"[{{"traceId":"\u001b[31m\n{}","id":"b"}}]"#, "x".repeat(10_000))).unwrap_err();
        assert!(!error.chars().any(char::is_control), "{error}");
        assert!(error.chars().count() < 300, "{error}");
    }

    #[test]
    fn deep_nesting_does_not_overflow_the_stack() {
        // An unknown field is skipped without recursion, so its depth does not matter.
        let open = |field: &str| format!(r#"[{{"traceId":"a","id":"b","{field}":{}"#, "[".repeat(1_000_000));
        assert!(read(&open("unknown")).unwrap_err().starts_with("spans[0].unknown: EOF while parsing"));
        assert_eq!(read(&format!("{}{}}}]", open("unknown"), "]".repeat(1_000_000))).unwrap().len(), 1);
        assert!(read(&open("name")).unwrap_err().starts_with("spans[0].name: invalid type: sequence"));
        assert!(read(&open("annotations")).unwrap_err().starts_with("spans[0].annotations"));
    }

    #[test]
    fn a_span_reported_in_parts_becomes_whole() {
        let first = one(r#"{"traceId":"a","id":"b","kind":"CLIENT","timestamp":5,"tags":{"a":"1","b":"1"}}"#);
        let whole = first.updated(one(r#"{"traceId":"a","id":"b","duration":7,"tags":{"b":"2"}}"#));
        assert_eq!((whole.timestamp, whole.duration, whole.kind), (Some(5), Some(7), Some(Kind::Client)));
        assert_eq!((whole.tag("a"), whole.tag("b")), (Some("1"), Some("2")));
        assert_eq!(whole.updated(whole.clone()), whole);
    }

    #[test]
    fn what_tags_say_is_read_in_one_way() {
        let tagged = |tags: &str| one(&format!(r#"{{"traceId":"a","id":"b","tags":{{{tags}}}}}"#));
        for (tags, path) in [
            (r#""url.path":"/a","url.full":"http://h/b""#, Some("/a")),
            (r#""http.target":"/a?q=1""#, Some("/a")),
            (r#""url.path":"","http.path":"/a""#, Some("/a")),
            (r#""url.full":"http://u:p@h:1/a/b#c""#, Some("/a/b")),
            (r#""http.url":"http://h""#, None),
            (r#""http.route":"/{id}""#, None),
        ] {
            assert_eq!(tagged(tags).path(), path, "{tags}");
        }
        for (tags, status, has_failed) in [
            (r#""http.response.status_code":200"#, Some(200), false),
            (r#""http.status_code":"503""#, Some(503), true),
            (r#""http.status_code":"404""#, Some(404), false),
            (r#""http.status_code":"5xx""#, None, false),
            (r#""error":"""#, None, true),
            (r#""otel.status_code":"ERROR""#, None, true),
        ] {
            assert_eq!((tagged(tags).http_status(), tagged(tags).has_failed()), (status, has_failed), "{tags}");
        }
        let both = tagged(r#""request.id":"r","guid:x-request-id":"g""#);
        assert_eq!((both.request_id(), tagged(r#""guid:x-request-id":"g""#).request_id()), (Some("r"), Some("g")));
        assert_eq!(tagged(r#""server.address":"h","peer.service":"s""#).callee(), Some("s"));
        assert_eq!(tagged(r#""net.peer.name":"h""#).callee(), Some("h"));
        for tags in
            [r#""component":"proxy""#, r#""telemetry.sdk.name":"envoy""#, r#""response_flags":"-""#, r#""node_id":"sidecar~1""#]
        {
            assert!(tagged(tags).is_proxy(), "{tags}");
        }
        assert!(!tagged(r#""component":"net/http","telemetry.sdk.name":"opentelemetry""#).is_proxy());
    }
}
