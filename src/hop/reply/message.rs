//! The reply as a gRPC message, and back: the same fields under the same names.

use bytes::Bytes;
use http::StatusCode;
use prost::Message as _;
use tonic::{Code, Status};

use super::{Call, Headers, Injected, MAX_HOPS, Propagation, Reply, Representation, Tree};
use crate::rpc::chain::{self, Header, Upstream};
use crate::rpc::status::{code_of, with_reply};

/// What stands in place of replies that the details of a status have no room for.
const SHORTENED: &str = "the reply below is left out: the details of a gRPC status have no room for it";
/// The error of a call whose reply is not shown.
pub(super) const UNREADABLE: &str = "the reply below cannot be read, or nests more than 256 hops";

/// A nested reply that can be written into a message.
pub(crate) trait Encoded {
    /// The message; `None` when what is nested is no reply.
    fn encoded(self) -> Option<Bytes>;
}

impl Encoded for Box<Tree> {
    fn encoded(self) -> Option<Bytes> {
        Some(self.into_message().encode_to_vec().into())
    }
}

impl<R: Representation> Reply<R> {
    /// The message.
    pub(crate) fn into_message(self) -> chain::Reply
    where
        R: Representation<Text: Into<String>, Headers: Into<Headers>, Nested: Encoded>,
    {
        chain::Reply {
            upstreams: self.upstreams.into_iter().map(Call::into_message).collect(),
            service: self.service.into(),
            version: self.version.into(),
            lane: self.lane.into(),
            hostname: self.hostname.into(),
            message: self.message.into(),
            path: self.path.into(),
            status: self.status.into(),
            started_at: self.started_at.into(),
            duration_ms: self.duration_ms,
            request_id: self.request_id.into(),
            trace_id: self.trace_id.map(Into::into),
            span_id: self.span_id.map(Into::into),
            parent_span_id: self.parent_span_id.map(Into::into),
            sampled: self.sampled,
            propagation: if self.propagation == Propagation::Forward { "forward" } else { "continue" }.to_owned(),
            received: to_pairs(self.received),
            client: Some(chain::Client {
                ip: self.client.ip.into(),
                identity: self.client.identity.map(Into::into),
                identity_source: self.client.identity_source.map(Into::into),
            }),
            protocol: self.protocol.map(Into::into),
            request_bytes: self.request_bytes,
            node: self.node.map(Into::into),
            zone: self.zone.map(Into::into),
            region: self.region.map(Into::into),
            cluster: self.cluster.map(Into::into),
            attempt: self.attempt,
            injected: self.injected.map(|injected| chain::Injected {
                delay_ms: injected.delay_ms,
                abort_status: injected.abort_status.map(u32::from),
                faults: injected.faults,
                breaks: injected.breaks,
                error: injected.error,
            }),
            padding: Bytes::new(),
        }
    }
}

impl<R: Representation> Call<R> {
    fn into_message(self) -> Upstream
    where
        R: Representation<Text: Into<String>, Headers: Into<Headers>, Nested: Encoded>,
    {
        let has_reply = self.reply.is_some();
        let reply = self.reply.and_then(Encoded::encoded);
        let unreadable = || (has_reply && reply.is_none()).then(|| UNREADABLE.to_owned());
        Upstream {
            error: self.error.map(Into::into).or_else(unreadable),
            url: self.url.into(),
            protocol: self.protocol.map(Into::into),
            status: self.status.map(u32::from),
            duration_ms: self.duration_ms,
            sent: to_pairs(self.sent),
            embedded: self.embedded.into_iter().filter_map(Encoded::encoded).collect(),
            reply,
        }
    }
}

/// A valid message of a next hop.
#[derive(Debug)]
pub(crate) struct MessageReply {
    pub(super) message: Box<chain::Reply>,
    /// To be nested verbatim: without padding, so that it does not add up along a chain.
    bytes: Bytes,
}

