//! Spans of a caller: `check` and the demo's own sender report the requests that begin a trace, so that it has its root.
//!
//! `tracing` makes the span, `tracing-opentelemetry` turns it into one of the SDK, and `opentelemetry-proto` into OTLP; a Zipkin
//! collector gets [`Span`] as JSON. Nothing here is on a hop's request path.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanId, Status, TraceId, TracerProvider as _};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{IdGenerator, SdkTracerProvider, SpanData, SpanProcessor};
use opentelemetry_semantic_conventions::attribute as key;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::Dispatch;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::net::hosts::{host_and_port, redacted_url};
use crate::telemetry::export::{Accepted, Collector, Exporter, ExporterError, OtlpCollector, Signal, zipkin};
use crate::telemetry::ids;
use crate::trace_context::Context;
use crate::traces::{Endpoint, Kind, Span};

/// `service.name` of a caller's spans.
pub(crate) const SERVICE: &str = "httpserver-check";

/// How many spans wait for the collector at most; further ones are dropped, and [`ClientTracing::finish`] says how many.
const QUEUE: usize = 4096;

/// Reports spans of this process as a caller. Nothing of it is process-global.
#[derive(Debug)]
pub(crate) struct ClientTracing {
    tracer: ClientTracer,
    provider: SdkTracerProvider,
    lost: Arc<AtomicUsize>,
    export: JoinHandle<()>,
}

/// Begins spans. Clones report to the same collector.
#[derive(Debug, Clone)]
pub(crate) struct ClientTracer(Dispatch);

/// The span of one request. Dropping it ends it.
pub(crate) struct ClientSpan(tracing::Span);

impl ClientTracing {
    /// Starts the task that exports spans; `None` when no exporter is Zipkin or OTLP.
    ///
    /// # Errors
    ///
    /// [`ExporterError`] when the collector's endpoint or headers cannot be used.
    pub(crate) fn start(exporters: Vec<Exporter>) -> Result<Option<Self>, ExporterError> {
        let resource = Resource::builder_empty()
            .with_service_name(SERVICE)
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let exporter = exporters.into_iter().find_map(|exporter| match exporter {
            Exporter::Otlp(options) => Some(
                OtlpCollector::new(Signal::Traces, options)
                    .map(|collector| CallerExporter::Otlp(collector, ResourceAttributesWithSchema::from(&resource))),
            ),
            Exporter::Zipkin { endpoint } => Some(zipkin::collector(&endpoint).map(CallerExporter::Zipkin)),
            Exporter::Console => None,
        });
        let Some(exporter) = exporter.transpose()? else { return Ok(None) };
        let (sender, receiver) = mpsc::channel(QUEUE);
        let lost = Arc::new(AtomicUsize::new(0));
        let provider = SdkTracerProvider::builder()
            .with_id_generator(SentIds)
            .with_resource(resource)
            .with_span_processor(QueueProcessor { queue: Mutex::new(Some(sender)), lost: lost.clone() })
            .build();
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer(env!("CARGO_PKG_NAME")))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false);
        let dispatch = Dispatch::new(tracing_subscriber::registry().with(layer));
        let export = tokio::spawn(export(exporter, receiver, lost.clone()));
        Ok(Some(Self { tracer: ClientTracer(dispatch), provider, lost, export }))
    }

    /// A handle that begins spans.
    pub(crate) fn tracer(&self) -> ClientTracer {
        self.tracer.clone()
    }

    /// Exports what is left, for at most `timeout`; returns how many spans were lost.
    pub(crate) async fn finish(self, timeout: Duration) -> usize {
        // Closes the queue, so that the task ends after the last span.
        let _ = self.provider.shutdown();
        let _ = tokio::time::timeout(timeout, self.export).await;
        self.lost.load(Ordering::Relaxed)
    }
}

impl ClientTracer {
    /// Begins the span of a GET that carries `context` in its headers: the span has the ids that are sent.
    pub(crate) fn begin(&self, context: &Context, url: &str) -> ClientSpan {
        let span = SentIds::with(context, || {
            let span =
                tracing::dispatcher::with_default(&self.0, || tracing::info_span!(parent: None, "GET", otel.kind = "client"));
            // Starts the span, which draws its ids.
            let _ = span.context();
            span
        });
        span.set_attribute(key::HTTP_REQUEST_METHOD, "GET");
        let url = redacted_url(url);
        if let Ok(uri) = url.parse::<http::Uri>()
            && let Some(authority) = uri.authority()
        {
            let (host, port) = host_and_port(authority.as_str(), uri.scheme_str().unwrap_or_default());
            span.set_attribute(key::SERVER_ADDRESS, host.to_owned());
            span.set_attribute(key::SERVER_PORT, i64::from(port));
        }
        span.set_attribute(key::URL_FULL, url);
        ClientSpan(span)
    }
}

