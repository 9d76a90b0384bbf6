//! OTLP over HTTP, protobuf, in the types of `opentelemetry-proto`.
//!
//! The exporter of `opentelemetry-otlp` accepts the SDK's `SpanData` only, and the way from our batch through it costs several
//! times as much as the encoding itself (`ARCHITECTURE.md`, "What was asked for, and where it works").

use std::io::Write as _;
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use http::{HeaderName, HeaderValue};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind as OtlpSpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span as OtlpSpan, SpanFlags, Status};
use opentelemetry_semantic_conventions::SCHEMA_URL;
use opentelemetry_semantic_conventions::attribute::{ERROR_TYPE, SERVICE_NAME};
use prost::Message as _;
use prost::encoding::int64;

use super::http::shown;
use super::{Accepted, Collector, ExportError, ExporterError, OtlpOptions, Protocol, ResourceOptions};
use crate::telemetry::span_queue::{AttributeValue, QueuedSpan, SpanBatch, SpanKind};
use crate::text::number::push_address;
use crate::trace_context::flags;

/// Numbers of the fields that nest spans and attributes, as `trace_service.proto`, `trace.proto` and `common.proto` of
/// OpenTelemetry assign them.
mod field {
    pub(super) const REQUEST_RESOURCE_SPANS: u8 = 1;
    pub(super) const RESOURCE_SPANS_RESOURCE: u8 = 1;
    pub(super) const RESOURCE_SPANS_SCOPE_SPANS: u8 = 2;
    pub(super) const SCOPE_SPANS_SCOPE: u8 = 1;
    pub(super) const SCOPE_SPANS_SPANS: u8 = 2;
    pub(super) const SCOPE_SPANS_SCHEMA_URL: u8 = 3;
    pub(super) const SPAN_ATTRIBUTES: u8 = 9;
    pub(super) const KEY_VALUE_KEY: u8 = 1;
    pub(super) const KEY_VALUE_VALUE: u8 = 2;
    pub(super) const ANY_VALUE_STRING: u8 = 1;
    pub(super) const ANY_VALUE_INT: u8 = 3;
}

/// Posts spans to an OTLP collector.
#[derive(Debug)]
pub(super) struct OtlpSink {
    collector: Collector,
    gzip: bool,
    encoder: OtlpEncoder,
}

/// Encodes spans of one resource.
#[derive(Debug)]
pub(crate) struct OtlpEncoder {
    /// The field `resource` of `ResourceSpans`, encoded once.
    resource: Vec<u8>,
    /// The fields `schema_url` and `scope` of `ScopeSpans`, encoded once.
    scope: Vec<u8>,
}

impl OtlpSink {
    pub(super) fn new(options: OtlpOptions, resource: ResourceOptions) -> Result<Self, ExporterError> {
        let mut headers = HeaderMap::new();
        for (name, value) in options.headers {
            match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(&value)) {
                (Ok(name), Ok(value)) => headers.insert(name, value),
                _ => return Err(ExporterError::Header(name)),
            };
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        if options.gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        let collector = Collector::new(Protocol::OtlpHttp, &options.endpoint, headers, options.timeout, options.tls)?;
        Ok(Self { collector, gzip: options.gzip, encoder: OtlpEncoder::new(resource) })
    }

    pub(super) async fn send(&self, batch: &SpanBatch, spans: &[QueuedSpan]) -> Result<Accepted, ExportError> {
        let mut body = self.encoder.encode(batch, spans);
        if self.gzip {
            body = gzip(&body).map_err(|error| ExportError::rejected(error.to_string()))?;
        }
        Ok(accepted(&self.collector.post(body).await?))
    }
}

fn gzip(body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::default());
    encoder.write_all(body)?;
    encoder.finish()
}

/// What a successful answer says. Collectors that answer otherwise than the protocol requires have accepted everything.
fn accepted(answer: &[u8]) -> Accepted {
    let partial = ExportTraceServiceResponse::decode(answer).ok().and_then(|response| response.partial_success);
    let partial = partial.unwrap_or_default();
    let rejected = usize::try_from(partial.rejected_spans).unwrap_or(0);
    let message = shown(&partial.error_message);
    Accepted { rejected, message: (rejected > 0 || !message.is_empty()).then_some(message) }
}

impl OtlpEncoder {
    pub(crate) fn new(resource: ResourceOptions) -> Self {
        let attributes = [(SERVICE_NAME.to_owned(), resource.service_name)].into_iter().chain(resource.attributes);
        let attributes = attributes.map(|(key, value)| KeyValue {
            key,
            value: Some(AnyValue { value: Some(Value::StringValue(value)) }),
            ..Default::default()
        });
        let scope = InstrumentationScope {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        };
        let resource = Resource { attributes: attributes.collect(), ..Default::default() };
        let encoded = |number, message: Vec<u8>| {
            let mut out = Vec::new();
            push_field(&mut out, number, &message);
            out
        };
        let mut scope = encoded(field::SCOPE_SPANS_SCOPE, scope.encode_to_vec());
        push_field(&mut scope, field::SCOPE_SPANS_SCHEMA_URL, SCHEMA_URL.as_bytes());
        Self { resource: encoded(field::RESOURCE_SPANS_RESOURCE, resource.encode_to_vec()), scope }
    }

