//! `httpserver check URL`: sends requests through a deployed chain and reports what is broken, where, and why.
//!
//! ```text
//!  options ─► reachability ─► first reply ─► chain
//!                                  │
//!                                  ├─► chain::xray ─► evidence ─► propagation     evidence in, findings out;
//!                                  ├─► backend ─► the trace's spans               only `report` prints
//!                                  └─► traffic::sample ─► samples ─► traffic, lanes, watch
//!                                                    findings ─► report ─► terminal, JSON, JUnit
//! ```
//!
//! Only `reachability::client` sends requests to the target, only with GET, never faster than `--rate`.

mod args;
pub(crate) mod backend;
pub mod chain;
pub mod cluster;
pub(crate) mod envoy;
pub(crate) mod propagation;
pub(crate) mod reachability;
mod shared_args;
mod traffic;

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backend::Backend;
use http::HeaderMap;
use tokio::sync::watch as signal;
use tokio::task::JoinHandle;

use crate::config::{CommandFailure, Environment, caller_exporters, process_variable};
use crate::hop::reply::{Headers, Tree};
use crate::net::hosts::{host_of, is_loopback, redacted_url};
use crate::server::shutdown::Signals;
use crate::telemetry::client_tracing::{ClientTracer, ClientTracing};
use crate::telemetry::export::Exporter;
use crate::text::terminal::has_color;

use crate::net::trust::Trust;
pub use crate::report::OutputFormat;
use crate::report::{CheckId, Finding, Group, ProgressLine, Report, Status};
pub use args::CheckArgs;
use args::{FOREVER, LANE_REQUESTS, ONE_CONNECTION, validate};
pub use backend::SecretHeader;
pub use backend::trace::{TraceArgs, run as run_trace};
use chain::evidence::Xray;
use chain::probe::Probe;
pub use cluster::ClusterArgs;
use cluster::{Cluster, ClusterSubject};
use envoy::suggestions::HintContext;
use reachability::client::{CheckClient, FrontAnswer, RequestFailure};
pub use shared_args::{BackendArgs, ClientArgs, TextOrJson};
use traffic::TrafficExpectation;
use traffic::sample::{Sample, Series};
use traffic::watch::Watched;

/// Runs the checks and writes the report to standard output. Returns the exit code: 0 fine, 1 a check failed or the run was
/// interrupted.
///
/// # Errors
///
/// Wrong usage: nothing was sent.
pub async fn run(args: CheckArgs) -> Result<u8, CommandFailure> {
    let trust = validate(&args).map_err(CommandFailure::Usage)?;
    let tracing = match args.report_spans {
        true => start_tracing(None, &|text| eprintln!("httpserver: {text}"))?,
        false => None,
    };
    let color = has_color();
    let mut report =
        Report::new(redacted_url(args.url.as_str()), args.output, args.skip.clone(), color, Box::new(std::io::stdout()));
    let deadline = args.deadline();
    let RunEnd { stop, mut left, is_over } = RunEnd::listen(deadline).map_err(no_signals)?;
    let context = hints(&args);
    let outside = Arc::new(AtomicBool::new(context.is_outside));
    let progress = ProgressLine::new(std::io::stderr().is_terminal());
    let tracer = tracing.as_ref().map(ClientTracing::tracer);
    let run = Run {
        args: &args,
        trust,
        tracer,
        context,
        report: &mut report,
        stop: stop.clone(),
        progress,
        opening: None,
        backend: None,
        cluster: None,
        unseen: Vec::new(),
        outside,
    };
    let is_complete = tokio::select! {
        () = run.checks() => !*stop.borrow(),
        // Steps end by themselves and report what they have. One that does not is left.
        _ = left.wait_for(|left| *left) => false,
    };
    // A watch without an end is whole whenever a signal ends it.
    let has_watched = args.watch == Some(FOREVER) && report.has(Group::Watch);
    if !is_complete && !has_watched {
        let by = is_over.load(Ordering::Relaxed).then(|| format!("--deadline {}", humantime::format_duration(deadline)));
        report.interrupt(by, args.groups());
    }
    report.finish();
    let lost = match tracing {
        Some(tracing) => tracing.finish(if is_complete { FLUSH } else { GRACE }).await,
        None => 0,
    };
    if lost > 0 {
        eprintln!("httpserver: --report-spans: the collector did not accept {lost} of the caller's spans");
    }
    Ok(u8::from(!report.is_fine()))
}

