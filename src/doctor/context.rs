//! Who loses the trace context: traces that begin in the middle of somebody's work.
//!
//! A root is right at an entry point, in a timer and behind a queue. It is wrong where it lies, again and again, inside a span that
//! lacks just this call. Both sides of that are tested, because chance alone puts spans inside others.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::doctor::begun::{Edge, Search};
use crate::doctor::finding::{
    FindingId, Level, MIN_SHARE, PROBE, ServiceFinding, ignored_context, level, lost_context, probe_next,
};
use crate::doctor::hosts::host_of;
use crate::doctor::system::{System, SystemSpan};
use crate::traces::Kind;

/// So many continued requests are needed to know that a service continues what it gets.
const MIN_CONTINUED: usize = 8;

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
    ContextFindings { findings: findings(system, search.edges), calls, pairs }
}

/// One finding a service: whom it calls without a context, or whose contexts it ignores.
fn findings(system: &System, edges: BTreeMap<(usize, usize), Edge>) -> Vec<ServiceFinding> {
    let is_lost = |edge: &Edge| level(edge.lost.len(), edge.all()) == Level::Fault;
    let mut drops: BTreeMap<usize, Vec<(usize, &Edge)>> = BTreeMap::new();
    let mut findings = Vec::new();
    for (&(caller, callee), edge) in edges.iter().filter(|(_, edge)| is_lost(edge)) {
        if let Some(silent) = &edge.silent {
            findings.push(silent_and_dropping(system, caller, callee, silent, edge));
        } else if caller == callee && edge.lost.iter().all(|(root, _)| system.spans[*root].is(Kind::Server)) {
            findings.push(apart_from_proxy(system, callee, edge));
        } else if ignores(&edges, caller, callee, edge) || ignores_on_some_hosts(system, callee, edge) {
            findings.push(ignored(system, caller, callee, edge));
        } else {
            drops.entry(caller).or_default().push((callee, edge));
        }
    }
    findings.extend(drops.into_iter().map(|(service, edges)| dropped(system, service, &edges)));
    findings
}

/// The callee is at fault when it ignores several callers, or when the caller's other calls are all continued.
fn ignores(edges: &BTreeMap<(usize, usize), Edge>, caller: usize, callee: usize, edge: &Edge) -> bool {
    let rate = |edge: &Edge| edge.lost.len() as f64 / edge.all().max(1) as f64;
    let expected = rate(edge);
    let continued = |edge: &Edge| rate(edge) < MIN_SHARE && edge.joined as f64 * expected >= 8.0;
    let others_of_caller = || edges.iter().filter(|((from, to), _)| *from == caller && *to != callee).map(|(_, edge)| edge);
    let others_of_callee = || edges.iter().filter(|((from, to), _)| *from != caller && *to == callee).map(|(_, edge)| edge);
    let caller_is_fine = others_of_caller().any(continued) && others_of_caller().all(|edge| edge.lost.is_empty());
    let callee_reads_others = others_of_callee().any(continued);
    edge.with_client_span * 2 > edge.lost.len() && caller_is_fine && !callee_reads_others
}

/// Whether the new traces begin on some hosts of the callee only, and these continue nothing while the others continue what they get.
fn ignores_on_some_hosts(system: &System, callee: usize, edge: &Edge) -> bool {
    let begun: HashSet<Box<str>> = edge.lost.iter().map(|(root, _)| host_of(&system.spans[*root].span)).collect();
    let is_called = |span: &&SystemSpan| span.service == callee && span.is(Kind::Server) && span.parent.is_some();
    let joined = || system.spans.iter().filter(is_called);
    let is_one = |span: &&SystemSpan| system.spans[span.parent.unwrap_or_default()].service != callee;
    let continued: HashSet<Box<str>> = joined().filter(is_one).map(|span| host_of(&span.span)).collect();
    let are_callees = edge.lost.iter().all(|(root, _)| system.spans[*root].service == callee);
    are_callees
        && !continued.is_empty()
        && !begun.contains("")
        && begun.is_disjoint(&continued)
        && joined().count() >= MIN_CONTINUED
}

fn dropped(system: &System, service: usize, edges: &[(usize, &Edge)]) -> ServiceFinding {
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
    let (cause, next) = lost_context(system, service);
    ServiceFinding {
        id: FindingId::ContextDropped,
        level: level(lost, of),
        service: system.name(service).to_owned(),
        peer: callees.first().map(|name| (*name).to_owned()),
        text: format!("{lost} of {of} calls{whom} begin new traces: it does not pass the context on ({sign})"),
        cause,
        next,
        run: Some(PROBE),
        count: lost,
        of,
        traces: system.examples(calls.map(|(_, outer)| *outer)),
    }
}

fn ignored(system: &System, caller: usize, callee: usize, edge: &Edge) -> ServiceFinding {
    let (lost, of) = (edge.lost.len(), edge.all());
    let (from, name) = (system.name(caller), system.name(callee));
    let (cause, next) = ignored_context(from, name);
    ServiceFinding {
        id: FindingId::ContextIgnored,
        level: level(lost, of),
        service: name.to_owned(),
        peer: Some(from.to_owned()),
        text: format!(
            "{lost} of {of} calls from {from} begin new traces: it does not continue the context that it receives, for {from}'s other calls are continued"
        ),
        cause,
        next,
        run: None,
        count: lost,
        of,
        traces: system.examples(edge.lost.iter().map(|(_, outer)| *outer)),
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
