//! Spans whose parent nobody reported, and who should have.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::doctor::finding::{FindingId, Level, MIN_SHARE, ServiceFinding, level};
use crate::doctor::peers::peer_names;
use crate::doctor::shortened::begun_elsewhere;
use crate::doctor::system::{Remote, System, SystemSpan, TracerKind};
use crate::doctor::timing::{Interval, TOLERANCE_US, evidence, interval, nested};
use crate::text::counted;
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
    explained: &HashSet<usize>,
    aliases: &BTreeMap<String, Option<usize>>,
) -> (Vec<ServiceFinding>, HashSet<usize>) {
    let mut edges: BTreeMap<(usize, usize), bool> = BTreeMap::new();
    for span in system.spans.iter().filter(|span| span.is(Kind::Server)) {
        if let Some(above) = span.parent.map(|parent| &system.spans[parent]).filter(|above| above.service != span.service) {
            *edges.entry((above.service, span.service)).or_default() |= above.is(Kind::Client);
        }
    }
    let producers = producers(system);
    let mut orphans: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut groups: BTreeMap<(Suspect, usize), Vec<usize>> = BTreeMap::new();
    let (proxied, elsewhere) = (proxied(system), begun_elsewhere(system));
    let mut torn = HashSet::new();
    for (at, span) in system.spans.iter().enumerate().filter(|(_, span)| span.is_orphan) {
        torn.insert(span.trace);
        if explained.contains(&at) || elsewhere.contains(&at) {
            continue;
        }
        let is_behind_proxy = || span.tracer != TracerKind::Envoy && proxied.contains(&span.service);
        let known =
            if span.is(Kind::Consumer) { producers.get(&span.service).copied().flatten() } else { caller_of_half(system, at) };
        if let Some(caller) = known {
            groups.entry((Suspect::Service(caller), span.service)).or_default().push(at);
        } else if span.is(Kind::Consumer) || span.is(Kind::Server) && !is_behind_proxy() {
            orphans.entry(span.service).or_default().push(at);
        } else {
            // What is no server span hangs below a span of its own service, as an app's server span does below its proxy's.
            groups.entry((Suspect::Service(span.service), span.service)).or_default().push(at);
        }
    }
    let losing = Losses::new(system, &by_suspect(system, groups.clone())).faults();
    let mut consumers: HashMap<usize, Vec<(usize, BTreeSet<usize>)>> = HashMap::new();
    for (at, span) in system.spans.iter().enumerate().filter(|(_, span)| span.is(Kind::Consumer)) {
        consumers.entry(span.trace).or_default().push((at, system.callees(at)));
    }
    let search = SuspectSearch { system, edges, aliases, losing, consumers };
    for (service, orphans) in orphans {
        for (suspect, orphans) in search.suspects(orphans) {
            groups.entry((suspect, service)).or_default().extend(orphans);
        }
    }
    let found = by_suspect(system, groups);
    let losses = Losses::new(system, &found);
    let (mut findings, mut rare) = (Vec::new(), Vec::new());
    for (suspect, parts) in &found {
        let finding = orphaned(system, suspect, parts, &losses);
        let is_rare = finding.level == Level::Note && !matches!(suspect, Suspect::Unknown | Suspect::Silent(_));
        if is_rare { rare.push(finding) } else { findings.push(finding) }
    }
    findings.extend(lost_here_and_there(rare));
    (findings, torn)
}

/// One note for what a few services lost.
fn lost_here_and_there(mut rare: Vec<ServiceFinding>) -> Option<ServiceFinding> {
    rare.sort_by_key(|finding| std::cmp::Reverse(finding.count));
    let list: Vec<String> =
        rare.iter().map(|finding| format!("{} of {} of {}", finding.count, finding.of, finding.service)).collect();
    let (count, of) = rare.iter().fold((0, 0), |sum, finding| (sum.0 + finding.count, sum.1 + finding.of));
    let mut traces: Vec<_> = rare.iter().flat_map(|finding| finding.traces.iter().copied()).collect();
    traces.truncate(3);
    let first = rare.into_iter().next()?;
    Some(ServiceFinding {
        id: FindingId::SpansOrphaned,
        peer: None,
        text: format!("a few spans are missing, known from those below them that name them as parents: {}", list.join(", ")),
        cause: "spans were lost on their way, or were not there yet when the traces were read".to_owned(),
        next:
            "nothing to mend while it is this rare; the dropped-spans counters of the exporters and the collector have the rest"
                .to_owned(),
        count,
        of,
        traces,
        ..first
    })
}

