//! What came through at every hop.

use crate::check::chain::evidence::{CALLER, Decided, HeaderChange, RequestId, Xray};
use crate::check::propagation::fault::{decision, joined_names};
use crate::hop::reply::Propagation;
use crate::report::{CheckId, Finding, Hint};
use crate::trace_context::HeaderFamily;

/// The headers beside trace context and request id that the probe carries.
const OTHERS: [&str; 3] = ["baggage", "tracestate", "x-lane"];

/// The findings about what no fault concerns.
pub(crate) fn findings(xray: &Xray, is_id_fixed: bool) -> Vec<Finding> {
    let Some(last) = xray.rows.last() else { return Vec::new() };
    let hops = match xray.rows.len() {
        1 => format!("reached {}", last.hop.name),
        n => format!("reached all {n} hops"),
    };
    let mut out: Vec<Finding> = HeaderFamily::ALL.into_iter().filter_map(|format| trace(xray, format, &hops)).collect();
    out.extend(sampling(xray, &hops));
    if !is_id_fixed
        && !touched(xray, "x-request-id")
        && xray
            .rows
            .iter()
            .all(|row| row.request_id != RequestId::Missing && (row.via.is_none() || row.request_id == RequestId::Kept))
    {
        let edge = xray.rows.first().is_some_and(|row| row.request_id == RequestId::Replaced);
        let how = if edge { "; the gateway gave it, as Envoy does for callers from outside" } else { "" };
        out.push(Finding::pass(CheckId::PropagationRequestId, format!("x-request-id {hops} unchanged{how}")));
    }
    let (through, stopped): (Vec<&str>, Vec<&str>) = OTHERS
        .into_iter()
        .filter(|name| !touched(xray, name))
        .partition(|name| xray.rows.iter().all(|row| row.others.contains(name)));
    if !through.is_empty() {
        out.push(Finding::pass(CheckId::PropagationHeaders, format!("{} {hops}", joined_names(&through))));
    }
    out.extend(stopped.into_iter().filter_map(|name| not_checked(xray, name)));
    out
}

fn touched(xray: &Xray, header: &str) -> bool {
    xray.faults.iter().any(|fault| fault.touches(header))
}

/// A format that no fault breaks.
fn trace(xray: &Xray, format: HeaderFamily, hops: &str) -> Option<Finding> {
    let (id, headers) = match format {
        HeaderFamily::W3c => (CheckId::PropagationW3c, "traceparent"),
        HeaderFamily::B3 => (CheckId::PropagationB3, "x-b3-*"),
    };
    if xray.faults.iter().any(|fault| fault.breaks(format)) {
        return None;
    }
    let name = format.name();
    let left: Vec<&str> = xray.left_out.iter().filter(|(_, of)| *of == format).map(|(hop, _)| hop.name.as_str()).collect();
    if !left.is_empty() {
        let left = left.join(", ");
        let why = format!("{left} leaves it out (OTEL_PROPAGATORS or DROP_HEADERS) and no proxy here speaks it");
        return Some(Finding::skip(id, format!("{name} trace: not checked, because {why}")));
    }
    let how = match xray.rows.len() {
        1 => "",
        _ if xray.rows.iter().any(|row| row.mode == Propagation::Continue) => ", and the hops continue it",
        // A foreign app may write it anew.
        _ if xray.rows.iter().any(|row| row.via.is_some()) => "",
        _ => " untouched by the hops",
    };
    let arrived = xray.rows.iter().all(|row| row.context(format).is_some());
    arrived.then(|| Finding::pass(id, format!("{name} trace ({headers}) {hops}{how}")))
}

/// The sampling decision, when no hop flips it.
fn sampling(xray: &Xray, hops: &str) -> Option<Finding> {
    let flips = |effect: &HeaderChange| matches!(effect, HeaderChange::Sampled { .. });
    if xray.faults.iter().any(|fault| fault.effects.iter().any(flips)) {
        return None;
    }
    let decided = |context: &crate::trace_context::Context| context.sampling.decision().is_some();
    if !xray.rows.iter().all(|row| row.w3c.as_ref().or(row.b3.as_ref()).is_some_and(decided)) {
        return None;
    }
    // A gateway applies its rate to every caller. Behind it the decision is taken.
    if let Some(Decided { from, to, .. }) = xray.decided.iter().find(|it| it.before && !it.after && it.from.name != CALLER) {
        let (from, to) = (&from.name, &to.name);
        let hint = Hint::new(format!("The proxy between {from} and {to} decides anew: a Telemetry resource there has a rate of its own (randomSamplingPercentage), or the request id in which Envoy keeps the decision is another"))
            .run("kubectl get telemetry -A -o yaml | grep -B12 randomSamplingPercentage");
        let text =
            format!("The sampling decision ends between {from} and {to}: {from} sent \"sampled\", {to} got \"not sampled\"");
        return Some(Finding::fail(CheckId::PropagationSampled, text, hint).seam(from, to, None).hop(to));
    }
    let Some(Decided { from, to, before, after }) = xray.decided.first() else {
        return Some(Finding::pass(CheckId::PropagationSampled, format!("The sampling decision {hops} unchanged")));
    };
    let (sent, got) = (decision(*before), decision(*after));
    let text = format!(
        "The sampling decision: not checked, because the proxies take it themselves: {} sent {sent}, {} got {got}. That is a question of their sampling rate, which --traces measures",
        from.name, to.name
    );
    Some(Finding::skip(CheckId::PropagationSampled, text))
}

/// A header that did not reach every hop for a reason that is no fault of its own.
fn not_checked(xray: &Xray, name: &str) -> Option<Finding> {
    let row = xray.rows.iter().find(|row| !row.others.contains(&name)).filter(|row| row.via.is_none())?;
    let (id, why) = match name {
        "tracestate" => (CheckId::PropagationTracestate, "the traceparent that it belonged to was replaced there"),
        "x-lane" if row.depth == 0 => (CheckId::PropagationLane, "the gateway removes it from requests that come from outside"),
        "x-lane" => (CheckId::PropagationLane, "the hops before it had none to send"),
        _ => (CheckId::PropagationBaggage, "the hops before it had none to send"),
    };
    let trace_broke = xray.faults.iter().any(|fault| HeaderFamily::ALL.into_iter().all(|format| fault.breaks(format)));
    (!trace_broke).then(|| Finding::skip(id, format!("{name} did not reach {}: not checked, because {why}", row.hop.name)))
}
