//! The reply of the chain: one shape for the hop that writes it, the hop that nests it and the people and tools that read it.
//!
//! A hop serializes a [`Reply`] that borrows its headers and splices what the next hop answered in as raw JSON, so that a
//! long chain is not parsed and written again at every hop. `check`, `demo` and the text form read the same JSON back as a [`Tree`].

use std::borrow::Cow;
use std::fmt::Write as _;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What one hop answers to `GET /service<N>`.
///
/// `H` is how header maps are held (`received`, `sent`), `N` how the next hop's reply is held; see [`Tree`] for the owned form.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reply<'a, H, N> {
    /// The hop's name (`--name`).
    pub service: Cow<'a, str>,
    /// The hop's version label (`--service-version`).
    pub version: Cow<'a, str>,
    /// The hop's lane label (`--lane`).
    pub lane: Cow<'a, str>,
    /// The host (in Kubernetes: the pod) that answered.
    pub hostname: Cow<'a, str>,
    /// A greeting, for people.
    pub message: Cow<'a, str>,
    /// The path that arrived at this hop, after every rewrite on the way.
    pub path: Cow<'a, str>,
    /// The HTTP status of this answer.
    pub status: u16,
    /// When the request arrived: RFC 3339, UTC, microseconds.
    pub started_at: Cow<'a, str>,
    /// How long this hop took until it had its answer, milliseconds.
    pub duration_ms: f64,
    /// The request id that this hop received or made.
    pub request_id: Cow<'a, str>,
    /// 32 lower-case hex digits; with no exporter, what arrived.
    pub trace_id: Option<Cow<'a, str>>,
    /// 16 lower-case hex digits: this hop's own server span, or with no exporter what arrived.
    pub span_id: Option<Cow<'a, str>>,
    /// 16 lower-case hex digits: the caller's span.
    pub parent_span_id: Option<Cow<'a, str>>,
    /// The sampling decision; null when nobody has made one.
    pub sampled: Option<bool>,
    /// Whether this hop passes trace headers on untouched or continues the trace with spans of its own.
    pub propagation: Propagation,
    /// The carried headers as they arrived here.
    pub received: H,
    /// Who called, as reported by the caller or a proxy before it.
    pub client: Client<'a>,
    /// `x-envoy-attempt-count`, or 1.
    pub attempt: u32,
    /// What a fault did to this request; null when none struck.
    pub injected: Option<Injected>,
    /// One entry per call to a next hop, in the configured order.
    pub upstreams: Vec<Call<'a, H, N>>,
}

impl<H: Serialize> Reply<'_, H, ()> {
    /// The reply as JSON, with the calls and what the next hops answered, which is spliced in as it came: it must be JSON.
    ///
    /// `upstreams` of the reply and `reply` of the calls are their last fields and written empty; their place is taken.
    /// (`serde_json`'s raw values would be the way without that trick, but they parse every reply once more.)
    pub(crate) fn to_json<'c>(&self, calls: impl ExactSizeIterator<Item = (Call<'c, H, ()>, Option<&'c [u8]>)> + Clone) -> Vec<u8>
    where
        H: 'c,
    {
        let below: usize = calls.clone().map(|(_, reply)| 1024 + reply.map_or(0, <[u8]>::len)).sum();
        let mut json = Vec::with_capacity(1024 + below);
        // Writing into memory fails only for a map key that is no text, and there is none.
        let _ = serde_json::to_writer(&mut json, self);
        cut(&mut json, b"]}");
        for (i, (call, reply)) in calls.enumerate() {
            if i > 0 {
                json.push(b',');
            }
            let _ = serde_json::to_writer(&mut json, &call);
            if let Some(reply) = reply {
                cut(&mut json, b"null}");
                json.extend_from_slice(reply);
                json.push(b'}');
            }
        }
        json.extend_from_slice(b"]}");
        json
    }
}

fn cut(json: &mut Vec<u8>, end: &[u8]) {
    debug_assert!(json.ends_with(end), "a field was added behind the last one: {}", String::from_utf8_lossy(json));
    json.truncate(json.len() - end.len());
}

/// One call to a next hop.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Call<'a, H, N> {
    /// The URL that was called.
    pub url: Cow<'a, str>,
    /// The status of the answer; null when there was none.
    pub status: Option<u16>,
    /// How long the call took, whole answer included, milliseconds.
    pub duration_ms: f64,
    /// Why the call counts as failed; null when it does not.
    pub error: Option<Cow<'a, str>>,
    /// The carried headers as they were written to this call.
    pub sent: H,
    /// The next hop's own reply; null when the answer was not one.
    pub reply: Option<N>,
}

/// Who called this hop. As reported: without a proxy in front it proves nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Client<'a> {
    /// `X-Real-IP`, else the first of `X-Forwarded-For`, else the peer.
    pub ip: Cow<'a, str>,
    /// The URI of the caller's certificate from `x-forwarded-client-cert`.
    pub identity: Option<Cow<'a, str>>,
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

/// A reply with everything below it, owned: what `check`, `demo` and the text form work on.
pub type Tree = Reply<'static, Headers, Nested>;

/// The link from a [`Tree`] to the next hop's.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nested(pub Box<Tree>);

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
                Some(Nested(reply)) => {
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

/// Text of others on a terminal: control characters are shown, never sent.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    if text.chars().any(char::is_control) {
        Cow::Owned(text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect())
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
