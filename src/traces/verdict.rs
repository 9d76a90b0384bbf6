//! Whether the traces of one request are whole; if not, where they broke and which services did not report.
//!
//! There is one set of rules. `check`, the terminal of the demo and its page differ only in what they expect.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;

use serde::Serialize;

use crate::text::counted;
use crate::text::shorten;
use crate::traces::failure::{Failure, listed};
use crate::traces::ids::{self, SpanId, TraceId};
use crate::traces::span::{Kind, Span};
use crate::traces::trace::{PlacedSpan, Trace};

/// Orphans named in sentences, for each trace; more are counted.
const NAMED_ORPHANS: usize = 5;
/// Services named in a sentence.
const NAMED_SERVICES: usize = 8;
/// How many services are distinguished; a hostile trace has thousands.
const MAX_SERVICES: usize = 200;
const UNSAMPLED: &str = "the rest is not sampled";
/// The longest name in a sentence, characters.
const MAX_NAME: usize = 60;

/// Who sent the request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Caller {
    /// Somebody outside every trace: the first span has no parent.
    #[default]
    Untraced,
    /// Somebody who sent one of these span ids along. A client span of that id is the caller's own report: it is no part of
    /// what is counted.
    Known(Vec<SpanId>),
    /// Not known. A trace with a single span at its top is whole, whether that names a parent or not.
    Unknown,
}

impl Caller {
    /// Whether a span is the caller's report of its request.
    pub(crate) fn is_span(&self, span: &Span) -> bool {
        matches!(self, Self::Known(callers) if span.kind == Some(Kind::Client) && callers.contains(&span.id))
    }
}

/// What one request has to leave behind. The default expects one whole trace, of any size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExpectedTrace {
    /// Traces; `None` for one.
    pub traces: Option<usize>,
    /// The trace id that the request brought; `None` when it brought none.
    pub trace_id: Option<TraceId>,
    /// How many services report; `None` for any number.
    pub services: Option<RangeInclusive<usize>>,
    /// Spans of all of them; `None` for any number.
    pub spans: Option<usize>,
    /// Spans that failed; `None` for any number: a failed request has a whole trace, too.
    pub errors: Option<usize>,
    /// Who sent the request.
    pub caller: Caller,
    /// Spans that are known from the replies.
    pub required: Vec<ExpectedSpan>,
    /// The services that take part, as far as they are known.
    pub hops: Vec<Box<str>>,
    /// How the request failed, by its reply; `None` where the spans are all there is to read it from.
    pub failure: Option<Failure>,
    /// Where the trace broke, by the reply: a sentence each.
    pub breaks: Vec<String>,
    /// A hop on the way turned "sampled" into "not sampled": what is behind it reports nothing.
    pub sampling_ends: bool,
    /// Every app runs beside a sidecar that reports: an app's server span hangs below its own sidecar's, and a sidecar's client
    /// span below its app's.
    pub sidecars: bool,
}

impl ExpectedTrace {
    /// One request over `hops` services, each called once: a server span at each, and a client span for each call between
    /// two. A chain and a fan-out from the first hop have the same number of calls.
    pub fn of_hops(hops: usize) -> Self {
        Self { services: Some(hops..=hops), spans: Some((2 * hops).saturating_sub(1)), ..Self::default() }
    }
}

/// A span that must have arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExpectedSpan {
    /// The trace that it belongs to.
    #[serde(with = "ids::trace_id")]
    pub trace_id: TraceId,
    /// Its id.
    #[serde(with = "ids::span_id")]
    pub id: SpanId,
    /// Who has to report it.
    pub service: Box<str>,
    /// Its parent; `None` for whatever the reporter says.
    #[serde(with = "ids::parent_id", skip_serializing_if = "Option::is_none")]
    pub parent: Option<SpanId>,
    /// The server span of the caller, which has to be above it; `None` for any.
    #[serde(with = "ids::parent_id", skip_serializing_if = "Option::is_none")]
    pub ancestor: Option<SpanId>,
    /// Its side of the call; `None` for whatever the reporter says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// The route that its name must end in; `None` for any name.
    #[serde(skip)]
    pub route: Option<String>,
    /// Tags with the values that they must have.
    #[serde(skip)]
    pub tags: Vec<(&'static str, String)>,
}

