//! `httpserver doctor`: what it finds in systems with a planted fault, and in healthy ones.

mod lost;
mod systems;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::common::{Demo, Ran, run, wait_until};
use systems::{Fault, NAMINGS, System};

/// Systems of each sort; the published figures are from 200.
fn sample() -> u64 {
    std::env::var("DOCTOR_SYSTEMS").ok().and_then(|n| n.parse().ok()).unwrap_or(12)
}

fn doctor(spans: &[Value], flags: &[&str]) -> Ran {
    doctor_of(&Value::from(spans), flags)
}

fn doctor_of(document: &Value, flags: &[&str]) -> Ran {
    doctor_of_text(&document.to_string(), flags)
}

fn doctor_of_text(text: &str, flags: &[&str]) -> Ran {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("traces-{}-{}.json", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&file, text).unwrap();
    let ran = run(&[&["doctor", "--file", file.to_str().unwrap()], flags].concat(), &[]);
    let _ = std::fs::remove_file(&file);
    ran
}

fn report(spans: &[Value]) -> Value {
    let ran = doctor(spans, &["--output", "json"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    serde_json::from_str(&ran.stdout).unwrap()
}

/// Id, service, peer and text of each fault.
fn faults(report: &Value) -> Vec<[String; 4]> {
    let findings = report["findings"].as_array().unwrap().iter().filter(|finding| finding["level"] == "fault");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    findings.map(|f| ["id", "service", "peer", "text"].map(|key| text(&f[key]))).collect()
}

#[test]
fn healthy_systems_have_no_fault() {
    for seed in 0..sample() {
        let system = System::random(seed, false);
        let found = faults(&report(&system.spans(seed, 200)));
        assert!(found.is_empty(), "system {seed}: {found:?}");
    }
}

/// Somebody without a tracer asks the services on the paths of users, one after the other: what is asked next begins a trace, and lies
/// inside what was asked before wherever that takes longer.
#[test]
fn services_that_a_monitor_or_a_page_asks_by_turns_have_no_fault() {
    let mut wrong = Vec::new();
    for seed in 3_000..3_000 + sample() {
        let found = faults(&report(&System::asked(seed).spans(seed, 200)));
        wrong.extend((!found.is_empty()).then_some((seed, found)));
    }
    println!("{} of {} with a fault", wrong.len(), sample());
    assert!(wrong.len() as u64 * 100 <= sample(), "{wrong:?}");
}

#[test]
fn planted_faults_are_found_at_their_service() {
    let (mut found, mut wrong, mut missed) = (0, Vec::new(), Vec::new());
    for seed in 1_000..1_000 + sample() {
        let system = System::random(seed, true);
        let (service, fault) = system.faulty.unwrap();
        let name = &system.names[service];
        let faults = faults(&report(&system.spans(seed, 200)));
        let is = |text: &str| text.split('.').next() == Some(name);
        let is_host = |text: &str| system.host(service).starts_with(text);
        let names = |[_, service, peer, text]: &[String; 4]| match fault {
            // Whether the caller does not write or the callee does not read cannot be known when they have only each other.
            Fault::Ignores => is(service) || is(peer),
            // Its callers know it by the name of its host; where nobody names it, its place is all that can be known.
            Fault::Silent => is(service) || is_host(service) || text.starts_with("a service stands there"),
            _ => is(service),
        };
        let (at, elsewhere): (Vec<_>, Vec<_>) = faults.into_iter().partition(names);
        if at.is_empty() {
            missed.push((seed, name.clone(), fault))
        } else {
            found += 1
        }
        wrong.extend(elsewhere.into_iter().map(|finding| (seed, name.clone(), fault, finding)));
    }
    println!("{found} of {} found", sample());
    missed.iter().for_each(|line| println!("missed {line:?}"));
    wrong.iter().for_each(|line| println!("wrong {line:?}"));
    assert!(found * 100 >= sample() * 95 && (wrong.len() as u64) * 20 <= sample());
}

/// A service that copies the headers which it received to its calls and reports nothing: at any clock nobody else is named, and it is found
/// wherever the spans of its callers name it. Where nobody names it, its place is all that can be known.
#[test]
fn a_service_that_forwards_headers_and_reports_nothing_is_found() {
    let (mut named, mut found, mut unnamed, mut placed) = (0, 0, 0, 0);
    let mut wrong = Vec::new();
    for seed in 0..sample() {
        let n = seed as usize;
        let rate = [1.0, 0.3, 0.1][n % 3];
        let skew = [0, 3_000, 30_000, 400_000, 2_000_000][n % 5];
        let system = System::forwarding(5_000 + seed, rate, skew, NAMINGS[n % NAMINGS.len()]);
        let name = &system.names[system.faulty.unwrap().0];
        let faults = faults(&report(&system.spans(seed, 200)));
        let (at, elsewhere): (Vec<_>, Vec<_>) = faults.into_iter().partition(|[_, service, _, text]| {
            service.split('.').next() == Some(name) || text.starts_with("a service stands there")
        });
        let is_found = !at.is_empty();
        if system.is_named() {
            named += 1;
            found += u64::from(is_found);
            if !is_found {
                println!("missed {seed} {name} {rate} {skew} {:?}", NAMINGS[n % NAMINGS.len()]);
            }
        } else {
            unnamed += 1;
            placed += u64::from(is_found);
        }
        wrong.extend(elsewhere.into_iter().map(|finding| (seed, name.clone(), rate, skew, finding)));
    }
    println!("{found} of {named} that are named found; {placed} of {unnamed} others");
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(found * 100 >= named * 95, "{found} of {named}");
}

fn system_of_two(seed: u64) -> Vec<Value> {
    let mut spans = Vec::new();
    for n in 0..20u64 {
        let (a, b, start) = (seed + 4 * n + 1, seed + 4 * n + 2, 1_780_000_000_000_000 + n * 1_000_000);
        let span = |trace: u64, id: u64, kind: &str, service: &str, start: u64, took: u64| {
            json!({"traceId": format!("{trace:032x}"), "id": format!("{id:016x}"), "kind": kind, "name": "get", "timestamp": start,
                "duration": took, "localEndpoint": {"serviceName": service}})
        };
        let mut call = span(a, a + 1_000_000, "CLIENT", "front", start + 1_000, 20_000);
        call["parentId"] = json!(format!("{a:016x}"));
        call["tags"] = json!({"peer.service": "back"});
        spans.extend([span(a, a, "SERVER", "front", start, 30_000), call, span(b, b, "SERVER", "back", start + 2_000, 15_000)]);
    }
    spans
}

/// Zipkin's list of spans, its list of traces, OTLP and Jaeger's download are read alike.
#[test]
fn every_form_of_a_file_gives_the_same_report() {
    let spans = system_of_two(100);
    let expected = faults(&report(&spans));
    assert_eq!(expected.len(), 1, "{expected:?}");
    assert_eq!(expected[0][..3], ["context.dropped", "front", "back"]);
    let mut traces: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for span in &spans {
        traces.entry(span["traceId"].as_str().unwrap().to_owned()).or_default().push(span.clone());
    }
    let lists: Vec<Value> = traces.values().cloned().map(Value::Array).collect();
    assert_eq!(faults(&report(&lists)), expected);
    let jaeger = |(id, spans): (&String, &Vec<Value>)| {
        let spans: Vec<Value> = spans
            .iter()
            .map(|span| {
                let kind = span["kind"].as_str().unwrap().to_lowercase();
                let parent = span.get("parentId").map(|parent| json!({"refType": "CHILD_OF", "traceID": id, "spanID": parent}));
                let peer =
                    span["tags"].get("peer.service").map(|peer| json!({"key": "peer.service", "type": "string", "value": peer}));
                let tags: Vec<Value> =
                    [json!({"key": "span.kind", "type": "string", "value": kind})].into_iter().chain(peer).collect();
                json!({"traceID": id, "spanID": span["id"], "operationName": "get", "references": Vec::from_iter(parent),
                    "startTime": span["timestamp"], "duration": span["duration"], "tags": tags,
                    "processID": span["localEndpoint"]["serviceName"]})
            })
            .collect();
        json!({"traceID": id, "spans": spans, "processes": {"front": {"serviceName": "front"}, "back": {"serviceName": "back"}}})
    };
    let otlp = |span: &Value| {
        let text = |key: &str, value: &Value| json!({"key": key, "value": {"stringValue": value}});
        let start = span["timestamp"].as_u64().unwrap() * 1000;
        let end = start + span["duration"].as_u64().unwrap() * 1000;
        let peer: Vec<Value> = span["tags"].get("peer.service").map(|peer| text("peer.service", peer)).into_iter().collect();
        let own = json!({"traceId": span["traceId"], "spanId": span["id"], "parentSpanId": span.get("parentId").unwrap_or(&json!("")),
            "name": "get", "kind": if span["kind"] == "SERVER" { 2 } else { 3 }, "startTimeUnixNano": start.to_string(),
            "endTimeUnixNano": end.to_string(), "attributes": peer});
        json!({"resource": {"attributes": [text("service.name", &span["localEndpoint"]["serviceName"])]}, "scopeSpans": [{"spans": [own]}]})
    };
    let batches = json!({"resourceSpans": spans.iter().map(otlp).collect::<Vec<_>>()});
    let ran = doctor_of(&batches, &["--output", "json"]);
    assert_eq!(faults(&serde_json::from_str(&ran.stdout).unwrap()), expected, "{}", ran.stderr);
    let download = json!({"data": traces.iter().map(jaeger).collect::<Vec<_>>()});
    let ran = doctor_of(&download, &["--output", "json"]);
    assert_eq!(faults(&serde_json::from_str(&ran.stdout).unwrap()), expected, "{}", ran.stderr);
}

#[test]
fn the_text_names_the_service_the_cause_and_traces_to_open() {
    let ran = doctor(&system_of_two(100), &[]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{}", ran.stdout);
    for part in [
        "✗ front: 20 of 20 calls to back begin new traces: it does not pass the context",
        "\n      cause  ",
        "\n      next   ",
        "\n      trace  00000000000000",
        "Verdict  1 fault at 1 service",
    ] {
        assert!(ran.stdout.contains(part), "{part} in\n{}", ran.stdout);
    }
    assert!(ran.stdout.lines().skip(1).all(|line| line.chars().count() <= 80), "{}", ran.stdout);
}

/// The proxy of an app that drops the context begins a trace with each call, and the callee joins that: it is one call.
#[test]
fn a_call_that_begins_a_trace_and_is_joined_counts_once() {
    let mut spans = system_of_two(100);
    for request in spans.chunks_mut(3) {
        let [_, call, answer] = request else { unreachable!() };
        call["traceId"] = answer["traceId"].clone();
        call.as_object_mut().unwrap().remove("parentId").unwrap();
        answer["parentId"] = call["id"].clone();
    }
    let report = report(&spans);
    let [[id, service, _, text]] = faults(&report).try_into().unwrap();
    assert_eq!((id.as_str(), service.as_str()), ("context.dropped", "front"));
    assert!(text.starts_with("20 of 20 calls to back begin new traces"), "{text}");
}

/// Spans of one request each second: service, kind, the place of the parent in this list, begin and length in milliseconds, and the name
/// of the called; a service in brackets reports nothing.
type Place = (&'static str, &'static str, Option<u64>, u64, u64, &'static str);

fn requests(n: u64, of: &dyn Fn(u64) -> Vec<Place>) -> Vec<Value> {
    let mut spans = Vec::new();
    for request in 0..n {
        let id = |at: u64| format!("{:016x}", 1_000 * (request + 1) + at);
        let begin = 1_780_000_000_000_000 + request * 1_000_000 + (request * request * 7_919) % 300_000;
        for (at, (service, kind, parent, from, long, peer)) in (0..).zip(of(request)) {
            let mut span = json!({"traceId": id(0), "id": id(at), "kind": kind, "name": "get", "timestamp": begin + from * 1_000,
                "duration": long * 1_000, "localEndpoint": {"serviceName": service}});
            match parent {
                // Begins a trace of its own.
                None if at > 0 => span["traceId"] = json!(id(at)),
                None => {}
                Some(parent) => span["parentId"] = json!(id(parent)),
            }
            if !peer.is_empty() {
                span["tags"] = json!({"peer.service": peer});
            }
            if !service.starts_with('(') {
                spans.push(span);
            }
        }
    }
    spans
}

/// Whoever is called at times while a service is missing is not that service.
#[test]
fn a_silent_service_is_not_mixed_up_with_a_cache_that_is_asked_at_times() {
    let spans = requests(60, &|n| {
        let cache = if n % 3 == 0 { "redis" } else { "(redis)" };
        let (cache, peer) = if cache == "redis" { ("front", "redis") } else { ("(front)", "") };
        vec![
            ("front", "SERVER", None, 0, 60, ""),
            (cache, "CLIENT", Some(0), 1, 2 + n % 9 * 2, peer),
            ("front", "CLIENT", Some(0), 25, 30, "middle"),
            ("(middle)", "SERVER", Some(2), 26, 28, ""),
            ("(middle)", "CLIENT", Some(3), 28, 6, "back"),
            ("back", "SERVER", Some(4), 29, 1 + n % 3, ""),
        ]
    });
    let found = faults(&report(&spans));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0][..3], ["service.silent", "middle", "back"]);
}

/// A browser that traces and reports elsewhere; a monitor that reports is no suspect for its requests.
#[test]
fn a_context_from_outside_is_a_note() {
    let spans = requests(60, &|n| {
        let caller = if n % 4 == 0 { "monitor" } else { "(browser)" };
        vec![
            (caller, "CLIENT", None, 0, 50, "front"),
            ("front", "SERVER", Some(0), 1, 40, ""),
            ("front", "CLIENT", Some(1), 5, 20, "back"),
            ("back", "SERVER", Some(2), 6, 10, ""),
        ]
    });
    let report = report(&spans);
    assert!(faults(&report).is_empty(), "{report:#}");
    let notes = report["findings"].as_array().unwrap();
    assert!(notes.iter().any(|note| note["id"] == "spans.orphaned" && note["service"] == "front"), "{report:#}");
}

/// One span that was lost is one, however many were below it; and the last traces may not have come as a whole.
#[test]
fn the_clock_of_one_host_of_a_service_is_put_right_and_named() {
    let mut spans = requests(60, &|_| {
        vec![
            ("front", "SERVER", None, 0, 60, ""),
            ("front", "CLIENT", Some(0), 5, 50, "middle"),
            ("middle", "SERVER", Some(1), 6, 45, ""),
        ]
    });
    // One of two hosts of the service in the middle drops the context, and its clock is 30 s ahead.
    for n in 0..60 {
        let ahead = if n % 2 == 0 { 30_000_000 } else { 0 };
        let middle = &mut spans[3 * n + 2];
        let start = middle["timestamp"].as_u64().unwrap();
        middle["timestamp"] = json!(start + ahead);
        middle["localEndpoint"]["ipv4"] = json!(format!("10.0.0.{}", 1 + n % 2));
        if n % 2 == 0 {
            let id = format!("{:032x}", 0xbeef_0000 + n);
            spans.push(json!({"traceId": id, "id": &id[16..], "kind": "SERVER", "name": "get", "timestamp": start + 9_000,
                "duration": 20_000, "localEndpoint": {"serviceName": "leaf", "ipv4": "10.0.1.1"}}));
        }
    }
    let report = report(&spans);
    let found = faults(&report);
    assert!(found.len() == 1 && found[0][0] == "context.dropped" && found[0][1] == "middle", "{found:?}");
    let notes = report["findings"].as_array().unwrap();
    let skew = notes.iter().find(|note| note["id"] == "clock.skew").unwrap();
    assert_eq!((&skew["service"], &skew["count"], &skew["of"]), (&json!("middle"), &json!(30), &json!(60)), "{skew:#}");
    let text = skew["text"].as_str().unwrap();
    assert!(text.contains("10.0.0.1 (30 of 60 spans) is about 30 s ahead"), "{text}");
}

#[test]
fn a_service_that_cuts_trace_ids_is_named_and_nobody_else() {
    let mut spans = requests(30, &|_| {
        vec![
            ("front", "SERVER", None, 0, 60, ""),
            ("front", "CLIENT", Some(0), 5, 50, "middle"),
            ("middle", "SERVER", Some(1), 6, 45, ""),
            ("middle", "CLIENT", Some(2), 8, 30, "leaf"),
            ("leaf", "SERVER", Some(3), 9, 20, ""),
        ]
    });
    for (at, span) in spans.iter_mut().enumerate() {
        let short = span["traceId"].as_str().unwrap().to_owned();
        if at % 5 < 4 {
            span["traceId"] = json!(format!("00000000abcdef01{short}"));
        }
    }
    let found = faults(&report(&spans));
    assert!(found.len() == 1, "{found:?}");
    assert_eq!(found[0][..3], ["context.shortened", "middle", "leaf"]);
}

#[test]
fn a_service_that_reports_its_calls_as_server_spans_is_named() {
    let spans = requests(30, &|_| {
        vec![
            ("front", "SERVER", None, 0, 60, ""),
            ("front", "CLIENT", Some(0), 5, 50, "middle"),
            ("middle", "SERVER", Some(1), 6, 45, ""),
            ("middle", "SERVER", Some(2), 8, 30, "leaf"),
            ("leaf", "SERVER", Some(3), 9, 20, ""),
        ]
    });
    // A consumer, and a proxy that reports the request and the call alike.
    let mut consumer = spans.clone();
    consumer.iter_mut().filter(|span| span["duration"] == 45_000).for_each(|span| {
        span["kind"] = json!("CONSUMER");
        span.as_object_mut().unwrap().remove("parentId");
    });
    let mut proxy = spans.clone();
    proxy.iter_mut().filter(|span| span["localEndpoint"]["serviceName"] == "middle").for_each(|span| {
        let cluster = if span["duration"] == 45_000 { "inbound|80||" } else { "outbound|80||leaf.shop.svc.cluster.local" };
        span["tags"] = json!({"component": "proxy", "upstream_cluster": cluster});
    });
    for spans in [spans, consumer, proxy] {
        let found = faults(&report(&spans));
        assert!(found.len() == 1, "{found:?}");
        assert_eq!(found[0][..3], ["spans.kind", "middle", "leaf"]);
    }
}

/// A chain whose hops take microseconds: clocks are not that exact, and all spans have one request id.
#[test]
fn the_end_of_a_fast_chain_that_loses_the_context_at_its_first_hop_is_not_named() {
    let mut spans = requests(60, &|_| {
        vec![
            ("front", "SERVER", None, 0, 0, ""),
            ("front", "CLIENT", Some(0), 0, 0, ""),
            ("middle", "SERVER", None, 0, 0, ""),
            ("middle", "CLIENT", Some(2), 0, 0, ""),
            ("leaf", "SERVER", Some(3), 0, 0, ""),
        ]
    });
    for (at, span) in spans.iter_mut().enumerate() {
        let (request, place) = (at / 5, at as u64 % 5);
        let start = span["timestamp"].as_u64().unwrap();
        (span["timestamp"], span["duration"]) = (json!(start + place * 20), json!(300 - 60 * place));
        span["tags"] = json!({"request.id": format!("7d444840-9dc0-11d1-b245-{request:012x}")});
        if place > 2 {
            span["traceId"] = json!(format!("{:016x}", 1_000 * (request as u64 + 1) + 2));
        }
    }
    let found = faults(&report(&spans));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0][..3], ["context.dropped", "front", "middle"]);
}

