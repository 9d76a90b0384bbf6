//! What is carried from hop to hop: every header of the contract's table to the third hop, and every row of its in/out table on
//! the wire.

use std::collections::BTreeSet;

use crate::common::{CARRIED as TABLE, Head, Hop, Sink, Upstream, answer, exchange};

/// What a call has beside carried headers.
const OWN: [&str; 5] = ["host", "accept", "user-agent", "x-hop-count", "x-call-budget"];

const T: &str = "463ac35c9f6413ad48485a3953bb6124";
const T2: &str = "80f198ee56343ba864fe8b2a57d3eff7";
const S: &str = "a2fb4a1d1a96d312";
const S2: &str = "e457b5a2e4d86bd1";
const P: &str = "0020000000000001";

/// A hop before a raw socket: what is written there is what went over the wire.
struct Wire {
    upstream: Upstream,
    hops: Vec<Hop>,
}

impl Wire {
    /// `hops` hops before the socket.
    async fn new(hops: usize, flags: &[&str], env: &[(&str, &str)]) -> Self {
        let upstream = Upstream::answering(answer("200 OK", "", "")).await;
        let mut started: Vec<Hop> = Vec::new();
        for _ in 0..hops {
            let below = started.last().map_or_else(|| upstream.url(), |hop| hop.url(""));
            started.push(Hop::start(&[&["--upstream", &below], flags].concat(), env));
        }
        Self { upstream, hops: started }
    }

    fn front(&self) -> &Hop {
        self.hops.last().unwrap()
    }

    /// What arrives when a request with these headers enters at the front, and the front's reply.
    async fn send(&self, headers: &[(&str, &str)]) -> (Head, serde_json::Value) {
        let before = self.upstream.heads().len();
        let (status, reply) = self.front().json("/service1", headers).await;
        assert_eq!(status, 200, "{reply}");
        let mut heads = self.upstream.heads();
        assert_eq!(heads.len(), before + 1);
        (heads.pop().unwrap(), reply)
    }
}

fn set<'a>(names: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

fn carried(head: &Head) -> BTreeSet<String> {
    head.names().into_iter().filter(|name| !OWN.contains(&name.as_str())).collect()
}

#[tokio::test]
async fn without_an_exporter_every_header_of_the_table_reaches_the_third_hop_byte_for_byte() {
    let wire = Wire::new(2, &["--service-version", "v9"], &[]).await;
    // One after the other, so that nothing depends on a header beside it; two values each, one of them no text.
    for name in TABLE {
        let values: [&[u8]; 2] = [b"0-Mixed Case; =\"quoted\", \t~\xe9\xff", b"second"];
        let values = if name == "x-request-id" { [&b"First-Id"[..], b"second"] } else { values };
        let mut request = format!("GET /service1 HTTP/1.1\r\nhost: {}\r\n", wire.front().addr).into_bytes();
        for value in values {
            // Names are not case-sensitive.
            request.extend_from_slice(format!("{}: ", name.to_ascii_uppercase()).as_bytes());
            request.extend_from_slice(value);
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        let answered = exchange(wire.front().addr, &request).await;
        assert_eq!(answered.status, 200, "{name}");
        let head = wire.upstream.heads().pop().unwrap();
        let arrived: Vec<_> = head.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_slice()).collect();
        assert_eq!(arrived, values, "{name}");
        assert_eq!(carried(&head), set([name, "x-request-id"]), "and nothing else");
    }
}