impl ClientSpan {
    /// Ends the span of a request that was answered; a client's span fails from 400 on.
    pub(crate) fn answered(self, status: u16) {
        self.0.set_attribute(key::HTTP_RESPONSE_STATUS_CODE, i64::from(status));
        if status >= 400 {
            self.fail(&status.to_string());
        }
    }

    /// Ends the span of a request without an answer.
    pub(crate) fn failed(self, error_type: &'static str) {
        self.fail(error_type);
    }

    fn fail(&self, error_type: &str) {
        self.0.set_attribute(key::ERROR_TYPE, error_type.to_owned());
        self.0.set_status(Status::error(""));
    }
}

/// Sets the ids of a span to those of the context that its request carries.
#[derive(Debug)]
struct SentIds;

thread_local! {
    static SENT: Cell<Option<(TraceId, SpanId)>> = const { Cell::new(None) };
}

impl SentIds {
    fn with<T>(context: &Context, start: impl FnOnce() -> T) -> T {
        SENT.set(Some((context.trace_id, context.span_id)));
        let started = start();
        SENT.set(None);
        started
    }
}

impl IdGenerator for SentIds {
    fn new_trace_id(&self) -> TraceId {
        SENT.get().map_or_else(ids::trace_id, |(trace_id, _)| trace_id)
    }

    fn new_span_id(&self) -> SpanId {
        SENT.get().map_or_else(ids::span_id, |(_, span_id)| span_id)
    }
}

/// Hands finished spans to the export task. The SDK's `BatchSpanProcessor` exports from a thread of its own, where the async
/// HTTP client does not run.
#[derive(Debug)]
struct QueueProcessor {
    queue: Mutex<Option<mpsc::Sender<SpanData>>>,
    /// Spans that were not accepted by the collector, and those on their way to it.
    lost: Arc<AtomicUsize>,
}

