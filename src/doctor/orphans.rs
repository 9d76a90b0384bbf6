//! Spans whose parent nobody reported, and who should have.

use std::collections::{BTreeMap, HashSet};

use crate::doctor::finding::{FindingId, Level, MIN_COUNT, ServiceFinding, level};
use crate::doctor::peers::peer_names;
use crate::doctor::system::{Remote, System, SystemSpan, TracerKind};
use crate::doctor::timing::{Interval, TOLERANCE_US, interval, nested};
use crate::traces::{Kind, SpanId};

/// Who should have reported the parent of some orphans.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Suspect {
    /// A service of which other spans come.
    Service(usize),
    /// A service that is called by this name and reports nothing.
    Silent(Box<str>),
    /// A service without a name behind this one.
    Behind(usize),
    /// Somebody in front of a service; nothing else is known.
    Unknown,
}

/// Spans whose parent nobody reported, by who should have; and the traces that have such.
pub(super) fn orphaned_spans(
    system: &System,
    aliases: &BTreeMap<String, Option<usize>>,
) -> (Vec<ServiceFinding>, HashSet<usize>) {
    let mut edges: BTreeMap<(usize, usize), bool> = BTreeMap::new();
    for span in system.spans.iter().filter(|span| span.is(Kind::Server)) {
        if let Some(above) = span.parent.map(|parent| &system.spans[parent]).filter(|above| above.service != span.service) {
            *edges.entry((above.service, span.service)).or_default() |= above.is(Kind::Client);
        }
    }
    let mut orphans: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut groups: BTreeMap<(Suspect, usize), Vec<usize>> = BTreeMap::new();
    let proxied = proxied(system);
    let mut torn = HashSet::new();
    for (at, span) in system.spans.iter().enumerate().filter(|(_, span)| span.is_orphan) {
        torn.insert(span.trace);
        let is_behind_proxy = || span.tracer != TracerKind::Envoy && proxied.contains(&span.service);
        if span.is(Kind::Consumer) || span.is(Kind::Server) && !is_behind_proxy() {
            orphans.entry(span.service).or_default().push(at);
        } else {
            // What is no server span hangs below a span of its own service, as an app's server span does below its proxy's.
            groups.entry((Suspect::Service(span.service), span.service)).or_default().push(at);
        }
    }
    let loses = |((_, service), orphans): (&(Suspect, usize), &Vec<usize>)| {
        (missing_parents(system, orphans) >= MIN_COUNT).then_some(*service)
    };
    let search = SuspectSearch { system, edges, aliases, losing: groups.iter().filter_map(loses).collect() };
    for (service, orphans) in orphans {
        for (suspect, orphans) in search.suspects(orphans) {
            groups.entry((suspect, service)).or_default().extend(orphans);
        }
    }
    let findings = by_suspect(system, groups).iter().map(|(suspect, parts)| orphaned(system, suspect, parts)).collect();
    (findings, torn)
}

/// Services whose requests pass a proxy that reports, before their app reports them.
fn proxied(system: &System) -> HashSet<usize> {
    let mut counts: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
    for span in system.spans.iter().filter(|span| span.is(Kind::Server) && span.tracer != TracerKind::Envoy) {
        let Some(above) = span.parent.map(|above| &system.spans[above]) else { continue };
        let (below, all) = counts.entry(span.service).or_default();
        *all += 1;
        *below += usize::from(above.service == span.service && above.is(Kind::Server) && above.tracer == TracerKind::Envoy);
    }
    counts.into_iter().filter(|(_, (below, all))| below * 2 >= *all).map(|(service, _)| service).collect()
}

/// Orphans of a service.
type Part = (usize, Vec<usize>);

