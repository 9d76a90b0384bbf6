//! One deadline and one stop around everything, and limits to what others send.

use std::io::{Read as _, Write as _};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::support::*;

/// Far above what these runs take, far below what they took.
const SOON: Duration = Duration::from_secs(8);
/// Work that grows with the input takes seconds of a debug build, on a busy machine some more; what grew with its square took minutes.
const LINEAR: Duration = Duration::from_secs(60);

#[test]
fn a_handshake_of_a_byte_at_a_time_ends_with_the_timeout() {
    let slow = serve_streams(|mut stream| {
        let _ = stream.read(&mut [0; 1024]);
        // A record of 16 KiB that never comes to its end.
        let _ = stream.write_all(&[0x16, 3, 3, 0x40, 0]);
        while stream.write_all(&[2]).is_ok() {
            std::thread::sleep(Duration::from_millis(300));
        }
    });
    let begun = Instant::now();
    let run = check(&format!("https://{slow}/service1"), &["--timeout", "1s"]);
    run.fails("reach.tls", &["sent no TLS answer in time"]);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}

/// A server that sends interim answers without end.
fn interim_answers() -> std::net::SocketAddr {
    serve_streams(|mut stream| {
        let _ = read_request(&mut stream);
        let interim = b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(4000);
        while stream.write_all(&interim).is_ok() {}
    })
}

#[test]
fn interim_answers_without_end_end_with_the_deadline_and_with_a_signal() {
    let chain = Chain::start(&[traced()]);
    let hop = format!("http://{}/service1", interim_answers());
    let backend = format!("http://{}", interim_answers());
    for args in [vec![hop.as_str()], vec![&chain.url(), "--traces", &backend], vec![&hop, "--traces", &backend]] {
        let begun = Instant::now();
        let run = check(args[0], &[&args[1..], &["--timeout", "40s", "--deadline", "2s"]].concat());
        assert!(begun.elapsed() < SOON, "{args:?}: {:?}", begun.elapsed());
        assert_eq!((run.code, &run.json["interrupted"]), (Some(1), &json!(true)), "{args:?}: {:#}", run.json);

        let mut child = httpserver().arg("check").args(&args).args(["--timeout", "40s"]).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(700));
        signal(&child, "-INT");
        let begun = Instant::now();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{args:?}");
        assert!(begun.elapsed() < SOON, "{args:?}: {:?}", begun.elapsed());
    }
}

/// A backend that is one until it is asked for a trace, and then says nothing.
fn hanging() -> String {
    let addr = serve_streams(|mut stream| {
        if read_request(&mut stream).is_some_and(|request| request.path == "/api/v2/services") {
            let _ = stream.write_all(&response(&(200, vec![], "[]".into())));
        } else {
            std::thread::sleep(Duration::from_secs(60));
        }
    });
    format!("http://{addr}")
}

fn signal(child: &Child, name: &str) {
    let kill = std::process::Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
}

