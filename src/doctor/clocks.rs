//! What single calls show: clocks that differ, times and kinds that cannot be.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::doctor::finding::{FindingId, Level, ServiceFinding, level};
use crate::doctor::hosts::HostClock;
use crate::doctor::system::{System, SystemSpan, TracerKind};
use crate::doctor::timing::median;
use crate::traces::Kind;

/// A difference of clocks that is worth a note, microseconds.
const NOTABLE_US: i64 = 2_000;
/// One that is worth a note of its own. Clocks that the network's time protocol sets differ by some milliseconds.
const FAR_US: i64 = 1_000_000;
/// A call may be longer than its caller waited by this much: timers are read at different places.
const SLACK_US: i64 = 2_000;

/// What lasts no longer has no duration: Zipkin's clients round up to this.
const TIMELESS_US: i64 = 1;

/// A duration that is so many times too long has another unit.
const UNIT: i64 = 50;

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
        // Where only the caller's whole work bounds it, the least difference is the likeliest.
        let middle = i64::midpoint(low, high);
        let skew = if low > 0 {
            middle.min(low + SLACK_US)
        } else if high < 0 {
            middle.max(high - SLACK_US)
        } else {
            0
        };
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

/// A note for each service with a host whose clock is far off, and one for all those that are a little off.
pub(super) fn clock_notes(system: &System, clocks: &[HostClock]) -> Vec<ServiceFinding> {
    let mut off: BTreeMap<usize, Vec<&HostClock>> = BTreeMap::new();
    for clock in clocks.iter().filter(|clock| clock.ahead.abs() >= NOTABLE_US) {
        off.entry(clock.service).or_default().push(clock);
    }
    let mut off: Vec<_> = off.into_iter().collect();
    off.iter_mut().for_each(|(_, clocks)| clocks.sort_by_key(|clock| std::cmp::Reverse(clock.ahead.abs())));
    off.sort_by_key(|(_, clocks)| std::cmp::Reverse(clocks[0].ahead.abs()));
    let (far, near): (Vec<_>, Vec<_>) = off.into_iter().partition(|(_, clocks)| clocks[0].ahead.abs() >= FAR_US);
    let of_service = |service: usize| {
        let own = clocks.iter().filter(move |clock| clock.service == service);
        own.fold((0, 0), |(hosts, spans), clock| (hosts + 1, spans + clock.spans.len()))
    };
    let note = |(service, off): &(usize, Vec<&HostClock>), others: &[String]| {
        clock_note(system, *service, of_service(*service), off, others)
    };
    let mut notes: Vec<ServiceFinding> = far.iter().map(|off| note(off, &[])).collect();
    if let Some((first, others)) = near.split_first() {
        let off = |(other, clocks): &(usize, Vec<&HostClock>)| {
            format!("{} ({})", system.name(*other), milliseconds(clocks[0].ahead.abs()))
        };
        let others: Vec<String> = others.iter().map(off).collect();
        notes.push(note(first, &others));
    }
    notes
}

/// `hosts`, `of`: how many hosts and spans the service has. `clocks`: those of its hosts that are off, the worst first. `others`:
/// services whose clocks are off by less.
fn clock_note(
    system: &System,
    service: usize,
    (hosts, of): (usize, usize),
    clocks: &[&HostClock],
    others: &[String],
) -> ServiceFinding {
    let difference = |ahead: i64| {
        let direction = if ahead > 0 { "ahead of" } else { "behind" };
        format!("about {} {direction} most others'", milliseconds(ahead.abs()))
    };
    let whose = |clock: &HostClock| match clock.host.as_ref() {
        "" => "its clock".to_owned(),
        host if hosts == 1 => format!("the clock of its host {host}"),
        host => format!("the clock of its host {host} ({} of {of} spans)", clock.spans.len()),
    };
    let mut named: Vec<String> =
        clocks.iter().take(3).map(|clock| format!("{} is {}", whose(clock), difference(clock.ahead))).collect();
    if clocks.len() > 3 {
        named.push(format!("{} more of its hosts are off by less", clocks.len() - 3));
    }
    match others {
        [] => {}
        [one] => named.push(format!("that of {one} by less")),
        several => named.push(format!("those of {} by less", several.join(", "))),
    }
    let spans = clocks.iter().flat_map(|clock| clock.spans.iter().copied());
    ServiceFinding {
        id: FindingId::ClockSkew,
        level: Level::Note,
        service: system.name(service).to_owned(),
        peer: None,
        text: format!("{}: spans stand at the wrong place of the timeline", named.join("; ")),
        cause: "the clock of a host is not synchronised".to_owned(),
        next: "compare `chronyc tracking` or `timedatectl timesync-status` on the nodes".to_owned(),
        run: None,
        count: clocks.iter().map(|clock| clock.spans.len()).sum(),
        of,
        traces: system.examples(spans),
    }
}

