//! The chain reports traces, metrics and logs to a real OpenTelemetry Collector, over HTTP and over gRPC; what that passes on is looked at.
//! `scripts/e2e.sh collector` builds one and names it in `OTELCOL_BIN`.

use std::collections::BTreeSet;
use std::process::Command;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;

use crate::backends::{Backend, hops, send, stop};
use crate::claims::{Claims, same};
use crate::common::ports::free_addr;
use crate::common::{Hop, Sink, eventually};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn body(record: &LogRecord) -> &str {
    match record.body.as_ref().and_then(|body| body.value.as_ref()) {
        Some(Value::StringValue(text)) => text,
        other => panic!("{other:?}"),
    }
}

/// The span ids of the access lines of a trace.
fn logged(sink: &Sink, trace: &str) -> BTreeSet<String> {
    let records = sink.records();
    let lines = records.iter().filter(|record| hex(&record.trace_id) == trace && body(record).contains("\"GET /service"));
    lines.map(|record| hex(&record.span_id)).collect()
}

/// The span ids of the exemplars of a trace, of the durations of requests.
fn exemplars(sink: &Sink, trace: &str) -> BTreeSet<String> {
    let metrics = sink.metrics();
    let durations = metrics.iter().filter(|metric| metric.name == "http.server.request.duration");
    let points = durations.flat_map(|metric| match metric.data.as_ref().unwrap() {
        Data::Histogram(histogram) => &histogram.data_points[..],
        other => panic!("{other:?}"),
    });
    let of_trace = points.flat_map(|point| &point.exemplars).filter(|exemplar| hex(&exemplar.trace_id) == trace);
    of_trace.map(|exemplar| hex(&exemplar.span_id)).collect()
}

/// That three hops have the trace in all three signals; returns what joins them.
async fn joined(sink: &Sink, trace: &str) -> String {
    let spans = sink.trace(trace, 5).await;
    let servers: BTreeSet<_> = spans.iter().filter(|span| span.kind == "SERVER").map(|span| span.id.clone()).collect();
    assert_eq!(servers.len(), 3, "{spans:#?}");
    eventually("three log records of the server spans", || async { (logged(sink, trace) == servers).then_some(()) }).await;
    eventually("three exemplars of the server spans", || async { (exemplars(sink, trace) == servers).then_some(()) }).await;
    format!("5 spans, 3 access lines, 3 exemplars of trace {trace}")
}

/// Nothing was lost at any hop; how many items each has exported.
async fn nothing_lost(hops: &[Hop]) -> String {
    let mut seen = Vec::new();
    for hop in hops {
        for items in ["spans", "log_records", "data_points"] {
            let metrics = hop.metrics().await;
            assert_eq!(metrics.sum(&format!("httpserver_{items}_dropped_total"), &[]), 0.0, "{}", metrics.0);
            let exported = metrics.sum(&format!("httpserver_{items}_exported_total"), &[]);
            assert!(exported > 0.0, "{items}: {}", metrics.0);
            seen.push(format!("{exported} {items}"));
        }
    }
    seen.join(", ")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an OpenTelemetry Collector: scripts/e2e.sh collector"]
async fn a_real_collector_gets_three_signals_over_both_transports_joined_by_one_trace() {
    let binary = std::env::var("OTELCOL_BIN").expect("OTELCOL_BIN names an OpenTelemetry Collector");
    let (sink, http, grpc) = (Sink::otlp().await, free_addr(), free_addr());
    let config = format!(
        "receivers: {{otlp: {{protocols: {{http: {{endpoint: '{http}'}}, grpc: {{endpoint: '{grpc}'}}}}}}}}\n\
         exporters:\n  debug: {{verbosity: basic}}\n  otlphttp: {{endpoint: 'http://{}', compression: none}}\n\
         service:\n  telemetry: {{metrics: {{level: none}}}}\n  pipelines:\n    \
         traces: {{receivers: [otlp], exporters: [debug, otlphttp]}}\n    \
         metrics: {{receivers: [otlp], exporters: [debug, otlphttp]}}\n    \
         logs: {{receivers: [otlp], exporters: [debug, otlphttp]}}\n",
        sink.addr
    );
    let mut collector = Backend::start("collector", |folder| {
        let file = folder.join("config.yaml");
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new(binary);
        command.arg("--config").arg(file);
        command
    });
    collector.says("Everything is ready", '.').await;
    let mut claims = Claims::default();
    for (protocol, endpoint, compression) in
        [("http/protobuf", http, "none"), ("http/protobuf", http, "gzip"), ("grpc", grpc, "none"), ("grpc", grpc, "gzip")]
    {
        let endpoint = format!("http://{endpoint}");
        let mut hops = hops(&[
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", compression),
            ("OTEL_TRACES_EXPORTER", "otlp"),
            ("OTEL_METRICS_EXPORTER", "otlp"),
            ("OTEL_LOGS_EXPORTER", "otlp"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "1000"),
        ]);
        let what = format!("{protocol}, compression {compression}");
        let reply = send(&hops, &[]).await;
        let trace = reply["trace_id"].as_str().unwrap();
        claims.claim(format!("{what}: one trace id joins spans, log records and exemplars"), joined(&sink, trace)).await;
        claims.claim(format!("{what}: every hop's counters say that nothing was lost"), nothing_lost(&hops)).await;
        // An exemplar of the same bucket is replaced after a second.
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
        let reply = send(&hops, &[]).await;
        let trace = reply["trace_id"].as_str().unwrap();
        let codes = stop(&mut hops);
        claims.claim(format!("{what}: SIGTERM ends every hop with exit code 0"), async { same("0 0 0", codes.as_str()) }).await;
        claims.claim(format!("{what}: all three signals of the last request before SIGTERM"), joined(&sink, trace)).await;
    }
    let diagnostics = sink.records().iter().filter(|record| body(record) == "serving").count();
    claims.holds("diagnostics are log records: each start of a hop", diagnostics == 12, diagnostics);
    claims.end();
}
