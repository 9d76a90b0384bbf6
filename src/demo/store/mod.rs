//! The trace store: takes spans by the Zipkin v2 API, keeps the newest in memory, answers the API's questions.
//!
//! It forgets rather than grows. Whatever is sent to it, spans, text and bookkeeping together stay within [`Limits`]; a body
//! is read only up to [`MAX_BODY`], by at most [`MAX_POSTS`] requests at once; answers are written piece by piece, never as a whole.
//! The work for a batch is linear in its size.

pub(crate) mod forward;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{convert::Infallible, vec};

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body::Frame;
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, broadcast};

use crate::traces::dependencies::Dependencies;
use crate::traces::ids::{parse_trace_id, zipkin_id};
use crate::traces::{DecodeError, Kind, Span, SpanId, Trace, TraceId, decode};

/// Bytes of one posted batch, before and after decompression. A batch of our own exporter is some 0.5 MiB at most.
pub const MAX_BODY: usize = 4 << 20;

/// How much of a body that is too large is read and thrown away before its connection is given up.
const MAX_DISCARDED: usize = 64 << 20;

/// How many batches are read and decoded at once; more wait with nothing but their head in memory.
pub const MAX_POSTS: usize = 16;

/// How long a batch may take to arrive after its head, so that silent senders do not hold all the places.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Notifications that a slow subscriber may fall behind before it loses the oldest.
const NOTIFICATIONS: usize = 1024;

/// Zipkin's defaults for queries.
const DEFAULT_LIMIT: usize = 10;
const DEFAULT_LOOKBACK_MS: u64 = 24 * 60 * 60 * 1000;

/// Memory for one span beside the span itself: its place in its trace and in the trace's index, the allocator's share.
const SPAN_OVERHEAD: usize = 128;

/// On an answer with a trace that was cut: how many reports of spans were not kept.
static SPANS_DROPPED: HeaderName = HeaderName::from_static("x-spans-dropped");

/// How much the store keeps. When a bound of the whole store is passed, the trace whose first span arrived earliest goes.
///
/// Age is arrival, not what spans claim: a timestamp from the year 3000 must not make a trace immortal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Traces. 1,000: more than a person looks through.
    pub traces: usize,
    /// Spans of all traces. 50,000: what a list of 1,000 traces of 50 spans needs; a question looks at all of them in milliseconds.
    pub spans: usize,
    /// Bytes of all spans, text and bookkeeping included. 32 MiB: nobody minds that on a laptop or in a small container.
    pub bytes: usize,
    /// Spans of one trace. 5,000: a waterfall that long is no longer read, and one runaway trace cannot push all others out.
    pub trace_spans: usize,
    /// Bytes of one trace. 4 MiB, for the same reason.
    pub trace_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { traces: 1_000, spans: 50_000, bytes: 32 << 20, trace_spans: 5_000, trace_bytes: 4 << 20 }
    }
}

/// What the store holds and what it had to let go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Traces held.
    pub traces: usize,
    /// Spans held.
    pub spans: usize,
    /// Bytes held, about.
    pub bytes: usize,
    /// Traces that made room for newer ones.
    pub evicted_traces: u64,
    /// Spans not kept because their trace was at its own bound.
    pub dropped_spans: u64,
}

/// A handle to the store. Clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    // A std mutex: it is never held across an await, and what is done under it is short.
    held: Mutex<Held>,
    limits: Limits,
    arrivals: broadcast::Sender<TraceId>,
    posts: Semaphore,
    services: RandomState,
}

#[derive(Debug, Default)]
struct Held {
    traces: HashMap<TraceId, Entry>,
    /// The ids of `traces`, oldest arrival first.
    order: VecDeque<TraceId>,
    spans: usize,
    bytes: usize,
    evicted_traces: u64,
    dropped_spans: u64,
}

#[derive(Debug, Default)]
struct Entry {
    spans: Vec<Arc<Span>>,
    index: HashMap<Key, usize>,
    bytes: usize,
    dropped: u64,
}

