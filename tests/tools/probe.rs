//! `httpserver probe`, on apps that do one thing each to the headers.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use crate::common::{CARRIED, Hop, Ran, ports, run};

type Headers = Vec<(String, String)>;

/// Longer than `probe` waits for a call of which it does not know yet that it comes.
const LATE: Duration = Duration::from_millis(450);

/// An app that calls its next hop with the headers that `sends` makes of those that it received; `None`: no call.
struct App {
    addr: SocketAddr,
}

impl App {
    fn start(downstream: SocketAddr, sends: impl Fn(&Headers) -> Option<Headers> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let sends = Arc::new(sends);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let sends = sends.clone();
                std::thread::spawn(move || serve(stream, downstream, &*sends));
            }
        });
        Self { addr }
    }
}

/// Serves one request of a connection and closes it.
fn serve(mut stream: TcpStream, downstream: SocketAddr, sends: &dyn Fn(&Headers) -> Option<Headers>) -> Option<()> {
    let (target, headers) = head(&stream)?;
    let status = match sends(&headers) {
        None => 200,
        Some(headers) if headers.iter().any(|(name, _)| name == "crash") => 500,
        Some(headers) => {
            let status = call(downstream, &target, &headers).unwrap_or(502);
            if status == 502 && headers.iter().any(|(name, _)| name == "dies") {
                return None;
            }
            let repeats = status == 503 && headers.iter().any(|(name, _)| name == "repeats");
            if repeats { call(downstream, &target, &Headers::new()).unwrap_or(502) } else { status }
        }
    };
    write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").ok()
}

fn head(stream: &TcpStream) -> Option<(String, Headers)> {
    let mut lines = BufReader::new(stream).lines();
    let target = lines.next()?.ok()?.split(' ').nth(1)?.to_owned();
    let pair = |line: String| line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
    let headers = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).filter_map(pair).collect();
    Some((target, headers))
}

/// Calls the next hop; its status, or 504 when it is slow.
fn call(downstream: SocketAddr, target: &str, headers: &Headers) -> Option<u16> {
    let mut stream = TcpStream::connect(downstream).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(700))).ok()?;
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    write!(stream, "GET {target} HTTP/1.1\r\nhost: next\r\nconnection: close\r\n{lines}\r\n").ok()?;
    let mut answer = String::new();
    match stream.read_to_string(&mut answer) {
        Ok(_) if answer.ends_with('}') => answer.split(' ').nth(1)?.parse().ok(),
        Ok(_) => Some(502),
        Err(_) => Some(504),
    }
}

fn copied(headers: &Headers) -> Headers {
    headers.iter().filter(|(name, _)| CARRIED.contains(&name.as_str())).cloned().collect()
}

fn replaced(headers: &Headers, name: &str, with: impl Fn(&str) -> String) -> Headers {
    let change = |(known, value): (String, String)| if known == name { (known, with(&value)) } else { (known, value) };
    copied(headers).into_iter().map(change).collect()
}

/// Runs `probe` against an app that does this.
fn probed(sends: impl Fn(&Headers) -> Option<Headers> + Send + Sync + 'static, flags: &[&str]) -> (Ran, Value) {
    let downstream = ports::free_addr();
    let app = App::start(downstream, sends);
    let (url, address) = (format!("http://{}/orders?id={{nonce}}", app.addr), downstream.to_string());
    let count = if flags.contains(&"--count") { &[][..] } else { &["--count", "40", "--concurrency", "8"] };
    let ran = run(&[&["probe", &url, "--downstream", &address, "--output", "json"], count, flags].concat(), &[]);
    let report = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}\n{}", ran.stdout, ran.stderr));
    (ran, report)
}

/// An app that answers so, and calls nobody.
fn answering(status: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = head(&stream);
            let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    addr
}

fn probed_at(app: SocketAddr) -> (Ran, Value) {
    let (url, address) = (format!("http://{app}/orders"), ports::free_addr().to_string());
    let ran = run(&["probe", &url, "--downstream", &address, "--output", "json"], &[]);
    let report = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}\n{}", ran.stdout, ran.stderr));
    (ran, report)
}

