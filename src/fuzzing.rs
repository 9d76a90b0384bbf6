//! Every parser that reads from the network or from the user, by name, for `fuzz/` and for the replay in `tests/fuzz.rs`.
//!
//! Each one is given any bytes. It must not panic, and what it accepts must have the properties that the rest of the code
//! relies on. Nothing in the server calls this.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, SERVER};
use opentelemetry::trace::{SpanId, TraceId};
use prost::Message as _;
use tokio_tungstenite::tungstenite::WebSocket;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::config::pairs;
use crate::demo::control::orders::read_order;
use crate::demo::store::{Limits, Store};
use crate::hop::capacity::MAX_MESSAGE;
use crate::hop::chain::prefers_json;
use crate::hop::fault::{Fault, Injection};
use crate::hop::head::caller_uri;
use crate::hop::latency::Latency;
use crate::hop::reply::{MessageReply, NestedReply, Tree, expanded_size};
use crate::hop::websocket;
use crate::net::hosts::host_and_port;
use crate::rpc;
use crate::telemetry::draws::Draws;
use crate::text::escape::{misleads, push_escaped};
use crate::trace_context::{Carried, Propagator, Sampling, is_valid_request_id};
use crate::traces::otlp::{decode_json, decode_protobuf};
use crate::traces::{ExpectedTrace, Span, Trace, Verdict, decode, decode_traces, jaeger};
use crate::upstream::Target;
use crate::upstream::foreign_response::ForeignResponse;
use crate::values::{Listen, parse_duration};

/// A parser by its name, and how to give it bytes.
pub type Parser = (&'static str, fn(&[u8]));

/// The parsers.
pub const PARSERS: [Parser; 23] = [
    ("b3", |data| trace_headers(&[("b3", data)])),
    ("b3_multi", b3_multi),
    ("traceparent", |data| trace_headers(&[("traceparent", data)])),
    ("w3c", w3c),
    ("headers", headers),
    ("xfcc", xfcc),
    ("accept", accept),
    ("duration", duration),
    ("fault", fault),
    ("address", address),
    ("attributes", attributes),
    ("zipkin", zipkin),
    ("otlp", otlp),
    ("zipkin_traces", |data| drop(decode_traces(data, 64).map(backend_spans))),
    ("jaeger", |data| drop(jaeger::decode(data).map(backend_spans))),
    ("order", |data| drop(read_order(data))),
    ("reply", reply),
    ("stranger", foreign_response),
    ("metadata", metadata),
    ("message", message),
    ("websocket", websocket),
    ("log_line", log_line),
    ("certificate", certificate),
];

/// Runs one parser. Panics when there is none of this name.
pub fn run(parser: &str, data: &[u8]) {
    let (_, run) = PARSERS.iter().find(|(name, _)| *name == parser).expect("a name from PARSERS");
    run(data);
}

/// What one hop does with trace headers, and what the next one must make of them.
fn trace_headers(lines: &[(&str, &[u8])]) {
    let propagator = Propagator::default();
    let mut carried = Carried::default();
    for (name, value) in lines {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value)) {
            propagator.carry(&mut carried, &name, &value);
        }
    }
    let incoming = propagator.extract(&carried);
    let id = HeaderValue::from_static("made-here");
    // Without an exporter everything passes through as it came.
    let untouched = propagator.outgoing(&carried, &id, None, false);
    assert!(untouched.iter().all(|(_, value)| !value.is_empty()));
    let request_id = untouched.iter().find(|(name, _)| *name == "x-request-id").expect("every call has an id");
    assert!(is_valid_request_id(request_id.1.as_bytes()));
    let Some(context) = incoming.context else { return };
    assert_ne!(context.trace_id, TraceId::INVALID);
    assert_ne!(context.span_id, SpanId::INVALID);
    assert!(!context.short_trace_id || context.trace_id.to_bytes()[..8] == [0; 8]);
    // The receiver has decided by now.
    let sampling = if context.sampling == Sampling::Deferred { Sampling::Sample } else { context.sampling };
    let child = crate::trace_context::Context { sampling, ..context.child(SpanId::from(0x0123_4567_89ab_cdef)) };
    let mut arrived = Carried::default();
    for (name, value) in &propagator.outgoing(&carried, &id, Some(&child), false) {
        propagator.carry(&mut arrived, name, value);
    }
    let next = propagator.extract(&arrived).context.expect("the next hop reads what this one wrote");
    assert_eq!((next.trace_id, next.span_id), (child.trace_id, child.span_id));
    assert_eq!(next.sampling.is_sampled(), child.sampling.is_sampled());
}

/// Up to five lines: trace id, span id, parent, sampled, flags.
fn b3_multi(data: &[u8]) {
    const NAMES: [&str; 5] = ["x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags"];
    let lines: Vec<_> = NAMES.into_iter().zip(data.split(|byte| *byte == b'\n')).collect();
    trace_headers(&lines);
}

