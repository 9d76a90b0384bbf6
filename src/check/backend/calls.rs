//! What became of each call on the way, by the spans of whoever received it.

use std::collections::HashSet;

use crate::hop::reply::{Call, Tree};
use crate::trace_context::HeaderFamily;
use crate::traces::{Kind, SpanId, Trace};

/// Calls that were received more often than their answers say: mirrored, hedged, or repeated by somebody who counts no attempts.
/// A line each.
pub(super) fn multiplied(tree: &Tree, trace: &Trace) -> Vec<String> {
    const SHOWN: usize = 20;
    let calls = tree.hops("").flat_map(|(hop, _)| hop.upstreams.iter().map(move |call| (&hop.service, call)));
    calls.filter_map(|(from, call)| line(from, call, trace)).take(SHOWN).collect()
}

fn line(from: &str, call: &Call, trace: &Trace) -> Option<String> {
    let shown = call.replies().map(|reply| reply.attempt.max(1) as usize).sum::<usize>();
    let to = call.replies().next().filter(|_| shown > 0)?;
    let sent: HashSet<SpanId> = HeaderFamily::read_all(&call.sent).iter().map(|(_, context)| context.span_id).collect();
    let rows = trace.rows();
    let is_below = |row: usize| {
        let mut at = row;
        loop {
            if rows[at].span.parent_id.is_some_and(|parent| sent.contains(&parent)) {
                return true;
            }
            // What another app calls is another call.
            match rows[at].parent.filter(|parent| rows[*parent].span.is_proxy()) {
                Some(parent) => at = parent,
                None => return false,
            }
        }
    };
    let spans = rows.iter().enumerate().map(|(row, of)| (row, &*of.span));
    let received = spans.filter(|(row, span)| !span.is_proxy() && span.kind == Some(Kind::Server) && is_below(*row));
    let (mut all, mut broken) = (0, 0);
    for (_, span) in received {
        all += 1;
        broken += usize::from(span.http_status().is_some_and(|status| status >= 500));
    }
    let hidden = if broken > 0 && to.status < 500 { format!(", {broken} of which failed") } else { String::new() };
    (all > shown).then(|| {
        format!(
            "{all} calls{hidden} reached {} where {from} made {shown}, as the trace shows: something between them mirrors, hedges or repeats calls",
            to.service
        )
    })
}
