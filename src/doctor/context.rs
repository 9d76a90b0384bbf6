//! Who loses the trace context: traces that begin in the middle of somebody's work.
//!
//! A root is right at an entry point, in a timer and behind a queue. It is wrong where it lies, again and again, inside a span that
//! lacks just this call. Both sides of that are tested, because chance alone puts spans inside others.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::doctor::clocks::MAX_COMPARED;
use crate::doctor::finding::{FindingId, Level, MIN_COUNT, MIN_SHARE, PROBE, ServiceFinding, level, lost_context, probe_next};
use crate::doctor::system::{Remote, System, TracerKind};
use crate::doctor::timing::{Matches, Pair, Timeline, contains, correlation, interval, is_regular};
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
    let called = (0..system.spans.len())
        .filter(|at| matches!(system.named_remote(*at), Remote::Reports(_)) && system.is_outer_client(*at));
    let mut search = Search {
        system,
        skews,
        aliases,
        edges: joined(system),
        used: HashSet::new(),
        explained: HashSet::new(),
        timers: timers(system),
        calls_services: called.map(|at| system.spans[at].service).collect(),
    };
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
    /// Service and name of roots that come at regular times.
    timers: HashSet<(usize, Option<&'a str>)>,
    /// Services that report calls to others that report.
    calls_services: HashSet<usize>,
}

