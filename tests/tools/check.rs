//! `httpserver check` against real hops in every broken shape, and against small servers that misbehave as gateways do.
//!
//! Each test asserts where the fault is said to be and what is said about it, not only the exit code.

mod backends;
mod bounds;
mod breaks;
mod envoy;
mod foreign_apps;
mod grpc;
mod mesh;
mod signs;
mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::common::ports::free_addr;
use crate::common::wait_until;
use serde_json::{Value, json};
use support::*;

const EXPECT: [&str; 2] = ["--expect", "service1,service2,service3"];
const FEW: [&str; 4] = ["--count", "3", "--rate", "500"];

fn quick(url: &str, args: &[&str]) -> Run {
    let mut all = EXPECT.to_vec();
    all.extend(FEW);
    all.extend(args);
    check(url, &all)
}

const B3: [&str; 4] = ["x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled"];
const W3C: [&str; 2] = ["traceparent", "tracestate"];

// Healthy.

#[test]
fn a_healthy_chain_is_fine_whether_its_hops_forward_or_continue() {
    for hop in [plain(), traced()] {
        let chain = Chain::start(&[hop.clone(), hop.clone(), hop]);
        let run = quick(&chain.url(), &[]);
        run.fine();
        for id in [
            "reach.http",
            "chain.hops",
            "propagation.w3c",
            "propagation.b3",
            "propagation.sampled",
            "propagation.request-id",
            "propagation.headers",
            "traffic.success",
        ] {
            assert_eq!(run.check(id)["status"], "pass", "{id}");
        }
        assert!(run.check("chain.hops")["text"].as_str().unwrap().contains("service1 -> service2 -> service3"));
    }
}

#[test]
fn a_healthy_chain_gives_no_false_alarm_in_200_runs() {
    let chains = [
        Chain::start(&[plain(), plain(), plain()]),
        Chain::start(&[traced(), traced(), traced()]),
        Chain::start(&[traced(), plain(), traced()]),
        Chain::start(&[plain(), traced(), plain().arg("--latency", "1ms..5ms")]),
    ];
    std::thread::scope(|scope| {
        for (index, chain) in chains.iter().enumerate() {
            scope.spawn(move || {
                for round in 0..50 {
                    let run = quick(&chain.url(), &[]);
                    assert_eq!(run.code, Some(0), "run {round} of chain {index}: {:#}", run.json);
                }
            });
        }
    });
}

#[test]
fn the_demo_is_green_out_of_the_box_with_its_own_store() {
    let demo = Demo::start();
    let run = check(&demo.url, &["--traces", &demo.store, "--expect", "service1,service2,service3", "--count", "20"]);
    run.fine();
    assert!(run.check("traces.backend")["text"].as_str().unwrap().contains("Zipkin"));
    assert_eq!(run.check("traces.spans")["data"], json!({"spans": 5, "app": 5, "proxies": 0}));
    // 20 requests cannot prove a rate to 5 points, except at 100 %, where one exception would.
    assert_eq!(run.check("traces.sampling")["data"]["percent"], 100.0);
}

/// A reply nests three JSON levels a hop, and readers that recurse end at 128 levels, in the 43rd hop.
#[test]
fn every_hop_of_the_longest_demo_counts() {
    let demo = Demo::start_with(&["--hops", "50", "--latency", "0"]);
    let run = check(&demo.url, &["--traces", &demo.store, "--count", "2", "--rate", "500", "--skip", "traces.sampling"]);
    run.fine();
    let text = run.check("chain.hops")["text"].as_str().unwrap();
    assert!(text.starts_with("50 hops answered") && text.contains("-> service49 v1 -> service50 v1"), "{text}");
    assert_eq!(run.check("traces.spans")["data"], json!({"spans": 99, "app": 99, "proxies": 0}));
}

#[test]
fn a_fan_out_is_expected_as_a_tree() {
    let (two, three) = (serve("service2", &[], &[]), serve("service3", &[], &[]));
    let (a, b) = (format!("http://{}/service2", two.addr), format!("http://{}/service3", three.addr));
    let one = serve("service1", &["--upstream", &a, "--upstream", &b], &[]);
    let url = format!("http://{}/service1", one.addr);
    check(&url, &["--expect", "service1(service2,service3)", "--count", "2"]).fine();
    let run = check(&url, &["--expect", "service1,service2,service3", "--count", "2"]);
    run.breaks_at("chain.order", "service2", "service3", None, &["service2 does not call service3", "UPSTREAM"]);
}

// The three sides of a seam.

#[test]
fn a_hop_that_drops_headers_is_named_with_what_it_dropped() {
    let everything: Vec<&str> = [&W3C[..], &B3, &["x-request-id", "baggage", "x-lane"]].concat();
    for (drops, id, says) in [
        (everything, "propagation.trace", "traceparent"),
        (B3.to_vec(), "propagation.b3", "x-b3-*"),
        (W3C.to_vec(), "propagation.w3c", "traceparent"),
        (vec!["x-request-id"], "propagation.request-id", "x-request-id"),
        (vec!["x-lane"], "propagation.lane", "x-lane"),
        (vec!["baggage"], "propagation.baggage", "baggage"),
    ] {
        for hop in [plain(), traced()] {
            let broken = drops.iter().fold(hop.clone(), |hop, name| hop.arg("--drop-header", name));
            let chain = Chain::start(&[hop.clone(), broken, hop]);
            let run = quick(&chain.url(), &[]);
            run.breaks_at(
                id,
                "service2",
                "service3",
                Some("hop"),
                &["service2 received", says, "did not send", "DROP_HEADERS", "curl -s -H"],
            );
            assert_eq!(run.failed().len(), 1, "one cause, one finding: {:#}", run.json);
        }
    }
}

#[test]
fn the_first_hop_that_drops_is_named_and_not_the_second_that_starts_a_trace() {
    let broken = [&W3C[..], &B3].concat().iter().fold(traced(), |hop, name| hop.arg("--drop-header", name));
    let chain = Chain::start(&[broken, traced(), traced()]);
    let run = quick(&chain.url(), &[]);
    run.breaks_at("propagation.trace", "service1", "service2", Some("hop"), &["Trace broke between service1 and service2"]);
    assert_eq!(run.failed().len(), 1, "{:#}", run.json);
    assert!(run.json["summary"].as_str().unwrap().contains("Trace broke between service1 and service2"));
}

#[test]
fn a_proxy_that_drops_headers_between_two_hops_is_told_from_the_hops() {
    for (removes, id, says) in [
        (vec!["traceparent"], "propagation.w3c", "service2 sent traceparent"),
        (B3.to_vec(), "propagation.b3", "service2 sent x-b3-*"),
        (vec!["x-request-id"], "propagation.request-id", "service2 sent x-request-id"),
        (vec!["x-lane"], "propagation.lane", "service2 sent x-lane"),
    ] {
        let chain = Chain::start_via(
            &[plain(), plain(), plain()],
            |index, addr| if index == 2 { removing(addr, &removes) } else { addr },
        );
        let run = quick(&chain.url(), &[]);
        run.breaks_at(
            id,
            "service2",
            "service3",
            Some("between"),
            &[says, "service3 never got", "A proxy between service2 and service3"],
        );
    }
}

#[test]
fn a_hop_is_not_blamed_for_a_context_that_a_proxy_in_front_of_it_made_invalid() {
    let w3c_alone = || traced().var("OTEL_PROPAGATORS", "tracecontext,baggage");
    for hop in [w3c_alone(), traced(), plain()] {
        let chain = Chain::start_via(&[hop.clone(), hop.clone(), hop], |index, addr| match index {
            // Version 00 has four parts.
            1 => rewriting(addr, |name, value| Some(if name == "traceparent" { value + "-extra" } else { value })),
            _ => addr,
        });
        let run = quick(&chain.url(), &[]);
        run.breaks_at(
            "propagation.w3c",
            "service1",
            "service2",
            Some("between"),
            &[
                "service1 sent a valid traceparent, and the one that service2 received is invalid",
                "-01-extra",
                "A proxy between service1 and service2 changes traceparent",
            ],
        );
        assert_eq!(run.failed().len(), 1, "{:#}", run.json);
    }
}

#[test]
fn a_hop_that_flips_the_sampling_decision_is_named() {
    let chain = Chain::start(&[traced(), traced().var("OTEL_TRACES_SAMPLER", "always_off"), traced()]);
    let run = quick(&chain.url(), &[]);
    run.breaks_at(
        "propagation.sampled",
        "service2",
        "service3",
        Some("hop"),
        &["received \"sampled\" and sent \"not sampled\"", "OTEL_TRACES_SAMPLER"],
    );
}

#[test]
fn a_hop_that_starts_a_new_trace_is_named() {
    let chain = Chain::start(&[traced(), traced().var("OTEL_PROPAGATORS", "baggage"), traced()]);
    let run = quick(&chain.url(), &[]);
    run.breaks_at(
        "propagation.trace",
        "service1",
        "service2",
        Some("new-trace"),
        &["service2 received trace", "started a new one", "OTEL_PROPAGATORS"],
    );
}

#[test]
fn hops_that_use_one_format_by_configuration_are_healthy() {
    let hop = traced().var("OTEL_PROPAGATORS", "tracecontext,baggage");
    let chain = Chain::start(&[hop.clone(), hop.clone(), hop]);
    let run = quick(&chain.url(), &[]);
    run.fine();
    assert_eq!(run.check("propagation.b3")["status"], "skip");
}

// The chain.

#[test]
fn a_hop_that_is_down_is_named_by_its_caller() {
    let mut chain = Chain::start(&[plain(), plain(), plain()]);
    chain.hops[2].kill();
    let run = quick(&chain.url(), &[]);
    run.breaks_at(
        "chain.hops",
        "service2",
        "service3",
        None,
        &["service2 cannot reach service3: connection refused", "not running", "/healthz"],
    );
    assert_eq!(run.check("propagation.unseen")["status"], "skip");
}

