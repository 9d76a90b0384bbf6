//! Calls to zero or more next hops, and their outcomes. What the hop answers because of them is decided in `hop::chain`.
//!
//! Imports `telemetry`, `trace_context` and the leaves; neither `hop` nor `server`. In reading order: `target` (a next hop as
//! it is configured); `fan_out` (several of them); this file (one call: headers, deadline, span, metric); `client` (the connections to one next hop), with
//! `multiplexed` (those of HTTP/2), `resolver` and `answer_tracker`; `grpc` (what a call of gRPC has of its own); `outcome`; `foreign_response` (the answer of a proxy in place of the next hop).

mod answer_tracker;
pub(crate) mod client;
mod fan_out;
pub(crate) mod foreign_response;
pub(crate) mod grpc;
mod multiplexed;
pub(crate) mod outcome;
pub(crate) mod resolver;
pub(crate) mod target;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, StatusCode, Uri, Version};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use rustls::ClientConfig;
use tonic::Code;

use crate::net::body::ReceivedBody;
use crate::rpc::{self, CALL, CONTENT_TYPE};
use crate::system::held::{Held, HeldBudgets, HeldKind};
use crate::telemetry::draws::{DrawPlace, Draws};
use crate::telemetry::ids;
use crate::telemetry::metrics::{CallLabels, Metrics, protocol_name, protocol_version};
use crate::telemetry::span_queue::{FinishedSpan, SpanKind};
use crate::telemetry::tracer::Tracer;
use crate::text::number::header_value;
use crate::trace_context::{
    BreakInput, BreakKind, Carried, Context, HeaderPairs, Propagator, X_CALL_BUDGET, X_HOP_COUNT, break_headers,
};
use crate::upstream::client::{ConnectionLimits, Pool, Sent, connector};
use crate::upstream::fan_out::divided;
use crate::upstream::outcome::{Answer, CallError, CallOutcome};
use crate::upstream::resolver::RotatingResolver;
use crate::values::SizeRange;

pub use crate::net::hosts::UrlError;
pub use crate::upstream::fan_out::FanOut;
pub use crate::upstream::target::{Target, TargetError};

/// The largest answer of a next hop, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// The largest body that `--request-size` makes: as large as a hop's own limit for one.
pub const MAX_REQUEST: usize = 64 << 10;

/// What a call uses of the request that it is made for, and of the hop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallContext<'a> {
    /// `None`: no exporter, trace headers pass through untouched.
    pub(crate) tracer: Option<&'a Tracer>,
    pub(crate) metrics: &'a Metrics,
    /// What answers may take while they are read and used.
    pub(crate) held: &'a Arc<HeldBudgets>,
    pub(crate) propagator: &'a Propagator,
    /// The carried headers as they arrived.
    pub(crate) carried: &'a Carried,
    pub(crate) request_id: &'a HeaderValue,
    pub(crate) shown_request_id: &'a str,
    /// With an exporter the hop's server span.
    pub(crate) span_context: Option<&'a Context>,
    /// The hop started the trace.
    pub(crate) new_trace: bool,
    /// The name of this hop.
    pub(crate) hop: &'a str,
    /// How many calls this hop and those below it may make for the request.
    pub(crate) call_budget: u32,
    /// How many hops the request has passed, without this one.
    pub(crate) hop_count: u32,
    /// The N of the request's `/service<N>`.
    pub(crate) service_number: u16,
    /// Until when the request's caller waits.
    pub(crate) deadline: Option<tokio::time::Instant>,
    /// The request's method.
    pub(crate) method: &'static str,
    /// The request's body, if it goes on.
    pub(crate) body: Option<&'a ForwardedBody>,
    /// Ways in which the trace is broken on purpose, and the context of another request for that.
    pub(crate) breaks: Option<(&'a [BreakKind], Option<Context>)>,
    pub(crate) draws: Draws,
    /// Set when the caller closed its side of the connection.
    pub(crate) caller_left: Option<&'a AtomicBool>,
}

/// The body of a request, which goes on to the next hops.
#[derive(Debug)]
pub(crate) struct ForwardedBody {
    pub(crate) bytes: Bytes,
    pub(crate) content_type: Option<HeaderValue>,
    /// The bytes count until they are dropped.
    pub(crate) _held: Arc<Held>,
}

