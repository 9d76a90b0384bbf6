//! Zipkin's search for traces: the parameters and what they match.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use crate::traces::Span;

/// The period of a query, Zipkin's default.
const DEFAULT_LOOKBACK_MS: u64 = 24 * 60 * 60 * 1000;

/// Zipkin lower-cases names; here they keep their case, and questions ignore it.
pub(super) fn same(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b)
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub(super) struct TraceQuery {
    service_name: Option<String>,
    remote_service_name: Option<String>,
    span_name: Option<String>,
    annotation_query: Option<String>,
    min_duration: Option<u64>,
    max_duration: Option<u64>,
    end_ts: Option<u64>,
    lookback: Option<u64>,
    pub(super) limit: Option<usize>,
}

/// A search, in Zipkin's terms: all of it has to be found among the spans of `service`, not in one of them.
pub(super) struct Filter {
    service: Option<String>,
    remote_service: Option<String>,
    span: Option<String>,
    annotations: Vec<(String, String)>,
    min_us: Option<u64>,
    max_us: u64,
    window: Window,
}

/// The time in which a trace has to begin, microseconds since 1970, both ends included.
pub(super) struct Window {
    from_us: u64,
    to_us: u64,
}

impl Window {
    /// From Zipkin's parameters, which are milliseconds.
    pub(super) fn new(end_ms: Option<u64>, lookback_ms: Option<u64>) -> Result<Self, String> {
        if end_ms == Some(0) || lookback_ms == Some(0) {
            return Err("endTs and lookback are milliseconds above 0".into());
        }
        // Rounded up: a span that began within the current millisecond has begun.
        let end_ms = end_ms.unwrap_or_else(|| {
            u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis())
                .unwrap_or(u64::MAX)
                .saturating_add(1)
        });
        let from_ms = end_ms.saturating_sub(lookback_ms.unwrap_or(DEFAULT_LOOKBACK_MS));
        Ok(Self { from_us: from_ms.saturating_mul(1000), to_us: end_ms.saturating_mul(1000) })
    }

    pub(super) fn holds(&self, begin_us: u64) -> bool {
        (self.from_us..=self.to_us).contains(&begin_us)
    }
}

/// When a trace began: its root's timestamp, else the earliest.
pub(super) fn begin_us(spans: &[Arc<Span>]) -> Option<u64> {
    let root = spans.iter().find(|span| span.parent_id.is_none() && span.timestamp.is_some());
    root.map_or_else(|| spans.iter().filter_map(|span| span.timestamp).min(), |root| root.timestamp)
}

impl TraceQuery {
    pub(super) fn filter(self) -> Result<Filter, String> {
        match (self.min_duration, self.max_duration) {
            (Some(0), _) => return Err("minDuration is microseconds above 0".into()),
            (None, Some(_)) => return Err("maxDuration needs minDuration beside it".into()),
            (Some(min), Some(max)) if max < min => return Err("maxDuration is below minDuration".into()),
            _ => {}
        }
        let given = |name: Option<String>| name.filter(|name| !name.is_empty());
        Ok(Filter {
            service: given(self.service_name),
            remote_service: given(self.remote_service_name),
            // Zipkin's own page sends "all" for any.
            span: given(self.span_name).filter(|name| !same(name, "all")),
            annotations: self.annotation_query.as_deref().map(parse_annotations).unwrap_or_default(),
            min_us: self.min_duration,
            max_us: self.max_duration.unwrap_or(u64::MAX),
            window: Window::new(self.end_ts, self.lookback)?,
        })
    }
}

/// `error and http.method=GET`: keys that have to be there, as an event or a tag, and tags with their values.
fn parse_annotations(query: &str) -> Vec<(String, String)> {
    let mut wanted: BTreeMap<String, String> = BTreeMap::new();
    for part in query.split(" and ").take(100) {
        match part.split_once('=') {
            Some((key, value)) => {
                wanted.insert(key.trim().into(), value.trim().into());
            }
            None => {
                wanted.entry(part.trim().into()).or_default();
            }
        }
    }
    wanted.remove("");
    wanted.into_iter().collect()
}

impl Filter {
    pub(super) fn matches(&self, spans: &[Arc<Span>]) -> bool {
        if !begin_us(spans).is_some_and(|begin| self.window.holds(begin)) {
            return false;
        }
        let of_service = |span: &&Arc<Span>| {
            self.service.as_deref().is_none_or(|wanted| span.service().is_some_and(|name| same(name, wanted)))
        };
        let any = |test: &dyn Fn(&Span) -> bool| spans.iter().filter(of_service).any(|span| test(span));
        any(&|_| true)
            && self.span.as_deref().is_none_or(|wanted| any(&|span| span.name.as_deref().is_some_and(|name| same(name, wanted))))
            && self
                .remote_service
                .as_deref()
                .is_none_or(|wanted| any(&|span| span.remote_service().is_some_and(|name| same(name, wanted))))
            && self.min_us.is_none_or(|min| any(&|span| span.duration.is_some_and(|took| took >= min && took <= self.max_us)))
            && self.annotations.iter().all(|(key, value)| {
                any(&|span| {
                    let event = value.is_empty() && span.annotations.iter().any(|event| *event.value == **key);
                    event || span.tag(key).is_some_and(|found| value.is_empty() || found == value)
                })
            })
    }
}
