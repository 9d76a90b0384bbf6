//! The composition root: takes the configuration apart, binds, stacks the onion, runs, drains, flushes.
//!
//! This is the only place that knows both the configuration and the parts.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::net::TcpListener;

use crate::hop::config::HopConfig;
use crate::hop::error::Error;
use crate::hop::exchange::{Exchange, ObservedBody};
use crate::hop::fault::Faults;
use crate::hop::limits::{self, Permit};
use crate::hop::response;
use crate::hop::route::Route;
use crate::hop::routes;
use crate::hop::state::{Node, Watch};
use crate::server::options::ConnectionOptions;
use crate::server::shutdown::{DrainOptions, Phase, Stop};
use crate::server::tls::{ServerTls, hop_client_config};
use crate::server::{self, ConnectionInfo, ServerConfig};
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::export::{Exporter, ExporterError, Pipeline};
use crate::telemetry::line_writer::LineWriter;
use crate::telemetry::metrics::{BuildInfo, Metrics};
use crate::telemetry::span_queue::SpanQueue;
use crate::telemetry::tracer::Tracer;
use crate::trace_context::{Propagator, is_never_carried};
use crate::upstream::Upstreams;
use crate::values::Listen;

/// One hop: bound, not yet serving.
#[derive(Debug)]
pub struct App {
    listener: TcpListener,
    addr: SocketAddr,
    node: Arc<Node>,
    pipeline: Option<Pipeline>,
    connections: ConnectionOptions,
    tls: Option<ServerTls>,
    drain: DrainOptions,
}

/// Where the lines of a process go: shared by all hops in it.
#[derive(Debug, Clone)]
pub struct Output {
    /// Access lines.
    pub stdout: LineWriter,
    /// Diagnostics, and spans of the console exporter.
    pub stderr: LineWriter,
}

impl Output {
    /// The process's own stdout and stderr.
    pub fn new() -> Self {
        Self { stdout: LineWriter::stdout(), stderr: LineWriter::stderr() }
    }
}

impl Default for Output {
    fn default() -> Self {
        Self::new()
    }
}

/// Why a hop cannot be bound.
#[derive(Debug)]
pub enum BindError {
    /// Another process listens on the port.
    PortTaken(Listen),
    /// The address cannot be listened on.
    Listen(Listen, io::Error),
    /// The exporter cannot be started: an endpoint or header that cannot be used.
    Exporter(ExporterError),
    /// The version label cannot be the value of a header.
    Version(String, http::header::InvalidHeaderValue),
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PortTaken(listen) => {
                write!(f, "cannot listen on {listen}: the port is taken; another one is set by --addr (ADDR)")
            }
            Self::Listen(listen, error) => {
                write!(f, "cannot listen on {listen}: {error}; another address is set by --addr (ADDR)")
            }
            Self::Exporter(error) => error.fmt(f),
            Self::Version(version, _) => write!(f, "the version '{}' cannot be a header's value", version.escape_debug()),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Listen(_, error) => Some(error),
            Self::Version(_, error) => Some(error),
            Self::PortTaken(_) => None,
            Self::Exporter(error) => error.source(),
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ended {
    /// Requests that were still in flight when the drain timeout was over.
    pub requests_cut: usize,
    /// Spans that could not be handed over.
    pub spans_lost: usize,
}

impl App {
    /// Binds the listener and starts the exporter; nothing is served before [`App::run`].
    ///
    /// # Errors
    ///
    /// [`BindError`], whose text is one line that names the option to change.
    pub async fn bind(config: HopConfig, output: &Output) -> Result<Self, BindError> {
        let listener = listen(config.listen).await?;
        let addr = listener.local_addr().map_err(|error| BindError::Listen(config.listen, error))?;

        let identity = config.identity;
        let build = BuildInfo { service: &identity.name, service_version: &identity.version, lane: &identity.lane };
        let metrics = Arc::new(Metrics::new(&build));
        let span_queue = Arc::new(SpanQueue::new(config.span_queue));
        let tracer = (config.exporter != Exporter::None).then(|| Tracer::new(config.sampler, span_queue.clone()));
        let pipeline = Pipeline::start(
            config.exporter,
            config.resource,
            span_queue.clone(),
            config.schedule_delay,
            metrics.clone(),
            &output.stderr,
        )
        .map_err(BindError::Exporter)?;
        for name in config.forward_headers.iter().filter(|name| is_never_carried(name.as_str())) {
            tracing::warn!(header = name.as_str(), "this header belongs to one connection or proxy and is not carried");
        }
        if !config.drop_headers.is_empty() {
            let names: Vec<_> = config.drop_headers.iter().map(http::HeaderName::as_str).collect();
            tracing::warn!(headers = names.join(","), "this hop loses headers on purpose (--drop-header)");
        }
        let node = Node {
            version_header: http::HeaderValue::from_str(&identity.version)
                .map_err(|error| BindError::Version(identity.version.clone(), error))?,
            propagator: Propagator::new(config.propagators, config.forward_headers, config.drop_headers),
            tracer,
            span_queue,
            metrics,
            access_log: config.access_log.map(|format| AccessLog { lines: output.stdout.clone(), format }),
            faults: Faults::new(config.faults),
            upstreams: Upstreams::new(
                config.upstreams,
                config.fan_out,
                config.upstream_timeout,
                &identity.version,
                hop_client_config(config.upstream_roots, config.tls.clone()),
            ),
            max_hops: config.max_hops,
            max_concurrency: config.max_concurrency,
            in_flight: 0.into(),
            phase: Phase::default(),
            watch: std::sync::OnceLock::new(),
            identity,
        };
        let HopConfig { connections, tls, drain, .. } = config;
        Ok(Self { listener, addr, node: Arc::new(node), pipeline, connections, tls, drain })
    }