/// Ids of the checks that failed, and all texts.
fn failed(report: &Value) -> Vec<&str> {
    let checks = report["checks"].as_array().unwrap().iter();
    checks.filter(|check| check["status"] == "fail").map(|check| check["id"].as_str().unwrap()).collect()
}

fn text_of<'a>(report: &'a Value, id: &str) -> &'a str {
    let check = report["checks"].as_array().unwrap().iter().find(|check| check["id"] == id);
    check.unwrap_or_else(|| panic!("no {id} in {report:#}"))["text"].as_str().unwrap()
}

#[test]
fn an_app_that_copies_every_header_passes() {
    let (ran, report) =
        probed(|headers| Some(copied(headers)), &["--expect", "w3c,b3,b3-single,x-request-id,baggage,tracestate,x-lane"]);
    assert_eq!((ran.code, failed(&report)), (Some(0), vec![]), "{report:#}");
    assert!(text_of(&report, "probe.w3c").contains("forwarded untouched in all 3 calls"), "{report:#}");
    assert!(text_of(&report, "probe.precedence").contains("follows none"), "{report:#}");
    assert!(text_of(&report, "probe.cross-talk").contains("40 calls, each known by its request"), "{report:#}");
}

/// As an OpenTelemetry SDK with its default propagators does: B3 is dropped, and that is right.
#[test]
fn an_app_that_continues_one_format_passes_unless_more_is_expected() {
    let app = |headers: &Headers| {
        let parent = headers.iter().find(|(name, value)| name == "traceparent" && value.len() == 55 && value.starts_with("00-"));
        let valid = parent.filter(|(_, value)| !value[3..35].bytes().all(|b| b == b'0'));
        let (trace, flags) = valid.map_or(("7".repeat(32), "01"), |(_, value)| (value[3..35].to_owned(), &value[53..]));
        Some(vec![("traceparent".to_owned(), format!("00-{trace}-00f067aa0ba902b7-{flags}"))])
    };
    let (ran, report) = probed(app, &[]);
    assert_eq!((ran.code, failed(&report)), (Some(0), vec![]), "{report:#}");
    assert!(text_of(&report, "probe.w3c").contains("continued with own span ids"), "{report:#}");
    assert!(text_of(&report, "probe.precedence").contains("W3C (traceparent) wins"), "{report:#}");
    let (ran, report) = probed(app, &["--expect", "w3c,b3,baggage"]);
    assert_eq!((ran.code, failed(&report)), (Some(1), vec!["probe.b3", "probe.baggage"]), "{report:#}");
}