#[tokio::test]
async fn without_an_exporter_all_formats_travel_together_untouched_whatever_they_say() {
    let wire = Wire::new(2, &["--service-version", "v9"], &[]).await;
    let w3c = format!("00-{T}-{S}-00");
    let single = format!("{T2}-{S2}-1-{P}");
    let headers = [
        ("x-request-id", "r-1"),
        ("traceparent", w3c.as_str()),
        ("tracestate", "a=1,b=2"),
        ("tracestate", "c=3"),
        ("baggage", "k=v;p=1"),
        ("baggage", "k2=v2"),
        ("b3", &single),
        ("x-b3-traceid", "NOT-HEX"),
        ("x-b3-spanid", S),
        ("x-b3-parentspanid", "0"),
        ("x-b3-sampled", "true"),
        ("x-b3-flags", "1"),
        ("x-ot-span-context", "a;b;c"),
        ("x-cloud-trace-context", "105445aa7843bc8bf206b12000100000/1;o=1"),
        ("grpc-trace-bin", "AAAA=="),
        ("x-datadog-trace-id", "1"),
        ("x-datadog-parent-id", "2"),
        ("x-datadog-sampling-priority", "-1"),
        ("x-datadog-tags", "_dd.p.dm=-1,_dd.p.tid=1"),
        ("x-datadog-origin", "synthetics"),
        ("x-amzn-trace-id", "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1"),
        ("uber-trace-id", "463ac35c9f6413ad48485a3953bb6124:a2fb4a1d1a96d312:0:1"),
        ("sw8", "1-a-b-3-c-d-e-f"),
        ("x-lane", "gray"),
    ];
    let (head, _) = wire.send(&headers).await;
    for (name, _) in headers {
        let sent: Vec<_> = headers.iter().filter(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()).collect();
        assert_eq!(head.all(name), sent, "{name}");
    }
    assert_eq!(carried(&head), set(TABLE));
    // Beside them a call has these five, and nothing else.
    assert_eq!(head.one("host"), Some(wire.upstream.addr.to_string()));
    assert_eq!(head.one("accept").as_deref(), Some("application/json"));
    assert_eq!(head.one("user-agent").as_deref(), Some("httpserver/v9"));
    assert_eq!(head.one("x-hop-count").as_deref(), Some("2"));
    assert_eq!(head.one("x-call-budget").as_deref(), Some("998"));
}

#[tokio::test]
async fn empty_headers_and_what_belongs_to_one_connection_are_never_carried() {
    let never = [
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-client-cert",
        "x-forwarded-host",
        "x-envoy-attempt-count",
        "x-envoy-external-address",
        "x-envoy-anything",
        "grpc-timeout",
        "grpc-encoding",
        "grpc-accept-encoding",
        "grpc-status-details-bin",
        "content-length",
        "host",
        "accept",
        "user-agent",
        "x-hop-count",
        "x-call-budget",
    ];
    let wire = Wire::new(1, &["--forward-header", &never.join(",")], &[]).await;
    let mut headers: Vec<_> = TABLE.iter().filter(|name| **name != "x-request-id").map(|name| (*name, "")).collect();
    headers.extend(
        never
            .iter()
            .filter(|name| !["content-length", "host", "accept", "upgrade", "te"].contains(name))
            .map(|name| (*name, "7")),
    );
    headers.extend([("te", "trailers"), ("content-length", "0"), ("authorization", "a"), ("cookie", "b"), ("x-mine", "c")]);
    headers.extend([
        ("connection", "x-lane"),
        ("content-type", "text/plain"),
        ("accept-encoding", "gzip"),
        ("x-real-ip", "10.0.0.1"),
    ]);
    let (head, _) = wire.send(&headers).await;
    assert_eq!(carried(&head), set(["x-request-id"]), "{head:?}");
    assert_eq!(head.one("x-hop-count").as_deref(), Some("8"));
    assert_eq!(head.one("x-call-budget").as_deref(), Some("6"));
    assert_eq!(head.one("user-agent").as_deref(), Some("httpserver/v1"));
}

#[tokio::test]
async fn further_headers_are_carried_when_told_and_lost_when_told() {
    let flags =
        ["--forward-header", "X-Tenant", "--forward-header", "x-user,authorization", "--drop-header", "traceparent,x-user"];
    let wire = Wire::new(1, &flags, &[]).await;
    let w3c = format!("00-{T}-{S}-01");
    let headers =
        [("x-tenant", "a"), ("x-tenant", "b"), ("x-user", "u"), ("authorization", "s"), ("traceparent", &*w3c), ("x-lane", "l")];
    let (head, reply) = wire.send(&headers).await;
    assert_eq!(carried(&head), set(["x-tenant", "authorization", "x-lane", "x-request-id"]));
    assert_eq!(head.all("x-tenant"), ["a", "b"]);
    assert_eq!(reply["received"]["traceparent"][0], w3c, "what arrived is shown all the same");
    let warned =
        wire.front().stderr().into_iter().any(|line| line.contains("--drop-header") && line.contains("traceparent,x-user"));
    assert!(warned, "the log says so at start: {:?}", wire.front().stderr());
}

