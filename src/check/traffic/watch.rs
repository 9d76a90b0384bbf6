//! Constant load while a Deployment restarts or an instance is sick: every failure with its hop and instance, the longest gap, and for
//! how long callers left out an instance.

use std::time::Duration;

use crate::check::envoy::suggestions::{HintContext, HopRef};
use crate::check::traffic::sample::{Outcome, Sample};
use crate::check::traffic::{FailureKind, failures};
use crate::report::{CheckId, Finding, Hint};
use crate::text::counted;

/// What is kept of the requests: no more after a month than after a minute.
#[derive(Default)]
pub(crate) struct Watched {
    all: usize,
    failed: usize,
    /// The first of them.
    failures: Vec<Sample>,
    /// When the last success ended, and the longest time without one.
    last: Duration,
    gap: Duration,
    /// By hop in the order in which they first answered, then by host.
    instances: Vec<(String, Vec<Instance>)>,
}

/// A host that answered.
struct Instance {
    host: String,
    first: Duration,
    last: Duration,
    answers: usize,
    /// Answers of the others since its last one.
    others: usize,
    /// Its failures since it was left out.
    failed: usize,
    silences: Vec<Silence>,
}

/// A time in which an instance had no request while the others had so many that this is no chance.
struct Silence {
    from: Duration,
    to: Duration,
    /// The failures there before it.
    failed: usize,
}

impl Instance {
    /// Of the silences.
    const KEPT: usize = 20;

    fn new(host: String, at: Duration) -> Self {
        Self { host, first: at, last: at, answers: 0, others: 0, failed: 0, silences: Vec::new() }
    }

    /// It answers; `siblings`: how many other hosts there are.
    fn answered(&mut self, at: Duration, siblings: usize, has_failed: bool) {
        // Drawn evenly, so many answers pass by an instance once in a million; one that has few requests is compared with itself.
        const OTHERS: usize = 20;
        const USUAL: u32 = 10;
        let silent: Duration = self.silences.iter().map(|silence| silence.to - silence.from).sum();
        let spans = self.answers.saturating_sub(1 + self.silences.len());
        let usual = self.last.saturating_sub(self.first + silent).checked_div(u32::try_from(spans).unwrap_or(u32::MAX));
        let from = self.last;
        if siblings > 0
            && self.others >= OTHERS * siblings
            && usual.is_some_and(|usual| at.saturating_sub(from) > usual * USUAL)
            && self.silences.len() < Self::KEPT
        {
            self.silences.push(Silence { from, to: at, failed: std::mem::take(&mut self.failed) });
        }
        self.others = 0;
        self.first = self.first.min(at);
        self.last = self.last.max(at);
        self.answers += 1;
        self.failed += usize::from(has_failed);
    }
}

impl Watched {
    /// Of the failures that are kept: their kinds are counted among these.
    const KEPT: usize = 1000;
    /// Of the hosts of a hop.
    const HOSTS: usize = 1000;

    /// In the order in which the requests ended.
    pub(crate) fn add(&mut self, sample: Sample) {
        self.all += 1;
        if sample.is_fine() {
            let end = sample.at + sample.took;
            self.gap = self.gap.max(end.saturating_sub(self.last));
            self.last = self.last.max(end);
        }
        for answer in &sample.hops {
            self.answered(&answer.hop, &sample);
        }
        if !sample.is_fine() {
            self.failed += 1;
            if self.failures.len() < Self::KEPT {
                self.failures.push(sample);
            }
        }
    }

    fn answered(&mut self, hop: &HopRef, sample: &Sample) {
        let place = self.instances.iter().position(|(name, _)| *name == hop.name).unwrap_or_else(|| {
            self.instances.push((hop.name.clone(), Vec::new()));
            self.instances.len() - 1
        });
        let hosts = &mut self.instances[place].1;
        if hosts.len() < Self::HOSTS && !hosts.iter().any(|instance| instance.host == hop.hostname) {
            hosts.push(Instance::new(hop.hostname.clone(), sample.at));
        }
        let has_failed = match &sample.outcome {
            Outcome::Broke(breaks) => breaks.iter().any(|broken| broken.to.hostname == hop.hostname),
            _ => false,
        };
        let siblings = hosts.len().saturating_sub(1);
        for instance in hosts {
            if instance.host == hop.hostname {
                instance.answered(sample.at, siblings, has_failed);
            } else {
                instance.others += 1;
            }
        }
    }