/// What makes two reports the same span: its id, its side of the call, and a hash of who reported it. Both halves of a call
/// may have one id, so the id alone does not do; the hash has a random key, so that nobody can prepare a collision.
type Key = (SpanId, Option<Kind>, u64);

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// An empty store with the default [`Limits`].
    pub fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    /// An empty store with limits of its own.
    pub fn with_limits(limits: Limits) -> Self {
        Self {
            shared: Arc::new(Shared {
                held: Mutex::default(),
                limits,
                arrivals: broadcast::Sender::new(NOTIFICATIONS),
                posts: Semaphore::new(MAX_POSTS),
                services: RandomState::new(),
            }),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // A panic under the lock could at worst leave the counts off by one batch; a demo goes on.
        self.shared.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes spans in, tells the subscribers, and returns how many were not kept because their trace was at its bound.
    pub fn insert(&self, spans: Vec<Span>) -> u64 {
        let mut touched = HashSet::new();
        let mut arrived = Vec::new();
        let mut dropped = 0;
        let mut held = self.held();
        for span in spans {
            let trace = span.trace_id;
            let service = self.shared.services.hash_one(span.service());
            if held.insert(span, service, &self.shared.limits) {
                if touched.insert(trace) {
                    arrived.push(trace);
                }
            } else {
                dropped += 1;
            }
        }
        drop(held);
        for trace in arrived {
            // An error only says that nobody listens.
            let _ = self.shared.arrivals.send(trace);
        }
        dropped
    }

    /// The spans of a trace in the order in which they arrived; `None` when the store has none.
    pub fn trace(&self, id: TraceId) -> Option<Vec<Arc<Span>>> {
        self.held().traces.get(&id).map(|entry| entry.spans.clone())
    }

    /// The tree of a trace as the store has it now.
    pub fn tree(&self, id: TraceId) -> Option<Trace> {
        let (spans, dropped) = self.held().traces.get(&id).map(|entry| (entry.spans.clone(), entry.dropped))?;
        Some(Trace::new(spans)?.with_dropped(dropped))
    }

    /// How many reports of spans of this trace were not kept because it was at its bound. 0 for a trace that is whole.
    pub fn dropped(&self, id: TraceId) -> u64 {
        self.held().traces.get(&id).map_or(0, |entry| entry.dropped)
    }

    /// The ids of all traces, the latest arrival first.
    pub fn trace_ids(&self) -> Vec<TraceId> {
        self.held().order.iter().rev().copied().collect()
    }

    /// A notification for every trace of every batch that arrives from now on. A receiver that falls more than 1,024
    /// notifications behind loses the oldest of them (`Lagged`), never spans: ask [`trace_ids`](Self::trace_ids) then.
    pub fn subscribe(&self) -> broadcast::Receiver<TraceId> {
        self.shared.arrivals.subscribe()
    }

    /// What is held, and what had to go.
    pub fn stats(&self) -> Stats {
        let held = self.held();
        Stats {
            traces: held.traces.len(),
            spans: held.spans,
            bytes: held.bytes,
            evicted_traces: held.evicted_traces,
            dropped_spans: held.dropped_spans,
        }
    }

    /// The Zipkin v2 API: `POST /api/v2/spans`, the `GET`s below `/api/v2` and `/health`.
    ///
    /// No cross-origin access is granted. Errors are plain text. Whoever serves it decides who may reach it.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/api/v2/spans", post(post_spans).get(span_names))
            .route("/api/v2/services", get(service_names))
            .route("/api/v2/traces", get(find_traces))
            .route("/api/v2/trace/{id}", get(one_trace))
            .route("/api/v2/traceMany", get(many_traces))
            .route("/api/v2/dependencies", get(dependencies))
            .route("/health", get(health))
            .with_state(self.clone())
    }

    fn snapshot(&self) -> Vec<Vec<Arc<Span>>> {
        self.held().traces.values().map(|entry| entry.spans.clone()).collect()
    }
}

