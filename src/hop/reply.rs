//! The reply of the chain: one shape for the hop that writes it, the hop that nests it and the people and tools that read it.
//!
//! A hop writes a `Reply` that borrows everything, with what the next hop answered spliced in as it came, so that a long
//! chain is not parsed and written again at every hop. `check`, `demo` and the text form read the same JSON back as a [`Tree`].
//! A field is a line in `Reply::to_json`, one in `FIELDS` and one in [`Tree`]; the tests hold the three together.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::text::hex::push_hex;
use crate::text::json::{members, misleads, push_escaped, push_optional, push_text};
use crate::text::number::{push_address, push_milliseconds, push_number};
use crate::text::time::push_time;
use crate::trace_context::{Context, HeaderSource, RedactedHeaders, Sampling};

/// What one hop answers to `GET /service<N>`, as it is written. [`Tree`] says what each field means.
pub(crate) struct Reply<'a> {
    pub(crate) service: &'a str,
    pub(crate) version: &'a str,
    pub(crate) lane: &'a str,
    pub(crate) hostname: &'a str,
    pub(crate) path: &'a str,
    pub(crate) status: u16,
    pub(crate) started_at: SystemTime,
    pub(crate) duration: Duration,
    pub(crate) request_id: &'a [u8],
    pub(crate) context: Option<&'a Context>,
    pub(crate) propagation: Propagation,
    pub(crate) received: RedactedHeaders<'a>,
    pub(crate) client: IpAddr,
    pub(crate) identity: Option<&'a str>,
    pub(crate) attempt: u32,
    pub(crate) injected: Option<Injected>,
}

/// One call to a next hop, as it is written. [`Call`] says what each field means.
pub(crate) struct ReplyCall<'a> {
    pub(crate) url: &'a str,
    pub(crate) status: Option<u16>,
    pub(crate) duration: Duration,
    pub(crate) error: Option<String>,
    pub(crate) sent: RedactedHeaders<'a>,
    /// JSON, spliced in as it is.
    pub(crate) reply: Option<&'a [u8]>,
}

/// What stands between a member's value and the value of the member before it.
macro_rules! key {
    ($name:literal) => {
        concat!(",\"", $name, "\":").as_bytes()
    };
}

impl Reply<'_> {
    /// The reply as JSON, with `calls` as its `upstreams`.
    pub(crate) fn to_json<'c>(&self, calls: impl Iterator<Item = ReplyCall<'c>>) -> Vec<u8> {
        // A leaf's reply, with the headers that a mesh sends, has about 1,000 bytes.
        let mut json = Vec::with_capacity(2048);
        let out = &mut json;
        out.extend_from_slice(b"{\"service\":");
        push_text(out, self.service.as_bytes());
        out.extend_from_slice(key!("version"));
        push_text(out, self.version.as_bytes());
        out.extend_from_slice(key!("lane"));
        push_text(out, self.lane.as_bytes());
        out.extend_from_slice(key!("hostname"));
        push_text(out, self.hostname.as_bytes());
        out.extend_from_slice(b",\"message\":\"Hello, ");
        push_escaped(out, self.service.as_bytes());
        out.extend_from_slice(b"!\"");
        out.extend_from_slice(key!("path"));
        push_text(out, self.path.as_bytes());
        out.extend_from_slice(key!("status"));
        push_number(out, self.status.into());
        out.extend_from_slice(b",\"started_at\":\"");
        push_time(out, self.started_at);
        out.extend_from_slice(b"\",\"duration_ms\":");
        push_milliseconds(out, self.duration);
        out.extend_from_slice(key!("request_id"));
        push_text(out, self.request_id);
        out.extend_from_slice(key!("trace_id"));
        push_id(out, self.context.map(|context| context.trace_id.to_bytes()));
        out.extend_from_slice(key!("span_id"));
        push_id(out, self.context.map(|context| context.span_id.to_bytes()));
        out.extend_from_slice(key!("parent_span_id"));
        push_id(out, self.context.and_then(|context| Some(context.parent_id?.to_bytes())));
        out.extend_from_slice(key!("sampled"));
        out.extend_from_slice(match self.context.map(|context| context.sampling) {
            None | Some(Sampling::Deferred) => b"null",
            Some(decided) if decided.is_sampled() => b"true",
            Some(_) => b"false",
        });
        out.extend_from_slice(key!("propagation"));
        push_text(out, self.propagation.name().as_bytes());
        out.extend_from_slice(key!("received"));
        self.received.push_json(out);
        out.extend_from_slice(b",\"client\":{\"ip\":\"");
        push_address(out, self.client);
        out.extend_from_slice(b"\",\"identity\":");
        push_optional(out, self.identity.map(str::as_bytes));
        out.extend_from_slice(b"},\"attempt\":");
        push_number(out, self.attempt.into());
        out.extend_from_slice(key!("injected"));
        match self.injected {
            // Rare, and writing into memory does not fail.
            Some(injected) => _ = serde_json::to_writer(&mut *out, &injected),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(key!("upstreams"));
        out.push(b'[');
        for (i, call) in calls.enumerate() {
            if i > 0 {
                out.push(b',');
            }
            call.push_json(out);
        }
        out.extend_from_slice(b"]}");
        json
    }
}

