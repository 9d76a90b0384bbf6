//! `httpserver demo`: the whole chain, traced, in one process, with the trace store built in; and `httpserver store`, the store alone.
//!
//! Every hop is an [`App`] of its own with its own registry and tracer, and reports over HTTP to the [`store`], which speaks
//! the Zipkin v2 API: no span takes a way that another server's could not. The page at the store's port shows all of it;
//! what it shows of requests as they pass and what it changes are handles to the hops, in `control`.

mod access;
pub(crate) mod control;
mod page;
pub mod standalone;
pub mod store;
mod supervisor;
pub mod terminal;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::check::start_tracing;
use crate::config::{CommandFailure, DemoArgs};
use crate::hop::app::{App, BindError, Output, listen};
use crate::hop::capacity::{Capacity, Resources};
use crate::hop::config::HopConfig;
use crate::hop::fault::FaultConfig;
use crate::hop::request_faults::{AddressedFault, RequestFaults};
use crate::net::addresses::reachable;
use crate::server::shutdown::{DrainOptions, Stop};
use crate::server::{self, ServerConfig};
use crate::telemetry::access_log::LogFormat;
use crate::telemetry::client_tracing::ClientTracing;
use crate::telemetry::export::Exporter;
use crate::traces::ExpectedTrace;
use crate::upstream::Target;
use crate::values::Listen;
use access::Access;
use control::live::Gauge;
use control::state::{DemoState, HopHandle, Links};
use control::until;
use store::Store;
use supervisor::supervise;
use terminal::Style;
use terminal::printer::{Printer, style_of_stdout};

/// How often the hops export their spans: a person waits for the picture.
const SCHEDULE_DELAY: Duration = Duration::from_millis(100);

/// A demo: every address taken, nothing served yet.
#[derive(Debug)]
pub struct Demo {
    hops: Vec<(App, HopConfig)>,
    state: Arc<DemoState>,
    access: Access,
    output: Output,
    store_listener: tokio::net::TcpListener,
    once: bool,
    quiet: bool,
    style: Style,
    tracing: Option<ClientTracing>,
}

/// Whether every hop that an option names is there.
fn check_named(args: &DemoArgs) -> Result<(), CommandFailure> {
    let count = args.hops;
    let is_there = |name: &str| (1..=count).any(|number| name == format!("service{number}"));
    let dropped = args.drop_header.iter().map(|header| format!("service{}", header.hop));
    let named = args.fault.iter().filter_map(|fault| fault.hop().map(str::to_owned)).chain(dropped);
    if let Some(hop) = named.into_iter().find(|name| !is_there(name)) {
        return Err(CommandFailure::Usage(format!("there is no {hop}: the demo has service1 to service{count} (--hops)")));
    }
    let who = HopConfig::new("service1", Listen { host: Some(args.listen), port: 0 }).identity;
    let is_nobody = |instance: &&str| *instance != who.version && *instance != who.hostname;
    if let Some(instance) = args.fault.iter().filter_map(AddressedFault::instance).find(is_nobody) {
        let (version, host) = (&who.version, &who.hostname);
        let why = format!("no hop is '{instance}' (--fault): all of the demo are version {version} at host {host}");
        return Err(CommandFailure::Usage(why));
    }
    Ok(())
}

