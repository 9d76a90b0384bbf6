//! Traces as the page lists and draws them.

use serde::Serialize;

use crate::text::shorten;
use crate::traces::ids::{parent_id, span_id, trace_id};
use crate::traces::{Kind, Span, SpanId, Trace, TraceId, Verdict};

/// The longest text of somebody else in a summary, characters.
const MAX_TEXT: usize = 120;
/// Services named in a summary.
const MAX_SERVICES: usize = 64;
/// Requests of one trace that can be chosen.
const MAX_REQUESTS: usize = 200;

fn short(text: &str) -> String {
    shorten(text, MAX_TEXT)
}

/// What a span did, in a few characters: the path that was asked for where the name is only its template or the method.
fn label(span: &Span) -> Option<String> {
    let name = span.name.as_deref();
    let (first, rest) = name.unwrap_or_default().split_once(' ').unwrap_or((name.unwrap_or_default(), ""));
    let is_method = !first.is_empty() && first.bytes().all(|byte| byte.is_ascii_uppercase());
    match span.path() {
        Some(path) if is_method && (rest.is_empty() || rest.contains('{')) => {
            Some(short(&if first == "GET" { path.to_owned() } else { format!("{first} {path}") }))
        }
        _ => name.map(short),
    }
}

/// What the list shows of a trace.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    #[serde(with = "trace_id")]
    id: TraceId,
    start_us: u64,
    duration_us: u64,
    name: Option<String>,
    /// What the first service answered; null where nobody says.
    status: Option<u16>,
    /// The request's id, as the first span that has one says it.
    request_id: Option<String>,
    services: Vec<String>,
    spans: usize,
    errors: usize,
    /// 1 for a trace that is whole.
    pieces: usize,
    requests: usize,
}

impl Summary {
    pub(super) fn of(trace: &Trace) -> Self {
        let rows = || trace.rows().iter().map(|row| &*row.span);
        let answered = rows().find(|span| span.kind == Some(Kind::Server)).or_else(|| rows().next());
        let request_id = rows().find_map(|span| span.request_id());
        Self {
            id: trace.id(),
            start_us: trace.start_us(),
            duration_us: trace.duration_us(),
            name: rows().next().and_then(label),
            status: answered.and_then(Span::http_status),
            request_id: request_id.map(short),
            services: trace.services().iter().take(MAX_SERVICES).map(|name| short(name)).collect(),
            spans: trace.rows().len(),
            errors: trace.errors(),
            pieces: trace.pieces(),
            requests: trace.requests(),
        }
    }
}

/// A trace as the page draws it, and what is wrong with it.
#[derive(Serialize)]
pub(super) struct TraceWithVerdict<'a> {
    #[serde(flatten)]
    verdict: Verdict,
    start_us: u64,
    duration_us: u64,
    /// The requests that used the trace's id, to choose from; empty for one.
    used_by: Vec<ListedRequest>,
    rows: Vec<Row<'a>>,
}

/// One of several requests that used the same trace id.
#[derive(Serialize)]
struct ListedRequest {
    /// The span of its first service.
    #[serde(with = "span_id")]
    span: SpanId,
    start_us: u64,
    duration_us: u64,
    status: Option<u16>,
}

/// One span in its place: [`PlacedSpan`](crate::traces::PlacedSpan).
#[derive(Serialize)]
struct Row<'a> {
    span: &'a Span,
    label: Option<String>,
    depth: usize,
    parent: Option<usize>,
    #[serde(with = "parent_id")]
    missing: Option<SpanId>,
    /// Its parent should be there and is not.
    orphan: bool,
    error: bool,
}

impl<'a> TraceWithVerdict<'a> {
    /// `shown` is the part of `trace` that is drawn, or all of it.
    pub(super) fn new(trace: &Trace, shown: &'a Trace, verdict: Verdict) -> Self {
        let rows = shown.rows().iter().map(|row| Row {
            span: &row.span,
            label: label(&row.span),
            depth: row.depth,
            parent: row.parent,
            missing: row.missing_parent,
            orphan: shown.is_orphan(row),
            error: row.span.is_error(),
        });
        let first = |row: &&crate::traces::PlacedSpan| trace.is_like_first(row);
        let requests = trace.tops().filter(first).take(if trace.requests() > 1 { MAX_REQUESTS } else { 0 });
        let used_by = requests.map(|row| ListedRequest {
            span: row.span.id,
            start_us: row.span.timestamp.unwrap_or_default(),
            duration_us: row.span.duration.unwrap_or_default(),
            status: row.span.http_status(),
        });
        Self {
            verdict,
            start_us: shown.start_us(),
            duration_us: shown.duration_us(),
            used_by: used_by.collect(),
            rows: rows.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_the_path_where_the_name_is_a_template() {
        let label = |name: &str, tags: serde_json::Value| {
            let json = serde_json::json!([{"traceId": "a", "id": "1", "name": name, "tags": tags}]);
            label(&crate::traces::decode(json.to_string().as_bytes(), 1).unwrap()[0])
        };
        for (name, tags, expected) in [
            ("GET /service{n}", serde_json::json!({"url.path": "/service2"}), "/service2"),
            ("POST /service{n}", serde_json::json!({"url.path": "/service2"}), "POST /service2"),
            ("GET", serde_json::json!({"url.full": "http://127.0.0.1:8081/service2?a=b"}), "/service2"),
            ("GET /cart", serde_json::json!({"http.path": "/cart/7"}), "GET /cart"),
            ("checkout", serde_json::json!({"url.path": "/x"}), "checkout"),
            ("GET", serde_json::json!({}), "GET"),
            ("httpserver.v1.Chain/Call", serde_json::json!({}), "httpserver.v1.Chain/Call"),
        ] {
            assert_eq!(label(name, tags).as_deref(), Some(expected), "{name}");
        }
    }
}
