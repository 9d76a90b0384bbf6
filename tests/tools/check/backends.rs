//! Trace backends that refuse, are slow, stand below a path, or are something else.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::support::*;
use super::{get, jaeger_over};

/// Nothing that a user could take for a lost trace.
fn loses_nothing(run: &Run) {
    let all = run.json.to_string();
    assert!(!all.contains("never arrived") && !all.contains("report to another backend"), "{:#}", run.json);
    let arrived = run.check("traces.arrived");
    assert!(arrived["status"] == "skip" && arrived["text"].as_str().unwrap().contains("not checked"), "{arrived:#}");
}

#[test]
fn a_backend_that_refuses_is_named_with_its_status() {
    let chain = Chain::start(&[traced()]);
    for (status, says) in [
        (401, "answers 401: it asks for credentials"),
        (403, "answers 403: it does not let this caller read"),
        (429, "answers 429: it limits requests"),
        (500, "answers 500: it fails itself"),
        (503, "answers 503: it fails itself"),
    ] {
        let always = fake(move |_| (status, vec![], "no".into()));
        let only_traces = fake(move |request| match request.path.as_str() {
            "/api/v2/services" => (200, vec![], "[]".into()),
            _ => (status, vec![], "no".into()),
        });
        for backend in [always, only_traces] {
            let traces = format!("http://{backend}");
            let run = check(&chain.url(), &["--traces", &traces, "--traces-wait", "1s", "--count", "0"]);
            run.fails("traces.backend", &[says]);
            loses_nothing(&run);
            let doctor = crate::common::run(&["doctor", "--traces", &traces], &[]);
            assert!(doctor.code == Some(1) && doctor.stderr.contains(says), "{doctor:?}");
        }
    }
}

#[test]
fn jaegers_errors_in_an_answer_of_200_are_its_own() {
    let chain = Chain::start(&[traced()]);
    let failed = || json!({"data": null, "errors": [{"code": 500, "msg": "no living connections"}]}).to_string();
    let always = fake(move |_| (200, vec![], failed()));
    let only_traces = fake(move |request| match request.path.as_str() {
        "/api/services" => (200, vec![], json!({"data": ["service1"]}).to_string()),
        path if path.starts_with("/api/traces") => (200, vec![], failed()),
        _ => (404, vec![], String::new()),
    });
    for backend in [always, only_traces] {
        let traces = format!("http://{backend}");
        let run = check(&chain.url(), &["--traces", &traces, "--traces-wait", "1s", "--count", "0"]);
        run.fails("traces.backend", &["answers 200 with errors: no living connections"]);
        loses_nothing(&run);
    }
}

#[test]
fn a_slow_backend_has_the_time_of_traces_wait() {
    let demo = Demo::start();
    let store = demo.store.trim_start_matches("http://").to_owned();
    let slow = fake(move |request| {
        if request.path == "/api/v2/services" {
            std::thread::sleep(Duration::from_secs(6));
        }
        if !request.path.starts_with("/api/v2") {
            return (404, vec![], String::new());
        }
        (200, vec![], get(&store, &request.path).to_string())
    });
    let run = check(&demo.url, &["--traces", &format!("http://{slow}"), "--count", "0"]);
    run.fine();
    assert_eq!(run.check("traces.spans")["data"]["spans"], 5, "{:#}", run.json);
    let silent = serve_streams(|_| std::thread::sleep(Duration::from_secs(60)));
    let chain = Chain::start(&[traced()]);
    let run = check(&chain.url(), &["--traces", &format!("http://{silent}"), "--traces-wait", "1s", "--count", "0"]);
    run.fails("traces.backend", &["gives no answer in time", "--traces-wait"]);
    loses_nothing(&run);
}

