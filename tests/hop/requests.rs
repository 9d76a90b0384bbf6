//! What a request says of itself before it is answered: the host that it is for, and whether its body is wanted.

use crate::common::http2::{Frame, GET, Http2, literal};
use crate::common::{Hop, PATIENCE, exchange, read_answer};
use crate::tls::Secure;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

const COUNT: &str = "http_server_request_duration_seconds_count";

/// Heads of HTTP/1, and whether they are valid.
const HEADS: [(&str, bool); 16] = [
    ("GET /hello HTTP/1.1\r\nhost: a b/c@d\r\n", false),
    ("GET /hello HTTP/1.1\r\nhost: user@a\r\n", false),
    ("GET /hello HTTP/1.1\r\nhost: a:99999\r\n", false),
    ("GET /hello HTTP/1.1\r\nhost: ::1\r\n", false),
    ("GET /hello HTTP/1.1\r\nhost: http://a\r\n", false),
    ("GET /hello HTTP/1.1\r\n", false),
    ("GET /hello HTTP/1.1\r\nhost: a\r\nhost: a\r\n", false),
    ("GET /hello HTTP/1.0\r\nhost: a b\r\n", false),
    ("GET http://user@a/hello HTTP/1.1\r\nhost: a\r\n", false),
    ("GET http://a:99999/hello HTTP/1.1\r\nhost: a\r\n", false),
    ("GET http://a/hello HTTP/1.1\r\nhost: a/b\r\n", false),
    ("GET http://b/hello HTTP/1.1\r\nhost: a\r\n", true),
    ("GET /hello HTTP/1.1\r\nhost:\r\n", true),
    ("GET /hello HTTP/1.1\r\nhost: [::1]:8080\r\n", true),
    ("GET /hello HTTP/1.1\r\nhost: a%20b:\r\n", true),
    ("GET /hello HTTP/1.0\r\n", true),
];

/// Fields of a GET over HTTP/2, and whether they are valid.
const FIELDS: [(&[(&str, &str)], bool); 9] = [
    (&[(":authority", "a"), ("host", "b")], false),
    (&[], false),
    (&[("host", "a b/c@d")], false),
    (&[("host", "a"), ("host", "a")], false),
    (&[(":authority", "user@a")], false),
    (&[(":authority", "a:99999")], false),
    (&[(":authority", "a"), ("host", "A:80")], true),
    (&[(":authority", "a")], true),
    (&[("host", "a")], true),
];

