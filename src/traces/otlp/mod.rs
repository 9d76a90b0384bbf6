//! Spans in OTLP, as protobuf and as JSON.
//!
//! The messages are those of `opentelemetry-proto`; one converter makes a [`Span`] of each. Attributes, events and the status
//! become what Zipkin's exporters make of them, so a trace looks the same by either way; links are kept as links.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::{self, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;

use crate::net::addresses;
use crate::text::shorten;
use crate::traces::ids::{SpanId, TraceId};
use crate::traces::span::{Annotation, DecodeError, Endpoint, Kind, Link, Span};

mod json;
mod size;

/// Memory for the messages of one batch.
const MAX_MEMORY: usize = 32 << 20;

/// What a batch holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OtlpSpans {
    /// Its spans.
    pub spans: Vec<Span>,
    /// How many spans have no valid ids.
    pub rejected: usize,
}

/// Reads the protobuf form.
///
/// # Errors
///
/// See [`DecodeError`].
pub fn decode_protobuf(body: &[u8], max: usize) -> Result<OtlpSpans, DecodeError> {
    size::fits(body, MAX_MEMORY)?;
    let invalid = |error| DecodeError::Invalid(shorten(&format!("{error}"), 240));
    convert(ExportTraceServiceRequest::decode(body).map_err(invalid)?, max)
}

/// Reads the JSON form.
///
/// # Errors
///
/// See [`DecodeError`].
pub fn decode_json(body: &[u8], max: usize) -> Result<OtlpSpans, DecodeError> {
    // Every message is an object.
    let messages = body.iter().filter(|byte| **byte == b'{').count();
    if messages * size_of::<span::Event>() > MAX_MEMORY {
        return Err(DecodeError::TooLarge);
    }
    let mut reader = serde_json::Deserializer::from_slice(body);
    let read = serde_path_to_error::deserialize::<_, json::JsonExport>(&mut reader).map_err(|error| error.to_string());
    let read = read.and_then(|request| reader.end().map(|()| request).map_err(|error| error.to_string()));
    convert(read.map_err(|error| DecodeError::Invalid(shorten(&error, 240)))?.into(), max)
}

fn convert(request: ExportTraceServiceRequest, max: usize) -> Result<OtlpSpans, DecodeError> {
    let mut batch = OtlpSpans::default();
    for of_resource in request.resource_spans {
        let mut resource = BTreeMap::new();
        add_tags(&mut resource, of_resource.resource.map(|resource| resource.attributes).unwrap_or_default());
        let service = resource.remove("service.name").filter(|name| !name.is_empty());
        for of_scope in of_resource.scope_spans {
            let scope = of_scope.scope.unwrap_or_default();
            for span in of_scope.spans {
                if batch.spans.len() == max {
                    return Err(DecodeError::TooMany(max));
                }
                match converted(span, service.as_deref(), &resource, &scope) {
                    Some(span) => batch.spans.push(span),
                    None => batch.rejected += 1,
                }
            }
        }
    }
    Ok(batch)
}

/// `None` when an id is not valid.
fn converted(
    otlp: opentelemetry_proto::tonic::trace::v1::Span,
    service: Option<&str>,
    resource: &BTreeMap<Box<str>, Box<str>>,
    scope: &InstrumentationScope,
) -> Option<Span> {
    let mut span = Span::new(trace_id(&otlp.trace_id)?, span_id(&otlp.span_id)?);
    span.parent_id = span_id(&otlp.parent_span_id);
    span.kind = match otlp.kind() {
        SpanKind::Server => Some(Kind::Server),
        SpanKind::Client => Some(Kind::Client),
        SpanKind::Producer => Some(Kind::Producer),
        SpanKind::Consumer => Some(Kind::Consumer),
        SpanKind::Unspecified | SpanKind::Internal => None,
    };
    span.name = Some(otlp.name).filter(|name| !name.is_empty()).map(Into::into);
    span.timestamp = micros(otlp.start_time_unix_nano);
    let nanos = otlp.end_time_unix_nano.checked_sub(otlp.start_time_unix_nano).filter(|_| span.timestamp.is_some());
    span.duration = nanos.map(|nanos| (nanos / 1_000).max(1));
    span.tags = resource.clone();
    for (key, value) in
        [("otel.scope.name", &scope.name), ("otel.scope.version", &scope.version), ("w3c.tracestate", &otlp.trace_state)]
    {
        if !value.is_empty() {
            span.tags.insert(key.into(), value.as_str().into());
        }
    }
    add_tags(&mut span.tags, otlp.attributes);
    if let Some(status) = otlp.status {
        match status.code() {
            StatusCode::Unset => {}
            StatusCode::Ok => _ = span.tags.insert("otel.status_code".into(), "OK".into()),
            StatusCode::Error => {
                span.tags.insert("otel.status_code".into(), "ERROR".into());
                span.tags.insert("error".into(), status.message.into());
            }
        }
    }
    span.local_endpoint = service.map(|name| Endpoint { service_name: Some(name.into()), ..Endpoint::default() });
    span.remote_endpoint = remote(&span);
    span.annotations = otlp.events.into_iter().filter_map(event).collect();
    span.links = otlp.links.into_iter().filter_map(link).collect();
    Some(span.normalised())
}

