//! Who does not report: orphans, calls without an answer, services between two that report.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::doctor::finding::{FindingId, Level, MIN_SHARE, ServiceFinding, level};
use crate::doctor::peers::peer_names;
use crate::doctor::system::{Remote, System, SystemSpan};
use crate::doctor::timing::median;
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

/// Spans whose parent nobody reported, by who should have; and calls whose answer is missing.
pub(super) fn missing_spans(system: &System, explained: Explained) -> Vec<ServiceFinding> {
    let callers = usual_callers(system);
    let edge = |span: &SystemSpan| Some((system.spans[span.parent?].service, span.service));
    let edges = system.spans.iter().filter(|span| span.is(Kind::Server)).filter_map(edge).collect();
    let mut groups: BTreeMap<(Suspect, usize), Vec<usize>> = BTreeMap::new();
    for at in (0..system.spans.len()).filter(|at| system.spans[*at].is_orphan) {
        let suspect = suspect(system, at, &callers, &edges);
        groups.entry((suspect, system.spans[at].service)).or_default().push(at);
    }
    let mut findings: Vec<ServiceFinding> =
        groups.iter().map(|((suspect, service), orphans)| orphaned(system, suspect, *service, orphans)).collect();
    let torn: HashSet<usize> = groups.values().flatten().map(|at| system.spans[*at].trace).collect();
    findings.extend(unanswered(system, explained, &torn));
    findings
}

/// The service that calls each service most.
fn usual_callers(system: &System) -> HashMap<usize, usize> {
    let mut counts: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    let mut orphans: HashMap<usize, usize> = HashMap::new();
    for span in system.spans.iter().filter(|span| span.is(Kind::Server)) {
        *orphans.entry(span.service).or_default() += usize::from(span.is_orphan);
        if let Some(parent) = span.parent.map(|parent| system.spans[parent].service).filter(|parent| *parent != span.service) {
            *counts.entry((span.service, parent)).or_default() += 1;
        }
    }
    let mut most: HashMap<usize, (usize, usize)> = HashMap::new();
    for ((callee, caller), count) in counts {
        let best = most.entry(callee).or_default();
        *best = (*best).max((count, caller));
    }
    // Who reports nearly none of its calls is somebody else than who reports them all.
    most.retain(|callee, (count, _)| *count * 8 >= orphans.get(callee).copied().unwrap_or(0));
    most.into_iter().map(|(callee, (_, caller))| (callee, caller)).collect()
}

fn suspect(system: &System, orphan: usize, callers: &HashMap<usize, usize>, edges: &HashSet<(usize, usize)>) -> Suspect {
    let span = &system.spans[orphan];
    // What is no server span hangs below a span of its own service.
    if !matches!(span.span.kind, Some(Kind::Server | Kind::Consumer)) {
        return Suspect::Service(span.service);
    }
    let within = |outer: &SystemSpan| outer.start <= span.start + 1_000 && span.end <= outer.end + 1_000;
    let open = system.open_calls(span.trace);
    let is_usual =
        |at: &usize| matches!(system.remote(*at), Remote::Reports(service) if edges.contains(&(service, span.service)));
    // Nobody behind a name of the public DNS calls back into the mesh.
    let is_outside = |at: &usize| {
        let names = peer_names(&system.spans[*at].span);
        !names.is_empty() && names.iter().all(|name| name.is_public()) && matches!(system.remote(*at), Remote::Silent(_))
    };
    // To somebody who calls there at other times, else inside it in time; clocks may differ, and then any open call to somebody who
    // never reports explains it.
    let fit = |at: &usize| {
        let (within, remote) = (within(&system.spans[*at]), system.remote(*at));
        let silent = matches!(remote, Remote::Silent(_));
        (
            is_usual(at),
            within && silent,
            silent,
            within && remote == Remote::Unnamed,
            within,
            remote == Remote::Unnamed,
            system.spans[*at].start,
        )
    };
    let around = open.filter(|at| system.spans[*at].service != span.service && !is_outside(at)).max_by_key(fit);
    match around.map(|at| (at, system.remote(at))) {
        Some((_, Remote::Silent(name))) => return Suspect::Silent(name),
        Some((at, Remote::Reports(service))) if service != span.service && (is_usual(&at) || within(&system.spans[at])) => {
            return Suspect::Service(service);
        }
        Some((at, Remote::Unnamed)) => return Suspect::Behind(system.spans[at].service),
        _ => {}
    }
    callers.get(&span.service).map_or(Suspect::Unknown, |caller| Suspect::Service(*caller))
}

fn orphaned(system: &System, suspect: &Suspect, service: usize, orphans: &[usize]) -> ServiceFinding {
    const LOST: &str = "the exporter drops spans (queue full, collector away), reports to another backend, or the process ended before its last batch was sent";
    let name = system.name(service);
    let calls = system.spans.iter().filter(|span| span.service == service && span.is(Kind::Server)).count();
    let (count, of) = (orphans.len(), calls.max(orphans.len()));
    let unreported = "name a parent that nobody reported";
    let id = if matches!(suspect, Suspect::Service(_)) { FindingId::SpansOrphaned } else { FindingId::ServiceSilent };
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
            let parents: HashSet<Option<SpanId>> = orphans.iter().map(|at| system.spans[*at].span.parent_id).collect();
            (
                name.to_owned(),
                format!("{count} of its own spans name a parent that it did not report ({} different ones)", parents.len()),
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
        level: level(count, of),
        peer: (suspected != name).then(|| name.to_owned()),
        service: suspected,
        text,
        cause,
        next,
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
        let level = if joined == 0 { Level::Note } else { level(count, of) };
        (count as f64 >= MIN_SHARE * of as f64).then(|| ServiceFinding {
            id: FindingId::SamplingDiffers,
            level,
            service: name.to_owned(),
            peer: Some(from.to_owned()),
            text: format!("{count} of {of} calls from {from} have no span of {name}, nor of anything behind it"),
            cause: format!("{name} decides about sampling by itself instead of following its caller (a sampler that is not parent-based), or loses whole batches of spans"),
            next: format!("compare the samplers: OTEL_TRACES_SAMPLER of {name} should be parentbased_…; then its dropped-spans counter"),
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
