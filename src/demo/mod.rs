//! `httpserver demo`: the whole chain, traced, in one process, with the trace store built in.
//!
//! Every hop is an [`App`] of its own with its own registry and tracer, and reports over HTTP to the [`store`], which speaks
//! the Zipkin v2 API: no span takes a way that another server's could not. The page at the store's port shows all of it;
//! what it shows of requests as they pass and what it changes are handles to the hops, in `panel`.

mod control;
mod page;
pub mod store;
pub mod terminal;

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;

use crate::config::{DemoArgs, caller_exporter};
use crate::hop::app::{App, BindError, Output, listen};
use crate::hop::config::HopConfig;
use crate::hop::fault::FaultConfig;
use crate::hop::reply::{Headers, Tree};
use crate::server::shutdown::{DrainOptions, Stop};
use crate::server::{self, ServerConfig};
use crate::telemetry::access_log::LogFormat;
use crate::telemetry::client_tracing::{ClientTracer, ClientTracing};
use crate::telemetry::export::Exporter;
use crate::telemetry::ids;
use crate::telemetry::line_writer::LineWriter;
use crate::trace_context::{Context, HeaderFamily, Sampling};
use crate::traces::ids::parse_trace_id;
use crate::traces::{Caller, ExpectedTrace, Trace, TraceId, Verdict};
use crate::upstream::Target;
use crate::values::Listen;
use control::live::Gauge;
use control::orders::Access;
use control::panel::{Exchange, Links, Panel, Seat, Sender};
use store::Store;
use terminal::{Style, render, render_rows, render_verdict, sent_headers};

/// How often the hops hand over their spans: a person waits for the picture.
const EXPORT_EVERY: Duration = Duration::from_millis(100);
/// A trace that has been quiet for so long is taken as whole, if not as it should be.
const QUIET: Duration = Duration::from_millis(700);
/// How long the demo's own request and its spans may take.
const FIRST_TRACE: Duration = Duration::from_secs(30);
/// How many traces a second are drawn; a load test must not drown the terminal.
const DRAWN_PER_SECOND: u32 = 4;

/// A demo: every address taken, nothing served yet.
#[derive(Debug)]
pub struct Demo {
    hops: Vec<(App, HopConfig)>,
    panel: Arc<Panel>,
    access: Access,
    output: Output,
    store_listener: tokio::net::TcpListener,
    once: bool,
    quiet: bool,
    style: Style,
    tracing: Option<ClientTracing>,
}

