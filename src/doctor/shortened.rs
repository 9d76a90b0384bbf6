//! Who cuts trace ids to their last 64 bits: what is behind it is another trace to every backend that compares whole ids.

use std::collections::{BTreeMap, BTreeSet};

use crate::doctor::finding::{FindingId, PROBE, ServiceFinding, level, probe_next};
use crate::doctor::system::System;

/// The calls from one service to another, and those behind which ids are short.
#[derive(Default)]
struct CutCalls {
    all: usize,
    short: Vec<usize>,
}

/// One finding for each service that cuts ids: the caller, or a callee that does so for every caller.
pub(super) fn shortened_ids(system: &System) -> Vec<ServiceFinding> {
    let mut pairs: BTreeMap<(usize, usize), CutCalls> = BTreeMap::new();
    let is_short = |at: usize| system.spans[at].span.trace_id != system.ids[system.spans[at].trace];
    for (at, span) in system.spans.iter().enumerate() {
        let Some(above) = span.parent.filter(|above| !is_short(*above)) else { continue };
        let caller = system.spans[above].service;
        if caller != span.service || is_short(at) {
            let calls = pairs.entry((caller, span.service)).or_default();
            calls.all += 1;
            calls.short.extend(is_short(at).then_some(at));
        }
    }
    pairs.retain(|_, calls| !calls.short.is_empty());
    let callers = |callee: usize| pairs.keys().filter(|(_, of)| *of == callee).count();
    let mut found: BTreeMap<usize, (CutCalls, BTreeSet<usize>)> = BTreeMap::new();
    for ((caller, callee), calls) in &pairs {
        let service = if callers(*callee) > 1 { *callee } else { *caller };
        let (of, peers) = found.entry(service).or_default();
        of.all += calls.all;
        of.short.extend(&calls.short);
        peers.insert(if service == *caller { *callee } else { *caller });
    }
    found.into_iter().map(|(service, (calls, peers))| finding(system, service, &calls, &peers)).collect()
}

fn finding(system: &System, service: usize, calls: &CutCalls, peers: &BTreeSet<usize>) -> ServiceFinding {
    let name = system.name(service);
    let peers: Vec<&str> = peers.iter().map(|peer| system.name(*peer)).collect();
    let count = calls.short.len();
    ServiceFinding {
        id: FindingId::ContextShortened,
        level: level(count, calls.all),
        service: name.to_owned(),
        peer: (peers.len() == 1).then(|| peers[0].to_owned()),
        text: format!(
            "{count} of {} calls between it and {}: behind them the trace goes on under the last 64 bits of its id",
            calls.all,
            peers.join(", ")
        ),
        cause: "its tracer, or a proxy beside it, has ids of 64 bits: backends that compare whole ids show two traces".to_owned(),
        next: format!("let the tracer of {name} use trace ids of 128 bits; {}", probe_next(name)),
        run: Some(PROBE),
        count,
        of: calls.all,
        traces: system.examples(calls.short.iter().copied()),
    }
}
