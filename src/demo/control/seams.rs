//! Where a request lost something between two hops, by the rules of `check`.

use serde::Serialize;

use crate::check::chain::evidence::{CALLER, Effect, SeamFault};
use crate::check::chain::probe::Probe;
use crate::check::chain::xray::examine;
use crate::check::propagation::sentence;
use crate::hop::reply::{Call, Headers, Propagation, Tree};
use crate::trace_context::{HeaderFamily, TraceBreak};

/// What went wrong with the headers between a caller and the hop that it called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct BrokenSeam {
    /// The caller.
    from: String,
    /// Whom it called.
    to: String,
    /// What was called is in another trace, or hangs below another span than the caller's call.
    pub(crate) broken: bool,
    /// What is behind is not sampled any more.
    #[serde(skip)]
    pub(crate) ends_sampling: bool,
    /// The headers that are lost or damaged.
    headers: Vec<String>,
    /// A sentence.
    pub(crate) text: String,
}

/// Everything that went wrong with the headers of one request, broken seams first.
pub(crate) fn seams(tree: &Tree) -> Vec<BrokenSeam> {
    let probe = Probe { headers: tree.received.clone() };
    let mut xray = examine(&probe, tree, &tree.path);
    xray.settle(|_| None);
    let mut broken = Vec::new();
    visit(tree, &mut broken);
    let is_broken = |from: &str, to: &str| broken.iter().any(|(caller, callee, _)| caller == from && callee == to);
    let mut found: Vec<BrokenSeam> = xray
        .faults
        .iter()
        .map(|fault| {
            let name = |name: &str| if name == CALLER { "the caller".to_owned() } else { name.to_owned() };
            let broken = is_broken(&fault.from.name, &fault.to.name) || is_new_trace(fault);
            let headers = fault.effects.iter().filter_map(Effect::header).collect();
            let ends_sampling = fault.effects.iter().any(|effect| matches!(effect, Effect::Sampled { after: false, .. }));
            let (from, to, text) = (name(&fault.from.name), fault.to.name.clone(), sentence(fault) + ".");
            BrokenSeam { from, to, broken, ends_sampling, headers, text }
        })
        .collect();
    for (from, to, text) in broken {
        if !found.iter().any(|seam| seam.from == from && seam.to == to) {
            let headers = HeaderFamily::ALL.into_iter().map(|family| family.header().to_owned()).collect();
            found.push(BrokenSeam { from, to, broken: true, ends_sampling: false, headers, text });
        }
    }
    found.sort_by_key(|seam| !seam.broken);
    found
}

fn is_new_trace(fault: &SeamFault) -> bool {
    fault.effects.iter().any(|effect| matches!(effect, Effect::NewTrace { .. }))
}

/// Collects the calls whose two ends are not joined in one trace: the caller, the called, and a sentence.
fn visit(tree: &Tree, broken: &mut Vec<(String, String, String)>) {
    for call in &tree.upstreams {
        let Some(below) = &call.reply else { continue };
        let (from, to) = (&tree.service, &below.service);
        if below.trace_id != tree.trace_id {
            broken.push((from.clone(), to.clone(), of_traces(from, to, &call.sent, &below.received)));
        } else if hangs_elsewhere(tree, call) {
            let text = format!(
                "Trace broke between {from} and {to}: {from} sent the span id that it had received in place of its own, so {to} \
                 hangs beside it."
            );
            broken.push((from.clone(), to.clone(), text));
        }
        visit(below, broken);
    }
}

/// Whether a hop that has spans sent its own caller's span as that of its call.
fn hangs_elsewhere(tree: &Tree, call: &Call) -> bool {
    let sent = HeaderFamily::read_all(&call.sent);
    let received = tree.parent_span_id.as_deref();
    tree.propagation == Propagation::Continue
        && sent.first().is_some_and(|(_, context)| Some(context.span_id.to_string().as_str()) == received)
}

