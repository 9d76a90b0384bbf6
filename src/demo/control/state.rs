//! What the page shows and steers: the hops as they run, and the demo's own caller.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::{Serialize, Serializer};
use tokio::sync::{Notify, watch};

use crate::config::PageArgs;
use crate::demo::control::exchanges::{Exchanges, RecordedExchange, RequestSender};
use crate::demo::control::live::{Figures, Gauge, Passed};
use crate::demo::control::seams::seams;
use crate::demo::control::until;
use crate::demo::store::Store;
use crate::hop::app::App;
use crate::hop::config::HopConfig;
use crate::hop::fault::{FAULTS, Fault, FaultKind, Faults, FaultsForm, Injection};
use crate::hop::latency::Latency;
use crate::hop::reply::{Tree, milliseconds};
use crate::hop::request_faults::AddressedFault;
use crate::net::addresses::reachable;
use crate::net::client::{builder, read_bounded};
use crate::net::hosts::redacted_url;
use crate::net::tls::client_config;
use crate::server::shutdown::Phase;
use crate::text::root_cause;
use crate::trace_context::{BREAKS, Dropped, carried_names};
use crate::traces::ids::{parse_span_id, parse_trace_id};
use crate::traces::{Caller, ExpectedTrace, Kind, Span, SpanId, Trace, TraceId};
use crate::upstream::FanOut;
use crate::upstream::outcome::CallError;
use crate::values::Form;

/// How often figures and health are read while a page is open.
const TICK: Duration = Duration::from_secs(1);
/// How long a hop may take to say that it is ready.
const PROBE: Duration = Duration::from_millis(900);
/// How long the demo's own requests may take: longer than the longest chain of timeouts.
const REQUEST: Duration = Duration::from_secs(60);
/// The largest answer that is read.
const MAX_ANSWER: usize = 4 << 20;
/// One hop of the demo: who it is, and the handles to it while it runs.
#[derive(Debug)]
pub(crate) struct HopHandle {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) lane: String,
    pub(crate) addr: SocketAddr,
    /// The numbers of the hops that it calls.
    pub(crate) calls: Vec<usize>,
    pub(crate) gauge: Arc<Gauge>,
    /// Other handles each time the hop is started again.
    handles: Mutex<(Faults, Dropped, Phase)>,
    /// Whether the hop is to run.
    pub(crate) running: watch::Sender<bool>,
    health: Mutex<Health>,
}

/// What a hop said when it was asked whether it is ready.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "why")]
enum Health {
    /// Not asked yet.
    #[default]
    Unknown,
    Ready,
    /// It answered, but not with 200.
    NotReady(String),
    NoAnswer(String),
}

impl HopHandle {
    pub(crate) fn new(app: &App, config: &HopConfig, calls: Vec<usize>, gauge: Gauge) -> Self {
        Self {
            name: config.identity.name.clone(),
            version: config.identity.version.clone(),
            lane: config.identity.lane.clone(),
            addr: app.addr(),
            calls,
            gauge: Arc::new(gauge),
            handles: Mutex::new((app.faults(), app.dropped(), app.phase())),
            running: watch::Sender::new(true),
            health: Mutex::default(),
        }
    }

    /// The handle to the faults of the hop that runs now.
    pub(crate) fn faults(&self) -> Faults {
        lock(&self.handles).0.clone()
    }

    /// The handle to the headers that the hop that runs now loses on purpose.
    pub(crate) fn dropped(&self) -> Dropped {
        lock(&self.handles).1.clone()
    }

    /// Whether the hop is ready, as it says itself, and the handle with which that is ordered.
    pub(crate) fn phase(&self) -> Phase {
        lock(&self.handles).2.clone()
    }