impl ReplyCall<'_> {
    fn push_json(&self, out: &mut Vec<u8>) {
        let reply = self.reply.unwrap_or(b"null");
        out.reserve(1024 + reply.len());
        out.extend_from_slice(b"{\"url\":");
        push_text(out, self.url.as_bytes());
        out.extend_from_slice(key!("status"));
        match self.status {
            Some(status) => push_number(out, status.into()),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(key!("duration_ms"));
        push_milliseconds(out, self.duration);
        out.extend_from_slice(key!("error"));
        push_optional(out, self.error.as_deref().map(str::as_bytes));
        out.extend_from_slice(key!("sent"));
        self.sent.push_json(out);
        out.extend_from_slice(key!("reply"));
        out.extend_from_slice(reply);
        out.push(b'}');
    }
}

/// Appends an id in quotes, or null.
fn push_id<const N: usize>(out: &mut Vec<u8>, id: Option<[u8; N]>) {
    match id {
        Some(id) => {
            out.push(b'"');
            push_hex(out, &id);
            out.push(b'"');
        }
        None => out.extend_from_slice(b"null"),
    }
}

/// What a member of a reply may hold, told from the value's text: it is JSON already.
type Holds = fn(&[u8]) -> bool;

/// The members of a reply in the order in which a hop writes them, and what each may hold.
const FIELDS: [(&str, Holds); 20] = [
    ("service", is_text),
    ("version", is_text),
    ("lane", is_text),
    ("hostname", is_text),
    ("message", is_text),
    ("path", is_text),
    ("status", is_number::<u16>),
    ("started_at", is_text),
    ("duration_ms", is_number::<f64>),
    ("request_id", is_text),
    ("trace_id", |value| is_null(value) || is_text(value)),
    ("span_id", |value| is_null(value) || is_text(value)),
    ("parent_span_id", |value| is_null(value) || is_text(value)),
    ("sampled", |value| matches!(value, b"null" | b"true" | b"false")),
    ("propagation", |value| matches!(value, b"\"forward\"" | b"\"continue\"")),
    ("received", |value| value.starts_with(b"{")),
    ("client", |value| value.starts_with(b"{")),
    ("attempt", is_number::<u32>),
    ("injected", |value| is_null(value) || serde_json::from_slice::<Injected>(value).is_ok()),
    ("upstreams", |value| value.starts_with(b"[")),
];

fn is_null(value: &[u8]) -> bool {
    value == b"null"
}

fn is_text(value: &[u8]) -> bool {
    value.starts_with(b"\"")
}

fn is_number<T: std::str::FromStr>(value: &[u8]) -> bool {
    value.first().is_some_and(|first| matches!(first, b'-' | b'0'..=b'9'))
        && std::str::from_utf8(value).is_ok_and(|text| text.parse::<T>().is_ok())
}

