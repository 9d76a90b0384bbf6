//! Latency and faults that a hop adds on purpose: the kinds, how they are written, what they do, and the handle where they
//! can be changed while the hop runs.

use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::StatusCode;

use crate::hop::reply::Injected;
use crate::telemetry::ids;
use crate::values::{parse_duration, parse_percent};

/// The longest delay that is accepted: a typing error must not delay requests for days.
const MAX_DELAY: Duration = Duration::from_secs(3600);

/// A delay that every request gets.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Latency {
    /// None.
    #[default]
    None,
    /// Always the same.
    Fixed(Duration),
    /// Uniform between two bounds.
    Uniform(Duration, Duration),
    /// A smooth quantile function through the given points, straight in the logarithm of time.
    Quantiles(Quantiles),
}

/// Points of a quantile function: share of requests (0 to 1) and the logarithm of seconds, both rising, with the ends added.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantiles(Vec<(f64, f64)>);

impl Latency {
    /// The delay of the next request.
    pub(crate) fn sample(&self) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            Self::Fixed(delay) => *delay,
            Self::Uniform(low, high) => *low + (*high - *low).mul_f64(ids::unit()),
            Self::Quantiles(quantiles) => quantiles.at(ids::unit()),
        }
    }
}

impl Quantiles {
    fn at(&self, share: f64) -> Duration {
        let above = self.0.iter().position(|(point, _)| *point > share).unwrap_or(self.0.len() - 1).max(1);
        let ((left, low), (right, high)) = (self.0[above - 1], self.0[above]);
        Duration::from_secs_f64((low + (high - low) * (share - left) / (right - left)).exp())
    }
}

impl FromStr for Latency {
    type Err = String;

    /// `20ms`, `10ms..2s` or `p50=20ms,p90=80ms,p99=400ms`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('p') {
            return parse_quantiles(text).map(Self::Quantiles);
        }
        match text.split_once("..") {
            Some((low, high)) => {
                let (low, high) = (parse_delay(low)?, parse_delay(high)?);
                if low > high {
                    return Err(format!("{low:?} is above {high:?}; a range is written low..high, as in 10ms..2s"));
                }
                Ok(Self::Uniform(low, high))
            }
            None => match parse_delay(text)? {
                Duration::ZERO => Ok(Self::None),
                delay => Ok(Self::Fixed(delay)),
            },
        }
    }
}

fn parse_quantiles(text: &str) -> Result<Quantiles, String> {
    const FORM: &str = "percentiles are written p50=20ms,p90=80ms,p99=400ms, rising";
    let mut points: Vec<(f64, f64)> = Vec::new();
    for part in text.split(',') {
        let (name, delay) = part.trim().split_once('=').ok_or_else(|| format!("'{part}' is no percentile; {FORM}"))?;
        let percent = name.strip_prefix('p').and_then(|percent| percent.parse::<f64>().ok());
        let share = percent.map(|percent| percent / 100.0).filter(|share| *share > 0.0 && *share < 1.0);
        let share = share.ok_or_else(|| format!("'{name}' is not between p0 and p100; {FORM}"))?;
        let delay = parse_delay(delay)?;
        if delay.is_zero() {
            return Err(format!("{name} must be longer than 0; {FORM}"));
        }
        let point = (share, delay.as_secs_f64().ln());
        if points.last().is_some_and(|last| last.0 >= point.0 || last.1 > point.1) {
            return Err(format!("'{part}' falls below the point before it; {FORM}"));
        }
        points.push(point);
    }
    let (first, last) = (points[0].1, points[points.len() - 1].1);
    points.insert(0, (0.0, first - std::f64::consts::LN_2));
    points.push((1.0, last + std::f64::consts::LN_2));
    Ok(Quantiles(points))
}

fn parse_delay(text: &str) -> Result<Duration, String> {
    let delay = parse_duration(text)?;
    if delay > MAX_DELAY { Err(format!("'{text}' is longer than an hour")) } else { Ok(delay) }
}

/// A fault that is injected into a share of the requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// What it does.
    pub kind: FaultKind,
    /// The share of requests, from 0 to 1.
    pub share: f64,
}

/// What a fault does. A new kind is a variant here, a line in the parser and a line in `Faults::decide`.
#[derive(Debug, Clone, PartialEq)]
pub enum FaultKind {
    /// Answers with this status and calls no upstream.
    Abort(StatusCode),
    /// Waits, on top of the hop's latency.
    Delay(Duration),
}

impl FromStr for Fault {
    type Err = String;

    /// `abort=503@10%` or `delay=2s@5%`.
    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "a fault is written abort=503@10% or delay=2s@5%";
        let (kind, percent) = text.rsplit_once('@').ok_or_else(|| format!("'{text}' has no rate; {FORM}"))?;
        let share = parse_percent(percent).ok_or_else(|| format!("the rate of '{text}' is not from 0% to 100%; {FORM}"))?;
        let kind = match kind.split_once('=') {
            Some(("abort", status)) => {
                let status = status.parse::<u16>().ok().filter(|status| (400..=599).contains(status));
                let status = status.and_then(|status| StatusCode::from_u16(status).ok());
                FaultKind::Abort(status.ok_or_else(|| format!("the status of '{text}' is not from 400 to 599; {FORM}"))?)
            }
            Some(("delay", delay)) => FaultKind::Delay(parse_delay(delay)?),
            _ => return Err(format!("'{text}' is neither an abort nor a delay; {FORM}")),
        };
        Ok(Self { kind, share })
    }
}

/// Latency and faults of a hop.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FaultConfig {
    /// Added to every request.
    pub latency: Latency,
    /// Evaluated for each request in this order: the first abort that applies wins, delays add up.
    pub faults: Vec<Fault>,
}

