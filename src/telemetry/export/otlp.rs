//! OTLP over HTTP, protobuf.

use std::collections::HashMap;

use opentelemetry::trace::{SpanContext, SpanId, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Compression, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use opentelemetry_semantic_conventions::attribute::ERROR_TYPE;

use super::{ExportError, ExporterError, OtlpOptions, ResourceOptions, http_client, is_retryable};
use crate::telemetry::span_queue::{AttributeValue, QueuedSpan, SpanBatch, SpanKind};

/// Posts spans to an OTLP collector.
#[derive(Debug)]
pub(super) struct OtlpSink(opentelemetry_otlp::SpanExporter);

impl OtlpSink {
    pub(super) fn new(options: OtlpOptions, resource: ResourceOptions) -> Result<Self, ExporterError> {
        let mut builder = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(http_client(options.timeout)?)
            .with_endpoint(options.endpoint)
            .with_timeout(options.timeout)
            .with_headers(options.headers.into_iter().collect::<HashMap<_, _>>());
        if options.gzip {
            builder = builder.with_compression(Compression::Gzip);
        }
        let mut exporter = builder.build().map_err(ExporterError::Otlp)?;
        let attributes = resource.attributes.into_iter().map(|(key, value)| KeyValue::new(key, value));
        let resource = Resource::builder_empty().with_service_name(resource.service_name).with_attributes(attributes).build();
        exporter.set_resource(&resource);
        Ok(Self(exporter))
    }

    pub(super) async fn send(&self, batch: &SpanBatch, spans: &[QueuedSpan]) -> Result<(), ExportError> {
        let spans = spans.iter().map(|span| span_data(batch, span)).collect();
        self.0.export(spans).await.map_err(|error| {
            let reason = error.to_string();
            // The exporter reports the status only in its message. Without one there was no answer, which may change.
            let status = reason.rsplit_once("status code: ").and_then(|(_, code)| code.trim().parse().ok());
            ExportError { is_retryable: status.is_none_or(is_retryable), reason }
        })
    }
}

fn span_data(batch: &SpanBatch, span: &QueuedSpan) -> SpanData {
    let context = &span.context;
    let mut attributes = Vec::with_capacity(9);
    batch.attributes(span, |name, value| {
        attributes.push(match value {
            AttributeValue::Text(text) => KeyValue::new(name, text.to_owned()),
            AttributeValue::Int(number) => KeyValue::new(name, i64::from(number)),
            AttributeValue::Address(address) => KeyValue::new(name, address.to_string()),
        });
    });
    let error = batch.error_type(span);
    if let Some(error) = error {
        attributes.push(KeyValue::new(ERROR_TYPE, error.to_string()));
    }
    let (method, route) = batch.name(span);
    SpanData {
        span_context: SpanContext::new(context.trace_id, context.span_id, TraceFlags::SAMPLED, false, TraceState::NONE),
        parent_span_id: context.parent_id.unwrap_or(SpanId::INVALID),
        parent_span_is_remote: span.kind == SpanKind::Server,
        span_kind: match span.kind {
            SpanKind::Server => opentelemetry::trace::SpanKind::Server,
            SpanKind::Client => opentelemetry::trace::SpanKind::Client,
        },
        name: if route.is_empty() { method.into() } else { format!("{method} {route}").into() },
        start_time: span.start,
        end_time: span.start + span.duration,
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: if error.is_some() { Status::error("") } else { Status::Unset },
        instrumentation_scope: InstrumentationScope::builder("httpserver").with_version(env!("CARGO_PKG_VERSION")).build(),
    }
}
