//! Statistics over many requests: success, latency, versions, retries, splits, identities, sampling.
//!
//! In reading order: `sample` (sends the requests), this file, then a file per question; `stats` has the exact tests.

pub(crate) mod identity;
mod instance;
pub(crate) mod lane_check;
pub(crate) mod rates;
pub(crate) mod sample;
pub(crate) mod sampling;
pub(crate) mod split;
pub(crate) mod stats;
pub(crate) mod sticky;
mod times;
pub(crate) mod watch;

use crate::check::chain::FailureCause;
use crate::check::chain::evidence::Xray;
use crate::check::chain::expect::{LatencyLimit, Principal, Split, is_named};
use crate::check::envoy::suggestions::HintContext;
use crate::check::traffic::instance::{all_at, only_at};
use crate::check::traffic::rates::Rates;
use crate::check::traffic::sample::{HopSamples, Outcome, Sample, by_hop, most_calls};
use crate::check::traffic::stats::sorted;
use crate::report::{CheckId, Finding, Hint};
use crate::text::number::percentile;
use crate::text::{counted, quoted};

/// What the user expects of the traffic.
pub(crate) struct TrafficExpectation<'a> {
    /// Percent of the requests that succeed.
    pub(crate) success: f64,
    /// Percent of a hop's answers that may be repeated attempts.
    pub(crate) retries: f64,
    pub(crate) splits: &'a [Split],
    pub(crate) latencies: &'a [LatencyLimit],
    pub(crate) principals: &'a [Principal],
    /// Calls of the first hop over one connection.
    pub(crate) kept: &'a [Sample],
    pub(crate) pods: sticky::Pods<'a>,
    /// Requests beside the samples, with headers of their own.
    pub(crate) marked: &'a [Sample],
    /// Calls that one request was multiplied into, as its trace shows.
    pub(crate) more_calls: &'a [String],
}

/// The findings of the group.
pub(crate) fn findings(
    samples: &[Sample],
    xray: Option<&Xray>,
    rates: Rates,
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
    out.extend(rates.findings());
    out.push(versions(&hops));
    out.extend(expected.splits.iter().flat_map(|split| split::findings(&hops, split, hints)));
    out.push(retries(samples, expected.retries, expected.more_calls, hints));
    out.extend(expected.latencies.iter().map(|limit| limited(samples, &hops, limit, hints)));
    out.extend(sticky::findings(&hops, expected.kept, xray, expected.pods, hints));
    out.extend(times::findings([samples, expected.marked], &hops, hints));
    out.extend(by_version(&hops));
    out.extend(xray.map(|xray| identity::finding(&hops, xray, hints)));
    out.extend(expected.principals.iter().map(|principal| identity::expected(&hops, principal, hints)));
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
                let finding = broken.finding(id, hints);
                // A circuit breaker that opens is no matter of a rollout either.
                let is_overflow =
                    matches!(&broken.cause, FailureCause::Answered(_, answer) if answer.to_string().contains("overflow"));
                count(broken.key(), is_overflow || finding.own_cause.is_some(), finding);
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
    let hops = by_hop(samples);
    let finding = |FailureKind { count, key, mut finding, .. }: FailureKind| {
        finding.text = format!("{count} of {all} requests failed. {}", finding.text);
        let at = single_instance(samples, &hops, &key);
        finding.text.push_str(&all_at(at.as_ref()));
        if let Some((host, _)) = at {
            finding.next.push(format!("kubectl describe pod {host} -n {}", hints.namespace));
        }
        finding.data(data.clone())
    };
    kinds.into_iter().take(SHOWN).map(finding).collect()
}

