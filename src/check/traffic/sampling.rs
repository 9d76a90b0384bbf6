//! The sampling rate of the mesh, from requests that bring no trace context.

use crate::check::chain::evidence::Xray;
use crate::check::envoy::suggestions::{HintContext, Runner};
use crate::check::traffic::instance::{all_at, struck_at};
use crate::check::traffic::sample::{Sample, by_hop};
use crate::check::traffic::stats::{self, ALPHA, MIN_DETECTABLE_SHIFT};
use crate::report::{CheckId, Finding, Hint};

const ID: CheckId = CheckId::TracesSampling;

/// Tests the rate over requests that brought no decision. `expected`: percent.
pub(crate) fn finding(samples: &[Sample], expected: f64, xray: Option<&Xray>, hints: &HintContext) -> Finding {
    let decided: Vec<bool> = samples.iter().filter_map(|sample| sample.sampled).collect();
    if decided.is_empty() {
        let why = "no hop and no proxy made a decision in requests without trace context";
        return Finding::skip(ID, format!("Sampling: not checked, because {why}"));
    }
    let (yes, all) = (decided.iter().filter(|yes| **yes).count() as u64, decided.len() as u64);
    let rate = 100.0 * yes as f64 / all as f64;
    let p = stats::binomial(yes, all, expected / 100.0);
    let shift = stats::detectable(all, expected / 100.0, ALPHA) * 100.0;
    let data = serde_json::json!({"sampled": yes, "requests": all, "percent": rate, "promised": expected, "p": p});
    let text = format!("{yes} of {all} requests that bring no trace context are sampled ({rate:.1} %)");
    let ended: Vec<&(String, String)> = samples.iter().filter_map(|sample| sample.ends.as_ref()).collect();
    if let Some((from, to)) = ended.first() {
        let hint = Hint::new(format!(
            "The proxy or the hop behind {from} decides anew: a rate of its own, or another request id than came"
        ));
        let (hops, struck) = (by_hop(samples), || samples.iter().filter(|sample| sample.ends.is_some()));
        let at = [to, from].into_iter().find_map(|name| struck_at(name, struck(), &hops));
        let text =
            format!("{text}, and in {} of them the decision ends between {from} and {to}{}", ended.len(), all_at(at.as_ref()));
        return Finding::fail(ID, text, hint).seam(from, to, None).hop(to).data(data);
    }
    let finding = if p < ALPHA {
        // Envoy's Zipkin tracer obeys a caller's decision, its OpenTelemetry tracer does not.
        let asked = if xray.is_some_and(|xray| !xray.decided.is_empty()) {
            "The proxies here apply it to callers that asked to be sampled, too"
        } else {
            "A caller's own decision overrides it, so a trace asked for by hand still shows"
        };
        let hint = Hint::new(format!(
            "The sampling rate in force is not {expected} %: {}, or OTEL_TRACES_SAMPLER. {asked}. --expect-sampling says what is meant",
            hints.configured_by(
                "randomSamplingPercentage of the Telemetry resource (1 % when nobody sets it)",
                "random_sampling in the tracing of a proxy"
            )
        ));
        let hint = match samples.iter().find_map(|sample| sample.hops.first()).map(|first| &first.hop) {
            Some(hop) if hints.runner(hop) == Runner::Local => hint.run(hints.settings(hop)),
            _ => hint
                .run("kubectl get telemetry -A -o yaml | grep -B12 randomSamplingPercentage")
                .run("kubectl get configmap istio -n istio-system -o yaml | grep -i sampling"),
        };
        Finding::fail(ID, format!("{text}, {expected} % promised"), hint)
    } else if shift > MIN_DETECTABLE_SHIFT * 100.0 {
        Finding::skip(ID, format!("{text}, {expected} % promised: {}", stats::too_few(shift)))
    } else {
        Finding::pass(ID, text)
    };
    finding.data(data)
}