/// What one cause explains is one finding: orphans of several services that the same one should have reported the parents of.
fn by_suspect(system: &System, groups: BTreeMap<(Suspect, usize), Vec<usize>>) -> Vec<(Suspect, Vec<Part>)> {
    let parents = |orphans: &[usize]| orphans.iter().map(|at| missing_parent(system, *at)).collect::<HashSet<_>>();
    let mut found: Vec<(Suspect, Vec<Part>)> = Vec::new();
    for ((suspect, service), orphans) in groups {
        let is_same = |(other, parts): &&mut (Suspect, Vec<Part>)| {
            let shared = || parents(&orphans).intersection(&parents(&parts[0].1)).count() * 2;
            let is_one = || shared() >= parents(&orphans).len().min(parents(&parts[0].1).len());
            *other == suspect && (!matches!(suspect, Suspect::Behind(_) | Suspect::Unknown) || is_one())
        };
        match found.iter_mut().find(is_same).filter(|_| suspect != Suspect::Unknown) {
            // Its own first, as it is the cause of the others.
            Some((Suspect::Service(other), parts)) if *other == service => parts.insert(0, (service, orphans)),
            Some((_, parts)) => parts.push((service, orphans)),
            None => found.push((suspect, vec![(service, orphans)])),
        }
    }
    found
}

/// Finds who should have reported the parents of a service's orphans: all of them together, because a single one lies inside many
/// calls that have nothing to do with it.
struct SuspectSearch<'a> {
    system: &'a System,
    /// Who calls whom, and whether it reports that by client spans.
    edges: BTreeMap<(usize, usize), bool>,
    /// Other names of services, in lower case.
    aliases: &'a BTreeMap<String, Option<usize>>,
    /// Services that lose parents of their own spans.
    losing: HashSet<usize>,
}

/// What speaks for one suspect.
#[derive(Default)]
struct Case {
    orphans: Vec<usize>,
    /// Each orphan, and the spans that may be the calls that led to it.
    within: Vec<(Interval, Vec<Interval>)>,
    /// How good the evidence is by its kind.
    rank: u8,
}

impl Case {
    /// Of several around the orphans the innermost counts.
    fn longest(&self) -> i64 {
        self.within.iter().flat_map(|(_, outer)| outer).map(|(start, end)| end - start).sum()
    }
}