/// The one instance at which every failure of this kind was, and its siblings.
fn single_instance(samples: &[Sample], hops: &[HopSamples<'_>], key: &str) -> Option<(String, String)> {
    let broken =
        samples.iter().filter_map(|sample| if let Outcome::Broke(breaks) = &sample.outcome { Some(breaks) } else { None });
    let mut at: Vec<(&str, &str)> = Vec::new();
    for broken in broken.flatten().filter(|broken| broken.key() == key) {
        let hop = if broken.to.hostname.is_empty() { &broken.from } else { &broken.to };
        at.push((&hop.name, &hop.hostname));
    }
    let (name, _) = *at.first()?;
    only_at(name, at.iter().map(|(_, host)| *host), hops)
}

fn latency(samples: &[Sample]) -> Option<Finding> {
    let fine = samples.iter().filter(|sample| sample.is_fine());
    let times = sorted(fine.map(|sample| sample.took.as_secs_f64() * 1000.0));
    let at = |q: f64| percentile(&times, q);
    let (p50, p90, p99, max) = (at(0.5)?, at(0.9)?, at(0.99)?, at(1.0)?);
    let hops = by_hop(samples);
    let on_purpose =
        hops.iter().flat_map(|hop| rates::on_purpose(hop).into_iter().map(move |what| format!("{:<20} {what}", hop.name)));
    let on_purpose: Vec<String> = on_purpose.collect();
    let slowest = slowest(&hops, 0.5)
        .map_or_else(String::new, |(ms, name)| format!("; the slowest hop is {name}, p50 {ms:.1} ms of its own"));
    let text = format!("Latency p50 {p50:.1} ms, p90 {p90:.1} ms, p99 {p99:.1} ms, longest {max:.1} ms{slowest}");
    let data = serde_json::json!({"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "max_ms": max});
    Some(Finding::pass(CheckId::TrafficLatency, text).lines(on_purpose).data(data))
}

/// How long each version of a hop that has several takes by itself: what is slow only at p99 does not show in the whole.
fn by_version(hops: &[HopSamples<'_>]) -> Option<Finding> {
    let mut lines = Vec::new();
    for hop in hops {
        let versions = hop.tally(|answer| &answer.version);
        for version in versions.keys().filter(|_| versions.len() > 1) {
            let own = sorted(hop.answers.iter().filter(|answer| answer.version == **version).map(|answer| answer.own_ms));
            let at = |q: f64| percentile(&own, q).unwrap_or_default();
            let (p50, p90, p99, all) = (at(0.5), at(0.9), at(0.99), own.len());
            lines.push(format!(
                "{:<20} {version:<8} p50 {p50:.0} ms, p90 {p90:.0} ms, p99 {p99:.0} ms of {all} answers",
                hop.name
            ));
        }
    }
    let text = "How long each version takes by itself";
    (!lines.is_empty()).then(|| Finding::pass(CheckId::TrafficLatency, text).lines(lines))
}

/// The hop that takes longest by itself at a percentile, and how long.
fn slowest(hops: &[HopSamples<'_>], q: f64) -> Option<(f64, String)> {
    let own = hops.iter().filter_map(|hop| {
        let own = sorted(hop.answers.iter().map(|answer| answer.own_ms));
        Some((percentile(&own, q)?, hop.name.to_owned()))
    });
    own.max_by(|a, b| a.0.total_cmp(&b.0))
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
        lines.push(format!("{:<20} {:<30} {}", hop.name, shares.join(", "), counted(hosts, "host")));
        data.insert(hop.name.to_owned(), serde_json::json!(versions));
    }
    Finding::pass(CheckId::TrafficVersions, "Versions that answered, per hop").lines(lines).data(data.into())
}

/// What retries hide: of the requests that succeeded, those that needed them. The others are failures already.
fn retries(samples: &[Sample], expected: f64, more_calls: &[String], hints: &HintContext) -> Finding {
    const ID: CheckId = CheckId::TrafficRetries;
    let (mut lines, mut first) = (Vec::new(), None);
    for HopSamples { name, answers } in by_hop(samples.iter().filter(|sample| sample.is_fine())) {
        let again = answers.iter().filter(|answer| answer.attempt > 1).count();
        if again > 0 {
            let (all, most) = (answers.len(), answers.iter().map(|answer| answer.attempt).max().unwrap_or(1));
            lines.push(format!("{name:<20} {again} of {all} answers needed more than one attempt, {most} at most"));
            if 100.0 * again as f64 / all as f64 > expected {
                first = first.or(Some(name));
            }
        }
    }
    let failed = by_hop(samples.iter().filter(|sample| !sample.is_fine()));
    let in_vain = failed.iter().filter_map(|hop| Some((hop.name, hop.answers.iter().map(|answer| answer.attempt).max()?)));
    let in_vain = in_vain.filter(|(_, most)| *most > 1);
    let in_vain: Vec<String> =
        in_vain.map(|(name, most)| format!("{name:<20} {most} attempts in vain, in requests that failed")).collect();
    let text = match lines.len() {
        0 if in_vain.is_empty() && !more_calls.is_empty() => {
            "No answer says that it is a repeated attempt, and there are more calls than hops made".to_owned()
        }
        0 if in_vain.is_empty() => "No retries: every answer was a first attempt".to_owned(),
        0 => "No retry hid a failure: the requests that were repeated failed all the same".to_owned(),
        1 => "Retries seen at 1 hop: a proxy in front, or its caller, hid failures".to_owned(),
        n => format!(
            "Retries seen at {n} hops: proxies in front, or their callers, hid failures; retries at several layers multiply"
        ),
    };
    lines.extend(in_vain);
    let repeated = by_hop(samples).into_iter().filter(|hop| hop.answers.iter().any(|answer| answer.attempt > 1));
    lines.extend(repeated.map(|hop| format!("{} received {} calls for 1 request", hop.name, most_calls(samples, hop.name))));
    lines.extend(more_calls.iter().cloned());
    let Some(name) = first else { return Finding::pass(ID, text).lines(lines) };
    let hint = Hint::new(format!(
        "Calls of {name} fail and a proxy repeats them ({}), or its caller does (--retries): the failures are hidden and not gone. --expect-retries says what is meant",
        hints.configured_by("retries of a VirtualService; without one Istio repeats twice", "retry_policy of its route")
    ))
    .run("kubectl get virtualservice -A -o yaml | grep -A4 retries:")
    .run(format!("kubectl get pods -n {} -l app={name}", hints.namespace));
    Finding::fail(ID, format!("{text}, {expected} % promised"), hint).lines(lines).hop(name)
}

/// Whether the promised share of the answers keeps its limit.
fn limited(samples: &[Sample], hops: &[HopSamples<'_>], limit: &LatencyLimit, hints: &HintContext) -> Finding {
    const ID: CheckId = CheckId::TrafficLatency;
    let (name, times) = match &limit.hop {
        None => (
            "The whole request",
            sorted(samples.iter().filter(|sample| sample.is_fine()).map(|sample| sample.took.as_secs_f64() * 1000.0)),
        ),
        Some(expected) => match hops.iter().find(|hop| is_named(hop.name, expected)) {
            Some(hop) => (hop.name, sorted(hop.answers.iter().map(|answer| answer.took_ms))),
            None => (expected.as_str(), Vec::new()),
        },
    };
    let Some(measured) = percentile(&times, limit.percent / 100.0) else {
        return Finding::skip(ID, format!("{name}, {limit}: not checked, because it never answered"));
    };
    let data = serde_json::json!({"limit": limit.to_string(), "measured_ms": measured, "answers": times.len()});
    let text = format!("{name} answers in {measured:.1} ms at p{} of {} answers", limit.percent, times.len());
    let finding = if measured <= limit.limit.as_secs_f64() * 1000.0 {
        Finding::pass(ID, format!("{text}, as promised ({limit})"))
    } else {
        let (ms, slowest) = slowest(hops, limit.percent / 100.0).unwrap_or_default();
        let on_purpose = hops.iter().find(|hop| hop.name == slowest).map(rates::on_purpose).unwrap_or_default();
        let on_purpose = if on_purpose.is_empty() { String::new() } else { format!(" (on purpose: {})", on_purpose.join(", ")) };
        let hint = Hint::new(format!(
            "The slowest hop by itself is {slowest}, with {ms:.0} ms at p{}{on_purpose}; --expect-latency says what is meant",
            limit.percent
        ))
        .run(format!("kubectl set env deploy/{slowest} --list -n {} | grep -E 'LATENCY|FAULT'", hints.namespace));
        Finding::fail(ID, format!("{text}, {limit} promised"), hint)
    };
    let finding = finding.data(data);
    if limit.hop.is_some() { finding.hop(name) } else { finding }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::check::traffic::sample::HopSample;
    use crate::report::Status;

    fn sample(outcome: Outcome, attempt: u32) -> Sample {
        let answer = HopSample { attempt, calls: attempt, ..HopSample::for_tests("service1", "service1-0") };
        Sample { hops: vec![answer], ..Sample::new(Duration::ZERO, Duration::ZERO, outcome) }
    }

    #[test]
    fn a_retry_is_a_failure_where_it_hid_one() {
        let hints = HintContext::for_tests();
        let hidden = retries(&[sample(Outcome::Fine, 2), sample(Outcome::Fine, 1)], 0.0, &[], &hints);
        assert!(hidden.status == Status::Fail && hidden.detail[0].contains("1 of 2 answers"), "{hidden:#?}");
        let in_vain = retries(&[sample(Outcome::Broke(Vec::new()), 4)], 0.0, &[], &hints);
        assert!(in_vain.status == Status::Pass && in_vain.detail[0].contains("4 attempts in vain"), "{in_vain:#?}");
        let none = retries(&[sample(Outcome::Fine, 1)], 0.0, &[], &hints);
        assert_eq!((none.status, none.text.as_str()), (Status::Pass, "No retries: every answer was a first attempt"));
        // A proxy that mirrors calls counts no attempts.
        let mirrored = retries(&[sample(Outcome::Fine, 1)], 0.0, &["service2 received 3 calls".to_owned()], &hints);
        assert!(mirrored.status == Status::Pass && !mirrored.text.starts_with("No retries"), "{mirrored:#?}");
        assert_eq!(mirrored.detail, ["service2 received 3 calls"]);
    }

    #[test]
    fn a_failure_that_no_hop_shows_is_a_finding() {
        let hints = HintContext::for_tests();
        let sample = Sample { hops: Vec::new(), ..sample(Outcome::Broke(Vec::new()), 1) };
        let findings = findings(
            &[sample],
            None,
            Rates::default(),
            &TrafficExpectation {
                success: 100.0,
                retries: 0.0,
                splits: &[],
                latencies: &[],
                principals: &[],
                kept: &[],
                pods: &|_| None,
                marked: &[],
                more_calls: &[],
            },
            &hints,
        );
        assert_eq!(findings.len(), 1, "{findings:#?}");
        assert_eq!((findings[0].id, findings[0].status), (CheckId::TrafficSuccess, Status::Fail));
        assert!(findings[0].text.starts_with("1 of 1 requests failed."), "{}", findings[0].text);
    }
}
