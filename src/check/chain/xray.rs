//! The propagation x-ray: what happened to every header between the hops, from one request and the reply tree it brought.
//!
//! Pure: a probe and a [`Tree`] in, faults out. A seam lies between a caller and the hop that it calls, and has three sides:
//! the hop before it did not send what it had received; it sent, and the hop behind did not receive; the hop behind received
//! a trace and started another. What a tracing proxy does when it is healthy (Envoy: a span id of its own in the format that
//! it speaks, the other format left alone or written anew from B3, a digit of the request id set, a caller's request id
//! replaced at the edge) is read as the sign of a proxy and never as a fault. So is what a hop does that says `continue`.

use std::collections::BTreeMap;

use crate::check::chain::evidence::{
    CALLER, Decided, ForeignApp, HeaderChange, HopEvidence, Proxy, RequestId, SeamFault, Step, Unwritten, Withheld, Xray,
};
use crate::check::chain::probe::Probe;
use crate::check::chain::seams::{altered, between, continued, is_cut, joined, proxy, trace_of, verbatim};
use crate::check::chain::walk::numbered;
use crate::check::envoy::suggestions::{HopRef, name_of};
use crate::hop::reply::{Headers, Propagation, Tree};
use crate::report::Side;
use crate::trace_context::{HeaderFamily, HeaderSource as _, Mangling, names_trace};

/// Examines one request.
pub(crate) fn examine(probe: &Probe, tree: &Tree, url: &str) -> Xray {
    let mut xray = brought_by(probe);
    let caller = HopRef { name: CALLER.to_owned(), hostname: String::new(), url: String::new() };
    xray.hop(&caller, (&probe.headers, 1), None, tree, url, &mut Vec::new());
    xray.settle_withheld();
    xray
}

fn brought_by(probe: &Probe) -> Xray {
    let brought = HeaderFamily::read_all(&probe.headers).iter().map(|(_, context)| context.trace_id).collect();
    Xray { brought, ..Xray::default() }
}

/// The same of a chain whose front may be a foreign app.
pub(crate) fn examine_behind(is_front_foreign: bool, probe: &Probe, tree: &Tree, url: &str) -> Xray {
    if !is_front_foreign {
        return examine(probe, tree, url);
    }
    let mut xray = brought_by(probe);
    let caller = HopRef { name: CALLER.to_owned(), hostname: String::new(), url: String::new() };
    xray.behind_foreign_app(&caller, &ForeignApp::at(url), &probe.headers, tree, &mut Vec::new());
    xray.settle_withheld();
    xray
}

impl Xray {
    /// `attempt`: the caller's own count of its attempts at this call.
    fn hop(
        &mut self,
        caller: &HopRef,
        (sent, attempt): (&Headers, u32),
        caller_mode: Option<Propagation>,
        tree: &Tree,
        url: &str,
        path: &mut Vec<Step>,
    ) {
        let hop = HopRef::of(tree, url);
        let is_edge = path.is_empty();
        let proxy = proxy(sent, tree, attempt);
        let (mut effects, request_id) = between(sent, &tree.received, is_edge);
        if proxy.traces() {
            effects.retain(|effect| match *effect {
                HeaderChange::Sampled { before, after } => {
                    self.decided.push(Decided { from: caller.clone(), to: hop.clone(), before, after });
                    false
                }
                _ => true,
            });
        }
        self.fault(caller, &hop, Side::Between, caller_mode, effects);
        self.rows.push(row(tree, &hop, depth(path), request_id, proxy, None));
        self.calls(caller, sent, tree, hop, path);
    }