/// Why a command cannot be interrupted in order.
pub(crate) fn no_signals(error: std::io::Error) -> CommandFailure {
    CommandFailure::Stopped(format!("cannot listen for signals: {error}"))
}

fn hints(args: &CheckArgs) -> HintContext {
    let loopback = is_loopback(args.url.host_str().unwrap_or_default());
    HintContext {
        namespace: args.namespace.clone(),
        gateway_namespace: args.gateway_namespace.clone(),
        url: redacted_url(args.url.as_str()),
        loopback,
        is_outside: loopback && !args.cluster.cluster,
        evidence: Arc::default(),
    }
}

/// How long a step that was asked to stop may take to report what it has.
const GRACE: Duration = Duration::from_millis(500);

/// How a run ends before it is complete: by a signal, or by its deadline.
struct RunEnd {
    stop: signal::Receiver<bool>,
    /// [`GRACE`] later.
    left: signal::Receiver<bool>,
    is_over: Arc<AtomicBool>,
}

impl RunEnd {
    /// Listens on a thread of its own: a peer that sends interim answers without end can make every worker of the runtime read
    /// them, and then neither its timers nor its signals are noticed.
    fn listen(deadline: Duration) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut signals = {
            let _entered = runtime.enter();
            Signals::listen()?
        };
        let ((stopper, stop), (leaver, left)) = (signal::channel(false), signal::channel(false));
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        let listen = async move {
            tokio::select! {
                _ = signals.next() => {}
                () = tokio::time::sleep(deadline) => over.store(true, Ordering::Relaxed),
            }
            let _ = stopper.send(true);
            let leave = async {
                tokio::time::sleep(GRACE).await;
                let _ = leaver.send(true);
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = leave => {}
                _ = signals.next() => {}
            }
            // Whoever asks twice waits for nothing, not even for a report that somebody does not read.
            std::process::exit(1);
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || runtime.block_on(listen))?;
        Ok(Self { stop, left, is_over })
    }
}

/// How long the collector may take to accept the last spans of `--report-spans`.
const FLUSH: Duration = Duration::from_secs(3);

/// Starts the export of `--report-spans`, to `default` where no variable names another collector.
///
/// # Errors
///
/// The variables ask for what cannot be.
pub(crate) fn start_tracing(default: Option<Exporter>, warn: &dyn Fn(&str)) -> Result<Option<ClientTracing>, CommandFailure> {
    let env = Environment { variable: &|name| process_variable(name, warn), warn };
    let tracing = ClientTracing::start(caller_exporters(&env, default));
    tracing.map_err(|error| CommandFailure::Usage(format!("--report-spans: {error}")))
}

/// A trace backend and the finding about it, or why there is none.
type Opened = Result<(Backend, Finding), Box<Finding>>;

/// One run: what every step needs.
struct Run<'a> {
    args: &'a CheckArgs,
    trust: Trust,
    tracer: Option<ClientTracer>,
    context: HintContext,
    report: &'a mut Report,
    stop: signal::Receiver<bool>,
    progress: ProgressLine,
    /// The trace backend while it is asked what it is.
    opening: Option<JoinHandle<Opened>>,
    /// The same, once that is known.
    backend: Option<Opened>,
    cluster: Option<Cluster>,
    /// Foreign apps, behind which nothing is seen.
    unseen: Vec<String>,
    /// The same as in the context, for the report.
    outside: Arc<AtomicBool>,
}

impl<'a> Run<'a> {
    /// Every check, in order. Stops between steps when asked to.
    async fn checks(mut self) {
        let mut stop = self.stop.clone();
        let (options, outside) = (self.args.options(), self.outside.clone());
        self.report.prepare_with(move |finding| options.complete(finding, outside.load(Ordering::Relaxed)));
        self.read_cluster().await;
        let single = tokio::select! {
            single = self.single_requests() => single,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let xray = match single {
            Some((client, xray)) => {
                self.many_requests(client, xray.as_ref()).await;
                xray
            }
            None => None,
        };
        if let Some(cluster) = &self.cluster {
            self.report.extend(cluster.findings(&self.subject(), xray.as_ref()).await);
        }
    }

    fn subject(&self) -> ClusterSubject<'a> {
        let CheckArgs { url, resolve, expect, namespace, gateway_namespace, .. } = self.args;
        ClusterSubject { url, resolve, expect: expect.as_ref(), namespace, gateway_namespace }
    }