#[test]
fn a_signal_ends_the_wait_for_a_backend_that_hangs() {
    let chain = Chain::start(&[traced(), traced()]);
    for name in ["-INT", "-TERM"] {
        let mut child = httpserver()
            .args(["check", &chain.url(), "--traces", &hanging(), "--output", "json"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The first findings are there by now; the backend is asked.
        std::thread::sleep(Duration::from_millis(1500));
        signal(&child, name);
        let begun = Instant::now();
        assert_eq!(child.wait().unwrap().code(), Some(1));
        assert!(begun.elapsed() < Duration::from_secs(3), "{name}: {:?}", begun.elapsed());
        let report: serde_json::Value = serde_json::from_reader(child.stdout.take().unwrap()).unwrap();
        assert_eq!((&report["interrupted"], &report["left_out"]), (&json!(true), &json!(["traffic"])), "{report:#}");
    }
}

#[test]
fn a_second_signal_waits_for_nothing() {
    let silent = serve_streams(|_| std::thread::sleep(Duration::from_secs(60)));
    // Nobody reads the report, so it cannot be written.
    let mut child = httpserver()
        .args(["check", &format!("http://{silent}/service1"), "--timeout", "50s"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(700));
    signal(&child, "-INT");
    signal(&child, "-INT");
    let begun = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[test]
fn the_deadline_ends_the_run_and_says_what_it_left_out() {
    let chain = Chain::start(&[plain().arg("--upstream-timeout", "20s"), plain().arg("--latency", "10s")]);
    let begun = Instant::now();
    let run = check(&chain.url(), &["--deadline", "2s", "--timeout", "15s"]);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert_eq!((run.code, &run.json["interrupted"]), (Some(1), &json!(true)), "{:#}", run.json);
    let verdict = run.json["summary"].as_str().unwrap();
    assert!(verdict.starts_with("interrupted by --deadline 2s (left out: Chain, Propagation, Traffic)"), "{verdict}");
}

#[test]
fn an_answer_of_a_backend_without_an_end_is_read_to_16_mib() {
    let endless = serve_streams(|mut stream| {
        let _ = read_request(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n[");
        let block = vec![b' '; 1 << 20];
        while stream.write_all(&block).is_ok() {}
    });
    let chain = Chain::start(&[plain()]);
    let run = check(&chain.url(), &["--traces", &format!("http://{endless}"), "--count", "0"]);
    run.fails("traces.backend", &["longer than 16 MiB"]);
}

#[test]
fn what_a_hostile_hop_and_a_hostile_backend_send_is_compared_soon() {
    // 30,000 header names, received and sent, at two hops. Written once: what counts is how long they are read.
    let body = std::sync::OnceLock::new();
    let front = fake(move |request| {
        let body = body.get_or_init(|| names(request));
        (200, vec![], body.clone())
    });
    fn names(request: &Request) -> String {
        let mut two = reply("service2", "v1", "base", request, vec![]);
        for n in 0..30_000 {
            two["received"][format!("x-header-{n}")] = json!(["a"]);
        }
        let mut one = reply("service1", "v1", "base", request, vec![]);
        one["received"] = two["received"].clone();
        one["upstreams"] = json!([call("service2", two)]);
        one.to_string()
    }
    let begun = Instant::now();
    let run = check(&format!("http://{front}/service1"), &["--count", "2"]);
    assert!(run.code.is_some() && begun.elapsed() < LINEAR, "{:?}", begun.elapsed());

    // A fan-out of 5,000 hops that continue the trace, and a trace of 50,000 spans, each of a service of its own.
    let front = fake(|request| {
        let trace = request.header("traceparent").map_or_else(|| "7".repeat(32), |parent| parent[3..35].to_owned());
        let hop = |service: &str, id: usize| {
            let mut hop = json!({"service": service, "version": "v1", "lane": "base", "hostname": "h", "message": "", "path": "/service1",
                "status": 200, "started_at": "2026-01-02T03:04:05Z", "duration_ms": 1.0, "request_id": "r", "trace_id": trace,
                "span_id": format!("{id:016x}"), "parent_span_id": null, "sampled": true, "propagation": "continue", "received": {},
                "client": {"ip": "127.0.0.1", "identity": null}, "attempt": 1, "injected": null, "upstreams": []});
            hop["received"]["traceparent"] = json!([format!("00-{trace}-{id:016x}-01")]);
            hop
        };
        let mut one = hop("service1", 1);
        let calls = (2..5002).map(|n| {
            json!({"url": "http://a/service2", "status": 200, "duration_ms": 1.0, "error": null, "sent": {"traceparent": [format!("00-{trace}-{:016x}-01", n + 10_000)]}, "reply": hop(&format!("s{n}"), n)})
        });
        one["upstreams"] = calls.collect();
        (200, vec![], one.to_string())
    });
    let store = super::signs::backend(|trace| {
        let span = |n: usize| {
            json!({"traceId": trace, "id": format!("{n:016x}"), "parentId": format!("{:016x}", n + 90_000),
            "localEndpoint": {"serviceName": format!("x{n}")}})
        };
        (1..=50_000).map(span).collect()
    });
    let begun = Instant::now();
    let args = ["--traces", &store, "--traces-wait", "1s", "--count", "0"];
    let run = check(&format!("http://{front}/service1"), &args);
    assert!(run.code.is_some() && begun.elapsed() < LINEAR, "{:?}", begun.elapsed());
}
