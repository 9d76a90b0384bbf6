//! Runs one mechanism of telemetry many times: `prices CASE TIMES`. `benches/instructions.py --prices` counts the instructions.
//!
//! The rooms at and below `telemetry` are compiled as they stand: they import from nowhere else.

#![allow(dead_code, unused_imports, unreachable_pub, deprecated)]

#[path = "../../../src/net/mod.rs"]
mod net;
#[path = "../../../src/rpc/mod.rs"]
mod rpc;
#[path = "../../../src/system/mod.rs"]
mod system;
#[path = "../../../src/telemetry/mod.rs"]
mod telemetry;
#[path = "../../../src/text/mod.rs"]
mod text;
#[path = "../../../src/trace_context/mod.rs"]
mod trace_context;
#[path = "../../../src/traces/mod.rs"]
mod traces;
#[path = "../../../src/values.rs"]
mod values;

use std::hint::black_box;
use std::io::Write as _;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Request, Response};
use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, SpanKind as OtelKind, Status, TraceFlags, TraceId, TraceState, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SdkTracerProvider, SpanData, SpanEvents, SpanExporter, SpanLinks};
use prometheus::{HistogramOpts, HistogramVec};

use telemetry::access_log::json;
use telemetry::export::ResourceOptions;
use telemetry::export::{otlp::OtlpEncoder, zipkin};
use telemetry::log_queue::AccessEntry;
use telemetry::metrics::{BuildInfo, Metrics, RequestLabels};
use telemetry::queue::Batch as _;
use telemetry::span_queue::{AttributeValue, FinishedSpan, QueuedSpan, SpanBatch, SpanKind, SpanQueue};
use text::escape::push_escaped;
use text::number::{push_address, push_milliseconds};
use text::time::push_time;
use trace_context::{Context, Sampling};
use traces::{Endpoint, Kind, Span};

/// How many spans an export carries, as at a hop that answers a hundred requests a second.
const BATCH: usize = 200;
const REQUEST_ID: &str = "5f0c2a52-6a5f-4b53-b0f6-6a1c5c2d7b11";

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, case, times] = &args[..] else { panic!("prices CASE TIMES") };
    let times = times.parse().expect("a number of times");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    match case.as_str() {
        "escape-own" => escape(times, |out, text| push_escaped(out, text.as_bytes())),
        "escape-serde_json" => escape(times, |out, text| serde_json::to_writer(out, text).expect("text")),
        "address-own" => appended(times, |out| push_address(out, [10, 0, 0, 7].into())),
        "address-std" => appended(times, |out| write!(out, "{}", std::net::Ipv4Addr::from([10, 0, 0, 7])).expect("memory")),
        "milliseconds-own" => appended(times, |out| push_milliseconds(out, black_box(Duration::from_micros(12_345)))),
        "milliseconds-std" => appended(times, |out| write!(out, "{:.3}", black_box(12.345)).expect("memory")),
        "time-humantime" => appended(times, |out| push_time(out, black_box(SystemTime::now()))),
        "access_line-own" => appended(times, |out| json(out, &entry())),
        "access_line-serde_json" => appended(times, |out| serde_line(out, &entry())),
        "histogram-own" => own_histogram(times),
        "histogram-prometheus" => prometheus_histogram(times),
        "record_span-own" => own_queue(times),
        "record_span-sdk" => sdk_spans(times),
        "encode_zipkin-own" => {
            let resource = zipkin::EncodedResource::new(&resource());
            encoded(times, |batch| zipkin::encode(&resource, batch));
        }
        "encode_zipkin-serde_json" => encoded(times, |batch| {
            let spans: Vec<Span> = batch.spans.iter().map(|span| model(batch, span)).collect();
            serde_json::to_vec(&spans).expect("spans")
        }),
        "encode_zipkin-opentelemetry_zipkin" => {
            let mut exporter = opentelemetry_zipkin::ZipkinExporter::builder()
                .with_http_client(Discard)
                .with_collector_endpoint("http://localhost/")
                .build()
                .expect("an exporter");
            exporter.set_resource(&sdk_resource());
            exported(times, &runtime, &exporter);
        }
        "encode_otlp-own" => {
            let encoder = OtlpEncoder::new(resource());
            encoded(times, |batch| encoder.encode(batch));
        }
        "encode_otlp-opentelemetry_otlp" => {
            let mut exporter = opentelemetry_otlp::SpanExporter::builder()
                .with_http()
                .with_http_client(Discard)
                .with_endpoint("http://localhost/")
                .build()
                .expect("an exporter");
            exporter.set_resource(&sdk_resource());
            exported(times, &runtime, &exporter);
        }
        "scrape-own" => scrape(times, true),
        "scrape-prometheus" => scrape(times, false),
        other => panic!("no case {other}"),
    }
}

