//! The writer of a hop's own reply: a [`Reply`] of borrowed values, written field by field.
//!
//! It writes what the derived `Serialize` would write (a test compares them) for fewer instructions: `ARCHITECTURE.md` has the
//! price. Field names are constants with their punctuation, and times, ids and addresses are formatted in place.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{SpanId, TraceId};

use super::{Call, NestedReply, Propagation, Reply, Representation};
use crate::text::escape::{push_escaped, push_text};
use crate::text::hex::push_hex;
use crate::text::number::{push_address, push_milliseconds, push_number};
use crate::text::time::push_time;
use crate::trace_context::RedactedHeaders;

/// The [`Representation`] of the reply that a hop writes.
#[derive(Debug, Clone)]
pub(crate) struct Written<'a>(std::marker::PhantomData<&'a str>);

impl<'a> Representation for Written<'a> {
    type Text = Text<'a>;
    type Headers = RedactedHeaders<'a>;
    type Nested = NestedReply<'a>;
}

/// A value that is a text in the reply.
#[derive(Debug, Clone)]
pub(crate) enum Text<'a> {
    Borrowed(&'a str),
    Greeting(&'a str),
    Time(SystemTime),
    TraceId(TraceId),
    SpanId(SpanId),
    Address(IpAddr),
}

/// What stands between a field's value and the value of the field before it.
macro_rules! key {
    ($name:literal) => {
        concat!(",\"", $name, "\":").as_bytes()
    };
}

impl Reply<Written<'_>> {
    /// The reply as JSON.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        // The reply of a last hop, with the headers that a mesh sends, has about 1,000 bytes.
        let nested: usize = self.upstreams.iter().map(Call::<Written<'_>>::expected_len).sum();
        let mut json = Vec::with_capacity(2048 + nested);
        let out = &mut json;
        out.extend_from_slice(b"{\"service\":");
        self.service.push(out);
        out.extend_from_slice(key!("version"));
        self.version.push(out);
        out.extend_from_slice(key!("lane"));
        self.lane.push(out);
        out.extend_from_slice(key!("hostname"));
        self.hostname.push(out);
        out.extend_from_slice(key!("message"));
        self.message.push(out);
        out.extend_from_slice(key!("path"));
        self.path.push(out);
        out.extend_from_slice(key!("status"));
        push_number(out, self.status.into());
        out.extend_from_slice(key!("started_at"));
        self.started_at.push(out);
        out.extend_from_slice(key!("duration_ms"));
        push_duration(out, self.duration_ms);
        out.extend_from_slice(key!("request_id"));
        self.request_id.push(out);
        out.extend_from_slice(key!("trace_id"));
        push_optional(out, self.trace_id.as_ref());
        out.extend_from_slice(key!("span_id"));
        push_optional(out, self.span_id.as_ref());
        out.extend_from_slice(key!("parent_span_id"));
        push_optional(out, self.parent_span_id.as_ref());
        out.extend_from_slice(key!("sampled"));
        out.extend_from_slice(match self.sampled {
            None => b"null",
            Some(true) => b"true",
            Some(false) => b"false",
        });
        out.extend_from_slice(key!("propagation"));
        out.extend_from_slice(match self.propagation {
            Propagation::Forward => b"\"forward\"",
            Propagation::Continue => b"\"continue\"",
        });
        out.extend_from_slice(key!("received"));
        self.received.push_json(out);
        out.extend_from_slice(b",\"client\":{\"ip\":");
        self.client.ip.push(out);
        out.extend_from_slice(key!("identity"));
        push_optional(out, self.client.identity.as_ref());
        out.extend_from_slice(key!("identity_source"));
        push_optional(out, self.client.identity_source.as_ref());
        out.push(b'}');
        self.push_protocol_and_place(out);
        out.extend_from_slice(key!("attempt"));
        push_number(out, self.attempt.into());
        out.extend_from_slice(key!("injected"));
        match &self.injected {
            // Rare, and writing into memory does not fail.
            Some(injected) => _ = serde_json::to_writer(&mut *out, injected),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(key!("upstreams"));
        out.push(b'[');
        for (i, call) in self.upstreams.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            call.push(out);
        }
        out.extend_from_slice(b"]}");
        json
    }

    fn push_protocol_and_place(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(key!("protocol"));
        push_optional(out, self.protocol.as_ref());
        out.extend_from_slice(key!("request_bytes"));
        push_number(out, self.request_bytes);
        out.extend_from_slice(key!("node"));
        push_optional(out, self.node.as_ref());
        out.extend_from_slice(key!("zone"));
        push_optional(out, self.zone.as_ref());
        out.extend_from_slice(key!("region"));
        push_optional(out, self.region.as_ref());
        out.extend_from_slice(key!("cluster"));
        push_optional(out, self.cluster.as_ref());
    }
}