fn timers(system: &System) -> HashSet<(usize, Option<&str>)> {
    let mut starts: HashMap<(usize, Option<&str>), Vec<i64>> = HashMap::new();
    for span in system.spans.iter().filter(|span| span.is_root()) {
        starts.entry((span.service, span.span.name.as_deref())).or_default().push(span.start);
    }
    starts.into_iter().filter(|(_, starts)| is_regular(starts.clone())).map(|(key, _)| key).collect()
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
            // Two formats are two at every request.
            if pairs.len() * 2 >= apps.len().min(proxies.len()) && !self.is_otherwise(service, &pairs) {
                self.take(service, service, pairs, None);
            }
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
            for is_named in [true, false] {
                let around = |search: &Self, roots: &[usize]| {
                    let mut found = Vec::new();
                    let fits = |remote: &Remote| match remote {
                        Remote::Reports(service) => is_named && *service == callee,
                        _ => !is_named,
                    };
                    for (remote, callers) in open.iter().filter(|(remote, _)| fits(remote)) {
                        for (&caller, calls) in callers.iter().filter(|(caller, _)| **caller != callee) {
                            let any_skew = is_named && !search.skews.contains_key(&(caller, callee));
                            // A load balancer in front of several that report is not who loses the context.
                            let silent = match remote {
                                Remote::Silent(name) if !search.aliases.contains_key(&name.to_lowercase()) => Some(&**name),
                                _ => None,
                            };
                            found.push((caller, silent, search.inside(roots, calls, any_skew).pairs));
                        }
                    }
                    found
                };
                self.take_in_turn(callee, &mut roots, around);
            }
        }
    }

    /// Gives roots to the caller around most of them, then the others to the next. Where several spans lie around a root, the shortest
    /// counts: longer ones are those of the callers' callers.
    fn take_in_turn<'n>(
        &mut self,
        callee: usize,
        roots: &mut Vec<usize>,
        around: impl Fn(&Self, &[usize]) -> Vec<(usize, Option<&'n str>, Vec<Pair>)>,
    ) {
        let length = |at: usize| self.system.spans[at].took();
        loop {
            let mut found = around(self, roots);
            let mut nearest: HashMap<usize, (i64, usize)> = HashMap::new();
            for (n, (.., pairs)) in found.iter().enumerate() {
                for (root, outer) in pairs {
                    let best = nearest.entry(*root).or_insert((length(*outer), n));
                    *best = (*best).min((length(*outer), n));
                }
            }
            let mut wins = vec![0; found.len()];
            nearest.values().for_each(|(_, n)| wins[*n] += 1);
            let most = (0..found.len()).max_by_key(|n| wins[*n]).filter(|n| wins[*n] >= MIN_COUNT);
            let Some((caller, silent, pairs)) = most.map(|n| found.swap_remove(n)) else { return };
            self.take(caller, callee, pairs, silent);
            roots.retain(|root| !self.used.contains(root));
        }
    }

    /// A server span without a parent inside another service's, which calls it at other times, or calls nobody who reports.
    fn entries_inside_callers(&mut self) {
        let system = self.system;
        let compared = if system.names.len() <= MAX_COMPARED { system.names.len() } else { 0 };
        let calls_nobody = |caller: &usize| {
            let entries = system.entries(*caller);
            !entries.is_empty() && entries.iter().all(|(_, callees)| callees.is_empty()) && !self.calls_services.contains(caller)
        };
        let leaves: HashSet<usize> = (0..compared).filter(calls_nobody).collect();
        for (callee, mut roots) in self.roots(|kind| kind == Some(Kind::Server)) {
            let around = |search: &Self, roots: &[usize]| {
                let mut found = Vec::new();
                for caller in (0..system.names.len()).filter(|caller| *caller != callee) {
                    let is_known = search.edges.get(&(caller, callee)).is_some_and(|edge| edge.joined > 0);
                    let has_caller = || search.edges.iter().any(|((_, to), edge)| *to == callee && edge.lost.len() >= MIN_COUNT);
                    if !is_known && (!leaves.contains(&caller) || has_caller()) {
                        continue;
                    }
                    let entries = search.without_call(caller, Some(callee));
                    let Matches { mut pairs, chance } = search.inside(roots, &entries, false);
                    if is_known && !search.at_usual_time(caller, callee, &pairs) || search.is_otherwise(callee, &pairs) {
                        pairs.clear();
                    }
                    let hosts: BTreeSet<usize> = pairs.iter().map(|(_, outer)| *outer).collect();
                    // Nothing but time speaks for it where no call was ever seen: most spans of both have to fit, or chance is rare.
                    let most = pairs.len() * 20 >= roots.len() * 17 && hosts.len() * 10 >= entries.len() * 4;
                    let is_rare = chance < 0.05 && hosts.len() * 10 >= entries.len();
                    let is_alone = || pairs.len() >= 10 && (most || is_rare) && !search.are_siblings(&pairs, &leaves);
                    if is_known || is_alone() {
                        found.push((caller, None, pairs));
                    }
                }
                found
            };
            self.take_in_turn(callee, &mut roots, around);
        }
    }

    /// Whether the outer spans begin traces inside somebody's work, too: then both are calls of that one, made at a time.
    fn are_siblings(&self, pairs: &[Pair], leaves: &HashSet<usize>) -> bool {
        let outer: BTreeSet<usize> = pairs.iter().map(|(_, outer)| *outer).collect();
        let roots: Vec<usize> = outer.iter().copied().filter(|at| self.system.spans[*at].is_root()).collect();
        let caller = pairs.first().map_or(0, |(_, outer)| self.system.spans[*outer].service);
        let is_around =
            |other: &usize| self.inside(&roots, &self.without_call(*other, Some(caller)), false).pairs.len() * 2 > outer.len();
        roots.len() * 2 > outer.len() && leaves.iter().filter(|other| **other != caller).any(is_around)
    }

    /// Whether something else than a call explains these pairs: two timers that strike at a fixed distance (who waits for another takes
    /// the longer, the longer that one takes), two calls that somebody made at a time, or the outer ones' callees.
    fn is_otherwise(&self, callee: usize, pairs: &[Pair]) -> bool {
        let system = self.system;
        let most = |count: usize| count * 2 > pairs.len();
        let is_timer = |at: usize| {
            system.spans[at].is_root() && self.timers.contains(&(system.spans[at].service, system.spans[at].span.name.as_deref()))
        };
        let times = |of: fn(&Pair) -> usize| pairs.iter().map(|pair| system.spans[of(pair)].took() as f64).collect::<Vec<_>>();
        let are_timers = most(pairs.iter().filter(|(root, outer)| is_timer(*root) && is_timer(*outer)).count());
        let is_lost = most(pairs.iter().filter(|(_, outer)| self.used.contains(outer)).count());
        let droppers = |at: &usize| self.edges.get(&(*at, callee)).is_some_and(|edge| edge.lost.len() >= MIN_COUNT);
        let by_callees =
            pairs.iter().filter(|(_, outer)| system.answers_below(*outer).any(|at| droppers(&system.spans[at].service)));
        are_timers && correlation(&times(|pair| pair.0), &times(|pair| pair.1)) < 0.8 || is_lost || most(by_callees.count())
    }

    /// Whether roots begin as long after the spans around them as calls that are continued do: another timer of the same period
    /// begins at a time of its own. Clocks that differ move both alike.
    fn at_usual_time(&self, caller: usize, callee: usize, pairs: &[Pair]) -> bool {
        const LEAST_US: i64 = 2_000;
        let spans = &self.system.spans;
        let (mut delays, mut outside) = (Vec::new(), 0);
        let skew = self.skews.get(&(caller, callee)).copied().unwrap_or(0);
        for (entry, _) in self.system.entries(caller).iter().filter(|(_, callees)| callees.contains(&callee)) {
            for at in self.system.answers_below(*entry).filter(|at| spans[*at].service == callee) {
                delays.push(spans[at].start - spans[*entry].start);
                outside += usize::from(!contains(interval(&spans[*entry]), (spans[at].start - skew, spans[at].start - skew)));
            }
        }
        delays.sort_unstable();
        if delays.len() < 10 {
            return true;
        }
        // The clocks of instances differ from each other: times show nothing.
        if outside * 5 > delays.len() {
            return false;
        }
        let (low, high) = (delays[delays.len() / 20], delays[delays.len() * 19 / 20]);
        let more = LEAST_US.max((high - low) / 4);
        let is_usual = |(root, outer): &&Pair| (low - more..=high + more).contains(&(spans[*root].start - spans[*outer].start));
        pairs.iter().filter(is_usual).count() * 5 >= pairs.len() * 4
    }
}

/// Pairs whose spans have the same request id, one inside the other: no chance at all.
fn by_request_id(system: &System, inner: &[usize], outer: &[usize], skew: i64) -> Vec<Pair> {
    let ids: HashMap<&str, usize> = outer.iter().filter_map(|at| Some((system.spans[*at].span.request_id()?, *at))).collect();
    let found = inner.iter().filter_map(|at| Some((*at, *ids.get(system.spans[*at].span.request_id()?)?)));
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
        run: Some(PROBE),
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
        run: None,
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
        run: None,
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
        next: probe_next(silent),
        run: Some(PROBE),
        count: lost,
        of,
        traces: system.examples(edge.lost.iter().map(|(_, outer)| *outer)),
    }
}
