//! Who cuts trace ids to their last 64 bits: what is behind it is another trace to every backend that compares whole ids.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::doctor::finding::{FindingId, PROBE, ServiceFinding, level, probe_next};
use crate::doctor::system::System;

/// The calls from one service to another, and those behind which ids are short.
#[derive(Default)]
struct CutCalls {
    all: usize,
    short: Vec<usize>,
}

/// Who cuts ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cutter {
    Caller(usize),
    Callee(usize),
}

impl Cutter {
    fn is_of(self, (caller, callee): (usize, usize)) -> bool {
        self == Self::Caller(caller) || self == Self::Callee(callee)
    }
}

fn is_short(system: &System, at: usize) -> bool {
    system.spans[at].span.trace_id != system.ids[system.spans[at].trace]
}

/// Orphans that go on in a trace of their own under a short id, where their service does that below others, too.
pub(super) fn begun_elsewhere(system: &System) -> HashSet<usize> {
    let cut: HashSet<usize> =
        (0..system.spans.len()).filter(|at| is_short(system, *at)).map(|at| system.spans[at].service).collect();
    let goes_on = |at: &usize| {
        let span = &system.spans[*at];
        span.is_orphan && cut.contains(&span.service) && span.span.trace_id.to_bytes()[..8].iter().all(|byte| *byte == 0)
    };
    (0..system.spans.len()).filter(goes_on).collect()
}

/// One finding for each service that cuts ids: a caller, or a callee that does so for every caller. Whoever cuts nearly all of its calls
/// and explains most of the short ids comes first.
pub(super) fn shortened_ids(system: &System) -> Vec<ServiceFinding> {
    let mut pairs: BTreeMap<(usize, usize), CutCalls> = BTreeMap::new();
    for (at, span) in system.spans.iter().enumerate() {
        let Some(above) = span.parent.filter(|above| !is_short(system, *above)) else { continue };
        let caller = system.spans[above].service;
        if caller != span.service || is_short(system, at) {
            let calls = pairs.entry((caller, span.service)).or_default();
            calls.all += 1;
            calls.short.extend(is_short(system, at).then_some(at));
        }
    }
    let mut findings = Vec::new();
    let all: usize = pairs.values().map(|calls| calls.short.len()).sum();
    while pairs.values().any(|calls| !calls.short.is_empty()) {
        let mut sides: BTreeMap<Cutter, (usize, usize)> = BTreeMap::new();
        for ((caller, callee), calls) in &pairs {
            for side in [Cutter::Caller(*caller), Cutter::Callee(*callee)] {
                let (short, all) = sides.entry(side).or_default();
                (*short, *all) = (*short + calls.short.len(), *all + calls.all);
            }
        }
        let rate = |(short, all): (usize, usize)| short as f64 / all.max(1) as f64;
        let highest = sides.values().copied().map(rate).fold(0.0, f64::max);
        // Of equals the caller.
        let likely = sides.into_iter().filter(|(_, counts)| rate(*counts) >= 0.9 * highest);
        let Some((side, _)) = likely.max_by_key(|(side, counts)| (counts.0, std::cmp::Reverse(*side))) else { break };
        let mine: Vec<_> = pairs.keys().copied().filter(|pair| side.is_of(*pair)).collect();
        let (mut calls, mut peers) = (CutCalls::default(), BTreeSet::new());
        for pair in mine {
            let of = pairs.remove(&pair).unwrap_or_default();
            if !of.short.is_empty() {
                peers.insert(if side == Cutter::Caller(pair.0) { pair.1 } else { pair.0 });
                calls.all += of.all;
                calls.short.extend(of.short);
            }
        }
        // Where a span was lost, what is below it seems to be called by another.
        if calls.short.len() * 20 >= all {
            findings.push(finding(system, side, &calls, &peers));
        }
    }
    findings
}

fn finding(system: &System, side: Cutter, calls: &CutCalls, peers: &BTreeSet<usize>) -> ServiceFinding {
    let peers: Vec<&str> = peers.iter().map(|peer| system.name(*peer)).collect();
    let (count, listed) = (calls.short.len(), peers.join(", "));
    let (service, behind) = match side {
        Cutter::Caller(service) => {
            (service, format!("calls to {listed}: spans there have the last 64 bits of the trace's id, its own have all"))
        }
        Cutter::Callee(service) => (
            service,
            format!("calls from {listed}: its spans have the last 64 bits of the trace's id, those of {listed} have all"),
        ),
    };
    let name = system.name(service);
    ServiceFinding {
        id: FindingId::ContextShortened,
        level: level(count, calls.all),
        service: name.to_owned(),
        peer: (peers.len() == 1).then(|| peers[0].to_owned()),
        text: format!("the trace goes on under a shortened id behind {count} of {} {behind}", calls.all),
        cause: "its tracer, or a proxy beside it, has ids of 64 bits: backends that compare whole ids show two traces".to_owned(),
        next: format!("let the tracer of {name} use trace ids of 128 bits; {}", probe_next(name)),
        run: Some(PROBE),
        count,
        of: calls.all,
        traces: system.examples(calls.short.iter().copied()),
    }
}
