//! The writer of a hop's own reply: a [`Reply`] of borrowed values, written field by field.
//!
//! It writes what the derived `Serialize` would write (a test compares them) for fewer instructions: `ARCHITECTURE.md` has the
//! price. Field names are constants with their punctuation, and times, ids and addresses are formatted in place.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use opentelemetry::trace::{SpanId, TraceId};

use super::message::{Encoded, MessageReply, UNREADABLE};
use super::{Call, Client, Headers, MAX_HOPS, NestedReply, Propagation, Reply, Representation, Tree};
use crate::rpc::chain::{Header, Upstream};
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
    type Headers = HeaderList<'a>;
    type Nested = Nested<'a>;
}

/// Header names with their values.
#[derive(Debug, Clone, Copy)]
pub(crate) enum HeaderList<'a> {
    Own(RedactedHeaders<'a>),
    /// Of a next hop's message.
    Message(&'a [Header]),
}

/// What a next hop replied.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Nested<'a> {
    Json(NestedReply<'a>),
    /// Over gRPC, and how deep it stands in the reply: that of the hop itself stands at 1.
    Message(&'a MessageReply, u32),
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
        self.push(&mut json);
        json
    }

    fn push(&self, out: &mut Vec<u8>) {
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
        self.received.push(out);
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
        1024 + self.reply.into_iter().chain(self.embedded.iter().copied()).map(Nested::expected_len).sum::<usize>()
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
        self.sent.push(out);
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

impl Nested<'_> {
    /// Names make JSON longer than the message.
    fn expected_len(self) -> usize {
        match self {
            Self::Json(reply) => reply.len(),
            Self::Message(reply, _) => 1024 + 2 * reply.bytes().len(),
        }
    }

    fn push(self, out: &mut Vec<u8>) {
        match self {
            Self::Json(reply) => reply.push(out),
            Self::Message(reply, depth) => push_message(out, reply, depth),
        }
    }
}

impl MessageReply {
    /// The reply as JSON. Where a nested reply is none, or nests deeper than [`MAX_HOPS`], its call has no reply and says so.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let mut json = Vec::with_capacity(2048 + 2 * self.bytes().len());
        push_message(&mut json, self, 1);
        json
    }
}

/// A call of a next hop's message, with the replies below it.
struct CallBelow<'a> {
    call: &'a Upstream,
    reply: Option<MessageReply>,
    embedded: Vec<MessageReply>,
}

impl<'a> CallBelow<'a> {
    fn read(call: &'a Upstream, depth: u32) -> Self {
        let read = |reply: &Bytes| MessageReply::read(reply).filter(|_| depth < MAX_HOPS);
        Self { call, reply: call.reply.as_ref().and_then(read), embedded: call.embedded.iter().filter_map(read).collect() }
    }

    fn as_call(&self, depth: u32) -> Call<Written<'_>> {
        let nested = |reply| Nested::Message(reply, depth + 1);
        let is_unreadable = self.call.reply.is_some() && self.reply.is_none();
        Call {
            url: Text::Borrowed(&self.call.url),
            protocol: borrowed(self.call.protocol.as_ref()),
            status: self.call.status.and_then(|status| u16::try_from(status).ok()),
            duration_ms: self.call.duration_ms,
            error: borrowed(self.call.error.as_ref()).or(is_unreadable.then_some(Text::Borrowed(UNREADABLE))),
            sent: HeaderList::Message(&self.call.sent),
            reply: self.reply.as_ref().map(nested),
            embedded: self.embedded.iter().map(nested).collect(),
        }
    }
}

/// Appends the reply of a message as JSON.
fn push_message(out: &mut Vec<u8>, reply: &MessageReply, depth: u32) {
    let message = &reply.message;
    let below: Vec<_> = message.upstreams.iter().map(|call| CallBelow::read(call, depth)).collect();
    let client = message.client.as_ref();
    let reply = Reply {
        service: Text::Borrowed(&message.service),
        version: Text::Borrowed(&message.version),
        lane: Text::Borrowed(&message.lane),
        hostname: Text::Borrowed(&message.hostname),
        message: Text::Borrowed(&message.message),
        path: Text::Borrowed(&message.path),
        status: message.status.try_into().unwrap_or_default(),
        started_at: Text::Borrowed(&message.started_at),
        duration_ms: message.duration_ms,
        request_id: Text::Borrowed(&message.request_id),
        trace_id: borrowed(message.trace_id.as_ref()),
        span_id: borrowed(message.span_id.as_ref()),
        parent_span_id: borrowed(message.parent_span_id.as_ref()),
        sampled: message.sampled,
        propagation: message.propagation().unwrap_or(Propagation::Forward),
        received: HeaderList::Message(&message.received),
        client: Client {
            ip: Text::Borrowed(client.map_or("", |client| &client.ip)),
            identity: borrowed(client.and_then(|client| client.identity.as_ref())),
            identity_source: borrowed(client.and_then(|client| client.identity_source.as_ref())),
        },
        protocol: borrowed(message.protocol.as_ref()),
        request_bytes: message.request_bytes,
        node: borrowed(message.node.as_ref()),
        zone: borrowed(message.zone.as_ref()),
        region: borrowed(message.region.as_ref()),
        cluster: borrowed(message.cluster.as_ref()),
        attempt: message.attempt,
        injected: message.injected.clone().map(Into::into),
        upstreams: below.iter().map(|call| call.as_call(depth)).collect(),
    };
    Reply::<Written<'_>>::push(&reply, out);
}

fn borrowed(text: Option<&String>) -> Option<Text<'_>> {
    text.map(|text| Text::Borrowed(text))
}

