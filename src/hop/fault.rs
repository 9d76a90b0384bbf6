//! Faults that a hop injects on purpose: the kinds, how they are written, which of them strike a request, and the handle where
//! they can be changed while the hop runs. What a fault does is in `effects`.

mod form;

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use http::{HeaderName, StatusCode};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::hop::latency::{Latency, MAX_DELAY, parse_delay};
use crate::hop::reply::Injected;
use crate::system::held::Held;
use crate::telemetry::draws::{DrawPlace, Draws};
use crate::trace_context::{Break, BreakKind, Context};
use crate::values::{Form, Rated, examples, parse_size, size_text};

pub(crate) use form::FaultsForm;

/// A fault that is injected into a share of the requests.
pub type Fault = Rated<FaultKind>;

/// What a fault does. A new kind is a variant here, a line in `FAULTS`, its form in `FromStr` and `Display`, and its effect.
#[derive(Debug, Clone, PartialEq)]
pub enum FaultKind {
    /// Answers with this status and calls no upstream.
    Abort(StatusCode),
    /// Waits, on top of the hop's latency.
    Delay(Duration),
    /// Resets the connection in the middle of the answer.
    Reset,
    /// Never answers.
    Hang,
    /// Ends the answer before its length.
    Truncate,
    /// Sends the answer's body with so many bytes a second.
    SlowBody(usize),
    /// Answers 429 to more requests than these.
    Limit(RateLimit),
    /// Burns processor time.
    Cpu(Duration),
    /// Holds so many bytes until the answer was sent.
    Memory(usize),
    /// Closes the connection under the caller's next request.
    Close,
}

/// Every kind of fault.
pub(crate) const FAULTS: [Form; 10] = [
    Form { name: "abort", example: "abort=503", about: "answers with this status and calls nobody" },
    Form { name: "delay", example: "delay=2s", about: "waits before the work" },
    Form { name: "reset", example: "reset", about: "resets the connection in the middle of the answer" },
    Form { name: "hang", example: "hang", about: "never answers" },
    Form { name: "truncate", example: "truncate", about: "ends the answer before its length" },
    Form { name: "slow-body", example: "slow-body=1KiB/s", about: "sends the body of the answer slowly" },
    Form { name: "limit", example: "limit=10/s", about: "answers 429 to more requests than these" },
    Form { name: "cpu", example: "cpu=50ms", about: "burns processor time" },
    Form { name: "memory", example: "memory=64MiB", about: "holds memory until the answer was sent" },
    Form { name: "close", example: "close", about: "closes the idle connection under the caller's next request" },
];

/// So many requests in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RateLimit {
    /// How many.
    pub(crate) requests: u32,
    /// 1 s, 1 min or 1 h.
    pub(crate) period: Duration,
}

impl FromStr for RateLimit {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (requests, unit) = text.split_once('/').ok_or(())?;
        let period = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err(()),
        };
        let requests = requests.parse().ok().filter(|requests| (1..=1_000_000).contains(requests)).ok_or(())?;
        Ok(Self { requests, period: Duration::from_secs(period) })
    }
}

/// The largest `memory` that is accepted.
const MAX_MEMORY: usize = 4 << 30;

