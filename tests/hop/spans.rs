//! Spans: one request is one trace in the collector, in both formats; and a collector that misbehaves costs spans, which are
//! counted, and never a request.

use std::time::{Duration, Instant};

use crate::common::ports::free_addr;
use crate::common::{Act, Hop, Mood, Sink, Span, Upstream, answer, chain, eventually, export_env};
use tokio::io::AsyncWriteExt as _;

const T: &str = "463ac35c9f6413ad48485a3953bb6124";
const S: &str = "a2fb4a1d1a96d312";

/// Half of what an export may take: a request that is slower has waited for one.
const WAITED: Duration = Duration::from_secs(5);

async fn sink(exporter: &'static str) -> Sink {
    Sink::start(free_addr(), exporter).await
}

fn borrowed<'a>(env: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    env.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

async fn dropped(hop: &Hop, reason: &str) -> f64 {
    hop.metrics().await.sum("httpserver_spans_dropped_total", &[("reason", reason)])
}

async fn exported(hop: &Hop) -> f64 {
    hop.metrics().await.sum("httpserver_spans_exported_total", &[])
}

#[tokio::test]
async fn one_request_is_one_trace_of_five_spans_over_three_services_in_both_formats() {
    for exporter in ["zipkin", "otlp"] {
        let sink = sink(exporter).await;
        let hops = chain(3, &["--service-version", "v3", "--lane", "gray"], &sink.env());
        let b3 = [("x-b3-traceid", T), ("x-b3-spanid", S), ("x-b3-sampled", "1")];
        for (caller, headers) in [(None, &[][..]), (Some(S), &b3)] {
            let headers = [headers, &[("x-request-id", "r-1"), ("x-real-ip", "10.0.0.7")]].concat();
            let (status, reply) = hops[0].json("/service1?secret=1", &headers).await;
            assert_eq!(status, 200);
            let spans = sink.trace(reply["trace_id"].as_str().unwrap(), 5).await;
            if caller.is_some() {
                assert_eq!(reply["trace_id"], T);
            }

            // From the front down: each server span is the one in the reply, below the caller's client span.
            let mut below = &reply;
            let mut parent = caller.map(str::to_owned);
            for n in 1..=3 {
                let service = format!("service{n}");
                let find = |kind: &str| {
                    let found: Vec<_> = spans.iter().filter(|span| span.service == service && span.kind == kind).collect();
                    assert!(found.len() <= 1, "{found:#?}");
                    found.first().copied()
                };
                let server = find("SERVER").unwrap();
                assert_eq!(server.name, "GET /service{n}");
                assert_eq!((&server.id, &server.parent), (&below["span_id"].as_str().unwrap().to_owned(), &parent), "{exporter}");
                let tag = |span: &Span, name: &str| span.tags.get(name).cloned().unwrap_or_default();
                for (name, value) in [
                    ("service.version", "v3"),
                    ("lane", "gray"),
                    ("http.request.method", "GET"),
                    ("http.route", "/service{n}"),
                    ("http.response.status_code", "200"),
                    ("url.path", &format!("/service{n}")),
                    ("client.address", if n == 1 { "10.0.0.7" } else { "127.0.0.1" }),
                    ("server.address", "127.0.0.1"),
                    ("server.port", &hops[n - 1].addr.port().to_string()),
                    ("request.id", "r-1"),
                    ("error.type", ""),
                ] {
                    assert_eq!(tag(server, name), value, "{exporter}: {name} of {service}");
                }
                assert!(!server.failed);
                assert_eq!(below["service"], service);
                if n == 3 {
                    assert_eq!(find("CLIENT"), None);
                    break;
                }
                let client = find("CLIENT").unwrap();
                assert_eq!((client.name.as_str(), client.parent.as_ref()), ("GET", Some(&server.id)));
                for (name, value) in [
                    ("service.version", "v3"),
                    ("http.request.method", "GET"),
                    ("http.response.status_code", "200"),
                    ("url.path", &format!("/service{}", n + 1)),
                    ("server.address", "127.0.0.1"),
                    ("server.port", &hops[n].addr.port().to_string()),
                    ("request.id", "r-1"),
                    ("http.route", ""),
                    ("client.address", ""),
                ] {
                    assert_eq!(tag(client, name), value, "{exporter}: {name} of the client of {service}");
                }
                assert!(server.start_us <= client.start_us && client.duration_us <= server.duration_us, "{spans:#?}");
                parent = Some(client.id.clone());
                below = &below["upstreams"][0]["reply"];
            }
        }
        for hop in &hops {
            let own = if hop.addr == hops[2].addr { 2.0 } else { 4.0 };
            eventually("every span is counted as exported", || async { (exported(hop).await == own).then_some(()) }).await;
        }
    }
}

