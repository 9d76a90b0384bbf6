//! What the page shows of each hop while requests pass: how many, how many failed, how long they took, over the last seconds.
//!
//! Traces reach the store over HTTP like anybody's. These figures are taken from the hops themselves, because they have to
//! count requests that are not sampled too, and at once.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;

use crate::text::number::percentile;

/// The window of the figures. Long enough for a steady p99 at ten requests a second, short enough to see a slider's effect.
pub(crate) const WINDOW: Duration = Duration::from_secs(10);
/// Durations that are remembered of each second; of more, a part that is spread over the second.
const SAMPLES: usize = 2_000;

/// One hop as it is watched.
#[derive(Debug)]
pub(crate) struct Gauge {
    began: AtomicU64,
    ended: AtomicU64,
    failed: AtomicU64,
    started: Instant,
    seconds: Mutex<VecDeque<Second>>,
    /// Notified of every change; shared by all hops.
    changed: watch::Sender<()>,
}

/// What ended within one second.
#[derive(Debug)]
struct Second {
    /// Seconds since the gauge was made.
    at: u64,
    requests: u64,
    errors: u64,
    took_us: Vec<u32>,
}

/// A hop's figures over [`WINDOW`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Figures {
    /// Requests that ended, per second.
    rate: f64,
    /// The share of them that was answered 500 or above, or not at all; null without requests.
    errors: Option<f64>,
    /// Milliseconds; null without requests.
    p50_ms: Option<f64>,
    /// Milliseconds; null without requests.
    p99_ms: Option<f64>,
}

/// Counters since the hop began: what they grow by is what lights the hop up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Passed {
    pub(crate) began: u64,
    pub(crate) ended: u64,
    pub(crate) failed: u64,
}

impl Gauge {
    pub(crate) fn new(changed: watch::Sender<()>) -> Self {
        Self {
            began: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            started: Instant::now(),
            seconds: Mutex::default(),
            changed,
        }
    }

    pub(crate) fn passed(&self) -> Passed {
        // Ends first: a request that ends in between must not appear never to have begun.
        let (failed, ended) = (self.failed.load(Ordering::Acquire), self.ended.load(Ordering::Acquire));
        Passed { began: self.began.load(Ordering::Acquire), ended, failed }
    }

    pub(crate) fn figures(&self) -> Figures {
        self.figures_at(self.started.elapsed())
    }

    fn figures_at(&self, now: Duration) -> Figures {
        let seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        let within = || seconds.iter().filter(|second| now.as_secs() - second.at.min(now.as_secs()) < WINDOW.as_secs());
        let requests: u64 = within().map(|second| second.requests).sum();
        let errors: u64 = within().map(|second| second.errors).sum();
        let mut took_us: Vec<u32> = within().flat_map(|second| &second.took_us).copied().collect();
        drop(seconds);
        took_us.sort_unstable();
        let quantile = |share: f64| percentile(&took_us, share).map(|us| f64::from(us) / 1e3);
        Figures {
            rate: requests as f64 / WINDOW.as_secs_f64(),
            errors: (requests > 0).then(|| errors as f64 / requests as f64),
            p50_ms: quantile(0.5),
            p99_ms: quantile(0.99),
        }
    }

    fn count(&self, now: Duration, failed: bool, took: Duration) {
        let mut seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        let at = now.as_secs();
        if seconds.back().is_none_or(|last| last.at < at) {
            while seconds.front().is_some_and(|first| first.at + WINDOW.as_secs() <= at) {
                seconds.pop_front();
            }
            seconds.push_back(Second { at, requests: 0, errors: 0, took_us: Vec::new() });
        }
        let Some(second) = seconds.back_mut() else { return };
        second.requests += 1;
        second.errors += u64::from(failed);
        let us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        if second.took_us.len() < SAMPLES {
            second.took_us.push(us);
        } else {
            // Algorithm R would need a random number; the newest over the oldest is as fair within one second.
            let place = second.requests as usize % SAMPLES;
            second.took_us[place] = us;
        }
    }
}

impl Gauge {
    pub(crate) fn began(&self) {
        self.began.fetch_add(1, Ordering::Release);
        self.changed.send_replace(());
    }

    pub(crate) fn ended(&self, status: u16, took: Duration) {
        let failed = status >= 499;
        self.count(self.started.elapsed(), failed, took);
        self.ended.fetch_add(1, Ordering::Release);
        self.failed.fetch_add(u64::from(failed), Ordering::Release);
        self.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gauge() -> Gauge {
        Gauge::new(watch::Sender::new(()))
    }

    #[test]
    fn figures_are_of_the_last_ten_seconds_and_exact() {
        let gauge = gauge();
        let at = Duration::from_millis;
        for n in 0..100 {
            gauge.count(at(n * 90), n % 10 == 0, Duration::from_millis(n + 1));
        }
        let figures = gauge.figures_at(at(9_000));
        assert_eq!(figures, Figures { rate: 10.0, errors: Some(0.1), p50_ms: Some(50.0), p99_ms: Some(99.0) });
        let later = gauge.figures_at(at(15_000));
        assert!(later.rate < 5.0 && later.rate > 3.0, "{later:?}");
        let none = Figures { rate: 0.0, errors: None, p50_ms: None, p99_ms: None };
        assert_eq!(gauge.figures_at(at(60_000)), none);
        // The first request after a pause does not bring the old ones back.
        gauge.count(at(60_000), false, Duration::from_millis(7));
        assert_eq!(gauge.figures_at(at(60_000)), Figures { rate: 0.1, errors: Some(0.0), p50_ms: Some(7.0), p99_ms: Some(7.0) });
    }

    #[test]
    fn a_flood_is_counted_whole_and_remembered_in_part() {
        let gauge = gauge();
        for n in 0..10 * SAMPLES as u64 {
            gauge.count(Duration::ZERO, false, Duration::from_micros(1000 + n % 2));
        }
        let figures = gauge.figures_at(Duration::ZERO);
        assert_eq!(figures.rate, SAMPLES as f64);
        assert_eq!(gauge.seconds.lock().unwrap()[0].took_us.len(), SAMPLES);
        assert!(figures.p50_ms >= Some(1.0) && figures.p99_ms <= Some(1.001), "{figures:?}");
    }

    #[test]
    fn errors_are_what_the_caller_sees_as_a_failure() {
        let gauge = gauge();
        for status in [200, 404, 499, 502, 503] {
            gauge.began();
            gauge.ended(status, Duration::from_millis(1));
        }
        assert_eq!(gauge.passed(), Passed { began: 5, ended: 5, failed: 3 });
        assert_eq!(gauge.figures().errors, Some(0.6));
    }
}