/// How next hops are called.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UpstreamOptions {
    pub(crate) fan_out: FanOut,
    /// For a call, whole answer included.
    pub(crate) timeout: Duration,
    /// The body of a call that has none to pass on.
    pub(crate) request_size: Option<SizeRange<MAX_REQUEST>>,
    /// How often a failed call is repeated.
    pub(crate) retries: u32,
}

/// What a call sends beside its headers.
struct Content {
    method: &'static str,
    body: Bytes,
    content_type: Option<HeaderValue>,
}

/// The next hops of a hop and how they are called.
#[derive(Debug)]
pub(crate) struct Upstreams {
    /// Each next hop with the connections to it.
    targets: Vec<(Target, Pool)>,
    options: UpstreamOptions,
    user_agent: HeaderValue,
    /// Every target is called once, all at once or one after the other.
    is_plain: bool,
}

impl Upstreams {
    /// `version` is the hop's version label, as it goes into `user-agent`;
    /// `tls` has the roots that calls to `https://` trust.
    pub(crate) fn new(targets: Vec<Target>, options: UpstreamOptions, version: &str, tls: ClientConfig) -> Self {
        let is_plain = options.retries == 0
            && !matches!(options.fan_out, FanOut::AtMost(_))
            && targets.iter().all(|target| target.share >= 1.0);
        let targets = targets.into_iter().map(|target| {
            let connector = connector(RotatingResolver::system(), options.timeout, tls.clone(), target.protocol);
            let pool = Pool::new(connector, target.uri.clone(), ConnectionLimits::default(), target.protocol);
            (target, pool)
        });
        let targets = targets.collect();
        let user_agent = HeaderValue::from_str(&format!("httpserver/{version}"));
        let user_agent = user_agent.unwrap_or_else(|_| HeaderValue::from_static("httpserver"));
        Self { targets, options, user_agent, is_plain }
    }

    /// Whether a next hop is called for every request.
    pub(crate) fn always_calls(&self) -> bool {
        self.targets.iter().any(|(target, _)| target.share >= 1.0)
    }

    /// Calls every next hop. The outcomes are in the configured order.
    pub(crate) async fn call_all(&self, context: &CallContext<'_>) -> Vec<CallOutcome<'_>> {
        if !self.is_plain {
            return Box::pin(self.call_some(context)).await;
        }
        let calls = self.targets.iter().zip(divided(context.call_budget, self.targets.len()));
        if self.options.fan_out == FanOut::Parallel && self.targets.len() > 1 {
            let calls = calls.enumerate().map(|(at, ((target, pool), budget))| self.call(context, target, pool, budget, (at, 1)));
            return futures_util::future::join_all(calls).await;
        }
        let mut outcomes = Vec::with_capacity(self.targets.len());
        for (at, ((target, pool), budget)) in calls.enumerate() {
            // A future that is bound to a name before it is awaited is stored twice.
            outcomes.push(self.call(context, target, pool, budget, (at, 1)).await);
        }
        outcomes
    }

    /// Calls the next hops that the draws choose, so many at once, and repeats what fails.
    async fn call_some(&self, context: &CallContext<'_>) -> Vec<CallOutcome<'_>> {
        let is_drawn = |at: usize, share: f64| share >= 1.0 || context.draws.unit(DrawPlace::Upstream, at) < share;
        let chosen = self.targets.iter().enumerate().filter(|(at, (target, _))| is_drawn(*at, target.share));
        let chosen: Vec<_> = chosen.collect();
        let at_once = match self.options.fan_out {
            FanOut::Parallel => chosen.len(),
            FanOut::AtMost(number) => number,
            FanOut::Sequential => 1,
        };
        let mut calls = Vec::with_capacity(chosen.len());
        for ((at, (target, pool)), budget) in chosen.iter().copied().zip(divided(context.call_budget, chosen.len())) {
            calls.push(self.attempts(context, target, pool, budget, at));
        }
        let attempts: Vec<Vec<_>> = stream::iter(calls).buffered(at_once.max(1)).collect().await;
        attempts.into_iter().flatten().collect()
    }

    /// The attempts of one call, which divide its budget.
    async fn attempts<'a>(
        &'a self,
        context: &CallContext<'_>,
        target: &'a Target,
        pool: &Pool,
        budget: Option<u32>,
        at: usize,
    ) -> Vec<CallOutcome<'a>> {
        let most = self.options.retries as usize + 1;
        let mut shares = divided(budget.map_or(0, |budget| budget.saturating_add(1)), most).take(most);
        let mut outcomes: Vec<CallOutcome<'a>> = Vec::with_capacity(1);
        let mut share = shares.next().flatten();
        let has_caller_left = || context.caller_left.is_some_and(|left| left.load(Ordering::Relaxed));
        loop {
            let attempt = outcomes.len() as u32 + 1;
            outcomes.push(self.call(context, target, pool, share, (at, attempt)).await);
            share = shares.next().flatten();
            match outcomes.last_mut() {
                Some(last) if share.is_some() && last.may_be_repeated() && !has_caller_left() => last.repeated = true,
                _ => return outcomes,
            }
        }
    }

