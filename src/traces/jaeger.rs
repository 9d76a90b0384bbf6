//! Jaeger's JSON of a trace, read as Zipkin's spans.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use crate::traces::ids::{SpanId, TraceId, parent_id, span_id, trace_id};
use crate::traces::lenient;
use crate::traces::span::{Endpoint, Kind, Span};

#[derive(Deserialize)]
struct JaegerAnswer {
    data: Option<Vec<JaegerTrace>>,
}

#[derive(Deserialize)]
struct JaegerTrace {
    spans: Vec<JaegerSpan>,
    processes: HashMap<String, Process>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    service_name: Box<str>,
    #[serde(default)]
    tags: Vec<Tag>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JaegerSpan {
    #[serde(rename = "traceID", with = "trace_id")]
    trace_id: TraceId,
    #[serde(rename = "spanID", with = "span_id")]
    id: SpanId,
    operation_name: Box<str>,
    #[serde(default)]
    references: Vec<Reference>,
    /// What `references` replaced; some stores still write it alone.
    #[serde(rename = "parentSpanID", default, with = "parent_id")]
    parent: Option<SpanId>,
    #[serde(default, deserialize_with = "lenient::micros")]
    start_time: Option<u64>,
    #[serde(default, deserialize_with = "lenient::micros")]
    duration: Option<u64>,
    #[serde(default)]
    tags: Vec<Tag>,
    #[serde(rename = "processID")]
    process: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    ref_type: String,
    #[serde(rename = "spanID", with = "parent_id")]
    span: Option<SpanId>,
}

#[derive(Deserialize)]
struct Tag {
    key: Box<str>,
    value: Value,
}

/// Reads the query API's answer: the spans of all its traces.
///
/// # Errors
///
/// The path of the value that is not as it should be.
pub(crate) fn decode(body: &[u8]) -> Result<Vec<Span>, String> {
    let reader = &mut serde_json::Deserializer::from_slice(body);
    let answer: JaegerAnswer = serde_path_to_error::deserialize(&mut *reader).map_err(|error| error.to_string())?;
    reader.end().map_err(|error| error.to_string())?;
    let traces = answer.data.unwrap_or_default();
    Ok(traces.into_iter().flat_map(|trace| trace.spans.into_iter().map(move |span| of(span, &trace.processes))).collect())
}

fn of(span: JaegerSpan, processes: &HashMap<String, Process>) -> Span {
    let mut out = Span::new(span.trace_id, span.id);
    let mut parents = span.references.iter().filter(|reference| reference.ref_type == "CHILD_OF");
    // Of several parents the first counts, as in Jaeger's own page.
    out.parent_id = parents.next().map_or(span.parent, |reference| reference.span);
    out.name = Some(span.operation_name);
    out.timestamp = span.start_time;
    out.duration = span.duration;
    let process = processes.get(&span.process);
    let tags = process.into_iter().flat_map(|process| &process.tags).chain(&span.tags);
    out.tags = tags.map(|tag| (tag.key.clone(), text(&tag.value))).collect();
    out.kind = match out.tag("span.kind") {
        Some("client") => Some(Kind::Client),
        Some("server") => Some(Kind::Server),
        Some("producer") => Some(Kind::Producer),
        Some("consumer") => Some(Kind::Consumer),
        _ => None,
    };
    out.local_endpoint =
        process.map(|process| Endpoint { service_name: Some(process.service_name.clone()), ..Endpoint::default() });
    out
}

fn text(value: &Value) -> Box<str> {
    value.as_str().map_or_else(|| value.to_string().into(), Box::from)
}