#[test]
fn each_way_to_lose_or_damage_a_header_is_named() {
    type Sends = Box<dyn Fn(&Headers) -> Option<Headers> + Send + Sync>;
    let upper = |headers: &Headers| Some(replaced(headers, "traceparent", str::to_uppercase));
    let twice = |headers: &Headers| {
        let mut copied = copied(headers);
        copied.extend(headers.iter().filter(|(name, _)| name == "x-request-id").cloned());
        Some(copied)
    };
    let joined = |headers: &Headers| Some(replaced(headers, "b3", |value| format!("{value},{value}")));
    let short =
        |headers: &Headers| Some(replaced(headers, "x-b3-traceid", |value| value[value.len().saturating_sub(16)..].to_owned()));
    let flipped = |headers: &Headers| {
        Some(replaced(headers, "traceparent", |value| format!("{}1", &value[..value.len().saturating_sub(1)])))
    };
    let never = |headers: &Headers| {
        Some(replaced(headers, "traceparent", |value| format!("{}0", &value[..value.len().saturating_sub(1)])))
    };
    let never_b3 = |headers: &Headers| Some(replaced(headers, "x-b3-sampled", |_| "0".to_owned()));
    let padded = |headers: &Headers| Some(replaced(headers, "x-b3-traceid", |value| format!("{value:0>32}")));
    let zeros = |value: &str| format!("{:0>32}", &value[value.len().saturating_sub(16)..]);
    let halved = move |headers: &Headers| {
        let of = |value: &str| {
            format!("{}{}{}", &value[..3.min(value.len())], zeros(value.get(3..35).unwrap_or("")), value.get(35..).unwrap_or(""))
        };
        Some(replaced(headers, "traceparent", of))
    };
    let halved_b3 = move |headers: &Headers| Some(replaced(headers, "x-b3-traceid", zeros));
    let halved_single = move |headers: &Headers| {
        Some(replaced(headers, "b3", |value| {
            let (trace, rest) = value.split_once('-').unwrap_or((value, ""));
            format!("{}-{rest}", zeros(trace))
        }))
    };
    let span = |headers: &Headers| Some(replaced(headers, "x-b3-spanid", |value| format!("{value:0>32}")));
    let upper_span = |headers: &Headers| {
        let of = |value: &str| {
            let (head, tail) = value.split_at_checked(36).unwrap_or((value, ""));
            format!("{head}{}", tail.to_uppercase())
        };
        Some(replaced(headers, "traceparent", of))
    };
    let commas = |headers: &Headers| Some(replaced(headers, "baggage", |value| format!("{value},")));
    let none = |headers: &Headers| Some(headers.iter().filter(|(name, _)| name == "x-request-id").cloned().collect());
    let crash = |headers: &Headers| {
        let bad = headers.iter().any(|(name, value)| name == "traceparent" && value.len() != 55);
        Some(if bad { vec![("crash".to_owned(), String::new())] } else { copied(headers) })
    };
    let cases: Vec<(Sends, &[&str], &str)> = vec![
        (Box::new(upper), &["probe.w3c"], "in upper case"),
        (Box::new(twice), &["probe.request-id"], "sends it twice"),
        (Box::new(joined), &["probe.b3-single"], "by a comma"),
        (Box::new(short), &["probe.b3"], "to 64 bits"),
        (Box::new(padded), &["probe.short-ids"], "pads its trace id of 64 bits to 128"),
        (Box::new(halved), &["probe.w3c"], "shortens its trace id to 64 bits and pads them with zeros"),
        (Box::new(halved_b3), &["probe.b3"], "shortens its trace id to 64 bits and pads them with zeros"),
        (Box::new(halved_single), &["probe.b3-single"], "shortens its trace id to 64 bits and pads them with zeros"),
        (Box::new(span), &["probe.b3"], "pads or shortens its span id"),
        (Box::new(upper_span), &["probe.w3c"], "in upper case"),
        (Box::new(commas), &["probe.baggage"], "adds a comma without a value"),
        (Box::new(flipped), &["probe.sampling"], "\"not sampled\" in W3C (traceparent) arrives as sampled"),
        (Box::new(never), &["probe.sampling"], "\"sampled\" in W3C (traceparent) arrives as not sampled"),
        (Box::new(never_b3), &["probe.sampling"], "\"sampled\" in B3 (x-b3-…) arrives as not sampled"),
        (Box::new(none), &["probe.context"], "The trace ends at this app"),
        (Box::new(crash), &["probe.invalid"], "make the app fail"),
    ];
    let (_, report) = probed(|headers: &Headers| Some(replaced(headers, "traceparent", str::to_uppercase)), &[]);
    let invalid = text_of(&report, "probe.invalid");
    assert!(invalid.contains("changed") && !invalid.contains("replaced"), "an invalid value stays one: {invalid}");
    let examine = |(sends, ids, text): (Sends, &[&str], &str)| {
        let (ran, report) = probed(sends, &[]);
        assert_eq!(ran.code, Some(1), "{ids:?}: {report:#}");
        // Two ids that disagree can follow from a damaged one.
        let failed: Vec<&str> =
            failed(&report).into_iter().filter(|id| *id != "probe.agreement" && *id != "probe.cross-talk").collect();
        assert_eq!(failed, ids, "{report:#}");
        assert!(text_of(&report, ids[0]).contains(text), "{report:#}");
    };
    // Each takes seconds, most of which it waits.
    std::thread::scope(|scope| cases.into_iter().for_each(|case| drop(scope.spawn(move || examine(case)))));
}