/// Of each service that consumes messages the one whose messages they are; `None` where there are several.
fn producers(system: &System) -> HashMap<usize, Option<usize>> {
    let mut producers: HashMap<usize, Option<usize>> = HashMap::new();
    for span in system.spans.iter().filter(|span| span.is(Kind::Consumer)) {
        let Some(above) = span.parent.map(|above| system.spans[above].service) else { continue };
        let producer = producers.entry(span.service).or_insert(Some(above));
        *producer = producer.filter(|producer| *producer == above);
    }
    producers
}

/// The service whose half of a shared span was lost, where what is above that half is there.
fn caller_of_half(system: &System, orphan: usize) -> Option<usize> {
    let span = &system.spans[orphan];
    let above = span.span.parent_id.filter(|_| span.span.shared)?;
    let mut entries = system.entries_of_trace(span.trace).map(|(at, _)| &system.spans[*at]);
    entries.find(|entry| entry.span.id == above && entry.service != span.service).map(|entry| entry.service)
}

/// How many spans each service lost, as the spans below them show.
struct Losses {
    /// Lost, and all that have others below them.
    of: BTreeMap<usize, (usize, usize)>,
}

impl Losses {
    fn new(system: &System, found: &[(Suspect, Vec<Part>)]) -> Self {
        let mut of: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
        for span in system.spans.iter().filter(|span| !span.children.is_empty()) {
            of.entry(span.service).or_default().1 += 1;
        }
        for (suspect, parts) in found {
            let Suspect::Service(service) = suspect else { continue };
            let long = longest_work(system, *service);
            let whole = parts.iter().flat_map(|part| away_from_the_ends(system, part, long));
            let lost = whole.map(|at| missing_parent(system, at)).collect::<HashSet<_>>().len();
            let (known, all) = of.entry(*service).or_default();
            (*known, *all) = (lost, *all + lost);
        }
        Self { of }
    }

    /// Whether a service loses more than the others do: on their way to the backend spans of all get lost.
    fn is_fault(&self, service: usize) -> bool {
        /// A share that every backend loses, and one that is too much wherever it is lost.
        const USUAL: [f64; 2] = [0.01, MIN_SHARE];
        /// The natural logarithm of how unlikely it has to be: a run compares some ten services.
        const EVIDENCE: f64 = 7.0;
        let (lost, all) = self.of.get(&service).copied().unwrap_or_default();
        let others = self.of.iter().filter(|(other, _)| **other != service).map(|(_, counts)| counts);
        let (lost_by_others, of_others) = others.fold((0, 0), |sum, (lost, all)| (sum.0 + lost, sum.1 + all));
        let usual = (lost_by_others as f64 / of_others.max(1) as f64).clamp(USUAL[0], USUAL[1]);
        level(lost, all) == Level::Fault && evidence(lost, all, usual) >= EVIDENCE
    }

    fn faults(&self) -> HashSet<usize> {
        self.of.keys().copied().filter(|service| self.is_fault(*service)).collect()
    }
}

/// Microseconds that nearly all the work of a service is shorter than.
fn longest_work(system: &System, service: usize) -> i64 {
    let mut took: Vec<i64> = system.entries(service).iter().map(|(at, _)| system.spans[*at].took()).collect();
    took.sort_unstable();
    took.get(took.len() * 99 / 100).copied().unwrap_or(0)
}

