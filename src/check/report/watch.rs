//! Constant load while a Deployment restarts: every failure with its hop and instance, and the longest gap.

use std::time::Duration;

use crate::check::envoy::hints::Place;
use crate::check::report::{CheckId, Finding, Hint};
use crate::check::traffic::{Outcome, Sample, by_hop};

/// The findings of the group.
pub(crate) fn findings(samples: &[Sample], span: Duration, place: &Place) -> Vec<Finding> {
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
    if failed.is_empty() {
        out.push(
            Finding::pass(CheckId::WatchFailures, format!("All {all} requests in {:.0} s succeeded", span.as_secs_f64()))
                .data(data),
        );
    } else {
        let (text, hint, seam) = worst(&failed, place);
        let mut finding =
            Finding::fail(CheckId::WatchFailures, format!("{} of {all} requests failed. {text}", failed.len()), hint).data(data);
        if let Some((from, to)) = seam {
            finding = finding.seam(&from, &to, None).hop(&to);
        }
        finding = finding.lines(failed.iter().take(SHOWN).map(|sample| line(sample)));
        if failed.len() > SHOWN {
            finding = finding.line(format!("… and {} more", failed.len() - SHOWN));
        }
        out.push(finding);
    }
    if !failed.is_empty() {
        let text = format!("The longest time without a success was {} ms", gap.as_millis());
        out.push(Finding::skip(CheckId::WatchGap, text));
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

/// The most frequent failure: its sentence, its hint, its seam.
fn worst(failed: &[&Sample], place: &Place) -> (String, Hint, Option<(String, String)>) {
    let mut kinds: Vec<(String, usize, &Sample)> = Vec::new();
    for sample in failed {
        let key = match &sample.outcome {
            Outcome::Broke(breaks) => breaks.first().map_or_else(String::new, crate::check::chain::Break::key),
            Outcome::Foreign { status, .. } => format!("front: {status}"),
            Outcome::Failed(failure) => failure.to_string(),
            Outcome::Fine => continue,
        };
        match kinds.iter_mut().find(|(known, ..)| *known == key) {
            Some((_, count, _)) => *count += 1,
            None => kinds.push((key, 1, sample)),
        }
    }
    let rollout = "A pod stopped while it was still called: its drain (DRAIN_DELAY, DRAIN_TIMEOUT) is longer than terminationGracePeriodSeconds or missing, or its successor was not ready (maxUnavailable 0, readiness on /readyz)";
    let drain = |hint: Hint| {
        hint.run(format!(
            "kubectl get deploy -n {} -o yaml | grep -E 'name: DRAIN|terminationGrace|maxUnavailable|path: /readyz'",
            place.namespace
        ))
        .run(format!("kubectl get events -n {} --sort-by=.lastTimestamp | tail -20", place.namespace))
    };
    match kinds.into_iter().max_by_key(|(_, count, _)| *count).map(|(_, _, sample)| &sample.outcome) {
        Some(Outcome::Broke(breaks)) if !breaks.is_empty() => {
            let broken = &breaks[0];
            let hint = match broken.why {
                crate::check::chain::Why::Injected(_) => broken.hint(place),
                _ => drain(Hint::new(rollout)),
            };
            (broken.text(), hint, Some((broken.from.name.clone(), broken.to.name.clone())))
        }
        Some(Outcome::Foreign { text, hint, .. }) => (text.clone(), hint.clone(), None),
        Some(Outcome::Failed(failure)) => (format!("Front: {failure}"), drain(Hint::new(rollout)), None),
        _ => ("A hop answered with a failure".to_owned(), drain(Hint::new(rollout)), None),
    }
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
    for (name, _) in by_hop(samples) {
        let mut hosts: Vec<(&str, Duration, Duration, usize)> = Vec::new();
        for sample in samples {
            for seen in sample.hops.iter().filter(|seen| seen.hop.name == name) {
                match hosts.iter_mut().find(|(host, ..)| *host == seen.hop.hostname) {
                    Some((_, _, last, count)) => {
                        *last = sample.at;
                        *count += 1;
                    }
                    None => hosts.push((&seen.hop.hostname, sample.at, sample.at, 1)),
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