    /// `budget` is for the calls that the next hop makes; without one the next hop is not called. `at`: the index of the next hop.
    async fn call<'a>(
        &'a self,
        context: &CallContext<'_>,
        target: &'a Target,
        pool: &Pool,
        budget: Option<u32>,
        (at, attempt): (usize, u32),
    ) -> CallOutcome<'a> {
        let Some(budget) = budget else {
            let (_, url) = target.path(context.service_number);
            return CallOutcome::not_called(url, Some(CallError::NoBudget(context.hop.to_owned())));
        };
        let mut span_context = context.tracer.and(context.span_context).map(|server| server.child(ids::span_id()));
        let mut sent = context.propagator.outgoing(context.carried, context.request_id, span_context.as_ref(), context.new_trace);
        let broke = match context.breaks {
            Some((kinds, other)) => broken(context, kinds, other, (at, attempt), &mut sent, &mut span_context),
            None => Vec::new(),
        };
        let (path, url) = target.path(context.service_number);
        let mut content = self.content(context, at);
        if target.is_grpc() {
            let body = grpc::request(target.service(context.service_number), std::mem::take(&mut content.body));
            content = Content { method: "POST", body, content_type: Some(HeaderValue::from_static(CONTENT_TYPE)) };
        }
        let left = context.deadline.map(|deadline| deadline.saturating_duration_since(tokio::time::Instant::now()));
        let timeout = left.map_or(self.options.timeout, |left| left.min(self.options.timeout));
        let mut span = ClientSpanGuard {
            context,
            span_context,
            target,
            method: if target.is_grpc() { &CALL[1..] } else { content.method },
            path: path.clone(),
            start: Instant::now(),
            started_at: SystemTime::now(),
            progress: Progress { sent: Sent::new(attempt, timeout), ..Progress::default() },
            error: Some("cancelled"),
            rpc_code: target.is_grpc().then_some(Code::Cancelled),
            duration: None,
        };
        let start = span.start;
        let request = || {
            let mut request = self.request(target, path.clone(), &content, &sent, [context.hop_count.saturating_add(1), budget]);
            if attempt > 1 {
                request.headers_mut().insert("x-envoy-attempt-count", header_value(attempt));
            }
            if target.is_grpc() {
                grpc::add_headers(request.headers_mut(), timeout.saturating_sub(start.elapsed()));
            }
            request
        };
        let held = context.held.empty(HeldKind::UpstreamAnswer);
        let answered =
            tokio::time::timeout(timeout, send_and_read(pool, target.is_grpc(), request, &mut span.progress, held)).await;
        let (answer, failure) = match answered {
            Ok(Ok(answer)) => {
                let failure = CallError::of(&answer);
                (Some(answer), failure)
            }
            Ok(Err(failure)) => (None, Some(failure)),
            Err(_) => (None, Some(CallError::Timeout(timeout))),
        };
        span.error = failure.as_ref().and_then(CallError::kind);
        span.rpc_code = target.is_grpc().then(|| failure.as_ref().map_or(Code::Ok, grpc::code_of));
        let duration = *span.duration.insert(span.start.elapsed());
        let protocol = span.progress.version.map(|version| if target.is_grpc() { "grpc" } else { protocol_name(version) });
        CallOutcome { url, status: span.progress.status, protocol, duration, failure, sent, broke, repeated: false, answer }
    }

    /// The body of the request and its method, if it goes on; else a body of `--request-size`; else a GET without one.
    fn content(&self, context: &CallContext<'_>, at: usize) -> Content {
        static PADDING: [u8; MAX_REQUEST] = [b'x'; MAX_REQUEST];
        let size =
            || Some(self.options.request_size?.at(context.draws.unit(DrawPlace::RequestSize, at))).filter(|size| *size > 0);
        if let Some(ForwardedBody { bytes, content_type, .. }) = context.body.filter(|body| !body.bytes.is_empty()) {
            let method = if matches!(context.method, "GET" | "HEAD") { "POST" } else { context.method };
            Content { method, body: bytes.clone(), content_type: content_type.clone() }
        } else if let Some(size) = size() {
            let content_type = Some(HeaderValue::from_static("application/octet-stream"));
            Content { method: "POST", body: Bytes::from_static(&PADDING[..size]), content_type }
        } else {
            Content { method: "GET", body: Bytes::new(), content_type: None }
        }
    }

    fn request(
        &self,
        target: &Target,
        path: PathAndQuery,
        content: &Content,
        sent: &HeaderPairs,
        [hop_count, call_budget]: [u32; 2],
    ) -> Request<Bytes> {
        let mut request = Request::new(content.body.clone());
        if content.method != "GET" {
            *request.method_mut() = Method::from_bytes(content.method.as_bytes()).unwrap_or_default();
        }
        *request.uri_mut() = Uri::from(path);
        let headers = request.headers_mut();
        headers.reserve(sent.len() + 5);
        headers.insert(header::HOST, target.authority.clone());
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(header::USER_AGENT, self.user_agent.clone());
        headers.insert(X_HOP_COUNT.clone(), header_value(hop_count));
        headers.insert(X_CALL_BUDGET.clone(), header_value(call_budget));
        if let Some(content_type) = &content.content_type {
            headers.insert(header::CONTENT_TYPE, content_type.clone());
        }
        for (name, value) in sent {
            headers.append(name.clone(), value.clone());
        }
        request
    }
}