/// Three lines: `traceparent`, `tracestate`, `baggage`.
fn w3c(data: &[u8]) {
    let lines: Vec<_> = ["traceparent", "tracestate", "baggage"].into_iter().zip(data.split(|byte| *byte == b'\n')).collect();
    trace_headers(&lines);
}

/// Lines of `name: value`, all carried names mixed.
fn headers(data: &[u8]) {
    let lines = data.split(|byte| *byte == b'\n').take(64).filter_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        Some((std::str::from_utf8(&line[..colon]).ok()?, line[colon + 1..].trim_ascii()))
    });
    trace_headers(&lines.collect::<Vec<_>>());
}

/// Runs `read` on the data as a header's value, if it can be one.
fn as_header(data: &[u8], read: impl FnOnce(&HeaderValue, &str)) {
    if let Ok(value) = HeaderValue::from_bytes(data)
        && let Ok(text) = value.to_str()
    {
        read(&value, text);
    }
}

fn xfcc(data: &[u8]) {
    as_header(data, |_, text| {
        if let Some(uri) = caller_uri(text) {
            assert!((1..=1024).contains(&uri.len()) && text.contains(&uri));
        }
    });
}

fn accept(data: &[u8]) {
    as_header(data, |value, text| {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, value.clone());
        let json = prefers_json(&headers);
        assert!(!json || text.to_ascii_lowercase().contains("application/"));
    });
}

fn text(data: &[u8]) -> &str {
    std::str::from_utf8(data).unwrap_or_default()
}

fn duration(data: &[u8]) {
    if let Ok(duration) = parse_duration(text(data)) {
        // A deadline that far off must still be one.
        assert!(std::time::Instant::now().checked_add(duration * 2).is_some());
        let shown = humantime::format_duration(duration).to_string();
        assert_eq!(parse_duration(&shown), Ok(duration));
    }
}

fn fault(data: &[u8]) {
    let share = match text(data).parse() {
        Ok(Injection::Fault(fault)) => {
            assert_eq!(fault.to_string().parse().map(|again: Fault| again.kind), Ok(fault.kind));
            fault.share
        }
        Ok(Injection::Break(broken)) => broken.share,
        Err(_) => 0.0,
    };
    assert!((0.0..=1.0).contains(&share));
    if let Ok(latency) = text(data).parse::<Latency>() {
        // The last percentile, doubled.
        assert!(latency.sample(Draws::random()).as_secs() <= 2 * 3600);
    }
}

fn address(data: &[u8]) {
    let text = text(data);
    if let Ok(listen) = text.parse::<Listen>() {
        assert_eq!(listen.to_string().parse(), Ok(listen));
    }
    if let Ok(target) = text.parse::<Target>() {
        let (path, _) = target.path(1);
        assert!(path.to_string().starts_with('/'), "{path}");
    }
    as_header(data, |_, text| {
        let (host, _) = host_and_port(text, "http");
        assert!(text.contains(host));
    });
}

fn attributes(data: &[u8]) {
    if let Ok(pairs) = pairs(text(data)) {
        assert!(pairs.len() <= data.len());
    }
}

fn zipkin(data: &[u8]) {
    const MAX: usize = 64;
    let Ok(spans) = decode(data, MAX) else { return };
    assert!(spans.len() <= MAX);
    let count = spans.len();
    // What is stored can be written, and what is written can be read again.
    let written = serde_json::to_vec(&spans).expect("spans are JSON");
    assert_eq!(decode(&written, MAX).expect("our own JSON is read").len(), count);
    let limits = Limits { traces: 2, spans: 8, bytes: 16 << 10, trace_spans: 4, trace_bytes: 8 << 10 };
    let store = Store::with_limits(limits);
    store.insert(spans);
    let stats = store.stats();
    assert!(stats.traces <= limits.traces && stats.spans <= limits.spans && stats.bytes <= limits.bytes, "{stats:?}");
    for id in store.trace_ids() {
        assert!(store.trace(id).is_some_and(|trace| !trace.is_empty() && trace.len() <= limits.trace_spans));
    }
}

/// What `check`, `trace` and `doctor` make of a trace backend's answer.
fn backend_spans(spans: Vec<Span>) {
    let json = serde_json::to_vec(&spans).expect("spans are JSON");
    assert_eq!(decode(&json, spans.len()).expect("our own JSON is read").len(), spans.len());
    let count = spans.len();
    let Some(trace) = Trace::new(spans.into_iter().map(Arc::new).collect()) else { return };
    assert!(trace.rows().len() <= count);
    let _ = Verdict::of(&[trace], &ExpectedTrace::of_hops(3));
}

