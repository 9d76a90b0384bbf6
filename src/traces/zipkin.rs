//! Spans in Zipkin's v2 JSON, as they arrive and as they are handed out again.
//!
//! Reading is as lenient as a Zipkin server: short ids are padded, numbers may be quoted, unknown fields are skipped,
//! senseless times count as absent. What a Zipkin server would refuse is refused, in words that name the span and the field.
//! One difference: names keep the case in which they were reported (Zipkin lower-cases them), because people compare them
//! with their configuration; queries ignore case, so that they work either way.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::num::{NonZeroU64, NonZeroU128};
use std::str::FromStr;
use std::sync::Arc;

use serde::de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::hop::reply::plain;

/// The id that all spans of one request share; never zero.
///
/// Written as 32 lower-case hex digits, or as 16 when the upper half is zero, which is how Zipkin writes ids of 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TraceId(NonZeroU128);

/// The id of one span; never zero. Written as 16 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanId(NonZeroU64);

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadId(String);

impl fmt::Display for BadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadId {}

/// Reads 1 to `max` hex digits of either case.
fn hex(text: &str, max: usize) -> Result<u128, BadId> {
    if text.is_empty() || text.len() > max || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(BadId(format!("\"{}\" is not an id: expected 1 to {max} hex digits", shorten(text))));
    }
    u128::from_str_radix(text, 16).map_err(|_| BadId(format!("\"{}\" is not an id", shorten(text))))
}

impl TraceId {
    /// The id with this value; `None` for zero, which W3C and B3 both call invalid.
    pub fn from_u128(value: u128) -> Option<Self> {
        NonZeroU128::new(value).map(Self)
    }

    /// Always 32 hex digits, as W3C's `traceparent` writes it.
    pub fn to_w3c(self) -> String {
        format!("{:032x}", self.0)
    }
}

impl SpanId {
    /// The id with this value; `None` for zero.
    pub fn from_u64(value: u64) -> Option<Self> {
        NonZeroU64::new(value).map(Self)
    }
}

impl FromStr for TraceId {
    type Err = BadId;
    /// Reads 1 to 32 hex digits of either case; shorter ids are padded with zeros on the left.
    fn from_str(text: &str) -> Result<Self, BadId> {
        Self::from_u128(hex(text, 32)?).ok_or_else(|| BadId("an id of zeros only is not valid".into()))
    }
}

impl FromStr for SpanId {
    type Err = BadId;
    /// Reads 1 to 16 hex digits of either case; shorter ids are padded with zeros on the left.
    fn from_str(text: &str) -> Result<Self, BadId> {
        let value = u64::try_from(hex(text, 16)?).unwrap_or(0);
        Self::from_u64(value).ok_or_else(|| BadId("an id of zeros only is not valid".into()))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match u64::try_from(self.0.get()) {
            Ok(low) => write!(f, "{low:016x}"),
            Err(_) => write!(f, "{:032x}", self.0),
        }
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for TraceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for SpanId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Which side of a call a span tells about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The service's name as it was reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_name: Option<Box<str>>,
    /// Its IPv4 address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Addr>,
    /// Its port, 1 to 65535.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// Something that happened during a span.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Annotation {
    /// When: microseconds since 1970-01-01 UTC.
    pub timestamp: u64,
    /// What.
    pub value: Box<str>,
}

/// One span. All text in it is whatever somebody sent: never write it to a terminal or a page without escaping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Span {
    /// The trace that it belongs to.
    pub trace_id: TraceId,
    /// The span that caused this one; `None` at the root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_id: Option<SpanId>,
    /// Its own id. The two halves of a call (client and server) share one id when the server's is [`shared`](Self::shared).
    pub id: SpanId,
    /// Which side of a call it tells about; `None` for work inside a service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// What was done, such as `GET /service{n}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Box<str>>,
    /// When it began: microseconds since 1970-01-01 UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<u64>,
    /// How long it took, microseconds, at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<u64>,
    /// Who reported it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_endpoint: Option<Endpoint>,
    /// The other end of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_endpoint: Option<Endpoint>,
    /// Events, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub annotations: Vec<Annotation>,
    /// Keys with values, sorted by key, each key once. Read one with [`tag`](Self::tag).
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "tags_as_object")]
    pub tags: Vec<(Box<str>, Box<str>)>,
    /// The caller forced this trace to be kept (`x-b3-flags: 1`).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub debug: bool,
    /// A server span that took over the id of its caller's client span, as B3 allows.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
}