/// Orphans whose parent did not begin before what was read, nor end after it. A parent may last `long` microseconds.
fn away_from_the_ends<'p>(system: &'p System, (service, orphans): &'p Part, long: i64) -> impl Iterator<Item = usize> + 'p {
    /// At most this part of the time is taken for an end.
    const END: i64 = 5;
    let own = || system.spans.iter().filter(|span| span.service == *service && span.start > 0);
    let first = own().map(|span| span.start).min().unwrap_or(0);
    let last = own().map(|span| span.end).max().unwrap_or(0);
    let margin = long.min((last - first) / END);
    orphans.iter().copied().filter(move |at| (first + margin..=last - margin).contains(&system.spans[*at].start))
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
            *other == suspect && (!matches!(suspect, Suspect::Behind(_)) || is_one())
        };
        match found.iter_mut().find(is_same) {
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
    /// The work for messages in each trace, with whom it calls.
    consumers: HashMap<usize, Vec<(usize, BTreeSet<usize>)>>,
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
        let work = || system.entries_of_trace(span.trace).chain(self.consumers.get(&span.trace).into_iter().flatten().take(64));
        let here: HashSet<usize> = work().map(|(at, _)| system.spans[*at].service).collect();
        for (at, callees) in work() {
            let outer = &system.spans[*at];
            let calls_it = callees.contains(&span.service);
            if outer.service == span.service || outer.took() + TOLERANCE_US < span.took() || system.is_below(*at, orphan) {
                continue;
            }
            // Both at the top of their trace: whoever is missing may have called one after the other.
            if !outer.is_orphan {
                add(Suspect::Behind(outer.service), 0, outer);
            }
            for &(caller, has_client_spans) in &callers {
                let is_losing = self.losing.contains(&caller);
                if outer.is_orphan && !is_losing {
                    continue;
                }
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
    (span.trace, span.span.parent_id.filter(|_| !span.span.shared).unwrap_or(span.span.id))
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
fn words(system: &System, suspect: &Suspect, parts: &[Part], (lost, of): (usize, usize)) -> (String, String, String, String) {
    const LOST: &str = "the exporter drops spans (queue full, collector away), reports to another backend, or the process ended before its last batch was sent";
    let names: Vec<&str> = parts.iter().map(|(service, _)| system.name(*service)).collect();
    let all = names.join(", ");
    let list = |count: &dyn Fn(&Part) -> String| {
        parts.iter().map(|part| format!("{} of {}", count(part), system.name(part.0))).collect::<Vec<_>>().join(", ")
    };
    let spans = |part: &Part| counted(part.1.len(), "span");
    let unreported = "name a parent that nobody reported";
    match suspect {
        Suspect::Silent(silent) => (
            silent.to_string(),
            format!("it passes the context on to {all} and reports no span itself: {} {unreported}", list(&spans)),
            format!(
                "{silent} is instrumented, and its spans go nowhere: no exporter, another collector, or reporting is disabled (Telemetry disableSpanReporting for a proxy)"
            ),
            format!("look at the exporter settings and the log of {silent}"),
        ),
        Suspect::Service(other) => {
            let name = system.name(*other);
            let below = |part: &Part| {
                if part.0 == *other {
                    format!("{} of its own spans", part.1.len())
                } else {
                    format!("{} of {}", spans(part), system.name(part.0))
                }
            };
            let are = if lost == 1 { "is" } else { "are" };
            let further = if parts[0].0 == *other { "" } else { ", and whether it passes on an id that it does not report" };
            (
                name.to_owned(),
                format!(
                    "{lost} of its {of} spans with others below them {are} missing: {} {unreported}",
                    parts.iter().map(below).collect::<Vec<_>>().join(", ")
                ),
                LOST.to_owned(),
                format!("look at the dropped-spans counter and the log of {name}'s exporter{further}"),
            )
        }
        Suspect::Behind(caller) => {
            let from = system.name(*caller);
            (
                format!("between {from} and {all}"),
                format!("a service stands there that passes the context on and reports no span: {} {unreported}", list(&spans)),
                LOST.to_owned(),
                format!(
                    "find whom {from} calls (its client spans do not name it), and look at the exporter settings of that service"
                ),
            )
        }
        Suspect::Unknown => {
            let spans = |part: &Part| format!("{} of {} spans", part.1.len(), requests(system, part));
            (
                names[0].to_owned(),
                format!("{} {unreported}: whoever calls {all} passes a context on and reports nothing here", list(&spans)),
                "the caller is outside this mesh or reports to another backend, or a proxy in front has tracing headers but no tracer"
                    .to_owned(),
                format!("find who calls {all}: the access log has the address and the user agent"),
            )
        }
    }
}

fn orphaned(system: &System, suspect: &Suspect, parts: &[Part], losses: &Losses) -> ServiceFinding {
    let all: Vec<usize> = parts.iter().flat_map(|(_, orphans)| orphans.iter().copied()).collect();
    // The score is that of the service that loses most.
    let worst = parts.iter().max_by_key(|part| part.1.len() * 1_000 / requests(system, part).max(1)).unwrap_or(&parts[0]);
    let (is_fault, count, of) = match suspect {
        Suspect::Service(service) => {
            let (counted, of) = losses.of.get(service).copied().unwrap_or_default();
            let lost = missing_parents(system, &all);
            (losses.is_fault(*service), lost, of - counted + lost)
        }
        _ => {
            let long = longest_work(system, worst.0);
            let is_fault = |part: &Part| {
                let whole: Vec<usize> = away_from_the_ends(system, part, long).collect();
                level(missing_parents(system, &whole), requests(system, part)) == Level::Fault
            };
            // A caller outside the mesh may send a context, too.
            (*suspect != Suspect::Unknown && parts.iter().any(is_fault), worst.1.len(), requests(system, worst))
        }
    };
    let (suspected, text, cause, next) = words(system, suspect, parts, (count, of));
    let silent = matches!(suspect, Suspect::Silent(_) | Suspect::Behind(_));
    let name = system.name(parts[0].0);
    ServiceFinding {
        id: if silent { FindingId::ServiceSilent } else { FindingId::SpansOrphaned },
        level: if is_fault { Level::Fault } else { Level::Note },
        peer: (suspected != name).then(|| name.to_owned()),
        service: suspected,
        text,
        cause,
        next,
        run: None,
        count,
        of,
        traces: system.examples(all),
    }
}
