//! Constant load while a Deployment restarts: every failure with its hop and instance, and the longest gap.

use std::time::Duration;

use crate::check::envoy::suggestions::HintContext;
use crate::check::report::{CheckId, Finding, Hint};
use crate::check::traffic::sample::{Outcome, Sample, by_hop};
use crate::check::traffic::{FailureKind, failures};

/// The findings of the group.
pub(crate) fn findings(samples: &[Sample], span: Duration, hints: &HintContext) -> Vec<Finding> {
    if samples.is_empty() {
        return vec![Finding::skip(
            CheckId::WatchFailures,
            "Rollout watch: skipped, because no request was answered before the end",
        )];
    }
    const SHOWN: usize = 20;
    let all = samples.len();
    let failed: Vec<&Sample> = samples.iter().filter(|sample| !sample.is_fine()).collect();
    let gap = longest_gap(samples, span);
    let data = serde_json::json!({"requests": all, "failed": failed.len(), "longest_gap_ms": gap.as_millis() as u64});
    let mut out = Vec::new();
    match failures(samples, CheckId::WatchFailures, hints).into_iter().next() {
        None => {
            let text = format!("All {all} requests in {:.0} s succeeded", span.as_secs_f64());
            out.push(Finding::pass(CheckId::WatchFailures, text).data(data));
        }
        Some(FailureKind { mut finding, is_explained, .. }) => {
            finding.text = format!("{} of {all} requests failed. {}", failed.len(), finding.text);
            if !is_explained {
                let hint = rollout_hint(hints);
                (finding.cause, finding.next) = (Some(hint.cause), hint.next);
            }
            finding = finding.data(data).lines(failed.iter().take(SHOWN).map(|sample| line(sample)));
            if failed.len() > SHOWN {
                finding = finding.line(format!("… and {} more", failed.len() - SHOWN));
            }
            out.push(finding);
            let text = format!("The longest time without a success was {} ms", gap.as_millis());
            out.push(Finding::skip(CheckId::WatchGap, text));
        }
    }
    out.extend(instances(samples));
    out
}

/// One failed request: when, where, which instance, what.
fn line(sample: &Sample) -> String {
    let at = format!("{:>7.2} s", sample.at.as_secs_f64());
    match &sample.outcome {
        Outcome::Fine => at,
        Outcome::Broke(breaks) => {
            let parts: Vec<String> = breaks.iter().map(|broken| format!("{} (at {})", broken.key(), broken.instance())).collect();
            format!("{at}  {}", parts.join("; "))
        }
        Outcome::Foreign { status, .. } => format!("{at}  front: {status} from the gateway"),
        Outcome::Failed(failure) => format!("{at}  front: {failure}"),
    }
}

/// Why requests fail while pods are replaced.
fn rollout_hint(hints: &HintContext) -> Hint {
    let namespace = &hints.namespace;
    Hint::new("A pod stopped while it was still called: its drain (DRAIN_DELAY, DRAIN_TIMEOUT) is longer than terminationGracePeriodSeconds or missing, or its successor was not ready (maxUnavailable 0, readiness on /readyz)")
        .run(format!("kubectl get deploy -n {namespace} -o yaml | grep -E 'name: DRAIN|terminationGrace|maxUnavailable|path: /readyz'"))
        .run(format!("kubectl get events -n {namespace} --sort-by=.lastTimestamp | tail -20"))
}

/// The longest time between two successes, from the start and to the end counted too.
fn longest_gap(samples: &[Sample], span: Duration) -> Duration {
    let mut ends: Vec<Duration> =
        samples.iter().filter(|sample| sample.is_fine()).map(|sample| sample.at + sample.took).collect();
    ends.sort();
    ends.push(span.max(ends.last().copied().unwrap_or_default()));
    let mut last = Duration::ZERO;
    ends.into_iter().fold(Duration::ZERO, |longest, end| {
        let gap = end.saturating_sub(last);
        last = end;
        longest.max(gap)
    })
}

/// Who answered when: a rollout shows as one instance after another.
fn instances(samples: &[Sample]) -> Vec<Finding> {
    const SHOWN: usize = 6;
    let mut lines = Vec::new();
    for hop in by_hop(samples) {
        let name = hop.name;
        let mut hosts: Vec<(&str, Duration, Duration, usize)> = Vec::new();
        for sample in samples {
            for answer in sample.hops.iter().filter(|answer| answer.hop.name == name) {
                match hosts.iter_mut().find(|(host, ..)| *host == answer.hop.hostname) {
                    Some((_, _, last, count)) => {
                        *last = sample.at;
                        *count += 1;
                    }
                    None => hosts.push((&answer.hop.hostname, sample.at, sample.at, 1)),
                }
            }
        }
        for (host, first, last, count) in hosts.into_iter().take(SHOWN) {
            lines.push(format!(
                "{name:<12} {host:<30} {:>6.1} to {:>6.1} s  {count:>6} answers",
                first.as_secs_f64(),
                last.as_secs_f64()
            ));
        }
    }
    if lines.is_empty() {
        Vec::new()
    } else {
        vec![Finding::pass(CheckId::WatchInstances, "Instances that answered, and when").lines(lines)]
    }
}
