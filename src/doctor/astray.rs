//! Contexts of other requests: calls below work that had ended before they began, while the requests that made them have none.
//!
//! Work after an answer begins late, too, but below its own request. So late calls count only where more of them than chance allows lie
//! inside requests that lack such a call.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::doctor::finding::{FindingId, Level, PROBE, ServiceFinding, level, probe_next};
use crate::doctor::forwarded::Stale;
use crate::doctor::system::{Remote, System};
use crate::doctor::timing::{TOLERANCE_US, Timeline, interval};
use crate::traces::Kind;

/// Below one span so many late ones are no request's own.
const CONCENTRATED: usize = 4;

/// Calls of one service with the context of another request.
struct Astray {
    service: usize,
    callee: Option<usize>,
    late: Vec<usize>,
    of: usize,
    /// How many late ones are below one span at most.
    most: usize,
    /// Each span above has many: the context of one request was stored.
    is_stored: bool,
}

pub(super) fn astray(system: &System, skews: &HashMap<(usize, usize), i64>) -> Stale {
    let mut stale = Stale::default();
    let mut found: Vec<Astray> = Vec::new();
    for (astray, open) in late_answers(system, skews) {
        stale.calls.extend(open);
        stale.beside.extend(&astray.late);
        found.push(astray);
    }
    let is_known = |calls: &Astray| found.iter().any(|astray| (astray.service, astray.callee) == (calls.service, calls.callee));
    let calls: Vec<Astray> = late_calls(system).into_iter().filter(|calls| !is_known(calls)).collect();
    found.extend(calls);
    stale.findings = found.iter().map(|astray| finding(system, astray)).collect();
    stale
}

/// The request or message that a span of its service is work for.
fn work_above(system: &System, at: usize) -> Option<usize> {
    let service = system.spans[at].service;
    let above = std::iter::successors(system.spans[at].parent, |at| system.spans[*at].parent);
    let mut own = above.take_while(|at| system.spans[*at].service == service);
    own.find(|at| system.spans[*at].is(Kind::Server) || system.spans[*at].is(Kind::Consumer))
}

/// The trace and the id of a span of work, reported or not.
type Work = (usize, [u8; 8]);

/// A call and the work that it hangs below.
struct PlacedCall {
    at: usize,
    callee: Option<usize>,
    work: Work,
    is_late: bool,
}

/// The calls of each service.
fn calls(system: &System) -> BTreeMap<usize, Vec<PlacedCall>> {
    let mut calls: BTreeMap<usize, Vec<PlacedCall>> = BTreeMap::new();
    // When work must have ended that nobody reported: its first call, and the longest work of its service after that.
    let mut ends: HashMap<Work, i64> = HashMap::new();
    let longest = |service: usize| system.entries(service).iter().map(|(at, _)| system.spans[*at].took()).max().unwrap_or(0);
    let clients = || (0..system.spans.len()).filter(|at| system.is_outer_client(*at) && system.spans[*at].start > 0);
    let missing = |at: usize| Some((system.spans[at].trace, system.spans[at].span.parent_id?.to_bytes()));
    for at in clients().filter(|at| system.spans[*at].is_orphan) {
        let Some(id) = missing(at) else { continue };
        let end = ends.entry(id).or_insert(i64::MAX);
        *end = (*end).min(system.spans[at].start + longest(system.spans[at].service));
    }
    for at in clients() {
        let span = &system.spans[at];
        let (work, end) = match work_above(system, at) {
            Some(work) => ((span.trace, system.spans[work].span.id.to_bytes()), system.spans[work].end),
            None => {
                let Some(id) = missing(at).filter(|id| ends.contains_key(id)) else { continue };
                (id, ends[&id])
            }
        };
        let callee = match system.callee(at) {
            Remote::Reports(callee) => Some(callee),
            Remote::Silent(_) | Remote::Unnamed => None,
        };
        calls.entry(span.service).or_default().push(PlacedCall {
            at,
            callee,
            work,
            is_late: span.start > end + 2 * TOLERANCE_US,
        });
    }
    calls
}

/// Client spans that begin after the work that they hang below.
fn late_calls(system: &System) -> Vec<Astray> {
    let mut found = Vec::new();
    for (service, calls) in calls(system) {
        let callees: BTreeSet<Option<usize>> = calls.iter().filter(|call| call.is_late).map(|call| call.callee).collect();
        let of = |callee: Option<usize>| calls.iter().filter(|call| call.callee == callee).collect::<Vec<_>>();
        let before = found.len();
        found.extend(callees.iter().filter_map(|callee| late_calls_to(system, service, *callee, &of(*callee))));
        if found.len() == before && callees.len() > 1 {
            found.extend(late_calls_to(system, service, None, &calls.iter().collect::<Vec<_>>()));
        }
    }
    found
}