#[tokio::test]
async fn the_answer_tells_the_span_that_the_collector_gets() {
    let sink = Sink::zipkin().await;
    let hop = Hop::start(&[], &sink.env());
    let answer = hop.get("/hello/x", &[]).await;
    let told: Vec<_> = answer.header("traceresponse").unwrap().split('-').collect();
    let spans = sink.trace(told[1], 1).await;
    assert_eq!((told[0], spans[0].id.as_str(), told[3], spans[0].name.as_str()), ("00", told[2], "03", "GET /hello/{who}"));
    assert_eq!(spans[0].parent, None);

    // Headers, 404s and 405s are requests like others; probes and scrapes are not traced.
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(hop.get(path, &[("traceparent", &format!("00-{T}-{S}-01"))]).await.header("traceresponse"), None, "{path}");
    }
    hop.get("/headers", &[]).await;
    hop.get("/nothing", &[]).await;
    let last = hop.request("BREW", "/hello", &[]).await;
    sink.trace(last.header("traceresponse").unwrap().split('-').nth(1).unwrap(), 1).await;
    let names: Vec<_> = sink.spans().into_iter().map(|span| span.name).collect();
    assert_eq!(names, ["GET /hello/{who}", "GET /headers", "GET", "HTTP /hello"]);
}

#[tokio::test]
async fn what_fails_is_marked_where_it_fails() {
    for exporter in ["zipkin", "otlp"] {
        let sink = sink(exporter).await;
        let upstream = Upstream::start(|head| match head.one("x-lane").unwrap().as_str() {
            "hang" => vec![Act::Hang],
            "close" => vec![Act::Close],
            "500" => vec![Act::Send(answer("500 Oops", "", ""))],
            _ => vec![Act::Send(answer("404 Not Found", "", ""))],
        })
        .await;
        let front = Hop::start(&["--upstream", &upstream.url(), "--upstream-timeout", "200ms"], &sink.env());
        for (case, server_error, client_error, client_status) in [
            ("hang", "504", "timeout", ""),
            ("close", "502", "broken_answer", ""),
            ("500", "502", "500", "500"),
            ("404", "502", "404", "404"),
        ] {
            let (_, reply) = front.json("/service1", &[("x-lane", case)]).await;
            let spans = sink.trace(reply["trace_id"].as_str().unwrap(), 2).await;
            for span in spans {
                let (error, status) =
                    if span.kind == "SERVER" { (server_error, server_error) } else { (client_error, client_status) };
                assert_eq!(span.tags["error.type"], error, "{case}");
                assert_eq!(span.tags.get("http.response.status_code").map_or("", String::as_str), status, "{case}");
                assert!(span.failed, "{case}");
            }
        }
        // A caller's mistake is not the server's failure.
        let missing = front.get("/nothing", &[]).await;
        let trace = missing.header("traceresponse").unwrap().split('-').nth(1).unwrap().to_owned();
        let spans = sink.trace(&trace, 1).await;
        assert!(!spans[0].failed && !spans[0].tags.contains_key("error.type"), "{spans:#?}");
    }
}

#[tokio::test]
async fn a_fan_out_has_a_client_span_for_each_call() {
    let sink = Sink::otlp().await;
    let leaf = Hop::start(&["--name", "leaf"], &sink.env());
    let url = leaf.url("/service9");
    let front = Hop::start(&["--name", "front", "--upstream", &url, "--upstream", &url], &sink.env());
    let (_, reply) = front.json("/service1", &[]).await;
    let spans = sink.trace(reply["trace_id"].as_str().unwrap(), 5).await;
    for call in reply["upstreams"].as_array().unwrap() {
        let client = call["reply"]["parent_span_id"].as_str().unwrap();
        let client = spans.iter().find(|span| span.id == client && span.kind == "CLIENT").unwrap();
        assert_eq!((client.service.as_str(), client.parent.as_deref()), ("front", reply["span_id"].as_str()));
    }
}

