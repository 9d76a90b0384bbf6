//! What the page shows and steers: the hops as they run, and the demo's own caller.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::{Serialize, Serializer};
use tokio::sync::{Notify, watch};

use crate::config::PageArgs;
use crate::demo::control::live::{Figures, Gauge, Passed};
use crate::demo::control::plan::PlanForm;
use crate::demo::control::until;
use crate::demo::store::Store;
use crate::hop::config::HopConfig;
use crate::hop::fault::{FAULTS, Faults, FaultsForm};
use crate::hop::reply::{Headers, Tree, milliseconds};
use crate::net::addresses::reachable;
use crate::net::hosts::redacted_url;
use crate::trace_context::{BREAKS, HeaderFamily};
use crate::traces::ids::{parse_trace_id, zipkin_id};
use crate::traces::{Caller, ExpectedTrace, Failure, Trace, TraceId};
use crate::upstream::FanOut;
use crate::values::Form;

/// How often figures and health are read while a page is open.
const TICK: Duration = Duration::from_secs(1);
/// How long a hop may take to say that it is ready.
const PROBE: Duration = Duration::from_millis(900);
/// How long the demo's own requests may take: longer than the longest chain of timeouts.
const REQUEST: Duration = Duration::from_secs(60);
/// The largest answer that is read.
const MAX_ANSWER: usize = 4 << 20;
/// Answers that are remembered for the view of their headers, and their bytes in all.
const EXCHANGES: usize = 500;
const EXCHANGE_BYTES: usize = 16 << 20;

/// One hop of the demo: who it is, and the handles to it while it runs.
#[derive(Debug)]
pub(crate) struct HopHandle {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) lane: String,
    pub(crate) addr: SocketAddr,
    /// The numbers of the hops that it calls.
    pub(crate) calls: Vec<usize>,
    /// The headers that it loses on purpose.
    pub(crate) drops: Vec<String>,
    pub(crate) gauge: Arc<Gauge>,
    /// Another handle each time the hop is started again.
    faults: Mutex<Faults>,
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
    pub(crate) fn new(addr: SocketAddr, config: &HopConfig, calls: Vec<usize>, gauge: Gauge, faults: Faults) -> Self {
        Self {
            name: config.identity.name.clone(),
            version: config.identity.version.clone(),
            lane: config.identity.lane.clone(),
            addr,
            calls,
            drops: config.drop_headers.iter().map(|name| name.as_str().to_owned()).collect(),
            gauge: Arc::new(gauge),
            faults: Mutex::new(faults),
            running: watch::Sender::new(true),
            health: Mutex::default(),
        }
    }

    /// The handle to the faults of the hop that runs now.
    pub(crate) fn faults(&self) -> Faults {
        lock(&self.faults).clone()
    }

    /// The hop was started again, with another handle.
    pub(crate) fn set_faults(&self, faults: Faults) {
        *lock(&self.faults) = faults;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who had a request sent.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Sender {
    /// The demo, its first one.
    Demo,
    /// Somebody at the page.
    Page,
}

/// One request of the demo's own, as it was sent and as it was answered.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SentRequest {
    sender: Sender,
    pub(crate) url: String,
    /// The headers that were sent, beside those that every client sends.
    sent: Vec<(String, String)>,
    /// Null when there was no answer.
    pub(crate) status: Option<u16>,
    duration_ms: f64,
    /// Why there is no reply.
    pub(crate) error: Option<String>,
    /// The ids in each `traceparent` and `b3` that was sent, as a hop reads them; what no hop would read is not here.
    contexts: BTreeMap<String, Ids>,
    pub(crate) reply: Option<Tree>,
}

/// The ids of a context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Ids {
    trace_id: String,
    span_id: String,
}

/// A request of the demo's own that a hop answered.
#[derive(Debug)]
struct Answered {
    traces: Vec<TraceId>,
    /// How many services are in the reply.
    services: usize,
    failure: Option<Failure>,
    /// The [`SentRequest`].
    json: Bytes,
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
    exchanges: Mutex<VecDeque<Answered>>,
}

/// The chain as the page draws it.
#[derive(Serialize)]
pub(crate) struct Chain<'a> {
    version: &'a str,
    /// Null for a chain.
    fan_out: Option<&'a str>,
    hops: Vec<Hop<'a>>,
    links: &'a Links,
    /// What may be ordered of a hop.
    fault_kinds: &'a [Form],
    break_kinds: &'a [Form],
    /// Why this viewer may not send requests or change faults; null when it may.
    watching_only: Option<&'a str>,
}