impl Demo {
    /// Takes every address or fails with one line that names the first that cannot be had.
    pub async fn bind(args: DemoArgs, output: &Output) -> Result<Self, Unbound> {
        let count = args.hops;
        let wrong_hop = args.fault.iter().map(|fault| fault.hop).chain(args.drop_header.iter().map(|header| header.hop));
        if let Some(hop) = wrong_hop.into_iter().find(|hop| *hop > count) {
            return Err(Unbound::Usage(format!("there is no service{hop}: the demo has service1 to service{count} (--hops)")));
        }
        let free = args.once || args.port == 0;
        if !free && args.port.checked_add(count - 1).is_none() {
            return Err(Unbound::Usage(format!("invalid value '{}' for --port: {count} hops need ports up to 65535", args.port)));
        }
        let at = |port: u16| Listen { host: Some(args.listen), port };
        let taken = |error: BindError| {
            let error = error.to_string();
            let (reason, _) = error.split_once(';').unwrap_or((&error, ""));
            Unbound::Address(format!("{reason}; --port 0 and --store-port 0 take free ones"))
        };
        let store_listener = listen(at(if args.once { 0 } else { args.store_port })).await.map_err(taken)?;
        let store_addr = store_listener.local_addr().map_err(|error| Unbound::Address(error.to_string()))?;
        let endpoint = format!("http://{}/api/v2/spans", reachable(store_addr));

        // The last hop first: with free ports the one before must be told where it is.
        let mut hops: Vec<(App, HopConfig)> = Vec::new();
        let mut seats = Vec::new();
        let passed = watch::Sender::new(());
        for number in (1..=count).rev() {
            let mut config = HopConfig::new(&format!("service{number}"), at(if free { 0 } else { args.port + number - 1 }));
            let next = match args.fan_out {
                Some(_) if number == 1 => hops.iter().rev().zip(2..).collect(),
                Some(_) => Vec::new(),
                None => hops.last().map(|hop| (hop, number + 1)).into_iter().collect::<Vec<_>>(),
            };
            let calls = next.iter().map(|(_, number)| usize::from(*number)).collect();
            for ((hop, _), number) in next {
                let url = format!("http://{}/service{number}", reachable(hop.addr()));
                config.upstreams.push(url.parse::<Target>().map_err(|error| Unbound::Address(error.to_string()))?);
            }
            config.max_hops = config.max_hops.max(u32::from(count));
            config.fan_out = args.fan_out.unwrap_or_default();
            // A caller waits longer than the hop below it, or the broken hop is hidden.
            config.upstream_timeout = Duration::from_secs(u64::from(count - number) + 2);
            let faults = args.fault.iter().filter(|fault| fault.hop == number).map(|fault| fault.what.clone()).collect();
            config.faults = FaultConfig { latency: args.latency.clone(), faults };
            config.drop_headers =
                args.drop_header.iter().filter(|header| header.hop == number).map(|header| header.what.0.clone()).collect();
            config.exporter = Exporter::Zipkin { endpoint: endpoint.clone() };
            config.schedule_delay = EXPORT_EVERY;
            config.access_log = (args.verbose > 0).then_some(LogFormat::Text);
            config.drain = DrainOptions { delay: Duration::ZERO, ..DrainOptions::default() };
            let hop = App::bind(config.clone(), output).await.map_err(taken)?;
            // A hop that is started again is at the same address.
            config.listen.port = hop.addr().port();
            seats.push(Seat::new(hop.addr(), &config, calls, Gauge::new(passed.clone()), hop.faults()));
            hops.push((hop, config));
        }
        hops.reverse();
        seats.reverse();
        let links = Links { zipkin: args.zipkin, jaeger: args.jaeger };
        let panel = Panel::new(seats, args.fan_out, Store::new(), links, passed).map_err(Unbound::Address)?;
        Ok(Self {
            hops,
            panel: Arc::new(panel),
            access: Access { addr: store_addr, remote: args.allow_remote_control },
            output: output.clone(),
            store_listener,
            once: args.once,
            quiet: args.quiet,
            style: style(),
            tracing: if args.report_spans { start_tracing(&endpoint).map_err(Unbound::Usage)? } else { None },
        })
    }