#[test]
fn a_sampler_of_its_own_is_named_where_only_the_proxy_knows_whom_its_app_calls() {
    let spans = requests(60, &|n| {
        let mut spans = vec![
            ("front", "SERVER", None, 0, 60, ""),
            ("front", "CLIENT", Some(0), 5, 50, ""),
            ("front", "CLIENT", Some(1), 6, 48, "stock"),
        ];
        if n % 2 == 0 {
            spans.push(("stock", "SERVER", Some(2), 8, 30, ""));
        }
        spans
    });
    let mut spans = spans;
    for span in &mut spans {
        if span["tags"]["peer.service"] == "stock" {
            span["tags"] = json!({"component": "proxy", "upstream_cluster": "outbound|80||stock.shop.svc.cluster.local"});
        }
    }
    let found = faults(&report(&spans));
    assert!(found.len() == 1, "{found:?}");
    assert_eq!(found[0][..3], ["sampling.differs", "stock", "front"]);
}

/// Calls that name nobody: by the path that always the same one serves, and by the address of its host.
#[test]
fn a_sampler_of_its_own_is_named_by_the_path_or_the_address_of_the_call() {
    let spans = requests(90, &|n| {
        let back = if n % 2 == 0 { "back" } else { "(back)" };
        let (stock, caller) = if n % 3 == 0 { ("stock", "front") } else { ("(stock)", "(front)") };
        vec![
            ("front", "SERVER", None, 0, 60, ""),
            ("front", "CLIENT", Some(0), 5, 20, ""),
            (back, "SERVER", Some(1), 6, 15, ""),
            (caller, "CLIENT", Some(0), 30, 20, ""),
            (stock, "SERVER", Some(3), 31, 15, ""),
        ]
    });
    let marked = |mark: &dyn Fn(&mut Value, &str, u64)| {
        let mut spans = spans.clone();
        for span in &mut spans {
            let from = span["timestamp"].as_u64().unwrap();
            let request = u64::from_str_radix(span["traceId"].as_str().unwrap(), 16).unwrap() / 1_000 - 1;
            let begin = 1_780_000_000_000_000 + request * 1_000_000 + (request * request * 7_919) % 300_000;
            let called = if from - begin < 25_000 { "back" } else { "stock" };
            mark(span, called, span["duration"].as_u64().unwrap() / 1_000);
        }
        spans
    };
    let by_path = marked(&|span, called, long| {
        if long < 60 {
            span["tags"] = json!({"http.path": format!("/api/{called}")});
        }
    });
    let by_address = marked(&|span, called, long| {
        let address = if called == "back" { "10.0.0.7" } else { "10.0.0.8" };
        match long {
            20 => span["tags"] = json!({"server.address": address}),
            15 => span["localEndpoint"]["ipv4"] = json!(address),
            _ => {}
        }
    });
    for spans in [by_path, by_address] {
        let found = faults(&report(&spans));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0][..3], ["sampling.differs", "back", "front"]);
    }
}