impl MessageReply {
    /// Reads a message; `None` when it is not a hop's. What it nests is read where it is needed: whatever it is, a message around it is
    /// valid.
    pub(crate) fn read(bytes: &Bytes) -> Option<Self> {
        let mut message = Box::new(chain::Reply::decode(bytes.clone()).ok()?);
        message.propagation()?;
        let mut statuses = message.upstreams.iter().filter_map(|call| call.status).chain([message.status]);
        if statuses.any(|status| u16::try_from(status).is_err()) {
            return None;
        }
        if message.padding.is_empty() {
            return Some(Self { message, bytes: bytes.clone() });
        }
        message.padding = Bytes::new();
        Some(Self { bytes: message.encode_to_vec().into(), message })
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl chain::Reply {
    pub(super) fn propagation(&self) -> Option<Propagation> {
        match &*self.propagation {
            "forward" => Some(Propagation::Forward),
            "continue" => Some(Propagation::Continue),
            _ => None,
        }
    }
}

impl From<chain::Injected> for Injected {
    fn from(injected: chain::Injected) -> Self {
        Self {
            delay_ms: injected.delay_ms,
            abort_status: injected.abort_status.and_then(|status| u16::try_from(status).ok()),
            faults: injected.faults,
            breaks: injected.breaks,
            error: injected.error,
        }
    }
}

/// How many bytes a message takes at most when it is read and written as JSON, with every reply below it, beside its own: a few bytes can be
/// a call without a field, which takes hundreds.
pub(crate) fn expanded_size(message: &[u8]) -> usize {
    expanded(MessageField::Reply, message, MAX_HOPS)
}

/// The messages that have repeated fields.
#[derive(Debug, Clone, Copy)]
enum MessageField {
    Reply,
    Upstream,
    Header,
    Injected,
}

fn expanded(kind: MessageField, mut rest: &[u8], depth: u32) -> usize {
    /// A string and its place in a vector.
    const FIELD: usize = 32;
    /// A call as it is read, and all its names in JSON.
    const CALL: usize = 768;
    /// All the names of a reply in JSON.
    const REPLY: usize = 768;
    let mut size = 0;
    while let Some((key, after)) = varint(rest) {
        size += FIELD;
        let after = match key & 7 {
            0 => varint(after).map(|(_, after)| after),
            1 => after.get(8..),
            5 => after.get(4..),
            2 => varint(after).and_then(|(length, after)| {
                let (field, after) = after.split_at_checked(usize::try_from(length).ok()?)?;
                size += match (kind, key >> 3) {
                    (MessageField::Reply, 16) | (MessageField::Upstream, 6) => expanded(MessageField::Header, field, depth),
                    (MessageField::Reply, 25) => expanded(MessageField::Injected, field, depth),
                    (MessageField::Reply, 26) => CALL + expanded(MessageField::Upstream, field, depth),
                    (MessageField::Upstream, 7 | 8) if depth > 1 => REPLY + expanded(MessageField::Reply, field, depth - 1),
                    _ => 0,
                };
                Some(after)
            }),
            _ => None,
        };
        // Whatever this is, it is no message: reading it ends here, too.
        let Some(after) = after else { break };
        rest = after;
    }
    size
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (i, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[i + 1..]));
        }
    }
    None
}

impl Tree {
    /// The status of a failed call: the tree is in its details, without the lowest replies where they have no room.
    pub(crate) fn into_status(self, message: &str) -> Status {
        let code = StatusCode::from_u16(self.status).map_or(Code::Unknown, code_of);
        let of_depth = |depth| {
            let mut tree = self.clone();
            tree.cut(depth);
            with_reply(code, message, &tree.into_message())
        };
        let whole = largest(self.depth(), of_depth);
        whole.or_else(|| self.narrowed(code, message)).unwrap_or_else(|| Status::new(code, message))
    }

    /// The same of a reply that has no room alone: without what is long in headers, and without calls.
    fn narrowed(mut self, code: Code, message: &str) -> Option<Status> {
        const MAX_VALUE: usize = 64;
        self.cut(1);
        let headers = self.upstreams.iter_mut().map(|call| &mut call.sent).chain([&mut self.received]);
        for value in
            headers.flat_map(|headers| &mut headers.0).flat_map(|(_, values)| values).filter(|value| value.len() > MAX_VALUE)
        {
            value.truncate(value.floor_char_boundary(MAX_VALUE));
            value.push('…');
        }
        // Those that failed say why.
        self.upstreams.sort_by_key(|call| call.error.is_none());
        largest(self.upstreams.len(), |count| {
            let mut tree = self.clone();
            let more = tree.upstreams.split_off(count).len();
            if let Some(last) = tree.upstreams.last_mut().filter(|_| more > 0) {
                last.note(&format!("{more} more calls are left out: the details of a gRPC status have no room for them"));
            }
            with_reply(code, message, &tree.into_message())
        })
    }

