//! The JSON form, read into the messages of the protobuf form: ids are hex, 64-bit numbers may stand in quotes, unknown fields are
//! skipped, and null is absence.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{self as common, any_value};
use opentelemetry_proto::tonic::resource::v1 as resource;
use opentelemetry_proto::tonic::trace::v1 as trace;
use serde::{Deserialize, Deserializer};

use crate::traces::lenient::{enumeration, hex, integer, list, string};

/// `ExportTraceServiceRequest`.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct JsonExport {
    #[serde(deserialize_with = "list")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ResourceSpans {
    resource: Option<Resource>,
    /// The other name is that of collectors before 0.53.
    #[serde(deserialize_with = "list", alias = "instrumentationLibrarySpans")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Resource {
    #[serde(deserialize_with = "list")]
    attributes: Vec<KeyValue>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ScopeSpans {
    scope: Option<JsonScope>,
    #[serde(deserialize_with = "list")]
    spans: Vec<JsonSpan>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct JsonScope {
    #[serde(deserialize_with = "string")]
    name: String,
    #[serde(deserialize_with = "string")]
    version: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct JsonSpan {
    #[serde(deserialize_with = "hex")]
    trace_id: Vec<u8>,
    #[serde(deserialize_with = "hex")]
    span_id: Vec<u8>,
    #[serde(deserialize_with = "hex")]
    parent_span_id: Vec<u8>,
    #[serde(deserialize_with = "string")]
    trace_state: String,
    #[serde(deserialize_with = "string")]
    name: String,
    #[serde(deserialize_with = "kind")]
    kind: i32,
    #[serde(deserialize_with = "integer")]
    start_time_unix_nano: u64,
    #[serde(deserialize_with = "integer")]
    end_time_unix_nano: u64,
    #[serde(deserialize_with = "list")]
    attributes: Vec<KeyValue>,
    #[serde(deserialize_with = "list")]
    events: Vec<Event>,
    #[serde(deserialize_with = "list")]
    links: Vec<JsonLink>,
    status: Option<JsonStatus>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Event {
    #[serde(deserialize_with = "integer")]
    time_unix_nano: u64,
    #[serde(deserialize_with = "string")]
    name: String,
    #[serde(deserialize_with = "list")]
    attributes: Vec<KeyValue>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct JsonLink {
    #[serde(deserialize_with = "hex")]
    trace_id: Vec<u8>,
    #[serde(deserialize_with = "hex")]
    span_id: Vec<u8>,
    #[serde(deserialize_with = "list")]
    attributes: Vec<KeyValue>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct JsonStatus {
    #[serde(deserialize_with = "code")]
    code: i32,
    #[serde(deserialize_with = "string")]
    message: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct KeyValue {
    #[serde(deserialize_with = "string")]
    key: String,
    value: Option<AnyValue>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct AnyValue {
    string_value: Option<String>,
    bool_value: Option<bool>,
    int_value: Option<Int>,
    double_value: Option<f64>,
    array_value: Option<Values<AnyValue>>,
    kvlist_value: Option<Values<KeyValue>>,
    /// Base64, which is also how it is shown.
    bytes_value: Option<String>,
}

#[derive(Deserialize)]
struct Int(#[serde(deserialize_with = "integer")] i64);

#[derive(Deserialize)]
struct Values<T> {
    #[serde(default = "Vec::new")]
    values: Vec<T>,
}

/// OTLP asks for numbers; protobuf's own printers of JSON write names.
fn kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    enumeration(deserializer, |name| trace::span::SpanKind::from_str_name(name).map(i32::from))
}

fn code<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    enumeration(deserializer, |name| trace::status::StatusCode::from_str_name(name).map(i32::from))
}

fn all<T, U: From<T>>(list: Vec<T>) -> Vec<U> {
    list.into_iter().map(U::from).collect()
}

impl From<JsonExport> for ExportTraceServiceRequest {
    fn from(json: JsonExport) -> Self {
        Self { resource_spans: all(json.resource_spans) }
    }
}

impl From<ResourceSpans> for trace::ResourceSpans {
    fn from(json: ResourceSpans) -> Self {
        let resource = json.resource.map(|json| resource::Resource { attributes: all(json.attributes), ..Default::default() });
        Self { resource, scope_spans: all(json.scope_spans), ..Self::default() }
    }
}

impl From<ScopeSpans> for trace::ScopeSpans {
    fn from(json: ScopeSpans) -> Self {
        let scope =
            json.scope.map(|JsonScope { name, version }| common::InstrumentationScope { name, version, ..Default::default() });
        Self { scope, spans: all(json.spans), ..Self::default() }
    }
}

impl From<JsonSpan> for trace::Span {
    fn from(json: JsonSpan) -> Self {
        Self {
            trace_id: json.trace_id,
            span_id: json.span_id,
            parent_span_id: json.parent_span_id,
            trace_state: json.trace_state,
            name: json.name,
            kind: json.kind,
            start_time_unix_nano: json.start_time_unix_nano,
            end_time_unix_nano: json.end_time_unix_nano,
            attributes: all(json.attributes),
            events: all(json.events),
            links: all(json.links),
            status: json.status.map(|JsonStatus { code, message }| trace::Status { code, message }),
            ..Self::default()
        }
    }
}

impl From<Event> for trace::span::Event {
    fn from(json: Event) -> Self {
        Self { time_unix_nano: json.time_unix_nano, name: json.name, attributes: all(json.attributes), ..Self::default() }
    }
}

impl From<JsonLink> for trace::span::Link {
    fn from(json: JsonLink) -> Self {
        Self { trace_id: json.trace_id, span_id: json.span_id, attributes: all(json.attributes), ..Self::default() }
    }
}

impl From<KeyValue> for common::KeyValue {
    fn from(json: KeyValue) -> Self {
        Self { key: json.key, value: json.value.map(Into::into), ..Self::default() }
    }
}

impl From<AnyValue> for common::AnyValue {
    fn from(json: AnyValue) -> Self {
        use any_value::Value;
        let list = |json: Values<AnyValue>| Value::ArrayValue(common::ArrayValue { values: all(json.values) });
        let map = |json: Values<KeyValue>| Value::KvlistValue(common::KeyValueList { values: all(json.values) });
        let value = json.string_value.or(json.bytes_value).map(Value::StringValue);
        let value = value.or(json.bool_value.map(Value::BoolValue)).or(json.int_value.map(|Int(value)| Value::IntValue(value)));
        let value = value.or(json.double_value.map(Value::DoubleValue)).or(json.array_value.map(list));
        Self { value: value.or(json.kvlist_value.map(map)) }
    }
}
