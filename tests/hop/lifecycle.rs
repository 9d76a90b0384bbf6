//! Start, ready, drain, end: what a rollout and a person at a terminal see of a hop's life.

use std::time::{Duration, Instant};

use crate::common::{Hop, Sink, eventually, exchange, read_answer, run};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A kept-alive connection.
struct Kept(TcpStream);

impl Kept {
    async fn to(hop: &Hop) -> Self {
        Self(TcpStream::connect(hop.addr).await.expect("the hop listens"))
    }

    async fn send(&mut self, bytes: &str) {
        self.0.write_all(bytes.as_bytes()).await.expect("the connection is open");
    }

    /// The status of one request; `None` when the connection is gone.
    async fn get(&mut self, path: &str) -> Option<u16> {
        self.0.write_all(format!("GET {path} HTTP/1.1\r\nhost: hop\r\n\r\n").as_bytes()).await.ok()?;
        Some(read_answer(&mut self.0, false).await?.status)
    }

    /// Waits for the other side to close; fails the test when it does not.
    async fn closed(mut self) {
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(crate::common::PATIENCE, self.0.read_to_end(&mut rest)).await;
        // A reset is an end, too.
        let _ = closed.expect("the hop closes the connection");
    }
}

async fn is_draining(hop: &Hop) {
    eventually("the hop is not ready", || async {
        let answer = hop.get("/readyz", &[]).await;
        (answer.status == 503).then_some(())
    })
    .await;
}