#[tokio::test]
async fn there_may_be_any_number_of_further_headers() {
    let names: Vec<String> = (0..300).map(|n| format!("x-h{n}")).collect();
    let wire = Wire::new(1, &[], &[("FORWARD_HEADERS", &names.join(","))]).await;
    // A head has at most 100 fields.
    for part in names.chunks(75) {
        let sent: Vec<(&str, &str)> = part.iter().map(|name| (name.as_str(), "v")).collect();
        let (head, reply) = wire.send(&sent).await;
        for name in part {
            assert_eq!(head.all(name), ["v"], "{name}");
            assert_eq!(reply["received"][name], serde_json::json!(["v"]), "{name}");
        }
    }
}

#[tokio::test]
async fn a_dropped_header_is_not_written_by_a_hop_with_spans_either() {
    let sink = Sink::zipkin().await;
    let flags = ["--drop-header", "x-b3-traceid,x-b3-spanid,x-b3-parentspanid,x-b3-sampled,x-b3-flags,x-request-id"];
    let wire = Wire::new(1, &flags, &sink.env()).await;
    let (head, _) = wire.send(&b3_multi(T, S)).await;
    assert_eq!(carried(&head), set([]));
    let (head, _) = wire.send(&[]).await;
    assert_eq!(carried(&head), set(["traceparent"]));
}

#[tokio::test]
async fn a_request_id_that_is_unusable_is_replaced_for_all_hops_below() {
    let wire = Wire::new(2, &[], &[]).await;
    for bad in ["", "two words", "ü"] {
        let (head, reply) = wire.send(&[("x-request-id", bad)]).await;
        assert_eq!(head.one("x-request-id").unwrap(), reply["request_id"].as_str().unwrap(), "{bad}");
        assert_eq!(head.one("x-request-id").unwrap().len(), 36);
    }
}

fn b3_multi<'a>(trace: &'a str, span: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![("x-b3-traceid", trace), ("x-b3-spanid", span)]
}

/// What went over the wire, format by format: trace id, span id, and the format's own words for the decision.
#[derive(Debug, PartialEq)]
struct Formats {
    /// Trace id, span id, flags.
    w3c: Option<[String; 3]>,
    /// Trace id, span id, state, parent id.
    single: Option<Vec<String>>,
    /// Trace id, span id, parent id, and `sampled=…` or `flags=…`.
    multi: Option<[String; 4]>,
}

fn formats(head: &Head) -> Formats {
    let parts = |name: &str| head.one(name).map(|value| value.split('-').map(str::to_owned).collect::<Vec<_>>());
    let w3c = parts("traceparent").map(|parts| {
        assert!(parts.len() == 4 && parts[0] == "00", "{parts:?}");
        [parts[1].clone(), parts[2].clone(), parts[3].clone()]
    });
    let b3 = |part: &str| head.one(&format!("x-b3-{part}"));
    let multi = b3("traceid").map(|trace| {
        let decision = match (b3("sampled"), b3("flags")) {
            (Some(sampled), None) => format!("sampled={sampled}"),
            (None, Some(flags)) => format!("flags={flags}"),
            other => panic!("{other:?}"),
        };
        [trace, b3("spanid").unwrap(), b3("parentspanid").unwrap_or_default(), decision]
    });
    if multi.is_none() {
        assert!(!head.names().iter().any(|name| name.starts_with("x-b3-")), "{head:?}");
    }
    Formats { w3c, single: parts("b3"), multi }
}

/// A row of the contract's table, in one format in.
struct Row<'a> {
    what: &'a str,
    sent: &'a [(&'a str, &'a str)],
    /// The trace that goes on; `None` for a new one.
    trace: Option<&'a str>,
    /// The caller's span, which the hop's server span is below.
    parent: Option<&'a str>,
    /// W3C flags and B3's word; `1`, `0` or `d`.
    decision: &'a str,
    /// The formats out, of `w3c`, `single`, `multi`.
    out: &'a [&'a str],
}

