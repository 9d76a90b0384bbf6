//! What the page shows and steers: the hops as they run, and the demo's own caller.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use crate::demo::control::live::{Figures, Gauge, Passed};
use crate::demo::store::Store;
use crate::demo::{reachable, trace_ids, until};
use crate::hop::fault::{Fault, FaultConfig, FaultKind, Faults, Latency};
use crate::hop::reply::{Tree, milliseconds};
use crate::traces::TraceId;
use crate::upstream::FanOut;

/// How often figures and health are looked at while somebody watches.
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
/// The longest latency and delay that can be set from the page.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(60);

/// One hop of the demo: who it is, and the handles to it while it runs.
#[derive(Debug)]
pub(crate) struct Seat {
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

impl Seat {
    pub(crate) fn new(
        addr: SocketAddr,
        config: &crate::hop::config::HopConfig,
        calls: Vec<usize>,
        gauge: Gauge,
        faults: Faults,
    ) -> Self {
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

/// Latency and faults as the page reads and writes them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlanForm {
    /// From and to, milliseconds, uniform between them; null for a curve of percentiles, which the page leaves as it is.
    latency_ms: Option<[f64; 2]>,
    faults: Vec<FaultForm>,
}

/// One fault; `percent` of the requests get it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum FaultForm {
    Abort { status: u16, percent: f64 },
    Delay { ms: f64, percent: f64 },
}

impl From<&FaultConfig> for PlanForm {
    fn from(plan: &FaultConfig) -> Self {
        let latency_ms = match plan.latency {
            Latency::None => Some([0.0, 0.0]),
            Latency::Fixed(delay) => Some([milliseconds(delay); 2]),
            Latency::Uniform(low, high) => Some([milliseconds(low), milliseconds(high)]),
            Latency::Quantiles(_) => None,
        };
        let faults = plan.faults.iter().map(|fault| {
            // Shares are halves, tenths and the like: what was 7 % must not come back as 7.000000000000001.
            let percent = (fault.share * 1e8).round() / 1e6;
            match fault.kind {
                FaultKind::Abort(status) => FaultForm::Abort { status: status.as_u16(), percent },
                FaultKind::Delay(delay) => FaultForm::Delay { ms: milliseconds(delay), percent },
            }
        });
        Self { latency_ms, faults: faults.collect() }
    }
}

impl PlanForm {
    /// The plan that this describes, in place of `now`. Errors: what cannot be.
    pub(crate) fn plan(&self, now: &FaultConfig) -> Result<FaultConfig, String> {
        const MAX_FAULTS: usize = 8;
        let delay = |ms: f64| {
            let delay = Duration::try_from_secs_f64(ms / 1e3).ok().filter(|delay| *delay <= MAX_DELAY);
            delay.ok_or_else(|| format!("a delay of {ms} ms is not from 0 to {} ms", MAX_DELAY.as_millis()))
        };
        let latency = match self.latency_ms {
            None => now.latency.clone(),
            Some([low, high]) => match (delay(low)?, delay(high)?) {
                (low, high) if low > high => return Err("the lower latency is above the upper".into()),
                (_, Duration::ZERO) => Latency::None,
                (low, high) if low == high => Latency::Fixed(low),
                (low, high) => Latency::Uniform(low, high),
            },
        };
        if self.faults.len() > MAX_FAULTS {
            return Err(format!("a hop takes up to {MAX_FAULTS} faults from here"));
        }
        let fault = |form: &FaultForm| {
            let (FaultForm::Abort { percent, .. } | FaultForm::Delay { percent, .. }) = *form;
            if !(0.0..=100.0).contains(&percent) {
                return Err(format!("a rate of {percent} % is not from 0 to 100"));
            }
            let kind = match *form {
                FaultForm::Abort { status, .. } => {
                    let code = Some(status).filter(|status| (400..=599).contains(status));
                    let code = code.and_then(|status| http::StatusCode::from_u16(status).ok());
                    FaultKind::Abort(code.ok_or_else(|| format!("the status {status} is not from 400 to 599"))?)
                }
                FaultForm::Delay { ms, .. } => FaultKind::Delay(delay(ms)?),
            };
            Ok(Fault { kind, share: percent / 100.0 })
        };
        Ok(FaultConfig { latency, faults: self.faults.iter().map(fault).collect::<Result<_, _>>()? })
    }
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
pub(crate) struct Exchange {
    sender: Sender,
    pub(crate) url: String,
    /// The headers that were sent, beside those that every client sends.
    sent: Vec<(String, String)>,
    /// Null when there was no answer.
    pub(crate) status: Option<u16>,
    duration_ms: f64,
    /// Why there is no reply.
    pub(crate) error: Option<String>,
    pub(crate) reply: Option<Tree>,
}

/// Web pages of others that can show a trace too.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Links {
    pub(crate) zipkin: Option<String>,
    pub(crate) jaeger: Option<String>,
}

/// Everything that the page can see and do.
#[derive(Debug)]
pub(crate) struct Panel {
    pub(crate) seats: Vec<Seat>,
    pub(crate) fan_out: Option<FanOut>,
    pub(crate) store: Store,
    pub(crate) links: Links,
    /// Told when a request begins or ends at a hop.
    pub(crate) passed: watch::Sender<()>,
    /// Told when a plan is changed or a hop is started or stopped.
    pub(crate) altered: watch::Sender<()>,
    /// Told when there are new figures.
    pub(crate) ticked: watch::Sender<Bytes>,
    /// Asks for new figures at once.
    pub(crate) prompt: Notify,
    client: reqwest::Client,
    exchanges: Mutex<VecDeque<(Vec<TraceId>, Bytes)>>,
}

/// The chain as the page draws it.
#[derive(Serialize)]
struct Chain<'a> {
    version: &'a str,
    /// Null for a chain.
    fan_out: Option<&'a str>,
    hops: Vec<Hop<'a>>,
    links: &'a Links,
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
}

