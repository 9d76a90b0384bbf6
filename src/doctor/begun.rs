//! Who called the roots that belong below a call: whose work lies around them, more often than chance allows.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::doctor::clocks::MAX_COMPARED;
use crate::doctor::direct::Direct;
use crate::doctor::finding::MIN_COUNT;
use crate::doctor::peers::peer_names;
use crate::doctor::system::{Remote, System, TracerKind};
use crate::doctor::timing::{Interval, Matches, Pair, Timeline, contains, interval, is_regular, median};
use crate::traces::Kind;

/// Spans that hold a call which its callee knows nothing of, by the service that made them.
type Open = BTreeMap<usize, Vec<usize>>;

/// Calls from one service to another.
#[derive(Debug, Default, Clone)]
pub(super) struct Edge {
    pub(super) joined: usize,
    /// Roots of the callee (or of the call) with the span that they belong below.
    pub(super) lost: Vec<(usize, usize)>,
    /// Of those, calls without a parent that the callee did join: they are in `joined`, too.
    pub(super) lost_and_joined: usize,
    /// The caller reported the call, and the callee began a trace.
    pub(super) with_client_span: usize,
    pub(super) silent: Option<Box<str>>,
}

impl Edge {
    /// Every call.
    pub(super) fn all(&self) -> usize {
        self.lost.len() + self.joined - self.lost_and_joined
    }
}

/// Who may have made the calls that led to some roots.
struct Candidate {
    caller: usize,
    /// A service that reports nothing stands between.
    silent: Option<Box<str>>,
    /// The roots, each with the span around it.
    pairs: Vec<Pair>,
}

