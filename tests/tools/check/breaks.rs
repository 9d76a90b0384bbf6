//! A chosen trace, and `check` of chains that `--break` broke.

use std::sync::{Arc, Mutex};

use serde_json::json;

use super::support::*;
use super::{FEW, get};

const WHOLE: &str = "463ac35c9f6413ad48485a3953bb6124";
const SHORT: &str = "48485a3953bb6124";

/// The trace ids of every request of a run, in W3C and in B3.
fn sent(args: &[&str]) -> Vec<[String; 2]> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let front = fake(move |request| {
        let value = |name| request.header(name).unwrap_or_default().to_owned();
        log.lock().unwrap().push([value("traceparent").get(3..35).unwrap_or_default().to_owned(), value("x-b3-traceid")]);
        (200, vec![], reply("service1", "v1", "base", request, vec![]).to_string())
    });
    check(&format!("http://{front}/service1"), &[&FEW[..], args].concat()).fine();
    std::mem::take(&mut *seen.lock().unwrap())
}

#[test]
fn a_chosen_trace_is_that_of_the_first_request_and_of_no_other() {
    for (id, w3c) in [(WHOLE, WHOLE.to_owned()), (SHORT, format!("{SHORT:0>32}"))] {
        let sent = sent(&["--trace-id", id]);
        assert_eq!(sent[0], [w3c.clone(), id.to_owned()]);
        assert!(sent.len() > 5 && sent[1..].iter().flatten().all(|other| *other != w3c && other != id), "{sent:?}");
    }
}

#[test]
fn with_a_backend_the_chosen_trace_is_the_one_that_is_read() {
    let demo = Demo::start_with(&["--latency", "0"]);
    for id in [WHOLE, SHORT] {
        let run = check(&demo.url, &["--traces", &demo.store, "--trace-id", id, "--count", "2", "--skip", "traces.sampling"]);
        run.fine();
        assert!(run.check("traces.arrived").to_string().contains(id), "{:#}", run.json);
        let spans = get(demo.store.strip_prefix("http://").unwrap(), &format!("/api/v2/trace/{id}"));
        assert_eq!(spans.as_array().map(Vec::len), Some(5), "the spans of one request: {spans:#}");
    }
}

#[test]
fn a_trace_id_that_is_none_is_refused() {
    for bad in ["", "abc", &WHOLE[1..], &"0".repeat(32), &"g".repeat(16), &WHOLE.repeat(2)] {
        let run = check("http://127.0.0.1:9/service1", &["--trace-id", bad]);
        assert_eq!((run.code, &run.json), (Some(2), &json!(null)), "{bad}: {}", run.stderr);
        assert!(run.stderr.contains("--trace-id") && run.stderr.contains("32 or 16 hex digits"), "{bad}: {}", run.stderr);
    }
}

/// Each break, the check that fails, and what its text says of what was seen.
const BREAKS: [(&str, &str, &str); 14] = [
    ("new-trace", "propagation.trace", "Trace broke between service2 and service3: service2 is in trace"),
    ("cross-talk", "propagation.trace", "Trace broke between service2 and service3: service2 is in trace"),
    ("flip-sampled", "propagation.sampled", "service2 received \"sampled\" and sent \"not sampled\""),
    ("new-request-id", "propagation.request-id", "service2 received x-request-id"),
    ("duplicate=traceparent", "propagation.w3c", "service2 received one traceparent and sent several"),
    ("duplicate=x-b3-spanid", "propagation.b3", "service2 received one x-b3-spanid and sent several"),
    ("duplicate=x-request-id", "propagation.request-id", "service2 received one x-request-id and sent several"),
    ("duplicate=baggage", "propagation.baggage", "service2 received"),
    (
        "join=tracestate",
        "propagation.tracestate",
        "Headers are changed between service2 and service3: service2 received tracestate",
    ),
    ("join=x-b3-traceid", "propagation.b3", "in which several values are joined by a comma"),
    ("join=x-request-id", "propagation.request-id", "in which several values are joined by a comma"),
    ("shorten-b3", "propagation.b3", "sent a trace id that is shortened to 64 bits"),
    ("w3c-only", "propagation.b3", "service2 received x-b3-* and did not send them"),
    ("b3-only", "propagation.w3c", "service2 received traceparent"),
];

