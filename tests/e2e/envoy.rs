//! The chain behind the gateway of Compose and a sidecar for each hop: tracers, rules of the gateway, lanes, a restart under load, faults,
//! idle connections.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::claims::{Claims, same};
use crate::common::{PATIENCE, eventually, exchange};
use crate::mesh::{ChainOptions, Client, HOST, Mesh, lanes};

/// Whoever starts a dozen Envoys has the machine's two cores for itself.
static WHOLE_CHAIN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs an Envoy: scripts/e2e.sh envoy"]
async fn every_tracer_with_apps_that_report_and_apps_that_only_forward() {
    let _whole = WHOLE_CHAIN.lock().await;
    let mut claims = Claims::default();
    for (tracer, words) in
        [("otel", "OpenTelemetry"), ("zipkin", "Zipkin with B3 and W3C"), ("zipkin-b3", "Zipkin with B3 alone")]
    {
        for (exporter, spans, apps) in [("otlp", 12, "apps that report"), ("none", 7, "apps that only forward")] {
            let mut mesh = Mesh::new(&format!("{tracer}-{exporter}"), tracer).await;
            mesh.chain(ChainOptions { exporter, ..ChainOptions::default() }).await;
            let text = format!("{words}, {apps}: one trace of {spans} spans, no orphan, 4 services");
            claims.claim(text, mesh.trace(spans, 1, None)).await;
            let caller = ("5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e", "5ca1ab1e5ca1ab1e");
            let whose = if tracer == "zipkin-b3" { "the mesh's own, its own is stale" } else { "its own" };
            let text = format!("{words}, {apps}, the caller brings a traceparent: one whole trace ({whose})");
            claims.claim(text, mesh.trace(spans, 1, Some(caller))).await;
        }
    }
    for (tracer, words) in
        [("otel", "OpenTelemetry"), ("zipkin", "Zipkin with B3 and W3C"), ("zipkin-b3", "Zipkin with B3 alone")]
    {
        let mut mesh = Mesh::new(&format!("{tracer}-mixed"), tracer).await;
        mesh.chain(ChainOptions { exporter: "otlp", mixed: true, ..ChainOptions::default() }).await;
        let seams = async {
            let reply = mesh.client(HOST).chain("/hello/service1", &[]).await;
            let two = &reply["upstreams"][0]["reply"];
            let protocols = [&reply, two, &two["upstreams"][0]["reply"]].map(|hop| hop["protocol"].as_str().unwrap_or_default());
            same(["http/1.1", "grpc", "http/2"], protocols)
        };
        claims.claim(format!("{words}, mixed: HTTP/1.1 to service1, gRPC to service2, HTTP/2 to service3"), seams).await;
        let text = format!("{words}, mixed: one trace of 12 spans, each seam with its parent, 4 services");
        claims.claim(text, mesh.trace(12, 1, None)).await;
    }
    let mut mesh = Mesh::new("broken-hop", "otel").await;
    mesh.chain(ChainOptions { exporter: "none", drop_headers: "traceparent,tracestate", ..ChainOptions::default() }).await;
    let text = "negative control: two hops lose the W3C headers: one request falls into 3 traces";
    claims.claim(text, mesh.trace(7, 3, None)).await;
    claims.end();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs an Envoy: scripts/e2e.sh envoy"]
async fn rules_of_the_gateway_lanes_and_a_restart_under_load() {
    let _whole = WHOLE_CHAIN.lock().await;
    let mut claims = Claims::default();
    let mut mesh = Mesh::new("gateway", "otel").await;
    let env = &[("LATENCY", "1ms..20ms")];
    mesh.chain(ChainOptions { exporter: "otlp", more_copies: 1, gray: true, env, ..ChainOptions::default() }).await;
    rules_of_the_gateway(&mut claims, &mesh).await;
    swim_lanes(&mut claims, &mesh.client(HOST)).await;
    let text = "each of two pods of service2 restarted under constant load: no request fails";
    claims.claim(text, restarts_under_load(&mut mesh)).await;
    claims.end();
}

async fn rules_of_the_gateway(claims: &mut Claims, mesh: &Mesh) {
    let client = mesh.client(HOST);
    claims.claim("TLS 1.1 is refused", tls_1_1_is_refused(mesh.https)).await;
    let other_name = async {
        let error = mesh.client("other.cncamp.io").try_get("/hello/golang", &[]).await.expect_err("another name was served");
        assert!(error.is_connect(), "{error:?}");
        "refused".to_owned()
    };
    claims.claim("another name gets no certificate", other_name).await;
    let redirect = async {
        let answer = exchange(mesh.http, format!("GET /hello/golang?a=1 HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await;
        let location = format!("https://{HOST}:{}/hello/golang?a=1", mesh.https.port());
        same((301, Some(location.as_str())), (answer.status, answer.header("location")))
    };
    claims.claim("port 80 redirects to https, the path kept", redirect).await;
    let hsts = async {
        let answer = client.get("/hello/golang", &[]).await;
        same("max-age=31536000; includeSubDomains", answer.headers["strict-transport-security"].to_str().unwrap())
    };
    claims.claim("HSTS is set", hsts).await;
    let rewritten = async {
        same("/service0", mesh.client("httpsserver.cncamp.io").chain("/http/service0", &[]).await["path"].as_str().unwrap())
    };
    claims.claim("/http/service0 is rewritten to /service0", rewritten).await;
    let hello = async { same("Hello from service1 v1", &client.get("/test/hello", &[]).await.body[..22]) };
    claims.claim("/test/hello is rewritten to /hello", hello).await;
    let unpublished = async {
        let mut statuses = Vec::new();
        for path in ["/metrics", "/test/metrics", "/healthz", "/readyz", "/headers"] {
            statuses.push(client.get(path, &[]).await.status);
        }
        same(vec![404; 5], statuses)
    };
    claims.claim("metrics, health and headers are not published", unpublished).await;
}

async fn swim_lanes(claims: &mut Claims, client: &Client) {
    type Headers = &'static [(&'static str, &'static str)];
    let table: [(&str, Headers, &str); 3] = [
        ("without x-lane: the baseline", &[], "base base base"),
        ("x-lane: gray: service1 gray, service2 base (it has none), service3 gray", &[("x-lane", "gray")], "gray base gray"),
        ("the cookie lane=gray, in the middle of others, does the same", &[("cookie", "a=1; lane=gray; b=2")], "gray base gray"),
    ];
    for (text, headers, want) in table {
        claims.claim(text, async { same(want, lanes(&client.chain("/hello/service1", headers).await).as_str()) }).await;
    }
    let unopened = async {
        let reply = client.chain("/hello/service1", &[("x-lane", "blue")]).await;
        same(("base base base".to_owned(), false), (lanes(&reply), reply["received"].get("x-lane").is_some()))
    };
    claims.claim("a lane that nobody opened is the baseline, and x-lane does not travel", unopened).await;
    let never_gray = async {
        for _ in 0..40 {
            same("base base base", lanes(&client.chain("/hello/service1", &[]).await).as_str());
        }
        "40 x base base base".to_owned()
    };
    claims.claim("40 requests without a lane never meet gray", never_gray).await;
}

/// Offers TLS 1.1 and nothing later, by hand: no library of today would.
async fn tls_1_1_is_refused(gateway: SocketAddr) -> String {
    let u16_of = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
    let mut name = u16_of(HOST.len() + 3).to_vec();
    name.push(0);
    name.extend(u16_of(HOST.len()));
    name.extend(HOST.as_bytes());
    let mut extensions = Vec::new();
    // server_name, supported_groups (P-256), ec_point_formats (uncompressed)
    for (kind, data) in [(0, name), (10, vec![0, 2, 0, 23]), (11, vec![1, 0])] {
        extensions.extend(u16_of(kind));
        extensions.extend(u16_of(data.len()));
        extensions.extend(data);
    }
    let mut hello = vec![3, 2];
    hello.extend([7; 32]);
    // no session; ECDHE-RSA and RSA with AES-CBC, which TLS 1.1 has; no compression
    hello.extend([0, 0, 6, 0xc0, 0x13, 0xc0, 0x14, 0, 0x2f, 1, 0]);
    hello.extend(u16_of(extensions.len()));
    hello.extend(extensions);
    let mut handshake = vec![1, 0];
    handshake.extend(u16_of(hello.len()));
    handshake.extend(hello);
    let mut record = vec![22, 3, 1];
    record.extend(u16_of(handshake.len()));
    record.extend(handshake);
    let mut stream = TcpStream::connect(gateway).await.unwrap();
    stream.write_all(&record).await.unwrap();
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).await.expect("an alert");
    // An alert, fatal, protocol_version.
    same((21, [2, 70]), (answer[0], [answer[5], answer[6]]));
    "refused: protocol_version".to_owned()
}

async fn restarts_under_load(mesh: &mut Mesh) -> String {
    let (statuses, stop) = (Arc::new(Mutex::new(BTreeMap::<String, usize>::new())), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let (client, statuses, stop) = (mesh.client(HOST), statuses.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let status = match client.try_get("/hello/service1", &[]).await {
                        Ok(answer) => answer.status.to_string(),
                        Err(error) => format!("{error:?}"),
                    };
                    *statuses.lock().unwrap().entry(status).or_default() += 1;
                }
            })
        })
        .collect();
    let answered = || statuses.lock().unwrap().get("200").copied().unwrap_or_default();
    for key in ["service2-0", "service2-1"] {
        let enough = answered() + 50;
        eventually("requests are answered", || async { (answered() >= enough).then_some(()) }).await;
        mesh.restart(key).await;
        // The sidecar in front asks once a second who is ready: the next one may go when this one is called again.
        eventually(&format!("{key} is called again"), || async { (mesh.calls(key) >= 50).then_some(()) }).await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let statuses = statuses.lock().unwrap().clone();
    assert!(statuses.len() == 1 && statuses["200"] > 200, "{statuses:?}");
    format!("{} requests, 0 failed", statuses["200"])
}