impl Demo {
    /// Takes every address.
    ///
    /// # Errors
    ///
    /// An option asks for what cannot be, or the first address that cannot be had.
    pub async fn bind(args: DemoArgs, output: &Output) -> Result<Self, CommandFailure> {
        let count = args.hops;
        check_named(&args)?;
        let port = args.port.unwrap_or(if args.once { 0 } else { 8080 });
        let store_port = args.store_port.unwrap_or(if args.once { 0 } else { 9411 });
        let free = port == 0;
        if !free && port.checked_add(count - 1).is_none() {
            return Err(CommandFailure::Usage(format!("invalid value '{port}' for --port: {count} hops need ports up to 65535")));
        }
        let at = |port: u16| Listen { host: Some(args.listen), port };
        let taken = |error: BindError| taken(&error, "--port 0 and --store-port 0 take free ones");
        let store_listener = listen(at(store_port)).await.map_err(taken)?;
        let store_addr = store_listener.local_addr().map_err(|error| CommandFailure::Stopped(error.to_string()))?;
        let endpoint = format!("http://{}/api/v2/spans", reachable(store_addr));

        // The last hop first: with free ports the one before must know its address.
        let mut hops: Vec<(App, HopConfig)> = Vec::new();
        let mut handles = Vec::new();
        let resources = Resources::of_process().divided_by(count);
        let passed = watch::Sender::new(());
        for number in (1..=count).rev() {
            let mut config = HopConfig::new(&format!("service{number}"), at(if free { 0 } else { port + number - 1 }));
            let next = match args.fan_out {
                Some(_) if number == 1 => hops.iter().rev().zip(2..).collect(),
                Some(_) => Vec::new(),
                None => hops.last().map(|hop| (hop, number + 1)).into_iter().collect::<Vec<_>>(),
            };
            let calls = next.iter().map(|(_, number)| usize::from(*number)).collect();
            for ((hop, _), number) in next {
                let url = format!("http://{}/service{number}", reachable(hop.addr()));
                config.upstreams.push(url.parse::<Target>().map_err(|error| CommandFailure::Stopped(error.to_string()))?);
            }
            config.set_capacity(Capacity::of(resources, config.upstreams.len(), None, None));
            config.max_hops = config.max_hops.max(u32::from(count));
            config.fan_out = args.fan_out.unwrap_or_default();
            // A caller waits longer than the hop below it, or the broken hop is hidden.
            config.upstream_timeout = Duration::from_secs(u64::from(count - number) + 2);
            config.faults = FaultConfig { latency: args.latency.clone(), ..FaultConfig::default() };
            for fault in args.fault.iter().filter(|fault| fault.is_for(&config.identity)) {
                config.faults.add(fault.what.clone());
            }
            config.drop_headers =
                args.drop_header.iter().filter(|header| header.hop == number).map(|header| header.what.0.clone()).collect();
            config.seed = args.seed;
            if args.listen.is_loopback() {
                config.request_faults = RequestFaults::On;
            }
            config.export.spans = vec![Exporter::Zipkin { endpoint: endpoint.clone() }];
            config.export.schedule_delay = SCHEDULE_DELAY;
            config.access_log = (args.verbose > 0).then_some(LogFormat::Text);
            config.drain = DrainOptions { delay: Duration::ZERO, ..DrainOptions::default() };
            let hop = App::bind(config.clone(), output).await.map_err(taken)?;
            // A hop that is started again is at the same address.
            config.listen.port = hop.addr().port();
            handles.push(HopHandle::new(&hop, &config, calls, Gauge::new(passed.clone())));
            hops.push((hop, config));
        }
        hops.reverse();
        handles.reverse();
        let links = Links::from(&args.page);
        let state = DemoState::new(handles, args.fan_out, Store::new(), links, passed).map_err(CommandFailure::Stopped)?;
        Ok(Self {
            hops,
            state: Arc::new(state),
            access: Access::new(store_addr, args.page.allow_host, args.allow_remote_control).map_err(CommandFailure::Stopped)?,
            output: output.clone(),
            store_listener,
            once: args.once,
            quiet: args.quiet,
            style: style_of_stdout(),
            // The demo's own spans go to its store, unless `OTEL_TRACES_EXPORTER` says otherwise.
            tracing: match args.report_spans {
                true => start_tracing(Some(Exporter::Zipkin { endpoint }), &|text| tracing::warn!("{text}"))?,
                false => None,
            },
        })
    }

    /// Serves, draws the trace of a request of its own and then every further one until `shutdown` resolves, with `--once`
    /// only the first. Says whether that first trace was complete.
    pub async fn run(self, shutdown: impl Future<Output = Stop>) -> bool {
        let Self { hops, state, access, output, store_listener, once, quiet, style, tracing } = self;
        let tracer = tracing.as_ref().map(ClientTracing::tracer);
        let expected = ExpectedTrace { hops: state.names(), ..ExpectedTrace::of_hops(hops.len()) };
        let printer = Printer { state: state.clone(), expected, style, out: output.stdout.clone(), tracer };
        if !quiet {
            printer.print(&printer.introduction(&access, once));
        }
        let arrivals = state.store.subscribe();
        let (stop, stopped) = watch::channel(false);
        let mut running = JoinSet::new();
        for (at, (hop, config)) in hops.into_iter().enumerate() {
            running.spawn(supervise(hop, config, output.clone(), state.clone(), at, stopped.clone()));
        }
        tokio::spawn(state.clone().tick(stopped.clone()));
        if let Some(zipkin) = state.links.zipkin.clone() {
            running.spawn(store::forward::forward(state.store.clone(), zipkin, stopped.clone()));
        }
        // The store outlives the hops, which flush their last spans into it.
        let (stop_store, store_stopped) = watch::channel(false);
        let router = access.guard(state.store.router().merge(page::router(state.clone(), access.clone(), stopped.clone())));
        let serving = server::serve(ServerConfig::plain(store_listener), router, until(store_stopped), Duration::from_secs(1));
        let serving = tokio::spawn(serving);

        let mut shutdown = std::pin::pin!(shutdown);
        let first = async {
            let complete = printer.first_trace(quiet).await;
            if !once {
                if !quiet {
                    printer.print("Every further trace is drawn as it comes in. Ctrl-C ends the demo.\n\n");
                }
                printer.further_traces(arrivals).await;
            }
            complete
        };
        let complete = tokio::select! {
            complete = first => complete,
            _ = &mut shutdown => true,
        };
        let _ = stop.send(true);
        while running.join_next().await.is_some() {}
        if let Some(tracing) = tracing {
            let lost = tracing.finish(Duration::from_secs(1)).await;
            if lost > 0 {
                tracing::warn!(spans = lost, "the collector did not accept the demo's own spans");
            }
        }
        let _ = stop_store.send(true);
        let _ = serving.await;
        let out = printer.out;
        let _ = tokio::task::spawn_blocking(move || out.flush(Duration::from_secs(1))).await;
        complete
    }
}

/// What `serve` suggests is no way out here.
fn taken(error: &BindError, otherwise: &str) -> CommandFailure {
    CommandFailure::Stopped(format!("{}; {otherwise}", error.reason()))
}
