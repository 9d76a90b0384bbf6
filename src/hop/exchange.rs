//! One value per request, from its head until the last byte of its answer was written to the connection.
//!
//! Trace context and carried headers are read here and nowhere else. The [`Exchange`] writes metric, span and access line when
//! it is dropped (`end`), so that requests that time out, panic or whose caller hangs up are counted and logged like any other.

mod end;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use axum::extract::MatchedPath;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as HttpBody;
use http_body_util::{Either, Full};
use tokio::time::Instant;
use tonic::Code;

use crate::hop::error::{Error, ShedReason, grpc_answer};
use crate::hop::fault::Struck;
use crate::hop::head::RequestHead;
use crate::hop::limits::RequestLimits;
use crate::hop::observed_body::{self, HopBody};
use crate::hop::state::Node;
use crate::hop::target;
use crate::hop::watch::AnswerCopy;
use crate::net::addresses::canonical;
use crate::server::{ClientCertificate, ConnectionInfo, Cut, answer};
use crate::system::held::Held;
use crate::telemetry::draws::{DrawPlace, Draws};
use crate::telemetry::metrics::{known_method, protocol_name, scheme};
use crate::trace_context::{Carried, Context, X_REQUEST_ID, traceresponse};
use crate::upstream::ForwardedBody;

/// The header of every answer that has the hop's version label.
pub(crate) static VERSION: HeaderName = HeaderName::from_static("version");
static TRACERESPONSE: HeaderName = HeaderName::from_static("traceresponse");

/// nginx's code for a request that was not answered to the end.
const CUT_OFF: u16 = 499;

