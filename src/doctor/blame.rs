//! Which side of a call loses its context: what the lost calls have in common, and the continued ones have not, only one side knows.

use std::collections::{BTreeMap, HashSet};

use crate::doctor::begun::Edge;
use crate::doctor::finding::{MIN_COUNT, MIN_SHARE};
use crate::doctor::hosts::host_of;
use crate::doctor::system::System;
use crate::doctor::timing::{TOLERANCE_US, evidence, interval};
use crate::traces::Kind;

/// Natural logarithm of how unlikely it has to be that the lost calls have something in common by chance.
const EVIDENCE: f64 = 8.0;
/// So many cases at each of several callers show that their callee is what they have in common.
const MIN_ALIKE: usize = 5;

const LATE: &str = "in work that goes on after the answer";

/// Calls between two services.
pub(super) type Edges = BTreeMap<(usize, usize), Edge>;

/// A call, and the request that it was made for.
type CallOf = (usize, Option<usize>);

/// What the lost calls of a service have in common.
#[derive(Debug, Clone)]
pub(super) struct Common {
    /// "on host a, b", "in GET /cart".
    pub(super) place: String,
    evidence: f64,
}

/// Why a callee is at fault.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ignores {
    /// It continues what it gets on its other hosts.
    OnHosts(String),
    /// The caller's other calls are continued.
    CallerIsFine,
    /// All who call it are concerned.
    All,
}

/// Both sides of the calls, lost and continued.
pub(super) struct Sides<'a> {
    system: &'a System,
    edges: &'a Edges,
    /// The server spans that continue what the caller sent.
    continued: BTreeMap<(usize, usize), Vec<usize>>,
}

impl<'a> Sides<'a> {
    pub(super) fn new(system: &'a System, edges: &'a Edges) -> Self {
        let roots: HashSet<usize> = edges.values().flat_map(|edge| &edge.lost).map(|(root, _)| *root).collect();
        let mut continued: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
        for (at, span) in system.spans.iter().enumerate().filter(|(_, span)| span.is(Kind::Server)) {
            let Some(parent) = span.parent.filter(|parent| !roots.contains(parent)) else { continue };
            continued.entry((system.spans[parent].service, span.service)).or_default().push(at);
        }
        Self { system, edges, continued }
    }

    fn continued(&self, pair: (usize, usize)) -> impl Iterator<Item = usize> {
        self.continued.get(&pair).into_iter().flatten().copied()
    }

    /// The hosts of the callee on which traces begin, where there are others that continue them.
    fn on_hosts(&self, callee: usize) -> Option<Common> {
        let spans = &self.system.spans;
        let callers = || self.edges.iter().filter(|((from, to), _)| *to == callee && *from != callee);
        let answer = |root: usize| if spans[root].service == callee { Some(root) } else { self.system.answered_by(root) };
        let lost = callers().flat_map(|(_, edge)| &edge.lost).map(|(root, _)| self.host(answer(*root)));
        let continued = callers().flat_map(|(pair, _)| self.continued(*pair)).map(|at| self.host(Some(at)));
        common(lost, continued).map(|(hosts, evidence)| Common { place: format!("on host {hosts}"), evidence })
    }

    fn host(&self, at: Option<usize>) -> Option<String> {
        Some(host_of(&self.system.spans[at?].span).into()).filter(|host: &String| !host.is_empty())
    }

    /// What the lost calls of a caller have in common: its host, what it serves, or that it goes on after its answer.
    pub(super) fn at_caller(&self, caller: usize, callees: &[usize]) -> Option<Common> {
        let system = self.system;
        let edges = || callees.iter().filter_map(|callee| Some(((caller, *callee), self.edges.get(&(caller, *callee))?)));
        // What was called, and the request that it was called for.
        let lost: Vec<CallOf> = edges()
            .flat_map(|(_, edge)| &edge.lost)
            .map(
                |(root, outer)| {
                    if system.spans[*root].service == caller { (*root, Some(*outer)) } else { (*outer, Some(*outer)) }
                },
            )
            .map(|(call, outer)| (call, outer.and_then(|outer| request(system, outer))))
            .collect();
        let continued: Vec<CallOf> = edges()
            .flat_map(|(pair, _)| self.continued(pair))
            .filter_map(|at| system.spans[at].parent)
            .map(|call| (call, request(system, call)))
            .collect();
        let of = |feature: &dyn Fn(&CallOf) -> Option<String>| common(lost.iter().map(feature), continued.iter().map(feature));
        let places = [
            of(&|(call, request)| self.host(Some(request.unwrap_or(*call)))).map(|(hosts, e)| (format!("on host {hosts}"), e)),
            of(&|(_, request)| self.route((*request)?)).map(|(routes, e)| (format!("in {routes}"), e)),
            of(&|(call, request)| Some(is_late(system, *call, (*request)?).to_string()))
                .filter(|(late, _)| late == "true")
                .map(|(_, e)| (LATE.to_owned(), e)),
        ];
        let best = places.into_iter().flatten().max_by(|a, b| a.1.total_cmp(&b.1));
        best.map(|(place, evidence)| Common { place, evidence })
    }

    fn route(&self, request: usize) -> Option<String> {
        let span = &self.system.spans[request].span;
        let name = span.name.as_deref().filter(|name| name.contains('/'));
        span.tag("http.route").or(name).or_else(|| span.path()).or(span.name.as_deref()).map(str::to_owned)
    }

