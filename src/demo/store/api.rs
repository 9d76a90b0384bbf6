//! The store behind Zipkin's v2 API, and behind OTLP over HTTP.
//!
//! A body is read only up to [`MAX_BODY`] decompressed bytes, by at most [`MAX_POSTS`] requests at once; answers are written
//! trace by trace, never as a whole.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::sync::SemaphorePermit;
use tower_http::decompression::RequestDecompressionLayer;

use crate::demo::access::text;
use crate::demo::store::query::{TraceQuery, Window, begin_us, same};
use crate::demo::store::{Store, otlp};
use crate::traces::dependencies::Dependencies;
use crate::traces::ids::{parse_trace_id, zipkin_id};
use crate::traces::{DecodeError, Span, decode};

/// Bytes of one posted batch after decompression. A batch of our own exporter is some 0.5 MiB at most.
pub const MAX_BODY: usize = 4 << 20;

/// How much of a body that is too large is read and discarded before its connection is given up.
const MAX_DISCARDED: usize = 64 << 20;

/// How many batches are read and decoded at once; more wait with nothing but their head in memory.
pub const MAX_POSTS: usize = 16;

/// How long a batch may take to arrive after its head, so that silent senders do not occupy all the places.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Where spans in OTLP are sent to.
const OTLP_PATH: &str = "/v1/traces";

/// Traces in an answer, Zipkin's default.
const DEFAULT_LIMIT: usize = 10;

/// On an answer with a trace that was cut: how many reports of spans were not kept.
static SPANS_DROPPED: HeaderName = HeaderName::from_static("x-spans-dropped");

/// The API's routes over `store`.
pub(super) fn router(store: Store) -> Router {
    Router::new()
        .route("/api/v2/spans", posted(post(post_spans)).get(span_names))
        .route(OTLP_PATH, posted(post(otlp::post_traces)))
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
    Router::new().route(OTLP_PATH, posted(post(otlp::post_traces))).with_state(store)
}

/// Decompresses what is posted. A body in another encoding reaches the handler as it is, which refuses it in words.
fn posted(route: MethodRouter<Store>) -> MethodRouter<Store> {
    route
        .layer(RequestDecompressionLayer::new().pass_through_unaccepted(true))
        .layer(axum::middleware::map_request(plain_encoding))
}

/// Writes the names of encodings as `RequestDecompressionLayer` expects them: it knows no other case, and not `x-gzip`.
async fn plain_encoding(mut request: Request) -> Request {
    if let Some(encoding) = request.headers().get(header::CONTENT_ENCODING).and_then(|value| value.to_str().ok()) {
        let name = encoding.trim().to_ascii_lowercase();
        let name = if name == "x-gzip" { "gzip" } else { &name };
        if let Ok(value) = HeaderValue::from_str(name) {
            request.headers_mut().insert(header::CONTENT_ENCODING, value);
        }
    }
    request
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

pub(super) type Refusal = (StatusCode, String);

async fn accept(store: &Store, request: Request) -> Result<u64, Refusal> {
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

/// A posted body, and the place that it has among those that are read at once.
pub(super) async fn receive<'a>(
    store: &'a Store,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Vec<u8>, SemaphorePermit<'a>), Refusal> {
    let place = store.post_permit().await.ok_or((StatusCode::SERVICE_UNAVAILABLE, "closed".into()))?;
    let late = |_| (StatusCode::REQUEST_TIMEOUT, format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs()));
    let body = tokio::time::timeout(BODY_TIMEOUT, read(body)).await.map_err(late)??;
    require_plain(headers)?;
    Ok((body, place))
}

/// Why a body was not decoded. `what` was expected.
pub(super) fn refusal(error: &DecodeError, what: &str) -> Refusal {
    match error {
        DecodeError::TooMany(_) | DecodeError::TooLarge => {
            (StatusCode::PAYLOAD_TOO_LARGE, format!("a batch has {error}; send several smaller ones"))
        }
        DecodeError::Invalid(why) => (StatusCode::BAD_REQUEST, format!("not {what}: {why}")),
    }
}

/// The whole decompressed body. `RequestBodyLimitLayer` would answer at once and close the connection on a sender that is still
/// writing, which loses it the answer; so the rest of a body that is too large is read for a while and discarded.
async fn read(mut body: Body) -> Result<Vec<u8>, Refusal> {
    let (mut kept, mut length) = (Vec::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| (StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length <= MAX_BODY {
            kept.extend_from_slice(&data);
        } else if length <= MAX_DISCARDED {
            kept = Vec::new();
        } else {
            break;
        }
    }
    if length > MAX_BODY {
        let message = format!("a batch may have {MAX_BODY} bytes; send several smaller ones");
        return Err((StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    Ok(kept)
}

/// Refuses the encodings that Zipkin servers take and this store does not. Anything else is tried as JSON, as in Zipkin:
/// `curl -d` sends a form's type, and some reporters send none.
fn require_json(headers: &HeaderMap) -> Result<(), Refusal> {
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

/// Refuses an encoding that was not decompressed on the way here.
fn require_plain(headers: &HeaderMap) -> Result<(), Refusal> {
    match headers.get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"" | b"identity") => Ok(()),
        Some(_) => {
            Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "this store takes bodies as they are or with content-encoding: gzip".into()))
        }
    }
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
