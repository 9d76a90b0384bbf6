//! OTLP, over HTTP and over gRPC: the collector, and what the requests of all signals have in common. The messages are those of
//! `opentelemetry-proto`; each signal's are encoded in a file of its own.

mod logs;
mod metrics;
mod spans;

pub(crate) use logs::LogEncoder;
pub(crate) use metrics::MetricEncoder;
pub(crate) use spans::OtlpEncoder;

use std::io::Write as _;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, USER_AGENT};
use http::{HeaderName, HeaderValue};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_semantic_conventions::SCHEMA_URL;
use opentelemetry_semantic_conventions::attribute::SERVICE_NAME;
use prost::Message as _;
use prost::encoding::int64;

use super::grpc::GrpcCollector;
use super::http::shown;
use super::{
    Accepted, Collector, ExportError, ExportProtocol, ExporterError, OtlpOptions, OtlpProtocol, ResourceOptions, Signal,
};
use crate::telemetry::span_queue::AttributeValue;
use crate::text::number::push_address;

/// Where one signal is sent to.
#[derive(Debug)]
pub(crate) struct OtlpCollector(Transport);

#[derive(Debug)]
enum Transport {
    Http { collector: Box<Collector>, gzip: bool },
    Grpc(Box<GrpcCollector>),
}

impl OtlpCollector {
    /// # Errors
    ///
    /// The endpoint or a header cannot be used.
    pub(crate) fn new(signal: Signal, options: OtlpOptions) -> Result<Self, ExporterError> {
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("httpserver/", env!("CARGO_PKG_VERSION"))));
        for (name, value) in &options.headers {
            match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
                (Ok(name), Ok(value)) => headers.insert(name, value),
                _ => return Err(ExporterError::Header(name.clone())),
            };
        }
        let gzip = options.gzip;
        Ok(Self(match options.protocol {
            OtlpProtocol::Grpc => Transport::Grpc(Box::new(GrpcCollector::new(signal, options, headers)?)),
            OtlpProtocol::HttpProtobuf => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
                if gzip {
                    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                }
                let protocol = ExportProtocol::OtlpHttp(signal);
                let collector = Collector::new(protocol, &options.endpoint, headers, options.timeout, options.tls)?;
                Transport::Http { collector: Box::new(collector), gzip }
            }
        }))
    }

    /// Sends an encoded request, in at most `limit` if that is less than the exporter's own timeout.
    pub(crate) async fn export(&self, body: Vec<u8>, limit: Duration) -> Result<Accepted, ExportError> {
        Ok(match &self.0 {
            Transport::Http { collector, gzip: false } => accepted(&collector.post(body, limit).await?),
            Transport::Http { collector, gzip: true } => {
                let body = gzip(&body).map_err(|error| ExportError::rejected(error.to_string()))?;
                accepted(&collector.post(body, limit).await?)
            }
            Transport::Grpc(collector) => accepted(&collector.export(body, limit).await?),
        })
    }
}

fn gzip(body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::default());
    encoder.write_all(body)?;
    encoder.finish()
}

/// What a successful answer says; those of all signals have the same fields. Collectors that answer otherwise than the protocol
/// requires have accepted everything.
fn accepted(answer: &[u8]) -> Accepted {
    let partial = ExportTraceServiceResponse::decode(answer).ok().and_then(|response| response.partial_success);
    let partial = partial.unwrap_or_default();
    let rejected = usize::try_from(partial.rejected_spans).unwrap_or(0);
    let message = shown(&partial.error_message);
    Accepted { rejected, message: (rejected > 0 || !message.is_empty()).then_some(message) }
}

/// Numbers of the fields around the spans, metrics and log records of a request, the same for every signal, and of attributes.
mod field {
    pub(super) const REQUEST_RESOURCE_ITEMS: u8 = 1;
    pub(super) const RESOURCE_ITEMS_RESOURCE: u8 = 1;
    pub(super) const RESOURCE_ITEMS_SCOPE_ITEMS: u8 = 2;
    pub(super) const SCOPE_ITEMS_SCOPE: u8 = 1;
    pub(super) const SCOPE_ITEMS_ITEMS: u8 = 2;
    pub(super) const SCOPE_ITEMS_SCHEMA_URL: u8 = 3;
    pub(super) const KEY_VALUE_KEY: u8 = 1;
    pub(super) const KEY_VALUE_VALUE: u8 = 2;
    pub(super) const ANY_VALUE_STRING: u8 = 1;
    pub(super) const ANY_VALUE_INT: u8 = 3;
}

