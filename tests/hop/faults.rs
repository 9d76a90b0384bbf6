//! Faults and breaks that a hop injects on purpose: each one as the caller and the next hop meet it.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use httpserver::hop::config::HopConfig;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::common::tls::Secure;
use crate::common::{Hop, InProcess, Sink, eventually, read_answer};

const HOUR: Duration = Duration::from_secs(3600);

async fn faulty(faults: &[&str]) -> InProcess {
    InProcess::start(|config: &mut HopConfig| {
        config.faults.faults = faults.iter().map(|fault| fault.parse().unwrap()).collect();
    })
    .await
}

/// What comes back on a kept connection until it ends, and how it ended.
async fn ask(stream: &mut TcpStream, path: &str) -> (String, std::io::Result<usize>) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: hop\r\naccept: application/json\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes).await;
    (String::from_utf8(bytes).unwrap(), read)
}

/// The length that an answer claims, and that of what came of it.
fn lengths(answer: &str) -> (usize, usize) {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole head");
    let claimed = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    (claimed.parse().unwrap(), body.len())
}

#[tokio::test]
async fn a_reset_comes_in_the_middle_of_the_answer_and_a_truncated_one_ends_there() {
    for (fault, is_reset) in [("reset", true), ("truncate", false)] {
        let hop = faulty(&[fault]).await;
        let (answer, ended) = ask(&mut hop.connect().await, "/service1").await;
        let (claimed, came) = lengths(&answer);
        assert!(answer.starts_with("HTTP/1.1 200 OK") && came > 0 && came < claimed, "{fault}: {came} of {claimed}");
        let kind = ended.as_ref().err().map(std::io::Error::kind);
        assert_eq!(kind, is_reset.then_some(std::io::ErrorKind::ConnectionReset), "{fault}: {ended:?}");
        // What informs is never struck.
        hop.connect().await.write_all(b"GET /healthz HTTP/1.1\r\nhost: hop\r\n\r\n").await.unwrap();
        let metrics = ask_whole(&hop, "/metrics").await;
        assert!(metrics.contains("error_type=\"injected_fault\""), "{fault}: {metrics}");
    }
}

async fn ask_whole(hop: &InProcess, path: &str) -> String {
    let mut stream = hop.connect().await;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: hop\r\n\r\n").as_bytes()).await.unwrap();
    read_answer(&mut stream, false).await.unwrap().text()
}

