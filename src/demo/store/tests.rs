use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::TryRecvError;
use tower_service::Service;

use super::*;
use crate::traces::ids::parse_trace_id;

/// Calls the router as a server would, and reads the whole answer.
async fn call(store: &Store, request: http::Request<Body>) -> (StatusCode, HeaderMap, String) {
    let response = store.router().call(request).await.unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (head.status, head.headers, String::from_utf8(body.into()).unwrap())
}

async fn fetch(store: &Store, path: &str) -> (StatusCode, String) {
    let (status, _, body) = call(store, http::Request::get(path).body(Body::empty()).unwrap()).await;
    (status, body)
}

async fn fetch_json(store: &Store, path: &str) -> Value {
    let (status, body) = fetch(store, path).await;
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
}

async fn send(store: &Store, spans: &Value) {
    let request = http::Request::post("/api/v2/spans").header("content-type", "application/json");
    let (status, _, body) = call(store, request.body(Body::from(spans.to_string())).unwrap()).await;
    assert_eq!((status, body.as_str()), (StatusCode::ACCEPTED, ""));
}

async fn refused(store: &Store, headers: &[(&str, &str)], body: impl Into<Body>) -> (StatusCode, String) {
    let mut request = http::Request::post("/api/v2/spans");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (status, headers, body) = call(store, request.body(body.into()).unwrap()).await;
    assert_eq!(headers["content-type"], "text/plain; charset=utf-8");
    (status, body)
}

const T0: u64 = 1_700_000_000_000_000;

fn span(trace: &str, id: &str, parent: Option<&str>, kind: &str, service: &str) -> Value {
    json!({"traceId": trace, "id": id, "parentId": parent, "kind": kind, "name": "get", "timestamp": T0, "duration": 1000,
        "localEndpoint": {"serviceName": service}})
}

