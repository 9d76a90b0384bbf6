//! Metrics and log records by OTLP: what arrives, what becomes of what does not, and that a trace joins all three signals.

use std::collections::BTreeMap;
use std::time::Duration;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, HistogramDataPoint, Metric, NumberDataPoint, number_data_point,
};

use crate::common::ports::free_addr;
use crate::common::{Hop, Mood, Samples, Sink, Upstream, answer, eventually, export_env};

const TRANSPORTS: [&str; 2] = ["otlp", "grpc"];

/// Exports of metrics and logs, often.
const BOTH: [(&str, &str); 4] = [
    ("OTEL_METRICS_EXPORTER", "otlp"),
    ("OTEL_METRIC_EXPORT_INTERVAL", "50"),
    ("OTEL_LOGS_EXPORTER", "otlp"),
    ("OTEL_BLRP_SCHEDULE_DELAY", "20"),
];

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{other:?}"),
    }
}

fn attributes(list: &[KeyValue]) -> BTreeMap<String, String> {
    list.iter().map(|attribute| (attribute.key.clone(), text(attribute.value.as_ref()))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The data points of the server's durations on a route, in the order of their arrival.
fn durations(metrics: &[Metric], route: &str) -> Vec<HistogramDataPoint> {
    let named = metrics.iter().filter(|metric| metric.name == "http.server.request.duration");
    let points = named.flat_map(|metric| match metric.data.as_ref().unwrap() {
        Data::Histogram(histogram) => histogram.data_points.clone(),
        other => panic!("{other:?}"),
    });
    points.filter(|point| attributes(&point.attributes).get("http.route").is_some_and(|is| is == route)).collect()
}

/// The latest data point of a sum, and what it says of itself.
fn sum(metrics: &[Metric], name: &str) -> Option<(NumberDataPoint, i32, bool)> {
    metrics.iter().rev().find(|metric| metric.name == name).map(|metric| match metric.data.as_ref().unwrap() {
        Data::Sum(sum) => (sum.data_points[0].clone(), sum.aggregation_temporality, sum.is_monotonic),
        other => panic!("{name}: {other:?}"),
    })
}

/// That the counters of a signal's items add up; those that were recorded and exported.
fn added_up(samples: &Samples, items: &str) -> (f64, f64) {
    let sum = |what: &str| samples.sum(&format!("httpserver_{items}_{what}"), &[]);
    let (recorded, exported) = (sum("recorded_total"), sum("exported_total"));
    assert_eq!(recorded, exported + sum("dropped_total") + sum("queued"), "{items}: {}", samples.0);
    (recorded, exported)
}

fn dropped(samples: &Samples, items: &str, reason: &str) -> f64 {
    samples.sum(&format!("httpserver_{items}_dropped_total"), &[("reason", reason)])
}

/// The record of a request's access line.
async fn record_of(sink: &Sink, request_id: &str) -> LogRecord {
    eventually(&format!("the record of {request_id} arrives"), || async {
        sink.records()
            .into_iter()
            .find(|record| attributes(&record.attributes).get("request.id").is_some_and(|id| id == request_id))
    })
    .await
}

#[tokio::test]
async fn one_trace_joins_span_log_record_and_exemplar_over_both_transports() {
    for transport in TRANSPORTS {
        let sink = Sink::any(transport).await;
        let hop = Hop::start(&["--name", "shop"], &[&sink.env()[..], &BOTH].concat());
        let answer = hop.get("/hello?key=s3cret", &[("x-request-id", "r-1")]).await;
        let traceresponse = answer.header("traceresponse").unwrap();
        let ids: Vec<_> = traceresponse.split('-').collect();
        let (trace, span) = (ids[1], ids[2]);
        assert_eq!(sink.trace(trace, 1).await[0].id, span);

        let record = record_of(&sink, "r-1").await;
        assert_eq!((hex(&record.trace_id).as_str(), hex(&record.span_id).as_str()), (trace, span), "{transport}");
        assert_eq!((record.flags & 1, record.severity_text.as_str()), (1, "INFO"));
        let line = text(record.body.as_ref());
        assert_eq!(hop.access_line("r-1").await, line, "the line on stdout stays, and is the same");
        let of_record = attributes(&record.attributes);
        for (name, value) in [
            ("http.request.method", "GET"),
            ("url.path", "/hello"),
            ("http.response.status_code", "200"),
            ("log.iostream", "stdout"),
        ] {
            assert_eq!(of_record[name], value, "{of_record:?}");
        }

        let point = eventually("the duration arrives", || async { durations(&sink.metrics(), "/hello").pop() }).await;
        let expected = [
            ("http.request.method", "GET"),
            ("http.response.status_code", "200"),
            ("http.route", "/hello"),
            ("network.protocol.version", "1.1"),
            ("url.scheme", "http"),
        ];
        assert_eq!(attributes(&point.attributes), expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        assert_eq!((point.count, point.bucket_counts.iter().sum::<u64>()), (1, 1));
        assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
        assert!(point.sum.unwrap() > 0.0 && point.start_time_unix_nano < point.time_unix_nano);
        let all = durations(&sink.metrics(), "/hello");
        let exemplars: Vec<_> = all.iter().flat_map(|point| &point.exemplars).collect();
        assert_eq!(exemplars.len(), 1, "once, not in every export");
        assert_eq!((hex(&exemplars[0].trace_id).as_str(), hex(&exemplars[0].span_id).as_str()), (trace, span));
        assert!(!format!("{:?} {:?}", sink.records(), sink.metrics()).contains("s3cret"));
        // One set of instruments: the scrape says the same.
        let samples = hop.metrics().await;
        let route = ("http_route", "/hello");
        assert_eq!(samples.sum("http_server_request_duration_seconds_count", &[route]), 1.0);
    }
}

#[tokio::test]
async fn a_token_among_the_ids_of_a_request_is_shown_in_no_signal_and_carried_whole() {
    const TOKEN: &str = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl";
    for format in ["text", "json"] {
        let sink = Sink::otlp().await;
        let upstream = Upstream::answering(answer("200 OK", "", "")).await;
        let hop = Hop::start(&["--upstream", &upstream.url(), "--log-format", format], &[&sink.env()[..], &BOTH].concat());
        let xfcc = format!("URI={TOKEN}");
        let headers = [
            ("x-request-id", TOKEN),
            ("user-agent", TOKEN),
            ("x-forwarded-host", TOKEN),
            ("x-forwarded-client-cert", xfcc.as_str()),
        ];
        let (_, reply) = hop.json("/service1", &headers).await;
        assert_eq!(reply["request_id"], "***");
        assert_eq!(reply["client"]["identity"], "***");
        let text = hop.get("/service1", &headers).await;
        assert_eq!(text.header("x-request-id"), Some(TOKEN), "the caller finds its answer");
        let spans = sink.trace(reply["trace_id"].as_str().unwrap(), 2).await;
        for span in &spans {
            assert_eq!(span.tags["request.id"], "***", "{span:?}");
        }
        let server = spans.iter().find(|span| span.kind == "SERVER").unwrap();
        assert_eq!((&*server.tags["user_agent.original"], &*server.tags["server.address"]), ("***", "***"));
        record_of(&sink, "***").await;
        eventually("two lines", || async { (hop.stdout().len() == 2).then_some(()) }).await;
        let shown = format!("{reply} {} {spans:?} {:?} {:?}", text.text(), sink.records(), hop.stdout());
        assert!(!shown.contains(TOKEN), "{shown}");
        assert_eq!(upstream.heads()[0].all("x-request-id"), [TOKEN]);
    }
}

#[tokio::test]
async fn metrics_have_the_names_units_and_kinds_of_the_conventions() {
    let sink = Sink::grpc().await;
    let hop = Hop::start(&[], &[&sink.env()[..], &BOTH].concat());
    hop.get("/hello", &[]).await;
    eventually("an export arrives", || async { durations(&sink.metrics(), "/hello").pop() }).await;
    let metrics = sink.metrics();
    let units = [
        ("http.server.request.duration", "s"),
        ("http.server.active_requests", "{request}"),
        ("process.memory.usage", "By"),
        ("process.cpu.time", "s"),
        ("httpserver.requests_shed", "{request}"),
        ("httpserver.build_info", "1"),
    ];
    for (name, unit) in units {
        let metric = metrics.iter().find(|metric| metric.name == name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(metric.unit, unit, "{name}");
        assert!(!metric.description.is_empty(), "{name}");
    }
    let cumulative = AggregationTemporality::Cumulative as i32;
    let (_, temporality, is_monotonic) = sum(&metrics, "http.server.active_requests").unwrap();
    assert_eq!((temporality, is_monotonic), (cumulative, false));
    let (point, temporality, is_monotonic) = sum(&metrics, "process.cpu.time").unwrap();
    assert_eq!((temporality, is_monotonic), (cumulative, true));
    assert!(matches!(point.value, Some(number_data_point::Value::AsDouble(_))), "{point:?}");
    let (point, ..) = sum(&metrics, "httpserver.spans_recorded").unwrap();
    assert!(matches!(point.value, Some(number_data_point::Value::AsInt(_))), "{point:?}");
    let names: Vec<_> = metrics.iter().map(|metric| metric.name.as_str()).collect();
    assert!(names.iter().all(|name| !name.ends_with("_total") && !name.ends_with("_seconds")), "{names:?}");
}

#[tokio::test]
async fn differences_are_sent_when_asked_for_and_what_was_rejected_is_in_the_next() {
    let sink = Sink::otlp().await;
    let delta = ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "Delta");
    let hop = Hop::start(&[], &[&sink.env()[..], &BOTH, &[delta]].concat());
    hop.get("/hello", &[]).await;
    let first = eventually("the first arrives", || async { durations(&sink.metrics(), "/hello").pop() }).await;
    assert_eq!(first.count, 1);
    sink.set(Mood::Answers(400));
    hop.get("/hello", &[]).await;
    let lost = |samples: &Samples| dropped(samples, "data_points", "rejected");
    // Twice, so that one of them was gathered after the request.
    for _ in 0..2 {
        let before = lost(&hop.metrics().await);
        eventually("an export is rejected", || async { (lost(&hop.metrics().await) > before).then_some(()) }).await;
    }
    sink.set(Mood::Takes);
    hop.get("/hello", &[]).await;
    let total = || durations(&sink.metrics(), "/hello").iter().map(|point| point.count).sum::<u64>();
    eventually("every request arrived", || async { (total() == 3).then_some(()) }).await;
    let points = durations(&sink.metrics(), "/hello");
    assert!(points.iter().all(|point| point.count > 0), "nothing new is not sent: {points:?}");
    for two in points.windows(2) {
        assert!(two[1].start_time_unix_nano >= two[0].time_unix_nano, "{points:?}");
    }
    for metric in sink.metrics() {
        match metric.data.unwrap() {
            Data::Histogram(histogram) => assert_eq!(histogram.aggregation_temporality, AggregationTemporality::Delta as i32),
            Data::Sum(sum) => {
                let expected = if sum.is_monotonic { AggregationTemporality::Delta } else { AggregationTemporality::Cumulative };
                assert_eq!(sum.aggregation_temporality, expected as i32, "{}", metric.name);
            }
            _ => {}
        }
    }
    added_up(&hop.metrics().await, "data_points");
}

#[tokio::test]
async fn diagnostics_are_log_records_from_the_first_warning_on() {
    for transport in TRANSPORTS {
        let sink = Sink::any(transport).await;
        let hop = Hop::start(&[], &[&sink.env()[..], &BOTH, &[("OTEL_PROPAGATORS", "jaeger")]].concat());
        let find = |part: &'static str| {
            let sink = &sink;
            async move {
                eventually(&format!("a record says {part}"), || async {
                    sink.records().into_iter().find(|record| text(record.body.as_ref()).contains(part))
                })
                .await
            }
        };
        // Before the exporters ran.
        let warning = find("OTEL_PROPAGATORS: 'jaeger' is ignored").await;
        assert_eq!((warning.severity_text.as_str(), warning.severity_number), ("WARN", 13));
        let serving = find("serving").await;
        let fields = attributes(&serving.attributes);
        assert_eq!(fields["address"], hop.addr.to_string());
        assert_eq!((fields["log.iostream"].as_str(), serving.trace_id.len()), ("stderr", 0));
        assert!(hop.stderr().iter().any(|line| line.contains("serving address=")), "stderr stays");
    }
}

#[tokio::test]
async fn nothing_of_the_exporters_own_traffic_becomes_a_log_record() {
    let sink = Sink::grpc().await;
    let hop = Hop::start(&["-vv"], &[&sink.env()[..], &BOTH].concat());
    hop.get("/hello", &[("x-request-id", "r-1")]).await;
    record_of(&sink, "r-1").await;
    let count = sink.records().len();
    let requests = sink.requests().len();
    // Exports of metrics go on.
    eventually("ten more exports", || async { (sink.requests().len() > requests + 10).then_some(()) }).await;
    assert_eq!(sink.records().len(), count, "{:#?}", sink.records());
    assert!(hop.stderr().iter().any(|line| line.contains("DEBUG")), "{:#?}", hop.stderr());
}

#[tokio::test]
async fn the_counters_of_metrics_and_log_records_add_up_whatever_the_collector_does() {
    futures_util::future::join_all(TRANSPORTS.map(add_up)).await;
}

async fn add_up(transport: &'static str) {
    let mut sink = Some(Sink::start(free_addr(), transport).await);
    let addr = sink.as_ref().unwrap().addr;
    let env = export_env(transport, addr);
    let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).chain(BOTH).collect();
    let more = [("OTEL_BLRP_MAX_QUEUE_SIZE", "64"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "300"), ("OTEL_METRIC_EXPORT_TIMEOUT", "900")];
    let hop = Hop::start(&[], &[&env[..], &more].concat());
    let moods = [Mood::Takes, Mood::Answers(503), Mood::Rejects(2, "some"), Mood::Dies, Mood::Answers(400), Mood::Hangs];
    let mut kept = 0;
    for round in 0..18 {
        match (&sink, round % 6) {
            (Some(gone), 4) => {
                kept += gone.records().len();
                sink = None;
            }
            (None, _) => sink = Some(Sink::start(addr, transport).await),
            (Some(sink), _) => sink.set(moods[round % moods.len()]),
        }
        for _ in 0..10 {
            assert_eq!(hop.get("/hello", &[]).await.status, 200);
            let samples = hop.metrics().await;
            added_up(&samples, "log_records");
            added_up(&samples, "data_points");
        }
    }
    let sink = match sink {
        Some(sink) => sink,
        None => Sink::start(addr, transport).await,
    };
    sink.set(Mood::Takes);
    // The exports under way at the change may all fail, and the next one of the metrics may be due only later:
    // each turn records something new.
    let is_settled = |samples: &Samples| {
        let is_through = |items| added_up(samples, items).1 > 0.0;
        samples.sum("httpserver_log_records_queued", &[]) == 0.0 && is_through("log_records") && is_through("data_points")
    };
    let samples = eventually("records and data points are exported, and no record is queued", || async {
        Some(hop.metrics().await).filter(is_settled)
    })
    .await;
    let (recorded, exported) = added_up(&samples, "log_records");
    assert!(recorded > 360.0, "{recorded}");
    kept += sink.records().len();
    assert!(kept as f64 >= exported, "{kept} of {exported}");
}

#[tokio::test]
async fn a_full_queue_of_log_records_drops_and_never_delays_a_request() {
    let sink = Sink::grpc().await;
    sink.set(Mood::Hangs);
    let hop = Hop::start(&[], &[&sink.env()[..], &BOTH, &[("OTEL_BLRP_MAX_QUEUE_SIZE", "8")]].concat());
    let begun = std::time::Instant::now();
    for _ in 0..40 {
        assert_eq!(hop.get("/hello", &[]).await.status, 200);
    }
    assert!(begun.elapsed() < Duration::from_secs(10));
    let samples = hop.metrics().await;
    assert!(dropped(&samples, "log_records", "queue_full") > 0.0, "{}", samples.0);
    added_up(&samples, "log_records");
    eventually("every line is on stdout", || async {
        (hop.stdout().iter().filter(|line| line.contains("/hello")).count() == 40).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_at_the_stop_is_exported_within_the_flush_timeout_or_counted_as_lost() {
    for transport in TRANSPORTS {
        let seldom = [
            ("OTEL_METRICS_EXPORTER", "otlp"),
            ("OTEL_LOGS_EXPORTER", "otlp"),
            ("OTEL_BLRP_SCHEDULE_DELAY", "3600000"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "3600000"),
        ];
        let sink = Sink::any(transport).await;
        let mut hop = Hop::start(&["--drain-delay", "0"], &[&sink.env()[..], &seldom].concat());
        hop.get("/hello", &[("x-request-id", "r-1")]).await;
        assert_eq!((sink.metrics().len(), sink.records().len()), (0, 0));
        hop.signal("TERM");
        assert!(hop.ended().success());
        assert_eq!(durations(&sink.metrics(), "/hello").len(), 1, "{transport}: {:#?}", hop.stderr());
        record_of(&sink, "r-1").await;
        let last = sink.records().into_iter().max_by_key(|record| record.time_unix_nano).expect("records");
        assert_eq!(text(last.body.as_ref()), "stopped", "the last words of the hop, too");

        sink.set(Mood::Hangs);
        let flags = ["--drain-delay", "0", "--flush-timeout", "300ms"];
        let mut hop = Hop::start(&flags, &[&sink.env()[..], &seldom].concat());
        hop.get("/hello", &[]).await;
        hop.signal("TERM");
        assert!(hop.ended().success());
        for (what, none) in [("metrics", "data_points=0"), ("log records", "log_records=0")] {
            let what = format!(" {what} were not handed over");
            let said = hop.stderr().into_iter().find(|line| line.contains(&what));
            assert!(said.is_some_and(|said| !said.contains(none)), "{what}: {:#?}", hop.stderr());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_signal_has_its_own_transport_and_is_off_unless_it_is_asked_for() {
    let (http, grpc) = (Sink::otlp().await, Sink::grpc().await);
    let (http_url, grpc_url) = (format!("http://{}", http.addr), format!("http://{}", grpc.addr));
    let logs_url = format!("{http_url}/v1/logs");
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", grpc_url.as_str()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", &logs_url),
    ];
    let hop = Hop::start(&[], &[&env[..], &BOTH].concat());
    let answer = hop.get("/hello", &[("x-request-id", "r-1")]).await;
    record_of(&http, "r-1").await;
    eventually("the duration arrives", || async { durations(&grpc.metrics(), "/hello").pop() }).await;
    assert_eq!((http.metrics().len(), grpc.records().len()), (0, 0));
    assert_eq!((answer.header("traceresponse"), grpc.spans().len()), (None, 0), "no exporter of traces");

    for off in [
        &[][..],
        &[("OTEL_METRICS_EXPORTER", "prometheus"), ("OTEL_LOGS_EXPORTER", "console")],
        &[("OTEL_METRICS_EXPORTER", "otlp"), ("OTEL_LOGS_EXPORTER", "otlp"), ("OTEL_SDK_DISABLED", "true")],
    ] {
        let mut hop = Hop::start(&["--drain-delay", "0"], &[&env[..], off].concat());
        let before = http.requests().len() + grpc.records().len();
        hop.get("/hello", &[]).await;
        let samples = hop.metrics().await;
        assert_eq!((added_up(&samples, "log_records"), added_up(&samples, "data_points")), ((0.0, 0.0), (0.0, 0.0)));
        hop.signal("TERM");
        assert!(hop.ended().success());
        assert_eq!(http.requests().len() + grpc.records().len(), before, "{off:?}");
    }
}

#[tokio::test]
async fn an_export_of_metrics_that_takes_too_long_is_warned_about_and_the_next_one_arrives() {
    for transport in TRANSPORTS {
        let sink = Sink::any(transport).await;
        sink.set(Mood::Hangs);
        let short = [("OTEL_METRIC_EXPORT_TIMEOUT", "200"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "60000")];
        let hop = Hop::start(&[], &[&sink.env()[..], &BOTH, &short].concat());
        hop.get("/hello", &[]).await;
        let lines = || hop.stderr().into_iter().find(|line| line.contains("metric collector") && line.contains("WARN"));
        eventually("it is logged", || async { lines() }).await;
        let lost = || async { dropped(&hop.metrics().await, "data_points", "unreachable") };
        eventually("the loss is counted", || async { (lost().await > 0.0).then_some(()) }).await;
        sink.set(Mood::Takes);
        eventually("the next one arrives", || async { durations(&sink.metrics(), "/hello").pop() }).await;
    }
}
