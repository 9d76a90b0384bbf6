//! Where a request lost something between two hops, by the rules of `check`.

use serde::Serialize;

use crate::check::chain::evidence::{CALLER, HeaderChange};
use crate::check::chain::probe::Probe;
use crate::check::chain::xray::examine;
use crate::check::propagation::sentence;
use crate::hop::reply::Tree;
use crate::trace_context::HeaderFamily;

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
    let mut apart = Vec::new();
    collect_apart(tree, &mut apart);
    let is_apart = |from: &str, to: &str| apart.iter().any(|(caller, callee, _)| *caller == from && *callee == to);
    let mut found: Vec<BrokenSeam> = xray
        .faults
        .iter()
        .map(|fault| {
            let name = |name: &str| if name == CALLER { "the caller".to_owned() } else { name.to_owned() };
            let is_elsewhere =
                |effect: &HeaderChange| matches!(effect, HeaderChange::NewTrace { .. } | HeaderChange::StaleParent { .. });
            let broken = is_apart(&fault.from.name, &fault.to.name) || fault.effects.iter().any(is_elsewhere);
            let headers = fault.effects.iter().filter_map(HeaderChange::header).collect();
            let ends_sampling = fault.effects.iter().any(|effect| matches!(effect, HeaderChange::Sampled { after: false, .. }));
            let (from, to, text) = (name(&fault.from.name), fault.to.name.clone(), sentence(fault) + ".");
            BrokenSeam { from, to, broken, ends_sampling, headers, text }
        })
        .collect();
    for (from, to, is_sent) in apart {
        if !found.iter().any(|seam| seam.from == from && seam.to == to) {
            let headers = HeaderFamily::ALL.map(|family| family.header().to_owned());
            let what = if is_sent {
                format!("{to} did not continue the trace")
            } else {
                format!("{from} sent none of {}", headers.join(", "))
            };
            let text = format!("Trace broke between {from} and {to}: {what}.");
            let (from, to, headers) = (from.to_owned(), to.to_owned(), headers.to_vec());
            found.push(BrokenSeam { from, to, broken: true, ends_sampling: false, headers, text });
        }
    }
    found.sort_by_key(|seam| !seam.broken);
    found
}

/// Collects the calls whose two ends are in different traces: the caller, the called, and whether a context was sent.
fn collect_apart<'a>(tree: &'a Tree, apart: &mut Vec<(&'a str, &'a str, bool)>) {
    for (call, below) in tree.upstreams.iter().filter_map(|call| Some((call, call.reply.as_ref()?))) {
        if below.trace_id != tree.trace_id {
            apart.push((&tree.service, &below.service, !HeaderFamily::read_all(&call.sent).is_empty()));
        }
        collect_apart(below, apart);
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
        let parent = VALID.replace("00f067aa0ba902b7", "00f067aa0ba902b6");
        let front = format!(r#"{{"traceparent": ["{parent}"], "baggage": ["user=ada"]}}"#);
        let sent = serde_json::json!({"traceparent": [VALID]});
        let seams = found(&front, trace, &sent, &sent);
        assert_eq!(seams.len(), 1, "{seams:?}");
        assert_eq!((seams[0].broken, seams[0].headers.as_slice()), (false, &["baggage".to_owned()][..]));
        assert!(seams[0].text.contains("service1 received baggage and did not send it"), "{seams:?}");
        // The same trace, and the parent that came in: what is called hangs beside its caller.
        let stale = serde_json::json!({"traceparent": [parent]});
        let seams = found(&stale.to_string(), trace, &stale, &stale);
        assert!(seams[0].broken && seams[0].text.contains("sent the span id that it received, 00f067aa"), "{seams:?}");
    }
}
