//! Who loses the trace context: traces that begin in the middle of somebody's work.
//!
//! A root is right at an entry point, in a timer and behind a queue. It is wrong where it lies, again and again, inside a span that
//! lacks just this call. Both sides of that are tested, because chance alone puts spans inside others.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::doctor::clocks::MAX_COMPARED;
use crate::doctor::finding::{FindingId, Level, MIN_COUNT, MIN_SHARE, ServiceFinding, level, lost_context};
use crate::doctor::system::{Remote, System, TracerKind};
use crate::doctor::timing::{Matches, Pair, Timeline, contains, interval};
use crate::traces::Kind;

/// Spans that hold a call which its callee knows nothing of, by the service that made them.
type Open = BTreeMap<usize, Vec<usize>>;

/// Calls from one service to another.
#[derive(Debug, Default, Clone)]
struct Edge {
    joined: usize,
    /// Roots of the callee (or of the call) with the span that they belong below.
    lost: Vec<(usize, usize)>,
    /// Of those, calls without a parent that the callee did join: they are in `joined`, too.
    lost_and_joined: usize,
    /// The caller reported the call, and the callee began a trace.
    with_client_span: usize,
    silent: Option<Box<str>>,
}

impl Edge {
    /// Every call.
    fn all(&self) -> usize {
        self.lost.len() + self.joined - self.lost_and_joined
    }
}

/// What the rule about contexts found.
pub(super) struct ContextFindings {
    pub(super) findings: Vec<ServiceFinding>,
    /// Client spans whose answer was found in another trace.
    pub(super) calls: HashSet<usize>,
    /// Caller and callee between which contexts are lost.
    pub(super) pairs: HashSet<(usize, usize)>,
}

/// Finds the services that drop or ignore contexts. `skews`: how far the clock of the second service is ahead of the first's.
/// `aliases`: other names of services, in lower case.
pub(super) fn lost_contexts(
    system: &System,
    skews: &HashMap<(usize, usize), i64>,
    aliases: &BTreeMap<String, Option<usize>>,
) -> ContextFindings {
    let mut search = Search { system, skews, aliases, edges: joined(system), used: HashSet::new(), explained: HashSet::new() };
    search.calls_that_begin_traces();
    search.entries_below_own_proxy();
    search.entries_below_open_calls();
    search.entries_inside_callers();
    let calls = std::mem::take(&mut search.explained);
    let pairs = search.edges.iter().filter(|(_, edge)| !edge.lost.is_empty()).map(|(pair, _)| *pair).collect();
    ContextFindings { findings: findings(system, search.edges), calls, pairs }
}

fn joined(system: &System) -> BTreeMap<(usize, usize), Edge> {
    let mut edges: BTreeMap<(usize, usize), Edge> = BTreeMap::new();
    for span in system.spans.iter().filter(|span| span.is(Kind::Server)) {
        if let Some(caller) = span.parent.map(|parent| system.spans[parent].service).filter(|caller| *caller != span.service) {
            edges.entry((caller, span.service)).or_default().joined += 1;
        }
    }
    edges
}

struct Search<'a> {
    system: &'a System,
    skews: &'a HashMap<(usize, usize), i64>,
    aliases: &'a BTreeMap<String, Option<usize>>,
    edges: BTreeMap<(usize, usize), Edge>,
    /// Roots that were given a place.
    used: HashSet<usize>,
    explained: HashSet<usize>,
}

