//! What `doctor` says of spans that were lost, and of calls in the trace of another request.

use serde_json::{Value, json};

use super::{Place, doctor, doctor_of, faults, report, requests};

/// The notes of a report: id, service and text.
fn notes(report: &Value) -> Vec<[String; 3]> {
    let findings = report["findings"].as_array().unwrap().iter().filter(|finding| finding["level"] == "note");
    findings.map(|f| ["id", "service", "text"].map(|key| f[key].as_str().unwrap_or_default().to_owned())).collect()
}

fn row(report: &Value, service: &str) -> Value {
    let rows = report["services"].as_array().unwrap();
    rows.iter().find(|row| row["service"] == service).cloned().unwrap_or_else(|| panic!("{service} in {report:#}"))
}

fn service(span: &Value) -> &str {
    span["localEndpoint"]["serviceName"].as_str().unwrap()
}

/// A front, a message, and what its consumer calls.
fn order(_: u64) -> Vec<Place> {
    vec![
        ("front", "SERVER", None, 0, 60, ""),
        ("front", "CLIENT", Some(0), 2, 20, "cart"),
        ("cart", "SERVER", Some(1), 3, 15, ""),
        ("cart", "CLIENT", Some(2), 4, 10, "price"),
        ("price", "SERVER", Some(3), 5, 5, ""),
        ("front", "PRODUCER", Some(0), 30, 1, ""),
        ("ledger", "CONSUMER", Some(5), 40, 15, ""),
        ("ledger", "CLIENT", Some(6), 41, 9, "price"),
        ("price", "SERVER", Some(7), 42, 6, ""),
    ]
}

#[test]
fn spans_that_every_service_loses_at_times_are_one_note() {
    let mut n = 0;
    let mut spans = requests(250, &order);
    // A span in eighty, and one of each consumer's in fifty.
    spans.retain(|span| {
        n += 1;
        n % 80 != 7 && !(service(span) == "ledger" && span["kind"] == "CONSUMER" && n % 50 == 11)
    });
    let report = report(&spans);
    assert!(faults(&report).is_empty(), "{report:#}");
    let orphaned: Vec<_> = notes(&report).into_iter().filter(|[id, ..]| id == "spans.orphaned").collect();
    assert!(orphaned.len() == 1 && orphaned[0][2].contains("of ledger") && orphaned[0][2].contains("of cart"), "{orphaned:?}");
    let calls = row(&report, "ledger")["calls_in"].as_u64().unwrap();
    assert!((240..=250).contains(&calls), "messages are calls: {calls}");
}

#[test]
fn a_service_that_loses_more_than_the_others_is_named_with_what_is_missing() {
    let mut n = 0;
    let mut spans = requests(250, &order);
    spans.retain(|span| {
        n += 1;
        n % 80 != 7 && !(service(span) == "ledger" && n % 7 == 3)
    });
    let report = report(&spans);
    let found = faults(&report);
    assert!(found.len() == 1 && found[0][..2] == ["spans.orphaned", "ledger"], "{found:?}");
    assert!(found[0][3].contains("spans with others below them are missing"), "{found:?}");
    let score = row(&report, "ledger")["score"].as_u64().unwrap();
    assert!((75..=95).contains(&score), "one in seven: {score}");
}

#[test]
fn an_entry_that_reports_nothing_puts_nobody_between_the_services_that_it_calls() {
    let spans = requests(80, &|n| {
        vec![
            ("(edge)", "SERVER", None, 0, 90, ""),
            ("(edge)", "CLIENT", Some(0), 1, 30, "cart"),
            ("cart", "SERVER", Some(1), 2, 24 + n % 5, ""),
            ("(edge)", "CLIENT", Some(0), 40, 30, "price"),
            ("price", "SERVER", Some(3), 41, 9 + n % 11, ""),
            ("(edge)", "CLIENT", Some(0), 72, 9, "stock"),
            ("stock", "SERVER", Some(5), 73, 6, ""),
        ]
    });
    let report = report(&spans);
    assert!(faults(&report).is_empty(), "{report:#}");
    let orphaned: Vec<_> = notes(&report).into_iter().filter(|[id, ..]| id == "spans.orphaned").collect();
    assert!(orphaned.len() == 1, "{orphaned:?}");
    assert!(["cart", "price", "stock"].iter().all(|name| orphaned[0][2].contains(name)), "{orphaned:?}");
}