impl SuspectSearch<'_> {
    /// The suspects, each with the orphans that it explains.
    fn suspects(&self, mut orphans: Vec<usize>) -> Vec<(Suspect, Vec<usize>)> {
        let all = orphans.len();
        let mut found = Vec::new();
        while !orphans.is_empty() {
            let mut cases: BTreeMap<Suspect, Case> = BTreeMap::new();
            orphans.iter().for_each(|at| self.suspected(*at, &mut cases));
            let score =
                |case: &Case| 2 * nested(&case.within, false).max(nested(&case.within, true) * 19 / 20) + case.orphans.len();
            let mut scored: Vec<_> = cases.into_iter().map(|(suspect, case)| (score(&case), suspect, case)).collect();
            let most = scored.iter().map(|(score, ..)| *score).max().unwrap_or(0);
            scored.retain(|(score, ..)| score * 10 >= most * 9);
            let rank = scored.iter().map(|(.., case)| case.rank).max().unwrap_or(0);
            let is_one =
                |(_, suspect, case): &&(usize, Suspect, Case)| case.rank == rank && matches!(suspect, Suspect::Service(_));
            // Of several who may have been there, none is known to have been.
            if rank <= 3 && scored.iter().filter(is_one).count() > 1 {
                scored.retain(|(_, suspect, _)| !matches!(suspect, Suspect::Service(_)));
            }
            let best = scored.into_iter().max_by_key(|(score, _, case)| (case.rank, *score, std::cmp::Reverse(case.longest())));
            // Whoever explains a few that another does not is there by chance.
            let Some((_, suspect, case)) = best.filter(|(.., case)| found.is_empty() || case.orphans.len() * 4 >= all) else {
                found.push((Suspect::Unknown, orphans));
                break;
            };
            let explained: HashSet<usize> = case.orphans.into_iter().collect();
            orphans.retain(|at| !explained.contains(at));
            found.push((suspect, explained.into_iter().collect()));
        }
        found.iter_mut().for_each(|(_, orphans)| orphans.sort_unstable());
        found
    }

    /// Adds who may have called one orphan: whom the calls of its trace without an answer lead to, and who takes part in the trace.
    fn suspected(&self, orphan: usize, cases: &mut BTreeMap<Suspect, Case>) {
        let system = self.system;
        let span = &system.spans[orphan];
        if span.is(Kind::Consumer) {
            return;
        }
        let mut found: BTreeMap<Suspect, (u8, Vec<Interval>)> = BTreeMap::new();
        let mut add = |suspect: Suspect, rank: u8, outer: &SystemSpan| {
            let (best, spans) = found.entry(suspect).or_default();
            *best = rank.max(*best);
            spans.push(interval(outer));
        };
        let open = system.open_calls(span.trace).filter(|at| system.spans[*at].service != span.service);
        for at in open.filter(|at| !system.is_below(*at, orphan)) {
            let call = &system.spans[at];
            if call.took() + TOLERANCE_US < span.took() && !call.span.is_error() {
                continue;
            }
            match system.remote(at) {
                Remote::Silent(name) => match self.aliases.get(&name.to_lowercase()) {
                    Some(Some(service)) if *service != span.service => add(Suspect::Service(*service), 5, call),
                    Some(_) => {}
                    // Nobody behind a name of the public DNS calls back into the mesh.
                    None if peer_names(&call.span).first().is_none_or(|name| name.is_public()) => {}
                    None => add(Suspect::Silent(name), 4, call),
                },
                Remote::Reports(service) if service == span.service => {}
                Remote::Reports(service) if self.edges.contains_key(&(service, span.service)) => {
                    add(Suspect::Service(service), 5, call)
                }
                Remote::Reports(service) => add(Suspect::Service(service), 4, call),
                Remote::Unnamed => add(Suspect::Behind(call.service), 2, call),
            }
        }
        let callers: Vec<(usize, bool)> = self
            .edges
            .iter()
            .filter(|((_, callee), _)| *callee == span.service)
            .map(|((caller, _), by)| (*caller, *by))
            .collect();
        let here: HashSet<usize> = system.entries_of_trace(span.trace).map(|(at, _)| system.spans[*at].service).collect();
        for (at, callees) in system.entries_of_trace(span.trace) {
            let outer = &system.spans[*at];
            let calls_it = callees.contains(&span.service);
            if outer.service == span.service || outer.took() + TOLERANCE_US < span.took() || system.is_below(*at, orphan) {
                continue;
            }
            add(Suspect::Behind(outer.service), 0, outer);
            for &(caller, has_client_spans) in &callers {
                let is_losing = self.losing.contains(&caller);
                // It lost its client span, or all that it had in this trace.
                if caller == outer.service && (is_losing || has_client_spans && !calls_it) {
                    add(Suspect::Service(caller), if is_losing { 4 } else { 1 }, outer);
                } else if (is_losing || !here.contains(&caller)) && self.edges.contains_key(&(outer.service, caller)) {
                    add(Suspect::Service(caller), if is_losing { 4 } else { 3 }, outer);
                }
            }
        }
        for (suspect, (rank, spans)) in found {
            let case = cases.entry(suspect).or_default();
            case.rank = rank.max(case.rank);
            case.orphans.push(orphan);
            case.within.push((interval(span), spans));
        }
    }
}

/// The trace and the id of the span that is missing above an orphan.
fn missing_parent(system: &System, orphan: usize) -> (usize, SpanId) {
    let span = &system.spans[orphan];
    (span.trace, span.span.parent_id.unwrap_or(span.span.id))
}

/// One lost span has many below it.
fn missing_parents(system: &System, orphans: &[usize]) -> usize {
    orphans.iter().map(|at| missing_parent(system, *at)).collect::<HashSet<_>>().len()
}

/// Requests that a service reports, at least so many as it has orphans.
fn requests(system: &System, (service, orphans): &Part) -> usize {
    system.spans.iter().filter(|span| span.service == *service && span.is(Kind::Server)).count().max(orphans.len())
}

