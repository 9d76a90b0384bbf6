//! What single calls show: clocks that differ, times and kinds that cannot be.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::doctor::finding::{FindingId, Level, ServiceFinding, level};
use crate::doctor::system::{System, TracerKind};
use crate::doctor::timing::median;
use crate::traces::Kind;

/// A difference of clocks that is worth a note, microseconds.
const NOTABLE_US: i64 = 2_000;
/// A call may be longer than its caller waited by this much: timers are read at different places.
const SLACK_US: i64 = 2_000;

/// Among so many services all pairs are compared; a hostile backend names thousands.
pub(super) const MAX_COMPARED: usize = 500;

/// How far the clock of the second service is ahead of the first's, microseconds, where calls joined the two.
pub(super) fn skews(system: &System) -> HashMap<(usize, usize), i64> {
    let mut bounds: HashMap<(usize, usize), (Vec<i64>, Vec<i64>)> = HashMap::new();
    for span in system.spans.iter().filter(|span| span.is(Kind::Server) && span.start > 0) {
        let Some(caller) = span.parent.map(|parent| &system.spans[parent]).filter(|caller| caller.service != span.service) else {
            continue;
        };
        // The call lies inside the caller's wait: both ends bound the difference.
        if caller.start > 0 && span.end - span.start <= caller.end - caller.start {
            let (low, high) = bounds.entry((caller.service, span.service)).or_default();
            low.push(span.end - caller.end);
            high.push(span.start - caller.start);
        }
    }
    let mut skews = HashMap::new();
    for ((caller, callee), (low, high)) in bounds.into_iter().filter(|(_, (low, _))| low.len() >= 3) {
        let (Some(low), Some(high)) = (median(low), median(high)) else { continue };
        let skew = if low > 0 || high < 0 { i64::midpoint(low, high) } else { 0 };
        skews.insert((caller, callee), skew);
        skews.entry((callee, caller)).or_insert(-skew);
    }
    if system.names.len() <= MAX_COMPARED {
        through_others(system.names.len(), &mut skews);
    }
    skews
}

/// Two services that never call each other are compared by way of those that they call.
fn through_others(services: usize, skews: &mut HashMap<(usize, usize), i64>) {
    let mut known: Vec<Vec<(usize, i64)>> = vec![Vec::new(); services];
    for (&(from, to), &skew) in skews.iter() {
        known[from].push((to, skew));
    }
    for from in 0..services {
        let (mut next, mut at) = (vec![(from, 0)], 0);
        let mut seen = vec![false; services];
        seen[from] = true;
        while at < next.len() {
            let (here, skew) = next[at];
            at += 1;
            for &(to, further) in &known[here] {
                if !std::mem::replace(&mut seen[to], true) {
                    skews.entry((from, to)).or_insert(skew + further);
                    next.push((to, skew + further));
                }
            }
        }
    }
}

/// A note for each service whose clock differs from most of those that it can be compared with.
pub(super) fn clock_notes(system: &System, skews: &HashMap<(usize, usize), i64>) -> Vec<ServiceFinding> {
    let note = |service: usize| {
        let others: Vec<i64> = (0..system.names.len()).filter_map(|other| skews.get(&(other, service)).copied()).collect();
        // Two services have nobody to decide between them: the one that is called gets the note.
        let alone = others.len() == 1 && system.spans.iter().any(|span| span.service == service && span.is_root());
        let skew = median(others)?;
        if skew.abs() < NOTABLE_US || alone {
            return None;
        }
        let direction = if skew > 0 { "ahead of" } else { "behind" };
        let spans: Vec<usize> = system.entries(service).iter().map(|(at, _)| *at).collect();
        Some(ServiceFinding {
            id: FindingId::ClockSkew,
            level: Level::Note,
            service: system.name(service).to_owned(),
            peer: None,
            text: format!(
                "its clock is about {} {direction} the others': its spans stand at the wrong place of the timeline",
                milliseconds(skew.abs())
            ),
            cause: "the clock of its host is not synchronised".to_owned(),
            next: "compare `chronyc tracking` or `timedatectl timesync-status` on the nodes".to_owned(),
            run: None,
            count: spans.len(),
            of: spans.len(),
            traces: system.examples(spans),
        })
    };
    (0..system.names.len()).filter_map(note).collect()
}