/// What is around the items of every request of a hop.
#[derive(Debug)]
struct Envelope {
    /// The field `resource` of `ResourceSpans` and its like, encoded once.
    resource: Vec<u8>,
    /// The fields `schema_url` and `scope` of `ScopeSpans` and its like, encoded once.
    scope: Vec<u8>,
}

impl Envelope {
    fn new(resource: ResourceOptions) -> Self {
        let attributes = [(SERVICE_NAME.to_owned(), resource.service_name)].into_iter().chain(resource.attributes);
        let attributes = attributes.map(|(key, value)| attribute(key, Value::StringValue(value)));
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
        let mut scope = encoded(field::SCOPE_ITEMS_SCOPE, scope.encode_to_vec());
        push_field(&mut scope, field::SCOPE_ITEMS_SCHEMA_URL, SCHEMA_URL.as_bytes());
        Self { resource: encoded(field::RESOURCE_ITEMS_RESOURCE, resource.encode_to_vec()), scope }
    }

    /// A buffer for items, each to be added by [`push_item`].
    fn open(&self, bytes: usize) -> Vec<u8> {
        let mut scope_items = Vec::with_capacity(self.scope.len() + bytes);
        scope_items.extend_from_slice(&self.scope);
        scope_items
    }

    /// The bytes of the request around the items.
    fn close(&self, scope_items: &[u8]) -> Vec<u8> {
        let resource_items = self.resource.len() + field_len(scope_items.len());
        let mut request = Vec::with_capacity(field_len(resource_items));
        request.push(key(field::REQUEST_RESOURCE_ITEMS));
        push_length(&mut request, resource_items);
        request.extend_from_slice(&self.resource);
        push_field(&mut request, field::RESOURCE_ITEMS_SCOPE_ITEMS, scope_items);
        request
    }
}

fn push_item(scope_items: &mut Vec<u8>, item: &[u8]) {
    push_field(scope_items, field::SCOPE_ITEMS_ITEMS, item);
}

fn attribute(key: String, value: Value) -> KeyValue {
    KeyValue { key, value: Some(AnyValue { value: Some(value) }), ..Default::default() }
}

/// The key of a length-delimited field; numbers up to 15 are one byte.
const fn key(number: u8) -> u8 {
    const LENGTH_DELIMITED: u8 = 2;
    number << 3 | LENGTH_DELIMITED
}

fn push_field(out: &mut Vec<u8>, number: u8, message: &[u8]) {
    out.push(key(number));
    push_length(out, message.len());
    out.extend_from_slice(message);
}

/// With a key of one byte.
fn field_len(content: usize) -> usize {
    1 + prost::length_delimiter_len(content) + content
}

/// Nearly every length is one byte.
fn push_length(out: &mut Vec<u8>, length: usize) {
    if length < 128 {
        out.push(length as u8);
    } else {
        let _ = prost::encode_length_delimiter(length, out);
    }
}

/// Appends an attribute to an encoded message, as its field `number`. As messages, three deep, their lengths would be counted again
/// at each level.
fn push_attribute(out: &mut Vec<u8>, scratch: &mut Vec<u8>, number: u8, name: &str, value: AttributeValue<'_>) {
    scratch.clear();
    let value_len = match value {
        AttributeValue::Text(text) => field_len(text.len()),
        AttributeValue::Int(number) => {
            int64::encode(field::ANY_VALUE_INT.into(), &i64::try_from(number).unwrap_or(i64::MAX), scratch);
            scratch.len()
        }
        AttributeValue::Address(address) => {
            // Less than 128 bytes: its length is one.
            scratch.extend_from_slice(&[key(field::ANY_VALUE_STRING), 0]);
            push_address(scratch, address);
            scratch[1] = (scratch.len() - 2) as u8;
            scratch.len()
        }
    };
    out.push(key(number));
    push_length(out, field_len(name.len()) + field_len(value_len));
    push_field(out, field::KEY_VALUE_KEY, name.as_bytes());
    out.push(key(field::KEY_VALUE_VALUE));
    push_length(out, value_len);
    match value {
        AttributeValue::Text(text) => push_field(out, field::ANY_VALUE_STRING, text.as_bytes()),
        AttributeValue::Int(_) | AttributeValue::Address(_) => out.extend_from_slice(scratch),
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTracePartialSuccess;

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