/// A gateway and one hop behind it, without a sidecar.
async fn one_hop(name: &str, fault: &str) -> Mesh {
    let mut mesh = Mesh::new(name, "otel").await;
    let addr = crate::common::ports::free_addr();
    mesh.hop("service1", "service1", addr, &[("FAULT", fault.to_owned())]).await;
    mesh.gateway(addr.to_string(), None);
    let https = mesh.https;
    mesh.until("the gateway listens", || async { TcpStream::connect(https).await.is_ok() }).await;
    mesh
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs an Envoy: scripts/e2e.sh envoy"]
async fn a_hop_that_fails_or_is_slow() {
    let mut claims = Claims::default();
    let mut mesh = one_hop("flaky", "abort=503@50%").await;
    let client = mesh.client(HOST);
    mesh.until("the gateway answers", || async {
        client.try_get("/test/hello", &[]).await.is_ok_and(|answer| [200, 503].contains(&answer.status))
    })
    .await;
    let retried = async {
        let (mut failed, mut attempts) = (0, BTreeMap::<u64, usize>::new());
        for _ in 0..40 {
            let answer = client.get("/http/service0", &[("accept", "application/json")]).await;
            if answer.status == 200 {
                let reply: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
                *attempts.entry(reply["attempt"].as_u64().unwrap()).or_default() += 1;
            } else {
                failed += 1;
            }
        }
        // 1 in 16 fails four times; 10 of 40 would be a wonder.
        assert!(failed <= 10 && attempts.keys().any(|attempt| *attempt > 1), "{failed} {attempts:?}");
        format!("{failed} of 40 failed, attempts {attempts:?}")
    };
    claims
        .claim("retries: half of the answers are 503, and /http/service0 hardly ever fails; the reply names the attempt", retried)
        .await;
    let not_retried = async {
        let mut failed = 0;
        for _ in 0..40 {
            failed += usize::from(client.get("/hello/golang", &[]).await.status == 503);
        }
        assert!((8..=32).contains(&failed), "{failed}");
        format!("{failed} of 40 failed")
    };
    claims.claim("retries: a path without retries on 503 fails about half of the time", not_retried).await;

    let mesh = one_hop("slow", "delay=7s@100%").await;
    let timed_out = async {
        let begun = Instant::now();
        let status = mesh.client(HOST).get("/http/service0", &[]).await.status;
        let took = begun.elapsed().as_secs_f64();
        // Four tries of 5 s would be 20.
        assert!(status == 504 && 14.0 < took && took < 19.0, "{status} after {took}");
        format!("504 after {took:.1} s")
    };
    claims.claim("timeout: a hop that takes 7 s is given up three times after 5 s: 504 after 15 s", timed_out).await;
    claims.end();
}

async fn next(socket: &mut WebSocketStream<TcpStream>) -> Message {
    tokio::time::timeout(PATIENCE, socket.next()).await.expect("a message").unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs an Envoy: scripts/e2e.sh envoy"]
async fn a_websocket_through_a_sidecar() {
    let mut claims = Claims::default();
    let mut mesh = Mesh::new("websocket", "otel").await;
    let options = ChainOptions { exporter: "otlp", env: &[("DRAIN_DELAY", "0")], ..ChainOptions::default() };
    let sidecar = mesh.pod("service1", 1, None, &options).await;
    mesh.until("the sidecar listens", || async { TcpStream::connect(&sidecar).await.is_ok() }).await;
    let stream = TcpStream::connect(&sidecar).await.unwrap();
    let (mut socket, _) = client_async(format!("ws://{sidecar}/ws"), stream).await.unwrap();
    let first = async {
        let reply: serde_json::Value = next(&mut socket).await.to_text().unwrap().parse().unwrap();
        let proxy = reply["received"]["traceparent"][0].as_str().unwrap().split('-').nth(2).map(str::to_owned);
        same((Some(101), proxy.as_deref()), (reply["status"].as_u64(), reply["parent_span_id"].as_str()))
    };
    claims.claim("the first message shows the handshake, its span below the sidecar's", first).await;
    let echo = async {
        socket.send(Message::text("grün")).await.unwrap();
        same("grün", next(&mut socket).await.to_text().unwrap())
    };
    claims.claim("a message comes back", echo).await;
    let closed = async {
        // Until the end: the answer to a close frame is sent by the next read.
        let reader = tokio::spawn(async move { socket.filter_map(async |message| message.ok()).collect::<Vec<_>>().await });
        mesh.restart("service1").await;
        let messages = reader.await.unwrap();
        let [Message::Close(Some(frame))] = &messages[..] else { panic!("{messages:?}") };
        same((1001, "draining"), (u16::from(frame.code), frame.reason.as_str()))
    };
    claims.claim("the drain of the hop closes it through the sidecar", closed).await;
    claims.end();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs an Envoy: scripts/e2e.sh envoy"]
async fn connections_that_are_idle_between_requests() {
    const EVERY: Duration = Duration::from_secs(12);
    const REQUESTS: usize = 11;
    let mut claims = Claims::default();
    let mut mesh = Mesh::new("idle", "otel").await;
    mesh.chain(ChainOptions { exporter: "none", ..ChainOptions::default() }).await;
    let client = mesh.client(HOST);
    // No pool may meet a connection that the hop has closed.
    let seldom = async {
        let mut turns = tokio::time::interval(EVERY);
        for _ in 0..REQUESTS {
            turns.tick().await;
            same(200, client.get("/hello/service1", &[]).await.status);
        }
        format!("{REQUESTS} requests, 0 failed")
    };
    claims.claim("one request every 12 s for 120 s: none fails", seldom).await;
    claims.end();
}