#[tokio::test]
async fn the_service_of_spans_and_further_attributes_come_from_the_standard_variables() {
    for exporter in ["zipkin", "otlp"] {
        let sink = sink(exporter).await;
        let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=from-attributes,k8s.pod.name=pod%2C1,lane=mine");
        for (flags, env, service, name) in [
            (&["--name", "flag"][..], &[attributes, ("OTEL_SERVICE_NAME", "otel")][..], "otel", "flag"),
            (&["--name", "flag"], &[attributes], "from-attributes", "flag"),
            (&[], &[("OTEL_SERVICE_NAME", "otel"), ("SERVICE_NAME", "env")], "otel", "env"),
            (&[], &[("OTEL_SERVICE_NAME", "otel")], "otel", "otel"),
            (&[], &[("SERVICE_NAME", "env")], "env", "env"),
            (&[], &[], "httpserver", "httpserver"),
        ] {
            let hop = Hop::start(flags, &[&sink.env()[..], env].concat());
            let (_, reply) = hop.json("/service1", &[]).await;
            let spans = sink.trace(reply["trace_id"].as_str().unwrap(), 1).await;
            assert_eq!((spans[0].service.as_str(), &reply["service"]), (service, &name.into()));
            if env.contains(&attributes) {
                assert_eq!((spans[0].tags["k8s.pod.name"].as_str(), spans[0].tags["lane"].as_str()), ("pod,1", "mine"));
            }
        }
    }
}

#[tokio::test]
async fn otlp_goes_where_and_how_the_standard_variables_say() {
    let sink = Sink::otlp().await;
    let whole = format!("http://{}/v1/traces", sink.addr);
    let env = [
        ("OTEL_TRACES_EXPORTER", "otlp"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &whole),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a%20b,authorization=Bearer%20t"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
    ];
    let hop = Hop::start(&[], &env);
    hop.get("/hello", &[]).await;
    let headers = eventually("an export arrives", || async { sink.requests().into_iter().next() }).await;
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap());
    assert_eq!((header("x-tenant"), header("authorization")), (Some("a b"), Some("Bearer t")));
    assert_eq!((header("content-encoding"), header("content-type")), (Some("gzip"), Some("application/x-protobuf")));
}

#[tokio::test]
async fn the_console_gets_a_line_for_each_span() {
    let hop = Hop::start(&["--trace-exporter", "console", "--name", "me"], &[("OTEL_BSP_SCHEDULE_DELAY", "20")]);
    let answer = hop.get("/hello", &[("x-request-id", "r\\\"-1")]).await;
    let trace = answer.header("traceresponse").unwrap().split('-').nth(1).unwrap().to_owned();
    let line = eventually("a line is written", || async { hop.stderr().into_iter().find(|line| line.contains(&trace)) }).await;
    assert!(line.starts_with("span trace=") && line.contains(" server me \"GET /hello\" "), "{line}");
    assert!(line.contains("request.id=r\\\\\\\"-1"), "{line}");
    assert_eq!(exported(&hop).await, 1.0);
}

/// Sends `count` requests and returns how long the slowest took.
async fn slowest(hop: &Hop, count: usize) -> Duration {
    let mut slowest = Duration::ZERO;
    for _ in 0..count {
        let begun = Instant::now();
        assert_eq!(hop.get("/hello", &[]).await.status, 200);
        slowest = slowest.max(begun.elapsed());
    }
    slowest
}

#[tokio::test]
async fn a_collector_that_is_down_costs_no_request_and_gets_its_spans_when_it_comes_back() {
    for exporter in ["zipkin", "otlp"] {
        let addr = free_addr();
        let env = export_env(exporter, addr);
        let hop = Hop::start(&[], &borrowed(&env));
        assert!(slowest(&hop, 20).await < WAITED);
        eventually("the log says so", || async {
            hop.stderr().into_iter().find(|line| line.contains("the span collector is unavailable; retrying"))
        })
        .await;
        assert_eq!(exported(&hop).await, 0.0);
        let sink = Sink::start(addr, exporter).await;
        eventually("the spans arrive", || async { (exported(&hop).await == 20.0).then_some(()) }).await;
        assert_eq!(sink.spans().len(), 20, "each once");
        for reason in ["queue_full", "rejected", "unreachable"] {
            assert_eq!(dropped(&hop, reason).await, 0.0, "{reason}");
        }
    }
}

#[tokio::test]
async fn a_collector_that_hangs_costs_spans_that_are_counted_and_never_a_request() {
    for exporter in ["zipkin", "otlp"] {
        let sink = sink(exporter).await;
        sink.set(Mood::Hangs);
        let hop = Hop::start(&[], &[&sink.env()[..], &[("OTEL_BSP_MAX_QUEUE_SIZE", "16")]].concat());
        hop.get("/hello", &[]).await;
        eventually("an export hangs", || async { (!sink.requests().is_empty()).then_some(()) }).await;
        assert!(slowest(&hop, 50).await < WAITED);
        assert_eq!(dropped(&hop, "queue_full").await, 34.0, "50 requests, 16 places");
        assert_eq!(exported(&hop).await, 0.0);
        assert_eq!(sink.requests().len(), 1, "one export at a time");
    }
}