/// Whether a body is a hop's reply: valid JSON throughout, every field there once and of its type. What is further down was
/// checked by the hop that nested it.
pub(crate) fn is_reply(body: &[u8]) -> bool {
    let mut seen = [false; FIELDS.len()];
    let mut next = 0;
    let read = members(body, |name, value| {
        // In order, most likely: then one look is enough.
        let is = |place: &usize| FIELDS.get(*place).is_some_and(|(field, _)| field.as_bytes() == name);
        if let Some(place) = Some(next).filter(is).or_else(|| (0..FIELDS.len()).find(is)) {
            if seen[place] || !FIELDS[place].1(value) {
                return None;
            }
            seen[place] = true;
            next = place + 1;
        }
        Some(())
    });
    read.is_some() && seen == [true; FIELDS.len()]
}

/// A reply with everything below it, owned: what `check`, `demo` and the text form work on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tree {
    /// The hop's name (`--name`).
    pub service: String,
    /// The hop's version label (`--service-version`).
    pub version: String,
    /// The hop's lane label (`--lane`).
    pub lane: String,
    /// The host (in Kubernetes: the pod) that answered.
    pub hostname: String,
    /// A greeting, for people.
    pub message: String,
    /// The path that arrived at this hop, after every rewrite on the way.
    pub path: String,
    /// The HTTP status of this answer.
    pub status: u16,
    /// When the request arrived: RFC 3339, UTC, microseconds.
    pub started_at: String,
    /// How long this hop took until it had its answer, milliseconds.
    pub duration_ms: f64,
    /// The request id that this hop received or made.
    pub request_id: String,
    /// 32 lower-case hex digits; with no exporter, what arrived.
    pub trace_id: Option<String>,
    /// 16 lower-case hex digits: this hop's own server span, or with no exporter what arrived.
    pub span_id: Option<String>,
    /// 16 lower-case hex digits: the caller's span.
    pub parent_span_id: Option<String>,
    /// The sampling decision; null when nobody has made one.
    pub sampled: Option<bool>,
    /// Whether this hop passes trace headers on untouched or continues the trace with spans of its own.
    pub propagation: Propagation,
    /// The carried headers as they arrived here.
    pub received: Headers,
    /// Who called, as reported by the caller or a proxy before it.
    pub client: Client,
    /// `x-envoy-attempt-count`, or 1.
    pub attempt: u32,
    /// What a fault did to this request; null when none struck.
    pub injected: Option<Injected>,
    /// One entry per call to a next hop, in the configured order.
    pub upstreams: Vec<Call>,
}

/// One call to a next hop.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Call {
    /// The URL that was called.
    pub url: String,
    /// The status of the answer; null when there was none.
    pub status: Option<u16>,
    /// How long the call took, whole answer included, milliseconds.
    pub duration_ms: f64,
    /// Why the call counts as failed; null when it does not.
    pub error: Option<String>,
    /// The carried headers as they were written to this call.
    pub sent: Headers,
    /// The next hop's own reply; null when the answer was not one.
    pub reply: Option<Box<Tree>>,
}

/// Who called this hop. As reported: without a proxy in front it proves nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Client {
    /// `X-Real-IP`, else the first of `X-Forwarded-For`, else the peer.
    pub ip: String,
    /// The URI of the caller's certificate from `x-forwarded-client-cert`.
    pub identity: Option<String>,
}

/// What a hop does with the trace headers that it receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Propagation {
    /// No exporter: passed on untouched.
    Forward,
    /// Own spans, own ids.
    Continue,
}

impl Propagation {
    fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Continue => "continue",
        }
    }
}

/// What a fault did to a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Injected {
    /// Milliseconds that a `delay` fault added (the hop's ordinary `--latency` is not counted).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// The status that an `abort` fault answered with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort_status: Option<u16>,
}

/// Header names with all their values, in the order in which they are shown. JSON: an object of arrays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, Vec<String>)>);