/// Who is at the other end, as far as attributes say so.
fn remote(span: &Span) -> Option<Endpoint> {
    let tag = |names: &[&str]| span.first_tag(names);
    let host = tag(&["server.address", "net.peer.name"]).filter(|_| matches!(span.kind, Some(Kind::Client | Kind::Producer)));
    let name = tag(&["peer.service"]).or(host.filter(|host| addresses::parse(host).is_none()));
    let address =
        tag(&["network.peer.address", "net.sock.peer.addr"]).or(host).and_then(addresses::parse).map(|ip| ip.to_canonical());
    let port =
        tag(&["network.peer.port", "net.sock.peer.port", "server.port", "net.peer.port"]).and_then(|port| port.parse().ok());
    let mut end = Endpoint { service_name: name.map(Into::into), ..Endpoint::default() };
    match address {
        Some(std::net::IpAddr::V4(ip)) => end.ipv4 = Some(ip),
        Some(std::net::IpAddr::V6(ip)) => end.ipv6 = Some(ip),
        None => {}
    }
    end.port = port.filter(|port| *port != 0 && end != Endpoint::default());
    Some(end).filter(|end| *end != Endpoint::default())
}

fn event(event: span::Event) -> Option<Annotation> {
    let attributes = to_json(event.attributes);
    let value = if attributes == "{}" { event.name } else { format!("{}: {attributes}", event.name) };
    Some(Annotation { timestamp: micros(event.time_unix_nano)?, value: value.into() })
}

fn link(link: span::Link) -> Option<Link> {
    let mut tags = BTreeMap::new();
    add_tags(&mut tags, link.attributes);
    Some(Link { trace_id: trace_id(&link.trace_id)?, span_id: span_id(&link.span_id)?, tags })
}

fn add_tags(tags: &mut BTreeMap<Box<str>, Box<str>>, attributes: Vec<KeyValue>) {
    for KeyValue { key, value, .. } in attributes {
        tags.insert(key.into(), text(value).into());
    }
}

/// An attribute's value as the text of a tag: what is nested, as JSON.
fn text(value: Option<AnyValue>) -> String {
    match json(value) {
        serde_json::Value::String(text) => text,
        serde_json::Value::Null => String::new(),
        value => value.to_string(),
    }
}

fn json(value: Option<AnyValue>) -> serde_json::Value {
    match value.and_then(|value| value.value) {
        None => serde_json::Value::Null,
        Some(Value::StringValue(text)) => text.into(),
        Some(Value::BoolValue(value)) => value.into(),
        Some(Value::IntValue(value)) => value.into(),
        Some(Value::DoubleValue(value)) => value.into(),
        Some(Value::BytesValue(bytes)) => base64(&bytes).into(),
        Some(Value::ArrayValue(list)) => list.values.into_iter().map(|value| json(Some(value))).collect(),
        Some(Value::KvlistValue(list)) => object(list.values),
        // Of the profiles' dictionary, which traces have not.
        Some(Value::StringValueStrindex(_)) => serde_json::Value::Null,
    }
}

fn object(attributes: Vec<KeyValue>) -> serde_json::Value {
    serde_json::Value::Object(attributes.into_iter().map(|KeyValue { key, value, .. }| (key, json(value))).collect())
}

fn to_json(attributes: Vec<KeyValue>) -> String {
    object(attributes).to_string()
}

/// As bytes stand in the JSON form.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for n in 0..4 {
            text.push(if n <= three.len() { DIGITS[(bits >> (18 - 6 * n)) as usize & 63].into() } else { '=' });
        }
    }
    text
}

fn micros(nanos: u64) -> Option<u64> {
    Some(nanos / 1_000).filter(|micros| *micros > 0)
}

fn trace_id(bytes: &[u8]) -> Option<TraceId> {
    bytes.try_into().map(TraceId::from_bytes).ok().filter(|id| *id != TraceId::INVALID)
}