/// A span whose parent is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Orphan {
    /// The span.
    #[serde(with = "ids::span_id")]
    pub id: SpanId,
    /// The parent that it names.
    #[serde(with = "ids::span_id")]
    pub parent: SpanId,
    /// Who reported the span; empty when it does not say.
    pub service: Box<str>,
    /// The span's name; empty when it has none.
    pub name: Box<str>,
}

/// A span in the wrong place of the tree, or with other values than expected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Misplaced {
    /// The span.
    #[serde(with = "ids::span_id")]
    pub id: SpanId,
    /// What is wrong, a sentence.
    pub text: String,
}

/// What arrived, compared with what was expected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Everything is as expected.
    pub whole: bool,
    /// The traces that the one request became, as Zipkin writes ids.
    pub traces: Vec<String>,
    /// The services that reported, in the order in which the request reached them.
    pub services: Vec<Box<str>>,
    /// Spans in all traces.
    pub spans: usize,
    /// How many requests used the trace id.
    pub requests: usize,
    /// How the request failed, a sentence; `None` when it did not. A whole trace may be of a request that failed.
    pub failure: Option<String>,
    /// Spans that failed, by the word of those who reported them. A whole trace may have some.
    pub errors: usize,
    /// The services at which a trace begins although it should go on: here it broke.
    pub broken_at: Vec<Box<str>>,
    /// Spans whose parent is missing, but for the caller's.
    pub orphans: Vec<Orphan>,
    /// Required spans that did not arrive.
    pub missing: Vec<ExpectedSpan>,
    /// Spans in the wrong place, or with other tags than required.
    pub misplaced: Vec<Misplaced>,
    /// A sentence for everything that is not as expected; empty when the traces are whole.
    pub deviations: Vec<String>,
    /// What may surprise a reader although nothing is wrong with it, a sentence each.
    pub notes: Vec<String>,
}

impl Verdict {
    /// Compares the traces that one request became (one, when all is well) with what is expected of it.
    pub fn of(traces: &[Trace], expected: &ExpectedTrace) -> Self {
        let mut verdict = Self {
            traces: traces.iter().map(|trace| ids::zipkin_id(trace.id())).collect(),
            services: services(traces, &expected.caller),
            spans: traces.iter().flat_map(Trace::rows).filter(|row| !expected.caller.is_span(&row.span)).count(),
            errors: traces.iter().map(Trace::errors).sum(),
            requests: traces.iter().map(Trace::requests).max().unwrap_or_default(),
            ..Self::default()
        };
        let failure = expected.failure.clone().or_else(|| traces.first().and_then(Failure::of));
        let failure = failure.map(|failure| failure.read_faults(traces));
        let never_called = failure.as_ref().map_or_else(Vec::new, |failure| verdict.never_called(failure, expected));
        verdict.failure = failure.as_ref().map(|failure| failure.sentence(&never_called));
        verdict.compare_counts(failure.as_ref(), expected, &never_called);
        verdict.deviations.extend(expected.breaks.iter().cloned());
        for trace in traces {
            verdict.add_tops(trace, expected);
            verdict.notes.extend(trace.notes());
        }
        verdict.compare_spans(traces, expected);
        verdict.whole = verdict.deviations.is_empty();
        verdict
    }

    fn say(&mut self, text: impl Into<String>) {
        self.deviations.push(text.into());
    }

    /// The services that no call reached, because each branch of the request ended in an error before them.
    fn never_called(&self, failure: &Failure, expected: &ExpectedTrace) -> Vec<Box<str>> {
        let unheard = expected.hops.iter().filter(|name| !self.services.contains(name) && !failure.reached.contains(name));
        let unheard: Vec<_> = unheard.cloned().collect();
        if failure.ended_in_answers() && self.traces.len() <= 1 { unheard } else { Vec::new() }
    }