/// The service that should have reported, what is to be said of it, the cause, and what to do.
fn words(system: &System, suspect: &Suspect, parts: &[Part]) -> (String, String, String, String) {
    const LOST: &str = "the exporter drops spans (queue full, collector away), reports to another backend, or the process ended before its last batch was sent";
    let names: Vec<&str> = parts.iter().map(|(service, _)| system.name(*service)).collect();
    let (name, all) = (names[0], names.join(", "));
    let is_own = *suspect == Suspect::Service(parts[0].0);
    let list = |parts: &[Part], count: &dyn Fn(&Part) -> String| {
        parts.iter().map(|part| format!("{} spans of {}", count(part), system.name(part.0))).collect::<Vec<_>>().join(", ")
    };
    let some = |parts: &[Part]| list(parts, &|part| part.1.len().to_string());
    let spans = |parts: &[Part]| list(parts, &|part| format!("{} of {}", part.1.len(), requests(system, part)));
    let unreported = "name a parent that nobody reported";
    match suspect {
        Suspect::Silent(silent) => (
            silent.to_string(),
            format!("it passes the context on to {all} and reports no span itself: {} {unreported}", some(parts)),
            format!(
                "{silent} is instrumented, and its spans go nowhere: no exporter, another collector, or reporting is disabled (Telemetry disableSpanReporting for a proxy)"
            ),
            format!("look at the exporter settings and the log of {silent}"),
        ),
        Suspect::Service(_) if is_own => {
            let (count, lost) = (parts[0].1.len(), missing_parents(system, &parts[0].1));
            let own = format!("{count} of its own spans name a parent that it did not report ({lost} different ones)");
            let others = if parts.len() > 1 { format!("; so do {}, which it calls", spans(&parts[1..])) } else { String::new() };
            (
                name.to_owned(),
                own + &others,
                LOST.to_owned(),
                format!("look at the dropped-spans counter and the log of {name}'s exporter"),
            )
        }
        Suspect::Service(other) => {
            let caller = system.name(*other);
            (
                caller.to_owned(),
                format!("{} {unreported}, and {caller} is who calls {all}: spans of {caller} are missing", spans(parts)),
                LOST.to_owned(),
                format!(
                    "look at the dropped-spans counter and the log of {caller}'s exporter, and whether it passes on an id that it does not report"
                ),
            )
        }
        Suspect::Behind(caller) => {
            let from = system.name(*caller);
            (
                format!("between {from} and {all}"),
                format!("a service stands there that passes the context on and reports no span: {} {unreported}", some(parts)),
                LOST.to_owned(),
                format!(
                    "find whom {from} calls (its client spans do not name it), and look at the exporter settings of that service"
                ),
            )
        }
        Suspect::Unknown => (
            name.to_owned(),
            format!(
                "{} of {} of its spans {unreported}: whoever calls it passes a context on and reports nothing here",
                parts[0].1.len(),
                requests(system, &parts[0])
            ),
            "the caller is outside this mesh or reports to another backend, or a proxy in front has tracing headers but no tracer"
                .to_owned(),
            format!("find who calls {name}: its access log has the address and the user agent"),
        ),
    }
}

fn orphaned(system: &System, suspect: &Suspect, parts: &[Part]) -> ServiceFinding {
    let name = system.name(parts[0].0);
    let id = if matches!(suspect, Suspect::Service(_) | Suspect::Unknown) {
        FindingId::SpansOrphaned
    } else {
        FindingId::ServiceSilent
    };
    let (suspected, text, cause, next) = words(system, suspect, parts);
    // A caller outside the mesh may send a context, too; and of cut traces the rest may not have come, or may be gone.
    let is_fault = |part: &&Part| {
        let (lost, of) = (missing_parents(system, &part.1), requests(system, part));
        level(lost, of) == Level::Fault && *suspect != Suspect::Unknown && !system.are_at_the_edge(part.0, &part.1)
    };
    // The score is that of the service that loses most.
    let worst = parts.iter().max_by_key(|part| part.1.len() * 1_000 / requests(system, part).max(1)).unwrap_or(&parts[0]);
    let orphans = || parts.iter().flat_map(|(_, orphans)| orphans.iter().copied());
    ServiceFinding {
        id,
        level: if parts.iter().any(|part| is_fault(&part)) { Level::Fault } else { Level::Note },
        peer: (suspected != name).then(|| name.to_owned()),
        service: suspected,
        text,
        cause,
        next,
        run: None,
        count: worst.1.len(),
        of: requests(system, worst),
        traces: system.examples(orphans()),
    }
}