/// Waits until the hop works on a request to `/hello`-like paths: those that are not probes.
async fn is_working(hop: &Hop) {
    // The scrape itself is one of the active ones.
    eventually("a request is in flight", || async {
        (hop.metrics().await.sum("http_server_active_requests", &[]) >= 2.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_fails_the_start_with_one_line_that_says_so() {
    let hop = Hop::start(&[], &[]);
    let addr = hop.addr.to_string();
    let ran = run(&["serve", "--addr", &addr], &[]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    for part in [addr.as_str(), "taken", "--addr", "ADDR"] {
        assert!(ran.stderr.contains(part), "{part}: {}", ran.stderr);
    }
    assert_eq!(hop.get("/healthz", &[]).await.status, 200, "the first one goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hop_that_serves_is_ready_and_its_answers_keep_the_connection() {
    let hop = Hop::start(&[], &[]);
    let ready = hop.get("/readyz", &[]).await;
    assert_eq!((ready.status, ready.text().trim()), (200, "ok"));
    assert_eq!(ready.header("connection"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains_step_by_step_and_loses_no_request_and_no_span() {
    let sink = Sink::zipkin().await;
    // Slow export: the last spans must come from the flush.
    let mut env = sink.env();
    env.retain(|(name, _)| *name != "OTEL_BSP_SCHEDULE_DELAY");
    env.push(("OTEL_BSP_SCHEDULE_DELAY", "60000"));
    let mut hop = Hop::start(&["--latency", "4s", "--drain-delay", "1s"], &env);
    let addr = hop.addr;
    let begun = Instant::now();
    let slow = tokio::spawn(async move {
        exchange(addr, b"GET /hello HTTP/1.1\r\nhost: hop\r\nx-b3-traceid: 463ac35c9f6413ad48485a3953bb6124\r\nx-b3-spanid: 00f067aa0ba902b7\r\nx-b3-sampled: 1\r\n\r\n").await
    });
    is_working(&hop).await;
    let mut idle = Kept::to(&hop).await;
    assert_eq!(idle.get("/headers").await, Some(200));

    hop.signal("TERM");
    is_draining(&hop).await;
    let draining = hop.get("/readyz", &[]).await;
    assert_eq!((draining.status, draining.text().trim()), (503, "draining"));
    for path in ["/healthz", "/headers", "/metrics"] {
        let answer = hop.get(path, &[]).await;
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{path} is still served");
    }

    eventually("the hop stops accepting", || async { TcpStream::connect(addr).await.is_err().then_some(()) }).await;
    assert!(begun.elapsed() > Duration::from_secs(1), "not before the drain delay is over");
    assert!(!slow.is_finished(), "the request in flight does not hold the listener");
    idle.closed().await;

    let answer = slow.await.unwrap();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert_eq!(hop.ended().code(), Some(0), "{:#?}", hop.stderr());
    let spans = sink.spans();
    assert!(
        spans.iter().any(|span| span.trace_id == "463ac35c9f6413ad48485a3953bb6124" && span.tags["http.route"] == "/hello"),
        "the span of the last request arrives: {spans:#?}"
    );
    let lines = hop.stdout();
    assert!(lines.iter().any(|line| line.contains("\"GET /hello\" 200")), "and so does its access line: {lines:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigint_skips_the_drain_delay() {
    let mut hop = Hop::start(&["--drain-delay", "10m"], &[]);
    hop.signal("INT");
    assert_eq!(hop.ended().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_hop_at_once() {
    for second in ["TERM", "INT"] {
        let mut hop = Hop::start(&["--drain-delay", "10m", "--latency", "10m"], &[]);
        let mut working = Kept::to(&hop).await;
        working.send("GET /hello HTTP/1.1\r\nhost: hop\r\n\r\n").await;
        is_working(&hop).await;
        hop.signal("TERM");
        is_draining(&hop).await;
        hop.signal(second);
        assert_eq!(hop.ended().code(), Some(1), "{second}");
        assert!(hop.stderr().iter().any(|line| line.contains("second signal")), "{:#?}", hop.stderr());
        working.closed().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deadline_wins_over_a_request_that_never_ends() {
    let sink = Sink::zipkin().await;
    let mut hop = Hop::start(&["--drain-delay", "0", "--drain-timeout", "500ms", "--latency", "10m"], &sink.env());
    let mut working = Kept::to(&hop).await;
    working.send("GET /hello HTTP/1.1\r\nhost: hop\r\nx-request-id: endless\r\n\r\n").await;
    is_working(&hop).await;
    hop.signal("TERM");
    assert_eq!(hop.ended().code(), Some(0), "it stopped as it was asked to; the log tells what was lost");
    assert!(hop.stderr().iter().any(|line| line.contains("cut off")), "{:#?}", hop.stderr());
    let line = hop.access_line("endless").await;
    assert!(line.contains("\" 499 "), "it is logged as not answered: {line}");
    assert!(line.contains(" error=drain_timeout"), "and by whom: {line}");
    assert!(sink.spans().iter().any(|span| span.tags.get("request.id").is_some_and(|id| id == "endless")));
    working.closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_clients_and_half_heads_do_not_hold_the_exit() {
    let mut hop = Hop::start(&["--drain-delay", "0", "--drain-timeout", "10m", "--header-timeout", "10m"], &[]);
    let silent = Kept::to(&hop).await;
    let mut half = Kept::to(&hop).await;
    half.send("GET /hello HTTP/1.1\r\nhost: ho").await;
    let mut half_again = Kept::to(&hop).await;
    assert_eq!(half_again.get("/hello").await, Some(200));
    half_again.send("GET /hel").await;
    let mut preface = Kept::to(&hop).await;
    preface.send("PRI * HTTP/2.0\r\n").await;
    let mut idle = Kept::to(&hop).await;
    assert_eq!(idle.get("/hello").await, Some(200));
    hop.signal("TERM");
    assert_eq!(hop.ended().code(), Some(0));
    for connection in [silent, half, half_again, preface, idle] {
        connection.closed().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_on_its_way_when_accepting_stops_is_still_answered() {
    let mut hop = Hop::start(&["--drain-delay", "0", "--latency", "600ms"], &[]);
    // Keeps the hop draining for a moment.
    let mut working = Kept::to(&hop).await;
    working.send("GET /hello HTTP/1.1\r\nhost: hop\r\n\r\n").await;
    is_working(&hop).await;
    let mut late = Kept::to(&hop).await;
    late.send("GET /headers HTTP/1.1\r\n").await;
    hop.signal("TERM");
    eventually("the hop stops accepting", || async { TcpStream::connect(hop.addr).await.is_err().then_some(()) }).await;
    late.send("host: hop\r\n\r\n").await;
    let answer = read_answer(&mut late.0, false).await.expect("an answer");
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert_eq!(read_answer(&mut working.0, false).await.expect("an answer").status, 200);
    assert_eq!(hop.ended().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_closed_after_the_idle_timeout() {
    let hop = Hop::start(&["--idle-timeout", "500ms"], &[]);
    let mut kept = Kept::to(&hop).await;
    assert_eq!(kept.get("/hello").await, Some(200));
    let begun = Instant::now();
    kept.closed().await;
    assert!(begun.elapsed() >= Duration::from_millis(450), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_does_not_wait_for_a_collector_that_hangs() {
    let sink = Sink::zipkin().await;
    sink.set(crate::common::Mood::Hangs);
    let mut hop = Hop::start(&["--drain-delay", "0", "--flush-timeout", "500ms"], &sink.env());
    assert_eq!(hop.get("/hello", &[]).await.status, 200);
    hop.signal("TERM");
    assert_eq!(hop.ended().code(), Some(0));
    let lost = |line: &String| line.contains("spans were not handed over");
    eventually("the line that says what was lost", async || hop.stderr().iter().any(lost).then_some(())).await;
}