#[test]
fn credentials_are_sent_and_never_shown() {
    let demo = Demo::start();
    let store = demo.store.trim_start_matches("http://").to_owned();
    let asked = Arc::new(Mutex::new(Vec::<[Option<String>; 2]>::new()));
    let kept = asked.clone();
    let guarded = fake(move |request| {
        let header = |name: &str| request.header(name).map(str::to_owned);
        kept.lock().unwrap().push([header("authorization"), header("x-scope-orgid")]);
        let is_known = matches!(request.header("authorization"), Some("Bearer s3cret" | "Basic bWU6czNjcmV0"));
        match (is_known, request.path.starts_with("/api/v2")) {
            (false, _) => (401, vec![], "who are you?".into()),
            (true, true) => (200, vec![], get(&store, &request.path).to_string()),
            (true, false) => (404, vec![], String::new()),
        }
    });
    let header = ["--traces-header", "Authorization: Bearer s3cret", "--traces-header", "x-scope-orgid: s3cret"];
    for (traces, flags, code) in [
        (format!("http://{guarded}"), &header[..], 0),
        (format!("http://me:s3cret@{guarded}"), &[], 0),
        (format!("http://me:wrong-s3cret@{guarded}"), &[], 1),
    ] {
        for output in ["text", "json", "junit"] {
            let args = [&["check", &demo.url, "--traces", &traces, "--count", "0", "--output", output], flags].concat();
            let ran = crate::common::run(&args, &[]);
            assert!(ran.code == Some(code) && !format!("{ran:?}").contains("s3cret"), "{ran:?}");
        }
        for output in ["text", "json"] {
            let ran = crate::common::run(&[&["doctor", "--traces", &traces, "--output", output], flags].concat(), &[]);
            assert!(ran.code == Some(code) && !format!("{ran:?}").contains("s3cret"), "{ran:?}");
        }
    }
    assert!(asked.lock().unwrap().contains(&[Some("Bearer s3cret".into()), Some("s3cret".into())]));
    for command in [&["check", &demo.url][..], &["doctor"]] {
        let wrong = ["--traces", "http://127.0.0.1:9", "--traces-header", "Authorization Bearer s3cret"];
        let ran = crate::common::run(&[command, &wrong].concat(), &[]);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.stderr.contains("--traces-header") && !ran.stderr.contains("s3cret"), "{ran:?}");
    }
}

#[test]
fn the_pages_url_will_do_below_a_base_path() {
    let demo = Demo::start();
    let store = demo.store.trim_start_matches("http://").to_owned();
    let zipkin = fake(move |request| match request.path.strip_prefix("/zipkin") {
        Some(path) if path.starts_with("/api/v2") => (200, vec![], get(&store, path).to_string()),
        _ => (200, vec![("content-type", "text/html".into())], "<html>".into()),
    });
    let jaeger = jaeger_over(&demo.store).trim_start_matches("http://").to_owned();
    let deep = fake(move |request| match request.path.strip_prefix("/tracing") {
        Some(path) if path.starts_with("/jaeger/api") => match get(&jaeger, path) {
            serde_json::Value::Null => (404, vec![], String::new()),
            json => (200, vec![], json.to_string()),
        },
        _ => (200, vec![("content-type", "text/html".into())], "<html>".into()),
    });
    let id = "463ac35c9f6413ad48485a3953bb6124";
    for (url, name) in [
        (format!("http://{zipkin}/zipkin/traces/{id}"), "Zipkin"),
        (format!("http://{zipkin}/zipkin/"), "Zipkin"),
        (format!("http://{zipkin}/"), "Zipkin"),
        (format!("http://{deep}/tracing/jaeger/trace/{id}?uiFind=1"), "Jaeger"),
        (format!("http://{deep}/tracing/jaeger/search?service=a"), "Jaeger"),
    ] {
        let run = check(&demo.url, &["--traces", &url, "--count", "0"]);
        run.fine();
        assert!(run.check("traces.backend")["text"].as_str().unwrap().contains(name), "{url}: {:#}", run.json);
        assert_eq!(run.check("traces.spans")["data"]["spans"], 5, "{url}");
    }
}

#[test]
fn tempo_and_grafana_get_a_sentence_about_the_url_that_is_wanted() {
    let chain = Chain::start(&[traced()]);
    let tempo = fake(|request| match request.path.as_str() {
        "/api/echo" => (200, vec![], "echo".into()),
        _ => (404, vec![], "404 page not found".into()),
    });
    let grafana = fake(|request| match request.path.as_str() {
        "/api/health" => (200, vec![], json!({"commit": "c", "database": "ok", "version": "11.1.0"}).to_string()),
        path if path.starts_with("/api/") => (401, vec![], json!({"message": "Unauthorized"}).to_string()),
        _ => (302, vec![("location", "/login".into())], String::new()),
    });
    for (url, says) in [
        (format!("http://{tempo}"), ["This is Tempo", "Jaeger's query API in front of Tempo is wanted"]),
        (format!("http://{grafana}/explore?left=1"), ["This is Grafana", "The URL of its data source is wanted"]),
    ] {
        let run = check(&chain.url(), &["--traces", &url, "--count", "0", "--traces-wait", "2s"]);
        run.fails("traces.backend", &says);
        loses_nothing(&run);
        let doctor = crate::common::run(&["doctor", "--traces", &url], &[]);
        assert!(doctor.code == Some(1) && says.iter().all(|part| doctor.stderr.contains(part)), "{doctor:?}");
    }
}