impl FromStr for FaultKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
        let form = FAULTS.iter().find(|form| form.name == name);
        let unknown = || format!("'{text}' is no fault; accepted are {}", examples(&FAULTS));
        let example = form.ok_or_else(unknown)?.example;
        let wrong = |what: &str| format!("{what} of '{text}'; it is written {example}");
        if value.is_some() != example.contains('=') {
            let takes = if value.is_some() { "takes no value" } else { "needs a value" };
            return Err(format!("'{text}' {takes}; it is written {example}"));
        }
        let value = value.unwrap_or_default();
        Ok(match name {
            "abort" => {
                let status = value.parse::<u16>().ok().filter(|status| (400..=599).contains(status));
                let status = status.and_then(|status| StatusCode::from_u16(status).ok());
                Self::Abort(status.ok_or_else(|| wrong("a status from 400 to 599 is accepted in place of the value"))?)
            }
            "delay" => Self::Delay(parse_delay(value)?),
            "reset" => Self::Reset,
            "hang" => Self::Hang,
            "truncate" => Self::Truncate,
            "slow-body" => {
                let rate = value.strip_suffix("/s").and_then(parse_size).filter(|rate| *rate > 0);
                Self::SlowBody(rate.ok_or_else(|| wrong("a size above 0 and /s are accepted in place of the value"))?)
            }
            "limit" => {
                let limit = value.parse();
                Self::Limit(
                    limit.map_err(|()| wrong("1 to 1000000 requests in /s, /m or /h are accepted in place of the value"))?,
                )
            }
            "cpu" => Self::Cpu(parse_delay(value)?),
            "memory" => {
                let bytes = parse_size(value).filter(|bytes| (1..=MAX_MEMORY).contains(bytes));
                Self::Memory(bytes.ok_or_else(|| wrong("a size up to 4096MiB is accepted in place of the value"))?)
            }
            _ => Self::Close,
        })
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |time: &Duration| humantime::format_duration(*time).to_string().replace(' ', "");
        match self {
            Self::Abort(status) => write!(f, "abort={}", status.as_u16()),
            Self::Delay(delay) => write!(f, "delay={}", time(delay)),
            Self::Reset => f.write_str("reset"),
            Self::Hang => f.write_str("hang"),
            Self::Truncate => f.write_str("truncate"),
            Self::SlowBody(rate) => write!(f, "slow-body={}/s", size_text(*rate)),
            Self::Limit(RateLimit { requests, period }) => {
                write!(
                    f,
                    "limit={requests}/{}",
                    ["h", "m", "s"][usize::from(period.as_secs() < 3600) + usize::from(period.as_secs() < 60)]
                )
            }
            Self::Cpu(time_burnt) => write!(f, "cpu={}", time(time_burnt)),
            Self::Memory(bytes) => write!(f, "memory={}", size_text(*bytes)),
            Self::Close => f.write_str("close"),
        }
    }
}

/// What a hop does on purpose: latency, faults and breaks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FaultConfig {
    /// Added to every request.
    pub latency: Latency,
    /// Evaluated for each request in this order: the first abort that applies wins, delays add up.
    pub faults: Vec<Fault>,
    /// Ways to break the trace, in this order.
    pub breaks: Vec<Break>,
}

/// A fault, or a break as it is written beside faults: `break=new-trace`.
#[derive(Debug, Clone, PartialEq)]
pub enum Injection {
    /// As `--fault` has it.
    Fault(Fault),
    /// As `--break` has it.
    Break(Break),
}

impl FromStr for Injection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim().strip_prefix("break=") {
            Some(broken) => broken.parse().map(Self::Break),
            None => text.parse().map(Self::Fault),
        }
    }
}

impl Injection {
    /// How long a request waits for it.
    pub(crate) fn time(&self) -> Option<Duration> {
        match self {
            Self::Fault(Fault { kind: FaultKind::Delay(time) | FaultKind::Cpu(time), .. }) => Some(*time),
            _ => None,
        }
    }

    /// The header that a break names.
    pub(crate) fn header(&self) -> Option<&HeaderName> {
        match self {
            Self::Break(broken) => broken.kind.header(),
            Self::Fault(_) => None,
        }
    }
}

impl FaultConfig {
    /// Adds one.
    pub(crate) fn add(&mut self, injection: Injection) {
        match injection {
            Injection::Fault(fault) => self.faults.push(fault),
            Injection::Break(broken) => self.breaks.push(broken),
        }
    }
}

/// What happens to one request.
#[derive(Debug, Default)]
pub(crate) struct FaultDecision {
    /// How long to wait in all, latency included.
    pub(crate) wait: Duration,
    /// `None` when nothing strikes the request.
    pub(crate) struck: Option<Box<Struck>>,
}

