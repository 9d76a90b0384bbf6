//! The reply of the chain: one type for the hop that writes it, the hop that nests it and the tools that read it.
//!
//! The values of a [`Reply`] depend on its use, a [`Representation`]: owned in a [`Tree`], which `check`, `demo` and the text form
//! read; borrowed when a hop writes its own reply (`Written`); without content where a reply arrives and is only validated
//! (`check.rs`, and `layout.rs` for the layout in which hops write). What the next hop answered is nested verbatim: a hop neither
//! parses nor writes what stands further down, and makes sure that it is JSON (`compact.rs`).
//!
//! A new field is a line in [`Reply`], one in `write.rs` (a test compares it with the derived `Serialize`), one in `layout.rs`
//! (a test compares it with what is written) and its value in `hop/chain.rs`.

mod check;
mod compact;
mod embedded;
mod failure;
mod layout;
mod message;
mod read;
mod text;
mod write;

use std::fmt::Debug;

use http::{HeaderMap, HeaderName};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};

use crate::trace_context::HeaderSource;

pub(crate) use check::{NestedReply, NotNested, pad};
pub(crate) use embedded::embedded_replies;
pub(crate) use message::{MessageReply, expanded_size};
pub(crate) use write::{HeaderList, Nested, Text, Written};

/// How many replies may nest, the outermost included: no flag accepts a longer chain, and no reader reads deeper.
///
/// A reply of 256 hops has 300 to 500 KB; the largest answer that a hop reads is 1 MiB.
pub const MAX_HOPS: u32 = 256;

/// The error of a call that a hop answered with a success that is no reply: another path than the chain's, or another form.
pub(crate) const NO_REPLY: &str = "a hop answered, but not with a reply";

/// What the values of a [`Reply`] are made of.
pub trait Representation: Debug + Clone {
    /// A text.
    type Text: Debug + Clone;
    /// Header names with their values.
    type Headers: Debug + Clone;
    /// What the next hop replied.
    type Nested: Debug + Clone;
}

/// A [`Representation`] that can be written as JSON.
pub trait Writable: Representation<Text: Serialize, Headers: Serialize, Nested: Serialize> {}

/// The values of a [`Tree`].
#[derive(Debug, Clone)]
pub enum Owned {}

impl Representation for Owned {
    type Text = String;
    type Headers = Headers;
    type Nested = Box<Tree>;
}

impl Writable for Owned {}

/// A reply with every reply below it.
pub type Tree = Reply<Owned>;

/// What one hop answers to `GET /service<N>`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(bound(
    serialize = "R: Writable",
    deserialize = "R::Text: Deserialize<'de>, R::Headers: Deserialize<'de>, R::Nested: Deserialize<'de>"
))]
pub struct Reply<R: Representation> {
    /// The hop's name (`--name`).
    pub service: R::Text,
    /// The hop's version label (`--service-version`).
    pub version: R::Text,
    /// The hop's lane label (`--lane`).
    pub lane: R::Text,
    /// The host (in Kubernetes: the pod) that answered.
    pub hostname: R::Text,
    /// A greeting, for people.
    pub message: R::Text,
    /// The path that arrived at this hop, after every rewrite on the way.
    pub path: R::Text,
    /// The HTTP status of this answer.
    pub status: u16,
    /// When the request arrived: RFC 3339, UTC, microseconds.
    pub started_at: R::Text,
    /// How long this hop took until it had its answer, milliseconds.
    pub duration_ms: f64,
    /// The request id that this hop received or made.
    pub request_id: R::Text,
    /// 32 lower-case hex digits; with no exporter, what arrived.
    #[serde(deserialize_with = "present")]
    pub trace_id: Option<R::Text>,
    /// 16 lower-case hex digits: this hop's own server span, or with no exporter what arrived.
    #[serde(deserialize_with = "present")]
    pub span_id: Option<R::Text>,
    /// 16 lower-case hex digits: the caller's span.
    #[serde(deserialize_with = "present")]
    pub parent_span_id: Option<R::Text>,
    /// The sampling decision; null when nobody has made one.
    #[serde(deserialize_with = "present")]
    pub sampled: Option<bool>,
    /// Whether this hop passes trace headers on untouched or continues the trace with spans of its own.
    pub propagation: Propagation,
    /// The carried headers as they arrived here.
    pub received: R::Headers,
    /// Who called, as reported by the caller or a proxy before it.
    pub client: Client<R>,
    /// How the request arrived: `http/1.0`, `http/1.1`, `http/2`.
    #[serde(default)]
    pub protocol: Option<R::Text>,
    /// How many bytes the request's body had.
    #[serde(default)]
    pub request_bytes: u64,
    /// The node that this hop runs on; null where nobody has named it.
    #[serde(default)]
    pub node: Option<R::Text>,
    /// Its zone.
    #[serde(default)]
    pub zone: Option<R::Text>,
    /// Its region.
    #[serde(default)]
    pub region: Option<R::Text>,
    /// Its cluster.
    #[serde(default)]
    pub cluster: Option<R::Text>,
    /// `x-envoy-attempt-count`, or 1.
    pub attempt: u32,
    /// What a fault did to this request; null without one.
    #[serde(deserialize_with = "present")]
    pub injected: Option<Injected>,
    /// One entry per call to a next hop, in the configured order.
    pub upstreams: Vec<Call<R>>,
}