/// Both halves of a call have one id, as Brave's have.
fn shared(spans: Vec<Value>) -> Vec<Value> {
    let mut ids = std::collections::HashMap::new();
    let parent_of = |span: &Value| span["parentId"].as_str().map(str::to_owned);
    for span in spans.iter().filter(|span| span["kind"] == "SERVER") {
        if let Some(client) = parent_of(span) {
            ids.insert(span["id"].as_str().unwrap().to_owned(), client);
        }
    }
    let above: std::collections::HashMap<String, Value> =
        spans.iter().map(|span| (span["id"].as_str().unwrap().to_owned(), span["parentId"].clone())).collect();
    let change = |mut span: Value| {
        if let Some(client) = ids.get(span["id"].as_str().unwrap()) {
            (span["id"], span["parentId"], span["shared"]) = (json!(client), above[client].clone(), json!(true));
        } else if let Some(client) = parent_of(&span).and_then(|parent| ids.get(&parent)) {
            span["parentId"] = json!(client);
        }
        span
    };
    spans.into_iter().map(change).collect()
}

#[test]
fn a_lost_half_of_a_shared_span_is_a_lost_span_and_no_wrong_kind_or_stale_context() {
    let of = |n: u64| -> Vec<Place> {
        vec![
            ("front", "SERVER", None, 0, 60 + n % 3, ""),
            ("front", "CLIENT", Some(0), 2, 50, "cart"),
            ("cart", "SERVER", Some(1), 3, 45, ""),
            ("cart", "CLIENT", Some(2), 4, 10, "price"),
            ("price", "SERVER", Some(3), 5, 5, ""),
            ("cart", "CLIENT", Some(2), 20, 10, "stock"),
            ("stock", "SERVER", Some(5), 21, 5, ""),
        ]
    };
    let spans = shared(requests(90, &of));
    for (lost, kind) in [("cart", "SERVER"), ("cart", "CLIENT"), ("front", "CLIENT")] {
        let mut n = 0;
        let is_lost = |span: &Value| service(span) == lost && span["kind"] == kind;
        let few: Vec<Value> = spans
            .iter()
            .filter(|span| {
                n += usize::from(is_lost(span));
                !(is_lost(span) && n % 30 == 4)
            })
            .cloned()
            .collect();
        let few = report(&few);
        assert!(faults(&few).is_empty(), "{lost} {kind}: {few:#}");
        let many: Vec<Value> = spans
            .iter()
            .filter(|span| {
                n += usize::from(is_lost(span));
                !(is_lost(span) && n % 3 == 1)
            })
            .cloned()
            .collect();
        let found = faults(&report(&many));
        assert!(found.len() == 1 && found[0][..2] == ["spans.orphaned", lost], "{lost} {kind}: {found:?}");
    }
}

/// Sixty whole requests to front, which calls cart, which calls price.
fn front_cart_price() -> Vec<Value> {
    requests(60, &|n| {
        vec![
            ("front", "SERVER", None, 0, 60 + n % 5, ""),
            ("front", "CLIENT", Some(0), 2, 50, "cart"),
            ("cart", "SERVER", Some(1), 3, 40, ""),
            ("cart", "CLIENT", Some(2), 5, 20, "price"),
            ("price", "SERVER", Some(3), 6, 9, ""),
        ]
    })
}

/// The client sends the headers of the first request for ever: its callee's spans hang below that one call.
#[test]
fn headers_of_an_old_request_are_found_where_the_callee_hangs_below_one_call() {
    let mut spans = front_cart_price();
    let (trace, call) = (spans[3]["traceId"].clone(), spans[3]["id"].clone());
    for span in spans.iter_mut().filter(|span| service(span) == "price") {
        (span["traceId"], span["parentId"]) = (trace.clone(), call.clone());
    }
    for spans in [spans.clone(), shared(spans)] {
        let found = faults(&report(&spans));
        assert!(found.len() == 1 && found[0][..3] == ["context.stale", "cart", "price"], "{found:?}");
    }
}

/// The context of the first request is used for ever: its callers' own client spans hang below that one request.
#[test]
fn the_context_of_an_old_request_is_found_where_the_calls_hang_below_one_request() {
    let mut spans = front_cart_price();
    let (trace, work) = (spans[2]["traceId"].clone(), spans[2]["id"].clone());
    for span in &mut spans {
        if service(span) == "cart" && span["kind"] == "CLIENT" {
            (span["traceId"], span["parentId"]) = (trace.clone(), work.clone());
        } else if service(span) == "price" {
            span["traceId"] = trace.clone();
        }
    }
    let found = faults(&report(&spans));
    assert!(found.len() == 1 && found[0][..3] == ["context.stale", "cart", "price"], "{found:?}");
    // The same where that request is older than what was read.
    let later: Vec<Value> = spans.into_iter().filter(|span| span["id"] != work).collect();
    let found = faults(&report(&later));
    assert!(found.iter().any(|found| found[..3] == ["context.stale", "cart", "price"]), "{found:?}");
}

