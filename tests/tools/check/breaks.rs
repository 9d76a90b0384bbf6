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
                let run = broken(&hop, case.0, &["--traces", store, "--traces-wait", "20s"]);
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
                let run = check(&chain.url(), &[&FEW[..], &["--traces", store, "--traces-wait", "20s"]].concat());
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
        for (value, is_broken) in [("none", true), ("baggage", true), ("b3,baggage", false), ("b3multi,baggage", false)] {
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
fn struck(run: &Run, at: usize, says: &str) -> f64 {
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
    assert!(cause.starts_with(&format!("service{at} breaks the trace on purpose: ")), "{cause}");
    data["percent"].as_f64().unwrap()
}

/// Runs `check` on a chain whose hop `at`, from 1 on, breaks so.
fn rated(hop: &Hop, at: usize, kind: &str, args: &[&str]) -> Run {
    let mut hops = vec![hop.clone(); 3];
    hops[at - 1] = hop.clone().arg("--break", kind);
    check(&Chain::start(&hops).url(), &[&["--count", "100", "--rate", "50"], args].concat())
}

/// What only a request with headers of its own shows is in the first five; at the first hop a bare request has nothing that breaks.
#[test]
fn a_break_with_a_rate_is_found_with_its_rate() {
    let five_sigma = 5.0 * (0.3_f64 * 0.7 / 100.0).sqrt() * 100.0;
    let cases = [
        (traced(), 2, "w3c-only", "service2 received x-b3-* and did not send them"),
        (traced(), 1, "b3-only", "service1 received traceparent"),
        (traced(), 1, "join=x-b3-sampled", "in which several values are joined by a comma"),
        (traced(), 2, "duplicate=tracestate", "tracestate"),
        (plain(), 2, "join=x-lane", "x-lane"),
        (traced(), 1, "duplicate=traceparent", "service1 received one traceparent and sent several"),
        (traced(), 1, "new-request-id", "The request id broke between service1 and service2"),
        (plain(), 2, "new-trace", "Trace broke between service2 and service3"),
        (plain(), 2, "new-request-id", "The request id broke between service2 and service3"),
        (traced(), 2, "cross-talk", "Trace broke between service2 and service3"),
        (traced(), 2, "shorten-b3", "shortened to 64 bits"),
    ];
    std::thread::scope(|scope| {
        for (hop, at, kind, says) in cases {
            scope.spawn(move || {
                let run = rated(&hop, at, &format!("{kind}@30%"), &[]);
                assert_eq!(run.code, Some(1), "{kind}: {:#}", run.json);
                let percent = struck(&run, at, says);
                assert!((percent - 30.0).abs() < five_sigma, "{kind}: {percent} %");
                let failed = run.failed();
                assert_eq!(failed.len(), 1, "one cause, one failure of {kind}: {:#}", run.json);
            });
        }
    });
}

/// What a break does to the sampling and to the trace of one request follows from it, wherever the request met it.
#[test]
fn beside_a_backend_a_break_with_a_rate_is_one_failure() {
    let demo = Demo::start();
    std::thread::scope(|scope| {
        for (at, kind, says) in [
            (1, "flip-sampled", "The sampling decision flipped between service1 and service2"),
            (2, "flip-sampled", "The sampling decision flipped between service2 and service3"),
            (2, "cross-talk", "Trace broke between service2 and service3"),
            (2, "w3c-only", "service2 received x-b3-* and did not send them"),
        ] {
            let store = &demo.store;
            scope.spawn(move || {
                let run = rated(&reporting(store), at, &format!("{kind}@30%"), &["--traces", store, "--traces-wait", "20s"]);
                struck(&run, at, says);
                assert_eq!(run.failed().len(), 1, "one cause, one failure of {kind} at service{at}: {:#}", run.json);
            });
        }
    });
}

#[test]
fn a_bare_request_that_breaks_at_a_hop_is_no_trace_too() {
    let lost = ["traceparent", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled"];
    let drop = lost.into_iter().fold(traced(), |hop, name| hop.arg("--drop-header", name));
    for hop in [traced().arg("--break", "new-trace"), drop] {
        let run = check(&Chain::start(&[traced(), hop, traced()]).url(), &FEW);
        run.follows("propagation.bare", "propagation.trace", &["A request without trace headers is 2 traces, too"]);
        assert_eq!(run.failed().len(), 1, "{:#}", run.json);
    }
    let run = check(&Chain::start(&[traced(), traced(), traced()]).url(), &FEW);
    assert_eq!(run.fine().check("propagation.bare")["text"], "A request without trace headers is one trace, too");
    // The last hop begins a trace of its own: nobody behind it shows that.
    let deaf = traced().var("OTEL_PROPAGATORS", "none");
    let run = check(&Chain::start(&[traced(), traced(), deaf]).url(), &FEW);
    run.follows("propagation.bare", "propagation.trace", &["is 2 traces, too"]);
}

#[test]
fn a_fault_names_everybody_who_may_have_ordered_it() {
    let chain = Chain::start(&vec![plain().arg("--request-faults", "on"); 3]);
    let run = check(&chain.url(), &[&FEW[..], &["-H", "x-fault: service3:abort=503"]].concat());
    run.fails("chain.hops", &["service3 fails on purpose: abort=503 (--fault or FAULT, x-fault, or its admin API)"]);
    let run = check(&chain.url(), &[&FEW[..], &["-H", "x-fault: garbage"]].concat());
    let said = run.fine().checks().iter().any(|check| {
        let text = check["text"].as_str().unwrap();
        text.starts_with("x-fault has no effect at service1, service2, service3: ")
    });
    assert!(said, "{:#}", run.json);
    let chain = Chain::start(&[plain(), plain().arg("--fault", "memory=4096MiB")]);
    let run = check(&chain.url(), &FEW);
    let cause = run.check("chain.hops")["cause"].as_str().unwrap();
    assert!(
        cause.contains("service2 is to hold more on purpose than it may (memory=…)") && !cause.contains("draining"),
        "{cause}"
    );
}

/// A call that is made for a share of the requests is in some of them.
#[test]
fn an_expected_call_may_be_made_at_times() {
    let (second, third) = (serve("service2", &[], &[]), serve("service3", &[], &[]));
    let front = |share: &str| {
        let at_times = format!("{share}%=http://{}/service2", second.addr);
        serve("service1", &["--upstream", &at_times, "--upstream", &format!("http://{}/service3", third.addr)], &[])
    };
    // Of 51 requests one at least makes the call, in all but 1 of 10 million runs.
    let run_with = |share: &str| {
        let hop = front(share);
        check(
            &format!("http://{}/service1", hop.addr),
            &["--expect", "service1(service2,service3)", "--count", "50", "--rate", "500"],
        )
    };
    run_with("30").fine();
    run_with("0").breaks_at("chain.order", "service1", "service2", None, &["service1 does not call service2"]);
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
    let proxies = run.check("propagation.proxies");
    assert!(
        proxies["text"].as_str().unwrap().starts_with("No proxy seen") && !proxies.to_string().contains("untraced"),
        "{proxies}"
    );
    // What retries hid is no failure of the request. With this rate no call fails ten times, and not every one succeeds at once,
    // in more than 99,990 of 100,000 runs.
    let hidden = chain("abort=503@25%", "9");
    let run = check(&hidden.url(), &["--expect", "service1,service2,service3", "--count", "40", "--rate", "100"]);
    run.fails("traffic.retries", &["Retries seen at 1 hop"]);
    assert!(run.check("traffic.success")["text"] == "All 40 requests succeeded", "{:#}", run.json);
}
