//! A histogram of durations with exemplars, which `prometheus` does not have.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{SpanId, TraceId};
use prometheus::proto::Metric;
use prometheus::{Histogram, HistogramOpts, HistogramVec};

use crate::trace_context::Context;

/// Upper bounds in seconds: from a hop that only answers to a chain with two seconds of latency at each hop.
const BUCKETS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The age at which a new request replaces an exemplar: one a second is enough to follow.
const EXEMPLAR_AGE_MS: u64 = 1000;

/// How many labels a family has.
pub(crate) const LABELS: usize = 6;

/// A histogram family, and its exemplars.
#[derive(Debug)]
pub(crate) struct DurationHistogram {
    pub(crate) name: &'static str,
    labels: [&'static str; LABELS],
    pub(crate) vec: HistogramVec,
    handles: RwLock<Vec<([String; LABELS], Arc<HistogramHandle>)>>,
}

/// One histogram of the family and its latest exemplars.
#[derive(Debug)]
pub(crate) struct HistogramHandle {
    histogram: Histogram,
    /// One for each bucket and one for `+Inf`.
    exemplars: [ExemplarSlot; BUCKETS.len() + 1],
}

#[derive(Debug, Default)]
struct ExemplarSlot {
    /// Milliseconds since the epoch; 0 for none. Read without the lock, so that most requests never acquire it.
    at_ms: AtomicU64,
    sample: Mutex<Option<(TraceId, SpanId, f64)>>,
}

/// A traced observation of one bucket, or of a counter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Exemplar {
    pub(crate) trace_id: TraceId,
    pub(crate) span_id: Option<SpanId>,
    /// The observed duration in seconds, or what was added to a counter.
    pub(crate) value: f64,
    /// Milliseconds since the epoch.
    pub(crate) at_ms: u64,
}

impl DurationHistogram {
    pub(crate) fn new(name: &'static str, help: &str, labels: &[&'static str; LABELS]) -> Self {
        let opts = HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
        let vec = HistogramVec::new(opts, labels).expect("the family is well formed");
        Self { name, labels: *labels, vec, handles: RwLock::default() }
    }

    /// The histogram with these label values and its exemplars, created on first use. There are few, so a scan finds it.
    pub(crate) fn handle(&self, values: [&str; LABELS]) -> Arc<HistogramHandle> {
        if let Some(handle) = self.find(values) {
            return handle;
        }
        let mut handles = self.handles.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = find(&handles, values) {
            return handle;
        }
        let histogram = self.vec.with_label_values(&values);
        let handle = Arc::new(HistogramHandle { histogram, exemplars: Default::default() });
        handles.push((values.map(str::to_owned), handle.clone()));
        handle
    }

    fn find(&self, values: [&str; LABELS]) -> Option<Arc<HistogramHandle>> {
        find(&self.handles.read().unwrap_or_else(PoisonError::into_inner), values)
    }

    /// The histogram that `metric`, gathered from this family, was made from.
    pub(crate) fn handle_of(&self, metric: &Metric) -> Option<Arc<HistogramHandle>> {
        let label = |name: &str| metric.get_label().iter().find(|label| label.name() == name).map(|label| label.value());
        self.find(self.labels.map(|name| label(name).unwrap_or_default()))
    }
}

fn find(handles: &[([String; LABELS], Arc<HistogramHandle>)], values: [&str; LABELS]) -> Option<Arc<HistogramHandle>> {
    handles.iter().find(|(labels, _)| labels.iter().eq(values)).map(|(_, handle)| handle.clone())
}

impl HistogramHandle {
    /// Counts one observation, and stores its trace if the bucket's exemplar is old.
    pub(crate) fn observe(&self, duration: Duration, span: Option<&Context>) {
        let seconds = duration.as_secs_f64();
        self.histogram.observe(seconds);
        let Some(span) = span else { return };
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        self.exemplars[bucket].offer((span.trace_id, span.span_id), seconds, now_ms);
    }

    /// The latest exemplar of a bucket; the last bucket is `+Inf`.
    pub(crate) fn exemplar(&self, bucket: usize) -> Option<Exemplar> {
        let slot = &self.exemplars[bucket];
        let (trace_id, span_id, seconds) = (*slot.sample.lock().unwrap_or_else(PoisonError::into_inner))?;
        Some(Exemplar { trace_id, span_id: Some(span_id), value: seconds, at_ms: slot.at_ms.load(Ordering::Relaxed) })
    }
}

impl ExemplarSlot {
    fn offer(&self, (trace, span): (TraceId, SpanId), seconds: f64, now_ms: u64) {
        if now_ms.saturating_sub(self.at_ms.load(Ordering::Relaxed)) < EXEMPLAR_AGE_MS {
            return;
        }
        // The holder of the lock is writing one just as recent.
        if let Ok(mut sample) = self.sample.try_lock() {
            *sample = Some((trace, span, seconds));
            self.at_ms.store(now_ms, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exemplar_is_replaced_after_a_second_and_not_before() {
        let slot = ExemplarSlot::default();
        let stored = || slot.sample.lock().unwrap().map(|(trace, ..)| trace);
        let [first, second] = [1_u128, 2].map(TraceId::from);
        slot.offer((first, SpanId::INVALID), 0.1, 10_000);
        slot.offer((second, SpanId::INVALID), 0.2, 10_999);
        assert_eq!(stored(), Some(first));
        slot.offer((second, SpanId::INVALID), 0.2, 11_000);
        assert_eq!(stored(), Some(second));
    }

    #[test]
    fn a_handle_is_created_once_for_its_labels() {
        let family = DurationHistogram::new("d", "Durations.", &["a", "b", "c", "d", "e", "f"]);
        assert!(Arc::ptr_eq(&family.handle(["1", "2", "3", "4", "5", "6"]), &family.handle(["1", "2", "3", "4", "5", "6"])));
        assert!(!Arc::ptr_eq(&family.handle(["1", "2", "3", "4", "5", "6"]), &family.handle(["1", "2", "3", "4", "5", ""])));
    }
}