    /// Why fewer services than `wanted` reported.
    fn why_few(&self, failure: Option<&Failure>, expected: &ExpectedTrace, never_called: &[Box<str>], wanted: usize) -> String {
        let unheard: Vec<_> = expected.hops.iter().filter(|name| !self.services.contains(name)).cloned().collect();
        let is_known = self.services.len() + unheard.len() == wanted && self.traces.len() == 1;
        let in_vain = failure.filter(|_| is_known).map_or_else(Vec::new, |failure| failure.called_in_vain(&unheard));
        let others: Vec<_> = unheard.iter().filter(|name| !in_vain.contains(name)).cloned().collect();
        match (&in_vain[..], &others[..]) {
            ([], _) if is_known && !never_called.is_empty() && never_called == unheard => {
                format!("{} {} never called", listed(never_called), if unheard.len() == 1 { "was" } else { "were" })
            }
            ([], _) if expected.sampling_ends => UNSAMPLED.to_owned(),
            ([], _) if !expected.breaks.is_empty() => "the rest is in another trace".to_owned(),
            ([], _) => "the others were not reached, do not report, are in another trace because a hop lost the trace headers, or their spans are still on the way".to_owned(),
            (_, []) => format!("{} was called in vain and has not reported", listed(&in_vain)),
            _ => format!("{} was called in vain and has not reported; nobody knows of {}", listed(&in_vain), listed(&others)),
        }
    }

    fn compare_counts(&mut self, failure: Option<&Failure>, expected: &ExpectedTrace, never_called: &[Box<str>]) {
        let (found, wanted) = (self.traces.len(), expected.traces.unwrap_or(1));
        match found {
            0 => return self.say("No trace arrived: the hops do not report spans, report them elsewhere, or did not sample."),
            _ if found > wanted => self.say(format!(
                "The request became {found} traces instead of {wanted}: a hop did not pass the trace headers on, so the next one began anew."
            )),
            _ if found < wanted => self.say(format!("{} instead of {wanted} arrived.", counted(found, "trace"))),
            _ => {}
        }
        if let Some(id) = expected.trace_id.map(ids::zipkin_id).filter(|id| self.traces.iter().any(|trace| trace != id)) {
            self.say(format!("The caller's trace is {id}, and the request is in {}.", self.traces.join(", ")));
        }
        if let Some(wanted) = expected.errors.filter(|wanted| *wanted != self.errors) {
            self.say(format!("{} failed instead of {wanted}.", counted(self.errors, "span")));
        }
        if let Some(services) = expected.services.as_ref().filter(|range| !range.contains(&self.services.len())) {
            let few = self.services.len() < *services.start();
            let wanted = if few { services.start() } else { services.end() };
            let why = if few {
                self.why_few(failure, expected, never_called, *wanted)
            } else {
                "somebody else reports into this trace, a proxy for instance".to_owned()
            };
            let listed: Vec<_> = self.services.iter().take(NAMED_SERVICES).map(|name| shorten(name, MAX_NAME)).collect();
            let found = counted(self.services.len(), "service");
            self.say(format!("{found} instead of {wanted} reported ({}): {why}.", listed.join(", ")));
        }
        // A service that was never called has no server span, and its caller no client span.
        let wanted = expected.spans.map(|wanted| wanted.saturating_sub(2 * never_called.len()));
        if let Some(wanted) = wanted.filter(|wanted| *wanted != self.spans) {
            let why = match self.spans < wanted {
                true if expected.sampling_ends => UNSAMPLED,
                true => "some are still on the way, were lost, or a call was never made",
                false => "a call was made more than once, or somebody else reports too",
            };
            let found = counted(self.spans, "span");
            self.say(format!("{found} instead of {wanted} arrived (a server span per service, a client span per call): {why}."));
        }
    }

