//! Who does not report: orphans, calls without an answer, services between two that report.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::doctor::finding::{FindingId, Level, MIN_SHARE, ServiceFinding, level};
use crate::doctor::peers::peer_names;
use crate::doctor::system::{Remote, System, SystemSpan};
use crate::doctor::timing::{Interval, TOLERANCE_US, interval, median, nested};
use crate::traces::Kind;

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

/// Spans whose parent nobody reported, by who should have; and calls whose answer is missing.
pub(super) fn missing_spans(
    system: &System,
    explained: Explained,
    aliases: &BTreeMap<String, Option<usize>>,
) -> Vec<ServiceFinding> {
    let mut edges: BTreeMap<(usize, usize), bool> = BTreeMap::new();
    for span in system.spans.iter().filter(|span| span.is(Kind::Server)) {
        if let Some(above) = span.parent.map(|parent| &system.spans[parent]).filter(|above| above.service != span.service) {
            *edges.entry((above.service, span.service)).or_default() |= above.is(Kind::Client);
        }
    }
    let search = SuspectSearch { system, edges, aliases };
    let mut orphans: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut groups: BTreeMap<(Suspect, usize), Vec<usize>> = BTreeMap::new();
    let mut torn = HashSet::new();
    for (at, span) in system.spans.iter().enumerate().filter(|(_, span)| span.is_orphan) {
        torn.insert(span.trace);
        if matches!(span.span.kind, Some(Kind::Server | Kind::Consumer)) {
            orphans.entry(span.service).or_default().push(at);
        } else {
            // What is no server span hangs below a span of its own service.
            groups.entry((Suspect::Service(span.service), span.service)).or_default().push(at);
        }
    }
    for (service, orphans) in orphans {
        for (suspect, orphans) in search.suspects(orphans) {
            groups.entry((suspect, service)).or_default().extend(orphans);
        }
    }
    let mut findings: Vec<ServiceFinding> =
        groups.iter().map(|((suspect, service), orphans)| orphaned(system, suspect, *service, orphans)).collect();
    findings.extend(unanswered(system, explained, &torn));
    findings
}