#[test]
fn calls_below_the_work_for_the_request_before_are_mixed_up_and_work_after_an_answer_is_not() {
    let of = |late: bool| {
        move |n: u64| -> Vec<Place> {
            let from = if late { 70 } else { 5 };
            vec![
                ("front", "SERVER", None, 0, 60 + n % 5, ""),
                ("front", "CLIENT", Some(0), 2, 50, "cart"),
                ("cart", "SERVER", Some(1), 3, 40, ""),
                ("cart", "CLIENT", Some(2), from, 20, "price"),
                ("price", "SERVER", Some(3), from + 1, 9, ""),
            ]
        }
    };
    let mut spans = requests(90, &of(false));
    for n in (1..90).filter(|n| n % 4 == 1) {
        let (trace, work) = (spans[5 * (n - 1) + 2]["traceId"].clone(), spans[5 * (n - 1) + 2]["id"].clone());
        (spans[5 * n + 3]["traceId"], spans[5 * n + 3]["parentId"]) = (trace.clone(), work);
        spans[5 * n + 4]["traceId"] = trace;
    }
    let found = faults(&report(&spans));
    assert!(found.len() == 1 && found[0][..3] == ["context.mixed", "cart", "price"], "{found:?}");
    let found = faults(&report(&requests(90, &of(true))));
    assert!(found.is_empty(), "{found:?}");
}

/// The traces that begin behind a service do not contain it, and are the evidence.
#[test]
fn a_report_on_one_service_has_the_faults_that_only_other_traces_show() {
    let spans = super::system_of_two(50);
    let all = faults(&report(&spans));
    for name in ["front", "FRONT", "back"] {
        let ran = doctor(&spans, &["--output", "json", "--service", name]);
        assert_eq!(faults(&serde_json::from_str(&ran.stdout).unwrap()), all, "{name}: {}", ran.stderr);
    }
    let ran = doctor(&spans, &["--service", "other"]);
    assert!(ran.code == Some(1) && ran.stdout.contains("Nothing to read"), "{}", ran.stdout);
    let both: Vec<Value> = spans.into_iter().chain(requests(30, &|_| vec![("other", "SERVER", None, 0, 9, "")])).collect();
    let ran = doctor(&both, &["--service", "other", "--fail-under", "100"]);
    assert!(ran.code == Some(0) && !ran.stdout.contains("context.dropped") && !ran.stdout.contains('✗'), "{}", ran.stdout);
}

#[test]
fn a_score_is_the_share_of_all_calls_that_faults_concern() {
    let spans = requests(100, &|n| {
        let broken = n % 4 == 0;
        let mut spans = vec![
            ("front", "SERVER", None, 0, 90, ""),
            ("front", "CLIENT", Some(0), 2, 40, "cart"),
            ("front", "CLIENT", Some(0), 45, 40, "stock"),
        ];
        for (call, name, from) in [(1, "cart", 3), (2, "stock", 46)] {
            spans.extend((!broken).then_some((name, "SERVER", Some(call), from, 30, "")));
        }
        spans
    });
    // One service under two callers: a sampler that leaves out a quarter of either's calls.
    let mut spans = spans;
    for span in &mut spans {
        if service(span) == "stock" {
            span["localEndpoint"]["serviceName"] = json!("cart");
        } else if span["tags"]["peer.service"] == "stock" {
            (span["tags"]["peer.service"], span["localEndpoint"]["serviceName"]) = (json!("cart"), json!("side"));
            span["kind"] = json!("CLIENT");
        }
    }
    let report = report(&spans);
    assert_eq!(faults(&report).len(), 2, "{report:#}");
    assert_eq!(row(&report, "cart")["score"], 75, "{report:#}");
}

#[test]
fn a_host_of_one_label_is_a_service_of_the_mesh_and_a_cache_is_none() {
    let mut spans = requests(20, &|_| {
        vec![
            ("front", "SERVER", None, 0, 60, ""),
            ("front", "CLIENT", Some(0), 5, 20, "stock"),
            ("front", "CLIENT", Some(0), 30, 2, "cache"),
        ]
    });
    for span in &mut spans {
        match span["tags"]["peer.service"].as_str() {
            Some("stock") => span["tags"] = json!({"http.url": "http://stock:8080/items"}),
            Some("cache") => {
                span["tags"] = json!({"redis.command": "GET"});
                span["remoteEndpoint"] = json!({"serviceName": "cache"});
            }
            _ => {}
        }
    }
    let silent: Vec<_> = notes(&report(&spans)).into_iter().filter(|[id, ..]| id == "service.silent").collect();
    assert!(silent.len() == 1 && silent[0][1] == "stock", "{silent:?}");
}