fn late_calls_to(system: &System, service: usize, callee: Option<usize>, calls: &[&PlacedCall]) -> Option<Astray> {
    let late: Vec<&PlacedCall> = calls.iter().copied().filter(|call| call.is_late).collect();
    if level(late.len(), calls.len()) == Level::Note {
        return None;
    }
    let mut below: HashMap<Work, usize> = HashMap::new();
    calls.iter().for_each(|call| *below.entry(call.work).or_default() += 1);
    let hosts: HashSet<Work> = late.iter().map(|call| call.work).collect();
    let is_stored = late.len() >= CONCENTRATED * hosts.len();
    // Work after the answer is as much for each request.
    if !is_stored && more_than_usual(system, service, &below, &hosts) < 1.25 {
        return None;
    }
    let is_above = |at: &usize| below.contains_key(&(system.spans[*at].trace, system.spans[*at].span.id.to_bytes()));
    let entries: Vec<usize> = system.entries(service).iter().map(|(entry, _)| *entry).collect();
    let lacking: Vec<usize> = entries.iter().copied().filter(|at| !is_above(at)).collect();
    let late: Vec<usize> = late.into_iter().map(|call| call.at).collect();
    inside(system, &late, &lacking, 0).or_else(|| inside(system, &late, &entries, 0).filter(|_| !is_stored))?;
    let most = hosts.iter().map(|work| below[work]).max().unwrap_or(0);
    Some(Astray { service, callee, late, of: calls.len(), most, is_stored })
}

/// How many times more calls are below these than below others of the same name.
fn more_than_usual(system: &System, service: usize, below: &HashMap<Work, usize>, hosts: &HashSet<Work>) -> f64 {
    let route = |(at, _): &(usize, BTreeSet<usize>)| {
        let span = &system.spans[*at];
        ((span.trace, span.span.id.to_bytes()), span.span.name.as_deref())
    };
    let routes: HashMap<Work, Option<&str>> = system.entries(service).iter().map(route).collect();
    let mut usual: HashMap<Option<&str>, (usize, usize)> = HashMap::new();
    let name = |work: &Work| routes.get(work).copied().flatten();
    for (work, calls) in below {
        let (sum, of) = usual.entry(name(work)).or_default();
        (*sum, *of) = (*sum + calls, *of + 1);
    }
    let expected = |work: &Work| usual.get(&name(work)).map_or(1.0, |(sum, of)| *sum as f64 / *of as f64);
    let found: usize = hosts.iter().map(|work| below[work]).sum();
    found as f64 / hosts.iter().map(expected).sum::<f64>()
}

/// Spans of calls from one service to another that begin after the call that they are below, and those below a span of which nothing
/// else is known.
#[derive(Default)]
struct LateAnswers {
    spans: Vec<usize>,
    /// So many below one span.
    most: usize,
}

/// What stands below one call: answers, or the calls of the caller's own proxy; and the service that is called.
fn answers(system: &System) -> impl Iterator<Item = (usize, Option<usize>, [u8; 8], usize)> {
    let answer = |at: usize| {
        let span = &system.spans[at];
        let above = span.parent.filter(|above| system.spans[*above].is(Kind::Client));
        let callee = match above.map(|above| &system.spans[above]) {
            Some(above) if above.service == span.service => {
                let is_proxy = span.is(Kind::Client) && span.tracer != above.tracer;
                match system.callee(at) {
                    Remote::Reports(callee) if is_proxy => callee,
                    _ => return None,
                }
            }
            None if !span.is_orphan || span.span.shared => return None,
            _ if span.is(Kind::Server) => span.service,
            _ => return None,
        };
        let id = above.map_or(span.span.parent_id, |above| Some(system.spans[above].span.id))?;
        (span.start > 0).then_some((at, above, id.to_bytes(), callee))
    };
    (0..system.spans.len()).filter_map(answer)
}