impl Held {
    /// Returns whether the span is now part of its trace.
    fn insert(&mut self, span: Span, service: u64, limits: &Limits) -> bool {
        let id = span.trace_id;
        let weight = span.weight() + SPAN_OVERHEAD;
        if !self.traces.contains_key(&id) {
            if weight > limits.trace_bytes || limits.trace_spans == 0 {
                self.dropped_spans += 1;
                return false;
            }
            self.order.push_back(id);
        }
        let entry = self.traces.entry(id).or_default();
        let before = entry.bytes;
        let known = entry.find(&span, service);
        let kept = match known {
            Some((key, at)) => {
                let old = &entry.spans[at];
                let new = old.updated(span);
                let bytes = entry.bytes - old.weight() + new.weight();
                let fits = bytes <= limits.trace_bytes;
                if fits {
                    if key.1 != new.kind {
                        entry.index.remove(&key);
                        entry.index.insert((new.id, new.kind, service), at);
                    }
                    entry.bytes = bytes;
                    entry.spans[at] = Arc::new(new);
                }
                fits
            }
            None => {
                let fits = entry.spans.len() < limits.trace_spans && entry.bytes + weight <= limits.trace_bytes;
                if fits {
                    entry.index.insert((span.id, span.kind, service), entry.spans.len());
                    entry.bytes += weight;
                    entry.spans.push(Arc::new(span));
                    self.spans += 1;
                }
                fits
            }
        };
        if !kept {
            entry.dropped += 1;
            self.dropped_spans += 1;
        }
        self.bytes = self.bytes - before + entry.bytes;
        while self.traces.len() > limits.traces || self.spans > limits.spans || self.bytes > limits.bytes {
            self.evict_oldest();
        }
        kept
    }

    fn evict_oldest(&mut self) {
        let Some(entry) = self.order.pop_front().and_then(|id| self.traces.remove(&id)) else { return };
        self.spans -= entry.spans.len();
        self.bytes -= entry.bytes;
        self.evicted_traces += 1;
    }
}

impl Entry {
    /// The earlier report of the same span. A report without a kind goes with the one that has it: tracers that report a
    /// span in parts may leave the kind out of one of them.
    fn find(&self, span: &Span, service: u64) -> Option<(Key, usize)> {
        const ANY: [Option<Kind>; 5] = [None, Some(Kind::Client), Some(Kind::Server), Some(Kind::Producer), Some(Kind::Consumer)];
        let exact = [span.kind, None];
        let candidates: &[Option<Kind>] = if span.kind.is_none() { &ANY } else { &exact };
        candidates.iter().find_map(|kind| {
            let key = (span.id, *kind, service);
            self.index.get(&key).map(|at| (key, *at))
        })
    }
}

/// A plain text answer. The text may hold parts of what was sent, so no browser may guess another type.
fn text(status: StatusCode, message: impl Into<String>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (status, headers, format!("{}\n", message.into())).into_response()
}

async fn post_spans(State(store): State<Store>, request: Request) -> Response {
    match accept(&store, request).await {
        Ok(0) => StatusCode::ACCEPTED.into_response(),
        Ok(dropped) => text(
            StatusCode::ACCEPTED,
            format!("{dropped} spans were not kept: their trace is at its bound ({} spans)", store.shared.limits.trace_spans),
        ),
        Err((status, message)) => text(status, message),
    }
}

type Refusal = (StatusCode, String);

async fn accept(store: &Store, request: Request) -> Result<u64, Refusal> {
    let (head, body) = request.into_parts();
    let too_large = || (StatusCode::PAYLOAD_TOO_LARGE, format!("a batch may have {MAX_BODY} bytes; send several smaller ones"));
    let _place = store.shared.posts.acquire().await.map_err(|_| (StatusCode::SERVICE_UNAVAILABLE, "closed".into()))?;
    let late = |_| (StatusCode::REQUEST_TIMEOUT, format!("the body was not whole after {} s", BODY_TIMEOUT.as_secs()));
    let body = tokio::time::timeout(BODY_TIMEOUT, read(body)).await.map_err(late)??.ok_or_else(too_large)?;
    require_json(&head.headers)?;
    let body = if is_gzip(&head.headers)? { gunzip(&body, too_large)? } else { body };
    if body.is_empty() {
        return Ok(0);
    }
    // More spans than the store holds would only push each other out.
    let spans = decode(&body, store.shared.limits.spans).map_err(|error| match error {
        DecodeError::TooMany(max) => {
            (StatusCode::PAYLOAD_TOO_LARGE, format!("a batch may have {max} spans; send several smaller ones"))
        }
        DecodeError::Invalid(why) => (StatusCode::BAD_REQUEST, format!("not a list of Zipkin v2 spans: {why}")),
    })?;
    Ok(store.insert(spans))
}

