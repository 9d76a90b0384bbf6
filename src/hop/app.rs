//! The composition root: splits the configuration, binds, stacks the layers, runs, drains, flushes.
//!
//! This is the only place that knows both the configuration and the parts.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::hop::admin::{self, Admin};
use crate::hop::capacity::{held_budgets, max_spare, max_streams};
use crate::hop::config::HopConfig;
use crate::hop::fault::{FaultConfig, Faults};
use crate::hop::limits::RequestLimits;
use crate::hop::request_faults::{RequestFaults, X_FAULT, X_FAULT_TOKEN};
use crate::hop::routes;
use crate::hop::service::service;
use crate::hop::start_line::StartLine;
use crate::hop::state::Node;
use crate::hop::watch::Watch;
use crate::net::tls::hop_client_config;
use crate::server::options::ConnectionOptions;
use crate::server::shutdown::{DrainOptions, Phase, Stop};
use crate::server::tls::ServerTls;
use crate::server::{self, ServerConfig};
use crate::system::held::HeldBudgets;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::export::{ExporterError, Lost, Pipelines};
use crate::telemetry::line_writer::LineWriter;
use crate::telemetry::log_level::LogLevel;
use crate::telemetry::log_queue::Diagnostics;
use crate::telemetry::metrics::{BuildInfo, Metrics, RequestLabels, Sources, scheme};
use crate::telemetry::tracer::Tracer;
use crate::trace_context::{Dropped, Propagator, is_never_carried};
use crate::upstream::{UpstreamOptions, Upstreams};
use crate::values::Listen;

/// One hop: bound, not yet serving.
#[derive(Debug)]
pub struct App {
    listener: TcpListener,
    addr: SocketAddr,
    node: Arc<Node>,
    pipelines: Pipelines,
    diagnostics: Diagnostics,
    connections: ConnectionOptions,
    limits: RequestLimits,
    tls: Option<ServerTls>,
    drain: DrainOptions,
    ready_after: Duration,
    admin: Option<(TcpListener, Arc<Admin>)>,
    start_line: StartLine,
}

/// Where the lines of a process go: shared by all hops in it.
#[derive(Debug, Clone)]
pub struct Output {
    /// Access lines.
    pub stdout: LineWriter,
    /// Diagnostics, and spans of the console exporter.
    pub stderr: LineWriter,
    /// Diagnostics as log records.
    pub diagnostics: Diagnostics,
    /// Their level.
    pub log_level: LogLevel,
}