/// One request, from its head until the last byte of its answer was written to the connection.
pub(crate) struct Exchange {
    pub(crate) node: Arc<Node>,
    connection: ConnectionInfo,
    begun: Instant,
    pub(crate) started_at: SystemTime,
    /// Unset until the router was called; `None` when no route matched.
    route: OnceLock<Option<MatchedPath>>,
    /// The template that the endpoint found to be the right one.
    corrected_route: OnceLock<&'static str>,
    method: Method,
    version: Version,
    path: Option<PathAndQuery>,
    /// As reported: `X-Real-IP`, else the first of `X-Forwarded-For`, else of `Forwarded`, else the peer.
    pub(crate) client: IpAddr,
    /// Who names the caller, and the name: the certificate that it presented here, also one without a name, else
    /// `x-forwarded-client-cert`, as reported.
    pub(crate) identity: Option<(&'static str, Option<Arc<str>>)>,
    /// `x-envoy-attempt-count`, or 1.
    pub(crate) attempt: u32,
    /// How many hops the request has passed.
    pub(crate) hops: u32,
    /// How many calls this hop and those below it may make for the request.
    pub(crate) call_budget: u32,
    /// Of the original request, as reported, else of this one; only a valid one.
    host: Option<HeaderValue>,
    /// The scheme of the original request, as reported, else of this one.
    is_https: bool,
    /// Only kept for a span.
    user_agent: Option<HeaderValue>,
    /// Another server might read this request differently than this one did (RFC 9112: 3.2 and 6.1).
    is_ambiguous: bool,
    /// The size of the request's head, line ends included.
    head_bytes: usize,
    head_fields: usize,
    pub(crate) request_id: HeaderValue,
    /// What is shown in its place, if it is or has a secret.
    redacted_request_id: Option<Box<str>>,
    pub(crate) carried: Carried,
    pub(crate) draws: Draws,
    /// With an exporter this hop's server span, else what arrived.
    context: Option<Context>,
    /// Probes and scrapes: no span of this hop.
    untraced: AtomicBool,
    /// `Node::watch` was notified of the begin.
    watched: AtomicBool,
    /// This hop started the trace.
    pub(crate) new_trace: bool,
    /// What faults and breaks do to the request; unset without one.
    struck: OnceLock<Box<Struck>>,
    /// 0 until there is an answer.
    status: AtomicU16,
    /// As far as it was written to the connection.
    sent_bytes: AtomicU64,
    /// Set when the answer was not written to its end.
    cut: OnceLock<Cut>,
    /// The answer's bytes; unset for a small one.
    held_answer: OnceLock<Held>,
    /// 0 when no upstream answered.
    upstream_status: AtomicU16,
    /// A call of gRPC, which ends with a code.
    pub(crate) is_grpc: bool,
    grpc_code: AtomicU8,
    /// Until when the caller waits (`grpc-timeout`).
    pub(crate) deadline: Option<Instant>,
    request_bytes: AtomicU64,
    /// Set when it goes on to the next hops.
    body: OnceLock<ForwardedBody>,
    /// For the node's watcher, if it keeps this request.
    pub(crate) copy: Option<AnswerCopy>,
}

/// What a request is known by here: what arrived, else what the hop made.
struct RequestIds {
    context: Option<Context>,
    new_trace: bool,
    request_id: HeaderValue,
    draws: Draws,
}

impl RequestIds {
    fn read(node: &Node, carried: &Carried, attempt: u32) -> Self {
        let seeded = |context: Option<&Context>, request_id: Option<&HeaderValue>| {
            let trace = context.map(|context| context.trace_id.to_bytes());
            let id = trace.as_ref().map(|id| &id[..]).or(request_id.map(HeaderValue::as_bytes));
            let seeded = |(seed, id)| Draws::seeded(seed, id, &node.identity.name, attempt);
            node.seed.zip(id).map_or_else(Draws::random, seeded)
        };
        let incoming = node.propagator.extract(carried);
        let received = carried.request_id();
        let mut draws = seeded(incoming.context.as_ref(), received);
        let (context, new_trace) = match &node.tracer {
            Some(tracer) => {
                let (context, new_trace) = tracer.server_context(&incoming, draws);
                (Some(context), new_trace)
            }
            None => (incoming.context, false),
        };
        let request_id = received.cloned().unwrap_or_else(|| draws.request_id(DrawPlace::RequestId, 0));
        if !draws.is_seeded() {
            // Whoever sends the ids that the hop made meets the same.
            draws = seeded(context.as_ref(), Some(&request_id));
        }
        Self { context, new_trace, request_id, draws }
    }
}

impl Exchange {
    /// Reads the head of a request, once.
    pub(crate) fn begin<B>(node: &Arc<Node>, request: &mut Request<B>) -> Arc<Self> {
        let unknown = ConnectionInfo {
            peer: (Ipv4Addr::UNSPECIFIED, 0).into(),
            is_tls: false,
            certificate: ClientCertificate { is_missing: true, ..ClientCertificate::default() },
            connection: None,
        };
        let connection = request.extensions_mut().remove().unwrap_or(unknown);
        let mut head = RequestHead::new(node.tracer.is_some());
        let mut head_bytes = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
        for (name, value) in request.headers() {
            head_bytes += name.as_str().len() + value.len() + 4;
            let is_carried = node.propagator.carry(&mut head.carried, name, value);
            // With `--forward-header` a name that the hop reads itself can be carried, too.
            if !is_carried || name.as_str() == "x-real-ip" {
                head.read(name, value);
            }
        }
        let is_target_valid = target::is_valid(request.uri(), request.version(), head.host.as_ref(), head.hosts);
        let host = head.original_host(request.uri(), is_target_valid);
        let path = request.uri().path_and_query().cloned();
        let attempt = head.attempt.unwrap_or(1);
        let RequestIds { context, new_trace, request_id, draws } = RequestIds::read(node, &head.carried, attempt);
        let is_grpc = head.is_grpc && request.version() == Version::HTTP_2;
        let (client, is_https) = (head.client().unwrap_or(connection.peer.ip()), head.is_https().unwrap_or(connection.is_tls));
        let certificate = &connection.certificate;
        let identity = match head.identity {
            _ if certificate.is_presented => Some(("tls", certificate.identity.clone())),
            reported => reported.map(|name| ("xfcc", Some(name.into()))),
        };
        node.metrics.active_requests(known_method(request.method()), scheme(is_https)).inc();
        let hops = head.hops.unwrap_or(0);
        Arc::new(Self {
            begun: Instant::now(),
            started_at: SystemTime::now(),
            route: OnceLock::new(),
            corrected_route: OnceLock::new(),
            method: request.method().clone(),
            version: request.version(),
            path,
            client: canonical(client),
            is_https,
            connection,
            identity,
            attempt,
            hops,
            call_budget: head.call_budget.map_or(node.max_calls, |budget| budget.min(node.max_calls)),
            is_ambiguous: head.odd_encoding || !is_target_valid,
            host,
            user_agent: head.user_agent,
            head_bytes,
            head_fields: request.headers().len(),
            request_id,
            redacted_request_id: head.carried.redacted_request_id(),
            carried: head.carried,
            draws,
            context,
            untraced: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            new_trace,
            struck: OnceLock::new(),
            status: AtomicU16::new(0),
            sent_bytes: AtomicU64::new(0),
            cut: OnceLock::new(),
            held_answer: OnceLock::new(),
            upstream_status: AtomicU16::new(0),
            is_grpc,
            grpc_code: AtomicU8::new(0),
            deadline: head.grpc_timeout.filter(|_| is_grpc).map(|timeout| Instant::now() + timeout),
            request_bytes: AtomicU64::new(0),
            body: OnceLock::new(),
            copy: node.watch.get().filter(|watch| watch.keeps(hops)).map(|_| AnswerCopy::default()),
            node: node.clone(),
        })
    }

