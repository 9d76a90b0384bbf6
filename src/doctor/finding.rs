//! What the report is made of.

use serde::Serialize;
use serde::Serializer;

use crate::doctor::system::{System, TracerKind};
use crate::traces::TraceId;
use crate::traces::ids::zipkin_id;

/// What kind of finding it is; the name in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) enum FindingId {
    /// A service calls on without the trace context that it received.
    #[serde(rename = "context.dropped")]
    ContextDropped,
    /// A service begins a trace although its callers send a context.
    #[serde(rename = "context.ignored")]
    ContextIgnored,
    /// A service passes on the context that it received instead of its own.
    #[serde(rename = "context.stale")]
    ContextStale,
    /// A service calls with the context of another request that it serves.
    #[serde(rename = "context.mixed")]
    ContextMixed,
    /// A service passes the trace on under the last 64 bits of its id.
    #[serde(rename = "context.shortened")]
    ContextShortened,
    /// Spans name a parent that nobody reported.
    #[serde(rename = "spans.orphaned")]
    SpansOrphaned,
    /// A service takes part in traces and reports nothing.
    #[serde(rename = "service.silent")]
    ServiceSilent,
    /// Calls were sent, and the called service has no span of them.
    #[serde(rename = "sampling.differs")]
    SamplingDiffers,
    /// Spans have a kind that their place in the trace rules out.
    #[serde(rename = "spans.kind")]
    SpansKind,
    /// A call takes longer than its caller waited.
    #[serde(rename = "spans.duration")]
    SpansDuration,
    /// The clocks of two hosts differ.
    #[serde(rename = "clock.skew")]
    ClockSkew,
    /// A queue or a batch job divides traces.
    #[serde(rename = "messaging.cut")]
    MessagingCut,
}

/// Whether a finding counts against its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// The traces are wrong.
    Fault,
    /// Worth knowing: right as it is, or too rare to be a fault of the configuration.
    Note,
}

/// One finding.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ServiceFinding {
    pub(super) id: FindingId,
    pub(super) level: Level,
    /// The service that is to be changed.
    pub(super) service: String,
    /// The other service of the call, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) peer: Option<String>,
    /// A sentence without the service's name in front.
    pub(super) text: String,
    pub(super) cause: String,
    pub(super) next: String,
    /// The command that does it; what the reader has to fill in is in capitals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) run: Option<&'static str>,
    /// In how many cases, and of how many.
    pub(super) count: usize,
    pub(super) of: usize,
    /// Up to three traces to look at.
    #[serde(serialize_with = "zipkin_ids")]
    pub(super) traces: Vec<TraceId>,
}

impl ServiceFinding {
    /// It is a fault that spans of its service are missing.
    pub(super) fn loses_own_spans(&self) -> bool {
        self.id == FindingId::SpansOrphaned && self.level == Level::Fault
    }

    /// Whether it is of this service, or names it.
    pub(super) fn concerns(&self, service: &str) -> bool {
        let texts = [&self.service, &self.text].into_iter().chain(&self.peer);
        let mut names = texts.flat_map(|text| text.split([' ', ',', ':', ';', '(', ')', '\'']));
        names.any(|name| name.eq_ignore_ascii_case(service)) || self.service.eq_ignore_ascii_case(service)
    }
}

fn zipkin_ids<S: Serializer>(ids: &[TraceId], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(ids.iter().map(|id| zipkin_id(*id)))
}

/// Below this share of the calls nobody can tell a fault from a lost packet.
pub(super) const MIN_SHARE: f64 = 0.03;
/// So few cases are a note.
pub(super) const MIN_COUNT: usize = 3;

/// A fault when it is frequent enough to be one.
pub(super) fn level(count: usize, of: usize) -> Level {
    if count >= MIN_COUNT && count as f64 >= MIN_SHARE * of as f64 { Level::Fault } else { Level::Note }
}

/// Why a service of this kind loses the context, and what to do.
pub(super) fn lost_context(system: &System, service: usize) -> (String, String) {
    let name = system.name(service);
    let cause = match system.tracer(service) {
        TracerKind::Envoy => {
            "only its proxy reports, and a proxy cannot know which incoming request a call belongs to: the app has to copy \
             traceparent, the b3 headers and x-request-id from the request that it serves to the calls that it makes"
        }
        TracerKind::OpenTelemetry => {
            "its OpenTelemetry SDK does not inject the context: the HTTP client is not instrumented or was made before the \
             instrumentation, the work goes on in another thread or task without the context, or OTEL_PROPAGATORS names no \
             format that the callee reads"
        }
        TracerKind::Jaeger => {
            "its Jaeger client writes uber-trace-id, which the callee does not read, or the HTTP client is not instrumented"
        }
        TracerKind::Zipkin | TracerKind::None => {
            "its HTTP client is not instrumented, the work goes on in another thread without the context, or it writes a \
             format that the callee does not read"
        }
    };
    (cause.to_owned(), probe_next(name))
}

/// Why a service does not continue what its callers send, and what to do.
pub(super) fn ignored_context(from: &str, name: &str) -> (String, String) {
    (
        format!(
            "{name} reads another format than {from} writes (OTEL_PROPAGATORS, the mesh's provider), or its server is not instrumented to extract one"
        ),
        format!("send one request with a traceparent and b3 headers of your own to {name}, and look which trace it reports"),
    )
}

/// Shows what one service does to each header. The address is that of its traces' reader, the URL is not known: names in traces are
/// those of services.
pub(super) const PROBE: &str = "httpserver probe http://HOST:PORT/PATH --downstream 127.0.0.1:9001";

/// What [`PROBE`] needs.
pub(super) fn probe_next(name: &str) -> String {
    format!(
        "see what {name} does to each header: point its next hop at 127.0.0.1:9001, and put a URL of it that makes it call on in \
         place of HOST:PORT/PATH"
    )
}
