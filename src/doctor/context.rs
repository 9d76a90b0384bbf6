//! Who loses the trace context: traces that begin in the middle of somebody's work.
//!
//! A root is right at an entry point, in a timer and behind a queue. It is wrong where it lies, again and again, inside a span that
//! lacks just this call. Both sides of that are tested, because chance alone puts spans inside others.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::doctor::begun::{Edge, Search};
use crate::doctor::blame::{Edges, Ignores, Sides};
use crate::doctor::finding::{FindingId, Level, PROBE, ServiceFinding, ignored_context, level, lost_context, probe_next};
use crate::doctor::system::System;
use crate::traces::Kind;

/// What the rule about contexts found.
pub(super) struct ContextFindings {
    pub(super) findings: Vec<ServiceFinding>,
    /// Client spans whose answer was found in another trace.
    pub(super) calls: HashSet<usize>,
    /// Caller and callee between which contexts are lost.
    pub(super) pairs: HashSet<(usize, usize)>,
}

/// Finds the services that drop or ignore contexts. `skews`: how far the clock of the second service is ahead of the first's.
/// `aliases`: other names of services, in lower case.
pub(super) fn lost_contexts(
    system: &System,
    skews: &HashMap<(usize, usize), i64>,
    aliases: &BTreeMap<String, Option<usize>>,
) -> ContextFindings {
    let mut search = Search::new(system, skews, aliases);
    search.run();
    let calls = std::mem::take(&mut search.explained);
    let pairs = search.edges.iter().filter(|(_, edge)| !edge.lost.is_empty()).map(|(pair, _)| *pair).collect();
    ContextFindings { findings: findings(system, &search.edges), calls, pairs }
}

/// Calls of one caller, with the callee.
type LostCalls<'a> = Vec<(usize, &'a Edge)>;

