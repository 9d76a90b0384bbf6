//! None, one or many next hops: the calls, what became of them, and the reply that they make together.

pub(crate) mod client;
pub(crate) mod foreign_response;

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::response::Parts;
use http::uri::PathAndQuery;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::ClientConfig;

use crate::hop::exchange::Exchange;
use crate::hop::reply::{ReplyCall, is_reply};
use crate::net::hosts::{parse_url, redacted_url};
use crate::telemetry::ids;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::tracer::{FinishedSpan, SpanKind, Tracer};
use crate::text::causes;
use crate::trace_context::{Context, HeaderPairs, RedactedHeaders, X_HOP_COUNT};
use crate::upstream::client::{Failure, Pool};
use crate::upstream::foreign_response::Stranger;

/// The largest answer of a next hop.
const MAX_ANSWER: usize = 1 << 20;

/// How long a connection to a next hop is kept that nobody uses. Servers and proxies keep theirs for longer.
const KEEP_IDLE: Duration = Duration::from_secs(60);

/// A next hop.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    uri: Uri,
    /// As it is shown: without query.
    url: String,
    has_path: bool,
    host: String,
    port: u16,
    /// What the `host` header says.
    authority: HeaderValue,
}

impl Target {
    /// Where a request for `/service<n>` goes on to: path and query, and the whole URL if it is not the target's own. A URL
    /// without a path gets the path `/service<n+1>`.
    pub(crate) fn path(&self, n: u16) -> (PathAndQuery, Option<String>) {
        let own = || self.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        if self.has_path {
            return (own(), None);
        }
        let path = format!("/service{}", n + 1);
        let url = format!("{}{path}", self.url);
        PathAndQuery::try_from(path).map_or_else(|_| (own(), None), |path| (path, Some(url)))
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "a next hop is written http://service2/service2 or https://host:port/path";
        let uri = parse_url(text).map_err(|error| format!("{error}; {FORM}"))?;
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(format!("a user name in the URL is not supported; {FORM}"));
        }
        let url = text.trim();
        let has_path = uri.path() != "/" || uri.query().is_some() || url.ends_with('/');
        let host = uri.host().unwrap_or_default().to_owned();
        let usual = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let port = uri.port_u16().unwrap_or(usual);
        let authority = if port == usual { host.clone() } else { format!("{host}:{port}") };
        let authority = HeaderValue::from_str(&authority).map_err(|_| FORM.to_owned())?;
        Ok(Self { url: redacted_url(url), uri, has_path, host, port, authority })
    }
}

/// `--fan-out`: how several next hops are called.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum FanOut {
    /// All at once.
    #[default]
    Parallel,
    /// One after the other, in the configured order.
    Sequential,
}

/// The next hops of a node and how they are called.
#[derive(Debug)]
pub(crate) struct Upstreams {
    /// Each next hop with the connections to it.
    targets: Vec<(Target, Pool)>,
    fan_out: FanOut,
    timeout: Duration,
    user_agent: HeaderValue,
}

/// What became of one call.
pub(crate) struct Called {
    target: usize,
    /// Where the call went, if the target does not say it all.
    url: Option<String>,
    status: Option<StatusCode>,
    duration: Duration,
    failure: Option<CallError>,
    sent: HeaderPairs,
    reply: Option<Bytes>,
}

/// Why a call failed.
#[derive(Debug)]
enum CallError {
    /// The whole answer was not there in time.
    Timeout(Duration),
    /// The next hop cannot be reached.
    Connect(String),
    /// The connection broke, or what came was not HTTP.
    Broken(String),
    /// Redirects are not followed: a hop calls what it was told to call.
    Redirect(StatusCode, String),
    /// Any other status outside 2xx, and what was said with it by somebody who is no hop.
    Status(StatusCode, Option<Stranger>),
    /// More than [`MAX_ANSWER`].
    TooLarge,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout(limit) => write!(f, "no whole answer within {limit:?}"),
            Self::Connect(reason) => write!(f, "cannot connect: {reason}"),
            Self::Broken(reason) => write!(f, "broken answer: {reason}"),
            Self::Redirect(status, to) => write!(f, "redirect {} to {to} is not followed", status.as_u16()),
            Self::Status(status, None) => write!(f, "answered {status}"),
            Self::Status(status, Some(stranger)) => write!(f, "answered {status}{stranger}"),
            Self::TooLarge => f.write_str("too large"),
        }
    }
}

impl CallError {
    /// `error.type`, where the status does not say it.
    fn kind(&self) -> Option<&'static str> {
        match self {
            Self::Timeout(_) => Some("timeout"),
            Self::Connect(_) => Some("connect"),
            Self::Broken(_) => Some("broken_answer"),
            Self::TooLarge => Some("too_large"),
            Self::Redirect(..) => Some("redirect"),
            Self::Status(..) => None,
        }
    }
}