fn span_id(bytes: &[u8]) -> Option<SpanId> {
    bytes.try_into().map(SpanId::from_bytes).ok().filter(|id| *id != SpanId::INVALID)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    const TRACE: &str = "5b8efff798038103d269b633813fc60c";

    /// What an SDK sends, with everything that a span can have.
    fn request() -> Json {
        let attribute = |key: &str, value: Json| json!({"key": key, "value": value});
        json!({"resourceSpans": [{
            "resource": {"attributes": [attribute("service.name", json!({"stringValue": "shop"})), attribute("host.name", json!({"stringValue": "h1"}))]},
            "scopeSpans": [{
                "scope": {"name": "my.library", "version": "1.0.0"},
                "spans": [{
                    "traceId": TRACE, "spanId": "eee19b7ec3c1b174", "parentSpanId": "eee19b7ec3c1b173", "name": "GET /cart", "kind": 3,
                    "startTimeUnixNano": "1544712660000000500", "endTimeUnixNano": 1_544_712_660_300_000_000_u64,
                    "attributes": [
                        attribute("http.response.status_code", json!({"intValue": "503"})), attribute("ratio", json!({"doubleValue": 0.5})),
                        attribute("cached", json!({"boolValue": true})), attribute("peer.service", json!({"stringValue": "cart"})),
                        attribute("server.port", json!({"intValue": 8080})), attribute("raw", json!({"bytesValue": "AQI="})),
                        attribute("list", json!({"arrayValue": {"values": [{"stringValue": "a"}, {"intValue": "2"}]}})),
                        attribute("map", json!({"kvlistValue": {"values": [attribute("k", json!({"stringValue": "v"}))]}})),
                        attribute("nothing", json!({}))],
                    "events": [{"timeUnixNano": "1544712660100000000", "name": "exception", "attributes": [attribute("exception.message", json!({"stringValue": "no"}))]}],
                    "links": [{"traceId": "5b8efff798038103d269b633813fc60d", "spanId": "eee19b7ec3c1b175", "attributes": [attribute("why", json!({"stringValue": "batch"}))]}],
                    "status": {"code": 2, "message": "upstream"}, "traceState": "a=b", "flags": 1, "unknownField": [{}],
                }, {"traceId": "", "spanId": "eee19b7ec3c1b174", "name": "no id"}],
            }],
        }]})
    }

    fn read(json: &Json) -> OtlpSpans {
        decode_json(json.to_string().as_bytes(), 10).unwrap()
    }

    #[test]
    fn both_forms_become_the_same_span_with_everything_it_says() {
        let batch = read(&request());
        assert_eq!((batch.spans.len(), batch.rejected), (1, 1));
        let expected = json!({
            "traceId": TRACE, "parentId": "eee19b7ec3c1b173", "id": "eee19b7ec3c1b174", "kind": "CLIENT", "name": "GET /cart",
            "timestamp": 1_544_712_660_000_000_u64, "duration": 299_999,
            "localEndpoint": {"serviceName": "shop"}, "remoteEndpoint": {"serviceName": "cart", "port": 8080},
            "annotations": [{"timestamp": 1_544_712_660_100_000_u64, "value": "exception: {\"exception.message\":\"no\"}"}],
            "tags": {
                "cached": "true", "error": "upstream", "host.name": "h1", "http.response.status_code": "503", "list": "[\"a\",2]",
                "map": "{\"k\":\"v\"}", "nothing": "", "otel.scope.name": "my.library", "otel.scope.version": "1.0.0",
                "otel.status_code": "ERROR", "peer.service": "cart", "ratio": "0.5", "raw": "AQI=", "server.port": "8080", "w3c.tracestate": "a=b",
            },
            "links": [{"traceId": "5b8efff798038103d269b633813fc60d", "spanId": "eee19b7ec3c1b175", "tags": {"why": "batch"}}],
        });
        assert_eq!(serde_json::to_value(&batch.spans[0]).unwrap(), expected);
        assert!(batch.spans[0].is_error());
        let mut message = ExportTraceServiceRequest::from(serde_json::from_value::<json::JsonExport>(request()).unwrap());
        let bytes = &mut message.resource_spans[0].scope_spans[0].spans[0].attributes[5];
        assert_eq!(
            (bytes.key.as_str(), base64(b""), base64(b"abc"), base64(b"a")),
            ("raw", "".into(), "YWJj".into(), "YQ==".into())
        );
        bytes.value = Some(AnyValue { value: Some(Value::BytesValue(vec![1, 2])) });
        assert_eq!(decode_protobuf(&message.encode_to_vec(), 10).unwrap(), batch);
        // It is stored, shown and passed on in Zipkin's form, and comes back whole.
        let zipkin = serde_json::to_vec(&batch.spans).unwrap();
        assert_eq!(crate::traces::decode(&zipkin, 10).unwrap(), batch.spans);
    }

    #[test]
    fn what_sdks_leave_out_is_absent_and_what_cannot_be_is_not_believed() {
        let span = |span: Json| read(&json!({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]})).spans.remove(0);
        let least = span(json!({"traceId": TRACE, "spanId": "0000000000000001"}));
        assert_eq!(
            (least.parent_id, least.kind, least.name, least.timestamp, least.local_endpoint),
            (None, None, None, None, None)
        );
        let backwards = span(
            json!({"traceId": TRACE, "spanId": "0000000000000001", "parentSpanId": "0000000000000000", "kind": 2, "startTimeUnixNano": "2000", "endTimeUnixNano": "1000"}),
        );
        assert_eq!(
            (backwards.parent_id, backwards.kind, backwards.timestamp, backwards.duration),
            (None, Some(Kind::Server), Some(2), None)
        );
        let short =
            span(json!({"traceId": TRACE, "spanId": "0000000000000001", "startTimeUnixNano": "2000", "endTimeUnixNano": "2100"}));
        assert_eq!(short.duration, Some(1));
        assert_eq!(read(&json!({})), OtlpSpans::default());
        assert_eq!(decode_protobuf(&[], 10).unwrap(), OtlpSpans::default());
        let address = span(json!({"traceId": TRACE, "spanId": "0000000000000001", "kind": 3,
            "attributes": [{"key": "server.address", "value": {"stringValue": "10.0.0.7"}}]}));
        assert_eq!(serde_json::to_value(address.remote_endpoint).unwrap(), json!({"ipv4": "10.0.0.7"}));
        let nobody = span(json!({"traceId": TRACE, "spanId": "0000000000000001", "kind": 3,
            "attributes": [{"key": "peer.service", "value": {"stringValue": ""}}]}));
        assert_eq!(nobody.remote_endpoint, None);
    }

    #[test]
    fn garbage_is_refused_and_small_bodies_take_no_large_memory() {
        assert!(decode_json(b"[{}]", 10).is_err() && decode_json(b"{} x", 10).is_err());
        let wrong =
            decode_json(br#"{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": 5}]}]}]}"#, 10).unwrap_err().to_string();
        assert!(wrong.contains("resourceSpans[0].scopeSpans[0].spans[0].traceId"), "{wrong}");
        for body in [&b"\x0a\x05\x01"[..], b"\x0b", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\xff"] {
            assert!(matches!(decode_protobuf(body, 10), Err(DecodeError::Invalid(_))), "{body:?}");
        }
        // A message around a body, as field `field`.
        let within = |field: u8, body: &[u8]| {
            let mut message = vec![field << 3 | 2];
            prost::encode_length_delimiter(body.len(), &mut message).unwrap();
            [message, body.to_vec()].concat()
        };
        let empty_spans = within(1, &within(2, &[0x12, 0].repeat(1 << 20)));
        assert_eq!(decode_protobuf(&empty_spans, 1 << 30), Err(DecodeError::TooLarge));
        let empty_attributes = within(1, &within(2, &within(2, &[0x4a, 0].repeat(1 << 20))));
        assert_eq!(decode_protobuf(&empty_attributes, 1 << 30), Err(DecodeError::TooLarge));
        let json = format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{}{{}}]}}]}}]}}"#, "{},".repeat(1 << 20));
        assert_eq!(decode_json(json.as_bytes(), 1 << 30), Err(DecodeError::TooLarge));
        let mut three = request();
        let span = three["resourceSpans"][0]["scopeSpans"][0]["spans"][0].clone();
        three["resourceSpans"][0]["scopeSpans"][0]["spans"] = json!([span, span, span]);
        assert_eq!(decode_json(three.to_string().as_bytes(), 2), Err(DecodeError::TooMany(2)));
        let deep = |depth: usize| {
            json!({"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": TRACE, "spanId": "0000000000000001", "attributes": [
            {"key": "deep", "value": (0..depth).fold(json!({"stringValue": "x"}), |value, _| json!({"arrayValue": {"values": [value]}}))}]}]}]}]})
        };
        assert_eq!(read(&deep(10)).spans[0].tag("deep").unwrap().len(), 23);
        let (mut start, mut end) = (String::new(), String::new());
        for _ in 0..10_000 {
            start += r#"{"arrayValue":{"values":["#;
            end += "]}}";
        }
        let bottomless = deep(0).to_string().replace(r#"{"stringValue":"x"}"#, &(start + &end));
        assert!(matches!(decode_json(bottomless.as_bytes(), 10), Err(DecodeError::Invalid(_))));
    }
}