/// Members that are empty are allowed in a `tracestate`.
#[test]
fn an_empty_member_of_a_tracestate_is_a_note() {
    let app = |headers: &Headers| Some(replaced(headers, "tracestate", |value| format!("{value},")));
    let (ran, report) = probed(app, &["--expect", "tracestate"]);
    assert_eq!((ran.code, failed(&report)), (Some(0), vec![]), "{report:#}");
    let text = text_of(&report, "probe.tracestate");
    assert!(text.contains("list members that are empty, which W3C permits"), "{text}");
}

/// As a client does that writes the header beside code that copies it.
#[test]
fn a_context_sent_twice_is_not_said_to_be_dropped() {
    let twice = |headers: &Headers| {
        let parent: Headers = headers.iter().filter(|(name, _)| name == "traceparent").cloned().collect();
        Some([parent.clone(), parent].concat())
    };
    let (ran, report) = probed(twice, &[]);
    assert_eq!((ran.code, failed(&report)), (Some(1), vec!["probe.w3c", "probe.context"]), "{report:#}");
    let checks = report["checks"].as_array().unwrap();
    let context = checks.iter().find(|check| check["id"] == "probe.context").unwrap();
    assert!(context["cause"].as_str().unwrap().contains("is damaged"), "{context}");
}

/// An answer first, and the call from a queue.
#[test]
fn a_call_long_after_the_answer_is_that_requests_call() {
    let downstream = ports::free_addr();
    let app = App::start(downstream, move |headers| {
        let headers = copied(headers);
        std::thread::spawn(move || {
            std::thread::sleep(LATE);
            call(downstream, "/stock", &headers)
        });
        None
    });
    let (url, address) = (format!("http://{}/orders", app.addr), downstream.to_string());
    let expected = ["--expect", "w3c,b3,x-request-id", "--output", "json", "--count", "8"];
    let ran = run(&[&["probe", &url, "--downstream", &address], &expected[..]].concat(), &[]);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((ran.code, failed(&report)), (Some(0), vec![]), "{report:#}");
}

/// As a busy machine starts a thread: the first call comes at once, the next ones do not.
#[test]
fn calls_that_come_later_than_the_first_are_counted() {
    let downstream = ports::free_addr();
    let served = Arc::new(AtomicUsize::new(0));
    let app = App::start(downstream, move |headers| {
        let (headers, number) = (copied(headers), served.fetch_add(1, Ordering::Relaxed));
        std::thread::spawn(move || {
            std::thread::sleep(if number % 3 == 1 { LATE } else { Duration::ZERO });
            call(downstream, "/stock", &headers)
        });
        None
    });
    let (url, address) = (format!("http://{}/orders", app.addr), downstream.to_string());
    let ran = run(&["probe", &url, "--downstream", &address, "--output", "json", "--count", "4"], &[]);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((ran.code, failed(&report)), (Some(0), vec![]), "{report:#}");
    assert!(text_of(&report, "probe.calls").contains("It makes 1 call a request"), "{report:#}");
}

/// As an app does that kept a connection to its next hop from before: the request that meets it fails.
#[test]
fn a_first_request_that_calls_nobody_is_a_note() {
    let served = AtomicUsize::new(0);
    let app = move |headers: &Headers| (served.fetch_add(1, Ordering::Relaxed) > 0).then(|| copied(headers));
    let (ran, report) = probed(app, &[]);
    assert_eq!((ran.code, failed(&report)), (Some(0), vec![]), "{report:#}");
    let checks = report["checks"].as_array().unwrap();
    let calls = checks.iter().find(|check| check["id"] == "probe.calls").unwrap().to_string();
    assert!(calls.contains("It makes 1 call a request") && calls.contains("the first request led to none"), "{calls}");
}

/// A global that every request writes and every call reads.
fn leaking(passed_on: fn(&Headers) -> Headers) -> impl Fn(&Headers) -> Option<Headers> + Send + Sync + 'static {
    let last: Arc<Mutex<Headers>> = Arc::default();
    move |headers| {
        *last.lock().unwrap() = passed_on(headers);
        std::thread::sleep(Duration::from_millis(20));
        Some(last.lock().unwrap().clone())
    }
}