impl Headers {
    /// Every value of `name` (lower case); empty when the header is not there.
    pub fn get(&self, name: &str) -> &[String] {
        self.0.iter().find(|(known, _)| known == name).map_or(&[], |(_, values)| values)
    }

    /// The only or first value of `name` (lower case).
    pub fn first(&self, name: &str) -> Option<&str> {
        self.get(name).first().map(String::as_str)
    }
}

impl HeaderSource for Headers {
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.get(name).iter().map(String::as_bytes)
    }
}

impl Serialize for Headers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, values) in &self.0 {
            map.serialize_entry(name, values)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Headers;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of header names with arrays of values")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
                let mut headers = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    headers.push(entry);
                }
                Ok(Headers(headers))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl Tree {
    /// Reads a reply from the body of an answer. Errors: `serde_json`'s, when the body is not a reply of this shape
    /// or nests deeper than 128 levels.
    pub fn parse(body: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(body)
    }

    /// The tree for people: a line per hop, and below a hop that calls nobody the headers it received.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        self.write_text(&mut text, "", "");
        text
    }

    fn write_text(&self, out: &mut String, head: &str, below: &str) {
        let _ = write!(
            out,
            "{head}{} {} {}  {}  {:.1}ms",
            plain(&self.service),
            plain(&self.version),
            plain(&self.hostname),
            self.status,
            self.duration_ms
        );
        if self.lane != "base" {
            let _ = write!(out, "  lane={}", plain(&self.lane));
        }
        if self.attempt > 1 {
            let _ = write!(out, "  attempt={}", self.attempt);
        }
        if let Some(Injected { delay_ms, abort_status }) = self.injected {
            out.push_str("  injected:");
            if let Some(ms) = delay_ms {
                let _ = write!(out, " delay={ms}ms");
            }
            if let Some(status) = abort_status {
                let _ = write!(out, " abort={status}");
            }
        }
        out.push('\n');
        if head.is_empty() {
            let _ = writeln!(out, "{below}  {}", plain(&self.message));
            let _ = writeln!(
                out,
                "{below}  request {}  trace {}",
                plain(&self.request_id),
                self.trace_id.as_deref().map_or(Cow::Borrowed("none"), plain)
            );
        }
        for (i, call) in self.upstreams.iter().enumerate() {
            let last = i + 1 == self.upstreams.len();
            let (branch, under) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            match &call.reply {
                Some(reply) => {
                    reply.write_text(out, &format!("{below}{branch}"), &format!("{below}{under}"));
                    if let Some(error) = &call.error {
                        let _ = writeln!(out, "{below}{under}✗ {}", plain(error));
                    }
                }
                None => {
                    let _ = write!(out, "{below}{branch}{}  ", plain(&call.url));
                    match call.status {
                        Some(status) => {
                            let _ = write!(out, "{status}");
                        }
                        None => out.push_str("no answer"),
                    }
                    let _ = write!(out, "  {:.1}ms", call.duration_ms);
                    match &call.error {
                        Some(error) => {
                            let _ = writeln!(out, "  ✗ {}", plain(error));
                        }
                        None => out.push_str("  (not a hop of ours)\n"),
                    }
                }
            }
        }
        if self.upstreams.is_empty() && self.status < 300 {
            let _ = writeln!(out, "{below}  received:");
            for (name, values) in &self.received.0 {
                for value in values {
                    let _ = writeln!(out, "{below}    {}: {}", plain(name), plain(value));
                }
            }
        }
    }
}