/// The faults and breaks that strike one request.
#[derive(Debug, Default)]
pub(crate) struct Struck {
    /// The status to answer with instead of doing the work.
    pub(crate) abort: Option<StatusCode>,
    /// In all.
    delay: Option<Duration>,
    /// Those that are neither a delay nor an abort.
    pub(crate) faults: Vec<FaultKind>,
    /// The request is beyond this limit.
    pub(crate) limited: Option<Limited>,
    pub(crate) breaks: Vec<BreakKind>,
    /// The context of another request, for `cross-talk`.
    pub(crate) other: Option<Context>,
    /// Why the request's `x-fault` does nothing.
    pub(crate) error: Option<String>,
    /// What each `memory` holds.
    pub(crate) memory: Mutex<Vec<(Held, Vec<u8>)>>,
}

/// A limit that is reached, and when the next request fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limited {
    pub(crate) limit: RateLimit,
    pub(crate) retry_after: Duration,
}

impl Struck {
    /// For the reply: what was done to the request. `broke`: what was broken in the calls that were made.
    pub(crate) fn injected(&self, broke: &[BreakKind]) -> Option<Injected> {
        let limited = self.limited.is_some();
        let acted = |fault: &&FaultKind| limited || !matches!(fault, FaultKind::Limit(_));
        let mut breaks: Vec<String> = broke.iter().map(BreakKind::to_string).collect();
        breaks.dedup();
        let injected = Injected {
            delay_ms: self.delay.map(|delay| delay.as_millis() as u64),
            abort_status: self.abort.map(|status| status.as_u16()),
            faults: self.faults.iter().filter(acted).map(FaultKind::to_string).collect(),
            breaks,
            error: self.error.clone(),
        };
        (injected != Injected::default()).then_some(injected)
    }
}

/// The handle where latency, faults and breaks can change while the hop runs. Clones share them.
#[derive(Debug, Clone)]
pub struct Faults(Arc<FaultState>);

#[derive(Debug)]
struct FaultState {
    /// At the start: what comes back when an order ends.
    start: FaultConfig,
    current: RwLock<CurrentFaults>,
    /// When the bucket of each limit is empty again: the theoretical arrival time of GCRA.
    limits: Mutex<HashMap<RateLimit, Instant>>,
    /// The context of the last request, for `cross-talk`.
    last: Mutex<Option<Context>>,
    /// `cpu` burns no more threads than there are processors.
    processors: Semaphore,
}

#[derive(Debug)]
struct CurrentFaults {
    config: FaultConfig,
    /// How often faults and breaks were replaced: the timer of an order ends that order alone.
    order: u64,
}