impl Call<Written<'_>> {
    /// So that the buffer need not grow, and its content move, while a long nested reply is written.
    fn expected_len(&self) -> usize {
        1024 + self.reply.into_iter().chain(self.embedded.iter().copied()).map(NestedReply::len).sum::<usize>()
    }

    fn push(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"url\":");
        self.url.push(out);
        out.extend_from_slice(key!("protocol"));
        push_optional(out, self.protocol.as_ref());
        out.extend_from_slice(key!("status"));
        match self.status {
            Some(status) => push_number(out, status.into()),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(key!("duration_ms"));
        push_duration(out, self.duration_ms);
        out.extend_from_slice(key!("error"));
        push_optional(out, self.error.as_ref());
        out.extend_from_slice(key!("sent"));
        self.sent.push_json(out);
        out.extend_from_slice(key!("reply"));
        match self.reply {
            Some(reply) => reply.push(out),
            None => out.extend_from_slice(b"null"),
        }
        if !self.embedded.is_empty() {
            out.extend_from_slice(key!("embedded"));
            for (i, reply) in self.embedded.iter().enumerate() {
                out.push(if i == 0 { b'[' } else { b',' });
                reply.push(out);
            }
            out.push(b']');
        }
        out.push(b'}');
    }
}

impl Text<'_> {
    /// Appends the JSON string.
    fn push(&self, out: &mut Vec<u8>) {
        match self {
            Self::Borrowed(text) => return push_text(out, text.as_bytes()),
            _ => out.push(b'"'),
        }
        match self {
            Self::Borrowed(_) => {}
            Self::Greeting(name) => {
                out.extend_from_slice(b"Hello, ");
                push_escaped(out, name.as_bytes());
                out.push(b'!');
            }
            Self::Time(time) => push_time(out, *time),
            Self::TraceId(id) => push_hex(out, &id.to_bytes()),
            Self::SpanId(id) => push_hex(out, &id.to_bytes()),
            Self::Address(address) => push_address(out, *address),
        }
        out.push(b'"');
    }
}

/// Appends the JSON string, or null.
fn push_optional(out: &mut Vec<u8>, text: Option<&Text<'_>>) {
    match text {
        Some(text) => text.push(out),
        None => out.extend_from_slice(b"null"),
    }
}