#[derive(Serialize)]
struct Ticked {
    health: Health,
    #[serde(flatten)]
    figures: Figures,
}

impl Panel {
    pub(crate) fn new(
        seats: Vec<Seat>,
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
            seats,
            fan_out,
            store,
            links,
            passed,
            altered: watch::Sender::new(()),
            ticked: watch::Sender::new(Bytes::new()),
            prompt: Notify::new(),
            client,
            exchanges: Mutex::default(),
        })
    }

    /// The chain as JSON. `watching_only` says why whoever asks may change nothing.
    pub(crate) fn chain(&self, watching_only: Option<&str>) -> Vec<u8> {
        let hop = |seat: &'_ Seat| (PlanForm::from(&seat.faults().config()), *seat.running.borrow());
        let hops = self.seats.iter().map(|seat| {
            let (plan, running) = hop(seat);
            Hop {
                name: &seat.name,
                version: &seat.version,
                lane: &seat.lane,
                address: reachable(seat.addr),
                calls: &seat.calls,
                drops: &seat.drops,
                running,
                plan,
            }
        });
        let fan_out = self.fan_out.map(|fan_out| match fan_out {
            FanOut::Parallel => "parallel",
            FanOut::Sequential => "sequential",
        });
        let chain =
            Chain { version: env!("CARGO_PKG_VERSION"), fan_out, hops: hops.collect(), links: &self.links, watching_only };
        serde_json::to_vec(&chain).unwrap_or_default()
    }

    /// What passed each hop since it began, as JSON.
    pub(crate) fn passed(&self) -> Vec<u8> {
        let passed: Vec<Passed> = self.seats.iter().map(|seat| seat.gauge.passed()).collect();
        serde_json::to_vec(&passed).unwrap_or_default()
    }

    /// Looks at figures and health once a second for as long as somebody watches, until `stopped`.
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
            join_all(self.seats.iter().map(|seat| self.probe(seat))).await;
            let now = |seat: &Seat| Ticked { health: lock(&seat.health).clone(), figures: seat.gauge.figures() };
            let ticked: Vec<_> = self.seats.iter().map(now).collect();
            self.ticked.send_replace(serde_json::to_vec(&ticked).unwrap_or_default().into());
        }
    }

    async fn probe(&self, seat: &Seat) {
        let url = format!("http://{}/readyz", reachable(seat.addr));
        let health = match self.client.get(url).timeout(PROBE).send().await {
            Ok(answer) if answer.status() == http::StatusCode::OK => Health::Ready,
            Ok(answer) => Health::NotReady(answer.status().to_string()),
            Err(error) => Health::NoAnswer(why(&error)),
        };
        *lock(&seat.health) = health;
    }

    /// The URL of the first hop.
    pub(crate) fn front(&self) -> String {
        format!("http://{}/service1", reachable(self.seats[0].addr))
    }

    /// Sends a request to the first hop and remembers what came of it.
    pub(crate) async fn send(&self, sender: Sender, headers: HeaderMap) -> (Exchange, Bytes) {
        let url = self.front();
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let sent = headers.iter().map(|(name, value): (&HeaderName, _)| (name.as_str().to_owned(), text(value))).collect();
        let begun = Instant::now();
        let request = self.client.get(&url).headers(headers).header(header::ACCEPT, "application/json");
        let mut exchange = Exchange { sender, url, sent, status: None, duration_ms: 0.0, error: None, reply: None };
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
        let json = Bytes::from(serde_json::to_vec(&exchange).unwrap_or_default());
        let ids = exchange.reply.as_ref().map(trace_ids).unwrap_or_default();
        if !ids.is_empty() {
            let mut exchanges = lock(&self.exchanges);
            exchanges.push_back((ids, json.clone()));
            let mut bytes: usize = exchanges.iter().map(|(_, json)| json.len()).sum();
            while exchanges.len() > EXCHANGES || bytes > EXCHANGE_BYTES {
                bytes -= exchanges.pop_front().map_or(0, |(_, json)| json.len());
            }
        }
        (exchange, json)
    }

    /// The remembered request that this trace is of, as JSON.
    pub(crate) fn exchange(&self, id: TraceId) -> Option<Bytes> {
        let exchanges = lock(&self.exchanges);
        exchanges.iter().rev().find(|(ids, _)| ids.contains(&id)).map(|(_, json)| json.clone())
    }
}