impl Search<'_> {
    fn roots(&self, kind: impl Fn(Option<Kind>) -> bool) -> BTreeMap<usize, Vec<usize>> {
        let mut roots: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (at, span) in self.system.spans.iter().enumerate() {
            if span.is_root() && kind(span.span.kind) && !self.used.contains(&at) {
                roots.entry(span.service).or_default().push(at);
            }
        }
        roots
    }

    fn timeline(&self, spans: &[usize]) -> Timeline {
        Timeline::new(spans.iter().map(|at| (*at, interval(&self.system.spans[*at]))))
    }

    /// The pairs of `inner` spans inside `outer` ones, when there are too many for chance or when request ids say so.
    fn inside(&self, inner: &[usize], outer: &[usize], any_skew: bool) -> Matches {
        let system = self.system;
        let (Some(first), Some(host)) = (inner.first(), outer.first()) else { return Matches::default() };
        let key = (system.spans[*host].service, system.spans[*first].service);
        let skew = self.skews.get(&key).copied().unwrap_or(0);
        let by_request = by_request_id(system, inner, outer, skew);
        if by_request.len() >= 2 {
            return Matches { pairs: by_request, chance: 0.0 };
        }
        let inner: Vec<_> = inner.iter().map(|at| (*at, interval(&system.spans[*at]))).collect();
        let timeline = self.timeline(outer);
        let found = timeline.matches(&inner, skew);
        let found = found.or_else(|| any_skew.then(|| timeline.matches_at_any_skew(&inner)).flatten());
        found.unwrap_or_default()
    }

    fn take(&mut self, caller: usize, callee: usize, pairs: Vec<Pair>, silent: Option<&str>) {
        let system = self.system;
        let answers = |child: &usize| system.spans[*child].service == callee && system.spans[*child].is(Kind::Server);
        let edge = self.edges.entry((caller, callee)).or_default();
        edge.silent = silent.map(Box::from);
        for (root, outer) in pairs {
            if self.used.insert(root) {
                let is_joined = caller != callee && system.spans[root].service == caller;
                edge.lost_and_joined += usize::from(is_joined && system.spans[root].children.iter().any(answers));
                let is_call = self.system.spans[outer].is(Kind::Client);
                edge.with_client_span += usize::from(is_call);
                edge.lost.push((root, outer));
                self.explained.extend(is_call.then_some(outer));
            }
        }
    }

    /// Server spans of a service below which nothing of `callee` is.
    fn without_call(&self, service: usize, callee: Option<usize>) -> Vec<usize> {
        let entries = self.system.entries(service).iter();
        entries.filter(|(_, calls)| callee.is_none_or(|callee| !calls.contains(&callee))).map(|(at, _)| *at).collect()
    }

    /// A client span without a parent at a service that was serving a request just then.
    fn calls_that_begin_traces(&mut self) {
        let begins = |kind| !matches!(kind, Some(Kind::Server | Kind::Consumer));
        for (service, roots) in self.roots(begins) {
            let mut by_callee: BTreeMap<Option<usize>, Vec<usize>> = BTreeMap::new();
            for root in roots {
                let callee = match self.system.callee(root) {
                    Remote::Reports(callee) => Some(callee),
                    Remote::Silent(_) | Remote::Unnamed => None,
                };
                by_callee.entry(callee).or_default().push(root);
            }
            for (callee, roots) in by_callee {
                let entries = self.without_call(service, callee);
                let pairs = self.inside(&roots, &entries, false).pairs;
                self.take(service, callee.unwrap_or(service), pairs, None);
            }
        }
    }

    /// An app's server span without a parent inside its own proxy's: the two speak different formats.
    fn entries_below_own_proxy(&mut self) {
        for (service, roots) in self.roots(|kind| kind == Some(Kind::Server)) {
            let (apps, _): (Vec<_>, Vec<_>) =
                roots.into_iter().partition(|at| self.system.spans[*at].tracer != TracerKind::Envoy);
            let proxies = |at: &usize| {
                let span = &self.system.spans[*at];
                let app_below = || span.children.iter().any(|child| self.system.spans[*child].is(Kind::Server));
                span.service == service && span.tracer == TracerKind::Envoy && span.is(Kind::Server) && !app_below()
            };
            let proxies: Vec<usize> = (0..self.system.spans.len()).filter(proxies).collect();
            let pairs = self.inside(&apps, &proxies, false).pairs;
            self.take(service, service, pairs, None);
        }
    }

    /// A server span without a parent inside a call that nobody answered.
    fn entries_below_open_calls(&mut self) {
        let system = self.system;
        let mut open: BTreeMap<Remote, Open> = BTreeMap::new();
        for (at, span) in system.spans.iter().enumerate() {
            if system.is_outer_client(at) && system.answered_by(at).is_none() {
                let remote = match system.remote(at) {
                    Remote::Silent(name) => match self.aliases.get(&name.to_lowercase()) {
                        Some(Some(service)) => Remote::Reports(*service),
                        _ => Remote::Silent(name),
                    },
                    remote => remote,
                };
                open.entry(remote).or_default().entry(span.service).or_default().push(at);
            }
        }
        for (callee, mut roots) in self.roots(|kind| kind == Some(Kind::Server)) {
            let named = open.iter().filter(|(remote, _)| **remote == Remote::Reports(callee)).collect::<Vec<_>>();
            let others = open.iter().filter(|(remote, _)| !matches!(remote, Remote::Reports(_))).collect();
            for group in [named, others] {
                let mut found = Vec::new();
                for (remote, callers) in group {
                    for (&caller, calls) in callers.iter().filter(|(caller, _)| **caller != callee) {
                        let any_skew = !self.skews.contains_key(&(caller, callee)) && matches!(remote, Remote::Reports(_));
                        // A load balancer in front of several that report is not who loses the context.
                        let silent = match remote {
                            Remote::Silent(name) if !self.aliases.contains_key(&name.to_lowercase()) => Some(&**name),
                            _ => None,
                        };
                        found.push((caller, silent, self.inside(&roots, calls, any_skew).pairs));
                    }
                }
                self.take_nearest(callee, found);
                roots.retain(|root| !self.used.contains(root));
            }
        }
    }

    /// Gives each root to the shortest span that it lies in: longer ones are those of the callers' callers.
    fn take_nearest(&mut self, callee: usize, found: Vec<(usize, Option<&str>, Vec<Pair>)>) {
        let mut nearest: HashMap<usize, (i64, usize)> = HashMap::new();
        let length = |at: usize| self.system.spans[at].end - self.system.spans[at].start;
        for (n, (.., pairs)) in found.iter().enumerate() {
            for (root, outer) in pairs {
                let best = nearest.entry(*root).or_insert((length(*outer), n));
                *best = (*best).min((length(*outer), n));
            }
        }
        for (n, (caller, silent, mut pairs)) in found.into_iter().enumerate() {
            pairs.retain(|(root, _)| nearest[root].1 == n);
            if pairs.len() >= MIN_COUNT {
                self.take(caller, callee, pairs, silent);
            }
        }
    }

    /// A server span without a parent inside another service's, which calls it at other times, or calls nobody at all.
    fn entries_inside_callers(&mut self) {
        let system = self.system;
        let calls_nobody = |caller: &usize| {
            let entries = system.entries(*caller);
            !entries.is_empty() && entries.iter().all(|(at, callees)| callees.is_empty() && !self.calls(*at))
        };
        let compared = if system.names.len() <= MAX_COMPARED { system.names.len() } else { 0 };
        let leaves: Vec<usize> = (0..compared).filter(calls_nobody).collect();
        for (callee, roots) in self.roots(|kind| kind == Some(Kind::Server)) {
            let calls_it = |caller: &usize| self.edges.get(&(*caller, callee)).is_some_and(|edge| edge.joined > 0);
            let callers: Vec<usize> = (0..system.names.len()).filter(calls_it).collect();
            let known = callers.len();
            let candidates = callers.into_iter().chain(leaves.iter().copied()).enumerate();
            let mut found = Vec::new();
            for (n, caller) in candidates.filter(|(_, caller)| *caller != callee) {
                let entries = self.without_call(caller, Some(callee));
                let Matches { mut pairs, chance } = self.inside(&roots, &entries, false);
                if n < known && !self.at_usual_time(caller, callee, &pairs) {
                    pairs.clear();
                }
                let hosts: BTreeSet<usize> = pairs.iter().map(|(_, outer)| *outer).collect();
                // Nothing but time speaks for it where no call was ever seen: then most spans of both have to fit, or there has
                // to be so little traffic that chance is out of the question.
                let most = pairs.len() * 20 >= roots.len() * 17 || chance < 0.05;
                if n < known || pairs.len() >= 10 && most && hosts.len() * 10 >= entries.len() * 4 {
                    found.push((caller, None, pairs));
                }
            }
            self.take_nearest(callee, found);
        }
    }

    /// Whether roots begin as long after the spans around them as calls that are continued do: another timer of the same period
    /// begins at a time of its own. Clocks that differ move both alike.
    fn at_usual_time(&self, caller: usize, callee: usize, pairs: &[Pair]) -> bool {
        const LEAST_US: i64 = 2_000;
        let spans = &self.system.spans;
        let mut delays = Vec::new();
        for (entry, _) in self.system.entries(caller).iter().filter(|(_, callees)| callees.contains(&callee)) {
            let answers = self.system.answers_below(*entry).filter(|at| spans[*at].service == callee);
            delays.extend(answers.map(|at| spans[at].start - spans[*entry].start));
        }
        delays.sort_unstable();
        if delays.len() < 10 {
            return true;
        }
        let (low, high) = (delays[delays.len() / 20], delays[delays.len() * 19 / 20]);
        let more = LEAST_US.max((high - low) / 4);
        let is_usual = |(root, outer): &&Pair| (low - more..=high + more).contains(&(spans[*root].start - spans[*outer].start));
        pairs.iter().filter(is_usual).count() * 5 >= pairs.len() * 4
    }

    /// Whether a client span is below a server span in its service.
    fn calls(&self, entry: usize) -> bool {
        let mut next = vec![entry];
        while let Some(at) = next.pop() {
            for &child in &self.system.spans[at].children {
                if self.system.spans[child].is(Kind::Client) {
                    return true;
                }
                next.push(child);
            }
        }
        false
    }
}