async fn check(wire: &Wire, sink: &Sink, rows: &[Row<'_>]) {
    for row in rows {
        let what = row.what;
        let (head, reply) = wire.send(row.sent).await;
        let out = formats(&head);
        let present: Vec<_> = [("w3c", out.w3c.is_some()), ("single", out.single.is_some()), ("multi", out.multi.is_some())]
            .into_iter()
            .filter_map(|(name, there)| there.then_some(name))
            .collect();
        assert_eq!(present, row.out, "{what}: {head:?}");

        let trace = reply["trace_id"].as_str().unwrap();
        let server = reply["span_id"].as_str().unwrap();
        assert!(trace.len() == 32 && server.len() == 16, "{what}: {reply}");
        let wide = |id: &str| format!("{id:0>32}");
        match row.trace {
            Some(expected) => assert_eq!(trace, wide(expected), "{what}"),
            None => assert!(![wide(T), wide(T2)].contains(&trace.to_owned()), "{what}: a trace of its own"),
        }
        let short = row.trace.is_some_and(|trace| trace.len() == 16);
        let b3_trace = if short { &trace[16..] } else { trace };
        assert_eq!(reply["parent_span_id"].as_str(), row.parent, "{what}");
        assert_ne!(Some(server), row.parent, "{what}: its own span");
        let sampled = row.decision != "0";
        assert_eq!(reply["sampled"], sampled, "{what}");
        assert_eq!(reply["propagation"], "continue", "{what}");

        let mut written = BTreeSet::new();
        if let Some([w3c_trace, span, flags]) = &out.w3c {
            // The random flag goes on, and is set on an id of its own.
            let sent = row.sent.iter().find(|(name, _)| *name == "traceparent").and_then(|(_, value)| value.get(53..55));
            let is_random = |flags| u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & 2 != 0);
            let random = if row.trace.is_none() || sent.is_some_and(is_random) { 2 } else { 0 };
            assert_eq!((w3c_trace.as_str(), flags.as_str()), (trace, &*format!("{:02x}", u8::from(sampled) + random)), "{what}");
            written.insert(span.clone());
        }
        if let Some(single) = &out.single {
            let expected = [b3_trace, single[1].as_str(), row.decision, server];
            assert_eq!(single.iter().map(String::as_str).collect::<Vec<_>>(), expected, "{what}");
            written.insert(single[1].clone());
        }
        if let Some([multi_trace, span, parent, decision]) = &out.multi {
            assert_eq!((multi_trace.as_str(), parent.as_str()), (b3_trace, server), "{what}");
            let word = if row.decision == "d" { "flags=1".to_owned() } else { format!("sampled={}", row.decision) };
            assert_eq!(*decision, word, "{what}");
            written.insert(span.clone());
        }
        // All formats say the same, and it is the client span of this call.
        assert_eq!(written.len(), 1, "{what}: {out:?}");
        let client = written.first().unwrap();
        assert!(client != server && Some(client.as_str()) != row.parent, "{what}");

        let zipkin = if short { b3_trace } else { trace };
        if sampled {
            let spans: Vec<_> = crate::common::eventually(what, || async {
                let spans: Vec<_> = sink.spans().into_iter().filter(|span| span.id == *client || span.id == server).collect();
                (spans.len() == 2).then_some(spans)
            })
            .await;
            for span in spans {
                let parent = if span.kind == "SERVER" { row.parent } else { Some(server) };
                assert_eq!((span.trace_id.as_str(), span.parent.as_deref()), (zipkin, parent), "{what}");
                assert_eq!(span.debug, row.decision == "d", "{what}");
            }
        }
    }
    // What was not sampled is not exported: everything sampled after it has arrived above, or arrives now.
    let (_, reply) = wire.send(&[("x-lane", "last")]).await;
    sink.trace(reply["trace_id"].as_str().unwrap(), 2).await;
    let sampled = rows.iter().filter(|row| row.decision != "0").count();
    assert_eq!(sink.spans().len(), 2 * (sampled + 1));
}