/// Why the two ends of a call are in different traces.
fn of_traces(from: &str, to: &str, sent: &Headers, received: &Headers) -> String {
    let names = |families: Vec<HeaderFamily>| families.into_iter().map(HeaderFamily::header).collect::<Vec<_>>().join(", ");
    let between = format!("Trace broke between {from} and {to}:");
    match TraceBreak::between(sent, received) {
        TraceBreak::NotSent => format!("{between} {from} sent none of {}.", names(HeaderFamily::ALL.to_vec())),
        TraceBreak::NotReceived { sent, invalid } => {
            let got = if invalid { "got it invalid" } else { "never got it" };
            format!("{between} {from} sent {}, {to} {got}.", names(sent))
        }
        TraceBreak::Replaced(received) => format!("{between} {to} got another trace in {}.", names(received)),
        TraceBreak::NotContinued(received) => {
            format!("Trace broke at {to}: it received {} and did not continue that trace.", names(received))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn hop(service: &str, trace: &str, received: &serde_json::Value, upstreams: &serde_json::Value) -> serde_json::Value {
        serde_json::json!({"service": service, "version": "v1", "lane": "base", "hostname": "h", "message": "", "path": "/",
            "status": 200, "started_at": "2026-01-02T03:04:05.678901Z", "duration_ms": 1.0, "request_id": "r",
            "trace_id": trace, "span_id": "00f067aa0ba902b7", "parent_span_id": "00f067aa0ba902b6", "sampled": true,
            "propagation": "continue", "received": received, "client": {"ip": "127.0.0.1", "identity": null}, "attempt": 1,
            "injected": null, "upstreams": upstreams})
    }

    fn found(front: &str, below: &str, sent: &serde_json::Value, received: &serde_json::Value) -> Vec<BrokenSeam> {
        let below = hop("service2", below, received, &serde_json::json!([]));
        let calls = serde_json::json!([{"url": "http://service2", "status": 200, "duration_ms": 1.0, "error": null,
            "sent": sent, "reply": below}]);
        let front = hop("service1", "4bf92f3577b34da6a3ce929d0e0e4736", &serde_json::from_str(front).unwrap(), &calls);
        seams(&Tree::parse(front.to_string().as_bytes()).unwrap())
    }

    const OTHER: &str = "11111111111111111111111111111111";

    #[test]
    fn a_hop_is_not_blamed_for_a_context_that_it_never_got_or_got_invalid_or_replaced() {
        let said = |sent: serde_json::Value, received: serde_json::Value| {
            let seams = found("{}", OTHER, &sent, &received);
            assert!(seams[0].broken, "{seams:?}");
            seams[0].text.clone()
        };
        let w3c = |value: &str| serde_json::json!({"traceparent": [value]});
        let none = serde_json::json!({});
        assert!(said(none.clone(), none.clone()).contains("service1 sent none of"));
        assert!(said(w3c(VALID), none).ends_with("service1 sent traceparent, service2 never got it."));
        let invalid = said(w3c(VALID), w3c(&format!("{VALID}-extra")));
        assert!(invalid.contains("service2 received is invalid"), "{invalid}");
        let replaced = said(w3c(VALID), w3c(&VALID.replace("4bf9", "abcd")));
        assert!(replaced.contains("service1 sent trace 4bf92f35… in traceparent, service2 got abcd2f35…"), "{replaced}");
        let not_continued = said(w3c(VALID), w3c(VALID));
        assert!(not_continued.contains("service2 received trace 4bf92f35…"), "{not_continued}");
        assert!(not_continued.contains("and started a new one"), "{not_continued}");
    }

    #[test]
    fn a_lost_header_beside_a_trace_that_goes_on_breaks_nothing() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let front = format!(r#"{{"traceparent": ["{VALID}"], "baggage": ["user=ada"]}}"#);
        let sent = serde_json::json!({"traceparent": [VALID]});
        let seams = found(&front, trace, &sent, &sent);
        assert_eq!(seams.len(), 1, "{seams:?}");
        assert_eq!((seams[0].broken, seams[0].headers.as_slice()), (false, &["baggage".to_owned()][..]));
        assert!(seams[0].text.contains("service1 received baggage and did not send it"), "{seams:?}");
        // The same trace, and the parent that came in: what is called hangs beside its caller.
        let stale = serde_json::json!({"traceparent": [VALID.replace("00f067aa0ba902b7", "00f067aa0ba902b6")]});
        let seams = found(&format!(r#"{{"traceparent": ["{VALID}"]}}"#), trace, &stale, &stale);
        assert!(seams[0].broken && seams[0].text.contains("in place of its own"), "{seams:?}");
    }
}