/// Pairs whose spans have the same request id, one inside the other: no chance at all.
fn by_request_id(system: &System, inner: &[usize], outer: &[usize], skew: i64) -> Vec<Pair> {
    let ids: HashMap<&str, usize> = outer.iter().filter_map(|at| Some((system.spans[*at].request_id()?, *at))).collect();
    let found = inner.iter().filter_map(|at| Some((*at, *ids.get(system.spans[*at].request_id()?)?)));
    let apart = |(inner, outer): &Pair| {
        let (inner, outer) = (&system.spans[*inner], &system.spans[*outer]);
        inner.trace != outer.trace && contains(interval(outer), (inner.start - skew, inner.end - skew))
    };
    found.filter(apart).collect()
}

/// One finding a service: whom it calls without a context, or whose contexts it ignores.
fn findings(system: &System, edges: BTreeMap<(usize, usize), Edge>) -> Vec<ServiceFinding> {
    let is_lost = |edge: &Edge| level(edge.lost.len(), edge.all()) == Level::Fault;
    let mut drops: BTreeMap<usize, Vec<(usize, &Edge)>> = BTreeMap::new();
    let mut findings = Vec::new();
    for (&(caller, callee), edge) in edges.iter().filter(|(_, edge)| is_lost(edge)) {
        if let Some(silent) = &edge.silent {
            findings.push(silent_and_dropping(system, caller, callee, silent, edge));
        } else if caller == callee && edge.lost.iter().all(|(root, _)| system.spans[*root].is(Kind::Server)) {
            findings.push(apart_from_proxy(system, callee, edge));
        } else if ignores(&edges, caller, callee, edge) {
            findings.push(ignored(system, caller, callee, edge));
        } else {
            drops.entry(caller).or_default().push((callee, edge));
        }
    }
    findings.extend(drops.into_iter().map(|(service, edges)| dropped(system, service, &edges)));
    findings
}