#[tokio::test]
async fn over_tls_a_cut_answer_is_short_too() {
    for fault in ["reset", "truncate"] {
        let hop = Secure::start(&format!("fault-{fault}"), &["--fault", fault]);
        let mut stream = hop.connect(&[b"http/1.1"], None).await.unwrap();
        stream.write_all(b"GET /service1 HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut bytes = Vec::new();
        let ended = stream.read_to_end(&mut bytes).await;
        let (claimed, came) = lengths(&String::from_utf8(bytes).unwrap());
        assert!(came > 0 && came < claimed, "{fault}: {came} of {claimed}");
        assert!(ended.is_err(), "{fault}: the end of the stream was not announced: {ended:?}");
    }
}

#[tokio::test]
async fn over_http_2_a_cut_answer_is_an_error_of_its_stream_alone() {
    for fault in ["reset", "truncate"] {
        let hop = faulty(&[fault]).await;
        let io = TokioIo::new(hop.connect().await);
        let (mut send, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        let request = |path: &str| http::Request::get(format!("http://hop{path}")).body(Empty::<Bytes>::new()).unwrap();
        let answer = send.send_request(request("/service1")).await.unwrap();
        assert_eq!(answer.status(), 200, "{fault}");
        assert!(answer.into_body().collect().await.is_err(), "{fault}");
        assert_eq!(send.send_request(request("/healthz")).await.unwrap().status(), 200, "{fault}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hang_never_answers_and_ends_with_its_caller_or_after_an_hour() {
    let hop = faulty(&["hang"]).await;
    let begun = Instant::now();
    let mut waiting = hop.connect().await;
    let (answer, _) = timeout(2 * HOUR, ask(&mut waiting, "/service1")).await.expect("a place is not kept for ever");
    assert_eq!((answer.as_str(), begun.elapsed() >= HOUR), ("", true));
    let mut gone = hop.connect().await;
    gone.write_all(b"GET /service1 HTTP/1.1\r\nhost: hop\r\n\r\n").await.unwrap();
    drop(gone);
    eventually("the place is free again", async || {
        ask_whole(&hop, "/metrics").await.contains("error_type=\"client_closed_request\"").then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_comes_at_its_rate() {
    let hop = faulty(&["slow-body=1KiB/s"]).await;
    let mut stream = hop.connect().await;
    stream.write_all(b"GET /service1?bytes=8KiB HTTP/1.1\r\nhost: hop\r\n\r\n").await.unwrap();
    let begun = Instant::now();
    let answer = read_answer(&mut stream, false).await.unwrap();
    let took = begun.elapsed().as_secs_f64();
    assert_eq!(answer.status, 200);
    assert!((7.0..10.0).contains(&took), "8 KiB at 1 KiB/s took {took} s");
}

#[tokio::test]
async fn a_limit_answers_429_with_the_time_until_the_next_request_fits() {
    let hop = Hop::start(&["--fault", "limit=5/m"], &[]);
    for n in 0..5 {
        let (status, reply) = hop.json("/service1", &[]).await;
        assert_eq!((status, &reply["injected"]), (200, &Value::Null), "{n}");
    }
    let answer = hop.get("/service1", &[("accept", "application/json")]).await;
    assert_eq!((answer.status, answer.header("retry-after")), (429, Some("12")));
    assert_eq!(answer.header("ratelimit-policy"), Some("\"fault\";q=5;w=60"));
    assert_eq!(answer.header("ratelimit"), Some("\"fault\";r=0;t=12"));
    assert_eq!(answer.json()["injected"], json!({"abort_status": 429, "faults": ["limit=5/m"]}));
    assert_eq!(hop.get("/hello", &[]).await.status, 429);
    assert_eq!(hop.get("/healthz", &[]).await.status, 200);
}

#[tokio::test]
async fn cpu_is_burnt() {
    let hop = Hop::start(&["--fault", "cpu=100ms"], &[]);
    let used = async || hop.metrics().await.sum("process_cpu_seconds_total", &[]);
    let before = used().await;
    for _ in 0..10 {
        let (_, reply) = hop.json("/service1", &[]).await;
        assert_eq!(reply["injected"], json!({"faults": ["cpu=100ms"]}));
        assert!(reply["duration_ms"].as_f64().unwrap() >= 90.0, "{reply}");
    }
    // The system counts in hundredths of a second.
    let burnt = used().await - before;
    assert!(burnt >= 0.8, "{burnt} s of 1 s");
}

#[tokio::test]
async fn memory_is_held_until_the_answer_was_sent_and_never_more_than_the_hop_may() {
    let hop = Hop::start(&["--fault", "memory=48MiB", "--fault", "slow-body=1B/s"], &[]);
    let sample = async |name: &str, labels: &[(&str, &str)]| hop.metrics().await.sum(name, labels);
    let before = sample("process_resident_memory_bytes", &[]).await;
    let mut stream = TcpStream::connect(hop.addr).await.unwrap();
    stream.write_all(b"GET /hello HTTP/1.1\r\nhost: hop\r\n\r\n").await.unwrap();
    let answer = [("kind", "answer")];
    eventually("it is held", async || (sample("httpserver_held_bytes", &answer).await >= 48e6).then_some(())).await;
    eventually("it is memory", async || (sample("process_resident_memory_bytes", &[]).await - before >= 40e6).then_some(()))
        .await;
    drop(stream);
    let two = Hop::start(&["--fault", "memory=2MiB", "--fault", "memory=3MiB", "--fault", "slow-body=1B/s"], &[]);
    let mut stream = TcpStream::connect(two.addr).await.unwrap();
    stream.write_all(b"GET /hello HTTP/1.1\r\nhost: hop\r\n\r\n").await.unwrap();
    // The answer begins when both are held.
    stream.read_exact(&mut [0; 1]).await.unwrap();
    let held = two.metrics().await.sum("httpserver_held_bytes", &answer);
    assert!(held >= f64::from(5 << 20) - 20e3, "{held}");
    drop(stream);
    eventually("it is given back", async || (sample("httpserver_held_bytes", &answer).await < 1e6).then_some(())).await;
    let hop = Hop::start(&["--fault", "memory=4096MiB"], &[]);
    let shed = hop.get("/service1", &[]).await;
    assert_eq!(shed.header("retry-after"), Some("1"));
    shed.assert_problem(503);
}

#[tokio::test]
async fn a_close_comes_under_the_next_request_on_an_idle_connection() {
    let hop = faulty(&["close"]).await;
    let mut kept = hop.connect().await;
    for path in ["/healthz", "/hello", "/hello"] {
        kept.write_all(format!("GET {path} HTTP/1.1\r\nhost: hop\r\n\r\n").as_bytes()).await.unwrap();
        let answer = read_answer(&mut kept, false).await;
        if path == "/healthz" {
            assert_eq!(answer.unwrap().status, 200);
            continue;
        }
        let answer = answer.expect("the first is answered");
        assert_eq!((answer.status, answer.header("connection")), (200, None), "nothing says so");
        break;
    }
    let (answer, ended) = ask(&mut kept, "/hello").await;
    assert_eq!((answer.as_str(), ended.unwrap_err().kind()), ("", std::io::ErrorKind::ConnectionReset));
    // Over HTTP/2 the frames between two requests do not count as one.
    let io = TokioIo::new(hop.connect().await);
    let (mut send, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request = || http::Request::get("http://hop/hello").body(Empty::<Bytes>::new()).unwrap();
    let answer = send.send_request(request()).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), "Hello from hop v1 ()\n".len() + hostname().len());
    assert!(send.send_request(request()).await.is_err());
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned()
}

const T: &str = "463ac35c9f6413ad48485a3953bb6124";
const S: &str = "a2fb4a1d1a96d312";

/// The headers that `hop` sent to its next hop, and what it says was injected.
async fn sent(hop: &Hop, trace: &str) -> (Value, Value) {
    let w3c = format!("00-{trace}-{S}-01");
    let headers =
        [("traceparent", &*w3c), ("x-b3-traceid", trace), ("x-b3-spanid", S), ("x-b3-sampled", "1"), ("x-request-id", "r")];
    let (_, reply) = hop.json("/service1", &headers).await;
    (reply["upstreams"][0]["sent"].clone(), reply["injected"].clone())
}

#[tokio::test]
async fn every_break_shows_in_what_is_sent_and_in_the_reply_with_and_without_an_exporter() {
    let next = Hop::start(&[], &[]);
    for exporter in ["none", "console"] {
        let is_traced = exporter == "console";
        for kind in [
            "stale-parent",
            "new-trace",
            "flip-sampled",
            "new-request-id",
            "duplicate=traceparent",
            "join=x-request-id",
            "shorten-b3",
            "w3c-only",
            "b3-only",
            "cross-talk",
        ] {
            let hop = Hop::start(&["--upstream", &next.url(""), "--break", kind, "--trace-exporter", exporter], &[]);
            let warned = |line: &String| line.contains("--break") && line.contains(kind);
            assert!(hop.stderr().iter().any(warned), "{kind}: {:?}", hop.stderr());
            let other = "1".repeat(32);
            let (_, first) = sent(&hop, &other).await;
            let (sent, injected) = sent(&hop, T).await;
            if kind == "stale-parent" && !is_traced {
                assert_eq!(injected, Value::Null, "without spans of its own the parent that came in is the right one");
                continue;
            }
            assert_eq!(injected, json!({"breaks": [kind]}), "{exporter} {kind}: {sent}");
            assert_eq!(first.is_null(), kind == "cross-talk", "there was no request before: {first}");
            let one = |name: &str| sent[name][0].as_str().unwrap_or_default();
            let parent: Vec<_> = one("traceparent").split('-').collect();
            let is_right = match kind {
                "stale-parent" => parent[1..3] == [T, S] && one("x-b3-spanid") == S,
                "new-trace" => parent[1] != T && one("x-b3-traceid") == parent[1],
                "flip-sampled" => parent[3] == "00" && one("x-b3-sampled") == "0",
                "new-request-id" => one("x-request-id").len() == 36,
                "duplicate=traceparent" => sent["traceparent"].as_array().is_some_and(|values| values.len() == 2),
                "join=x-request-id" => one("x-request-id").starts_with("r,"),
                "shorten-b3" => one("x-b3-traceid") == &T[16..] && parent[1] == T,
                "w3c-only" => parent[1] == T && sent.get("x-b3-traceid").is_none(),
                "b3-only" => sent.get("traceparent").is_none() && one("x-b3-traceid") == T,
                _ => parent[1] == other && one("x-b3-traceid") == other,
            };
            assert!(is_right, "{exporter} {kind}: {sent}");
        }
    }
}

#[tokio::test]
async fn a_call_of_a_new_trace_is_reported_there_as_a_root() {
    let collector = Sink::zipkin().await;
    let next = Hop::start(&[], &[]);
    let hop = Hop::start(&["--upstream", &next.url(""), "--break", "new-trace"], &collector.env());
    let (sent, _) = sent(&hop, T).await;
    let started = sent["traceparent"][0].as_str().unwrap().split('-').nth(1).unwrap().to_owned();
    let client = collector.trace(&started, 1).await;
    let server = collector.trace(T, 1).await;
    assert_eq!((client[0].parent.as_deref(), server[0].parent.as_deref()), (None, Some(S)), "{client:?} {server:?}");
}

#[tokio::test]
async fn a_break_has_a_rate() {
    let next = Hop::start(&[], &[]);
    let hop = Hop::start(&["--upstream", &next.url(""), "--break", "new-request-id@30%"], &[]);
    let mut broken = 0;
    for _ in 0..400 {
        broken += i32::from(!hop.json("/service1", &[]).await.1["injected"].is_null());
    }
    // 120 expected with a standard deviation of 9.2: five of them.
    assert!((74..=166).contains(&broken), "{broken} of 400");
}

#[tokio::test]
async fn a_request_brings_its_own_faults_to_the_hops_that_it_names() {
    let on = ["--request-faults", "on"];
    let third = Hop::start(&[&["--name", "service3"], &on[..]].concat(), &[]);
    let second = Hop::start(&[&["--name", "service2", "--upstream", &third.url("")], &on[..]].concat(), &[]);
    let first = Hop::start(&[&["--name", "service1", "--upstream", &second.url("")], &on[..]].concat(), &[]);
    assert!(first.stderr().iter().any(|line| line.contains("--request-faults")), "{:?}", first.stderr());
    let fault = "service3:abort=503; service2:break=new-request-id;service2/v9:hang";
    let (status, reply) = first.json("/service1", &[("x-fault", fault), ("x-request-id", "r")]).await;
    assert_eq!((status, &reply["injected"], &reply["received"]["x-fault"]), (502, &Value::Null, &json!([fault])));
    let below = &reply["upstreams"][0]["reply"];
    assert_eq!((&below["injected"], &below["status"]), (&json!({"breaks": ["new-request-id"]}), &json!(502)));
    let last = &below["upstreams"][0]["reply"];
    assert_eq!((&last["injected"], &last["status"]), (&json!({"abort_status": 503}), &json!(503)));
    // Nothing of it is left in the next request.
    assert_eq!(first.json("/service1", &[]).await.0, 200);
    let (status, reply) = first.json("/service1", &[("x-fault", "service1:abort=503;service2:explode")]).await;
    let error = reply["injected"]["error"].as_str().unwrap();
    let (_, long) = first.json("/service1", &[("x-fault", "*:delay=60s;*:cpu=15s")]).await;
    assert!(long["injected"]["error"].as_str().unwrap().contains("75s"), "{long}");
    assert!(status == 200 && error.contains("'explode' is no fault; accepted are abort=503"), "{status} {reply}");
}

#[tokio::test]
async fn without_being_asked_for_x_fault_is_neither_read_nor_carried_and_a_token_is_masked() {
    let next = Hop::start(&[], &[]);
    let hop = Hop::start(&["--upstream", &next.url("")], &[]);
    let (status, reply) = hop.json("/service1", &[("x-fault", "*:abort=503")]).await;
    assert_eq!((status, &reply["injected"], reply["received"].get("x-fault")), (200, &Value::Null, None));
    assert_eq!(reply["upstreams"][0]["sent"].get("x-fault"), None);
    let token = [("REQUEST_FAULTS_TOKEN", "s3cret")];
    let hop = Hop::start(&["--upstream", &next.url(""), "--request-faults", "token"], &token);
    let (status, reply) = hop.json("/service1", &[("x-fault", "*:delay=1ms"), ("x-fault-token", "s3cret")]).await;
    assert_eq!((status, &reply["injected"]), (200, &json!({"delay_ms": 1})));
    let masked = json!(["***"]);
    assert_eq!((&reply["received"]["x-fault-token"], &reply["upstreams"][0]["sent"]["x-fault-token"]), (&masked, &masked));
    for wrong in ["", "s3cre", "s3cret2"] {
        let (status, reply) = hop.json("/service1", &[("x-fault", "*:abort=503"), ("x-fault-token", wrong)]).await;
        assert_eq!(status, 200, "{wrong}");
        assert_eq!(reply["injected"], json!({"error": "x-fault needs the right x-fault-token"}), "{wrong}");
    }
}

#[tokio::test]
async fn with_a_seed_the_same_trace_meets_the_same_at_every_instance() {
    let flags = ["--name", "service1", "--fault", "abort=503@50%", "--latency", "1ms..9ms", "--seed"];
    let hops: Vec<_> = ["7", "7", "8"].iter().map(|seed| Hop::start(&[&flags[..], &[seed]].concat(), &[])).collect();
    let outcome = async |hop: &Hop, id: u32| {
        let parent = format!("00-{:032x}-{S}-01", id + 1);
        hop.json("/service1", &[("traceparent", &parent)]).await.0
    };
    let mut outcomes = vec![Vec::new(); 3];
    for id in 0..40 {
        for (hop, outcomes) in hops.iter().zip(&mut outcomes) {
            outcomes.push(outcome(hop, id).await);
        }
        assert_eq!(outcome(&hops[0], id).await, outcomes[0][id as usize], "again");
    }
    assert_eq!(outcomes[0], outcomes[1]);
    assert_ne!(outcomes[0], outcomes[2]);
    assert!(outcomes[0].contains(&200) && outcomes[0].contains(&503));
    // Without a trace the request's id decides.
    let by_request = async |n: u32| hops[0].json("/service1", &[("x-request-id", &format!("r{n}"))]).await.0;
    for n in 0..10 {
        assert_eq!(by_request(n).await, by_request(n).await);
    }
}

#[tokio::test]
async fn with_a_seed_the_same_id_meets_the_same_below_a_hop_that_makes_ids() {
    for exporter in ["none", "console"] {
        let flags = ["--seed", "1", "--trace-exporter", exporter];
        let next = Hop::start(&[&["--name", "service2", "--fault", "abort=503@50%"], &flags[..]].concat(), &[]);
        for (broken, header) in [
            ("new-trace", "traceparent"),
            ("cross-talk", "traceparent"),
            ("duplicate=traceparent", "traceparent"),
            ("join=traceparent", "traceparent"),
            ("w3c-only", "b3"),
            ("new-request-id", "x-request-id"),
            ("flip-sampled", "x-request-id"),
        ] {
            let hop = Hop::start(&[&["--upstream", &next.url(""), "--break", broken], &flags[..]].concat(), &[]);
            let outcome = async |id: u32| {
                let id = format!("{:032x}", id + 1);
                let value = match header {
                    "traceparent" => format!("00-{id}-{S}-01"),
                    "b3" => format!("{id}-{S}-1"),
                    _ => id,
                };
                hop.json("/service1", &[(header, &value)]).await.1["upstreams"][0]["status"].as_u64().unwrap()
            };
            let (mut first, mut again) = (Vec::new(), Vec::new());
            for id in 0..20 {
                first.push(outcome(id).await);
            }
            for id in (0..20).rev() {
                again.insert(0, outcome(id).await);
            }
            assert_eq!(first, again, "{exporter} {broken}");
            assert!(first.contains(&200) && first.contains(&503), "{exporter} {broken}: {first:?}");
        }
    }
}

#[tokio::test]
async fn retries_multiply_and_every_attempt_is_shown() {
    let last = Hop::start(&["--name", "service3", "--fault", "abort=503"], &[]);
    let middle = Hop::start(&["--name", "service2", "--upstream", &last.url(""), "--retries", "2"], &[]);
    let front = Hop::start(&["--name", "service1", "--upstream", &middle.url(""), "--retries", "2"], &[]);
    let (status, reply) = front.json("/service1", &[]).await;
    let calls = reply["upstreams"].as_array().unwrap();
    assert_eq!((status, calls.len()), (502, 3));
    for (n, call) in (1..).zip(calls) {
        assert_eq!((&call["status"], &call["reply"]["attempt"]), (&json!(502), &json!(n)));
        assert_eq!(call["reply"]["upstreams"].as_array().unwrap().len(), 3);
    }
    let received = last.metrics().await.sum("http_server_request_duration_seconds_count", &[("http_route", "/service{n}")]);
    assert_eq!(received, 9.0, "3 times 3");
    // One that goes well in the end is a success.
    let flaky = Hop::start(&["--fault", "abort=503@25%"], &[]);
    let patient = Hop::start(&["--upstream", &flaky.url(""), "--retries", "10"], &[]);
    let mut repeated = 0;
    for _ in 0..40 {
        let (status, reply) = patient.json("/service1", &[]).await;
        let calls = reply["upstreams"].as_array().unwrap();
        let (last, before) = calls.split_last().unwrap();
        assert_eq!((status, &last["status"]), (200, &json!(200)));
        assert!(before.iter().all(|call| call["status"] == 503));
        repeated += before.len();
    }
    assert!(repeated > 0, "a quarter of the attempts fails");
    // None begins when the caller has closed its side.
    let slow = Hop::start(&["--fault", "delay=400ms", "--fault", "abort=503"], &[]);
    let front = Hop::start(&["--upstream", &slow.url(""), "--retries", "9"], &[]);
    let mut gone = TcpStream::connect(front.addr).await.unwrap();
    gone.write_all(b"GET /service1 HTTP/1.1\r\nhost: hop\r\n\r\n").await.unwrap();
    gone.shutdown().await.unwrap();
    gone.read_to_end(&mut Vec::new()).await.unwrap();
    let begun = slow.metrics().await.sum("http_server_request_duration_seconds_count", &[("http_route", "/service{n}")]);
    assert_eq!(begun, 1.0, "no attempt after the first");
    // The attempts divide what the request may call in all.
    let poor = Hop::start(&["--upstream", &last.url(""), "--retries", "9", "--max-calls", "4"], &[]);
    assert_eq!(poor.json("/service1", &[]).await.1["upstreams"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn a_next_hop_can_be_called_for_a_share_of_the_requests_and_so_many_at_once() {
    let slow = Hop::start(&["--latency", "100ms"], &[]);
    let share = format!("25%={}", slow.url(""));
    let hop = Hop::start(&["--upstream", &share, "--upstream", &format!("0%={}", slow.url(""))], &[]);
    let mut called = 0;
    for _ in 0..80 {
        called += hop.json("/service1", &[]).await.1["upstreams"].as_array().unwrap().len();
    }
    // 20 expected with a standard deviation of 3.9: five of them.
    assert!((1..=39).contains(&called), "{called} of 80");
    let urls = vec![slow.url(""); 6].join(",");
    for (fan_out, least) in [("parallel=2", 300.0), ("parallel=6", 100.0)] {
        let hop = Hop::start(&["--upstream", &urls, "--fan-out", fan_out], &[]);
        let (_, reply) = hop.json("/service1", &[]).await;
        assert_eq!(reply["upstreams"].as_array().unwrap().len(), 6);
        let took = reply["duration_ms"].as_f64().unwrap();
        assert!(took >= least, "{fan_out}: {took} ms");
        let calls: f64 = reply["upstreams"].as_array().unwrap().iter().map(|call| call["duration_ms"].as_f64().unwrap()).sum();
        assert!(took < calls, "{fan_out}: {took} ms of {calls}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_start_is_not_ready_and_then_ready() {
    let hop = InProcess::start(|config: &mut HopConfig| config.ready_after = Duration::from_secs(20)).await;
    let begun = Instant::now();
    assert_eq!(ask_whole(&hop, "/readyz").await, "starting\n");
    assert_eq!(ask_whole(&hop, "/healthz").await, "ok\n");
    eventually("it is ready", async || (ask_whole(&hop, "/readyz").await == "ok\n").then_some(())).await;
    assert!(begun.elapsed() >= Duration::from_secs(20));
}