    /// The hop itself, and what it calls.
    fn calls(&mut self, caller: &HopRef, sent: &Headers, tree: &Tree, hop: HopRef, path: &mut Vec<Step>) {
        let mut own = true;
        if tree.propagation == Propagation::Continue {
            let effects = joined(sent, tree);
            own = !effects.iter().any(|effect| matches!(effect, HeaderChange::NewTrace { .. }));
            self.fault(caller, &hop, Side::NewTrace, Some(tree.propagation), effects);
        }
        for (index, (call, attempt)) in numbered(tree).enumerate() {
            let next = match &call.reply {
                Some(reply) => HopRef::of(reply, &call.url),
                None => HopRef { name: name_of(&call.url), hostname: String::new(), url: call.url.clone() },
            };
            let mut effects = verbatim(&tree.received, &call.sent, tree.propagation);
            if tree.propagation == Propagation::Continue {
                let (more, unwritten) = continued(tree, &call.sent, own);
                effects.extend(more);
                // A proxy that speaks both formats writes the other one again: the trace goes on.
                let is_written_again = |format: HeaderFamily| {
                    let arrived = call.reply.as_ref().and_then(|reply| format.read(&reply.received));
                    arrived.is_some_and(|context| trace_of(tree) == Some(context.trace_id))
                };
                let unwritten = unwritten.into_iter().filter(|(format, _)| !is_written_again(*format));
                self.unwritten.extend(unwritten.map(|(format, names)| Unwritten {
                    path: path.clone(),
                    format,
                    from: hop.clone(),
                    to: next.clone(),
                    names,
                }));
            }
            self.fault(&hop, &next, Side::Hop, Some(tree.propagation), effects);
            match &call.reply {
                Some(reply) => {
                    path.push(Step { call: index, reply: 0, is_foreign: false });
                    self.hop(&hop, (&call.sent, attempt), Some(tree.propagation), reply, &call.url, path);
                    path.pop();
                }
                None if call.embedded.is_empty() => self.unobserved.push((hop.clone(), next)),
                None => {
                    for (at, reply) in call.embedded.iter().enumerate() {
                        path.push(Step { call: index, reply: at, is_foreign: true });
                        self.behind_foreign_app(&hop, &ForeignApp::at(&call.url), &call.sent, reply, path);
                        path.pop();
                    }
                }
            }
        }
    }

    /// A hop that a foreign app called, while it was called itself with the headers `sent`. Such an app may continue the trace
    /// in the one format that its tracer speaks, and need not pass on what is no part of a trace; what it passes on must be whole.
    fn behind_foreign_app(&mut self, caller: &HopRef, via: &ForeignApp, sent: &Headers, tree: &Tree, path: &mut Vec<Step>) {
        let hop = HopRef::of(tree, "");
        let (effects, request_id) = between(sent, &tree.received, false);
        let contexts = HeaderFamily::read_all(sent);
        let is_mangled = |format: HeaderFamily| {
            effects.iter().any(|effect| matches!(effect, HeaderChange::Mangled { name, .. } if format.has(name)))
        };
        let goes_on = HeaderFamily::read_all(&tree.received)
            .into_iter()
            .any(|(format, context)| names_trace(&contexts, context.trace_id) && !is_mangled(format));
        let is_broken = !contexts.is_empty() && !goes_on;
        let altered = altered(sent, &tree.received);
        let (faults, left): (Vec<HeaderChange>, Vec<HeaderChange>) =
            effects.into_iter().chain(altered).partition(|effect| match effect {
                // B3 permits it.
                HeaderChange::Mangled { name, how: Mangling::UpperCase, .. } if name != "traceparent" => false,
                HeaderChange::Mangled { .. } | HeaderChange::Sampled { .. } => true,
                HeaderChange::Changed { name, .. } if name == "x-request-id" => false,
                HeaderChange::Changed { name, before, after } if name == "baggage" => is_broken || is_cut(before, after),
                HeaderChange::Changed { .. } => true,
                _ => is_broken,
            });
        if !faults.is_empty() {
            let (from, to, via) = (caller.clone(), hop.clone(), Some(via.clone()));
            self.faults.push(SeamFault { from, to, side: Side::Between, mode: None, via, effects: faults });
        }
        if !left.is_empty() {
            self.withheld.push(Withheld { via: via.clone(), from: caller.clone(), to: hop.clone(), effects: left });
        }
        // A new span id is the app's own as likely as a proxy's.
        let signs = proxy(sent, tree, 1);
        let proxy = Proxy { w3c: false, b3: false, envoy: tree.attempt > 1, ..signs };
        self.rows.push(row(tree, &hop, depth(path), request_id, proxy, Some(via.clone())));
        self.calls(caller, &tree.received, tree, hop, path);
    }

