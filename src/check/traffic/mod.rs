//! Statistics over many requests: success, latency, versions, retries, splits, identities, sampling.
//!
//! In reading order: `sample` (sends the requests), this file, then a file per question; `stats` has the exact tests.

pub(crate) mod identity;
pub(crate) mod lane_check;
pub(crate) mod sample;
pub(crate) mod sampling;
pub(crate) mod split;
pub(crate) mod stats;
pub(crate) mod watch;

use crate::check::chain::FailureCause;
use crate::check::chain::evidence::Xray;
use crate::check::chain::expect::Split;
use crate::check::envoy::suggestions::{HintContext, quoted};
use crate::check::report::{CheckId, Finding, Hint};
use crate::check::traffic::sample::{HopSamples, Outcome, Sample, by_hop};

/// What the user expects of the traffic.
pub(crate) struct TrafficExpectation<'a> {
    /// Percent of the requests that succeed.
    pub(crate) success: f64,
    pub(crate) splits: &'a [Split],
}

/// The findings of the group.
pub(crate) fn findings(
    samples: &[Sample],
    xray: Option<&Xray>,
    expected: &TrafficExpectation<'_>,
    hints: &HintContext,
) -> Vec<Finding> {
    if samples.is_empty() {
        let text = "Traffic: skipped, because no request was answered before the end";
        return vec![Finding::skip(CheckId::TrafficSuccess, text)];
    }
    let mut out = success(samples, expected.success, hints);
    out.extend(latency(samples));
    let hops = by_hop(samples);
    if hops.is_empty() {
        return out;
    }
    out.push(versions(&hops));
    out.extend(expected.splits.iter().flat_map(|split| split::findings(&hops, split, hints)));
    out.push(retries(&hops));
    out.extend(xray.map(|xray| identity::finding(&hops, xray, hints)));
    out
}

/// One way in which requests failed.
pub(crate) struct FailureKind {
    /// The failure in a few words.
    pub(crate) key: String,
    pub(crate) count: usize,
    pub(crate) finding: Finding,
    /// The finding's cause explains the failure whatever the load: a fault on purpose, or an answer of a gateway.
    pub(crate) is_explained: bool,
}

/// The ways in which requests failed, most frequent first.
pub(crate) fn failures(samples: &[Sample], id: CheckId, hints: &HintContext) -> Vec<FailureKind> {
    let mut kinds: Vec<FailureKind> = Vec::new();
    let mut count = |key: String, is_explained: bool, finding: Finding| match kinds.iter_mut().find(|kind| kind.key == key) {
        Some(kind) => kind.count += 1,
        None => kinds.push(FailureKind { key, count: 1, finding, is_explained }),
    };
    let curl = format!("curl -sv {}", quoted(&hints.url));
    for sample in samples {
        match &sample.outcome {
            Outcome::Fine => {}
            Outcome::Broke(breaks) if breaks.is_empty() => {
                let text = "The front answered with a failure, and every hop's own answer is a success";
                let hint = Hint::new("Something in front of the chain changes the status of its answer").run(curl.as_str());
                count("front: another status than the first hop's".to_owned(), true, Finding::fail(id, text, hint));
            }
            Outcome::Broke(breaks) => breaks.iter().for_each(|broken| {
                let on_purpose = matches!(broken.cause, FailureCause::Injected(_));
                count(broken.key(), on_purpose, broken.finding(id, hints));
            }),
            Outcome::Foreign { status, text, hint } => {
                count(format!("front: {status}"), true, Finding::fail(id, text.as_str(), hint.clone()));
            }
            Outcome::Failed(failure) => {
                let hint = Hint::new("The front did not answer: see Reach").run(curl.as_str());
                let text = format!("No answer from the front: {failure}");
                count(format!("front: {failure}"), false, Finding::fail(id, text, hint));
            }
        }
    }
    kinds.sort_by_key(|kind| std::cmp::Reverse(kind.count));
    kinds
}