#[tokio::test]
async fn a_collector_that_fails_for_now_is_asked_again_until_it_takes_the_spans() {
    for (exporter, status) in
        [("zipkin", 500), ("zipkin", 408), ("zipkin", 429), ("otlp", 429), ("otlp", 502), ("otlp", 503), ("otlp", 504)]
    {
        let sink = sink(exporter).await;
        sink.set(Mood::Answers(status));
        let hop = Hop::start(&[], &sink.env());
        assert!(slowest(&hop, 5).await < WAITED);
        eventually("it is asked again", || async { (sink.requests().len() >= 2).then_some(()) }).await;
        sink.set(Mood::Takes);
        eventually("the spans arrive", || async { (exported(&hop).await == 5.0).then_some(()) }).await;
        assert_eq!(sink.spans().len(), 5, "each once");
        assert_eq!(dropped(&hop, "rejected").await, 0.0);
    }
}

#[tokio::test]
async fn a_collector_that_refuses_spans_is_not_asked_again_with_the_same_ones() {
    // OTLP may be asked again after 429, 502, 503 and 504 only.
    for (exporter, status) in [("zipkin", 400), ("otlp", 400), ("otlp", 408), ("otlp", 500), ("otlp", 501), ("otlp", 505)] {
        let sink = sink(exporter).await;
        sink.set(Mood::Answers(status));
        let hop = Hop::start(&[], &sink.env());
        hop.get("/hello", &[]).await;
        eventually("the loss is counted", || async { (dropped(&hop, "rejected").await == 1.0).then_some(()) }).await;
        assert_eq!(sink.requests().len(), 1);
        // The next ones go out as if nothing had been.
        sink.set(Mood::Takes);
        let answer = hop.get("/hello", &[]).await;
        sink.trace(answer.header("traceresponse").unwrap().split('-').nth(1).unwrap(), 1).await;
        assert_eq!(sink.spans().len(), 1);
    }
}

#[tokio::test]
async fn spans_of_the_last_request_are_handed_over_after_sigterm() {
    for exporter in ["zipkin", "otlp"] {
        let sink = sink(exporter).await;
        // An hour until the next export by itself.
        let env = [&sink.env()[..2], &[("OTEL_BSP_SCHEDULE_DELAY", "3600000")]].concat();
        let mut hop = Hop::start(&["--drain-delay", "0"], &env);
        hop.get("/hello", &[]).await;
        assert!(sink.spans().is_empty());
        hop.signal("TERM");
        // The sink answers on this thread: the process is waited for on another.
        let code = tokio::task::spawn_blocking(move || hop.ended().code()).await.unwrap();
        assert_eq!((code, sink.spans().len()), (Some(0), 1));
    }
}

#[tokio::test]
async fn a_caller_who_hangs_up_leaves_a_span_that_says_so() {
    let sink = Sink::zipkin().await;
    let hanging = Upstream::start(|_| vec![Act::Hang]).await;
    let hop = Hop::start(&["--upstream", &hanging.url(), "--upstream-timeout", "60s"], &sink.env());
    let mut caller = tokio::net::TcpStream::connect(hop.addr).await.unwrap();
    let head = format!("GET /service1 HTTP/1.1\r\nhost: a\r\ntraceparent: 00-{T}-{S}-01\r\n\r\n");
    caller.write_all(head.as_bytes()).await.unwrap();
    eventually("the call is under way", || async { (!hanging.heads().is_empty()).then_some(()) }).await;
    drop(caller);
    let spans = sink.trace(T, 2).await;
    let error = |kind: &str| spans.iter().find(|span| span.kind == kind).unwrap().tags["error.type"].clone();
    assert_eq!((error("SERVER").as_str(), error("CLIENT").as_str()), ("client_closed_request", "cancelled"));
}

#[tokio::test]
async fn a_collector_that_is_named_twice_gets_each_span_once_and_its_query_stays_behind_the_path() {
    let sink = Sink::otlp().await;
    let endpoint = format!("http://{}/?key=1", sink.addr);
    let env = [
        ("OTEL_TRACES_EXPORTER", "otlp,otlp"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint),
        ("OTEL_EXPORTER_OTLP_HEADERS", "content-length=1,x-tenant=a"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a%20b=1,a%20b=2"),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
    ];
    let hop = Hop::start(&[], &env);
    hop.get("/hello", &[]).await;
    eventually("it is exported", || async { (exported(&hop).await >= 1.0).then_some(()) }).await;
    let serving = hop.stderr().into_iter().find(|line| line.contains("serving")).unwrap();
    assert_eq!(serving.matches("otlp http/protobuf").count(), 1, "{serving}");
    let span = &sink.spans()[0];
    assert_eq!(span.resource["a b"], "2", "the last of several");
    assert_eq!(sink.requests()[0]["x-tenant"], "a");
}