#[test]
fn a_context_that_leaks_between_requests_is_found() {
    let (ran, report) = probed(leaking(copied), &[]);
    assert_eq!((ran.code, failed(&report)), (Some(1), vec!["probe.cross-talk"]), "{report:#}");
    assert!(text_of(&report, "probe.cross-talk").contains("carry the trace of another request"), "{report:#}");
}

/// The headers of the first request, for ever; those of the request before, where a request has none of a kind; and the same in full
/// where it brings nothing.
#[test]
fn a_context_that_stays_after_its_request_is_found() {
    let (first, before) = (Mutex::new(None), Mutex::new(Headers::new()));
    let stale = move |headers: &Headers| {
        let mut first = first.lock().unwrap();
        if first.is_none() && headers.iter().any(|(name, _)| name == "traceparent") {
            *first = Some(copied(headers));
        }
        Some(first.clone().unwrap_or_default())
    };
    let fills_in = move |headers: &Headers| {
        let (mut before, mut sent) = (before.lock().unwrap(), copied(headers));
        let absent = before.iter().filter(|(name, _)| sent.iter().all(|(known, _)| known != name)).cloned().collect::<Vec<_>>();
        sent.extend(absent);
        *before = sent.clone();
        Some(sent)
    };
    for (ran, report) in [probed(stale, &[]), probed(fills_in, &[])] {
        assert_eq!(ran.code, Some(1), "{report:#}");
        assert!(failed(&report).contains(&"probe.cross-talk"), "{report:#}");
        assert!(text_of(&report, "probe.cross-talk").contains("carry the trace of an earlier request"), "{report:#}");
    }
}

/// Only the first attempt has the headers.
#[test]
fn a_call_that_is_repeated_without_the_headers_is_found() {
    let (ran, report) = probed(|headers| Some([copied(headers), vec![("repeats".into(), "1".into())]].concat()), &[]);
    assert_eq!((ran.code, failed(&report)), (Some(1), vec!["probe.failures"]), "{report:#}");
    assert!(text_of(&report, "probe.failures").contains("do not go on with the trace"), "{report:#}");
}

/// No context passes, and a request id in a global does.
#[test]
fn without_a_context_requests_are_known_by_their_nonce() {
    fn only_id(headers: &Headers) -> Headers {
        headers.iter().filter(|(name, _)| name == "x-request-id").cloned().collect()
    }
    let (ran, report) = probed(|headers| Some(only_id(headers)), &[]);
    assert_eq!((ran.code, failed(&report)), (Some(1), vec!["probe.context"]), "{report:#}");
    let text = text_of(&report, "probe.cross-talk");
    assert!(text.contains("each known by its request, none with a trace of another one"), "{report:#}");
    let agreement = report["checks"].as_array().unwrap().iter().find(|check| check["id"] == "probe.agreement").unwrap();
    assert!(agreement["status"] == "skip" && agreement["text"].as_str().unwrap().contains("no call has a context"), "{report:#}");
    let (ran, report) = probed(leaking(only_id), &[]);
    assert_eq!((ran.code, failed(&report)), (Some(1), vec!["probe.context", "probe.cross-talk"]), "{report:#}");
}

/// Two next hops, of which one is called without a context and one not at all.
#[test]
fn each_address_is_judged_by_itself() {
    let [good, bad, idle] = [(); 3].map(|()| ports::free_addr());
    let app = App::start(good, move |headers| {
        call(bad, "/stock", &Headers::new());
        Some(copied(headers))
    });
    let url = format!("http://{}/orders", app.addr);
    let addresses = [good, bad, idle].map(|address| address.to_string());
    let flags: Vec<&str> = addresses.iter().flat_map(|address| ["--downstream", address.as_str()]).collect();
    let ran = run(&[&["probe", &url, "--output", "json", "--count", "8"], &flags[..]].concat(), &[]);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let w3c = checks.iter().find(|check| check["id"] == "probe.w3c").unwrap();
    let lines = w3c["detail"].to_string();
    assert!(
        lines.contains(&format!("{good}: forwarded untouched in 3")) && lines.contains(&format!("{bad}: absent in 3")),
        "{w3c:#}"
    );
    let is_idle = |check: &Value| check["text"].as_str().unwrap().starts_with(&format!("{idle} is never called"));
    assert!(checks.iter().any(is_idle), "{report:#}");
}

