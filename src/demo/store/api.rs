//! The store behind Zipkin's v2 API, and behind OTLP over HTTP and gRPC.
//!
//! Answers are written trace by trace, never as a whole.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Deserialize;

use crate::demo::access::text;
use crate::demo::store::query::{TraceQuery, Window, begin_us, same};
use crate::demo::store::receive::{BatchRefusal, posted, receive, refusal};
use crate::demo::store::{Store, grpc, otlp};
use crate::traces::dependencies::Dependencies;
use crate::traces::ids::{parse_trace_id, zipkin_id};
use crate::traces::{Span, decode};

/// Where spans in OTLP are sent to.
const OTLP_PATH: &str = "/v1/traces";
const GRPC_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// Traces in an answer, Zipkin's default.
const DEFAULT_LIMIT: usize = 10;

/// On an answer with a trace that was cut: how many reports of spans were not kept.
static SPANS_DROPPED: HeaderName = HeaderName::from_static("x-spans-dropped");

/// The API's routes over `store`.
pub(super) fn router(store: Store) -> Router {
    Router::new()
        .route("/api/v2/spans", posted(post(post_spans)).get(span_names))
        .route(OTLP_PATH, posted(post(otlp::post_traces)))
        .route(GRPC_PATH, post(grpc::export))
        .route("/api/v2/services", get(service_names))
        .route("/api/v2/traces", get(find_traces))
        .route("/api/v2/trace/{id}", get(one_trace))
        .route("/api/v2/traceMany", get(many_traces))
        .route("/api/v2/dependencies", get(dependencies))
        .route("/health", get(health))
        .with_state(store)
}

/// OTLP alone.
pub(super) fn otlp_router(store: Store) -> Router {
    Router::new().route(OTLP_PATH, posted(post(otlp::post_traces))).route(GRPC_PATH, post(grpc::export)).with_state(store)
}

async fn post_spans(State(store): State<Store>, request: Request) -> Response {
    match accept(&store, request).await {
        Ok(0) => StatusCode::ACCEPTED.into_response(),
        Ok(dropped) => {
            let max = store.limits().trace_spans;
            text(StatusCode::ACCEPTED, format!("{dropped} spans were not kept: their trace is at its bound ({max} spans)"))
        }
        Err((status, message)) => text(status, message),
    }
}

async fn accept(store: &Store, request: Request) -> Result<u64, BatchRefusal> {
    let (head, body) = request.into_parts();
    let (body, _place) = receive(store, &head.headers, body).await?;
    require_json(&head.headers)?;
    if body.is_empty() {
        return Ok(0);
    }
    let _turn = store.turn_to_decode().await;
    // More spans than the store keeps would only push each other out.
    let spans = decode(&body, store.limits().spans).map_err(|error| refusal(&error, "a list of Zipkin v2 spans"))?;
    Ok(store.insert(spans))
}

/// Refuses the encodings that Zipkin servers take and this store does not. Anything else is tried as JSON, as in Zipkin:
/// `curl -d` sends a form's type, and some reporters send none.
fn require_json(headers: &HeaderMap) -> Result<(), BatchRefusal> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
    for (format, hint) in [
        ("protobuf", "set the reporter's encoding to JSON, or send OTLP to /v1/traces"),
        ("thrift", "that is Zipkin's v1 format"),
    ] {
        if kind.contains(format) {
            let message = format!("this store takes Zipkin v2 JSON (application/json), not {format}: {hint}");
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
    }
    Ok(())
}

async fn service_names(State(store): State<Store>) -> Json<BTreeSet<Box<str>>> {
    let traces = store.snapshot();
    Json(traces.iter().flatten().filter_map(|span| span.service().map(Box::from)).collect())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfService {
    service_name: String,
}

async fn span_names(State(store): State<Store>, Query(of): Query<OfService>) -> Json<BTreeSet<Box<str>>> {
    let traces = store.snapshot();
    let spans = traces.iter().flatten().filter(|span| span.service().is_some_and(|name| same(name, &of.service_name)));
    Json(spans.filter_map(|span| span.name.clone()).collect())
}

async fn find_traces(State(store): State<Store>, Query(query): Query<TraceQuery>) -> Response {
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT);
    if limit == 0 {
        return text(StatusCode::BAD_REQUEST, "limit is a number of traces above 0");
    }
    let filter = match query.filter() {
        Ok(filter) => filter,
        Err(message) => return text(StatusCode::BAD_REQUEST, message),
    };
    let mut found = store.snapshot();
    found.retain(|spans| filter.matches(spans));
    found.sort_by_cached_key(|spans| std::cmp::Reverse(begin_us(spans)));
    found.truncate(limit);
    traces(found)
}

