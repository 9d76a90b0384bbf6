//! The traces of a time, read from a backend a window at a time.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use reqwest::Url;

use crate::check::backend::access::BackendRefusal;
use crate::check::backend::client::{Api, Backend};
use crate::traces::{Span, TraceId};

/// Traces that one answer is asked for.
const WINDOW_TRACES: usize = 200;
/// The same of a time of some seconds.
const MANY_TRACES: usize = 2_000;
/// Fewer traces than these are taken for all that there are, not for the backend's limit.
const LEAST_LIMIT: usize = 10;
/// Spans that are kept of all answers.
const MAX_RECENT: usize = 1_000_000;
/// Questions in all.
const MAX_QUESTIONS: usize = 2_000;
/// Zipkin's API counts milliseconds.
const SHORTEST_WINDOW: Duration = Duration::from_millis(1);
/// Where the traces of so short a window are too long for one answer, fewer are asked for.
const SHORTEST_LONG_WINDOW: Duration = Duration::from_secs(1);

/// What was read.
pub(crate) struct Recent {
    pub(crate) spans: Vec<Span>,
    /// Why it is not all.
    pub(crate) left_out: Option<String>,
}

/// What is known of the backend's answers.
struct Paging {
    /// So many traces are an answer that may lack some.
    full: usize,
    /// So many are known not to be its limit.
    whole: usize,
    questions: usize,
    left_out: Option<String>,
}