/// Whether a status is one of success.
pub(crate) fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}

impl Tree {
    /// Whether this hop answered with success.
    pub fn is_success(&self) -> bool {
        is_success(self.status)
    }

    /// Every hop that answered, in order, with the URL at which it was called: `url` for the first, empty behind a foreign
    /// app, because where that calls is not known.
    pub fn hops<'a>(&'a self, url: &'a str) -> impl Iterator<Item = (&'a Tree, &'a str)> {
        let mut next = vec![(self, url)];
        std::iter::from_fn(move || {
            let (hop, url) = next.pop()?;
            for call in hop.upstreams.iter().rev() {
                next.extend(call.embedded.iter().rev().map(|reply| (&**reply, "")));
                next.extend(call.reply.iter().map(|reply| (&**reply, call.url.as_str())));
            }
            Some((hop, url))
        })
    }
}

/// One call to a next hop.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(bound(
    serialize = "R: Writable",
    deserialize = "R::Text: Deserialize<'de>, R::Headers: Deserialize<'de>, R::Nested: Deserialize<'de>"
))]
pub struct Call<R: Representation = Owned> {
    /// The URL that was called.
    pub url: R::Text,
    /// How the next hop answered: `http/1.1`, `http/2`; null when it did not.
    #[serde(default)]
    pub protocol: Option<R::Text>,
    /// The status of the answer; null when there was none.
    #[serde(deserialize_with = "present")]
    pub status: Option<u16>,
    /// How long the call took, whole answer included, milliseconds.
    pub duration_ms: f64,
    /// Why the call counts as failed, or why its reply is not shown; null when neither is so.
    #[serde(deserialize_with = "present")]
    pub error: Option<R::Text>,
    /// The carried headers as they were written to this call.
    pub sent: R::Headers,
    /// The next hop's own reply; null when the answer was not one.
    #[serde(deserialize_with = "present")]
    pub reply: Option<R::Nested>,
    /// The replies of hops that stood somewhere in an answer that was no reply itself: of a foreign app, which called them.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub embedded: Vec<R::Nested>,
}

impl Call {
    /// The reply of the hop that was called, or those of the hops that a foreign app called.
    pub fn replies(&self) -> impl Iterator<Item = &Tree> {
        self.reply.iter().chain(&self.embedded).map(|reply| &**reply)
    }

    /// Whether it has an error, or no success.
    pub fn has_failed(&self) -> bool {
        self.error.is_some() || !self.status.is_some_and(is_success)
    }

    /// Whether what answered is no hop: a foreign app, without an error.
    pub fn is_foreign(&self) -> bool {
        self.reply.is_none() && !self.has_failed()
    }
}

