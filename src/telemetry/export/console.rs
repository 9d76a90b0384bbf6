//! Spans as lines on stderr.

use std::io::Write as _;

use super::ResourceOptions;
use crate::telemetry::line_writer::LineWriter;
use crate::telemetry::span_queue::{AttributeValue, QueuedSpan, SpanBatch, SpanKind};
use crate::text::escape::push_escaped;
use crate::text::hex::push_hex;
use crate::text::number::{push_address, push_milliseconds, push_number};

/// Writes each span as one line.
#[derive(Debug)]
pub(super) struct ConsoleSink {
    out: LineWriter,
    service: String,
}

impl ConsoleSink {
    pub(super) fn new(out: LineWriter, resource: ResourceOptions) -> Self {
        Self { out, service: resource.service_name }
    }

    pub(super) fn send(&self, batch: &SpanBatch) {
        for span in &batch.spans {
            self.out.line(|line| self.write(line, batch, span));
        }
    }

    fn write(&self, line: &mut Vec<u8>, batch: &SpanBatch, span: &QueuedSpan) {
        line.extend_from_slice(b"span trace=");
        push_hex(line, &span.context.trace_id.to_bytes());
        line.extend_from_slice(b" id=");
        push_hex(line, &span.context.span_id.to_bytes());
        if let Some(parent) = span.context.parent_id {
            line.extend_from_slice(b" parent=");
            push_hex(line, &parent.to_bytes());
        }
        let kind = match span.kind {
            SpanKind::Server => "server",
            SpanKind::Client => "client",
        };
        let (method, route) = batch.name(span);
        let space = if route.is_empty() { "" } else { " " };
        let _ = write!(line, " {kind} {} \"{method}{space}{route}\" ", self.service);
        push_milliseconds(line, span.duration);
        line.extend_from_slice(b"ms");
        batch.attributes(span, |name, value| {
            let _ = write!(line, " {name}=");
            match value {
                AttributeValue::Text(text) => push_escaped(line, text.as_bytes()),
                AttributeValue::Int(number) => push_number(line, number),
                AttributeValue::Address(address) => push_address(line, address),
            }
        });
        if let Some(error) = batch.error_type(span) {
            let _ = write!(line, " error.type={error}");
        }
        line.push(b'\n');
    }
}