    /// Serves, draws the trace of a request of its own and then every further one until `shutdown` resolves, with `--once`
    /// only the first. Says whether that first trace was complete.
    pub async fn run(self, shutdown: impl Future<Output = Stop>) -> bool {
        let introduction = self.introduction();
        let Self { hops, panel, access, output, store_listener, once, quiet, style, tracing } = self;
        let tracer = tracing.as_ref().map(ClientTracing::tracer);
        let expected = ExpectedTrace::of_hops(hops.len());
        let screen = Screen { panel: panel.clone(), expected, style, out: output.stdout.clone(), tracer };
        if !quiet {
            screen.print(&introduction);
        }
        let arrivals = panel.store.subscribe();
        let (stop, stopped) = watch::channel(false);
        let mut running = JoinSet::new();
        for (at, (hop, config)) in hops.into_iter().enumerate() {
            running.spawn(keep(hop, config, output.clone(), panel.clone(), at, stopped.clone()));
        }
        tokio::spawn(panel.clone().tick(stopped.clone()));
        if let Some(zipkin) = panel.links.zipkin.clone() {
            running.spawn(store::forward::forward(panel.store.clone(), zipkin, stopped.clone()));
        }
        // The store outlives the hops, which flush their last spans into it.
        let (stop_store, store_stopped) = watch::channel(false);
        let router = panel.store.router().merge(page::router(panel.clone(), access, stopped.clone()));
        let serving = server::serve(ServerConfig::plain(store_listener), router, until(store_stopped), Duration::from_secs(1));
        let serving = tokio::spawn(serving);

        let mut shutdown = std::pin::pin!(shutdown);
        let first = async {
            let complete = screen.first_trace(quiet).await;
            if !once {
                if !quiet {
                    screen.print("Every further trace is drawn as it comes in. Ctrl-C ends the demo.\n\n");
                }
                screen.further_traces(arrivals).await;
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
        let out = screen.out;
        let _ = tokio::task::spawn_blocking(move || out.flush(Duration::from_secs(1))).await;
        complete
    }

    /// Where everything is, and what to paste.
    fn introduction(&self) -> String {
        use std::fmt::Write as _;
        let seats = &self.panel.seats;
        let front = reachable(seats[0].addr);
        let store = reachable(self.access.addr);
        let mut text = String::new();
        let arrow = if self.style.unicode { "──▶" } else { "-->" };
        let names: Vec<_> = seats.iter().map(|seat| seat.name.clone()).collect();
        let _ = match (self.panel.fan_out, names.split_first()) {
            (Some(_), Some((first, others))) => writeln!(text, "you {arrow} {first} {arrow} {}", others.join(", ")),
            _ => writeln!(text, "you {arrow} {}", names.join(&format!(" {arrow} "))),
        };
        text.push('\n');
        for seat in seats {
            let _ = writeln!(text, "  {:<10} http://{}", seat.name, reachable(seat.addr));
        }
        let _ = writeln!(text, "  {:<10} http://{store}/api/v2/spans  (Zipkin v2 API: anything may report to it)", "traces");
        let _ = writeln!(text, "  {:<10} http://{store}/  (open it in a browser and watch)", "page");
        let _ = writeln!(text, "\nTry it:\n\n  curl http://{front}/service1\n");
        let _ = writeln!(text, "  curl -H 'b3: 463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1' http://{front}/service1\n");
        text
    }
}

/// Why a demo did not start.
#[derive(Debug)]
pub enum Unbound {
    /// A flag asks for what cannot be.
    Usage(String),
    /// An address cannot be had.
    Address(String),
}

async fn until(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Runs a hop, and runs it again whenever it was stopped from the page and is wanted again.
async fn keep(mut hop: App, mut config: HopConfig, output: Output, panel: Arc<Panel>, at: usize, stopped: watch::Receiver<bool>) {
    let seat = &panel.seats[at];
    let mut wanted = seat.running.subscribe();
    loop {
        hop.watch(seat.gauge.clone());
        let mut unwanted = wanted.clone();
        let stop = until(stopped.clone());
        let end = async move {
            tokio::select! {
                () = stop => {}
                _ = unwanted.wait_for(|wanted| !wanted) => {}
            }
            Stop::Now
        };
        hop.run(end).await;
        hop = loop {
            tokio::select! {
                () = until(stopped.clone()) => return,
                _ = wanted.wait_for(|wanted| *wanted) => {}
            }
            // As it was left, whatever was changed while it was stopped.
            config.faults = seat.faults().config();
            match App::bind(config.clone(), &output).await {
                Ok(again) => break again,
                Err(error) => {
                    tracing::warn!(hop = seat.name, %error, "the hop cannot be started again");
                    seat.running.send_replace(false);
                    panel.altered.send_replace(());
                }
            }
        };
        seat.set_faults(hop.faults());
        panel.altered.send_replace(());
    }
}

/// The demo's own spans go to its store, unless `OTEL_TRACES_EXPORTER` says otherwise.
fn start_tracing(store: &str) -> Result<Option<ClientTracing>, String> {
    let default = Exporter::Zipkin { endpoint: store.to_owned() };
    let exporter = caller_exporter(&|name| std::env::var(name).ok(), Some(default)).map_err(|error| error.to_string())?;
    ClientTracing::start(exporter).map_err(|error| format!("--report-spans: {error}"))
}

/// An address that can be called: what listens on every address is called on loopback.
fn reachable(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), addr.port()),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), addr.port()),
        _ => addr,
    }
}

/// As wide as the terminal, coloured on a terminal unless `NO_COLOR` says no, ASCII where nothing says UTF-8.
fn style() -> Style {
    let terminal = std::io::stdout().is_terminal();
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
    let utf8 = locale.map(|locale| locale.to_ascii_lowercase().replace('-', "").contains("utf8"));
    let width = if terminal { terminal_size::terminal_size().map(|(width, _)| usize::from(width.0)) } else { None };
    Style {
        width: width.unwrap_or(100),
        colour: terminal && set("NO_COLOR").is_none() && std::env::var("TERM").is_ok_and(|term| term != "dumb"),
        // A terminal that says nothing (in a container, mostly) is a modern one.
        unicode: utf8.unwrap_or(terminal),
    }
}