impl Encoded for Nested<'_> {
    fn encoded(self) -> Option<Bytes> {
        match self {
            Self::Json(reply) => {
                let mut json = Vec::with_capacity(reply.len());
                reply.push(&mut json);
                Box::new(Tree::parse(&json).ok()?).encoded()
            }
            Self::Message(reply, _) => Some(reply.bytes().clone()),
        }
    }
}

impl HeaderList<'_> {
    fn push(self, out: &mut Vec<u8>) {
        let headers = match self {
            Self::Own(headers) => return headers.push_json(out),
            Self::Message(headers) => headers,
        };
        out.push(b'{');
        for (i, Header { name, values }) in headers.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            push_text(out, name.as_bytes());
            out.extend_from_slice(b":[");
            for (i, value) in values.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                push_text(out, value.as_bytes());
            }
            out.push(b']');
        }
        out.push(b'}');
    }
}

impl From<HeaderList<'_>> for Headers {
    fn from(list: HeaderList<'_>) -> Self {
        Self(match list {
            HeaderList::Own(headers) => headers.to_pairs(),
            HeaderList::Message(headers) => {
                headers.iter().map(|Header { name, values }| (name.clone(), values.clone())).collect()
            }
        })
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
            Self::Greeting(name) => {
                out.extend_from_slice(b"Hello, ");
                push_escaped(out, name.as_bytes());
                out.push(b'!');
            }
            _ => self.push_plain(out),
        }
        out.push(b'"');
    }

    /// Appends the text as it is.
    fn push_plain(&self, out: &mut Vec<u8>) {
        match self {
            Self::Borrowed(text) => out.extend_from_slice(text.as_bytes()),
            Self::Greeting(name) => out.extend_from_slice(["Hello, ", name, "!"].concat().as_bytes()),
            Self::Time(time) => push_time(out, *time),
            Self::TraceId(id) => push_hex(out, &id.to_bytes()),
            Self::SpanId(id) => push_hex(out, &id.to_bytes()),
            Self::Address(address) => push_address(out, *address),
        }
    }
}

impl From<Text<'_>> for String {
    fn from(text: Text<'_>) -> Self {
        if let Text::Borrowed(text) = text {
            return text.to_owned();
        }
        let mut plain = Vec::with_capacity(32);
        text.push_plain(&mut plain);
        Self::from_utf8(plain).unwrap_or_default()
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
    use prost::Message as _;
    use serde::ser::{Serialize, Serializer};
    use serde_json::value::RawValue;

    use super::*;
    use crate::hop::reply::layout::is_usual;
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

    impl Serialize for HeaderList<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut out = Vec::new();
            self.push(&mut out);
            raw(serializer, &out)
        }
    }

    impl Serialize for Nested<'_> {
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
            received: HeaderList::Own(RedactedHeaders::received(carried)),
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
        let value = |json: &[u8]| serde_json::from_slice::<serde_json::Value>(json).unwrap();
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
        let json = |reply| Nested::Json(NestedReply::check(reply).unwrap());
        let call = |status: Option<u16>, error: Option<&'static str>, reply| Call {
            url: Text::Borrowed("http://service2/service2"),
            protocol: status.map(|_| Text::Borrowed("http/2")),
            status,
            duration_ms: 9.5,
            error: error.map(Text::Borrowed),
            sent: HeaderList::Own(RedactedHeaders::sent(&outgoing)),
            reply,
            embedded: Vec::new(),
        };
        all.upstreams.push(call(Some(200), None, Some(json(&leaf))));
        all.upstreams.push(call(None, Some("connection \"refused\""), None));
        for count in [1, 2] {
            let embedded = vec![json(&leaf); count];
            all.upstreams.push(Call { embedded, ..call(Some(200), None, None) });
        }
        let middle = all.to_json();
        let mut top = least(&carried);
        top.sampled = Some(false);
        top.upstreams.push(call(Some(502), Some("answered 502"), Some(json(&middle))));
        // The same as they arrive over gRPC.
        let message = MessageReply::read(&all.clone().into_message().encode_to_vec().into()).unwrap();
        let mut above = least(&carried);
        above.upstreams.push(call(Some(200), None, Some(Nested::Message(&message, 2))));
        assert_eq!(value(&above.to_json())["upstreams"][0]["reply"], value(&middle));
        for reply in [least(&carried), all, top, above] {
            let message = MessageReply::read(&reply.clone().into_message().encode_to_vec().into()).unwrap();
            assert_eq!(value(&message.to_json()), value(&reply.to_json()));
            let json = reply.to_json();
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

    #[test]
    fn what_is_written_is_recognised_without_a_parser() {
        let (carried, outgoing) = (Carried::default(), HeaderPairs::new());
        let plain = || Reply { path: Text::Borrowed("/service1"), ..least(&carried) };
        let (mut leaf, mut middle) = (plain(), plain());
        leaf.injected = Some(Injected { delay_ms: Some(2000), error: Some("\u{1b}".to_owned()), ..Injected::default() });
        let leaf = leaf.to_json();
        for (status, error, reply) in [(Some(200), None, NestedReply::check(&leaf).ok()), (None, Some("timed out"), None)] {
            middle.upstreams.push(Call {
                url: Text::Borrowed("http://service2/service2"),
                protocol: status.map(|_| Text::Borrowed("http/2")),
                status,
                duration_ms: 9.5,
                error: error.map(Text::Borrowed),
                sent: HeaderList::Own(RedactedHeaders::sent(&outgoing)),
                reply: reply.map(Nested::Json),
                embedded: Vec::new(),
            });
        }
        for json in [plain().to_json(), leaf.clone(), middle.to_json()] {
            let text = std::str::from_utf8(&json).unwrap();
            assert!(is_usual(text.strip_suffix('}').unwrap(), 10), "{text}");
        }
    }
}