#[derive(Serialize)]
struct Hop<'a> {
    name: &'a str,
    version: &'a str,
    lane: &'a str,
    address: SocketAddr,
    calls: &'a [usize],
    drops: &'a [String],
    running: bool,
    plan: PlanForm,
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
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .tls_backend_preconfigured(crate::net::tls::client_config())
            .timeout(REQUEST)
            .build()
            .map_err(|error| error.to_string())?;
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
            exchanges: Mutex::default(),
        })
    }

    /// `watching_only`: why the viewer may change nothing.
    pub(crate) fn chain<'a>(&'a self, watching_only: Option<&'a str>) -> Chain<'a> {
        let configs: Vec<_> = self.hops.iter().map(|hop| hop.faults().config()).collect();
        let hops = self.hops.iter().zip(&configs).map(|(hop, config)| Hop {
            name: &hop.name,
            version: &hop.version,
            lane: &hop.lane,
            address: reachable(hop.addr),
            calls: &hop.calls,
            drops: &hop.drops,
            running: *hop.running.borrow(),
            plan: PlanForm::from(config),
            latency: config.latency.to_string(),
            faults: FaultsForm::from(config),
        });
        let fan_out = self.fan_out.map(|fan_out| match fan_out {
            FanOut::Parallel => "parallel",
            FanOut::Sequential => "sequential",
        });
        Chain {
            version: env!("CARGO_PKG_VERSION"),
            fan_out,
            hops: hops.collect(),
            links: &self.links,
            fault_kinds: &FAULTS,
            break_kinds: &BREAKS,
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
            Ok(answer) => Health::NotReady(answer.status().to_string()),
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

    /// Sends a request to the first hop and remembers what came of it.
    pub(crate) async fn send(&self, sender: Sender, headers: HeaderMap) -> (SentRequest, Bytes) {
        let url = self.front();
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let sent = headers.iter().map(|(name, value): (&HeaderName, _)| (name.as_str().to_owned(), text(value))).collect();
        let begun = Instant::now();
        let request = self.client.get(&url).headers(headers).header(header::ACCEPT, "application/json");
        let mut exchange = SentRequest {
            sender,
            url,
            sent,
            status: None,
            duration_ms: 0.0,
            error: None,
            contexts: BTreeMap::new(),
            reply: None,
        };
        match request.send().await {
            Ok(answer) => {
                exchange.status = Some(answer.status().as_u16());
                match read(answer)
                    .await
                    .and_then(|body| Tree::parse(&body).map_err(|error| format!("the answer is not a reply of a hop: {error}")))
                {
                    Ok(reply) => exchange.reply = Some(reply),
                    Err(error) => exchange.error = Some(error),
                }
            }
            Err(error) => exchange.error = Some(why(&error)),
        }
        exchange.duration_ms = milliseconds(begun.elapsed());
        exchange.contexts = contexts(&exchange);
        let json = Bytes::from(serde_json::to_vec(&exchange).unwrap_or_default());
        if let Some(reply) = &exchange.reply {
            let services = hops_of(reply).map(|hop| &hop.service).collect::<HashSet<_>>().len();
            let mut exchanges = lock(&self.exchanges);
            exchanges.push_back(Answered { traces: trace_ids(reply), services, failure: reply.failure(), json: json.clone() });
            let mut bytes: usize = exchanges.iter().map(|known| known.json.len()).sum();
            while exchanges.len() > EXCHANGES || bytes > EXCHANGE_BYTES {
                bytes -= exchanges.pop_front().map_or(0, |known| known.json.len());
            }
        }
        (exchange, json)
    }

    /// The remembered request that this trace is of, as JSON.
    pub(crate) fn exchange(&self, id: TraceId) -> Option<Bytes> {
        let exchanges = lock(&self.exchanges);
        exchanges.iter().rev().find(|known| known.traces.contains(&id)).map(|known| known.json.clone())
    }

    /// What a trace has to have: the services of the reply where the demo sent the request, all hops where one of them reported;
    /// anything where nobody knows. A page shows whatever is reported: more services than hops are no defect.
    pub(crate) fn expected(&self, trace: &Trace) -> ExpectedTrace {
        let exchanges = lock(&self.exchanges);
        let answered = exchanges.iter().rev().find(|known| known.traces.contains(&trace.id()));
        let is_ours = self.hops.iter().any(|hop| trace.services().iter().any(|name| **name == *hop.name));
        let hops = if is_ours { self.names() } else { Vec::new() };
        let failure = answered.and_then(|known| known.failure.clone());
        let services = answered.map(|known| known.services).or_else(|| is_ours.then_some(hops.len()));
        ExpectedTrace {
            services: services.map(|services| services..=usize::MAX),
            caller: Caller::Unknown,
            hops,
            failure,
            ..ExpectedTrace::default()
        }
    }
}

/// Every hop of a reply, depth first.
fn hops_of(reply: &Tree) -> Box<dyn Iterator<Item = &Tree> + '_> {
    let below = reply.upstreams.iter().filter_map(|call| call.reply.as_deref());
    Box::new(std::iter::once(reply).chain(below.flat_map(hops_of)))
}

/// The contexts in all headers of a request that a page could not read for itself.
fn contexts(exchange: &SentRequest) -> BTreeMap<String, Ids> {
    let sent = exchange.sent.iter().map(|(name, value)| (name.as_str(), value));
    let received = exchange.reply.iter().flat_map(hops_of).flat_map(|hop| {
        let calls = hop.upstreams.iter().map(|call| &call.sent);
        calls
            .chain([&hop.received])
            .flat_map(|headers| headers.0.iter().flat_map(|(name, values)| values.iter().map(|value| (name.as_str(), value))))
    });
    let read = |(name, value): (&str, &String)| {
        let family = match name {
            "traceparent" => HeaderFamily::W3c,
            "b3" => HeaderFamily::B3,
            _ => return None,
        };
        let context = family.read(&Headers(vec![(name.to_owned(), vec![value.clone()])]))?;
        let trace_id = if context.short_trace_id { zipkin_id(context.trace_id) } else { context.trace_id.to_string() };
        Some((value.clone(), Ids { trace_id, span_id: context.span_id.to_string() }))
    };
    sent.chain(received).filter_map(read).collect()
}

/// Every trace id in a reply: one when all hops continued one trace.
pub(crate) fn trace_ids(reply: &Tree) -> Vec<TraceId> {
    let mut known = HashSet::new();
    let ids = hops_of(reply).filter_map(|hop| parse_trace_id(hop.trace_id.as_deref()?).ok());
    ids.filter(|id| known.insert(*id)).collect()
}

/// Why a request of the demo's own failed, without the URL, which whoever reads it knows.
fn why(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".into();
    }
    // The innermost cause is what the system said.
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes.last().map_or_else(String::new, ToString::to_string)
}

async fn read(mut answer: reqwest::Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| why(&error))? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err("the answer is too large to be shown".into());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