impl Upstreams {
    /// `version` is the hop's version label, as it goes into `user-agent`; `tls` says whom calls to `https://` trust.
    pub(crate) fn new(targets: Vec<Target>, fan_out: FanOut, timeout: Duration, version: &str, tls: ClientConfig) -> Self {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(timeout));
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(http);
        let targets = targets.into_iter().map(|target| {
            let pool = Pool::new(connector.clone(), target.uri.clone(), KEEP_IDLE);
            (target, pool)
        });
        let targets = targets.collect();
        let user_agent = HeaderValue::from_str(&format!("httpserver/{version}"));
        let user_agent = user_agent.unwrap_or_else(|_| HeaderValue::from_static("httpserver"));
        Self { targets, fan_out, timeout, user_agent }
    }

    /// Calls every next hop; what became of them is in the configured order.
    pub(crate) async fn call_all(&self, exchange: &Exchange) -> Vec<Called> {
        match (self.targets.len(), self.fan_out) {
            (0, _) => Vec::new(),
            (1, _) => vec![self.call(exchange, 0).await],
            (count, FanOut::Parallel) => {
                futures_util::future::join_all((0..count).map(|target| self.call(exchange, target))).await
            }
            (count, FanOut::Sequential) => {
                let mut calls = Vec::with_capacity(count);
                for target in 0..count {
                    calls.push(self.call(exchange, target).await);
                }
                calls
            }
        }
    }

    async fn call(&self, exchange: &Exchange, index: usize) -> Called {
        let (target, pool) = &self.targets[index];
        let node = &exchange.node;
        let tracer = node.tracer.as_ref();
        let context = tracer.and(exchange.context.as_ref()).map(|server| server.child(ids::span_id()));
        let sent = node.propagator.outgoing(&exchange.carried, &exchange.request_id, context.as_ref(), exchange.new_trace);
        let mut measured = Measured {
            tracer,
            metrics: &node.metrics,
            context,
            target,
            exchange,
            begun: Instant::now(),
            start: SystemTime::now(),
            status: None,
            error: Some("cancelled"),
            path: None,
        };
        let (path, url) = target.path(exchange.service_number());
        measured.path = Some(path.clone());
        let request = self.request(target, path, &sent, exchange.hops);
        let answered = tokio::time::timeout(self.timeout, exchanged(pool, request, &mut measured.status)).await;
        let (reply, failure) = match answered {
            Ok(Ok(reply)) => (reply, None),
            Ok(Err((reply, failure))) => (reply, Some(failure)),
            Err(_) => (None, Some(CallError::Timeout(self.timeout))),
        };
        measured.error = failure.as_ref().and_then(CallError::kind);
        Called { target: index, url, status: measured.status, duration: measured.begun.elapsed(), failure, sent, reply }
    }

    fn request(&self, target: &Target, path: PathAndQuery, sent: &HeaderPairs, hops: u32) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = Uri::from(path);
        let headers: &mut HeaderMap = request.headers_mut();
        headers.reserve(sent.len() + 4);
        headers.insert(header::HOST, target.authority.clone());
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(header::USER_AGENT, self.user_agent.clone());
        headers.insert(X_HOP_COUNT.clone(), HeaderValue::from(hops.saturating_add(1)));
        for (name, value) in sent {
            headers.append(name.clone(), value.clone());
        }
        request
    }

    /// The status of a hop whose calls ended so: 508 if any did; else 504 if every failed one ran out of time; else 502.
    pub(crate) fn status(calls: &[Called]) -> StatusCode {
        let failed = || calls.iter().filter_map(|call| call.failure.as_ref().map(|failure| (failure, call.status)));
        let timed_out = |(failure, status): (&CallError, Option<StatusCode>)| {
            matches!(failure, CallError::Timeout(_)) || status == Some(StatusCode::GATEWAY_TIMEOUT)
        };
        if failed().next().is_none() {
            StatusCode::OK
        } else if failed().any(|(_, status)| status == Some(StatusCode::LOOP_DETECTED)) {
            StatusCode::LOOP_DETECTED
        } else if failed().all(timed_out) {
            StatusCode::GATEWAY_TIMEOUT
        } else {
            StatusCode::BAD_GATEWAY
        }
    }

    /// How a call looks in the reply.
    pub(crate) fn shown<'a>(&'a self, call: &'a Called) -> ReplyCall<'a> {
        ReplyCall {
            url: call.url.as_deref().unwrap_or(&self.targets[call.target].0.url),
            status: call.status.map(|status| status.as_u16()),
            duration: call.duration,
            error: call.failure.as_ref().map(CallError::to_string),
            sent: RedactedHeaders::sent(&call.sent),
            // Checked to be one.
            reply: call.reply.as_deref(),
        }
    }
}