    /// What an app leaves out breaks the trace where the proxies speak it.
    fn settle_withheld(&mut self) {
        let formats = HeaderFamily::ALL.into_iter();
        let spoken: Vec<HeaderFamily> = formats.filter(|format| self.mesh_speaks(*format)).collect();
        let breaks = |effect: &HeaderChange| {
            let header = effect.header();
            let is_whole = matches!(effect, HeaderChange::Mangled { .. });
            !is_whole && spoken.iter().any(|format| header.as_ref().is_some_and(|header| format.has(header)))
        };
        for Withheld { via, from, to, effects } in std::mem::take(&mut self.withheld) {
            let (effects, left): (Vec<HeaderChange>, Vec<HeaderChange>) = effects.into_iter().partition(breaks);
            if !left.is_empty() {
                self.withheld.push(Withheld { via: via.clone(), from: from.clone(), to: to.clone(), effects: left });
            }
            if !effects.is_empty() {
                self.faults.push(SeamFault { from, to, side: Side::Between, mode: None, via: Some(via), effects });
            }
        }
    }

    /// Decides the open questions with the answers to probes of one format each (`None`: there was no usable answer). A hop that reads a format and does not
    /// write it loses it; one that does not even read it is configured so (`OTEL_PROPAGATORS`), which matters only where the
    /// proxies speak that format.
    pub(crate) fn settle(&mut self, answer: impl Fn(HeaderFamily) -> Option<Tree>) {
        let mut answers: BTreeMap<HeaderFamily, Option<Tree>> = BTreeMap::new();
        for open in std::mem::take(&mut self.unwritten) {
            let solo = answers.entry(open.format).or_insert_with(|| answer(open.format));
            let reads = solo.as_ref().and_then(|tree| at(tree, &open.path)).and_then(|hop| reads(hop, open.format));
            if reads == Some(true) || self.mesh_speaks(open.format) || (reads.is_none() && !self.mesh_traces()) {
                let effects = open.names.into_iter().map(HeaderChange::Lost).collect();
                self.fault(&open.from, &open.to, Side::Hop, Some(Propagation::Continue), effects);
            } else if !self.left_out.iter().any(|(hop, format)| *hop == open.from && *format == open.format) {
                self.left_out.push((open.from, open.format));
            }
        }
    }

    /// Decides the open questions by what the hops themselves say, where there is no more to ask: a hop that breaks headers on
    /// purpose writes the format in other requests.
    pub(crate) fn settle_by_orders(&mut self) {
        for open in std::mem::take(&mut self.unwritten) {
            if self.broken_by(&open.from).is_some() || self.mesh_speaks(open.format) {
                let effects = open.names.into_iter().map(HeaderChange::Lost).collect();
                self.fault(&open.from, &open.to, Side::Hop, Some(Propagation::Continue), effects);
            }
        }
    }
}

/// The hop at a path, counted from the first hop.
fn at<'a>(tree: &'a Tree, path: &[Step]) -> Option<&'a Tree> {
    path.iter().try_fold(tree, |hop, step| hop.upstreams.get(step.call)?.replies().nth(step.reply))
}

/// How many stand above a hop, foreign apps included.
fn depth(path: &[Step]) -> usize {
    path.iter().map(|step| 1 + usize::from(step.is_foreign)).sum()
}

fn row(tree: &Tree, hop: &HopRef, depth: usize, request_id: RequestId, proxy: Proxy, via: Option<ForeignApp>) -> HopEvidence {
    let others = ["baggage", "tracestate", "x-lane"].into_iter().filter(|name| tree.received.is_present(name)).collect();
    HopEvidence {
        hop: hop.clone(),
        depth,
        via,
        mode: tree.propagation,
        protocol: tree.protocol.as_deref().map(str::to_owned),
        w3c: HeaderFamily::W3c.read(&tree.received),
        b3: HeaderFamily::B3.read(&tree.received),
        request_id,
        proxy,
        others,
        breaks: tree.injected.as_ref().map_or_else(Vec::new, |injected| injected.breaks.clone()),
    }
}

/// Whether a hop continues a trace that came in `format` alone; `None` when something else came too.
fn reads(hop: &Tree, format: HeaderFamily) -> Option<bool> {
    let alone = HeaderFamily::ALL.into_iter().all(|of| of.is_present(&hop.received) == (of == format));
    let context = format.read(&hop.received).filter(|_| alone && hop.propagation == Propagation::Continue)?;
    Some(trace_of(hop) == Some(context.trace_id))
}

#[cfg(test)]
#[path = "xray_tests.rs"]
mod tests;