impl Output {
    /// The process's own stdout and stderr.
    pub fn new() -> Self {
        Self {
            stdout: LineWriter::stdout(),
            stderr: LineWriter::stderr(),
            diagnostics: Diagnostics::default(),
            log_level: LogLevel::default(),
        }
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
    /// The address of the runtime API cannot be listened on.
    Admin(Listen, io::Error),
    /// The exporter cannot be started: an endpoint or header that cannot be used.
    Exporter(ExporterError),
    /// The version label cannot be the value of a header.
    Version(String, http::header::InvalidHeaderValue),
}

impl BindError {
    /// The reason without what `serve` suggests.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::PortTaken(listen) => format!("cannot listen on {listen}: the port is taken"),
            Self::Listen(listen, error) | Self::Admin(listen, error) => format!("cannot listen on {listen}: {error}"),
            Self::Exporter(error) => error.to_string(),
            Self::Version(version, _) => format!("the version '{}' cannot be a header's value", version.escape_debug()),
        }
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason())?;
        f.write_str(match self {
            Self::PortTaken(_) => "; another one is set by --addr (ADDR)",
            Self::Listen(..) => "; another address is set by --addr (ADDR)",
            Self::Admin(..) => "; another address is set by --admin-addr (ADMIN_ADDR)",
            Self::Exporter(_) | Self::Version(..) => "",
        })
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Listen(_, error) | Self::Admin(_, error) => Some(error),
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

        let start_line = StartLine::of(&config);
        warn_of_purpose(&config);
        let admin = match config.admin.clone() {
            Some(options) => Some((admin_listener(options.listen).await?, options, admin::effective(&config))),
            None => None,
        };
        let identity = config.identity;
        let build = BuildInfo { service: &identity.name, service_version: &identity.version, lane: &identity.lane };
        let metrics = Arc::new(Metrics::new(&build, config.export.exemplars));
        let pipelines = Pipelines::start(config.export, &metrics, &output.stderr).map_err(BindError::Exporter)?;
        let span_queues = pipelines.span_queues();
        let tracer = (!span_queues.is_empty()).then(|| Tracer::new(config.sampler, span_queues.clone()));
        let records = pipelines.log_queue();
        output.diagnostics.send_to(records.as_ref());
        let held = HeldBudgets::new(held_budgets(config.held_bytes));
        metrics.set_sources(Sources {
            spans: span_queues,
            log_records: records.clone(),
            data_points: pipelines.data_points(),
            lines: config.access_log.map(|_| output.stdout.clone()),
            held: held.clone(),
        });
        for name in config.forward_headers.iter().filter(|name| is_never_carried(name.as_str())) {
            tracing::warn!(header = name.as_str(), "this header belongs to one connection or proxy and is not carried");
        }
        let mut forward_headers = config.forward_headers;
        if config.request_faults != RequestFaults::Off {
            forward_headers.extend([X_FAULT, X_FAULT_TOKEN].map(http::HeaderName::from_static));
        }
        let spare = if config.upstreams.is_empty() { 0 } else { max_spare(config.max_concurrency) };
        let node = Node {
            version_header: http::HeaderValue::from_str(&identity.version)
                .map_err(|error| BindError::Version(identity.version.clone(), error))?,
            propagator: Propagator::new(config.propagators, forward_headers, config.drop_headers),
            tracer,
            metrics,
            access_log: config.access_log.map(|format| AccessLog { lines: output.stdout.clone(), format, records }),
            faults: Faults::new(config.faults),
            request_faults: config.request_faults,
            seed: config.seed,
            upstreams: Upstreams::new(
                config.upstreams,
                UpstreamOptions {
                    fan_out: config.fan_out,
                    timeout: config.upstream_timeout,
                    request_size: config.request_size,
                    retries: config.retries,
                },
                &identity.version,
                hop_client_config(config.upstream_roots, config.tls.clone().map(|own| Arc::new(own) as _)),
            ),
            held,
            grpc_reflection: config.grpc_reflection,
            response_size: config.response_size,
            forward_body: config.forward_body,
            max_hops: config.max_hops,
            max_calls: config.max_calls,
            permits: Semaphore::new(config.max_concurrency.min(Semaphore::MAX_PERMITS)),
            spare_permits: Semaphore::new(spare),
            streams: Arc::new(Semaphore::new(max_streams(config.max_concurrency))),
            phase: Phase::default(),
            watch: std::sync::OnceLock::new(),
            identity,
        };
        let node = Arc::new(node);
        let admin = admin.map(|(listener, options, effective)| {
            let log_level = output.log_level.clone();
            (listener, Arc::new(Admin { node: node.clone(), options, log_level, config: effective }))
        });
        let HopConfig { connections, limits, tls, drain, ready_after, .. } = config;
        let diagnostics = output.diagnostics.clone();
        Ok(Self { listener, addr, node, pipelines, diagnostics, connections, limits, tls, drain, ready_after, admin, start_line })
    }

    /// The address that is bound.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    #[cfg(test)]
    pub(crate) fn node(&self) -> Arc<Node> {
        self.node.clone()
    }

    /// The handle to this hop's latency and faults.
    pub fn faults(&self) -> Faults {
        self.node.faults.clone()
    }

    /// The handle to the headers that this hop loses on purpose.
    pub fn dropped(&self) -> Dropped {
        self.node.propagator.dropped()
    }

    /// The handle to this hop's readiness.
    pub(crate) fn phase(&self) -> Phase {
        self.node.phase.clone()
    }

    /// Notifies `watch` of every request of the chain. Only the first watcher is registered.
    pub fn watch(&self, watch: Arc<dyn Watch>) {
        let _ = self.node.watch.set(watch);
    }

    /// Serves until `shutdown` resolves; then drains, flushes and returns.
    pub async fn run(self, shutdown: impl Future<Output = Stop>) -> Ended {
        let Self {
            listener,
            node,
            pipelines,
            diagnostics,
            connections,
            limits,
            tls,
            drain,
            ready_after,
            admin,
            addr,
            start_line,
        } = self;
        let beside = beside(&node, admin, ready_after, tls.clone());
        start_line.log(addr, &node.identity);
        let phase = &node.phase;
        let stop = async {
            let stop = shutdown.await;
            // From here on /readyz answers 503 and every answer carries `connection: close`: callers move to other
            // instances while they are still served.
            phase.set_draining();
            if stop == Stop::Graceful && !drain.delay.is_zero() {
                tracing::info!(delay = ?drain.delay, "draining: not ready, still serving");
                tokio::time::sleep(drain.delay).await;
            }
            tracing::info!(timeout = ?drain.timeout, "draining: no longer accepting, finishing what is in flight");
            phase.set_closing(Instant::now() + drain.timeout);
        };
        let (metrics, is_tls) = (node.metrics.clone(), tls.is_some());
        let on_refused = Arc::new(move |status: http::StatusCode| {
            // There is no request to log; the metric counts it.
            let labels = RequestLabels {
                route: "unmatched",
                status: status.as_str(),
                method: "_OTHER",
                scheme: scheme(is_tls),
                protocol: "",
                error: "",
            };
            metrics.request(&labels, Duration::ZERO, None);
        });
        let server = ServerConfig { listener, options: connections, tls, phase: phase.clone(), on_refused };
        let requests_cut =
            server::serve(server, service(routes::router(node.clone()), node.clone(), limits), stop, drain.timeout).await;
        beside.iter().for_each(AbortHandle::abort);
        if requests_cut > 0 {
            tracing::warn!(requests = requests_cut, "requests were cut off at the drain timeout");
        }
        let flush = Instant::now();
        let records = pipelines.log_queue();
        let last_words = |lost: Lost| {
            if lost.spans > 0 {
                tracing::warn!(spans = lost.spans, "spans were not handed over before the flush timeout");
            }
            if lost.data_points > 0 {
                tracing::warn!(data_points = lost.data_points, "metrics were not handed over before the flush timeout");
            }
            tracing::info!("stopped");
            if let Some(records) = &records {
                // What is logged from here on would come too late.
                diagnostics.end(records);
            }
        };
        let lost = pipelines.finish(drain.flush_timeout, last_words).await;
        if lost.log_records > 0 {
            tracing::warn!(log_records = lost.log_records, "log records were not handed over before the flush timeout");
        }
        if let Some(log) = &node.access_log {
            let left = drain.flush_timeout.saturating_sub(flush.elapsed());
            let lines = log.lines.clone();
            // Blocks until stdout is read, which may never happen, so not on a thread of the runtime.
            let _ = tokio::task::spawn_blocking(move || lines.flush(left)).await;
        }
        Ended { requests_cut, spans_lost: lost.spans }
    }
}