    /// Why the callee of these lost calls is at fault; `None`: its caller is, as far as can be known.
    pub(super) fn ignores(&self, (caller, callee): (usize, usize), edge: &Edge) -> Option<Ignores> {
        let at_caller = self.at_caller(caller, &[callee]).map_or(0.0, |common| common.evidence);
        if let Some(common) = self.on_hosts(callee).filter(|common| common.evidence > at_caller) {
            return Some(Ignores::OnHosts(common.place));
        }
        if at_caller > 0.0 || edge.with_client_span * 2 <= edge.lost.len() {
            return None;
        }
        let rate = |edge: &Edge| edge.lost.len() as f64 / edge.all().max(1) as f64;
        let expected = rate(edge);
        let continued = |edge: &Edge| rate(edge) < MIN_SHARE && edge.joined as f64 * expected >= 8.0;
        let others_of_caller =
            || self.edges.iter().filter(|((from, to), _)| *from == caller && *to != callee).map(|(_, edge)| edge);
        let others_of_callee =
            || self.edges.iter().filter(|((from, to), _)| *from != caller && *to == callee).map(|(_, edge)| edge);
        let loses_others = others_of_caller().any(|edge| edge.lost.len() >= MIN_COUNT);
        if others_of_callee().any(continued) || loses_others {
            return None;
        }
        if others_of_caller().any(continued) && others_of_caller().all(|edge| edge.lost.is_empty()) {
            return Some(Ignores::CallerIsFine);
        }
        // Two callers that lose the same share of their calls have one thing in common.
        let is_alike = |other: &Edge| {
            let (low, high) = (expected.min(rate(other)), expected.max(rate(other)));
            other.lost.len() >= MIN_ALIKE && other.with_client_span * 2 > other.lost.len() && low * 2.0 >= high
        };
        (edge.lost.len() >= MIN_ALIKE && others_of_callee().any(is_alike)).then_some(Ignores::All)
    }
}

/// The span of the same service with which the work around this one began; `None` where that is the call alone.
fn request(system: &System, at: usize) -> Option<usize> {
    let spans = &system.spans;
    let own =
        std::iter::successors(Some(at), |at| spans[*at].parent).take_while(|above| spans[*above].service == spans[at].service);
    own.last().filter(|first| matches!(spans[*first].span.kind, Some(Kind::Server | Kind::Consumer)))
}

/// Whether calls without an answer are those of some hosts of the caller, or of work that goes on after its answer: the callee cannot know.
pub(super) fn unanswered_at_caller(system: &System, open: &[usize], answered: &[usize]) -> Option<String> {
    let host = |at: &usize| Some(host_of(&system.spans[*at].span).into()).filter(|host: &String| !host.is_empty());
    let late = |at: &usize| Some(is_late(system, *at, request(system, *at)?).to_string());
    let hosts = common(open.iter().map(host), answered.iter().map(host)).map(|(hosts, _)| format!("on host {hosts}"));
    let late = || common(open.iter().map(late), answered.iter().map(late)).filter(|(late, _)| late == "true");
    hosts.or_else(|| late().map(|_| LATE.to_owned()))
}

/// Whether a call ends after the request that it belongs to.
fn is_late(system: &System, call: usize, request: usize) -> bool {
    interval(&system.spans[call]).1 > system.spans[request].end + TOLERANCE_US
}

/// The values that nearly all lost calls have and few of the others, and how unlikely that is.
fn common(lost: impl Iterator<Item = Option<String>>, continued: impl Iterator<Item = Option<String>>) -> Option<(String, f64)> {
    const MOST_NAMED: usize = 3;
    // Lost ones and all.
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let mut unknown = 0;
    for value in lost {
        let Some(value) = value else {
            unknown += 1;
            continue;
        };
        let count = counts.entry(value).or_default();
        *count = (count.0 + 1, count.1 + 1);
    }
    continued.flatten().for_each(|value| counts.entry(value).or_default().1 += 1);
    let sum = |of: &dyn Fn(&(usize, usize)) -> bool| {
        counts.values().filter(|count| of(count)).fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1))
    };
    let (lost, all) = sum(&|_| true);
    let rate = |count: &(usize, usize)| count.0 as f64 / count.1 as f64;
    let usual = counts.values().max_by_key(|count| count.0).map(rate)?;
    let is_one = |count: &(usize, usize)| rate(count) * 2.0 >= usual;
    let (hits, of) = sum(&is_one);
    if unknown * 10 > lost || hits * 10 < lost * 9 || counts.len() < 2 {
        return None;
    }
    // Among many values some would fit by chance.
    let choices = counts.len() as f64 * std::f64::consts::LN_2;
    let evidence = evidence(hits, lost, of as f64 / all as f64) - choices;
    let names: Vec<&str> = counts.iter().filter(|(_, count)| is_one(count)).map(|(name, _)| name.as_str()).collect();
    let more = if names.len() > MOST_NAMED { format!(" and {} more", names.len() - MOST_NAMED) } else { String::new() };
    (evidence >= EVIDENCE).then(|| (names[..names.len().min(MOST_NAMED)].join(", ") + &more, evidence))
}
