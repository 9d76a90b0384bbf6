//! Zipkin v2 JSON. `opentelemetry-zipkin` cannot be used: it sends `"localEndpoint":{}`, without the service's name
//! (`tests/zipkin_crate.rs` fails when that is mended).

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use http::header::{CONTENT_TYPE, HeaderMap};
use opentelemetry_semantic_conventions::attribute::ERROR_TYPE;

use super::{Accepted, Collector, ExportError, ExportProtocol, ExporterError, ResourceOptions, TIMEOUT};
use crate::net::tls::ClientTls;
use crate::telemetry::span_queue::{AttributeValue, QueuedSpan, SpanBatch, SpanKind};
use crate::text::escape::{self, push_text};
use crate::text::hex::push_hex;
use crate::text::number::{push_address, push_number};
use crate::trace_context::Sampling;

/// Posts spans to a Zipkin collector.
#[derive(Debug)]
pub(super) struct ZipkinSink {
    collector: Collector,
    resource: EncodedResource,
}

/// What all spans of a hop have in common, encoded once.
#[derive(Debug)]
pub(crate) struct EncodedResource {
    /// The member `localEndpoint`, with the comma before it.
    local_endpoint: Vec<u8>,
    /// The first members of `tags`, without a comma after them.
    tags: Vec<u8>,
}

/// The collector at a URL that takes Zipkin v2 JSON.
///
/// # Errors
///
/// [`ExporterError`] when the endpoint cannot be used.
pub(crate) fn collector(endpoint: &str) -> Result<Collector, ExporterError> {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    Collector::new(ExportProtocol::Zipkin, endpoint, headers, TIMEOUT, ClientTls::default())
}

impl ZipkinSink {
    pub(super) fn new(endpoint: &str, resource: &ResourceOptions) -> Result<Self, ExporterError> {
        Ok(Self { collector: collector(endpoint)?, resource: EncodedResource::new(resource) })
    }

    pub(super) async fn send(&self, batch: &SpanBatch) -> Result<Accepted, ExportError> {
        self.collector.post(encode(&self.resource, batch), Duration::MAX).await.map(|_| Accepted::default())
    }
}

impl EncodedResource {
    pub(crate) fn new(resource: &ResourceOptions) -> Self {
        let mut local_endpoint = b",\"localEndpoint\":{\"serviceName\":".to_vec();
        push_text(&mut local_endpoint, resource.service_name.as_bytes());
        local_endpoint.push(b'}');
        let mut tags = Vec::new();
        // The scope, under its names in formats that have none, and the older ones (OpenTelemetry, "Mapping to non-OTLP Formats").
        let (scope, version) = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        let of_scope = [
            ("otel.scope.name", scope),
            ("otel.scope.version", version),
            ("otel.library.name", scope),
            ("otel.library.version", version),
        ];
        let own = resource.attributes.iter().map(|(name, value)| (&**name, &**value));
        let own = own.filter(|(name, _)| !of_scope.iter().any(|(of_scope, _)| of_scope == name));
        for (name, value) in of_scope.into_iter().chain(own) {
            if !tags.is_empty() {
                tags.push(b',');
            }
            push_text(&mut tags, name.as_bytes());
            tags.push(b':');
            push_text(&mut tags, value.as_bytes());
        }
        Self { local_endpoint, tags }
    }
}

pub(crate) fn encode(resource: &EncodedResource, batch: &SpanBatch) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 + batch.spans.len() * (640 + resource.local_endpoint.len() + resource.tags.len()));
    out.push(b'[');
    for (i, span) in batch.spans.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        encode_span(&mut out, resource, batch, span);
    }
    out.push(b']');
    out
}