/// The texts that a request writes.
fn escape(times: usize, write: impl Fn(&mut Vec<u8>, &str)) {
    appended(times, |out| {
        for text in ["GET", "/service2", REQUEST_ID, "base"] {
            write(out, black_box(text));
        }
    });
}

fn appended(times: usize, mut write: impl FnMut(&mut Vec<u8>)) {
    let mut out = Vec::with_capacity(1024);
    for _ in 0..times {
        out.clear();
        write(&mut out);
        black_box(&out);
    }
}

const CONTEXT: Context = Context {
    trace_id: TraceId::from_bytes([7; 16]),
    short_trace_id: false, random: false,
    span_id: SpanId::from_bytes([8; 8]),
    parent_id: Some(SpanId::from_bytes([9; 8])),
    sampling: Sampling::Sample,
};

fn entry() -> AccessEntry<'static> {
    AccessEntry {
        started_at: SystemTime::UNIX_EPOCH + Duration::from_micros(1_767_323_045_678_901),
        duration: Duration::from_micros(12_345),
        client: [10, 0, 0, 7].into(),
        method: "GET",
        known_method: "GET",
        path: "/service2",
        protocol: None,
        grpc_status: None,
        status: 200,
        answered: 200,
        bytes: 512,
        request_id: REQUEST_ID.as_bytes(),
        trace: Some(&CONTEXT),
        lane: "base",
        upstream_status: Some(200),
        cut: None,
    }
}

fn serde_line(out: &mut Vec<u8>, entry: &AccessEntry<'_>) {
    #[derive(serde::Serialize)]
    struct Line<'a> {
        time: String,
        client: std::net::IpAddr,
        method: &'a str,
        path: &'a str,
        status: u16,
        duration_ms: f64,
        bytes: u64,
        request_id: &'a str,
        trace_id: Option<String>,
        span_id: Option<String>,
        lane: &'a str,
        upstream_status: Option<u16>,
    }
    let line = Line {
        time: humantime::format_rfc3339_micros(entry.started_at).to_string(),
        client: entry.client,
        method: entry.method,
        path: entry.path,
        status: entry.status,
        duration_ms: entry.duration.as_secs_f64() * 1e3,
        bytes: entry.bytes,
        request_id: std::str::from_utf8(entry.request_id).unwrap_or_default(),
        trace_id: entry.trace.map(|context| context.trace_id.to_string()),
        span_id: entry.trace.map(|context| context.span_id.to_string()),
        lane: entry.lane,
        upstream_status: entry.upstream_status,
    };
    serde_json::to_writer(&mut *out, &line).expect("a line");
    out.push(b'\n');
}

fn metrics() -> Metrics {
    let metrics = Metrics::new(&BuildInfo { service: "service2", service_version: "v1", lane: "base" }, true);
    for route in ["/hello", "/service{n}", "/headers", "/healthz", "/metrics"] {
        metrics.request(&RequestLabels { route, ..LABELS }, Duration::from_micros(812), Some(&CONTEXT));
    }
    metrics
}

fn own_histogram(times: usize) {
    let metrics = metrics();
    for _ in 0..times {
        metrics.request(black_box(&RequestLabels { route: "/service{n}", ..LABELS }), Duration::from_micros(812), Some(&CONTEXT));
    }
}

/// Without exemplars, which `prometheus` does not have.
fn prometheus_histogram(times: usize) {
    let labels = ["http_request_method", "http_route", "http_response_status_code"];
    let vec = HistogramVec::new(HistogramOpts::new("seconds", "Durations."), &labels).expect("a family");
    for _ in 0..times {
        vec.with_label_values(&[black_box("GET"), black_box("/service{n}"), "200"]).observe(812e-6);
    }
}

fn scrape(times: usize, openmetrics: bool) {
    let metrics = metrics();
    for _ in 0..times {
        black_box(metrics.render(openmetrics));
    }
}

const LABELS: RequestLabels<'static> =
    RequestLabels { route: "", status: "200", method: "GET", scheme: "http", protocol: "1.1", error: "" };

fn finished() -> FinishedSpan<'static> {
    FinishedSpan {
        kind: SpanKind::Server,
        context: &CONTEXT,
        start: SystemTime::UNIX_EPOCH + Duration::from_micros(1_767_323_045_678_901),
        duration: Duration::from_micros(12_345),
        method: "GET",
        original_method: "",
        scheme: "http",
        base_url: "",
        route: "/service{n}",
        status: 200,
        rpc_code: None,
        error: None,
        path: "/service2",
        client: Some([10, 0, 0, 7].into()),
        query: None,
        server: Some(("localhost", 8080)),
        peer: Some(([10, 0, 0, 7], 40_000).into()),
        protocol: "1.1",
        user_agent: "curl/8.5.0",
        resend_count: 0,
        request_id: REQUEST_ID,
        trace_state: None,
    }
}