/// Appends milliseconds.
fn push_duration(out: &mut Vec<u8>, milliseconds: f64) {
    push_milliseconds(out, Duration::from_micros((milliseconds * 1e3).round() as u64));
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use serde::ser::{Serialize, Serializer};
    use serde_json::value::RawValue;

    use super::*;
    use crate::hop::reply::{Client, Injected, Tree, Writable};
    use crate::trace_context::{Carried, HeaderPairs, Propagator, Propagators};

    fn raw<S: Serializer>(serializer: S, json: &[u8]) -> Result<S::Ok, S::Error> {
        serde_json::from_slice::<&RawValue>(json).unwrap().serialize(serializer)
    }

    impl Writable for Written<'_> {}

    impl Serialize for Text<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            match self {
                Self::Borrowed(text) => serializer.serialize_str(text),
                Self::Greeting(name) => serializer.collect_str(&format_args!("Hello, {name}!")),
                Self::Time(time) => serializer.collect_str(&humantime::format_rfc3339_micros(*time)),
                Self::TraceId(id) => serializer.collect_str(id),
                Self::SpanId(id) => serializer.collect_str(id),
                Self::Address(address) => serializer.collect_str(address),
            }
        }
    }

    impl Serialize for RedactedHeaders<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut out = Vec::new();
            self.push_json(&mut out);
            raw(serializer, &out)
        }
    }

    impl Serialize for NestedReply<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut out = Vec::new();
            self.push(&mut out);
            raw(serializer, &out)
        }
    }

    /// A reply without anything optional.
    fn least(carried: &Carried) -> Reply<Written<'_>> {
        Reply {
            service: Text::Borrowed("service1"),
            version: Text::Borrowed("v1"),
            lane: Text::Borrowed("gray"),
            hostname: Text::Borrowed("host-\"1\""),
            message: Text::Greeting("service\\1"),
            path: Text::Borrowed("/service1\u{1b}\u{202e}"),
            status: 502,
            started_at: Text::Time(SystemTime::UNIX_EPOCH + Duration::from_micros(1_767_323_045_678_901)),
            duration_ms: 12.345,
            request_id: Text::Borrowed("r-1"),
            trace_id: None,
            span_id: None,
            parent_span_id: None,
            sampled: None,
            propagation: Propagation::Forward,
            received: RedactedHeaders::received(carried),
            client: Client { ip: Text::Address("2001:db8::1".parse().unwrap()), identity: None, identity_source: None },
            protocol: Some(Text::Borrowed("http/1.1")),
            request_bytes: 7,
            node: None,
            zone: None,
            region: None,
            cluster: None,
            attempt: 3,
            injected: None,
            upstreams: Vec::new(),
        }
    }

    #[test]
    fn the_writer_writes_what_the_derived_one_writes_and_what_is_read() {
        let mut carried = Carried::default();
        let propagator = Propagator::new(Propagators::default(), vec![HeaderName::from_static("x-api-key")], vec![]);
        for (name, value) in [("x-request-id", "r-1"), ("baggage", "a=\"1\""), ("x-api-key", "k"), ("baggage", "b=2")] {
            propagator.carry(&mut carried, &HeaderName::from_static(name), &HeaderValue::from_static(value));
        }
        let outgoing = HeaderPairs::new();
        let mut all = least(&carried);
        all.trace_id = Some(Text::TraceId(TraceId::from(0x463a_c35c_9f64_13ad_4848_5a39_53bb_6124)));
        all.span_id = Some(Text::SpanId(SpanId::from(0xa2fb_4a1d_1a96_d312)));
        all.parent_span_id = Some(Text::SpanId(SpanId::from(7)));
        all.sampled = Some(true);
        all.propagation = Propagation::Continue;
        all.client.identity = Some(Text::Borrowed("spiffe://cluster.local/ns/a/sa/\"b\""));
        all.client.identity_source = Some(Text::Borrowed("xfcc"));
        (all.node, all.zone) = (Some(Text::Borrowed("node-1")), Some(Text::Borrowed("a")));
        (all.region, all.cluster) = (Some(Text::Borrowed("north")), Some(Text::Borrowed("c\"1")));
        all.injected = Some(Injected { delay_ms: Some(2000), breaks: vec!["new-trace".to_owned()], ..Injected::default() });
        let leaf = least(&carried).to_json();
        let call = |status: Option<u16>, error: Option<&'static str>, reply| Call {
            url: Text::Borrowed("http://service2/service2"),
            protocol: status.map(|_| Text::Borrowed("http/2")),
            status,
            duration_ms: 9.5,
            error: error.map(Text::Borrowed),
            sent: RedactedHeaders::sent(&outgoing),
            reply,
            embedded: Vec::new(),
        };
        all.upstreams.push(call(Some(200), None, Some(NestedReply::check(&leaf).unwrap())));
        all.upstreams.push(call(None, Some("connection \"refused\""), None));
        for count in [1, 2] {
            let embedded = vec![NestedReply::check(&leaf).unwrap(); count];
            all.upstreams.push(Call { embedded, ..call(Some(200), None, None) });
        }
        let middle = all.to_json();
        let mut top = least(&carried);
        top.sampled = Some(false);
        top.upstreams.push(call(Some(502), Some("answered 502"), Some(NestedReply::check(&middle).unwrap())));
        for reply in [least(&carried), all, top] {
            let json = reply.to_json();
            let value = |json: &[u8]| serde_json::from_slice::<serde_json::Value>(json).unwrap();
            let derived = serde_json::to_vec(&reply).unwrap();
            // The field names stand in the same order, so that people can compare replies by eye.
            let names = |json: &[u8]| {
                let text = String::from_utf8(json.to_vec()).unwrap();
                text.split('"').filter(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '_')).collect::<String>()
            };
            assert_eq!((value(&json), names(&json)), (value(&derived), names(&derived)));
            assert_eq!(serde_json::to_value(Tree::parse(&json).unwrap()).unwrap(), value(&json));
            assert!(NestedReply::check(&json).is_ok() && !String::from_utf8(json).unwrap().contains('\u{202e}'));
        }
    }
}