/// The callee is at fault when it ignores several callers, or when the caller's other calls are all continued.
fn ignores(edges: &BTreeMap<(usize, usize), Edge>, caller: usize, callee: usize, edge: &Edge) -> bool {
    let rate = |edge: &Edge| edge.lost.len() as f64 / edge.all().max(1) as f64;
    let expected = rate(edge);
    let continued = |edge: &Edge| rate(edge) < MIN_SHARE && edge.joined as f64 * expected >= 8.0;
    let others_of_caller = || edges.iter().filter(|((from, to), _)| *from == caller && *to != callee).map(|(_, edge)| edge);
    let others_of_callee = || edges.iter().filter(|((from, to), _)| *from != caller && *to == callee).map(|(_, edge)| edge);
    let caller_is_fine = others_of_caller().any(continued) && others_of_caller().all(|edge| edge.lost.is_empty());
    let callee_reads_others = others_of_callee().any(continued);
    edge.with_client_span * 2 > edge.lost.len() && caller_is_fine && !callee_reads_others
}

fn dropped(system: &System, service: usize, edges: &[(usize, &Edge)]) -> ServiceFinding {
    let lost: usize = edges.iter().map(|(_, edge)| edge.lost.len()).sum();
    let of = edges.iter().map(|(_, edge)| edge.all()).sum::<usize>();
    let callees: Vec<&str> =
        edges.iter().filter(|(callee, _)| *callee != service).map(|(callee, _)| system.name(*callee)).collect();
    let whom = if callees.is_empty() { String::new() } else { format!(" to {}", callees.join(", ")) };
    let calls = edges.iter().flat_map(|(_, edge)| &edge.lost);
    let unparented = calls.clone().filter(|(root, _)| system.spans[*root].service == service).count();
    let sign = if unparented * 2 > lost {
        "its outgoing spans have no parent, each in the middle of a request that it served"
    } else {
        "each time the callee began a new trace while it waited"
    };
    let (cause, next) = lost_context(system, service);
    ServiceFinding {
        id: FindingId::ContextDropped,
        level: level(lost, of),
        service: system.name(service).to_owned(),
        peer: callees.first().map(|name| (*name).to_owned()),
        text: format!("{lost} of {of} calls{whom} begin new traces: it does not pass the context on ({sign})"),
        cause,
        next,
        count: lost,
        of,
        traces: system.examples(calls.map(|(_, outer)| *outer)),
    }
}

