//! Who does not answer: calls to services that report, with nothing of them below.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::doctor::blame::unanswered_at_caller;
use crate::doctor::finding::{
    FindingId, Level, MIN_COUNT, MIN_SHARE, PROBE, ServiceFinding, ignored_context, level, lost_context,
};
use crate::doctor::orphans::orphaned_spans;
use crate::doctor::peers::peer_names;
use crate::doctor::silent::path;
use crate::doctor::system::{Remote, System};
use crate::doctor::timing::median;

/// Spans whose parent nobody reported, and calls whose answer is missing.
pub(super) fn missing_spans(
    system: &System,
    explained: Explained,
    aliases: &BTreeMap<String, Option<usize>>,
) -> Vec<ServiceFinding> {
    let (mut findings, torn) = orphaned_spans(system, &explained.beside, aliases);
    findings.extend(unanswered(system, explained, &torn));
    findings
}

/// What other findings explain already.
#[derive(Debug, Default)]
pub(super) struct Explained {
    /// Client spans whose answer is in another trace.
    pub(super) calls: HashSet<usize>,
    /// Caller and callee between which contexts are lost.
    pub(super) pairs: HashSet<(usize, usize)>,
    /// Spans in the trace of another request.
    pub(super) beside: HashSet<usize>,
    /// Services whose spans have the wrong kind.
    pub(super) kinds: HashSet<usize>,
    /// Callers with calls that name nobody, and which belong to somebody who reports nothing.
    pub(super) unclear: HashSet<usize>,
}

/// Calls to a service that reports, with nothing of it below: it decided not to sample, or its spans were lost.
fn unanswered(system: &System, mut explained: Explained, torn: &HashSet<usize>) -> Vec<ServiceFinding> {
    let mut open: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    let mut answered: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    let (mut unnamed, mut renamed) = (Vec::new(), Vec::new());
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
            (None, Remote::Silent(_)) if !torn.contains(&span.trace) => renamed.push(at),
            _ => {}
        }
    }
    let paths = served_paths(system, &answered);
    renamed.extend(unnamed.extract_if(.., |at| request(system, *at).is_some_and(|request| paths.contains_key(&request))));
    let guessed = guessed(system, unnamed, &answered, &explained.unclear);
    for (pair, calls) in guessed.into_iter().chain(by_path(system, renamed, &paths, &answered)) {
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
        let begun = begun_by(system, callee, caller);
        let is_begun = begun >= MIN_COUNT && begun * 3 >= count;
        let known = answered.get(&(caller, callee)).filter(|_| is_begun);
        if let Some(place) = known.and_then(|known| unanswered_at_caller(system, &calls, known)) {
            return Some(dropped_at_times(system, (caller, callee), calls, of, &place));
        }
        // The callee continues what others send.
        let reads_others =
            || answered.iter().filter(|(pair, _)| pair.1 == callee).map(|(_, calls)| calls.len()).sum::<usize>() >= MIN_APART;
        if joined == 0
            && count >= MIN_APART
            && begun >= MIN_APART
            && begun * 3 >= count
            && are_named(system, &calls)
            && reads_others()
        {
            return Some(apart(system, (caller, callee), calls, false));
        }
        if joined == 0 && count >= MIN_APART && are_apart(system, callee, &calls) {
            let others = |(pair, calls): (&(usize, usize), &Vec<usize>)| pair.0 == caller && calls.len() >= MIN_APART;
            return Some(apart(system, (caller, callee), calls, answered.iter().any(others)));
        }
        let is_unknown = joined == 0 && !(count >= MIN_APART && reports_nothing_of_others(system, callee, &calls));
        let level = if is_unknown || is_rare { Level::Note } else { level(count, of) };
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

/// So many calls are needed where none was answered.
const MIN_APART: usize = 10;

/// Whether all that the callee reports are a few requests of its own, health checks and the like: those of others are not sampled.
fn reports_nothing_of_others(system: &System, callee: usize, calls: &[usize]) -> bool {
    let entries = system.entries(callee);
    let is_named = |at: &usize| peer_names(&system.spans[*at].span).first().is_some_and(|name| !name.is_public());
    entries.len() >= MIN_COUNT
        && entries.len() * 5 <= calls.len()
        && entries.iter().all(|(at, _)| system.spans[*at].is_root())
        && calls.iter().all(is_named)
}

/// Whether the callee reports these requests, in traces of its own: as many, and nothing in anybody else's.
fn are_apart(system: &System, callee: usize, calls: &[usize]) -> bool {
    let entries = || system.entries(callee).iter().map(|(at, _)| &system.spans[*at]).filter(|span| !span.is_health_check());
    let roots = entries().filter(|span| span.is_root()).count();
    roots >= MIN_APART && roots * 3 >= calls.len() && roots * 20 >= entries().count() * 19 && are_named(system, calls)
}

/// Whether all of these name a service of the mesh.
fn are_named(system: &System, calls: &[usize]) -> bool {
    let is_public = |at: &usize| peer_names(&system.spans[*at].span).first().is_none_or(|name| name.is_public());
    !calls.iter().any(is_public)
}

/// How many traces begin at the callee that may be this caller's: their spans name it, or nobody.
fn begun_by(system: &System, callee: usize, caller: usize) -> usize {
    let roots = system
        .entries(callee)
        .iter()
        .map(|(at, _)| *at)
        .filter(|at| system.spans[*at].is_root() && !system.spans[*at].is_health_check());
    roots.filter(|at| system.caller(*at).is_none_or(|by| by == caller)).count()
}

/// Calls without an answer that only the caller knows to be different.
fn dropped_at_times(
    system: &System,
    (caller, callee): (usize, usize),
    calls: Vec<usize>,
    of: usize,
    place: &str,
) -> ServiceFinding {
    let (name, count) = (system.name(callee), calls.len());
    let (cause, next) = lost_context(system, caller);
    ServiceFinding {
        id: FindingId::ContextDropped,
        level: level(count, of),
        service: system.name(caller).to_owned(),
        peer: Some(name.to_owned()),
        text: format!(
            "{count} of {of} calls to {name} have no span of {name}, which begins traces instead: it does not pass the context on (nearly all {place})"
        ),
        cause,
        next,
        run: Some(PROBE),
        count,
        of,
        traces: system.examples(calls),
    }
}

/// Calls of which none has an answer, to a service that begins traces instead. `others`: the caller's other calls are answered.
fn apart(system: &System, (caller, callee): (usize, usize), calls: Vec<usize>, others: bool) -> ServiceFinding {
    let (from, name) = (system.name(caller), system.name(callee));
    let count = calls.len();
    let (id, service, peer, text) = if others {
        let text = format!(
            "none of {count} calls from {from} has a span of it: it begins traces instead of continuing the context that it receives, for {from}'s other calls are continued"
        );
        (FindingId::ContextIgnored, name, from, text)
    } else {
        let text = format!(
            "none of its {count} calls to {name} has a span of {name}, which begins traces instead: it does not pass the context on"
        );
        (FindingId::ContextDropped, from, name, text)
    };
    let (cause, next) = if others { ignored_context(from, name) } else { lost_context(system, caller) };
    ServiceFinding {
        id,
        level: Level::Fault,
        service: service.to_owned(),
        peer: Some(peer.to_owned()),
        text,
        cause,
        next,
        run: (!others).then_some(PROBE),
        count,
        of: count,
        traces: system.examples(calls),
    }
}

/// Caller, callee, and the calls between them.
type CallsBetween = BTreeMap<(usize, usize), Vec<usize>>;

/// Who makes a call, its name, and its path.
type Request<'a> = (usize, Option<&'a str>, &'a str);

fn request(system: &System, call: usize) -> Option<Request<'_>> {
    let seen = &system.spans[call];
    Some((seen.service, seen.span.name.as_deref(), path(&seen.span)?))
}

