//! gRPC on the hop's own port: calls of the chain, their metadata, statuses, deadlines and limits, health and reflection.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request};
use prost::Message;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tonic::{Code, Status};

use crate::common::{Hop, Sink, Upstream, answer, chain_over, eventually};
use crate::conventions::judge;

#[allow(clippy::all, dead_code, unreachable_pub, rust_2018_idioms, reason = "generated")]
pub(crate) mod messages {
    include!("../../proto/httpserver/v1/generated/httpserver.v1.rs");
}

use messages::{CallRequest, Reply};

pub(crate) const CALL: &str = "/httpserver.v1.Chain/Call";
const TRACE: (&str, &str) = ("traceparent", "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01");

/// The answer to a call.
#[derive(Debug)]
struct Called {
    head: HeaderMap,
    message: Bytes,
    status: Status,
}

impl Called {
    fn reply(&self) -> Reply {
        assert_eq!(self.status.code(), Code::Ok, "{:?}", self.status);
        Reply::decode(self.message.clone()).unwrap()
    }

    /// The reply in the details of the status.
    fn detail(&self) -> Reply {
        #[derive(Clone, PartialEq, Message)]
        struct Details {
            #[prost(int32, tag = "1")]
            code: i32,
            #[prost(message, repeated, tag = "3")]
            details: Vec<Any>,
        }
        #[derive(Clone, PartialEq, Message)]
        struct Any {
            #[prost(string, tag = "1")]
            type_url: String,
            #[prost(bytes = "bytes", tag = "2")]
            value: Bytes,
        }
        let details = Details::decode(self.status.details()).unwrap();
        assert_eq!(details.code, self.status.code() as i32);
        assert_eq!(details.details[0].type_url, "type.googleapis.com/httpserver.v1.Reply");
        Reply::decode(details.details[0].value.clone()).unwrap()
    }
}

pub(crate) fn framed(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(message.encoded_len() as u32);
    message.encode(&mut bytes).unwrap();
    bytes.freeze()
}

/// Calls a method with a body on a connection of its own. `ends`: the request ends with its body.
async fn send(hop: &Hop, path: &str, metadata: &[(&str, &str)], body: Bytes, ends: bool) -> Called {
    let stream = TcpStream::connect(hop.addr).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::post(format!("http://{}{path}", hop.addr)).header("te", "trailers");
    if !metadata.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/grpc");
    }
    for (name, value) in metadata {
        request = request.header(*name, *value);
    }
    let (response, mut sending) = client.send_request(request.body(()).unwrap(), false).unwrap();
    sending.send_data(body, ends).unwrap();
    let (head, mut body) = response.await.unwrap().into_parts();
    assert_eq!((head.status.as_u16(), head.headers["content-type"].as_bytes()), (200, &b"application/grpc"[..]));
    let mut message = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        message.extend_from_slice(&data);
        if !ends {
            return Called { head: head.headers, message: message.freeze(), status: Status::ok("") };
        }
    }
    let trailers = body.trailers().await.unwrap();
    let status = trailers.as_ref().and_then(Status::from_header_map).or_else(|| Status::from_header_map(&head.headers));
    let message = message.freeze();
    Called {
        head: head.headers,
        message: if message.len() > 5 { message.slice(5..) } else { Bytes::new() },
        status: status.unwrap(),
    }
}

async fn call(hop: &Hop, metadata: &[(&str, &str)]) -> Called {
    send(hop, CALL, metadata, framed(&CallRequest { service: Some(1), ..CallRequest::default() }), true).await
}

/// `service1` to `service<n>`, each calling the next over gRPC.
fn grpc_chain(n: usize, flags: &[&str], env: &[(&str, &str)]) -> Vec<Hop> {
    chain_over("grpc", n, flags, env)
}

