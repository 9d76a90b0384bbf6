//! Which instance, and which seam, is slower than the others: robust against noise, because all of them run on the same machines.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::check::chain::evidence::CALLER;
use crate::check::envoy::suggestions::{HintContext, Runner};
use crate::check::traffic::sample::{HopSamples, Sample};
use crate::check::traffic::stats::sorted;
use crate::report::{CheckId, Finding, Hint};
use crate::text::number::percentile;

const ID: CheckId = CheckId::TrafficTimes;

/// Fewer answers of an instance, or calls over a seam, prove nothing.
const MIN_SAMPLES: usize = 10;
/// An instance is slow when three quarters of its answers take this much longer than nine tenths of its siblings'.
const SLOWER: f64 = 2.0;
const SLOWER_BY_MS: f64 = 50.0;
/// A seam is slow when this share of its calls takes so much longer than nine tenths of the calls over every other seam.
const SLOW_SHARE: f64 = 0.25;
/// The same where nearly no call over another seam does, and a part of the calls is held for one time while others pass.
const RARE_SHARE: f64 = 0.03;
/// How far the middle half of such times may lie apart, of their median: what a busy machine holds up takes any time.
const SPREAD: f64 = 0.25;
/// How far the middle half of such calls has to lie apart, of the series: connections that wait for one retransmission begin together.
const SCATTER: f64 = 0.15;
const SEAM_SLOWER: f64 = 4.0;
const SEAM_MS: f64 = 250.0;
/// Calls that end together were held up together, by a machine or a proxy that stood still: one event of this width.
const EVENT: Duration = Duration::from_millis(50);
/// Fewer events are chance, unless nearly every call is slow.
const MIN_EVENTS: usize = 5;
const NEARLY_ALL: f64 = 0.9;

/// `series`: of requests, each with a clock of its own. `hops`: of the first.
pub(crate) fn findings(series: [&[Sample]; 2], hops: &[HopSamples<'_>], hints: &HintContext) -> Vec<Finding> {
    let mut out: Vec<Finding> = hops.iter().filter_map(|hop| instances(hop, hints)).collect();
    let seams = by_seam(&series);
    out.extend(slow_seams(&seams, hops, hints));
    let is_compared = hops.iter().any(|hop| hop.answers.len() >= MIN_SAMPLES) && !seams.is_empty();
    if out.is_empty() && is_compared {
        out.push(Finding::pass(ID, "No instance is slower than its siblings, and no seam than the others"));
    }
    out
}

/// An instance that takes longer itself than the others of its hop.
fn instances(hop: &HopSamples<'_>, hints: &HintContext) -> Option<Finding> {
    let hosts = hop.tally(|answer| &answer.hop.hostname);
    hosts.keys().find_map(|host| {
        let own = |is_it: bool| {
            sorted(hop.answers.iter().filter(|answer| (answer.hop.hostname == **host) == is_it).map(|answer| answer.own_ms))
        };
        let (its, others) = (own(true), own(false));
        if its.len() < MIN_SAMPLES || others.len() < MIN_SAMPLES {
            return None;
        }
        let (low, high) = (percentile(&its, 0.25)?, percentile(&others, 0.9)?);
        if low < SLOWER * high || low - high < SLOWER_BY_MS {
            return None;
        }
        let (median, usual) = (percentile(&its, 0.5)?, percentile(&others, 0.5)?);
        let answer = hop.answers.iter().find(|answer| answer.hop.hostname == **host)?;
        let (name, namespace) = (hop.name, hints.namespace_of(&answer.hop));
        let text = format!(
            "{host} is slower than the other instances of {name}: it takes {median:.0} ms itself, the others {usual:.0} ms (medians of {} and {} answers)",
            its.len(),
            others.len()
        );
        let hint = Hint::new(format!(
            "That one instance of {name} has a latency or a fault of its own (LATENCY, FAULT), another version or settings, or a node or a limit that starves it"
        ))
        .run(hints.settings(&answer.hop));
        let hint = match hints.runner(&answer.hop) {
            Runner::Kubernetes => hint.run(format!("kubectl get pod {host} -n {namespace} -o wide")),
            Runner::Compose | Runner::Local => hint,
        };
        Some(Finding::fail(ID, text, hint).hop(name).data(serde_json::json!({"instance": host, "p50_ms": median, "others_p50_ms": usual})))
    })
}

/// What lies between a call and the answer of the hop that was called.
#[derive(Debug, Clone, Copy)]
struct Gap {
    ms: f64,
    /// In which event of which series the request ended.
    event: (usize, u128),
    /// Whether a request that was sent later had its answer before half of that time was over: nothing stood still.
    is_overtaken: bool,
    /// Where in its series the request began: from 0 to 1.
    began: f64,
}

/// For each request of a series, which are in the order of their start, when the first of those behind it has its answer.
fn overtakers(samples: &[Sample]) -> Vec<Duration> {
    let mut first = Duration::MAX;
    let mut ends: Vec<Duration> = Vec::with_capacity(samples.len());
    for sample in samples.iter().rev() {
        ends.push(first);
        first = first.min(sample.at + sample.took);
    }
    ends.reverse();
    ends
}

/// By caller and called.
fn by_seam<'a>(series: &[&'a [Sample]]) -> BTreeMap<(&'a str, &'a str), Vec<Gap>> {
    let mut seams: BTreeMap<(&str, &str), Vec<Gap>> = BTreeMap::new();
    for (of, samples) in series.iter().enumerate() {
        let span = samples.last().map_or(1.0, |last| last.at.as_secs_f64().max(f64::EPSILON));
        for (sample, overtaker) in samples.iter().zip(overtakers(samples)) {
            let end = sample.at + sample.took;
            let event = (of, end.as_millis() / EVENT.as_millis());
            for (from, to, ms) in &sample.gaps {
                let half = Duration::from_secs_f64(ms / 2000.0);
                let is_overtaken = overtaker <= end.saturating_sub(half);
                let began = sample.at.as_secs_f64() / span;
                seams.entry((from, to)).or_default().push(Gap { ms: *ms, event, is_overtaken, began });
            }
        }
    }
    seams.values_mut().for_each(|gaps| gaps.sort_by(|a, b| a.ms.total_cmp(&b.ms)));
    seams
}