/// Breaks the headers of a call; the call's own span goes with them into another trace.
fn broken(
    context: &CallContext<'_>,
    kinds: &[BreakKind],
    other: Option<Context>,
    (at, attempt): (usize, u32),
    sent: &mut HeaderPairs,
    span_context: &mut Option<Context>,
) -> Vec<BreakKind> {
    let (draws, has_span, index) = (context.draws, span_context.is_some(), at << 8 | attempt as usize);
    let input = BreakInput {
        received: context.carried,
        has_span,
        other,
        trace_id: draws.trace_id(DrawPlace::Broken, index),
        // Two spans of a trace that was sent twice are two.
        span_id: if has_span { ids::span_id() } else { draws.span_id(DrawPlace::Broken, index) },
        request_id: draws.request_id(DrawPlace::RequestId, index),
    };
    let broken = break_headers(kinds, sent, &input);
    if let Some((own, other)) = span_context.as_mut().zip(broken.span) {
        *own = other;
    }
    broken.kinds
}

/// What is known of a call before it ends, and so also of one that times out.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    status: Option<StatusCode>,
    version: Option<Version>,
    sent: Sent,
}

/// Sends a request and reads its whole answer.
async fn send_and_read(
    pool: &Pool,
    is_grpc: bool,
    request: impl Fn() -> Request<Bytes>,
    progress: &mut Progress,
    mut held: Held,
) -> Result<Answer, CallError> {
    let (answer, connection) = pool.send(request, &mut progress.sent).await?;
    // The status of a gRPC call comes last.
    progress.status = Some(answer.status()).filter(|status| !is_grpc || *status != StatusCode::OK);
    progress.version = Some(answer.version());
    let (head, body) = answer.into_parts();
    let (body, trailers) = read_whole(body, &mut held, if is_grpc { MAX_ANSWER + grpc::PREFIX } else { MAX_ANSWER }).await?;
    connection.release();
    let mut answer = Answer { status: head.status, headers: head.headers, body, rpc: None, held };
    if is_grpc && answer.status == StatusCode::OK {
        grpc::read(&mut answer, trailers)?;
        progress.status = Some(answer.status);
    }
    Ok(answer)
}

