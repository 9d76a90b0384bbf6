//! Measures a request once, around everything else, and tells metric, span and access line when it ends.
//!
//! Trace context and carried headers are read here and nowhere else. What is known of a request is one value, the
//! [`Exchange`]; it tells what it saw when it is dropped, so that requests that time out, panic or whose caller hangs up
//! are counted and logged like any other.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::hop::fault::FaultDecision;
use crate::hop::route::Route;
use crate::hop::state::Node;
use crate::net::addresses::{self, canonical};
use crate::net::hosts::host_and_port;
use crate::telemetry::access_log::AccessEntry;
use crate::telemetry::ids;
use crate::telemetry::metrics::known_method;
use crate::telemetry::span_queue::{FinishedSpan, SpanKind};
use crate::trace_context::{Carried, Context, X_HOP_COUNT, X_REQUEST_ID, traceresponse};

static VERSION: HeaderName = HeaderName::from_static("version");
static TRACERESPONSE: HeaderName = HeaderName::from_static("traceresponse");

/// What nginx calls a request whose caller hung up before it was answered.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// One request, from its head to the end of its answer.
pub(crate) struct Exchange {
    pub(crate) node: Arc<Node>,
    begun: Instant,
    pub(crate) started_at: SystemTime,
    pub(crate) route: Route,
    method: Method,
    path: Option<PathAndQuery>,
    /// As reported: `X-Real-IP`, else the first of `X-Forwarded-For`, else of `Forwarded`, else the peer.
    pub(crate) client: IpAddr,
    /// The caller's URI from `x-forwarded-client-cert`, as reported.
    pub(crate) identity: Option<String>,
    /// `x-envoy-attempt-count`, or 1.
    pub(crate) attempt: u32,
    /// How many hops the request has passed.
    pub(crate) hops: u32,
    host: Option<HeaderValue>,
    /// Another server might read this request differently than this one did (RFC 9112: 3.2 and 6.1).
    pub(crate) is_ambiguous: bool,
    /// The size of the request's head, line ends included.
    pub(crate) head_bytes: usize,
    pub(crate) request_id: HeaderValue,
    pub(crate) carried: Carried,
    /// With an exporter this hop's server span, else what arrived.
    pub(crate) context: Option<Context>,
    /// This hop started the trace.
    pub(crate) new_trace: bool,
    /// What the fault dice said.
    draw: OnceLock<FaultDecision>,
    /// 0 until there is an answer.
    status: AtomicU16,
    sent_bytes: AtomicU64,
    /// 0 when no upstream answered.
    upstream_status: AtomicU16,
}

impl Exchange {
    /// Reads the head of a request, once.
    pub(crate) fn begin<B>(node: &Arc<Node>, peer: IpAddr, request: &Request<B>) -> Arc<Self> {
        let mut seen = Seen::default();
        let mut head_bytes = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
        for (name, value) in request.headers() {
            head_bytes += name.as_str().len() + value.len() + 4;
            if !node.propagator.carry(&mut seen.carried, name, value) {
                seen.take(name, value);
            }
        }
        // HTTP/2 says the host in its target.
        let authority = || HeaderValue::from_str(request.uri().authority()?.as_str()).ok();
        seen.host = seen.host.or_else(authority);
        let path = request.uri().path_and_query().cloned();
        let route = Route::of(path.as_ref().map_or("", PathAndQuery::path));
        let incoming = node.propagator.extract(&seen.carried);
        let (context, new_trace) = match &node.tracer {
            Some(_) if route.is_ops() => (None, false),
            Some(tracer) => {
                let (context, new_trace) = tracer.server_context(&incoming);
                (Some(context), new_trace)
            }
            None => (incoming.context, false),
        };
        let request_id = seen.carried.request_id().cloned().unwrap_or_else(ids::request_id);
        node.metrics.active_requests.inc();
        if let Some(watch) = node.watch.get().filter(|_| route.is_work()) {
            watch.began();
        }
        Arc::new(Self {
            begun: Instant::now(),
            started_at: SystemTime::now(),
            route,
            method: request.method().clone(),
            path,
            client: canonical(seen.real_ip.or(seen.forwarded_for).or(seen.forwarded).unwrap_or(peer)),
            identity: seen.identity,
            attempt: seen.attempt.unwrap_or(1),
            hops: seen.hops.unwrap_or(0),
            is_ambiguous: seen.odd_encoding || (seen.hosts != 1 && request.version() == Version::HTTP_11) || seen.hosts > 1,
            host: seen.host,
            head_bytes,
            request_id,
            carried: seen.carried,
            context,
            new_trace,
            draw: OnceLock::new(),
            status: AtomicU16::new(0),
            sent_bytes: AtomicU64::new(0),
            upstream_status: AtomicU16::new(0),
            node: node.clone(),
        })
    }

