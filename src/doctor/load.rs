//! The traces, from files or from a trace backend.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::check::backend::{SecretHeader, open_traces};
use crate::config::CommandFailure;
use crate::doctor::DoctorArgs;
use crate::system::files::read_input;
use crate::traces::{Span, Trace, TraceId, decode_traces, jaeger, otlp};

/// MiB that are read of a file.
const MAX_FILE: u64 = 256;
/// Spans in all.
const MAX_SPANS: usize = 1_000_000;

/// The traces, and where they are from.
pub(super) struct Loaded {
    pub(super) traces: Vec<Trace>,
    pub(super) source: String,
}

/// Reads all sources that the options name.
///
/// # Errors
///
/// See [`run`](crate::doctor::run).
pub(super) async fn load(args: &DoctorArgs) -> Result<Loaded, CommandFailure> {
    let mut spans = Vec::new();
    let mut sources = Vec::new();
    for path in &args.file {
        let named = |why: String| CommandFailure::Usage(format!("--file {}: {why}", path.display()));
        spans.extend(read_input(path, MAX_FILE).and_then(|bytes| parse(&bytes)).map_err(named)?);
        sources.push(path.display().to_string());
    }
    if let Some(url) = &args.backend.traces {
        let headers = SecretHeader::map(&args.backend.traces_header).map_err(CommandFailure::Usage)?;
        let backend = open_traces(url, headers, args.backend.traces_wait).await.map_err(CommandFailure::Stopped)?;
        let (mut name, lookback, limit) = (backend.name(), args.lookback, args.limit as usize);
        // Traces that begin behind a service do not contain it.
        for service in args.service.as_deref().map(Some).into_iter().chain([None]) {
            let recent = backend.recent(service, lookback, limit).await;
            let recent = recent.map_err(|why| CommandFailure::Stopped(format!("{} {why}. {}", backend.name(), why.cause())))?;
            spans.extend(recent.spans);
            if let Some(why) = recent.left_out {
                name = format!("{} (not all of its traces: {why})", backend.name());
            }
        }
        sources.push(name);
    }
    let mut traces = grouped(spans);
    if args.backend.traces.is_some() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        traces = whole(traces, u64::try_from(now.as_micros()).unwrap_or(u64::MAX));
    }
    // The youngest first: a trace that is still being reported says nothing of the mesh, and the limit cuts the oldest.
    traces.sort_by_key(|trace| std::cmp::Reverse(trace.start_us()));
    let mut most = args.limit as usize;
    if let Some(service) = &args.service {
        // As many of those in which it takes part, and of the others.
        let is_in = |trace: &Trace| trace.services().iter().any(|name| name.eq_ignore_ascii_case(service));
        let (own, others): (Vec<Trace>, Vec<Trace>) = traces.into_iter().partition(is_in);
        let others = others.into_iter().take(if own.is_empty() { 0 } else { most });
        traces = own.into_iter().take(most).chain(others).collect();
        most *= 2;
    }
    traces.truncate(most);
    Ok(Loaded { traces, source: sources.join(", ") })
}

/// Without those that are still being reported: a span is reported when it ends, so what is around it comes after what is in it. Where
/// nothing older is there to judge by, they stay.
fn whole(mut traces: Vec<Trace>, now_us: u64) -> Vec<Trace> {
    const SETTLED_US: u64 = 15_000_000;
    const ENOUGH: usize = 20;
    let ended = |span: &Span| span.timestamp.unwrap_or(0) + span.duration.unwrap_or(0);
    let is_young = |trace: &Trace| trace.rows().iter().any(|row| ended(&row.span) + SETTLED_US > now_us);
    let is_torn = |trace: &Trace| trace.rows().iter().any(|row| row.span.parent_id.is_some() && row.parent.is_none());
    if traces.iter().filter(|trace| !is_young(trace)).count() >= ENOUGH {
        traces.retain(|trace| !(is_young(trace) && is_torn(trace)));
    }
    traces
}

const ACCEPTED: &str = "accepted: Zipkin v2 JSON (a list of spans or of traces), Jaeger's JSON (an object with \"data\"), \
                        OTLP JSON (objects with \"resourceSpans\")";