fn ignored(system: &System, caller: usize, callee: usize, edge: &Edge) -> ServiceFinding {
    let (lost, of) = (edge.lost.len(), edge.all());
    let (from, name) = (system.name(caller), system.name(callee));
    ServiceFinding {
        id: FindingId::ContextIgnored,
        level: level(lost, of),
        service: name.to_owned(),
        peer: Some(from.to_owned()),
        text: format!(
            "{lost} of {of} calls from {from} begin new traces: it does not continue the context that it receives, for {from}'s other calls are continued"
        ),
        cause: format!(
            "{name} reads another format than {from} writes (OTEL_PROPAGATORS, the mesh's provider), or its server is not instrumented to extract one"
        ),
        next: format!(
            "send one request with a traceparent and b3 headers of your own to {name}, and look which trace it reports"
        ),
        count: lost,
        of,
        traces: system.examples(edge.lost.iter().map(|(_, outer)| *outer)),
    }
}

fn apart_from_proxy(system: &System, service: usize, edge: &Edge) -> ServiceFinding {
    let (lost, name) = (edge.lost.len(), system.name(service));
    ServiceFinding {
        id: FindingId::ContextIgnored,
        level: Level::Fault,
        service: name.to_owned(),
        peer: None,
        text: format!(
            "{lost} requests are in two traces, one of its proxy and one of its app: the app does not continue the context that its own proxy writes"
        ),
        cause: "proxy and app speak different formats: the proxy writes B3 and the app reads W3C, or the other way round"
            .to_owned(),
        next: format!(
            "let OTEL_PROPAGATORS of {name} begin with the format of the mesh's tracing provider (b3multi for Zipkin, tracecontext for OpenTelemetry)"
        ),
        count: lost,
        of: lost,
        traces: system.examples(edge.lost.iter().map(|(_, outer)| *outer)),
    }
}

fn silent_and_dropping(system: &System, caller: usize, callee: usize, silent: &str, edge: &Edge) -> ServiceFinding {
    let (lost, of) = (edge.lost.len(), edge.all());
    let (from, to) = (system.name(caller), system.name(callee));
    ServiceFinding {
        id: FindingId::ContextDropped,
        level: level(lost, of),
        service: silent.to_owned(),
        peer: Some(to.to_owned()),
        text: format!(
            "it stands between {from} and {to}, reports no span, and {to} begins a new trace in {lost} of {of} calls: it does not pass the context on"
        ),
        cause: format!(
            "{silent} is not instrumented and does not copy the trace headers from the request that it serves to its calls"
        ),
        next: format!("see what {silent} does with each header: httpserver probe http://{silent}/… --downstream ADDRESS"),
        count: lost,
        of,
        traces: system.examples(edge.lost.iter().map(|(_, outer)| *outer)),
    }
}