#[test]
fn an_app_that_never_calls_is_said_to_do_so() {
    let silent = || {
        let (ran, report) = probed(|_| None, &[]);
        assert_eq!((ran.code, failed(&report)), (Some(1), vec!["probe.calls"]), "{report:#}");
        assert!(text_of(&report, "probe.calls").contains("calls nobody at 127.0.0.1:"), "{report:#}");
    };
    let refuses = |answer: &'static str, cause: &str| {
        let status = answer.split(' ').next().unwrap();
        let (ran, report) = probed_at(answering(answer));
        assert_eq!((ran.code, failed(&report)), (Some(1), vec!["probe.calls"]), "{report:#}");
        assert!(text_of(&report, "probe.calls").contains(&format!(" with {status} and calls nobody")), "{report:#}");
        let check = report["checks"].as_array().unwrap().iter().find(|check| check["id"] == "probe.calls").unwrap();
        assert!(check["cause"].as_str().unwrap().contains(cause), "{check:#}");
        let next = check["next"][0].as_str().unwrap();
        assert!(
            next.starts_with("httpserver probe http://127.0.0.1:") || next.starts_with("curl -sv -X GET http://127.0.0.1:"),
            "{next}"
        );
    };
    // Each takes nine seconds, which it waits.
    std::thread::scope(|scope| {
        scope.spawn(silent);
        scope.spawn(|| refuses("302 Found\r\nlocation: /login", "redirects to /login"));
        scope.spawn(|| refuses("500 Internal Server Error", "fails with 500 before its call"));
        scope.spawn(|| refuses("401 Unauthorized", "refuses the request with 401"));
    });
    let nobody = format!("http://{}/", ports::free_addr());
    let ran = run(&["probe", &nobody, "--downstream", "127.0.0.1:0"], &[]);
    assert!(ran.code == Some(1) && ran.stdout.contains("has no answer"), "{}{}", ran.stdout, ran.stderr);
}

/// The product itself, as a hop that forwards and as one that loses a header.
#[test]
fn a_hop_of_the_chain_passes_and_one_that_loses_headers_does_not() {
    for (dropped, code) in [(None, 0), (Some("x-b3-spanid"), 1)] {
        let downstream = ports::free_addr().to_string();
        let upstream = format!("http://{downstream}");
        let drop: Vec<&str> = dropped.map_or(vec![], |name| vec!["--drop-header", name]);
        let hop = Hop::start(
            &[&["--name", "service1", "--upstream", &upstream, "--upstream-timeout", "500ms"][..], &drop].concat(),
            &[],
        );
        let expect = ["--expect", "w3c,b3,x-request-id,baggage"];
        let ran =
            run(&[&["probe", &hop.url("/service1"), "--downstream", &downstream, "--count", "40"], &expect[..]].concat(), &[]);
        assert_eq!(ran.code, Some(code), "{}{}", ran.stdout, ran.stderr);
        assert!(ran.stdout.contains("httpserver probe http://127.0.0.1:"), "{}", ran.stdout);
    }
}

#[test]
fn requests_that_the_app_fails_are_a_finding_and_nothing_is_said_of_their_headers() {
    let crashing = |headers: &Headers| {
        let crash = headers.iter().any(|(name, _)| name == "x-request-id").then(|| ("crash".to_owned(), String::new()));
        Some(copied(headers).into_iter().chain(crash).collect())
    };
    let (ran, report) = probed(crashing, &["--expect", "x-request-id"]);
    assert_eq!((ran.code, failed(&report)), (Some(1), vec!["probe.reach"]), "{report:#}");
    let checks = report["checks"].as_array().unwrap();
    let finding = checks.iter().find(|check| check["status"] == "fail").unwrap();
    let text = finding["text"].as_str().unwrap();
    assert!(text.starts_with("The app fails 3 requests because of what they bring: it answers 500 to "), "{text}");
    assert!(text.contains("x-request-id"), "{text}");
    assert!(text_of(&report, "probe.request-id").contains("not checked, because no call came"), "{report:#}");
    assert!(text_of(&report, "probe.w3c").contains("forwarded untouched"), "{report:#}");
}