/// Reads the documents of a file, one after the other: a collector's file exporter writes one a line, and answers of an API are
/// written one behind the other.
fn parse(bytes: &[u8]) -> Result<Vec<Span>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| format!("not UTF-8 text; {ACCEPTED}"))?;
    let mut spans = Vec::new();
    let mut documents = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>().enumerate().peekable();
    if documents.peek().is_none() {
        return Err(format!("no format that is known; {ACCEPTED}"));
    }
    for (n, document) in documents {
        let read = document.map_err(|error| format!("{error}; {ACCEPTED}")).and_then(|document| parse_document(document.get()));
        spans.extend(read.map_err(|why| if n == 0 { why } else { format!("document {}: {why}", n + 1) })?);
        if spans.len() > MAX_SPANS {
            return Err(format!("more than {MAX_SPANS} spans"));
        }
    }
    Ok(spans)
}

/// Reads Zipkin's list of spans or list of traces, Jaeger's answer or download, or OTLP.
fn parse_document(text: &str) -> Result<Vec<Span>, String> {
    if text.starts_with('[') {
        decode_traces(text.as_bytes(), MAX_SPANS).map_err(|error| error.to_string())
    } else if is_object_with(text, "data") {
        jaeger::decode(text.as_bytes())
    } else if is_object_with(text, "resourceSpans") {
        otlp::decode_json(text.as_bytes(), MAX_SPANS).map(|read| read.spans).map_err(|error| error.to_string())
    } else {
        Err(format!("no format that is known; {ACCEPTED}"))
    }
}

fn is_object_with(text: &str, field: &str) -> bool {
    let first = serde_json::Deserializer::from_str(text).into_iter::<HashMap<String, IgnoredAny>>().next();
    first.is_some_and(|object| object.is_ok_and(|object| object.contains_key(field)))
}

/// The traces of these spans.
fn grouped(spans: Vec<Span>) -> Vec<Trace> {
    let mut order: Vec<TraceId> = Vec::new();
    let mut traces: HashMap<TraceId, Vec<Span>> = HashMap::new();
    for span in spans {
        let of_trace = traces.entry(span.trace_id).or_insert_with_key(|id| {
            order.push(*id);
            Vec::new()
        });
        of_trace.push(span);
    }
    join_shortened(&mut traces);
    order.into_iter().filter_map(|id| Trace::of_reports(traces.remove(&id)?)).collect()
}

/// Joins what has the last 64 bits of a longer id with the trace that it goes on from: spans keep the id that they have.
fn join_shortened(traces: &mut HashMap<TraceId, Vec<Span>>) {
    let low = |id: TraceId| id.to_bytes()[8..].to_vec();
    let is_short = |id: &TraceId| id.to_bytes()[..8].iter().all(|byte| *byte == 0);
    let short: HashMap<Vec<u8>, TraceId> = traces.keys().filter(|id| is_short(id)).map(|id| (low(*id), *id)).collect();
    let long: Vec<TraceId> = traces.keys().filter(|id| !is_short(id)).copied().collect();
    for id in long {
        let Some(cut) = short.get(&low(id)) else { continue };
        let known: HashSet<_> = traces[&id].iter().map(|span| span.id).collect();
        let goes_on = |span: &Span| span.parent_id.is_some_and(|parent| known.contains(&parent));
        if traces.get(cut).is_some_and(|spans| spans.iter().any(goes_on)) {
            let spans = traces.remove(cut).unwrap_or_default();
            traces.entry(id).or_default().extend(spans);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trace of one span whose parent is not there, or is itself the first.
    fn trace(n: usize, ended_us: u64, is_torn: bool) -> Trace {
        let parent = if is_torn { r#""parentId":"00000000000000aa","# } else { "" };
        let span = format!(
            r#"[{{"traceId":"{:032x}","id":"{:016x}",{parent}"kind":"SERVER","timestamp":{},"duration":1000,"localEndpoint":{{"serviceName":"a"}}}}]"#,
            n + 1,
            n + 1,
            ended_us - 1000
        );
        grouped(parse(span.as_bytes()).unwrap()).remove(0)
    }

    #[test]
    fn traces_that_are_still_being_reported_are_left_out_where_others_are_there() {
        const NOW: u64 = 1_700_000_000_000_000;
        let old = |n| trace(n, NOW - 60_000_000, n % 2 == 0);
        let young = [trace(100, NOW - 1_000_000, true), trace(101, NOW - 1_000_000, false)];
        let of = |count: usize| whole((0..count).map(old).chain(young.clone()).collect(), NOW).len();
        assert_eq!(of(20), 21, "the torn one of the young ones is left out, the torn ones that are old are not");
        assert_eq!(of(19), 21, "too few to judge by without it");
    }
}