/// Nothing of the calls is sampled, and its own health checks are.
#[test]
fn a_service_that_samples_none_of_its_calls_is_a_fault() {
    let mut spans = requests(60, &|_| vec![("front", "SERVER", None, 0, 60, ""), ("front", "CLIENT", Some(0), 5, 50, "back")]);
    for n in 0..6u64 {
        spans.push(json!({"traceId": format!("{:032x}", 0xbeef_0000 + n), "id": format!("{:016x}", n + 1), "kind": "SERVER",
            "name": "get /healthz", "timestamp": 1_780_000_000_500_000 + n * 10_000_000, "duration": 900,
            "localEndpoint": {"serviceName": "back"}}));
    }
    let found = faults(&report(&spans));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0][..3], ["sampling.differs", "back", "front"]);
}

/// Each time a thousand times as long as its caller waited is another unit; some times as long is work after the answer.
#[test]
fn a_duration_in_another_unit_is_a_fault_and_work_after_the_answer_a_note() {
    for (long, level) in [(40_000, "fault"), (90, "note")] {
        let spans = requests(30, &|_| {
            vec![
                ("front", "SERVER", None, 0, 60, ""),
                ("front", "CLIENT", Some(0), 5, 50, "back"),
                ("back", "SERVER", Some(1), 6, long, ""),
            ]
        });
        let report = report(&spans);
        let findings = report["findings"].as_array().unwrap();
        let found: Vec<_> = findings.iter().map(|f| (&f["id"], &f["service"], &f["level"])).collect();
        assert_eq!(found, [(&json!("spans.duration"), &json!("back"), &json!(level))]);
    }
}