/// service1 -> service2 -> service3, five spans.
fn chain(trace: &str) -> Value {
    json!([
        span(trace, "1", None, "SERVER", "service1"),
        span(trace, "2", Some("1"), "CLIENT", "service1"),
        span(trace, "3", Some("2"), "SERVER", "service2"),
        span(trace, "4", Some("3"), "CLIENT", "service2"),
        span(trace, "5", Some("4"), "SERVER", "service3"),
    ])
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn a_trace_comes_back_by_either_length_of_its_id() {
    let store = Store::new();
    send(&store, &chain("000000000000000000000000000000AB")).await;
    for id in ["ab", "AB", "00000000000000ab", "000000000000000000000000000000ab"] {
        let trace = fetch_json(&store, &format!("/api/v2/trace/{id}")).await;
        assert_eq!(trace.as_array().unwrap().len(), 5);
        assert_eq!(trace[1]["parentId"], "0000000000000001");
    }
    let many = fetch_json(&store, "/api/v2/traceMany?traceIds=ab,cd,00ab").await;
    assert_eq!(many.as_array().unwrap().len(), 1);
    assert_eq!(fetch(&store, "/api/v2/trace/cd").await, (StatusCode::NOT_FOUND, "00000000000000cd not found\n".into()));
    assert_eq!(fetch(&store, "/api/v2/trace/xyz").await.0, 400);
    assert_eq!(fetch(&store, "/api/v2/traceMany?traceIds=").await.0, 400);
    assert_eq!(fetch(&store, "/api/v2/traceMany?traceIds=xyz").await.0, 400);
    assert_eq!(fetch_json(&store, "/api/v2/services").await, json!(["service1", "service2", "service3"]));
    assert_eq!(fetch_json(&store, "/api/v2/spans?serviceName=SERVICE1").await, json!(["get"]));
    assert_eq!(fetch_json(&store, "/api/v2/spans?serviceName=nobody").await, json!([]));
    assert_eq!(fetch_json(&store, "/health").await["store"]["spans"], 5);
}

#[tokio::test]
async fn the_same_span_sent_again_replaces_and_the_other_half_of_a_call_does_not() {
    let store = Store::new();
    send(&store, &chain("a")).await;
    send(&store, &chain("a")).await;
    assert_eq!(store.stats().spans, 5);
    // B3 lets the server take the client's id over: same id, other kind, other service.
    send(&store, &json!([{"traceId": "a", "id": "2", "parentId": "1", "kind": "SERVER", "shared": true, "localEndpoint": {"serviceName": "service2"}}])).await;
    assert_eq!(store.stats().spans, 6);
    // The end of a span, reported apart from its start and without its kind.
    send(&store, &json!([{"traceId": "a", "id": "5", "duration": 77, "localEndpoint": {"serviceName": "service3"}}])).await;
    let spans = store.trace(parse_trace_id("a").unwrap()).unwrap();
    let last = spans.iter().find(|span| span.service() == Some("service3")).unwrap();
    assert_eq!((spans.len(), last.duration, last.kind, last.timestamp), (6, Some(77), Some(Kind::Server), Some(T0)));
    let weighed: usize = spans.iter().map(|span| span.weight() + SPAN_OVERHEAD).sum();
    assert_eq!(store.stats().bytes, weighed);
}

#[tokio::test]
async fn a_kind_that_comes_late_is_not_a_second_span() {
    let store = Store::new();
    let part = json!([{"traceId": "a", "id": "5", "timestamp": 5}]);
    let whole = json!([{"traceId": "a", "id": "5", "kind": "SERVER", "duration": 7}]);
    for batch in [&part, &whole, &whole, &part] {
        send(&store, batch).await;
    }
    let spans = store.trace(parse_trace_id("a").unwrap()).unwrap();
    assert_eq!((spans.len(), spans[0].timestamp, spans[0].duration, spans[0].kind), (1, Some(5), Some(7), Some(Kind::Server)));
}

#[tokio::test]
async fn a_batch_that_is_wrong_is_refused_whole_and_told_why() {
    let store = Store::new();
    let mut batch = chain("a");
    batch[3]["kind"] = json!("BOTH");
    let (status, why) = refused(&store, &[], batch.to_string()).await;
    assert_eq!(status, 400);
    assert!(why.starts_with("not a list of Zipkin v2 spans: spans[3].kind: unknown variant `BOTH`"), "{why}");
    assert_eq!(refused(&store, &[], "hello").await.0, 400);
    assert_eq!(refused(&store, &[], vec![0xff; 100]).await.0, 400);
    assert_eq!(store.stats(), Stats::default());
}

#[tokio::test]
async fn protobuf_thrift_and_unknown_encodings_are_named_in_the_refusal() {
    let store = Store::new();
    for (headers, told) in [
        ([("content-type", "application/x-protobuf")], "not protobuf"),
        ([("content-type", "application/x-thrift")], "not thrift"),
        ([("content-encoding", "br")], "content-encoding: gzip"),
    ] {
        let (status, why) = refused(&store, &headers, chain("a").to_string()).await;
        assert_eq!(status, 415);
        assert!(why.contains(told), "{why}");
    }
}

#[tokio::test]
async fn gzip_is_read_up_to_the_limit_and_no_further() {
    let store = Store::new();
    let body = gzip(chain("a").to_string().as_bytes());
    let request = http::Request::post("/api/v2/spans").header("content-encoding", "gzip").body(Body::from(body)).unwrap();
    assert_eq!(call(&store, request).await.0, 202);
    assert_eq!(store.stats().spans, 5);
    let bomb = gzip(&vec![b' '; 64 << 20]);
    assert!(bomb.len() < MAX_BODY);
    assert_eq!(refused(&store, &[("content-encoding", "gzip")], bomb).await.0, 413);
    assert_eq!(refused(&store, &[("content-encoding", "gzip")], "not gzip").await.0, 400);
}

#[tokio::test]
async fn a_batch_above_the_limit_is_413_announced_or_not() {
    let store = Store::new();
    let large = vec![b' '; MAX_BODY + 1];
    assert_eq!(refused(&store, &[("content-length", "4194305")], large.clone()).await.0, 413);
    assert_eq!(refused(&store, &[], large).await.0, 413);
    let store = Store::with_limits(Limits { spans: 4, ..Limits::default() });
    assert_eq!(refused(&store, &[], chain("a").to_string()).await.0, 413);
}

#[tokio::test]
async fn traces_are_found_by_every_parameter_of_zipkin() {
    let store = Store::new();
    send(&store, &chain("a")).await;
    send(
        &store,
        &json!([{"traceId": "b", "id": "1", "kind": "SERVER", "name": "GET /service{n}", "timestamp": T0 + 5_000_000, "duration": 9000,
            "localEndpoint": {"serviceName": "service1"}, "remoteEndpoint": {"serviceName": "gateway"},
            "tags": {"http.method": "GET", "error": ""}, "annotations": [{"timestamp": T0, "value": "retry"}]}]),
    )
    .await;
    let end = T0 / 1000 + 60_000;
    let found = async |query: &str| -> Vec<String> {
        let traces = fetch_json(&store, &format!("/api/v2/traces?endTs={end}&{query}")).await;
        traces
            .as_array()
            .unwrap()
            .iter()
            .map(|trace| trace[0]["traceId"].as_str().unwrap().trim_start_matches('0').into())
            .collect()
    };
    assert_eq!(found("").await, ["b", "a"], "the newest first");
    assert_eq!(found("limit=1").await, ["b"]);
    assert_eq!(found("serviceName=Service3").await, ["a"]);
    assert_eq!(found("spanName=get%20/service%7Bn%7D").await, ["b"]);
    assert_eq!(found("spanName=all").await, ["b", "a"]);
    assert_eq!(found("remoteServiceName=gateway").await, ["b"]);
    assert_eq!(found("minDuration=1001").await, ["b"]);
    assert_eq!(found("minDuration=500&maxDuration=1000").await, ["a"]);
    assert_eq!(found("annotationQuery=error").await, ["b"]);
    assert_eq!(found("annotationQuery=http.method%3DGET%20and%20retry").await, ["b"]);
    assert_eq!(found("annotationQuery=http.method%3DPOST").await, [""; 0]);
    assert_eq!(found("serviceName=service2&annotationQuery=error").await, [""; 0]);
    assert_eq!(found("lookback=57000").await, ["b"]);
    assert_eq!(fetch_json(&store, &format!("/api/v2/traces?endTs={}", T0 / 1000)).await[0][0]["traceId"], "000000000000000a");
    assert_eq!(fetch_json(&store, "/api/v2/traces").await, json!([]), "a day is looked back, and these are older");
    for query in ["limit=0", "lookback=0", "endTs=0", "maxDuration=5", "minDuration=0", "minDuration=5&maxDuration=4", "limit=x"]
    {
        assert_eq!(fetch(&store, &format!("/api/v2/traces?{query}")).await.0, 400, "{query}");
    }
}

#[tokio::test]
async fn a_span_of_this_very_millisecond_is_found_without_a_time() {
    let store = Store::new();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
    send(&store, &json!([{"traceId": "a", "id": "1", "timestamp": now}])).await;
    assert_eq!(fetch_json(&store, "/api/v2/traces").await[0][0]["id"], "0000000000000001");
}

async fn links(spans: &Value) -> Value {
    let store = Store::new();
    send(&store, spans).await;
    fetch_json(&store, &format!("/api/v2/dependencies?endTs={}", T0 / 1000 + 1)).await
}

#[tokio::test]
async fn dependencies_count_each_call_once() {
    let between = |calls: &[(&str, &str)]| -> Value {
        calls.iter().map(|(parent, child)| json!({"parent": parent, "child": child, "callCount": 1})).collect()
    };
    assert_eq!(links(&chain("a")).await, between(&[("service1", "service2"), ("service2", "service3")]));
    // One id for both halves of a call.
    let mut shared = span("a", "2", Some("1"), "SERVER", "service2");
    shared["shared"] = json!(true);
    let front = [span("a", "1", None, "SERVER", "service1"), span("a", "2", Some("1"), "CLIENT", "service1")];
    assert_eq!(links(&json!([front[0], front[1], shared])).await, between(&[("service1", "service2")]));
    // A database does not report: the client's word counts.
    let mut leaf = span("a", "2", Some("1"), "CLIENT", "service1");
    leaf["remoteEndpoint"] = json!({"serviceName": "mysql"});
    assert_eq!(links(&json!([front[0], leaf])).await, between(&[("service1", "mysql")]));
    // Work inside a service stands between server and client; the root's caller is known by name only.
    let mut root = front[0].clone();
    root["remoteEndpoint"] = json!({"serviceName": "gateway"});
    let local = json!({"traceId": "a", "id": "9", "parentId": "1", "localEndpoint": {"serviceName": "service1"}});
    let call = span("a", "2", Some("9"), "CLIENT", "service1");
    let served = span("a", "3", Some("2"), "SERVER", "service2");
    assert_eq!(links(&json!([root, local, call, served])).await, between(&[("gateway", "service1"), ("service1", "service2")]));
}

#[tokio::test]
async fn an_error_on_either_side_of_a_call_counts_once() {
    for side in [3, 4] {
        let mut spans = chain("a");
        spans[side]["tags"] = json!({"error": "503"});
        let links = links(&spans).await;
        assert_eq!(links[1], json!({"parent": "service2", "child": "service3", "callCount": 1, "errorCount": 1}), "{side}");
        assert_eq!(links[0].get("errorCount"), None);
    }
}

#[tokio::test]
async fn the_trace_that_came_first_goes_first_whatever_time_it_claims() {
    let limits = Limits { traces: 3, ..Limits::default() };
    let store = Store::with_limits(limits);
    for (trace, timestamp) in [("a", u64::MAX), ("b", 1), ("c", 5), ("d", 2)] {
        send(&store, &json!([{"traceId": trace, "id": "1", "timestamp": timestamp}])).await;
    }
    let ids: Vec<String> = store.trace_ids().iter().map(|id| id.to_string().trim_start_matches('0').into()).collect();
    assert_eq!(ids, ["d", "c", "b"]);
    assert_eq!((store.stats().evicted_traces, store.stats().spans), (1, 3));
    assert_eq!(store.trace(parse_trace_id("a").unwrap()), None);
}

#[tokio::test]
async fn spans_and_bytes_are_bounded_and_the_accounts_return_to_what_is_held() {
    let store = Store::with_limits(Limits { spans: 10, bytes: 20_000, ..Limits::default() });
    for trace in 1..50 {
        send(&store, &chain(&format!("{trace:x}"))).await;
        assert!(store.stats().spans <= 10 && store.stats().bytes <= 20_000, "{:?}", store.stats());
    }
    assert_eq!(store.stats().traces, 2);
    for trace in 50..60 {
        send(&store, &json!([{"traceId": format!("{trace:x}"), "id": "1", "tags": {"text": "x".repeat(9_000)}}])).await;
    }
    let held: usize = store.snapshot().iter().flatten().map(|span| span.weight() + SPAN_OVERHEAD).sum();
    assert_eq!((store.stats().traces, store.stats().bytes), (2, held));
}

#[tokio::test]
async fn a_huge_trace_is_cut_says_so_and_pushes_nothing_out() {
    let store = Store::with_limits(Limits { trace_spans: 3, trace_bytes: 100_000, ..Limits::default() });
    send(&store, &chain("1").as_array().unwrap()[..3].into()).await;
    let request = |body: Value| http::Request::post("/api/v2/spans").body(Body::from(body.to_string())).unwrap();
    let (status, _, told) = call(&store, request(chain("2"))).await;
    assert_eq!((status, told.as_str()), (StatusCode::ACCEPTED, "2 spans were not kept: their trace is at its bound (3 spans)\n"));
    // A known span of a full trace is still brought up to date, but not beyond the bytes of a trace.
    assert_eq!(call(&store, request(chain("2").as_array().unwrap()[..3].into())).await.2, "");
    let mut fat = chain("2")[0].clone();
    fat["tags"] = json!({"text": "x".repeat(100_000)});
    assert!(call(&store, request(json!([fat]))).await.2.starts_with("1 spans were not kept"));
    fat["traceId"] = json!("3");
    assert!(call(&store, request(json!([fat]))).await.2.starts_with("1 spans were not kept"));
    let (status, headers, _) = call(&store, http::Request::get("/api/v2/trace/2").body(Body::empty()).unwrap()).await;
    assert_eq!((status, headers["x-spans-dropped"].to_str().unwrap()), (StatusCode::OK, "3"));
    assert_eq!((store.dropped(parse_trace_id("1").unwrap()), store.dropped(parse_trace_id("2").unwrap())), (0, 3));
    let stats = store.stats();
    assert_eq!((stats.traces, stats.spans, stats.dropped_spans, stats.evicted_traces), (2, 6, 4, 0));
}

#[tokio::test]
async fn subscribers_hear_of_each_trace_once_a_batch_and_a_slow_one_loses_only_notifications() {
    let store = Store::new();
    let mut arrivals = store.subscribe();
    send(&store, &chain("a")).await;
    assert_eq!(arrivals.try_recv(), Ok(parse_trace_id("a").unwrap()));
    assert_eq!(arrivals.try_recv(), Err(TryRecvError::Empty));
    let many: Value = (1..=1500).map(|trace| json!({"traceId": format!("{trace:x}"), "id": "1"})).collect();
    send(&store, &many).await;
    assert!(matches!(arrivals.try_recv(), Err(TryRecvError::Lagged(_))));
    assert_eq!(store.stats().traces, Limits::default().traces);
}

#[tokio::test]
async fn a_long_answer_is_whole_json_in_several_pieces() {
    let store = Store::new();
    let many: Value =
        (1..=600).map(|trace| span(&format!("{:x}", 1 + trace / 3), &format!("{trace:x}"), None, "SERVER", "s")).collect();
    send(&store, &many).await;
    let response = store
        .router()
        .call(http::Request::get(format!("/api/v2/traces?limit=1000&endTs={}", T0 / 1000 + 1)).body(Body::empty()).unwrap());
    let mut body = response.await.unwrap().into_body();
    let mut pieces = Vec::new();
    while let Some(frame) = body.frame().await {
        pieces.push(frame.unwrap().into_data().unwrap());
    }
    assert!(pieces.len() > 1);
    let traces: Vec<Vec<Value>> = serde_json::from_slice(&pieces.concat()).unwrap();
    assert_eq!(traces.iter().map(Vec::len).sum::<usize>(), 600);
}

async fn post_otlp(store: &Store, kind: &str, encoding: Option<&str>, body: Vec<u8>) -> (StatusCode, HeaderMap, Vec<u8>) {
    let mut request = http::Request::post("/v1/traces").header("content-type", kind);
    if let Some(encoding) = encoding {
        request = request.header("content-encoding", encoding);
    }
    let (head, body) = store.router().call(request.body(Body::from(body)).unwrap()).await.unwrap().into_parts();
    (head.status, head.headers, body.collect().await.unwrap().to_bytes().into())
}

#[tokio::test]
async fn otlp_is_taken_as_protobuf_and_json_and_answered_in_the_same_form() {
    use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
    use opentelemetry_proto::tonic::trace::v1 as otlp;
    use prost::Message as _;

    let store = Store::with_limits(Limits { trace_spans: 2, ..Limits::default() });
    let span = |trace: u8, id: u8| otlp::Span {
        trace_id: vec![trace; 16],
        span_id: if id == 0 { Vec::new() } else { vec![id; 8] },
        ..otlp::Span::default()
    };
    let request = |spans: Vec<otlp::Span>| ExportTraceServiceRequest {
        resource_spans: vec![otlp::ResourceSpans {
            scope_spans: vec![otlp::ScopeSpans { spans, ..Default::default() }],
            ..Default::default()
        }],
    };
    let whole = request(vec![span(1, 1), span(1, 2)]).encode_to_vec();
    let (status, headers, body) = post_otlp(&store, "application/x-protobuf", Some("gzip"), gzip(&whole)).await;
    assert_eq!((status.as_u16(), &headers["content-type"], body.len()), (200, &"application/x-protobuf".parse().unwrap(), 0));
    let id = "01010101010101010101010101010101";
    assert_eq!(fetch_json(&store, &format!("/api/v2/trace/{id}")).await.as_array().unwrap().len(), 2);
    // What is not kept is told, as the protocol has it.
    let part = request(vec![span(1, 3), span(2, 0), span(2, 1)]).encode_to_vec();
    let (status, _, body) = post_otlp(&store, "application/x-protobuf", None, part).await;
    let partial = ExportTraceServiceResponse::decode(&*body).unwrap().partial_success.unwrap();
    assert_eq!((status.as_u16(), partial.rejected_spans), (200, 2));
    assert!(partial.error_message.contains("without ids"), "{}", partial.error_message);
    let json =
        json!({"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "03".repeat(16), "spanId": "03".repeat(8)}, {}]}]}]});
    let (status, headers, body) = post_otlp(&store, "application/json; charset=utf-8", None, json.to_string().into_bytes()).await;
    assert_eq!((status.as_u16(), &headers["content-type"]), (200, &"application/json".parse().unwrap()));
    let told: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(told["partialSuccess"]["rejectedSpans"], "1");
    assert_eq!(fetch_json(&store, &format!("/api/v2/trace/{}", "03".repeat(16))).await[0]["id"], "0303030303030303");
    for (kind, body, expected, said) in [
        ("application/json", b"{".to_vec(), 400, "not an ExportTraceServiceRequest in JSON"),
        ("application/x-protobuf", b"hello".to_vec(), 400, "in protobuf"),
        ("application/json", vec![b' '; MAX_BODY + 1], 413, "several smaller ones"),
        (
            "application/x-protobuf",
            [&[0x0a, 0x85, 0x80, 0x80, 0x01, 0x12, 0x80, 0x80, 0x80, 0x01][..], &[0x12, 0].repeat(1 << 20)].concat(),
            413,
            "smaller ones",
        ),
        ("text/plain", Vec::new(), 415, "application/x-protobuf"),
    ] {
        let (status, _, body) = post_otlp(&store, kind, None, body).await;
        assert_eq!(status.as_u16(), expected);
        assert!(String::from_utf8_lossy(&body).contains(said), "{}", String::from_utf8_lossy(&body));
    }
    assert_eq!(post_otlp(&store, "application/json", Some("zstd"), b"{}".to_vec()).await.0, 415);
}