/// A time in whole milliseconds: between others a trace could be in no window of Zipkin's.
fn whole(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

fn ids(spans: &[Span]) -> HashSet<TraceId> {
    spans.iter().map(|span| span.trace_id).collect()
}

impl Backend {
    /// The spans of the last `limit` traces within `lookback`, of one service or of all. Reads a time window at a time, the
    /// youngest first; a window with more traces, or longer ones, than one answer has is halved.
    ///
    /// # Errors
    ///
    /// The backend's failure, in words.
    pub(crate) async fn recent(&self, service: Option<&str>, lookback: Duration, limit: usize) -> Result<Recent, BackendRefusal> {
        let now = whole(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        let services = match (self.api, service) {
            (_, Some(name)) => vec![Some(name.to_owned())],
            (Api::Zipkin, None) => vec![None],
            // Jaeger answers only for one service at a time.
            (Api::Jaeger, None) => self.services().await?.into_iter().map(Some).collect(),
        };
        let (mut spans, mut traces) = (Vec::new(), HashSet::new());
        let mut paging = Paging { full: WINDOW_TRACES, whole: 0, questions: 0, left_out: None };
        for service in services {
            let mut windows = vec![(whole(now.saturating_sub(lookback)), now)];
            let mut of_service = 0;
            while let Some((from, to)) = windows.pop().filter(|_| of_service < limit) {
                if spans.len() >= MAX_RECENT {
                    paging.left_out = Some(format!("{MAX_RECENT} spans are the most that are kept"));
                    break;
                }
                if paging.questions >= MAX_QUESTIONS {
                    paging.left_out = Some(format!("{MAX_QUESTIONS} questions were not enough"));
                    break;
                }
                let Some(found) = self.one_window(service.as_deref(), (from, to), &mut paging).await? else {
                    let middle = whole(from + (to - from) / 2);
                    windows.extend([(from, middle), (middle, to)]);
                    continue;
                };
                let ids = ids(&found);
                of_service += ids.len();
                spans.extend(found.into_iter().filter(|span| !traces.contains(&span.trace_id)));
                traces.extend(ids);
            }
        }
        Ok(Recent { spans, left_out: paging.left_out })
    }

    /// The traces of a window; `None` where they are more than one answer has.
    async fn one_window(
        &self,
        service: Option<&str>,
        (from, to): (Duration, Duration),
        paging: &mut Paging,
    ) -> Result<Option<Vec<Span>>, BackendRefusal> {
        paging.questions += 1;
        let found = match self.window(service, (from, to), WINDOW_TRACES).await {
            Err(BackendRefusal::TooLong) if to - from <= SHORTEST_LONG_WINDOW => {
                paging.left_out = Some("traces of one second are too long for an answer".to_owned());
                return self.fewer(service, (from, to)).await.map(Some);
            }
            Err(BackendRefusal::TooLong) => return Ok(None),
            found => found?,
        };
        let count = ids(&found).len();
        if count > paging.whole && count < paging.full && count >= LEAST_LIMIT {
            // A trace that arrives meanwhile is more, too: a limit gives the same number again.
            let is_limit = self.has_more(service, (from, to), &found).await?
                && ids(&self.window(service, (from, to), WINDOW_TRACES).await?).len() == count;
            *(if is_limit { &mut paging.full } else { &mut paging.whole }) = count;
            paging.questions += 3;
        }
        if count < paging.full {
            return Ok(Some(found));
        }
        if to - from > SHORTEST_WINDOW {
            return Ok(None);
        }
        paging.left_out = Some(format!("one millisecond has more than the {} traces of an answer", paging.full));
        Ok(Some(found))
    }

    /// Whether a window has traces before or behind those that were found: the backend has a limit of its own.
    async fn has_more(
        &self,
        service: Option<&str>,
        (from, to): (Duration, Duration),
        found: &[Span],
    ) -> Result<bool, BackendRefusal> {
        let known = ids(found);
        let times = || found.iter().filter_map(|span| span.timestamp).map(Duration::from_micros);
        let (Some(first), Some(last)) = (times().min(), times().max()) else { return Ok(false) };
        let (first, last) = (whole(first), whole(last + SHORTEST_WINDOW));
        for (from, to) in [(from, first), (last, to)].into_iter().filter(|(from, to)| from < to) {
            match self.window(service, (from, to), WINDOW_TRACES).await {
                Ok(more) if ids(&more).is_subset(&known) => {}
                Ok(_) | Err(BackendRefusal::TooLong) => return Ok(true),
                Err(refusal) => return Err(refusal),
            }
        }
        Ok(false)
    }

    /// Some traces of a time window whose traces are too long for one answer together.
    async fn fewer(&self, service: Option<&str>, window: (Duration, Duration)) -> Result<Vec<Span>, BackendRefusal> {
        let mut limit = WINDOW_TRACES / 2;
        loop {
            match self.window(service, window, limit).await {
                Err(BackendRefusal::TooLong) if limit > 1 => limit /= 2,
                found => return found,
            }
        }
    }

    async fn window(
        &self,
        service: Option<&str>,
        (from, to): (Duration, Duration),
        limit: usize,
    ) -> Result<Vec<Span>, BackendRefusal> {
        let (path, mut pairs) = match self.api {
            Api::Zipkin => {
                let pairs = [("endTs", to.as_millis().to_string()), ("lookback", (to - from).as_millis().max(1).to_string())];
                ("/api/v2/traces", Vec::from(pairs))
            }
            Api::Jaeger => {
                let pairs = [("start", from.as_micros().to_string()), ("end", to.as_micros().to_string())];
                ("/api/traces", Vec::from(pairs))
            }
        };
        pairs.push(("limit", limit.to_string()));
        if let Some(service) = service {
            let key = if self.api == Api::Zipkin { "serviceName" } else { "service" };
            pairs.push((key, service.to_owned()));
        }
        let url = Url::parse_with_params(&format!("{}{path}", self.base), &pairs);
        let url = url.map_err(|error| BackendRefusal::Unreachable(error.to_string()))?;
        let body = self.fetch(url.as_str()).await?.ok_or(BackendRefusal::Status(404))?;
        self.api.decode(&body)
    }

    /// The spans of every service of some seconds, by the backend's own word of when they began. A time of which an answer is too
    /// long is halved.
    pub(crate) async fn between(&self, from: Duration, to: Duration) -> Result<Vec<Span>, BackendRefusal> {
        let services = match self.api {
            Api::Zipkin => vec![None],
            Api::Jaeger => self.services().await?.into_iter().map(Some).collect(),
        };
        let (mut spans, mut traces) = (Vec::new(), HashSet::new());
        for service in services {
            let mut windows = vec![(from, to)];
            while let Some((from, to)) = windows.pop() {
                let found = match self.window(service.as_deref(), (from, to), MANY_TRACES).await {
                    Err(BackendRefusal::TooLong) if to - from > SHORTEST_WINDOW => {
                        let middle = whole(from + (to - from) / 2);
                        windows.extend([(from, middle), (middle, to)]);
                        continue;
                    }
                    found => found?,
                };
                let ids = ids(&found);
                spans.extend(found.into_iter().filter(|span| !traces.contains(&span.trace_id)));
                traces.extend(ids);
                if spans.len() >= MAX_RECENT {
                    return Err(BackendRefusal::TooLong);
                }
            }
        }
        Ok(spans)
    }
}