#[test]
fn a_leaf_that_reports_nothing_is_a_note_and_the_verdict_says_so() {
    let spans = requests(20, &|_| vec![("front", "SERVER", None, 0, 60, ""), ("front", "CLIENT", Some(0), 5, 50, "stock")]);
    let report = report(&spans);
    assert!(faults(&report).is_empty(), "{report:#}");
    let notes = report["findings"].as_array().unwrap();
    assert!(notes.iter().any(|note| note["id"] == "service.silent" && note["service"] == "stock"), "{report:#}");
    let text = doctor(&spans, &[]).stdout;
    assert!(text.contains("Verdict  no fault; nothing is known of 1 called service"), "{text}");
}

#[test]
fn spans_without_a_duration_are_found_at_their_service_and_a_negative_one_is_read() {
    let spans = requests(20, &|_| {
        vec![
            ("front", "SERVER", None, 0, 60, ""),
            ("front", "CLIENT", Some(0), 5, 50, "back"),
            ("back", "SERVER", Some(1), 6, 45, ""),
        ]
    });
    // A leaf has nothing below it, and its tracer may count milliseconds.
    let mut leaf = spans.clone();
    leaf.iter_mut()
        .filter(|span| span["kind"] == "SERVER" && span["parentId"] != Value::Null)
        .for_each(|span| span["duration"] = json!(1));
    let notes = report(&leaf);
    assert!(
        faults(&notes).is_empty() && notes["findings"][0]["id"] == "spans.duration" && notes["findings"][0]["service"] == "back"
    );
    let timeless = |span: &Value| span["localEndpoint"]["serviceName"] == "front";
    let mut zipkin = spans.clone();
    zipkin.iter_mut().filter(|span| timeless(span)).for_each(|span| span["duration"] = json!(1));
    let jaeger: Vec<Value> = spans
        .iter()
        .map(|span| {
            let duration = if timeless(span) { json!(-4_907) } else { span["duration"].clone() };
            let kind = span["kind"].as_str().unwrap().to_lowercase();
            let references = match span["parentId"].as_str() {
                Some(parent) => json!([{"refType": "CHILD_OF", "traceID": span["traceId"], "spanID": parent}]),
                None => json!([]),
            };
            json!({"traceID": span["traceId"], "spans": [{"traceID": span["traceId"], "spanID": span["id"],
                "operationName": "get", "references": references, "startTime": span["timestamp"], "duration": duration,
                "tags": [{"key": "span.kind", "type": "string", "value": kind}], "processID": "p"}],
                "processes": {"p": {"serviceName": span["localEndpoint"]["serviceName"], "tags": []}}})
        })
        .collect();
    for document in [Value::from(zipkin), json!({"data": jaeger})] {
        let ran = doctor_of(&document, &["--output", "json"]);
        let report = serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{}", ran.stderr));
        let found = faults(&report);
        assert!(found.len() == 1 && found[0][0] == "spans.duration" && found[0][1] == "front", "{found:?}");
    }
}