    /// The hop was started again.
    pub(crate) fn restarted(&self, app: &App) {
        *lock(&self.handles) = (app.faults(), app.dropped(), app.phase());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What came of a request of the demo's own.
#[derive(Debug)]
pub(crate) struct SentRequest {
    pub(crate) url: String,
    /// `None` when there was no answer.
    pub(crate) status: Option<u16>,
    /// Why there is no reply.
    pub(crate) error: Option<String>,
    pub(crate) reply: Option<Tree>,
    /// What the page is given.
    pub(crate) json: Bytes,
}

/// Web pages of others that can show a trace too.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Links {
    #[serde(serialize_with = "shown")]
    pub(crate) zipkin: Option<String>,
    #[serde(serialize_with = "shown")]
    pub(crate) jaeger: Option<String>,
}

impl From<&PageArgs> for Links {
    fn from(args: &PageArgs) -> Self {
        Self { zipkin: args.zipkin.clone(), jaeger: args.jaeger.clone() }
    }
}

/// Without the user and the password, which are for what the store sends.
fn shown<S: Serializer>(url: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    url.as_deref().map(redacted_url).serialize(serializer)
}

/// Everything that the page can see and do.
#[derive(Debug)]
pub(crate) struct DemoState {
    pub(crate) hops: Vec<HopHandle>,
    pub(crate) fan_out: Option<FanOut>,
    pub(crate) store: Store,
    pub(crate) links: Links,
    /// Notified when a request begins or ends at a hop.
    pub(crate) passed: watch::Sender<()>,
    /// Notified when faults are changed or a hop is started or stopped.
    pub(crate) altered: watch::Sender<()>,
    /// Notified when there are new figures.
    pub(crate) ticked: watch::Sender<Vec<Ticked>>,
    /// Asks for new figures at once.
    pub(crate) prompt: Notify,
    client: reqwest::Client,
    pub(crate) exchanges: Arc<Exchanges>,
}

/// The chain as the page draws it.
#[derive(Serialize)]
pub(crate) struct Chain<'a> {
    version: &'a str,
    /// Null for a chain.
    fan_out: Option<String>,
    hops: Vec<HopSnapshot<'a>>,
    links: &'a Links,
    /// What may be ordered of a hop.
    fault_kinds: &'a [Form],
    break_kinds: &'a [Form],
    /// The headers that a hop may be ordered to lose.
    carried: Vec<&'static str>,
    /// Why this viewer may not send requests or change faults; null when it may.
    watching_only: Option<&'a str>,
}

#[derive(Serialize)]
struct HopSnapshot<'a> {
    name: &'a str,
    version: &'a str,
    lane: &'a str,
    address: SocketAddr,
    calls: &'a [usize],
    drops: Vec<String>,
    running: bool,
    /// Not ordered to be not ready.
    ready: bool,
    /// From and to, uniform between them; null for a curve of percentiles, which the page leaves as it is.
    latency_ms: Option<[f64; 2]>,
    /// The latency, and every fault and break, as options have them.
    latency: String,
    #[serde(flatten)]
    faults: FaultsForm,
}

/// Health and figures of one hop.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Ticked {
    health: Health,
    #[serde(flatten)]
    figures: Figures,
}

impl DemoState {
    pub(crate) fn new(
        hops: Vec<HopHandle>,
        fan_out: Option<FanOut>,
        store: Store,
        links: Links,
        passed: watch::Sender<()>,
    ) -> Result<Self, String> {
        let client = builder(client_config()).timeout(REQUEST).build().map_err(|error| error.to_string())?;
        Ok(Self {
            hops,
            fan_out,
            store,
            links,
            passed,
            altered: watch::Sender::new(()),
            ticked: watch::Sender::default(),
            prompt: Notify::new(),
            client,
            exchanges: Arc::default(),
        })
    }

    /// `watching_only`: why the viewer may change nothing.
    pub(crate) fn chain<'a>(&'a self, watching_only: Option<&'a str>) -> Chain<'a> {
        let configs: Vec<_> = self.hops.iter().map(|hop| hop.faults().config()).collect();
        let hops = self.hops.iter().zip(&configs).map(|(hop, config)| HopSnapshot {
            name: &hop.name,
            version: &hop.version,
            lane: &hop.lane,
            address: reachable(hop.addr),
            calls: &hop.calls,
            drops: hop.dropped().names().iter().map(|name| name.as_str().to_owned()).collect(),
            running: *hop.running.borrow(),
            ready: hop.phase().readiness() != Err("not ready by order"),
            latency_ms: range_ms(&config.latency),
            latency: config.latency.to_string(),
            faults: FaultsForm::from(config),
        });
        let fan_out = self.fan_out.map(|fan_out| fan_out.to_string());
        Chain {
            version: env!("CARGO_PKG_VERSION"),
            fan_out,
            hops: hops.collect(),
            links: &self.links,
            fault_kinds: &FAULTS,
            break_kinds: &BREAKS,
            carried: carried_names().collect(),
            watching_only,
        }
    }

    /// The counters of each hop.
    pub(crate) fn passed(&self) -> Vec<Passed> {
        self.hops.iter().map(|hop| hop.gauge.passed()).collect()
    }