    /// The path without the query.
    pub(crate) fn path(&self) -> &str {
        self.path.as_ref().map_or("", PathAndQuery::path)
    }

    /// The N of `/service<N>`; 0 on other paths.
    pub(crate) fn service_number(&self) -> u16 {
        let digits = self.path().trim_start_matches(|c: char| !c.is_ascii_digit());
        crate::values::service_number(digits).unwrap_or(0)
    }

    /// How long the request has been here.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Remembers what the fault dice said.
    pub(crate) fn set_draw(&self, draw: FaultDecision) {
        let _ = self.draw.set(draw);
    }

    /// What the fault dice said; nothing when they were not rolled.
    pub(crate) fn draw(&self) -> FaultDecision {
        self.draw.get().copied().unwrap_or_default()
    }

    /// For the access line: how the next hops answered.
    pub(crate) fn set_upstream_status(&self, status: u16) {
        self.upstream_status.store(status, Ordering::Relaxed);
    }

    /// The headers that every answer carries, and the body that tells the exchange how much of it was sent.
    pub(crate) fn answer(self: Arc<Self>, mut response: Response<Bytes>) -> Response<ObservedBody> {
        self.status.store(response.status().as_u16(), Ordering::Relaxed);
        if self.method == Method::HEAD {
            let length = HeaderValue::from(response.body().len());
            response.headers_mut().insert(header::CONTENT_LENGTH, length);
            *response.body_mut() = Bytes::new();
        }
        self.write_headers(response.headers_mut());
        response.map(|data| ObservedBody { data, exchange: Some(self) })
    }

    fn write_headers(&self, headers: &mut HeaderMap) {
        headers.insert(X_REQUEST_ID.clone(), self.request_id.clone());
        headers.insert(VERSION.clone(), self.node.version_header.clone());
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(context) = &self.context {
            headers.insert(TRACERESPONSE.clone(), traceresponse(context));
        }
        if self.node.phase.is_draining() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let node = &*self.node;
        let took = self.begun.elapsed();
        let status = match self.status.load(Ordering::Relaxed) {
            0 => CLIENT_CLOSED_REQUEST,
            status => status,
        };
        node.metrics.active_requests.dec();
        if let Some(watch) = node.watch.get().filter(|_| self.route.is_work()) {
            watch.ended(status, took);
        }
        let template = self.route.template();
        let sampled = self.context.filter(|context| context.sampling.is_sampled());
        let label = if template.is_empty() { "unmatched" } else { template };
        let digits = http::StatusCode::from_u16(status).unwrap_or_default();
        node.metrics.request(&self.method, label, digits.as_str(), took, sampled.map(|context| context.trace_id));
        if let Some((tracer, context)) = node.tracer.as_ref().zip(self.context.as_ref()) {
            tracer.record(&FinishedSpan {
                kind: SpanKind::Server,
                context,
                start: self.started_at,
                duration: took,
                method: known_method(&self.method),
                route: template,
                status: if status == CLIENT_CLOSED_REQUEST { 0 } else { status },
                error: (status == CLIENT_CLOSED_REQUEST).then_some("client_closed_request"),
                path: self.path(),
                client: Some(self.client),
                server: self.host.as_ref().and_then(|host| host.to_str().ok()).map(host_and_port),
                request_id: self.request_id.to_str().unwrap_or_default(),
            });
        }
        if let Some(log) = &node.access_log {
            log.write(&AccessEntry {
                started_at: self.started_at,
                duration: took,
                client: self.client,
                method: self.method.as_str(),
                path: self.path(),
                status,
                bytes: self.sent_bytes.load(Ordering::Relaxed),
                request_id: self.request_id.as_bytes(),
                trace: self.context.as_ref(),
                lane: &node.identity.lane,
                upstream_status: Some(self.upstream_status.load(Ordering::Relaxed)).filter(|status| *status != 0),
            });
        }
    }
}