#[test]
fn a_slow_hop_is_named_and_not_the_ones_that_wait_for_it() {
    let chain = Chain::start(&[
        plain().arg("--upstream-timeout", "3s"),
        plain().arg("--upstream-timeout", "300ms"),
        plain().arg("--latency", "2s"),
    ]);
    let run = check(&chain.url(), &["--count", "1"]);
    run.breaks_at("chain.hops", "service2", "service3", None, &["service3 did not answer service2 in time", "UPSTREAM_TIMEOUT"]);
}

#[test]
fn a_hop_that_answers_503_now_and_then_is_named_with_its_share() {
    let chain = Chain::start(&[plain(), plain().arg("--fault", "abort=503@30%"), plain()]);
    let run = check(&chain.url(), &["--count", "60", "--rate", "500"]);
    let check = run.check("traffic.success");
    let text = check["text"].as_str().unwrap();
    assert!(
        text.contains("of 60 requests failed") && text.contains("service2 answered 503 by its own fault injection"),
        "{text}"
    );
    // The first request may have met the fault already.
    let counted = if check["status"] == "follows" { "chain.hops" } else { "traffic.success" };
    run.fails(counted, &["FAULT"]);
    assert_eq!(run.failed().len(), 1, "{:#}", run.json);
    assert_eq!(check["hop"], "service2");
    assert!(check["data"]["succeeded"].as_u64().unwrap() < 60);
}

#[test]
fn a_hop_that_answers_without_a_reply_is_no_foreign_app() {
    let two = serve("service2", &[], &[]);
    let hello = serve("service1", &["--upstream", &format!("http://{}/hello", two.addr)], &[]);
    // The header `accept` is what a proxy may take away; curl's own callers get text without it.
    let stripped = removing(two.addr, &["accept"]);
    let accept = serve("service1", &["--upstream", &format!("http://{stripped}/service2")], &[]);
    for one in [hello, accept] {
        let run = check(&format!("http://{}/service1", one.addr), &["--expect", "service1,service2", "--count", "2"]);
        run.fails("chain.hops", &["but not with a reply of the chain", "/service<N>", "removes the header accept"]);
        assert_eq!((run.failed().len(), &run.json["verdict"]), (1, &"broken".into()), "{:#}", run.json);
        assert!(!run.json.to_string().contains("is no hop of this chain"), "{:#}", run.json);
    }
    let front = check(&format!("http://{}/hello", two.addr), &["--count", "1"]);
    front.fails("reach.http", &["A hop answered 200, but not with a reply", "removes the header accept"]);
}

#[test]
fn a_cache_that_replays_a_reply_is_one_finding() {
    let first = std::sync::OnceLock::new();
    let cache = fake(move |request| {
        let kept = first.get_or_init(|| reply("service2", "v1", "base", request, vec![]).to_string());
        (200, vec![("version", "v1".into())], kept.clone())
    });
    let one = serve("service1", &["--upstream", &format!("http://{cache}/service2")], &[]);
    let run = check(&format!("http://{}/service1", one.addr), &["--count", "0"]);
    let says = ["One reply of service2 comes back for different requests", "A cache between service1 and service2"];
    run.breaks_at("propagation.trace", "service1", "service2", None, &says);
    assert_eq!(run.failed().len(), 1, "{:#}", run.json);
}

#[test]
fn a_trace_that_something_fixes_is_one_finding() {
    let chain = Chain::start_via(&[traced(), traced()], |index, addr| match index {
        1 => rewriting(addr, |name, value| {
            let fixed = || format!("00-{}-{}-01", "a".repeat(32), "b".repeat(16));
            Some(if name == "traceparent" { fixed() } else { value })
        }),
        _ => addr,
    });
    let run = check(&chain.url(), &["--count", "0"]);
    let says = ["Every request reaches service2 in one trace: aaaaaaaa", "sets a fixed traceparent"];
    run.breaks_at("propagation.trace", "service1", "service2", None, &says);
    assert_eq!(run.failed().len(), 1, "{:#}", run.json);
}

#[test]
fn an_upstream_that_is_no_hop_is_unknown_and_named_with_what_was_expected_there() {
    let stranger = fake(|_| (200, vec![], "welcome to nginx".to_owned()));
    let target = format!("http://{stranger}/service2");
    let one = serve("service1", &["--upstream", &target], &[]);
    let url = format!("http://{}/service1", one.addr);
    // It may be a foreign app that belongs there, or the wrong server: nobody can say from its answer.
    let expected = ["--expect", "service1,service2,service3", "--count", "1"];
    let run = check(&url, &expected);
    run.fine();
    assert_eq!(run.json["verdict"], "unknown", "{:#}", run.json);
    let stranger = run.check("chain.stranger");
    assert_eq!(
        (&stranger["status"], &stranger["seam"]["from"], &stranger["seam"]["to"]),
        (&"skip".into(), &"service1".into(), &"service2".into())
    );
    let text = stranger["text"].as_str().unwrap();
    assert!(text.contains("is no hop of this chain") && text.ends_with("where service2, service3 should be"), "{text}");
    assert!(stranger["cause"].as_str().unwrap().contains("UPSTREAM of service1"), "{stranger:#}");
    assert_eq!(check(&url, &[&expected[..], &["--strict"]].concat()).code, Some(1));
    let run = check(&url, &["--count", "1"]);
    run.fine();
    assert_eq!(run.check("chain.stranger")["status"], "skip");
}

#[test]
fn a_chain_that_calls_itself_is_a_loop() {
    let addr = free_addr();
    let back = format!("http://{addr}/service1");
    let two = serve("service2", &["--upstream", &back], &[]);
    let next = format!("http://{}/service2", two.addr);
    let one = serve_at(&addr.to_string(), "service1", &["--upstream", &next], &[]);
    let run = check(&format!("http://{}/service1", one.addr), &["--count", "1"]);
    run.fails("chain.hops", &["The chain calls itself", "UPSTREAM"]);
    for expect in ["service1,service2", "service1,service2,service3"] {
        let run = check(&format!("http://{}/service1", one.addr), &["--expect", expect, "--count", "3"]);
        run.fails("chain.hops", &["The chain calls itself"]);
        assert_eq!(run.failed().len(), 1, "{expect}: {:#}", run.json);
    }
}

#[test]
fn another_hop_than_the_expected_one_is_named() {
    let chain = Chain::start(&[plain(), plain()]);
    let run = check(&chain.url(), &["--expect", "service1,reviews", "--count", "1"]);
    run.breaks_at("chain.order", "service1", "reviews", None, &["Expected reviews behind service1, and service2 answered"]);
}

// TLS.

fn tls_run(identity: &Identity, cacert: Option<&str>, more: &[&str]) -> Run {
    let chain = Chain::start(&[plain()]);
    let front = tls_front(identity, chain.hops[0].addr);
    let resolve = format!("chain.test:{}:127.0.0.1", front.port());
    let file = cacert.map(|pem| File::new("pem", pem));
    let mut args = vec!["--resolve", &resolve, "--count", "1", "--skip", "reach.hsts"];
    if let Some(file) = &file {
        args.extend(["--cacert", file.path()]);
    }
    args.extend(more);
    check(&format!("https://chain.test:{}/service1", front.port()), &args)
}

fn ymd(params: &mut rcgen::CertificateParams, from: i32, to: i32) {
    params.not_before = rcgen::date_time_ymd(from, 1, 1);
    params.not_after = rcgen::date_time_ymd(to, 1, 1);
}

#[test]
fn a_certificate_of_a_known_ca_with_the_right_name_is_fine() {
    let ca = Authority::new();
    let run = tls_run(&ca.issue(&["chain.test"], |_| {}), Some(&ca.pem()), &[]);
    run.fine();
    let text = run.check("reach.certificate")["text"].as_str().unwrap().to_owned();
    assert!(text.contains("chain.test") && text.contains("cncamp test CA"), "{text}");
    assert!(run.check("reach.tls")["text"].as_str().unwrap().contains("TLS 1.3"));
}

#[test]
fn a_wrong_ca_is_explained() {
    let (ca, other) = (Authority::new(), Authority::new());
    tls_run(&ca.issue(&["chain.test"], |_| {}), Some(&other.pem()), &[]).fails("reach.certificate", &["another"]);
    tls_run(&ca.issue(&["chain.test"], |_| {}), None, &[])
        .fails("reach.certificate", &["issued by CN=cncamp test CA", "--cacert"]);
}