/// Finds who should have reported the parents of a service's orphans: all of them together, because a single one lies inside many
/// calls that have nothing to do with it.
struct SuspectSearch<'a> {
    system: &'a System,
    /// Who calls whom, and whether it reports that by client spans.
    edges: BTreeMap<(usize, usize), bool>,
    /// Other names of services, in lower case.
    aliases: &'a BTreeMap<String, Option<usize>>,
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
                    None if peer_names(&call.span).iter().all(|name| name.is_public()) => {}
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
                // It lost its client span, or all that it had in this trace.
                if caller == outer.service && has_client_spans && !calls_it {
                    add(Suspect::Service(caller), 1, outer);
                } else if !here.contains(&caller) && self.edges.contains_key(&(outer.service, caller)) {
                    add(Suspect::Service(caller), 3, outer);
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

/// One lost span has many below it.
fn missing_parents(system: &System, orphans: &[usize]) -> usize {
    let parent = |at: &usize| (system.spans[*at].trace, system.spans[*at].span.parent_id.unwrap_or(system.spans[*at].span.id));
    orphans.iter().map(parent).collect::<HashSet<_>>().len()
}

fn orphaned(system: &System, suspect: &Suspect, service: usize, orphans: &[usize]) -> ServiceFinding {
    const LOST: &str = "the exporter drops spans (queue full, collector away), reports to another backend, or the process ended before its last batch was sent";
    let name = system.name(service);
    let calls = system.spans.iter().filter(|span| span.service == service && span.is(Kind::Server)).count();
    let (count, of) = (orphans.len(), calls.max(orphans.len()));
    let lost = missing_parents(system, orphans);
    let unreported = "name a parent that nobody reported";
    let id = if matches!(suspect, Suspect::Service(_) | Suspect::Unknown) {
        FindingId::SpansOrphaned
    } else {
        FindingId::ServiceSilent
    };
    let (suspected, text, cause, next) = match suspect {
        Suspect::Silent(silent) => (
            silent.to_string(),
            format!("it passes the context on to {name} and reports no span itself: {count} spans of {name} {unreported}"),
            format!(
                "{silent} is instrumented, and its spans go nowhere: no exporter, another collector, or reporting is disabled (Telemetry disableSpanReporting for a proxy)"
            ),
            format!("look at the exporter settings and the log of {silent}"),
        ),
        Suspect::Service(other) if *other == service => {
            (
                name.to_owned(),
                format!("{count} of its own spans name a parent that it did not report ({lost} different ones)"),
                LOST.to_owned(),
                format!("look at the dropped-spans counter and the log of {name}'s exporter"),
            )
        }
        Suspect::Service(other) => {
            let caller = system.name(*other);
            (
                caller.to_owned(),
                format!(
                    "{count} of {of} spans of {name} {unreported}, and {caller} is who calls {name}: spans of {caller} are missing"
                ),
                LOST.to_owned(),
                format!(
                    "look at the dropped-spans counter and the log of {caller}'s exporter, and whether it passes on an id that it does not report"
                ),
            )
        }
        Suspect::Behind(caller) => {
            let from = system.name(*caller);
            (
                format!("between {from} and {name}"),
                format!("a service stands there that passes the context on and reports no span: {count} spans of {name} {unreported}"),
                LOST.to_owned(),
                format!(
                    "find whom {from} calls (its client spans do not name it), and look at the exporter settings of that service"
                ),
            )
        }
        Suspect::Unknown => (
            name.to_owned(),
            format!("{count} of {of} of its spans {unreported}: whoever calls it passes a context on and reports nothing here"),
            "the caller is outside this mesh or reports to another backend, or a proxy in front has tracing headers but no tracer"
                .to_owned(),
            format!("find who calls {name}: its access log has the address and the user agent"),
        ),
    };
    ServiceFinding {
        id,
        // A caller outside the mesh may send a context, too; and of cut traces the rest may not have come, or may be gone.
        level: if *suspect == Suspect::Unknown || system.are_at_the_edge(service, orphans) {
            Level::Note
        } else {
            level(lost, of)
        },
        peer: (suspected != name).then(|| name.to_owned()),
        service: suspected,
        text,
        cause,
        next,
        run: None,
        count,
        of,
        traces: system.examples(orphans.iter().copied()),
    }
}

/// What other findings explain already.
#[derive(Debug, Default)]
pub(super) struct Explained {
    /// Client spans whose answer is in another trace.
    pub(super) calls: HashSet<usize>,
    /// Caller and callee between which contexts are lost.
    pub(super) pairs: HashSet<(usize, usize)>,
    /// Services whose spans have the wrong kind.
    pub(super) kinds: HashSet<usize>,
    /// Callers with calls that name nobody, and which belong to somebody who reports nothing.
    pub(super) unclear: HashSet<usize>,
}

/// Calls to a service that reports, with nothing of it below: it decided not to sample, or its spans were lost.
fn unanswered(system: &System, mut explained: Explained, torn: &HashSet<usize>) -> Vec<ServiceFinding> {
    let mut open: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    let mut answered: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    let mut unnamed: Vec<usize> = Vec::new();
    for (at, span) in system.spans.iter().enumerate() {
        if !system.is_outer_client(at) || explained.calls.contains(&at) || span.span.is_error() || span.span.timestamp.is_none() {
            continue;
        }
        match (system.answered_by(at), system.named_remote(at)) {
            (Some(answer), _) => answered.entry((span.service, system.spans[answer].service)).or_default().push(at),
            (None, Remote::Reports(callee)) if !torn.contains(&span.trace) => {
                open.entry((span.service, callee)).or_default().push(at);
            }
            (None, Remote::Unnamed) if torn.contains(&span.trace) => {
                explained.unclear.insert(span.service);
            }
            (None, Remote::Unnamed) => unnamed.push(at),
            _ => {}
        }
    }
    for (pair, calls) in guessed(system, unnamed, &answered, &explained.unclear) {
        open.entry(pair).or_default().extend(calls);
    }
    let known = |pair: &(usize, usize)| explained.pairs.contains(pair) || explained.kinds.contains(&pair.0);
    let finding = |((caller, callee), calls): ((usize, usize), Vec<usize>)| {
        let joined = answered.get(&(caller, callee)).map_or(0, Vec::len);
        let (count, of) = (calls.len(), calls.len() + joined);
        let (from, name) = (system.name(caller), system.name(callee));
        // Where no call was ever answered, whether that service takes part in traces at all is not known.
        // A few lost spans look the same.
        let is_rare = count < 5 || count * 20 < of;
        let level = if joined == 0 || is_rare { Level::Note } else { level(count, of) };
        (count as f64 >= MIN_SHARE * of as f64).then(|| ServiceFinding {
            id: FindingId::SamplingDiffers,
            level,
            service: name.to_owned(),
            peer: Some(from.to_owned()),
            text: format!("{count} of {of} calls from {from} have no span of {name}, nor of anything behind it"),
            cause: format!("{name} decides about sampling by itself instead of following its caller (a sampler that is not parent-based), or loses whole batches of spans"),
            next: format!("compare the samplers: OTEL_TRACES_SAMPLER of {name} should be parentbased_…; then its dropped-spans counter"),
            run: None,
            count,
            of,
            traces: system.examples(calls),
        })
    };
    open.into_iter().filter(|(pair, _)| !known(pair)).filter_map(finding).collect()
}

/// Caller, callee, and the calls between them.
type CallsBetween = BTreeMap<(usize, usize), Vec<usize>>;

/// To whom calls go that name nobody and have no answer: to the one service that is missing beside them, where that is called without
/// a name at other times, too.
fn guessed(system: &System, unnamed: Vec<usize>, answered: &CallsBetween, unclear: &HashSet<usize>) -> CallsBetween {
    let mut guessed = CallsBetween::new();
    // Some callers always call somebody who never reports.
    let mut elsewhere: HashMap<usize, usize> = HashMap::new();
    for at in unnamed.into_iter().filter(|at| !unclear.contains(&system.spans[*at].service)) {
        let service = system.spans[at].service;
        let is_alike = |call: &&usize| {
            system.spans[**call].span.name == system.spans[at].span.name && system.named_remote(**call) == Remote::Unnamed
        };
        match by_exclusion(system, at, answered) {
            Some(callee) if answered[&(service, callee)].iter().take(16).any(|call| is_alike(&call)) => {
                guessed.entry((service, callee)).or_default().push(at);
            }
            Some(_) => {}
            None => *elsewhere.entry(service).or_default() += 1,
        }
    }
    // Where the callee worked they take as long as others; else somebody in between did not call it.
    let typical = |calls: &[usize]| median(calls.iter().map(|at| system.spans[*at].took()).collect()).unwrap_or(0);
    guessed.retain(|pair, calls| {
        let others = elsewhere.get(&pair.0).copied().unwrap_or(0);
        others * 5 <= calls.len() && typical(calls) * 4 >= typical(&answered[pair]) * 3
    });
    guessed
}

/// The one service that is called at other times and has no answer beside this call.
fn by_exclusion(system: &System, call: usize, answered: &CallsBetween) -> Option<usize> {
    let service = system.spans[call].service;
    let above = std::iter::successors(Some(call), |at| system.spans[*at].parent).find(|at| system.is_entry(*at))?;
    let entries = system.entries(service);
    let here = &entries[entries.binary_search_by_key(&above, |(entry, _)| *entry).ok()?].1;
    let usual = answered.range((service, 0)..=(service, usize::MAX)).map(|((_, callee), _)| *callee);
    let mut absent = usual.filter(|callee| !here.contains(callee));
    let only = absent.next()?;
    absent.next().is_none().then_some(only)
}