    /// Reads figures and health once a second while a page is open, until `stopped`.
    pub(crate) async fn tick(self: Arc<Self>, stopped: watch::Receiver<bool>) {
        let mut turns = tokio::time::interval(TICK);
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stopped = std::pin::pin!(until(stopped));
        loop {
            tokio::select! {
                () = &mut stopped => return,
                _ = turns.tick() => {}
                () = self.prompt.notified() => {}
            }
            if self.ticked.receiver_count() == 0 {
                continue;
            }
            join_all(self.hops.iter().map(|hop| self.probe(hop))).await;
            let now = |hop: &HopHandle| Ticked { health: lock(&hop.health).clone(), figures: hop.gauge.figures() };
            let ticked = self.hops.iter().map(now).collect();
            self.ticked.send_replace(ticked);
        }
    }

    async fn probe(&self, hop: &HopHandle) {
        let url = format!("http://{}/readyz", reachable(hop.addr));
        let health = match self.client.get(url).timeout(PROBE).send().await {
            Ok(answer) if answer.status() == http::StatusCode::OK => Health::Ready,
            Ok(answer) => Health::NotReady(String::from_utf8_lossy(&read(answer).await.unwrap_or_default()).trim().to_owned()),
            Err(error) => Health::NoAnswer(why(&error)),
        };
        *lock(&hop.health) = health;
    }

    /// The names of the hops.
    pub(crate) fn names(&self) -> Vec<Box<str>> {
        self.hops.iter().map(|hop| hop.name.as_str().into()).collect()
    }

    /// The URL of the first hop.
    pub(crate) fn front(&self) -> String {
        format!("http://{}/service1", reachable(self.hops[0].addr))
    }

    /// Sends a request to the first hop and keeps it.
    pub(crate) async fn send(&self, sender: RequestSender, headers: HeaderMap) -> SentRequest {
        let url = self.front();
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let sent = headers.iter().map(|(name, value): (&HeaderName, _)| (name.as_str().to_owned(), text(value))).collect();
        let begun = Instant::now();
        let request = self.client.get(&url).headers(headers).header(header::ACCEPT, "application/json");
        let mut exchange = RecordedExchange {
            sender,
            service: self.hops[0].name.clone(),
            method: "GET".to_owned(),
            url,
            sent,
            received: Vec::new(),
            status: None,
            duration: Duration::ZERO,
            error: None,
            trace_id: None,
            span_id: None,
            body: Bytes::new(),
            is_cut: false,
            reply: Bytes::new(),
        };
        let mut reply = None;
        match request.send().await {
            Ok(answer) => {
                exchange.status = Some(answer.status().as_u16());
                (exchange.trace_id, exchange.span_id) = answering_span(&answer).unzip();
                match read(answer).await {
                    Ok(body) => {
                        exchange.body = body;
                        match Tree::parse(&exchange.body) {
                            Ok(tree) => {
                                reply = Some(tree);
                                exchange.reply = exchange.body.clone();
                            }
                            Err(error) => exchange.error = Some(format!("the answer is not a reply of a hop: {error}")),
                        }
                    }
                    Err(error) => exchange.error = Some(error),
                }
            }
            Err(error) => exchange.error = Some(why(&error)),
        }
        exchange.duration = begun.elapsed();
        let (url, status, error, json) = (exchange.url.clone(), exchange.status, exchange.error.clone(), exchange.to_json());
        if exchange.status.is_some() {
            self.exchanges.record(exchange);
        }
        SentRequest { url, status, error, reply, json }
    }

    /// The kept request that this trace is of, as JSON; with `first`, the one whose first hop made that span.
    pub(crate) fn exchange(&self, id: TraceId, first: Option<SpanId>) -> Option<Bytes> {
        Some(self.exchanges.of(id, first)?.to_json())
    }

    /// What a trace has to have: the services of the reply where the request is kept, the hops of the chain where it passed the
    /// first of them; anything where nobody knows. A page shows whatever is reported: more services than hops are no defect.
    pub(crate) fn expected(&self, trace: &Trace, first: Option<SpanId>) -> ExpectedTrace {
        let kept = self.exchanges.of(trace.id(), first);
        let reply = kept.as_ref().and_then(|kept| kept.tree());
        let is_chain = kept.as_ref().map_or_else(|| self.is_of_chain(trace), |kept| !kept.reply.is_empty());
        let entry = kept.as_ref().and_then(|kept| self.hops.iter().position(|hop| hop.name == kept.service));
        let hops = if is_chain { self.reached_from(entry.unwrap_or(0)) } else { Vec::new() };
        let services = match &reply {
            Some(reply) => Some(reply.hops("").map(|(hop, _)| &hop.service).collect::<HashSet<_>>().len()),
            None => is_chain.then_some(hops.len()),
        };
        ExpectedTrace {
            services: services.map(|services| services..=usize::MAX),
            caller: Caller::Unknown,
            hops,
            ..reply.map(|reply| self.expected_by(&reply)).unwrap_or_default()
        }
    }