#[tokio::test]
async fn a_chain_that_changes_its_protocol_at_every_seam_is_one_chain() {
    let last = Hop::start(&["--name", "service4"], &[]);
    let three = Hop::start(&["--name", "service3", "--upstream", &last.url("")], &[]);
    let two = Hop::start(&["--name", "service2", "--upstream", &format!("grpc://{}", three.addr)], &[]);
    let one = Hop::start(&["--name", "service1", "--upstream", &format!("h2c://{}", two.addr)], &[]);
    let trace_bin = ("grpc-trace-bin", "AABGOsNcn2QTrUhIWjlTu2EkAaL7Sh0altMSAgE");
    let (status, reply) = one.json("/service1", &[TRACE, trace_bin, ("x-lane", "gray"), ("x-request-id", "r-1")]).await;
    assert_eq!(status, 200, "{reply}");
    let mut hop = &reply;
    for (n, protocol) in ["http/1.1", "http/2", "grpc", "http/1.1"].into_iter().enumerate() {
        assert_eq!((&hop["service"], &hop["protocol"]), (&json!(format!("service{}", n + 1)), &json!(protocol)), "{reply}");
        assert_eq!(hop["path"], if protocol == "grpc" { CALL.to_owned() } else { format!("/service{}", n + 1) });
        let received =
            json!({"x-request-id": ["r-1"], "traceparent": [TRACE.1], "grpc-trace-bin": [trace_bin.1], "x-lane": ["gray"]});
        assert_eq!(hop["received"], received, "{n}");
        if n < 3 {
            let call = &hop["upstreams"][0];
            assert_eq!((&call["sent"], &call["status"], &call["error"]), (&received, &json!(200), &json!(null)));
            hop = &call["reply"];
        }
    }
    assert_eq!(reply["upstreams"][0]["reply"]["upstreams"][0]["url"], format!("grpc://{}/service3", three.addr));
}

#[tokio::test]
async fn a_call_answers_with_the_reply_as_the_proto_mirrors_it() {
    let hops = grpc_chain(2, &["--forward-body"], &[]);
    let request = CallRequest { service: Some(1), body: Bytes::from_static(b"twelve bytes"), response_bytes: 10_000 };
    let called =
        send(&hops[0], CALL, &[TRACE, ("x-request-id", "r-2"), ("authorization", "Bearer x")], framed(&request), true).await;
    assert!((9_990..=10_000).contains(&called.message.len()), "{}", called.message.len());
    let reply = called.reply();
    assert_eq!((&*reply.service, &*reply.path, reply.status, &*reply.request_id), ("service1", CALL, 200, "r-2"));
    assert_eq!((reply.protocol.as_deref(), reply.request_bytes), (Some("grpc"), 12));
    assert_eq!(reply.trace_id.as_deref(), Some("463ac35c9f6413ad48485a3953bb6124"));
    for (name, value) in
        [("x-request-id", "r-2"), ("version", "v1"), ("x-content-type-options", "nosniff"), ("traceresponse", TRACE.1)]
    {
        assert_eq!(called.head[name], value);
    }
    let upstream = &reply.upstreams[0];
    assert_eq!((upstream.url.as_str(), upstream.status), (&*format!("grpc://{}/service2", hops[1].addr), Some(200)));
    let below = Reply::decode(upstream.reply.clone().unwrap()).unwrap();
    assert_eq!((&*below.service, below.request_bytes, below.padding.len()), ("service2", 12, 0));
    let line = hops[0].access_line("r-2").await;
    assert!(line.contains("\"POST /httpserver.v1.Chain/Call\" 200") && line.contains("protocol=grpc grpc=OK"), "{line}");
}

#[tokio::test]
async fn a_long_chain_is_whole_over_grpc() {
    let hops = grpc_chain(50, &["--max-hops", "60", "--upstream-timeout", "1m"], &[]);
    let mut reply = call(&hops[0], &[]).await.reply();
    for n in 1..50 {
        assert_eq!(reply.service, format!("service{n}"));
        reply = Reply::decode(reply.upstreams[0].reply.clone().unwrap()).unwrap();
    }
    assert_eq!((&*reply.service, reply.upstreams.len()), ("service50", 0));
}