    /// Reads the cluster before the first request, so that each finding can name its object.
    async fn read_cluster(&mut self) {
        if !self.args.cluster.cluster {
            return;
        }
        let (mut stop, subject) = (self.stop.clone(), self.subject());
        let cluster = tokio::select! {
            cluster = Cluster::read(&self.args.cluster, &subject) => cluster,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let (explain, options) = (cluster.explainer(), self.args.options());
        self.report.prepare_with(move |finding| {
            if finding.status == Status::Fail {
                explain(finding);
            }
            options.complete(finding, false);
        });
        self.cluster = Some(cluster);
    }

    /// Reach, Chain and Propagation; `None` when the chain was not reached.
    async fn single_requests(&mut self) -> Option<(CheckClient, Option<Xray>)> {
        let Some((client, tree, answer)) = self.reach().await else {
            let text = "The chain and everything behind it: skipped, because it was not reached";
            self.report.add(Finding::skip(CheckId::ChainHops, text));
            return None;
        };
        let subject = self.subject();
        if let Some(cluster) = &mut self.cluster {
            cluster.saw(&tree, &subject).await;
        }
        let client = client.reporting(self.tracer.take());
        self.report.extend(reachability::reach::hardening(&client, &answer, self.args.plain_port).await);
        let expect = self.args.expect.as_ref();
        let at_times = chain::calls_at_times(expect, &client, &tree, self.args.count, &self.context).await;
        self.report.extend(chain::findings(&tree, expect, &at_times, &self.context));
        self.unseen = backend::unseen_names(&tree);
        self.leave_unseen("no trace backend was given");
        let Some((probe, xray, tree)) = propagation::probed(&client, &self.context).await else {
            let text = "Propagation: skipped, because no probe brought the chain's reply";
            self.report.add(Finding::skip(CheckId::PropagationTrace, text));
            return Some((client, None));
        };
        let bare = propagation::bare_replies(&client, &xray, self.args.count > 0, &self.context).await;
        let pair = (!bare.is_empty()).then_some((&tree, &bare[..]));
        self.report.extend(propagation::findings(&probe, &xray, pair, &self.context));
        Some((client, Some(xray)))
    }

    /// Traces, Lanes, Traffic and Watch.
    async fn many_requests(&mut self, client: CheckClient, xray: Option<&Xray>) {
        let (traced, more_calls) = self.trace(&client).await;
        let client = Arc::new(client);
        let context = self.context.clone();
        let series = |lane: Option<&str>| Series::new(client.clone(), context.clone(), traffic::lane_check::headers(lane));
        let marked_series = Series { is_marked: true, ..series(None) };
        // Those that bring no trace context also show the mesh's own sampling rate. Where nobody begins a trace they show nothing else.
        let are_marked = self.args.backend.traces.is_none() && xray.is_some_and(Xray::is_untraced);
        let ordinary = if are_marked { &marked_series } else { &series(None) };
        let samples = self.send(ordinary, self.args.count).await;
        let marked = if are_marked { Vec::new() } else { self.send(&marked_series, self.args.marked()).await };
        let rates = traffic::rates::Rates::of(&samples, &marked, xray, &self.context);
        self.report.expect_causes(rates.causes());
        self.report.extend(traced);
        if self.args.backend.traces.is_some() && !samples.is_empty() {
            self.report.add(traffic::sampling::finding(&samples, self.args.expect_sampling, xray, &self.context));
        }
        self.lanes(&series).await;
        if self.args.count > 0 && !(samples.is_empty() && *self.stop.borrow()) {
            let kept = series(None).over_one_connection(self.args.count.min(ONE_CONNECTION), &self.stop).await;
            let pods = |hop: &str| self.cluster.as_ref()?.pods(hop, &self.args.namespace);
            let expected = TrafficExpectation {
                kept: &kept,
                pods: &pods,
                success: self.args.expect_success,
                retries: self.args.expect_retries,
                splits: &self.args.expect_split,
                latencies: &self.args.expect_latency,
                principals: &self.args.expect_principal,
                marked: &marked,
                more_calls: &more_calls,
            };
            self.report.extend(traffic::findings(&samples, xray, rates, &expected, &self.context));
        }
        self.watch(&series(None)).await;
    }

    /// So many requests of a series, until the run is stopped.
    async fn send(&mut self, series: &Series, count: u64) -> Vec<Sample> {
        if count == 0 || *self.stop.borrow() {
            return Vec::new();
        }
        let what = if series.is_marked { "requests with trace headers" } else { "requests" };
        series.run(count, Duration::MAX, &mut self.stop, &self.progress, what).await
    }

    /// The trace of one request, from the backend, and what calls it was multiplied into.
    async fn trace(&mut self, client: &CheckClient) -> (Vec<Finding>, Vec<String>) {
        self.backend().await;
        match self.backend.take() {
            None => Default::default(),
            Some(Ok((backend, finding))) => {
                let request = backend::CheckedRequest {
                    client,
                    expect: self.args.expect.as_ref(),
                    trace_id: self.args.trace_id.as_ref(),
                    hints: &self.context,
                };
                let wait = self.args.backend.traces_wait;
                let examined = backend::check_trace(&backend, &request, wait, &mut self.stop, &self.progress).await;
                self.unseen.retain(|name| !examined.names.contains(name));
                self.leave_unseen("the trace backend does not show whether the trace goes on there");
                self.backend = Some(Ok((backend, finding.clone())));
                (std::iter::once(finding).chain(examined.findings).collect(), examined.more_calls)
            }
            Some(Err(finding)) => {
                self.leave_unseen("the trace backend cannot be read");
                let text = "The trace of one request: not checked, because the backend cannot be read";
                (vec![*finding, Finding::skip(CheckId::TracesArrived, text)], Vec::new())
            }
        }
    }

    /// Says what is not seen, and why.
    fn leave_unseen(&mut self, why: &str) {
        let what = if self.unseen.is_empty() {
            None
        } else {
            Some(format!("nothing behind {} is ours, and {why}", self.unseen.join(", ")))
        };
        self.report.leave_unseen(what, self.args.strict);
    }

    /// The baseline, then each lane: enough requests each to reveal a rule that applies only at times.
    async fn lanes(&mut self, series: &impl Fn(Option<&str>) -> Series) {
        if self.args.lane.is_empty() || *self.stop.borrow() {
            return;
        }
        let base =
            series(None).run(LANE_REQUESTS, Duration::MAX, &mut self.stop, &self.progress, "requests in the baseline").await;
        self.report.extend(traffic::lane_check::baseline(&base, &self.context));
        for lane in &self.args.lane {
            if *self.stop.borrow() {
                return;
            }
            let walking = series(Some(lane));
            let samples = walking.run(LANE_REQUESTS, Duration::MAX, &mut self.stop, &self.progress, "requests in the lane").await;
            let lost = traffic::lane_check::lost_in(&walking, lane).await;
            self.report.extend(traffic::lane_check::walk(lane, &samples, lost, &self.context));
        }
    }

    /// Constant load, for a rollout.
    async fn watch(&mut self, series: &Series) {
        let Some(span) = self.args.watch.filter(|_| !*self.stop.borrow()) else { return };
        if self.args.output == OutputFormat::Text && std::io::stderr().is_terminal() {
            match span {
                FOREVER => eprintln!("  watching until Ctrl-C: restart a Deployment now"),
                span => eprintln!("  watching for {} s: restart a Deployment now", span.as_secs()),
            }
        }
        let started = tokio::time::Instant::now();
        let all = (span.as_secs_f64() * self.args.rate).ceil() as u64;
        let mut watched = Watched::default();
        let take = |sample| watched.add(sample);
        series.run_each(all, span, &mut self.stop, &self.progress, "requests, watching", take).await;
        self.report.extend(watched.findings(span.min(started.elapsed()), &self.context));
    }

    /// Reaches the target; `None` when there is nothing to continue with.
    async fn reach(&mut self) -> Option<(CheckClient, Tree, FrontAnswer)> {
        const CONNECT: Duration = Duration::from_secs(5);
        let Self { args, trust, context, report, .. } = self;
        let limit = CONNECT.min(args.client.timeout);
        let (findings, addresses) = reachability::reach::resolve(&args.url, &args.resolve).await;
        report.extend(findings);
        let (finding, address) = reachability::reach::connect(&addresses?, context, limit).await;
        report.add(finding);
        let address = address?;
        if crate::net::hosts::is_tls(&args.url) {
            let (findings, is_usable) =
                reachability::reach::tls(trust, &host_of(args.url.as_str()), address, context, limit).await;
            report.extend(findings);
            if !is_usable {
                return None;
            }
        }
        let extra: HeaderMap = args.client.headers.iter().cloned().collect();
        let client = match CheckClient::new(args.url.clone(), address, trust, args.client.timeout, args.rate, extra) {
            Ok(client) => client,
            Err(error) => {
                let hint = crate::report::Hint::new("The TLS setup of this machine");
                report.add(Finding::fail(CheckId::ReachHttp, format!("No client: {error}"), hint));
                return None;
            }
        };
        self.opening = self.args.backend.traces.clone().map(|url| {
            let (trust, wait) = (self.trust.clone(), self.args.backend.traces_wait);
            let headers = SecretHeader::map(&self.args.backend.traces_header).unwrap_or_default();
            tokio::spawn(async move { backend::open(&url, &trust, headers, wait).await })
        });
        let probe = self.args.first_probe();
        let answer = client.get(&probe.headers).await;
        self.learn_from(&probe, &answer).await;
        let (finding, first) = reachability::reach::first(answer, &client, &self.trust, address, &self.context, limit).await;
        self.report.add(finding);
        first.map(|(tree, answer)| (client, tree, answer))
    }

    /// Waits until it is known what the trace backend is. Its finding is reported with those about traces.
    async fn backend(&mut self) {
        let Some(mut opening) = self.opening.take() else { return };
        tokio::select! {
            opened = &mut opening => self.backend = opened.ok(),
            _ = self.stop.wait_for(|stop| *stop) => opening.abort(),
        }
    }

    /// What the first answer says of the hops, and what proxies report of it if it failed.
    async fn learn_from(&mut self, probe: &Probe, answer: &Result<FrontAnswer, RequestFailure>) {
        let tree = answer.as_ref().ok().and_then(FrontAnswer::tree);
        if tree.is_some() && answer.as_ref().is_ok_and(FrontAnswer::is_foreign) {
            Arc::make_mut(&mut self.context.evidence).is_front_foreign = true;
        }
        let is_foreign = self.context.evidence.is_front_foreign;
        let xray = tree.as_ref().map(|tree| chain::xray::examine_behind(is_foreign, probe, tree, &self.context.url));
        let server = answer.as_ref().ok().and_then(|answer| answer.header("server")).unwrap_or_default();
        // Istio's proxies write their own name.
        let by_front = || self.context.is_outside && !server.contains("istio");
        self.context.is_outside = xray.as_ref().map_or_else(by_front, Xray::is_outside);
        self.outside.store(self.context.is_outside, Ordering::Relaxed);
        let rows = xray.iter().flat_map(|xray| &xray.rows).filter(|row| row.proxy.is_own_sidecar());
        Arc::make_mut(&mut self.context.evidence).sidecars.extend(rows.map(|row| row.hop.name.clone()));
        let status = answer.as_ref().map_or(0, |answer| answer.status);
        let proxied = match (answer, &tree, &xray) {
            (Err(failure), ..) => !matches!(failure, RequestFailure::Connect(_)),
            (_, Some(tree), Some(xray)) => xray.rows.iter().any(|row| row.proxy.is_seen()) || chain::meets_proxies(tree),
            (Ok(answer), ..) => answer.header("server").is_some_and(|server| server.contains("envoy")),
        };
        if proxied && !(200..400).contains(&status) {
            self.collect_failure_spans(&probe.headers, status, tree.as_ref()).await;
        }
    }

    /// Adds what proxies report of a request that failed to what is known.
    async fn collect_failure_spans(&mut self, sent: &Headers, status: u16, tree: Option<&Tree>) {
        self.backend().await;
        let Some(Ok((backend, _))) = &self.backend else { return };
        let failed = backend::Failed { sent, status, tree, url: &self.context.url };
        let found = backend::evidence(backend, &failed, self.args.backend.traces_wait, &mut self.stop, &self.progress).await;
        Arc::make_mut(&mut self.context.evidence).failures.extend(found);
    }
}