fn encode_span(out: &mut Vec<u8>, resource: &EncodedResource, batch: &SpanBatch, span: &QueuedSpan) {
    let context = &span.context;
    out.extend_from_slice(b"{\"traceId\":\"");
    let trace_id = context.trace_id.to_bytes();
    push_hex(out, if context.short_trace_id { &trace_id[8..] } else { &trace_id });
    out.extend_from_slice(b"\",\"id\":\"");
    push_hex(out, &context.span_id.to_bytes());
    if let Some(parent) = context.parent_id {
        out.extend_from_slice(b"\",\"parentId\":\"");
        push_hex(out, &parent.to_bytes());
    }
    let kind = match span.kind {
        SpanKind::Server => "SERVER",
        SpanKind::Client => "CLIENT",
    };
    let (method, route) = batch.name(span);
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let since_epoch = span.start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    for part in ["\",\"kind\":\"", kind, "\",\"name\":\"", method, if route.is_empty() { "" } else { " " }, route] {
        out.extend_from_slice(part.as_bytes());
    }
    out.extend_from_slice(b"\",\"timestamp\":");
    push_number(out, micros(since_epoch));
    out.extend_from_slice(b",\"duration\":");
    push_number(out, micros(span.duration).max(1));
    out.extend_from_slice(&resource.local_endpoint);
    if let Some((name, peer)) = batch.callee(span) {
        push_remote_endpoint(out, name, peer);
    }
    if context.sampling == Sampling::Debug {
        out.extend_from_slice(b",\"debug\":true");
    }
    out.extend_from_slice(b",\"tags\":{");
    out.extend_from_slice(&resource.tags);
    // Names and other constants need no escaping, and a scan of all texts at once costs less than one of each.
    let is_plain = escape::is_plain(batch.texts(span).as_bytes());
    let mut tag = |name: &str, value: AttributeValue<'_>| {
        out.extend_from_slice(b",\"");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":\"");
        match value {
            AttributeValue::Text(text) if is_plain => out.extend_from_slice(text.as_bytes()),
            AttributeValue::Text(text) => escape::push_escaped(out, text.as_bytes()),
            AttributeValue::Int(number) => push_number(out, number),
            AttributeValue::Address(address) => push_address(out, address),
        }
        out.push(b'"');
    };
    batch.attributes(span, &mut tag);
    if let Some(error) = batch.error_type(span) {
        let error = error.to_string();
        tag(ERROR_TYPE, AttributeValue::Text(&error));
        // Zipkin colours a span by this tag.
        tag("error", AttributeValue::Text(&error));
        tag("otel.status_code", AttributeValue::Text("ERROR"));
    }
    out.extend_from_slice(b"}}");
}