#[test]
fn a_few_lost_spans_and_a_cut_at_the_end_are_notes() {
    let fan_out = |lost: &'static [u64]| {
        requests(60, &move |n| {
            let middle = if lost.contains(&n) { "(middle)" } else { "middle" };
            let mut spans = vec![
                ("front", "SERVER", None, 0, 60, ""),
                ("front", "CLIENT", Some(0), 1, 58, "middle"),
                (middle, "SERVER", Some(1), 2, 50, ""),
            ];
            spans.extend((0..5).map(|call| ("middle", "CLIENT", Some(2), 3 + 9 * call, 8, "redis")));
            spans
        })
    };
    for lost in [&[7, 31][..], &[55, 56, 57, 58, 59]] {
        let report = report(&fan_out(lost));
        assert!(faults(&report).is_empty(), "{lost:?}: {report:#}");
    }
    let found = faults(&report(&fan_out(&[3, 9, 14, 20, 26, 31, 37, 44, 50])));
    assert!(found.len() == 1 && found[0][1] == "middle", "{found:?}");
}

/// One that loses its spans is one finding, whatever hangs below them; neither a service that calls the same one nor a place is named.
#[test]
fn a_service_that_loses_spans_is_one_finding() {
    let spans = requests(90, &|n| {
        let middle = if n % 3 == 0 { "(middle)" } else { "middle" };
        vec![
            ("front", "SERVER", None, 0, 90, ""),
            (middle, "SERVER", Some(0), 2, 50, ""),
            ("middle", "CLIENT", Some(1), 3, 1, "redis"),
            ("stock", "SERVER", Some(1), 6, 10, ""),
            ("price", "SERVER", Some(1), 20, 10, ""),
            (if n % 2 == 0 { "(other)" } else { "other" }, "SERVER", Some(0), 60, 20, ""),
            (if n % 2 == 0 { "(stock)" } else { "stock" }, "SERVER", Some(5), 61, 10, ""),
        ]
    });
    let found = faults(&report(&spans));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0][..2], ["spans.orphaned", "middle"]);
    assert!(found[0][3].contains("of its own spans") && found[0][3].contains("spans of price"), "{found:?}");
}

/// Its questions to a cache are all that it reports of its calls.
#[test]
fn a_service_that_reports_no_call_and_passes_nothing_on_is_found() {
    let spans = requests(60, &|n| {
        vec![
            ("front", "SERVER", None, 0, 60 + n % 7, ""),
            ("front", "CLIENT", Some(0), 1, 50 + n % 7, "middle"),
            ("middle", "SERVER", Some(1), 2, 40 + n % 7, ""),
            ("middle", "CLIENT", Some(2), 3, 1, "redis"),
            ("back", "SERVER", None, 10, 20 + n % 7, ""),
        ]
    });
    let found = faults(&report(&spans));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0][..3], ["context.dropped", "middle", "back"]);
}

/// What merely runs at the same time as a service that drops the context is around fewer of its calls.
#[test]
fn a_service_beside_the_one_that_drops_the_context_is_not_named() {
    let spans = requests(120, &|n| {
        let mut spans = vec![
            ("front", "SERVER", None, 0, 100, ""),
            ("front", "CLIENT", Some(0), 1, 60, "cart"),
            ("cart", "SERVER", Some(1), 2, 56, ""),
            ("front", "CLIENT", Some(0), 1, 40, "ads"),
            ("ads", "SERVER", Some(3), 2, 34, ""),
        ];
        let from = 10 + n % 30;
        if n % 3 == 0 {
            spans.push(("price", "SERVER", None, from, 8, ""));
        } else {
            spans.extend([("cart", "CLIENT", Some(2), from - 1, 10, "price"), ("price", "SERVER", Some(5), from, 8, "")]);
        }
        spans
    });
    let found = faults(&report(&spans));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0][..3], ["context.dropped", "cart", "price"]);
}

/// One of two hosts of a service begins traces, always or at times, whoever calls it: the callers pass their contexts on.
#[test]
fn a_host_that_ignores_contexts_is_at_fault_and_none_of_its_callers() {
    for (every, text) in [(2, "40 of 80"), (4, "20 of 80")] {
        let [[id, service, _, found]] = faults(&report(&one_host_ignores(every))).try_into().unwrap();
        assert_eq!([id, service], ["context.ignored", "back"]);
        assert!(found.starts_with(&format!("{text} calls from other, front begin new traces")), "{found}");
        assert!(found.ends_with("on host 10.0.0.1, and the others continue what they get"), "{found}");
    }
}