    /// The bytes of an `ExportTraceServiceRequest`.
    pub(crate) fn encode(&self, batch: &SpanBatch, spans: &[QueuedSpan]) -> Vec<u8> {
        let mut scope_spans = Vec::with_capacity(self.scope.len() + spans.len() * 384);
        scope_spans.extend_from_slice(&self.scope);
        // One message, filled again for each span: its buffers are reused.
        let (mut message, mut encoded) = (OtlpSpan::default(), Vec::with_capacity(512));
        for span in spans {
            fill(&mut message, batch, span);
            encoded.clear();
            // Fails only when the buffer cannot grow.
            let _ = message.encode(&mut encoded);
            push_attributes(&mut encoded, batch, span);
            push_field(&mut scope_spans, field::SCOPE_SPANS_SPANS, &encoded);
        }
        let mut resource_spans = Vec::with_capacity(self.resource.len() + scope_spans.len() + 8);
        resource_spans.extend_from_slice(&self.resource);
        push_field(&mut resource_spans, field::RESOURCE_SPANS_SCOPE_SPANS, &scope_spans);
        let mut request = scope_spans;
        request.clear();
        push_field(&mut request, field::REQUEST_RESOURCE_SPANS, &resource_spans);
        request
    }
}

/// The key of a length-delimited field; numbers up to 15 are one byte.
const fn key(number: u8) -> u8 {
    const LENGTH_DELIMITED: u8 = 2;
    number << 3 | LENGTH_DELIMITED
}

fn push_field(out: &mut Vec<u8>, number: u8, message: &[u8]) {
    out.push(key(number));
    let _ = prost::encode_length_delimiter(message.len(), out);
    out.extend_from_slice(message);
}