#[test]
fn a_self_signed_certificate_is_explained_and_trusted_when_given_itself() {
    let own = self_signed(&["chain.test"], |_| {});
    tls_run(&own, None, &[]).fails("reach.certificate", &["self-signed", "--cacert"]);
    tls_run(&own, Some(&own.pem), &[]).fine();
    // As `openssl req -x509` makes it: marked as a CA.
    let marked = self_signed(&["chain.test"], |params| params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    tls_run(&marked, None, &[]).fails("reach.certificate", &["self-signed"]);
    tls_run(&marked, Some(&marked.pem), &[]).fine();
    let elsewhere = self_signed(&["other.test"], |params| params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    tls_run(&elsewhere, Some(&elsewhere.pem), &[]).fails("reach.certificate", &["not for chain.test", "other.test"]);
}

#[test]
fn an_expired_a_future_a_nameless_and_a_wrongly_named_certificate_are_told_apart() {
    let ca = Authority::new();
    let pem = ca.pem();
    tls_run(&ca.issue(&["chain.test"], |params| ymd(params, 2020, 2021)), Some(&pem), &[])
        .fails("reach.certificate", &["expired on 2021-01-01", "days ago"]);
    tls_run(&ca.issue(&["chain.test"], |params| ymd(params, 2090, 2091)), Some(&pem), &[])
        .fails("reach.certificate", &["not valid before 2090-01-01"]);
    tls_run(&ca.issue(&[], |_| {}), Some(&pem), &[])
        .fails("reach.certificate", &["no subject alternative name", "subjectAltName=DNS:chain.test"]);
    tls_run(&ca.issue(&["a.test", "b.test"], |_| {}), Some(&pem), &[])
        .fails("reach.certificate", &["not for chain.test", "a.test, b.test"]);
}

#[test]
fn insecure_goes_on_and_still_says_what_is_wrong() {
    let run = tls_run(&self_signed(&["other.test"], |params| ymd(params, 2020, 2021)), None, &["--insecure"]);
    run.fine();
    let check = run.check("reach.certificate");
    assert_eq!(check["status"], "skip");
    assert!(check["text"].as_str().unwrap().contains("not verified"), "{check}");
}

#[test]
fn a_failed_handshake_stops_the_run_before_anything_is_sent() {
    let sent = Arc::new(AtomicU64::new(0));
    let counter = sent.clone();
    let behind = fake(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        (200, vec![], String::new())
    });
    let front = tls_front(&self_signed(&["chain.test"], |_| {}), behind);
    let run = check(
        &format!("https://chain.test:{}/", front.port()),
        &["--resolve", &format!("chain.test:{}:127.0.0.1", front.port())],
    );
    run.fails("reach.certificate", &["self-signed"]);
    assert_eq!(sent.load(Ordering::SeqCst), 0);
}

#[test]
fn plain_http_on_a_tls_port_and_tls_on_a_plain_one_are_told() {
    let chain = Chain::start(&[plain()]);
    let run = check(&format!("https://{}/service1", chain.hops[0].addr), &[]);
    run.fails("reach.tls", &["speaks plain HTTP, not TLS", "write http"]);
    let front = tls_front(&self_signed(&["chain.test"], |_| {}), chain.hops[0].addr);
    let run = check(&format!("http://127.0.0.1:{}/service1", front.port()), &[]);
    run.fails("reach.http", &["speaks TLS", "write https"]);
}

#[test]
fn a_sidecar_that_refuses_a_caller_from_outside_the_mesh_is_told_from_a_server_with_tls() {
    let workload = "spiffe://cluster.local/ns/httpserver/sa/service1";
    let identity = Authority::new().issue(&[], |params| {
        params.subject_alt_names = vec![rcgen::SanType::URI(workload.try_into().unwrap())];
    });
    let front = tls_front(&identity, "127.0.0.1:9".parse().unwrap());
    let outside = ["PeerAuthentication STRICT", "outside the mesh", "kubectl get peerauthentication -A"];
    let run = check(&format!("http://{front}/service1"), &[]);
    let says = format!("A sidecar ({workload}) refuses plain text");
    run.fails("reach.http", &[&outside[..], &[says.as_str()]].concat());
    assert_eq!(run.failed().len(), 1, "{:#}", run.json);
    let run = check(&format!("https://{front}/service1"), &[]);
    run.fails("reach.certificate", &[&outside[..], &["a sidecar's", workload]].concat());
}

#[test]
fn a_handshake_that_is_cut_off_points_at_the_gateways_secret() {
    let cut = serve_streams(|mut stream| {
        let _ = stream.read(&mut [0; 512]);
    });
    let run =
        check(&format!("https://chain.test:{}/", cut.port()), &["--resolve", &format!("chain.test:{}:127.0.0.1", cut.port())]);
    run.fails("reach.tls", &["before any certificate", "secret is missing", "SNI", "istioctl proxy-config secret"]);
}

#[test]
fn the_plain_port_must_redirect_and_https_must_say_hsts() {
    let ca = Authority::new();
    let pem = File::new("pem", &ca.pem());
    let identity = ca.issue(&["chain.test"], |_| {});
    let with = |headers: Vec<(&'static str, String)>| {
        fake(move |request| (200, headers.clone(), reply("service1", "v1", "base", request, vec![]).to_string()))
    };
    let run = |front: u16, plain: u16| {
        let (a, b) = (format!("chain.test:{front}:127.0.0.1"), plain.to_string());
        check(
            &format!("https://chain.test:{front}/service1"),
            &["--resolve", &a, "--cacert", pem.path(), "--plain-port", &b, "--count", "1"],
        )
    };
    let front = tls_front(&identity, with(vec![("strict-transport-security", "max-age=31536000".into())])).port();
    let redirect = fake(|_| (301, vec![("location", "https://chain.test/service1".into())], String::new())).port();
    run(front, redirect).fine();
    run(front, with(vec![]).port()).fails("reach.redirect", &["served, not redirected", "httpsRedirect"]);
    run(tls_front(&identity, with(vec![])).port(), redirect).fails("reach.hsts", &["No HSTS"]);
}

// Answers of a gateway.

fn gateway(status: u16, body: &str) -> Run {
    let body = body.to_owned();
    let front = fake(move |_| (status, vec![("server", "istio-envoy".into())], body.clone()));
    check(&format!("http://{front}/http/service0"), &[])
}

#[test]
fn a_gateways_own_answers_are_read_for_what_they_mean() {
    gateway(404, "")
        .fails("reach.http", &["no route for this host and path", "NR", "VirtualService", "istioctl proxy-config routes"]);
    gateway(503, "no healthy upstream").fails("reach.http", &["UH", "no ready pod"]);
    gateway(503, "").fails("reach.http", &["NC", "misspelt", "istioctl analyze"]);
    gateway(503, "upstream connect error or disconnect/reset before headers. reset reason: connection failure")
        .fails("reach.http", &["UF", "connection failure"]);
    gateway(503, "upstream connect error or disconnect/reset before headers. reset reason: overflow")
        .fails("reach.http", &["UO", "circuit breaker"]);
    gateway(403, "RBAC: access denied").fails("reach.http", &["denied", "AuthorizationPolicy"]);
    gateway(401, "Jwt is missing").fails("reach.http", &["token", "RequestAuthentication"]);
    gateway(426, "").fails("reach.http", &["426", "HTTP/1.0"]);
    gateway(429, "local_rate_limited").fails("reach.http", &["429", "rate limit"]);
    gateway(504, "upstream request timeout").fails("reach.http", &["UT", "timeout"]);
}

/// Istio's proxies write another name than Envoy.
#[test]
fn an_envoy_in_front_of_processes_has_no_command_of_a_cluster() {
    for (status, body, says) in [
        (404, "", "no virtual host or match"),
        (503, "fault filter abort", "fault filter of a proxy"),
        (503, "no healthy upstream", "no endpoint that is healthy"),
        (403, "RBAC: access denied", "denies this caller"),
    ] {
        let front = fake(move |_| (status, vec![("server", "envoy".into())], body.to_owned()));
        let run = check(&format!("http://{front}/service1"), &[]);
        let found = run.fails("reach.http", &[says, "curl -sv"]);
        let all = format!("{}{}", found["cause"], found["next"]);
        assert!(["kubectl", "istioctl", "VirtualService", "AuthorizationPolicy"].iter().all(|word| !all.contains(word)), "{all}");
    }
}

#[test]
fn a_redirect_loop_is_a_loop_and_a_redirect_names_its_end() {
    let front =
        fake(|request| (301, vec![("location", format!("http://{}/service1", request.header("host").unwrap()))], String::new()));
    check(&format!("http://{front}/service1"), &[]).fails("reach.http", &["Redirect loop", "httpsRedirect"]);
    let front = fake(|_| (301, vec![("location", "https://chain.test/service1".into())], String::new()));
    check(&format!("http://{front}/service1"), &[]).fails(
        "reach.http",
        &["redirected to https://chain.test/service1", "Another host answers", "httpserver check https://chain.test/service1"],
    );
}

#[test]
fn nothing_there_is_told_by_the_step_that_failed() {
    let closed = free_addr();
    check(&format!("http://{closed}/service1"), &[]).fails("reach.tcp", &["refuses the connection"]);
    check("http://no-such-host.invalid/service1", &[]).fails("reach.dns", &["does not resolve", "--resolve"]);
    let silent = serve_streams(|mut stream| {
        let _ = read_request(&mut stream);
    });
    check(&format!("http://{silent}/service1"), &[]).fails("reach.http", &["closed the connection without an answer", "STRICT"]);
    let chain = Chain::start(&[plain()]);
    let run = check(&format!("http://{}/", chain.hops[0].addr), &[]);
    run.fails("reach.http", &["/service1"]);
    assert_eq!(run.check("chain.hops")["status"], "skip");
}

// The trace backend.

#[test]
fn spans_that_never_arrive_are_missed() {
    let empty = fake(|request| match request.path.as_str() {
        "/api/v2/services" => (200, vec![], "[]".into()),
        _ => (404, vec![], String::new()),
    });
    let chain = Chain::start(&[traced(), traced(), traced()]);
    let run = quick(&chain.url(), &["--traces", &format!("http://{empty}"), "--traces-wait", "1s"]);
    run.fails("traces.arrived", &["never arrived", "endpoint"]);
    let chain = Chain::start(&[plain(), plain(), plain()]);
    let run = quick(&chain.url(), &["--traces", &format!("http://{empty}"), "--traces-wait", "1s"]);
    run.fails("traces.arrived", &["Nobody reports spans", "TRACE_EXPORTER"]);
}

#[test]
fn one_service_whose_spans_are_missing_is_named_and_explains_the_orphans() {
    let demo = Demo::start();
    let good = reporting(&demo.store);
    let chain = Chain::start(&[good.clone(), traced(), good.clone()]);
    let run = quick(&chain.url(), &["--traces", &demo.store, "--traces-wait", "4s"]);
    let check = run.fails("traces.services", &["2 of 2 spans of service2 never arrived", "endpoint"]);
    assert_eq!(check["hop"], "service2");
    assert!(check["detail"].to_string().contains("5 spans are due, 3 came"), "{check:#}");
    run.follows("traces.orphans", "traces.services", &["parents are the missing spans"]);
    assert_eq!(run.failed().len(), 1, "{:#}", run.json);
    // A hop that reports nothing because it only forwards breaks no parent, and is not in the trace.
    let chain = Chain::start(&[good.clone(), plain(), good]);
    let run = quick(&chain.url(), &["--traces", &demo.store, "--traces-wait", "4s"]);
    let check = run.fails("traces.services", &["service2 is not in the trace", "only forwards"]);
    assert_eq!(check["hop"], "service2");
}

#[test]
fn a_broken_trace_is_two_traces_and_points_at_the_seam() {
    let demo = Demo::start();
    let good = reporting(&demo.store);
    let broken = [&W3C[..], &B3].concat().iter().fold(good.clone(), |hop, name| hop.arg("--drop-header", name));
    let chain = Chain::start(&[good.clone(), broken, good]);
    let run = quick(&chain.url(), &["--traces", &demo.store, "--traces-wait", "4s"]);
    run.breaks_at("propagation.trace", "service2", "service3", Some("hop"), &["did not send"]);
    run.follows("traces.one", "propagation.trace", &["2 traces"]);
}

/// Jaeger's query API in front of a Zipkin store.
fn jaeger_over(store: &str) -> String {
    let address = store.trim_start_matches("http://").to_owned();
    let front = fake(move |request| {
        let Some(id) = request.path.strip_prefix("/jaeger/api/traces/") else {
            return match request.path.as_str() {
                "/jaeger/api/services" => (200, vec![], json!({"data": ["service1"], "total": 1}).to_string()),
                // Jaeger's page answers every path that it does not know.
                path if !path.starts_with("/jaeger/api") => (200, vec![("content-type", "text/html".into())], "<html>".into()),
                _ => (404, vec![], json!({"data": null, "errors": [{"code": 404}]}).to_string()),
            };
        };
        let Value::Array(zipkin) = get(&address, &format!("/api/v2/trace/{id}")) else {
            return (404, vec![], json!({"data": null}).to_string());
        };
        let mut processes = serde_json::Map::new();
        // A batch that was sent again is stored twice.
        let spans: Vec<Value> = [&zipkin[..], &zipkin]
            .concat()
            .iter()
            .map(|span| {
                let service = span["localEndpoint"]["serviceName"].as_str().unwrap_or_default();
                processes.insert(service.to_owned(), json!({"serviceName": service, "tags": []}));
                let references: Vec<Value> = span["parentId"].as_str().map(|parent| json!({"refType": "CHILD_OF", "traceID": id, "spanID": parent})).into_iter().collect();
                json!({"traceID": id, "spanID": span["id"], "operationName": span["name"], "references": references, "processID": service, "startTime": 0, "duration": 1, "tags": []})
            })
            .collect();
        (200, vec![], json!({"data": [{"traceID": id, "spans": spans, "processes": processes}]}).to_string())
    });
    format!("http://{front}")
}

#[test]
fn jaeger_is_told_from_zipkin_and_read_the_same() {
    let demo = Demo::start();
    for url in ["", "/jaeger", "/jaeger/search"] {
        let jaeger = format!("{}{url}", jaeger_over(&demo.store));
        let run = check(&demo.url, &["--traces", &jaeger, "--count", "2", "--skip", "traces.sampling"]);
        run.fine();
        assert!(run.check("traces.backend")["text"].as_str().unwrap().contains("Jaeger"), "{:#}", run.json);
        assert_eq!(run.check("traces.spans")["data"]["spans"], 5);
    }
}

/// `httpserver trace` for the reply of a request that was sent without it. Returns the exit code and the verdict.
fn trace(reply: &Value, args: &[&str]) -> (Option<i32>, Value) {
    let file = File::new("json", &reply.to_string());
    let output = httpserver().args(["trace", file.path(), "--output", "json"]).args(args).output().unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
}

#[test]
fn trace_says_whether_the_traces_of_a_request_that_was_sent_without_it_are_whole() {
    let demo = Demo::start();
    let front = demo.url.trim_start_matches("http://").trim_end_matches("/service1");
    let reply = get(front, "/service1");
    let jaeger = jaeger_over(&demo.store);
    let counts = ["--expect-spans", "5", "--expect-services", "3"];
    let (code, verdict) = trace(&reply, &[&["--traces", &demo.store, "--settle", "500ms"][..], &counts].concat());
    assert_eq!((code, &verdict["whole"], &verdict["deviations"]), (Some(0), &json!(true), &json!([])), "{verdict:#}");
    assert_eq!((&verdict["spans"], &verdict["services"]), (&json!(5), &json!(["service1", "service2", "service3"])));
    let fails = |reply: &Value, args: &[&str], text: &str| {
        let (code, verdict) = trace(reply, &[&["--traces", &demo.store, "--traces-wait", "1ms"], args].concat());
        let deviations = verdict["deviations"].to_string();
        assert!(code == Some(1) && deviations.contains(text), "{args:?}: {verdict:#}");
    };
    fails(&reply, &["--expect-spans", "6"], "5 spans instead of 6");
    fails(&reply, &["--expect-services", "4"], "3 services instead of 4");
    fails(&reply, &["--expect-traces", "3"], "1 trace instead of 3");
    fails(&reply, &["--caller", "a2fb4a1d1a96d312"], "has no parent, and the caller sent one along");
    fails(&reply, &["--trace-id", "463ac35c9f6413ad48485a3953bb6124"], "The caller's trace is 463ac35c9f6413ad48485a3953bb6124");
    fails(&reply, &["--sidecars"], "not the child of its own inbound sidecar's span");
    let with = |pointer: &str, value: Value| {
        let mut reply = reply.clone();
        *reply.pointer_mut(pointer).unwrap() = value;
        reply
    };
    let below = "/upstreams/0/reply";
    fails(&with(&format!("{below}/span_id"), json!("00000000000000aa")), &[], "1 of 2 spans of service2 did not arrive");
    fails(&with(&format!("{below}/parent_span_id"), json!("00000000000000aa")), &[], "and the hop says 00000000000000aa");
    fails(&with(&format!("{below}/version"), json!("v7")), &[], "service.version is v1, and not v7");
    fails(&with(&format!("{below}/path"), json!("/hello/service2")), &[], "http.route is /service{n}, and not /hello/service{n}");
    // Jaeger's tags of these spans are lost in the fake, and that is found.
    let (code, verdict) = trace(&reply, &["--traces", &jaeger, "--traces-wait", "1ms"]);
    assert_eq!((code, &verdict["spans"], &verdict["missing"]), (Some(1), &json!(5), &json!([])), "{verdict:#}");
    assert!(verdict["deviations"].to_string().contains("request.id is absent"), "{verdict:#}");
    let usage = httpserver().args(["trace", "/nowhere.json", "--traces", &demo.store]).output().unwrap();
    assert_eq!(usage.status.code(), Some(2), "{usage:?}");
}

#[test]
fn trace_finds_spans_of_the_request_in_traces_that_no_reply_names() {
    let demo = Demo::start();
    let front = demo.url.trim_start_matches("http://").trim_end_matches("/service1");
    let reply = get(front, "/service1");
    assert_eq!(trace(&reply, &["--traces", &demo.store]).0, Some(0));
    let stray = json!([{"traceId": "beef", "id": "1", "timestamp": now_us(), "localEndpoint": {"serviceName": "gateway"},
        "tags": {"guid:x-request-id": reply["request_id"]}}]);
    post(demo.store.trim_start_matches("http://"), "/api/v2/spans", &stray.to_string());
    let (code, verdict) = trace(&reply, &["--traces", &demo.store, "--traces-wait", "1ms"]);
    assert_eq!((code, verdict["traces"].as_array().map(Vec::len)), (Some(1), Some(2)), "{verdict:#}");
}

fn now_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_micros()).unwrap()
}