fn one_host_ignores(every: u64) -> Vec<Value> {
    let mut spans = Vec::new();
    for caller in ["front", "other"] {
        let mut calls = requests(40, &|n| {
            let parent = if n % every == 0 { None } else { Some(1) };
            vec![
                (caller, "SERVER", None, 0, 60, ""),
                (caller, "CLIENT", Some(0), 5, 50, "back"),
                ("back", "SERVER", parent, 6, 45, ""),
            ]
        });
        for (at, span) in calls.iter_mut().enumerate() {
            let id = |id: &Value| json!(format!("{}{}", if caller == "front" { "0f" } else { "0e" }, &id.as_str().unwrap()[2..]));
            for key in ["traceId", "id", "parentId"] {
                if let Some(known) = span.get(key).cloned() {
                    span[key] = id(&known);
                }
            }
            span["timestamp"] = json!(span["timestamp"].as_u64().unwrap() + if caller == "front" { 0 } else { 60_000_000 });
            if at % 3 == 2 {
                span["localEndpoint"]["ipv4"] = json!(format!("10.0.0.{}", 1 + at / 3 % 2));
            }
        }
        spans.extend(calls);
    }
    spans
}

/// What goes on after the answer is the caller's alone: its other calls are continued, and so are the callee's other requests.
#[test]
fn work_after_the_answer_that_loses_the_context_is_its_service_s_fault() {
    let called = requests(90, &|n| {
        let (long, parent) = if n % 3 == 0 { (90, None) } else { (20, Some(1)) };
        vec![
            ("front", "SERVER", None, 0, 60, ""),
            ("front", "CLIENT", Some(0), 30, long, "back"),
            ("back", "SERVER", parent, 31, long - 5, ""),
            ("front", "CLIENT", Some(0), 5, 20, "cart"),
            ("cart", "SERVER", Some(3), 6, 15, ""),
        ]
    });
    let mut begun = requests(60, &|_| {
        vec![
            ("front", "SERVER", None, 0, 60, ""),
            ("front", "CLIENT", None, 62, 40, "back"),
            ("back", "SERVER", Some(1), 63, 30, ""),
        ]
    });
    for request in begun.chunks_mut(3) {
        request[2]["traceId"] = request[1]["traceId"].clone();
        request[..2].iter_mut().for_each(|span| span["localEndpoint"]["ipv4"] = json!("10.0.0.1"));
    }
    for (spans, text, sign) in [
        (called, "30 of 90 calls to back", "nearly all in work that goes on after the answer"),
        (begun, "60 of 60 calls to back", ""),
    ] {
        let [[id, service, peer, found]] = faults(&report(&spans)).try_into().unwrap();
        assert_eq!([id, service, peer], ["context.dropped", "front", "back"]);
        assert!(found.starts_with(text) && found.contains(sign), "{found}");
    }
}

/// The call around the root has another path, where all that are answered have that of their answer: it was not the caller's.
#[test]
fn a_silent_service_that_drops_the_context_is_at_fault_and_not_its_caller() {
    let mut spans = requests(60, &|_| {
        vec![
            ("front", "SERVER", None, 0, 80, ""),
            ("front", "CLIENT", Some(0), 1, 20, ""),
            ("cart", "SERVER", Some(1), 2, 15, ""),
            ("front", "CLIENT", Some(0), 25, 50, ""),
            ("back", "SERVER", None, 30, 30, ""),
        ]
    });
    for request in spans.chunks_mut(5) {
        for (span, path) in request.iter_mut().zip(["/", "/cart/1", "/cart/1", "/stock/1", "/price/1"]) {
            span["tags"] = json!({"http.path": path});
        }
    }
    let [[id, service, peer, text]] = faults(&report(&spans)).try_into().unwrap();
    assert_eq!([id, service, peer], ["context.dropped", "the service behind /stock", "back"]);
    assert!(text.starts_with("it stands between front and back"), "{text}");
}

/// Half of what the sidecar passes on has no span of the app below it, or none has and the app begins traces.
#[test]
fn an_app_that_does_not_follow_its_own_proxy_is_found() {
    for (apart, expected) in [(false, "sampling.differs"), (true, "context.ignored")] {
        let mut spans = requests(60, &|n| {
            let app = if apart || n % 2 == 0 { "cart" } else { "(cart)" };
            let (parent, from) = if apart { (None, n * 7_919 % 40_000) } else { (Some(2), 3) };
            vec![
                ("front", "SERVER", None, 0, 60, ""),
                ("front", "CLIENT", Some(0), 1, 50, "cart"),
                ("cart", "SERVER", Some(1), 2, 40, ""),
                (app, "SERVER", parent, from, 30, ""),
            ]
        });
        for span in spans.iter_mut().filter(|span| span["duration"] == 40_000) {
            span["tags"] = json!({"component": "proxy", "upstream_cluster": "inbound|80||"});
        }
        let [[id, service, _, text]] = faults(&report(&spans)).try_into().unwrap();
        assert_eq!((id.as_str(), service.as_str()), (expected, "cart"), "{text}");
    }
}

/// The callee continues what others send: between these two formats differ, or nothing is sent.
#[test]
fn a_caller_of_which_no_call_is_continued_is_found_where_others_are() {
    let spans = requests(60, &|n| {
        vec![
            ("front", "SERVER", None, 0, 60, ""),
            ("front", "CLIENT", Some(0), 1, 20, "back"),
            ("back", "SERVER", None, n * 7_919 % 40_000, 15, ""),
            ("other", "SERVER", None, 500, 60, ""),
            ("other", "CLIENT", Some(3), 501, 20, "back"),
            ("back", "SERVER", Some(4), 502, 15, ""),
        ]
    });
    let mut spans = spans;
    for request in spans.chunks_mut(6) {
        let trace = request[3]["traceId"].clone();
        request[4..].iter_mut().for_each(|span| span["traceId"] = trace.clone());
    }
    let [[id, service, peer, text]] = faults(&report(&spans)).try_into().unwrap();
    assert_eq!([id, service, peer], ["context.dropped", "front", "back"], "{text}");
}

/// Two services work around the same roots; these came from the host of the one that takes longer.
#[test]
fn the_address_of_the_caller_of_a_root_says_who_dropped_the_context() {
    let mut spans = requests(60, &|_| {
        vec![
            ("gate", "SERVER", None, 0, 120, ""),
            ("gate", "CLIENT", Some(0), 1, 100, "front"),
            ("front", "SERVER", Some(1), 2, 95, ""),
            ("gate", "CLIENT", Some(0), 1, 80, "beside"),
            ("beside", "SERVER", Some(3), 3, 75, ""),
            ("back", "SERVER", None, 20, 30, ""),
        ]
    });
    for span in &mut spans {
        match span["localEndpoint"]["serviceName"].as_str() {
            Some("front") => span["localEndpoint"]["ipv4"] = json!("10.0.0.7"),
            Some("back") => span["tags"] = json!({"client.address": "10.0.0.7"}),
            _ => {}
        }
    }
    let found = faults(&report(&spans));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0][..3], ["context.dropped", "front", "back"]);
}

