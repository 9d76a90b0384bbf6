//! Spans against OpenTelemetry's semantic conventions: `semconv.txt` has the attributes and their requirement levels, made from
//! the published registry by `scripts/semconv-table.py`. Nothing is listed here but the conditions.

use std::collections::BTreeMap;
use std::sync::Mutex;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::common::http2::{self, Http2};
use crate::common::{Act, Hop, Sink, Span, Upstream, answer, eventually, exchange};

const T: &str = "463ac35c9f6413ad48485a3953bb6124";
const S: &str = "a2fb4a1d1a96d312";

/// The attributes of a group and their levels.
pub(crate) fn table(group: &str) -> BTreeMap<&'static str, &'static str> {
    let line = |line: &'static str| {
        let mut parts = line.split(' ');
        (parts.next() == Some(group)).then(|| parts.next().zip(parts.next())).flatten()
    };
    let table: BTreeMap<_, _> = include_str!("semconv.txt").lines().filter_map(line).collect();
    assert!(!table.is_empty(), "{group}");
    table
}

/// What the hop adds to the conventions; those of HTTP that a call of gRPC has, too, are among them.
const OWN: [&str; 6] =
    ["request.id", "url.path", "rpc.system.name", "client.address", "network.protocol.version", "user_agent.original"];

/// Holds the attributes of a span to its table. `given` says of an attribute that is required on a condition, or recommended,
/// whether its condition holds.
pub(crate) fn judge(span: &Span, given: impl Fn(&str) -> bool) {
    let protocol = if span.attributes.contains_key("rpc.system.name") { "rpc.grpc.call" } else { "http" };
    let known = table(&format!("span.{protocol}.{}", span.kind.to_lowercase()));
    for (name, level) in &known {
        let expected = match *level {
            "required" => true,
            "opt_in" => continue,
            _ => given(name),
        };
        assert_eq!(span.attributes.contains_key(*name), expected, "{level} {name}: {span:#?}");
    }
    for name in span.attributes.keys() {
        assert!(known.contains_key(name.as_str()) || OWN.contains(&name.as_str()), "{name} is not of the conventions");
    }
    for group in ["entity.service", "entity.service.instance", "entity.telemetry.sdk"] {
        for (name, level) in table(group) {
            // How critical a service is nobody has said.
            let expected = level == "required" || name == "service.version";
            assert_eq!(span.resource.contains_key(name), expected, "{level} {name}: {:#?}", span.resource);
        }
    }
}

/// A span's attribute; empty when it is not there.
fn of<'a>(span: &'a Span, name: &str) -> &'a str {
    span.attributes.get(name).map_or("", String::as_str)
}

async fn only(sink: &Sink, kind: &str) -> Span {
    eventually("the span arrives", || async { sink.spans().into_iter().find(|span| span.kind == kind) }).await
}

#[tokio::test]
async fn the_spans_of_a_call_have_what_the_conventions_ask_for() {
    let sink = Sink::otlp().await;
    let last = Hop::start(&["--name", "last"], &[]);
    let url = last.url("/service2?key=s3cret&flag");
    let front = Hop::start(&["--name", "front", "--upstream", &url], &sink.env());
    let traceparent = format!("00-{T}-{S}-01");
    let headers = [
        ("user-agent", "test/1"),
        ("x-real-ip", "10.0.0.7"),
        ("traceparent", &traceparent),
        ("tracestate", "a=1, b=2"),
        ("tracestate", "c=3"),
    ];
    assert_eq!(front.json("/service1?token=s3cret&x=&y", &headers).await.0, 200);
    let (server, client) = (only(&sink, "SERVER").await, only(&sink, "CLIENT").await);
    let no_condition = ["error.type", "http.request.method_original", "network.protocol.name", "http.request.resend_count"];
    for span in [&server, &client] {
        judge(span, |name| !no_condition.contains(&name));
        assert_eq!(span.trace_state, "a=1, b=2,c=3", "as it is carried");
        assert!(!format!("{span:?}").contains("s3cret"), "{span:#?}");
        assert_eq!((of(span, "network.protocol.version"), of(span, "network.peer.address")), ("1.1", "127.0.0.1"));
    }
    assert_eq!(of(&server, "url.query"), "token=REDACTED&x=REDACTED&y");
    assert_eq!((of(&server, "url.scheme"), of(&server, "user_agent.original")), ("http", "test/1"));
    assert_eq!((of(&server, "client.address"), of(&server, "server.port")), ("10.0.0.7", &*front.addr.port().to_string()));
    assert!(of(&server, "network.peer.port").parse::<u16>().unwrap() > 0);
    assert_eq!(of(&client, "url.full"), last.url("/service2?key=REDACTED&flag"));
    assert_eq!(
        (of(&client, "server.port"), of(&client, "network.peer.port")),
        (of(&client, "network.peer.port"), &*last.addr.port().to_string())
    );
    // Only the parent of a server span that has one is elsewhere.
    assert_eq!((server.flags, client.flags), (0x301, 0x101));
    assert!(!server.failed && !client.failed);
}

