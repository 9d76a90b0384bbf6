//! The demo's trace store under a flood, over a real socket: whatever is sent, what the API tells stays within the bounds.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use httpserver::demo::store::{Limits, MAX_BODY, Store};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// The store behind a socket, and a client of it.
struct Served {
    addr: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Served {
    async fn start(store: &Store) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let router = store.router();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = TowerToHyperService::new(router.clone());
                // A client that breaks off mid-request is part of the test; nobody waits for the connection's end.
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { addr, client: Client::builder(TokioExecutor::new()).build_http(), accepting }
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> (StatusCode, Bytes) {
        let response = self.client.request(request).await.unwrap();
        let status = response.status();
        (status, response.into_body().collect().await.unwrap().to_bytes())
    }

    async fn post(&self, body: impl Into<Bytes>) -> StatusCode {
        let request = Request::post(format!("http://{}/api/v2/spans", self.addr)).header("content-type", "application/json");
        self.send(request.body(Full::new(body.into())).unwrap()).await.0
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.send(Request::get(format!("http://{}{path}", self.addr)).body(Full::default()).unwrap()).await;
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    /// What the API itself hands out, counted: traces, spans, and bytes of JSON.
    async fn held(&self) -> (usize, usize, usize) {
        let traces = self.get(&format!("/api/v2/traces?limit=1000000&endTs={}&lookback={}", u64::MAX, u64::MAX)).await;
        let traces = traces.as_array().unwrap();
        let spans = traces.iter().map(|trace| trace.as_array().unwrap().len()).sum();
        (traces.len(), spans, serde_json::to_vec(traces).unwrap().len())
    }
}

const T0: u64 = 1_700_000_000_000_000;

fn span(trace: usize, id: usize, text: &str) -> Value {
    json!({"traceId": format!("{trace:032x}"), "id": format!("{id:016x}"), "kind": "SERVER", "name": "get /", "timestamp": T0 + id as u64,
        "duration": 10, "localEndpoint": {"serviceName": format!("service{}", id % 3)}, "tags": {"text": text}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_spans_leave_the_newest_traces_and_no_more_than_the_bounds() {
    let store = Store::new();
    let served = Served::start(&store).await;
    let limits = Limits::default();
    // 2,000 traces of 50 spans, 25 traces a batch.
    for batch in 0..80 {
        let spans: Vec<Value> = (0..25 * 50).map(|n| span(1 + batch * 25 + n / 50, 1 + batch * 25 * 50 + n, "")).collect();
        assert_eq!(served.post(serde_json::to_vec(&spans).unwrap()).await, 202);
    }
    let (traces, spans, _) = served.held().await;
    assert!(traces <= limits.traces && spans <= limits.spans, "{traces} traces, {spans} spans");
    assert_eq!(spans, traces * 50, "a trace goes whole or stays whole");
    assert!(traces > 500, "room is used: {traces}");
    let told = served.get("/health").await["store"].clone();
    assert_eq!((told["traces"].as_u64(), told["spans"].as_u64()), (Some(traces as u64), Some(spans as u64)));
    assert_eq!(told["evicted_traces"].as_u64(), Some(2000 - traces as u64));
    assert!(told["bytes"].as_u64().unwrap() <= limits.bytes as u64);
    // The newest is there, the oldest is not.
    served.get(&format!("/api/v2/trace/{:x}", 2000)).await;
    let first = Request::get(format!("http://{}/api/v2/trace/1", served.addr)).body(Full::default()).unwrap();
    assert_eq!(served.send(first).await.0, 404);
    assert_eq!(served.get("/api/v2/services").await, json!(["service0", "service1", "service2"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_without_end_and_one_trace_without_end_stay_within_the_bytes() {
    let store = Store::new();
    let served = Served::start(&store).await;
    let limits = Limits::default();
    let text = "x".repeat(100_000);
    for batch in 0..30 {
        let spans: Vec<Value> = (0..20).map(|n| span(1 + batch * 20 + n, 1, &text)).collect();
        assert_eq!(served.post(serde_json::to_vec(&spans).unwrap()).await, 202);
    }
    let (before, _, bytes) = served.held().await;
    assert!(bytes <= limits.bytes, "{bytes}");
    assert!(before > 100, "{before}");
    // 60,000 spans of one trace, then 40 MB of text in spans of another: each is cut at its own bound.
    for batch in 0..12 {
        let spans: Vec<Value> = (0..5_000).map(|n| span(9_000, 1 + batch * 5_000 + n, "")).collect();
        assert_eq!(served.post(serde_json::to_vec(&spans).unwrap()).await, 202);
        let spans: Vec<Value> = (0..33).map(|n| span(9_001, 1 + batch * 33 + n, &text)).collect();
        assert_eq!(served.post(serde_json::to_vec(&spans).unwrap()).await, 202);
    }
    let long = served.get(&format!("/api/v2/trace/{:x}", 9_000)).await;
    assert!(long.as_array().unwrap().len() <= limits.trace_spans, "{}", long.as_array().unwrap().len());
    let fat = served.get(&format!("/api/v2/trace/{:x}", 9_001)).await;
    assert!(serde_json::to_vec(&fat).unwrap().len() <= limits.trace_bytes);
    assert!(served.get("/health").await["store"]["dropped_spans"].as_u64().unwrap() > 50_000);
    let (after, spans, bytes) = served.held().await;
    assert!(spans <= limits.spans && bytes <= limits.bytes, "{spans} spans, {bytes} bytes");
    assert!(after + 100 > before, "two runaway traces did not push the others out: {before}, then {after}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_refused_keeps_nothing_and_does_not_stop_the_store() {
    let store = Store::new();
    let served = Served::start(&store).await;
    let good = serde_json::to_vec(&[span(1, 1, "")]).unwrap();
    assert_eq!(served.post(good).await, 202);
    let half = serde_json::to_vec(&(0..1000).map(|n| span(2, 1 + n, "")).collect::<Vec<_>>()).unwrap();
    let bodies: Vec<(Vec<u8>, u16)> = vec![
        (b"{".to_vec(), 400),
        (b"[".repeat(MAX_BODY), 400),
        (b"[[".to_vec(), 400),
        (b"null".to_vec(), 400),
        (vec![0; 1 << 20], 400),
        (vec![0xff; 1 << 20], 400),
        (half[..half.len() - 1].to_vec(), 400),
        (vec![b' '; MAX_BODY + 1], 413),
        (vec![b' '; 5 * MAX_BODY], 413),
        // More spans than the store holds, within the bytes of a batch.
        (format!("[{}]", [r#"{"traceId":"3","id":"1"}"#; 60_000].join(",")).into_bytes(), 413),
        (format!(r#"[{{"traceId":"4","id":"1","x":{}{}}},7]"#, "[".repeat(1 << 20), "]".repeat(1 << 20)).into_bytes(), 400),
    ];
    for round in 0..2 {
        for (n, (body, expected)) in bodies.iter().enumerate() {
            assert_eq!(served.post(body.clone()).await, *expected, "round {round}, body {n}");
        }
    }
    // Many at once, and senders that break off.
    let mut flood = tokio::task::JoinSet::new();
    for n in 0..44 {
        let (client, addr, body) = (served.client.clone(), served.addr, bodies[n % bodies.len()].clone());
        flood.spawn(async move {
            let request = Request::post(format!("http://{addr}/api/v2/spans")).body(Full::new(Bytes::from(body.0))).unwrap();
            let sent = client.request(request);
            if n % 8 == 7 {
                drop(sent);
            } else {
                assert_eq!(sent.await.unwrap().status(), body.1);
            }
        });
    }
    while let Some(done) = flood.join_next().await {
        done.unwrap();
    }
    let (traces, spans, _) = served.held().await;
    assert_eq!((traces, spans), (1, 1));
    assert_eq!(served.get("/health").await["status"], "UP");
}

/// What a process that was started with these flags answers.
fn fetch(addr: SocketAddr, head: &str, body: &str) -> (u16, String) {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    write!(stream, "{head}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

#[test]
fn the_store_alone_takes_both_formats_at_its_ports_and_shows_them_on_its_page() {
    let mut command = crate::common::httpserver();
    command.args(["store", "--port", "0", "--otlp-port", "0", "--otlp-grpc-port", "0", "--allow-host", "store.example"]);
    let mut process = crate::common::Process::start(command);
    let [page, zipkin, otlp] = ["page", "traces", "otlp"].map(|part| process.demo_address(part));
    assert_eq!(page, zipkin);
    let get = |addr, path: &str, host: &str| fetch(addr, &format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n"), "");
    let otlp_span = |trace: &str| {
        let span = json!({"traceId": trace, "spanId": "eee19b7ec3c1b174", "name": "GET /cart", "kind": 2, "startTimeUnixNano": "1544712660000000000",
            "endTimeUnixNano": "1544712660300000000", "status": {"code": 2, "message": "no stock"}});
        let service = json!({"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]});
        json!({"resourceSpans": [{"resource": service, "scopeSpans": [{"spans": [span]}]}]}).to_string()
    };
    // Exporters in containers know it by other names; no page of a browser reports.
    for (addr, trace) in [(otlp, "0af7651916cd43dd8448eb211c80319c"), (zipkin, "1af7651916cd43dd8448eb211c80319c")] {
        let head = "POST /v1/traces HTTP/1.1\r\nhost: collector:4318\r\ncontent-type: application/json\r\n";
        assert_eq!(fetch(addr, head, &otlp_span(trace)).0, 200);
        assert_eq!(fetch(addr, &format!("{head}origin: http://evil.example\r\n"), &otlp_span(trace)).0, 403);
        let (status, found) = get(page, &format!("/api/v2/trace/{trace}"), "localhost");
        assert!(status == 200 && found.contains(r#""serviceName":"shop""#), "{found}");
        let (_, verdict) = get(page, &format!("/demo/verdict/{trace}"), "store.example");
        assert!(verdict.contains(r#""failure":"The request failed: shop failed (no stock).""#), "{verdict}");
    }
    let head = "POST /api/v2/spans HTTP/1.1\r\nhost: zipkin:9411\r\ncontent-type: application/json\r\n";
    assert_eq!(fetch(zipkin, head, &json!([span(1, 1, "")]).to_string()).0, 202);
    let (status, html) = get(page, "/", "localhost");
    assert!(status == 200 && html.contains("<title>httpserver store: traces</title>") && !html.contains("demo"), "{html}");
    assert_eq!(get(page, "/api/v2/services", "evil.example").0, 403);
    assert_eq!(get(page, "/health", "10.0.0.7").0, 200);
    // The port of OTLP has neither page nor queries, and there is no chain to give orders to.
    for path in ["/", "/api/v2/services", "/demo/events"] {
        assert_eq!(get(otlp, path, "localhost").0, 404, "{path}");
    }
    let order =
        "POST /demo/control HTTP/1.1\r\nhost: localhost\r\norigin: http://localhost\r\ncontent-type: application/json\r\n";
    assert_eq!(fetch(page, order, r#"{"send": {"headers": []}}"#).0, 404);
    assert!(process.page_key().len() >= 32);
    process.signal("TERM");
    assert_eq!(process.ended().code(), Some(0));
}

#[test]
fn a_taken_port_of_the_store_is_named_with_the_way_out() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for taken in ["--port", "--otlp-port", "--otlp-grpc-port"] {
        let flags = ["--port", "--otlp-port", "--otlp-grpc-port"].map(|flag| [flag, if flag == taken { &port } else { "0" }]);
        let flags = flags.concat();
        let ran = crate::common::run(&[&["store"][..], &flags].concat(), &[]);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{}", ran.stderr);
        assert!(ran.stderr.contains(&port) && ran.stderr.contains("--otlp-port 0"), "{}", ran.stderr);
    }
    let wrong = crate::common::run(&["store", "--allow-host", "http://store:9411"], &[]);
    assert!(wrong.code == Some(2) && wrong.stderr.contains("--allow-host"), "{}", wrong.stderr);
}

/// A hop that reports by OTLP over gRPC to `addr`.
fn reporting(addr: std::net::SocketAddr, more: &[(&str, &str)]) -> crate::common::Hop {
    let endpoint = format!("http://{addr}");
    let env = [
        ("OTEL_TRACES_EXPORTER", "otlp"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
    ];
    crate::common::Hop::start(&["--name", "shop"], &[&env[..], more].concat())
}

#[tokio::test]
async fn store_and_demo_take_otlp_over_grpc_at_every_port() {
    let mut command = crate::common::httpserver();
    command.args(["store", "--port", "0", "--otlp-port", "0", "--otlp-grpc-port", "0"]);
    let store = crate::common::Process::start(command);
    let [page, otlp, grpc] = ["page", "otlp", "grpc"].map(|part| store.demo_address(part));
    let demo = crate::common::Demo::start(&["--hops", "1"]);
    for lines in [store.stdout(), demo.process.stdout()] {
        let says_so = |line: &String| line.contains("/api/v2/spans") && line.contains("OTLP");
        assert!(lines.iter().any(says_so), "where spans go: {lines:#?}");
    }
    for (to, asked) in [(grpc, page), (otlp, page), (page, page), (demo.store, demo.store)] {
        for compression in ["none", "gzip"] {
            let hop = reporting(to, &[("OTEL_EXPORTER_OTLP_COMPRESSION", compression)]);
            let answer = hop.get("/hello", &[]).await;
            let trace = answer.header("traceresponse").unwrap().split('-').nth(1).unwrap().to_owned();
            crate::common::eventually("the span is exported", || async {
                (hop.metrics().await.sum("httpserver_spans_exported_total", &[]) == 1.0).then_some(())
            })
            .await;
            let (status, found) = fetch(asked, &format!("GET /api/v2/trace/{trace} HTTP/1.1\r\nhost: localhost\r\n"), "");
            assert!(status == 200 && found.contains(r#""serviceName":"shop""#), "{found}");
        }
    }
}

/// Calls `Export` of the store with a message, or with anything else; the codes of gRPC, or of HTTP where there is none.
async fn exported(addr: std::net::SocketAddr, headers: &[(&str, &str)], body: Vec<u8>) -> (u16, String) {
    use http_body_util::BodyExt as _;

    let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    let url = format!("http://{addr}/opentelemetry.proto.collector.trace.v1.TraceService/Export");
    let mut request = hyper::Request::post(url).header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = sender.send_request(request.body(http_body_util::Full::new(bytes::Bytes::from(body))).unwrap()).await.unwrap();
    let (head, body) = answer.into_parts();
    let collected = body.collect().await.unwrap();
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let header = |name: &str| head.headers.get(name).or(trailers.get(name)).map(|value| value.to_str().unwrap().to_owned());
    let code = header("grpc-status").map_or(head.status.as_u16(), |code| code.parse().unwrap());
    (code, header("grpc-message").unwrap_or_default())
}

#[tokio::test]
async fn the_store_refuses_over_grpc_what_it_cannot_take_and_no_exporter_sends_it_again() {
    let mut command = crate::common::httpserver();
    command.args(["store", "--port", "0", "--otlp-port", "0", "--otlp-grpc-port", "0"]);
    let store = crate::common::Process::start(command);
    let addr = store.demo_address("grpc");
    let framed = |message: &[u8]| [&[0], &u32::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat();
    let grpc = ("content-type", "application/grpc");
    assert_eq!(exported(addr, &[grpc], framed(b"")).await.0, 0, "an empty request is one");
    let (code, message) = exported(addr, &[grpc], framed(b"\x0a\x05\x01")).await;
    assert!(code == 3 && message.contains("ExportTraceServiceRequest"), "{code} {message}");
    // 8 is RESOURCE_EXHAUSTED; OUT_OF_RANGE, tonic's own word for it, would be sent again.
    let (code, message) = exported(addr, &[grpc], framed(&vec![0; (4 << 20) + 1])).await;
    assert!(code == 8 && message.contains("smaller"), "{code} {message}");
    let within = |field: u8, body: &[u8]| {
        let mut message = vec![field << 3 | 2];
        prost::encode_length_delimiter(body.len(), &mut message).unwrap();
        [message, body.to_vec()].concat()
    };
    let empty_spans = within(1, &within(2, &[0x12, 0].repeat(1 << 20)));
    assert_eq!(exported(addr, &[grpc], framed(&empty_spans)).await.0, 8, "small, and of much memory");
    assert_eq!(exported(addr, &[grpc, ("origin", "http://evil.example")], framed(b"")).await.0, 403);
    assert_eq!(exported(addr, &[("content-type", "application/json")], b"{}".to_vec()).await.0, 415);
    assert_eq!(exported(addr, &[grpc], framed(b"")).await.0, 0, "and it goes on");
}
