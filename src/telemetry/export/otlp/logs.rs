//! Log records as OTLP.

use std::time::SystemTime;

use opentelemetry_proto::tonic::logs::v1::{LogRecord, SeverityNumber};
use prost::Message as _;
use tracing::Level;

use super::{Envelope, nanoseconds, push_attribute, push_field, push_item};
use crate::telemetry::export::ResourceOptions;
use crate::telemetry::log_queue::{LogBatch, QueuedRecord};
use crate::trace_context::flags;

/// Numbers of the fields that hold texts, as `logs.proto` and `common.proto` of OpenTelemetry assign them.
mod field {
    pub(super) const RECORD_BODY: u8 = 5;
    pub(super) const RECORD_ATTRIBUTES: u8 = 6;
}

/// Encodes log records of one resource.
#[derive(Debug)]
pub(crate) struct LogEncoder(Envelope);

impl LogEncoder {
    pub(crate) fn new(resource: ResourceOptions) -> Self {
        Self(Envelope::new(resource))
    }

    /// The bytes of an `ExportLogsServiceRequest`.
    pub(crate) fn encode(&self, batch: &LogBatch) -> Vec<u8> {
        let mut request = self.0.open(batch.records.len() * 384);
        let (mut message, mut encoded, mut body) = (LogRecord::default(), Vec::with_capacity(512), Vec::with_capacity(256));
        for record in &batch.records {
            fill(&mut message, record);
            encoded.clear();
            // Fails only when the buffer cannot grow.
            let _ = message.encode(&mut encoded);
            body.clear();
            push_field(&mut body, super::field::ANY_VALUE_STRING, batch.body(record).as_bytes());
            push_field(&mut encoded, field::RECORD_BODY, &body);
            batch
                .attributes(record, |name, value| push_attribute(&mut encoded, &mut body, field::RECORD_ATTRIBUTES, name, value));
            push_item(&mut request, &encoded);
        }
        self.0.close(&mut request);
        request
    }
}

/// Sets every field of a record but its body and attributes.
fn fill(message: &mut LogRecord, record: &QueuedRecord) {
    let (number, text) = match record.level {
        Level::ERROR => (SeverityNumber::Error, "ERROR"),
        Level::WARN => (SeverityNumber::Warn, "WARN"),
        Level::INFO => (SeverityNumber::Info, "INFO"),
        Level::DEBUG => (SeverityNumber::Debug, "DEBUG"),
        Level::TRACE => (SeverityNumber::Trace, "TRACE"),
    };
    message.severity_number = number as i32;
    message.severity_text.clear();
    message.severity_text.push_str(text);
    message.time_unix_nano = nanoseconds(record.time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    message.observed_time_unix_nano = message.time_unix_nano;
    message.trace_id.clear();
    message.span_id.clear();
    message.flags = 0;
    if let Some(context) = &record.context {
        message.trace_id.extend_from_slice(&context.trace_id.to_bytes());
        message.span_id.extend_from_slice(&context.span_id.to_bytes());
        message.flags = flags(context).into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::log_queue::{AccessEntry, LogQueue};
    use crate::trace_context::{Context, Sampling};
    use opentelemetry::trace::{SpanId, TraceId};
    use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use std::time::Duration;

    #[test]
    fn a_request_decodes_to_the_lines_and_no_record_inherits_from_the_one_before() {
        let context = Context {
            trace_id: TraceId::from(7),
            short_trace_id: false,
            random: true,
            span_id: SpanId::from(8),
            parent_id: None,
            sampling: Sampling::Sample,
        };
        let entry = AccessEntry {
            started_at: SystemTime::UNIX_EPOCH + Duration::from_secs(3),
            duration: Duration::from_millis(2),
            client: [10, 0, 0, 7].into(),
            method: "GET",
            known_method: "GET",
            path: "/service1",
            status: 502,
            answered: 502,
            bytes: 1 << 33,
            request_id: b"r-1",
            trace: Some(&context),
            lane: "base",
            upstream_status: None,
            protocol: None,
            grpc_status: None,
            cut: None,
        };
        let queue = LogQueue::new(8);
        queue.push_request(&entry, b"a line\n");
        queue.push_request(&AccessEntry { known_method: "_OTHER", trace: None, ..entry }, b"\xff\n");
        let batch = queue.take(true).pop().unwrap();
        let encoder = LogEncoder::new(ResourceOptions { service_name: "service1".into(), attributes: Vec::new() });
        let request = ExportLogsServiceRequest::decode(&*encoder.encode(&batch)).unwrap();
        let scope = &request.resource_logs[0].scope_logs[0];
        assert_eq!(scope.scope.as_ref().unwrap().name, "httpserver");
        let [line, other] = &scope.log_records[..] else { panic!("{request:?}") };
        let text = |value: &Value| match value {
            Value::StringValue(text) => text.clone(),
            Value::IntValue(number) => number.to_string(),
            other => panic!("{other:?}"),
        };
        let bodies = [line, other].map(|record| text(record.body.as_ref().unwrap().value.as_ref().unwrap()));
        assert_eq!(bodies, ["a line", "\u{fffd}"]);
        assert_eq!((line.time_unix_nano, line.severity_number, line.severity_text.as_str()), (3_002_000_000, 9, "INFO"));
        assert_eq!((&line.trace_id[..], &line.span_id[..]), (&context.trace_id.to_bytes()[..], &context.span_id.to_bytes()[..]));
        assert_eq!((line.flags, other.flags, other.trace_id.len(), other.span_id.len()), (3, 0, 0, 0));
        let attribute = |name: &str| {
            let found = line.attributes.iter().find(|attribute| attribute.key == name).expect(name);
            text(found.value.as_ref().unwrap().value.as_ref().unwrap())
        };
        for (name, value) in [
            ("http.request.method", "GET"),
            ("url.path", "/service1"),
            ("http.response.status_code", "502"),
            ("http.response.body.size", "8589934592"),
            ("client.address", "10.0.0.7"),
            ("request.id", "r-1"),
        ] {
            assert_eq!(attribute(name), value);
        }
        assert!(format!("{:?}", other.attributes).contains("_OTHER"), "{other:?}");
    }
}