    /// The path without the query.
    pub(crate) fn path(&self) -> &str {
        self.path.as_ref().map_or("", PathAndQuery::path)
    }

    /// # Errors
    ///
    /// The head is too large, or another server could read it differently.
    pub(crate) fn check_head(&self, limits: &RequestLimits) -> Result<(), Error> {
        if self.head_bytes > limits.head_bytes || self.head_fields > limits.head_fields {
            return Err(Error::HeadTooLarge);
        }
        if self.is_ambiguous { Err(Error::BadRequest) } else { Ok(()) }
    }

    /// # Errors
    ///
    /// Client certificates are required (`--tls-client-ca`) and the peer presented none.
    pub(crate) fn require_certificate(&self) -> Result<(), Error> {
        if self.connection.certificate.is_missing { Err(Error::CertificateRequired) } else { Ok(()) }
    }

    /// Records the route that the router matched; `None` when it matched none.
    pub(crate) fn set_route(&self, route: Option<MatchedPath>) {
        let _ = self.route.set(route);
    }

    /// Replaces the template of the matched route: a path parameter matches any text, and not every text is one that the
    /// endpoint is for. Empty when it is no route at all.
    pub(crate) fn correct_route(&self, template: &'static str) {
        let _ = self.corrected_route.set(template);
    }

    /// The router was called.
    pub(crate) fn is_routed(&self) -> bool {
        self.route.get().is_some()
    }

    /// The template of the route; empty when none matched.
    fn template(&self) -> &str {
        let matched = || self.route.get()?.as_ref().map(MatchedPath::as_str);
        self.corrected_route.get().copied().or_else(matched).unwrap_or_default()
    }

    /// This request gets no span.
    pub(crate) fn disable_tracing(&self) {
        self.untraced.store(self.node.tracer.is_some(), Ordering::Relaxed);
    }

    /// With an exporter this hop's server span, else what arrived.
    pub(crate) fn context(&self) -> Option<&Context> {
        self.context.as_ref().filter(|_| !self.untraced.load(Ordering::Relaxed))
    }

    /// Notifies the node's watcher, now and when the exchange ends.
    pub(crate) fn watch(&self) {
        if let Some(watch) = self.node.watch.get() {
            self.watched.store(true, Ordering::Relaxed);
            watch.began();
        }
    }

    /// The request id as it is shown.
    pub(crate) fn shown_request_id(&self) -> &str {
        self.redacted_request_id.as_deref().unwrap_or_else(|| self.request_id.to_str().unwrap_or_default())
    }

    /// The time since the head was read.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Records what faults and breaks do to this request.
    pub(crate) fn set_struck(&self, struck: Box<Struck>) -> &Struck {
        self.struck.get_or_init(|| struck)
    }

    /// What faults and breaks do to this request.
    pub(crate) fn struck(&self) -> Option<&Struck> {
        self.struck.get().map(|struck| &**struck)
    }