#[tokio::test]
async fn with_an_exporter_every_row_of_the_table_holds_for_w3c() {
    let sink = Sink::zipkin().await;
    let wire = Wire::new(1, &[], &sink.env()).await;
    let sampled = format!("00-{T}-{S}-01");
    let unsampled = format!("00-{T}-{S}-00");
    let upper = format!("00-{}-{S}-01", T.to_uppercase());
    let upper_span = format!("00-{T}-{}-01", S.to_uppercase());
    let ff = format!("ff-{T}-{S}-01");
    let zero_trace = format!("00-{}-{S}-01", "0".repeat(32));
    let zero_span = format!("00-{T}-{}-01", "0".repeat(16));
    let future = format!("cc-{T}-{S}-01");
    let future_more = format!("01-{T}-{S}-01-what-comes-later");
    let longer = format!("00-{T}-{S}-01-more");
    let flags = format!("00-{T}-{S}-ff");
    let (random, random_unsampled) = (format!("00-{T}-{S}-03"), format!("00-{T}-{S}-02"));
    /// What it is, what is sent, and the decision that goes on if the trace does.
    type Case<'a> = (&'a str, Vec<(&'a str, &'a str)>, Option<&'a str>);
    let cases: [Case<'_>; 18] = [
        ("sampled", vec![("traceparent", &sampled)], Some("1")),
        ("unsampled", vec![("traceparent", &unsampled)], Some("0")),
        ("a version above 00", vec![("traceparent", &future)], Some("1")),
        ("a version above 00 with more", vec![("traceparent", &future_more)], Some("1")),
        ("unknown flags", vec![("traceparent", &flags)], Some("1")),
        ("random", vec![("traceparent", &random)], Some("1")),
        ("random and unsampled", vec![("traceparent", &random_unsampled)], Some("0")),
        ("an empty tracestate", vec![("traceparent", &sampled), ("tracestate", "")], Some("1")),
        // From here on there is nothing to continue.
        ("upper case", vec![("traceparent", &upper)], None),
        ("upper case span", vec![("traceparent", &upper_span)], None),
        ("version ff", vec![("traceparent", &ff)], None),
        ("zero trace id", vec![("traceparent", &zero_trace)], None),
        ("zero span id", vec![("traceparent", &zero_span)], None),
        ("version 00 with more", vec![("traceparent", &longer)], None),
        ("garbage", vec![("traceparent", "garbage")], None),
        ("empty", vec![("traceparent", "")], None),
        ("two of them", vec![("traceparent", &sampled), ("traceparent", &unsampled)], None),
        ("nothing", vec![], None),
    ];
    let rows: Vec<_> = cases
        .iter()
        .map(|(what, sent, continued)| match continued {
            Some(decision) => Row { what, sent, trace: Some(T), parent: Some(S), decision, out: &["w3c"] },
            None => Row { what, sent, trace: None, parent: None, decision: "1", out: &["w3c", "multi"] },
        })
        .collect();
    check(&wire, &sink, &rows).await;
}

#[tokio::test]
async fn with_an_exporter_every_row_of_the_table_holds_for_b3_multi() {
    let sink = Sink::zipkin().await;
    let wire = Wire::new(1, &[], &sink.env()).await;
    let (upper, upper_span) = (T.to_uppercase(), S.to_uppercase());
    let zeros = "0".repeat(32);
    let short = &T[16..];
    let ids = [("x-b3-traceid", T), ("x-b3-spanid", S)];
    let with = |more: &[(&'static str, &'static str)]| [&ids[..], more].concat();
    let (no, yes, debug) = (with(&[("x-b3-sampled", "0")]), with(&[("x-b3-sampled", "1")]), with(&[("x-b3-flags", "1")]));
    let both = with(&[("x-b3-flags", "1"), ("x-b3-sampled", "0")]);
    let (words_no, words_yes) = (with(&[("x-b3-sampled", "false")]), with(&[("x-b3-sampled", "true")]));
    let parent = with(&[("x-b3-parentspanid", P), ("x-b3-sampled", "1")]);
    let upper = [("x-b3-traceid", &*upper), ("x-b3-spanid", &*upper_span), ("x-b3-sampled", "1")];
    let short_ids = [("x-b3-traceid", short), ("x-b3-spanid", S), ("x-b3-sampled", "1")];
    let zero = [("x-b3-traceid", &*zeros), ("x-b3-spanid", S)];
    let row = |what, sent, decision| Row { what, sent, trace: Some(T), parent: Some(S), decision, out: &["multi"] };
    let new = |what, sent, decision| Row { what, sent, trace: None, parent: None, decision, out: &["w3c", "multi"] };
    let rows = [
        row("ids without a decision: the receiver decides", &ids, "1"),
        row("sampled", &yes, "1"),
        row("true", &words_yes, "1"),
        row("not sampled", &no, "0"),
        row("false", &words_no, "0"),
        row("debug", &debug, "d"),
        row("debug is stronger than not sampled", &both, "d"),
        row("a parent", &parent, "1"),
        row("upper case", &upper, "1"),
        Row { trace: Some(short), ..row("64 bits", &short_ids, "1") },
        new("not sampled alone", &[("x-b3-sampled", "0")], "0"),
        new("debug alone", &[("x-b3-flags", "1")], "d"),
        new("all zeros", &zero, "1"),
        new("garbage", &[("x-b3-traceid", "garbage"), ("x-b3-spanid", S)], "1"),
        new("no span id", &[("x-b3-traceid", T)], "1"),
    ];
    check(&wire, &sink, &rows).await;
}