    /// The spans without a parent in `trace`: one is where it begins, every further one is where it broke.
    fn add_tops(&mut self, trace: &Trace, expected: &ExpectedTrace) {
        let tops: Vec<&PlacedSpan> = trace.tops().collect();
        let alone = tops.len() == 1;
        let begins = |row: &PlacedSpan| match (&expected.caller, row.missing_parent) {
            (Caller::Known(callers), Some(parent)) => callers.contains(&parent),
            (Caller::Known(callers), None) => callers.is_empty() || expected.caller.is_span(&row.span),
            (Caller::Unknown, Some(_)) => alone || trace.is_callers(row),
            (Caller::Untraced, Some(_)) => false,
            (Caller::Untraced | Caller::Unknown, None) => true,
        };
        let (beginnings, orphans): (Vec<&PlacedSpan>, Vec<&PlacedSpan>) = tops.into_iter().partition(|row| begins(row));
        let service = |row: &PlacedSpan| Box::from(row.span.service().unwrap_or_default());
        // Each request that used the id has a beginning of its own.
        let requests = if expected.caller == Caller::Unknown { trace.requests() } else { 1 };
        self.broken_at.extend(beginnings.iter().skip(requests).chain(&orphans).map(|row| service(row)));
        for row in orphans.iter().take(NAMED_ORPHANS) {
            let title = title(&row.span);
            let id = row.span.id;
            self.say(match row.missing_parent {
                None => format!("Span {id} of {title} has no parent, and the caller sent one along."),
                Some(parent) => {
                    let why = if trace.names_descendant(row) {
                        "that span is its own descendant, so one of the two has a wrong parent"
                    } else if alone {
                        "nobody reported that one: the caller sent its id along and reports no span here"
                    } else {
                        "nobody reported that one: a hop passed on an id that is not its own, or its span was lost"
                    };
                    format!("Span {id} of {title} names the parent {parent}, but {why}.")
                }
            });
        }
        if orphans.len() > NAMED_ORPHANS {
            self.say(format!("{} more spans have a parent that nobody reported.", orphans.len() - NAMED_ORPHANS));
        }
        self.orphans.extend(orphans.iter().filter_map(|row| {
            let name = row.span.name.clone().unwrap_or_default();
            Some(Orphan { id: row.span.id, parent: row.missing_parent?, service: service(row), name })
        }));
        if beginnings.len() > requests {
            let id = ids::zipkin_id(trace.id());
            self.say(format!(
                "{} spans of trace {id} have no parent, and one request has one root: a hop kept the trace id but lost its caller's span id.",
                beginnings.len()
            ));
        }
        if trace.dropped() > 0 {
            let id = ids::zipkin_id(trace.id());
            self.say(format!("The store cut trace {id}: {} reports of spans were not kept.", trace.dropped()));
        }
    }

    /// The required spans, and where they hang.
    fn compare_spans(&mut self, traces: &[Trace], expected: &ExpectedTrace) {
        let index = SpanIndex::of(traces, expected);
        for span in &expected.required {
            match index.find(span.trace_id, span.id, span.kind) {
                Some((trace, at)) => {
                    let row = &trace.rows()[at];
                    let ancestor = index.nearest_ancestor(span);
                    let misplaced = differences(&index, row, at, span, ancestor);
                    self.misplaced.extend(misplaced.into_iter().map(|text| Misplaced { id: row.span.id, text }));
                }
                None => self.missing.push(span.clone()),
            }
        }
        if expected.sidecars {
            for trace in traces {
                // A gateway is a proxy without an app.
                let rows = trace.rows().iter().filter(|row| !row.span.is_proxy());
                let apps: HashSet<&str> = rows.filter_map(|row| row.span.service()).collect();
                let apart = trace.rows().iter().filter_map(|row| Some((row, beside_sidecar(trace, row, &apps)?)));
                self.misplaced.extend(apart.map(|(row, text)| Misplaced { id: row.span.id, text }));
            }
        }
        self.deviations.extend(self.misplaced.iter().map(|misplaced| misplaced.text.clone()));
        let mut counts: HashMap<&str, (usize, usize)> = HashMap::new();
        expected.required.iter().for_each(|span| counts.entry(&span.service).or_default().1 += 1);
        self.missing.iter().for_each(|span| counts.entry(&span.service).or_default().0 += 1);
        let silent = self.silent().into_iter().map(|service| {
            let (missing, wanted) = counts.get(&*service).copied().unwrap_or_default();
            format!("{missing} of {wanted} spans of {} did not arrive.", shorten(&service, MAX_NAME))
        });
        self.deviations.extend(silent);
    }

    /// The services of which required spans did not arrive, each once.
    pub fn silent(&self) -> Vec<Box<str>> {
        let mut known = HashSet::new();
        self.missing.iter().map(|span| &span.service).filter(|name| known.insert(*name)).cloned().collect()
    }
}