/// The values that a proxy makes of one.
type Damage = fn(String) -> Vec<String>;

#[test]
fn what_a_proxy_does_to_a_header_has_its_own_name() {
    let cases: [(&str, &str, &str, Damage); 6] = [
        ("traceparent", "propagation.w3c", "several, and receivers disagree", |value| {
            vec![value, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()]
        }),
        ("x-b3-traceid", "propagation.b3", "several, and receivers disagree", |value| {
            vec![value, "0af7651916cd43dd8448eb211c80319c".into()]
        }),
        ("x-b3-spanid", "propagation.b3", "several, and receivers disagree", |value| vec![value, "b7ad6b7169203331".into()]),
        ("traceparent", "propagation.w3c", "joined by a comma", |value| vec![format!("{value}, {value}")]),
        ("x-b3-traceid", "propagation.b3", "shortened to 64 bits", |value| vec![value[16..].to_owned()]),
        ("traceparent", "propagation.w3c", "shortened to 64 bits and padded", |value| {
            vec![format!("00-{}{}", "0".repeat(16), &value[19..])]
        }),
    ];
    for (header, id, says, change) in cases {
        for hop in [plain(), traced()] {
            let chain = Chain::start_via(&[hop.clone(), hop.clone(), hop], |index, addr| match index {
                1 => rewriting(addr, move |name, value| {
                    let values = if name == header { change(value) } else { vec![value] };
                    Some(values.join(&format!("\r\n{name}: ")))
                }),
                _ => addr,
            });
            let run = check(&chain.url(), &["--count", "0"]);
            let sent = format!("service1 sent one {header}, service2 got ");
            run.breaks_at(id, "service1", "service2", Some("between"), &[&sent, says, "A proxy between service1 and service2"]);
            assert_eq!(run.failed().len(), 1, "{header} {says}: {:#}", run.json);
        }
    }
}

