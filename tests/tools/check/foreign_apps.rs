//! Chains with a foreign app in the middle: front, the app, leaf.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Response};
use serde_json::json;

use super::support::*;
use crate::common;
use crate::common::foreign_app::{answered, foreign_app, only};

fn everything(headers: &HeaderMap) -> HeaderMap {
    only(headers, &common::CARRIED)
}

fn nothing(_: &HeaderMap) -> HeaderMap {
    HeaderMap::new()
}

fn request_id(headers: &HeaderMap) -> HeaderMap {
    only(headers, &["x-request-id"])
}

/// As a tracer with W3C alone does, which reports to another backend.
fn continued(headers: &HeaderMap) -> HeaderMap {
    let mut headers = only(headers, &["traceparent", "baggage"]);
    if let Some(parent) = headers.get_mut("traceparent") {
        let text = parent.to_str().unwrap();
        *parent = HeaderValue::from_str(&format!("{}00000000000000aa{}", &text[..36], &text[52..])).unwrap();
    }
    headers
}

/// The next hop's answer within JSON of its own.
fn telling(body: &str) -> Response<Body> {
    answered("application/json", format!(r#"{{"items":[{{"id":1}}],"downstream":{{"status":200,"body":{body}}}}}"#))
}

/// The next hop's answer as its own, as an app does that answers with the JSON which it got.
fn retelling(body: &str) -> Response<Body> {
    answered("application/json", body.to_owned())
}

/// Nothing of the next hop's answer.
fn silent(_: &str) -> Response<Body> {
    answered("application/json", r#"{"items":[1,2,3]}"#)
}

/// A front, a foreign app, and a leaf, the hops as `hop` is.
struct Mixed {
    _hops: Vec<common::Hop>,
    url: String,
}

impl Mixed {
    fn start(
        hop: &Hop,
        passes: impl Fn(&HeaderMap) -> HeaderMap + Send + Sync + 'static,
        answers: impl Fn(&str) -> Response<Body> + Send + Sync + 'static,
    ) -> Self {
        let (args, vars): (Vec<&str>, Vec<_>) = (
            hop.args.iter().map(String::as_str).collect(),
            hop.vars.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
        );
        let leaf = serve("leaf", &args, &vars);
        let app = foreign_app(&format!("http://{}/service3", leaf.addr), passes, answers);
        let upstream = format!("http://localhost:{}/catalog", app.port());
        let front = serve("front", &[&args[..], &["--upstream", &upstream]].concat(), &vars);
        let url = format!("http://{}/service1", front.addr);
        Self { _hops: vec![front, leaf], url }
    }

    /// The name by which the front knows the app.
    fn check(&self, args: &[&str]) -> Run {
        check(&self.url, &[&["--count", "3", "--rate", "500"], args].concat())
    }
}

#[test]
fn what_passes_through_an_app_that_tells_is_judged_on_both_sides_of_it() {
    for hop in [plain(), traced()] {
        let chain = Mixed::start(&hop, everything, telling);
        let run = chain.check(&[]);
        run.fine();
        assert_eq!(run.json["verdict"], "healthy", "{:#}", run.json);
        assert!(run.check("chain.hops")["text"].as_str().unwrap().contains("(not httpserver) -> leaf v1"), "{:#}", run.json);
        assert_eq!(run.check("propagation.w3c")["status"], "pass", "{:#}", run.json);
        assert!(run.checks().iter().all(|check| check["id"] != "propagation.unseen"), "{:#}", run.json);

        for (passes, lost) in [(nothing as fn(&HeaderMap) -> HeaderMap, "x-request-id"), (request_id, "x-b3-*")] {
            let run = Mixed::start(&hop, passes, telling).check(&[]);
            run.breaks_at(
                "propagation.trace",
                "front",
                "leaf",
                Some("between"),
                &[
                    "Trace broke between front and leaf, at localhost",
                    "front sent",
                    "traceparent",
                    lost,
                    "an app that is not httpserver",
                    "httpserver probe",
                ],
            );
            assert_eq!((run.json["verdict"].as_str(), run.failed().len()), (Some("broken"), 1), "{:#}", run.json);
        }

        let run = Mixed::start(&hop, continued, telling).check(&[]);
        run.fine();
        let note =
            run.checks().iter().find(|check| check["text"].as_str().unwrap().contains("passes the trace on to leaf")).unwrap();
        assert!(note["status"] == "skip" && note["text"].as_str().unwrap().contains("x-b3-*"), "{note:#}");
        // A new span id behind it is the app's as likely as a proxy's.
        assert!(run.check("propagation.proxies")["text"].as_str().unwrap().contains("No proxy seen"), "{:#}", run.json);
    }
}

#[test]
fn an_app_that_tells_nothing_leaves_the_verdict_open() {
    for passes in [everything as fn(&HeaderMap) -> HeaderMap, nothing, request_id] {
        let chain = Mixed::start(&plain(), passes, silent);
        let run = chain.check(&[]);
        run.fine();
        assert_eq!(run.json["verdict"], "unknown", "{:#}", run.json);
        let says = "healthy as far as it can be seen: nothing behind localhost";
        let summary = run.json["summary"].as_str().unwrap();
        assert!(summary.starts_with(says) && summary.contains("is ours, and no trace backend was given"), "{summary}");
        let strict = chain.check(&["--strict"]);
        assert_eq!((strict.code, &strict.json["verdict"], &strict.json["ok"]), (Some(1), &json!("unknown"), &json!(false)));
        let summary = strict.json["summary"].as_str().unwrap();
        assert!(summary.starts_with("failed by --strict, as not everything could be seen: nothing behind"), "{summary}");
    }
    let chain = Mixed::start(&plain(), everything, silent);
    let text = common::run(&["check", &chain.url, "--count", "1"], &[]);
    assert!(text.code == Some(0) && text.stdout.contains("Verdict  healthy as far as it can be seen: nothing"), "{text:?}");
    for (flags, code, how) in [(&[][..], 0, "<skipped"), (&["--strict"], 1, "<failure")] {
        let junit = common::run(&[&["check", &chain.url, "--count", "1", "--output", "junit"], flags].concat(), &[]);
        let case = junit.stdout.split("<testcase").find(|case| case.contains("everything was seen"));
        assert!(junit.code == Some(code) && case.is_some_and(|case| case.contains(how)), "{junit:?}");
    }
}

#[test]
fn with_the_backend_an_app_that_tells_nothing_is_judged_by_the_traces() {
    let demo = Demo::start();
    let hop = reporting(&demo.store);
    let traces = ["--traces", demo.store.as_str(), "--traces-wait", "20s"];
    let run = Mixed::start(&hop, everything, silent).check(&traces);
    run.fine();
    assert_eq!(run.json["verdict"], "healthy", "{:#}", run.json);
    assert!(
        run.check("traces.stranger")["text"].as_str().unwrap().contains("passes the trace on: leaf reports"),
        "{:#}",
        run.json
    );
    // The leaf's span is of no proxy.
    assert_eq!(run.check("traces.spans")["data"], json!({"spans": 3, "app": 2, "proxies": 0, "others": 1}), "{:#}", run.json);
    for (passes, says) in [
        (nothing as fn(&HeaderMap) -> HeaderMap, "in the time of each of 9 requests, while front waits"),
        (request_id, "for the same request id"),
    ] {
        let run = Mixed::start(&hop, passes, silent).check(&traces);
        run.breaks_at(
            "traces.stranger",
            "front",
            "leaf",
            None,
            &["Trace broke behind localhost", "leaf begins", says, "does not pass the trace headers on", "httpserver probe"],
        );
        assert_eq!((run.json["verdict"].as_str(), run.failed().len()), (Some("broken"), 1), "{:#}", run.json);
    }
}

#[test]
fn with_the_backend_an_app_that_tells_is_judged_once() {
    let demo = Demo::start();
    let hop = reporting(&demo.store);
    let traces = ["--traces", demo.store.as_str(), "--traces-wait", "4s"];
    let run = Mixed::start(&hop, everything, telling).check(&traces);
    run.fine();
    assert_eq!(run.check("traces.spans")["data"], json!({"spans": 3, "app": 3, "proxies": 0}), "{:#}", run.json);
    for passes in [nothing as fn(&HeaderMap) -> HeaderMap, request_id] {
        let run = Mixed::start(&hop, passes, telling).check(&traces);
        run.breaks_at("propagation.trace", "front", "leaf", Some("between"), &["an app that is not httpserver"]);
        run.follows("traces.one", "propagation.trace", &["2 traces"]);
        assert_eq!(run.failed().len(), 1, "{:#}", run.json);
    }
    // Its own span is missing: it reports elsewhere.
    let run = Mixed::start(&hop, continued, telling).check(&traces);
    run.fails("traces.services", &["continues the trace and no span of it arrived", "another backend"]);
    assert_eq!(run.failed().len(), 1, "{:#}", run.json);
}

#[test]
fn an_app_that_answers_with_the_next_hops_reply_is_no_proxy() {
    for hop in [plain(), traced()] {
        for passes in [everything as fn(&HeaderMap) -> HeaderMap, continued] {
            let run = Mixed::start(&hop, passes, retelling).check(&[]);
            run.fine();
            assert!(run.check("propagation.proxies")["text"].as_str().unwrap().contains("No proxy seen"), "{:#}", run.json);
        }
        let run = Mixed::start(&hop, nothing, retelling).check(&[]);
        run.breaks_at("propagation.trace", "front", "leaf", Some("between"), &["localhost", "an app that is not httpserver"]);
        assert_eq!(run.failed().len(), 1, "{:#}", run.json);
    }
}

/// The app itself is called.
#[test]
fn an_app_of_another_make_may_be_the_first_of_all() {
    let leaf = serve("leaf", &[], &[]);
    for (passes, is_whole) in [(everything as fn(&HeaderMap) -> HeaderMap, true), (nothing, false)] {
        let app = foreign_app(&format!("http://{}/service3", leaf.addr), passes, telling);
        let run = check(&format!("http://{app}/catalog"), &["--count", "20", "--rate", "500"]);
        assert!(run.check("reach.http")["text"].as_str().unwrap().contains("in whose answer the reply of leaf stands"));
        if is_whole {
            run.fine();
        } else {
            run.breaks_at(
                "propagation.trace",
                "check",
                "leaf",
                Some("between"),
                &["an app that is not httpserver", "httpserver probe"],
            );
        }
    }
}

/// Answers of all kinds: what is not known is not said.
#[test]
fn whatever_an_app_answers_nothing_false_is_said_of_it() {
    let quoted = |body: &str| answered("application/json", json!({"body": body}).to_string());
    let list = |body: &str| answered("application/json", format!("[{body},{body}]"));
    let bom = |body: &str| answered("application/json", format!("\u{feff}{{\"d\":{body}}}"));
    let cut = |body: &str| answered("application/json", format!(r#"{{"d":{}"#, &body[..body.len() / 2]));
    let xml = |body: &str| answered("application/xml", format!("<r><![CDATA[{body}]]></r>"));
    let lines = |body: &str| answered("application/x-ndjson", format!("{{\"n\":1}}\n{body}\n"));
    let events = |body: &str| answered("text/event-stream", format!("data: {body}\n\n"));
    let empty = |_: &str| Response::builder().status(204).body(Body::empty()).unwrap();
    let packed = |body: &str| {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, body.as_bytes()).unwrap();
        let packed = packed.finish().unwrap();
        Response::builder().header("content-encoding", "gzip").body(Body::from(packed)).unwrap()
    };
    let status = |status: u16| {
        move |body: &str| {
            let response =
                Response::builder().status(status).header("location", "/login").header("content-type", "application/json");
            response.body(Body::from(format!(r#"{{"error":"no","d":{body}}}"#))).unwrap()
        }
    };
    type Answers = Box<dyn Fn(&str) -> Response<Body> + Send + Sync>;
    let cases: Vec<(&str, Answers, &str)> = vec![
        ("quoted", Box::new(quoted), "healthy"),
        ("list", Box::new(list), "healthy"),
        ("byte order mark", Box::new(bom), "unknown"),
        ("cut", Box::new(cut), "unknown"),
        ("xml", Box::new(xml), "unknown"),
        ("lines", Box::new(lines), "unknown"),
        ("events", Box::new(events), "unknown"),
        ("204", Box::new(empty), "unknown"),
        ("gzip", Box::new(packed), "unknown"),
        ("404", Box::new(status(404)), "broken"),
        ("302", Box::new(status(302)), "broken"),
        ("500", Box::new(status(500)), "broken"),
    ];
    for (name, answers, verdict) in cases {
        let run = Mixed::start(&plain(), everything, answers).check(&[]);
        assert_eq!(run.json["verdict"], verdict, "{name}: {:#}", run.json);
        if verdict == "broken" {
            let failed = run.failed();
            assert!(failed.iter().all(|check| check["group"] == "chain" || check["group"] == "traffic"), "{name}: {failed:#?}");
            assert!(failed[0]["text"].as_str().unwrap().contains(&format!("got {name} without a hop's reply")), "{failed:#?}");
        } else {
            run.fine();
        }
    }
}

/// Other users' requests begin traces at the same service, all the time.
#[test]
fn traces_of_others_are_not_taken_for_the_requests() {
    let demo = Demo::start();
    let hop = reporting(&demo.store);
    let vars: Vec<(&str, &str)> = hop.vars.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let args: Vec<&str> = hop.args.iter().map(String::as_str).collect();
    // It answers by itself, and somebody else calls the busy service.
    let busy = serve("busy", &args, &vars);
    let app = fake(|_| (200, vec![], "[]".into()));
    let upstream = format!("http://{app}/catalog");
    let front = serve("front", &[&args[..], &["--upstream", &upstream, "--latency", "100ms"]].concat(), &vars);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let load = std::thread::spawn({
        let (stop, busy) = (stop.clone(), format!("http://{}/service9", busy.addr));
        move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = get_once(&busy);
                // At full speed the store's newest traces are all of this load within a second.
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
    });
    let url = format!("http://{}/service1", front.addr);
    let run = check(&url, &["--count", "3", "--traces", &demo.store, "--traces-wait", "20s"]);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    load.join().unwrap();
    run.fine();
    assert_eq!(run.json["verdict"], "unknown", "{:#}", run.json);
    assert!(run.check("traces.stranger")["text"].as_str().unwrap().contains("not checked"), "{:#}", run.json);
}

/// One GET over a connection of its own.
fn get_once(url: &str) -> std::io::Result<()> {
    use std::io::{Read as _, Write as _};
    let rest = url.trim_start_matches("http://");
    let (host, path) = rest.split_once('/').unwrap();
    let mut stream = std::net::TcpStream::connect(host)?;
    write!(stream, "GET /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

/// Whatever a header's value became, its own name for it, and whether that is a fault.
#[test]
fn what_an_app_makes_of_a_value_is_said_as_it_is() {
    fn with(headers: &HeaderMap, name: &'static str, value: impl Fn(&str) -> String) -> HeaderMap {
        let mut headers = everything(headers);
        if let Some(old) = headers.get_mut(name) {
            *old = HeaderValue::from_str(&value(old.to_str().unwrap())).unwrap();
        }
        headers
    }
    type Passes = fn(&HeaderMap) -> HeaderMap;
    let faults: [(Passes, &str, &str); 5] = [
        (|headers| with(headers, "baggage", |value| value[..5].into()), "propagation.baggage", "baggage"),
        (|headers| with(headers, "baggage", |value| format!("{value}0")), "propagation.baggage", "baggage"),
        (|headers| with(headers, "tracestate", |value| value[..9].into()), "propagation.tracestate", "tracestate"),
        (|headers| with(headers, "x-lane", |_| "other".into()), "propagation.lane", "x-lane"),
        (|headers| with(headers, "x-request-id", |id| format!("{id}, {id}")), "propagation.request-id", "x-request-id"),
    ];
    for (passes, id, header) in faults {
        let run = Mixed::start(&plain(), passes, telling).check(&[]);
        run.breaks_at(id, "front", "leaf", Some("between"), &[header, "at localhost", "an app that is not httpserver"]);
        assert_eq!(run.failed().len(), 1, "{header}: {:#}", run.json);
        assert!(!run.json.to_string().contains("passes the trace on to leaf, without"), "{:#}", run.json);
        let passed = run.checks().iter().filter(|check| check["status"] == "pass").map(|check| check["text"].to_string());
        assert!(passed.filter(|text| text.contains(header)).count() == 0, "{header}: {:#}", run.json);
    }
    let notes: [(Passes, &str); 4] = [
        (|headers| with(headers, "x-request-id", |_| "mine".into()), "with x-request-id of its own: no fault"),
        (|headers| with(headers, "x-b3-traceid", str::to_uppercase), "with x-b3-traceid in upper case: no fault"),
        (|headers| with(headers, "baggage", |_| "theirs=1".into()), "with baggage of its own: no fault"),
        (|headers| only(headers, &["traceparent", "tracestate", "x-request-id"]), "without x-b3-*, baggage and x-lane: no fault"),
    ];
    for (passes, says) in notes {
        let run = Mixed::start(&plain(), passes, telling).check(&[]);
        run.fine();
        let all = run.json.to_string();
        assert!(all.contains(says) && !all.contains("untouched by the hops"), "{says}: {:#}", run.json);
    }
}

/// Every second request brings nothing to the next hop.
fn half() -> impl Fn(&HeaderMap) -> HeaderMap + Send + Sync + 'static {
    let count = std::sync::atomic::AtomicUsize::new(0);
    move |headers| match count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 2 {
        0 => everything(headers),
        _ => nothing(headers),
    }
}

#[test]
fn an_app_that_drops_the_headers_in_some_requests_is_broken() {
    let demo = Demo::start();
    let hop = reporting(&demo.store);
    let traces = ["--traces", demo.store.as_str(), "--traces-wait", "20s"];
    let run = Mixed::start(&hop, half(), silent).check(&traces);
    run.breaks_at(
        "traces.stranger",
        "front",
        "leaf",
        None,
        &["Trace broke behind localhost", " of 9 requests: leaf begins a trace of its own"],
    );
    assert_eq!((run.json["verdict"].as_str(), run.failed().len()), (Some("broken"), 1), "{:#}", run.json);
    let count = std::sync::atomic::AtomicUsize::new(0);
    let some = move |headers: &HeaderMap| match count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 2 {
        0 => everything(headers),
        _ => request_id(headers),
    };
    let run = Mixed::start(&hop, some, silent).check(&traces);
    let says = [" in 5 of 10 requests: leaf begins another trace", "for the same request id"];
    run.breaks_at("traces.stranger", "front", "leaf", None, &says);
    let run = Mixed::start(&hop, everything, silent).check(&traces);
    run.fine();
    assert!(run.json.to_string().contains("in each of the 10 requests that were looked at"), "{:#}", run.json);
}

/// As an app with OpenTelemetry does that reports to another backend: nobody has the span below which the leaf's hangs.
#[test]
fn an_app_that_continues_the_trace_and_reports_elsewhere_has_the_missing_span() {
    let demo = Demo::start();
    let hop = reporting(&demo.store);
    let run = Mixed::start(&hop, continued, silent).check(&["--traces", &demo.store, "--traces-wait", "4s"]);
    run.fails("traces.services", &["localhost", "continues the trace and no span of it arrived", "another backend"]);
    run.follows("traces.orphans", "traces.services", &["1 of 3 spans are orphans", "their parents are the missing spans"]);
    assert_eq!(run.failed().len(), 1, "{:#}", run.json);
    let found = run.check("traces.stranger");
    assert_eq!(found["status"], "pass", "{found:#}");
    assert!(found["text"].as_str().unwrap().contains("passes the trace on: leaf reports"), "{found:#}");
    assert_eq!(run.json["verdict"], "broken", "{:#}", run.json);
}

/// Slow, and its next hop has other requests: more of ours settle it; where the others are too many, the report says so.
#[test]
fn traces_that_begin_in_time_and_at_other_times_are_not_called_nothing() {
    let demo = Demo::start();
    let hop = reporting(&demo.store);
    let args: Vec<&str> = hop.args.iter().map(String::as_str).collect();
    let vars: Vec<(&str, &str)> = hop.vars.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let leaf = serve("leaf", &args, &vars);
    let app = foreign_app(&format!("http://{}/service3", leaf.addr), nothing, silent);
    let upstream = format!("http://localhost:{}/catalog", app.port());
    let front = serve("front", &[&args[..], &["--upstream", &upstream, "--latency", "400ms"]].concat(), &vars);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let load = std::thread::spawn({
        let (stop, leaf) = (stop.clone(), format!("http://{}/service9", leaf.addr));
        move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = get_once(&leaf);
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        }
    });
    let url = format!("http://{}/service1", front.addr);
    let run = check(&url, &["--count", "3", "--traces", &demo.store, "--traces-wait", "2s"]);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    load.join().unwrap();
    run.fine();
    let text = run.check("traces.stranger")["text"].as_str().unwrap().to_owned();
    assert!(text.contains("leaf begins a trace in the time of each of") && text.contains("may be chance"), "{text}");
    assert_eq!(run.json["verdict"], "unknown", "{:#}", run.json);
    assert!(!run.json["summary"].as_str().unwrap().contains("nothing of what it calls"), "{:#}", run.json);
}