    fn depth(&self) -> usize {
        1 + self
            .upstreams
            .iter()
            .flat_map(|call| call.reply.iter().chain(&call.embedded))
            .map(|reply| reply.depth())
            .max()
            .unwrap_or(0)
    }

    /// Leaves out what stands below this many hops.
    fn cut(&mut self, depth: usize) {
        for call in &mut self.upstreams {
            if depth == 1 {
                call.embedded.clear();
            }
            call.embedded.iter_mut().for_each(|reply| reply.cut(depth - 1));
            match &mut call.reply {
                Some(_) if depth == 1 => {
                    call.reply = None;
                    call.note(SHORTENED);
                }
                Some(reply) => reply.cut(depth - 1),
                None => {}
            }
        }
    }
}

impl Call {
    fn note(&mut self, text: &str) {
        self.error = Some(self.error.take().map_or_else(|| text.to_owned(), |error| format!("{error}; {text}")));
    }
}

/// What the largest number up to `most` has, where all below one that has something have something.
fn largest<T>(most: usize, of: impl Fn(usize) -> Option<T>) -> Option<T> {
    // Nearly always the whole has room.
    let mut found = of(most);
    let (mut least, mut most) = (1, if found.is_some() { 1 } else { most });
    while least < most {
        let middle = usize::midpoint(least, most);
        match of(middle) {
            Some(one) => (found, least) = (Some(one), middle + 1),
            None => most = middle,
        }
    }
    found
}