fn post(address: &str, path: &str, body: &str) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "POST {path} HTTP/1.0\r\nhost: {address}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.split(' ').nth(1).is_some_and(|status| status.starts_with('2')), "{text}");
}

#[test]
fn what_is_no_backend_is_said_to_be_none() {
    let chain = Chain::start(&[plain()]);
    let run = check(&chain.url(), &["--traces", &chain.url(), "--count", "1"]);
    let found = run.fails("traces.backend", &["No trace backend", "What answers there is no Jaeger query API", "curl -s "]);
    assert!(!found.to_string().contains("kubectl"), "no cluster runs these hops: {found:#}");
}

#[test]
fn sampling_at_1_percent_is_named() {
    let demo = Demo::start();
    let hop =
        reporting(&demo.store).var("OTEL_TRACES_SAMPLER", "parentbased_traceidratio").var("OTEL_TRACES_SAMPLER_ARG", "0.01");
    let chain = Chain::start(&[hop.clone(), hop]);
    let run = check(&chain.url(), &["--traces", &demo.store, "--count", "60", "--rate", "500"]);
    run.fails("traces.sampling", &["100 % promised", "random_sampling", "OTEL_TRACES_SAMPLER"]);
    // A caller's own decision overrides the rate, so the trace that was asked for is there.
    assert_eq!(run.check("traces.arrived")["status"], "pass");
}

// Traffic.

/// What an Istio gateway at this sampling rate does to the request: a span of its own, and its own word about sampling, even for a
/// caller that asked to be sampled.
fn gateway_decides(request: &Request, sampled: bool) -> Request {
    let flag = if sampled { "01" } else { "00" };
    let trace = request.header("traceparent").map_or_else(|| "5".repeat(32), |parent| parent[3..35].to_owned());
    let mut through = request.clone();
    through.headers.retain(|(name, _)| name != "traceparent");
    through.headers.push(("traceparent".into(), format!("00-{trace}-7777777777777777-{flag}")));
    through
}