/// A counter of an app's requests.
fn counter() -> impl Fn() -> usize + Send + Sync + 'static {
    let count = AtomicUsize::new(0);
    move || count.fetch_add(1, Ordering::Relaxed)
}

#[test]
fn an_app_that_fails_at_random_is_not_blamed_for_headers() {
    for every in [3, 4] {
        let next = counter();
        let flaky = move |headers: &Headers| {
            Some(if next() % every == every - 1 { vec![("crash".to_owned(), String::new())] } else { copied(headers) })
        };
        let (ran, report) = probed(flaky, &["--expect", "w3c,b3,x-request-id,baggage"]);
        assert_eq!((ran.code, failed(&report)), (Some(0), vec![]), "{report:#}");
        let checks = report["checks"].as_array().unwrap();
        let note = checks.iter().find(|check| check["text"].as_str().unwrap().contains("fails at times")).unwrap();
        assert!(note["status"] == "skip" && note["text"].as_str().unwrap().contains("passed when sent again"), "{note:#}");
        assert!(text_of(&report, "probe.invalid").contains("24 invalid contexts make no request fail"), "{report:#}");
    }
}

/// As a cache makes it: what a request without a call leads to says nothing of its headers.
#[test]
fn an_app_that_calls_in_every_second_request_is_asked_until_it_calls() {
    let next = counter();
    let cached = move |headers: &Headers| (next().is_multiple_of(2)).then(|| copied(headers));
    let (ran, report) = probed(cached, &[]);
    assert_eq!((ran.code, failed(&report)), (Some(0), vec![]), "{report:#}");
    assert!(text_of(&report, "probe.precedence").contains("follows none"), "{report:#}");
    assert!(!text_of(&report, "probe.invalid").contains("no call"), "{report:#}");
    let checks = report["checks"].as_array().unwrap();
    let failures = checks.iter().find(|check| check["id"] == "probe.failures").unwrap()["detail"].to_string();
    assert!(failures.contains("the app answers 503") && !failures.contains("answers 200"), "{failures}");
}

#[test]
fn an_app_that_ends_the_connection_when_its_next_hop_resets_is_not_slow() {
    let dying = |headers: &Headers| Some([copied(headers), vec![("dies".to_owned(), "1".to_owned())]].concat());
    let (_, report) = probed(dying, &[]);
    let checks = report["checks"].as_array().unwrap();
    let failures = checks.iter().find(|check| check["id"] == "probe.failures").unwrap()["detail"].to_string();
    assert!(failures.contains("it resets the connection: the app gives no answer after "), "{failures}");
    assert!(failures.contains("its handler fails") && !failures.contains("no answer within"), "{failures}");
}

#[test]
fn an_id_of_the_apps_own_and_a_value_that_is_cut_have_their_names() {
    let own = |headers: &Headers| {
        let ids = replaced(headers, "x-request-id", |_| "mine".to_owned());
        Some(
            ids.into_iter()
                .map(
                    |(name, value)| {
                        if name == "tracestate" { (name, value.get(..9).unwrap_or(&value).to_owned()) } else { (name, value) }
                    },
                )
                .collect(),
        )
    };
    let (ran, report) = probed(own, &[]);
    assert_eq!((ran.code, failed(&report)), (Some(1), vec!["probe.tracestate"]), "{report:#}");
    assert!(text_of(&report, "probe.tracestate").contains("cuts its value short"), "{report:#}");
    let checks = report["checks"].as_array().unwrap();
    let id = checks.iter().find(|check| check["id"] == "probe.request-id").unwrap().to_string();
    assert!(id.contains("another value in 3 of 3 calls") && id.contains("makes one of its own"), "{id}");
}

#[test]
fn probes_own_listener_is_no_app() {
    let port = ports::free_addr().port();
    for (url, downstream) in [
        (format!("http://127.0.0.1:{port}/orders"), format!("127.0.0.1:{port}")),
        (format!("http://localhost:{port}/orders"), format!("0.0.0.0:{port}")),
        (format!("http://0.0.0.0:{port}/orders"), format!(":{port}")),
    ] {
        let ran = run(&["probe", &url, "--downstream", &downstream], &[]);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{url} {downstream}: {}", ran.stderr);
        assert!(ran.stderr.contains("where probe itself listens, and not the app; accepted:"), "{}", ran.stderr);
    }
}