#[test]
fn a_service_that_cuts_ids_for_several_callees_is_one_finding() {
    let mut spans = requests(40, &|_| {
        vec![
            ("front", "SERVER", None, 0, 60, ""),
            ("front", "CLIENT", Some(0), 5, 50, "middle"),
            ("middle", "SERVER", Some(1), 6, 45, ""),
            ("middle", "CLIENT", Some(2), 8, 30, "leaf"),
            ("leaf", "SERVER", Some(3), 9, 20, ""),
            ("leaf", "CLIENT", Some(4), 10, 9, "end"),
            ("end", "SERVER", Some(5), 11, 7, ""),
            ("middle", "CLIENT", Some(2), 40, 5, "end"),
            ("end", "SERVER", Some(7), 41, 3, ""),
        ]
    });
    for (at, span) in spans.iter_mut().enumerate() {
        let short = span["traceId"].as_str().unwrap().to_owned();
        if at % 9 < 4 || at % 9 == 7 {
            span["traceId"] = json!(format!("00000000abcdef01{short}"));
        }
    }
    // One call of another service's arrives at the leaf, too: a lost span looks like that.
    spans[9 * 20 + 4]["parentId"] = spans[9 * 20]["id"].clone();
    let found = faults(&report(&spans));
    assert!(found.len() == 1 && found[0][..2] == ["context.shortened", "middle"], "{found:?}");
    assert!(found[0][3].contains("calls to leaf, end"), "{found:?}");
}

/// Names for numbers, as protobuf's own JSON has them; the name of the scopes before 1.0; Jaeger's field before `references`.
#[test]
fn older_and_other_writers_of_files_are_read() {
    let spans = super::system_of_two(100);
    let expected = faults(&report(&spans));
    let otlp = |span: &Value, scopes: &str| {
        let text = |key: &str, value: &Value| json!({"key": key, "value": {"stringValue": value}});
        let start = span["timestamp"].as_u64().unwrap() * 1000;
        let end = start + span["duration"].as_u64().unwrap() * 1000;
        let peer: Vec<Value> = span["tags"].get("peer.service").map(|peer| text("peer.service", peer)).into_iter().collect();
        let kind = format!("SPAN_KIND_{}", span["kind"].as_str().unwrap());
        let own = json!({"traceId": span["traceId"], "spanId": span["id"], "parentSpanId": span.get("parentId").unwrap_or(&json!("")),
            "name": "get", "kind": kind, "startTimeUnixNano": start.to_string(), "endTimeUnixNano": end.to_string(),
            "attributes": peer, "status": {"code": "STATUS_CODE_OK"}});
        let resource = json!({"attributes": [text("service.name", &span["localEndpoint"]["serviceName"])]});
        json!({"resource": resource, scopes: [{"spans": [own]}]})
    };
    let jaeger = |span: &Value| {
        let tag = |key: &str, value: &Value| json!({"key": key, "type": "string", "value": value});
        let kind = json!(span["kind"].as_str().unwrap().to_lowercase());
        let peer = span["tags"].get("peer.service").map(|peer| tag("peer.service", peer));
        let tags: Vec<Value> = [tag("span.kind", &kind)].into_iter().chain(peer).collect();
        json!({"traceID": span["traceId"], "spanID": span["id"], "parentSpanID": span.get("parentId"), "references": [],
            "operationName": "get", "startTime": span["timestamp"], "duration": span["duration"], "tags": tags,
            "processID": span["localEndpoint"]["serviceName"]})
    };
    let processes = json!({"front": {"serviceName": "front"}, "back": {"serviceName": "back"}});
    for document in [
        json!({"resourceSpans": spans.iter().map(|span| otlp(span, "scopeSpans")).collect::<Vec<_>>()}),
        json!({"resourceSpans": spans.iter().map(|span| otlp(span, "instrumentationLibrarySpans")).collect::<Vec<_>>()}),
        json!({"data": spans.iter().map(|span| json!({"spans": [jaeger(span)], "processes": processes})).collect::<Vec<_>>()}),
    ] {
        let ran = doctor_of(&document, &["--output", "json"]);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert_eq!(faults(&serde_json::from_str(&ran.stdout).unwrap()), expected, "{}", ran.stderr);
    }
}
