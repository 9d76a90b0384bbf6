//! What strikes a share of the requests only: every answer of the series is examined as that of the probe was, and counted.

use crate::check::chain::evidence::{CALLER, Xray};
use crate::check::envoy::suggestions::HintContext;
use crate::check::propagation;
use crate::check::traffic::instance::{all_at, struck_at};
use crate::check::traffic::sample::{HopSamples, Sample, by_hop};
use crate::report::{CheckId, Finding, Seam};

/// Kinds of damage that are reported.
const SHOWN: usize = 10;

/// What broke in some requests and not in others, most frequent first. What breaks in every one is the x-ray's to report, which asks
/// further.
#[derive(Default)]
pub(crate) struct Rates(Vec<RatedDamage>);

/// One kind of damage.
struct RatedDamage {
    /// As it was first seen.
    first: Finding,
    struck: usize,
    /// The requests that could show it.
    all: usize,
    /// The probe's own failure of this kind, or another damage at the same place: it has the cause.
    known: Option<CheckId>,
    /// The one instance at which it was, and its siblings.
    at: Option<(String, String)>,
}

impl Rates {
    /// `marked`: requests beside the `samples` that brought headers of their own. `xray`: of the probe.
    pub(crate) fn of(samples: &[Sample], marked: &[Sample], xray: Option<&Xray>, hints: &HintContext) -> Self {
        let is_same = |a: &Finding, b: &Finding| (&a.seam, &a.cause) == (&b.seam, &b.cause);
        let mut kinds: Vec<(&Finding, [usize; 2])> = Vec::new();
        let each = samples.iter().map(|sample| (0, sample)).chain(marked.iter().map(|sample| (1, sample)));
        for (series, damage) in each.map(|(series, sample)| (series, &sample.damage)) {
            for (at, finding) in damage.iter().enumerate() {
                let is_new = !damage[..at].iter().any(|before| is_same(before, finding));
                match kinds.iter_mut().find(|(known, _)| is_same(known, finding)) {
                    Some((_, struck)) => struck[series] += usize::from(is_new),
                    None => {
                        let mut struck = [0; 2];
                        struck[series] = 1;
                        kinds.push((finding, struck));
                    }
                }
            }
        }
        // Requests that bring headers show more of what strikes them: theirs is the cause where a place has several.
        kinds.sort_by_key(|(_, struck)| std::cmp::Reverse((struck[1], struck[0])));
        let hops = by_hop(samples.iter().chain(marked));
        let struck_by = |kind: &Finding| {
            let of = samples.iter().chain(marked).filter(|sample| sample.damage.iter().any(|damage| is_same(damage, kind)));
            of.collect::<Vec<_>>()
        };
        let known: Vec<Finding> =
            xray.iter().flat_map(|xray| xray.faults.iter().map(|fault| propagation::finding(fault, xray, hints))).collect();
        let rated = kinds.into_iter().filter_map(|(first, [bare, carried])| {
            let seam = first.seam.as_ref()?;
            let passing = |of: &[Sample]| of.iter().filter(|sample| passes(sample, seam)).count();
            // What only requests that bring headers show is a share of those.
            let all = if carried > 0 { passing(marked) } else { 0 } + if bare > 0 { passing(samples) } else { 0 };
            let is_known = |known: &&Finding| known.seam == first.seam && (known.id == first.id || known.cause == first.cause);
            let known = known.iter().find(is_known).map(|known| known.id);
            let struck = bare + carried;
            let at = || {
                let struck = struck_by(first);
                let names = first.hop.iter().chain([&seam.from, &seam.to]);
                names.into_iter().find_map(|name| struck_at(name, struck.iter().copied(), &hops))
            };
            (struck < all).then(|| RatedDamage { first: first.clone(), struck, all, known, at: at() })
        });
        let mut rated: Vec<RatedDamage> = rated.take(SHOWN).collect();
        for n in 1..rated.len() {
            let is_there = rated[..n].iter().any(|before| before.first.seam == rated[n].first.seam);
            rated[n].known = rated[n].known.or(is_there.then_some(CheckId::TrafficPropagation));
        }
        Self(rated)
    }

    /// Each as the x-ray has it, for what follows from it.
    pub(crate) fn causes(&self) -> Vec<Finding> {
        let as_cause = |rated: &RatedDamage| rated.first.clone().following(rated.known.unwrap_or(CheckId::TrafficPropagation));
        self.0.iter().map(as_cause).collect()
    }