/// Who answers each request, where it is always the same and serves the very path.
fn served_paths<'a>(system: &'a System, answered: &CallsBetween) -> HashMap<Request<'a>, usize> {
    let mut served: HashMap<Request<'a>, Option<usize>> = HashMap::new();
    for (&(_, callee), calls) in answered {
        for &call in calls {
            let Some(request) = request(system, call) else { continue };
            let is_its = system.answered_by(call).and_then(|answer| path(&system.spans[answer].span)) == Some(request.2);
            let known = served.entry(request).or_insert(Some(callee));
            *known = known.filter(|known| is_its && *known == callee);
        }
    }
    served.into_iter().filter_map(|(request, callee)| Some((request, callee?))).collect()
}

/// To whom calls without an answer go that do not name a service: to the one that always serves their path. It worked, for they take
/// as long as others do; a cache would answer sooner.
fn by_path(system: &System, calls: Vec<usize>, paths: &HashMap<Request<'_>, usize>, answered: &CallsBetween) -> CallsBetween {
    let mut found = CallsBetween::new();
    for at in calls {
        if let Some(callee) = request(system, at).and_then(|request| paths.get(&request)) {
            found.entry((system.spans[at].service, *callee)).or_default().push(at);
        }
    }
    // One lost span makes another service the answer.
    found.retain(|pair, _| answered[pair].len() >= MIN_COUNT);
    found.retain(|pair, calls| typical(system, calls) * 4 >= typical(system, &answered[pair]) * 3);
    found
}

/// How long these calls take.
fn typical(system: &System, calls: &[usize]) -> i64 {
    median(calls.iter().map(|at| system.spans[*at].took()).collect()).unwrap_or(0)
}

/// To whom calls go that name nobody and have no answer: to the one service that is missing beside them, where that is called without
/// a name at other times, too.
fn guessed(system: &System, unnamed: Vec<usize>, answered: &CallsBetween, unclear: &HashSet<usize>) -> CallsBetween {
    let mut guessed = CallsBetween::new();
    // Some callers always call somebody who never reports.
    let mut elsewhere: HashMap<usize, usize> = HashMap::new();
    for at in unnamed.into_iter().filter(|at| !unclear.contains(&system.spans[*at].service)) {
        let service = system.spans[at].service;
        // Some tracers name calls by their method only.
        let is_alike = |answered: &&usize| {
            let (call, other) = (&system.spans[**answered].span, &system.spans[at].span);
            call.name == other.name && path(call) == path(other) && system.named_remote(**answered) == Remote::Unnamed
        };
        match by_exclusion(system, at, answered) {
            Some(callee) if answered[&(service, callee)].iter().filter(is_alike).take(MIN_COUNT).count() == MIN_COUNT => {
                guessed.entry((service, callee)).or_default().push(at);
            }
            Some(_) => {}
            None => *elsewhere.entry(service).or_default() += 1,
        }
    }
    // Where the callee worked they take as long as others; else somebody in between did not call it.
    guessed.retain(|pair, calls| {
        let others = elsewhere.get(&pair.0).copied().unwrap_or(0);
        others * 5 <= calls.len() && typical(system, calls) * 4 >= typical(system, &answered[pair]) * 3
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