fn success(samples: &[Sample], expected: f64, hints: &HintContext) -> Vec<Finding> {
    const SHOWN: usize = 5;
    const ID: CheckId = CheckId::TrafficSuccess;
    let all = samples.len();
    let fine = samples.iter().filter(|sample| sample.is_fine()).count();
    let rate = 100.0 * fine as f64 / all as f64;
    let data = serde_json::json!({"requests": all, "succeeded": fine, "percent": rate});
    if fine == all {
        return vec![Finding::pass(ID, format!("All {all} requests succeeded")).data(data)];
    }
    let kinds = failures(samples, ID, hints);
    if rate >= expected {
        let text = format!("{fine} of {all} requests succeeded ({rate:.2} %), {expected} % promised");
        let lines = kinds.iter().take(SHOWN).map(|kind| format!("{:>6} x {}", kind.count, kind.key));
        return vec![Finding::pass(ID, text).lines(lines).data(data)];
    }
    let finding = |FailureKind { count, mut finding, .. }: FailureKind| {
        finding.text = format!("{count} of {all} requests failed. {}", finding.text);
        finding.data(data.clone())
    };
    kinds.into_iter().take(SHOWN).map(finding).collect()
}

fn latency(samples: &[Sample]) -> Option<Finding> {
    let fine = samples.iter().filter(|sample| sample.is_fine());
    let times = sorted(fine.map(|sample| sample.took.as_secs_f64() * 1000.0));
    let at = |q: f64| stats::percentile(&times, q);
    let (p50, p90, p99, max) = (at(0.5)?, at(0.9)?, at(0.99)?, at(1.0)?);
    let median = |hop: HopSamples<'_>| {
        let own = sorted(hop.answers.iter().map(|answer| answer.own_ms));
        Some((stats::percentile(&own, 0.5)?, hop.name.to_owned()))
    };
    let slowest = by_hop(samples).into_iter().filter_map(median).max_by(|a, b| a.0.total_cmp(&b.0));
    let slowest =
        slowest.map_or_else(String::new, |(ms, name)| format!("; the slowest hop is {name}, p50 {ms:.1} ms of its own"));
    let text = format!("Latency p50 {p50:.1} ms, p90 {p90:.1} ms, p99 {p99:.1} ms, longest {max:.1} ms{slowest}");
    let data = serde_json::json!({"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "max_ms": max});
    Some(Finding::pass(CheckId::TrafficLatency, text).data(data))
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn versions(hops: &[HopSamples<'_>]) -> Finding {
    let mut lines = Vec::new();
    let mut data = serde_json::Map::new();
    for hop in hops {
        let versions = hop.tally(|answer| &answer.version);
        let all = hop.answers.len() as f64;
        let share = |(version, count): (&&str, &u64)| format!("{version} {:.1} %", 100.0 * *count as f64 / all);
        let shares: Vec<String> = versions.iter().map(share).collect();
        let hosts = hop.tally(|answer| &answer.hop.hostname).len();
        let plural = if hosts == 1 { "host" } else { "hosts" };
        lines.push(format!("{:<20} {:<30} {hosts} {plural}", hop.name, shares.join(", ")));
        data.insert(hop.name.to_owned(), serde_json::json!(versions));
    }
    Finding::pass(CheckId::TrafficVersions, "Versions that answered, per hop").lines(lines).data(data.into())
}

fn retries(hops: &[HopSamples<'_>]) -> Finding {
    let mut lines = Vec::new();
    for HopSamples { name, answers } in hops {
        let again = answers.iter().filter(|answer| answer.attempt > 1).count();
        if again > 0 {
            let (all, most) = (answers.len(), answers.iter().map(|answer| answer.attempt).max().unwrap_or(1));
            lines.push(format!("{name:<20} {again} of {all} answers needed more than one attempt, {most} at most"));
        }
    }
    let text = match lines.len() {
        0 => "No retries: every answer was a first attempt".to_owned(),
        1 => "Retries seen at 1 hop: a proxy in front hid failures".to_owned(),
        n => format!("Retries seen at {n} hops: a proxy in front hid failures; retries at several layers multiply"),
    };
    Finding::pass(CheckId::TrafficRetries, text).lines(lines)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::check::report::Status;

    #[test]
    fn a_failure_that_no_hop_shows_is_a_finding() {
        let hints = HintContext {
            namespace: "httpserver".into(),
            gateway_namespace: "istio-system".into(),
            url: "http://x/service1".into(),
            loopback: false,
            evidence: std::sync::Arc::default(),
        };
        let outcome = Outcome::Broke(Vec::new());
        let sample = Sample { at: Duration::ZERO, took: Duration::ZERO, outcome, hops: Vec::new(), sampled: None, ends: None };
        let findings = findings(&[sample], None, &TrafficExpectation { success: 100.0, splits: &[] }, &hints);
        assert_eq!(findings.len(), 1, "{findings:#?}");
        assert_eq!((findings[0].id, findings[0].status), (CheckId::TrafficSuccess, Status::Fail));
        assert!(findings[0].text.starts_with("1 of 1 requests failed."), "{}", findings[0].text);
    }
}