/// Some of the requests around its calls were not recorded: all its calls begin traces all the same.
#[test]
fn all_calls_of_a_service_that_never_passes_a_context_on_are_counted() {
    let spans = requests(60, &|n| {
        let caller = if n % 3 == 0 { "front" } else { "(front)" };
        vec![
            (caller, "SERVER", None, 0, 60, ""),
            ("front", "CLIENT", None, 5, 50, "back"),
            ("back", "SERVER", Some(1), 6, 45, ""),
        ]
    });
    let mut spans = spans;
    let calls: Vec<String> =
        spans.iter().filter(|s| s["kind"] == "CLIENT").map(|s| s["id"].as_str().unwrap().to_owned()).collect();
    for span in spans.iter_mut().filter(|span| calls.iter().any(|id| span["parentId"] == id.as_str())) {
        span["traceId"] = span["parentId"].clone();
    }
    let [[id, service, peer, text]] = faults(&report(&spans)).try_into().unwrap();
    assert_eq!([id, service, peer], ["context.dropped", "front", "back"]);
    assert!(text.starts_with("60 of 60 calls to back begin new traces") && text.contains("20 of them in the middle"), "{text}");
}

/// `api.example.com` is not the service `api`, and nobody there calls back into the mesh.
#[test]
fn a_name_of_the_public_dns_is_no_service() {
    let spans = requests(60, &|n| {
        let mut spans = vec![
            ("api", "SERVER", None, 0, 100, ""),
            ("api", "CLIENT", Some(0), 1, 60, "cart"),
            ("cart", "SERVER", Some(1), 2, 56, ""),
            ("api", "CLIENT", Some(0), 1, 60, "ads"),
            ("ads", "SERVER", Some(3), 2, 55, ""),
            ("ads", "CLIENT", Some(4), 3, 50, "api.example.com"),
        ];
        let from = 10 + n % 20;
        if n % 2 == 0 {
            spans.push(("price", "SERVER", None, from, 8, ""));
        } else {
            spans.extend([("cart", "CLIENT", Some(2), from - 1, 10, "price"), ("price", "SERVER", Some(6), from, 8, "")]);
        }
        spans
    });
    let report = report(&spans);
    let findings = report["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1, "{report:#}");
    assert_eq!((&findings[0]["id"], &findings[0]["service"]), (&json!("context.dropped"), &json!("cart")), "{report:#}");
}

/// A consumer may begin a trace; what it calls may not.
#[test]
fn a_consumer_that_drops_the_context_is_found() {
    let spans = requests(60, &|n| {
        vec![
            ("front", "SERVER", None, 0, 20, ""),
            ("front", "PRODUCER", Some(0), 1, 2, ""),
            ("worker", "CONSUMER", Some(1), 40, 60 + n % 7, ""),
            ("price", "SERVER", None, 50, 30 + n % 11, ""),
        ]
    });
    let found = faults(&report(&spans));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0][..3], ["context.dropped", "worker", "price"]);
}

/// Whatever the clocks say: a service that is called by its name and is never in its caller's trace, but in traces of its own.
#[test]
fn calls_of_which_none_is_continued_are_a_fault_without_times() {
    let spans = |others: bool| {
        requests(60, &move |n| {
            let mut spans = vec![
                ("front", "SERVER", None, 0, 60, ""),
                ("front", "CLIENT", Some(0), 1, 20, "back"),
                ("back", "SERVER", None, n * 7_919 % 40_000, 15, ""),
            ];
            if others {
                spans.extend([("front", "CLIENT", Some(0), 30, 20, "cart"), ("cart", "SERVER", Some(3), 31, 15, "")]);
            }
            spans
        })
    };
    for (others, expected) in [(true, ["context.ignored", "back", "front"]), (false, ["context.dropped", "front", "back"])] {
        let found = faults(&report(&spans(others)));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0][..3], expected);
    }
}

/// Behind a proxy, and where callers report no calls.
#[test]
fn requests_that_are_reported_as_calls_are_found_below_any_caller() {
    let mut behind_proxy = requests(60, &|_| {
        vec![
            ("front", "SERVER", None, 0, 60, ""),
            ("front", "CLIENT", Some(0), 1, 50, "back"),
            ("back", "CLIENT", Some(1), 2, 40, ""),
        ]
    });
    behind_proxy.iter_mut().filter(|span| span["kind"] == "CLIENT" && !span["tags"].is_null()).for_each(|span| {
        span["tags"]["component"] = json!("proxy");
    });
    let servers_alone = requests(60, &|n| {
        let kind = if n % 5 == 0 { "CLIENT" } else { "SERVER" };
        vec![("front", "SERVER", None, 0, 60, ""), ("back", kind, Some(0), 2, 40, "")]
    });
    let mut proxy = requests(60, &|_| {
        vec![
            ("front", "SERVER", None, 0, 60, ""),
            ("front", "CLIENT", Some(0), 1, 50, ""),
            ("back", "CLIENT", Some(1), 2, 40, ""),
        ]
    });
    proxy.iter_mut().filter(|span| span["kind"] == "CLIENT").for_each(|span| {
        let cluster = if span["duration"] == 40_000 { "inbound|80||" } else { "outbound|80||back.shop.svc.cluster.local" };
        span["tags"] = json!({"component": "proxy", "upstream_cluster": cluster});
    });
    for spans in [behind_proxy, servers_alone, proxy] {
        let found = faults(&report(&spans));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0][..3], ["spans.kind", "back", "front"]);
    }
}