    /// A fault ends the answer.
    pub(crate) fn cut_by_fault(&self) {
        let _ = self.cut.set(Cut::Fault);
    }

    /// The connection is reset when it is closed.
    pub(crate) fn reset_on_close(&self) {
        if let Some(connection) = &self.connection.connection {
            connection.reset_on_close();
        }
    }

    /// The connection is reset when the next request begins to arrive.
    pub(crate) fn close_at_next_request(&self) {
        if let Some(connection) = &self.connection.connection {
            connection.close_at_next_request();
        }
    }

    /// Set when the caller closed its side of the connection.
    pub(crate) fn caller_left(&self) -> Option<&AtomicBool> {
        self.connection.connection.as_ref().map(|connection| &connection.is_half_closed)
    }

    /// Counts that the request is shed.
    pub(crate) fn shed(&self, reason: ShedReason) -> Error {
        self.node.metrics.request_shed(reason.as_str());
        Error::Shed(reason)
    }

    /// The answer's bytes count until the exchange ends.
    pub(crate) fn hold_answer(&self, held: Held) {
        let _ = self.held_answer.set(held);
    }

    pub(crate) fn method(&self) -> &Method {
        &self.method
    }

    /// The protocol as the reply shows it.
    pub(crate) fn protocol(&self) -> &'static str {
        if self.is_grpc { "grpc" } else { protocol_name(self.version) }
    }

    /// Records the request's body after it was read.
    pub(crate) fn set_body(&self, bytes: u64, kept: Option<ForwardedBody>) {
        self.request_bytes.store(bytes, Ordering::Relaxed);
        if let Some(kept) = kept {
            let _ = self.body.set(kept);
        }
    }

    pub(crate) fn request_bytes(&self) -> u64 {
        self.request_bytes.load(Ordering::Relaxed)
    }

    /// The request's body, if it goes on to the next hops.
    pub(crate) fn body(&self) -> Option<&ForwardedBody> {
        self.body.get()
    }

    /// How the call ends.
    pub(crate) fn set_grpc_code(&self, code: Code) {
        self.grpc_code.store(code as u8, Ordering::Relaxed);
    }

    /// For the access line: how the next hops answered.
    pub(crate) fn set_upstream_status(&self, status: u16) {
        self.upstream_status.store(status, Ordering::Relaxed);
    }

    /// Adds the headers that every answer carries, and the body that ends the exchange when it was written.
    pub(crate) fn answer<B>(self: Arc<Self>, mut response: Response<HopBody<B>>) -> Response<ExchangeBody<B>>
    where
        HopBody<B>: HttpBody<Data = Bytes>,
    {
        if self.is_grpc {
            let (answer, code) = grpc_answer(response);
            self.set_grpc_code(code);
            response = answer;
        }
        self.status.store(response.status().as_u16(), Ordering::Relaxed);
        // The router has done the same for what it answers.
        if self.method == Method::HEAD && !response.body().is_end_stream() {
            if let Some(length) = response.body().size_hint().exact() {
                response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
            }
            *response.body_mut() = Either::Left(Full::default());
        }
        let is_last = self.node.phase.is_draining() && response.status() != StatusCode::SWITCHING_PROTOCOLS;
        self.write_headers(response.headers_mut(), is_last);
        let copy = self.copy.clone();
        response.map(|body| ExchangeBody::new(body, self, copy))
    }

    fn write_headers(&self, headers: &mut HeaderMap, is_last: bool) {
        headers.insert(X_REQUEST_ID.clone(), self.request_id.clone());
        headers.insert(VERSION.clone(), self.node.version_header.clone());
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(context) = self.context() {
            headers.insert(TRACERESPONSE.clone(), traceresponse(context));
        }
        if is_last {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

/// The body of an answer, with the exchange that ends when it was written.
pub(crate) type ExchangeBody<B> = observed_body::ObservedBody<B, Arc<Exchange>>;

impl answer::Account for Arc<Exchange> {
    fn sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn cut(&self, why: Option<Cut>) {
        let _ = self.cut.set(why.unwrap_or_else(|| self.connection.cut()));
    }
}