#[test]
fn a_mesh_that_decides_about_sampling_itself_is_one_finding_about_its_rate_and_no_flip() {
    let demo = Demo::start();
    let front = fake(|request| {
        let through = gateway_decides(request, false);
        let mut one = reply("service1", "v1", "base", &through, vec![]);
        one["sampled"] = json!(false);
        one["trace_id"] = json!("5".repeat(32));
        (200, vec![], one.to_string())
    });
    let url = format!("http://{front}/service1");
    let few = ["--traces", demo.store.as_str(), "--count", "60", "--rate", "500"];
    let run = check(&url, &few);
    run.fails("traces.sampling", &["0 of 60", "100 % promised", "random_sampling", "to callers that asked to be sampled, too"]);
    assert_eq!(run.failed().len(), 1, "one cause, one finding: {:#}", run.json);
    assert_eq!(run.check("propagation.sampled")["status"], "skip");
    // Meant so: nothing is wrong.
    check(&url, &[&few[..], &["--expect-sampling", "0"]].concat()).fine();
    // Without a backend the rate is not measured, and nobody guesses.
    check(&url, &["--count", "2"]).fine();
}

#[test]
fn sidecars_that_do_not_trace_are_named_with_the_provider_that_the_mesh_lacks() {
    let demo = Demo::start();
    let hop = reporting(&demo.store);
    let chain = Chain::start(&[hop.clone(), hop]);
    let vouched = "x-forwarded-client-cert: By=spiffe://cluster.local/ns/httpserver/sa/service1;URI=spiffe://cluster.local/ns/istio-system/sa/gateway";
    let few = ["--traces", demo.store.as_str(), "--count", "2", "--skip", "traces.sampling"];
    let run = check(&chain.url(), &[&few[..], &["-H", vouched]].concat());
    run.fails(
        "traces.proxies",
        &["service1 report no spans", "extensionProviders", "kubectl get telemetry -A -o yaml", "get configmap istio"],
    );
    assert_eq!(run.failed().len(), 1, "{:#}", run.json);
    // Without any sign of a sidecar there is nobody to report.
    check(&chain.url(), &few).fine();
}

/// A chain of three as Istio's sidecars leave it; `left_out` has none.
fn injected(left_out: Option<usize>) -> SocketAddr {
    fake(move |request| {
        let has = |hop: usize| left_out != Some(hop);
        let mut below: Option<Value> = None;
        for hop in (1..=3).rev() {
            let mut one = reply(&format!("service{hop}"), "v1", "base", request, below.take().into_iter().collect());
            if hop > 1 && has(hop) {
                one["client"]["ip"] = json!("127.0.0.6");
            }
            if has(hop) && (hop == 1 || has(hop - 1)) {
                one["client"]["identity"] = json!(format!("spiffe://cluster.local/ns/httpserver/sa/service{}", hop - 1));
            }
            if hop == 1 {
                return (200, vec![], one.to_string());
            }
            below = Some(call(&format!("service{hop}"), one));
        }
        unreachable!("the first hop returns")
    })
}

#[test]
fn a_hop_without_a_sidecar_is_named_once_with_the_command_that_shows_it() {
    check(&format!("http://{}/service1", injected(None)), &["--count", "5"]).fine();
    for (left_out, from) in [(1, "check"), (2, "service1"), (3, "service2")] {
        let hop = format!("service{left_out}");
        // A hop that calls nobody may have one that its port is excluded from.
        let says = match left_out {
            3 => format!("No sidecar is seen in front of {hop}, while other hops have one"),
            _ => format!("{hop} has no sidecar, while other hops have one"),
        };
        let run = check(&format!("http://{}/service1", injected(Some(left_out))), &["--count", "5"]);
        run.breaks_at(
            "propagation.sidecar",
            from,
            &hop,
            None,
            &[
                &says,
                "Injection is missing",
                &format!("kubectl -n httpserver get pod -l app={hop} -o jsonpath="),
                "kubectl get namespace httpserver --show-labels",
            ],
        );
        assert_eq!(run.failed().len(), 1, "one cause, one finding: {:#}", run.json);
        let cause = run.check("propagation.sidecar")["cause"].to_string();
        assert!(!cause.contains("appProtocol"), "{cause}");
    }
}

/// The JSON at a path; null when there is none.
/// The traces in a demo's store that have a span of the caller.
fn begun_by_the_caller(store: &str) -> Vec<Vec<Value>> {
    let all = get(store.trim_start_matches("http://"), "/api/v2/traces?serviceName=httpserver-check&limit=100");
    all.as_array().unwrap().iter().map(|trace| trace.as_array().unwrap().clone()).collect()
}

/// Whether a trace of three hops has its five spans and, as its root, the caller's client span.
fn has_the_callers_root(trace: &[Value]) -> bool {
    let (roots, others): (Vec<_>, Vec<_>) = trace.iter().partition(|span| span["parentId"].is_null());
    let ids: Vec<_> = trace.iter().map(|span| &span["id"]).collect();
    let is_callers = |span: &&Value| span["kind"] == "CLIENT" && span["localEndpoint"]["serviceName"] == "httpserver-check";
    roots.len() == 1
        && roots.iter().all(is_callers)
        && others.len() == 5
        && others.iter().all(|span| ids.contains(&&span["parentId"]))
}