    /// What a reply says of its traces.
    pub(crate) fn expected_by(&self, reply: &Tree) -> ExpectedTrace {
        let seams = seams(reply);
        let mut failure = reply.failure();
        // A hop that hangs reports a caller that hung up.
        failure
            .iter_mut()
            .for_each(|failure| failure.mark(|hop, why| CallError::kind_of(why) == Some("timeout") && self.hangs(hop, reply)));
        ExpectedTrace {
            failure,
            sampling_ends: seams.iter().any(|seam| seam.ends_sampling),
            breaks: seams.into_iter().filter(|seam| seam.broken || seam.ends_sampling).map(|seam| seam.text).collect(),
            ..ExpectedTrace::default()
        }
    }

    /// Whether a hop was ordered to hang, by its configuration or by the request.
    fn hangs(&self, name: &str, reply: &Tree) -> bool {
        let is_hang = |fault: &Fault| fault.kind == FaultKind::Hang;
        let orders = reply.received.get("x-fault").iter().flat_map(|orders| orders.split(';'));
        let orders = orders.filter_map(|order| order.trim().parse::<AddressedFault>().ok());
        let mut for_hop = orders.filter(|order| order.hop().is_none_or(|hop| hop == name));
        let hop = self.hops.iter().find(|hop| hop.name == name);
        hop.is_some_and(|hop| hop.faults().config().faults.iter().any(is_hang))
            || for_hop.any(|order| matches!(&order.what, Injection::Fault(fault) if is_hang(fault)))
    }

    /// Whether the first hop took part with an endpoint that calls the others.
    fn is_of_chain(&self, trace: &Trace) -> bool {
        let front = self.hops.first().map(|hop| hop.name.as_str());
        let calls = |span: &Span| span.tag("http.route").is_none_or(|route| route.ends_with("/service{n}"));
        trace
            .rows()
            .iter()
            .any(|row| front.is_some() && row.span.service() == front && row.span.kind == Some(Kind::Server) && calls(&row.span))
    }

    /// The names of a hop and of all that it calls, directly or not.
    fn reached_from(&self, entry: usize) -> Vec<Box<str>> {
        let mut order = vec![entry];
        let mut at = 0;
        while let Some(hop) = order.get(at).and_then(|hop| self.hops.get(*hop)) {
            let next: Vec<_> = hop.calls.iter().map(|number| number - 1).filter(|next| !order.contains(next)).collect();
            order.extend(next);
            at += 1;
        }
        order.into_iter().filter_map(|hop| Some(self.hops.get(hop)?.name.as_str().into())).collect()
    }
}

fn range_ms(latency: &Latency) -> Option<[f64; 2]> {
    match latency {
        Latency::None => Some([0.0, 0.0]),
        Latency::Fixed(delay) => Some([milliseconds(*delay); 2]),
        Latency::Uniform(low, high) => Some([milliseconds(*low), milliseconds(*high)]),
        Latency::Quantiles(_) => None,
    }
}

/// The trace and the span that an answer names as its own.
fn answering_span(answer: &reqwest::Response) -> Option<(TraceId, SpanId)> {
    let value = answer.headers().get("traceresponse")?.to_str().ok()?;
    let mut parts = value.split('-').skip(1);
    Some((parse_trace_id(parts.next()?).ok()?, parse_span_id(parts.next()?).ok()?))
}

/// Every trace id in a reply: one when all hops continued one trace.
pub(crate) fn trace_ids(reply: &Tree) -> Vec<TraceId> {
    let mut known = HashSet::new();
    let ids = reply.hops("").filter_map(|(hop, _)| parse_trace_id(hop.trace_id.as_deref()?).ok());
    ids.filter(|id| known.insert(*id)).collect()
}

/// Why a request of the demo's own failed, without the URL, which whoever reads it knows.
fn why(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".into();
    }
    root_cause(error)
}

async fn read(mut answer: reqwest::Response) -> Result<Bytes, String> {
    let body = read_bounded(&mut answer, MAX_ANSWER).await.map_err(|error| why(&error))?;
    body.ok_or_else(|| "the answer is too large to be shown".into())
}