    /// The address that was taken.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The handle to this hop's latency and faults.
    pub fn faults(&self) -> Faults {
        self.node.faults.clone()
    }

    /// Tells `watch` of every request of the chain. The first who watches stays the only one.
    pub fn watch(&self, watch: Arc<dyn Watch>) {
        let _ = self.node.watch.set(watch);
    }

    /// Serves until `shutdown` resolves; then drains, flushes and returns.
    pub async fn run(self, shutdown: impl Future<Output = Stop>) -> Ended {
        let Self { listener, node, pipeline, connections, tls, drain, addr } = self;
        let hop = Hop { node: node.clone() };
        node.phase.set_ready();
        tracing::info!(
            address = %addr,
            name = node.identity.name,
            version = node.identity.version,
            lane = node.identity.lane,
            tls = tls.is_some(),
            "serving"
        );
        let following = tls.clone().map(|tls| tokio::spawn(tls.watch_files()));
        let phase = &node.phase;
        let stop = async {
            let stop = shutdown.await;
            // From here on /readyz says no and every answer says `connection: close`, so callers go elsewhere while they
            // are still served.
            phase.set_draining();
            if stop == Stop::Graceful && !drain.delay.is_zero() {
                tracing::info!(delay = ?drain.delay, "draining: not ready, still serving");
                tokio::time::sleep(drain.delay).await;
            }
            tracing::info!(timeout = ?drain.timeout, "draining: no longer accepting, finishing what is in flight");
        };
        let metrics = node.metrics.clone();
        let on_refused = Arc::new(move |status: http::StatusCode| {
            // There is no request to log, but whoever counts errors finds it.
            metrics.request(&http::Method::GET, "unmatched", status.as_str(), std::time::Duration::ZERO, None);
        });
        let server = ServerConfig { listener, options: connections, tls, phase: phase.clone(), on_refused };
        let requests_cut = server::serve(server, hop, stop, drain.timeout).await;
        if let Some(following) = following {
            following.abort();
        }
        if requests_cut > 0 {
            tracing::warn!(requests = requests_cut, "requests were cut off at the drain timeout");
        }
        let flush = Instant::now();
        let spans_lost = match pipeline {
            Some(pipeline) => pipeline.finish(drain.flush_timeout).await,
            None => 0,
        };
        if spans_lost > 0 {
            tracing::warn!(spans = spans_lost, "spans were not handed over before the flush timeout");
        }
        tracing::info!("stopped");
        if let Some(log) = &node.access_log {
            let left = drain.flush_timeout.saturating_sub(flush.elapsed());
            let lines = log.lines.clone();
            // Blocks on a reader that may never come, so not on a thread that others need.
            let _ = tokio::task::spawn_blocking(move || lines.flush(left)).await;
        }
        Ended { requests_cut, spans_lost }
    }
}

/// Binds a listener. A port without a host is bound on every address of both families, where the system has them.
pub(crate) async fn listen(listen: Listen) -> Result<TcpListener, BindError> {
    let Listen { host, port } = listen;
    let bound = match host {
        Some(host) => TcpListener::bind((host, port)).await,
        None => match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
            bound => bound,
        },
    };
    bound.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => BindError::PortTaken(listen),
        _ => BindError::Listen(listen, error),
    })
}

/// What a connection calls for each request.
#[derive(Clone)]
struct Hop {
    node: Arc<Node>,
}

impl tower_service::Service<Request<Incoming>> for Hop {
    type Response = Response<ObservedBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    /// The layers, outermost first.
    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let hop = self.clone();
        Box::pin(async move {
            let connection = request.extensions().get().copied();
            let connection =
                connection.unwrap_or(ConnectionInfo { peer: Ipv4Addr::UNSPECIFIED.into(), without_client_certificate: true });
            // Measuring is outside everything: what is shed, times out or panics is counted and logged too.
            let exchange = Exchange::begin(&hop.node, connection.peer, &request);
            let response = match hop.admitted(&exchange, connection.without_client_certificate, request).await {
                Ok(response) => response,
                Err(error) => error.into_response(),
            };
            Ok(exchange.answer(response))
        })
    }
}

impl Hop {
    async fn admitted(
        &self,
        exchange: &Exchange,
        anonymous: bool,
        mut request: Request<Incoming>,
    ) -> Result<Response<Bytes>, Error> {
        // hyper looks at its limit only when it has to read again: a larger head that came at once passes it. HTTP/2 does not
        // count fields.
        if exchange.head_bytes > limits::MAX_HEAD || request.headers().len() > limits::MAX_FIELDS {
            return Err(Error::HeadTooLarge);
        }
        if exchange.is_ambiguous {
            return Err(Error::BadRequest);
        }
        // A kubelet that probes has no certificate; everybody else needs one where one is wanted.
        if anonymous && !matches!(exchange.route, Route::Healthz | Route::Readyz) {
            return Err(Error::CertificateRequired);
        }
        // Overload is answered at once, before anything is waited for.
        let _permit = Permit::acquire(&self.node, exchange.route)?;
        // The body is off the connection before the answer is begun.
        limits::take_body(request.body_mut()).await?;
        // Latency and faults come before the work, as they would in a slow or broken service.
        if exchange.route.is_work() {
            let draw = self.node.faults.decide();
            exchange.set_draw(draw);
            if !draw.wait.is_zero() {
                tokio::time::sleep(draw.wait).await;
            }
            if let Some(status) = draw.abort.filter(|_| !exchange.route.is_chain()) {
                let mut response = response::text(format!("injected: abort {}\n", status.as_u16()));
                *response.status_mut() = status;
                return Ok(response);
            }
        }
        Ok(routes::answer(exchange, &request).await)
    }
}