fn tags_as_object<S: Serializer>(tags: &[(Box<str>, Box<str>)], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(tags.len()))?;
    for (key, value) in tags {
        map.serialize_entry(key, value)?;
    }
    map.end()
}

impl Span {
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
        let at = self.tags.binary_search_by(|(known, _)| known.as_ref().cmp(key)).ok()?;
        Some(&self.tags[at].1)
    }

    /// The HTTP status of the answer, from OpenTelemetry's or Zipkin's tag of it.
    pub fn http_status(&self) -> Option<&str> {
        self.tag("http.response.status_code").or_else(|| self.tag("http.status_code"))
    }

    /// Whether the reporter called it failed. Any value of the tag `error` means yes, as in Zipkin.
    pub fn is_error(&self) -> bool {
        self.tag("error").is_some() || self.tag("otel.status_code").is_some_and(|code| code.eq_ignore_ascii_case("error"))
    }

    /// About how many bytes of memory it takes, for the store's accounts.
    pub(crate) fn weight(&self) -> usize {
        let name = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len());
        let endpoint = |end: &Option<Endpoint>| end.as_ref().map_or(0, |end| name(&end.service_name));
        size_of::<Self>()
            + name(&self.name)
            + endpoint(&self.local_endpoint)
            + endpoint(&self.remote_endpoint)
            + self.tags.iter().map(|(k, v)| size_of::<(Box<str>, Box<str>)>() + k.len() + v.len()).sum::<usize>()
            + self.annotations.iter().map(|a| size_of::<Annotation>() + a.value.len()).sum::<usize>()
    }

    /// This span with what a later report of the same span says. Tracers report a span in parts (its start, then its end)
    /// or twice (a retried batch): what is said again replaces what was said, and the rest stays.
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
        if self.tags.len() + self.annotations.len() <= MERGED_ENTRIES {
            if self.tags != span.tags {
                span.tags = tidy_tags(self.tags.iter().cloned().chain(span.tags).collect());
            }
            if self.annotations != span.annotations {
                span.annotations.extend(self.annotations.iter().cloned());
                tidy_annotations(&mut span.annotations);
            }
        }
        span
    }
}

/// Sorted by key; of several values for one key the last.
fn tidy_tags(mut tags: Vec<(Box<str>, Box<str>)>) -> Vec<(Box<str>, Box<str>)> {
    tags.reverse();
    // The sort is stable, so of equal keys the one that came last is now first, and that is the one dedup keeps.
    tags.sort_by(|a, b| a.0.cmp(&b.0));
    tags.dedup_by(|a, b| a.0 == b.0);
    tags.shrink_to_fit();
    tags
}

fn tidy_annotations(annotations: &mut Vec<Annotation>) {
    annotations.sort();
    annotations.dedup();
    annotations.shrink_to_fit();
}

/// Why a body was refused. The text is fit for a log line: no control character, bounded length.
#[derive(Debug)]
pub(crate) enum Refused {
    /// More spans than asked for.
    TooMany(usize),
    /// Not Zipkin v2 JSON.
    Garbage(String),
}

/// Reads a JSON array of spans. Stops at the first thing that is wrong, and at the first span beyond `max`.
pub(crate) fn decode(body: &[u8], max: usize) -> Result<Vec<Span>, Refused> {
    struct Batch {
        max: usize,
        overflow: bool,
    }
    impl<'de> Visitor<'de> for &mut Batch {
        type Value = Vec<Span>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON array of spans")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<Span>, A::Error> {
            let mut spans = Vec::new();
            loop {
                match seq.next_element::<Span>() {
                    Ok(Some(_)) if spans.len() == self.max => {
                        self.overflow = true;
                        return Err(de::Error::custom("too many spans"));
                    }
                    Ok(Some(span)) => spans.push(span),
                    Ok(None) => return Ok(spans),
                    Err(error) => return Err(de::Error::custom(format_args!("spans[{}]: {error}", spans.len()))),
                }
            }
        }
    }
    let mut batch = Batch { max, overflow: false };
    let mut reader = serde_json::Deserializer::from_slice(body);
    let read = (&mut reader).deserialize_seq(&mut batch).and_then(|spans| reader.end().map(|()| spans));
    read.map_err(|error| if batch.overflow { Refused::TooMany(max) } else { Refused::Garbage(shorten(&error.to_string())) })
}