fn otlp(data: &[u8]) {
    const MAX: usize = 64;
    for batch in [decode_protobuf(data, MAX), decode_json(data, MAX)].into_iter().flatten() {
        assert!(batch.spans.len() <= MAX);
        // It is stored, shown and passed on in Zipkin's form.
        let json = serde_json::to_vec(&batch.spans).expect("spans are JSON");
        assert_eq!(decode(&json, MAX).expect("our own JSON is read"), batch.spans);
    }
}

fn reply(data: &[u8]) {
    let tree = Tree::parse(data);
    if NestedReply::check(data).is_ok() {
        // It goes into our own answer verbatim.
        serde_json::from_slice::<&serde_json::value::RawValue>(data).expect("a nested reply is JSON");
        assert!(tree.is_ok(), "readers read what a hop nests: {tree:?}");
    }
    if let Ok(tree) = tree {
        let text = tree.to_text();
        assert!(!text.chars().any(|c| misleads(c) && c != '\n'), "{text:?}");
    }
}

/// Three parts, the first two a line each: `content-type`, `server`, and the body of a failed answer.
fn foreign_response(data: &[u8]) {
    let mut parts = data.splitn(3, |byte| *byte == b'\n');
    let mut headers = HeaderMap::new();
    for name in [CONTENT_TYPE, SERVER] {
        if let Ok(value) = HeaderValue::from_bytes(parts.next().unwrap_or_default()) {
            headers.insert(name, value);
        }
    }
    let foreign_response = ForeignResponse::read(&headers, parts.next().unwrap_or_default());
    let error = format!("answered 503 Service Unavailable{foreign_response}");
    assert!(error.len() < 512 && !error.chars().any(misleads), "{error:?}");
    let parsed = ForeignResponse::parse(&error);
    // Without a server at its end, a text may resemble one that names a server.
    if !foreign_response.server.is_empty() || !error.ends_with(']') {
        assert_eq!(parsed, foreign_response, "{error}");
    }
    // It also reads what other hops wrote.
    ForeignResponse::parse(text(data));
}

/// Lines: `grpc-timeout`, `grpc-status`, `grpc-message` and `grpc-status-details-bin`.
fn metadata(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    if let Some(timeout) = rpc::timeout::parse(text(lines.next().unwrap_or_default())) {
        assert!(tokio::time::Instant::now().checked_add(timeout).is_some());
        let written = rpc::timeout::format(timeout);
        assert!(written.len() <= 9 && rpc::timeout::parse(&written).is_some_and(|read| read <= timeout), "{written}");
    }
    let mut trailers = HeaderMap::new();
    for name in ["grpc-status", "grpc-message", "grpc-status-details-bin"] {
        if let Ok(value) = HeaderValue::from_bytes(lines.next().unwrap_or_default()) {
            trailers.insert(name, value);
        }
    }
    if let Some(status) = rpc::status::of_headers(&trailers) {
        let (status, reply) = rpc::status::read(&status);
        assert!((100..1000).contains(&status.as_u16()));
        reply.map(|reply| MessageReply::read(&reply));
    }
}

/// A `Reply`, and the body of a call: a message with its prefix.
fn message(data: &[u8]) {
    let data = Bytes::copy_from_slice(data);
    drop(crate::upstream::grpc::message(data.clone()));
    let expected = expanded_size(&data);
    let Some(reply) = MessageReply::read(&data) else { return };
    let json = reply.to_json();
    // A character has at most six when it is escaped.
    assert!(json.len() <= 1024 + 6 * data.len() + expected, "{} of {}, {expected}", json.len(), data.len());
    let tree = Tree::parse(&json).expect("our own JSON is read");
    let again = Bytes::from(tree.clone().into_message().encode_to_vec());
    MessageReply::read(&again).expect("our own message is read");
    tree.into_status("why");
}

/// Frames of a WebSocket, as a client sends them.
fn websocket(data: &[u8]) {
    struct Peer<'a>(&'a [u8]);
    impl std::io::Read for Peer<'_> {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            self.0.read(buf)
        }
    }
    impl std::io::Write for Peer<'_> {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            Ok(buf.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut socket = WebSocket::from_raw_socket(Peer(data), Role::Server, Some(websocket::config()));
    while let Ok(message) = socket.read() {
        assert!(message.len() <= MAX_MESSAGE);
        let _ = socket.send(message);
    }
}

fn log_line(data: &[u8]) {
    let mut out = Vec::new();
    push_escaped(&mut out, data);
    let line = String::from_utf8(out).expect("a line is text");
    assert!(!line.chars().any(char::is_control), "{line:?}");
    let read: String = serde_json::from_str(&format!("\"{line}\"")).expect("a line is a JSON string's inside");
    assert_eq!(read, String::from_utf8_lossy(data));
}

fn certificate(data: &[u8]) {
    if let Some(certificate) = crate::net::x509::parse(data) {
        assert!(certificate.names.len() <= data.len());
    }
}
