//! The reply as a gRPC message, and back: the same fields under the same names.

use bytes::Bytes;
use http::StatusCode;
use prost::Message as _;
use tonic::{Code, Status};

use super::{Call, Client, Headers, Injected, MAX_HOPS, Propagation, Tree};
use crate::rpc::chain::{self, Header, Upstream};
use crate::rpc::status::{code_of, with_reply};

/// What stands in place of replies that the details of a status have no room for.
const SHORTENED: &str = "the reply below is left out: the details of a gRPC status have no room for it";

impl Tree {
    /// The message.
    pub(crate) fn into_message(self) -> chain::Reply {
        let upstreams = self.upstreams.into_iter().map(|call| Upstream {
            url: call.url,
            protocol: call.protocol,
            status: call.status.map(u32::from),
            duration_ms: call.duration_ms,
            error: call.error,
            sent: to_pairs(call.sent),
            reply: call.reply.map(|reply| encoded(*reply)),
            embedded: call.embedded.into_iter().map(|reply| encoded(*reply)).collect(),
        });
        chain::Reply {
            upstreams: upstreams.collect(),
            service: self.service,
            version: self.version,
            lane: self.lane,
            hostname: self.hostname,
            message: self.message,
            path: self.path,
            status: self.status.into(),
            started_at: self.started_at,
            duration_ms: self.duration_ms,
            request_id: self.request_id,
            trace_id: self.trace_id,
            span_id: self.span_id,
            parent_span_id: self.parent_span_id,
            sampled: self.sampled,
            propagation: if self.propagation == Propagation::Forward { "forward" } else { "continue" }.to_owned(),
            received: to_pairs(self.received),
            client: Some(chain::Client {
                ip: self.client.ip,
                identity: self.client.identity,
                identity_source: self.client.identity_source,
            }),
            protocol: self.protocol,
            request_bytes: self.request_bytes,
            node: self.node,
            zone: self.zone,
            region: self.region,
            cluster: self.cluster,
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

    /// Reads a message with every reply below it; `None` when it is not a hop's. A nested reply that is none, or nests deeper than
    /// [`MAX_HOPS`], is left out, and its call says so.
    pub(crate) fn from_message(message: Bytes) -> Option<Self> {
        Self::read_message(message, 1)
    }

    fn read_message(message: Bytes, depth: u32) -> Option<Self> {
        let reply = chain::Reply::decode(message).ok()?;
        let propagation = match &*reply.propagation {
            "forward" => Propagation::Forward,
            "continue" => Propagation::Continue,
            _ => return None,
        };
        let client = reply.client.unwrap_or_default();
        let mut upstreams = Vec::with_capacity(reply.upstreams.len());
        for call in reply.upstreams {
            let (mut nested, mut error) = (None, call.error);
            if let Some(below) = call.reply {
                nested = if depth < MAX_HOPS { Self::read_message(below, depth + 1).map(Box::new) } else { None };
                if nested.is_none() {
                    error.get_or_insert_with(|| format!("the reply below cannot be read, or nests more than {MAX_HOPS} hops"));
                }
            }
            let embedded = call.embedded.into_iter().filter(|_| depth < MAX_HOPS);
            let embedded = embedded.filter_map(|below| Self::read_message(below, depth + 1).map(Box::new)).collect();
            upstreams.push(Call {
                url: call.url,
                protocol: call.protocol,
                status: call.status.map(u16::try_from).transpose().ok()?,
                duration_ms: call.duration_ms,
                error,
                sent: from_pairs(call.sent),
                reply: nested,
                embedded,
            });
        }
        let injected = reply.injected.map(|injected| Injected {
            delay_ms: injected.delay_ms,
            abort_status: injected.abort_status.and_then(|status| u16::try_from(status).ok()),
            faults: injected.faults,
            breaks: injected.breaks,
            error: injected.error,
        });
        Some(Self {
            upstreams,
            service: reply.service,
            version: reply.version,
            lane: reply.lane,
            hostname: reply.hostname,
            message: reply.message,
            path: reply.path,
            status: u16::try_from(reply.status).ok()?,
            started_at: reply.started_at,
            duration_ms: reply.duration_ms,
            request_id: reply.request_id,
            trace_id: reply.trace_id,
            span_id: reply.span_id,
            parent_span_id: reply.parent_span_id,
            sampled: reply.sampled,
            propagation,
            received: from_pairs(reply.received),
            client: Client { ip: client.ip, identity: client.identity, identity_source: client.identity_source },
            protocol: reply.protocol,
            request_bytes: reply.request_bytes,
            node: reply.node,
            zone: reply.zone,
            region: reply.region,
            cluster: reply.cluster,
            attempt: reply.attempt,
            injected,
        })
    }

    /// The status of a failed call: the tree is in its details, without the lowest replies where they have no room.
    pub(crate) fn into_status(mut self, message: &str) -> Status {
        let code = StatusCode::from_u16(self.status).map_or(Code::Unknown, code_of);
        loop {
            if let Some(status) = with_reply(code, message, &self.clone().into_message()) {
                return status;
            }
            let depth = self.depth();
            if depth == 1 {
                return Status::new(code, message);
            }
            self.cut(depth - 1);
        }
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
                    call.error =
                        Some(call.error.take().map_or_else(|| SHORTENED.into(), |error| format!("{error}; {SHORTENED}")));
                }
                Some(reply) => reply.cut(depth - 1),
                None => {}
            }
        }
    }
}

fn encoded(reply: Tree) -> Bytes {
    reply.into_message().encode_to_vec().into()
}

fn to_pairs(headers: Headers) -> Vec<Header> {
    headers.0.into_iter().map(|(name, values)| Header { name, values }).collect()
}

fn from_pairs(headers: Vec<Header>) -> Headers {
    Headers(headers.into_iter().map(|Header { name, values }| (name, values)).collect())
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

    #[test]
    fn a_tree_is_the_same_after_its_way_through_messages() {
        for hops in [1, 2, 60, MAX_HOPS as usize] {
            let tree = chain(hops);
            let message = tree.clone().into_message().encode_to_vec();
            let read = Tree::from_message(message.into()).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), serde_json::to_string(&tree).unwrap(), "{hops}");
        }
        let longer = Tree::from_message(chain(MAX_HOPS as usize + 1).into_message().encode_to_vec().into()).unwrap();
        assert_eq!(longer.depth(), MAX_HOPS as usize);
        for other in [&b""[..], b"\x0a\x01a", b"\xff\xff"] {
            assert!(Tree::from_message(Bytes::from_static(other)).is_none(), "{other:?}");
        }
    }

    #[test]
    fn the_tree_of_a_failed_call_is_shortened_from_below_and_says_so() {
        for (hops, whole) in [(3, true), (60, false)] {
            let (http, reply) = status::read(&chain(hops).into_status("m"));
            let tree = Tree::from_message(reply.unwrap()).unwrap();
            assert_eq!((http.as_u16(), tree.depth() == hops), (502, whole), "{hops}");
            assert!(tree.depth() >= 3, "{}", tree.depth());
            let mut last = &tree;
            while let Some(next) = last.upstreams.first().and_then(|call| call.reply.as_deref()) {
                last = next;
            }
            let is_marked = last.upstreams.first().is_some_and(|call| call.error.as_ref().unwrap().ends_with(SHORTENED));
            assert_eq!(is_marked, !whole, "{hops}");
        }
        let mut large = chain(1);
        (large.status, large.message) = (503, "x".repeat(10_000));
        let status = large.into_status("m");
        assert_eq!((status.code(), status.details().len()), (Code::Unavailable, 0));
    }
}