/// What was called: a callee that reports nothing itself is in Zipkin's dependency graph by this name.
fn push_remote_endpoint(out: &mut Vec<u8>, name: &str, peer: Option<SocketAddr>) {
    out.extend_from_slice(b",\"remoteEndpoint\":{\"serviceName\":");
    push_text(out, name.as_bytes());
    if let Some(peer) = peer {
        let ip = peer.ip().to_canonical();
        out.extend_from_slice(if ip.is_ipv4() { b",\"ipv4\":\"" } else { b",\"ipv6\":\"" });
        push_address(out, ip);
        out.extend_from_slice(b"\",\"port\":");
        push_number(out, peer.port().into());
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::span_queue::{FinishedSpan, SpanQueue};
    use crate::trace_context::Context;
    use crate::traces::{self, Kind};
    use opentelemetry::trace::{SpanId, TraceId};

    /// One text that needs escaping, whichever it is.
    #[test]
    fn every_text_of_a_span_is_escaped() {
        let context = Context {
            trace_id: TraceId::from(7),
            short_trace_id: false,
            random: false,
            span_id: SpanId::from(2),
            parent_id: None,
            sampling: Sampling::Sample,
        };
        let odd = "a\"\n\\";
        let span =
            || FinishedSpan { query: Some("q"), user_agent: "u", server: Some(("s", 1)), ..FinishedSpan::for_tests(&context) };
        let spans = [
            FinishedSpan { original_method: odd, ..span() },
            FinishedSpan { path: odd, ..span() },
            FinishedSpan { query: Some(odd), ..span() },
            FinishedSpan { user_agent: odd, ..span() },
            FinishedSpan { server: Some((odd, 1)), ..span() },
            FinishedSpan { request_id: odd, ..span() },
            FinishedSpan { kind: SpanKind::Client, base_url: odd, ..span() },
        ];
        let queue = SpanQueue::new(1000);
        spans.iter().for_each(|span| queue.push(span));
        let json = encode(&EncodedResource::new(&ResourceOptions::default()), &queue.take(true).pop().unwrap());
        let decoded = traces::decode(&json, 10).unwrap();
        assert_eq!(decoded.len(), spans.len());
        for span in &decoded {
            assert!(span.tags.iter().any(|(_, value)| value.contains(odd)), "{span:?}");
        }
    }

    #[test]
    fn what_is_written_by_hand_is_a_span_of_the_trace_model() {
        let context = Context {
            trace_id: TraceId::from(0xabc << 64 | 7),
            short_trace_id: false,
            random: false,
            span_id: SpanId::from(2),
            parent_id: Some(SpanId::from(1)),
            sampling: Sampling::Debug,
        };
        let resource = ResourceOptions {
            service_name: "a \"b\"".into(),
            attributes: vec![("lane".into(), "gray\n".into()), ("otel.scope.name".into(), "mine".into())],
        };
        let queue = SpanQueue::new(8);
        let span = FinishedSpan {
            start: SystemTime::UNIX_EPOCH + Duration::from_micros(1_767_323_045_678_901),
            duration: Duration::from_nanos(1),
            route: "/hello/{who}",
            status: 503,
            path: "/hello/ü\"\\\u{7}",
            client: Some("2001:db8::1".parse().unwrap()),
            server: Some(("localhost", 8080)),
            ..FinishedSpan::for_tests(&context)
        };
        queue.push(&span);
        let root = Context { short_trace_id: true, parent_id: None, ..context };
        let peer = Some("[2001:db8::2]:80".parse().unwrap());
        queue.push(&FinishedSpan { kind: SpanKind::Client, context: &root, route: "", status: 200, peer, ..span });
        let batch = queue.take(true).pop().unwrap();
        let json = encode(&EncodedResource::new(&resource), &batch);
        let [server, client] = &traces::decode(&json, 10).unwrap()[..] else { panic!("{}", String::from_utf8_lossy(&json)) };

        assert_eq!((server.trace_id, server.id, server.parent_id), (context.trace_id, context.span_id, context.parent_id));
        assert_eq!((client.trace_id, client.parent_id), (TraceId::from(7), None));
        assert_eq!((server.kind, client.kind), (Some(Kind::Server), Some(Kind::Client)));
        assert_eq!((server.name.as_deref(), client.name.as_deref()), (Some("GET /hello/{who}"), Some("GET")));
        assert_eq!((server.timestamp, server.duration), (Some(1_767_323_045_678_901), Some(1)));
        assert_eq!(server.local_endpoint.as_ref().unwrap().service_name.as_deref(), Some("a \"b\""));
        assert!(server.debug && !server.shared);
        let tags: Vec<_> = server.tags.iter().map(|(name, value)| (&**name, &**value)).collect();
        let expected = [
            ("client.address", "2001:db8::1"),
            ("error", "503"),
            ("error.type", "503"),
            ("http.request.method", "GET"),
            ("http.response.status_code", "503"),
            ("http.route", "/hello/{who}"),
            ("lane", "gray\n"),
            ("network.protocol.version", "1.1"),
            ("otel.library.name", "httpserver"),
            ("otel.library.version", env!("CARGO_PKG_VERSION")),
            ("otel.scope.name", "httpserver"),
            ("otel.scope.version", env!("CARGO_PKG_VERSION")),
            ("otel.status_code", "ERROR"),
            ("request.id", "r"),
            ("server.address", "localhost"),
            ("server.port", "8080"),
            ("url.path", "/hello/ü\"\\\u{7}"),
            ("url.scheme", "http"),
        ];
        assert_eq!(tags, expected);
        assert!(!client.tags.contains_key("error.type"));
        let callee = client.remote_endpoint.as_ref().unwrap();
        assert_eq!((callee.service_name.as_deref(), callee.port), (Some("localhost"), Some(80)));
        assert!(server.remote_endpoint.is_none());
        // Nothing is written that the model would write otherwise or not at all.
        let again: serde_json::Value = serde_json::to_value(traces::decode(&json, 10).unwrap()).unwrap();
        let written: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(again, written);
    }
}