/// The whole body; `None` when it is larger than [`MAX_BODY`]. What is too much is read on for a while and thrown away: a
/// connection that is closed on a sender loses it the answer that says why.
async fn read(mut body: Body) -> Result<Option<Vec<u8>>, Refusal> {
    let (mut held, mut length) = (Vec::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| (StatusCode::BAD_REQUEST, format!("the body did not arrive whole: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length <= MAX_BODY {
            held.extend_from_slice(&data);
        } else if length <= MAX_DISCARDED {
            held = Vec::new();
        } else {
            break;
        }
    }
    Ok((length <= MAX_BODY).then_some(held))
}

/// Refuses the encodings that Zipkin servers take and this store does not. Anything else is tried as JSON, as in Zipkin:
/// `curl -d` sends a form's type, and some reporters send none.
fn require_json(headers: &HeaderMap) -> Result<(), Refusal> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
    for (format, hint) in [("protobuf", "set the reporter's encoding to JSON"), ("thrift", "that is Zipkin's v1 format")] {
        if kind.contains(format) {
            let message = format!("this store takes Zipkin v2 JSON (application/json), not {format}: {hint}");
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
    }
    Ok(())
}

fn is_gzip(headers: &HeaderMap) -> Result<bool, Refusal> {
    let Some(encoding) = headers.get(header::CONTENT_ENCODING) else { return Ok(false) };
    match encoding.to_str().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(false),
        "gzip" | "x-gzip" => Ok(true),
        _ => {
            Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "this store takes bodies as they are or with content-encoding: gzip".into()))
        }
    }
}

/// Decompresses no further than one byte beyond the limit, however much a small body claims to hold.
fn gunzip(body: &[u8], too_large: impl Fn() -> Refusal) -> Result<Vec<u8>, Refusal> {
    let mut plain = Vec::new();
    MultiGzDecoder::new(body)
        .take(MAX_BODY as u64 + 1)
        .read_to_end(&mut plain)
        .map_err(|error| (StatusCode::BAD_REQUEST, format!("the body is not gzip: {error}")))?;
    if plain.len() > MAX_BODY { Err(too_large()) } else { Ok(plain) }
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

/// Zipkin lower-cases names; here they keep their case, and questions ignore it.
fn same(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b)
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Question {
    service_name: Option<String>,
    remote_service_name: Option<String>,
    span_name: Option<String>,
    annotation_query: Option<String>,
    min_duration: Option<u64>,
    max_duration: Option<u64>,
    end_ts: Option<u64>,
    lookback: Option<u64>,
    limit: Option<usize>,
}

/// What is looked for, in Zipkin's terms: all of it has to be found among the spans of `service`, not in one of them.
struct Filter {
    service: Option<String>,
    remote_service: Option<String>,
    span: Option<String>,
    annotations: Vec<(String, String)>,
    min_us: Option<u64>,
    max_us: u64,
    window: Window,
}

/// The time in which a trace has to begin, microseconds since 1970, both ends included.
struct Window {
    from_us: u64,
    to_us: u64,
}

impl Window {
    /// From Zipkin's parameters, which are milliseconds.
    fn new(end_ms: Option<u64>, lookback_ms: Option<u64>) -> Result<Self, String> {
        if end_ms == Some(0) || lookback_ms == Some(0) {
            return Err("endTs and lookback are milliseconds above 0".into());
        }
        // Rounded up: a span that began within the current millisecond has begun.
        let end_ms = end_ms.unwrap_or_else(|| {
            u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis())
                .unwrap_or(u64::MAX)
                .saturating_add(1)
        });
        let from_ms = end_ms.saturating_sub(lookback_ms.unwrap_or(DEFAULT_LOOKBACK_MS));
        Ok(Self { from_us: from_ms.saturating_mul(1000), to_us: end_ms.saturating_mul(1000) })
    }

    fn holds(&self, begin_us: u64) -> bool {
        (self.from_us..=self.to_us).contains(&begin_us)
    }
}