impl SpanProcessor for QueueProcessor {
    fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &opentelemetry::Context) {}

    fn on_end(&self, span: SpanData) {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        self.lost.fetch_add(1, Ordering::Relaxed);
        if let Some(queue) = queue.as_ref() {
            let _ = queue.try_send(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(())
    }
}

/// How a caller's spans are sent.
enum CallerExporter {
    Otlp(OtlpCollector, ResourceAttributesWithSchema),
    Zipkin(Collector),
}

impl CallerExporter {
    async fn send(&self, spans: Vec<SpanData>) -> Result<Accepted, String> {
        let sent = match self {
            Self::Otlp(collector, resource) => {
                let request = ExportTraceServiceRequest { resource_spans: group_spans_by_resource_and_scope(spans, resource) };
                collector.export(request.encode_to_vec(), Duration::MAX).await
            }
            Self::Zipkin(collector) => {
                let spans: Vec<Span> = spans.iter().map(zipkin_span).collect();
                let body = serde_json::to_vec(&spans).map_err(|error| error.to_string())?;
                collector.post(body, Duration::MAX).await.map(|_| Accepted::default())
            }
        };
        sent.map_err(|error| error.reason)
    }
}

/// Sends finished spans until the queue is closed. `lost` counts a span down when it is accepted.
async fn export(exporter: CallerExporter, mut queue: mpsc::Receiver<SpanData>, lost: Arc<AtomicUsize>) {
    const CHUNK: usize = 512;
    let mut spans = Vec::new();
    while queue.recv_many(&mut spans, CHUNK).await > 0 {
        let count = spans.len();
        match exporter.send(std::mem::take(&mut spans)).await {
            Ok(Accepted { rejected, message }) => {
                lost.fetch_sub(count.saturating_sub(rejected), Ordering::Relaxed);
                if let Some(reason) = message {
                    tracing::warn!(rejected, reason, "what the span collector said of the caller's spans");
                }
            }
            Err(reason) => tracing::warn!(spans = count, reason, "the span collector did not accept the caller's spans"),
        }
    }
}

fn zipkin_span(span: &SpanData) -> Span {
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let since_epoch = span.start_time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let duration = span.end_time.duration_since(span.start_time).unwrap_or_default();
    let mut report = Span::new(span.span_context.trace_id(), span.span_context.span_id());
    report.parent_id = (span.parent_span_id != SpanId::INVALID).then_some(span.parent_span_id);
    report.kind = Some(Kind::Client);
    report.name = Some(span.name.as_ref().into());
    report.timestamp = Some(micros(since_epoch));
    report.duration = Some(micros(duration).max(1));
    report.local_endpoint = Some(Endpoint { service_name: Some(SERVICE.into()), ..Endpoint::default() });
    report.tags = span.attributes.iter().map(|tag| (tag.key.as_str().into(), tag.value.as_str().into_owned().into())).collect();
    // Zipkin colours a span by this tag.
    if let Some(error) = report.tags.get(key::ERROR_TYPE).cloned() {
        report.tags.insert("error".into(), error);
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::export::{OtlpOptions, OtlpProtocol};
    use crate::trace_context::Sampling;
    use axum::body::Bytes;

    /// Collects what is posted to any path.
    async fn collector() -> (String, mpsc::UnboundedReceiver<Bytes>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/any", listener.local_addr().unwrap());
        let (sender, bodies) = mpsc::unbounded_channel();
        let router = axum::Router::new().fallback(move |body: Bytes| async move {
            let _ = sender.send(body);
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = hyper_util::service::TowerToHyperService::new(router.clone());
                let io = hyper_util::rt::TokioIo::new(stream);
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
            }
        });
        (url, bodies)
    }

    fn sent() -> Context {
        let (trace_id, span_id) = (TraceId::from(0xabc), SpanId::from(0xdef));
        Context { trace_id, short_trace_id: false, random: false, span_id, parent_id: None, sampling: Sampling::Sample }
    }

    #[tokio::test]
    async fn a_callers_span_has_the_ids_that_its_request_carries() {
        let (endpoint, mut bodies) = collector().await;
        let tracing = ClientTracing::start(vec![Exporter::Zipkin { endpoint }]).unwrap().unwrap();
        tracing.tracer().begin(&sent(), "http://u:s3cret@service1:8080/service1?token=s3cret").answered(503);
        assert_eq!(tracing.finish(Duration::from_secs(10)).await, 0);
        let body = bodies.recv().await.unwrap();
        assert!(!String::from_utf8_lossy(&body).contains("s3cret"), "{body:?}");
        let [span] = &crate::traces::decode(&body, 10).unwrap()[..] else { panic!("{body:?}") };
        assert_eq!((span.trace_id, span.id, span.parent_id), (sent().trace_id, sent().span_id, None));
        assert_eq!((span.kind, span.name.as_deref()), (Some(Kind::Client), Some("GET")));
        assert_eq!(span.local_endpoint.as_ref().unwrap().service_name.as_deref(), Some(SERVICE));
        let tag = |name: &str| span.tags.get(name).map(|value| &**value);
        assert_eq!(tag("url.full"), Some("http://service1:8080/service1"));
        assert_eq!((tag("server.address"), tag("server.port")), (Some("service1"), Some("8080")));
        assert_eq!((tag("http.response.status_code"), tag("error.type"), tag("error")), (Some("503"), Some("503"), Some("503")));
    }

    #[tokio::test]
    async fn otlp_carries_the_callers_service_and_what_it_does_not_accept_is_counted() {
        let options = |endpoint| OtlpOptions { endpoint, ..OtlpOptions::new(Signal::Traces, OtlpProtocol::HttpProtobuf) };
        let (endpoint, mut bodies) = collector().await;
        let tracing = ClientTracing::start(vec![Exporter::Otlp(options(endpoint))]).unwrap().unwrap();
        tracing.tracer().begin(&sent(), "http://service1/service1").failed("timeout");
        assert_eq!(tracing.finish(Duration::from_secs(10)).await, 0);
        let request = ExportTraceServiceRequest::decode(bodies.recv().await.unwrap()).unwrap();
        let [resource_spans] = &request.resource_spans[..] else { panic!("{request:?}") };
        assert!(format!("{:?}", resource_spans.resource).contains(SERVICE), "{request:?}");
        let span = &resource_spans.scope_spans[0].spans[0];
        assert_eq!((&span.trace_id[..], &span.span_id[..]), (&sent().trace_id.to_bytes()[..], &sent().span_id.to_bytes()[..]));
        assert_eq!(span.status.as_ref().unwrap().code, 2);

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        drop(listener);
        let tracing = ClientTracing::start(vec![Exporter::Zipkin { endpoint }]).unwrap().unwrap();
        tracing.tracer().begin(&sent(), "http://service1/service1").answered(200);
        assert_eq!(tracing.finish(Duration::from_secs(10)).await, 1);
    }
}