impl Faults {
    /// Starts with `config`.
    pub fn new(config: FaultConfig) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self(Arc::new(FaultState {
            start: config.clone(),
            current: RwLock::new(CurrentFaults { config, order: 0 }),
            limits: Mutex::default(),
            last: Mutex::default(),
            processors: Semaphore::new(processors),
        }))
    }

    /// The configuration as it is now.
    pub fn config(&self) -> FaultConfig {
        self.0.current.read().unwrap_or_else(PoisonError::into_inner).config.clone()
    }

    /// Replaces the latency alone: an order for a time goes on.
    pub(crate) fn set_latency(&self, latency: Latency) {
        self.0.current.write().unwrap_or_else(PoisonError::into_inner).config.latency = latency;
    }

    /// Brings faults and breaks of the start back.
    pub(crate) fn reset(&self) {
        self.change(|now| *now = FaultConfig { latency: std::mem::take(&mut now.latency), ..self.0.start.clone() });
    }

    /// Returns the number of this change.
    fn change(&self, change: impl FnOnce(&mut FaultConfig)) -> u64 {
        let mut current = self.0.current.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut current.config);
        current.order += 1;
        current.order
    }

    /// Replaces faults and breaks, and with them an order before this one. After the form's `ttl` those of the start come back,
    /// unless there was another order.
    ///
    /// # Errors
    ///
    /// What cannot be read; nothing is changed.
    pub(crate) fn order(&self, form: &FaultsForm, changed: impl Fn() + Send + 'static) -> Result<(), String> {
        let (FaultConfig { faults, breaks, .. }, ttl) = form.read(&FaultConfig::default())?;
        let order = self.change(|now| (now.faults, now.breaks) = (faults, breaks));
        let Some(ttl) = ttl else { return Ok(()) };
        let shared = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            tokio::time::sleep(ttl).await;
            let Some(faults) = shared.upgrade().map(Self) else { return };
            let mut current = faults.0.current.write().unwrap_or_else(PoisonError::into_inner);
            if current.order == order {
                let start = faults.0.start.clone();
                (current.config.faults, current.config.breaks) = (start.faults, start.breaks);
                drop(current);
                changed();
            }
        });
        Ok(())
    }

    /// A place among the processors.
    pub(crate) fn processors(&self) -> &Semaphore {
        &self.0.processors
    }

    /// Decides what happens to one request, which has this context.
    ///
    /// `asked`: what the request itself asks for.
    pub(crate) fn decide(
        &self,
        draws: Draws,
        context: Option<&Context>,
        asked: Option<Result<Vec<Injection>, String>>,
    ) -> FaultDecision {
        let current = self.0.current.read().unwrap_or_else(PoisonError::into_inner);
        let config = &current.config;
        let mut decision = FaultDecision { wait: config.latency.sample(draws), struck: None };
        for (at, fault) in config.faults.iter().enumerate() {
            if draws.unit(DrawPlace::Fault, at) < fault.share {
                self.strike(&mut decision, &fault.kind);
            }
        }
        if !config.breaks.is_empty() {
            for (at, broken) in config.breaks.iter().enumerate() {
                if draws.unit(DrawPlace::Break, at) < broken.share {
                    decision.struck.get_or_insert_default().breaks.push(broken.kind.clone());
                }
            }
        }
        let asks = asked.is_some();
        match asked {
            Some(Ok(injections)) => {
                for (at, injection) in injections.iter().enumerate() {
                    let drawn = draws.unit(DrawPlace::Request, at);
                    match injection {
                        Injection::Fault(fault) if drawn < fault.share => self.strike(&mut decision, &fault.kind),
                        Injection::Break(broken) if drawn < broken.share => {
                            decision.struck.get_or_insert_default().breaks.push(broken.kind.clone());
                        }
                        _ => {}
                    }
                }
            }
            Some(Err(error)) => decision.struck.get_or_insert_default().error = Some(error),
            None => {}
        }
        if asks || config.breaks.iter().any(|broken| broken.kind == BreakKind::CrossTalk) {
            self.cross(&mut decision, context, draws);
        }
        decision
    }

    fn strike(&self, decision: &mut FaultDecision, kind: &FaultKind) {
        let struck = decision.struck.get_or_insert_default();
        match kind {
            FaultKind::Abort(status) => struck.abort = struck.abort.or(Some(*status)),
            FaultKind::Delay(delay) => {
                decision.wait += *delay;
                struck.delay = Some(struck.delay.unwrap_or_default() + *delay);
            }
            FaultKind::Limit(limit) if struck.abort.is_none() => {
                struck.faults.push(kind.clone());
                struck.limited = self.exceeds(*limit).map(|retry_after| Limited { limit: *limit, retry_after });
                struck.abort = struck.limited.map(|_| StatusCode::TOO_MANY_REQUESTS);
            }
            FaultKind::Limit(_) => {}
            other => struck.faults.push(other.clone()),
        }
    }

    /// Counts a request against a limit: a bucket of `requests`, which refills evenly. Returns how long it takes until one fits.
    fn exceeds(&self, limit: RateLimit) -> Option<Duration> {
        /// Limits that are no longer used end with their period.
        const MOST: usize = 64;
        let (now, each) = (Instant::now(), limit.period / limit.requests);
        let mut limits = self.0.limits.lock().unwrap_or_else(PoisonError::into_inner);
        if limits.len() >= MOST {
            limits.retain(|_, empty| *empty > now);
        }
        let empty = limits.get(&limit).map_or(now, |empty| (*empty).max(now));
        let too_soon = (empty + each).saturating_duration_since(now + limit.period);
        if too_soon.is_zero() {
            limits.insert(limit, empty + each);
        }
        Some(too_soon).filter(|wait| !wait.is_zero())
    }

    /// Leaves this request's context for the next one, and uses that of the last one if the request is struck. With a seed that
    /// of one that follows from the draws: which request came before is different at every instance and in every run.
    fn cross(&self, decision: &mut FaultDecision, context: Option<&Context>, draws: Draws) {
        let Some(context) = context else { return };
        if draws.is_seeded() {
            let (trace_id, span_id) = (draws.trace_id(DrawPlace::OtherRequest, 0), draws.span_id(DrawPlace::OtherRequest, 0));
            if let Some(struck) = &mut decision.struck {
                struck.other = Some(Context { trace_id, span_id, parent_id: None, short_trace_id: false, ..*context });
            }
            return;
        }
        let last = self.0.last.lock().unwrap_or_else(PoisonError::into_inner).replace(*context);
        if let Some(struck) = &mut decision.struck {
            struck.other = last.filter(|last| last.trace_id != context.trace_id);
        }
    }
}