#[tokio::test]
async fn with_an_exporter_every_row_of_the_table_holds_for_b3_single() {
    let sink = Sink::zipkin().await;
    let wire = Wire::new(1, &[], &sink.env()).await;
    let values = [
        ("ids without a decision: the receiver decides", format!("{T}-{S}"), "1"),
        ("sampled", format!("{T}-{S}-1"), "1"),
        ("a parent", format!("{T}-{S}-1-{P}"), "1"),
        ("not sampled", format!("{T}-{S}-0"), "0"),
        ("debug", format!("{T}-{S}-d"), "d"),
        ("upper case", format!("{}-{}-1", T.to_uppercase(), S.to_uppercase()), "1"),
        ("64 bits", format!("{}-{S}-1", &T[16..]), "1"),
        // Nothing that goes on: a trace of its own, and the single header because the request spoke it.
        ("not sampled alone", "0".to_owned(), "0"),
        ("debug alone", "d".to_owned(), "d"),
        ("sampled alone", "1".to_owned(), "1"),
        ("all zeros", format!("{}-{S}-1", "0".repeat(32)), "1"),
        ("garbage", "garbage".to_owned(), "1"),
        ("too much", format!("{T}-{S}-1-{P}-{P}"), "1"),
    ];
    let sent: Vec<_> = values.iter().map(|(_, value, _)| [("b3", value.as_str())]).collect();
    let mut rows = Vec::new();
    for (i, ((what, _, decision), sent)) in values.iter().zip(&sent).enumerate() {
        let trace = if *what == "64 bits" { &T[16..] } else { T };
        rows.push(match i {
            0..7 => Row { what, sent, trace: Some(trace), parent: Some(S), decision, out: &["single"] },
            _ => Row { what, sent, trace: None, parent: None, decision, out: &["w3c", "single", "multi"] },
        });
    }
    check(&wire, &sink, &rows).await;
}

#[tokio::test]
async fn of_formats_that_disagree_the_first_valid_in_the_configured_order_wins() {
    let w3c = format!("00-{T}-{S}-01");
    let single = format!("{T2}-{S2}-0");
    let bad = format!("ff-{T}-{S}-01");
    let multi = [("x-b3-traceid", T2), ("x-b3-spanid", S2), ("x-b3-sampled", "1"), ("x-b3-parentspanid", P)];
    let all = [&[("traceparent", &*w3c), ("b3", &*single)], &multi[..]].concat();
    let invalid_first = [&[("traceparent", &*bad)], &multi[..]].concat();
    let two = [("traceparent", &*w3c), ("b3", &*single)];
    let every: &[&str] = &["w3c", "single", "multi"];

    let sink = Sink::zipkin().await;
    let wire = Wire::new(1, &[], &sink.env()).await;
    let row = |what, sent, out| Row { what, sent, trace: Some(T), parent: Some(S), decision: "1", out };
    check(
        &wire,
        &sink,
        &[
            row("the default order is W3C first", &all, every),
            row("only what was spoken is written", &two, &["w3c", "single"]),
            Row { trace: Some(T2), parent: Some(S2), ..row("an invalid one is passed over", &invalid_first, &["w3c", "multi"]) },
        ],
    )
    .await;

    // A mesh that reports by Zipkin with B3: the caller's traceparent is stale.
    let sink = Sink::zipkin().await;
    let env = [&sink.env()[..], &[("OTEL_PROPAGATORS", "b3multi,b3,tracecontext,baggage")]].concat();
    let wire = Wire::new(1, &[], &env).await;
    let row = |what, sent, out| Row { what, sent, trace: Some(T2), parent: Some(S2), decision: "1", out };
    check(
        &wire,
        &sink,
        &[row("B3 multi first", &all, every), Row { decision: "0", ..row("then B3 single", &two, &["w3c", "single"]) }],
    )
    .await;

    // Formats that are not configured are removed, so that nothing stale travels on.
    let sink = Sink::zipkin().await;
    let env = [&sink.env()[..], &[("OTEL_PROPAGATORS", "b3multi")]].concat();
    let wire = Wire::new(1, &[], &env).await;
    let with_state = [&all[..], &[("tracestate", "a=1"), ("baggage", "k=v")]].concat();
    check(&wire, &sink, &[row("only B3 multi", &with_state, &["multi"])]).await;
    let (head, _) = wire.send(&with_state).await;
    assert!(head.one("tracestate").is_none() && head.one("baggage").is_none(), "{head:?}");
}