/// What a head holds beside the carried headers.
#[derive(Default)]
struct Seen {
    carried: Carried,
    host: Option<HeaderValue>,
    hosts: usize,
    /// A transfer encoding that is not just `chunked`.
    odd_encoding: bool,
    real_ip: Option<IpAddr>,
    forwarded_for: Option<IpAddr>,
    forwarded: Option<IpAddr>,
    identity: Option<String>,
    attempt: Option<u32>,
    hops: Option<u32>,
}

impl Seen {
    fn take(&mut self, name: &HeaderName, value: &HeaderValue) {
        let text = || value.to_str().ok();
        match name.as_str() {
            "host" => {
                self.host = Some(value.clone());
                self.hosts += 1;
            }
            "transfer-encoding" => self.odd_encoding |= !value.as_bytes().eq_ignore_ascii_case(b"chunked"),
            "x-real-ip" => self.real_ip = self.real_ip.or_else(|| addresses::parse(text()?)),
            "x-forwarded-for" => {
                self.forwarded_for = self.forwarded_for.or_else(|| addresses::first_forwarded_for(text()?));
            }
            "forwarded" => self.forwarded = self.forwarded.or_else(|| addresses::first_forwarded(text()?)),
            "x-forwarded-client-cert" => self.identity = text().and_then(caller_uri),
            "x-envoy-attempt-count" => self.attempt = text().and_then(|count| count.parse().ok()).filter(|count| *count > 0),
            _ if *name == X_HOP_COUNT => self.hops = text().and_then(|count| count.parse().ok()),
            _ => {}
        }
    }
}

/// The caller's URI from `x-forwarded-client-cert`: of the last element, which the nearest proxy added.
/// Form: `By=…;Hash=…;Subject="…";URI=spiffe://…,By=…`; values with `,` `;` `=` are quoted.
pub(crate) fn caller_uri(xfcc: &str) -> Option<String> {
    const MAX: usize = 1024;
    let mut uri = None;
    let mut rest = xfcc;
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => {
                let end = quoted.match_indices('"').find(|(i, _)| !quoted[..*i].ends_with('\\'))?.0;
                (&quoted[..end], &quoted[end + 1..])
            }
            None => after.split_at(after.find([',', ';']).unwrap_or(after.len())),
        };
        if name.trim().eq_ignore_ascii_case("URI") {
            uri = Some(value);
        }
        // A comma begins the next proxy's element: what the one before said is about an earlier call.
        if after.starts_with(',') {
            uri = None;
        }
        rest = after.strip_prefix([',', ';']).unwrap_or(after);
        if rest.len() == after.len() && !rest.is_empty() {
            return None;
        }
    }
    uri.filter(|uri| !uri.is_empty() && uri.len() <= MAX).map(str::to_owned)
}

/// An answer's body that keeps its exchange until everything was handed to the connection, or until nobody wants it.
pub(crate) struct ObservedBody {
    data: Bytes,
    exchange: Option<Arc<Exchange>>,
}

impl HttpBody for ObservedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = std::mem::take(&mut self.data);
        if let Some(exchange) = self.exchange.take() {
            exchange.sent_bytes.store(data.len() as u64, Ordering::Relaxed);
        }
        Poll::Ready((!data.is_empty()).then(|| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_identity_is_the_uri_of_the_nearest_proxys_element() {
        let uri = |xfcc: &str| caller_uri(xfcc);
        assert_eq!(uri("By=spiffe://a;Hash=1;URI=spiffe://b"), Some("spiffe://b".into()));
        assert_eq!(uri("URI=spiffe://old,By=spiffe://a;URI=spiffe://new"), Some("spiffe://new".into()));
        assert_eq!(uri(r#"By=a;Subject="CN=x,O=\"y\";URI=spiffe://forged";URI=spiffe://b"#), Some("spiffe://b".into()));
        assert_eq!(uri("URI=spiffe://old,By=spiffe://a;Hash=1"), None);
        for bad in ["", "=", "URI", "URI=", "Subject=\"open", "a=\"b\"c"] {
            assert_eq!(uri(bad), None, "{bad}");
        }
    }
}
