//! The propagation x-ray: what happened to every header between the hops, from one request and the reply tree it brought.
//!
//! Pure: a probe and a [`Tree`] in, faults out. A seam lies between a caller and the hop that it calls, and has three sides:
//! the hop before it did not send what it had received; it sent, and the hop behind did not receive; the hop behind received
//! a trace and started another. What a tracing proxy does when it is healthy (Envoy: a span id of its own in the format that
//! it speaks, the other format left alone or written anew from B3, a digit of the request id set, a caller's request id
//! replaced at the edge) is read as the sign of a proxy and never as a fault. So is what a hop does that says `continue`.

use std::collections::BTreeMap;

use crate::check::chain::evidence::{CALLER, Decided, Effect, HopEvidence, Unwritten, Xray};
use crate::check::chain::probe::Probe;
use crate::check::chain::seams::{between, continued, joined, proxy, trace_of, verbatim};
use crate::check::envoy::suggestions::{HopRef, name_of};
use crate::check::report::Side;
use crate::hop::reply::{Headers, Propagation, Tree};
use crate::trace_context::{HeaderFamily, HeaderSource as _};

/// Examines one request.
pub(crate) fn examine(probe: &Probe, tree: &Tree, url: &str) -> Xray {
    let mut xray = Xray::default();
    let caller = HopRef { name: CALLER.to_owned(), hostname: String::new(), url: String::new() };
    xray.hop(&caller, &probe.headers, None, tree, url, &mut Vec::new());
    xray
}

impl Xray {
    fn hop(
        &mut self,
        caller: &HopRef,
        sent: &Headers,
        caller_mode: Option<Propagation>,
        tree: &Tree,
        url: &str,
        path: &mut Vec<usize>,
    ) {
        let hop = HopRef::of(tree, url);
        let is_edge = path.is_empty();
        let proxy = proxy(sent, tree);
        let (mut effects, request_id) = between(sent, &tree.received, is_edge);
        if proxy.traces() {
            effects.retain(|effect| match *effect {
                Effect::Sampled { before, after } => {
                    self.decided.push(Decided { from: caller.clone(), to: hop.clone(), before, after });
                    false
                }
                _ => true,
            });
        }
        self.fault(caller, &hop, Side::Between, caller_mode, effects);
        self.rows.push(HopEvidence {
            hop: hop.clone(),
            depth: path.len(),
            mode: tree.propagation,
            w3c: HeaderFamily::W3c.read(&tree.received),
            b3: HeaderFamily::B3.read(&tree.received),
            request_id,
            proxy,
            others: ["baggage", "tracestate", "x-lane"].into_iter().filter(|name| tree.received.is_present(name)).collect(),
        });

        let mut own = true;
        if tree.propagation == Propagation::Continue {
            let effects = joined(sent, tree);
            own = !effects.iter().any(|effect| matches!(effect, Effect::NewTrace { .. }));
            self.fault(caller, &hop, Side::NewTrace, Some(tree.propagation), effects);
        }
        for (index, call) in tree.upstreams.iter().enumerate() {
            let next = match &call.reply {
                Some(reply) => HopRef::of(reply, &call.url),
                None => HopRef { name: name_of(&call.url), hostname: String::new(), url: call.url.clone() },
            };
            let mut effects = verbatim(&tree.received, &call.sent, tree.propagation);
            if tree.propagation == Propagation::Continue {
                let (more, unwritten) = continued(tree, &call.sent, own);
                effects.extend(more);
                self.unwritten.extend(unwritten.into_iter().map(|(format, names)| Unwritten {
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
                    path.push(index);
                    self.hop(&hop, &call.sent, Some(tree.propagation), reply, &call.url, path);
                    path.pop();
                }
                None => self.unobserved.push((hop.clone(), next)),
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
                let effects = open.names.into_iter().map(Effect::Lost).collect();
                self.fault(&open.from, &open.to, Side::Hop, Some(Propagation::Continue), effects);
            } else if !self.left_out.iter().any(|(hop, format)| *hop == open.from && *format == open.format) {
                self.left_out.push((open.from, open.format));
            }
        }
    }
}

/// The hop at a path, counted from the first hop.
fn at<'a>(tree: &'a Tree, path: &[usize]) -> Option<&'a Tree> {
    path.iter().try_fold(tree, |hop, index| hop.upstreams.get(*index)?.reply.as_deref())
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
