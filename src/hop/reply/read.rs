//! Reading a whole reply. Its depth is up to whoever answered, so it is read hop by hop and not by recursion.

use std::marker::PhantomData;

use serde_json::value::RawValue;

use super::{Call, Client, Headers, MAX_HOPS, Reply, Representation, Tree};

/// The [`Representation`] of one hop's reply whose nested replies are still text.
#[derive(Debug, Clone)]
struct OneHop<'a>(PhantomData<&'a RawValue>);

impl<'a> Representation for OneHop<'a> {
    type Text = String;
    type Headers = Headers;
    type Nested = &'a RawValue;
}

/// A nested reply that is still to be read.
struct Unread<'a> {
    text: &'a RawValue,
    call: NestedAt,
    depth: u32,
}

/// Where a nested reply stands.
#[derive(Debug, Clone, Copy)]
struct NestedAt {
    /// The caller's index among the hops that were read.
    caller: usize,
    /// The call's index among the caller's.
    call: usize,
    is_embedded: bool,
}

impl Tree {
    /// Reads a reply with every reply below it, at most [`MAX_HOPS`] deep. Where a nested reply cannot be read or nests deeper,
    /// its call has no reply and an error that says so.
    ///
    /// Each hop's text contains those of the hops below it, so the cost is that of the text times the depth.
    ///
    /// # Errors
    ///
    /// Those of `serde_json` when the body is not the reply of a hop.
    pub fn parse(body: &[u8]) -> serde_json::Result<Self> {
        let mut unread = Vec::new();
        let mut hops = vec![one_hop(serde_json::from_slice(body)?, 0, 1, &mut unread)];
        // For each hop but the first, the call that it was nested in.
        let mut calls = Vec::new();
        while let Some(Unread { text, call, depth }) = unread.pop() {
            let error = if depth > MAX_HOPS {
                format!("the reply is cut here: more than {MAX_HOPS} hops")
            } else {
                match serde_json::from_str(text.get()) {
                    Ok(reply) => {
                        hops.push(one_hop(reply, hops.len(), depth, &mut unread));
                        calls.push(call);
                        continue;
                    }
                    Err(error) => format!("the reply below cannot be read: {error}"),
                }
            };
            hops[call.caller].upstreams[call.call].error.get_or_insert(error);
        }
        // A hop stands behind its caller, so from the last one on each is complete when it is moved.
        for NestedAt { caller, call, is_embedded } in calls.into_iter().rev() {
            let tree = hops.pop().map(Box::new);
            let call = &mut hops[caller].upstreams[call];
            if is_embedded {
                // The last one was read first.
                call.embedded.extend(tree);
            } else {
                call.reply = tree;
            }
        }
        Ok(hops.swap_remove(0))
    }
}

