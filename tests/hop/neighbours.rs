//! Bad neighbours: next hops and collectors that hold, flood or mislead. Requests end in time, memory stays bounded, and the
//! answer says which hop it was. The ordinary failures are in `chain.rs` and `spans.rs`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::common::ports::free_addr;
use crate::common::{Act, Answer, Hop, PATIENCE, Upstream, answer, eventually, exchange, httpserver, read_answer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

async fn memory(hop: &Hop) -> f64 {
    hop.metrics().await.sum("process_resident_memory_bytes", &[])
}

/// The error of the only call of a hop, and how long its answer took.
async fn failure(hop: &Hop) -> (u16, String, Duration) {
    let begun = Instant::now();
    let (status, reply) = hop.json("/service1", &[]).await;
    let error = reply["upstreams"][0]["error"].as_str().unwrap_or_default().to_owned();
    (status, error, begun.elapsed())
}

fn calling(upstream: &str, timeout: &str) -> Hop {
    Hop::start(&["--upstream", upstream, "--upstream-timeout", timeout], &[])
}

/// Writes `head`, then `piece` again and again until the other side has had enough.
async fn flooding(head: &'static str, piece: Vec<u8>) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let piece = piece.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                if stream.read(&mut request).await.is_ok() && stream.write_all(head.as_bytes()).await.is_ok() {
                    while stream.write_all(&piece).await.is_ok() {}
                }
            });
        }
    });
    (url, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_from_an_upstream_end_at_the_limit_and_cost_no_memory() {
    let chunk = [b"10000\r\n".as_slice(), &[b'x'; 0x10000], b"\r\n"].concat();
    for (what, head, piece, says) in [
        ("an endless chunked body", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", chunk, "too large"),
        ("a body of 100 MB", "HTTP/1.1 200 OK\r\ncontent-length: 104857600\r\n\r\n", vec![b'x'; 1 << 16], "too large"),
        ("a body without an end", "HTTP/1.1 200 OK\r\n\r\n", vec![b'x'; 1 << 16], "too large"),
        (
            "an endless head",
            "HTTP/1.1 200 OK\r\n",
            b"x-flood: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n".to_vec(),
            "broken answer",
        ),
        ("an endless header", "HTTP/1.1 200 OK\r\nx: ", vec![b'x'; 1 << 16], "broken answer"),
        ("endless early hints", "", b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1000), "no whole answer within 2s"),
    ] {
        let (url, task) = flooding(head, piece).await;
        // The limit ends what has one, however busy the machine is; nothing but the time ends interim answers.
        let (timeout, status) = if says.contains("2s") { ("2s", 504) } else { ("50s", 502) };
        let hop = calling(&url, timeout);
        let before = memory(&hop).await;
        // An endless head is parsed for as long as it comes: in a debug build many at once would only show how slow that is.
        let count = if says == "too large" { 20 } else { 1 };
        let calls =
            (0..count).map(|_| exchange(hop.addr, b"GET /service1 HTTP/1.1\r\nhost: hop\r\naccept: application/json\r\n\r\n"));
        for answer in futures_util::future::join_all(calls).await {
            assert_eq!(answer.status, status, "{what}");
            let reply = answer.json();
            let error = reply["upstreams"][0]["error"].as_str().unwrap();
            assert!(error.contains(says), "{what}: {error}");
        }
        let grown = memory(&hop).await - before;
        // Twenty answers of 1 MiB, the limit; each may be copied once while it grows, and is read through a buffer.
        assert!(grown < 60e6, "{what}: {count} calls cost {grown} bytes");
        task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_whose_head_names_too_large_a_body_is_not_waited_for() {
    let boaster = Upstream::start(|_| {
        vec![Act::Send(b"HTTP/1.1 200 OK\r\ncontent-length: 104857600\r\n\r\n".to_vec()), Act::Pause(PATIENCE)]
    })
    .await;
    let (status, error, _) = failure(&calling(&boaster.url(), "5s")).await;
    assert_eq!(status, 502, "{error}");
    assert!(error.contains("too large"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_answers_byte_by_byte_has_the_same_time_as_any_other() {
    let slow = Upstream::start(|_| {
        let bytes = answer("200 OK", "content-type: text/plain\r\n", "a body that takes its time");
        bytes.into_iter().flat_map(|byte| [Act::Send(vec![byte]), Act::Pause(Duration::from_millis(100))]).collect()
    })
    .await;
    let (status, error, took) = failure(&calling(&slow.url(), "1s")).await;
    assert_eq!(status, 504);
    assert!(error.contains("within 1s"), "{error}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_whose_name_resolves_to_nothing_is_a_502_that_says_so() {
    // A resolver without a server to ask gives up by itself, later.
    let (status, error, _) = failure(&calling("http://nothing.invalid:8080/", "50s")).await;
    assert_eq!(status, 502, "{error}");
    assert!(error.contains("cannot connect"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_closes_idle_connections_costs_no_request() {
    // It promises to keep the connection and closes it: what a next hop does that is replaced.
    let brief = Upstream::start(|_| vec![Act::Send(answer("200 OK", "", "ok")), Act::Close]).await;
    let hop = calling(&brief.url(), "5s");
    for i in 0..100 {
        let (status, error, _) = failure(&hop).await;
        assert_eq!((status, error.as_str()), (200, ""), "call {i}");
    }
}

/// A next hop that answers the first request of a connection and closes the connection, unanswered, at the second: as a server whose
/// idle timeout is over when the request is on its way. Only the first `answering` connections get an answer at all.
async fn dies_when_reused(answering: usize) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    tokio::spawn(async move {
        for accepted in 1.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let requests = counted.clone();
            tokio::spawn(async move {
                // A request of these tests comes in one piece.
                let mut request = [0; 4096];
                for answered in [accepted <= answering, false] {
                    if stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                        requests.fetch_add(1, Ordering::SeqCst);
                    }
                    if answered {
                        stream.write_all(&answer("200 OK", "", "ok")).await.unwrap();
                    } else if accepted > answering {
                        std::future::pending::<()>().await;
                    }
                }
            });
        }
    });
    (url, requests)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reused_connection_that_dies_under_a_request_costs_no_answer() {
    const CALLS: usize = 50;
    let (url, requests) = dies_when_reused(usize::MAX).await;
    let hop = calling(&url, "5s");
    for call in 0..CALLS {
        let (status, reply) = hop.json("/service1", &[]).await;
        assert_eq!((status, reply["upstreams"].as_array().unwrap().len()), (200, 1), "call {call}: {reply}");
    }
    let requests = requests.load(Ordering::SeqCst);
    assert!(requests > CALLS, "no request was sent again: {requests}");
    let spans = hop.metrics().await.sum("http_client_request_duration_seconds_count", &[]);
    assert_eq!(spans, CALLS as f64, "a call is counted once, however often its request was sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_sent_again_has_what_is_left_of_the_first_ones_time() {
    let (url, _) = dies_when_reused(1).await;
    let hop = calling(&url, "1s");
    assert_eq!(failure(&hop).await.0, 200);
    let (status, error, took) = failure(&hop).await;
    assert_eq!((status, error.as_str()), (504, "no whole answer within 1s"));
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hop_whose_upstream_hangs_still_answers_everything_else() {
    let hung = Upstream::start(|_| vec![Act::Hang]).await;
    let hop = Hop::start(&["--upstream", &hung.url(), "--upstream-timeout", "2s", "--max-concurrency", "50"], &[]);
    let before = memory(&hop).await;
    let waiting = (0..200).map(|_| exchange(hop.addr, b"GET /service1 HTTP/1.1\r\nhost: hop\r\n\r\n"));
    let waiting = tokio::spawn(futures_util::future::join_all(waiting));
    eventually("every place is taken", || async {
        (hop.metrics().await.sum("http_server_active_requests", &[]) >= 51.0).then_some(())
    })
    .await;
    for path in ["/healthz", "/readyz", "/metrics"] {
        let begun = Instant::now();
        assert_eq!(hop.get(path, &[]).await.status, 200, "{path}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{path} took {:?}", begun.elapsed());
    }
    let mut statuses: Vec<_> = waiting.await.unwrap().into_iter().map(|answer| answer.status).collect();
    statuses.sort();
    assert_eq!(statuses.iter().filter(|status| **status == 504).count(), 50, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 503).count(), 150, "{statuses:?}");
    assert!(memory(&hop).await - before < 20e6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hop_that_is_killed_loses_its_own_requests_and_the_front_says_which_it_was() {
    let hops = crate::common::chain(3, &["--upstream-timeout", "5s"], &[]);
    let (status, _) = hops[0].json("/service1", &[]).await;
    assert_eq!(status, 200);
    hops[2].signal("KILL");
    let reply = eventually("the front sees that the last hop is gone", || async {
        let (status, reply) = hops[0].json("/service1", &[]).await;
        (status == 502).then_some(reply)
    })
    .await;
    let below = &reply["upstreams"][0];
    assert_eq!(below["status"], 502, "service2 answers: {reply:#}");
    let last = &below["reply"]["upstreams"][0];
    assert!(last["url"].as_str().unwrap().contains(&hops[2].addr.to_string()), "{last:#}");
    // The first call may still go out on a connection whose end has not been seen.
    let error = last["error"].as_str().unwrap();
    assert!(error.contains("cannot connect") || error.contains("broken answer"), "{last:#}");
    assert_eq!(hops[0].get("/hello", &[]).await.status, 200, "the others go on");
    assert_eq!(hops[1].get("/hello", &[]).await.status, 200);
}

/// Sends a request on a connection of its own; what comes back, `None` when the connection ends without a whole answer.
fn in_flight(addr: SocketAddr, path: &str) -> tokio::task::JoinHandle<Option<Answer>> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: hop\r\naccept: application/json\r\n\r\n");
    tokio::spawn(async move {
        let mut stream = TcpStream::connect(addr).await.expect("the hop listens");
        stream.write_all(request.as_bytes()).await.expect("the hop reads");
        read_answer(&mut stream, false).await
    })
}

/// `kill -9` of one hop of three fails what was in flight there and nothing else, and it can come back.
async fn kill_9_of(killed: usize) {
    const MANY: usize = 10;
    // The last hop's answer never comes, so whatever was sent down the chain is in every hop when one is killed.
    let last = Hop::start(&["--name", "service3", "--latency", "10m"], &[]);
    let calling = |name: &str, below: &Hop| {
        let flags = ["--name", name, "--upstream", &below.url(""), "--upstream-timeout", "10m", "--latency", "1s"];
        Hop::start(&flags, &[])
    };
    let middle = calling("service2", &last);
    let front = calling("service1", &middle);
    let mut hops = [front, middle, last];
    let down_the_chain: Vec<_> = (0..MANY).map(|_| in_flight(hops[0].addr, "/service1")).collect();
    eventually("all of them are at the end of the chain", || async {
        // The scrape is one, too.
        (hops[2].metrics().await.sum("http_server_active_requests", &[]) > MANY as f64).then_some(())
    })
    .await;
    // They take a second, and have nothing to do with the one that is killed.
    let others: Vec<_> =
        (0..2).filter(|hop| *hop != killed).flat_map(|hop| [(); MANY].map(|()| in_flight(hops[hop].addr, "/hello"))).collect();
    hops[killed].signal("KILL");
    assert_eq!(hops[killed].ended().code(), None, "it had no time to say anything");
    for answer in down_the_chain {
        let answer = tokio::time::timeout(PATIENCE, answer).await.expect("its end is seen at once").unwrap();
        let Some(answer) = answer else {
            assert_eq!(killed, 0, "only who called the killed hop itself gets no answer");
            continue;
        };
        assert_eq!(answer.status, 502);
        let reply = answer.json();
        let mut call = &reply["upstreams"][0];
        for _ in 1..killed {
            assert_eq!(call["status"], 502, "a hop above it answers: {call:#}");
            call = &call["reply"]["upstreams"][0];
        }
        assert_eq!((&call["status"], &call["reply"]), (&serde_json::Value::Null, &serde_json::Value::Null), "{call:#}");
        let (url, error) = (call["url"].as_str().unwrap(), call["error"].as_str().unwrap());
        assert!(url.contains(&hops[killed].addr.to_string()), "the killed hop is named: {call:#}");
        assert!(error.contains("broken answer") || error.contains("cannot connect"), "{error}");
    }
    for answer in others {
        assert_eq!(answer.await.unwrap().expect("an answer").status, 200, "another hop's request is not touched");
    }
    // At its old address, as a container that is started again.
    let addr = hops[killed].addr.to_string();
    let flags = ["--addr", &addr, "--name", "again"];
    let below = hops.get(killed + 1).map(|hop| hop.url(""));
    let flags: Vec<_> = flags.into_iter().chain(below.iter().flat_map(|url| ["--upstream", url])).collect();
    hops[killed] = Hop::start(&flags, &[]);
    if killed == 2 {
        assert_eq!(in_flight(hops[0].addr, "/service1").await.unwrap().expect("an answer").status, 200);
    } else {
        assert_eq!(hops[killed].get("/hello", &[]).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_the_first_hop_fails_what_was_in_flight_there_and_nothing_else() {
    kill_9_of(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_a_hop_in_the_middle_fails_what_was_in_flight_there_and_nothing_else() {
    kill_9_of(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_the_last_hop_fails_what_was_in_flight_there_and_nothing_else() {
    kill_9_of(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_never_reads_or_floods_costs_counted_spans_bounded_memory_and_no_time() {
    let chunk = [b"10000\r\n".as_slice(), &[b'x'; 0x10000], b"\r\n"].concat();
    let (flood, task) = flooding("HTTP/1.1 202 Accepted\r\ntransfer-encoding: chunked\r\n\r\n", chunk).await;
    // Takes connections into its queue and never reads from one.
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let deaf_url = format!("http://{}/", deaf.local_addr().unwrap());
    let gone = format!("http://{}/", free_addr());
    for (what, endpoint) in [("floods", flood.as_str()), ("never reads", &deaf_url), ("is gone", &gone)] {
        let env = [
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_ZIPKIN_ENDPOINT", endpoint),
            ("OTEL_BSP_SCHEDULE_DELAY", "20"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "64"),
        ];
        let mut hop = Hop::start(&["--flush-timeout", "500ms", "--drain-delay", "0"], &env);
        let before = memory(&hop).await;
        let mut slowest = Duration::ZERO;
        for _ in 0..300 {
            let begun = Instant::now();
            assert_eq!(hop.get("/hello", &[]).await.status, 200, "a collector that {what}");
            slowest = slowest.max(begun.elapsed());
        }
        assert!(slowest < Duration::from_secs(2), "a collector that {what}: {slowest:?}");
        assert!(memory(&hop).await - before < 8e6, "a collector that {what}");
        if what != "floods" {
            eventually("lost spans are counted", || async {
                (hop.metrics().await.sum("httpserver_spans_dropped_total", &[]) > 0.0).then_some(())
            })
            .await;
        }
        hop.signal("TERM");
        let begun = Instant::now();
        assert_eq!(hop.ended().code(), Some(0), "a collector that {what}");
        assert!(begun.elapsed() < PATIENCE / 2);
    }
    task.abort();
}

#[test]
fn nothing_prints_the_environment() {
    // Secrets of a deployment are in variables: no answer, line or help text may show one.
    let ran = {
        let mut command = httpserver();
        command.args(["serve", "--help"]).env("SECRET_TOKEN", "s3cr3t").env("ADDR", ":1").env("UPSTREAM", "http://user-s3cr3t/");
        command.output().unwrap()
    };
    let text = String::from_utf8_lossy(&ran.stdout);
    assert!(!text.contains("s3cr3t"), "--help shows the value of a variable: {text}");
}