pub(super) struct Search<'a> {
    pub(super) system: &'a System,
    pub(super) skews: &'a HashMap<(usize, usize), i64>,
    aliases: &'a BTreeMap<String, Option<usize>>,
    pub(super) edges: BTreeMap<(usize, usize), Edge>,
    /// Roots that were given a place.
    pub(super) used: HashSet<usize>,
    /// Client spans whose answer was found in another trace.
    pub(super) explained: HashSet<usize>,
    /// Service and name of roots that come at regular times.
    pub(super) timers: HashSet<(usize, Option<&'a str>)>,
    /// Services that report calls to others that report.
    calls_services: HashSet<usize>,
    /// What services do with messages, with whom they call for it.
    consumers: BTreeMap<usize, Vec<(usize, BTreeSet<usize>)>>,
    /// The server spans of each service that begin traces.
    pub(super) begun: BTreeMap<usize, Vec<usize>>,
    direct: Direct<'a>,
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

fn timers(system: &System) -> HashSet<(usize, Option<&str>)> {
    let mut starts: HashMap<(usize, Option<&str>), Vec<i64>> = HashMap::new();
    for span in system.spans.iter().filter(|span| span.is_root()) {
        starts.entry((span.service, span.span.name.as_deref())).or_default().push(span.start);
    }
    starts.into_iter().filter(|(_, starts)| is_regular(starts.clone())).map(|(key, _)| key).collect()
}

impl<'a> Search<'a> {
    pub(super) fn new(
        system: &'a System,
        skews: &'a HashMap<(usize, usize), i64>,
        aliases: &'a BTreeMap<String, Option<usize>>,
    ) -> Self {
        let called = (0..system.spans.len())
            .filter(|at| matches!(system.named_remote(*at), Remote::Reports(_)) && system.is_outer_client(*at));
        let calls_services = called.map(|at| system.spans[at].service).collect();
        let mut consumers: BTreeMap<usize, Vec<(usize, BTreeSet<usize>)>> = BTreeMap::new();
        for (at, span) in system.spans.iter().enumerate().filter(|(_, span)| span.is(Kind::Consumer)) {
            consumers.entry(span.service).or_default().push((at, system.callees(at)));
        }
        let (edges, used, explained) = (joined(system), HashSet::new(), HashSet::new());
        let (timers, begun) = (timers(system), BTreeMap::new());
        let mut search = Self {
            system,
            skews,
            aliases,
            edges,
            used,
            explained,
            timers,
            calls_services,
            consumers,
            begun,
            direct: Direct::new(system),
        };
        search.begun = search.roots(|kind| kind == Some(Kind::Server));
        search
    }

    /// Gives the roots to their callers.
    pub(super) fn run(&mut self) {
        self.calls_that_begin_traces();
        self.entries_below_own_proxy();
        self.entries_by_address();
        let open = self.open_calls();
        self.entries(|search, callee, roots| search.inside_named_calls(&open, callee, roots));
        let leaves = self.leaves();
        self.entries(|search, callee, roots| {
            let mut found = search.inside_other_calls(&open, callee, roots);
            found.extend(search.inside_known_callers(callee, roots));
            // Whom one of them calls may be it.
            if !found.is_empty() {
                let leaves = search.inside_leaves(&leaves, callee, roots);
                let called: Vec<_> = leaves.into_iter().filter(|leaf| search.is_called_by(leaf, &found)).collect();
                found.extend(called);
            }
            found
        });
        self.entries(|search, callee, roots| search.inside_leaves(&leaves, callee, roots));
    }

    pub(super) fn roots(&self, kind: impl Fn(Option<Kind>) -> bool) -> BTreeMap<usize, Vec<usize>> {
        let mut roots: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (at, span) in self.system.spans.iter().enumerate() {
            if span.is_root() && kind(span.span.kind) && !self.used.contains(&at) && !span.is_health_check() {
                roots.entry(span.service).or_default().push(at);
            }
        }
        roots
    }

    pub(super) fn timeline(&self, spans: &[usize]) -> Timeline {
        Timeline::new(spans.iter().map(|at| (*at, interval(&self.system.spans[*at]))))
    }

    /// The pairs of `inner` spans inside `outer` ones, when there are too many for chance or when request ids say so.
    pub(super) fn inside(&self, inner: &[usize], outer: &[usize], any_skew: bool) -> Matches {
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

    pub(super) fn take(&mut self, caller: usize, callee: usize, pairs: Vec<Pair>, silent: Option<Box<str>>) {
        let system = self.system;
        let answers = |child: &usize| system.spans[*child].service == callee && system.spans[*child].is(Kind::Server);
        let edge = self.edges.entry((caller, callee)).or_default();
        edge.silent = silent;
        for (root, outer) in pairs {
            if self.used.insert(root) {
                let is_joined = caller != callee && system.spans[root].service == caller;
                edge.lost_and_joined += usize::from(is_joined && system.spans[root].children.iter().any(answers));
                let is_call = outer != root && self.system.spans[outer].is(Kind::Client);
                edge.with_client_span += usize::from(is_call);
                edge.lost.push((root, outer));
                self.explained.extend(is_call.then_some(outer));
            }
        }
    }

    /// What a service did for requests and messages, with whom it called for that.
    pub(super) fn work(&self, service: usize) -> impl Iterator<Item = &(usize, BTreeSet<usize>)> {
        self.system.entries(service).iter().chain(self.consumers.get(&service).into_iter().flatten())
    }

    /// Work of a service below which `callee` has fewer spans than usual, none mostly.
    pub(super) fn without_call(&self, service: usize, callee: Option<usize>) -> Vec<usize> {
        let Some(callee) = callee else { return self.work(service).map(|(at, _)| *at).collect() };
        let is_answer = |at: &usize| self.system.spans[*at].service == callee;
        let answers = |at: usize| self.system.answers_below(at).filter(is_answer).count();
        let counted = self.work(service).map(|(at, callees)| (*at, if callees.contains(&callee) { answers(*at) } else { 0 }));
        let counted: Vec<(usize, usize)> = counted.collect();
        let usual =
            median(counted.iter().map(|(_, answers)| *answers as i64).filter(|answers| *answers > 0).collect()).unwrap_or(1);
        counted.into_iter().filter(|(_, answers)| (*answers as i64) < usual).map(|(at, _)| at).collect()
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

    /// Roots that came from the hosts of a service and lie inside its work: less is needed to rule out chance.
    fn entries_by_address(&mut self) {
        for (callee, roots) in self.roots(|kind| kind == Some(Kind::Server)) {
            let mut by_caller: BTreeMap<usize, Vec<(usize, Interval)>> = BTreeMap::new();
            for root in roots {
                let Some(caller) = self.system.caller(root) else { continue };
                by_caller.entry(caller).or_default().push((root, interval(&self.system.spans[root])));
            }
            for (caller, inner) in by_caller {
                let skew = self.skews.get(&(caller, callee)).copied().unwrap_or(0);
                let found = self.timeline(&self.without_call(caller, None)).matches_known(&inner, skew);
                self.take(caller, callee, found.unwrap_or_default().pairs, None);
            }
        }
    }

    /// The calls that nobody answered, by whom they name and who made them.
    fn open_calls(&self) -> BTreeMap<Remote, Open> {
        let system = self.system;
        let mut open: BTreeMap<Remote, Open> = BTreeMap::new();
        for (at, span) in system.spans.iter().enumerate() {
            if !system.is_outer_client(at) || system.answered_by(at).is_some() {
                continue;
            }
            let remote = match system.remote(at) {
                Remote::Silent(name) => {
                    let names = peer_names(&span.span);
                    match self.aliases.get(&name.to_lowercase()) {
                        Some(Some(service)) => Remote::Reports(*service),
                        // Nobody behind a name of the public DNS calls back into the mesh; a load balancer has such a name, too.
                        _ if names.iter().any(|name| name.is_proxy() && system.by_name.find(*name) != Some(span.service)) => {
                            Remote::Unnamed
                        }
                        _ if names.first().is_some_and(|name| name.is_public()) => continue,
                        _ => Remote::Silent(name),
                    }
                }
                remote => remote,
            };
            open.entry(remote).or_default().entry(span.service).or_default().push(at);
        }
        open
    }

    /// Gives the roots of each service to those who may have called it.
    fn entries(&mut self, around: impl Fn(&Self, usize, &[usize]) -> Vec<Candidate>) {
        for (callee, mut roots) in self.roots(|kind| kind == Some(Kind::Server)) {
            while let Some(Candidate { caller, silent, pairs }) = self.best(around(self, callee, &roots)) {
                self.take(caller, callee, pairs, silent);
                roots.retain(|root| !self.used.contains(root));
            }
        }
    }

    /// Who is around most of the roots: what merely runs at the same time is around fewer, and callers' callers are around what
    /// their callees are. Of equals the one whose spans are the shortest.
    fn best(&self, mut found: Vec<Candidate>) -> Option<Candidate> {
        let spans = &self.system.spans;
        found.retain(|candidate| candidate.pairs.len() >= MIN_COUNT);
        let outer: Vec<HashMap<usize, usize>> = found.iter().map(|candidate| candidate.pairs.iter().copied().collect()).collect();
        let is_explained = |n: &usize| {
            let by_callee = |(root, host): &(&usize, &usize)| {
                let below = |other: &HashMap<usize, usize>| other.get(root).is_some_and(|at| self.system.is_below(*at, **host));
                outer.iter().any(below)
            };
            outer[*n].iter().filter(by_callee).count() * 5 >= outer[*n].len() * 4
        };
        let mut left: Vec<usize> = (0..found.len()).filter(|n| !is_explained(n)).collect();
        let most = left.iter().map(|n| outer[*n].len()).max()?;
        left.retain(|n| outer[*n].len() * 10 >= most * 9);
        let mut nearest: HashMap<usize, (i64, usize)> = HashMap::new();
        for &n in &left {
            for (root, host) in &outer[n] {
                let best = nearest.entry(*root).or_insert((spans[*host].took(), n));
                *best = (*best).min((spans[*host].took(), n));
            }
        }
        let mut wins = vec![0; found.len()];
        nearest.values().for_each(|(_, n)| wins[*n] += 1);
        let winner = left.into_iter().max_by_key(|n| wins[*n])?;
        Some(found.swap_remove(winner))
    }

    /// Whether most of what a candidate did is below what one of these did.
    fn is_called_by(&self, candidate: &Candidate, callers: &[Candidate]) -> bool {
        let hosts: HashSet<(usize, usize)> = callers.iter().flat_map(|caller| caller.pairs.iter().copied()).collect();
        let above = |at: usize| std::iter::successors(self.system.spans[at].parent, |at| self.system.spans[*at].parent);
        let is_below = |(root, host): &&Pair| above(*host).any(|at| hosts.contains(&(*root, at)));
        candidate.pairs.iter().filter(is_below).count() * 2 > candidate.pairs.len()
    }

    /// Inside calls that name the callee.
    fn inside_named_calls(&self, open: &BTreeMap<Remote, Open>, callee: usize, roots: &[usize]) -> Vec<Candidate> {
        let callers = open.get(&Remote::Reports(callee)).into_iter().flatten().filter(|(caller, _)| **caller != callee);
        let inside = |(&caller, calls): (&usize, &Vec<usize>)| {
            let calls: Vec<usize> = calls.iter().copied().filter(|at| !self.explained.contains(at)).collect();
            let (pairs, silent) = self.direct.sorted(self.inside(roots, &calls, true).pairs, None, true);
            Candidate { caller, silent, pairs }
        };
        callers.map(inside).collect()
    }

    /// Inside calls that name nobody, or somebody who reports nothing.
    fn inside_other_calls(&self, open: &BTreeMap<Remote, Open>, callee: usize, roots: &[usize]) -> Vec<Candidate> {
        let mut found = Vec::new();
        for (remote, callers) in open.iter().filter(|(remote, _)| !matches!(remote, Remote::Reports(_))) {
            for (&caller, calls) in callers.iter().filter(|(caller, _)| **caller != callee) {
                // A load balancer in front of several that report is not who loses the context.
                let silent = match remote {
                    Remote::Silent(name) if !self.aliases.contains_key(&name.to_lowercase()) => Some(&**name),
                    _ => None,
                };
                let mut pairs = self.inside(roots, calls, false).pairs;
                if self.are_asked_together(callee, &pairs) {
                    pairs.clear();
                }
                let (pairs, silent) = self.direct.sorted(pairs, silent, false);
                // Who stands between makes such a call nearly each time that it is called.
                if silent.is_none() || pairs.len() * 4 >= calls.len() {
                    found.push(Candidate { caller, silent, pairs });
                }
            }
        }
        found
    }

    /// Inside the server spans of services that call the callee at other times.
    fn inside_known_callers(&self, callee: usize, roots: &[usize]) -> Vec<Candidate> {
        let known = self.edges.iter().filter(|((from, to), edge)| *to == callee && *from != callee && edge.joined > 0);
        let inside = |((caller, _), _): (&(usize, usize), &Edge)| {
            let work = self.without_call(*caller, Some(callee));
            let (pairs, silent) = self.direct.sorted(self.inside(roots, &work, false).pairs, None, true);
            let is_call = !self.is_otherwise(callee, &pairs) && self.at_usual_time(*caller, callee, &pairs);
            is_call.then_some(Candidate { caller: *caller, silent, pairs })
        };
        known.filter_map(inside).collect()
    }

    /// Services that call nobody who reports, as far as is known.
    fn leaves(&self) -> BTreeSet<usize> {
        let system = self.system;
        let compared = if system.names.len() <= MAX_COMPARED { system.names.len() } else { 0 };
        let calls_nobody = |caller: &usize| {
            let mut work = self.work(*caller).peekable();
            work.peek().is_some() && work.all(|(_, callees)| callees.is_empty()) && !self.calls_services.contains(caller)
        };
        (0..compared).filter(calls_nobody).collect()
    }

    /// Inside the server spans of services of which no call was ever seen: nothing but time speaks for it, so most spans of both have
    /// to fit, or chance is rare; and nobody who calls others is around more of the roots.
    fn inside_leaves(&self, leaves: &BTreeSet<usize>, callee: usize, roots: &[usize]) -> Vec<Candidate> {
        let is_lost = |((_, to), edge): (&(usize, usize), &Edge)| *to == callee && edge.lost.len() >= MIN_COUNT;
        if self.edges.iter().any(is_lost) {
            return Vec::new();
        }
        let is_known = |caller: &usize| self.edges.get(&(*caller, callee)).is_some_and(|edge| edge.joined > 0);
        let inside = |caller: usize| {
            let entries = self.without_call(caller, Some(callee));
            let Matches { pairs, chance } = self.inside(roots, &entries, false);
            let hosts = pairs.iter().map(|(_, outer)| *outer).collect::<BTreeSet<usize>>().len();
            let most = pairs.len() * 20 >= roots.len() * 17 && hosts * 10 >= entries.len() * 4;
            let is_rare = chance < 0.05 && hosts * 10 >= entries.len();
            let is_one = pairs.len() >= 10 && (most || is_rare);
            (is_one && !self.is_otherwise(callee, &pairs)).then_some(Candidate { caller, silent: None, pairs })
        };
        let unknown = |caller: &usize| *caller != callee && !is_known(caller);
        let mut found: Vec<_> = leaves.iter().copied().filter(unknown).filter_map(inside).collect();
        if !found.is_empty() {
            found.extend(
                (0..self.system.names.len()).filter(|caller| unknown(caller) && !leaves.contains(caller)).filter_map(inside),
            );
        }
        let best = self.best(found).filter(|best| leaves.contains(&best.caller));
        best.into_iter().collect()
    }
}

/// Pairs whose spans have the same request id, one inside the other: no chance at all.
fn by_request_id(system: &System, inner: &[usize], outer: &[usize], skew: i64) -> Vec<Pair> {
    let ids: HashMap<&str, usize> = outer.iter().filter_map(|at| Some((system.spans[*at].span.request_id()?, *at))).collect();
    let found = inner.iter().filter_map(|at| Some((*at, *ids.get(system.spans[*at].span.request_id()?)?)));
    let apart = |(inner, outer): &Pair| {
        let (inner, outer) = (&system.spans[*inner], &system.spans[*outer]);
        let is_inside = || contains(interval(outer), (inner.start - skew, inner.end - skew));
        // A whole chain has one request id, and may take less time than clocks are exact.
        inner.trace != outer.trace && inner.took() <= outer.took() && is_inside()
    };
    found.filter(apart).collect()
}