/// Starts what runs beside the hop: the wait of a slow start, the runtime API, the watch of the certificate's files.
fn beside(
    node: &Node,
    admin: Option<(TcpListener, Arc<Admin>)>,
    ready_after: Duration,
    tls: Option<ServerTls>,
) -> Vec<AbortHandle> {
    let admin = admin.map(|(listener, admin)| tokio::spawn(serve_admin(listener, admin)).abort_handle());
    let following = tls.map(|tls| tokio::spawn(tls.watch_files()).abort_handle());
    node.phase.clone().set_ready_after(ready_after).into_iter().chain(admin).chain(following).collect()
}

/// Binds the runtime API.
async fn admin_listener(at: Listen) -> Result<TcpListener, BindError> {
    let taken = |error| match error {
        BindError::PortTaken(at) => BindError::Admin(at, io::ErrorKind::AddrInUse.into()),
        BindError::Listen(at, error) => BindError::Admin(at, error),
        other => other,
    };
    listen(at).await.map_err(taken)
}

/// Serves the runtime API until the task is aborted.
async fn serve_admin(listener: TcpListener, admin: Arc<Admin>) {
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, token = admin.options.token.is_some(), "admin API");
    }
    server::serve(ServerConfig::plain(listener), admin::router(admin), std::future::pending(), Duration::ZERO).await;
}

/// Says what the hop does on purpose: what was forgotten looks like a real failure.
fn warn_of_purpose(config: &HopConfig) {
    let HopConfig { drop_headers, request_faults, faults: FaultConfig { faults, breaks, .. }, .. } = config;
    let (hop, written) = (&config.identity.name, |all: Vec<String>| all.join(","));
    if !drop_headers.is_empty() {
        let headers = written(drop_headers.iter().map(ToString::to_string).collect());
        tracing::warn!(hop, headers, "this hop loses headers on purpose (--drop-header)");
    }
    if *request_faults != RequestFaults::Off {
        tracing::info!(hop, allowed = request_faults.name(), "x-fault of requests acts here (--request-faults)");
    }
    if !faults.is_empty() {
        let faults = written(faults.iter().map(ToString::to_string).collect());
        tracing::warn!(hop, faults, "this hop injects faults on purpose (--fault)");
    }
    if !breaks.is_empty() {
        let breaks = written(breaks.iter().map(ToString::to_string).collect());
        tracing::warn!(hop, breaks, "this hop breaks the trace on purpose (--break)");
    }
}

/// Listens with a queue as long as the system allows (it reduces what is asked for to its own limit): the usual 128 are full as
/// soon as a caller opens its connections in one burst, and each further one waits a second until its SYN is sent again.
fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    const LONGEST: u32 = u16::MAX as u32;
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    bound_buffers(&socket)?;
    socket.bind(addr)?;
    socket.listen(LONGEST)
}

/// Bounds what the kernel holds for each connection that is accepted, which a cgroup of version 2 counts as the process's memory: left
/// alone, it is megabytes of input that nobody reads yet, and of answers that a peer does not read.
fn bound_buffers(socket: &TcpSocket) -> io::Result<()> {
    /// The kernel doubles it, and does not let it grow. Heads and bodies fit.
    const RECEIVED: u32 = 32 << 10;
    /// Of what was written, the kernel has no more than this beyond what is on its way to the peer: that may be as much as the path
    /// carries, so a fast reader is not slowed down.
    #[cfg(target_os = "linux")]
    const NOT_SENT: u32 = 16 << 10;
    socket.set_recv_buffer_size(RECEIVED)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(socket).set_tcp_notsent_lowat(NOT_SENT)?;
    Ok(())
}

/// Binds a listener. A port without a host is bound on every address of both families, where the system has them.
pub(crate) async fn listen(listen: Listen) -> Result<TcpListener, BindError> {
    let Listen { host, port } = listen;
    let bound = match host {
        Some(host) => bind((host, port).into()),
        None => match bind((Ipv6Addr::UNSPECIFIED, port).into()) {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => bind((Ipv4Addr::UNSPECIFIED, port).into()),
            bound => bound,
        },
    };
    bound.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => BindError::PortTaken(listen),
        _ => BindError::Listen(listen, error),
    })
}
