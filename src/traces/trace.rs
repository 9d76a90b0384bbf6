//! The tree of the spans of one trace.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::text::shorten;
use crate::traces::ids::{SpanId, TraceId};
use crate::traces::span::{Kind, Span};

/// The longest name in a sentence, characters.
const MAX_NAME: usize = 60;

/// The spans of one trace as a tree, depth first: a parent before its children, children by their clocks.
#[derive(Debug, Clone)]
pub struct Trace {
    id: TraceId,
    rows: Vec<PlacedSpan>,
    services: Vec<Box<str>>,
    start_us: u64,
    duration_us: u64,
    dropped: u64,
    tops: usize,
    requests: usize,
}

/// One span in its place.
#[derive(Debug, Clone)]
pub struct PlacedSpan {
    /// The span.
    pub span: Arc<Span>,
    /// How many spans are above it.
    pub depth: usize,
    /// The index of its parent's row.
    pub parent: Option<usize>,
    /// The parent that it names but that is not in the trace. Such a span is an orphan and stands at the top.
    pub missing_parent: Option<SpanId>,
    /// No sibling follows.
    pub is_last: bool,
}

/// Which span a report is of: its id, on which side of a call it is, and whose.
type SpanKey = (SpanId, Option<Kind>, Option<Box<str>>);

impl Trace {
    /// Orders the spans of one trace; `None` when there are none. Takes time n log n in the spans, whatever they claim.
    pub fn new(spans: Vec<Arc<Span>>) -> Option<Self> {
        let id = spans.first()?.trace_id;
        let parents = parents(&spans);
        let mut children: Vec<Vec<usize>> = vec![Vec::new(); spans.len()];
        let mut tops = Vec::new();
        for (at, parent) in parents.iter().enumerate() {
            match parent {
                Parent::At(parent) => children[*parent].push(at),
                Parent::Root | Parent::Missing(_) => tops.push(at),
            }
        }
        // A span without a time goes last; ids make the order of equal times the same in every run.
        let clock = |at: &usize| {
            (spans[*at].timestamp.unwrap_or(u64::MAX), spans[*at].id.to_bytes(), spans[*at].kind == Some(Kind::Server))
        };
        tops.sort_by_key(clock);
        children.iter_mut().for_each(|siblings| siblings.sort_by_key(clock));

        let mut rows: Vec<PlacedSpan> = Vec::with_capacity(spans.len());
        // A stack of our own: a hostile trace can be as deep as it has spans.
        let mut next: Vec<(usize, Option<usize>, bool)> = tops.iter().rev().map(|top| (*top, None, true)).collect();
        while let Some((at, parent, is_last)) = next.pop() {
            let missing_parent = match parents[at] {
                Parent::Missing(id) => Some(id),
                _ => None,
            };
            let depth = parent.map_or(0, |parent: usize| rows[parent].depth + 1);
            let row = rows.len();
            rows.push(PlacedSpan { span: spans[at].clone(), depth, parent, missing_parent, is_last });
            let siblings = &children[at];
            next.extend(siblings.iter().enumerate().rev().map(|(n, child)| (*child, Some(row), n + 1 == siblings.len())));
        }

        let mut known = HashSet::new();
        let names = rows.iter().filter_map(|row| row.span.service());
        let services = names.filter(|name| known.insert(*name)).map(Box::from).collect();
        let timed = || rows.iter().filter_map(|row| Some((row.span.timestamp?, row.span.duration.unwrap_or(0))));
        let start_us = timed().map(|(start, _)| start).min().unwrap_or(0);
        let end_us = timed().map(|(start, took)| start.saturating_add(took)).max().unwrap_or(0);
        let mut trace = Self { id, services, start_us, duration_us: end_us - start_us, dropped: 0, rows, tops: 0, requests: 1 };
        trace.tops = trace.tops().count();
        trace.requests = trace.tops().filter(|row| trace.is_like_first(row)).count().max(1);
        Some(trace)
    }

    /// The same from reports of which several may be of one span; `None` when there are none.
    pub fn of_reports(reports: Vec<Span>) -> Option<Self> {
        let mut known: HashMap<SpanKey, usize> = HashMap::new();
        let mut spans: Vec<Span> = Vec::with_capacity(reports.len());
        for report in reports {
            let key = |kind| (report.id, kind, report.service().map(Box::from));
            // Whoever copies the headers of one request to many calls makes their callees share one id.
            let is_other = |at: &usize| spans[*at].is_apart_from(&report);
            match report.kinds_of_reports().find_map(|kind| known.remove(&key(kind))).filter(|at| !is_other(at)) {
                Some(at) => {
                    spans[at] = spans[at].updated(report);
                    known.insert((spans[at].id, spans[at].kind, spans[at].service().map(Box::from)), at);
                }
                None => {
                    known.insert(key(report.kind), spans.len());
                    spans.push(report);
                }
            }
        }
        Self::new(spans.into_iter().map(Arc::new).collect())
    }