/// Who called this hop. As reported: without a proxy in front it proves nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(bound(serialize = "R: Writable", deserialize = "R::Text: Deserialize<'de>"))]
pub struct Client<R: Representation = Owned> {
    /// `X-Real-IP`, else the first of `X-Forwarded-For`, else the peer.
    pub ip: R::Text,
    /// The URI of the caller's certificate, or its subject.
    #[serde(deserialize_with = "present")]
    pub identity: Option<R::Text>,
    /// Who names the identity: `xfcc`, the header `x-forwarded-client-cert`, which a proxy vouches for; or `tls`, the
    /// certificate that the caller itself presented here.
    #[serde(default)]
    pub identity_source: Option<R::Text>,
}

/// Makes an optional value a required field: null is accepted, absence is not.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    T::deserialize(deserializer)
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

/// What faults and breaks did to a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Injected {
    /// Milliseconds that a `delay` fault added (the hop's ordinary `--latency` is not counted).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// The status that an `abort` fault answered with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort_status: Option<u16>,
    /// The other faults that struck, as they are written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<String>,
    /// What was broken in the headers of its calls, as it is written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub breaks: Vec<String>,
    /// Why the request's `x-fault` did nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Header names with all their values, in the order in which they are shown. JSON: an object of arrays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, Vec<String>)>);

impl Headers {
    /// Every value of `name` (lower case); empty when the header is not there.
    pub fn get(&self, name: &str) -> &[String] {
        self.0.iter().find(|(known, _)| known == name).map_or(&[], |(_, values)| values)
    }

    /// Those that can be sent, as headers of a request.
    pub(crate) fn to_map(&self) -> HeaderMap {
        let pairs = self.0.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
        let mut map = HeaderMap::new();
        for (name, value) in pairs.filter_map(|(name, value)| Some((name.parse::<HeaderName>().ok()?, value.parse().ok()?))) {
            map.append(name, value);
        }
        map
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

/// A duration as the reply shows it: milliseconds to the microsecond.
pub(crate) fn milliseconds(duration: std::time::Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hop_is_met_in_order_and_only_a_2xx_is_a_success() {
        let reply = |name: &str, upstreams: serde_json::Value| {
            let mut reply: serde_json::Value = serde_json::from_str(LEAF).unwrap();
            (reply["service"], reply["upstreams"]) = (name.into(), upstreams);
            reply
        };
        let call = |url: &str, reply: serde_json::Value, embedded: &[serde_json::Value]| serde_json::json!({"url": url, "status": 200, "duration_ms": 1.0, "error": null, "sent": {}, "reply": reply, "embedded": embedded});
        let leaf = |name: &str| reply(name, serde_json::json!([]));
        let middle = reply("b", serde_json::json!([call("http://c", leaf("c"), &[])]));
        let calls = [
            call("http://b", middle, &[]),
            call("http://app", serde_json::Value::Null, &[leaf("d"), leaf("e")]),
            call("http://f", leaf("f"), &[]),
        ];
        let mut tree = Tree::parse(reply("a", calls.to_vec().into()).to_string().as_bytes()).unwrap();
        let met: Vec<_> = tree.hops("http://a").map(|(hop, url)| (hop.service.as_str(), url)).collect();
        let expected = [("a", "http://a"), ("b", "http://b"), ("c", "http://c"), ("d", ""), ("e", ""), ("f", "http://f")];
        assert_eq!(met, expected);
        for (status, is_success) in [(0, false), (101, false), (200, true), (204, true), (299, true), (304, false), (503, false)]
        {
            tree.status = status;
            tree.upstreams[0].status = Some(status);
            assert_eq!((tree.is_success(), !tree.upstreams[0].has_failed()), (is_success, is_success), "{status}");
        }
    }

    /// A reply as another hop could have written it.
    pub(super) const LEAF: &str = r#"{"service":"service2","version":"v1","lane":"gray","hostname":"h2","message":"Hello, service2!","path":"/service2",
        "status":200,"started_at":"2026-01-02T03:04:05.678901Z","duration_ms":9.0,"request_id":"r","trace_id":null,"span_id":null,
        "parent_span_id":null,"sampled":null,"propagation":"forward","received":{"x-request-id":["r"],"b3":["a\u001b[31m","b"]},
        "client":{"ip":"127.0.0.1","identity":null,"identity_source":null},"protocol":"http/1.1","request_bytes":0,"node":null,
        "zone":null,"region":null,"cluster":null,"attempt":2,"injected":{"delay_ms":2000},"upstreams":[]}"#;
}
