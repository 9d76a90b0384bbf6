//! What strikes a share of the requests only: every answer of the series is examined as that of the probe was, and counted.

use crate::check::chain::evidence::{CALLER, Xray};
use crate::check::envoy::suggestions::HintContext;
use crate::check::propagation;
use crate::check::report::{CheckId, Finding, Seam};
use crate::check::traffic::sample::{HopSamples, Sample};

/// Kinds of damage that are reported.
const SHOWN: usize = 10;

/// What broke in some requests and not in others, most frequent first. What breaks in every one is the x-ray's to report, which asks
/// further. `xray`: of the probe, whose own failure of this kind has the cause.
pub(crate) fn findings(samples: &[Sample], xray: Option<&Xray>, hints: &HintContext) -> Vec<Finding> {
    let is_same = |a: &Finding, b: &Finding| (a.id, &a.seam, &a.cause) == (b.id, &b.seam, &b.cause);
    let mut kinds: Vec<(&Finding, usize)> = Vec::new();
    for damage in samples.iter().map(|sample| &sample.damage) {
        for (at, finding) in damage.iter().enumerate() {
            match kinds.iter_mut().find(|(known, _)| is_same(known, finding)) {
                Some((_, struck)) => *struck += usize::from(!damage[..at].iter().any(|before| is_same(before, finding))),
                None => kinds.push((finding, 1)),
            }
        }
    }
    kinds.sort_by_key(|(_, struck)| std::cmp::Reverse(*struck));
    let known: Vec<Finding> =
        xray.iter().flat_map(|xray| xray.faults.iter().map(|fault| propagation::finding(fault, xray, hints))).collect();
    let rated = kinds.into_iter().filter_map(|(first, struck)| {
        let seam = first.seam.as_ref()?;
        let all = samples.iter().filter(|sample| passes(sample, seam)).count();
        let finding = rated(first, struck, all);
        let is_known = known.iter().any(|known| (known.id, &known.seam) == (first.id, &first.seam));
        (struck < all).then(|| if is_known { finding.following(first.id) } else { finding })
    });
    rated.take(SHOWN).collect()
}

/// Whether a request shows what happens there.
fn passes(sample: &Sample, seam: &Seam) -> bool {
    let name = if seam.from == CALLER { &seam.to } else { &seam.from };
    sample.hops.iter().any(|answer| answer.hop.name == *name)
}

fn rated(first: &Finding, struck: usize, all: usize) -> Finding {
    const ID: CheckId = CheckId::TrafficPropagation;
    let percent = 100.0 * struck as f64 / all as f64;
    let cause = first.cause.as_ref().map(|cause| format!("{cause}. It strikes {percent:.1} % of the requests"));
    Finding {
        id: ID,
        group: ID.group(),
        text: format!("In {struck} of {all} requests: {}", first.text),
        cause,
        data: Some(serde_json::json!({"requests": all, "struck": struck, "percent": percent})),
        ..first.clone()
    }
}

/// What hops did on purpose that only takes time or memory: a line for each kind.
pub(crate) fn on_purpose(hop: &HopSamples<'_>) -> Vec<String> {
    let mut kinds: Vec<(&str, usize)> = Vec::new();
    for what in hop.answers.iter().flat_map(|answer| &answer.injected) {
        match kinds.iter_mut().find(|(known, _)| known == what) {
            Some((_, count)) => *count += 1,
            None => kinds.push((what, 1)),
        }
    }
    let all = hop.answers.len();
    kinds.into_iter().map(|(what, count)| format!("{what} in {count} of {all} answers")).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::check::report::{Hint, Status};
    use crate::check::traffic::sample::{HopSample, Outcome};

    /// Requests through service1 and service2, `struck` of which were broken between them.
    fn samples(all: usize, struck: usize) -> Vec<Sample> {
        let broken = || {
            Finding::fail(CheckId::PropagationTrace, "Trace broke", Hint::new("service1 breaks the trace on purpose: cross-talk"))
                .seam("service1", "service2", None)
        };
        (0..all)
            .map(|n| {
                let mut sample = Sample::new(Duration::ZERO, Duration::ZERO, Outcome::Fine);
                sample.hops = ["service1", "service2"].map(|name| HopSample::for_tests(name, "pod")).to_vec();
                sample.damage = if n < struck { vec![broken(), broken()] } else { Vec::new() };
                sample
            })
            .collect()
    }

    #[test]
    fn what_strikes_some_requests_has_a_rate_and_what_strikes_all_is_left_to_the_probe() {
        let found = findings(&samples(100, 5), None, &HintContext::for_tests());
        assert_eq!((found.len(), found[0].id, found[0].status), (1, CheckId::TrafficPropagation, Status::Fail));
        assert_eq!(found[0].text, "In 5 of 100 requests: Trace broke");
        let cause = "service1 breaks the trace on purpose: cross-talk. It strikes 5.0 % of the requests";
        assert_eq!(found[0].cause.as_deref(), Some(cause));
        assert!(findings(&samples(100, 100), None, &HintContext::for_tests()).is_empty());
        assert!(findings(&samples(100, 0), None, &HintContext::for_tests()).is_empty());
    }

    #[test]
    fn what_only_takes_time_is_counted_by_its_kind() {
        let mut answers = vec![HopSample::for_tests("service1", "pod"); 4];
        answers[0].injected = vec!["a delay of 400 ms".to_owned(), "cpu=50ms".to_owned()];
        answers[2].injected = vec!["a delay of 400 ms".to_owned()];
        let hop = HopSamples { name: "service1", answers: answers.iter().collect() };
        assert_eq!(on_purpose(&hop), ["a delay of 400 ms in 2 of 4 answers", "cpu=50ms in 1 of 4 answers"]);
    }
}