    /// The findings of the group, after `span`.
    pub(crate) fn findings(self, span: Duration, hints: &HintContext) -> Vec<Finding> {
        const SHOWN: usize = 20;
        if self.all == 0 {
            return vec![Finding::skip(
                CheckId::WatchFailures,
                "Rollout watch: skipped, because no request was answered before the end",
            )];
        }
        let Self { all, failed, failures: mut kept, .. } = self;
        kept.sort_by_key(|sample| sample.at);
        let gap = self.gap.max(span.saturating_sub(self.last));
        let data = serde_json::json!({"requests": all, "failed": failed, "longest_gap_ms": gap.as_millis() as u64});
        let mut out = Vec::new();
        match failures(&kept, CheckId::WatchFailures, hints).into_iter().next() {
            None => {
                let text = format!("All {all} requests in {:.0} s succeeded", span.as_secs_f64());
                out.push(Finding::pass(CheckId::WatchFailures, text).data(data));
            }
            Some(FailureKind { mut finding, is_explained, .. }) => {
                finding.text = format!("{failed} of {all} requests failed. {}", finding.text);
                if !is_explained {
                    let hint = rollout_hint(hints);
                    (finding.cause, finding.next) = (Some(hint.cause), hint.next);
                }
                finding = finding.data(data).lines(kept.iter().take(SHOWN).map(line));
                if failed > SHOWN {
                    finding = finding.line(format!("… and {} more", failed - SHOWN));
                }
                out.push(finding);
                let text = format!("The longest time without a success was {} ms", gap.as_millis());
                out.push(Finding::skip(CheckId::WatchGap, text));
            }
        }
        out.extend(instances(&self.instances));
        out
    }
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

/// Who answered when: a rollout shows as one instance after another, outlier detection as silence.
fn instances(hops: &[(String, Vec<Instance>)]) -> Option<Finding> {
    const SHOWN: usize = 6;
    let (mut lines, mut data) = (Vec::new(), Vec::new());
    for (name, instance) in hops.iter().flat_map(|(name, hosts)| hosts.iter().take(SHOWN).map(move |instance| (name, instance))) {
        let Instance { host, first, last, answers, silences, .. } = instance;
        let (first, last) = (first.as_secs_f64(), last.as_secs_f64());
        lines.push(format!("{name:<12} {host:<30} {first:>6.1} to {last:>6.1} s  {answers:>6} answers"));
        let mut silent = Vec::new();
        for Silence { from, to, failed } in silences {
            let (from, to) = (from.as_secs_f64(), to.as_secs_f64());
            let after = if *failed > 0 { format!(", after {}", counted(*failed, "failure")) } else { String::new() };
            lines.push(format!("{:<12} left out for {:.1} s, from {from:.1} to {to:.1} s{after}", "", to - from));
            silent.push(serde_json::json!({"from_s": from, "to_s": to, "failed_before": failed}));
        }
        data.push(serde_json::json!({"hop": name, "host": host, "answers": answers, "left_out": silent}));
    }
    let text = "Instances that answered, and when";
    (!lines.is_empty()).then(|| Finding::pass(CheckId::WatchInstances, text).lines(lines).data(data.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::chain::{BreakPoint, FailureCause};
    use crate::check::traffic::sample::HopSample;
    use crate::report::Status;

    /// A request that was sent at a second, took 100 ms, and met an instance.
    fn sample(at: u64, outcome: Outcome, host: &str) -> Sample {
        let answer = HopSample::for_tests("service1", host);
        let took = Duration::from_millis(100);
        Sample { hops: vec![answer], ..Sample::new(Duration::from_secs(at), took, outcome) }
    }

    #[test]
    fn what_is_kept_does_not_grow_with_the_requests() {
        let mut watched = Watched::default();
        for n in 0..100_000 {
            watched.add(sample(n, Outcome::Broke(Vec::new()), &format!("pod-{n}")));
        }
        assert_eq!((watched.failures.len(), watched.instances[0].1.len()), (Watched::KEPT, Watched::HOSTS));
        let found = watched.findings(Duration::from_secs(100_000), &HintContext::for_tests());
        assert!(found[0].text.starts_with("100000 of 100000 requests failed."), "{}", found[0].text);
        assert_eq!(found[0].detail.last().map(String::as_str), Some("… and 99980 more"));
    }

    #[test]
    fn the_longest_time_without_a_success_is_counted_from_the_start_and_to_the_end() {
        let gap = |fine: &[u64], span: u64| {
            let mut watched = Watched::default();
            (0..span).for_each(|n| {
                watched.add(sample(n, if fine.contains(&n) { Outcome::Fine } else { Outcome::Broke(Vec::new()) }, "pod-0"));
            });
            let found = watched.findings(Duration::from_secs(span), &HintContext::for_tests());
            found[0].data.clone().unwrap()["longest_gap_ms"].as_u64().unwrap()
        };
        assert_eq!(gap(&[4], 6), 4100);
        assert_eq!(gap(&[0, 1], 6), 4900);
        assert_eq!(gap(&[0, 3, 5], 6), 3000);
    }

    /// Two instances in turn, of which `sick` has no request from 10 to 30 s.
    #[test]
    fn an_instance_that_is_left_out_is_shown_with_its_failures_before() {
        let to = |host: &str| HopRef { name: "service1".to_owned(), hostname: host.to_owned(), url: String::new() };
        let mut watched = Watched::default();
        for at in 0..50 {
            let is_sick = at % 2 == 0 && !(10..30).contains(&at);
            let broken = BreakPoint { from: HopRef::default(), to: to("sick"), cause: FailureCause::Injected(503) };
            let outcome = if is_sick && at > 2 { Outcome::Broke(vec![broken]) } else { Outcome::Fine };
            watched.add(sample(at, outcome, if is_sick { "sick" } else { "well" }));
        }
        let found = watched.findings(Duration::from_secs(50), &HintContext::for_tests());
        let instances = found.last().unwrap();
        let left_out: Vec<&str> =
            instances.detail.iter().map(|line| line.trim()).filter(|line| line.starts_with("left")).collect();
        assert_eq!(left_out, ["left out for 22.0 s, from 8.0 to 30.0 s, after 3 failures"], "{instances:#?}");
        let data = instances.data.as_ref().unwrap();
        assert_eq!(data[0]["left_out"], serde_json::json!([{"from_s": 8.0, "to_s": 30.0, "failed_before": 3}]));
        assert_eq!(data[1]["left_out"], serde_json::json!([]));
    }

    /// A canary with a hundredth of the requests is not left out between them.
    #[test]
    fn an_instance_with_few_requests_is_not_left_out() {
        let mut watched = Watched::default();
        for at in 0..2000 {
            watched.add(sample(at, Outcome::Fine, if at % 100 == 0 { "few" } else { "many" }));
        }
        let found = watched.findings(Duration::from_secs(2000), &HintContext::for_tests());
        assert!(!found[1].detail.iter().any(|line| line.contains("left out")), "{:#?}", found[1]);
    }

    #[test]
    fn who_answered_when_is_shown_by_hop_and_host() {
        let mut watched = Watched::default();
        for (at, host) in [(0, "a"), (1, "b"), (2, "a")] {
            watched.add(sample(at, Outcome::Fine, host));
        }
        let found = watched.findings(Duration::from_secs(3), &HintContext::for_tests());
        assert_eq!(found[0].status, Status::Pass);
        let lines: Vec<Vec<_>> = found[1].detail.iter().map(|line| line.split_whitespace().collect()).collect();
        let expected = [
            ["service1", "a", "0.0", "to", "2.0", "s", "2", "answers"],
            ["service1", "b", "1.0", "to", "1.0", "s", "1", "answers"],
        ];
        assert_eq!(lines, expected);
    }
}
