//! Spans as OTLP.
//!
//! The exporter of `opentelemetry-otlp` accepts the SDK's `SpanData` only, and the way from our batch through it costs several
//! times as much as the encoding itself (`ARCHITECTURE.md`, "What was asked for, and where it works").

use std::time::SystemTime;

use opentelemetry_proto::tonic::trace::v1::span::SpanKind as OtlpSpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span as OtlpSpan, SpanFlags, Status};
use opentelemetry_semantic_conventions::attribute::ERROR_TYPE;
use prost::Message as _;

use super::{Envelope, nanoseconds, push_attribute, push_item};
use crate::telemetry::export::ResourceOptions;
use crate::telemetry::span_queue::{AttributeValue, QueuedSpan, SpanBatch, SpanKind};
use crate::trace_context::flags;

/// The number of the field that nests attributes, as `trace.proto` of OpenTelemetry assigns it.
const SPAN_ATTRIBUTES: u8 = 9;

/// Encodes spans of one resource.
#[derive(Debug)]
pub(crate) struct OtlpEncoder(Envelope);

impl OtlpEncoder {
    pub(crate) fn new(resource: ResourceOptions) -> Self {
        Self(Envelope::new(resource))
    }

    /// The bytes of an `ExportTraceServiceRequest`.
    pub(crate) fn encode(&self, batch: &SpanBatch, spans: &[QueuedSpan]) -> Vec<u8> {
        let mut scope_spans = self.0.open(spans.len() * 512);
        // One message, filled again for each span: its buffers are reused.
        let (mut message, mut encoded, mut scratch) = (OtlpSpan::default(), Vec::with_capacity(512), Vec::with_capacity(128));
        for span in spans {
            fill(&mut message, batch, span);
            encoded.clear();
            // Fails only when the buffer cannot grow.
            let _ = message.encode(&mut encoded);
            let mut push = |name: &str, value: AttributeValue<'_>| {
                push_attribute(&mut encoded, &mut scratch, SPAN_ATTRIBUTES, name, value);
            };
            batch.attributes(span, &mut push);
            if let Some(error) = batch.error_type(span) {
                push(ERROR_TYPE, AttributeValue::Text(&error.to_string()));
            }
            push_item(&mut scope_spans, &encoded);
        }
        self.0.close(&scope_spans)
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::span_queue::{FinishedSpan, SpanQueue};
    use crate::trace_context::{Context, Sampling};
    use opentelemetry::trace::{SpanId, TraceId};
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::common::v1::KeyValue;
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use std::collections::BTreeMap;
    use std::time::Duration;

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
}