#[tokio::test]
async fn a_call_that_fails_has_its_tree_in_the_details_of_its_status() {
    // `--fault` of the last hop; the statuses above follow the chain's own rule.
    for (fault, last, first) in [
        ("abort=503@100%", (Code::Unavailable, 503), (Code::Unavailable, 502)),
        ("abort=504@100%", (Code::DeadlineExceeded, 504), (Code::DeadlineExceeded, 504)),
        ("abort=429@100%", (Code::ResourceExhausted, 429), (Code::Unavailable, 502)),
        ("abort=418@100%", (Code::Unknown, 418), (Code::Unavailable, 502)),
        ("abort=508@100%", (Code::FailedPrecondition, 508), (Code::FailedPrecondition, 508)),
    ] {
        let last_hop = Hop::start(&["--name", "service2", "--fault", fault], &[]);
        let front = Hop::start(&["--upstream", &format!("grpc://{}", last_hop.addr)], &[]);
        let called = call(&last_hop, &[]).await;
        let reply = called.detail();
        assert_eq!((called.status.code(), reply.status), last, "{fault}");
        assert_eq!(reply.injected.unwrap().abort_status, Some(last.1));
        assert!(called.status.message().starts_with("injected: abort"), "{:?}", called.status);
        let called = call(&front, &[]).await;
        let reply = called.detail();
        assert_eq!((called.status.code(), reply.status), first, "{fault}");
        let below = &reply.upstreams[0];
        assert_eq!((below.status, below.protocol.as_deref()), (Some(last.1), Some("grpc")), "{fault}");
        assert!(below.error.as_ref().unwrap().contains("injected: abort"), "{below:?}");
        assert_eq!(Reply::decode(below.reply.clone().unwrap()).unwrap().status, last.1);
        // The same from the front over HTTP.
        let (status, reply) = front.json("/service1", &[]).await;
        assert_eq!((u32::from(status), &reply["upstreams"][0]["reply"]["status"]), (first.1, &json!(last.1)));
    }
}

#[tokio::test]
async fn the_broken_hop_is_seen_from_the_front_of_a_long_chain_that_is_shortened() {
    let mut hops = grpc_chain(20, &["--max-hops", "30"], &[]);
    hops[19].kill();
    let called = call(&hops[0], &[]).await;
    assert_eq!(called.status.code(), Code::Unavailable);
    let (mut reply, mut depth) = (called.detail(), 1);
    while let Some(below) = reply.upstreams[0].reply.clone() {
        (reply, depth) = (Reply::decode(below).unwrap(), depth + 1);
    }
    assert!((3..19).contains(&depth), "{depth}");
    assert!(reply.upstreams[0].error.as_ref().unwrap().contains("left out"), "{reply:?}");
}