/// What an app receives of one run is what the help says.
#[test]
fn the_number_of_requests_is_the_one_that_is_said() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let app = move |headers: &Headers| {
        counted.fetch_add(1, Ordering::Relaxed);
        Some(copied(headers))
    };
    let (ran, report) = probed(app, &["-X", "POST", "--count", "1"]);
    assert_eq!(ran.code, Some(0), "{report:#}");
    let sent = count.load(Ordering::Relaxed);
    assert!((60..=66).contains(&sent), "{sent}");
    let help = run(&["probe", "--help"], &[]).stdout;
    let usage = run(&["probe", "http://127.0.0.1:9/", "--downstream", "127.0.0.1:0", "-X", "POST"], &[]).stderr;
    assert!(help.contains("65 or so") && usage.contains("about 65 are sent beside those of --count"), "{help}{usage}");
}

#[test]
fn an_address_for_tls_needs_a_certificate() {
    for scheme in ["https", "grpcs"] {
        let downstream = format!("{scheme}://{}", ports::free_addr());
        let ran = run(&["probe", "http://127.0.0.1:9/", "--downstream", &downstream], &[]);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{}", ran.stderr);
        assert!(ran.stderr.contains("--downstream-tls-cert"), "{}", ran.stderr);
    }
}

#[test]
fn wrong_usage_is_named_and_nothing_is_sent() {
    let app = "http://127.0.0.1:9/";
    for (flags, parts) in [
        (vec!["probe", app], vec!["--downstream <ADDRESS>"]),
        (vec!["probe", app, "--downstream", "nowhere"], vec!["'nowhere'", "accepted: an address to listen on"]),
        (vec!["probe", app, "--downstream", "127.0.0.1:0", "-X", "POST"], vec!["--method POST", "--count N"]),
        (vec!["probe", app, "--downstream", "127.0.0.1:0", "--expect", "zipkin"], vec!["'zipkin'", "accepted: w3c, b3"]),
        // A part of a format: nothing examines it alone.
        (
            vec!["probe", app, "--downstream", "127.0.0.1:0", "--expect", "traceparent"],
            vec!["'traceparent'", "accepted: w3c, b3"],
        ),
        (
            vec!["probe", app, "--downstream", "127.0.0.1:0", "--downstream-reply", "/no/file"],
            vec!["--downstream-reply /no/file"],
        ),
        (vec!["probe", app, "--downstream", "127.0.0.1:0", "--downstream-status", "99"], vec!["'99'", "200 to 599"]),
        (vec!["probe", app, "--downstream", "127.0.0.1:0", "--skip", "probe.none"], vec!["--skip probe.none", "accepted"]),
    ] {
        let ran = run(&flags, &[]);
        assert_eq!(ran.code, Some(2), "{flags:?}: {}", ran.stderr);
        assert!(parts.iter().all(|part| ran.stderr.contains(part)), "{flags:?}: {}", ran.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_calls_over_grpc_is_probed_as_any_other() {
    let downstream = ports::free_addr();
    let url = format!("grpc://{downstream}");
    let probed = |flags: &[&str]| {
        let app = Hop::start(&[&["--upstream", &url], flags].concat(), &[]);
        let target = app.url("/service1");
        let ran = run(&["probe", &target, "--downstream", &url, "--output", "json", "--count", "40"], &[]);
        let report: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}", ran.stderr));
        (ran, report)
    };
    let (ran, report) = probed(&[]);
    assert_eq!((ran.code, failed(&report)), (Some(0), vec![]), "{report:#}");
    assert!(text_of(&report, "probe.w3c").contains("forwarded untouched"), "{report:#}");
    let (ran, report) = probed(&["--drop-header", "traceparent"]);
    assert!(ran.code == Some(1) || text_of(&report, "probe.w3c").contains("absent"), "{report:#}");
}