/// Sets every field of a span but its attributes.
fn fill(message: &mut OtlpSpan, batch: &SpanBatch, span: &QueuedSpan) {
    let set_bytes = |field: &mut Vec<u8>, bytes: &[u8]| {
        field.clear();
        field.extend_from_slice(bytes);
    };
    let context = &span.context;
    set_bytes(&mut message.trace_id, &context.trace_id.to_bytes());
    set_bytes(&mut message.span_id, &context.span_id.to_bytes());
    match context.parent_id {
        Some(parent) => set_bytes(&mut message.parent_span_id, &parent.to_bytes()),
        None => message.parent_span_id.clear(),
    }
    // Whether the parent is remote: a root has none, and a client span's is the server span.
    let (kind, is_remote) = match span.kind {
        SpanKind::Server => (OtlpSpanKind::Server, context.parent_id.is_some()),
        SpanKind::Client => (OtlpSpanKind::Client, false),
    };
    message.kind = kind as i32;
    let remote = if is_remote { SpanFlags::ContextIsRemoteMask as u32 } else { 0 };
    message.flags = u32::from(flags(context)) | SpanFlags::ContextHasIsRemoteMask as u32 | remote;
    message.trace_state.clear();
    message.trace_state.push_str(batch.trace_state(span));
    let (method, route) = batch.name(span);
    message.name.clear();
    message.name.extend([method, if route.is_empty() { "" } else { " " }, route]);
    message.start_time_unix_nano = nanoseconds(span.start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    message.end_time_unix_nano = message.start_time_unix_nano.saturating_add(nanoseconds(span.duration));
    let code = if batch.error_type(span).is_some() { StatusCode::Error } else { StatusCode::Unset };
    message.status = Some(Status { code: code as i32, message: String::new() });
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Appends the attributes of a span to its encoded message. As messages, three deep, their lengths are counted again at each level.
fn push_attributes(out: &mut Vec<u8>, batch: &SpanBatch, span: &QueuedSpan) {
    let (mut any_value, mut text) = (Vec::with_capacity(128), Vec::new());
    let mut push = |name: &str, value: AttributeValue<'_>| {
        any_value.clear();
        match value {
            AttributeValue::Text(text) => push_field(&mut any_value, field::ANY_VALUE_STRING, text.as_bytes()),
            AttributeValue::Int(number) => int64::encode(field::ANY_VALUE_INT.into(), &number.into(), &mut any_value),
            AttributeValue::Address(address) => {
                text.clear();
                push_address(&mut text, address);
                push_field(&mut any_value, field::ANY_VALUE_STRING, &text);
            }
        }
        let field_len = |content: usize| 1 + prost::length_delimiter_len(content) + content;
        out.push(key(field::SPAN_ATTRIBUTES));
        let _ = prost::encode_length_delimiter(field_len(name.len()) + field_len(any_value.len()), out);
        push_field(out, field::KEY_VALUE_KEY, name.as_bytes());
        push_field(out, field::KEY_VALUE_VALUE, &any_value);
    };
    batch.attributes(span, &mut push);
    if let Some(error) = batch.error_type(span) {
        push(ERROR_TYPE, AttributeValue::Text(&error.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::span_queue::{FinishedSpan, SpanQueue};
    use crate::trace_context::{Context, Sampling};
    use opentelemetry::trace::{SpanId, TraceId};
    use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceRequest};
    use std::collections::BTreeMap;

    fn attributes(list: &[KeyValue]) -> BTreeMap<&str, String> {
        let value = |attribute: &KeyValue| match attribute.value.clone().unwrap().value.unwrap() {
            Value::StringValue(text) => text,
            Value::IntValue(number) => number.to_string(),
            other => panic!("{other:?}"),
        };
        list.iter().map(|attribute| (attribute.key.as_str(), value(attribute))).collect()
    }

    #[test]
    fn a_request_decodes_to_what_was_queued_and_no_span_inherits_from_the_one_before() {
        let context = |id: u64, parent| Context {
            trace_id: TraceId::from(7),
            short_trace_id: false,
            random: false,
            span_id: SpanId::from(id),
            parent_id: parent,
            sampling: Sampling::Sample,
        };
        let (first, second) = (context(1, Some(SpanId::from(9))), context(2, None));
        let queue = SpanQueue::new(8);
        let span = FinishedSpan {
            start: SystemTime::UNIX_EPOCH + Duration::from_secs(3),
            status: 503,
            client: Some([10, 0, 0, 7].into()),
            server: Some(("localhost", 8080)),
            request_id: "a-long-request-id",
            ..FinishedSpan::for_tests(&first)
        };
        queue.push(&span);
        queue.push(&FinishedSpan { context: &second, route: "", status: 200, client: None, request_id: "r", ..span });
        queue.push(&FinishedSpan { kind: SpanKind::Client, context: &first, error: Some("timeout"), status: 0, ..span });
        let batch = queue.take(SpanBatch::default());
        let encoder = OtlpEncoder::new(ResourceOptions {
            service_name: "service1".into(),
            attributes: vec![("lane".into(), "gray".into())],
        });

        let request = ExportTraceServiceRequest::decode(&*encoder.encode(&batch, &batch.spans)).unwrap();
        let [resource_spans] = &request.resource_spans[..] else { panic!("{request:?}") };
        let resource = resource_spans.resource.as_ref().unwrap();
        assert_eq!(attributes(&resource.attributes), [("service.name", "service1".into()), ("lane", "gray".into())].into());
        let [scope_spans] = &resource_spans.scope_spans[..] else { panic!("{request:?}") };
        assert_eq!(scope_spans.scope.as_ref().unwrap().name, "httpserver");
        let [server, root, client] = &scope_spans.spans[..] else { panic!("{request:?}") };
        assert_eq!(
            (&server.trace_id[..], &server.span_id[..]),
            (&TraceId::from(7).to_bytes()[..], &[0, 0, 0, 0, 0, 0, 0, 1][..])
        );
        assert_eq!((server.parent_span_id.len(), root.parent_span_id.len()), (8, 0));
        assert_eq!((server.name.as_str(), root.name.as_str()), ("GET /hello", "GET"));
        assert_eq!([server, root, client].map(|span| span.flags), [0x301, 0x101, 0x101], "a root has no remote parent");
        assert_eq!((server.start_time_unix_nano, server.end_time_unix_nano), (3_000_000_000, 3_000_005_000));
        let statuses = [server, root, client].map(|span| span.status.as_ref().unwrap().code);
        assert_eq!(statuses, [StatusCode::Error, StatusCode::Unset, StatusCode::Error].map(|code| code as i32));
        let expected = [
            ("http.request.method", "GET"),
            ("url.scheme", "http"),
            ("url.path", "/hello"),
            ("network.protocol.version", "1.1"),
            ("server.address", "localhost"),
            ("server.port", "8080"),
            ("request.id", "r"),
            ("http.response.status_code", "200"),
        ];
        assert_eq!(attributes(&root.attributes), expected.map(|(name, value)| (name, value.to_owned())).into());
        assert_eq!(attributes(&server.attributes)["error.type"], "503");
        assert_eq!(attributes(&server.attributes)["client.address"], "10.0.0.7");
        assert_eq!(attributes(&client.attributes)["error.type"], "timeout");
    }

    #[test]
    fn a_partial_success_says_how_many_spans_were_rejected() {
        let answer = |rejected_spans, error_message: &str| {
            let partial = ExportTracePartialSuccess { rejected_spans, error_message: error_message.into() };
            accepted(&ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec())
        };
        assert_eq!(answer(3, "too\nold"), Accepted { rejected: 3, message: Some("too\\nold".into()) });
        assert_eq!(answer(0, "slow down"), Accepted { rejected: 0, message: Some("slow down".into()) });
        assert_eq!((answer(0, ""), answer(-1, "")), Default::default());
        assert_eq!([&b""[..], b"{}", b"<html>"].map(accepted), [const { Accepted { rejected: 0, message: None } }; 3]);
    }
}