#[test]
fn a_trace_that_check_begins_has_its_root_with_report_spans() {
    let demo = Demo::start_with(&["--latency", "0"]);
    let collector = format!("{}/api/v2/spans", demo.store);
    let vars = [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_ZIPKIN_ENDPOINT", collector.as_str())];
    let run = check_with(&demo.url, &[&EXPECT[..], &["--count", "0", "--report-spans", "--traces", &demo.store]].concat(), &vars);
    run.fine();
    assert_eq!(run.check("traces.arrived")["status"], "pass", "{:#}", run.json);
    assert_eq!(run.check("traces.spans")["data"], json!({"spans": 5, "app": 5, "proxies": 0}), "{:#}", run.json);
    assert_eq!(run.stderr, "");
    let traces = begun_by_the_caller(&demo.store);
    assert!(traces.iter().any(|trace| has_the_callers_root(trace)), "{traces:#?}");
    // Without the flag nothing is reported, and the same chain is just as fine.
    quick(&demo.url, &["--traces", &demo.store]).fine();
    assert_eq!(begun_by_the_caller(&demo.store).len(), traces.len());

    // A value that is unknown is warned about, as at a hop.
    let vars = [("OTEL_TRACES_EXPORTER", "jaeger,Zipkin"), vars[1]];
    let wrong = check_with(&demo.url, &["--count", "0", "--report-spans"], &vars);
    assert_eq!(wrong.code, Some(0), "{:#}", wrong.json);
    assert!(wrong.stderr.contains("'jaeger' is ignored") && wrong.stderr.contains("zipkin, otlp"), "{}", wrong.stderr);
    let gone = format!("http://{}/api/v2/spans", free_addr());
    let vars = [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_ZIPKIN_ENDPOINT", gone.as_str())];
    let lost = check_with(&demo.url, &["--count", "0", "--report-spans"], &vars);
    assert_eq!(lost.code, Some(0), "{:#}", lost.json);
    assert!(lost.stderr.contains("did not accept"), "{}", lost.stderr);
}

#[test]
fn the_trace_of_the_demos_own_request_has_its_root_with_report_spans() {
    let demo = Demo::start_with(&["--latency", "0", "--report-spans"]);
    wait_until("the caller's span is the root of a trace", || {
        begun_by_the_caller(&demo.store).iter().any(|trace| has_the_callers_root(trace)).then_some(())
    });
    let once = httpserver().args(["demo", "--once", "--report-spans", "--latency", "0"]).output().unwrap();
    let shown = String::from_utf8(once.stdout).unwrap();
    assert!(once.status.success() && shown.contains("httpserver-check"), "{shown}");
}

fn get(address: &str, path: &str) -> Value {
    let mut stream = TcpStream::connect(address).unwrap();
    // HTTP/1.0, so that the answer does not come in chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nhost: {address}\r\naccept: application/json\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap_or(Value::Null)
}

/// Checks a hop whose next hop answers so, as if both were pods.
fn between_pods(status: u16, headers: &[(&'static str, &str)], body: &str) -> Run {
    let (headers, body): (Vec<_>, _) =
        (headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(), body.to_owned());
    let proxy = fake(move |_| (status, headers.clone(), body.clone()));
    let one = serve("service1", &["--upstream", &format!("http://{proxy}/service2")], &[]);
    let mut upstreams = get(&one.addr.to_string(), "/service1")["upstreams"].take();
    upstreams[0]["url"] = json!("http://service2/service2");
    let front = fake(move |request| {
        let mut hop = reply("service1", "v1", "base", request, upstreams.as_array().unwrap().clone());
        hop["hostname"] = json!("service1-7d4b9c6f5-x2x5z");
        hop["status"] = json!(502);
        (502, vec![], hop.to_string())
    });
    check(&format!("http://{front}/service1"), &["--count", "1"])
}

#[test]
fn what_a_proxy_answers_between_two_hops_is_read_for_what_it_means() {
    let envoy = &[("server", "envoy"), ("content-type", "text/plain")][..];
    let reset = "upstream connect error or disconnect/reset before headers. reset reason:";
    for (status, body, says) in [
        (404, "", ["404 without a hop's reply, empty body", "NR"]),
        (503, "no healthy upstream", ["503 without a hop's reply: no healthy upstream [server envoy]", "UH"]),
        (503, "", ["503 without a hop's reply, empty body", "NC"]),
        (503, &format!("{reset} connection timeout"), ["connection timeout", "the endpoint is nobody's"]),
        (503, &format!("{reset} connection termination"), ["connection termination", "UF or UC"]),
        (503, &format!("{reset} overflow"), ["overflow", "UO"]),
        (503, &format!("{reset} connection failure, transport failure reason: TLS_error"), ["TLS_error", "do not agree on TLS"]),
        (418, "fault filter abort", ["418", "on purpose (flag FI)"]),
        (403, "RBAC: access denied", ["RBAC: access denied", "An AuthorizationPolicy at service2 denies service1"]),
        (429, "local_rate_limited", ["local_rate_limited", "rate limit at service2"]),
        (504, "upstream request timeout", ["upstream request timeout", "UT"]),
        (500, "what else", ["what else", "something that is no hop"]),
    ] {
        between_pods(status, envoy, body).breaks_at("chain.hops", "service1", "service2", None, &says);
    }
    // Not Envoy's, and not quoted: all that is left is what it may be.
    let page = between_pods(503, &[("content-type", "text/html")], "<h1>Gone</h1>");
    page.breaks_at("chain.hops", "service1", "service2", None, &["503 without a hop's reply", "(UH)", "(NC)", "(UF)"]);
    assert!(!page.check("chain.hops")["text"].to_string().contains("Gone"));
}

#[test]
fn a_hop_that_is_overloaded_or_called_by_a_wrong_path_says_so_itself() {
    let two = serve("service2", &["--max-concurrency", "1", "--latency", "60s"], &[]);
    let one = serve("service1", &["--upstream", &format!("http://{}/service2", two.addr), "--upstream-timeout", "1s"], &[]);
    let (busy, url) = (two.addr.to_string(), format!("http://{}/service1", one.addr));
    // Holds the only place until the hop is gone.
    let holder = std::thread::spawn(move || get(&busy, "/service2"));
    let says = |run: &Run| run.check("chain.hops")["text"].to_string();
    let run =
        (0..30).map(|_| check(&url, &["--count", "1"])).find(|run| says(run).contains("got 503")).expect("a call that is shed");
    run.fails("chain.hops", &["without a hop's reply: The hop has as many", "service2 is overloaded", "MAX_CONCURRENCY"]);
    drop((one, two));
    let _ = holder.join();

    let two = serve("service2", &[], &[]);
    let one = serve("service1", &["--upstream", &format!("http://{}/reviews", two.addr)], &[]);
    let run = check(&format!("http://{}/service1", one.addr), &["--count", "1"]);
    run.fails(
        "chain.hops",
        &["got 404 without a hop's reply: There is no such path here", "does not serve this path", "UPSTREAM of service1"],
    );
}

#[test]
fn hops_that_did_not_answer_are_a_failure_of_the_chain_and_not_of_their_reports() {
    let demo = Demo::start();
    let gone =
        fake(|_| (503, vec![("server", "envoy".into()), ("content-type", "text/plain".into())], "no healthy upstream".into()));
    let one = serve(
        "service1",
        &["--trace-exporter", "zipkin", "--upstream", &format!("http://{gone}/service2")],
        &[("OTEL_EXPORTER_ZIPKIN_ENDPOINT", &format!("{}/api/v2/spans", demo.store))],
    );
    let run = check(
        &format!("http://{}/service1", one.addr),
        &["--expect", "service1,service2,service3", "--traces", &demo.store, "--traces-wait", "4s", "--count", "2"],
    );
    run.breaks_at("chain.hops", "service1", "service2", None, &["got 503 without a hop's reply: no healthy upstream"]);
    assert!(run.failed().iter().all(|check| check["id"] != "traces.services"), "{:#}", run.json);
}

/// A front of one hop whose version follows a sequence of 1,000 with exactly `of_v2` of them.
fn versions(of_v2: u64) -> String {
    let next = AtomicU64::new(0);
    let front = fake(move |request| {
        // A stride that is prime to 1,000 visits every residue once: the same counts in every run, spread evenly.
        let turn = next.fetch_add(1, Ordering::SeqCst).wrapping_mul(617) % 1000;
        (200, vec![], reply("service1", if turn < of_v2 { "v2" } else { "v1" }, "base", request, vec![]).to_string())
    });
    format!("http://{front}/service1")
}

#[test]
fn a_split_of_80_20_fails_where_90_10_was_promised_and_89_11_passes() {
    let args = ["--expect-split", "v1=90,v2=10", "--count", "1000", "--rate", "2000"];
    let run = check(&versions(200), &args);
    let found = run.fails("traffic.split", &["Split at service1", "v1=90,v2=10 promised", "weight"]);
    assert!(found["data"]["p"].as_f64().unwrap() < 1e-5);
    let run = check(&versions(110), &args);
    run.fine();
    assert!(run.check("traffic.split")["text"].as_str().unwrap().contains("4.5 points"), "{:#}", run.check("traffic.split"));
}

#[test]
fn too_few_requests_are_no_proof_and_a_version_that_never_answers_is_one() {
    let run = check(&versions(110), &["--expect-split", "v1=90,v2=10", "--count", "100", "--rate", "2000"]);
    run.fine();
    let split = run.check("traffic.split");
    assert_eq!(split["status"], "skip");
    assert!(split["text"].as_str().unwrap().contains("too few requests to tell"), "{split}");
    let run = check(&versions(0), &["--expect-split", "v1=90,v2=10", "--count", "300", "--rate", "2000"]);
    run.fails("traffic.split", &["no hop answered in more than one"]);
    let run = check(&versions(500), &["--expect-split", "service1:v1=50,v3=50", "--count", "50", "--rate", "2000"]);
    run.fails("traffic.split", &["does not name"]);
}

#[test]
fn retries_and_identities_are_told_per_hop() {
    let front = fake(|request| {
        let mut two = reply("service2", "v1", "base", request, vec![]);
        two["attempt"] = json!(3);
        two["client"]["identity"] = json!("spiffe://cluster.local/ns/httpserver/sa/service1");
        (200, vec![], reply("service1", "v1", "base", request, vec![call("service2", two)]).to_string())
    });
    let run = check(&format!("http://{front}/service1"), &["--count", "10", "--rate", "500"]);
    let retries = run.check("traffic.retries");
    assert!(
        retries["detail"][0].as_str().unwrap().contains("service2")
            && retries["detail"][0].as_str().unwrap().contains("3 at most"),
        "{retries}"
    );
    // The attempt count shows a proxy in front of service2, and none in front of service1.
    let identity = run.check("traffic.identity");
    assert!(identity["detail"].to_string().contains("called by spiffe://cluster.local/ns/httpserver/sa/service1"), "{identity}");
    assert!(identity["detail"].to_string().contains("no proxy seen in front"), "{identity}");
}

#[test]
fn an_identity_without_a_proxy_proves_nothing() {
    let front = fake(|request| {
        let mut one = reply("service1", "v1", "base", request, vec![]);
        one["client"]["identity"] = json!("spiffe://made/up");
        (200, vec![], one.to_string())
    });
    let run = check(&format!("http://{front}/service1"), &["--count", "3"]);
    run.fine();
    assert_eq!(run.check("traffic.identity")["status"], "skip");
    assert!(run.check("traffic.identity")["text"].as_str().unwrap().contains("proves nothing"));
}

#[test]
fn retries_fail_unless_they_are_meant_and_the_calls_of_one_request_are_counted() {
    let front = fake(|request| {
        let mut three = reply("service3", "v1", "base", request, vec![]);
        three["attempt"] = json!(3);
        let mut two = reply("service2", "v1", "base", request, vec![call("service3", three)]);
        two["attempt"] = json!(2);
        (200, vec![], reply("service1", "v1", "base", request, vec![call("service2", two)]).to_string())
    });
    let url = format!("http://{front}/service1");
    let run = check(&url, &["--count", "10", "--rate", "500"]);
    let found = run.fails("traffic.retries", &["0 % promised", "retry_policy"]);
    assert!(found["detail"].to_string().contains("service3 received 6 calls for 1 request"), "{found:#}");
    check(&url, &["--count", "10", "--rate", "500", "--expect-retries", "100"]).fine();
}

#[test]
fn retries_of_hops_multiply_and_the_calls_are_counted_in_the_reply() {
    let again = || plain().arg("--retries", "2");
    let chain = Chain::start(&[again(), again(), plain().arg("--fault", "abort=503")]);
    let run = quick(&chain.url(), &[]);
    assert_eq!(run.code, Some(1), "{:#}", run.json);
    let detail = run.check("traffic.retries")["detail"].to_string();
    for line in ["service2 received 3 calls for 1 request", "service3 received 9 calls for 1 request"] {
        assert!(detail.contains(line), "{line} not in {detail}");
    }
}

#[test]
fn promised_latencies_and_callers_are_held_to() {
    let front = fake(|request| {
        let mut two = reply("service2", "v1", "base", request, vec![]);
        two["client"]["identity"] = json!("spiffe://cluster.local/ns/httpserver/sa/service1");
        two["duration_ms"] = json!(120.0);
        let mut one = reply("service1", "v1", "base", request, vec![call("service2", two)]);
        one["duration_ms"] = json!(125.0);
        (200, vec![], one.to_string())
    });
    let run = |args: &[&str]| check(&format!("http://{front}/service1"), &[&["--count", "20", "--rate", "500"], args].concat());
    run(&[
        "--expect-latency",
        "service2:p99=121ms",
        "--expect-latency",
        "p99=20s",
        "--expect-principal",
        "service2=spiffe://cluster.local/ns/httpserver/sa/service1",
    ])
    .fine();
    let found = run(&["--expect-latency", "service2:p50=100ms"]);
    assert_eq!(
        found.fails("traffic.latency", &["service2 answers in 120.0 ms at p50", "service2:p50=100ms promised"])["hop"],
        "service2"
    );
    let found = run(&["--expect-principal", "service2=spiffe://cluster.local/ns/httpserver/sa/other"]);
    found.fails(
        "traffic.identity",
        &["service2 is called by spiffe://cluster.local/ns/httpserver/sa/service1 in 20 of 20", "sa/other promised"],
    );
    run(&["--expect-principal", "service1=spiffe://x/y"]).fails("traffic.identity", &["nobody that a certificate names"]);
}

/// Two pods of service2 by turns; `change` gets the reply of the second one.
fn two_pods(change: impl Fn(&mut Value) + Send + Sync + 'static) -> SocketAddr {
    let turn = AtomicU64::new(0);
    fake(move |request| {
        let mut two = reply("service2", "v1", "base", request, vec![]);
        let mut is_slow = turn.fetch_add(1, Ordering::SeqCst) % 2 == 1;
        two["hostname"] = json!(if is_slow { "service2-7d4b9c6f5-bbbbb" } else { "service2-7d4b9c6f5-ccccc" });
        if is_slow {
            change(&mut two);
            is_slow = two["status"] != 200;
        }
        let (status, took) = (two["status"].clone(), two["duration_ms"].as_f64().unwrap());
        let mut one = reply("service1", "v1", "base", request, vec![call("service2", two)]);
        one["upstreams"][0]["duration_ms"] = json!(took + 1.0);
        one["duration_ms"] = json!(took + 2.0);
        if is_slow {
            one["status"] = json!(502);
            one["upstreams"][0]["status"] = status;
            one["upstreams"][0]["error"] = json!("answered 503 Service Unavailable");
            return (502, vec![], one.to_string());
        }
        (200, vec![], one.to_string())
    })
}

#[test]
fn one_instance_that_is_slower_or_fails_is_named_by_its_pod() {
    let args = ["--count", "60", "--rate", "500"];
    check(&format!("http://{}/service1", two_pods(|_| {})), &args).fine();
    let slow = two_pods(|two| two["duration_ms"] = json!(2000.0));
    let run = check(&format!("http://{slow}/service1"), &args);
    let found =
        run.fails("traffic.times", &["service2-7d4b9c6f5-bbbbb is slower than the other instances of service2", "2000 ms"]);
    assert_eq!(found["hop"], "service2");
    assert_eq!(run.failed().len(), 1, "{:#}", run.json);
    let failing = two_pods(|two| two["status"] = json!(503));
    let run = check(&format!("http://{failing}/service1"), &args);
    let text = run.check("traffic.success")["text"].as_str().unwrap();
    assert!(text.contains("All of them at service2-7d4b9c6f5-bbbbb, and none at service2-7d4b9c6f5-ccccc"), "{text}");
}

#[test]
fn what_lies_between_a_call_and_its_answer_is_judged() {
    let front = fake(|request| {
        let three = reply("service3", "v1", "base", request, vec![]);
        let mut two = reply("service2", "v1", "base", request, vec![call("service3", three)]);
        two["upstreams"][0]["duration_ms"] = json!(1002.0);
        two["duration_ms"] = json!(1003.0);
        let mut one = reply("service1", "v1", "base", request, vec![call("service2", two)]);
        one["upstreams"][0]["duration_ms"] = json!(1004.0);
        one["duration_ms"] = json!(1005.0);
        (200, vec![], one.to_string())
    });
    let run = check(&format!("http://{front}/service1"), &["--count", "20", "--rate", "500"]);
    run.breaks_at("traffic.times", "service2", "service3", None, &["1001 ms lie between the call of service2", "fault filter"]);
    assert_eq!(run.failed().len(), 1, "{:#}", run.json);
}

#[test]
fn the_table_of_a_deep_chain_keeps_whole_names_in_the_chains_order() {
    let demo = Demo::start_with(&["--hops", "11", "--latency", "0"]);
    let run = check(&demo.url, &["--traces", &demo.store, "--count", "0", "--skip", "traces.sampling"]);
    run.fine();
    let table = run.check("propagation.proxies")["detail"].to_string();
    assert!(!table.contains("servi…"), "{table}");
    assert!((5..=11).all(|n| table.contains(&format!("service{n} "))), "{table}");
    let text = run.check("traces.services")["text"].as_str().unwrap();
    assert!(text.contains("service2, service3") && text.ends_with("service9, service10, service11"), "{text}");
}

/// A mesh with mTLS whose proxies do not trace: every hop in `with` is called with an identity.
fn meshed(with: [bool; 4]) -> String {
    meshed_by_turns(with, with)
}

/// The same, other pods answering the x-ray's probes than the requests of the statistics, which bring no trace context.
fn meshed_by_turns(probed: [bool; 4], counted: [bool; 4]) -> String {
    let front = fake(move |request| {
        let with = if request.header("traceparent").is_some() { probed } else { counted };
        let mut below: Option<Value> = None;
        for n in (1..=4).rev() {
            let upstreams = below.take().map(|reply| call(&format!("service{}", n + 1), reply)).into_iter().collect();
            let mut hop = reply(&format!("service{n}"), "v1", "base", request, upstreams);
            hop["hostname"] = json!(format!("service{n}-7d4b9c6f5-x2x5z"));
            // A second attempt is the sign of a proxy; these tests allow for it.
            hop["attempt"] = json!(2);
            if with[n - 1] {
                hop["client"]["identity"] = json!(format!("spiffe://cluster.local/ns/httpserver/sa/service{}", n - 1));
            }
            below = Some(hop);
        }
        (200, vec![], below.unwrap().to_string())
    });
    format!("http://{front}/service1")
}

#[test]
fn a_hop_without_a_sidecar_is_named_by_the_plain_text_around_it() {
    let run = check(&meshed([true, false, false, true]), &["--count", "3", "--expect-retries", "100"]);
    run.fails("propagation.sidecar", &["service2 has no sidecar", "Injection is missing at service2"]);
    assert_eq!(run.failed().len(), 1, "one cause, one finding: {:#}", run.json);
    let text = run.check("traffic.identity")["text"].as_str().unwrap();
    assert!(text.contains("not checked at service2, service3, because service2 has no sidecar"), "{text}");
}

#[test]
fn a_pod_without_a_sidecar_that_the_probe_did_not_meet_is_found_by_the_statistics() {
    let run = check(&meshed_by_turns([true; 4], [true, false, false, true]), &["--count", "3", "--expect-retries", "100"]);
    let check = run.fails(
        "traffic.identity",
        &["service2 is called and calls without mTLS", "Injection is missing at service2", "kubectl get pods -n httpserver"],
    );
    assert_eq!(check["hop"], "service2");
    assert_eq!(run.failed().len(), 1, "{:#}", run.json);
}

#[test]
fn a_first_hop_that_is_called_without_a_gateway_has_no_caller_in_the_mesh() {
    let front = fake(|request| {
        let mut through = request.clone();
        through.headers.retain(|(name, _)| name != "traceparent");
        through.headers.push(("traceparent".into(), format!("00-{}-7777777777777777-01", "5".repeat(32))));
        let mut two = reply("service2", "v1", "base", &through, vec![]);
        two["client"] = json!({"ip": "127.0.0.6", "identity": "spiffe://cluster.local/ns/httpserver/sa/service1"});
        let mut one = reply("service1", "v1", "base", &through, vec![call("service2", two)]);
        one["client"]["ip"] = json!("127.0.0.6");
        (200, vec![], one.to_string())
    });
    let run = check(&format!("http://{front}/service1"), &["--count", "3"]);
    let identity = run.check("traffic.identity");
    assert_eq!(identity["status"], "pass", "{identity:#}");
    assert!(identity["detail"].to_string().contains("called by check itself"), "{identity:#}");
}

#[test]
fn proxies_that_do_not_trace_point_at_the_telemetry_resource() {
    let empty = fake(|request| match request.path.as_str() {
        "/api/v2/services" => (200, vec![], "[]".into()),
        _ => (404, vec![], String::new()),
    });
    let run = check(&meshed([true; 4]), &["--count", "3", "--traces", &format!("http://{empty}"), "--traces-wait", "1s"]);
    run.fails(
        "traces.arrived",
        &["Nobody reports spans", "service2", "do not trace", "extensionProviders", "kubectl get telemetry"],
    );
    assert_eq!(run.check("traffic.identity")["status"], "pass");
}

// Lanes.

/// Three hops of which service1 and service3 have a lane `gray`; `leaks`: every fourth base request is answered from it, too.
fn lanes(leaks: bool) -> String {
    let turn = AtomicU64::new(0);
    let front = fake(move |request| {
        let gray = request.header("x-lane") == Some("gray");
        let leak = leaks && turn.fetch_add(1, Ordering::SeqCst) % 4 == 3;
        let (one, three) = (if gray { "gray" } else { "base" }, if gray || leak { "gray" } else { "base" });
        let three = reply("service3", "v1", three, request, vec![]);
        let two = reply("service2", "v1", "base", request, vec![call("service3", three)]);
        (200, vec![], reply("service1", "v1", one, request, vec![call("service2", two)]).to_string())
    });
    format!("http://{front}/service1")
}

#[test]
fn a_lane_is_walked_with_its_fall_backs() {
    let run = check(&lanes(false), &["--lane", "gray", "--count", "2", "--rate", "500"]);
    run.fine();
    let walk = run.check("lanes.walk")["text"].as_str().unwrap().to_owned();
    assert!(walk.contains("service1 gray, service2 base (fall-back), service3 gray"), "{walk}");
    assert_eq!(run.check("lanes.baseline")["status"], "pass");
}

#[test]
fn a_lane_that_leaks_into_the_baseline_is_named_with_its_hop() {
    let run = check(&lanes(true), &["--lane", "gray", "--count", "2", "--rate", "500"]);
    run.breaks_at("lanes.leak", "service2", "service3", None, &["Lane gray leaks into the baseline at service3", "subset"]);
}

#[test]
fn a_lane_header_that_is_lost_and_a_lane_that_nobody_runs_are_named() {
    let chain = Chain::start(&[plain().arg("--lane", "gray"), plain().arg("--drop-header", "x-lane"), plain()]);
    let run = check(&chain.url(), &["--lane", "gray", "--count", "1", "--rate", "500"]);
    run.breaks_at("propagation.lane", "service2", "service3", Some("hop"), &["x-lane"]);
    run.follows("lanes.carry", "propagation.lane", &["Lane gray is lost", "x-lane"]);
    let chain = Chain::start(&[plain(), plain()]);
    let run = check(&chain.url(), &["--lane", "gray", "--count", "1", "--rate", "500"]);
    run.fails("lanes.walk", &["no hop answered from it", "LANE=gray"]);
}

// Watch.

#[test]
fn a_hop_that_restarts_under_watch_is_named_with_its_gap() {
    let mut chain = Chain::start(&[plain(), plain(), plain()]);
    let url = chain.url();
    let watching = std::thread::spawn(move || check(&url, &["--watch", "4s", "--rate", "50", "--count", "0"]));
    std::thread::sleep(Duration::from_millis(1500));
    let addr = chain.hops[2].addr.to_string();
    chain.hops[2].kill();
    std::thread::sleep(Duration::from_millis(500));
    let again = serve_at(&addr, "service3", &[], &[]);
    let run = watching.join().unwrap();
    drop(again);
    run.breaks_at("watch.failures", "service2", "service3", None, &["requests failed", "DRAIN"]);
    let gap = run.check("watch.failures")["data"]["longest_gap_ms"].as_u64().unwrap();
    assert!((300..3000).contains(&gap), "{gap}");
    assert!(run.check("watch.failures")["detail"][0].as_str().unwrap().contains("service2 -> service3"), "{:#}", run.json);
}

#[test]
fn a_watch_without_an_end_is_whole_when_a_signal_ends_it() {
    let sent = Arc::new(AtomicU64::new(0));
    let counter = sent.clone();
    let front = fake(move |request| {
        counter.fetch_add(1, Ordering::SeqCst);
        (200, vec![], reply("service1", "v1", "base", request, vec![]).to_string())
    });
    let url = format!("http://{front}/service1");
    let mut child = httpserver()
        .args(["check", &url, "--watch", "forever", "--rate", "50", "--count", "0", "--skip", "propagation", "--output", "json"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the watch goes on", || (sent.load(Ordering::SeqCst) > 60).then_some(()));
    assert!(std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let report: serde_json::Value = serde_json::from_reader(child.stdout.take().unwrap()).unwrap();
    assert_eq!((child.wait().unwrap().code(), &report["interrupted"]), (Some(0), &serde_json::json!(false)), "{report:#}");
    let watched = report["checks"].as_array().unwrap().iter().find(|check| check["id"] == "watch.failures").unwrap();
    assert!(watched["data"]["requests"].as_u64().unwrap() > 40, "{watched:#}");
}

#[test]
fn a_quiet_watch_is_fine() {
    let chain = Chain::start(&[plain(), plain()]);
    let run = check(&chain.url(), &["--watch", "1s", "--rate", "40", "--count", "0"]);
    run.fine();
    let sent = run.check("watch.failures")["data"]["requests"].as_u64().unwrap();
    assert!((15..=41).contains(&sent), "at most 40/s, fewer only on a busy machine: {sent}");
}

// How it behaves.

#[test]
fn it_sends_nothing_but_get_and_never_faster_than_the_rate() {
    let seen: Arc<Mutex<Vec<(Instant, String)>>> = Arc::default();
    let log = seen.clone();
    let front = fake(move |request| {
        log.lock().unwrap().push((Instant::now(), request.method.clone()));
        (200, vec![], reply("service1", "v1", "base", request, vec![]).to_string())
    });
    check(&format!("http://{front}/service1"), &["--count", "30", "--rate", "100", "--lane", "gray"]);
    let seen = seen.lock().unwrap();
    assert!(seen.len() > 60 && seen.iter().all(|(_, method)| method == "GET"));
    let took = seen.last().unwrap().0 - seen[0].0;
    // One more than intervals; a little slack, because arrival is not departure.
    assert!(took.as_secs_f64() >= (seen.len() - 1) as f64 / 100.0 * 0.95, "{} requests in {took:?}", seen.len());
}

#[test]
fn wrong_usage_is_exit_2_with_a_clear_error_and_nothing_sent() {
    let sent = Arc::new(AtomicU64::new(0));
    let counter = sent.clone();
    let front = fake(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        (200, vec![], String::new())
    });
    let url = format!("http://{front}/service1");
    let missing = std::env::temp_dir().join("no-such-file.pem");
    let empty = File::new("pem", "nothing in here");
    for (args, says) in [
        (vec!["--lane", "gray=1"], vec!["--lane", "gray=1"]),
        (vec!["--lane", "base"], vec!["--lane", "baseline"]),
        (vec!["--expect-split", "v1=90,v2=20"], vec!["--expect-split", "110", "100"]),
        (vec!["--expect", "a,,b"], vec!["--expect", "a,,b"]),
        (vec!["--resolve", "host:10.0.0.1"], vec!["--resolve", "HOST:PORT:ADDRESS"]),
        (vec!["--rate", "0"], vec!["--rate", "above 0"]),
        (vec!["--watch", "60"], vec!["--watch", "60s", "forever"]),
        (vec!["--count", "many"], vec!["--count", "many"]),
        (vec!["--cacert", missing.to_str().unwrap()], vec!["--cacert", "no-such-file.pem"]),
        (vec!["--cacert", empty.path()], vec!["--cacert", "no certificate"]),
        (vec!["--expect-split", "v1=100", "--count", "0"], vec!["--expect-split", "--count"]),
        (vec!["--expect", "service1", "--expect-split", "service9:v1=100"], vec!["service9", "--expect"]),
        (vec!["--skip", "nonsense"], vec!["--skip", "nonsense"]),
        (vec!["--skip", "reach.tpc"], vec!["--skip reach.tpc", "reach.tcp"]),
        (vec!["-H", "traceparent: x"], vec!["traceparent"]),
    ] {
        let run = check(&url, &args);
        assert_eq!(run.code, Some(2), "{args:?}: {}", run.stderr);
        assert!(run.stderr.starts_with("error: ") || run.stderr.starts_with("httpserver: "), "{args:?}: {}", run.stderr);
        assert!(run.stderr.ends_with('\n') && run.stderr.lines().count() < 12, "{args:?}: {}", run.stderr);
        for part in says {
            assert!(run.stderr.contains(part), "{part:?} not in {}", run.stderr);
        }
    }
    let output = httpserver().args(["check", &url, "--output", "yaml"]).output().unwrap();
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && line.contains("--output") && line.contains("junit"), "{line}");
    // A duration is written as for `serve`: this one is no usage error.
    let run = check("http://127.0.0.1:1/service1", &["--timeout", "1m 30s", "--count", "0"]);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    let run = check("ftp://x/", &[]);
    assert!(run.code == Some(2) && run.stderr.contains("ftp://x/") && run.stderr.contains("http"), "{}", run.stderr);
    assert_eq!(sent.load(Ordering::SeqCst), 0);
}

#[test]
fn ctrl_c_prints_the_verdict_so_far() {
    let chain = Chain::start(&[plain(), plain()]);
    for (signal, output) in [("-INT", "text"), ("-TERM", "json")] {
        let mut child = httpserver()
            .arg("check")
            .arg(chain.url())
            .args(["--count", "1000", "--rate", "20", "--output", output])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        assert!(std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let begun = Instant::now();
        let status = child.wait().unwrap();
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(3));
        assert_eq!(status.code(), Some(1), "{text}");
        assert!(text.contains("interrupted, so far nothing broken"), "{text}");
        assert!(text.contains("requests succeeded"), "what was measured until then is told: {text}");
    }
}

#[test]
fn the_text_fits_80_columns_and_names_each_group_once() {
    let chain = Chain::start(&[plain(), plain().arg("--drop-header", "traceparent"), plain()]);
    let output = httpserver().arg("check").arg(chain.url()).args(["--count", "3", "--lane", "gray"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains('\u{1b}'), "colours belong on a terminal: {text}");
    for line in text.lines() {
        let is_command = line.trim_start().starts_with("next") || line.contains("curl ");
        assert!(line.chars().count() <= 80 || is_command, "{line}");
    }
    for group in ["Reach", "Chain", "Propagation", "Lanes", "Traffic"] {
        assert_eq!(text.lines().filter(|line| *line == group).count(), 1, "{group} in {text}");
    }
    assert!(text.contains("  ✗ W3C trace broke between service2 and service3: service2 received traceparent"), "{text}");
}

#[test]
fn junit_is_for_ci() {
    let chain = Chain::start(&[plain(), plain().arg("--drop-header", "x-lane"), plain()]);
    let output = httpserver().arg("check").arg(chain.url()).args(["--count", "1", "--output", "junit"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.starts_with("<?xml") && text.trim_end().ends_with("</testsuites>"), "{text}");
    assert!(
        text.contains("name=\"propagation.lane\" classname=\"propagation.lane\"") && text.contains("<failure message="),
        "{text}"
    );
}

#[test]
fn a_backend_that_redirects_is_not_followed_and_named_without_secrets() {
    let (chain, asked) = (Chain::start(&[plain()]), Arc::new(Mutex::new(0)));
    let count = asked.clone();
    let elsewhere = fake(move |_| {
        *count.lock().unwrap() += 1;
        (200, vec![], "[]".to_owned())
    });
    let login = format!("http://u:s3cret@{elsewhere}/login?code=s3cret");
    let front = fake(move |_| (302, vec![("location", login.clone())], String::new()));
    let traces = format!("http://me:s3cret@{front}/zipkin?token=s3cret");
    let run = check(&chain.url(), &["--traces", &traces, "--count", "1"]);
    let to = format!("redirects (302) to http://{elsewhere}/login, which is not followed");
    run.fails("traces.backend", &[&format!("No trace backend at http://{front}/zipkin"), &to]);
    assert!(!run.json.to_string().contains("s3cret") && !run.stderr.contains("s3cret"), "{:#}", run.json);
    assert_eq!(*asked.lock().unwrap(), 0);
}

#[test]
fn the_report_shows_no_password_and_no_query_of_the_urls_it_was_given() {
    let front = fake(|_| (301, vec![("location", "https://u:s3cret@chain.test/service1?code=s3cret".into())], String::new()));
    let closed = free_addr();
    for addr in [front.to_string(), closed.to_string()] {
        let url = format!("http://me:s3cret@{addr}/service1?token=s3cret");
        for output in ["text", "json", "junit"] {
            let ran = crate::common::run(&["check", &url, "--output", output, "--traces", &url], &[]);
            assert_eq!(ran.code, Some(1), "{ran:?}");
            assert!(ran.stdout.contains("TCP 127.0.0.1") && !format!("{ran:?}").contains("s3cret"), "{ran:?}");
        }
    }
}