    /// Notes how many reports of its spans the store did not keep.
    #[must_use]
    pub fn with_dropped(mut self, reports: u64) -> Self {
        self.dropped = reports;
        self
    }

    /// The id that all its spans share.
    pub fn id(&self) -> TraceId {
        self.id
    }

    /// The spans, depth first.
    pub fn rows(&self) -> &[PlacedSpan] {
        &self.rows
    }

    /// The services that reported spans, in the order in which the request reached them.
    pub fn services(&self) -> &[Box<str>] {
        &self.services
    }

    /// When its first span began: microseconds since 1970-01-01 UTC; 0 when no span says.
    pub fn start_us(&self) -> u64 {
        self.start_us
    }

    /// From the beginning of the first span to the end of the last, microseconds.
    pub fn duration_us(&self) -> u64 {
        self.duration_us
    }

    /// How many spans name a parent that is not there and should be.
    pub fn orphans(&self) -> usize {
        self.tops().filter(|row| self.is_orphan(row)).count()
    }

    /// Whether a span names a parent that is not there and should be.
    pub fn is_orphan(&self, row: &PlacedSpan) -> bool {
        row.missing_parent.is_some() && !self.is_callers(row)
    }

    /// In how many pieces it is: one for each request that used its id, when all is well.
    pub fn pieces(&self) -> usize {
        self.tops + 1 - self.requests
    }

    /// How many spans have no parent.
    pub fn roots(&self) -> usize {
        self.rows.iter().filter(|row| row.parent.is_none() && row.missing_parent.is_none()).count()
    }

    /// The spans at the top: those without a parent, and those whose parent is missing.
    pub fn tops(&self) -> impl Iterator<Item = &PlacedSpan> {
        self.rows.iter().filter(|row| row.parent.is_none())
    }

    /// How many requests used its id: as many as server spans of the service where the first one arrived stand at the top.
    pub fn requests(&self) -> usize {
        self.requests
    }

    /// Whether a span at the top is a server span of the service at which the trace begins.
    pub(crate) fn is_like_first(&self, row: &PlacedSpan) -> bool {
        let is_server = |row: &PlacedSpan| row.span.kind == Some(Kind::Server) && row.span.service().is_some();
        self.rows.first().is_some_and(|first| is_server(first) && is_server(row) && row.span.service() == first.span.service())
    }

    /// Whether a missing parent is that of a caller who sent its id along and reports nothing: nothing is wrong with that.
    pub fn is_callers(&self, row: &PlacedSpan) -> bool {
        let begins = self.tops == 1 || (self.requests > 1 && self.is_like_first(row));
        row.missing_parent.is_some() && begins && !self.names_descendant(row)
    }

    /// What may surprise a reader although nothing is wrong, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.requests > 1 {
            notes.push(format!("{} requests used this trace id. Their spans are all here.", self.requests));
        }
        let first = self.rows.first().filter(|first| self.is_callers(first));
        if let Some((first, parent)) = first.and_then(|first| Some((first, first.missing_parent?))) {
            let service = shorten(first.span.service().unwrap_or("the first service"), MAX_NAME);
            notes.push(format!(
                "The first span hangs below {parent}, the id that the caller sent along. The caller reports no spans here, so \
                 the picture begins at {service}."
            ));
        }
        notes
    }

    /// The part of it that one request left: the span `top`, which stands at the top, and everything below it.
    pub fn of_request(&self, top: SpanId) -> Option<Self> {
        let first = self.rows.iter().position(|row| row.parent.is_none() && row.span.id == top)?;
        let below = self.rows[first + 1..].iter().take_while(|row| row.parent.is_some());
        Self::new(std::iter::once(&self.rows[first]).chain(below).map(|row| row.span.clone()).collect())
    }

    /// Whether the missing parent of this row is there after all, but below it: spans that name each other.
    pub fn names_descendant(&self, row: &PlacedSpan) -> bool {
        row.missing_parent.is_some_and(|parent| self.rows.iter().any(|other| other.span.id == parent))
    }

    /// How many reports of its spans the store did not keep because the trace was at its limit.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// How many spans failed, by the word of those who reported them.
    pub fn errors(&self) -> usize {
        self.rows.iter().filter(|row| row.span.is_error()).count()
    }
}