#[tokio::test]
async fn spans_of_what_fails_have_a_status_and_their_conditional_attributes() {
    let sink = Sink::otlp().await;
    let upstream = Upstream::answering(answer("500 Oops", "", "")).await;
    let front = Hop::start(&["--upstream", &upstream.url()], &sink.env());
    assert_eq!(front.json("/service1", &[]).await.0, 502);
    let absent = [
        "http.request.method_original",
        "network.protocol.name",
        "http.request.resend_count",
        "url.query",
        "user_agent.original",
    ];
    for kind in ["SERVER", "CLIENT"] {
        let span = only(&sink, kind).await;
        judge(&span, |name| !absent.contains(&name));
        assert!(span.failed, "{span:#?}");
    }
    let server = only(&sink, "SERVER").await;
    assert_eq!((of(&server, "error.type"), server.flags), ("502", 0x103), "a root has no remote parent; its trace id is random");
}

#[tokio::test]
async fn a_method_that_is_not_known_and_a_route_that_is_none_have_their_form() {
    let sink = Sink::otlp().await;
    let hop = Hop::start(&[], &sink.env());
    hop.request("BREW", "/nothing", &[]).await;
    let span = only(&sink, "SERVER").await;
    let absent = ["http.route", "network.protocol.name", "url.query", "user_agent.original", "error.type"];
    judge(&span, |name| !absent.contains(&name));
    assert_eq!((of(&span, "http.request.method"), of(&span, "http.request.method_original")), ("_OTHER", "BREW"));
    assert_eq!((span.name.as_str(), span.failed), ("HTTP", false), "a caller's mistake");
}

#[tokio::test]
async fn server_address_and_port_are_of_the_request_as_its_client_made_it() {
    let sink = Sink::otlp().await;
    let hop = Hop::start(&[], &sink.env());
    for (target, host, more, address, port, scheme) in [
        ("/hello/1", "a.example", "", "a.example", "80", "http"),
        ("/hello/2", "a.example:8443", "x-forwarded-proto: HTTPS\r\n", "a.example", "8443", "https"),
        ("/hello/3", "a.example", "x-forwarded-proto: https\r\n", "a.example", "443", "https"),
        ("/hello/4", "[::1]:81", "", "::1", "81", "http"),
        ("http://b.example:82/hello/5", "a.example", "", "b.example", "82", "http"),
        // What the client asked of the first proxy.
        ("/hello/6", "a.example", "x-forwarded-host: c.example:8443, d\r\n", "c.example", "8443", "http"),
        ("/hello/7", "a.example", "forwarded: for=_x;host=\"c.example\";proto=https, host=d\r\n", "c.example", "443", "https"),
        ("/hello/8", "a.example", "x-forwarded-proto: https, http\r\n", "a.example", "443", "https"),
        ("/hello/9", "a.example", "forwarded: host=f\r\nx-forwarded-host: e\r\n", "e", "80", "http"),
        ("http://b.example/hello/10", "b.example", "x-forwarded-host: [2001:db8::1]:81\r\n", "2001:db8::1", "81", "http"),
        // None of these is a host, and their passwords are nobody's.
        (
            "/hello/11",
            "a.example",
            "x-forwarded-host: u:s3cret@b\r\nforwarded: host=\"u:s3cret@b\"\r\n",
            "a.example",
            "80",
            "http",
        ),
        ("/hello/12", "", "", "", "", "http"),
        ("/hello/13", "u:s3cret@a:81", "", "", "", "http"),
        ("http://u:s3cret@a:81/hello/14", "a:81", "", "", "", "http"),
    ] {
        let head = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\n{more}connection: close\r\n\r\n");
        let is_refused = format!("{target}{host}").contains("s3cret");
        assert_eq!(exchange(hop.addr, head.as_bytes()).await.status, if is_refused { 400 } else { 200 }, "{target}");
        let path = &target[target.find("/hello").unwrap()..];
        let span =
            eventually("the span arrives", || async { sink.spans().into_iter().find(|span| of(span, "url.path") == path) }).await;
        let seen = (of(&span, "server.address"), of(&span, "server.port"), of(&span, "url.scheme"));
        assert_eq!(seen, (address, port, scheme), "{target}");
    }
    let mut http2 = Http2::open(TcpStream::connect(hop.addr).await.unwrap(), &[]).await;
    let head = [http2::GET, &http2::literal(":path", "/hello/15"), &http2::literal(":authority", "u:s3cret@a")].concat();
    http2.head(1, &head).await;
    assert_eq!(http2.answer(1).await.0, 400);
    let spans = eventually("its span arrives", || async {
        Some(sink.spans()).filter(|spans| spans.iter().any(|span| of(span, "url.path") == "/hello/15"))
    })
    .await;
    assert!(!format!("{spans:?}").contains("s3cret"), "{spans:#?}");
}