/// The hop without what it nests, which goes to `unread`.
fn one_hop<'a>(reply: Reply<OneHop<'a>>, index: usize, depth: u32, unread: &mut Vec<Unread<'a>>) -> Tree {
    let calls = reply.upstreams.into_iter().enumerate().map(|(i, call)| {
        let place = |is_embedded| NestedAt { caller: index, call: i, is_embedded };
        unread.extend(call.reply.map(|text| Unread { text, call: place(false), depth: depth + 1 }));
        unread.extend(call.embedded.into_iter().map(|text| Unread { text, call: place(true), depth: depth + 1 }));
        Call {
            url: call.url,
            protocol: call.protocol,
            status: call.status,
            duration_ms: call.duration_ms,
            error: call.error,
            sent: call.sent,
            reply: None,
            embedded: Vec::new(),
        }
    });
    Tree {
        upstreams: calls.collect(),
        service: reply.service,
        version: reply.version,
        lane: reply.lane,
        hostname: reply.hostname,
        message: reply.message,
        path: reply.path,
        status: reply.status,
        started_at: reply.started_at,
        duration_ms: reply.duration_ms,
        request_id: reply.request_id,
        trace_id: reply.trace_id,
        span_id: reply.span_id,
        parent_span_id: reply.parent_span_id,
        sampled: reply.sampled,
        propagation: reply.propagation,
        received: reply.received,
        client: Client { ip: reply.client.ip, identity: reply.client.identity, identity_source: reply.client.identity_source },
        protocol: reply.protocol,
        request_bytes: reply.request_bytes,
        node: reply.node,
        zone: reply.zone,
        region: reply.region,
        cluster: reply.cluster,
        attempt: reply.attempt,
        injected: reply.injected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hop::reply::tests::LEAF;

    /// A chain whose last hop is `last`.
    fn chain(hops: usize, last: &str) -> String {
        let above = LEAF.replacen(
            "\"upstreams\":[]",
            r#""upstreams":[{"url":"http://next","protocol":null,"status":200,"duration_ms":1.0,"error":null,"sent":{},"reply":NEXT}]"#,
            1,
        );
        let (before, after) = above.split_once("NEXT").unwrap();
        [before.repeat(hops - 1).as_str(), last, after.repeat(hops - 1).as_str()].concat()
    }

    /// The hops of a chain, and what its last call says.
    fn hops(tree: &Tree) -> (usize, Option<&str>) {
        let (mut hop, mut hops) = (tree, 1);
        while let Some(next) = hop.upstreams.first().and_then(|call| call.reply.as_deref()) {
            (hop, hops) = (next, hops + 1);
        }
        (hops, hop.upstreams.first().and_then(|call| call.error.as_deref()))
    }

    #[test]
    fn a_tree_reads_what_a_hop_writes_and_writes_it_back() {
        let tree = Tree::parse(LEAF.as_bytes()).unwrap();
        assert_eq!(tree.received.get("b3"), ["a\u{1b}[31m", "b"]);
        let again: serde_json::Value = serde_json::to_value(&tree).unwrap();
        assert_eq!(again, serde_json::from_str::<serde_json::Value>(LEAF).unwrap());
    }

    #[test]
    fn the_longest_chain_is_whole_and_a_longer_one_says_where_it_is_cut() {
        let max = MAX_HOPS as usize;
        for whole in [1, 2, 42, 43, 44, 50, max] {
            assert_eq!(hops(&Tree::parse(chain(whole, LEAF).as_bytes()).unwrap()), (whole, None));
        }
        for longer in [max + 1, 2 * max] {
            let tree = Tree::parse(chain(longer, LEAF).as_bytes()).unwrap();
            assert_eq!(hops(&tree), (max, Some("the reply is cut here: more than 256 hops")), "{longer}");
            assert!(tree.to_text().contains("cut here"));
        }
    }

    /// On the stack of a worker thread, in the frames of a debug build.
    #[test]
    fn the_longest_chain_can_be_copied_written_and_dropped() {
        let tree = Tree::parse(chain(MAX_HOPS as usize, LEAF).as_bytes()).unwrap();
        let again = Tree::parse(&serde_json::to_vec(&tree.clone()).unwrap()).unwrap();
        assert_eq!(hops(&again).0, MAX_HOPS as usize);
        assert!(format!("{tree:?}").len() > 100_000);
    }

    #[test]
    fn calls_of_one_hop_keep_their_order() {
        let call = |url: &str, reply: &str| {
            format!(r#"{{"url":"{url}","status":200,"duration_ms":1.0,"error":null,"sent":{{}},"reply":{reply}}}"#)
        };
        let named = |name: &str| LEAF.replacen("service2", name, 1);
        let calls =
            [call("a", &named("a")), call("b", "null"), call("c", &chain(3, &named("last"))), call("d", &named("d"))].join(",");
        let tree = Tree::parse(LEAF.replacen("\"upstreams\":[]", &format!("\"upstreams\":[{calls}]"), 1).as_bytes()).unwrap();
        let below: Vec<_> =
            tree.upstreams.iter().map(|call| (&*call.url, call.reply.as_ref().map(|reply| &*reply.service))).collect();
        assert_eq!(below, [("a", Some("a")), ("b", None), ("c", Some("service2")), ("d", Some("d"))]);
        assert_eq!(hops(tree.upstreams[2].reply.as_ref().unwrap()).0, 3);
        let foreign = call("e", "null").replacen(
            "\"reply\":null",
            &format!("\"reply\":null,\"embedded\":[{},{}]", named("one"), chain(2, &named("two"))),
            1,
        );
        let tree =
            Tree::parse(LEAF.replacen("\"upstreams\":[]", &format!("\"upstreams\":[{foreign},{calls}]"), 1).as_bytes()).unwrap();
        let below: Vec<_> = tree.upstreams.iter().flat_map(Call::replies).map(|reply| &*reply.service).collect();
        assert_eq!(below, ["one", "service2", "a", "service2", "d"]);
        assert_eq!(hops(&tree.upstreams[0].embedded[1]).0, 2);
    }

    #[test]
    fn a_nested_reply_that_cannot_be_read_costs_nothing_but_itself() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
        for last in ["{}", "[]", "1", "{\"service\":1}", deep.as_str()] {
            let (count, error) = (hops(&Tree::parse(chain(5, last).as_bytes()).unwrap()).0, "the reply below cannot be read");
            assert_eq!(count, 4, "{last}");
            let tree = Tree::parse(chain(5, last).as_bytes()).unwrap();
            assert!(hops(&tree).1.is_some_and(|said| said.starts_with(error)), "{last}");
        }
        for hostile in ["[".repeat(1 << 20), "{\"a\":".repeat(200_000), "{\"upstreams\":[".repeat(60_000)] {
            assert!(Tree::parse(hostile.as_bytes()).is_err());
        }
    }
}