/// At most some 200 characters of a text of others, control characters escaped.
fn shorten(text: &str) -> String {
    const MAX: usize = 200;
    let text = plain(text);
    match text.char_indices().nth(MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.into_owned(),
    }
}

/// A JSON value that is not nested.
enum Scalar<'a> {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(Cow<'a, str>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Scalar<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Scalar<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a number or a boolean")
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Scalar::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
                Ok(Scalar::Bool(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
                Ok(Scalar::Integer(value.into()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
                Ok(Scalar::Integer(value.into()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
                Ok(Scalar::Float(value))
            }
            fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
                Ok(Scalar::Text(Cow::Owned(value.into())))
            }
            fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
                Ok(Scalar::Text(Cow::Borrowed(value)))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

impl Scalar<'_> {
    fn text<E: de::Error>(self) -> Result<Option<Box<str>>, E> {
        Ok(match self {
            Self::Null => None,
            Self::Text(text) => Some(text.into()),
            Self::Integer(value) => Some(value.to_string().into()),
            Self::Float(value) => Some(value.to_string().into()),
            Self::Bool(value) => Some(value.to_string().into()),
        })
    }

    fn name<E: de::Error>(self) -> Result<Option<Box<str>>, E> {
        match self {
            Self::Null => Ok(None),
            Self::Text(text) => Ok((!text.is_empty()).then(|| text.into())),
            _ => Err(E::custom("expected a string")),
        }
    }

    /// An id; `None` for null.
    fn id<T: FromStr<Err = BadId>, E: de::Error>(self) -> Result<Option<T>, E> {
        match self {
            Self::Null => Ok(None),
            Self::Text(text) => text.parse().map(Some).map_err(E::custom),
            _ => Err(E::custom("expected a string of hex digits")),
        }
    }

    /// A whole number, quoted or not; `None` for null.
    fn integer<E: de::Error>(self) -> Result<Option<i128>, E> {
        let value = match &self {
            Self::Null => return Ok(None),
            Self::Integer(value) => Some(*value),
            // JavaScript writes large numbers as 1.7e15. An f64 of that size is exact.
            Self::Float(value) if value.fract() == 0.0 && value.abs() < 9.0e18 => Some(*value as i128),
            Self::Text(text) if text.len() <= 20 => text.parse().ok(),
            _ => None,
        };
        value.map(Some).ok_or_else(|| E::custom("expected a whole number"))
    }

    /// Microseconds; zero, a negative number and null all mean that nobody knows, as in Zipkin.
    fn micros<E: de::Error>(self) -> Result<Option<u64>, E> {
        match self.integer()? {
            Some(value) if value > 0 => {
                u64::try_from(value).map(Some).map_err(|_| E::custom("more microseconds than fit into 64 bits"))
            }
            _ => Ok(None),
        }
    }

    fn flag<E: de::Error>(self) -> Result<bool, E> {
        match self {
            Self::Null => Ok(false),
            Self::Bool(value) => Ok(value),
            _ => Err(E::custom("expected true or false")),
        }
    }
}

/// Puts the field's name before what went wrong in it.
fn within<E: de::Error>(field: &str) -> impl FnOnce(E) -> E + '_ {
    move |error| E::custom(format_args!("{field}: {error}"))
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(field_identifier, rename_all = "camelCase")]
        enum Field {
            TraceId,
            ParentId,
            Id,
            Kind,
            Name,
            Timestamp,
            Duration,
            LocalEndpoint,
            RemoteEndpoint,
            Annotations,
            Tags,
            Debug,
            Shared,
            BinaryAnnotations,
            #[serde(other)]
            Unknown,
        }
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Span;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a span (a JSON object)")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Span, A::Error> {
                let (mut trace_id, mut parent_id, mut id, mut kind, mut name) = (None, None, None, None, None);
                let (mut timestamp, mut duration, mut debug, mut shared) = (None, None, false, false);
                let (mut local_endpoint, mut remote_endpoint) = (None, None);
                let (mut annotations, mut tags) = (Vec::new(), Vec::new());
                macro_rules! scalar {
                    ($name:literal, $read:ident) => {
                        map.next_value::<Scalar<'_>>().and_then(Scalar::$read).map_err(within($name))?
                    };
                }
                while let Some(field) = map.next_key()? {
                    match field {
                        Field::TraceId => trace_id = scalar!("traceId", id),
                        Field::Id => id = scalar!("id", id),
                        Field::ParentId => {
                            let read = map.next_value::<Scalar<'_>>().and_then(|value| match value {
                                // Some tracers write a root's parent as zeros instead of leaving it out.
                                Scalar::Text(text) if !text.is_empty() && text.len() <= 16 && text.bytes().all(|b| b == b'0') => {
                                    Ok(None)
                                }
                                value => value.id(),
                            });
                            parent_id = read.map_err(within("parentId"))?;
                        }
                        Field::Kind => kind = read_kind(map.next_value()).map_err(within("kind"))?,
                        Field::Name => name = scalar!("name", name),
                        Field::Timestamp => timestamp = scalar!("timestamp", micros),
                        Field::Duration => duration = scalar!("duration", micros),
                        Field::LocalEndpoint => {
                            local_endpoint = map.next_value::<Option<Endpoint>>().map_err(within("localEndpoint"))?;
                        }
                        Field::RemoteEndpoint => {
                            remote_endpoint = map.next_value::<Option<Endpoint>>().map_err(within("remoteEndpoint"))?;
                        }
                        Field::Annotations => {
                            annotations =
                                map.next_value::<Option<Vec<Annotation>>>().map_err(within("annotations"))?.unwrap_or_default();
                        }
                        Field::Tags => tags = map.next_value::<Option<Tags>>().map_err(within("tags"))?.unwrap_or_default().0,
                        Field::Debug => debug = scalar!("debug", flag),
                        Field::Shared => shared = scalar!("shared", flag),
                        Field::BinaryAnnotations => {
                            return Err(de::Error::custom("binaryAnnotations: this is Zipkin's v1 format; send v2"));
                        }
                        Field::Unknown => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                let trace_id = trace_id.ok_or_else(|| de::Error::custom("traceId: missing"))?;
                let id: SpanId = id.ok_or_else(|| de::Error::custom("id: missing"))?;
                tidy_annotations(&mut annotations);
                Ok(Span {
                    trace_id,
                    // A span cannot cause itself; Zipkin takes such a parent away too.
                    parent_id: parent_id.filter(|parent| *parent != id),
                    id,
                    kind,
                    name,
                    timestamp,
                    duration,
                    local_endpoint: local_endpoint.filter(|end| *end != Endpoint::default()),
                    remote_endpoint: remote_endpoint.filter(|end| *end != Endpoint::default()),
                    annotations,
                    tags: tidy_tags(tags),
                    debug,
                    // Only the server's half can have taken its id over.
                    shared: shared && kind != Some(Kind::Client),
                })
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

fn read_kind<E: de::Error>(value: Result<Scalar<'_>, E>) -> Result<Option<Kind>, E> {
    match value? {
        Scalar::Null => Ok(None),
        Scalar::Text(text) => match text.as_ref() {
            "CLIENT" => Ok(Some(Kind::Client)),
            "SERVER" => Ok(Some(Kind::Server)),
            "PRODUCER" => Ok(Some(Kind::Producer)),
            "CONSUMER" => Ok(Some(Kind::Consumer)),
            other => Err(E::custom(format_args!(
                "\"{}\" is none of CLIENT, SERVER, PRODUCER, CONSUMER; leave it out for work inside a service",
                shorten(other)
            ))),
        },
        _ => Err(E::custom("expected CLIENT, SERVER, PRODUCER or CONSUMER")),
    }
}

#[derive(Default)]
struct Tags(Vec<(Box<str>, Box<str>)>);

impl<'de> Deserialize<'de> for Tags {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Tags;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tags, A::Error> {
                let mut tags = Vec::new();
                while let Some(key) = map.next_key::<Box<str>>()? {
                    let value = map.next_value::<Scalar<'_>>().and_then(Scalar::text).map_err(within(&shorten(&key)))?;
                    let value = value.ok_or_else(|| de::Error::custom(format_args!("{}: has no value", shorten(&key))))?;
                    tags.push((key, value));
                }
                Ok(Tags(tags))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl<'de> Deserialize<'de> for Annotation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Wire<'a> {
            #[serde(borrow)]
            timestamp: Option<Scalar<'a>>,
            #[serde(borrow)]
            value: Option<Scalar<'a>>,
        }
        let wire = Wire::deserialize(deserializer)?;
        let timestamp = wire.timestamp.map(Scalar::micros).transpose().map_err(within("timestamp"))?.flatten();
        let value = wire.value.map(Scalar::text).transpose().map_err(within("value"))?.flatten();
        match (timestamp, value) {
            (Some(timestamp), Some(value)) => Ok(Self { timestamp, value }),
            _ => Err(de::Error::custom("needs both timestamp and value")),
        }
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire<'a> {
            #[serde(borrow)]
            service_name: Option<Scalar<'a>>,
            #[serde(borrow)]
            ipv4: Option<Scalar<'a>>,
            #[serde(borrow)]
            ipv6: Option<Scalar<'a>>,
            #[serde(borrow)]
            port: Option<Scalar<'a>>,
        }
        let wire = Wire::deserialize(deserializer)?;
        let name = |value: Option<Scalar<'de>>, field| {
            value.map(Scalar::name::<D::Error>).transpose().map_err(within(field)).map(Option::flatten)
        };
        // An address that does not parse counts as absent, as in Zipkin: reporters put host names there.
        let addresses = [name(wire.ipv4, "ipv4")?, name(wire.ipv6, "ipv6")?];
        let port = wire.port.map(Scalar::integer).transpose().map_err(within("port"))?.flatten().unwrap_or(0);
        let port = u16::try_from(port).map_err(|_| de::Error::custom(format_args!("port: {port} is not 0 to 65535")))?;
        Ok(Self {
            service_name: name(wire.service_name, "serviceName")?,
            ipv4: addresses.iter().flatten().find_map(|text| text.parse().ok()),
            ipv6: addresses.iter().flatten().find_map(|text| text.parse().ok()),
            port: Some(port).filter(|port| *port != 0),
        })
    }
}