async fn http_1(mut stream: impl AsyncRead + AsyncWrite + Unpin, head: &str) -> String {
    stream.write_all(format!("{head}connection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an answer");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn http_2(stream: impl AsyncRead + AsyncWrite + Unpin, fields: &[(&str, &str)]) -> (u16, String) {
    let mut client = Http2::open(stream, &[]).await;
    // A server may check the case of pseudo-header fields only.
    let rest: Vec<u8> = fields.iter().flat_map(|(name, value)| literal(name, value)).collect();
    client.head(1, &[GET, &literal(":path", "/hello"), &rest].concat()).await;
    client.answer(1).await
}

fn assert_answer(what: &str, is_valid: bool, status: u16, text: &str) {
    assert_eq!(status, if is_valid { 200 } else { 400 }, "{what}: {text}");
    assert_eq!(text.contains("\"title\":\"Bad Request\""), !is_valid, "{what}: {text}");
}

async fn assert_counted(hop: &Hop, refused: usize) {
    assert_eq!(hop.metrics().await.sum(COUNT, &[("http_response_status_code", "400")]), refused as f64);
    let logged = || hop.stdout().iter().filter(|line| line.contains("\"GET /hello\" 400 ")).count();
    crate::common::eventually("each is logged", || async { (logged() == refused).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_host_two_servers_could_read_differently_is_answered_400() {
    let hop = Hop::start(&[], &[]);
    for (head, is_valid) in HEADS {
        let answer = http_1(TcpStream::connect(hop.addr).await.unwrap(), head).await;
        let status = answer.get(9..12).and_then(|status| status.parse().ok()).expect("a status");
        assert_answer(head, is_valid, status, &answer);
        assert!(answer.contains("\r\ndate: "), "{answer}");
    }
    for (fields, is_valid) in FIELDS {
        let (status, text) = http_2(TcpStream::connect(hop.addr).await.unwrap(), fields).await;
        assert_answer(&format!("{fields:?}"), is_valid, status, &text);
    }
    assert_counted(&hop, 17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_it_is_the_same() {
    let secure = Secure::start("hosts", &[]);
    for (head, is_valid) in HEADS {
        let answer = http_1(secure.connect(&[b"http/1.1"], None).await.unwrap(), head).await;
        let status = answer.get(9..12).and_then(|status| status.parse().ok()).expect("a status");
        assert_answer(head, is_valid, status, &answer);
    }
    for (fields, is_valid) in FIELDS {
        let (status, text) = http_2(secure.connect(&[b"h2"], None).await.unwrap(), fields).await;
        assert_answer(&format!("{fields:?}"), is_valid, status, &text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_asks_for_no_body_and_has_a_date() {
    let hop = Hop::start(&["--max-hops", "1"], &[]);
    let full = Hop::start(&["--max-concurrency", "1", "--latency", "1h"], &[]);
    let head = |line: &str, fields: &str| format!("{line} HTTP/1.1\r\nhost: hop\r\nexpect: 100-continue\r\n{fields}\r\n");
    for (line, fields, status) in [
        ("POST /hello", "content-length: 4\r\n", 405),
        ("DELETE /metrics", "transfer-encoding: chunked\r\n", 405),
        ("PUT /nowhere", "content-length: 4\r\n", 404),
        ("GET /service01", "content-length: 4\r\n", 404),
        ("GET /hello/%ff", "content-length: 4\r\n", 404),
        ("GET /service1", "content-length: 4\r\nx-hop-count: 1\r\n", 508),
        ("GET /hello", "content-length: 65537\r\n", 413),
        ("POST /hello", "content-length: 4\r\nhost: other\r\n", 400),
        ("POST /service1?bytes=2MiB", "content-length: 4\r\n", 400),
        ("PUT /service1?format=xml", "transfer-encoding: chunked\r\n", 400),
        ("POST /hello/service1?bytes=-1", "content-length: 4\r\n", 400),
        ("GET /stream?count=99999999", "content-length: 4\r\n", 400),
        ("GET /stream?interval=x", "content-length: 4\r\n", 400),
        ("GET /ws", "content-length: 4\r\n", 426),
        ("GET /ws", &format!("content-length: 4\r\n{HANDSHAKE}origin: http://elsewhere\r\n"), 403),
        ("POST /httpserver.v1.Chain/Call", "content-length: 4\r\n", 415),
    ] {
        let answer = exchange(hop.addr, head(line, fields).as_bytes()).await;
        answer.assert_problem(status);
        assert_eq!(answer.header("connection"), Some("close"), "{line}: the body may follow, and is no request");
        assert!(answer.header("date").is_some_and(|date| date.ends_with(" GMT")), "{line}");
    }
    let caller = Hop::start(&["--upstream", "http://127.0.0.1:1"], &[]);
    let answer = exchange(caller.addr, head("POST /service1", "content-length: 4\r\nx-call-budget: 0\r\n").as_bytes()).await;
    assert_eq!((answer.status, answer.header("connection")), (508, Some("close")), "it may call nobody");
    let busy = tokio::spawn(exchange(full.addr, b"GET /hello HTTP/1.1\r\nhost: hop\r\n\r\n"));
    crate::common::eventually("the only place is taken", || async {
        (full.metrics().await.sum("http_server_active_requests", &[]) >= 2.0).then_some(())
    })
    .await;
    exchange(full.addr, head("GET /hello", "content-length: 4\r\n").as_bytes()).await.assert_problem(503);
    busy.abort();
    for fields in [format!("x: {}\r\n", "y".repeat(40 << 10)), (0..110).map(|i| format!("x-{i}: 1\r\n")).collect()] {
        let answer = exchange(hop.addr, head("POST /hello", &fields).as_bytes()).await;
        answer.assert_problem(431);
        assert!(answer.header("date").is_some());
    }
}

/// Of a WebSocket.
const HANDSHAKE: &str =
    "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_asked_for_where_nothing_in_the_head_refuses_the_request() {
    // The name of nobody is greeted whatever the query says, and however many hops the request has passed.
    let hop = Hop::start(&["--max-hops", "1", "--upstream", "50%=http://127.0.0.1:1"], &[]);
    for (line, fields, status) in [
        ("POST /hello/service01?format=xml", "x-hop-count: 1\r\n", 200),
        ("POST /hello/service01", "x-call-budget: 0\r\n", 200),
        ("GET /stream?count=1&format=xml", "", 200),
        ("GET /ws", HANDSHAKE, 101),
    ] {
        let mut stream = TcpStream::connect(hop.addr).await.unwrap();
        let head = format!("{line} HTTP/1.1\r\nhost: hop\r\nexpect: 100-continue\r\ncontent-length: 4\r\n{fields}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut interim = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut interim)).await.expect("in time").unwrap();
        assert_eq!(String::from_utf8_lossy(&interim), "HTTP/1.1 100 Continue\r\n\r\n", "{line}");
        stream.write_all(b"body").await.unwrap();
        let answer =
            tokio::time::timeout(PATIENCE, read_answer(&mut stream, status == 101)).await.expect("in time").expect("an answer");
        assert_eq!(answer.status, status, "{line}");
        assert_eq!(answer.header("connection"), (status == 101).then_some("Upgrade"), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_the_refused_body_all_the_same_starts_no_request_with_it() {
    let hop = Hop::start(&[], &[]);
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: hop\r\n\r\n";
    let mut stream = TcpStream::connect(hop.addr).await.unwrap();
    let head = format!("POST /hello HTTP/1.1\r\nhost: hop\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n", smuggled.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = tokio::time::timeout(PATIENCE, read_answer(&mut stream, false)).await.expect("in time").expect("an answer");
    answer.assert_problem(405);
    let _ = stream.write_all(smuggled.as_bytes()).await;
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("the end");
    assert_eq!(String::from_utf8_lossy(&rest), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_over_http_2_have_a_date_too() {
    let hop = Hop::start(&[], &[]);
    for path in ["/hello", "/nowhere"] {
        let mut client = Http2::open(TcpStream::connect(hop.addr).await.unwrap(), &[]).await;
        client.head(1, &[GET, &literal(":path", path), &literal("host", "a")].concat()).await;
        let block = client.until(|frame| frame.kind == Frame::HEADERS).await.payload;
        // Index 33 of HPACK's static table is `date`: its value is literal.
        assert!(block.windows(2).any(|two| two[0] == 0x61 || two[0] == 0x0f && two[1] == 18), "{path}: {block:?}");
    }
}

/// Everything that comes until the other side closes.
async fn to_the_end(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    let read = async { while stream.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {} };
    tokio::time::timeout(PATIENCE, read).await.expect("the hop closes the connection");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_client_closes_its_side_is_answered() {
    const GET_HELLO: &[u8] = b"GET /hello HTTP/1.1\r\nhost: hop\r\n\r\n";
    for latency in ["0", "200ms"] {
        let hop = Hop::start(&["--latency", latency], &[]);
        let secure = Secure::start(&format!("fin-{latency}"), &["--latency", latency]);
        for i in 0..20 {
            let mut plain = TcpStream::connect(hop.addr).await.unwrap();
            plain.write_all(GET_HELLO).await.unwrap();
            plain.shutdown().await.unwrap();
            let mut body = TcpStream::connect(hop.addr).await.unwrap();
            body.write_all(b"GET /hello HTTP/1.1\r\nhost: hop\r\ncontent-length: 4\r\n\r\nbody").await.unwrap();
            body.shutdown().await.unwrap();
            let mut tls = secure.connect(&[b"http/1.1"], None).await.unwrap();
            tls.write_all(GET_HELLO).await.unwrap();
            tls.shutdown().await.unwrap();
            let mut no_notice = secure.connect(&[b"http/1.1"], None).await.unwrap();
            no_notice.write_all(GET_HELLO).await.unwrap();
            no_notice.flush().await.unwrap();
            // The socket alone: TLS says nothing.
            no_notice.get_mut().0.shutdown().await.unwrap();
            let over_tls = [to_the_end(&mut tls).await, to_the_end(&mut no_notice).await];
            for answer in [to_the_end(&mut plain).await, to_the_end(&mut body).await].into_iter().chain(over_tls) {
                assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{latency}, {i}: {answer}");
            }
            let mut http2 = Http2::open(TcpStream::connect(hop.addr).await.unwrap(), &[]).await;
            http2.get(1, "/hello").await;
            http2.0.shutdown().await.unwrap();
            assert_eq!(http2.answer(1).await.0, 200, "{latency}, {i}");
        }
        for (hop, count) in [(&hop, 60.0), (&secure.hop, 40.0)] {
            let logged = || hop.stdout().iter().filter(|line| line.contains("\"GET /hello\" 200 ")).count() as f64;
            crate::common::eventually("each is logged", || async { (logged() == count).then_some(()) }).await;
        }
        assert_eq!(hop.metrics().await.sum(COUNT, &[("http_response_status_code", "200"), ("http_route", "/hello")]), 60.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_closes_its_side_and_takes_too_long_or_is_gone_is_counted_and_logged() {
    let hop = Hop::start(&["--latency", "1h"], &[]);
    let get = |id: &str| format!("GET /hello HTTP/1.1\r\nhost: hop\r\nx-request-id: {id}\r\n\r\n");
    let mut waiting = TcpStream::connect(hop.addr).await.unwrap();
    waiting.write_all(get("waiting").as_bytes()).await.unwrap();
    waiting.shutdown().await.unwrap();
    assert_eq!(to_the_end(&mut waiting).await, "");
    let mut gone = TcpStream::connect(hop.addr).await.unwrap();
    gone.write_all(get("gone").as_bytes()).await.unwrap();
    drop(gone);
    for id in ["waiting", "gone"] {
        let line = hop.access_line(id).await;
        assert!(line.contains("\"GET /hello\" 499 ") && line.ends_with(" error=client_closed_request"), "{line}");
    }
    let cut = [("http_response_status_code", ""), ("error_type", "client_closed_request")];
    assert_eq!(hop.metrics().await.sum(COUNT, &cut), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_not_delayed_as_work_is_and_urls_are_shown_without_queries() {
    let hop = Hop::start(&["--latency", "1h"], &[]);
    for path in ["/", "/hello", "/hello/service"] {
        hop.request("DELETE", path, &[]).await.assert_problem(405);
    }
    let urls = [("referer", "https://a/b?token=secret"), ("x-envoy-original-path", "/c?code=secret")];
    let shown = hop.get("/headers", &urls).await.text();
    assert!(shown.contains("\"https://a/b\"") && shown.contains("\"/c\"") && !shown.contains("secret"), "{shown}");
}