/// With spans of its own the hop sends on the id of its caller's.
const STALE: (&str, &str, &str) =
    ("stale-parent", "propagation.trace", "service2 has spans of its own and sent the span id that it received");

/// Runs `check` on a chain whose middle hop breaks so.
fn broken(hop: &Hop, kind: &str, args: &[&str]) -> Run {
    let chain = Chain::start(&[hop.clone(), hop.clone().arg("--break", kind), hop.clone()]);
    check(&chain.url(), &[&FEW[..], args].concat())
}

/// The one failure at the middle hop, with the break's own name as its cause.
fn is_named(run: &Run, (kind, id, says): (&str, &str, &str)) {
    let cause = format!("service2 breaks the trace on purpose: {kind} ");
    run.breaks_at(id, "service2", "service3", Some("hop"), &[says, &cause]);
}

#[test]
fn every_break_is_found_at_its_hop_and_named() {
    std::thread::scope(|scope| {
        for hop in [plain(), traced()] {
            let stale = (hop.args != plain().args).then_some(STALE);
            for case in BREAKS.into_iter().chain(stale) {
                let hop = hop.clone();
                scope.spawn(move || {
                    let run = broken(&hop, case.0, &[]);
                    is_named(&run, case);
                    assert_eq!(run.failed().len(), 1, "one cause, one failure of {}: {:#}", case.0, run.json);
                });
            }
        }
    });
}

#[test]
fn every_break_is_found_beside_the_traces_of_a_backend() {
    let demo = Demo::start();
    std::thread::scope(|scope| {
        for case in BREAKS.into_iter().chain([STALE]) {
            let hop = reporting(&demo.store);
            let store = &demo.store;
            scope.spawn(move || {
                let run = broken(&hop, case.0, &["--traces", store, "--traces-wait", "2s"]);
                is_named(&run, case);
                assert_eq!(run.failed().len(), 1, "one cause, one failure of {}: {:#}", case.0, run.json);
                assert!(!run.json.to_string().contains("never arrived"), "every span was reported: {:#}", run.json);
            });
        }
    });
}

/// A hop that decides about sampling by itself does so for each request.
#[test]
fn a_sampler_that_follows_no_parent_is_one_failure() {
    let demo = Demo::start();
    std::thread::scope(|scope| {
        for at in 0..2 {
            let store = &demo.store;
            scope.spawn(move || {
                let mut hops = vec![reporting(store); 3];
                hops[at] = hops[at].clone().var("OTEL_TRACES_SAMPLER", "always_off");
                let chain = Chain::start(&hops);
                let run = check(&chain.url(), &[&FEW[..], &["--traces", store, "--traces-wait", "2s"]].concat());
                let (from, to) = (format!("service{}", at + 1), format!("service{}", at + 2));
                run.breaks_at("propagation.sampled", &from, &to, Some("hop"), &["OTEL_TRACES_SAMPLER"]);
                assert_eq!(run.failed().len(), 1, "{:#}", run.json);
            });
        }
    });
}

/// A hop that lacks what its callers speak: one setting, one failure.
#[test]
fn propagators_that_do_not_fit_are_one_failure_at_their_hop() {
    std::thread::scope(|scope| {
        for (value, is_broken) in [("none", true), ("baggage", true), ("b3", true), ("b3multi,baggage", false)] {
            scope.spawn(move || {
                let hop = traced().var("OTEL_PROPAGATORS", value);
                let chain = Chain::start(&[traced(), hop, traced(), traced()]);
                let run = check(&chain.url(), &FEW);
                assert_eq!(run.failed().len(), usize::from(is_broken), "{value}: {:#}", run.json);
                if is_broken {
                    run.breaks_at(
                        "propagation.trace",
                        "service1",
                        "service2",
                        Some("new-trace"),
                        &["OTEL_PROPAGATORS at service2"],
                    );
                }
            });
        }
    });
}

/// Without spans of its own a hop passes its caller's span id on, which is right; and a header that is not there cannot be broken.
#[test]
fn what_breaks_nothing_is_no_finding() {
    for kind in ["stale-parent", "duplicate=b3", "join=x-amzn-trace-id"] {
        broken(&plain(), kind, &[]).fine();
    }
    broken(&traced(), "new-trace@0%", &[]).fine();
}