#[tokio::test]
async fn of_b3_either_form_is_read_and_the_configured_one_is_written() {
    let (single, other) = (format!("{T}-{S}-1"), format!("{T2}-{S2}-1"));
    let multi = [("x-b3-traceid", T), ("x-b3-spanid", S), ("x-b3-sampled", "1")];
    let (single, other) = (("b3", &*single), ("b3", &*other));
    let debug = [&multi[..2], &[("x-b3-flags", "1")]].concat();
    let disagree = [&[other], &multi[..]].concat();
    for (propagators, out, first) in [("b3", "single", T2), ("b3multi", "multi", T), ("tracecontext,baggage,b3", "single", T2)] {
        let sink = Sink::zipkin().await;
        let wire = Wire::new(1, &[], &[&sink.env()[..], &[("OTEL_PROPAGATORS", propagators)]].concat()).await;
        let out = [out];
        let row = |what, sent| Row { what, sent, trace: Some(T), parent: Some(S), decision: "1", out: &out };
        let parent = if first == T2 { S2 } else { S };
        check(
            &wire,
            &sink,
            &[
                row("several headers", &multi),
                row("one header", &[single]),
                Row { decision: "d", ..row("the debug flag", &debug) },
                Row { trace: Some(first), parent: Some(parent), ..row("the configured form first", &disagree) },
            ],
        )
        .await;
    }
    // A decision alone.
    let sink = Sink::zipkin().await;
    let wire = Wire::new(1, &[], &[&sink.env()[..], &[("OTEL_PROPAGATORS", "b3")]].concat()).await;
    let alone = Row { what: "alone", sent: &[("x-b3-sampled", "0")], trace: None, parent: None, decision: "0", out: &["single"] };
    check(&wire, &sink, &[alone]).await;
}

#[tokio::test]
async fn a_single_b3_is_only_written_to_a_request_that_spoke_it() {
    let sink = Sink::zipkin().await;
    let wire = Wire::new(1, &[], &sink.env()).await;
    // An empty header is no header: it would switch the whole mesh to this format.
    for sent in [
        &[][..],
        &[("b3", "")],
        &[("x-b3-traceid", T), ("x-b3-spanid", S)],
        &[("b3", ""), ("x-b3-traceid", T), ("x-b3-spanid", S)],
    ] {
        let (head, _) = wire.send(sent).await;
        assert_eq!(head.one("b3"), None, "{sent:?}");
    }
}

#[tokio::test]
async fn tracestate_goes_on_with_its_trace_and_only_when_it_is_valid() {
    let sink = Sink::zipkin().await;
    let wire = Wire::new(1, &[], &sink.env()).await;
    let w3c = format!("00-{T}-{S}-01");
    let single = format!("{T2}-{S2}-1");
    let members = |n: usize| (0..n).map(|i| format!("k{i}=v")).collect::<Vec<_>>().join(",");
    let (most, many, half) = (members(32), members(33), members(17));
    let valid = ("traceparent", w3c.as_str());
    for (what, sent, out) in [
        ("one", vec![valid, ("tracestate", "a=1,b=2")], vec!["a=1,b=2"]),
        ("two headers", vec![valid, ("tracestate", "a=1"), ("tracestate", "b=2")], vec!["a=1", "b=2"]),
        ("empty", vec![valid, ("tracestate", "")], vec![]),
        ("32 members", vec![valid, ("tracestate", &most)], vec![most.as_str()]),
        ("33 members", vec![valid, ("tracestate", &many)], vec![]),
        ("a tab in a value", vec![valid, ("tracestate", "a=1\t2")], vec![]),
        (
            "tenants, spaces around and empty members",
            vec![valid, ("tracestate", "t0_-*/@s=! ~ , ,a=/")],
            vec!["t0_-*/@s=! ~ , ,a=/"],
        ),
        ("no value", vec![valid, ("tracestate", "a=1,b")], vec![]),
        ("an empty value", vec![valid, ("tracestate", "a=1,b=")], vec![]),
        ("two equals signs", vec![valid, ("tracestate", "a=1=2")], vec![]),
        ("a key in upper case", vec![valid, ("tracestate", "a=1,B=2")], vec![]),
        ("a key twice", vec![valid, ("tracestate", "a=1,b=2,a=1")], vec![]),
        ("a key in two headers", vec![valid, ("tracestate", "a=1"), ("tracestate", "a=2")], vec![]),
        ("two tenants", vec![valid, ("tracestate", "a@b@c=1")], vec![]),
        ("malformed in the second header", vec![valid, ("tracestate", "a=1"), ("tracestate", "garbage")], vec![]),
        ("34 in two headers", vec![valid, ("tracestate", &half), ("tracestate", &half)], vec![]),
        ("without its traceparent", vec![("tracestate", "a=1")], vec![]),
        ("beside an invalid one", vec![("traceparent", "garbage"), ("tracestate", "a=1")], vec![]),
        ("of another trace", vec![("b3", &single), ("tracestate", "a=1")], vec![]),
    ] {
        let (head, _) = wire.send(&sent).await;
        assert_eq!(head.all("tracestate"), out, "{what}");
    }
}