/// The longest that `hang` lasts: a caller that never hangs up must not keep a place for ever.
pub(crate) const MAX_HANG: Duration = MAX_DELAY;

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(faults: &[&str], breaks: &[&str]) -> Faults {
        Faults::new(FaultConfig {
            latency: Latency::None,
            faults: faults.iter().map(|fault| fault.parse().unwrap()).collect(),
            breaks: breaks.iter().map(|broken| broken.parse().unwrap()).collect(),
        })
    }

    #[test]
    fn fault_rates_are_exact_within_statistics() {
        for share in [0.0, 0.3, 0.6, 1.0] {
            let faults = faults(&[&format!("abort=503@{}%", share * 100.0)], &[]);
            let rolls = 100_000;
            let struck = (0..rolls).filter(|_| faults.decide(Draws::random(), None, None).struck.is_some()).count() as f64;
            let six_sigma = 6.0 * (f64::from(rolls) * share * (1.0 - share)).sqrt();
            assert!((struck - f64::from(rolls) * share).abs() <= six_sigma, "{share}: {struck}");
        }
    }

    #[test]
    fn every_kind_is_written_as_it_was_read_and_has_a_rate() {
        assert_eq!("delay=2s@5%".parse(), Ok(Fault { kind: FaultKind::Delay(Duration::from_secs(2)), share: 0.05 }));
        for form in FAULTS {
            let fault: Fault = form.example.parse().unwrap();
            assert_eq!((fault.share, fault.to_string()), (1.0, form.example.to_owned()));
            let rated = format!("{}@0.5%", form.example);
            assert_eq!(rated.parse::<Fault>().map(|fault| (fault.share, fault.to_string())), Ok((0.005, rated)));
        }
        for same in ["limit=100/m", "limit=7/h", "memory=100", "cpu=1m30s", "slow-body=1MiB/s", "abort=503@7%"] {
            assert_eq!(same.parse::<Fault>().unwrap().to_string(), same);
        }
    }

    #[test]
    fn a_bad_fault_is_named_with_what_is_accepted() {
        for bad in [
            "",
            "abort",
            "abort=503@10",
            "abort=200@10%",
            "abort=x@1%",
            "abort=503@101%",
            "abort=503@-1%",
            "abort=503@NaN%",
            "delay=2@5%",
            "delay=2h",
            "panic@5%",
            "reset=1",
            "hang=1s",
            "slow-body=1KiB",
            "slow-body=0/s",
            "limit=0/s",
            "limit=10",
            "limit=10/d",
            "cpu=",
            "memory=0",
            "memory=5000MiB",
            "memory=64MB",
            "close=1",
        ] {
            let error = bad.parse::<Fault>().unwrap_err();
            assert!(["accepted", "written", "unit", "hour"].iter().any(|word| error.contains(word)), "{bad}: {error}");
        }
        assert!("abot=503".parse::<Fault>().unwrap_err().contains("abort=503, delay=2s, reset"));
    }

    #[test]
    fn delays_add_up_and_the_first_abort_wins() {
        let faults = faults(&["delay=1s", "abort=503", "delay=2s", "abort=500", "reset", "limit=1/s"], &[]);
        let decision = faults.decide(Draws::random(), None, None);
        assert_eq!(decision.wait, Duration::from_secs(3));
        let injected =
            Injected { delay_ms: Some(3000), abort_status: Some(503), faults: vec!["reset".to_owned()], ..Injected::default() };
        assert_eq!(decision.struck.unwrap().injected(&[]), Some(injected));
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_lets_a_burst_pass_and_then_as_many_as_it_says() {
        let faults = faults(&["limit=10/s"], &[]);
        let limited = || faults.decide(Draws::random(), None, None).struck.unwrap().limited;
        let passed = (0..30).filter(|_| limited().is_none()).count();
        assert_eq!(passed, 10);
        assert_eq!(limited().unwrap().retry_after, Duration::from_millis(100));
        let mut passed = 0;
        for _ in 0..1000 {
            tokio::time::advance(Duration::from_millis(10)).await;
            passed += usize::from(limited().is_none());
        }
        assert_eq!(passed, 100, "10 s at 10/s");
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_replaces_the_one_before_and_its_timer_and_the_start_comes_back() {
        let faults = faults(&["delay=1ms"], &["cross-talk"]);
        let order = |fault: &str, ttl: Option<&str>| {
            let form = FaultsForm { faults: vec![fault.to_owned()], breaks: Vec::new(), ttl: ttl.map(str::to_owned) };
            faults.order(&form, || ()).unwrap();
        };
        let now = || FaultsForm::from(&faults.config()).faults.join(" ");
        let pass = async |ms| {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            now()
        };
        // The same order again: its time begins again.
        order("abort=503", Some("1s"));
        assert_eq!(pass(600).await, "abort=503");
        order("abort=503", Some("3s"));
        assert_eq!(pass(2900).await, "abort=503");
        assert_eq!(pass(200).await, "delay=1ms");
        assert_eq!(faults.config().breaks.len(), 1);
        // Another within the time of the first: what was there before the first comes back, not the first.
        order("abort=503", Some("1s"));
        order("abort=504", Some("2s"));
        assert_eq!(pass(1900).await, "abort=504");
        assert_eq!(pass(200).await, "delay=1ms");
        // Ended by hand, then ordered without a time: nothing ends that.
        order("abort=503", Some("1s"));
        faults.reset();
        assert_eq!(now(), "delay=1ms");
        order("abort=503", None);
        assert_eq!(pass(5000).await, "abort=503");
        // The latency is not part of an order.
        order("abort=503", Some("1s"));
        faults.set_latency("20ms".parse().unwrap());
        assert_eq!(pass(1100).await, "delay=1ms");
        assert_eq!(faults.config().latency.to_string(), "20ms");
    }

    #[test]
    fn cross_talk_takes_the_context_of_the_request_before() {
        let faults = faults(&[], &["cross-talk"]);
        let context = |id: u128| Context {
            trace_id: id.into(),
            short_trace_id: false,
            random: false,
            span_id: 1.into(),
            parent_id: None,
            sampling: crate::trace_context::Sampling::Sample,
        };
        let other =
            |id| faults.decide(Draws::random(), Some(&context(id)), None).struck.unwrap().other.map(|other| other.trace_id);
        assert_eq!((other(1), other(2), other(2), other(3)), (None, Some(1.into()), None, Some(2.into())));
    }
}