/// Where a span hangs in its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parent {
    /// It has no parent: here the trace began.
    Root,
    /// Its parent is the span at this index.
    At(usize),
    /// It names a parent that is not among the spans.
    Missing(SpanId),
}

/// Finds the parent of each span of one trace, by Zipkin's rules for shared ids. Takes time linear in the spans; the
/// result has no cycles, whatever the spans claim.
pub(crate) fn parents(spans: &[Arc<Span>]) -> Vec<Parent> {
    let mut own: HashMap<SpanId, usize> = HashMap::with_capacity(spans.len());
    let mut clients: HashMap<SpanId, usize> = HashMap::new();
    for (at, span) in spans.iter().enumerate() {
        if span.kind == Some(Kind::Client) {
            clients.entry(span.id).or_insert(at);
        }
    }
    // Reporters that share ids do not all say so: a server with the id of a client of this trace shares it.
    let shares = |span: &Span| span.shared || (span.kind == Some(Kind::Server) && clients.contains_key(&span.id));
    let mut shared: HashMap<(SpanId, Option<&str>), usize> = HashMap::new();
    let mut shared_by_any: HashMap<SpanId, usize> = HashMap::new();
    for (at, span) in spans.iter().enumerate() {
        if shares(span) {
            shared.entry((span.id, span.service())).or_insert(at);
            shared_by_any.entry(span.id).or_insert(at);
        } else {
            own.entry(span.id).or_insert(at);
        }
    }
    let mut parents: Vec<Parent> = spans
        .iter()
        .map(|span| {
            if shares(span)
                && let Some(client) = clients.get(&span.id).or_else(|| own.get(&span.id))
            {
                return Parent::At(*client);
            }
            let Some(parent) = span.parent_id else { return Parent::Root };
            // The nearest candidate first: the server half in the same service, then whoever has the id alone.
            let found = shared.get(&(parent, span.service())).or_else(|| own.get(&parent)).or_else(|| shared_by_any.get(&parent));
            found.map_or(Parent::Missing(parent), |at| Parent::At(*at))
        })
        .collect();
    break_cycles(spans, &mut parents);
    parents
}