fn to_pairs(headers: impl Into<Headers>) -> Vec<Header> {
    headers.into().0.into_iter().map(|(name, values)| Header { name, values }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hop::reply::tests::LEAF;
    use crate::rpc::status;

    fn chain(hops: usize) -> Tree {
        let mut tree = Tree::parse(LEAF.as_bytes()).unwrap();
        for _ in 1..hops {
            let mut above = Tree::parse(LEAF.as_bytes()).unwrap();
            above.status = 502;
            above.upstreams.push(Call {
                url: "grpc://next/service2".into(),
                protocol: Some("grpc".into()),
                status: Some(503),
                duration_ms: 1.5,
                error: Some("answered UNAVAILABLE: no".into()),
                sent: Headers(vec![("b3".into(), vec!["0".into(), "1".into()])]),
                reply: Some(Box::new(tree)),
                embedded: Vec::new(),
            });
            tree = above;
        }
        tree
    }

    fn parse(message: Bytes) -> Tree {
        Tree::parse(&MessageReply::read(&message).unwrap().to_json()).unwrap()
    }

    #[test]
    fn a_tree_is_the_same_after_its_way_through_messages() {
        for hops in [1, 2, 60, MAX_HOPS as usize] {
            let tree = chain(hops);
            let read = parse(tree.clone().into_message().encode_to_vec().into());
            assert_eq!(serde_json::to_string(&read).unwrap(), serde_json::to_string(&tree).unwrap(), "{hops}");
        }
        let longer = parse(chain(MAX_HOPS as usize + 1).into_message().encode_to_vec().into());
        assert_eq!(longer.depth(), MAX_HOPS as usize);
        assert!(UNREADABLE.contains(&MAX_HOPS.to_string()));
        for other in [&b""[..], b"\x0a\x01a", b"\xff\xff"] {
            assert!(MessageReply::read(&Bytes::from_static(other)).is_none(), "{other:?}");
        }
    }

    #[test]
    fn padding_is_not_nested_and_what_is_no_reply_is_marked() {
        let mut message = chain(2).into_message();
        message.upstreams[0].reply = Some(Bytes::from_static(b"\x0a\x01a"));
        message.padding = vec![b'x'; 10_000].into();
        let read = MessageReply::read(&message.encode_to_vec().into()).unwrap();
        assert!(read.bytes().len() < 1000, "{}", read.bytes().len());
        let call = &Tree::parse(&read.to_json()).unwrap().upstreams[0];
        assert!(call.reply.is_none(), "{call:?}");
        let mut above = chain(2);
        above.upstreams[0].error = None;
        let mut message = above.into_message();
        message.upstreams[0].reply = Some(Bytes::from_static(b"\x0a\x01a"));
        let call = &parse(message.encode_to_vec().into()).upstreams[0];
        assert_eq!((call.error.as_deref(), call.reply.is_none()), (Some(UNREADABLE), true));
    }

    #[test]
    fn a_message_of_few_bytes_that_becomes_large_is_known_before_it_is_read() {
        let least = |upstreams| chain::Reply { propagation: "forward".to_owned(), upstreams, ..chain::Reply::default() };
        let nested = Upstream { reply: Some(least(Vec::new()).encode_to_vec().into()), ..Upstream::default() };
        let embedded = Upstream { embedded: vec![nested.reply.clone().unwrap(); 3], ..Upstream::default() };
        let header = Header { values: vec![String::new(); 3], ..Header::default() };
        let headers = Upstream { sent: vec![header; 3], ..Upstream::default() };
        for call in [Upstream::default(), nested, embedded, headers] {
            let message: Bytes = least(vec![call; 1000]).encode_to_vec().into();
            let json = MessageReply::read(&message).unwrap().to_json();
            assert!(json.len() > 5 * message.len(), "{} of {}", json.len(), message.len());
            assert!(expanded_size(&message) + 1024 >= json.len(), "{} of {}", expanded_size(&message), json.len());
            assert!(expanded_size(&message) >= 1000 * 2 * size_of::<Upstream>());
        }
        for odd in [&b"\xff"[..], b"\xd2\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x0b", &[0xd2; 1000]] {
            assert!(expanded_size(odd) < 100_000, "{odd:?}");
        }
    }

    #[test]
    fn the_tree_of_a_failed_call_is_shortened_from_below_and_says_so() {
        for (hops, whole) in [(3, true), (60, false)] {
            let (http, reply) = status::read(&chain(hops).into_status("m"));
            let tree = parse(reply.unwrap());
            assert_eq!((http.as_u16(), tree.depth() == hops), (502, whole), "{hops}");
            assert!(tree.depth() >= 3, "{}", tree.depth());
            let mut more = chain(hops);
            more.cut(tree.depth() + 1);
            assert_eq!(with_reply(Code::Unavailable, "m", &more.into_message()).is_some(), whole, "no more has room");
            let mut last = &tree;
            while let Some(next) = last.upstreams.first().and_then(|call| call.reply.as_deref()) {
                last = next;
            }
            let is_marked = last.upstreams.first().is_some_and(|call| call.error.as_ref().unwrap().ends_with(SHORTENED));
            assert_eq!(is_marked, !whole, "{hops}");
        }
        // Wide, and with long headers.
        let mut wide = chain(2);
        wide.upstreams[0].sent.0[0].1 = vec!["ä".repeat(4_000)];
        wide.received.0.push(("baggage".into(), vec!["a".repeat(8_000), "b".into()]));
        wide.upstreams = vec![wide.upstreams[0].clone(); 100];
        wide.upstreams[0].error = None;
        let (http, reply) = status::read(&wide.into_status("m"));
        let tree = parse(reply.unwrap());
        let left_out = 100 - tree.upstreams.len();
        assert!(http.as_u16() == 502 && (1..95).contains(&left_out), "{left_out}");
        assert!(tree.upstreams.iter().all(|call| call.error.is_some()), "{tree:?}");
        let last = tree.upstreams.last().unwrap().error.as_ref().unwrap();
        assert!(last.contains(&format!("; {left_out} more calls are left out")), "{last}");
        assert_eq!(tree.received.get("baggage"), ["a".repeat(64) + "…", "b".to_owned()]);
        let mut large = chain(1);
        (large.status, large.message) = (503, "x".repeat(10_000));
        let status = large.into_status("m");
        assert_eq!((status.code(), status.details().len()), (Code::Unavailable, 0));
    }
}