async fn one_trace(State(store): State<Store>, Path(id): Path<String>) -> Response {
    let id = match parse_trace_id(&id) {
        Ok(id) => id,
        Err(error) => return text(StatusCode::BAD_REQUEST, error.to_string()),
    };
    let Some(spans) = store.trace(id) else {
        return text(StatusCode::NOT_FOUND, format!("{} not found", zipkin_id(id)));
    };
    let mut response = json_body(Body::from(to_json(&spans)));
    let dropped = store.dropped(id);
    if dropped > 0 {
        response.headers_mut().insert(SPANS_DROPPED.clone(), dropped.into());
    }
    response
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Many {
    trace_ids: String,
}

async fn many_traces(State(store): State<Store>, Query(many): Query<Many>) -> Response {
    let mut ids = Vec::new();
    for text_id in many.trace_ids.split(',').map(str::trim).filter(|id| !id.is_empty()) {
        match parse_trace_id(text_id) {
            Ok(id) if ids.contains(&id) => {}
            Ok(_) if ids.len() == store.limits().traces => break,
            Ok(id) => ids.push(id),
            Err(error) => {
                return text(StatusCode::BAD_REQUEST, format!("traceIds: {error}"));
            }
        }
    }
    if ids.is_empty() {
        return text(StatusCode::BAD_REQUEST, "traceIds: expected ids separated by commas");
    }
    traces(ids.into_iter().filter_map(|id| store.trace(id)).collect())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Period {
    end_ts: Option<u64>,
    lookback: Option<u64>,
}

async fn dependencies(State(store): State<Store>, Query(period): Query<Period>) -> Response {
    let window = match Window::new(period.end_ts, period.lookback) {
        Ok(window) => window,
        Err(message) => return text(StatusCode::BAD_REQUEST, message),
    };
    let mut found = Dependencies::default();
    for spans in store.snapshot() {
        if begin_us(&spans).is_some_and(|begin| window.holds(begin)) {
            found.add(&spans);
        }
    }
    Json(found.into_links()).into_response()
}

async fn health(State(store): State<Store>) -> Response {
    // The shape of Zipkin's own health answer, and this store's figures beside it.
    let up = serde_json::json!({"status": "UP"});
    Json(serde_json::json!({
        "status": "UP",
        "zipkin": {"status": "UP", "details": {"InMemoryStorage{}": up}},
        "store": store.stats(),
    }))
    .into_response()
}

type Spans = Vec<Arc<Span>>;

fn to_json(spans: &Spans) -> Vec<u8> {
    // Writing to memory does not fail, and no key of a span is anything but a string.
    let spans: Vec<&Span> = spans.iter().map(AsRef::as_ref).collect();
    serde_json::to_vec(&spans).unwrap_or_default()
}

fn json_body(body: Body) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

/// A list of traces, written trace by trace: a reader that asks for everything, slowly, costs one trace and not all of them.
fn traces(traces: Vec<Spans>) -> Response {
    json_body(Body::from_stream(stream::iter(pieces(traces).map(Ok::<_, Infallible>))))
}

fn pieces(traces: Vec<Spans>) -> impl Iterator<Item = Bytes> {
    let pieces = traces.into_iter().enumerate().map(|(n, spans)| {
        let mut piece = if n == 0 { Vec::new() } else { vec![b','] };
        piece.extend(to_json(&spans));
        Bytes::from(piece)
    });
    std::iter::once(Bytes::from_static(b"[")).chain(pieces).chain(std::iter::once(Bytes::from_static(b"]")))
}