#[tokio::test]
async fn what_belongs_to_other_tracers_is_carried_verbatim_by_a_hop_with_spans() {
    let sink = Sink::zipkin().await;
    let wire = Wire::new(1, &["--forward-header", "x-tenant"], &sink.env()).await;
    let others = [
        ("x-ot-span-context", "a;b"),
        ("x-cloud-trace-context", "105445aa7843bc8bf206b12000100000/1;o=1"),
        ("grpc-trace-bin", "AAAA=="),
        ("x-datadog-trace-id", "1"),
        ("x-datadog-parent-id", "2"),
        ("x-datadog-sampling-priority", "2"),
        ("x-datadog-tags", "_dd.p.dm=-1,_dd.p.tid=1"),
        ("x-datadog-origin", "synthetics"),
        ("x-amzn-trace-id", "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1"),
        ("uber-trace-id", "463ac35c9f6413ad48485a3953bb6124:a2fb4a1d1a96d312:0:1"),
        ("sw8", "1-x"),
        ("x-lane", "gray"),
        ("x-tenant", "t"),
        ("baggage", "a=b,c=d;e"),
        ("x-request-id", "r"),
    ];
    let (head, _) = wire.send(&others).await;
    for (name, value) in others {
        assert_eq!(head.all(name), [value], "{name}");
    }
    let own = ["traceparent", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled"];
    assert_eq!(carried(&head), set(others.into_iter().map(|(name, _)| name).chain(own)));
}

#[tokio::test]
async fn a_disabled_sdk_forwards_like_no_exporter() {
    let sink = Sink::zipkin().await;
    let env = [&sink.env()[..], &[("OTEL_SDK_DISABLED", "true")]].concat();
    let wire = Wire::new(1, &[], &env).await;
    let (head, reply) = wire.send(&[("x-b3-traceid", T), ("x-b3-spanid", S)]).await;
    assert_eq!((head.one("x-b3-spanid").as_deref(), &reply["propagation"]), (Some(S), &"forward".into()));
    assert_eq!((&reply["trace_id"], &reply["span_id"], &reply["sampled"]), (&T.into(), &S.into(), &serde_json::Value::Null));
}

#[tokio::test]
async fn samplers_decide_where_nobody_has() {
    let w3c = format!("00-{T}-{S}-01");
    for (sampler, arg, none, given) in [
        ("parentbased_always_off", "", false, true),
        ("always_off", "", false, false),
        ("always_on", "", true, true),
        ("parentbased_always_on", "", true, true),
        ("parentbased_traceidratio", "0", false, true),
        ("ParentBased_TraceIdRatio", "", true, true),
        ("traceidratio", "1", true, true),
        ("traceidratio", "0", false, false),
        ("traceidratio", "many", true, true),
    ] {
        let sink = Sink::zipkin().await;
        let env = [&sink.env()[..], &[("OTEL_TRACES_SAMPLER", sampler), ("OTEL_TRACES_SAMPLER_ARG", arg)]].concat();
        let wire = Wire::new(1, &[], &env).await;
        let (head, reply) = wire.send(&[]).await;
        assert_eq!(reply["sampled"], none, "{sampler}");
        assert_eq!(head.one("x-b3-sampled").as_deref(), Some(if none { "1" } else { "0" }), "{sampler}");
        let (head, reply) = wire.send(&[("traceparent", &w3c)]).await;
        assert_eq!(reply["sampled"], given, "{sampler}");
        assert!(head.one("traceparent").unwrap().ends_with(if given { "-01" } else { "-00" }), "{sampler}");
    }
}