/// Why a request of the demo's own failed, without the URL, which whoever reads it knows.
fn why(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".into();
    }
    // The innermost cause is what the system said.
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn form(json: &str) -> Result<FaultConfig, String> {
        serde_json::from_str::<PlanForm>(json).map_err(|error| error.to_string())?.plan(&FaultConfig::default())
    }

    #[test]
    fn a_plan_comes_back_from_the_page_as_it_went_there() {
        let faults: Vec<Fault> = ["abort=503@7%", "delay=2s@0.5%", "abort=500@100%"].map(|fault| fault.parse().unwrap()).to_vec();
        for latency in ["0", "20ms", "5ms..60ms", "p50=20ms,p90=80ms"] {
            let plan = FaultConfig { latency: latency.parse().unwrap(), faults: faults.clone() };
            let form = PlanForm::from(&plan);
            let json = serde_json::to_string(&form).unwrap();
            assert!(json.contains(r#"{"abort":{"status":503,"percent":7.0}}"#), "{json}");
            assert_eq!(serde_json::from_str::<PlanForm>(&json).unwrap().plan(&plan), Ok(plan));
        }
    }

    #[test]
    fn what_cannot_be_is_refused_and_nothing_panics() {
        assert!(form(r#"{"latency_ms":[0,60000],"faults":[]}"#).is_ok());
        for bad in [
            r#"{"latency_ms":[5,1],"faults":[]}"#,
            r#"{"latency_ms":[-1,1],"faults":[]}"#,
            r#"{"latency_ms":[0,60001],"faults":[]}"#,
            r#"{"latency_ms":[0,1e300],"faults":[]}"#,
            r#"{"latency_ms":[0,1],"faults":[{"abort":{"status":200,"percent":1}}]}"#,
            r#"{"latency_ms":[0,1],"faults":[{"abort":{"status":503,"percent":101}}]}"#,
            r#"{"latency_ms":[0,1],"faults":[{"delay":{"ms":-1,"percent":1}}]}"#,
            r#"{"latency_ms":[0,1],"faults":[],"more":1}"#,
        ] {
            assert!(form(bad).is_err(), "{bad}");
        }
    }
}
