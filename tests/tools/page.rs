//! The demo's page over a real socket: what it is served under, who may give it orders, what it is told.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{self, Process};

/// A demo that runs for one test, on free ports.
struct Demo {
    process: Process,
    page: SocketAddr,
    front: SocketAddr,
}

impl Demo {
    fn start(flags: &[&str]) -> Self {
        let common::Demo { process, front, page, .. } = common::Demo::start(&[&["--latency", "0"], flags].concat());
        Self { process, page, front }
    }

    /// Sends bytes as they are and returns status, head and body.
    fn raw(&self, request: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.page).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_ascii_lowercase(), body.to_owned())
    }

    fn get(&self, path: &str) -> (u16, String, String) {
        self.raw(&format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.page))
    }

    fn post(&self, headers: &[(&str, &str)], body: &str) -> (u16, String, String) {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = body.len();
        self.raw(&format!("POST /demo/control HTTP/1.1\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"))
    }

    /// Reports spans to the store.
    fn report(&self, spans: &Value) {
        let (body, host) = (spans.to_string(), self.page);
        let length = body.len();
        let (status, ..) = self.raw(&format!(
            "POST /api/v2/spans HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        ));
        assert_eq!(status, 202);
    }

    /// An order as the page gives it.
    fn order(&self, order: &Value) -> (u16, Value) {
        let (host, origin) = (self.page.to_string(), format!("http://{}", self.page));
        let headers = [("host", host.as_str()), ("origin", &origin), ("content-type", "application/json")];
        let (status, _, body) = self.post(&headers, &order.to_string());
        (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    fn events(&self) -> Events {
        let mut stream = TcpStream::connect(self.page).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        write!(stream, "GET /demo/events HTTP/1.1\r\nhost: {}\r\n\r\n", self.page).unwrap();
        Events { lines: BufReader::new(stream), head: String::new() }
    }
}

/// A stream of events, read line by line; the sizes of chunks between them are not lines of it.
struct Events {
    lines: BufReader<TcpStream>,
    head: String,
}

impl Events {
    /// The next event of this name whose data passes.
    fn until(&mut self, name: &str, mut test: impl FnMut(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut event = String::new();
        while Instant::now() < deadline {
            let mut line = String::new();
            if self.lines.read_line(&mut line).unwrap() == 0 {
                break;
            }
            if let Some(name) = line.strip_prefix("event: ") {
                event = name.trim_end().to_owned();
            } else if let Some(data) = line.strip_prefix("data: ")
                && event == name
            {
                let data: Value = serde_json::from_str(data).unwrap();
                if test(&data) {
                    return data;
                }
            } else if event.is_empty() {
                self.head.push_str(&line.to_ascii_lowercase());
            }
        }
        panic!("the event {name} did not come");
    }
}

#[test]
fn the_verdict_on_a_trace_is_the_stores() {
    let demo = Demo::start(&[]);
    let spans = json!([
        {"traceId": "c0ffee", "id": "1", "kind": "SERVER", "timestamp": 5, "localEndpoint": {"serviceName": "shop"}},
        {"traceId": "c0ffee", "id": "2", "parentId": "9", "kind": "SERVER", "timestamp": 6, "localEndpoint": {"serviceName": "stock"}},
        {"traceId": "beef", "id": "2", "parentId": "9", "kind": "SERVER", "timestamp": 6, "localEndpoint": {"serviceName": "stock"}},
    ]);
    demo.report(&spans);
    let verdict = |path: &str| -> Value { serde_json::from_str(&demo.get(path).2).unwrap() };
    let torn = verdict("/demo/verdict/c0ffee?hops=3");
    assert_eq!((&torn["whole"], &torn["broken_at"]), (&json!(false), &json!(["stock"])), "{torn:#}");
    assert!(torn["deviations"].to_string().contains("2 services instead of 3 reported"), "{torn:#}");
    let placed: Vec<_> = torn["rows"].as_array().unwrap().iter().map(|row| (&row["span"]["id"], &row["missing"])).collect();
    assert_eq!(placed, [(&json!("0000000000000001"), &Value::Null), (&json!("0000000000000002"), &json!("0000000000000009"))]);
    // A caller that reports nothing leaves one span without its parent, and more services than hops are no defect.
    assert_eq!(verdict("/demo/verdict/beef?hops=0")["whole"], true);
    assert_eq!(verdict("/demo/verdict/beef?hops=1")["whole"], true);
    // Nobody knows how many services take part in a request of strangers.
    assert_eq!(verdict("/demo/verdict/beef")["whole"], true);
    assert_eq!(verdict("/demo/verdict/dead"), Value::Null);
    // The demo knows it of its own: here all hops but one are missing.
    let spans =
        json!([{"traceId": "fade", "id": "1", "kind": "SERVER", "timestamp": 5, "localEndpoint": {"serviceName": "service1"}}]);
    demo.report(&spans);
    assert_eq!(verdict("/demo/verdict/fade")["whole"], false);
}

const FILES: [&str; 14] = [
    "/",
    "/page/style.css",
    "/page/icon.svg",
    "/page/main.js",
    "/page/dom.js",
    "/page/chain.js",
    "/page/adjust.js",
    "/page/send.js",
    "/page/list.js",
    "/page/trace.js",
    "/page/waterfall.js",
    "/page/headers.js",
    "/page/answer.js",
    "/page/compare.js",
];

#[test]
fn the_page_is_small_and_comes_under_a_policy_that_lets_nothing_else_in() {
    let demo = Demo::start(&[]);
    let mut bytes = 0;
    for path in FILES {
        let (status, head, body) = demo.get(path);
        assert_eq!(status, 200, "{path}");
        for line in [
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "cross-origin-resource-policy: same-origin",
        ] {
            assert!(head.contains(line), "{path} lacks {line}:\n{head}");
        }
        let kind = match path.rsplit('.').next().unwrap() {
            "css" => "text/css",
            "js" => "text/javascript",
            "svg" => "image/svg+xml",
            _ => "text/html",
        };
        assert!(head.contains(&format!("content-type: {kind}")), "{path}: {head}");
        bytes += body.len();
    }
    assert!(bytes > 10_000 && bytes < 150_000, "{bytes} bytes");
    // Every module that a module asks for is among them.
    for path in FILES.iter().filter(|path| path.ends_with(".js")) {
        let (_, _, script) = demo.get(path);
        for module in script.split("from './").skip(1).map(|rest| rest.split('\'').next().unwrap()) {
            assert!(FILES.contains(&format!("/page/{module}").as_str()), "{path} asks for {module}");
        }
    }
    // The store's API is beside it, and says nothing of other origins.
    let (status, head, _) = demo.get("/api/v2/services");
    assert_eq!(status, 200);
    assert!(!head.contains("access-control"), "{head}");
}

#[test]
fn an_order_is_taken_from_our_own_page_only() {
    let demo = Demo::start(&[]);
    let host = demo.page.to_string();
    let origin = format!("http://{host}");
    let json = "application/json";
    let order = json!({"send": {"headers": []}}).to_string();
    let local = format!("localhost:{}", demo.page.port());
    let local_origin = format!("http://{local}");
    for ours in [
        vec![("host", host.as_str()), ("origin", origin.as_str()), ("content-type", json)],
        vec![("host", &local), ("origin", &local_origin), ("content-type", "application/json; charset=utf-8")],
    ] {
        let (status, head, body) = demo.post(&ours, &order);
        assert_eq!(status, 200, "{ours:?}: {body}");
        assert!(!head.contains("access-control"), "{head}");
    }
    let evil = format!("evil.example:{}", demo.page.port());
    let evil_origin = format!("http://{evil}");
    let other_port = "http://127.0.0.1:1".to_owned();
    let secure = format!("https://{host}");
    let refused = |headers: &[(&str, &str)], expected: u16| {
        let (status, _, body) = demo.post(headers, &order);
        assert_eq!(status, expected, "{headers:?}: {body}");
        assert!(body.len() > 10, "a reason is given: {body}");
    };
    // Another site's page, a page on another port, one without an origin, a file, a name that was pointed at us.
    for origin in [evil_origin.as_str(), &other_port, &secure, &local_origin, "null", ""] {
        refused(&[("host", &host), ("origin", origin), ("content-type", json)], 403);
    }
    refused(&[("host", &host), ("content-type", json)], 403);
    refused(&[("host", &host), ("origin", &origin), ("origin", &evil_origin), ("content-type", json)], 403);
    refused(&[("host", &evil), ("origin", &evil_origin), ("content-type", json)], 403);
    refused(&[("host", "127.0.0.1:1"), ("origin", &other_port), ("content-type", json)], 403);
    // What a form or a script of another site can send without asking.
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonx", ""] {
        refused(&[("host", &host), ("origin", &origin), ("content-type", kind)], 415);
    }
    refused(&[("host", &host), ("origin", &origin)], 415);
    let preflight = format!(
        "OPTIONS /demo/control HTTP/1.1\r\nhost: {host}\r\norigin: {evil_origin}\r\naccess-control-request-method: POST\r\n\
         access-control-request-headers: content-type\r\nconnection: close\r\n\r\n"
    );
    let (status, head, _) = demo.raw(&preflight);
    assert_eq!(status, 405);
    assert!(head.contains("allow: post") && !head.contains("access-control"), "{head}");
    assert_eq!(demo.get("/demo/control").0, 405);
}

#[test]
fn spans_are_taken_under_any_name_but_from_no_browser_and_read_under_our_names_only() {
    let demo = Demo::start(&["--allow-host", "Store.example."]);
    let port = demo.page.port();
    let report = |headers: &str| {
        let body = json!([{"traceId": "c0ffee", "id": "1", "localEndpoint": {"serviceName": "shop"}}]).to_string();
        let length = body.len();
        demo.raw(&format!("POST /api/v2/spans HTTP/1.1\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"))
            .0
    };
    assert_eq!(report("host: evil.example\r\norigin: http://evil.example\r\ncontent-type: text/plain\r\n"), 403);
    assert_eq!(report(&format!("host: 127.0.0.1:{port}\r\norigin: null\r\n")), 403);
    assert_eq!(demo.get("/api/v2/trace/c0ffee").0, 404, "nothing was stored");
    assert_eq!(report("host: zipkin.observability:9411\r\n"), 202);
    let get = |path: &str, host: &str, more: &str| {
        demo.raw(&format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{more}connection: close\r\n\r\n")).0
    };
    let paths =
        ["/", "/page/main.js", "/api/v2/trace/c0ffee", "/api/v2/services", "/demo/verdict/c0ffee", "/demo/exchange/c0ffee"];
    for path in paths {
        for host in
            [format!("localhost:{port}"), format!("LOCALHOST.:{port}"), format!("[::1]:{port}"), "store.EXAMPLE:9411".into()]
        {
            assert_eq!(get(path, &host, ""), 200, "{path} {host}");
        }
        for host in
            [format!("evil.example:{port}"), format!("localhost.evil.example:{port}"), format!("10.0.0.7:{port}"), String::new()]
        {
            assert_eq!(get(path, &host, ""), 403, "{path} {host}");
        }
        assert_eq!(get(path, &format!("localhost:{port}"), "origin: http://evil.example\r\n"), 403, "{path}");
    }
    assert_eq!(get("/demo/events", "evil.example", ""), 403);
    assert_eq!(get("/health", "10.1.2.3:9411", ""), 200, "a probe is answered");
}

#[test]
fn the_key_in_the_printed_url_lets_another_machine_read_and_order() {
    let Some(outside) = outside_address() else { return };
    let mut demo = Demo::start(&["--listen", "0.0.0.0", "-vvv"]);
    let (key, host) = (demo.process.page_key(), format!("demo.example:{}", demo.page.port()));
    demo.page.set_ip(outside);
    let get =
        |path: &str, more: &str| demo.raw(&format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{more}connection: close\r\n\r\n"));
    assert_eq!((get("/", "").0, get("/?key=0123456789abcdef0123456789abcdef", "").0), (403, 403));
    let (status, head, _) = get(&format!("/?key={key}"), "");
    assert_eq!(status, 303);
    assert!(head.contains("location: /\r\n") && head.contains("httponly; samesite=strict"), "{head}");
    let cookie = head.split("set-cookie: ").nth(1).unwrap().split(';').next().unwrap().to_owned();
    assert_eq!(get("/api/v2/services", &format!("cookie: {cookie}\r\n")).0, 200);
    let origin = format!("http://{host}");
    let order = json!({"send": {"headers": []}}).to_string();
    let headers = [("host", host.as_str()), ("origin", &origin), ("content-type", "application/json"), ("cookie", &cookie)];
    assert_eq!(demo.post(&headers, &order).0, 200);
    assert_eq!(demo.post(&headers[..3], &order).0, 403);
    assert_eq!(demo.post(&[headers[0], ("origin", "http://evil.example"), headers[2], headers[3]], &order).0, 403);
    demo.process.signal("INT");
    assert!(demo.process.ended().success());
    let printed = [demo.process.stdout(), demo.process.stderr()].concat().join("\n");
    assert_eq!(printed.matches(&key).count(), 1, "{printed}");
}

/// The status of a request for events, whose body never ends.
fn status_of_events(page: SocketAddr) -> u16 {
    let mut stream = TcpStream::connect(page).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    write!(stream, "GET /demo/events HTTP/1.1\r\nhost: {page}\r\n\r\n").unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).unwrap();
    String::from_utf8_lossy(&head[9..]).parse().unwrap()
}

#[test]
fn a_connection_that_does_not_read_does_not_keep_others_from_watching() {
    let demo = Demo::start(&[]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let held = runtime.block_on(async {
        let stream = hyper_util::rt::TokioIo::new(tokio::net::TcpStream::connect(demo.page).await.unwrap());
        let mut client = hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
        // No event fits into the window of any stream.
        client.initial_stream_window_size(1);
        let (mut sender, connection) = client.handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let requests = (0..40).map(|_| {
            let request = http::Request::get(format!("http://{}/demo/events", demo.page)).body(String::new()).unwrap();
            sender.send_request(request)
        });
        let held: Vec<_> = futures_util::future::join_all(requests).await.into_iter().map(Result::unwrap).collect();
        held
    });
    assert_eq!(held.len(), 40);
    // Its place is given to who reads, and who reads keeps it.
    let mut readers: Vec<_> = (0..8).map(|_| demo.events()).collect();
    for reader in &mut readers {
        reader.until("chain", |_| true);
        reader.until("ticked", |_| true);
    }
    // Who does not read meanwhile would give its place up.
    common::wait_until("the ninth page of one address is refused", || {
        for reader in &mut readers {
            reader.until("ticked", |_| true);
        }
        Some(()).filter(|()| status_of_events(demo.page) == 503)
    });
    for reader in &mut readers {
        reader.until("ticked", |_| true);
    }
}

#[test]
fn an_order_that_cannot_be_is_refused_and_changes_nothing() {
    let demo = Demo::start(&[]);
    for bad in [
        json!({}),
        json!({"send": {"headers": [["cookie", "x"]]}}),
        json!({"send": {"headers": [["host", "evil.example"]]}}),
        json!({"send": {"headers": [["baggage", "a\r\nx-evil: 1"]]}}),
        json!({"send": {"headers": [], "url": "http://evil.example/"}}),
        json!({"plan": {"hop": 2, "plan": {"latency_ms": [0, 1], "faults": []}}}),
        json!({"latency": {"hop": 9, "latency": "1ms"}}),
        json!({"latency": {"hop": 0, "latency": "1ms"}}),
        json!({"latency": {"hop": 2, "latency": "2ms..1ms"}}),
        json!({"latency": {"hop": 2, "latency": "0..1000000000s"}}),
        json!({"latency": {"hop": 2, "latency": "-1ms"}}),
        json!({"faults": {"hop": 2, "faults": ["abort=200@1%"]}}),
        json!({"faults": {"hop": 2, "faults": ["abort=503@100.1%"]}}),
        json!({"faults": {"hop": 2, "faults": ["delay=-1ms"]}}),
        json!({"run": {"hop": 4, "running": false}}),
        json!({"ready": {"hop": 4, "ready": false}}),
        json!({"drop": {"hop": 4, "headers": []}}),
        json!({"drop": {"hop": 2, "headers": ["cookie"]}}),
        json!({"faults": {"hop": 9, "faults": []}}),
        json!({"faults": {"hop": 2, "faults": ["explode"]}}),
        json!({"faults": {"hop": 2, "breaks": ["new-trace@101%"]}}),
        json!({"faults": {"hop": 2, "breaks": ["join=x-mine"]}}),
        json!({"faults": {"hop": 2, "faults": [], "ttl": "soon"}}),
        json!({"faults": {"hop": 2, "faults": [], "more": 1}}),
        json!({"faults": {"hop": 2, "faults": vec!["reset"; 33]}}),
        json!({"latency": {"hop": 2, "latency": "61s"}}),
        json!({"exit": {}}),
    ] {
        let (status, why) = demo.order(&bad);
        assert_eq!(status, 400, "{bad}: {why}");
    }
    let (status, _) = demo.order(&json!({"send": {"headers": [["baggage", "x".repeat(100_000)]]}}));
    assert_eq!(status, 413);
    let chain = demo.events().until("chain", |_| true);
    assert_eq!((&chain["hops"][1]["latency_ms"], &chain["hops"][1]["faults"]), (&json!([0.0, 0.0]), &json!([])));
}

#[test]
fn the_stream_tells_of_the_chain_its_figures_and_every_trace() {
    let demo = Demo::start(&["--fan-out", "sequential", "--drop-header", "service2:b3"]);
    let mut events = demo.events();
    let chain = events.until("chain", |_| true);
    assert!(events.head.contains("content-type: text/event-stream"), "{}", events.head);
    assert_eq!(chain["fan_out"], "sequential");
    assert_eq!(chain["watching_only"], Value::Null);
    let hops = chain["hops"].as_array().unwrap();
    assert_eq!(hops.len(), 3);
    assert_eq!((&hops[0]["name"], &hops[0]["calls"]), (&json!("service1"), &json!([2, 3])));
    assert_eq!(hops[1]["drops"], json!(["b3"]));
    assert_eq!(hops[0]["address"], demo.front.to_string());
    // Not from the page: anybody's request is seen.
    let trace = "463ac35c9f6413ad48485a3953bb6124";
    let mut stream = TcpStream::connect(demo.front).unwrap();
    write!(
        stream,
        "GET /service1 HTTP/1.1\r\nhost: x\r\ntraceparent: 00-{trace}-a2fb4a1d1a96d312-01\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let whole = |news: &Value| news.as_array().unwrap().iter().find(|news| news["id"] == trace && news["spans"] == 5).cloned();
    let told = whole(&events.until("traces", |news| whole(news).is_some())).unwrap();
    assert_eq!((&told["services"], &told["errors"]), (&json!(["service1", "service2", "service3"]), &json!(0)));
    let ticked = events.until("ticked", |hops| hops[2]["rate"].as_f64() > Some(0.0));
    for hop in ticked.as_array().unwrap() {
        assert_eq!(hop["health"], json!({"state": "ready"}));
        assert_eq!(hop["errors"], json!(0.0));
        assert!(hop["p50_ms"].as_f64().unwrap() > 0.0 && hop["p99_ms"].as_f64() >= hop["p50_ms"].as_f64(), "{hop}");
    }
    // A stream that begins later begins with everything.
    let mut later = demo.events();
    later.until("passed", |hops| hops[0]["ended"].as_u64() >= Some(2) && hops[0]["failed"] == json!(0));
    later.until("traces", |news| whole(news).is_some());
}

#[test]
fn a_request_from_the_page_is_remembered_with_what_every_hop_received_and_sent() {
    let demo = Demo::start(&[]);
    let trace = "463ac35c9f6413ad48485a3953bb6124";
    let sent = json!([["x-b3-traceid", trace], ["x-b3-spanid", "a2fb4a1d1a96d312"], ["x-b3-sampled", "1"], ["x-lane", "gray"]]);
    let (status, exchange) = demo.order(&json!({"send": {"headers": sent}}));
    assert_eq!(status, 200);
    assert_eq!((&exchange["status"], &exchange["sent"]), (&json!(200), &sent));
    let reply = &exchange["reply"];
    assert_eq!((&reply["trace_id"], &reply["parent_span_id"]), (&json!(trace), &json!("a2fb4a1d1a96d312")));
    let second = &reply["upstreams"][0]["reply"];
    assert_eq!(second["received"]["x-lane"], json!(["gray"]));
    assert_eq!(second["received"], reply["upstreams"][0]["sent"]);
    assert_eq!(second["upstreams"][0]["reply"]["service"], "service3");
    // What a traceparent or a b3 says is read here, by the product's own rules, and not in the page.
    let (_, both) =
        demo.order(&json!({"send": {"headers": [["b3", "463AC35C9F6413AD-a2fb4a1d1a96d312-1"], ["traceparent", "00-0-0-01"]]}}));
    assert_eq!(
        both["contexts"]["463AC35C9F6413AD-a2fb4a1d1a96d312-1"],
        json!({"trace_id": "463ac35c9f6413ad", "span_id": "a2fb4a1d1a96d312"})
    );
    assert_eq!(both["contexts"].get("00-0-0-01"), None, "{both}");
    let call = &both["reply"]["upstreams"][0]["sent"]["b3"][0];
    assert_eq!(both["contexts"][call.as_str().unwrap()]["trace_id"], "463ac35c9f6413ad");
    let (status, _, remembered) = demo.get(&format!("/demo/exchange/{trace}"));
    assert_eq!(status, 200);
    assert_eq!(serde_json::from_str::<Value>(&remembered).unwrap(), exchange);
    for unknown in ["/demo/exchange/1", "/demo/exchange/%3Cscript%3E"] {
        let (status, head, body) = demo.get(unknown);
        assert_eq!((status, body.as_str()), (200, "null"), "{unknown}");
        assert!(head.contains("content-type: application/json"));
    }
}

#[test]
fn every_fault_and_break_can_be_ordered_for_a_time() {
    let demo = Demo::start(&["--fault", "service2:limit=1000/s@7%"]);
    let mut events = demo.events();
    let chain = events.until("chain", |_| true);
    let examples = |kinds: &Value| -> Vec<Value> {
        kinds.as_array().unwrap().iter().filter(|kind| kind["about"].is_string()).map(|kind| kind["example"].clone()).collect()
    };
    let (faults, breaks) = (examples(&chain["fault_kinds"]), examples(&chain["break_kinds"]));
    assert_eq!((faults.len(), breaks.len()), (10, 10));
    assert_eq!((&chain["hops"][1]["latency"], &chain["hops"][1]["faults"]), (&json!("0"), &json!(["limit=1000/s@7%"])));
    assert_eq!(demo.order(&json!({"latency": {"hop": 2, "latency": "2ms..3ms"}})).0, 200);
    let order = json!({"faults": {"hop": 2, "faults": faults, "breaks": breaks, "ttl": "1s"}});
    assert_eq!(demo.order(&order), (200, json!({})));
    let is_ordered = |chain: &Value| {
        let hop = &chain["hops"][1];
        (&hop["latency"], &hop["faults"], &hop["breaks"]) == (&json!("2ms..3ms"), &json!(faults), &json!(breaks))
    };
    events.until("chain", is_ordered);
    let back = events.until("chain", |chain| chain["hops"][1]["breaks"] == json!([]));
    assert_eq!((&back["hops"][1]["latency"], &back["hops"][1]["faults"]), (&json!("2ms..3ms"), &json!(["limit=1000/s@7%"])));
}

#[test]
fn a_request_of_anybody_is_kept_with_its_headers_its_answer_and_what_was_lost() {
    let demo = Demo::start(&["--drop-header", "service2:traceparent", "--drop-header", "service2:x-b3-traceid"]);
    let get = |path: &str, trace: &str, more: &str| {
        let mut stream = TcpStream::connect(demo.front).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let context = format!("traceparent: 00-{trace}-a2fb4a1d1a96d312-01\r\n");
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n{context}{more}connection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    };
    let kept = |trace: &str, request: &str| {
        common::wait_until("the request is kept", || {
            let (_, _, body) = demo.get(&format!("/demo/exchange/{trace}{request}"));
            serde_json::from_str::<Value>(&body).ok().filter(|exchange| !exchange.is_null())
        })
    };
    let trace = "463ac35c9f6413ad48485a3953bb6124";
    let body = get("/service1", trace, "x-lane: gray\r\n");
    let exchange = kept(trace, "");
    assert_eq!((&exchange["sender"], &exchange["status"], &exchange["body"]), (&json!("other"), &json!(200), &json!(body)));
    assert_eq!(exchange["reply"]["upstreams"][0]["reply"]["received"]["x-lane"], json!(["gray"]));
    let broken: Vec<_> = exchange["seams"].as_array().unwrap().iter().filter(|seam| seam["broken"] == true).collect();
    assert_eq!((broken.len(), &broken[0]["from"], &broken[0]["to"]), (1, &json!("service2"), &json!("service3")), "{broken:?}");
    assert_eq!(broken[0]["headers"], json!(["traceparent"]));
    // The other part of the broken trace is of the same request.
    let other = exchange["reply"]["upstreams"][0]["reply"]["upstreams"][0]["reply"]["trace_id"].as_str().unwrap();
    assert_eq!(kept(other, ""), exchange);
    // An endpoint that calls nobody, and a path that is not there.
    for (path, trace) in [("/hello", "563ac35c9f6413ad48485a3953bb6124"), ("/nowhere", "663ac35c9f6413ad48485a3953bb6124")] {
        let body = get(path, trace, "");
        let exchange = kept(trace, "");
        assert_eq!((&exchange["url"], &exchange["body"], &exchange["reply"]), (&json!(path), &json!(body), &Value::Null));
        assert_eq!(exchange["received"]["traceparent"][0], json!(format!("00-{trace}-a2fb4a1d1a96d312-01")));
        let verdict = common::wait_until("its span is there", || {
            serde_json::from_str::<Value>(&demo.get(&format!("/demo/verdict/{trace}")).2).ok().filter(|found| !found.is_null())
        });
        assert_eq!(verdict["deviations"], json!([]), "{path}");
    }
    // Of several requests with one trace id, each is there.
    let trace = "763ac35c9f6413ad48485a3953bb6124";
    for lane in ["one", "two"] {
        get("/hello", trace, &format!("x-lane: {lane}\r\n"));
    }
    let verdict = common::wait_until("both are there", || {
        let verdict: Value = serde_json::from_str(&demo.get(&format!("/demo/verdict/{trace}")).2).ok()?;
        (verdict["used_by"].as_array()?.len() == 2).then_some(verdict)
    });
    assert_eq!(verdict["whole"], true, "{verdict}");
    for (at, lane) in [(0, "one"), (1, "two")] {
        let span = verdict["used_by"][at]["span"].as_str().unwrap();
        assert_eq!(kept(trace, &format!("?request={span}"))["received"]["x-lane"], json!([lane]));
        let part: Value = serde_json::from_str(&demo.get(&format!("/demo/verdict/{trace}?request={span}")).2).unwrap();
        assert_eq!(part["rows"].as_array().unwrap().len(), 1);
    }
}

#[test]
fn a_hops_faults_change_while_it_runs_and_everybody_who_watches_is_told() {
    let demo = Demo::start(&[]);
    let mut events = demo.events();
    let latency = |text: &str| demo.order(&json!({"latency": {"hop": 2, "latency": text}}));
    for (text, range) in [("p50=1ms,p90=2ms", Value::Null), ("2ms", json!([2.0, 2.0])), ("3ms..4ms", json!([3.0, 4.0]))] {
        assert_eq!(latency(text), (200, json!({})));
        events.until("chain", |chain| chain["hops"][1]["latency_ms"] == range && chain["hops"][1]["latency"] == text);
    }
    assert_eq!(demo.order(&json!({"faults": {"hop": 2, "faults": ["abort=503"]}})), (200, json!({})));
    events.until("chain", |chain| chain["hops"][1]["faults"] == json!(["abort=503"]));
    let (_, exchange) = demo.order(&json!({"send": {"headers": []}}));
    assert_eq!(exchange["status"], 502);
    let second = &exchange["reply"]["upstreams"][0];
    assert_eq!((&second["status"], &second["reply"]["injected"]["abort_status"]), (&json!(503), &json!(503)));
    // The caller fails with it. The two may be counted in different seconds.
    events.until("ticked", |hops| (0..2).all(|hop| hops[hop]["errors"].as_f64() > Some(0.0)));
    assert_eq!(demo.order(&json!({"faults": {"hop": 2, "faults": []}})).0, 200);
    let (_, exchange) = demo.order(&json!({"send": {"headers": []}}));
    assert_eq!(exchange["status"], 200);
}

#[test]
fn a_hop_loses_headers_and_is_not_ready_by_order_until_it_is_ordered_back() {
    let demo = Demo::start(&["--drop-header", "service3:x-lane"]);
    let mut events = demo.events();
    let send = || demo.order(&json!({"send": {"headers": [["baggage", "user=ada"]]}})).1;
    let arrived =
        |exchange: &Value| exchange["reply"]["upstreams"][0]["reply"]["upstreams"][0]["reply"]["received"]["baggage"].clone();
    assert_eq!(arrived(&send()), json!(["user=ada"]));
    assert_eq!(demo.order(&json!({"drop": {"hop": 2, "headers": ["baggage", "x-lane"]}})), (200, json!({})));
    let chain = events.until("chain", |chain| chain["hops"][1]["drops"] == json!(["baggage", "x-lane"]));
    assert_eq!(chain["hops"][2]["drops"], json!(["x-lane"]));
    let exchange = send();
    assert_eq!(arrived(&exchange), Value::Null);
    let seam = &exchange["seams"][0];
    assert_eq!((&seam["from"], &seam["broken"], &seam["headers"]), (&json!("service2"), &json!(false), &json!(["baggage"])));
    assert_eq!(demo.order(&json!({"drop": {"hop": 2, "headers": []}})).0, 200);
    assert_eq!(arrived(&send()), json!(["user=ada"]));
    assert_eq!(demo.order(&json!({"ready": {"hop": 2, "ready": false}})).0, 200);
    let told = events.until("ticked", |hops| hops[1]["health"]["state"] == "not_ready");
    assert_eq!((&told[1]["health"]["why"], &told[0]["health"]["state"]), (&json!("not ready by order"), &json!("ready")));
    assert_eq!(send()["status"], 200, "it goes on serving");
    assert_eq!(demo.order(&json!({"ready": {"hop": 2, "ready": true}})).0, 200);
    events.until("ticked", |hops| hops[1]["health"]["state"] == "ready");
}

#[test]
fn a_hop_is_stopped_and_started_again_at_its_address_with_its_faults() {
    let demo = Demo::start(&[]);
    let mut events = demo.events();
    assert_eq!(demo.order(&json!({"latency": {"hop": 3, "latency": "1ms..2ms"}})).0, 200);
    assert_eq!(demo.order(&json!({"run": {"hop": 3, "running": false}})).0, 200);
    events.until("chain", |chain| chain["hops"][2]["running"] == json!(false));
    events.until("ticked", |hops| hops[2]["health"]["state"] == "no_answer" && hops[1]["health"]["state"] == "ready");
    let (_, exchange) = demo.order(&json!({"send": {"headers": []}}));
    assert_eq!(exchange["status"], 502);
    let call = &exchange["reply"]["upstreams"][0]["reply"]["upstreams"][0];
    assert!(call["error"].as_str().unwrap().contains("cannot connect"), "{call}");
    assert_eq!(demo.order(&json!({"run": {"hop": 3, "running": true}})).0, 200);
    events.until("ticked", |hops| hops[2]["health"]["state"] == "ready");
    let (_, exchange) = demo.order(&json!({"send": {"headers": []}}));
    assert_eq!(exchange["status"], 200);
    let chain = demo.events().until("chain", |_| true);
    assert_eq!((&chain["hops"][2]["running"], &chain["hops"][2]["latency"]), (&json!(true), &json!("1ms..2ms")));
}

#[test]
fn whoever_watches_from_another_address_gives_no_orders_unless_that_is_allowed() {
    // Another loopback address is this machine too; what is listened on is asked by its own address, which is not loopback.
    let Some(outside) = outside_address() else { return };
    for (flags, expected) in [(vec!["--listen", "0.0.0.0"], 403), (vec!["--listen", "0.0.0.0", "--allow-remote-control"], 200)] {
        let mut demo = Demo::start(&flags);
        demo.page.set_ip(outside);
        let (status, why) = demo.order(&json!({"send": {"headers": []}}));
        assert_eq!(status, expected, "{why}");
        let chain = demo.events().until("chain", |_| true);
        assert_eq!(chain["watching_only"].is_string(), expected == 403, "{chain}");
    }
}

/// An address of this machine that is not loopback. Nothing is sent: connecting a datagram socket only picks a route.
fn outside_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|addr| addr.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

#[test]
fn spans_are_passed_on_to_another_zipkin() {
    let other = Demo::start(&[]);
    let demo = Demo::start(&["--zipkin", &format!("http://{}", other.page), "--jaeger", "http://localhost:16686/"]);
    let chain = demo.events().until("chain", |_| true);
    assert_eq!(chain["links"], json!({"zipkin": format!("http://{}", other.page), "jaeger": "http://localhost:16686"}));
    let mut there = other.events();
    let (_, exchange) = demo.order(&json!({"send": {"headers": []}}));
    let id = &exchange["reply"]["trace_id"];
    there.until("traces", |news| news.as_array().unwrap().iter().any(|news| news["id"] == *id && news["spans"] == 5));
}

#[test]
fn the_demo_ends_at_once_while_pages_are_open() {
    let mut demo = Demo::start(&[]);
    let mut events = demo.events();
    events.until("chain", |_| true);
    let begun = Instant::now();
    demo.process.signal("INT");
    assert!(demo.process.ended().success());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}