fn break_cycles(spans: &[Arc<Span>], parents: &mut [Parent]) {
    // 0: not seen; otherwise the walk that saw it first. Meeting one's own walk again is a cycle.
    let mut seen = vec![0usize; parents.len()];
    for start in 0..parents.len() {
        let mut at = start;
        loop {
            if seen[at] == start + 1 {
                if let Parent::At(parent) = parents[at] {
                    parents[at] = Parent::Missing(spans[parent].id);
                }
                break;
            }
            if seen[at] != 0 {
                break;
            }
            seen[at] = start + 1;
            match parents[at] {
                Parent::At(parent) => at = parent,
                _ => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Vec<Span>, String> {
        decode(json.as_bytes(), 100).map_err(|refused| match refused {
            Refused::Garbage(text) => text,
            Refused::TooMany(max) => format!("more than {max}"),
        })
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
        assert_eq!(span.trace_id.to_string(), "0000000000abcdef");
        assert_eq!(span.trace_id.to_w3c(), "00000000000000000000000000abcdef");
        assert_eq!((span.id.to_string().as_str(), span.parent_id), ("0000000000000001", None));
        assert_eq!(one(r#"{"traceId":"1","id":"1"}"#).trace_id, "0001".parse().unwrap());
        let wide = one(r#"{"traceId":"1ABCDEF1234567890","id":"1"}"#);
        assert_eq!(wide.trace_id.to_string(), "0000000000000001abcdef1234567890");
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
        for (bad, told) in [
            (r#"{"id":"b"}"#, "spans[1]: traceId: missing"),
            (r#"{"traceId":"a"}"#, "spans[1]: id: missing"),
            (r#"{"traceId":"xyz","id":"b"}"#, "spans[1]: traceId: \"xyz\" is not an id: expected 1 to 32 hex digits"),
            (r#"{"traceId":"a","id":"00000000000000000"}"#, "spans[1]: id: \"00000000000000000\" is not an id: expected 1 to 16"),
            (r#"{"traceId":"0","id":"b"}"#, "spans[1]: traceId: an id of zeros only"),
            (r#"{"traceId":7,"id":"b"}"#, "spans[1]: traceId: expected a string"),
            (r#"{"traceId":"a","id":"b","kind":"BOTH"}"#, "spans[1]: kind: \"BOTH\" is none of CLIENT"),
            (r#"{"traceId":"a","id":"b","timestamp":"now"}"#, "spans[1]: timestamp: expected a whole number"),
            (r#"{"traceId":"a","id":"b","duration":[]}"#, "spans[1]: duration: invalid type: sequence"),
            (r#"{"traceId":"a","id":"b","localEndpoint":{"port":70000}}"#, "spans[1]: localEndpoint: port: 70000 is not"),
            (r#"{"traceId":"a","id":"b","localEndpoint":"x"}"#, "spans[1]: localEndpoint: invalid type: string"),
            (r#"{"traceId":"a","id":"b","tags":{"k":{}}}"#, "spans[1]: tags: k: invalid type: map"),
            (r#"{"traceId":"a","id":"b","tags":{"k":null}}"#, "spans[1]: tags: k: has no value"),
            (r#"{"traceId":"a","id":"b","annotations":[{"value":"x"}]}"#, "spans[1]: annotations: needs both"),
            (r#"{"traceId":"a","id":"b","shared":"yes"}"#, "spans[1]: shared: expected true or false"),
            (r#"{"traceId":"a","id":"b","binaryAnnotations":[]}"#, "spans[1]: binaryAnnotations: this is Zipkin's v1"),
            ("17", "spans[1]: invalid type: integer `17`, expected a span"),
            (r#"{"traceId":"a","#, "spans[1]: key must be a string"),
        ] {
            let error = read(&format!("[{good},{bad}]")).unwrap_err();
            assert!(error.starts_with(told), "{bad}\n  says {error}\n  not  {told}");
            assert!(error.matches(" at line ").count() <= 1, "{error}");
        }
        assert!(read("{}").unwrap_err().contains("expected a JSON array of spans"));
        assert!(read("[] []").unwrap_err().contains("trailing characters"));
        assert_eq!(decode(format!("[{good},{good}]").as_bytes(), 2).unwrap().len(), 2);
        assert!(matches!(decode(format!("[{good},{good},{good}]").as_bytes(), 2), Err(Refused::TooMany(2))));
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
        assert!(read(&open("unknown")).unwrap_err().starts_with("spans[0]: EOF while parsing"));
        assert_eq!(read(&format!("{}{}}}]", open("unknown"), "]".repeat(1_000_000))).unwrap().len(), 1);
        assert!(read(&open("name")).unwrap_err().starts_with("spans[0]: name: invalid type: sequence"));
        assert!(read(&open("annotations")).unwrap_err().starts_with("spans[0]: annotations: "));
    }

    #[test]
    fn a_span_reported_in_parts_becomes_whole() {
        let first = one(r#"{"traceId":"a","id":"b","kind":"CLIENT","timestamp":5,"tags":{"a":"1","b":"1"}}"#);
        let whole = first.updated(one(r#"{"traceId":"a","id":"b","duration":7,"tags":{"b":"2"}}"#));
        assert_eq!((whole.timestamp, whole.duration, whole.kind), (Some(5), Some(7), Some(Kind::Client)));
        assert_eq!((whole.tag("a"), whole.tag("b")), (Some("1"), Some("2")));
        assert_eq!(whole.updated(whole.clone()), whole);
    }

    fn tree(json: &str) -> Vec<Parent> {
        parents(&read(json).unwrap().into_iter().map(Arc::new).collect::<Vec<_>>())
    }

    #[test]
    fn a_server_that_shares_its_callers_id_hangs_below_the_caller() {
        for said in [r#","shared":true"#, ""] {
            let parents = tree(&format!(
                r#"[{{"traceId":"a","id":"2","parentId":"1","kind":"SERVER","localEndpoint":{{"serviceName":"s2"}}{said}}},
                {{"traceId":"a","id":"2","parentId":"1","kind":"CLIENT","localEndpoint":{{"serviceName":"s1"}}}},
                {{"traceId":"a","id":"1","kind":"SERVER","localEndpoint":{{"serviceName":"s1"}}}},
                {{"traceId":"a","id":"3","parentId":"2","localEndpoint":{{"serviceName":"s2"}}}},
                {{"traceId":"a","id":"4","parentId":"2","localEndpoint":{{"serviceName":"s1"}}}}]"#
            ));
            let expected = [Parent::At(1), Parent::At(2), Parent::Root, Parent::At(0), Parent::At(1)];
            assert_eq!(parents, expected);
        }
    }

    #[test]
    fn a_missing_parent_is_told_and_a_cycle_is_broken() {
        let parents = tree(
            r#"[{"traceId":"a","id":"1","parentId":"2"},{"traceId":"a","id":"2","parentId":"1"},{"traceId":"a","id":"3","parentId":"9"}]"#,
        );
        assert_eq!(parents[2], Parent::Missing("9".parse().unwrap()));
        assert_eq!(parents[..2].iter().filter(|p| matches!(p, Parent::At(_))).count(), 1, "{parents:?}");
        // Two servers that claim to share each other's id through their parents, in one service.
        let shared = tree(
            r#"[{"traceId":"a","id":"1","parentId":"2","shared":true},{"traceId":"a","id":"2","parentId":"1","shared":true}]"#,
        );
        assert_eq!(shared.iter().filter(|p| matches!(p, Parent::At(_))).count(), 1, "{shared:?}");
    }
}