/// One request and its whole answer. `status` is told as soon as it is known, so that a call that times out later still has it.
async fn exchanged(
    pool: &Pool,
    request: Request<Empty<Bytes>>,
    status: &mut Option<StatusCode>,
) -> Result<Option<Bytes>, (Option<Bytes>, CallError)> {
    let (answer, connection) = pool.send(request).await.map_err(|failure| match failure {
        Failure::Connect(reason) => (None, CallError::Connect(reason)),
        Failure::Broken(reason) => (None, CallError::Broken(reason)),
    })?;
    *status = Some(answer.status());
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| {
        let failure = match error.is::<LengthLimitError>() {
            true => CallError::TooLarge,
            false => CallError::Broken(causes(&*error)),
        };
        (None, failure)
    })?;
    connection.done();
    let body = body.to_bytes();
    let is_reply = is_reply(&body);
    let failure = failed_status(&head, || (!is_reply).then(|| Stranger::read(&head.headers, &body)));
    let reply = is_reply.then_some(body);
    match failure {
        Some(failure) => Err((reply, failure)),
        None => Ok(reply),
    }
}

impl Called {
    /// The status for the access line, and whether the call failed.
    pub(crate) fn outcome(&self) -> (Option<u16>, bool) {
        (self.status.map(|status| status.as_u16()), self.failure.is_some())
    }
}

fn failed_status(head: &Parts, stranger: impl FnOnce() -> Option<Stranger>) -> Option<CallError> {
    match (head.status, head.headers.get(header::LOCATION)) {
        (status, _) if status.is_success() => None,
        (status, Some(to)) if status.is_redirection() => {
            Some(CallError::Redirect(status, redacted_url(&String::from_utf8_lossy(to.as_bytes()))))
        }
        (status, _) => Some(CallError::Status(status, stranger())),
    }
}

/// Tells span and metric of a call when it ends, also when nobody waits for it any more.
struct Measured<'a> {
    tracer: Option<&'a Tracer>,
    metrics: &'a Metrics,
    context: Option<Context>,
    target: &'a Target,
    exchange: &'a Exchange,
    begun: Instant,
    start: SystemTime,
    status: Option<StatusCode>,
    error: Option<&'static str>,
    path: Option<PathAndQuery>,
}

impl Drop for Measured<'_> {
    fn drop(&mut self) {
        let took = self.begun.elapsed();
        let sampled = self.context.filter(|context| context.sampling.is_sampled()).map(|context| context.trace_id);
        let status = self.status.as_ref().map_or("", StatusCode::as_str);
        self.metrics.call(&self.target.host, status).observe(took, sampled);
        if let Some((tracer, context)) = self.tracer.zip(self.context.as_ref()) {
            tracer.record(&FinishedSpan {
                kind: SpanKind::Client,
                context,
                start: self.start,
                duration: took,
                method: "GET",
                route: "",
                status: self.status.map_or(0, |status| status.as_u16()),
                error: self.error,
                path: self.path.as_ref().map_or("", PathAndQuery::path),
                client: None,
                server: Some((&self.target.host, self.target.port)),
                request_id: self.exchange.request_id.to_str().unwrap_or_default(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(status: Option<u16>, failure: Option<CallError>) -> Called {
        Called {
            target: 0,
            url: None,
            status: status.map(|status| StatusCode::from_u16(status).unwrap()),
            duration: Duration::ZERO,
            failure,
            sent: HeaderPairs::new(),
            reply: None,
        }
    }

    fn answered(status: u16) -> Called {
        let (mut head, ()) = http::Response::new(()).into_parts();
        head.status = StatusCode::from_u16(status).unwrap();
        called(Some(status), failed_status(&head, || None))
    }

    fn timed_out() -> Called {
        called(None, Some(CallError::Timeout(Duration::from_secs(1))))
    }

    #[test]
    fn the_status_names_the_worst_of_the_calls() {
        let status = |calls: &[Called]| Upstreams::status(calls).as_u16();
        assert_eq!(status(&[]), 200);
        assert_eq!(status(&[answered(200), answered(204)]), 200);
        assert_eq!(status(&[answered(200), answered(404)]), 502);
        assert_eq!(status(&[timed_out(), answered(504)]), 504);
        assert_eq!(status(&[timed_out(), answered(503)]), 502);
        assert_eq!(status(&[answered(503), timed_out()]), 502);
        assert_eq!(status(&[answered(503), timed_out(), answered(508)]), 508);
        assert_eq!(status(&[answered(301)]), 502);
    }

    #[test]
    fn a_url_without_a_path_gets_the_next_service() {
        let url = |text: &str| {
            let target = text.parse::<Target>().unwrap();
            let (path, url) = target.path(1);
            let url = url.unwrap_or(target.url);
            assert!(url.ends_with(path.path()), "{url} {path}");
            url
        };
        assert_eq!(url("http://service2"), "http://service2/service2");
        assert_eq!(url("http://service2:8080"), "http://service2:8080/service2");
        assert_eq!(url("http://service2/"), "http://service2/");
        assert_eq!(url("http://[::1]:8080"), "http://[::1]:8080/service2");
        assert_eq!(url("http://service2/service7?token=x"), "http://service2/service7");
        for bad in
            ["", "service2", "/service2", "ftp://a", "http://", "http://u:p@h/", "http://a b", "http://a:99999", "http://a:0"]
        {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }
}