/// One finding a service: whom it calls without a context, or whose contexts it ignores.
fn findings(system: &System, edges: &Edges) -> Vec<ServiceFinding> {
    let is_lost = |edge: &Edge| level(edge.lost.len(), edge.all()) == Level::Fault;
    let sides = Sides::new(system, edges);
    let mut drops: BTreeMap<usize, LostCalls<'_>> = BTreeMap::new();
    let mut ignores: BTreeMap<usize, (Ignores, LostCalls<'_>)> = BTreeMap::new();
    let mut findings = Vec::new();
    for (&(caller, callee), edge) in edges.iter().filter(|(_, edge)| is_lost(edge)) {
        if let Some(silent) = &edge.silent {
            findings.push(silent_and_dropping(system, caller, callee, silent, edge));
        } else if caller == callee && edge.lost.iter().all(|(root, _)| system.spans[*root].is(Kind::Server)) {
            findings.push(apart_from_proxy(system, callee, edge));
        } else if let Some(why) = sides.ignores((caller, callee), edge) {
            ignores.entry(callee).or_insert_with(|| (why, Vec::new())).1.push((caller, edge));
        } else {
            drops.entry(caller).or_default().push((callee, edge));
        }
    }
    // Who ignores the contexts of some ignores those of others, too: nothing else is known of these.
    for (&caller, calls) in &mut drops {
        let is_one =
            |(callee, edge): &(usize, &Edge)| ignores.contains_key(callee) && edge.with_client_span * 2 > edge.lost.len();
        if calls.iter().all(is_one)
            && sides.at_caller(caller, &calls.iter().map(|(callee, _)| *callee).collect::<Vec<_>>()).is_none()
        {
            for (callee, edge) in calls.drain(..) {
                ignores.entry(callee).and_modify(|(_, callers)| callers.push((caller, edge)));
            }
        }
    }
    drops.retain(|_, calls| !calls.is_empty());
    findings.extend(ignores.into_iter().map(|(service, (why, callers))| ignored(system, service, &why, &callers)));
    findings.extend(drops.into_iter().map(|(service, edges)| dropped(&sides, system, service, &edges)));
    findings
}

fn dropped(sides: &Sides<'_>, system: &System, service: usize, edges: &[(usize, &Edge)]) -> ServiceFinding {
    let lost: usize = edges.iter().map(|(_, edge)| edge.lost.len()).sum();
    let of = edges.iter().map(|(_, edge)| edge.all()).sum::<usize>();
    let callees: Vec<&str> =
        edges.iter().filter(|(callee, _)| *callee != service).map(|(callee, _)| system.name(*callee)).collect();
    let whom = if callees.is_empty() { String::new() } else { format!(" to {}", callees.join(", ")) };
    let calls = edges.iter().flat_map(|(_, edge)| &edge.lost);
    let unparented = calls.clone().filter(|(root, _)| system.spans[*root].service == service).count();
    let seen = calls.clone().filter(|(root, outer)| root != outer).count();
    let sign = if unparented * 2 > lost && seen < lost {
        format!("its outgoing spans have no parent, {seen} of them in the middle of a request that was recorded")
    } else if unparented * 2 > lost {
        "its outgoing spans have no parent, each in the middle of a request that it served".to_owned()
    } else {
        "each time the callee began a new trace while it waited".to_owned()
    };
    let place = sides.at_caller(service, &edges.iter().map(|(callee, _)| *callee).collect::<Vec<_>>());
    let place = place.map_or_else(String::new, |common| format!("; nearly all {}", common.place));
    let (cause, next) = lost_context(system, service);
    ServiceFinding {
        id: FindingId::ContextDropped,
        level: level(lost, of),
        service: system.name(service).to_owned(),
        peer: callees.first().map(|name| (*name).to_owned()),
        text: format!("{lost} of {of} calls{whom} begin new traces: it does not pass the context on ({sign}{place})"),
        cause,
        next,
        run: Some(PROBE),
        count: lost,
        of,
        traces: system.examples(calls.map(|(_, outer)| *outer)),
    }
}

fn ignored(system: &System, callee: usize, why: &Ignores, callers: &[(usize, &Edge)]) -> ServiceFinding {
    let lost: usize = callers.iter().map(|(_, edge)| edge.lost.len()).sum();
    let of: usize = callers.iter().map(|(_, edge)| edge.all()).sum();
    let names: Vec<&str> = callers.iter().map(|(caller, _)| system.name(*caller)).collect();
    let (from, name) = (names.join(", "), system.name(callee));
    let (mut cause, mut next) = ignored_context(&from, name);
    let reason = match why {
        Ignores::OnHosts(hosts) => {
            cause = format!("some instances of {name} run another version or configuration, or their agent failed");
            next = format!(
                "compare the instances of {name} that begin traces with the others: image, environment, the log of the agent"
            );
            format!("nearly all {hosts}, and the others continue what they get")
        }
        Ignores::CallerIsFine => format!("for {}'s other calls are continued", names[0]),
        Ignores::All => "for it is the same with all who call it".to_owned(),
    };
    ServiceFinding {
        id: FindingId::ContextIgnored,
        level: level(lost, of),
        service: name.to_owned(),
        peer: names.first().map(|name| (*name).to_owned()),
        text: format!(
            "{lost} of {of} calls from {from} begin new traces: it does not continue the context that it receives, {reason}"
        ),
        cause,
        next,
        run: None,
        count: lost,
        of,
        traces: system.examples(callers.iter().flat_map(|(_, edge)| &edge.lost).map(|(_, outer)| *outer)),
    }
}

fn apart_from_proxy(system: &System, service: usize, edge: &Edge) -> ServiceFinding {
    let (lost, name) = (edge.lost.len(), system.name(service));
    ServiceFinding {
        id: FindingId::ContextIgnored,
        level: Level::Fault,
        service: name.to_owned(),
        peer: None,
        text: format!(
            "{lost} requests are in two traces, one of its proxy and one of its app: the app does not continue the context that its own proxy writes"
        ),
        cause: "proxy and app speak different formats: the proxy writes B3 and the app reads W3C, or the other way round"
            .to_owned(),
        next: format!(
            "let OTEL_PROPAGATORS of {name} begin with the format of the mesh's tracing provider (b3multi for Zipkin, tracecontext for OpenTelemetry)"
        ),
        run: None,
        count: lost,
        of: lost,
        traces: system.examples(edge.lost.iter().map(|(_, outer)| *outer)),
    }
}

fn silent_and_dropping(system: &System, caller: usize, callee: usize, silent: &str, edge: &Edge) -> ServiceFinding {
    let (lost, of) = (edge.lost.len(), edge.all());
    let (from, to) = (system.name(caller), system.name(callee));
    ServiceFinding {
        id: FindingId::ContextDropped,
        level: level(lost, of),
        service: silent.to_owned(),
        peer: Some(to.to_owned()),
        text: format!(
            "it stands between {from} and {to}, reports no span, and {to} begins a new trace in {lost} of {of} calls: it does not pass the context on"
        ),
        cause: format!(
            "{silent} is not instrumented and does not copy the trace headers from the request that it serves to its calls"
        ),
        next: probe_next(silent),
        run: Some(PROBE),
        count: lost,
        of,
        traces: system.examples(edge.lost.iter().map(|(_, outer)| *outer)),
    }
}