/// When a trace began: its root's timestamp, else the earliest.
fn begin_us(spans: &[Arc<Span>]) -> Option<u64> {
    let root = spans.iter().find(|span| span.parent_id.is_none() && span.timestamp.is_some());
    root.map_or_else(|| spans.iter().filter_map(|span| span.timestamp).min(), |root| root.timestamp)
}

impl Question {
    fn filter(self) -> Result<Filter, String> {
        match (self.min_duration, self.max_duration) {
            (Some(0), _) => return Err("minDuration is microseconds above 0".into()),
            (None, Some(_)) => return Err("maxDuration needs minDuration beside it".into()),
            (Some(min), Some(max)) if max < min => return Err("maxDuration is below minDuration".into()),
            _ => {}
        }
        let given = |name: Option<String>| name.filter(|name| !name.is_empty());
        Ok(Filter {
            service: given(self.service_name),
            remote_service: given(self.remote_service_name),
            // Zipkin's own page sends "all" for any.
            span: given(self.span_name).filter(|name| !same(name, "all")),
            annotations: self.annotation_query.as_deref().map(parse_annotations).unwrap_or_default(),
            min_us: self.min_duration,
            max_us: self.max_duration.unwrap_or(u64::MAX),
            window: Window::new(self.end_ts, self.lookback)?,
        })
    }
}

/// `error and http.method=GET`: keys that have to be there, as an event or a tag, and tags with their values.
fn parse_annotations(query: &str) -> Vec<(String, String)> {
    let mut wanted: BTreeMap<String, String> = BTreeMap::new();
    for part in query.split(" and ").take(100) {
        match part.split_once('=') {
            Some((key, value)) => {
                wanted.insert(key.trim().into(), value.trim().into());
            }
            None => {
                wanted.entry(part.trim().into()).or_default();
            }
        }
    }
    wanted.remove("");
    wanted.into_iter().collect()
}

impl Filter {
    fn matches(&self, spans: &[Arc<Span>]) -> bool {
        if !begin_us(spans).is_some_and(|begin| self.window.holds(begin)) {
            return false;
        }
        let of_service = |span: &&Arc<Span>| {
            self.service.as_deref().is_none_or(|wanted| span.service().is_some_and(|name| same(name, wanted)))
        };
        let any = |test: &dyn Fn(&Span) -> bool| spans.iter().filter(of_service).any(|span| test(span));
        any(&|_| true)
            && self.span.as_deref().is_none_or(|wanted| any(&|span| span.name.as_deref().is_some_and(|name| same(name, wanted))))
            && self
                .remote_service
                .as_deref()
                .is_none_or(|wanted| any(&|span| span.remote_service().is_some_and(|name| same(name, wanted))))
            && self.min_us.is_none_or(|min| any(&|span| span.duration.is_some_and(|took| took >= min && took <= self.max_us)))
            && self.annotations.iter().all(|(key, value)| {
                any(&|span| {
                    let event = value.is_empty() && span.annotations.iter().any(|event| *event.value == **key);
                    event || span.tag(key).is_some_and(|found| value.is_empty() || found == value)
                })
            })
    }
}

async fn find_traces(State(store): State<Store>, Query(question): Query<Question>) -> Response {
    let limit = question.limit.unwrap_or(DEFAULT_LIMIT);
    if limit == 0 {
        return text(StatusCode::BAD_REQUEST, "limit is a number of traces above 0");
    }
    let filter = match question.filter() {
        Ok(filter) => filter,
        Err(message) => return text(StatusCode::BAD_REQUEST, message),
    };
    let mut found = store.snapshot();
    found.retain(|spans| filter.matches(spans));
    found.sort_by_cached_key(|spans| std::cmp::Reverse(begin_us(spans)));
    found.truncate(limit);
    Traces::list(found).into_response()
}