fn milliseconds(us: i64) -> String {
    if us >= 10_000_000 { format!("{} s", us / 1_000_000) } else { format!("{} ms", us / 1_000) }
}

/// Calls that take longer than their caller waited, and callees that report themselves as callers; the latter's services, too.
pub(super) fn impossible(system: &System) -> (Vec<ServiceFinding>, HashSet<usize>) {
    let mut longer: BTreeMap<(usize, usize), (Vec<usize>, usize)> = BTreeMap::new();
    let mut kinds: BTreeMap<(usize, usize), (Vec<usize>, usize)> = BTreeMap::new();
    let mut seen = HashSet::new();
    for (at, span) in system.spans.iter().enumerate() {
        let Some((above, caller)) = span.parent.map(|parent| (parent, &system.spans[parent])) else { continue };
        if caller.service == span.service || !caller.is(Kind::Client) {
            continue;
        }
        let key = (caller.service, span.service);
        // Below one call a server that lost its span may have several.
        if seen.insert((above, span.service)) {
            let (wrong, of) = kinds.entry(key).or_default();
            *of += 1;
            if span.is(Kind::Client) && span.tracer != TracerKind::Envoy && caller.tracer != TracerKind::Envoy {
                wrong.push(at);
            }
        }
        let (wrong, of) = longer.entry(key).or_default();
        *of += 1;
        let (took, waited) = (span.end - span.start, caller.end - caller.start);
        if waited > 0 && took > waited + SLACK_US.max(waited / 10) && !caller.span.is_error() && span.is(Kind::Server) {
            wrong.push(at);
        }
    }
    let longer = longer.into_iter().filter(|(_, (wrong, of))| level(wrong.len(), *of) == Level::Fault);
    let longer = longer.map(|((caller, callee), (wrong, of))| {
        let (from, to) = (system.name(caller), system.name(callee));
        ServiceFinding {
            id: FindingId::SpansDuration,
            level: Level::Note,
            service: to.to_owned(),
            peer: Some(from.to_owned()),
            text: format!("{} of {of} of its spans for {from} are longer than {from} waited, without an error there", wrong.len()),
            cause: "it goes on working after its answer (a stream, work in the background), or its tracer reads another unit of time".to_owned(),
            next: format!("open one of the traces and compare the two spans; a factor of 1,000 is a unit, anything else is work after the answer of {to}"),
            run: None,
            count: wrong.len(),
            of,
            traces: system.examples(wrong),
        }
    });
    kinds.retain(|_, (wrong, of)| level(wrong.len(), *of) == Level::Fault);
    let services = kinds.keys().map(|(_, callee)| *callee).collect();
    let kinds = kinds.into_iter().map(|((caller, callee), (wrong, of))| {
        let (from, to) = (system.name(caller), system.name(callee));
        ServiceFinding {
            id: FindingId::SpansKind,
            level: Level::Fault,
            service: to.to_owned(),
            peer: Some(from.to_owned()),
            text: format!(
                "{} of {of} calls from {from} arrive as client spans: it has no server span, or reports it with the wrong kind",
                wrong.len()
            ),
            cause: "its server is not instrumented while its client is, or the span kind is set by hand".to_owned(),
            next: format!("look at one of the traces: the first span of {to} below {from} should have span.kind=server"),
            run: None,
            count: wrong.len(),
            of,
            traces: system.examples(wrong),
        }
    });
    (longer.chain(kinds).collect(), services)
}

/// Consumers that begin traces: right for a queue, and worth knowing.
pub(super) fn cut_by_queues(system: &System) -> Vec<ServiceFinding> {
    let mut cut: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, span) in system.spans.iter().enumerate().filter(|(_, span)| span.is_root() && span.is(Kind::Consumer)) {
        cut.entry(span.service).or_default().push(at);
    }
    let note = |(service, spans): (usize, Vec<usize>)| ServiceFinding {
        id: FindingId::MessagingCut,
        level: Level::Note,
        service: system.name(service).to_owned(),
        peer: None,
        text: format!("{} of its traces begin with a message: the producer's trace ends at the queue", spans.len()),
        cause: "consumers of batches begin traces of their own by convention; a link joins them to the producer's".to_owned(),
        next: "nothing to mend; look for span links, or carry the context in the message's headers if one trace is wanted"
            .to_owned(),
        run: None,
        count: spans.len(),
        of: spans.len(),
        traces: system.examples(spans),
    };
    cut.into_iter().map(note).collect()
}