#[tokio::test]
async fn a_call_that_is_repeated_says_which_attempt_it_is() {
    let sink = Sink::otlp().await;
    let upstream = Upstream::answering(answer("503 Down", "", "")).await;
    let front = Hop::start(&["--retries", "2", "--upstream", &upstream.url()], &sink.env());
    assert_eq!(front.json("/service1", &[]).await.0, 502);
    let mut clients = eventually("each attempt arrives", || async {
        let clients: Vec<_> = sink.spans().into_iter().filter(|span| span.kind == "CLIENT").collect();
        (clients.len() == 3).then_some(clients)
    })
    .await;
    clients.sort_by_key(|span| span.start_us);
    assert_eq!(clients.iter().map(|span| of(span, "http.request.resend_count")).collect::<Vec<_>>(), ["", "1", "2"]);
}

#[tokio::test]
async fn a_call_without_an_answer_says_whom_it_reached() {
    let sink = Sink::otlp().await;
    let upstream = Upstream::start(|_| vec![Act::Close]).await;
    let front = Hop::start(&["--upstream", &upstream.url()], &sink.env());
    assert_eq!(front.json("/service1", &[]).await.0, 502);
    let client = only(&sink, "CLIENT").await;
    let peer = (of(&client, "network.peer.address"), of(&client, "network.peer.port"));
    assert_eq!(peer, ("127.0.0.1", &*upstream.addr.port().to_string()), "{client:#?}");
}

#[tokio::test]
async fn a_cut_answer_has_the_status_that_was_sent_and_what_cut_it() {
    let sink = Sink::otlp().await;
    let hop = Hop::start(&["--latency", "0ms"], &sink.env());
    let slow = Hop::start(&["--latency", "1h"], &sink.env());
    for (addr, target, status) in [(hop.addr, "/stream?count=100&interval=100ms", "200"), (slow.addr, "/hello", "")] {
        let mut caller = TcpStream::connect(addr).await.unwrap();
        caller.write_all(format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
        if !status.is_empty() {
            assert!(caller.read(&mut [0; 1024]).await.unwrap() > 0);
        }
        drop(caller);
        let path = target.split('?').next().unwrap();
        let span =
            eventually("the span arrives", || async { sink.spans().into_iter().find(|span| of(span, "url.path") == path) }).await;
        let seen = (of(&span, "http.response.status_code"), of(&span, "error.type"), span.failed);
        assert_eq!(seen, (status, "client_closed_request", true), "{target}");
    }
}

#[tokio::test]
async fn a_call_that_is_sent_again_says_so() {
    let sink = Sink::otlp().await;
    let calls = Mutex::new(0);
    let upstream = Upstream::start(move |_| {
        let mut calls = calls.lock().unwrap();
        *calls += 1;
        // The second request on a connection dies.
        if *calls == 2 { vec![Act::Close] } else { vec![Act::Send(answer("200 OK", "", ""))] }
    })
    .await;
    let front = Hop::start(&["--upstream", &upstream.url()], &sink.env());
    for _ in 0..2 {
        assert_eq!(front.json("/service1", &[]).await.0, 200);
    }
    let counts = eventually("both calls arrive", || async {
        let clients: Vec<_> = sink.spans().into_iter().filter(|span| span.kind == "CLIENT").collect();
        (clients.len() == 2)
            .then(|| clients.iter().map(|span| of(span, "http.request.resend_count").to_owned()).collect::<Vec<_>>())
    })
    .await;
    assert_eq!((counts, upstream.heads().len()), (vec![String::new(), "1".into()], 3));
}

#[tokio::test]
async fn the_state_of_another_trace_is_not_exported() {
    let sink = Sink::otlp().await;
    let hop = Hop::start(&[], &sink.env());
    let traceparent = format!("00-{T}-{S}-03");
    for state in ["a=1,a=2", "A=1", "a@=1", "=1"] {
        hop.get("/hello", &[("traceparent", &traceparent), ("tracestate", state)]).await;
    }
    let spans = sink.trace(T, 4).await;
    assert!(spans.iter().all(|span| span.trace_state.is_empty() && span.flags == 0x303), "{spans:#?}");
}

#[tokio::test]
async fn a_callee_that_reports_nothing_is_in_zipkins_dependency_graph() {
    let sink = Sink::zipkin().await;
    let upstream = Upstream::answering(answer("503 Gone", "", "")).await;
    let url = format!("http://localhost:{}/service2", upstream.addr.port());
    let front = Hop::start(&["--upstream", &url], &sink.env());
    front.json("/service1", &[]).await;
    let client = only(&sink, "CLIENT").await;
    assert_eq!((client.tags["error"].as_str(), client.tags["otel.status_code"].as_str()), ("503", "ERROR"));
    let remote = sink
        .bodies()
        .iter()
        .flat_map(|body| body.as_array().cloned().unwrap_or_default())
        .find_map(|span| (span["kind"] == "CLIENT").then(|| span["remoteEndpoint"].clone()));
    let expected = serde_json::json!({"serviceName": "localhost", "ipv4": "127.0.0.1", "port": upstream.addr.port()});
    assert_eq!(remote, Some(expected));
}
