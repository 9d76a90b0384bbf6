//! What most would write: axum::serve, TraceLayer, JSON logs by `tracing`, tracing-opentelemetry to OTLP, reqwest.
//!
//! Each part is set up as its own documentation shows, with the mistakes left out that would only slow it down: a level
//! filter (without one hyper-util's TRACE events are logged), no source locations, threads or busy times in spans.

use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::routing::get;
use axum::{Json, Router};
use http::{HeaderMap, HeaderName, StatusCode};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{KeyValue, global};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde_json::{Value, json};
use tower_http::trace::{DefaultOnResponse, TraceLayer};
use tracing::{Instrument as _, Level, Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::CARRIED;

#[derive(Clone)]
struct Hop {
    client: reqwest::Client,
    upstream: Option<String>,
}

pub fn run(addr: &str, name: &str, collector: &str, upstream: Option<&str>) {
    traced(name, collector, || {
        serve(addr, || {
            let client = reqwest::Client::builder().no_proxy().build().expect("a client");
            Router::new()
                .route("/hello", get(async || "Hello from service1 v1 (localhost)\n"))
                .route("/service{n}", get(service))
                .with_state(Hop { client, upstream: upstream.map(str::to_owned) })
        });
    });
}

/// Sends what `work` traces to a collector, and logs it as JSON.
pub fn traced(name: &str, collector: &str, work: impl FnOnce()) {
    // The blocking client of the exporter must be made outside the runtime.
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_endpoint(collector)
        .with_timeout(Duration::from_secs(10))
        .build()
        .expect("an exporter");
    let resource =
        Resource::builder().with_service_name(name.to_owned()).with_attribute(KeyValue::new("service.version", "v1")).build();
    // The queue's size and the schedule come from OTEL_BSP_*.
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    global::set_text_map_propagator(TraceContextPropagator::new());
    let otel = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("obvious"))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false);
    tracing_subscriber::registry()
        .with(EnvFilter::new("info"))
        .with(tracing_subscriber::fmt::layer().json())
        .with(otel)
        .init();
    work();
    drop(provider);
}

/// Serves the routes, each request in a span that continues the caller's trace.
#[tokio::main]
pub async fn serve(addr: &str, routes: impl FnOnce() -> Router) {
    let trace = TraceLayer::new_for_http()
        .make_span_with(|request: &Request| {
            let span = info_span!(
                "request",
                otel.name = format!("{} {}", request.method(), request.uri().path()),
                otel.kind = "server",
                http.request.method = %request.method(),
                url.path = request.uri().path(),
                http.response.status_code = tracing::field::Empty,
            );
            let parent = global::get_text_map_propagator(|propagator| propagator.extract(&HeaderExtractor(request.headers())));
            let _ = span.set_parent(parent);
            span
        })
        .on_response(|response: &http::Response<_>, latency: Duration, span: &Span| {
            span.record("http.response.status_code", response.status().as_u16());
            tower_http::trace::OnResponse::<axum::body::Body>::on_response(
                DefaultOnResponse::new().level(Level::INFO),
                response,
                latency,
                span,
            );
        });
    let app = routes().layer(trace);
    let listener = tokio::net::TcpListener::bind(addr).await.expect("the address is free");
    axum::serve(axum::serve::ListenerExt::tap_io(listener, |stream| drop(stream.set_nodelay(true))), app)
        .await
        .expect("axum serves");
}

async fn service(State(hop): State<Hop>, Path(n): Path<u16>, headers: HeaderMap) -> (StatusCode, Json<Value>) {
    let nested = match &hop.upstream {
        Some(upstream) => call(&hop.client, upstream, &headers).await,
        None => Ok(Value::Null),
    };
    let status = if nested.is_ok() { StatusCode::OK } else { StatusCode::BAD_GATEWAY };
    (status, Json(json!({ "service": format!("service{n}"), "reply": nested.unwrap_or_default() })))
}

async fn call(client: &reqwest::Client, upstream: &str, headers: &HeaderMap) -> Result<Value, reqwest::Error> {
    let span = info_span!("call", otel.name = "GET", otel.kind = "client", http.request.method = "GET", url.full = upstream);
    let carried = outgoing(headers, &span);
    async { client.get(upstream).headers(carried).send().await?.error_for_status()?.json().await }.instrument(span).await
}

/// The headers of a call: those that are carried, and the trace.
pub fn outgoing(headers: &HeaderMap, span: &Span) -> HeaderMap {
    let mut carried = HeaderMap::new();
    for name in CARRIED.map(HeaderName::from_static) {
        for value in headers.get_all(&name) {
            carried.append(name.clone(), value.clone());
        }
    }
    global::get_text_map_propagator(|propagator| propagator.inject_context(&span.context(), &mut HeaderInjector(&mut carried)));
    carried
}
