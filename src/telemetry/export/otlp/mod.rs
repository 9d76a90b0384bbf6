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
use prost::encoding::encoded_len_varint;

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

    /// A request without items, each to be added by [`push_item`], with room for so many bytes of them.
    fn open(&self, bytes: usize) -> Vec<u8> {
        let mut request = Vec::with_capacity(self.scope_start() + self.scope.len() + bytes);
        push_open(&mut request, field::REQUEST_RESOURCE_ITEMS);
        request.extend_from_slice(&self.resource);
        push_open(&mut request, field::RESOURCE_ITEMS_SCOPE_ITEMS);
        request.extend_from_slice(&self.scope);
        request
    }

    /// Writes the lengths that were not known before the items were.
    fn close(&self, request: &mut [u8]) {
        close_field(request, OPEN_FIELD);
        close_field(request, self.scope_start());
    }

    fn scope_start(&self) -> usize {
        OPEN_FIELD + self.resource.len() + OPEN_FIELD
    }
}

/// Key and length of a field that is begun before its length is known. The length has four bytes whatever it is, so that the items
/// are not moved once more: decoders accept leading zeros.
const OPEN_FIELD: usize = 5;

fn push_open(out: &mut Vec<u8>, number: u8) {
    out.extend_from_slice(&[key(number), 0, 0, 0, 0]);
}

/// Writes the length of the field whose content begins at `start` and ends with `out`.
fn close_field(out: &mut [u8], start: usize) {
    let length = out.len() - start;
    let seven_bits = |i: usize| (length >> (7 * i) & 0x7f) as u8;
    out[start - 4..start].copy_from_slice(&[seven_bits(0) | 0x80, seven_bits(1) | 0x80, seven_bits(2) | 0x80, seven_bits(3)]);
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

#[inline]
fn push_field(out: &mut Vec<u8>, number: u8, message: &[u8]) {
    push_key(out, number, message.len());
    out.extend_from_slice(message);
}

/// Key and length of a field. Nearly every length is one byte.
#[inline]
fn push_key(out: &mut Vec<u8>, number: u8, length: usize) {
    if length < 128 {
        out.extend_from_slice(&[key(number), length as u8]);
    } else {
        out.push(key(number));
        push_varint(out, length as u64);
    }
}

/// With a key of one byte.
fn field_len(content: usize) -> usize {
    1 + encoded_len_varint(content as u64) + content
}

fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends an attribute to an encoded message, as its field `number`. As messages, three deep, their lengths would be counted again
/// at each level.
fn push_attribute(out: &mut Vec<u8>, scratch: &mut Vec<u8>, number: u8, name: &str, value: AttributeValue<'_>) {
    let text = match value {
        AttributeValue::Text(text) => text.as_bytes(),
        AttributeValue::Address(address) => {
            scratch.clear();
            push_address(scratch, address);
            scratch
        }
        AttributeValue::Int(value) => {
            // The type is signed, and its negative numbers are not ours.
            let value = value.min(i64::MAX as u64);
            push_name(out, number, name, 1 + encoded_len_varint(value));
            out.push(field::ANY_VALUE_INT << 3);
            return push_varint(out, value);
        }
    };
    // All four lengths are one byte, as nearly always: so they are written in two pieces.
    if name.len() + text.len() < 128 - 6 {
        let (name_len, text_len) = (name.len() as u8, text.len() as u8);
        out.extend_from_slice(&[key(number), name_len + text_len + 6, key(field::KEY_VALUE_KEY), name_len]);
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&[key(field::KEY_VALUE_VALUE), text_len + 2, key(field::ANY_VALUE_STRING), text_len]);
        out.extend_from_slice(text);
    } else {
        push_name(out, number, name, field_len(text.len()));
        push_field(out, field::ANY_VALUE_STRING, text);
    }
}

/// An attribute up to its value, which has so many bytes.
fn push_name(out: &mut Vec<u8>, number: u8, name: &str, value_len: usize) {
    push_key(out, number, field_len(name.len()) + field_len(value_len));
    push_field(out, field::KEY_VALUE_KEY, name.as_bytes());
    push_key(out, field::KEY_VALUE_VALUE, value_len);
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceRequest};

    #[test]
    fn an_attribute_is_that_of_prost_at_every_length() {
        let lengths = (0..300).chain([16_000, 17_000]).map(|length| "x".repeat(length)).collect::<Vec<_>>();
        let texts = lengths.iter().map(|text| (AttributeValue::Text(text), Value::StringValue(text.clone())));
        let numbers = [0, 1, 127, 128, 16_384, i64::MAX as u64].map(|n| (AttributeValue::Int(n), Value::IntValue(n as i64)));
        let addresses = ["10.0.0.7", "2001:db8::1"]
            .map(|text| (AttributeValue::Address(text.parse().unwrap()), Value::StringValue(text.to_owned())));
        for (value, expected) in texts.chain(numbers).chain(addresses) {
            for name in ["n", "http.request.method", &"n".repeat(130)] {
                let (mut out, mut prost) = (Vec::new(), Vec::new());
                push_attribute(&mut out, &mut vec![b'-'], 9, name, value);
                prost::encoding::message::encode(9, &attribute(name.to_owned(), expected.clone()), &mut prost);
                assert_eq!(out, prost, "{name} {value:?}");
            }
        }
    }

    #[test]
    fn the_length_of_a_request_is_written_after_its_items() {
        let envelope = Envelope::new(ResourceOptions { service_name: "s".into(), attributes: Vec::new() });
        for items in [0, 1, 200, 3000] {
            let mut request = envelope.open(0);
            (0..items).for_each(|_| push_item(&mut request, &[0x2a, 1, b'n']));
            envelope.close(&mut request);
            let decoded = ExportTraceServiceRequest::decode(&*request).unwrap();
            let [resource_spans] = &decoded.resource_spans[..] else { panic!("{decoded:?}") };
            let [scope_spans] = &resource_spans.scope_spans[..] else { panic!("{decoded:?}") };
            assert_eq!((scope_spans.spans.len(), &*scope_spans.schema_url), (items, SCHEMA_URL));
            assert!(scope_spans.spans.iter().all(|span| span.name == "n"));
        }
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