/// What a person sees of the traces.
struct Screen {
    panel: Arc<Panel>,
    expected: ExpectedTrace,
    style: Style,
    out: LineWriter,
    /// Reports the demo's own request.
    tracer: Option<ClientTracer>,
}

impl Screen {
    fn print(&self, text: &str) {
        self.out.line(|out| out.extend_from_slice(text.as_bytes()));
    }

    /// Sends the demo's own request, and says what has to arrive. With `--report-spans` it begins the trace.
    async fn first_request(&self) -> (Exchange, ExpectedTrace) {
        let Some(tracer) = &self.tracer else {
            return (self.panel.send(Sender::Demo, http::HeaderMap::new()).await.0, self.expected.clone());
        };
        let (trace_id, span_id) = (ids::trace_id(), ids::span_id());
        let context = Context { trace_id, short_trace_id: false, span_id, parent_id: None, sampling: Sampling::Sample };
        let headers = HeaderFamily::ALL.into_iter().flat_map(|family| family.write(&context)).collect();
        let span = tracer.begin(&context, &self.panel.front());
        let (exchange, _) = self.panel.send(Sender::Demo, headers).await;
        match exchange.status {
            Some(status) => span.answered(status),
            None => span.failed("no_answer"),
        }
        (exchange, ExpectedTrace { caller: Caller::Known(vec![span_id]), ..self.expected.clone() })
    }

    /// Sends one request and draws what it left behind.
    async fn first_trace(&self, quiet: bool) -> bool {
        let (exchange, expected) = self.first_request().await;
        let url = exchange.url;
        let Some(reply) = exchange.reply else {
            self.print(&format!("{url}: {}\n", exchange.error.unwrap_or_default()));
            return false;
        };
        if !quiet {
            self.print(&format!("$ curl {url}\n{}\n", reply.to_text()));
        }
        let ids = trace_ids(&reply);
        let deadline = Instant::now() + FIRST_TRACE;
        let load = || -> Vec<Trace> { ids.iter().filter_map(|id| self.panel.store.tree(*id)).collect() };
        let mut arrivals = self.panel.store.subscribe();
        let mut traces = load();
        while !Verdict::of(&traces, &expected).whole && Instant::now() < deadline {
            // A trace that is not what it should be is drawn once nothing more comes for it.
            match tokio::time::timeout(QUIET, arrivals.recv()).await {
                Err(_) if !traces.is_empty() => break,
                _ => traces = load(),
            }
        }
        let verdict = Verdict::of(&traces, &expected);
        for trace in &traces {
            self.print(&format!("{}\n", render(trace, &sent_headers(trace, &reply), &self.style)));
        }
        self.print(&render_verdict(&verdict, &self.style));
        for seam in seams(&reply) {
            self.print(&format!("  - {seam}\n"));
        }
        self.print("\n");
        verdict.whole
    }