/// By caller, where it is known, and callee.
fn late_answers(system: &System, skews: &HashMap<(usize, usize), i64>) -> Vec<(Astray, Vec<usize>)> {
    /// The call, where it was reported, and what stands below it.
    type Below = (Option<usize>, Vec<usize>);
    let mut groups: BTreeMap<(Work, usize), Below> = BTreeMap::new();
    for (at, above, id, callee) in answers(system) {
        groups.entry(((system.spans[at].trace, id), callee)).or_insert((above, Vec::new())).1.push(at);
    }
    let mut late: BTreeMap<(Option<usize>, usize), LateAnswers> = BTreeMap::new();
    for ((_, callee), (above, mut answers)) in groups.into_iter().filter(|(_, (_, answers))| answers.len() >= 2) {
        answers.sort_by_key(|at| system.spans[*at].start);
        let took = |at: usize| system.spans[at].took();
        let longest = above.map_or_else(|| answers.iter().map(|at| 10 * took(*at)).max().unwrap_or(0), took);
        let end = system.spans[answers[0]].start + longest + 2 * TOLERANCE_US;
        answers.retain(|at| system.spans[*at].start > end);
        if above.is_some() || answers.len() >= CONCENTRATED {
            let late = late.entry((above.map(|above| system.spans[above].service), callee)).or_default();
            late.most = answers.len().max(late.most);
            late.spans.extend(answers);
        }
    }
    let mut open: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for at in (0..system.spans.len()).filter(|at| system.is_outer_client(*at) && system.answered_by(*at).is_none()) {
        open.entry(system.spans[at].service).or_default().push(at);
    }
    let astray = |((caller, callee), late): ((Option<usize>, usize), LateAnswers)| {
        // A few below one call are attempts, or those of somebody in between.
        if late.most < CONCENTRATED {
            return None;
        }
        let callers = open.iter().filter(|(service, _)| **service != callee && caller.is_none_or(|caller| **service == caller));
        let inside_calls = |(&service, calls): (&usize, &Vec<usize>)| {
            let leads_there = |at: &usize| !matches!(system.remote(*at), Remote::Reports(other) if other != callee);
            let calls: Vec<usize> = calls.iter().copied().filter(leads_there).collect();
            let skew = skews.get(&(service, callee)).copied().unwrap_or(0);
            // So many below one call are no attempts, and so many other calls have none.
            let is_plain = caller.is_some() && calls.len() * 10 >= late.spans.len() * 7;
            let found = inside(system, &late.spans, &calls, skew).or(is_plain.then_some(0))?;
            Some((found, service, calls))
        };
        let (_, service, calls) = callers.filter_map(inside_calls).max_by_key(|(found, ..)| *found)?;
        let answered = system.spans.iter().filter(|span| span.service == callee && span.is(Kind::Server));
        let answered = answered.filter(|span| span.parent.is_some_and(|above| system.spans[above].service == service)).count();
        let of = answered.max(late.spans.len());
        let is_fault = level(late.spans.len(), of) == Level::Fault;
        is_fault
            .then_some((Astray { service, callee: Some(callee), late: late.spans, of, most: late.most, is_stored: true }, calls))
    };
    late.into_iter().filter_map(astray).collect()
}

/// How many lie inside, where that is no chance.
fn inside(system: &System, inner: &[usize], outer: &[usize], skew: i64) -> Option<usize> {
    let of = |spans: &[usize]| spans.iter().map(|at| (*at, interval(&system.spans[*at]))).collect::<Vec<_>>();
    Some(Timeline::new(of(outer)).matches(&of(inner), skew)?.pairs.len())
}

fn finding(system: &System, astray: &Astray) -> ServiceFinding {
    let (name, count, of) = (system.name(astray.service), astray.late.len(), astray.of);
    let peer = astray.callee.map(|callee| system.name(callee).to_owned());
    let whom = peer.as_ref().map_or_else(String::new, |peer| format!(" to {peer}"));
    let (id, text, cause) = if astray.is_stored {
        (
            FindingId::ContextStale,
            format!(
                "{count} of {of} calls{whom} are in the trace of an old request whose work had ended before, up to {} below one span, and are missing in their own: it calls with the context of an earlier request",
                astray.most
            ),
            "the context or the headers of one request are stored and sent with later ones: default headers of a client, a static field, a thread, a connection or a scheduled task that began inside a request",
        )
    } else {
        (
            FindingId::ContextMixed,
            format!(
                "{count} of {of} calls{whom} hang below the work for another request, which had ended before they began, while requests lack theirs: contexts of requests are mixed up"
            ),
            "a context is bound to a thread and not removed, or another thread, task or pool goes on with whatever context it finds there",
        )
    };
    ServiceFinding {
        id,
        level: Level::Fault,
        service: name.to_owned(),
        peer,
        text,
        cause: cause.to_owned(),
        next: probe_next(name),
        run: Some(PROBE),
        count,
        of,
        traces: system.examples(astray.late.iter().copied()),
    }
}