fn milliseconds(us: i64) -> String {
    if us >= 10_000_000 { format!("{} s", (us + 500_000) / 1_000_000) } else { format!("{} ms", (us + 500) / 1_000) }
}

/// Calls that take longer than their caller waited.
pub(super) fn longer_than_waited(system: &System) -> Vec<ServiceFinding> {
    let mut longer: BTreeMap<(usize, usize), (Vec<usize>, usize)> = BTreeMap::new();
    // Calls of each service that were not too long.
    let mut fit: HashMap<usize, usize> = HashMap::new();
    for (at, span) in system.spans.iter().enumerate() {
        let Some(caller) = span.parent.map(|parent| &system.spans[parent]) else { continue };
        if caller.service == span.service || !caller.is(Kind::Client) {
            continue;
        }
        let (wrong, of) = longer.entry((caller.service, span.service)).or_default();
        *of += 1;
        let (took, waited) = (span.took(), caller.took());
        if waited > TIMELESS_US && took > waited + SLACK_US.max(waited / 10) && !caller.span.is_error() && span.is(Kind::Server) {
            wrong.push(at);
        } else {
            *fit.entry(span.service).or_default() += 1;
        }
    }
    // Work after the answer is not each time so much longer.
    let is_unit = |callee: usize, wrong: &[usize]| {
        let times = |at: &usize| system.spans[*at].parent.map(|above| system.spans[*at].took() / system.spans[above].took());
        let is_usual = fit.get(&callee).is_none_or(|fit| fit * 20 <= wrong.len());
        is_usual && median(wrong.iter().filter_map(times).collect()).is_some_and(|times| times >= UNIT)
    };
    let longer = longer.into_iter().filter(|(_, (wrong, of))| level(wrong.len(), *of) == Level::Fault);
    longer.map(|((caller, callee), (wrong, of))| {
        let (from, to) = (system.name(caller), system.name(callee));
        ServiceFinding {
            id: FindingId::SpansDuration,
            level: if is_unit(callee, &wrong) { Level::Fault } else { Level::Note },
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
    }).collect()
}

/// Callees that report requests as callers do; these services, too.
pub(super) fn requests_as_calls(system: &System) -> (Vec<ServiceFinding>, HashSet<usize>) {
    let mut kinds: BTreeMap<(usize, usize), (Vec<usize>, usize)> = BTreeMap::new();
    let mut seen = HashSet::new();
    let served: HashSet<_> =
        system.spans.iter().filter(|span| span.is(Kind::Server)).map(|span| (span.service, &span.span.name)).collect();
    for (at, span) in system.spans.iter().enumerate() {
        let Some((above, caller)) = span.parent.map(|parent| (parent, &system.spans[parent])) else { continue };
        // Some tracers report no calls, and some report those to a database as a service of its own.
        let is_request = caller.is(Kind::Server) && served.contains(&(span.service, &span.span.name));
        if caller.service == span.service || !caller.is(Kind::Client) && !is_request {
            continue;
        }
        // Below one call a server that lost its span may have several.
        if is_request || seen.insert((above, span.service)) {
            let (wrong, of) = kinds.entry((caller.service, span.service)).or_default();
            *of += 1;
            let is_server = || span.tracer != TracerKind::Envoy || span.is_inbound();
            if span.is(Kind::Client) && is_server() || span.span.kind.is_none() {
                wrong.push(at);
            }
        }
    }
    // Below a call whose server span was lost stands what that called.
    kinds.retain(|_, (wrong, of)| level(wrong.len(), *of) == Level::Fault && wrong.len() * 20 >= *of);
    let services = kinds.keys().map(|(_, callee)| *callee).collect();
    let kinds = kinds.into_iter().map(|((caller, callee), (wrong, of))| {
        let (from, to) = (system.name(caller), system.name(callee));
        ServiceFinding {
            id: FindingId::SpansKind,
            level: Level::Fault,
            service: to.to_owned(),
            peer: Some(from.to_owned()),
            text: format!(
                "{} of {of} calls from {from} arrive as {}: it has no server span, or reports it with the wrong kind",
                wrong.len(),
                if wrong.iter().all(|at| system.spans[*at].is(Kind::Client)) {
                    "client spans"
                } else {
                    "spans that are no server's"
                }
            ),
            cause: "its server is not instrumented while its client is, or the span kind is set by hand".to_owned(),
            next: format!("look at one of the traces: the first span of {to} below {from} should have span.kind=server"),
            run: None,
            count: wrong.len(),
            of,
            traces: system.examples(wrong),
        }
    });
    (kinds.collect(), services)
}

/// Services that report the calls that they make as server spans: such a span is below another server span of the same tracer, and
/// what is called below it.
pub(super) fn calls_as_servers(system: &System) -> Vec<ServiceFinding> {
    let mut calls: BTreeMap<(usize, usize), (Vec<usize>, usize)> = BTreeMap::new();
    for span in system.spans.iter().filter(|span| span.is(Kind::Server)) {
        let Some((above, caller)) = span.parent.map(|parent| (parent, &system.spans[parent])) else { continue };
        if caller.service == span.service {
            continue;
        }
        let (wrong, of) = calls.entry((caller.service, span.service)).or_default();
        *of += 1;
        let serves = caller.parent.map(|parent| &system.spans[parent]);
        let is_nested = |serves: &SystemSpan| {
            let is_own = serves.service == caller.service && !serves.is(Kind::Client);
            is_own && if caller.tracer == TracerKind::Envoy { caller.is_outbound() } else { serves.tracer == caller.tracer }
        };
        if caller.is(Kind::Server) && serves.is_some_and(is_nested) {
            wrong.push(above);
        }
    }
    calls.retain(|_, (wrong, of)| level(wrong.len(), *of) == Level::Fault);
    let finding = |((caller, callee), (wrong, of)): ((usize, usize), (Vec<usize>, usize))| {
        let (from, to) = (system.name(caller), system.name(callee));
        ServiceFinding {
            id: FindingId::SpansKind,
            level: Level::Fault,
            service: from.to_owned(),
            peer: Some(to.to_owned()),
            text: format!(
                "{} of {of} of its calls to {to} are server spans: it reports what it sends with the wrong kind",
                wrong.len()
            ),
            cause: "the span kind is set by hand, or by an instrumentation that is used on the wrong side".to_owned(),
            next: format!("look at one of the traces: the span of {from} above {to} should have span.kind=client"),
            run: None,
            count: wrong.len(),
            of,
            traces: system.examples(wrong),
        }
    };
    calls.into_iter().map(finding).collect()
}

/// Services whose spans last no time, or less than none, though they hold others that do, or all though callers waited for them.
pub(super) fn timeless(system: &System) -> Vec<ServiceFinding> {
    let mut found: BTreeMap<usize, (Vec<usize>, usize)> = BTreeMap::new();
    let lasting: HashSet<usize> = system.spans.iter().filter(|span| span.took() > TIMELESS_US).map(|span| span.service).collect();
    for (at, span) in system.spans.iter().enumerate().filter(|(_, span)| span.is(Kind::Server) || span.is(Kind::Client)) {
        // Below a leaf there is nothing; a clock of milliseconds shows none of what is faster, and some of the rest.
        let around = span.parent.filter(|_| !lasting.contains(&span.service));
        if !span.children.iter().chain(&around).any(|other| system.spans[*other].took() > SLACK_US) {
            continue;
        }
        let (wrong, of) = found.entry(span.service).or_default();
        *of += 1;
        if span.took() <= TIMELESS_US {
            wrong.push(at);
        }
    }
    let holds = |wrong: &[usize]| {
        wrong.iter().any(|at| system.spans[*at].children.iter().any(|child| system.spans[*child].took() > SLACK_US))
    };
    let finding = |(service, (wrong, of)): (usize, (Vec<usize>, usize))| {
        ServiceFinding {
        id: FindingId::SpansDuration,
        level: if lasting.contains(&service) || holds(&wrong) { level(wrong.len(), of) } else { Level::Note },
        service: system.name(service).to_owned(),
        peer: None,
        text: format!("{} of {of} of its spans have no duration, or one below zero, though spans around or below them last longer", wrong.len()),
        cause: "its tracer computes the duration wrongly: another unit of time, a clock that went back, or a span that is ended at once".to_owned(),
        next: "open one of the traces, and compare the span with those below it".to_owned(),
        run: None,
        count: wrong.len(),
        of,
        traces: system.examples(wrong),
    }
    };
    found.into_iter().filter(|(_, (wrong, _))| !wrong.is_empty()).map(finding).collect()
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