async fn one_trace(State(store): State<Store>, Path(id): Path<String>) -> Response {
    let id = match parse_trace_id(&id) {
        Ok(id) => id,
        Err(error) => return text(StatusCode::BAD_REQUEST, error.to_string()),
    };
    let Some(spans) = store.trace(id) else {
        return text(StatusCode::NOT_FOUND, format!("{} not found", zipkin_id(id)));
    };
    let mut response = Traces::one(spans).into_response();
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
            Ok(_) if ids.len() == store.shared.limits.traces => break,
            Ok(id) => ids.push(id),
            Err(error) => {
                return text(StatusCode::BAD_REQUEST, format!("traceIds: {error}"));
            }
        }
    }
    if ids.is_empty() {
        return text(StatusCode::BAD_REQUEST, "traceIds: expected ids separated by commas");
    }
    Traces::list(ids.into_iter().filter_map(|id| store.trace(id)).collect()).into_response()
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
    // The shape that Zipkin's own health answer has, and what this store can tell beside it.
    let up = serde_json::json!({"status": "UP"});
    Json(serde_json::json!({
        "status": "UP",
        "zipkin": {"status": "UP", "details": {"InMemoryStorage{}": up}},
        "store": store.stats(),
    }))
    .into_response()
}

/// Traces as a body that is written piece by piece: a reader that asks for everything, slowly, costs a piece and not the whole.
struct Traces {
    traces: vec::IntoIter<Vec<Arc<Span>>>,
    trace: Option<vec::IntoIter<Arc<Span>>>,
    /// What stands before the next trace and before the next span.
    before: (&'static str, &'static str),
    end: Option<&'static str>,
}

impl Traces {
    /// `[[span, …], …]`
    fn list(traces: Vec<Vec<Arc<Span>>>) -> Self {
        Self { traces: traces.into_iter(), trace: None, before: ("[[", ""), end: Some("]") }
    }

    /// `[span, …]`
    fn one(spans: Vec<Arc<Span>>) -> Self {
        Self { traces: vec![spans].into_iter(), trace: None, before: ("[", ""), end: Some("") }
    }

    fn next_piece(&mut self) -> Option<Bytes> {
        const PIECE: usize = 32 * 1024;
        let end = self.end?;
        let mut piece = Vec::new();
        while piece.len() < PIECE {
            match &mut self.trace {
                Some(trace) => match trace.next() {
                    Some(span) => {
                        piece.extend_from_slice(self.before.1.as_bytes());
                        self.before.1 = ",";
                        // Writing to memory does not fail, and no key of a span is anything but a string.
                        let _ = serde_json::to_writer(&mut piece, &*span);
                    }
                    None => {
                        piece.push(b']');
                        self.trace = None;
                    }
                },
                None => match self.traces.next() {
                    Some(trace) => {
                        piece.extend_from_slice(self.before.0.as_bytes());
                        self.before = (",[", "");
                        self.trace = Some(trace.into_iter());
                    }
                    None => {
                        // No trace at all: the list was never opened.
                        piece.extend_from_slice(if self.before.0 == "[[" { b"[" } else { b"" });
                        piece.extend_from_slice(end.as_bytes());
                        self.end = None;
                        break;
                    }
                },
            }
        }
        Some(piece.into())
    }
}

impl http_body::Body for Traces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.get_mut().next_piece().map(|piece| Ok(Frame::data(piece))))
    }
}

impl IntoResponse for Traces {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], Body::new(self)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use serde_json::{Value, json};
    use tokio::sync::broadcast::error::TryRecvError;
    use tower_service::Service;

    use super::*;

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
        assert_eq!(
            (spans.len(), spans[0].timestamp, spans[0].duration, spans[0].kind),
            (1, Some(5), Some(7), Some(Kind::Server))
        );
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
        for query in
            ["limit=0", "lookback=0", "endTs=0", "maxDuration=5", "minDuration=0", "minDuration=5&maxDuration=4", "limit=x"]
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
        assert_eq!(
            links(&json!([root, local, call, served])).await,
            between(&[("gateway", "service1"), ("service1", "service2")])
        );
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
        assert_eq!(
            (status, told.as_str()),
            (StatusCode::ACCEPTED, "2 spans were not kept: their trace is at its bound (3 spans)\n")
        );
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
        let mut body = Traces::list(store.snapshot());
        let mut pieces = Vec::new();
        while let Some(piece) = body.next_piece() {
            pieces.push(piece);
        }
        assert!(pieces.len() > 1);
        let traces: Vec<Vec<Value>> = serde_json::from_slice(&pieces.concat()).unwrap();
        assert_eq!(traces.iter().map(Vec::len).sum::<usize>(), 600);
    }
}