/// Joins the frames as they come: a frame of one byte takes the memory of fifty until they are joined.
async fn read_whole(mut body: ReceivedBody, held: &mut Held, most: usize) -> Result<(Bytes, Option<HeaderMap>), CallError> {
    let (mut first, mut joined, mut trailers) = (Bytes::new(), Vec::new(), None);
    // The length that the head names.
    if body.size_hint().lower() > most as u64 {
        return Err(CallError::TooLarge);
    }
    while let Some(frame) = body.frame().await {
        let data = match frame.map_err(CallError::Broken)?.into_data() {
            Ok(data) => data,
            Err(frame) => {
                trailers = frame.into_trailers().ok();
                continue;
            }
        };
        if held.bytes() + data.len() > most {
            return Err(CallError::TooLarge);
        }
        held.add(data.len()).map_err(CallError::Exhausted)?;
        if first.is_empty() {
            // Most answers are one frame.
            first = data;
        } else {
            if joined.is_empty() {
                joined.extend_from_slice(&first);
            }
            if joined.capacity() - joined.len() < data.len() {
                // Doubled as a vector doubles, but never above the limit.
                joined.reserve_exact((joined.len() * 2).clamp(joined.len() + data.len(), most) - joined.len());
            }
            joined.extend_from_slice(&data);
        }
    }
    Ok((if joined.is_empty() { first } else { joined.into() }, trailers))
}

/// Records the span and the metric of a call when it ends, also when the call is cancelled.
struct ClientSpanGuard<'a> {
    context: &'a CallContext<'a>,
    span_context: Option<Context>,
    target: &'a Target,
    method: &'static str,
    path: PathAndQuery,
    start: Instant,
    started_at: SystemTime,
    progress: Progress,
    error: Option<&'static str>,
    /// Of a call of gRPC.
    rpc_code: Option<Code>,
    /// `None` until the call has ended.
    duration: Option<Duration>,
}

impl Drop for ClientSpanGuard<'_> {
    fn drop(&mut self) {
        let duration = self.duration.unwrap_or_else(|| self.start.elapsed());
        let sampled = self.span_context.as_ref().filter(|context| context.sampling.is_sampled());
        let status = self.progress.status.as_ref().map_or("", StatusCode::as_str);
        let labels = CallLabels {
            host: &self.target.host,
            port: &self.target.port_text,
            status,
            method: self.method,
            protocol: self.progress.version.map_or("", protocol_version),
            error: self.error.unwrap_or(if self.progress.status.is_some_and(|status| status.as_u16() >= 400) {
                status
            } else {
                ""
            }),
        };
        if let Some(code) = self.rpc_code {
            let labels = CallLabels { status: rpc::status::name(code), error: self.error.unwrap_or_default(), ..labels };
            self.context.metrics.rpc_call(&labels, duration, sampled);
        } else {
            self.context.metrics.call(&labels, duration, sampled);
        }
        if let Some((tracer, context)) = self.context.tracer.zip(sampled) {
            tracer.record(&FinishedSpan {
                kind: SpanKind::Client,
                context,
                start: self.started_at,
                duration,
                method: self.method,
                rpc_code: self.rpc_code,
                original_method: "",
                scheme: "",
                base_url: &self.target.base_url,
                route: "",
                status: self.progress.status.map_or(0, |status| status.as_u16()),
                error: self.error,
                path: self.path.path(),
                query: self.path.query(),
                client: None,
                server: Some((&self.target.host, self.target.port)),
                peer: self.progress.sent.peer,
                protocol: self.progress.version.map_or("", protocol_version),
                user_agent: "",
                resend_count: self.progress.sent.resend_count,
                trace_state: self.context.propagator.trace_state(self.context.carried, context),
                request_id: self.context.shown_request_id,
            });
        }
    }
}