/// Why a call may be held between two hops.
fn delay_hint(from: &str, to: &str, hops: &[HopSamples<'_>], hints: &HintContext) -> Hint {
    let answered = hops.iter().find(|hop| hop.name == to).and_then(|hop| hop.answers.first());
    let hint = Hint::new(format!(
        "Something between {from} and {to} holds the call: {} (flag DI in the proxy's log), a proxy that waits for a connection or a retry, or the network",
        hints.configured_by("fault.delay of a VirtualService", "the fault filter of a proxy")
    ));
    if let Some(answer) = answered.filter(|answer| hints.runner(&answer.hop) != Runner::Kubernetes) {
        return hint.run(hints.logs(&answer.hop));
    }
    hint.run("kubectl get virtualservice -A -o yaml | grep -A6 fault:").run(if from == CALLER {
        format!("kubectl logs -n {} deploy/istio-ingressgateway --tail=5", hints.gateway_namespace)
    } else {
        format!("kubectl logs deploy/{from} -c istio-proxy -n {} --tail=5", hints.namespace)
    })
}

fn slow_seams(seams: &BTreeMap<(&str, &str), Vec<Gap>>, hops: &[HopSamples<'_>], hints: &HintContext) -> Vec<Finding> {
    let high = |gaps: &Vec<Gap>| percentile(&gaps.iter().map(|gap| gap.ms).collect::<Vec<_>>(), 0.9).unwrap_or_default();
    let slow = seams.iter().filter_map(|((from, to), gaps)| {
        let others = seams.iter().filter(|((a, b), _)| (a, b) != (from, to)).map(|(_, gaps)| high(gaps));
        let limit = (others.fold(0.0, f64::max) * SEAM_SLOWER).max(SEAM_MS);
        let over = |gaps: &[Gap]| gaps.iter().copied().filter(|gap| gap.ms > limit).collect::<Vec<_>>();
        let events_of = |gaps: Vec<Gap>| gaps.iter().map(|gap| gap.event).collect::<BTreeSet<_>>();
        let held = over(gaps);
        let slow: Vec<f64> = held.iter().map(|gap| gap.ms).collect();
        let overtaken = held.iter().filter(|gap| gap.is_overtaken).count();
        let began = sorted(held.iter().map(|gap| gap.began));
        let events = events_of(held);
        let share = slow.len() as f64 / gaps.len() as f64;
        let is_chance = events.len() < MIN_EVENTS && share < NEARLY_ALL;
        // A machine that is busy with others holds up calls anywhere.
        let is_alone = || {
            let elsewhere = seams.iter().filter(|((a, b), _)| (a, b) != (from, to)).map(|(_, gaps)| events_of(over(gaps)).len());
            let middle = |values: &[f64]| {
                let at = |q: f64| percentile(values, q).unwrap_or_default();
                (at(0.75) - at(0.25), at(0.5))
            };
            let (apart, median) = middle(&slow);
            let is_one_time = apart <= SPREAD * median && 2 * overtaken >= slow.len();
            let is_scattered = middle(&began).0 >= SCATTER;
            share >= RARE_SHARE && is_one_time && is_scattered && MIN_EVENTS * elsewhere.max().unwrap_or_default() <= events.len()
        };
        (seams.len() > 1 && gaps.len() >= MIN_SAMPLES && (share >= SLOW_SHARE || is_alone()) && !is_chance).then_some((
            from,
            to,
            gaps.len(),
            slow,
        ))
    });
    slow.map(|(from, to, all, slow)| {
        let median = percentile(&slow, 0.5).unwrap_or_default();
        let text = format!(
            "{median:.0} ms lie between the call of {from} and the answer of {to}, in {} of {all} calls: neither of the two takes them",
            slow.len()
        );
        Finding::fail(ID, text, delay_hint(from, to, hops, hints)).seam(from, to, None).hop(to)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::traffic::sample::{HopSample, Outcome, by_hop};
    use crate::report::Status;
    /// A hundred requests over three hops of two instances each, with the demo's latencies; `change` adds to the time of an
    /// instance of service2, and to what lies between service2 and service3 in so many of a hundred calls.
    fn run(seed: u64, instance_ms: f64, seam_ms: f64, percent: u32) -> Vec<Finding> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut draw = |low: f64, high: f64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            low + (high - low) * (state >> 11) as f64 / (1_u64 << 53) as f64
        };
        let mut samples = Vec::new();
        for n in 0..100 {
            let mut sample = Sample::new(Duration::from_millis(20) * n, Duration::ZERO, Outcome::Fine);
            for hop in 1..=3 {
                let host = (n + hop) % 2;
                let slow = if hop == 2 && host == 0 { instance_ms } else { 0.0 };
                let own_ms = draw(5.0, 60.0) + slow;
                let answer = HopSample::for_tests(&format!("service{hop}"), &format!("service{hop}-{host}"));
                sample.hops.push(HopSample { own_ms, took_ms: own_ms, ..answer });
                let from = if hop == 1 { "check".into() } else { format!("service{}", hop - 1) };
                let gap = draw(0.5, 8.0) + if hop == 3 && n % 100 * 37 % 100 < percent { seam_ms } else { 0.0 };
                sample.took += Duration::from_secs_f64((own_ms + gap) / 1000.0);
                sample.gaps.push((from, format!("service{hop}"), gap));
            }
            samples.push(sample);
        }
        let hints = HintContext::for_tests();
        findings([&samples, &[]], &by_hop(&samples), &hints)
    }

    #[test]
    fn a_thousand_healthy_runs_give_no_false_alarm() {
        for seed in 1..=1000 {
            let found = run(seed, 0.0, 0.0, 0);
            assert!(found.len() == 1 && found[0].status == Status::Pass, "{seed}: {found:#?}");
        }
    }

    /// A machine that stands still for 400 ms holds up what is sent meanwhile: all of it ends together.
    #[test]
    fn a_standstill_is_no_slow_seam() {
        let hints = HintContext::for_tests();
        let sample = |n: u32, still: bool| {
            let at = Duration::from_millis(20) * n;
            let wait = Duration::from_millis(if still { 1000 } else { u64::from(n) * 20 + 500 }).saturating_sub(at);
            let gap = |from: &str, to: &str, ms| (from.to_owned(), to.to_owned(), ms);
            let gaps = vec![gap("check", "service1", wait.as_secs_f64() * 1000.0), gap("service1", "service2", 1.0)];
            Sample { gaps, ..Sample::new(at, wait, Outcome::Fine) }
        };
        let still: Vec<Sample> = (0..60).map(|n| sample(n, true)).collect();
        assert!(slow_seams(&by_seam(&[&still]), &[], &hints).is_empty());
        let slow: Vec<Sample> = (0..60).map(|n| sample(n, false)).collect();
        assert_eq!(slow_seams(&by_seam(&[&slow]), &[], &hints).len(), 1);
    }

    /// A machine that is busy with others holds up a few calls here and there: no seam of its own.
    #[test]
    fn calls_that_are_held_up_at_several_seams_are_chance() {
        let sample = |n: u32| {
            let held = |seam: u32| if n % 12 == seam * 4 { 600.0 } else { 1.0 };
            let gaps = vec![
                ("check".to_owned(), "service1".to_owned(), held(0)),
                ("service1".to_owned(), "service2".to_owned(), held(1)),
            ];
            Sample { gaps, ..Sample::new(Duration::from_millis(100) * n, Duration::from_millis(700), Outcome::Fine) }
        };
        let samples: Vec<Sample> = (0..100).map(sample).collect();
        assert!(slow_seams(&by_seam(&[&samples]), &[], &HintContext::for_tests()).is_empty());
    }

    /// A process that gets no processor again and again holds up what comes meanwhile, for any time and all of it.
    #[test]
    fn a_process_that_starves_is_no_slow_seam() {
        let sample = |n: u32| {
            let at = Duration::from_millis(20) * n;
            // 600 ms of every two seconds it stands still.
            let phase = at.as_millis() as u64 % 2000;
            let waits = if phase < 600 { 600 - phase } else { 1 };
            let gap = |from: &str, to: &str, ms: u64| (from.to_owned(), to.to_owned(), ms as f64);
            let gaps = vec![gap("check", "service1", 1), gap("service1", "service2", waits)];
            Sample { gaps, ..Sample::new(at, Duration::from_millis(waits + u64::from(n % 7) * 20), Outcome::Fine) }
        };
        let samples: Vec<Sample> = (0..400).map(sample).collect();
        let seams = by_seam(&[&samples]);
        let slow = seams[&("service1", "service2")].iter().filter(|gap| gap.ms > SEAM_MS).count();
        assert!(slow * 4 < 400 && slow > 12, "{slow} of 400 are slow");
        assert!(slow_seams(&seams, &[], &HintContext::for_tests()).is_empty());
    }

    /// Connections of one moment, whose first packet a busy listener dropped, wait for the same retransmission.
    #[test]
    fn a_burst_of_connections_is_no_slow_seam() {
        let sample = |n: u32, burst: bool| {
            let is_slow = if burst { (10..16).contains(&n) } else { n % 17 == 3 };
            let gap = |from: &str, to: &str, ms: f64| (from.to_owned(), to.to_owned(), ms);
            let ms = if is_slow { 3000.0 + f64::from(n) } else { 2.0 };
            let gaps = vec![gap("check", "service1", 1.0), gap("service1", "service2", ms)];
            let took = Duration::from_secs_f64((ms + f64::from(n % 7) * 20.0) / 1000.0);
            Sample { gaps, ..Sample::new(Duration::from_millis(20) * n, took, Outcome::Fine) }
        };
        for burst in [true, false] {
            let samples: Vec<Sample> = (0..100).map(|n| sample(n, burst)).collect();
            let found = slow_seams(&by_seam(&[&samples]), &[], &HintContext::for_tests());
            assert_eq!(found.is_empty(), burst, "{found:#?}");
        }
    }

    #[test]
    fn the_log_of_the_proxy_that_calls_is_the_gateways_in_front_of_the_first_hop() {
        let answer = |name: &str| HopSample::for_tests(name, &format!("{name}-7d4b9c6f5-x2x5z"));
        let (one, two) = (answer("service1"), answer("service2"));
        let hops = [HopSamples { name: "service1", answers: vec![&one] }, HopSamples { name: "service2", answers: vec![&two] }];
        for (from, to, log) in [
            ("check", "service1", "kubectl logs -n istio-system deploy/istio-ingressgateway --tail=5"),
            ("service1", "service2", "kubectl logs deploy/service1 -c istio-proxy -n httpserver --tail=5"),
        ] {
            assert_eq!(delay_hint(from, to, &hops, &HintContext::for_tests()).next.last().map(String::as_str), Some(log));
        }
    }

    #[test]
    fn one_slow_instance_and_one_slow_seam_are_named() {
        for seed in 1..=100 {
            let instance = run(seed, 200.0, 0.0, 0);
            assert!(instance.len() == 1 && instance[0].text.starts_with("service2-0 is slower"), "{seed}: {instance:#?}");
            let rare = run(seed, 0.0, 1000.0, 8);
            assert!(rare.len() == 1 && rare[0].text.contains("answer of service3, in 8 of 100 calls"), "{rare:#?}");
            let seam = run(seed, 0.0, 1000.0, 100);
            assert!(seam[0].next.iter().all(|command| !command.starts_with("kubectl")), "these are no pods: {seam:#?}");
            assert!(
                seam.len() == 1 && seam[0].text.contains("between the call of service2 and the answer of service3"),
                "{seam:#?}"
            );
        }
    }
}