    /// Draws every trace that comes in, when it is as it should be or when it has been quiet for a while.
    async fn further_traces(&self, mut arrivals: broadcast::Receiver<TraceId>) {
        let mut drawn: HashMap<TraceId, usize> = self.panel.store.trace_ids().into_iter().map(|id| (id, 0)).collect();
        let mut waiting: HashMap<TraceId, Instant> = HashMap::new();
        let mut second = (Instant::now(), 0);
        let mut skipped = 0_usize;
        loop {
            let next = waiting.values().min().copied();
            let quiet = async {
                match next {
                    Some(at) => tokio::time::sleep_until((at + QUIET).into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                arrived = arrivals.recv() => match arrived {
                    Ok(id) if drawn.contains_key(&id) => {}
                    Ok(id) => { waiting.insert(id, Instant::now()); }
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                () = quiet => {}
            }
            let now = Instant::now();
            if now.duration_since(second.0) >= Duration::from_secs(1) {
                second = (now, 0);
                if skipped > 0 {
                    self.print(&format!("({skipped} further traces came in too fast to draw; the store has the latest)\n\n"));
                    skipped = 0;
                }
            }
            let ids: Vec<_> = waiting.iter().map(|(id, at)| (*id, *at)).collect();
            for (id, at) in ids {
                let Some(trace) = self.panel.store.tree(id) else {
                    waiting.remove(&id);
                    continue;
                };
                let verdict = Verdict::of(std::slice::from_ref(&trace), &self.expected);
                if !verdict.whole && now.duration_since(at) < QUIET {
                    continue;
                }
                waiting.remove(&id);
                drawn.insert(id, trace.rows().len());
                if second.1 >= DRAWN_PER_SECOND {
                    skipped += 1;
                    continue;
                }
                second.1 += 1;
                self.print(&format!("{}\n", render_rows(&trace, &self.style)));
            }
            if drawn.len() > 4 * store::Limits::default().traces {
                let known: std::collections::HashSet<_> = self.panel.store.trace_ids().into_iter().collect();
                drawn.retain(|id, _| known.contains(id));
            }
        }
    }
}

/// Where the trace broke: a sentence for each call whose two ends are in different traces.
fn seams(reply: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for call in &reply.upstreams {
        let Some(below) = &call.reply else { continue };
        if below.trace_id != reply.trace_id {
            let (caller, callee) = (&reply.service, &below.service);
            let names = |families: &[HeaderFamily]| families.iter().map(|family| family.header()).collect::<Vec<_>>().join(", ");
            let valid =
                |headers: &Headers| HeaderFamily::read_all(headers).into_iter().map(|(family, _)| family).collect::<Vec<_>>();
            let (sent, received) = (valid(&call.sent), valid(&below.received));
            found.push(if sent.is_empty() {
                format!("It broke between {caller} and {callee}: {caller} sent none of {}.", names(&HeaderFamily::ALL))
            } else if received.is_empty() {
                let got =
                    if sent.iter().any(|family| family.is_present(&below.received)) { "got it invalid" } else { "never got it" };
                format!("It broke between {caller} and {callee}: {caller} sent {}, {callee} {got}.", names(&sent))
            } else {
                format!("It broke at {callee}: it received {} and did not continue that trace.", names(&received))
            });
        }
        found.extend(seams(below));
    }
    found
}

/// Every trace id in a reply: one when all hops continued one trace.
fn trace_ids(reply: &Tree) -> Vec<TraceId> {
    fn collect(reply: &Tree, ids: &mut Vec<TraceId>) {
        if let Some(id) = reply.trace_id.as_deref().and_then(|id| parse_trace_id(id).ok())
            && !ids.contains(&id)
        {
            ids.push(id);
        }
        for below in reply.upstreams.iter().filter_map(|call| call.reply.as_ref()) {
            collect(below, ids);
        }
    }
    let mut ids = Vec::new();
    collect(reply, &mut ids);
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hop_is_not_blamed_for_a_context_that_it_never_got_or_got_invalid() {
        const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let hop = |service: &str, trace: &str, received: serde_json::Value, upstreams: serde_json::Value| {
            serde_json::json!({"service": service, "version": "v1", "lane": "base", "hostname": "h", "message": "", "path": "/",
                "status": 200, "started_at": "2026-01-02T03:04:05.678901Z", "duration_ms": 1.0, "request_id": "r",
                "trace_id": trace, "span_id": null, "parent_span_id": null, "sampled": true, "propagation": "continue",
                "received": received, "client": {"ip": "127.0.0.1", "identity": null}, "attempt": 1, "injected": null,
                "upstreams": upstreams})
        };
        let said = |sent: serde_json::Value, received: serde_json::Value| {
            let below = hop("service2", "11111111111111111111111111111111", received, serde_json::json!([]));
            let calls = serde_json::json!([{"url": "http://service2", "status": 200, "duration_ms": 1.0, "error": null,
                "sent": sent, "reply": below}]);
            let front = hop("service1", "4bf92f3577b34da6a3ce929d0e0e4736", serde_json::json!({}), calls);
            seams(&Tree::parse(front.to_string().as_bytes()).unwrap()).remove(0)
        };
        let w3c = |value: &str| serde_json::json!({"traceparent": [value]});
        let none = serde_json::json!({});
        assert!(said(none.clone(), none.clone()).contains("service1 sent none of"));
        assert!(said(w3c(VALID), none).ends_with("service1 sent traceparent, service2 never got it."));
        let invalid = said(w3c(VALID), w3c(&format!("{VALID}-extra")));
        assert!(invalid.ends_with("service1 sent traceparent, service2 got it invalid."), "{invalid}");
        assert!(said(w3c(VALID), w3c(VALID)).starts_with("It broke at service2"));
    }
}