fn services(traces: &[Trace], caller: &Caller) -> Vec<Box<str>> {
    let mut names: Vec<Box<str>> = Vec::new();
    let own = traces.iter().flat_map(Trace::rows).find(|row| caller.is_span(&row.span)).and_then(|row| row.span.service());
    for name in traces.iter().flat_map(Trace::services).filter(|name| Some(&***name) != own) {
        if names.len() < MAX_SERVICES && !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

/// The spans of the traces and the required ones by their ids: both may be many, and each is looked up for each.
struct SpanIndex<'a> {
    rows: HashMap<(TraceId, SpanId), Vec<(&'a Trace, usize)>>,
    /// For each row of a trace, the first row behind it that is not below it.
    ends: HashMap<TraceId, Vec<usize>>,
    required: HashMap<(TraceId, SpanId), &'a ExpectedSpan>,
}

impl<'a> SpanIndex<'a> {
    fn of(traces: &'a [Trace], expected: &'a ExpectedTrace) -> Self {
        let mut index = Self { rows: HashMap::new(), ends: HashMap::new(), required: HashMap::new() };
        if expected.required.is_empty() {
            return index;
        }
        for trace in traces {
            let mut ends = vec![trace.rows().len(); trace.rows().len()];
            let mut open: Vec<usize> = Vec::new();
            for (at, row) in trace.rows().iter().enumerate() {
                index.rows.entry((trace.id(), row.span.id)).or_default().push((trace, at));
                while let Some(above) = open.pop_if(|above| trace.rows()[*above].depth >= row.depth) {
                    ends[above] = at;
                }
                open.push(at);
            }
            index.ends.insert(trace.id(), ends);
        }
        for span in &expected.required {
            index.required.entry((span.trace_id, span.id)).or_insert(span);
        }
        index
    }

    /// The row of the span with this id, of this kind where two share the id.
    fn find(&self, trace: TraceId, id: SpanId, kind: Option<Kind>) -> Option<(&'a Trace, usize)> {
        let rows = self.rows.get(&(trace, id))?;
        rows.iter().copied().max_by_key(|(trace, at)| trace.rows()[*at].span.kind == kind)
    }

    /// The ancestor of a required span that arrived: where the caller's own span is missing, the one of its caller.
    fn nearest_ancestor(&self, span: &ExpectedSpan) -> Option<SpanId> {
        let mut ancestor = span.ancestor?;
        // Ids in replies may be anything: never more steps than there are spans.
        for _ in 0..self.required.len() {
            let above = self.required.get(&(span.trace_id, ancestor))?;
            if self.find(above.trace_id, above.id, above.kind).is_some() {
                return Some(ancestor);
            }
            ancestor = above.ancestor?;
        }
        None
    }

    /// Whether a span with the id `ancestor` is above the row.
    fn is_below(&self, trace: TraceId, at: usize, ancestor: SpanId) -> bool {
        let rows = self.rows.get(&(trace, ancestor)).map(Vec::as_slice).unwrap_or_default();
        rows.iter().any(|(trace, above)| *above < at && at < self.ends[&trace.id()][*above])
    }
}

/// What of a required span is not as required, a sentence each.
fn differences(
    index: &SpanIndex<'_>,
    row: &PlacedSpan,
    at: usize,
    expected: &ExpectedSpan,
    ancestor: Option<SpanId>,
) -> Vec<String> {
    let mut found = Vec::new();
    let title = title(&row.span);
    if let Some(parent) = expected.parent.filter(|parent| row.span.parent_id != Some(*parent)) {
        let actual = row.span.parent_id.map_or_else(|| "none".to_owned(), |id| id.to_string());
        found.push(format!("{title}: its parent is {actual}, and the hop says {parent}."));
    }
    let id = expected.trace_id;
    if let Some(ancestor) = ancestor.filter(|ancestor| !index.is_below(id, at, *ancestor)) {
        let caller = index.find(id, ancestor, Some(Kind::Server));
        let caller = caller.map_or_else(String::new, |(trace, at)| format!(" of {}", service_of(&trace.rows()[at].span)));
        found.push(format!("{title}: it is not below the span {ancestor}{caller}, which called it."));
    }
    if let Some(kind) = expected.kind.filter(|kind| row.span.kind != Some(*kind)) {
        found.push(format!("{title}: it is not a {} span.", kind.as_str()));
    }
    let name = row.span.name.as_deref().unwrap_or_default().to_ascii_lowercase();
    if let Some(route) = expected.route.as_ref().filter(|route| !name.ends_with(&route.to_ascii_lowercase())) {
        found.push(format!("{title}: its name does not end in the route {route}."));
    }
    for (key, value) in &expected.tags {
        let actual = row.span.tag(key);
        if actual != Some(value) {
            let actual = actual.map_or_else(|| "absent".to_owned(), |text| shorten(text, MAX_NAME));
            found.push(format!("{title}: {key} is {actual}, and not {}.", shorten(value, MAX_NAME)));
        }
    }
    found
}

/// Why a span is not where a sidecar and its app should have put it; `None` when it is, or when the rule is not about it.
fn beside_sidecar(trace: &Trace, row: &PlacedSpan, apps: &HashSet<&str>) -> Option<String> {
    let span = &*row.span;
    let service = span.service()?;
    let above = row.parent.map(|at| &*trace.rows()[at].span).filter(|above| above.service() == Some(service));
    let is_above = |proxy: bool, kind: Kind| above.is_some_and(|above| above.is_proxy() == proxy && above.kind == Some(kind));
    match (span.is_proxy(), span.kind?) {
        (false, Kind::Server) if !is_above(true, Kind::Server) => {
            Some(format!("{}: it is not the child of its own inbound sidecar's span.", title(span)))
        }
        (true, Kind::Client) if apps.contains(service) && !is_above(false, Kind::Client) => {
            Some(format!("{}: the outbound sidecar's span is not the child of its app's client span.", title(span)))
        }
        _ => None,
    }
}

/// `service2 server GET /service{n}`
fn title(span: &Span) -> String {
    let kind = span.kind.map_or("local", Kind::as_str);
    format!("{} {kind} {}", service_of(span), shorten(span.name.as_deref().unwrap_or("(no name)"), MAX_NAME))
}

fn service_of(span: &Span) -> String {
    shorten(span.service().unwrap_or("(no service)"), MAX_NAME)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::traces::ids::{parse_span_id, parse_trace_id};

    /// Spans in short: `a 2<1 client service1`, one a line; `-` is no parent, and `+` behind the kind marks a shared id. Every
    /// trace id is one group of spans.
    fn traces(text: &str) -> Vec<Trace> {
        let mut groups: Vec<Vec<Arc<Span>>> = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let [trace, ids, kind, service] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let (id, parent) = ids.split_once('<').unwrap();
            let mut span = Span::new(parse_trace_id(trace).unwrap(), parse_span_id(id).unwrap());
            span.parent_id = parse_span_id(parent).ok();
            span.shared = kind.ends_with('+');
            span.kind = Some(if kind.starts_with("client") { Kind::Client } else { Kind::Server });
            span.name = Some("get".into());
            span.timestamp = Some(u64::from_be_bytes(span.id.to_bytes()));
            let (service, proxy) = service.strip_suffix("*").map_or((service, false), |service| (service, true));
            span.local_endpoint =
                Some(crate::traces::Endpoint { service_name: Some(service.into()), ..crate::traces::Endpoint::default() });
            if proxy {
                span.tags.insert("component".into(), "proxy".into());
            }
            match groups.iter_mut().find(|group| group[0].trace_id == span.trace_id) {
                Some(group) => group.push(span.into()),
                None => groups.push(vec![span.into()]),
            }
        }
        groups.into_iter().filter_map(Trace::new).collect()
    }

    const WHOLE: &str = "a 1<- server service1
        a 2<1 client service1
        a 3<2 server service2
        a 4<3 client service2
        a 5<4 server service3";

    fn id(text: &str) -> SpanId {
        parse_span_id(text).unwrap()
    }

    /// The spans of [`WHOLE`] as the replies of its hops list them.
    fn required() -> Vec<ExpectedSpan> {
        let span = |service: &str, of: &str, parent: Option<&str>, ancestor: Option<&str>| ExpectedSpan {
            trace_id: parse_trace_id("a").unwrap(),
            id: id(of),
            service: service.into(),
            parent: parent.map(id),
            ancestor: ancestor.map(id),
            kind: None,
            route: None,
            tags: Vec::new(),
        };
        vec![
            span("service1", "1", None, None),
            span("service1", "2", Some("1"), None),
            span("service2", "3", Some("2"), Some("1")),
            span("service2", "4", Some("3"), None),
            span("service3", "5", Some("4"), Some("3")),
        ]
    }

    #[test]
    fn a_span_is_below_those_on_its_path_and_not_below_itself() {
        let (traces, expected) = (traces(WHOLE), of_hops(3));
        let index = SpanIndex::of(&traces, &expected);
        let trace = traces[0].id();
        let (_, last) = index.find(trace, id("5"), None).unwrap();
        let (_, second) = index.find(trace, id("2"), None).unwrap();
        assert!(index.is_below(trace, last, id("1")) && index.is_below(trace, last, id("4")));
        assert!(!index.is_below(trace, last, id("5")) && !index.is_below(trace, second, id("3")));
    }

    /// What a hostile backend and a hostile chain can send: both sides are many, and each is looked up for each.
    #[test]
    fn a_trace_of_100_000_spans_is_compared_with_thousands_of_required_ones_at_once() {
        let trace_id = parse_trace_id("a").unwrap();
        let span_id = |n: u64| SpanId::from_bytes(n.to_be_bytes());
        let spans = (1..=100_000_u64).map(|n| {
            let mut span = Span::new(trace_id, span_id(n));
            span.parent_id = (n > 1).then(|| span_id(n - 1));
            span.name = Some("get".into());
            Arc::new(span)
        });
        let traces = [Trace::new(spans.collect()).unwrap()];
        let required = (1..=15_000_u64).map(|n| ExpectedSpan {
            id: span_id(100_001 - n),
            ancestor: Some(span_id(n)),
            service: format!("service{n}").into(),
            ..required()[0].clone()
        });
        let expected = ExpectedTrace { required: required.collect(), ..ExpectedTrace::default() };
        let begun = std::time::Instant::now();
        let verdict = Verdict::of(&traces, &expected);
        assert!(verdict.missing.is_empty() && verdict.spans == 100_000);
        assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
    }

    fn of_hops(hops: usize) -> ExpectedTrace {
        ExpectedTrace { required: if hops == 3 { required() } else { Vec::new() }, ..ExpectedTrace::of_hops(hops) }
    }

    /// Without the lines of `WHOLE` whose span has this id, and with these instead.
    fn with(id: &str, instead: &str) -> String {
        let kept = WHOLE.lines().filter(|line| !line.trim().starts_with(&format!("a {id}<")));
        kept.chain(instead.lines()).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_verdict_of_small_traces() {
        let known = |callers: &[&str]| ExpectedTrace {
            caller: Caller::Known(callers.iter().map(|text| id(text)).collect()),
            ..of_hops(3)
        };
        let unknown = ExpectedTrace { caller: Caller::Unknown, ..of_hops(3) };
        let called = WHOLE.replace("1<-", "1<9");
        // Spans, what is expected, where it broke, who did not report, orphans, and how each deviation begins or ends.
        type Case<'a> = (&'a str, String, ExpectedTrace, &'a [&'a str], &'a [&'a str], usize, &'a [&'a str]);
        let cases: &[Case<'_>] = &[
            ("whole", WHOLE.into(), of_hops(3), &[], &[], 0, &[]),
            ("whole below its caller", called.clone(), known(&["9"]), &[], &[], 0, &[]),
            ("whole below whoever called", called.clone(), unknown.clone(), &[], &[], 0, &[]),
            ("nobody should have called", called.clone(), of_hops(3), &["service1"], &[], 1, &["the caller sent its id along"]),
            ("another caller", called, known(&["8"]), &["service1"], &[], 1, &["the caller sent its id along"]),
            ("the caller was forgotten", WHOLE.into(), known(&["9"]), &["service1"], &[], 0, &["and the caller sent one along"]),
            (
                "two roots",
                with("3", "a 3<- server service2"),
                of_hops(3),
                &["service2"],
                &[],
                0,
                &["2 spans of trace 000000000000000a have no parent", "and the hop says 0000000000000002", "which called it"],
            ),
            (
                "an orphan",
                with("3", "a 3<7 server service2"),
                of_hops(3),
                &["service2"],
                &[],
                1,
                &["names the parent 0000000000000007", "and the hop says", "which called it"],
            ),
            (
                "a missing leaf",
                with("5", ""),
                of_hops(3),
                &[],
                &["service3"],
                0,
                &["2 services", "4 spans", "1 of 1 spans of service3"],
            ),
            (
                "a missing middle",
                with("4", ""),
                of_hops(3),
                &["service3"],
                &["service2"],
                1,
                &["4 spans", "names the parent 0000000000000004", "which called it", "1 of 2 spans of service2"],
            ),
            (
                "one id for both halves of a call, as B3 allows",
                "a 1<- server service1
                 a 2<1 client service1
                 a 2<1 server+ service2
                 a 4<2 client service2
                 a 4<2 server+ service3"
                    .into(),
                ExpectedTrace::of_hops(3),
                &[],
                &[],
                0,
                &[],
            ),
            (
                "two traces",
                "a 1<- server service1
                 a 2<1 client service1
                 b 3<- server service2
                 b 4<3 client service2
                 b 5<4 server service3"
                    .into(),
                of_hops(3),
                &[],
                &["service2", "service3"],
                0,
                &["2 traces instead of 1", "2 of 2 spans of service2", "1 of 1 spans of service3"],
            ),
            ("nothing", String::new(), ExpectedTrace::of_hops(3), &[], &[], 0, &["No trace arrived"]),
            (
                "too few services",
                WHOLE.into(),
                of_hops(4),
                &[],
                &[],
                0,
                &["3 services instead of 4 reported (service1, service2, service3)", "5 spans instead of 7"],
            ),
            ("too many services", WHOLE.into(), of_hops(2), &[], &[], 0, &["somebody else", "more than once"]),
            (
                "spans that name each other",
                "a 1<2 server service1\na 2<1 client service1".into(),
                ExpectedTrace::default(),
                &["service1"],
                &[],
                1,
                &["its own descendant"],
            ),
        ];
        for (name, spans, expected, broken_at, silent, orphans, texts) in cases {
            let verdict = Verdict::of(&traces(spans), expected);
            let strings = |names: &[Box<str>]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
            assert_eq!(strings(&verdict.broken_at), *broken_at, "{name}: {verdict:#?}");
            assert_eq!(strings(&verdict.silent()), *silent, "{name}: {verdict:#?}");
            assert_eq!(verdict.orphans.len(), *orphans, "{name}: {verdict:#?}");
            assert_eq!(verdict.whole, texts.is_empty(), "{name}: {verdict:#?}");
            assert_eq!(verdict.deviations.len(), texts.len(), "{name}: {verdict:#?}");
            for (deviation, text) in verdict.deviations.iter().zip(*texts) {
                assert!(deviation.contains(text), "{name}: {deviation}\n  without {text}");
            }
        }
    }

    #[test]
    fn tags_are_compared_and_a_trace_that_was_cut_is_not_whole() {
        let mut expected = of_hops(3);
        expected.required[0].tags = vec![("request.id", "r".into())];
        expected.required[0].kind = Some(Kind::Client);
        expected.required[0].route = Some("/service{n}".into());
        let verdict = Verdict::of(&traces(WHOLE), &expected);
        let texts = [
            "service1 server get: it is not a client span.",
            "service1 server get: its name does not end in the route /service{n}.",
            "service1 server get: request.id is absent, and not r.",
        ];
        assert_eq!(verdict.deviations, texts);
        let cut: Vec<_> = traces(WHOLE).into_iter().map(|trace| trace.with_dropped(3)).collect();
        assert!(Verdict::of(&cut, &of_hops(3)).deviations[0].starts_with("The store cut trace 000000000000000a: 3 reports"));
    }

    #[test]
    fn beside_sidecars_every_app_span_hangs_at_its_own_proxy() {
        let whole = "a 1<- server gateway*
            a 2<1 client gateway*
            a 3<2 server service1*
            a 4<3 server service1
            a 5<4 client service1
            a 6<5 client service1*
            a 7<6 server service2*
            a 8<7 server service2";
        let sidecars = ExpectedTrace { sidecars: true, ..ExpectedTrace::default() };
        let deviations = |text: &str| Verdict::of(&traces(text), &sidecars).deviations;
        assert_eq!(deviations(whole), [""; 0]);
        let app = deviations(&whole.replace("8<7", "8<6"));
        assert!(app.len() == 1 && app[0].contains("not the child of its own inbound sidecar's span"), "{app:?}");
        let proxy = deviations(&whole.replace("6<5", "6<4"));
        assert!(proxy.len() == 1 && proxy[0].contains("not the child of its app's client span"), "{proxy:?}");
        assert!(Verdict::of(&traces(WHOLE), &ExpectedTrace::default()).whole, "the rule is for meshes with sidecars");
    }

    #[test]
    fn a_verdict_is_json_and_holds_no_control_character() {
        let text = WHOLE.replace("service3", "\u{1b}[31mservice3").replace("5<4", "5<9");
        let verdict = Verdict::of(&traces(&text), &of_hops(3));
        assert!(!verdict.deviations.concat().chars().any(char::is_control), "{verdict:?}");
        let json = serde_json::to_value(&verdict).unwrap();
        assert_eq!((&json["whole"], &json["spans"], &json["traces"][0]), (&false.into(), &5.into(), &"000000000000000a".into()));
        assert_eq!(
            (&json["orphans"][0]["parent"], &json["broken_at"][0]),
            (&"0000000000000009".into(), &"\u{1b}[31mservice3".into())
        );
    }
}