/// Where a span hangs in its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parent {
    /// It has no parent: here the trace began.
    Root,
    /// Its parent is the span at this index.
    At(usize),
    /// It names a parent that is not among the spans.
    Missing(SpanId),
}

/// Finds the parent of each span of one trace, by Zipkin's rules for shared ids. Takes time n log n in the spans; the
/// result has no cycles, whatever the spans claim.
pub(crate) fn parents(spans: &[Arc<Span>]) -> Vec<Parent> {
    let mut own: HashMap<SpanId, usize> = HashMap::with_capacity(spans.len());
    let mut clients: HashMap<SpanId, usize> = HashMap::new();
    for (at, span) in spans.iter().enumerate() {
        if span.kind == Some(Kind::Client) {
            clients.entry(span.id).or_insert(at);
        }
    }
    // Reporters that share ids do not all say so: a server with the id of a client of this trace shares it.
    let shares = |span: &Span| span.shared || (span.kind == Some(Kind::Server) && clients.contains_key(&span.id));
    let mut shared: HashMap<(SpanId, Option<&str>), Vec<usize>> = HashMap::new();
    let mut shared_by_any: HashMap<SpanId, usize> = HashMap::new();
    for (at, span) in spans.iter().enumerate() {
        if shares(span) {
            shared.entry((span.id, span.service())).or_default().push(at);
            shared_by_any.entry(span.id).or_insert(at);
        } else {
            own.entry(span.id).or_insert(at);
        }
    }
    shared.values_mut().for_each(|halves| halves.sort_by_key(|at| spans[*at].timestamp));
    // Of several halves the one that began last before the span.
    let half = |parent: SpanId, span: &Span| {
        let halves = shared.get(&(parent, span.service()))?;
        let before = halves.partition_point(|at| spans[*at].timestamp <= span.timestamp);
        halves.get(before.saturating_sub(1)).copied()
    };
    let mut parents: Vec<Parent> = spans
        .iter()
        .map(|span| {
            if shares(span)
                && let Some(client) = clients.get(&span.id).or_else(|| own.get(&span.id))
            {
                return Parent::At(*client);
            }
            let Some(parent) = span.parent_id else { return Parent::Root };
            // The nearest candidate first: the server half in the same service, then whoever has the id alone.
            let found = half(parent, span).or_else(|| own.get(&parent).or_else(|| shared_by_any.get(&parent)).copied());
            found.map_or(Parent::Missing(parent), Parent::At)
        })
        .collect();
    break_cycles(spans, &mut parents);
    parents
}