/// A next hop that answers every call with this message, OK.
async fn answering(message: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("grpc://{}", listener.local_addr().unwrap());
    let framed = Bytes::from([&[0], &u32::try_from(message.len()).unwrap().to_be_bytes()[..], &message].concat());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let framed = framed.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                    let mut stream = respond.send_response(head, false).unwrap();
                    stream.send_data(framed.clone(), false).unwrap();
                    stream.send_trailers(HeaderMap::from_iter([("grpc-status".parse().unwrap(), 0.into())])).unwrap();
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn what_fits_over_http_fits_over_grpc() {
    // Around a body and around an answer a message has its own bytes.
    let last = Hop::start(&["--name", "service2", "--response-size", "1MiB"], &[]);
    let upstream = format!("grpc://{}", last.addr);
    let padding = Hop::start(&["--upstream", &upstream, "--request-size", "64KiB"], &[]);
    let (status, reply) = padding.json("/service1", &[]).await;
    assert_eq!((status, &reply["upstreams"][0]["reply"]["request_bytes"]), (200, &json!(64 << 10)), "{reply}");
    let passing = Hop::start(&["--upstream", &upstream, "--forward-body"], &[]);
    let request = CallRequest { body: Bytes::from(vec![b'x'; 64 << 10]), ..CallRequest::default() };
    let reply = send(&passing, CALL, &[], framed(&request), true).await.reply();
    let below = Reply::decode(reply.upstreams[0].reply.clone().unwrap()).unwrap();
    assert_eq!((below.request_bytes, below.padding.len()), (64 << 10, 0));
}

#[tokio::test]
async fn a_wide_tree_of_a_failed_call_is_shortened_and_marked() {
    let leaf = Hop::start(&["--fault", "abort=503"], &[]);
    let upstreams = vec![format!("grpc://{}", leaf.addr); 100].join(",");
    let wide = Hop::start(&[], &[("UPSTREAM", &upstreams)]);
    let called = call(&wide, &[("baggage", &"a".repeat(9000))]).await;
    let reply = called.detail();
    assert_eq!((called.status.code(), reply.status), (Code::Unavailable, 502));
    let last = reply.upstreams.last().unwrap().error.as_ref().unwrap();
    assert!(last.contains(&format!("{} more calls are left out", 100 - reply.upstreams.len())), "{last}");
    let above = Hop::start(&["--upstream", &format!("grpc://{}", wide.addr)], &[]);
    let (_, reply) = above.json("/service1", &[]).await;
    assert_eq!((&reply["upstreams"][0]["status"], &reply["upstreams"][0]["reply"]["status"]), (&json!(502), &json!(502)));
}

#[tokio::test]
async fn a_message_that_would_become_huge_is_refused_before_it_is_read() {
    let calls = |count| {
        let mut message = Reply { propagation: "forward".to_owned(), ..Reply::default() }.encode_to_vec();
        // A call without a field: three bytes, and hundreds once it is read.
        message.extend(b"\xd2\x01\0".repeat(count));
        message
    };
    let hop = Hop::start(&["--upstream", &answering(calls(1000)).await], &[]);
    let (status, reply) = hop.json("/service1", &[]).await;
    assert_eq!((status, reply["upstreams"][0]["reply"]["upstreams"].as_array().map(Vec::len)), (200, Some(1000)));
    let hop = Hop::start(&["--upstream", &answering(calls(340_000)).await], &[]);
    hop.get("/service1?format=json", &[]).await.assert_problem(503);
    assert_eq!(call(&hop, &[]).await.status.code(), Code::Unavailable);
    let shed = hop.metrics().await.sum("httpserver_requests_shed_total", &[("reason", "upstream_answer")]);
    assert_eq!(shed, 2.0);
}

#[tokio::test]
async fn a_loop_and_an_unreachable_hop_have_their_codes() {
    let looping = Hop::start(&["--max-hops", "1"], &[]);
    let called = call(&looping, &[("x-hop-count", "1")]).await;
    assert_eq!(called.status.code(), Code::FailedPrecondition);
    assert!(called.status.message().contains("loop"), "{:?}", called.status);
    let above = Hop::start(&["--upstream", &format!("grpc://{}", looping.addr)], &[]);
    assert_eq!(above.json("/service1", &[]).await.0, 508, "the details say that it is a loop");
    let gone = Hop::start(&["--upstream", "grpc://127.0.0.1:1"], &[]);
    assert_eq!(call(&gone, &[]).await.detail().status, 502);
    // A server that speaks no gRPC, and one that is no HTTP/2.
    let text = Upstream::answering(answer("200 OK", "", "hello")).await;
    let odd = Hop::start(&["--upstream", &text.url().replace("http", "grpc")], &[]);
    let (status, reply) = odd.json("/service1", &[]).await;
    assert_eq!((status, &reply["upstreams"][0]["reply"]), (502, &json!(null)), "{reply}");
}

#[tokio::test]
async fn deadlines_are_obeyed_and_passed_on() {
    let slow = Hop::start(&["--name", "service2", "--latency", "1h"], &[]);
    let front = Hop::start(&["--upstream", &format!("grpc://{}", slow.addr), "--upstream-timeout", "1h"], &[]);
    let called = call(&front, &[("grpc-timeout", "200m")]).await;
    assert_eq!(called.status.code(), Code::DeadlineExceeded, "{:?}", called.status);
    let called = call(&slow, &[("grpc-timeout", "200000u")]).await;
    assert_eq!(called.status.code(), Code::DeadlineExceeded, "{:?}", called.status);
    // What is left of --upstream-timeout is told, so the hop below ends its own wait.
    let short = Hop::start(&["--upstream", &format!("grpc://{}", slow.addr), "--upstream-timeout", "300ms"], &[]);
    assert_eq!(short.json("/service1", &[("x-request-id", "r-deadline")]).await.0, 504);
    let line = slow.access_line("r-deadline").await;
    assert!(line.contains("grpc=DEADLINE_EXCEEDED") || line.contains("grpc=CANCELLED"), "{line}");
}

#[tokio::test]
async fn what_is_refused_is_refused_with_a_status() {
    let hop = Hop::start(&["--max-concurrency", "1", "--latency", "1h"], &[]);
    let quick = Hop::start(&[], &[]);
    let large = CallRequest { body: Bytes::from(vec![b'x'; 70_000]), ..CallRequest::default() };
    for (path, body, code) in [
        ("/httpserver.v1.Chain/Other", framed(&CallRequest::default()), Code::Unimplemented),
        ("/other.Service/Call", framed(&CallRequest::default()), Code::Unimplemented),
        ("/service1", framed(&CallRequest::default()), Code::Unimplemented),
        ("/hello/service1", framed(&CallRequest::default()), Code::Unimplemented),
        (CALL, framed(&large), Code::ResourceExhausted),
        (CALL, [framed(&CallRequest::default()), framed(&CallRequest::default())].concat().into(), Code::Unimplemented),
        (CALL, framed(&CallRequest { service: Some(10_000), ..CallRequest::default() }), Code::InvalidArgument),
        (CALL, framed(&CallRequest { response_bytes: 2 << 20, ..CallRequest::default() }), Code::InvalidArgument),
        (CALL, Bytes::from_static(b"\0\0\0\0\x02\xff\xff"), Code::Internal),
    ] {
        let called = send(&quick, path, &[], body, true).await;
        assert_eq!(called.status.code(), code, "{path}: {:?}", called.status);
        assert!(called.head.contains_key("x-request-id"));
    }
    // Before the caller has ended its side of the stream.
    let aborting = Hop::start(&["--fault", "abort=503"], &[]);
    for (hop, path, body, code) in [
        (&quick, "/other.Service/Call", framed(&CallRequest::default()), Code::Unimplemented),
        (&quick, "/service1", framed(&CallRequest::default()), Code::Unimplemented),
        (&quick, "/metrics", framed(&CallRequest::default()), Code::Unimplemented),
        (&quick, CALL, Bytes::from_static(b"\0\xff\xff\xff\xff"), Code::ResourceExhausted),
        (&aborting, CALL, framed(&CallRequest { service: Some(7), ..CallRequest::default() }), Code::Unavailable),
    ] {
        let called = send(hop, path, &[], body, false).await;
        assert_eq!(called.status.code(), code, "{path}: {:?}", called.status);
    }
    // The largest body, and a deadline that has passed.
    let largest = CallRequest { body: Bytes::from(vec![b'x'; 64 << 10]), service: Some(9999), response_bytes: 1 << 20 };
    let reply = send(&quick, CALL, &[], framed(&largest), true).await.reply();
    assert_eq!(reply.request_bytes, 64 << 10);
    let larger = CallRequest { body: Bytes::from(vec![b'x'; (64 << 10) + 1]), ..CallRequest::default() };
    assert_eq!(send(&quick, CALL, &[], framed(&larger), true).await.status.code(), Code::ResourceExhausted);
    for passed in ["0S", "1n"] {
        assert_eq!(call(&quick, &[("grpc-timeout", passed)]).await.status.code(), Code::DeadlineExceeded, "{passed}");
    }
    let busy = call(&hop, &[("grpc-timeout", "1H")]);
    let shed = async {
        eventually("the only place is taken", || async {
            (hop.metrics().await.sum("http_server_active_requests", &[("http_request_method", "POST")]) >= 1.0).then_some(())
        })
        .await;
        let open = send(&hop, CALL, &[], framed(&CallRequest::default()), false).await;
        assert_eq!(open.status.code(), Code::Unavailable, "{:?}", open.status);
        call(&hop, &[]).await
    };
    let shed = tokio::select! { _ = busy => panic!("it waits an hour"), shed = shed => shed };
    assert_eq!(shed.status.code(), Code::Unavailable, "{:?}", shed.status);
    // HTTP at a method of gRPC.
    quick.get(CALL, &[]).await.assert_problem(405);
    quick.request("POST", CALL, &[("content-type", "application/grpc"), ("content-length", "0")]).await.assert_problem(415);
}

#[tokio::test]
async fn health_is_readiness_and_reflection_can_be_turned_off() {
    let hop = Hop::start(&["--fault", "abort=503@100%", "--max-concurrency", "1"], &[]);
    let check = |service: &'static [u8]| send(&hop, "/grpc.health.v1.Health/Check", &[], Bytes::from_static(service), true);
    let serving = &b"\x08\x01"[..];
    assert_eq!(&check(b"\0\0\0\0\0").await.message[..], serving);
    assert_eq!(&check(b"\0\0\0\0\x15\x0a\x13httpserver.v1.Chain").await.message[..], serving);
    assert_eq!(check(b"\0\0\0\0\x03\x0a\x01x").await.status.code(), Code::NotFound);
    for version in ["v1", "v1alpha"] {
        let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
        // `list_services`, on a stream that stays open as grpcurl keeps it.
        let listed = send(&hop, &path, &[], Bytes::from_static(b"\0\0\0\0\x02\x3a\0"), false).await;
        let text = String::from_utf8_lossy(&listed.message).into_owned();
        assert!(text.contains("httpserver.v1.Chain") && text.contains("grpc.health.v1.Health"), "{text}");
        let off = Hop::start(&["--grpc-reflection", "off"], &[]);
        assert_eq!(
            send(&off, &path, &[], Bytes::from_static(b"\0\0\0\0\x02\x3a\0"), true).await.status.code(),
            Code::Unimplemented
        );
    }
    let watch = send(&hop, "/grpc.health.v1.Health/Watch", &[], Bytes::from_static(b"\0\0\0\0\0"), true);
    let stop = async {
        hop.signal("TERM");
        eventually("health says that it drains", || async {
            (check(b"\0\0\0\0\0").await.message[..] == b"\x08\x02"[..]).then_some(())
        })
        .await;
    };
    let (watched, ()) = tokio::join!(watch, stop);
    assert_eq!(watched.status.code(), Code::Ok, "the stream ends with the hop");
    assert!(watched.message.ends_with(b"\x08\x02"), "{:?}", watched.message);
}

#[tokio::test]
async fn spans_and_metrics_follow_the_conventions_for_rpc() {
    let sink = Sink::zipkin().await;
    let hops = grpc_chain(2, &[], &sink.env());
    let reply = call(&hops[0], &[]).await.reply();
    let spans = sink.trace(reply.trace_id.as_deref().unwrap(), 3).await;
    for span in &spans {
        assert_eq!(span.name.to_lowercase(), "httpserver.v1.chain/call", "{span:?}");
        let tag = |name: &str| span.tags.get(name).map(String::as_str);
        assert_eq!(tag("rpc.system.name"), Some("grpc"));
        assert_eq!(tag("rpc.method"), Some("httpserver.v1.Chain/Call"));
        assert_eq!(tag("rpc.response.status_code"), Some("OK"));
        assert!(tag("server.address").is_some() && tag("server.port").is_some(), "{span:?}");
        assert!(!span.tags.keys().any(|name| name.starts_with("http.") || name.starts_with("url.")), "{span:?}");
    }
    let client = spans.iter().find(|span| span.kind == "CLIENT").unwrap();
    let server = spans.iter().find(|span| span.service == "service2").unwrap();
    assert_eq!(server.parent.as_ref(), Some(&client.id));
    let labels = [("rpc_method", "httpserver.v1.Chain/Call"), ("rpc_response_status_code", "OK"), ("rpc_system_name", "grpc")];
    eventually("the call is counted", || async {
        let samples = hops[0].metrics().await;
        let counted = |side: &str| samples.sum(&format!("rpc_{side}_call_duration_seconds_count"), &labels) == 1.0;
        (counted("server") && counted("client")).then_some(())
    })
    .await;
    assert_eq!(
        hops[0].metrics().await.sum("http_server_request_duration_seconds_count", &[("http_request_method", "POST")]),
        0.0
    );
}

/// The attributes of RPC spans that a successful call of a known method does not have.
const CONDITIONAL: [&str; 2] = ["error.type", "rpc.method_original"];

#[tokio::test]
async fn spans_of_rpc_have_what_the_conventions_ask_for_and_of_an_unknown_method_the_original() {
    let sink = Sink::otlp().await;
    let hops = grpc_chain(2, &[], &sink.env());
    let reply = call(&hops[0], &[]).await.reply();
    for span in sink.trace(reply.trace_id.as_deref().unwrap(), 3).await {
        judge(&span, |name| !CONDITIONAL.contains(&name));
    }
    assert_eq!(send(&hops[0], "/no.such.Svc/Meth", &[], Bytes::new(), true).await.status.code(), Code::Unimplemented);
    let unknown = eventually("its span arrives", || async { sink.spans().into_iter().find(|span| span.name == "grpc") }).await;
    judge(&unknown, |_| true);
    let seen = (&*unknown.attributes["rpc.method"], &*unknown.attributes["rpc.method_original"], unknown.failed);
    assert_eq!(seen, ("_OTHER", "no.such.Svc/Meth", true), "UNIMPLEMENTED is a server's failure");
}

#[tokio::test]
async fn a_call_that_its_client_cancels_is_no_failure_of_the_server() {
    let sink = Sink::otlp().await;
    let slow = Hop::start(&["--latency", "1h"], &sink.env());
    let stream = TcpStream::connect(slow.addr).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("http://{}{CALL}", slow.addr)).header("content-type", "application/grpc");
    let (_response, mut sending) = client.send_request(request.body(()).unwrap(), false).unwrap();
    sending.send_data(framed(&CallRequest::default()), true).unwrap();
    let in_flight = || async { slow.metrics().await.sum("http_server_active_requests", &[("http_request_method", "POST")]) };
    eventually("the call is under way", || async { (in_flight().await == 1.0).then_some(()) }).await;
    sending.send_reset(h2::Reason::CANCEL);
    let span = eventually("its span arrives", || async { sink.spans().pop() }).await;
    judge(&span, |name| !CONDITIONAL.contains(&name));
    assert_eq!((&*span.attributes["rpc.response.status_code"], span.failed), ("CANCELLED", false), "{span:#?}");
    let labels = [("rpc_response_status_code", "CANCELLED"), ("error_type", "")];
    assert_eq!(slow.metrics().await.sum("rpc_server_call_duration_seconds_count", &labels), 1.0);
}
