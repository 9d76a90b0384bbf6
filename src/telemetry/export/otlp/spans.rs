//! Spans as OTLP.
//!
//! The exporter of `opentelemetry-otlp` accepts the SDK's `SpanData` only, and the way from our batch through it costs several
//! times as much as the encoding itself (`ARCHITECTURE.md`, "What own code of telemetry buys").

use std::time::SystemTime;

use opentelemetry_proto::tonic::trace::v1::SpanFlags;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind as OtlpSpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_semantic_conventions::attribute::ERROR_TYPE;

use super::{Envelope, nanoseconds, push_attribute, push_field, push_item, push_key};
use crate::telemetry::export::ResourceOptions;
use crate::telemetry::span_queue::{AttributeValue, QueuedSpan, SpanBatch, SpanKind};
use crate::trace_context::flags;

/// Numbers of the fields of a span and its status, as `trace.proto` of OpenTelemetry assigns them.
mod field {
    pub(super) const TRACE_ID: u8 = 1;
    pub(super) const SPAN_ID: u8 = 2;
    pub(super) const TRACE_STATE: u8 = 3;
    pub(super) const PARENT_SPAN_ID: u8 = 4;
    pub(super) const NAME: u8 = 5;
    pub(super) const KIND: u8 = 6;
    pub(super) const START_TIME: u8 = 7;
    pub(super) const END_TIME: u8 = 8;
    pub(super) const ATTRIBUTES: u8 = 9;
    pub(super) const STATUS: u8 = 15;
    pub(super) const FLAGS: u8 = 16;
    pub(super) const STATUS_CODE: u8 = 3;
}

/// The types of fields that have no length, in the lowest three bits of their keys.
mod wire_type {
    pub(super) const VARINT: u8 = 0;
    pub(super) const FIXED_64: u8 = 1;
    pub(super) const FIXED_32: u8 = 5;
}

/// Encodes spans of one resource.
#[derive(Debug)]
pub(crate) struct OtlpEncoder(Envelope);

impl OtlpEncoder {
    pub(crate) fn new(resource: ResourceOptions) -> Self {
        Self(Envelope::new(resource))
    }

    /// The bytes of an `ExportTraceServiceRequest`.
    pub(crate) fn encode(&self, batch: &SpanBatch) -> Vec<u8> {
        let mut request = self.0.open(batch.spans.len() * 512);
        let (mut encoded, mut scratch) = (Vec::with_capacity(1024), Vec::with_capacity(64));
        for span in &batch.spans {
            encoded.clear();
            encode_span(&mut encoded, &mut scratch, batch, span);
            push_item(&mut request, &encoded);
        }
        self.0.close(&mut request);
        request
    }
}

/// Written field by field: a message of `prost` counts its lengths before it writes them, and its texts are copied into it first.
fn encode_span(out: &mut Vec<u8>, scratch: &mut Vec<u8>, batch: &SpanBatch, span: &QueuedSpan) {
    let context = &span.context;
    push_field(out, field::TRACE_ID, &context.trace_id.to_bytes());
    push_field(out, field::SPAN_ID, &context.span_id.to_bytes());
    let trace_state = batch.trace_state(span);
    if !trace_state.is_empty() {
        push_field(out, field::TRACE_STATE, trace_state.as_bytes());
    }
    if let Some(parent) = context.parent_id {
        push_field(out, field::PARENT_SPAN_ID, &parent.to_bytes());
    }
    let (method, route) = batch.name(span);
    let space = if route.is_empty() { "" } else { " " };
    push_key(out, field::NAME, method.len() + space.len() + route.len());
    for part in [method, space, route] {
        out.extend_from_slice(part.as_bytes());
    }
    // Whether the parent is remote: a root has none, and a client span's is the server span.
    let (kind, is_remote) = match span.kind {
        SpanKind::Server => (OtlpSpanKind::Server, context.parent_id.is_some()),
        SpanKind::Client => (OtlpSpanKind::Client, false),
    };
    out.extend_from_slice(&[field::KIND << 3 | wire_type::VARINT, kind as u8]);
    let start = nanoseconds(span.start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    for (number, time) in [(field::START_TIME, start), (field::END_TIME, start.saturating_add(nanoseconds(span.duration)))] {
        out.push(number << 3 | wire_type::FIXED_64);
        out.extend_from_slice(&time.to_le_bytes());
    }
    batch.attributes(span, |name, value| push_attribute(out, scratch, field::ATTRIBUTES, name, value));
    let error = batch.error_type(span);
    if let Some(error) = error {
        push_attribute(out, scratch, field::ATTRIBUTES, ERROR_TYPE, AttributeValue::Text(&error.to_string()));
    }
    let code = if error.is_some() { StatusCode::Error } else { StatusCode::Unset };
    push_field(out, field::STATUS, &[field::STATUS_CODE << 3 | wire_type::VARINT, code as u8]);
    let remote = if is_remote { SpanFlags::ContextIsRemoteMask as u32 } else { 0 };
    let flags = u32::from(flags(context)) | SpanFlags::ContextHasIsRemoteMask as u32 | remote;
    // The key of a field above 15 has two bytes.
    out.extend_from_slice(&[(field::FLAGS & 0xf) << 3 | wire_type::FIXED_32 | 0x80, field::FLAGS >> 4]);
    out.extend_from_slice(&flags.to_le_bytes());
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
    use prost::Message as _;
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
        let batch = queue.take(true).pop().unwrap();
        let encoder = OtlpEncoder::new(ResourceOptions {
            service_name: "service1".into(),
            attributes: vec![("lane".into(), "gray".into())],
        });

        let request = ExportTraceServiceRequest::decode(&*encoder.encode(&batch)).unwrap();
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