/// A duration as the reply shows it: milliseconds to the microsecond.
pub(crate) fn milliseconds(duration: std::time::Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

/// Text of others on a terminal: what could mislead its reader is shown, never sent.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    if text.chars().any(misleads) {
        Cow::Owned(text.chars().flat_map(|c| if misleads(c) { c.escape_default().collect() } else { vec![c] }).collect())
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace_context::{Carried, HeaderPairs, Propagator, Propagators};
    use http::{HeaderName, HeaderValue};
    use opentelemetry::trace::{SpanId, TraceId};

    const LEAF: &str = r#"{"service":"service2","version":"v1","lane":"gray","hostname":"h2","message":"Hello, service2!","path":"/service2",
        "status":200,"started_at":"2026-01-02T03:04:05.678901Z","duration_ms":9.0,"request_id":"r","trace_id":null,"span_id":null,
        "parent_span_id":null,"sampled":null,"propagation":"forward","received":{"x-request-id":["r"],"b3":["a\u001b[31m","b"]},
        "client":{"ip":"127.0.0.1","identity":null},"attempt":2,"injected":{"delay_ms":2000},"upstreams":[]}"#;

    #[test]
    fn a_tree_reads_what_a_hop_writes_and_writes_it_back() {
        let tree = Tree::parse(LEAF.as_bytes()).unwrap();
        assert_eq!(tree.received.get("b3"), ["a\u{1b}[31m", "b"]);
        let again: serde_json::Value = serde_json::to_value(&tree).unwrap();
        assert_eq!(again, serde_json::from_str::<serde_json::Value>(LEAF).unwrap());
    }

    /// What a hop writes: everything there, or as little as there may be.
    fn written(context: Option<&Context>, full: bool, calls: Vec<ReplyCall<'_>>) -> Vec<u8> {
        let mut carried = Carried::default();
        if full {
            let propagator = Propagator::new(Propagators::default(), vec![HeaderName::from_static("x-api-key")], vec![]);
            for (name, value) in [("x-request-id", "r-1"), ("baggage", "a=\"1\""), ("x-api-key", "k"), ("baggage", "b=2")] {
                propagator.carry(&mut carried, &HeaderName::from_static(name), &HeaderValue::from_static(value));
            }
        }
        let reply = Reply {
            service: "service1",
            version: "v1",
            lane: "gray",
            hostname: "host-1",
            path: "/service1\u{1b}",
            status: 502,
            started_at: SystemTime::UNIX_EPOCH + Duration::from_micros(1_767_323_045_678_901),
            duration: Duration::from_micros(12_345),
            request_id: b"r-1",
            context,
            propagation: Propagation::Continue,
            received: RedactedHeaders::received(&carried),
            client: "2001:db8::1".parse().unwrap(),
            identity: full.then_some("spiffe://cluster.local/ns/a/sa/\"b\""),
            attempt: 3,
            injected: full.then_some(Injected { delay_ms: Some(2000), abort_status: None }),
        };
        reply.to_json(calls.into_iter())
    }

    fn call<'a>(sent: &'a HeaderPairs, error: Option<&str>, reply: Option<&'a [u8]>) -> ReplyCall<'a> {
        ReplyCall {
            url: "http://service2/service2",
            status: reply.map(|_| 200),
            duration: Duration::from_micros(9_500),
            error: error.map(str::to_owned),
            sent: RedactedHeaders::sent(sent),
            reply,
        }
    }

    #[test]
    fn a_tree_reads_every_field_that_a_hop_writes() {
        let context = Context {
            trace_id: TraceId::from(0x463a_c35c_9f64_13ad_4848_5a39_53bb_6124),
            short_trace_id: false,
            span_id: SpanId::from(0xa2fb_4a1d_1a96_d312),
            parent_id: Some(SpanId::from(7)),
            sampling: Sampling::Sample,
        };
        let sent = HeaderPairs::new();
        let leaf = written(None, false, vec![]);
        let calls = vec![call(&sent, None, Some(&leaf)), call(&sent, Some("connection \"refused\""), None)];
        let json = written(Some(&context), true, calls);
        assert!(is_reply(&json) && is_reply(&leaf), "{}", String::from_utf8_lossy(&json));
        let text = String::from_utf8(json.clone()).unwrap();
        let members: Vec<_> =
            serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&json).unwrap().into_iter().collect();
        assert_eq!(members.len(), FIELDS.len(), "{text}");
        let tree = Tree::parse(&json).unwrap();
        let again = serde_json::json!({
            "service": "service1", "version": "v1", "lane": "gray", "hostname": "host-1", "message": "Hello, service1!",
            "path": "/service1\u{1b}", "status": 502, "started_at": "2026-01-02T03:04:05.678901Z", "duration_ms": 12.345,
            "request_id": "r-1", "trace_id": "463ac35c9f6413ad48485a3953bb6124", "span_id": "a2fb4a1d1a96d312",
            "parent_span_id": "0000000000000007", "sampled": true, "propagation": "continue",
            "received": {"x-request-id": ["r-1"], "baggage": ["a=\"1\"", "b=2"], "x-api-key": ["***"]},
            "client": {"ip": "2001:db8::1", "identity": "spiffe://cluster.local/ns/a/sa/\"b\""}, "attempt": 3,
            "injected": {"delay_ms": 2000},
            "upstreams": [
                {"url": "http://service2/service2", "status": 200, "duration_ms": 9.5, "error": null, "sent": {},
                 "reply": serde_json::from_slice::<serde_json::Value>(&leaf).unwrap()},
                {"url": "http://service2/service2", "status": null, "duration_ms": 9.5, "error": "connection \"refused\"",
                 "sent": {}, "reply": null},
            ],
        });
        assert_eq!(serde_json::to_value(&tree).unwrap(), again, "{text}");
        let leaf = tree.upstreams[0].reply.as_ref().unwrap();
        assert_eq!((&leaf.trace_id, leaf.sampled, &leaf.client.identity, leaf.injected), (&None, None, &None, None));
    }

    #[test]
    fn only_a_whole_reply_is_one() {
        let leaf: serde_json::Value = serde_json::from_str(LEAF).unwrap();
        assert!(is_reply(LEAF.as_bytes()));
        for (field, _) in FIELDS {
            let mut other = leaf.clone();
            other.as_object_mut().unwrap().remove(field);
            assert!(!is_reply(other.to_string().as_bytes()), "without {field}");
            let twice = LEAF.replacen('{', &format!("{{\"{field}\":{},", leaf[field]), 1);
            assert!(!is_reply(twice.as_bytes()), "{field} twice");
            // What it can hold is what `Tree` can read there.
            for value in [
                "null",
                "true",
                "1",
                "-1",
                "1.5",
                "70000",
                "5000000000",
                "\"x\"",
                "\"forward\"",
                "[]",
                "{}",
                "{\"delay_ms\":\"x\"}",
            ] {
                let value: serde_json::Value = serde_json::from_str(value).unwrap();
                let mut other = leaf.clone();
                other[field] = value.clone();
                let other = other.to_string();
                // The maps and the calls are looked into by the hop that nested them.
                if !matches!(field, "received" | "client" | "upstreams") {
                    assert_eq!(is_reply(other.as_bytes()), Tree::parse(other.as_bytes()).is_ok(), "{field}: {value}");
                }
            }
        }
        let more = LEAF.replacen('{', "{\"new\":[1],", 1);
        assert!(is_reply(more.as_bytes()), "a field of a newer version");
        for other in ["hello", "{}", "[]", "null", "{\"service\":\"x\"}", &LEAF[1..], &LEAF[..LEAF.len() - 1]] {
            assert!(!is_reply(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn the_text_names_the_broken_call_and_never_sends_a_control_character() {
        let mut tree = Tree::parse(LEAF.as_bytes()).unwrap();
        let text = tree.to_text();
        assert!(text.contains("lane=gray") && text.contains("attempt=2") && text.contains("delay=2000ms"), "{text}");
        assert!(text.contains("received:") && text.contains("x-request-id: r"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        tree.status = 502;
        tree.upstreams.push(Call {
            url: "http://service3/service3".into(),
            status: None,
            duration_ms: 1.0,
            error: Some("connection refused".into()),
            sent: Headers::default(),
            reply: None,
        });
        let text = tree.to_text();
        assert!(text.contains("└─ http://service3/service3  no answer  1.0ms  ✗ connection refused"), "{text}");
    }
}