/// The share of the requests that `check` says were struck, from what it says of that in words and in figures.
fn struck(run: &Run, says: &str) -> f64 {
    let all = run.json["checks"].as_array().unwrap();
    let found = all.iter().find(|check| check["id"] == "traffic.propagation");
    let found = found.unwrap_or_else(|| panic!("no traffic.propagation in {:#}", run.json));
    let (text, data) = (found["text"].as_str().unwrap(), &found["data"]);
    assert!(
        text.starts_with(&format!("In {} of {} requests: ", data["struck"], data["requests"])) && text.contains(says),
        "{text}"
    );
    // Where the probe met it, too, its own failure has the cause.
    let cause = found["cause"].as_str().map(str::to_owned);
    let cause = cause.unwrap_or_else(|| run.check(found["follows"].as_str().unwrap())["cause"].as_str().unwrap().to_owned());
    assert!(cause.starts_with("service2 breaks the trace on purpose: "), "{cause}");
    data["percent"].as_f64().unwrap()
}

#[test]
fn a_break_with_a_rate_is_found_with_its_rate() {
    let five_sigma = 5.0 * (0.3_f64 * 0.7 / 100.0).sqrt() * 100.0;
    for (hop, kind, says) in [
        (plain(), "new-trace", "Trace broke between service2 and service3"),
        (plain(), "new-request-id", "The request id broke between service2 and service3"),
        (traced(), "cross-talk", "Trace broke between service2 and service3"),
        (traced(), "shorten-b3", "shortened to 64 bits"),
    ] {
        let rated = format!("{kind}@30%");
        let chain = Chain::start(&[hop.clone(), hop.clone().arg("--break", &rated), hop.clone()]);
        let run = check(&chain.url(), &["--count", "100", "--rate", "100"]);
        assert_eq!(run.code, Some(1), "{rated}");
        let percent = struck(&run, says);
        assert!((percent - 30.0).abs() < five_sigma, "{rated}: {percent} %");
    }
}

#[test]
fn what_only_takes_time_is_named_with_its_rate() {
    let chain = Chain::start(&[plain(), plain().arg("--fault", "delay=30ms@20%").arg("--fault", "cpu=1ms@50%"), plain()]);
    let run = check(&chain.url(), &["--count", "200", "--rate", "200"]);
    run.fine();
    let latency = run.check("traffic.latency").to_string();
    assert!(latency.contains("service2") && latency.contains("a delay of 30 ms in "), "{latency}");
    assert!(latency.contains("cpu=1ms in ") && latency.contains(" of 200 answers"), "{latency}");
    let run = check(&chain.url(), &["--count", "200", "--rate", "200", "--expect-latency", "service2:p99=20ms"]);
    run.fails("traffic.latency", &["The slowest hop by itself is service2", "on purpose: ", "a delay of 30 ms in "]);
}

/// Each of a hop's own attempts stands in its reply: they are one call.
#[test]
fn repeated_calls_count_once_and_are_expected() {
    let order = ["--expect", "service1,service2,service3", "--count", "20", "--rate", "100"];
    let chain = |fault: &str, retries: &str| {
        Chain::start(&[plain().arg("--retries", retries), plain().arg("--retries", retries), plain().arg("--fault", fault)])
    };
    let failing = chain("abort=503", "2");
    let run = check(&failing.url(), &order);
    let failed = run.failed();
    assert_eq!(failed.len(), 1, "one cause, one failure: {:#}", run.json);
    run.follows("traffic.success", "chain.hops", &["20 of 20 requests failed. service3 answered 503"]);
    assert!(run.check("traffic.retries").to_string().contains("service3 received 9 calls for 1 request"), "{:#}", run.json);
    // What retries hid is no failure of the request. With this rate no call fails ten times, and not every one succeeds at once,
    // in more than 99,990 of 100,000 runs.
    let hidden = chain("abort=503@25%", "9");
    let run = check(&hidden.url(), &["--expect", "service1,service2,service3", "--count", "40", "--rate", "100"]);
    run.fails("traffic.retries", &["Retries seen at 1 hop"]);
    assert!(run.check("traffic.success")["text"] == "All 40 requests succeeded", "{:#}", run.json);
}
