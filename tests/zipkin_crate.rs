//! Why the Zipkin JSON is ours: `opentelemetry-zipkin` sends spans without the name of their service. This test holds the crate
//! to that on the wire; when it fails, upstream has mended it, and the encoder in `src/telemetry/export/zipkin.rs` can go.
#![expect(deprecated, reason = "the crate is deprecated, which is part of why it is not used")]

use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use axum::Router;
use axum::body::Bytes;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use opentelemetry::InstrumentationScope;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};

#[tokio::test]
async fn the_zipkin_exporter_of_opentelemetry_still_sends_no_service_name() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/api/v2/spans", listener.local_addr().unwrap());
    let body: Arc<Mutex<Bytes>> = Arc::default();
    let kept = body.clone();
    let router = Router::new().fallback(move |body: Bytes| async move {
        *kept.lock().unwrap() = body;
        http::StatusCode::ACCEPTED
    });
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = TowerToHyperService::new(router);
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
    });

    // The HTTP client has no TLS provider of its own; this collector needs none, and the build of the client does.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let builder = opentelemetry_zipkin::ZipkinExporter::builder().with_http_client(client);
    let mut exporter = builder.with_collector_endpoint(endpoint).build().unwrap();
    exporter.set_resource(&Resource::builder_empty().with_service_name("service1").build());
    let span = SpanData {
        span_context: SpanContext::new(TraceId::from(1), SpanId::from(2), TraceFlags::SAMPLED, false, TraceState::NONE),
        parent_span_id: SpanId::INVALID,
        parent_span_is_remote: false,
        span_kind: SpanKind::Server,
        name: "GET /service{n}".into(),
        start_time: SystemTime::now(),
        end_time: SystemTime::now(),
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::builder("test").build(),
    };
    exporter.export(vec![span]).await.unwrap();
    server.abort();

    let body = body.lock().unwrap().clone();
    let spans: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(spans[0]["name"], "GET /service{n}", "{spans}");
    assert_eq!(spans[0]["localEndpoint"], serde_json::json!({}), "upstream has mended it: {spans}");
    assert!(!spans.to_string().contains("service1"), "{spans}");
}