/// What happens to one request.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct FaultDecision {
    /// How long to wait in all, latency included.
    pub(crate) wait: Duration,
    /// The status to answer with instead of doing the work.
    pub(crate) abort: Option<StatusCode>,
    /// What the faults did, for the reply.
    pub(crate) injected: Option<Injected>,
}

/// The handle where latency and faults can change while the hop runs. Clones share the configuration.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<RwLock<FaultConfig>>);

impl Faults {
    /// Starts with `config`.
    pub fn new(config: FaultConfig) -> Self {
        Self(Arc::new(RwLock::new(config)))
    }

    /// The configuration as it is now.
    pub fn config(&self) -> FaultConfig {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the configuration. Requests whose faults are decided already are not affected.
    pub fn set(&self, config: FaultConfig) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// Decides what happens to one request.
    pub(crate) fn decide(&self) -> FaultDecision {
        let config = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut decision = FaultDecision { wait: config.latency.sample(), ..FaultDecision::default() };
        for fault in &config.faults {
            if ids::unit() >= fault.share {
                continue;
            }
            let injected = decision.injected.get_or_insert_with(Injected::default);
            match fault.kind {
                FaultKind::Abort(status) => {
                    if decision.abort.is_none() {
                        decision.abort = Some(status);
                        injected.abort_status = Some(status.as_u16());
                    }
                }
                FaultKind::Delay(delay) => {
                    decision.wait += delay;
                    injected.delay_ms = Some(injected.delay_ms.unwrap_or(0) + delay.as_millis() as u64);
                }
            }
        }
        decision
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_is_read_in_its_three_forms() {
        assert_eq!("0".parse(), Ok(Latency::None));
        assert_eq!("20ms".parse(), Ok(Latency::Fixed(Duration::from_millis(20))));
        assert_eq!("10ms..2s".parse(), Ok(Latency::Uniform(Duration::from_millis(10), Duration::from_secs(2))));
        assert!(matches!("p50=20ms,p90=80ms,p99=400ms".parse(), Ok(Latency::Quantiles(_))));
    }

    #[test]
    fn bad_latency_says_what_is_accepted() {
        for bad in [
            "",
            "ten",
            "10",
            "2s..10ms",
            "10s..2s",
            "1h..2h",
            "p50",
            "p0=1ms",
            "p100=1ms",
            "p50=0",
            "p90=20ms,p50=10ms",
            "p50=20ms,p90=10ms",
            "p50=20ms,p50=20ms",
            "p50=20ms,",
            "-1s",
            "10ms..",
        ] {
            let error = bad.parse::<Latency>().unwrap_err();
            assert!(error.contains("written") || error.contains("unit") || error.contains("hour"), "{bad}: {error}");
        }
    }

    #[test]
    fn percentiles_are_met_by_a_smooth_distribution() {
        let latency: Latency = "p50=20ms,p90=80ms,p99=400ms".parse().unwrap();
        let mut drawn: Vec<f64> = (0..200_000).map(|_| latency.sample().as_secs_f64() * 1e3).collect();
        drawn.sort_by(f64::total_cmp);
        let at = |share: f64| drawn[(share * drawn.len() as f64) as usize];
        // The figures' own standard error is below 0.5 % at p50 and below 3 % at p99.
        for (share, expected, tolerance) in [(0.5, 20.0, 0.03), (0.9, 80.0, 0.05), (0.99, 400.0, 0.15)] {
            assert!((at(share) / expected - 1.0).abs() < tolerance, "p{share}: {}", at(share));
        }
        // Not a step function: between the points the time goes up steadily.
        assert!((at(0.7) - 40.0).abs() < 2.0, "p70 is {} where the geometric mean is 40", at(0.7));
        assert!(drawn[0] >= 10.0 - 1e-6 && drawn[drawn.len() - 1] <= 800.0 + 1e-6);
        let distinct = drawn.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(distinct > 190_000, "only {distinct} different values");
    }

    #[test]
    fn fault_rates_are_exact_within_statistics() {
        for share in [0.0, 0.3, 0.6, 1.0] {
            let fault = format!("abort=503@{}%", share * 100.0).parse().unwrap();
            let faults = Faults::new(FaultConfig { latency: Latency::None, faults: vec![fault] });
            let rolls = 100_000;
            let struck = (0..rolls).filter(|_| faults.decide().abort.is_some()).count() as f64;
            let six_sigma = 6.0 * (f64::from(rolls) * share * (1.0 - share)).sqrt();
            assert!((struck - f64::from(rolls) * share).abs() <= six_sigma, "{share}: {struck}");
        }
    }

    #[test]
    fn faults_are_read_and_bad_ones_explained() {
        assert_eq!("delay=2s@5%".parse(), Ok(Fault { kind: FaultKind::Delay(Duration::from_secs(2)), share: 0.05 }));
        for bad in [
            "",
            "abort=503",
            "abort=503@10",
            "abort=200@10%",
            "abort=x@1%",
            "abort=503@101%",
            "abort=503@-1%",
            "delay=2@5%",
            "panic@5%",
            "abort=503@NaN%",
        ] {
            assert!(bad.parse::<Fault>().is_err(), "{bad}");
        }
    }

    #[test]
    fn delays_add_up_and_the_first_abort_wins() {
        let faults = ["delay=1s@100%", "abort=503@100%", "delay=2s@100%", "abort=500@100%"];
        let faults = faults.map(|fault| fault.parse().unwrap()).to_vec();
        let decision = Faults::new(FaultConfig { latency: "10ms".parse().unwrap(), faults }).decide();
        assert_eq!(decision.wait, Duration::from_millis(3010));
        assert_eq!(decision.injected, Some(Injected { delay_ms: Some(3000), abort_status: Some(503) }));
    }
}