/// A Zipkin v2 API with traces of one span that began at these times, in microseconds, and have `long` as a tag. It gives the newest, and of
/// those so many as were asked for, but never more than `cap`.
fn zipkin(began: Vec<u64>, long: String, cap: usize) -> SocketAddr {
    fake(move |request| {
        let number = |key: &str| {
            let value = request.path.split(['?', '&']).find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
            value.map_or(0, |value| value.parse::<u64>().unwrap())
        };
        match request.path.split('?').next().unwrap() {
            "/api/v2/services" => (200, vec![], r#"["a"]"#.into()),
            "/api/v2/traces" => {
                let (to, lookback) = (number("endTs") * 1_000, number("lookback") * 1_000);
                let within = began.iter().enumerate().rev().filter(|(_, start)| (to - lookback..=to).contains(*start));
                let span = |(n, start): (usize, &u64)| {
                    format!(
                        r#"[{{"traceId":"{id:016x}","id":"{id:016x}","kind":"SERVER","timestamp":{start},"duration":5,"localEndpoint":{{"serviceName":"a"}},"tags":{{"long":"{long}"}}}}]"#,
                        id = n + 1
                    )
                };
                let traces: Vec<String> = within.take(cap.min(number("limit") as usize)).map(span).collect();
                (200, vec![], format!("[{}]", traces.join(",")))
            }
            _ => (404, vec![], String::new()),
        }
    })
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros() as u64
}

/// The report of `doctor` on such a backend.
fn doctor_on(backend: SocketAddr, flags: &[&str]) -> serde_json::Value {
    let url = format!("http://{backend}");
    let ran = crate::common::run(&[&["doctor", "--traces", &url, "--output", "json"], flags].concat(), &[]);
    serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{ran:?}"))
}

/// More than 16 MiB in one answer: `doctor` asks for shorter times, and in the shortest for fewer traces.
#[test]
fn doctor_reads_long_traces_in_smaller_pieces() {
    const TRACES: u64 = 10;
    // Apart from each other, and so close that no window divides them.
    for (apart_us, ago_us, lookback, least) in [(120_000_000, 1_500_000_000, "1h", TRACES), (1, 2_000_000, "20s", 5)] {
        let begin = now_us() - ago_us;
        let backend = zipkin((0..TRACES).map(|n| begin + n * apart_us).collect(), "x".repeat(2 << 20), usize::MAX);
        let report = doctor_on(backend, &["--lookback", lookback]);
        let read = report["traces"].as_u64().unwrap();
        assert!((least..=TRACES).contains(&read), "{read} of {TRACES}, {apart_us} us apart");
        let says = report["source"].as_str().unwrap().contains("not all of its traces: traces of one second are too long");
        assert_eq!(says, read < TRACES, "{}", report["source"]);
    }
}

/// Thousands a second, and a backend with a limit of its own: all of them are read, or the report says that they are not.
#[test]
fn doctor_reads_every_trace_however_close_they_are() {
    let begin = now_us() - 60_000_000;
    for (traces, apart_us, cap, read, says) in [
        (1_000, 360, usize::MAX, 1_000, None),
        (150, 1_000_000, 10, 150, None),
        // In one millisecond.
        (300, 1, usize::MAX, 200, Some("one millisecond has more than the 200 traces of an answer")),
    ] {
        let begin = begin - begin % 1_000;
        let backend = zipkin((0..traces).map(|n| begin - n * apart_us).rev().collect(), String::new(), cap);
        let report = doctor_on(backend, &[]);
        let source = report["source"].as_str().unwrap();
        assert!(report["traces"].as_u64().unwrap() >= read, "{source}: {} of {traces}", report["traces"]);
        match says {
            None => assert!(!source.contains("not all"), "{source}"),
            Some(why) => assert!(source.contains(why), "{source}"),
        }
    }
}

/// What answers, and does not as a backend should: the connection, a proxy before it, or another server.
#[test]
fn what_is_wrong_with_an_answer_is_named() {
    let chain = Chain::start(&[traced()]);
    let raw = |answer: &'static str| {
        serve_streams(move |mut stream| {
            let asked = read_request(&mut stream).is_some();
            let _ = stream.write_all(if asked { answer.as_bytes() } else { b"" });
        })
    };
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 82000\r\nconnection: close\r\n\r\n[[{";
    let chunk = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n3\r\n[[{\r\n";
    let packed = |_: &Request| (200, vec![("content-encoding", "gzip".to_owned())], "\u{1f}".to_owned());
    let page = |_: &Request| (200, vec![("content-type", "text/html".to_owned())], "<html>Sign in</html>".to_owned());
    for (backend, says) in [
        (raw(cut), "answers 200 and ends the answer before its 82000 bytes are there"),
        (raw(chunk), "answers 200 and ends the answer in the middle"),
        (raw(""), "closes the connection without an answer"),
        (fake(packed), "answers with content-encoding gzip, which was not asked for"),
        (fake(page), "it answers 200 with a page (HTML)"),
        (fake(|_| (200, vec![], String::new())), "it answers 200 with nothing"),
        (fake(|_| (200, vec![], r#"{"status":"ok"}"#.into())), "it answers 200 with JSON of another kind"),
    ] {
        let url = format!("http://{backend}");
        let run = check(&chain.url(), &["--traces", &url, "--traces-wait", "1s", "--count", "0"]);
        run.fails("traces.backend", &[says]);
        loses_nothing(&run);
        let doctor = crate::common::run(&["doctor", "--traces", &url], &[]);
        assert!(doctor.code == Some(1) && doctor.stderr.contains(says), "{doctor:?}");
        assert!(!doctor.stderr.contains("Nothing listens") && !doctor.stderr.contains("check again"), "{doctor:?}");
    }
    for (url, says) in [("http://127.0.0.1:9", "Nothing listens there"), ("https://127.0.0.1:9", "Nothing listens there")] {
        let doctor = crate::common::run(&["doctor", "--traces", url], &[]);
        assert!(doctor.code == Some(1) && doctor.stderr.contains(says), "{doctor:?}");
    }
    let refusing = serve_streams(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n");
    });
    let plain = format!("https://{refusing}");
    let doctor = crate::common::run(&["doctor", "--traces", &plain], &[]);
    assert!(doctor.code == Some(1) && doctor.stderr.contains("It has no TLS on this port"), "{doctor:?}");
}