/// Two timers at every full second, health checks or others: each time one lies inside the other.
#[test]
fn timers_that_strike_together_are_no_calls() {
    let spans = requests(60, &|n| {
        vec![
            ("front", "SERVER", None, 0, 60, ""),
            ("front", "CLIENT", Some(0), 1, 50, "back"),
            ("back", "SERVER", Some(1), 2, 1 + n % 40, ""),
        ]
    });
    let at = |service: &str, name: &str, n: u64, after: u64, long: u64| {
        let id = format!("{:016x}", 900_000 + 100 * n + after);
        json!({"traceId": id, "id": id, "kind": "SERVER", "name": name, "timestamp": 1_780_000_000_500_000 + n * 2_000_000 + after,
            "duration": long, "localEndpoint": {"serviceName": service}})
    };
    for (name, times) in [("GET /healthz", 40), ("GET /poll", 40), ("GET /poll", 10)] {
        // Of a few the one may take the longer, the longer the other does.
        let more = |n: u64| if times == 10 { [n * 900, n * 300] } else { [n % 5 * 900, n % 7 * 300] };
        let checks =
            (0..times).flat_map(|n| [at("front", name, n, 1, 20_000 + more(n)[0]), at("back", name, n, 8, 3_000 + more(n)[1])]);
        let found = faults(&report(&spans.iter().cloned().chain(checks).collect::<Vec<_>>()));
        assert!(found.is_empty(), "{name} {times}: {found:?}");
    }
}

/// What a reader has to fill in is in capitals, and the command is on one line.
#[test]
fn the_next_command_has_no_address_that_is_made_up() {
    let ran = doctor(&system_of_two(100), &[]);
    let run = "\n      run    httpserver probe http://HOST:PORT/PATH --downstream 127.0.0.1:9001\n";
    assert!(ran.stdout.contains(run) && !ran.stdout.contains("http://front"), "{}", ran.stdout);
    let report = report(&system_of_two(100));
    let finding = &report["findings"][0];
    assert_eq!(finding["run"], "httpserver probe http://HOST:PORT/PATH --downstream 127.0.0.1:9001");
    assert!(finding["next"].as_str().unwrap().contains("HOST:PORT/PATH"), "{finding:#}");
}

/// As `curl A B > file` writes them: whichever form each has.
#[test]
fn every_document_of_a_file_is_read() {
    let trace = |id: u32| {
        json!({"data": [{"traceID": format!("{id:032x}"), "processes": {"p": {"serviceName": "a"}}, "spans": [
            {"traceID": format!("{id:032x}"), "spanID": format!("{id:016x}"), "operationName": "GET /", "processID": "p",
             "startTime": 1_780_000_000_000_000_u64, "duration": 1000}]}]})
    };
    let zipkin = json!([{"traceId": "00000000000000000000000000000009", "id": "0000000000000009", "kind": "SERVER",
        "timestamp": 1_780_000_000_000_000_u64, "duration": 1000, "localEndpoint": {"serviceName": "a"}}]);
    for (text, traces) in [
        (format!("{}{}", trace(1), trace(2)), 2),
        (format!("{}\n{}\n\n{zipkin}\n", trace(1), trace(2)), 3),
        (format!("{zipkin} {}", trace(1)), 2),
    ] {
        let ran = doctor_of_text(&text, &["--output", "json"]);
        let report: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{}", ran.stderr));
        assert_eq!(report["traces"], traces, "{text}");
    }
    let ran = doctor_of_text(&format!("{}{{\"da", trace(1)), &[]);
    assert!(ran.code == Some(2) && ran.stderr.contains("document 2: EOF while parsing"), "{}", ran.stderr);
}

#[test]
fn a_score_below_the_limit_fails_the_run() {
    let spans = system_of_two(100);
    assert_eq!(doctor(&spans, &["--fail-under", "1"]).code, Some(1));
    assert_eq!(doctor(&spans, &["--fail-under", "0"]).code, Some(0));
    // Requests that begin at the front and stay there are healthy.
    let front: Vec<Value> = spans.into_iter().filter(|span| span["kind"] == "SERVER").step_by(2).collect();
    assert_eq!(doctor(&front, &["--fail-under", "100"]).code, Some(0));
}

#[test]
fn what_cannot_be_read_is_named_with_what_is_accepted() {
    for (flags, code, parts) in [
        (vec!["doctor"], 2, vec!["--traces <URL>", "--file <FILE>"]),
        (vec!["doctor", "--limit", "5"], 2, vec!["--traces <URL>", "--file <FILE>"]),
        (vec!["doctor", "--file", "/no/such/file"], 2, vec!["--file /no/such/file: No such file"]),
        (vec!["doctor", "--file", "/dev/null"], 2, vec!["no format that is known", "accepted: Zipkin v2 JSON"]),
        (vec!["doctor", "--traces", "http://127.0.0.1:9"], 1, vec!["No trace backend at http://127.0.0.1:9"]),
        (vec!["doctor", "--file", "x", "--lookback", "0"], 2, vec!["'0'", "--lookback"]),
        (vec!["doctor", "--file", "x", "--fail-under", "101"], 2, vec!["101", "--fail-under"]),
    ] {
        let ran = run(&flags, &[]);
        assert_eq!(ran.code, Some(code), "{flags:?}: {}", ran.stderr);
        assert!(parts.iter().all(|part| ran.stderr.contains(part)), "{flags:?}: {}", ran.stderr);
    }
    let ran = doctor(&[json!({"traceId": "zz", "id": "1"})], &[]);
    assert!(ran.code == Some(2) && ran.stderr.contains("spans[0].traceId"), "{}", ran.stderr);
    let ran = doctor(&[], &[]);
    assert!(ran.code == Some(1) && ran.stdout.contains("Nothing to read"), "{}{}", ran.stdout, ran.stderr);
}

/// The store of the demo is a backend like others: a hop that loses the headers is named from its traces alone.
#[test]
fn a_hop_of_the_demo_that_loses_the_headers_is_named() {
    let lost = ["--drop-header", "service2:traceparent", "--drop-header", "service2:x-b3-traceid"];
    let demo = Demo::start(&[&["--latency", "1ms..20ms"][..], &lost].concat());
    let request = format!("GET /service1 HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", demo.front);
    for _ in 0..12 {
        let mut stream = TcpStream::connect(demo.front).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    let store = format!("http://{}", demo.store);
    let found = wait_until("the spans arrive", || {
        let ran = run(&["doctor", "--traces", &store, "--output", "json"], &[]);
        let report: Value = serde_json::from_str(&ran.stdout).ok()?;
        // Every request and the demo's own are two traces of five spans: what is on the way yet is missing by right.
        Some(faults(&report)).filter(|_| report["traces"].as_u64() == Some(26) && report["spans"].as_u64() == Some(65))
    });
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0][..3], ["context.dropped", "service2", "service3"]);
}