    pub(crate) fn findings(self) -> Vec<Finding> {
        self.0.into_iter().map(RatedDamage::finding).collect()
    }
}

/// Whether a request shows what happens there.
fn passes(sample: &Sample, seam: &Seam) -> bool {
    let name = if seam.from == CALLER { &seam.to } else { &seam.from };
    sample.hops.iter().any(|answer| answer.hop.name == *name)
}

impl RatedDamage {
    fn finding(self) -> Finding {
        const ID: CheckId = CheckId::TrafficPropagation;
        let Self { first, struck, all, known, at } = self;
        let percent = 100.0 * struck as f64 / all as f64;
        let finding = Finding {
            id: ID,
            group: ID.group(),
            text: format!("In {struck} of {all} requests: {}{}", first.text, all_at(at.as_ref())),
            cause: first.cause.as_ref().map(|cause| format!("{cause}. It strikes {percent:.1} % of the requests")),
            data: Some(serde_json::json!({"requests": all, "struck": struck, "percent": percent})),
            ..first
        };
        known.map_or(finding.clone(), |cause| finding.following(cause))
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
    use crate::check::traffic::sample::{HopSample, Outcome};
    use crate::report::{Hint, Status};

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
        let findings =
            |samples: &[Sample], marked: &[Sample]| Rates::of(samples, marked, None, &HintContext::for_tests()).findings();
        let found = findings(&samples(100, 5), &[]);
        assert_eq!((found.len(), found[0].id, found[0].status), (1, CheckId::TrafficPropagation, Status::Fail));
        assert_eq!(found[0].text, "In 5 of 100 requests: Trace broke");
        let cause = "service1 breaks the trace on purpose: cross-talk. It strikes 5.0 % of the requests";
        assert_eq!(found[0].cause.as_deref(), Some(cause));
        assert!(findings(&samples(100, 100), &[]).is_empty());
        assert!(findings(&samples(100, 0), &[]).is_empty());
        // What only requests of one kind show is a share of those; what all show, of all.
        assert_eq!(findings(&samples(100, 7), &samples(40, 0))[0].text, "In 7 of 100 requests: Trace broke");
        let text = |struck: usize| findings(&samples(100, struck), &samples(40, 4))[0].text.clone();
        assert_eq!((text(0), text(10)), ("In 4 of 40 requests: Trace broke".into(), "In 14 of 140 requests: Trace broke".into()));
    }

    #[test]
    fn damage_of_one_instance_names_it() {
        let mut samples = samples(100, 50);
        samples.iter_mut().take(50).for_each(|sample| sample.hops[0].hop.hostname = "pod-b".to_owned());
        let found = Rates::of(&samples, &[], None, &HintContext::for_tests()).findings();
        assert_eq!(found[0].text, "In 50 of 100 requests: Trace broke. All of them at pod-b, and none at pod");
        // Where the siblings have it, too, it is none of one instance.
        samples[60].damage = samples[0].damage.clone();
        let found = Rates::of(&samples, &[], None, &HintContext::for_tests()).findings();
        assert_eq!(found[0].text, "In 51 of 100 requests: Trace broke");
    }

    #[test]
    fn a_second_damage_at_one_seam_is_the_consequence_of_the_first() {
        let (mut bare, mut marked) = (samples(100, 30), samples(100, 20));
        bare.iter_mut().flat_map(|sample| &mut sample.damage).for_each(|damage| damage.cause = Some("It begins anew".into()));
        let elsewhere = Finding::fail(CheckId::PropagationTrace, "Trace broke", Hint::new("It begins anew"));
        marked[50].damage.push(elsewhere.seam("service2", "service3", None));
        let found = Rates::of(&bare, &marked, None, &HintContext::for_tests()).findings();
        let status: Vec<_> = found.iter().map(|finding| (finding.text.as_str(), finding.follows)).collect();
        let follows = Some(CheckId::TrafficPropagation);
        let wanted = [
            ("In 20 of 100 requests: Trace broke", None),
            ("In 1 of 100 requests: Trace broke", None),
            ("In 30 of 100 requests: Trace broke", follows),
        ];
        assert_eq!(status, wanted);
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
