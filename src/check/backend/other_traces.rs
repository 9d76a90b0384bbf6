//! Traces of a backend that began while requests were sent, and are none of theirs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use crate::check::backend::access::BackendRefusal;
use crate::check::backend::client::Backend;
use crate::traces::{REQUEST_ID_TAGS, Span, TraceId};

/// How probable it may be that traces of others begin in the time of every request.
pub(super) const CHANCE: f64 = 1e-4;

/// From when to when, since 1970.
pub(super) type CallTime = (Duration, Duration);

/// The service whose span is the first, and when it began.
pub(super) fn beginner<'a>(spans: impl Iterator<Item = &'a Span>) -> Option<(String, Duration)> {
    let first = spans.filter(|span| span.timestamp.is_some()).min_by_key(|span| (span.timestamp, span.parent_id.is_some()))?;
    Some((first.service()?.to_owned(), Duration::from_micros(first.timestamp?)))
}

/// Traces of others.
#[derive(Default)]
pub(super) struct OtherTraces {
    /// By the service that began them.
    begun: BTreeMap<String, Vec<(Duration, TraceId)>>,
    /// By the request ids in their spans.
    of_requests: HashMap<String, (String, TraceId)>,
}

impl OtherTraces {
    /// Reads those around the time of these requests that are none of `own`. `is_hop`: whether a service is one whose traces do not count.
    pub(super) async fn read(
        backend: &Backend,
        requests: &[CallTime],
        own: &HashSet<TraceId>,
        is_hop: impl Fn(&str) -> bool,
    ) -> Result<Self, BackendRefusal> {
        const MARGIN: Duration = Duration::from_secs(1);
        let (Some(from), Some(to)) = (requests.iter().map(|time| time.0).min(), requests.iter().map(|time| time.1).max()) else {
            return Ok(Self::default());
        };
        let spans = backend.between(from.saturating_sub(MARGIN), to + MARGIN).await?;
        let mut traces: HashMap<TraceId, Vec<&Span>> = HashMap::new();
        for span in spans.iter().filter(|span| !own.contains(&span.trace_id)) {
            traces.entry(span.trace_id).or_default().push(span);
        }
        let mut others = Self::default();
        for (id, spans) in traces {
            let Some((service, at)) = beginner(spans.iter().copied()) else { continue };
            for request in spans.iter().flat_map(|span| REQUEST_ID_TAGS.iter().filter_map(|tag| span.tag(tag))) {
                others.of_requests.insert(request.to_owned(), (service.clone(), id));
            }
            if !is_hop(&service) {
                others.begun.entry(service).or_default().push((at, id));
            }
        }
        Ok(others)
    }

    /// The trace with this request id, and who began it.
    pub(super) fn of_request(&self, id: &str) -> Option<(String, TraceId)> {
        self.of_requests.get(id).cloned()
    }

    /// A service that begins a trace in each of these times, the traces, and how probable that is as chance. `all`: when requests were sent.
    pub(super) fn in_time_of(&self, times: &[CallTime], all: &[CallTime]) -> Option<(String, Vec<TraceId>, f64)> {
        let (from, to) = (all.first()?.0, all.last()?.1);
        let inside: f64 = all.iter().map(|time| (time.1 - time.0).as_secs_f64()).sum();
        let outside = (to.saturating_sub(from).as_secs_f64() - inside).max(0.001);
        let is_within = |at: Duration, time: &CallTime| time.0 <= at && at <= time.1;
        let candidates = self.begun.iter().filter_map(|(service, traces)| {
            let hit = |time: &CallTime| traces.iter().find(|(at, _)| is_within(*at, time)).map(|(_, id)| *id);
            let hits: Vec<TraceId> = times.iter().filter_map(hit).collect();
            let is_other = |at: Duration| from <= at && at <= to && !all.iter().any(|time| is_within(at, time));
            let rate = (traces.iter().filter(|(at, _)| is_other(*at)).count() + 1) as f64 / outside;
            let chance: f64 = times.iter().map(|time| 1.0 - (-rate * (time.1 - time.0).as_secs_f64()).exp()).product();
            let first = traces.iter().map(|(at, _)| *at).min()?;
            (!hits.is_empty() && hits.len() == times.len()).then(|| (chance >= CHANCE, first, (service.clone(), hits, chance)))
        });
        // Of several the first one is where the trace broke.
        candidates.min_by_key(|(is_chance, first, _)| (*is_chance, *first)).map(|(.., found)| found)
    }
}