fn own_queue(times: usize) {
    let queue = SpanQueue::new(1 << 14);
    for i in 0..times {
        queue.push(black_box(&finished()));
        if i % BATCH == 0 {
            queue.take(true).into_iter().for_each(|batch| queue.reuse(batch));
        }
    }
}

fn attributes() -> Vec<KeyValue> {
    vec![
        KeyValue::new("http.request.method", "GET"),
        KeyValue::new("http.route", "/service{n}"),
        KeyValue::new("url.path", "/service2".to_owned()),
        KeyValue::new("server.address", "localhost".to_owned()),
        KeyValue::new("request.id", REQUEST_ID.to_owned()),
        KeyValue::new("client.address", "10.0.0.7".to_owned()),
        KeyValue::new("server.port", 8080),
        KeyValue::new("http.response.status_code", 200),
    ]
}

/// A span of the SDK through its batch processor, to an exporter that discards.
fn sdk_spans(times: usize) {
    #[derive(Debug)]
    struct Nowhere;
    impl SpanExporter for Nowhere {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            black_box(batch);
            Ok(())
        }
    }
    let processor = BatchSpanProcessor::builder(Nowhere).build();
    let provider = SdkTracerProvider::builder().with_span_processor(processor).with_resource(sdk_resource()).build();
    let tracer = provider.tracer("httpserver");
    for _ in 0..times {
        let builder = tracer.span_builder("GET /service{n}").with_kind(OtelKind::Server).with_attributes(attributes());
        tracer.build(builder).end();
    }
    let _ = provider.shutdown();
}

fn resource() -> ResourceOptions {
    let attributes = [("service.version", "v1"), ("lane", "base"), ("host.name", "pod-1")];
    ResourceOptions {
        service_name: "service2".to_owned(),
        attributes: attributes.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec(),
    }
}

fn sdk_resource() -> Resource {
    let attributes = resource().attributes.into_iter().map(|(key, value)| KeyValue::new(key, value));
    Resource::builder_empty().with_service_name("service2").with_attributes(attributes).build()
}

/// `times` spans, encoded in batches.
fn encoded(times: usize, encode: impl Fn(&SpanBatch) -> Vec<u8>) {
    let queue = SpanQueue::new(2 * BATCH);
    for _ in 0..BATCH {
        queue.push(&finished());
    }
    let batch = queue.take(true).remove(0);
    for _ in 0..times / BATCH {
        black_box(encode(&batch));
    }
}

fn model(batch: &SpanBatch, span: &QueuedSpan) -> Span {
    let mut model = Span::new(span.context.trace_id, span.context.span_id);
    model.parent_id = span.context.parent_id;
    model.kind = Some(Kind::Server);
    let (method, route) = batch.name(span);
    model.name = Some(format!("{method} {route}").into());
    let since = span.start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    model.timestamp = Some(since.as_micros() as u64);
    model.duration = Some(span.duration.as_micros() as u64);
    model.local_endpoint = Some(Endpoint { service_name: Some("service2".into()), ..Endpoint::default() });
    for (key, value) in [("service.version", "v1"), ("lane", "base"), ("host.name", "pod-1")] {
        model.tags.insert(key.into(), value.into());
    }
    batch.attributes(span, |name, value| {
        let value = match value {
            AttributeValue::Text(text) => text.into(),
            AttributeValue::Int(number) => number.to_string().into(),
            AttributeValue::Address(address) => address.to_string().into(),
        };
        model.tags.insert(name.into(), value);
    });
    model
}

/// Accepts every request and discards it.
#[derive(Debug)]
struct Discard;

#[async_trait::async_trait]
impl opentelemetry_http::HttpClient for Discard {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, opentelemetry_http::HttpError> {
        black_box(request);
        Ok(Response::new(Bytes::new()))
    }
}

/// `times` spans, made into the SDK's `SpanData` and handed to a library's exporter in batches.
fn exported(times: usize, runtime: &tokio::runtime::Runtime, exporter: &impl SpanExporter) {
    let span = || SpanData {
        span_context: SpanContext::new(CONTEXT.trace_id, CONTEXT.span_id, TraceFlags::SAMPLED, false, TraceState::NONE),
        parent_span_id: SpanId::from_bytes([9; 8]),
        parent_span_is_remote: true,
        span_kind: OtelKind::Server,
        name: "GET /service{n}".into(),
        start_time: SystemTime::UNIX_EPOCH + Duration::from_micros(1_767_323_045_678_901),
        end_time: SystemTime::UNIX_EPOCH + Duration::from_micros(1_767_323_045_691_246),
        attributes: attributes(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::builder("httpserver").build(),
    };
    for _ in 0..times / BATCH {
        let spans = (0..BATCH).map(|_| span()).collect();
        runtime.block_on(exporter.export(spans)).expect("accepted");
    }
}