fn break_cycles(spans: &[Arc<Span>], parents: &mut [Parent]) {
    // 0: not visited; otherwise the walk that came first. Meeting one's own walk again is a cycle.
    let mut visited = vec![0usize; parents.len()];
    for start in 0..parents.len() {
        let mut at = start;
        loop {
            if visited[at] == start + 1 {
                if let Parent::At(parent) = parents[at] {
                    parents[at] = Parent::Missing(spans[parent].id);
                }
                break;
            }
            if visited[at] != 0 {
                break;
            }
            visited[at] = start + 1;
            match parents[at] {
                Parent::At(parent) => at = parent,
                _ => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::ids::parse_span_id;
    use crate::traces::span::decode;

    fn tree(json: &str) -> Vec<Parent> {
        parents(&decode(json.as_bytes(), 100).unwrap().into_iter().map(Arc::new).collect::<Vec<_>>())
    }

    #[test]
    fn a_server_that_shares_its_callers_id_hangs_below_the_caller() {
        for said in [r#","shared":true"#, ""] {
            let parents = tree(&format!(
                r#"[{{"traceId":"a","id":"2","parentId":"1","kind":"SERVER","localEndpoint":{{"serviceName":"s2"}}{said}}},
                {{"traceId":"a","id":"2","parentId":"1","kind":"CLIENT","localEndpoint":{{"serviceName":"s1"}}}},
                {{"traceId":"a","id":"1","kind":"SERVER","localEndpoint":{{"serviceName":"s1"}}}},
                {{"traceId":"a","id":"3","parentId":"2","localEndpoint":{{"serviceName":"s2"}}}},
                {{"traceId":"a","id":"4","parentId":"2","localEndpoint":{{"serviceName":"s1"}}}}]"#
            ));
            let expected = [Parent::At(1), Parent::At(2), Parent::Root, Parent::At(0), Parent::At(1)];
            assert_eq!(parents, expected);
        }
    }

    #[test]
    fn a_missing_parent_is_found_and_a_cycle_is_broken() {
        let parents = tree(
            r#"[{"traceId":"a","id":"1","parentId":"2"},{"traceId":"a","id":"2","parentId":"1"},{"traceId":"a","id":"3","parentId":"9"}]"#,
        );
        assert_eq!(parents[2], Parent::Missing(parse_span_id("9").unwrap()));
        assert_eq!(parents[..2].iter().filter(|p| matches!(p, Parent::At(_))).count(), 1, "{parents:?}");
        // Two servers that claim to share each other's id through their parents, in one service.
        let shared = tree(
            r#"[{"traceId":"a","id":"1","parentId":"2","shared":true},{"traceId":"a","id":"2","parentId":"1","shared":true}]"#,
        );
        assert_eq!(shared.iter().filter(|p| matches!(p, Parent::At(_))).count(), 1, "{shared:?}");
    }

    #[test]
    fn spans_in_any_order_become_a_tree_from_the_front_to_the_last_hop() {
        let json = r#"[
            {"traceId":"a","id":"3","parentId":"2","kind":"SERVER","timestamp":108,"duration":31,"localEndpoint":{"serviceName":"service2"}},
            {"traceId":"a","id":"2","parentId":"1","kind":"CLIENT","timestamp":107,"duration":32,"localEndpoint":{"serviceName":"service1"}},
            {"traceId":"a","id":"1","kind":"SERVER","timestamp":100,"duration":42,"localEndpoint":{"serviceName":"service1"}},
            {"traceId":"a","id":"5","parentId":"4","kind":"SERVER","timestamp":121,"duration":17,"localEndpoint":{"serviceName":"service3"}},
            {"traceId":"a","id":"4","parentId":"3","kind":"CLIENT","timestamp":120,"duration":18,"localEndpoint":{"serviceName":"service2"}}]"#;
        let trace = Trace::new(decode(json.as_bytes(), 9).unwrap().into_iter().map(Arc::new).collect()).unwrap();
        let tree: Vec<_> = trace.rows().iter().map(|row| (row.depth, row.parent, row.span.service().unwrap())).collect();
        let expected = [
            (0, None, "service1"),
            (1, Some(0), "service1"),
            (2, Some(1), "service2"),
            (3, Some(2), "service2"),
            (4, Some(3), "service3"),
        ];
        assert_eq!(tree, expected);
        assert_eq!(trace.services().iter().map(AsRef::as_ref).collect::<Vec<_>>(), ["service1", "service2", "service3"]);
        assert_eq!((trace.start_us(), trace.duration_us(), trace.orphans(), trace.roots()), (100, 42, 0, 1));
        assert!(Trace::new(Vec::new()).is_none());
    }

    #[test]
    fn a_span_that_was_reported_twice_or_in_parts_counts_once() {
        let json = r#"[
            {"traceId":"a","id":"1","kind":"CLIENT","timestamp":5,"localEndpoint":{"serviceName":"a"}},
            {"traceId":"a","id":"1","kind":"SERVER","shared":true,"localEndpoint":{"serviceName":"b"}},
            {"traceId":"a","id":"1","duration":7,"localEndpoint":{"serviceName":"a"}},
            {"traceId":"a","id":"1","kind":"CLIENT","timestamp":5,"localEndpoint":{"serviceName":"a"}},
            {"traceId":"a","id":"2","localEndpoint":{"serviceName":"a"}},
            {"traceId":"a","id":"2","kind":"PRODUCER","localEndpoint":{"serviceName":"a"}},
            {"traceId":"a","id":"2","kind":"PRODUCER","localEndpoint":{"serviceName":"a"}}]"#;
        let trace = Trace::of_reports(decode(json.as_bytes(), 9).unwrap()).unwrap();
        let mut spans: Vec<_> = trace.rows().iter().map(|row| (row.span.kind, row.span.duration)).collect();
        spans.sort_by_key(|(kind, _)| kind.map(Kind::as_str));
        assert_eq!(spans, [(Some(Kind::Client), Some(7)), (Some(Kind::Producer), None), (Some(Kind::Server), None)]);
        assert!(Trace::of_reports(Vec::new()).is_none());
    }
}
